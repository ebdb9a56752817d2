//! The trading floor: which hosts are here, which tasks wait, which are on offer and which are held, all in memory and without I/O.
//!
//! It follows the market's changes and is never the truth: whatever it says, the store decides. It can be built anew from the store and
//! the sessions at any time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use rpc::failure::{self, Blame};
use rpc::link::Heartbeat;
use scheduler::{Index, Need, NodeKey};
use taskmarket::{Address, Bytes32, NodeStatus, State, TaskId, TaskRecord, Timestamp, Word};
use tokio::time::Instant;

use super::choice::{barred, is_trial};
use super::entries::{CallOff, Fault, Heard, Held, Kind, Offering, Waiting};
use super::node::{Live, Node, Place, Report};
use super::registration::Refusal;
use super::scores::Scores;
use super::tries::{Tried, Tries};
use super::vain::{Away, Patience};

/// How long hosts are not asked again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub(super) failed: Duration,
    /// How long a provider that failed comes after others, the first time.
    pub(super) blamed: Duration,
    pub(super) max: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Floor {
    pub(super) index: Index,
    /// Of the hosts, those whose providers have [proven](Scores::is_proven) themselves.
    pub(super) proven: Index,
    places: BTreeMap<NodeKey, Place>,
    pub(super) waiting: BTreeMap<(Timestamp, TaskId), Waiting>,
    pub(super) offering: HashMap<TaskId, Offering>,
    pub(super) held: HashMap<TaskId, Held>,
    /// The tasks that each host holds.
    held_by: HashMap<NodeKey, HashSet<TaskId>>,
    /// Hosts without a session, and until when their attempts are kept.
    lost: HashMap<NodeKey, Instant>,
    /// Hosts that were here lately.
    pub(super) away: Away,
    pub(super) scores: Scores,
    /// Whether the chain says what it says now: without that, no settled task is offered.
    pub(super) chain_is_well: bool,
    /// How long others are waited for that may have a task that fails anywhere, as a provider says.
    pub(super) patience: Patience,
    backoff: Backoff,
    grace: Duration,
}

impl Floor {
    pub(super) fn new(backoff: Backoff, grace: Duration) -> Self {
        Self {
            index: Index::default(),
            proven: Index::default(),
            places: BTreeMap::new(),
            waiting: BTreeMap::new(),
            offering: HashMap::new(),
            held: HashMap::new(),
            held_by: HashMap::new(),
            lost: HashMap::new(),
            away: Away::new(grace),
            scores: Scores::new(backoff.blamed, backoff.max),
            chain_is_well: false,
            patience: Patience::new(grace),
            backoff,
            grace,
        }
    }

    // Hosts.

    /// The host of this key, if its session is open.
    pub(super) fn node(&self, key: &NodeKey) -> Option<&Node> {
        self.places.get(key)?.node.as_ref()
    }

    /// The hosts in this range of keys whose session is open, in the order of their keys.
    pub(super) fn nodes(&self, keys: impl RangeBounds<NodeKey>) -> impl Iterator<Item = &Node> {
        self.places.range(keys).filter_map(|(_, place)| place.node.as_ref())
    }

    /// Places taken, sessions in the making included.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// Makes way for a session of a host: older ones are put off the floor and returned to be closed. Its attempts are kept for the
    /// grace, in which the session must [`join`](Self::join).
    ///
    /// # Errors
    /// A newer one is there already, or all `max` places are taken.
    pub(super) fn fence(
        &mut self,
        key: NodeKey,
        generation: u64,
        max: usize,
        now: Instant,
    ) -> Result<Option<Arc<Live>>, Refusal> {
        match self.places.get(&key) {
            Some(place) if place.generation > generation => return Err(Refusal::superseded()),
            None if self.places.len() >= max => {
                return Err(Refusal::unavailable("this relay has no room for more sessions"));
            }
            Some(_) | None => {}
        }
        let older = self.places.insert(key, Place { generation, node: None });
        self.withdraw(&key);
        self.lost.insert(key, now + self.grace);
        let node = older.and_then(|place| place.node);
        if let Some(node) = &node {
            self.away.add(node.offer(&self.scores), now);
        }
        Ok(node.map(|node| node.live))
    }

    /// Opens a host for tasks. `false` where a newer session of it took the place meanwhile.
    pub(super) fn join(&mut self, mut node: Node) -> bool {
        let key = node.live.key;
        let Some(place) = self.places.get_mut(&key) else { return false };
        if place.generation != node.live.generation {
            return false;
        }
        let offered = self.offering.values().filter(|offering| offering.key == key).count();
        let held = self.held_by.get(&key).map_or(0, HashSet::len);
        node.given = u32::try_from(offered + held).unwrap_or(u32::MAX);
        place.node = Some(node);
        self.enlist(&key);
        self.lost.remove(&key);
        self.away.remove(&key);
        true
    }

