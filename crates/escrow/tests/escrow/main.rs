//! The escrow crate against a real development chain.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

mod contract;
mod crashes;
mod endpoints;
mod outbox;
mod support;
mod watching;
