//! Listing sessions from their heads.

use crate::engine::Engine;
use crate::error::{At, Result};
use crate::fs::Open;
use crate::id::SessionId;
use crate::json;
use crate::read::{Found, Names};
use crate::session::{Head, Session};
use crate::snapshot::parse_meta;
use bytes::Bytes;

/// Enough for most heads; a longer one is read whole.
const HEAD: usize = 4096;

/// A session in a listing.
#[derive(Debug, Clone)]
pub struct Info {
    /// Id.
    pub id: SessionId,
    /// Head fields; of `perdure` the tags and the parent.
    pub head: Head,
    /// First user prompt, a JSON string, or `null`.
    pub first_prompt: Bytes,
    /// Number of messages.
    pub count: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Revision; 0 for files that know none.
    pub revision: u64,
    /// Last change, nanoseconds since 1970.
    pub changed_ns: i128,
}

/// A page of a listing, newest first.
#[derive(Debug)]
pub struct Page {
    /// Sessions.
    pub infos: Vec<Info>,
    /// Where the next page begins; None at the end.
    pub next: Option<String>,
}

impl Engine {
    /// Ids of all sessions, sorted. What is not a session is left out.
    pub fn list(&self) -> Result<Vec<String>> {
        let mut ids: Vec<String> = Vec::new();
        for stem in self.stems()? {
            if let Ok(Some(info)) = self.info(&stem, 0, 0) {
                ids.push(info.id.to_string());
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Sessions, newest first (last change of snapshot or journal, then id), without their histories.
    pub fn infos(&self, limit: usize, cursor: Option<&str>) -> Result<Page> {
        let after = cursor.map(parse_cursor).transpose()?;
        let mut files = Vec::new();
        for stem in self.stems()? {
            let names = Names::new(stem);
            let Ok(Some(snapshot)) = self.dir().stat(&names.snapshot) else { continue };
            let journal = self.dir().stat(&names.journal).ok().flatten().filter(|j| j.len > 0);
            let changed = journal.map_or(snapshot.mtime_ns, |j| j.mtime_ns.max(snapshot.mtime_ns));
            files.push((changed, names.stem, snapshot.len + journal.map_or(0, |j| j.len)));
        }
        // By stem instead of id, so that only the heads of the page are read; the order is total all the same.
        files.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let mut infos = Vec::new();
        let mut last = None;
        for (changed, stem, bytes) in files {
            let is_after = after.as_ref().is_none_or(|(at, name)| changed < *at || (changed == *at && stem > *name));
            if !is_after {
                continue;
            }
            if infos.len() == limit {
                return Ok(Page { infos, next: last });
            }
            if let Ok(Some(info)) = self.info(&stem, changed, bytes) {
                infos.push(info);
                last = Some(format!("{changed}:{stem}"));
            }
        }
        Ok(Page { infos, next: None })
    }

    fn stems(&self) -> Result<Vec<String>> {
        let names = self.dir().names().at("list the directory", self.path())?;
        let stem = |n: String| n.strip_suffix(".json").filter(|s| !s.starts_with('.')).map(str::to_string);
        Ok(names.into_iter().filter_map(stem).collect())
    }

    /// What a listing says of one file; None if it is not a session, or a deleted one.
    fn info(&self, stem: &str, changed_ns: i128, bytes: u64) -> Result<Option<Info>> {
        let info = self.read_info(stem, changed_ns, bytes)?;
        // Under a name that is not its own nobody would find it; `check` tells of it.
        Ok(info.filter(|info| Names::new(stem.to_string()).fits(&info.id)))
    }

    fn read_info(&self, stem: &str, changed_ns: i128, bytes: u64) -> Result<Option<Info>> {
        let names = Names::new(stem.to_string());
        let path = self.path().join(&names.snapshot);
        let file = self.dir().open(&names.snapshot, Open::Read).at("open", &path)?;
        let head: Bytes = file.read_some(0, HEAD).at("read", &path)?.into();
        let journal = self.dir().stat(&names.journal).ok().flatten().is_some_and(|j| j.len > 0);
        let of = |id, head, first_prompt, count, revision| Info {
            id,
            head,
            first_prompt,
            count,
            bytes,
            revision,
            changed_ns,
        };
        if let Some((id, parsed, meta)) = parse_head(&head).filter(|_| !journal) {
            let (head, first_prompt, count, messages_bytes, revision) = meta;
            if parsed {
                return Ok(Some(of(id, head, first_prompt, count, revision)));
            }
            // The head is longer than what was read: messages_bytes tells how long.
            let whole = file.stat().at("stat", &path)?.len;
            let len = whole.saturating_sub(messages_bytes).saturating_sub(3);
            if len < whole && len <= 64 << 20 {
                let head: Bytes = file.read_some(0, len as usize + 16).at("read", &path)?.into();
                if let Some((id, true, (head, first_prompt, count, _, revision))) = parse_head(&head) {
                    return Ok(Some(of(id, head, first_prompt, count, revision)));
                }
            }
        }
        // Written by others, or with a journal: taken apart as a whole.
        let Some(id) = id_inside(&file.read_from(0).at("read", &path)?.into()) else { return Ok(None) };
        match crate::read::read(self.dir(), self.number(), &names, &id)? {
            Found::Session(stored) => {
                let session: Session = stored.session;
                let count = session.log().len() as u64;
                let revision = session.base().revision();
                let prompt = session.first_prompt();
                Ok(Some(of(id, session.head().clone(), prompt, count, revision)))
            }
            _ => Ok(None),
        }
    }
}

type HeadParts = (Head, Bytes, u64, u64, u64);

/// The beginning of one of our own snapshots: id, whether the head was whole, and what it says.
fn parse_head(text: &Bytes) -> Option<(SessionId, bool, HeadParts)> {
    let mut head = Head::default();
    let (mut id, mut meta, mut whole) = (None, None, false);
    // The walk ends early on purpose: the head ends at the messages, or at what was read.
    let _ = json::members::<crate::snapshot::Flaw>(text, 0, |key, at| {
        if key.of(text) == br#""messages""# {
            whole = true;
            return Err(crate::snapshot::Flaw::new(at, "the head ends here"));
        }
        let value = json::value(text, at)?;
        match key.of(text) {
            br#""id""# => id = json::string_text(value.of(text)).and_then(|id| SessionId::new(id).ok()),
            br#""perdure""# => meta = Some(parse_meta(text, at, &mut head)?),
            _ => head.set(&crate::snapshot::key_name(key.of(text)), text.slice(value.start..value.end)),
        }
        Ok(value.end)
    });
    let meta = meta?;
    let prompt = meta.first_prompt.unwrap_or_else(|| Bytes::from_static(b"null"));
    Some((id?, whole, (head, prompt, meta.count?, meta.messages_bytes?, meta.revision)))
}

fn id_inside(text: &Bytes) -> Option<SessionId> {
    let start = text.iter().position(|b| !b.is_ascii_whitespace())?;
    let mut id = None;
    json::members::<json::Fault>(text, start, |key, at| {
        let value = json::value(text, at)?;
        if key.of(text) == br#""id""# {
            id = json::string_text(value.of(text)).and_then(|id| SessionId::new(id).ok());
        }
        Ok(value.end)
    })
    .ok()?;
    id
}

fn parse_cursor(cursor: &str) -> Result<(i128, String)> {
    let bad = || crate::Error::BadCursor(cursor.to_string());
    let (at, stem) = cursor.split_once(':').ok_or_else(bad)?;
    Ok((at.parse().map_err(|_| bad())?, stem.to_string()))
}
