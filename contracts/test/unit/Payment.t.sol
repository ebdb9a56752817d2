// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {ApproveResult, ComputeProof, FailTask, Task} from "../../src/libraries/Messages.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice Branches of test/trees/approve.tree.
contract ApproveTest is EscrowTest {
    function test_WhenItNamesAnotherTask_Reverts() external {
        Task memory task = proven();
        ApproveResult memory message = approvalOf(task, provider.addr, 1);
        message.taskId = keccak256("another");
        expectRevertOf(
            task,
            message,
            requester,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), message.taskId)
        );
    }

    function test_WhenNotProven_Reverts() external {
        Task memory task = accepted();
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Accepted);
        prove(task, provider, 1);
        dispute(task, provider, 1);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Disputed);
        skip(ARBITER_WINDOW);
        escrow.timeout(task);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Split);
    }

    function test_WhenItNamesAnotherResult_Reverts() external {
        Task memory task = proven();
        bytes memory reason =
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongResult.selector, id(task), provider.addr, 1, RESULT);
        ApproveResult memory message = approvalOf(task, rival.addr, 1);
        expectRevertOf(task, message, requester, reason);
        message = approvalOf(task, provider.addr, 2);
        expectRevertOf(task, message, requester, reason);
        message = approvalOf(task, provider.addr, 1);
        message.resultHash = keccak256("other");
        expectRevertOf(task, message, requester, reason);
    }

    function test_WhenAnotherSigned_Reverts() external {
        Task memory task = proven();
        expectRevertOf(
            task,
            approvalOf(task, provider.addr, 1),
            provider,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, requester.addr, provider.addr)
        );
    }

    function test_PaysAndFreesTheStake() external {
        Task memory task = proven();
        checkPays(task);
    }

    function test_WhenTheWindowIsOver_PaysAllTheSame() external {
        Task memory task = proven();
        skip(DISPUTE_WINDOW + 1);
        checkPays(task);
    }

    function checkPays(Task memory task) private {
        ApproveResult memory message = approvalOf(task, provider.addr, 1);
        bytes memory signature = sign(requester, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskPaid(id(task), provider.addr, 1, RESULT, BUDGET);
        vm.prank(stranger.addr);
        escrow.approve(task, message, signature);

        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Paid);
        assertCredit(NATIVE, provider.addr, BUDGET);
        assertEq(freeStake(NATIVE, provider.addr), STAKE);
        assertEq(escrow.resultOf(id(task)), 0);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Paid);
    }

    function expectStatusRefused(Task memory task, IZORAIComputeEscrow.Status status) private {
        expectRevertOf(
            task,
            approvalOf(task, provider.addr, 1),
            requester,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongStatus.selector, id(task), status)
        );
    }

    function expectRevertOf(Task memory task, ApproveResult memory message, Account memory signer, bytes memory reason)
        private
    {
        bytes memory signature = sign(signer, message);
        vm.expectRevert(reason);
        escrow.approve(task, message, signature);
    }
}

