//! The live index of what hosts offer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use taskmarket::{Address, B256, Bytes32, ContentHash};

use crate::capability::Capability;
use crate::free::{self, ClassId, FamilyId, Pool, Queue, Rank};
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
    families: BTreeMap<FamilyId, Family>,
    family_ids: BTreeMap<Capability, FamilyId>,
    /// Families by each word of their GPUs' names.
    by_word: HashMap<String, BTreeSet<FamilyId>>,
    free: Pool,
    /// Free hosts by each model that they have loaded.
    warm: HashMap<ContentHash, Pool>,
    /// Free hosts by each model that their engines serve.
    served: HashMap<String, Pool>,
    totals: Totals,
    next_id: u64,
    /// Counts reservations, to tell who was given a task the longest ago.
    given: u64,
}

/// Hosts of equal capability.
#[derive(Debug)]
struct Class {
    capability: Capability,
    family: FamilyId,
    members: usize,
}

/// Classes that differ in their GPUs' memory alone: hosts report it a little differently, and a choice looks at each family.
#[derive(Debug)]
struct Family {
    capability: Capability,
    has_gpu: bool,
    classes: usize,
}

#[derive(Debug, Clone)]
struct Node {
    class: ClassId,
    family: FamilyId,
    gpus: u32,
    accepting: bool,
    slots: u32,
    /// By its own word.
    reported: u32,
    /// Slots given out here, and not given back.
    reserved: u32,
    /// Those of them that the last report cannot know of.
    fresh: u32,
    warm: Vec<ContentHash>,
    /// Sorted, each once.
    served: Vec<String>,
    given: u64,
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

    fn serves(&self, need: &Need) -> bool {
        need.served.as_ref().is_none_or(|model| self.served.binary_search(model).is_ok())
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
        let capability = Capability::of(&offer);
        let gpus = capability.gpu_count();
        let (class, family) = self.join(capability);
        let mut node = Node {
            class,
            family,
            gpus,
            accepting: offer.accepting,
            slots: offer.slots,
            reported: offer.busy,
            reserved: before.as_ref().map_or(0, |node| node.reserved),
            fresh: 0,
            warm: Vec::new(),
            served: offer.served,
            given: before.as_ref().map_or(0, |node| node.given),
        };
        node.set_warm(offer.warm);
        node.served.sort_unstable();
        node.served.dedup();
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
    /// It takes one look at each family of hosts that may fit, and one at each host that would come before the choice but is excluded,
    /// or the first of a class with too little memory.
    pub fn pick(&self, need: &Need, excluded: impl Fn(&NodeKey) -> bool) -> Option<NodeKey> {
        if let Some(model) = need.served() {
            // An engine that serves it has it loaded, so that none of them is warmer than others.
            return self.choose(need, self.served.get(model).into_iter().flatten(), &excluded);
        }
        let warm = need.model.and_then(|model| self.warm.get(&model)).into_iter().flatten();
        let best = self.choose(need, warm, &excluded);
        best.or_else(|| self.choose(need, self.candidates(need), &excluded))
    }

    /// The hosts of a provider that fit a task, whether or not they are free.
    pub fn fitting(&self, provider: Address, need: &Need) -> impl Iterator<Item = NodeKey> {
        let first = NodeKey { provider, node_id: Bytes32(B256::ZERO) };
        let last = NodeKey { provider, node_id: Bytes32(B256::repeat_byte(0xff)) };
        self.nodes.range(first..=last).filter(|(_, node)| self.fits(node, need)).map(|(key, _)| *key)
    }

    /// The hosts that fit a task, whether or not they take work and are free, in the order of their keys.
    pub fn able(&self, need: &Need) -> impl Iterator<Item = NodeKey> {
        self.nodes.iter().filter(|(_, node)| self.fits(node, need)).map(|(key, _)| *key)
    }

    /// The hosts that fit a task and take work, whether or not they are free, in the order of their keys.
    pub fn accepting(&self, need: &Need) -> impl Iterator<Item = NodeKey> {
        self.nodes.iter().filter(|(_, node)| node.accepting && self.fits(node, need)).map(|(key, _)| *key)
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
            if let Some(model) = need.served().filter(|_| !node.serves(need)) {
                exclusions.push(Exclusion::NotServed { model: model.to_owned() });
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
        let runtimes = self.families.values().flat_map(|family| family.capability.runtimes()).copied();
        Totals { runtimes: runtimes.collect(), ..self.totals.clone() }
    }

    /// The free hosts of the families that may fit.
    fn candidates(&self, need: &Need) -> impl Iterator<Item = (&FamilyId, &Queue)> {
        let named = need.words.iter().map(|word| self.by_word.get(word)).min_by_key(|families| {
            // A word that no host has leaves none.
            families.map_or(0, BTreeSet::len)
        });
        let all = named.is_none().then_some(&self.free);
        let named = named.flatten().into_iter().flatten().filter_map(|id| self.free.get_key_value(id));
        all.into_iter().flatten().chain(named)
    }

    /// The best free host of the families that fit.
    fn choose<'a>(
        &'a self,
        need: &Need,
        families: impl Iterator<Item = (&'a FamilyId, &'a Queue)>,
        excluded: impl Fn(&NodeKey) -> bool,
    ) -> Option<NodeKey> {
        let mut best: Option<(bool, Rank)> = None;
        for (id, queue) in families {
            let Some(family) = self.families.get(id) else { continue };
            let wastes_gpu = need.gpu_count == 0 && family.has_gpu;
            let is_better =
                |rank: &Rank, best: Option<(bool, Rank)>| best.is_none_or(|best| (wastes_gpu, *rank) < best);
            let mut may_fit = None;
            for (first, class) in queue.firsts() {
                if !is_better(first, best) || !*may_fit.get_or_insert_with(|| family.capability.may_fit(need))
                {
                    break;
                }
                if !self.classes.get(class).is_some_and(|class| class.capability.fits(need)) {
                    continue;
                }
                let better = queue.of_class(*class).take_while(|rank| is_better(rank, best));
                let found = better.into_iter().find(|rank| !excluded(&rank.key));
                best = found.map(|rank| (wastes_gpu, *rank)).or(best);
            }
        }
        best.map(|(_, rank)| rank.key)
    }

    fn fits(&self, node: &Node, need: &Need) -> bool {
        node.serves(need) && self.classes.get(&node.class).is_some_and(|class| class.capability.fits(need))
    }

    fn change(&mut self, key: &NodeKey, change: impl FnOnce(&mut Node)) {
        let Some(node) = self.nodes.get_mut(key) else { return };
        count_out(&mut self.totals, node);
        remove_free(&mut self.free, &mut self.warm, &mut self.served, *key, node);
        change(node);
        insert_free(&mut self.free, &mut self.warm, &mut self.served, *key, node);
        count_in(&mut self.totals, node);
    }

    /// Takes a host out of everything but its class's count of members.
    fn take_out(&mut self, key: &NodeKey) -> Option<Node> {
        let node = self.nodes.remove(key)?;
        count_out(&mut self.totals, &node);
        remove_free(&mut self.free, &mut self.warm, &mut self.served, *key, &node);
        Some(node)
    }

    /// The reverse of [`Self::take_out`].
    fn put_in(&mut self, key: NodeKey, node: Node) {
        insert_free(&mut self.free, &mut self.warm, &mut self.served, key, &node);
        count_in(&mut self.totals, &node);
        self.nodes.insert(key, node);
    }

    /// Counts a host into the class of its capability, which comes with its first member, as its family does with its first class.
    fn join(&mut self, capability: Capability) -> (ClassId, FamilyId) {
        if let Some(id) = self.class_ids.get(&capability)
            && let Some(class) = self.classes.get_mut(id)
        {
            class.members += 1;
            return (*id, class.family);
        }
        let family = self.join_family(capability.without_memory());
        self.next_id += 1;
        self.class_ids.insert(capability.clone(), self.next_id);
        self.classes.insert(self.next_id, Class { capability, family, members: 1 });
        (self.next_id, family)
    }

    /// Counts a class into its family.
    fn join_family(&mut self, capability: Capability) -> FamilyId {
        let id = *self.family_ids.entry(capability.clone()).or_insert_with(|| {
            self.next_id += 1;
            self.next_id
        });
        let family = self.families.entry(id).or_insert_with(|| {
            for word in capability.words() {
                self.by_word.entry(word.clone()).or_default().insert(id);
            }
            Family { has_gpu: capability.gpu_count() > 0, capability, classes: 0 }
        });
        family.classes += 1;
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
            self.leave_family(class.family);
        }
    }

