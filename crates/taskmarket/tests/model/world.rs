//! One task in the crate's hands and in the model's, side by side.

use std::collections::{BTreeMap, BTreeSet};

use taskmarket::{
    AcceptTask, Address, ApproveResult, Bytes32, CancelTask, ChainChange, ChainFact, ComputeProof,
    DisputeTask, Domain, Event, FailTask, Message, Mutation, Recorded, Rejection, ResolveDispute, Signed,
    State, Status, TaskId, TaskRecord, Timestamp, Verified, apply, decide, elapse, latest_lease, next_due,
    observe, publish, release, unworkable,
};

use crate::actors::{ACTORS, ARBITER, Actor, FIRST_PROVIDER, REQUESTER};
use crate::reference::{Cause, Model, Say, Verdict};
use crate::steps::{SETTLED, START, Shape, Step, Twist, Wait, Who, hash};

pub(crate) struct World {
    pub(crate) record: TaskRecord,
    pub(crate) model: Model,
    pub(crate) history: Vec<Recorded>,
    now: u64,
    said: Vec<Mutation>,
    holders: BTreeMap<u32, Address>,
}

impl World {
    pub(crate) fn new(shape: &Shape) -> Self {
        let (task, domain) = (shape.task(), Domain::UNSETTLED);
        let signed = ACTORS[REQUESTER].sign(task.clone(), &domain);
        let at = Timestamp::from_unix(START);
        let record = publish(at, &signed.clone().verify(&domain).unwrap()).unwrap();
        let event = Event::Published { task: Box::new(signed), domain };
        Self {
            record,
            model: Model::new(task),
            history: vec![Recorded { version: 1, at, event }],
            now: START,
            said: Vec::new(),
            holders: BTreeMap::new(),
        }
    }

    pub(crate) fn take(&mut self, step: &Step) {
        // Callers let time act first.
        self.wait(Wait::Seconds(0));
        match step {
            Step::Wait(wait) => self.wait(*wait),
            Step::Say { verb, who, twist, salt } => {
                if let Some(mutation) = self.compose(*verb, *who, *twist, *salt) {
                    self.said.push(mutation.clone());
                    self.hear(&mutation);
                }
            }
            Step::Again(index) => {
                if !self.said.is_empty() {
                    let mutation = self.said[index.index(self.said.len())].clone();
                    self.hear(&mutation);
                }
            }
            Step::Release { attempt, reason } => {
                let attempt = self.record.attempts.saturating_add_signed((*attempt).into());
                let event = release(&self.record, attempt, *reason);
                assert_eq!(event.is_some(), self.model.releases(attempt), "release of {attempt}");
                if let Some(event) = event {
                    self.model.step(Cause::Released);
                    self.commit(event);
                }
            }
            Step::Unworkable => {
                let event = unworkable(&self.record);
                assert_eq!(event.is_some(), self.model.is_unworkable(), "ended in {:?}", self.record);
                if let Some(event) = event {
                    self.model.step(Cause::Unworkable);
                    self.commit(event);
                }
            }
            Step::Chain => {
                let fact = ChainFact {
                    tx: Bytes32::default(),
                    log_index: 0,
                    block: self.record.version,
                    block_hash: Bytes32::default(),
                    block_time: self.at(),
                    change: ChainChange::Funded,
                };
                assert!(matches!(observe(&self.record, fact), Err(Rejection::Invalid { .. })));
            }
        }
        self.compare();
    }

    /// Lets all windows pass: nothing is left undecided.
    pub(crate) fn finish(&mut self) {
        while next_due(&self.record).is_some() {
            self.wait(Wait::Due(0));
            self.compare();
        }
        assert!(self.record.status().is_final(), "{} for ever", self.record.status());
    }

    fn at(&self) -> Timestamp {
        Timestamp::from_unix(self.now)
    }

    fn wait(&mut self, wait: Wait) {
        self.now = match wait {
            Wait::Seconds(seconds) => self.now + seconds,
            Wait::Due(past) => match next_due(&self.record) {
                Some(due) => self.now.max(due.unix().saturating_add_signed(past)),
                None => self.now,
            },
        };
        loop {
            let due = self.model.due(self.now);
            let event = elapse(&self.record, self.at());
            let cause = event.as_ref().map(|event| match event {
                Event::LeaseLapsed => Cause::LeaseOver,
                Event::Expired => Cause::Deadline,
                Event::WindowClosed => Cause::WindowEnd,
                Event::ArbiterTimedOut => Cause::ArbiterEnd,
                other => panic!("time says {other:?}"),
            });
            assert_eq!(cause, due, "at {} in {:?}", self.now, self.record);
            let (Some(event), Some(cause)) = (event, cause) else { break };
            self.model.step(cause);
            self.commit(event);
        }
    }

