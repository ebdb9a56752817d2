//! An endpoint before a chain that fails when a test wants it to: one for each process, so that each can be cut off by itself.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::watch;

/// The endpoint, which passes everything on at first.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub url: String,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    http: reqwest::Client,
    mood: Mutex<Mood>,
    /// Requests that were refused while it was down.
    refused: watch::Sender<u64>,
    /// Transactions that it was given and did not take.
    dropped: watch::Sender<u64>,
}

#[derive(Debug)]
struct Mood {
    is_down: bool,
    /// How many more transactions it takes.
    takes: usize,
    /// What it took: the same again is let through.
    taken: HashSet<String>,
}

impl Endpoint {
    /// An endpoint before this one.
    ///
    /// # Panics
    /// No port can be had.
    pub async fn to(upstream: &str) -> Self {
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            http: reqwest::Client::builder().timeout(crate::PATIENCE).build().expect("an HTTP client"),
            mood: Mutex::new(Mood { is_down: false, takes: usize::MAX, taken: HashSet::new() }),
            refused: watch::Sender::new(0),
            dropped: watch::Sender::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("a bound address"));
        let router = Router::new().fallback(pass_on).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { url, shared, server }
    }

    /// Answers nothing from now on.
    pub fn down(&self) {
        self.mood().is_down = true;
    }

    /// Answers again.
    pub fn up(&self) {
        self.mood().is_down = false;
    }

    /// Takes so many transactions more, and drops those after them.
    pub fn takes(&self, transactions: usize) {
        self.mood().takes = transactions;
    }

    /// Waits until so many requests were refused while it was down.
    ///
    /// # Panics
    /// They never are.
    pub async fn refused(&self, requests: u64) {
        reaches(&self.shared.refused, requests, "requests refused").await;
    }

    /// Waits until so many transactions were dropped, since the beginning.
    ///
    /// # Panics
    /// They never are.
    pub async fn dropped(&self, transactions: u64) {
        reaches(&self.shared.dropped, transactions, "transactions dropped").await;
    }

    /// How many transactions were dropped.
    pub fn drops(&self) -> u64 {
        *self.shared.dropped.borrow()
    }

    fn mood(&self) -> std::sync::MutexGuard<'_, Mood> {
        self.shared.mood.lock().expect("nobody panics with it")
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn reaches(count: &watch::Sender<u64>, wanted: u64, what: &str) {
    let mut count = count.subscribe();
    let waited = tokio::time::timeout(crate::PATIENCE, count.wait_for(|count| *count >= wanted)).await;
    assert!(waited.is_ok(), "there never were {wanted} {what}");
}

async fn pass_on(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let raw = request["params"][0].as_str().filter(|_| request["method"] == "eth_sendRawTransaction");
    if let Some(count) = refusal(&shared, raw) {
        count.send_modify(|count| *count += 1);
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let asked =
        shared.http.post(&shared.upstream).header("content-type", "application/json").body(body).send().await;
    let answer = match asked {
        Ok(answer) => answer.bytes().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) => ([("content-type", "application/json")], answer).into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// What counts the refusal of a request, if it is refused.
fn refusal<'a>(shared: &'a Shared, raw: Option<&str>) -> Option<&'a watch::Sender<u64>> {
    let mut mood = shared.mood.lock().expect("nobody panics with it");
    if mood.is_down {
        return Some(&shared.refused);
    }
    let raw = raw?;
    if mood.taken.contains(raw) {
        return None;
    }
    if mood.takes == 0 {
        return Some(&shared.dropped);
    }
    mood.takes = mood.takes.saturating_sub(1);
    mood.taken.insert(raw.to_owned());
    None
}
