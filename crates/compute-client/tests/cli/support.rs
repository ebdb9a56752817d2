//! A relay of a few lines that follows a script, and a way to run the program against it.

use std::collections::HashMap;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use artifact::Digest;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use rpc::error::{ErrorBody, ErrorCode};
use rpc::evidence::{Evidence, EvidenceEvent, FORMAT};
use rpc::relay::{Info, Limits};
use rpc::tasks::{
    Entry, EventView, Explanation, PublishTask, SignedMutation, TaskHistory, TaskPage, TaskView,
};
use taskmarket::{
    AcceptTask, ApproveResult, B256, Bytes32, CancelTask, ChainChange, ChainFact, ComputeProof, ContentHash,
    DisputeTask, Domain, Event, Mutation, ReadTask, Recorded, Signed, TaskRecord, Timestamp, apply, decide,
};
use tokio::process::Child;
use tokio::sync::Notify;
use wallet::Wallet;

pub(crate) use crate::program::{cli, code, ended, json, said, start_program, stderr, stdout, terminal};

/// The one API key that the relay takes.
pub(crate) const API_KEY: &str = "zk-a-key-that-nobody-may-see";
/// The requester's private key: worthless anywhere else.
pub(crate) const REQUESTER_KEY: &str = "3333333333333333333333333333333333333333333333333333333333333333";
/// What every task results in.
pub(crate) const RESULT: &[u8] = b"THE RESULT\n";
/// The largest file that the relay takes.
pub(crate) const MAX_ARTIFACT_BYTES: u64 = 64 << 10;
/// How long a command may take before its test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the relay does other than an honest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Script {
    /// Nothing.
    #[default]
    Honest,
    /// It changes a byte of the result.
    OtherResult,
    /// It shows a proof with another result hash than the provider signed.
    ForgedProof,
    /// Its proof is signed by another key than the provider's.
    OtherSigner,
    /// Its provider used another input than the task pins.
    OtherInput,
    /// It shows another task under the id.
    OtherTask,
    /// Its history leaves the acceptance out.
    GapInHistory,
    /// It breaks off the result after a few bytes, and goes on from there when asked.
    BrokenResult,
    /// It breaks off the result every time, and begins anew.
    HopelessResult,
    /// It breaks the first live connection after one event.
    BrokenStream,
    /// Its provider gives up.
    ProviderFails,
    /// No provider takes the task.
    NobodyThere,
    /// It hands no result out.
    NoResult,
    /// It hands the result out byte by byte, without end.
    TricklingResult,
    /// It forgets the first task that it is given.
    Forgets,
    /// It never answers to the first task that it is given.
    StallsOnce,
    /// It takes the first task that it is given, and never answers to it.
    TakesInSilenceOnce,
    /// It does not take the first task that it is given.
    RefusesOnce,
    /// It does not take the first task that it is given, once it is told to go ahead.
    RefusesAtLeisure,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) record: Option<TaskRecord>,
    pub(crate) history: Vec<Recorded>,
    pub(crate) blobs: HashMap<String, Bytes>,
    /// The `Last-Event-ID` of each live connection.
    pub(crate) resumed: Vec<Option<String>>,
    pub(crate) uploads: usize,
    /// How many tasks it was given.
    pub(crate) given: usize,
    /// The range that was asked for with each fetch of the result.
    pub(crate) ranges: Vec<Option<String>>,
}

/// A scripted relay.
pub(crate) struct Relay {
    pub(crate) url: String,
    pub(crate) home: tempfile::TempDir,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    script: Script,
    /// Under which tasks are signed.
    domain: Domain,
    provider: Wallet,
    seen: Mutex<Seen>,
    ahead: Notify,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Relay {
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_with(script, Domain::UNSETTLED, Wallet::random()).await
    }

