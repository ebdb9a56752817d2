//! `watch`, and what it shares with `run --poll`: a result that the chain has proven and nobody hands out.

use escrow::Status;
use taskmarket::TaskId;

use crate::money::{Market, PATIENCE};
use crate::support::{RESULT, Relay, Script, code, said, stderr, stdout};

/// Publishes and pays a task with a window of an hour, and waits for nothing.
async fn published(market: &Market) -> TaskId {
    let out = market.run(&["--yes", "--dispute-window", "3600"]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    stdout(&out).trim().parse().unwrap()
}

#[tokio::test]
async fn watch_disputes_a_withheld_result_at_half_the_window() {
    let Some(market) = Market::start(Script::NoResult).await else { return };
    let id = published(&market).await;
    assert_eq!(market.prove().await, id);
    market.pass(1801).await;
    let out = market.cli(&["watch", &id.to_string()]).await;
    assert_eq!(code(&out), 5, "{}", said(&out));
    assert!(stderr(&out).contains("it was disputed in transaction 0x"), "{}", said(&out));
    assert_eq!(market.status(id).await, Status::Disputed);
    // There is nothing more to wait for.
    let out = market.cli(&["watch", &id.to_string()]).await;
    assert_ne!(code(&out), 0, "{}", said(&out));
}

#[tokio::test]
async fn a_proof_that_the_relay_says_nothing_of_is_disputed_too() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let id = published(&market).await;
    assert_eq!(market.prove_another().await, id);
    market.pass(1801).await;
    let out = market.cli(&["watch", &id.to_string()]).await;
    assert_eq!(code(&out), 5, "{}", said(&out));
    assert_eq!(market.status(id).await, Status::Disputed);
}

#[tokio::test]
async fn bytes_of_another_result_than_the_proven_one_are_not_enough() {
    let Some(market) = Market::start(Script::Honest).await else { return };
    let proven_and_waited = async {
        let id = market.prove_another().await;
        market.pass(1801).await;
        id
    };
    let polled = market.run(&["--yes", "--poll", "--dispute-window", "3600"]);
    let (out, id) = tokio::join!(polled, proven_and_waited);
    assert_eq!(code(&out), 5, "{}", said(&out));
    assert!(stderr(&out).contains("the proof on the chain is of the result 0909"), "{}", said(&out));
    assert_eq!(market.status(id).await, Status::Disputed);
    assert_eq!(stdout(&out), "", "a result that is not the proven one is not handed out");
}

#[tokio::test]
async fn the_wait_ends_where_the_money_is_gone() {
    let Some(market) = Market::start(Script::NoResult).await else { return };
    let id = published(&market).await;
    market.prove().await;
    market.pass(3601).await;
    let settle = market.chain.calls().settle(&market.published().await.task);
    market.provider.send("settle", settle, PATIENCE).await.unwrap();
    let out = market.cli(&["watch", &id.to_string()]).await;
    assert_ne!(code(&out), 0, "{}", said(&out));
    assert!(stderr(&out).contains("on chain: paid"), "{}", said(&out));
}

#[tokio::test]
async fn a_paid_task_that_the_relay_lost_is_published_once_more_and_its_result_approved() {
    let Some(market) = Market::start(Script::Forgets).await else { return };
    let id = published(&market).await;
    assert!(market.relay.seen(|seen| seen.record.is_none()));
    let watch = ["watch", &id.to_string()];
    let (out, proven) = tokio::join!(market.cli(&watch), market.prove());
    assert_eq!((code(&out), proven), (0, id), "{}", said(&out));
    assert_eq!(out.stdout, RESULT, "{}", said(&out));
    assert_eq!(market.status(id).await, Status::Paid);
    assert_eq!(market.relay.seen(|seen| seen.given), 2);
}

#[tokio::test]
async fn an_unsettled_task_is_waited_for_as_run_does() {
    let relay = Relay::start(Script::Honest).await;
    let id = relay.publish().await;
    let out = relay.cli(&["watch", &id]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert_eq!(out.stdout, RESULT, "{}", said(&out));
    assert!(stderr(&out).contains("Completed: you approved"), "{}", said(&out));
    daemon::private_file::create(&relay.home.path().join("other"), "44".repeat(32).as_bytes()).unwrap();
    let out = relay.cli(&["watch", &id, "--key-file", &relay.path("other")]).await;
    assert_eq!(code(&out), 3, "{}", said(&out));
}
