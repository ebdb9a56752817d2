//! How often keys, and addresses without one, may ask.

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::rig::{KEY, Rig};

fn number(headers: &HeaderMap, name: &str) -> u64 {
    headers[name].to_str().unwrap().parse().unwrap()
}

async fn list(rig: &Rig, key: &str) -> Response {
    rig.bare(Method::GET, "/v1/tasks").bearer_auth(key).send().await.unwrap()
}

#[tokio::test]
async fn a_key_may_ask_as_often_as_its_limit_says() {
    let rig = Rig::start().await;
    let body = json!({ "name": "a", "scopes": ["tasks:read"], "requests_per_minute": 3 });
    let (key, other) = (rig.make_key(&body).await, rig.make_key(&body).await);
    for left in [2, 1, 0] {
        let response = list(&rig, &key).await;
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers();
        assert_eq!(number(headers, "x-ratelimit-limit"), 3);
        assert_eq!(number(headers, "x-ratelimit-remaining"), left);
        assert!((1..=60).contains(&number(headers, "x-ratelimit-reset")), "{headers:?}");
    }
    let refused = list(&rig, &key).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let headers = refused.headers().clone();
    assert!((1..=20).contains(&number(&headers, RETRY_AFTER.as_str())), "{headers:?}");
    assert_eq!(number(&headers, "x-ratelimit-remaining"), 0);
    let body: serde_json::Value = refused.json().await.unwrap();
    assert_eq!(
        (body["error"]["code"].as_str(), body["error"]["type"].as_str()),
        (Some("rate_limited"), Some("rate_limit_error"))
    );

    assert_eq!(list(&rig, &other).await.status(), StatusCode::OK, "each key has its own limit");
    let unlimited = list(&rig, KEY).await;
    assert!(!unlimited.headers().contains_key("x-ratelimit-limit"));
    // What a key is refused for is told its limit too: the request was one.
    let forbidden = rig.bare(Method::GET, "/v1/keys").bearer_auth(&other).send().await.unwrap();
    assert_eq!(forbidden.status(), StatusCode::FORBIDDEN);
    assert_eq!(number(forbidden.headers(), "x-ratelimit-remaining"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn an_address_without_a_key_may_ask_as_often_as_the_relay_says() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.anonymous_requests_per_minute = Some(3)).await;
    let key = rig.other_key().await;
    assert_eq!(list(&rig, "zk-wrong").await.status(), StatusCode::UNAUTHORIZED);
    let bare = async || rig.bare(Method::GET, "/v1/tasks").send().await.unwrap().status();
    assert_eq!(bare().await, StatusCode::UNAUTHORIZED);
    let info = async || rig.bare(Method::GET, "/v1/info").send().await.unwrap();
    assert_eq!(info().await.status(), StatusCode::OK);

    let refused = info().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(number(refused.headers(), RETRY_AFTER.as_str()) >= 1);
    assert_eq!(list(&rig, "zk-wrong-again").await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(list(&rig, KEY).await.status(), StatusCode::OK, "who has a key goes on");
    // A key of the store is looked up only for those who may still guess, until it was found once.
    assert_eq!(list(&rig, &key).await.status(), StatusCode::TOO_MANY_REQUESTS);
    rig.stop().await;
}

#[tokio::test]
async fn a_key_that_was_good_goes_on_while_others_of_its_address_are_refused() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.anonymous_requests_per_minute = Some(1)).await;
    let key = rig.other_key().await;
    assert_eq!(list(&rig, &key).await.status(), StatusCode::OK);
    for _ in 0..3 {
        rig.bare(Method::GET, "/v1/info").send().await.unwrap();
    }
    assert_eq!(
        rig.bare(Method::GET, "/v1/info").send().await.unwrap().status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(list(&rig, &key).await.status(), StatusCode::OK);
    rig.stop().await;
}
