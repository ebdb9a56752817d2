//! A scripted relay and a scripted compute node on loopback, and an agent between them.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod chain;
mod node;
mod relay;

pub(crate) use node::Node;
#[allow(unused_imports, reason = "each test file uses a part")]
pub(crate) use relay::{Connected, Inbox, Relay, Reply};

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use computeagent::{Config, GpuOverride, Policy, RelayUrl, RunError, Timing};
use http::StatusCode;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use link::Session;
use rpc::error::{ErrorBody, ErrorCode};
use rpc::link::{Assignment, AttemptKey, DeviceKind, DeviceView, Heartbeat, Hello, Register, Welcome};
use rpc::node::{ComputeOutcome, ComputeRequest, ComputeStatus, NodeReport};
use rpc::relay::DomainView;
use rpc::tasks::{FailureView, Phase, SignedMutation};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use taskmarket::{
    AcceptTask, Amount, B256, Bytes32, ComputeProof, ContentHash, Domain, FailTask, Runtime, Signed, Task,
    TaskConfig, TaskId, Timestamp, U256, UpdateNodeStatus, keccak256,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wallet::Wallet;

pub(crate) const PROVIDER_KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
pub(crate) const REQUESTER_KEY: &str = "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";
pub(crate) const NODE_TOKEN: &str = "node-token-5ecre7";
pub(crate) const ATTEMPT_TOKEN: &str = "attempt-token-5ecre7";
/// One for all, so that the same task has the same id each time.
static DEADLINE: LazyLock<Timestamp> = LazyLock::new(|| now().plus(3600));
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must come; a test that waits in vain fails here.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

/// Serves until it is dropped, which cuts every connection at once.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(address: SocketAddr, router: Router, tls: Option<TlsAcceptor>) -> Self {
        let listener = soon("the port", async {
            loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await;
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (router, tls) = (router.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve_connection(stream, router).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve_connection(stream, router).await,
                            Err(error) => tracing::debug!(%error, "no TLS"),
                        },
                    }
                });
            }
        });
        Self { address, task }
    }

    pub(crate) async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(router);
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn hash(bytes: &[u8]) -> ContentHash {
    ContentHash(B256::from_slice(&Sha256::digest(bytes)))
}

/// A relay, a node and an agent.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) node: Node,
    pub(crate) relay: Relay,
    pub(crate) inbox: Inbox,
    pub(crate) node_server: Option<Server>,
    pub(crate) relay_server: Option<Server>,
    pub(crate) config: Config,
}

impl World {
    pub(crate) async fn new() -> Self {
        logs();
        let node = Node::new();
        let node_server = node.serve(any_port()).await;
        let (relay, inbox) = Relay::new();
        let relay_server = relay.serve(any_port()).await;
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("compute-token");
        daemon::private_file::create(&token_file, NODE_TOKEN.as_bytes()).unwrap();
        let url = format!("ws://{}/v1/provider/connect", relay_server.address);
        let config = Config {
            relay: RelayUrl::parse(&url).unwrap(),
            relay_id: "hz-1".to_owned(),
            wallet: Wallet::from_hex(PROVIDER_KEY).unwrap(),
            compute_url: format!("http://{}", node_server.address).parse().unwrap(),
            compute_token_file: token_file,
            gpu: GpuOverride::default(),
            data: folder.path().join("data"),
            ca_file: None,
            policy: Policy::default(),
            escrow: None,
            prices: computeagent::Prices::default(),
            drain: Duration::from_secs(10),
            timing: Timing {
                node_poll: Duration::from_millis(50),
                status_wait: Duration::from_millis(500),
                owner_hold: Duration::from_millis(200),
                retry_base: Duration::from_millis(10),
                retry_cap: Duration::from_millis(100),
                heartbeat_gap: Duration::from_millis(10),
                unreachable_margin: Duration::from_secs(2),
                ..Timing::default()
            },
        };
        let servers = (Some(node_server), Some(relay_server));
        Self { folder, node, relay, inbox, node_server: servers.0, relay_server: servers.1, config }
    }

    pub(crate) fn start(&self) -> Running {
        let shutdown = CancellationToken::new();
        let agent = computeagent::build(self.config.clone()).expect("the agent builds");
        Running { task: tokio::spawn(agent.run(shutdown.clone())), shutdown }
    }

