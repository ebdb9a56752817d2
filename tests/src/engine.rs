//! An engine that answers as a test tells it: the beginning of a stream at once, and the rest when it is let go.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, StreamExt};
use serde_json::json;
use tokio::sync::watch;

/// The engine; its model is `gated`.
#[derive(Debug)]
pub struct Engine {
    /// The port that it listens on.
    pub port: u16,
    open: Arc<watch::Sender<bool>>,
    under_way: watch::Receiver<u32>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    open: watch::Receiver<bool>,
    under_way: Arc<watch::Sender<u32>>,
}

/// Counts an answer as long as it lasts.
struct Answer(Arc<watch::Sender<u32>>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// What a stream begins with.
pub const FIRST: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"first\"}}]}\n\n";
/// What it ends with.
pub const REST: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"rest\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

impl Engine {
    /// Listens on a free port.
    ///
    /// # Panics
    /// No port can be had.
    pub async fn new() -> Self {
        let (open, opened) = watch::channel(false);
        let (counting, under_way) = watch::channel(0);
        let shared = Shared { open: opened, under_way: Arc::new(counting) };
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(chat))
            .with_state(shared);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a bound address").port();
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { port, open: Arc::new(open), under_way, server }
    }

    /// The node's flag for it.
    pub fn flag(&self) -> String {
        format!("gated=http://127.0.0.1:{},slots=4", self.port)
    }

    /// Lets all streams come to their ends, now and from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until so many answers are under way.
    ///
    /// # Panics
    /// There never are.
    pub async fn under_way(&mut self, count: u32) {
        let waited =
            tokio::time::timeout(crate::PATIENCE, self.under_way.wait_for(|now| *now == count)).await;
        assert!(waited.is_ok(), "there never were {count} answers under way");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn models() -> Json<serde_json::Value> {
    Json(json!({ "object": "list", "data": [{ "id": "gated", "object": "model", "owned_by": "tests" }] }))
}

async fn chat(State(shared): State<Shared>, _whole: axum::body::Bytes) -> Response {
    shared.under_way.send_modify(|count| *count += 1);
    let answer = Answer(shared.under_way);
    let mut open = shared.open;
    let rest = async move {
        let _ = open.wait_for(|open| *open).await;
        drop(answer);
        Bytes::from_static(REST.as_bytes())
    };
    let pieces = stream::iter([Bytes::from_static(FIRST.as_bytes())]).chain(stream::once(rest));
    let body = Body::from_stream(pieces.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}
