//! Opening a session by its end: its head and its last messages, whatever its length.
//!
//! Only a snapshot of our own without a journal can be opened so. What is read is checked as it would be in the whole;
//! the rest of the file is read and checked when it is needed, from the file that was opened, which stays the same also
//! when somebody else replaces it.

use crate::base::{FileBase, Lineage};
use crate::engine::{guard, Engine, Loaded};
use crate::error::{At, Error, Result};
use crate::fs::{File, Open, Stat};
use crate::id::SessionId;
use crate::json;
use crate::log::MessageLog;
use crate::read::{changed_outside, Names};
use crate::session::{Head, Session};
use crate::snapshot::{key_name, parse_meta, Flaw, Snapshot, END, MESSAGES};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A file up to this size is read as a whole, which takes hardly longer.
const SMALL: u64 = 64 * 1024;
/// What is read of its end.
const TAIL: u64 = 64 * 1024;
/// What is read of its beginning.
const HEAD: usize = 8192;

/// A session that was opened.
#[derive(Debug)]
pub enum Opened {
    /// All of it was read.
    Whole(Loaded),
    /// Its head and its end were.
    Tail(Tail),
}

/// The end of a session, and the way to the rest.
#[derive(Debug)]
pub struct Tail {
    /// The session without its messages.
    session: Session,
    count: usize,
    messages: Vec<Bytes>,
    stat: Stat,
    path: PathBuf,
    /// Until the whole was read.
    file: Mutex<Option<(Box<dyn File>, Place)>>,
    log: OnceLock<MessageLog>,
}

/// One of the files that may be kept open for this.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tail {
    /// The session, its head and what is known to be stored; not its messages.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Number of messages, as the head says.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Index of the first message that was read.
    pub fn first(&self) -> usize {
        self.count - self.messages.len()
    }

    /// A message, if it was read.
    pub fn get(&self, index: usize) -> Option<Bytes> {
        match index.checked_sub(self.first()) {
            Some(at) => self.messages.get(at).cloned(),
            None => self.log.get()?.get(index),
        }
    }

    /// Reads and checks the whole file; once.
    pub fn load(&self) -> Result<Loaded> {
        let mut open = guard(&self.file);
        let Some((file, _)) = &*open else { return Err(Error::corrupt(&self.path, "was read as a whole already")) };
        let text: Bytes = file.read_from(0).at("read", &self.path)?.into();
        let snapshot = Snapshot::parse(&self.path, &text)?;
        let saved = self.session.base().saved();
        // A rename would have left this file alone; somebody wrote into it.
        if file.stat().at("stat", &self.path)? != self.stat {
            let reason = "was changed outside perdure after it was opened, and before it was read as a whole; load it \
                          again";
            return Err(Error::corrupt(&self.path, reason));
        }
        let warnings = if snapshot.crc_fits { Vec::new() } else { vec![changed_outside(&self.path)] };
        let file = saved.and_then(|saved| saved.file.clone()).map(|file| FileBase { crc: snapshot.crc, ..file });
        let session =
            Session::stored(snapshot.id, snapshot.head, snapshot.log, snapshot.lineage, snapshot.revision, file);
        let _ = self.log.set(session.log().clone());
        *open = None;
        Ok(Loaded { session, warnings })
    }
}

impl Engine {
    /// Opens a session, by its end if that pays; None if it is not there.
    pub fn open_session(&self, id: &SessionId) -> Result<Option<Opened>> {
        if let Some(tail) = self.tail(id) {
            return Ok(Some(Opened::Tail(tail)));
        }
        Ok(self.load(id)?.map(Opened::Whole))
    }

