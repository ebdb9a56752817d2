//! What can be asked of the contract, as transactions yet unsigned.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolCall;
use serde::{Deserialize, Serialize};
use taskmarket::{
    AcceptTask, Amount, ApproveResult, CancelTask, ComputeProof, DisputeTask, FailTask, ResolveDispute,
    Signature, Signed, Task,
};

use crate::abi::ZORAIComputeEscrow as contract;

/// A transaction without its sender: to whom, with how much of the native coin, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The contract called; `None` deploys one.
    pub to: Option<Address>,
    /// Native coin sent along, in its smallest unit.
    pub value: U256,
    /// The call's data.
    pub data: Bytes,
}

/// Makes [`Call`]s to one escrow contract. Signatures are not checked here: the contract does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    escrow: Address,
}

impl Calls {
    /// Calls to the contract at this address.
    pub fn new(escrow: Address) -> Self {
        Self { escrow }
    }

    /// Pays a task's budget in. A budget in a token needs [`Calls::allow`] before.
    pub fn fund(&self, task: &Task) -> Call {
        self.paying(&contract::fundCall { task: task.into() }, task.token, task.budget)
    }

    /// Binds the provider that signed.
    pub fn accept(&self, task: &Task, acceptance: &Signed<AcceptTask>) -> Call {
        self.free(&contract::acceptCall {
            task: task.into(),
            acceptance: (&acceptance.message).into(),
            signature: bytes(&acceptance.signature),
        })
    }

    /// Gives an attempt up.
    pub fn fail(&self, task: &Task, failure: &Signed<FailTask>) -> Call {
        self.free(&contract::failCall {
            task: task.into(),
            failure: (&failure.message).into(),
            signature: bytes(&failure.signature),
        })
    }

    /// Puts a proof on the chain.
    pub fn prove(&self, task: &Task, proof: &Signed<ComputeProof>) -> Call {
        self.free(&contract::proveCall {
            task: task.into(),
            proof: (&proof.message).into(),
            signature: bytes(&proof.signature),
        })
    }

    /// [`Calls::prove`] for many tasks; those not held any more are skipped.
    pub fn prove_batch<'a>(
        &self,
        proofs: impl IntoIterator<Item = (&'a Task, &'a Signed<ComputeProof>)>,
    ) -> Call {
        let mut call =
            contract::proveBatchCall { tasks: Vec::new(), proofs: Vec::new(), signatures: Vec::new() };
        for (task, proof) in proofs {
            call.tasks.push(task.into());
            call.proofs.push((&proof.message).into());
            call.signatures.push(bytes(&proof.signature));
        }
        self.free(&call)
    }

    /// Pays a proven task at once, by the requester's word.
    pub fn approve(&self, task: &Task, approval: &Signed<ApproveResult>) -> Call {
        self.free(&contract::approveCall {
            task: task.into(),
            approval: (&approval.message).into(),
            signature: bytes(&approval.signature),
        })
    }

    /// Accepts, proves and pays in one step, by both parties' words.
    pub fn accept_and_prove(
        &self,
        task: &Task,
        proof: &Signed<ComputeProof>,
        approval: &Signed<ApproveResult>,
    ) -> Call {
        self.free(&contract::acceptAndProveCall {
            task: task.into(),
            proof: (&proof.message).into(),
            proofSignature: bytes(&proof.signature),
            approval: (&approval.message).into(),
            approvalSignature: bytes(&approval.signature),
        })
    }

    /// Pays a proven task whose dispute window is over.
    pub fn settle(&self, task: &Task) -> Call {
        self.free(&contract::settleCall { task: task.into() })
    }

    /// [`Calls::settle`] for many tasks; those not due are skipped.
    pub fn settle_batch<'a>(&self, tasks: impl IntoIterator<Item = &'a Task>) -> Call {
        self.free(&contract::settleBatchCall { tasks: tasks.into_iter().map(Into::into).collect() })
    }

    /// Disputes a proven result, with the task's bond. A bond in a token needs [`Calls::allow`] before.
    pub fn dispute(&self, task: &Task, complaint: &Signed<DisputeTask>) -> Call {
        let call = contract::disputeCall {
            task: task.into(),
            complaint: (&complaint.message).into(),
            signature: bytes(&complaint.signature),
        };
        self.paying(&call, task.token, task.dispute_bond)
    }

    /// Ends a dispute by the arbiter's word.
    pub fn resolve(&self, task: &Task, verdict: &Signed<ResolveDispute>) -> Call {
        self.free(&contract::resolveCall {
            task: task.into(),
            verdict: (&verdict.message).into(),
            signature: bytes(&verdict.signature),
        })
    }

    /// Ends a dispute by the arbiter's silence.
    pub fn timeout(&self, task: &Task) -> Call {
        self.free(&contract::timeoutCall { task: task.into() })
    }

    /// Takes an undelivered task's budget back, from its deadline on.
    pub fn refund(&self, task: &Task) -> Call {
        self.free(&contract::refundCall { task: task.into() })
    }

    /// Withdraws a task that nobody holds.
    pub fn cancel(&self, task: &Task, cancellation: &Signed<CancelTask>) -> Call {
        self.free(&contract::cancelCall {
            task: task.into(),
            cancellation: (&cancellation.message).into(),
            signature: bytes(&cancellation.signature),
        })
    }

    /// Adds to the sender's free stake. A token needs [`Calls::allow`] before.
    pub fn stake(&self, token: Address, amount: Amount) -> Call {
        self.paying(&contract::stakeCall { token, amount: amount.0 }, token, amount)
    }

    /// Announces that free stake is to leave; zero takes the announcement back.
    pub fn unstake(&self, token: Address, amount: Amount) -> Call {
        self.free(&contract::unstakeCall { token, amount: amount.0 })
    }

    /// Sends all that the sender may withdraw.
    pub fn withdraw(&self, token: Address, to: Address) -> Call {
        self.free(&contract::withdrawCall { token, to })
    }

    /// Lets the escrow take so much of a token from the sender.
    pub fn allow(&self, token: Address, amount: Amount) -> Call {
        Call::allow(token, self.escrow, amount)
    }

    pub(crate) fn free(&self, call: &impl SolCall) -> Call {
        Call { to: Some(self.escrow), value: U256::ZERO, data: call.abi_encode().into() }
    }

    /// A call that costs: native coin is sent along, a token is taken by allowance.
    fn paying(&self, call: &impl SolCall, token: Address, amount: Amount) -> Call {
        let value = if token.is_zero() { amount.0 } else { U256::ZERO };
        Call { value, ..self.free(call) }
    }
}

fn bytes(signature: &Signature) -> Bytes {
    Bytes::copy_from_slice(signature.as_bytes())
}
