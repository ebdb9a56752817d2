//! The escrow contract from Rust.
//!
//! - [`abi`]: the contract's interface, generated from the committed ABI; the market's messages convert into its structs.
//! - [`Rpc`]: JSON-RPC to a chain over several endpoints with fail-over.
//! - [`Chain`]: reads one contract: records of tasks, stakes, balances, events.
//! - [`Watcher`]: follows it: what it says, block by block, once final and before.
//! - [`Calls`]: what can be asked of the contract, as transactions yet unsigned.
//! - `tx` (feature): the outbox, which sends each transaction once whatever crashes in between, and deployment. Takes a key.
//! - `anvil` (feature): a development chain as a child process.

pub mod abi;
mod call;
mod chain;
mod code;
mod convert;
mod permit;
mod revert;
mod rpc;
mod token;
mod watch;

#[cfg(feature = "anvil")]
pub mod anvil;
#[cfg(feature = "tx")]
pub mod tx;

pub use call::{Call, Calls};
pub use chain::{At, Block, Chain, ChainError, Log, Record, Stake, Status};
pub use permit::{Permit, PermitFunding};
pub use revert::RevertReason;
pub use rpc::{Rpc, RpcConfig, RpcError};
pub use watch::{Progress, TaskFact, WatchConfig, WatchError, Watcher, fact, is_on_chain};
