//! What is counted, what it costs, and what is kept of it.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use taskmarket::{Bytes32, InferenceReceipt};

use crate::engine::{COMPLETION, Engine, Play, Script, chat, delta};
use crate::passing::ask;
use crate::rig::{Rig, answer, assert_error};

/// What a host changes of its receipts.
type Change = Option<fn(&mut InferenceReceipt)>;

/// The record of a request; it is written down a moment after the answer's end.
async fn record(rig: &Rig, id: &str) -> Value {
    let read = async {
        loop {
            let (status, record) = rig.get(&format!("/v1/receipts/{id}")).await;
            if status == StatusCode::OK {
                return record;
            }
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, read).await.unwrap()
}

#[tokio::test]
async fn receipts_that_hold_are_kept_and_others_named() {
    let rig = Rig::start().await;
    let mut scripts: Vec<(Change, &str)> = vec![(Some(|_| {}), ""), (None, "no receipt")];
    scripts.push((Some(|receipt| receipt.request_id.push('x')), "request_id"));
    scripts.push((Some(|receipt| receipt.node_id = Bytes32([1; 32].into())), "node_id"));
    scripts.push((Some(|receipt| receipt.response_hash = receipt.request_hash), "response_hash"));
    scripts.push((Some(|receipt| receipt.request_hash = receipt.response_hash), "request_hash"));
    scripts.push((Some(|receipt| receipt.completion_tokens += 1), "completion_tokens"));
    for (number, (receipt, fault)) in scripts.into_iter().enumerate() {
        let mut script = Script::new(Play::Stream(chat(&["a", "b"], true)));
        script.receipt = receipt;
        let engine = Engine::start(&rig, script).await;
        let body =
            json!({ "model": "zorai-demo", "stream": true, "provider": { "only": [engine.provider()] } });
        let id = format!("receipt-{number}");
        let request = rig.request(Method::POST, "/v1/chat/completions").header("x-request-id", &id);
        request.json(&body).send().await.unwrap().bytes().await.unwrap();
        let record = record(&rig, &id).await;
        assert_eq!(record["outcome"], "completed");
        assert_eq!((&record["prompt_tokens"], &record["completion_tokens"]), (&json!(7), &json!(9)));
        assert_eq!((&record["usage_source"], &record["cost"]), (&json!("usage"), &json!("41")));
        assert_eq!(record["provider"], engine.provider());
        if fault.is_empty() {
            assert_eq!(record["receipt"]["mutation"]["request_id"], id.as_str(), "{record}");
            assert_eq!(record["fault"], Value::Null);
        } else {
            assert_eq!(record["receipt"], Value::Null);
            assert!(record["fault"].as_str().unwrap().contains(fault), "{record}");
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn records_are_their_keys_own_and_survive_the_relay() {
    let rig = Rig::start().await;
    let engine = Engine::start(&rig, Script::new(Play::Stream(chat(&["a", "b", "c"], false)))).await;
    let (mine, other) = (rig.new_key(&["inference"]).await, rig.new_key(&["inference"]).await);
    let body = json!({ "model": "zorai-demo", "stream": true });
    let request = rig.bare(Method::POST, "/v1/chat/completions").bearer_auth(&mine);
    let response = request.header("x-request-id", "r-1").json(&body).send().await.unwrap();
    response.bytes().await.unwrap();
    let record = record(&rig, "r-1").await;
    assert_eq!((&record["usage_source"], &record["completion_tokens"]), (&json!("deltas"), &json!(3)));
    // 7 prompt tokens at 2, by the receipt, and 3 others at 3.
    assert_eq!((&record["prompt_tokens"], &record["cost"]), (&json!(7), &json!("23")));
    let get = |key: &str| rig.bare(Method::GET, "/v1/receipts/r-1").bearer_auth(key);
    assert_eq!(answer(get(&mine)).await, (StatusCode::OK, record));
    assert_error(&answer(get(&other)).await, 404, "not_found");
    assert_error(&answer(rig.bare(Method::GET, "/v1/receipts/r-1")).await, 401, "invalid_api_key");

    // What was served a moment before the relay ends is kept too.
    ask(&rig).header("x-request-id", "r-2").send().await.unwrap().bytes().await.unwrap();
    drop(engine);
    let rig = Rig::start_in(rig.stop().await, |_| {}).await;
    let (_, kept) = rig.get("/v1/receipts/r-2").await;
    assert_eq!(kept["completion_tokens"], 3, "{kept}");
    rig.stop().await;
}

#[tokio::test]
async fn usage_is_told_by_model_and_what_was_cancelled_counts() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    for _ in 0..2 {
        ask(&rig).send().await.unwrap().bytes().await.unwrap();
    }
    engine.play.send(Play::Stall(vec![delta("a"), delta("b")])).unwrap();
    let mut response = ask(&rig).header("x-request-id", "left").send().await.unwrap();
    let mut read = 0;
    while read < delta("a").len() * 2 {
        read += response.chunk().await.unwrap().unwrap().len();
    }
    drop(response);
    for _ in 0..3 {
        engine.sees().await;
    }
    engine.is_idle().await;
    let left = record(&rig, "left").await;
    assert_eq!((&left["outcome"], &left["completion_tokens"]), (&json!("cancelled"), &json!(2)));
    let (_, page) = rig.get("/v1/usage").await;
    let models: Vec<_> = page["usage"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row["models"].as_array().unwrap().clone())
        .collect();
    let used = json!({ "model": "zorai-demo", "requests": 3, "prompt_tokens": 14, "completion_tokens": 20 });
    assert_eq!(models, [used], "{page}");
    rig.stop().await;
}

#[tokio::test]
async fn who_leaves_with_the_last_event_has_cancelled_nothing() {
    let rig = Rig::start().await;
    let mut engine = Engine::start(&rig, Script::new(Play::Hang)).await;
    let all = chat(&["a"], true);
    for (id, has_receipt) in [("held", true), ("none", false)] {
        engine.play.send(Play::Held(all.clone(), vec![])).unwrap();
        let mut response = ask(&rig).header("x-request-id", id).send().await.unwrap();
        engine.sees().await;
        let mut read = 0;
        while read < all.concat().len() {
            read += response.chunk().await.unwrap().unwrap().len();
        }
        drop(response);
        let gone = tokio::time::timeout(Duration::from_millis(200), engine.is_idle()).await;
        assert!(gone.is_err(), "the host was cut off before its receipt came");
        if has_receipt {
            engine.play.send(Play::Hang).unwrap();
        }
        engine.is_idle().await;
        let kept = record(&rig, id).await;
        assert_eq!(kept["outcome"], "completed", "{kept}");
        assert_eq!(kept["receipt"].is_object(), has_receipt, "{kept}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn it_is_counted_for_prometheus() {
    let rig = Rig::start().await;
    let bad = Engine::start(&rig, Script::new(Play::Stream(vec!["<html>\n".into()]))).await;
    let _good = Engine::start(&rig, Script::new(Play::Stream(chat(&["a"], true)))).await;
    let body = json!({ "model": "zorai-demo", "stream": true, "provider": { "order": [bad.provider()] } });
    rig.request(Method::POST, "/v1/chat/completions")
        .json(&body)
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    let unknown = answer(rig.request(Method::POST, "/v1/embeddings").json(&json!({ "model": "x" }))).await;
    assert_error(&unknown, 404, "model_not_found");
    let text = rig.bare(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    for line in [
        r#"requests_total{model="zorai-demo",kind="chat",outcome="completed"} 1"#,
        r#"tokens_total{model="zorai-demo",direction="prompt"} 7"#,
        r#"tokens_total{model="zorai-demo",direction="completion"} 9"#,
        "first_byte_seconds_count 1",
        r#"failed_attempts_total{reason="cut_off"} 1"#,
        r#"refused_total{code="model_not_found"} 1"#,
        r#"breakers{state="open"} 1"#,
        r#"breakers{state="half_open"} 0"#,
        "waiting 0",
        "under_way 0",
        "slots 8",
    ] {
        assert!(text.contains(&format!("zorai_relay_inference_{line}\n")), "{line} is missing:\n{text}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_broke_off_costs_nothing() {
    let rig = Rig::start().await;
    let _engine = Engine::start(&rig, Script::new(Play::Break(vec![delta("a"), delta("b")]))).await;
    let request = ask(&rig).header("x-request-id", "broken");
    request.send().await.unwrap().bytes().await.unwrap();
    let broken = record(&rig, "broken").await;
    assert_eq!((&broken["outcome"], &broken["cost"]), (&json!("failed"), &json!("0")), "{broken}");
    rig.stop().await;
}

#[tokio::test]
async fn what_its_engine_says_has_failed_costs_nothing() {
    let rig = Rig::start().await;
    let error =
        |form: &str| format!("data: {{\"error\":{{\"message\":\"no\",\"type\":\"{form}\"}}}}\n\n").into();
    let engine = Engine::start(&rig, Script::new(Play::Hang)).await;
    for (id, pieces) in [
        ("late", vec![delta("a"), delta("b"), error("server_error")]),
        // Any host would say so: nobody else is asked, and the client reads it.
        ("wrong", vec![error("invalid_request_error")]),
    ] {
        engine.play.send(Play::Stream(pieces.clone())).unwrap();
        let response = ask(&rig).header("x-request-id", id).send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), pieces.concat(), "it passes as it is");
        let failed = record(&rig, id).await;
        assert_eq!((&failed["outcome"], &failed["cost"]), (&json!("failed"), &json!("0")), "{failed}");
    }
    // Three in a row that are the host's fault open its breaker; those between that are the request's change nothing.
    let late = vec![delta("a"), error("server_error")];
    for pieces in [vec![error("invalid_request_error")], late.clone(), late] {
        engine.play.send(Play::Stream(pieces)).unwrap();
        ask(&rig).send().await.unwrap().bytes().await.unwrap();
    }
    assert_error(&answer(ask(&rig)).await, 503, "no_provider_available");
    rig.stop().await;
}

#[tokio::test]
async fn a_key_uses_as_many_tokens_as_its_limit_says() {
    let rig = Rig::start().await;
    let _engine = Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await;
    let spec = json!({ "name": "a", "scopes": ["inference"], "tokens_per_minute": 20 });
    let key = rig.make_key(&spec).await;
    let ask = async || {
        let request = rig.bare(Method::POST, "/v1/chat/completions").bearer_auth(&key);
        request.json(&json!({ "model": "zorai-demo" })).send().await.unwrap()
    };
    let number = |response: &Response, name: &str| -> u64 {
        response.headers()[&format!("x-ratelimit-{name}-tokens")].to_str().unwrap().parse().unwrap()
    };
    // 16 of 20, and 12 more than there are.
    for most_left in [4, 0] {
        let response = ask().await;
        assert_eq!((response.status(), number(&response, "limit")), (StatusCode::OK, 20));
        assert!(number(&response, "remaining") <= most_left + 1, "{response:?}");
    }
    let refused = ask().await;
    assert_eq!((number(&refused, "limit"), number(&refused, "remaining")), (20, 0));
    assert!(number(&refused, "reset") > 60, "{refused:?}");
    assert!(refused.headers().contains_key("retry-after"));
    let refused = (refused.status(), refused.json().await.unwrap());
    assert_error(&refused, 429, "rate_limited");
    assert!(refused.1["error"]["message"].as_str().unwrap().contains("20 tokens a minute"), "{}", refused.1);
    rig.stop().await;
}
