// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
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
import {ReentrantAccount, RefusingAccount} from "../mocks/Receivers.sol";
import {FeeToken, HookToken, TrickToken} from "../mocks/Tokens.sol";
import {MarketModel} from "./MarketModel.sol";

/// @notice A market of honest and hostile actors that takes random steps, beside a naive model that says of each step whether it
/// must succeed and who is owed what after it.
contract Market is MarketModel {
    uint256 private constant MAX_TASKS = 20;
    uint256 private constant LEASE_MARGIN = 600;
    uint256 private constant MIN_LEASE = 300;

    bytes4[] private steps;
    uint256 private stepsTaken;
    ReentrantAccount private reentrant;
    RefusingAccount private refusing;

    function setUp() public override {
        super.setUp();
        (trick, hook, fee) = (new TrickToken(), new HookToken(), new FeeToken());
        (reentrant, refusing) = (new ReentrantAccount(escrow), new RefusingAccount());
        coins = [NATIVE, address(token), address(trick), address(hook), address(fee)];
        addParty(requester);
        addParty(provider);
        addParty(rival);
        addParty(arbiter);
        addParty(stranger);
        addParty(party("second requester"));
        accounts.push(DEAD);
        // Succeeds unless something holds the guard: it does during each transfer of this token.
        hook.setHook(address(escrow), abi.encodeCall(escrow.stake, (NATIVE, 0)));
        for (uint256 i = 0; i < 4; ++i) {
            create(uint256(keccak256(abi.encode("first tasks", i))));
        }
        for (uint256 c = 0; c < coins.length - 1; ++c) {
            for (uint256 i = 1; i < 3; ++i) {
                (address coin, address who) = (coins[c], parties[i].addr);
                step(who, coin, 20 ether, abi.encodeCall(escrow.stake, (coin, 20 ether)), true);
                free[coin][who] += 20 ether;
            }
        }
        steps = [
            this.create.selector,
            this.fundTask.selector,
            this.fundTask.selector,
            this.acceptTask.selector,
            this.acceptTask.selector,
            this.acceptTask.selector,
            this.failTask.selector,
            this.proveTask.selector,
            this.proveTask.selector,
            this.approveTask.selector,
            this.acceptAndProveTask.selector,
            this.settleTask.selector,
            this.settleTasks.selector,
            this.disputeTask.selector,
            this.disputeTask.selector,
            this.resolveTask.selector,
            this.timeoutTask.selector,
            this.refundTask.selector,
            this.cancelTask.selector,
            this.stakeCoin.selector,
            this.unstakeCoin.selector,
            this.withdrawCoin.selector,
            this.burnCoin.selector,
            this.playTrick.selector,
            this.replay.selector,
            this.pass.selector
        ];
    }

    /// @notice Takes one step. The seed is mixed with the number of the step, since a fuzzer likes to repeat its words.
    function anyStep(uint256 seed) external {
        uint256 word = part(seed, ++stepsTaken);
        (bool done, bytes memory answer) = address(this).call(abi.encodePacked(steps[word % steps.length], word));
        if (done) return;
        assembly {
            revert(add(answer, 0x20), mload(answer))
        }
    }

    function escrowAddress() external view returns (address) {
        return address(escrow);
    }

    function tasksCount() external view returns (uint256) {
        return tasks.length;
    }

    function accountsCount() external view returns (uint256) {
        return accounts.length;
    }

    function coinsCount() external view returns (uint256) {
        return coins.length;
    }

    function taskAt(uint256 index) external view returns (Task memory) {
        return tasks[index];
    }

    // Steps. Each takes random words.

    /// @dev Makes a task up; the arbiter of every second one is set.
    function create(uint256 seed) public {
        if (tasks.length == MAX_TASKS) return;
        Task memory task = newTask();
        task.salt = bytes32(tasks.length);
        task.requester = parties[seed % 2 == 0 ? 0 : 5].addr;
        task.token = coins[part(seed, 1) % coins.length];
        task.budget = part(seed, 2) % 1 ether;
        task.deadline = uint64(block.timestamp + 1 + part(seed, 3) % 4 hours);
        task.config.maxDuration = uint64(part(seed, 4) % 2 hours);
        task.config.maxAttempts = uint32(1 + part(seed, 5) % 3);
        if (part(seed, 6) % 4 == 0) {
            (task.arbiter, task.disputeWindow, task.arbiterWindow) = (address(0), 0, 0);
            (task.providerStake, task.disputeBond) = (part(seed, 7) % 1 ether, 0);
        } else {
            task.disputeWindow = uint64(1 + part(seed, 8) % 1 hours);
            task.arbiterWindow = uint64(1 + part(seed, 9) % 1 hours);
            task.providerStake = (task.budget + 1) / 2 + part(seed, 10) % 100;
            task.disputeBond = (task.budget + 1) / 2 + part(seed, 11) % 100;
        }
        tasks.push(task);
    }

    function fundTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.None);
        Model storage model = models[taskId];
        Account memory payer = someParty(part(seed, 1));
        bool fits = model.status == IZORAIComputeEscrow.Status.None && block.timestamp < task.deadline
            && comesIn(task.token, task.budget);
        step(payer.addr, task.token, task.budget, abi.encodeCall(escrow.fund, (task)), fits);
        if (!fits) return;
        model.status = IZORAIComputeEscrow.Status.Funded;
    }

    function acceptTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Funded);
        Model storage model = models[taskId];
        Account memory who = someParty(part(seed, 1));
        AcceptTask memory message = AcceptTask(
            taskId, who.addr, someAttempt(model, part(seed, 2)), uint64(block.timestamp + part(seed, 3) % 1 hours)
        );
        (Account memory signer, bool signed) = someSigner(who, part(seed, 4));
        uint256 latest = block.timestamp + task.config.maxDuration + LEASE_MARGIN;
        bool fits = signed && takesNext(task, model, who.addr, message.attempt)
            && message.leaseUntil >= block.timestamp + MIN_LEASE && message.leaseUntil <= task.deadline
            && message.leaseUntil <= latest && free[task.token][who.addr] >= task.providerStake;
        stepSigned(abi.encodeCall(escrow.accept, (task, message, sign(signer, message))), fits);
        if (!fits) return;
        endLapsed(task, model);
        free[task.token][who.addr] -= task.providerStake;
        models[taskId] = Model(IZORAIComputeEscrow.Status.Accepted, who.addr, message.attempt, message.leaseUntil);
    }

    function failTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Accepted);
        Model storage model = models[taskId];
        Account memory who = holderOrAny(model, part(seed, 1));
        FailTask memory message = failureBy(task, who.addr, sameAttempt(model, part(seed, 2)));
        (Account memory signer, bool signed) = someSigner(who, part(seed, 3));
        bool fits = signed && holds(model, who.addr, message.attempt);
        stepSigned(abi.encodeCall(escrow.fail, (task, message, sign(signer, message))), fits);
        if (!fits) return;
        free[task.token][who.addr] += task.providerStake;
        (model.status, model.until) = (IZORAIComputeEscrow.Status.Funded, 0);
    }

    function proveTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Accepted);
        Model storage model = models[taskId];
        Account memory who = holderOrAny(model, part(seed, 1));
        ComputeProof memory message = proofBy(task, who.addr, sameAttempt(model, part(seed, 2)));
        if (part(seed, 3) % 16 == 0) message.inputHash = "other";
        (Account memory signer, bool signed) = someSigner(who, part(seed, 4));
        bool fits = signed && holds(model, who.addr, message.attempt) && message.inputHash == task.inputHash;
        stepSigned(abi.encodeCall(escrow.prove, (task, message, sign(signer, message))), fits);
        if (!fits) return;
        if (task.disputeWindow == 0) {
            payOut(task, model);
        } else {
            model.status = IZORAIComputeEscrow.Status.Proven;
            model.until = uint64(block.timestamp) + task.disputeWindow;
        }
    }

    function approveTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Proven);
        Model storage model = models[taskId];
        ApproveResult memory message = approvalOf(task, model.provider, sameAttempt(model, part(seed, 1)));
        if (part(seed, 2) % 8 == 0) message.resultHash = "other";
        (Account memory signer, bool signed) = someSigner(partyOf(task.requester), part(seed, 3));
        bool fits = signed && model.status == IZORAIComputeEscrow.Status.Proven && message.attempt == model.attempt
            && message.resultHash == RESULT;
        stepSigned(abi.encodeCall(escrow.approve, (task, message, sign(signer, message))), fits);
        if (fits) payOut(task, model);
    }

    function acceptAndProveTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Funded);
        Model storage model = models[taskId];
        Account memory who = someParty(part(seed, 1));
        uint32 attempt = someAttempt(model, part(seed, 2));
        ComputeProof memory proof = proofBy(task, who.addr, attempt);
        ApproveResult memory approval = approvalOf(task, who.addr, attempt);
        if (part(seed, 3) % 8 == 0) approval.resultHash = "other";
        (Account memory signer, bool signed) = someSigner(partyOf(task.requester), part(seed, 4));
        bool fits = signed && takesNext(task, model, who.addr, attempt) && approval.resultHash == RESULT;
        bytes memory data =
            abi.encodeCall(escrow.acceptAndProve, (task, proof, sign(who, proof), approval, sign(signer, approval)));
        stepSigned(data, fits);
        if (!fits) return;
        endLapsed(task, model);
        (model.provider, model.attempt) = (who.addr, attempt);
        credit[task.token][who.addr] += task.budget;
        end(model, IZORAIComputeEscrow.Status.Paid);
    }

    function settleTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Proven);
        Model storage model = models[taskId];
        bool fits = model.status == IZORAIComputeEscrow.Status.Proven && block.timestamp >= model.until;
        step(stranger.addr, NATIVE, 0, abi.encodeCall(escrow.settle, (task)), fits);
        if (fits) payOut(task, model);
    }

    function settleTasks() external {
        Task[] memory batch = tasks;
        step(stranger.addr, NATIVE, 0, abi.encodeCall(escrow.settleBatch, (batch)), true);
        for (uint256 i = 0; i < batch.length; ++i) {
            Model storage model = models[id(batch[i])];
            if (model.status == IZORAIComputeEscrow.Status.Proven && block.timestamp >= model.until) {
                payOut(batch[i], model);
            }
        }
    }

    function disputeTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Proven);
        Model storage model = models[taskId];
        DisputeTask memory message = complaintAbout(task, model.provider, sameAttempt(model, part(seed, 1)));
        (Account memory signer, bool signed) = someSigner(partyOf(task.requester), part(seed, 2));
        bool fits = signed && model.status == IZORAIComputeEscrow.Status.Proven && block.timestamp < model.until
            && message.attempt == model.attempt && comesIn(task.token, task.disputeBond);
        bytes memory data = abi.encodeCall(escrow.dispute, (task, message, sign(signer, message)));
        step(someParty(part(seed, 3)).addr, task.token, task.disputeBond, data, fits);
        if (!fits) return;
        spent.push(Spent(data, valueOf(task, task.disputeBond)));
        model.status = IZORAIComputeEscrow.Status.Disputed;
        model.until = uint64(block.timestamp) + task.arbiterWindow;
    }

    function resolveTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Disputed);
        Model storage model = models[taskId];
        ResolveDispute memory message =
            verdictOn(task, sameAttempt(model, part(seed, 1)), uint32(part(seed, 2) % 10_002));
        (Account memory signer, bool signed) = someSigner(arbiter, part(seed, 3));
        bool fits = signed && model.status == IZORAIComputeEscrow.Status.Disputed && block.timestamp < model.until
            && message.attempt == model.attempt && message.providerBps <= 10_000;
        stepSigned(abi.encodeCall(escrow.resolve, (task, message, sign(signer, message))), fits);
        if (!fits) return;
        uint256 pot = task.budget + task.providerStake + task.disputeBond;
        uint256 share = pot * message.providerBps / 10_000;
        credit[task.token][model.provider] += share;
        credit[task.token][task.requester] += pot - share;
        end(model, IZORAIComputeEscrow.Status.Split);
    }

    function timeoutTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Disputed);
        Model storage model = models[taskId];
        bool fits = model.status == IZORAIComputeEscrow.Status.Disputed && block.timestamp >= model.until;
        step(stranger.addr, NATIVE, 0, abi.encodeCall(escrow.timeout, (task)), fits);
        if (!fits) return;
        credit[task.token][model.provider] += task.budget / 2;
        credit[task.token][task.requester] += (task.budget + 1) / 2;
        credit[task.token][DEAD] += task.providerStake + task.disputeBond;
        end(model, IZORAIComputeEscrow.Status.Split);
    }

    function refundTask(uint256 seed) external {
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Funded);
        Model storage model = models[taskId];
        bool fits = unheld(model) && block.timestamp >= task.deadline;
        step(stranger.addr, NATIVE, 0, abi.encodeCall(escrow.refund, (task)), fits);
        if (!fits) return;
        endLapsed(task, model);
        credit[task.token][task.requester] += task.budget;
        end(model, IZORAIComputeEscrow.Status.Refunded);
    }

    function cancelTask(uint256 seed) external {
        // Rare, or few tasks would live long enough to see more.
        if (part(seed, 1) % 4 != 0) return;
        (Task memory task, bytes32 taskId) = pick(seed, IZORAIComputeEscrow.Status.Accepted);
        Model storage model = models[taskId];
        CancelTask memory message = cancellationOf(task);
        (Account memory signer, bool signed) = someSigner(partyOf(task.requester), part(seed, 2));
        bool isNone = model.status == IZORAIComputeEscrow.Status.None;
        bool fits = signed && (isNone || unheld(model));
        stepSigned(abi.encodeCall(escrow.cancel, (task, message, sign(signer, message))), fits);
        if (!fits) return;
        endLapsed(task, model);
        if (!isNone) credit[task.token][task.requester] += task.budget;
        end(model, IZORAIComputeEscrow.Status.Cancelled);
    }

    function stakeCoin(uint256 seed) external {
        address coin = coins[seed % coins.length];
        address who = someParty(part(seed, 1)).addr;
        uint256 amount = part(seed, 2) % 3 ether;
        bool fits = comesIn(coin, amount);
        step(who, coin, amount, abi.encodeCall(escrow.stake, (coin, amount)), fits);
        if (fits) free[coin][who] += amount;
    }

    function unstakeCoin(uint256 seed) external {
        address coin = coins[seed % coins.length];
        address who = someParty(part(seed, 1)).addr;
        uint256 amount = part(seed, 2) % 3 ether;
        bool fits = amount <= free[coin][who];
        step(who, NATIVE, 0, abi.encodeCall(escrow.unstake, (coin, amount)), fits);
        if (fits) (leaving[coin][who], leavesAt[coin][who]) = (amount, block.timestamp + 1 days);
    }

    /// @dev To the account itself, to a receiver that calls back, or to one that refuses the native coin.
    function withdrawCoin(uint256 seed) external {
        address coin = coins[seed % coins.length];
        address who = someParty(part(seed, 1)).addr;
        address to = part(seed, 2) % 4 == 0 ? address(refusing) : part(seed, 2) % 4 == 1 ? address(reentrant) : who;
        uint256 stakeOut = dueStake(coin, who);
        uint256 amount = credit[coin][who] + stakeOut;
        bool fits = amount != 0 && goesOut(coin) && !(coin == NATIVE && to == address(refusing));
        uint256 before = balanceOf(coin, to);
        step(who, NATIVE, 0, abi.encodeCall(escrow.withdraw, (coin, to)), fits);
        assertFalse(reentrant.succeeded(), "a receiver was let in");
        if (!fits) return;
        if (coin != address(fee)) assertEq(balanceOf(coin, to) - before, amount, "received");
        credit[coin][who] = 0;
        free[coin][who] -= stakeOut;
        if (due(coin, who)) leaving[coin][who] = 0;
        paidOut[coin][who] += amount;
    }

    function burnCoin(uint256 seed) external {
        address coin = coins[seed % coins.length];
        uint256 amount = credit[coin][DEAD];
        bool fits = amount != 0 && goesOut(coin);
        step(stranger.addr, NATIVE, 0, abi.encodeCall(escrow.burn, (coin)), fits);
        if (!fits) return;
        credit[coin][DEAD] = 0;
        paidOut[coin][DEAD] += amount;
    }

    /// @dev The odd token returns false, takes a surcharge, or behaves.
    function playTrick(uint256 seed) external {
        trick.setReturnsFalse(seed % 4 == 0);
        trick.setSurcharge(seed % 4 == 1 ? 3 : 0);
    }

    /// @dev A signed call a second time, with the money that it takes: it must never succeed.
    function replay(uint256 seed) external {
        if (spent.length == 0) return;
        Spent memory call_ = spent[seed % spent.length];
        vm.prank(stranger.addr);
        (bool done,) = address(escrow).call{value: call_.value}(call_.data);
        assertFalse(done, "a signature worked twice");
        ++replays;
    }

    /// @dev On by some minutes, rarely by a day, or to one second before, at or after the end of something.
    function pass(uint256 seed) external {
        uint256 to = block.timestamp + (part(seed, 5) % 16 == 0 ? 1 days : part(seed, 1) % 30 minutes);
        if (seed % 2 == 0 && tasks.length != 0) {
            Task memory task = tasks[part(seed, 2) % tasks.length];
            uint256 until = part(seed, 3) % 2 == 0 ? task.deadline : models[id(task)].until;
            until = until + part(seed, 4) % 3 - (until == 0 ? 0 : 1);
            if (until > block.timestamp && until < block.timestamp + 1 days) to = until;
        }
        vm.warp(to);
    }

    /// @dev When every time has passed, a stranger ends each task that holds money, whatever its parties do.
    function endAll() external {
        vm.warp(block.timestamp + 200 days);
        for (uint256 i = 0; i < tasks.length; ++i) {
            Task memory task = tasks[i];
            IZORAIComputeEscrow.Status status = statusOf(task);
            if (status == IZORAIComputeEscrow.Status.Funded || status == IZORAIComputeEscrow.Status.Accepted) {
                this.refundTask(i * 4 + 3);
            } else if (status == IZORAIComputeEscrow.Status.Proven) {
                this.settleTask(i * 4 + 3);
            } else if (status == IZORAIComputeEscrow.Status.Disputed) {
                this.timeoutTask(i * 4 + 3);
            }
            status = statusOf(task);
            assertTrue(status == IZORAIComputeEscrow.Status.None || isFinal(status), "a task cannot be ended");
        }
    }

    /// @dev After {endAll}: everybody takes what is theirs, and nothing is left.
    function emptyAll() external {
        trick.setReturnsFalse(false);
        trick.setSurcharge(0);
        for (uint256 c = 0; c < coins.length; ++c) {
            for (uint256 i = 0; i < accounts.length; ++i) {
                (address coin, address who) = (coins[c], accounts[i]);
                if (who == DEAD) continue;
                uint256 staked = freeStake(coin, who);
                vm.prank(who);
                escrow.unstake(coin, staked);
            }
        }
        skip(1 days);
        for (uint256 c = 0; c < coins.length; ++c) {
            for (uint256 i = 0; i < accounts.length; ++i) {
                (address coin, address who) = (coins[c], accounts[i]);
                if (escrow.creditOf(coin, who) + freeStake(coin, who) == 0) continue;
                if (who == DEAD) {
                    escrow.burn(coin);
                } else {
                    vm.prank(who);
                    escrow.withdraw(coin, who);
                }
            }
            assertEq(balanceOf(coins[c], address(escrow)), 0, "money is stuck");
        }
    }
}
