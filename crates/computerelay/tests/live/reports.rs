//! Reports on providers, from what really happened.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use rpc::link::HeldAttempt;
use rpc::relay::{ProviderReport, SessionList};
use rpc::tasks::{Phase, Progress};
use serde_json::Value;
use store::{NewSession, Sessions as _, Sqlite, Store as _};
use taskmarket::{Address, B256, Bytes32, Timestamp};
use tempfile::TempDir;
use wallet::Wallet;

use crate::agent::Agent;
use crate::rig::{PATIENCE, Rig, assert_error, now};
use crate::work::prove;

async fn report(rig: &Rig, provider: Address) -> ProviderReport {
    let (status, value) = rig.get(&format!("/v1/providers/{provider}")).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    serde_json::from_value(value).unwrap()
}

async fn sessions(rig: &Rig, provider: Address, query: &str) -> SessionList {
    let (status, value) = rig.get(&format!("/v1/providers/{provider}/sessions{query}")).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    serde_json::from_value(value).unwrap()
}

/// Waits until the provider's last session has ended.
async fn wait_for_end(rig: &Rig, provider: Address) {
    let waiting = async {
        while sessions(rig, provider, "").await.sessions[0].disconnected_at.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn a_report_counts_what_happened() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let provider = agent.wallet.address();
    let id = rig.publish_new(&wallet).await;
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    let first = report(&rig, provider).await;
    assert_eq!(
        first.windows.iter().map(|window| window.window_secs).collect::<Vec<_>>(),
        [3600, 86_400, 2_592_000]
    );
    assert_eq!((first.windows[0].attempts.accepted, first.windows[0].attempts.running), (1, 1));

    // The host comes back with the attempt, and proves it.
    let held = Progress { attempt: 1, phase: Phase::Running, percent: None };
    let held = HeldAttempt { task_id: taken.task_id, progress: held };
    let agent = Agent::connect_as(&rig, Arc::clone(&agent.wallet), vec![held]).await;
    prove(&rig, &agent, &taken).await;
    let after = report(&rig, provider).await;
    assert_eq!((after.provider, after.providers.len()), (provider, 1));
    for window in &after.windows {
        assert!(window.complete);
        assert_eq!((window.connects, window.reconnects), (2, 1));
        assert_eq!((window.attempts.proven, window.attempts.running, window.attempts.lost), (1, 0, 0));
        assert_eq!(window.run_secs.unwrap().count, 1);
        let dispatch = window.dispatch_ms.unwrap();
        assert!(dispatch.count == 1 && dispatch.median < PATIENCE.as_millis() as u64, "{dispatch:?}");
        assert!(window.uptime.up_secs <= window.uptime.observed_secs);
        assert_eq!(window.hosts.len(), 1);
    }
    let list = sessions(&rig, provider, "").await.sessions;
    assert_eq!(list.iter().map(|session| session.generation).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((list[0].resumed_attempts, list[0].lost_attempts), (1, 0));
    assert_eq!((list[1].resumed_attempts, list[1].reason.as_deref()), (0, Some("superseded")));
    rig.stop().await;
}

#[tokio::test]
async fn what_a_lost_session_took_along_is_counted_and_kept() {
    let change = |config: &mut computerelay::Config| config.session_grace = Duration::ZERO;
    let rig = Rig::start_in(TempDir::new().unwrap(), change).await;
    let mut agent = Agent::connect(&rig).await;
    let provider = agent.wallet.address();
    let id = rig.publish_new(&Wallet::random()).await;
    agent.next().await;
    rig.wait_for(&id, "accepted").await;
    drop(agent);
    let mut follower = rig.follow(&id, None).await;
    while follower.next().await.unwrap().name != "released" {}
    wait_for_end(&rig, provider).await;

    // Durable: the next relay on the same store says the same.
    let rig = Rig::start_in(rig.stop().await, change).await;
    let report = report(&rig, provider).await;
    assert!(report.providers.is_empty(), "nobody is here now");
    assert_eq!((report.windows[1].attempts.lost, report.windows[1].attempts.running), (1, 0));
    let list = sessions(&rig, provider, "").await.sessions;
    assert_eq!((list.len(), list[0].lost_attempts), (1, 1));
    rig.stop().await;
}

#[tokio::test]
async fn sessions_are_paged() {
    let rig = Rig::start().await;
    let mut agents = vec![Agent::connect(&rig).await];
    let wallet = Arc::clone(&agents[0].wallet);
    for _ in 0..4 {
        agents.push(Agent::connect_as(&rig, Arc::clone(&wallet), Vec::new()).await);
    }
    let (mut query, mut seen) = ("?limit=2".to_owned(), Vec::new());
    loop {
        let page = sessions(&rig, wallet.address(), &query).await;
        assert!(page.sessions.len() <= 2);
        seen.extend(page.sessions.iter().map(|session| session.generation));
        let Some(cursor) = page.next_cursor else { break };
        query = format!("?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, [5, 4, 3, 2, 1]);
    let path = format!("/v1/providers/{}/sessions", wallet.address());
    assert_error(&rig.get(&format!("{path}?limit=0")).await, 400, "invalid_field");
    assert_error(&rig.get(&format!("{path}?limit=1001")).await, 400, "invalid_field");
    assert_error(&rig.get(&format!("{path}?cursor=x")).await, 400, "malformed_request");
    let nobody = rig.get(&format!("/v1/providers/{}", Address::repeat_byte(9))).await;
    assert_error(&nobody, 404, "not_found");
    assert_eq!(
        rig.get(&path.replace("/sessions", "/sessions?limit=3")).await.1["sessions"].as_array().map(Vec::len),
        Some(3)
    );
    let _: Value = rig.get("/v1/providers").await.1;
    rig.stop().await;
}

#[tokio::test]
async fn providers_that_are_online_are_paged() {
    let rig = Rig::start().await;
    let mut agents = Vec::new();
    for _ in 0..5 {
        agents.push(Agent::connect(&rig).await);
    }
    let page = async |query: &str| {
        let (status, page) = rig.get(&format!("/v1/providers{query}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let hosts = page["providers"].as_array().unwrap().iter();
        let addresses: Vec<Address> =
            hosts.map(|host| host["provider"].as_str().unwrap().parse().unwrap()).collect();
        (addresses, page["next_cursor"].as_str().map(str::to_owned))
    };
    let online = async |count| {
        let waiting = async {
            loop {
                let (all, next) = page("").await;
                if all.len() == count {
                    return assert_eq!(next, None);
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    };
    online(5).await;
    let mut expected: Vec<_> = agents.iter().map(|agent| agent.wallet.address()).collect();
    expected.sort_unstable();

    let (first, cursor) = page("?limit=2").await;
    assert_eq!(first, expected[..2]);
    let cursor = cursor.unwrap();
    // The host that the cursor names leaves; the others come all the same, each once.
    agents.retain(|agent| agent.wallet.address() != expected[1]);
    online(4).await;
    let (second, next) = page(&format!("?limit=2&cursor={cursor}")).await;
    assert_eq!(second, expected[2..4]);
    let (last, none) = page(&format!("?limit=2&cursor={}", next.unwrap())).await;
    assert_eq!((&last[..], none), (&expected[4..], None));

    for limit in ["0", "1001"] {
        assert_error(&rig.get(&format!("/v1/providers?limit={limit}")).await, 400, "invalid_field");
    }
    let node = cursor.split_once('-').unwrap().1;
    for wrong in ["", "x", "-", "0x00-0x00", node, &format!("{cursor}0"), &format!("{cursor}-{node}")] {
        let refused = rig.get(&format!("/v1/providers?cursor={wrong}")).await;
        assert_error(&refused, 400, "malformed_request");
        assert_eq!(refused.1["error"]["param"], "cursor", "{wrong}");
    }
    assert_error(&rig.get("/v1/providers?page=2").await, 400, "malformed_request");
    rig.stop().await;
}

#[tokio::test]
async fn sessions_are_forgotten_when_they_have_been_over_for_long() {
    const DAY: u64 = 24 * 60 * 60;
    let dir = TempDir::new().unwrap();
    let wallet = Wallet::random();
    let store = Sqlite::open(dir.path().join("store")).await.unwrap();
    for (session_id, host, days) in [("old", 1, 3), ("recent", 2, 1)] {
        let session = NewSession {
            session_id: session_id.to_owned(),
            provider: wallet.address(),
            node_id: Bytes32(B256::repeat_byte(host)),
            relay_id: "another".to_owned(),
            metadata_json: "{}".to_owned(),
            at: Timestamp::from_unix(now().unix() - days * DAY - 60),
        };
        store.open_session(session).await.unwrap();
        let ended = Timestamp::from_unix(now().unix() - days * DAY);
        store.close_session(session_id, ended, "lost").await.unwrap();
    }
    store.close().await;
    let rig = Rig::start_in(dir, |config| config.keep_sessions = Duration::from_secs(2 * DAY)).await;
    let waiting = async {
        loop {
            let left = sessions(&rig, wallet.address(), "").await.sessions;
            if left.len() == 1 {
                return assert_eq!(left[0].session_id, "recent");
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    rig.stop().await;
}
