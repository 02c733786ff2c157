//! HMAC-SHA256 (RFC 2104) with keys derived by HKDF-SHA256 (RFC 5869), wiped when they go.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::negative_controls::{Control, is_off};

/// Bytes of a mac.
pub const MAC_BYTES: usize = 32;

/// An HMAC key with its padding hashed in: cloned for each message, never derived again. It has one place in memory, where
/// it is wiped when it goes; what work with it leaves on the stack is wiped by [`wipe_stack`].
pub struct MacKey(Box<Hmac<Sha256>>);

impl MacKey {
    /// From key bytes of any length.
    #[must_use]
    #[inline(never)]
    pub fn new(key: &[u8]) -> MacKey {
        MacKey(Box::new(Hmac::new_from_slice(key).expect("HMAC takes keys of any length")))
    }

    /// The mac over the parts, one after the other.
    #[must_use]
    #[inline(never)]
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
        let mut mac = Hmac::clone(&self.0);
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }

    /// True if `tag` is that mac; compared in constant time.
    #[must_use]
    #[inline(never)]
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        let mut mac = Hmac::clone(&self.0);
        parts.iter().for_each(|part| mac.update(part));
        mac.verify_slice(tag).is_ok() || is_off(Control::Signature)
    }
}

impl Drop for MacKey {
    fn drop(&mut self) {
        if is_off(Control::Wiping) {
            std::mem::forget(std::hint::black_box(self.0.clone()));
        }
    }
}

/// Wipes what deeper calls have left on this thread's stack: a key whose owner is gone is nowhere any more.
#[inline(never)]
pub fn wipe_stack() {
    let mut left = [0_u8; 16 * 1024];
    left.zeroize();
    std::hint::black_box(&left);
}

/// HKDF-Extract (RFC 5869, 2.2).
#[must_use]
pub fn hkdf_extract(salt: &[u8], ikm: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(MacKey::new(salt).sign(&[ikm]))
}

/// HKDF-Expand (RFC 5869, 2.3) for at most 255 blocks; the info comes in parts.
#[must_use]
pub fn hkdf_expand<const N: usize>(prk: &[u8; 32], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let key = MacKey::new(prk);
    let mut out = Zeroizing::new([0; N]);
    let mut previous = Zeroizing::new([0_u8; 32]);
    for (index, chunk) in out.chunks_mut(32).enumerate() {
        let counter = [u8::try_from(index + 1).expect("N is at most 255 blocks")];
        let before: &[u8] = if index == 0 { &[] } else { &previous[..] };
        let parts: Vec<&[u8]> =
            [before].into_iter().chain(info.iter().copied()).chain([&counter[..]]).collect();
        *previous = key.sign(&parts);
        chunk.copy_from_slice(&previous[..chunk.len()]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{hex, parse_hex};

    #[test]
    fn hkdf_gives_the_vectors_of_rfc_5869() {
        // Appendix A.1.
        let salt: [u8; 13] = parse_hex(b"000102030405060708090a0b0c").unwrap();
        let prk = hkdf_extract(&salt, &[0x0B; 22]);
        assert_eq!(hex(&*prk), "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let info: [u8; 10] = parse_hex(b"f0f1f2f3f4f5f6f7f8f9").unwrap();
        let okm: Zeroizing<[u8; 42]> = hkdf_expand(&prk, &[&info[..4], &info[4..]]);
        assert_eq!(
            hex(&*okm),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
        // Appendix A.3: no salt, no info.
        let prk = hkdf_extract(&[], &[0x0B; 22]);
        let okm: Zeroizing<[u8; 42]> = hkdf_expand(&prk, &[]);
        assert_eq!(
            hex(&*okm),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
        );
    }
}
