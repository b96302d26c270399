//! The engine of perdure: sessions of AI agents as JSON files that survive crashes.
//!
//! A session lies in a directory as one readable snapshot, `<name>.json`, and, while a turn runs, a journal of steps
//! beside it. The promise: what [`Engine::save`] has acknowledged is found by [`Engine::load`] after a crash of the
//! process or of the machine at any point, whole and unmixed; a save that was not acknowledged is found whole or not at
//! all; nothing is overwritten that the writer had not seen. It rests on a file system that keeps what `fsync` has
//! confirmed and renames atomically. docs/format.md describes the files, docs/durability.md the promise per platform.
//!
//! The engine knows no Python. The only door to the disk is [`fs::Dir`].

mod base;
mod crc;
mod engine;
mod error;
mod files;
pub mod fs;
mod id;
mod journal;
pub mod json;
mod limits;
mod list;
mod lock;
mod log;
pub mod pool;
mod prompt;
mod read;
mod save;
mod session;
mod slot;
mod snapshot;
mod stats;
mod tail;

pub use base::{Base, FileBase, Lineage, Saved};
pub use engine::{Engine, Loaded, SaveOptions};
pub use error::{Error, Owner, Place, Result};
pub use id::{SessionId, MAX_ID_CHARS};
pub use list::{Info, Page};
pub use log::MessageLog;
pub use save::{Failed, Kind, Receipt};
pub use session::{Head, Session};
pub use snapshot::FORMAT;
pub use stats::Stats;
pub use tail::{Opened, Tail};

/// Unix time in seconds.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
