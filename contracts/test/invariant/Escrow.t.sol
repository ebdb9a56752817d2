// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {Task} from "../../src/libraries/Messages.sol";
import {Market} from "./Market.sol";

/// @notice What must hold after any sequence of steps of the market.
contract EscrowInvariants is Test {
    Market private market;
    IZORAIComputeEscrow private escrow;

    function setUp() external {
        market = new Market();
        market.setUp();
        escrow = IZORAIComputeEscrow(market.escrowAddress());
        bytes4[] memory steps = new bytes4[](1);
        steps[0] = Market.anyStep.selector;
        targetContract(address(market));
        targetSelector(FuzzSelector(address(market), steps));
    }

    /// @dev One campaign checks all, since each sequence costs more than its checks.
    function invariant_MoneyAndStatus() external view {
        balanceIsBudgetsStakesBondsAndWithdrawable();
        everybodyHasTheirDue();
        noMoreGoesOutThanCameIn();
        tasksAreWhereTheModelSeesThem();
    }

    /// @dev (a) What the contract has is what it owes, coin by coin.
    function balanceIsBudgetsStakesBondsAndWithdrawable() private view {
        for (uint256 c = 0; c < market.coinsCount(); ++c) {
            address coin = market.coins(c);
            uint256 owed = heldForTasks(coin) + heldForAccounts(coin);
            assertEq(market.balanceOf(coin, address(escrow)), owed, "balance");
            if (coin != address(0)) assertEq(escrow.heldOf(coin), owed, "held");
        }
    }

    /// @dev (b) Nobody has more, or less, than the model says that they are due.
    function everybodyHasTheirDue() private view {
        for (uint256 c = 0; c < market.coinsCount(); ++c) {
            address coin = market.coins(c);
            for (uint256 i = 0; i < market.accountsCount(); ++i) {
                address who = market.accounts(i);
                assertEq(escrow.creditOf(coin, who), market.credit(coin, who), "credit");
                (uint256 free, uint256 leaving, uint64 leavesAt) = escrow.stakeOf(coin, who);
                assertEq(free, market.free(coin, who), "free stake");
                assertEq(leaving, market.leaving(coin, who), "leaving stake");
                if (leaving != 0) assertEq(leavesAt, market.leavesAt(coin, who), "leaves at");
            }
        }
    }

    /// @dev (b) Over all accounts, never more went out than came in.
    function noMoreGoesOutThanCameIn() private view {
        for (uint256 c = 0; c < market.coinsCount(); ++c) {
            address coin = market.coins(c);
            (uint256 paidIn, uint256 paidOut) = (0, 0);
            for (uint256 i = 0; i < market.accountsCount(); ++i) {
                paidIn += market.paidIn(coin, market.accounts(i));
                paidOut += market.paidOut(coin, market.accounts(i));
            }
            assertEq(paidIn - paidOut, market.balanceOf(coin, address(escrow)), "in less out");
        }
    }

    /// @dev (d) Each task is where the model sees it; the model refuses a second outcome.
    function tasksAreWhereTheModelSeesThem() private view {
        for (uint256 i = 0; i < market.tasksCount(); ++i) {
            bytes32 taskId = escrow.taskIdOf(market.taskAt(i));
            IZORAIComputeEscrow.Record memory record = escrow.recordOf(taskId);
            (IZORAIComputeEscrow.Status status, address provider, uint32 attempt, uint64 until) = market.models(taskId);
            assertEq(uint8(record.status), uint8(status), "status");
            assertEq(record.provider, provider, "provider");
            assertEq(record.attempt, attempt, "attempt");
            assertEq(record.until, until, "until");
            bool stands = status == IZORAIComputeEscrow.Status.Proven || status == IZORAIComputeEscrow.Status.Disputed;
            assertEq(escrow.resultOf(taskId) != 0, stands, "result");
        }
    }

    /// @dev (c) At the end of each sequence a stranger can end every task, and all money can be taken out.
    function afterInvariant() external {
        market.endAll();
        market.emptyAll();
    }

    /// @dev The steps do reach every outcome and every refusal of a replay, or the invariants would prove little.
    function test_AWalkReachesEveryOutcome() external {
        for (uint256 i = 0; i < 12; ++i) {
            walk(i, 400);
            market.endAll();
            market.emptyAll();
            if (i < 11) {
                market = new Market();
                market.setUp();
                escrow = IZORAIComputeEscrow(market.escrowAddress());
            }
        }
        for (
            uint8 status = uint8(IZORAIComputeEscrow.Status.Paid);
            status <= uint8(IZORAIComputeEscrow.Status.Cancelled);
            ++status
        ) {
            assertGt(outcomes[status], 0, "an outcome was never reached");
        }
        assertGt(replays, 0, "nothing was replayed");
    }

    mapping(uint8 status => uint256) private outcomes;
    uint256 private replays;

    function walk(uint256 seed, uint256 length) private {
        for (uint256 i = 0; i < length; ++i) {
            market.anyStep(seed);
        }
        for (uint8 status = 0; status <= uint8(IZORAIComputeEscrow.Status.Cancelled); ++status) {
            outcomes[status] += market.reached(IZORAIComputeEscrow.Status(status));
        }
        replays += market.replays();
    }

    function heldForTasks(address coin) private view returns (uint256 held) {
        for (uint256 i = 0; i < market.tasksCount(); ++i) {
            Task memory task = market.taskAt(i);
            if (task.token != coin) continue;
            IZORAIComputeEscrow.Status status = escrow.recordOf(escrow.taskIdOf(task)).status;
            if (status == IZORAIComputeEscrow.Status.Funded) held += task.budget;
            if (status == IZORAIComputeEscrow.Status.Accepted || status == IZORAIComputeEscrow.Status.Proven) {
                held += task.budget + task.providerStake;
            }
            if (status == IZORAIComputeEscrow.Status.Disputed) {
                held += task.budget + task.providerStake + task.disputeBond;
            }
        }
    }

    function heldForAccounts(address coin) private view returns (uint256 held) {
        for (uint256 i = 0; i < market.accountsCount(); ++i) {
            address who = market.accounts(i);
            (uint256 free,,) = escrow.stakeOf(coin, who);
            held += free + escrow.creditOf(coin, who);
        }
    }
}
