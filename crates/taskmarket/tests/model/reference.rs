//! The rules once more, written down from the documents alone and as plainly as possible: a flat struct, a table of what leads
//! where, and for each message all the objections that there are to it. It shares no rule with the crate.

use std::collections::BTreeSet;

use taskmarket::{Address, B256, Mutation, Status, Task};

/// How far `issued_at` may be off when first seen: five minutes.
const CLOCK: u64 = 300;
/// What a lease may outlast `max_duration` by.
const LEASE_MARGIN: u64 = 600;

/// What moves a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Cancel,
    Accept,
    Fail,
    Proof,
    Approve,
    Dispute,
    Resolve,
    LeaseOver,
    Deadline,
    WindowEnd,
    ArbiterEnd,
    Released,
    Unworkable,
}

use Cause as C;
use Status as S;

/// The picture: from where, by what, to where. An attempt that is lost (`LOST`) leads to `Open`, or to `Failed` once all are spent.
const TABLE: &[(Status, Cause, Status)] = &[
    (S::Open, C::Cancel, S::Cancelled),
    (S::Open, C::Accept, S::Accepted),
    (S::Open, C::Deadline, S::Expired),
    (S::Open, C::Unworkable, S::Failed),
    (S::Accepted, C::Fail, LOST),
    (S::Accepted, C::LeaseOver, LOST),
    (S::Accepted, C::Released, LOST),
    (S::Accepted, C::Deadline, S::Expired),
    (S::Accepted, C::Proof, S::Submitted),
    (S::Submitted, C::Approve, S::Completed),
    (S::Submitted, C::WindowEnd, S::Completed),
    (S::Submitted, C::Dispute, S::Disputed),
    (S::Disputed, C::Resolve, S::Resolved),
    (S::Disputed, C::ArbiterEnd, S::Resolved),
];
const LOST: Status = S::Open;

/// What the requester and the arbiter decide.
const VERDICTS: [Cause; 4] = [C::Cancel, C::Approve, C::Dispute, C::Resolve];

fn next(from: Status, cause: Cause) -> Option<Status> {
    TABLE.iter().find(|(status, by, _)| (*status, *by) == (from, cause)).map(|(_, _, to)| *to)
}

/// A signed message, flat.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Say {
    pub(crate) cause: Cause,
    pub(crate) signer: Address,
    pub(crate) digest: B256,
    /// It is about this task, signed for this task's domain.
    pub(crate) ours: bool,
    pub(crate) attempt: Option<u32>,
    pub(crate) lease_until: Option<u64>,
    pub(crate) issued_at: Option<u64>,
    pub(crate) provider: Option<Address>,
    pub(crate) model_hash: Option<B256>,
    pub(crate) input_hash: Option<B256>,
    pub(crate) result_hash: Option<B256>,
    pub(crate) bps: Option<u32>,
    /// It says that the task fails anywhere.
    pub(crate) faults: bool,
}

impl Say {
    pub(crate) fn new(mutation: &Mutation, task: B256, domain: taskmarket::Domain) -> Self {
        fn base<M>(cause: Cause, m: &taskmarket::Verified<M>, domain: taskmarket::Domain) -> Say {
            Say {
                cause,
                signer: m.signer(),
                digest: m.digest(),
                ours: m.domain() == domain,
                attempt: None,
                lease_until: None,
                issued_at: None,
                provider: None,
                model_hash: None,
                input_hash: None,
                result_hash: None,
                bps: None,
                faults: false,
            }
        }
        let mut say = match mutation {
            Mutation::Cancel(m) => {
                Say { issued_at: Some(m.message().issued_at.unix()), ..base(C::Cancel, m, domain) }
            }
            Mutation::Accept(m) => Say {
                attempt: Some(m.message().attempt),
                lease_until: Some(m.message().lease_until.unix()),
                ..base(C::Accept, m, domain)
            },
            Mutation::Fail(m) => Say {
                attempt: Some(m.message().attempt),
                issued_at: Some(m.message().issued_at.unix()),
                faults: m.message().code == "out_of_fuel",
                ..base(C::Fail, m, domain)
            },
            Mutation::Proof(m) => Say {
                attempt: Some(m.message().attempt),
                model_hash: Some(m.message().model_hash.0),
                input_hash: Some(m.message().input_hash.0),
                result_hash: Some(m.message().result_hash.0),
                ..base(C::Proof, m, domain)
            },
            Mutation::Approve(m) => Say {
                attempt: Some(m.message().attempt),
                issued_at: Some(m.message().issued_at.unix()),
                provider: Some(m.message().provider),
                result_hash: Some(m.message().result_hash.0),
                ..base(C::Approve, m, domain)
            },
            Mutation::Dispute(m) => Say {
                attempt: Some(m.message().attempt),
                issued_at: Some(m.message().issued_at.unix()),
                provider: Some(m.message().provider),
                result_hash: Some(m.message().result_hash.0),
                ..base(C::Dispute, m, domain)
            },
            Mutation::Resolve(m) => Say {
                attempt: Some(m.message().attempt),
                issued_at: Some(m.message().issued_at.unix()),
                bps: Some(m.message().provider_bps),
                ..base(C::Resolve, m, domain)
            },
        };
        say.ours &= mutation.task_id().0 == task;
        say
    }
}

