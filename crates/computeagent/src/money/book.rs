//! The book: open claims, how claims ended, and what transactions cost; one SQLite file in the data folder. Each write is durable on
//! return. The report on earnings reads it beside a running agent.

use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rpc::link::AttemptKey;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use taskmarket::{Address, Amount, Timestamp, U256, eip55};

use super::claim::{Claim, Ending};

/// The file's name in the data folder.
pub(crate) const FILE: &str = "money.db";
/// How long a reader and a writer wait for each other.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS claims (
        task_id TEXT NOT NULL, attempt INTEGER NOT NULL, claim TEXT NOT NULL, PRIMARY KEY (task_id, attempt)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS endings (
        task_id TEXT NOT NULL, attempt INTEGER NOT NULL, ending TEXT NOT NULL, at INTEGER NOT NULL, token TEXT NOT NULL,
        earned TEXT, lost TEXT, PRIMARY KEY (task_id, attempt)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS endings_at ON endings (at);
    CREATE TABLE IF NOT EXISTS transactions (
        purpose TEXT PRIMARY KEY, at INTEGER, cost TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// Why the book cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The database.
    #[error("the book of claims cannot be used: {0}")]
    Database(#[from] rusqlite::Error),
    /// Something in it is not what this program writes.
    #[error("the book of claims cannot be read: {0}")]
    Content(String),
    /// The thread that writes was ended.
    #[error("the writing was given up")]
    Ended,
}

/// How a claim ended, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closing {
    pub(crate) key: AttemptKey,
    pub(crate) ending: Ending,
    pub(crate) at: Timestamp,
    pub(crate) token: Address,
    /// What the provider got beside its stake; none where the chain would not tell.
    pub(crate) earned: Option<Amount>,
    /// What it lost of its stake; none where the chain would not tell.
    pub(crate) lost: Option<Amount>,
}

/// One ending as the report reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) ending: String,
    pub(crate) at: Timestamp,
    pub(crate) token: Address,
    pub(crate) earned: Option<Amount>,
    pub(crate) lost: Option<Amount>,
}

/// The open book. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    connection: Arc<Mutex<Connection>>,
}

