//! Each step of the money, taken back by the chain while one block was missing to make it final: it leaves no trace, and what comes in its
//! place counts.

use reqwest::StatusCode;
use rpc::evidence::Evidence;
use rpc::tasks::SignedMutation;
use serde_json::{Value, json};
use taskmarket::{
    ApproveResult, CancelTask, ChainChange, FailTask, Money, Resolution, Status, Task, TaskId, Timestamp,
};

use crate::chain::{
    BUDGET, OTHER, PROVIDER, REQUESTER, STAKE, WINDOW, World, amount, eventually, result_hash, world,
};
use crate::money::proven;
use crate::relay::{CONFIRMATIONS, Relay};

/// Has the chain make a step, which the relay sees with all confirmations but one; then take it back, and be as long without it as
/// would have made it final.
async fn taken_back<T>(
    world: &World,
    relay: &Relay,
    id: TaskId,
    change: &str,
    step: impl AsyncFnOnce() -> T,
) {
    let before = relay.task(id).await;
    let place = world.anvil("evm_snapshot", json!([])).await;
    step().await;
    world.mine(CONFIRMATIONS - 2).await;
    eventually(&format!("{change} lacks one block"), || async {
        let pending = relay.task(id).await.settlement_pending?;
        (pending.fact.change.name() == change && pending.confirmations == CONFIRMATIONS - 1).then_some(())
    })
    .await;
    assert_eq!(world.anvil("evm_revert", json!([place])).await, Value::Bool(true));
    // Another block takes the first one's place.
    world.mine(1).await;
    eventually(&format!("{change} is withdrawn"), || async {
        relay.task(id).await.settlement_pending.is_none().then_some(())
    })
    .await;
    world.mine(CONFIRMATIONS).await;
    relay.has_read(world).await;
    let after = relay.task(id).await;
    let told = |view: &rpc::tasks::TaskView| {
        (view.settlement.clone(), view.status, view.attempt, view.provider, view.updated_at)
    };
    assert_eq!(told(&after), told(&before), "{change} left a trace");
}

/// What the evidence says of the chain, which the chain has.
async fn said(world: &World, relay: &Relay, id: TaskId) -> (Vec<&'static str>, Evidence) {
    let evidence = relay.evidence(world, id).await;
    (evidence.chain.iter().map(|fact| fact.change.name()).collect(), evidence)
}

async fn published(world: &World, relay: &Relay, salt: u8) -> (Task, TaskId) {
    let task = world.task(salt).await;
    let id = relay.publish(world, &task).await;
    (task, id)
}

/// The provider gives its attempt up.
async fn fail(world: &World, task: &Task) {
    let fail = FailTask {
        task_id: world.id(task),
        provider: world.address(PROVIDER),
        attempt: 1,
        code: "io".to_owned(),
        message: String::new(),
        issued_at: Timestamp::from_unix(world.now().await),
    };
    let call = world.chain.calls().fail(task, &world.sign(PROVIDER, &fail));
    world.send(PROVIDER, &call).await.unwrap();
}

async fn cancel(world: &World, task: &Task) {
    let issued_at = Timestamp::from_unix(world.now().await);
    let cancel = CancelTask { task_id: world.id(task), issued_at };
    let call = world.chain.calls().cancel(task, &world.sign(REQUESTER, &cancel));
    world.send(REQUESTER, &call).await.unwrap();
}

#[tokio::test]
async fn funded_accepted_proven_and_paid_count_once_they_come_again() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id) = published(&world, &relay, 1).await;
    taken_back(&world, &relay, id, "funded", async || world.fund(&task).await).await;
    world.fund(&task).await;
    relay.finally(&world, id, Money::Funded).await;

    taken_back(&world, &relay, id, "accepted", async || world.accept(&task, PROVIDER, 1).await).await;
    world.accept(&task, PROVIDER, 1).await;
    relay.finally(&world, id, Money::Accepted).await;

    let proof = world.proof(&task, PROVIDER, 1, world.now().await);
    let prove = async || world.prove(&task, &proof).await.unwrap();
    taken_back(&world, &relay, id, "proven", prove).await;
    world.prove(&task, &proof).await.unwrap();
    relay.finally(&world, id, Money::Proven).await;
    relay.upload().await;
    assert_eq!(relay.say(id, "proof", SignedMutation::from(proof)).await, StatusCode::OK);

    taken_back(&world, &relay, id, "paid", async || world.approve(&task).await.unwrap()).await;
    assert_eq!(world.credit(PROVIDER).await, amount(0));
    world.approve(&task).await.unwrap();
    let view = relay.finally(&world, id, Money::Paid).await;
    assert_eq!(view.status, Status::Completed);
    assert_eq!(world.credit(PROVIDER).await, amount(BUDGET));
    let (said, _) = said(&world, &relay, id).await;
    assert_eq!(said, ["funded", "accepted", "proven", "paid"]);
}

