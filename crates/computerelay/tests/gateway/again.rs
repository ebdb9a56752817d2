//! Requests that are sent again under their idempotency key: answered once, charged once.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use store::{Begun, Idempotency as _, KeyId, Sqlite, Store as _};
use taskmarket::Timestamp;
use tempfile::TempDir;

use crate::engine::{COMPLETION, Engine, Play, Script, chat, delta};
use crate::rig::{KEY, PATIENCE, Rig, answer, assert_error, now};

const KEY_HEADER: &str = "idempotency-key";
const CHAT: &str = "/v1/chat/completions";
/// The largest answer that is kept, in bytes.
const KEPT: usize = 1 << 20;
/// What the gateway tells of an answer beside it.
const TOLD: [&str; 6] = [
    "content-type",
    "x-zorai-provider",
    "x-zorai-model",
    "x-zorai-attempts",
    "x-zorai-queue-ms",
    "x-content-type-options",
];

fn asked(stream: bool) -> Value {
    json!({ "model": "zorai-demo", "stream": stream, "messages": [{ "role": "user", "content": "hi" }] })
}

fn post(rig: &Rig, key: &str, body: &Value) -> RequestBuilder {
    rig.request(Method::POST, CHAT).header(KEY_HEADER, key).json(body)
}

fn is_replayed(response: &Response) -> bool {
    response.headers().get("idempotency-replayed").is_some_and(|value| value == "true")
}

/// Sends it until the one before it is over.
async fn once_free(request: impl Fn() -> RequestBuilder) -> Response {
    let free = async {
        loop {
            let response = request().send().await.unwrap();
            if response.status() != StatusCode::CONFLICT {
                return response;
            }
        }
    };
    tokio::time::timeout(PATIENCE, free).await.unwrap()
}

/// The requests that were metered.
async fn metered(rig: &Rig) -> u64 {
    let (_, page) = rig.get("/v1/usage").await;
    let models = |row: &Value| -> Vec<Value> { row["models"].as_array().unwrap().clone() };
    let used = page["usage"].as_array().unwrap().iter().flat_map(models);
    used.map(|model| model["requests"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_is_not_metered() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    let mut firsts = Vec::new();
    for path in [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"] {
        let request = rig.request(Method::POST, path).header(KEY_HEADER, path);
        let first = request.header("x-request-id", "first-1").json(&asked(false)).send().await.unwrap();
        assert_eq!((first.status(), is_replayed(&first)), (StatusCode::OK, false), "{path}");
        assert_eq!(first.headers()["x-zorai-cost"], "41");
        engine.sees().await;
        firsts.push((path, first.headers().clone(), first.bytes().await.unwrap()));
    }
    assert_eq!(metered(&rig).await, 4);

    // It is in the store: another relay on it answers the same, and needs no host for that.
    drop(engine);
    let rig = Rig::start_in(rig.stop().await, |_| {}).await;
    for (path, headers, body) in firsts {
        let request = rig.request(Method::POST, path).header(KEY_HEADER, path);
        let again = request.header("x-request-id", "again-1").json(&asked(false)).send().await.unwrap();
        assert_eq!((again.status(), is_replayed(&again)), (StatusCode::OK, true), "{path}");
        for name in TOLD.into_iter().chain(["x-zorai-cost"]) {
            assert_eq!(again.headers().get(name), headers.get(name), "{name} of {path}");
            assert!(headers.contains_key(name), "{name}");
        }
        assert_eq!(again.headers()["x-request-id"], "again-1");
        assert_eq!(again.headers()["idempotency-request-id"], "first-1");
        assert_eq!(again.bytes().await.unwrap(), body);
    }
    assert_error(&rig.get("/v1/receipts/again-1").await, 404, "not_found");
    assert_eq!(rig.get("/v1/receipts/first-1").await.0, StatusCode::OK);
    assert_eq!(metered(&rig).await, 4, "nothing was metered again");
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_is_replayed_as_its_bytes() {
    let rig = Rig::start().await;
    let pieces: Vec<Bytes> = vec![
        ": from the engine\n\ndata: {\"choices\":[{\"delta\":{\"conte".into(),
        "nt\":\"a\"}}]}\r\n\r\n".into(),
        delta("b"),
        "data: [DONE]\n\n".into(),
    ];
    let mut engine = Engine::start(&rig, Script::new(Play::Stream(pieces.clone()))).await;
    let first = post(&rig, "one", &asked(true)).send().await.unwrap();
    let headers = first.headers().clone();
    assert_eq!(first.bytes().await.unwrap(), pieces.concat());
    engine.sees().await;
    engine.play.send(Play::Hang).unwrap();
    for _ in 0..2 {
        let again = post(&rig, "one", &asked(true)).send().await.unwrap();
        assert_eq!((again.status(), is_replayed(&again)), (StatusCode::OK, true));
        for name in TOLD.into_iter().chain(["cache-control"]) {
            assert_eq!(again.headers().get(name), headers.get(name), "{name}");
        }
        assert_eq!(again.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(again.bytes().await.unwrap(), pieces.concat());
    }
    assert!(engine.seen.try_recv().is_err(), "the host was asked once");
    assert_eq!(metered(&rig).await, 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_that_began_without_its_host_is_kept_with_its_comments() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.gateway.keep_alive = Duration::from_millis(20)).await;
    let engine = Engine::start(&rig, Script::new(Play::Hang)).await;
    let mut first = post(&rig, "one", &asked(true)).send().await.unwrap();
    let mut text = first.chunk().await.unwrap().unwrap().to_vec();
    let other = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], false)))).await;
    engine.cut().await;
    while let Some(piece) = first.chunk().await.unwrap() {
        text.extend_from_slice(&piece);
    }
    assert!(text.starts_with(b": keep-alive\n\n") && text.ends_with(b"data: [DONE]\n\n"), "{text:?}");
    other.play.send(Play::Hang).unwrap();
    let again = post(&rig, "one", &asked(true)).send().await.unwrap();
    assert!(is_replayed(&again));
    assert_eq!(again.bytes().await.unwrap(), text);
    rig.stop().await;
}

