// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {
    AcceptTask,
    ApproveResult,
    CancelTask,
    ComputeProof,
    DisputeTask,
    FailTask,
    Messages,
    ResolveDispute,
    Task
} from "../../src/libraries/Messages.sol";

/// @notice The library under test for messages in memory. A contract, since its functions take calldata.
contract Digests {
    function hash(Task calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }

    function hash(CancelTask calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }

    function hash(AcceptTask calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }

    function hash(FailTask calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }

    function hash(ComputeProof calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }

    function hash(ApproveResult calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }

    function hash(DisputeTask calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }

    function hash(ResolveDispute calldata message) external pure returns (bytes32) {
        return Messages.hash(message);
    }
}
