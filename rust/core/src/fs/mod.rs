//! The only door to the disk: one directory, flat names. Everything the engine promises is promised in terms of
//! these calls, so that a test can put a failing or crashing disk behind them.

#[cfg(any(test, feature = "testing"))]
pub mod fault;
mod real;

pub use real::RealDir;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;

/// What identifies a file's content as far as the system tells without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Device and inode (zero where the platform has none).
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Length in bytes.
    pub len: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub mtime_ns: i128,
}

/// How a file is opened. Symlinks are never followed, and anything but a regular file is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// To read; it must be there.
    Read,
    /// To read and write; it must be there.
    Write,
    /// To read and write; made (0600) if it is not there.
    Create,
    /// To read and write; made (0600), an error if it is there.
    CreateNew,
}

/// One directory. Names are plain file names.
pub trait Dir: Send + Sync + Debug {
    /// Where it is; for messages only.
    fn path(&self) -> &Path;
    /// Opens a file.
    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn File>>;
    /// What lies under a name; None: nothing. A symlink is not followed; what is no regular file is an error.
    fn stat(&self, name: &str) -> io::Result<Option<Stat>>;
    /// Renames, replacing what is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Unlinks.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync(&self) -> io::Result<()>;
    /// All names in it, in no order.
    fn names(&self) -> io::Result<Vec<String>>;
}

/// An open file. Dropping it closes it, which lets go of its lock unless a forked process shares it.
pub trait File: Send + Sync + Debug {
    /// Its identity now.
    fn stat(&self) -> io::Result<Stat>;
    /// All bytes from `offset` on.
    fn read_from(&self, offset: u64) -> io::Result<Vec<u8>>;
    /// At most `len` bytes from `offset` on.
    fn read_some(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Writes these pieces, one behind the other, from `offset` on.
    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()>;
    /// Sets the length.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes content and all metadata durable (fsync).
    fn sync_all(&self) -> io::Result<()>;
    /// Takes an exclusive advisory lock; false if somebody else has it.
    fn try_lock(&self) -> io::Result<bool>;
    /// Lets go of it.
    fn unlock(&self) -> io::Result<()>;
}
