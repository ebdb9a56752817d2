//! What happened to a task, whose word it is, and how a history folds into a [`TaskRecord`].

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

use crate::chain::{self, ChainChange, ChainFact, ChainHead};
use crate::decide::{self, Mutation, Rejection};
use crate::eip712::{Domain, SignatureError, Signed, Verified};
use crate::failure;
use crate::messages::{
    AcceptTask, ApproveResult, CancelTask, ComputeProof, DisputeTask, FailTask, ResolveDispute, Task,
};
use crate::primitives::{TaskId, Timestamp};
use crate::record::{
    Completion, Dispute, Failure, Lease, Provider, Resolution, Settlement, State, Submission, TaskRecord,
};

/// One thing that happened to a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The requester offered it.
    Published {
        /// The offer.
        task: Box<Signed<Task>>,
        /// Where it was signed for.
        domain: Domain,
    },
    /// A provider took it.
    Accepted(Signed<AcceptTask>),
    /// The provider gave it up.
    AttemptFailed(Signed<FailTask>),
    /// The provider proved its work.
    Submitted(Signed<ComputeProof>),
    /// The requester took the result as good.
    Approved(Signed<ApproveResult>),
    /// The requester disputed the result.
    Disputed(Signed<DisputeTask>),
    /// The arbiter ended the dispute.
    Resolved(Signed<ResolveDispute>),
    /// The requester withdrew it.
    Cancelled(Signed<CancelTask>),
    /// The lease ended without a proof.
    LeaseLapsed,
    /// The deadline passed.
    Expired,
    /// The dispute window ended without a dispute.
    WindowClosed,
    /// The arbiter said nothing in time.
    ArbiterTimedOut,
    /// The serving relay released an attempt. Its word alone; it never moves money.
    Released {
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: ReleaseReason,
    },
    /// The serving relay ended the open task, as a provider signed that it fails anywhere. That no other provider was there to say
    /// otherwise is its word alone; it never moves money.
    Unworkable,
    /// The chain said something final.
    Chain(ChainFact),
    /// The chain's time passed something that ends with it: a lease, the deadline, a window.
    ChainTime(ChainHead),
}

/// Why a relay released an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReleaseReason {
    /// The provider's session stayed lost beyond its grace.
    SessionLost,
    /// The provider's host came back, or reported, without the attempt.
    AttemptDropped,
}

impl ReleaseReason {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SessionLost => "session_lost",
            Self::AttemptDropped => "attempt_dropped",
        }
    }
}

/// Whose word a statement of a history is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// A signature's: it can be checked by anybody.
    Signature,
    /// Time's: it follows from the signed dates.
    Time,
    /// The serving relay's: nothing else proves it.
    Relay,
    /// The chain's: it can be looked up there.
    Chain,
}

impl Event {
    /// The provider that came to hold the task by it, if it did.
    pub fn holder(&self) -> Option<Address> {
        match self {
            Self::Accepted(accept) => Some(accept.message.provider),
            Self::Chain(ChainFact { change: ChainChange::Accepted { provider, .. }, .. }) => Some(*provider),
            Self::Published { .. }
            | Self::AttemptFailed(_)
            | Self::Submitted(_)
            | Self::Approved(_)
            | Self::Disputed(_)
            | Self::Resolved(_)
            | Self::Cancelled(_)
            | Self::LeaseLapsed
            | Self::Expired
            | Self::WindowClosed
            | Self::ArbiterTimedOut
            | Self::Released { .. }
            | Self::Unworkable
            | Self::Chain(_)
            | Self::ChainTime(_) => None,
        }
    }

    /// Whose word this is.
    pub fn word(&self) -> Word {
        match self {
            Self::Published { .. }
            | Self::Accepted(_)
            | Self::AttemptFailed(_)
            | Self::Submitted(_)
            | Self::Approved(_)
            | Self::Disputed(_)
            | Self::Resolved(_)
            | Self::Cancelled(_) => Word::Signature,
            Self::LeaseLapsed | Self::Expired | Self::WindowClosed | Self::ArbiterTimedOut => Word::Time,
            Self::Released { .. } | Self::Unworkable => Word::Relay,
            Self::Chain(_) | Self::ChainTime(_) => Word::Chain,
        }
    }

    /// The event's `type` in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Published { .. } => "published",
            Self::Accepted(_) => "accepted",
            Self::AttemptFailed(_) => "attempt_failed",
            Self::Submitted(_) => "submitted",
            Self::Approved(_) => "approved",
            Self::Disputed(_) => "disputed",
            Self::Resolved(_) => "resolved",
            Self::Cancelled(_) => "cancelled",
            Self::LeaseLapsed => "lease_lapsed",
            Self::Expired => "expired",
            Self::WindowClosed => "window_closed",
            Self::ArbiterTimedOut => "arbiter_timed_out",
            Self::Released { .. } => "released",
            Self::Unworkable => "unworkable",
            Self::Chain(_) => "chain",
            Self::ChainTime(_) => "chain_time",
        }
    }
}

