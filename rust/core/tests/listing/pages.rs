//! Pages: their order, and that they fit together.

use super::*;
use crate::watched::Watched;
use perdure_core::fs::fault::{Options, Random};
use perdure_core::Error;
use std::collections::BTreeSet;

fn pages(engine: &Engine, limit: usize, mut between: impl FnMut()) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let page = engine.infos(limit, cursor.as_deref()).unwrap();
        assert!(page.infos.len() <= limit);
        ids.extend(page.infos.iter().map(|info| info.id.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            return ids;
        }
        between();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn pages_neither_repeat_nor_leave_out_what_is_not_changed(
        count in 1usize..70, limit in 1usize..40, seed: u64, coarse: bool, busy in 0usize..4
    ) {
        let dir = FaultDir::new(Options { coarse, ..Options::default() });
        let one = engine(&dir);
        let mut random = Random::new(seed);
        let mut sessions: Vec<Session> = (0..count).map(|n| fresh(&format!("s{n}"), &[text("user", "x")])).collect();
        for session in &mut sessions {
            save(&one, session, false);
        }
        // Not in the order of their names.
        for _ in 0..count {
            let at = random.below(count);
            sessions[at].append(&["{}"]);
            save(&one, &mut sessions[at], random.one_in(2));
        }
        let mut changed = BTreeSet::new();
        let ids = pages(&one, limit, || {
            for _ in 0..busy {
                let at = random.below(count + 5);
                changed.insert(format!("s{at}"));
                match sessions.get_mut(at) {
                    None => save(&one, &mut fresh(&format!("new {}", random.number()), &[]), false),
                    Some(session) if random.one_in(3) => {
                        one.delete(session.id(), &SaveOptions::default()).unwrap();
                        session.detach();
                    }
                    Some(session) => {
                        session.append(&["{}"]);
                        save(&one, session, random.one_in(2));
                    }
                }
            }
        });
        for name in (0..count).map(|n| format!("s{n}")).filter(|name| !changed.contains(name)) {
            prop_assert_eq!(ids.iter().filter(|id| **id == name).count(), 1, "{} in {:?}", name, ids);
        }
        if busy == 0 {
            let all: Vec<_> = one.infos(usize::MAX, None).unwrap().infos.iter().map(|i| i.id.to_string()).collect();
            prop_assert_eq!(ids, all);
        }
    }
}

#[test]
fn newest_first_then_by_name() {
    let dir = FaultDir::new(Options { coarse: true, ..Options::default() });
    for n in [3, 1, 2] {
        with_steps(&dir, &format!("s{n}"), 0);
    }
    assert_eq!(pages(&engine(&dir), 2, || ()), ["s1", "s2", "s3"], "the clock stands still");
    let dir = FaultDir::default();
    for n in [3, 1, 2] {
        with_steps(&dir, &format!("s{n}"), 0);
    }
    let one = engine(&dir);
    let mut first = one.load(&id("s3")).unwrap().unwrap().session;
    assert_eq!(pages(&one, 2, || ()), ["s2", "s1", "s3"]);
    first.append(&["{}"]);
    save(&one, &mut first, true);
    assert_eq!(pages(&one, 2, || ()), ["s3", "s2", "s1"], "its journal is the newest");
    dir.put("s2.json", &dir.get("s2.json").unwrap());
    dir.put("s3.json", &dir.get("s3.json").unwrap());
    assert_eq!(pages(&one, 2, || ()), ["s3", "s2", "s1"], "its snapshot is newer than its journal");
    for cursor in ["", "s1", "1", "x:s1", ":s1", "1.5:s1"] {
        assert!(matches!(one.infos(2, Some(cursor)), Err(Error::BadCursor(_))), "{cursor}");
    }
}

/// Some file systems may give a name twice that is renamed to while the directory is read.
#[test]
fn a_name_twice_is_a_session_once() {
    let dir = FaultDir::default();
    for n in 0..20 {
        with_steps(&dir, &format!("s{n:02}"), n % 2);
    }
    let mut twice = Watched::new(&dir, |_, _| Ok(()));
    twice.twice = true;
    assert_eq!(twice.engine().list().unwrap(), engine(&dir).list().unwrap());
    assert_eq!(listed(&twice.engine()).len(), 20);
}
