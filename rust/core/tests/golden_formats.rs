//! Files of format 1, written by `data/format1/make.py` from docs/format.md alone, load for ever to the same states and
//! are written to the byte; A3S Code's files lose nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use perdure_core::fs::fault::FaultDir;
use perdure_core::{Engine, Lineage, SaveOptions, Session};
use serde_json::Value;
use support::{engine, id};

const LINEAGE: &str = "0123456789abcdef0123456789abcdef";
const USER: &str = r#"{"role": "user", "content": [{"type": "text", "text": "Refactor auth"}]}"#;
const DONE: &str = r#"{"role": "assistant", "content": [{"type": "text", "text": "Done."}]}"#;

fn data(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The golden session's files in a directory of their own.
fn golden(name: &str, journal: bool) -> FaultDir {
    let dir = FaultDir::default();
    dir.put(&format!("{name}.json"), &data(&format!("format1/{name}.json")));
    if journal {
        dir.put(&format!("{name}.journal"), &data(&format!("format1/{name}.journal")));
    }
    dir
}

/// Loads it; expects this many warnings.
fn load(dir: &FaultDir, name: &str, warnings: usize) -> Session {
    let loaded = engine(dir).load(&id(name)).unwrap().unwrap();
    assert_eq!(loaded.warnings.len(), warnings, "{:?}", loaded.warnings);
    loaded.session
}

fn check(session: &Session, revision: u64, head: &[(&str, &str)], messages: &[&str]) {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    let found: Vec<_> = session.head().fields.iter().map(|(k, v)| (k.to_string(), text(v))).collect();
    let head: Vec<_> = head.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    assert_eq!(found, head);
    assert_eq!(session.log().iter_from(0).map(|m| text(&m)).collect::<Vec<_>>(), messages);
    let saved = session.base().saved().unwrap();
    assert_eq!((saved.revision, saved.lineage), (revision, Lineage::parse(LINEAGE)));
}

const FIELDS: [(&str, &str); 4] = [
    ("config", r#"{"name": "", "workspace": "/home/me/app"}"#),
    ("state", r#""Active""#),
    ("created_at", "1795344689"),
    ("tasks", "[]"),
];

#[test]
fn snapshots() {
    check(&load(&golden("empty", false), "empty", 0), 1, &[], &[]);
    let plain = load(&golden("plain", false), "plain", 0);
    check(&plain, 7, &FIELDS, &[USER, DONE]);
    assert_eq!(&plain.head().tags[..], r#"["a", "é"]"#.as_bytes());
    let parent: Value = serde_json::from_slice(&plain.head().parent).unwrap();
    assert_eq!(parent, serde_json::json!({"id": "a/b", "lineage": LINEAGE, "revision": 3, "at": 2}));
    assert_eq!(plain.head().extra.len(), 1);
    assert_eq!((&*plain.head().extra[0].0, &plain.head().extra[0].1[..]), ("later", &br#"[1, {"x": 1.50}]"#[..]));
    check(&load(&golden("unchecked", false), "unchecked", 0), 7, &FIELDS, &[USER, DONE]);
    check(
        &load(&golden("escapes", false), "escapes", 0),
        2,
        &[(r#"a\"b"#, r#""\u2028""#), ("x", "1.0"), ("y", "[[], {}]")],
        &[
            r#"{"role": "user", "content": "\"\\\b\t\n\f\r\u0000\u001f\u007f\u2028\ud83d é 😀"}"#,
            r#"{"n": [1e5, 1.50, -0.0, 123456789012345678901234567890, 1E+2, true, null], "dup": 1, "dup": 2, "": {}}"#,
            r#"{"\u0041": "\u00e9\/", "ключ": []}"#,
        ],
    );
}

const AFTER_STEPS: ([(&str, &str); 3], [&str; 2]) =
    ([FIELDS[0], ("state", r#""Done""#), FIELDS[2]], [USER, r#"{"n": "é\n"}"#]);

#[test]
fn snapshots_with_a_journal() {
    let steps = load(&golden("steps", true), "steps", 0);
    check(&steps, 10, &AFTER_STEPS.0, &AFTER_STEPS.1);
    assert_eq!(&steps.head().tags[..], br#"["t"]"#);
    assert_eq!((&*steps.head().extra[0].0, &steps.head().extra[0].1[..]), ("later", &b"1"[..]));

    check(&load(&golden("folded", true), "folded", 0), 8, &FIELDS, &[USER, DONE]);

    let mut torn = FIELDS.to_vec();
    torn.push(("updated_at", "1795344690"));
    check(&load(&golden("torn", true), "torn", 1), 8, &torn, &[USER, DONE, r#"{"n": 3}"#, r#"{"n": 4}"#]);

    let deleted = golden("deleted", true);
    assert!(engine(&deleted).load(&id("deleted")).unwrap().is_none());
    assert!(!engine(&deleted).exists(&id("deleted")).unwrap());
    assert!(engine(&deleted).list().unwrap().is_empty());
}

#[test]
fn loading_and_listing_change_nothing() {
    for (name, journal) in [("plain", false), ("steps", true), ("folded", true), ("torn", true), ("deleted", true)] {
        let dir = golden(name, journal);
        let one = engine(&dir);
        let _ = one.load(&id(name)).unwrap();
        let _ = one.infos(10, None).unwrap();
        one.close().unwrap();
        assert!(dir.trace().iter().all(|call| !call.changes), "{name}: {:?}", dir.trace());
    }
}

#[test]
fn what_was_loaded_is_written_to_the_byte() {
    for name in ["empty", "plain", "escapes"] {
        let session = load(&golden(name, false), name, 0);
        let (written, expected) = (session.to_json(), data(&format!("format1/{name}.json")));
        assert_eq!(String::from_utf8(written).unwrap(), String::from_utf8(expected).unwrap());
    }
}

/// Bit by bit, as RFC 3720 has it: not the crate that the engine uses.
fn crc32c(bytes: &[u8], crc: u32) -> u32 {
    !bytes.iter().fold(!crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// The journal as it would be had it been written at the golden files' time.
fn at_golden_time(journal: &str) -> String {
    let (mut out, mut crc) = (String::new(), 0);
    for line in journal.lines() {
        let (_, payload) = line.strip_suffix('}').unwrap().split_once(r#"", "#).unwrap();
        let payload = match payload.split_once(r#""at": "#) {
            None => payload.to_string(),
            Some((before, after)) => {
                let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
                format!(r#"{before}"at": 1795344690{after}"#)
            }
        };
        crc = crc32c(payload.as_bytes(), crc);
        out.push_str(&format!("{{\"bytes\": {}, \"crc32c\": \"{crc:08x}\", {payload}}}\n", payload.len()));
    }
    out
}

fn save(engine: &Engine, session: &mut Session, step: bool) {
    let written = session.clone();
    let receipt = engine.save(&written, &SaveOptions { step, ..SaveOptions::default() }).unwrap();
    session.settle(&written, receipt.saved);
}

#[test]
fn journals_are_written_to_the_byte() {
    let dir = golden("steps", false);
    let one = engine(&dir);
    // Loaded by the engine that saves: another one's base would make a snapshot of the first step.
    let mut session = one.load(&id("steps")).unwrap().unwrap().session;
    session.append(&[r#"{"n": 3}"#, r#"{"n": 4}"#]);
    session.head_mut().set("updated_at", "1795344690".into());
    save(&one, &mut session, true);
    session.truncate(1);
    session.append(&["{\"n\": \"é\\n\"}"]);
    session.head_mut().set("state", r#""Done""#.into());
    session.head_mut().remove("tasks");
    save(&one, &mut session, true);
    session.head_mut().remove("updated_at");
    session.head_mut().tags = r#"["t"]"#.into();
    session.head_mut().extra.push(("later".into(), "1".into()));
    save(&one, &mut session, true);
    let written = String::from_utf8(dir.get("steps.journal").unwrap()).unwrap();
    let expected = String::from_utf8(data("format1/steps.journal")).unwrap();
    assert_eq!(at_golden_time(&expected), expected);
    assert_eq!(at_golden_time(&written), expected);

    // The tombstone: what delete() leaves if it is stopped right behind its mark.
    let dir = golden("deleted", false);
    let one = engine(&dir);
    let mut session = one.load(&id("deleted")).unwrap().unwrap().session;
    session.append(&[r#"{"n": 3}"#, r#"{"n": 4}"#]);
    session.head_mut().set("updated_at", "1795344690".into());
    save(&one, &mut session, true);
    let mut operations = dir.operations();
    let stopped = loop {
        let copy = dir.copy();
        copy.plan(operations - dir.operations(), perdure_core::fs::fault::Fault::Crash);
        let done = engine(&copy).delete(&id("deleted"), &SaveOptions::default());
        if copy.trace().last().is_some_and(|call| call.what == "remove" && call.on == "deleted.json") {
            assert!(done.is_err());
            break copy;
        }
        operations += 1;
    };
    let expected = String::from_utf8(data("format1/deleted.journal")).unwrap();
    assert_eq!(at_golden_time(&String::from_utf8(stopped.get("deleted.journal").unwrap()).unwrap()), expected);
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[test]
fn a3s_files_lose_nothing() {
    for name in ["plain", "tools"] {
        let original: Value = serde_json::from_slice(&data(&format!("a3s/{name}.json"))).unwrap();
        let original = original.as_object().unwrap();
        let name = original["id"].as_str().unwrap();
        let dir = FaultDir::default();
        dir.put(&format!("{name}.json"), &data(&format!("a3s/{name}.json")));
        let one = engine(&dir);
        let mut session = one.load(&id(name)).unwrap().unwrap().session;
        assert_eq!((session.base().revision(), session.base().saved().unwrap().lineage), (0, None));

        let messages: Vec<Value> = session.log().iter_from(0).map(|m| serde_json::from_slice(&m).unwrap()).collect();
        assert!(!messages.is_empty());
        assert_eq!(Value::from(messages.clone()), original["messages"]);
        for (key, value) in original.iter().filter(|(k, _)| !["id", "messages"].contains(&k.as_str())) {
            let found: Value =
                serde_json::from_slice(session.head().get(key).unwrap_or_else(|| panic!("{key} is lost"))).unwrap();
            assert_eq!((&found, kind(&found)), (value, kind(value)), "{key}");
        }

        session.append(&[DONE]);
        save(&one, &mut session, false);
        let text = dir.get(&format!("{name}.json")).unwrap();
        let saved: Value = serde_json::from_slice(&text).unwrap();
        let saved = saved.as_object().unwrap();
        for (key, value) in original.iter().filter(|(k, _)| *k != "messages") {
            assert_eq!((&saved[key], kind(&saved[key])), (value, kind(value)), "{key} after a save");
        }
        let mut expected = messages;
        expected.push(serde_json::from_str(DONE).unwrap());
        assert_eq!(saved["messages"], Value::from(expected));
        // Only `perdure` is new; the order is kept but for the messages, which go last.
        let order: Vec<_> = saved.keys().filter(|k| *k != "perdure" && *k != "messages").collect();
        assert_eq!(order, original.keys().filter(|k| *k != "messages").collect::<Vec<_>>());
        assert_eq!(saved.keys().next_back().unwrap(), "messages");
    }
}
