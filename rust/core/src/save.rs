//! Saving and deleting (docs/format.md, section 4). Everything here runs under the session's lock.

use crate::base::{FileBase, Lineage, Saved};
use crate::engine::{Engine, SaveOptions};
use crate::error::{At, Error, Result};
use crate::fs::Open;
use crate::id::SessionId;
use crate::journal::{encode_save, keeps_order, Header};
use crate::lock::{Hold, Wait};
use crate::read::{other_session, read, Found, JournalFile, Names};
use crate::session::Session;
use crate::slot::Held;
use crate::snapshot::{peek_meta, Image};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the `perdure` field is looked for. Where the id is so long that it lies behind, the file is read as a whole.
const HEAD: usize = 8192;
/// A journal up to this size, in bytes, is not worth a fold, however small its snapshot is.
const SMALL_JOURNAL: u64 = 64 * 1024;

/// How a save was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was there already.
    Nothing,
    /// A line in the journal.
    Line,
    /// A new snapshot.
    Snapshot,
}

/// What a save did.
#[derive(Debug)]
pub struct Receipt {
    /// The state that is stored now.
    pub saved: Arc<Saved>,
    /// How it was stored.
    pub kind: Kind,
    /// Bytes written, everything counted.
    pub bytes_written: u64,
    /// Bytes of messages that were new.
    pub new_bytes: u64,
    /// Time spent in syncs.
    pub syncing: Duration,
}

/// A save that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// Set if it may have been stored all the same: the state that it would have made.
    pub attempt: Option<Arc<Saved>>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, attempt: None }
    }
}

impl Receipt {
    fn nothing(saved: Arc<Saved>) -> Receipt {
        Receipt { saved, kind: Kind::Nothing, bytes_written: 0, new_bytes: 0, syncing: Duration::ZERO }
    }
}

/// What lies on disk, as far as a writer needs it.
struct Current {
    saved: Arc<Saved>,
    journal: JournalFile,
}

impl Current {
    /// The files are as this state says.
    fn known(saved: Arc<Saved>) -> Option<Current> {
        let file = saved.file.as_ref()?;
        let (len, crc) = (file.journal_len, file.journal_crc);
        let journal = JournalFile { len, good_len: len, crc, folded: false };
        Some(Current { saved, journal })
    }

    /// Whether a journal of this length is worth a snapshot.
    fn outgrows(&self, journal_len: u64) -> bool {
        let snapshot = self.saved.file.as_ref().map_or(0, |file| file.stat.len);
        journal_len > (2 * snapshot).max(SMALL_JOURNAL)
    }
}

impl Engine {
    /// Saves a session. The caller moves its session's base to the receipt's state.
    pub fn save(&self, session: &Session, options: &SaveOptions) -> Result<Receipt, Failed> {
        let done = self.save_uncounted(session, options);
        if let Ok(receipt) = &done {
            self.count(receipt);
        }
        done
    }

    fn save_uncounted(&self, session: &Session, options: &SaveOptions) -> Result<Receipt, Failed> {
        let base_file = session.base().saved().and_then(|s| s.file.as_ref()).filter(|f| f.engine == self.number());
        if let (Some(file), Some(saved)) = (base_file, session.base().shared()) {
            let rests = options.step || options.journal || file.journal_len == 0;
            // With a save of unknown outcome it is not known what is stored.
            let settled = rests && session.is_unchanged() && session.attempt().is_none();
            if settled && !options.force && !options.create && self.is_as_seen(&saved, file)? {
                return Ok(Receipt::nothing(saved));
            }
        }
        let names = match base_file {
            Some(file) => file.names.clone(),
            // Only an id that A3S Code writes under another name has to be looked for.
            None if session.id().a3s_stem().is_some() => Arc::new(self.find(session.id())?.0),
            None => Arc::new(Names::new(session.id().stem())),
        };
        self.with_slot(&names, |slot| {
            let wait = Wait::AtMost(options.lock_timeout, options.give_up);
            let hold = if options.journal { Hold::Open } else { Hold::Save };
            let fresh = if options.sync { Duration::ZERO } else { options.recheck };
            let held = slot.hold(self.dir(), session.id().as_str(), wait, hold, fresh)?;
            let mut save = Save { engine: self, held, session, syncing: Duration::ZERO };
            let current = save.current(fresh)?;
            let current = save.check(current, options)?;
            if options.journal {
                save.held.keep(session.id());
            }
            let done = save.write(current, options);
            save.held.leave(done.as_ref().ok().map(|receipt| receipt.saved.clone()));
            done
        })
    }

