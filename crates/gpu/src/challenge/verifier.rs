//! The verifier's side. The types hold the order: nobody learns what will be opened before all is promised.

use std::collections::BTreeSet;
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::freivalds::{self, BITS_PER_VECTOR};
use super::matrices::{self, Factors};
use super::{Bytes32, Challenge, ChallengeError, Commitment};

/// The most bits of certainty; one checked product never takes more than five vectors.
const MAX_ERROR_BITS: u32 = 300;

/// What the verifier asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// See [`Challenge::n`].
    pub n: u32,
    /// See [`Challenge::products`].
    pub products: u32,
    /// How many products to see in full, 1 to `products`.
    pub openings: u32,
    /// A wrong product that is opened passes with a probability of at most 2 to the minus this, 1 to 300.
    pub error_bits: u32,
}

impl Default for Terms {
    /// Half a tera of multiply-adds: a minute of work for a few CPU cores, below a second for a GPU, so that it tells these
    /// apart. Telling GPUs apart takes more products. Two openings of 16 MiB.
    fn default() -> Self {
        Self { n: 2048, products: 64, openings: 2, error_bits: 60 }
    }
}

/// Waits for the commitment.
pub struct Verifier {
    challenge: Challenge,
    openings: u32,
    vectors: u32,
    /// Nobody but the verifier can foresee it.
    secret: ChaCha20Rng,
}

/// Waits for the openings.
pub struct Audit {
    challenge: Challenge,
    commitment: Commitment,
    elapsed: Duration,
    vectors: u32,
    secret: ChaCha20Rng,
    /// The products still to be opened, the next one last.
    wanted: Vec<u32>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The multiply-adds of 8-bit integers that were done.
    pub multiply_adds: u64,
    /// In this time, in microseconds, by the verifier's clock.
    pub elapsed_us: u64,
    /// So many of them each second, at least.
    pub multiply_adds_per_second: u64,
}

/// Why a proof is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// The terms are outside the challenge's limits.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// The terms ask for no opening, or more than there are products.
    #[error("the terms ask for {openings} openings of {products} products")]
    Openings {
        /// How many openings.
        openings: u32,
        /// How many products.
        products: u32,
    },
    /// The terms ask for no certainty or for too much.
    #[error("the terms ask for an error below 2^-{0}; it must be 1 to {MAX_ERROR_BITS} bits")]
    ErrorBits(u32),
    /// A digest for each product is missing.
    #[error("the commitment has {got} digests for {products} products")]
    Digests {
        /// How many came.
        got: usize,
        /// How many there must be.
        products: u32,
    },
    /// The opened product has the wrong length.
    #[error("product {index} has {got} bytes instead of {expected}")]
    Length {
        /// Which product.
        index: u32,
        /// Its length.
        got: usize,
        /// What it must be.
        expected: usize,
    },
    /// The opened product is not what was promised.
    #[error("product {index} is not the one that was committed to")]
    NotCommitted {
        /// Which product.
        index: u32,
    },
    /// What was promised is not the product.
    #[error("product {index} is wrong")]
    Wrong {
        /// Which product.
        index: u32,
    },
}

impl VerifyError {
    /// The error's stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Challenge(error) => error.code(),
            Self::Openings { .. } => "challenge_openings",
            Self::ErrorBits(_) => "challenge_error_bits",
            Self::Digests { .. } => "challenge_digest_count",
            Self::Length { .. } => "challenge_opening_length",
            Self::NotCommitted { .. } => "challenge_not_committed",
            Self::Wrong { .. } => "challenge_wrong_product",
        }
    }
}

impl Verifier {
    /// A challenge to send, and what waits for the answer. `entropy` must be fresh from the operating system's
    /// generator and stay secret: all that the prover must not foresee comes from it.
    ///
    /// # Errors
    /// The terms are outside the limits.
    pub fn start(terms: &Terms, entropy: [u8; 32]) -> Result<(Self, Challenge), VerifyError> {
        let mut secret = ChaCha20Rng::from_seed(entropy);
        let mut seed = [0; 32];
        secret.fill_bytes(&mut seed);
        let challenge = Challenge { seed: Bytes32(seed), n: terms.n, products: terms.products };
        challenge.validate()?;
        let (openings, products) = (terms.openings, terms.products);
        if openings == 0 || openings > products {
            return Err(VerifyError::Openings { openings, products });
        }
        if terms.error_bits == 0 || terms.error_bits > MAX_ERROR_BITS {
            return Err(VerifyError::ErrorBits(terms.error_bits));
        }
        let vectors = terms.error_bits.div_ceil(BITS_PER_VECTOR);
        Ok((Self { challenge: challenge.clone(), openings, vectors, secret }, challenge))
    }

    /// Takes the commitment, `elapsed` after the challenge was sent, and draws what is to be opened.
    ///
    /// # Errors
    /// The commitment does not have one digest for each product.
    pub fn commitment(mut self, commitment: Commitment, elapsed: Duration) -> Result<Audit, VerifyError> {
        let products = self.challenge.products;
        if commitment.digests.len() != products as usize {
            return Err(VerifyError::Digests { got: commitment.digests.len(), products });
        }
        let mut wanted = BTreeSet::new();
        while wanted.len() < self.openings as usize {
            // The bias of the remainder is below 2⁻⁵⁴.
            wanted.insert((self.secret.next_u64() % u64::from(products)) as u32);
        }
        Ok(Audit {
            challenge: self.challenge,
            commitment,
            elapsed,
            vectors: self.vectors,
            secret: self.secret,
            wanted: wanted.into_iter().rev().collect(),
        })
    }
}

impl Audit {
    /// The products to ask for, in the order in which [`Audit::check`] takes them.
    pub fn wanted(&self) -> impl Iterator<Item = u32> {
        self.wanted.iter().rev().copied()
    }

    /// Checks the bytes of the next wanted product; with the last comes the verdict. A product that fails stays wanted.
    /// Blocks: a quarter of a second for the largest.
    ///
    /// # Errors
    /// The proof is refused.
    pub fn check(&mut self, product: &[u8]) -> Result<Option<Verdict>, VerifyError> {
        if let Some(index) = self.wanted.last().copied() {
            self.check_one(index, product)?;
            self.wanted.pop();
        }
        Ok(self.wanted.is_empty().then(|| self.verdict()))
    }

    fn check_one(&mut self, index: u32, product: &[u8]) -> Result<(), VerifyError> {
        let expected = self.challenge.product_bytes();
        if product.len() != expected {
            return Err(VerifyError::Length { index, got: product.len(), expected });
        }
        if self.commitment.digests.get(index as usize) != Some(&matrices::digest(product)) {
            return Err(VerifyError::NotCommitted { index });
        }
        let factors = Factors::generate(&self.challenge, index);
        let (a, b) = factors.halves();
        let n = self.challenge.n as usize;
        if freivalds::is_product(n, a, b, product, self.vectors, &mut self.secret) {
            Ok(())
        } else {
            Err(VerifyError::Wrong { index })
        }
    }

    fn verdict(&self) -> Verdict {
        let multiply_adds = self.challenge.multiply_adds();
        let elapsed_us = u64::try_from(self.elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        let per_second = u128::from(multiply_adds) * 1_000_000 / u128::from(elapsed_us);
        Verdict {
            multiply_adds,
            elapsed_us,
            multiply_adds_per_second: u64::try_from(per_second).unwrap_or(u64::MAX),
        }
    }
}
