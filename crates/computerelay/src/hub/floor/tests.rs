use taskmarket::{
    Amount, ComputeProof, ContentHash, Domain, Event, Failure, Lease, Provider, ReleaseReason, Runtime,
    Submission, Task, TaskConfig, apply, publish,
};
use wallet::Wallet;

use super::super::choice::choose;
use super::super::tries::Tried;
use super::*;

const GRACE: Duration = Duration::from_secs(10);

fn floor() -> Floor {
    let secs = Duration::from_secs;
    Floor::new(Backoff { failed: secs(1), blamed: secs(30), max: secs(60) }, GRACE)
}

fn key(node: u8) -> NodeKey {
    NodeKey { provider: Address::repeat_byte(1), node_id: Bytes32([node; 32].into()) }
}

/// An open task of this age.
fn open(created_at: u64) -> TaskRecord {
    let requester = Wallet::random();
    let task = Task {
        requester: requester.address(),
        model_cid: "https://models.example/m".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://models.example/i".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".into(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 60,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: Amount::ZERO,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: Timestamp::from_unix(10_000),
        dispute_window: 0,
        arbiter_window: 0,
        arbiter: Address::ZERO,
        salt: Bytes32::default(),
    };
    let signed = requester.sign(&task, &Domain::UNSETTLED).unwrap();
    publish(Timestamp::from_unix(created_at), &signed.verify(&Domain::UNSETTLED).unwrap()).unwrap()
}

/// The task, held in attempt 1.
fn held(open: &TaskRecord) -> TaskRecord {
    let mut record = open.clone();
    let until = Timestamp::from_unix(9_000);
    let lease = Lease { provider: key(1).provider, attempt: 1, since: record.created_at, until };
    record.state = State::Accepted { lease };
    record.attempts = 1;
    record.provider = Some(Provider(key(1).provider));
    record.version += 1;
    record
}

#[test]
fn an_older_session_neither_takes_nor_clears_the_place_of_a_newer_one() {
    let (mut floor, now) = (floor(), Instant::now());
    assert!(floor.fence(key(1), 2, 10, now).unwrap().is_none());
    assert!(floor.fence(key(1), 1, 10, now).is_err());
    assert!(!floor.leave(key(1), 1, now));
    assert_eq!(floor.places(), 1);
    assert!(floor.fence(key(1), 3, 1, now).is_ok(), "the newer one needs no further place");
    assert!(floor.fence(key(2), 1, 1, now).is_err(), "all places are taken");
    assert!(floor.leave(key(1), 3, now));
    assert_eq!(floor.places(), 0);
}

#[test]
fn attempts_of_a_host_that_stays_away_are_forsaken_after_the_grace() {
    let (mut floor, now) = (floor(), Instant::now());
    let record = held(&open(5));
    floor.absorb(&record, Some(key(1).node_id), None, now);
    let (forsaken, next) = floor.forsaken(now + GRACE / 2);
    assert!(forsaken.is_empty());
    assert_eq!(next, Some(now + GRACE));
    assert_eq!(floor.forsaken(now + GRACE).0, [(record.id, 1)]);
    assert_eq!(floor.forsaken(now + GRACE * 2), (Vec::new(), None));

    // The relay could not release it: it tries again.
    floor.forsake_again(record.id, now + GRACE * 3);
    assert_eq!(floor.forsaken(now + GRACE * 3).0, [(record.id, 1)]);
}

#[test]
fn an_attempt_of_an_unknown_host_is_claimed_by_the_host_that_lists_it() {
    let (mut floor, now) = (floor(), Instant::now());
    let record = held(&open(5));
    floor.absorb(&record, None, None, now);
    let stranger = NodeKey { provider: Address::repeat_byte(9), ..key(1) };
    floor.claim(record.id, 1, stranger);
    floor.claim(record.id, 2, key(1));
    assert_eq!(floor.held[&record.id].key.node_id, Bytes32::default());
    floor.claim(record.id, 1, key(1));
    assert_eq!(floor.held[&record.id].key, key(1));
    assert!(floor.forsaken(now + GRACE).0.is_empty());
}