/// An event in its place in a task's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Recorded {
    /// The record's version after the event; counts from 1.
    pub version: u64,
    /// When the relay took it.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
}

/// The record that a first event founds.
pub(crate) fn found(task: &Verified<Task>, at: Timestamp) -> TaskRecord {
    TaskRecord {
        id: TaskId(task.digest()),
        domain: task.domain(),
        task: task.message().clone(),
        signature: task.signed().signature,
        state: State::Open,
        attempts: 0,
        provider: None,
        lapsed: Vec::new(),
        failure: None,
        faults: Vec::new(),
        settlement: Settlement::default(),
        complaint: None,
        reservations: 0,
        created_at: at,
        updated_at: at,
        version: 1,
    }
}

/// Folds an event into a record. The event must have come from [`crate::decide`], [`crate::elapse`], [`crate::release`] or
/// [`crate::observe`] for this very record; a second `Published` changes nothing but the version.
pub fn apply(record: &mut TaskRecord, at: Timestamp, event: &Event) {
    record.version += 1;
    record.updated_at = at;
    match event {
        Event::Published { .. } => {}
        Event::Accepted(accept) => {
            let message = &accept.message;
            if record.domain.is_settled() {
                record.reservations += 1;
            }
            take(record, at, message.provider, message.attempt, message.lease_until);
        }
        Event::AttemptFailed(fail) => {
            let FailTask { code, message, .. } = &fail.message;
            if record.is_bound() {
                note_failure(record, code, message);
            } else {
                end_attempt(record, code, message);
            }
            note_fault(record);
        }
        Event::Submitted(proof) => {
            record.state = State::Submitted {
                submission: Submission { proof: proof.clone(), at },
                dispute_until: at.plus(record.task.dispute_window),
            };
            chain::follow_money(record, at);
        }
        Event::Approved(_) => complete(record, Completion::Approved),
        Event::WindowClosed => complete(record, Completion::WindowClosed),
        Event::Disputed(dispute) if record.domain.is_settled() => {
            record.complaint = Some(Box::new(dispute.clone()));
            chain::name_reason(record);
        }
        Event::Disputed(dispute) => {
            let message = &dispute.message;
            open_dispute(record, at, message.reason.clone(), message.evidence.parse().ok());
        }
        Event::Resolved(resolve) => {
            end_dispute(record, Resolution::Arbiter { provider_bps: resolve.message.provider_bps });
        }
        Event::ArbiterTimedOut => end_dispute(record, Resolution::Timeout),
        Event::Cancelled(_) => record.state = State::Cancelled,
        Event::LeaseLapsed => {
            lapse(record);
        }
        Event::Expired => record.state = State::Expired,
        Event::Released { reason, .. } => {
            let message = match reason {
                ReleaseReason::SessionLost => "the provider's session stayed lost",
                ReleaseReason::AttemptDropped => "the provider's host no longer holds the attempt",
            };
            end_attempt(record, reason.as_str(), message);
        }
        Event::Unworkable => {
            record.failure = record.faults.last().cloned().or(record.failure.take());
            record.state = State::Failed;
        }
        Event::Chain(fact) => chain::apply_fact(record, at, fact),
        Event::ChainTime(head) => chain::apply_time(record, head),
    }
}

/// Why a history is not one that this market's rules allow.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The first event must be the publication.
    #[error("the history does not begin with the published task")]
    NoBeginning,
    /// A version is missing, doubled or out of order.
    #[error("event {position} has version {version}, expected {expected}")]
    OutOfOrder {
        /// Position in the history, from 1.
        position: usize,
        /// What it says.
        version: u64,
        /// What it should say.
        expected: u64,
    },
    /// A signature does not hold.
    #[error("event {version} ({name}): {source}")]
    Signature {
        /// Which event.
        version: u64,
        /// Its type.
        name: &'static str,
        /// Why.
        source: SignatureError,
    },
    /// The rules refuse the event at its place.
    #[error("event {version} ({name}): {source}")]
    Refused {
        /// Which event.
        version: u64,
        /// Its type.
        name: &'static str,
        /// Why.
        source: Rejection,
    },
    /// The rules allow no such event at its place.
    #[error("event {version} ({name}) does not follow from what came before")]
    DoesNotFollow {
        /// Which event.
        version: u64,
        /// Its type.
        name: &'static str,
    },
}

/// Replays a history from nothing but its text: checks every signature and every transition, and comes to the record.
///
/// # Errors
/// The first event that does not hold, by its version.
pub fn replay(history: &[Recorded]) -> Result<TaskRecord, ReplayError> {
    let Some(Recorded { version: 1, at, event: event @ Event::Published { task, domain } }) = history.first()
    else {
        return Err(ReplayError::NoBeginning);
    };
    let name = event.name();
    let verified =
        task.clone().verify(domain).map_err(|source| ReplayError::Signature { version: 1, name, source })?;
    let mut record =
        crate::publish(*at, &verified).map_err(|source| ReplayError::Refused { version: 1, name, source })?;
    for (index, recorded) in history.iter().enumerate().skip(1) {
        let expected = record.version + 1;
        if recorded.version != expected || recorded.at < record.updated_at {
            return Err(ReplayError::OutOfOrder { position: index + 1, version: recorded.version, expected });
        }
        let follows = redecide(&record, recorded)?;
        if follows.as_ref() != Some(&recorded.event) {
            return Err(ReplayError::DoesNotFollow { version: expected, name: recorded.event.name() });
        }
        apply(&mut record, recorded.at, &recorded.event);
    }
    Ok(record)
}

