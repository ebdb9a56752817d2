//! What goes wrong with the money of a task, through the whole market: every process is a real one, on a real chain. Each task's evidence
//! is checked by `zorai-compute verify`, with the chain's node, at the end.

#![cfg(unix)]

use std::time::Duration;

use escrow::Status;
use escrow::anvil::ACCOUNTS;
use serde_json::{Value, json};
use system_tests::gate::Gate;
use system_tests::said;
use system_tests::settled::{ARBITER, BUDGET, OTHER, PROVIDER, REQUESTER, STEADY, Settled, parsed};
use taskmarket::{ChainChange, TaskId};

/// SHA-256 of what the gates here let through: `patience`.
const PATIENCE_HASH: &str = "0x96d61fe343ddf5e0d8d68b1d0b08b9af50973a0ebdd38021fae327bbea1b4c13";
/// What a provider locks, and what a dispute costs: half the budget.
const HALF: u64 = BUDGET / 2;

#[tokio::test]
async fn while_the_chain_is_out_of_reach_all_wait_and_then_go_on() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    let mut gate = Gate::new(b"patience").await;
    let url = gate.url.clone();
    let faults = async {
        gate.asked(1).await;
        let id = paid.first_funded().await;
        for way in paid.ways() {
            way.down();
        }
        // The provider has what it needs to be bound, and cannot be.
        gate.open();
        for way in paid.ways() {
            way.refused(3).await;
        }
        let broken = |info: &Value| info["chain"]["error"].is_string();
        paid.market.until("/v1/info", "the chain's absence", broken).await;
        assert_eq!(paid.record(id).await.status, Status::Funded);
        for way in paid.ways() {
            way.up();
        }
        id
    };
    let flags = ["--input-hash", PATIENCE_HASH, "--poll"];
    let (out, id) = tokio::join!(paid.run_on(&url, &flags), faults);
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(out.stdout, b"PATIENCE", "{}", said(&out));
    assert_eq!(paid.verified(id, "paid").await, ["funded", "accepted", "proven", "paid"]);
    assert_eq!(paid.withdrawable(PROVIDER).await, BUDGET);
}

#[tokio::test]
async fn an_agent_that_is_killed_between_signing_and_sending_sends_once() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    paid.agent_way.takes(0);
    let faults = async {
        paid.agent_way.dropped(1).await;
        paid.kill_agent();
        // The acceptance gets through, and the proof does not.
        let dropped = paid.agent_way.drops();
        paid.agent_way.takes(1);
        paid.start_agent();
        paid.agent_way.dropped(dropped + 1).await;
        paid.kill_agent();
        let id = paid.first_funded().await;
        assert_eq!(paid.record(id).await.status, Status::Accepted);
        assert_eq!(paid.sent(PROVIDER).await, 2, "the stake and the acceptance");
        paid.agent_way.takes(usize::MAX);
        paid.start_agent();
        id
    };
    let (out, id) = tokio::join!(paid.run("once", &["--poll", "--approve", "never"]), faults);
    assert!(out.status.success(), "{}", said(&out));
    paid.becomes(id, Status::Proven).await;
    assert_eq!(paid.sent(PROVIDER).await, 3);
    let out = paid.cli(REQUESTER, &["approve", &id.to_string()]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(paid.verified(id, "paid").await, ["funded", "accepted", "proven", "paid"]);
    assert_eq!(paid.withdrawable(PROVIDER).await, BUDGET);
}

