//! The network: it delays, reorders, repeats, loses and parts, as the dice say.

use std::collections::BTreeMap;

use crate::context::{Dice, Millis, Party};
use crate::coverage::{Coverage, Fault};
use crate::scenario::{FAULTS_END, Scenario};

/// Delay of a message on a good day, in milliseconds.
const DELAY: std::ops::RangeInclusive<Millis> = 1..=40;
/// Delay of one that is held up.
const LONG_DELAY: std::ops::RangeInclusive<Millis> = 1_000..=15_000;

/// A party that nobody reaches for a while.
#[derive(Debug)]
struct Partition {
    party: Party,
    from: Millis,
    until: Millis,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Network {
    drop: f64,
    duplicate: f64,
    hold_up: f64,
    partitions: Vec<Partition>,
    /// The latest sent message that arrived, for each pair.
    latest: BTreeMap<(Party, Party), u64>,
}

impl Network {
    pub(crate) fn new(scenario: &Scenario, dice: &mut Dice) -> Self {
        let mut network =
            Self { drop: 0.0, duplicate: 0.0, hold_up: 0.0, partitions: Vec::new(), latest: BTreeMap::new() };
        if scenario.quiet {
            return network;
        }
        network.drop = dice.pick(0..=15) as f64 / 100.0;
        network.duplicate = dice.pick(0..=15) as f64 / 100.0;
        network.hold_up = dice.pick(0..=15) as f64 / 100.0;
        for _ in 0..dice.pick(0..=4) {
            let from = dice.pick(5_000..=FAULTS_END);
            let party = if dice.chance(0.3) {
                Party::Relay(dice.index(scenario.relays))
            } else {
                Party::Host(dice.index(scenario.hosts))
            };
            network.partitions.push(Partition { party, from, until: from + dice.pick(1_000..=120_000) });
        }
        network
    }

    /// After which delays a message arrives: never, once, or twice.
    pub(crate) fn carry(
        &self,
        now: Millis,
        from: Party,
        to: Party,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> Vec<Millis> {
        let parted = |partition: &Partition| {
            [from, to].contains(&partition.party) && (partition.from..partition.until).contains(&now)
        };
        if self.partitions.iter().any(parted) {
            coverage.count(Fault::Partitioned);
            return Vec::new();
        }
        if dice.chance(self.drop) {
            coverage.count(Fault::Dropped);
            return Vec::new();
        }
        let mut delays = vec![self.delay(dice, coverage)];
        if dice.chance(self.duplicate) {
            coverage.count(Fault::Duplicated);
            delays.push(self.delay(dice, coverage));
        }
        delays
    }

    fn delay(&self, dice: &mut Dice, coverage: &mut Coverage) -> Millis {
        if dice.chance(self.hold_up) {
            coverage.count(Fault::Delayed);
            dice.pick(LONG_DELAY)
        } else {
            dice.pick(DELAY)
        }
    }

    /// Whether an arriving message was sent before one that is there already.
    pub(crate) fn overtook(&mut self, from: Party, to: Party, sent: u64) -> bool {
        let latest = self.latest.entry((from, to)).or_default();
        let overtaken = sent < *latest;
        *latest = sent.max(*latest);
        overtaken
    }
}
