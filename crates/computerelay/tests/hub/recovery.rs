//! Sessions that are lost, silent or broken, and what becomes of their attempts.

use std::time::Duration;

use rpc::link::AttemptKey;
use store::{NewSession, Sessions as _};
use taskmarket::{Status, TaskId, Timestamp};

use crate::agent::{Agent, Answer, Beats, Script, now};
use crate::support::{Relay, Requester, Times};

fn quick() -> Times {
    Times { heartbeat: Duration::from_millis(300), grace: Duration::from_millis(300), ..Times::default() }
}

/// Publishes a task and has this host accept it.
async fn taken(relay: &Relay, agent: &Agent) -> (TaskId, AttemptKey) {
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    let assignment = agent.is_offered(task_id).await;
    relay.reaches(task_id, Status::Accepted, assignment.attempt).await;
    (task_id, AttemptKey { task_id, attempt: assignment.attempt })
}

#[tokio::test]
async fn a_host_that_falls_silent_loses_its_session_and_after_the_grace_its_attempts() {
    let relay = Relay::start(quick()).await;
    let silent = Script::new().beats(Beats::Once).connect(&relay.url()).await;
    let (task_id, _) = taken(&relay, &silent).await;
    let other = Script::new().connect(&relay.url()).await;
    let (code, reason) = silent.sent_away().await;
    assert_eq!(code, link::close_code::TIMED_OUT);
    assert!(reason.contains("no heartbeat"), "{reason}");
    let task = relay.reaches(task_id, Status::Accepted, 2).await;
    assert_eq!(task.provider, Some(other.address()));
    assert_eq!(task.failure.unwrap().code, "session_lost");
}

#[tokio::test]
async fn a_host_that_is_back_within_the_grace_keeps_its_attempt() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let (task_id, key) = taken(&relay, &agent).await;
    let script = agent.script.clone().holding(vec![key]);
    agent.cut().await;
    relay.lists(|list| list.providers.is_empty()).await;

    let back = script.connect(&relay.url()).await;
    assert!(back.welcome.drop.is_empty());
    relay.lists(|list| list.providers.len() == 1).await;
    // Its slot counts as taken, and the attempt goes on.
    let requester = Requester::new();
    let next = relay.publish(&requester, &requester.task()).await;
    let explanation = relay.explains(next, |_| true).await;
    assert_eq!(explanation.summary, "1 provider online, none fits: 0 of 1 slots free");
    let task = relay.task(task_id).await;
    assert_eq!((task.status, task.attempt), (Status::Accepted, 1));
}

#[tokio::test]
async fn what_a_returning_host_holds_in_vain_is_dropped_and_what_it_lost_is_offered_again() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let (task_id, key) = taken(&relay, &agent).await;
    let in_vain = AttemptKey { task_id: TaskId([5; 32].into()), attempt: 1 };
    let old = AttemptKey { attempt: key.attempt + 1, ..key };
    let script = agent.script.clone().holding(vec![in_vain, old]);
    agent.cut().await;

    let back = script.connect(&relay.url()).await;
    assert_eq!(back.welcome.drop, vec![in_vain, old]);
    back.forget();
    // The attempt that it does not list is released, and it may try again.
    let task = relay.reaches(task_id, Status::Accepted, 2).await;
    assert_eq!(task.failure.unwrap().code, "attempt_dropped");
}

#[tokio::test]
async fn an_attempt_that_reports_leave_out_is_released() {
    let relay = Relay::start(Times { heartbeat: Duration::from_millis(300), ..Times::default() }).await;
    let forgetful = Script::new().beats(Beats::Forgetful).connect(&relay.url()).await;
    let (task_id, key) = taken(&relay, &forgetful).await;
    let state = forgetful.sees("a call-off", |state| state.called_off.contains(&key)).await;
    assert_eq!(state.called_off[0].task_id, task_id);
    let failed = crate::support::poll("a release", async || relay.task(task_id).await.failure).await;
    assert_eq!(failed.code, "attempt_dropped");
}

#[tokio::test]
async fn an_attempt_goes_on_when_the_relay_is_restarted() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let (task_id, key) = taken(&relay, &agent).await;
    let requester = Requester::new();
    let waiting = relay.publish(&requester, &requester.task()).await;
    let relay = relay.restart(Times::default()).await;
    let script = agent.script.clone().holding(vec![key]).slots(2);
    assert_eq!(agent.sent_away().await.0, link::close_code::GOING_AWAY);
    let back = script.connect(&relay.url()).await;
    assert_eq!(back.welcome.generation, 2);
    assert!(back.welcome.drop.is_empty());
    // What waited is offered, and what is held stays held.
    back.is_offered(waiting).await;
    relay.reaches(waiting, Status::Accepted, 1).await;
    let task = relay.task(task_id).await;
    assert_eq!((task.status, task.attempt), (Status::Accepted, 1));
}

#[tokio::test]
async fn attempts_of_hosts_that_do_not_come_back_to_a_restarted_relay_are_offered_again() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let (task_id, _) = taken(&relay, &agent).await;
    let relay = relay.restart(quick()).await;
    let other = Script::new().connect(&relay.url()).await;
    let task = relay.reaches(task_id, Status::Accepted, 2).await;
    assert_eq!(task.provider, Some(other.address()));
}

