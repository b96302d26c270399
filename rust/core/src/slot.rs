//! The files of one session that are open for writing.

use crate::base::Saved;
use crate::error::{At, Result};
use crate::fs::{Dir, File, Open, Stat};
use crate::id::SessionId;
use crate::lock::{Hold, LockFile, Wait};
use crate::read::Names;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Open files of one session. Whoever has the slot's mutex works on them.
#[derive(Debug)]
pub(crate) struct Slot {
    pub names: Arc<Names>,
    lock: Option<LockFile>,
    /// Journal mode: the lock is held until the slot is closed, and this is what lies on the disk. Nobody else has written
    /// since; what does not keep to locks (a person, a backup) shows in the files' identities.
    kept: Option<Kept>,
    journal: Option<Journal>,
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

/// The journal, open.
#[derive(Debug)]
struct Journal {
    file: Box<dyn File>,
    inode: (u64, u64),
}

#[derive(Debug)]
struct Kept {
    id: SessionId,
    /// What lies there; None after a failure: it has to be read.
    last: Option<Arc<Saved>>,
    /// A line that is appended and synced now is durable: the names of both files and what stands before it are.
    ready: bool,
    /// When the files were last looked at, and were as they had been left.
    looked: Option<Instant>,
}

impl Kept {
    fn is_fresh(&self, enough: Duration) -> bool {
        !enough.is_zero() && self.looked.is_some_and(|looked| looked.elapsed() < enough)
    }
}

/// The lock, held. Dropping it lets go, unless it is kept.
pub(crate) struct Held<'a> {
    pub slot: &'a mut Slot,
    pub dir: &'a dyn Dir,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.slot.kept.is_some() {
            return;
        }
        if let Some(lock) = &self.slot.lock {
            if !lock.release() {
                self.slot.lock = None; // closing the file lets go of it
            }
        }
    }
}

impl Slot {
    pub fn new(names: Arc<Names>) -> Slot {
        Slot {
            names,
            lock: None,
            kept: None,
            journal: None,
            poisoned: false,
            closed: false,
            durable_snapshot: None,
            durable_journal: None,
            token: String::new(),
        }
    }

    /// Takes the session's lock, unless it is kept and was looked at less than `fresh` ago.
    pub fn hold<'a>(
        &'a mut self,
        dir: &'a dyn Dir,
        id: &str,
        wait: Wait,
        hold: Hold,
        fresh: Duration,
    ) -> Result<Held<'a>> {
        if let Some(kept) = &self.kept {
            if kept.is_fresh(fresh) || self.lock.as_ref().is_some_and(|lock| lock.is_in_place(dir)) {
                return Ok(Held { slot: self, dir });
            }
            // Somebody removed the lock file: another process may hold another one by now.
            self.forget();
        }
        if self.token.is_empty() {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes)
                .map_err(|e| std::io::Error::other(e.to_string()))
                .at("get random bytes for", dir.path())?;
            self.token = format!("{:016x}", u64::from_be_bytes(bytes));
        }
        let kept = self.lock.take();
        let (lock, left) = LockFile::acquire(dir, &self.names.lock, kept, id, wait, hold, &self.token)?;
        self.lock = Some(lock);
        if let Some(token) = left {
            // A holder before us was killed while it wrote a snapshot, or was not: then there is nothing to remove.
            let _ = dir.remove(&self.names.temp(&token));
        }
        Ok(Held { slot: self, dir })
    }

    /// The lock, and what was known because of it, are gone.
    fn forget(&mut self) {
        (self.lock, self.kept, self.journal) = (None, None, None);
        (self.durable_snapshot, self.durable_journal) = (None, None);
    }

    pub fn temp(&self) -> String {
        self.names.temp(&self.token)
    }

    /// The session whose lock is kept.
    pub fn kept_id(&self) -> Option<&SessionId> {
        self.kept.as_ref().map(|kept| &kept.id)
    }

    /// What lies on the disk, as far as this slot wrote or read it last under the lock that it keeps.
    pub fn last(&self) -> Option<&Arc<Saved>> {
        self.kept.as_ref()?.last.as_ref()
    }

    /// The journal's file, opened once; the one at its path, whatever others did in the meantime. True if it was made.
    pub fn journal(&mut self, dir: &dyn Dir) -> Result<(&dyn File, bool)> {
        let path = dir.path().join(&self.names.journal);
        let there = dir.stat(&self.names.journal).at("stat", &path)?;
        let known = self.journal.as_ref().map(|journal| journal.inode);
        let journal = match self.journal.take() {
            Some(journal) if there.is_some_and(|there| Some((there.device, there.inode)) == known) => journal,
            _ => {
                let file = dir.open(&self.names.journal, Open::Create).at("open", &path)?;
                let stat = file.stat().at("stat", &path)?;
                Journal { file, inode: (stat.device, stat.inode) }
            }
        };
        Ok((&*self.journal.insert(journal).file, there.is_none()))
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
        if let Ok(held) = self.hold(dir, "", Wait::Never, Hold::Save, Duration::ZERO) {
            // Its truncation was synced when it was emptied, so nothing can come back.
            if matches!(dir.stat(&held.slot.names.journal), Ok(Some(stat)) if stat.len == 0) {
                let _ = dir.remove(&held.slot.names.journal);
            }
            if let Some(lock) = held.slot.lock.take() {
                lock.remove(dir);
            }
        }
        self.forget();
    }
}

