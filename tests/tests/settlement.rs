//! Money through the whole market: a chain, the contract, relay, agent, node and client, each a process of its own.

#![cfg(unix)]

use system_tests::said;
use system_tests::settled::{BUDGET, PROVIDER, STEADY, Settled, parsed};

#[tokio::test]
async fn a_task_is_paid_by_approval_and_its_evidence_holds() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    let out = paid.run("settled", &["--poll"]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(out.stdout, b"SETTLED", "{}", said(&out));
    let id = paid.first_funded().await;
    assert_eq!(paid.verified(id, "paid").await, ["funded", "accepted", "proven", "paid"]);
    let view = paid.market.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!((&view["status"], &view["attempt"]), (&"completed".into(), &1.into()), "{view:#}");
    let balance = parsed(&paid.cli(PROVIDER, &["wallet", "balance", "--json"]).await);
    let text = balance.to_string();
    assert!(text.contains(&format!("\"{BUDGET}\"")), "the provider may take its pay out: {balance:#}");
}

#[tokio::test]
async fn without_an_arbiter_a_proof_is_paid_at_once() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    let out = paid.run_on_proof("at once").await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(out.stdout, b"AT ONCE", "{}", said(&out));
    let id = paid.first_funded().await;
    assert_eq!(paid.verified(id, "paid").await, ["funded", "accepted", "paid"]);
    let view = paid.market.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!(view["status"], "completed", "{view:#}");
}
