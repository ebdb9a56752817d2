//! The chain's word on settled tasks: the escrow contract's rules once more, and what its facts and its time do to the work.
//!
//! A fact is one event that the contract emitted, in a block that is final. [`observe`] takes it in if the contract, in the state that the
//! facts before it led to and at that block's time, could have said it: the mirror is exact, so that a node that lies is found out as far as
//! that can be. Facts are never withdrawn: they are recorded when they are final, and a chain that goes back on them is for the relay to
//! stop at.
//!
//! Leases, deadline and windows of a settled task end by the time of a final block ([`elapse_on_chain`]), once all facts up to that block
//! were taken: what counts is not what a relay's clock says but what the contract would still take.

use alloy_primitives::{Address, keccak256};
use serde::{Deserialize, Serialize};

use crate::decide::{ALL_BPS, MIN_LEASE_SECS, Rejection, invalid, latest_lease};
use crate::event::{Event, complete, end_attempt, end_dispute, lapse, take};
use crate::primitives::{Bytes32, ContentHash, Timestamp, eip55};
use crate::record::{
    ChainPlace, Completion, Dispute, FactId, Money, Provider, Resolution, Settlement, State, TaskRecord,
};

/// What the chain said of a settled task, once final: one event of the escrow's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainFact {
    /// The transaction.
    pub tx: Bytes32,
    /// The log's index in its block.
    pub log_index: u64,
    /// The block's number.
    pub block: u64,
    /// The block's hash.
    pub block_hash: Bytes32,
    /// The block's time.
    pub block_time: Timestamp,
    /// What it did.
    pub change: ChainChange,
}

impl ChainFact {
    /// What tells it from all others.
    pub fn id(&self) -> FactId {
        FactId { tx: self.tx, log_index: self.log_index }
    }

    /// Where it is in the chain's order.
    pub fn place(&self) -> ChainPlace {
        ChainPlace { block: self.block, log_index: self.log_index }
    }
}

/// What a transaction of the escrow did to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum ChainChange {
    /// The budget was paid in.
    Funded,
    /// A provider was bound, and its stake locked.
    Accepted {
        /// Who.
        #[serde(with = "eip55")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
        provider: Address,
        /// Which attempt, by the chain's count.
        attempt: u32,
        /// Until when.
        lease_until: Timestamp,
    },
    /// The bound provider gave up, and has its stake back.
    Failed {
        /// Who.
        #[serde(with = "eip55")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
        provider: Address,
        /// Which attempt.
        attempt: u32,
    },
    /// A lease had ended with nothing delivered: the stake went to the requester.
    Lapsed {
        /// Whose.
        #[serde(with = "eip55")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
        provider: Address,
        /// Which attempt.
        attempt: u32,
    },
    /// A proof came.
    Proven {
        /// Whose.
        #[serde(with = "eip55")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
        provider: Address,
        /// Of which attempt.
        attempt: u32,
        /// The result's SHA-256.
        result_hash: ContentHash,
        /// Until when the requester may dispute it.
        dispute_until: Timestamp,
    },
    /// The provider was paid.
    Paid {
        /// Who.
        #[serde(with = "eip55")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
        provider: Address,
        /// For which attempt.
        attempt: u32,
        /// The result's SHA-256.
        result_hash: ContentHash,
    },
    /// The requester disputed.
    Disputed {
        /// Whose result.
        #[serde(with = "eip55")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
        provider: Address,
        /// Of which attempt.
        attempt: u32,
        /// Keccak-256 of the reason.
        reason_hash: Bytes32,
        /// Keccak-256 of the reference to evidence.
        evidence_hash: Bytes32,
        /// Until when the arbiter may resolve it.
        resolve_until: Timestamp,
    },
    /// The dispute ended with a division of the money.
    Split {
        /// Whose result it was about.
        #[serde(with = "eip55")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
        provider: Address,
        /// Of which attempt.
        attempt: u32,
        /// By the arbiter's basis points, or by time-out.
        resolution: Resolution,
    },
    /// The requester has the budget back.
    Refunded,
    /// The requester cancelled.
    Cancelled,
}

