//! A market whose tasks are paid: a chain, the contract, relay, agent, node and client, each a process of its own, and each with an
//! endpoint of its own before the chain.

use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use escrow::anvil::{ACCOUNTS, Anvil, KEYS};
use escrow::{Chain, Record, Rpc, RpcConfig, TaskFact};
use serde_json::{Value, json};
use taskmarket::{Address, ChainChange, TaskId};

use crate::endpoint::Endpoint;
use crate::{Market, PATIENCE, Process, free_port, said, upper_case};

/// A chain with a block each second.
pub const STEADY: [&str; 2] = ["--block-time", "1"];
/// The account that deploys the contract.
const DEPLOYER: usize = 0;
/// The account that pays.
pub const REQUESTER: usize = 1;
/// The account of the first agent.
pub const PROVIDER: usize = 2;
/// The account that resolves disputes.
pub const ARBITER: usize = 3;
/// The account of a second agent.
pub const OTHER: usize = 4;
/// What every task here pays.
pub const BUDGET: u64 = 10_000;
/// What an agent puts in, and more than all tasks of a test lock together.
const STAKE: &str = "1000000";
/// How long the chain is left alone between two looks at it.
const LOOK: Duration = Duration::from_millis(50);

/// The market.
#[derive(Debug)]
pub struct Settled {
    /// Relay, agent and node, and the folder of all.
    pub market: Market,
    /// The chain.
    pub anvil: Anvil,
    /// The contract, read without an endpoint in between.
    pub chain: Chain,
    /// The relay's way to the chain.
    pub relay_way: Endpoint,
    /// The first agent's.
    pub agent_way: Endpoint,
    /// The client's.
    pub client_way: Endpoint,
    /// The first agent, while it lives.
    agent: Mutex<Option<Process>>,
    node_port: u16,
    contract: String,
    confirmations: String,
    _relay: Process,
    _node: Process,
}

impl Settled {
    /// A market with one provider, on a chain with these arguments, where so many blocks make a transaction final for everybody.
    /// `None` where anvil is not installed, with the reason printed.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start(anvil: &[&str], confirmations: u64) -> Option<Self> {
        if Anvil::find().is_none() {
            let mut stderr = std::io::stderr().lock();
            let _ = std::io::Write::write_all(
                &mut stderr,
                b"skipped: anvil is not installed (run `npm ci` in contracts/)\n",
            );
            return None;
        }
        let anvil = Anvil::start_with(anvil).await.expect("anvil starts");
        let url = anvil.url().to_string();
        let market = Market::new();
        for (who, key) in KEYS.iter().enumerate() {
            let mut options = std::fs::OpenOptions::new();
            options.create_new(true).write(true).mode(0o600);
            let mut file = options.open(market.path(&format!("key-{who}"))).expect("a new file");
            std::io::Write::write_all(&mut file, key.as_bytes()).expect("the key is written");
        }
        let key = market.path(&format!("key-{DEPLOYER}")).display().to_string();
        let deploy =
            ["escrow", "deploy", "--rpc-url", &url, "--chain-id", "31337", "--key-file", &key, "--json"];
        let deployed = parsed(&market.cli(&deploy).await);
        let address = deployed["address"].as_str().expect("an address");
        let contract = format!("31337:{address}");
        let chain = connect(&anvil, address.parse().expect("an address")).await;

