//! The relay over real HTTP, on loopback, each test with a relay and a store of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agent;
mod artifacts;
mod errors;
mod events;
mod reading;
mod rig;
mod serving;
mod tasks;