#[tokio::test]
async fn a_requester_who_runs_out_of_gas_pays_nothing_for_what_was_not_published() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    let has = async |units: u64| {
        paid.ask("anvil_setBalance", json!([ACCOUNTS[REQUESTER], format!("{units:#x}")])).await;
    };
    // The budget, and no gas.
    has(BUDGET).await;
    let out = paid.run("never", &["--poll"]).await;
    let talk = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(talk.contains("send coins to") && talk.contains("nothing was sent"), "{}", said(&out));
    assert_eq!(paid.market.get("/v1/tasks?limit=1").await["tasks"], json!([]));
    // With gas, the next task is paid, and it alone.
    has(10_u64.pow(18)).await;
    let out = paid.run("with gas", &["--poll"]).await;
    assert!(out.status.success(), "{}", said(&out));
    let id = paid.first_funded().await;
    assert_eq!(paid.verified(id, "paid").await, ["funded", "accepted", "proven", "paid"]);
    let facts = paid.facts().await;
    assert_eq!(facts.iter().filter(|(_, fact)| fact.change == ChainChange::Funded).count(), 1, "{facts:?}");
}

#[tokio::test]
async fn the_provider_sends_the_approval_of_a_requester_without_gas() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    let mut gate = Gate::new(b"patience").await;
    let url = gate.url.clone();
    let faults = async {
        gate.asked(1).await;
        let id = paid.first_funded().await;
        paid.ask("anvil_setBalance", json!([ACCOUNTS[REQUESTER], "0x0"])).await;
        gate.open();
        id
    };
    let flags = ["--input-hash", PATIENCE_HASH, "--poll"];
    // Whether the client comes to know of the payment depends on who is first.
    let (_, id) = tokio::join!(paid.run_on(&url, &flags), faults);
    assert_eq!(paid.verified(id, "paid").await, ["funded", "accepted", "proven", "paid"]);
    assert_eq!(paid.sent(REQUESTER).await, 1, "the payment in, and nothing after it");
    assert_eq!(paid.withdrawable(PROVIDER).await, BUDGET);
}

#[tokio::test]
async fn a_lapsed_lease_goes_to_another_provider_who_is_paid_by_the_window() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    // The acceptance gets through, and nothing after it.
    paid.agent_way.takes(1);
    let flags = ["--poll", "--approve", "never", "--dispute-window", "3600", "--deadline", "5h"];
    let faults = async {
        let id = paid.first_funded().await;
        let lease = paid.becomes(id, Status::Accepted).await.until;
        paid.agent_way.dropped(1).await;
        paid.kill_agent();
        let head = paid.chain.head().await.unwrap().time;
        paid.pass(lease.since(head)).await;
        let other = paid.second_agent().await;
        let record = paid.becomes(id, Status::Proven).await;
        assert_eq!((record.provider, record.attempt), (ACCOUNTS[OTHER], 2));
        (id, other)
    };
    let (out, (id, _other)) = tokio::join!(paid.run("again", &flags), faults);
    assert_eq!(out.stdout, b"AGAIN", "{}", said(&out));
    paid.pass(3600).await;
    let said = paid.verified(id, "paid").await;
    assert_eq!(said, ["funded", "accepted", "lapsed", "accepted", "proven", "paid"]);
    assert_eq!(paid.withdrawable(OTHER).await, BUDGET);
    assert_eq!(paid.withdrawable(REQUESTER).await, HALF, "the stake of the first provider");
}

#[tokio::test]
async fn what_is_not_delivered_is_refunded_with_the_stake() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    paid.agent_way.takes(1);
    let out = paid.run("lost", &[]).await;
    assert!(out.status.success(), "{}", said(&out));
    let id: TaskId = String::from_utf8_lossy(&out.stdout).trim().parse().unwrap();
    paid.becomes(id, Status::Accepted).await;
    paid.agent_way.dropped(1).await;
    paid.kill_agent();
    let refund = ["refund", &id.to_string()];
    let out = paid.cli(REQUESTER, &refund).await;
    assert_eq!(out.status.code(), Some(1), "before the deadline: {}", said(&out));
    paid.pass(3600).await;
    let out = paid.cli(REQUESTER, &refund).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(paid.verified(id, "refunded").await, ["funded", "accepted", "lapsed", "refunded"]);
    assert_eq!(paid.withdrawable(REQUESTER).await, BUDGET + HALF);
}

