// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";

import {Deploy} from "../../script/Deploy.s.sol";
import {IPermit2} from "../../src/interfaces/IPermit2.sol";
import {ZORAIComputeEscrow} from "../../src/ZORAIComputeEscrow.sol";

/// @notice The deployment script deploys what it says, and its check tells another contract.
contract DeployTest is Test {
    Deploy private script = new Deploy();

    function test_DeploysAndVerifies() external {
        ZORAIComputeEscrow escrow = script.deploy(address(0xA11CE));
        assertEq(address(escrow.PERMIT2()), address(0xA11CE));
        assertGt(address(escrow).code.length, 0);
    }

    function test_WhenPermit2IsAnother_TheCheckReverts() external {
        ZORAIComputeEscrow escrow = new ZORAIComputeEscrow(IPermit2(address(1)));
        vm.expectRevert("Permit2");
        script.verify(escrow, address(2));
    }

    function test_WhenTheChainIsAnother_TheCheckHolds() external {
        ZORAIComputeEscrow escrow = new ZORAIComputeEscrow(IPermit2(address(1)));
        vm.chainId(5);
        script.verify(escrow, address(1));
    }
}
