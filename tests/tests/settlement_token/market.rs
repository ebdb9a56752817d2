//! A market whose tasks are paid in a token: an ERC-20 and Uniswap's Permit2 out of the npm packages of `contracts/`, on a chain with
//! the escrow contract, and relay, agent, node and client as processes of their own.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use escrow::anvil::{ACCOUNTS, Anvil, KEYS};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use system_tests::{Market, PATIENCE, Process, free_port, said, upper_case};
use taskmarket::Address;

pub(crate) const REQUESTER: usize = 1;
pub(crate) const PROVIDER: usize = 2;
pub(crate) const ARBITER: usize = 3;
/// An account that has coins and no tokens.
pub(crate) const SPONSOR: usize = 4;
/// Where Permit2 stands on every chain.
pub(crate) const PERMIT2: &str = "0x000000000022D473030F116dDEE9F6B43aC78BA3";
/// What each party has of the token at first, in its smallest unit; it has six decimals.
pub(crate) const MINTED: u64 = 100_000_000;
pub(crate) const STAKE: u64 = 20_000_000;
pub(crate) const BUDGET: u64 = 2_500_000;

pub(crate) struct Paid {
    pub(crate) market: Market,
    pub(crate) anvil: Anvil,
    pub(crate) token: String,
    pub(crate) contract: String,
    pub(crate) agent: Process,
    _others: [Process; 2],
}

/// A file of the npm packages of `contracts/` that bring compiled contracts.
fn package(path: &str) -> Option<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../contracts/node_modules/@uniswap/v4-periphery");
    std::fs::read_to_string(Path::new(root).join(path)).ok()
}

/// The creation code of a token with name, symbol and decimals of one's choice.
fn token_code() -> Option<String> {
    let artifact: Value =
        serde_json::from_str(&package("foundry-out/MockERC20.sol/MockERC20.json")?).unwrap();
    Some(artifact["bytecode"]["object"].as_str().unwrap().to_owned())
}

/// Permit2's code as it stands on every chain.
fn permit2_code() -> Option<String> {
    let source = package("lib/permit2/test/utils/DeployPermit2.sol")?;
    let code = source.split_once("hex\"").unwrap().1.split_once('"').unwrap().0;
    // It remembers its signing domain on the chain 31337, where it was compiled at another address. Without that it works its domain
    // out, as it does on any chain that it does not remember.
    let remembered = format!("7f{}", word(31_337));
    assert!(code.contains(&remembered));
    Some(format!("0x{}", code.replace(&remembered, &format!("7f{}", word(1)))))
}

fn word(value: u64) -> String {
    format!("{value:064x}")
}

/// An account, as arguments have it.
pub(crate) fn account(address: Address) -> String {
    format!("{:0>64}", address.to_string().trim_start_matches("0x").to_lowercase())
}

/// A string of 31 bytes at most, as arguments have it.
fn text(text: &str) -> String {
    format!("{}{:0<64}", word(text.len() as u64), hex::encode(text))
}

