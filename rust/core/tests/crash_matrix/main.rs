//! Every operation of a workload fails or loses power, and every disk that this may leave is looked at: what was
//! acknowledged is there, what was being written is there whole or not at all, and one can go on.
//!
//! `PERDURE_CRASH_STATES=N` tries about N disks a workload (the default is a smoke test); `PERDURE_CRASH_ONLY=name:op`
//! replays one case with the trace of its calls.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;
mod workloads;

use perdure_core::fs::fault::{Fault, FaultDir, Random};
use std::io::ErrorKind;
use std::panic::{catch_unwind, AssertUnwindSafe};
use support::{check_image, going_on, Action, Crashed, World};
use workloads::{fixed, random, Workload};

impl Workload {
    fn world(&self) -> World {
        let dir = FaultDir::new(self.options);
        for (name, bytes) in &self.files {
            dir.put(name, bytes);
        }
        let mut world = World::new(dir, &self.ids);
        world.sync = self.sync;
        if !self.files.is_empty() {
            world.known[0].acknowledged = support::found(&world.dir.copy(), &self.ids[0]).unwrap();
        }
        world
    }

    fn run(&self, world: &mut World, mut after: impl FnMut(&World)) -> Result<(), Crashed> {
        for action in &self.actions {
            world.act(action)?;
            after(world);
        }
        world.finish()
    }

    /// Files whose un-synced bytes can make a difference.
    fn matters(name: &str) -> bool {
        name.ends_with(".json") || name.ends_with(".journal")
    }

