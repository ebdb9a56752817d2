//! Disputes about a WebAssembly task, decided by running it again: the arbiter's tools against a real market.

use escrow::anvil::ACCOUNTS;
use serde_json::json;
use system_tests::said;

use crate::market::{ARBITER, BUDGET, Lie, MINTED, PROVIDER, Paid, REQUESTER, STAKE, parsed};

/// Stake and bond, each, of a task here.
const HALF: u64 = BUDGET / 2;

/// Has the requester dispute the newest task, once its proof is on the chain. Answers its id and the file with its evidence.
async fn disputed(paid: &Paid) -> (String, String) {
    let task = paid.newest().await["task_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/tasks/{task}");
    paid.market.until(&path, "proven", |view| view["settlement"] == "proven").await;
    let out = paid.cli(REQUESTER, &["dispute", &task, "--reason", "the answer is wrong"]).await;
    assert!(out.status.success(), "{}", said(&out));
    paid.market.until(&path, "disputed", |view| view["settlement"] == "disputed").await;
    let file = paid.evidence(&task).await;
    (task, file)
}

/// Has the arbiter run the task again, decide as proposed, and answers what the provider gets by that.
async fn resolved(paid: &Paid, task: &str, file: &str, bps: u64) -> u64 {
    let out = paid.market.cli(&["arbiter", "rerun", file, "--json"]).await;
    let proposed = parsed(&out);
    assert_eq!(
        (&proposed["provider_bps"], &proposed["task_id"]),
        (&json!(bps), &json!(task)),
        "{proposed:#}"
    );

    let bps = bps.to_string();
    let resolve = ["arbiter", "resolve", file, "--provider-bps", &bps];
    let out = paid.cli(ARBITER, &resolve).await;
    assert_eq!(out.status.code(), Some(2), "it asks before it decides: {}", said(&out));
    let printed = parsed(&paid.cli(ARBITER, &[&resolve[..], &["--print", "--json"]].concat()).await);
    assert_eq!(printed["transaction"]["chain_id"], 31337, "{printed:#}");
    let view = paid.market.get(&format!("/v1/tasks/{task}")).await;
    assert_eq!(view["settlement"], "disputed", "what is printed only is not sent");

    let sent = parsed(&paid.cli(ARBITER, &[&resolve[..], &["--yes", "--json"]].concat()).await);
    assert_eq!(sent["settlement"], "split", "{sent:#}");
    paid.market.until(&format!("/v1/tasks/{task}"), "split", |view| view["settlement"] == "split").await;
    let out = paid.cli(ARBITER, &[&resolve[..], &["--yes"]].concat()).await;
    assert_eq!(out.status.code(), Some(1), "a dispute is decided once: {}", said(&out));
    let file = paid.evidence(task).await;
    let out = paid.market.cli(&["verify", &file, "--rpc-url", paid.anvil.url().as_str()]).await;
    assert!(out.status.success(), "{}", said(&out));
    sent["to_provider"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_provider_that_computed_what_it_proved_wins_the_dispute() {
    let Some(paid) = Paid::start().await else { return };
    let arbiter = ACCOUNTS[ARBITER].to_string();
    let out =
        paid.run("honest work", &["--arbiter", &arbiter, "--yes", "--poll", "--approve", "never"]).await;
    assert_eq!(out.stdout, b"HONEST WORK", "{}", said(&out));
    let (task, file) = disputed(&paid).await;
    assert_eq!(resolved(&paid, &task, &file, 10_000).await, BUDGET + 2 * HALF);
    assert_eq!(paid.balance(REQUESTER).await, MINTED - BUDGET - HALF);
    let wallet = parsed(&paid.cli(PROVIDER, &["wallet", "balance", "--token", &paid.token, "--json"]).await);
    assert_eq!(wallet["withdrawable"], (BUDGET + 2 * HALF).to_string(), "{wallet:#}");
}

#[tokio::test]
async fn a_provider_that_proved_something_else_loses_budget_and_stake() {
    let lie = Lie { truth: b"HONEST WORK", told: b"EASIER WORK" };
    let Some(paid) = Paid::start_with(Some(lie)).await else { return };
    let arbiter = ACCOUNTS[ARBITER].to_string();
    let out = paid.run("honest work", &["--arbiter", &arbiter, "--yes", "--poll", "--verify", "rerun"]).await;
    assert_eq!(out.status.code(), Some(5), "{}", said(&out));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("run again, the task gives another result"),
        "{}",
        said(&out)
    );
    let (task, file) = disputed(&paid).await;
    assert_eq!(resolved(&paid, &task, &file, 0).await, 0);
    let wallet = parsed(&paid.cli(REQUESTER, &["wallet", "balance", "--token", &paid.token, "--json"]).await);
    assert_eq!(wallet["withdrawable"], (BUDGET + 2 * HALF).to_string(), "{wallet:#}");
    let wallet = parsed(&paid.cli(PROVIDER, &["wallet", "balance", "--token", &paid.token, "--json"]).await);
    assert_eq!(wallet["stake"]["free"], (STAKE - HALF).to_string(), "{wallet:#}");
}
