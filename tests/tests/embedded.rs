//! The engine inside the node, behind agent and relay: a machine without any engine answers.

use std::path::Path;

use serde_json::{Value, json};
use system_tests::{API_KEY, Market, PROVIDER_KEYS, free_port};

const MODEL: &str = "zorai-demo";

#[tokio::test]
async fn the_toy_model_answers_through_the_relay() {
    let market = Market::new();
    let node_port = free_port();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zorai-demo.gguf");
    let model = format!("{MODEL}={},threads=1", file.display());
    let _node = market.node("node", node_port, &["--model", &model]).await;
    let _relay = market.relay(&[]).await;
    let price = ["--price", "*=1000000,2000000"];
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &price);
    let list = market
        .until("/v1/models", "a model", |list| list["data"].as_array().is_some_and(|data| data.len() == 1))
        .await;
    let view = &list["data"][0];
    assert_eq!(
        (&view["id"], &view["context_tokens"], &view["quantizations"], &view["kinds"]),
        (&json!(MODEL), &json!(1024), &json!(["q8_0"]), &json!(["chat", "completions"]))
    );

    let ask = async |stream: bool| {
        let body = json!({
            "model": MODEL, "messages": [{ "role": "user", "content": "Who are you?" }], "temperature": 0,
            "stream": stream,
        });
        let url = format!("{}/v1/chat/completions", market.url());
        let answer = market.http.post(url).bearer_auth(API_KEY).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    };
    let whole: Value = serde_json::from_str(&ask(false).await).unwrap();
    let said = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(said.contains("a toy"), "{whole}");
    assert!(whole["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 10), "{whole}");

    let streamed = ask(true).await;
    assert!(streamed.trim_end().ends_with("data: [DONE]"), "{streamed}");
    let pieces =
        streamed.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let text: String = pieces
        .filter_map(|piece| Some(piece["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(text, said);
}
