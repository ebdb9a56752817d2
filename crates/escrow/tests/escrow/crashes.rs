//! A process that ends between any two lines, and an account that others use too: each purpose is paid once.

use escrow::tx::{OutboxError, State, Trouble};

use crate::support::{
    Box0, LONG, Mood, Proxy, SHORT, anvil, balance, config, mine, nonce, pay, rpc_to, stranger,
};
use alloy_primitives::U256;

#[tokio::test]
async fn a_crash_after_planning_loses_nothing() {
    let Some(anvil) = anvil(&[]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let to = stranger();
    let outbox = place.open().await;
    outbox.submit("pay", pay(to)).await.unwrap();
    drop(outbox);

    let outbox = place.open().await;
    assert!(matches!(outbox.wait("pay", LONG).await.unwrap().state, State::Done(_)));
    assert_eq!(balance(&place.rpc, to).await, U256::ONE);
}

#[tokio::test]
async fn a_crash_between_signing_and_sending_sends_what_was_signed() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::TakesNone).await;
    let place = Box0::new(rpc_to(vec![proxy.url()]), config());
    let to = stranger();
    let outbox = place.open().await;
    let error = outbox.send("pay", pay(to), SHORT).await.unwrap_err();
    assert!(matches!(error, OutboxError::Chain(_)), "{error}");
    let entry = outbox.get("pay").await.unwrap().unwrap();
    assert!(matches!(entry.state, State::Signed(_)), "{entry:?}");
    let signed = entry.pending().unwrap().signed[0].hash;
    assert!(proxy.passed().is_empty());
    drop(outbox);

    proxy.set(Mood::Honest);
    let outbox = place.open().await;
    let mined = outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!((mined.tx, proxy.passed()), (signed, vec![signed]));
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 1));
}

#[tokio::test]
async fn a_crash_between_sending_and_recording_does_not_send_anew() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::DiesAfterTaking).await;
    let place = Box0::new(rpc_to(vec![proxy.url()]), config());
    let to = stranger();
    let outbox = place.open().await;
    outbox.submit("pay", pay(to)).await.unwrap();
    // The chain has it; this process does not know.
    assert!(outbox.step().await.is_err());
    assert!(matches!(outbox.get("pay").await.unwrap().unwrap().state, State::Signed(_)));
    assert_eq!(proxy.passed().len(), 1);
    drop(outbox);

    proxy.set(Mood::Honest);
    let outbox = place.open().await;
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!(proxy.passed().len(), 1);
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 1));
}

#[tokio::test]
async fn a_nonce_that_another_program_took_is_replaced_once_that_is_final() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::TakesNone).await;
    let confirmed = escrow::tx::OutboxConfig { confirmations: 3, ..config() };
    let place = Box0::new(rpc_to(vec![proxy.url()]), confirmed);
    let to = stranger();
    let outbox = place.open().await;
    assert!(outbox.send("pay", pay(to), SHORT).await.is_err());

    let other = Box0::new(rpc_to(vec![anvil.url()]), config());
    other.open().await.send("other", pay(stranger()), LONG).await.unwrap();
    proxy.set(Mood::Honest);
    outbox.step().await.unwrap();
    let entry = outbox.get("pay").await.unwrap().unwrap();
    assert!(entry.pending().is_some_and(|pending| pending.nonce == 0), "not final yet: {entry:?}");
    mine(&place.rpc, 3).await;
    outbox.step().await.unwrap();
    outbox.step().await.unwrap();
    let entry = outbox.get("pay").await.unwrap().unwrap();
    assert!(entry.pending().is_some_and(|pending| pending.nonce == 0), "a receipt may come: {entry:?}");
    drop(outbox);

    let impatient =
        escrow::tx::OutboxConfig { stuck_after: std::time::Duration::ZERO, ..place.config.clone() };
    let place = Box0 { config: impatient, ..place };
    let outbox = place.open().await;
    outbox.step().await.unwrap();
    outbox.step().await.unwrap();
    let entry = outbox.get("pay").await.unwrap().unwrap();
    assert!(entry.pending().is_some_and(|pending| pending.nonce == 1), "{entry:?}");
    mine(&place.rpc, 3).await;
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 2));
}

