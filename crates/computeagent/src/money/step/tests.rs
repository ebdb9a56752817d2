//! [`next_step`] against a naive contract, over random histories of everybody concerned.

use proptest::prelude::*;
use rpc::tasks::{FailureView, SignedMutation};
use taskmarket::{
    AcceptTask, Address, Amount, ApproveResult, B256, Bytes32, ComputeProof, ContentHash, Runtime, Signature,
    Task, TaskConfig, TaskId,
};

use super::*;

const ME: Address = Address::repeat_byte(1);
const OTHER: Address = Address::repeat_byte(2);
const START: u64 = 1_800_000_000;
const MARGINS: Margins = Margins { fail: 90, accept: 30, patience: 200 };
const WINDOW: u64 = 500;
const ARBITER_WINDOW: u64 = 400;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix(seconds)
}

fn signed<M>(mutation: M) -> SignedMutation<M> {
    let mut bytes = [0; 65];
    bytes[64] = 27;
    SignedMutation { mutation, signature: Signature::from_bytes(bytes).unwrap() }
}

fn task(deadline: u64, max_duration: u64) -> Task {
    Task {
        requester: Address::repeat_byte(9),
        model_cid: "https://m.example/m".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://m.example/i".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration,
            max_attempts: 100,
        },
        token: Address::ZERO,
        budget: Amount::ZERO,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: at(deadline),
        dispute_window: WINDOW,
        arbiter_window: ARBITER_WINDOW,
        arbiter: Address::repeat_byte(8),
        salt: Bytes32::default(),
    }
}

fn claim(task: Task, attempt: u32, lease_until: u64, fast: bool) -> Claim {
    let id = TaskId(B256::repeat_byte(3));
    let accept = AcceptTask { task_id: id, provider: ME, attempt, lease_until: at(lease_until) };
    Claim {
        task,
        accept: signed(accept),
        fast,
        wish: Wish::Fetch,
        approval: None,
        bound: None,
        batch: None,
        refused: 0,
        round: 0,
        from_block: 0,
    }
}

fn proof() -> ComputeProof {
    ComputeProof {
        task_id: TaskId(B256::repeat_byte(3)),
        provider: ME,
        attempt: 1,
        model_hash: ContentHash::UNPINNED,
        input_hash: ContentHash::UNPINNED,
        result_hash: ContentHash::UNPINNED,
        result_cid: "https://m.example/r".parse().unwrap(),
        started_at: at(START),
        finished_at: at(START),
        gpu_name: String::new(),
    }
}

/// What happens next.
#[derive(Debug, Clone, Copy)]
enum Op {
    /// Time passes.
    Pass(u64),
    /// The work goes on by one stage.
    Work,
    /// The work comes to nothing.
    Fail,
    /// Somebody binds the provider by the acceptance that it signed.
    Bind,
    /// Another provider accepts.
    OtherAccepts,
    Cancel,
    Refund,
    Dispute,
    Resolve,
    /// The requester's approval comes.
    Approval,
    /// Nobody looks after the claim for so long: the agent is dead.
    Sleep(u64),
}

fn ops(sleeps: bool) -> impl Strategy<Value = Vec<Op>> {
    let longest: u64 = if sleeps { 2_000 } else { 1 };
    let one = prop_oneof![
        6 => (1_u64..80).prop_map(Op::Pass),
        5 => Just(Op::Work),
        1 => Just(Op::Fail),
        2 => Just(Op::Bind),
        1 => Just(Op::OtherAccepts),
        1 => Just(Op::Cancel),
        1 => Just(Op::Refund),
        2 => Just(Op::Dispute),
        1 => Just(Op::Resolve),
        1 => Just(Op::Approval),
        1 => (1..=longest).prop_map(Op::Sleep),
    ];
    proptest::collection::vec(one, 1..60)
}

/// A contract with one task, as its README tells it, and a provider that goes by [`next_step`].
struct World {
    now: u64,
    record: Record,
    claim: Claim,
    /// Of the provider's stake.
    lost: bool,
    closed: Option<Ending>,
}

impl World {
    fn new(deadline: u64, max_duration: u64, fast: bool) -> Self {
        let task = task(START + deadline, max_duration);
        let lease = (START + max_duration + 480).min(START + deadline);
        Self {
            now: START,
            record: Record { provider: Address::ZERO, attempt: 0, until: at(0), status: Status::Funded },
            claim: claim(task, 1, lease, fast),
            lost: false,
            closed: None,
        }
    }

    fn deadline(&self) -> u64 {
        self.claim.task.deadline.unix()
    }

    fn is(&self, status: Status) -> bool {
        self.record.status == status
    }

    fn is_unheld(&self) -> bool {
        self.is(Status::Funded) || self.is(Status::Accepted) && self.now >= self.record.until.unix()
    }

    /// A lapsed lease ends with the next call.
    fn end_lapsed(&mut self) {
        self.lost |= self.is(Status::Accepted) && self.record.provider == ME;
    }

