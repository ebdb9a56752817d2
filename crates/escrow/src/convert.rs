//! The market's messages in the shape in which the contract takes them.
//!
//! Where EIP-712 says `string`, the contract takes the keccak-256 of its bytes: the digest is the same, calls cost less, and no
//! reference to content becomes public.

use alloy_primitives::{B256, keccak256};
use taskmarket as market;

use crate::abi::ZORAIComputeEscrow as abi;

fn hashed(text: &str) -> B256 {
    keccak256(text.as_bytes())
}

impl From<&market::Task> for abi::Task {
    fn from(task: &market::Task) -> Self {
        Self {
            requester: task.requester,
            modelCidHash: hashed(task.model_cid.as_str()),
            modelHash: task.model_hash.0,
            inputCidHash: hashed(task.input_cid.as_str()),
            inputHash: task.input_hash.0,
            config: abi::TaskConfig {
                runtimeHash: hashed(task.config.runtime.as_str()),
                paramsHash: hashed(&task.config.params),
                gpuTypeHash: hashed(&task.config.gpu_type),
                gpuCount: task.config.gpu_count,
                minVram: task.config.min_vram,
                maxDuration: task.config.max_duration,
                maxAttempts: task.config.max_attempts,
            },
            token: task.token,
            budget: task.budget.0,
            providerStake: task.provider_stake.0,
            disputeBond: task.dispute_bond.0,
            deadline: task.deadline.unix(),
            disputeWindow: task.dispute_window,
            arbiterWindow: task.arbiter_window,
            arbiter: task.arbiter,
            salt: task.salt.0,
        }
    }
}

impl From<&market::CancelTask> for abi::CancelTask {
    fn from(message: &market::CancelTask) -> Self {
        Self { taskId: message.task_id.0, issuedAt: message.issued_at.unix() }
    }
}

impl From<&market::AcceptTask> for abi::AcceptTask {
    fn from(message: &market::AcceptTask) -> Self {
        Self {
            taskId: message.task_id.0,
            provider: message.provider,
            attempt: message.attempt,
            leaseUntil: message.lease_until.unix(),
        }
    }
}

impl From<&market::FailTask> for abi::FailTask {
    fn from(message: &market::FailTask) -> Self {
        Self {
            taskId: message.task_id.0,
            provider: message.provider,
            attempt: message.attempt,
            codeHash: hashed(&message.code),
            messageHash: hashed(&message.message),
            issuedAt: message.issued_at.unix(),
        }
    }
}

impl From<&market::ComputeProof> for abi::ComputeProof {
    fn from(message: &market::ComputeProof) -> Self {
        Self {
            taskId: message.task_id.0,
            provider: message.provider,
            attempt: message.attempt,
            modelHash: message.model_hash.0,
            inputHash: message.input_hash.0,
            resultHash: message.result_hash.0,
            resultCidHash: hashed(message.result_cid.as_str()),
            startedAt: message.started_at.unix(),
            finishedAt: message.finished_at.unix(),
            gpuNameHash: hashed(&message.gpu_name),
        }
    }
}

impl From<&market::ApproveResult> for abi::ApproveResult {
    fn from(message: &market::ApproveResult) -> Self {
        Self {
            taskId: message.task_id.0,
            provider: message.provider,
            attempt: message.attempt,
            resultHash: message.result_hash.0,
            issuedAt: message.issued_at.unix(),
        }
    }
}

impl From<&market::DisputeTask> for abi::DisputeTask {
    fn from(message: &market::DisputeTask) -> Self {
        Self {
            taskId: message.task_id.0,
            provider: message.provider,
            attempt: message.attempt,
            resultHash: message.result_hash.0,
            reasonHash: hashed(&message.reason),
            evidenceHash: hashed(&message.evidence),
            issuedAt: message.issued_at.unix(),
        }
    }
}

impl From<&market::ResolveDispute> for abi::ResolveDispute {
    fn from(message: &market::ResolveDispute) -> Self {
        Self {
            taskId: message.task_id.0,
            attempt: message.attempt,
            providerBps: message.provider_bps,
            issuedAt: message.issued_at.unix(),
        }
    }
}
