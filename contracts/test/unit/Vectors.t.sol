// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {stdJson} from "forge-std/StdJson.sol";

import {
    AcceptTask,
    ApproveResult,
    CancelTask,
    ComputeProof,
    DisputeTask,
    FailTask,
    Messages,
    ResolveDispute,
    Task,
    TaskConfig
} from "../../src/libraries/Messages.sol";
import {ZORAIComputeEscrow} from "../../src/ZORAIComputeEscrow.sol";
import {EscrowTest} from "../utils/EscrowTest.sol";

/// @notice The hashes of this contract against the project's shared vectors, which an independent implementation made: type
/// strings, struct hashes, domain separators, digests and signers.
contract VectorsTest is EscrowTest {
    using stdJson for string;

    /// @dev A vector's place in the file's text.
    struct V {
        string json;
        uint256 i;
    }

    string private constant FILE = "../vectors/eip712.json";
    uint256 private count;
    mapping(string => uint256) private seen;

    function setUp() public override {
        super.setUp();
        string memory json = vm.readFile(FILE);
        while (json.keyExists(string.concat(".vectors[", vm.toString(count), "]"))) ++count;
        assertGt(count, 0);
    }

    function test_Typehashes() external {
        string[8] memory types = [
            "Task",
            "CancelTask",
            "AcceptTask",
            "FailTask",
            "ComputeProof",
            "ApproveResult",
            "DisputeTask",
            "ResolveDispute"
        ];
        bytes32[8] memory hashes = [
            Messages.TASK_TYPEHASH,
            Messages.CANCEL_TASK_TYPEHASH,
            Messages.ACCEPT_TASK_TYPEHASH,
            Messages.FAIL_TASK_TYPEHASH,
            Messages.COMPUTE_PROOF_TYPEHASH,
            Messages.APPROVE_RESULT_TYPEHASH,
            Messages.DISPUTE_TASK_TYPEHASH,
            Messages.RESOLVE_DISPUTE_TYPEHASH
        ];
        V memory v = V(vm.readFile(FILE), 0);
        for (uint256 i = 0; i < count; ++i) {
            v.i = i;
            string memory name = text(v, ".type");
            for (uint256 k = 0; k < types.length; ++k) {
                if (!same(name, types[k])) continue;
                assertEq(keccak256(bytes(text(v, ".type_string"))), hashes[k], name);
                ++seen[name];
            }
        }
        for (uint256 k = 0; k < types.length; ++k) {
            assertGt(seen[types[k]], 0, types[k]);
        }
    }

    function test_StructHashesDigestsAndSigners() external view {
        uint256 checked;
        for (uint256 i = 0; i < count; ++i) {
            if (this.checkMessage(i)) ++checked;
        }
        assertGe(checked, 8 * 6);
    }

    /// @dev The contract itself, at the address and on the chain that the vectors were made for.
    function test_TaskIdsOfTheContract() external {
        uint256 checked;
        for (uint256 i = 0; i < count; ++i) {
            if (this.checkTaskId(i)) ++checked;
        }
        assertGt(checked, 0);
    }

    /// @dev A call of its own, so that its memory is given back.
    function checkMessage(uint256 i) external view returns (bool) {
        V memory v = V(vm.readFile(FILE), i);
        bytes32 structHash = structHashOf(v);
        if (structHash == 0) return false;
        string memory name = text(v, ".id");
        assertEq(structHash, v.json.readBytes32(at(v, ".struct_hash")), name);
        bytes32 separator = domainSeparator(
            v.json.readAddress(at(v, ".domain.verifying_contract")), v.json.readUint(at(v, ".domain.chain_id"))
        );
        assertEq(separator, v.json.readBytes32(at(v, ".domain_separator")), name);
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", separator, structHash));
        assertEq(digest, v.json.readBytes32(at(v, ".digest")), name);
        address signer = ECDSA.recover(digest, v.json.readBytes(at(v, ".signature")));
        assertEq(signer, v.json.readAddress(at(v, ".signer")), name);
        return true;
    }

    function checkTaskId(uint256 i) external returns (bool) {
        V memory v = V(vm.readFile(FILE), i);
        address where = v.json.readAddress(at(v, ".domain.verifying_contract"));
        if (!same(text(v, ".type"), "Task") || where == address(0)) return false;
        vm.chainId(v.json.readUint(at(v, ".domain.chain_id")));
        deployCodeTo("ZORAIComputeEscrow.sol:ZORAIComputeEscrow", abi.encode(permit2), where);
        bytes32 taskId = ZORAIComputeEscrow(where).taskIdOf(taskAt(v));
        assertEq(taskId, v.json.readBytes32(at(v, ".digest")), text(v, ".id"));
        return true;
    }

    function structHashOf(V memory v) private view returns (bytes32) {
        string memory name = text(v, ".type");
        if (same(name, "Task")) return digests.hash(taskAt(v));
        if (same(name, "CancelTask")) return digests.hash(CancelTask(taskId(v), time(v, "issued_at")));
        if (same(name, "AcceptTask")) {
            return digests.hash(AcceptTask(taskId(v), providerAt(v), attemptAt(v), time(v, "lease_until")));
        }
        if (same(name, "FailTask")) {
            return digests.hash(
                FailTask(
                    taskId(v),
                    providerAt(v),
                    attemptAt(v),
                    hashed(v, "code"),
                    hashed(v, "message"),
                    time(v, "issued_at")
                )
            );
        }
        if (same(name, "ComputeProof")) return digests.hash(proofAt(v));
        if (same(name, "ApproveResult")) {
            return digests.hash(
                ApproveResult(taskId(v), providerAt(v), attemptAt(v), content(v, "result_hash"), time(v, "issued_at"))
            );
        }
        if (same(name, "DisputeTask")) {
            return digests.hash(
                DisputeTask(
                    taskId(v),
                    providerAt(v),
                    attemptAt(v),
                    content(v, "result_hash"),
                    hashed(v, "reason"),
                    hashed(v, "evidence"),
                    time(v, "issued_at")
                )
            );
        }
        if (same(name, "ResolveDispute")) {
            return digests.hash(
                ResolveDispute(taskId(v), attemptAt(v), uint32(number(v, "provider_bps")), time(v, "issued_at"))
            );
        }
        return 0;
    }

    function taskAt(V memory v) private view returns (Task memory task) {
        task.requester = v.json.readAddress(field(v, "requester"));
        task.modelCidHash = hashed(v, "model_cid");
        task.modelHash = content(v, "model_hash");
        task.inputCidHash = hashed(v, "input_cid");
        task.inputHash = content(v, "input_hash");
        task.config = TaskConfig({
            runtimeHash: hashed(v, "config.runtime"),
            paramsHash: hashed(v, "config.params"),
            gpuTypeHash: hashed(v, "config.gpu_type"),
            gpuCount: uint32(number(v, "config.gpu_count")),
            minVram: uint64(number(v, "config.min_vram")),
            maxDuration: uint64(number(v, "config.max_duration")),
            maxAttempts: uint32(number(v, "config.max_attempts"))
        });
        task.token = v.json.readAddress(field(v, "token"));
        task.budget = vm.parseUint(v.json.readString(field(v, "budget")));
        task.providerStake = vm.parseUint(v.json.readString(field(v, "provider_stake")));
        task.disputeBond = vm.parseUint(v.json.readString(field(v, "dispute_bond")));
        task.deadline = time(v, "deadline");
        task.disputeWindow = uint64(number(v, "dispute_window"));
        task.arbiterWindow = uint64(number(v, "arbiter_window"));
        task.arbiter = v.json.readAddress(field(v, "arbiter"));
        task.salt = v.json.readBytes32(field(v, "salt"));
    }

    function proofAt(V memory v) private view returns (ComputeProof memory) {
        return ComputeProof({
            taskId: taskId(v),
            provider: providerAt(v),
            attempt: attemptAt(v),
            modelHash: content(v, "model_hash"),
            inputHash: content(v, "input_hash"),
            resultHash: content(v, "result_hash"),
            resultCidHash: hashed(v, "result_cid"),
            startedAt: time(v, "started_at"),
            finishedAt: time(v, "finished_at"),
            gpuNameHash: hashed(v, "gpu_name")
        });
    }

    function at(V memory v, string memory path) private pure returns (string memory) {
        return string.concat(".vectors[", vm.toString(v.i), "]", path);
    }

    function field(V memory v, string memory name) private pure returns (string memory) {
        return at(v, string.concat(".message.", name));
    }

    function text(V memory v, string memory path) private view returns (string memory) {
        return v.json.readString(at(v, path));
    }

    function taskId(V memory v) private view returns (bytes32) {
        return v.json.readBytes32(field(v, "task_id"));
    }

    function providerAt(V memory v) private view returns (address) {
        return v.json.readAddress(field(v, "provider"));
    }

    function attemptAt(V memory v) private view returns (uint32) {
        return uint32(number(v, "attempt"));
    }

    function number(V memory v, string memory name) private view returns (uint256) {
        return v.json.readUint(field(v, name));
    }

    function hashed(V memory v, string memory name) private view returns (bytes32) {
        return keccak256(bytes(v.json.readString(field(v, name))));
    }

    /// @dev SHA-256 hashes stand in JSON without 0x.
    function content(V memory v, string memory name) private view returns (bytes32) {
        return vm.parseBytes32(string.concat("0x", v.json.readString(field(v, name))));
    }

    /// @dev A time as JSON has it, 2026-11-23T12:34:56Z, in unix seconds. Days by the civil calendar's rule of 400-year eras.
    function time(V memory v, string memory name) private view returns (uint64) {
        bytes memory t = bytes(v.json.readString(field(v, name)));
        assertEq(t.length, 20, "RFC 3339 in UTC");
        (uint256 year, uint256 month, uint256 day) = (digitsOf(t, 0, 4), digitsOf(t, 5, 2), digitsOf(t, 8, 2));
        // The year begins in March, so that a leap day is its last.
        if (month < 3) --year;
        uint256 dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
        uint256 era = year / 400;
        uint256 yearOfEra = year % 400;
        uint256 dayNumber = era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468;
        return
            uint64(
                dayNumber * 1 days + digitsOf(t, 11, 2) * 1 hours + digitsOf(t, 14, 2) * 1 minutes + digitsOf(t, 17, 2)
            );
    }

    function digitsOf(bytes memory t, uint256 from, uint256 length) private pure returns (uint256 value) {
        for (uint256 i = from; i < from + length; ++i) {
            value = value * 10 + uint8(t[i]) - 48;
        }
    }

    function same(string memory a, string memory b) private pure returns (bool) {
        return keccak256(bytes(a)) == keccak256(bytes(b));
    }
}
