//! Settled tasks on a real chain: the agent between a scripted relay, a scripted node and the escrow contract.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use computeagent::RunError;
use escrow::Status;
use http::StatusCode;
use http_body_util::Full;
use link::close_code;
use rpc::link::Assignment;
use rpc::tasks::SignedMutation;
use serde_json::json;
use support::chain::{BUDGET, LONG, STAKE, Settled, WINDOW, address};
use support::*;
use taskmarket::{Address, Amount, ApproveResult, CancelTask, Domain, TaskId, U256};
use wallet::Wallet;

/// Bound and at work.
async fn bound(settled: &mut Settled, session: &link::Session, salt: u8) -> TaskId {
    let offered = settled.funded(salt).await;
    bound_to(settled, session, &offered).await
}

async fn bound_to(settled: &mut Settled, session: &link::Session, offered: &Assignment) -> TaskId {
    let id = offered.task_id;
    settled.accepted(session, offered).await;
    settled.world.node.hold(&id);
    settled.world.node.begins(&id).await;
    id
}

#[tokio::test]
async fn a_task_is_paid_when_its_window_is_over() {
    let Some(mut settled) = Settled::new().await else { return };
    settled.escrow().timing.withdraw_every_secs = 1;
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let offered = settled.funded(1).await;
    let id = offered.task_id;
    let accept = settled.accepted(&session, &offered).await;
    assert!(settled.world.node.requests.lock().unwrap()[0].hold, "it works before it is bound");
    assert_eq!(settled.record(id).await.status, Status::Funded, "bound before the input was there");

    settled.world.node.hold(&id);
    let record = settled.becomes(id, Status::Accepted).await;
    assert_eq!((record.provider, record.attempt), (settled.provider(), 1));
    assert_eq!(record.until, accept.mutation.lease_until, "the relay's acceptance is the chain's");
    settled.world.node.begins(&id).await;
    settled.world.node.finish(&id, b"the result");
    let proof = settled.world.proof().await;
    settled.becomes(id, Status::Proven).await;
    assert_eq!(settled.chain.result_of(id).await.unwrap(), proof.mutation.result_hash);

    let before = settled.chain.balance(Address::ZERO, settled.chain.escrow()).await.unwrap();
    settled.pass(WINDOW).await;
    settled.becomes(id, Status::Paid).await;
    settled.stake_is(STAKE).await;
    let report = settled.earnings(1).await;
    assert_eq!(report[0]["tokens"][0]["earned"], BUDGET.to_string());
    // A payment of less than its gas stays at the contract.
    let after = settled.chain.balance(Address::ZERO, settled.chain.escrow()).await.unwrap();
    assert_eq!(before, after);
    let credit = settled.chain.withdrawable(Address::ZERO, settled.provider()).await.unwrap();
    assert_eq!(credit, Amount(U256::from(BUDGET)));
    agent.stop().await.unwrap();
    // Stake, accept, prove and settle.
    assert_eq!(settled.sent().await, 4);
}

