//! How long to wait before dialling again.

use std::fmt;
use std::time::Duration;

/// Exponential delays with full jitter: each is drawn evenly from zero to a bound that doubles up to a cap, so that many
/// agents that lost one relay do not come back together.
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
    random: Box<dyn FnMut() -> f64 + Send>,
}

impl Backoff {
    /// The first delay is drawn up to 250 ms, the bound doubles each time up to 30 s.
    pub fn new() -> Self {
        Self::with(Duration::from_millis(250), Duration::from_secs(30), rand::random::<f64>)
    }

    /// A first bound, a cap, and the source of randomness: numbers from 0 up to 1.
    pub fn with(base: Duration, cap: Duration, random: impl FnMut() -> f64 + Send + 'static) -> Self {
        Self { base, cap, attempt: 0, random: Box::new(random) }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 2u32.checked_pow(self.attempt).unwrap_or(u32::MAX);
        let bound = self.base.saturating_mul(factor).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64((self.random)().clamp(0.0, 1.0))
    }

    /// Starts again from the first bound, after an attempt that worked.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backoff")
            .field("base", &self.base)
            .field("cap", &self.cap)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_cap_and_start_again() {
        let mut backoff = Backoff::with(Duration::from_millis(250), Duration::from_secs(30), || 1.0);
        let delays: Vec<u128> = (0..9).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(delays, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        for _ in 0..100 {
            assert_eq!(backoff.next_delay(), Duration::from_secs(30));
        }
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::from_millis(250));
    }

    #[test]
    fn jitter_reaches_from_zero_to_the_bound() {
        let mut draws = [0.0, 0.5, 7.0].into_iter();
        let mut backoff =
            Backoff::with(Duration::from_secs(1), Duration::from_secs(1), move || draws.next().unwrap());
        assert_eq!(backoff.next_delay(), Duration::ZERO);
        assert_eq!(backoff.next_delay(), Duration::from_millis(500));
        assert_eq!(backoff.next_delay(), Duration::from_secs(1));

        let mut drawn = Backoff::new();
        let delays: Vec<Duration> = (0..8).map(|_| drawn.next_delay()).collect();
        assert!(delays.iter().any(|d| *d != delays[0]), "drawn delays all equal: {delays:?}");
    }
}
