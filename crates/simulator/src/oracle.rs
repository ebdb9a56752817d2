//! The invariants: what must hold in every history, checked against the commits and the answers as they come, independently of the
//! relays' memory and of the records.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use taskmarket::{
    Address, ComputeProof, Domain, Event, Message, Recorded, Signed, Status, TaskId, TaskRecord, Timestamp,
    apply, replay,
};

use crate::context::{Note, Party};
use crate::host::NEVER_ENDS;
use crate::message::Intent;
use crate::store::{Store, Write};

/// How many notes the text of a failure shows, of the task alone where it is about one.
const LAST_NOTES: usize = 40;

/// What must hold in every history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// A task whose publication was acknowledged is there.
    NoTaskLost,
    /// A change that was acknowledged is in the history.
    NoChangeLost,
    /// Each change is decided on what the one before it left.
    InSequence,
    /// No attempt is accepted twice; they count upwards, and to no more than the task allows.
    AttemptOnce,
    /// A provider whose lease lapsed never holds the task again.
    LapsedStayAway,
    /// A proof is taken from the provider that holds the task, of the attempt that it holds.
    Fenced,
    /// A lease ends by the deadline, a proof comes within its lease, a dispute and its resolution within their windows.
    InTime,
    /// Each word is signed by whom it concerns.
    RightParty,
    /// A proof is over the model and the input that the task pins.
    Pinned,
    /// No second proof is taken.
    OneProof,
    /// A proof that was acknowledged stays.
    ProofStays,
    /// A refused message changes nothing.
    RefusalChangesNothing,
    /// What is final stays as it is.
    FinalStays,
    /// Each task comes to its end in time.
    EndsInTime,
    /// Each history replays to the stored record.
    Replays,
    /// No relay gives a host more than it has slots for, and no host takes more.
    SlotsKept,
    /// A relay ends a task early only on a provider's signed word that it fails anywhere.
    EndedOnWord,
    /// No relay offers a task again to who said so, nor to anybody once two say so.
    FaultsStayAway,
    /// With honest parties and a quiet network, tasks that nobody cancels or disputes are completed.
    QuietCompletes,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTaskLost => "an acknowledged task is not lost",
            Self::NoChangeLost => "an acknowledged change is not lost",
            Self::InSequence => "each change is decided on what the one before it left",
            Self::AttemptOnce => "an attempt is accepted once",
            Self::LapsedStayAway => "a provider whose lease lapsed never holds the task again",
            Self::Fenced => "a proof comes from the holder and of its attempt",
            Self::InTime => "leases, proofs, disputes and resolutions come in time",
            Self::RightParty => "each word is signed by whom it concerns",
            Self::Pinned => "a proof is over what the task pins",
            Self::OneProof => "one proof is taken",
            Self::ProofStays => "an acknowledged proof stays",
            Self::RefusalChangesNothing => "a refused message changes nothing",
            Self::FinalStays => "what is final stays",
            Self::EndsInTime => "a task comes to its end in time",
            Self::Replays => "a history replays to the record",
            Self::SlotsKept => "no host is given more than its slots",
            Self::EndedOnWord => "a task is ended early only where a provider signed that it fails anywhere",
            Self::FaultsStayAway => "who said that a task fails anywhere is not offered it again",
            Self::QuietCompletes => "honest parties on a quiet network complete their tasks",
        })
    }
}

/// A broken invariant, with what leads back to it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", Self::text(self))]
pub struct Failure {
    /// The run's seed.
    pub seed: u64,
    /// The step at which it showed.
    pub step: u64,
    /// What does not hold.
    pub invariant: Invariant,
    /// What was found.
    pub found: String,
    /// The task that it is about, where it is about one.
    pub task: Option<TaskId>,
    /// The whole trace up to there.
    pub notes: Vec<Note>,
}

impl Failure {
    fn text(&self) -> String {
        let Self { seed, step, invariant, found, task, notes } = self;
        let concerns = |note: &&Note| task.is_none() || note.task == *task;
        let last: Vec<_> = notes.iter().rev().filter(concerns).take(LAST_NOTES).collect();
        let last: String = last.iter().rev().map(|note| format!("\n{note}")).collect();
        format!("seed {seed}, step {step}: {invariant}: {found}{last}")
    }
}