#[tokio::test]
async fn a_task_without_an_arbiter_pays_with_the_proof() {
    let Some(mut settled) = Settled::new().await else { return };
    settled.escrow().timing.withdraw_every_secs = 1;
    settled.escrow().stake = None;
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    let budget = Amount(U256::from(10).pow(U256::from(18)));
    let mut task = settled.task(1).await;
    (task.arbiter, task.dispute_window, task.arbiter_window) = (Address::ZERO, 0, 0);
    (task.budget, task.provider_stake, task.dispute_bond) = (budget, Amount::ZERO, Amount::ZERO);
    let offered = settled.fund(&task).await;
    settled.accepted(&session, &offered).await;
    settled.world.node.hold(&offered.task_id);
    settled.world.node.begins(&offered.task_id).await;
    settled.world.node.finish(&offered.task_id, b"r");
    settled.becomes(offered.task_id, Status::Paid).await;
    // The money goes out by itself.
    settled.pass(5).await;
    let escrow = settled.chain.escrow();
    soon("the money", async {
        while settled.chain.balance(Address::ZERO, escrow).await.unwrap() != Amount::ZERO {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    agent.stop().await.unwrap();
    // Accept, prove and withdraw.
    assert_eq!(settled.sent().await, 3);
}

#[tokio::test]
async fn what_is_not_funded_or_not_wanted_is_refused() {
    let Some(mut settled) = Settled::new().await else { return };
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let task = settled.task(1).await;
    let unfunded = settled.assignment(&task);
    let mut elsewhere = settled.assignment(&task);
    elsewhere.domain.chain_id += 1;
    let mut stranger = task.clone();
    stranger.arbiter = address(4);
    let mut dear = task.clone();
    dear.provider_stake = Amount(U256::from(5_001));
    let mut long = task.clone();
    long.arbiter_window = 10_001;
    let mut token = task.clone();
    token.token = address(5);
    let mut later = settled.funded(2).await;
    later.attempt = 2;
    for (assignment, expected) in [
        (unfunded, "not_funded"),
        (elsewhere, "unsupported_domain"),
        (settled.assignment(&stranger), "terms_not_accepted"),
        (settled.assignment(&dear), "terms_not_accepted"),
        (settled.assignment(&long), "terms_not_accepted"),
        (settled.assignment(&token), "terms_not_accepted"),
        (later, "stale_attempt"),
    ] {
        let (status, body) = offer(&session, &assignment).await;
        assert_eq!(
            (status, body["error"]["code"].as_str()),
            (StatusCode::CONFLICT, Some(expected)),
            "{body}"
        );
    }
    assert!(settled.world.node.requests.lock().unwrap().is_empty());
    // Unsettled tasks are taken as ever.
    accepted(&session, &assignment(9)).await;
    agent.kill().await;
}

#[tokio::test]
async fn an_input_that_cannot_be_fetched_costs_no_stake() {
    let Some(mut settled) = Settled::new().await else { return };
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let offered = settled.funded(1).await;
    let accept = settled.accepted(&session, &offered).await;
    settled.world.node.fail(&offered.task_id, "not_found");
    assert_eq!(settled.world.failed().await.mutation.code, "not_found");
    assert_eq!(settled.record(offered.task_id).await.attempt, 0, "it was bound");
    // Who has the acceptance binds the provider all the same: it gives the attempt back.
    settled.send("bind", settled.chain.calls().accept(&offered.task, &accept.into())).await;
    settled.stake_is(STAKE).await;
    let record = settled.becomes(offered.task_id, Status::Funded).await;
    assert_eq!(record.attempt, 1);
    assert_eq!(settled.sent().await, 2, "the stake, and the attempt given back");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_dies_between_signing_and_sending_accepts_once() {
    let Some(mut settled) = Settled::new().await else { return };
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let offered = settled.funded(1).await;
    settled.accepted(&session, &offered).await;
    settled.endpoint.takes(false);
    settled.world.node.hold(&offered.task_id);
    settled.endpoint.has_dropped().await;
    agent.kill().await;
    drop(session);

    settled.endpoint.takes(true);
    let agent = settled.world.start_again().await;
    let (register, _session) = settled.world.connected().await;
    assert_eq!(register.attempts.len(), 1);
    settled.becomes(offered.task_id, Status::Accepted).await;
    settled.world.node.begins(&offered.task_id).await;
    assert_eq!(settled.sent().await, 2);
    // And again with the proof.
    settled.endpoint.takes(false);
    settled.world.node.finish(&offered.task_id, b"r");
    settled.world.proof().await;
    agent.kill().await;
    settled.endpoint.takes(true);
    let agent = settled.world.start_again().await;
    settled.becomes(offered.task_id, Status::Proven).await;
    agent.stop().await.unwrap();
    assert_eq!(settled.sent().await, 3);
}

#[tokio::test]
async fn an_attempt_without_a_result_is_given_back_in_time() {
    let Some(mut settled) = Settled::new().await else { return };
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let id = bound(&mut settled, &session, 1).await;
    let lease = settled.record(id).await.until;
    let head = settled.chain.head().await.unwrap().time;
    settled.stake_is(STAKE - 600).await;
    settled.pass(lease.since(head) - 80).await;
    settled.becomes(id, Status::Funded).await;
    settled.stake_is(STAKE).await;
    assert_eq!(settled.world.failed().await.mutation.code, "lease_ending");
    assert!(settled.chain.head().await.unwrap().time < lease);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_trusted_requester_pays_in_one_step() {
    let Some(mut settled) = Settled::new().await else { return };
    let requester = Wallet::from_hex(REQUESTER_KEY).unwrap();
    settled.escrow().terms.trusted = vec![requester.address()];
    settled.escrow().stake = None;
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    let offered = settled.funded(1).await;
    settled.accepted(&session, &offered).await;
    assert!(!settled.world.node.requests.lock().unwrap()[0].hold);
    settled.world.node.run(&offered.task_id, 5);
    settled.world.node.finish(&offered.task_id, b"r");
    let proof = settled.world.proof().await.mutation;
    assert_eq!(settled.record(offered.task_id).await.status, Status::Funded);

    let approval = ApproveResult {
        task_id: offered.task_id,
        provider: proof.provider,
        attempt: 1,
        result_hash: proof.result_hash,
        issued_at: now(),
    };
    let path = format!("/tasks/{}/approval", offered.task_id);
    let post = async |wallet: &Wallet, domain: Domain| {
        let signed: SignedMutation<ApproveResult> = wallet.sign(&approval, &domain).unwrap().into();
        let body = Full::new(bytes::Bytes::from(serde_json::to_vec(&signed).unwrap()));
        soon("an answer", session.request(http::Request::post(&path).body(body).unwrap()))
            .await
            .unwrap()
            .status()
    };
    let domain = settled.chain.domain();
    assert_eq!(post(&Wallet::random(), domain).await, StatusCode::NOT_FOUND, "anybody's word counts");
    assert_eq!(post(&requester, Domain::UNSETTLED).await, StatusCode::NOT_FOUND);
    assert_eq!(post(&requester, domain).await, StatusCode::NO_CONTENT);
    settled.becomes(offered.task_id, Status::Paid).await;
    settled.earnings(1).await;
    agent.stop().await.unwrap();
    assert_eq!(settled.sent().await, 1);
}

#[tokio::test]
async fn payments_that_are_due_together_are_taken_together() {
    let Some(mut settled) = Settled::new().await else { return };
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let mut ids = Vec::new();
    for salt in 1..=3 {
        let id = bound(&mut settled, &session, salt).await;
        settled.world.node.finish(&id, b"r");
        settled.becomes(id, Status::Proven).await;
        ids.push(id);
        // The first may be due a little before the last, and waits for it.
        settled.pass(5).await;
    }
    settled.endpoint.has_looked().await;
    let sent = settled.sent().await;
    settled.pass(WINDOW - 12).await;
    for _ in 0..6 {
        settled.pass(5).await;
    }
    for id in ids {
        settled.becomes(id, Status::Paid).await;
    }
    settled.earnings(3).await;
    assert_eq!(settled.sent().await, sent + 1);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_stopped_proves_before_it_ends() {
    let Some(mut settled) = Settled::new().await else { return };
    settled.world.config.drain = Duration::from_secs(15);
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let id = bound(&mut settled, &session, 1).await;
    settled.endpoint.takes(false);
    settled.world.node.finish(&id, b"r");
    settled.world.proof().await;
    agent.shutdown.cancel();
    settled.endpoint.has_dropped().await;
    settled.endpoint.has_looked().await;
    assert!(!agent.task.is_finished());
    settled.endpoint.takes(true);
    agent.ended().await.unwrap();
    assert_eq!(settled.record(id).await.status, Status::Proven);
}

#[tokio::test]
async fn a_relay_that_turns_the_agent_away_takes_no_stake_by_it() {
    let Some(mut settled) = Settled::new().await else { return };
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let computing = bound(&mut settled, &session, 1).await;
    let proven = bound(&mut settled, &session, 2).await;
    settled.endpoint.takes(false);
    settled.world.node.finish(&proven, b"r");
    settled.world.proof().await;
    session.close(close_code::REFUSED, "not wanted");
    settled.endpoint.has_dropped().await;
    settled.endpoint.has_looked().await;
    assert!(!agent.task.is_finished());
    settled.endpoint.takes(true);
    let error = agent.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Refused { .. }), "{error}");
    assert_eq!(settled.record(proven).await.status, Status::Proven);
    assert_eq!(settled.record(computing).await.status, Status::Funded);
    assert!(!settled.world.node.knows(&computing));
}

#[tokio::test]
async fn claims_on_another_contract_are_left_alone() {
    let Some(mut settled) = Settled::new().await else { return };
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let mut task = settled.task(1).await;
    task.dispute_window = 9_000;
    let offered = settled.fund(&task).await;
    let id = bound_to(&mut settled, &session, &offered).await;
    settled.world.node.finish(&id, b"r");
    settled.becomes(id, Status::Proven).await;
    agent.stop().await.unwrap();

    let first = settled.chain.domain();
    let deployed =
        escrow::tx::deploy(&settled.requester, "another", escrow::tx::PERMIT2, LONG).await.unwrap();
    settled.escrow().domain = deployed.chain.domain();
    settled.escrow().stake = None;
    let agent = settled.world.start_again().await;
    settled.world.connected().await;
    let head = settled.chain.head().await.unwrap().time;
    settled.pass(task.deadline.since(head)).await;
    settled.endpoint.has_looked().await;
    agent.stop().await.unwrap();

    settled.escrow().domain = first;
    let agent = settled.world.start_again().await;
    settled.pass(task.dispute_window).await;
    settled.becomes(id, Status::Paid).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_claim_outlives_a_withdrawal_that_a_reorganisation_drops() {
    let Some(mut settled) = Settled::new().await else { return };
    settled.escrow().confirmations = 3;
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let offered = settled.funded(1).await;
    let id = offered.task_id;
    settled.tell("anvil_mine", json!(["0x3"])).await;
    settled.accepted(&session, &offered).await;
    let before = settled.tell("evm_snapshot", json!([])).await;
    let cancel = CancelTask { task_id: id, issued_at: now() };
    let requester = Wallet::from_hex(REQUESTER_KEY).unwrap();
    let cancel = requester.sign(&cancel, &settled.chain.domain()).unwrap();
    settled.send("cancel", settled.chain.calls().cancel(&offered.task, &cancel)).await;
    settled.becomes(id, Status::Cancelled).await;
    settled.endpoint.has_looked().await;

    assert_eq!(settled.tell("evm_revert", json!([before])).await, true);
    settled.world.node.hold(&id);
    settled.becomes(id, Status::Accepted).await;
    settled.world.node.begins(&id).await;
    agent.kill().await;
}

#[tokio::test]
async fn a_claim_ends_with_a_withdrawal_that_is_final() {
    let Some(mut settled) = Settled::new().await else { return };
    settled.escrow().confirmations = 3;
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let offered = settled.funded(1).await;
    settled.tell("anvil_mine", json!(["0x3"])).await;
    settled.accepted(&session, &offered).await;
    let cancel = CancelTask { task_id: offered.task_id, issued_at: now() };
    let requester = Wallet::from_hex(REQUESTER_KEY).unwrap();
    let cancel = requester.sign(&cancel, &settled.chain.domain()).unwrap();
    settled.send("cancel", settled.chain.calls().cancel(&offered.task, &cancel)).await;
    settled.endpoint.has_looked().await;
    assert!(settled.world.node.knows(&offered.task_id), "not final yet");
    settled.tell("anvil_mine", json!(["0x2"])).await;
    settled.world.node.forgets(&offered.task_id).await;
    agent.kill().await;
}
