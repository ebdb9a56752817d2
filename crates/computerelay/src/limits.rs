//! How often somebody may ask: token buckets, one for each API key and one for each address that comes without a key; and how many tokens
//! of inference a key may use, which are known only once they are used: whoever used too many waits until their bucket is above zero.
//!
//! Buckets live in this relay's memory. A fleet lets a key through as often as its limit says at each relay.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use rpc::error::ErrorCode;

use crate::error::ApiError;

/// Buckets that are kept of each kind. One takes some 100 bytes.
const MAX_BUCKETS: usize = 65_536;

/// How long a bucket takes to come back to zero at most, in minutes.
const MAX_DEBT_MINUTES: f64 = 10.0;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

/// Buckets of one kind. Each holds a minute's worth of requests, and fills evenly.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    buckets: Mutex<HashMap<K, Bucket>>,
    capacity: usize,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Requests that may still come at once.
    level: f64,
    at: Instant,
    per_minute: u32,
}

impl Bucket {
    /// The bucket as it is now.
    fn filled(self, now: Instant) -> Self {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        let most = f64::from(self.per_minute);
        Self { level: (self.level + seconds * most / 60.0).min(most), at: now, ..self }
    }

    /// How long until it holds this much.
    fn until(&self, level: f64) -> Duration {
        let missing = (level - self.level).max(0.0);
        Duration::from_secs_f64(missing * 60.0 / f64::from(self.per_minute))
    }

    fn is_full(&self, now: Instant) -> bool {
        self.filled(now).level >= f64::from(self.per_minute)
    }
}

/// Where somebody stands with their limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Requests a minute.
    limit: u32,
    /// Requests that may follow at once.
    remaining: u32,
    /// How long until all of the limit is there again.
    reset: Duration,
    /// How long to wait, where the request is one too many.
    wait: Option<Duration>,
}

impl Standing {
    /// Says where they stand in the answer's headers.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        self.tell_as([LIMIT, REMAINING, RESET], headers);
    }

    /// Says where they stand with tokens of inference in the answer's headers.
    pub(crate) fn tell_tokens(&self, headers: &mut HeaderMap) {
        self.tell_as([LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS], headers);
    }

    fn tell_as(&self, [limit, remaining, reset]: [HeaderName; 3], headers: &mut HeaderMap) {
        headers.insert(limit, self.limit.into());
        headers.insert(remaining, self.remaining.into());
        headers.insert(reset, HeaderValue::from(whole_secs(self.reset)));
    }

    /// # Errors
    /// 429 where the request is one too many.
    pub(crate) fn check(&self, whose: &str, does: &str, what: &str) -> Result<(), ApiError> {
        let Some(wait) = self.wait else { return Ok(()) };
        let message = format!("{whose} may {does} {} {what} a minute", self.limit);
        Err(ApiError::new(ErrorCode::RateLimited, message)
            .with_header(http::header::RETRY_AFTER, HeaderValue::from(whole_secs(wait).max(1))))
    }
}

