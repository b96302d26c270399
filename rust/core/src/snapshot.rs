//! The snapshot file (docs/format.md, section 1): writing it from ready bytes, and taking one apart.

use crate::base::Lineage;
use crate::crc::combine;
use crate::error::{Error, Place, Result};
use crate::id::SessionId;
use crate::json::{self, Fault};
use crate::log::{LogBuilder, MessageLog};
use crate::session::{Head, Session};
use bytes::Bytes;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

/// The format this version writes, and the newest it reads.
pub const FORMAT: u64 = 1;
pub(crate) const MESSAGES: &[u8] = b"  \"messages\": [";
pub(crate) const END: &[u8] = b"\n}\n";

/// A snapshot ready to be written.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    head: Vec<u8>,
    log: &'a MessageLog,
    tail: &'static [u8],
    /// CRC of everything behind the `perdure` line.
    pub crc: u32,
}

impl<'a> Image<'a> {
    pub fn new(session: &'a Session, lineage: Option<Lineage>, revision: u64) -> Image<'a> {
        let (head, log) = (session.head(), session.log());
        let tail: &[u8] = if log.is_empty() { b"]\n}\n" } else { b"\n  ]\n}\n" };
        let messages_bytes = MESSAGES.len() + log.wire_len() + tail.len() - END.len();

        // What stands behind the perdure line comes first: its CRC stands in that line.
        let mut rest = Vec::new();
        for (key, value) in &head.fields {
            rest.extend_from_slice(b"  \"");
            rest.extend_from_slice(key.as_bytes());
            rest.extend_from_slice(b"\": ");
            rest.extend_from_slice(value);
            rest.extend_from_slice(b",\n");
        }
        rest.extend_from_slice(MESSAGES);
        let crc = combine(crc32c::crc32c(&rest), log.crc(), log.wire_len());
        let crc = crc32c::crc32c_append(crc, tail);

        let mut out = json::Writer::behind(b"{\n  \"id\": ".to_vec());
        out.string(session.id().as_str().as_bytes());
        out.raw(b",\n  \"perdure\": ");
        out.open(b'{');
        out.key(b"format");
        out.int(FORMAT as i64);
        out.key(b"lineage");
        match lineage {
            Some(lineage) => out.string(lineage.to_string().as_bytes()),
            None => out.raw(b"null"),
        }
        out.key(b"revision");
        out.int(revision as i64);
        out.key(b"message_count");
        out.int(log.len() as i64);
        out.key(b"messages_bytes");
        out.int(messages_bytes as i64);
        out.key(b"first_prompt");
        out.raw(&session.first_prompt());
        out.key(b"tags");
        out.raw(&head.tags);
        out.key(b"parent");
        out.raw(&head.parent);
        for (key, value) in &head.extra {
            out.element();
            out.raw(format!("\"{key}\": ").as_bytes());
            out.raw(value);
        }
        out.key(b"crc32c");
        out.string(format!("{crc:08x}").as_bytes());
        out.close(b'}');
        out.raw(b",\n");
        let mut head = out.into_bytes();
        head.extend_from_slice(&rest);
        Image { head, log, tail, crc }
    }

    pub fn len(&self) -> u64 {
        (self.head.len() + self.log.wire_len() + self.tail.len()) as u64
    }

    /// The file's bytes, gathered from where they lie.
    pub fn pieces(&self) -> Vec<IoSlice<'_>> {
        let wire = self.log.wire().map(IoSlice::new);
        std::iter::once(IoSlice::new(&self.head)).chain(wire).chain(std::iter::once(IoSlice::new(self.tail))).collect()
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len() as usize);
        for piece in self.pieces() {
            bytes.extend_from_slice(&piece);
        }
        bytes
    }

    /// The head alone, as an object.
    pub fn into_head(mut self) -> Vec<u8> {
        self.head.truncate(self.head.len() - MESSAGES.len() - 2);
        self.head.extend_from_slice(END);
        self.head
    }
}

