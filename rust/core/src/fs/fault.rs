//! A disk in memory that fails and loses power on command. For tests only.
//!
//! # The model
//!
//! Every file is an inode with a *live* content, which calls see, and a *durable* one, which survives a crash. The
//! directory has live and durable entries in the same way. What lies between the two is a list of operations whose fate
//! a crash decides. [`FaultDir::images`] gives the disks that may be found after it.
//!
//! **Data.** Until `sync_data` or `sync_all` of a file succeeds, each of its writes may be on disk whole, not at all, up to
//! any byte, or as any subset of its blocks (4 KiB, aligned in the file); each truncation may have happened or not. The
//! fates are independent: no order between un-synced operations is promised, so new bytes may be found in front of old
//! ones that a truncation should have removed. Where a later block survives and an earlier one does not, the file is
//! extended with NULs. A successful sync makes every block that was written since, and the length, durable.
//!
//! **Entries.** A file made, renamed or removed is so durably only after [`Dir::sync`]; syncing the file does nothing for
//! its name. Operations that touch a name in common are found in their order: some first ones of them, none after the
//! first that is missing. Operations without a name in common are independent of each other. A rename is one operation:
//! the source is gone if and only if the target is the new file. (Nothing at all is found under either name only if the
//! target had not existed before and the source's own creation was lost as well.)
//!
//! **Failed syncs.** As on Linux, a sync of a file that fails leaves its pages clean: the content stays live, but whatever has
//! not reached the disk by then never will, however often the file is synced after it, until it is written again. A block
//! that is written again goes to disk whole. What *has* reached it is for the fault to choose. A failed sync of the
//! directory leaves its operations as they were: the next one that succeeds makes them durable. There is no way to
//! repeat an unlink, so nothing could be built on less.
//!
//! **Locks** are advisory, one owner per inode, and belong to the open file: closing it lets go. No crash keeps one.
//!
//! What is not modelled: damage to what was synced (that is what checksums are for), blocks of other files showing up,
//! permissions, and directories other than this one.

mod disk;
mod images;
#[cfg(test)]
mod tests;

use super::{Dir, File, Open, Stat};
use disk::{no_such_file, Change, Disk, Entry, Go};
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How the disk behaves when nothing is wrong with it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Names that differ only in case are one name, as on macOS and Windows.
    pub ignore_case: bool,
    /// The clock stands still and an inode number is given again as soon as nobody has the file open: coarse time stamps
    /// at their worst.
    pub coarse: bool,
    /// What is on disk whole or not at all, in bytes.
    pub block: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { ignore_case: false, coarse: false, block: 4096 }
    }
}

impl Options {
    fn same(&self, one: &str, other: &str) -> bool {
        one == other || (self.ignore_case && one.to_lowercase() == other.to_lowercase())
    }
}

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Power is lost in the middle of it: this call and all that follow fail.
    Crash,
    /// The calling process is killed in the middle of it: what it calls from then on fails. Others go on, with what is live.
    Kill,
    /// It fails and has done nothing. A sync: nothing of it reached the disk.
    Fail(ErrorKind),
    /// It fails but was carried out. A sync: everything reached the disk.
    FailAfter(ErrorKind),
    /// It fails half done: half of a write, a part of a sync that the seed chooses. Other calls just fail. The disk is full.
    Partly(u64),
}

/// A call, as the trace names it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Name of the method.
    pub what: &'static str,
    /// The file, by the name under which it was opened.
    pub on: String,
    /// False: it changes nothing that a crash could show.
    pub changes: bool,
}

/// A small random number generator, the same everywhere (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % (end as u64).max(1)) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A directory on such a disk. A clone is the same directory.
#[derive(Debug, Clone)]
pub struct FaultDir {
    path: PathBuf,
    disk: Arc<Mutex<Disk>>,
    process: usize,
}

impl Default for FaultDir {
    fn default() -> FaultDir {
        FaultDir::new(Options::default())
    }
}

impl FaultDir {
    /// An empty directory.
    pub fn new(options: Options) -> FaultDir {
        let disk = Disk { options, clock: 1_000_000_000, ..Disk::default() };
        FaultDir { path: PathBuf::from("/fault"), disk: Arc::new(Mutex::new(disk)), process: 0 }
    }

