//! Moving a market from one store to another, table by table. Both kinds of store have the same tables and columns.

use async_trait::async_trait;

use crate::{Store, StoreError, Value};

/// Rows that are read, and written, at once.
const PAGE: usize = 500;

/// The raw rows of a store, for moving them.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// A table's rows in the order of its key, `limit` at most, after the row that has the key `after`.
    async fn rows(
        &self,
        table: &'static Table,
        after: Option<Vec<Value>>,
        limit: usize,
    ) -> Result<Vec<Vec<Value>>, StoreError>;

    /// Adds rows to a table, all or none.
    async fn add_rows(&self, table: &'static Table, rows: Vec<Vec<Value>>) -> Result<(), StoreError>;

    /// Makes the store number what it adds to a table from now on after the rows that were added.
    async fn finish_rows(&self, table: &'static Table) -> Result<(), StoreError>;
}

/// A table's name and columns.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its columns; the first [`Table::key`] of them are its key.
    pub columns: &'static [&'static str],
    /// How many columns the key has.
    pub key: usize,
    /// Whether the store numbers its rows.
    pub numbered: bool,
}

/// All tables, in an order in which each comes after those that it refers to.
pub static TABLES: [Table; 18] = [
    Table {
        name: "tasks",
        columns: &[
            "id",
            "task_id",
            "version",
            "status",
            "requester",
            "provider",
            "attempts",
            "node",
            "gpu_type",
            "created_at",
            "next_due",
            "owner",
            "record",
        ],
        key: 1,
        numbered: true,
    },
    Table {
        name: "events",
        columns: &["seq", "task", "requester", "status", "recorded"],
        key: 1,
        numbered: false,
    },
    Table { name: "task_counts", columns: &["status", "tasks"], key: 1, numbered: false },
    Table {
        name: "sessions",
        columns: &[
            "id",
            "session_id",
            "provider",
            "node_id",
            "relay_id",
            "generation",
            "metadata",
            "connected_at",
            "ended_at",
            "reason",
        ],
        key: 1,
        numbered: true,
    },
    Table {
        name: "node_statuses",
        columns: &["provider", "node_id", "status", "issued_at"],
        key: 2,
        numbered: false,
    },
    Table { name: "relays", columns: &["relay_id", "alive_at"], key: 1, numbered: false },
    Table {
        name: "artifacts",
        columns: &["digest", "size", "owner", "created_at", "used_at", "doomed_at"],
        key: 1,
        numbered: false,
    },
    Table { name: "artifact_totals", columns: &["owner", "bytes"], key: 1, numbered: false },
    Table { name: "secrets", columns: &["name", "value"], key: 1, numbered: false },
    Table {
        name: "api_keys",
        columns: &[
            "id",
            "hash",
            "name",
            "scopes",
            "requests_per_minute",
            "tokens_per_minute",
            "inference_timeout_secs",
            "first_byte_timeout_secs",
            "token_timeout_secs",
            "created_at",
            "expires_at",
            "revoked_at",
        ],
        key: 1,
        numbered: false,
    },
    Table { name: "usage", columns: &["day", "owner", "requests"], key: 2, numbered: false },
    Table { name: "receipts", columns: &["request_id", "owner", "at", "record"], key: 2, numbered: false },
    Table {
        name: "model_usage",
        columns: &["day", "owner", "model", "requests", "prompt_tokens", "completion_tokens"],
        key: 3,
        numbered: false,
    },
    Table {
        name: "idempotency",
        columns: &["owner", "key", "request", "began_at", "status", "content_type", "body", "headers"],
        key: 2,
        numbered: false,
    },
    Table {
        name: "webhooks",
        columns: &[
            "id",
            "task",
            "url",
            "secret_name",
            "created_at",
            "delivered",
            "next_try",
            "tries",
            "failing_since",
            "dead_at",
            "error",
        ],
        key: 1,
        numbered: true,
    },
    Table {
        name: "attempts",
        columns: &[
            "task",
            "attempt",
            "provider",
            "node",
            "session_id",
            "accepted_at",
            "dispatch_ms",
            "ended_at",
            "outcome",
        ],
        key: 3,
        numbered: false,
    },
    Table {
        name: "chain_cursors",
        columns: &["chain_id", "contract", "block", "block_hash", "block_time"],
        key: 2,
        numbered: false,
    },
    Table {
        name: "chain_facts",
        columns: &["task_id", "block", "log_index", "block_time", "fact"],
        key: 3,
        numbered: false,
    },
];

