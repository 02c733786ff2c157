//! Randomness behind one seam: the kernel's in service, a seeded generator in tests and simulations.

/// A source of random bytes. Ids, lease tokens, nonces and retry jitter come from here.
#[derive(Debug)]
pub enum Entropy {
    /// The kernel's generator, read in blocks: a system call for each id would cost more than the id.
    System {
        /// Bytes read ahead; `used` of them were given out.
        block: Box<[u8; BLOCK_BYTES]>,
        /// How many bytes of `block` are spent.
        used: usize,
    },
    /// SplitMix64 (Steele, Lea, Flood 2014) from a printed seed. Never for service.
    Seeded(u64),
}

/// Some 100 jobs' ids and traces a system call.
const BLOCK_BYTES: usize = 4_096;

impl Entropy {
    /// The kernel's generator.
    pub fn system() -> Entropy {
        Entropy::System { block: Box::new([0; BLOCK_BYTES]), used: BLOCK_BYTES }
    }

    /// Panics if the kernel has no randomness to give: nothing that needs an id can be done safely then.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        match self {
            Entropy::System { block, used } => {
                for byte in &mut out {
                    if *used == BLOCK_BYTES {
                        getrandom::fill(block.as_mut_slice()).expect("the kernel gives random bytes");
                        *used = 0;
                    }
                    // What was given out is wiped, so that no later reader of this memory sees a token.
                    *byte = std::mem::take(&mut block[*used]);
                    *used += 1;
                }
            }
            Entropy::Seeded(state) => {
                for chunk in out.chunks_mut(8) {
                    let word = split_mix(state).to_be_bytes();
                    chunk.copy_from_slice(&word[..chunk.len()]);
                }
            }
        }
        out
    }

    /// A number in `0..=max`, evenly enough for jitter (not for cryptography).
    pub fn up_to(&mut self, max: u64) -> u64 {
        let word = u64::from_be_bytes(self.bytes());
        max.checked_add(1).map_or(word, |range| word % range)
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_again_and_the_kernel_does_not() {
        let (mut a, mut b) = (Entropy::Seeded(7), Entropy::Seeded(7));
        assert_eq!(a.bytes::<33>(), b.bytes::<33>());
        assert!((0..100).all(|_| a.up_to(3) <= 3));
        let mut kernel = Entropy::system();
        assert_ne!(kernel.bytes::<32>(), kernel.bytes::<32>());
    }
}
