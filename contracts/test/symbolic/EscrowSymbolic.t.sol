// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";

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
    Task
} from "../../src/libraries/Messages.sol";
import {ZORAIComputeEscrow} from "../../src/ZORAIComputeEscrow.sol";

/// @notice Proofs by halmos over all values of a bounded model: one task in the native coin with any terms, in any state, and one
/// call with any message and signature. Two things hold of every call that succeeds.
///
/// (a) If the balance was what is owed, it is so afterwards.
/// (d) The task had no outcome yet.
///
/// The accounts are empty before the call, but for the free stake that an acceptance locks. Amounts are below 2^120, so that
/// their sums are far from overflow, as sums of what exists are. Division is hard on the solver: a timeout is proved for amounts
/// below 2^64, and a verdict for one odd share of odd amounts; the fuzz tests divide the rest.
contract EscrowSymbolic is Test {
    /// @dev The contract's storage, as `forge inspect ZORAIComputeEscrow storageLayout` shows it.
    uint256 private constant STAKES_SLOT = 2;
    uint256 private constant RECORDS_SLOT = 5;
    uint256 private constant RESULTS_SLOT = 6;
    address private constant DEAD = 0x000000000000000000000000000000000000dEaD;

    ZORAIComputeEscrow private escrow;

    struct Signature {
        bytes32 r;
        bytes32 s;
        uint8 v;
    }

    function setUp() public {
        escrow = new ZORAIComputeEscrow(IPermit2(address(0)));
    }

    function check_Fund(Task memory task, IZORAIComputeEscrow.Record memory record) public {
        bring(task, record);
        vm.deal(address(this), task.budget);
        after_(task, record, task.budget, abi.encodeCall(escrow.fund, (task)));
    }

    function check_Accept(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        AcceptTask memory message,
        Signature memory signature
    ) public {
        bring(task, record);
        vm.store(
            address(escrow),
            keccak256(abi.encode(message.provider, keccak256(abi.encode(address(0), STAKES_SLOT)))),
            bytes32(task.providerStake)
        );
        vm.deal(address(escrow), address(escrow).balance + task.providerStake);
        after_(task, record, 0, abi.encodeCall(escrow.accept, (task, message, pack(signature))));
    }

    function check_Fail(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        FailTask memory message,
        Signature memory signature
    ) public {
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.fail, (task, message, pack(signature))));
    }

    function check_Prove(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        ComputeProof memory message,
        Signature memory signature
    ) public {
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.prove, (task, message, pack(signature))));
    }

    function check_Approve(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        ApproveResult memory message,
        Signature memory signature
    ) public {
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.approve, (task, message, pack(signature))));
    }

    function check_AcceptAndProve(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        ComputeProof memory proof,
        Signature memory proofSignature,
        ApproveResult memory approval,
        Signature memory approvalSignature
    ) public {
        bring(task, record);
        bytes memory data = abi.encodeCall(
            escrow.acceptAndProve, (task, proof, pack(proofSignature), approval, pack(approvalSignature))
        );
        after_(task, record, 0, data);
    }

    function check_Settle(Task memory task, IZORAIComputeEscrow.Record memory record) public {
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.settle, (task)));
    }

    function check_Dispute(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        DisputeTask memory message,
        Signature memory signature
    ) public {
        bring(task, record);
        vm.deal(address(this), task.disputeBond);
        after_(task, record, task.disputeBond, abi.encodeCall(escrow.dispute, (task, message, pack(signature))));
    }

    /// @dev With amounts and a share that leave a remainder.
    function check_Resolve(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        ResolveDispute memory message,
        Signature memory signature
    ) public {
        (task.budget, task.providerStake, task.disputeBond) = (1_000_003, 500_009, 600_011);
        message.providerBps = 3_333;
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.resolve, (task, message, pack(signature))));
    }

    function check_Timeout(Task memory task, IZORAIComputeEscrow.Record memory record) public {
        vm.assume(task.budget < 2 ** 64 && task.providerStake < 2 ** 64 && task.disputeBond < 2 ** 64);
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.timeout, (task)));
    }

    function check_Refund(Task memory task, IZORAIComputeEscrow.Record memory record) public {
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.refund, (task)));
    }

    function check_Cancel(
        Task memory task,
        IZORAIComputeEscrow.Record memory record,
        CancelTask memory message,
        Signature memory signature
    ) public {
        bring(task, record);
        after_(task, record, 0, abi.encodeCall(escrow.cancel, (task, message, pack(signature))));
    }

    /// @dev Puts the task into a state, with the balance that is owed in it.
    function bring(Task memory task, IZORAIComputeEscrow.Record memory record) private {
        vm.assume(task.token == address(0));
        vm.assume(task.budget < 2 ** 120 && task.providerStake < 2 ** 120 && task.disputeBond < 2 ** 120);
        uint256 word = uint256(uint160(record.provider)) | uint256(record.attempt) << 160 | uint256(record.until) << 192
            | uint256(record.status) << 240;
        vm.store(address(escrow), keccak256(abi.encode(escrow.taskIdOf(task), RECORDS_SLOT)), bytes32(word));
        vm.deal(address(escrow), owedFor(task, record.status));
    }

    /// @dev Calls, and checks (a) and (d) if the call succeeds.
    function after_(Task memory task, IZORAIComputeEscrow.Record memory before, uint256 value, bytes memory data)
        private
    {
        (bool done,) = address(escrow).call{value: value}(data);
        vm.assume(done);
        assert(uint8(before.status) < uint8(IZORAIComputeEscrow.Status.Paid));

        IZORAIComputeEscrow.Record memory record = escrow.recordOf(escrow.taskIdOf(task));
        (uint256 owed,,) = escrow.stakeOf(address(0), record.provider);
        owed += owedFor(task, record.status) + escrow.creditOf(address(0), record.provider);
        if (task.requester != record.provider) owed += escrow.creditOf(address(0), task.requester);
        if (task.requester != DEAD && record.provider != DEAD) owed += escrow.creditOf(address(0), DEAD);
        assert(address(escrow).balance == owed);
    }

    function owedFor(Task memory task, IZORAIComputeEscrow.Status status) private pure returns (uint256) {
        if (status == IZORAIComputeEscrow.Status.Funded) return task.budget;
        if (status == IZORAIComputeEscrow.Status.Accepted || status == IZORAIComputeEscrow.Status.Proven) {
            return task.budget + task.providerStake;
        }
        if (status == IZORAIComputeEscrow.Status.Disputed) {
            return task.budget + task.providerStake + task.disputeBond;
        }
        return 0;
    }

    function pack(Signature memory signature) private pure returns (bytes memory) {
        return abi.encodePacked(signature.r, signature.s, signature.v);
    }
}
