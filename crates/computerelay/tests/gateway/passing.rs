//! What passes, passes unchanged and at once; who leaves is heard of.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::engine::{COMPLETION, Engine, Play, Script, chat, delta};
use crate::rig::{PATIENCE, Rig};

/// A request for a streamed chat.
pub(crate) fn ask(rig: &Rig) -> reqwest::RequestBuilder {
    let body =
        json!({ "model": "zorai-demo", "stream": true, "messages": [{ "role": "user", "content": "hi" }] });
    rig.request(Method::POST, "/v1/chat/completions").json(&body)
}

#[tokio::test]
async fn a_stream_passes_byte_for_byte() {
    let rig = Rig::start().await;
    let pieces: Vec<Bytes> = vec![
        ": from the engine\n\ndata: {\"choices\":[{\"delta\":{\"conte".into(),
        "nt\":\"a\"}}]}\r\n\r\n".into(),
        delta("b"),
        "data: [DONE]\n\n".into(),
    ];
    let mut engine = Engine::start(&rig, Script::new(Play::Stream(pieces.clone()))).await;
    let body = r#" { "messages":[{"role":"user","content":"hi"}], "tools": [1], "unknown" : {"a":1.50} ,"stream":true, "model":"zorai-demo","provider":{}}"#;
    let request =
        rig.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
    let response = request.header("x-request-id", "mine-1").body(body).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!((header("x-zorai-provider"), header("x-zorai-attempts")), (engine.provider(), "1".to_owned()));
    assert_eq!((header("x-zorai-queue-ms"), header("x-request-id")), ("0".to_owned(), "mine-1".to_owned()));
    assert_eq!(response.bytes().await.unwrap(), pieces.concat());

    let seen = engine.sees().await;
    assert_eq!((seen.path.as_str(), &seen.body[..]), ("/v1/chat/completions", body.as_bytes()));
    assert_eq!(
        (&seen.headers["x-zorai-model"], &seen.headers["x-request-id"]),
        (&"zorai-demo".parse().unwrap(), &"mine-1".parse().unwrap())
    );
    assert!(!seen.headers.contains_key("authorization"), "the client's key is nobody else's");
    rig.stop().await;
}

#[tokio::test]
async fn each_piece_passes_at_once() {
    let rig = Rig::start().await;
    let _engine = Engine::start(&rig, Script::new(Play::Stall(vec![delta("first")]))).await;
    let mut response = ask(&rig).send().await.unwrap();
    let piece = tokio::time::timeout(PATIENCE, response.chunk()).await.unwrap().unwrap().unwrap();
    assert_eq!(piece, delta("first"), "while the stream goes on");
    rig.stop().await;
}

#[tokio::test]
async fn what_is_not_streamed_passes_whole_with_its_cost() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"] {
        let response =
            rig.request(Method::POST, path).json(&json!({ "model": "zorai-demo" })).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        // 7 prompt tokens at 2 and 9 others at 3.
        assert_eq!(response.headers()["x-zorai-cost"], "41");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.text().await.unwrap(), COMPLETION);
        assert_eq!(engine.sees().await.path, path);
    }
    rig.stop().await;
}

#[tokio::test]
async fn the_engines_word_on_a_wrong_request_is_the_clients_answer() {
    let rig = Rig::start().await;
    let word =
        r#"{"error":{"message":"too many tokens","type":"invalid_request_error","code":null,"param":null}}"#;
    let _engine = Engine::start(&rig, Script::new(Play::Json(400, word.to_owned()))).await;
    for _ in 0..5 {
        let response = ask(&rig).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "and no fault of the host's");
        assert_eq!(response.text().await.unwrap(), word);
    }
    rig.stop().await;
}

#[tokio::test]
async fn large_bodies_pass_and_larger_ones_are_refused() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.gateway.max_body_bytes = 9 << 20).await;
    let mut engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    let ask = async |bytes: usize| {
        let image = "x".repeat(bytes);
        let body = json!({ "model": "zorai-demo", "messages": [{ "role": "user", "content": image }] });
        rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap().status()
    };
    assert_eq!(ask(8 << 20).await, StatusCode::OK);
    assert!(engine.sees().await.body.len() > 8 << 20);
    assert_eq!(ask(9 << 20).await, StatusCode::PAYLOAD_TOO_LARGE);
    rig.stop().await;
}

