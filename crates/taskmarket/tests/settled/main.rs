//! Settled tasks against a model of the escrow's contract: whatever calls it takes, in whatever order and at whatever second, the domain
//! takes what it emits, comes to what it stores, and takes nothing that it could not have emitted.
//!
//! The model is the contract's source once more, call by call. Beside the calls, providers and the requester talk to the relay, which learns
//! of blocks late. Whatever they say, the history replays, what is final stays final, and the money is the chain's.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

#[path = "../model/actors.rs"]
mod actors;
mod contract;

use std::collections::VecDeque;

use actors::{ACTORS, ARBITER, Actor, FIRST_PROVIDER, REQUESTER};
use contract::{Call, Contract, forgery};
use proptest::collection::vec;
use proptest::prelude::*;
use taskmarket::{
    AcceptTask, Address, Amount, ApproveResult, B256, Bytes32, ChainChange, ChainFact, ChainHead,
    ComputeProof, ContentHash, DisputeTask, Domain, Event, FailTask, MAX_RESERVATIONS, Message, Money,
    Mutation, Provider, Recorded, Rejection, ReleaseReason, Runtime, Task, TaskConfig, TaskRecord, Timestamp,
    U256, Verified, apply, chain_due, decide, elapse, elapse_on_chain, next_due, observe, publish, release,
    replay,
};

const START: u64 = 1_800_000_000;
const ESCROW: Domain = Domain { chain_id: 31337, verifying_contract: Address::repeat_byte(0x5e) };

#[derive(Debug, Clone)]
enum Step {
    /// So many seconds.
    Wait(u64),
    /// Until what ends next on chain, and so many seconds past it.
    WaitDue(i64),
    /// A call, varied by the second number.
    Call(u8, u8),
    /// The oldest blocks that the relay has not seen become final.
    Final(u8),
    /// The last fact comes once more.
    Again,
    /// Somebody tells the relay something, varied by the second number.
    Say(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..400_u64).prop_map(Step::Wait),
        3 => (-1..2_i64).prop_map(Step::WaitDue),
        12 => any::<(u8, u8)>().prop_map(|(kind, with)| Step::Call(kind, with)),
        8 => (1..6_u8).prop_map(Step::Final),
        1 => Just(Step::Again),
        8 => any::<(u8, u8)>().prop_map(|(kind, with)| Step::Say(kind, with)),
    ];
    vec(step, 1..60)
}

struct World {
    contract: Contract,
    record: TaskRecord,
    history: Vec<Recorded>,
    /// Blocks that are not final yet: one a call.
    blocks: VecDeque<(ChainHead, Vec<ChainFact>)>,
    last: Option<ChainFact>,
    height: u64,
    now: u64,
}

fn hash(byte: u8) -> ContentHash {
    ContentHash(B256::repeat_byte(byte))
}