impl Held<'_> {
    /// From here on the lock is kept.
    pub fn keep(&mut self, id: &SessionId) {
        if self.slot.kept.is_none() {
            self.slot.kept = Some(Kept { id: id.clone(), last: None, ready: false, looked: None });
        }
    }

    /// Says what lies on the disk now; None: it is not known.
    pub fn leave(&mut self, last: Option<Arc<Saved>>) {
        if let Some(kept) = &mut self.slot.kept {
            kept.ready &= last.is_some();
            kept.looked = kept.looked.filter(|_| last.is_some());
            kept.last = last;
        }
    }

    /// True if the files are still those that this slot left, as far as their identities tell, or told less than
    /// `fresh` ago.
    pub fn is_as_left(&mut self, fresh: Duration) -> Result<bool> {
        if self.slot.kept.as_ref().is_some_and(|kept| kept.is_fresh(fresh)) {
            return Ok(true);
        }
        let Some(file) = self.slot.last().and_then(|last| last.file.as_ref()) else { return Ok(false) };
        let snapshot_path = self.dir.path().join(&self.slot.names.snapshot);
        let path = self.dir.path().join(&self.slot.names.journal);
        let snapshot = self.dir.stat(&self.slot.names.snapshot).at("stat", &snapshot_path)?;
        let journal = self.dir.stat(&self.slot.names.journal).at("stat", &path)?;
        let same = snapshot == Some(file.stat)
            && match (&journal, &self.slot.journal) {
                (Some(there), Some(ours)) => (there.device, there.inode) == ours.inode && there.len == file.journal_len,
                (there, None) => there.map_or(0, |there| there.len) == file.journal_len,
                (None, Some(_)) => false,
            };
        if !same {
            self.leave(None);
        } else if let Some(kept) = &mut self.slot.kept {
            kept.looked = Some(Instant::now());
        }
        Ok(same)
    }

    /// Whether a line appended now stands on what is durable.
    pub fn is_ready(&self) -> bool {
        self.slot.kept.as_ref().is_some_and(|kept| kept.ready) && self.slot.journal.is_some()
    }

    /// Says that it does.
    pub fn set_ready(&mut self) {
        if let Some(kept) = &mut self.slot.kept {
            kept.ready = true;
        }
    }

    /// The journal as it is open.
    pub fn open_journal(&self) -> Option<&dyn File> {
        self.slot.journal.as_ref().map(|journal| &*journal.file)
    }
}
