//! API keys over real HTTP.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod idempotency;
mod limits;
#[path = "../api/rig.rs"]
#[allow(dead_code, reason = "the tests of the API use the rest of it")]
mod rig;
mod scopes;
mod usage;
