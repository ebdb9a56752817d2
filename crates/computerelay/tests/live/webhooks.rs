//! Webhooks: signed, in order, tried again, kept across a restart, and never into the relay's own network.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, StatusCode};
use rpc::tasks::PublishTask;
use serde_json::Value;
use sha2::Sha256;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use wallet::Wallet;

use crate::rig::{PATIENCE, Rig, answer, assert_error, signed, task};
use crate::work::cancel;

/// Somebody's server, to which events are sent.
struct Receiver {
    url: String,
    received: mpsc::UnboundedReceiver<Received>,
    /// What it answers, first to last; 200 afterwards.
    answers: Answers,
    _serving: AbortOnDropHandle<()>,
}

type Answers = Arc<Mutex<Vec<u16>>>;

struct Received {
    signature: String,
    delivery: String,
    body: Bytes,
}

impl Received {
    fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks the signature as the documentation says.
    fn is_signed_by(&self, secret: &str) -> bool {
        let (time, mac) = self.signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
        let mut expected = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        expected.update(time.as_bytes());
        expected.update(b".");
        expected.update(&self.body);
        expected.verify_slice(&hex::decode(mac).unwrap()).is_ok()
    }
}

impl Receiver {
    async fn start(answers: &[u16]) -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        let answers: Answers = Arc::new(Mutex::new(answers.to_vec()));
        let app = Router::new().route("/hook", post(receive)).with_state((sender, Arc::clone(&answers)));
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { url, received, answers, _serving: AbortOnDropHandle::new(serving) }
    }

    async fn next(&mut self) -> Received {
        tokio::time::timeout(PATIENCE, self.received.recv()).await.unwrap().unwrap()
    }
}

async fn receive(
    State((sender, answers)): State<(mpsc::UnboundedSender<Received>, Answers)>,
    headers: http::HeaderMap,
    body: Bytes,
) -> http::StatusCode {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/json");
    let received =
        Received { signature: header("x-zorai-signature"), delivery: header("x-zorai-delivery"), body };
    let _ = sender.send(received);
    let mut answers = answers.lock().unwrap();
    let status = if answers.is_empty() { 200 } else { answers.remove(0) };
    http::StatusCode::from_u16(status).unwrap()
}

async fn rig_in(dir: TempDir) -> Rig {
    Rig::start_in(dir, |config| config.allow_private_webhooks = true).await
}

fn with_callback(wallet: &Wallet, url: &str) -> PublishTask {
    PublishTask { callback_url: Some(url.to_owned()), ..signed(wallet, &task(wallet)) }
}

/// Publishes with a callback; answers the id and the secret.
async fn publish(rig: &Rig, wallet: &Wallet, url: &str) -> (String, String) {
    let (status, view) = rig.publish(&with_callback(wallet, url)).await;
    assert_eq!(status, StatusCode::CREATED, "{view}");
    let text = |field: &str| view[field].as_str().unwrap().to_owned();
    (text("task_id"), text("callback_secret"))
}