/// @notice Branches of test/trees/acceptAndProve.tree.
contract AcceptAndProveTest is EscrowTest {
    function test_WhenOneNamesAnotherTask_Reverts() external {
        Task memory task = funded();
        ComputeProof memory proof = proofBy(task, provider.addr, 1);
        ApproveResult memory approval = approvalOf(task, provider.addr, 1);
        proof.taskId = keccak256("another");
        expectRevertOf(
            task,
            proof,
            approval,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), proof.taskId)
        );
        (proof.taskId, approval.taskId) = (id(task), keccak256("another"));
        expectRevertOf(
            task,
            proof,
            approval,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), approval.taskId)
        );
    }

    function test_WhenTheApprovalNamesAnotherResult_Reverts() external {
        Task memory task = funded();
        ComputeProof memory proof = proofBy(task, provider.addr, 1);
        bytes memory reason =
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongResult.selector, id(task), provider.addr, 1, RESULT);
        expectRevertOf(task, proof, approvalOf(task, rival.addr, 1), reason);
        expectRevertOf(task, proof, approvalOf(task, provider.addr, 2), reason);
        ApproveResult memory approval = approvalOf(task, provider.addr, 1);
        approval.resultHash = keccak256("other");
        expectRevertOf(task, proof, approval, reason);
    }

    function test_WhenTheStatusForbids_Reverts() external {
        Task memory task = newTask();
        expectRevertOf(
            task,
            1,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.None)
        );
        fund(task);
        uint64 leaseUntil = accept(task, rival, 1);
        expectRevertOf(task, 2, abi.encodeWithSelector(IZORAIComputeEscrow.LeaseHolds.selector, id(task), leaseUntil));
    }

    function test_AtTheDeadline_Reverts() external {
        Task memory task = funded();
        vm.warp(task.deadline);
        expectRevertOf(task, 1, abi.encodeWithSelector(IZORAIComputeEscrow.TooLate.selector, id(task), task.deadline));
    }

    function test_OneSecondBeforeTheDeadline_Pays() external {
        Task memory task = funded();
        vm.warp(task.deadline - 1);
        run(task, 1);
        assertStatus(task, IZORAIComputeEscrow.Status.Paid);
    }

    function test_WhenTheAttemptIsNotTheNext_Reverts() external {
        Task memory task = funded();
        expectRevertOf(task, 2, abi.encodeWithSelector(IZORAIComputeEscrow.WrongAttempt.selector, 1, 2));
    }

    function test_WhenAttemptsAreSpent_Reverts() external {
        Task memory task = newTask();
        task.config.maxAttempts = 0;
        fund(task);
        expectRevertOf(task, 1, abi.encodeWithSelector(IZORAIComputeEscrow.AttemptsSpent.selector, 0));
    }

    function test_WhenTheProviderIsTheArbiter_Reverts() external {
        Task memory task = funded();
        provider = arbiter;
        expectRevertOf(task, 1, abi.encodeWithSelector(IZORAIComputeEscrow.PartialArbiter.selector, arbiter.addr));
    }

    function test_WhenItIsOfAnotherModel_Reverts() external {
        Task memory task = funded();
        ComputeProof memory proof = proofBy(task, provider.addr, 1);
        proof.modelHash = 0;
        expectRevertOf(
            task,
            proof,
            approvalOf(task, provider.addr, 1),
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongModel.selector, task.modelHash, bytes32(0))
        );
    }

    function test_WhenAPartyDidNotSign_Reverts() external {
        Task memory task = funded();
        ComputeProof memory proof = proofBy(task, provider.addr, 1);
        ApproveResult memory approval = approvalOf(task, provider.addr, 1);
        (bytes memory proofSignature, bytes memory approvalSignature) = (sign(rival, proof), sign(requester, approval));
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, provider.addr, rival.addr));
        escrow.acceptAndProve(task, proof, proofSignature, approval, approvalSignature);

        (proofSignature, approvalSignature) = (sign(provider, proof), sign(provider, approval));
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, requester.addr, provider.addr));
        escrow.acceptAndProve(task, proof, proofSignature, approval, approvalSignature);
    }

    function test_GivenALapsedLease_TheLapsedStakeIsTheRequesters() external {
        Task memory task = funded();
        accept(task, rival, 1);
        skip(MAX_DURATION);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.LeaseLapsed(id(task), rival.addr, 1, STAKE);
        run(task, 2);
        assertCredit(NATIVE, requester.addr, STAKE);
        assertCredit(NATIVE, provider.addr, BUDGET);
        assertRecord(task, provider.addr, 2, 0, IZORAIComputeEscrow.Status.Paid);
    }

    function test_PaysWithoutStake() external {
        Task memory task = funded();
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskPaid(id(task), provider.addr, 1, RESULT, BUDGET);
        run(task, 1);
        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Paid);
        assertCredit(NATIVE, provider.addr, BUDGET);
        assertEq(freeStake(NATIVE, provider.addr), 0);
        assertEq(escrow.resultOf(id(task)), 0);
    }

    function run(Task memory task, uint32 attempt) private {
        ComputeProof memory proof = proofBy(task, provider.addr, attempt);
        ApproveResult memory approval = approvalOf(task, provider.addr, attempt);
        escrow.acceptAndProve(task, proof, sign(provider, proof), approval, sign(requester, approval));
    }

    function expectRevertOf(Task memory task, uint32 attempt, bytes memory reason) private {
        expectRevertOf(task, proofBy(task, provider.addr, attempt), approvalOf(task, provider.addr, attempt), reason);
    }

    function expectRevertOf(
        Task memory task,
        ComputeProof memory proof,
        ApproveResult memory approval,
        bytes memory reason
    ) private {
        (bytes memory proofSignature, bytes memory approvalSignature) =
            (sign(provider, proof), sign(requester, approval));
        vm.expectRevert(reason);
        escrow.acceptAndProve(task, proof, proofSignature, approval, approvalSignature);
    }
}

/// @notice Branches of test/trees/settle.tree.
contract SettleTest is EscrowTest {
    function test_WhenNotProven_Reverts() external {
        Task memory task = accepted();
        revertsWith(
            abi.encodeWithSelector(
                IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Accepted
            )
        );
        escrow.settle(task);
    }

    function test_OneSecondBeforeTheWindowEnds_Reverts() external {
        Task memory task = proven();
        uint256 until = block.timestamp + DISPUTE_WINDOW;
        vm.warp(until - 1);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.TooEarly.selector, id(task), until));
        escrow.settle(task);
    }

    function test_WhenTheWindowEnds_Pays() external {
        Task memory task = proven();
        skip(DISPUTE_WINDOW);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskPaid(id(task), provider.addr, 1, RESULT, BUDGET);
        vm.prank(stranger.addr);
        escrow.settle(task);
        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Paid);
        assertCredit(NATIVE, provider.addr, BUDGET);
        assertEq(freeStake(NATIVE, provider.addr), STAKE);
        assertEq(escrow.resultOf(id(task)), 0);
    }

    function test_Batch_SkipsWhatIsNotDue() external {
        Task[] memory tasks = new Task[](4);
        tasks[0] = proven();
        tasks[1] = newTask();
        tasks[1].salt = "still open";
        tasks[2] = newTask();
        tasks[2].salt = "settled already";
        tasks[2].disputeWindow = 1;
        fund(tasks[2]);
        accept(tasks[2], provider, 1);
        prove(tasks[2], provider, 1);
        tasks[3] = newTask();
        tasks[3].salt = "not proven";
        tasks[3].deadline += 2 days;
        tasks[1].deadline += 2 days;
        fund(tasks[3]);
        skip(DISPUTE_WINDOW);
        escrow.settle(tasks[2]);
        fund(tasks[1]);
        accept(tasks[1], provider, 1);
        prove(tasks[1], provider, 1);

        assertEq(escrow.settleBatch(tasks), 1);
        assertStatus(tasks[0], IZORAIComputeEscrow.Status.Paid);
        assertStatus(tasks[1], IZORAIComputeEscrow.Status.Proven);
        assertStatus(tasks[2], IZORAIComputeEscrow.Status.Paid);
        assertStatus(tasks[3], IZORAIComputeEscrow.Status.Funded);
        assertCredit(NATIVE, provider.addr, 2 * BUDGET);
        skip(DISPUTE_WINDOW);
        assertEq(escrow.settleBatch(tasks), 1);
        assertCredit(NATIVE, provider.addr, 3 * BUDGET);
    }
}
