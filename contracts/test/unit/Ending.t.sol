// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {CancelTask, DisputeTask, FailTask, ResolveDispute, Task} from "../../src/libraries/Messages.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice Branches of test/trees/dispute.tree.
contract DisputeTest is EscrowTest {
    function test_WhenItNamesAnotherTask_Reverts() external {
        Task memory task = proven();
        DisputeTask memory message = complaintAbout(task, provider.addr, 1);
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
        expectRevertOf(
            task,
            complaintAbout(task, provider.addr, 1),
            requester,
            abi.encodeWithSelector(
                IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Accepted
            )
        );
    }

    function test_OneSecondBeforeTheWindowEnds_Disputes() external {
        Task memory task = proven();
        skip(DISPUTE_WINDOW - 1);
        dispute(task, provider, 1);
        assertStatus(task, IZORAIComputeEscrow.Status.Disputed);
    }

    function test_WhenTheWindowEnds_Reverts() external {
        Task memory task = proven();
        skip(DISPUTE_WINDOW);
        expectRevertOf(
            task,
            complaintAbout(task, provider.addr, 1),
            requester,
            abi.encodeWithSelector(IZORAIComputeEscrow.TooLate.selector, id(task), block.timestamp)
        );
    }

    function test_WhenItNamesAnotherResult_Reverts() external {
        Task memory task = proven();
        bytes memory reason =
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongResult.selector, id(task), provider.addr, 1, RESULT);
        expectRevertOf(task, complaintAbout(task, rival.addr, 1), requester, reason);
        expectRevertOf(task, complaintAbout(task, provider.addr, 2), requester, reason);
        DisputeTask memory message = complaintAbout(task, provider.addr, 1);
        message.resultHash = 0;
        expectRevertOf(task, message, requester, reason);
    }

    function test_WhenAnotherSigned_Reverts() external {
        Task memory task = proven();
        expectRevertOf(
            task,
            complaintAbout(task, provider.addr, 1),
            rival,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, requester.addr, rival.addr)
        );
    }

    function test_WhenTheBondDoesNotComeIn_Reverts() external {
        Task memory task = proven();
        DisputeTask memory message = complaintAbout(task, provider.addr, 1);
        bytes memory signature = sign(requester, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongValue.selector, BOND, 0));
        escrow.dispute(task, message, signature);

        task = tokenTask();
        fund(task);
        accept(task, provider, 1);
        prove(task, provider, 1);
        message = complaintAbout(task, provider.addr, 1);
        signature = sign(requester, message);
        // This contract has neither tokens nor given an allowance.
        vm.expectRevert();
        escrow.dispute(task, message, signature);
    }

    function test_HoldsTheBondOfWhoeverSends() external {
        Task memory task = proven();
        uint64 until = uint64(block.timestamp) + ARBITER_WINDOW;
        DisputeTask memory message = complaintAbout(task, provider.addr, 1);
        bytes memory signature = sign(requester, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskDisputed(
            id(task), provider.addr, 1, message.reasonHash, message.evidenceHash, until
        );
        vm.prank(stranger.addr);
        escrow.dispute{value: BOND}(task, message, signature);

        assertRecord(task, provider.addr, 1, until, IZORAIComputeEscrow.Status.Disputed);
        assertEq(address(escrow).balance, BUDGET + STAKE + BOND);
        assertEq(escrow.resultOf(id(task)), RESULT);
    }

    function test_HoldsATokenBond() external {
        Task memory task = tokenTask();
        fund(task);
        accept(task, provider, 1);
        prove(task, provider, 1);
        dispute(task, provider, 1);
        assertEq(token.balanceOf(address(escrow)), BUDGET + STAKE + BOND);
        assertEq(escrow.heldOf(address(token)), BUDGET + STAKE + BOND);
    }

    function expectRevertOf(Task memory task, DisputeTask memory message, Account memory signer, bytes memory reason)
        private
    {
        bytes memory signature = sign(signer, message);
        vm.expectRevert(reason);
        escrow.dispute{value: BOND}(task, message, signature);
    }
}

