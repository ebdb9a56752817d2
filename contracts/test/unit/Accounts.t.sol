// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Errors} from "@openzeppelin/contracts/utils/Errors.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {CancelTask, Task} from "../../src/libraries/Messages.sol";
import {ReentrantAccount, RefusingAccount} from "../mocks/Receivers.sol";
import {FeeToken, TrickToken} from "../mocks/Tokens.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice Branches of test/trees/accounts.tree.
contract AccountsTest is EscrowTest {
    function test_Stake_WhenTheValueIsWrong_Reverts() external {
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongValue.selector, 2, 1));
        escrow.stake{value: 1}(NATIVE, 2);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongValue.selector, 0, 1));
        escrow.stake{value: 1}(address(token), 1);
    }

    function test_Stake_WhenTheTokenChargesAFee_Reverts() external {
        FeeToken fee = new FeeToken();
        fee.mint(address(this), 1_000);
        fee.approve(address(escrow), 1_000);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.InexactTransfer.selector, address(fee), 1_000));
        escrow.stake(address(fee), 1_000);
    }

    function test_Stake_AddsAndEmits() external {
        stake(provider, NATIVE, 3);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.Staked(provider.addr, NATIVE, 4);
        stake(provider, NATIVE, 4);
        stake(provider, address(token), 5);
        assertEq(freeStake(NATIVE, provider.addr), 7);
        assertEq(freeStake(address(token), provider.addr), 5);
        assertEq(freeStake(NATIVE, rival.addr), 0);
    }

    function test_Unstake_WhenMoreThanIsFree_Reverts() external {
        stake(provider, NATIVE, 3);
        vm.prank(provider.addr);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.StakeTooSmall.selector, provider.addr, 3, 4));
        escrow.unstake(NATIVE, 4);
    }

    function test_Unstake_WhenItDoesNotFitTheSlot_Reverts() external {
        TrickToken trick = new TrickToken();
        uint256 amount = uint256(type(uint208).max) + 1;
        trick.mint(address(this), amount);
        trick.approve(address(escrow), amount);
        escrow.stake(address(trick), amount);
        revertsWith(abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 208, amount));
        escrow.unstake(address(trick), amount);
        escrow.unstake(address(trick), amount - 1);
    }

    function test_Unstake_ReplacesTheAnnouncementBefore() external {
        stake(provider, NATIVE, 10);
        unstake(10);
        skip(1 days - 1);
        uint64 leavesAt = uint64(block.timestamp + 1 days);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.UnstakeAnnounced(provider.addr, NATIVE, 4, leavesAt);
        unstake(4);
        (uint256 free, uint256 leaving, uint64 from) = escrow.stakeOf(NATIVE, provider.addr);
        assertEq(free, 10);
        assertEq(leaving, 4);
        assertEq(from, leavesAt);
        skip(1);
        expectNothing();
    }

    function test_Unstake_ZeroTakesItBack() external {
        stake(provider, NATIVE, 10);
        unstake(10);
        unstake(0);
        skip(2 days);
        expectNothing();
    }

    function test_Withdraw_WhenTheReceiverIsZero_Reverts() external {
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.ZeroReceiver.selector));
        escrow.withdraw(NATIVE, address(0));
    }

    function test_Withdraw_WhenThereIsNothing_Reverts() external {
        expectNothing();
        stake(provider, NATIVE, 10);
        expectNothing();
    }

    function test_Withdraw_AnnouncedStakeLeavesAtItsTime() external {
        stake(provider, NATIVE, 10);
        unstake(10);
        skip(1 days - 1);
        expectNothing();
        skip(1);
        vm.prank(provider.addr);
        assertEq(escrow.withdraw(NATIVE, stranger.addr), 10);
        assertEq(freeStake(NATIVE, provider.addr), 0);
        assertEq(address(escrow).balance, 0);
        expectNothing();
    }

    function test_Withdraw_StakeLockedMeanwhileStays() external {
        Task memory task = newTask();
        task.deadline += 2 days;
        fund(task);
        stake(provider, NATIVE, 10);
        vm.prank(provider.addr);
        escrow.unstake(NATIVE, 10);
        // The announced stake can be locked until it leaves.
        stake(provider, NATIVE, STAKE - 4);
        vm.warp(START + 1 days);
        acceptWithoutStaking(task);
        vm.prank(provider.addr);
        assertEq(escrow.withdraw(NATIVE, provider.addr), 6);
        assertEq(freeStake(NATIVE, provider.addr), 0);
    }

    function test_Withdraw_SendsCreditAndStakeInOne() external {
        Task memory task = paid();
        vm.prank(provider.addr);
        escrow.unstake(NATIVE, STAKE);
        skip(1 days);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.Withdrawn(provider.addr, NATIVE, stranger.addr, BUDGET + STAKE);
        uint256 before = stranger.addr.balance;
        vm.prank(provider.addr);
        escrow.withdraw(NATIVE, stranger.addr);
        assertEq(stranger.addr.balance - before, BUDGET + STAKE);
        assertCredit(NATIVE, provider.addr, 0);
        assertEq(address(escrow).balance, 0);
        assertStatus(task, IZORAIComputeEscrow.Status.Paid);
    }

    function test_Withdraw_Token() external {
        Task memory task = tokenTask();
        fund(task);
        vm.warp(task.deadline);
        escrow.refund(task);
        vm.prank(requester.addr);
        assertEq(escrow.withdraw(address(token), stranger.addr), BUDGET);
        assertEq(token.balanceOf(stranger.addr), 1_000 ether + BUDGET);
        assertEq(escrow.heldOf(address(token)), 0);
    }

    function test_Withdraw_WhenTheReceiverRefuses_Reverts() external {
        RefusingAccount refusing = new RefusingAccount();
        Task memory task = newTask();
        task.requester = address(refusing);
        fund(task);
        vm.warp(task.deadline);
        // The refund itself does not depend on the receiver.
        escrow.refund(task);
        vm.expectRevert(Errors.FailedCall.selector);
        refusing.withdraw(escrow, NATIVE, address(refusing));
        assertEq(refusing.withdraw(escrow, NATIVE, stranger.addr), BUDGET);
    }

    function test_Withdraw_WhenTheReceiverCallsBack_IsPaidOnce() external {
        ReentrantAccount reentrant = new ReentrantAccount(escrow);
        reentrant.stake{value: 10}(10);
        reentrant.unstake(10);
        stake(provider, NATIVE, 100);
        skip(1 days);
        assertEq(reentrant.withdraw(), 10);
        assertTrue(reentrant.attempted());
        assertFalse(reentrant.succeeded());
        assertEq(address(reentrant).balance, 10);
        assertEq(address(escrow).balance, 100);
    }

    function test_Withdraw_WhenTheTokenTakesMore_Reverts() external {
        TrickToken trick = new TrickToken();
        trick.mint(address(this), 100);
        trick.approve(address(escrow), 100);
        escrow.stake(address(trick), 100);
        escrow.unstake(address(trick), 60);
        skip(1 days);
        trick.setSurcharge(1);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.InexactTransfer.selector, address(trick), 60));
        escrow.withdraw(address(trick), address(this));
        trick.setSurcharge(0);
        assertEq(escrow.withdraw(address(trick), address(this)), 60);
    }

    function test_Withdraw_WhenTheTokenBlocksTheReceiver_AnotherMayDo() external {
        TrickToken trick = new TrickToken();
        trick.mint(address(this), 100);
        trick.approve(address(escrow), 100);
        escrow.stake(address(trick), 100);
        escrow.unstake(address(trick), 100);
        skip(1 days);
        trick.setBlocked(address(this));
        vm.expectRevert("blocked");
        escrow.withdraw(address(trick), address(this));
        assertEq(escrow.withdraw(address(trick), stranger.addr), 100);
    }

    function test_Burn_WhenNothingWasBurned_Reverts() external {
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.NothingToWithdraw.selector, DEAD, NATIVE));
        escrow.burn(NATIVE);
    }

    function test_Burn_SendsItToTheDeadAddress() external {
        Task memory task = disputed();
        skip(ARBITER_WINDOW);
        escrow.timeout(task);
        assertEq(escrow.burn(NATIVE), STAKE + BOND);
        assertEq(DEAD.balance, STAKE + BOND);
        assertCredit(NATIVE, DEAD, 0);
    }

    function test_TakesNoCoinOutsideOfCalls() external {
        (bool success,) = address(escrow).call{value: 1}("");
        assertFalse(success);
    }

    function acceptWithoutStaking(Task memory task) private {
        (bytes memory signature, uint256 until) = ("", block.timestamp + 600);
        signature = sign(provider, acceptance(task, provider.addr, 1, until));
        escrow.accept(task, acceptance(task, provider.addr, 1, until), signature);
    }

    function unstake(uint256 amount) private {
        vm.prank(provider.addr);
        escrow.unstake(NATIVE, amount);
    }

    function expectNothing() private {
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.NothingToWithdraw.selector, provider.addr, NATIVE));
        vm.prank(provider.addr);
        escrow.withdraw(NATIVE, provider.addr);
    }
}
