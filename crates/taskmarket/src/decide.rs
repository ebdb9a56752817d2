//! The rules: what each signed message, the passing of time, a relay's word and the chain's word do to a task.
//!
//! Every function here is pure: the same record, time and message give the same answer, and nothing changes but by [`crate::apply`].
//! Callers let time act first ([`elapse`] until it says `None`) and then decide. What the chain does is in module `chain`.

use alloy_primitives::{Address, keccak256};

use crate::eip712::{Domain, Verified};
use crate::event::{Event, ReleaseReason};
use crate::messages::{
    AcceptTask, ApproveResult, CancelTask, ComputeProof, DisputeTask, FailTask, ResolveDispute, Task,
};
use crate::primitives::{Bytes32, Reference, TaskId, Timestamp};
use crate::record::{Completion, Money, Provider, State, Status, TaskRecord};

/// How far a message's `issued_at` may be from the relay's clock when first seen, in seconds.
pub const CLOCK_TOLERANCE_SECS: u64 = 300;
/// What a lease may outlast `max_duration` by, in seconds: time to fetch the model and to hand the result in.
pub const LEASE_MARGIN_SECS: u64 = 600;
/// What a lease of a settled task has left at least when it begins, in seconds: a provider that somebody else binds by an old acceptance
/// of its own has the time to give the attempt up.
pub const MIN_LEASE_SECS: u64 = 300;
/// The furthest deadline, in seconds from publication.
pub const MAX_DEADLINE_SECS: u64 = 90 * 86_400;
/// The longest dispute or arbiter window, in seconds.
pub const MAX_WINDOW_SECS: u64 = 30 * 86_400;
/// The longest attempt, in seconds.
pub const MAX_DURATION_SECS: u64 = 7 * 86_400;
/// The most attempts a task may ask for.
pub const MAX_ATTEMPTS: u32 = 100;
/// The most acceptances of one attempt of a settled task that a relay takes before the chain does: each is kept for ever.
pub const MAX_RESERVATIONS: u32 = 100;
/// The most GPUs a task may ask for.
pub const MAX_GPU_COUNT: u32 = 64;
/// The longest `gpu_type` and `gpu_name`, in bytes.
pub const MAX_GPU_NAME_BYTES: usize = 128;
/// The longest failure code, in bytes.
pub const MAX_CODE_BYTES: usize = 64;
/// The longest failure message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024;
/// The longest dispute reason, in bytes.
pub const MAX_REASON_BYTES: usize = 4096;
/// All of a share, in basis points.
pub const ALL_BPS: u32 = 10_000;

/// A change that somebody signed for.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each carries the message of its name")]
pub enum Mutation {
    Cancel(Verified<CancelTask>),
    Accept(Verified<AcceptTask>),
    Fail(Verified<FailTask>),
    Proof(Verified<ComputeProof>),
    Approve(Verified<ApproveResult>),
    Dispute(Verified<DisputeTask>),
    Resolve(Verified<ResolveDispute>),
}

impl Mutation {
    /// The task that it is about.
    pub fn task_id(&self) -> TaskId {
        match self {
            Self::Cancel(m) => m.message().task_id,
            Self::Accept(m) => m.message().task_id,
            Self::Fail(m) => m.message().task_id,
            Self::Proof(m) => m.message().task_id,
            Self::Approve(m) => m.message().task_id,
            Self::Dispute(m) => m.message().task_id,
            Self::Resolve(m) => m.message().task_id,
        }
    }

    /// Where it was signed for.
    fn domain(&self) -> Domain {
        match self {
            Self::Cancel(m) => m.domain(),
            Self::Accept(m) => m.domain(),
            Self::Fail(m) => m.domain(),
            Self::Proof(m) => m.domain(),
            Self::Approve(m) => m.domain(),
            Self::Dispute(m) => m.domain(),
            Self::Resolve(m) => m.domain(),
        }
    }
}

/// Why a message changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A field holds what the rules forbid, whatever the state.
    #[error("{field}: {why}")]
    Invalid {
        /// The field's JSON name.
        field: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The signature is right, but this is not theirs to say.
    #[error("only the {role} ({expected}) can do this; {actual} signed")]
    WrongParty {
        /// Whose word it takes.
        role: &'static str,
        /// Their address.
        expected: Address,
        /// Who signed.
        actual: Address,
    },
    /// The message is about another attempt than the one that counts now.
    #[error("the task is {status} at attempt {current}; this is about attempt {attempt}")]
    StaleAttempt {
        /// Where the task is.
        status: Status,
        /// The attempt that counts.
        current: u32,
        /// The message's.
        attempt: u32,
    },
    /// The state forbids it.
    #[error("the task is {status}: {why}")]
    Conflict {
        /// Where the task is.
        status: Status,
        /// Why that forbids it.
        why: &'static str,
    },
    /// The task's money is in a contract: this counts once the chain says so.
    #[error("the task is settled on chain: send the transaction; the relay takes the chain's word")]
    AwaitingChain,
}

