//! Hosts that fail before the first byte are replaced; after it, the stream says what happened.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::engine::{COMPLETION, Engine, Play, Script, chat, delta, offer};
use crate::passing::ask;
use crate::rig::{Rig, answer, assert_error};

async fn start(first_byte: Duration) -> Rig {
    Rig::start_in(TempDir::new().unwrap(), |config| config.gateway.first_byte = first_byte).await
}

/// Asks so that this host comes first.
fn ask_first(rig: &Rig, first: &Engine) -> reqwest::RequestBuilder {
    let body = json!({ "model": "zorai-demo", "stream": true, "provider": { "order": [first.provider()] } });
    rig.request(Method::POST, "/v1/chat/completions").json(&body)
}

#[tokio::test]
async fn a_host_that_fails_before_its_first_byte_is_replaced() {
    let rig = start(Duration::from_millis(300)).await;
    let good = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], false)))).await;
    for play in [
        Play::Json(500, "{}".to_owned()),
        Play::Json(429, "{}".to_owned()),
        Play::Json(404, "{}".to_owned()),
        Play::Break(vec![]),
        Play::Break(vec!["data: {\"half".into()]),
        Play::Stream(vec!["<html>\n".into()]),
        Play::Stream(vec![
            "data: {\"error\":{\"message\":\"no memory\",\"type\":\"server_error\"}}\n\n".into(),
        ]),
        Play::Hang,
        Play::Stall(vec![": thinking".into()]),
    ] {
        let bad = Engine::start(&rig, Script::new(play.clone())).await;
        let response = ask_first(&rig, &bad).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{play:?}");
        assert_eq!(response.headers()["x-zorai-attempts"], "2", "{play:?}");
        assert_eq!(response.headers()["x-zorai-provider"], good.provider().as_str());
        assert_eq!(response.bytes().await.unwrap(), chat(&["a"], false).concat());
        bad.cut().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_broken_connection_is_replaced_within_300_ms() {
    let rig = start(Duration::from_secs(60)).await;
    let good = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], false)))).await;
    let mut bad = Engine::start(&rig, Script::new(Play::Hang)).await;
    let request = tokio::spawn(ask_first(&rig, &bad).send());
    bad.sees().await;
    let cut = Instant::now();
    bad.cut().await;
    let response = request.await.unwrap().unwrap();
    let took = cut.elapsed();
    assert!(took < Duration::from_millis(300), "{took:?}");
    assert_eq!(response.headers()["x-zorai-provider"], good.provider().as_str());
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_that_breaks_later_ends_with_an_error_event() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.gateway.between_tokens = Duration::from_millis(200)).await;
    let _spare = Engine::start(&rig, Script::new(Play::Stream(chat(&["never"], false)))).await;
    let whole = delta("a");
    for (play, passed) in [
        (Play::Break(vec![whole.clone(), "data: {\"ha".into()]), whole.to_vec()),
        (Play::Stall(vec![whole.clone()]), whole.to_vec()),
        (Play::Stream(vec![whole.clone()]), whole.to_vec()),
        (Play::Stream(vec!["data: {}\n".into()]), b"data: {}\n\n".to_vec()),
        (Play::Stream(vec![whole.clone(), "<html>\n".into()]), whole.to_vec()),
    ] {
        let bad = Engine::start(&rig, Script::new(play.clone())).await;
        let response = ask_first(&rig, &bad).send().await.unwrap();
        let text = response.text().await.unwrap();
        let rest =
            text.strip_prefix(std::str::from_utf8(&passed).unwrap()).unwrap_or_else(|| panic!("{text}"));
        let event: Value =
            serde_json::from_str(rest.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap()).unwrap();
        assert_eq!(event["error"]["code"], "provider_failed", "{play:?}");
        assert_eq!(event["error"]["type"], "server_error");
        bad.cut().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn where_everybody_fails_the_reason_is_told_and_their_breakers_open() {
    let rig = start(Duration::from_secs(60)).await;
    let mut hosts = Vec::new();
    for _ in 0..2 {
        hosts.push(Engine::start(&rig, Script::new(Play::Json(503, "{}".to_owned()))).await);
    }
    for _ in 0..3 {
        let failed = answer(ask(&rig)).await;
        assert_error(&failed, 503, "no_provider_available");
        assert!(failed.1["error"]["message"].as_str().unwrap().contains("answered 503"), "{}", failed.1);
    }
    for host in &mut hosts {
        for _ in 0..3 {
            host.sees().await;
        }
        host.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    }
    let response = ask(&rig).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(hosts.iter_mut().all(|host| host.seen.try_recv().is_err()), "nobody is asked for a while");
    rig.stop().await;
}

#[tokio::test]
async fn where_every_engine_fails_the_last_one_is_quoted() {
    let rig = start(Duration::from_secs(60)).await;
    let error = json!({ "error": { "message": "out of\nmemory", "type": "server_error", "code": 500 } });
    let host = Engine::start(&rig, Script::new(Play::Json(500, error.to_string()))).await;
    for play in [Play::Json(500, error.to_string()), Play::Stream(vec![format!("data: {error}\n\n").into()])]
    {
        host.play.send(play).unwrap();
        let failed = answer(ask(&rig)).await;
        assert_error(&failed, 503, "no_provider_available");
        let message = failed.1["error"]["message"].as_str().unwrap();
        assert!(message.ends_with(": out of memory"), "{message}");
    }
    // What is no error in JSON, or never ends, is not.
    for play in [Play::Json(500, "<html>secret</html>".to_owned()), Play::Json(500, "x".repeat(1 << 20))] {
        host.play.send(play).unwrap();
        let failed = answer(ask(&rig)).await;
        assert!(failed.1["error"]["message"].as_str().unwrap().ends_with("answered 500"), "{}", failed.1);
    }
    rig.stop().await;
}

#[tokio::test]
async fn another_model_takes_over_under_its_own_name() {
    let rig = start(Duration::from_secs(60)).await;
    let mut script = Script::new(Play::Json(200, COMPLETION.to_owned()));
    script.offers = vec![offer("other/model")];
    let mut engine = Engine::start(&rig, script).await;
    let body = json!({ "model": "gone", "models": ["zorai-demo", "other/model"], "x": 1 });
    let response = rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
    assert_eq!(response.headers()["x-zorai-model"], "other/model");
    let seen: Value = serde_json::from_slice(&engine.sees().await.body).unwrap();
    assert_eq!((&seen["model"], &seen["x"]), (&json!("other/model"), &json!(1)));
    rig.stop().await;
}

#[tokio::test]
async fn deadlines_of_the_request_end_it() {
    let rig = start(Duration::from_secs(60)).await;
    let _engine = Engine::start(&rig, Script::new(Play::Stall(vec![]))).await;
    let late = answer(ask(&rig).header("x-zorai-timeout-ms", "100")).await;
    assert_error(&late, 504, "deadline_exceeded");
    let late = answer(ask(&rig).header("x-zorai-first-byte-timeout-ms", "100")).await;
    assert_error(&late, 503, "no_provider_available");
    assert_error(&answer(ask(&rig).header("x-zorai-token-timeout-ms", "x")).await, 400, "malformed_request");
    rig.stop().await;
}

#[tokio::test]
async fn what_a_host_does_not_offer_is_no_fault_of_it() {
    let rig = start(Duration::from_secs(60)).await;
    let host = Engine::start(&rig, Script::new(Play::Json(501, "{}".to_owned()))).await;
    for status in [501, 404, 405, 501] {
        host.play.send(Play::Json(status, "{}".to_owned())).unwrap();
        assert_error(&answer(ask(&rig)).await, 503, "no_provider_available");
    }
    host.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    assert_eq!(ask(&rig).send().await.unwrap().status(), StatusCode::OK);
    rig.stop().await;
}

#[tokio::test]
async fn a_request_that_no_engine_digests_closes_no_host_to_others() {
    let rig = start(Duration::from_secs(60)).await;
    let mut hosts = Vec::new();
    for _ in 0..2 {
        hosts.push(Engine::start(&rig, Script::new(Play::Json(500, "{}".to_owned()))).await);
    }
    for status in [500, 500, 500, 500, 401, 403, 408] {
        for host in &mut hosts {
            host.play.send(Play::Json(status, "{}".to_owned())).unwrap();
        }
        let failed = answer(ask(&rig)).await;
        assert_error(&failed, 503, "no_provider_available");
        for host in &mut hosts {
            host.sees().await;
        }
    }
    // Where the other says what is wrong with the request, nothing is learned of the first either.
    hosts[1].play.send(Play::Json(400, "{}".to_owned())).unwrap();
    for status in [500, 500, 500, 500] {
        hosts[0].play.send(Play::Json(status, "{}".to_owned())).unwrap();
        assert_eq!(ask_first(&rig, &hosts[0]).send().await.unwrap().status(), StatusCode::BAD_REQUEST);
        hosts[0].sees().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_error_of_one_engine_alone_counts_against_its_host() {
    let rig = start(Duration::from_secs(60)).await;
    let good = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    let mut bad = Engine::start(&rig, Script::new(Play::Json(500, "{}".to_owned()))).await;
    for _ in 0..3 {
        let response = ask_first(&rig, &bad).send().await.unwrap();
        assert_eq!(response.headers()["x-zorai-provider"], good.provider().as_str());
        bad.sees().await;
    }
    let response = ask_first(&rig, &bad).send().await.unwrap();
    assert_eq!(response.headers()["x-zorai-attempts"], "1", "the other is not asked for a while");
    assert!(bad.seen.try_recv().is_err());

    // Another model's answer says nothing of this one's host.
    let mut script = Script::new(Play::Json(500, "{}".to_owned()));
    script.offers = vec![offer("small")];
    let mut small = Engine::start(&rig, script).await;
    for _ in 0..4 {
        let body = json!({ "model": "small", "models": ["zorai-demo"] });
        let response = rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
        assert_eq!(response.headers()["x-zorai-model"], "zorai-demo");
        small.sees().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_clients_hurry_says_nothing_of_a_host() {
    // A whole answer may take longer than the first event of a streamed one.
    let rig = start(Duration::from_millis(50)).await;
    let mut host = Engine::start(&rig, Script::new(Play::Hang)).await;
    let whole = || {
        let request = rig.request(Method::POST, "/v1/chat/completions");
        request.json(&json!({ "model": "zorai-demo" }))
    };
    for header in
        ["x-zorai-timeout-ms", "x-zorai-timeout-ms", "x-zorai-first-byte-timeout-ms", "x-zorai-timeout-ms"]
    {
        let late = whole().header(header, "200").send().await.unwrap();
        assert!(late.status().is_server_error());
        host.sees().await;
    }
    host.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    assert_eq!(whole().send().await.unwrap().status(), StatusCode::OK);
    rig.stop().await;
}