/// What the rules make of an event's cause at its place.
fn redecide(record: &TaskRecord, recorded: &Recorded) -> Result<Option<Event>, ReplayError> {
    let Recorded { version, at, event } = recorded;
    let (version, name) = (*version, event.name());
    let unsigned = |source| ReplayError::Signature { version, name, source };
    let domain = &record.domain;
    let by_time = decide::elapse(record, *at);
    // Time acts first: what is overdue cannot be skipped by a message, nor by the relay's word.
    if by_time.is_some() && matches!(event.word(), Word::Signature | Word::Relay) {
        return Ok(None);
    }
    let mutation = match event {
        Event::Published { .. } => return Ok(None),
        Event::Accepted(signed) => Mutation::Accept(signed.clone().verify(domain).map_err(unsigned)?),
        Event::AttemptFailed(signed) => Mutation::Fail(signed.clone().verify(domain).map_err(unsigned)?),
        Event::Submitted(signed) => Mutation::Proof(signed.clone().verify(domain).map_err(unsigned)?),
        Event::Approved(signed) => Mutation::Approve(signed.clone().verify(domain).map_err(unsigned)?),
        Event::Disputed(signed) => Mutation::Dispute(signed.clone().verify(domain).map_err(unsigned)?),
        Event::Resolved(signed) => Mutation::Resolve(signed.clone().verify(domain).map_err(unsigned)?),
        Event::Cancelled(signed) => Mutation::Cancel(signed.clone().verify(domain).map_err(unsigned)?),
        Event::LeaseLapsed | Event::Expired | Event::WindowClosed | Event::ArbiterTimedOut => {
            return Ok(by_time);
        }
        Event::Released { attempt, reason } => return Ok(decide::release(record, *attempt, *reason)),
        Event::Unworkable => return Ok(failure::unworkable(record)),
        Event::ChainTime(head) => return Ok(chain::elapse_on_chain(record, *head)),
        Event::Chain(fact) => {
            return chain::observe(record, *fact).map_err(|source| ReplayError::Refused {
                version,
                name,
                source,
            });
        }
    };
    decide::decide(record, *at, &mutation).map_err(|source| ReplayError::Refused { version, name, source })
}

pub(crate) fn take(
    record: &mut TaskRecord,
    at: Timestamp,
    provider: Address,
    attempt: u32,
    until: Timestamp,
) {
    record.attempts = attempt;
    record.provider = Some(Provider(provider));
    record.state = State::Accepted { lease: Lease { provider, attempt, since: at, until } };
}

/// Ends an attempt by its lease's end.
pub(crate) fn lapse(record: &mut TaskRecord) {
    // The chain may bind a provider again whose lease lapsed before.
    if let Some(provider) = record.provider.filter(|provider| !record.lapsed.contains(provider)) {
        record.lapsed.push(provider);
    }
    end_attempt(record, "lease_lapsed", "the lease ended without a proof");
}

pub(crate) fn end_attempt(record: &mut TaskRecord, code: &str, message: &str) {
    note_failure(record, code, message);
    // An attempt that the chain never bound is not spent there.
    let spent = record.next_attempt() > record.task.config.max_attempts;
    record.state = if spent { State::Failed } else { State::Open };
}

fn note_failure(record: &mut TaskRecord, code: &str, message: &str) {
    if let Some(Provider(provider)) = record.provider {
        record.failure = Some(Failure {
            attempt: record.attempts,
            provider,
            code: code.to_owned(),
            message: message.to_owned(),
        });
    }
}

/// Keeps the last failure with those that would come again anywhere, if it is one.
fn note_fault(record: &mut TaskRecord) {
    let Some(fault) = &record.failure else { return };
    if failure::fails_anywhere(&fault.code) {
        record.faults.retain(|known| known.provider != fault.provider);
        record.faults.push(fault.clone());
    }
}

pub(crate) fn complete(record: &mut TaskRecord, by: Completion) {
    if let Some(submission) = record.submission().cloned() {
        record.state = State::Completed { submission, by };
    }
}

fn open_dispute(
    record: &mut TaskRecord,
    at: Timestamp,
    reason: String,
    evidence: Option<crate::primitives::Reference>,
) {
    if let Some(submission) = record.submission().cloned() {
        let dispute =
            Dispute { reason, evidence, since: at, resolve_until: at.plus(record.task.arbiter_window) };
        record.state = State::Disputed { submission, dispute };
    }
}

pub(crate) fn end_dispute(record: &mut TaskRecord, resolution: Resolution) {
    if let State::Disputed { submission, dispute } = &record.state {
        record.state =
            State::Resolved { submission: submission.clone(), dispute: dispute.clone(), resolution };
    }
}
