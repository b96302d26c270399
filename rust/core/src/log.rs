//! The message log: every message is serialised once and kept in the very bytes that a snapshot holds.
//!
//! The log's *wire* is what stands in the file between `"messages": [` and `\n  ]`: for every message a separator
//! (`,` newline and four spaces) and the message. The first message's comma is not part of the file, so the first
//! byte of the wire is skipped wherever the wire is used. A chunk of a loaded file is a slice of that file.

use bytes::Bytes;
use std::sync::Arc;

/// What stands before every message.
pub const SEPARATOR: &[u8; 6] = b",\n    ";
/// Chunks below this size are merged with their neighbours, so that a snapshot is few, large slices.
const MERGE_BELOW: usize = 64 * 1024;
/// A slice of a loaded file is cut into chunks of about this size.
const CHUNK: usize = 1024 * 1024;

#[derive(Debug)]
struct Chunk {
    wire: Bytes,
    /// End of each message in `wire`.
    ends: Vec<u32>,
    /// Index of its first message.
    first: usize,
    /// CRC of the log's wire (without its first byte) up to the end of this chunk.
    crc: u32,
}

impl Chunk {
    fn message(&self, index: usize) -> Option<Bytes> {
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)? as usize,
            None => 0,
        };
        let end = *self.ends.get(index)? as usize;
        Some(self.wire.slice(start + SEPARATOR.len()..end))
    }
}

/// A list of serialised messages, appended to at the end. A clone costs the same whatever the length.
#[derive(Debug, Clone, Default)]
pub struct MessageLog {
    /// Chunks that have their size; clones share the list.
    full: Arc<Vec<Arc<Chunk>>>,
    /// The few behind them that are still merged with what comes.
    open: Vec<Arc<Chunk>>,
    count: usize,
    wire_len: usize,
}

impl MessageLog {
    /// Number of messages.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True without messages.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the wire, its first byte (which no file holds) not counted.
    pub fn wire_len(&self) -> usize {
        self.wire_len.saturating_sub(1)
    }

    /// CRC-32C of the wire without its first byte.
    pub fn crc(&self) -> u32 {
        self.last_chunk().map_or(0, |chunk| chunk.crc)
    }

    fn chunks(&self) -> impl DoubleEndedIterator<Item = &Arc<Chunk>> {
        self.full.iter().chain(&self.open)
    }

    fn last_chunk(&self) -> Option<&Arc<Chunk>> {
        self.open.last().or_else(|| self.full.last())
    }

    /// The wire in pieces, ready to be written.
    pub fn wire(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks().enumerate().map(|(i, chunk)| {
            let wire: &[u8] = &chunk.wire;
            if i == 0 {
                wire.get(1..).unwrap_or_default()
            } else {
                wire
            }
        })
    }

    /// One message's bytes; shares them.
    pub fn get(&self, index: usize) -> Option<Bytes> {
        let chunks = match self.open.first() {
            Some(open) if index >= open.first => &self.open,
            _ => &*self.full,
        };
        let chunk = chunks.get(chunks.partition_point(|chunk| chunk.first <= index).checked_sub(1)?)?;
        chunk.message(index - chunk.first)
    }

    /// Messages from `from` on.
    pub fn iter_from(&self, from: usize) -> impl Iterator<Item = Bytes> + '_ {
        (from..self.count).filter_map(|i| self.get(i))
    }

    /// Bytes that the messages from `from` on take, separators not counted.
    pub fn bytes_from(&self, from: usize) -> usize {
        let mut total = 0;
        for chunk in self.chunks().rev() {
            let count = chunk.ends.len();
            if chunk.first + count <= from {
                break;
            }
            let skip = from.saturating_sub(chunk.first);
            let start = skip.checked_sub(1).and_then(|i| chunk.ends.get(i)).map_or(0, |end| *end as usize);
            total += chunk.wire.len() - start - (count - skip) * SEPARATOR.len();
        }
        total
    }

    /// Appends serialised messages (valid, canonical JSON objects, each on one line).
    pub fn append<M: AsRef<[u8]>>(&mut self, messages: &[M]) {
        let size: usize = messages.iter().map(|m| m.as_ref().len() + SEPARATOR.len()).sum();
        if size == 0 {
            return;
        }
        let mut wire = Vec::with_capacity(size);
        let mut ends = Vec::with_capacity(messages.len());
        for message in messages {
            wire.extend_from_slice(SEPARATOR);
            wire.extend_from_slice(message.as_ref());
            ends.push(wire.len() as u32);
        }
        self.push_chunk(wire.into(), ends);
    }

    fn push_chunk(&mut self, mut wire: Bytes, mut ends: Vec<u32>) {
        // Before anything is merged: what was there before is counted already.
        let counted = if self.count == 0 { wire.get(1..).unwrap_or_default() } else { &wire };
        let crc = crc32c::crc32c_append(self.crc(), counted);
        // Like a binary counter: a chunk grows by merging with its equals, so a byte is copied few times.
        while let Some(last) = self.open.last() {
            if last.wire.len() + wire.len() > MERGE_BELOW {
                // It has its size, and so has what is before it.
                Arc::make_mut(&mut self.full).append(&mut self.open);
                break;
            }
            if last.wire.len() > 2 * wire.len() {
                break;
            }
            let mut merged = Vec::with_capacity(last.wire.len() + wire.len());
            merged.extend_from_slice(&last.wire);
            merged.extend_from_slice(&wire);
            let shift = last.wire.len() as u32;
            ends = last.ends.iter().copied().chain(ends.into_iter().map(|end| end + shift)).collect();
            wire = merged.into();
            self.pop_chunk();
        }
        let first = self.count;
        self.count += ends.len();
        self.wire_len += wire.len();
        self.open.push(Arc::new(Chunk { wire, ends, first, crc }));
    }

    fn pop_chunk(&mut self) -> Option<Arc<Chunk>> {
        let chunk = self.open.pop().or_else(|| Arc::make_mut(&mut self.full).pop())?;
        self.count = chunk.first;
        self.wire_len -= chunk.wire.len();
        Some(chunk)
    }

    /// Keeps the first `count` messages.
    pub fn truncate(&mut self, count: usize) {
        while self.count > count {
            let Some(chunk) = self.pop_chunk() else { return };
            let Some(keep) = count.checked_sub(self.count).filter(|keep| *keep > 0) else { continue };
            let ends = chunk.ends.get(..keep).unwrap_or_default().to_vec();
            let end = ends.last().map_or(0, |end| *end as usize);
            self.push_chunk(chunk.wire.slice(..end), ends);
            return;
        }
    }

    /// Replaces message `index`; what follows it stays.
    pub fn replace(&mut self, index: usize, message: &[u8]) {
        let rest: Vec<Bytes> = self.iter_from(index + 1).collect();
        self.truncate(index);
        self.append(&[message]);
        self.append(&rest);
    }
}

