//! Hosts that send what no engine sends are cut off, and harm nobody else.

use reqwest::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::engine::{Engine, Play, Script, chat, delta};
use crate::passing::ask;
use crate::rig::Rig;

#[tokio::test]
async fn whatever_a_host_sends_its_neighbours_are_served() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| {
        config.gateway.max_answer_bytes = 4 << 20;
        config.gateway.first_byte = std::time::Duration::from_secs(5);
    })
    .await;
    let good = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], false)))).await;
    for play in [
        Play::Endless("data: ".into()),
        Play::Endless(": comment\n\n".into()),
        Play::Endless("x".repeat(64 * 1024).into()),
        Play::Endless(delta(&"x".repeat(60_000))),
        Play::Length(1 << 40, "{}".to_owned()),
        Play::Length(1, "{\"a\":1}".to_owned()),
        Play::Headers(1 << 20),
        Play::Headers(8 << 20),
        Play::Stream(vec!["\0\0\0\n".into()]),
        Play::Json(700, "{}".to_owned()),
        Play::Cut,
    ] {
        let bad = Engine::start(&rig, Script::new(play.clone())).await;
        let body =
            json!({ "model": "zorai-demo", "stream": true, "provider": { "order": [bad.provider()] } });
        let request = rig.request(Method::POST, "/v1/chat/completions").json(&body);
        let served = async {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{play:?}");
            // It ends: with the other host's answer, or cut off.
            response.bytes().await.map(|bytes| bytes.len())
        };
        let length =
            tokio::time::timeout(crate::rig::PATIENCE, served).await.unwrap_or_else(|_| panic!("{play:?}"));
        assert!(length.is_ok_and(|length| length <= (4 << 20) + 1024), "{play:?}");

        let only =
            json!({ "model": "zorai-demo", "stream": true, "provider": { "only": [good.provider()] } });
        let response = rig.request(Method::POST, "/v1/chat/completions").json(&only).send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), chat(&["a"], false).concat(), "after {play:?}");
        bad.cut().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_host_that_only_comments_is_replaced() {
    let rig = Rig::start().await;
    let good = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], false)))).await;
    let bad = Engine::start(&rig, Script::new(Play::Endless(": comment\n\n".into()))).await;
    let body = json!({ "model": "zorai-demo", "stream": true, "provider": { "order": [bad.provider(), good.provider()] } });
    let request = rig.request(Method::POST, "/v1/chat/completions").json(&body);
    assert_eq!(request.send().await.unwrap().bytes().await.unwrap(), chat(&["a"], false).concat());
    rig.stop().await;
}

#[tokio::test]
async fn a_host_that_was_cut_off_is_not_asked_again() {
    let rig = Rig::start().await;
    let mut bad = Engine::start(&rig, Script::new(Play::Stream(vec![delta("a"), "<html>\n".into()]))).await;
    let text = ask(&rig).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("cut off"), "{text}");
    bad.sees().await;
    assert_eq!(ask(&rig).send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(bad.seen.try_recv().is_err());
    rig.stop().await;
}
