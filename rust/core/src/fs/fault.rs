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

use super::{Dir, File, Open, Stat};
use std::collections::{BTreeSet, HashSet};
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

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Power is lost in the middle of it: this call and all that follow fail.
    Crash,
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

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    number: u64,
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    mtime: i128,
    lock: Option<u64>,
    open: usize,
}

/// Directory entries in the order in which they were made: the key by which a name is found, the name, the inode.
type Entries = Vec<(String, String, usize)>;

#[derive(Debug, Clone)]
enum Entry {
    Link { name: String, inode: usize },
    Rename { from: String, to: String },
    Unlink { name: String },
}

#[derive(Debug)]
struct Disk {
    options: Options,
    inodes: Vec<Inode>,
    live: Entries,
    durable: Entries,
    pending: Vec<Entry>,
    clock: i128,
    handles: u64,
    trace: Vec<Call>,
    plan: Option<(usize, Fault)>,
    fired: bool,
    stopped: bool,
}

/// A directory on such a disk. A clone is the same directory.
#[derive(Debug, Clone)]
pub struct FaultDir {
    path: PathBuf,
    disk: Arc<Mutex<Disk>>,
}

fn stopped() -> io::Error {
    io::Error::other("the machine has lost power")
}

fn failure(kind: ErrorKind) -> io::Error {
    io::Error::new(kind, "injected")
}

impl Default for FaultDir {
    fn default() -> FaultDir {
        FaultDir::new(Options::default())
    }
}

impl FaultDir {
    /// An empty directory.
    pub fn new(options: Options) -> FaultDir {
        let disk = Disk {
            options,
            inodes: Vec::new(),
            live: Vec::new(),
            durable: Vec::new(),
            pending: Vec::new(),
            clock: 1_000_000_000,
            handles: 0,
            trace: Vec::new(),
            plan: None,
            fired: false,
            stopped: false,
        };
        FaultDir { path: PathBuf::from("/fault"), disk: Arc::new(Mutex::new(disk)) }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a file there, durably and uncounted.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.disk();
        let inode = disk.make(bytes.to_vec());
        if let Some(made) = disk.inodes.get_mut(inode) {
            made.durable = bytes.to_vec();
        }
        for durable in [false, true] {
            let link = Entry::Link { name: name.to_string(), inode };
            let ignore_case = disk.options.ignore_case;
            link.apply(if durable { &mut disk.durable } else { &mut disk.live }, ignore_case);
        }
    }

    /// Live content of a file.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.find(name).and_then(|inode| disk.inodes.get(inode)).map(|inode| inode.live.clone())
    }

    /// Live names, sorted.
    pub fn ls(&self) -> Vec<String> {
        let mut names: Vec<_> = self.disk().live.iter().map(|(_, name, _)| name.clone()).collect();
        names.sort_unstable();
        names
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

    /// The disks that may be found after a crash at this moment, each as a directory of its own, no two alike. All of them if
    /// there are at most `limit` by what is tried (every subset of few blocks, cuts where they matter), else
    /// the extreme ones and a sample that `seed` chooses. Files of which `matters` is false are found as they are
    /// live or not at all, so that they do not multiply the rest.
    pub fn images(&self, limit: usize, seed: u64, matters: impl Fn(&str) -> bool) -> Vec<FaultDir> {
        let disk = self.disk();
        let mut random = Random::new(seed);
        let directories = disk.directories(&mut random);
        let mut relevant = BTreeSet::new();
        for (_, name, inode) in directories.iter().flatten() {
            if matters(name) {
                relevant.insert(*inode);
            }
        }
        let contents: Vec<(usize, Vec<Vec<u8>>)> = (relevant.iter().copied())
            .filter_map(|i| disk.inodes.get(i).map(|inode| (i, inode.outcomes(disk.options.block, limit, &mut random))))
            .collect();
        let product = contents.iter().fold(directories.len(), |n, (_, c)| n.saturating_mul(c.len()));
        let mut images = Images { disk: &disk, seen: HashSet::new(), found: Vec::new() };
        let mut pick = |choose: &mut dyn FnMut(usize) -> usize| {
            let Some(directory) = directories.get(choose(directories.len())) else { return };
            let content = |inode: usize| match contents.iter().position(|(i, _)| *i == inode) {
                None => None,
                Some(at) => Some(at),
            };
            let chosen: Vec<usize> = contents.iter().map(|(_, c)| choose(c.len())).collect();
            images.add(directory, &|inode| {
                let at = content(inode)?;
                contents.get(at)?.1.get(*chosen.get(at)?).map(Vec::as_slice)
            });
        };
        if product <= limit {
            for number in 0..product {
                let mut rest = number;
                pick(&mut |len| {
                    let digit = rest % len.max(1);
                    rest /= len.max(1);
                    digit
                });
            }
        } else {
            // The first choice is what is durable, the last what is live.
            for corner in 0..4 {
                let mut first = true;
                pick(&mut |len| {
                    let live = if std::mem::take(&mut first) { corner & 1 } else { corner >> 1 };
                    live * (len - 1)
                });
            }
            for _ in 0..limit.saturating_mul(2) {
                if images.found.len() >= limit {
                    break;
                }
                let mut random = random.clone();
                let _ = std::mem::replace(&mut random, Random::new(random.clone().number()));
                pick(&mut |len| random.below(len));
            }
        }
        images.found
    }
}
