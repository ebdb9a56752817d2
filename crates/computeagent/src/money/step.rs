//! What is to be done about a claim now: one pure function of the claim, of what the chain stores of the task, and of the time.
//!
//! It is asked at the start, after each change and every few seconds, and never relies on what was done before: what a crash, a
//! reorganisation or somebody else undid or did in between is seen in the chain's record.

use escrow::{Record, Status};
use taskmarket::{LEASE_MARGIN_SECS, MIN_LEASE_SECS, Timestamp};

use super::claim::{Claim, Ending, Wish};

/// Times that a transaction needs on its way, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Margins {
    /// An attempt without a result is given up so long before its lease ends.
    pub(crate) fail: u64,
    /// An acceptance is sent only while so much more than the least lease is left.
    pub(crate) accept: u64,
    /// How long the approval of a trusted requester is waited for.
    pub(crate) patience: u64,
}

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    /// The newest block's time: what ended by it has ended for the contract.
    pub(crate) head: Timestamp,
    /// The time that the next block may have: the later of the newest block's and the host's.
    pub(crate) now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing before that time, unless something changes.
    Wait(Timestamp),
    /// Give the attempt up for this reason: a stable word, and a text.
    Surrender(&'static str, &'static str),
    /// Accept on chain, by a lease until then.
    Accept(Timestamp),
    /// Give the attempt back on chain.
    Fail,
    /// Put the proof on chain.
    Prove,
    /// Accept, prove and be paid in one, by the requester's approval.
    AcceptAndProve,
    /// Be paid by the requester's approval.
    Approve,
    /// Be paid: the dispute window is over.
    Settle,
    /// End a dispute that the arbiter left open.
    Timeout,
    /// Nothing any more.
    Close(Ending),
}

/// What is to be done about a claim now.
pub(crate) fn next_step(claim: &Claim, record: &Record, clock: Clock, margins: &Margins) -> Step {
    let accept = &claim.accept.mutation;
    let mine = claim.is_of(record);
    match record.status {
        Status::Paid if mine => Step::Close(Ending::Paid),
        Status::Split if mine => Step::Close(Ending::Split),
        Status::Proven if mine => {
            if claim.approved().is_some() {
                Step::Approve
            } else {
                after_window(Step::Settle, record, clock)
            }
        }
        Status::Disputed if mine => after_window(Step::Timeout, record, clock),
        Status::Paid
        | Status::Split
        | Status::Proven
        | Status::Disputed
        | Status::Refunded
        | Status::Cancelled => Step::Close(claim.ended(clock.head)),
        Status::Accepted if clock.head < record.until => {
            if mine {
                held(claim, record, clock, margins)
            } else if record.attempt >= accept.attempt {
                Step::Close(claim.ended(clock.head))
            } else {
                Step::Wait(record.until)
            }
        }
        Status::None | Status::Funded | Status::Accepted => unheld(claim, record, clock, margins),
    }
}

fn after_window(step: Step, record: &Record, clock: Clock) -> Step {
    // By the block's time alone: a batch is estimated on the newest block, and must not be skipped there.
    if clock.head >= record.until { step } else { Step::Wait(record.until) }
}

/// This provider is bound.
fn held(claim: &Claim, record: &Record, clock: Clock, margins: &Margins) -> Step {
    match &claim.wish {
        Wish::Prove { .. } => Step::Prove,
        Wish::GiveUp { .. } => Step::Fail,
        Wish::Fetch | Wish::Bind => {
            let last = before(record.until, margins.fail);
            if clock.now >= last {
                return Step::Surrender("lease_ending", "the lease is about to end and there is no result");
            }
            Step::Wait(last)
        }
    }
}

/// Nobody is bound.
fn unheld(claim: &Claim, record: &Record, clock: Clock, margins: &Margins) -> Step {
    let accept = &claim.accept.mutation;
    let deadline = claim.task.deadline;
    if record.attempt >= accept.attempt || clock.head >= deadline {
        return Step::Close(claim.ended(clock.head));
    }
    let is_next = record.status != Status::None && record.attempt.checked_add(1) == Some(accept.attempt);
    match &claim.wish {
        Wish::GiveUp { .. } => {
            // The acceptance is out: until then somebody may still bind this provider by it.
            let last = before(accept.lease_until, MIN_LEASE_SECS);
            if clock.head > last { Step::Close(Ending::GivenUp) } else { Step::Wait(last.plus(1)) }
        }
        Wish::Fetch => Step::Wait(deadline),
        Wish::Bind if claim.fast => Step::Wait(deadline),
        Wish::Prove { .. } if is_next && claim.approved().is_some() => Step::AcceptAndProve,
        Wish::Prove { since, .. } if claim.fast && clock.now < since.plus(margins.patience) => {
            Step::Wait(since.plus(margins.patience))
        }
        Wish::Bind | Wish::Prove { .. } if !is_next => Step::Wait(deadline),
        Wish::Bind => match lease(claim, clock, margins) {
            Some(until) => Step::Accept(until),
            None => Step::Surrender("too_late", "the deadline is too near to be bound"),
        },
        // A requester may approve until the deadline.
        Wish::Prove { .. } => lease(claim, clock, margins).map_or(Step::Wait(deadline), Step::Accept),
    }
}

/// The lease to accept by: the one signed last, or a later one where too little of that is left. None where the deadline is too near.
fn lease(claim: &Claim, clock: Clock, margins: &Margins) -> Option<Timestamp> {
    let signed = claim.accept.mutation.lease_until;
    let longest = claim.task.config.max_duration + LEASE_MARGIN_SECS;
    let latest = claim.task.deadline.min(clock.head.plus(longest));
    let least = clock.now.plus(MIN_LEASE_SECS + margins.accept);
    let work = clock.now.plus(claim.task.config.max_duration + margins.fail);
    let wanted = if claim.proof().is_some() { least } else { least.max(work) };
    if latest < least {
        return None;
    }
    Some(if (wanted.min(latest)..=latest).contains(&signed) { signed } else { latest })
}

fn before(time: Timestamp, seconds: u64) -> Timestamp {
    Timestamp::from_unix(time.unix().saturating_sub(seconds))
}

#[cfg(test)]
mod tests;