impl World {
    fn new(arbiter: bool, max_attempts: u32) -> Self {
        let zero_or = |amount: u64| Amount(U256::from(if arbiter { amount } else { 0 }));
        let task = Task {
            requester: ACTORS[REQUESTER].address,
            model_cid: format!("artifact://{}", hash(1)).parse().unwrap(),
            model_hash: ContentHash::UNPINNED,
            input_cid: format!("artifact://{}", hash(2)).parse().unwrap(),
            input_hash: ContentHash::UNPINNED,
            config: TaskConfig {
                runtime: Runtime::Wasm,
                params: "{}".to_owned(),
                gpu_type: String::new(),
                gpu_count: 0,
                min_vram: 0,
                max_duration: 200,
                max_attempts,
            },
            token: Address::ZERO,
            budget: Amount(U256::from(100)),
            provider_stake: zero_or(50),
            dispute_bond: zero_or(50),
            deadline: Timestamp::from_unix(START + 3000),
            dispute_window: if arbiter { 500 } else { 0 },
            arbiter_window: 700,
            arbiter: if arbiter { ACTORS[ARBITER].address } else { Address::ZERO },
            salt: Bytes32::default(),
        };
        let signed = ACTORS[REQUESTER].sign(task.clone(), &ESCROW);
        let at = Timestamp::from_unix(START);
        let record = publish(at, &signed.clone().verify(&ESCROW).unwrap()).unwrap();
        let event = Event::Published { task: Box::new(signed), domain: ESCROW };
        let contract = Contract {
            task,
            status: Money::None,
            provider: Address::ZERO,
            attempt: 0,
            until: 0,
            result: ContentHash::UNPINNED,
        };
        let history = vec![Recorded { version: 1, at, event }];
        Self { contract, record, history, blocks: VecDeque::new(), last: None, height: 1, now: START }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Wait(seconds) => self.now += seconds,
            Step::WaitDue(past) => {
                let deadline = self.contract.task.deadline.unix();
                let ends = [self.contract.until, deadline].into_iter().filter(|end| *end >= self.now);
                if let Some(end) = ends.min() {
                    self.now = self.now.max(end.saturating_add_signed(*past));
                }
            }
            Step::Call(kind, with) => self.mine(*kind, *with),
            Step::Final(blocks) => (0..*blocks).for_each(|_| self.finalise()),
            Step::Again => {
                if let Some(fact) = self.last {
                    assert_eq!(observe(&self.record, fact), Ok(None));
                }
            }
            Step::Say(kind, with) => self.say(*kind, *with),
        }
        assert_eq!(elapse(&self.record, Timestamp::from_unix(u64::MAX)), None, "by the relay's clock");
        assert_eq!(next_due(&self.record), None);
    }

    fn call_of(&self, kind: u8, with: u8) -> Call {
        let provider = ACTORS[FIRST_PROVIDER + usize::from(with & 1)].address;
        let provider = if with == 0x42 { self.contract.task.arbiter } else { provider };
        let attempt = self.contract.attempt;
        let next = attempt + 1 + u32::from(with & 0x70 == 0x70);
        let lease_until = self.now
            + match with >> 1 & 7 {
                0 => 299,
                1 => 300,
                2 => 800,
                3 => 801,
                more => 300 + u64::from(more) * 50,
            };
        let result = hash(16 + (with >> 3 & 1));
        let holder = if with & 0x70 == 0x30 { provider } else { self.contract.provider };
        match kind % 18 {
            0 | 1 => Call::Fund,
            2..=5 => Call::Accept { provider, attempt: next, lease_until },
            6 => Call::Fail { provider: holder, attempt },
            7..=9 => Call::Prove { provider: holder, attempt, result },
            10 => Call::Approve,
            11 => Call::AcceptAndProve { provider, attempt: next, result },
            12 => Call::Settle,
            13 => Call::Dispute,
            14 => Call::Resolve { bps: u32::from(with) * 40 },
            15 => Call::Timeout,
            16 => Call::Refund,
            _ => Call::Cancel,
        }
    }

    /// A block with one call in it.
    fn mine(&mut self, kind: u8, with: u8) {
        let call = self.call_of(kind, with);
        self.height += 1;
        let head = ChainHead {
            block: self.height,
            block_hash: Bytes32(U256::from(self.height).into()),
            block_time: Timestamp::from_unix(self.now),
        };
        let mut after = self.contract.clone();
        let events = after.call(call, self.now);
        if events.is_some() {
            self.contract = after;
        }
        let facts = events.into_iter().flatten().zip(0..);
        let facts = facts.map(|(change, log_index)| fact_at(head, log_index, change)).collect();
        self.blocks.push_back((head, facts));
    }

    /// The relay takes the oldest block: its facts, and then its time.
    fn finalise(&mut self) {
        let Some((head, facts)) = self.blocks.pop_front() else { return };
        for fact in facts {
            self.check_refusals(fact);
            let event = observe(&self.record, fact).unwrap().unwrap();
            self.commit(event);
            self.last = Some(fact);
            assert_eq!(observe(&self.record, fact), Ok(None), "taken twice");
        }
        while let Some(event) = elapse_on_chain(&self.record, head) {
            self.commit(event);
        }
        if self.blocks.is_empty() {
            self.compare();
        }
    }

    /// What differs from what the contract said is refused, unless it could have said that as well.
    fn check_refusals(&self, fact: ChainFact) {
        let unordered = ChainFact { block: 0, log_index: 7, ..fact };
        assert!(self.last.is_none() || observe(&self.record, unordered).is_err());
        let unsettled = TaskRecord { domain: Domain::UNSETTLED, ..self.record.clone() };
        assert!(matches!(observe(&unsettled, fact), Err(Rejection::Invalid { .. })));
        // The contract as it was when all facts so far were in.
        let money = &self.record.settlement;
        let contract = Contract {
            task: self.contract.task.clone(),
            status: money.status,
            provider: money.provider.map_or(Address::ZERO, |provider| provider.0),
            attempt: money.attempt,
            until: money.until.map_or(0, Timestamp::unix),
            result: money.result_hash.unwrap_or(ContentHash::UNPINNED),
        };
        for time in [fact.block_time.unix(), contract.until, self.contract.task.deadline.unix()] {
            let world = World { now: time, contract: contract.clone(), ..self.bare() };
            let calls = (0..18).flat_map(|kind| (0..128).step_by(3).map(move |with| (kind, with)));
            let calls: Vec<_> = calls.map(|(kind, with)| world.call_of(kind, with)).collect();
            // Of a call that emits two events, the first must come first.
            let could: Vec<_> = calls
                .iter()
                .filter_map(|call| contract.clone().call(*call, time)?.into_iter().next())
                .collect();
            for forged in calls.iter().filter_map(|call| forgery(*call, &contract, time)) {
                let head = ChainHead { block_time: Timestamp::from_unix(time), ..head_of(&fact) };
                let answer = observe(&self.record, fact_at(head, fact.log_index, forged));
                assert_eq!(answer.is_ok(), could.contains(&forged), "{forged:?} at {time} to {contract:?}");
            }
        }
    }

    fn bare(&self) -> Self {
        Self {
            contract: self.contract.clone(),
            record: self.record.clone(),
            history: Vec::new(),
            blocks: VecDeque::new(),
            last: None,
            height: self.height,
            now: self.now,
        }
    }

    fn say(&mut self, kind: u8, with: u8) {
        let record = &self.record;
        let actor = &ACTORS[FIRST_PROVIDER + usize::from(with & 1)];
        let (task_id, issued_at) = (record.id, Timestamp::from_unix(self.now));
        let provider = actor.address;
        let attempt = record.attempts;
        let result_hash = hash(16 + (with >> 3 & 1));
        let mutation = match kind % 8 {
            0..=2 => {
                let lease_until = issued_at.plus(295 + u64::from(with >> 1 & 15)).min(record.task.deadline);
                let attempt = record.next_attempt();
                Mutation::Accept(said(actor, AcceptTask { task_id, provider, attempt, lease_until }))
            }
            3 | 4 => Mutation::Proof(said(
                actor,
                ComputeProof {
                    task_id,
                    provider,
                    attempt,
                    model_hash: hash(1),
                    input_hash: hash(2),
                    result_hash,
                    result_cid: format!("artifact://{result_hash}").parse().unwrap(),
                    started_at: issued_at,
                    finished_at: issued_at,
                    gpu_name: String::new(),
                },
            )),
            5 => {
                let (code, message) = ("bad_model".to_owned(), format!("{with}"));
                Mutation::Fail(said(actor, FailTask { task_id, provider, attempt, code, message, issued_at }))
            }
            6 => {
                let (reason, evidence) = ("it is wrong".to_owned(), String::new());
                let requester = &ACTORS[REQUESTER];
                Mutation::Dispute(said(
                    requester,
                    DisputeTask { task_id, provider, attempt, result_hash, reason, evidence, issued_at },
                ))
            }
            _ if with & 2 == 0 => {
                if let Some(event) = release(record, attempt, ReleaseReason::SessionLost) {
                    assert!(!record.is_bound(), "released what the chain has bound");
                    self.commit(event);
                }
                return;
            }
            _ => {
                let approve = ApproveResult { task_id, provider, attempt, result_hash, issued_at };
                Mutation::Approve(said(&ACTORS[REQUESTER], approve))
            }
        };
        if let Ok(Some(event)) = decide(&self.record, issued_at, &mutation) {
            assert!(!matches!(event, Event::Approved(_)), "a verdict is the chain's");
            let accepted = matches!(event, Event::Accepted(_));
            assert!(!accepted || !self.record.awaits_money(), "work begins before the money is there");
            self.commit(event);
            assert!(!matches!(decide(&self.record, issued_at, &mutation), Ok(Some(_))), "said twice");
        }
    }

    fn commit(&mut self, event: Event) {
        let before = self.record.clone();
        let at = Timestamp::from_unix(self.now).max(before.updated_at);
        apply(&mut self.record, at, &event);
        let is_chains = matches!(event, Event::Chain(_) | Event::ChainTime(_));
        assert!(is_chains || self.record.settlement == before.settlement, "{event:?} moves money");
        let was_final = before.status().is_final();
        assert!(!was_final || self.record.state == before.state, "{:?} {event:?}", before.state);
        self.history.push(Recorded { version: self.record.version, at, event });
    }

    /// With all blocks taken, the mirror is what it mirrors.
    fn compare(&self) {
        let (money, contract) = (&self.record.settlement, &self.contract);
        assert_eq!((money.status, money.attempt), (contract.status, contract.attempt));
        assert_eq!(money.provider, Some(Provider(contract.provider)).filter(|p| !p.0.is_zero()));
        let timed = matches!(money.status, Money::Accepted | Money::Proven | Money::Disputed);
        assert!(!timed || money.until == Some(Timestamp::from_unix(contract.until)));
        if money.status == Money::Proven {
            assert_eq!(money.result_hash, Some(contract.result));
        }
        if let (Some(submission), Some(proven)) = (self.record.submission(), money.result_hash) {
            assert_eq!(submission.proof.message.result_hash, proven, "another result than the one on chain");
        }
    }

    /// Lets the chain go on until nothing is left to end by time.
    fn finish(&mut self) {
        while !self.blocks.is_empty() {
            self.finalise();
        }
        for _ in 0..8 {
            let Some(due) = chain_due(&self.record) else { break };
            self.now = self.now.max(due.unix());
            // Reverts, and the block is empty.
            self.mine(12, 0);
            self.finalise();
        }
        assert_eq!(chain_due(&self.record), None, "{:?}", self.record.state);
        assert_eq!(replay(&self.history).unwrap(), self.record);
        let text = serde_json::to_string(&self.history).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Recorded>>(&text).unwrap(), self.history);
        let record = serde_json::to_string(&self.record).unwrap();
        assert_eq!(serde_json::from_str::<TaskRecord>(&record).unwrap(), self.record);
    }
}