/// A broken invariant, as the oracle sees it.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) task: Option<TaskId>,
    pub(crate) found: String,
}

/// What is known of a task from its commits alone.
#[derive(Debug, Default)]
struct Watched {
    /// The record that the commits come to, one applied after the other.
    shadow: Option<TaskRecord>,
    attempts: u32,
    holder: Option<(Address, u32)>,
    /// When the lease ends, or else the dispute window or the arbiter's.
    ends: Option<Timestamp>,
    lapsed: BTreeSet<Address>,
    /// Who gave the task up as one that fails anywhere.
    faulted: BTreeSet<Address>,
    proof: Option<ComputeProof>,
    acknowledged_proof: Option<ComputeProof>,
    acknowledged: Vec<Event>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) violation: Option<Violation>,
    tasks: BTreeMap<TaskId, Watched>,
    acknowledged: BTreeSet<TaskId>,
    /// Requests of a relay that changed something by their own word.
    effective: BTreeSet<u64>,
}

impl Oracle {
    /// Only the first violation counts: the others may follow from it.
    pub(crate) fn violated(&mut self, invariant: Invariant, task: Option<TaskId>, found: String) {
        self.violation.get_or_insert(Violation { invariant, task, found });
    }

    fn demand(&mut self, holds: bool, invariant: Invariant, task: TaskId, found: impl FnOnce() -> String) {
        if !holds {
            self.violated(invariant, Some(task), found());
        }
    }

    /// A change was committed, for the relay's operation of this number unless it was time's doing.
    pub(crate) fn committed(&mut self, write: &Write, operation: Option<u64>) {
        self.effective.extend(operation);
        let id = write.record.id;
        let mut watched = self.tasks.remove(&id).unwrap_or_default();
        let before = watched.shadow.as_ref().map_or(0, |shadow| shadow.version);
        self.demand(write.expected == before, Invariant::InSequence, id, || {
            format!("{} on version {} after version {before}", write.recorded.event.name(), write.expected)
        });
        self.check_event(&mut watched, &write.record, &write.recorded.event);
        self.check_party(id, &write.record, &write.recorded.event);
        self.check_time(&mut watched, write);
        self.check_record(&mut watched, write);
        self.tasks.insert(id, watched);
    }

    fn check_event(&mut self, watched: &mut Watched, record: &TaskRecord, event: &Event) {
        let id = record.id;
        match event {
            Event::Accepted(accept) => {
                let (provider, attempt) = (accept.message.provider, accept.message.attempt);
                let most = record.task.config.max_attempts;
                let next = attempt == watched.attempts + 1 && attempt <= most;
                self.demand(next, Invariant::AttemptOnce, id, || {
                    format!("{provider} took attempt {attempt} of {most} after attempt {}", watched.attempts)
                });
                self.demand(!watched.lapsed.contains(&provider), Invariant::LapsedStayAway, id, || {
                    format!("{provider} took attempt {attempt}")
                });
                watched.attempts = watched.attempts.max(attempt);
                watched.holder = Some((provider, attempt));
            }
            Event::Submitted(proof) => {
                let by = (proof.message.provider, proof.message.attempt);
                self.demand(watched.proof.is_none(), Invariant::OneProof, id, || {
                    format!("a second one of attempt {} by {}", by.1, by.0)
                });
                self.demand(watched.holder == Some(by), Invariant::Fenced, id, || {
                    format!("one of attempt {} by {} while {:?} held it", by.1, by.0, watched.holder)
                });
                watched.proof = Some(proof.message.clone());
                watched.holder = None;
            }
            Event::LeaseLapsed => {
                watched.lapsed.extend(watched.holder.take().map(|(provider, _)| provider));
            }
            Event::AttemptFailed(fail) => {
                watched.holder = None;
                if fail.message.code == NEVER_ENDS {
                    watched.faulted.insert(fail.message.provider);
                }
            }
            Event::Released { .. } | Event::Expired => watched.holder = None,
            Event::Unworkable => {
                let by = watched.holder;
                let on_word = !watched.faulted.is_empty() && by.is_none();
                self.demand(on_word, Invariant::EndedOnWord, id, || {
                    format!("ended on the word of {:?} while {by:?} held it", watched.faulted)
                });
            }
            Event::Published { .. }
            | Event::Approved(_)
            | Event::Disputed(_)
            | Event::Resolved(_)
            | Event::Cancelled(_)
            | Event::WindowClosed
            | Event::ArbiterTimedOut
            | Event::Chain(_)
            | Event::ChainTime(_) => {}
        }
    }

