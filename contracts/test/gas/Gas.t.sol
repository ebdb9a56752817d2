// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {
    AcceptTask,
    ApproveResult,
    CancelTask,
    ComputeProof,
    DisputeTask,
    FailTask,
    ResolveDispute,
    Task
} from "../../src/libraries/Messages.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @dev A cheatcode newer than the forge-std that the tests use.
interface VmGas {
    function snapshotGasLastCall(string calldata group, string calldata name) external returns (uint256);
    function snapshotValue(string calldata group, string calldata name, uint256 value) external;
}

/// @notice What each step costs as a transaction of its own, with its calldata. Run by `npm run gas` in isolation; the figures
/// are committed in snapshots/. Accounts have been used before, as those of a working market are, except where the name says `first`.
contract GasTest is EscrowTest {
    string private constant GROUP = "ZORAIComputeEscrow";
    uint256 private constant BATCH = 50;
    uint256 private salt;

    function setUp() public override {
        super.setUp();
        Task memory warm = refundedNative();
        vm.deal(provider.addr, 1_000 ether);
        stake(provider, NATIVE, 100 ether);
        stake(provider, address(token), 100 ether);
        warm.salt = "warm";
        warm.deadline = uint64(block.timestamp) + 1 hours;
        fund(warm);
        fast(warm);
        warm.token = address(token);
        fund(warm);
        fast(warm);
    }

    function test_FastPath() external {
        Task memory task = fresh();
        fund(task);
        uint256 funding = snap("fund, native");
        fast(task);
        uint256 paying = snap("acceptAndProve");
        VmGas(address(vm)).snapshotValue(GROUP, "fund + acceptAndProve, native", funding + paying);
        assertLt(funding + paying, 200_000);
    }

    function test_FastPathOfAFirstPayment() external {
        Task memory task = fresh();
        provider = party("first");
        fund(task);
        uint256 funding = snap("fund, native");
        fast(task);
        assertLt(funding + snap("acceptAndProve, first payment of the provider"), 200_000);
    }

    function test_FastPathToken() external {
        Task memory task = fresh();
        task.token = address(token);
        fund(task);
        snap("fund, token");
        fast(task);
        snap("acceptAndProve, token");
    }

    function test_ByWindow() external {
        Task memory task = fresh();
        fund(task);
        acceptOnly(task, 1);
        snap("accept");
        prove(task, provider, 1);
        snap("prove");
        skip(DISPUTE_WINDOW);
        escrow.settle(task);
        snap("settle");
    }

    function test_ByApproval() external {
        Task memory task = fresh();
        fund(task);
        acceptOnly(task, 1);
        prove(task, provider, 1);
        ApproveResult memory message = approvalOf(task, provider.addr, 1);
        bytes memory signature = sign(requester, message);
        escrow.approve(task, message, signature);
        snap("approve");
    }

    function test_ByDispute() external {
        Task memory task = fresh();
        fund(task);
        acceptOnly(task, 1);
        prove(task, provider, 1);
        dispute(task, provider, 1);
        snap("dispute");
        ResolveDispute memory message = verdictOn(task, 1, 2_500);
        bytes memory signature = sign(arbiter, message);
        escrow.resolve(task, message, signature);
        snap("resolve");
    }

    function test_BySilence() external {
        Task memory task = fresh();
        fund(task);
        acceptOnly(task, 1);
        prove(task, provider, 1);
        dispute(task, provider, 1);
        skip(ARBITER_WINDOW);
        escrow.timeout(task);
        snap("timeout");
    }

    function test_ByFailure() external {
        Task memory task = fresh();
        fund(task);
        acceptOnly(task, 1);
        FailTask memory message = failureBy(task, provider.addr, 1);
        bytes memory signature = sign(provider, message);
        escrow.fail(task, message, signature);
        snap("fail");
        vm.warp(task.deadline);
        escrow.refund(task);
        snap("refund");
    }

    function test_ByCancellation() external {
        Task memory task = fresh();
        fund(task);
        CancelTask memory message = cancellationOf(task);
        bytes memory signature = sign(requester, message);
        escrow.cancel(task, message, signature);
        snap("cancel");
    }

    function test_Accounts() external {
        stake(provider, NATIVE, 1 ether);
        snap("stake");
        vm.prank(provider.addr);
        escrow.unstake(NATIVE, 1 ether);
        snap("unstake");
        skip(1 days);
        vm.prank(provider.addr);
        escrow.withdraw(NATIVE, provider.addr);
        snap("withdraw");
    }

    function test_Batches() external {
        Task[] memory tasks = new Task[](BATCH);
        ComputeProof[] memory proofs = new ComputeProof[](BATCH);
        bytes[] memory signatures = new bytes[](BATCH);
        for (uint256 i = 0; i < BATCH; ++i) {
            tasks[i] = fresh();
            fund(tasks[i]);
            acceptOnly(tasks[i], 1);
            proofs[i] = proofBy(tasks[i], provider.addr, 1);
            signatures[i] = sign(provider, proofs[i]);
        }
        escrow.proveBatch(tasks, proofs, signatures);
        snapPer("proveBatch, per task of 50");
        skip(DISPUTE_WINDOW);
        escrow.settleBatch(tasks);
        assertLt(snapPer("settleBatch, per task of 50"), 60_000);
    }

    /// @dev Each task of another provider, never paid before and with no other stake: two new storage slots a task.
    function test_BatchOfManyProviders() external {
        Task[] memory tasks = new Task[](BATCH);
        for (uint256 i = 0; i < BATCH; ++i) {
            provider = party(string.concat("provider ", vm.toString(i)));
            tasks[i] = fresh();
            fund(tasks[i]);
            accept(tasks[i], provider, 1);
            prove(tasks[i], provider, 1);
        }
        skip(DISPUTE_WINDOW);
        escrow.settleBatch(tasks);
        snapPer("settleBatch, per task of 50 for 50 providers never seen before");
    }

    function fresh() private returns (Task memory task) {
        task = newTask();
        task.salt = keccak256(abi.encode("gas", ++salt));
    }

    function refundedNative() private returns (Task memory task) {
        task = fresh();
        fund(task);
        vm.warp(task.deadline);
        escrow.refund(task);
    }

    function fast(Task memory task) private {
        ComputeProof memory proof = proofBy(task, provider.addr, 1);
        ApproveResult memory approval = approvalOf(task, provider.addr, 1);
        bytes memory proofSignature = sign(provider, proof);
        bytes memory approvalSignature = sign(requester, approval);
        escrow.acceptAndProve(task, proof, proofSignature, approval, approvalSignature);
    }

    function acceptOnly(Task memory task, uint32 attempt) private {
        AcceptTask memory message = acceptance(task, provider.addr, attempt, block.timestamp + 600);
        bytes memory signature = sign(provider, message);
        escrow.accept(task, message, signature);
    }

    function snap(string memory name) private returns (uint256) {
        return VmGas(address(vm)).snapshotGasLastCall(GROUP, name);
    }

    function snapPer(string memory name) private returns (uint256 each) {
        each = vm.lastCallGas().gasTotalUsed / BATCH;
        VmGas(address(vm)).snapshotValue(GROUP, name, each);
    }
}
