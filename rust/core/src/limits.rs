//! How many files an engine keeps open.

use std::sync::{Condvar, Mutex, PoisonError};

/// Most sessions of one engine that are worked on at the same moment; more wait.
const AT_ONCE: usize = 64;
/// Most sessions whose files stay open between two saves.
const SLOTS: usize = 1024;

/// Bounds that leave most of the process's file descriptors to others.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Sessions whose lock and journal stay open (two descriptors each).
    pub slots: usize,
    /// Sessions that were opened by their end (one descriptor each).
    pub tails: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to work on a session's files, which takes up to four descriptors. Dropping it gives it back.
pub(crate) struct Entry<'a>(&'a Limits);

impl Limits {
    /// As the process's own limit allows.
    pub fn of_process() -> Limits {
        let descriptors = descriptors();
        Limits {
            slots: (descriptors / 8).clamp(4, SLOTS),
            tails: (descriptors / 16).clamp(4, SLOTS),
            free: Mutex::new((descriptors / 16).clamp(4, AT_ONCE)),
            freed: Condvar::new(),
        }
    }

    /// Waits until few enough are at work.
    pub fn enter(&self) -> Entry<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Entry(self)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(unix)]
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(not(unix))]
fn descriptors() -> usize {
    2048 // Windows has no such limit on handles; a bound is good all the same
}
