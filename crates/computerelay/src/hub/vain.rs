//! Tasks that wait in vain: providers signed that they fail anywhere, and nobody is there who could say otherwise.
//!
//! A provider's word may be a lie, so one word ends nothing while another provider fits: be it busy, closed or away for a moment, or
//! connected to another relay of the same store. Two that agree end the task at once. Identities cost nothing, so the words of two that have
//! proven nothing count only where nobody fits who has.

use std::collections::HashMap;
use std::time::Duration;

use scheduler::{Index, NodeKey, Offer};
use taskmarket::{TaskId, TaskRecord, failure};
use tokio::time::Instant;

use super::entries::{Fault, Kind, Waiting};
use super::floor::Floor;
use super::scores::Scores;

/// The most hosts of one kind that are looked at for one that may have a task.
const MAX_OTHERS: usize = 256;
/// The most hosts that are remembered after they left.
const MAX_AWAY: usize = 10_000;
/// How long the end of a task may be on its way to the store before it is sent again.
const ENDING: Duration = Duration::from_secs(5);
/// Tasks that only others' absence ends are looked at no more often than this.
const GAP: Duration = Duration::from_secs(1);

/// How long others are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Whether hosts can connect. Nobody is given up before.
    is_open: bool,
    /// For how long nobody else may be there until one word ends a task.
    pub(super) alone: Duration,
    /// Whether other relays of the same store live, whose hosts may take a task. Until this is known, they do.
    pub(super) others_live: bool,
    /// When tasks were last looked at.
    looked_at: Option<Instant>,
}

impl Patience {
    pub(super) fn new(alone: Duration) -> Self {
        Self { is_open: false, alone, others_live: true, looked_at: None }
    }
}

/// Hosts without a session that had one a moment ago. They count as there.
#[derive(Debug)]
pub(super) struct Away {
    index: Index,
    until: HashMap<NodeKey, Instant>,
    /// How long they are remembered: so long that a look at the tasks falls into it.
    grace: Duration,
}

impl Away {
    pub(super) fn new(grace: Duration) -> Self {
        Self { index: Index::default(), until: HashMap::new(), grace: grace.max(GAP * 2) }
    }

    /// Notes what a host offered that left.
    pub(super) fn add(&mut self, offer: Offer, now: Instant) {
        self.expire(now);
        if self.until.len() < MAX_AWAY || self.until.contains_key(&offer.key) {
            self.until.insert(offer.key, now + self.grace);
            self.index.upsert(offer);
        }
    }

    /// Forgets a host that is back.
    pub(super) fn remove(&mut self, key: &NodeKey) {
        self.until.remove(key);
        self.index.remove(key);
    }

    fn expire(&mut self, now: Instant) {
        for (key, _) in self.until.extract_if(|_, until| *until <= now) {
            self.index.remove(&key);
        }
    }
}

impl Fault {
    /// What a record says.
    pub(super) fn of(record: &TaskRecord, scores: &Scores) -> Option<Self> {
        let agreed = failure::agreed(record).is_some();
        let by_proven = failure::agreed_among(record, |provider| scores.is_proven(provider)).is_some();
        let fault = Self { agreed, by_proven, alone_since: None, ending_until: None };
        (!record.faults.is_empty()).then_some(fault)
    }
}

impl Waiting {
    /// Whether a host that fits may have the task: nobody of its provider's said that it fails anywhere, or will hardly take it.
    fn may_go_to(&self, key: &NodeKey) -> bool {
        !self.barred.contains(&key.provider) && !self.tries.last(key).is_some_and(|tried| tried.lasts)
    }

    /// Whether two providers agree whose words count, by the hosts that have proven themselves: nobody is asked any more.
    pub(super) fn is_agreed(&self, proven: &Index) -> bool {
        let others_may = || proven.able(&self.need).any(|key| self.may_go_to(&key));
        self.fault.is_some_and(|fault| fault.agreed && (fault.by_proven || !others_may()))
    }
}

impl Floor {
    /// Whether two providers agree that a task fails anywhere, so that nobody is asked any more.
    pub(super) fn is_agreed(&self, record: &TaskRecord) -> bool {
        let waiting = self.waiting.get(&(record.created_at, record.id));
        waiting.is_some_and(|waiting| waiting.is_agreed(&self.proven))
    }

    /// Hosts may connect from here, and are on their way: however long nobody else was there before, it does not count.
    pub(super) fn be_patient(&mut self) {
        self.patience.is_open = true;
        for fault in self.waiting.values_mut().filter_map(|waiting| waiting.fault.as_mut()) {
            fault.alone_since = None;
        }
    }

    /// Tasks to end, as nobody is there any more who may have them; and when to look again.
    pub(super) fn in_vain(&mut self, now: Instant) -> (Vec<TaskId>, Option<Instant>) {
        let Patience { is_open, alone, others_live, looked_at } = self.patience;
        let looks = looked_at.is_none_or(|at| at + GAP <= now);
        // Who came and went since the last look is not remembered any more.
        let was_blind = looked_at.is_none_or(|at| at + self.away.grace < now);
        if looks {
            self.patience.looked_at = Some(now);
            self.away.expire(now);
        }
        let mut others: HashMap<&Kind, Vec<NodeKey>> = HashMap::new();
        let (mut vain, mut again) = (Vec::new(), None);
        let mut look_at = |at: Instant| again = Some(again.map_or(at, |before: Instant| before.min(at)));
        for (place, waiting) in &mut self.waiting {
            // Of a settled task the requester has its budget back by the chain alone.
            let Some(mut fault) = waiting.fault.filter(|_| !waiting.settled) else { continue };
            if let Some(until) = fault.ending_until.filter(|until| *until > now) {
                look_at(until);
                continue;
            }
            if !waiting.is_agreed(&self.proven) {
                if !is_open || others_live {
                    fault.alone_since = None;
                    waiting.fault = Some(fault);
                    continue;
                }
                if looks {
                    let others = others.entry(&waiting.kind).or_insert_with(|| {
                        let able = self.index.able(&waiting.need).chain(self.away.index.able(&waiting.need));
                        able.take(MAX_OTHERS).collect()
                    });
                    let has_other =
                        others.len() >= MAX_OTHERS || others.iter().any(|key| waiting.may_go_to(key));
                    let since = fault.alone_since.filter(|_| !was_blind).unwrap_or(now);
                    fault.alone_since = (!has_other).then_some(since);
                    waiting.fault = Some(fault);
                }
                // Who joined since the last look is seen by the next.
                if !looks || fault.alone_since.is_none_or(|since| since + alone > now) {
                    look_at(now + GAP);
                    continue;
                }
            }
            vain.push(place.1);
            waiting.fault = Some(Fault { ending_until: Some(now + ENDING), ..fault });
            look_at(now + ENDING);
        }
        (vain, again)
    }
}
