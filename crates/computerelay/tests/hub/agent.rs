//! A host that follows a script: it speaks the link's protocol and signs, and computes nothing.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use gpu::challenge::{Challenge, Cpu, commit, open};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use link::{Closed, Handshake};
use rpc::error::{ErrorBody, ErrorCode};
use rpc::link::{
    Assignment, AttemptKey, DeviceKind, DeviceView, Heartbeat, HeldAttempt, Hello, NodeMetadata, Register,
    Welcome,
};
use rpc::tasks::{Phase, Progress, SignedMutation};
use taskmarket::{
    AcceptTask, ApproveResult, Bytes32, ComputeProof, ContentHash, Domain, FailTask, RegisterNode, Runtime,
    Signed, TaskId, Timestamp, keccak256,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use url::Url;
use wallet::Wallet;

use crate::support::within;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How a host answers offers.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// It accepts, for this many seconds.
    Accept { lease_secs: u64 },
    /// It refuses, for this reason.
    Refuse(&'static str),
    /// It never answers.
    Hang,
    /// It answers what cannot be.
    Lie(Lie),
}

/// What is wrong with an acceptance.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lie {
    Attempt,
    Provider,
    Signature,
    Task,
    Lease,
    NoJson,
    Endless,
}

/// What a host reports.
#[derive(Debug, Clone)]
pub(crate) enum Beats {
    /// What is true, every 50 ms.
    True,
    /// As it should, and each says that the host is unwell, for this reason.
    Unwell(&'static str),
    /// One report, and no more.
    Once,
    /// True reports that list no attempts.
    Forgetful,
    /// These bytes, and no more.
    Raw(Vec<u8>),
    /// Bytes without end, and no line's end.
    Endless,
}

/// Who a host is and how it behaves.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) wallet: Arc<Wallet>,
    pub(crate) node_id: Bytes32,
    pub(crate) slots: u32,
    pub(crate) gpu: Option<&'static str>,
    pub(crate) answer: Answer,
    pub(crate) beats: Beats,
    /// What it says it holds when it connects.
    pub(crate) attempts: Vec<AttemptKey>,
    pub(crate) unacked_proofs: Vec<AttemptKey>,
    /// Whether its attempts say more than anybody reads.
    pub(crate) babbles: bool,
    /// Whether its GPU computes wrongly.
    pub(crate) miscalculates: bool,
}

impl Script {
    /// A host of a new provider, with one slot and no GPU, that accepts everything for ten minutes.
    pub(crate) fn new() -> Self {
        Self {
            wallet: Arc::new(Wallet::random()),
            node_id: Bytes32(rand::random::<[u8; 32]>().into()),
            slots: 1,
            gpu: None,
            answer: Answer::Accept { lease_secs: 600 },
            beats: Beats::True,
            attempts: Vec::new(),
            unacked_proofs: Vec::new(),
            babbles: false,
            miscalculates: false,
        }
    }

    pub(crate) fn answers(self, answer: Answer) -> Self {
        Self { answer, ..self }
    }

    pub(crate) fn beats(self, beats: Beats) -> Self {
        Self { beats, ..self }
    }

    pub(crate) fn slots(self, slots: u32) -> Self {
        Self { slots, ..self }
    }

    pub(crate) fn holding(self, attempts: Vec<AttemptKey>) -> Self {
        Self { attempts, ..self }
    }

    pub(crate) fn metadata(&self) -> NodeMetadata {
        let device = match self.gpu {
            Some(name) => {
                DeviceView { kind: DeviceKind::Gpu, name: name.into(), vram_mb: 40_960, uuid: None }
            }
            None => DeviceView { kind: DeviceKind::Cpu, name: "CPU".into(), vram_mb: 0, uuid: None },
        };
        NodeMetadata {
            agent_version: "0.1.0".into(),
            node_version: "0.1.0".into(),
            platform: "linux/x86_64".into(),
            devices: vec![device],
            runtimes: vec![Runtime::Wasm],
            slots: self.slots,
        }
    }

