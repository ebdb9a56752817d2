//! The agent between a scripted relay and a scripted node, over real sockets.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use computeagent::{BuildError, HomeError, RunError};
use http::StatusCode;
use link::close_code;
use rpc::error::ErrorCode;
use rpc::link::AttemptKey;
use rpc::tasks::Phase;
use support::*;
use taskmarket::{Amount, Domain, U256};
use wallet::Wallet;

#[tokio::test]
async fn a_task_goes_from_offer_to_proof() {
    let mut world = World::new().await;
    let agent = world.start();
    let (register, session) = world.connected().await;
    assert_eq!(register.registration.relay_url, world.config.relay.text());
    assert_eq!(register.attempts, []);
    assert!(register.metadata.contains("Fake GPU"), "{}", register.metadata);

    let offered = assignment(1);
    let accept = accepted(&session, &offered).await;
    // The same offer again gets the same answer and no second run.
    assert_eq!(accepted(&session, &offered).await, accept);
    let requests = world.node.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].relay_url, format!("http://{}", world.relay_server.as_ref().unwrap().address));

    world.node.run(&offered.task_id, 50);
    world.node.finish(&offered.task_id, b"the result");
    let proof = world.proof().await.mutation;
    assert_eq!((proof.task_id, proof.attempt), (offered.task_id, 1));
    assert_eq!(proof.result_hash, hash(b"the result"));
    assert_eq!(proof.result_cid.artifact(), Some(hash(b"the result")));
    assert_eq!(proof.gpu_name, "Fake GPU");
    assert_eq!(world.relay.stored.lock().unwrap()[&hash(b"the result").to_string()], b"the result");
    world.journal_is(|entries| entries.iter().any(|entry| entry.contains(r#""stage":"done""#))).await;
    assert!(!world.journal()[0].contains(ATTEMPT_TOKEN), "a token outlives its attempt");
    assert!(world.node.knows(&offered.task_id), "the node must keep the result");

    agent.stop().await.unwrap();
    let logs = String::from_utf8_lossy(&logs().lock().unwrap()).into_owned();
    assert!(logs.contains("accepted") && logs.contains("the relay has the proof"), "the logs are captured");
    for secret in [PROVIDER_KEY, NODE_TOKEN, ATTEMPT_TOKEN] {
        assert!(!logs.contains(secret), "{secret} was logged");
    }
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_the_attempt_goes_on() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let offered = assignment(1);
    accepted(&session, &offered).await;
    world.node.run(&offered.task_id, 10);
    session.close(close_code::GOING_AWAY, "restarting");
    let (register, _session) = world.connected().await;
    assert_eq!(register.attempts.len(), 1);
    assert_eq!(register.attempts[0].task_id, offered.task_id);
    assert_eq!(register.attempts[0].progress.attempt, 1);
    world.node.finish(&offered.task_id, b"r");
    assert_eq!(world.proof().await.mutation.task_id, offered.task_id);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_proof_is_sent_until_it_is_acknowledged() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    world.relay.reply([
        Reply::Status(StatusCode::SERVICE_UNAVAILABLE),
        Reply::Status(StatusCode::SERVICE_UNAVAILABLE),
        Reply::Code(ErrorCode::ResultMissing),
    ]);
    let offered = assignment(1);
    accepted(&session, &offered).await;
    world.node.finish(&offered.task_id, b"r");
    let first = world.proof().await;
    assert_eq!(world.proof().await, first);
    assert_eq!(world.proof().await, first);
    assert_eq!(world.proof().await, first);
    world.journal_is(|entries| entries[0].contains(r#""stage":"done""#)).await;
    assert!(world.inbox.proofs.try_recv().is_err(), "nothing is sent after the acknowledgement");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_upload_that_breaks_off_goes_on() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let result: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    world.relay.cuts.lock().unwrap().extend([300_000, 400_000]);
    let offered = assignment(1);
    accepted(&session, &offered).await;
    world.node.finish(&offered.task_id, &result);
    let proof = world.proof().await;
    assert_eq!(proof.mutation.result_hash, hash(&result));
    assert!(world.relay.stored.lock().unwrap()[&hash(&result).to_string()] == result);
    assert_eq!(*world.relay.brought.lock().unwrap(), [800_000, 500_000, 100_000]);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_refused_proof_ends_the_attempt() {
    let mut world = World::new().await;
    world.config.timing.noting = Duration::ZERO;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let (late, wrong) = (assignment(1), assignment(2));
    world.relay.reply([Reply::Code(ErrorCode::StaleAttempt)]);
    accepted(&session, &late).await;
    world.node.finish(&late.task_id, b"late");
    world.node.forgets(&late.task_id).await;
    world.relay.reply([Reply::Code(ErrorCode::InvalidField)]);
    accepted(&session, &wrong).await;
    world.node.finish(&wrong.task_id, b"wrong");
    assert_eq!(world.failed().await.mutation.code, "proof_refused");
    world.journal_is(<[String]>::is_empty).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn what_ends_before_the_relay_has_noted_its_acceptance_is_handed_in_again() {
    let mut world = World::new().await;
    world.config.timing.noting = Duration::from_secs(60);
    let agent = world.start();
    let (_, session) = world.connected().await;
    let (works, fails) = (assignment(1), assignment(2));
    world.relay.reply([Reply::Code(ErrorCode::StaleAttempt)]);
    accepted(&session, &works).await;
    world.node.finish(&works.task_id, b"at once");
    assert_eq!(world.proof().await.mutation.task_id, works.task_id);
    // The first was refused.
    assert_eq!(world.proof().await.mutation.task_id, works.task_id);
    world.relay.reply([Reply::Code(ErrorCode::StaleAttempt)]);
    accepted(&session, &fails).await;
    world.node.fail(&fails.task_id, "input_hash_mismatch");
    assert_eq!(world.failed().await.mutation.task_id, fails.task_id);
    assert_eq!(world.failed().await.mutation.task_id, fails.task_id);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_lost_acknowledgement_brings_the_same_proof_again() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    world.relay.reply([Reply::Hang]);
    let offered = assignment(1);
    accepted(&session, &offered).await;
    world.node.finish(&offered.task_id, b"r");
    let first = world.proof().await;
    let server = world.relay_server.take().unwrap();
    let address = server.address;
    server.stop().await;
    drop(session);
    // The relay is back and says that nothing is held: the proof's answer decides, not this.
    *world.relay.drop.lock().unwrap() = vec![AttemptKey { task_id: offered.task_id, attempt: 1 }];
    world.relay.reply((0..10_000).map(|_| Reply::Status(StatusCode::SERVICE_UNAVAILABLE)));
    world.relay_server = Some(world.relay.serve(address).await);
    let (register, session) = world.connected().await;
    assert_eq!(register.unacked_proofs.len(), 1);
    let beat = Heartbeats::of(&session).await.next().await.unwrap();
    assert_eq!(beat.attempts.len(), 1, "the attempt was called off");
    world.relay.replies.lock().unwrap().clear();
    assert_eq!(world.proof().await, first);
    world.journal_is(|entries| entries[0].contains(r#""stage":"done""#)).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_dead_node_is_given_up_before_the_lease_ends() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let mut task = task(1);
    task.deadline = now().plus(5);
    let offered = signed_assignment(task);
    let accept = accepted(&session, &offered).await;
    assert_eq!(accept.lease_until, offered.task.deadline);
    world.node_server.take().unwrap().stop().await;
    let mut beats = Heartbeats::of(&session).await;
    let beat = beats.until(|beat| beat.unhealthy.is_some()).await;
    assert_eq!(beat.slots, 0);
    let (status, body) = offer(&session, &assignment(2)).await;
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("node_unavailable"))
    );
    let fail = world.failed().await.mutation;
    assert_eq!(fail.code, "node_unreachable");
    assert!(now() < accept.lease_until, "the relay would not take it any more");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn failures_are_told() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let (burnt, lost) = (assignment(1), assignment(2));
    accepted(&session, &burnt).await;
    accepted(&session, &lost).await;
    world.relay.reply([Reply::Status(StatusCode::INTERNAL_SERVER_ERROR)]);
    world.node.fail(&burnt.task_id, "out_of_fuel");
    let fail = world.failed().await.mutation;
    assert_eq!((fail.task_id, fail.code.as_str()), (burnt.task_id, "out_of_fuel"));
    assert_eq!(fail.message, "no more fuel");
    assert_eq!(world.failed().await.mutation.code, "out_of_fuel", "told again until it is acknowledged");
    world.node.forget();
    let fail = world.failed().await.mutation;
    assert_eq!((fail.task_id, fail.code.as_str()), (lost.task_id, "node_restarted"));
    world.journal_is(<[String]>::is_empty).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn forged_tasks_are_refused() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let mut cases = Vec::new();
    let mut other_signer = assignment(1);
    other_signer.signature = assignment(2).signature;
    cases.push((other_signer, "invalid_signature"));
    let mut changed = assignment(1);
    changed.task.budget = Amount(U256::from(1));
    cases.push((changed, "invalid_signature"));
    let mut other_id = assignment(1);
    other_id.task_id = assignment(2).task_id;
    cases.push((other_id, "task_id_mismatch"));
    let mut settled = assignment(1);
    settled.domain.verifying_contract = taskmarket::Address::repeat_byte(1);
    cases.push((settled, "unsupported_domain"));
    let mut renamed = assignment(1);
    renamed.domain.name = "Another Market".to_owned();
    cases.push((renamed, "unsupported_domain"));
    let mut endless = task(1);
    endless.config.max_duration = u64::MAX;
    cases.push((signed_assignment(endless), "invalid_task"));
    let mut fourth = assignment(1);
    fourth.attempt = 4;
    cases.push((fourth, "invalid_attempt"));
    for (offered, code) in cases {
        let (status, body) = offer(&session, &offered).await;
        assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some(code)));
    }
    assert!(world.node.requests.lock().unwrap().is_empty());
    assert!(world.journal().is_empty());
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn the_operator_decides_what_is_taken() {
    let mut world = World::new().await;
    world.config.policy.min_budget = Amount(U256::from(500));
    world.config.policy.max_duration_secs = Some(100);
    world.config.policy.requesters = vec![task(0).requester];
    world.config.policy.slots = Some(1);
    let agent = world.start();
    let (register, session) = world.connected().await;
    assert!(register.metadata.contains(r#""slots":1"#), "{}", register.metadata);

    let mut poor = task(1);
    poor.budget = Amount(U256::from(499));
    let mut long = task(1);
    long.config.max_duration = 101;
    let mut embed = task(1);
    embed.config.runtime = taskmarket::Runtime::Embed;
    for (task, code) in
        [(poor, "budget_too_low"), (long, "duration_too_long"), (embed, "runtime_not_offered")]
    {
        let (status, body) = offer(&session, &signed_assignment(task)).await;
        assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some(code)));
    }
    let stranger = Wallet::random();
    let mut strange = task(1);
    strange.requester = stranger.address();
    let mut offered = assignment(1);
    offered.signature = stranger.sign(&strange, &Domain::UNSETTLED).unwrap().signature;
    offered.task_id = strange.id(&Domain::UNSETTLED);
    offered.task = strange;
    let (status, body) = offer(&session, &offered).await;
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (StatusCode::CONFLICT, Some("requester_not_allowed"))
    );

    accepted(&session, &assignment(1)).await;
    let (status, body) = offer(&session, &assignment(2)).await;
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("no_free_slot"))
    );
    // The next attempt of the same task takes the place of the one before.
    let mut next = assignment(1);
    next.attempt = 2;
    accepted(&session, &next).await;
    let (status, body) = offer(&session, &assignment(1)).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("stale_attempt")));
    agent.kill().await;
}

