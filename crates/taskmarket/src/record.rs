//! A task as the market knows it: the signed offer, where the work stands, and what the chain says of the money.

use std::fmt;

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

use crate::eip712::{Domain, Signature, Signed};
use crate::messages::{ComputeProof, DisputeTask, Task};
use crate::primitives::{Bytes32, ContentHash, Reference, TaskId, Timestamp, eip55};

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
    /// Of each provider that gave it up for what is of the requester's making, its last such failure, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Failure>,
    /// Where the money stands, by the chain's word alone.
    pub settlement: Settlement,
    /// What the requester of a settled task said in dispute, before the chain said that it disputes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complaint: Option<Box<Signed<DisputeTask>>>,
    /// Acceptances of a settled task's next attempt that the chain has not taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reservations: u32,
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

    /// The attempt that a provider would take next. In a settled task the chain counts.
    pub fn next_attempt(&self) -> u32 {
        let last = if self.domain.is_settled() { self.settlement.attempt } else { self.attempts };
        last.saturating_add(1)
    }

    /// Whether nobody may be asked to do the work yet, since the chain does not hold its budget.
    pub fn awaits_money(&self) -> bool {
        // Open and accepted on chain is a lease that lapsed: the next provider may accept.
        let is_there = matches!(self.settlement.status, Money::Funded | Money::Accepted);
        self.domain.is_settled() && !is_there
    }

    /// Whether providers may be asked to do the work.
    pub fn is_on_offer(&self) -> bool {
        self.status() == Status::Open && !self.awaits_money() && !self.is_reserved_out()
    }

    /// Whether nothing can happen any more: neither to the work nor to money that the chain holds.
    pub fn is_over(&self) -> bool {
        let money = self.settlement.status;
        self.status().is_final() && (money == Money::None || money.is_final())
    }

    /// Whether so many acceptances of a settled task's next attempt came to nothing that the relay takes none any more: the chain alone
    /// gives it out.
    pub fn is_reserved_out(&self) -> bool {
        self.domain.is_settled() && self.reservations >= crate::MAX_RESERVATIONS
    }

    /// Whether the chain has given the attempt that is held to its provider. Then it ends by the chain's word alone.
    pub fn is_bound(&self) -> bool {
        let held = match &self.state {
            State::Accepted { lease } => Some((lease.provider, lease.attempt)),
            State::Submitted { submission, .. } => {
                Some((submission.proof.message.provider, submission.proof.message.attempt))
            }
            State::Open
            | State::Completed { .. }
            | State::Disputed { .. }
            | State::Resolved { .. }
            | State::Cancelled
            | State::Expired
            | State::Failed => None,
        };
        self.settlement.status.binds()
            && held.is_some_and(|(provider, attempt)| self.settlement.is_of(provider, attempt))
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
    /// Before the deadline all attempts were spent, or the relay ended it as one that providers say fails anywhere.
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

/// What the chain says of a settled task's money: what the escrow's contract stores of it, and the facts that led there. Only chain
/// facts change it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Where the money stands.
    pub status: Money,
    /// The chain's count of attempts: the number of the current or last one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Who holds, or last held, that attempt on chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// When the status' time ends: the lease of `accepted`, the dispute window of `proven`, the arbiter's window of `disputed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The result that was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_hash: Option<ContentHash>,
    /// Keccak-256 of the reason that the requester disputed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_hash: Option<Bytes32>,
    /// What made the payment due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<Completion>,
    /// How the dispute ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// The facts taken so far, in the chain's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<FactId>,
    /// Up to where on the chain all is known: the place of the last fact, or the end of the block whose time was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<ChainPlace>,
}

impl Settlement {
    /// The word in JSON.
    pub fn as_str(&self) -> &'static str {
        self.status.as_str()
    }

    /// The transaction that says so, once there is one.
    pub fn tx(&self) -> Option<Bytes32> {
        self.facts.last().map(|fact| fact.tx)
    }

    /// Whether the chain's current or last attempt is this one.
    pub fn is_of(&self, provider: Address, attempt: u32) -> bool {
        (self.provider, self.attempt) == (Some(Provider(provider)), attempt)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where the money of a settled task stands, as the escrow's contract has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Money {
    /// The chain holds nothing for this task.
    #[default]
    None,
    /// The escrow holds the budget, and nobody is bound.
    Funded,
    /// A provider is bound; once its lease is over, this counts as funded.
    Accepted,
    /// A proof is on chain; the requester may dispute it until the window ends.
    Proven,
    /// The requester disputed on chain.
    Disputed,
    /// Final: the provider was paid.
    Paid,
    /// Final: the money was split.
    Split,
    /// Final: the requester has the budget back.
    Refunded,
    /// Final: the requester cancelled on chain.
    Cancelled,
}

impl Money {
    /// All of them, in the order in which the contract counts them.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Funded,
        Self::Accepted,
        Self::Proven,
        Self::Disputed,
        Self::Paid,
        Self::Split,
        Self::Refunded,
        Self::Cancelled,
    ];

    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Funded => "funded",
            Self::Accepted => "accepted",
            Self::Proven => "proven",
            Self::Disputed => "disputed",
            Self::Paid => "paid",
            Self::Split => "split",
            Self::Refunded => "refunded",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the money has left the task for good.
    pub fn is_final(self) -> bool {
        match self {
            Self::Paid | Self::Split | Self::Refunded | Self::Cancelled => true,
            Self::None | Self::Funded | Self::Accepted | Self::Proven | Self::Disputed => false,
        }
    }

    /// Whether the chain has given the last attempt to its provider for good or until a time of the chain's: only the chain releases it.
    pub(crate) fn binds(self) -> bool {
        match self {
            Self::Accepted | Self::Proven | Self::Disputed | Self::Paid | Self::Split => true,
            Self::None | Self::Funded | Self::Refunded | Self::Cancelled => false,
        }
    }
}

/// A place in the chain's order of logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChainPlace {
    /// The block's number.
    pub block: u64,
    /// The log's index in the block.
    pub log_index: u64,
}

/// Which fact of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FactId {
    /// The transaction.
    pub tx: Bytes32,
    /// The log's index in its block.
    pub log_index: u64,
}
