//! What happened to a task, and what happens to it now.

use serde::{Deserialize, Serialize};
use taskmarket::{Address, Recorded, Status, TaskId, Word, eip55};

use super::Progress;

/// One entry of a task's history, or, on a live stream, what happens inside an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventView {
    /// The relay's commit order over all tasks; what `Last-Event-ID` resumes from. Absent for progress, which is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The task.
    pub task_id: TaskId,
    /// The task's status after it.
    pub status: Status,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What an [`EventView`] tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Entry {
    /// A durable change, and whose word it is.
    Recorded {
        /// Whose word.
        word: Word,
        /// The change.
        #[serde(flatten)]
        recorded: Box<Recorded>,
    },
    /// Progress inside an attempt, by its provider's unsigned word.
    Progress {
        /// The progress.
        progress: Progress,
    },
}

/// The answer of `GET /v1/tasks/{id}/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TaskHistory {
    /// The task.
    pub task_id: TaskId,
    /// Its history, oldest first.
    pub events: Vec<EventView>,
}

/// The data of an event of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum FollowedEvent {
    /// What happened to a task.
    Task(Box<EventView>),
    /// Where the stream is: of `following`, its first event, and of `cut`, the last one.
    Place(StreamPlace),
}

/// Where a stream of events is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StreamPlace {
    /// It has told what there was up to this event.
    pub last_event_id: u64,
    /// Why it ends there: `too_slow`. Absent from `following`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The query of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Whose tasks.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub requester: Address,
    /// Follow from after this event; the header `Last-Event-ID` goes before it. Without either, from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_id: Option<u64>,
}
