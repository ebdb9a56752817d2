//! A relay's memory: which hosts are here, which tasks wait, which are on offer, which are held. It can be built anew from the store.

use std::collections::BTreeMap;

use scheduler::{Index, Need, NodeKey};
use taskmarket::{Event, Failure, ReleaseReason, State, TaskId, Word, failure};

use super::{OFFER_TIMEOUT, Relay, Reply};
use crate::context::{Alarm, Context, Millis};
use crate::coverage::Fault;
use crate::message::{AttemptKey, Intent, Message, Verdict};
use crate::store::Stored;
use crate::world::Sabotage;

/// How long a lost session keeps its attempts.
pub(super) const GRACE: Millis = 15_000;
/// How long a host that did not take a task is not asked again.
const BACKOFF: Millis = 5_000;
/// How long a task that a provider says fails anywhere waits for another provider, in seconds.
const PATIENCE_SECS: u64 = 60;

/// A session that is open.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) host: usize,
    pub(super) generation: u64,
    pub(super) slots: u32,
    pub(super) heard_at: Millis,
}

/// A task that a host was asked to take.
#[derive(Debug)]
pub(super) struct Offering {
    pub(super) number: u64,
    pub(super) key: NodeKey,
    pub(super) generation: u64,
    pub(super) attempt: u32,
    /// Whether the host has answered, and only the store has not.
    pub(super) accepted: bool,
    reserved: bool,
}

/// An attempt that a host holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: NodeKey,
    pub(super) attempt: u32,
    pub(super) missing_since: Option<Millis>,
    reserved: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Floor {
    pub(super) index: Index,
    /// Connections that were greeted, and when by the relay's clock.
    pub(super) greeted: BTreeMap<u64, taskmarket::Timestamp>,
    pub(super) sessions: BTreeMap<NodeKey, Session>,
    /// The version of each task that the rest knows.
    versions: BTreeMap<TaskId, u64>,
    waiting: BTreeMap<TaskId, Need>,
    pub(super) offering: BTreeMap<TaskId, Offering>,
    pub(super) held: BTreeMap<TaskId, Held>,
    /// Hosts without a session, and until when their attempts are kept.
    pub(super) lost: BTreeMap<NodeKey, Millis>,
    barred: BTreeMap<(TaskId, NodeKey), Millis>,
}

impl Floor {
    fn reserved(&self, key: &NodeKey) -> usize {
        let offering = self.offering.values().filter(|offering| offering.reserved && offering.key == *key);
        let held = self.held.values().filter(|held| held.reserved && held.key == *key);
        offering.count() + held.count()
    }

    /// Reserves slots for what of a host's attempts has none, as far as there are any.
    pub(super) fn reserve_all(&mut self, key: &NodeKey) {
        let offering = self.offering.values_mut().filter(|offering| offering.key == *key);
        let held = self.held.values_mut().filter(|held| held.key == *key);
        let flags =
            offering.map(|offering| &mut offering.reserved).chain(held.map(|held| &mut held.reserved));
        for reserved in flags.filter(|reserved| !**reserved) {
            *reserved = self.index.reserve(key);
        }
    }

    /// Forgets the reservations of a host that is not in the index any more.
    pub(super) fn forget_reservations(&mut self, key: &NodeKey) {
        let offering = self.offering.values_mut().filter(|offering| offering.key == *key);
        offering.for_each(|offering| offering.reserved = false);
        let held = self.held.values_mut().filter(|held| held.key == *key);
        held.for_each(|held| held.reserved = false);
    }

    fn give_back(&mut self, key: &NodeKey, reserved: bool) {
        if reserved {
            self.index.release(key);
        }
        self.reserve_all(key);
    }

    fn end_offer(&mut self, id: &TaskId) -> Option<Offering> {
        let offering = self.offering.remove(id)?;
        self.give_back(&offering.key, offering.reserved);
        Some(offering)
    }

    fn end_hold(&mut self, id: &TaskId) -> Option<Held> {
        let held = self.held.remove(id)?;
        self.give_back(&held.key, held.reserved);
        Some(held)
    }
}

impl Relay {
    /// Follows a task to where the store says it is.
    pub(super) fn look_again(&mut self, id: TaskId, cx: &mut Context) {
        let Some(stored) = cx.store.task(&id) else { return };
        if self.floor.versions.get(&id).is_some_and(|known| *known >= stored.record.version) {
            return;
        }
        let stored = stored.clone();
        self.floor.versions.insert(id, stored.record.version);
        self.floor.waiting.remove(&id);
        self.end_attempt(id, &stored, cx);
        match &stored.record.state {
            State::Open => {
                self.floor.waiting.insert(id, Need::of(&stored.record.task));
            }
            State::Accepted { lease } => {
                self.floor.end_offer(&id);
                let node_id = stored.node.unwrap_or_default();
                let key = NodeKey { provider: lease.provider, node_id };
                let held = Held { key, attempt: lease.attempt, missing_since: None, reserved: false };
                self.floor.held.insert(id, held);
                self.floor.reserve_all(&key);
                if !self.floor.sessions.contains_key(&key) {
                    self.floor.lost.entry(key).or_insert(cx.now + GRACE);
                }
            }
            State::Submitted { .. }
            | State::Completed { .. }
            | State::Disputed { .. }
            | State::Resolved { .. }
            | State::Cancelled
            | State::Expired
            | State::Failed => {
                self.floor.end_offer(&id);
            }
        }
    }

    /// Ends an attempt that was held. Its host is told, unless the end was its own word.
    fn end_attempt(&mut self, id: TaskId, stored: &Stored, cx: &mut Context) {
        let Some(held) = self.floor.end_hold(&id) else { return };
        self.floor.barred.insert((id, held.key), cx.now + BACKOFF);
        let own_word = stored.history.last().is_some_and(|last| last.event.word() == Word::Signature);
        if !own_word {
            let generation = self.floor.sessions.get(&held.key).map(|session| session.generation);
            self.call_off(held.key, generation, AttemptKey { task_id: id, attempt: held.attempt }, cx);
        }
    }

