//! An engine that closes each connection when a second request comes on it, without a word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::body::Bytes;
use axum::http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

pub(crate) struct HangsUp {
    addr: SocketAddr,
    times: Arc<AtomicU32>,
}

impl HangsUp {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine = Self { addr: listener.local_addr().unwrap(), times: Arc::default() };
        let times = engine.times.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(tcp, times.clone()));
            }
        });
        engine
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// How often it did.
    pub(crate) fn hung_up(&self) -> u32 {
        self.times.load(Ordering::SeqCst)
    }
}

async fn serve(tcp: tokio::net::TcpStream, times: Arc<AtomicU32>) {
    let requests = AtomicU32::new(0);
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let is_again = request.method() == Method::POST && requests.fetch_add(1, Ordering::SeqCst) > 0;
        let times = times.clone();
        async move {
            let is_post = request.method() == Method::POST;
            request.into_body().collect().await.unwrap();
            if is_again {
                times.fetch_add(1, Ordering::SeqCst);
                return Err(std::io::Error::other("enough"));
            }
            let models = json!({ "object": "list", "data": [{ "id": "fake-q4_0", "object": "model" }] });
            let text = json!({ "object": "text_completion", "choices": [{ "index": 0, "text": "yes" }] });
            let answer = if is_post { text } else { models };
            let response = Response::builder().header("content-type", "application/json");
            Ok(response.body(Full::<Bytes>::from(answer.to_string())).unwrap())
        }
    });
    let _: Result<(), hyper::Error> =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
}
