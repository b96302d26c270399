//! The journal file (docs/format.md, section 2): one line a save, each sealed with its length and a chained CRC.

use crate::base::Lineage;
use crate::id::SessionId;
use crate::json::{self, Fault};
use crate::log::MessageLog;
use crate::session::{Head, Session};
use crate::snapshot::{key_name, Flaw};
use bytes::Bytes;
use std::sync::Arc;

const FORMAT: u64 = 1;

/// The snapshot on which a journal stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub id: String,
    pub lineage: Option<Lineage>,
    pub base_revision: u64,
    pub snapshot_bytes: u64,
    pub snapshot_crc: u32,
}

/// One save.
#[derive(Debug)]
pub(crate) struct Line {
    pub revision: u64,
    unsynced: bool,
    from: usize,
    head: Vec<(Arc<str>, Bytes)>,
    removed: Vec<Arc<str>>,
    messages: Vec<Bytes>,
}

/// A journal taken apart.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub header: Option<Header>,
    pub lines: Vec<Line>,
    /// The session was deleted.
    pub deleted: bool,
    /// Length of what is whole.
    pub good_len: u64,
    /// CRC of the last whole line, where the chain goes on.
    pub crc: u32,
}

/// Appends the line of a payload; gives its CRC.
fn seal(out: &mut Vec<u8>, payload: &[u8], chain: u32) -> u32 {
    let crc = crc32c::crc32c_append(chain, payload);
    out.reserve(payload.len() + 64);
    out.extend_from_slice(format!("{{\"bytes\": {}, \"crc32c\": \"{crc:08x}\", ", payload.len()).as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"}\n");
    crc
}

/// Members without the braces around them.
fn payload(write: impl FnOnce(&mut json::Writer)) -> Vec<u8> {
    let mut out = json::Writer::new();
    write(&mut out);
    out.into_bytes()
}

impl Header {
    pub fn encode(&self) -> (Vec<u8>, u32) {
        let payload = payload(|out| {
            out.key(b"journal");
            out.int(FORMAT as i64);
            out.key(b"id");
            out.string(self.id.as_bytes());
            out.key(b"lineage");
            match self.lineage {
                Some(lineage) => out.string(lineage.to_string().as_bytes()),
                None => out.raw(b"null"),
            }
            out.key(b"base_revision");
            out.int(self.base_revision as i64);
            out.key(b"snapshot_bytes");
            out.int(self.snapshot_bytes as i64);
            out.key(b"snapshot_crc32c");
            out.string(format!("{:08x}", self.snapshot_crc).as_bytes());
        });
        let mut line = Vec::new();
        let crc = seal(&mut line, &payload, 0);
        (line, crc)
    }
}

/// Appends the line that turns the session's base into the session; gives its CRC.
///
/// `synced`: it is acknowledged once it is on the disk, and so is all before it.
pub(crate) fn encode_save(
    line: &mut Vec<u8>,
    session: &Session,
    base: &Head,
    revision: u64,
    at: u64,
    synced: bool,
    chain: u32,
) -> u32 {
    let (head, from) = (session.head(), session.first_new());
    let payload = payload(|out| {
        out.key(b"revision");
        out.int(revision as i64);
        out.key(b"from");
        out.int(from as i64);
        out.key(b"at");
        out.int(at as i64);
        if !synced {
            out.key(b"unsynced");
            out.raw(b"true");
        }
        out.key(b"head");
        out.open(b'{');
        for (key, value) in &head.fields {
            if base.get(key) != Some(value) {
                raw_key(out, key);
                out.raw(value);
            }
        }
        if !head.same_meta(base) {
            out.key(b"perdure");
            out.open(b'{');
            out.key(b"tags");
            out.raw(&head.tags);
            out.key(b"parent");
            out.raw(&head.parent);
            for (key, value) in &head.extra {
                raw_key(out, key);
                out.raw(value);
            }
            out.close(b'}');
        }
        out.close(b'}');
        out.key(b"removed");
        out.open(b'[');
        for (key, _) in base.fields.iter().filter(|(key, _)| head.get(key).is_none()) {
            out.element();
            out.raw(format!("\"{key}\"").as_bytes());
        }
        out.close(b']');
        out.key(b"messages");
        out.open(b'[');
        for message in session.log().iter_from(from) {
            out.element();
            out.raw(&message);
        }
        out.close(b']');
    });
    seal(line, &payload, chain)
}

/// Whether a reader of the line that leads from `base` to `head` finds the fields in the order of `head`: it leaves those
/// that stay where they are, and puts new ones behind them.
pub(crate) fn keeps_order(base: &Head, head: &Head) -> bool {
    fn keys(head: &Head) -> impl Iterator<Item = &Arc<str>> {
        head.fields.iter().map(|(key, _)| key)
    }
    let stay = keys(base).filter(|key| head.get(key).is_some());
    let come = keys(head).filter(|key| base.get(key).is_none());
    (base.fields.len() <= head.fields.len() && keys(base).zip(keys(head)).all(|(old, new)| old == new))
        || stay.chain(come).eq(keys(head))
}

