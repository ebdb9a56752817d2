//! The matrices of a challenge and the digest of a product: what prover and verifier must agree on.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use super::{Bytes32, Challenge};

/// The pieces that are hashed on their own, in bytes, so that a GPU hashes them side by side.
pub(crate) const CHUNK_BYTES: usize = 1024;

/// Two factors as signed bytes.
pub(crate) struct Factors {
    bytes: Vec<u8>,
}

impl Factors {
    /// Those of product `index`.
    pub(crate) fn generate(challenge: &Challenge, index: u32) -> Self {
        let mut stream = ChaCha8Rng::from_seed(challenge.seed.0);
        stream.set_stream(u64::from(index));
        let mut bytes = vec![0; 2 * challenge.entries()];
        stream.fill_bytes(&mut bytes);
        Self { bytes }
    }

    /// The left factor row by row and the right one column by column.
    pub(crate) fn halves(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.bytes.len() / 2)
    }
}

/// The digest of a product's bytes.
pub(crate) fn digest(product: &[u8]) -> Bytes32 {
    digest_of_pieces(&piece_digests(&piece_digests(product)))
}

/// The digest of a product from its pieces' digests' pieces' digests.
pub(crate) fn digest_of_pieces(digests: &[u8]) -> Bytes32 {
    Bytes32(Sha256::digest(digests).into())
}

fn piece_digests(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(CHUNK_BYTES).flat_map(|chunk| <[u8; 32]>::from(Sha256::digest(chunk))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::challenge::{Backend, Cpu};

    /// The values are those of an implementation that shares no code with this one.
    #[test]
    fn factors_and_digests_are_what_they_always_were() {
        let challenge = Challenge { seed: Bytes32([7; 32]), n: 128, products: 2 };
        let expected = [
            (
                "b01b6ba4e198c8bfd272d30e42388b6f665d8539dc1289f3fee39b643770e7f8",
                "f51cb076d4a9e7769c8e239dbf38f3a469c27974e1d717498c396bf166c66b69",
            ),
            (
                "e5e8c5a2fb435b888f04ef584918070c338df759284ef277bcdcf430fe8b1f0a",
                "6246e271983b2768c9d92e81168bd28e94c58fd057438d265c120f0cd8fb3c79",
            ),
        ];
        for (index, (factors, product)) in (0..).zip(expected) {
            assert_eq!(hex::encode(Sha256::digest(Factors::generate(&challenge, index).bytes)), factors);
            let digests = Cpu::default().digests(&challenge, index..index + 1).unwrap();
            assert_eq!(format!("{digests:?}"), format!("[{product}]"));
        }
    }
}
