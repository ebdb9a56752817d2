//! What the chain takes back, at each step of the agent: it is sent again, and nothing counts before it is final.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use escrow::Status;
use rpc::link::Assignment;
use serde_json::json;
use support::chain::{BUDGET, STAKE, Settled, WINDOW};
use support::*;
use taskmarket::{ApproveResult, TaskId};
use wallet::Wallet;

/// So many blocks make a transaction final here.
const CONFIRMATIONS: u64 = 3;

/// A chain and an agent that waits for confirmations, its stake in, and its session.
async fn started() -> Option<(Settled, Running, link::Session)> {
    let mut settled = Settled::new().await?;
    settled.escrow().confirmations = CONFIRMATIONS;
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    settled.mine(CONFIRMATIONS).await;
    Some((settled, agent, session))
}

/// A task that is offered and taken, with model and input at hand.
async fn reserved(settled: &Settled, session: &link::Session) -> Assignment {
    let offered = settled.funded(1).await;
    settled.mine(CONFIRMATIONS).await;
    settled.accepted(session, &offered).await;
    settled.world.node.hold(&offered.task_id);
    offered
}

/// Waits for a step that the agent makes, has the chain take it back, and waits until it is there again and final.
async fn again(settled: &Settled, id: TaskId, status: Status) {
    settled.becomes(id, status).await;
    let first = settled.last_block(id).await;
    settled.take_back().await;
    settled.becomes(id, status).await;
    settled.mine(CONFIRMATIONS).await;
    settled.endpoint.has_looked().await;
    assert_eq!(settled.record(id).await.status, status);
    assert_ne!(settled.last_block(id).await, first, "nothing was taken back");
}

#[tokio::test]
async fn each_step_to_the_payment_is_made_again() {
    let Some((mut settled, agent, session)) = started().await else { return };
    let id = reserved(&settled, &session).await.task_id;
    again(&settled, id, Status::Accepted).await;
    settled.world.node.begins(&id).await;
    settled.world.node.finish(&id, b"r");
    settled.world.proof().await;
    again(&settled, id, Status::Proven).await;
    settled.pass(WINDOW).await;
    again(&settled, id, Status::Paid).await;
    let report = settled.earnings(1).await;
    assert_eq!(report[0]["tokens"][0]["earned"], BUDGET.to_string());
    settled.stake_is(STAKE).await;
    agent.stop().await.unwrap();
    // Stake, accept, prove and settle: each has one nonce, however often it was sent.
    assert_eq!(settled.sent().await, 4);
}

#[tokio::test]
async fn an_attempt_that_was_given_back_is_given_back_again() {
    let Some((mut settled, agent, session)) = started().await else { return };
    let id = reserved(&settled, &session).await.task_id;
    again(&settled, id, Status::Accepted).await;
    settled.world.node.begins(&id).await;
    settled.world.node.fail(&id, "node_failed");
    again(&settled, id, Status::Funded).await;
    settled.world.failed().await;
    settled.stake_is(STAKE).await;
    agent.stop().await.unwrap();
    // Stake, accept and fail.
    assert_eq!(settled.sent().await, 3);
}

#[tokio::test]
async fn a_payment_by_the_requester_that_is_taken_back_is_taken_after_the_window() {
    let Some((mut settled, agent, session)) = started().await else { return };
    let offered = reserved(&settled, &session).await;
    let id = offered.task_id;
    settled.world.node.begins(&id).await;
    settled.world.node.finish(&id, b"r");
    let proof = settled.world.proof().await.mutation;
    settled.becomes(id, Status::Proven).await;
    settled.mine(CONFIRMATIONS).await;
    settled.endpoint.has_looked().await;
    let approval = ApproveResult {
        task_id: id,
        provider: proof.provider,
        attempt: 1,
        result_hash: proof.result_hash,
        issued_at: now(),
    };
    let requester = Wallet::from_hex(REQUESTER_KEY).unwrap();
    let approval = requester.sign(&approval, &settled.chain.domain()).unwrap();
    settled.send("approve", settled.chain.calls().approve(&offered.task, &approval)).await;
    assert_eq!(settled.record(id).await.status, Status::Paid);
    settled.endpoint.has_looked().await;
    // The requester does not look any more, and nobody sends it again.
    settled.take_back().await;
    assert_eq!(settled.record(id).await.status, Status::Proven);
    settled.pass(WINDOW).await;
    settled.becomes(id, Status::Paid).await;
    settled.mine(CONFIRMATIONS).await;
    settled.earnings(1).await;
    agent.stop().await.unwrap();
    // Stake, accept, prove, and settle.
    assert_eq!(settled.sent().await, 4);
}

#[tokio::test]
async fn stake_in_a_token_that_is_taken_back_after_it_was_final_is_put_in_again_with_its_allowance() {
    let Some(mut settled) = Settled::new().await else { return };
    let token = settled.make_token().await;
    settled.escrow().stake = Some((token, STAKE.to_string().parse().unwrap()));
    let before = settled.tell("evm_snapshot", json!([])).await;
    let agent = settled.world.start();
    let (_, _session) = settled.world.connected().await;
    settled.stake_in_is(token, STAKE).await;
    // The looks at the chain after which it counts as done.
    settled.endpoint.has_looked().await;
    settled.tell("evm_revert", json!([before])).await;
    assert_eq!(settled.sent().await, 0);
    settled.stake_in_is(token, STAKE).await;
    agent.stop().await.unwrap();
    assert_eq!(settled.sent().await, 2);
    let allowed = settled.chain.allowance(token, settled.provider(), settled.chain.escrow()).await.unwrap();
    assert_eq!(allowed, taskmarket::Amount::ZERO);
}