    fn hear(&mut self, mutation: &Mutation) {
        let say = Say::new(mutation, self.record.id.0, self.record.domain);
        let verdict = self.model.judge(self.now, &say);
        let answer = decide(&self.record, self.at(), mutation);
        match (&answer, &verdict) {
            (Ok(Some(event)), Verdict::Applies) => {
                let event = event.clone();
                if say.cause == Cause::Accept {
                    assert!(!self.record.is_lapsed(say.signer), "a lapsed provider holds again");
                }
                self.model.apply(self.now, say);
                self.commit(event);
                assert_eq!(decide(&self.record, self.at(), mutation), Ok(None), "said twice: {mutation:?}");
            }
            (Ok(None), Verdict::Done | Verdict::Refused { or_done: true, .. }) => {}
            (Err(error), Verdict::Refused { codes, .. }) if codes.contains(error.code()) => {}
            _ => panic!("{say:?}\nto {:?}\nat {}: {answer:?}, expected {verdict:?}", self.record, self.at()),
        }
    }

    fn commit(&mut self, event: Event) {
        let before = self.record.clone();
        let at = self.at();
        apply(&mut self.record, at, &event);
        assert_eq!(self.record.version, before.version + 1);
        assert_eq!(self.record.updated_at, self.at());
        assert_eq!(self.record.settlement, before.settlement, "{event:?} moves money");
        assert!(
            before.submission().is_none_or(|proof| self.record.submission() == Some(proof)),
            "two proofs"
        );
        assert!(
            !before.status().is_final() || self.record.status() == before.status(),
            "not final: {event:?}"
        );
        if let State::Accepted { lease } = &self.record.state {
            let holder = *self.holders.entry(lease.attempt).or_insert(lease.provider);
            assert_eq!(holder, lease.provider, "attempt {} is held by two", lease.attempt);
        }
        self.history.push(Recorded { version: self.record.version, at: self.at(), event });
    }

    /// The record says what the model says.
    fn compare(&self) {
        let (record, model) = (&self.record, &self.model);
        let mut lapsed: Vec<_> = record.lapsed.iter().map(|provider| provider.0).collect();
        lapsed.sort();
        assert_eq!(record.status(), model.status, "{record:?}");
        assert_eq!(record.attempts, model.attempt);
        assert!(record.attempts <= record.task.config.max_attempts);
        assert_eq!(record.provider.map(|provider| provider.0), model.holder);
        assert_eq!(lapsed, model.lapsed.iter().copied().collect::<Vec<_>>());
        assert_eq!(record.version, model.version);
        let faulted: BTreeSet<_> = record.faults.iter().map(|fault| fault.provider).collect();
        assert_eq!((faulted.len(), &faulted), (record.faults.len(), &model.faulted));
        let proof = |say: &Say| (say.signer, say.attempt, say.result_hash);
        let submission = record.submission().map(|submission| &submission.proof.message);
        assert_eq!(
            submission.map(|proof| (proof.provider, Some(proof.attempt), Some(proof.result_hash.0))),
            model.proof.as_ref().map(proof)
        );
        if let Some(lease) = record.lease() {
            assert_eq!(
                (Some(lease.provider), lease.attempt, lease.until.unix()),
                (model.holder, model.attempt, model.lease_until)
            );
        }
        let lost = matches!(record.status(), Status::Failed);
        assert!(!lost || record.failure.is_some(), "failed without a reason");
    }

