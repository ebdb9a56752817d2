// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice A token that does what it says.
contract GoodToken is ERC20("Good", "GOOD") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}

/// @notice Keeps one percent of what a receiver is sent.
contract FeeToken is ERC20("Fee", "FEE") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function _update(address from, address to, uint256 value) internal override {
        if (from == address(0) || to == address(0)) return super._update(from, to, value);
        super._update(from, to, value - value / 100);
        super._update(from, address(0xFEE), value / 100);
    }
}

/// @notice A token whose owner turns its tricks on when a test wants them.
contract TrickToken is ERC20("Trick", "TRICK") {
    bool public returnsFalse;
    uint256 public surcharge;
    address public blocked;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @notice What a negative rebase does.
    function shrink(address account, uint256 amount) external {
        _burn(account, amount);
    }

    function setReturnsFalse(bool on) external {
        returnsFalse = on;
    }

    /// @notice What every sender pays on top from now on.
    function setSurcharge(uint256 amount) external {
        surcharge = amount;
    }

    function setBlocked(address account) external {
        blocked = account;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        if (returnsFalse) return false;
        return super.transfer(to, value);
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        if (returnsFalse) return false;
        return super.transferFrom(from, to, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        require(to == address(0) || to != blocked, "blocked");
        super._update(from, to, value);
        if (surcharge != 0 && from != address(0) && to != address(0)) super._update(from, address(0xFEE), surcharge);
    }
}

/// @notice Returns nothing where the standard says a boolean, as some widespread tokens do.
contract SilentToken {
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @notice Calls back into a contract on every transfer, as tokens with hooks do.
contract HookToken is ERC20("Hook", "HOOK") {
    address public target;
    bytes public payload;
    bool public lastCallSucceeded;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function setHook(address target_, bytes calldata payload_) external {
        target = target_;
        payload = payload_;
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (target != address(0)) (lastCallSucceeded,) = target.call(payload);
    }
}
