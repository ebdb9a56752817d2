// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Script} from "forge-std/Script.sol";
import {console} from "forge-std/console.sol";

import {IPermit2} from "../src/interfaces/IPermit2.sol";
import {ZORAIComputeEscrow} from "../src/ZORAIComputeEscrow.sol";

/// @notice Deploys the escrow and checks what it deployed. The environment's PERMIT2 replaces Permit2's canonical address.
contract Deploy is Script {
    /// @notice Where Uniswap's Permit2 stands on the chains that have it.
    address public constant CANONICAL_PERMIT2 = 0x000000000022D473030F116dDEE9F6B43aC78BA3;

    function run() external returns (ZORAIComputeEscrow escrow) {
        return deploy(vm.envOr("PERMIT2", CANONICAL_PERMIT2));
    }

    /// @notice Deploys with this Permit2, from the key that forge was given.
    function deploy(address permit2) public returns (ZORAIComputeEscrow escrow) {
        vm.startBroadcast();
        escrow = new ZORAIComputeEscrow(IPermit2(permit2));
        vm.stopBroadcast();
        verify(escrow, permit2);
        console.log("ZORAIComputeEscrow", address(escrow));
        console.log("chain", block.chainid);
        console.log("Permit2", permit2);
        if (permit2.code.length == 0) {
            console.log("There is no Permit2 on this chain: fundWithPermit2 reverts until one stands at that address.");
        }
    }

    /// @notice Reverts unless the contract's domain, limits and Permit2 are what every signer relies on.
    function verify(ZORAIComputeEscrow escrow, address permit2) public view {
        (, string memory name, string memory version, uint256 chainId, address where,,) = escrow.eip712Domain();
        require(keccak256(bytes(name)) == keccak256("ZORAI Compute Market"), "name");
        require(keccak256(bytes(version)) == keccak256("1"), "version");
        require(chainId == block.chainid && where == address(escrow), "domain");
        require(address(escrow.PERMIT2()) == permit2, "Permit2");
        require(escrow.MAX_DEADLINE() == 90 days && escrow.MAX_WINDOW() == 30 days, "limits");
        require(escrow.MIN_LEASE() == 5 minutes && escrow.LEASE_MARGIN() == 10 minutes, "leases");
        require(escrow.UNSTAKE_DELAY() == 1 days, "delay");
    }
}
