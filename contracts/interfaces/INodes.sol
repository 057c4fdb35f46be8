// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

interface INodes {
    struct Node {
        uint128 stake; // everything deposited and not withdrawn or slashed, unbonding included
        uint128 locked; // bonds of active jobs
        uint128 unbonding;
        uint64 unbondingAt; // when `unbonding` may be withdrawn
        uint32 capacity; // jobs at a time
        uint32 active;
        uint32 served;
        uint32 timedOut;
        uint32 slashed;
        string endpoint;
    }

    struct Ask {
        uint128 perInputToken;
        uint128 perOutputToken;
        uint32 maxTokens; // prompt + output, at most; 0 = not offered
    }

    event NodeUpdated(address indexed node, string endpoint, uint32 capacity);
    event StakeDeposited(address indexed node, uint256 amount);
    event AskSet(address indexed node, bytes32 indexed modelId, uint128 perInputToken, uint128 perOutputToken, uint32 maxTokens);
    event UnstakeRequested(address indexed node, uint256 amount, uint64 availableAt);
    event StakeWithdrawn(address indexed node, uint256 amount);
    event BondLocked(address indexed node, uint256 amount);
    event BondReleased(address indexed node, uint256 amount);
    event BondTaken(address indexed node, uint256 amount, bool slashed);

    function configure(string calldata endpoint, uint32 capacity) external;
    function deposit(uint128 amount) external;
    function requestUnstake(uint128 amount) external;
    function withdrawStake() external;
    function setAsk(bytes32 modelId, uint128 perInputToken, uint128 perOutputToken, uint32 maxTokens) external;

    function node(address who) external view returns (Node memory);
    function ask(address who, bytes32 modelId) external view returns (Ask memory);
    function freeStake(address who) external view returns (uint256);
    function UNSTAKE_DELAY() external view returns (uint64);

    // Market only
    function lockBond(address who, uint128 amount) external;
    function releaseBond(address who, uint128 amount, bool served) external;
    /// takes `taken` of a locked bond of `amount` to the market, releases the rest
    function takeBond(address who, uint128 amount, uint128 taken, bool slash) external;
}
