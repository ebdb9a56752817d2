//! The durable state of a relay: tasks with their histories and attempts, provider sessions, API keys, kept answers, records of inference,
//! webhooks, artifacts' metadata, the chain's word and secrets.
//!
//! [`Store`] is the seam: one trait for each concern, and two kinds of store behind them. [`Sqlite`] keeps everything in one file of a
//! folder, for one relay; [`Postgres`] in a database, for many.
//! A write that was answered is durable: it survives the end of the process at any moment. The rules by which tasks change are crate
//! `taskmarket`'s; this crate keeps what they decide, and guards it by the record's version.

mod artifacts;
mod attempts;
mod chain;
mod error;
mod idempotency;
mod keys;
mod listing;
mod options;
mod postgres;
mod receipts;
mod row;
mod secrets;
mod sessions;
mod sqlite;
mod tasks;
mod transfer;
mod usage;
mod value;
mod webhooks;

use std::sync::Arc;

use async_trait::async_trait;

pub use artifacts::{Added, ArtifactMeta, Artifacts, DOOMED_SECS, NewArtifact, TaskPortion};
pub use attempts::{Attempts, Outcome, Placement, StoredAttempt};
pub use chain::Chains;
pub use error::StoreError;
pub use idempotency::{ANSWER_KEPT_SECS, Begun, IN_FLIGHT_SECS, Idempotency, StoredAnswer};
pub use keys::{Deadlines, Keys, NewKey, Scope, StoredKey, UnknownScope};
pub use options::{Options, WriteStats};
pub use postgres::Postgres;
pub use receipts::{ModelUsage, Receipt, Receipts, StoredReceipt};
pub use secrets::Secrets;
pub use sessions::{NewSession, SUPERSEDED, Sessions, StoredSession};
pub use sqlite::Sqlite;
pub use tasks::{
    Commit, Cursor, EventFilter, KeyId, Page, Published, StoredEvent, StoredTask, TaskFilter, Tasks,
};
pub use transfer::{CopyError, CopyProgress, TABLES, Table, Transfer, copy};
pub use usage::{Usage, UsageFilter, Usages};
pub use value::Value;
pub use webhooks::{Delivery, DeliveryRetry, NewWebhook, StoredWebhook, Webhooks};

/// All that a relay keeps.
#[async_trait]
pub trait Store:
    Tasks
    + Attempts
    + Sessions
    + Keys
    + Usages
    + Receipts
    + Idempotency
    + Webhooks
    + Artifacts
    + Chains
    + Secrets
    + Transfer
    + 'static
{
    /// Finishes what is queued, refuses the rest, and lets go of the underlying storage. Later calls fail with [`StoreError::Closed`].
    async fn close(&self);
}

/// Opens a store: the SQLite one of a folder, or the PostgreSQL one of a connection string, `postgres://…`.
///
/// # Errors
/// As [`Sqlite::open`] and [`Postgres::connect`].
pub async fn open(location: &str) -> Result<Arc<dyn Store>, StoreError> {
    if location.starts_with("postgres://") || location.starts_with("postgresql://") {
        return Ok(Arc::new(Postgres::connect(location).await?));
    }
    Ok(Arc::new(Sqlite::open(location).await?))
}