#[tokio::test]
async fn a_receipt_that_comes_late_is_waited_for() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::KnowsNoReceipt).await;
    let place = Box0::new(rpc_to(vec![proxy.url()]), config());
    let to = stranger();
    let outbox = place.open().await;
    outbox.submit("pay", pay(to)).await.unwrap();
    for _ in 0..5 {
        outbox.step().await.unwrap();
    }
    let entry = outbox.get("pay").await.unwrap().unwrap();
    assert!(entry.pending().is_some_and(|pending| pending.nonce == 0), "{entry:?}");
    proxy.set(Mood::Honest);
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 1));
}

#[tokio::test]
async fn a_block_that_a_reorganisation_drops_is_made_good() {
    let Some(anvil) = anvil(&[]).await else { return };
    let confirmed = escrow::tx::OutboxConfig { confirmations: 3, ..config() };
    let place = Box0::new(rpc_to(vec![anvil.url()]), confirmed);
    let to = stranger();
    let outbox = place.open().await;
    let before: serde_json::Value = place.rpc.request("evm_snapshot", serde_json::json!([])).await.unwrap();
    outbox.submit("pay", pay(to)).await.unwrap();
    outbox.step().await.unwrap();
    outbox.step().await.unwrap();
    assert!(matches!(outbox.get("pay").await.unwrap().unwrap().state, State::Mined { .. }));

    let reverted: bool = place.rpc.request("evm_revert", serde_json::json!([before])).await.unwrap();
    assert!(reverted);
    assert_eq!(balance(&place.rpc, to).await, U256::ZERO);
    outbox.step().await.unwrap();
    assert_eq!(balance(&place.rpc, to).await, U256::ONE, "it was sent again");
    mine(&place.rpc, 3).await;
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!(nonce(&place.rpc, outbox.account()).await, 1);
}

#[tokio::test]
async fn what_was_done_and_is_gone_is_sent_again_as_it_was_signed() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::Honest).await;
    let place = Box0::new(rpc_to(vec![proxy.url()]), config());
    let to = stranger();
    let outbox = place.open().await;
    let before: serde_json::Value = place.rpc.request("evm_snapshot", serde_json::json!([])).await.unwrap();
    let mined = outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!(outbox.recheck("pay").await.unwrap().state, State::Done(mined), "it stands");

    let reverted: bool = place.rpc.request("evm_revert", serde_json::json!([before])).await.unwrap();
    assert!(reverted);
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!(balance(&place.rpc, to).await, U256::ZERO, "what is done is not looked at unasked");
    proxy.set(Mood::TakesNone);
    assert!(outbox.recheck("pay").await.is_err());
    drop(outbox);

    proxy.set(Mood::Honest);
    let outbox = place.open().await;
    let again = outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!((again.tx, proxy.passed()), (mined.tx, vec![mined.tx]));
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 1));
}

#[tokio::test]
async fn what_was_done_is_not_sent_again_where_no_endpoint_has_its_receipt_any_more() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::Honest).await;
    let impatient = escrow::tx::OutboxConfig { stuck_after: std::time::Duration::ZERO, ..config() };
    let place = Box0::new(rpc_to(vec![proxy.url()]), impatient);
    let to = stranger();
    let outbox = place.open().await;
    let mined = outbox.send("pay", pay(to), LONG).await.unwrap();
    proxy.set(Mood::KnowsNoReceipt);
    assert_eq!(outbox.recheck("pay").await.unwrap().state, State::Done(mined));
    for _ in 0..5 {
        outbox.step().await.unwrap();
    }
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 1));
    assert_eq!(outbox.recheck("pay").await.unwrap().state, State::Done(mined));
}