    /// Takes a session off the floor, unless a newer one has its place. Its attempts are kept for the grace.
    pub(super) fn leave(&mut self, key: NodeKey, generation: u64, now: Instant) -> bool {
        if self.places.get(&key).is_none_or(|place| place.generation != generation) {
            return false;
        }
        if let Some(node) = self.places.remove(&key).and_then(|place| place.node) {
            self.away.add(node.offer(&self.scores), now);
        }
        self.withdraw(&key);
        if self.held_by.contains_key(&key) {
            self.lost.insert(key, now + self.grace);
        } else {
            self.lost.remove(&key);
        }
        true
    }

    /// Changes what is known of a host, if its session is still the one meant.
    pub(super) fn update<T>(
        &mut self,
        key: &NodeKey,
        generation: u64,
        change: impl FnOnce(&mut Node) -> T,
    ) -> Option<T> {
        let place = self.places.get_mut(key).filter(|place| place.generation == generation)?;
        let node = place.node.as_mut()?;
        let result = change(node);
        self.enlist(key);
        Some(result)
    }

    /// Has tasks placed by what a host offers now.
    fn enlist(&mut self, key: &NodeKey) {
        let Some(node) = self.places.get(key).and_then(|place| place.node.as_ref()) else { return };
        let offer = node.offer(&self.scores);
        if self.scores.is_proven(&key.provider) {
            self.proven.upsert(offer.clone());
        } else {
            self.proven.remove(key);
        }
        self.index.upsert(offer);
    }

    /// Has no more tasks placed with a host.
    fn withdraw(&mut self, key: &NodeKey) {
        self.index.remove(key);
        self.proven.remove(key);
    }

    /// Heeds that a provider may have proven itself, or lost that.
    fn reconsider(&mut self, provider: Address) {
        let is_other = |key: &NodeKey| self.proven.contains(key) != self.scores.is_proven(&provider);
        let keys = self.places.range(keys_of(provider)).map(|(key, _)| *key);
        let others: Vec<_> = keys.filter(is_other).collect();
        for key in others {
            self.enlist(&key);
        }
    }

    /// Takes a heartbeat in.
    pub(super) fn hear(&mut self, live: &Live, beat: &Heartbeat, settle: Duration, now: Instant) -> Heard {
        let report = Report {
            busy: beat.busy,
            slots: beat.slots,
            warm: beat.warm_models.clone(),
            served: beat.models.iter().map(|offer| offer.id.clone()).collect(),
            unhealthy: beat.unhealthy.clone(),
        };
        let room = |node: &Node| {
            if node.closed_for().is_some() { 0 } else { node.slots().saturating_sub(node.busy()) }
        };
        let Some(Some(node)) = self
            .places
            .get_mut(&live.key)
            .filter(|place| place.generation == live.generation)
            .map(|place| place.node.as_mut())
        else {
            return Heard::default();
        };
        let before = room(node);
        let serves_others = node.report.as_ref().is_some_and(|before| before.served != report.served);
        let is_new = node.report.as_ref() != Some(&report);
        if is_new {
            node.report = Some(report);
        }
        let mut heard = Heard { freed: serves_others || room(node) > before, ..Heard::default() };
        if is_new {
            self.enlist(&live.key);
        }
        let mut listed = HashSet::new();
        for (position, attempt) in beat.attempts.iter().enumerate() {
            listed.insert((attempt.task_id, attempt.progress.attempt));
            let is_held = self
                .held
                .get(&attempt.task_id)
                .is_some_and(|held| held.key == live.key && held.attempt == attempt.progress.attempt);
            if is_held {
                heard.progress.push(position);
            }
        }
        heard.dropped = self.missing(live.key, &listed, settle, now);
        heard
    }

    /// Attempts of a host that its reports have left out for longer than `settle`.
    fn missing(
        &mut self,
        key: NodeKey,
        listed: &HashSet<(TaskId, u32)>,
        settle: Duration,
        now: Instant,
    ) -> Vec<(TaskId, u32)> {
        let mut dropped = Vec::new();
        for id in self.held_by.get(&key).into_iter().flatten() {
            let Some(held) = self.held.get_mut(id) else { continue };
            if listed.contains(&(*id, held.attempt)) {
                held.missing_since = None;
                continue;
            }
            let since = *held.missing_since.get_or_insert(now.max(held.since));
            if now.duration_since(since) >= settle {
                dropped.push((*id, held.attempt));
            }
        }
        dropped
    }

