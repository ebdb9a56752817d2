//! The reports' arithmetic against a model that counts second by second and one by one.

use proptest::prelude::*;
use taskmarket::{Address, B256, TaskId};

use super::*;

/// Times of the model, in seconds; windows are shorter, so that things lie before, across and within them.
const SPAN: u64 = 60;
const BASE: u64 = 1_700_000_000;

fn at(second: u64) -> Timestamp {
    Timestamp::from_unix(BASE + second)
}

fn node(number: u8) -> Bytes32 {
    Bytes32(B256::repeat_byte(number))
}

fn session(host: u8, generation: u64, begin: u64, end: Option<u64>) -> StoredSession {
    StoredSession {
        session_id: format!("{host}-{generation}"),
        provider: Address::ZERO,
        node_id: node(host),
        relay_id: "hz-1".to_owned(),
        metadata_json: String::new(),
        generation,
        connected_at: at(begin),
        ended: end.map(|end| (at(end), "lost".to_owned())),
    }
}

fn attempt(host: u8, session: Option<&str>, begin: u64, end: Option<(u64, Outcome)>) -> StoredAttempt {
    StoredAttempt {
        task_id: TaskId(B256::ZERO),
        attempt: 1,
        provider: Address::ZERO,
        node_id: Some(node(host)),
        session_id: session.map(str::to_owned),
        accepted_at: at(begin),
        dispatch_ms: Some(begin * 7),
        ended: end.map(|(end, outcome)| (at(end), outcome)),
    }
}

/// Sessions of three hosts; of each host one after the other, the last one perhaps open.
fn sessions() -> impl Strategy<Value = Vec<StoredSession>> {
    let of_host = (prop::collection::vec(0..SPAN, 0..8), any::<bool>());
    prop::collection::vec(of_host, 3).prop_map(|hosts| {
        let mut all = Vec::new();
        for (host, (mut times, is_open)) in (1..).zip(hosts) {
            times.sort_unstable();
            let spans = times.chunks(2);
            let count = spans.len();
            for (number, span) in spans.enumerate() {
                let is_last = number + 1 == count;
                let end = span.get(1).copied().filter(|_| !(is_last && is_open));
                let end = if is_last { end } else { Some(span[span.len() - 1]) };
                all.push(session(host, number as u64 + 1, span[0], end));
            }
        }
        all
    })
}

fn attempts() -> impl Strategy<Value = Vec<StoredAttempt>> {
    let outcome = prop::sample::select(Outcome::ALL.to_vec());
    let one = (1..4_u8, 0..SPAN, prop::option::of((0..SPAN, outcome)));
    prop::collection::vec(one, 0..40).prop_map(|all| {
        let make = |(host, begin, end): (u8, u64, Option<(u64, Outcome)>)| {
            attempt(host, None, begin, end.map(|(after, outcome)| (begin.max(after), outcome)))
        };
        all.into_iter().map(make).collect()
    })
}

/// Whether a session covers a second.
fn covers(session: &StoredSession, second: u64) -> bool {
    session.connected_at <= at(second) && session.ended.as_ref().is_none_or(|(end, _)| *end > at(second))
}

fn naive_percentile(values: &[u64], percent: u64) -> u64 {
    // The least value that at least so many per cent of all do not exceed.
    let enough = |value: &&u64| {
        let covered = values.iter().filter(|other| other <= value).count() as u64;
        covered * 100 >= percent * values.len() as u64
    };
    *values.iter().filter(enough).min().unwrap()
}

