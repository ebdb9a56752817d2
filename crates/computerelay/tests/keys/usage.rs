//! What keys are used for, counted.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rig::{Rig, answer, assert_error};

async fn usage(rig: &Rig, key: &str, query: &str) -> (StatusCode, Value) {
    answer(rig.bare(Method::GET, &format!("/v1/usage{query}")).bearer_auth(key)).await
}

/// The requests of a key, over all days of a page.
fn requests(page: &Value, id: &str) -> u64 {
    let rows = page["usage"].as_array().unwrap().iter();
    rows.filter(|row| row["key_id"] == id).map(|row| row["requests"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn requests_are_counted_by_key_and_survive_the_relay() {
    let rig = Rig::start().await;
    let (_, created) =
        answer(rig.request(Method::POST, "/v1/keys").json(&json!({ "name": "a", "scopes": ["inference"] })))
            .await;
    let (key, id) = (created["key"].as_str().unwrap(), created["id"].as_str().unwrap());
    let other = rig.other_key().await;
    for _ in 0..4 {
        let refused = answer(rig.bare(Method::GET, "/v1/tasks").bearer_auth(key)).await;
        assert_eq!(refused.0, StatusCode::FORBIDDEN);
    }
    let (status, page) = usage(&rig, key, "").await;
    assert_eq!((status, requests(&page, id)), (StatusCode::OK, 5), "{page}");
    let day = page["usage"][0]["day"].as_str().unwrap().to_owned();
    assert_eq!(day.len(), 10, "{day}");

    let dir = rig.stop().await;
    let rig = Rig::start_in(dir, |_| {}).await;
    // Yesterday's last minute and today's first may be two days.
    let (_, page) = rig.get(&format!("/v1/usage?from={day}")).await;
    assert_eq!(requests(&page, id), 5, "{page}");
    let ids: std::collections::BTreeSet<_> =
        page["usage"].as_array().unwrap().iter().map(|row| row["key_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2, "an admin sees all: {page}");

    let (_, mine) = usage(&rig, &other, "").await;
    assert_eq!(requests(&mine, id), 0, "others see their own only: {mine}");
    assert_error(&usage(&rig, &other, &format!("?key_id={id}")).await, 403, "forbidden");
    let (_, none) = rig.get("/v1/usage?from=2020-01-01&to=2020-01-31").await;
    assert_eq!(none, json!({ "usage": [], "next_cursor": null }));
    rig.stop().await;
}

#[tokio::test]
async fn usage_comes_in_pages_and_refuses_nonsense() {
    let rig = Rig::start().await;
    for _ in 0..2 {
        let key = rig.other_key().await;
        usage(&rig, &key, "").await;
    }
    let mut rows = Vec::new();
    let mut cursor = String::new();
    loop {
        let (status, page) = rig.get(&format!("/v1/usage?limit=1{cursor}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        rows.extend(page["usage"].as_array().unwrap().iter().map(|row| row["key_id"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    rows.sort_by_key(Value::to_string);
    rows.dedup();
    assert_eq!(rows.len(), 3);
    for (query, code) in [
        ("from=yesterday", "invalid_field"),
        ("to=2026-02-30", "invalid_field"),
        ("limit=0", "invalid_field"),
        ("key_id=alice", "invalid_field"),
        ("cursor=x", "malformed_request"),
        ("cursor=2026-01-01.x", "malformed_request"),
        ("until=2026-01-01", "malformed_request"),
    ] {
        assert_error(&rig.get(&format!("/v1/usage?{query}")).await, 400, code);
    }
    assert_error(&answer(rig.bare(Method::GET, "/v1/usage")).await, 401, "invalid_api_key");
    rig.stop().await;
}
