//! A fake engine, which misbehaves as it is asked to, and the real one that the tests start.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

/// An engine that is none: it answers in this process, and does what a request's `behave` says.
pub(crate) struct FakeEngine {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Seen,
    /// Its own, so that all connections end with it.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What came to a fake engine.
#[derive(Clone)]
pub(crate) struct Seen {
    /// How often each prompt came.
    pub(crate) prompts: Arc<Mutex<BTreeMap<String, u32>>>,
    /// The headers of the last request.
    pub(crate) headers: Arc<Mutex<HeaderMap>>,
    /// Requests that are being answered.
    pub(crate) open: Arc<watch::Sender<u32>>,
    /// The most that were at once.
    pub(crate) most: Arc<Mutex<u32>>,
    /// The slots that it says it has, as llama.cpp does: zero while it loads its model.
    pub(crate) slots: Arc<Mutex<Option<u32>>>,
    /// The models that it says it has, those in memory marked, where it is Ollama or LM Studio.
    pub(crate) keeps: Arc<Mutex<Option<Keeps>>>,
    /// How often it was asked for its properties.
    pub(crate) asked: Arc<watch::Sender<u32>>,
}

/// How an engine with several models tells which are in memory.
#[derive(Clone)]
pub(crate) struct Keeps {
    /// What [`models`] names as their owner: `library` for Ollama, `organization_owner` for LM Studio.
    pub(crate) owner: &'static str,
    pub(crate) models: Vec<(&'static str, bool)>,
    /// Whether it tells.
    pub(crate) tells: bool,
}

/// Counts a request until it is answered or given up.
struct Open(Arc<watch::Sender<u32>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl FakeEngine {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(addr: SocketAddr) -> Self {
        Self::start_as(addr, None).await
    }

    /// One that says that it is llama.cpp, with so many slots.
    pub(crate) async fn start_as(addr: SocketAddr, slots: Option<u32>) -> Self {
        let seen = Seen {
            prompts: Arc::default(),
            headers: Arc::default(),
            open: Arc::new(watch::Sender::new(0)),
            most: Arc::default(),
            slots: Arc::new(Mutex::new(slots)),
            keeps: Arc::default(),
            asked: Arc::new(watch::Sender::new(0)),
        };
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/props", get(props))
            .route("/api/ps", get(loaded))
            .route("/api/v0/models", get(states))
            .route("/v1/chat/completions", post(answer))
            .route("/v1/completions", post(answer))
            .with_state(seen.clone());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let binding = runtime.spawn(tokio::net::TcpListener::bind(addr));
        let listener = binding.await.unwrap().unwrap();
        let addr = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, seen, runtime: Some(runtime) }
    }

    pub(crate) fn flag(&self, slots: u32) -> String {
        format!("fake=http://{},slots={slots}", self.addr)
    }

    /// Waits until so many requests are being answered.
    pub(crate) async fn open_is(&self, count: u32) {
        let mut open = self.seen.open.subscribe();
        let waiting = open.wait_for(|open| *open == count);
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        drop(
            waited.unwrap_or_else(|_| panic!("{} requests are open, not {count}", *self.seen.open.borrow())),
        );
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn models(State(seen): State<Seen>) -> Json<Value> {
    if let Some(keeps) = &*seen.keeps.lock().unwrap() {
        let models = keeps.models.iter();
        let list: Vec<_> =
            models.map(|(id, _)| json!({ "id": id, "object": "model", "owned_by": keeps.owner })).collect();
        return Json(json!({ "object": "list", "data": list }));
    }
    let owner = if seen.slots.lock().unwrap().is_some() { "llamacpp" } else { "fake" };
    Json(json!({ "object": "list", "data": [
        { "id": "fake-q4_0", "object": "model", "owned_by": owner, "max_model_len": 4096 }
    ]}))
}

/// Ollama's list of what is in memory.
async fn loaded(State(seen): State<Seen>) -> Response {
    let keeps = seen.keeps.lock().unwrap().clone();
    let Some(keeps) = keeps.filter(|keeps| keeps.tells && keeps.owner == "library") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let loaded = keeps.models.iter().filter(|(_, loaded)| *loaded);
    let list: Vec<_> =
        loaded.map(|(id, _)| json!({ "name": id, "model": id, "size": 1, "size_vram": 1 })).collect();
    Json(json!({ "models": list })).into_response()
}

/// LM Studio's list of all models.
async fn states(State(seen): State<Seen>) -> Response {
    let keeps = seen.keeps.lock().unwrap().clone();
    let Some(keeps) = keeps.filter(|keeps| keeps.tells && keeps.owner == "organization_owner") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let models = keeps.models.iter();
    let list: Vec<_> = models
        .map(|(id, loaded)| json!({ "id": id, "state": if *loaded { "loaded" } else { "not-loaded" } }))
        .collect();
    Json(json!({ "object": "list", "data": list })).into_response()
}

async fn props(State(seen): State<Seen>) -> Response {
    let slots = *seen.slots.lock().unwrap();
    seen.asked.send_modify(|asked| *asked += 1);
    match slots {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(0) => {
            let error = json!({ "code": 503, "message": "Loading model", "type": "unavailable_error" });
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error }))).into_response()
        }
        Some(slots) => {
            let settings = json!({ "n_ctx": 8192 });
            Json(json!({ "total_slots": slots, "default_generation_settings": settings })).into_response()
        }
    }
}

