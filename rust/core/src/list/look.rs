//! What a listing says of one session, from the first bytes of its snapshot wherever they tell.

use super::{skim, Info};
use crate::fs::File;
use crate::id::SessionId;
use crate::json;
use crate::read::Names;
use crate::session::{Head, Session};
use crate::snapshot::{key_name, parse_meta, Flaw, Meta, Snapshot};
use bytes::Bytes;
use std::io;
use std::path::Path;

/// Enough for most heads.
const HEAD: usize = 4096;
/// A head that is longer than this is read with the rest of the file.
const LONGEST_HEAD: u64 = 64 << 20;
/// What stands behind the messages.
const END: u64 = 3;

/// The files of one session, open.
pub(super) struct Files {
    pub names: Names,
    pub snapshot: Box<dyn File>,
    pub journal: Option<Box<dyn File>>,
}

/// None: not a session, or a deleted one. An error: all of both files has to be read to know.
pub(super) type Look = Result<Option<Info>, Unclear>;

/// A look was not enough.
#[derive(Debug)]
pub(super) struct Unclear;

impl From<io::Error> for Unclear {
    fn from(_: io::Error) -> Unclear {
        Unclear
    }
}

impl From<json::Fault> for Unclear {
    fn from(_: json::Fault) -> Unclear {
        Unclear
    }
}

/// The first bytes of one of our own snapshots.
#[derive(Debug)]
pub(super) struct Beginning {
    pub id: SessionId,
    pub head: Head,
    pub meta: Meta,
    pub count: u64,
    messages_bytes: u64,
    /// Where the messages begin; None if the bytes ended before.
    messages_at: Option<u64>,
    /// Length of the file; 0 if only its id was looked for.
    pub len: u64,
}

/// Looks into a session's files. With `only_id` nothing else needs to be right.
pub(super) fn look(files: &Files, only_id: bool) -> Look {
    let Some(mut beginning) = beginning(&*files.snapshot, only_id)? else {
        return if files.journal.is_some() { Err(Unclear) } else { foreign(&*files.snapshot) };
    };
    if let Some(journal) = &files.journal {
        let deleted = match only_id {
            true => skim::is_deleted(&**journal)?,
            false => !skim::apply(&**journal, &mut beginning)?,
        };
        if deleted {
            return Ok(None);
        }
    }
    Ok(Some(Info {
        id: beginning.id,
        head: beginning.head,
        first_prompt: beginning.meta.first_prompt.unwrap_or_else(|| Bytes::from_static(b"null")),
        count: beginning.count,
        bytes: 0,
        revision: beginning.meta.revision,
        changed_ns: 0,
    }))
}

/// None: not as we write it.
fn beginning(file: &dyn File, only_id: bool) -> Result<Option<Beginning>, Unclear> {
    let text: Bytes = file.read_some(0, HEAD)?.into();
    let Some(mut found) = parse(&text) else { return Ok(None) };
    if only_id && text.len() == HEAD {
        return Ok(Some(found));
    }
    found.len = file.stat()?.len;
    let Some(head_len) = found.len.checked_sub(END).and_then(|len| len.checked_sub(found.messages_bytes)) else {
        return Ok(None);
    };
    if found.messages_at.is_none() && text.len() == HEAD && head_len <= LONGEST_HEAD {
        let len = found.len;
        let text: Bytes = file.read_some(0, head_len as usize + HEAD)?.into();
        let Some(longer) = parse(&text) else { return Ok(None) };
        found = Beginning { len, ..longer };
    }
    // If the lengths do not fit it was changed by others, and what it says of its messages may be wrong.
    Ok((found.messages_at == Some(head_len)).then_some(found))
}

fn parse(text: &Bytes) -> Option<Beginning> {
    let mut head = Head::default();
    let (mut id, mut meta, mut messages_at) = (None, None, None);
    // The walk ends early on purpose: the head ends at the messages, or at what was read.
    let _ = json::members::<Flaw>(text, 0, |key, at| {
        if key.of(text) == br#""messages""# {
            messages_at = key.start.checked_sub(2).map(|at| at as u64); // the two spaces before it
            return Err(Flaw::new(at, "the head ends here"));
        }
        let value = json::value(text, at)?;
        match key.of(text) {
            br#""id""# => id = json::string_text(value.of(text)).and_then(|id| SessionId::new(id).ok()),
            br#""perdure""# => meta = Some(parse_meta(text, at, &mut head)?),
            _ => head.set(&key_name(key.of(text)), text.slice(value.start..value.end)),
        }
        Ok(value.end)
    });
    let meta = meta?;
    let (count, messages_bytes) = (meta.count?, meta.messages_bytes?);
    Some(Beginning { id: id?, head, meta, count, messages_bytes, messages_at, len: 0 })
}

/// A file that others wrote or changed: taken apart as a whole.
fn foreign(file: &dyn File) -> Look {
    let text = file.read_from(0)?.into();
    let Ok(parsed) = Snapshot::parse(Path::new(""), &text) else { return Ok(None) };
    let session = Session::stored(parsed.id, parsed.head, parsed.log, parsed.lineage, parsed.revision, None);
    Ok(Some(info_of(&session)))
}

/// What a listing says of a session that was read as a whole.
pub(super) fn info_of(session: &Session) -> Info {
    Info {
        id: session.id().clone(),
        head: session.head().clone(),
        first_prompt: session.first_prompt(),
        count: session.log().len() as u64,
        bytes: 0,
        revision: session.base().revision(),
        changed_ns: 0,
    }
}

/// The id that a file holds.
pub(super) fn id_inside(text: &[u8]) -> Option<SessionId> {
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
