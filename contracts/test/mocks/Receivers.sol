// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IZORAIComputeEscrow} from "../../src/interfaces/IZORAIComputeEscrow.sol";

/// @notice Takes no native coin. It can stake and withdraw to others.
contract RefusingAccount {
    function withdraw(IZORAIComputeEscrow escrow, address token, address to) external returns (uint256) {
        return escrow.withdraw(token, to);
    }
}

/// @notice Tries to be paid a second time from within its first payment.
contract ReentrantAccount {
    IZORAIComputeEscrow private immutable ESCROW;
    bool public attempted;
    bool public succeeded;

    constructor(IZORAIComputeEscrow escrow) {
        ESCROW = escrow;
    }

    function stake(uint256 amount) external payable {
        ESCROW.stake{value: amount}(address(0), amount);
    }

    function unstake(uint256 amount) external {
        ESCROW.unstake(address(0), amount);
    }

    function withdraw() external returns (uint256) {
        return ESCROW.withdraw(address(0), address(this));
    }

    receive() external payable {
        attempted = true;
        (succeeded,) = address(ESCROW).call(abi.encodeCall(IZORAIComputeEscrow.withdraw, (address(0), address(this))));
        if (!succeeded) {
            (succeeded,) = address(ESCROW).call{value: 1}(abi.encodeCall(IZORAIComputeEscrow.stake, (address(0), 1)));
        }
    }
}
