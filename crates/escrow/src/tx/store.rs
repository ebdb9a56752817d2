//! The file in which entries are kept. Each write is durable on return.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::entry::Entry;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS outbox (
        purpose TEXT PRIMARY KEY,
        open INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        entry TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS outbox_open ON outbox (open, created_at);
";

/// Why an entry cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error("{0}")]
    Database(#[from] rusqlite::Error),
    /// An entry is not what this program writes.
    #[error("an entry cannot be read: {0}")]
    Entry(#[from] serde_json::Error),
    /// The thread that writes was ended.
    #[error("the writing was given up")]
    Ended,
}

/// An open file. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Store {
    connection: Arc<Mutex<Connection>>,
}

impl Store {
    /// Opens a file, making it on first use, and forgets what ended before `forget_before` (unix seconds).
    pub(super) fn open(path: &Path, forget_before: u64) -> Result<Self, StoreError> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "truncate")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.execute_batch(SCHEMA)?;
        connection.execute(
            "DELETE FROM outbox WHERE open = 0 AND created_at < ?1",
            params![i64::try_from(forget_before).unwrap_or(i64::MAX)],
        )?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)) })
    }

    /// Keeps a new entry; an entry of that purpose that is there already stays, and is the answer.
    pub(super) async fn insert(&self, entry: Entry) -> Result<Entry, StoreError> {
        self.with(move |connection| {
            let transaction = connection.transaction()?;
            if let Some(present) = select(&transaction, &entry.purpose)? {
                return Ok(present);
            }
            put(&transaction, &entry)?;
            transaction.commit()?;
            Ok(entry)
        })
        .await
    }

    /// Replaces an entry.
    pub(super) async fn update(&self, entry: &Entry) -> Result<(), StoreError> {
        let entry = entry.clone();
        self.with(move |connection| put(connection, &entry)).await
    }

    /// Forgets an entry.
    pub(super) async fn remove(&self, purpose: &str) -> Result<(), StoreError> {
        let purpose = purpose.to_owned();
        self.with(move |connection| {
            connection.execute("DELETE FROM outbox WHERE purpose = ?1", params![purpose])?;
            Ok(())
        })
        .await
    }

    /// An entry, if there is one.
    pub(super) async fn get(&self, purpose: &str) -> Result<Option<Entry>, StoreError> {
        let purpose = purpose.to_owned();
        self.with(move |connection| select(connection, &purpose)).await
    }

    /// All entries that are not final, the oldest first.
    pub(super) async fn unfinished(&self) -> Result<Vec<Entry>, StoreError> {
        self.with(|connection| {
            let mut query = connection
                .prepare_cached("SELECT entry FROM outbox WHERE open = 1 ORDER BY created_at, purpose")?;
            let texts = query.query_map([], |row| row.get::<_, String>(0))?;
            texts.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
        })
        .await
    }

    /// Runs on a thread that may block, one at a time.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = Arc::clone(&self.connection);
        tokio::task::spawn_blocking(move || {
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
        .map_err(|_| StoreError::Ended)?
    }
}

fn select(connection: &Connection, purpose: &str) -> Result<Option<Entry>, StoreError> {
    let text: Option<String> = connection
        .query_row("SELECT entry FROM outbox WHERE purpose = ?1", params![purpose], |row| row.get(0))
        .optional()?;
    Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
}

fn put(connection: &Connection, entry: &Entry) -> Result<(), StoreError> {
    connection.execute(
        "INSERT OR REPLACE INTO outbox (purpose, open, created_at, entry) VALUES (?1, ?2, ?3, ?4)",
        params![
            entry.purpose,
            !entry.is_final(),
            i64::try_from(entry.created_at).unwrap_or(i64::MAX),
            serde_json::to_string(entry)?
        ],
    )?;
    Ok(())
}