async fn answer(State(seen): State<Seen>, headers: HeaderMap, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    *seen.headers.lock().unwrap() = headers;
    if let Some(prompt) = request["prompt"].as_str() {
        *seen.prompts.lock().unwrap().entry(prompt.to_owned()).or_default() += 1;
    }
    seen.open.send_modify(|open| *open += 1);
    let open = Open(Arc::clone(&seen.open));
    {
        let mut most = seen.most.lock().unwrap();
        *most = (*most).max(*seen.open.borrow());
    }
    match request["behave"].as_str() {
        None => {
            // Long enough for others to come meanwhile.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let usage = json!({ "prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5 });
            let text = format!("you said {}", request["prompt"]);
            Json(json!({ "choices": [{ "text": text }], "usage": usage, "length": body.len() }))
                .into_response()
        }
        Some("hang") => std::future::pending().await,
        Some("refuse") => {
            (StatusCode::BAD_REQUEST, Json(json!({ "error": { "message": "no" } }))).into_response()
        }
        Some("fail") => (StatusCode::INTERNAL_SERVER_ERROR, Json(request["error"].clone())).into_response(),
        Some("garbage") => "no JSON".into_response(),
        Some("short") => {
            ([(header::CONTENT_LENGTH, "1000")], Body::from_stream(stream::iter([ok("only this")])))
                .into_response()
        }
        Some("stream") => {
            let held = stream::unfold((0, open), async |(count, open)| {
                let text = format!("data: {{\"choices\":[{{\"text\":\"{count}\"}}]}}\n\n");
                (count < 10).then_some((ok(&text), (count + 1, open)))
            });
            ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(held)).into_response()
        }
        Some("endless") => {
            let held = stream::unfold(open, async |open| Some((ok(&"x".repeat(64 << 10)), open)));
            Body::from_stream(held).into_response()
        }
        Some(other) => panic!("the fake engine does not know how to {other}"),
    }
}

fn ok(text: &str) -> Result<Bytes, Infallible> {
    Ok(Bytes::copy_from_slice(text.as_bytes()))
}

/// Where the real engine lies, if there is one.
pub(crate) fn real_engine() -> Option<PathBuf> {
    let folder = std::env::var_os("ZORAI_TEST_ENGINE").map(PathBuf::from);
    if folder.is_none() {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!(
                "skipped: ZORAI_TEST_ENGINE is not set; scripts/fetch_engine.sh FOLDER makes an engine"
            );
        }
    }
    folder
}
