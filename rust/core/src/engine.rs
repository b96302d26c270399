//! The store of one directory. All stores of a process on the same directory share one engine.

use crate::base::FileBase;
use crate::error::{At, Error, Result};
use crate::fs::{Dir, Open, RealDir};
use crate::id::SessionId;
use crate::limits::Limits;
use crate::lock::{Hold, Wait};
use crate::read::{other_session, read, Found, Names};
use crate::save::{fold, Receipt};
use crate::session::Session;
use crate::slot::Slot;
use crate::stats::{Counts, Stats};
use std::collections::HashMap;
use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// How a save is to be done.
#[derive(Debug, Clone, Copy)]
pub struct SaveOptions {
    /// A step inside of a turn: goes to the journal where it can.
    pub step: bool,
    /// Journal mode: every save does, and the session's lock is kept until it is released.
    pub journal: bool,
    /// The session may be new even if its base says otherwise: copies, forks, imports.
    pub create: bool,
    /// Overwrite whatever is stored.
    pub force: bool,
    /// Sync before returning. First snapshots and folds are synced always.
    pub sync: bool,
    /// Without `sync`, in journal mode: files that were as they had been left this long ago are not looked at again.
    pub recheck: Duration,
    /// How long to wait for another process that has the session open.
    pub lock_timeout: Duration,
    /// Asked while waiting for a lock; true ends the wait.
    pub give_up: fn() -> bool,
}

impl Default for SaveOptions {
    fn default() -> SaveOptions {
        SaveOptions {
            step: false,
            journal: false,
            create: false,
            force: false,
            sync: true,
            recheck: Duration::ZERO,
            lock_timeout: Duration::ZERO,
            give_up: || false,
        }
    }
}

/// A session as it was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The session.
    pub session: Session,
    /// What is worth a warning.
    pub warnings: Vec<String>,
}

/// The engine of one directory.
#[derive(Debug)]
pub struct Engine {
    dir: Arc<dyn Dir>,
    number: u64,
    process: u32,
    slots: Mutex<Slots>,
    limits: Limits,
    /// Sessions that were opened by their end and keep their file open.
    tails: Arc<AtomicUsize>,
    counts: Counts,
    /// A network file system that nobody has been warned of yet.
    network: Mutex<Option<&'static str>>,
}

#[derive(Debug, Default)]
struct Slots {
    by_stem: HashMap<String, (Arc<Mutex<Slot>>, u64)>,
    clock: u64,
}

impl Slots {
    /// Takes out the slot that was used longest ago. One that only the table holds is idle; a poisoned one has to
    /// remember that it is.
    fn longest_unused(&mut self) -> Option<Arc<Mutex<Slot>>> {
        let idle = self.by_stem.iter().filter(|(_, (slot, _))| Arc::strong_count(slot) == 1 && !guard(slot).poisoned);
        let stem = idle.min_by_key(|(_, (_, used))| *used).map(|(stem, _)| stem.clone())?;
        self.by_stem.remove(&stem).map(|(slot, _)| slot)
    }
}

/// A lock that a panicking thread left is still a lock: what it guards is re-read from disk anyway.
pub(crate) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Registry = HashMap<(u32, u64, u64), Weak<Engine>>;

fn registry() -> &'static Mutex<Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default)
}

impl Engine {
    /// The engine of a directory, which is made if need be.
    pub fn open(path: &Path) -> Result<Arc<Engine>> {
        let dir = RealDir::open(path).at("open the session directory", path)?;
        let (device, inode) = dir.identity().at("stat", path)?;
        let process = std::process::id();
        let mut registry = guard(registry());
        registry.retain(|_, engine| engine.strong_count() > 0);
        if inode != 0 {
            // Engines of the process we were forked from are not ours.
            if let Some(engine) = registry.get(&(process, device, inode)).and_then(Weak::upgrade) {
                // The directory may have been moved since, or removed and its inode given to another one.
                if RealDir::at(engine.path()).identity().is_ok_and(|there| there == (device, inode)) {
                    return Ok(engine);
                }
            }
        }
        let network = dir.network();
        let engine = Arc::new(Engine::on(Arc::new(dir)));
        *guard(&engine.network) = network;
        registry.insert((process, device, inode), Arc::downgrade(&engine));
        Ok(engine)
    }

