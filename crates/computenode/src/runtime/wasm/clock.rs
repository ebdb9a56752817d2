//! The time of a program: not the machine's, so that no two runs differ by it.
//!
//! The wall clock stands still, and the monotonic clock advances by a step with each reading. Waiting takes no time of
//! the machine either: it moves the monotonic clock to where the wait ends. What a program waits for besides, its
//! streams, is always ready. So which of several events comes first never depends on the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

use super::Guest;

/// What the wall clock of a program says: 2000-01-01T00:00:00Z.
const WALL_CLOCK: Duration = Duration::from_secs(946_684_800);

/// How far the monotonic clock of a program goes with each reading, in nanoseconds. It moves at all so that a program
/// that waits for time to pass ends.
const MONOTONIC_STEP: u64 = 1_000;

/// The most subscriptions of one wait.
const MAX_SUBSCRIPTIONS: u32 = 1024;

/// The sizes in memory of WASI's subscription and event, in bytes.
const SUBSCRIPTION_BYTES: usize = 48;
const EVENT_BYTES: usize = 32;

/// What WASI numbers: clocks, kinds of events, the flag of an absolute time, errors.
const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;
const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;
const ABSOLUTE: u16 = 1;
const SUCCESS: i32 = 0;
const BAD_DESCRIPTOR: u16 = 8;
const FAULT: i32 = 21;
const INVALID: i32 = 28;

pub(super) struct StillClock;

impl HostWallClock for StillClock {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        WALL_CLOCK
    }
}

/// Clones are the same clock.
#[derive(Clone, Default)]
pub(super) struct SteppingClock(Arc<AtomicU64>);

impl HostMonotonicClock for SteppingClock {
    fn resolution(&self) -> u64 {
        MONOTONIC_STEP
    }

    fn now(&self) -> u64 {
        self.0.fetch_add(MONOTONIC_STEP, Ordering::Relaxed)
    }
}

