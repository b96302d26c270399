//! Reading a journal for what a listing shows: the head fields that it changes, and how many messages there are then.
//!
//! Messages are passed over unread. Whatever is not as it should be makes it [`Unclear`]: then the whole is read, by the
//! rules of docs/format.md, section 3. CRCs are left to that.

use super::look::{Beginning, Unclear};
use crate::fs::File;
use crate::journal::{Header, Journal};
use crate::json;
use crate::session::Head;
use crate::snapshot::key_name;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

const CHUNK: usize = 64 << 10;
/// Longest beginning of a line: `{"bytes": …, "crc32c": "………", `.
const SEAL: usize = 54;
/// Longer than any tombstone.
const TOMBSTONE: usize = 512;
/// First prompts are looked for in so many messages.
const PROMPT_WITHIN: u64 = 16;

/// Makes of a snapshot's beginning what a journal makes of the snapshot. False: the session is deleted.
pub(super) fn apply(journal: &dyn File, to: &mut Beginning) -> Result<bool, Unclear> {
    let mut lines = Lines { file: journal, start: 0, buffer: Vec::new(), line: 0..0, ended: false };
    let Some(line) = lines.next()? else { return Ok(true) }; // a torn header
    let header = Journal::parse(&Bytes::copy_from_slice(line)).ok().and_then(|journal| journal.header);
    let header = header.filter(|header| header.is_of(&to.id) && header.lineage == to.meta.lineage).ok_or(Unclear)?;
    let stands = stands_on(&header, to);
    let has_prompt = to.meta.first_prompt.as_ref().is_some_and(|prompt| &**prompt != b"null");
    let prompt_is_known = has_prompt || to.count >= PROMPT_WITHIN;
    let prompt_within = to.count.min(PROMPT_WITHIN);
    let (mut revision, mut last, mut deleted) = (header.base_revision, None, false);
    while let Some(line) = lines.next()? {
        let line = Line::parse(line)?;
        if deleted {
            return Err(Unclear);
        }
        deleted = line.deleted;
        if !deleted {
            let next = line.revision.filter(|next| revision.checked_add(1) == Some(*next));
            revision = next.ok_or(Unclear)?;
            let from = line.from.ok_or(Unclear)?;
            last = Some((from, line.messages_at));
            if stands {
                if from < prompt_within || !prompt_is_known {
                    return Err(Unclear);
                }
                line.change(&mut to.head)?;
            }
        }
    }
    if deleted {
        return Ok(false);
    }
    if !stands {
        // In the snapshot already, or not fit for it.
        return if revision <= to.meta.revision { Ok(true) } else { Err(Unclear) };
    }
    if let Some((from, messages_at)) = last {
        to.meta.revision = revision;
        to.count = from.checked_add(lines.count_messages(messages_at)?).ok_or(Unclear)?;
    }
    Ok(true)
}

/// True if the last line of a journal says that the session is deleted.
pub(super) fn is_deleted(journal: &dyn File) -> Result<bool, Unclear> {
    let len = journal.stat()?.len;
    let tail = journal.read_some(len.saturating_sub(TOMBSTONE as u64), TOMBSTONE)?;
    let Some(end) = memchr::memrchr(b'\n', &tail) else { return Ok(false) };
    let whole = tail.get(..end).unwrap_or_default();
    let line = memchr::memrchr(b'\n', whole).map_or(whole, |before| whole.get(before + 1..).unwrap_or_default());
    // What is not a whole line is not a tombstone: one would have room here.
    Ok(Line::parse(line).is_ok_and(|line| line.deleted))
}

fn stands_on(header: &Header, snapshot: &Beginning) -> bool {
    header.base_revision == snapshot.meta.revision
        && header.snapshot_bytes == snapshot.len
        && Some(header.snapshot_crc) == snapshot.meta.crc
}

