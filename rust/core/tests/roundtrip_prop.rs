//! Whatever is done to sessions, the store says the same as a plain model of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use perdure_core::fs::fault::FaultDir;
use perdure_core::fs::{Dir, RealDir};
use perdure_core::{Engine, Error, Head, SaveOptions, Session};
use proptest::prelude::*;
use std::sync::Arc;
use support::{id, state, State};

#[derive(Debug, Clone)]
enum Op {
    Append(Vec<String>),
    Truncate(usize),
    Replace(usize, String),
    Set(String, String),
    Unset(String),
    Tags(Vec<String>),
    Save {
        step: bool,
        sync: bool,
    },
    /// The program goes on with what is stored; what was not saved is gone.
    Reload,
    /// The engine is closed and opened anew.
    Reopen,
    Delete,
    /// Another handle saves in between.
    Intrude,
}

fn json(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-z \\\\\"\n\u{1}\u{7f}é\u{2028}😀]{0,12}",
        1 => (0usize..6000).prop_map(|n| "long ".repeat(n / 5)),
    ]
}

fn message() -> impl Strategy<Value = String> {
    prop_oneof![
        text().prop_map(|t| format!(r#"{{"role": "user", "content": {}}}"#, json(&t))),
        Just("{}".to_string()),
        text().prop_map(|t| format!(r#"{{"a": [1.50, -0, {{"b": {}}}], "a": null}}"#, json(&t))),
    ]
}

fn key() -> impl Strategy<Value = String> {
    // Keys are kept as they stand between the quotes.
    prop_oneof!["[a-e]", Just("updated_at".to_string()), Just("a\\\"b".to_string()), Just("é".to_string())]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => prop::collection::vec(message(), 0..4).prop_map(Op::Append),
        1 => (0usize..8).prop_map(Op::Truncate),
        1 => ((0usize..8), message()).prop_map(|(i, m)| Op::Replace(i, m)),
        2 => (key(), 0u32..99).prop_map(|(k, n)| Op::Set(k, n.to_string())),
        1 => key().prop_map(Op::Unset),
        1 => prop::collection::vec(text(), 0..3).prop_map(Op::Tags),
        6 => (any::<bool>(), any::<bool>()).prop_map(|(step, sync)| Op::Save { step, sync }),
        1 => Just(Op::Reload),
        1 => Just(Op::Reopen),
        1 => Just(Op::Delete),
        1 => Just(Op::Intrude),
    ]
}

fn fresh(name: &str) -> Session {
    Session::new(id(name), Head::default())
}

fn save(engine: &Engine, session: &mut Session, step: bool, sync: bool) -> Result<(), Error> {
    let written = session.clone();
    let receipt = engine.save(&written, &SaveOptions { step, sync, ..SaveOptions::default() }).map_err(|f| f.error)?;
    session.settle(&written, receipt.saved);
    Ok(())
}

/// The model: messages, head and tags in memory, and what of them is stored at which revision.
fn run(name: &str, dir: Arc<dyn Dir>, ops: &[Op]) {
    let mut engine = Engine::on(dir.clone());
    let mut session = fresh(name);
    let mut now = state(&session);
    let mut stored: Option<(State, u64)> = None;
    for op in ops {
        match op {
            Op::Append(messages) => {
                session.append(messages);
                now.messages.extend(messages.iter().cloned());
            }
            Op::Truncate(count) => {
                session.truncate(*count);
                now.messages.truncate(*count);
            }
            Op::Replace(index, message) if *index < now.messages.len() => {
                session.replace(*index, message.as_bytes());
                now.messages[*index] = message.clone();
            }
            Op::Replace(..) => {}
            Op::Set(key, value) => {
                session.head_mut().set(key, value.clone().into());
                match now.head.iter_mut().find(|(k, _)| k == key) {
                    Some((_, v)) => *v = value.clone(),
                    None => now.head.push((key.clone(), value.clone())),
                }
            }
            Op::Unset(key) => {
                session.head_mut().remove(key);
                now.head.retain(|(k, _)| k != key);
            }
            Op::Tags(tags) => {
                now.tags = format!("[{}]", tags.iter().map(|t| json(t)).collect::<Vec<_>>().join(", "));
                session.head_mut().tags = now.tags.clone().into();
            }
            Op::Save { step, sync } => {
                save(&engine, &mut session, *step, *sync).unwrap();
                let before = stored.as_ref().map_or(0, |(_, revision)| *revision);
                let revision = session.base().revision();
                let same = stored.as_ref().is_some_and(|(state, _)| *state == now);
                // What was changed and changed back may or may not count as a change.
                assert!(revision == before + 1 || (same && revision == before), "{before} -> {revision}, same: {same}");
                assert!(session.is_unchanged());
                stored = Some((now.clone(), revision));
            }
            Op::Reload => {
                session = engine.load(session.id()).unwrap().map_or_else(|| fresh(name), |loaded| loaded.session);
                now = stored.as_ref().map_or_else(|| state(&fresh(name)), |(state, _)| state.clone());
            }
            Op::Reopen => {
                engine.close().unwrap();
                engine = Engine::on(dir.clone());
            }
            Op::Delete => {
                let there = engine.delete(session.id(), &SaveOptions::default()).unwrap();
                assert_eq!(there, stored.is_some());
                stored = None;
                // The copy in memory must not bring it back, unless it is told to.
                if session.base().saved().is_some() {
                    assert!(matches!(
                        save(&engine, &mut session.clone(), false, true),
                        Err(Error::Conflict { found: None, .. })
                    ));
                }
                session.detach();
            }
            Op::Intrude => {
                let other = Engine::on(dir.clone());
                let Some(loaded) = other.load(session.id()).unwrap() else { continue };
                let mut theirs = loaded.session;
                theirs.append(&[r#"{"intruder": true}"#]);
                let (state, revision) = stored.as_mut().unwrap();
                save(&other, &mut theirs, *revision % 2 == 0, true).unwrap();
                state.messages.push(r#"{"intruder": true}"#.to_string());
                *revision += 1;
                other.close().unwrap();
                session.append(&["{}"]);
                let mine = save(&engine, &mut session, true, true);
                assert!(matches!(mine, Err(Error::Conflict { .. } | Error::Exists { .. })), "{mine:?}");
                (session, now) = (engine.load(session.id()).unwrap().unwrap().session, state.clone());
            }
        }
        assert_eq!(state(&session), now, "in memory, after {op:?}");
        let found = Engine::on(dir.clone()).load(session.id()).unwrap();
        let found = found.map(|loaded| {
            assert_eq!(loaded.warnings, Vec::<String>::new());
            (state(&loaded.session), loaded.session.base().revision())
        });
        assert_eq!(found, stored, "on disk, after {op:?}");
    }
    engine.close().unwrap();
    let ids: Vec<String> = stored.iter().map(|_| name.to_string()).collect();
    assert_eq!(Engine::on(dir.clone()).list().unwrap(), ids);
    let infos = Engine::on(dir).infos(9, None).unwrap().infos;
    let listed: Vec<_> =
        infos.iter().map(|info| (info.count as usize, info.revision, info.head.fields.len())).collect();
    let expected: Vec<_> =
        stored.iter().map(|(state, revision)| (state.messages.len(), *revision, state.head.len())).collect();
    assert_eq!(listed, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_a_model_of_itself(ops in prop::collection::vec(op(), 1..20)) {
        run("s", Arc::new(FaultDir::default()), &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn on_a_real_disk_too(name in "[a-zA-Z0-9./é %]{1,20}", ops in prop::collection::vec(op(), 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        run(&name, Arc::new(RealDir::open(dir.path()).unwrap()), &ops);
        let left = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        for name in left {
            let journal_in_use = name.ends_with(".journal") && std::fs::metadata(dir.path().join(&name)).unwrap().len() > 0;
            assert!(name.ends_with(".json") || journal_in_use, "{name} is left at rest");
        }
    }
}
