//! Hosts are asked to work only once the money is there.

use std::sync::Arc;

use reqwest::StatusCode;
use rpc::tasks::SignedMutation;
use taskmarket::{ApproveResult, ComputeProof, Money, Status};

use crate::agent::{Answer, Script};
use crate::chain::{PROVIDER, REQUESTER, eventually, world};
use crate::relay::{CONFIRMATIONS, Relay};

#[tokio::test]
async fn a_host_is_asked_once_funded_is_final_and_then_bound_by_its_own_acceptance() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    relay.opens().await;
    let host = Script { wallet: Arc::new(world.wallet(PROVIDER)), ..Script::new() }
        .answers(Answer::Accept { lease_secs: 500 })
        .connect(&relay.connect_url())
        .await;
    assert_eq!(host.hello.domains.len(), 2, "the escrow's domain is offered besides the unsettled one");
    let (task, unfunded) = (world.task(1).await, world.task(2).await);
    let id = relay.publish(&world, &task).await;
    let waits = relay.publish(&world, &unfunded).await;
    let why = relay.explain(id).await;
    assert!(
        why.starts_with("waiting for the money: ") && why.ends_with("does not hold the budget yet"),
        "{why}"
    );
    world.fund(&task).await;
    world.mine(CONFIRMATIONS - 2).await;
    eventually("one block is missing", || async {
        let pending = relay.task(id).await.settlement_pending?;
        (pending.confirmations == CONFIRMATIONS - 1).then_some(())
    })
    .await;
    assert!(host.state().assignments.is_empty(), "asked before the money was final");
    world.mine(1).await;
    let assignment = host.is_offered(id).await;
    assert_eq!(assignment.attempt, 1);
    let view = eventually("the host took it", || async {
        let view = relay.task(id).await;
        (view.status == Status::Accepted).then_some(view)
    })
    .await;
    // Until the chain says so, it is a reservation.
    assert_eq!((view.settlement.as_str(), view.provider), ("funded", Some(host.address())));
    world.accept(&task, PROVIDER, 1).await;
    let view = relay.finally(&world, id, Money::Accepted).await;
    assert_eq!((view.status, view.attempt), (Status::Accepted, 1));
    // The approval of a result is the chain's to take; the host is told besides.
    let proof = world.proof(&task, PROVIDER, 1, world.now().await);
    relay.upload().await;
    assert_eq!(relay.say(id, "proof", SignedMutation::from(proof.clone())).await, StatusCode::OK);
    let ComputeProof { provider, attempt, result_hash, finished_at, .. } = proof.message;
    let approve = ApproveResult { task_id: id, provider, attempt, result_hash, issued_at: finished_at };
    let approve = SignedMutation::from(world.sign(REQUESTER, &approve));
    assert_eq!(relay.say(id, "approve", approve).await, StatusCode::ACCEPTED);
    host.sees("the approval", |state| state.approved == [id]).await;
    assert!(host.state().assignments.iter().all(|seen| seen.task_id == id), "{waits} has no money");
    // What was never funded can be cancelled on chain, and then never is.
    let cancel = taskmarket::CancelTask { task_id: waits, issued_at: view.updated_at };
    let call = world.chain.calls().cancel(&unfunded, &world.sign(REQUESTER, &cancel));
    world.send(REQUESTER, &call).await.unwrap();
    let view = relay.finally(&world, waits, Money::Cancelled).await;
    assert_eq!(view.status, Status::Cancelled);
}
