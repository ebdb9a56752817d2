//! Free hosts, in the order in which they are chosen.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::NodeKey;

/// Names a class: the hosts of equal capability.
pub(crate) type ClassId = u64;
/// Names a family: the classes that differ in their GPUs' memory alone.
pub(crate) type FamilyId = u64;

/// A free host's place in the order of choice: the least is taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) load: u64,
    pub(crate) given: u64,
    pub(crate) key: NodeKey,
}

/// Free hosts by their families. None is empty.
pub(crate) type Pool = BTreeMap<FamilyId, Queue>;

/// Free hosts of a family.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    by_class: HashMap<ClassId, BTreeSet<Rank>>,
    /// The first of each class: so that a choice need not look at every class.
    firsts: BTreeSet<(Rank, ClassId)>,
}

impl Queue {
    /// The first host of each class, first of all first.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = &(Rank, ClassId)> {
        self.firsts.iter()
    }

    /// The hosts of a class, first one first.
    pub(crate) fn of_class(&self, class: ClassId) -> impl Iterator<Item = &Rank> {
        self.by_class.get(&class).into_iter().flatten()
    }

    fn insert(&mut self, class: ClassId, rank: Rank) {
        let ranks = self.by_class.entry(class).or_default();
        let first = ranks.first().copied();
        ranks.insert(rank);
        if first.is_none_or(|first| rank < first) {
            if let Some(first) = first {
                self.firsts.remove(&(first, class));
            }
            self.firsts.insert((rank, class));
        }
    }

    fn remove(&mut self, class: ClassId, rank: &Rank) {
        let Some(ranks) = self.by_class.get_mut(&class) else { return };
        let was_first = ranks.first() == Some(rank);
        ranks.remove(rank);
        if was_first {
            self.firsts.remove(&(*rank, class));
            self.firsts.extend(ranks.first().map(|first| (*first, class)));
        }
        if ranks.is_empty() {
            self.by_class.remove(&class);
        }
    }
}

/// Adds a host to a pool.
pub(crate) fn insert(pool: &mut Pool, family: FamilyId, class: ClassId, rank: Rank) {
    pool.entry(family).or_default().insert(class, rank);
}

/// Removes a host from a pool.
pub(crate) fn remove(pool: &mut Pool, family: FamilyId, class: ClassId, rank: &Rank) {
    let Some(queue) = pool.get_mut(&family) else { return };
    queue.remove(class, rank);
    if queue.by_class.is_empty() {
        pool.remove(&family);
    }
}
