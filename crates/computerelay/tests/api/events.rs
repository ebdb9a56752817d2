//! Following a task: history first, then what happens, without a gap, from where the client left off.

use reqwest::{Method, StatusCode};
use rpc::link::HeldAttempt;
use rpc::tasks::{Phase, Progress};
use taskmarket::{CancelTask, FailTask};
use wallet::Wallet;

use crate::agent::{Agent, report};
use crate::rig::{Rig, answer, assert_error, now};

#[tokio::test]
async fn a_follower_sees_history_then_what_happens_then_the_end() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    let mut follower = rig.follow(&id, None).await;
    let first = follower.next().await.unwrap();
    assert_eq!((first.name.as_str(), first.data["status"].as_str()), ("published", Some("open")));
    assert_eq!(first.data["word"], "signature");

    let cancel = CancelTask { task_id: id.parse().unwrap(), issued_at: now() };
    rig.mutate(&wallet, &id, "cancel", &cancel).await;
    let second = follower.next().await.unwrap();
    assert_eq!((second.name.as_str(), second.data["status"].as_str()), ("cancelled", Some("cancelled")));
    assert!(second.id > first.id && first.id.is_some(), "{first:?} {second:?}");
    assert!(follower.next().await.is_none(), "a final task's stream ends");

    let mut resumed = rig.follow(&id, first.id).await;
    let again = resumed.next().await.unwrap();
    assert_eq!((again.id, again.data), (second.id, second.data));
    assert!(resumed.next().await.is_none());

    let path = format!("/v1/tasks/{id}/events");
    let stream = |last: String| {
        rig.request(Method::GET, &path).header("accept", "text/event-stream").header("last-event-id", last)
    };
    let over = stream(second.id.unwrap().to_string()).send().await.unwrap();
    assert_eq!(over.status(), StatusCode::NO_CONTENT, "nothing to come back for");
    assert_error(&answer(stream("x".to_owned())).await, 400, "malformed_request");
    rig.stop().await;
}

#[tokio::test]
async fn many_followers_of_many_tasks_miss_nothing() {
    const TASKS: usize = 8;
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut ids = Vec::new();
    for _ in 0..TASKS {
        ids.push(rig.publish_new(&wallet).await);
    }
    let mut followers = Vec::new();
    for id in &ids {
        followers.push((rig.follow(id, None).await, rig.follow(id, None).await));
    }
    let cancels = ids.iter().map(async |id| {
        let cancel = CancelTask { task_id: id.parse().unwrap(), issued_at: now() };
        rig.mutate(&wallet, id, "cancel", &cancel).await.0
    });
    let done = futures_util::future::join_all(cancels).await;
    assert!(done.iter().all(|status| *status == StatusCode::OK));
    for (one, two) in followers {
        for mut follower in [one, two] {
            let mut names = Vec::new();
            while let Some(told) = follower.next().await {
                names.push(told.name);
            }
            assert_eq!(names, ["published", "cancelled"]);
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_live_attempt_is_followed() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    let mut follower = rig.follow(&id, None).await;
    assert_eq!(follower.next().await.unwrap().name, "published");
    let mut agent = Agent::connect(&rig).await;
    let taken = agent.next().await;
    let accepted = follower.next().await.unwrap();
    assert_eq!((accepted.name.as_str(), accepted.data["status"].as_str()), ("accepted", Some("accepted")));

    let progress = Progress { attempt: 1, phase: Phase::Running, percent: Some(40) };
    let held = HeldAttempt { task_id: taken.task_id, progress: progress.clone() };
    agent.reports.send(report(vec![held])).await.unwrap();
    let told = follower.next().await.unwrap();
    assert_eq!((told.name.as_str(), told.id), ("progress", None), "{told:?}");
    assert_eq!(told.data["progress"], serde_json::to_value(&progress).unwrap());
    let (_, view) = rig.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!(view["progress"]["percent"], 40, "{view}");

    let fail = FailTask {
        task_id: taken.task_id,
        provider: agent.wallet.address(),
        attempt: 1,
        code: "out_of_memory".to_owned(),
        message: String::new(),
        issued_at: now(),
    };
    let (status, view) = rig.mutate(&agent.wallet, &id, "fail", &fail).await;
    assert_eq!((status, view.get("progress")), (StatusCode::OK, None), "{view}");
    assert_eq!(follower.next().await.unwrap().name, "attempt_failed");
    rig.stop().await;
    // The stream ends with the relay, not with an error.
    while follower.next().await.is_some() {}
}