impl Rejection {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid_field",
            Self::WrongParty { .. } => "wrong_party",
            Self::StaleAttempt { .. } => "stale_attempt",
            Self::Conflict { .. } => "conflict",
            Self::AwaitingChain => "awaiting_chain",
        }
    }
}

pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> Rejection {
    Rejection::Invalid { field, why: why.into() }
}

/// What a signed message does to a task: an event to commit, or `None` where it was done already (a replay changes nothing).
///
/// # Errors
/// See [`Rejection`]; the record stays as it is.
pub fn decide(record: &TaskRecord, now: Timestamp, mutation: &Mutation) -> Result<Option<Event>, Rejection> {
    if mutation.task_id() != record.id {
        return Err(invalid(
            "task_id",
            format!("the message is about {}, not {}", mutation.task_id(), record.id),
        ));
    }
    if mutation.domain() != record.domain {
        return Err(invalid("signature", "made for another signing domain than the task's"));
    }
    match mutation {
        Mutation::Cancel(m) => cancel(record, now, m),
        Mutation::Accept(m) => accept(record, now, m),
        Mutation::Fail(m) => fail(record, now, m),
        Mutation::Proof(m) => proof(record, now, m),
        Mutation::Approve(m) => approve(record, now, m),
        Mutation::Dispute(m) => dispute(record, now, m),
        Mutation::Resolve(m) => resolve(record, now, m),
    }
}

fn cancel(
    record: &TaskRecord,
    now: Timestamp,
    cancel: &Verified<CancelTask>,
) -> Result<Option<Event>, Rejection> {
    require_party("requester", record.task.requester, cancel.signer())?;
    match &record.state {
        State::Cancelled => Ok(None),
        State::Open => {
            fresh(now, cancel.message().issued_at)?;
            if record.domain.is_settled() {
                return Err(Rejection::AwaitingChain);
            }
            Ok(Some(Event::Cancelled(cancel.signed().clone())))
        }
        State::Accepted { .. } => {
            Err(conflict(record, "a provider holds it; it can be cancelled only while open"))
        }
        State::Submitted { .. }
        | State::Completed { .. }
        | State::Disputed { .. }
        | State::Resolved { .. }
        | State::Expired
        | State::Failed => Err(conflict(record, "it can be cancelled only while open")),
    }
}

fn accept(
    record: &TaskRecord,
    now: Timestamp,
    accept: &Verified<AcceptTask>,
) -> Result<Option<Event>, Rejection> {
    let message = accept.message();
    match &record.state {
        State::Open => {}
        State::Accepted { lease }
            if lease.provider == message.provider
                && lease.attempt == message.attempt
                && lease.until == message.lease_until =>
        {
            return Ok(None);
        }
        State::Accepted { lease } if lease.attempt != message.attempt => {
            return Err(stale(record, message.attempt));
        }
        State::Accepted { .. } => return Err(conflict(record, "another provider holds it")),
        State::Submitted { .. }
        | State::Completed { .. }
        | State::Disputed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => return Err(conflict(record, "it is no longer on offer")),
    }
    if message.attempt != record.next_attempt() {
        return Err(stale(record, message.attempt));
    }
    if record.awaits_money() {
        return Err(conflict(record, "the chain does not hold its budget"));
    }
    if record.is_reserved_out() {
        return Err(conflict(
            record,
            "too many acceptances of this attempt came to nothing; only the chain gives it out",
        ));
    }
    if record.domain.is_settled() && message.provider == record.task.arbiter {
        return Err(invalid("provider", "is the task's arbiter"));
    }
    if record.is_lapsed(message.provider) {
        return Err(conflict(record, "a lease of this provider lapsed; it is not offered to them again"));
    }
    if now >= record.task.deadline {
        return Err(conflict(record, "its deadline has passed"));
    }
    let latest = latest_lease(&record.task, now);
    let earliest = if record.domain.is_settled() { now.plus(MIN_LEASE_SECS) } else { now.plus(1) };
    if message.lease_until < earliest || message.lease_until > latest {
        return Err(invalid("lease_until", format!("no earlier than {earliest} and no later than {latest}")));
    }
    Ok(Some(Event::Accepted(accept.signed().clone())))
}

