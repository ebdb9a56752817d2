//! Choosing hosts for the tasks that wait on the [`Floor`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use scheduler::{Exclusion, Index, NodeKey};
use taskmarket::{Address, TaskId, TaskRecord, Timestamp};
use tokio::time::Instant;

use super::entries::{Kind, Offering, Plan, Waiting};
use super::floor::Floor;
use super::scores::Scores;
use super::tries::Try;

/// The most hosts that are looked at for better ones than those that failed.
const MAX_GOOD: usize = 256;
/// Of so many tasks, one is offered to newcomers as to anybody, while hosts that have proven themselves are free.
const TRIALS: u8 = 4;

impl Floor {
    /// Chooses hosts for tasks that wait, oldest first, at most `limit`, and says when a host may be asked again.
    pub(super) fn assign(&mut self, limit: usize, now: Instant) -> (Vec<Plan>, Option<Instant>) {
        let mut chosen = Vec::new();
        let mut unfit: HashSet<&Kind> = HashSet::new();
        let mut good = HashMap::new();
        let totals = self.index.totals();
        let free = usize::try_from(totals.slots.saturating_sub(totals.busy)).unwrap_or(usize::MAX);
        for (place, waiting) in &self.waiting {
            if chosen.len() >= limit.min(free) {
                break;
            }
            if waiting.is_agreed(&self.proven)
                || unfit.contains(&waiting.kind)
                || waiting.settled && !self.chain_is_well
            {
                continue;
            }
            match choose(&self.index, &self.proven, &self.scores, waiting, &mut good, now) {
                Some(key) => {
                    self.index.reserve(&key);
                    self.proven.reserve(&key);
                    chosen.push((place.1, *place, key));
                }
                None if waiting.tries.is_empty() && waiting.barred.is_empty() => {
                    unfit.insert(&waiting.kind);
                }
                None => {}
            }
        }
        let plans =
            chosen.into_iter().filter_map(|(id, place, key)| self.begin_offer(id, place, key)).collect();
        let again = self.waiting.values().filter_map(|waiting| waiting.tries.next_end(now));
        let again = again.chain(self.scores.next_end(now).filter(|_| !self.waiting.is_empty())).min();
        (plans, again)
    }

    fn begin_offer(&mut self, task_id: TaskId, place: (Timestamp, TaskId), key: NodeKey) -> Option<Plan> {
        let live = Arc::clone(&self.node(&key)?.live);
        let mut waiting = self.waiting.remove(&place)?;
        if let Some(fault) = &mut waiting.fault {
            fault.alone_since = None;
        }
        // From here the floor's own count of what each host was given stands for the reservation.
        self.index.release(&key);
        self.proven.release(&key);
        let since = waiting.since;
        self.offering.insert(task_id, Offering { key, waiting });
        self.give(&key, 1);
        Some(Plan { task_id, live, since })
    }
}

/// Whether hosts that have proven nothing may come first with a task: with its first offer, if it has more than one attempt, and of one
/// task in [`TRIALS`]. So newcomers can prove themselves, and identities that cost nothing have no more than a share of first offers.
pub(super) fn is_trial(record: &TaskRecord) -> bool {
    let lot = record.id.0[31];
    record.attempts == 0 && record.task.config.max_attempts > 1 && lot.is_multiple_of(TRIALS)
}

/// The providers that do not get a task again: a lease of theirs on it lapsed, or they said that it fails anywhere.
pub(super) fn barred(record: &TaskRecord) -> Vec<Address> {
    let faulted = record.faults.iter().map(|fault| fault.provider);
    record.lapsed.iter().map(|provider| provider.0).chain(faulted).collect()
}

/// The best host for a task: one that has not been tried with it and did not fail lately, and of those one that has proven itself; or
/// else one that did fail, or one that may be asked again. While hosts of the first sort are only busy, the task does not go to who failed
/// again and again, nor to who has too little for it. It never goes back to who said that it fails anywhere.
pub(super) fn choose<'a>(
    index: &Index,
    proven: &Index,
    scores: &Scores,
    waiting: &'a Waiting,
    good: &mut HashMap<&'a Kind, Vec<NodeKey>>,
    now: Instant,
) -> Option<NodeKey> {
    let (need, tries) = (&waiting.need, &waiting.tries);
    let barred = |key: &NodeKey| waiting.barred.contains(&key.provider);
    let tried = |key: &NodeKey| barred(key) || tries.last(key).is_some();
    let is_late = |key: &NodeKey| tried(key) || scores.is_behind(&key.provider, now);
    let is_trial = waiting.is_trial && tries.is_empty();
    let trusted = if is_trial { None } else { proven.pick(need, is_late) };
    let first = trusted.or_else(|| index.pick(need, is_late));
    if first.is_some() || (tries.is_empty() && scores.next_end(now).is_none()) {
        return first;
    }
    let good = good.entry(&waiting.kind).or_insert_with(|| {
        let explained = index.explain(need, |key| scores.is_behind(&key.provider, now), MAX_GOOD);
        let is_busy = |exclusion: &Exclusion| matches!(exclusion, Exclusion::NoFreeSlot { .. });
        let fits = explained.into_iter().filter(|(_, exclusions)| exclusions.iter().all(is_busy));
        fits.map(|(key, _)| key).collect()
    });
    let has_better = good.iter().any(|key| !tried(key));
    let held_back = |key: &NodeKey| has_better && scores.is_shunned(&key.provider, now);
    let second = index.pick(need, |key| tried(key) || held_back(key));
    if second.is_some() {
        return second;
    }
    // Who has too little for it has no more later, while others may have enough.
    let may_do = |key: &NodeKey| !tries.last(key).is_some_and(|tried| tried.is_beyond() || tried.lasts);
    let others_may =
        tries.any_beyond() && index.accepting(need).take(MAX_GOOD).any(|key| !barred(&key) && may_do(&key));
    let is_beyond = |key: &NodeKey| others_may && tries.last(key).is_some_and(Try::is_beyond);
    let is_out = |key: &NodeKey| barred(key) || tries.bar(key, now).is_some() || held_back(key);
    index.pick(need, |key| is_out(key) || is_beyond(key))
}
