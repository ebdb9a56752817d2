// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {CancelTask, Task} from "../../src/libraries/Messages.sol";
import {FeeToken, HookToken, SilentToken, TrickToken} from "../mocks/Tokens.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice Branches of test/trees/fund.tree.
contract FundTest is EscrowTest {
    function test_WhenFundedBefore_Reverts() external {
        Task memory task = funded();
        revertsWith(
            abi.encodeWithSelector(
                IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Funded
            )
        );
        fund(task);
    }

    function test_WhenPaid_Reverts() external {
        Task memory task = windowlessTask();
        fund(task);
        accept(task, provider, 1);
        prove(task, provider, 1);
        revertsWith(
            abi.encodeWithSelector(IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Paid)
        );
        fund(task);
    }

    function test_WhenCancelledBeforeItWasFunded_Reverts() external {
        Task memory task = newTask();
        CancelTask memory message = cancellationOf(task);
        escrow.cancel(task, message, sign(requester, message));
        revertsWith(
            abi.encodeWithSelector(
                IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Cancelled
            )
        );
        fund(task);
    }

    function test_WhenTheRequesterIsZero_Reverts() external {
        Task memory task = newTask();
        task.requester = address(0);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.ZeroRequester.selector));
        fund(task);
    }

    function test_DeadlineEdges() external {
        Task memory task = newTask();
        uint256 latest = block.timestamp + 90 days;

        task.deadline = uint64(block.timestamp);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.DeadlineOutOfRange.selector, task.deadline, latest));
        fund(task);

        task.deadline = uint64(block.timestamp) + 1;
        fund(task);
        assertStatus(task, IZORAIComputeEscrow.Status.Funded);

        task.deadline = uint64(latest);
        fund(task);
        assertStatus(task, IZORAIComputeEscrow.Status.Funded);

        task.deadline = uint64(latest) + 1;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.DeadlineOutOfRange.selector, task.deadline, latest));
        fund(task);
    }

    function test_WindowEdges() external {
        Task memory task = newTask();
        task.disputeWindow = 30 days;
        task.arbiterWindow = 30 days;
        fund(task);
        assertStatus(task, IZORAIComputeEscrow.Status.Funded);

        task.disputeWindow = 30 days + 1;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WindowTooLong.selector, 30 days));
        fund(task);

        task.disputeWindow = 30 days;
        task.arbiterWindow = 30 days + 1;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WindowTooLong.selector, 30 days));
        fund(task);
    }

    function test_WhenOnlyOneOfArbiterAndWindowIsSet_Reverts() external {
        Task memory task = newTask();
        task.arbiter = address(0);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.ArbiterWithoutWindow.selector));
        fund(task);

        task = newTask();
        task.disputeWindow = 0;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.ArbiterWithoutWindow.selector));
        fund(task);
    }

    function test_WhenTheArbiterIsTheRequester_Reverts() external {
        Task memory task = newTask();
        task.arbiter = requester.addr;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.PartialArbiter.selector, requester.addr));
        fund(task);
    }

    function test_WhenTheArbiterHasNoTime_Reverts() external {
        Task memory task = newTask();
        task.arbiterWindow = 0;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.ZeroArbiterWindow.selector));
        fund(task);
    }

    function test_StakeAndBondAreAtLeastHalfRoundedUp() external {
        Task memory task = newTask();
        task.budget = 101;
        task.providerStake = 51;
        task.disputeBond = 51;
        fund(task);
        assertStatus(task, IZORAIComputeEscrow.Status.Funded);

        task.providerStake = 50;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.StakeOrBondTooSmall.selector, 51));
        fund(task);

        task.providerStake = 51;
        task.disputeBond = 50;
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.StakeOrBondTooSmall.selector, 51));
        fund(task);
    }

    function test_WithoutArbiterStakeAndBondAreFree() external {
        Task memory task = windowlessTask();
        task.providerStake = 0;
        task.disputeBond = 1;
        fund(task);
        assertStatus(task, IZORAIComputeEscrow.Status.Funded);
    }

    function test_WhenTheValueIsNotTheBudget_Reverts() external {
        Task memory task = newTask();
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongValue.selector, BUDGET, BUDGET - 1));
        escrow.fund{value: BUDGET - 1}(task);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongValue.selector, BUDGET, BUDGET + 1));
        escrow.fund{value: BUDGET + 1}(task);
    }

    function test_NativeCoin() external {
        Task memory task = newTask();
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskFunded(id(task), requester.addr, NATIVE, BUDGET, stranger.addr);
        vm.prank(stranger.addr);
        escrow.fund{value: BUDGET}(task);

        assertRecord(task, address(0), 0, 0, IZORAIComputeEscrow.Status.Funded);
        assertEq(address(escrow).balance, BUDGET);
        assertEq(escrow.heldOf(NATIVE), 0);
    }

    function test_Token() external {
        Task memory task = tokenTask();
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskFunded(id(task), requester.addr, address(token), BUDGET, requester.addr);
        fund(task);

        assertRecord(task, address(0), 0, 0, IZORAIComputeEscrow.Status.Funded);
        assertEq(token.balanceOf(address(escrow)), BUDGET);
        assertEq(escrow.heldOf(address(token)), BUDGET);
    }

    function test_WhenValueComesWithATokenTask_Reverts() external {
        Task memory task = tokenTask();
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.WrongValue.selector, 0, 1));
        escrow.fund{value: 1}(task);
    }

    function test_WhenTheTokenChargesAFee_Reverts() external {
        FeeToken fee = new FeeToken();
        fee.mint(requester.addr, BUDGET);
        Task memory task = newTask();
        task.token = address(fee);
        vm.startPrank(requester.addr);
        fee.approve(address(escrow), BUDGET);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.InexactTransfer.selector, address(fee), BUDGET));
        escrow.fund(task);
    }

    function test_WhenTheTokenReturnsFalse_Reverts() external {
        TrickToken trick = trickToken();
        Task memory task = newTask();
        task.token = address(trick);
        trick.setReturnsFalse(true);
        revertsWith(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(trick)));
        fund(task);
    }

    function test_WhenTheTokenHasNoCode_Reverts() external {
        Task memory task = newTask();
        task.token = address(0xC0DE);
        vm.expectRevert();
        fund(task);
    }

    function test_WhenTheTokenReturnsNothing_Funds() external {
        SilentToken silent = new SilentToken();
        silent.mint(requester.addr, BUDGET);
        Task memory task = newTask();
        task.token = address(silent);
        vm.startPrank(requester.addr);
        silent.approve(address(escrow), BUDGET);
        escrow.fund(task);
        assertEq(silent.balanceOf(address(escrow)), BUDGET);
    }

    function test_WhenTheTokenTookFromWhatIsHeld_Reverts() external {
        TrickToken trick = trickToken();
        Task memory task = newTask();
        task.token = address(trick);
        fund(task);
        trick.shrink(address(escrow), 1);
        task.salt = keccak256("next");
        revertsWith(
            abi.encodeWithSelector(IZORAIComputeEscrow.TokenShrank.selector, address(trick), BUDGET, BUDGET - 1)
        );
        fund(task);
    }

    function test_WhenATokenGrew_FundsAtFaceValue() external {
        Task memory task = tokenTask();
        token.mint(address(escrow), 5);
        fund(task);
        assertEq(escrow.heldOf(address(token)), BUDGET);
    }

    function test_WhenTheTokenCallsBack_IsRefused() external {
        HookToken hook = new HookToken();
        hook.mint(requester.addr, 2 * BUDGET);
        Task memory task = newTask();
        task.token = address(hook);
        vm.prank(requester.addr);
        hook.approve(address(escrow), 2 * BUDGET);
        hook.setHook(address(escrow), abi.encodeCall(escrow.withdraw, (address(hook), address(this))));
        fund(task);
        assertFalse(hook.lastCallSucceeded());
        hook.setHook(address(escrow), abi.encodeCall(escrow.stake, (address(hook), 0)));
        task.salt = keccak256("next");
        fund(task);
        assertFalse(hook.lastCallSucceeded());
    }

    function test_ByPermit_TakesThePayersTokensWhoeverSends() external {
        Task memory task = tokenTask();
        IZORAIComputeEscrow.PermitFunding memory permit = permitFor(task, id(task), BUDGET, 7);
        vm.expectEmit(address(escrow));
        emit IZORAIComputeEscrow.TaskFunded(id(task), requester.addr, address(token), BUDGET, rival.addr);
        vm.prank(stranger.addr);
        escrow.fundWithPermit2(task, permit);

        assertStatus(task, IZORAIComputeEscrow.Status.Funded);
        assertEq(token.balanceOf(address(escrow)), BUDGET);
        assertEq(token.balanceOf(rival.addr), 1_000 ether - BUDGET);
        assertEq(escrow.heldOf(address(token)), BUDGET);
    }

    function test_ByPermit_WhenTheWitnessNamesAnotherTask_Reverts() external {
        Task memory task = tokenTask();
        IZORAIComputeEscrow.PermitFunding memory permit = permitFor(task, keccak256("another"), BUDGET, 7);
        vm.expectRevert(bytes4(keccak256("InvalidSigner()")));
        escrow.fundWithPermit2(task, permit);
    }

    function test_ByPermit_WhenAnotherAmountWasSigned_Reverts() external {
        Task memory task = tokenTask();
        IZORAIComputeEscrow.PermitFunding memory permit = permitFor(task, id(task), BUDGET + 1, 7);
        vm.expectRevert(bytes4(keccak256("InvalidSigner()")));
        escrow.fundWithPermit2(task, permit);
    }

    function test_ByPermit_WhenUsedASecondTime_Reverts() external {
        Task memory task = tokenTask();
        IZORAIComputeEscrow.PermitFunding memory permit = permitFor(task, id(task), BUDGET, 7);
        escrow.fundWithPermit2(task, permit);
        revertsWith(
            abi.encodeWithSelector(
                IZORAIComputeEscrow.WrongStatus.selector, id(task), IZORAIComputeEscrow.Status.Funded
            )
        );
        escrow.fundWithPermit2(task, permit);

        // The nonce is spent for every other task too.
        task.salt = keccak256("next");
        permit = permitFor(task, id(task), BUDGET, 7);
        vm.expectRevert(bytes4(keccak256("InvalidNonce()")));
        escrow.fundWithPermit2(task, permit);
    }

    function test_ByPermit_WhenTheTokenTakesOrTook_Reverts() external {
        FeeToken fee = new FeeToken();
        fee.mint(rival.addr, BUDGET);
        vm.prank(rival.addr);
        fee.approve(address(permit2), BUDGET);
        Task memory task = newTask();
        task.token = address(fee);
        IZORAIComputeEscrow.PermitFunding memory permit = permitFor(task, id(task), BUDGET, 7);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.InexactTransfer.selector, address(fee), BUDGET));
        escrow.fundWithPermit2(task, permit);

        TrickToken trick = trickToken();
        task.token = address(trick);
        fund(task);
        trick.shrink(address(escrow), BUDGET);
        task.salt = keccak256("next");
        permit = permitFor(task, id(task), BUDGET, 7);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.TokenShrank.selector, address(trick), BUDGET, 0));
        escrow.fundWithPermit2(task, permit);
    }

    function test_ByPermit_WhenNative_Reverts() external {
        Task memory task = newTask();
        IZORAIComputeEscrow.PermitFunding memory permit = permitFor(task, id(task), BUDGET, 7);
        revertsWith(abi.encodeWithSelector(IZORAIComputeEscrow.NativeByPermit.selector));
        escrow.fundWithPermit2(task, permit);
    }

    function testFuzz_IdsDifferWithEveryField(uint256 word) external view {
        Task memory task = newTask();
        bytes32 before = id(task);
        bytes32 salt = task.salt;
        task.salt = bytes32(word);
        assertEq(id(task) == before, task.salt == salt);
        task.salt = salt;
        uint256 budget = task.budget;
        task.budget = word;
        assertEq(id(task) == before, task.budget == budget);
    }

    function trickToken() private returns (TrickToken trick) {
        trick = new TrickToken();
        trick.mint(requester.addr, 100 ether);
        vm.prank(requester.addr);
        trick.approve(address(escrow), type(uint256).max);
    }

    /// @dev The rival pays, by a signature as a wallet makes it.
    function permitFor(Task memory task, bytes32 taskId, uint256 amount, uint256 nonce)
        private
        returns (IZORAIComputeEscrow.PermitFunding memory)
    {
        vm.prank(rival.addr);
        token.approve(address(permit2), type(uint256).max);
        uint256 until = block.timestamp + 600;
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256(
                    "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,FundTask witness)FundTask(bytes32 taskId)TokenPermissions(address token,uint256 amount)"
                ),
                keccak256(abi.encode(keccak256("TokenPermissions(address token,uint256 amount)"), task.token, amount)),
                address(escrow),
                nonce,
                until,
                keccak256(abi.encode(keccak256("FundTask(bytes32 taskId)"), taskId))
            )
        );
        (, bytes memory separator) = address(permit2).staticcall(abi.encodeWithSignature("DOMAIN_SEPARATOR()"));
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", separator, structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(rival.key, digest);
        return IZORAIComputeEscrow.PermitFunding(rival.addr, nonce, until, abi.encodePacked(r, s, v));
    }
}