    /// Puts what the journal holds into the snapshot; None if there is no such session. It keeps its revision.
    pub fn checkpoint(&self, id: &SessionId, options: &SaveOptions) -> Result<Option<Receipt>> {
        let (names, found) = self.find(id)?;
        match found {
            Found::Session(_) | Found::Deleted => {}
            Found::Nothing | Found::Other(_) => return Ok(None), // no lock file for what is not there
        }
        let names = Arc::new(names);
        let done = self.with_slot(&names, |slot| {
            let wait = Wait::AtMost(options.lock_timeout, options.give_up);
            let hold = if slot.kept_id().is_some() { Hold::Open } else { Hold::Save };
            let held = slot.hold(self.dir(), id.as_str(), wait, hold, Duration::ZERO)?;
            fold(self, held, id)
        })?;
        if let Some(receipt) = &done {
            self.count(receipt);
        }
        Ok(done)
    }

    /// True if the files are still exactly those that were seen, as far as their identities tell.
    fn is_as_seen(&self, saved: &Saved, file: &FileBase) -> Result<bool> {
        let names = &file.names;
        let (path, journal_path) = (self.path().join(&names.snapshot), self.path().join(&names.journal));
        let snapshot = self.dir().stat(&names.snapshot).at("stat", &path)?;
        let journal = self.dir().stat(&names.journal).at("stat", &journal_path)?.map_or(0, |stat| stat.len);
        if snapshot != Some(file.stat) || journal != file.journal_len {
            return Ok(false);
        }
        // Where the clock is coarse and inode numbers are given again soon, another process's file may look the same.
        let head = match self.dir().open(&names.snapshot, Open::Read) {
            Ok(snapshot) => snapshot.read_some(0, HEAD).at("read", &path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).at("open", &path),
        };
        Ok(peek_meta(&head.into()).is_some_and(|meta| {
            let same_revision = file.journal_len > 0 || meta.revision == saved.revision;
            meta.lineage == saved.lineage && meta.crc == Some(file.crc) && same_revision
        }))
    }

    /// Deletes a session; false if there was none.
    pub fn delete(&self, id: &SessionId, options: &SaveOptions) -> Result<bool> {
        let names = Arc::new(self.find(id)?.0);
        self.with_slot(&names, |slot| {
            let wait = Wait::AtMost(options.lock_timeout, options.give_up);
            let mut held = slot.hold(self.dir(), id.as_str(), wait, Hold::Save, Duration::ZERO)?;
            let there = match read(self.dir(), self.number(), &names, id)? {
                Found::Nothing | Found::Other(_) => false,
                Found::Deleted => {
                    held.finish_delete()?;
                    false
                }
                Found::Session(stored) => {
                    held.tombstone(&stored.session, &stored.journal)?;
                    held.finish_delete()?;
                    true
                }
            };
            drop(held);
            slot.close(self.dir());
            Ok(there)
        })
    }
}

/// Writes the snapshot of what is stored, if there is anything in the journal.
pub(crate) fn fold(engine: &Engine, mut held: Held<'_>, id: &SessionId) -> Result<Option<Receipt>> {
    let names = held.slot.names.clone();
    let stored = match read(engine.dir(), engine.number(), &names, id)? {
        Found::Session(stored) => stored,
        Found::Deleted => {
            held.finish_delete()?;
            return Ok(None);
        }
        Found::Nothing | Found::Other(_) => return Ok(None),
    };
    let Some(saved) = stored.session.base().shared() else { return Ok(None) };
    if stored.journal.len == 0 {
        return Ok(Some(Receipt::nothing(saved)));
    }
    let mut save = Save { engine, held, session: &stored.session, syncing: Duration::ZERO };
    let done = save.snapshot(Some(Current { saved, journal: stored.journal }), true, 0);
    save.held.leave(done.as_ref().ok().map(|receipt| receipt.saved.clone()));
    done.map(Some).map_err(|failed| failed.error)
}