    /// Recovers who signed, rather than trusting that somebody checked it.
    fn check_party(&mut self, id: TaskId, record: &TaskRecord, event: &Event) {
        let (task, domain) = (&record.task, &record.domain);
        let (signed, meant) = match event {
            Event::Published { task: offer, .. } => (signer(offer, domain), task.requester),
            Event::Accepted(m) => (signer(m, domain), m.message.provider),
            Event::AttemptFailed(m) => (signer(m, domain), m.message.provider),
            Event::Submitted(m) => (signer(m, domain), m.message.provider),
            Event::Approved(m) => (signer(m, domain), task.requester),
            Event::Disputed(m) => (signer(m, domain), task.requester),
            Event::Cancelled(m) => (signer(m, domain), task.requester),
            Event::Resolved(m) => (signer(m, domain), task.arbiter),
            Event::LeaseLapsed
            | Event::Expired
            | Event::WindowClosed
            | Event::ArbiterTimedOut
            | Event::Released { .. }
            | Event::Unworkable
            | Event::Chain(_)
            | Event::ChainTime(_) => return,
        };
        self.demand(signed == Some(meant), Invariant::RightParty, id, || {
            format!("{} is of {signed:?}, not of {meant}", event.name())
        });
        if let Event::Submitted(proof) = event {
            let pinned = task.model_hash.admits(&proof.message.model_hash)
                && task.input_hash.admits(&proof.message.input_hash);
            self.demand(pinned, Invariant::Pinned, id, || "it is over something else".into());
        }
    }

    fn check_time(&mut self, watched: &mut Watched, write: &Write) {
        let (id, at, task) = (write.record.id, write.recorded.at, &write.record.task);
        let before_end = watched.ends.is_none_or(|ends| at < ends);
        let (in_time, ends) = match &write.recorded.event {
            Event::Accepted(accept) => {
                let until = accept.message.lease_until;
                (at < task.deadline && at < until && until <= task.deadline, Some(until))
            }
            Event::Submitted(_) => (before_end, Some(at.plus(task.dispute_window))),
            Event::Disputed(_) => (before_end, Some(at.plus(task.arbiter_window))),
            Event::Resolved(_) => (before_end, None),
            Event::LeaseLapsed | Event::WindowClosed | Event::ArbiterTimedOut => (!before_end, None),
            Event::Expired => (at >= task.deadline, None),
            Event::Published { .. }
            | Event::AttemptFailed(_)
            | Event::Released { .. }
            | Event::Unworkable
            | Event::Approved(_)
            | Event::Cancelled(_)
            | Event::Chain(_)
            | Event::ChainTime(_) => (true, None),
        };
        self.demand(in_time, Invariant::InTime, id, || {
            format!("{} at {at} with the end at {:?}", write.recorded.event.name(), watched.ends)
        });
        watched.ends = ends;
    }

    fn check_record(&mut self, watched: &mut Watched, write: &Write) {
        let id = write.record.id;
        let expected = match watched.shadow.take() {
            None => write.record.clone(),
            Some(mut shadow) => {
                self.demand(!shadow.status().is_final(), Invariant::FinalStays, id, || {
                    format!("{} after it was {}", write.recorded.event.name(), shadow.status())
                });
                apply(&mut shadow, write.recorded.at, &write.recorded.event);
                shadow
            }
        };
        let same = expected == write.record && write.recorded.version == expected.version;
        self.demand(same, Invariant::Replays, id, || {
            format!("version {} does not follow by {}", write.record.version, write.recorded.event.name())
        });
        let standing = write.record.submission().map(|submission| &submission.proof.message);
        let stays = watched.acknowledged_proof.as_ref().is_none_or(|proof| standing == Some(proof));
        self.demand(stays, Invariant::ProofStays, id, || {
            format!("it was gone after {}", write.recorded.event.name())
        });
        watched.shadow = Some(expected);
    }

