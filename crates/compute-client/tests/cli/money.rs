//! Tasks that are paid: against a scripted relay and a real development chain.

use std::time::Duration;

use escrow::anvil::{ACCOUNTS, Anvil, KEYS};
use escrow::tx::{self, Outbox, OutboxConfig};
use escrow::{Chain, Rpc, RpcConfig, Status};
use serde_json::{Value, json};
use taskmarket::{AcceptTask, Address, ComputeProof, ContentHash, Event, Signed, TaskId, TaskRecord, U256};
use wallet::Wallet;

use crate::support::{RESULT, Relay, Script, code, ended, json as parsed, said, stderr, stdout};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const BUDGET: u64 = 10_000;

/// A relay, a chain with the contract, and a requester with coins there.
pub(crate) struct Market {
    pub(crate) relay: Relay,
    pub(crate) chain: Chain,
    pub(crate) provider: Outbox,
    pub(crate) provider_key: Wallet,
    pub(crate) anvil: Anvil,
    _folder: tempfile::TempDir,
}

impl Market {
    /// `None` where anvil is not installed, with the reason printed.
    pub(crate) async fn start(script: Script) -> Option<Self> {
        if Anvil::find().is_none() {
            eprintln!("skipped: anvil is not installed (run `npm ci` in contracts/)");
            return None;
        }
        let anvil = Anvil::start().await.unwrap();
        let tls = daemon::tls::client_config(None).unwrap();
        let rpc = Rpc::new(RpcConfig::new(vec![anvil.url()], None), &tls).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let provider_key = Wallet::from_hex(KEYS[2]).unwrap();
        let config = OutboxConfig { poll: Duration::from_millis(20), ..OutboxConfig::default() };
        let provider = Outbox::open(folder.path(), rpc.clone(), provider_key.clone(), config).await.unwrap();
        let chain = tx::deploy(&provider, "deploy", tx::PERMIT2, PATIENCE).await.unwrap().chain;
        let relay = Relay::start_with(script, chain.domain(), provider_key.clone()).await;
        daemon::private_file::create(&relay.home.path().join("key"), KEYS[1].as_bytes()).unwrap();
        let stake = chain.calls().stake(Address::ZERO, "100000".parse().unwrap());
        provider.send("stake", stake, PATIENCE).await.unwrap();
        Some(Self { relay, chain, provider, provider_key, anvil, _folder: folder })
    }