    /// An engine on any directory, shared with nobody.
    pub fn on(dir: Arc<dyn Dir>) -> Engine {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        Engine {
            dir,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            process: std::process::id(),
            slots: Mutex::default(),
            limits: Limits::of_process(),
            tails: Arc::default(),
            counts: Counts::default(),
            network: Mutex::default(),
        }
    }

    /// What was saved since the engine was opened.
    pub fn stats(&self) -> Stats {
        self.counts.stats()
    }

    pub(crate) fn count(&self, receipt: &Receipt) {
        self.counts.add(receipt);
    }

    /// The kind of network file system that the directory is on, told once: no durability can be promised there.
    pub fn network_warning(&self) -> Option<&'static str> {
        guard(&self.network).take()
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// False in a process that was forked from the one that opened the engine: it has to open its own.
    pub fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    pub(crate) fn dir(&self) -> &dyn Dir {
        &*self.dir
    }

    pub(crate) fn tails(&self) -> &Arc<AtomicUsize> {
        &self.tails
    }

    pub(crate) fn most_tails(&self) -> usize {
        self.limits.tails
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Works on a session's files. One thread at a time does.
    pub(crate) fn with_slot<T>(&self, names: &Arc<Names>, mut work: impl FnMut(&mut Slot) -> T) -> T {
        let _entry = self.limits.enter();
        loop {
            let slot = self.slot(names);
            let mut slot = guard(&slot);
            // Closed while we waited for it: what it opened now, nobody would ever close.
            if !slot.closed {
                return work(&mut slot);
            }
        }
    }

    fn slot(&self, names: &Arc<Names>) -> Arc<Mutex<Slot>> {
        let mut slots = guard(&self.slots);
        slots.clock += 1;
        let now = slots.clock;
        if let Some((slot, used)) = slots.by_stem.get_mut(&names.stem) {
            *used = now;
            return slot.clone();
        }
        let evicted = if slots.by_stem.len() >= self.limits.slots { slots.longest_unused() } else { None };
        let slot = Arc::new(Mutex::new(Slot::new(names.clone())));
        slots.by_stem.insert(names.stem.clone(), (slot.clone(), now));
        drop(slots);
        if let Some(slot) = evicted {
            guard(&slot).close(self.dir());
        }
        slot
    }

    /// Finds a session: under our file name, then under A3S Code's.
    pub(crate) fn find(&self, id: &SessionId) -> Result<(Names, Found)> {
        let mut ours = None;
        for (i, names) in Names::candidates(id).enumerate() {
            let found = read(self.dir(), self.number, &names, id)?;
            match (i, &found) {
                (_, Found::Session(_)) => return Ok((names, found)),
                (0, _) => ours = Some((names, found)),
                // A3S's name may well hold another session.
                _ => {}
            }
        }
        let (names, found) = ours.unwrap_or_else(|| (Names::new(id.stem()), Found::Nothing));
        if let Found::Other(other) = &found {
            match other_session(&self.path().join(&names.snapshot), id, other) {
                Error::Exists { .. } => {} // a twin; to this id there is nothing
                error => return Err(error),
            }
        }
        Ok((names, found))
    }

    /// Loads a session; None if it is not there.
    pub fn load(&self, id: &SessionId) -> Result<Option<Loaded>> {
        match self.find(id)?.1 {
            Found::Session(stored) => Ok(Some(Loaded { session: stored.session, warnings: stored.warnings })),
            Found::Nothing | Found::Deleted | Found::Other(_) => Ok(None),
        }
    }

    /// True if a session is stored under this id. A damaged one exists.
    pub fn exists(&self, id: &SessionId) -> Result<bool> {
        match self.find(id) {
            Ok((_, found)) => Ok(matches!(found, Found::Session(_))),
            Err(Error::Corrupt { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Writes, syncs and removes a file, so that what is wrong with the directory shows.
    pub fn health_check(&self) -> Result<()> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|e| std::io::Error::other(e.to_string()))
            .at("get random bytes for", self.path())?;
        let name = format!(".health.{:016x}.tmp", u64::from_be_bytes(bytes));
        let path = self.path().join(&name);
        let file = self.dir.open(&name, Open::CreateNew).at("create", &path)?;
        let written = file.write_at(0, &[IoSlice::new(b"perdure\n")]).at("write", &path);
        let written = written.and_then(|()| file.sync_all().at("sync", &path));
        self.dir.remove(&name).at("remove", &path)?;
        written
    }

    /// Lets go of a session's files: what is empty is removed, a lock is given up. In journal mode a journal over a quarter
    /// of its snapshot is folded first. An error is that of the fold: nothing is lost by it, and the files are let go of.
    pub fn release(&self, session: &Session) -> Result<()> {
        let file = session.base().saved().and_then(|s| s.file.as_ref());
        let stem = file.map_or_else(|| session.id().stem(), |file| file.names.stem.clone());
        let slot = guard(&self.slots).by_stem.get(&stem).map(|(slot, _)| slot.clone());
        slot.map_or(Ok(()), |slot| self.close_slot(&stem, &slot, true))
    }

    fn close_slot(&self, stem: &str, slot: &Arc<Mutex<Slot>>, folds: bool) -> Result<()> {
        let mut open = guard(slot);
        if open.closed {
            return Ok(()); // by another thread; what the table has under this name by now is another slot
        }
        let folded = if folds { self.fold_at_close(&mut open) } else { Ok(()) };
        open.close(self.dir());
        if !open.poisoned {
            // A poisoned one stays: it has to remember that it is.
            open.closed = true;
            guard(&self.slots).by_stem.remove(stem);
        }
        folded
    }

    fn fold_at_close(&self, slot: &mut Slot) -> Result<()> {
        let Some(id) = slot.kept_id().cloned() else { return Ok(()) };
        let small = |file: &FileBase| file.journal_len * 4 <= file.stat.len;
        if slot.last().and_then(|last| last.file.as_ref()).is_some_and(small) {
            return Ok(());
        }
        let held = slot.hold(self.dir(), id.as_str(), Wait::Never, Hold::Open, Duration::ZERO)?;
        if let Some(receipt) = fold(self, held, &id)? {
            self.count(&receipt);
        }
        Ok(())
    }

    /// Lets go of all files, as `release` does. The engine can still be used afterwards. The first error is given.
    pub fn close(&self) -> Result<()> {
        self.close_slots(true)
    }

    fn close_slots(&self, folds: bool) -> Result<()> {
        let slots: Vec<_> =
            guard(&self.slots).by_stem.iter().map(|(stem, (slot, _))| (stem.clone(), slot.clone())).collect();
        let mut closed = Ok(());
        for (stem, slot) in slots {
            closed = closed.and(self.close_slot(&stem, &slot, folds));
        }
        closed
    }

    /// Closes every engine of this process that is still in use. The first error is given.
    pub fn close_all() -> Result<()> {
        let engines: Vec<_> = guard(registry()).values().filter_map(Weak::upgrade).collect();
        let mut closed = Ok(());
        for engine in engines.iter().filter(|e| e.is_ours()) {
            closed = closed.and(engine.close());
        }
        closed
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // In a forked child the files are only closed: unlocking would take the parent's locks away.
        if self.is_ours() {
            // Without a fold: this may be the garbage collector's moment, and a journal is as safe as a snapshot.
            let _ = self.close_slots(false);
        }
    }
}
