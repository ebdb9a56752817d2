//! Tasks with their histories: what is kept of them, and what can be asked.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use sha2::{Digest, Sha256};
use taskmarket::{Address, Bytes32, Recorded, Status, TaskId, TaskRecord, Timestamp};

use crate::{Placement, StoreError};

/// Tasks and their histories.
///
/// Every method fails with [`StoreError`] as its variants say; what else can go wrong stands at the method.
#[async_trait]
pub trait Tasks: Send + Sync {
    /// Keeps a new task with its first event, for the API key that published it. A task that is there already stays as it is.
    async fn publish(
        &self,
        record: TaskRecord,
        first: Recorded,
        owner: KeyId,
    ) -> Result<Published, StoreError>;

    /// Appends events to a task's history and replaces its record, if the record is still at `expected_version`.
    ///
    /// `events` are those that lead from that version to `record`, in order. `placement` says where an attempt went that one of them
    /// begins; without it the host stays as it was while attempt and provider do.
    async fn commit(
        &self,
        expected_version: u64,
        record: &TaskRecord,
        events: Vec<Recorded>,
        placement: Option<Placement>,
    ) -> Result<Commit, StoreError>;

    /// A task, if it is known.
    async fn task(&self, id: TaskId) -> Result<Option<StoredTask>, StoreError>;

    /// A task's whole history, oldest first; empty if the task is unknown.
    async fn history(&self, id: TaskId) -> Result<Vec<StoredEvent>, StoreError>;

    /// Events of all tasks after a commit sequence, in its order, `limit` at most.
    async fn events_after(
        &self,
        seq: u64,
        filter: EventFilter,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError>;

    /// The commit sequence of the newest event; 0 before the first.
    async fn last_seq(&self) -> Result<u64, StoreError>;

    /// Waits until there is an event after a commit sequence, whoever commits it. `false` if none came `within` the time.
    ///
    /// Each commit costs each caller a read: a relay waits once, and tells its followers.
    async fn wait_for_events(&self, after: u64, within: Duration) -> Result<bool, StoreError>;

    /// Tasks that pass the filter, newest first, `limit` at most, from where `cursor` ends.
    async fn list(
        &self,
        filter: TaskFilter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError>;

    /// How many tasks there are of each status, every status named.
    async fn counts(&self) -> Result<BTreeMap<Status, u64>, StoreError>;

    /// Tasks on which time acts at `now` or did before, most overdue first, `limit` at most.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<TaskId>, StoreError>;

    /// When time acts on any task next.
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Open tasks, oldest first, `limit` at most, from where `cursor` ends.
    async fn open_tasks(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError>;

    /// Tasks that a provider (or, without one, anybody) holds, oldest first, `limit` at most, from where `cursor` ends.
    async fn held(
        &self,
        provider: Option<Address>,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError>;
}

/// Which API key: the first 16 hex digits of its SHA-256. The key itself is kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    const DIGITS: usize = 16;

    /// The id of an API key.
    pub fn of_api_key(key: &str) -> Self {
        Self(hex::encode(&Sha256::digest(key.as_bytes())[..Self::DIGITS / 2]))
    }

    /// The 16 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == Self::DIGITS && text.bytes().all(is_digit) {
            return Ok(Self(text.to_owned()));
        }
        Err(StoreError::Corrupt { what: format!("{text:?} is not the id of an API key") })
    }
}

/// A task as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTask {
    /// The task, its history folded in.
    pub record: TaskRecord,
    /// The API key that published it.
    pub owner: KeyId,
    /// The host that took the current or last attempt, where known.
    pub node: Option<Bytes32>,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The task is new, and durable now.
    New {
        /// Its first event's place in the commit sequence.
        seq: u64,
    },
    /// The task was there already.
    Existing(Box<StoredTask>),
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// It is durable.
    Done {
        /// The last event's place in the commit sequence.
        seq: u64,
    },
    /// The task is no longer at the expected version (or is unknown): read it and decide again.
    Conflict,
}

/// An event as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the commit sequence of the whole store, from 1, in the order of the commits.
    pub seq: u64,
    /// Whose history.
    pub task_id: TaskId,
    /// The task's status after it.
    pub status: Status,
    /// The event in its place in the task's history.
    pub recorded: Recorded,
}

/// Which events; an empty filter takes all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this task only.
    pub task: Option<TaskId>,
    /// Of this requester's tasks only.
    pub requester: Option<Address>,
}

/// Which tasks; an empty filter takes all, and conditions add up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Of this requester.
    pub requester: Option<Address>,
    /// Whose current or last attempt is this provider's.
    pub provider: Option<Address>,
    /// In this status.
    pub status: Option<Status>,
    /// Asking for this GPU type, equal but for case.
    pub gpu_type: Option<String>,
    /// Taken in at this time or later.
    pub created_from: Option<Timestamp>,
    /// Taken in before this time.
    pub created_before: Option<Timestamp>,
}

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The tasks, in the listing's order.
    pub tasks: Vec<StoredTask>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// Where a page of a listing ended. Its text is opaque to callers, and stays good while tasks are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) created_at: u64,
    pub(crate) row: u64,
}

impl Cursor {
    /// Tells this form of the text from later ones.
    const VERSION: u8 = 1;
    const BYTES: usize = 17;
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [Self::VERSION; Self::BYTES];
        bytes[1..9].copy_from_slice(&self.created_at.to_be_bytes());
        bytes[9..].copy_from_slice(&self.row.to_be_bytes());
        f.write_str(&hex::encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = StoreError;

    /// Reads a cursor's text.
    ///
    /// # Errors
    /// [`StoreError::BadCursor`] for any text that [`Cursor`] does not print.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        let mut bytes = [0; Self::BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| StoreError::BadCursor)?;
        let number = |from: usize| {
            bytes[from..from + 8].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let cursor = Self { created_at: number(1), row: number(9) };
        // Both are signed integers in the tables; and each cursor has one text only.
        let in_range = i64::try_from(cursor.created_at).is_ok() && i64::try_from(cursor.row).is_ok();
        if bytes[0] == Self::VERSION && in_range && cursor.to_string() == text {
            return Ok(cursor);
        }
        Err(StoreError::BadCursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_decode_strictly() {
        let cursor = Cursor { created_at: 1_700_000_000, row: 0xabcdef };
        let text = cursor.to_string();
        assert_eq!(text.parse::<Cursor>().unwrap(), cursor);
        let wrong = [
            String::new(),
            "zz".into(),
            text[..32].into(),
            format!("{text}00"),
            format!(" {text}"),
            text.to_uppercase(),
            text.replacen("01", "02", 1),
            format!("01{}", "f".repeat(32)),
            "é".repeat(17),
        ];
        for text in wrong {
            assert!(matches!(text.parse::<Cursor>(), Err(StoreError::BadCursor)), "{text}");
        }
    }

    #[test]
    fn key_ids_are_digests_and_nothing_else() {
        let id = KeyId::of_api_key("abc");
        assert_eq!(id.as_str(), "ba7816bf8f01cfea");
        assert_eq!("ba7816bf8f01cfea".parse::<KeyId>().unwrap(), id);
        for wrong in ["", "ba7816bf8f01cfe", "BA7816BF8F01CFEA", "sk-ba7816bf8f01c"] {
            assert!(wrong.parse::<KeyId>().is_err(), "{wrong}");
        }
    }
}