proptest! {
    #[test]
    fn reports_match_the_model(
        sessions in sessions(),
        attempts in attempts(),
        secs in 1..SPAN,
        was_here_before: bool,
    ) {
        let (now, from) = (SPAN, SPAN - secs);
        let known = Known {
            now: at(now), secs, sessions: &sessions, attempts: &attempts, was_here_before, complete: true,
        };
        let report = report(&known);

        let up = (from..now).filter(|second| sessions.iter().any(|session| covers(session, *second))).count();
        prop_assert_eq!(report.uptime.up_secs, up as u64);
        let first = sessions.iter().map(|session| session.connected_at).min();
        let observed = (from..now)
            .filter(|second| was_here_before || first.is_some_and(|first| first <= at(*second)))
            .count() as u64;
        prop_assert_eq!(report.uptime.observed_secs, observed);
        prop_assert!(report.uptime.up_secs <= report.uptime.observed_secs);
        let share = (up as u64 * 10_000).checked_div(observed).unwrap_or(0);
        prop_assert_eq!(u64::from(report.uptime.uptime_bps), share);
        for host in &report.hosts {
            let own: Vec<_> = sessions.iter().filter(|session| session.node_id == host.node_id).collect();
            let up = (from..now).filter(|second| own.iter().any(|session| covers(session, *second))).count();
            prop_assert_eq!(host.uptime.up_secs, up as u64);
            prop_assert!(host.uptime.up_secs <= report.uptime.up_secs);
        }
        let connects: u64 = report.hosts.iter().map(|host| host.connects).sum();
        prop_assert_eq!(report.connects, connects);
        let firsts = sessions.iter().filter(|session| {
            session.generation == 1 && session.connected_at >= at(from)
        });
        prop_assert_eq!(report.connects - report.reconnects, firsts.count() as u64);

        let ended = |wanted: &[Outcome]| {
            let is_counted = |attempt: &&StoredAttempt| attempt.ended.is_some_and(|(end, outcome)| {
                wanted.contains(&outcome) && end >= at(from)
            });
            attempts.iter().filter(is_counted).count() as u64
        };
        let counts = report.attempts;
        prop_assert_eq!(counts.proven, ended(&[Outcome::Proven]));
        prop_assert_eq!(counts.failed, ended(&[Outcome::Failed]));
        prop_assert_eq!(counts.timed_out, ended(&[Outcome::LeaseLapsed, Outcome::Expired]));
        prop_assert_eq!(counts.lost, ended(&[Outcome::SessionLost, Outcome::AttemptDropped]));
        prop_assert_eq!(counts.cancelled, ended(&[Outcome::Cancelled]));
        let dispatches: Vec<u64> =
            (from..=now).flat_map(|second| {
                let begun = attempts.iter().filter(move |attempt| attempt.accepted_at == at(second));
                begun.filter_map(|attempt| attempt.dispatch_ms)
            }).collect();
        prop_assert_eq!(counts.accepted, dispatches.len() as u64);
        match report.dispatch_ms {
            None => prop_assert!(dispatches.is_empty()),
            Some(spread) => {
                prop_assert_eq!(spread.median, naive_percentile(&dispatches, 50));
                prop_assert_eq!(spread.p99, naive_percentile(&dispatches, 99));
            }
        }
        prop_assert_eq!(report.run_secs.map_or(0, |spread| spread.count), counts.proven);
    }

    #[test]
    fn no_attempt_is_lost_twice_or_resumed_out_of_its_time(sessions in sessions(), attempts in attempts()) {
        let total = carried(&sessions, &attempts);
        let lost: u64 = total.values().map(|carried| carried.lost).sum();
        let ended_lost = attempts.iter().filter(|attempt| {
            matches!(attempt.ended, Some((_, Outcome::SessionLost | Outcome::AttemptDropped)))
        });
        prop_assert!(lost <= ended_lost.count() as u64);
        for attempt in &attempts {
            for session in &sessions {
                let one = carried(&sessions, std::slice::from_ref(attempt));
                let Some(one) = one.get(&session.session_id) else { continue };
                prop_assert_eq!(Some(session.node_id), attempt.node_id);
                if one.resumed > 0 {
                    prop_assert!(session.connected_at > attempt.accepted_at);
                    prop_assert!(attempt.ended.is_none_or(|(end, _)| session.connected_at <= end));
                }
            }
        }
    }
}

#[test]
fn sessions_that_overlap_count_once() {
    let sessions = [session(1, 1, 0, Some(20)), session(2, 1, 10, Some(40)), session(2, 2, 50, None)];
    let known = Known {
        now: at(60),
        secs: 55,
        sessions: &sessions,
        attempts: &[],
        was_here_before: true,
        complete: true,
    };
    let report = report(&known);
    assert_eq!(report.uptime, Uptime { up_secs: 45, observed_secs: 55, uptime_bps: 8181 });
    assert_eq!((report.connects, report.reconnects), (2, 1));
    assert_eq!(report.hosts[0].uptime.up_secs, 15);
    assert_eq!(report.hosts[1].uptime, Uptime { up_secs: 40, observed_secs: 50, uptime_bps: 8000 });
    assert_eq!((report.dispatch_ms, report.run_secs), (None, None));
}

#[test]
fn attempts_are_resumed_and_lost_with_the_right_sessions() {
    let sessions = [session(1, 1, 0, Some(10)), session(1, 2, 12, Some(20)), session(1, 3, 30, None)];
    let first = Some("1-1");
    let attempts = [
        // Ended in its own session; carried through all; carried into the second and lost with it.
        attempt(1, first, 1, Some((5, Outcome::Proven))),
        attempt(1, first, 2, None),
        attempt(1, first, 3, Some((25, Outcome::SessionLost))),
        // Missing when the host came back the first time.
        attempt(1, first, 4, Some((12, Outcome::AttemptDropped))),
        // Dropped by a host that stayed connected; of another host.
        attempt(1, Some("1-3"), 31, Some((33, Outcome::AttemptDropped))),
        attempt(2, None, 1, Some((25, Outcome::SessionLost))),
    ];
    let carried = carried(&sessions, &attempts);
    let of = |id: &str| carried.get(id).copied().unwrap_or_default();
    assert_eq!(of("1-1"), Carried { resumed: 0, lost: 1 });
    assert_eq!(of("1-2"), Carried { resumed: 2, lost: 1 });
    assert_eq!(of("1-3"), Carried { resumed: 1, lost: 1 });
}

#[test]
fn percentiles_are_of_the_nearest_rank() {
    let of = |values: &[u64]| spread(values.iter().copied()).map(|spread| (spread.median, spread.p99));
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[5]), Some((5, 5)));
    assert_eq!(of(&[4, 1, 3, 2]), Some((2, 4)));
    let hundred: Vec<u64> = (1..=100).collect();
    assert_eq!(of(&hundred), Some((50, 99)));
}