#[test]
fn what_is_told_late_changes_nothing() {
    let (mut floor, now) = (floor(), Instant::now());
    let first = open(5);
    let second = held(&first);
    let mut third = second.clone();
    apply(
        &mut third,
        Timestamp::from_unix(6),
        &Event::Released { attempt: 1, reason: ReleaseReason::SessionLost },
    );
    for record in [&first, &second, &third, &second, &first] {
        floor.absorb(record, Some(key(1).node_id), None, now);
    }
    assert!(floor.held.is_empty() && floor.held_by.is_empty());
    assert_eq!(floor.waiting.len(), 1);
    let waiting = floor.waiting.values().next().unwrap();
    let barred = waiting.tries.bar(&key(1), now).unwrap();
    assert_eq!(barred.reason, "its attempt 1 ended: session_lost");
    assert!(waiting.tries.last(&key(2)).is_some(), "the provider's other hosts count as tried");
    let other = NodeKey { provider: Address::repeat_byte(2), ..key(1) };
    assert!(waiting.tries.last(&other).is_none());
    assert!(floor.scores.is_behind(&key(1).provider, now));
}

/// The task, open again after its holder failed it with this code.
fn failed(held: &TaskRecord, code: &str) -> TaskRecord {
    let mut record = held.clone();
    let provider = held.provider.unwrap().0;
    let attempt = held.attempts;
    let failure = Failure { attempt, provider, code: code.to_owned(), message: String::new() };
    if failure::fails_anywhere(code) {
        record.faults.push(failure.clone());
    }
    record.failure = Some(failure);
    record.state = State::Open;
    record.version += 1;
    record
}

#[test]
fn what_is_the_requesters_making_is_not_held_against_the_provider_until_another_shows_otherwise() {
    for (code, is_blamed) in [("io", true), ("unheard_of", true), ("out_of_fuel", false)] {
        let (mut floor, now) = (floor(), Instant::now());
        let (first, host) = (held(&open(5)), Some(key(1).node_id));
        let again = failed(&first, code);
        floor.absorb(&first, host, None, now);
        floor.absorb(&again, host, Some(Word::Signature), now);
        let provider = key(1).provider;
        assert_eq!(floor.scores.is_behind(&provider, now), is_blamed, "{code}");

        let other = Wallet::random();
        let mut second = held(&again);
        second.attempts = 2;
        second.provider = Some(Provider(other.address()));
        let lease = Lease {
            provider: other.address(),
            attempt: 2,
            since: Timestamp::from_unix(6),
            until: Timestamp::from_unix(9_000),
        };
        second.state = State::Accepted { lease };
        floor.absorb(&second, host, None, now);
        let proof = ComputeProof {
            task_id: second.id,
            provider: other.address(),
            attempt: 2,
            model_hash: ContentHash([1; 32].into()),
            input_hash: ContentHash([2; 32].into()),
            result_hash: ContentHash([3; 32].into()),
            result_cid: "https://results.example/r".parse().unwrap(),
            started_at: Timestamp::from_unix(6),
            finished_at: Timestamp::from_unix(7),
            gpu_name: "CPU".to_owned(),
        };
        let proof = other.sign(&proof, &Domain::UNSETTLED).unwrap();
        let mut done = second.clone();
        let at = Timestamp::from_unix(7);
        done.state = State::Submitted { submission: Submission { proof, at }, dispute_until: at };
        done.version += 1;
        floor.absorb(&done, host, Some(Word::Signature), now);
        assert!(floor.scores.is_behind(&provider, now), "{code}: another did what it called impossible");
        assert!(!floor.scores.is_behind(&other.address(), now));
    }
}

/// A host of this provider, which takes work.
fn free_host(provider: u8) -> scheduler::Offer {
    scheduler::Offer {
        key: NodeKey { provider: Address::repeat_byte(provider), node_id: Bytes32::default() },
        devices: Vec::new(),
        runtimes: vec![Runtime::Wasm],
        slots: 1,
        busy: 1,
        warm: Vec::new(),
        served: Vec::new(),
        accepting: true,
    }
}

/// A floor whose hosts had the time to come back, with a task that its only host calls impossible.
fn accused(now: Instant) -> (Floor, TaskId) {
    let mut floor = floor();
    let record = failed(&held(&open(5)), "out_of_fuel");
    floor.absorb(&record, None, None, now);
    floor.index.upsert(free_host(1));
    floor.patience.alone = ALONE;
    floor.patience.others_live = false;
    floor.be_patient();
    (floor, record.id)
}