/// Builds a log from a file's bytes: what stands there in wire form is shared, the rest is rewritten.
#[derive(Debug, Default)]
pub(crate) struct LogBuilder {
    log: MessageLog,
    /// A run of messages in wire form: start of its first separator, and the ends within the file.
    run_start: usize,
    run: Vec<u32>,
    /// Messages that were not in wire form.
    loose: Vec<Vec<u8>>,
    last_end: usize,
}

impl LogBuilder {
    /// Takes the message at `start..end` of `file`; `spaced`: its white space has to be made canonical.
    pub fn push(&mut self, file: &Bytes, start: usize, end: usize, spaced: bool) {
        let separator = start.checked_sub(SEPARATOR.len());
        let first = self.log.is_empty() && self.run.is_empty() && self.loose.is_empty();
        let in_form = !spaced
            && separator.is_some_and(|from| {
                let bytes = file.get(from..start).unwrap_or_default();
                // The first byte is a comma, or, before the very first message, the array's bracket.
                bytes.get(1..) == SEPARATOR.get(1..)
                    && (first || (bytes.first() == Some(&b',') && from == self.last_end))
            });
        match separator {
            Some(from) if in_form => {
                self.flush_loose();
                if self.run.is_empty() {
                    self.run_start = from;
                }
                self.run.push((end - self.run_start) as u32);
                if end - self.run_start >= CHUNK {
                    self.flush_run(file);
                }
            }
            _ => {
                self.flush_run(file);
                let mut message = Vec::new();
                super::json::respace(file.get(start..end).unwrap_or_default(), &mut message);
                self.loose.push(message);
            }
        }
        self.last_end = end;
    }

    fn flush_run(&mut self, file: &Bytes) {
        if let Some(last) = self.run.last() {
            let wire = file.slice(self.run_start..self.run_start + *last as usize);
            self.log.push_chunk(wire, std::mem::take(&mut self.run));
        }
    }

    fn flush_loose(&mut self) {
        self.log.append(&std::mem::take(&mut self.loose));
    }

    pub fn finish(mut self, file: &Bytes) -> MessageLog {
        self.flush_run(file);
        self.flush_loose();
        self.log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for m in messages {
            out.extend_from_slice(SEPARATOR);
            out.extend_from_slice(m);
        }
        out.get(1..).unwrap_or_default().to_vec()
    }

    fn check(log: &MessageLog, model: &[Vec<u8>]) {
        assert_eq!(log.len(), model.len());
        for (i, m) in model.iter().enumerate() {
            assert_eq!(&log.get(i).unwrap(), m);
        }
        assert!(log.get(model.len()).is_none());
        let expected = wire(model);
        let got: Vec<u8> = log.wire().flatten().copied().collect();
        assert_eq!(got, expected);
        assert_eq!(log.wire_len(), expected.len());
        assert_eq!(log.crc(), crc32c::crc32c(&expected));
        for from in [0, model.len() / 2, model.len()] {
            let bytes: usize = model.iter().skip(from).map(Vec::len).sum();
            assert_eq!(log.bytes_from(from), bytes);
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Append(Vec<Vec<u8>>),
        Truncate(usize),
        Replace(usize, Vec<u8>),
    }

    fn op() -> impl Strategy<Value = Op> {
        let message = prop_oneof![
            9 => "\\{[a-z]{0,30}\\}".prop_map(String::into_bytes),
            1 => (0usize..90_000).prop_map(|n| vec![b'x'; n + 1]),
        ];
        prop_oneof![
            4 => prop::collection::vec(message.clone(), 0..5).prop_map(Op::Append),
            1 => (0usize..60).prop_map(Op::Truncate),
            1 => ((0usize..60), message).prop_map(|(i, m)| Op::Replace(i, m)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector(ops in prop::collection::vec(op(), 0..25)) {
            let mut log = MessageLog::default();
            let mut model: Vec<Vec<u8>> = Vec::new();
            for op in ops {
                let (before, old) = (log.clone(), model.clone());
                match op {
                    Op::Append(m) => { log.append(&m); model.extend(m); }
                    Op::Truncate(n) => { log.truncate(n); model.truncate(n); }
                    Op::Replace(i, m) if i < model.len() => { log.replace(i, &m); model[i] = m; }
                    Op::Replace(..) => {}
                }
                check(&log, &model);
                check(&before, &old); // a clone never changes
            }
        }
    }
}