/// Keys are kept in their written form.
fn raw_key(out: &mut json::Writer, key: &str) {
    out.element();
    out.raw(format!("\"{key}\": ").as_bytes());
}

/// Appends the line that says that the session is deleted.
pub(crate) fn encode_tombstone(line: &mut Vec<u8>, revision: u64, at: u64, chain: u32) {
    let payload = payload(|out| {
        out.key(b"deleted");
        out.raw(b"true");
        out.key(b"revision");
        out.int(revision as i64);
        out.key(b"at");
        out.int(at as i64);
    });
    seal(line, &payload, chain);
}

impl Journal {
    /// Takes a journal apart. A torn tail is left out (`good_len` tells); anything else that is wrong is an error.
    pub fn parse(text: &Bytes) -> Result<Journal, Flaw> {
        let mut journal = Journal::default();
        let mut at = 0;
        while at < text.len() {
            let rest = text.get(at..).unwrap_or_default();
            let Some(newline) = memchr::memchr(b'\n', rest) else { break };
            let line = text.slice(at..at + newline);
            let next = at + newline + 1;
            if memchr::memchr(0, &line).is_some() && Journal::may_be_torn(at, text.get(next..).unwrap_or_default()) {
                break;
            }
            journal.take(&line).map_err(|flaw| Flaw { at: Some(at + flaw.at.unwrap_or(0)), what: flaw.what })?;
            journal.good_len = next as u64;
            at = next;
        }
        Ok(journal)
    }

    /// Whether missing blocks in the line at `at` are those of a write that was never acknowledged, judging by what is
    /// behind it.
    fn may_be_torn(at: usize, behind: &[u8]) -> bool {
        // The header is written together with the line behind it: if blocks of it are missing, only that one follows.
        let is_last = |rest: &[u8]| memchr::memchr(b'\n', rest).is_none_or(|i| i + 1 == rest.len());
        behind.is_empty() || (at == 0 && is_last(behind)) || Journal::is_unsynced(behind)
    }