#[tokio::test]
async fn attempts_of_hosts_at_another_relay_are_left_to_it() {
    let relay = Relay::start(Times::default()).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let host = Script::new().connect(&relay.url()).await;
        let (task_id, _) = taken(&relay, &host).await;
        held.push((task_id, (host.address(), host.script.node_id), host));
    }
    let [held_elsewhere, may_come_back, lost_elsewhere, lost_here] = [0, 1, 2, 3].map(|host| held[host].0);
    let [(provider, node_id), on_its_way, given_up] = [0, 1, 2].map(|host| held[host].1);
    let relay = relay
        .restart_after(quick(), async |store| {
            store.open_session(elsewhere("connected", provider, node_id)).await.unwrap();
            let (provider, node_id) = on_its_way;
            store.open_session(elsewhere("ended", provider, node_id)).await.unwrap();
            // Its grace there is not over.
            store.close_session("ended", now().plus(1000), "lost").await.unwrap();
            // Its provider has many hosts that connected later.
            for host in 0..250u8 {
                let node_id = taskmarket::Bytes32([host; 32].into());
                let session = elsewhere(&format!("of another host {host}"), provider, node_id);
                store.open_session(session).await.unwrap();
            }
            let (provider, node_id) = given_up;
            store.open_session(elsewhere("over", provider, node_id)).await.unwrap();
            store.close_session("over", Timestamp::from_unix(now().unix() - 1000), "lost").await.unwrap();
        })
        .await;
    let _other = Script::new().slots(4).connect(&relay.url()).await;
    relay.reaches(lost_here, Status::Accepted, 2).await;
    relay.reaches(lost_elsewhere, Status::Accepted, 2).await;
    for task_id in [held_elsewhere, may_come_back] {
        let task = relay.task(task_id).await;
        assert_eq!((task.status, task.attempt), (Status::Accepted, 1), "the other relay's to release");
    }
}

/// A session of a host at another relay of the same store.
fn elsewhere(session_id: &str, provider: taskmarket::Address, node_id: taskmarket::Bytes32) -> NewSession {
    NewSession {
        session_id: session_id.to_owned(),
        provider,
        node_id,
        relay_id: "another-relay".to_owned(),
        metadata_json: "{}".to_owned(),
        at: now(),
    }
}

#[tokio::test]
async fn reports_of_garbage_end_the_session_and_harm_nobody_else() {
    let relay = Relay::start(Times::default()).await;
    let healthy = Script::new().answers(Answer::Refuse("not now")).connect(&relay.url()).await;
    for beats in [Beats::Raw(b"garbage\n".to_vec()), Beats::Raw(vec![b'\n'; 3]), Beats::Endless] {
        let broken = Script::new().beats(beats.clone()).connect(&relay.url()).await;
        let (code, reason) = broken.sent_away().await;
        assert_eq!(code, link::close_code::PROTOCOL_ERROR, "{beats:?}");
        assert!(reason.contains("heartbeat"), "{reason}");
    }
    let list = relay.lists(|list| list.providers.len() == 1).await;
    assert_eq!(list.providers[0].provider, healthy.address());
    assert_eq!(list.providers[0].generation, 1);
}

#[tokio::test]
async fn sessions_of_a_killed_relay_end_when_it_was_last_alive() {
    let started = now();
    let relay = Relay::start(Times::default()).await;
    let host = Script::new();
    let (provider, node_id) = (host.wallet.address(), host.node_id);
    let session = |session_id: &str, node_id, at| NewSession {
        session_id: session_id.to_owned(),
        provider,
        node_id,
        relay_id: "relay".to_owned(),
        metadata_json: "{}".to_owned(),
        at,
    };
    let ended = async |store: &store::Sqlite, session_id: &str| {
        let sessions = store.sessions(provider, 10).await.unwrap();
        sessions.into_iter().find(|session| session.session_id == session_id).unwrap().ended.unwrap().0
    };
    let died = Timestamp::from_unix(started.unix() - 1000);
    let relay = relay
        .restart_after(Times::default(), async |store| {
            // What it left behind says how long it lived.
            let probe = session("probe", taskmarket::Bytes32([1; 32].into()), Timestamp::from_unix(1));
            store.open_session(probe).await.unwrap();
            let later = started.plus(1_000_000);
            assert_eq!(store.close_sessions_of("relay", later, "a relay that was killed").await.unwrap(), 1);
            assert!((started..=now()).contains(&ended(store, "probe").await));
            // A relay that died long ago leaves a session open.
            store
                .open_session(session("open", node_id, Timestamp::from_unix(started.unix() - 5000)))
                .await
                .unwrap();
            store.relay_lives("relay", died).await.unwrap();
        })
        .await;
    let sessions = relay.sessions(provider).await.sessions;
    let left = sessions.iter().find(|session| session.session_id == "open").unwrap();
    assert_eq!(left.disconnected_at, Some(died), "the time without a relay is nobody's uptime");
}
