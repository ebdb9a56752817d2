//! Connections that read.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::schema;
use crate::{Options, StoreError};

/// A bounded set of connections that read, each by one call at a time.
#[derive(Debug)]
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    free: Arc<Semaphore>,
    wait: Duration,
}

impl Readers {
    pub(super) fn open(path: &Path, options: &Options) -> Result<Self, StoreError> {
        let count = options.readers.max(1);
        let idle = (0..count).map(|_| schema::open_reader(path)).collect::<Result<_, _>>()?;
        Ok(Self { idle: Mutex::new(idle), free: Arc::new(Semaphore::new(count)), wait: options.wait })
    }

    /// Runs `work` on a thread that may block.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = timeout(self.wait, self.free.clone().acquire_owned())
            .await
            .map_err(|_| StoreError::Busy)?
            .map_err(|_| StoreError::Closed)?;
        let readers = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let connection = readers.take().ok_or(StoreError::Closed)?;
            let result = work(&connection);
            readers.give_back(connection);
            drop(permit);
            result
        });
        reading.await.map_err(|error| StoreError::Backend(Arc::new(error)))?
    }

    pub(super) fn close(&self) {
        self.free.close();
        self.idle().clear();
    }

    fn take(&self) -> Option<Connection> {
        self.idle().pop()
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle();
        if !self.free.is_closed() {
            idle.push(connection);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