    fn case(&self, op: usize, fault: Fault, seed: u64, test: impl FnOnce(&mut World) -> usize) -> usize {
        let only = std::env::var("PERDURE_CRASH_ONLY").ok();
        if only.as_ref().is_some_and(|only| *only != format!("{}:{op}", self.name)) {
            return 0;
        }
        let mut world = self.world();
        world.dir.plan(op, fault);
        let dir = world.dir.clone();
        match catch_unwind(AssertUnwindSafe(|| test(&mut world))) {
            Ok(states) => states,
            Err(panic) => {
                let call = dir.trace().get(op).map(|c| format!("{} {}", c.what, c.on));
                eprintln!("workload {}, operation {op} ({call:?}), {fault:?}, seed {seed}", self.name);
                eprintln!(
                    "replay: PERDURE_CRASH_ONLY={}:{op} cargo test -p perdure-core --test crash_matrix",
                    self.name
                );
                if only.is_some() {
                    for (number, call) in dir.trace().iter().enumerate() {
                        eprintln!(
                            "{number:4} {} {}{}",
                            call.what,
                            call.on,
                            if number == op { "   <-- here" } else { "" }
                        );
                    }
                }
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// All images of a world in which everything stands still.
    fn check(&self, world: &World, limit: usize, seed: u64) -> usize {
        let mut random = Random::new(seed);
        let images = world.dir.images(limit, seed, Self::matters);
        for (number, image) in images.iter().enumerate() {
            let before: Vec<_> = image
                .ls()
                .into_iter()
                .map(|n| (image.get(&n).map(|b| String::from_utf8_lossy(&b).into_owned()), n))
                .collect();
            // Some first crash a second time while they go on.
            if random.one_in(4) {
                let mut second = World::after(image.copy(), &self.ids, world.known.clone());
                second.dir.plan(random.below(60), Fault::Crash);
                let mut actions = going_on(&mut random).into_iter();
                while actions.next().is_some_and(|action| second.act(&action).is_ok()) {}
                for image in second.dir.images(4, seed, Self::matters) {
                    let checked = check_image(&image, &self.ids, &second.known, &mut random);
                    checked.unwrap_or_else(|e| {
                        panic!("image {number} of {}, second crash: {e}\n{before:#?}", images.len())
                    });
                }
            }
            let checked = check_image(image, &self.ids, &world.known, &mut random);
            checked.unwrap_or_else(|e| panic!("image {number} of {}: {e}\n{before:#?}", images.len()));
        }
        images.len()
    }

    /// Number of operations when nothing fails, and which of them change something.
    fn operations(&self) -> Vec<bool> {
        let mut world = self.world();
        let done = catch_unwind(AssertUnwindSafe(|| self.run(&mut world, |_| ())));
        assert!(
            matches!(done, Ok(Ok(()))),
            "workload {} does not even run without a fault: {:#?}",
            self.name,
            self.actions
        );
        let left: Vec<_> = world.dir.ls().into_iter().filter(|n| !n.ends_with(".json")).collect();
        assert!(left.is_empty(), "{}: a directory at rest holds {left:?}", self.name);
        world.dir.trace().iter().map(|call| call.changes).collect()
    }

    fn crashes(&self, states: usize) -> usize {
        let operations = self.operations();
        let limit = (states / operations.iter().filter(|c| **c).count()).max(2);
        let mut tried = 0;
        for op in (0..operations.len()).filter(|op| operations[*op]) {
            let seed = op as u64;
            tried += self.case(op, Fault::Crash, seed, |world| {
                world.watch = false; // up to here it is the run that operations() watched
                assert_eq!(self.run(world, |_| ()), Err(Crashed::Disk));
                self.check(world, limit, seed)
            });
        }
        tried
    }

    fn failures(&self, states: usize) -> usize {
        let operations = self.operations();
        let mut faults: Vec<(usize, Fault, bool)> = Vec::new();
        for (op, changes) in operations.iter().enumerate() {
            faults.push((op, Fault::Fail(ErrorKind::Other), op % 2 == 0));
            if *changes {
                faults.push((op, Fault::Fail(ErrorKind::StorageFull), op % 2 == 1));
                faults.push((op, Fault::Kill, false));
                faults.push((op, Fault::FailAfter(ErrorKind::Other), false));
                faults.push((op, Fault::FailAfter(ErrorKind::Interrupted), true));
                faults.push((op, Fault::Partly(op as u64), false));
                faults.push((op, Fault::Partly(op as u64 + 1), true));
            }
        }
        // At least two disks a case: a smoke test takes a part of the cases, another one of each workload.
        let mut random = Random::new(self.actions.len() as u64 + self.name.len() as u64);
        let mut all = faults.len();
        while all * 2 > states.max(2) {
            faults.swap_remove(random.below(all));
            all -= 1;
        }
        let share = states as f64 / faults.len() as f64 / self.actions.len() as f64;
        let mut tried = 0;
        for (op, fault, retry) in faults {
            let seed = random.number();
            tried += self.case(op, fault, seed, |world| {
                world.retry = retry;
                let mut tried = 1;
                let done = self.run(world, |world| {
                    // A crash on top of the failure, at any later time.
                    let limit =
                        if share >= 1.0 { share as usize } else { usize::from(random.one_in((1.0 / share) as usize)) };
                    if world.dir.fired() && limit > 0 {
                        tried += self.check(world, limit, seed);
                    }
                });
                assert_eq!(done, Ok(()));
                assert!(world.dir.fired());
                if fault == Fault::Kill {
                    // What a killed process left, the next one that saves or deletes sweeps.
                    for id in 0..self.ids.len() {
                        assert_eq!(world.act(&Action::Load { h: 0, engine: 0, id }), Ok(()));
                        assert_eq!(world.act(&Action::Append { h: 0, sizes: vec![1] }), Ok(()));
                        assert_eq!(world.act(&Action::Save { h: 0 }), Ok(()));
                    }
                }
                let left = |n: &&String| n.ends_with(".tmp");
                assert_eq!(world.dir.ls().iter().find(left), None, "left behind");
                world.dir.crash();
                tried + self.check(world, 2, seed)
            });
        }
        tried
    }
}

fn states(default: usize) -> usize {
    std::env::var("PERDURE_CRASH_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn seeds() -> std::ops::Range<u64> {
    0..states(400).isqrt() as u64 / 2
}

#[test]
fn after_every_crash_the_old_or_the_new_state_is_there() {
    let mut tried = 0;
    for workload in fixed().into_iter().chain(seeds().map(random)) {
        tried += workload.crashes(states(600));
    }
    println!("{tried} disks after a crash");
}

#[test]
fn after_every_failure_one_can_go_on_and_nothing_is_lost() {
    let mut tried = 0;
    for workload in fixed().into_iter().chain(seeds().map(random)) {
        tried += workload.failures(states(200));
    }
    println!("{tried} disks after a failure");
}

/// Steps that are not synced (durability "process"): a power cut may lose them, but must not make the session unreadable.
#[test]
fn without_syncs_a_crash_loses_steps_but_never_the_session() {
    for name in ["turn", "journal", "fold"] {
        let mut workload = fixed().into_iter().find(|workload| workload.name == name).unwrap();
        (workload.name, workload.sync) = (format!("{name}-unsynced"), false);
        println!("{} disks after a crash", workload.crashes(states(600)));
    }
}