    /// A relay of tasks whose money a contract holds.
    pub(crate) async fn start_with(script: Script, domain: Domain, provider: Wallet) -> Self {
        let shared =
            Arc::new(Shared { script, domain, provider, seen: Mutex::default(), ahead: Notify::new() });
        let router = Router::new()
            .route("/v1/artifacts/{digest}", put(store).head(has).get(load))
            .route("/v1/tasks", post(publish).get(list))
            .route("/v1/tasks/{id}", get(view))
            .route("/v1/tasks/{id}/events", get(events))
            .route("/v1/tasks/{id}/result", get(result))
            .route("/v1/tasks/{id}/explain", get(explain))
            .route("/v1/tasks/{id}/{verb}", post(mutate))
            .route("/v1/info", get(info_of))
            .layer(middleware::from_fn(authorise))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let home = tempfile::tempdir().unwrap();
        daemon::private_file::create(&home.path().join("key"), REQUESTER_KEY.as_bytes()).unwrap();
        std::fs::write(home.path().join("program.wasm"), b"\0asm\x01\0\0\0").unwrap();
        std::fs::write(home.path().join("input.txt"), b"words").unwrap();
        Self { url, home, shared, server }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.shared.seen.lock().unwrap())
    }

    /// Tells it to go ahead.
    pub(crate) fn go_ahead(&self) {
        self.shared.ahead.notify_one();
    }

    /// Holds this task from now on.
    pub(crate) fn hold(&self, record: TaskRecord) {
        self.shared.seen.lock().unwrap().record = Some(record);
    }

    /// The evidence of its task.
    pub(crate) fn evidence(&self) -> Vec<u8> {
        self.seen(|seen| {
            let record = seen.record.as_ref().unwrap();
            let events = seen.history.iter().zip(views(seen));
            let evidence = Evidence {
                format: FORMAT.to_owned(),
                relay_id: "scripted".to_owned(),
                relay_version: "0".to_owned(),
                written_at: now(),
                task_id: record.id,
                domain: record.domain.into(),
                status: record.status(),
                settlement: record.settlement.as_str().to_owned(),
                task: record.task.clone(),
                signature: record.signature,
                events: events.map(|(event, view)| EvidenceEvent::new(event.clone(), view.status)).collect(),
                sessions: Vec::new(),
                chain: Vec::new(),
            };
            serde_json::to_vec(&evidence).unwrap()
        })
    }

    /// Runs the program with this relay, the API key and the requester's key in its environment.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> Output {
        ended(self.start_program(arguments), arguments, b"").await
    }

    /// Starts the program in the same way.
    pub(crate) fn start_program(&self, arguments: &[&str]) -> Child {
        let key = self.path("key");
        let own = [
            ("ZORAI_RELAY", self.url.as_str()),
            ("ZORAI_AI_API_KEY", API_KEY),
            ("ZORAI_KEY_FILE", key.as_str()),
        ];
        start_program(self.home.path(), arguments, &own)
    }

    /// Publishes a task through the program and waits for nothing.
    pub(crate) async fn publish(&self) -> String {
        let (model, input) = (self.path("program.wasm"), self.path("input.txt"));
        let out = self.cli(&["run", "--model", &model, "--input", &input]).await;
        assert_eq!(code(&out), 0, "{}", said(&out));
        stdout(&out).trim().to_owned()
    }

    /// Publishes a task and polls for its result.
    pub(crate) async fn poll(&self, more: &[&str]) -> Output {
        let (model, input) = (self.path("program.wasm"), self.path("input.txt"));
        let mut arguments = vec!["run", "--model", &model, "--input", &input, "--poll"];
        arguments.extend_from_slice(more);
        self.cli(&arguments).await
    }
}

fn now() -> Timestamp {
    Timestamp::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

pub(crate) fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash(B256::from(Digest::of(bytes).0))
}

fn refuse(code: ErrorCode, message: &str) -> Response {
    let status = StatusCode::from_u16(code.http_status()).unwrap();
    (status, Json(ErrorBody::new(code, message))).into_response()
}

/// Whether the requester signed that they read the task in the path.
fn reads(request: &Request, header: &[u8]) -> bool {
    let signed: SignedMutation<ReadTask> = serde_json::from_slice(header).unwrap();
    let read = Signed::from(signed).verify(&Domain::UNSETTLED).unwrap().into_signed().message;
    let requester = Wallet::from_hex(REQUESTER_KEY).unwrap().address();
    let task = format!("/v1/tasks/{}", read.task_id);
    request.uri().path().starts_with(&task) && read.reader == requester && read.issued_at.distance(now()) < 60
}