fn said<M: Message>(actor: &Actor, message: M) -> Verified<M> {
    actor.sign(message, &ESCROW).verify(&ESCROW).unwrap()
}

fn fact_at(head: ChainHead, log_index: u64, change: ChainChange) -> ChainFact {
    let ChainHead { block, block_hash, block_time } = head;
    ChainFact {
        tx: Bytes32(U256::from(block * 1000).into()),
        log_index,
        block,
        block_hash,
        block_time,
        change,
    }
}

fn head_of(fact: &ChainFact) -> ChainHead {
    ChainHead { block: fact.block, block_hash: fact.block_hash, block_time: fact.block_time }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn the_mirror_is_the_contract(arbiter in prop::bool::weighted(0.8), max_attempts in 1..5_u32, steps in steps()) {
        let mut world = World::new(arbiter, max_attempts);
        // Most walks begin with the money there.
        world.take(&Step::Call(if steps.len() % 8 == 0 { 17 } else { 0 }, 0));
        for step in &steps {
            world.take(step);
        }
        world.finish();
    }
}

/// A task whose proof is on chain before its result is here waits for the result, and for nothing else.
#[test]
fn a_result_may_come_after_its_proof() {
    let mut world = World::new(true, 2);
    let provider = ACTORS[FIRST_PROVIDER].address;
    world.take(&Step::Call(0, 0));
    world.take(&Step::Call(2, 2));
    world.take(&Step::Call(7, 0));
    world.take(&Step::Final(3));
    assert_eq!(world.record.settlement.status, Money::Proven);
    assert_eq!(world.record.lease().map(|lease| lease.provider), Some(provider));
    // Another result than the proven one is refused.
    world.take(&Step::Say(3, 8));
    assert!(world.record.submission().is_none());
    world.take(&Step::Say(3, 0));
    assert!(world.record.submission().is_some());
    world.take(&Step::Say(6, 0));
    world.take(&Step::Call(13, 0));
    world.take(&Step::Final(1));
    let taskmarket::State::Disputed { dispute, .. } = &world.record.state else {
        panic!("{:?}", world.record)
    };
    assert_eq!(dispute.reason, "it is wrong");
    world.finish();
}

