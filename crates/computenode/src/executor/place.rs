//! The places of attempts: a slot, and GPUs. One is free for others once nothing of its attempt runs any more, which may be a
//! little after the attempt has ended.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rpc::node::ComputeRequest;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::{Executor, TakeError};
use crate::gpus::Held;

/// How long after its end an attempt's place is waited for. Engines remove a container in a tenth of a second.
const LEAVING_PATIENCE: Duration = Duration::from_secs(3);

/// A place, free once this is dropped.
pub(super) struct Taken {
    _slot: OwnedSemaphorePermit,
    pub(super) gpus: Held,
    // Dropped last.
    _told: Told,
}

/// Tells those that wait for a place.
struct Told(watch::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send_replace(());
    }
}

/// The places of attempts that have ended, and when they did.
#[derive(Default)]
pub(super) struct Leaving {
    places: Mutex<Vec<(Instant, Weak<Taken>)>>,
    freed: watch::Sender<()>,
}

impl Leaving {
    /// The attempt has ended that had this place.
    pub(super) fn end(&self, place: Arc<Taken>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|(_, place)| place.strong_count() > 0);
        places.push((Instant::now(), Arc::downgrade(&place)));
        drop((places, place));
    }

    /// Until when a place may be waited for, if one may.
    fn patience(&self) -> Option<Instant> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let left = places.iter().filter(|(_, place)| place.strong_count() > 0);
        left.map(|(ended, _)| *ended + LEAVING_PATIENCE).max().filter(|until| *until > Instant::now())
    }
}

impl Executor {
    /// A place for a task; where all are taken, one that an ended attempt is about to leave.
    pub(super) async fn take_place(&self, request: &ComputeRequest) -> Result<Arc<Taken>, TakeError> {
        let leaving = &self.0.leaving;
        let mut freed = leaving.freed.subscribe();
        loop {
            freed.mark_unchanged();
            let patience = leaving.patience();
            match (self.take_free(request).await, patience) {
                (Err(TakeError::Busy | TakeError::GpusBusy(_)), Some(until)) => {
                    // Whatever comes first, the next look tells.
                    let _ = tokio::time::timeout_at(until, freed.changed()).await;
                }
                (taken, _) => return taken,
            }
        }
    }

    async fn take_free(&self, request: &ComputeRequest) -> Result<Arc<Taken>, TakeError> {
        let slot = Arc::clone(&self.0.slots).try_acquire_owned().map_err(|_| TakeError::Busy)?;
        let gpus = self.hold_gpus(request).await?;
        Ok(Arc::new(Taken { _slot: slot, gpus, _told: Told(self.0.leaving.freed.clone()) }))
    }
}