#[tokio::test]
async fn while_the_first_goes_on_a_repeat_is_refused_and_another_body_always() {
    let rig = Rig::start().await;
    let rest = vec![delta("b"), "data: [DONE]\n\n".into()];
    let mut engine = Engine::start(&rig, Script::new(Play::Held(vec![delta("a")], rest.clone()))).await;
    let mut first = post(&rig, "one", &asked(true)).send().await.unwrap();
    assert_eq!(first.chunk().await.unwrap().unwrap(), delta("a"));
    engine.sees().await;

    let again = post(&rig, "one", &asked(true)).send().await.unwrap();
    assert_eq!(
        (again.status(), &again.headers()["retry-after"]),
        (StatusCode::CONFLICT, &"1".parse().unwrap())
    );
    assert_eq!(again.json::<Value>().await.unwrap()["error"]["code"], "conflict");
    let mismatch = async |why| {
        let refused = answer(post(&rig, "one", &asked(false))).await;
        assert_error(&refused, 422, "idempotency_mismatch");
        assert_eq!(refused.1["error"]["param"], KEY_HEADER, "{why}");
        let elsewhere = rig.request(Method::POST, "/v1/completions").header(KEY_HEADER, "one");
        assert_error(&answer(elsewhere.json(&asked(true))).await, 422, "idempotency_mismatch");
    };
    mismatch("while it goes on").await;
    engine.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    assert_eq!(first.bytes().await.unwrap(), rest.concat());
    mismatch("once it is over").await;
    assert!(engine.seen.try_recv().is_err(), "the host was asked once");

    // Each API key has idempotency keys of its own.
    let other = rig.new_key(&["inference"]).await;
    let others = rig.bare(Method::POST, CHAT).bearer_auth(other).header(KEY_HEADER, "one");
    assert_eq!(others.json(&asked(false)).send().await.unwrap().text().await.unwrap(), COMPLETION);
    rig.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_kept_and_the_repeat_says_so() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Json(200, String::new()))).await;
    let json = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    let words: Vec<Bytes> = (0..KEPT / 1024).map(|_| delta(&"x".repeat(1024))).collect();
    let long: Vec<Bytes> = words.into_iter().chain(["data: [DONE]\n\n".into()]).collect();
    let plays = [
        ("the longest", Play::Json(200, json(KEPT)), KEPT, StatusCode::OK),
        ("longer", Play::Json(200, json(KEPT + 1)), KEPT + 1, StatusCode::GONE),
        ("a stream", Play::Stream(long.clone()), long.concat().len(), StatusCode::GONE),
    ];
    for (number, (key, play, length, expected)) in plays.into_iter().enumerate() {
        engine.play.send(play).unwrap();
        let request = || post(&rig, &format!("k-{number}"), &asked(number == 2));
        let id = format!("r-{number}");
        let first = request().header("x-request-id", &id).send().await.unwrap();
        assert_eq!((first.status(), first.bytes().await.unwrap().len()), (StatusCode::OK, length), "{key}");
        engine.sees().await;
        let again = request().send().await.unwrap();
        assert_eq!((again.status(), is_replayed(&again)), (expected, true), "{key}");
        // The receipt can be found.
        assert_eq!(again.headers()["idempotency-request-id"], id.as_str());
        if expected == StatusCode::GONE {
            let told = (again.status(), again.json().await.unwrap());
            assert_error(&told, 410, "answer_not_kept");
            assert_eq!(told.1["error"]["param"], KEY_HEADER);
        }
        assert!(engine.seen.try_recv().is_err(), "{key}: it was not carried out again");
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_failed_may_be_sent_again() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.gateway.first_byte = Duration::from_millis(300)).await;
    for (number, (play, is_stream)) in [
        // Without a byte for the client.
        (Play::Json(500, "{}".to_owned()), false),
        (Play::Hang, true),
        (Play::Cut, true),
        // The engine's own word on the request.
        (Play::Json(400, "{\"error\":{}}".to_owned()), false),
        // After some bytes: it cost nothing.
        (Play::Break(vec![delta("a")]), true),
        (Play::Stream(vec![delta("a")]), true),
        (Play::Break(vec![delta("a")]), false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut engine = Engine::start(&rig, Script::new(play.clone())).await;
        let mut body = asked(is_stream);
        body["provider"] = json!({ "only": [engine.provider()] });
        let request = || post(&rig, &format!("k-{number}"), &body);
        let first = request().send().await.unwrap();
        let _ = first.bytes().await;
        engine.sees().await;
        if let Play::Cut = play {
            let gone = request().send().await.unwrap();
            assert_eq!((gone.status(), is_replayed(&gone)), (StatusCode::SERVICE_UNAVAILABLE, false));
            continue;
        }
        let whole = Play::Stream(chat(&["b"], false));
        engine.play.send(whole).unwrap();
        let again = once_free(request).await;
        assert_eq!((again.status(), is_replayed(&again)), (StatusCode::OK, false), "{play:?}");
        assert_eq!(again.bytes().await.unwrap(), chat(&["b"], false).concat(), "{play:?}");
        assert!(is_replayed(&request().send().await.unwrap()), "{play:?}");
        engine.cut().await;
    }

    let unknown = json!({ "model": "nobody's" });
    assert_error(&answer(post(&rig, "late", &unknown)).await, 404, "model_not_found");
    let mut script = Script::new(Play::Json(200, COMPLETION.to_owned()));
    script.offers[0].id = "nobody's".to_owned();
    let _engine = Engine::start(&rig, script).await;
    assert_eq!(post(&rig, "late", &unknown).send().await.unwrap().text().await.unwrap(), COMPLETION);
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_key() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Stall(vec![delta("a")]))).await;
    for is_begun in [true, false] {
        engine.play.send(if is_begun { Play::Stall(vec![delta("a")]) } else { Play::Hang }).unwrap();
        let key = format!("left-{is_begun}");
        let request = tokio::spawn(post(&rig, &key, &asked(true)).send());
        engine.sees().await;
        if is_begun {
            let mut response = request.await.unwrap().unwrap();
            assert_eq!(response.chunk().await.unwrap().unwrap(), delta("a"));
        } else {
            request.abort();
        }
        engine.play.send(Play::Stream(chat(&["b"], false))).unwrap();
        let again = once_free(|| post(&rig, &key, &asked(true))).await;
        assert!(!is_replayed(&again));
        assert_eq!(again.bytes().await.unwrap(), chat(&["b"], false).concat());
        engine.sees().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn neither_a_killed_nor_a_stopped_relay_leaves_a_key_stuck() {
    let dir = TempDir::new().unwrap();
    let body = serde_json::to_vec(&asked(false)).unwrap();
    let store = Sqlite::open(dir.path().join("store")).await.unwrap();
    let mut hasher = Sha256::new();
    hasher.update(b"POST\0/v1/chat/completions\0");
    hasher.update(&body);
    let digest = hasher.finalize().into();
    let lapsed = now().unix() - store::IN_FLIGHT_SECS;
    for (key, at) in [("fresh", now().plus(60)), ("old", Timestamp::from_unix(lapsed))] {
        let begun = store.begin(&KeyId::of_api_key(KEY), key, digest, at).await.unwrap();
        assert_eq!(begun, Begun::New);
    }
    store.close().await;

    let rig = Rig::start_in(dir, |config| config.drain = Duration::from_millis(100)).await;
    let engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    assert_error(&answer(post(&rig, "fresh", &asked(false))).await, 409, "conflict");
    assert_eq!(post(&rig, "old", &asked(false)).send().await.unwrap().text().await.unwrap(), COMPLETION);

    engine.play.send(Play::Stall(vec![delta("a")])).unwrap();
    let mut cut = post(&rig, "cut", &asked(true)).send().await.unwrap();
    assert_eq!(cut.chunk().await.unwrap().unwrap(), delta("a"));
    let dir = rig.stop().await;
    let rig = Rig::start_in(dir, |_| {}).await;
    let _engine = Engine::start(&rig, Script::new(Play::Stream(chat(&["b"], false)))).await;
    let again = post(&rig, "cut", &asked(true)).send().await.unwrap();
    assert_eq!((again.status(), is_replayed(&again)), (StatusCode::OK, false));
    rig.stop().await;
}

#[tokio::test]
async fn of_many_at_once_one_is_carried_out() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    let requests = (0..16).map(|_| tokio::spawn(post(&rig, "one", &asked(false)).send()));
    for request in requests.collect::<Vec<_>>() {
        let response = request.await.unwrap().unwrap();
        assert!(matches!(response.status(), StatusCode::OK | StatusCode::CONFLICT), "{}", response.status());
    }
    engine.sees().await;
    assert!(engine.seen.try_recv().is_err());
    let malformed = post(&rig, "two words", &asked(false));
    assert_error(&answer(malformed).await, 400, "malformed_request");
    rig.stop().await;
}

#[tokio::test]
async fn large_bodies_are_told_apart_too() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    let large = |last: &str| {
        let image = format!("{}{last}", "x".repeat(8 << 20));
        json!({ "model": "zorai-demo", "messages": [{ "role": "user", "content": image }] })
    };
    for is_first in [true, false] {
        let response = post(&rig, "one", &large("a")).send().await.unwrap();
        assert_eq!((response.status(), is_replayed(&response)), (StatusCode::OK, !is_first));
    }
    assert_error(&answer(post(&rig, "one", &large("b"))).await, 422, "idempotency_mismatch");
    engine.sees().await;
    assert!(engine.seen.try_recv().is_err());
    rig.stop().await;
}
