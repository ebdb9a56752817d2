//! What the database's errors mean to callers. No message of theirs has a password in it.

use std::sync::Arc;

use deadpool_postgres::{HookError, PoolError};
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::StoreError;

/// Why a call failed that changes nothing.
pub(super) fn reading(error: Error) -> StoreError {
    if is_lost(&error) {
        tracing::warn!(%error, "the connection to the store's database is lost");
        return StoreError::Busy;
    }
    refused(error)
}

/// Why a call failed that changes something: where the connection is lost, nobody knows whether it did.
pub(super) fn writing(error: Error) -> StoreError {
    if is_lost(&error) {
        tracing::warn!(%error, "the connection to the store's database is lost during a write");
        return StoreError::TimedOut;
    }
    refused(error)
}

/// Why there is no connection.
pub(super) fn connecting(error: PoolError) -> StoreError {
    match error {
        PoolError::Closed => StoreError::Closed,
        PoolError::Timeout(_) => StoreError::Busy,
        PoolError::Backend(_) | PoolError::PostCreateHook(_) => {
            tracing::warn!(error = why(&error), "the store's database cannot be reached");
            StoreError::Busy
        }
        PoolError::NoRuntimeSpecified => StoreError::Backend(Arc::new(error)),
    }
}

/// Why there is no connection, for people.
pub(super) fn why(error: &PoolError) -> String {
    match error {
        // The pool's own words add nothing.
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => chain(error),
        PoolError::Timeout(_) => "no answer in time".to_owned(),
        PoolError::PostCreateHook(_) | PoolError::Closed | PoolError::NoRuntimeSpecified => chain(error),
    }
}

/// Whether the connection went away, or the server is about to.
pub(super) fn is_lost(error: &Error) -> bool {
    match error.code() {
        Some(code) => {
            [
                SqlState::ADMIN_SHUTDOWN,
                SqlState::CRASH_SHUTDOWN,
                SqlState::CANNOT_CONNECT_NOW,
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            ]
            .contains(code)
                || code.code().starts_with("08")
        }
        None => {
            error.is_closed()
                || std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
        }
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// The server's refusal; it has undone the call.
fn refused(error: Error) -> StoreError {
    let busy = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::QUERY_CANCELED,
    ];
    match error.code() {
        Some(code) if busy.contains(code) => StoreError::Busy,
        Some(code) if [SqlState::DATA_CORRUPTED, SqlState::INDEX_CORRUPTED].contains(code) => {
            StoreError::corrupt(chain(&error))
        }
        _ => StoreError::Backend(Arc::new(Failed(chain(&error)))),
    }
}

/// The library's errors show their causes only as sources; this one is whole.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Failed(pub(super) String);
