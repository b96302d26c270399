//! Journals and snapshots that are cut, damaged or mixed up: a torn tail is left out and kept aside, anything else is
//! named as corrupt, and nothing is ever read as a state that was not saved.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use perdure_core::fs::fault::FaultDir;
use perdure_core::{Error, Head, SaveOptions, Session};
use support::{engine, found, id, state, State};

/// A stored session: its files and what it was after the snapshot and after each line.
struct Stored {
    name: &'static str,
    snapshot: Vec<u8>,
    journal: Vec<u8>,
    states: Vec<State>,
}

fn save(dir: &FaultDir, session: &mut Session, step: bool) {
    let written = session.clone();
    let options = SaveOptions { step, ..SaveOptions::default() };
    let receipt = engine(dir).save(&written, &options).unwrap();
    session.settle(&written, receipt.saved);
}

fn stored(name: &'static str, steps: usize) -> Stored {
    let dir = FaultDir::default();
    let one = engine(&dir);
    let mut session = Session::new(id(name), Head::default());
    session.append(&[r#"{"n": 0}"#]);
    let mut states = Vec::new();
    for step in 0..=steps {
        let written = session.clone();
        let options = SaveOptions { step: step > 0, ..SaveOptions::default() };
        let receipt = one.save(&written, &options).unwrap();
        session.settle(&written, receipt.saved);
        states.push(state(&session));
        session.append(&[format!(r#"{{"n": {}, "t": "é\n"}}"#, step + 1)]);
        session.head_mut().set("k", format!("\"{step}\"").into());
    }
    let file = |ending: &str| dir.get(&format!("{name}.{ending}")).unwrap();
    Stored { name, snapshot: file("json"), journal: file("journal"), states }
}

impl Stored {
    fn with(&self, journal: &[u8]) -> FaultDir {
        let dir = FaultDir::default();
        dir.put(&format!("{}.json", self.name), &self.snapshot);
        dir.put(&format!("{}.journal", self.name), journal);
        dir
    }

    fn load(&self, journal: &[u8]) -> Result<Option<State>, String> {
        found(&self.with(journal), self.name)
    }

    /// Ends of the journal's lines, the header's first.
    fn ends(&self) -> Vec<usize> {
        self.journal.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect()
    }

    fn lines(&self) -> Vec<Vec<u8>> {
        self.journal.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
    }

    /// Saves are whole up to this length of the journal.
    fn whole(&self, len: usize) -> usize {
        self.ends().iter().filter(|end| **end <= len).count().saturating_sub(1)
    }
}

fn is_corrupt(found: &Result<Option<State>, String>) -> bool {
    found.is_err()
}

/// Reading a corrupt session waits for a writer that may be about; many wait at the same time.
fn in_parallel<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for part in cases.chunks(cases.len().div_ceil(48)) {
            scope.spawn(|| part.iter().for_each(&check));
        }
    });
}

#[test]
fn a_journal_cut_anywhere_gives_the_saves_that_are_whole_and_keeps_the_rest_aside() {
    let stored = stored("s", 3);
    let whole_lines = stored.ends();
    for cut in 0..=stored.journal.len() {
        let dir = stored.with(&stored.journal[..cut]);
        let expected = &stored.states[stored.whole(cut)];
        let loaded = engine(&dir).load(&id("s")).unwrap().unwrap();
        assert_eq!(state(&loaded.session), *expected, "cut at {cut}");
        let torn = cut > 0 && !whole_lines.contains(&cut);
        assert_eq!(loaded.warnings.len(), usize::from(torn), "cut at {cut}: {:?}", loaded.warnings);

        // The next writer, in a turn and at the end of one.
        for step in [true, false] {
            let dir = stored.with(&stored.journal[..cut]);
            let mut session = engine(&dir).load(&id("s")).unwrap().unwrap().session;
            session.append(&[r#"{"more": 1}"#]);
            save(&dir, &mut session, step);
            assert_eq!(found(&dir, "s").unwrap(), Some(state(&session)), "cut at {cut}, step {step}");
            let aside: Vec<_> = dir.ls().into_iter().filter(|n| n.starts_with("s.journal.torn-")).collect();
            assert_eq!(aside.len(), usize::from(torn), "cut at {cut}: {aside:?}");
            for name in aside {
                let from = whole_lines.iter().rfind(|end| **end <= cut).copied().unwrap_or(0);
                assert_eq!(dir.get(&name).unwrap(), &stored.journal[from..cut]);
                let time = name.strip_prefix("s.journal.torn-").unwrap();
                assert!(time.parse::<u64>().is_ok(), "{name}");
            }
        }
    }
}

#[test]
fn nuls_where_a_crash_lost_blocks_are_a_torn_tail() {
    let stored = stored("s", 2);
    let journal = &stored.journal;
    for cut in 0..journal.len() {
        for nuls in [1, journal.len() - cut, journal.len() - cut + 70] {
            let mut torn = journal[..cut].to_vec();
            torn.resize(cut + nuls, 0);
            assert_eq!(stored.load(&torn), Ok(Some(stored.states[stored.whole(cut)].clone())), "{nuls} NULs at {cut}");
        }
    }
    // A hole in the last line, its end survived.
    let last = stored.ends()[1];
    for from in last..journal.len() - 1 {
        let mut torn = journal.clone();
        torn[from..(from + 9).min(journal.len() - 1)].fill(0);
        assert_eq!(stored.load(&torn), Ok(Some(stored.states[1].clone())), "hole at {from}");
    }
}

/// The header and the first line are one write. When the header's block is lost and the line's survives, nothing of it was
/// acknowledged. It used to be called corrupt, and the session could not be loaded any more.
#[test]
fn a_hole_in_the_header_of_a_first_step_is_a_torn_tail() {
    let first = stored("s", 1);
    for from in 0..first.ends()[0] {
        let mut torn = first.journal.clone();
        torn[from] = 0;
        assert_eq!(first.load(&torn), Ok(Some(first.states[0].clone())), "NUL at {from}");
    }
    // With a second line the header was acknowledged: then it is damage. (Its LF left out: header and line would be one.)
    let second = stored("s", 2);
    let holes: Vec<usize> = (0..second.ends()[0] - 1).collect();
    in_parallel(&holes, |at| {
        let mut torn = second.journal.clone();
        torn[*at] = 0;
        assert!(is_corrupt(&second.load(&torn)), "NUL at {at}");
    });
}

#[test]
fn a_flipped_byte_is_corrupt_and_never_another_state() {
    let stored = stored("s", 2);
    let journal = &stored.journal;
    let (last_start, end) = (stored.ends()[1], journal.len() - 1);
    let mut cases: Vec<(usize, u8)> = (0..journal.len()).flat_map(|at| [(at, 1), (at, 0x20), (at, 0x80)]).collect();
    // What a parser of numbers may take for the same number.
    cases.extend((0..journal.len()).filter(|at| journal[*at] == b'0').map(|at| (at, b'0' ^ b'+')));
    in_parallel(&cases, |(at, mask)| {
        let mut flipped = journal.clone();
        flipped[*at] ^= mask;
        let found = stored.load(&flipped);
        // Without its LF, or with a NUL in it, the last line is torn.
        if *at == end || (*at >= last_start && flipped[*at] == 0) {
            assert_eq!(found, Ok(Some(stored.states[1].clone())), "byte {at} ^ {mask}");
        } else {
            assert!(is_corrupt(&found), "byte {at} ({:?}) ^ {mask}: {found:?}", journal[*at] as char);
        }
    });
}

#[test]
fn lines_swapped_doubled_removed_or_of_another_session_are_corrupt() {
    let stored = stored("s", 3);
    let lines = stored.lines();
    let other = self::stored("s", 3).lines(); // the same id, another life
    let stranger = self::stored("t", 3).lines();
    let mut bad: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
    for a in 0..lines.len() {
        for b in a + 1..lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(a, b);
            bad.push((format!("{a} and {b} swapped"), swapped));
        }
        let mut doubled = lines.clone();
        doubled.insert(a, lines[a].clone());
        bad.push((format!("{a} doubled"), doubled));
        if a + 1 < lines.len() {
            let mut removed = lines.clone();
            removed.remove(a);
            bad.push((format!("{a} removed"), removed));
        }
        for (whose, foreign) in [("another life's", &other), ("a stranger's", &stranger)] {
            let mut mixed = lines.clone();
            mixed[a] = foreign[a].clone();
            // Line 1 and later of another life say the same, but hang on another header.
            bad.push((format!("{a} {whose}"), mixed));
        }
    }
    bad.push(("another life's journal".into(), other));
    bad.push(("a stranger's journal".into(), stranger));
    in_parallel(&bad, |(what, lines)| {
        assert!(is_corrupt(&stored.load(&lines.concat())), "{what}");
    });
    // What cannot be told from a journal that never had the line: whole lines missing at the end.
    for keep in 0..=lines.len() {
        let expected = stored.states[keep.saturating_sub(1)].clone();
        assert_eq!(stored.load(&lines[..keep].concat()), Ok(Some(expected)));
    }
}

#[test]
fn a_snapshot_cut_anywhere_is_corrupt_and_left_alone() {
    for steps in [0, 1] {
        let stored = match steps {
            0 => Stored { journal: Vec::new(), ..stored("s", 1) },
            _ => stored("s", 1),
        };
        let cuts: Vec<usize> = (0..stored.snapshot.len()).collect();
        in_parallel(&cuts, |cut| {
            let dir = stored.with(&stored.journal);
            let short = &stored.snapshot[..*cut];
            dir.put("s.json", short);
            let found = found(&dir, "s");
            // Without the last LF it is still whole, unless a journal stands on its length.
            if steps == 0 && *cut == stored.snapshot.len() - 1 {
                assert!(matches!(found, Err(warning) if warning.contains("outside")));
                return;
            }
            assert!(is_corrupt(&found), "cut at {cut}");
            let mut session = Session::new(id("s"), Head::default());
            session.append(&[r#"{"n": 9}"#]);
            let one = engine(&dir);
            for force in [false, true] {
                let saved = one.save(&session, &SaveOptions { force, ..SaveOptions::default() });
                assert!(matches!(saved.unwrap_err().error, Error::Corrupt { .. }), "cut at {cut}");
            }
            assert!(matches!(one.delete(&id("s"), &SaveOptions::default()), Err(Error::Corrupt { .. })));
            one.close().unwrap();
            assert_eq!(dir.get("s.json").unwrap(), short);
            assert_eq!(dir.get("s.journal").unwrap_or_default(), stored.journal);
        });
    }
}

#[test]
fn a_journal_without_its_snapshot_is_corrupt_unless_it_says_nothing() {
    let stored = stored("s", 2);
    let cuts: Vec<usize> = (0..=stored.journal.len()).collect();
    in_parallel(&cuts, |cut| {
        let dir = FaultDir::default();
        dir.put("s.journal", &stored.journal[..*cut]);
        let found = found(&dir, "s");
        if *cut < stored.ends()[0] {
            assert_eq!(found, Ok(None), "cut at {cut}");
        } else {
            assert!(is_corrupt(&found), "cut at {cut}");
        }
    });
}