/// A snapshot taken apart.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub id: SessionId,
    pub head: Arc<Head>,
    pub log: MessageLog,
    pub lineage: Option<Lineage>,
    pub revision: u64,
    /// Computed CRC of what stands behind the `perdure` line; of the whole file without one.
    pub crc: u32,
    /// False: the file was changed outside perdure.
    pub crc_fits: bool,
}

/// Something wrong in a file, before its path is known.
#[derive(Debug)]
pub(crate) struct Flaw {
    pub at: Option<usize>,
    pub what: String,
}

impl From<Fault> for Flaw {
    fn from(fault: Fault) -> Flaw {
        Flaw { at: Some(fault.at), what: fault.what.to_string() }
    }
}

impl Flaw {
    pub fn new(at: usize, what: impl Into<String>) -> Flaw {
        Flaw { at: Some(at), what: what.into() }
    }

    pub fn at(self, path: &Path, text: &[u8]) -> Error {
        let place = self.at.map(|at| Place::of(text, at));
        Error::Corrupt { path: path.to_path_buf(), place, reason: self.what }
    }
}

/// Fields whose type a session cannot do without, and how their values begin.
const SHAPES: &[(&str, &[u8], &str)] = &[
    ("config", b"{", "an object"),
    ("context_usage", b"{", "an object"),
    ("total_usage", b"{", "an object"),
    ("tasks", b"[", "an array"),
    ("todos", b"[", "an array"),
    ("tool_names", b"[", "an array"),
    ("created_at", b"0123456789", "a number of Unix seconds"),
    ("updated_at", b"0123456789", "a number of Unix seconds"),
];

/// Refuses a field of the wrong type.
pub(crate) fn check_shape(name: &str, token: &[u8], at: usize) -> Result<(), Flaw> {
    match SHAPES.iter().find(|(field, ..)| *field == name) {
        Some((_, starts, what)) if !token.first().is_some_and(|b| starts.contains(b)) => {
            Err(Flaw::new(at, format!("\"{name}\" is not {what}")))
        }
        _ => Ok(()),
    }
}

/// A canonical copy of a value; shares the file's bytes where they are canonical already.
pub(crate) fn canonical(text: &Bytes, value: json::Value) -> Bytes {
    if value.canonical {
        return text.slice(value.start..value.end);
    }
    let mut out = Vec::new();
    json::respace(value.of(text), &mut out);
    out.into()
}

/// A key as our writer would write it, without its quotes.
pub(crate) fn key_name(token: &[u8]) -> Arc<str> {
    let inner =
        |t: &[u8]| String::from_utf8_lossy(t.get(1..t.len().saturating_sub(1)).unwrap_or_default()).into_owned();
    match json::string_text(token) {
        Some(name) if token.contains(&b'\\') => {
            let mut out = Vec::new();
            json::push_string(&mut out, name.as_bytes());
            inner(&out).into()
        }
        _ => inner(token).into(),
    }
}

impl Snapshot {
    /// Takes a file apart. Everything that can be wrong with it is found here.
    pub fn parse(path: &Path, text: &Bytes) -> Result<Snapshot> {
        parse(text).map_err(|flaw| flaw.at(path, text))
    }
}