/// Looks every second from `from` until `to`, in seconds, and says which tasks are to end, and when.
fn looks(floor: &mut Floor, begun: Instant, from: u64, to: u64) -> Vec<(u64, TaskId)> {
    let looked = (from..to).map(|secs| (secs, floor.in_vain(begun + Duration::from_secs(secs)).0));
    looked.flat_map(|(secs, vain)| vain.into_iter().map(move |id| (secs, id))).collect()
}

const ALONE: Duration = Duration::from_secs(60);

#[test]
fn one_word_ends_a_task_once_nobody_else_was_there_for_a_while() {
    let begun = Instant::now();
    let (mut floor, id) = accused(begun);
    assert_eq!(looks(&mut floor, begun, 0, 60), []);
    let ended = looks(&mut floor, begun, 60, 70);
    assert_eq!(ended, [(60, id), (65, id)], "and again where the store did not take it");
    // Before hosts can connect there is nobody.
    let mut closed = super::Floor::new(floor.backoff, GRACE);
    closed.patience.others_live = false;
    closed.absorb(&failed(&held(&open(5)), "out_of_fuel"), None, None, begun);
    assert_eq!(looks(&mut closed, begun, 0, 200), []);
}

#[test]
fn others_that_fit_count_though_they_are_busy_or_closed_and_begin_the_wait_anew() {
    let begun = Instant::now();
    let (mut floor, id) = accused(begun);
    assert_eq!(looks(&mut floor, begun, 0, 30), []);
    let other = scheduler::Offer { accepting: false, ..free_host(2) };
    floor.index.upsert(other.clone());
    assert_eq!(looks(&mut floor, begun, 30, 200), []);
    floor.index.remove(&other.key);
    assert_eq!(looks(&mut floor, begun, 200, 261), [(260, id)]);

    // Its operator takes no such tasks.
    let (mut floor, id) = accused(begun);
    floor.index.upsert(other.clone());
    for (lasts, expected) in [(false, vec![]), (true, vec![(160, id)])] {
        let tries = &mut floor.waiting.values_mut().next().unwrap().tries;
        tries.add(other.key, Tried { reason: "refused".into(), backoff: GRACE, lasts }, GRACE, begun);
        let from = if lasts { 100 } else { 0 };
        assert_eq!(looks(&mut floor, begun, from, from + 65), expected);
    }
}

#[test]
fn a_host_that_is_away_for_a_moment_counts_as_there() {
    let begun = Instant::now();
    let at = |secs| begun + Duration::from_secs(secs);
    let (mut floor, id) = accused(begun);
    assert_eq!(looks(&mut floor, begun, 0, 50), []);
    // It came and went between two looks.
    floor.away.add(free_host(2), at(50));
    assert_eq!(looks(&mut floor, begun, 51, 119), []);
    assert_eq!(looks(&mut floor, begun, 119, 125), [(120, id)]);

    // Nor is a task ended by an older look than that who came.
    let (mut floor, _) = accused(begun);
    let between = Duration::from_millis(500);
    assert_eq!(looks(&mut floor, begun, 0, 59), []);
    assert_eq!(floor.in_vain(at(59) + between).0, []);
    floor.index.upsert(free_host(2));
    assert_eq!(floor.in_vain(at(60)).0, []);
    assert_eq!(looks(&mut floor, begun, 61, 200), []);

    // While nobody looked, who knows who was there.
    let (mut floor, id) = accused(begun);
    assert_eq!(looks(&mut floor, begun, 0, 30), []);
    assert_eq!(looks(&mut floor, begun, 100, 165), [(160, id)]);

    // The relay was out of reach, and its hosts are to connect again.
    let (mut floor, id) = accused(begun);
    assert_eq!(looks(&mut floor, begun, 0, 50), []);
    floor.be_patient();
    assert_eq!(looks(&mut floor, begun, 50, 111), [(110, id)]);
}

#[test]
fn one_word_ends_nothing_while_other_relays_live_or_may() {
    let begun = Instant::now();
    assert!(floor().patience.others_live, "until it is known that there are none");
    let (mut floor, id) = accused(begun);
    assert_eq!(looks(&mut floor, begun, 0, 30), []);
    floor.patience.others_live = true;
    assert_eq!(looks(&mut floor, begun, 30, 500), []);
    floor.patience.others_live = false;
    assert_eq!(looks(&mut floor, begun, 500, 561), [(560, id)]);
}

