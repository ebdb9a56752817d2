//! The store's tests: what every implementation must do, and what SQLite must survive.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod conformance;
mod durability;
mod fixtures;
mod hostile;
mod sqlite;
