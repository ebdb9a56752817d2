//! Dials out from the GPU host.
//!
//! The agent connects to a relay as a provider's host, checks and accepts what the relay offers, hands it to the compute node on
//! loopback, and sees each attempt through: it uploads the result and signs the proof, or signs why there is none. It listens on no
//! port: what the relay asks comes back over the connection that the agent opened (crate `link`).
//!
//! [`Args`] are the command line, [`Config`] what they mean; [`build`] opens the data folder, and [`Agent::run`] works until it is
//! told to stop or must not go on.
//!
//! What was accepted is written to a journal before the relay hears of it, so that an attempt goes on through a lost relay, a lost
//! node and the agent's own death. Each attempt has a task of its own; none waits for another.

mod agent;
mod announce;
mod args;
mod attempts;
mod config;
mod delivery;
mod driver;
mod heartbeat;
mod home;
mod host;
mod http_client;
mod inference;
mod journal;
mod money;
mod node;
mod offer;
mod policy;
mod relay;
mod service;
mod session;
mod settled;

pub use agent::{Agent, BuildError, RunError, build};
pub use args::{Args, ArgsError, EscrowArgs};
pub use config::{Config, GpuOverride, Policy, RelayUrl, RelayUrlError, Timing};
pub use home::HomeError;
pub use http_client::ClientError;
pub use inference::{ParsePriceError, Price, Prices};
pub use money::{
    BookError, EarningsArgs, EarningsError, EscrowConfig, EscrowTiming, MoneyError, Terms, UnstakeArgs,
    UnstakeError, Unstaked, unstake,
};
pub use policy::{Hours, ImageRule, OwnerUse, ParseHoursError, ParseImageRuleError};
