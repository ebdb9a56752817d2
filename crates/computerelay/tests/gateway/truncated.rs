//! An answer that was cut off never passes for a whole one.

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::engine::{COMPLETION, Engine, Play, Script};
use crate::raw::{RawHost, data, go_away, head, reset};
use crate::rig::Rig;

/// More than is held back of an answer.
const LONG: usize = 2 << 20;

fn ask_first(rig: &Rig, provider: &str) -> reqwest::RequestBuilder {
    let body = json!({ "model": "zorai-demo", "provider": { "order": [provider] } });
    rig.request(Method::POST, "/v1/chat/completions").json(&body)
}

#[tokio::test]
async fn a_host_that_gives_its_stream_up_without_an_error_is_replaced() {
    let rig = Rig::start().await;
    let good = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    type Ending = fn(u32) -> Vec<u8>;
    let endings: [(&str, Ending); 4] = [
        ("NO_ERROR", |stream| reset(stream, 0)),
        ("INTERNAL_ERROR", |stream| reset(stream, 2)),
        ("CANCEL", |stream| reset(stream, 8)),
        ("GOAWAY", |_| go_away()),
    ];
    for (name, ending) in endings {
        let answer =
            move |stream| [head(stream, "text/plain"), data(stream, b"half"), ending(stream)].concat();
        let bad = RawHost::start(&rig, answer).await;
        let response = ask_first(&rig, &bad.provider()).send().await.unwrap();
        assert_eq!(response.headers()["x-zorai-provider"], good.provider().as_str(), "{name}");
        assert_eq!(response.headers()["x-zorai-attempts"], "2", "{name}");
        assert_eq!(response.text().await.unwrap(), COMPLETION, "{name}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_given_up_without_an_error_ends_with_an_error_event() {
    let rig = Rig::start().await;
    // Nobody says how a stream of embeddings ends: only its frames do.
    let answer = |stream| {
        [head(stream, "text/event-stream"), data(stream, b"data: {}\n\n"), reset(stream, 0)].concat()
    };
    let _bad = RawHost::start(&rig, answer).await;
    let request = rig.request(Method::POST, "/v1/embeddings").header("x-request-id", "cut-1");
    let body = json!({ "model": "zorai-demo", "input": "a", "stream": true });
    let text = request.json(&body).send().await.unwrap().text().await.unwrap();
    let event = text.strip_prefix("data: {}\n\ndata: ").unwrap_or_else(|| panic!("{text}"));
    let event: Value = serde_json::from_str(event.trim_end()).unwrap();
    assert_eq!(event["error"]["code"], "provider_failed");
    let (_, record) = rig.get("/v1/receipts/cut-1").await;
    assert_eq!((&record["outcome"], &record["cost"]), (&json!("failed"), &json!("0")), "{record}");
    rig.stop().await;
}

/// An engine that does not say how long its answer is, and dies, leaves half a text behind that ended in order.
#[tokio::test]
async fn half_a_json_text_is_no_answer() {
    let rig = Rig::start().await;
    let half = COMPLETION[..COMPLETION.len() / 2].to_owned();
    let good = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    for play in [Play::Json(200, half.clone()), Play::Json(200, String::new())] {
        let bad = Engine::start(&rig, Script::new(play)).await;
        let response = ask_first(&rig, &bad.provider()).send().await.unwrap();
        assert_eq!(response.headers()["x-zorai-provider"], good.provider().as_str());
        assert_eq!(response.text().await.unwrap(), COMPLETION);
        bad.cut().await;
    }

    let long = format!("{{\"a\":\"{}\",{}", "x".repeat(LONG), &COMPLETION[1..]);
    let bad = Engine::start(&rig, Script::new(Play::Json(200, long.clone()))).await;
    let response = ask_first(&rig, &bad.provider()).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), long, "what is whole passes");
    bad.play.send(Play::Json(200, long[..long.len() - 1].to_owned())).unwrap();
    let request = ask_first(&rig, &bad.provider()).header("x-request-id", "cut-2");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.bytes().await.is_err(), "the connection breaks: nobody takes it for whole");
    let (_, record) = rig.get("/v1/receipts/cut-2").await;
    assert_eq!((&record["outcome"], &record["cost"]), (&json!("failed"), &json!("0")), "{record}");
    bad.cut().await;

    // What an engine says of a request it will not serve is passed on as it is.
    let odd = Engine::start(&rig, Script::new(Play::Json(400, "{\"error\":".to_owned()))).await;
    let response = ask_first(&rig, &odd.provider()).send().await.unwrap();
    assert_eq!(
        (response.status(), response.bytes().await.unwrap()),
        (StatusCode::BAD_REQUEST, Bytes::from("{\"error\":"))
    );
    rig.stop().await;
}