#[tokio::test]
async fn a_fast_payment_that_is_taken_back_leaves_the_task_open() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id) = published(&world, &relay, 1).await;
    world.fund(&task).await;
    relay.finally(&world, id, Money::Funded).await;
    let pay = async |who: usize| {
        let now = world.now().await;
        let approve = ApproveResult {
            task_id: id,
            provider: world.address(who),
            attempt: 1,
            result_hash: result_hash(),
            issued_at: Timestamp::from_unix(now),
        };
        let (proof, approve) = (world.proof(&task, who, 1, now), world.sign(REQUESTER, &approve));
        let call = world.chain.calls().accept_and_prove(&task, &proof, &approve);
        world.send(who, &call).await.unwrap();
    };
    taken_back(&world, &relay, id, "paid", async || pay(PROVIDER).await).await;
    assert_eq!(relay.task(id).await.status, Status::Open);
    pay(OTHER).await;
    let view = relay.finally(&world, id, Money::Paid).await;
    assert_eq!(view.provider, Some(world.address(OTHER)));
    assert_eq!((world.credit(PROVIDER).await, world.credit(OTHER).await), (amount(0), amount(BUDGET)));
    assert_eq!(said(&world, &relay, id).await.0, ["funded", "paid"]);
}

#[tokio::test]
async fn a_failure_that_is_taken_back_leaves_the_attempt_where_it_was() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id) = published(&world, &relay, 1).await;
    world.fund(&task).await;
    world.accept(&task, PROVIDER, 1).await;
    relay.finally(&world, id, Money::Accepted).await;
    taken_back(&world, &relay, id, "failed", async || fail(&world, &task).await).await;
    let view = relay.task(id).await;
    assert_eq!((view.status, view.provider), (Status::Accepted, Some(world.address(PROVIDER))));
    fail(&world, &task).await;
    let view = relay.finally(&world, id, Money::Funded).await;
    assert_eq!((view.status, view.failure.unwrap().code.as_str()), (Status::Open, "failed_on_chain"));
    // What was bound and let go is bound again: the second attempt comes, goes, and comes by another.
    taken_back(&world, &relay, id, "accepted", async || world.accept(&task, PROVIDER, 2).await).await;
    world.accept(&task, OTHER, 2).await;
    let view = relay.finally(&world, id, Money::Accepted).await;
    assert_eq!((view.attempt, view.provider), (2, Some(world.address(OTHER))));
    assert_eq!(said(&world, &relay, id).await.0, ["funded", "accepted", "failed", "accepted"]);
}

#[tokio::test]
async fn a_lapse_that_is_taken_back_leaves_the_provider_its_lease() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id) = published(&world, &relay, 1).await;
    world.fund(&task).await;
    let until = world.accept(&task, PROVIDER, 1).await;
    relay.finally(&world, id, Money::Accepted).await;
    let overtake = async || {
        world.next_block_at(until).await;
        world.send(OTHER, &world.acceptance(&task, OTHER, 2, until + 400)).await.unwrap();
    };
    taken_back(&world, &relay, id, "accepted", overtake).await;
    assert_eq!(world.credit(REQUESTER).await, amount(0), "the stake is not the requester's");
    // In the blocks that count, the lease runs on, and the proof comes in its last second.
    world.next_block_at(until - 1).await;
    let proof = world.proof(&task, PROVIDER, 1, world.now().await);
    world.prove(&task, &proof).await.unwrap();
    relay.finally(&world, id, Money::Proven).await;
    assert_eq!(said(&world, &relay, id).await.0, ["funded", "accepted", "proven"]);
}

