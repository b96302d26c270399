//! Saving and deleting (docs/format.md, section 4). Everything here runs under the session's lock.

use crate::base::{FileBase, Lineage, Saved};
use crate::engine::{Engine, SaveOptions};
use crate::error::{At, Error, Result};
use crate::fs::Open;
use crate::id::SessionId;
use crate::journal::{encode_save, encode_tombstone, Header};
use crate::lock::Wait;
use crate::read::{other_session, read, Found, JournalFile, Names};
use crate::session::Session;
use crate::slot::Held;
use crate::snapshot::{peek_meta, Image};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the `perdure` field is looked for. Where the id is so long that it lies behind, the file is read as a whole.
const HEAD: usize = 8192;

/// What a save did.
#[derive(Debug)]
pub struct Receipt {
    /// The state that is stored now.
    pub saved: Arc<Saved>,
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

/// What lies on disk, as far as a writer needs it.
struct Current {
    saved: Arc<Saved>,
    journal: JournalFile,
}

impl Engine {
    /// Saves a session. The caller moves its session's base to the receipt's state.
    pub fn save(&self, session: &Session, options: &SaveOptions) -> Result<Receipt, Failed> {
        let base_file = session.base().saved().and_then(|s| s.file.as_ref()).filter(|f| f.engine == self.number());
        if let (Some(file), Some(saved)) = (base_file, session.base().shared()) {
            let rests = options.step || file.journal_len == 0;
            // With a save of unknown outcome it is not known what is stored.
            let settled = rests && session.is_unchanged() && session.attempt().is_none();
            if settled && !options.force && !options.create && self.is_as_seen(&saved, file)? {
                return Ok(Receipt { saved, bytes_written: 0, new_bytes: 0, syncing: Duration::ZERO });
            }
        }
        let names = match base_file.and_then(|f| f.name.strip_suffix(".json")) {
            Some(stem) => Names::new(stem.to_string()),
            // Only an id that A3S Code writes under another name has to be looked for.
            None if session.id().a3s_stem().is_some() => self.find(session.id())?.0,
            None => Names::new(session.id().stem()),
        };
        self.with_slot(&names, |slot| {
            let wait = Wait::AtMost(options.lock_timeout, options.give_up);
            let held = slot.hold(self.dir(), session.id().as_str(), wait)?;
            let mut save = Save { engine: self, held, session, syncing: Duration::ZERO };
            let current = save.current()?;
            let current = save.check(current, options)?;
            save.write(current, options)
        })
    }