fn parse(text: &Bytes) -> Result<Snapshot, Flaw> {
    if text.iter().all(|b| matches!(b, b' ' | b'\n' | b'\r' | b'\t')) {
        return Err(Flaw { at: None, what: format!("the file is empty ({} bytes), not a session", text.len()) });
    }
    json::check_utf8(text)?;
    let start = text.iter().position(|b| !matches!(b, b' ' | b'\n' | b'\r' | b'\t')).unwrap_or(0);
    if text.get(start) != Some(&b'{') {
        return Err(Flaw::new(start, "not a session: the file does not hold a JSON object"));
    }
    let mut head = Head::default();
    let (mut id, mut meta, mut log) = (None, None, None);
    let end = json::members::<Flaw>(text, start, |key, at| {
        let name = key_name(key.of(text));
        if &*name == "messages" {
            let (parsed, end) = parse_messages(text, at)?;
            log = Some(parsed);
            return Ok(end);
        }
        let value = json::value(text, at)?;
        let token = value.of(text);
        match &*name {
            "id" => {
                let name = json::string_text(token).ok_or_else(|| Flaw::new(at, "\"id\" is not a string"))?;
                id = Some(SessionId::new(name).map_err(|e| Flaw::new(at, e.to_string()))?);
            }
            "perdure" => meta = Some((parse_meta(text, at, &mut head)?, value.end)),
            _ => {
                check_shape(&name, token, at)?;
                head.set(&name, canonical(text, value));
            }
        }
        Ok(value.end)
    })?;
    if let Some(extra) = text.get(end..).unwrap_or_default().iter().position(|b| !b.is_ascii_whitespace()) {
        return Err(Flaw::new(end + extra, "something stands behind the session's object"));
    }
    let id = id.ok_or_else(|| Flaw::new(start, "not a session: it has no \"id\""))?;
    let log = log.ok_or_else(|| Flaw::new(start, "not a session: it has no \"messages\""))?;
    if let Some(todos) = head.remove("todos") {
        if head.get("tasks").is_none() {
            head.set("tasks", todos);
        }
    }
    let (lineage, revision, crc, crc_fits) = match meta {
        None => (None, 0, crc32c::crc32c(text), true),
        Some((meta, meta_end)) => {
            let rest = text.get(meta_end..).unwrap_or_default();
            let behind = memchr::memchr(b'\n', rest).map_or(rest.len(), |i| i + 1);
            let crc = crc32c::crc32c(rest.get(behind..).unwrap_or_default());
            let fits =
                meta.crc.is_none_or(|written| written == crc) && meta.count.is_none_or(|c| c == log.len() as u64);
            (meta.lineage, meta.revision, crc, fits)
        }
    };
    Ok(Snapshot { id, head: Arc::new(head), log, lineage, revision, crc, crc_fits })
}

fn parse_messages(text: &Bytes, at: usize) -> Result<(MessageLog, usize), Flaw> {
    if text.get(at) != Some(&b'[') {
        return Err(Flaw::new(at, "\"messages\" is not an array"));
    }
    let mut builder = LogBuilder::default();
    let end = json::elements::<Flaw>(text, at, |message| {
        if text.get(message.start) != Some(&b'{') {
            return Err(Flaw::new(message.start, "a message is not an object"));
        }
        if u32::try_from(message.end - message.start).is_err() {
            return Err(Flaw::new(message.start, "a message of over 4 GiB"));
        }
        builder.push(text, message.start, message.end, !message.canonical);
        Ok(())
    })?;
    Ok((builder.finish(text), end))
}

/// What the `perdure` field says.
#[derive(Debug, Default)]
pub(crate) struct Meta {
    pub lineage: Option<Lineage>,
    pub revision: u64,
    pub count: Option<u64>,
    pub messages_bytes: Option<u64>,
    pub first_prompt: Option<Bytes>,
    pub crc: Option<u32>,
}

/// What the `perdure` field says, from a snapshot's first bytes; None if it is not among them.
pub(crate) fn peek_meta(head: &Bytes) -> Option<Meta> {
    let mut meta = None;
    // Where the bytes end the walk ends too.
    let _ = json::members::<Flaw>(head, 0, |key, at| {
        let value = json::value(head, at)?;
        if key.of(head) == br#""perdure""# {
            meta = Some(parse_meta(head, at, &mut Head::default())?);
            return Err(Flaw::new(at, "found"));
        }
        Ok(value.end)
    });
    meta
}

