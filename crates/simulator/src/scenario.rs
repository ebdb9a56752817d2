//! What a seed decides beforehand: how many take part, what they own, how their clocks go, and when they crash. And their keys.

use std::sync::LazyLock;

use scheduler::{Device, NodeKey, Offer};
use taskmarket::{Address, B256, Bytes32, CLOCK_TOLERANCE_SECS, Domain, Message, Runtime, Signed};
use wallet::Wallet;

use crate::context::{Dice, Millis};

/// Of so many seeds one is quiet: nothing fails and everybody is honest.
const QUIET_EVERY: u64 = 6;
/// Crashes and partitions begin before this, in milliseconds.
pub(crate) const FAULTS_END: Millis = 600_000;
/// The most hosts, and the most requesters.
const MAX_PARTIES: usize = 4;

static WALLETS: LazyLock<Vec<Wallet>> = LazyLock::new(|| {
    let wallet = |number: usize| Wallet::from_hex(&format!("{number:064x}"));
    let wallets: Result<_, _> = (1..=2 * MAX_PARTIES + 1).map(wallet).collect();
    wallets.expect("small numbers above zero are private keys")
});

/// A key of somebody in the simulation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key(usize);

impl Key {
    pub(crate) const ARBITER: Self = Self(0);

    pub(crate) fn provider(index: usize) -> Self {
        Self(1 + index)
    }

    pub(crate) fn requester(index: usize) -> Self {
        Self(1 + MAX_PARTIES + index)
    }

    pub(crate) fn address(self) -> Address {
        WALLETS[self.0].address()
    }

    pub(crate) fn sign<M: Message>(self, message: &M) -> Signed<M> {
        let signed = WALLETS[self.0].sign(message, &Domain::UNSETTLED);
        signed.expect("the parties name themselves as signers, and the keys are valid")
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) quiet: bool,
    pub(crate) relays: usize,
    pub(crate) hosts: usize,
    pub(crate) requesters: usize,
    /// The hosts' keys and what they offer.
    offers: Vec<(Key, Offer)>,
}

impl Scenario {
    pub(crate) fn new(seed: u64, dice: &mut Dice) -> Self {
        let hosts = dice.pick(2..=MAX_PARTIES as u64) as usize;
        Self {
            quiet: seed.is_multiple_of(QUIET_EVERY),
            relays: dice.pick(1..=3) as usize,
            hosts,
            requesters: dice.pick(1..=2) as usize,
            offers: (0..hosts).map(|index| offer(index, dice)).collect(),
        }
    }

    /// What a host offers.
    pub(crate) fn offer(&self, host: usize) -> &Offer {
        &self.offers[host].1
    }

    /// The key of a host's provider.
    pub(crate) fn key(&self, host: usize) -> Key {
        self.offers[host].0
    }

    /// How far a relay's clock is ahead, in seconds.
    pub(crate) fn relay_skew(&self, dice: &mut Dice) -> i64 {
        if self.quiet { 0 } else { dice.pick(0..=6) as i64 - 3 }
    }

    /// How far the clock of somebody else is ahead, in seconds: mostly within what relays tolerate, sometimes beyond.
    pub(crate) fn skew(&self, dice: &mut Dice) -> i64 {
        let tolerance = CLOCK_TOLERANCE_SECS;
        let off = match dice.pick(0..=9) {
            _ if self.quiet => 0,
            0..=4 => 0,
            5..=7 => dice.pick(1..=tolerance - 60),
            _ => dice.pick(tolerance + 20..=2 * tolerance),
        } as i64;
        if dice.chance(0.5) { off } else { -off }
    }
}

/// What a host offers. The first has all that any task asks for; two hosts may be of one provider.
fn offer(index: usize, dice: &mut Dice) -> (Key, Offer) {
    let provider = Key::provider(if index == 3 { 1 } else { index });
    let gpu = Device { name: "NVIDIA A100-SXM4-80GB".into(), vram_mb: 81_920, is_gpu: true };
    let cpu = Device { name: "AMD EPYC".into(), vram_mb: 0, is_gpu: false };
    let whole = index == 0;
    let offer = Offer {
        key: NodeKey {
            provider: provider.address(),
            node_id: Bytes32(B256::with_last_byte(index as u8 + 1)),
        },
        devices: vec![if whole || dice.chance(0.5) { gpu } else { cpu }],
        runtimes: if whole || dice.chance(0.5) { Runtime::ALL.to_vec() } else { vec![Runtime::Wasm] },
        slots: dice.pick(1..=3) as u32,
        busy: 0,
        warm: Vec::new(),
        served: Vec::new(),
        accepting: true,
    };
    (provider, offer)
}
