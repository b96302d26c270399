//! Which disks a crash may leave.

use super::disk::{put, Change, Entries, Entry, Inode};
use super::{FaultDir, Options, Random};
use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// States of the directory that are tried.
const DIRECTORIES: usize = 64;

impl FaultDir {
    /// The disks that may be found after a crash at this moment, each as a directory of its own, no two alike. All that
    /// the model can tell apart by few choices (operations kept or lost, subsets of few blocks, cuts where they matter)
    /// if there are at most `limit` of them; else the extreme ones and a sample that `seed` chooses. The same seed, the
    /// same sample. Files of which `matters` is false are found as they are live, if at all: they do not multiply the rest.
    pub fn images(&self, limit: usize, seed: u64, matters: impl Fn(&str) -> bool) -> Vec<FaultDir> {
        let disk = self.disk();
        let mut random = Random::new(seed);
        let directories = directories(&disk.durable, &disk.pending, &disk.options, &mut random);
        let named = directories.iter().flat_map(|entries| &entries.0).filter(|(name, _)| matters(name));
        let relevant: BTreeSet<usize> = named.map(|(_, inode)| *inode).collect();
        let contents: Vec<(usize, Vec<Vec<u8>>)> = relevant
            .into_iter()
            .filter_map(|at| {
                disk.inodes.get(at).map(|inode| (at, inode.outcomes(disk.options.block, limit, &mut random)))
            })
            .collect();
        let (mut seen, mut images) = (HashSet::new(), Vec::new());
        let mut pick = |choose: &mut dyn FnMut(usize) -> usize| {
            let Some(entries) = directories.get(choose(directories.len())) else { return 0 };
            let chosen: Vec<(usize, &Vec<u8>)> =
                contents.iter().filter_map(|(at, all)| all.get(choose(all.len())).map(|one| (*at, one))).collect();
            let mut files: Vec<(&str, &[u8])> = Vec::new();
            for (name, at) in &entries.0 {
                let live = || disk.inodes.get(*at).map(|inode| &inode.live);
                let content = chosen.iter().find(|(inode, _)| inode == at).map(|(_, content)| *content).or_else(live);
                files.push((name, content.map(Vec::as_slice).unwrap_or_default()));
            }
            let mut hash = DefaultHasher::new();
            for file in files.iter().filter(|(name, _)| matters(name)) {
                file.hash(&mut hash);
            }
            if seen.insert(hash.finish()) {
                let image = FaultDir::new(disk.options);
                for (name, content) in files {
                    image.put(name, content);
                }
                images.push(image);
            }
            images.len()
        };
        let product = contents.iter().fold(directories.len(), |n, (_, all)| n.saturating_mul(all.len()));
        if product <= limit {
            for number in 0..product {
                let mut rest = number;
                pick(&mut |len| {
                    let digit = rest % len;
                    rest /= len;
                    digit
                });
            }
            return images;
        }
        // Of every list of choices the first is what is durable, the last what is live.
        for corner in 0..4 {
            let mut first = true;
            pick(&mut |len| {
                let live = if std::mem::take(&mut first) { corner & 1 } else { corner >> 1 };
                live * (len - 1)
            });
        }
        for _ in 0..limit * 2 {
            if pick(&mut |len| random.below(len)) >= limit {
                break;
            }
        }
        images
    }
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// Entries that may be found: of operations with names in common some first ones, independent of the others.
fn directories(durable: &Entries, pending: &[Entry], options: &Options, random: &mut Random) -> Vec<Entries> {
    let mut groups: Vec<(Vec<&str>, Vec<usize>)> = Vec::new();
    for (number, entry) in pending.iter().enumerate() {
        let names: Vec<&str> = match entry {
            Entry::Link { name, .. } | Entry::Unlink { name } => vec![name],
            Entry::Rename { from, to } => vec![from, to],
        };
        let shares = |group: &Vec<&str>| group.iter().any(|g| names.iter().any(|n| options.same(g, n)));
        let (mut joined, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(|(group, _)| shares(group));
        groups = apart;
        let mut numbers: Vec<usize> = joined.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect();
        let mut all: Vec<&str> = joined.drain(..).flat_map(|(names, _)| names).chain(names).collect();
        all.dedup();
        numbers.push(number);
        numbers.sort_unstable();
        groups.push((all, numbers));
    }
    let build = |choose: &mut dyn FnMut(usize) -> usize| {
        let kept: BTreeSet<usize> =
            groups.iter().flat_map(|(_, numbers)| numbers.iter().copied().take(choose(numbers.len() + 1))).collect();
        let mut entries = durable.clone();
        for number in kept {
            if let Some(entry) = pending.get(number) {
                entries.apply(entry, options);
            }
        }
        entries
    };
    let product = groups.iter().fold(1usize, |n, (_, numbers)| n.saturating_mul(numbers.len() + 1));
    let mut found = vec![durable.clone()];
    let all = build(&mut |len| len - 1);
    if product <= DIRECTORIES {
        for number in 1..product {
            let mut rest = number;
            let entries = build(&mut |len| {
                let digit = rest % len;
                rest /= len;
                digit
            });
            push_new(&mut found, entries);
        }
    } else {
        for _ in 0..DIRECTORIES {
            let entries = build(&mut |len| random.below(len));
            push_new(&mut found, entries);
        }
    }
    found.retain(|entries| *entries != all);
    found.push(all);
    found
}

impl Change {
    /// What may be found of it, none and the whole left out: pieces `(from, to)` of a write's bytes.
    fn parts(&self, block: usize, limit: usize, random: &mut Random) -> Vec<Vec<(usize, usize)>> {
        let Change::Write { at, bytes } = self else { return Vec::new() };
        let len = bytes.len();
        let mut parts = Vec::new();
        if len < limit / 2 {
            parts.extend((1..len).map(|cut| vec![(0, cut)]));
        } else {
            let lines = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').flat_map(|(i, _)| [i, i + 1, i + 2]);
            let cuts = lines.chain([1, len / 2, len - 1]).filter(|cut| (1..len).contains(cut)).take(12);
            parts.extend(cuts.map(|cut| vec![(0, cut)]));
            parts.extend((0..4).map(|_| vec![(0, random.below(len))]));
        }
        let blocks: Vec<(usize, usize)> = (at / block..(at + len).div_ceil(block))
            .map(|b| ((b * block).saturating_sub(*at), ((b + 1) * block - at).min(len)))
            .collect();
        let subset = |wanted: &dyn Fn(usize) -> bool| -> Vec<(usize, usize)> {
            blocks.iter().enumerate().filter(|(i, _)| wanted(*i)).map(|(_, piece)| *piece).collect()
        };
        if blocks.len() <= 5 {
            for mask in 1..(1usize << blocks.len()) - 1 {
                parts.push(subset(&|i| mask >> i & 1 == 1));
            }
        } else {
            for _ in 0..16 {
                let (one, mask) = (random.below(blocks.len()), random.number());
                parts.push(subset(&|i| i == one));
                parts.push(subset(&|i| i != one));
                parts.push(subset(&|i| mask >> (i % 64) & 1 == 1));
            }
        }
        parts
    }

    fn part(&self, pieces: &[(usize, usize)], content: &mut Vec<u8>) {
        let Change::Write { at, bytes } = self else { return };
        for (from, to) in pieces {
            put(content, at + from, bytes.get(*from..*to).unwrap_or_default());
        }
    }
}

impl Inode {
    /// Contents that may be found; the durable one first, the whole last.
    pub(super) fn outcomes(&self, block: usize, limit: usize, random: &mut Random) -> Vec<Vec<u8>> {
        if self.pending.is_empty() {
            return vec![self.durable.clone()];
        }
        let mut found = vec![self.durable.clone()];
        let mut before = self.durable.clone();
        // Everything up to one operation, and a part of that one.
        for change in &self.pending {
            for part in change.parts(block, limit, random) {
                let mut content = before.clone();
                change.part(&part, &mut content);
                push_new(&mut found, content);
            }
            change.whole(&mut before);
            push_new(&mut found, before.clone());
        }
        let whole = before;
        if self.pending.len() <= 6 {
            for mask in 1..(1usize << self.pending.len()) - 1 {
                let mut content = self.durable.clone();
                let kept = self.pending.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
                kept.for_each(|(_, change)| change.whole(&mut content));
                push_new(&mut found, content);
            }
        }
        if self.pending.len() > 1 {
            for _ in 0..limit.min(64) {
                push_new(&mut found, self.random_outcome(block, random));
            }
        }
        found.retain(|content| *content != whole);
        found.push(whole);
        found
    }

    /// Some content that may be found.
    pub(super) fn random_outcome(&self, block: usize, random: &mut Random) -> Vec<u8> {
        let mut content = self.durable.clone();
        for change in &self.pending {
            match random.below(3) {
                0 => {}
                1 => change.whole(&mut content),
                _ => {
                    let parts = change.parts(block, 8, random);
                    match parts.get(random.below(parts.len())) {
                        Some(part) => change.part(part, &mut content),
                        None => change.whole(&mut content),
                    }
                }
            }
        }
        content
    }
}