    /// A relay told somebody that it is so. `event` is what it had decided for that, if anything.
    pub(crate) fn acknowledged(&mut self, id: TaskId, intent: &Intent, event: Option<Event>) {
        let watched = self.tasks.entry(id).or_default();
        match intent {
            Intent::Publish(_) => {
                self.acknowledged.insert(id);
            }
            Intent::Mutate(mutation, _) => {
                if let taskmarket::Mutation::Proof(proof) = &**mutation {
                    watched.acknowledged_proof.get_or_insert_with(|| proof.message().clone());
                }
                watched.acknowledged.extend(event);
            }
            Intent::Release(..) | Intent::Elapse(_) | Intent::End(_) => {}
        }
    }

    /// A relay refused what somebody asked of it in this operation.
    pub(crate) fn refused(&mut self, id: TaskId, operation: u64, code: &str) {
        let changed = self.effective.contains(&operation);
        self.demand(!changed, Invariant::RefusalChangesNothing, id, || {
            format!("{code}, and yet it was committed")
        });
    }

    /// A relay that has just read a task offers it to a provider.
    pub(crate) fn offered(&mut self, id: TaskId, provider: Address) {
        let Some(faulted) = self.tasks.get(&id).map(|watched| watched.faulted.clone()) else { return };
        let may = !faulted.contains(&provider) && faulted.len() < 2;
        self.demand(may, Invariant::FaultsStayAway, id, || {
            format!("offered to {provider} after the word of {faulted:?}")
        });
    }

    /// A host has been given, or has taken, so much.
    pub(crate) fn given(&mut self, party: Party, given: usize, slots: u32) {
        if given > slots as usize {
            let found = format!("{given} of {slots} slots are taken as {party} counts");
            self.violated(Invariant::SlotsKept, None, found);
        }
    }

    /// A task must have come to its end by now.
    pub(crate) fn bound(&mut self, id: TaskId, store: &Store) {
        let Some(stored) = store.task(&id) else { return };
        let status = stored.record.status();
        self.demand(status.is_final(), Invariant::EndsInTime, id, || format!("it is still {status}"));
    }

    /// Looks over everything at the end of a run. `must_complete` are tasks that have nothing in their way.
    pub(crate) fn last_look(&mut self, store: &Store, must_complete: &[TaskId]) {
        for id in self.acknowledged.clone() {
            self.demand(store.task(&id).is_some(), Invariant::NoTaskLost, id, || "it is gone".into());
        }
        for (id, watched) in std::mem::take(&mut self.tasks) {
            let Some(stored) = store.task(&id) else { continue };
            let is_there = |event: &Event| stored.history.iter().any(|recorded| recorded.event == *event);
            let lost = watched.acknowledged.iter().find(|event| !is_there(event));
            self.demand(lost.is_none(), Invariant::NoChangeLost, id, || {
                format!("{:?} is not in its history", lost.map(Event::name))
            });
            self.check_history(id, &stored.history, &stored.record);
        }
        for id in must_complete {
            let status = store.task(id).map(|stored| stored.record.status());
            self.demand(status == Some(Status::Completed), Invariant::QuietCompletes, *id, || {
                format!("it is {}", status.map_or("unknown", Status::as_str))
            });
        }
    }

    fn check_history(&mut self, id: TaskId, history: &[Recorded], record: &TaskRecord) {
        match replay(history) {
            Ok(replayed) => self.demand(replayed == *record, Invariant::Replays, id, || {
                format!("it comes to {} at version {}", replayed.status(), replayed.version)
            }),
            Err(error) => self.violated(Invariant::Replays, Some(id), error.to_string()),
        }
    }
}

fn signer<M: Message>(signed: &Signed<M>, domain: &Domain) -> Option<Address> {
    signed.clone().verify(domain).ok().map(|verified| verified.signer())
}
