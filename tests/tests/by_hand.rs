//! The walk of the README: a node, a relay, an agent and the client, with the flags that are the public interface.

use sha2::{Digest, Sha256};
use system_tests::{API_KEY, Market, PROVIDER_KEYS, free_port, program, said, upper_case};

const GPU: [&str; 4] = ["--gpu-name", "NVIDIA A100", "--gpu-vram-mb", "40960"];

#[tokio::test]
async fn a_task_runs_from_publication_to_approval() {
    let market = Market::new();
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &GPU);
    market.providers(1).await;

    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    std::fs::write(market.path("input.txt"), "gpus behind routers").unwrap();
    let hash = hex::encode(Sha256::digest("gpus behind routers"));
    let out = market
        .cli(&[
            "run",
            "--model",
            market.path("upper.wasm").to_str().unwrap(),
            "--input",
            market.path("input.txt").to_str().unwrap(),
            "--input-hash",
            &hash,
            "--gpu-type",
            "a100",
            "--min-vram",
            "40960",
            "--budget",
            "10000000000000000",
            "--poll",
            "--output",
            market.path("result.txt").to_str().unwrap(),
        ])
        .await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(std::fs::read_to_string(market.path("result.txt")).unwrap(), "GPUS BEHIND ROUTERS");
    let talk = String::from_utf8_lossy(&out.stderr).to_lowercase();
    for word in ["open", "accepted", "submitted", "completed", "nvidia a100"] {
        assert!(talk.contains(word), "{word} is missing:\n{}", said(&out));
    }
    let task = String::from_utf8_lossy(&out.stdout).lines().next().unwrap().trim().to_owned();
    assert!(task.starts_with("0x") && task.len() == 66, "{}", said(&out));

    let status = market.cli(&["status", &task, "--json"]).await;
    let view: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&view["status"], &view["attempt"]), (&"completed".into(), &1.into()), "{view:#}");
    let requester = view["task"]["requester"].as_str().unwrap();
    let list = market.cli(&["list", "--requester", requester]).await;
    assert!(
        list.status.success() && String::from_utf8_lossy(&list.stdout).contains(&task),
        "{}",
        said(&list)
    );
    let verify = market.cli(&["verify", &task]).await;
    assert!(verify.status.success(), "{}", said(&verify));
    // The key that published the task reads it without an API key; another key does not.
    let bare = async |home: &str| {
        let mut command = tokio::process::Command::new(program("zorai-compute"));
        command.args(["verify", &task, "--relay", &market.url()]).env("ZORAI_HOME", market.path(home));
        command.env_remove("ZORAI_AI_API_KEY").output().await.unwrap()
    };
    let verify = bare("home").await;
    assert!(verify.status.success(), "{}", said(&verify));
    assert_eq!(bare("nobody").await.status.code(), Some(3), "there is no key at all");

    let late = market.cli(&["dispute", &task, "--reason", "result hash mismatch"]).await;
    assert_eq!(late.status.code(), Some(1), "a completed task cannot be disputed: {}", said(&late));
}

#[tokio::test]
async fn a_result_can_be_disputed_in_its_window() {
    let market = Market::new();
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    std::fs::write(market.path("input.txt"), "x").unwrap();
    let (model, input) = (market.path("upper.wasm"), market.path("input.txt"));
    let out =
        market.cli(&["run", "--model", model.to_str().unwrap(), "--input", input.to_str().unwrap()]).await;
    assert!(out.status.success(), "{}", said(&out));
    let task = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    market.status(&task, "submitted").await;
    let evidence = "ipfs://bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";
    let out =
        market.cli(&["dispute", &task, "--reason", "result hash mismatch", "--evidence", evidence]).await;
    assert!(out.status.success(), "{}", said(&out));
    market.status(&task, "disputed").await;
}

#[tokio::test]
async fn the_front_door_says_no_as_documented() {
    let market = Market::new();
    let _relay = market.relay(&[]).await;
    let tasks = format!("{}/v1/tasks", market.url());
    let without = market.http.post(&tasks).body("not even json").send().await.unwrap();
    assert_eq!(without.status(), 401, "no key comes before all else");
    let malformed = market
        .http
        .post(&tasks)
        .bearer_auth(API_KEY)
        .header("content-type", "application/json")
        .body(r#"{"task":{"requester":"0x12"}}"#)
        .send()
        .await
        .unwrap();
    assert_eq!(malformed.status(), 400);
    assert_eq!(market.get("/v1/providers").await["providers"], serde_json::json!([]));
    let wrong_key = market.cli(&["list", "--api-key", "zk-wrong"]).await;
    assert_eq!(wrong_key.status.code(), Some(3), "{}", said(&wrong_key));
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let out = market.cli(&["list", "--relay", &nowhere]).await;
    assert_eq!(out.status.code(), Some(4), "{}", said(&out));
}

#[tokio::test]
async fn the_agent_and_the_client_speak_tls() {
    let market = Market::new();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(market.path("relay.crt"), certified.cert.pem()).unwrap();
    std::fs::write(market.path("relay.key"), certified.signing_key.serialize_pem()).unwrap();
    let tls_port = free_port();
    let (node_port, listen) = (free_port(), format!("127.0.0.1:{tls_port}"));
    let (certificate, key) = (market.path("relay.crt"), market.path("relay.key"));
    let _node = market.node("node", node_port, &["--ca-file", certificate.to_str().unwrap()]).await;
    let _relay = market
        .relay(&[
            "--tls-listen",
            &listen,
            "--tls-cert",
            certificate.to_str().unwrap(),
            "--tls-key",
            key.to_str().unwrap(),
            "--public-url",
            &format!("wss://localhost:{tls_port}"),
        ])
        .await;
    let mut agent = std::process::Command::new(system_tests::program("compute-agent"));
    agent
        .args(["--relay", &format!("wss://localhost:{tls_port}/v1/provider/connect"), "--relay-id", "hz-1"])
        .args(["--compute-url", &format!("http://127.0.0.1:{node_port}")])
        .arg("--compute-token-file")
        .arg(market.path("node.token"))
        .arg("--data")
        .arg(market.path("agent"))
        .arg("--ca-file")
        .arg(&certificate)
        .env("PROVIDER_PRIVATE_KEY", PROVIDER_KEYS[0]);
    let _agent = system_tests::Process::start(market.folder.path(), "agent", agent);
    market.providers(1).await;
    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    std::fs::write(market.path("input.txt"), "over tls").unwrap();
    let (model, input) = (market.path("upper.wasm"), market.path("input.txt"));
    let out = market
        .cli(&[
            "run",
            "--relay",
            &format!("https://localhost:{tls_port}"),
            "--ca-file",
            certificate.to_str().unwrap(),
            "--model",
            model.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--poll",
        ])
        .await;
    assert!(out.status.success(), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stdout).contains("OVER TLS"), "{}", said(&out));
}
