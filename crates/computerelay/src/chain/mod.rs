//! The chain that holds the money of settled tasks: followed, and never written to. The relay holds no key.
//!
//! [`ChainView`] is what the rest of the relay knows of it; [`follow`] is the loop that keeps it up to date and tells the market.

mod config;
mod follow;
mod view;

pub use config::{EscrowArgs, EscrowConfig};

pub(crate) use follow::follow;
pub(crate) use view::ChainView;
