//! What can be told from the floor without changing it.

use rpc::failure::hint;
use rpc::tasks::ProviderFit;
use scheduler::{Exclusion, Need, NodeKey};
use taskmarket::{Failure, TaskId, TaskRecord};
use tokio::time::Instant;

use super::HubTotals;
use super::choice::barred;
use super::floor::Floor;
use super::node::Node;
use super::tries::{Tries, Try};

/// How an exclusion begins that says when a host that failed the task is asked again.
pub(super) const WAITS: &str = "waits ";
/// The most hosts that an explanation names.
const MAX_EXPLAINED: usize = 256;

impl Floor {
    /// See [`HubTotals`].
    pub(super) fn totals(&self) -> HubTotals {
        let index = self.index.totals();
        HubTotals {
            providers_online: index.nodes,
            slots: index.slots,
            slots_busy: index.busy,
            gpus: index.gpus,
            waiting: self.waiting.len() as u64,
            offers: self.offering.len() as u64,
            held: self.held.len() as u64,
        }
    }

    /// What came of offering an open task so far.
    pub(super) fn tries(&self, record: &TaskRecord) -> Option<&Tries> {
        let waiting = self.waiting.get(&(record.created_at, record.id));
        let offered = || self.offering.get(&record.id).map(|offering| &offering.waiting);
        waiting.or_else(offered).map(|waiting| &waiting.tries)
    }

    /// The host that a task is on offer to.
    pub(super) fn offered_to(&self, task_id: TaskId) -> Option<NodeKey> {
        self.offering.get(&task_id).map(|offering| offering.key)
    }

    /// What keeps an open task from each host that is here.
    pub(super) fn fits(&self, record: &TaskRecord, now: Instant) -> Vec<ProviderFit> {
        let waiting = self.waiting.get(&(record.created_at, record.id));
        let last = |key: &NodeKey| waiting.and_then(|waiting| waiting.tries.last(key));
        let explained = self.index.explain(&Need::of(&record.task), |_| false, MAX_EXPLAINED);
        let is_busy = |exclusion: &Exclusion| matches!(exclusion, Exclusion::NoFreeSlot { .. });
        // Whether there is a host for which those that failed have to wait.
        let has_better = explained.iter().any(|(key, exclusions)| {
            exclusions.iter().all(is_busy)
                && !self.scores.is_behind(&key.provider, now)
                && !barred(record).contains(&key.provider)
                && last(key).is_none()
        });
        let others_may = explained.iter().any(|(key, exclusions)| {
            exclusions.iter().all(is_busy)
                && !barred(record).contains(&key.provider)
                && !last(key).is_some_and(|tried| tried.is_beyond() || tried.lasts)
        });
        let fit = |(key, exclusions): (NodeKey, Vec<Exclusion>)| {
            let closed = self.node(&key).and_then(Node::closed_for);
            let mut exclusions: Vec<String> = exclusions
                .iter()
                .map(|exclusion| match (exclusion, &closed) {
                    (Exclusion::NotAccepting, Some(closed)) => closed.clone(),
                    (exclusion, _) => exclusion.to_string(),
                })
                .collect();
            if record.is_lapsed(key.provider) {
                exclusions.push("its lease on this task lapsed".to_owned());
            }
            let tried = last(&key);
            let fault = record.faults.iter().find(|fault| fault.provider == key.provider);
            if let Some(fault) = fault {
                exclusions.push(accusing(fault));
            } else if let Some(barred) = tried.filter(|tried| tried.until > now) {
                exclusions.push(barring(&key, barred, now));
            } else if others_may && tried.is_some_and(Try::is_beyond) {
                exclusions.push("the task asks for more than it has: others that fit come first".to_owned());
            } else if has_better && self.scores.is_shunned(&key.provider, now) {
                exclusions.push("it failed before: others that fit come first".to_owned());
            }
            ProviderFit { provider: key.provider, node_id: key.node_id, exclusions }
        };
        explained.into_iter().map(fit).collect()
    }
}

/// Why a provider is not asked again at all.
fn accusing(fault: &Failure) -> String {
    let Failure { attempt, code, .. } = fault;
    let hint = hint(code).map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("it said that the task fails anywhere (attempt {attempt} failed: {code}{hint})")
}

/// Why a host is not asked again yet.
fn barring(key: &NodeKey, tried: &Try, now: Instant) -> String {
    match &tried.failed {
        Some((attempt, code)) => {
            let left = tried.until.saturating_duration_since(now).as_secs() + 1;
            let provider = key.provider;
            let hint = hint(code).map(|hint| format!("; {hint}")).unwrap_or_default();
            format!("{WAITS}{left} s before trying {provider} again (attempt {attempt} failed: {code}{hint})")
        }
        None => {
            let ago = now.saturating_duration_since(tried.at).as_secs();
            format!("{} ({ago} s ago)", tried.reason)
        }
    }
}
