//! A relay to test, and a client that talks to it.

use std::net::SocketAddr;
use std::time::Duration;

use computerelay::Config;
use daemon::Secret;
use reqwest::{Method, RequestBuilder, StatusCode};
use rpc::tasks::{PublishTask, SignedMutation};
use serde_json::Value;
use taskmarket::{
    Address, Amount, B256, Bytes32, ContentHash, Domain, Message, Runtime, Task, TaskConfig, Timestamp,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wallet::Wallet;

/// The API key of every relay here, which reaches everywhere.
pub(crate) const KEY: &str = "key-of-the-tests";
/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Rig {
    pub(crate) base: String,
    pub(crate) addr: SocketAddr,
    pub(crate) tls_addr: Option<SocketAddr>,
    pub(crate) client: reqwest::Client,
    pub(crate) dir: TempDir,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<anyhow::Result<()>>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap(), |_| {}).await
    }

    /// Starts a relay on the folder, with changes to the configuration.
    pub(crate) async fn start_in(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::new(listen, dir.path().join("store"), Secret::new(KEY));
        config.relay_id = "test-1".to_owned();
        change(&mut config);
        let relay = computerelay::build(config).await.unwrap();
        let (addr, tls_addr) = (relay.local_addr(), relay.tls_addr());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(relay.run(shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { base: format!("http://{addr}"), addr, tls_addr, client, dir, shutdown, running }
    }

    /// Stops the relay and gives its folder back.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.unwrap().unwrap().unwrap();
        self.dir
    }

    /// A request without a key.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).timeout(PATIENCE)
    }

    /// A request with the first key.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(KEY)
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    pub(crate) async fn publish(&self, body: &PublishTask) -> (StatusCode, Value) {
        answer(self.request(Method::POST, "/v1/tasks").json(body)).await
    }

    /// Makes an API key, which must work, and answers its text.
    pub(crate) async fn make_key(&self, body: &Value) -> String {
        let (status, created) = answer(self.request(Method::POST, "/v1/keys").json(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{created}");
        created["key"].as_str().unwrap().to_owned()
    }

    /// An API key of somebody who publishes and reads tasks.
    pub(crate) async fn other_key(&self) -> String {
        self.new_key(&["tasks:write", "tasks:read"]).await
    }

    /// Publishes a task of this wallet, which must work, and answers its id.
    pub(crate) async fn publish_new(&self, wallet: &Wallet) -> String {
        let (status, view) = self.publish(&signed(wallet, &task(wallet))).await;
        assert_eq!(status, StatusCode::CREATED, "{view}");
        view["task_id"].as_str().unwrap().to_owned()
    }

    /// Sends a mutation, signed, without a key.
    pub(crate) async fn mutate<M: Message + serde::Serialize>(
        &self,
        wallet: &Wallet,
        id: &str,
        verb: &str,
        message: &M,
    ) -> (StatusCode, Value) {
        let body = SignedMutation::from(wallet.sign(message, &Domain::UNSETTLED).unwrap());
        answer(self.bare(Method::POST, &format!("/v1/tasks/{id}/{verb}")).json(&body)).await
    }

    /// Follows a task's events, from after this one.
    pub(crate) async fn follow(&self, id: &str, after: Option<u64>) -> Follower {
        let mut request = self
            .request(Method::GET, &format!("/v1/tasks/{id}/events"))
            .header("accept", "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        Follower::of(request).await
    }

    /// Makes an API key with these scopes.
    pub(crate) async fn new_key(&self, scopes: &[&str]) -> String {
        self.make_key(&serde_json::json!({ "name": "a test's", "scopes": scopes })).await
    }

    /// Waits until a task has this status.
    pub(crate) async fn wait_for(&self, id: &str, status: &str) {
        let mut follower = self.follow(id, None).await;
        while let Some(event) = follower.next().await {
            if event.data["status"] == status {
                return;
            }
        }
        panic!("task {id} never became {status}");
    }

    /// Stores an artifact, which must work, and answers its digest.
    pub(crate) async fn store(&self, bytes: &[u8]) -> artifact::Digest {
        let digest = artifact::Digest::of(bytes);
        let put = self.request(Method::PUT, &format!("/v1/artifacts/{digest}")).body(bytes.to_vec());
        assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
        digest
    }
}

/// A stream of server-sent events.
pub(crate) struct Follower {
    response: reqwest::Response,
    text: String,
}

/// One server-sent event.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) id: Option<u64>,
    pub(crate) name: String,
    pub(crate) data: Value,
}

impl Follower {
    /// Begins to follow, which must work.
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// The next event; `None` at the stream's end.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let lines = block.lines().filter_map(|line| line.split_once(": "));
                    lines.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
                };
                let told = field("data").map(|data| Told {
                    id: field("id").map(|id| id.parse().unwrap()),
                    name: field("event").unwrap(),
                    data: serde_json::from_str(&data).unwrap(),
                });
                self.text = rest.to_owned();
                match told {
                    Some(told) => return Some(told),
                    None => continue,
                }
            }
            let piece = tokio::time::timeout(PATIENCE, self.response.chunk()).await.unwrap().unwrap()?;
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

/// Sends, and reads the answer's JSON; `null` where there is no body.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    assert!(response.headers().contains_key("x-request-id"), "every answer has an id");
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    let value = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{status}: {error}: {bytes:?}"))
    };
    (status, value)
}

/// Checks that an answer is this error, in the one shape of errors.
#[track_caller]
pub(crate) fn assert_error(answer: &(StatusCode, Value), status: u16, code: &str) {
    let (actual, body) = answer;
    let error = &body["error"];
    assert_eq!((actual.as_u16(), error["code"].as_str()), (status, Some(code)), "{body}");
    for field in ["message", "type"] {
        assert!(error[field].is_string(), "{field} is missing: {body}");
    }
    assert!(error.get("param").is_some(), "{body}");
}

pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_unix(since.as_secs())
}

/// A task of this wallet that the rules allow, unlike any other.
pub(crate) fn task(wallet: &Wallet) -> Task {
    Task {
        requester: wallet.address(),
        model_cid: "https://models.example/program.wasm".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://inputs.example/secret-input.json".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 600,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: "10000000000000000".parse::<Amount>().unwrap(),
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: now().plus(3600),
        dispute_window: 86_400,
        arbiter_window: 604_800,
        arbiter: Address::ZERO,
        salt: Bytes32(B256::from(rand::random::<[u8; 32]>())),
    }
}

pub(crate) fn signed(wallet: &Wallet, task: &Task) -> PublishTask {
    let signed = wallet.sign(task, &Domain::UNSETTLED).unwrap();
    PublishTask {
        task: signed.message,
        signature: signed.signature,
        verifying_contract: Address::ZERO,
        callback_url: None,
    }
}