impl Paid {
    /// `None` where anvil or the packages are not installed, with the reason printed.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(None).await
    }

    /// A market whose provider says that it computed something else than it did, where it is told to.
    pub(crate) async fn start_with(lie: Option<Lie>) -> Option<Self> {
        let (Some(_), Some(creation), Some(permit2)) = (Anvil::find(), token_code(), permit2_code()) else {
            eprintln!("skipped: anvil is not installed (run `npm ci` in contracts/)");
            return None;
        };
        let anvil = Anvil::start().await.unwrap();
        let market = Market::new();
        for (who, key) in KEYS.iter().enumerate() {
            let mut options = std::fs::OpenOptions::new();
            options.create_new(true).write(true).mode(0o600);
            let mut file = options.open(market.path(&format!("key-{who}"))).unwrap();
            std::io::Write::write_all(&mut file, key.as_bytes()).unwrap();
        }
        let chain = Node { http: market.http.clone(), url: anvil.url().to_string() };
        chain.ask("anvil_setCode", json!([PERMIT2, permit2])).await;
        let arguments = [word(0x60), word(0xa0), word(6), text("US Example"), text("USDX")].concat();
        let data = format!("{creation}{arguments}");
        let receipt = chain.send(json!({ "from": ACCOUNTS[0], "data": data })).await;
        let token = receipt["contractAddress"].as_str().unwrap().to_owned();
        for who in [REQUESTER, PROVIDER] {
            let data = format!("0x40c10f19{}{}", account(ACCOUNTS[who]), word(MINTED));
            chain.send(json!({ "from": ACCOUNTS[0], "to": token, "data": data })).await;
        }

        let url = anvil.url().to_string();
        let key = market.path("key-0").display().to_string();
        let deploy =
            ["escrow", "deploy", "--rpc-url", &url, "--chain-id", "31337", "--key-file", &key, "--json"];
        let contract = format!("31337:{}", parsed(&market.cli(&deploy).await)["address"].as_str().unwrap());
        let flags = ["--escrow", &contract, "--rpc-url", &url, "--confirmations", "1"];
        let relay = market.relay(&[&flags[..], &["--chain-poll-ms", "100"]].concat()).await;
        let node_port = free_port();
        let node = market.node("node", node_port, &[]).await;
        let agents_port = match lie {
            Some(lie) => lie.before(node_port).await,
            None => node_port,
        };
        let (arbiter, stake) = (ACCOUNTS[ARBITER].to_string(), STAKE.to_string());
        let terms = ["--stake", &stake, "--stake-token", &token, "--accept-arbiter", &arbiter];
        let more = [&flags[..], &terms].concat();
        let agent = market.agent("agent", KEYS[PROVIDER], market.port, ("node", agents_port), &more);
        market.providers(1).await;
        Some(Self { market, anvil, token, contract, agent, _others: [relay, node] })
    }

    /// The chain's node.
    pub(crate) fn node(&self) -> Node {
        Node { http: self.market.http.clone(), url: self.anvil.url().to_string() }
    }

    /// Runs the client as one of the chain's accounts.
    pub(crate) async fn cli(&self, who: usize, arguments: &[&str]) -> Output {
        let (url, key) = (self.anvil.url().to_string(), self.market.path(&format!("key-{who}")));
        let chain = ["--rpc-url", &url, "--escrow", &self.contract, "--key-file", key.to_str().unwrap()];
        self.market.cli(&[arguments, &chain].concat()).await
    }

    /// Publishes a task that is paid in the token.
    pub(crate) async fn run(&self, text: &str, more: &[&str]) -> Output {
        let (model, input) = (self.market.path("upper.wasm"), self.market.path("input.txt"));
        std::fs::write(&model, upper_case()).unwrap();
        std::fs::write(&input, text).unwrap();
        let budget = BUDGET.to_string();
        let task = ["run", "--model", model.to_str().unwrap(), "--input", input.to_str().unwrap()];
        let money = ["--settle", "escrow", "--token", &self.token, "--budget", &budget];
        self.cli(REQUESTER, &[&task[..], &money, more].concat()).await
    }

    /// The token that an account has.
    pub(crate) async fn balance(&self, who: usize) -> u64 {
        self.read(&format!("0x70a08231{}", account(ACCOUNTS[who]))).await
    }

    /// How much of the requester's token somebody may take.
    pub(crate) async fn allowance(&self, spender: Address) -> u64 {
        self.read(&format!("0xdd62ed3e{}{}", account(ACCOUNTS[REQUESTER]), account(spender))).await
    }

    async fn read(&self, data: &str) -> u64 {
        let answer = self.node().ask("eth_call", json!([{ "to": self.token, "data": data }, "latest"])).await;
        let digits = answer.as_str().unwrap().trim_start_matches("0x").trim_start_matches('0');
        u64::from_str_radix(if digits.is_empty() { "0" } else { digits }, 16).unwrap()
    }

    /// The contract's address.
    pub(crate) fn escrow(&self) -> Address {
        self.contract.split_once(':').unwrap().1.parse().unwrap()
    }

    /// The task that was published last, as the relay shows it.
    pub(crate) async fn newest(&self) -> Value {
        self.market.get("/v1/tasks?limit=1").await["tasks"][0].clone()
    }

    /// A task's evidence in a file.
    pub(crate) async fn evidence(&self, task: &str) -> String {
        let evidence = self.market.get(&format!("/v1/tasks/{task}/evidence")).await;
        let file = self.market.path("evidence.json").display().to_string();
        std::fs::write(&file, evidence.to_string()).unwrap();
        file
    }
}

