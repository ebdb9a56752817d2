//! What is used of tokens: the parts of ERC-20 that the money's way needs.

#![allow(missing_docs, reason = "ERC-20's own names")]

use alloy_primitives::{Address, U256};
use alloy_sol_types::SolCall as _;
use taskmarket::Amount;

use crate::call::Call;
use crate::chain::{At, Chain, ChainError};

alloy_sol_types::sol! {
    /// The part of ERC-20 (<https://eips.ethereum.org/EIPS/eip-20>) that is used.
    #[derive(Debug)]
    interface IERC20 {
        function approve(address spender, uint256 value) external returns (bool);
        function allowance(address owner, address spender) external view returns (uint256);
        function balanceOf(address account) external view returns (uint256);
        function decimals() external view returns (uint8);
        function symbol() external view returns (string);
    }
}

impl Chain {
    /// How much of an owner's token somebody may take: the escrow, or Permit2.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn allowance(
        &self,
        token: Address,
        owner: Address,
        spender: Address,
    ) -> Result<Amount, ChainError> {
        self.read(token, &IERC20::allowanceCall { owner, spender }, At::Latest).await.map(Amount)
    }

    /// A token's symbol and decimals, as far as it tells.
    ///
    /// # Errors
    /// [`ChainError::Rpc`] where the chain cannot be reached.
    pub async fn token_name(&self, token: Address) -> Result<Option<(String, u8)>, ChainError> {
        let symbol = self.read(token, &IERC20::symbolCall {}, At::Latest).await;
        let decimals = self.read(token, &IERC20::decimalsCall {}, At::Latest).await;
        match (symbol, decimals) {
            (Ok(symbol), Ok(decimals)) => Ok(Some((symbol, decimals))),
            (Err(ChainError::Rpc(error)), _) | (_, Err(ChainError::Rpc(error))) if !error.is_answer() => {
                Err(error.into())
            }
            (Ok(_) | Err(_), Ok(_) | Err(_)) => Ok(None),
        }
    }
}

impl Call {
    /// Lets somebody take so much of a token from the sender, in place of what they might take before.
    pub fn allow(token: Address, spender: Address, amount: Amount) -> Self {
        let call = IERC20::approveCall { spender, value: amount.0 };
        Self { to: Some(token), value: U256::ZERO, data: call.abi_encode().into() }
    }
}
