//! Relays that share one PostgreSQL database.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../api/agent.rs"]
#[allow(dead_code, reason = "shared with the tests of the API")]
mod agent;
#[path = "../api/rig.rs"]
#[allow(dead_code, reason = "shared with the tests of the API")]
mod rig;
#[path = "../../../store/tests/store/server.rs"]
#[allow(dead_code, reason = "shared with the tests of the store")]
mod server;

use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::Method;
use store::{NewSession, Postgres, Sessions};
use taskmarket::{Bytes32, CancelTask, TaskId, Timestamp};
use tempfile::TempDir;
use wallet::Wallet;

use crate::agent::Agent;
use crate::rig::{Follower, Rig, now};
use crate::server::{Durability, Server};

/// How long it may take until a follower hears of what another relay commits. One that only looks by itself does so every 15 s.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn relay(url: &str, id: &str) -> Rig {
    let dir = TempDir::new().unwrap();
    let artifacts = dir.path().join("artifacts").to_str().unwrap().parse().unwrap();
    Rig::start_in(dir, |config| {
        config.relay_id = id.to_owned();
        config.store = url.parse().unwrap();
        config.artifacts = artifacts;
    })
    .await
}

async fn cancel(rig: &Rig, wallet: &Wallet, id: &str) {
    let cancel = CancelTask { task_id: id.parse::<TaskId>().unwrap(), issued_at: now() };
    let (status, body) = rig.mutate(wallet, id, "cancel", &cancel).await;
    assert_eq!(status, 200, "{body}");
}

/// What a follower is told next, and how long that took.
async fn next(follower: &mut Follower, since: Instant) -> (String, Duration) {
    let name = follower.next().await.unwrap().name;
    (name, since.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hears_at_once_of_what_another_relay_commits() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let store = Postgres::connect(&url).await.unwrap();
    let lives = async |id: &str| {
        let long_ago = Timestamp::from_unix(now().unix() - 3600);
        while !store.living_relays(long_ago).await.unwrap().iter().any(|living| living == id) {
            tokio::task::yield_now().await;
        }
    };
    let one = relay(&url, "one").await;
    tokio::time::timeout(rig::PATIENCE, lives("one")).await.unwrap();
    // It finds the first one alive.
    let two = relay(&url, "two").await;
    tokio::time::timeout(rig::PATIENCE, lives("two")).await.unwrap();
    let wallet = Wallet::random();
    let path = format!("/v1/events?requester={}", wallet.address());
    let request = two.request(Method::GET, &path).header("accept", "text/event-stream");
    let mut follower = Follower::of(request).await;
    assert_eq!(follower.next().await.unwrap().name, "following");
    for _ in 0..3 {
        let since = Instant::now();
        let id = one.publish_new(&wallet).await;
        let (name, took) = next(&mut follower, since).await;
        assert_eq!(name, "published");
        assert!(took < AT_ONCE, "{took:?}");
        let since = Instant::now();
        cancel(&one, &wallet, &id).await;
        let (name, took) = next(&mut follower, since).await;
        assert_eq!(name, "cancelled");
        assert!(took < AT_ONCE, "{took:?}");
    }
    // And of what is committed here, once.
    let id = two.publish_new(&wallet).await;
    cancel(&one, &wallet, &id).await;
    assert_eq!(next(&mut follower, Instant::now()).await.0, "published");
    assert_eq!(next(&mut follower, Instant::now()).await.0, "cancelled");
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_relay_left_open_is_ended_by_another() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let store = Postgres::connect(&url).await.unwrap();
    let provider = Wallet::random().address();
    let (began, died) = (now().unix() - 900, now().unix() - 300);
    let session = NewSession {
        session_id: "left".to_owned(),
        provider,
        node_id: Bytes32::default(),
        relay_id: "killed".to_owned(),
        metadata_json: "{}".to_owned(),
        at: Timestamp::from_unix(began),
    };
    store.open_session(session).await.unwrap();
    store.relay_lives("killed", Timestamp::from_unix(died)).await.unwrap();
    let other = relay(&url, "other").await;
    let ended = async {
        loop {
            let newest = store.newest_session(provider, Bytes32::default()).await.unwrap().unwrap();
            if let Some((at, _)) = newest.ended {
                return at;
            }
            tokio::task::yield_now().await;
        }
    };
    let at = tokio::time::timeout(rig::PATIENCE, ended).await.expect("it is ended");
    assert_eq!(at, Timestamp::from_unix(died), "its host was connected for ten minutes, and not for longer");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_connect_again_whose_sessions_another_relay_ended_and_no_others() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let store = Postgres::connect(&url).await.unwrap();
    let (one, two) = (relay(&url, "one").await, relay(&url, "two").await);
    let mut host = Agent::connect(&one).await;
    let newest = async |agent: &Agent| {
        let node_id = Bytes32(taskmarket::B256::repeat_byte(7));
        store.newest_session(agent.wallet.address(), node_id).await.unwrap().unwrap()
    };
    assert_eq!(newest(&host).await.ended, None);
    // By no clock is it dead, but so it looked to another.
    let later = Timestamp::from_unix(now().unix() + 3600);
    let ended =
        store.close_sessions_of_silent(later, "the relay fell silent without closing it").await.unwrap();
    assert_eq!(ended, 1);
    let mut other = Agent::connect(&one).await;
    let closed = tokio::time::timeout(rig::PATIENCE, host.taken.recv()).await.expect("it is cut off");
    assert!(closed.is_none());
    let still = tokio::time::timeout(Duration::from_secs(1), other.taken.recv()).await;
    assert!(still.is_err() && newest(&other).await.ended.is_none(), "its session lasts");
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_id_another_took_ends() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let rig = relay(&url, "ours").await;
    assert_eq!(rig.get("/v1/tasks").await.0, 200);
    let psql = |sql: &str| {
        let mut psql = server.client("psql");
        psql.args([url.as_str(), "--no-align", "--tuples-only", "--command", sql]).stdin(Stdio::null());
        psql
    };
    // Another waits for the id, so that it is faster than the relay once that is cut off.
    let wait = "SELECT pg_advisory_lock(hashtextextended('ours', 7206103)), pg_sleep(60)";
    let mut other = psql(wait).stdout(Stdio::null()).spawn().unwrap();
    let cut =
        "SELECT pg_terminate_backend(held.pid) FROM pg_locks held JOIN pg_locks waits USING (classid, objid)
               WHERE held.locktype = 'advisory' AND held.granted AND NOT waits.granted";
    while psql(cut).output().unwrap().stdout.trim_ascii() != b"t" {
        tokio::task::yield_now().await;
    }
    let ended = tokio::time::timeout(rig::PATIENCE, rig.running).await.expect("it ends").unwrap();
    assert!(ended.unwrap_err().to_string().contains("another relay of this store"), "and says why");
    other.kill().unwrap();
    other.wait().unwrap();
}
