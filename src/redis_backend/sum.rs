//! Tags of a state's entries, and their sum modulo 2^256. Pure.

use crate::mac::MAC_BYTES;

/// What an entry adds to the sum that its state is signed by.
pub type Tag = [u8; MAC_BYTES];

/// A number of 256 bits, the lowest word first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum([u64; 4]);

impl Sum {
    pub fn of<'a>(tags: impl IntoIterator<Item = &'a Tag>) -> Sum {
        tags.into_iter().fold(Sum::default(), |sum, tag| sum.plus(tag))
    }

    pub fn plus(self, tag: &Tag) -> Sum {
        self.combined(tag, |word, other, carry| {
            let (sum, first) = word.overflowing_add(other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (sum, first || second)
        })
    }

    pub fn minus(self, tag: &Tag) -> Sum {
        self.combined(tag, |word, other, borrow| {
            let (difference, first) = word.overflowing_sub(other);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            (difference, first || second)
        })
    }

    fn combined(self, tag: &Tag, combine: impl Fn(u64, u64, bool) -> (u64, bool)) -> Sum {
        let (words, _) = tag.as_chunks();
        let (mut out, mut carry) = (self.0, false);
        for (word, other) in out.iter_mut().zip(words) {
            (*word, carry) = combine(*word, u64::from_le_bytes(*other), carry);
        }
        Sum(out)
    }

    pub fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        let chunks = out.chunks_exact_mut(8).zip(self.0);
        chunks.for_each(|(chunk, word)| chunk.copy_from_slice(&word.to_le_bytes()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_carry_and_borrow() {
        let (one, all) = (std::array::from_fn(|at| u8::from(at == 0)), [0xFF; 32]);
        assert_eq!(Sum::of([&all, &one]), Sum::default());
        assert_eq!(Sum::default().minus(&one).to_bytes(), all);
    }
}
