// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {DeployPermit2} from "permit2/test/utils/DeployPermit2.sol";

import {IPermit2} from "../../src/interfaces/IPermit2.sol";
import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";
import {
    AcceptTask,
    ApproveResult,
    CancelTask,
    ComputeProof,
    DisputeTask,
    FailTask,
    ResolveDispute,
    Task,
    TaskConfig
} from "../../src/libraries/Messages.sol";
import {ZORAIComputeEscrow} from "../../src/ZORAIComputeEscrow.sol";
import {GoodToken} from "../mocks/Tokens.sol";
import {Digests} from "./Digests.sol";

/// @notice An escrow with Uniswap's Permit2 beside it, named parties with keys and money, and steps that bring a task to a state.
abstract contract EscrowTest is Test {
    uint256 internal constant BUDGET = 1 ether;
    uint256 internal constant STAKE = 0.6 ether;
    uint256 internal constant BOND = 0.7 ether;
    uint64 internal constant MAX_DURATION = 600;
    uint64 internal constant DISPUTE_WINDOW = 1 days;
    uint64 internal constant ARBITER_WINDOW = 7 days;
    uint64 internal constant START = 1_800_000_000;
    address internal constant NATIVE = address(0);
    address internal constant DEAD = 0x000000000000000000000000000000000000dEaD;
    bytes32 internal constant RESULT = keccak256("result");

    ZORAIComputeEscrow internal escrow;
    IPermit2 internal permit2;
    Digests internal digests;
    GoodToken internal token;

    Account internal requester;
    Account internal provider;
    Account internal rival;
    Account internal arbiter;
    Account internal stranger;

    function setUp() public virtual {
        vm.warp(START);
        permit2 = IPermit2(new DeployPermit2().deployPermit2());
        escrow = new ZORAIComputeEscrow(permit2);
        digests = new Digests();
        token = new GoodToken();
        requester = party("requester");
        provider = party("provider");
        rival = party("rival");
        arbiter = party("arbiter");
        stranger = party("stranger");
    }

    /// @dev A party with a key, native coin and tokens, which lets the escrow take the tokens.
    function party(string memory name) internal returns (Account memory account) {
        account = makeAccount(name);
        vm.deal(account.addr, 1_000 ether);
        token.mint(account.addr, 1_000 ether);
        vm.prank(account.addr);
        token.approve(address(escrow), type(uint256).max);
    }

    // Messages.

    function newTask() internal view returns (Task memory task) {
        task.requester = requester.addr;
        task.modelCidHash = keccak256("ipfs://model");
        task.modelHash = keccak256("model");
        task.inputCidHash = keccak256("ipfs://input");
        task.inputHash = keccak256("input");
        task.config = TaskConfig({
            runtimeHash: keccak256("wasm"),
            paramsHash: keccak256("{}"),
            gpuTypeHash: keccak256(""),
            gpuCount: 0,
            minVram: 0,
            maxDuration: MAX_DURATION,
            maxAttempts: 3
        });
        task.token = NATIVE;
        task.budget = BUDGET;
        task.providerStake = STAKE;
        task.disputeBond = BOND;
        task.deadline = uint64(block.timestamp) + 1 hours;
        task.disputeWindow = DISPUTE_WINDOW;
        task.arbiterWindow = ARBITER_WINDOW;
        task.arbiter = arbiter.addr;
        task.salt = keccak256("salt");
    }

    function tokenTask() internal view returns (Task memory task) {
        task = newTask();
        task.token = address(token);
    }

    function windowlessTask() internal view returns (Task memory task) {
        task = newTask();
        task.disputeWindow = 0;
        task.arbiterWindow = 0;
        task.arbiter = address(0);
    }

    function id(Task memory task) internal view returns (bytes32) {
        return escrow.taskIdOf(task);
    }

    function acceptance(Task memory task, address who, uint32 attempt, uint256 leaseUntil)
        internal
        view
        returns (AcceptTask memory)
    {
        return AcceptTask(id(task), who, attempt, uint64(leaseUntil));
    }

    function proofBy(Task memory task, address who, uint32 attempt) internal view returns (ComputeProof memory) {
        return ComputeProof({
            taskId: id(task),
            provider: who,
            attempt: attempt,
            modelHash: task.modelHash,
            inputHash: task.inputHash,
            resultHash: RESULT,
            resultCidHash: keccak256("ipfs://result"),
            startedAt: uint64(block.timestamp),
            finishedAt: uint64(block.timestamp),
            gpuNameHash: keccak256("")
        });
    }

    function failureBy(Task memory task, address who, uint32 attempt) internal view returns (FailTask memory) {
        return FailTask(id(task), who, attempt, keccak256("out_of_fuel"), keccak256("why"), uint64(block.timestamp));
    }

    function approvalOf(Task memory task, address who, uint32 attempt) internal view returns (ApproveResult memory) {
        return ApproveResult(id(task), who, attempt, RESULT, uint64(block.timestamp));
    }

    function complaintAbout(Task memory task, address who, uint32 attempt) internal view returns (DisputeTask memory) {
        return DisputeTask(
            id(task), who, attempt, RESULT, keccak256("reason"), keccak256("evidence"), uint64(block.timestamp)
        );
    }

    function verdictOn(Task memory task, uint32 attempt, uint32 bps) internal view returns (ResolveDispute memory) {
        return ResolveDispute(id(task), attempt, bps, uint64(block.timestamp));
    }

    function cancellationOf(Task memory task) internal view returns (CancelTask memory) {
        return CancelTask(id(task), uint64(block.timestamp));
    }

    // Signatures.

    function domainSeparator(address contract_, uint256 chainId) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("ZORAI Compute Market"),
                keccak256("1"),
                chainId,
                contract_
            )
        );
    }

    function signHash(Account memory who, bytes32 structHash) internal view returns (bytes memory) {
        bytes32 digest =
            keccak256(abi.encodePacked("\x19\x01", domainSeparator(address(escrow), block.chainid), structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(who.key, digest);
        return abi.encodePacked(r, s, v);
    }

    function sign(Account memory who, AcceptTask memory message) internal view returns (bytes memory) {
        return signHash(who, digests.hash(message));
    }

    function sign(Account memory who, FailTask memory message) internal view returns (bytes memory) {
        return signHash(who, digests.hash(message));
    }

    function sign(Account memory who, ComputeProof memory message) internal view returns (bytes memory) {
        return signHash(who, digests.hash(message));
    }

    function sign(Account memory who, ApproveResult memory message) internal view returns (bytes memory) {
        return signHash(who, digests.hash(message));
    }

    function sign(Account memory who, DisputeTask memory message) internal view returns (bytes memory) {
        return signHash(who, digests.hash(message));
    }

    function sign(Account memory who, ResolveDispute memory message) internal view returns (bytes memory) {
        return signHash(who, digests.hash(message));
    }

    function sign(Account memory who, CancelTask memory message) internal view returns (bytes memory) {
        return signHash(who, digests.hash(message));
    }

    // Steps.

    function valueOf(Task memory task, uint256 amount) internal pure returns (uint256) {
        return task.token == NATIVE ? amount : 0;
    }

    function fund(Task memory task) internal {
        vm.prank(requester.addr);
        escrow.fund{value: valueOf(task, task.budget)}(task);
    }

    function stake(Account memory who, address coin, uint256 amount) internal {
        vm.prank(who.addr);
        escrow.stake{value: coin == NATIVE ? amount : 0}(coin, amount);
    }

    function accept(Task memory task, Account memory who, uint32 attempt) internal returns (uint64 leaseUntil) {
        leaseUntil = uint64(block.timestamp) + MAX_DURATION;
        stake(who, task.token, task.providerStake);
        AcceptTask memory message = acceptance(task, who.addr, attempt, leaseUntil);
        escrow.accept(task, message, sign(who, message));
    }

    function prove(Task memory task, Account memory who, uint32 attempt) internal {
        ComputeProof memory message = proofBy(task, who.addr, attempt);
        escrow.prove(task, message, sign(who, message));
    }

    function dispute(Task memory task, Account memory who, uint32 attempt) internal {
        DisputeTask memory message = complaintAbout(task, who.addr, attempt);
        bytes memory signature = sign(requester, message);
        vm.prank(requester.addr);
        escrow.dispute{value: valueOf(task, task.disputeBond)}(task, message, signature);
    }

    function funded() internal returns (Task memory task) {
        task = newTask();
        fund(task);
    }

    function accepted() internal returns (Task memory task) {
        task = funded();
        accept(task, provider, 1);
    }

    function proven() internal returns (Task memory task) {
        task = accepted();
        prove(task, provider, 1);
    }

    function disputed() internal returns (Task memory task) {
        task = proven();
        dispute(task, provider, 1);
    }

    function paid() internal returns (Task memory task) {
        task = proven();
        skip(DISPUTE_WINDOW);
        escrow.settle(task);
    }

    // Checks.

    function statusOf(Task memory task) internal view returns (IZORAIComputeEscrow.Status) {
        return escrow.recordOf(id(task)).status;
    }

    function freeStake(address coin, address who) internal view returns (uint256 free) {
        (free,,) = escrow.stakeOf(coin, who);
    }

    function assertStatus(Task memory task, IZORAIComputeEscrow.Status expected) internal view {
        assertEq(uint8(statusOf(task)), uint8(expected), "status");
    }

    function assertRecord(
        Task memory task,
        address who,
        uint32 attempt,
        uint256 until,
        IZORAIComputeEscrow.Status status
    ) internal view {
        IZORAIComputeEscrow.Record memory record = escrow.recordOf(id(task));
        assertEq(record.provider, who, "provider");
        assertEq(record.attempt, attempt, "attempt");
        assertEq(record.until, until, "until");
        assertEq(uint8(record.status), uint8(status), "status");
    }

    function assertCredit(address coin, address who, uint256 expected) internal view {
        assertEq(escrow.creditOf(coin, who), expected, "credit");
    }

    function revertsWith(bytes memory reason) internal {
        vm.expectRevert(reason);
    }
}