    /// None: whatever there is has to be read as a whole.
    fn tail(&self, id: &SessionId) -> Option<Tail> {
        let place = Place(self.tails().clone());
        if place.0.fetch_add(1, Ordering::Relaxed) >= self.most_tails() {
            return None;
        }
        let names = Names::new(id.stem());
        // Journal first: what is in the snapshot afterwards is newer, if anything.
        if self.dir().stat(&names.journal).ok()?.is_some_and(|journal| journal.len > 0) {
            return None;
        }
        let file = self.dir().open(&names.snapshot, Open::Read).ok()?;
        let stat = file.stat().ok()?;
        if stat.len <= SMALL {
            return None;
        }
        let text: Bytes = file.read_some(0, HEAD).ok()?.into();
        let start = parse_start(&text)?;
        let at = stat.len.checked_sub(END.len() as u64)?.checked_sub(start.messages_bytes)?;
        if start.id != *id || start.messages_at as u64 != at {
            return None;
        }
        let from = stat.len.saturating_sub(TAIL);
        let end: Bytes = file.read_from(from).ok()?.into();
        let messages = last_messages(&end)?;
        if messages.len() > start.count {
            return None;
        }
        let file_base = FileBase {
            engine: self.number(),
            names: Arc::new(names),
            stat,
            crc: start.crc,
            journal_len: 0,
            journal_crc: 0,
        };
        let path = self.path().join(file_base.name());
        let (id, head) = (start.id, Arc::new(start.head));
        let lineage = Some(start.lineage);
        let session = Session::stored(id, head, MessageLog::default(), lineage, start.revision, Some(file_base));
        let (file, log) = (Mutex::new(Some((file, place))), OnceLock::new());
        Some(Tail { session, count: start.count, messages, stat, path, file, log })
    }
}

/// What the beginning of one of our own snapshots says.
struct Start {
    id: SessionId,
    head: Head,
    lineage: Lineage,
    revision: u64,
    count: usize,
    messages_bytes: u64,
    /// Where the line of the messages begins.
    messages_at: usize,
    crc: u32,
}

fn parse_start(text: &Bytes) -> Option<Start> {
    let mut head = Head::default();
    let (mut id, mut meta, mut messages_at) = (None, None, None);
    let _ = json::members::<Flaw>(text, 0, |key, at| {
        if key.of(text) == br#""messages""# {
            messages_at = key.start.checked_sub(2);
            return Err(Flaw::new(at, "the head ends here"));
        }
        let value = json::value(text, at)?;
        match key.of(text) {
            br#""id""# => id = json::string_text(value.of(text)).and_then(|id| SessionId::new(id).ok()),
            br#""perdure""# => meta = Some(parse_meta(text, at, &mut head)?),
            // The whole would be read otherwise: older names, and shapes that it refuses.
            br#""todos""# => return Err(Flaw::new(at, "not for a quick look")),
            token => {
                crate::snapshot::check_shape(&key_name(token), value.of(text), at)?;
                head.set(&key_name(token), crate::snapshot::canonical(text, value));
            }
        }
        Ok(value.end)
    });
    let (meta, messages_at) = (meta?, messages_at?);
    if !text.get(messages_at..)?.starts_with(MESSAGES) {
        return None;
    }
    json::check_utf8(text.get(..messages_at)?).ok()?;
    Some(Start {
        id: id?,
        head,
        lineage: meta.lineage?,
        revision: meta.revision,
        count: usize::try_from(meta.count?).ok()?,
        messages_bytes: meta.messages_bytes?,
        messages_at,
        crc: meta.crc?,
    })
}

/// The messages that are whole in the end of a file; None if it is not as we write it.
fn last_messages(end: &Bytes) -> Option<Vec<Bytes>> {
    let body = end.strip_suffix(b"\n  ]\n}\n")?.len();
    let mut messages = Vec::new();
    let mut to = body;
    // A line feed is never inside of a message.
    while let Some(line) = memchr::memrchr(b'\n', end.get(..to)?) {
        let text = end.slice(line + 1..to);
        let message = text.strip_prefix(b"    ")?;
        let message = if to == body { message } else { message.strip_suffix(b",")? };
        let value = json::value(message, 0).ok()?;
        if message.first() != Some(&b'{') || value.end != message.len() || !value.canonical {
            return None;
        }
        json::check_utf8(message).ok()?;
        messages.push(text.slice_ref(message));
        to = line;
    }
    messages.reverse();
    (!messages.is_empty()).then_some(messages)
}
