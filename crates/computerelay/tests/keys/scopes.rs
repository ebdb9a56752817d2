//! What keys reach, and for how long.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use wallet::Wallet;

use crate::rig::{Follower, KEY, Rig, answer, assert_error, now, signed, task};

async fn ask(rig: &Rig, method: Method, path: &str, key: &str) -> (StatusCode, Value) {
    answer(rig.bare(method, path).bearer_auth(key)).await
}

fn with_scope(scope: &str) -> Value {
    json!({ "name": scope, "scopes": [scope] })
}

#[tokio::test]
async fn a_key_is_shown_once_and_found_again_after_a_restart() {
    let rig = Rig::start().await;
    let body = json!({ "name": "alice", "scopes": ["tasks:read", "tasks:write"], "requests_per_minute": 100,
                       "tokens_per_minute": 5, "inference_timeout_secs": 60, "first_byte_timeout_secs": 20,
                       "token_timeout_secs": 10, "expires_at": "2100-01-01T00:00:00Z" });
    let (status, created) = answer(rig.request(Method::POST, "/v1/keys").json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let (key, id) = (created["key"].as_str().unwrap().to_owned(), created["id"].as_str().unwrap().to_owned());
    assert!(key.starts_with("zk-") && key.len() == 67, "{key}");
    let limits = ["requests_per_minute", "tokens_per_minute"];
    let deadlines = ["inference_timeout_secs", "first_byte_timeout_secs", "token_timeout_secs"];
    for field in ["name", "expires_at"].into_iter().chain(limits).chain(deadlines) {
        assert_eq!(created[field], body[field], "{field}");
    }

    let (_, shown) = rig.get(&format!("/v1/keys/{id}")).await;
    let (_, listed) = rig.get("/v1/keys").await;
    assert_eq!(listed["keys"], json!([shown]));
    assert!(!shown.to_string().contains(&key[3..]) && shown.get("key").is_none(), "{shown}");

    let dir = rig.stop().await;
    for entry in std::fs::read_dir(dir.path().join("store")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let is_inside = bytes.windows(key.len()).any(|window| window == key.as_bytes());
        assert!(!is_inside, "{} holds the key", path.display());
    }
    let rig = Rig::start_in(dir, |config| config.api_keys.clear()).await;
    assert_eq!(ask(&rig, Method::GET, "/v1/tasks", &key).await.0, StatusCode::OK);
    assert_error(&ask(&rig, Method::GET, "/v1/tasks", KEY).await, 401, "invalid_api_key");
    rig.stop().await;
}

#[tokio::test]
async fn each_scope_reaches_its_own_and_admin_everywhere() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let digest = artifact::Digest::of(b"bytes");
    let calls: [(&str, Method, String, Value); 6] = [
        ("tasks:write", Method::POST, "/v1/tasks".into(), json!(signed(&wallet, &task(&wallet)))),
        ("tasks:write", Method::PUT, format!("/v1/artifacts/{digest}"), Value::Null),
        ("tasks:read", Method::GET, "/v1/tasks".into(), Value::Null),
        ("tasks:read", Method::HEAD, format!("/v1/artifacts/{digest}"), Value::Null),
        ("admin", Method::GET, "/v1/keys".into(), Value::Null),
        ("admin", Method::POST, "/v1/keys".into(), with_scope("inference")),
    ];
    for scope in ["tasks:write", "tasks:read", "inference", "admin"] {
        let key = rig.make_key(&with_scope(scope)).await;
        for (needed, method, path, body) in &calls {
            let mut request = rig.bare(method.clone(), path).bearer_auth(&key);
            request = if *method == Method::PUT { request.body("bytes") } else { request.json(body) };
            let response = request.send().await.unwrap();
            let status = response.status();
            if scope == *needed || scope == "admin" {
                let is_done = status.is_success() || status == StatusCode::NOT_FOUND;
                assert!(is_done, "{scope} {method} {path}: {status}");
            } else {
                assert_eq!(status, StatusCode::FORBIDDEN, "{scope} {method} {path}");
                let text = response.text().await.unwrap();
                assert!(*method == Method::HEAD || text.contains(needed), "{text}");
            }
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn tasks_are_their_own_keys_and_every_admins() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let (one, other) = (rig.other_key().await, rig.other_key().await);
    let request = rig.bare(Method::POST, "/v1/tasks").bearer_auth(&one);
    let (_, published) = answer(request.json(&signed(&wallet, &task(&wallet)))).await;
    let path = format!("/v1/tasks/{}", published["task_id"].as_str().unwrap());
    for (key, is_whole) in [(&*one, true), (&*other, false), (KEY, true)] {
        let (status, view) = ask(&rig, Method::GET, &path, key).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(view.to_string().contains("secret-input"), is_whole, "{view}");
        let (status, _) = ask(&rig, Method::GET, &format!("{path}/events"), key).await;
        assert_eq!(status == StatusCode::OK, is_whole);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once() {
    let rig = Rig::start().await;
    let key = rig.other_key().await;
    assert_eq!(ask(&rig, Method::GET, "/v1/tasks", &key).await.0, StatusCode::OK);
    let id = rig.get("/v1/keys").await.1["keys"][0]["id"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        let (status, view) = answer(rig.request(Method::DELETE, &format!("/v1/keys/{id}"))).await;
        assert_eq!(status, StatusCode::OK);
        assert!(view["revoked_at"].is_string(), "{view}");
    }
    let refused = ask(&rig, Method::GET, "/v1/tasks", &key).await;
    assert_error(&refused, 401, "invalid_api_key");
    assert!(refused.1.to_string().contains("revoked"), "{}", refused.1);
    let unknown = answer(rig.request(Method::DELETE, "/v1/keys/0123456789abcdef")).await;
    assert_error(&unknown, 404, "not_found");
    assert_error(&answer(rig.request(Method::DELETE, "/v1/keys/ALICE")).await, 400, "malformed_request");
    rig.stop().await;
}

#[tokio::test]
async fn streams_end_with_their_key() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let scopes = json!(["tasks:write", "tasks:read"]);
    let revoked = rig.make_key(&json!({ "name": "revoked", "scopes": scopes })).await;
    let expires_at = now().plus(3);
    let expiring = json!({ "name": "expiring", "scopes": scopes, "expires_at": expires_at });
    let expiring = rig.make_key(&expiring).await;
    let request = rig.bare(Method::POST, "/v1/tasks").bearer_auth(&revoked);
    let (_, published) = answer(request.json(&signed(&wallet, &task(&wallet)))).await;
    let of_task = format!("/v1/tasks/{}/events", published["task_id"].as_str().unwrap());
    let of_all = format!("/v1/events?requester={}", wallet.address());
    let mut followers = Vec::new();
    for (path, key) in
        [(&of_all, &revoked), (&of_task, &revoked), (&of_all, &expiring), (&of_task, &KEY.to_owned())]
    {
        let request = rig.bare(Method::GET, path).bearer_auth(key).header("accept", "text/event-stream");
        let mut follower = Follower::of(request).await;
        assert!(follower.next().await.is_some());
        followers.push(follower);
    }
    let (_, listed) = rig.get("/v1/keys").await;
    let keys = listed["keys"].as_array().unwrap();
    let id = keys.iter().find(|key| key["name"] == "revoked").unwrap()["id"].as_str().unwrap();
    assert_eq!(answer(rig.request(Method::DELETE, &format!("/v1/keys/{id}"))).await.0, StatusCode::OK);
    let mut others = followers.split_off(3);
    for mut follower in followers {
        assert!(follower.next().await.is_none(), "its key is good no more");
    }
    assert!(now() >= expires_at);
    let cancel = taskmarket::CancelTask {
        task_id: published["task_id"].as_str().unwrap().parse().unwrap(),
        issued_at: now(),
    };
    rig.mutate(&wallet, published["task_id"].as_str().unwrap(), "cancel", &cancel).await;
    assert_eq!(others[0].next().await.unwrap().name, "cancelled", "another key's stream goes on");
    rig.stop().await;
}

#[tokio::test]
async fn a_key_that_expires_is_refused_from_then_on() {
    let rig = Rig::start().await;
    let at = now().plus(2);
    let body = json!({ "name": "soon", "scopes": ["tasks:read"], "expires_at": at });
    let key = rig.make_key(&body).await;
    let refused = loop {
        let asked = ask(&rig, Method::GET, "/v1/tasks", &key).await;
        if asked.0 != StatusCode::OK {
            break asked;
        }
        assert!(now() <= at.plus(1), "it is good for longer than it says");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(now() >= at, "it is good for as long as it says");
    assert_error(&refused, 401, "invalid_api_key");
    assert!(refused.1.to_string().contains("expired"), "{}", refused.1);
    rig.stop().await;
}

#[tokio::test]
async fn keys_of_the_wrong_form_are_not_made() {
    let rig = Rig::start().await;
    for (field, body) in [
        ("name", json!({ "name": "", "scopes": ["admin"] })),
        ("name", json!({ "name": "a\nb", "scopes": ["admin"] })),
        ("name", json!({ "name": "a".repeat(129), "scopes": ["admin"] })),
        ("scopes", json!({ "name": "a", "scopes": [] })),
        ("scopes", json!({ "name": "a", "scopes": ["root"] })),
        ("expires_at", json!({ "name": "a", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z" })),
        ("requests_per_minute", json!({ "name": "a", "scopes": ["admin"], "requests_per_minute": 0 })),
        ("tokens_per_minute", json!({ "name": "a", "scopes": ["admin"], "tokens_per_minute": 0 })),
        ("inference_timeout_secs", json!({ "name": "a", "scopes": ["admin"], "inference_timeout_secs": 0 })),
        (
            "first_byte_timeout_secs",
            json!({ "name": "a", "scopes": ["admin"], "first_byte_timeout_secs": 0 }),
        ),
        ("token_timeout_secs", json!({ "name": "a", "scopes": ["admin"], "token_timeout_secs": 0 })),
    ] {
        let refused = answer(rig.request(Method::POST, "/v1/keys").json(&body)).await;
        assert_error(&refused, 400, "invalid_field");
        assert_eq!(refused.1["error"]["param"], field);
    }
    for body in [
        json!({}),
        json!({ "name": "a", "scopes": "admin" }),
        json!({ "name": "a", "scopes": ["admin"], "x": 1 }),
    ] {
        assert_error(
            &answer(rig.request(Method::POST, "/v1/keys").json(&body)).await,
            400,
            "malformed_request",
        );
    }
    let (_, listed) = rig.get("/v1/keys").await;
    assert_eq!(listed["keys"], json!([]));
    rig.stop().await;
}

#[tokio::test]
async fn keys_are_listed_in_pages() {
    let rig = Rig::start().await;
    for _ in 0..3 {
        rig.other_key().await;
    }
    let (_, first) = rig.get("/v1/keys?limit=2").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, second) = rig.get(&format!("/v1/keys?limit=2&cursor={cursor}")).await;
    let ids: Vec<_> = [&first, &second]
        .into_iter()
        .flat_map(|page| page["keys"].as_array().unwrap())
        .map(|key| key["id"].as_str().unwrap())
        .collect();
    assert!(ids.is_sorted() && ids.len() == 3, "{ids:?}");
    assert_eq!(second["next_cursor"], Value::Null);
    for query in ["limit=0", "limit=1001"] {
        assert_error(&rig.get(&format!("/v1/keys?{query}")).await, 400, "invalid_field");
    }
    assert_error(&rig.get("/v1/keys?cursor=x").await, 400, "malformed_request");
    rig.stop().await;
}