/// The latest end that a lease taken at `now` may have: the deadline, or `max_duration` and a margin from now.
pub fn latest_lease(task: &Task, now: Timestamp) -> Timestamp {
    task.deadline.min(now.plus(task.config.max_duration + LEASE_MARGIN_SECS))
}

fn fail(record: &TaskRecord, now: Timestamp, fail: &Verified<FailTask>) -> Result<Option<Event>, Rejection> {
    let message = fail.message();
    let known = record.failure.as_ref().is_some_and(|failure| {
        (failure.attempt, failure.provider, &failure.code, &failure.message)
            == (message.attempt, message.provider, &message.code, &message.message)
    });
    if known {
        return Ok(None);
    }
    require_holder(record, message.provider, message.attempt)?;
    let is_noted =
        |failure: &crate::Failure| (failure.attempt, failure.provider) == (message.attempt, message.provider);
    if record.is_bound() && record.failure.as_ref().is_some_and(is_noted) {
        return Err(Rejection::AwaitingChain);
    }
    fresh(now, message.issued_at)?;
    let code_is_word =
        message.code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if message.code.is_empty() || message.code.len() > MAX_CODE_BYTES || !code_is_word {
        return Err(invalid("code", format!("1 to {MAX_CODE_BYTES} of a-z, 0-9 and _")));
    }
    if message.message.len() > MAX_MESSAGE_BYTES {
        return Err(invalid("message", format!("at most {MAX_MESSAGE_BYTES} bytes")));
    }
    Ok(Some(Event::AttemptFailed(fail.signed().clone())))
}

fn proof(
    record: &TaskRecord,
    now: Timestamp,
    proof: &Verified<ComputeProof>,
) -> Result<Option<Event>, Rejection> {
    let message = proof.message();
    if record.submission().is_some_and(|submission| submission.proof.message == *message) {
        return Ok(None);
    }
    let lease_until = require_holder(record, message.provider, message.attempt)?;
    // In a settled task the chain says whether it came in time.
    if !record.domain.is_settled() && (now >= lease_until || now >= record.task.deadline) {
        return Err(conflict(record, "the lease or the deadline has passed"));
    }
    if let Some(proven) = record.settlement.result_hash.filter(|proven| *proven != message.result_hash) {
        return Err(invalid("result_hash", format!("the chain has {proven}")));
    }
    for (field, pin, used) in [
        ("model_hash", record.task.model_hash, message.model_hash),
        ("input_hash", record.task.input_hash, message.input_hash),
    ] {
        if !pin.admits(&used) {
            return Err(invalid(field, format!("the task pins {pin}, the proof says {used}")));
        }
    }
    if message.started_at > message.finished_at || message.finished_at > now.plus(CLOCK_TOLERANCE_SECS) {
        return Err(invalid("finished_at", "not before started_at, and not in the future"));
    }
    if !is_gpu_name(&message.gpu_name) {
        return Err(invalid("gpu_name", format!("at most {MAX_GPU_NAME_BYTES} printable bytes")));
    }
    Ok(Some(Event::Submitted(proof.signed().clone())))
}

fn approve(
    record: &TaskRecord,
    now: Timestamp,
    approve: &Verified<ApproveResult>,
) -> Result<Option<Event>, Rejection> {
    require_party("requester", record.task.requester, approve.signer())?;
    let message = approve.message();
    require_result(record, message.provider, message.attempt, message.result_hash)?;
    match &record.state {
        State::Completed { .. } => Ok(None),
        State::Submitted { .. } => {
            fresh(now, message.issued_at)?;
            if record.domain.is_settled() {
                return Err(Rejection::AwaitingChain);
            }
            Ok(Some(Event::Approved(approve.signed().clone())))
        }
        State::Disputed { .. } | State::Resolved { .. } => Err(conflict(record, "its result was disputed")),
        State::Open | State::Accepted { .. } | State::Cancelled | State::Expired | State::Failed => {
            Err(conflict(record, "there is no result to approve"))
        }
    }
}

