//! Following all tasks of a requester: nothing is missed between listing and following, and nothing of others is seen.

use reqwest::{Method, StatusCode};
use serde_json::Value;
use wallet::Wallet;

use crate::rig::{Follower, Rig, answer, assert_error, signed, task};
use crate::work::cancel;

async fn follow(rig: &Rig, wallet: &Wallet, query: &str, last: Option<u64>) -> Follower {
    let path = format!("/v1/events?requester={}{query}", wallet.address());
    let mut request = rig.request(Method::GET, &path).header("accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last.to_string());
    }
    Follower::of(request).await
}

#[tokio::test]
async fn who_lists_and_then_follows_misses_nothing() {
    let (rig, wallet, other) = (Rig::start().await, Wallet::random(), Wallet::random());
    let before = rig.publish_new(&wallet).await;
    rig.publish_new(&other).await;
    let (_, page) = rig.get(&format!("/v1/tasks?requester={}", wallet.address())).await;
    assert_eq!(page["tasks"][0]["task_id"], Value::from(before.clone()));
    let listed = page["last_event_id"].as_u64().unwrap();
    // Between the two.
    cancel(&rig, &wallet, &before).await;
    let between = rig.publish_new(&wallet).await;

    let mut follower = follow(&rig, &wallet, "", Some(listed)).await;
    let first = follower.next().await.unwrap();
    assert_eq!((first.name.as_str(), first.id), ("following", Some(listed)));
    let mut told = Vec::new();
    for _ in 0..2 {
        let event = follower.next().await.unwrap();
        told.push((event.name, event.data["task_id"].as_str().unwrap().to_owned()));
    }
    assert_eq!(told, [("cancelled".to_owned(), before), ("published".to_owned(), between.clone())]);
    // And from now on.
    cancel(&rig, &wallet, &between).await;
    let live = follower.next().await.unwrap();
    assert_eq!((live.name.as_str(), live.data["task_id"].as_str()), ("cancelled", Some(between.as_str())));

    // The same from the query, and all of it from the beginning.
    let mut again = follow(&rig, &wallet, "&last_event_id=0", None).await;
    let mut names = Vec::new();
    for _ in 0..5 {
        names.push(again.next().await.unwrap().name);
    }
    assert_eq!(names, ["following", "published", "cancelled", "published", "cancelled"]);
    rig.stop().await;
}

#[tokio::test]
async fn following_begins_now_and_tells_where_that_is() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let old = rig.publish_new(&wallet).await;
    let mut follower = follow(&rig, &wallet, "", None).await;
    let begin = follower.next().await.unwrap();
    cancel(&rig, &wallet, &old).await;
    let told = follower.next().await.unwrap();
    assert_eq!(told.name, "cancelled");
    drop(follower);
    let mut resumed = follow(&rig, &wallet, "", begin.id).await;
    assert_eq!(resumed.next().await.unwrap().id, begin.id);
    assert_eq!(resumed.next().await.unwrap().id, told.id);
    rig.stop().await;
}

#[tokio::test]
async fn many_tasks_at_once_come_whole_and_in_order() {
    const TASKS: usize = 40;
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut follower = follow(&rig, &wallet, "", None).await;
    follower.next().await.unwrap();
    let bodies: Vec<_> = (0..TASKS).map(|_| signed(&wallet, &task(&wallet))).collect();
    let published = futures_util::future::join_all(bodies.iter().map(|body| rig.publish(body))).await;
    assert!(published.iter().all(|(status, _)| *status == StatusCode::CREATED));
    let mut ids = Vec::new();
    for _ in 0..TASKS {
        ids.push(follower.next().await.unwrap().id.unwrap());
    }
    assert!(ids.is_sorted_by(|one, two| one < two), "{ids:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_key_sees_the_tasks_that_it_may_see_whole() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let alice = rig.new_key(&["tasks:write", "tasks:read"]).await;
    let bob = rig.new_key(&["tasks:write", "tasks:read"]).await;
    let publish = async |key: &str| {
        let body = signed(&wallet, &task(&wallet));
        let request = rig.bare(Method::POST, "/v1/tasks").bearer_auth(key).json(&body);
        answer(request).await.1["task_id"].as_str().unwrap().to_owned()
    };
    let (of_alice, of_bob) = (publish(&alice).await, publish(&bob).await);
    let path = format!("/v1/events?requester={}&last_event_id=0", wallet.address());
    let told = async |key: &str, count: usize| {
        let mut follower = Follower::of(rig.bare(Method::GET, &path).bearer_auth(key)).await;
        let mut ids = Vec::new();
        follower.next().await.unwrap();
        for _ in 0..count {
            ids.push(follower.next().await.unwrap().data["task_id"].as_str().unwrap().to_owned());
        }
        ids
    };
    assert_eq!(told(&bob, 1).await, std::slice::from_ref(&of_bob));
    assert_eq!(told(&alice, 1).await, std::slice::from_ref(&of_alice));
    assert_eq!(told(crate::rig::KEY, 2).await, [of_alice, of_bob], "an admin's key sees all");
    rig.stop().await;
}

#[tokio::test]
async fn wrong_queries_are_refused() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let address = wallet.address();
    assert_error(&rig.get("/v1/events").await, 400, "malformed_request");
    assert_error(&rig.get("/v1/events?requester=0x12").await, 400, "malformed_request");
    assert_error(&rig.get(&format!("/v1/events?requester={address}&x=1")).await, 400, "malformed_request");
    let headed = rig.request(Method::GET, &format!("/v1/events?requester={address}"));
    assert_error(&answer(headed.header("last-event-id", "x")).await, 400, "malformed_request");
    let bare = rig.bare(Method::GET, &format!("/v1/events?requester={address}"));
    assert_error(&answer(bare).await, 401, "invalid_api_key");
    rig.stop().await;
}
