//! The disk itself: inodes and directory entries, live, durable and in between.

use super::super::Stat;
use super::{Call, Fault, Options};
use std::io::{self, ErrorKind};

#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<Change>,
    pub(super) mtime_ns: i128,
    /// The open file that has the lock.
    pub(super) lock: Option<u64>,
    pub(super) open: usize,
}

impl Inode {
    pub(super) fn change(&mut self, change: Change) {
        change.whole(&mut self.live);
        self.pending.push(change);
    }

    pub(super) fn sync(&mut self, block: usize) {
        let kept = self.pending.iter().map(|change| match change {
            Change::SetLen(len) => *len,
            Change::Write { .. } => usize::MAX,
        });
        let kept = kept.min().unwrap_or(usize::MAX);
        if self.pending.is_empty() {
            return; // what an earlier sync failed to write is not tried again
        }
        self.durable.truncate(kept);
        self.durable.resize(self.live.len(), 0);
        for change in std::mem::take(&mut self.pending) {
            let Change::Write { at, bytes } = change else { continue };
            let (from, to) = (at / block * block, (at + bytes.len()).div_ceil(block) * block);
            let to = to.min(self.live.len());
            if let (Some(durable), Some(live)) = (self.durable.get_mut(from..to), self.live.get(from..to)) {
                durable.copy_from_slice(live);
            }
        }
    }

    pub(super) fn fail_sync(&mut self, durable: Vec<u8>) {
        self.durable = durable;
        self.pending.clear();
    }
}

impl Change {
    /// Carries it out.
    pub(super) fn whole(&self, content: &mut Vec<u8>) {
        match self {
            Change::SetLen(len) => content.resize(*len, 0),
            Change::Write { at, bytes } => put(content, *at, bytes),
        }
    }
}

/// Writes into a file, extending it with NULs where it must.
pub(super) fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    if let Some(target) = content.get_mut(at..at + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}

/// What a directory holds: names and inodes, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entries(pub(super) Vec<(String, usize)>);

#[derive(Debug, Clone)]
pub(super) enum Entry {
    Link { name: String, inode: usize },
    Rename { from: String, to: String },
    Unlink { name: String },
}

impl Entries {
    pub(super) fn position(&self, name: &str, options: &Options) -> Option<usize> {
        self.0.iter().position(|(there, _)| options.same(there, name))
    }

    pub(super) fn find(&self, name: &str, options: &Options) -> Option<usize> {
        self.0.get(self.position(name, options)?).map(|(_, inode)| *inode)
    }

    pub(super) fn put(&mut self, name: &str, inode: usize, options: &Options) {
        match self.position(name, options).and_then(|at| self.0.get_mut(at)) {
            Some(there) => there.1 = inode,
            None => self.0.push((name.to_string(), inode)),
        }
    }

    pub(super) fn apply(&mut self, entry: &Entry, options: &Options) {
        match entry {
            Entry::Link { name, inode } => self.put(name, *inode, options),
            Entry::Rename { from, to } => {
                if let Some(at) = self.position(from, options) {
                    let (_, inode) = self.0.remove(at);
                    self.put(to, inode, options);
                }
            }
            Entry::Unlink { name } => {
                if let Some(at) = self.position(name, options) {
                    self.0.remove(at);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) options: Options,
    pub(super) inodes: Vec<Inode>,
    pub(super) live: Entries,
    pub(super) durable: Entries,
    pub(super) pending: Vec<Entry>,
    pub(super) clock: i128,
    pub(super) handles: u64,
    pub(super) trace: Vec<Call>,
    pub(super) plan: Option<(usize, Fault)>,
    /// Faults for the next call of a method on a file with this in its name, in their order.
    pub(super) next: Vec<(&'static str, &'static str, Fault)>,
    pub(super) fired: bool,
    pub(super) stopped: bool,
    pub(super) killed: Vec<usize>,
}

/// What becomes of a call that was counted.
#[derive(Debug)]
pub(super) enum Go {
    Normally,
    /// It is not carried out.
    Instead(io::Error),
    /// It is carried out, and fails.
    Then(io::Error),
    /// A part of it is carried out, which the seed chooses, and it fails.
    Partly(u64, io::Error),
    /// It is carried out but a crash decides what of it is found; syncs do nothing.
    Crash,
}

impl Go {
    pub(super) fn end(self) -> io::Result<()> {
        match self {
            Go::Normally => Ok(()),
            Go::Instead(e) | Go::Then(e) | Go::Partly(_, e) => Err(e),
            Go::Crash => Err(stopped()),
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("the machine has lost power")
}

pub(super) fn no_such_file() -> io::Error {
    ErrorKind::NotFound.into()
}

impl Disk {
    /// Counts a call.
    pub(super) fn call(&mut self, process: usize, what: &'static str, on: &str, changes: bool) -> io::Result<Go> {
        if self.stopped || self.killed.contains(&process) {
            return Err(stopped());
        }
        let number = self.trace.len();
        self.trace.push(Call { what, on: on.to_string(), changes });
        let next = self.next.first().filter(|(method, part, _)| *method == what && on.contains(part));
        let fault = match (self.plan.filter(|(at, _)| *at == number), next) {
            (Some((_, fault)), _) => fault,
            (None, Some((.., fault))) => {
                let fault = *fault;
                self.next.remove(0);
                fault
            }
            (None, None) => return Ok(Go::Normally),
        };
        self.fired = true;
        let failure = |kind| io::Error::new(kind, "injected");
        Ok(match fault {
            Fault::Crash => {
                self.stopped = true;
                Go::Crash
            }
            Fault::Kill => {
                self.killed.push(process);
                Go::Crash
            }
            Fault::Fail(kind) => Go::Instead(failure(kind)),
            Fault::FailAfter(kind) => Go::Then(failure(kind)),
            Fault::Partly(seed) => Go::Partly(seed, failure(ErrorKind::StorageFull)),
        })
    }

    /// Counts a call that is carried out as a whole or not at all.
    pub(super) fn call_whole(&mut self, process: usize, what: &'static str, on: &str, changes: bool) -> io::Result<Go> {
        match self.call(process, what, on, changes)? {
            Go::Instead(e) | Go::Partly(_, e) => Err(e),
            go => Ok(go),
        }
    }

    pub(super) fn make(&mut self) -> usize {
        let mut number = self.inodes.len() as u64 + 1;
        if self.options.coarse {
            let linked = |at: usize| self.live.0.iter().any(|(_, inode)| *inode == at);
            let used =
                |n: u64| self.inodes.iter().enumerate().any(|(at, i)| i.number == n && (i.open > 0 || linked(at)));
            number = (1..).find(|n| !used(*n)).unwrap_or(number);
        }
        let mtime_ns = self.tick();
        self.inodes.push(Inode { number, mtime_ns, ..Inode::default() });
        self.inodes.len() - 1
    }

    pub(super) fn tick(&mut self) -> i128 {
        if !self.options.coarse {
            self.clock += 1;
        }
        self.clock
    }

    pub(super) fn inode(&mut self, at: usize) -> io::Result<&mut Inode> {
        self.inodes.get_mut(at).ok_or_else(no_such_file)
    }

    pub(super) fn stat(&self, at: usize) -> io::Result<Stat> {
        let inode = self.inodes.get(at).ok_or_else(no_such_file)?;
        Ok(Stat { device: 1, inode: inode.number, len: inode.live.len() as u64, mtime_ns: inode.mtime_ns })
    }

    pub(super) fn enter(&mut self, entry: Entry) {
        self.live.apply(&entry, &self.options);
        self.pending.push(entry);
    }
}
