//! Funding by Permit2: the payer signs, and anybody sends.
//!
//! The payer's signature names the token, the exact amount, this escrow as the one that may take it, and as its witness the task's
//! id: it can pay for that task and for nothing else, once. What Permit2 must be allowed to take is said by the payer's own
//! allowance of it, once for all tasks.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{Eip712Domain, SolCall as _, SolStruct as _, sol};
use taskmarket::{Amount, Signature, Task, TaskId, Timestamp};

use crate::abi::{IZORAIComputeEscrow, ZORAIComputeEscrow as contract};
use crate::call::{Call, Calls};
use crate::chain::{At, Chain, ChainError};

sol! {
    struct TokenPermissions {
        address token;
        uint256 amount;
    }

    struct FundTask {
        bytes32 taskId;
    }

    /// What the payer signs (<https://github.com/Uniswap/permit2>, `SignatureTransfer`).
    struct PermitWitnessTransferFrom {
        TokenPermissions permitted;
        address spender;
        uint256 nonce;
        uint256 deadline;
        FundTask witness;
    }
}

/// What a payer lets Permit2 do, yet unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// Who pays.
    pub payer: Address,
    /// Tells it from the payer's other permits; any number that was not used before.
    pub nonce: U256,
    /// Until when it counts, that second included.
    pub deadline: Timestamp,
}

/// A transaction that pays a task's budget in by a payer's signature, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermitFunding {
    /// The task.
    pub id: TaskId,
    /// Who published it.
    pub requester: Address,
    /// Who pays.
    pub payer: Address,
    /// In which token.
    pub token: Address,
    /// How much.
    pub budget: Amount,
    /// Until when the signature counts, that second included.
    pub deadline: Timestamp,
    /// The transaction.
    pub call: Call,
}

impl Permit {
    /// What the payer signs for a task of this id.
    pub fn digest(&self, permit2: Address, escrow: &taskmarket::Domain, task: &Task) -> B256 {
        let permit = PermitWitnessTransferFrom {
            permitted: TokenPermissions { token: task.token, amount: task.budget.0 },
            spender: escrow.verifying_contract,
            nonce: self.nonce,
            deadline: U256::from(self.deadline.unix()),
            witness: FundTask { taskId: task.id(escrow).0 },
        };
        // Permit2's domain has no version.
        let name = Some("Permit2".into());
        let domain = Eip712Domain::new(name, None, Some(U256::from(escrow.chain_id)), Some(permit2), None);
        permit.eip712_signing_hash(&domain)
    }
}

impl Calls {
    /// Pays a task's budget in by the payer's signature; the sender pays the gas alone.
    pub fn fund_with_permit(&self, task: &Task, permit: &Permit, signature: &Signature) -> Call {
        let permit = IZORAIComputeEscrow::PermitFunding {
            payer: permit.payer,
            nonce: permit.nonce,
            deadline: U256::from(permit.deadline.unix()),
            signature: Bytes::copy_from_slice(signature.as_bytes()),
        };
        self.free(&contract::fundWithPermit2Call { task: task.into(), permit })
    }
}

impl Chain {
    /// Reads a transaction that somebody else made by [`Calls::fund_with_permit`]. The task's id is the contract's word.
    ///
    /// # Errors
    /// [`ChainError`]; [`ChainError::Malformed`] where it says something else.
    pub async fn read_permit_funding(&self, data: &[u8]) -> Result<PermitFunding, ChainError> {
        let said = contract::fundWithPermit2Call::abi_decode_validate(data).map_err(|error| {
            ChainError::Malformed { what: "a funding by Permit2", why: error.to_string() }
        })?;
        let asked = contract::taskIdOfCall { task: said.task.clone() };
        let id = self.read(self.escrow(), &asked, At::Latest).await.map(TaskId)?;
        Ok(PermitFunding {
            id,
            requester: said.task.requester,
            payer: said.permit.payer,
            token: said.task.token,
            budget: Amount(said.task.budget),
            deadline: Timestamp::from_unix(said.permit.deadline.saturating_to()),
            call: self.calls().free(&said),
        })
    }
}
