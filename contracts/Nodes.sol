// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IModels} from "./interfaces/IModels.sol";
import {INodes} from "./interfaces/INodes.sol";

/// @title Nodes
/// @notice See INodes.
contract Nodes is INodes, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @inheritdoc INodes
    address public immutable token;
    /// @inheritdoc INodes
    address public immutable models;
    /// @inheritdoc INodes
    address public immutable market;
    /// @inheritdoc INodes
    address public immutable channels;
    /// @inheritdoc INodes
    uint64 public immutable UNSTAKE_DELAY;

    mapping(address who => Node) private _nodes;
    mapping(address who => mapping(bytes32 modelId => Ask)) private _asks;
    /// The last second of each key that has ever been authorised, never zero.
    mapping(address who => mapping(address key => uint40)) private _sessionKeys;

    /// @dev The challenges contract, deployed last, checks that the delay is long enough.
    constructor(address token_, address models_, address market_, address channels_, uint64 unstakeDelay) {
        token = token_;
        models = models_;
        market = market_;
        channels = channels_;
        UNSTAKE_DELAY = unstakeDelay;
    }

    modifier onlyMarket() {
        if (msg.sender != market) revert NotMarket(msg.sender, market);
        _;
    }

    modifier onlyChannels() {
        if (msg.sender != channels) revert NotChannels(msg.sender, channels);
        _;
    }

    // ---------------------------------------------------------------------------------------------------- offer

    /// @inheritdoc INodes
    function configure(string calldata endpoint, uint32 capacity) external {
        Node storage n = _nodes[msg.sender];
        n.endpoint = endpoint;
        n.capacity = capacity;
        emit NodeUpdated(msg.sender, endpoint, capacity);
    }

    /// @inheritdoc INodes
    function setAsk(bytes32 modelId, uint128 perInputToken, uint128 perOutputToken, uint32 maxTokens) external {
        if (!IModels(models).exists(modelId)) revert IModels.UnknownModel(modelId);
        _asks[msg.sender][modelId] = Ask(perInputToken, perOutputToken, maxTokens);
        emit AskSet(msg.sender, modelId, perInputToken, perOutputToken, maxTokens);
    }

    /// @inheritdoc INodes
    function setSessionKey(address key, uint40 validUntil) external {
        if (key == address(0) || validUntil < block.timestamp) {
            revert BadSessionKey(key, block.timestamp, validUntil);
        }
        _sessionKeys[msg.sender][key] = validUntil;
        emit SessionKeySet(msg.sender, key, validUntil);
    }

    /// @inheritdoc INodes
    function revokeSessionKey(address key) external {
        if (_sessionKeys[msg.sender][key] < block.timestamp) revert NoSessionKey(msg.sender, key);
        _sessionKeys[msg.sender][key] = uint40(block.timestamp) - 1;
        emit SessionKeyRevoked(msg.sender, key);
    }

    // ---------------------------------------------------------------------------------------------------- stake

    /// @inheritdoc INodes
    function deposit(uint128 amount) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        _nodes[msg.sender].stake += amount;
        emit StakeDeposited(msg.sender, amount);

        IERC20 t = IERC20(token);
        uint256 before = t.balanceOf(address(this));
        t.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = t.balanceOf(address(this)) - before;
        if (received != amount) revert TransferMismatch(received, amount);
    }

    /// @inheritdoc INodes
    function requestUnstake(uint128 amount) external {
        if (amount == 0) revert ZeroAmount();
        _needFree(msg.sender, amount);
        Node storage n = _nodes[msg.sender];
        n.unbonding += amount;
        n.unbondingAt = uint64(block.timestamp) + UNSTAKE_DELAY;
        emit UnstakeRequested(msg.sender, amount, n.unbondingAt);
    }

    /// @inheritdoc INodes
    function withdrawStake() external nonReentrant {
        Node storage n = _nodes[msg.sender];
        uint128 amount = n.unbonding;
        if (amount == 0) revert NothingUnbonding(msg.sender);
        if (block.timestamp < n.unbondingAt) revert StillUnbonding(block.timestamp, n.unbondingAt);
        n.unbonding = 0;
        n.stake -= amount;
        emit StakeWithdrawn(msg.sender, amount);
        IERC20(token).safeTransfer(msg.sender, amount);
    }

    // --------------------------------------------------------------------------------------------------- market

    /// @inheritdoc INodes
    function lockBond(address who, uint128 amount) external onlyMarket {
        Node storage n = _notConvicted(who);
        if (n.active >= n.capacity) revert AtCapacity(who, n.active, n.capacity);
        _needFree(who, amount);
        n.locked += amount;
        ++n.active;
        emit BondLocked(who, amount);
    }

    /// @inheritdoc INodes
    function releaseBond(address who, uint128 amount, bool served) external onlyMarket {
        Node storage n = _unlock(who, amount);
        if (served) ++n.served;
        emit BondReleased(who, amount);
    }

    /// @inheritdoc INodes
    function takeBond(address who, uint128 amount, uint128 taken, bool slash) external onlyMarket nonReentrant {
        if (taken > amount) revert BondMismatch(who, amount, taken);
        Node storage n = _unlock(who, amount);
        n.stake -= taken;
        if (slash) ++n.slashed;
        else ++n.timedOut;
        if (taken != amount) emit BondReleased(who, amount - taken);
        emit BondTaken(who, taken, slash);
        IERC20(token).safeTransfer(market, taken);
    }

    function _unlock(address who, uint128 amount) private returns (Node storage n) {
        n = _nodes[who];
        if (n.locked < amount) revert BondMismatch(who, n.locked, amount);
        n.locked -= amount;
        --n.active;
    }

    // -------------------------------------------------------------------------------------------------- channels

    /// @inheritdoc INodes
    function pledge(address who, uint128 amount) external onlyChannels {
        Node storage n = _notConvicted(who);
        _needFree(who, amount);
        n.pledged += amount;
        emit Pledged(who, amount);
    }

    /// @inheritdoc INodes
    function endPledge(address who, uint128 amount, uint128 taken) external onlyChannels nonReentrant {
        Node storage n = _notConvicted(who);
        if (taken > amount) revert BondMismatch(who, amount, taken);
        if (n.pledged < amount) revert BondMismatch(who, n.pledged, amount);
        n.pledged -= amount;
        emit PledgeEnded(who, amount - taken, taken);
        if (taken == 0) return;
        n.stake -= taken;
        ++n.slashed;
        IERC20(token).safeTransfer(channels, taken);
    }

    /// @inheritdoc INodes
    function convict(address who) external onlyChannels nonReentrant returns (uint128 taken) {
        Node storage n = _nodes[who];
        if (n.convicted) return 0;
        taken = n.stake - n.locked;
        n.convicted = true;
        n.stake = n.locked;
        n.pledged = 0;
        n.unbonding = 0;
        emit Convicted(who, taken);
        IERC20(token).safeTransfer(channels, taken);
    }

    // --------------------------------------------------------------------------------------------------- checks

    function _notConvicted(address who) private view returns (Node storage n) {
        n = _nodes[who];
        if (n.convicted) revert NodeConvicted(who);
    }

    function _needFree(address who, uint128 amount) private view {
        uint256 free = freeStake(who);
        if (free < amount) revert InsufficientFreeStake(who, free, amount);
    }

    // ---------------------------------------------------------------------------------------------------- views

    /// @inheritdoc INodes
    function node(address who) external view returns (Node memory) {
        return _nodes[who];
    }

    /// @inheritdoc INodes
    function isConvicted(address who) external view returns (bool) {
        return _nodes[who].convicted;
    }

    /// @inheritdoc INodes
    function ask(address who, bytes32 modelId) external view returns (Ask memory) {
        return _asks[who][modelId];
    }

    /// @inheritdoc INodes
    function sessionKey(address who, address key) external view returns (uint40 validUntil) {
        return _sessionKeys[who][key];
    }

    /// @inheritdoc INodes
    function actsFor(address who, address key) external view returns (bool) {
        return key == who || block.timestamp <= _sessionKeys[who][key];
    }

    /// @inheritdoc INodes
    function answersFor(address who, address key) external view returns (bool) {
        return key == who || _sessionKeys[who][key] != 0;
    }

    /// @inheritdoc INodes
    function freeStake(address who) public view returns (uint256) {
        Node storage n = _nodes[who];
        return uint256(n.stake) - n.locked - n.pledged - n.unbonding;
    }
}
