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

    /// Makes room for so many bytes in all.
    ///
    /// # Errors
    /// `StorageFull` where files in use, and others that are being written, leave too little.
    pub(crate) async fn extend(&mut self, total: u64) -> io::Result<()> {
        let room = self.store.room();
        let (Some(limit), Some(more)) = (room.limit, total.checked_sub(self.bytes).filter(|more| *more > 0))
        else {
            return Ok(());
        };
        let _turn = room.turn.lock().await;
        let promised = room.promised.load(Ordering::Relaxed).saturating_add(more);
        let fits = match limit.checked_sub(promised) {
            Some(for_blobs) => self.store.trim(for_blobs).await?.left <= for_blobs,
            None => false,
        };
        if !fits {
            let why = format!("the files in use leave no room for {total} bytes within the store's {limit}");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        room.promised.fetch_add(more, Ordering::Relaxed);
        self.bytes = total;
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.store.room().promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
