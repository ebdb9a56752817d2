// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {Accounts} from "./base/Accounts.sol";
import {IPermit2} from "./interfaces/IPermit2.sol";
import {IZORAIComputeEscrow} from "./interfaces/IZORAIComputeEscrow.sol";
import {
    AcceptTask,
    ApproveResult,
    CancelTask,
    ComputeProof,
    DisputeTask,
    FailTask,
    Messages,
    ResolveDispute,
    Task
} from "./libraries/Messages.sol";

/// @title ZORAIComputeEscrow
/// @notice The states of a task's money and who may change them when. See the interface for what each call does.
/// @dev Each call goes in the order checks, effects, interactions. Only `fund`, `fundWithPermit2` and `dispute` here, and the
/// doors in Accounts, call another contract; they hold the reentrancy guard. All others only move money between accounts.
contract ZORAIComputeEscrow is Accounts, EIP712 {
    /// @inheritdoc IZORAIComputeEscrow
    uint64 public constant MAX_DEADLINE = 90 days;
    /// @inheritdoc IZORAIComputeEscrow
    uint64 public constant MAX_WINDOW = 30 days;
    /// @inheritdoc IZORAIComputeEscrow
    uint64 public constant MIN_LEASE = 5 minutes;
    /// @inheritdoc IZORAIComputeEscrow
    uint64 public constant LEASE_MARGIN = 10 minutes;
    /// @dev All of a share, in basis points.
    uint32 private constant ALL_BPS = 10_000;

    mapping(bytes32 taskId => Record) private _records;
    mapping(bytes32 taskId => bytes32) private _results;

    constructor(IPermit2 permit2) Accounts(permit2) EIP712("ZORAI Compute Market", "1") {}

    /// @inheritdoc IZORAIComputeEscrow
    function fund(Task calldata task) external payable nonReentrant {
        // Checks and effects.
        _found(task, msg.sender);
        // Interactions.
        _pull(task.token, task.budget);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function fundWithPermit2(Task calldata task, PermitFunding calldata permit) external nonReentrant {
        // Checks.
        if (task.token == NATIVE) revert NativeByPermit();
        // Checks and effects.
        bytes32 taskId = _found(task, permit.payer);
        // Interactions.
        _pullByPermit(taskId, task.token, task.budget, permit);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function accept(Task calldata task, AcceptTask calldata acceptance, bytes calldata signature) external {
        // Checks.
        bytes32 taskId = _taskId(task, acceptance.taskId);
        Record memory record = _records[taskId];
        _requireNextAttempt(task, taskId, record, acceptance.provider, acceptance.attempt);
        uint256 earliest = block.timestamp + MIN_LEASE;
        uint256 latest = Math.min(task.deadline, block.timestamp + uint256(task.config.maxDuration) + LEASE_MARGIN);
        if (acceptance.leaseUntil < earliest || acceptance.leaseUntil > latest) {
            revert LeaseOutOfRange(acceptance.leaseUntil, earliest, latest);
        }
        _requireSigner(acceptance.provider, Messages.hash(acceptance), signature);
        // Effects.
        _endLapsed(task, taskId, record);
        _lockStake(task.token, acceptance.provider, task.providerStake);
        _records[taskId] =
            Record(acceptance.provider, acceptance.attempt, uint48(acceptance.leaseUntil), Status.Accepted);
        emit TaskAccepted(taskId, acceptance.provider, acceptance.attempt, acceptance.leaseUntil);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function fail(Task calldata task, FailTask calldata failure, bytes calldata signature) external {
        // Checks.
        bytes32 taskId = _taskId(task, failure.taskId);
        Record memory record = _records[taskId];
        if (!_holds(record, failure.provider, failure.attempt)) revert NotHeld(taskId, record);
        _requireSigner(failure.provider, Messages.hash(failure), signature);
        // Effects.
        _move(taskId, record, Status.Funded, 0);
        _freeStake(task.token, failure.provider, task.providerStake);
        emit TaskFailed(taskId, failure.provider, failure.attempt, failure.codeHash);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function prove(Task calldata task, ComputeProof calldata proof, bytes calldata signature) external {
        bytes32 taskId = _taskId(task, proof.taskId);
        Record memory record = _records[taskId];
        if (!_holds(record, proof.provider, proof.attempt)) revert NotHeld(taskId, record);
        _prove(task, taskId, record, proof, signature);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function proveBatch(Task[] calldata tasks, ComputeProof[] calldata proofs, bytes[] calldata signatures)
        external
        returns (uint256 proven)
    {
        if (proofs.length != tasks.length || signatures.length != tasks.length) revert LengthsDiffer();
        for (uint256 i = 0; i < tasks.length; ++i) {
            bytes32 taskId = _taskId(tasks[i], proofs[i].taskId);
            Record memory record = _records[taskId];
            if (!_holds(record, proofs[i].provider, proofs[i].attempt)) continue;
            _prove(tasks[i], taskId, record, proofs[i], signatures[i]);
            ++proven;
        }
    }

    /// @inheritdoc IZORAIComputeEscrow
    function approve(Task calldata task, ApproveResult calldata approval, bytes calldata signature) external {
        // Checks.
        bytes32 taskId = _taskId(task, approval.taskId);
        Record memory record = _records[taskId];
        if (record.status != Status.Proven) revert WrongStatus(taskId, record.status);
        _requireResult(taskId, record, approval.provider, approval.attempt, approval.resultHash);
        _requireSigner(task.requester, Messages.hash(approval), signature);
        // Effects.
        _payProven(task, taskId, record);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function acceptAndProve(
        Task calldata task,
        ComputeProof calldata proof,
        bytes calldata proofSignature,
        ApproveResult calldata approval,
        bytes calldata approvalSignature
    ) external {
        // Checks.
        bytes32 taskId = _taskId(task, proof.taskId);
        if (approval.taskId != taskId) revert WrongTask(taskId, approval.taskId);
        if (
            approval.provider != proof.provider || approval.attempt != proof.attempt
                || approval.resultHash != proof.resultHash
        ) revert WrongResult(taskId, proof.provider, proof.attempt, proof.resultHash);
        Record memory record = _records[taskId];
        _requireNextAttempt(task, taskId, record, proof.provider, proof.attempt);
        _requireProof(task, proof, proofSignature);
        _requireSigner(task.requester, Messages.hash(approval), approvalSignature);
        // Effects.
        _endLapsed(task, taskId, record);
        record.provider = proof.provider;
        record.attempt = proof.attempt;
        _pay(task, taskId, record, proof.resultHash);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function settle(Task calldata task) external {
        // Checks.
        bytes32 taskId = taskIdOf(task);
        Record memory record = _records[taskId];
        if (record.status != Status.Proven) revert WrongStatus(taskId, record.status);
        if (block.timestamp < record.until) revert TooEarly(taskId, record.until);
        // Effects.
        _payProven(task, taskId, record);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function settleBatch(Task[] calldata tasks) external returns (uint256 settled) {
        for (uint256 i = 0; i < tasks.length; ++i) {
            // Checks.
            bytes32 taskId = taskIdOf(tasks[i]);
            Record memory record = _records[taskId];
            if (record.status != Status.Proven || block.timestamp < record.until) continue;
            // Effects.
            _payProven(tasks[i], taskId, record);
            ++settled;
        }
    }

    /// @inheritdoc IZORAIComputeEscrow
    function dispute(Task calldata task, DisputeTask calldata complaint, bytes calldata signature)
        external
        payable
        nonReentrant
    {
        // Checks.
        bytes32 taskId = _taskId(task, complaint.taskId);
        Record memory record = _records[taskId];
        if (record.status != Status.Proven) revert WrongStatus(taskId, record.status);
        if (block.timestamp >= record.until) revert TooLate(taskId, record.until);
        _requireResult(taskId, record, complaint.provider, complaint.attempt, complaint.resultHash);
        _requireSigner(task.requester, Messages.hash(complaint), signature);
        // Effects.
        uint64 until = uint64(block.timestamp) + task.arbiterWindow;
        _move(taskId, record, Status.Disputed, until);
        emit TaskDisputed(taskId, record.provider, record.attempt, complaint.reasonHash, complaint.evidenceHash, until);
        // Interactions.
        _pull(task.token, task.disputeBond);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function resolve(Task calldata task, ResolveDispute calldata verdict, bytes calldata signature) external {
        // Checks.
        bytes32 taskId = _taskId(task, verdict.taskId);
        Record memory record = _records[taskId];
        if (record.status != Status.Disputed) revert WrongStatus(taskId, record.status);
        if (block.timestamp >= record.until) revert TooLate(taskId, record.until);
        if (verdict.attempt != record.attempt) revert WrongAttempt(record.attempt, verdict.attempt);
        if (verdict.providerBps > ALL_BPS) revert BpsOutOfRange(verdict.providerBps);
        _requireSigner(task.arbiter, Messages.hash(verdict), signature);
        // Effects.
        uint256 pot = task.budget + task.providerStake + task.disputeBond;
        uint256 toProvider = Math.mulDiv(pot, verdict.providerBps, ALL_BPS);
        uint256 toRequester = pot - toProvider;
        _split(task, taskId, record, toProvider, toRequester);
        emit TaskResolved(taskId, record.provider, record.attempt, verdict.providerBps, toProvider, toRequester);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function timeout(Task calldata task) external {
        // Checks.
        bytes32 taskId = taskIdOf(task);
        Record memory record = _records[taskId];
        if (record.status != Status.Disputed) revert WrongStatus(taskId, record.status);
        if (block.timestamp < record.until) revert TooEarly(taskId, record.until);
        // Effects.
        uint256 toProvider = task.budget / 2;
        uint256 toRequester = task.budget - toProvider;
        uint256 burned = task.providerStake + task.disputeBond;
        _split(task, taskId, record, toProvider, toRequester);
        _credit(task.token, DEAD, burned);
        emit TaskTimedOut(taskId, record.provider, record.attempt, toProvider, toRequester, burned);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function refund(Task calldata task) external {
        // Checks.
        bytes32 taskId = taskIdOf(task);
        Record memory record = _records[taskId];
        _requireUnheld(taskId, record);
        if (block.timestamp < task.deadline) revert TooEarly(taskId, task.deadline);
        // Effects.
        _endLapsed(task, taskId, record);
        _move(taskId, record, Status.Refunded, 0);
        _credit(task.token, task.requester, task.budget);
        emit TaskRefunded(taskId, task.requester, task.budget);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function cancel(Task calldata task, CancelTask calldata cancellation, bytes calldata signature) external {
        // Checks.
        bytes32 taskId = _taskId(task, cancellation.taskId);
        Record memory record = _records[taskId];
        bool funded = record.status != Status.None;
        if (funded) _requireUnheld(taskId, record);
        _requireSigner(task.requester, Messages.hash(cancellation), signature);
        // Effects.
        uint256 amount = funded ? task.budget : 0;
        _endLapsed(task, taskId, record);
        _move(taskId, record, Status.Cancelled, 0);
        _credit(task.token, task.requester, amount);
        emit TaskCancelled(taskId, task.requester, amount);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function recordOf(bytes32 taskId) external view returns (Record memory) {
        return _records[taskId];
    }

    /// @inheritdoc IZORAIComputeEscrow
    function resultOf(bytes32 taskId) external view returns (bytes32) {
        return _results[taskId];
    }

    /// @inheritdoc IZORAIComputeEscrow
    function taskIdOf(Task calldata task) public view returns (bytes32) {
        return _hashTypedDataV4(Messages.hash(task));
    }

    // Checks.

    /// @dev The task's id, which a message about it must name.
    function _taskId(Task calldata task, bytes32 named) private view returns (bytes32 taskId) {
        taskId = taskIdOf(task);
        if (named != taskId) revert WrongTask(taskId, named);
    }

    function _requireSigner(address expected, bytes32 structHash, bytes calldata signature) private view {
        address actual = ECDSA.recoverCalldata(_hashTypedDataV4(structHash), signature);
        if (actual != expected) revert WrongSigner(expected, actual);
    }

    /// @dev The terms that a task must have to be funded, so that it can be ended whatever its parties do.
    function _requireTerms(Task calldata task) private view {
        if (task.requester == address(0)) revert ZeroRequester();
        uint256 latest = block.timestamp + MAX_DEADLINE;
        if (task.deadline <= block.timestamp || task.deadline > latest) {
            revert DeadlineOutOfRange(task.deadline, latest);
        }
        if (task.disputeWindow > MAX_WINDOW || task.arbiterWindow > MAX_WINDOW) revert WindowTooLong(MAX_WINDOW);
        if ((task.arbiter == address(0)) != (task.disputeWindow == 0)) revert ArbiterWithoutWindow();
        if (task.arbiter == address(0)) return;
        if (task.arbiter == task.requester) revert PartialArbiter(task.arbiter);
        if (task.arbiterWindow == 0) revert ZeroArbiterWindow();
        uint256 least = Math.ceilDiv(task.budget, 2);
        if (task.providerStake < least || task.disputeBond < least) revert StakeOrBondTooSmall(least);
    }

    /// @dev Whether the provider holds this attempt now.
    function _holds(Record memory record, address provider, uint32 attempt) private view returns (bool) {
        return record.status == Status.Accepted && record.provider == provider && record.attempt == attempt
            && block.timestamp < record.until;
    }

    /// @dev The budget is held and nobody holds a lease: Funded, or Accepted with a lapsed lease.
    function _requireUnheld(bytes32 taskId, Record memory record) private view {
        if (record.status == Status.Funded) return;
        if (record.status != Status.Accepted) revert WrongStatus(taskId, record.status);
        if (block.timestamp < record.until) revert LeaseHolds(taskId, record.until);
    }

    function _requireNextAttempt(
        Task calldata task,
        bytes32 taskId,
        Record memory record,
        address provider,
        uint32 attempt
    ) private view {
        _requireUnheld(taskId, record);
        if (block.timestamp >= task.deadline) revert TooLate(taskId, task.deadline);
        if (attempt != uint256(record.attempt) + 1) revert WrongAttempt(uint256(record.attempt) + 1, attempt);
        if (attempt > task.config.maxAttempts) revert AttemptsSpent(task.config.maxAttempts);
        if (provider == task.arbiter) revert PartialArbiter(provider);
    }

    function _requireProof(Task calldata task, ComputeProof calldata proof, bytes calldata signature) private view {
        // A zero hash pins nothing: the reference, which the task's id covers, names the content.
        if (task.modelHash != 0 && proof.modelHash != task.modelHash) {
            revert WrongModel(task.modelHash, proof.modelHash);
        }
        if (task.inputHash != 0 && proof.inputHash != task.inputHash) {
            revert WrongInput(task.inputHash, proof.inputHash);
        }
        _requireSigner(proof.provider, Messages.hash(proof), signature);
    }

    /// @dev The message names the proof that stands.
    function _requireResult(bytes32 taskId, Record memory record, address provider, uint32 attempt, bytes32 resultHash)
        private
        view
    {
        bytes32 result = _results[taskId];
        if (provider != record.provider || attempt != record.attempt || resultHash != result) {
            revert WrongResult(taskId, record.provider, record.attempt, result);
        }
    }

    // Effects.

    function _found(Task calldata task, address payer) private returns (bytes32 taskId) {
        // Checks.
        taskId = taskIdOf(task);
        Status status = _records[taskId].status;
        if (status != Status.None) revert WrongStatus(taskId, status);
        _requireTerms(task);
        // Effects.
        _records[taskId].status = Status.Funded;
        emit TaskFunded(taskId, task.requester, task.token, task.budget, payer);
    }

    /// @dev Keeps who held the last attempt, and moves on.
    function _move(bytes32 taskId, Record memory record, Status status, uint64 until) private {
        _records[taskId] = Record(record.provider, record.attempt, uint48(until), status);
    }

    /// @dev A provider that delivered nothing loses its stake to the requester. For a task that nobody holds.
    function _endLapsed(Task calldata task, bytes32 taskId, Record memory record) private {
        if (record.status != Status.Accepted) return;
        _credit(task.token, task.requester, task.providerStake);
        emit LeaseLapsed(taskId, record.provider, record.attempt, task.providerStake);
    }

    /// @dev For an attempt that its provider holds.
    function _prove(
        Task calldata task,
        bytes32 taskId,
        Record memory record,
        ComputeProof calldata proof,
        bytes calldata signature
    ) private {
        // Checks.
        _requireProof(task, proof, signature);
        // Effects.
        if (task.disputeWindow == 0) {
            _freeStake(task.token, record.provider, task.providerStake);
            _pay(task, taskId, record, proof.resultHash);
            return;
        }
        uint64 until = uint64(block.timestamp) + task.disputeWindow;
        _results[taskId] = proof.resultHash;
        _move(taskId, record, Status.Proven, until);
        emit TaskProven(taskId, record.provider, record.attempt, proof.resultHash, until);
    }

    function _payProven(Task calldata task, bytes32 taskId, Record memory record) private {
        bytes32 result = _results[taskId];
        // slither-disable-next-line costly-loop
        delete _results[taskId];
        _freeStake(task.token, record.provider, task.providerStake);
        _pay(task, taskId, record, result);
    }

    function _pay(Task calldata task, bytes32 taskId, Record memory record, bytes32 resultHash) private {
        _move(taskId, record, Status.Paid, 0);
        _credit(task.token, record.provider, task.budget);
        emit TaskPaid(taskId, record.provider, record.attempt, resultHash, task.budget);
    }

    function _split(Task calldata task, bytes32 taskId, Record memory record, uint256 toProvider, uint256 toRequester)
        private
    {
        delete _results[taskId];
        _move(taskId, record, Status.Split, 0);
        _credit(task.token, record.provider, toProvider);
        _credit(task.token, task.requester, toRequester);
    }
}