    fn move_to(&mut self, status: Status, until: u64) {
        (self.record.status, self.record.until) = (status, at(until));
    }

    /// `accept`, as the contract takes it.
    fn accept(&mut self, provider: Address, attempt: u32, lease: u64) -> bool {
        let latest = self.deadline().min(self.now + self.claim.task.config.max_duration + 600);
        let takes = self.is_unheld()
            && self.now < self.deadline()
            && attempt == self.record.attempt + 1
            && (self.now + 300..=latest).contains(&lease);
        if takes {
            self.end_lapsed();
            self.record = Record { provider, attempt, until: at(lease), status: Status::Accepted };
        }
        takes
    }

    fn holds(&self) -> bool {
        self.is(Status::Accepted)
            && (self.record.provider, self.record.attempt) == (ME, self.claim.accept.mutation.attempt)
            && self.now < self.record.until.unix()
    }

    /// Does a step on the contract; whether it was taken.
    fn send(&mut self, step: &Step) -> bool {
        let over = self.now >= self.record.until.unix();
        match step {
            Step::Accept(until) => {
                self.claim.accept.mutation.lease_until = *until;
                self.accept(ME, self.claim.accept.mutation.attempt, until.unix())
            }
            Step::Fail if self.holds() => {
                self.move_to(Status::Funded, 0);
                true
            }
            Step::Prove if self.holds() => {
                self.move_to(Status::Proven, self.now + WINDOW);
                true
            }
            Step::AcceptAndProve => {
                let attempt = self.claim.accept.mutation.attempt;
                let takes =
                    self.is_unheld() && self.now < self.deadline() && attempt == self.record.attempt + 1;
                if takes {
                    self.end_lapsed();
                    self.record = Record { provider: ME, attempt, until: at(0), status: Status::Paid };
                }
                takes
            }
            Step::Approve if self.is(Status::Proven) => {
                self.move_to(Status::Paid, 0);
                true
            }
            Step::Settle if self.is(Status::Proven) && over => {
                self.move_to(Status::Paid, 0);
                true
            }
            Step::Timeout if self.is(Status::Disputed) && over => {
                self.move_to(Status::Split, 0);
                true
            }
            Step::Wait(_) | Step::Surrender(..) | Step::Close(_) => true,
            Step::Fail | Step::Prove | Step::Approve | Step::Settle | Step::Timeout => false,
        }
    }

    /// Looks after the claim until there is nothing to do now.
    fn look(&mut self) {
        for _ in 0..6 {
            if self.closed.is_some() {
                return;
            }
            self.note();
            let clock = Clock { head: at(self.now), now: at(self.now) };
            let step = next_step(&self.claim, &self.record, clock, &MARGINS);
            assert!(self.send(&step), "the contract refuses {step:?} at {} of {:?}", self.now, self.record);
            match step {
                Step::Wait(until) => {
                    assert!(until.unix() > self.now, "it waits for the past");
                    return;
                }
                Step::Surrender(code, message) => self.claim.wish = give_up(code, message),
                Step::Close(ending) => return self.close(ending),
                Step::Accept(_)
                | Step::Fail
                | Step::Prove
                | Step::AcceptAndProve
                | Step::Approve
                | Step::Settle
                | Step::Timeout => {}
            }
        }
        panic!("it does not come to rest");
    }

    /// Remembers what the record says of this provider.
    fn note(&mut self) {
        if self.holds() {
            self.claim.bound = Some(self.record.until);
        } else if self.is(Status::Funded) && self.record.provider == ME {
            self.claim.bound = None;
        }
    }

    fn close(&mut self, ending: Ending) {
        let mine = (self.record.provider, self.record.attempt) == (ME, self.claim.accept.mutation.attempt);
        assert_eq!(ending == Ending::Paid, mine && self.is(Status::Paid));
        assert_eq!(ending == Ending::Split, mine && self.is(Status::Split));
        assert!(!(mine && self.is(Status::Proven)), "money is left behind");
        if ending == Ending::Lapsed {
            self.end_lapsed();
        }
        self.closed = Some(ending);
    }

