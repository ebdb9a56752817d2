//! Settled tasks end to end: a real chain, the real contract, and the relay as a process that follows it. What provider, requester and
//! arbiter do on chain is done here by hand.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chain;
mod money;
mod relay;
mod trouble;