impl SteppingClock {
    fn peek(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn advance_to(&self, time: u64) {
        self.0.fetch_max(time, Ordering::Relaxed);
    }
}

/// Replaces the linker's `poll_oneoff`, which waits by the machine's clock.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "poll_oneoff",
        |mut caller: Caller<'_, Guest>, subscriptions: u32, events: u32, count: u32, happened: u32| {
            let Some(Extern::Memory(memory)) = caller.get_export("memory") else { return INVALID };
            let (bytes, guest) = memory.data_and_store_mut(&mut caller);
            poll(bytes, &guest.clock, subscriptions, events, count, happened).unwrap_or_else(|errno| errno)
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Reads the subscriptions, and writes the events that come first and their number.
fn poll(
    memory: &mut [u8],
    clock: &SteppingClock,
    subscriptions: u32,
    events: u32,
    count: u32,
    happened: u32,
) -> Result<i32, i32> {
    if !(1..=MAX_SUBSCRIPTIONS).contains(&count) {
        return Err(INVALID);
    }
    let now = clock.peek();
    let mut waiting = Vec::with_capacity(count as usize);
    for index in 0..count as usize {
        let at = subscriptions as usize + index * SUBSCRIPTION_BYTES;
        let subscription = memory.get(at..at + SUBSCRIPTION_BYTES).ok_or(FAULT)?;
        waiting.push(Waiting::read(subscription, now)?);
    }
    let first = waiting.iter().map(|waiting| waiting.until).min().unwrap_or(now);
    clock.advance_to(first);
    let due = waiting.iter().filter(|waiting| waiting.until <= first);
    let mut number = 0u32;
    for waiting in due {
        let at = events as usize + number as usize * EVENT_BYTES;
        waiting.write(memory.get_mut(at..at + EVENT_BYTES).ok_or(FAULT)?);
        number += 1;
    }
    let at = happened as usize;
    memory.get_mut(at..at + size_of::<u32>()).ok_or(FAULT)?.copy_from_slice(&number.to_le_bytes());
    Ok(SUCCESS)
}

/// One thing that a program waits for.
struct Waiting {
    userdata: [u8; 8],
    kind: u8,
    error: u16,
    /// When it happens, by the monotonic clock.
    until: u64,
}

impl Waiting {
    fn read(subscription: &[u8], now: u64) -> Result<Self, i32> {
        let u32_at =
            |at: usize| subscription[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let u64_at =
            |at: usize| subscription[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let userdata = u64_at(0).to_le_bytes();
        let kind = subscription[8];
        let (error, until) = match kind {
            CLOCK => {
                let (id, timeout) = (u32_at(16), u64_at(24));
                let absolute = u16::from_le_bytes([subscription[40], subscription[41]]) & ABSOLUTE != 0;
                let wall = u64::try_from(WALL_CLOCK.as_nanos()).unwrap_or(u64::MAX);
                let until = match (id, absolute) {
                    (MONOTONIC, true) => timeout,
                    (REALTIME, true) => now.saturating_add(timeout.saturating_sub(wall)),
                    (REALTIME | MONOTONIC, false) => now.saturating_add(timeout),
                    _ => return Err(INVALID),
                };
                (0, until.max(now))
            }
            // Standard input is a file, and the outputs are memory.
            FD_READ if u32_at(16) == 0 => (0, now),
            FD_WRITE if matches!(u32_at(16), 1 | 2) => (0, now),
            FD_READ | FD_WRITE => (BAD_DESCRIPTOR, now),
            _ => return Err(INVALID),
        };
        Ok(Self { userdata, kind, error, until })
    }

    fn write(&self, event: &mut [u8]) {
        event.fill(0);
        event[..8].copy_from_slice(&self.userdata);
        event[8..10].copy_from_slice(&self.error.to_le_bytes());
        event[10] = self.kind;
        // Something can be read or written; how much is not known before it is.
        event[16] = u8::from(self.kind != CLOCK && self.error == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subscription of 48 bytes.
    fn subscription(userdata: u8, kind: u8, id: u32, timeout: u64, flags: u16) -> Vec<u8> {
        let mut bytes = vec![0; SUBSCRIPTION_BYTES];
        (bytes[0], bytes[8]) = (userdata, kind);
        bytes[16..20].copy_from_slice(&id.to_le_bytes());
        bytes[24..32].copy_from_slice(&timeout.to_le_bytes());
        bytes[40..42].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    /// The userdata and errors of the events that come first.
    fn poll_all(clock: &SteppingClock, subscriptions: &[Vec<u8>]) -> Result<Vec<(u8, u16)>, i32> {
        let mut memory = subscriptions.concat();
        let events = memory.len();
        let count = subscriptions.len();
        memory.resize(events + count * EVENT_BYTES + 4, 0xff);
        let happened = memory.len() - 4;
        let [events, happened, count] = [events, happened, count].map(|n| u32::try_from(n).unwrap());
        poll(&mut memory, clock, 0, events, count, happened)?;
        let number = u32::from_le_bytes(*memory.last_chunk().unwrap()) as usize;
        let events = memory[events as usize..].chunks(EVENT_BYTES).take(number);
        Ok(events.map(|event| (event[0], u16::from_le_bytes([event[8], event[9]]))).collect())
    }

    #[test]
    fn waiting_moves_the_clock_to_the_first_event() {
        let clock = SteppingClock::default();
        let hour = 3_600_000_000_000;
        let clocks =
            [subscription(1, CLOCK, MONOTONIC, hour, 0), subscription(2, CLOCK, MONOTONIC, hour + 1, 0)];
        assert_eq!(poll_all(&clock, &clocks), Ok(vec![(1, 0)]));
        assert_eq!(clock.peek(), hour);
        let both =
            [subscription(1, CLOCK, MONOTONIC, hour, ABSOLUTE), subscription(2, CLOCK, REALTIME, 0, 0)];
        assert_eq!(poll_all(&clock, &both), Ok(vec![(1, 0), (2, 0)]), "a time that has passed is now");
        let wall = u64::try_from(WALL_CLOCK.as_nanos()).unwrap();
        assert_eq!(
            poll_all(&clock, &[subscription(1, CLOCK, REALTIME, wall + 5, ABSOLUTE)]),
            Ok(vec![(1, 0)])
        );
        assert_eq!(clock.peek(), hour + 5);
    }

    #[test]
    fn streams_are_ready_before_any_time_passes() {
        let clock = SteppingClock::default();
        let several = [
            subscription(1, CLOCK, MONOTONIC, 1, 0),
            subscription(2, FD_READ, 0, 0, 0),
            subscription(3, FD_WRITE, 2, 0, 0),
            subscription(4, FD_READ, 7, 0, 0),
        ];
        assert_eq!(poll_all(&clock, &several), Ok(vec![(2, 0), (3, 0), (4, BAD_DESCRIPTOR)]));
        assert_eq!(clock.peek(), 0);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let clock = SteppingClock::default();
        assert_eq!(poll_all(&clock, &[]), Err(INVALID));
        assert_eq!(poll_all(&clock, &[subscription(1, CLOCK, 2, 1, 0)]), Err(INVALID));
        assert_eq!(poll_all(&clock, &[subscription(1, 3, 0, 1, 0)]), Err(INVALID));
        assert_eq!(poll(&mut [0; 47], &clock, 0, 0, 1, 0), Err(FAULT));
        assert_eq!(poll(&mut [0; 64], &clock, u32::MAX, 0, 1, 0), Err(FAULT));
        assert_eq!(poll(&mut [0; 64], &clock, 0, 60, 1, 0), Err(FAULT));
        assert_eq!(poll(&mut [0; 64], &clock, 0, 0, MAX_SUBSCRIPTIONS + 1, 0), Err(INVALID));
    }
}
