//! What can be told from the floor without changing it.

use rpc::tasks::ProviderFit;
use scheduler::{Exclusion, Need, NodeKey};
use taskmarket::{Address, Bytes32, TaskId, TaskRecord};
use tokio::time::Instant;

use super::HubTotals;
use super::floor::Floor;
use super::node::Node;

/// The most hosts that an explanation names.
const MAX_EXPLAINED: usize = 256;

impl Floor {
    /// A host of this provider that fits such a task, a free one if there is one.
    pub(super) fn fitting_node(&self, provider: Address, need: &Need) -> Option<Bytes32> {
        let free = self.index.pick(need, |key| key.provider != provider);
        free.or_else(|| self.index.fitting(provider, need).next()).map(|key| key.node_id)
    }

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

    /// The host that a task is on offer to.
    pub(super) fn offered_to(&self, task_id: TaskId) -> Option<NodeKey> {
        self.offering.get(&task_id).map(|offering| offering.key)
    }

    /// What keeps an open task from each host that is here.
    pub(super) fn fits(&self, record: &TaskRecord, now: Instant) -> Vec<ProviderFit> {
        let waiting = self.waiting.get(&(record.created_at, record.id));
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
            if let Some(tried) = waiting.and_then(|waiting| waiting.tries.bar(&key, now)) {
                let ago = now.saturating_duration_since(tried.at).as_secs();
                exclusions.push(format!("{} ({ago} s ago)", tried.reason));
            }
            ProviderFit { provider: key.provider, node_id: key.node_id, exclusions }
        };
        self.index.explain(&Need::of(&record.task), |_| false, MAX_EXPLAINED).into_iter().map(fit).collect()
    }
}
