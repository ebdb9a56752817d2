//! The engine's endpoints, and who is served when.
//!
//! Each request takes a slot until its last byte has gone, or until its client has. A few wait for one, in order; beyond
//! them 503.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Json, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use rpc::inference::InferenceKind;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::catch_panic::CatchPanicLayer;

use super::OWNER;
use super::answer::{Shape, event};
use super::generate::{Event, generate};
use super::model::Model;
use super::refusal::Refusal;
use super::request::{Body as Asked, Kind};

/// The largest request, in bytes: text alone, of which a context holds far less.
const MAX_REQUEST_BYTES: usize = 4 << 20;

/// The requests that wait for a slot, for each slot.
const WAITING: usize = 8;

/// How long a request may wait for a slot.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The pieces of an answer that wait for their reader before the model does.
const PIECES: usize = 16;

/// What an engine serves, and with how much at once.
struct Server {
    model: Arc<Model>,
    name: String,
    slots: Arc<Semaphore>,
    /// Slots and places to wait for one, together.
    places: Arc<Semaphore>,
    slot_count: u32,
}

/// A request's slot, and its place.
type Slot = (OwnedSemaphorePermit, OwnedSemaphorePermit);

pub(super) fn router(model: Model, name: String, slots: u32) -> Router {
    let count = usize::try_from(slots).unwrap_or(1).max(1);
    let server = Server {
        model: Arc::new(model),
        name,
        slots: Arc::new(Semaphore::new(count)),
        places: Arc::new(Semaphore::new(count.saturating_mul(1 + WAITING))),
        slot_count: slots,
    };
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(models))
        .route(InferenceKind::Chat.path(), post(chat))
        .route(InferenceKind::Completions.path(), post(complete))
        .route("/openapi.json", get(describe))
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is no such path"))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(CatchPanicLayer::custom(|_| failed("the request failed").into_response()))
        .with_state(Arc::new(server))
}

async fn models(State(server): State<Arc<Server>>, id: Option<axum::extract::Path<String>>) -> Response {
    let model = json!({
        "id": server.name, "object": "model", "created": 0, "owned_by": OWNER,
        "max_model_len": server.model.context, "quantization": server.model.quantization, "slots": server.slot_count,
    });
    match id {
        None => Json(json!({ "object": "list", "data": [model] })).into_response(),
        Some(id) if *id == server.name => Json(model).into_response(),
        Some(_) => unknown(&server).into_response(),
    }
}

/// The paths of OpenAI's API that the model is good for.
async fn describe(State(server): State<Arc<Server>>) -> Json<Value> {
    let mut paths = json!({ InferenceKind::Completions.path(): {} });
    if server.model.template().is_some() {
        paths[InferenceKind::Chat.path()] = json!({});
    }
    Json(json!({ "openapi": "3.1.0", "info": { "title": OWNER, "version": "1" }, "paths": paths }))
}

async fn chat(State(server): State<Arc<Server>>, body: Bytes) -> Result<Response, Refusal> {
    answer(&server, Kind::Chat, &body).await
}

async fn complete(State(server): State<Arc<Server>>, body: Bytes) -> Result<Response, Refusal> {
    answer(&server, Kind::Completion, &body).await
}

async fn answer(server: &Server, kind: Kind, body: &[u8]) -> Result<Response, Refusal> {
    let asked = Asked::parse(body)?;
    if asked.model != server.name {
        return Err(unknown(server));
    }
    let (is_stream, wants_usage) = (asked.stream == Some(true), asked.wants_usage());
    let slot = server.take().await?;
    let model = Arc::clone(&server.model);
    let working = tokio::task::spawn_blocking(move || asked.work(kind, &model));
    let work = working.await.map_err(|_| failed("the request cannot be read"))??;
    let prefix = match kind {
        Kind::Chat => "chatcmpl",
        Kind::Completion => "cmpl",
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let shape = Shape {
        kind,
        id: format!("{prefix}-{}", hex::encode(rand::random::<[u8; 12]>())),
        created: since.as_secs(),
        model: server.name.clone(),
        prompt_tokens: work.prompt.len(),
        wants_usage,
    };
    let (sender, mut events) = mpsc::channel(PIECES);
    let model = Arc::clone(&server.model);
    tokio::task::spawn_blocking(move || {
        generate(&model, &work, &sender);
        drop(slot);
    });
    // Until the model has begun, what fails has a status of its own.
    match events.recv().await {
        Some(Event::Failed(problem)) => Err(failed(&format!("the model fails: {problem}"))),
        None => Err(failed("the model fails")),
        Some(first) if is_stream => Ok(streamed(shape, first, events)),
        Some(first) => whole(&shape, first, events).await,
    }
}

impl Server {
    async fn take(&self) -> Result<Slot, Refusal> {
        let busy = || {
            let message = format!("all slots of the model {:?} are in use", self.name);
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "engine_busy", message)
        };
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| busy())?;
        let waiting = tokio::time::timeout(MAX_WAIT, Arc::clone(&self.slots).acquire_owned());
        let slot = waiting.await.map_err(|_| busy())?.map_err(|_| busy())?;
        Ok((slot, place))
    }
}

async fn whole(shape: &Shape, first: Event, mut events: Receiver<Event>) -> Result<Response, Refusal> {
    let mut text = String::new();
    let mut next = Some(first);
    loop {
        match next {
            Some(Event::Text(piece)) => text.push_str(&piece),
            Some(Event::Done { finish, tokens }) => {
                return Ok(Json(shape.whole(&text, finish, tokens)).into_response());
            }
            Some(Event::Failed(problem)) => return Err(failed(&format!("the model fails: {problem}"))),
            None => return Err(failed("the model fails")),
        }
        next = events.recv().await;
    }
}

fn streamed(shape: Shape, first: Event, events: Receiver<Event>) -> Response {
    let parts =
        stream::unfold((shape, Some(first), events, false), async |(shape, first, mut events, ended)| {
            if ended {
                return None;
            }
            let is_first = first.is_some();
            let event = match first {
                Some(event) => Some(event),
                None => events.recv().await,
            };
            let (mut bytes, ended) = part(&shape, event);
            if is_first && let Some(begin) = shape.begin() {
                bytes = [begin, bytes].concat().into();
            }
            Some((Ok::<_, std::convert::Infallible>(bytes), (shape, None, events, ended)))
        });
    (
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")],
        Body::from_stream(parts),
    )
        .into_response()
}

/// A part of a stream, and whether it is the last. What fails within a stream ends it with an error, and no `[DONE]`.
fn part(shape: &Shape, happened: Option<Event>) -> (Bytes, bool) {
    match happened {
        Some(Event::Text(text)) if text.is_empty() => (Bytes::new(), false),
        Some(Event::Text(text)) => (shape.piece(&text), false),
        Some(Event::Done { finish, tokens }) => (shape.end(finish, tokens), true),
        failure @ (Some(Event::Failed(_)) | None) => {
            let problem = match failure {
                Some(Event::Failed(problem)) => format!("the model fails: {problem}"),
                Some(Event::Text(_) | Event::Done { .. }) | None => "the model fails".to_owned(),
            };
            (event(&json!(failed(&problem).body())), true)
        }
    }
}

fn unknown(server: &Server) -> Refusal {
    let message = format!("this engine serves {:?}", server.name);
    Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message).of("model")
}

fn failed(problem: &str) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", problem)
}
