// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {AcceptTask, ComputeProof, FailTask, Task} from "../../src/libraries/Messages.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice Branches of test/trees/accept.tree.
contract AcceptTest is EscrowTest {
    function test_WhenItNamesAnotherTask_Reverts() external {
        Task memory task = funded();
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        message.taskId = keccak256("another");
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), message.taskId));
        escrow.accept(task, message, signature);
    }

    function test_WhenTheStatusForbids_Reverts() external {
        Task memory task = newTask();
        expectRefused(task, 1, IZORAIComputeEscrow.Status.None);
        fund(task);
        accept(task, provider, 1);
        prove(task, provider, 1);
        expectRefused(task, 2, IZORAIComputeEscrow.Status.Proven);
        skip(DISPUTE_WINDOW);
        escrow.settle(task);
        expectRefused(task, 2, IZORAIComputeEscrow.Status.Paid);
    }

    function test_OneSecondBeforeALeaseEnds_Reverts() external {
        Task memory task = funded();
        uint64 leaseUntil = accept(task, provider, 1);
        vm.warp(leaseUntil - 1);
        stake(rival, NATIVE, STAKE);
        AcceptTask memory message = acceptance(task, rival.addr, 2, block.timestamp + 600);
        bytes memory signature = sign(rival, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.LeaseHolds.selector, id(task), leaseUntil));
        escrow.accept(task, message, signature);
    }

    function test_WhenALeaseEnds_BindsTheNextAndGivesTheStakeToTheRequester() external {
        Task memory task = funded();
        uint64 leaseUntil = accept(task, provider, 1);
        vm.warp(leaseUntil);
        stake(rival, NATIVE, STAKE);
        AcceptTask memory message = acceptance(task, rival.addr, 2, block.timestamp + 600);
        bytes memory signature = sign(rival, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.LeaseLapsed(id(task), provider.addr, 1, STAKE);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskAccepted(id(task), rival.addr, 2, uint64(block.timestamp + 600));
        escrow.accept(task, message, signature);

        assertRecord(task, rival.addr, 2, block.timestamp + 600, IZORAIComputeEscrow.Status.Accepted);
        assertCredit(NATIVE, requester.addr, STAKE);
        assertEq(freeStake(NATIVE, provider.addr), 0);
    }

    function test_NearTheDeadline_BindsWhileTheLeastLeaseFits() external {
        Task memory task = funded();
        stake(provider, NATIVE, STAKE);
        vm.warp(task.deadline - 299);
        expectLeaseRefused(task, task.deadline, task.deadline);
        vm.warp(task.deadline - 300);
        AcceptTask memory message = acceptance(task, provider.addr, 1, task.deadline);
        escrow.accept(task, message, sign(provider, message));
        assertRecord(task, provider.addr, 1, task.deadline, IZORAIComputeEscrow.Status.Accepted);
    }

    function test_AtTheDeadline_Reverts() external {
        Task memory task = funded();
        vm.warp(task.deadline);
        AcceptTask memory message = acceptance(task, provider.addr, 1, task.deadline + 1);
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.TooLate.selector, id(task), task.deadline));
        escrow.accept(task, message, signature);
    }

    function test_WhenTheAttemptIsNotTheNext_Reverts() external {
        Task memory task = accepted();
        FailTask memory failure = failureBy(task, provider.addr, 1);
        escrow.fail(task, failure, sign(provider, failure));
        for (uint32 attempt = 0; attempt < 5; ++attempt) {
            if (attempt == 2) continue;
            AcceptTask memory message = acceptance(task, provider.addr, attempt, block.timestamp + 600);
            bytes memory signature = sign(provider, message);
            revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongAttempt.selector, 2, attempt));
            escrow.accept(task, message, signature);
        }
    }

    function test_WhenAttemptsAreSpent_Reverts() external {
        Task memory task = newTask();
        task.config.maxAttempts = 1;
        fund(task);
        accept(task, provider, 1);
        FailTask memory failure = failureBy(task, provider.addr, 1);
        escrow.fail(task, failure, sign(provider, failure));
        AcceptTask memory message = acceptance(task, provider.addr, 2, block.timestamp + 600);
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.AttemptsSpent.selector, 1));
        escrow.accept(task, message, signature);
    }

    function test_WhenTheProviderIsTheArbiter_Reverts() external {
        Task memory task = funded();
        AcceptTask memory message = acceptance(task, arbiter.addr, 1, block.timestamp + 600);
        bytes memory signature = sign(arbiter, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.PartialArbiter.selector, arbiter.addr));
        escrow.accept(task, message, signature);
    }

    function test_WhenTheProviderIsTheRequester_Binds() external {
        Task memory task = funded();
        accept(task, requester, 1);
        assertStatus(task, IZORAIComputeEscrow.Status.Accepted);
    }

    function test_LeaseEdgesByDuration() external {
        Task memory task = funded();
        stake(provider, NATIVE, STAKE);
        uint256 latest = block.timestamp + MAX_DURATION + 600;
        expectLeaseRefused(task, block.timestamp + 299, latest);
        expectLeaseRefused(task, latest + 1, latest);
        AcceptTask memory message = acceptance(task, provider.addr, 1, latest);
        escrow.accept(task, message, sign(provider, message));
        assertRecord(task, provider.addr, 1, latest, IZORAIComputeEscrow.Status.Accepted);
    }

    function test_TheLeastLease_Binds() external {
        Task memory task = funded();
        stake(provider, NATIVE, STAKE);
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 300);
        escrow.accept(task, message, sign(provider, message));
        assertStatus(task, IZORAIComputeEscrow.Status.Accepted);
    }

    function test_LeaseEdgesByDeadline() external {
        Task memory task = newTask();
        task.config.maxDuration = type(uint64).max;
        fund(task);
        stake(provider, NATIVE, STAKE);
        expectLeaseRefused(task, task.deadline + 1, task.deadline);
        AcceptTask memory message = acceptance(task, provider.addr, 1, task.deadline);
        escrow.accept(task, message, sign(provider, message));
        assertRecord(task, provider.addr, 1, task.deadline, IZORAIComputeEscrow.Status.Accepted);
    }

    function test_WhenAnotherSigned_Reverts() external {
        Task memory task = funded();
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        bytes memory signature = sign(rival, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, provider.addr, rival.addr));
        escrow.accept(task, message, signature);
    }

    function test_WhenTheSignatureIsMalformed_Reverts() external {
        Task memory task = funded();
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        bytes memory signature = sign(provider, message);

        bytes memory long = abi.encodePacked(signature, uint8(0));
        revertsWith(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 66));
        escrow.accept(task, message, long);
        revertsWith(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 0));
        escrow.accept(task, message, "");

        signature[64] = 0x1d;
        revertsWith(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignature.selector));
        escrow.accept(task, message, signature);
    }

    function test_WhenTheSignatureIsHighS_Reverts() external {
        Task memory task = funded();
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        bytes memory signature = sign(provider, message);
        (bytes32 r, bytes32 s, uint8 v) = (bytes32(0), bytes32(0), uint8(signature[64]));
        assembly {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
        }
        uint256 order = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
        bytes32 high = bytes32(order - uint256(s));
        bytes memory malleated = abi.encodePacked(r, high, v == 27 ? uint8(28) : uint8(27));
        revertsWith(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, high));
        escrow.accept(task, message, malleated);
    }

    function test_WhenTheStakeIsTooSmall_Reverts() external {
        Task memory task = funded();
        stake(provider, NATIVE, STAKE - 1);
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.StakeTooSmall.selector, provider.addr, STAKE - 1, STAKE));
        escrow.accept(task, message, signature);
    }

    function test_WhenTheTaskNamesNoStake_BindsWithoutAny() external {
        Task memory task = windowlessTask();
        task.providerStake = 0;
        fund(task);
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        escrow.accept(task, message, sign(provider, message));
        assertStatus(task, IZORAIComputeEscrow.Status.Accepted);
    }

    function test_LocksTheStakeAndBinds() external {
        Task memory task = funded();
        stake(provider, NATIVE, STAKE + 5);
        AcceptTask memory message = acceptance(task, provider.addr, 1, block.timestamp + 600);
        bytes memory signature = sign(provider, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskAccepted(id(task), provider.addr, 1, uint64(block.timestamp + 600));
        vm.prank(stranger.addr);
        escrow.accept(task, message, signature);

        assertRecord(task, provider.addr, 1, block.timestamp + 600, IZORAIComputeEscrow.Status.Accepted);
        assertEq(freeStake(NATIVE, provider.addr), 5);
    }

    function expectRefused(Task memory task, uint32 attempt, IZORAIComputeEscrow.Status status) private {
        AcceptTask memory message = acceptance(task, provider.addr, attempt, block.timestamp + 600);
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongStatus.selector, id(task), status));
        escrow.accept(task, message, signature);
    }

    function expectLeaseRefused(Task memory task, uint256 leaseUntil, uint256 latest) private {
        AcceptTask memory message = acceptance(task, provider.addr, 1, leaseUntil);
        bytes memory signature = sign(provider, message);
        revertsWith(
            abi.encodeWithSelector(
                IZORAIComputeEscrow.LeaseOutOfRange.selector, leaseUntil, block.timestamp + 300, latest
            )
        );
        escrow.accept(task, message, signature);
    }
}

