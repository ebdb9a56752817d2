//! What one provider did, for people and for programs.

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::program::{cli, code, json as parsed, said, stderr, stdout};
use crate::support::API_KEY;

const PROVIDER: &str = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A";

fn node(digit: u8) -> String {
    format!("0x{}", digit.to_string().repeat(64))
}

fn report() -> Value {
    let uptime = |up: u64| json!({ "up_secs": up, "observed_secs": 3600, "uptime_bps": up * 10_000 / 3600 });
    let none = json!({
        "accepted": 0, "proven": 0, "failed": 0, "timed_out": 0, "lost": 0, "cancelled": 0, "running": 0,
    });
    let host = |digit: u8, up: u64, reconnects: u64| json!({ "node_id": node(digit), "uptime": uptime(up), "connects": 1, "reconnects": reconnects });
    json!({ "provider": PROVIDER, "providers": [], "as_of": "2026-11-24T05:00:00Z", "windows": [
        {
            "window_secs": 3600, "complete": true, "uptime": uptime(3555), "connects": 3, "reconnects": 2,
            "attempts": {
                "accepted": 9, "proven": 4, "failed": 1, "timed_out": 2, "lost": 1, "cancelled": 0, "running": 1,
            },
            "dispatch_ms": { "count": 9, "median": 12, "p99": 240 }, "run_secs": { "count": 4, "median": 3, "p99": 8 },
            "hosts": [host(1, 3555, 2), host(2, 36, 1)],
        },
        {
            "window_secs": 86_400, "complete": false, "uptime": uptime(0), "connects": 1, "reconnects": 0,
            "attempts": none, "hosts": [],
        },
    ] })
}

fn sessions() -> Value {
    json!({ "next_cursor": "older", "sessions": [
        {
            "session_id": "b", "node_id": node(1), "relay_id": "hz-1", "generation": 2,
            "connected_at": "2026-11-24T04:00:45Z", "resumed_attempts": 1, "lost_attempts": 1,
        },
        {
            "session_id": "a", "node_id": node(1), "relay_id": "hz-1", "generation": 1,
            "connected_at": "2026-11-24T03:00:00Z", "disconnected_at": "2026-11-24T04:00:00Z",
            "reason": "no word for 15 s\u{1b}[31m",
        },
    ] })
}

#[tokio::test]
async fn a_providers_record_is_shown() {
    let router = Router::new()
        .route("/v1/providers/{address}", get(async || Json(report())))
        .route("/v1/providers/{address}/sessions", get(async || Json(sessions())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let home = tempfile::tempdir().unwrap();
    let environment = [("ZORAI_RELAY", url.as_str()), ("ZORAI_AI_API_KEY", API_KEY)];

    let out = cli(home.path(), &["providers", "show", PROVIDER], &environment, b"").await;
    let (first, second) = (node(1), node(2));
    let lines = [
        "last hour  up 98.75 % (3555 of 3600 s)  3 connections, 2 of them again",
        "  attempts: 9 accepted, 4 proven, 1 failed, 2 timed out, 1 lost, 0 cancelled, 1 running",
        "  dispatch: median 12 ms, p99 240 ms; run: median 3 s, p99 8 s",
        &format!("  host {first}  up 98.75 % (3555 of 3600 s)  connected again 2 times"),
        &format!("  host {second}  up 1.00 % (36 of 3600 s)  connected again 1 time"),
        "last 24 h  up 0.00 % (0 of 3600 s)  1 connection  (not all of it was counted)",
        "  attempts: 0 accepted, 0 proven, 0 failed, 0 timed out, 0 lost, 0 cancelled, 0 running",
        "  dispatch: none; run: none",
        &format!("{first}  #2  since 2026-11-24T04:00:45Z  online  1 attempt resumed, 1 lost"),
        &format!(
            "{first}  #1  since 2026-11-24T03:00:00Z  until 2026-11-24T04:00:00Z (no word for 15 s[31m)"
        ),
    ];
    assert_eq!((code(&out), stdout(&out).lines().collect::<Vec<_>>()), (0, lines.to_vec()), "{}", said(&out));
    assert_eq!(stderr(&out), "there are older connections\n");

    let out = cli(home.path(), &["providers", "show", PROVIDER, "--json"], &environment, b"").await;
    let shown = parsed(&out);
    assert_eq!(shown["report"]["windows"][0]["attempts"]["proven"], 4);
    assert_eq!(shown["sessions"][1]["disconnected_at"], "2026-11-24T04:00:00Z");
}
