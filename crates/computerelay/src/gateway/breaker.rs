//! The circuit breaker of a provider and a model: after some failures in a row nobody is sent there for a while, then one request
//! tries, and all follow if it is served.

use std::time::{Duration, Instant};

/// Failures in a row after which the breaker opens.
const THRESHOLD: u32 = 3;
/// How long it stays open the first time; twice as long each further time in a row.
const FIRST: Duration = Duration::from_secs(5);
/// The longest that it stays open.
const LONGEST: Duration = Duration::from_secs(300);

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

    /// A request goes there, as it [may](Self::admits).
    pub(super) fn begin(&mut self) {
        if matches!(self.state, State::Open { .. }) {
            self.state = State::Trying;
        }
    }

    /// A request was served.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A request that began at `begun` failed. `jitter`, from 0 to 1, makes the wait up to a quarter longer, so that not everybody
    /// comes back at once.
    pub(super) fn failed(&mut self, failure: Failure, begun: Instant, now: Instant, jitter: f64) {
        let is_new = self.last_failure.is_none_or(|last| begun >= last);
        let was_trying = self.state == State::Trying;
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
    pub(super) fn abandoned(&mut self, now: Instant) {
        if self.state == State::Trying {
            self.state = State::Open { until: now };
        }
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
        breaker.failed(Failure::Plain, at(0), at(1), 0.0);
        breaker.failed(Failure::Plain, at(1), at(2), 0.0);
        breaker.succeeded();
        for second in 3..6 {
            assert!(breaker.admits(at(second)));
            breaker.failed(Failure::Plain, at(second), at(second), 0.0);
        }
        assert!(!breaker.admits(at(9)) && breaker.admits(at(10)), "it is open for five seconds");
        breaker.begin();
        assert!(!breaker.admits(at(10)), "one tries, and only one");
        breaker.abandoned(at(10));
        assert!(breaker.admits(at(10)), "the next may try");
        breaker.begin();
        breaker.failed(Failure::Plain, at(10), at(11), 0.0);
        assert!(!breaker.admits(at(20)) && breaker.admits(at(21)), "twice as long");
        breaker.begin();
        breaker.succeeded();
        assert!(breaker.admits(at(21)) && breaker.is_clean());
    }

    #[test]
    fn what_fails_together_counts_once_and_grave_failures_at_once() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            breaker.failed(Failure::Plain, start, start + SEC, 0.0);
        }
        assert!(breaker.admits(start + SEC));
        breaker.failed(Failure::Grave, start, start + SEC, 1.0);
        assert!(!breaker.admits(start + SEC * 7) && breaker.admits(start + SEC * 8), "jitter adds a quarter");
        assert!(!breaker.is_clean());
    }
}
