//! Why the store could not do what was asked.

use std::path::PathBuf;
use std::sync::Arc;

/// Why the store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The queue stayed full, every reader stayed in use, or the database could not be reached, until the deadline. Nothing was changed;
    /// try again later.
    #[error("the store is busy or out of reach; try again later")]
    Busy,
    /// No answer came in time. Whether the change was made is unknown: read, or repeat the call.
    #[error("the store gave no answer in time; whether the change was made is unknown")]
    TimedOut,
    /// What is stored cannot be read.
    #[error("the store is corrupt: {what}")]
    Corrupt {
        /// What, and how.
        what: String,
    },
    /// The text is not a cursor that this store gave out.
    #[error("not a cursor of this listing")]
    BadCursor,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// Another process has the folder open.
    #[error("the store folder {} is in use by another relay", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A newer version of this program wrote the store.
    #[error(
        "the store {} has schema version {found}, newer than the {known} that this version knows; run a newer relay",
        path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest schema version that this program knows.
        known: i64,
    },
    /// A file or folder could not be opened or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The caller's events do not lead from the version that it expects to the record that it gives. Nothing was changed.
    #[error("the events do not lead from version {expected} to the record's version {version}")]
    Mismatch {
        /// The expected version.
        expected: u64,
        /// The record's.
        version: u64,
    },
    /// The storage failed. Nothing was changed.
    #[error("the store failed: {0}")]
    Backend(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    pub(crate) fn corrupt(what: impl std::fmt::Display) -> Self {
        Self::Corrupt { what: what.to_string() }
    }

    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source: Arc::new(source) }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, NotADatabase};
        let code = error.sqlite_error_code();
        // A value that the code cannot read was not written by it.
        let is_unreadable = matches!(
            error,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..)
        );
        if is_unreadable || matches!(code, Some(DatabaseCorrupt | NotADatabase)) {
            Self::corrupt(error)
        } else if matches!(code, Some(DatabaseBusy | DatabaseLocked)) {
            Self::Busy
        } else {
            Self::Backend(Arc::new(error))
        }
    }
}