    /// Counts a class out of its family, which goes with its last class.
    fn leave_family(&mut self, id: FamilyId) {
        let Some(family) = self.families.get_mut(&id) else { return };
        family.classes -= 1;
        if family.classes > 0 {
            return;
        }
        if let Some(family) = self.families.remove(&id) {
            self.family_ids.remove(&family.capability);
            for word in family.capability.words() {
                if let Some(families) = self.by_word.get_mut(word) {
                    families.remove(&id);
                    if families.is_empty() {
                        self.by_word.remove(word);
                    }
                }
            }
        }
    }
}

fn count_in(totals: &mut Totals, node: &Node) {
    totals.nodes += 1;
    totals.slots += u64::from(node.slots);
    totals.busy += u64::from(node.busy().min(node.slots));
    totals.gpus += u64::from(node.gpus);
}

fn count_out(totals: &mut Totals, node: &Node) {
    totals.nodes -= 1;
    totals.slots -= u64::from(node.slots);
    totals.busy -= u64::from(node.busy().min(node.slots));
    totals.gpus -= u64::from(node.gpus);
}

/// Adds a host to those that can be chosen, if it is free.
fn insert_free(
    all: &mut Pool,
    warm: &mut HashMap<ContentHash, Pool>,
    served: &mut HashMap<String, Pool>,
    key: NodeKey,
    node: &Node,
) {
    if !node.is_free() {
        return;
    }
    let rank = node.rank(key);
    free::insert(all, node.family, node.class, rank);
    for model in &node.warm {
        free::insert(warm.entry(*model).or_default(), node.family, node.class, rank);
    }
    for model in &node.served {
        free::insert(served.entry(model.clone()).or_default(), node.family, node.class, rank);
    }
}

/// Removes a host from those that can be chosen, if it is free.
fn remove_free(
    all: &mut Pool,
    warm: &mut HashMap<ContentHash, Pool>,
    served: &mut HashMap<String, Pool>,
    key: NodeKey,
    node: &Node,
) {
    if !node.is_free() {
        return;
    }
    let rank = node.rank(key);
    free::remove(all, node.family, node.class, &rank);
    for model in &node.warm {
        let Some(pool) = warm.get_mut(model) else { continue };
        free::remove(pool, node.family, node.class, &rank);
        if pool.is_empty() {
            warm.remove(model);
        }
    }
    for model in &node.served {
        let Some(pool) = served.get_mut(model) else { continue };
        free::remove(pool, node.family, node.class, &rank);
        if pool.is_empty() {
            served.remove(model);
        }
    }
}
