//! What is remembered of providers across tasks, for a while and in memory only: who completed tasks, who failed lately, and which
//! models hosts did work with. Identities cost nothing, so nobody comes first by word alone, or by being new.

use std::collections::HashMap;
use std::time::Duration;

use scheduler::NodeKey;
use taskmarket::{Address, ContentHash};
use tokio::time::Instant;

/// The most providers, and the most hosts, that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// The most models that are remembered of one host.
const MAX_MODELS: usize = 64;
/// The most completed tasks that speak for a provider.
const MAX_DONE: u32 = 8;
/// So long after a provider's last failure has lost its effect, its failures are forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(super) struct Scores {
    providers: HashMap<Address, Score>,
    /// The models with which each host completed tasks.
    proven: HashMap<NodeKey, Vec<ContentHash>>,
    base: Duration,
    max: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Score {
    failed: u32,
    done: u32,
    /// Until when the provider comes after others.
    until: Instant,
}

impl Score {
    /// What is remembered longest: completed tasks, which cost something, before failures, which fresh identities have for nothing.
    fn worth(&self) -> (u32, Instant) {
        (self.done, self.until)
    }
}

impl Scores {
    /// After its first failure a provider comes after others for `base`; doubled each time, up to `max`.
    pub(super) fn new(base: Duration, max: Duration) -> Self {
        Self { providers: HashMap::new(), proven: HashMap::new(), base, max }
    }

    /// Whether a provider completed more tasks than it failed, as far as is remembered.
    pub(super) fn is_proven(&self, provider: &Address) -> bool {
        self.providers.get(provider).is_some_and(|score| score.done > score.failed)
    }

    /// Notes that a provider left an offer unanswered, or failed an attempt.
    pub(super) fn blame(&mut self, provider: Address, now: Instant) {
        let score = self.entry(provider, now);
        if now > score.until + FORGET {
            score.failed = 0;
        }
        score.failed = score.failed.saturating_add(1);
        let factor = 2u32.checked_pow(score.failed - 1).unwrap_or(u32::MAX);
        let (base, max) = (self.base, self.max);
        self.entry(provider, now).until = now + base.saturating_mul(factor).min(max);
    }

    /// Notes that a host completed a task, with this model if the task pins one.
    pub(super) fn praise(&mut self, key: NodeKey, model: Option<ContentHash>, now: Instant) {
        let score = self.entry(key.provider, now);
        score.done = (score.done + 1).min(MAX_DONE);
        score.failed /= 2;
        let Some(model) = model else { return };
        if self.proven.len() >= MAX_REMEMBERED && !self.proven.contains_key(&key) {
            self.proven.clear();
        }
        let models = self.proven.entry(key).or_default();
        if !models.contains(&model) {
            if models.len() >= MAX_MODELS {
                models.remove(0);
            }
            models.push(model);
        }
    }

    /// Of the models that a host calls loaded, those that it completed tasks with.
    pub(super) fn believed(&self, key: &NodeKey, warm: &[ContentHash]) -> Vec<ContentHash> {
        let Some(proven) = self.proven.get(key) else { return Vec::new() };
        warm.iter().filter(|model| proven.contains(model)).copied().collect()
    }

    /// Whether a provider comes after others that are free.
    pub(super) fn is_behind(&self, provider: &Address, now: Instant) -> bool {
        self.providers.get(provider).is_some_and(|score| score.until > now)
    }

    /// Whether a provider comes after others even while they are busy: it failed more than once, and more than it completed.
    pub(super) fn is_shunned(&self, provider: &Address, now: Instant) -> bool {
        let is_bad = |score: &Score| score.failed > score.done.max(1);
        self.is_behind(provider, now) && self.providers.get(provider).is_some_and(is_bad)
    }

    /// When the next provider comes no longer after others.
    pub(super) fn next_end(&self, now: Instant) -> Option<Instant> {
        self.providers.values().map(|score| score.until).filter(|until| *until > now).min()
    }

    fn entry(&mut self, provider: Address, now: Instant) -> &mut Score {
        if self.providers.len() >= MAX_REMEMBERED
            && !self.providers.contains_key(&provider)
            && let Some(first) =
                self.providers.iter().min_by_key(|(_, score)| score.worth()).map(|(address, _)| *address)
        {
            self.providers.remove(&first);
        }
        self.providers.entry(provider).or_insert(Score { failed: 0, done: 0, until: now })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmarket::Bytes32;

    #[test]
    fn failures_weigh_longer_each_time_and_completed_tasks_make_up_for_them() {
        let secs = Duration::from_secs;
        let (mut scores, now, provider) =
            (Scores::new(secs(30), secs(100)), Instant::now(), Address::repeat_byte(1));
        let mut last = now;
        for expected in [30, 60, 100, 100] {
            scores.blame(provider, now);
            last = now + secs(expected);
            assert_eq!(scores.next_end(now), Some(last));
            assert!(scores.is_behind(&provider, now) && !scores.is_behind(&provider, last));
            assert_eq!(scores.is_shunned(&provider, now), expected > 30);
        }
        let key = NodeKey { provider, node_id: Bytes32::default() };
        for _ in 0..2 {
            scores.praise(key, None, now);
        }
        assert!(scores.is_behind(&provider, now) && !scores.is_shunned(&provider, now));
        scores.blame(provider, last + FORGET + secs(1));
        assert_eq!(scores.next_end(last + FORGET), Some(last + FORGET + secs(31)), "it begins anew");
    }

    #[test]
    fn completed_tasks_prove_a_provider_and_no_number_of_strangers_has_them_forgotten() {
        let (mut scores, now) = (Scores::new(FORGET, FORGET), Instant::now());
        let provider = Address::repeat_byte(1);
        assert!(!scores.is_proven(&provider));
        scores.praise(NodeKey { provider, node_id: Bytes32::default() }, None, now);
        for stranger in 0..2 * MAX_REMEMBERED as u64 {
            let mut address = [2; 20];
            address[..8].copy_from_slice(&stranger.to_be_bytes());
            scores.blame(Address::from(address), now);
        }
        assert!(scores.providers.len() <= MAX_REMEMBERED && scores.is_proven(&provider));
        scores.blame(provider, now);
        assert!(!scores.is_proven(&provider));
    }

    #[test]
    fn loaded_models_count_once_a_task_was_completed_with_them() {
        let (mut scores, now) = (Scores::new(FORGET, FORGET), Instant::now());
        let key = NodeKey { provider: Address::repeat_byte(1), node_id: Bytes32::default() };
        let [claimed, proven] = [[1; 32], [2; 32]].map(|bytes| ContentHash(bytes.into()));
        assert!(scores.believed(&key, &[claimed, proven]).is_empty());
        scores.praise(key, Some(proven), now);
        assert_eq!(scores.believed(&key, &[claimed, proven]), [proven]);
        for provider in 0..=255 {
            for node in 0..17 {
                let (provider, node_id) = (Address::repeat_byte(provider), Bytes32([node; 32].into()));
                scores.praise(NodeKey { provider, node_id }, Some(proven), now);
            }
        }
        assert!(scores.proven.len() <= MAX_REMEMBERED);
    }
}