/// Seconds, rounded up: who waits that long has waited long enough.
fn whole_secs(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

impl<K: Eq + Hash + Clone> Default for Buckets<K> {
    fn default() -> Self {
        Self::with_capacity(MAX_BUCKETS)
    }
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    fn with_capacity(capacity: usize) -> Self {
        Self { buckets: Mutex::default(), capacity }
    }

    /// Takes one request out of a bucket, if there is one in it.
    pub(crate) fn take(&self, key: K, per_minute: u32, now: Instant) -> Standing {
        self.with(key, per_minute, now, 1.0)
    }

    /// Looks whether a request could be taken, and takes none.
    pub(crate) fn peek(&self, key: K, per_minute: u32, now: Instant) -> Standing {
        self.with(key, per_minute, now, 0.0)
    }

    /// Takes what was used already out of a bucket, be it in it or not.
    pub(crate) fn charge(&self, key: K, per_minute: u32, amount: u64, now: Instant) {
        self.with(key.clone(), per_minute, now, 0.0);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(&key) {
            let most = f64::from(per_minute) * MAX_DEBT_MINUTES;
            bucket.level = (bucket.level - amount as f64).max(-most);
        }
    }

    fn with(&self, key: K, per_minute: u32, now: Instant, amount: f64) -> Standing {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= self.capacity && !buckets.contains_key(&key) {
            make_room(&mut buckets, self.capacity, now);
        }
        let fresh = Bucket { level: f64::from(per_minute), at: now, per_minute };
        let bucket = buckets.entry(key).or_insert(fresh);
        *bucket = bucket.filled(now);
        let is_refused = bucket.level < 1.0;
        if !is_refused {
            bucket.level -= amount;
        }
        Standing {
            limit: per_minute,
            // Truncation is meant: a part of a request is none.
            remaining: bucket.level as u32,
            reset: bucket.until(f64::from(per_minute)),
            wait: is_refused.then(|| bucket.until(1.0)),
        }
    }
}

/// Full buckets say nothing that a new one would not. If all are in use, half of them begin anew: so a sweep is paid for by many
/// requests, and who has that many addresses gains little by it.
fn make_room<K: Eq + Hash>(buckets: &mut HashMap<K, Bucket>, capacity: usize, now: Instant) {
    buckets.retain(|_, bucket| !bucket.is_full(now));
    let mut keep = false;
    if buckets.len() > capacity / 2 {
        buckets.retain(|_, _| {
            keep = !keep;
            keep
        });
    }
}

/// Whose bucket an address falls into: an IPv6 network of 64 bits is one host's or one household's.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_at_once_and_then_evenly() {
        let (buckets, start) = (Buckets::default(), Instant::now());
        for left in (0..60).rev() {
            let standing = buckets.take("key", 60, start);
            assert_eq!((standing.remaining, standing.wait), (left, None));
        }
        let refused = buckets.take("key", 60, start);
        assert_eq!(refused.wait, Some(Duration::from_secs(1)));
        assert_eq!(refused.reset, Duration::from_secs(60));
        assert!(refused.check("this key", "make", "requests").is_err());
        assert!(buckets.take("another", 60, start).wait.is_none(), "each has its own");

        let later = start + Duration::from_millis(1001);
        assert!(buckets.take("key", 60, later).wait.is_none());
        assert!(buckets.take("key", 60, later).wait.is_some());
        let much_later = start + Duration::from_secs(3600);
        assert_eq!(
            buckets.take("key", 60, much_later).remaining,
            59,
            "it holds no more than a minute's worth"
        );
    }

    #[test]
    fn looking_takes_nothing() {
        let (buckets, now) = (Buckets::default(), Instant::now());
        for _ in 0..3 {
            assert!(buckets.peek("address", 1, now).wait.is_none());
        }
        assert!(buckets.take("address", 1, now).wait.is_none());
        assert!(buckets.peek("address", 1, now).wait.is_some());
    }

    #[test]
    fn what_was_used_is_owed_and_no_more_than_ten_minutes_of_it() {
        let (buckets, start) = (Buckets::default(), Instant::now());
        buckets.charge("key", 60, 90, start);
        assert_eq!(buckets.peek("key", 60, start).wait, Some(Duration::from_secs(31)));
        assert!(buckets.peek("key", 60, start + Duration::from_secs(32)).wait.is_none());
        buckets.charge("key", 60, u64::MAX, start);
        assert_eq!(buckets.peek("key", 60, start).wait, Some(Duration::from_secs(601)));
    }

    #[test]
    fn memory_is_bounded_and_who_waits_keeps_waiting_when_others_are_idle() {
        let (buckets, start) = (Buckets::with_capacity(100), Instant::now());
        for _ in 0..=60 {
            buckets.take(0, 60, start);
        }
        for idle in 1..100 {
            buckets.take(idle, 60, start);
        }
        // By now the idle ones are full again, the busy one is not.
        let later = start + Duration::from_secs(10);
        for _ in 0..10 {
            buckets.take(0, 60, later);
        }
        buckets.take(1000, 60, later);
        assert!(buckets.take(0, 60, later).wait.is_some());
        for busy in 2000..12_000 {
            buckets.take(busy, 60, later);
            assert!(buckets.buckets.lock().unwrap().len() <= 100);
        }
    }

    #[test]
    fn an_ipv6_network_is_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