#[tokio::test]
async fn disputes_end_by_the_arbiters_word_or_its_silence() {
    let Some(paid) = Settled::start(&STEADY, 2).await else { return };
    let (mut provider, mut requester) = (0, 0);
    // All to the provider, all to the requester, and not a word.
    for bps in [Some("10000"), Some("0"), None] {
        let flags = ["--poll", "--approve", "never", "--json", "--output"];
        let output = paid.market.path("result").display().to_string();
        let more = ["--arbiter-window", "600"];
        let receipt = parsed(&paid.run("disputed", &[&flags[..], &[&output], &more].concat()).await);
        let id: TaskId = receipt["task_id"].as_str().unwrap().parse().unwrap();
        paid.becomes(id, Status::Proven).await;
        let dispute = ["dispute", &id.to_string(), "--reason", "not what was asked"];
        let out = paid.cli(REQUESTER, &dispute).await;
        assert!(out.status.success(), "{}", said(&out));
        paid.settles(id, "disputed").await;
        match bps {
            Some(bps) => {
                resolve(&paid, id, bps).await;
                let pot = BUDGET + 2 * HALF;
                if bps == "0" { requester += pot } else { provider += pot }
            }
            None => {
                paid.pass(600).await;
                (provider, requester) = (provider + HALF, requester + HALF);
            }
        }
        assert_eq!(paid.verified(id, "split").await, ["funded", "accepted", "proven", "disputed", "split"]);
        assert_eq!(
            (paid.withdrawable(PROVIDER).await, paid.withdrawable(REQUESTER).await),
            (provider, requester)
        );
    }
}

/// The arbiter decides by the evidence, and somebody else sends its word.
async fn resolve(paid: &Settled, id: TaskId, bps: &str) {
    let file = paid.evidence(id).await;
    let key = paid.market.path(&format!("key-{ARBITER}")).display().to_string();
    let resolve =
        ["arbiter", "resolve", &file, "--provider-bps", bps, "--key-file", &key, "--json", "--print"];
    let verdict = parsed(&paid.market.cli(&resolve).await);
    let transaction = &verdict["transaction"];
    let call = json!({ "from": ACCOUNTS[0], "to": transaction["to"], "data": transaction["data"] });
    paid.ask("eth_sendTransaction", json!([call])).await;
}

#[tokio::test]
async fn each_step_that_the_chain_takes_back_is_made_again() {
    let Some(paid) = Settled::start(&[], 3).await else { return };
    // From here on a block comes when the test says so.
    paid.ask("evm_setAutomine", json!([false])).await;
    let steps = async {
        for change in ["funded", "accepted", "proven", "paid"] {
            while newest(&paid).await != Some(change) {
                block(&paid).await;
            }
            // An empty block takes its place.
            paid.ask("anvil_reorg", json!([1, []])).await;
            assert_ne!(newest(&paid).await, Some(change));
        }
        loop {
            block(&paid).await;
        }
    };
    let run = paid.run("again and again", &["--poll"]);
    let out = tokio::select! {
        out = run => out,
        () = steps => unreachable!("blocks have no end"),
    };
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(out.stdout, b"AGAIN AND AGAIN", "{}", said(&out));
    paid.ask("evm_setIntervalMining", json!([1])).await;
    let id = paid.first_funded().await;
    assert_eq!(paid.verified(id, "paid").await, ["funded", "accepted", "proven", "paid"]);
    assert_eq!(paid.withdrawable(PROVIDER).await, BUDGET);
}

/// How often a block comes where the test makes them.
const BLOCK_TIME: Duration = Duration::from_millis(200);

async fn block(paid: &Settled) {
    paid.ask("evm_mine", json!([])).await;
    tokio::time::sleep(BLOCK_TIME).await;
}

/// What the chain said of a task last.
async fn newest(paid: &Settled) -> Option<&'static str> {
    paid.facts().await.last().map(|(_, fact)| fact.change.name())
}