/// The whole lines of a journal, one after the other. The last one can still be looked at behind the end.
struct Lines<'a> {
    file: &'a dyn File,
    /// Where the buffer's first byte stands in the file.
    start: u64,
    buffer: Vec<u8>,
    /// The line that was given last, in the buffer.
    line: Range<usize>,
    ended: bool,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Option<&[u8]>, Unclear> {
        loop {
            let rest = self.buffer.get(self.line.end..).unwrap_or_default();
            let len = line_len(rest)?;
            if let Some(line) = len.and_then(|len| rest.get(..len)) {
                // A hole that a crash left may be a torn tail, and may be damage.
                if !line.ends_with(b"}\n") || memchr::memchr(0, line).is_some() {
                    return Err(Unclear);
                }
                self.line = self.line.end..self.line.end + line.len();
                return Ok(self.buffer.get(self.line.clone()));
            }
            if self.ended {
                return if memchr::memchr(b'\n', rest).is_some() { Err(Unclear) } else { Ok(None) };
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<(), Unclear> {
        // Not as much as the line says that it has: that may be damaged.
        let count = self.buffer.len().max(CHUNK);
        self.start += self.line.start as u64;
        self.buffer.drain(..self.line.start);
        self.line = 0..self.line.len();
        let more = self.file.read_some(self.start + self.buffer.len() as u64, count)?;
        self.buffer.extend_from_slice(&more);
        self.ended = more.len() < count;
        let read = self.start + self.buffer.len() as u64;
        // Shorter than what was read, or empty: it was folded since it was opened, and the snapshot replaced.
        if self.ended && (read == 0 || self.file.stat()?.len < read) {
            return Err(Unclear);
        }
        Ok(())
    }

    fn count_messages(&self, at: Option<usize>) -> Result<u64, Unclear> {
        let (Some(at), Some(line)) = (at, self.buffer.get(self.line.clone())) else { return Ok(0) };
        let mut count = 0;
        json::elements::<json::Fault>(line, at, |_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }
}

/// Length of the line that begins here, as it says itself; None: too little of it is there to know.
fn line_len(text: &[u8]) -> Result<Option<usize>, Unclear> {
    if text.len() < SEAL {
        return Ok(None);
    }
    let rest = text.strip_prefix(b"{\"bytes\": ").ok_or(Unclear)?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (digits, rest) = rest.split_at(digits);
    let payload: usize = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or(Unclear)?;
    let rest = rest.strip_prefix(b", \"crc32c\": \"").and_then(|rest| rest.get(8..)).ok_or(Unclear)?;
    let rest = rest.strip_prefix(b"\", ").ok_or(Unclear)?;
    let len = payload.checked_add(text.len() - rest.len() + 2).ok_or(Unclear)?;
    Ok(Some(len))
}

/// What a line says before its messages.
#[derive(Debug, Default)]
struct Line {
    revision: Option<u64>,
    from: Option<u64>,
    deleted: bool,
    head: Vec<(Arc<str>, Bytes)>,
    removed: Vec<Arc<str>>,
    messages_at: Option<usize>,
}

impl Line {
    fn parse(text: &[u8]) -> Result<Line, Unclear> {
        let mut line = Line::default();
        let walked = json::members::<Unclear>(text, 0, |key, at| {
            if key.of(text) == br#""messages""# {
                line.messages_at = Some(at);
                return Err(Unclear);
            }
            let value = json::value(text, at)?;
            let int = || std::str::from_utf8(value.of(text)).ok().and_then(|t| t.parse::<u64>().ok());
            match key.of(text) {
                br#""revision""# => line.revision = int(),
                br#""from""# => line.from = int(),
                br#""deleted""# => line.deleted = value.of(text) == b"true",
                br#""head""# => line.head = members(value.of(text))?,
                br#""removed""# => {
                    json::elements::<Unclear>(text, at, |key| {
                        line.removed.push(key_name(key.of(text)));
                        Ok(())
                    })?;
                }
                _ => {}
            }
            Ok(value.end)
        });
        // The messages are where the walk ends on purpose.
        if line.messages_at.is_none() {
            walked?;
        }
        Ok(line)
    }

    /// Changes a head as [`Journal::apply`] does.
    fn change(self, head: &mut Head) -> Result<(), Unclear> {
        for key in &self.removed {
            head.remove(key);
        }
        for (key, value) in self.head {
            if &*key != "perdure" {
                head.set(&key, value);
                continue;
            }
            head.extra.clear();
            for (key, value) in members(&value)? {
                match &*key {
                    "tags" => head.tags = value,
                    "parent" => head.parent = value,
                    _ => head.extra.push((key, value)),
                }
            }
        }
        Ok(())
    }
}

/// Copies of an object's members: the buffer that they are in goes on to other lines.
fn members(object: &[u8]) -> Result<Vec<(Arc<str>, Bytes)>, Unclear> {
    let mut found = Vec::new();
    json::members::<Unclear>(object, 0, |key, at| {
        let value = json::value(object, at)?;
        found.push((key_name(key.of(object)), Bytes::copy_from_slice(value.of(object))));
        Ok(value.end)
    })?;
    Ok(found)
}