impl ChainChange {
    /// The `change` in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Funded => "funded",
            Self::Accepted { .. } => "accepted",
            Self::Failed { .. } => "failed",
            Self::Lapsed { .. } => "lapsed",
            Self::Proven { .. } => "proven",
            Self::Paid { .. } => "paid",
            Self::Disputed { .. } => "disputed",
            Self::Split { .. } => "split",
            Self::Refunded => "refunded",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A final block: all facts of it and of blocks before it are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainHead {
    /// Its number.
    pub block: u64,
    /// Its hash.
    pub block_hash: Bytes32,
    /// Its time.
    pub block_time: Timestamp,
}

impl ChainHead {
    /// The end of the block, after its last log.
    fn place(&self) -> ChainPlace {
        ChainPlace { block: self.block, log_index: u64::MAX }
    }
}

/// Takes a final fact of the chain in; `None` where it was taken already.
///
/// # Errors
/// [`Rejection::Invalid`] for an unsettled task, of which no chain has anything to say; [`Rejection::Conflict`] where the contract could
/// not have said it after the facts before, or what comes before it in the chain's order was passed already.
pub fn observe(record: &TaskRecord, fact: ChainFact) -> Result<Option<Event>, Rejection> {
    if !record.domain.is_settled() {
        return Err(invalid("verifying_contract", "the task is unsettled"));
    }
    let conflict = |why| Err(Rejection::Conflict { status: record.status(), why });
    if record.settlement.facts.contains(&fact.id()) {
        return Ok(None);
    }
    if record.settlement.seen.is_some_and(|seen| fact.place() <= seen) {
        return conflict("the chain's fact is out of the chain's order");
    }
    if !could_say(record, &fact) {
        return conflict("the chain's fact does not follow from those before");
    }
    Ok(Some(Event::Chain(fact)))
}

/// When the chain's time acts on a settled task next, if it ever does.
pub fn chain_due(record: &TaskRecord) -> Option<Timestamp> {
    if !record.domain.is_settled() {
        return None;
    }
    let (task, money) = (&record.task, &record.settlement);
    let bound = record.is_bound();
    match &record.state {
        State::Open => Some(task.deadline),
        State::Accepted { lease } if !bound => Some(task.deadline.min(lease.until)),
        State::Submitted { .. } if !bound => Some(task.deadline),
        State::Accepted { .. } | State::Submitted { .. } => match money.status {
            Money::Accepted => money.until,
            // The proof stands on chain: the window of a result that is here ends; for one that is not, the chain says how.
            Money::Proven => money.until.filter(|_| record.submission().is_some()),
            Money::None
            | Money::Funded
            | Money::Disputed
            | Money::Paid
            | Money::Split
            | Money::Refunded
            | Money::Cancelled => Some(task.deadline).filter(|_| money.status.is_final()),
        },
        State::Disputed { .. } => money.until.filter(|_| money.status == Money::Disputed),
        State::Completed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => None,
    }
}

/// What the chain's time does to a settled task, if anything. The caller has had all facts up to that block taken.
pub fn elapse_on_chain(record: &TaskRecord, head: ChainHead) -> Option<Event> {
    let is_due = chain_due(record)? <= head.block_time;
    let is_later = record.settlement.seen.is_none_or(|seen| seen <= head.place());
    (is_due && is_later).then_some(Event::ChainTime(head))
}

/// Whether the contract could have said this, where the facts before led to.
fn could_say(record: &TaskRecord, fact: &ChainFact) -> bool {
    let (task, money, at) = (&record.task, &record.settlement, fact.block_time);
    let until = money.until.unwrap_or_default();
    let is = |status| money.status == status;
    let next = |provider: Address, attempt: u32| {
        at < task.deadline
            && Some(attempt) == money.attempt.checked_add(1)
            && attempt <= task.config.max_attempts
            && provider != task.arbiter
    };
    match fact.change {
        ChainChange::Funded => is(Money::None) && at < task.deadline,
        ChainChange::Accepted { provider, attempt, lease_until } => {
            let lease = at.plus(MIN_LEASE_SECS)..=latest_lease(task, at);
            is(Money::Funded) && next(provider, attempt) && lease.contains(&lease_until)
        }
        ChainChange::Failed { provider, attempt } => {
            is(Money::Accepted) && money.is_of(provider, attempt) && at < until
        }
        ChainChange::Lapsed { provider, attempt } => {
            is(Money::Accepted) && money.is_of(provider, attempt) && at >= until
        }
        ChainChange::Proven { provider, attempt, dispute_until, .. } => {
            is(Money::Accepted)
                && money.is_of(provider, attempt)
                && at < until
                && task.dispute_window > 0
                && dispute_until == at.plus(task.dispute_window)
        }
        ChainChange::Paid { provider, attempt, result_hash } => {
            let held = money.is_of(provider, attempt);
            let by_proof = is(Money::Accepted) && held && at < until && task.dispute_window == 0;
            let by_verdict = is(Money::Proven) && held && money.result_hash == Some(result_hash);
            by_proof || by_verdict || is(Money::Funded) && next(provider, attempt)
        }
        ChainChange::Disputed { provider, attempt, resolve_until, .. } => {
            is(Money::Proven)
                && money.is_of(provider, attempt)
                && at < until
                && resolve_until == at.plus(task.arbiter_window)
        }
        ChainChange::Split { provider, attempt, resolution } => {
            let in_time = match resolution {
                Resolution::Arbiter { provider_bps } => at < until && provider_bps <= ALL_BPS,
                Resolution::Timeout => at >= until,
            };
            is(Money::Disputed) && money.is_of(provider, attempt) && in_time
        }
        ChainChange::Refunded => is(Money::Funded) && at >= task.deadline,
        ChainChange::Cancelled => is(Money::None) || is(Money::Funded),
    }
}

/// Sets the money as the chain says, and the work where the chain's word decides it.
pub(crate) fn apply_fact(record: &mut TaskRecord, at: Timestamp, fact: &ChainFact) {
    let before = record.settlement.status;
    let money = &mut record.settlement;
    money.facts.push(fact.id());
    money.seen = Some(fact.place());
    let is_final = record.state.status().is_final();
    match fact.change {
        ChainChange::Funded => money.status = Money::Funded,
        ChainChange::Accepted { provider, attempt, lease_until } => {
            hold(money, Money::Accepted, provider, attempt, Some(lease_until));
            record.reservations = 0;
            bind(record, at, provider, attempt, lease_until);
        }
        ChainChange::Failed { provider, attempt } => {
            let held = record.is_bound();
            hold(&mut record.settlement, Money::Funded, provider, attempt, None);
            if held {
                let noted = record.failure.clone().filter(|noted| noted.attempt == attempt);
                let (code, message) = match &noted {
                    Some(noted) => (noted.code.as_str(), noted.message.as_str()),
                    None => ("failed_on_chain", "the provider gave the attempt up on chain"),
                };
                end_attempt(record, code, message);
            }
        }
        ChainChange::Lapsed { provider, attempt } => {
            let held = record.is_bound();
            hold(&mut record.settlement, Money::Funded, provider, attempt, None);
            if held {
                lapse(record);
            }
        }
        ChainChange::Proven { provider, attempt, result_hash, dispute_until } => {
            hold(money, Money::Proven, provider, attempt, Some(dispute_until));
            money.result_hash = Some(result_hash);
            claim(record, at, provider, attempt, result_hash);
        }
        ChainChange::Paid { provider, attempt, result_hash } => {
            let window_over = money.until.is_some_and(|until| fact.block_time >= until);
            let by_time = before == Money::Proven && window_over || before == Money::Accepted;
            money.completion = Some(if by_time { Completion::WindowClosed } else { Completion::Approved });
            hold(money, Money::Paid, provider, attempt, None);
            money.result_hash = Some(result_hash);
            claim(record, at, provider, attempt, result_hash);
        }
        ChainChange::Disputed { provider, attempt, reason_hash, resolve_until, .. } => {
            hold(money, Money::Disputed, provider, attempt, Some(resolve_until));
            money.reason_hash = Some(reason_hash);
        }
        ChainChange::Split { provider, attempt, resolution } => {
            hold(money, Money::Split, provider, attempt, None);
            money.resolution = Some(resolution);
        }
        ChainChange::Refunded => {
            money.status = Money::Refunded;
            if !is_final {
                record.state = State::Expired;
            }
        }
        ChainChange::Cancelled => {
            money.status = Money::Cancelled;
            if !is_final {
                record.state = State::Cancelled;
            }
        }
    }
    follow_money(record, fact.block_time);
}

/// Ends what ended by a final block's time.
pub(crate) fn apply_time(record: &mut TaskRecord, head: &ChainHead) {
    record.settlement.seen = Some(head.place());
    let deadline = record.task.deadline;
    let bound = record.is_bound();
    match &record.state {
        State::Accepted { lease } if lease.until < deadline && !record.settlement.status.is_final() => {
            lapse(record);
        }
        State::Submitted { .. } if bound && record.settlement.status == Money::Proven => {
            complete(record, Completion::WindowClosed);
        }
        State::Submitted { .. } if bound && record.settlement.until.is_some_and(|until| until < deadline) => {
            lapse(record);
        }
        State::Disputed { .. } => end_dispute(record, Resolution::Timeout),
        State::Open | State::Accepted { .. } | State::Submitted { .. } => record.state = State::Expired,
        State::Completed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => {}
    }
}

/// Brings a result that is here to where the chain's word on it leads.
pub(crate) fn follow_money(record: &mut TaskRecord, at: Timestamp) {
    let money = record.settlement.clone();
    if let State::Submitted { submission, dispute_until } = &mut record.state {
        match money.status {
            Money::Proven => *dispute_until = money.until.unwrap_or(*dispute_until),
            Money::Paid => complete(record, money.completion.unwrap_or(Completion::Approved)),
            Money::Disputed | Money::Split => {
                let reason = String::new();
                let resolve_until = money.until.unwrap_or(at);
                let dispute = Dispute { reason, evidence: None, since: at, resolve_until };
                record.state = State::Disputed { submission: submission.clone(), dispute };
                name_reason(record);
            }
            Money::None | Money::Funded | Money::Accepted | Money::Refunded | Money::Cancelled => {}
        }
    }
    if let Some(resolution) = money.resolution {
        end_dispute(record, resolution);
    }
}

/// Tells a dispute's reason, where the requester's words are here whose hash the chain has.
pub(crate) fn name_reason(record: &mut TaskRecord) {
    let Some(complaint) = &record.complaint else { return };
    let message = &complaint.message;
    let hash = Bytes32(keccak256(message.reason.as_bytes()));
    if let State::Disputed { dispute, .. } = &mut record.state
        && record.settlement.reason_hash == Some(hash)
    {
        dispute.reason.clone_from(&message.reason);
        dispute.evidence = message.evidence.parse().ok();
    }
}

fn hold(money: &mut Settlement, status: Money, provider: Address, attempt: u32, until: Option<Timestamp>) {
    money.status = status;
    money.provider = Some(Provider(provider));
    money.attempt = attempt;
    money.until = until;
}

/// Gives the work to whom the chain bound, until when the chain says.
fn bind(record: &mut TaskRecord, at: Timestamp, provider: Address, attempt: u32, until: Timestamp) {
    match &mut record.state {
        State::Accepted { lease } if (lease.provider, lease.attempt) == (provider, attempt) => {
            lease.until = until;
        }
        State::Submitted { submission, .. }
            if (submission.proof.message.provider, submission.proof.message.attempt)
                == (provider, attempt) => {}
        State::Open | State::Accepted { .. } | State::Submitted { .. } => {
            take(record, at, provider, attempt, until);
        }
        State::Completed { .. }
        | State::Disputed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => {}
    }
}

/// Lets the provider whose proof is on chain hand its result in, where that result is not here.
fn claim(record: &mut TaskRecord, at: Timestamp, provider: Address, attempt: u32, result: ContentHash) {
    let is_here = record.submission().is_some_and(|submission| {
        let proof = &submission.proof.message;
        (proof.provider, proof.attempt, proof.result_hash) == (provider, attempt, result)
    });
    let is_expected =
        record.lease().is_some_and(|lease| (lease.provider, lease.attempt) == (provider, attempt));
    if !is_here && !is_expected && !record.status().is_final() {
        take(record, at, provider, attempt, record.task.deadline);
    }
}
