//! Tasks that wait in vain: providers signed that they fail anywhere, and nobody is there who could say otherwise.
//!
//! A provider's word may be a lie, so one word ends nothing while another provider fits, be it busy. Two that agree end the task at once.

use std::collections::HashMap;
use std::time::Duration;

use scheduler::NodeKey;
use taskmarket::{TaskId, TaskRecord, failure};
use tokio::time::Instant;

use super::entries::{Fault, Kind};
use super::floor::Floor;

/// The most hosts of one kind that are looked at for one that may have a task.
const MAX_OTHERS: usize = 256;
/// How long the end of a task may be on its way to the store before it is sent again.
const ENDING: Duration = Duration::from_secs(5);
/// Tasks that only others' absence ends are looked at no more often than this.
const GAP: Duration = Duration::from_secs(1);

/// How long others are waited for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Patience {
    /// Since when this relay's hosts have had the time to come back to it. Nobody is given up before.
    pub(super) from: Option<Instant>,
    /// For how long hosts of other relays of the same store, if there are such relays, may take a task.
    pub(super) others: Duration,
    /// When tasks were last looked at.
    looked_at: Option<Instant>,
}

impl Fault {
    /// What a record says.
    pub(super) fn of(record: &TaskRecord, now: Instant) -> Option<Self> {
        let agreed = failure::agreed(record).is_some();
        (!record.faults.is_empty()).then_some(Self { agreed, since: now, ending_until: None })
    }
}

impl Floor {
    /// Tasks to end, as nobody is there any more who may have them; and when to look again.
    pub(super) fn in_vain(&mut self, now: Instant) -> (Vec<TaskId>, Option<Instant>) {
        let due = |fault: &Fault| fault.ending_until.is_none_or(|until| until <= now);
        let looks = self.patience.looked_at.is_none_or(|at| at + GAP <= now);
        let mut others: HashMap<&Kind, Vec<NodeKey>> = HashMap::new();
        let (mut vain, mut places, mut again) = (Vec::new(), Vec::new(), None);
        for (place, waiting) in &self.waiting {
            let Some(fault) = waiting.fault.filter(due) else { continue };
            // Of a settled task the requester has its budget back by the chain alone.
            if waiting.settled {
                continue;
            }
            let given_up_at = self.patience.from.map(|from| from.max(fault.since + self.patience.others));
            let is_late = given_up_at.is_some_and(|at| at <= now);
            if !(fault.agreed || looks && is_late) {
                let at = given_up_at.filter(|at| *at > now).unwrap_or(now + GAP);
                again = Some(again.map_or(at, |before: Instant| before.min(at)));
                continue;
            }
            let may_have = |key: &NodeKey| {
                let tried = waiting.tries.last(key);
                !waiting.barred.contains(&key.provider) && !tried.is_some_and(|tried| tried.lasts)
            };
            let has_other = !fault.agreed && {
                let others = others
                    .entry(&waiting.kind)
                    .or_insert_with(|| self.index.accepting(&waiting.need).take(MAX_OTHERS).collect());
                others.len() >= MAX_OTHERS || others.iter().any(may_have)
            };
            if !has_other {
                vain.push(place.1);
                places.push(*place);
            }
        }
        if looks {
            self.patience.looked_at = Some(now);
        }
        for place in places {
            if let Some(fault) = self.waiting.get_mut(&place).and_then(|waiting| waiting.fault.as_mut()) {
                fault.ending_until = Some(now + ENDING);
                again = Some(again.map_or(now + ENDING, |before: Instant| before.min(now + ENDING)));
            }
        }
        (vain, again)
    }
}
