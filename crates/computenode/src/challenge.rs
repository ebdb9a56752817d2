//! The capability challenge, answered: what [`gpu::challenge`] asks, computed on one of this machine's devices.

use std::sync::Arc;
use std::time::Duration;

use gpu::Device;
use gpu::challenge::{Backend, Challenge, ChallengeError, Commitment, ProveError, backend_for, commit, open};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gpus::{Gpus, Held};

/// The longest that a challenge is computed. It leaves room within the time of a request.
const LIMIT: Duration = Duration::from_secs(60);

/// Answers challenges, one at a time.
pub(crate) struct Challenges {
    gpus: Gpus,
    turn: Arc<Semaphore>,
}

/// Why a challenge is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// There is no such device.
    #[error("this machine has no device {0}")]
    NoSuchDevice(u32),
    /// Another challenge, or a task, has the device.
    #[error("the device is in use")]
    Busy,
    /// The challenge is outside the limits.
    #[error(transparent)]
    Malformed(#[from] ChallengeError),
    /// The device did not do it.
    #[error("{0}")]
    Failed(ProveError),
}

/// A device that is the challenge's alone.
struct Turn {
    device: Device,
    _held: Held,
    _permit: OwnedSemaphorePermit,
}

impl Challenges {
    pub(crate) fn new(gpus: Gpus) -> Self {
        Self { gpus, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Computes all products on this device, as they are announced, counted from 0, and promises them.
    pub(crate) async fn commit(&self, device: u32, challenge: Challenge) -> Result<Commitment, Unanswered> {
        challenge.validate()?;
        let turn = self.turn(device).await?;
        compute(turn, move |backend| commit(backend, &challenge, LIMIT)).await
    }

    /// Computes one product again, in full.
    pub(crate) async fn open(
        &self,
        device: u32,
        challenge: Challenge,
        index: u32,
    ) -> Result<Vec<u8>, Unanswered> {
        challenge.validate()?;
        let turn = self.turn(device).await?;
        compute(turn, move |backend| open(backend, &challenge, index)).await
    }

    /// Takes the device, if nothing else has it. All GPUs are held, so that no task disturbs the measure.
    async fn turn(&self, number: u32) -> Result<Turn, Unanswered> {
        let permit = Arc::clone(&self.turn).try_acquire_owned().map_err(|_| Unanswered::Busy)?;
        let device = usize::try_from(number).ok().and_then(|number| self.gpus.devices().get(number));
        let device = device.cloned().ok_or(Unanswered::NoSuchDevice(number))?;
        let held = self.gpus.hold_all().await.map_err(|_| Unanswered::Busy)?;
        Ok(Turn { device, _held: held, _permit: permit })
    }
}

/// Computes off the threads that serve. The turn ends with the computing, even where nobody waits for it any more.
async fn compute<T: Send + 'static>(
    turn: Turn,
    work: impl FnOnce(&mut dyn Backend) -> Result<T, ProveError> + Send + 'static,
) -> Result<T, Unanswered> {
    let done = tokio::task::spawn_blocking(move || work(&mut *backend_for(&turn.device)));
    match done.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ProveError::Challenge(error))) => Err(Unanswered::Malformed(error)),
        Ok(Err(error)) => Err(Unanswered::Failed(error)),
        Err(error) => {
            tracing::error!(%error, "a challenge ended in a panic");
            Err(Unanswered::Busy)
        }
    }
}