/// A line ready to be written, and the state that it makes.
struct NewLine {
    bytes: Vec<u8>,
    saved: Arc<Saved>,
}

struct Save<'a> {
    engine: &'a Engine,
    held: Held<'a>,
    session: &'a Session,
    syncing: Duration,
}

impl Save<'_> {
    /// The stored state: known from the files' identities, else read.
    fn current(&mut self, fresh: Duration) -> Result<Option<Current>> {
        // Not the attempt's: its line may have been cut off and another handle's, as long, written in its place.
        let base = self.session.base().shared();
        if let (Some(base), Some(last)) = (&base, self.held.slot.last().cloned()) {
            // The lock was kept: nobody who keeps to locks has written since.
            if base.is(&last) && self.held.is_as_left(fresh)? {
                return Ok(Current::known(last));
            }
        }
        let file = base.as_ref().and_then(|base| base.file.as_ref()).filter(|f| f.engine == self.engine.number());
        if let (Some(base), Some(file)) = (&base, file) {
            if self.engine.is_as_seen(base, file)? {
                return Ok(Current::known(base.clone()));
            }
        }
        let (engine, names) = (self.engine, self.held.slot.names.clone());
        match read(engine.dir(), engine.number(), &names, self.session.id())? {
            Found::Nothing => Ok(None),
            Found::Deleted => {
                self.held.finish_delete()?;
                Ok(None)
            }
            Found::Other(other) => {
                Err(other_session(&engine.dir().path().join(&names.snapshot), self.session.id(), &other))
            }
            Found::Session(stored) => {
                Ok(stored.session.base().shared().map(|saved| Current { saved, journal: stored.journal }))
            }
        }
    }

    /// Compare-and-swap: is what is stored what the session came from?
    fn check(&self, current: Option<Current>, options: &SaveOptions) -> Result<Option<Current>> {
        let session = self.session;
        let id = || session.id().to_string();
        if options.force {
            return Ok(current);
        }
        let Some(found) = current else {
            let revision = session.base().revision();
            if session.base().saved().is_some() && !options.create {
                return Err(Error::Conflict { id: id(), expected: revision, found: None, reason: "" });
            }
            return Ok(None);
        };
        let Some(base) = session.base().saved().filter(|_| !options.create) else {
            // A first save of unknown outcome is ours to go on from.
            if session.attempt().is_some_and(|a| a.is(&found.saved)) && !options.create {
                return Ok(Some(found));
            }
            return Err(Error::Exists { id: id(), twin: None });
        };
        if base.is(&found.saved) || session.attempt().is_some_and(|a| a.is(&found.saved)) {
            return Ok(Some(found));
        }
        let reason = if base.lineage != found.saved.lineage {
            " of another session of that name, created since"
        } else if base.revision == found.saved.revision {
            " with other content, changed outside perdure"
        } else {
            ""
        };
        Err(Error::Conflict { id: id(), expected: base.revision, found: Some(found.saved.revision), reason })
    }

    fn write(&mut self, current: Option<Current>, options: &SaveOptions) -> Result<Receipt, Failed> {
        let new_bytes = self.session.log().bytes_from(self.session.first_new()) as u64;
        // Proven by what was done to the session, never by comparing contents.
        let base = self.session.base().saved();
        let unchanged = self.session.is_unchanged()
            && current.as_ref().is_some_and(|current| base.is_some_and(|base| base.is(&current.saved)));
        if let Some(current) = &current {
            let journals = options.step || options.journal;
            let rests = (journals || current.journal.len == 0) && !self.held.slot.poisoned;
            if unchanged && rests && current.saved.lineage.is_some() {
                return Ok(Receipt::nothing(current.saved.clone()));
            }
            let continues = current.saved.lineage.is_some() && base.is_some_and(|base| base.is(&current.saved));
            if journals && continues && !self.held.slot.poisoned {
                if let Some(line) = self.line(current, options) {
                    return self.append(current, line, options, new_bytes);
                }
            }
        }
        self.snapshot(current, unchanged, new_bytes)
    }

    /// The line that makes the stored state the session's; None if a snapshot is the better way.
    fn line(&self, current: &Current, options: &SaveOptions) -> Option<NewLine> {
        let base = &current.saved;
        let (lineage, file) = (base.lineage?, base.file.as_ref()?);
        if !keeps_order(&base.head, self.session.head()) {
            return None; // what a reader made of the line would not be what was saved
        }
        let journal = &current.journal;
        let (end, chain) = if journal.folded { (0, 0) } else { (journal.good_len, journal.crc) };
        let (mut bytes, chain) = match end {
            0 => Header {
                id: self.session.id().to_string(),
                lineage: Some(lineage),
                base_revision: base.revision,
                snapshot_bytes: file.stat.len,
                snapshot_crc: file.crc,
            }
            .encode(),
            _ => (Vec::new(), chain),
        };
        let (revision, at) = (base.revision + 1, crate::now());
        let crc = encode_save(&mut bytes, self.session, &base.head, revision, at, options.sync, chain);
        let journal_len = end + bytes.len() as u64;
        if options.journal && current.outgrows(journal_len) {
            return None;
        }
        let file = FileBase { journal_len, journal_crc: crc, ..file.clone() };
        let saved = Arc::new(self.session.as_saved(Some(lineage), revision, Some(file)));
        Some(NewLine { bytes, saved })
    }

    /// A line in the journal.
    fn append(
        &mut self,
        current: &Current,
        line: NewLine,
        options: &SaveOptions,
        new_bytes: u64,
    ) -> Result<Receipt, Failed> {
        let NewLine { bytes, saved } = line;
        let journal = self.held.tidy_journal(&current.journal)?;
        match self.held.append(journal.good_len, &bytes, options.sync, &mut self.syncing) {
            Ok(()) => {
                let bytes_written = bytes.len() as u64;
                Ok(Receipt { saved, kind: Kind::Line, bytes_written, new_bytes, syncing: self.syncing })
            }
            Err(error) => Err(Failed { error, attempt: Some(saved) }),
        }
    }

    /// The whole session as a new file; the journal is empty afterwards.
    fn snapshot(&mut self, current: Option<Current>, unchanged: bool, new_bytes: u64) -> Result<Receipt, Failed> {
        let dir = self.held.dir;
        let path = dir.path().join(&self.held.slot.names.snapshot);
        let planned = current.as_ref().and_then(|c| c.saved.lineage).or(self.session.planned());
        let lineage = match planned {
            Some(lineage) => lineage,
            None => Lineage::random().at("make a lineage for", &path)?,
        };
        let stored_revision = current.as_ref().map_or(0, |c| c.saved.revision);
        // Folding alone makes no new state. But a journal that may hold a line which nobody sees must not fit on top.
        let same = unchanged && stored_revision > 0 && !self.held.slot.poisoned;
        let revision = if same { stored_revision } else { stored_revision + 1 };
        let image = Image::new(self.session, Some(lineage), revision);

        let temp = self.held.slot.temp();
        let stat = self.held.write_temp(&temp, &image, &mut self.syncing).inspect_err(|_| {
            let _ = dir.remove(&temp);
        })?;
        let names = self.held.slot.names.clone();
        let file = FileBase {
            engine: self.engine.number(),
            names: names.clone(),
            stat,
            crc: image.crc,
            journal_len: 0,
            journal_crc: 0,
        };
        let saved = Arc::new(self.session.as_saved(Some(lineage), revision, Some(file)));
        // A rename that fails may have happened all the same (a network file system's answer that was lost).
        if let Err(error) = dir.rename(&temp, &names.snapshot).at("rename a new version to", &path) {
            let _ = dir.remove(&temp);
            return Err(Failed { error, attempt: Some(saved) });
        }
        let started = Instant::now();
        if let Err(error) = dir.sync().at("sync the directory", dir.path()) {
            return Err(Failed { error, attempt: Some(saved) });
        }
        self.syncing += started.elapsed();
        self.held.slot.durable_snapshot = Some(stat);
        // The save stands. What the journal holds is in the snapshot now; if it cannot be emptied it is ignored by
        // readers and emptied by the next writer.
        let journal = current.map(|c| c.journal).unwrap_or_default();
        if journal.len > 0 || self.held.slot.poisoned {
            // Cut, but not durably: what was appended to it could be found in front of the old lines.
            self.held.slot.poisoned = self.held.empty_journal(&journal).is_err();
        }
        Ok(Receipt { saved, kind: Kind::Snapshot, bytes_written: image.len(), new_bytes, syncing: self.syncing })
    }
}