/// Asks the chain, and lets accounts act whose keys it has.
pub(crate) struct Node {
    http: reqwest::Client,
    url: String,
}

impl Node {
    pub(crate) async fn ask(&self, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer: Value = self.http.post(&self.url).json(&body).send().await.unwrap().json().await.unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer:#}");
        answer["result"].clone()
    }

    /// Whether a transaction would be reverted.
    pub(crate) async fn refuses(&self, transaction: Value) -> bool {
        let body =
            json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [transaction, "latest"] });
        let answer: Value = self.http.post(&self.url).json(&body).send().await.unwrap().json().await.unwrap();
        answer.get("error").is_some()
    }

    /// Sends a transaction of an account whose key the node has; answers its receipt.
    pub(crate) async fn send(&self, transaction: Value) -> Value {
        let hash = self.ask("eth_sendTransaction", json!([transaction])).await;
        let deadline = Instant::now() + PATIENCE;
        let receipt = loop {
            let receipt = self.ask("eth_getTransactionReceipt", json!([hash])).await;
            if !receipt.is_null() {
                break receipt;
            }
            assert!(Instant::now() < deadline, "{hash} is never mined");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(receipt["status"], "0x1", "{receipt:#}");
        receipt
    }
}

/// The JSON that a command printed.
pub(crate) fn parsed(out: &Output) -> Value {
    assert!(out.status.success(), "{}", said(out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(out)))
}

/// Waits until a file is there, and answers its text.
pub(crate) async fn appears(path: &Path) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        assert!(Instant::now() < deadline, "{} is never there", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A result that is changed on its way from the node to its agent, as a dishonest provider would.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lie {
    /// What the node computes.
    pub(crate) truth: &'static [u8],
    /// What the agent gets; as long.
    pub(crate) told: &'static [u8],
}

impl Lie {
    /// Passes on to a node, with other words; answers the port.
    async fn before(self, node_port: u16) -> u16 {
        let http = reqwest::Client::new();
        let pass = move |request: axum::extract::Request| {
            let http = http.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let path = parts.uri.path_and_query().unwrap();
                let url = format!("http://127.0.0.1:{node_port}{path}");
                let asked = http.request(parts.method, url).headers(parts.headers).body(body);
                let Ok(answer) = asked.send().await else { return StatusCode::BAD_GATEWAY.into_response() };
                let (status, mut headers) = (answer.status(), answer.headers().clone());
                for name in ["content-length", "transfer-encoding", "x-result-hash"] {
                    headers.remove(name);
                }
                let Ok(body) = answer.bytes().await else { return StatusCode::BAD_GATEWAY.into_response() };
                (status, headers, self.tell(&body)).into_response()
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = axum::Router::new().fallback(pass);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        port
    }

    fn tell(self, body: &[u8]) -> Vec<u8> {
        if body == self.truth {
            return self.told.to_vec();
        }
        let hash = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        match std::str::from_utf8(body) {
            Ok(text) => text.replace(&hash(self.truth), &hash(self.told)).into_bytes(),
            Err(_) => body.to_vec(),
        }
    }
}