    /// Makes a signed message, with what is to be wrong with it. `None` where its signature does not hold, as it must not.
    fn compose(&self, verb: Cause, who: Who, twist: Twist, salt: u8) -> Option<Mutation> {
        let draft = Draft::new(self, verb, who, twist, salt);
        let task_id = draft.task_id;
        let (attempt, issued_at, provider) = (draft.attempt, draft.issued_at, draft.actor.address);
        let (proven_by, result_hash) = (draft.proven_by, draft.result_hash);
        match verb {
            Cause::Cancel => draft.say(CancelTask { task_id, issued_at }).map(Mutation::Cancel),
            Cause::Accept => {
                let lease_until = draft.lease_until;
                draft.say(AcceptTask { task_id, provider, attempt, lease_until }).map(Mutation::Accept)
            }
            Cause::Fail => {
                let code = match salt {
                    1 => "io",
                    2 => "too_large",
                    _ => "out_of_fuel",
                };
                let code = code.to_owned();
                let message = format!("for the {salt}. time");
                let fail = FailTask { task_id, provider, attempt, code, message, issued_at };
                draft.say(fail).map(Mutation::Fail)
            }
            Cause::Proof => draft
                .say(ComputeProof {
                    task_id,
                    provider,
                    attempt,
                    model_hash: hash(1),
                    input_hash: if twist == Twist::Hash { hash(9) } else { hash(2) },
                    result_hash: hash(16 + salt),
                    result_cid: format!("artifact://{}", hash(16 + salt)).parse().unwrap(),
                    started_at: self.record.updated_at,
                    finished_at: self.at(),
                    gpu_name: String::new(),
                })
                .map(Mutation::Proof),
            Cause::Approve => draft
                .say(ApproveResult { task_id, provider: proven_by, attempt, result_hash, issued_at })
                .map(Mutation::Approve),
            Cause::Dispute => {
                let (reason, evidence) = (format!("it is wrong, word {salt}"), String::new());
                let provider = proven_by;
                let dispute =
                    DisputeTask { task_id, provider, attempt, result_hash, reason, evidence, issued_at };
                draft.say(dispute).map(Mutation::Dispute)
            }
            Cause::Resolve => {
                let provider_bps = if twist == Twist::Share { 10_001 } else { 10_000 - u32::from(salt) };
                draft.say(ResolveDispute { task_id, attempt, provider_bps, issued_at }).map(Mutation::Resolve)
            }
            Cause::LeaseOver
            | Cause::Deadline
            | Cause::WindowEnd
            | Cause::ArbiterEnd
            | Cause::Released
            | Cause::Unworkable => None,
        }
    }
}

/// Whose address this is.
fn actor_of(address: Address) -> &'static Actor {
    ACTORS.iter().find(|actor| actor.address == address).unwrap()
}

/// The fields of a message to be, with what is to be wrong with them.
struct Draft {
    actor: &'static Actor,
    signer: &'static Actor,
    domain: Domain,
    signed_for: Domain,
    task_id: TaskId,
    attempt: u32,
    issued_at: Timestamp,
    lease_until: Timestamp,
    proven_by: Address,
    result_hash: taskmarket::ContentHash,
}

impl Draft {
    fn new(world: &World, verb: Cause, who: Who, twist: Twist, salt: u8) -> Self {
        let record = &world.record;
        let actor = match (who, verb) {
            (Who::Anybody(index), _) => &ACTORS[index],
            (Who::Right(_), Cause::Cancel | Cause::Approve | Cause::Dispute) => &ACTORS[REQUESTER],
            (Who::Right(_), Cause::Resolve) => &ACTORS[ARBITER],
            (Who::Right(index), Cause::Accept) => &ACTORS[index],
            (Who::Right(_), _) => record.provider.map_or(&ACTORS[FIRST_PROVIDER], |p| actor_of(p.0)),
        };
        let attempt = record.attempts + u32::from(verb == Cause::Accept);
        let latest = latest_lease(&record.task, world.at()).unix();
        let proof = record.submission().map(|submission| submission.proof.message.clone());
        let result = proof.as_ref().map_or(hash(16), |proof| proof.result_hash);
        Self {
            actor,
            signer: if let Twist::Forged(index) = twist { &ACTORS[index] } else { actor },
            domain: record.domain,
            signed_for: if twist == Twist::OtherDomain { SETTLED } else { record.domain },
            task_id: if twist == Twist::OtherTask { TaskId(hash(salt).0) } else { record.id },
            attempt: if let Twist::Attempt(by) = twist {
                attempt.saturating_add_signed(by.into())
            } else {
                attempt
            },
            issued_at: Timestamp::from_unix(match twist {
                Twist::Clock(by) => world.now.saturating_add_signed(by),
                _ => world.now - u64::from(salt),
            }),
            lease_until: Timestamp::from_unix(match twist {
                Twist::Lease(by) => latest.saturating_add_signed(by),
                Twist::LeaseOver => world.now,
                _ => latest - (latest - world.now.min(latest)) / 2 * u64::from(salt % 2),
            }),
            proven_by: proof.map_or(ACTORS[FIRST_PROVIDER].address, |proof| proof.provider),
            result_hash: if twist == Twist::Hash { hash(9) } else { result },
        }
    }

    fn say<M: Message>(&self, message: M) -> Option<Verified<M>> {
        let named = message.named_signer();
        let signed: Signed<M> = self.signer.sign(message, &self.signed_for);
        let here = signed.clone().verify(&self.domain);
        let wrong = self.signed_for != self.domain || named.is_some_and(|named| named != self.signer.address);
        assert!(named.is_none() || here.is_err() == wrong, "{here:?}");
        // What was signed for elsewhere holds there; the rules must not take it here.
        if self.signed_for == self.domain { here.ok() } else { signed.verify(&self.signed_for).ok() }
    }
}
