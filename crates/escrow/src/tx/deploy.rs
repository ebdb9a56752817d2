//! Deploying the escrow contract, and making sure of what was deployed.

use std::time::Duration;

use alloy_primitives::{Address, B256, U256, address};
use alloy_sol_types::SolConstructor as _;

use super::entry::{Mined, State};
use super::outbox::{Outbox, OutboxError};
use crate::abi::ZORAIComputeEscrow as contract;
use crate::call::Call;
use crate::chain::{Chain, ChainError};

/// Where Uniswap's Permit2 stands on the chains that have it.
pub const PERMIT2: Address = address!("000000000022D473030F116dDEE9F6B43aC78BA3");

/// A contract that was deployed and checked.
#[derive(Debug, Clone)]
pub struct Deployed {
    /// Where it stands.
    pub address: Address,
    /// On which chain.
    pub chain_id: u64,
    /// The transaction that made it.
    pub tx: B256,
    /// The block with that transaction: nobody has to look for events before it.
    pub block: u64,
    /// The gas that it took.
    pub gas_used: u64,
    /// The Permit2 that it uses.
    pub permit2: Address,
    /// The contract, connected.
    pub chain: Chain,
}

/// Why there is no contract.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// It could not be sent.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// It could not be read again.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// What stands there is not what was sent.
    #[error("what was deployed at {address} is not what was sent: {why}")]
    Different {
        /// Where.
        address: Address,
        /// What differs.
        why: String,
    },
}

/// Deploys the contract under a purpose of the outbox, so that it is deployed once even if this is called again after a crash, and once
/// more where a reorganisation dropped it. Checks that its code is the committed one, its signing domain that of this program, and its
/// Permit2 the one given.
///
/// # Errors
/// It cannot be sent within the time, or what stands there is something else.
pub async fn deploy(
    outbox: &Outbox,
    purpose: &str,
    permit2: Address,
    time: Duration,
) -> Result<Deployed, DeployError> {
    let arguments = contract::constructorCall { permit2 }.abi_encode();
    let data = [contract::BYTECODE.as_ref(), &arguments].concat();
    let call = Call { to: None, value: U256::ZERO, data: data.into() };
    if let Some(State::Done(Mined { contract: Some(before), .. })) =
        outbox.get(purpose).await?.map(|entry| entry.state)
        && let Err(ChainError::NoContract { .. }) = Chain::connect(outbox.rpc().clone(), before).await
    {
        outbox.recheck(purpose).await?;
    }
    let mined = outbox.send(purpose, call, time).await?;
    let address = mined.contract.ok_or_else(|| DeployError::Different {
        address: Address::ZERO,
        why: "the transaction made no contract".to_owned(),
    })?;
    let chain = Chain::connect(outbox.rpc().clone(), address).await?;
    let different = |why: String| DeployError::Different { address, why };
    let uses = chain.permit2().await?;
    if uses != permit2 {
        return Err(different(format!("it uses Permit2 at {uses}, not {permit2}")));
    }
    let separator = chain.contract_separator().await?;
    if separator != chain.domain().separator() {
        return Err(different("its signing domain is not the market's".to_owned()));
    }
    Ok(Deployed {
        address,
        chain_id: chain.domain().chain_id,
        tx: mined.tx,
        block: mined.block,
        gas_used: mined.gas_used,
        permit2,
        chain,
    })
}