/// @notice Branches of test/trees/resolve.tree.
contract ResolveTest is EscrowTest {
    function test_WhenItNamesAnotherTask_Reverts() external {
        Task memory task = disputed();
        ResolveDispute memory message = verdictOn(task, 1, 1);
        message.taskId = keccak256("another");
        expectRevertOf(
            task,
            message,
            arbiter,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), message.taskId)
        );
    }

    function test_WhenNotDisputed_Reverts() external {
        Task memory task = proven();
        expectRevertOf(
            task,
            verdictOn(task, 1, 1),
            arbiter,
            abi.encodeWithSelector(
                IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Proven
            )
        );
    }

    function test_OneSecondBeforeTheWindowEnds_Resolves() external {
        Task memory task = disputed();
        skip(ARBITER_WINDOW - 1);
        resolve(task, 5_000);
        assertStatus(task, IZORAIComputeEscrow.Status.Split);
    }

    function test_WhenTheWindowEnds_Reverts() external {
        Task memory task = disputed();
        skip(ARBITER_WINDOW);
        expectRevertOf(
            task,
            verdictOn(task, 1, 1),
            arbiter,
            abi.encodeWithSelector(IZORAIComputeEscrow.TooLate.selector, id(task), block.timestamp)
        );
    }

    function test_WhenTheAttemptIsAnother_Reverts() external {
        Task memory task = disputed();
        expectRevertOf(
            task,
            verdictOn(task, 2, 1),
            arbiter,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongAttempt.selector, 1, 2)
        );
    }

    function test_WhenTheShareIsMoreThanAll_Reverts() external {
        Task memory task = disputed();
        expectRevertOf(
            task,
            verdictOn(task, 1, 10_001),
            arbiter,
            abi.encodeWithSelector(IZORAIComputeEscrow.BpsOutOfRange.selector, 10_001)
        );
    }

    function test_WhenAnotherSigned_Reverts() external {
        Task memory task = disputed();
        expectRevertOf(
            task,
            verdictOn(task, 1, 1),
            requester,
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, arbiter.addr, requester.addr)
        );
    }

    function test_SplitsAndEmits() external {
        Task memory task = disputed();
        uint256 pot = BUDGET + STAKE + BOND;
        ResolveDispute memory message = verdictOn(task, 1, 2_500);
        bytes memory signature = sign(arbiter, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskResolved(id(task), provider.addr, 1, 2_500, pot / 4, pot - pot / 4);
        vm.prank(stranger.addr);
        escrow.resolve(task, message, signature);

        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Split);
        assertEq(escrow.resultOf(id(task)), 0);
        assertCredit(NATIVE, provider.addr, pot / 4);
        assertCredit(NATIVE, requester.addr, pot - pot / 4);
        assertEq(freeStake(NATIVE, provider.addr), 0);
    }

    function test_AllOrNothing() external {
        Task memory task = disputed();
        resolve(task, 10_000);
        assertCredit(NATIVE, provider.addr, BUDGET + STAKE + BOND);
        assertCredit(NATIVE, requester.addr, 0);
    }

    function test_NothingToTheProvider() external {
        Task memory task = disputed();
        resolve(task, 0);
        assertCredit(NATIVE, provider.addr, 0);
        assertCredit(NATIVE, requester.addr, BUDGET + STAKE + BOND);
    }

    function testFuzz_TheWholePotIsGivenAndRoundedDownForTheProvider(
        uint128 budget,
        uint128 stakeExtra,
        uint128 bondExtra,
        uint32 bps
    ) external {
        bps = uint32(bound(bps, 0, 10_000));
        Task memory task = tokenTask();
        task.budget = budget;
        task.providerStake = uint256(budget) / 2 + 1 + stakeExtra;
        task.disputeBond = uint256(budget) / 2 + 1 + bondExtra;
        token.mint(requester.addr, uint256(type(uint128).max) * 4);
        token.mint(provider.addr, uint256(type(uint128).max) * 4);
        fund(task);
        accept(task, provider, 1);
        prove(task, provider, 1);
        dispute(task, provider, 1);
        resolve(task, bps);

        uint256 pot = task.budget + task.providerStake + task.disputeBond;
        uint256 toProvider = escrow.creditOf(address(token), provider.addr);
        assertEq(toProvider, pot * bps / 10_000);
        assertEq(toProvider + escrow.creditOf(address(token), requester.addr), pot);
        assertEq(escrow.heldOf(address(token)), pot);
    }

    function resolve(Task memory task, uint32 bps) private {
        ResolveDispute memory message = verdictOn(task, 1, bps);
        escrow.resolve(task, message, sign(arbiter, message));
    }

    function expectRevertOf(Task memory task, ResolveDispute memory message, Account memory signer, bytes memory reason)
        private
    {
        bytes memory signature = sign(signer, message);
        vm.expectRevert(reason);
        escrow.resolve(task, message, signature);
    }
}

