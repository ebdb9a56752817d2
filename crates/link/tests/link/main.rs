//! The link over real sockets.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests fail by panicking")]

mod endings;
mod hostile;
mod keep_alive;
mod requests;
mod stalls;
mod support;
mod upgrade;