fn dispute(
    record: &TaskRecord,
    now: Timestamp,
    dispute: &Verified<DisputeTask>,
) -> Result<Option<Event>, Rejection> {
    require_party("requester", record.task.requester, dispute.signer())?;
    let message = dispute.message();
    if record.domain.is_settled() {
        require_claim(record, message)?;
        return complain(record, now, dispute);
    }
    require_result(record, message.provider, message.attempt, message.result_hash)?;
    match &record.state {
        State::Disputed { dispute, .. }
            if dispute.reason == message.reason && dispute.evidence == message.evidence.parse().ok() =>
        {
            Ok(None)
        }
        State::Disputed { .. } => Err(conflict(record, "it is already disputed, in other words")),
        State::Submitted { dispute_until, .. } if now < *dispute_until => {
            fresh(now, message.issued_at)?;
            check_complaint(message)?;
            Ok(Some(Event::Disputed(dispute.signed().clone())))
        }
        State::Submitted { .. } | State::Completed { .. } => Err(conflict(record, over(record))),
        State::Open
        | State::Accepted { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => Err(conflict(record, "there is no result to dispute")),
    }
}

/// Whether a GPU may be called so, or asked for by this.
pub fn is_gpu_name(name: &str) -> bool {
    name.len() <= MAX_GPU_NAME_BYTES && !name.chars().any(char::is_control)
}

fn check_complaint(message: &DisputeTask) -> Result<(), Rejection> {
    if message.reason.is_empty() || message.reason.len() > MAX_REASON_BYTES {
        return Err(invalid("reason", format!("1 to {MAX_REASON_BYTES} bytes")));
    }
    if !message.evidence.is_empty() {
        let parsed: Result<Reference, _> = message.evidence.parse();
        parsed.map_err(|error| invalid("evidence", error.to_string()))?;
    }
    Ok(())
}

/// Keeps what the requester of a settled task says in dispute, for the chain has its hash alone: one complaint before the chain says that
/// it disputes, and from then on the one that the chain's hash names. The proof may be known by the chain alone.
fn complain(
    record: &TaskRecord,
    now: Timestamp,
    dispute: &Verified<DisputeTask>,
) -> Result<Option<Event>, Rejection> {
    let message = dispute.message();
    let kept = record.complaint.as_ref();
    if kept.is_some_and(|kept| kept.message == *message) {
        return Ok(None);
    }
    let is_named = |hash| hash == Bytes32(keccak256(message.reason.as_bytes()));
    match (&record.state, record.settlement.status) {
        (State::Submitted { .. }, _) | (State::Accepted { .. }, Money::Proven)
            if kept.is_none_or(|kept| kept.message.attempt != message.attempt) =>
        {
            fresh(now, message.issued_at)?;
            check_complaint(message)?;
            Ok(Some(Event::Disputed(dispute.signed().clone())))
        }
        (State::Submitted { .. }, _) | (State::Accepted { .. }, Money::Proven) => {
            Err(Rejection::AwaitingChain)
        }
        (State::Disputed { .. }, _) | (State::Accepted { .. }, Money::Disputed)
            if !record.settlement.reason_hash.is_some_and(is_named) =>
        {
            Err(invalid("reason", "the chain has the hash of another"))
        }
        (State::Disputed { .. }, _) | (State::Accepted { .. }, Money::Disputed)
            if kept.is_some_and(|kept| is_named(Bytes32(keccak256(kept.message.reason.as_bytes())))) =>
        {
            Err(conflict(record, "its reason is known"))
        }
        (State::Disputed { .. }, _) | (State::Accepted { .. }, Money::Disputed) => {
            check_complaint(message)?;
            Ok(Some(Event::Disputed(dispute.signed().clone())))
        }
        (State::Completed { .. }, _) => Err(conflict(record, over(record))),
        _ => Err(conflict(record, "there is no result to dispute")),
    }
}

fn resolve(
    record: &TaskRecord,
    now: Timestamp,
    resolve: &Verified<ResolveDispute>,
) -> Result<Option<Event>, Rejection> {
    require_party("arbiter", record.task.arbiter, resolve.signer())?;
    let message = resolve.message();
    match &record.state {
        State::Resolved { .. } if message.attempt == record.attempts => Ok(None),
        State::Accepted { .. } if record.settlement.status == Money::Disputed => {
            Err(Rejection::AwaitingChain)
        }
        State::Disputed { .. } if message.attempt != record.attempts => Err(stale(record, message.attempt)),
        State::Disputed { dispute, .. } if !record.domain.is_settled() && now >= dispute.resolve_until => {
            Err(conflict(record, "the arbiter's window is over"))
        }
        State::Disputed { .. } => {
            fresh(now, message.issued_at)?;
            if message.provider_bps > ALL_BPS {
                return Err(invalid("provider_bps", format!("at most {ALL_BPS}")));
            }
            if record.domain.is_settled() {
                return Err(Rejection::AwaitingChain);
            }
            Ok(Some(Event::Resolved(resolve.signed().clone())))
        }
        State::Open
        | State::Accepted { .. }
        | State::Submitted { .. }
        | State::Completed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => Err(conflict(record, "it is not disputed")),
    }
}

/// When time acts on the task next, if it ever does. On a settled task the relay's clock never acts: see [`crate::chain_due`].
pub fn next_due(record: &TaskRecord) -> Option<Timestamp> {
    if record.domain.is_settled() {
        return None;
    }
    match &record.state {
        State::Open => Some(record.task.deadline),
        State::Accepted { lease } => Some(record.task.deadline.min(lease.until)),
        State::Submitted { dispute_until, .. } => Some(*dispute_until),
        State::Disputed { dispute, .. } => Some(dispute.resolve_until),
        State::Completed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => None,
    }
}

/// What the passing of time does to a task, if anything. Once applied, it may have more to say.
pub fn elapse(record: &TaskRecord, now: Timestamp) -> Option<Event> {
    if now < next_due(record)? {
        return None;
    }
    match &record.state {
        State::Open => Some(Event::Expired),
        // By what ended first, not by when somebody looked.
        State::Accepted { lease } if lease.until >= record.task.deadline => Some(Event::Expired),
        State::Accepted { .. } => Some(Event::LeaseLapsed),
        State::Submitted { .. } => Some(Event::WindowClosed),
        State::Disputed { .. } => Some(Event::ArbiterTimedOut),
        State::Completed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => None,
    }
}

/// Releases an attempt by the serving relay's word, if that attempt is the one held. What the chain has bound, only the chain releases.
pub fn release(record: &TaskRecord, attempt: u32, reason: ReleaseReason) -> Option<Event> {
    let lease = record.lease()?;
    (lease.attempt == attempt && !record.is_bound()).then_some(Event::Released { attempt, reason })
}

fn require_party(role: &'static str, expected: Address, actual: Address) -> Result<(), Rejection> {
    if expected == actual && !expected.is_zero() {
        Ok(())
    } else {
        Err(Rejection::WrongParty { role, expected, actual })
    }
}

/// The lease's end, if this provider holds this very attempt.
fn require_holder(record: &TaskRecord, provider: Address, attempt: u32) -> Result<Timestamp, Rejection> {
    match &record.state {
        State::Accepted { lease } if lease.attempt != attempt => Err(stale(record, attempt)),
        State::Accepted { lease } => {
            require_party("provider that holds the task", lease.provider, provider)?;
            Ok(lease.until)
        }
        State::Open | State::Failed if record.attempts != attempt => Err(stale(record, attempt)),
        State::Open
        | State::Submitted { .. }
        | State::Completed { .. }
        | State::Disputed { .. }
        | State::Resolved { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => Err(conflict(record, "nobody holds it")),
    }
}

/// Why a result cannot be disputed any more.
fn over(record: &TaskRecord) -> &'static str {
    if matches!(record.state, State::Completed { by: Completion::Approved, .. }) {
        "the requester approved it"
    } else {
        "the dispute window is over"
    }
}

fn require_result(
    record: &TaskRecord,
    provider: Address,
    attempt: u32,
    result: crate::ContentHash,
) -> Result<(), Rejection> {
    let Some(submission) = record.submission() else {
        return Err(conflict(record, "there is no result"));
    };
    let proof = &submission.proof.message;
    if proof.attempt != attempt {
        return Err(stale(record, attempt));
    }
    if proof.provider != provider {
        return Err(invalid("provider", format!("the result is of {}", proof.provider)));
    }
    if proof.result_hash != result {
        return Err(invalid("result_hash", format!("the proof says {}", proof.result_hash)));
    }
    Ok(())
}

/// A settled task's result may be known by the chain alone, or another by the chain than by the relay: either can be complained of.
fn require_claim(record: &TaskRecord, message: &DisputeTask) -> Result<(), Rejection> {
    let money = &record.settlement;
    let on_chain = matches!(money.status, Money::Proven | Money::Disputed)
        && money.provider == Some(Provider(message.provider))
        && money.attempt == message.attempt
        && money.result_hash == Some(message.result_hash);
    if on_chain {
        return Ok(());
    }
    require_result(record, message.provider, message.attempt, message.result_hash)
}

fn fresh(now: Timestamp, issued_at: Timestamp) -> Result<(), Rejection> {
    if now.distance(issued_at) <= CLOCK_TOLERANCE_SECS {
        return Ok(());
    }
    Err(invalid(
        "issued_at",
        format!(
            "{issued_at} is more than {CLOCK_TOLERANCE_SECS} s from the relay's clock ({now}); sign again"
        ),
    ))
}

fn conflict(record: &TaskRecord, why: &'static str) -> Rejection {
    Rejection::Conflict { status: record.status(), why }
}

fn stale(record: &TaskRecord, attempt: u32) -> Rejection {
    Rejection::StaleAttempt { status: record.status(), current: record.attempts, attempt }
}
