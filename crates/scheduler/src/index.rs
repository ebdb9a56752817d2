//! The live index of what hosts offer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use taskmarket::{Address, B256, Bytes32, ContentHash};

use crate::capability::Capability;
use crate::{Exclusion, Need, NodeKey, Offer, Totals};

/// The live index of what hosts offer.
///
/// A host is as busy as it says itself, plus what was [reserved](Self::reserve) since it said so; but never less than all that is
/// reserved, for its word may have been on the way when a task was.
#[derive(Debug, Default)]
pub struct Index {
    nodes: BTreeMap<NodeKey, Node>,
    classes: BTreeMap<ClassId, Class>,
    class_ids: BTreeMap<Capability, ClassId>,
    /// Classes by each word of their GPUs' names.
    by_word: HashMap<String, BTreeSet<ClassId>>,
    /// Free hosts by each model that they have loaded.
    warm: HashMap<ContentHash, BTreeMap<ClassId, BTreeSet<Rank>>>,
    totals: Totals,
    next_class: u64,
    /// Counts reservations, to tell who was given a task the longest ago.
    given: u64,
}

type ClassId = u64;

/// Hosts of equal capability.
#[derive(Debug)]
struct Class {
    capability: Capability,
    has_gpu: bool,
    members: usize,
    free: BTreeSet<Rank>,
}

#[derive(Debug, Clone)]
struct Node {
    class: ClassId,
    accepting: bool,
    slots: u32,
    /// By its own word.
    reported: u32,
    /// Slots given out here, and not given back.
    reserved: u32,
    /// Those of them that the last report cannot know of.
    fresh: u32,
    warm: Vec<ContentHash>,
    given: u64,
}

/// A free host's place in the order of choice: the least is taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    load: u64,
    given: u64,
    key: NodeKey,
}

impl Node {
    fn busy(&self) -> u32 {
        self.reported.saturating_add(self.fresh).max(self.reserved)
    }

    fn is_free(&self) -> bool {
        self.accepting && self.busy() < self.slots
    }

    fn rank(&self, key: NodeKey) -> Rank {
        // The used share of the slots, in units of 2^-32: as an integer it orders totally, and equal shares are equal.
        let load = (u64::from(self.busy()) << 32) / u64::from(self.slots.max(1));
        Rank { load, given: self.given, key }
    }

    fn set_warm(&mut self, warm: Vec<ContentHash>) {
        self.warm = warm;
        self.warm.sort_unstable();
        self.warm.dedup();
    }
}

impl Index {
    /// An index without hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host, or replaces what it offers. Reservations stay.
    pub fn upsert(&mut self, offer: Offer) {
        let before = self.take_out(&offer.key);
        let mut node = Node {
            class: self.join(Capability::of(&offer)),
            accepting: offer.accepting,
            slots: offer.slots,
            reported: offer.busy,
            reserved: before.as_ref().map_or(0, |node| node.reserved),
            fresh: 0,
            warm: Vec::new(),
            given: before.as_ref().map_or(0, |node| node.given),
        };
        node.set_warm(offer.warm);
        self.put_in(offer.key, node);
        // Joined before it is left, so that a class does not go and come when a host only refreshes its offer.
        if let Some(before) = before {
            self.leave(before.class);
        }
    }

    /// Removes a host with its reservations. `false` if it is not there.
    pub fn remove(&mut self, key: &NodeKey) -> bool {
        let Some(node) = self.take_out(key) else { return false };
        self.leave(node.class);
        true
    }

    /// Whether a host is there.
    pub fn contains(&self, key: &NodeKey) -> bool {
        self.nodes.contains_key(key)
    }

    /// Reserves a slot. `false` if the host is not there, or takes no tasks, or has no slot free.
    pub fn reserve(&mut self, key: &NodeKey) -> bool {
        if !self.nodes.get(key).is_some_and(Node::is_free) {
            return false;
        }
        self.given += 1;
        let given = self.given;
        self.change(key, |node| {
            node.reserved += 1;
            node.fresh += 1;
            node.given = given;
        });
        true
    }

