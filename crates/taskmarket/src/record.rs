//! A task as the market knows it: the signed offer, where the work stands, and what the chain says of the money.

use std::fmt;

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

use crate::eip712::{Domain, Signature, Signed};
use crate::messages::{ComputeProof, Task};
use crate::primitives::{Bytes32, Reference, TaskId, Timestamp, eip55};

/// A task with its history folded into it. Only [`crate::apply`] changes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The EIP-712 digest of `task` under `domain`.
    pub id: TaskId,
    /// Where the task was signed for; this decides the money.
    pub domain: Domain,
    /// The offer as signed.
    pub task: Task,
    /// The requester's signature of it.
    pub signature: Signature,
    /// Where the work stands.
    pub state: State,
    /// Attempts begun so far; the number of the current or last one.
    pub attempts: u32,
    /// Who held the current or last attempt.
    pub provider: Option<Provider>,
    /// Providers whose lease lapsed: the task is not offered to them again.
    pub lapsed: Vec<Provider>,
    /// Why the last failed attempt ended.
    pub failure: Option<Failure>,
    /// Where the money stands, by the chain's word alone.
    pub settlement: Settlement,
    /// When the relay took the task.
    pub created_at: Timestamp,
    /// When the last event happened.
    pub updated_at: Timestamp,
    /// Events applied so far; the store's guard against lost updates.
    pub version: u64,
}

impl TaskRecord {
    /// The word for where the work stands.
    pub fn status(&self) -> Status {
        self.state.status()
    }

    /// The proof that stands, once one was taken.
    pub fn submission(&self) -> Option<&Submission> {
        match &self.state {
            State::Submitted { submission, .. }
            | State::Completed { submission, .. }
            | State::Disputed { submission, .. }
            | State::Resolved { submission, .. } => Some(submission),
            State::Open | State::Accepted { .. } | State::Cancelled | State::Expired | State::Failed => None,
        }
    }

    /// The lease, while somebody holds the task.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Accepted { lease } => Some(lease),
            State::Open
            | State::Submitted { .. }
            | State::Completed { .. }
            | State::Disputed { .. }
            | State::Resolved { .. }
            | State::Cancelled
            | State::Expired
            | State::Failed => None,
        }
    }

    /// Whether the task may not be offered to a provider any more, because a lease of theirs lapsed.
    pub fn is_lapsed(&self, provider: Address) -> bool {
        self.lapsed.iter().any(|lapsed| lapsed.0 == provider)
    }
}

/// A provider's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Provider(#[serde(with = "eip55")] pub Address);

/// Where the work stands, with what is known only there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum State {
    /// Nobody holds it.
    Open,
    /// A provider works on it.
    Accepted {
        /// Who, and until when.
        lease: Lease,
    },
    /// A proof came in time; the requester may dispute it.
    Submitted {
        /// The proof.
        submission: Submission,
        /// Until when.
        dispute_until: Timestamp,
    },
    /// The proof stood.
    Completed {
        /// The proof.
        submission: Submission,
        /// What made it stand.
        by: Completion,
    },
    /// The requester disputed the proof.
    Disputed {
        /// The proof.
        submission: Submission,
        /// What the requester said.
        dispute: Dispute,
    },
    /// The dispute ended.
    Resolved {
        /// The proof.
        submission: Submission,
        /// What the requester said.
        dispute: Dispute,
        /// How it ended.
        resolution: Resolution,
    },
    /// The requester withdrew it while nobody held it.
    Cancelled,
    /// Its deadline passed without a proof.
    Expired,
    /// All attempts were spent before the deadline.
    Failed,
}

impl State {
    /// The word for this state.
    pub fn status(&self) -> Status {
        match self {
            Self::Open => Status::Open,
            Self::Accepted { .. } => Status::Accepted,
            Self::Submitted { .. } => Status::Submitted,
            Self::Completed { .. } => Status::Completed,
            Self::Disputed { .. } => Status::Disputed,
            Self::Resolved { .. } => Status::Resolved,
            Self::Cancelled => Status::Cancelled,
            Self::Expired => Status::Expired,
            Self::Failed => Status::Failed,
        }
    }
}

