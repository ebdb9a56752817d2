//! Sending: once for a purpose, several at a time, with fees that rise within a cap.

use std::time::Duration;

use alloy_primitives::U256;
use escrow::tx::{Outbox, OutboxConfig, OutboxError, State, Trouble};
use tokio_util::sync::CancellationToken;

use crate::support::{Box0, LONG, SHORT, anvil, balance, config, mine, nonce, pay, rpc_to, stranger, wallet};

#[tokio::test]
async fn a_purpose_is_sent_once() {
    let Some(anvil) = anvil(&[]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let outbox = place.open().await;
    let (first, second) = (stranger(), stranger());
    let mined = outbox.send("pay", pay(first), LONG).await.unwrap();
    assert_eq!(outbox.send("pay", pay(second), LONG).await.unwrap(), mined);
    assert_eq!(
        (balance(&place.rpc, first).await, balance(&place.rpc, second).await),
        (U256::ONE, U256::ZERO)
    );
    assert!(matches!(outbox.retry("pay", pay(second)).await, Err(OutboxError::NotFailed { .. })));
    assert!(matches!(outbox.wait("other", SHORT).await, Err(OutboxError::Unknown { .. })));
}

#[tokio::test]
async fn one_process_at_a_time_sends_for_an_account() {
    let Some(anvil) = anvil(&[]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let outbox = place.open().await;
    let second = Outbox::open(place.folder.path(), place.rpc.clone(), wallet(0), config()).await;
    assert!(matches!(second, Err(OutboxError::InUse { .. })));
    // Another account of the same chain has an outbox of its own there.
    let other = place.open_as(wallet(1)).await;
    drop(outbox);
    place.open().await;
    drop(other);
}

#[tokio::test]
async fn several_are_on_their_way_at_once_and_callers_share_the_looking() {
    let Some(anvil) = anvil(&["--no-mining"]).await else { return };
    let place = Box0::new(rpc_to(vec![anvil.url()]), config());
    let outbox = place.open().await;
    let to = stranger();
    for index in 0..5 {
        outbox.submit(&format!("pay:{index}"), pay(to)).await.unwrap();
    }
    outbox.step().await.unwrap();
    let entries = outbox.unfinished().await.unwrap();
    let mut nonces: Vec<u64> = entries.iter().map(|entry| entry.pending().unwrap().nonce).collect();
    nonces.sort_unstable();
    assert_eq!(nonces, [0, 1, 2, 3, 4]);
    let token = CancellationToken::new();
    let run = tokio::spawn({
        let (outbox, token) = (outbox.clone(), token.clone());
        async move { outbox.run(token).await }
    });
    mine(&place.rpc, 1).await;
    let waits = (0..5).map(|index| {
        let outbox = outbox.clone();
        tokio::spawn(async move { outbox.wait(&format!("pay:{index}"), LONG).await.unwrap().is_final() })
    });
    for wait in waits.collect::<Vec<_>>() {
        assert!(wait.await.unwrap());
    }
    token.cancel();
    run.await.unwrap();
    assert_eq!(
        (balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await),
        (U256::from(5), 5)
    );
}

#[tokio::test]
async fn a_stuck_transaction_is_replaced_by_a_dearer_one_and_mined_once() {
    let Some(anvil) = anvil(&["--no-mining"]).await else { return };
    let place =
        Box0::new(rpc_to(vec![anvil.url()]), OutboxConfig { stuck_after: Duration::ZERO, ..config() });
    let outbox = place.open().await;
    let to = stranger();
    outbox.submit("pay", pay(to)).await.unwrap();
    for _ in 0..3 {
        outbox.step().await.unwrap();
    }
    let pending = outbox.get("pay").await.unwrap().unwrap().pending().unwrap().clone();
    assert_eq!(pending.signed.len(), 3);
    for pair in pending.signed.windows(2) {
        assert!(pair[1].max_fee_per_gas * 8 >= pair[0].max_fee_per_gas * 9, "{pair:?}");
        assert!(pair[1].max_priority_fee_per_gas * 8 >= pair[0].max_priority_fee_per_gas * 9, "{pair:?}");
    }
    mine(&place.rpc, 1).await;
    outbox.send("pay", pay(to), LONG).await.unwrap();
    assert_eq!((balance(&place.rpc, to).await, nonce(&place.rpc, outbox.account()).await), (U256::ONE, 1));
}

#[tokio::test]
async fn fees_stay_below_the_cap() {
    let Some(anvil) = anvil(&["--no-mining"]).await else { return };
    let capped = OutboxConfig { stuck_after: Duration::ZERO, max_fee_per_gas: 3_100_000_000, ..config() };
    let place = Box0::new(rpc_to(vec![anvil.url()]), capped);
    let outbox = place.open().await;
    outbox.submit("pay", pay(stranger())).await.unwrap();
    for _ in 0..3 {
        outbox.step().await.unwrap();
    }
    let entry = outbox.get("pay").await.unwrap().unwrap();
    assert!(matches!(entry.trouble, Some(Trouble::FeesAboveCap { cap: 3_100_000_000, .. })), "{entry:?}");
    assert!(entry.pending().unwrap().signed.iter().all(|signed| signed.max_fee_per_gas <= 3_100_000_000));
    assert!(matches!(entry.state, State::Sent(_)));

    let poor = Box0::new(place.rpc.clone(), OutboxConfig { max_fee_per_gas: 1000, ..config() });
    let outbox = poor.open().await;
    let error = outbox.send("pay", pay(stranger()), SHORT).await.unwrap_err();
    assert!(
        matches!(error, OutboxError::TimedOut { why: Some(Trouble::FeesAboveCap { .. }), .. }),
        "{error}"
    );
}

#[tokio::test]
async fn gas_stays_below_the_cap() {
    let Some(anvil) = anvil(&[]).await else { return };
    // A payment uses 21,000, and a quarter more is allowed for.
    let place = Box0::new(rpc_to(vec![anvil.url()]), OutboxConfig { max_gas: 26_249, ..config() });
    let outbox = place.open().await;
    let error = outbox.send("pay", pay(stranger()), SHORT).await.unwrap_err();
    let needed = Trouble::GasAboveCap { needed: 26_250, cap: 26_249 };
    assert!(matches!(&error, OutboxError::TimedOut { why: Some(why), .. } if *why == needed), "{error}");
    assert_eq!(nonce(&place.rpc, outbox.account()).await, 0);
}
