//! Reading a session without a lock (docs/format.md, section 3).

use crate::base::FileBase;
use crate::error::{At, Error, Result};
use crate::fs::{Dir, Open, Stat};
use crate::id::SessionId;
use crate::journal::Journal;
use crate::session::Session;
use crate::snapshot::Snapshot;
use bytes::Bytes;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often a reader tries again when a writer may have been between the two files.
const TRIES: u32 = 25;

/// The file names of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    pub stem: String,
    pub snapshot: String,
    pub journal: String,
    pub lock: String,
}

impl Names {
    pub fn new(stem: String) -> Names {
        Names {
            snapshot: format!("{stem}.json"),
            journal: format!("{stem}.journal"),
            lock: format!("{stem}.lock"),
            stem,
        }
    }

    pub fn temp(&self, token: &str) -> String {
        format!(".{}.{token}.tmp", self.stem)
    }

    /// True if a session of this id is looked for under this name.
    pub fn fits(&self, id: &SessionId) -> bool {
        Names::candidates(id).any(|names| names.stem == self.stem)
    }

    /// Ours, and A3S Code's where it differs.
    pub fn candidates(id: &SessionId) -> impl Iterator<Item = Names> {
        std::iter::once(id.stem()).chain(id.a3s_stem()).map(Names::new)
    }
}

/// The journal's file beside a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct JournalFile {
    /// Length of the file; 0 if there is none.
    pub len: u64,
    /// Length of what is whole; the rest is a torn tail.
    pub good_len: u64,
    /// CRC of the last whole line.
    pub crc: u32,
    /// Its lines are in the snapshot already.
    pub folded: bool,
}

/// What a reader found.
#[derive(Debug)]
pub(crate) struct Stored {
    pub session: Session,
    pub journal: JournalFile,
    /// Worth a warning: changed outside perdure, a torn tail.
    pub warnings: Vec<String>,
}

/// What lies under a stem.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// A tombstone: the deletion was not carried through.
    Deleted,
    /// A session whose id differs from the one asked for.
    Other(SessionId),
    Session(Box<Stored>),
}

fn read_file(dir: &dyn Dir, name: &str) -> Result<Option<(Stat, Bytes)>> {
    let path = dir.path().join(name);
    match dir.open(name, Open::Read) {
        Ok(file) => {
            let bytes = file.read_from(0).at("read", &path)?;
            // The identity of what was read, not of what lies there by now.
            let mut stat = file.stat().at("stat", &path)?;
            stat.len = bytes.len() as u64;
            Ok(Some((stat, bytes.into())))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(Error::corrupt(path, e.to_string())),
        Err(e) => Err(e).at("open", &path),
    }
}

fn read_once(dir: &dyn Dir, engine: u64, names: &Names, id: &SessionId) -> Result<Found> {
    let snapshot_path = dir.path().join(&names.snapshot);
    let journal_path = dir.path().join(&names.journal);
    let journal_bytes = read_file(dir, &names.journal)?.map(|(_, bytes)| bytes).unwrap_or_default();
    let journal = Journal::parse(&journal_bytes).map_err(|flaw| flaw.at(&journal_path, &journal_bytes))?;
    let mut file =
        JournalFile { len: journal_bytes.len() as u64, good_len: journal.good_len, crc: journal.crc, folded: false };
    if journal.deleted {
        return Ok(Found::Deleted);
    }
    let Some((stat, bytes)) = read_file(dir, &names.snapshot)? else {
        if file.good_len == 0 {
            return Ok(Found::Nothing);
        }
        return Err(Error::corrupt(
            journal_path,
            format!(
                "a journal without its snapshot {}; put the snapshot back, or move the journal away",
                snapshot_path.display()
            ),
        ));
    };
    let snapshot = Snapshot::parse(&snapshot_path, &bytes)?;
    if snapshot.id != *id {
        return Ok(Found::Other(snapshot.id));
    }
    let mut warnings = Vec::new();
    if !snapshot.crc_fits {
        warnings.push(changed_outside(&snapshot_path));
    }
    if file.good_len < file.len {
        warnings.push(format!(
            "{} ends in {} bytes of a save that was never acknowledged; they are left out",
            journal_path.display(),
            file.len - file.good_len
        ));
    }
    let (mut head, mut log, mut revision) = (snapshot.head, snapshot.log, snapshot.revision);
    if let Some(header) = &journal.header {
        let stands_on_it = header.base_revision == snapshot.revision
            && header.snapshot_bytes == stat.len
            && header.snapshot_crc == snapshot.crc;
        let both = || format!("{} and {}", journal_path.display(), snapshot_path.display());
        if header.lineage != snapshot.lineage || !header.is_of(id) {
            return Err(Error::corrupt(
                &journal_path,
                format!("{} are of different sessions; move one of them away", both()),
            ));
        } else if stands_on_it {
            let head = Arc::make_mut(&mut head);
            journal.apply(head, &mut log).map_err(|flaw| flaw.at(&journal_path, &journal_bytes))?;
            revision = journal.last_revision();
        } else if journal.lines.is_empty() || journal.last_revision() <= snapshot.revision {
            file.folded = true;
        } else {
            return Err(Error::corrupt(
                &journal_path,
                format!(
                    "{} do not fit together: the journal stands on revision {}, the snapshot is revision {}{}; \
                     put the right snapshot back, or move the journal away to do without what is in it",
                    both(),
                    header.base_revision,
                    snapshot.revision,
                    if header.base_revision == snapshot.revision { " but was changed since" } else { "" },
                ),
            ));
        }
    }
    let file_base = FileBase {
        engine,
        names: Arc::new(names.clone()),
        stat,
        crc: snapshot.crc,
        journal_len: if file.folded { 0 } else { file.good_len },
        journal_crc: if file.folded { 0 } else { file.crc },
    };
    let session = Session::stored(snapshot.id, head, log, snapshot.lineage, revision, Some(file_base));
    Ok(Found::Session(Box::new(Stored { session, journal: file, warnings })))
}

/// Reads what lies under these names, trying again while a writer may be between the two files.
pub(crate) fn read(dir: &dyn Dir, engine: u64, names: &Names, id: &SessionId) -> Result<Found> {
    let mut tried = 0;
    loop {
        tried += 1;
        match read_once(dir, engine, names, id) {
            // Only with a journal beside it can a file be between two states; a lone bad snapshot stays bad.
            Err(error) if error.may_be_mid_write() && tried < TRIES && has_journal(dir, names) => {
                std::thread::sleep(Duration::from_millis(u64::from(tried / 8)));
            }
            done => return done,
        }
    }
}

pub(crate) fn changed_outside(path: &Path) -> String {
    format!("{} was changed outside perdure (its CRC or its message count does not fit)", path.display())
}

fn has_journal(dir: &dyn Dir, names: &Names) -> bool {
    matches!(dir.stat(&names.journal), Ok(Some(stat)) if stat.len > 0)
}

/// Our file name holds another session's id.
pub(crate) fn other_session(path: &Path, id: &SessionId, other: &SessionId) -> Error {
    let twins = other.as_str().to_lowercase() == id.as_str().to_lowercase();
    // A3S Code gives `a/b` the name that belongs to `a_b`.
    if twins || other.a3s_stem() == Some(id.stem()) {
        return Error::Exists { id: id.to_string(), twin: Some(other.to_string()) };
    }
    Error::corrupt(
        path,
        format!("the file holds session {other:?}, not {id:?}; give it the name that belongs to its id"),
    )
}
