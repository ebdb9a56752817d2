//! What happens when something dies in the middle of a task.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use system_tests::gate::Gate;
use system_tests::proxy::{Line, Proxy};
use system_tests::{API_KEY, Market, PROVIDER_KEYS, endless, free_port, said, upper_case};

/// Publishes a task whose input waits at the gate, and gives its id.
async fn publish_gated(market: &Market, gate: &Gate, more: &[&str]) -> String {
    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    let model = market.path("upper.wasm");
    let mut arguments = vec!["run", "--model", model.to_str().unwrap(), "--input", &gate.url];
    arguments.extend_from_slice(more);
    let out = market.cli(&arguments).await;
    assert!(out.status.success(), "{}", said(&out));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[tokio::test]
async fn the_relay_is_killed_in_mid_task_and_the_task_goes_on() {
    let market = Market::new();
    let mut gate = Gate::new(b"kept").await;
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let mut relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    let task = publish_gated(&market, &gate, &[]).await;
    gate.asked(1).await;
    market.status(&task, "accepted").await;
    relay.kill();
    gate.open();
    let _relay = market.relay(&[]).await;
    let view = market.status(&task, "submitted").await;
    assert_eq!(view["attempt"], 1, "the first attempt went on: {view:#}");
    let out = market.cli(&["result", &task]).await;
    assert_eq!(String::from_utf8_lossy(&out.stdout), "KEPT", "{}", said(&out));
}

#[tokio::test]
async fn an_upload_goes_on_where_the_network_broke_it_off() {
    let market = Market::new();
    let _relay = market.relay(&[]).await;
    let bytes: Vec<u8> = (0..3_u32 << 20).flat_map(|n| n.to_le_bytes()).collect();
    std::fs::write(market.path("large"), &bytes).unwrap();
    let large = market.path("large");
    // No connection lasts for half of it.
    let proxy = Proxy::to(market.port).await;
    proxy.set(Line::Short(5 << 20));
    let relay = format!("http://127.0.0.1:{}", proxy.port);
    let out = market.cli(&["artifact", "put", large.to_str().unwrap(), "--relay", &relay]).await;
    assert!(out.status.success(), "{}", said(&out));
    let reference = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let copy = market.path("copy");
    let out = market.cli(&["artifact", "get", &reference, "--output", copy.to_str().unwrap()]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert!(std::fs::read(copy).unwrap() == bytes);
}

#[tokio::test]
async fn a_result_goes_on_where_the_network_broke_it_off() {
    let market = Market::new();
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&[]).await;
    // No connection of the agent lasts for half of the result.
    let proxy = Proxy::to(market.port).await;
    proxy.set(Line::Short(5 << 20));
    let _agent = market.agent("agent", PROVIDER_KEYS[0], proxy.port, ("node", node_port), &[]);
    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    let text: Vec<u8> =
        (0..12_u32 << 20).map(|n| b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26).collect();
    std::fs::write(market.path("input.txt"), &text).unwrap();
    let (model, input, result) = (market.path("upper.wasm"), market.path("input.txt"), market.path("result"));
    let run = [
        "run",
        "--model",
        model.to_str().unwrap(),
        "--input",
        input.to_str().unwrap(),
        "--max-attempts",
        "1",
    ];
    let out = market.cli(&[&run[..], &["--poll", "--output", result.to_str().unwrap()]].concat()).await;
    assert!(out.status.success(), "{}", said(&out));
    assert!(std::fs::read(result).unwrap() == text.to_ascii_uppercase());
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_under_load() {
    let market = Market::new();
    let mut relay = market.relay(&[]).await;
    let wallet = wallet::Wallet::random();
    let stop = tokio_stop();
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..8_u8 {
        let (http, url, wallet, stop) = (market.http.clone(), market.url(), wallet.clone(), stop.1.clone());
        publishers.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0..u16::MAX {
                let body = task_body(&wallet, publisher, number);
                match http.post(format!("{url}/v1/tasks")).bearer_auth(API_KEY).json(&body).send().await {
                    Ok(answer) if answer.status() == 201 => {
                        let Ok(view) = answer.json::<serde_json::Value>().await else { break };
                        acknowledged.push(view["task_id"].as_str().unwrap().to_owned());
                    }
                    Ok(answer) => panic!("{}", answer.text().await.unwrap()),
                    Err(_) => break,
                }
                if acknowledged.len() == 20 {
                    stop.send(()).await.unwrap();
                }
            }
            acknowledged
        });
    }
    let mut enough = stop.0;
    for _ in 0..8 {
        tokio::time::timeout(system_tests::PATIENCE, enough.recv()).await.unwrap();
    }
    relay.kill();
    let acknowledged: Vec<String> = publishers.join_all().await.into_iter().flatten().collect();
    assert!(acknowledged.len() >= 160, "{}", acknowledged.len());
    let _relay = market.relay(&[]).await;
    for task in &acknowledged {
        let view = market.get(&format!("/v1/tasks/{task}")).await;
        assert_eq!(view["status"], "open", "{task} was acknowledged and is gone: {view:#}");
    }
}

