//! What is kept of a transaction.

use std::fmt;

use alloy_primitives::{Address, B256, Bytes, U256};
use serde::{Deserialize, Serialize};

use crate::call::Call;

/// One purpose, and how far its transaction is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the transaction is for, in the caller's words. The key.
    pub purpose: String,
    /// What it says.
    pub call: Call,
    /// When it was planned, in unix seconds of this machine's clock.
    pub created_at: u64,
    /// How far it is.
    pub state: State,
    /// What holds it up now, if something does. It is tried again by itself.
    pub trouble: Option<Trouble>,
    /// What was signed for it, once it is done: should a reorganisation take that back later, it is what is sent again.
    #[serde(default)]
    pub done_by: Option<Pending>,
}

impl Entry {
    /// Whether nothing changes it any more.
    pub fn is_final(&self) -> bool {
        match self.state {
            State::Done(_) | State::Failed(_) => true,
            State::Planned { .. } | State::Signed(_) | State::Sent(_) | State::Mined { .. } => false,
        }
    }

    /// What was signed for it and waits to become final.
    pub fn pending(&self) -> Option<&Pending> {
        match &self.state {
            State::Signed(pending) | State::Sent(pending) | State::Mined { pending, .. } => Some(pending),
            State::Planned { .. } | State::Done(_) | State::Failed(_) => None,
        }
    }
}

/// How far a transaction is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Kept, and not signed.
    Planned {
        /// The nonce that it must have: set for what fills a gap alone.
        nonce: Option<u64>,
    },
    /// Signed and kept. No node has acknowledged it yet; one may have it all the same.
    Signed(Pending),
    /// A node has it.
    Sent(Pending),
    /// In a block that is not final yet.
    Mined {
        /// What was signed, should the block be dropped.
        pending: Pending,
        /// Where it is.
        mined: Mined,
    },
    /// Done, and final.
    Done(Mined),
    /// It did nothing, for good.
    Failed(FailureReason),
}

/// What was signed for one purpose under one nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The account's nonce that it takes.
    pub nonce: u64,
    /// The most gas that it may use.
    pub gas_limit: u64,
    /// Each time it was signed, the newest last. At most one of them can be mined.
    pub signed: Vec<Signed>,
    /// Since when no receipt comes for any of them though the nonce is used, in unix seconds of this machine's clock.
    #[serde(default)]
    pub lost_since: Option<u64>,
}

/// A signed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Its hash.
    pub hash: B256,
    /// As it is sent.
    pub raw: Bytes,
    /// The most that it pays for gas, in the native coin's smallest unit.
    pub max_fee_per_gas: u64,
    /// The most of that that goes to the block's maker.
    pub max_priority_fee_per_gas: u64,
    /// When it was signed, in unix seconds of this machine's clock.
    pub signed_at: u64,
}

/// Where a transaction was mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mined {
    /// The transaction.
    pub tx: B256,
    /// The block's number.
    pub block: u64,
    /// The gas used.
    pub gas_used: u64,
    /// What was paid for each unit of gas, in the native coin's smallest unit.
    pub gas_price: u64,
    /// The contract that it made, if it made one.
    pub contract: Option<Address>,
}

impl Mined {
    /// What the gas cost in all, in the native coin's smallest unit.
    pub fn cost(&self) -> U256 {
        U256::from(self.gas_used) * U256::from(self.gas_price)
    }
}

/// Why a transaction did nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// It would have been reverted, and was not sent.
    Refused {
        /// The contract's error by name.
        name: String,
        /// In words.
        text: String,
    },
    /// It was mined and reverted.
    Reverted {
        /// The transaction.
        tx: B256,
        /// The contract's error by name.
        name: String,
        /// In words.
        text: String,
    },
}

impl FailureReason {
    /// The contract's error by name, such as `TooEarly`.
    pub fn name(&self) -> &str {
        match self {
            Self::Refused { name, .. } | Self::Reverted { name, .. } => name,
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { text, .. } => write!(f, "not sent, since the contract would refuse it: {text}"),
            Self::Reverted { tx, text, .. } => write!(f, "{tx} was reverted: {text}"),
        }
    }
}

/// What holds a transaction up for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The account cannot pay for it.
    InsufficientFunds {
        /// What it costs at most, in the native coin's smallest unit, beside what else is on its way.
        needed: U256,
        /// What the account has.
        balance: U256,
    },
    /// Gas costs more than the cap.
    FeesAboveCap {
        /// What it would take, for each unit of gas.
        needed: u64,
        /// The cap.
        cap: u64,
    },
    /// It needs more gas than the cap on it.
    GasAboveCap {
        /// What it needs.
        needed: u64,
        /// The cap.
        cap: u64,
    },
    /// It would be reverted now; an earlier one of this account is still on its way, and may change that.
    WaitsForEarlier {
        /// Why it would be reverted.
        text: String,
    },
    /// Another transaction took its nonce; it gets a new one.
    NonceTaken {
        /// The nonce.
        nonce: u64,
    },
    /// The node's own words.
    Node {
        /// The words.
        text: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InsufficientFunds { needed, balance } => {
                write!(
                    f,
                    "the account has {balance} of the native coin's smallest unit, and {needed} are needed"
                )
            }
            Self::FeesAboveCap { needed, cap } => {
                write!(f, "gas costs {needed} of the native coin's smallest unit, and the cap is {cap}")
            }
            Self::GasAboveCap { needed, cap } => write!(f, "it needs {needed} gas, and the cap is {cap}"),
            Self::WaitsForEarlier { text } => write!(f, "it waits for an earlier transaction: {text}"),
            Self::NonceTaken { nonce } => write!(f, "another transaction of this account took nonce {nonce}"),
            Self::Node { text } => write!(f, "the node says: {text}"),
        }
    }
}