pub(crate) fn parse_meta(text: &Bytes, at: usize, head: &mut Head) -> Result<Meta, Flaw> {
    if text.get(at) != Some(&b'{') {
        return Err(Flaw::new(at, "\"perdure\" is not an object"));
    }
    let mut meta = Meta::default();
    let mut format = None;
    json::members::<Flaw>(text, at, |key, at| {
        let value = json::value(text, at)?;
        let token = value.of(text);
        let wrong = |what: &str| Flaw::new(at, format!("perdure.{} is not {what}", key_name(key.of(text))));
        let int = || std::str::from_utf8(token).ok().and_then(|t| t.parse::<u64>().ok());
        match &*key_name(key.of(text)) {
            "format" => format = Some(int().ok_or_else(|| wrong("a whole number"))?),
            "lineage" => {
                let parsed = json::string_text(token).and_then(|t| Lineage::parse(&t));
                if token != b"null" {
                    meta.lineage = Some(parsed.ok_or_else(|| wrong("32 lower-case hex digits"))?);
                }
            }
            "revision" => {
                // The greatest revision has to have a successor that every JSON reader can hold.
                let revision = int().filter(|r| *r < (1 << 53));
                meta.revision = revision.ok_or_else(|| wrong("a whole number below 2^53"))?;
            }
            "message_count" => meta.count = Some(int().ok_or_else(|| wrong("a whole number"))?),
            "messages_bytes" => meta.messages_bytes = Some(int().ok_or_else(|| wrong("a whole number"))?),
            "first_prompt" => meta.first_prompt = Some(canonical(text, value)),
            "tags" => {
                if token.first() != Some(&b'[') {
                    return Err(wrong("a list of strings"));
                }
                json::elements::<Flaw>(text, at, |tag| match text.get(tag.start) {
                    Some(b'"') => Ok(()),
                    _ => Err(wrong("a list of strings")),
                })?;
                head.tags = canonical(text, value);
            }
            "parent" => {
                if !matches!(token.first(), Some(b'{' | b'n')) {
                    return Err(wrong("an object or null"));
                }
                head.parent = canonical(text, value);
            }
            "crc32c" if token == b"null" => {}
            "crc32c" => {
                let hex = json::string_text(token).filter(|t| t.len() == 8);
                let crc = hex.and_then(|t| u32::from_str_radix(&t, 16).ok());
                meta.crc = Some(crc.ok_or_else(|| wrong("8 hex digits or null"))?);
            }
            other => head.extra.push((other.into(), canonical(text, value))),
        }
        Ok(value.end)
    })?;
    match format {
        Some(1..=FORMAT) => {}
        Some(newer) => {
            return Err(Flaw::new(
                at,
                format!(
                "format {newer} is newer than this perdure reads ({FORMAT}); upgrade perdure. The file is left alone"
            ),
            ))
        }
        None => return Err(Flaw::new(at, "perdure.format is missing")),
    }
    if meta.lineage.is_none() != (meta.revision == 0) {
        return Err(Flaw::new(
            at,
            "perdure.lineage and perdure.revision do not go together: both or neither (null, 0)",
        ));
    }
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Snapshot> {
        Snapshot::parse(Path::new("s.json"), &Bytes::copy_from_slice(text.as_bytes()))
    }

    fn sample() -> Session {
        let mut head = Head::default();
        head.set("config", Bytes::from_static(br#"{"name": ""}"#));
        head.set("created_at", Bytes::from_static(b"1795344689"));
        head.extra.push(("later".into(), Bytes::from_static(b"[1, 2]")));
        let mut session = Session::new(SessionId::new("s").unwrap(), head);
        session.append(&[
            r#"{"role": "user", "content": [{"type": "text", "text": "Refactor auth"}]}"#,
            r#"{"role": "assistant", "content": [{"type": "text", "text": "Done."}]}"#,
        ]);
        session
    }

    #[test]
    fn what_is_written_is_read() {
        let session = sample();
        let lineage = Lineage([7; 16]);
        let image = Image::new(&session, Some(lineage), 3);
        let bytes: Bytes = image.to_vec().into();
        assert_eq!(image.len() as usize, bytes.len());
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.contains(r#""messages_bytes": 171, "first_prompt": "Refactor auth", "tags": [], "parent": null, "later": [1, 2], "crc32c""#), "{text}");
        let messages = bytes.len() - 3 - 171;
        assert!(text[messages..].starts_with("  \"messages\": ["));
        assert!(text[..bytes.len() - 3].ends_with(']'));

        let read = Snapshot::parse(Path::new("s.json"), &bytes).unwrap();
        assert_eq!((read.lineage, read.revision, read.crc, read.crc_fits), (Some(lineage), 3, image.crc, true));
        assert_eq!(*read.head, *session.head());
        assert_eq!(read.log.iter_from(0).collect::<Vec<_>>(), session.log().iter_from(0).collect::<Vec<_>>());
        assert_eq!(read.log.crc(), session.log().crc());
        // Written again it is the same file to the byte.
        let again = Session::stored(read.id, read.head, read.log, Some(lineage), 3, None);
        assert_eq!(Image::new(&again, Some(lineage), 3).to_vec(), bytes);
    }

    #[test]
    fn a_changed_file_loads_and_is_told() {
        let session = sample();
        let image = String::from_utf8(Image::new(&session, Some(Lineage([7; 16])), 3).to_vec()).unwrap();
        let read = parse_text(&image.replace("Done.", "Gone.")).unwrap();
        assert!(!read.crc_fits);
        assert!(parse_text(&image).unwrap().crc_fits);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let image = Image::new(&sample(), Some(Lineage([7; 16])), 3).to_vec();
        // Without the last newline it is still whole.
        for end in 0..image.len() - 1 {
            let cut = Bytes::copy_from_slice(&image[..end]);
            assert!(Snapshot::parse(Path::new("s.json"), &cut).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn wrong_shapes_are_named_with_their_place() {
        for (text, place, reason) in [
            ("[1]", Some((1, 1)), "JSON object"),
            ("\n {\"messages\": []}", Some((2, 2)), "no \"id\""),
            ("{\"id\": \"a\"}", Some((1, 1)), "no \"messages\""),
            ("{\"id\": 7, \"messages\": []}", Some((1, 8)), "\"id\" is not a string"),
            ("{\"id\": \"a\", \"messages\": {}}", Some((1, 25)), "not an array"),
            ("{\"id\": \"a\",\n\"messages\": [1]}", Some((2, 14)), "not an object"),
            ("{\"id\": \"a\", \"config\": [], \"messages\": []}", Some((1, 23)), "\"config\" is not an object"),
            ("{\"id\": \"a\", \"perdure\": {\"format\": 2}, \"messages\": []}", Some((1, 24)), "newer"),
            ("{\"id\": \"a\", \"messages\": []} x", Some((1, 29)), "behind"),
            ("  \n", None, "empty"),
        ] {
            match parse_text(text) {
                Err(Error::Corrupt { place: at, reason: why, .. }) => {
                    assert_eq!(at.map(|p| (p.line, p.column)), place, "{text}");
                    assert!(why.contains(reason), "{text}: {why}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn foreign_layouts_lose_nothing_but_white_space() {
        let text = "{\n  \"id\": \"a\",\n  \"messages\": [\n    {\n      \"n\": 1.50,\n      \"u\": \"\\u00e9\\ud83d\"\n    },\n    {\"a\":1}, {}\n  ],\n  \"todos\": [ ]\n}";
        let read = parse_text(text).unwrap();
        let messages: Vec<_> = read.log.iter_from(0).collect();
        assert_eq!(messages, [&br#"{"n": 1.50, "u": "\u00e9\ud83d"}"#[..], br#"{"a": 1}"#, b"{}"]);
        assert_eq!(read.head.get("tasks").unwrap(), &b"[]"[..]);
        assert_eq!(read.revision, 0);
    }
}
