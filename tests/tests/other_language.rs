//! The example client in Python, written from `docs/protocol.md` alone, against the real market.

use system_tests::{API_KEY, Market, PROVIDER_KEYS, free_port, said, upper_case};

#[tokio::test]
async fn a_client_in_python_publishes_a_task_and_verifies_its_proof() {
    let market = Market::new();
    let node_port = free_port();
    let _node = market.node("node", node_port, &[]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    std::fs::write(market.path("input.txt"), "from python").unwrap();
    let out = tokio::process::Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/client.py"))
        .arg(market.url())
        .arg(market.path("upper.wasm"))
        .arg(market.path("input.txt"))
        .env("ZORAI_AI_API_KEY", API_KEY)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&said["status"], &said["result"]), (&"completed".into(), &"FROM PYTHON".into()), "{said:#}");
}
