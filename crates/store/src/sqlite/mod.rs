//! The store in one SQLite file.
//!
//! The file is `relay.db` in the store's folder, with a write-ahead log beside it. One thread writes: it takes the requests that wait,
//! carries them out in one transaction, and answers when that is on disk, so that many callers share one flush. Another
//! takes the log into the file meanwhile. Reads go to a few connections of their own and never wait for writes.

mod artifacts;
mod attempts;
mod chain;
mod checkpoints;
mod folder;
mod idempotency;
mod keys;
mod readers;
mod receipts;
pub(crate) mod schema;
mod secrets;
mod sessions;
mod tasks;
mod transfer;
mod usage;
mod webhooks;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, Row, Rows};

use crate::row::to_sql;
use crate::{Options, Store, StoreError, WriteStats};
use readers::Readers;
use writer::{Transaction, Writer};

/// The store in one SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    // Dropped in this order: the readers before the writer, which holds the folder's lock to its end.
    readers: Arc<Readers>,
    writer: Writer,
}

impl Sqlite {
    /// Opens the store in a folder, and makes folder and store where there is none.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another relay has it open, [`StoreError::Schema`] if a newer version wrote it,
    /// [`StoreError::Corrupt`] if the file is no store, [`StoreError::Io`] and [`StoreError::Backend`] as they say.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(dir, Options::default()).await
    }

    /// Opens the store in a folder under other limits.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub async fn open_with(dir: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        let dir = dir.as_ref().to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            let lock = folder::lock(&dir)?;
            let path = folder::database(&dir)?;
            let mut connection = schema::open_writer(&path)?;
            let log = checkpoints::start(&mut connection, &path)?;
            folder::sync(&dir)?;
            let readers = Arc::new(Readers::open(&path, &options)?);
            Ok(Self { readers, writer: Writer::start(connection, log, lock, &options)? })
        });
        opening.await.map_err(|error| StoreError::Backend(Arc::new(error)))?
    }

    /// What the writer has done since the store was opened.
    pub fn write_stats(&self) -> WriteStats {
        self.writer.stats()
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.readers.read(work).await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.write(work).await
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn close(&self) {
        self.readers.close();
        self.writer.close().await;
    }
}

/// Reads all rows.
fn collect<T>(
    mut rows: Rows<'_>,
    read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(read(row)?);
    }
    Ok(all)
}