/// @notice Branches of test/trees/timeout.tree.
contract TimeoutTest is EscrowTest {
    function test_WhenNotDisputed_Reverts() external {
        Task memory task = proven();
        revertsWith(
            abi.encodeWithSelector(
                IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Proven
            )
        );
        escrow.timeout(task);
    }

    function test_OneSecondBeforeTheWindowEnds_Reverts() external {
        Task memory task = disputed();
        uint256 until = block.timestamp + ARBITER_WINDOW;
        vm.warp(until - 1);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.TooEarly.selector, id(task), until));
        escrow.timeout(task);
    }

    function test_WhenTheWindowEnds_HalvesTheBudgetAndBurnsTheRest() external {
        Task memory task = disputed();
        skip(ARBITER_WINDOW);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskTimedOut(id(task), provider.addr, 1, BUDGET / 2, BUDGET / 2, STAKE + BOND);
        vm.prank(stranger.addr);
        escrow.timeout(task);

        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Split);
        assertEq(escrow.resultOf(id(task)), 0);
        assertCredit(NATIVE, provider.addr, BUDGET / 2);
        assertCredit(NATIVE, requester.addr, BUDGET / 2);
        assertCredit(NATIVE, DEAD, STAKE + BOND);
        assertEq(freeStake(NATIVE, provider.addr), 0);
    }

    function test_AnOddUnitIsTheRequesters() external {
        Task memory task = newTask();
        task.budget = 7;
        fund(task);
        accept(task, provider, 1);
        prove(task, provider, 1);
        dispute(task, provider, 1);
        skip(ARBITER_WINDOW);
        escrow.timeout(task);
        assertCredit(NATIVE, provider.addr, 3);
        assertCredit(NATIVE, requester.addr, 4);
    }
}

/// @notice Branches of test/trees/refund.tree.
contract RefundTest is EscrowTest {
    function test_WhenTheStatusForbids_Reverts() external {
        Task memory task = newTask();
        skip(1 hours);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.None);
        task = newTask();
        fund(task);
        accept(task, provider, 1);
        prove(task, provider, 1);
        vm.warp(task.deadline);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Proven);
    }

    function test_OneSecondBeforeTheDeadline_Reverts() external {
        Task memory task = funded();
        vm.warp(task.deadline - 1);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.TooEarly.selector, id(task), task.deadline));
        escrow.refund(task);
    }

    function test_WhileALeaseHolds_Reverts() external {
        Task memory task = accepted();
        revertsWith(
            abi.encodeWithSelector(IZORAIComputeEscrow.LeaseHolds.selector, id(task), block.timestamp + MAX_DURATION)
        );
        escrow.refund(task);
    }

    function test_WhenALeaseLapsedButTheDeadlineIsAhead_Reverts() external {
        Task memory task = accepted();
        skip(MAX_DURATION);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.TooEarly.selector, id(task), task.deadline));
        escrow.refund(task);
    }

    function test_AtTheDeadline_Refunds() external {
        Task memory task = funded();
        vm.warp(task.deadline);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskRefunded(id(task), requester.addr, BUDGET);
        vm.prank(stranger.addr);
        escrow.refund(task);
        assertRecord(task, address(0), 0, 0, IZORAIComputeEscrow.Status.Refunded);
        assertCredit(NATIVE, requester.addr, BUDGET);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Refunded);
    }

    function test_WithALeaseUpToTheDeadline_TheStakeIsTheRequestersToo() external {
        Task memory task = newTask();
        task.deadline = uint64(block.timestamp) + MAX_DURATION;
        fund(task);
        accept(task, provider, 1);
        vm.warp(task.deadline);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.LeaseLapsed(id(task), provider.addr, 1, STAKE);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskRefunded(id(task), requester.addr, BUDGET);
        escrow.refund(task);
        assertRecord(task, provider.addr, 1, 0, IZORAIComputeEscrow.Status.Refunded);
        assertCredit(NATIVE, requester.addr, BUDGET + STAKE);
    }

    function expectStatusRefused(Task memory task, IZORAIComputeEscrow.Status status) private {
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongStatus.selector, id(task), status));
        escrow.refund(task);
    }
}

