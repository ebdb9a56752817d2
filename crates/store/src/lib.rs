//! The durable state of a relay: tasks with their histories, provider sessions, artifacts' metadata and secrets.
//!
//! [`Store`] is the seam: one trait for each concern, and [`Sqlite`] behind them, which keeps everything in one file of a folder.
//! A write that was answered is durable: it survives the end of the process at any moment. The rules by which tasks change are crate
//! `taskmarket`'s; this crate keeps what they decide, and guards it by the record's version.

mod artifacts;
mod error;
mod secrets;
mod sessions;
mod sqlite;
mod tasks;

use async_trait::async_trait;

pub use artifacts::{ArtifactMeta, Artifacts};
pub use error::StoreError;
pub use secrets::Secrets;
pub use sessions::{NewSession, SUPERSEDED, Sessions, StoredSession};
pub use sqlite::{Options, Sqlite, WriteStats};
pub use tasks::{
    Commit, Cursor, EventFilter, KeyId, Page, Published, StoredEvent, StoredTask, TaskFilter, Tasks,
};

/// All that a relay keeps.
#[async_trait]
pub trait Store: Tasks + Sessions + Artifacts + Secrets + 'static {
    /// Finishes what is queued, refuses the rest, and lets go of the underlying storage. Later calls fail with [`StoreError::Closed`].
    async fn close(&self);
}