/// @notice Branches of test/trees/fail.tree.
contract FailTest is EscrowTest {
    function test_WhenItNamesAnotherTask_Reverts() external {
        Task memory task = accepted();
        FailTask memory message = failureBy(task, provider.addr, 1);
        message.taskId = keccak256("another");
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), message.taskId));
        escrow.fail(task, message, signature);
    }

    function test_WhenNotHeld_Reverts() external {
        Task memory task = funded();
        expectNotHeld(task, provider, 1);
        accept(task, provider, 1);
        expectNotHeld(task, rival, 1);
        expectNotHeld(task, provider, 2);
    }

    function test_WhenTheLeaseIsOver_Reverts() external {
        Task memory task = accepted();
        vm.warp(block.timestamp + MAX_DURATION);
        expectNotHeld(task, provider, 1);
    }

    function test_WhenAnotherSigned_Reverts() external {
        Task memory task = accepted();
        FailTask memory message = failureBy(task, provider.addr, 1);
        bytes memory signature = sign(rival, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, provider.addr, rival.addr));
        escrow.fail(task, message, signature);
    }

    function test_OneSecondBeforeTheLeaseEnds_FreesTheStakeAndSpendsTheAttempt() external {
        Task memory task = accepted();
        vm.warp(block.timestamp + MAX_DURATION - 1);
        FailTask memory message = failureBy(task, provider.addr, 1);
        bytes memory signature = sign(provider, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskFailed(id(task), provider.addr, 1, message.codeHash);
        escrow.fail(task, message, signature);

        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Funded);
        assertEq(freeStake(NATIVE, provider.addr), STAKE);
        expectNotHeld(task, provider, 1);
    }

    function expectNotHeld(Task memory task, Account memory who, uint32 attempt) private {
        FailTask memory message = failureBy(task, who.addr, attempt);
        bytes memory signature = sign(who, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.NotHeld.selector, id(task), escrow.recordOf(id(task))));
        escrow.fail(task, message, signature);
    }
}