/// What the requester says of a proof whose result never came is kept: the arbiter has nothing else to go by.
#[test]
fn a_proof_without_its_result_is_complained_of() {
    let mut world = World::new(true, 2);
    world.take(&Step::Call(0, 0));
    world.take(&Step::Call(2, 2));
    world.take(&Step::Say(6, 0));
    world.take(&Step::Call(7, 0));
    assert!(world.record.complaint.is_none(), "there is no proof yet");
    world.take(&Step::Final(3));
    world.take(&Step::Say(6, 8));
    assert!(world.record.complaint.is_none(), "the chain has the proof of another result");
    world.take(&Step::Say(6, 0));
    world.take(&Step::Call(13, 0));
    world.take(&Step::Final(1));
    assert_eq!(world.record.settlement.status, Money::Disputed);
    assert!(world.record.submission().is_none());
    let said = world.record.complaint.as_ref().unwrap();
    assert_eq!(said.message.reason, "it is wrong");
    world.finish();
}

/// Acceptances that the chain never takes do not fill a history without end, and keep nobody from accepting on chain.
#[test]
fn an_attempt_is_accepted_in_vain_so_often_and_no_more() {
    let mut world = World::new(true, 2);
    let provider = &ACTORS[FIRST_PROVIDER];
    world.take(&Step::Call(0, 0));
    world.take(&Step::Final(1));
    let now = Timestamp::from_unix(world.now);
    let mut taken = 0;
    for _ in 0..2 * MAX_RESERVATIONS {
        let lease_until = now.plus(400);
        let accept =
            AcceptTask { task_id: world.record.id, provider: provider.address, attempt: 1, lease_until };
        match decide(&world.record, now, &Mutation::Accept(said(provider, accept))) {
            Ok(Some(event)) => world.commit(event),
            Err(Rejection::Conflict { .. }) => break,
            other => panic!("{other:?}"),
        }
        taken += 1;
        world.commit(release(&world.record, 1, ReleaseReason::SessionLost).unwrap());
        assert_eq!(world.record.is_on_offer(), taken < MAX_RESERVATIONS);
    }
    assert_eq!(taken, MAX_RESERVATIONS);
    world.take(&Step::Call(2, 2));
    world.take(&Step::Final(1));
    assert_eq!(world.record.settlement.status, Money::Accepted);
    assert_eq!((world.record.lease().unwrap().provider, world.record.reservations), (provider.address, 0));
    world.finish();
}

