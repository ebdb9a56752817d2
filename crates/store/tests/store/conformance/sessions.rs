//! Sessions, attempts, artifacts' metadata and secrets.

use std::sync::Arc;

use store::{NewSession, Outcome, Placement, SUPERSEDED, Store, StoredAttempt};
use taskmarket::{B256, Bytes32, Event, NodeStatus, ReleaseReason, TaskRecord};
use tokio::task::JoinSet;

use crate::fixtures::{
    accepted, address, at, cancelled, commit, commit_placed, failed, node, publish, submitted, task,
};

fn session(session_id: &str, provider: u8, host: u8, relay_id: &str, seconds: u64) -> NewSession {
    NewSession {
        session_id: session_id.into(),
        provider: address(provider),
        node_id: node(host),
        relay_id: relay_id.into(),
        metadata_json: format!(r#"{{"session":"{session_id}"}}"#),
        at: at(seconds),
    }
}

pub(crate) async fn generations_count_each_hosts_sessions(store: Arc<dyn Store>) {
    assert_eq!(store.open_session(session("a", 1, 1, "hz-1", 0)).await.unwrap(), 1);
    assert_eq!(store.open_session(session("b", 1, 2, "hz-1", 1)).await.unwrap(), 1);
    assert_eq!(store.open_session(session("c", 2, 1, "hz-1", 2)).await.unwrap(), 1);
    assert_eq!(store.open_session(session("d", 1, 1, "jp-2", 3)).await.unwrap(), 2);

    let sessions = store.sessions(address(1), 10).await.unwrap();
    let view: Vec<_> = sessions
        .iter()
        .map(|s| (s.session_id.as_str(), s.generation, s.connected_at, s.ended.clone()))
        .collect();
    let superseded = Some((at(3), SUPERSEDED.to_owned()));
    assert_eq!(view, [("d", 2, at(3), None), ("b", 1, at(1), None), ("a", 1, at(0), superseded)]);
    let newest = &store.sessions(address(1), 1).await.unwrap()[0];
    assert_eq!((newest.relay_id.as_str(), newest.node_id), ("jp-2", node(1)));
    assert_eq!(newest.metadata_json, r#"{"session":"d"}"#);

    // What was superseded keeps its reason when its connection ends at last.
    assert!(!store.close_session("a", at(9), "lost").await.unwrap());
    assert!(store.close_session("d", at(9), "lost").await.unwrap());
    assert!(!store.close_session("d", at(10), "again").await.unwrap());
    assert!(!store.close_session("unknown", at(9), "lost").await.unwrap());
    assert_eq!(store.open_session(session("e", 1, 1, "hz-1", 11)).await.unwrap(), 3);
    let sessions = store.sessions(address(1), 10).await.unwrap();
    assert_eq!(sessions[1].ended, Some((at(9), "lost".to_owned())));
    assert_eq!(sessions[3].ended, Some((at(3), SUPERSEDED.to_owned())));

    let newest = async |provider, host| store.newest_session(address(provider), node(host)).await.unwrap();
    assert_eq!(newest(1, 1).await.as_ref(), Some(&sessions[0]));
    assert_eq!(newest(1, 2).await.as_ref(), Some(&sessions[2]));
    assert_eq!(newest(1, 3).await, None);
    store.close_session("e", at(12), "lost").await.unwrap();
    assert_eq!(newest(1, 1).await.unwrap().ended, Some((at(12), "lost".to_owned())));
}

pub(crate) async fn a_relay_ends_the_sessions_that_it_left_open(store: Arc<dyn Store>) {
    for (id, host, relay) in [("a", 1, "hz-1"), ("b", 2, "hz-1"), ("c", 3, "jp-2"), ("d", 4, "hz-1")] {
        store.open_session(session(id, 1, host, relay, 0)).await.unwrap();
    }
    store.close_session("d", at(1), "goodbye").await.unwrap();
    assert_eq!(store.close_sessions_of("hz-1", at(5), "relay_restarted").await.unwrap(), 2);
    assert_eq!(store.close_sessions_of("hz-1", at(6), "relay_restarted").await.unwrap(), 0);
    let sessions = store.sessions(address(1), 10).await.unwrap();
    let reasons: Vec<_> = sessions.iter().map(|s| s.ended.as_ref().map(|(_, why)| why.as_str())).collect();
    assert_eq!(reasons, [Some("goodbye"), None, Some("relay_restarted"), Some("relay_restarted")]);
    assert_eq!(sessions[3].ended.as_ref().unwrap().0, at(5));
}

pub(crate) async fn sessions_of_a_killed_relay_ended_when_it_lived_last(store: Arc<dyn Store>) {
    for (id, host, relay, begins) in
        [("before", 1, "hz-1", 0), ("after", 2, "hz-1", 45), ("other", 3, "jp-2", 0)]
    {
        store.open_session(session(id, 1, host, relay, begins)).await.unwrap();
    }
    for seconds in [10, 40] {
        store.relay_lives("hz-1", at(seconds)).await.unwrap();
    }
    store.relay_lives("jp-2", at(70)).await.unwrap();
    assert_eq!(store.close_sessions_of("hz-1", at(60), "killed").await.unwrap(), 2);
    assert_eq!(store.close_sessions_of("jp-2", at(60), "killed").await.unwrap(), 1);
    let sessions = store.sessions(address(1), 10).await.unwrap();
    let ends: Vec<_> = sessions.iter().map(|s| (s.session_id.as_str(), s.ended.clone().unwrap().0)).collect();
    // None ends before it began, nor later than now.
    assert_eq!(ends, [("other", at(60)), ("after", at(45)), ("before", at(40))]);
}

pub(crate) async fn sessions_of_silent_relays_ended_when_they_lived_last(store: Arc<dyn Store>) {
    for (id, host, relay, begins) in
        [("silent", 1, "hz-1", 0), ("late", 2, "hz-1", 50), ("alive", 3, "jp-2", 0), ("unknown", 4, "old", 0)]
    {
        store.open_session(session(id, 1, host, relay, begins)).await.unwrap();
    }
    store.open_session(session("ended", 1, 5, "hz-1", 0)).await.unwrap();
    store.close_session("ended", at(1), "goodbye").await.unwrap();
    store.relay_lives("hz-1", at(40)).await.unwrap();
    store.relay_lives("jp-2", at(41)).await.unwrap();
    assert_eq!(store.close_sessions_of_silent(at(40), "silent").await.unwrap(), 0);
    assert_eq!(store.living_relays(at(40)).await.unwrap(), ["hz-1", "jp-2"]);
    assert_eq!(store.living_relays(at(41)).await.unwrap(), ["jp-2"]);
    assert_eq!(store.close_sessions_of_silent(at(41), "silent").await.unwrap(), 2);
    assert_eq!(store.close_sessions_of_silent(at(41), "silent").await.unwrap(), 0);
    let ended = async |host| store.newest_session(address(1), node(host)).await.unwrap().unwrap().ended;
    assert_eq!(ended(1).await, Some((at(40), "silent".to_owned())));
    assert_eq!(ended(2).await, Some((at(50), "silent".to_owned())), "none ends before it began");
    assert_eq!((ended(3).await, ended(4).await), (None, None));
    assert_eq!(ended(5).await, Some((at(1), "goodbye".to_owned())));
    let asked = ["silent", "alive", "ended", "late", "unheard-of"].map(str::to_owned);
    let mut told = store.sessions_ended_for(asked.into(), "silent").await.unwrap();
    told.sort_unstable();
    assert_eq!(told, ["late", "silent"], "neither those that last nor those that ended otherwise");
    assert!(store.sessions_ended_for(Vec::new(), "silent").await.unwrap().is_empty());
}

pub(crate) async fn only_a_newer_host_status_counts(store: Arc<dyn Store>) {
    let set = async |host, status, seconds| {
        store.set_node_status(address(1), node(host), status, at(seconds)).await.unwrap()
    };
    let status = async |host| store.node_status(address(1), node(host)).await.unwrap();
    assert_eq!(status(1).await, None);
    assert!(set(1, NodeStatus::Draining, 5).await);
    assert!(!set(1, NodeStatus::Online, 5).await, "a replay");
    assert!(!set(1, NodeStatus::Online, 4).await);
    assert_eq!(status(1).await, Some(NodeStatus::Draining));
    assert!(set(1, NodeStatus::Online, 6).await);
    assert!(set(2, NodeStatus::Offline, 1).await);
    assert_eq!((status(1).await, status(2).await), (Some(NodeStatus::Online), Some(NodeStatus::Offline)));
}

pub(crate) async fn secrets_are_made_once(store: Arc<dyn Store>) {
    let secret = store.secret("attempt tokens").await.unwrap();
    assert_eq!(store.secret("attempt tokens").await.unwrap(), secret);
    assert_ne!(store.secret("other").await.unwrap(), secret);
    assert_ne!(secret, [0; 32]);
}

pub(crate) async fn metadata_is_refreshed_while_a_session_lasts(store: Arc<dyn Store>) {
    store.open_session(session("a", 1, 1, "hz-1", 0)).await.unwrap();
    store.open_session(session("b", 1, 2, "hz-1", 0)).await.unwrap();
    assert!(store.update_session_metadata("a", "{\"new\":1}").await.unwrap());
    assert!(!store.update_session_metadata("unknown", "{}").await.unwrap());
    store.close_session("a", at(1), "lost").await.unwrap();
    assert!(!store.update_session_metadata("a", "{}").await.unwrap());
    let sessions = store.sessions(address(1), 10).await.unwrap();
    let metadata: Vec<_> = sessions.iter().map(|session| session.metadata_json.as_str()).collect();
    assert_eq!(metadata, [r#"{"session":"b"}"#, r#"{"new":1}"#]);
}

pub(crate) async fn reports_find_the_sessions_of_a_time(store: Arc<dyn Store>) {
    for (id, host, begins) in [("a", 1, 0), ("b", 2, 1), ("c", 3, 2), ("d", 4, 50)] {
        store.open_session(session(id, 1, host, "hz-1", begins)).await.unwrap();
    }
    store.open_session(session("theirs", 2, 1, "hz-1", 3)).await.unwrap();
    store.close_session("a", at(9), "lost").await.unwrap();
    store.close_session("b", at(10), "lost").await.unwrap();
    let since = async |seconds, limit| {
        let sessions = store.sessions_since(address(1), at(seconds), limit).await.unwrap();
        sessions.into_iter().map(|session| session.session_id).collect::<Vec<_>>()
    };
    assert_eq!(since(0, 10).await, ["d", "c", "b", "a"]);
    assert_eq!(since(10, 10).await, ["d", "c", "b"]);
    assert_eq!(since(11, 10).await, ["d", "c"], "those that last count at any time");
    assert_eq!(since(0, 2).await, ["d", "c"]);
}

pub(crate) async fn old_sessions_are_removed_and_open_ones_never(store: Arc<dyn Store>) {
    // More than one write removes.
    const MANY: u64 = 1100;
    assert_eq!(store.prune_sessions(at(1_000_000)).await.unwrap(), 0);
    let mut opening = JoinSet::new();
    for number in 0..MANY {
        let mut session = session(&format!("many {number}"), 1, 1, "old", 0);
        session.node_id = Bytes32(B256::left_padding_from(&(1_000 + number).to_be_bytes()));
        let store = store.clone();
        opening.spawn(async move { store.open_session(session).await.unwrap() });
    }
    opening.join_all().await;
    assert_eq!(store.close_sessions_of("old", at(5), "relay_restarted").await.unwrap(), MANY);
    for (id, host, begins) in [("first", 1, 0), ("second", 1, 10), ("third", 1, 20), ("open", 2, 0)] {
        store.open_session(session(id, 2, host, "hz-1", begins)).await.unwrap();
    }
    store.open_session(session("gone", 3, 1, "hz-1", 0)).await.unwrap();
    store.close_session("gone", at(9), "lost").await.unwrap();
    let left = async |provider| {
        let sessions = store.sessions(address(provider), 10).await.unwrap();
        sessions.into_iter().map(|session| session.session_id).collect::<Vec<_>>()
    };

    assert_eq!(store.prune_sessions(at(5)).await.unwrap(), 0, "what ended then did not end before");
    assert_eq!(store.prune_sessions(at(9)).await.unwrap(), MANY);
    assert_eq!((left(1).await.len(), left(3).await), (0, vec!["gone".to_owned()]));
    assert_eq!(store.prune_sessions(at(11)).await.unwrap(), 2);
    assert_eq!(left(2).await, ["open", "third", "second"]);
    assert_eq!(store.prune_sessions(at(1_000_000)).await.unwrap(), 1);
    assert_eq!(left(2).await, ["open", "third"]);
    // A host is counted on while a session of it is left.
    assert_eq!(store.open_session(session("fourth", 2, 1, "hz-1", 30)).await.unwrap(), 4);
    assert_eq!(store.open_session(session("again", 3, 1, "hz-1", 30)).await.unwrap(), 1);
}

pub(crate) async fn commits_keep_attempts_and_how_they_end(store: Arc<dyn Store>) {
    let ends = [
        (Outcome::Failed, 20),
        (Outcome::LeaseLapsed, 30),
        (Outcome::SessionLost, 40),
        (Outcome::AttemptDropped, 50),
        (Outcome::Expired, 60),
        (Outcome::Proven, 70),
    ];
    let mut expected = Vec::new();
    for (salt, (outcome, ended)) in (1_u64..).zip(ends) {
        let mut record = publish(&*store, task(salt), at(0)).await;
        let accept = accepted(&record, address(7), at(600));
        let placement = Placement {
            node_id: node(3),
            session_id: Some(format!("session {salt}")),
            dispatch_ms: Some(salt * 100),
        };
        commit_placed(&*store, &mut record, at(salt), vec![accept], Some(placement)).await;
        let event = match outcome {
            Outcome::Proven => submitted(&record, address(7)),
            Outcome::Failed => failed(&record, address(7)),
            Outcome::LeaseLapsed => Event::LeaseLapsed,
            Outcome::SessionLost => Event::Released { attempt: 1, reason: ReleaseReason::SessionLost },
            Outcome::AttemptDropped => Event::Released { attempt: 1, reason: ReleaseReason::AttemptDropped },
            Outcome::Cancelled => cancelled(&record),
            Outcome::Expired => Event::Expired,
        };
        commit(&*store, &mut record, at(ended), vec![event], None).await;
        expected.push(StoredAttempt {
            task_id: record.id,
            attempt: 1,
            provider: address(7),
            node_id: Some(node(3)),
            session_id: Some(format!("session {salt}")),
            accepted_at: at(salt),
            dispatch_ms: Some(salt * 100),
            ended: Some((at(ended), outcome)),
        });
    }
    expected.reverse();
    assert_eq!(store.attempts(address(7), at(0), 100).await.unwrap(), expected);
    assert_eq!(store.attempts(address(7), at(0), 2).await.unwrap(), expected[..2]);
    assert_eq!(store.attempts(address(7), at(41), 100).await.unwrap(), expected[..3]);
    assert_eq!(store.attempts(address(8), at(0), 100).await.unwrap(), []);
}

pub(crate) async fn an_attempt_that_is_taken_once_more_lasts_again(store: Arc<dyn Store>) {
    let mut record = publish(&*store, task(1), at(0)).await;
    let taken = async |record: &mut TaskRecord, seconds, session: Option<&str>| {
        let accept = accepted(record, address(7), at(600));
        // As in a settled task, whose attempts the chain counts.
        let Event::Accepted(mut accept) = accept else { panic!("{accept:?}") };
        accept.message.attempt = 1;
        let placement =
            session.map(|id| Placement { session_id: Some(id.into()), ..Placement::from(node(3)) });
        commit_placed(&*store, record, at(seconds), vec![Event::Accepted(accept)], placement).await;
    };
    taken(&mut record, 1, Some("first")).await;
    let released = Event::Released { attempt: 1, reason: ReleaseReason::SessionLost };
    commit(&*store, &mut record, at(2), vec![released], None).await;
    taken(&mut record, 3, Some("second")).await;
    let kept = async || store.attempts(address(7), at(0), 10).await.unwrap();
    let view = |kept: &[StoredAttempt]| {
        let [attempt] = kept else { panic!("{kept:?}") };
        (attempt.accepted_at, attempt.session_id.clone(), attempt.node_id, attempt.ended)
    };
    assert_eq!(view(&kept().await), (at(3), Some("second".into()), Some(node(3)), None));
    // Said again while it lasts, it is the same.
    taken(&mut record, 4, None).await;
    assert_eq!(view(&kept().await), (at(3), Some("second".into()), Some(node(3)), None));
    let proof = submitted(&record, address(7));
    commit(&*store, &mut record, at(5), vec![proof], None).await;
    assert_eq!(view(&kept().await).3, Some((at(5), Outcome::Proven)));
}

pub(crate) async fn each_attempt_at_a_task_is_kept(store: Arc<dyn Store>) {
    let mut record = publish(&*store, task(1), at(0)).await;
    // One commit takes the task, and lets the lease lapse.
    let events = vec![accepted(&record, address(7), at(600)), Event::LeaseLapsed];
    commit(&*store, &mut record, at(1), events, Some(node(1))).await;
    let accept = accepted(&record, address(7), at(900));
    commit(&*store, &mut record, at(2), vec![accept], None).await;

    let attempts = store.attempts(address(7), at(100), 10).await.unwrap();
    let [running] = &attempts[..] else { panic!("{attempts:?}") };
    assert_eq!((running.attempt, running.accepted_at, running.ended), (2, at(2), None));
    assert_eq!((running.node_id, &running.session_id, running.dispatch_ms), (None, &None, None));
    let attempts = store.attempts(address(7), at(0), 10).await.unwrap();
    assert_eq!((attempts[0].attempt, attempts[1].attempt), (2, 1));
    assert_eq!(attempts[1].ended, Some((at(1), Outcome::LeaseLapsed)));
    assert_eq!(attempts[1].node_id, Some(node(1)));
}
