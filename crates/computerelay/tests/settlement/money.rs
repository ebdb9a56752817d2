//! Every way that the money can go.

use reqwest::StatusCode;
use rpc::tasks::SignedMutation;
use taskmarket::{Money, Status, Task, TaskId};

use crate::chain::{BUDGET, OTHER, PROVIDER, REQUESTER, STAKE, WINDOW, World, amount, eventually, world};
use crate::relay::{CONFIRMATIONS, Relay};

/// A task whose result is submitted and whose proof is final, and until when it may be disputed.
pub(crate) async fn proven(world: &World, relay: &Relay, salt: u8) -> (Task, TaskId, u64) {
    let task = world.task(salt).await;
    let id = relay.publish(world, &task).await;
    world.fund(&task).await;
    world.accept(&task, PROVIDER, 1).await;
    let proof = world.proof(&task, PROVIDER, 1, world.now().await);
    world.prove(&task, &proof).await.unwrap();
    let until = world.now().await + WINDOW;
    relay.finally(world, id, Money::Proven).await;
    relay.upload().await;
    assert_eq!(relay.say(id, "proof", SignedMutation::from(proof)).await, StatusCode::OK);
    let view = relay.task(id).await;
    assert_eq!((view.status, view.dispute_until.unwrap().unix()), (Status::Submitted, until));
    (task, id, until)
}

#[tokio::test]
async fn paid_by_approval() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let task = world.task(1).await;
    // Funded before it is published.
    world.fund(&task).await;
    let id = relay.publish(&world, &task).await;
    let waits = format!("waiting for the money: funded has 1 of {CONFIRMATIONS} confirmations");
    eventually(&waits, || async { (relay.explain(id).await == waits).then_some(()) }).await;
    let view = relay.task(id).await;
    assert_eq!((view.settlement.as_str(), view.settlement_pending.unwrap().confirmations), ("none", 1));
    relay.finally(&world, id, Money::Funded).await;
    assert_eq!(relay.task(id).await.settlement_pending, None);
    assert_eq!(relay.explain(id).await, "no provider is online");

    world.accept(&task, PROVIDER, 1).await;
    let view = relay.finally(&world, id, Money::Accepted).await;
    assert_eq!((view.status, view.provider), (Status::Accepted, Some(world.address(PROVIDER))));
    // The result comes to the relay first, and then the proof to the chain.
    let proof = world.proof(&task, PROVIDER, 1, world.now().await);
    relay.upload().await;
    assert_eq!(relay.say(id, "proof", SignedMutation::from(proof.clone())).await, StatusCode::OK);
    world.prove(&task, &proof).await.unwrap();
    relay.finally(&world, id, Money::Proven).await;
    world.approve(&task).await.unwrap();
    let view = relay.finally(&world, id, Money::Paid).await;
    assert_eq!(view.status, Status::Completed);
    assert_eq!(world.credit(PROVIDER).await, amount(BUDGET));
    let evidence = relay.evidence(&world, id).await;
    let said: Vec<_> = evidence.chain.iter().map(|fact| fact.change.name()).collect();
    assert_eq!(said, ["funded", "accepted", "proven", "paid"]);
}

#[tokio::test]
async fn paid_by_window_to_the_second() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id, until) = proven(&world, &relay, 2).await;
    world.next_block_at(until - 1).await;
    let refused = world.send(OTHER, &world.chain.calls().settle(&task)).await;
    assert!(refused.is_err(), "settled a second early");
    assert_eq!(relay.task(id).await.status, Status::Submitted);
    world.next_block_at(until).await;
    world.send(OTHER, &world.chain.calls().settle(&task)).await.unwrap();
    let view = relay.finally(&world, id, Money::Paid).await;
    assert_eq!(view.status, Status::Completed);
    relay.evidence(&world, id).await;
}

#[tokio::test]
async fn the_chains_time_closes_the_window() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let (task, id, until) = proven(&world, &relay, 3).await;
    let told = relay.follow(id);
    world.next_block_at(until - 1).await;
    world.mine(CONFIRMATIONS).await;
    assert_eq!(relay.task(id).await.status, Status::Submitted);
    // Nobody settles: the work is complete, and the money is there for whoever asks.
    eventually("completed", || async {
        world.mine(1).await;
        (relay.task(id).await.status == Status::Completed).then_some(())
    })
    .await;
    assert_eq!(relay.task(id).await.settlement, "proven");
    relay.evidence(&world, id).await;
    // Who follows the task hears of its money, too.
    world.send(OTHER, &world.chain.calls().settle(&task)).await.unwrap();
    relay.finally(&world, id, Money::Paid).await;
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), told).await.unwrap().unwrap();
    let [work, money] = [r#""status":"completed""#, r#""change":"paid""#].map(|word| told.find(word));
    assert!(work.is_some() && money > work, "{told}");
}

