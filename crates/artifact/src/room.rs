//! Room in a store that is bounded: it is made before the bytes come, by removing what was used longest ago, so that blobs and what
//! is being written take no more than the bound at any time.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::blobs::BlobStore;

/// What one store may hold, and what was promised to blobs that are being written by this process.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// In bytes; without it there is no bound.
    limit: Option<u64>,
    promised: AtomicU64,
    /// Held while room is made, so that the same bytes are not promised twice.
    turn: tokio::sync::Mutex<()>,
}

/// Room for one blob, until this is dropped.
#[derive(Debug)]
pub(crate) struct Promise {
    store: BlobStore,
    bytes: u64,
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtendError {
    /// Files in use, and others that are being written, leave too little.
    #[error("the files in use leave no room for {needed} bytes within the store's {limit}")]
    Busy { needed: u64, limit: u64 },
    /// The store's file system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Room {
    pub(crate) fn bounded(limit: u64) -> Self {
        Self { limit: Some(limit), ..Self::default() }
    }
}

impl Promise {
    /// Nothing is promised yet.
    pub(crate) fn new(store: BlobStore) -> Self {
        Self { store, bytes: 0 }
    }

    /// Whether so many bytes in all need no more room than was made.
    pub(crate) fn covers(&self, total: u64) -> bool {
        self.store.room().limit.is_none() || total <= self.bytes
    }

    /// Makes room for `wanted` bytes in all, or for fewer where others leave no more, if `needed` bytes in all could come in.
    ///
    /// # Errors
    /// [`ExtendError::Busy`] where files in use, and others that are being written, leave too little. Nothing is removed then.
    pub(crate) async fn extend(&mut self, needed: u64, wanted: u64) -> Result<(), ExtendError> {
        let room = self.store.room();
        let (Some(limit), Some(more)) = (room.limit, wanted.checked_sub(self.bytes).filter(|more| *more > 0))
        else {
            return Ok(());
        };
        let _turn = room.turn.lock().await;
        let busy = ExtendError::Busy { needed, limit };
        let Some(for_others) = limit.checked_sub(room.promised.load(Ordering::Relaxed)) else {
            return Err(busy);
        };
        let needed = needed.saturating_sub(self.bytes);
        let made = self.store.make_room(for_others, needed, more).await?.ok_or(busy)?;
        room.promised.fetch_add(made, Ordering::Relaxed);
        self.bytes += made;
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.store.room().promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
