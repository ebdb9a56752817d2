//! The attempts that the host holds now: who drives them, and what is told of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rpc::link::{AttemptKey, HeldAttempt};
use rpc::tasks::{Phase, Progress, SignedMutation};
use taskmarket::{AcceptTask, TaskId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Attempts that may be held at once, those included whose result waits for a relay. With it a registration stays well below the
/// 128 KiB that a handshake text may have.
const MAX_HELD: usize = 256;

/// All attempts that are not over. Clones share them.
#[derive(Clone)]
pub(crate) struct Attempts {
    held: Arc<Mutex<BTreeMap<AttemptKey, Held>>>,
    changes: watch::Sender<()>,
}

struct Held {
    /// What was signed; `None` while the offer is being looked at.
    accept: Option<SignedMutation<AcceptTask>>,
    /// Whether it takes one of the node's slots.
    computing: bool,
    /// Whether a proof of it waits for the relay.
    proven: bool,
    phase: Phase,
    percent: Option<u8>,
    /// Cancelled to call the attempt off.
    called_off: CancellationToken,
    /// Cancelled once nothing is held of it any more.
    over: CancellationToken,
}

/// Why an offer finds no place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// It is held already, under this signature.
    Held(Box<SignedMutation<AcceptTask>>),
    /// It is being looked at by another request.
    Looking,
    /// A later attempt of the task is held.
    Newer(u32),
    /// An earlier one is held, and must be called off first.
    Older(AttemptKey),
    /// All slots are taken.
    NoSlot,
    /// Too many results wait for a relay.
    TooMany,
}

/// A place among the attempts. Dropping it gives it up.
pub(crate) struct Place {
    attempts: Attempts,
    key: AttemptKey,
    /// Cancelled when somebody calls the attempt off.
    pub(crate) called_off: CancellationToken,
}

impl Attempts {
    /// None at first.
    pub(crate) fn new() -> Self {
        Self { held: Arc::default(), changes: watch::Sender::new(()) }
    }

    /// Takes a place, and one of `slots`, for an attempt that is offered.
    pub(crate) fn reserve(&self, key: AttemptKey, slots: u32) -> Result<Place, NoPlace> {
        let mut all = self.lock();
        if let Some(held) = all.get(&key) {
            return Err(held
                .accept
                .clone()
                .map_or(NoPlace::Looking, |accept| NoPlace::Held(Box::new(accept))));
        }
        if let Some(other) = all.keys().rfind(|other| other.task_id == key.task_id) {
            let newer = other.attempt > key.attempt;
            return Err(if newer { NoPlace::Newer(other.attempt) } else { NoPlace::Older(*other) });
        }
        if computing(&all) >= slots {
            return Err(NoPlace::NoSlot);
        }
        if all.len() >= MAX_HELD {
            return Err(NoPlace::TooMany);
        }
        Ok(self.insert(&mut all, key, None))
    }

    /// Takes a place for an attempt that was accepted before.
    pub(crate) fn restore(&self, accept: SignedMutation<AcceptTask>) -> Place {
        let key = AttemptKey { task_id: accept.mutation.task_id, attempt: accept.mutation.attempt };
        let place = self.insert(&mut self.lock(), key, Some(accept));
        self.changes.send_replace(());
        place
    }

    fn insert(
        &self,
        all: &mut BTreeMap<AttemptKey, Held>,
        key: AttemptKey,
        accept: Option<SignedMutation<AcceptTask>>,
    ) -> Place {
        let called_off = CancellationToken::new();
        all.insert(
            key,
            Held {
                accept,
                computing: true,
                proven: false,
                phase: Phase::Fetching,
                percent: None,
                called_off: called_off.clone(),
                over: CancellationToken::new(),
            },
        );
        Place { attempts: self.clone(), key, called_off }
    }

    /// Asks an attempt's driver to call it off. The token is cancelled once that is done; `None` if it is not held.
    pub(crate) fn call_off(&self, key: &AttemptKey) -> Option<CancellationToken> {
        let all = self.lock();
        let held = all.get(key)?;
        held.called_off.cancel();
        Some(held.over.clone())
    }

    /// As [`Self::call_off`], where the node has not come to a result.
    pub(crate) fn call_off_unfinished(&self, key: &AttemptKey) {
        if let Some(held) = self.lock().get(key).filter(|held| held.computing) {
            held.called_off.cancel();
        }
    }