    /// Notes that a host that came back holds an attempt whose host was not known.
    pub(super) fn claim(&mut self, task_id: TaskId, attempt: u32, key: NodeKey) {
        let is_meant = |held: &Held| held.attempt == attempt && held.key.provider == key.provider;
        if self.held.get(&task_id).is_some_and(is_meant)
            && let Some(held) = self.unhold(task_id)
        {
            self.held_by.entry(key).or_default().insert(task_id);
            self.held.insert(task_id, Held { key, missing_since: None, ..held });
            self.give(&key, 1);
        }
    }

    /// Attempts whose host stayed away beyond its grace, and when to ask again.
    pub(super) fn forsaken(&mut self, now: Instant) -> (Vec<(TaskId, u32)>, Option<Instant>) {
        let over = self.lost.extract_if(|_, until| *until <= now).map(|(key, _)| key);
        let held = over.filter_map(|key| self.held_by.get(&key)).flatten();
        let forsaken = held.filter_map(|id| Some((*id, self.held.get(id)?.attempt))).collect();
        (forsaken, self.lost.values().min().copied())
    }

    /// Asks for an attempt to be released again, a moment later.
    pub(super) fn forsake_again(&mut self, task_id: TaskId, at: Instant) {
        if let Some(held) = self.held.get(&task_id)
            && self.node(&held.key).is_none()
        {
            self.lost.insert(held.key, at);
        }
    }

    /// Sets whether a host takes work, if it is here.
    pub(super) fn set_status(&mut self, key: &NodeKey, status: NodeStatus) {
        let generation = self.node(key).map(|node| node.live.generation);
        if let Some(generation) = generation {
            self.update(key, generation, |node| node.status = status);
        }
    }

    // Tasks.

    /// All tasks that the floor knows of.
    pub(super) fn known(&self) -> HashSet<TaskId> {
        let waiting = self.waiting.keys().map(|(_, id)| *id);
        waiting.chain(self.offering.keys().copied()).chain(self.held.keys().copied()).collect()
    }

    /// Follows a task to where its record says it is. `node` is the host that took the attempt.
    pub(super) fn absorb(
        &mut self,
        record: &TaskRecord,
        node: Option<Bytes32>,
        word: Option<Word>,
        now: Instant,
    ) -> Option<CallOff> {
        if self.version(record).is_some_and(|known| known >= record.version) {
            return None;
        }
        match &record.state {
            // Such as one without its money.
            State::Open if !record.is_on_offer() => {
                self.waiting.remove(&(record.created_at, record.id));
                if let Some(offering) = self.offering.remove(&record.id) {
                    self.give(&offering.key, -1);
                }
                self.end_attempt(record, word, now).0
            }
            State::Open => {
                let (call_off, tries) = self.end_attempt(record, word, now);
                self.wait(record, tries, word.is_some().then_some(now), now);
                call_off
            }
            State::Accepted { lease } => {
                let key = NodeKey { provider: lease.provider, node_id: node.unwrap_or_default() };
                self.hold(record, key, lease.attempt, now);
                None
            }
            State::Submitted { .. }
            | State::Completed { .. }
            | State::Disputed { .. }
            | State::Resolved { .. }
            | State::Cancelled
            | State::Expired
            | State::Failed => {
                let held = self.held.get(&record.id).filter(|_| record.submission().is_some());
                if let Some(key) = held.map(|held| held.key) {
                    let model = record.task.model_hash;
                    self.scores.praise(key, model.is_pinned().then_some(model), now);
                    self.reconsider(key.provider);
                }
                self.waiting.remove(&(record.created_at, record.id));
                if let Some(offering) = self.offering.remove(&record.id) {
                    self.give(&offering.key, -1);
                }
                self.end_attempt(record, word, now).0
            }
        }
    }

    fn version(&self, record: &TaskRecord) -> Option<u64> {
        let waiting = self.waiting.get(&(record.created_at, record.id)).map(|waiting| waiting.version);
        let offering = || self.offering.get(&record.id).map(|offering| offering.waiting.version);
        let held = || self.held.get(&record.id).map(|held| held.version);
        waiting.or_else(offering).or_else(held)
    }

    /// Puts an open task where it can be placed, with what is known of earlier tries.
    /// `since` is when it became open, where that was seen.
    fn wait(&mut self, record: &TaskRecord, tries: Option<Tries>, since: Option<Instant>, now: Instant) {
        let (barred, fault) = (barred(record), Fault::of(record, &self.scores));
        if let Some(offering) = self.offering.get_mut(&record.id) {
            offering.waiting.version = record.version;
            offering.waiting.barred = barred;
            offering.waiting.fault = fault;
            offering.waiting.is_trial = is_trial(record);
            return;
        }
        let place = (record.created_at, record.id);
        let known = self.waiting.remove(&place);
        let since = known.as_ref().and_then(|known| known.since).or(since);
        let known = known.map(|waiting| waiting.tries);
        let tries = tries.or(known).unwrap_or_else(|| Tries::of(record, self.backoff.failed, now));
        let need = Need::of(&record.task);
        let kind = Kind::of(&record.task, &need);
        let is_trial = is_trial(record);
        let waiting = Waiting {
            version: record.version,
            created_at: record.created_at,
            settled: record.domain.is_settled(),
            since,
            need,
            kind,
            is_trial,
            barred,
            fault,
            tries,
        };
        self.waiting.insert(place, waiting);
    }

