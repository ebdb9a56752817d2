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
    /// A body, with the room that was taken for it.
    pub(crate) fn new(body: Bytes, room: Option<OwnedSemaphorePermit>) -> Self {
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
        if bytes <= SMALL_BYTES {
            return Ok(None);
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        match timeout(self.patience, Arc::clone(&self.units).acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => {
                Err(ApiError::new(ErrorCode::Unavailable, "the relay holds as many large requests as it can"))
            }
        }
    }
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
}
