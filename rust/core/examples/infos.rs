//! A page of a listing against the raw calls for it in Rust, alternating: readdir, stat of every file, 4 KiB of each
//! snapshot on the page.
//!
//!     infos DIRECTORY ROUNDS
//!
//! The directory is one with sessions; nothing in it is changed. `benches/infos_bench.py` makes such directories and has
//! the figures against the same calls in Python.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use perdure_core::Engine;
use std::fs;
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE: usize = 50;

fn floor(dir: &Path, page: &[PathBuf]) {
    for entry in fs::read_dir(dir).unwrap() {
        black_box(entry.unwrap().metadata().unwrap());
    }
    let mut head = [0; 4096];
    for path in page {
        black_box(fs::File::open(path).unwrap().read(&mut head).unwrap());
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().expect("usage: infos DIRECTORY ROUNDS"));
    let rounds: usize = arguments.next().and_then(|n| n.parse().ok()).expect("usage: infos DIRECTORY ROUNDS");
    let engine = Engine::open(&dir).unwrap();
    let infos = || engine.infos(PAGE, None).unwrap().infos;
    let page: Vec<PathBuf> = infos().iter().map(|info| dir.join(format!("{}.json", info.id.stem()))).collect();
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            let started = Instant::now();
            if (round + turn) % 2 == 0 {
                black_box(infos());
                ours.push(started.elapsed());
            } else {
                floor(&dir, &page);
                raw.push(started.elapsed());
            }
        }
    }
    let (ours, raw) = (median(ours), median(raw));
    println!("infos {ours:.2} ms, raw calls {raw:.2} ms: {:.2} times", ours / raw);
}