    /// True if the files are still exactly those that were seen, as far as their identities tell.
    fn is_as_seen(&self, saved: &Saved, file: &FileBase) -> Result<bool> {
        let names = Names::new(file.name.strip_suffix(".json").unwrap_or_default().to_string());
        let path = self.path().join(&names.snapshot);
        let snapshot = self.dir().stat(&names.snapshot).at("stat", &path)?;
        let journal = self.dir().stat(&names.journal).at("stat", &path)?.map_or(0, |stat| stat.len);
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
        let (names, _) = self.find(id)?;
        self.with_slot(&names, |slot| {
            let mut held = slot.hold(self.dir(), id.as_str(), Wait::AtMost(options.lock_timeout, options.give_up))?;
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

struct Save<'a> {
    engine: &'a Engine,
    held: Held<'a>,
    session: &'a Session,
    syncing: Duration,
}

impl Save<'_> {
    /// The stored state: known from the files' identities, else read.
    fn current(&mut self) -> Result<Option<Current>> {
        // Not the attempt's: its line may have been cut off and another handle's, as long, written in its place.
        let base = self.session.base().shared();
        let file = base.as_ref().and_then(|base| base.file.as_ref()).filter(|f| f.engine == self.engine.number());
        if let (Some(base), Some(file)) = (&base, file) {
            if self.engine.is_as_seen(base, file)? {
                let (len, crc) = (file.journal_len, file.journal_crc);
                let journal = JournalFile { len, good_len: len, crc, folded: false };
                return Ok(Some(Current { saved: base.clone(), journal }));
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
            if session.attempt().is_some_and(|a| is_state(a, &found.saved)) && !options.create {
                return Ok(Some(found));
            }
            return Err(Error::Exists { id: id(), twin: None });
        };
        if is_state(base, &found.saved) || session.attempt().is_some_and(|a| is_state(a, &found.saved)) {
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

    fn write(self, current: Option<Current>, options: &SaveOptions) -> Result<Receipt, Failed> {
        let new_bytes = self.session.log().bytes_from(self.session.first_new()) as u64;
        // Proven by what was done to the session, never by comparing contents.
        let base = self.session.base().saved().filter(|_| self.session.is_unchanged());
        let unchanged = current.as_ref().is_some_and(|c| base.is_some_and(|b| is_state(b, &c.saved)));
        if let Some(current) = &current {
            let journal_in_use = current.journal.len > 0;
            let rests = (options.step || !journal_in_use) && !self.held.slot.poisoned;
            if unchanged && rests && current.saved.lineage.is_some() {
                let saved = current.saved.clone();
                return Ok(Receipt { saved, bytes_written: 0, new_bytes: 0, syncing: self.syncing });
            }
            let continues = current.saved.lineage.is_some() && self.session.base().is(&current.saved);
            if options.step && continues && !self.held.slot.poisoned {
                return self.append(current, options, new_bytes);
            }
        }
        self.snapshot(current, unchanged, new_bytes)
    }

    /// A line in the journal.
    fn append(mut self, current: &Current, options: &SaveOptions, new_bytes: u64) -> Result<Receipt, Failed> {
        let base = &current.saved;
        let (Some(lineage), Some(file)) = (base.lineage, base.file.as_ref()) else {
            return Err(Error::corrupt(self.held.dir.path(), "a journal needs a snapshot of perdure's own").into());
        };
        let journal = self.held.tidy_journal(&current.journal)?;
        let (mut bytes, chain) = match journal.good_len {
            0 => Header {
                id: self.session.id().to_string(),
                lineage: Some(lineage),
                base_revision: base.revision,
                snapshot_bytes: file.stat.len,
                snapshot_crc: file.crc,
            }
            .encode(),
            _ => (Vec::new(), journal.crc),
        };
        let revision = base.revision + 1;
        let (line, crc) = encode_save(self.session, &base.head, revision, crate::now(), options.sync, chain);
        bytes.extend_from_slice(&line);
        let journal_len = journal.good_len + bytes.len() as u64;
        let file = FileBase { journal_len, journal_crc: crc, ..file.clone() };
        let saved = Arc::new(self.session.as_saved(Some(lineage), revision, Some(file)));
        match self.held.append(journal.good_len, &bytes, options.sync, &mut self.syncing) {
            Ok(()) => Ok(Receipt { saved, bytes_written: bytes.len() as u64, new_bytes, syncing: self.syncing }),
            Err(error) => Err(Failed { error, attempt: Some(saved) }),
        }
    }

    /// The whole session as a new file; the journal is empty afterwards.
    fn snapshot(mut self, current: Option<Current>, unchanged: bool, new_bytes: u64) -> Result<Receipt, Failed> {
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
        let stat = self.write_temp(&temp, &image).inspect_err(|_| {
            let _ = dir.remove(&temp);
        })?;
        let name = self.held.slot.names.snapshot.clone();
        let file = FileBase {
            engine: self.engine.number(),
            name: name.clone(),
            stat,
            crc: image.crc,
            journal_len: 0,
            journal_crc: 0,
        };
        let saved = Arc::new(self.session.as_saved(Some(lineage), revision, Some(file)));
        // A rename that fails may have happened all the same (a network file system's answer that was lost).
        if let Err(error) = dir.rename(&temp, &name).at("rename a new version to", &path) {
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
        Ok(Receipt { saved, bytes_written: image.len(), new_bytes, syncing: self.syncing })
    }

    fn write_temp(&mut self, temp: &str, image: &Image<'_>) -> Result<crate::fs::Stat> {
        let path = self.held.dir.path().join(temp);
        let file = match self.held.dir.open(temp, Open::CreateNew) {
            // Left by a write of this very slot that could not be tidied up.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.held.dir.remove(temp).at("remove", &path)?;
                self.held.dir.open(temp, Open::CreateNew)
            }
            opened => opened,
        }
        .at("create", &path)?;
        file.write_at(0, &image.pieces()).at("write", &path)?;
        let started = Instant::now();
        file.sync_all().at("sync", &path)?;
        self.syncing += started.elapsed();
        file.stat().at("stat", &path)
    }
}

/// True if `base` and what is stored are the same state.
fn is_state(base: &Saved, stored: &Saved) -> bool {
    base.lineage == stored.lineage && base.revision == stored.revision && base.content == stored.content
}

impl Held<'_> {
    /// Writes at the journal's acknowledged end. On failure the journal is cut back to it, or marked as not to be trusted.
    fn append(&mut self, end: u64, bytes: &[u8], sync: bool, syncing: &mut Duration) -> Result<()> {
        let path = self.dir.path().join(&self.slot.names.journal);
        self.make_durable()?;
        let (file, _) = self.slot.journal(self.dir)?;
        let mut sync_failed = false;
        let mut done = file.write_at(end, &[IoSlice::new(bytes)]).at("append to", &path);
        if done.is_ok() && sync {
            let started = Instant::now();
            done = file.sync_data().at("sync", &path);
            sync_failed = done.is_err();
            *syncing += started.elapsed();
        }
        let stat = file.stat().ok().filter(|_| done.is_ok());
        if done.is_err() {
            let cut = file.set_len(end).and_then(|()| file.sync_data());
            // After a failed sync the page cache may claim what the disk does not have.
            self.slot.poisoned |= sync_failed || cut.is_err();
        }
        self.slot.durable_journal = stat;
        done
    }

    /// Makes durable what a line is going to stand on: the names of both files, and a cut of the journal. Whoever wrote
    /// them may have been killed before he could. Nothing is done for what this slot made durable itself.
    fn make_durable(&mut self) -> Result<()> {
        let snapshot_path = self.dir.path().join(&self.slot.names.snapshot);
        let path = self.dir.path().join(&self.slot.names.journal);
        let snapshot = self.dir.stat(&self.slot.names.snapshot).at("stat", &snapshot_path)?;
        let (file, created) = self.slot.journal(self.dir)?;
        let journal = Some(file.stat().at("stat", &path)?);
        let known = self.slot.durable_journal;
        if journal != known && !created {
            let (file, _) = self.slot.journal(self.dir)?;
            file.sync_data().at("sync", &path)?;
        }
        if journal != known || snapshot.is_none() || snapshot != self.slot.durable_snapshot {
            self.dir.sync().at("sync the directory", self.dir.path())?;
        }
        (self.slot.durable_snapshot, self.slot.durable_journal) = (snapshot, journal);
        Ok(())
    }

    /// Makes the journal fit to be appended to: a torn tail is put aside, lines that were folded already are cut.
    fn tidy_journal(&mut self, journal: &JournalFile) -> Result<JournalFile> {
        let mut tidy = journal.clone();
        if journal.good_len < journal.len {
            self.put_aside(journal)?;
        }
        if journal.folded {
            (tidy.good_len, tidy.crc, tidy.folded) = (0, 0, false);
        }
        if tidy.good_len < tidy.len {
            self.cut_journal(tidy.good_len)?;
            tidy.len = tidy.good_len;
        }
        Ok(tidy)
    }

    /// Cuts the journal durably. If that fails it may be longer after a crash than it seems now.
    fn cut_journal(&mut self, len: u64) -> Result<()> {
        let path = self.dir.path().join(&self.slot.names.journal);
        let known = self.slot.durable_journal.take();
        let (file, _) = self.slot.journal(self.dir)?;
        let cut = file.set_len(len).at("truncate", &path);
        let cut = cut.and_then(|()| file.sync_data().at("sync", &path));
        let stat = file.stat().ok().filter(|now| known.is_some_and(|k| (k.device, k.inode) == (now.device, now.inode)));
        match cut {
            Ok(()) => self.slot.durable_journal = stat,
            Err(_) => self.slot.poisoned = true,
        }
        cut
    }

    fn empty_journal(&mut self, journal: &JournalFile) -> Result<()> {
        if journal.good_len < journal.len {
            self.put_aside(journal)?;
        }
        self.cut_journal(0)
    }

    /// Keeps the bytes of a torn tail beside the journal: nothing is thrown away unseen.
    fn put_aside(&mut self, journal: &JournalFile) -> Result<()> {
        let path = self.dir.path().join(&self.slot.names.journal);
        let (file, _) = self.slot.journal(self.dir)?;
        let tail = file.read_from(journal.good_len).at("read", &path)?;
        let name = format!("{}.torn-{}", self.slot.names.journal, crate::now());
        let mut number = 0;
        let aside = loop {
            let name = if number == 0 { name.clone() } else { format!("{name}-{number}") };
            match self.dir.open(&name, Open::CreateNew) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                opened => break (opened.at("create", &self.dir.path().join(&name))?, name),
            }
        };
        let (aside, name) = aside;
        let path = self.dir.path().join(&name);
        let kept = aside.write_at(0, &[IoSlice::new(&tail)]).at("write", &path);
        let kept = kept.and_then(|()| aside.sync_all().at("sync", &path));
        let kept = kept.and_then(|()| self.dir.sync().at("sync the directory", self.dir.path()));
        if kept.is_err() {
            // The tail is where it was; on a full disk every try would leave another piece of it.
            let _ = self.dir.remove(&name);
        }
        kept
    }

    /// The durable mark that the session is deleted; from here on it is.
    fn tombstone(&mut self, session: &Session, journal: &JournalFile) -> Result<()> {
        let journal = self.tidy_journal(journal)?;
        let saved = session.base().saved();
        let (mut bytes, chain) = match journal.good_len {
            0 => {
                let file = saved.and_then(|s| s.file.as_ref());
                Header {
                    id: session.id().to_string(),
                    lineage: saved.and_then(|s| s.lineage),
                    base_revision: session.base().revision(),
                    snapshot_bytes: file.map_or(0, |f| f.stat.len),
                    snapshot_crc: file.map_or(0, |f| f.crc),
                }
                .encode()
            }
            _ => (Vec::new(), journal.crc),
        };
        bytes.extend_from_slice(&encode_tombstone(session.base().revision() + 1, crate::now(), chain).0);
        self.append(journal.good_len, &bytes, true, &mut Duration::default())
    }

    /// Carries a deletion through whose mark is durable.
    fn finish_delete(&mut self) -> Result<()> {
        let Names { snapshot, journal, .. } = self.slot.names.clone();
        // Its writer may have been killed before he could sync it.
        match self.dir.open(&journal, Open::Write) {
            Ok(file) => file.sync_data().at("sync", &self.dir.path().join(&journal))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at("open", &self.dir.path().join(&journal)),
        }
        for name in [snapshot, journal] {
            let path = self.dir.path().join(&name);
            match self.dir.remove(&name) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("remove", &path),
                _ => self.dir.sync().at("sync the directory", self.dir.path())?,
            }
        }
        self.slot.drop_journal();
        self.slot.poisoned = false;
        Ok(())
    }
}
