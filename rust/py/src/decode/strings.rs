//! Strings that come again: the keys of messages, and short values such as roles.
//!
//! They belong to one walk over messages (no statics): nothing outlives the interpreter, no thread waits for another.

use pyo3::prelude::*;
use pyo3::types::PyString;

/// Longest text that is remembered.
const LONGEST: usize = 32;
const SLOTS: usize = 256;

/// A text as words, filled up with zeros, which no plain string of JSON holds.
type Words = [u64; LONGEST / 8];

#[derive(Default)]
struct Slot {
    words: Words,
    string: Option<Py<PyString>>,
}

/// The last string of each of 256 kinds of text.
#[derive(Default)]
pub struct Strings {
    /// Empty until the first string comes.
    slots: Vec<Slot>,
}

impl Strings {
    /// The string of a text without escapes. `None`: too long to be remembered.
    #[inline]
    pub fn get<'py>(&mut self, py: Python<'py>, text: &[u8]) -> Option<PyResult<Bound<'py, PyString>>> {
        let words = words(text)?;
        if let Some(slot) = self.slots.get(place(&words)) {
            if slot.words == words {
                if let Some(string) = &slot.string {
                    return Some(Ok(string.bind(py).clone()));
                }
            }
        }
        Some(self.remember(py, text, words))
    }

    fn remember<'py>(&mut self, py: Python<'py>, text: &[u8], words: Words) -> PyResult<Bound<'py, PyString>> {
        let string = PyString::from_bytes(py, text)?;
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, Slot::default);
        }
        if let Some(slot) = self.slots.get_mut(place(&words)) {
            *slot = Slot { words, string: Some(string.clone().unbind()) };
        }
        Ok(string)
    }
}

#[inline]
fn words(text: &[u8]) -> Option<Words> {
    let mut bytes = [0; LONGEST];
    bytes.get_mut(..text.len())?.copy_from_slice(text);
    let mut words = [0; LONGEST / 8];
    for (word, eight) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*eight);
    }
    Some(words)
}

#[inline]
fn place(words: &Words) -> usize {
    // Multiplication by an odd number spreads upwards; the highest byte has seen all of them.
    let mixed = words.iter().fold(0u64, |mix, word| (mix.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed >> 56) as usize
}
