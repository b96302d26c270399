//! A listing says of every session what loading it would say, and reads little for that.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cost;
mod pages;
#[path = "../support/mod.rs"]
mod support;
mod watched;

use perdure_core::fs::fault::{Fault, FaultDir};
use perdure_core::{Engine, Head, Info, Page, SaveOptions, Session};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use support::{engine, id};

fn text(role: &str, text: &str) -> String {
    format!(r#"{{"role": "{role}", "content": [{{"type": "text", "text": "{text}"}}]}}"#)
}

fn fresh(name: &str, messages: &[String]) -> Session {
    let mut session = Session::new(id(name), Head::default());
    session.head_mut().set("config", format!(r#"{{"name": "name of {}"}}"#, name.len()).into());
    session.append(messages);
    session
}

fn save(engine: &Engine, session: &mut Session, step: bool) {
    let written = session.clone();
    let receipt = engine.save(&written, &SaveOptions { step, ..SaveOptions::default() }).unwrap();
    session.settle(&written, receipt.saved);
}

/// A session with a prompt in its snapshot and some steps in its journal.
fn with_steps(dir: &FaultDir, name: &str, steps: usize) -> Session {
    let one = engine(dir);
    let mut session = fresh(name, &[text("user", "prompt"), text("assistant", "reply")]);
    save(&one, &mut session, false);
    for n in 0..steps {
        session.append(&[text("assistant", &format!("step {n}")), "{}".to_string()]);
        session.head_mut().set("updated_at", n.to_string().into());
        session.head_mut().tags = format!(r#"["t{n}"]"#).into();
        save(&one, &mut session, true);
    }
    session
}

/// All that a listing says of a session.
type Said = (Head, bytes::Bytes, u64, u64);

fn said(info: &Info) -> Said {
    (info.head.clone(), info.first_prompt.clone(), info.count, info.revision)
}

fn said_by_load(session: &Session) -> Said {
    (session.head().clone(), session.first_prompt(), session.log().len() as u64, session.base().revision())
}

fn listed(engine: &Engine) -> BTreeMap<String, Said> {
    let Page { infos, next } = engine.infos(usize::MAX, None).unwrap();
    assert_eq!(next, None);
    let all: BTreeMap<_, _> = infos.iter().map(|info| (info.id.to_string(), said(info))).collect();
    assert_eq!(all.len(), infos.len(), "an id twice");
    all
}

/// What loading says of these ids; those that cannot be loaded are left out.
fn loaded<'a>(dir: &FaultDir, ids: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, Said> {
    let load = |name: &str| engine(dir).load(&id(name)).ok().flatten().map(|found| said_by_load(&found.session));
    ids.into_iter().filter_map(|name| load(name).map(|said| (name.to_string(), said))).collect()
}

#[derive(Debug, Clone)]
enum Op {
    Append(u8, usize),
    Truncate(usize),
    Replace(usize),
    Set(String, usize),
    Unset(String),
    Tags(u8),
    /// Members of `perdure` that a later version may write, and the parent.
    Meta(u8),
    Save {
        step: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let key = || prop_oneof!["[a-c]", Just("é\\n".to_string())];
    prop_oneof![
        6 => (0u8..4, 1usize..9).prop_map(|(kind, count)| Op::Append(kind, count)),
        1 => (0usize..30).prop_map(Op::Truncate),
        1 => (0usize..30).prop_map(Op::Replace),
        2 => (key(), prop_oneof![9 => 0usize..20, 1 => 3000usize..9000]).prop_map(|(key, size)| Op::Set(key, size)),
        1 => key().prop_map(Op::Unset),
        1 => any::<u8>().prop_map(Op::Tags),
        1 => (0u8..3).prop_map(Op::Meta),
        6 => prop::bool::weighted(0.8).prop_map(|step| Op::Save { step }),
    ]
}

fn message(kind: u8, n: usize) -> String {
    match kind {
        0 => text("user", &format!("prompt {n}")),
        1 => text("assistant", &format!("reply, \\\"messages\\\": [{n}, {{}}]")),
        2 => r#"{"role": "user", "content": [{"type": "tool_result"}]}"#.to_string(),
        _ => format!(r#"{{"messages": [1, 2], "pad": "{}"}}"#, "x".repeat(n * 1000)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]
    #[test]
    fn a_listing_says_what_loading_says(
        sessions in prop::collection::btree_map("[a-zA-Z0-9/._ é]{1,6}", prop::collection::vec(op(), 1..25), 1..14)
    ) {
        let dir = FaultDir::default();
        let one = engine(&dir);
        for (name, ops) in &sessions {
            let mut session = fresh(name, &[]);
            for op in ops {
                match op {
                    Op::Append(kind, count) => session.append(&(0..*count).map(|n| message(*kind, n)).collect::<Vec<_>>()),
                    Op::Truncate(count) => session.truncate(*count),
                    Op::Replace(at) if *at < session.log().len() => session.replace(*at, message(0, 99).as_bytes()),
                    Op::Replace(_) => {}
                    Op::Set(key, size) => session.head_mut().set(key, format!("\"{}\"", "v".repeat(*size)).into()),
                    Op::Unset(key) => drop(session.head_mut().remove(key)),
                    Op::Tags(tag) => session.head_mut().tags = format!("[\"{tag}\"]").into(),
                    Op::Meta(count) => {
                        session.head_mut().extra = (0..*count).map(|n| (format!("later{n}").into(), "{}".into())).collect();
                        session.head_mut().parent = format!(r#"{{"id": "p", "at": {count}}}"#).into();
                    }
                    Op::Save { step } => save(&one, &mut session, *step),
                }
            }
        }
        let names = || sessions.keys().map(String::as_str);
        let expected = loaded(&dir, names());
        prop_assert_eq!(listed(&engine(&dir)), expected.clone());
        prop_assert_eq!(engine(&dir).list().unwrap(), expected.keys().cloned().collect::<Vec<_>>());
        let infos = one.infos(usize::MAX, None).unwrap().infos;
        for info in &infos {
            let stem = info.id.stem();
            let len = |ending: &str| dir.get(&format!("{stem}.{ending}")).map_or(0, |bytes| bytes.len() as u64);
            prop_assert_eq!(info.bytes, len("json") + len("journal"));
        }
    }
}

/// Many cases on many threads: a corrupt session is read again and again, with pauses.
fn in_parallel<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for cases in cases.chunks(cases.len().div_ceil(64).max(1)) {
            scope.spawn(|| cases.iter().for_each(&check));
        }
    });
}

/// Snapshot and journal as they may lie there: a listing agrees with loading, or leaves out what cannot be loaded.
fn agrees(snapshot: &[u8], journal: &[u8], what: &str) {
    let dir = FaultDir::default();
    dir.put("s.json", snapshot);
    dir.put("s.journal", journal);
    let one = engine(&dir);
    let expected = loaded(&dir, ["s"]);
    assert_eq!(listed(&one), expected, "{what}");
    if journal.is_empty() || !expected.is_empty() {
        assert_eq!(one.list().unwrap(), expected.keys().cloned().collect::<Vec<_>>(), "{what}");
    }
}

fn files(dir: &FaultDir, stem: &str) -> (Vec<u8>, Vec<u8>) {
    (dir.get(&format!("{stem}.json")).unwrap(), dir.get(&format!("{stem}.journal")).unwrap_or_default())
}

#[test]
fn torn_tails_and_holes() {
    let dir = FaultDir::default();
    with_steps(&dir, "s", 3);
    let (snapshot, journal) = files(&dir, "s");
    in_parallel(&(0..journal.len()).collect::<Vec<_>>(), |at| {
        agrees(&snapshot, &journal[..*at], &format!("cut at {at}"));
        let mut torn = journal.clone();
        torn[*at] = 0;
        agrees(&snapshot, &torn, &format!("NUL at {at}"));
        torn[*at..].fill(0);
        agrees(&snapshot, &torn, &format!("NULs from {at}"));
    });
}

/// Of damage that only a CRC shows a listing need not know; but it must stand it.
#[test]
fn damage_is_left_out_or_not_seen() {
    let dir = FaultDir::default();
    with_steps(&dir, "s", 2);
    let (snapshot, journal) = files(&dir, "s");
    let flips: Vec<_> = (0..journal.len()).flat_map(|at| [(at, 1), (at, 0x20), (at, 0x80)]).collect();
    in_parallel(&flips, |(at, mask)| {
        let damaged = FaultDir::default();
        let mut flipped = journal.clone();
        flipped[*at] ^= mask;
        damaged.put("s.json", &snapshot);
        damaged.put("s.journal", &flipped);
        let infos = listed(&engine(&damaged));
        for (name, said) in loaded(&damaged, ["s"]) {
            assert_eq!(infos.get(&name), Some(&said), "byte {at} ^ {mask}");
        }
        assert_eq!(engine(&damaged).list().unwrap(), ["s"]);
    });
    in_parallel(&(0..snapshot.len()).collect::<Vec<_>>(), |cut| {
        agrees(&snapshot[..*cut], &[], &format!("snapshot cut at {cut}"));
        agrees(&snapshot[..*cut], &journal, &format!("snapshot under a journal cut at {cut}"));
    });
}

#[test]
fn journals_that_do_not_stand_on_the_snapshot() {
    let (dir, other) = (FaultDir::default(), FaultDir::default());
    let mut session = with_steps(&dir, "s", 3);
    let (base, journal) = files(&dir, "s");
    save(&engine(&dir), &mut session, false);
    let (folded, emptied) = files(&dir, "s");
    assert!(emptied.is_empty());
    agrees(&folded, &journal, "folded");
    let lines: Vec<_> = journal.split_inclusive(|b| *b == b'\n').collect();
    for keep in 1..lines.len() {
        agrees(&folded, &lines[..keep].concat(), "folded, and cut");
        agrees(&base, &[&lines[..keep], &lines[keep + 1..]].concat().concat(), "a line is missing");
    }
    agrees(&base, &[lines.concat(), lines[0].to_vec()].concat(), "a second header");
    agrees(&base, &lines[1..].concat(), "no header");
    session.append(&["{}"]);
    save(&engine(&dir), &mut session, true);
    let (_, later) = files(&dir, "s");
    agrees(&base, &later, "of a later snapshot");
    agrees(&folded, &later, "of this one");
    agrees(&base, &[&journal[..], b"{}\n"].concat(), "a line that is too short");
    let longer = String::from_utf8(lines[3].to_vec()).unwrap().replacen("\"bytes\": ", "\"bytes\": 9", 1);
    agrees(&base, &[&lines[..3].concat(), longer.as_bytes()].concat(), "a line that says that it is longer");
    with_steps(&other, "s", 3);
    agrees(&base, &files(&other, "s").1, "another life's");
    with_steps(&other, "t", 3);
    agrees(&base, &files(&other, "t").1, "a stranger's");
    let text = String::from_utf8(base.clone()).unwrap();
    for (from, to) in [
        ("prompt\"}]}", "pr\"}]}"),
        ("\"first_prompt\": \"prompt\"", "\"first_prompt\": \"pr\""),
        ("\"revision\": 1", "\"revision\": 2"),
        ("\"revision\": 1", "\"revision\": 9"),
        ("\"crc32c\": \"", "\"crc32c\": null, \"was\": \""),
    ] {
        assert_eq!(text.matches(from).count(), 1);
        agrees(text.replace(from, to).as_bytes(), &journal, to);
    }
    let renamed = FaultDir::default();
    renamed.put("t.json", text.replace("\"id\": \"s\"", "\"id\": \"t\"").as_bytes());
    renamed.put("t.journal", &journal);
    assert_eq!((loaded(&renamed, ["t"]).len(), listed(&engine(&renamed)).len()), (0, 0));

    // Two saves of the same revision and length, as where a backup was put back: each has a journal of its own.
    let [one, two] = [r#"{"n": 1}"#, r#"{"n": 2}"#].map(|what| {
        let copy = dir.copy();
        let here = engine(&copy);
        let mut session = here.load(&id("s")).unwrap().unwrap().session;
        session.append(&[what]);
        save(&here, &mut session, false);
        session.append(&["{}"]);
        save(&here, &mut session, true);
        files(&copy, "s")
    });
    assert_eq!(one.0.len(), two.0.len());
    agrees(&one.0, &one.1, "its own");
    agrees(&one.0, &two.1, "the other's");
}

#[test]
fn what_is_deleted_is_not_listed() {
    // With the snapshot still there, as after a crash in the middle of a deletion.
    for (steps, foreign) in [(0, false), (3, false), (0, true)] {
        let dir = FaultDir::default();
        with_steps(&dir, "s", steps);
        if foreign {
            dir.put("s.json", br#"{"id": "s", "messages": []}"#);
        }
        let snapshot = files(&dir, "s").0;
        dir.fail_next("remove", "s.json", Fault::Fail(io::ErrorKind::PermissionDenied));
        engine(&dir).delete(&id("s"), &SaveOptions::default()).unwrap_err();
        let (_, journal) = files(&dir, "s");
        assert!(journal.ends_with(b"}\n") && dir.get("s.json") == Some(snapshot.clone()));
        assert_eq!((listed(&engine(&dir)).len(), engine(&dir).list().unwrap()), (0, vec![]));
        agrees(&snapshot, &[&journal[..], b"{\"bytes\": 7"].concat(), "torn behind the tombstone");
        agrees(&snapshot, &journal[..journal.len() - 1], "the tombstone is torn");
    }
}

#[test]
fn foreign_files_and_foreign_names() {
    let dir = FaultDir::default();
    let data =
        |name: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/a3s").join(name)).unwrap();
    let names: Vec<String> = ["plain.json", "tools.json"]
        .map(|name| {
            serde_json::from_slice::<serde_json::Value>(&data(name)).unwrap()["id"].as_str().unwrap().to_string()
        })
        .into();
    for (name, file) in names.iter().zip(["plain.json", "tools.json"]) {
        dir.put(&format!("{}.json", id(name).stem()), &data(file));
    }
    let two = |id: &str| format!(r#"{{"messages": [{{"role": "user", "content": "hi"}}, {{}}], "id": "{id}"}}"#);
    dir.put("a_b.json", two("a/b").as_bytes()); // A3S Code's name for it
    with_steps(&dir, "c/d", 2);
    dir.put("c_d.json", two("c/d").as_bytes()); // the same id under both names: ours is the one that is found
    dir.put("alice.json", two("Alice").as_bytes());
    dir.put("renamed.json", two("x").as_bytes());
    dir.put("notes.json", b"{\"a\": 1}");
    dir.put("list.json", b"[]");
    dir.put("empty.json", b"");
    dir.put("broken.json", b"{\"id\": \"broken\"");
    dir.put(".hidden.json", two(".hidden").as_bytes());
    dir.put("alone.journal", b"torn");
    let ids: BTreeSet<&str> = names.iter().map(String::as_str).chain(["a/b", "c/d"]).collect();
    let expected = loaded(&dir, ids.iter().copied());
    assert_eq!(expected.len(), 4);
    assert_eq!(listed(&engine(&dir)), expected);
    assert_eq!(engine(&dir).list().unwrap(), expected.keys().cloned().collect::<Vec<_>>());
    assert_eq!(expected["c/d"].3, 3);
}

#[test]
fn a_file_changed_by_hand_is_counted_anew() {
    let dir = FaultDir::default();
    with_steps(&dir, "s", 0);
    let text = String::from_utf8(files(&dir, "s").0).unwrap();
    for changed in [
        text.replace("    {\"role\": \"user\"", "    {\"added\": 1},\n    {\"role\": \"user\""),
        text.replace("\"messages\": [\n    ", "\"messages\": [ "),
        text.replace("  \"config\"", "\"config\""),
        text.replace("\"message_count\": 2, ", ""),
        text.replace("\"messages_bytes\": ", "\"messages_bytes\": 18446744073709551615, \"was\": "),
        text.replace("\"format\": 1", "\"format\": 2"),
        format!("{text}x"),
    ] {
        assert_ne!(changed, text);
        agrees(changed.as_bytes(), &[], &changed);
    }
}

#[test]
fn long_heads_and_long_ids() {
    let dir = FaultDir::default();
    let one = engine(&dir);
    let long = ["é".repeat(4096), "\u{1}".repeat(900), "x".repeat(181)];
    let mut names: Vec<String> = long.to_vec();
    for (name, size) in
        [("a", 3000), ("b", 4096), ("c", 70_000)].into_iter().chain((0..9).map(|n| ("d", 3700 + 50 * n)))
    {
        let name = format!("{name}{size}");
        let mut session = fresh(&name, &[text("user", "prompt")]);
        session.head_mut().set("system", format!("\"{}\"", "é".repeat(size / 2)).into());
        save(&one, &mut session, false);
        names.push(name);
    }
    for name in &long {
        save(&one, &mut fresh(name, &["{}".to_string()]), false);
    }
    let expected = loaded(&dir, names.iter().map(String::as_str));
    assert_eq!(expected.len(), names.len());
    assert_eq!(listed(&one), expected);
    assert_eq!(one.list().unwrap(), expected.keys().cloned().collect::<Vec<_>>());
}