#[tokio::test]
async fn a_killed_agent_goes_on_from_its_journal() {
    let mut world = World::new().await;
    let agent = world.start();
    let (first, session) = world.connected().await;
    let (one, two) = (assignment(1), assignment(2));
    accepted(&session, &one).await;
    accepted(&session, &two).await;
    world.relay.reply([Reply::Status(StatusCode::SERVICE_UNAVAILABLE)]);
    world.node.finish(&one.task_id, b"one");
    let proof = world.proof().await;
    agent.kill().await;
    world.node.finish(&two.task_id, b"two");

    let agent = world.start_again().await;
    let (register, session) = world.connected().await;
    assert_eq!(register.registration.node_id, first.registration.node_id);
    let (a, b) = (world.proof().await, world.proof().await);
    let (again, other) = if a.mutation.task_id == one.task_id { (a, b) } else { (b, a) };
    assert_eq!(again, proof);
    assert_eq!(other.mutation.result_hash, hash(b"two"));
    world
        .journal_is(|entries| entries.iter().filter(|entry| entry.contains(r#""stage":"done""#)).count() == 2)
        .await;

    // A relay that asks for the attempt again gets its result again, without another run.
    world.relay.stored.lock().unwrap().clear();
    accepted(&session, &one).await;
    assert_eq!(world.proof().await, proof);
    assert_eq!(world.relay.stored.lock().unwrap()[&hash(b"one").to_string()], b"one");
    assert_eq!(world.node.requests.lock().unwrap().len(), 2);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn attempts_are_called_off() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let (one, two) = (assignment(1), assignment(2));
    accepted(&session, &one).await;
    accepted(&session, &two).await;
    let path = format!("/tasks/{}", one.task_id);
    assert_eq!(cancel(&session, &format!("{path}?attempt=2")).await, StatusCode::NO_CONTENT);
    assert!(world.node.knows(&one.task_id), "another attempt was meant");
    assert_eq!(cancel(&session, &format!("{path}?attempt=1")).await, StatusCode::NO_CONTENT);
    assert!(!world.node.knows(&one.task_id));
    assert_eq!(world.journal().len(), 1);
    assert_eq!(cancel(&session, &path).await, StatusCode::NO_CONTENT);
    assert_eq!(cancel(&session, "/tasks/0x12").await, StatusCode::BAD_REQUEST);

    *world.relay.drop.lock().unwrap() = vec![AttemptKey { task_id: two.task_id, attempt: 1 }];
    session.close(close_code::GOING_AWAY, "");
    let (register, _session) = world.connected().await;
    assert_eq!(register.attempts.len(), 1);
    world.node.forgets(&two.task_id).await;
    world.journal_is(<[String]>::is_empty).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn heartbeats_tell_changes_as_they_happen() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let mut beats = Heartbeats::of(&session).await;
    let first = beats.next().await.unwrap();
    assert_eq!((first.slots, first.busy, first.attempts.len()), (2, 0, 0));
    assert_eq!(first.free_vram_mb, [1000]);
    let offered = assignment(1);
    accepted(&session, &offered).await;
    beats.until(|beat| beat.busy == 1 && beat.attempts.len() == 1).await;
    world.node.run(&offered.task_id, 40);
    let running = beats.until(|beat| beat.attempts[0].progress.percent == Some(40)).await;
    assert_eq!(running.attempts[0].progress.phase, Phase::Running);
    world.node.finish(&offered.task_id, b"r");
    beats.until(|beat| beat.busy == 0 && beat.attempts.is_empty()).await;
    world.node.report.lock().unwrap().unhealthy = Some("too hot".to_owned());
    beats.until(|beat| beat.unhealthy.as_deref() == Some("too hot")).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_node_that_has_changed_is_registered_anew() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let _beats = Heartbeats::of(&session).await;
    world.node.report.lock().unwrap().devices[0].name = "Another GPU".to_owned();
    let (register, _session) = world.connected().await;
    assert!(register.metadata.contains("Another GPU"), "{}", register.metadata);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn stopping_lets_running_attempts_finish() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let offered = assignment(1);
    accepted(&session, &offered).await;
    let mut beats = Heartbeats::of(&session).await;
    agent.shutdown.cancel();
    let beat = beats.until(|beat| beat.slots == 0).await;
    assert!(beat.unhealthy.unwrap().contains("stopping"));
    let (status, body) = offer(&session, &assignment(2)).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("draining")));
    world.node.finish(&offered.task_id, b"r");
    world.proof().await;
    agent.ended().await.unwrap();
}

#[tokio::test]
async fn what_does_not_finish_in_time_stays_in_the_journal() {
    let mut world = World::new().await;
    world.config.drain = Duration::from_millis(50);
    let agent = world.start();
    let (_, session) = world.connected().await;
    accepted(&session, &assignment(1)).await;
    agent.stop().await.unwrap();
    assert_eq!(world.journal().len(), 1);
    assert!(world.node.knows(&assignment(1).task_id), "the node goes on with it");
}

#[tokio::test]
async fn a_newer_agent_ends_this_one() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    session.close(close_code::SUPERSEDED, "generation 2");
    assert!(matches!(agent.ended().await, Err(RunError::Superseded)));
}

