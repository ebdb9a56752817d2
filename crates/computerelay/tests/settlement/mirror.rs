//! The domain's mirror against the contract itself: random calls at random seconds, right and wrong, and after each the mirror says what
//! the contract stores.

use escrow::{At, Call, Status, WatchConfig, Watcher};
use taskmarket::{
    AcceptTask, Address, ApproveResult, CancelTask, Event, FailTask, Money, Provider, ResolveDispute, Task,
    TaskRecord, Timestamp, apply, elapse_on_chain, observe, publish,
};

use crate::chain::{ARBITER, OTHER, PROVIDER, REQUESTER, STAKE, World, amount, result_hash, world};

/// Calls in one walk.
const CALLS: usize = 120;

/// Xorshift: the same walk from the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize]
    }
}

#[tokio::test]
async fn the_mirror_says_what_the_contract_stores() {
    for seed in [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03] {
        let Some(world) = world().await else { return };
        walk(&world, Dice(seed)).await;
    }
}

async fn walk(world: &World, mut dice: Dice) {
    for provider in [PROVIDER, OTHER] {
        let stake = world.chain.calls().stake(Address::ZERO, amount(STAKE * 100));
        world.send(provider, &stake).await.unwrap();
    }
    let mut salts = 0..;
    let mut records = Vec::new();
    for _ in 0..3 {
        records.push(new_record(world, salts.next().unwrap()).await);
    }
    let config = WatchConfig { confirmations: 1, from_block: 0 };
    let mut watcher = Watcher::new(world.chain.clone(), config, None);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..CALLS {
        let index = dice.roll(3) as usize;
        // Of what is over, a few more calls show that nothing moves it.
        if records[index].settlement.status.is_final() && dice.roll(3) == 0 {
            records[index] = new_record(world, salts.next().unwrap()).await;
        }
        let task = records[index].task.clone();
        let stored = world.chain.record_at(records[index].id, At::Latest).await.unwrap();
        let now = world.now().await;
        // Often to the edge of what ends next, sometimes to the deadline's.
        let (until, deadline) = (stored.until.unix(), task.deadline.unix());
        let next = match dice.roll(36) {
            0..=8 if until > now + 1 => until - 1 + dice.roll(3),
            9 if deadline > now + 1 => deadline - 1 + dice.roll(3),
            _ => now + 1 + dice.roll(40),
        };
        let attempt = stored.attempt + u32::from(dice.roll(8) == 0);
        let is_fresh = stored.status == Status::None;
        let (from, call) = call(world, &task, (attempt, is_fresh), next, &mut dice);
        world.next_block_at(next).await;
        match world.send(from, &call).await {
            Ok(_) => taken += 1,
            Err(_) => refused += 1,
        }
        follow(world, &mut watcher, &mut records).await;
    }
    assert!(taken > CALLS / 10 && refused > CALLS / 10, "{taken} taken, {refused} refused");
}

/// A task that nobody has funded yet: one in three is paid on proof.
async fn new_record(world: &World, salt: u8) -> TaskRecord {
    let mut task = world.task(salt).await;
    if salt % 3 == 2 {
        task.arbiter = Address::ZERO;
        (task.dispute_window, task.dispute_bond) = (0, amount(0));
    }
    let now = Timestamp::from_unix(world.now().await);
    publish(now, &world.sign(REQUESTER, &task).verify(&world.chain.domain()).unwrap()).unwrap()
}

/// A call of any kind, mostly one that could be right.
fn call(
    world: &World,
    task: &Task,
    (attempt, fresh): (u32, bool),
    now: u64,
    dice: &mut Dice,
) -> (usize, Call) {
    let calls = world.chain.calls();
    let (task_id, issued_at) = (world.id(task), Timestamp::from_unix(now));
    let who = dice.pick(&[PROVIDER, PROVIDER, PROVIDER, OTHER, ARBITER]);
    let provider = world.address(who);
    let kind = if fresh && dice.roll(2) == 0 { 0 } else { dice.roll(20) };
    let call = match kind {
        0 => calls.fund(task),
        1..=7 => {
            let lease_until = issued_at.plus(dice.pick(&[299, 300, 301, 450, 660, 661]));
            let accept = AcceptTask { task_id, provider, attempt: attempt + 1, lease_until };
            calls.accept(task, &world.sign(who, &accept))
        }
        8 => {
            let (code, message) = ("io".to_owned(), String::new());
            let fail = FailTask { task_id, provider, attempt, code, message, issued_at };
            calls.fail(task, &world.sign(who, &fail))
        }
        9..=11 => calls.prove(task, &world.proof(task, who, attempt, now)),
        12 => {
            let result_hash = result_hash();
            let approve = ApproveResult { task_id, provider, attempt, result_hash, issued_at };
            calls.approve(task, &world.sign(REQUESTER, &approve))
        }
        13 if dice.roll(3) == 0 => {
            let result_hash = result_hash();
            let approve = ApproveResult { task_id, provider, attempt: attempt + 1, result_hash, issued_at };
            let proof = world.proof(task, who, attempt + 1, now);
            calls.accept_and_prove(task, &proof, &world.sign(REQUESTER, &approve))
        }
        13 | 14 => calls.settle(task),
        15 => calls.dispute(task, &world.complaint_about(task, provider, attempt, now)),
        16 => {
            let provider_bps = dice.pick(&[0, 2500, 10_000, 10_001]);
            let verdict = ResolveDispute { task_id, attempt, provider_bps, issued_at };
            calls.resolve(task, &world.sign(ARBITER, &verdict))
        }
        17 => calls.timeout(task),
        18 => calls.refund(task),
        // Rare: it ends the task.
        _ if dice.roll(4) > 0 => calls.refund(task),
        _ => {
            let cancel = CancelTask { task_id, issued_at };
            calls.cancel(task, &world.sign(REQUESTER, &cancel))
        }
    };
    (dice.pick(&[REQUESTER, PROVIDER, OTHER]), call)
}

/// Has the records take all that the chain says, and compares them with what it stores.
async fn follow(world: &World, watcher: &mut Watcher, records: &mut [TaskRecord]) {
    loop {
        let progress = watcher.step().await.unwrap();
        let Some((head, facts)) = progress.portion else { break };
        for (id, fact) in facts {
            let Some(record) = records.iter_mut().find(|record| record.id == id) else {
                panic!("whose? {id}")
            };
            let event =
                observe(record, fact).unwrap_or_else(|error| panic!("{error}: {fact:?}\n{record:#?}"));
            apply(record, fact.block_time, &event.unwrap());
        }
        for record in records.iter_mut() {
            while let Some(event @ Event::ChainTime(_)) = elapse_on_chain(record, head) {
                apply(record, head.block_time, &event);
            }
        }
        watcher.move_on(head);
    }
    for record in records {
        let stored = world.chain.record(record.id).await.unwrap();
        let money = &record.settlement;
        assert_eq!(money.status, stored.status);
        let provider = money.provider.map_or(Address::ZERO, |Provider(provider)| provider);
        assert_eq!((provider, money.attempt), (stored.provider, stored.attempt), "{record:#?}");
        if matches!(stored.status, Status::Accepted | Status::Proven | Status::Disputed) {
            assert_eq!(money.until, Some(stored.until));
        }
        if money.status == Money::Proven {
            assert_eq!(money.result_hash, Some(world.chain.result_of(record.id).await.unwrap()));
        }
    }
}