    /// The attempts of a task that are held.
    pub(crate) fn of_task(&self, task_id: &TaskId) -> Vec<AttemptKey> {
        self.lock().keys().filter(|key| key.task_id == *task_id).copied().collect()
    }

    /// What was signed for an attempt that is held.
    pub(crate) fn held_accept(&self, key: &AttemptKey) -> Option<Box<SignedMutation<AcceptTask>>> {
        self.lock().get(key).and_then(|held| held.accept.clone()).map(Box::new)
    }

    /// Whether a proof of the attempt waits for the relay.
    pub(crate) fn is_proven(&self, key: &AttemptKey) -> bool {
        self.lock().get(key).is_some_and(|held| held.proven)
    }

    /// What is told of the attempts that were accepted.
    pub(crate) fn held(&self) -> Vec<HeldAttempt> {
        let all = self.lock();
        let accepted = all.iter().filter(|(_, held)| held.accept.is_some());
        let told = accepted.map(|(key, held)| HeldAttempt {
            task_id: key.task_id,
            progress: Progress { attempt: key.attempt, phase: held.phase, percent: held.percent },
        });
        told.collect()
    }

    /// The attempts whose proof waits for the relay.
    pub(crate) fn unacknowledged(&self) -> Vec<AttemptKey> {
        self.lock().iter().filter(|(_, held)| held.proven).map(|(key, _)| *key).collect()
    }

    /// How many take a slot of the node.
    pub(crate) fn computing(&self) -> u32 {
        computing(&self.lock())
    }

    /// Waits until none is held.
    pub(crate) async fn none_left(&self) {
        let mut changes = self.changes.subscribe();
        while !self.lock().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Hears of each change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttemptKey, Held>> {
        // Each change under the lock is whole, so a poisoned map is as good as another.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn computing(all: &BTreeMap<AttemptKey, Held>) -> u32 {
    u32::try_from(all.values().filter(|held| held.computing).count()).unwrap_or(u32::MAX)
}

impl Place {
    /// Which attempt it is of.
    pub(crate) fn key(&self) -> AttemptKey {
        self.key
    }

    /// The attempt is accepted.
    pub(crate) fn accepted(&self, accept: SignedMutation<AcceptTask>) {
        self.change(|held| held.accept = Some(accept));
    }

    /// The node works on it.
    pub(crate) fn progress(&self, phase: Phase, percent: Option<u8>) {
        self.change(|held| (held.phase, held.percent) = (phase, percent.map(|percent| percent.min(100))));
    }

    /// The node is done with it, and free for another.
    pub(crate) fn leave_slot(&self, phase: Phase) {
        self.change(|held| {
            (held.computing, held.proven) = (false, false);
            (held.phase, held.percent) = (phase, None);
        });
    }

    /// Its proof is signed and waits for the relay.
    pub(crate) fn proven(&self) {
        self.change(|held| held.proven = true);
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        if let Some(held) = self.attempts.lock().get_mut(&self.key) {
            change(held);
        }
        self.attempts.changes.send_replace(());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(held) = self.attempts.lock().remove(&self.key) {
            held.over.cancel();
        }
        self.attempts.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmarket::B256;

    fn key(task: u8, attempt: u32) -> AttemptKey {
        AttemptKey { task_id: TaskId(B256::repeat_byte(task)), attempt }
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let attempts = Attempts::new();
        let first = attempts.reserve(key(1, 2), 2).unwrap_or_else(|_| panic!("no place"));
        assert!(matches!(attempts.reserve(key(1, 2), 2), Err(NoPlace::Looking)));
        assert!(matches!(attempts.reserve(key(1, 1), 2), Err(NoPlace::Newer(2))));
        assert!(matches!(attempts.reserve(key(1, 3), 2), Err(NoPlace::Older(older)) if older == key(1, 2)));
        let second = attempts.reserve(key(2, 1), 2);
        assert!(second.is_ok());
        assert!(matches!(attempts.reserve(key(3, 1), 2), Err(NoPlace::NoSlot)));
        assert_eq!(attempts.held(), [], "what is only looked at is not told");
        first.leave_slot(Phase::Uploading);
        assert!(attempts.reserve(key(3, 1), 2).is_ok());
        let over = attempts.call_off(&key(1, 2)).unwrap();
        assert!(first.called_off.is_cancelled() && !over.is_cancelled());
        drop(first);
        assert!(over.is_cancelled());
        assert_eq!(attempts.call_off(&key(1, 2)).map(drop), None);
    }
}
