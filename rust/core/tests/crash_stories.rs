//! Defects that were found, each told as the story in which it hurt.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use perdure_core::fs::fault::{Fault, FaultDir, Options};
use perdure_core::fs::{Dir, File, Open, Stat};
use perdure_core::{Engine, Error, Failed, Head, SaveOptions, Session};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{mpsc, Arc, Mutex};
use std::time::Duration;
use support::{engine, found, id, state, State};

const EIO: Fault = Fault::Fail(ErrorKind::Other);
const FULL: Fault = Fault::Fail(ErrorKind::StorageFull);
const EIO_BUT_DONE: Fault = Fault::FailAfter(ErrorKind::Other);

fn message(text: &str) -> String {
    format!(r#"{{"role": "user", "content": "{text}"}}"#)
}

/// As the bindings save.
fn store(engine: &Engine, session: &mut Session, step: bool) -> Result<(), Error> {
    let written = session.clone();
    match engine.save(&written, &SaveOptions { step, ..SaveOptions::default() }) {
        Ok(receipt) => session.settle(&written, receipt.saved),
        Err(Failed { error, attempt }) => {
            attempt.into_iter().for_each(|attempt| session.set_attempt(attempt));
            return Err(error);
        }
    }
    Ok(())
}

fn save(engine: &Engine, session: &mut Session) -> Result<(), Error> {
    store(engine, session, false)
}

fn step(engine: &Engine, session: &mut Session) -> Result<(), Error> {
    store(engine, session, true)
}

fn saved(engine: &Engine, text: &str) -> Session {
    let mut session = Session::new(id("s"), Head::default());
    session.append(&[message(text)]);
    save(engine, &mut session).unwrap();
    session
}

fn load(engine: &Engine) -> Session {
    engine.load(&id("s")).unwrap().unwrap().session
}

/// Whatever a crash leaves now, one of these is found.
fn after_a_crash(dir: &FaultDir, allowed: &[Option<State>]) {
    let images = dir.images(300, 1, |name| name.ends_with(".json") || name.ends_with(".journal"));
    assert!(!images.is_empty());
    for image in images {
        let found = found(&image, "s");
        assert!(found.as_ref().is_ok_and(|found| allowed.contains(found)), "{found:?} instead of {allowed:?}");
    }
}

/// The first step of a turn made the journal and then failed. The second one found it and took its name for durable.
#[test]
fn a_journal_whose_first_write_failed_gets_its_name_synced_all_the_same() {
    for (method, on) in [("write", ".journal"), ("sync_data", ".journal"), ("sync_dir", ".")] {
        let dir = FaultDir::default();
        let one = engine(&dir);
        let mut session = saved(&one, "first");
        session.append(&[message("second")]);
        dir.fail_next(method, on, FULL);
        step(&one, &mut session).unwrap_err();
        step(&one, &mut session).unwrap();
        after_a_crash(&dir, &[Some(state(&session))]);
    }
}

/// A process was killed between the rename of a snapshot and the sync of the directory. Another one put a step on top of it:
/// after a power cut the old snapshot was back, under a journal that did not fit it.
#[test]
fn a_step_stands_on_a_snapshot_whose_name_is_durable() {
    for (power_is_lost_during_the_step, journal_is_known) in
        [(true, false), (false, false), (true, true), (false, true)]
    {
        let dir = FaultDir::default();
        let (killed, other) = (engine(&dir.process(1)), engine(&dir.process(2)));
        saved(&killed, "first");
        // A journal that is empty and durable, so that only the snapshot's name is in question.
        let maker = if journal_is_known { &other } else { &killed };
        let mut session = load(maker);
        session.append(&[message("step")]);
        step(maker, &mut session).unwrap();
        save(maker, &mut session).unwrap();
        let before = state(&session);
        let mut session = load(&killed);
        session.append(&[message("second")]);
        let second = state(&session);
        dir.fail_next("sync_dir", ".", Fault::Kill);
        save(&killed, &mut session).unwrap_err();
        drop(killed);

        let mut session = load(&other);
        assert_eq!(state(&session), second);
        session.append(&[message("third")]);
        let third = state(&session);
        if power_is_lost_during_the_step {
            dir.fail_next("write", ".journal", Fault::Crash);
            step(&other, &mut session).unwrap_err();
            after_a_crash(&dir, &[Some(before), Some(second), Some(third)]);
        } else {
            step(&other, &mut session).unwrap();
            after_a_crash(&dir, &[Some(third)]);
        }
    }
}

/// A process was killed between cutting the folded journal and syncing the cut; the next one wrote a line over it.
#[test]
fn a_line_is_not_written_over_a_cut_that_is_not_durable() {
    let dir = FaultDir::new(Options { block: 64, ..Options::default() });
    let killed = engine(&dir.process(1));
    let mut session = saved(&killed, "first");
    session.append(&[message(&"long ".repeat(200))]);
    step(&killed, &mut session).unwrap();
    let folded = state(&session);
    dir.fail_next("set_len", ".journal", Fault::Kill);
    let _ = save(&killed, &mut session);
    drop(killed);

    let other = engine(&dir.process(2));
    let mut session = load(&other);
    session.append(&[message("x")]);
    let new = state(&session);
    // It fails before anything of it is known to be on disk, and power is lost.
    dir.fail_next("write", ".journal", Fault::Crash);
    step(&other, &mut session).unwrap_err();
    assert!(dir.crashed());
    after_a_crash(&dir, &[Some(folded), Some(new)]);
}

/// The same, but the process lives and its sync of the cut failed: the disk may still have the old lines.
#[test]
fn a_journal_that_could_not_be_emptied_durably_is_not_appended_to() {
    let dir = FaultDir::new(Options { block: 64, ..Options::default() });
    let one = engine(&dir);
    let mut session = saved(&one, "first");
    session.append(&[message(&"long ".repeat(200))]);
    step(&one, &mut session).unwrap();
    dir.fail_next("sync_data", ".journal", EIO);
    save(&one, &mut session).unwrap(); // the snapshot stands
    let folded = state(&session);
    session.append(&[message("x")]);
    let new = state(&session);
    dir.fail_next("write", ".journal", Fault::Crash);
    let done = step(&one, &mut session);
    assert!(done.is_ok(), "a snapshot does not need the journal: {done:?}");
    after_a_crash(&dir, &[Some(new.clone())]);
    let _ = folded;
}

/// A step failed and was cut off again. Another handle wrote a line of the same length in its place; the first one
/// took it for its own and overwrote it.
#[test]
fn another_handles_line_is_not_taken_for_ones_own_failed_one() {
    let dir = FaultDir::default();
    let one = engine(&dir);
    let mut mine = saved(&one, "first");
    let mut theirs = load(&one);
    mine.append(&[message("mine!!")]);
    dir.fail_next("write", ".journal", FULL);
    step(&one, &mut mine).unwrap_err();
    theirs.append(&[message("theirs")]);
    step(&one, &mut theirs).unwrap();
    for step in [true, false] {
        let done = store(&one, &mut mine.clone(), step);
        assert!(matches!(done, Err(Error::Conflict { .. })), "{done:?}");
    }
    assert_eq!(found(&dir, "s"), Ok(Some(state(&theirs))));
}

/// A prompt was saved, but the sync of the directory failed: it may be there. The turn took it back, which made the session
/// equal to its base; nothing was written, and the prompt stayed on disk.
#[test]
fn what_is_taken_back_after_a_failed_save_is_taken_back_on_disk() {
    for method in ["sync_dir", "rename"] {
        let dir = FaultDir::default();
        let one = engine(&dir);
        let mut session = saved(&one, "first");
        let first = state(&session);
        session.append(&[message("prompt")]);
        dir.fail_next(method, "", EIO_BUT_DONE);
        save(&one, &mut session).unwrap_err();
        session.truncate(1);
        save(&one, &mut session).unwrap();
        assert_eq!(found(&dir, "s"), Ok(Some(first.clone())), "{method}");
        after_a_crash(&dir, &[Some(first)]);
    }
}

/// A rename that reports an error and has happened (a network file system lost the answer) put the session at odds with itself.
#[test]
fn a_rename_that_fails_after_it_happened_is_no_conflict() {
    for fault in [EIO, EIO_BUT_DONE] {
        let dir = FaultDir::default();
        let one = engine(&dir);
        let mut session = saved(&one, "first");
        for text in ["second", "third"] {
            session.append(&[message(text)]);
            dir.fail_next("rename", ".json", fault);
            save(&one, &mut session).unwrap_err();
            save(&one, &mut session).unwrap();
        }
        after_a_crash(&dir, &[Some(state(&session))]);
        // The very first save as well.
        let dir = FaultDir::default();
        let one = engine(&dir);
        let mut session = Session::new(id("s"), Head::default());
        dir.fail_next("rename", ".json", fault);
        save(&one, &mut session).unwrap_err();
        save(&one, &mut session).unwrap();
    }
}

/// Time stamps of a second and inode numbers that come back at once: another process's second save looked like the file that
/// this one had seen, and was overwritten.
#[test]
fn another_process_is_seen_where_files_look_alike() {
    let dir = FaultDir::new(Options { coarse: true, ..Options::default() });
    let (one, other) = (engine(&dir.process(1)), engine(&dir.process(2)));
    let mut mine = saved(&one, "first");
    let mut theirs = load(&other);
    for text in ["thief", "fifth"] {
        theirs.replace(0, message(text).as_bytes());
        save(&other, &mut theirs).unwrap();
    }
    assert!(matches!(save(&one, &mut mine.clone()), Err(Error::Conflict { .. })));
    mine.append(&[message("mine")]);
    assert!(matches!(save(&one, &mut mine.clone()), Err(Error::Conflict { .. })));
    assert!(matches!(step(&one, &mut mine), Err(Error::Conflict { .. })));
    assert_eq!(found(&dir, "s"), Ok(Some(state(&theirs))));
}

/// A step failed so that it could not be taken back, and the engine forgot it with close(): the next step was appended to bytes that
/// only the page cache had.
#[test]
fn close_does_not_forget_that_the_journal_is_not_to_be_trusted() {
    let dir = FaultDir::new(Options { block: 64, ..Options::default() });
    let one = engine(&dir);
    let mut session = saved(&one, "first");
    session.append(&[message(&"long ".repeat(100))]);
    dir.fail_next("sync_data", ".journal", EIO);
    dir.fail_next("set_len", ".journal", EIO);
    step(&one, &mut session).unwrap_err();
    one.release(&session).unwrap();
    one.close().unwrap();
    let mut session = load(&one);
    session.append(&[message("next")]);
    step(&one, &mut session).unwrap();
    after_a_crash(&dir, &[Some(state(&session))]);
}

/// A step's line reached the disk although its sync failed, and so did the sync of the cut: only the page cache is without it.
/// The session went back to what it was and was saved: the line must not come back, even if the journal cannot be emptied now.
#[test]
fn a_line_that_only_the_disk_has_does_not_come_back() {
    for emptied in [true, false] {
        let dir = FaultDir::default();
        let one = engine(&dir);
        let mut session = saved(&one, "first");
        let first = state(&session);
        session.append(&[message("second")]);
        dir.fail_next("sync_data", ".journal", EIO_BUT_DONE);
        dir.fail_next("sync_data", ".journal", EIO);
        step(&one, &mut session).unwrap_err();
        session.truncate(1);
        if !emptied {
            dir.fail_next("sync_data", ".journal", EIO);
        }
        save(&one, &mut session).unwrap();
        after_a_crash(&dir, &[Some(first)]);
    }
}

/// A process was killed after it had written a tombstone and before it could sync it. The next one carried the deletion
/// through: after a power cut there was a journal without tombstone and without snapshot.
#[test]
fn a_deletion_is_carried_through_only_when_its_mark_is_durable() {
    let dir = FaultDir::default();
    let killed = engine(&dir.process(1));
    let mut session = saved(&killed, "first");
    session.append(&[message("second")]);
    step(&killed, &mut session).unwrap();
    let before = state(&session);
    dir.fail_next("sync_data", ".journal", Fault::Kill);
    killed.delete(&id("s"), &SaveOptions::default()).unwrap_err();
    drop(killed);
    let other = engine(&dir.process(2));
    dir.fail_next("sync_dir", ".", Fault::Crash);
    other.delete(&id("s"), &SaveOptions::default()).unwrap_err();
    after_a_crash(&dir, &[Some(before), None]);
}

/// A lock that could not be let go kept every other process waiting for ten seconds.
#[test]
fn a_lock_that_cannot_be_unlocked_is_closed() {
    let dir = FaultDir::default();
    let (one, other) = (engine(&dir.process(1)), engine(&dir.process(2)));
    dir.fail_next("unlock", ".lock", EIO);
    let session = saved(&one, "first");
    let mut theirs = load(&other);
    theirs.append(&[message("second")]);
    let started = std::time::Instant::now();
    save(&other, &mut theirs).unwrap();
    assert!(started.elapsed().as_secs() < 5);
    drop(session);
}

/// On a full disk every try to keep a torn tail left another piece of it.
#[test]
fn a_torn_tail_that_cannot_be_kept_stays_where_it_is() {
    let dir = FaultDir::default();
    let one = engine(&dir);
    let mut session = saved(&one, "first");
    session.append(&[message("second")]);
    step(&one, &mut session).unwrap();
    one.close().unwrap();
    let whole = dir.get("s.journal").unwrap();
    dir.put("s.journal", &[&whole[..], b"{\"bytes\": 12"].concat());
    let mut session = load(&one);
    session.append(&[message("third")]);
    let asides = |dir: &FaultDir| dir.ls().into_iter().filter(|n| n.contains(".torn-")).collect::<Vec<_>>();
    for (method, on) in [("write", ".torn-"), ("sync_all", ".torn-")] {
        dir.fail_next(method, on, FULL);
        step(&one, &mut session).unwrap_err();
        assert_eq!(asides(&dir), Vec::<String>::new(), "{method}");
        assert!(dir.get("s.journal").unwrap().ends_with(b"{\"bytes\": 12"), "{method}");
    }
    step(&one, &mut session).unwrap();
    assert_eq!(asides(&dir).len(), 1);
    assert_eq!(dir.get(&asides(&dir)[0]).unwrap(), b"{\"bytes\": 12");
}

/// A directory whose next sync waits until it is let through.
#[derive(Debug)]
struct Gated {
    dir: FaultDir,
    arrived: Mutex<mpsc::Sender<()>>,
    go: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Dir for Gated {
    fn path(&self) -> &Path {
        self.dir.path()
    }
    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn File>> {
        self.dir.open(name, how)
    }
    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        self.dir.stat(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.dir.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        let gate = self.go.lock().unwrap().take();
        if let Some(go) = gate {
            self.arrived.lock().unwrap().send(()).unwrap();
            go.recv().unwrap();
        }
        self.dir.sync()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.dir.names()
    }
}

/// A thread saved, close() waited for it, another save waited behind close(): what that one opened, nobody closed any more.
#[test]
fn close_between_two_saves_leaves_nothing_open() {
    let ((arrived, wait), (let_go, go)) = (mpsc::channel(), mpsc::channel());
    let gated = Gated { dir: FaultDir::default(), arrived: Mutex::new(arrived), go: Mutex::new(Some(go)) };
    let dir = gated.dir.clone();
    let one = Engine::on(Arc::new(gated));
    let sessions = ["first", "last"].map(|text| {
        let mut session = Session::new(id("s"), Head::default());
        session.append(&[message(text)]);
        session
    });
    let force = SaveOptions { force: true, ..SaveOptions::default() };
    let soon = || std::thread::sleep(Duration::from_millis(30));
    std::thread::scope(|scope| {
        scope.spawn(|| one.save(&sessions[0], &force).unwrap());
        wait.recv().unwrap();
        scope.spawn(|| one.close());
        soon();
        scope.spawn(|| one.save(&sessions[1], &force).unwrap());
        soon();
        let_go.send(()).unwrap();
    });
    one.close().unwrap();
    assert_eq!(dir.ls(), ["s.json"]);
    assert_eq!(found(&dir, "s"), Ok(Some(state(&sessions[1]))));
}

/// Names that differ only in case are one file on macOS and Windows.
#[test]
fn a_case_only_twin_is_refused_and_named() {
    let dir = FaultDir::new(Options { ignore_case: true, ..Options::default() });
    let one = engine(&dir);
    let mut session = Session::new(id("Abc"), Head::default());
    save(&one, &mut session).unwrap();
    for in_turn in [false, true] {
        if in_turn {
            session.append(&[message("step")]);
            step(&one, &mut session).unwrap();
        }
        assert!(one.load(&id("abc")).unwrap().is_none());
        assert!(!one.exists(&id("abc")).unwrap());
        for (step, create, force) in
            [(false, false, false), (true, false, false), (false, true, false), (false, false, true)]
        {
            let mut twin = Session::new(id("abc"), Head::default());
            twin.append(&[message("twin")]);
            let done = one.save(&twin, &SaveOptions { step, create, force, ..SaveOptions::default() });
            match done.unwrap_err().error {
                Error::Exists { id, twin: Some(twin) } => assert_eq!((&*id, &*twin), ("abc", "Abc")),
                other => panic!("{other}"),
            }
        }
        assert!(!one.delete(&id("abc"), &SaveOptions::default()).unwrap());
        assert_eq!(one.list().unwrap(), ["Abc"]);
        assert_eq!(found(&dir, "Abc"), Ok(Some(state(&session))));
    }
    // Where the disk keeps them apart they are two sessions.
    let dir = FaultDir::default();
    let one = engine(&dir);
    for name in ["Abc", "abc"] {
        save(&one, &mut Session::new(id(name), Head::default())).unwrap();
    }
    assert_eq!(one.list().unwrap(), ["Abc", "abc"]);
}