    /// Gives a reserved slot back; does nothing where none is reserved.
    pub fn release(&mut self, key: &NodeKey) {
        self.change(key, |node| {
            node.reserved = node.reserved.saturating_sub(1);
            node.fresh = node.fresh.saturating_sub(1);
        });
    }

    /// Takes a host's word on how busy it is and which models it has loaded; does nothing if the host is not there.
    pub fn set_load(&mut self, key: &NodeKey, busy: u32, slots: u32, warm: Vec<ContentHash>) {
        self.change(key, |node| {
            node.reported = busy;
            node.fresh = 0;
            node.slots = slots;
            node.set_warm(warm);
        });
    }

    /// Takes a host's word on whether it takes tasks; does nothing if the host is not there.
    pub fn set_accepting(&mut self, key: &NodeKey, accepting: bool) {
        self.change(key, |node| node.accepting = accepting);
    }

    /// The host to give a task to, if any fits that is free and not excluded. Nothing is reserved by this.
    ///
    /// It takes one look at each class of hosts that may fit, and one at each excluded host that would come before the choice.
    pub fn pick(&self, need: &Need, excluded: impl Fn(&NodeKey) -> bool) -> Option<NodeKey> {
        let warm = need.model.and_then(|model| self.warm.get(&model)).into_iter().flatten();
        let warm = warm.filter_map(|(id, free)| Some((self.classes.get(id)?, free)));
        let best = choose(need, warm, &excluded);
        best.or_else(|| choose(need, self.candidates(need).map(|class| (class, &class.free)), &excluded))
    }

    /// The hosts of a provider that fit a task, whether or not they are free.
    pub fn fitting(&self, provider: Address, need: &Need) -> impl Iterator<Item = NodeKey> {
        let first = NodeKey { provider, node_id: Bytes32(B256::ZERO) };
        let last = NodeKey { provider, node_id: Bytes32(B256::repeat_byte(0xff)) };
        self.nodes.range(first..=last).filter(|(_, node)| self.class_fits(node, need)).map(|(key, _)| *key)
    }

    /// What stands between a task and each of the first `limit` hosts, in the order of their keys. Nothing, for those that could have it now.
    pub fn explain(
        &self,
        need: &Need,
        excluded: impl Fn(&NodeKey) -> bool,
        limit: usize,
    ) -> Vec<(NodeKey, Vec<Exclusion>)> {
        let explain = |(key, node): (&NodeKey, &Node)| {
            let mut exclusions = Vec::new();
            if excluded(key) {
                exclusions.push(Exclusion::NotOffered);
            }
            if !node.accepting {
                exclusions.push(Exclusion::NotAccepting);
            }
            if let Some(class) = self.classes.get(&node.class) {
                exclusions.extend(class.capability.exclusions(need));
            }
            if node.busy() >= node.slots {
                exclusions.push(Exclusion::NoFreeSlot { slots: node.slots });
            }
            (*key, exclusions)
        };
        self.nodes.iter().take(limit).map(explain).collect()
    }

    /// What all hosts offer together.
    pub fn totals(&self) -> Totals {
        let runtimes = self.classes.values().flat_map(|class| class.capability.runtimes()).copied();
        Totals { runtimes: runtimes.collect(), ..self.totals.clone() }
    }

    /// The classes that may fit.
    fn candidates(&self, need: &Need) -> impl Iterator<Item = &Class> {
        let named = need.words.iter().map(|word| self.by_word.get(word)).min_by_key(|classes| {
            // A word that no host has leaves none.
            classes.map_or(0, BTreeSet::len)
        });
        let all = named.is_none().then(|| self.classes.values());
        let named = named.flatten().into_iter().flatten().filter_map(|id| self.classes.get(id));
        all.into_iter().flatten().chain(named)
    }

    fn class_fits(&self, node: &Node, need: &Need) -> bool {
        self.classes.get(&node.class).is_some_and(|class| class.capability.fits(need))
    }

    fn change(&mut self, key: &NodeKey, change: impl FnOnce(&mut Node)) {
        if let Some(mut node) = self.take_out(key) {
            change(&mut node);
            self.put_in(*key, node);
        }
    }

