//! The files of one session that are open for writing.

use crate::error::{At, Result};
use crate::fs::{Dir, File, Open, Stat};
use crate::lock::{Hold, LockFile, Wait};
use crate::read::Names;

/// Open files of one session. Whoever has the slot's mutex works on them.
#[derive(Debug)]
pub(crate) struct Slot {
    pub names: Names,
    lock: Option<LockFile>,
    journal: Option<Box<dyn File>>,
    /// A write to the journal failed and could not be taken back for certain: it must not be appended to until a
    /// snapshot has replaced what it holds.
    pub poisoned: bool,
    /// The engine has let go of this slot: whoever still has it must take the new one.
    pub closed: bool,
    /// Snapshot and journal as they were when this slot knew that a crash would find them so, names included.
    pub durable_snapshot: Option<Stat>,
    pub durable_journal: Option<Stat>,
    token: String,
}

/// The lock, held. Dropping it lets go.
pub(crate) struct Held<'a> {
    pub slot: &'a mut Slot,
    pub dir: &'a dyn Dir,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(lock) = &self.slot.lock {
            if !lock.release() {
                self.slot.lock = None; // closing the file lets go of it
            }
        }
    }
}

impl Slot {
    pub fn new(names: Names) -> Slot {
        Slot {
            names,
            lock: None,
            journal: None,
            poisoned: false,
            closed: false,
            durable_snapshot: None,
            durable_journal: None,
            token: String::new(),
        }
    }

    /// Takes the session's lock.
    pub fn hold<'a>(&'a mut self, dir: &'a dyn Dir, id: &str, wait: Wait) -> Result<Held<'a>> {
        if self.token.is_empty() {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes)
                .map_err(|e| std::io::Error::other(e.to_string()))
                .at("get random bytes for", dir.path())?;
            self.token = format!("{:016x}", u64::from_be_bytes(bytes));
        }
        let kept = self.lock.take();
        let (lock, left) = LockFile::acquire(dir, &self.names.lock, kept, id, wait, Hold::Save, &self.token)?;
        self.lock = Some(lock);
        if let Some(token) = left {
            // A holder before us was killed while it wrote a snapshot, or was not: then there is nothing to remove.
            let _ = dir.remove(&self.names.temp(&token));
        }
        Ok(Held { slot: self, dir })
    }

    pub fn temp(&self) -> String {
        self.names.temp(&self.token)
    }

    /// The journal's file, opened once; the one at its path, whatever others did in the meantime. True if it was made.
    pub fn journal(&mut self, dir: &dyn Dir) -> Result<(&dyn File, bool)> {
        let path = dir.path().join(&self.names.journal);
        let there = dir.stat(&self.names.journal).at("stat", &path)?;
        let kept = match (&self.journal, there) {
            (Some(file), Some(there)) => {
                let ours = file.stat().at("stat", &path)?;
                (ours.device, ours.inode) == (there.device, there.inode)
            }
            _ => false,
        };
        if !kept {
            self.journal = Some(dir.open(&self.names.journal, Open::Create).at("open", &path)?);
        }
        match &self.journal {
            Some(file) => Ok((&**file, there.is_none())),
            None => Err(std::io::Error::from(std::io::ErrorKind::NotFound)).at("open", &path),
        }
    }

    /// Forgets the journal's file.
    pub fn drop_journal(&mut self) {
        self.journal = None;
    }

    /// Closes the files. If nobody else is at work, what holds nothing is removed: an empty journal, the lock file.
    pub fn close(&mut self, dir: &dyn Dir) {
        (self.journal, self.durable_snapshot, self.durable_journal) = (None, None, None);
        if self.lock.is_none() {
            return; // never written to
        }
        if let Ok(held) = self.hold(dir, "", Wait::Never) {
            // Its truncation was synced when it was emptied, so nothing can come back.
            if matches!(dir.stat(&held.slot.names.journal), Ok(Some(stat)) if stat.len == 0) {
                let _ = dir.remove(&held.slot.names.journal);
            }
            if let Some(lock) = held.slot.lock.take() {
                lock.remove(dir);
            }
        }
        self.lock = None;
    }
}