/// What must come of a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It changes the task.
    Applies,
    /// It was applied before, and what it led to still stands: no change, and no error.
    Done,
    /// It changes nothing. The error's code is one of these; where `or_done`, no error will do as well, as the same was said before.
    Refused { codes: BTreeSet<&'static str>, or_done: bool },
}

/// A message that was applied, and what it led to.
#[derive(Debug, Clone)]
struct Done {
    say: Say,
    outcome: Outcome,
}

/// Where the work stands, who holds it in which attempt, and until when.
type Outcome = (Status, Option<Address>, u32, u64);

/// A task by the book.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) task: Task,
    pub(crate) status: Status,
    pub(crate) attempt: u32,
    pub(crate) holder: Option<Address>,
    pub(crate) lease_until: u64,
    pub(crate) window_end: u64,
    pub(crate) proof: Option<Say>,
    pub(crate) lapsed: BTreeSet<Address>,
    /// Who said that it fails anywhere.
    pub(crate) faulted: BTreeSet<Address>,
    pub(crate) version: u64,
    applied: Vec<Done>,
}

impl Model {
    pub(crate) fn new(task: Task) -> Self {
        Self {
            task,
            status: S::Open,
            attempt: 0,
            holder: None,
            lease_until: 0,
            window_end: 0,
            proof: None,
            lapsed: BTreeSet::new(),
            faulted: BTreeSet::new(),
            version: 1,
            applied: Vec::new(),
        }
    }

    /// What must come of a message at `now`, once time has had its say.
    pub(crate) fn judge(&self, now: u64, say: &Say) -> Verdict {
        let before = self.applied.iter().find(|done| done.say == *say);
        let proven = self.proof.as_ref() == Some(say);
        if proven || before.is_some_and(|done| done.outcome == self.outcome()) {
            return Verdict::Done;
        }
        let codes = self.objections(now, say);
        if codes.is_empty() && before.is_none() {
            return Verdict::Applies;
        }
        let alike = |Done { say: done, .. }: &Done| {
            (done.cause, done.signer, done.attempt) == (say.cause, say.signer, say.attempt)
                && done.result_hash == say.result_hash
        };
        // The requester or the arbiter asks for what is so already.
        let so_already = !codes.contains("wrong_party")
            && VERDICTS.contains(&say.cause)
            && TABLE.iter().any(|(_, by, to)| (*by, *to) == (say.cause, self.status));
        let or_done = say.ours && (so_already || self.applied.iter().any(alike));
        Verdict::Refused { codes, or_done }
    }