/// How far a copy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// The table that is being copied.
    pub table: &'static str,
    /// Its rows copied so far.
    pub rows: u64,
}

/// Why a market could not be copied. What was copied until then stays in the target.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CopyError {
    /// The target is not empty. Nothing was changed.
    #[error("the target store is not empty: its table {table} has rows")]
    NotEmpty {
        /// A table with rows.
        table: &'static str,
    },
    /// A relay wrote to the source meanwhile: the copy is not whole.
    #[error(
        "the source store was written to while it was copied; stop its relays, empty the target, and copy again"
    )]
    SourceChanged,
    /// The source cannot be read.
    #[error("reading table {table} of the source store: {source}")]
    Read {
        /// Which table.
        table: &'static str,
        /// Why.
        source: StoreError,
    },
    /// The target cannot be written.
    #[error("writing table {table} of the target store: {source}")]
    Write {
        /// Which table.
        table: &'static str,
        /// Why.
        source: StoreError,
    },
}

/// Copies a whole market into an empty store, page by page, and tells how far it has come after each page.
///
/// No relay may use either store meanwhile. A copy that failed leaves the target incomplete: empty it before the next.
///
/// # Errors
/// As the variants of [`CopyError`] say.
pub async fn copy(
    from: &dyn Store,
    to: &dyn Store,
    mut progress: impl FnMut(CopyProgress) + Send,
) -> Result<(), CopyError> {
    for table in &TABLES {
        if !page(to, table, None, 1).await?.is_empty() {
            return Err(CopyError::NotEmpty { table: table.name });
        }
    }
    let before = last_seq(from).await?;
    for table in &TABLES {
        let writing = |source| CopyError::Write { table: table.name, source };
        let (mut after, mut copied) = (None, 0);
        loop {
            let rows = page(from, table, after, PAGE).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last[..table.key].to_vec());
            copied += rows.len() as u64;
            to.add_rows(table, rows).await.map_err(writing)?;
            progress(CopyProgress { table: table.name, rows: copied });
        }
        to.finish_rows(table).await.map_err(writing)?;
    }
    if (last_seq(from).await?, last_seq(to).await?) != (before, before) {
        return Err(CopyError::SourceChanged);
    }
    Ok(())
}

async fn page(
    store: &dyn Store,
    table: &'static Table,
    after: Option<Vec<Value>>,
    limit: usize,
) -> Result<Vec<Vec<Value>>, CopyError> {
    let rows = store.rows(table, after, limit).await;
    rows.map_err(|source| CopyError::Read { table: table.name, source })
}

async fn last_seq(store: &dyn Store) -> Result<u64, CopyError> {
    store.last_seq().await.map_err(|source| CopyError::Read { table: "events", source })
}

/// The statement that reads a page, with its parameters; `parameter` writes the place of one.
pub(crate) fn select(
    table: &Table,
    after: Option<Vec<Value>>,
    limit: usize,
    parameter: impl Fn(usize) -> String,
) -> (String, Vec<Value>) {
    let key = table.columns[..table.key].join(", ");
    let mut values = after.unwrap_or_default();
    let condition = if values.is_empty() {
        String::new()
    } else {
        let places: Vec<_> = (1..=values.len()).map(&parameter).collect();
        format!("WHERE ({key}) > ({})", places.join(", "))
    };
    values.push(Value::Int(crate::row::to_sql(limit as u64)));
    let sql = format!(
        "SELECT {} FROM {} {condition} ORDER BY {key} LIMIT {}",
        table.columns.join(", "),
        table.name,
        parameter(values.len())
    );
    (sql, values)
}

/// The statement that adds a row.
pub(crate) fn insert(table: &Table, parameter: impl Fn(usize) -> String) -> String {
    let places: Vec<_> = (1..=table.columns.len()).map(parameter).collect();
    format!("INSERT INTO {} ({}) VALUES ({})", table.name, table.columns.join(", "), places.join(", "))
}
