//! What came of offering one task to hosts: who is not to be asked again for a while, and why.

use std::time::Duration;

use scheduler::NodeKey;
use taskmarket::{Address, Bytes32, Failure, TaskRecord, failure};
use tokio::time::Instant;

/// The most hosts remembered for one task. Of more, the one that may be asked again first is forgotten.
const MAX_TRIES: usize = 256;

/// The outcome of one offer: why it was not taken, and for how long the host is not asked again the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    pub(super) reason: String,
    pub(super) backoff: Duration,
    /// Whether its operator takes no such tasks, so that it will hardly take this one later.
    pub(super) lasts: bool,
}

/// What is remembered of one host.
#[derive(Debug, Clone)]
pub(super) struct Try {
    provider: Address,
    /// The host; none where all of the provider's are meant.
    node_id: Option<Bytes32>,
    pub(super) reason: String,
    pub(super) at: Instant,
    pub(super) until: Instant,
    count: u32,
    /// Whether it will hardly take the task later.
    pub(super) lasts: bool,
    /// The attempt that it failed and with which code, if it is that.
    pub(super) failed: Option<(u32, String)>,
}

/// The outcomes for one task.
#[derive(Debug, Clone, Default)]
pub(super) struct Tries(Vec<Try>);

impl Tries {
    /// What the record itself tells of its last attempt.
    pub(super) fn of(record: &TaskRecord, backoff: Duration, now: Instant) -> Self {
        let mut tries = Self::default();
        if let Some(failure) = &record.failure {
            tries.fail(failure, backoff, backoff, now);
        }
        tries
    }

    /// Notes that a provider failed an attempt: all its hosts count as tried.
    pub(super) fn fail(&mut self, failure: &Failure, backoff: Duration, max: Duration, now: Instant) {
        let provider = failure.provider;
        let last = self.0.extract_if(.., |tried| tried.provider == provider).map(|tried| tried.count).max();
        self.push(
            Try {
                provider,
                node_id: None,
                reason: format!("its attempt {} ended: {}", failure.attempt, failure.code),
                at: now,
                until: now,
                count: last.unwrap_or(0).saturating_add(1),
                lasts: false,
                failed: Some((failure.attempt, failure.code.clone())),
            },
            backoff,
            max,
        );
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes an outcome. Each further one for the same host doubles the time until it is asked again, up to `max`.
    pub(super) fn add(&mut self, key: NodeKey, why: Tried, max: Duration, now: Instant) {
        let Tried { reason, backoff, lasts } = why;
        let position = self.0.iter().position(|tried| tried.is_of(&key));
        let last = position.map(|position| self.0.swap_remove(position));
        let (count, node_id, failed) = match last {
            Some(last) => (last.count.saturating_add(1), last.node_id, last.failed),
            None => (1, Some(key.node_id), None),
        };
        let provider = key.provider;
        self.push(Try { provider, node_id, reason, at: now, until: now, count, lasts, failed }, backoff, max);
    }

    fn push(&mut self, mut tried: Try, backoff: Duration, max: Duration) {
        let factor = 2u32.checked_pow(tried.count - 1).unwrap_or(u32::MAX);
        tried.until = tried.at + backoff.saturating_mul(factor).min(max);
        if self.0.len() >= MAX_TRIES
            && let Some(first) = (0..self.0.len()).min_by_key(|position| self.0[*position].until)
        {
            self.0.swap_remove(first);
        }
        self.0.push(tried);
    }

    /// What came of the last offer to a host.
    pub(super) fn last(&self, key: &NodeKey) -> Option<&Try> {
        self.0.iter().find(|tried| tried.is_of(key))
    }

    /// Why a host is not to be asked now, if it is not.
    pub(super) fn bar(&self, key: &NodeKey, now: Instant) -> Option<&Try> {
        self.last(key).filter(|tried| tried.until > now)
    }

    /// Whether the task asks for more than some host of these has.
    pub(super) fn any_beyond(&self) -> bool {
        self.0.iter().any(Try::is_beyond)
    }

    /// When the next host may be asked again.
    pub(super) fn next_end(&self, now: Instant) -> Option<Instant> {
        self.0.iter().map(|tried| tried.until).filter(|until| *until > now).min()
    }
}

impl Try {
    /// Whether the task asks for more than the provider's hosts have: others that fit come first, however long ago it was.
    pub(super) fn is_beyond(&self) -> bool {
        self.failed.as_ref().is_some_and(|(_, code)| failure::is_beyond_host(code))
    }

    fn is_of(&self, key: &NodeKey) -> bool {
        self.provider == key.provider && self.node_id.is_none_or(|node_id| node_id == key.node_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(node: u8) -> NodeKey {
        NodeKey { provider: Address::repeat_byte(1), node_id: Bytes32([node; 32].into()) }
    }

    fn tried(backoff: Duration) -> Tried {
        Tried { reason: "refused".into(), backoff, lasts: true }
    }

    #[test]
    fn hosts_are_barred_longer_each_time_up_to_a_bound() {
        let (base, max) = (Duration::from_secs(5), Duration::from_secs(15));
        let mut tries = Tries::default();
        let now = Instant::now();
        for expected in [5, 10, 15, 15] {
            tries.add(key(1), tried(base), max, now);
            let until = now + Duration::from_secs(expected);
            assert!(tries.bar(&key(1), until - Duration::from_millis(1)).is_some());
            assert!(tries.bar(&key(1), until).is_none());
            assert_eq!(tries.next_end(now), Some(until));
        }
        assert!(tries.last(&key(2)).is_none());
    }

    #[test]
    fn no_more_than_a_bounded_number_is_remembered() {
        let mut tries = Tries::default();
        let now = Instant::now();
        for node in 0..=255 {
            let backoff = Duration::from_secs(if node == 7 { 1 } else { 9 });
            tries.add(key(node), tried(backoff), backoff, now);
        }
        let other = NodeKey { provider: Address::repeat_byte(2), ..key(0) };
        tries.add(other, tried(Duration::from_secs(9)), Duration::from_secs(9), now);
        assert_eq!(tries.0.len(), MAX_TRIES);
        assert!(tries.last(&key(7)).is_none() && tries.last(&other).is_some());
    }
}