    /// The same directory as another process sees it.
    pub fn process(&self, number: usize) -> FaultDir {
        FaultDir { process: number, ..self.clone() }
    }

    /// True if that process was killed.
    pub fn killed(&self) -> bool {
        self.disk().killed.contains(&self.process)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        guard(&self.disk)
    }

    /// Puts a file there, durably and uncounted.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.disk();
        let inode = disk.make();
        if let Some(made) = disk.inodes.get_mut(inode) {
            (made.live, made.durable) = (bytes.to_vec(), bytes.to_vec());
        }
        let options = disk.options;
        disk.live.put(name, inode, &options);
        disk.durable.put(name, inode, &options);
    }

    /// Live content of a file.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk();
        let inode = disk.live.find(name, &disk.options)?;
        disk.inodes.get(inode).map(|inode| inode.live.clone())
    }

    /// Live names, sorted.
    pub fn ls(&self) -> Vec<String> {
        let mut names: Vec<_> = self.disk().live.0.iter().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// A directory of its own with what is live here now.
    pub fn copy(&self) -> FaultDir {
        let disk = self.disk();
        let copy = FaultDir::new(disk.options);
        for (name, at) in &disk.live.0 {
            copy.put(name, disk.inodes.get(*at).map(|inode| &inode.live[..]).unwrap_or_default());
        }
        copy
    }

    /// Everything that was called so far. Operation N is `trace()[N]`.
    pub fn trace(&self) -> Vec<Call> {
        self.disk().trace.clone()
    }

    /// How many operations there were.
    pub fn operations(&self) -> usize {
        self.disk().trace.len()
    }

    /// Lets the operation with this number (counted from 0, over the directory's whole life) end in a fault.
    pub fn plan(&self, at: usize, fault: Fault) {
        let mut disk = self.disk();
        (disk.plan, disk.fired) = (Some((at, fault)), false);
    }

    /// Lets the next call of this method on a file with this in its name end in a fault. Of several, the next one waits until
    /// the one before it has happened.
    pub fn fail_next(&self, method: &'static str, on: &'static str, fault: Fault) {
        self.disk().next.push((method, on, fault));
    }

    /// True once the planned fault has happened.
    pub fn fired(&self) -> bool {
        self.disk().fired
    }

    /// Power is lost now.
    pub fn crash(&self) {
        self.disk().stopped = true;
    }

    /// True after a crash.
    pub fn crashed(&self) -> bool {
        self.disk().stopped
    }
}

fn guard(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dir for FaultDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn File>> {
        let mut disk = self.disk();
        let there = disk.live.find(name, &disk.options);
        let makes = there.is_none() && matches!(how, Open::Create | Open::CreateNew);
        let go = disk.call_whole(self.process, "open", name, makes)?;
        let inode = match (there, how) {
            (Some(_), Open::CreateNew) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, Open::Read | Open::Write) => return Err(no_such_file()),
            (None, Open::Create | Open::CreateNew) => {
                let inode = disk.make();
                disk.enter(Entry::Link { name: name.to_string(), inode });
                inode
            }
        };
        go.end()?;
        disk.handles += 1;
        let handle = disk.handles;
        disk.inode(inode)?.open += 1;
        let disk = self.disk.clone();
        let (name, process, writes) = (name.to_string(), self.process, how != Open::Read);
        Ok(Box::new(FaultFile { disk, process, inode, handle, name, writes }))
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        let mut disk = self.disk();
        disk.call_whole(self.process, "stat", name, false)?.end()?;
        disk.live.find(name, &disk.options).map(|inode| disk.stat(inode)).transpose()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let go = disk.call_whole(self.process, "rename", to, true)?;
        disk.live.find(from, &disk.options).ok_or_else(no_such_file)?;
        disk.enter(Entry::Rename { from: from.to_string(), to: to.to_string() });
        go.end()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let go = disk.call_whole(self.process, "remove", name, true)?;
        disk.live.find(name, &disk.options).ok_or_else(no_such_file)?;
        disk.enter(Entry::Unlink { name: name.to_string() });
        go.end()
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk();
        let go = disk.call(self.process, "sync_dir", ".", true)?;
        match &go {
            Go::Normally | Go::Then(_) => {
                disk.durable = disk.live.clone();
                disk.pending.clear();
            }
            // Half of them, which is as legal as any part; the rest stays as it was.
            Go::Partly(seed, _) => {
                let options = disk.options;
                let kept = Random::new(*seed).below(disk.pending.len() + 1);
                for entry in disk.pending.drain(..kept).collect::<Vec<_>>() {
                    disk.durable.apply(&entry, &options);
                }
            }
            Go::Instead(_) | Go::Crash => {}
        }
        go.end()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut disk = self.disk();
        disk.call_whole(self.process, "names", ".", false)?.end()?;
        Ok(disk.live.0.iter().map(|(name, _)| name.clone()).collect())
    }
}

