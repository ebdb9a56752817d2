//! The relay's hub over real sockets: a relay in this process, and hosts that follow a script.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod challenge;
mod faults;
#[cfg(target_os = "linux")]
mod flood;
mod logs;
mod offers;
mod recovery;
mod registration;
mod support;
mod time;
