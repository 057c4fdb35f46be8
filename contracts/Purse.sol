// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IChannels} from "./interfaces/IChannels.sol";
import {IPermit2} from "./interfaces/IPermit2.sol";

/// @title Purse
/// @notice The money of the channels: balances, four ways in, one way out, and sums of what is owed by reason.
abstract contract Purse is IChannels, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice where the burned part of a conviction goes: nobody has its key, and an ERC-20 need not have a burn function
    address public constant BURN = 0x000000000000000000000000000000000000dEaD;

    /// @inheritdoc IChannels
    address public immutable token;
    /// @inheritdoc IChannels
    address public immutable permit2;

    /// Sums of what this contract owes, by reason; together they are its token balance. A balance and what is committed change
    /// together, so they share a slot.
    struct Totals {
        uint128 balances;
        uint128 committed;
        uint128 fees;
        uint128 rewards;
    }

    Totals internal _totals;
    mapping(address account => uint256) private _balances;

    constructor(address token_, address permit2_) {
        token = token_;
        permit2 = permit2_;
    }

    // ------------------------------------------------------------------------------------------------------- in

    /// @inheritdoc IChannels
    function deposit(uint128 amount) external nonReentrant {
        _deposit(msg.sender, amount);
    }

    /// @inheritdoc IChannels
    function depositWithPermit(uint128 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external nonReentrant {
        // Anybody can send the permit before this call: what counts is the allowance. Not to be entered again (nonReentrant).
        // slither-disable-next-line reentrancy-benign
        try IERC20Permit(token).permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
        _deposit(msg.sender, amount);
    }

    /// @inheritdoc IChannels
    function depositWithAuthorization(
        address from,
        uint128 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external nonReentrant {
        uint256 before = _beforeDeposit(from, amount);
        IERC3009(token).receiveWithAuthorization(from, address(this), amount, validAfter, validBefore, nonce, v, r, s);
        _received(before, amount);
    }

    /// @inheritdoc IChannels
    function depositWithPermit2(
        address owner,
        uint128 amount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata signature
    ) external nonReentrant {
        if (permit2 == address(0)) revert NoPermit2();
        uint256 before = _beforeDeposit(owner, amount);
        IPermit2(permit2)
            .permitTransferFrom(
                IPermit2.PermitTransferFrom(IPermit2.TokenPermissions(token, amount), nonce, deadline),
                IPermit2.SignatureTransferDetails(address(this), amount),
                owner,
                signature
            );
        _received(before, amount);
    }

    function _deposit(address from, uint128 amount) private {
        uint256 before = _beforeDeposit(from, amount);
        // Both callers pass msg.sender.
        // slither-disable-next-line arbitrary-send-erc20
        IERC20(token).safeTransferFrom(from, address(this), amount);
        _received(before, amount);
    }

    function _beforeDeposit(address account, uint128 amount) private returns (uint256) {
        if (amount == 0) revert ZeroAmount();
        _balances[account] += amount;
        _totals.balances += amount;
        emit Deposited(account, amount);
        return _held();
    }

    function _received(uint256 before, uint256 amount) private view {
        uint256 received = _held() - before;
        if (received != amount) revert TransferMismatch(received, amount);
    }

    function _held() private view returns (uint256) {
        return IERC20(token).balanceOf(address(this));
    }

    /// Takes a fee from an allowance.
    function _pullFee(address payer, uint128 amount) internal {
        _totals.fees += amount;
        uint256 before = _held();
        // The caller, or who has called the trials: nobody pays another's fee.
        // slither-disable-next-line arbitrary-send-erc20
        IERC20(token).safeTransferFrom(payer, address(this), amount);
        _received(before, amount);
    }

    // ------------------------------------------------------------------------------------------------------ out

    /// @inheritdoc IChannels
    function withdraw() external nonReentrant returns (uint256 amount) {
        amount = _balances[msg.sender];
        if (amount == 0) revert NothingToWithdraw(msg.sender);
        _balances[msg.sender] = 0;
        // Each balance is a part of the sum.
        _totals.balances -= uint128(amount);
        emit Withdrawn(msg.sender, amount);
        IERC20(token).safeTransfer(msg.sender, amount);
    }

    function _burn(uint256 amount) internal {
        if (amount != 0) IERC20(token).safeTransfer(BURN, amount);
    }

    // --------------------------------------------------------------------------------------------------- within

    /// From an account's balance into a channel.
    function _commit(address account, uint128 amount) internal {
        uint256 balance = _balances[account];
        if (balance < amount) revert InsufficientBalance(account, balance, amount);
        _balances[account] = balance - amount;
        _totals.balances -= amount;
        _totals.committed += amount;
    }

    /// From a channel or a batch to an account's balance.
    function _uncommit(address account, uint128 amount) internal {
        _totals.committed -= amount;
        _credit(account, amount);
    }

    /// Fees that are now somebody's.
    function _endFee(address account, uint128 amount) internal {
        _totals.fees -= amount;
        _credit(account, amount);
    }

    /// What has come in, or was held by another name.
    function _credit(address account, uint128 amount) internal {
        if (amount == 0) return;
        _balances[account] += amount;
        _totals.balances += amount;
        emit Credited(account, amount);
    }

    // ---------------------------------------------------------------------------------------------------- views

    /// @inheritdoc IChannels
    function balanceOf(address account) external view returns (uint256) {
        return _balances[account];
    }

    /// @inheritdoc IChannels
    function totalBalances() external view returns (uint256) {
        return _totals.balances;
    }

    /// @inheritdoc IChannels
    function totalCommitted() external view returns (uint256) {
        return _totals.committed;
    }

    /// @inheritdoc IChannels
    function totalFees() external view returns (uint256) {
        return _totals.fees;
    }

    /// @inheritdoc IChannels
    function totalRewards() external view returns (uint256) {
        return _totals.rewards;
    }
}
