// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IPermit2} from "../interfaces/IPermit2.sol";
import {IZORAIComputeEscrow} from "../interfaces/IZORAIComputeEscrow.sol";
import {Messages} from "../libraries/Messages.sol";

/// @title Accounts
/// @notice Who owns what of the money that lies here, and the only doors through which money comes and goes.
abstract contract Accounts is IZORAIComputeEscrow, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @inheritdoc IZORAIComputeEscrow
    uint64 public constant UNSTAKE_DELAY = 1 days;
    /// @dev The token that stands for the native coin.
    address internal constant NATIVE = address(0);
    /// @dev Whose account burned money is; nobody has its key.
    address internal constant DEAD = 0x000000000000000000000000000000000000dEaD;

    /// @inheritdoc IZORAIComputeEscrow
    IPermit2 public immutable PERMIT2;

    /// @dev A provider's stake that no task holds.
    struct Stake {
        uint256 free;
        uint208 leaving;
        uint48 leavesAt;
    }

    mapping(address token => uint256) private _held;
    mapping(address token => mapping(address account => uint256)) private _credits;
    mapping(address token => mapping(address provider => Stake)) private _stakes;

    constructor(IPermit2 permit2) {
        PERMIT2 = permit2;
    }

    /// @inheritdoc IZORAIComputeEscrow
    function stake(address token, uint256 amount) external payable nonReentrant {
        // Effects.
        _stakes[token][msg.sender].free += amount;
        emit Staked(msg.sender, token, amount);
        // Interactions.
        _pull(token, amount);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function unstake(address token, uint256 amount) external {
        // Checks.
        Stake storage account = _stakes[token][msg.sender];
        if (amount > account.free) revert StakeTooSmall(msg.sender, account.free, amount);
        // Effects.
        uint48 leavesAt = uint48(block.timestamp + UNSTAKE_DELAY);
        account.leaving = SafeCast.toUint208(amount);
        account.leavesAt = leavesAt;
        emit UnstakeAnnounced(msg.sender, token, amount, leavesAt);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function withdraw(address token, address to) external nonReentrant returns (uint256 amount) {
        // Checks.
        if (to == address(0)) revert ZeroReceiver();
        return _payOut(token, msg.sender, to);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function burn(address token) external nonReentrant returns (uint256 amount) {
        return _payOut(token, DEAD, DEAD);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function creditOf(address token, address account) external view returns (uint256) {
        return _credits[token][account];
    }

    /// @inheritdoc IZORAIComputeEscrow
    function stakeOf(address token, address provider)
        external
        view
        returns (uint256 free, uint256 leaving, uint64 leavesAt)
    {
        Stake storage account = _stakes[token][provider];
        return (account.free, account.leaving, account.leavesAt);
    }

    /// @inheritdoc IZORAIComputeEscrow
    function heldOf(address token) external view returns (uint256) {
        return _held[token];
    }

    /// @dev Gives an account money that lies here already.
    function _credit(address token, address account, uint256 amount) internal {
        if (amount != 0) _credits[token][account] += amount;
    }

    /// @dev Takes from a provider's free stake for a task.
    function _lockStake(address token, address provider, uint256 amount) internal {
        if (amount == 0) return;
        Stake storage account = _stakes[token][provider];
        uint256 free = account.free;
        if (free < amount) revert StakeTooSmall(provider, free, amount);
        account.free = free - amount;
    }

    /// @dev Gives a provider its stake back, to be locked again.
    function _freeStake(address token, address provider, uint256 amount) internal {
        if (amount != 0) _stakes[token][provider].free += amount;
    }

    /// @dev Takes money in from the caller. An interaction: nothing may follow it.
    // slither-disable-next-line msg-value-in-nonpayable
    function _pull(address token, uint256 amount) internal {
        uint256 value = token == NATIVE ? amount : 0;
        if (msg.value != value) revert WrongValue(value, msg.value);
        if (token != NATIVE) _pullToken(token, amount);
    }

    /// @dev Takes tokens in by the payer's signature at Permit2. An interaction: nothing may follow it.
    function _pullByPermit(bytes32 taskId, address token, uint256 amount, PermitFunding calldata permit)
        internal
        comesIn(token, amount)
    {
        PERMIT2.permitWitnessTransferFrom(
            IPermit2.PermitTransferFrom(IPermit2.TokenPermissions(token, amount), permit.nonce, permit.deadline),
            IPermit2.SignatureTransferDetails(address(this), amount),
            permit.payer,
            keccak256(abi.encode(Messages.FUND_TASK_TYPEHASH, taskId)),
            Messages.FUND_TASK_WITNESS,
            permit.signature
        );
    }

    function _pullToken(address token, uint256 amount) private comesIn(token, amount) {
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @dev Around a transfer in: the token must have left alone what is held, and bring exactly the amount. The sum of all that is
    /// owed in a token fits a word, so that no sum of parts of it can overflow.
    modifier comesIn(address token, uint256 amount) {
        uint256 held = _held[token];
        uint256 balance = IERC20(token).balanceOf(address(this));
        if (balance < held) revert TokenShrank(token, held, balance);
        _held[token] = held + amount;
        _;
        if (IERC20(token).balanceOf(address(this)) != balance + amount) revert InexactTransfer(token, amount);
    }

    function _payOut(address token, address account, address to) private returns (uint256 amount) {
        // Effects.
        amount = _takeCredit(token, account) + _takeLeaving(token, account);
        if (amount == 0) revert NothingToWithdraw(account, token);
        emit Withdrawn(account, token, to, amount);
        // Interactions.
        if (token == NATIVE) {
            Address.sendValue(payable(to), amount);
        } else {
            _pushToken(token, to, amount);
        }
    }

    function _takeCredit(address token, address account) private returns (uint256 amount) {
        amount = _credits[token][account];
        if (amount != 0) _credits[token][account] = 0;
    }

    function _takeLeaving(address token, address provider) private returns (uint256 amount) {
        Stake storage account = _stakes[token][provider];
        if (account.leaving == 0 || block.timestamp < account.leavesAt) return 0;
        // Tasks may have locked some of it meanwhile.
        amount = Math.min(account.leaving, account.free);
        account.free -= amount;
        account.leaving = 0;
    }

    /// @dev What leaves must cost the others nothing: a token that takes more than the amount cannot leave.
    function _pushToken(address token, address to, uint256 amount) private {
        uint256 balance = IERC20(token).balanceOf(address(this));
        _held[token] -= amount;
        IERC20(token).safeTransfer(to, amount);
        if (IERC20(token).balanceOf(address(this)) != balance - amount) revert InexactTransfer(token, amount);
    }
}
