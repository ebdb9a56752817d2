//! Room for the bodies of requests: they are held in memory until an answer has begun, so all of them together are bounded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rpc::error::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::ApiError;

/// Bodies up to this size need no room, in bytes: the limit on connections bounds them.
const SMALL_BYTES: u64 = 64 * 1024;
/// What room is counted in, in bytes.
const UNIT: u64 = 1024;
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request's body, with the room that it takes.
#[derive(Debug)]
pub(crate) struct Content {
    /// Its bytes.
    pub(crate) body: Bytes,
    /// Given back with the body.
    _room: Option<OwnedSemaphorePermit>,
}

impl Content {
    /// A body, with the room that was taken for it. What it does not need of that is given back: for a body whose length was not said
    /// there is room for the longest.
    pub(crate) fn new(body: Bytes, mut room: Option<OwnedSemaphorePermit>) -> Self {
        if let Some(room) = &mut room {
            let extra = room.num_permits().saturating_sub(units(body.len() as u64) as usize);
            drop(room.split(extra));
        }
        Self { body, _room: room }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    patience: Duration,
}

impl Room {
    /// Room for so many bytes, and for one body of `largest` bytes in any case.
    pub(super) fn new(bytes: u64, largest: usize) -> Self {
        let units = bytes.max(largest as u64).div_ceil(UNIT);
        let units = usize::try_from(units).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), patience: PATIENCE }
    }

    /// Takes room for a body of so many bytes.
    ///
    /// # Errors
    /// 503 where there is none for a while.
    pub(super) async fn take(&self, bytes: u64) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let units = units(bytes);
        if units == 0 {
            return Ok(None);
        }
        match timeout(self.patience, Arc::clone(&self.units).acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => {
                Err(ApiError::new(ErrorCode::Unavailable, "the relay holds as many large requests as it can"))
            }
        }
    }
}

/// The room that a body of so many bytes takes.
fn units(bytes: u64) -> u32 {
    if bytes <= SMALL_BYTES { 0 } else { u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_bodies_share_the_room_and_small_ones_need_none() {
        let room = Room { patience: Duration::from_millis(10), ..Room::new(1 << 20, 100) };
        let held = room.take(1 << 20).await.unwrap();
        assert!(held.is_some());
        assert!(room.take(SMALL_BYTES).await.unwrap().is_none());
        let refused = rpc::error::ErrorBody::from(room.take(SMALL_BYTES + 1).await.unwrap_err());
        assert_eq!(refused.error.code, "unavailable");
        drop(held);
        assert!(room.take(1 << 20).await.is_ok());
        // The largest body always finds room, one at a time.
        assert!(Room::new(1, 1 << 20).take(1 << 20).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_gives_back_what_it_does_not_need() {
        let room = Room { patience: Duration::from_millis(10), ..Room::new(1 << 20, 100) };
        let half = Content::new(vec![0; 1 << 19].into(), room.take(1 << 20).await.unwrap());
        let small = Content::new(vec![0; 100].into(), room.take(1 << 19).await.unwrap());
        let other = room.take(1 << 19).await.unwrap();
        assert!(other.is_some(), "the small one needs none");
        assert!(room.take(SMALL_BYTES + 1).await.is_err());
        drop((half, small, other));
        assert!(room.take(1 << 20).await.is_ok(), "all of it comes back");
    }
}
