//! The contract's interface, generated from the committed `contracts/abi/ZORAIComputeEscrow.json`, which the contract's own checks
//! compare with the source.

#![allow(missing_docs, clippy::all, reason = "generated; the contract's NatSpec documents it")]

alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    ZORAIComputeEscrow,
    "../../contracts/abi/ZORAIComputeEscrow.json"
);

pub use ZORAIComputeEscrow::{ZORAIComputeEscrowErrors, ZORAIComputeEscrowEvents};
