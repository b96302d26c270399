//! Finding the bytes at which a string needs a second look, sixty-four at a time.
//!
//! The compiler turns the loop over a block into vector instructions of whatever machine it compiles for; there is
//! nothing here that a machine could lack.

use std::marker::PhantomData;

const BLOCK: usize = 64;

/// A set of bytes.
pub(super) trait Class {
    /// True for the bytes of the set. Written with `|`, not `||`: branches would keep it from being vectorised.
    fn has(byte: u8) -> bool;
}

/// One bit for each byte of the block, set for those of the class.
#[inline(always)]
fn mask<C: Class>(block: &[u8; BLOCK]) -> u64 {
    let mut flags = [0u8; BLOCK];
    for (flag, byte) in flags.iter_mut().zip(block) {
        *flag = u8::from(C::has(*byte));
    }
    let (eights, _) = flags.as_chunks::<8>();
    let mut mask = 0;
    for (i, eight) in eights.iter().enumerate() {
        // Gathers the eight flags, each the lowest bit of its byte, in the highest byte.
        let bits = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        mask |= bits << (8 * i);
    }
    mask
}

/// Walks over the bytes of a class in a text. It remembers the block it is in, so that close neighbours cost a shift.
pub(super) struct Stops<'a, C> {
    text: &'a [u8],
    base: usize,
    mask: u64,
    class: PhantomData<C>,
}

impl<'a, C: Class> Stops<'a, C> {
    pub fn new(text: &'a [u8]) -> Self {
        // No place is within a block of such a base: the first look loads one.
        Stops { text, base: usize::MAX - BLOCK, mask: 0, class: PhantomData }
    }

    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// Offset of the first byte of the class from `from` on; the length of the text if there is none.
    #[inline]
    pub fn next(&mut self, from: usize) -> usize {
        let offset = from.wrapping_sub(self.base);
        if offset >= BLOCK {
            return self.load(from);
        }
        let rest = self.mask >> offset;
        if rest == 0 {
            return self.load(self.base + BLOCK);
        }
        from + rest.trailing_zeros() as usize
    }

    fn load(&mut self, mut at: usize) -> usize {
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            self.base = at;
            self.mask = match rest.first_chunk() {
                Some(block) => mask::<C>(block),
                None => {
                    let mut block = [b' '; BLOCK];
                    for (to, from) in block.iter_mut().zip(rest) {
                        *to = *from;
                    }
                    mask::<C>(&block)
                }
            };
            if self.mask != 0 {
                return at + self.mask.trailing_zeros() as usize;
            }
            at += BLOCK;
            if at >= self.text.len() {
                return self.text.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Vowel;

    impl Class for Vowel {
        fn has(byte: u8) -> bool {
            (byte == b'a') | (byte == b'e')
        }
    }

    #[test]
    fn beyond_the_end_is_the_end() {
        for (text, from) in [("", 0), ("", 7), ("xyz", 3), ("xyz", 64), ("xyz", 65)] {
            assert_eq!(Stops::<Vowel>::new(text.as_bytes()).next(from), text.len(), "{text:?} from {from}");
        }
    }

    proptest! {
        /// Also in jumps, forwards and backwards: a remembered block must not answer for another.
        #[test]
        fn agrees_with_a_search_byte_by_byte(text in "[a-z]{0,300}", jumps in prop::collection::vec(0usize..320, 1..40)) {
            let text = text.as_bytes();
            let mut stops = Stops::<Vowel>::new(text);
            for from in jumps {
                let rest = text.get(from..).unwrap_or_default();
                let expected = rest.iter().position(|b| Vowel::has(*b)).map_or(text.len(), |at| from + at);
                prop_assert_eq!(stops.next(from), expected);
            }
        }
    }
}
