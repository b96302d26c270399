//! The model says what it promises: too kind a disk would prove nothing.

use super::super::{Dir, File, Open};
use super::{Fault, FaultDir, Options};
use std::collections::BTreeSet;
use std::io::{ErrorKind, IoSlice};

type Files = Vec<(String, Vec<u8>)>;

fn images(dir: &FaultDir) -> BTreeSet<Files> {
    let files = |image: &FaultDir| image.ls().into_iter().map(|n| (n.clone(), image.get(&n).unwrap())).collect();
    dir.images(5000, 1, |_| true).iter().map(files).collect()
}

fn contents(dir: &FaultDir) -> BTreeSet<Vec<u8>> {
    images(dir).into_iter().flatten().map(|(_, content)| content).collect()
}

fn file(dir: &FaultDir, name: &str, content: &[u8]) -> Box<dyn File> {
    dir.put(name, content);
    dir.open(name, Open::Write).unwrap()
}

fn write(file: &dyn File, at: u64, bytes: &[u8]) {
    file.write_at(at, &[IoSlice::new(bytes)]).unwrap();
}

fn small() -> FaultDir {
    FaultDir::new(Options { block: 4, ..Options::default() })
}

#[test]
fn a_name_is_durable_only_with_its_directory() {
    let dir = small();
    let made = dir.open("a", Open::CreateNew).unwrap();
    write(&*made, 0, b"1");
    made.sync_all().unwrap();
    let there = vec![("a".to_string(), b"1".to_vec())];
    assert_eq!(images(&dir), [vec![], there.clone()].into());
    dir.sync().unwrap();
    assert_eq!(images(&dir), [there].into());
}

#[test]
fn a_rename_is_atomic_and_names_are_independent() {
    let dir = small();
    dir.put("a", b"old");
    dir.put("t", b"new");
    dir.put("x", b"x");
    dir.rename("t", "a").unwrap();
    dir.remove("x").unwrap();
    let names: BTreeSet<Vec<String>> = images(&dir)
        .into_iter()
        .map(|files| files.into_iter().map(|(n, c)| format!("{n}={}", c.len())).collect())
        .collect();
    let (a, t, x) = ("a=3".to_string(), "t=3".to_string(), "x=1".to_string());
    let expected = [vec![a.clone(), t.clone(), x.clone()], vec![a.clone(), t], vec![a.clone(), x], vec![a]];
    assert_eq!(names, expected.into());
    assert!(images(&dir).iter().all(|files| files.iter().any(|(n, c)| n == "a" && (c == b"old" || c == b"new"))));
}

#[test]
fn writes_are_cut_anywhere_and_lose_any_block() {
    let dir = small();
    let open = file(&dir, "a", b"ab");
    write(&*open, 2, b"cdEFGHij"); // blocks abcd EFGH ij
    let found = contents(&dir);
    for cut in 2..=10 {
        assert!(found.contains(&b"abcdEFGHij"[..cut]), "cut at {cut}");
    }
    for holes in [&b"ab\0\0EFGHij"[..], b"abcd\0\0\0\0ij", b"ab\0\0\0\0\0\0ij", b"ab\0\0EFGH"] {
        assert!(found.contains(holes), "{:?}", String::from_utf8_lossy(holes));
    }
    assert!(found.iter().all(|c| c.starts_with(b"ab")), "what was durable is not touched");
    open.sync_data().unwrap();
    assert_eq!(contents(&dir), [b"abcdEFGHij".to_vec()].into());
}

#[test]
fn a_cut_and_a_write_after_it_are_independent() {
    let dir = small();
    let open = file(&dir, "a", b"oldoldold");
    open.set_len(0).unwrap();
    write(&*open, 0, b"new");
    let found = contents(&dir);
    for expected in [&b"oldoldold"[..], b"", b"new", b"newoldold", b"n"] {
        assert!(found.contains(expected), "{:?}", String::from_utf8_lossy(expected));
    }
    open.sync_data().unwrap();
    assert_eq!(contents(&dir), [b"new".to_vec()].into());
}

#[test]
fn a_failed_sync_leaves_pages_clean_that_never_reach_the_disk() {
    let dir = small();
    let open = file(&dir, "a", b"");
    write(&*open, 0, b"aaaabbbb");
    dir.fail_next("sync_data", "a", Fault::Fail(ErrorKind::Other));
    open.sync_data().unwrap_err();
    assert_eq!(open.read_from(0).unwrap(), b"aaaabbbb");
    open.sync_data().unwrap(); // says so, and does nothing
    assert_eq!(contents(&dir), [vec![]].into());
    // A block that is written again goes to disk whole; the other one is a hole.
    write(&*open, 6, b"B");
    open.sync_data().unwrap();
    assert_eq!(contents(&dir), [b"\0\0\0\0bbBb".to_vec()].into());

    write(&*open, 0, b"cccc");
    dir.fail_next("sync_data", "a", Fault::FailAfter(ErrorKind::Other));
    open.sync_data().unwrap_err();
    assert_eq!(contents(&dir), [b"ccccbbBb".to_vec()].into());
}

#[test]
fn after_a_crash_nothing_works_and_after_a_kill_only_for_that_process() {
    let dir = small();
    let (one, other) = (dir.process(1), dir.process(2));
    let open = one.open("a", Open::Create).unwrap();
    assert!(open.try_lock().unwrap());
    dir.fail_next("write", "a", Fault::Kill);
    open.write_at(0, &[IoSlice::new(b"x")]).unwrap_err();
    assert!(one.killed() && !other.killed());
    open.unlock().unwrap_err();
    assert!(one.names().is_err());
    assert_eq!(other.get("a").unwrap(), b"x", "a write that was under way is in the page cache");
    let theirs = other.open("a", Open::Write).unwrap();
    assert!(!theirs.try_lock().unwrap());
    drop(open); // the system closes a dead process's files
    assert!(theirs.try_lock().unwrap());
    dir.crash();
    assert!(other.names().is_err() && theirs.read_from(0).is_err());
}

#[test]
fn a_full_disk_takes_half_a_write() {
    let dir = small();
    let open = file(&dir, "a", b"");
    dir.fail_next("write", "a", Fault::Partly(1));
    assert_eq!(open.write_at(0, &[IoSlice::new(b"abcdef")]).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(dir.get("a").unwrap(), b"abc");
}

#[test]
fn coarse_time_stamps_and_reused_inodes() {
    let dir = FaultDir::new(Options { coarse: true, ..Options::default() });
    let stat = |name: &str| dir.stat(name).unwrap().unwrap();
    dir.put("a", b"1");
    let first = stat("a");
    dir.remove("a").unwrap();
    dir.put("a", b"2");
    assert_eq!(stat("a"), first);
    // An open file keeps its number.
    let open = dir.open("a", Open::Read).unwrap();
    dir.remove("a").unwrap();
    dir.put("a", b"3");
    assert_ne!(stat("a").inode, first.inode);
    assert_eq!(open.stat().unwrap().inode, first.inode);
}

#[test]
fn names_without_case() {
    let dir = FaultDir::new(Options { ignore_case: true, ..Options::default() });
    dir.put("Abc", b"1");
    assert_eq!(dir.open("aBC", Open::CreateNew).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(dir.stat("ABC").unwrap().is_some());
    assert_eq!(dir.ls(), ["Abc"]);
}