    pub(crate) fn registration(&self, hello: &Hello, url: &Url, metadata: &str) -> RegisterNode {
        RegisterNode {
            provider: self.wallet.address(),
            node_id: self.node_id,
            relay_id: hello.relay_id.clone(),
            relay_url: url.to_string(),
            session_id: hello.session_id.clone(),
            nonce: hello.nonce,
            timestamp: now(),
            metadata_hash: Bytes32(keccak256(metadata.as_bytes())),
        }
    }

    pub(crate) fn register(&self, registration: RegisterNode, metadata: String) -> Register {
        let signed = self.wallet.sign(&registration, &Domain::UNSETTLED).unwrap();
        Register {
            registration,
            metadata,
            signature: signed.signature,
            attempts: self.attempts.iter().copied().map(held).collect(),
            unacked_proofs: self.unacked_proofs.clone(),
        }
    }

    /// Dials and completes the handshake.
    pub(crate) async fn shake_hands(&self, url: &Url) -> (Handshake, Hello, Welcome) {
        let (mut handshake, hello) = dial(url).await;
        let metadata = serde_json::to_string(&self.metadata()).unwrap();
        let register = self.register(self.registration(&hello, url, &metadata), metadata);
        handshake.send(&serde_json::to_string(&register).unwrap()).await.unwrap();
        let text = handshake.recv().await.unwrap();
        let welcome = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not welcome: {text}"));
        (handshake, hello, welcome)
    }

    /// Connects and serves.
    pub(crate) async fn connect(self, url: &Url) -> Agent {
        let (handshake, hello, welcome) = self.shake_hands(url).await;
        let state = State { held: self.attempts.clone(), ..State::default() };
        let stop = CancellationToken::new();
        let shared =
            Arc::new(Shared { script: self.clone(), state: watch::Sender::new(state), stop: stop.clone() });
        let served = Arc::clone(&shared);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&served);
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            });
            handshake.serve(service, async move { stopped.cancelled().await }).await
        });
        Agent { script: self, hello, welcome, shared, stop, task }
    }
}

/// Dials and takes the relay's hello.
pub(crate) async fn dial(url: &Url) -> (Handshake, Hello) {
    let mut handshake = link::connect(url, None, link::Config::default()).await.unwrap();
    let hello = serde_json::from_str(&handshake.recv().await.unwrap()).unwrap();
    (handshake, hello)
}

/// A host that is connected.
pub(crate) struct Agent {
    pub(crate) script: Script,
    pub(crate) hello: Hello,
    pub(crate) welcome: Welcome,
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: JoinHandle<Closed>,
}

struct Shared {
    script: Script,
    state: watch::Sender<State>,
    stop: CancellationToken,
}

/// What a host has seen and holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) assignments: Vec<Assignment>,
    pub(crate) held: Vec<AttemptKey>,
    pub(crate) called_off: Vec<AttemptKey>,
    /// The tasks whose results were approved to it.
    pub(crate) approved: Vec<TaskId>,
    /// What its attempts said, one line each.
    pub(crate) said: Vec<String>,
    /// Bytes of babble that were sent.
    pub(crate) babbled: usize,
}

impl Agent {
    pub(crate) fn address(&self) -> taskmarket::Address {
        self.script.wallet.address()
    }

    /// Waits until what the host has seen is as asked.
    pub(crate) async fn sees(&self, what: &str, wanted: impl FnMut(&State) -> bool) -> State {
        let mut state = self.shared.state.subscribe();
        let seen = within(what, state.wait_for(wanted)).await.unwrap();
        seen.clone()
    }

    pub(crate) fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// Waits for an offer of this task, and answers the newest.
    pub(crate) async fn is_offered(&self, task_id: TaskId) -> Assignment {
        let is_it = |assignment: &&Assignment| assignment.task_id == task_id;
        let state =
            self.sees("an offer", |state| state.assignments.iter().any(|a| a.task_id == task_id)).await;
        state.assignments.iter().rev().find(is_it).cloned().unwrap()
    }

