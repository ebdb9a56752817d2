//! The arithmetic of reports on providers: pure, over sessions and attempts as they are stored.
//!
//! - A provider is up while any of its hosts has a session, a host while it has one. Times are whole seconds, and a session covers those
//!   from its begin up to, not including, its end. A session that a killed relay left open ends when that relay starts again.
//! - What is observed of a window begins with the first session ever known, of the provider or of the host.
//! - An attempt is counted as begun where it was accepted, and by its outcome where it ended.

use std::collections::{BTreeMap, HashMap};

use rpc::relay::{AttemptCounts, HostUptime, ReportWindow, Spread, Uptime};
use store::{Outcome, StoredAttempt, StoredSession};
use taskmarket::{Bytes32, Timestamp};

/// The windows of a report, in seconds: an hour, 24 hours, 30 days.
pub(crate) const WINDOWS_SECS: [u64; 3] = [3600, 86_400, 30 * 86_400];
/// The first generation of a host's sessions.
const FIRST: u64 = 1;
/// All of something, in basis points.
const ALL_BPS: u64 = 10_000;

/// What is known of a window of time that ends now.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    /// Its end.
    pub(crate) now: Timestamp,
    /// Its length, in seconds.
    pub(crate) secs: u64,
    /// The sessions that had not ended before it.
    pub(crate) sessions: &'a [StoredSession],
    /// The attempts that had not ended before it.
    pub(crate) attempts: &'a [StoredAttempt],
    /// Whether the provider had sessions before those.
    pub(crate) was_here_before: bool,
    /// Whether these are all sessions and attempts of the window.
    pub(crate) complete: bool,
}

/// Reports on a window.
pub(crate) fn report(known: &Known<'_>) -> ReportWindow {
    let from = Timestamp::from_unix(known.now.unix().saturating_sub(known.secs));
    let mut by_host: BTreeMap<Bytes32, Vec<&StoredSession>> = BTreeMap::new();
    for session in known.sessions {
        by_host.entry(session.node_id).or_default().push(session);
    }
    let all: Vec<&StoredSession> = known.sessions.iter().collect();
    let hosts = by_host.into_iter().map(|(node_id, sessions)| {
        let is_new = sessions.iter().any(|session| session.generation == FIRST);
        let (connects, reconnects) = connects(&sessions, from, known.now);
        HostUptime { node_id, uptime: uptime(&sessions, from, known.now, !is_new), connects, reconnects }
    });
    let (connects, reconnects) = connects(&all, from, known.now);
    ReportWindow {
        window_secs: known.secs,
        complete: known.complete,
        uptime: uptime(&all, from, known.now, known.was_here_before || !known.complete),
        connects,
        reconnects,
        attempts: counts(known.attempts, from, known.now),
        dispatch_ms: spread(
            known
                .attempts
                .iter()
                .filter(|attempt| is_within(attempt.accepted_at, from, known.now))
                .filter_map(|attempt| attempt.dispatch_ms),
        ),
        run_secs: spread(known.attempts.iter().filter_map(|attempt| match attempt.ended {
            Some((ended, Outcome::Proven)) if is_within(ended, from, known.now) => {
                Some(ended.since(attempt.accepted_at))
            }
            Some(_) | None => None,
        })),
        hosts: hosts.collect(),
    }
}

fn is_within(at: Timestamp, from: Timestamp, now: Timestamp) -> bool {
    (from..=now).contains(&at)
}

fn uptime(sessions: &[&StoredSession], from: Timestamp, now: Timestamp, was_here_before: bool) -> Uptime {
    let first = sessions.iter().map(|session| session.connected_at).min();
    let since = match first {
        Some(first) if !was_here_before => first.clamp(from, now),
        None if !was_here_before => now,
        Some(_) | None => from,
    };
    let up_secs = covered(sessions.iter().map(|session| {
        let end = session.ended.as_ref().map_or(now, |(at, _)| *at);
        (session.connected_at.max(from), end.min(now))
    }));
    let observed_secs = now.since(since);
    // A share of at most all of it fits.
    let uptime_bps =
        u32::try_from((up_secs * ALL_BPS).checked_div(observed_secs).unwrap_or(0)).unwrap_or(u32::MAX);
    Uptime { up_secs, observed_secs, uptime_bps }
}

/// How many seconds any of these spans covers.
fn covered(spans: impl Iterator<Item = (Timestamp, Timestamp)>) -> u64 {
    let mut spans: Vec<_> = spans.filter(|(begin, end)| begin < end).collect();
    spans.sort_unstable();
    let mut total = 0;
    let mut reached = Timestamp::from_unix(0);
    for (begin, end) in spans {
        total += end.since(begin.max(reached));
        reached = reached.max(end);
    }
    total
}