async fn authorise(request: Request, next: Next) -> Response {
    let sent = request.headers().get("authorization").map(|value| value.as_bytes().to_vec());
    let is_signed =
        request.headers().get(rpc::READ_HEADER).is_some_and(|read| reads(&request, read.as_bytes()));
    // Mutations carry their own signature.
    let is_mutation = request.method() == "POST" && request.uri().path().ends_with("/dispute");
    if sent != Some(format!("Bearer {API_KEY}").into_bytes()) && !is_signed && !is_mutation {
        return refuse(ErrorCode::InvalidApiKey, "no such key");
    }
    next.run(request).await
}

type App = State<Arc<Shared>>;

async fn store(State(app): App, UrlPath(digest): UrlPath<String>, body: Bytes) -> Response {
    if Digest::of(&body).to_string() != digest {
        return refuse(ErrorCode::HashMismatch, "other bytes");
    }
    let mut seen = app.seen.lock().unwrap();
    seen.uploads += 1;
    seen.blobs.insert(digest, body);
    StatusCode::CREATED.into_response()
}

async fn has(State(app): App, UrlPath(digest): UrlPath<String>) -> StatusCode {
    if app.seen.lock().unwrap().blobs.contains_key(&digest) { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

async fn load(State(app): App, UrlPath(digest): UrlPath<String>) -> Response {
    match app.seen.lock().unwrap().blobs.get(&digest) {
        Some(bytes) => bytes.clone().into_response(),
        None => refuse(ErrorCode::NotFound, "no such blob"),
    }
}

async fn publish(State(app): App, Json(body): Json<PublishTask>) -> Response {
    let signed = Signed { message: body.task, signature: body.signature };
    assert_eq!(body.verifying_contract, app.domain.verifying_contract);
    let verified = signed.clone().verify(&app.domain).unwrap();
    let record = taskmarket::publish(now(), &verified).unwrap();
    let event = Event::Published { task: Box::new(signed), domain: app.domain };
    let first = {
        let mut seen = app.seen.lock().unwrap();
        seen.given += 1;
        seen.given == 1
    };
    if first && app.script == Script::StallsOnce {
        std::future::pending::<()>().await;
    }
    if first && app.script == Script::RefusesAtLeisure {
        app.ahead.notified().await;
    }
    if first && matches!(app.script, Script::RefusesOnce | Script::RefusesAtLeisure) {
        return refuse(ErrorCode::Conflict, "it is not taken");
    }
    let shown = TaskView::new(&record, true, None);
    if app.script == Script::Forgets && first {
        return (StatusCode::CREATED, Json(shown)).into_response();
    }
    {
        let mut seen = app.seen.lock().unwrap();
        seen.history = vec![Recorded { version: 1, at: record.created_at, event }];
        seen.record = Some(record);
        if !matches!(app.script, Script::NobodyThere | Script::StallsOnce | Script::RefusesOnce) {
            work(&app, &mut seen);
        }
    }
    if first && app.script == Script::TakesInSilenceOnce {
        std::future::pending::<()>().await;
    }
    (StatusCode::CREATED, Json(shown)).into_response()
}

/// Does the provider's part.
fn work(app: &Shared, seen: &mut Seen) {
    let (id, domain) = (seen.record.as_ref().unwrap().id, app.domain);
    let provider = app.provider.address();
    if domain.is_settled() {
        note_funding(seen);
    }
    let accept = AcceptTask { task_id: id, provider, attempt: 1, lease_until: now().plus(600) };
    let accept = app.provider.sign(&accept, &domain).unwrap().verify(&domain).unwrap();
    commit(seen, Mutation::Accept(accept)).unwrap();
    if app.script == Script::ProviderFails {
        let (code, message) = ("out_of_fuel".to_owned(), "it used all of its fuel\u{1b}[31m".to_owned());
        let fail =
            taskmarket::FailTask { task_id: id, provider, attempt: 1, code, message, issued_at: now() };
        let fail = app.provider.sign(&fail, &domain).unwrap().verify(&domain).unwrap();
        commit(seen, Mutation::Fail(fail)).unwrap();
        return;
    }
    let proof = proof(seen.record.as_ref().unwrap(), app);
    let proof = app.provider.sign(&proof, &domain).unwrap().verify(&domain).unwrap();
    commit(seen, Mutation::Proof(proof)).unwrap();
}

/// What the relay's watcher tells: the budget is there.
fn note_funding(seen: &mut Seen) {
    let record = seen.record.as_mut().unwrap();
    let fact = ChainFact {
        tx: Bytes32::default(),
        log_index: 0,
        block: 1,
        block_hash: Bytes32::default(),
        block_time: record.created_at,
        change: ChainChange::Funded,
    };
    let event = taskmarket::observe(record, fact).unwrap().unwrap();
    apply(record, record.created_at, &event);
    seen.history.push(Recorded { version: record.version, at: record.created_at, event });
}

fn proof(record: &TaskRecord, app: &Shared) -> ComputeProof {
    ComputeProof {
        task_id: record.id,
        provider: app.provider.address(),
        attempt: 1,
        model_hash: record.task.model_hash,
        input_hash: record.task.input_hash,
        result_hash: hash_of(RESULT),
        result_cid: format!("artifact://{}", Digest::of(RESULT)).parse().unwrap(),
        started_at: now(),
        finished_at: now(),
        gpu_name: "NVIDIA A100".to_owned(),
    }
}

fn commit(seen: &mut Seen, mutation: Mutation) -> Result<(), taskmarket::Rejection> {
    let record = seen.record.as_mut().unwrap();
    let at = now();
    if let Some(event) = decide(record, at, &mutation)? {
        apply(record, at, &event);
        seen.history.push(Recorded { version: record.version, at, event });
    }
    Ok(())
}

async fn view(State(app): App, UrlPath(id): UrlPath<String>) -> Response {
    let seen = app.seen.lock().unwrap();
    let Some(record) = seen.record.as_ref().filter(|record| record.id.to_string() == id) else {
        return refuse(ErrorCode::NotFound, "there is no such task");
    };
    let mut view = TaskView::new(record, true, None);
    let domain = app.domain;
    if let Some(shown) = &mut view.proof {
        if app.script == Script::ForgedProof {
            shown.proof.result_hash = hash_of(b"something else");
        }
        if app.script == Script::OtherSigner {
            let other = Wallet::random();
            let own = ComputeProof { provider: other.address(), ..shown.proof.clone() };
            shown.signature = other.sign(&own, &domain).unwrap().signature;
        }
        if app.script == Script::OtherInput {
            shown.proof.input_hash = hash_of(b"another input");
            shown.signature = app.provider.sign(&shown.proof, &domain).unwrap().signature;
        }
    }
    if app.script == Script::OtherTask {
        let mut task = record.task.clone();
        task.budget = "7".parse().unwrap();
        view.task = rpc::tasks::ShownTask::Whole(Box::new(task));
    }
    Json(view).into_response()
}

async fn info_of(State(app): App) -> Json<Info> {
    let Json(mut info) = info().await;
    if app.domain.is_settled() {
        info.domains.push(app.domain.into());
    }
    Json(info)
}

pub(crate) async fn info() -> Json<Info> {
    Json(Info {
        relay_id: "scripted".to_owned(),
        version: "0".to_owned(),
        now: now(),
        domains: vec![Domain::UNSETTLED.into()],
        limits: Limits {
            max_body_bytes: 1 << 20,
            max_artifact_bytes: MAX_ARTIFACT_BYTES,
            max_page: 1000,
            session_grace_secs: 15,
        },
        runtimes: vec![],
        providers_online: 0,
        chain: None,
    })
}

async fn list(State(app): App) -> Json<TaskPage> {
    let seen = app.seen.lock().unwrap();
    let tasks = seen.record.iter().map(|record| TaskView::new(record, true, None)).collect();
    Json(TaskPage { tasks, next_cursor: None, last_event_id: 0 })
}

fn views(seen: &Seen) -> Vec<EventView> {
    let mut so_far = taskmarket::replay(&seen.history[..1]).unwrap();
    seen.history
        .iter()
        .map(|recorded| {
            if recorded.version > 1 {
                apply(&mut so_far, recorded.at, &recorded.event);
            }
            let entry = Entry::Recorded { word: recorded.event.word(), recorded: Box::new(recorded.clone()) };
            EventView { id: Some(recorded.version * 10), task_id: so_far.id, status: so_far.status(), entry }
        })
        .collect()
}

async fn events(State(app): App, headers: HeaderMap) -> Response {
    let mut seen = app.seen.lock().unwrap();
    let mut views = views(&seen);
    if headers.get("accept").is_none_or(|accept| accept != "text/event-stream") {
        if app.script == Script::GapInHistory {
            views.remove(1);
        }
        return Json(TaskHistory { task_id: views[0].task_id, events: views }).into_response();
    }
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap().to_owned());
    let after: u64 = last.as_deref().map_or(0, |last| last.parse().unwrap());
    let first = seen.resumed.is_empty();
    seen.resumed.push(last);
    views.retain(|view| view.id.unwrap() > after);
    if app.script == Script::BrokenStream && first {
        views.truncate(1);
    }
    let text: String = views
        .iter()
        .map(|view| format!("id: {}\ndata: {}\n\n", view.id.unwrap(), serde_json::to_string(view).unwrap()))
        .collect();
    ([("content-type", "text/event-stream")], text).into_response()
}

async fn result(State(app): App, headers: HeaderMap) -> Response {
    if app.script == Script::NoResult {
        return refuse(ErrorCode::NotFound, "there is no result");
    }
    if app.script == Script::TricklingResult {
        let pieces = futures_util::stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok::<_, std::io::Error>("x"), ()))
        });
        return axum::body::Body::from_stream(pieces).into_response();
    }
    let mut bytes = RESULT.to_vec();
    if app.script == Script::OtherResult {
        bytes[0] ^= 1;
    }
    let range = headers.get("range").map(|range| range.to_str().unwrap().to_owned());
    let first = {
        let ranges = &mut app.seen.lock().unwrap().ranges;
        ranges.push(range.clone());
        ranges.len() == 1
    };
    let breaks = app.script == Script::HopelessResult || (app.script == Script::BrokenResult && first);
    if breaks {
        let first = Bytes::copy_from_slice(&bytes[..4]);
        let rest = futures_util::stream::once(async {
            // What came before is sent first.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("broken"))
        });
        let pieces = futures_util::stream::iter([Ok(first)]).chain(rest);
        let body = axum::body::Body::from_stream(pieces);
        return ([("content-length", bytes.len())], body).into_response();
    }
    let Some(from) = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
    else {
        return bytes.into_response();
    };
    let whole = bytes.len();
    let rest: Vec<u8> = bytes.split_off(from);
    let range = format!("bytes {from}-{}/{whole}", whole - 1);
    (StatusCode::PARTIAL_CONTENT, [("content-range", range)], rest).into_response()
}

