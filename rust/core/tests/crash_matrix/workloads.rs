//! What the programs do whose every call is made to fail: told one by one, and made up from seeds.

use crate::support::Action;
use perdure_core::fs::fault::{Options, Random};

pub struct Workload {
    pub name: String,
    pub options: Options,
    pub ids: Vec<String>,
    pub sync: bool,
    /// Files that are there at the beginning.
    pub files: Vec<(&'static str, Vec<u8>)>,
    pub actions: Vec<Action>,
}

const FOREIGN: &str =
    "{\n  \"id\": \"a/b\",\n  \"messages\": [\n    {\n      \"x\": 1.50\n    }\n  ],\n  \"state\": \"Active\"\n}";

pub fn fixed() -> Vec<Workload> {
    use Action::*;
    let (h, id, engine) = (0, 0, 0);
    let new = || New { h, engine, id };
    let append = |size: usize| Append { h, sizes: vec![size] };
    let workload = |name: &str, block: usize, actions: Vec<Action>| Workload {
        name: name.to_string(),
        options: Options { block, ..Options::default() },
        ids: vec!["s".to_string()],
        sync: true,
        files: Vec::new(),
        actions,
    };
    let turn = || {
        vec![
            new(),
            append(20),
            Save { h },
            append(30),
            Step { h },
            append(5),
            append(200),
            Set { h, key: "updated", size: 1 },
            Step { h },
            Tag { h },
            Step { h },
            Save { h },
            append(9),
            Step { h },
            append(1),
            Save { h },
        ]
    };
    let mut all = vec![
        workload(
            "saves",
            64,
            vec![new(), Save { h }, append(100), Save { h }, append(200), append(1), Save { h }, Close { engine }],
        ),
        workload("turn", 64, turn()),
        workload("turn4k", 4096, {
            let mut actions = turn();
            actions.insert(3, append(9000));
            actions.insert(6, append(13000));
            actions
        }),
        workload(
            "edits",
            64,
            vec![
                new(),
                Append { h, sizes: vec![10, 20, 30, 40] },
                Set { h, key: "a", size: 5 },
                Save { h },
                Truncate { h, keep: 2 },
                Step { h },
                Replace { h, at: 0, size: 9 },
                Unset { h, key: "a" },
                Step { h },
                Set { h, key: "a", size: 1 },
                append(70),
                Step { h },
                Truncate { h, keep: 0 },
                Step { h },
                Save { h },
                append(3),
                Step { h },
                Truncate { h, keep: 0 },
                Save { h },
            ],
        ),
        workload(
            "delete",
            64,
            vec![
                new(),
                append(10),
                Save { h },
                append(10),
                Step { h },
                Delete { engine, id },
                new(),
                append(5),
                Save { h },
                append(5),
                Step { h },
                Save { h },
                Delete { engine, id },
                Delete { engine, id },
                new(),
                append(1),
                Step { h },
            ],
        ),
        workload(
            "handles",
            64,
            vec![
                new(),
                append(10),
                Save { h },
                Load { h: 1, engine: 0, id },
                Append { h: 1, sizes: vec![7] },
                Step { h: 1 },
                append(1),
                Save { h },
                append(2),
                Step { h },
                Load { h: 1, engine: 0, id },
                Append { h: 1, sizes: vec![2] },
                Save { h: 1 },
                Load { h, engine, id },
                append(4),
                Step { h },
            ],
        ),
        workload(
            "engines",
            64,
            vec![
                new(),
                append(10),
                Save { h },
                append(8),
                Step { h },
                Load { h: 1, engine: 1, id },
                Append { h: 1, sizes: vec![7] },
                Step { h: 1 },
                Append { h: 1, sizes: vec![7] },
                Save { h: 1 },
                Load { h, engine, id },
                append(1),
                Step { h },
                append(1),
                Step { h },
                Close { engine },
                Load { h: 1, engine: 1, id },
                Append { h: 1, sizes: vec![1] },
                Step { h: 1 },
                Load { h, engine, id },
                append(5),
                Save { h },
                append(5),
                Step { h },
            ],
        ),
        workload(
            "closes",
            64,
            vec![
                new(),
                append(10),
                Save { h },
                append(8),
                Step { h },
                Close { engine },
                append(3),
                Step { h },
                Release { h },
                append(3),
                Step { h },
                Reopen { engine },
                append(3),
                Step { h },
                Save { h },
                Close { engine },
                append(3),
                Step { h },
                Save { h },
                Release { h },
                append(4),
                Save { h },
            ],
        ),
    ];
    all.push(workload(
        "journal",
        512,
        vec![
            new(),
            append(20),
            Line { h },
            append(30),
            Line { h },
            Set { h, key: "updated", size: 1 },
            Step { h },
            Truncate { h, keep: 1 },
            Line { h },
            append(700),
            Tag { h },
            Line { h },
            Checkpoint { engine, id },
            Checkpoint { engine, id },
            append(10),
            Line { h },
            Release { h },
            append(2),
            Line { h },
            Save { h },
            append(2),
            Line { h },
            Delete { engine, id },
            new(),
            append(4),
            Line { h },
            append(4),
            Line { h },
            Delete { engine, id },
        ],
    ));
    all.push(workload(
        "fold",
        4096,
        vec![
            new(),
            append(500),
            Line { h },
            append(40_000),
            Line { h },
            append(30_000),
            Line { h },
            append(30),
            Line { h },
            append(80_000),
            Line { h },
            Close { engine },
            append(80_000),
            Line { h },
            append(60_000),
            Line { h },
            append(30),
            Line { h },
        ],
    ));
    all.push(workload(
        "owners",
        512,
        vec![
            new(),
            append(20),
            Line { h },
            append(30),
            Line { h },
            Load { h: 1, engine: 1, id },
            Append { h: 1, sizes: vec![4] },
            Line { h: 1 },
            Append { h: 1, sizes: vec![5] },
            Step { h: 1 },
            append(7),
            Line { h },
            append(7),
            Save { h },
            Load { h, engine, id },
            append(3),
            Line { h },
            Checkpoint { engine: 1, id },
            Reopen { engine },
            append(3),
            Line { h },
            Delete { engine: 1, id },
        ],
    ));
    let mut foreign = workload(
        "foreign",
        64,
        vec![Load { h, engine, id }, append(5), Step { h }, append(5), Step { h }, Save { h }, append(1), Save { h }],
    );
    foreign.ids = vec!["a/b".to_string()];
    foreign.files = vec![("a_b.json", FOREIGN.as_bytes().to_vec())];
    all.push(foreign);
    // The header alone is longer than a block.
    let mut long = workload(
        "long-id",
        4096,
        vec![
            new(),
            append(10),
            Save { h },
            append(5000),
            Step { h },
            append(20),
            Step { h },
            Save { h },
            append(9000),
            Step { h },
            Delete { engine, id },
        ],
    );
    long.ids = vec!["né".repeat(2000)];
    all.push(long);
    let mut two = workload(
        "two-sessions",
        512,
        vec![
            new(),
            append(600),
            Save { h },
            New { h: 1, engine, id: 1 },
            Append { h: 1, sizes: vec![700, 1] },
            Save { h: 1 },
            append(1),
            Step { h },
            Append { h: 1, sizes: vec![1] },
            Step { h: 1 },
            Delete { engine, id },
            Save { h: 1 },
        ],
    );
    two.ids = vec!["s".to_string(), "t".to_string()];
    all.push(two);
    all
}

/// A workload that a seed makes up.
pub fn random(seed: u64) -> Workload {
    use Action::*;
    let mut r = Random::new(seed);
    let mut actions = vec![New { h: 0, engine: 0, id: 0 }];
    let mut made = [true, false];
    while actions.len() < 24 {
        let h = if made[1] { r.below(2) } else { 0 };
        let engine = r.below(2);
        let size = [1, 30, 70, 300, 5000][r.below(5)];
        actions.push(match r.below(16) {
            0..=3 => Append { h, sizes: (0..=r.below(2)).map(|_| size).collect() },
            4 => Truncate { h, keep: r.below(4) },
            5 => Replace { h, at: r.below(4), size },
            6 => Set { h, key: ["a", "b"][r.below(2)], size },
            7 => Unset { h, key: ["a", "b"][r.below(2)] },
            8 => Step { h },
            9..=10 => Line { h },
            11 => Save { h },
            12 => Checkpoint { engine, id: 0 },
            13 => {
                made[1] = true;
                Load { h: 1, engine, id: 0 }
            }
            14 => [Close { engine }, Reopen { engine }, Release { h }][r.below(3)].clone(),
            _ if r.one_in(3) => Delete { engine, id: 0 },
            _ => Load { h: 0, engine, id: 0 },
        });
        if r.one_in(2) {
            actions.push([Save { h }, Step { h }, Line { h }][r.below(3)].clone());
        }
    }
    let options = Options { block: [64, 512, 4096][r.below(3)], coarse: r.one_in(2), ..Options::default() };
    let ids = vec!["s".to_string()];
    Workload { name: format!("seed-{seed}"), options, ids, sync: true, files: Vec::new(), actions }
}
