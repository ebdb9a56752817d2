//! The contract through this crate: deployed, known, called, refused, read.

use alloy_primitives::{Address, U256};
use escrow::abi::ZORAIComputeEscrowEvents as Event;
use escrow::anvil::Anvil;
use escrow::tx::{self, FailureReason, Outbox, OutboxError, State};
use escrow::{At, Call, Chain, ChainError, Status};
use serde_json::json;
use taskmarket::{
    AcceptTask, Amount, ApproveResult, Bytes32, CancelTask, ComputeProof, ContentHash, Runtime, Task,
    TaskConfig, Timestamp,
};

use crate::support::{Box0, LONG, anvil, config, mine, rpc_to, wallet};

pub(crate) struct Market {
    pub(crate) anvil: Anvil,
    pub(crate) place: Box0,
    pub(crate) chain: Chain,
    deployer: Outbox,
}

pub(crate) async fn market(args: &[&str]) -> Option<Market> {
    let anvil = anvil(args).await?;
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let deployer = place.open().await;
    let deployed = tx::deploy(&deployer, "deploy", tx::PERMIT2, LONG).await.unwrap();
    assert_eq!(deployed.chain_id, 31337);
    Some(Market { anvil, place, chain: deployed.chain, deployer })
}

fn hash(byte: u8) -> ContentHash {
    ContentHash([byte; 32].into())
}

pub(crate) fn task(now: Timestamp) -> Task {
    Task {
        requester: wallet(1).address(),
        model_cid: "https://models.example/m".parse().unwrap(),
        model_hash: hash(1),
        input_cid: "https://inputs.example/i?token=private".parse().unwrap(),
        input_hash: hash(2),
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".to_owned(),
            gpu_type: "A100".to_owned(),
            gpu_count: 1,
            min_vram: 40960,
            max_duration: 600,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: Amount(U256::from(1000)),
        provider_stake: Amount(U256::from(500)),
        dispute_bond: Amount(U256::from(500)),
        deadline: now.plus(3600),
        dispute_window: 3600,
        arbiter_window: 3600,
        arbiter: wallet(3).address(),
        salt: Bytes32([7; 32].into()),
    }
}

#[tokio::test]
async fn a_task_is_funded_accepted_proven_approved_and_withdrawn() {
    let Some(market) = market(&[]).await else { return };
    let (chain, calls) = (&market.chain, market.chain.calls());
    let now = chain.head().await.unwrap().time;
    let task = task(now);
    let id = task.id(&chain.domain());
    assert_eq!(chain.task_id(&task).await.unwrap(), id);
    assert_eq!(chain.record(id).await.unwrap().status, Status::None);

    let requester = market.place.open_as(wallet(1)).await;
    let provider = market.place.open_as(wallet(2)).await;
    let funded = requester.send("fund", calls.fund(&task), LONG).await.unwrap();
    provider.send("stake", calls.stake(Address::ZERO, task.provider_stake), LONG).await.unwrap();
    let stake = chain.stake(Address::ZERO, wallet(2).address()).await.unwrap();
    assert_eq!((stake.free, stake.reliable()), (task.provider_stake, task.provider_stake));

    let domain = chain.domain();
    let accept =
        AcceptTask { task_id: id, provider: wallet(2).address(), attempt: 1, lease_until: now.plus(900) };
    let accept = wallet(2).sign(&accept, &domain).unwrap();
    provider.send("accept", calls.accept(&task, &accept), LONG).await.unwrap();
    let record = chain.record(id).await.unwrap();
    assert_eq!((record.provider, record.attempt, record.status), (wallet(2).address(), 1, Status::Accepted));
    assert_eq!(record.until, now.plus(900));
    assert!(!record.is_lapsed(now.plus(899)) && record.is_lapsed(now.plus(900)));

    let proof = ComputeProof {
        task_id: id,
        provider: wallet(2).address(),
        attempt: 1,
        model_hash: hash(1),
        input_hash: hash(2),
        result_hash: hash(3),
        result_cid: format!("artifact://{}", hash(3)).parse().unwrap(),
        started_at: now,
        finished_at: now.plus(5),
        gpu_name: "NVIDIA A100".to_owned(),
    };
    let proof = wallet(2).sign(&proof, &domain).unwrap();
    provider.send("prove", calls.prove_batch([(&task, &proof)]), LONG).await.unwrap();
    assert_eq!(chain.result_of(id).await.unwrap(), hash(3));

    let approval = ApproveResult {
        task_id: id,
        provider: wallet(2).address(),
        attempt: 1,
        result_hash: hash(3),
        issued_at: now,
    };
    let approval = wallet(1).sign(&approval, &domain).unwrap();
    let paid = requester.send("approve", calls.approve(&task, &approval), LONG).await.unwrap();
    assert_eq!(chain.record(id).await.unwrap().status, Status::Paid);
    assert_eq!(chain.withdrawable(Address::ZERO, wallet(2).address()).await.unwrap(), task.budget);

    let logs = chain.logs(0, paid.block, Some(id)).await.unwrap();
    let transactions: Vec<_> = logs.iter().map(|log| log.tx).collect();
    assert_eq!((transactions.len(), transactions[0], transactions[3]), (4, funded.tx, paid.tx));
    assert!(matches!(&logs[3].event, Event::TaskPaid(event) if event.resultHash == hash(3).0));
    assert_eq!(chain.transaction_logs(paid.tx).await.unwrap().unwrap(), logs[3..]);
    assert_eq!(chain.record_at(id, At::Block(funded.block)).await.unwrap().status, Status::Funded);

    let to = crate::support::stranger();
    provider.send("withdraw", calls.withdraw(Address::ZERO, to), LONG).await.unwrap();
    assert_eq!(chain.balance(Address::ZERO, to).await.unwrap(), task.budget);
}