#[derive(Debug)]
struct FaultFile {
    disk: Arc<Mutex<Disk>>,
    process: usize,
    inode: usize,
    handle: u64,
    name: String,
    writes: bool,
}

impl FaultFile {
    fn read(&self, from: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut disk = guard(&self.disk);
        disk.call_whole(self.process, "read", &self.name, false)?.end()?;
        let from = usize::try_from(from).map_err(io::Error::other)?;
        let content = disk.inode(self.inode)?.live.get(from..).unwrap_or_default();
        Ok(content.get(..len.min(content.len())).unwrap_or_default().to_vec())
    }

    fn change(&self, disk: &mut Disk, change: Change) -> io::Result<()> {
        if !self.writes {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "it is open to read only"));
        }
        let now = disk.tick();
        let inode = disk.inode(self.inode)?;
        inode.mtime_ns = now;
        inode.change(change);
        Ok(())
    }

    fn sync(&self, what: &'static str) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        let go = disk.call(self.process, what, &self.name, true)?;
        let block = disk.options.block;
        let inode = disk.inode(self.inode)?;
        match &go {
            Go::Normally | Go::Then(_) => inode.sync(block),
            Go::Instead(_) => inode.fail_sync(inode.durable.clone()),
            Go::Partly(seed, _) => inode.fail_sync(inode.random_outcome(block, &mut Random::new(*seed))),
            Go::Crash => {}
        }
        go.end()
    }
}

impl Drop for FaultFile {
    fn drop(&mut self) {
        let mut disk = guard(&self.disk);
        if let Ok(inode) = disk.inode(self.inode) {
            inode.open -= 1;
            if inode.lock == Some(self.handle) {
                inode.lock = None;
            }
        }
    }
}

impl File for FaultFile {
    fn stat(&self) -> io::Result<Stat> {
        let mut disk = guard(&self.disk);
        disk.call_whole(self.process, "fstat", &self.name, false)?.end()?;
        disk.stat(self.inode)
    }

    fn read_from(&self, offset: u64) -> io::Result<Vec<u8>> {
        self.read(offset, usize::MAX)
    }

    fn read_some(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.read(offset, len)
    }

    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        let go = disk.call(self.process, "write", &self.name, true)?;
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        match &go {
            Go::Instead(_) => return go.end(),
            Go::Partly(..) => bytes.truncate(bytes.len() / 2),
            _ => {}
        }
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.change(&mut disk, Change::Write { at, bytes })?;
        go.end()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        let go = disk.call_whole(self.process, "set_len", &self.name, true)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.change(&mut disk, Change::SetLen(len))?;
        go.end()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync("sync_data")
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync("sync_all")
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut disk = guard(&self.disk);
        let go = disk.call_whole(self.process, "try_lock", &self.name, false)?;
        let inode = disk.inode(self.inode)?;
        let free = inode.lock.is_none_or(|owner| owner == self.handle);
        if free {
            inode.lock = Some(self.handle);
        }
        go.end().map(|()| free)
    }

    fn unlock(&self) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        let go = disk.call_whole(self.process, "unlock", &self.name, false)?;
        let inode = disk.inode(self.inode)?;
        if inode.lock == Some(self.handle) {
            inode.lock = None;
        }
        go.end()
    }
}