/// The word for where the work stands, for lists and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is documented at its State")]
pub enum Status {
    Open,
    Accepted,
    Submitted,
    Completed,
    Disputed,
    Resolved,
    Cancelled,
    Expired,
    Failed,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Accepted,
        Self::Submitted,
        Self::Completed,
        Self::Disputed,
        Self::Resolved,
        Self::Cancelled,
        Self::Expired,
        Self::Failed,
    ];

    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Accepted => "accepted",
            Self::Submitted => "submitted",
            Self::Completed => "completed",
            Self::Disputed => "disputed",
            Self::Resolved => "resolved",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing can happen to the work any more.
    pub fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Resolved | Self::Cancelled | Self::Expired | Self::Failed => true,
            Self::Open | Self::Accepted | Self::Submitted | Self::Disputed => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Status {
    type Err = crate::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| crate::ParseError::new("status", format!("{text:?} is not a task status")))
    }
}

/// A provider's hold on a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who holds it.
    #[serde(with = "eip55")]
    pub provider: Address,
    /// Which attempt.
    pub attempt: u32,
    /// Since when.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// A proof that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The proof with the provider's signature.
    pub proof: Signed<ComputeProof>,
    /// When it was taken.
    pub at: Timestamp,
}

/// What made a proof stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// The requester approved.
    Approved,
    /// The dispute window ended without a dispute.
    WindowClosed,
}

/// A requester's objection to a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// Why, in the requester's words.
    pub reason: String,
    /// Evidence, if the requester named any.
    pub evidence: Option<Reference>,
    /// Since when.
    pub since: Timestamp,
    /// When it ends without an arbiter's word.
    pub resolve_until: Timestamp,
}

/// How a dispute ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Resolution {
    /// The arbiter decided.
    Arbiter {
        /// The provider's share in basis points.
        provider_bps: u32,
    },
    /// The arbiter said nothing in time.
    Timeout,
}

/// Why an attempt ended without a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which attempt.
    pub attempt: u32,
    /// Whose.
    #[serde(with = "eip55")]
    pub provider: Address,
    /// A stable word: the provider's, or `lease_lapsed`, `session_lost`, `attempt_dropped`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Where the money of a settled task stands. Only chain facts change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Settlement {
    /// The chain holds nothing for this task.
    None,
    /// The escrow holds the budget.
    Funded {
        /// The transaction that says so.
        tx: Bytes32,
    },
    /// A provider is bound.
    Accepted {
        /// The transaction that says so.
        tx: Bytes32,
    },
    /// A proof is on chain.
    Proven {
        /// The transaction that says so.
        tx: Bytes32,
    },
    /// The requester disputed on chain.
    Disputed {
        /// The transaction that says so.
        tx: Bytes32,
    },
    /// The provider was paid.
    Paid {
        /// The transaction that says so.
        tx: Bytes32,
    },
    /// The money was split.
    Split {
        /// The transaction that says so.
        tx: Bytes32,
    },
    /// The requester has the budget back.
    Refunded {
        /// The transaction that says so.
        tx: Bytes32,
    },
    /// The requester cancelled on chain.
    Cancelled {
        /// The transaction that says so.
        tx: Bytes32,
    },
}

impl Settlement {
    /// The word in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Funded { .. } => "funded",
            Self::Accepted { .. } => "accepted",
            Self::Proven { .. } => "proven",
            Self::Disputed { .. } => "disputed",
            Self::Paid { .. } => "paid",
            Self::Split { .. } => "split",
            Self::Refunded { .. } => "refunded",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// The transaction that says so, once there is one.
    pub fn tx(&self) -> Option<Bytes32> {
        match self {
            Self::None => None,
            Self::Funded { tx }
            | Self::Accepted { tx }
            | Self::Proven { tx }
            | Self::Disputed { tx }
            | Self::Paid { tx }
            | Self::Split { tx }
            | Self::Refunded { tx }
            | Self::Cancelled { tx } => Some(*tx),
        }
    }
}