/// Waits until the task's only webhook is in this state.
async fn wait_for(rig: &Rig, id: &str, state: &str) -> Value {
    let waiting = async {
        loop {
            let (_, list) = rig.get(&format!("/v1/tasks/{id}/webhooks")).await;
            if list["webhooks"][0]["state"] == state {
                return list["webhooks"][0].clone();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap()
}

#[tokio::test]
async fn events_are_sent_signed_and_in_order() {
    let (rig, wallet) = (rig_in(TempDir::new().unwrap()).await, Wallet::random());
    let mut receiver = Receiver::start(&[]).await;
    let (id, secret) = publish(&rig, &wallet, &receiver.url).await;
    assert!(secret.starts_with("whsec_") && secret.len() == 70, "{secret}");
    let published = receiver.next().await;
    assert!(published.is_signed_by(&secret));
    assert!(!published.is_signed_by("whsec_00"));
    cancel(&rig, &wallet, &id).await;
    let cancelled = receiver.next().await;
    assert!(cancelled.is_signed_by(&secret));

    let (_, history) = rig.get(&format!("/v1/tasks/{id}/events")).await;
    assert_eq!(published.event(), history["events"][0], "the body is the event as the API shows it");
    assert_eq!(cancelled.event(), history["events"][1]);
    assert_ne!(published.delivery, cancelled.delivery);
    let idle = wait_for(&rig, &id, "idle").await;
    assert_eq!(idle["delivered_event_id"], history["events"][1]["id"]);
    assert_eq!((idle["url"].as_str(), idle["tries"].as_u64()), (Some(receiver.url.as_str()), Some(0)));
    assert!(!idle.to_string().contains(&secret), "the secret is told once");

    // All of it again.
    let replay = format!("/v1/tasks/{id}/webhooks/replay");
    let (status, body) = answer(rig.request(Method::POST, &replay)).await;
    assert_eq!((status, body["webhooks"].as_u64()), (StatusCode::OK, Some(1)));
    for before in [&published, &cancelled] {
        let again = receiver.next().await;
        assert_eq!((again.event(), &again.delivery), (before.event(), &before.delivery));
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_failed_delivery_is_tried_again_before_the_next_one() {
    let (rig, wallet) = (rig_in(TempDir::new().unwrap()).await, Wallet::random());
    let mut receiver = Receiver::start(&[500, 302]).await;
    let (id, _) = publish(&rig, &wallet, &receiver.url).await;
    cancel(&rig, &wallet, &id).await;
    let first = receiver.next().await;
    let retrying = wait_for(&rig, &id, "retrying").await;
    assert_eq!(retrying["error"], "answered 500");
    assert!(retrying["next_try"].is_string() && retrying["failing_since"].is_string(), "{retrying}");
    let mut deliveries = vec![first];
    for _ in 0..3 {
        deliveries.push(receiver.next().await);
    }
    let types: Vec<Value> =
        deliveries.iter().map(|delivery| delivery.event()["event"]["type"].clone()).collect();
    assert_eq!(types, ["published", "published", "published", "cancelled"]);
    assert!(deliveries[..3].iter().all(|delivery| delivery.delivery == deliveries[0].delivery));
    wait_for(&rig, &id, "idle").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_hears_no_more_until_replayed() {
    let (rig, wallet) = (rig_in(TempDir::new().unwrap()).await, Wallet::random());
    let mut receiver = Receiver::start(&[410]).await;
    let (id, _) = publish(&rig, &wallet, &receiver.url).await;
    receiver.next().await;
    let dead = wait_for(&rig, &id, "dead").await;
    assert!(dead["dead_at"].is_string() && dead["next_try"].is_null(), "{dead}");
    cancel(&rig, &wallet, &id).await;
    answer(rig.request(Method::POST, &format!("/v1/tasks/{id}/webhooks/replay"))).await;
    let types = [receiver.next().await, receiver.next().await]
        .map(|delivery| delivery.event()["event"]["type"].clone());
    assert_eq!(types, ["published", "cancelled"]);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_stopped_relay_had_not_sent_is_sent_by_the_next() {
    let (rig, wallet) = (rig_in(TempDir::new().unwrap()).await, Wallet::random());
    let mut receiver = Receiver::start(&[503]).await;
    let (id, secret) = publish(&rig, &wallet, &receiver.url).await;
    receiver.next().await;
    wait_for(&rig, &id, "retrying").await;
    let rig = rig_in(rig.stop().await).await;
    let again = receiver.next().await;
    assert_eq!(again.event()["task_id"], Value::from(id.clone()));
    assert!(again.is_signed_by(&secret), "the secret is the same");
    assert!(receiver.answers.lock().unwrap().is_empty());
    wait_for(&rig, &id, "idle").await;
    rig.stop().await;
}

#[tokio::test]
async fn publishing_again_adds_nothing_and_tells_the_same_secret() {
    let (rig, wallet) = (rig_in(TempDir::new().unwrap()).await, Wallet::random());
    let mut receiver = Receiver::start(&[]).await;
    let body = with_callback(&wallet, &receiver.url);
    let (first, second) = (rig.publish(&body).await, rig.publish(&body).await);
    assert_eq!((first.0, second.0), (StatusCode::CREATED, StatusCode::OK));
    assert_eq!(first.1["callback_secret"], second.1["callback_secret"]);
    let id = first.1["task_id"].as_str().unwrap();
    receiver.next().await;
    cancel(&rig, &wallet, id).await;
    assert_eq!(receiver.next().await.event()["event"]["type"], "cancelled", "each event comes once");
    let (_, list) = rig.get(&format!("/v1/tasks/{id}/webhooks")).await;
    assert_eq!(list["webhooks"].as_array().unwrap().len(), 1);

    let stranger = rig.new_key(&["tasks:write", "tasks:read"]).await;
    let request = rig.bare(Method::POST, "/v1/tasks").bearer_auth(&stranger).json(&body);
    assert_error(&answer(request).await, 403, "forbidden");
    let request = rig.bare(Method::GET, &format!("/v1/tasks/{id}/webhooks")).bearer_auth(&stranger);
    assert_error(&answer(request).await, 403, "forbidden");
    let request = rig.bare(Method::POST, &format!("/v1/tasks/{id}/webhooks/replay")).bearer_auth(&stranger);
    assert_error(&answer(request).await, 403, "forbidden");

    for number in 1..8 {
        let more = PublishTask { callback_url: Some(format!("{}?{number}", receiver.url)), ..body.clone() };
        assert_eq!(rig.publish(&more).await.0, StatusCode::OK);
    }
    let more = PublishTask { callback_url: Some(format!("{}?8", receiver.url)), ..body };
    assert_error(&rig.publish(&more).await, 409, "conflict");
    rig.stop().await;
}

#[tokio::test]
async fn no_callback_leads_into_the_relays_own_network() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut receiver = Receiver::start(&[]).await;
    let long = format!("https://hooks.example/{}", "x".repeat(2048));
    for url in [
        receiver.url.as_str(),
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://10.0.0.1/hook",
        "https://169.254.169.254/latest/meta-data",
        "http://hooks.example/hook",
        "https://user:password@hooks.example/hook",
        "ftp://hooks.example/hook",
        "hooks.example",
        "",
        &long,
    ] {
        let refused = rig.publish(&with_callback(&wallet, url)).await;
        assert_error(&refused, 400, "invalid_field");
        assert_eq!(refused.1["error"]["param"], "callback_url", "{url}");
    }
    // A name tells only when it is resolved.
    let port = receiver.url.split(':').nth(2).unwrap();
    let (status, view) = rig.publish(&with_callback(&wallet, &format!("https://localhost:{port}"))).await;
    assert_eq!(status, StatusCode::CREATED);
    let retrying = wait_for(&rig, view["task_id"].as_str().unwrap(), "retrying").await;
    assert_eq!(retrying["error"], "its host has no public address");
    assert!(receiver.received.try_recv().is_err());
    rig.stop().await;
}