fn tokio_stop() -> (tokio::sync::mpsc::Receiver<()>, tokio::sync::mpsc::Sender<()>) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    (receiver, sender)
}

fn task_body(wallet: &wallet::Wallet, publisher: u8, number: u16) -> rpc::tasks::PublishTask {
    use taskmarket::{
        Address, Amount, B256, Bytes32, ContentHash, Domain, Runtime, Task, TaskConfig, Timestamp,
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut salt = [publisher; 32];
    salt[..2].copy_from_slice(&number.to_be_bytes());
    let task = Task {
        requester: wallet.address(),
        model_cid: "https://models.example/m.wasm".parse().unwrap(),
        model_hash: ContentHash(B256::repeat_byte(7)),
        input_cid: "https://models.example/input".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 60,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: Amount::ZERO,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: Timestamp::from_unix(now + 3600),
        dispute_window: 86_400,
        arbiter_window: 604_800,
        arbiter: Address::ZERO,
        salt: Bytes32(B256::from(salt)),
    };
    let signed = wallet.sign(&task, &Domain::UNSETTLED).unwrap();
    rpc::tasks::PublishTask {
        task: signed.message,
        signature: signed.signature,
        verifying_contract: Address::ZERO,
        callback_url: None,
    }
}

#[tokio::test]
async fn a_network_cut_within_the_grace_keeps_the_attempt() {
    let market = Market::new();
    let mut gate = Gate::new(b"patience").await;
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&["--session-grace-secs", "60"]).await;
    let proxy = Proxy::to(market.port).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], proxy.port, ("node", node_port), &[]);
    let task = publish_gated(&market, &gate, &[]).await;
    gate.asked(1).await;
    market.status(&task, "accepted").await;
    proxy.set(Line::Cut);
    market.providers(0).await;
    proxy.set(Line::Up);
    market.providers(1).await;
    gate.open();
    let view = market.status(&task, "submitted").await;
    assert_eq!(view["attempt"], 1, "{view:#}");
}

#[tokio::test]
async fn a_silent_network_is_noticed_and_the_task_goes_to_another_provider() {
    let market = Market::new();
    let mut gate = Gate::new(b"elsewhere").await;
    let (first_port, second_port) = (free_port(), free_port());
    let _first = market.node("first", first_port, &[]).await;
    let _relay = market
        .relay(&["--session-grace-secs", "1", "--heartbeat-secs", "1", "--heartbeat-timeout-secs", "1"])
        .await;
    let proxy = Proxy::to(market.port).await;
    let _lost = market.agent("lost", PROVIDER_KEYS[0], proxy.port, ("first", first_port), &[]);
    let task = publish_gated(&market, &gate, &[]).await;
    gate.asked(1).await;
    market.status(&task, "accepted").await;
    proxy.set(Line::Silent);
    let _second = market.node("second", second_port, &[]).await;
    let _other = market.agent("other", PROVIDER_KEYS[1], market.port, ("second", second_port), &[]);
    gate.asked(2).await;
    gate.open();
    let view = market.status(&task, "submitted").await;
    assert_eq!(view["attempt"], 2, "{view:#}");
    let sessions = market.get(&format!("/v1/providers/{}/sessions", address(0))).await;
    assert!(sessions["sessions"][0]["disconnected_at"].is_string(), "{sessions:#}");
    // The first provider's late proof is of an older attempt: nothing changes.
    proxy.set(Line::Cut);
    proxy.set(Line::Up);
    market.providers(2).await;
    let view = market.get(&format!("/v1/tasks/{task}")).await;
    assert_eq!(view["provider"].as_str().unwrap(), address(1), "{view:#}");
}

