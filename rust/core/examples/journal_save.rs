//! Saves a session in journal mode, unsynced, a given number of times: for counting instructions, not for timing.
//!
//!     journal_save COUNT
//!
//! `benches/callgrind/check.py` runs it twice under callgrind; the difference is what the saves alone take.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use perdure_core::{Engine, Head, SaveOptions, Session, SessionId};
use std::hint::black_box;

/// Messages at the start: so many that no journal of the runs is folded.
const MESSAGES: usize = 2_000;

fn message(number: usize) -> String {
    let text = "\\\"path\\\": a\\n naïve – 你好 ".repeat(26);
    format!(r#"{{"role": "user", "content": [{{"type": "text", "text": "{number:08} {text}"}}]}}"#)
}

fn main() {
    let count: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).expect("usage: journal_save COUNT");
    let dir = tempfile::tempdir().expect("a directory to work in");
    let engine = Engine::open(dir.path()).unwrap();
    let options = SaveOptions { journal: true, sync: false, ..SaveOptions::default() };
    let mut session = Session::new(SessionId::new("counted").unwrap(), Head::default());
    session.append(&(0..MESSAGES).map(message).collect::<Vec<_>>());
    let saved = engine.save(&session, &options).unwrap().saved;
    session.settle(&session.clone(), saved);

    // The same turn again and again: making its text would be counted as part of the saves.
    let turn = [message(0), message(1)];
    for _ in 0..count {
        session.append(&turn);
        let written = session.clone();
        let receipt = engine.save(black_box(&written), &options).unwrap();
        session.settle(&written, receipt.saved);
    }
    let stats = engine.stats();
    assert_eq!((stats.snapshots, stats.lines), (1, count as u64), "a fold would be counted as saves");
}
