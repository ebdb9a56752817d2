//! How much API keys may store: the bytes on their way, counted until the store counts them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use artifact::Digest;
use store::KeyId;

/// The bytes on their way here, of each key that has any.
#[derive(Debug, Default)]
pub(super) struct Spaces(Mutex<HashMap<KeyId, u64>>);

/// The account of one upload. What it was charged is given back when it is dropped: by then the store counts it, or it is not kept.
///
/// The store has the last word; this breaks off in time what could not be kept.
#[derive(Debug)]
pub(crate) struct Space(Option<Account>);

#[derive(Debug)]
struct Account {
    spaces: Arc<Spaces>,
    owner: KeyId,
    /// What the key's uploads may add in all, as far as was known when this one began.
    left: u64,
    charged: u64,
}

impl Space {
    /// An account without a bound.
    pub(crate) fn unbounded() -> Self {
        Self(None)
    }

    pub(super) fn new(spaces: Arc<Spaces>, owner: KeyId, left: u64) -> Self {
        Self(Some(Account { spaces, owner, left, charged: 0 }))
    }

    /// Whether so many more bytes would fit now.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.0
            .as_ref()
            .is_none_or(|account| account.spaces.of(&account.owner, |sum| fits(*sum, bytes, account.left)))
    }
}

impl super::Account for Space {
    fn charge(&mut self, came: u64) -> bool {
        let Some(Account { spaces, owner, left, charged }) = &mut self.0 else { return true };
        let is_charged = spaces.of(owner, |sum| {
            let fits = fits(*sum, came, *left);
            *sum += if fits { came } else { 0 };
            fits
        });
        *charged += if is_charged { came } else { 0 };
        is_charged
    }

    /// The store counts it now.
    fn stored(&mut self, _: Digest) {
        self.0 = None;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.spaces.of(&self.owner, |sum| *sum = sum.saturating_sub(self.charged));
    }
}

impl Spaces {
    fn of<T>(&self, owner: &KeyId, look: impl FnOnce(&mut u64) -> T) -> T {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = sums.entry(owner.clone()).or_default();
        let seen = look(sum);
        if *sum == 0 {
            sums.remove(owner);
        }
        seen
    }
}

fn fits(sum: u64, bytes: u64, left: u64) -> bool {
    sum.saturating_add(bytes) <= left
}

#[cfg(test)]
mod tests {
    use super::super::Account as _;
    use super::*;

    #[test]
    fn uploads_of_one_key_share_its_room() {
        let spaces = Arc::new(Spaces::default());
        let of = |key: &str| Space::new(Arc::clone(&spaces), KeyId::of_api_key(key), 10);
        let (mut first, mut second, mut other) = (of("a"), of("a"), of("b"));
        assert!(first.charge(6) && !second.charge(5) && second.charge(4) && other.charge(10));
        assert!(!second.has_room(1));
        drop(first);
        assert!(second.has_room(6) && !second.has_room(7));
        drop((second, other));
        assert!(spaces.0.lock().unwrap().is_empty());
        assert!(Space::unbounded().charge(u64::MAX));
    }
}
