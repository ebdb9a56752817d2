//! Settled tasks end to end: a real chain, the real contract, and the relay as a process that follows it. What provider, requester and
//! arbiter do on chain is done here by hand.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "a test says why it is skipped, and what the relay complained of")]

#[path = "../hub/agent.rs"]
#[allow(dead_code, reason = "shared with the tests of the hub")]
mod agent;
mod chain;
mod dispatch;
mod edges;
mod mirror;
mod money;
mod relay;
mod reorgs;
mod trouble;

/// What the host of the hub's tests needs.
mod support {
    use std::time::Duration;

    pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
        tokio::time::timeout(Duration::from_secs(30), future)
            .await
            .unwrap_or_else(|_| panic!("timed out waiting for {what}"))
    }
}