    /// Has its attempts say a line.
    pub(crate) fn says(&self, line: &str) {
        self.shared.state.send_modify(|state| state.said.push(line.to_owned()));
    }

    /// Holds an attempt that it takes of its own accord.
    pub(crate) fn hold(&self, key: AttemptKey) {
        self.shared.state.send_modify(|state| state.held.push(key));
    }

    /// Forgets all attempts, as a host does that was restarted.
    pub(crate) fn forget(&self) {
        self.shared.state.send_modify(|state| state.held.clear());
    }

    /// A proof of an attempt, signed.
    pub(crate) fn proof(&self, assignment: &Assignment, result: ContentHash) -> SignedMutation<ComputeProof> {
        let proof = ComputeProof {
            task_id: assignment.task_id,
            provider: self.address(),
            attempt: assignment.attempt,
            model_hash: ContentHash([1; 32].into()),
            input_hash: ContentHash([2; 32].into()),
            result_hash: result,
            result_cid: format!("artifact://{result}").parse().unwrap(),
            started_at: now(),
            finished_at: now(),
            gpu_name: "CPU".into(),
        };
        self.script.wallet.sign(&proof, &Domain::UNSETTLED).unwrap().into()
    }

    /// Word that an attempt failed, signed.
    pub(crate) fn failure(&self, assignment: &Assignment) -> SignedMutation<FailTask> {
        self.failure_with(assignment, "io")
    }

    /// Word that an attempt failed with this code, signed.
    pub(crate) fn failure_with(&self, assignment: &Assignment, code: &str) -> SignedMutation<FailTask> {
        let fail = FailTask {
            task_id: assignment.task_id,
            provider: self.address(),
            attempt: assignment.attempt,
            code: code.into(),
            message: "it came to nothing".into(),
            issued_at: now(),
        };
        self.script.wallet.sign(&fail, &Domain::UNSETTLED).unwrap().into()
    }

    /// Lets go of an attempt that is over.
    pub(crate) fn finish(&self, assignment: &Assignment) {
        let key = AttemptKey { task_id: assignment.task_id, attempt: assignment.attempt };
        self.shared.state.send_modify(|state| state.held.retain(|held| *held != key));
    }

    /// Cuts the connection without a word.
    pub(crate) async fn cut(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Stops in order.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        within("the host's end", self.task).await.unwrap();
    }