    /// True if no line here was ever synced: then nothing vouches for the bytes before it either.
    fn is_unsynced(text: &[u8]) -> bool {
        let mut lines = text.split_inclusive(|b| *b == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        lines.all(|line| {
            let save = || Entry::parse(&Bytes::copy_from_slice(line));
            memchr::memchr(0, line).is_some() || matches!(save(), Ok(Entry::Save(Line { unsynced: true, .. })))
        })
    }

    fn take(&mut self, line: &Bytes) -> Result<(), Flaw> {
        let crc = check_seal(line, self.crc)?;
        json::check_utf8(line)?;
        let entry = Entry::parse(line)?;
        if self.deleted {
            return Err(Flaw::new(0, "a line behind the session's deletion"));
        }
        match entry {
            Entry::Header(header) if self.good_len == 0 => self.header = Some(header),
            Entry::Header(_) => return Err(Flaw::new(0, "a second header")),
            _ if self.good_len == 0 => return Err(Flaw::new(0, "the first line is not a header")),
            Entry::Save(line) => {
                let last = self.lines.last().map(|l| l.revision).or(self.header.as_ref().map(|h| h.base_revision));
                if last.is_some_and(|last| line.revision != last + 1) {
                    return Err(Flaw::new(0, format!("revision {} does not follow the one before it", line.revision)));
                }
                self.lines.push(line);
            }
            Entry::Tombstone => self.deleted = true,
        }
        self.crc = crc;
        Ok(())
    }

    /// Revision of the last line.
    pub fn last_revision(&self) -> u64 {
        self.lines.last().map(|l| l.revision).or(self.header.as_ref().map(|h| h.base_revision)).unwrap_or(0)
    }

    /// Applies all lines to the snapshot's state.
    pub fn apply(&self, head: &mut Head, log: &mut MessageLog) -> Result<(), Flaw> {
        for line in &self.lines {
            if line.from > log.len() {
                let what =
                    format!("revision {} begins at message {}, but there are {}", line.revision, line.from, log.len());
                return Err(Flaw { at: None, what });
            }
            for key in &line.removed {
                head.remove(key);
            }
            for (key, value) in &line.head {
                if &**key == "perdure" {
                    apply_meta(head, value)?;
                } else {
                    head.set(key, value.clone());
                }
            }
            log.truncate(line.from);
            log.append(&line.messages);
        }
        Ok(())
    }
}

fn apply_meta(head: &mut Head, value: &Bytes) -> Result<(), Flaw> {
    head.extra.clear();
    json::members::<Flaw>(value, 0, |key, at| {
        let member = json::value(value, at)?;
        let bytes = value.slice(member.start..member.end);
        match &*key_name(key.of(value)) {
            "tags" => head.tags = bytes,
            "parent" => head.parent = bytes,
            other => head.extra.push((other.into(), bytes)),
        }
        Ok(member.end)
    })?;
    Ok(())
}

/// Checks `{"bytes": B, "crc32c": "CCCCCCCC", PAYLOAD}`; gives its CRC.
fn check_seal(line: &[u8], chain: u32) -> Result<u32, Flaw> {
    let bad = |what: &str| Flaw::new(0, format!("damaged line: {what}"));
    let rest = line.strip_prefix(b"{\"bytes\": ").ok_or_else(|| bad("it does not begin with its length"))?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (digits, rest) = rest.split_at(digits);
    let len: usize = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or_else(|| bad("bad length"))?;
    let rest = rest.strip_prefix(b", \"crc32c\": \"").ok_or_else(|| bad("no CRC"))?;
    let (hex, rest) = rest.split_at_checked(8).ok_or_else(|| bad("no CRC"))?;
    let payload = rest.strip_prefix(b"\", ").and_then(|r| r.strip_suffix(b"}")).ok_or_else(|| bad("no payload"))?;
    if payload.len() != len {
        return Err(bad(&format!("it says {len} bytes and has {}", payload.len())));
    }
    let crc = crc32c::crc32c_append(chain, payload);
    // Compared as it is written: `C` and `+` are digits to a parser, but a flipped bit to us.
    if hex != format!("{crc:08x}").as_bytes() {
        return Err(bad("its CRC does not fit its content and the line before it"));
    }
    Ok(crc)
}

enum Entry {
    Header(Header),
    Save(Line),
    Tombstone,
}

impl Entry {
    fn parse(text: &Bytes) -> Result<Entry, Flaw> {
        let (mut journal, mut id, mut lineage, mut base, mut bytes, mut crc) = (None, None, None, None, None, None);
        let (mut revision, mut from, mut deleted, mut unsynced) = (None, None, false, false);
        let (mut head, mut removed, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        json::members::<Flaw>(text, 0, |key, at| {
            let value = json::value(text, at)?;
            let token = value.of(text);
            let int = || std::str::from_utf8(token).ok().and_then(|t| t.parse::<u64>().ok());
            match key.of(text) {
                br#""journal""# => journal = int(),
                br#""id""# => id = json::string_text(token),
                br#""lineage""# => lineage = json::string_text(token).map(|t| Lineage::parse(&t)).or(Some(None)),
                br#""base_revision""# => base = int(),
                br#""snapshot_bytes""# => bytes = int(),
                br#""snapshot_crc32c""# => {
                    crc = json::string_text(token).and_then(|t| u32::from_str_radix(&t, 16).ok());
                }
                br#""revision""# => revision = int(),
                br#""from""# => from = int(),
                br#""deleted""# => deleted = token == b"true",
                br#""unsynced""# => unsynced = token == b"true",
                br#""head""# => {
                    json::members::<Flaw>(text, at, |key, at| {
                        let value = json::value(text, at)?;
                        head.push((key_name(key.of(text)), text.slice(value.start..value.end)));
                        Ok(value.end)
                    })?;
                }
                br#""removed""# => {
                    json::elements::<Flaw>(text, at, |key| {
                        removed.push(key_name(key.of(text)));
                        Ok(())
                    })?;
                }
                br#""messages""# => {
                    json::elements::<Flaw>(text, at, |message| {
                        if text.get(message.start) != Some(&b'{') || !message.canonical {
                            return Err(Flaw::new(message.start, "a message is not an object on one line"));
                        }
                        messages.push(text.slice(message.start..message.end));
                        Ok(())
                    })?;
                }
                _ => {}
            }
            Ok(value.end)
        })?;
        let missing = || Flaw::from(Fault { at: 0, what: "a line of no known kind" });
        if let Some(format) = journal {
            if format > FORMAT {
                return Err(Flaw::new(
                    0,
                    format!("journal format {format} is newer than this perdure reads ({FORMAT}); upgrade perdure"),
                ));
            }
            return match (id, lineage, base, bytes, crc) {
                (Some(id), Some(lineage), Some(base_revision), Some(snapshot_bytes), Some(snapshot_crc)) => {
                    Ok(Entry::Header(Header { id, lineage, base_revision, snapshot_bytes, snapshot_crc }))
                }
                _ => Err(missing()),
            };
        }
        if deleted {
            return Ok(Entry::Tombstone);
        }
        match (revision, from.and_then(|f| usize::try_from(f).ok())) {
            (Some(revision), Some(from)) => Ok(Entry::Save(Line { revision, unsynced, from, head, removed, messages })),
            _ => Err(missing()),
        }
    }
}

impl Header {
    /// True if this header belongs to the session.
    pub fn is_of(&self, id: &SessionId) -> bool {
        self.id == id.as_str()
    }
}
