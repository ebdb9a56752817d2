//! Inference through real processes: the official OpenAI SDKs against relay, agent, node and real engines that the node starts itself; what
//! a client that leaves frees; what a relay that ends does to streams; and tasks on the chat endpoint.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::engine::{Engine, FIRST, REST};
use system_tests::{API_KEY, Market, PATIENCE, PROVIDER_KEYS, Process, free_port, said, upper_case};
use tokio::process::Command;

/// The folder that `scripts/fetch_engine.sh` made.
fn engine() -> Option<PathBuf> {
    let folder = std::env::var_os("ZORAI_TEST_ENGINE").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: ZORAI_TEST_ENGINE is not set; scripts/fetch_engine.sh FOLDER makes an engine");
    }
    folder
}

/// A node with llama.cpp's server thrice: one to chat with, with one slot, at this port; one that calls tools, and one that embeds.
async fn node(market: &Market, folder: &Path, node_port: u16, chat_port: u16) -> Process {
    let server = |more: &str| {
        let server = folder.join("llama-server");
        format!(
            "{} --model {{model}} --alias {{name}} --host 127.0.0.1 --port {{port}} --parallel {{slots}} --threads 1 --no-webui {more}",
            server.display()
        )
    };
    let model = folder.join("tiny.gguf");
    let managed = |name: &str, command: &str, more: &str| {
        format!("{name}={command},model={},slots=1{more}", model.display())
    };
    let tools = format!("--jinja --chat-template-file {}", folder.join("tools.jinja").display());
    let commands =
        [("chat", String::new()), ("tools", tools), ("embed", "--embeddings --pooling mean".to_owned())]
            .map(|(name, more)| format!("{name}={}", server(&more)));
    let mut flags: Vec<String> = Vec::new();
    for command in commands {
        flags.extend(["--engine-command".to_owned(), command]);
    }
    for engine in [
        managed("tiny", "chat", &format!(",port={chat_port}")),
        managed("tiny-tools", "tools", ""),
        managed("tiny-embed", "embed", ""),
    ] {
        flags.extend(["--managed-engine".to_owned(), engine]);
    }
    market.node("node", node_port, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await
}

async fn models(market: &Market, count: usize) {
    let has_all = |list: &Value| list["data"].as_array().is_some_and(|data| data.len() == count);
    market.until("/v1/models", &format!("{count} models"), has_all).await;
}

#[tokio::test]
async fn the_openai_sdks_talk_to_engines_behind_an_agent() {
    let Some(folder) = engine() else { return };
    let market = Market::new();
    let node_port = free_port();
    let node = node(&market, &folder, node_port, free_port()).await;
    let _relay = market.relay(&[]).await;
    let price = ["--price", "*=1000000,2000000"];
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &price);
    models(&market, 3).await;

    let sdk = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sdk"));
    let names = ["tiny", "tiny-tools", "tiny-embed"];
    // One after the other: the engine has one slot, and they count on it.
    for (program, script) in [("python3", "python/suite.py"), ("node", "node/suite.mjs")] {
        let mut command = Command::new(program);
        command.arg(sdk.join(script)).arg(market.url()).args(names).env("ZORAI_AI_API_KEY", API_KEY);
        let running = command.kill_on_drop(true).output();
        let out = tokio::time::timeout(3 * PATIENCE, running).await.unwrap().unwrap();
        assert!(out.status.success(), "{script}: {}", said(&out));
    }
    node.stop().await;
}

/// Whether llama.cpp's one slot works.
async fn is_busy(market: &Market, port: u16) -> bool {
    let slots = market.http.get(format!("http://127.0.0.1:{port}/slots")).send().await.unwrap();
    let slots: Value = slots.json().await.unwrap();
    slots[0]["is_processing"] == true
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_engines_slot() {
    let Some(folder) = engine() else { return };
    let market = Market::new();
    let (node_port, chat_port) = (free_port(), free_port());
    let node = node(&market, &folder, node_port, chat_port).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    models(&market, 3).await;
    let url = format!("{}/v1/chat/completions", market.url());
    let body = json!({
        "model": "tiny", "stream": true, "max_tokens": 8000, "logprobs": true, "top_logprobs": 20,
        "messages": [{ "role": "user", "content": "hello" }],
    });
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let mut response = market.http.post(&url).bearer_auth(API_KEY).json(&body).send().await.unwrap();
        response.chunk().await.unwrap().unwrap();
        assert!(is_busy(&market, chat_port).await);
        let left = Instant::now();
        drop(response);
        let free = async { while is_busy(&market, chat_port).await {} };
        tokio::time::timeout(PATIENCE, free).await.unwrap();
        shortest = shortest.min(left.elapsed());
    }
    // Machines are shared: one of three has to do with what the way takes by itself.
    assert!(shortest < Duration::from_millis(250), "{shortest:?}");
    node.stop().await;
}

#[tokio::test]
async fn a_stream_ends_whole_while_its_relay_drains() {
    let market = Market::new();
    let mut engine = Engine::new().await;
    let node_port = free_port();
    let _node = market.node("node", node_port, &["--engine", &engine.flag()]).await;
    let mut relay = market.relay(&["--drain-secs", "60"]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    models(&market, 1).await;
    let body = json!({ "model": "gated", "stream": true, "messages": [] });
    let url = format!("{}/v1/chat/completions", market.url());
    let ask = || market.http.post(&url).bearer_auth(API_KEY).json(&body);
    let mut response = ask().send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), FIRST);
    relay.signal("TERM");
    let refused =
        async { while market.http.get(format!("{}/healthz", market.url())).send().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert!(ask().send().await.unwrap_err().is_connect());
    engine.under_way(1).await;
    engine.open();
    assert_eq!(response.bytes().await.unwrap(), REST);
    assert!(relay.ended().await.success());
}

#[tokio::test]
async fn receipts_outlast_a_kill_a_moment_later() {
    let market = Market::new();
    let engine = Engine::new().await;
    engine.open();
    let node_port = free_port();
    let _node = market.node("node", node_port, &["--engine", &engine.flag()]).await;
    let mut relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    models(&market, 1).await;
    let body = json!({ "model": "gated", "stream": true, "messages": [] });
    let request = market.http.post(format!("{}/v1/chat/completions", market.url())).bearer_auth(API_KEY);
    let response = request.header("x-request-id", "kept").json(&body).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), format!("{FIRST}{REST}"));
    // Nobody asks for it meanwhile. They are kept within a second; this machine is shared.
    tokio::time::sleep(Duration::from_secs(2)).await;
    relay.kill();
    let _relay = market.relay(&[]).await;
    let kept = market.get("/v1/receipts/kept").await;
    assert_eq!((&kept["outcome"], &kept["fault"]), (&json!("completed"), &json!(null)), "{kept:#}");
    assert_eq!(kept["receipt"]["mutation"]["model"], "gated", "{kept:#}");
}

#[tokio::test]
async fn an_external_signer_publishes_a_task_through_the_chat_endpoint() {
    let market = Market::new();
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    std::fs::write(market.path("input.txt"), "signed elsewhere").unwrap();
    let out = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/chat_task.py"))
        .arg(market.url())
        .arg(market.path("upper.wasm"))
        .arg(market.path("input.txt"))
        .env("ZORAI_AI_API_KEY", API_KEY)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(told["content"], "SIGNED ELSEWHERE", "{told:#}");
    assert_eq!(told["zorai"]["status"], "submitted", "{told:#}");
}
