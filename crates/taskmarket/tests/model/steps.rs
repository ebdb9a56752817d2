//! What may happen to a task, at random: who says what, right or wrong, and when.

use proptest::collection::vec;
use proptest::prelude::*;
use taskmarket::{
    Address, Amount, Bytes32, ContentHash, Domain, ReleaseReason, Task, TaskConfig, Timestamp, U256,
};

use crate::actors::{ACTORS, ARBITER, REQUESTER};
use crate::reference::Cause;

/// When each task is published.
pub(crate) const START: u64 = 1_800_000_000;

/// One thing that happens.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Wait(Wait),
    /// Somebody says something for the first time.
    Say {
        verb: Cause,
        who: Who,
        twist: Twist,
        salt: u8,
    },
    /// Something that was said before, taken or refused, is said again.
    Again(prop::sample::Index),
    /// The relay releases an attempt, off by so many.
    Release {
        attempt: i8,
        reason: ReleaseReason,
    },
    /// The relay ends the task as one that fails anywhere.
    Unworkable,
    /// Somebody says that a chain says something.
    Chain,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    Seconds(u64),
    /// Until time acts next, and so many seconds past it.
    Due(i64),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Who {
    /// Whose word it takes (where any provider will do: this one).
    Right(usize),
    Anybody(usize),
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Twist {
    Nothing,
    Attempt(i8),
    Hash,
    /// `issued_at` is so many seconds off.
    Clock(i64),
    /// The lease ends so many seconds after the latest that is allowed.
    Lease(i64),
    LeaseOver,
    Share,
    OtherTask,
    OtherDomain,
    /// Another key than the named one's.
    Forged(usize),
}

/// What the task is like.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) arbiter: bool,
    pub(crate) pinned: (bool, bool),
    pub(crate) max_attempts: u32,
    pub(crate) max_duration: u64,
    pub(crate) deadline_in: u64,
    pub(crate) windows: (u64, u64),
}

impl Shape {
    pub(crate) fn task(&self) -> Task {
        let pin = |pinned: bool, byte| if pinned { hash(byte) } else { ContentHash::UNPINNED };
        Task {
            requester: ACTORS[REQUESTER].address,
            model_cid: format!("artifact://{}", hash(1)).parse().unwrap(),
            model_hash: pin(self.pinned.0, 1),
            input_cid: format!("artifact://{}", hash(2)).parse().unwrap(),
            input_hash: pin(self.pinned.1, 2),
            config: TaskConfig {
                runtime: taskmarket::Runtime::Wasm,
                params: "{}".to_owned(),
                gpu_type: String::new(),
                gpu_count: 0,
                min_vram: 0,
                max_duration: self.max_duration,
                max_attempts: self.max_attempts,
            },
            token: Address::ZERO,
            budget: Amount(U256::from(100)),
            provider_stake: Amount::ZERO,
            dispute_bond: Amount::ZERO,
            deadline: Timestamp::from_unix(START + self.deadline_in),
            dispute_window: self.windows.0,
            arbiter_window: self.windows.1,
            arbiter: if self.arbiter { ACTORS[ARBITER].address } else { Address::ZERO },
            salt: Bytes32::default(),
        }
    }
}

pub(crate) const SETTLED: Domain = Domain { chain_id: 31337, verifying_contract: Address::repeat_byte(0x5e) };

pub(crate) fn hash(byte: u8) -> ContentHash {
    ContentHash(taskmarket::B256::repeat_byte(byte))
}

pub(crate) fn shapes() -> impl Strategy<Value = Shape> {
    let windows = (prop_oneof![Just(0), 1..4000_u64], 1..4000_u64);
    (prop::bool::weighted(0.8), any::<(bool, bool)>(), 1..6_u32, 1..1500_u64, 100..9000_u64, windows)
        .prop_map(|(arbiter, pinned, max_attempts, max_duration, deadline_in, windows)| Shape {
            arbiter,
            pinned,
            max_attempts,
            max_duration,
            deadline_in,
            windows,
        })
}

pub(crate) fn sequences() -> impl Strategy<Value = Vec<Step>> {
    vec(steps(), 1..60)
}

fn steps() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![
        12 => (0..60_u64).prop_map(Wait::Seconds),
        2 => (0..2000_u64).prop_map(Wait::Seconds),
        4 => (-1..2_i64).prop_map(Wait::Due),
        1 => (1..10_000_i64).prop_map(Wait::Due),
    ];
    let reason = prop_oneof![Just(ReleaseReason::SessionLost), Just(ReleaseReason::AttemptDropped)];
    prop_oneof![
        4 => wait.prop_map(Step::Wait),
        16 => (verbs(), whos(), twists(), 0..3_u8)
            .prop_map(|(verb, who, twist, salt)| Step::Say { verb, who, twist, salt }),
        3 => any::<prop::sample::Index>().prop_map(Step::Again),
        1 => (-1..2_i8, reason).prop_map(|(attempt, reason)| Step::Release { attempt, reason }),
        1 => Just(Step::Unworkable),
        1 => Just(Step::Chain),
    ]
}

fn verbs() -> impl Strategy<Value = Cause> {
    prop_oneof![
        2 => Just(Cause::Cancel),
        40 => Just(Cause::Accept),
        15 => Just(Cause::Fail),
        10 => Just(Cause::Proof),
        4 => Just(Cause::Approve),
        10 => Just(Cause::Dispute),
        8 => Just(Cause::Resolve),
    ]
}

fn whos() -> impl Strategy<Value = Who> {
    prop_oneof![4 => (2..5_usize).prop_map(Who::Right), 1 => (0..6_usize).prop_map(Who::Anybody)]
}

fn twists() -> impl Strategy<Value = Twist> {
    prop_oneof![
        20 => Just(Twist::Nothing),
        2 => prop_oneof![Just(-1), Just(1), Just(2)].prop_map(Twist::Attempt),
        1 => Just(Twist::Hash),
        2 => prop_oneof![Just(-301), Just(-300), Just(300), Just(301)].prop_map(Twist::Clock),
        2 => (-1..2_i64).prop_map(Twist::Lease),
        1 => Just(Twist::LeaseOver),
        1 => Just(Twist::Share),
        1 => Just(Twist::OtherTask),
        1 => Just(Twist::OtherDomain),
        1 => (0..6_usize).prop_map(Twist::Forged),
    ]
}

/// How a history is falsified.
#[derive(Debug, Clone)]
pub(crate) enum Tamper {
    Drop,
    Duplicate,
    SwapWithNext,
    /// This event and all after it are later or earlier by so many seconds.
    Shift(i64),
    /// This event alone is.
    Retime(i64),
    Signature(usize),
    Field,
    Version,
}

/// A falsification, where it is done, and whether the versions are made to fit again.
pub(crate) fn tampers() -> impl Strategy<Value = Vec<(Tamper, prop::sample::Index, bool)>> {
    let seconds = prop_oneof![-3000..3000_i64, -2..3_i64];
    let tamper = prop_oneof![
        3 => Just(Tamper::Drop),
        2 => Just(Tamper::Duplicate),
        2 => Just(Tamper::SwapWithNext),
        2 => seconds.clone().prop_map(Tamper::Shift),
        2 => seconds.prop_map(Tamper::Retime),
        1 => (0..65_usize).prop_map(Tamper::Signature),
        1 => Just(Tamper::Field),
        1 => Just(Tamper::Version),
    ];
    vec((tamper, any::<prop::sample::Index>(), prop::bool::weighted(0.8)), 6)
}