#[tokio::test]
async fn what_the_contract_refuses_is_named_and_can_be_tried_again() {
    let Some(market) = market(&[]).await else { return };
    let (chain, calls) = (&market.chain, market.chain.calls());
    let mut task = task(chain.head().await.unwrap().time);
    let error = market.deployer.send("settle", calls.settle(&task), LONG).await.unwrap_err();
    let OutboxError::Failed { reason, .. } = error else { panic!("{error}") };
    assert!(matches!(&reason, FailureReason::Refused { .. }) && reason.name() == "WrongStatus", "{reason}");
    assert!(reason.to_string().contains("`status`"), "{reason}");

    task.dispute_bond = Amount(U256::from(1));
    market.deployer.submit("fund", calls.fund(&task)).await.unwrap();
    let entry = market.deployer.wait("fund", LONG).await.unwrap();
    assert!(
        matches!(&entry.state, State::Failed(reason) if reason.name() == "StakeOrBondTooSmall"),
        "{entry:?}"
    );
    task.dispute_bond = Amount(U256::from(500));
    market.deployer.retry("fund", calls.fund(&task)).await.unwrap();
    let entry = market.deployer.wait("fund", LONG).await.unwrap();
    assert!(matches!(entry.state, State::Done(_)), "{entry:?}");
}

#[tokio::test]
async fn what_is_reverted_in_a_block_is_named_too() {
    let Some(market) = market(&[]).await else { return };
    let (chain, calls) = (&market.chain, market.chain.calls());
    let task = task(chain.head().await.unwrap().time);
    let id = task.id(&chain.domain());
    let cancel = CancelTask { task_id: id, issued_at: task.deadline };
    let cancel = wallet(1).sign(&cancel, &chain.domain()).unwrap();
    // Both would succeed alone; in one block the second cannot.
    let rpc = chain.rpc();
    rpc.request::<serde_json::Value>("evm_setAutomine", json!([false])).await.unwrap();
    let (first, second) = (market.place.open_as(wallet(1)).await, market.place.open_as(wallet(2)).await);
    for outbox in [&first, &second] {
        outbox.submit("cancel", calls.cancel(&task, &cancel)).await.unwrap();
        outbox.step().await.unwrap();
    }
    mine(rpc, 1).await;
    let states =
        [first, second].map(|outbox| async move { outbox.wait("cancel", LONG).await.unwrap().state });
    let [one, two] = states;
    let (one, two) = (one.await, two.await);
    let failed = if matches!(one, State::Done(_)) { two } else { one };
    assert!(
        matches!(&failed, State::Failed(reason @ FailureReason::Reverted { .. }) if reason.name() == "WrongStatus"),
        "{failed:?}"
    );
    assert_eq!(chain.record(id).await.unwrap().status, Status::Cancelled);
}

#[tokio::test]
async fn only_the_escrow_is_taken_for_the_escrow() {
    let Some(market) = market(&[]).await else { return };
    let rpc = market.chain.rpc().clone();
    let nobody = crate::support::stranger();
    let error = Chain::connect(rpc.clone(), nobody).await.unwrap_err();
    assert!(matches!(error, ChainError::NoContract { .. }), "{error}");
    // Creation code that leaves the single byte 0x00 as the contract.
    let call = Call { to: None, value: U256::ZERO, data: alloy_primitives::bytes!("60016000f3") };
    let mined = market.deployer.send("other", call, LONG).await.unwrap();
    let error = Chain::connect(rpc, mined.contract.unwrap()).await.unwrap_err();
    assert!(matches!(error, ChainError::OtherContract { .. }), "{error}");
}

#[tokio::test]
async fn a_contract_that_a_reorganisation_dropped_is_deployed_again() {
    let Some(anvil) = anvil(&[]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let outbox = place.open().await;
    let before: serde_json::Value = place.rpc.request("evm_snapshot", json!([])).await.unwrap();
    let first = tx::deploy(&outbox, "deploy", tx::PERMIT2, LONG).await.unwrap();
    let same = tx::deploy(&outbox, "deploy", tx::PERMIT2, LONG).await.unwrap();
    assert_eq!((same.tx, same.block), (first.tx, first.block));
    assert!(place.rpc.request::<bool>("evm_revert", json!([before])).await.unwrap());
    let again = tx::deploy(&outbox, "deploy", tx::PERMIT2, LONG).await.unwrap();
    assert_eq!((again.tx, again.address), (first.tx, first.address));
}
