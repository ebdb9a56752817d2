//! What all parties of a run share: time, dice, the queue of what is to come, the store, the notes, and the oracle that watches.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use taskmarket::{TaskId, Timestamp};

use crate::coverage::{Coverage, Fault};
use crate::message::Message;
use crate::network::Network;
use crate::oracle::Oracle;
use crate::relay::{Answered, Committing};
use crate::scenario::Scenario;
use crate::store::Store;
use crate::world::Sabotage;

/// Simulated time since the start, in milliseconds.
pub(crate) type Millis = u64;

/// The first second of every run: 2026-01-01T00:00:00Z.
const EPOCH: u64 = 1_767_225_600;

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A relay, by its number.
    Relay(usize),
    /// A provider's host, by its number.
    Host(usize),
    /// A requester, by its number.
    Requester(usize),
    /// The arbiter.
    Arbiter,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relay(index) => write!(f, "relay {index}"),
            Self::Host(index) => write!(f, "host {index}"),
            Self::Requester(index) => write!(f, "requester {index}"),
            Self::Arbiter => f.write_str("arbiter"),
        }
    }
}

/// One line of a run's trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Note {
    /// Which step of the run.
    pub step: u64,
    /// When, in milliseconds since the start.
    pub at: u64,
    /// Whose doing, or who received.
    pub party: Party,
    /// The task that it is about, where it is about one.
    pub task: Option<TaskId>,
    /// What happened.
    pub what: &'static str,
    /// An attempt, version or generation, as the text needs it.
    pub number: u64,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, millis) = (self.at / 1000, self.at % 1000);
        write!(
            f,
            "{:>6} {secs:>5}.{millis:03}s {:<12} {} {}",
            self.step,
            self.party.to_string(),
            self.what,
            self.number
        )?;
        self.task.map_or(Ok(()), |task| write!(f, " of {:.10}", task.to_string()))
    }
}

/// Something that is to happen.
#[derive(Debug)]
pub(crate) enum Occurrence {
    /// A message arrives. `sent` is its place among all that were sent.
    Deliver { from: Party, to: Party, sent: u64, message: Message },
    /// An alarm that a party set in this life of it.
    Alarm { party: Party, life: u64, alarm: Alarm },
    /// The store takes a relay's change up.
    Commit(Box<Committing>),
    /// The store's answer reaches the relay.
    Committed(Box<Answered>),
    /// A party loses its memory, for so long.
    Crash { party: Party, down: Millis },
    /// It is back.
    Restart(Party),
    /// A task must have come to its end by now.
    Bound(TaskId),
}

/// What a party wanted to be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// To look around.
    Tick,
    /// An offer's time is over.
    OfferOver(u64),
    /// A computation is done.
    Computed(crate::message::AttemptKey),
    /// To send again what was not acknowledged.
    Retry(crate::message::AttemptKey),
    /// To publish a task, by its place in the requester's plan.
    Publish(usize),
    /// To look at a task of one's own.
    Look(usize),
}

/// Deterministic randomness.
pub(crate) struct Dice(Xoshiro256PlusPlus);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    pub(crate) fn pick(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.0.random_range(range)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.0.random_range(0..len)
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        self.0.random()
    }
}

/// See the module.
pub(crate) struct Context {
    pub(crate) now: Millis,
    pub(crate) step: u64,
    pub(crate) dice: Dice,
    pub(crate) scenario: Scenario,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) store: Store,
    pub(crate) oracle: Oracle,
    pub(crate) coverage: Coverage,
    pub(crate) notes: Vec<Note>,
    hasher: DefaultHasher,
    network: Network,
    queue: BTreeMap<(Millis, u64), Occurrence>,
    counter: u64,
}

impl Context {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut dice = Dice::new(seed);
        let scenario = Scenario::new(seed, &mut dice);
        let network = Network::new(&scenario, &mut dice);
        Self {
            now: 0,
            step: 0,
            dice,
            scenario,
            sabotage,
            store: Store::default(),
            oracle: Oracle::default(),
            coverage: Coverage::default(),
            notes: Vec::new(),
            hasher: DefaultHasher::new(),
            network,
            queue: BTreeMap::new(),
            counter: 0,
        }
    }

    /// A number that was not used before in this run.
    pub(crate) fn unique(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// The next thing to happen; time moves on to it.
    pub(crate) fn pop(&mut self) -> Option<Occurrence> {
        let ((at, _), occurrence) = self.queue.pop_first()?;
        self.now = at;
        self.step += 1;
        Some(occurrence)
    }

    pub(crate) fn after(&mut self, delay: Millis, occurrence: Occurrence) {
        let place = (self.now + delay, self.unique());
        self.queue.insert(place, occurrence);
    }

    pub(crate) fn alarm(&mut self, party: Party, life: u64, delay: Millis, alarm: Alarm) {
        self.after(delay, Occurrence::Alarm { party, life, alarm });
    }

    /// Gives a message to the network.
    pub(crate) fn send(&mut self, from: Party, to: Party, message: Message) {
        let delays = self.network.carry(self.now, from, to, &mut self.dice, &mut self.coverage);
        let sent = self.unique();
        for delay in delays {
            self.after(delay, Occurrence::Deliver { from, to, sent, message: message.clone() });
        }
    }

    /// Notes that a message arrived.
    pub(crate) fn arrived(&mut self, from: Party, to: Party, sent: u64, message: &Message) {
        if self.network.overtook(from, to, sent) {
            self.fault(Fault::Reordered);
        }
        self.note(to, message.task_id(), message.name(), sent);
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        self.coverage.count(fault);
    }

    pub(crate) fn note(&mut self, party: Party, task: Option<TaskId>, what: &'static str, number: u64) {
        let note = Note { step: self.step, at: self.now, party, task, what, number };
        note.hash(&mut self.hasher);
        self.notes.push(note);
    }

    /// What the whole trace comes to.
    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The time by a clock that is so many seconds ahead.
    pub(crate) fn clock(&self, ahead: i64) -> Timestamp {
        Timestamp::from_unix((EPOCH + self.now / 1000).saturating_add_signed(ahead))
    }

    /// Milliseconds from now until a time by the true clock.
    pub(crate) fn until(&self, time: Timestamp) -> Millis {
        (time.since(Timestamp::from_unix(EPOCH)) * 1000).saturating_sub(self.now)
    }

    /// Whether a rule of the driver is broken on purpose.
    pub(crate) fn is_sabotaged(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }
}
