//! The relay: a public gateway, market and scheduler. It holds no wallet key, runs no task and signs nothing for anybody.
//!
//! [`build`] opens the store and binds the addresses, [`Relay::run`] serves until it is told to end. Inside:
//!
//! - `api`: the HTTP API, thin handlers over the two below.
//! - `artifacts`: the bytes that tasks name and results are, and what becomes of them.
//! - `market`: where tasks change, by the rules of crate `taskmarket`, durably.
//! - `chain`: the escrow contract of settled tasks, followed and never written to.
//! - `gateway`: inference requests, brought to hosts that serve the model.
//! - `hub`: the providers' connections; it offers them tasks and watches over attempts and time.

mod api;
mod artifacts;
mod auth;
mod availability;
mod chain;
mod commands;
mod config;
mod elsewhere;
mod error;
mod gateway;
mod hub;
mod idempotency;
mod keys;
mod limits;
mod location;
mod market;
mod metrics;
mod misuse;
mod places;
mod relay;
mod server;
#[cfg(test)]
mod testing;
mod tls;
mod upkeep;
mod webhooks;

pub use artifacts::{ArtifactLocation, ParseLocationError};
pub use chain::{EscrowArgs, EscrowConfig};
pub use commands::Cli;
pub use config::{Args, Config, TlsConfig};
pub use gateway::{GatewayArgs, GatewayConfig, ModelDeadline};
pub use location::StoreLocation;
pub use misuse::Misuse;
pub use relay::{Relay, build, serve};
