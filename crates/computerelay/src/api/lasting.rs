//! What answers that last have in common: they take a seat, and end with the key that they were given to.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::KeyId;
use tokio::time::sleep;

use super::App;

/// How often the key of an answer that lasts is looked up again: it may have been revoked at another relay.
const LOOK_UP_EVERY: Duration = Duration::from_secs(15);

/// Waits until a key is good no more: it was revoked, at another relay at most [`LOOK_UP_EVERY`] ago, or has expired.
async fn lost(app: App, key: KeyId) {
    let mut revocations = app.access.keys.revocations();
    loop {
        let wait = match app.access.keys.good_for(&key, app.market.now()).await {
            Ok(None) => return,
            Ok(Some(left)) => left.min(LOOK_UP_EVERY),
            // Nobody is sent away for the store's trouble.
            Err(error) => {
                tracing::warn!(%error, %key, "the key of an answer that lasts was not looked up");
                LOOK_UP_EVERY
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            Ok(()) = revocations.changed() => {}
        }
    }
}

/// As [`lost`] of a key that an answer needs, for ever where it needs none.
pub(super) async fn lost_if(app: App, key: Option<KeyId>) {
    match key {
        Some(key) => lost(app, key).await,
        None => std::future::pending().await,
    }
}

/// Seats that are taken, of each.
#[derive(Debug)]
pub(super) struct Seats<K: Hash + Eq>(Arc<Mutex<HashMap<K, usize>>>);

/// A seat that is taken until this is dropped.
pub(super) struct Seat<K: Hash + Eq> {
    whose: K,
    seats: Seats<K>,
}

impl<K: Hash + Eq> Clone for Seats<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq> Default for Seats<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq + Clone> Seats<K> {
    /// Takes a seat, unless `max` are taken.
    pub(super) fn take(&self, whose: K, max: usize) -> Option<Seat<K>> {
        let mut taken = self.lock();
        let count = taken.entry(whose.clone()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Seat { whose, seats: self.clone() })
    }
}

impl<K: Hash + Eq> Seats<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(count) = taken.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_given_back() {
        let seats = Seats::default();
        let taken: Vec<_> = (0..3).map(|_| seats.take("a", 2)).collect();
        assert!(taken[1].is_some() && taken[2].is_none() && seats.take("b", 1).is_some());
        drop(taken);
        assert!(seats.lock().is_empty());
    }
}
