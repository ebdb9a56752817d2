//! The prover's side.

use std::ops::Range;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Bytes32, Challenge, ChallengeError, Commitment, Cpu};
use crate::Device;

/// What computes products. The answers are the same bits whatever it is.
pub trait Backend: Send {
    /// What it is, for a person.
    fn name(&self) -> String;

    /// How many products it should compute at a time, at least 1: enough to keep it busy, few enough that a time limit
    /// holds.
    fn batch(&self) -> u32;

    /// The digests of some of a valid challenge's products, in order.
    ///
    /// # Errors
    /// The device failed.
    fn digests(&mut self, challenge: &Challenge, range: Range<u32>) -> Result<Vec<Bytes32>, BackendError>;

    /// The bytes of one of a valid challenge's products.
    ///
    /// # Errors
    /// The device failed.
    fn product(&mut self, challenge: &Challenge, index: u32) -> Result<Vec<u8>, BackendError>;
}

/// Why a device cannot compute.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BackendError {
    /// A library is missing, or the GPU is.
    #[error("CUDA cannot be used: {reason}")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// The device gave up.
    #[error("the device failed: {reason}")]
    Failed {
        /// What the driver says.
        reason: String,
    },
}

/// Why a challenge was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProveError {
    /// The challenge asks for what it must not.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// The device could not do it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The time was over first.
    #[error("{done} of the challenge's {products} products were done within {limit:?}")]
    TooSlow {
        /// How many products were done.
        done: u32,
        /// How many were asked for.
        products: u32,
        /// The time there was.
        limit: Duration,
    },
}

impl ProveError {
    /// The error's stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Challenge(error) => error.code(),
            Self::Backend(BackendError::Unavailable { .. }) => "challenge_device_unavailable",
            Self::Backend(BackendError::Failed { .. }) => "challenge_device_failed",
            Self::TooSlow { .. } => "challenge_too_slow",
        }
    }
}

/// The best way to compute on this device: CUDA on NVIDIA's GPUs where this program has the feature and the host its
/// libraries, else the CPU. Blocks for some hundred milliseconds.
pub fn backend_for(device: &Device) -> Box<dyn Backend> {
    #[cfg(feature = "cuda")]
    if device.vendor == Some(crate::Vendor::Nvidia) {
        match super::Cuda::open(device.uuid.as_deref()) {
            Ok(cuda) => return Box::new(cuda),
            Err(error) => tracing::warn!(%error, device = device.name, "the challenge runs on the CPU"),
        }
    }
    tracing::debug!(device = device.name, "the challenge runs on the CPU");
    Box::new(Cpu::default())
}

/// Computes all products and promises their digests. Blocks; it stops within one batch after `limit`.
///
/// # Errors
/// [`ProveError`].
pub fn commit(
    backend: &mut dyn Backend,
    challenge: &Challenge,
    limit: Duration,
) -> Result<Commitment, ProveError> {
    challenge.validate()?;
    let started = Instant::now();
    let mut digests = Vec::with_capacity(challenge.products as usize);
    let batch = backend.batch().max(1);
    for from in (0..challenge.products).step_by(batch as usize) {
        if started.elapsed() > limit {
            return Err(ProveError::TooSlow { done: from, products: challenge.products, limit });
        }
        digests.extend(backend.digests(challenge, from..from.saturating_add(batch).min(challenge.products))?);
    }
    let elapsed = started.elapsed();
    let per_second = challenge.multiply_adds() as f64 / elapsed.as_secs_f64();
    tracing::info!(
        backend = backend.name(),
        ?elapsed,
        multiply_adds_per_second = per_second,
        "challenge done"
    );
    Ok(Commitment { digests, elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX) })
}

/// Computes one product again, to be sent in full. Blocks.
///
/// # Errors
/// [`ProveError`].
pub fn open(backend: &mut dyn Backend, challenge: &Challenge, index: u32) -> Result<Vec<u8>, ProveError> {
    challenge.validate()?;
    if index >= challenge.products {
        return Err(ChallengeError::NoSuchProduct(index).into());
    }
    Ok(backend.product(challenge, index)?)
}
