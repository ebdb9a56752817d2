//! The circuit breaker of a provider and a model: after some failures in a row nobody is sent there for a while, then one request
//! tries, and all follow once it is answered. While it tries its word alone counts: of requests that are older nothing can be learned
//! about now.

use std::time::{Duration, Instant};

/// Failures in a row after which the breaker opens.
const THRESHOLD: u32 = 3;
/// How long it stays open the first time; twice as long each further time in a row.
const FIRST: Duration = Duration::from_secs(5);
/// The longest that it stays open.
const LONGEST: Duration = Duration::from_secs(300);

/// How long a failure weighs in the choice of a host.
const RECENT: Duration = Duration::from_secs(60);

/// How bad a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The host was slow, broke off or answered an error.
    Plain,
    /// It sent what no engine sends: the breaker opens at once.
    Grave,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
    /// Failures since the last request that was served.
    failures: u32,
    /// How often it opened since then.
    trips: u32,
    last_failure: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// One request tries.
    Trying,
}

impl Breaker {
    /// Whether a request may go there.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } => until <= now,
            State::Trying => false,
        }
    }

    /// A request goes there, as it [may](Self::admits). Says whether it is the one that tries.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let tries = matches!(self.state, State::Open { until } if until <= now);
        if tries {
            self.state = State::Trying;
        }
        tries
    }

    /// A request's answer began: where it is the one that tries, others may follow. The next failure opens the breaker again.
    pub(super) fn answered(&mut self, tries: bool) {
        if self.is_of(tries) && self.state == State::Trying {
            self.state = State::Closed;
            self.failures = THRESHOLD - 1;
        }
    }

    /// A request was served.
    pub(super) fn succeeded(&mut self, tries: bool) {
        if self.state == State::Closed || self.is_of(tries) {
            *self = Self::default();
        }
    }

    /// A request that began at `begun` failed. `jitter`, from 0 to 1, makes the wait up to a quarter longer, so that not everybody
    /// comes back at once.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        tries: bool,
        begun: Instant,
        now: Instant,
        jitter: f64,
    ) {
        let is_new = self.last_failure.is_none_or(|last| begun >= last);
        let was_trying = self.state == State::Trying && tries;
        self.last_failure = Some(now);
        // Requests that failed together are one failure: a lost connection says no more because many shared it.
        if is_new {
            self.failures += 1;
        }
        let opens = was_trying || failure == Failure::Grave || self.failures >= THRESHOLD;
        if opens && (was_trying || self.state == State::Closed) {
            let wait = FIRST.saturating_mul(1 << self.trips.min(16)).min(LONGEST);
            self.state = State::Open { until: now + wait.mul_f64(1.0 + jitter / 4.0) };
            self.trips += 1;
        }
    }

    /// A request ended without a word on the host: whoever comes next may try.
    pub(super) fn abandoned(&mut self, tries: bool, now: Instant) {
        if self.state == State::Trying && tries {
            self.state = State::Open { until: now };
        }
    }

    /// Whether it is open, or one request tries.
    pub(super) fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// Failures since the last request that was served, if the last of them is recent.
    pub(super) fn recent_failures(&self, now: Instant) -> u32 {
        let is_recent = self.last_failure.is_some_and(|last| now.saturating_duration_since(last) < RECENT);
        if is_recent { self.failures } else { 0 }
    }

    /// Whether one request tries.
    pub(super) fn is_trying(&self) -> bool {
        self.state == State::Trying
    }

    /// Whether this request has a say on whether the breaker closes.
    fn is_of(&self, tries: bool) -> bool {
        tries || self.state == State::Closed
    }

    /// Whether there is anything to remember.
    pub(super) fn is_clean(&self) -> bool {
        self.failures == 0 && self.state == State::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_one_that_is_served() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let at = |secs: u64| start + SEC * u32::try_from(secs).unwrap();
        breaker.failed(Failure::Plain, false, at(0), at(1), 0.0);
        breaker.failed(Failure::Plain, false, at(1), at(2), 0.0);
        assert_eq!((breaker.recent_failures(at(2)), breaker.recent_failures(at(62))), (2, 0));
        breaker.succeeded(false);
        assert_eq!(breaker.recent_failures(at(2)), 0);
        for second in 3..6 {
            assert!(breaker.admits(at(second)) && !breaker.begin(at(second)));
            breaker.failed(Failure::Plain, false, at(second), at(second), 0.0);
        }
        assert!(!breaker.admits(at(9)) && breaker.admits(at(10)), "it is open for five seconds");
        assert!(!breaker.begin(at(9)), "who was chosen a moment before is not the one that tries");
        assert!(breaker.begin(at(10)));
        assert!(!breaker.admits(at(10)) && breaker.is_trying(), "one tries, and only one");
        breaker.abandoned(true, at(10));
        assert!(breaker.admits(at(10)), "the next may try");
        assert!(breaker.begin(at(10)));
        breaker.failed(Failure::Plain, true, at(10), at(11), 0.0);
        assert!(!breaker.admits(at(20)) && breaker.admits(at(21)), "twice as long");
        assert!(breaker.begin(at(21)));
        breaker.answered(true);
        assert!(breaker.admits(at(21)), "others need not wait for its end");
        breaker.succeeded(true);
        assert!(breaker.admits(at(21)) && breaker.is_clean());
    }

    #[test]
    fn what_fails_together_counts_once_and_grave_failures_at_once() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            breaker.failed(Failure::Plain, false, start, start + SEC, 0.0);
        }
        assert!(breaker.admits(start + SEC));
        breaker.failed(Failure::Grave, false, start, start + SEC, 1.0);
        assert!(!breaker.admits(start + SEC * 7) && breaker.admits(start + SEC * 8), "jitter adds a quarter");
        assert!(!breaker.is_clean() && breaker.is_open());
    }

    #[test]
    fn older_requests_have_no_say_while_one_tries() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        breaker.failed(Failure::Grave, false, start, start, 0.0);
        let later = start + SEC * 5;
        assert!(breaker.begin(later));
        for word in 0..4 {
            match word {
                0 => breaker.abandoned(false, later),
                1 => breaker.failed(Failure::Grave, false, start, later, 0.0),
                2 => breaker.answered(false),
                _ => breaker.succeeded(false),
            }
            assert!(!breaker.admits(later + SEC) && breaker.is_trying(), "{word}");
        }
        breaker.answered(true);
        assert!(breaker.admits(later) && !breaker.is_open());
        breaker.failed(Failure::Plain, true, later, later, 0.0);
        assert!(breaker.is_open(), "answered is not yet served: one failure is enough");
    }
}
