//! One durable save of N messages of 1 KiB, against the floor: the same bytes written, synced, renamed and the directory
//! synced by raw calls. The two alternate, so that a disk that slows down slows both.
//!
//! `PERDURE_BENCH_DIR` says on which disk; the default is cargo's target directory, since /tmp is often memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use perdure_core::{Engine, Head, SaveOptions, Session, SessionId};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

fn message(number: usize) -> String {
    // Escapes, a line break and text beyond ASCII, as real conversations have them.
    let text = "\\\"path\\\": a\\n naïve – 你好 ".repeat(26);
    format!(r#"{{"role": "user", "content": [{{"type": "text", "text": "{number:08} {text}"}}]}}"#)
}

fn directory() -> tempfile::TempDir {
    let place =
        std::env::var_os("PERDURE_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    fs::create_dir_all(&place).unwrap();
    tempfile::tempdir_in(place).unwrap()
}

fn save(engine: &Engine, session: &mut Session) -> Duration {
    session.replace(session.log().len() - 1, message(session.base().revision() as usize).as_bytes());
    let written = session.clone();
    let started = Instant::now();
    let receipt = engine.save(&written, &SaveOptions::default()).unwrap();
    let took = started.elapsed();
    session.settle(&written, receipt.saved);
    took
}

fn floor(dir: &Path, bytes: &[u8]) -> Duration {
    let (temp, target) = (dir.join(".floor.tmp"), dir.join("floor.json"));
    let started = Instant::now();
    let mut file = File::create_new(&temp).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    fs::rename(&temp, &target).unwrap();
    File::open(dir).unwrap().sync_all().unwrap();
    started.elapsed()
}

fn saves(c: &mut Criterion) {
    let dir = directory();
    for size in SIZES {
        let engine = Engine::open(dir.path()).unwrap();
        let mut session = Session::new(SessionId::new(format!("bench-{size}")).unwrap(), Head::default());
        session.append(&(0..size).map(message).collect::<Vec<_>>());
        save(&engine, &mut session);
        let path = dir.path().join(format!("bench-{size}.json"));
        let bytes = fs::read(&path).unwrap();

        // In pairs: criterion measures one after the other, and a disk is not the same disk a minute later.
        let pairs = if size > 1_000 { 40 } else { 200 };
        let mut ratios: Vec<f64> = (0..pairs)
            .map(|pair| {
                let first = (pair % 2 == 0).then(|| floor(dir.path(), &bytes));
                let ours = save(&engine, &mut session);
                let raw = first.unwrap_or_else(|| floor(dir.path(), &bytes));
                ours.as_secs_f64() / raw.as_secs_f64()
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share) as usize];
        println!(
            "{size} messages, {} bytes: {:.2} x the floor (median of {pairs} pairs; p10 {:.2}, p90 {:.2})",
            bytes.len(),
            at(0.5),
            at(0.1),
            at(0.9)
        );

        let mut group = c.benchmark_group("durable save");
        group.sample_size(20);
        group.bench_function(BenchmarkId::new("engine", size), |b| {
            b.iter_custom(|count| (0..count).map(|_| save(&engine, &mut session)).sum());
        });
        group.bench_function(BenchmarkId::new("floor", size), |b| {
            b.iter_custom(|count| (0..count).map(|_| floor(dir.path(), &bytes)).sum());
        });
        group.finish();
    }
}

criterion_group!(benches, saves);
criterion_main!(benches);
