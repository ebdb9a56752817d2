//! The official OpenAI SDK against relay, agent, node and a real engine that the node starts itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::path::PathBuf;

use serde_json::json;
use system_tests::{API_KEY, Market, PROVIDER_KEYS, free_port, said};

/// The folder that `scripts/fetch_engine.sh` made.
fn engine() -> Option<PathBuf> {
    std::env::var_os("ZORAI_TEST_ENGINE").map(PathBuf::from)
}

#[tokio::test]
async fn the_openai_sdk_talks_to_an_engine_behind_an_agent() {
    let Some(engine) = engine() else {
        eprintln!("skipped: ZORAI_TEST_ENGINE is not set; scripts/fetch_engine.sh FOLDER makes an engine");
        return;
    };
    let market = Market::new();
    let node_port = free_port();
    let command = format!(
        "llama={} --model {{model}} --alias {{name}} --host 127.0.0.1 --port {{port}} --parallel {{slots}} --threads 1",
        engine.join("llama-server").display()
    );
    let managed = format!("tiny=llama,model={},slots=1", engine.join("tiny.gguf").display());
    let node =
        market.node("node", node_port, &["--engine-command", &command, "--managed-engine", &managed]).await;
    let _relay = market.relay(&[]).await;
    let price = ["--price", "*=1000000,2000000"];
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &price);
    market
        .until("/v1/models", "a model", |list| list["data"].as_array().is_some_and(|data| data.len() == 1))
        .await;

    let out = tokio::process::Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/openai_sdk.py"))
        .args([&market.url(), "tiny"])
        .env("ZORAI_AI_API_KEY", API_KEY)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(told["models"], json!(["tiny"]), "{told:#}");
    assert_eq!(told["attempts"], "1", "{told:#}");
    assert!(told["pieces"].as_u64().is_some_and(|pieces| pieces > 2), "{told:#}");
    assert!(told["finish"].is_string(), "{told:#}");
    let errors = json!({"unknown model": "model_not_found", "wrong key": "invalid_api_key"});
    assert_eq!(told["errors"], errors, "{told:#}");
    let receipt = &told["receipt"];
    assert_eq!((&receipt["outcome"], &receipt["fault"]), (&json!("completed"), &json!(null)), "{told:#}");
    assert_eq!(receipt["completion_tokens"], told["completion_tokens"], "{told:#}");
    assert_eq!(told["signed"], true, "{told:#}");

    the_command_line_talks_to_it_and_checks_the_receipt(&market).await;
    node.stop().await;
}

async fn the_command_line_talks_to_it_and_checks_the_receipt(market: &Market) {
    let folder = market.path("exchange");
    let out = market
        .cli_with(&["chat", "--max-tokens", "8", "--save-exchange", folder.to_str().unwrap()], b"hello\n")
        .await;
    assert!(out.status.success() && !out.stdout.is_empty(), "{}", said(&out));
    let saved = |kind: &str| {
        let mut files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        files.find(|path| path.to_str().unwrap().ends_with(kind)).unwrap().to_str().unwrap().to_owned()
    };
    let [receipt, request, response] = ["receipt.json", "request.json", "response.bin"].map(saved);
    let arguments = ["verify", &receipt, "--request", &request, "--response", &response, "--json"];
    let out = market.cli(&arguments).await;
    assert!(out.status.success(), "{}", said(&out));
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(told["verified"], true, "{told:#}");
    let words: Vec<_> =
        told["statements"].as_array().unwrap().iter().map(|said| said["word"].clone()).collect();
    assert!(words.contains(&json!("shown")) && words.contains(&json!("relay")), "{told:#}");
    let out = market.cli(&["verify", &receipt, "--response", &request]).await;
    assert_eq!(out.status.code(), Some(5), "{}", said(&out));

    let out = market.cli(&["models", "tiny", "--json"]).await;
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&told["id"], &told["hosts"]), (&json!("tiny"), &json!(1)), "{told:#}");
    let out = market.cli(&["doctor", "--json"]).await;
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &told["ok"]), (Some(0), &json!(true)), "{told:#}");
}