#[tokio::test]
async fn a_small_body_of_unsaid_length_leaves_room_for_others() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| {
        config.gateway.max_body_bytes = 1 << 20;
        config.gateway.max_bodies_bytes = 1 << 20;
    })
    .await;
    let mut engine = Engine::start(&rig, Script::new(Play::Hang)).await;
    let text = json!({ "model": "zorai-demo", "stream": true }).to_string();
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(text)]);
    let small = rig.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
    let small = tokio::spawn(small.body(reqwest::Body::wrap_stream(pieces)).send());
    engine.sees().await;
    engine.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    let body = json!({ "model": "zorai-demo", "prompt": "x".repeat(900_000) });
    let large = rig.request(Method::POST, "/v1/completions").json(&body).send().await.unwrap();
    assert_eq!(large.status(), StatusCode::OK, "while the small one waits for its answer");
    small.abort();
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_heard_of_within_250_ms() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Stall(vec![delta("first")]))).await;
    // In the middle of an answer, and before it began.
    for is_begun in [true, false] {
        if !is_begun {
            engine.play.send(Play::Hang).unwrap();
        }
        let request = tokio::spawn(ask(&rig).send());
        engine.sees().await;
        let left = if is_begun {
            let mut response = request.await.unwrap().unwrap();
            response.chunk().await.unwrap().unwrap();
            let left = Instant::now();
            drop(response);
            left
        } else {
            let left = Instant::now();
            request.abort();
            left
        };
        engine.is_idle().await;
        let took = engine.ended.borrow().unwrap().saturating_duration_since(left);
        assert!(took < Duration::from_millis(250), "{took:?}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_is_kept_alive_while_its_host_thinks() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.gateway.keep_alive = Duration::from_millis(50)).await;
    let engine = Engine::start(&rig, Script::new(Play::Hang)).await;
    let mut response = ask(&rig).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let comment = ": keep-alive\n\n";
    let mut text = String::new();
    while text != comment.repeat(3) {
        let piece = tokio::time::timeout(PATIENCE, response.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
        assert!(comment.repeat(3).starts_with(&text), "{text}");
    }
    // Comments are no first byte: another host takes over.
    let _other = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], false)))).await;
    engine.cut().await;
    let rest = response.text().await.unwrap();
    let answer = String::from_utf8(chat(&["a"], false).concat()).unwrap();
    assert_eq!(rest.replace(comment, ""), answer);
    rig.stop().await;
}

#[tokio::test]
async fn a_slow_reader_holds_bounded_memory_and_slows_nobody_else() {
    let rig = Rig::start().await;
    let piece = delta(&"x".repeat(16 * 1024));
    let mut engine = Engine::start(&rig, Script::new(Play::Endless(piece))).await;
    let mut slow = ask(&rig).send().await.unwrap();
    slow.chunk().await.unwrap().unwrap();
    engine.sees().await;
    engine.play.send(Play::Stream(chat(&["a"], false))).unwrap();
    for _ in 0..20 {
        let quick = tokio::time::timeout(Duration::from_secs(5), ask(&rig).send()).await.unwrap().unwrap();
        assert_eq!(quick.bytes().await.unwrap(), chat(&["a"], false).concat());
    }
    // The link's window, and what sockets of the system hold: some MiB each way.
    let sent = engine.sent.load(Ordering::SeqCst);
    assert!(sent < 24 << 20, "{sent}");
    drop(slow);
    engine.is_idle().await;
    rig.stop().await;
}

#[tokio::test]
async fn streams_end_whole_while_the_relay_drains_and_nothing_new_begins() {
    let rig = Rig::start().await;
    let rest = vec![delta("b"), "data: [DONE]\n\n".into()];
    let engine = Engine::start(&rig, Script::new(Play::Held(vec![delta("a")], rest.clone()))).await;
    let mut response = ask(&rig).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), delta("a"));
    rig.shutdown.cancel();
    let fresh = reqwest::Client::builder().no_proxy().build().unwrap();
    let refused = async { while fresh.get(format!("{}/healthz", rig.base)).send().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    engine.play.send(Play::Hang).unwrap();
    assert_eq!(response.bytes().await.unwrap(), rest.concat());
    rig.stop().await;
}

#[tokio::test]
async fn streams_that_outlast_the_drain_are_told() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.drain = Duration::from_millis(200)).await;
    let _engine = Engine::start(&rig, Script::new(Play::Stall(vec![delta("a")]))).await;
    let mut response = ask(&rig).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), delta("a"));
    rig.shutdown.cancel();
    let text = response.text().await.unwrap();
    let event: serde_json::Value =
        serde_json::from_str(text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap()).unwrap();
    assert_eq!(event["error"]["code"], "provider_failed", "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn an_engines_comments_are_no_first_byte() {
    let rig = Rig::start().await;
    let good = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], false)))).await;
    let comment: Bytes = ": processing\n\n".into();
    let bad = Engine::start(&rig, Script::new(Play::Break(vec![comment.clone()]))).await;
    let body = json!({ "model": "zorai-demo", "stream": true, "provider": { "order": [bad.provider()] } });
    let response = rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
    assert_eq!(response.headers()["x-zorai-provider"], good.provider().as_str());
    assert_eq!(response.bytes().await.unwrap(), chat(&["a"], false).concat());
    // Before an answer they pass with it.
    let whole = [vec![comment], chat(&["b"], false)].concat();
    bad.play.send(Play::Stream(whole.clone())).unwrap();
    let response = rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap(), whole.concat());
    rig.stop().await;
}
