//! The capability challenge: a host shows what it can compute, and its claim is checked in a small part of the time.
//!
//! **The work.** A [`Challenge`] names a fresh random seed, a size `n` and a number of products. Product `i` is
//! `C = A × B` of two `n × n` matrices of signed bytes, exact in 32-bit integers, so that every GPU and CPU gets the same
//! bits. `A` row by row, then `B` column by column, are the first `2n²` bytes of the ChaCha8 key stream (64-bit counter)
//! with the seed as key and `i` as stream number. `C` is `n²` little-endian integers, row by row.
//!
//! **The protocol.**
//! 1. The verifier sends the challenge and starts its clock ([`Verifier::start`]).
//! 2. The prover computes all products and answers with a digest of each ([`commit`]); that stops the clock.
//! 3. Now the verifier draws some products at random ([`Verifier::commitment`]), and the prover sends these in full
//!    ([`open`]), each `4n²` bytes, as bare bytes.
//! 4. Each must have the digest that was committed to and pass Freivalds' check ([`Audit::check`]). The [`Verdict`]
//!    is the multiply-adds per second between steps 1 and 2 by the verifier's own clock.
//!
//! **The check.** Over the field of `p = 2⁶¹ − 1`, for a random vector `r`: `A(Br) = Cr` in `O(n²)`. A wrong `C` passes with
//! a probability of at most `1/p` (R. Freivalds, "Probabilistic Machines Can Use Less Running Time", IFIP Congress
//! 1977; over a field, because a non-zero row of `AB − C` is orthogonal to one of `p` vectors). `C` is wrong over the
//! integers only if it is so modulo `p`, since the entries of `AB − C` are below `2³³ < p`. With `v` independent vectors the
//! probability is at most `p⁻ᵛ`; as many are used as [`Terms::error_bits`] asks for.
//!
//! **What a verdict proves.** Somebody computed the products in that time: if a share `f` of the digests are not
//! those of right products, `m` openings find none of them with a probability of at most `(1 − f)ᵐ`, plus `m`
//! times the bound above. The throughput is a lower bound, for it includes the network and the hashing: ask for so many
//! products that an honest host of the claimed class computes for much longer than a message takes. It can also
//! flatter: Strassen's method saves an eighth of the multiplications at each of its levels.
//!
//! **What it does not prove.** Where the work was done: a prover can pass it on to a faster machine that it rents, and several nodes
//! of one owner can share one GPU if they are not asked at the same time. Nor does it prove how much memory a GPU
//! has, or that it will still be there for a task. It measures 8-bit integer arithmetic, which grows with a GPU's
//! class but is not its speed in floating point. The CUDA way uses the tensor cores where there are any (compute
//! capability 8.0), so that a cheat with a better program gains little over an honest host.
//!
//! Everything here is without sockets and clocks but the prover's deadline; randomness comes from the caller.

mod bytes;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod freivalds;
mod matrices;
mod prover;
mod verifier;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::bytes::Bytes32;
pub use self::cpu::Cpu;
#[cfg(feature = "cuda")]
pub use self::cuda::Cuda;
pub use self::prover::{Backend, BackendError, ProveError, backend_for, commit, open};
pub use self::verifier::{Audit, Terms, Verdict, Verifier, VerifyError};

/// `n` is a multiple of this: the CUDA kernel works in tiles of this size.
pub const SIZE_STEP: u32 = 128;
/// The largest `n`. A product of this size has 64 MiB and is checked in a quarter of a second.
pub const MAX_SIZE: u32 = 4096;
/// The most products in one challenge: with the largest `n` a second of work for the fastest GPUs and days for a CPU,
/// so provers set themselves a time limit.
pub const MAX_PRODUCTS: u32 = 4096;

/// The work that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// What the matrices are made from; fresh each time.
    pub seed: Bytes32,
    /// The matrices' rows and columns: a multiple of [`SIZE_STEP`], at most [`MAX_SIZE`].
    pub n: u32,
    /// How many products to compute, 1 to [`MAX_PRODUCTS`].
    pub products: u32,
}

/// The prover's promise of what its products are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitment {
    /// The digest of each product in order: SHA-256 of the SHA-256s of each KiB of the SHA-256s of each KiB of `C`.
    pub digests: Vec<Bytes32>,
    /// How long the prover took by its own clock, in microseconds. Nothing depends on it.
    pub elapsed_us: u64,
}

/// A challenge outside the limits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChallengeError {
    /// Bad `n`.
    #[error("the challenge's n is {0}; it must be a multiple of {SIZE_STEP} up to {MAX_SIZE}")]
    Size(u32),
    /// Too many products or none.
    #[error("the challenge asks for {0} products; it must be 1 to {MAX_PRODUCTS}")]
    Products(u32),
    /// No such product.
    #[error("the challenge has no product {0}")]
    NoSuchProduct(u32),
}

impl ChallengeError {
    /// The error's stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Size(_) => "challenge_size",
            Self::Products(_) => "challenge_products",
            Self::NoSuchProduct(_) => "challenge_no_such_product",
        }
    }
}

impl Challenge {
    /// Checks the limits.
    ///
    /// # Errors
    /// The first field that is outside of them.
    pub fn validate(&self) -> Result<(), ChallengeError> {
        if self.n == 0 || self.n > MAX_SIZE || !self.n.is_multiple_of(SIZE_STEP) {
            return Err(ChallengeError::Size(self.n));
        }
        if self.products == 0 || self.products > MAX_PRODUCTS {
            return Err(ChallengeError::Products(self.products));
        }
        Ok(())
    }

    /// The multiplications, each with its addition, that all products take by the schoolbook method.
    pub fn multiply_adds(&self) -> u64 {
        u64::from(self.n).pow(3).saturating_mul(u64::from(self.products))
    }

    /// How many bytes one product has.
    pub fn product_bytes(&self) -> usize {
        4 * self.entries()
    }

    /// The entries of one matrix.
    pub(crate) fn entries(&self) -> usize {
        (self.n as usize).pow(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_against_hostile_values() {
        let challenge = |n, products| Challenge { seed: Bytes32([0; 32]), n, products };
        for n in [0, 1, 127, 129, MAX_SIZE + SIZE_STEP, u32::MAX, 1 << 31] {
            assert_eq!(challenge(n, 1).validate(), Err(ChallengeError::Size(n)));
        }
        for products in [0, MAX_PRODUCTS + 1, u32::MAX] {
            assert_eq!(challenge(128, products).validate(), Err(ChallengeError::Products(products)));
        }
        let largest = challenge(MAX_SIZE, MAX_PRODUCTS);
        assert_eq!(largest.validate(), Ok(()));
        assert_eq!((largest.multiply_adds(), largest.product_bytes()), (1 << 48, 64 << 20));
    }

    #[test]
    fn the_json_is_stable() {
        let challenge = Challenge { seed: Bytes32([0xab; 32]), n: 128, products: 2 };
        let json = format!(r#"{{"seed":"{}","n":128,"products":2}}"#, "ab".repeat(32));
        assert_eq!(serde_json::to_string(&challenge).unwrap(), json);
        assert_eq!(serde_json::from_str::<Challenge>(&json).unwrap(), challenge);
        for bad in
            [json.replace("ab\"", "a\""), json.replace("ab\"", "zz\""), json.replace("128,", "128,\"x\":1,")]
        {
            assert!(serde_json::from_str::<Challenge>(&bad).is_err(), "{bad}");
        }
    }
}