fn address(key: usize) -> String {
    wallet::Wallet::from_hex(PROVIDER_KEYS[key]).unwrap().address().to_string()
}

#[tokio::test]
async fn the_node_is_killed_in_mid_task_and_the_attempt_is_failed_with_a_reason() {
    let market = Market::new();
    let mut gate = Gate::new(b"again").await;
    let node_port = free_port();
    let mut node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    let task = publish_gated(&market, &gate, &[]).await;
    gate.asked(1).await;
    node.kill();
    let _node = market.node("node", node_port, &[]).await;
    gate.asked(2).await;
    gate.open();
    let view = market.status(&task, "submitted").await;
    assert_eq!(view["attempt"], 2, "{view:#}");
    let events = market.get(&format!("/v1/tasks/{task}/events")).await;
    assert!(events.to_string().contains("node_restarted"), "{events:#}");
}

#[tokio::test]
async fn the_agent_is_killed_in_mid_task_and_goes_on_from_its_journal() {
    let market = Market::new();
    let mut gate = Gate::new(b"journal").await;
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&["--session-grace-secs", "60"]).await;
    let mut agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    let task = publish_gated(&market, &gate, &[]).await;
    gate.asked(1).await;
    market.status(&task, "accepted").await;
    agent.kill();
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    gate.open();
    let view = market.status(&task, "submitted").await;
    assert_eq!(view["attempt"], 1, "{view:#}");
}

#[tokio::test]
async fn two_hosts_with_one_key_both_work_and_one_folder_has_one_agent() {
    let market = Market::new();
    let (first_port, second_port) = (free_port(), free_port());
    let _first = market.node("first", first_port, &[]).await;
    let _second = market.node("second", second_port, &[]).await;
    let _relay = market.relay(&[]).await;
    let _one = market.agent("one", PROVIDER_KEYS[0], market.port, ("first", first_port), &[]);
    let _two = market.agent("two", PROVIDER_KEYS[0], market.port, ("second", second_port), &[]);
    market.providers(2).await;
    std::fs::create_dir_all(market.path("copy")).unwrap();
    let mut same = std::process::Command::new(system_tests::program("compute-agent"));
    same.args([
        "--relay",
        &format!("ws://127.0.0.1:{}/v1/provider/connect", market.port),
        "--relay-id",
        "hz-1",
    ])
    .args(["--compute-url", &format!("http://127.0.0.1:{first_port}")])
    .arg("--compute-token-file")
    .arg(market.path("first.token"))
    .arg("--data")
    .arg(market.path("one"))
    .env("PROVIDER_PRIVATE_KEY", PROVIDER_KEYS[0]);
    let mut same = system_tests::Process::start(market.folder.path(), "same", same);
    assert!(!same.ended().await.success(), "{}", same.log());
    assert!(same.log().contains("another"), "{}", same.log());
}

#[tokio::test]
async fn a_task_over_its_limits_fails_with_a_signed_reason_and_the_node_lives_on() {
    let market = Market::new();
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    std::fs::write(market.path("endless.wasm"), endless()).unwrap();
    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    std::fs::write(market.path("input.txt"), "x").unwrap();
    let (model, upper, input) =
        (market.path("endless.wasm"), market.path("upper.wasm"), market.path("input.txt"));
    let input = input.to_str().unwrap();
    let fuel = r#"{"fuel":1000000}"#;
    let arguments = [
        "run",
        "--model",
        model.to_str().unwrap(),
        "--input",
        input,
        "--params",
        fuel,
        "--max-attempts",
        "1",
        "--poll",
    ];
    let out = market.cli(&arguments).await;
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stderr).contains("out_of_fuel"), "{}", said(&out));
    let out = market
        .cli(&["run", "--model", upper.to_str().unwrap(), "--input", input, "--poll", "--output", "-"])
        .await;
    assert!(out.status.success(), "{}", said(&out));
}

#[tokio::test]
async fn everything_ends_on_sigterm() {
    let market = Market::new();
    let node_port = free_port();
    let mut node = market.node("node", node_port, &[]).await;
    let mut relay = market.relay(&[]).await;
    let mut agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    market.providers(1).await;
    for process in [&mut agent, &mut node, &mut relay] {
        process.signal("TERM");
        let status = tokio::time::timeout(Duration::from_secs(20), process.ended()).await;
        assert!(status.is_ok_and(|status| status.success()), "{}", process.log());
    }
}
