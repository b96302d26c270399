//! What an engine has written, added up.

use crate::save::{Kind, Receipt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Sums over the saves of an engine, since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Saves that wrote something, and folds.
    pub saves: u64,
    /// Those of them that wrote a line to a journal.
    pub lines: u64,
    /// Those of them that wrote a snapshot.
    pub snapshots: u64,
    /// Bytes written, everything counted.
    pub bytes_written: u64,
    /// Bytes of messages that were new.
    pub new_bytes: u64,
    /// Time spent in syncs, over all threads.
    pub syncing: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    lines: AtomicU64,
    snapshots: AtomicU64,
    bytes_written: AtomicU64,
    new_bytes: AtomicU64,
    syncing_ns: AtomicU64,
}

impl Counts {
    pub fn add(&self, receipt: &Receipt) {
        let count = match receipt.kind {
            Kind::Nothing => return,
            Kind::Line => &self.lines,
            Kind::Snapshot => &self.snapshots,
        };
        let ns = u64::try_from(receipt.syncing.as_nanos()).unwrap_or(u64::MAX);
        count.fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(receipt.bytes_written, Ordering::Relaxed);
        self.new_bytes.fetch_add(receipt.new_bytes, Ordering::Relaxed);
        self.syncing_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub fn stats(&self) -> Stats {
        let (lines, snapshots) = (self.lines.load(Ordering::Relaxed), self.snapshots.load(Ordering::Relaxed));
        Stats {
            saves: lines + snapshots,
            lines,
            snapshots,
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            new_bytes: self.new_bytes.load(Ordering::Relaxed),
            syncing: Duration::from_nanos(self.syncing_ns.load(Ordering::Relaxed)),
        }
    }
}