    fn call_off(&self, node: NodeKey, generation: Option<u64>, key: AttemptKey, cx: &mut Context) {
        let session = self.floor.sessions.get(&node);
        if let Some(session) = session.filter(|session| generation == Some(session.generation)) {
            cx.fault(Fault::CalledOff);
            let message = Message::CallOff { generation: session.generation, key };
            cx.send(self.me, crate::context::Party::Host(session.host), message);
        }
    }

    /// Offers tasks that wait to hosts that fit.
    pub(super) fn assign(&mut self, cx: &mut Context) {
        if cx.is_sabotaged(Sabotage::NoOffers) {
            return;
        }
        let waiting: Vec<_> = self.floor.waiting.keys().copied().collect();
        let mut ends = Vec::new();
        for id in waiting {
            if self.floor.offering.contains_key(&id) {
                continue;
            }
            let Some(stored) = cx.store.task(&id) else { continue };
            let record = &stored.record;
            if !cx.is_sabotaged(Sabotage::FaultReturn) && failure::agreed(record).is_some() {
                ends.push(id);
                continue;
            }
            let faulted = |key: &NodeKey| {
                let is_of = |fault: &Failure| fault.provider == key.provider;
                record.faults.iter().any(is_of) && !cx.is_sabotaged(Sabotage::FaultReturn)
            };
            let lapsed = |key: &NodeKey| record.is_lapsed(key.provider);
            let barred =
                |key: &NodeKey| self.floor.barred.get(&(id, *key)).is_some_and(|until| *until > cx.now);
            let Some(need) = self.floor.waiting.get(&id) else { continue };
            let picked = self.floor.index.pick(need, |key| lapsed(key) || faulted(key) || barred(key));
            if let Some(key) = picked {
                self.offer(id, key, cx);
                continue;
            }
            // Others may be connected to another relay, or on their way here.
            let is_late = self.clock(cx) >= record.updated_at.plus(PATIENCE_SECS);
            let has_other = self.floor.index.able(need).any(|key| !lapsed(&key) && !faulted(&key));
            let on_a_word =
                !record.faults.is_empty() || cx.is_sabotaged(Sabotage::HastyEnd) && record.failure.is_some();
            if on_a_word && is_late && !has_other {
                ends.push(id);
            }
        }
        for id in ends {
            self.begin(Intent::End(id), Reply::Nobody, cx);
        }
    }

    fn offer(&mut self, id: TaskId, key: NodeKey, cx: &mut Context) {
        self.look_again(id, cx);
        let (Some(stored), Some(session)) = (cx.store.task(&id), self.floor.sessions.get(&key)) else {
            return;
        };
        if !matches!(stored.record.state, State::Open) {
            return;
        }
        let Some(Event::Published { task, .. }) = stored.history.first().map(|first| &first.event) else {
            return;
        };
        let (task, attempt, generation) = (task.clone(), stored.record.attempts + 1, session.generation);
        let (host, slots) = (crate::context::Party::Host(session.host), session.slots);
        let reserved = cx.is_sabotaged(Sabotage::NoReservation) || self.floor.index.reserve(&key);
        let number = cx.unique();
        let offering = Offering { number, key, generation, attempt, accepted: false, reserved };
        self.floor.offering.insert(id, offering);
        cx.oracle.offered(id, key.provider);
        cx.oracle.given(self.me, self.floor.reserved(&key), slots);
        cx.note(self.me, Some(id), "offer of attempt", attempt.into());
        cx.send(self.me, host, Message::Assign { generation, offer: number, attempt, task });
        cx.alarm(self.me, self.life, OFFER_TIMEOUT, Alarm::OfferOver(number));
    }

    /// The task of an offer, if it is still under way.
    pub(super) fn offered(&self, number: u64) -> Option<TaskId> {
        let mut offering = self.floor.offering.iter();
        offering.find(|(_, offering)| offering.number == number).map(|(id, _)| *id)
    }

    pub(super) fn offer_over(&mut self, number: u64, cx: &mut Context) {
        let Some(id) = self.offered(number) else { return };
        if !self.floor.offering.get(&id).is_some_and(|offering| offering.accepted) {
            cx.fault(Fault::OfferTimedOut);
            self.offer_ended(id, true, cx);
        }
    }

    /// The store has decided on an acceptance.
    pub(super) fn offer_decided(&mut self, number: u64, verdict: Verdict, cx: &mut Context) {
        let Some(id) = self.offered(number) else { return };
        self.offer_ended(id, verdict != Verdict::Done, cx);
    }

    /// Ends an offer that was not taken; the task waits again.
    pub(super) fn offer_ended(&mut self, id: TaskId, call_off: bool, cx: &mut Context) {
        let Some(offering) = self.floor.end_offer(&id) else { return };
        let Offering { key, generation, attempt, .. } = offering;
        self.floor.barred.insert((id, key), cx.now + BACKOFF);
        if call_off {
            self.call_off(key, Some(generation), AttemptKey { task_id: id, attempt }, cx);
        }
    }

    /// Releases what a host holds that stayed away, or what it does not list.
    pub(super) fn release(&mut self, key: AttemptKey, reason: ReleaseReason, cx: &mut Context) {
        cx.fault(match reason {
            ReleaseReason::SessionLost => Fault::GraceOver,
            ReleaseReason::AttemptDropped => Fault::AttemptDropped,
        });
        self.begin(Intent::Release(key, reason), Reply::Nobody, cx);
    }
}