        let ways = [Endpoint::to(&url).await, Endpoint::to(&url).await, Endpoint::to(&url).await];
        let [relay_way, agent_way, client_way] = ways;
        let confirmations = confirmations.to_string();
        let flags = ["--escrow", &contract, "--rpc-url", &relay_way.url, "--confirmations", &confirmations];
        let patient = ["--chain-poll-ms", "100", "--session-grace-secs", "60"];
        let relay = market.relay(&[&flags[..], &patient].concat()).await;
        let node_port = free_port();
        let node = market.node("node", node_port, &[]).await;
        let (agent, _relay, _node) = (Mutex::default(), relay, node);
        let settled = Self {
            market,
            anvil,
            chain,
            relay_way,
            agent_way,
            client_way,
            agent,
            node_port,
            contract,
            confirmations,
            _relay,
            _node,
        };
        settled.start_agent();
        settled.market.providers(1).await;
        settled.has_stake(PROVIDER).await;
        Some(settled)
    }

    /// All ways to the chain.
    pub fn ways(&self) -> [&Endpoint; 3] {
        [&self.relay_way, &self.agent_way, &self.client_way]
    }

    /// Starts the first agent on what it kept, if anything.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_agent(&self) {
        let agent = self.agent("agent", PROVIDER, ("node", self.node_port), &self.agent_way.url);
        *self.agent.lock().expect("nobody panics with it") = Some(agent);
    }

    /// Kills it as a power cut would.
    ///
    /// # Panics
    /// Another thread did.
    pub fn kill_agent(&self) {
        drop(self.agent.lock().expect("nobody panics with it").take());
    }

    /// A second provider, with a node of its own.
    pub async fn second_agent(&self) -> [Process; 2] {
        let port = free_port();
        let node = self.market.node("node-2", port, &[]).await;
        let agent = self.agent("agent-2", OTHER, ("node-2", port), self.anvil.url().as_str());
        self.has_stake(OTHER).await;
        [node, agent]
    }

    fn agent(&self, name: &str, who: usize, node: (&str, u16), url: &str) -> Process {
        let arbiter = ACCOUNTS[ARBITER].to_string();
        let terms = ["--stake", STAKE, "--accept-arbiter", &arbiter];
        let flags = [&self.chain_flags(url)[..], &terms].concat();
        self.market.agent(name, KEYS[who], self.market.port, node, &flags)
    }

    fn chain_flags<'a>(&'a self, url: &'a str) -> [&'a str; 6] {
        ["--escrow", &self.contract, "--rpc-url", url, "--confirmations", &self.confirmations]
    }

    /// Runs the client as one of the chain's accounts.
    pub async fn cli(&self, who: usize, arguments: &[&str]) -> Output {
        let key = self.market.path(&format!("key-{who}")).display().to_string();
        let flags = self.chain_flags(&self.client_way.url);
        self.market.cli(&[arguments, &flags, &["--key-file", &key]].concat()).await
    }

    /// Publishes and pays a task whose input is this text, with an arbiter, and goes on as the flags say.
    pub async fn run(&self, text: &str, more: &[&str]) -> Output {
        self.run_on(&self.input(text), more).await
    }

    /// As [`Self::run`], with an input that is somewhere.
    pub async fn run_on(&self, input: &str, more: &[&str]) -> Output {
        let arbiter = ACCOUNTS[ARBITER].to_string();
        self.publish(input, &[&["--arbiter", &arbiter], more].concat()).await
    }

    /// Publishes and pays a task that nobody can dispute, and waits for its result.
    pub async fn run_on_proof(&self, text: &str) -> Output {
        self.publish(&self.input(text), &["--dispute-window", "0", "--poll"]).await
    }

    async fn publish(&self, input: &str, more: &[&str]) -> Output {
        let model = self.market.path("upper.wasm");
        std::fs::write(&model, upper_case()).expect("the model is written");
        let budget = BUDGET.to_string();
        let task = ["run", "--model", model.to_str().expect("a path"), "--input", input];
        let money = ["--settle", "escrow", "--budget", &budget, "--yes"];
        self.cli(REQUESTER, &[&task[..], &money, more].concat()).await
    }

    fn input(&self, text: &str) -> String {
        let path = self.market.path("input.txt");
        std::fs::write(&path, text).expect("the input is written");
        path.display().to_string()
    }

    /// All that the chain says of tasks now, in its order. The times are the newest block's.
    pub async fn facts(&self) -> Vec<TaskFact> {
        let head = self.chain.head().await.expect("the chain answers");
        let logs = self.chain.logs(0, head.number, None).await.expect("the chain answers");
        logs.iter().filter_map(|log| escrow::fact(log, head.time)).collect()
    }

    /// The task that was funded first, once it is.
    pub async fn first_funded(&self) -> TaskId {
        self.until("a task is funded", async || {
            let facts = self.facts().await;
            facts.iter().find(|(_, fact)| fact.change == ChainChange::Funded).map(|(task, _)| *task)
        })
        .await
    }

    /// What the contract stores of a task now.
    pub async fn record(&self, id: TaskId) -> Record {
        self.chain.record(id).await.expect("the chain answers")
    }

    /// Waits until the contract has a task in this status.
    pub async fn becomes(&self, id: TaskId, status: escrow::Status) -> Record {
        self.until(status.as_str(), async || {
            let record = self.record(id).await;
            (record.status == status).then_some(record)
        })
        .await
    }

    /// Waits until the relay shows a task's money there.
    pub async fn settles(&self, id: TaskId, money: &str) -> Value {
        self.market.until(&format!("/v1/tasks/{id}"), money, |view| view["settlement"] == money).await
    }

    /// Waits for a task's end; then has `zorai-compute verify` check the evidence, offline and with the node. Answers what it says of
    /// the chain.
    pub async fn verified(&self, id: TaskId, money: &str) -> Vec<String> {
        self.settles(id, money).await;
        let file = self.evidence(id).await;
        let url = self.anvil.url().to_string();
        let report = parsed(&self.market.cli(&["verify", &file, "--rpc-url", &url, "--json"]).await);
        let text = std::fs::read(&file).expect("the evidence was written");
        let evidence: Value = serde_json::from_slice(&text).expect("evidence is JSON");
        let facts = evidence["chain"].as_array().expect("facts");
        assert_eq!(report["chain"]["facts"], facts.len(), "{report:#}");
        assert_eq!(
            (&report["chain"]["settlement_now"], &report["settlement"]),
            (&money.into(), &money.into())
        );
        facts.iter().map(|fact| fact["change"]["change"].as_str().expect("a change").to_owned()).collect()
    }

    /// Writes a task's evidence as it is now, and answers where.
    pub async fn evidence(&self, id: TaskId) -> String {
        let evidence = self.market.get(&format!("/v1/tasks/{id}/evidence")).await;
        let file = self.market.path(&format!("evidence-{id}.json")).display().to_string();
        std::fs::write(&file, evidence.to_string()).expect("the evidence is written");
        file
    }

    /// What one of the accounts may take out of the contract.
    pub async fn withdrawable(&self, who: usize) -> u64 {
        let amount = self.chain.withdrawable(Address::ZERO, ACCOUNTS[who]).await.expect("the chain answers");
        amount.0.to()
    }

    /// How many transactions of one of the accounts are on the chain.
    pub async fn sent(&self, who: usize) -> u64 {
        let count = self.ask("eth_getTransactionCount", json!([ACCOUNTS[who], "latest"])).await;
        u64::from_str_radix(count.as_str().expect("a number").trim_start_matches("0x"), 16).expect("a number")
    }

    /// Asks the chain's node for anything.
    pub async fn ask(&self, method: &str, params: Value) -> Value {
        self.chain.rpc().request(method, params).await.expect("the chain answers")
    }

    /// Moves the chain's clock on.
    pub async fn pass(&self, seconds: u64) {
        self.ask("evm_increaseTime", json!([seconds])).await;
        self.ask("evm_mine", json!([])).await;
    }

    /// Waits for something that the chain comes to.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn has_stake(&self, who: usize) {
        self.until("the stake is in", async || {
            let stake = self.chain.stake(Address::ZERO, ACCOUNTS[who]).await.ok()?;
            (stake.free.to_string() == STAKE).then_some(())
        })
        .await;
    }
}

async fn connect(anvil: &Anvil, escrow: Address) -> Chain {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let rpc = Rpc::new(RpcConfig::new(vec![anvil.url()], None), &tls).expect("an endpoint");
    Chain::connect(rpc, escrow).await.expect("the contract is there")
}

/// The JSON that a command printed.
///
/// # Panics
/// It failed.
pub fn parsed(out: &Output) -> Value {
    assert!(out.status.success(), "{}", said(out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(out)))
}