    /// Starts it again in the same folder, once the one before has left it.
    pub(crate) async fn start_again(&self) -> Running {
        soon("the lock", async {
            while computeagent::build(self.config.clone()).is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        self.start()
    }

    pub(crate) async fn connected(&mut self) -> Connected {
        soon("a session", self.inbox.sessions.recv()).await.unwrap()
    }

    pub(crate) async fn proof(&mut self) -> SignedMutation<ComputeProof> {
        soon("a proof", self.inbox.proofs.recv()).await.unwrap()
    }

    pub(crate) async fn failed(&mut self) -> SignedMutation<FailTask> {
        soon("a failure", self.inbox.fails.recv()).await.unwrap()
    }

    pub(crate) fn journal(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path().join("data/attempts")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let entries = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        // One may be removed meanwhile.
        entries.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
    }

    pub(crate) async fn journal_is(&self, wanted: impl Fn(&[String]) -> bool) {
        soon("the journal", async {
            while !wanted(&self.journal()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

pub(crate) struct Running {
    pub(crate) task: JoinHandle<Result<(), RunError>>,
    pub(crate) shutdown: CancellationToken,
}

impl Running {
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(crate) async fn ended(self) -> Result<(), RunError> {
        soon("the agent's end", self.task).await.unwrap()
    }

    pub(crate) async fn stop(self) -> Result<(), RunError> {
        self.shutdown.cancel();
        self.ended().await
    }
}

/// A task of a wasm program, signed by the requester.
pub(crate) fn assignment(salt: u8) -> Assignment {
    signed_assignment(task(salt))
}

pub(crate) fn task(salt: u8) -> Task {
    Task {
        requester: Wallet::from_hex(REQUESTER_KEY).unwrap().address(),
        model_cid: "https://models.example/program.wasm".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://inputs.example/input.json".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 60,
            max_attempts: 3,
        },
        token: taskmarket::Address::ZERO,
        budget: Amount(U256::from(1000)),
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: *DEADLINE,
        dispute_window: 86_400,
        arbiter_window: 604_800,
        arbiter: taskmarket::Address::ZERO,
        salt: Bytes32(B256::repeat_byte(salt)),
    }
}

pub(crate) fn signed_assignment(task: Task) -> Assignment {
    let signed = Wallet::from_hex(REQUESTER_KEY).unwrap().sign(&task, &Domain::UNSETTLED).unwrap();
    Assignment {
        task_id: task.id(&Domain::UNSETTLED),
        attempt: 1,
        task,
        signature: signed.signature,
        domain: DomainView::from(Domain::UNSETTLED),
        attempt_token: ATTEMPT_TOKEN.to_owned(),
    }
}

pub(crate) async fn post_tasks(session: &Session, body: impl Into<bytes::Bytes>) -> (StatusCode, Value) {
    let request = http::Request::post("/tasks").body(Full::new(body.into())).unwrap();
    let response = soon("an answer", session.request(request)).await.unwrap();
    let status = response.status();
    let bytes = soon("its body", response.into_body().collect()).await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("no JSON: {bytes:?}")))
}

/// Asks for a path: the status, and the body once it has ended.
pub(crate) async fn fetch(session: &Session, path: &str) -> (StatusCode, String) {
    let request = http::Request::get(path).body(Full::<bytes::Bytes>::default()).unwrap();
    let response = soon("an answer", session.request(request)).await.unwrap();
    let status = response.status();
    let bytes = soon("its body", response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

pub(crate) async fn offer(session: &Session, assignment: &Assignment) -> (StatusCode, Value) {
    post_tasks(session, serde_json::to_vec(assignment).unwrap()).await
}

/// Offers what must be taken.
pub(crate) async fn accepted(session: &Session, assignment: &Assignment) -> AcceptTask {
    let (status, body) = offer(session, assignment).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let accept: SignedMutation<AcceptTask> = serde_json::from_value(body).unwrap();
    let verified = Signed::from(accept).verify(&Domain::UNSETTLED).unwrap();
    assert_eq!(verified.message().task_id, assignment.task_id);
    assert!(verified.message().lease_until <= taskmarket::latest_lease(&assignment.task, now()));
    verified.message().clone()
}

pub(crate) async fn cancel(session: &Session, path: &str) -> StatusCode {
    let request = http::Request::delete(path).body(Full::<bytes::Bytes>::default()).unwrap();
    soon("an answer", session.request(request)).await.unwrap().status()
}

/// The lines of a body that has no end for a while.
pub(crate) struct Lines {
    body: link::ResponseBody,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) async fn of(session: &Session, path: &str) -> Self {
        let request = http::Request::get(path).body(Full::<bytes::Bytes>::default()).unwrap();
        let response = soon("a stream", session.request(request)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
            }
            let frame = soon("a line", self.body.frame()).await?.ok()?;
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

/// The lines of `GET /heartbeat`.
pub(crate) struct Heartbeats(Lines);

impl Heartbeats {
    pub(crate) async fn of(session: &Session) -> Self {
        Self(Lines::of(session, "/heartbeat").await)
    }

    pub(crate) async fn next(&mut self) -> Option<Heartbeat> {
        Some(serde_json::from_str(&self.0.next().await?).unwrap())
    }

    pub(crate) async fn until(&mut self, what: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        loop {
            let beat = self.next().await.expect("the heartbeat goes on");
            if what(&beat) {
                return beat;
            }
        }
    }
}

/// Everything that was logged in this process, down to the finest level.
pub(crate) fn logs() -> Arc<Mutex<Vec<u8>>> {
    static LOGS: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let logs = LOGS.get_or_init(|| {
        let logs = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&logs);
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || Log(Arc::clone(&writer)))
            .init();
        logs
    });
    Arc::clone(logs)
}

struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
