//! What a listing costs, and what it says while others write.

use super::*;
use crate::watched::Watched;
use perdure_core::Error;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

#[test]
fn only_the_heads_of_the_page_are_read() {
    let dir = FaultDir::default();
    let one = engine(&dir);
    let long: Vec<String> = (0..100).map(|n| message(3, n)).collect();
    for n in 0..40 {
        let mut session = fresh(&format!("s{n:02}"), &[text("user", "prompt")]);
        session.append(&long);
        // Longer than what is read of a head at first.
        session.head_mut().set("system", format!("\"{}\"", "x".repeat(n % 2 * 6000)).into());
        save(&one, &mut session, false);
        if n % 4 == 0 {
            session.append(&["{}"]);
            save(&one, &mut session, true);
        }
    }
    // A crash in the middle of a fold: what the journal says is in the snapshot already.
    let (session, journal) = (dir.get("s36.json").unwrap(), dir.get("s36.journal").unwrap());
    let mut folded = one.load(&id("s36")).unwrap().unwrap().session;
    save(&one, &mut folded, false);
    assert_ne!(dir.get("s36.json").unwrap(), session);
    dir.put("s36.journal", &journal);
    one.close().unwrap();
    let (watched, before) = (Watched::new(&dir, |_, _| Ok(())), dir.operations());
    let page = watched.engine().infos(20, None).unwrap();
    assert_eq!(page.infos.len(), 20);
    let (journals, read) = (5 * 700, watched.read.swap(0, Ordering::Relaxed));
    assert!(read <= 20 * 4096 + 10 * 12_000 + journals, "{read} bytes");
    let trace = &dir.trace()[before..];
    let count = |what: &str, ending: &str| trace.iter().filter(|c| c.what == what && c.on.ends_with(ending)).count();
    assert_eq!((count("stat", ".json"), count("stat", ".journal")), (40, 10));
    assert_eq!((count("open", ".json"), count("open", ".journal"), count("names", "")), (20, 5, 1));

    assert_eq!(watched.engine().list().unwrap().len(), 40);
    let read = watched.read.load(Ordering::Relaxed);
    assert!(read <= 40 * 4096 + 10 * 512, "{read} bytes");
}

#[test]
fn a_long_journal_is_skimmed() {
    let dir = FaultDir::default();
    let one = engine(&dir);
    let mut session = fresh("s", &[text("user", "prompt")]);
    save(&one, &mut session, false);
    // Lines of all sizes around the skimmer's buffer.
    for n in 0..60 {
        session.append(&[message(3, n * 7 % 67), message(0, n)]);
        session.head_mut().set(if n % 2 == 0 { "even" } else { "odd" }, n.to_string().into());
        save(&one, &mut session, true);
    }
    let (_, journal) = files(&dir, "s");
    assert!(journal.len() > 1 << 20);
    let (watched, expected, before) = (Watched::new(&dir, |_, _| Ok(())), loaded(&dir, ["s"]), dir.operations());
    assert_eq!(listed(&watched.engine()), expected);
    let read = watched.read.load(Ordering::Relaxed);
    assert!(read <= 4096 + journal.len() as u64, "{read} bytes of {}", journal.len());
    let calls = dir.trace()[before..].iter().filter(|call| call.what == "read").count();
    assert!(calls <= 2 + journal.len() / (48 << 10), "{calls} reads of {} bytes", journal.len());
}

#[test]
fn no_descriptors_left_is_an_error_and_an_unreadable_file_is_not() {
    let dir = FaultDir::default();
    for n in 0..20 {
        with_steps(&dir, &format!("s{n}"), 1);
    }
    let full = Watched::new(&dir, |what, name| match (what, name) {
        ("open", "s7.json") => Err(io::Error::from_raw_os_error(24)),
        _ => Ok(()),
    });
    for error in [full.engine().list().unwrap_err(), full.engine().infos(50, None).unwrap_err()] {
        assert!(matches!(&error, Error::Io { op: "open", path, .. } if path.ends_with("s7.json")), "{error}");
    }
    let refused =
        |_: &str, name: &str| if name == "s7.json" { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) };
    let unreadable = Watched::new(&dir, refused);
    assert_eq!((unreadable.engine().list().unwrap().len(), listed(&unreadable.engine()).len()), (19, 19));
}

/// A writer folds the journal while it is being listed: the listing says what was there before or after, nothing else.
#[test]
fn a_fold_in_between() {
    let moments = [("open", "s.journal"), ("open", "s.json"), ("read", "s.json"), ("read", "s.journal")];
    for moment in moments {
        for steps_after in [0, 1, 30] {
            let dir = FaultDir::default();
            let mut session = with_steps(&dir, "s", 3);
            let before = said_by_load(&session);
            let inner = dir.clone();
            let writer = engine(&dir);
            let after = Arc::new(Mutex::new(None));
            let seen = after.clone();
            let watched = Watched::new(&dir, move |what, name| {
                if (what, name) == moment && seen.lock().unwrap().is_none() {
                    session.head_mut().tags = r#"["folded"]"#.into();
                    save(&writer, &mut session, false);
                    for _ in 0..steps_after {
                        session.append(&[text("user", "after")]);
                        save(&writer, &mut session, true);
                    }
                    *seen.lock().unwrap() = Some(loaded(&inner, ["s"])["s"].clone());
                }
                Ok(())
            });
            let listed = listed(&watched.engine())["s"].clone();
            let after = after.lock().unwrap().clone().expect("it was folded");
            assert!(listed == before || listed == after, "{moment:?}, {steps_after}: {listed:?}");
        }
    }
}

/// Emptied between two reads of a journal that is longer than the buffer: its first half is no state of today.
#[test]
fn a_fold_in_the_middle_of_a_long_journal() {
    let dir = FaultDir::default();
    let mut session = with_steps(&dir, "s", 0);
    let one = engine(&dir);
    for n in 0..50 {
        session.append(&[message(3, 4), message(0, n)]);
        save(&one, &mut session, true);
    }
    let before = said_by_load(&session);
    let mut reads = 0;
    let watched = Watched::new(&dir, move |what, name| {
        reads += usize::from((what, name) == ("read", "s.journal"));
        if reads == 2 {
            reads += 1;
            save(&one, &mut session, false);
        }
        Ok(())
    });
    assert_eq!(listed(&watched.engine())["s"], before, "folding changes nothing that a listing says");
    assert_eq!(files(&dir, "s").1, b"");
}
