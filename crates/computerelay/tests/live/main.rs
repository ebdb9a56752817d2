//! What others follow and rest upon: live events, webhooks, evidence and reports, each test with a relay and a store of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../api/agent.rs"]
#[allow(dead_code, reason = "shared with the tests of the API")]
mod agent;
mod chat_tasks;
mod events;
mod evidence;
mod reports;
#[path = "../api/rig.rs"]
#[allow(dead_code, reason = "shared with the tests of the API")]
mod rig;
mod webhooks;
mod work;