#[tokio::test]
async fn what_has_ended_is_planned_anew_on_request_alone() {
    let Some(anvil) = anvil(&[]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let to = stranger();
    let outbox = place.open().await;
    assert!(matches!(outbox.renew("pay", pay(to)).await, Err(OutboxError::Unknown { .. })));
    outbox.submit("pay", pay(to)).await.unwrap();
    outbox.step().await.unwrap();
    let under_way = outbox.renew("pay", pay(to)).await.unwrap();
    assert!(under_way.pending().is_some(), "what is on its way goes on: {under_way:?}");
    outbox.close("pay").await.unwrap();
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!(balance(&place.rpc, to).await, U256::ONE);

    outbox.renew("pay", pay(to)).await.unwrap();
    outbox.send("pay", pay(to), LONG).await.unwrap();
    outbox.close("pay").await.unwrap();
    assert_eq!(outbox.get("pay").await.unwrap(), None);
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!(balance(&place.rpc, to).await, U256::from(3));
}

#[tokio::test]
async fn a_gap_before_what_was_signed_is_filled() {
    let Some(anvil) = anvil(&["--no-mining"]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    // Another program's transaction takes nonce 0, and is dropped after ours took 1.
    let other = Box0::new(place.rpc.clone(), config());
    let theirs = other.open().await;
    theirs.submit("other", pay(stranger())).await.unwrap();
    theirs.step().await.unwrap();
    let to = stranger();
    let outbox = place.open().await;
    outbox.submit("pay", pay(to)).await.unwrap();
    outbox.step().await.unwrap();
    assert_eq!(outbox.get("pay").await.unwrap().unwrap().pending().unwrap().nonce, 1);
    drop(outbox);
    place.rpc.request::<serde_json::Value>("anvil_dropAllTransactions", serde_json::json!([])).await.unwrap();

    let place = Box0 {
        config: escrow::tx::OutboxConfig { stuck_after: std::time::Duration::ZERO, ..config() },
        ..place
    };
    let outbox = place.open().await;
    outbox.step().await.unwrap();
    mine(&place.rpc, 1).await;
    outbox.wait("pay", LONG).await.unwrap();
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 2));
}

#[tokio::test]
async fn an_account_without_money_waits_and_goes_on_when_refilled() {
    let Some(anvil) = anvil(&[]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let poor = wallet::Wallet::random();
    let to = stranger();
    let outbox = place.open_as(poor.clone()).await;
    let error = outbox.send("pay", pay(to), LONG).await.unwrap_err();
    assert!(
        matches!(error, OutboxError::InsufficientFunds { account, .. } if account == poor.address()),
        "{error}"
    );
    let entry = outbox.get("pay").await.unwrap().unwrap();
    assert!(matches!(entry.trouble, Some(Trouble::InsufficientFunds { .. })) && !entry.is_final());
    drop(outbox);

    let ether = format!("{:#x}", U256::from(1_000_000_000_000_000_000_u64));
    place
        .rpc
        .request::<serde_json::Value>("anvil_setBalance", serde_json::json!([poor.address(), ether]))
        .await
        .unwrap();
    let outbox = place.open_as(poor).await;
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!(balance(&place.rpc, to).await, U256::ONE);
}

#[tokio::test]
async fn what_is_planned_can_be_withdrawn_and_what_is_signed_cannot() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::TakesNone).await;
    let place = Box0::new(rpc_to(vec![proxy.url()]), config());
    let to = stranger();
    let outbox = place.open().await;
    outbox.submit("planned", pay(to)).await.unwrap();
    assert!(outbox.withdraw("planned").await.unwrap() && outbox.withdraw("unknown").await.unwrap());
    assert_eq!(outbox.get("planned").await.unwrap(), None);

    let error = outbox.send("signed", pay(to), SHORT).await.unwrap_err();
    assert!(matches!(error, OutboxError::Chain(_)), "{error}");
    assert!(!outbox.withdraw("signed").await.unwrap());
    proxy.set(Mood::Honest);
    outbox.wait("signed", LONG).await.unwrap();
    assert!(!outbox.withdraw("signed").await.unwrap(), "what is done is remembered");
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 1));
}
