// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

// The market's signed messages as this contract takes them, and their EIP-712 struct hashes.
//
// A field that the signed type calls `string` is here the keccak-256 of its bytes, which is how EIP-712 encodes a string. So the
// digest is the same as that of the full message, calls cost less, and no reference to content is public in calldata.

/// @notice What a task asks of a provider's host.
struct TaskConfig {
    bytes32 runtimeHash;
    bytes32 paramsHash;
    bytes32 gpuTypeHash;
    uint32 gpuCount;
    uint64 minVram;
    uint64 maxDuration;
    uint32 maxAttempts;
}

/// @notice A requester's offer. Its EIP-712 digest is the task's id.
struct Task {
    address requester;
    bytes32 modelCidHash;
    bytes32 modelHash;
    bytes32 inputCidHash;
    bytes32 inputHash;
    TaskConfig config;
    address token;
    uint256 budget;
    uint256 providerStake;
    uint256 disputeBond;
    uint64 deadline;
    uint64 disputeWindow;
    uint64 arbiterWindow;
    address arbiter;
    bytes32 salt;
}

/// @notice The requester withdraws a task that nobody holds.
struct CancelTask {
    bytes32 taskId;
    uint64 issuedAt;
}

/// @notice A provider binds itself to run an attempt.
struct AcceptTask {
    bytes32 taskId;
    address provider;
    uint32 attempt;
    uint64 leaseUntil;
}

/// @notice A provider gives an attempt up.
struct FailTask {
    bytes32 taskId;
    address provider;
    uint32 attempt;
    bytes32 codeHash;
    bytes32 messageHash;
    uint64 issuedAt;
}

/// @notice A provider states what it computed from what.
struct ComputeProof {
    bytes32 taskId;
    address provider;
    uint32 attempt;
    bytes32 modelHash;
    bytes32 inputHash;
    bytes32 resultHash;
    bytes32 resultCidHash;
    uint64 startedAt;
    uint64 finishedAt;
    bytes32 gpuNameHash;
}

/// @notice The requester takes a result as good.
struct ApproveResult {
    bytes32 taskId;
    address provider;
    uint32 attempt;
    bytes32 resultHash;
    uint64 issuedAt;
}

/// @notice The requester disputes a result.
struct DisputeTask {
    bytes32 taskId;
    address provider;
    uint32 attempt;
    bytes32 resultHash;
    bytes32 reasonHash;
    bytes32 evidenceHash;
    uint64 issuedAt;
}

/// @notice The arbiter ends a dispute.
struct ResolveDispute {
    bytes32 taskId;
    uint32 attempt;
    uint32 providerBps;
    uint64 issuedAt;
}

/// @title Messages
/// @notice EIP-712 struct hashes of the market's messages.
library Messages {
    bytes32 internal constant TASK_CONFIG_TYPEHASH = keccak256(
        "TaskConfig(string runtime,string params,string gpuType,uint32 gpuCount,uint64 minVram,uint64 maxDuration,uint32 maxAttempts)"
    );
    bytes32 internal constant TASK_TYPEHASH = keccak256(
        "Task(address requester,string modelCid,bytes32 modelHash,string inputCid,bytes32 inputHash,TaskConfig config,address token,uint256 budget,uint256 providerStake,uint256 disputeBond,uint64 deadline,uint64 disputeWindow,uint64 arbiterWindow,address arbiter,bytes32 salt)TaskConfig(string runtime,string params,string gpuType,uint32 gpuCount,uint64 minVram,uint64 maxDuration,uint32 maxAttempts)"
    );
    bytes32 internal constant CANCEL_TASK_TYPEHASH = keccak256("CancelTask(bytes32 taskId,uint64 issuedAt)");
    bytes32 internal constant ACCEPT_TASK_TYPEHASH =
        keccak256("AcceptTask(bytes32 taskId,address provider,uint32 attempt,uint64 leaseUntil)");
    bytes32 internal constant FAIL_TASK_TYPEHASH = keccak256(
        "FailTask(bytes32 taskId,address provider,uint32 attempt,string code,string message,uint64 issuedAt)"
    );
    bytes32 internal constant COMPUTE_PROOF_TYPEHASH = keccak256(
        "ComputeProof(bytes32 taskId,address provider,uint32 attempt,bytes32 modelHash,bytes32 inputHash,bytes32 resultHash,string resultCid,uint64 startedAt,uint64 finishedAt,string gpuName)"
    );
    bytes32 internal constant APPROVE_RESULT_TYPEHASH =
        keccak256("ApproveResult(bytes32 taskId,address provider,uint32 attempt,bytes32 resultHash,uint64 issuedAt)");
    bytes32 internal constant DISPUTE_TASK_TYPEHASH = keccak256(
        "DisputeTask(bytes32 taskId,address provider,uint32 attempt,bytes32 resultHash,string reason,string evidence,uint64 issuedAt)"
    );
    bytes32 internal constant RESOLVE_DISPUTE_TYPEHASH =
        keccak256("ResolveDispute(bytes32 taskId,uint32 attempt,uint32 providerBps,uint64 issuedAt)");

    /// @notice What a payer signs at Permit2: the money is for this task and no other.
    bytes32 internal constant FUND_TASK_TYPEHASH = keccak256("FundTask(bytes32 taskId)");
    /// @notice The end of the type string that Permit2 completes with the witness.
    string internal constant FUND_TASK_WITNESS =
        "FundTask witness)FundTask(bytes32 taskId)TokenPermissions(address token,uint256 amount)";

    /// @dev The config stands in the task's encoding as its own hash. The encoding is made in two parts, since the compiler's stack
    /// cannot hold all fields at once.
    function hash(Task calldata task) internal pure returns (bytes32) {
        return keccak256(
            bytes.concat(
                abi.encode(
                    TASK_TYPEHASH,
                    task.requester,
                    task.modelCidHash,
                    task.modelHash,
                    task.inputCidHash,
                    task.inputHash,
                    keccak256(abi.encode(TASK_CONFIG_TYPEHASH, task.config)),
                    task.token
                ),
                abi.encode(
                    task.budget,
                    task.providerStake,
                    task.disputeBond,
                    task.deadline,
                    task.disputeWindow,
                    task.arbiterWindow,
                    task.arbiter,
                    task.salt
                )
            )
        );
    }

    // The others hold nothing but words of 32 bytes, so their ABI encoding is EIP-712's.

    function hash(CancelTask calldata message) internal pure returns (bytes32) {
        return keccak256(abi.encode(CANCEL_TASK_TYPEHASH, message));
    }

    function hash(AcceptTask calldata message) internal pure returns (bytes32) {
        return keccak256(abi.encode(ACCEPT_TASK_TYPEHASH, message));
    }

    function hash(FailTask calldata message) internal pure returns (bytes32) {
        return keccak256(abi.encode(FAIL_TASK_TYPEHASH, message));
    }

    function hash(ComputeProof calldata message) internal pure returns (bytes32) {
        return keccak256(abi.encode(COMPUTE_PROOF_TYPEHASH, message));
    }

    function hash(ApproveResult calldata message) internal pure returns (bytes32) {
        return keccak256(abi.encode(APPROVE_RESULT_TYPEHASH, message));
    }

    function hash(DisputeTask calldata message) internal pure returns (bytes32) {
        return keccak256(abi.encode(DISPUTE_TASK_TYPEHASH, message));
    }

    function hash(ResolveDispute calldata message) internal pure returns (bytes32) {
        return keccak256(abi.encode(RESOLVE_DISPUTE_TYPEHASH, message));
    }
}
