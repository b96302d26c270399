//! What a session knows of its stored state: what it expects to find there, and to replace.

use crate::read::Names;
use crate::session::Head;
use std::sync::Arc;

/// 32 hex digits that tell one session's life from another's of the same id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lineage(pub [u8; 16]);

impl Lineage {
    /// A new random one.
    pub fn random() -> std::io::Result<Lineage> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
        Ok(Lineage(bytes))
    }

    /// Reads 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Lineage> {
        let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 32 && lower).then(|| u128::from_str_radix(text, 16).ok())?.map(|n| Lineage(n.to_be_bytes()))
    }
}

impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl std::fmt::Debug for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// What a stored state is: enough to tell whether a file still holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBase {
    /// The engine that saw it. Another engine looks at the content.
    pub engine: u64,
    /// The names of its files.
    pub(crate) names: Arc<Names>,
    /// Identity of the snapshot file.
    pub stat: crate::fs::Stat,
    /// Computed CRC of the snapshot behind its `perdure` line (of a foreign file: of the whole).
    pub crc: u32,
    /// Length of the journal's whole lines on top of the snapshot; 0: none.
    pub journal_len: u64,
    /// CRC of the last of them.
    pub journal_crc: u32,
}

impl FileBase {
    /// Name of the snapshot file in its directory.
    pub fn name(&self) -> &str {
        &self.names.snapshot
    }
}

/// The state that a session was loaded from or last saved as.
#[derive(Debug, Clone)]
pub struct Saved {
    /// None: a file that knows no revisions (A3S Code's).
    pub lineage: Option<Lineage>,
    /// Its revision, 0 without a lineage.
    pub revision: u64,
    /// Number of its messages.
    pub count: usize,
    /// Its head.
    pub head: Arc<Head>,
    /// CRC of its content, however it was written. Two states of one revision with different content: one of them was
    /// changed outside perdure.
    pub content: u32,
    /// The file, if it was one.
    pub file: Option<FileBase>,
}

impl Saved {
    /// True if both are the same state, wherever they were read.
    pub(crate) fn is(&self, other: &Saved) -> bool {
        std::ptr::eq(self, other)
            || (self.lineage == other.lineage && self.revision == other.revision && self.content == other.content)
    }
}

/// What a session expects to be stored when it is saved.
#[derive(Debug, Clone, Default)]
pub enum Base {
    /// Nothing: the session is new.
    #[default]
    Absent,
    /// This state.
    At(Arc<Saved>),
}

impl Base {
    /// The state, unless nothing is expected.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Base::Absent => None,
            Base::At(saved) => Some(saved),
        }
    }

    /// The state, shared.
    pub fn shared(&self) -> Option<Arc<Saved>> {
        match self {
            Base::Absent => None,
            Base::At(saved) => Some(saved.clone()),
        }
    }

    /// Revision of the state; 0 if nothing is expected.
    pub fn revision(&self) -> u64 {
        self.saved().map_or(0, |s| s.revision)
    }
}
