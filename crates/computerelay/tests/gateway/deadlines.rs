//! How long answers may take: by model, by API key, by request.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::engine::{Engine, Play, Script, chat, delta, offer};
use crate::rig::{Rig, answer, assert_error};

fn ask(rig: &Rig, model: &str) -> RequestBuilder {
    let body = json!({ "model": model, "stream": true });
    rig.request(Method::POST, "/v1/chat/completions").json(&body)
}

#[tokio::test]
async fn a_model_may_have_its_own_time_until_the_first_byte() {
    let rig = Rig::start_in(TempDir::new().unwrap(), |config| {
        config.gateway.first_byte = Duration::from_millis(300);
        config.gateway.first_byte_of.insert("patient".to_owned(), Duration::from_secs(60));
        config.gateway.first_byte_of.insert("hasty".to_owned(), Duration::from_millis(100));
    })
    .await;
    let mut script = Script::new(Play::Held(vec![": thinking\n\n".into()], chat(&["a"], false)));
    script.offers = ["patient", "usual", "hasty"].map(offer).to_vec();
    let mut engine = Engine::start(&rig, script).await;
    let patient = tokio::spawn(ask(&rig, "patient").send());
    engine.sees().await;
    for (model, millis) in [("hasty", "100 ms"), ("usual", "300 ms")] {
        let late = answer(ask(&rig, model)).await;
        assert_error(&late, 503, "no_provider_available");
        let message = late.1["error"]["message"].as_str().unwrap();
        assert!(message.contains(millis), "{model}: {message}");
    }
    assert!(!patient.is_finished(), "it has waited for longer than all others may");
    engine.play.send(Play::Hang).unwrap();
    let response = patient.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    rig.stop().await;
}

#[tokio::test]
async fn a_key_may_have_less_time_than_the_relay_gives() {
    let rig = Rig::start().await;
    let engine = Engine::start(&rig, Script::new(Play::Hang)).await;
    let with = async |deadline: &str| {
        let spec = json!({ "name": deadline, "scopes": ["inference"], deadline: 1 });
        let key = rig.make_key(&spec).await;
        let body = json!({ "model": "zorai-demo", "stream": true });
        rig.bare(Method::POST, "/v1/chat/completions").bearer_auth(key).json(&body)
    };
    let late = answer(with("inference_timeout_secs").await).await;
    assert_error(&late, 504, "deadline_exceeded");
    let request = with("first_byte_timeout_secs").await;
    let late = answer(request.try_clone().unwrap()).await;
    assert_error(&late, 503, "no_provider_available");
    assert!(late.1["error"]["message"].as_str().unwrap().contains("1000 ms"), "{}", late.1);
    let late = answer(request.header("x-zorai-first-byte-timeout-ms", "20")).await;
    assert!(late.1["error"]["message"].as_str().unwrap().contains("20 ms"), "{}", late.1);

    engine.play.send(Play::Stall(vec![delta("a")])).unwrap();
    let text = with("token_timeout_secs").await.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("provider_failed") && text.contains("1000 ms"), "{text}");
    // Who is in a hurry closes no host to others.
    engine.play.send(Play::Stream(chat(&["a"], false))).unwrap();
    assert_eq!(ask(&rig, "zorai-demo").send().await.unwrap().status(), StatusCode::OK);
    rig.stop().await;
}