    /// Takes a host out of everything but its class's count of members.
    fn take_out(&mut self, key: &NodeKey) -> Option<Node> {
        let node = self.nodes.remove(key)?;
        let gpus = self.classes.get(&node.class).map_or(0, |class| class.capability.gpu_count());
        self.totals.nodes -= 1;
        self.totals.slots -= u64::from(node.slots);
        self.totals.busy -= u64::from(node.busy().min(node.slots));
        self.totals.gpus -= u64::from(gpus);
        if node.is_free() {
            self.remove_free(&node, &node.rank(*key));
        }
        Some(node)
    }

    /// The reverse of [`Self::take_out`].
    fn put_in(&mut self, key: NodeKey, node: Node) {
        let gpus = self.classes.get(&node.class).map_or(0, |class| class.capability.gpu_count());
        self.totals.nodes += 1;
        self.totals.slots += u64::from(node.slots);
        self.totals.busy += u64::from(node.busy().min(node.slots));
        self.totals.gpus += u64::from(gpus);
        if node.is_free() {
            self.insert_free(&node, node.rank(key));
        }
        self.nodes.insert(key, node);
    }

    fn insert_free(&mut self, node: &Node, rank: Rank) {
        if let Some(class) = self.classes.get_mut(&node.class) {
            class.free.insert(rank);
        }
        for model in &node.warm {
            self.warm.entry(*model).or_default().entry(node.class).or_default().insert(rank);
        }
    }

    fn remove_free(&mut self, node: &Node, rank: &Rank) {
        if let Some(class) = self.classes.get_mut(&node.class) {
            class.free.remove(rank);
        }
        for model in &node.warm {
            let Some(by_class) = self.warm.get_mut(model) else { continue };
            if let Some(free) = by_class.get_mut(&node.class) {
                free.remove(rank);
                if free.is_empty() {
                    by_class.remove(&node.class);
                }
            }
            if by_class.is_empty() {
                self.warm.remove(model);
            }
        }
    }

    /// Counts a host into the class of its capability, which comes with its first member.
    fn join(&mut self, capability: Capability) -> ClassId {
        let id = *self.class_ids.entry(capability.clone()).or_insert_with(|| {
            self.next_class += 1;
            self.next_class
        });
        let class = self.classes.entry(id).or_insert_with(|| {
            for word in capability.words() {
                self.by_word.entry(word.clone()).or_default().insert(id);
            }
            Class { has_gpu: capability.gpu_count() > 0, capability, members: 0, free: BTreeSet::new() }
        });
        class.members += 1;
        id
    }

    /// Counts a host out of its class, which goes with its last member.
    fn leave(&mut self, id: ClassId) {
        let Some(class) = self.classes.get_mut(&id) else { return };
        class.members -= 1;
        if class.members > 0 {
            return;
        }
        if let Some(class) = self.classes.remove(&id) {
            self.class_ids.remove(&class.capability);
            for word in class.capability.words() {
                if let Some(classes) = self.by_word.get_mut(word) {
                    classes.remove(&id);
                    if classes.is_empty() {
                        self.by_word.remove(word);
                    }
                }
            }
        }
    }
}

/// The best free host of the classes that fit.
fn choose<'a>(
    need: &Need,
    classes: impl Iterator<Item = (&'a Class, &'a BTreeSet<Rank>)>,
    excluded: impl Fn(&NodeKey) -> bool,
) -> Option<NodeKey> {
    let mut best = None;
    for (class, free) in classes {
        let wastes_gpu = need.gpu_count == 0 && class.has_gpu;
        let is_better = |rank: &Rank| best.is_none_or(|best| (wastes_gpu, *rank) < best);
        if !free.first().is_some_and(is_better) || !class.capability.fits(need) {
            continue;
        }
        let first = free.iter().take_while(|rank| is_better(rank)).find(|rank| !excluded(&rank.key));
        best = first.map(|rank| (wastes_gpu, *rank)).or(best);
    }
    best.map(|(_, rank)| rank.key)
}