/// How many sessions began, and how many of those were not their host's first.
fn connects(sessions: &[&StoredSession], from: Timestamp, now: Timestamp) -> (u64, u64) {
    let began = sessions.iter().filter(|session| is_within(session.connected_at, from, now));
    began.fold((0, 0), |(all, again), session| (all + 1, again + u64::from(session.generation > FIRST)))
}

fn counts(attempts: &[StoredAttempt], from: Timestamp, now: Timestamp) -> AttemptCounts {
    let mut counts = AttemptCounts::default();
    for attempt in attempts {
        counts.accepted += u64::from(is_within(attempt.accepted_at, from, now));
        let Some((ended, outcome)) = attempt.ended else {
            counts.running += 1;
            continue;
        };
        if !is_within(ended, from, now) {
            continue;
        }
        let count = match outcome {
            Outcome::Proven => &mut counts.proven,
            Outcome::Failed => &mut counts.failed,
            Outcome::LeaseLapsed | Outcome::Expired => &mut counts.timed_out,
            Outcome::SessionLost | Outcome::AttemptDropped => &mut counts.lost,
            Outcome::Cancelled => &mut counts.cancelled,
        };
        *count += 1;
    }
    counts
}

fn spread(values: impl Iterator<Item = u64>) -> Option<Spread> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    let percentile = |percent: usize| {
        let place = (values.len() * percent).div_ceil(100);
        values.get(place.checked_sub(1)?).copied()
    };
    Some(Spread { count: values.len() as u64, median: percentile(50)?, p99: percentile(99)? })
}

/// What became of attempts with a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Begun before it, and brought along by the host.
    pub(crate) resumed: u64,
    /// Lost with it.
    pub(crate) lost: u64,
}

/// What became of attempts with each session, by the session's id.
///
/// An attempt begins with one session of its host and ends with one: where it was lost, with the last session that had ended by then;
/// otherwise with the last one that had begun before. The sessions after the first up to the last resumed it.
pub(crate) fn carried(sessions: &[StoredSession], attempts: &[StoredAttempt]) -> HashMap<String, Carried> {
    let mut by_host: HashMap<Bytes32, Vec<&StoredSession>> = HashMap::new();
    for session in sessions {
        by_host.entry(session.node_id).or_default().push(session);
    }
    for sessions in by_host.values_mut() {
        sessions.sort_by_key(|session| session.generation);
    }
    let mut carried: HashMap<String, Carried> = HashMap::new();
    for attempt in attempts {
        let Some(sessions) = attempt.node_id.and_then(|node| by_host.get(&node)) else { continue };
        let (resumed, lost) = path(sessions, attempt);
        for session in &sessions[resumed] {
            carried.entry(session.session_id.clone()).or_default().resumed += 1;
        }
        if let Some(session) = lost.and_then(|lost| sessions.get(lost)) {
            carried.entry(session.session_id.clone()).or_default().lost += 1;
        }
    }
    carried
}

/// Which of a host's sessions, oldest first, resumed an attempt, and with which it was lost.
fn path(sessions: &[&StoredSession], attempt: &StoredAttempt) -> (std::ops::Range<usize>, Option<usize>) {
    let own = sessions.iter().position(|session| Some(&session.session_id) == attempt.session_id.as_ref());
    // Its first session may be older than those that are known.
    let next = own.map_or_else(
        || sessions.partition_point(|session| session.connected_at <= attempt.accepted_at),
        |own| own + 1,
    );
    // Times are whole seconds: a session that began in the second of the end counts as begun before it.
    let begun_before = |at: Timestamp| sessions.partition_point(|session| session.connected_at <= at);
    match attempt.ended {
        None => (next..sessions.len().max(next), None),
        Some((at, Outcome::SessionLost | Outcome::AttemptDropped)) => {
            let had_ended =
                |session: &&&StoredSession| session.ended.as_ref().is_some_and(|(end, _)| *end <= at);
            let ended = sessions.iter().rev().position(|session| had_ended(&session));
            let last = ended.map(|from_the_end| sessions.len() - 1 - from_the_end);
            match last.filter(|last| last + 1 >= next) {
                Some(last) => (next..(last + 1).max(next), Some(last)),
                // The host dropped it in the session that it began with.
                None => (next..next, own),
            }
        }
        Some((at, _)) => (next..begun_before(at).max(next), None),
    }
}

#[cfg(test)]
mod tests;
