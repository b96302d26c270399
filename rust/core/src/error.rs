//! One error type. Every variant says what was being done, to which file, and where in it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Who holds a session's lock, as far as the lock file tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Process id on `host`.
    pub pid: Option<u32>,
    /// Host name.
    pub host: Option<String>,
    /// Unix seconds since when.
    pub since: Option<u64>,
}

/// A place in a file, both 1-based; the column counts bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in bytes.
    pub column: usize,
}

impl Place {
    /// The place of a byte offset.
    pub fn of(bytes: &[u8], offset: usize) -> Place {
        let before = bytes.get(..offset.min(bytes.len())).unwrap_or_default();
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let start = memchr::memrchr(b'\n', before).map_or(0, |i| i + 1);
        Place { line, column: before.len() - start + 1 }
    }
}

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Not a session id.
    InvalidId(String),
    /// Not a cursor that a listing gave.
    BadCursor(String),
    /// A session is stored under this id, or under `twin`, whose file has the name that it needs.
    Exists {
        /// The id asked for.
        id: String,
        /// The stored id, where it is another one.
        twin: Option<String>,
    },
    /// The stored session is not the one this copy came from.
    Conflict {
        /// Session id.
        id: String,
        /// Revision this copy came from.
        expected: u64,
        /// Revision that is stored; none: nothing is stored.
        found: Option<u64>,
        /// What differs, when the revisions alone do not tell.
        reason: &'static str,
    },
    /// Another process (or another handle) holds the lock.
    Locked {
        /// Session id.
        id: String,
        /// Who.
        owner: Owner,
    },
    /// A file is damaged, or is not a session file.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Option<Place>,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A system call failed.
    Io {
        /// What was being done: "write", "sync", "rename" and so on.
        op: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Result with the engine's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A damaged file, without a place.
    pub fn corrupt(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Corrupt { path: path.as_ref().to_path_buf(), place: None, reason: reason.into() }
    }

    /// True for what another attempt may cure: reading files that a writer was just replacing.
    pub fn may_be_mid_write(&self) -> bool {
        matches!(self, Error::Corrupt { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidId(reason) => write!(f, "not a session id: {reason}"),
            Error::BadCursor(cursor) => write!(f, "{cursor:?} is not a cursor that a listing of this store gave"),
            Error::Exists { id, twin: None } => {
                write!(f, "session {id:?} exists already; resume it, or choose another id")
            }
            Error::Exists { id, twin: Some(twin) } => write!(
                f,
                "session {id:?} cannot be stored: session {twin:?} has the file name that it needs (file names may \
                 differ only in case, or the file is A3S Code's); choose another id"
            ),
            Error::Conflict { id, expected, found: None, .. } => write!(
                f,
                "session {id:?} was deleted by somebody else after this copy of it (revision {expected}) was \
                 made; save it with create=True, or under another id, to keep it"
            ),
            Error::Conflict { id, expected, found: Some(found), reason } => write!(
                f,
                "session {id:?} was changed by somebody else: this copy comes from revision {expected}, stored is \
                 revision {found}{reason}; reload it and apply the change again, or fork it to keep both"
            ),
            Error::Locked { id, owner } => {
                write!(f, "session {id:?} is locked by ")?;
                match owner.pid {
                    Some(pid) => write!(f, "process {pid}")?,
                    None => write!(f, "another process")?,
                }
                if let Some(host) = &owner.host {
                    write!(f, " on {host}")?;
                }
                if let Some(since) = owner.since {
                    write!(f, " since {since} (Unix time)")?;
                }
                write!(f, "; wait for it with lock_timeout, or close it there")
            }
            Error::Corrupt { path, place, reason } => {
                write!(f, "{}", path.display())?;
                if let Some(place) = place {
                    write!(f, ":{}:{}", place.line, place.column)?;
                }
                write!(f, ": {reason}")?;
                if place.is_some() {
                    write!(f, "; the file is left as it is: put a backup back, or mend it by hand")?;
                }
                Ok(())
            }
            Error::Io { op, path, source } => write!(f, "cannot {op} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Names the operation and the file of an `io::Error`.
pub trait At<T> {
    /// Turns the system's answer into an [`Error::Io`].
    fn at(self, op: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, op: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { op, path: path.to_path_buf(), source })
    }
}
