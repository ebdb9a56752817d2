//! JSON-RPC over real HTTP and WebSocket, and the documents that describe it and the REST calls.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../api/agent.rs"]
#[allow(dead_code, reason = "the tests of the API use the rest of it")]
mod agent;
mod caller;
mod documents;
mod messages;
mod methods;
#[path = "../api/rig.rs"]
#[allow(dead_code, reason = "the tests of the API use the rest of it")]
mod rig;
mod sockets;
