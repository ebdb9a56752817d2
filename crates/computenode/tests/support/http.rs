//! Talking to a node as its agent does.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

/// No request and no task of these tests takes longer, by far.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node's API.
#[derive(Clone)]
pub(crate) struct Api {
    client: reqwest::Client,
    base: String,
    pub(crate) token: Option<String>,
}

impl Api {
    pub(crate) fn new(addr: SocketAddr, token: &str) -> Self {
        // Fails where another test of the process was first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().unwrap();
        Self { client, base: format!("http://{addr}"), token: Some(token.to_owned()) }
    }

    /// Where the node listens.
    pub(crate) fn addr(&self) -> String {
        self.base.trim_start_matches("http://").to_owned()
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    pub(crate) async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let response = self.send(method, path, body).await;
        (response.status(), response.json().await.unwrap())
    }

    pub(crate) async fn raw_json(&self, method: Method, path: &str, body: String) -> (StatusCode, Value) {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.bearer_auth(self.token.as_deref().unwrap_or_default());
        let response = request.header("content-type", "application/json").body(body).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        self.send(Method::GET, path, None).await.text().await.unwrap()
    }
}

/// The id of a test's task.
pub(crate) fn task_id(number: u8) -> String {
    format!("0x{}", format!("{number:02x}").repeat(32))
}

/// A request to run a program of `tests/programs` on an input, the two being written into `folder`.
pub(crate) fn compute_request(folder: &Path, number: u8, program: &str, input: &str) -> Value {
    let model_path = folder.join(format!("{program}.wasm"));
    std::fs::write(&model_path, super::program(program)).unwrap();
    let input_path = folder.join(format!("input-{number}"));
    std::fs::write(&input_path, input).unwrap();
    let (nobody, nothing) = (format!("0x{}", "00".repeat(20)), "00".repeat(32));
    json!({
        "task_id": task_id(number),
        "attempt": 1,
        "task": {
            "requester": nobody, "model_cid": format!("file://{}", model_path.display()), "model_hash": nothing,
            "input_cid": format!("file://{}", input_path.display()), "input_hash": nothing,
            "config": {
                "runtime": "wasm", "params": "{}", "gpu_type": "", "gpu_count": 0, "min_vram": 0,
                "max_duration": 60, "max_attempts": 3,
            },
            "token": nobody, "budget": "0", "provider_stake": "0", "dispute_bond": "0",
            "deadline": "2100-01-01T00:00:00Z", "dispute_window": 86400, "arbiter_window": 604800,
            "arbiter": nobody, "salt": format!("0x{nothing}"),
        },
        "relay_url": "http://127.0.0.1:1",
        "attempt_token": "attempt-token",
    })
}

/// Waits until a task has ended.
pub(crate) async fn ended(api: &Api, number: u8) -> Value {
    let waiting = async {
        let mut seen = 0;
        loop {
            let path = format!("/status/{}?wait_ms=20000&seen={seen}", task_id(number));
            let (code, status) = api.json(Method::GET, &path, None).await;
            assert_eq!(code, StatusCode::OK, "{status}");
            seen = status["revision"].as_u64().unwrap();
            if ["done", "failed", "cancelled"].contains(&status["phase"].as_str().unwrap()) {
                return status;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("task {number} never ended"))
}
