// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @title INodes
/// @notice Who serves: stake, the bonds locked in it, asks, endpoints, records. One of the three contracts
/// that hold tokens.
/// @dev Trust: the payment token must move exactly what it is told and never charge on transfer (deposits check it). The
/// market is fixed at construction and is the only caller that can lock, release or take the bond of a job; the channels
/// likewise for what is pledged for batches of receipts, and they alone can convict. Both are immutable too.
/// Nothing else can touch a node's stake, and nothing can stop its withdrawal once the delay is over.
///
/// A conviction is for ever: the account keeps no stake but the bonds of jobs under way, and no bond is locked for it again.
/// Whoever wants to go on serves from a new account, with a new stake and no record.
interface INodes {
    /// @dev Slots:
    ///     0  stake u128 | locked u128
    ///     1  unbonding u128 | unbondingAt u64 | capacity u32 | active u32
    ///     2  served u32 | timedOut u32 | slashed u32 | convicted 8 | pledged u128
    ///     3  endpoint
    /// stake >= locked + pledged + unbonding, always.
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
        bool convicted; // of signing a false receipt
        uint128 pledged; // bonds of batches of receipts
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
    event Pledged(address indexed node, uint256 amount);
    event PledgeEnded(address indexed node, uint256 released, uint256 taken);
    event Convicted(address indexed node, uint256 taken);
    event SessionKeySet(address indexed node, address indexed key, uint40 validUntil);
    event SessionKeyRevoked(address indexed node, address indexed key);

    /// @notice Only the market may do this.
    error NotMarket(address actual, address expected);
    /// @notice Only the channels may do this.
    error NotChannels(address actual, address expected);
    /// @notice The node has signed a false receipt; no bond is locked for it again.
    error NodeConvicted(address node);
    /// @notice A session key must be valid for a while, and be a key.
    error BadSessionKey(address key, uint256 time, uint40 validUntil);
    /// @notice The node has not authorised this key, or no longer.
    error NoSessionKey(address node, address key);
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
    /// @notice More is released or taken than is locked. Neither caller ever does it.
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

    /// @notice Lets a key sign receipts and redeem for the caller, so that the account's own key need not be where requests are
    /// served. Setting it again changes the time.
    /// @param validUntil its last second
    function setSessionKey(address key, uint40 validUntil) external;

    /// @notice Ends a session key's validity now.
    function revokeSessionKey(address key) external;

    /// @notice Everything known of a node.
    function node(address who) external view returns (Node memory);

    /// @notice Whether the node has been convicted of a false receipt.
    function isConvicted(address who) external view returns (bool);

    /// @notice A node's price for a model.
    function ask(address who, bytes32 modelId) external view returns (Ask memory);

    /// @notice Whether the key may act for the node now: it is the node's own account, or a session key that is valid.
    function actsFor(address who, address key) external view returns (bool);

    /// @notice Whether the node answers for what the key signs: it is the node's own account, or has ever been its session key.
    /// @dev Validity at the time of signing cannot be known on chain, and a node that could revoke a key after the fact could
    /// disown every false receipt. Whoever loses a session key loses control of the stake to it.
    function answersFor(address who, address key) external view returns (bool);

    /// @notice Until when a session key is valid; zero if it never was one.
    function sessionKey(address who, address key) external view returns (uint40 validUntil);

    /// @notice Stake that is neither locked nor pledged nor unbonding.
    function freeStake(address who) external view returns (uint256);

    /// @notice Seconds from a request to the withdrawal; longer than any job or batch of receipts with its
    /// challenges can last.
    function UNSTAKE_DELAY() external view returns (uint64);

    /// @notice The payment token.
    function token() external view returns (address);

    /// @notice The models.
    function models() external view returns (address);

    /// @notice The only caller of the last three functions.
    function channels() external view returns (address);

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

    /// @notice Channels only: pledges free stake for a batch of receipts. Takes no place of the node's capacity.
    function pledge(address who, uint128 amount) external;

    /// @notice Channels only: takes `taken` of a pledge of `amount` to the channels, releases the rest.
    function endPledge(address who, uint128 amount, uint128 taken) external;

    /// @notice Channels only: takes all stake to the channels but the bonds of jobs, what is pledged and unbonding included.
    /// @return taken nothing if the node has been convicted before
    function convict(address who) external returns (uint128 taken);
}