    /// Waits until the relay ends the session, and says with what code and reason.
    pub(crate) async fn sent_away(self) -> (u16, String) {
        let closed = within("the session's end", self.task).await.unwrap();
        let Closed::Peer { code, reason } = closed else { panic!("not closed by the relay: {closed}") };
        (code, reason)
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/heartbeat") => Response::new(self.heartbeat()),
            (&Method::POST, "/tasks") => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let assignment: Assignment = serde_json::from_slice(&body).unwrap();
                self.state.send_modify(|state| state.assignments.push(assignment.clone()));
                self.offered(&assignment).await
            }
            (&Method::POST, path) if path.ends_with("/approval") => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let approval: SignedMutation<ApproveResult> = serde_json::from_slice(&body).unwrap();
                self.state.send_modify(|state| state.approved.push(approval.mutation.task_id));
                respond(StatusCode::NO_CONTENT, Vec::new())
            }
            (&Method::POST, path) if path.starts_with("/challenge") => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                self.challenged(path, serde_json::from_slice(&body).unwrap()).await
            }
            (&Method::GET, path) if path.ends_with("/logs") => {
                let task_id = path.strip_prefix("/tasks/").unwrap().strip_suffix("/logs").unwrap();
                self.logs(task_id.parse().unwrap(), request.uri().query().unwrap())
            }
            (&Method::DELETE, _) => {
                let task_id = path.strip_prefix("/tasks/").unwrap().parse().unwrap();
                let attempt =
                    request.uri().query().unwrap().strip_prefix("attempt=").unwrap().parse().unwrap();
                let key = AttemptKey { task_id, attempt };
                self.state.send_modify(|state| {
                    state.held.retain(|held| *held != key);
                    state.called_off.push(key);
                });
                respond(StatusCode::NO_CONTENT, Vec::new())
            }
            other => panic!("unexpected request {other:?}"),
        }
    }

    /// Computes what the relay asks, as slowly as a GPU for which the smallest challenge is enough.
    async fn challenged(&self, path: &str, challenge: Challenge) -> Response<Body> {
        let Some(index) = path.strip_prefix("/challenge/products/") else {
            let begun = Instant::now();
            let committing =
                spawn_blocking(move || commit(&mut Cpu::default(), &challenge, Duration::MAX).unwrap());
            let commitment = committing.await.unwrap();
            sleep_until(begun + Duration::from_secs(1)).await;
            return respond(StatusCode::OK, serde_json::to_vec(&commitment).unwrap());
        };
        let index = index.parse().unwrap();
        let opening = spawn_blocking(move || open(&mut Cpu::default(), &challenge, index).unwrap());
        let product = opening.await.unwrap();
        let wrong = vec![7; product.len()];
        respond(StatusCode::OK, if self.script.miscalculates { wrong } else { product })
    }

    /// What an attempt said, and with `follow=true` what it says until it is over.
    fn logs(&self, task_id: TaskId, query: &str) -> Response<Body> {
        let mut state = self.state.subscribe();
        if !state.borrow().assignments.iter().any(|assignment| assignment.task_id == task_id) {
            let body = ErrorBody::new(ErrorCode::NotFound, "this host does not know the task");
            return respond(StatusCode::NOT_FOUND, serde_json::to_vec(&body).unwrap());
        }
        if self.script.babbles {
            let state = self.state.clone();
            let babble = stream::repeat_with(move || {
                state.send_modify(|state| state.babbled += 8192);
                frame([vec![b'x'; 8191], vec![b'\n']].concat())
            });
            return Response::new(StreamBody::new(babble).boxed_unsync());
        }
        let (from, follow) = query.split_once('&').unwrap();
        let from: usize = from.strip_prefix("from=").unwrap().parse().unwrap();
        let follow = follow == "follow=true";
        state.mark_changed();
        let lines = stream::unfold((state, from), move |(mut state, next)| async move {
            loop {
                state.changed().await.unwrap();
                let now = state.borrow_and_update().clone();
                let lines: Vec<String> = (next..now.said.len())
                    .map(|n| format!("{{\"n\":{n},\"stream\":\"stdout\",\"text\":\"{}\"}}\n", now.said[n]))
                    .collect();
                if !lines.is_empty() {
                    if !follow || !now.held.iter().any(|held| held.task_id == task_id) {
                        state.mark_changed();
                    }
                    return Some((frame(lines.concat().into_bytes()), (state, now.said.len())));
                }
                if !follow || !now.held.iter().any(|held| held.task_id == task_id) {
                    return None;
                }
            }
        });
        Response::new(StreamBody::new(lines).boxed_unsync())
    }

    async fn offered(&self, assignment: &Assignment) -> Response<Body> {
        match &self.script.answer {
            Answer::Accept { lease_secs } => {
                let key = AttemptKey { task_id: assignment.task_id, attempt: assignment.attempt };
                self.state.send_modify(|state| state.held.push(key));
                let accept = self.acceptance(assignment, *lease_secs);
                respond(StatusCode::ACCEPTED, serde_json::to_vec(&SignedMutation::from(accept)).unwrap())
            }
            Answer::Refuse(why) => {
                let body = ErrorBody::new(ErrorCode::Conflict, *why);
                respond(StatusCode::CONFLICT, serde_json::to_vec(&body).unwrap())
            }
            Answer::Hang => pending().await,
            Answer::Lie(lie) => self.lie(assignment, *lie),
        }
    }

    fn acceptance(&self, assignment: &Assignment, lease_secs: u64) -> Signed<AcceptTask> {
        let accept = AcceptTask {
            task_id: assignment.task_id,
            provider: self.script.wallet.address(),
            attempt: assignment.attempt,
            lease_until: now().plus(lease_secs).min(assignment.task.deadline),
        };
        let shown = &assignment.domain;
        let domain = Domain { chain_id: shown.chain_id, verifying_contract: shown.verifying_contract };
        self.script.wallet.sign(&accept, &domain).unwrap()
    }

    fn lie(&self, assignment: &Assignment, lie: Lie) -> Response<Body> {
        let stranger = Wallet::random();
        let mut accept = self.acceptance(assignment, 60).message;
        match lie {
            Lie::Attempt => accept.attempt += 1,
            Lie::Task => accept.task_id = TaskId([9; 32].into()),
            Lie::Lease => accept.lease_until = assignment.task.deadline.plus(1),
            Lie::Provider | Lie::Signature => accept.provider = stranger.address(),
            Lie::NoJson => return respond(StatusCode::ACCEPTED, b"{".to_vec()),
            Lie::Endless => {
                let endless = stream::repeat_with(|| frame(vec![b' '; 4096]));
                let mut response = Response::new(StreamBody::new(endless).boxed_unsync());
                *response.status_mut() = StatusCode::ACCEPTED;
                return response;
            }
        }
        let own = &self.script.wallet;
        let signer = if accept.provider == own.address() { own } else { &stranger };
        let mut signed = signer.sign(&accept, &Domain::UNSETTLED).unwrap();
        if matches!(lie, Lie::Signature) {
            signed.message.provider = own.address();
        }
        respond(StatusCode::ACCEPTED, serde_json::to_vec(&SignedMutation::from(signed)).unwrap())
    }

    fn heartbeat(&self) -> Body {
        let forgetful = matches!(self.script.beats, Beats::Forgetful);
        let slots = self.script.slots;
        let unwell = if let Beats::Unwell(why) = self.script.beats { Some(why.to_owned()) } else { None };
        let state = self.state.subscribe();
        let line = move || {
            let held: Vec<_> = state.borrow().held.clone();
            let beat = Heartbeat {
                at: now(),
                busy: u32::try_from(held.len()).unwrap(),
                slots,
                free_vram_mb: Vec::new(),
                warm_models: Vec::new(),
                models: Vec::new(),
                unhealthy: unwell.clone(),
                attempts: if forgetful { Vec::new() } else { held.into_iter().map(self::held).collect() },
            };
            let mut line = serde_json::to_vec(&beat).unwrap();
            line.push(b'\n');
            frame(line)
        };
        match &self.script.beats {
            Beats::True | Beats::Forgetful | Beats::Unwell(_) => {
                let ticks = stream::unfold(interval(Duration::from_millis(50)), |mut ticks| async move {
                    ticks.tick().await;
                    Some(((), ticks))
                });
                let stopped = self.stop.clone().cancelled_owned();
                StreamBody::new(ticks.map(move |()| line()).take_until(stopped)).boxed_unsync()
            }
            Beats::Once => {
                let once = stream::iter([line()]).chain(stream::pending());
                StreamBody::new(once).boxed_unsync()
            }
            Beats::Raw(bytes) => {
                let raw = stream::iter([frame(bytes.clone())]).chain(stream::pending());
                StreamBody::new(raw).boxed_unsync()
            }
            Beats::Endless => {
                let endless = stream::repeat_with(|| frame(vec![b'x'; 8192]));
                StreamBody::new(endless).boxed_unsync()
            }
        }
    }
}

fn frame(bytes: Vec<u8>) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from(bytes)))
}

fn respond(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Full::from(body).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn held(key: AttemptKey) -> HeldAttempt {
    let progress = Progress { attempt: key.attempt, phase: Phase::Running, percent: Some(50) };
    HeldAttempt { task_id: key.task_id, progress }
}

/// The time, in whole seconds.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_unix(since.as_secs())
}

/// Waits for the peer to close a handshake, and answers the code.
pub(crate) async fn close_code_of(handshake: &mut Handshake) -> u16 {
    let ended = within("a close", handshake.recv()).await;
    let Err(link::HandshakeError::Closed(Closed::Peer { code, .. })) = ended else {
        panic!("expected a close, got {ended:?}");
    };
    code
}
