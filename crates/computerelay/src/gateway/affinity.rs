//! Which host served a conversation last: it may still have the beginning in its cache.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use scheduler::NodeKey;

/// Conversations of one generation. One takes some 80 bytes.
const GENERATION: usize = 32_768;

/// Remembers the conversations of two generations: when the younger one is full, the older one is forgotten, so that what was used
/// lately stays.
#[derive(Debug, Default)]
pub(super) struct Affinity(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, NodeKey>,
    old: HashMap<u64, NodeKey>,
}

impl Affinity {
    /// The host that served this conversation last.
    pub(super) fn find(&self, conversation: u64) -> Option<NodeKey> {
        let generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.get(&conversation).or_else(|| generations.old.get(&conversation)).copied()
    }

    /// Remembers which host serves this conversation.
    pub(super) fn note(&self, conversation: u64, host: NodeKey) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.young.len() >= GENERATION && !generations.young.contains_key(&conversation) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(conversation, host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmarket::{Address, Bytes32};

    #[test]
    fn what_was_used_lately_is_remembered_and_memory_is_bounded() {
        let affinity = Affinity::default();
        let host =
            |byte: u8| NodeKey { provider: Address::repeat_byte(byte), node_id: Bytes32([byte; 32].into()) };
        affinity.note(0, host(1));
        affinity.note(1, host(2));
        affinity.note(1, host(3));
        assert_eq!(
            (affinity.find(0), affinity.find(1), affinity.find(2)),
            (Some(host(1)), Some(host(3)), None)
        );
        for conversation in 2..2 * GENERATION as u64 {
            affinity.note(0, host(1));
            affinity.note(conversation, host(4));
        }
        assert_eq!(affinity.find(0), Some(host(1)), "it is used all the time");
        assert_eq!(affinity.find(1), None);
        let generations = affinity.0.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
