//! A relay of a few lines with models behind it, as far as the program can see one, whose provider signs for what it answers.

use std::collections::HashMap;
use std::process::Output;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use rpc::error::{ErrorBody, ErrorCode};
use rpc::inference::{InferenceKind, ModelList, ModelView, Outcome, ReceiptView, UsageSource};
use serde_json::{Value, json};
use taskmarket::{Amount, B256, Bytes32, ContentHash, Domain, InferenceReceipt, Timestamp, U256};
use wallet::Wallet;

use crate::support::{API_KEY, cli, info};

/// The provider's private key: worthless anywhere else.
const PROVIDER_KEY: &str = "4444444444444444444444444444444444444444444444444444444444444444";
/// As many characters of a conversation fit into the models' context.
pub(crate) const CONTEXT_CHARS: usize = 600;

/// A relay with models.
pub(crate) struct Gateway {
    pub(crate) url: String,
    pub(crate) home: tempfile::TempDir,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    models: Vec<&'static str>,
    /// The scopes of the API key.
    scopes: Vec<&'static str>,
    provider: Wallet,
    /// The bodies that were asked.
    asked: Mutex<Vec<Value>>,
    records: Mutex<HashMap<String, ReceiptView>>,
    /// Why each host takes no tasks, if it takes none.
    hosts: Mutex<Vec<Option<&'static str>>>,
    /// Told when somebody leaves an answer.
    left: tokio::sync::Notify,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Gateway {
    pub(crate) async fn start(models: &[&'static str], scopes: &[&'static str]) -> Self {
        let shared = Arc::new(Shared {
            models: models.to_vec(),
            scopes: scopes.to_vec(),
            provider: Wallet::from_hex(PROVIDER_KEY).unwrap(),
            asked: Mutex::default(),
            records: Mutex::default(),
            hosts: Mutex::default(),
            left: tokio::sync::Notify::new(),
        });
        let router = Router::new()
            .route("/v1/info", get(info))
            .route("/v1/providers", get(hosts))
            .route("/v1/models", get(list))
            .route("/v1/models/{*id}", get(model))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/receipts/{id}", get(receipt))
            .route("/v1/tasks", get(tasks).post(publish))
            .route("/v1/keys", get(keys))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, home: tempfile::tempdir().unwrap(), shared, server }
    }

    pub(crate) async fn cli(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let environment = [("ZORAI_RELAY", self.url.as_str()), ("ZORAI_AI_API_KEY", API_KEY)];
        cli(self.home.path(), arguments, &environment, stdin).await
    }

    /// Has these hosts online, each with the reason for which it takes no tasks, if it takes none.
    pub(crate) fn has_hosts(&self, hosts: &[Option<&'static str>]) {
        *self.shared.hosts.lock().unwrap() = hosts.to_vec();
    }

    /// What the models were asked.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub(crate) fn provider(&self) -> String {
        self.shared.provider.address().to_string()
    }

    /// Until somebody leaves before the end of an answer.
    pub(crate) async fn left(&self) {
        self.shared.left.notified().await;
    }
}

type Refused = (StatusCode, Json<ErrorBody>);

fn refuse(code: ErrorCode, message: &str) -> Refused {
    let status = StatusCode::from_u16(code.http_status()).unwrap();
    (status, Json(ErrorBody::new(code, message)))
}

fn allowed(shared: &Shared, headers: &HeaderMap, scope: &str) -> Result<(), Refused> {
    let key = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if key != Some(&format!("Bearer {API_KEY}")) {
        return Err(refuse(ErrorCode::InvalidApiKey, "this API key is not known here"));
    }
    if shared.scopes.contains(&scope) {
        return Ok(());
    }
    Err(refuse(ErrorCode::Forbidden, &format!("this needs an API key with the scope {scope}")))
}

