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
import {ZORAIComputeEscrow} from "../../src/ZORAIComputeEscrow.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice A signature works once, for this chain and contract alone. Each test brings a task to the same state at two contracts
/// and sends one signed call everywhere.
contract SignaturesTest is EscrowTest {
    ZORAIComputeEscrow private other;

    function setUp() public override {
        super.setUp();
        other = new ZORAIComputeEscrow(permit2);
    }

    function test_TheDomainIsDescribed() external view {
        (, string memory name, string memory version, uint256 chainId, address where,,) = escrow.eip712Domain();
        assertEq(name, "ZORAI Compute Market");
        assertEq(version, "1");
        assertEq(chainId, block.chainid);
        assertEq(where, address(escrow));
    }

    function test_Accept() external {
        Task memory task = newTask();
        onBoth(this.bringToFunded, task);
        stake(provider, NATIVE, STAKE);
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        onceHere(abi.encodeCall(escrow.accept, (task, message, sign(provider, message))), 0);
        // The signature is no better for the same words about the other contract's task.
        message.taskId = other.taskIdOf(task);
        expectRefused(
            other,
            abi.encodeCall(
                escrow.accept,
                (task, message, sign(provider, acceptance(task, provider.addr, 1, block.timestamp + 600)))
            ),
            0
        );
    }

    function test_Fail() external {
        Task memory task = newTask();
        onBoth(this.bringToAccepted, task);
        FailTask memory message = failureBy(task, provider.addr, 1);
        onceHere(abi.encodeCall(escrow.fail, (task, message, sign(provider, message))), 0);
    }

    function test_Prove() external {
        Task memory task = newTask();
        onBoth(this.bringToAccepted, task);
        ComputeProof memory message = proofBy(task, provider.addr, 1);
        onceHere(abi.encodeCall(escrow.prove, (task, message, sign(provider, message))), 0);
    }

    function test_Approve() external {
        Task memory task = newTask();
        onBoth(this.bringToProven, task);
        ApproveResult memory message = approvalOf(task, provider.addr, 1);
        onceHere(abi.encodeCall(escrow.approve, (task, message, sign(requester, message))), 0);
    }

    function test_AcceptAndProve() external {
        Task memory task = newTask();
        onBoth(this.bringToFunded, task);
        ComputeProof memory proof = proofBy(task, provider.addr, 1);
        ApproveResult memory approval = approvalOf(task, provider.addr, 1);
        onceHere(
            abi.encodeCall(
                escrow.acceptAndProve, (task, proof, sign(provider, proof), approval, sign(requester, approval))
            ),
            0
        );
    }

    function test_Dispute() external {
        Task memory task = newTask();
        onBoth(this.bringToProven, task);
        DisputeTask memory message = complaintAbout(task, provider.addr, 1);
        onceHere(abi.encodeCall(escrow.dispute, (task, message, sign(requester, message))), BOND);
    }

    function test_Resolve() external {
        Task memory task = newTask();
        onBoth(this.bringToDisputed, task);
        ResolveDispute memory message = verdictOn(task, 1, 5_000);
        onceHere(abi.encodeCall(escrow.resolve, (task, message, sign(arbiter, message))), 0);
    }

    function test_Cancel() external {
        Task memory task = newTask();
        onBoth(this.bringToFunded, task);
        CancelTask memory message = cancellationOf(task);
        onceHere(abi.encodeCall(escrow.cancel, (task, message, sign(requester, message))), 0);
    }

    /// @dev An attempt's messages are no good for the next one.
    function test_AnAttemptsSignaturesDieWithIt() external {
        Task memory task = newTask();
        fund(task);
        accept(task, provider, 1);
        ComputeProof memory proof = proofBy(task, provider.addr, 1);
        FailTask memory failure = failureBy(task, provider.addr, 1);
        bytes memory proofCall = abi.encodeCall(escrow.prove, (task, proof, sign(provider, proof)));
        bytes memory failCall = abi.encodeCall(escrow.fail, (task, failure, sign(provider, failure)));
        skip(MAX_DURATION);
        accept(task, provider, 2);
        expectRefused(escrow, proofCall, 0);
        expectRefused(escrow, failCall, 0);
    }

    function bringToFunded(Task memory task) external {
        fund(task);
    }

    function bringToAccepted(Task memory task) public {
        fund(task);
        accept(task, provider, 1);
    }

    function bringToProven(Task memory task) public {
        bringToAccepted(task);
        prove(task, provider, 1);
    }

    function bringToDisputed(Task memory task) external {
        bringToProven(task);
        dispute(task, provider, 1);
    }

    function onBoth(function(Task memory) external bring, Task memory task) private {
        ZORAIComputeEscrow first = escrow;
        escrow = other;
        bring(task);
        escrow = first;
        bring(task);
    }

    function onceHere(bytes memory data, uint256 value) private {
        expectRefused(other, data, value);
        uint256 chainId = block.chainid;
        vm.chainId(chainId + 1);
        expectRefused(escrow, data, value);
        vm.chainId(chainId);
        vm.prank(stranger.addr);
        (bool done,) = address(escrow).call{value: value}(data);
        assertTrue(done, "the first use");
        expectRefused(escrow, data, value);
    }

    function expectRefused(ZORAIComputeEscrow where, bytes memory data, uint256 value) private {
        vm.prank(stranger.addr);
        (bool done,) = address(where).call{value: value}(data);
        assertFalse(done, "a signature worked where it must not");
    }
}
