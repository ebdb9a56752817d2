// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {Task} from "../../src/libraries/Messages.sol";
import {FeeToken, HookToken, TrickToken} from "../mocks/Tokens.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice A naive model of the escrow: where each task is and who is owed what. It knows the rules from the documentation, not from the
/// contract's code. Beside it, how steps are drawn and held against it.
abstract contract MarketModel is EscrowTest {
    /// @dev Where the model sees a task.
    struct Model {
        IZORAIComputeEscrow.Status status;
        address provider;
        uint32 attempt;
        uint64 until;
    }

    /// @dev A signed call that succeeded.
    struct Spent {
        bytes data;
        uint256 value;
    }

    Task[] internal tasks;
    mapping(bytes32 taskId => Model) public models;
    mapping(address coin => mapping(address account => uint256)) public credit;
    mapping(address coin => mapping(address account => uint256)) public free;
    mapping(address coin => mapping(address account => uint256)) public leaving;
    mapping(address coin => mapping(address account => uint256)) public leavesAt;
    mapping(address coin => mapping(address account => uint256)) public paidIn;
    mapping(address coin => mapping(address account => uint256)) public paidOut;
    mapping(IZORAIComputeEscrow.Status => uint256) public reached;
    uint256 public replays;

    address[] public coins;
    Account[] internal parties;
    address[] public accounts;
    Spent[] internal spent;
    TrickToken internal trick;
    HookToken internal hook;
    FeeToken internal fee;

    function balanceOf(address coin, address who) public view returns (uint256) {
        return coin == NATIVE ? who.balance : IERC20(coin).balanceOf(who);
    }

    // The model.

    function unheld(Model storage model) internal view returns (bool) {
        return model.status == IZORAIComputeEscrow.Status.Funded
            || (model.status == IZORAIComputeEscrow.Status.Accepted && block.timestamp >= model.until);
    }

    function holds(Model storage model, address who, uint32 attempt) internal view returns (bool) {
        return model.status == IZORAIComputeEscrow.Status.Accepted && block.timestamp < model.until
            && model.provider == who && model.attempt == attempt;
    }

    function takesNext(Task memory task, Model storage model, address who, uint32 attempt)
        internal
        view
        returns (bool)
    {
        return unheld(model) && block.timestamp < task.deadline && attempt == model.attempt + 1
            && attempt <= task.config.maxAttempts && who != task.arbiter;
    }

    function endLapsed(Task memory task, Model storage model) internal {
        if (model.status == IZORAIComputeEscrow.Status.Accepted) {
            credit[task.token][task.requester] += task.providerStake;
        }
    }

    function payOut(Task memory task, Model storage model) internal {
        credit[task.token][model.provider] += task.budget;
        free[task.token][model.provider] += task.providerStake;
        end(model, IZORAIComputeEscrow.Status.Paid);
    }

    function end(Model storage model, IZORAIComputeEscrow.Status status) internal {
        assertFalse(isFinal(model.status), "a second outcome");
        (model.status, model.until) = (status, 0);
        ++reached[status];
    }

    function isFinal(IZORAIComputeEscrow.Status status) internal pure returns (bool) {
        return uint8(status) >= uint8(IZORAIComputeEscrow.Status.Paid);
    }

    /// @dev Whether a token brings what it says: one keeps a hundredth, which of less than a hundred is nothing.
    function comesIn(address coin, uint256 amount) internal view returns (bool) {
        if (coin == address(fee)) return amount < 100;
        return coin != address(trick) || !trick.returnsFalse();
    }

    function goesOut(address coin) internal view returns (bool) {
        return coin != address(trick) || (!trick.returnsFalse() && trick.surcharge() == 0);
    }

    function due(address coin, address who) internal view returns (bool) {
        return leaving[coin][who] != 0 && block.timestamp >= leavesAt[coin][who];
    }

    function dueStake(address coin, address who) internal view returns (uint256) {
        if (!due(coin, who)) return 0;
        return leaving[coin][who] < free[coin][who] ? leaving[coin][who] : free[coin][who];
    }

    // Calls and choices.

    function stepSigned(bytes memory data, bool fits) internal {
        step(stranger.addr, NATIVE, 0, data, fits);
        if (fits) spent.push(Spent(data, 0));
    }

    /// @dev Calls, with the money in the coin, and holds the model against what happened.
    function step(address from, address coin, uint256 amount, bytes memory data, bool fits) internal {
        vm.prank(from);
        (bool done, bytes memory answer) = address(escrow).call{value: coin == NATIVE ? amount : 0}(data);
        assertEq(done, fits, string.concat("the model disagrees: ", vm.toString(answer)));
        assertFalse(hook.lastCallSucceeded(), "a token was let in");
        if (done) paidIn[coin][from] += amount;
    }

    /// @dev Mostly a task in the status that the step is for, else any.
    function pick(uint256 seed, IZORAIComputeEscrow.Status wanted)
        internal
        view
        returns (Task memory task, bytes32 taskId)
    {
        uint256 first = seed / 4;
        if (seed % 4 != 3) {
            for (uint256 i = 0; i < tasks.length; ++i) {
                task = tasks[addmod(first, i, tasks.length)];
                taskId = id(task);
                if (models[taskId].status == wanted) return (task, taskId);
            }
        }
        task = tasks[first % tasks.length];
        taskId = id(task);
    }

    function addParty(Account memory who) internal {
        parties.push(who);
        accounts.push(who.addr);
        vm.deal(who.addr, 1e30);
        token.mint(who.addr, 1e30);
        trick.mint(who.addr, 1e30);
        hook.mint(who.addr, 1e30);
        fee.mint(who.addr, 1e30);
        vm.startPrank(who.addr);
        trick.approve(address(escrow), type(uint256).max);
        hook.approve(address(escrow), type(uint256).max);
        fee.approve(address(escrow), type(uint256).max);
        vm.stopPrank();
    }

    function someParty(uint256 seed) internal view returns (Account memory) {
        // Mostly a provider.
        return parties[seed % 3 != 0 ? 1 + seed / 3 % 2 : seed / 3 % parties.length];
    }

    function partyOf(address who) internal view returns (Account memory) {
        for (uint256 i = 0; i < parties.length; ++i) {
            if (parties[i].addr == who) return parties[i];
        }
        return stranger;
    }

    function holderOrAny(Model storage model, uint256 seed) internal view returns (Account memory) {
        return seed % 8 == 0 ? someParty(seed / 8) : partyOf(model.provider);
    }

    function someSigner(Account memory right, uint256 seed) internal view returns (Account memory, bool) {
        if (seed % 12 != 0) return (right, true);
        Account memory other = parties[seed / 12 % parties.length];
        return (other, other.addr == right.addr);
    }

    function someAttempt(Model storage model, uint256 seed) internal view returns (uint32) {
        return seed % 10 == 0 ? model.attempt + uint32(seed / 10 % 4) : model.attempt + 1;
    }

    function sameAttempt(Model storage model, uint256 seed) internal view returns (uint32) {
        return seed % 10 == 0 ? model.attempt + uint32(seed / 10 % 3) : model.attempt;
    }

    /// @dev Another random word of the same seed.
    function part(uint256 seed, uint256 index) internal pure returns (uint256) {
        return uint256(keccak256(abi.encode(seed, index)));
    }
}