    fn happen(&mut self, op: Op) {
        match op {
            Op::Pass(seconds) | Op::Sleep(seconds) => self.now += seconds,
            Op::Work => match self.claim.wish {
                Wish::Fetch => self.claim.wish = Wish::Bind,
                Wish::Bind if self.holds() || self.claim.fast => {
                    self.claim.wish = Wish::Prove { proof: Box::new(signed(proof())), since: at(self.now) };
                }
                Wish::Bind | Wish::Prove { .. } | Wish::GiveUp { .. } => {}
            },
            Op::Fail if self.claim.proof().is_none() => self.claim.wish = give_up("failed", "as told"),
            Op::Bind => {
                let accept = self.claim.accept.mutation.clone();
                let bound = self.accept(ME, accept.attempt, accept.lease_until.unix());
                assert!(!(bound && self.closed.is_some()), "bound with nobody to see it");
            }
            Op::OtherAccepts => {
                let lease = self.deadline().min(self.now + 400);
                self.accept(OTHER, self.record.attempt + 1, lease);
            }
            Op::Cancel | Op::Refund if self.is_unheld() => {
                if matches!(op, Op::Cancel) || self.now >= self.deadline() {
                    self.end_lapsed();
                    self.move_to(
                        if matches!(op, Op::Cancel) { Status::Cancelled } else { Status::Refunded },
                        0,
                    );
                }
            }
            Op::Dispute if self.is(Status::Proven) && self.now < self.record.until.unix() => {
                self.move_to(Status::Disputed, self.now + ARBITER_WINDOW);
            }
            Op::Resolve if self.is(Status::Disputed) && self.now < self.record.until.unix() => {
                self.move_to(Status::Split, 0);
            }
            Op::Approval => {
                let approval = ApproveResult {
                    task_id: TaskId(B256::repeat_byte(3)),
                    provider: ME,
                    attempt: 1,
                    result_hash: ContentHash::UNPINNED,
                    issued_at: at(self.now),
                };
                self.claim.approval = Some(signed(approval));
            }
            Op::Fail | Op::Cancel | Op::Refund | Op::Dispute | Op::Resolve => {}
        }
    }

    /// Lets the years go by, with somebody who looks.
    fn finish(&mut self) {
        for _ in 0..400 {
            if self.closed.is_some() {
                return;
            }
            self.now += 80;
            self.look();
        }
        panic!("the claim never ends: {:?} {:?}", self.claim, self.record);
    }
}

fn give_up(code: &str, message: &str) -> Wish {
    Wish::GiveUp { failure: FailureView { code: code.to_owned(), message: message.to_owned() } }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A provider that looks every minute or so never loses its stake by a lapsed lease, whatever the others do; each step is one that
    /// the contract takes; every claim ends, and not before nobody can bind the provider any more.
    #[test]
    fn a_living_agent_loses_no_stake(
        ops in ops(false), deadline in 400_u64..8_000, max_duration in 1_u64..1_000, fast: bool,
    ) {
        let mut world = World::new(deadline, max_duration, fast);
        world.look();
        for op in ops {
            world.happen(op);
            world.look();
        }
        world.finish();
        for _ in 0..20 {
            world.happen(Op::Bind);
            world.now += 100;
        }
        prop_assert!(!world.lost, "the stake is lost");
        prop_assert_ne!(world.closed, Some(Ending::Lapsed));
    }

    /// However long an agent is dead in between, it comes to the right end, and knows whether its stake is lost.
    #[test]
    fn a_dead_agent_finds_its_way(
        ops in ops(true), deadline in 400_u64..8_000, max_duration in 1_u64..1_000, fast: bool,
    ) {
        let mut world = World::new(deadline, max_duration, fast);
        world.look();
        for op in ops {
            world.happen(op);
            if !matches!(op, Op::Bind | Op::Work) {
                world.look();
            }
        }
        world.finish();
        prop_assert!(world.lost || world.closed != Some(Ending::Lapsed), "no stake was lost");
    }
}

#[test]
fn a_bound_provider_gives_back_before_the_lease_ends() {
    let mut claim = claim(task(START + 5_000, 100), 1, START + 580, false);
    let record = Record { provider: ME, attempt: 1, until: at(START + 580), status: Status::Accepted };
    let ask = |claim: &Claim, seconds: u64| {
        let clock = Clock { head: at(START + seconds), now: at(START + seconds) };
        next_step(claim, &record, clock, &MARGINS)
    };
    assert_eq!(ask(&claim, 0), Step::Wait(at(START + 490)));
    assert_eq!(ask(&claim, 489), Step::Wait(at(START + 490)));
    assert!(matches!(ask(&claim, 490), Step::Surrender("lease_ending", _)));
    claim.wish = give_up("lease_ending", "");
    assert_eq!(ask(&claim, 490), Step::Fail);
    claim.bound = Some(at(START + 580));
    assert_eq!(ask(&claim, 580), Step::Close(Ending::Lapsed));
}

#[test]
fn an_acceptance_is_signed_anew_where_too_little_is_left_of_it() {
    let mut claim = claim(task(START + 5_000, 100), 1, START + 580, false);
    claim.wish = Wish::Bind;
    let record = Record { provider: Address::ZERO, attempt: 0, until: at(0), status: Status::Funded };
    let ask = |claim: &Claim, seconds: u64| {
        let clock = Clock { head: at(START + seconds), now: at(START + seconds) };
        next_step(claim, &record, clock, &MARGINS)
    };
    assert_eq!(ask(&claim, 0), Step::Accept(at(START + 580)));
    assert_eq!(ask(&claim, 250), Step::Accept(at(START + 580)));
    assert_eq!(ask(&claim, 251), Step::Accept(at(START + 251 + 700)));
    assert_eq!(ask(&claim, 4_670), Step::Accept(at(START + 5_000)));
    assert!(matches!(ask(&claim, 4_671), Step::Surrender("too_late", _)));
}