#[tokio::test]
async fn a_payment_that_is_taken_back_can_be_disputed() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id, until) = proven(&world, &relay, 1).await;
    let settle = async || {
        world.next_block_at(until).await;
        world.send(OTHER, &world.chain.calls().settle(&task)).await.unwrap();
    };
    taken_back(&world, &relay, id, "paid", settle).await;
    assert_eq!(relay.task(id).await.status, Status::Submitted);
    let complaint = world.complaint(&task, world.now().await);
    world.dispute(&task, &complaint).await.unwrap();
    relay.finally(&world, id, Money::Disputed).await;
    assert_eq!(said(&world, &relay, id).await.0, ["funded", "accepted", "proven", "disputed"]);
}

#[tokio::test]
async fn a_dispute_that_is_taken_back_leaves_the_proof_to_be_paid() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id, _) = proven(&world, &relay, 1).await;
    let complaint = world.complaint(&task, world.now().await);
    let dispute = async || world.dispute(&task, &complaint).await.unwrap();
    taken_back(&world, &relay, id, "disputed", dispute).await;
    assert_eq!(relay.task(id).await.status, Status::Submitted);
    world.approve(&task).await.unwrap();
    let view = relay.finally(&world, id, Money::Paid).await;
    assert_eq!(view.status, Status::Completed);
    assert_eq!(said(&world, &relay, id).await.0, ["funded", "accepted", "proven", "paid"]);
}

#[tokio::test]
async fn a_verdict_that_is_taken_back_is_not_the_one_that_counts() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id, _) = proven(&world, &relay, 1).await;
    let complaint = world.complaint(&task, world.now().await);
    world.dispute(&task, &complaint).await.unwrap();
    let until = world.now().await + WINDOW;
    relay.finally(&world, id, Money::Disputed).await;
    let time_out = async || {
        world.next_block_at(until).await;
        world.send(OTHER, &world.chain.calls().timeout(&task)).await.unwrap();
    };
    taken_back(&world, &relay, id, "split", time_out).await;
    taken_back(&world, &relay, id, "split", async || world.resolve(&task, 10_000).await.unwrap()).await;
    assert_eq!(relay.task(id).await.status, Status::Disputed);
    world.resolve(&task, 0).await.unwrap();
    let view = relay.finally(&world, id, Money::Split).await;
    assert_eq!(view.status, Status::Resolved);
    assert_eq!(world.credit(PROVIDER).await, amount(0));
    assert_eq!(world.credit(REQUESTER).await, amount(BUDGET + 2 * STAKE));
    let (_, evidence) = said(&world, &relay, id).await;
    let last = evidence.chain.last().unwrap().change;
    let verdict = Resolution::Arbiter { provider_bps: 0 };
    assert!(matches!(last, ChainChange::Split { resolution, .. } if resolution == verdict), "{last:?}");
}

#[tokio::test]
async fn a_refund_or_cancellation_that_is_taken_back_leaves_the_task_alive() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id) = published(&world, &relay, 1).await;
    world.fund(&task).await;
    relay.finally(&world, id, Money::Funded).await;
    taken_back(&world, &relay, id, "cancelled", async || cancel(&world, &task).await).await;
    assert_eq!(relay.task(id).await.status, Status::Open);
    world.accept(&task, PROVIDER, 1).await;
    relay.finally(&world, id, Money::Accepted).await;

    let refund = async || {
        world.next_block_at(task.deadline.unix()).await;
        world.send(OTHER, &world.chain.calls().refund(&task)).await.unwrap();
    };
    taken_back(&world, &relay, id, "refunded", refund).await;
    assert_eq!(relay.task(id).await.status, Status::Accepted);
    refund().await;
    let view = relay.finally(&world, id, Money::Refunded).await;
    assert_eq!(view.status, Status::Expired);
    assert_eq!(world.credit(REQUESTER).await, amount(BUDGET + STAKE));
    assert_eq!(said(&world, &relay, id).await.0, ["funded", "accepted", "lapsed", "refunded"]);

    // Before the money came, too.
    let (task, id) = published(&world, &relay, 2).await;
    taken_back(&world, &relay, id, "cancelled", async || cancel(&world, &task).await).await;
    world.fund(&task).await;
    relay.finally(&world, id, Money::Funded).await;
    cancel(&world, &task).await;
    let view = relay.finally(&world, id, Money::Cancelled).await;
    assert_eq!(view.status, Status::Cancelled);
    assert_eq!(said(&world, &relay, id).await.0, ["funded", "cancelled"]);
}