/// @notice Branches of test/trees/cancel.tree.
contract CancelTest is EscrowTest {
    function test_WhenItNamesAnotherTask_Reverts() external {
        Task memory task = funded();
        CancelTask memory message = cancellationOf(task);
        message.taskId = keccak256("another");
        bytes memory signature = sign(requester, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongTask.selector, id(task), message.taskId));
        escrow.cancel(task, message, signature);
    }

    function test_WhenAnotherSigned_Reverts() external {
        Task memory task = funded();
        CancelTask memory message = cancellationOf(task);
        bytes memory signature = sign(rival, message);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongSigner.selector, requester.addr, rival.addr));
        escrow.cancel(task, message, signature);
    }

    function test_GivenNone_StoresIt() external {
        Task memory task = newTask();
        checkCancels(task, 0, 0);
    }

    function test_GivenFunded_TheBudgetIsTheRequesters() external {
        checkCancels(funded(), BUDGET, BUDGET);
    }

    function test_GivenAFailedAttempt_TheBudgetIsTheRequesters() external {
        Task memory task = accepted();
        FailTask memory failure = failureBy(task, provider.addr, 1);
        escrow.fail(task, failure, sign(provider, failure));
        checkCancels(task, BUDGET, BUDGET);
    }

    function test_WhileALeaseHolds_Reverts() external {
        Task memory task = accepted();
        uint256 until = block.timestamp + MAX_DURATION;
        vm.warp(until - 1);
        expectRevertOf(task, abi.encodeWithSelector(IZORAIComputeEscrow.LeaseHolds.selector, id(task), until));
    }

    function test_WhenALeaseLapsed_BudgetAndStakeAreTheRequesters() external {
        Task memory task = accepted();
        skip(MAX_DURATION);
        checkCancels(task, BUDGET, BUDGET + STAKE);
    }

    function test_WhenTheStatusForbids_Reverts() external {
        Task memory task = proven();
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Proven);
        dispute(task, provider, 1);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Disputed);
        skip(ARBITER_WINDOW);
        escrow.timeout(task);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Split);
    }

    function checkCancels(Task memory task, uint256 amount, uint256 credit) private {
        CancelTask memory message = cancellationOf(task);
        bytes memory signature = sign(requester, message);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskCancelled(id(task), requester.addr, amount);
        vm.prank(stranger.addr);
        escrow.cancel(task, message, signature);
        assertStatus(task, IZORAIComputeEscrow.Status.Cancelled);
        assertCredit(NATIVE, requester.addr, credit);
        expectStatusRefused(task, IZORAIComputeEscrow.Status.Cancelled);
    }

    function expectStatusRefused(Task memory task, IZORAIComputeEscrow.Status status) private {
        expectRevertOf(task, abi.encodeWithSelector(IZORAIComputeEscrow.WrongStatus.selector, id(task), status));
    }

    function expectRevertOf(Task memory task, bytes memory reason) private {
        CancelTask memory message = cancellationOf(task);
        bytes memory signature = sign(requester, message);
        vm.expectRevert(reason);
        escrow.cancel(task, message, signature);
    }
}