#[tokio::test]
async fn refusals_that_cannot_heal_end_the_agent() {
    let mut world = World::new().await;
    let hello = r#"{"relay_id":"jp-2","session_id":"s","nonce":"0x0000000000000000000000000000000000000000000000000000000000000000","domains":[]}"#;
    *world.relay.hello.lock().unwrap() = Some(hello.to_owned());
    let error = world.start().ended().await.unwrap_err();
    assert!(matches!(&error, RunError::WrongRelay { actual, .. } if actual == "jp-2"), "{error}");
    *world.relay.hello.lock().unwrap() = Some(hello.replace("jp-2", "hz-1"));
    let error = world.start_again().await.ended().await.unwrap_err();
    assert!(matches!(error, RunError::NoCommonDomain), "{error}");

    *world.relay.refusal.lock().unwrap() = Some((ErrorCode::InvalidSignature, close_code::REFUSED));
    let error = world.start_again().await.ended().await.unwrap_err();
    assert!(matches!(&error, RunError::Refused { code, .. } if code == "invalid_signature"), "{error}");
    *world.relay.refusal.lock().unwrap() = Some((ErrorCode::Conflict, close_code::SUPERSEDED));
    let error = world.start_again().await.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Superseded), "{error}");

    let agent = world.start_again().await;
    let (_, session) = world.connected().await;
    session.close(close_code::REFUSED, "not wanted");
    assert!(matches!(agent.ended().await, Err(RunError::Refused { .. })));

    // One that can heal does not.
    *world.relay.refusal.lock().unwrap() = Some((ErrorCode::Unavailable, close_code::GOING_AWAY));
    let agent = world.start_again().await;
    world.connected().await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_hostile_relay_does_no_harm() {
    let mut world = World::new().await;
    let long = format!(r#"{{"relay_id":"hz-1","session_id":"{}"}}"#, "s".repeat(200_000));
    let control = r#"{"relay_id":"hz-1","session_id":"a\u001b[2J","nonce":"0x0000000000000000000000000000000000000000000000000000000000000000","domains":[]}"#;
    let agent = world.start();
    for garbage in ["", "null", "[[[[", "\u{1b}[31m", &long, control] {
        let (_, session) = world.connected().await;
        let before = *world.relay.dialled.borrow();
        *world.relay.hello.lock().unwrap() = Some(garbage.to_owned());
        session.close(close_code::GOING_AWAY, "");
        // Once for the garbage, once for the proper hello after it.
        let mut dialled = world.relay.dialled.subscribe();
        soon("two dials", dialled.wait_for(|count| *count >= before + 2)).await.unwrap();
    }
    let (_, session) = world.connected().await;
    for body in [vec![b'a'; 300 * 1024], vec![b'['; 200 * 1024]] {
        let (status, _) = post_tasks(&session, body).await;
        assert!(status == StatusCode::PAYLOAD_TOO_LARGE || status == StatusCode::BAD_REQUEST, "{status}");
    }
    let mut token = assignment(1);
    token.attempt_token = "a\r\nx-evil: 1".to_owned();
    assert_eq!(offer(&session, &token).await.0, StatusCode::BAD_REQUEST);
    accepted(&session, &assignment(1)).await;
    agent.kill().await;
}

#[tokio::test]
async fn mangled_offers_are_answered_and_survived() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let whole = serde_json::to_vec(&assignment(1)).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % bound as u64).unwrap()
    };
    for round in 0..400 {
        let mut body = whole.clone();
        for _ in 0..=random(3) {
            let at = random(body.len());
            match round % 4 {
                0 => body[at] ^= 1 << random(8),
                1 => body.truncate(at.max(1)),
                2 => drop(body.remove(at)),
                _ => body.insert(at, u8::try_from(random(256)).unwrap()),
            }
        }
        let (status, answer) = post_tasks(&session, body.clone()).await;
        let fine = [StatusCode::BAD_REQUEST, StatusCode::CONFLICT, StatusCode::ACCEPTED];
        assert!(fine.contains(&status), "{status} {answer} to {}", String::from_utf8_lossy(&body));
    }
    assert!(!agent.task.is_finished());
    agent.kill().await;
}