async fn explain(State(app): App) -> Response {
    let seen = app.seen.lock().unwrap();
    let record = seen.record.as_ref().unwrap();
    let summary = "no provider is online".to_owned();
    Json(Explanation { task_id: record.id, status: record.status(), summary, providers: vec![] })
        .into_response()
}

async fn mutate(State(app): App, UrlPath((_, verb)): UrlPath<(String, String)>, body: Bytes) -> Response {
    fn signed<M: serde::de::DeserializeOwned>(body: &[u8]) -> Signed<M> {
        serde_json::from_slice::<SignedMutation<M>>(body).unwrap().into()
    }
    let domain = app.domain;
    let mutation = match verb.as_str() {
        "approve" => Mutation::Approve(signed::<ApproveResult>(&body).verify(&domain).unwrap()),
        "dispute" => Mutation::Dispute(signed::<DisputeTask>(&body).verify(&domain).unwrap()),
        "cancel" => Mutation::Cancel(signed::<CancelTask>(&body).verify(&domain).unwrap()),
        _ => return refuse(ErrorCode::NotFound, "no such verb"),
    };
    let mut seen = app.seen.lock().unwrap();
    match commit(&mut seen, mutation) {
        Ok(()) => Json(TaskView::new(seen.record.as_ref().unwrap(), true, None)).into_response(),
        Err(rejection @ taskmarket::Rejection::WrongParty { .. }) => {
            refuse(ErrorCode::WrongParty, &rejection.to_string())
        }
        Err(rejection) => refuse(ErrorCode::Conflict, &rejection.to_string()),
    }
}