    /// Runs the program with the chain's flags.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> std::process::Output {
        ended(self.start_program(arguments), arguments, b"").await
    }

    /// Starts the program with the chain's flags.
    pub(crate) fn start_program(&self, arguments: &[&str]) -> tokio::process::Child {
        let (url, escrow) = (self.anvil.url().to_string(), self.chain.escrow().to_string());
        let mut all = arguments.to_vec();
        all.extend_from_slice(&["--rpc-url", &url, "--escrow", &escrow]);
        self.relay.start_program(&all)
    }

    pub(crate) async fn run(&self, more: &[&str]) -> std::process::Output {
        self.run_on_terms(&[&["--arbiter", &ACCOUNTS[3].to_string()], more].concat()).await
    }

    /// Runs a task that has an arbiter only where `more` names one.
    pub(crate) async fn run_on_terms(&self, more: &[&str]) -> std::process::Output {
        ended(self.start_run(more), more, b"").await
    }

    /// Starts it.
    pub(crate) fn start_run(&self, more: &[&str]) -> tokio::process::Child {
        let (model, input) = (self.relay.path("program.wasm"), self.relay.path("input.txt"));
        let budget = BUDGET.to_string();
        let mut all =
            vec!["run", "--model", &model, "--input", &input, "--settle", "escrow", "--budget", &budget];
        all.extend_from_slice(more);
        self.start_program(&all)
    }

    /// The task that the relay was given, once there is one.
    pub(crate) async fn published(&self) -> TaskRecord {
        let wait = async {
            loop {
                if let Some(record) = self.relay.seen(|seen| seen.record.clone()) {
                    return record;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap()
    }

    /// Does on the chain what the scripted relay's provider signed.
    pub(crate) async fn prove(&self) -> TaskId {
        let record = self.published().await;
        let proof = self.relay.seen(|seen| {
            seen.history.iter().find_map(|recorded| {
                if let Event::Submitted(proof) = &recorded.event { Some(Signed::clone(proof)) } else { None }
            })
        });
        self.prove_by(&record, &proof.unwrap()).await;
        record.id
    }

    /// Binds the provider, and puts its proof on the chain.
    pub(crate) async fn prove_by(&self, record: &TaskRecord, proof: &Signed<ComputeProof>) {
        let calls = self.chain.calls();
        let now = self.chain.head().await.unwrap().time;
        let accept = AcceptTask {
            task_id: record.id,
            provider: self.provider_key.address(),
            attempt: 1,
            lease_until: now.plus(900),
        };
        let accept = self.provider_key.sign(&accept, &self.chain.domain()).unwrap();
        self.provider.send("accept", calls.accept(&record.task, &accept), PATIENCE).await.unwrap();
        self.provider.send("prove", calls.prove(&record.task, proof), PATIENCE).await.unwrap();
    }

    /// Puts the proof of a result on the chain that the relay has never seen.
    pub(crate) async fn prove_another(&self) -> TaskId {
        let record = self.published().await;
        let now = self.chain.head().await.unwrap().time;
        let proof = ComputeProof {
            task_id: record.id,
            provider: self.provider_key.address(),
            attempt: 1,
            model_hash: record.task.model_hash,
            input_hash: record.task.input_hash,
            result_hash: ContentHash([9; 32].into()),
            result_cid: "https://results.example/r".parse().unwrap(),
            started_at: now,
            finished_at: now,
            gpu_name: "NVIDIA A100".to_owned(),
        };
        let proof = self.provider_key.sign(&proof, &self.chain.domain()).unwrap();
        self.prove_by(&record, &proof).await;
        record.id
    }

    /// Moves the chain's clock on.
    pub(crate) async fn pass(&self, seconds: u64) {
        let rpc = self.chain.rpc();
        rpc.request::<Value>("evm_increaseTime", json!([seconds])).await.unwrap();
        rpc.request::<Value>("evm_mine", json!([])).await.unwrap();
    }

    pub(crate) async fn status(&self, id: TaskId) -> Status {
        self.chain.record(id).await.unwrap().status
    }
}

#[tokio::test]
async fn a_paid_task_is_funded_proven_approved_and_paid() {
    let Some(market) = Market::start(Script::Honest).await else { return };
    let (out, id) = tokio::join!(market.run(&["--yes", "--poll"]), market.prove());
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert_eq!(out.stdout, RESULT, "{}", said(&out));
    let talk = stderr(&out);
    for words in ["budget", "bond", "arbiter", "funded:", "verified:", "paid: you approved in transaction 0x"]
    {
        assert!(talk.contains(words), "{words}: {}", said(&out));
    }
    assert_eq!(market.status(id).await, Status::Paid);
    let earned = market.chain.withdrawable(Address::ZERO, ACCOUNTS[2]).await.unwrap();
    assert_eq!(earned.0, U256::from(BUDGET));

    let out = market.cli(&["status", &id.to_string()]).await;
    assert!(stdout(&out).contains("on chain  paid"), "{}", said(&out));
    let out = market.cli(&["refund", &id.to_string()]).await;
    assert_eq!(code(&out), 1, "{}", said(&out));
    let out = market.cli(&["--json", "wallet", "history"]).await;
    let events = parsed(&out)["events"].clone();
    assert_eq!(
        (&events[0]["event"], &events[0]["task_id"]),
        (&json!("funded"), &json!(id)),
        "{}",
        said(&out)
    );
    let out = market.cli(&["wallet", "history"]).await;
    let first = stdout(&out).lines().next().unwrap().to_owned();
    let cells: Vec<&str> = first.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let (amount, id) = (BUDGET.to_string(), id.to_string());
    assert_eq!(cells[1..4], ["funded", amount.as_str(), id.as_str()], "{}", said(&out));
    assert_eq!(cells.len(), 5, "{}", said(&out));
}

#[tokio::test]
async fn a_result_that_nobody_hands_out_is_disputed_at_half_the_window() {
    let Some(market) = Market::start(Script::NoResult).await else { return };
    let proven_and_waited = async {
        let id = market.prove().await;
        market.pass(1801).await;
        id
    };
    let polled = market.run(&["--yes", "--poll", "--dispute-window", "3600"]);
    let (out, id) = tokio::join!(polled, proven_and_waited);
    assert_eq!(code(&out), 5, "{}", said(&out));
    assert!(stderr(&out).contains("it was disputed in transaction 0x"), "{}", said(&out));
    assert_eq!(market.status(id).await, Status::Disputed);
}

#[tokio::test]
async fn a_result_that_never_ends_is_disputed_before_the_window_does() {
    let Some(market) = Market::start(Script::TricklingResult).await else { return };
    let proven_and_waited = async {
        let id = market.prove().await;
        market.pass(2701).await;
        id
    };
    let polled = market.run(&["--yes", "--poll", "--dispute-window", "3600"]);
    let (out, id) = tokio::join!(polled, proven_and_waited);
    assert_eq!(code(&out), 5, "{}", said(&out));
    assert!(stderr(&out).contains("it was disputed in transaction 0x"), "{}", said(&out));
    assert_eq!(market.status(id).await, Status::Disputed);
}

#[tokio::test]
async fn a_task_that_nobody_takes_is_cancelled_and_its_money_withdrawn() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let out = market.run(&["--yes"]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let id: TaskId = stdout(&out).trim().parse().unwrap();
    assert_eq!(market.status(id).await, Status::Funded);

    let out = market.cli(&["refund", &id.to_string()]).await;
    assert!(code(&out) == 1 && stderr(&out).contains("zorai-compute cancel"), "{}", said(&out));
    let out = market.relay.cli(&["cancel", &id.to_string()]).await;
    assert!(code(&out) == 2 && stderr(&out).contains("--rpc-url"), "{}", said(&out));
    // The relay is not asked: what was paid for is kept on this machine.
    let out = market.cli(&["cancel", &id.to_string(), "--relay", "http://127.0.0.1:1"]).await;
    assert_eq!((code(&out), stdout(&out).as_str()), (0, "cancelled\n"), "{}", said(&out));
    assert_eq!(market.status(id).await, Status::Cancelled);

    let out = market.cli(&["--json", "wallet", "balance"]).await;
    assert_eq!(parsed(&out)["withdrawable"], BUDGET.to_string(), "{}", said(&out));
    let to = Wallet::random().address();
    let out = market.cli(&["wallet", "withdraw", "--to", &to.to_string()]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert_eq!(market.chain.balance(Address::ZERO, to).await.unwrap().0, U256::from(BUDGET));
}

#[tokio::test]
async fn nothing_is_paid_unasked() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let paying = "paying asks on a terminal";
    let no_arbiter = "needs somebody who resolves disputes";
    let (model, input) = (market.relay.path("program.wasm"), market.relay.path("input.txt"));
    for (arguments, words) in [
        (vec!["--arbiter", "0x90F79bf6EB2c4f870365E785982E1f101E93b906"], paying),
        (vec!["--yes"], no_arbiter),
        (vec!["--yes", "--arbiter", "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"], "arbiter"),
    ] {
        let mut all =
            vec!["run", "--model", &model, "--input", &input, "--settle", "escrow", "--budget", "10"];
        all.extend(arguments);
        let out = market.cli(&all).await;
        assert!(code(&out) == 2 && stderr(&out).contains(words), "{}", said(&out));
    }
    let out = market.relay.cli(&["run", "--model", &model, "--input", &input, "--provider-stake", "5"]).await;
    assert!(code(&out) == 2 && stderr(&out).contains("--settle escrow"), "{}", said(&out));
    // More than the requester has.
    let all_there_is = "1".repeat(30);
    let arbiter = ACCOUNTS[3].to_string();
    let out = market
        .cli(&[
            "run",
            "--model",
            &model,
            "--input",
            &input,
            "--settle",
            "escrow",
            "--yes",
            "--budget",
            &all_there_is,
            "--arbiter",
            &arbiter,
        ])
        .await;
    assert!(code(&out) == 1 && stderr(&out).contains("send "), "{}", said(&out));
    assert!(market.relay.seen(|seen| seen.record.is_none() && seen.uploads == 0));
    let nonce: U256 =
        market.chain.rpc().request("eth_getTransactionCount", json!([ACCOUNTS[1], "latest"])).await.unwrap();
    assert_eq!(nonce, U256::ZERO);
}

#[tokio::test]
async fn the_contract_is_deployed_once_and_for_the_named_chain() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let url = market.anvil.url().to_string();
    let deploy = ["--json", "escrow", "deploy", "--rpc-url", &url, "--chain-id"];
    let out = market.relay.cli(&[&deploy[..], &["1"]].concat()).await;
    assert!(code(&out) == 2 && stderr(&out).contains("serves chain 31337, not 1"), "{}", said(&out));
    let first = parsed(&market.relay.cli(&[&deploy[..], &["31337"]].concat()).await);
    let again = parsed(&market.relay.cli(&[&deploy[..], &["31337"]].concat()).await);
    assert_eq!((&first["address"], &first["chain_id"]), (&again["address"], &json!(31337)));
    let other = parsed(&market.relay.cli(&[&deploy[..], &["31337", "--again"]].concat()).await);
    assert_ne!(first["address"], other["address"]);
    let show = ["escrow", "show", "--rpc-url", &url, "--escrow", first["address"].as_str().unwrap()];
    let out = market.relay.cli(&show).await;
    assert!(code(&out) == 0 && stdout(&out).contains("the committed one"), "{}", said(&out));
    let nobody = Wallet::random().address().to_string();
    let out = market.relay.cli(&["escrow", "show", "--rpc-url", &url, "--escrow", &nobody]).await;
    assert_eq!(code(&out), 5, "{}", said(&out));
}