#[tokio::test]
async fn one_agent_at_a_time_uses_a_data_folder() {
    let mut world = World::new().await;
    let agent = world.start();
    let error = computeagent::build(world.config.clone()).map(drop).unwrap_err();
    assert!(matches!(&error, BuildError::Home(HomeError::InUse { .. })), "{error}");
    assert!(error.to_string().contains("hint:"));
    world.connected().await;
    agent.stop().await.unwrap();
    assert!(computeagent::build(world.config.clone()).is_ok());
}

#[tokio::test]
async fn a_node_that_is_not_up_is_waited_for() {
    let mut world = World::new().await;
    let server = world.node_server.take().unwrap();
    let address = server.address;
    server.stop().await;
    let agent = world.start();
    let mut dialled = world.relay.dialled.subscribe();
    assert!(
        tokio::time::timeout(Duration::from_millis(300), dialled.wait_for(|count| *count > 0)).await.is_err(),
        "there is nothing to register with yet"
    );
    world.node_server = Some(world.node.serve(address).await);
    world.connected().await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_relay_with_a_private_certificate_needs_the_ca_file() {
    let mut world = World::new().await;
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    world.relay_server = Some(world.relay.serve_tls(any_port(), &key).await);
    let port = world.relay_server.as_ref().unwrap().address.port();
    let url = format!("wss://localhost:{port}/v1/provider/connect");
    world.config.relay = computeagent::RelayUrl::parse(&url).unwrap();
    let error = world.start().ended().await.unwrap_err();
    assert!(matches!(&error, RunError::Connect(_)) && error.to_string().contains("--ca-file"), "{error}");

    let ca_file = world.folder.path().join("ca.pem");
    std::fs::write(&ca_file, key.cert.pem()).unwrap();
    world.config.ca_file = Some(ca_file);
    let agent = world.start_again().await;
    let (register, session) = world.connected().await;
    assert_eq!(register.registration.relay_url, url);
    let offered = assignment(1);
    accepted(&session, &offered).await;
    world.node.finish(&offered.task_id, &vec![7; 3 << 20]);
    world.proof().await;
    assert_eq!(world.relay.stored.lock().unwrap().len(), 1);
    agent.stop().await.unwrap();
}
