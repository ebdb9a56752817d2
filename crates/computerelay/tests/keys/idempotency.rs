//! POSTs that are sent again.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{Begun, Idempotency, KeyId, Sqlite, Store};
use taskmarket::Timestamp;
use tempfile::TempDir;
use wallet::Wallet;

use crate::rig::{KEY, Rig, answer, assert_error, now, signed, task};

const HEADER: &str = "idempotency-key";

fn is_replayed(response: &Response) -> bool {
    response.headers().get("idempotency-replayed").is_some_and(|value| value == "true")
}

fn post(rig: &Rig, key: &str, body: &Value) -> RequestBuilder {
    rig.request(Method::POST, "/v1/tasks").header(HEADER, key).json(body)
}

#[tokio::test]
async fn a_request_that_is_sent_again_gets_the_first_answer() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let body = json!(signed(&wallet, &task(&wallet)));
    let first = post(&rig, "one", &body).send().await.unwrap();
    assert_eq!((first.status(), is_replayed(&first)), (StatusCode::CREATED, false));
    let kind = first.headers()["content-type"].clone();
    let first = first.bytes().await.unwrap();

    let dir = rig.stop().await;
    let rig = Rig::start_in(dir, |_| {}).await;
    for _ in 0..2 {
        let again = post(&rig, "one", &body).send().await.unwrap();
        // Without the key it would be 200: the task is there.
        assert_eq!((again.status(), is_replayed(&again)), (StatusCode::CREATED, true));
        assert_eq!(again.headers()["content-type"], kind);
        assert_eq!(again.bytes().await.unwrap(), first);
    }
    let other = post(&rig, "two", &body).send().await.unwrap();
    assert_eq!((other.status(), is_replayed(&other)), (StatusCode::OK, false));
    rig.stop().await;
}

#[tokio::test]
async fn refusals_are_answers_too() {
    let rig = Rig::start().await;
    let first = answer(post(&rig, "one", &json!({}))).await;
    assert_error(&first, 400, "malformed_request");
    let again = post(&rig, "one", &json!({})).send().await.unwrap();
    assert!(is_replayed(&again));
    assert_eq!((again.status(), again.json::<Value>().await.unwrap()), first);
    rig.stop().await;
}

#[tokio::test]
async fn another_request_under_the_same_key_is_a_mistake() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let body = json!(signed(&wallet, &task(&wallet)));
    assert_eq!(answer(post(&rig, "one", &body)).await.0, StatusCode::CREATED);
    let changed = json!(signed(&wallet, &task(&wallet)));
    let refused = answer(post(&rig, "one", &changed)).await;
    assert_error(&refused, 422, "idempotency_mismatch");
    assert_eq!(refused.1["error"]["param"], HEADER);
    let elsewhere = rig.request(Method::POST, "/v1/keys").header(HEADER, "one").json(&body);
    assert_error(&answer(elsewhere).await, 422, "idempotency_mismatch");
    let (_, listed) = rig.get("/v1/tasks").await;
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 1, "the other task was not published");

    let other_key = rig.other_key().await;
    let others =
        rig.bare(Method::POST, "/v1/tasks").bearer_auth(other_key).header(HEADER, "one").json(&changed);
    assert_eq!(answer(others).await.0, StatusCode::CREATED, "each API key has idempotency keys of its own");
    rig.stop().await;
}

#[tokio::test]
async fn of_many_at_once_one_is_carried_out() {
    let rig = Rig::start().await;
    let body = json!({ "name": "a", "scopes": ["inference"] });
    let requests = (0..16).map(|_| {
        tokio::spawn(rig.request(Method::POST, "/v1/keys").header(HEADER, "one").json(&body).send())
    });
    let mut first = 0;
    for request in requests.collect::<Vec<_>>() {
        let response = request.await.unwrap().unwrap();
        match response.status() {
            StatusCode::CREATED => first += usize::from(!is_replayed(&response)),
            StatusCode::CONFLICT => assert!(response.headers().contains_key("retry-after")),
            other => panic!("{other}"),
        }
    }
    assert_eq!(first, 1);
    let (_, listed) = rig.get("/v1/keys").await;
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1);
    rig.stop().await;
}

/// Leaves what a relay leaves that is killed in the middle of a request.
async fn leave_mark(dir: &TempDir, key: &str, body: &Value, at: Timestamp) {
    let store = Sqlite::open(dir.path().join("store")).await.unwrap();
    let mut hasher = Sha256::new();
    hasher.update(b"POST\0/v1/tasks\0");
    hasher.update(serde_json::to_vec(body).unwrap());
    let begun = store.begin(&KeyId::of_api_key(KEY), key, hasher.finalize().into(), at).await.unwrap();
    assert_eq!(begun, Begun::New);
    store.close().await;
}

