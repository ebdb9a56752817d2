//! The market in one deterministic process: the real rules and the real scheduler under a fake clock and a faulty network.
//!
//! [`taskmarket`] and [`scheduler`] are pure: they take time, randomness and messages as arguments and hand decisions back. So they can be
//! driven by a loop that owns time: no runtime, no threads, no sockets. One seed is one history, thousands of them run in the time
//! of one real lease, and a failure is told by its seed and comes back with it.
//!
//! What is real: every message is signed by a [`wallet`] and checked; [`taskmarket::publish`], `decide`, `elapse`, `release`, `apply` and
//! `replay` decide everything about tasks; [`scheduler::Index`] decides who is asked. What is modelled, as simply as it can be while it
//! can go wrong in the same ways:
//!
//! - a durable store that relays share, with commits under an expected version that may land or not when their relay crashes,
//! - relays: offers, sessions with generations, grace after a lost session, reconciliation, a timer, retry after a conflict,
//! - hosts with a journal on disk, requesters, an arbiter; each misbehaves as the seed says,
//! - a network that delays, reorders, repeats, loses and parts. It is harsher than the real link, which is ordered within a session.
//!
//! Not modelled: settled tasks and the chain, artifacts, the signatures of registrations.
//!
//! [`run`] plays one seed and checks every [`Invariant`] as it goes. A [`Sabotage`] breaks one rule of the driver on purpose, so that the
//! tests can show that the invariants see it.

mod context;
mod coverage;
mod host;
mod message;
mod network;
mod oracle;
mod people;
mod relay;
mod scenario;
mod store;
mod world;

pub use context::{Note, Party};
pub use coverage::{Coverage, Fault, REFUSALS};
pub use oracle::{Failure, Invariant};
pub use world::{Config, Outcome, Sabotage, run};
