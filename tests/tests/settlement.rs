//! Money through the whole market: a chain, the contract, relay, agent, node and client, each a process of its own.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Output;

use escrow::anvil::{ACCOUNTS, Anvil, KEYS};
use serde_json::Value;
use system_tests::{Market, Process, free_port, said, upper_case};

const REQUESTER: usize = 1;
const PROVIDER: usize = 2;
const ARBITER: usize = 3;
const BUDGET: u64 = 10_000;

/// A market whose tasks are paid, with one provider.
struct Paid {
    market: Market,
    anvil: Anvil,
    contract: String,
    _processes: [Process; 3],
}

impl Paid {
    /// `None` where anvil is not installed, with the reason printed.
    async fn start() -> Option<Self> {
        if Anvil::find().is_none() {
            eprintln!("skipped: anvil is not installed (run `npm ci` in contracts/)");
            return None;
        }
        let anvil = Anvil::start_with(&["--block-time", "1"]).await.unwrap();
        let url = anvil.url().to_string();
        let market = Market::new();
        for (who, key) in KEYS.iter().enumerate() {
            let mut options = std::fs::OpenOptions::new();
            options.create_new(true).write(true).mode(0o600);
            let mut file = options.open(market.path(&format!("key-{who}"))).unwrap();
            std::io::Write::write_all(&mut file, key.as_bytes()).unwrap();
        }
        let key = market.path("key-0").display().to_string();
        let deployed =
            ["escrow", "deploy", "--rpc-url", &url, "--chain-id", "31337", "--key-file", &key, "--json"];
        let deployed = json(&market.cli(&deployed).await);
        let contract = format!("31337:{}", deployed["address"].as_str().unwrap());

        let chain = ["--escrow", &contract, "--rpc-url", &url, "--confirmations", "2"];
        let relay = market.relay(&[&chain[..], &["--chain-poll-ms", "100"]].concat()).await;
        let node_port = free_port();
        let node = market.node("node", node_port, &[]).await;
        let arbiter = ACCOUNTS[ARBITER].to_string();
        let terms = ["--stake", "1000000", "--accept-arbiter", &arbiter];
        let more = [&chain[..], &terms].concat();
        let agent = market.agent("agent", KEYS[PROVIDER], market.port, ("node", node_port), &more);
        market.providers(1).await;
        Some(Self { market, anvil, contract, _processes: [relay, node, agent] })
    }

    /// Runs the client as one of the chain's accounts.
    async fn cli(&self, who: usize, arguments: &[&str]) -> Output {
        let (url, key) = (self.anvil.url().to_string(), self.market.path(&format!("key-{who}")));
        let chain = ["--rpc-url", &url, "--escrow", &self.contract, "--key-file", key.to_str().unwrap()];
        self.market.cli(&[arguments, &chain].concat()).await
    }

    /// Publishes and pays a task, and waits for what becomes of it.
    async fn run(&self, text: &str, more: &[&str]) -> Output {
        let (model, input) = (self.market.path("upper.wasm"), self.market.path("input.txt"));
        std::fs::write(&model, upper_case()).unwrap();
        std::fs::write(&input, text).unwrap();
        let budget = BUDGET.to_string();
        let task = ["run", "--model", model.to_str().unwrap(), "--input", input.to_str().unwrap()];
        let money = ["--settle", "escrow", "--budget", &budget, "--yes", "--poll"];
        self.cli(REQUESTER, &[&task[..], &money, more].concat()).await
    }

    /// The task that was published last, as the relay shows it.
    async fn newest(&self) -> Value {
        self.market.get("/v1/tasks?limit=1").await["tasks"][0].clone()
    }
}

fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}", said(out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(out)))
}

#[tokio::test]
async fn a_task_is_paid_by_approval_and_its_evidence_holds() {
    let Some(paid) = Paid::start().await else { return };
    let arbiter = ACCOUNTS[ARBITER].to_string();
    let out = paid.run("settled", &["--arbiter", &arbiter]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(out.stdout, b"SETTLED", "{}", said(&out));
    let task = paid.newest().await["task_id"].as_str().unwrap().to_owned();
    let view =
        paid.market.until(&format!("/v1/tasks/{task}"), "paid", |view| view["settlement"] == "paid").await;
    assert_eq!((&view["status"], &view["attempt"]), (&"completed".into(), &1.into()), "{view:#}");
    let evidence = paid.market.get(&format!("/v1/tasks/{task}/evidence")).await;
    let file = paid.market.path("evidence.json").display().to_string();
    std::fs::write(&file, evidence.to_string()).unwrap();
    let out = paid.market.cli(&["verify", &file, "--rpc-url", paid.anvil.url().as_str()]).await;
    assert!(out.status.success(), "{}", said(&out));
    let balance = json(&paid.cli(PROVIDER, &["wallet", "balance", "--json"]).await);
    let text = balance.to_string();
    assert!(text.contains(&format!("\"{BUDGET}\"")), "the provider may take its pay out: {balance:#}");
}

#[tokio::test]
async fn without_an_arbiter_a_proof_is_paid_at_once() {
    let Some(paid) = Paid::start().await else { return };
    let out = paid.run("at once", &["--dispute-window", "0"]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(out.stdout, b"AT ONCE", "{}", said(&out));
    let task = paid.newest().await["task_id"].as_str().unwrap().to_owned();
    let view =
        paid.market.until(&format!("/v1/tasks/{task}"), "paid", |view| view["settlement"] == "paid").await;
    assert_eq!(view["status"], "completed", "{view:#}");
}
