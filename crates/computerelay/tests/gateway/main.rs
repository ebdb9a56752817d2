//! Inference through a relay, over real sockets, with hosts that play engines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod again;
mod deadlines;
mod engine;
mod failover;
mod hostile;
mod metering;
mod models;
mod passing;
mod raw;
#[path = "../api/rig.rs"]
#[allow(dead_code, reason = "the tests of the API use the rest of it")]
mod rig;
mod truncated;