    fn objections(&self, now: u64, say: &Say) -> BTreeSet<&'static str> {
        let mut codes = BTreeSet::new();
        let mut object = |wrong: bool, code: &[&'static str]| {
            if wrong {
                codes.extend(code);
            }
        };
        let requester = self.task.requester;
        object(!say.ours, &["invalid_field"]);
        object(next(self.status, say.cause).is_none(), &["conflict"]);
        // What is said of an attempt in a state that does not take it may be called late, too.
        object(next(self.status, say.cause).is_none() && say.attempt.is_some(), &["stale_attempt"]);
        object(say.issued_at.is_some_and(|at| at.abs_diff(now) > CLOCK), &["invalid_field"]);
        match say.cause {
            C::Cancel => object(say.signer != requester, &["wrong_party"]),
            C::Accept => {
                object(say.attempt != Some(self.attempt + 1), &["stale_attempt"]);
                object(self.lapsed.contains(&say.signer), &["conflict"]);
                let until = say.lease_until.unwrap_or_default();
                let latest =
                    self.task.deadline.unix().min(now + self.task.config.max_duration + LEASE_MARGIN);
                object(until <= now || until > latest, &["invalid_field"]);
            }
            C::Fail | C::Proof => {
                object(say.attempt != Some(self.attempt), &["stale_attempt"]);
                object(self.holder != Some(say.signer), &["wrong_party"]);
                let pinned =
                    |asked: B256, used: Option<B256>| !asked.is_zero() && used.is_some_and(|u| u != asked);
                object(pinned(self.task.model_hash.0, say.model_hash), &["invalid_field"]);
                object(pinned(self.task.input_hash.0, say.input_hash), &["invalid_field"]);
            }
            C::Approve | C::Dispute => {
                object(say.signer != requester, &["wrong_party"]);
                object(say.attempt != Some(self.attempt), &["stale_attempt"]);
                if let Some(proof) = &self.proof {
                    let other = say.provider != Some(proof.signer) || say.result_hash != proof.result_hash;
                    object(other, &["invalid_field", "conflict"]);
                }
            }
            C::Resolve => {
                object(say.signer != self.task.arbiter, &["wrong_party"]);
                object(say.attempt != Some(self.attempt), &["stale_attempt"]);
                object(say.bps.is_some_and(|bps| bps > 10_000), &["invalid_field"]);
            }
            C::LeaseOver | C::Deadline | C::WindowEnd | C::ArbiterEnd | C::Released | C::Unworkable => {
                panic!("nobody signs {:?}", say.cause)
            }
        }
        codes
    }

    fn outcome(&self) -> Outcome {
        (self.status, self.holder, self.attempt, self.lease_until)
    }

    /// Carries a message out.
    pub(crate) fn apply(&mut self, now: u64, say: Say) {
        match say.cause {
            C::Accept => {
                self.attempt += 1;
                self.holder = Some(say.signer);
                self.lease_until = say.lease_until.unwrap_or_default();
            }
            C::Proof => {
                self.proof = Some(say.clone());
                self.window_end = now + self.task.dispute_window;
            }
            C::Dispute => self.window_end = now + self.task.arbiter_window,
            C::Fail if say.faults => {
                self.faulted.insert(say.signer);
            }
            C::Cancel | C::Fail | C::Approve | C::Resolve => {}
            C::LeaseOver | C::Deadline | C::WindowEnd | C::ArbiterEnd | C::Released | C::Unworkable => {}
        }
        self.step(say.cause);
        let outcome = self.outcome();
        self.applied.push(Done { say, outcome });
    }

    /// What time does at `now`. A lease that ended before the deadline ended first, even where nobody looked until later.
    pub(crate) fn due(&self, now: u64) -> Option<Cause> {
        let deadline = self.task.deadline.unix();
        let (at, cause) = match self.status {
            S::Open => (deadline, C::Deadline),
            S::Accepted if self.lease_until < deadline => (self.lease_until, C::LeaseOver),
            S::Accepted => (deadline, C::Deadline),
            S::Submitted => (self.window_end, C::WindowEnd),
            S::Disputed => (self.window_end, C::ArbiterEnd),
            S::Completed | S::Resolved | S::Cancelled | S::Expired | S::Failed => return None,
        };
        (now >= at).then_some(cause)
    }

    /// Lets time act, or the relay release the attempt.
    pub(crate) fn step(&mut self, cause: Cause) {
        let to = next(self.status, cause).unwrap_or_else(|| panic!("{cause:?} from {}", self.status));
        if cause == C::LeaseOver {
            self.lapsed.extend(self.holder);
        }
        let lost = matches!(cause, C::Fail | C::LeaseOver | C::Released);
        self.status = if lost && self.attempt >= self.task.config.max_attempts { S::Failed } else { to };
        self.version += 1;
    }

    /// Whether the relay's word ends the task: nobody holds it, and somebody said that it fails anywhere.
    pub(crate) fn is_unworkable(&self) -> bool {
        self.status == S::Open && !self.faulted.is_empty()
    }

    /// Whether the relay's word releases an attempt: it is the one held.
    pub(crate) fn releases(&self, attempt: u32) -> bool {
        self.status == S::Accepted && self.attempt == attempt
    }
}