/// What the contract would not take, the domain does not take either.
#[test]
fn terms_that_the_contract_refuses_are_refused() {
    let good = World::new(true, 2).contract.task;
    let at = Timestamp::from_unix(START);
    let refused = |change: fn(&mut Task)| {
        let mut task = good.clone();
        change(&mut task);
        let signed = ACTORS[REQUESTER].sign(task, &ESCROW).verify(&ESCROW).unwrap();
        match publish(at, &signed) {
            Err(Rejection::Invalid { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    };
    assert_eq!(refused(|_| ()), None);
    assert_eq!(refused(|task| task.arbiter = task.requester), Some("arbiter"));
    assert_eq!(refused(|task| task.arbiter = Address::ZERO), Some("arbiter"));
    assert_eq!(refused(|task| task.dispute_window = 0), Some("arbiter"));
    assert_eq!(refused(|task| task.arbiter_window = 0), Some("arbiter_window"));
    assert_eq!(refused(|task| task.arbiter_window = 30 * 86_400 + 1), Some("arbiter_window"));
    assert_eq!(refused(|task| task.dispute_window = 30 * 86_400 + 1), Some("dispute_window"));
    assert_eq!(refused(|task| task.deadline = Timestamp::from_unix(START)), Some("deadline"));
    assert_eq!(
        refused(|task| task.deadline = Timestamp::from_unix(START + 90 * 86_400 + 1)),
        Some("deadline")
    );
    let odd = |task: &mut Task| task.budget = Amount(U256::from(101));
    assert_eq!(refused(odd), Some("provider_stake"), "half is rounded up");
    assert_eq!(refused(|task| task.dispute_bond = Amount(U256::from(49))), Some("dispute_bond"));
}