#[tokio::test]
async fn a_killed_relay_leaves_no_key_stuck() {
    let (dir, wallet) = (TempDir::new().unwrap(), Wallet::random());
    let body = json!(signed(&wallet, &task(&wallet)));
    let long_ago = Timestamp::from_unix(now().unix() - store::IN_FLIGHT_SECS);
    leave_mark(&dir, "fresh", &body, now().plus(60)).await;
    leave_mark(&dir, "old", &body, long_ago).await;
    let rig = Rig::start_in(dir, |_| {}).await;

    let waiting = post(&rig, "fresh", &body).send().await.unwrap();
    assert_eq!(waiting.headers()["retry-after"], "1");
    assert_eq!(waiting.status(), StatusCode::CONFLICT);
    let waiting: Value = waiting.json().await.unwrap();
    assert_eq!(waiting["error"]["code"], "conflict");
    assert_eq!(answer(post(&rig, "old", &body)).await.0, StatusCode::CREATED);
    rig.stop().await;
}

#[tokio::test]
async fn keys_of_the_wrong_form_are_refused() {
    let rig = Rig::start().await;
    let longest = "k".repeat(255);
    assert_error(&answer(post(&rig, &longest, &json!({}))).await, 400, "malformed_request");
    for wrong in ["", "two words", &"k".repeat(256), "\u{e9}"] {
        let refused = answer(post(&rig, wrong, &json!({}))).await;
        assert_error(&refused, 400, "malformed_request");
        assert_eq!(refused.1["error"]["param"], HEADER, "{wrong:?}");
    }
    let twice = post(&rig, "one", &json!({})).header(HEADER, "two");
    assert_eq!(answer(twice).await.1["error"]["param"], HEADER);
    rig.stop().await;
}

#[tokio::test]
async fn without_an_api_key_nothing_is_kept() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    for _ in 0..2 {
        let path = format!("/v1/tasks/{id}/cancel");
        let response =
            rig.bare(Method::POST, &path).header(HEADER, "one").json(&json!({})).send().await.unwrap();
        assert_eq!((response.status(), is_replayed(&response)), (StatusCode::BAD_REQUEST, false));
    }
    let unknown =
        rig.bare(Method::POST, "/v1/tasks").bearer_auth("zk-x").header(HEADER, "one").json(&json!({}));
    assert_error(&answer(unknown).await, 401, "invalid_api_key");
    rig.stop().await;
}

#[tokio::test]
async fn what_json_rpc_reads_is_not_kept() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let call = async |key: &str, body: Value| {
        let request = rig.request(Method::POST, "/rpc").header(HEADER, key).json(&body);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        is_replayed(&response)
    };
    let read = json!({ "jsonrpc": "2.0", "id": 1, "method": "zor_getOpenTasks" });
    assert!(!call("one", read.clone()).await && !call("one", read.clone()).await);
    let body = signed(&wallet, &task(&wallet));
    let params = json!({ "task": body.task, "signature": body.signature });
    let write = json!({ "jsonrpc": "2.0", "id": 1, "method": "zor_publishTask", "params": params });
    let batch = json!([read, write]);
    assert!(!call("two", batch.clone()).await && call("two", batch).await);
    rig.stop().await;
}

#[tokio::test]
async fn a_new_api_key_is_not_kept() {
    let rig = Rig::start().await;
    let body = json!({ "name": "a", "scopes": ["inference"] });
    let create = || rig.request(Method::POST, "/v1/keys").header(HEADER, "one").json(&body);
    let (_, first) = answer(create()).await;
    let (status, again) = answer(create()).await;
    assert_eq!((status, &again["id"], &again["key"]), (StatusCode::CREATED, &first["id"], &Value::Null));
    assert!(first["key"].is_string());
    rig.stop().await;
}

#[tokio::test]
async fn a_request_goes_on_when_its_client_leaves() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let body = json!(signed(&wallet, &task(&wallet)));
    // Whenever it leaves, the request either was not begun or ends with an answer that is kept.
    for micros in [0, 100, 300, 1000, 3000, 10_000] {
        let key = format!("left-{micros}");
        let _ = tokio::time::timeout(Duration::from_micros(micros), post(&rig, &key, &body).send()).await;
        let ended = async {
            loop {
                let (status, view) = answer(post(&rig, &key, &body)).await;
                if status != StatusCode::CONFLICT {
                    return (status, view);
                }
            }
        };
        let (status, view) = tokio::time::timeout(crate::rig::PATIENCE, ended).await.unwrap();
        assert!(status.is_success(), "{status} {view}");
    }
    rig.stop().await;
}
