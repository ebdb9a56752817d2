//! The compute node: runs tasks in a sandbox, on the provider's host, and keeps their results.
//!
//! Its one caller is the compute agent on the same host, by HTTP with a token. It fetches a task's model and input,
//! checks them against the task's hashes, has a [`runtime`] work on them within limits, and serves what came out until
//! the money of the task is final. It knows nothing of keys, signatures or money.

mod attempt;
mod challenge;
mod check;
mod client;
mod config;
mod device;
mod disk;
pub mod engines;
mod executor;
mod gpus;
mod metrics;
mod node;
mod remove;
mod results;
pub mod runtime;
mod service;

pub use check::{Finding, Report, Status, check};
pub use client::{Drain, DrainError, set_draining};
pub use config::{Args, Config, ContainerArgs, Gateway};
pub use disk::{MinFreeDisk, ParseMinFreeDiskError};
pub use node::{BuildError, Node};