    fn hold(&mut self, record: &TaskRecord, key: NodeKey, attempt: u32, now: Instant) {
        let mut tries = self.waiting.remove(&(record.created_at, record.id)).map(|waiting| waiting.tries);
        if let Some(offering) = self.offering.remove(&record.id) {
            self.give(&offering.key, -1);
            tries = Some(offering.waiting.tries);
        }
        if let Some(held) = self.unhold(record.id) {
            tries = tries.or(Some(held.tries));
        }
        let held = Held {
            version: record.version,
            attempt,
            key,
            since: now,
            missing_since: None,
            tries: tries.unwrap_or_default(),
        };
        self.held.insert(record.id, held);
        self.held_by.entry(key).or_default().insert(record.id);
        self.give(&key, 1);
        if self.node(&key).is_none() {
            self.lost.entry(key).or_insert(now + self.grace);
        }
    }

    /// Ends an attempt, if one was held. Its host is to be told, unless the end was its own word.
    fn end_attempt(
        &mut self,
        record: &TaskRecord,
        word: Option<Word>,
        now: Instant,
    ) -> (Option<CallOff>, Option<Tries>) {
        let Some(mut held) = self.unhold(record.id) else { return (None, None) };
        let own_word = record.submission().is_some() || word == Some(Word::Signature);
        let live = self.node(&held.key).filter(|_| !own_word).map(|node| Arc::clone(&node.live));
        let call_off = live.map(|live| CallOff { task_id: record.id, attempt: held.attempt, live });
        if let Some(failure) = record.failure.as_ref().filter(|failure| failure.attempt == held.attempt) {
            held.tries.fail(failure, self.backoff.failed, self.backoff.max, now);
            // What is the requester's making is not held against the provider, until another shows that the task can be done.
            if failure::blame(&failure.code) != Blame::Requester {
                self.blame(held.key.provider, now);
            }
        } else if record.submission().is_some() {
            for accuser in record.faults.iter().filter(|fault| fault.provider != held.key.provider) {
                self.blame(accuser.provider, now);
            }
        }
        (call_off, Some(held.tries))
    }

    /// Forgets who holds a task.
    fn unhold(&mut self, task_id: TaskId) -> Option<Held> {
        let held = self.held.remove(&task_id)?;
        if let Some(tasks) = self.held_by.get_mut(&held.key) {
            tasks.remove(&task_id);
            if tasks.is_empty() {
                self.held_by.remove(&held.key);
            }
        }
        self.give(&held.key, -1);
        Some(held)
    }

    /// Counts tasks given to a host up or down.
    pub(super) fn give(&mut self, key: &NodeKey, change: i32) {
        let Some(node) = self.places.get_mut(key).and_then(|place| place.node.as_mut()) else { return };
        node.given = node.given.saturating_add_signed(change);
        for index in [&mut self.index, &mut self.proven] {
            index.set_load(key, node.busy(), node.slots(), node.warm(&self.scores));
        }
    }

    /// Ends an offer that was not taken: the task waits again, with the reason noted against the host.
    pub(super) fn refused(&mut self, task_id: TaskId, key: &NodeKey, why: Tried, now: Instant) {
        if self.offering.get(&task_id).is_none_or(|offering| offering.key != *key) {
            return;
        }
        let Some(Offering { key, mut waiting }) = self.offering.remove(&task_id) else { return };
        self.give(&key, -1);
        waiting.tries.add(key, why, self.backoff.max, now);
        self.waiting.insert((waiting.created_at, task_id), waiting);
    }

    /// Notes that a provider left an offer unanswered, or failed an attempt.
    pub(super) fn blame(&mut self, provider: Address, now: Instant) {
        self.scores.blame(provider, now);
        self.reconsider(provider);
    }

    /// Keeps the oldest `max` waiting tasks, and says whether there were more.
    pub(super) fn trim(&mut self, max: usize) -> bool {
        let over = self.waiting.len().saturating_sub(max);
        for _ in 0..over {
            self.waiting.pop_last();
        }
        over > 0
    }
}

/// The keys of a provider's hosts.
pub(super) fn keys_of(provider: Address) -> RangeInclusive<NodeKey> {
    let [first, last] = [0, 0xff].map(|byte| NodeKey { provider, node_id: Bytes32([byte; 32].into()) });
    first..=last
}

#[cfg(test)]
mod tests;