#[test]
fn two_that_agree_end_a_task_whoever_else_is_there_and_other_failures_do_not() {
    let (mut floor, now) = (floor(), Instant::now());
    floor.index.upsert(free_host(3));
    floor.be_patient();
    floor.patience.others_live = false;
    let first = failed(&held(&open(5)), "out_of_fuel");
    let mut second = first.clone();
    let (attempt, provider) = (2, Address::repeat_byte(2));
    let message = String::new();
    second.faults.push(Failure { attempt, provider, code: "trapped".to_owned(), message });
    second.version += 1;
    floor.absorb(&second, None, None, now);
    assert_eq!(floor.in_vain(now).0, [], "they say different things");
    second.faults[1].code = "out_of_fuel".to_owned();
    second.version += 1;
    floor.absorb(&second, None, None, now);
    assert_eq!(floor.in_vain(now).0, [second.id]);
    assert!(floor.assign(9, now).0.is_empty());

    let other = failed(&held(&open(6)), "io");
    floor.absorb(&other, None, None, now);
    floor.index.remove(&free_host(3).key);
    assert_eq!(floor.in_vain(now + GRACE).0, [second.id], "its end is not stored yet");
    let later = looks(&mut floor, now, 11, 200);
    assert!(later.iter().all(|(_, id)| *id == second.id), "what is the provider's making may go better");
}

#[test]
fn words_of_identities_that_proved_nothing_do_not_keep_a_task_from_who_did() {
    let (mut floor, now) = (floor(), Instant::now());
    floor.be_patient();
    floor.patience.others_live = false;
    let mut record = failed(&held(&open(5)), "out_of_fuel");
    let word = |provider: u8| Failure {
        attempt: 2,
        provider: Address::repeat_byte(provider),
        code: "out_of_fuel".to_owned(),
        message: String::new(),
    };
    record.faults.push(word(2));
    floor.index.upsert(free_host(3));
    floor.index.upsert(free_host(4));
    floor.proven.upsert(free_host(3));
    floor.absorb(&record, None, None, now);
    assert_eq!(floor.in_vain(now).0, []);
    assert!(!floor.is_agreed(&record));
    // It says the same: now the words of the two others are all that there is, though a newcomer is free.
    record.faults.push(word(3));
    record.version += 1;
    floor.absorb(&record, None, None, now);
    assert!(floor.is_agreed(&record));
    assert_eq!(floor.in_vain(now).0, [record.id]);

    // Of two that proved themselves the words count, whoever else did.
    let mut other = failed(&held(&open(6)), "out_of_fuel");
    other.faults = vec![word(3), word(4)];
    for provider in [3, 4] {
        let node_id = Bytes32::default();
        floor.scores.praise(NodeKey { provider: Address::repeat_byte(provider), node_id }, None, now);
    }
    floor.proven.upsert(free_host(5));
    floor.absorb(&other, None, None, now);
    assert_eq!(floor.in_vain(now).0, [other.id]);
}

#[test]
fn who_has_too_little_for_a_task_gets_it_again_only_where_no_other_fits() {
    let (mut floor, now) = (floor(), Instant::now());
    let record = failed(&held(&open(5)), "too_large");
    assert!(record.faults.is_empty(), "another host may have more");
    floor.absorb(&record, None, None, now);
    floor.index.upsert(scheduler::Offer { busy: 0, ..free_host(1) });
    floor.index.upsert(free_host(2));
    let chosen = |floor: &Floor, at| {
        let waiting = floor.waiting.values().next().unwrap();
        choose(&floor.index, &floor.proven, &floor.scores, waiting, &mut HashMap::new(), at)
    };
    let long_after = now + GRACE * 100;
    assert_eq!(chosen(&floor, long_after), None, "the other is only busy");
    assert_eq!(floor.in_vain(long_after).0, [], "nobody said that it fails anywhere");
    floor.index.remove(&free_host(2).key);
    assert_eq!(chosen(&floor, now), None, "not at once");
    assert_eq!(chosen(&floor, long_after), Some(free_host(1).key));
}

#[test]
fn the_oldest_tasks_are_kept_in_memory() {
    let (mut floor, now) = (floor(), Instant::now());
    let records: Vec<_> = [7, 3, 9, 1].map(open).into();
    for record in &records {
        floor.absorb(record, None, None, now);
    }
    assert!(floor.trim(2) && !floor.trim(2));
    let ages: Vec<_> = floor.waiting.keys().map(|(at, _)| at.unix()).collect();
    assert_eq!(ages, [1, 3]);
}