#[tokio::test]
async fn a_lease_lapses_the_next_provider_takes_over_and_the_last_is_refunded_with_stake() {
    let Some(world) = world().await else { return };
    let mut relay = Relay::start(&world).await;
    let task = world.task(4).await;
    let id = relay.publish(&world, &task).await;
    world.fund(&task).await;
    let until = world.accept(&task, PROVIDER, 1).await;
    relay.finally(&world, id, Money::Accepted).await;
    world.next_block_at(until - 1).await;
    world.mine(CONFIRMATIONS).await;
    eventually("open again", || async {
        world.mine(1).await;
        (relay.task(id).await.status == Status::Open).then_some(())
    })
    .await;
    assert_eq!(relay.task(id).await.failure.unwrap().code, "lease_lapsed");
    // It goes on after a crash where it was.
    relay.restart().await;
    world.accept(&task, OTHER, 2).await;
    let view = eventually("the other holds it", || async {
        world.mine(1).await;
        let view = relay.task(id).await;
        (view.provider == Some(world.address(OTHER))).then_some(view)
    })
    .await;
    assert_eq!((view.status, view.attempt), (Status::Accepted, 2));
    assert_eq!(world.credit(REQUESTER).await, amount(STAKE));

    world.next_block_at(task.deadline.unix() - 1).await;
    assert!(world.send(PROVIDER, &world.chain.calls().refund(&task)).await.is_err(), "refunded too early");
    world.next_block_at(task.deadline.unix()).await;
    world.send(PROVIDER, &world.chain.calls().refund(&task)).await.unwrap();
    let view = relay.finally(&world, id, Money::Refunded).await;
    assert_eq!(view.status, Status::Expired);
    assert_eq!(world.credit(REQUESTER).await, amount(BUDGET + 2 * STAKE));
    let evidence = relay.evidence(&world, id).await;
    let said: Vec<_> = evidence.chain.iter().map(|fact| fact.change.name()).collect();
    assert_eq!(said, ["funded", "accepted", "lapsed", "accepted", "lapsed", "refunded"]);
}

#[tokio::test]
async fn disputes_end_by_the_arbiters_word_or_by_its_silence() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    for (salt, bps) in [(5, Some(10_000)), (6, Some(0)), (7, None)] {
        let (task, id, _) = proven(&world, &relay, salt).await;
        let complaint = world.complaint(&task, world.now().await);
        let said = SignedMutation::from(complaint.clone());
        assert_eq!(relay.say(id, "dispute", said).await, StatusCode::ACCEPTED);
        assert_eq!(relay.task(id).await.status, Status::Submitted);
        world.dispute(&task, &complaint).await.unwrap();
        let until = world.now().await + WINDOW;
        let view = relay.finally(&world, id, Money::Disputed).await;
        assert_eq!(view.status, Status::Disputed);
        match bps {
            Some(bps) => drop(world.resolve(&task, bps).await.unwrap()),
            None => {
                world.next_block_at(until - 1).await;
                assert!(world.send(OTHER, &world.chain.calls().timeout(&task)).await.is_err());
                world.next_block_at(until).await;
                world.send(OTHER, &world.chain.calls().timeout(&task)).await.unwrap();
            }
        }
        let view = relay.finally(&world, id, Money::Split).await;
        assert_eq!(view.status, Status::Resolved);
        let text = serde_json::to_string(&relay.evidence(&world, id).await).unwrap();
        assert!(text.contains("it is not what was asked"), "{text}");
        // The loser's stake is gone; the next round needs another.
        let stake = world.chain.calls().stake(taskmarket::Address::ZERO, amount(STAKE));
        world.send(PROVIDER, &stake).await.unwrap();
    }
    let pot = BUDGET + 2 * STAKE;
    assert_eq!(world.credit(PROVIDER).await, amount(pot + BUDGET / 2));
    assert_eq!(world.credit(REQUESTER).await, amount(pot + BUDGET / 2));
}
