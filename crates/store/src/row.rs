//! What both kinds of store write into the columns of a task and its events.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use taskmarket::{Address, Provider, Recorded, Status, TaskId, TaskRecord, Timestamp};

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::attempts::AttemptChange;
use crate::{StoreError, Tasks};

/// A task's columns.
pub(crate) struct TaskRow {
    pub(crate) id: TaskId,
    pub(crate) version: u64,
    pub(crate) status: Status,
    pub(crate) requester: Address,
    pub(crate) provider: Option<Address>,
    pub(crate) attempts: u32,
    pub(crate) gpu_type: String,
    pub(crate) created_at: Timestamp,
    pub(crate) next_due: Option<Timestamp>,
    pub(crate) record: String,
}

impl TaskRow {
    pub(crate) fn of(record: &TaskRecord) -> Result<Self, StoreError> {
        Ok(Self {
            id: record.id,
            version: record.version,
            status: record.status(),
            requester: record.task.requester,
            provider: record.provider.map(|Provider(provider)| provider),
            attempts: record.attempts,
            gpu_type: record.task.config.gpu_type.to_lowercase(),
            created_at: record.created_at,
            next_due: taskmarket::next_due(record),
            record: text(record)?,
        })
    }
}

/// An event's columns.
pub(crate) struct EventRow {
    pub(crate) at: Timestamp,
    /// The task's status after it.
    pub(crate) status: Status,
    pub(crate) attempt: Option<AttemptChange>,
    pub(crate) recorded: String,
}

impl EventRow {
    pub(crate) fn of(recorded: &Recorded, after: &TaskRecord) -> Result<Self, StoreError> {
        Ok(Self {
            at: recorded.at,
            status: after.status(),
            attempt: AttemptChange::of(recorded, after),
            recorded: text(recorded)?,
        })
    }
}

/// The row of a first event.
pub(crate) fn first_event(record: &TaskRecord, first: &Recorded) -> Result<EventRow, StoreError> {
    if (first.version, record.version) != (1, 1) {
        return Err(StoreError::Mismatch { expected: 0, version: record.version });
    }
    EventRow::of(first, record)
}

/// The rows of events that lead from a version to a record; `None` if the task is not at that version.
///
/// Only the last event's state is the record's: for those before it, the task is read and its events are folded again.
pub(crate) async fn event_rows(
    store: &dyn Tasks,
    expected: u64,
    record: &TaskRecord,
    events: &[Recorded],
) -> Result<Option<Vec<EventRow>>, StoreError> {
    let leads = events.iter().map(|event| event.version).eq(expected.saturating_add(1)..=record.version);
    let Some((last, before)) = events.split_last().filter(|_| leads) else {
        return Err(StoreError::Mismatch { expected, version: record.version });
    };
    let mut rows = Vec::with_capacity(events.len());
    if !before.is_empty() {
        let Some(kept) = store.task(record.id).await?.filter(|kept| kept.record.version == expected) else {
            return Ok(None);
        };
        let mut folded = kept.record;
        for recorded in before {
            taskmarket::apply(&mut folded, recorded.at, &recorded.event);
            rows.push(EventRow::of(recorded, &folded)?);
        }
    }
    rows.push(EventRow::of(last, record)?);
    Ok(Some(rows))
}

/// Waits until there is an event after a sequence; `committed` changes whenever there may be a new one.
pub(crate) async fn wait_for_events(
    store: &dyn Tasks,
    committed: &watch::Sender<()>,
    after: u64,
    within: Duration,
) -> Result<bool, StoreError> {
    let deadline = Instant::now() + within;
    let mut changes = committed.subscribe();
    loop {
        if store.last_seq().await? > after {
            return Ok(true);
        }
        // The sender outlives the wait; only the deadline ends it otherwise.
        if timeout_at(deadline, changes.changed()).await.is_err() {
            return Ok(false);
        }
    }
}

/// A status's word, read.
pub(crate) fn status(word: &str) -> Result<Status, StoreError> {
    word.parse().map_err(StoreError::corrupt)
}

/// JSON.
pub(crate) fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Backend(std::sync::Arc::new(error)))
}

/// JSON, read; `what` names it where it is wrong.
pub(crate) fn parse<T: DeserializeOwned>(json: &str, what: impl FnOnce() -> String) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::corrupt(format_args!("{}: {error}", what())))
}

/// A number as the tables hold it. Beyond 63 bits it saturates; no count, size or time comes near.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
