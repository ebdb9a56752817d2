//! Attempts: who took a task, how soon, and how that ended. Reports on providers rest on this.

use std::fmt;

use async_trait::async_trait;
use taskmarket::{
    Address, Bytes32, ChainChange, Event, Lease, Recorded, ReleaseReason, Status, TaskId, TaskRecord,
    Timestamp,
};

use crate::StoreError;

/// Attempts. They are written by the commits that begin and end them.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Attempts: Send + Sync {
    /// A provider's attempts that had not ended before `since`, newest first, `limit` at most.
    async fn attempts(
        &self,
        provider: Address,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredAttempt>, StoreError>;
}

/// Where an attempt went, as the relay that placed it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The host that took it.
    pub node_id: Bytes32,
    /// The host's session.
    pub session_id: Option<String>,
    /// Milliseconds from when the task could be taken (its publication, or the end of the attempt before) until it was.
    pub dispatch_ms: Option<u64>,
}

impl From<Bytes32> for Placement {
    fn from(node_id: Bytes32) -> Self {
        Self { node_id, session_id: None, dispatch_ms: None }
    }
}

/// An attempt as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAttempt {
    /// At which task.
    pub task_id: TaskId,
    /// Its number.
    pub attempt: u32,
    /// Whose.
    pub provider: Address,
    /// The host, where known.
    pub node_id: Option<Bytes32>,
    /// The host's session, where known.
    pub session_id: Option<String>,
    /// When it began.
    pub accepted_at: Timestamp,
    /// Milliseconds from when the task could be taken until it was, where known.
    pub dispatch_ms: Option<u64>,
    /// When and how it ended; `None` while it lasts.
    pub ended: Option<(Timestamp, Outcome)>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// With a proof.
    Proven,
    /// The provider gave it up.
    Failed,
    /// The lease ended without a proof.
    LeaseLapsed,
    /// The provider's session stayed lost.
    SessionLost,
    /// The provider's host no longer had it, or the chain gave the task to somebody else.
    AttemptDropped,
    /// The requester withdrew the task.
    Cancelled,
    /// The task's deadline passed.
    Expired,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Proven,
        Self::Failed,
        Self::LeaseLapsed,
        Self::SessionLost,
        Self::AttemptDropped,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The outcome's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Failed => "failed",
            Self::LeaseLapsed => "lease_lapsed",
            Self::SessionLost => "session_lost",
            Self::AttemptDropped => "attempt_dropped",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    pub(crate) fn parse(word: &str) -> Result<Self, StoreError> {
        let found = Self::ALL.into_iter().find(|outcome| outcome.as_str() == word);
        found.ok_or_else(|| StoreError::corrupt(format_args!("{word:?} is not an attempt's outcome")))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an event does to a task's attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttemptChange {
    /// One begins; one that lasts is overtaken by it.
    Begins { attempt: u32, provider: Address },
    /// The one that lasts, if there is one, ends.
    Ends(Outcome),
}

impl AttemptChange {
    /// What an event did that led to this record.
    pub(crate) fn of(recorded: &Recorded, after: &TaskRecord) -> Option<Self> {
        let lease = after.lease();
        // A lease that the chain merely repeats began before.
        let begins = |lease: &Lease| Self::Begins { attempt: lease.attempt, provider: lease.provider };
        match &recorded.event {
            Event::Accepted(_) => lease.map(begins),
            Event::Chain(fact) => match lease {
                Some(lease) => matches!(fact.change, ChainChange::Accepted { .. }).then(|| begins(lease)),
                None => Some(Self::Ends(by_chain(fact.change, after.status()))),
            },
            Event::ChainTime(_) => lease.is_none().then(|| Self::Ends(by_chain_time(after.status()))),
            // What the chain has bound ends by its word.
            Event::AttemptFailed(_) => lease.is_none().then_some(Self::Ends(Outcome::Failed)),
            Event::Submitted(_) => Some(Self::Ends(Outcome::Proven)),
            Event::LeaseLapsed => Some(Self::Ends(Outcome::LeaseLapsed)),
            Event::Released { reason: ReleaseReason::SessionLost, .. } => {
                Some(Self::Ends(Outcome::SessionLost))
            }
            Event::Released { reason: ReleaseReason::AttemptDropped, .. } => {
                Some(Self::Ends(Outcome::AttemptDropped))
            }
            Event::Cancelled(_) => Some(Self::Ends(Outcome::Cancelled)),
            Event::Expired => Some(Self::Ends(Outcome::Expired)),
            Event::Published { .. }
            | Event::Approved(_)
            | Event::Disputed(_)
            | Event::Resolved(_)
            | Event::WindowClosed
            | Event::ArbiterTimedOut
            | Event::Unworkable => None,
        }
    }
}

/// How an attempt ended that the chain ended, if it did.
fn by_chain(change: ChainChange, after: Status) -> Outcome {
    match (change, after) {
        (ChainChange::Failed { .. }, _) => Outcome::Failed,
        (ChainChange::Lapsed { .. }, _) => Outcome::LeaseLapsed,
        (_, Status::Cancelled) => Outcome::Cancelled,
        (_, Status::Expired) => Outcome::Expired,
        _ => Outcome::Proven,
    }
}

/// How an attempt ended that the chain's time ended, if it did.
fn by_chain_time(after: Status) -> Outcome {
    match after {
        Status::Expired => Outcome::Expired,
        Status::Open | Status::Failed => Outcome::LeaseLapsed,
        Status::Accepted
        | Status::Submitted
        | Status::Completed
        | Status::Disputed
        | Status::Resolved
        | Status::Cancelled => Outcome::Proven,
    }
}