/// @notice Branches of test/trees/prove.tree.
contract ProveTest is EscrowTest {
    function test_WhenItNamesAnotherTask_Reverts() external {
        Task memory task = accepted();
        ComputeProof memory message = proofBy(task, provider.addr, 1);
        message.taskId = keccak256("another");
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), message.taskId));
        escrow.prove(task, message, signature);
    }

    function test_WhenNotHeld_Reverts() external {
        Task memory task = funded();
        expectNotHeld(task, provider, 1);
        accept(task, provider, 1);
        expectNotHeld(task, rival, 1);
        expectNotHeld(task, provider, 2);
        prove(task, provider, 1);
        expectNotHeld(task, provider, 1);
    }

    function test_OneSecondBeforeTheLeaseEnds_Proves() external {
        Task memory task = accepted();
        vm.warp(block.timestamp + MAX_DURATION - 1);
        prove(task, provider, 1);
        assertStatus(task, IZORAIComputeEscrow.Status.Proven);
    }

    function test_WhenTheLeaseEnds_Reverts() external {
        Task memory task = accepted();
        vm.warp(block.timestamp + MAX_DURATION);
        expectNotHeld(task, provider, 1);
        skip(1);
        expectNotHeld(task, provider, 1);
    }

    function test_WhenItIsOfAnotherModelOrInput_Reverts() external {
        Task memory task = accepted();
        ComputeProof memory message = proofBy(task, provider.addr, 1);
        message.modelHash = keccak256("other");
        bytes memory signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongModel.selector, task.modelHash, message.modelHash));
        escrow.prove(task, message, signature);

        message = proofBy(task, provider.addr, 1);
        message.inputHash = 0;
        signature = sign(provider, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongInput.selector, task.inputHash, bytes32(0)));
        escrow.prove(task, message, signature);
    }

    function test_WhenNothingIsPinned_ProvesAnyModelAndInput() external {
        Task memory task = newTask();
        task.modelHash = 0;
        task.inputHash = 0;
        fund(task);
        accept(task, provider, 1);
        ComputeProof memory message = proofBy(task, provider.addr, 1);
        message.modelHash = keccak256("any");
        message.inputHash = keccak256("thing");
        escrow.prove(task, message, sign(provider, message));
        assertStatus(task, IZORAIComputeEscrow.Status.Proven);
    }

    function test_WhenAnotherSigned_Reverts() external {
        Task memory task = accepted();
        ComputeProof memory message = proofBy(task, provider.addr, 1);
        bytes memory signature = sign(rival, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, provider.addr, rival.addr));
        escrow.prove(task, message, signature);
    }

    function test_WithoutADisputeWindow_PaysAtOnce() external {
        Task memory task = windowlessTask();
        fund(task);
        accept(task, provider, 1);
        ComputeProof memory message = proofBy(task, provider.addr, 1);
        bytes memory signature = sign(provider, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskPaid(id(task), provider.addr, 1, RESULT, BUDGET);
        escrow.prove(task, message, signature);

        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Paid);
        assertCredit(NATIVE, provider.addr, BUDGET);
        assertEq(freeStake(NATIVE, provider.addr), STAKE);
        assertEq(escrow.resultOf(id(task)), 0);
    }

    function test_WithADisputeWindow_OpensIt() external {
        Task memory task = accepted();
        uint64 until = uint64(block.timestamp) + DISPUTE_WINDOW;
        ComputeProof memory message = proofBy(task, provider.addr, 1);
        bytes memory signature = sign(provider, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskProven(id(task), provider.addr, 1, RESULT, until);
        vm.prank(stranger.addr);
        escrow.prove(task, message, signature);

        assertRecord(task, provider.addr, 1, until, IZORAIComputeEscrow.Status.Proven);
        assertEq(escrow.resultOf(id(task)), RESULT);
        assertCredit(NATIVE, provider.addr, 0);
        assertEq(freeStake(NATIVE, provider.addr), 0);
    }

    function test_Batch_WhenLengthsDiffer_Reverts() external {
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.LengthsDiffer.selector));
        escrow.proveBatch(new Task[](1), new ComputeProof[](2), new bytes[](1));
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.LengthsDiffer.selector));
        escrow.proveBatch(new Task[](1), new ComputeProof[](1), new bytes[](0));
    }

    function test_Batch_SkipsWhatIsNotHeldAndProvesTheRest() external {
        (Task[] memory tasks, ComputeProof[] memory proofs, bytes[] memory signatures) = threeProofs();
        escrow.prove(tasks[1], proofs[1], signatures[1]);
        assertEq(escrow.proveBatch(tasks, proofs, signatures), 2);
        for (uint256 i = 0; i < 3; ++i) {
            assertStatus(tasks[i], IZORAIComputeEscrow.Status.Proven);
        }
        assertEq(escrow.proveBatch(tasks, proofs, signatures), 0);
    }

    function test_Batch_WhenTheLeasesEnd_SkipsAll() external {
        (Task[] memory tasks, ComputeProof[] memory proofs, bytes[] memory signatures) = threeProofs();
        skip(MAX_DURATION);
        assertEq(escrow.proveBatch(tasks, proofs, signatures), 0);
    }

    function test_Batch_WhenASignatureIsWrong_Reverts() external {
        (Task[] memory tasks, ComputeProof[] memory proofs, bytes[] memory signatures) = threeProofs();
        signatures[2] = sign(rival, proofs[2]);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, provider.addr, rival.addr));
        escrow.proveBatch(tasks, proofs, signatures);
    }

    function test_Batch_WhenAProofNamesAnotherTask_Reverts() external {
        (Task[] memory tasks, ComputeProof[] memory proofs, bytes[] memory signatures) = threeProofs();
        (proofs[0], proofs[1]) = (proofs[1], proofs[0]);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(tasks[0]), id(tasks[1])));
        escrow.proveBatch(tasks, proofs, signatures);
    }

    function threeProofs()
        private
        returns (Task[] memory tasks, ComputeProof[] memory proofs, bytes[] memory signatures)
    {
        tasks = new Task[](3);
        proofs = new ComputeProof[](3);
        signatures = new bytes[](3);
        for (uint256 i = 0; i < 3; ++i) {
            tasks[i] = newTask();
            tasks[i].salt = bytes32(i);
            fund(tasks[i]);
            accept(tasks[i], provider, 1);
            proofs[i] = proofBy(tasks[i], provider.addr, 1);
            signatures[i] = sign(provider, proofs[i]);
        }
    }

    function expectNotHeld(Task memory task, Account memory who, uint32 attempt) private {
        ComputeProof memory message = proofBy(task, who.addr, attempt);
        bytes memory signature = sign(who, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.NotHeld.selector, id(task), escrow.recordOf(id(task))));
        escrow.prove(task, message, signature);
    }
}
