//! Places that peers take, so many each: of what each connection costs, one address has no more than its share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::network;

/// Places by address; of IPv6, by /64 network.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    max: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    network: IpAddr,
    places: Places,
}

impl Places {
    /// So many places for each; 0 for any number.
    pub(crate) fn new(max: usize) -> Self {
        let max = if max == 0 { usize::MAX } else { max };
        Self { max, taken: Arc::default() }
    }

    /// Takes a place for a peer; `None` where its places are all taken.
    pub(crate) fn take(&self, peer: IpAddr) -> Option<Place> {
        let network = network(peer);
        let mut taken = self.lock();
        let count = taken.entry(network).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Place { network, places: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(count) = taken.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_its_own_places() {
        let places = Places::new(2);
        let take = |text: &str| places.take(text.parse().unwrap());
        let first = take("2001:db8::1");
        let second = take("2001:db8::2");
        assert!(first.is_some() && second.is_some());
        assert!(take("2001:db8::3").is_none(), "the /64 is full");
        assert!(take("2001:db8:0:1::1").is_some() && take("192.0.2.1").is_some());
        drop(first);
        assert!(take("2001:db8::3").is_some());
        drop(second);
        assert!(places.lock().is_empty(), "nothing is left of who left");
        assert!(Places::new(0).take("192.0.2.1".parse().unwrap()).is_some());
    }
}
