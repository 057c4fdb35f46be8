// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @title INodes
/// @notice Who serves: stake, the bonds locked in it, asks, endpoints, records. One of the two contracts that hold tokens.
/// @dev Trust: the payment token must move exactly what it is told and never charge on transfer (deposits check it). The
/// market is fixed at construction and is the only caller that can lock, release or take a bond; it is immutable too.
/// Nothing else can touch a node's stake, and nothing can stop its withdrawal once the delay is over.
interface INodes {
    /// @dev Slots:
    ///     0  stake u128 | locked u128
    ///     1  unbonding u128 | unbondingAt u64 | capacity u32 | active u32
    ///     2  served u32 | timedOut u32 | slashed u32
    ///     3  endpoint
    /// stake >= locked + unbonding, always.
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

    /// @dev Slots: 0 perInputToken u128 | perOutputToken u128; 1 maxTokens u32
    struct Ask {
        uint128 perInputToken;
        uint128 perOutputToken;
        uint32 maxTokens; // prompt + output, at most; 0 = not offered
    }

    event NodeUpdated(address indexed node, string endpoint, uint32 capacity);
    event StakeDeposited(address indexed node, uint256 amount);
    event AskSet(
        address indexed node, bytes32 indexed modelId, uint128 perInputToken, uint128 perOutputToken, uint32 maxTokens
    );
    event UnstakeRequested(address indexed node, uint256 amount, uint64 availableAt);
    event StakeWithdrawn(address indexed node, uint256 amount);
    event BondLocked(address indexed node, uint256 amount);
    event BondReleased(address indexed node, uint256 amount);
    event BondTaken(address indexed node, uint256 amount, bool slashed);

    /// @notice Only the market may do this.
    error NotMarket(address actual, address expected);
    /// @notice Nothing would move.
    error ZeroAmount();
    /// @notice The token delivered another amount than it was told to; tokens that charge on transfer are not supported.
    error TransferMismatch(uint256 received, uint256 expected);
    /// @notice The node's stake that is neither locked nor unbonding does not suffice; deposit more.
    error InsufficientFreeStake(address node, uint256 free, uint256 needed);
    /// @notice The node works on as many jobs as it takes at a time.
    error AtCapacity(address node, uint32 active, uint32 capacity);
    /// @notice Nothing is unbonding; request it first.
    error NothingUnbonding(address node);
    /// @notice The unbonding stake is not free yet.
    error StillUnbonding(uint256 time, uint64 availableAt);
    /// @notice More is released or taken than is locked. The market never does it.
    error BondMismatch(address node, uint256 locked, uint256 amount);

    /// @notice Sets where the caller serves and how many jobs it takes at a time. Jobs under way are not affected.
    function configure(string calldata endpoint, uint32 capacity) external;

    /// @notice Adds to the caller's stake; needs an allowance.
    function deposit(uint128 amount) external;

    /// @notice Starts unbonding free stake. The delay runs anew for all that is unbonding.
    function requestUnstake(uint128 amount) external;

    /// @notice Pays out what has finished unbonding.
    function withdrawStake() external;

    /// @notice Posts the caller's price for a model. A posted ask with capacity and free stake is consent to any job that
    /// names the caller at that price: its bond is locked without another word.
    /// @param maxTokens prompt and output together, at most; 0 withdraws the offer
    function setAsk(bytes32 modelId, uint128 perInputToken, uint128 perOutputToken, uint32 maxTokens) external;

    /// @notice Everything known of a node.
    function node(address who) external view returns (Node memory);

    /// @notice A node's price for a model.
    function ask(address who, bytes32 modelId) external view returns (Ask memory);

    /// @notice Stake that is neither locked nor unbonding.
    function freeStake(address who) external view returns (uint256);

    /// @notice Seconds from a request to the withdrawal; longer than any job with its challenges can last.
    function UNSTAKE_DELAY() external view returns (uint64);

    /// @notice The payment token.
    function token() external view returns (address);

    /// @notice The models.
    function models() external view returns (address);

    /// @notice The only caller of the three functions below.
    function market() external view returns (address);

    /// @notice Market only: locks a bond and a place of the node's capacity.
    function lockBond(address who, uint128 amount) external;

    /// @notice Market only: releases a bond.
    /// @param served whether it counts as a job served
    function releaseBond(address who, uint128 amount, bool served) external;

    /// @notice Market only: takes `taken` of a locked bond of `amount` to the market, releases the rest.
    /// @param slash for fraud or silence in a challenge; otherwise for a late result
    function takeBond(address who, uint128 amount, uint128 taken, bool slash) external;
}