async fn hosts(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let hosts = shared.hosts.lock().unwrap();
    let view = |closed_for: &Option<&str>| {
        json!({
            "provider": shared.provider.address().to_string(), "node_id": format!("0x{}", "07".repeat(32)),
            "endpoint": "relay://test-1/s", "generation": 1, "connected_at": "2026-01-31T12:00:00Z", "status": "online",
            "metadata": {
                "agent_version": "0", "node_version": "0", "platform": "linux-x86_64",
                "devices": [{"kind": "gpu", "name": "NVIDIA A100", "vram_mb": 40_960}],
                "runtimes": ["embed", "wasm"], "slots": 2,
            },
            "busy": 1, "closed_for": closed_for,
        })
    };
    let hosts: Vec<Value> = hosts.iter().map(view).collect();
    Json(json!({"providers": hosts, "next_cursor": null}))
}

async fn keys(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Value>, Refused> {
    allowed(&shared, &headers, "admin")?;
    Ok(Json(json!({"keys": []})))
}

async fn tasks(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Value>, Refused> {
    allowed(&shared, &headers, "tasks:read")?;
    Ok(Json(json!({"tasks": [], "next_cursor": null, "last_event_id": 0})))
}

async fn publish(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<(), Refused> {
    allowed(&shared, &headers, "tasks:write")?;
    Err(refuse(ErrorCode::MalformedRequest, "missing field `task`"))
}

fn view(id: &str) -> ModelView {
    ModelView {
        id: id.to_owned(),
        object: "model".to_owned(),
        created: 1,
        owned_by: "zorai".to_owned(),
        hosts: 2,
        context_tokens: Some(4096),
        kinds: vec![InferenceKind::Chat, InferenceKind::Completions],
        quantizations: vec!["q8_0".to_owned()],
        prompt_price: Amount(U256::from(1_000_000)),
        completion_price: Amount(U256::from(2_000_000)),
    }
}

async fn list(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<ModelList>, Refused> {
    allowed(&shared, &headers, "inference")?;
    let data = shared.models.iter().map(|id| view(id)).collect();
    Ok(Json(ModelList { object: "list".to_owned(), data }))
}

async fn model(
    State(shared): State<Arc<Shared>>,
    UrlPath(id): UrlPath<String>,
    headers: HeaderMap,
) -> Result<Json<ModelView>, Refused> {
    allowed(&shared, &headers, "inference")?;
    let known = shared.models.iter().find(|known| **known == id);
    known.map(|id| Json(view(id))).ok_or_else(|| refuse(ErrorCode::ModelNotFound, "there is no such model"))
}

async fn receipt(
    State(shared): State<Arc<Shared>>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<ReceiptView>, Refused> {
    let record = shared.records.lock().unwrap().get(&id).cloned();
    record.map(Json).ok_or_else(|| refuse(ErrorCode::NotFound, "no such record"))
}

/// Answers what was said, letter by letter, with colours and a cursor that moves. `break` breaks off, `endless` does not end, and what is
/// longer than the context is refused. `later` is told so
/// the first time, `never` every time.
async fn chat(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    allowed(&shared, &headers, "inference")?;
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let count = {
        let mut all = shared.asked.lock().unwrap();
        all.push(asked.clone());
        all.len()
    };
    let model = asked["model"].as_str().unwrap().to_owned();
    if !shared.models.iter().any(|known| *known == model) {
        return Err(refuse(
            ErrorCode::ModelNotFound,
            "there is no model \"\u{1b}[2Jx\"; the nearest is \"tiny\"",
        ));
    }
    let messages = asked["messages"].as_array().unwrap();
    let said = |message: &Value| message["content"].as_str().unwrap().to_owned();
    if messages.iter().map(said).map(|text| text.len()).sum::<usize>() > CONTEXT_CHARS {
        let error = json!({"error": {
            "message": "This model's maximum context length is 600 characters",
            "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded",
        }});
        let provider = [("x-zorai-provider", shared.provider.address().to_string())];
        return Ok((StatusCode::BAD_REQUEST, provider, Json(error)).into_response());
    }
    let question = said(messages.last().unwrap());
    let is_first = shared.asked.lock().unwrap().iter().filter(|other| **other == asked).count() == 1;
    if question == "never" || (question == "later" && is_first) {
        let (status, error) = refuse(ErrorCode::NoProviderAvailable, "all hosts of this model are busy");
        return Ok((status, [("retry-after", "0")], error).into_response());
    }
    let event = |value: Value| format!("data: {value}\n\n");
    let delta = |text: &str| event(json!({"choices": [{"delta": {"content": text}}]}));
    let mut events = vec![delta("\u{1b}[31m"), delta("\u{1b}]0;owned\u{7}")];
    let answer = format!("you said: {question}");
    events.extend(answer.chars().map(|letter| delta(&letter.to_string())));
    let id = format!("r-{count}");
    if question == "break" {
        events.push(event(
            json!({"error": {"message": "the provider's answer broke off", "code": "provider_failed"}}),
        ));
    } else {
        events.push(event(json!({"choices": [{"delta": {}, "finish_reason": "stop"}]})));
        events.push(event(
            json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": answer.len()}}),
        ));
        events.push("data: [DONE]\n\n".to_owned());
    }
    let record = record(&shared, &id, &model, &body, events.concat().as_bytes(), answer.len() as u64);
    shared.records.lock().unwrap().insert(id.clone(), record);
    let pieces = futures_util::stream::iter(events.into_iter().map(Ok::<_, std::convert::Infallible>));
    let body = if question == "endless" {
        let leaver = Leaver(Arc::clone(&shared));
        let head = pieces.take(8);
        Body::from_stream(head.chain(futures_util::stream::pending()).inspect(move |_| {
            let _ = &leaver;
        }))
    } else {
        Body::from_stream(pieces)
    };
    let headers = [
        ("content-type", "text/event-stream".to_owned()),
        ("x-request-id", id),
        ("x-zorai-provider", shared.provider.address().to_string()),
    ];
    Ok((headers, body).into_response())
}

/// Tells when it is dropped.
struct Leaver(Arc<Shared>);

impl Drop for Leaver {
    fn drop(&mut self) {
        self.0.left.notify_one();
    }
}

fn record(
    shared: &Shared,
    id: &str,
    model: &str,
    request: &[u8],
    response: &[u8],
    completion_tokens: u64,
) -> ReceiptView {
    let hash = |bytes: &[u8]| artifact::Digest::of(bytes).to_string().parse::<ContentHash>().unwrap();
    let receipt = InferenceReceipt {
        request_id: id.to_owned(),
        provider: shared.provider.address(),
        node_id: Bytes32(B256::repeat_byte(7)),
        relay_id: "test-1".to_owned(),
        request_hash: hash(request),
        response_hash: hash(response),
        model: model.to_owned(),
        engine: "letters".to_owned(),
        quantization: "q8_0".to_owned(),
        prompt_tokens: 3,
        completion_tokens,
        started_at: Timestamp::from_unix(1_000),
        finished_at: Timestamp::from_unix(1_002),
    };
    ReceiptView {
        request_id: id.to_owned(),
        at: Timestamp::from_unix(1_000),
        kind: InferenceKind::Chat,
        model: model.to_owned(),
        provider: receipt.provider,
        node_id: receipt.node_id,
        outcome: Outcome::Completed,
        attempts: 1,
        first_byte_ms: 12,
        total_ms: 1_900,
        prompt_tokens: 3,
        completion_tokens,
        usage_source: UsageSource::Usage,
        cost: Amount(U256::from(3 + 2 * completion_tokens)),
        prompt_price: Some(Amount(U256::from(1_000_000))),
        completion_price: Some(Amount(U256::from(2_000_000))),
        receipt: Some(shared.provider.sign(&receipt, &Domain::UNSETTLED).unwrap().into()),
        fault: None,
    }
}