impl Book {
    /// Opens the book in a data folder, making it on first use.
    pub(crate) fn open(folder: &Path) -> Result<Self, BookError> {
        let connection = Connection::open(folder.join(FILE))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "truncate")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)) })
    }

    /// Opens it to read alone; it must be there.
    pub(crate) fn open_to_read(folder: &Path) -> Result<Self, BookError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(folder.join(FILE), flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)) })
    }

    /// All open claims. What cannot be read is an error: money hangs on it.
    pub(crate) async fn claims(&self) -> Result<Vec<Claim>, BookError> {
        self.with(|connection| {
            let mut statement = connection.prepare("SELECT claim FROM claims")?;
            let texts = statement.query_map([], |row| row.get::<_, String>(0))?;
            texts.map(|text| serde_json::from_str(&text?).map_err(content)).collect()
        })
        .await
    }

    /// Keeps a claim.
    pub(crate) async fn save(&self, claim: &Claim) -> Result<(), BookError> {
        let key = claim.key();
        let text = serde_json::to_string(claim).map_err(content)?;
        self.with(move |connection| {
            connection.execute(
                "INSERT OR REPLACE INTO claims (task_id, attempt, claim) VALUES (?1, ?2, ?3)",
                params![key.task_id.to_string(), key.attempt, text],
            )?;
            Ok(())
        })
        .await
    }

    /// Forgets a claim that nobody heard of.
    pub(crate) async fn remove(&self, key: &AttemptKey) -> Result<(), BookError> {
        let key = *key;
        self.with(move |connection| {
            connection.execute(
                "DELETE FROM claims WHERE task_id = ?1 AND attempt = ?2",
                params![key.task_id.to_string(), key.attempt],
            )?;
            Ok(())
        })
        .await
    }

    /// Ends a claim: it is open no more, and its ending is kept, in one step.
    pub(crate) async fn close(&self, closing: Closing) -> Result<(), BookError> {
        self.with(move |connection| {
            let (task_id, attempt) = (closing.key.task_id.to_string(), closing.key.attempt);
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO endings (task_id, attempt, ending, at, token, earned, lost)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    task_id,
                    attempt,
                    closing.ending.as_str(),
                    seconds(closing.at),
                    closing.token.to_string(),
                    closing.earned.map(|amount| amount.to_string()),
                    closing.lost.map(|amount| amount.to_string()),
                ],
            )?;
            transaction.execute(
                "DELETE FROM claims WHERE task_id = ?1 AND attempt = ?2",
                params![task_id, attempt],
            )?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// Notes that a transaction is handed to the outbox, so that its cost is to be counted.
    pub(crate) async fn sent(&self, purpose: String) -> Result<(), BookError> {
        self.with(move |connection| {
            connection.execute("INSERT OR REPLACE INTO transactions (purpose) VALUES (?1)", [purpose])?;
            Ok(())
        })
        .await
    }

    /// The transactions whose cost is not known yet.
    pub(crate) async fn uncounted(&self) -> Result<Vec<String>, BookError> {
        self.with(|connection| {
            let mut statement = connection.prepare("SELECT purpose FROM transactions WHERE at IS NULL")?;
            let purposes = statement.query_map([], |row| row.get(0))?;
            Ok(purposes.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Notes what a transaction cost.
    pub(crate) async fn cost(&self, purpose: String, at: Timestamp, cost: U256) -> Result<(), BookError> {
        self.with(move |connection| {
            connection.execute(
                "UPDATE transactions SET at = ?2, cost = ?3 WHERE purpose = ?1",
                params![purpose, seconds(at), cost.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// A number under a name, zero at first.
    pub(crate) async fn number(&self, name: &'static str) -> Result<u64, BookError> {
        self.with(move |connection| {
            let mut statement = connection.prepare("SELECT value FROM numbers WHERE name = ?1")?;
            let value: Option<i64> = statement.query_row([name], |row| row.get(0)).optional()?;
            Ok(u64::try_from(value.unwrap_or(0)).unwrap_or(0))
        })
        .await
    }

    /// Keeps a number under a name.
    pub(crate) async fn set_number(&self, name: &'static str, value: u64) -> Result<(), BookError> {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.with(move |connection| {
            connection.execute(
                "INSERT OR REPLACE INTO numbers (name, value) VALUES (?1, ?2)",
                params![name, value],
            )?;
            Ok(())
        })
        .await
    }

    /// A number that was never given out before.
    pub(crate) async fn next(&self) -> Result<u64, BookError> {
        let next = self.number("transaction").await? + 1;
        self.set_number("transaction", next).await?;
        Ok(next)
    }

    /// The endings from `since` on, the oldest first.
    pub(crate) async fn endings(&self, since: Timestamp) -> Result<Vec<Ended>, BookError> {
        self.with(move |connection| {
            let mut statement = connection
                .prepare("SELECT ending, at, token, earned, lost FROM endings WHERE at >= ?1 ORDER BY at")?;
            let mut rows = statement.query([seconds(since)])?;
            let mut endings = Vec::new();
            while let Some(row) = rows.next()? {
                let token: String = row.get(2)?;
                endings.push(Ended {
                    ending: row.get(0)?,
                    at: time(row.get(1)?),
                    token: eip55::parse(&token).map_err(content)?,
                    earned: amount(row.get(3)?)?,
                    lost: amount(row.get(4)?)?,
                });
            }
            Ok(endings)
        })
        .await
    }

    /// What transactions cost from `since` on: when, and how much of the native coin.
    pub(crate) async fn costs(&self, since: Timestamp) -> Result<Vec<(Timestamp, Amount)>, BookError> {
        self.with(move |connection| {
            let mut statement =
                connection.prepare("SELECT at, cost FROM transactions WHERE at >= ?1 ORDER BY at")?;
            let mut rows = statement.query([seconds(since)])?;
            let mut costs = Vec::new();
            while let Some(row) = rows.next()? {
                costs.push((time(row.get(0)?), amount(row.get(1)?)?.unwrap_or_default()));
            }
            Ok(costs)
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, BookError> + Send + 'static,
    ) -> Result<T, BookError> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            // Every change is one transaction, so the connection is as good after a panic as before.
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.unwrap_or(Err(BookError::Ended))
    }
}

fn content(error: impl std::fmt::Display) -> BookError {
    BookError::Content(error.to_string())
}

fn seconds(time: Timestamp) -> i64 {
    i64::try_from(time.unix()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_unix(u64::try_from(seconds).unwrap_or(0))
}

fn amount(text: Option<String>) -> Result<Option<Amount>, BookError> {
    text.map(|text| Amount::from_str(&text).map_err(content)).transpose()
}
