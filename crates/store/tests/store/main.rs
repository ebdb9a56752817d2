//! The store's tests: what every implementation must do, and what each kind must survive.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod conformance;
mod durability;
mod fixtures;
mod hostile;
mod postgres;
mod server;
mod sqlite;
mod transfer;
