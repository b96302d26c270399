//! The engine on a real directory: what is saved is found, and nobody overwrites what he has not seen.

#![allow(clippy::unwrap_used, clippy::panic)]

use perdure_core::{Base, Engine, Error, Head, Receipt, SaveOptions, Session, SessionId};
use std::path::Path;

fn id(text: &str) -> SessionId {
    SessionId::new(text).unwrap()
}

fn message(text: &str) -> String {
    format!(r#"{{"role": "user", "content": "{text}"}}"#)
}

fn save_with(engine: &Engine, session: &mut Session, options: SaveOptions) -> Result<Receipt, Error> {
    let written = session.clone();
    match engine.save(&written, &options) {
        Ok(receipt) => {
            session.settle(&written, receipt.saved.clone());
            Ok(receipt)
        }
        Err(failed) => Err(failed.error),
    }
}

fn save(engine: &Engine, session: &mut Session) -> Result<Receipt, Error> {
    save_with(engine, session, SaveOptions::default())
}

fn step(engine: &Engine, session: &mut Session) -> Result<Receipt, Error> {
    save_with(engine, session, SaveOptions { step: true, ..SaveOptions::default() })
}

fn load(engine: &Engine, name: &str) -> Session {
    engine.load(&id(name)).unwrap().unwrap().session
}

fn texts(session: &Session) -> Vec<String> {
    session.log().iter_from(0).map(|m| String::from_utf8(m.to_vec()).unwrap()).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn saves_and_steps_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(&dir.path().join("a/b")).unwrap();
    let mut session = Session::new(id("s"), Head::default());
    session.append(&[message("1")]);
    assert_eq!(save(&engine, &mut session).unwrap().saved.revision, 1);
    for n in 2..5 {
        session.append(&[message(&n.to_string())]);
        session.head_mut().set("updated_at", n.to_string().into());
        let receipt = step(&engine, &mut session).unwrap();
        assert_eq!(receipt.saved.revision, n);
        let found = load(&engine, "s");
        assert_eq!(texts(&found), texts(&session));
        assert_eq!(found.head(), session.head());
        assert_eq!(found.base().revision(), n);
    }
    session.truncate(2);
    session.replace(0, message("new").as_bytes());
    session.head_mut().remove("updated_at");
    step(&engine, &mut session).unwrap();
    assert_eq!(texts(&load(&engine, "s")), [message("new"), message("2")]);
    assert_eq!(load(&engine, "s").head(), session.head());

    // The end of the turn: nothing new, but the journal goes into the snapshot. No new revision.
    let receipt = save(&engine, &mut session).unwrap();
    assert!(receipt.bytes_written > 0);
    assert_eq!(receipt.saved.revision, 5);
    assert_eq!(std::fs::metadata(engine.path().join("s.journal")).unwrap().len(), 0);
    assert_eq!(texts(&load(&engine, "s")), texts(&session));
    assert_eq!(save(&engine, &mut session).unwrap().bytes_written, 0);

    assert_eq!(names(engine.path()), ["s.journal", "s.json", "s.lock"]);
    engine.close().unwrap();
    assert_eq!(names(engine.path()), ["s.json"]);
    session.append(&[message("after close")]);
    assert_eq!(save(&engine, &mut session).unwrap().saved.revision, 6);
}

#[test]
fn nobody_overwrites_what_he_has_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let mut first = Session::new(id("s"), Head::default());
    save(&engine, &mut first).unwrap();
    let mut second = load(&engine, "s");
    first.append(&[message("first")]);
    second.append(&[message("second")]);
    save(&engine, &mut first).unwrap();
    for attempt in [save, step] {
        match attempt(&engine, &mut second) {
            Err(Error::Conflict { expected: 1, found: Some(2), .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(texts(&load(&engine, "s")), [message("first")]);

    let mut third = Session::new(id("s"), Head::default());
    assert!(matches!(save(&engine, &mut third), Err(Error::Exists { twin: None, .. })));
    save_with(&engine, &mut second, SaveOptions { force: true, ..SaveOptions::default() }).unwrap();
    assert_eq!(texts(&load(&engine, "s")), [message("second")]);

    // No resurrection.
    assert!(engine.delete(&id("s"), &SaveOptions::default()).unwrap());
    assert!(!engine.delete(&id("s"), &SaveOptions::default()).unwrap());
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    assert!(matches!(save(&engine, &mut second), Err(Error::Conflict { found: None, .. })));

    // Created anew it is another life.
    save(&engine, &mut third).unwrap();
    second.append(&[message("x")]);
    assert!(matches!(save(&engine, &mut second), Err(Error::Conflict { found: Some(1), .. })));
}

#[test]
fn a_file_changed_by_hand_is_a_conflict_unless_it_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let mut session = Session::new(id("s"), Head::default());
    session.append(&[message("one")]);
    save(&engine, &mut session).unwrap();
    let path = dir.path().join("s.json");
    let text = std::fs::read_to_string(&path).unwrap();

    std::fs::write(&path, &text).unwrap(); // touched only
    session.append(&[message("two")]);
    save(&engine, &mut session).unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("one", "eno")).unwrap();
    session.append(&[message("three")]);
    assert!(matches!(save(&engine, &mut session), Err(Error::Conflict { expected: 2, found: Some(2), .. })));
    let loaded = engine.load(&id("s")).unwrap().unwrap();
    assert_eq!(loaded.warnings.len(), 1);
}

#[test]
fn a_foreign_file_becomes_ours_with_the_first_save() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    // A3S Code writes the session a/b as a_b.json.
    let path = dir.path().join("a_b.json");
    std::fs::write(
        &path,
        "{\n  \"id\": \"a/b\",\n  \"messages\": [\n    {\n      \"x\": 1\n    }\n  ],\n  \"state\": \"Active\"\n}",
    )
    .unwrap();
    let mut session = load(&engine, "a/b");
    let mut other = load(&engine, "a/b");
    assert_eq!(session.base().revision(), 0);
    session.append(&[message("2")]);
    step(&engine, &mut session).unwrap();
    assert_eq!(names(dir.path()), ["a_b.json", "a_b.lock"]);
    let found = load(&engine, "a/b");
    assert_eq!(texts(&found), [r#"{"x": 1}"#.to_string(), message("2")]);
    assert_eq!(found.base().revision(), 1);
    other.append(&[message("3")]);
    assert!(matches!(save(&engine, &mut other), Err(Error::Conflict { expected: 0, found: Some(1), .. })));
    // A session that really is called a_b cannot take that name.
    let mut twin = Session::new(id("a_b"), Head::default());
    assert!(matches!(save(&engine, &mut twin), Err(Error::Exists { twin: Some(_), .. })));
    assert!(engine.load(&id("a_b")).unwrap().is_none());
    std::fs::copy(&path, dir.path().join("renamed.json")).unwrap();
    assert!(matches!(engine.load(&id("renamed")), Err(Error::Corrupt { .. })));
    assert_eq!(engine.list().unwrap(), ["a/b"]);
}

#[test]
fn listings_come_from_heads_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    for n in 0..7 {
        let mut session = Session::new(id(&format!("s{n}")), Head::default());
        session.head_mut().set("config", format!(r#"{{"name": "{}"}}"#, "n".repeat(n * 2000)).into());
        session.append(&[message(&format!("prompt {n}"))]);
        save(&engine, &mut session).unwrap();
        if n == 6 {
            session.append(&[message("more")]);
            step(&engine, &mut session).unwrap();
        }
    }
    std::fs::write(dir.path().join("notes.json"), "{\"a\": 1}").unwrap();
    std::fs::write(dir.path().join("broken.json"), "{\"id\": \"x\"").unwrap();
    std::fs::create_dir(dir.path().join("folder.json")).unwrap();
    assert_eq!(engine.list().unwrap(), ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]);
    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let page = engine.infos(3, cursor.as_deref()).unwrap();
        seen.extend(page.infos);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let ids: Vec<_> = seen.iter().map(|i| i.id.to_string()).collect();
    assert_eq!(ids, ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]);
    assert_eq!(&seen[1].first_prompt[..], br#""prompt 5""#);
    assert_eq!((seen[0].count, seen[0].revision), (2, 2));
    assert!(seen[1].head.get("config").unwrap().len() > 10_000);
    assert!(engine.infos(3, Some("nonsense")).is_err());
}

#[test]
fn one_engine_a_directory_and_threads_do_not_fight() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    assert!(std::sync::Arc::ptr_eq(&engine, &Engine::open(&dir.path().join(".")).unwrap()));
    std::thread::scope(|scope| {
        for t in 0..4 {
            let engine = &engine;
            scope.spawn(move || {
                for n in 0..40 {
                    let mut session = Session::new(id(&format!("{t}-{n}")), Head::default());
                    save(engine, &mut session).unwrap();
                    session.append(&[message("x")]);
                    step(engine, &mut session).unwrap();
                }
            });
        }
    });
    assert_eq!(engine.list().unwrap().len(), 160);
    engine.close().unwrap();
    assert_eq!(names(dir.path()).iter().filter(|n| !n.ends_with(".json")).count(), 160);
}

#[test]
fn the_base_of_a_new_session_is_nothing() {
    assert!(matches!(Session::new(id("s"), Head::default()).base(), Base::Absent));
}
