//! A chain, an endpoint before it that fails on demand, and what tests ask of both.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U256};
use axum::Router;
use axum::body::Bytes as Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use escrow::anvil::{Anvil, KEYS};
use escrow::tx::{Outbox, OutboxConfig};
use escrow::{Call, Rpc, RpcConfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;
use wallet::Wallet;

/// Longer than anything here takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Long enough to try, where the answer is a failure.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

/// A chain, or `None` with the reason printed where anvil is not installed: `npm ci` in `contracts/` installs it.
pub(crate) async fn anvil(args: &[&str]) -> Option<Anvil> {
    if Anvil::find().is_none() {
        eprintln!("skipped: anvil is not installed (run `npm ci` in contracts/)");
        return None;
    }
    Some(Anvil::start_with(args).await.unwrap())
}

pub(crate) fn tls() -> rustls::ClientConfig {
    daemon::tls::client_config(None).unwrap()
}

pub(crate) fn rpc_to(urls: Vec<Url>) -> Rpc {
    let config = RpcConfig {
        endpoint_timeout: Duration::from_secs(10),
        total_timeout: Duration::from_millis(700),
        ..RpcConfig::new(urls, None)
    };
    Rpc::new(config, &tls()).unwrap()
}

pub(crate) fn config() -> OutboxConfig {
    OutboxConfig { poll: Duration::from_millis(20), stuck_after: LONG, ..OutboxConfig::default() }
}

pub(crate) fn wallet(index: usize) -> Wallet {
    Wallet::from_hex(KEYS[index]).unwrap()
}

/// An outbox of account 0 in a folder of its own.
pub(crate) struct Box0 {
    pub(crate) folder: TempDir,
    pub(crate) rpc: Rpc,
    pub(crate) config: OutboxConfig,
}

impl Box0 {
    pub(crate) fn new(rpc: Rpc, config: OutboxConfig) -> Self {
        Self { folder: TempDir::new().unwrap(), rpc, config }
    }

    /// What a process does when it starts.
    pub(crate) async fn open(&self) -> Outbox {
        self.open_as(wallet(0)).await
    }

    pub(crate) async fn open_as(&self, wallet: Wallet) -> Outbox {
        Outbox::open(self.folder.path(), self.rpc.clone(), wallet, self.config.clone()).await.unwrap()
    }
}

/// Sends one unit to somebody.
pub(crate) fn pay(to: Address) -> Call {
    Call { to: Some(to), value: U256::ONE, data: Bytes::new() }
}

/// An address that nobody has used.
pub(crate) fn stranger() -> Address {
    Wallet::random().address()
}

pub(crate) async fn balance(rpc: &Rpc, of: Address) -> U256 {
    rpc.request("eth_getBalance", json!([of, "latest"])).await.unwrap()
}

pub(crate) async fn nonce(rpc: &Rpc, of: Address) -> u64 {
    rpc.request::<U256>("eth_getTransactionCount", json!([of, "latest"])).await.unwrap().to()
}

pub(crate) async fn mine(rpc: &Rpc, blocks: u64) {
    rpc.request::<Value>("anvil_mine", json!([format!("{blocks:#x}")])).await.unwrap();
}

/// What an endpoint does with transactions, and with all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Passes all on.
    Honest,
    /// Does not take transactions.
    TakesNone,
    /// Passes transactions on and dies before it answers.
    DiesAfterTaking,
    /// Knows no receipt.
    KnowsNoReceipt,
    /// Refuses to look for events in more blocks than [`FEW_BLOCKS`].
    FewBlocks,
    /// Does not answer where events of more blocks than that are asked for.
    SilentOnManyBlocks,
    /// Tells numbers of blocks and events that no chain reaches.
    BoastsOfNumbers,
    /// Answers nothing.
    Down,
}

/// The widest range of blocks that [`Mood::FewBlocks`] gives events of.
pub(crate) const FEW_BLOCKS: u64 = 100;

/// An endpoint before the chain.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: Url,
    http: reqwest::Client,
    mood: Mutex<Mood>,
    /// The transactions that were passed on.
    passed: Mutex<Vec<B256>>,
}

impl Proxy {
    pub(crate) async fn start(upstream: Url, mood: Mood) -> Self {
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls()).build().unwrap();
        let shared = Arc::new(Shared { upstream, http, mood: Mutex::new(mood), passed: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { shared, address, task }
    }

    pub(crate) fn url(&self) -> Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }

    /// The different transactions that it passed on.
    pub(crate) fn passed(&self) -> Vec<B256> {
        let mut passed = self.shared.passed.lock().unwrap().clone();
        passed.sort_unstable();
        passed.dedup();
        passed
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(shared): State<Arc<Shared>>, body: Body) -> Response {
    let mood = *shared.mood.lock().unwrap();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let sends = request["method"] == "eth_sendRawTransaction";
    if mood == Mood::Down || (sends && mood == Mood::TakesNone) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if sends {
        let raw: Bytes = serde_json::from_value(request["params"][0].clone()).unwrap();
        shared.passed.lock().unwrap().push(alloy_primitives::keccak256(&raw));
    }
    let answer = shared
        .http
        .post(shared.upstream.clone())
        .body(body)
        .header("content-type", "application/json")
        .send();
    let answer = answer.await.unwrap().bytes().await.unwrap();
    if let Some(twisted) = twisted(mood, &request, &answer) {
        return axum::Json(twisted).into_response();
    }
    if sends && mood == Mood::DiesAfterTaking {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    ([("content-type", "application/json")], answer).into_response()
}

/// What it says in place of the chain's answer, where its mood makes a difference.
fn twisted(mood: Mood, request: &Value, answer: &[u8]) -> Option<Value> {
    let method = request["method"].as_str().unwrap();
    let mut answer: Value = serde_json::from_slice(answer).unwrap();
    match (mood, method) {
        (Mood::KnowsNoReceipt, "eth_getTransactionReceipt") => answer["result"] = Value::Null,
        (Mood::FewBlocks | Mood::SilentOnManyBlocks, "eth_getLogs") => {
            let [from, to] =
                ["fromBlock", "toBlock"].map(|key| request["params"][0][key].as_str().unwrap().to_owned());
            let [from, to] = [from, to].map(|text| u64::from_str_radix(&text[2..], 16).unwrap());
            if to - from < FEW_BLOCKS {
                return None;
            }
            if mood == Mood::SilentOnManyBlocks {
                return Some(json!("too busy to say"));
            }
            let error = json!({ "code": -32005, "message": "query returned more than 10000 results" });
            return Some(json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }));
        }
        (Mood::BoastsOfNumbers, "eth_getBlockByNumber") => boast(&mut answer["result"], "timestamp"),
        (Mood::BoastsOfNumbers, "eth_getLogs") => boast(&mut answer["result"][0], "logIndex"),
        _ => return None,
    }
    Some(answer)
}

fn boast(of: &mut Value, key: &str) {
    of[key] = json!(U256::MAX);
}
