// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

enum ChannelState {
    None,
    Open,
    Closing,
    Closed
}

/// @notice Signed by a channel's signer with each request: the node may be paid up to `cumulative` in all, this request
/// included. Any voucher of the channel covers any of its receipts. EIP-712, in this order.
struct Voucher {
    bytes32 channelId;
    uint64 request; // the client's number of it: unique in the channel, in any order
    bytes32 modelId;
    uint128 cumulative;
    bytes32 requestHash; // the order: model, prompt, longest answer, sampling, seed (tag 0x09 of docs/protocol.md)
}

/// @notice Signed by the node with each answer: what it computed, and what the channel owes in all after it. EIP-712, in this
/// order.
struct Receipt {
    bytes32 channelId;
    uint64 sequence; // 1, 2, 3, … in the order of completion
    uint64 request; // the client's number of it, as in the voucher
    bytes32 modelId;
    bytes32 inputHash;
    bytes32 outputHash;
    uint32 nIn;
    uint32 nOut;
    uint32 maxNew;
    uint256 sampling; // as a job has it; 0: greedy
    bytes32 seed; // of the noise, the user's; not read without a temperature
    bytes32 layersRoot;
    uint128 price;
    uint128 cumulative;
}

/// @notice What a node asks for in one channel: all receipts from the last redeemed one up to another.
struct Redemption {
    Voucher voucher; // with the largest ceiling, or any that suffices
    bytes signature; // of the voucher, by the channel's signer
    uint64 firstSequence; // the one after the last redeemed
    uint64 lastSequence;
    uint128 cumulative; // what the last receipt says; at most the voucher's
    bytes32 receiptsRoot; // tree over the digests of the receipts, in order
}

/// @notice One channel's part of a batch.
struct Part {
    bytes32 channelId;
    uint64 first;
    uint64 last;
    uint128 amount;
    uint128 cumulative; // up to and with `last`
    bytes32 receiptsRoot;
}

/// @notice Shows that a batch has a part: it is leaf `index` of the batch's tree.
struct Place {
    uint256 batchId;
    Part part;
    uint8 index;
    bytes32[] proof;
}

/// @title IChannels
/// @notice Payment without a transaction per answer. A user deposits, opens a channel to a node and signs a voucher with each
/// request; the node signs a receipt with each answer, and redeems many at once. Redeemed money waits for a window, in
/// which anybody may see the receipts and bring one to trial (`ITrials`), where it is challenged exactly like a job. One of
/// the three contracts that hold tokens.
/// @dev Trust: the payment token must move exactly what it is told and never charge on transfer (payments in check it).
/// No admin, no upgrade, no pause. Money leaves by `withdraw` only, and by the burn of a conviction or a missed turn.
///
/// A receipt is the node's if its account has signed it, or a key that has ever been its session key (`INodes.answersFor`).
/// Only ECDSA: a contract could disown what it signed, so a node that is a contract signs with a session key. Vouchers may
/// be ERC-1271; a node that serves such a signer trusts it to stand by what it signed until the voucher is redeemed.
///
/// A channel is to one node, so what it holds is promised once. A batch stands or falls as a whole: it is void when a receipt
/// that was asked for is not published, or the node is convicted of any receipt; its users then take back their parts.
/// A batch that is released stays so: a conviction afterwards still takes the stake.
///
/// Liveness: no batch waits longer than window + receiptTurn + lodgeTurn for lodging, then max(window, lodgeTurn) for a
/// trial's first demand, then 9·(nodeTurn + challengerTurn): the tokens and 8 openings under them.
///
/// Times are seconds of block.timestamp. "By" a deadline includes its second.
interface IChannels {
    /// @dev Slots:
    ///     0  user 160
    ///     1  node 160 | closeAt 40
    ///     2  signer 160 | sequence 64 | state 8
    ///     3  deposit u128 | claimed u128
    struct Channel {
        address user;
        address node;
        uint40 closeAt; // Closing: from the next second on
        address signer; // of vouchers
        uint64 sequence; // of the last receipt that was redeemed
        ChannelState state;
        uint128 deposit;
        uint128 claimed; // of the deposit, pending or paid
    }

    enum BatchState {
        None,
        Pending,
        Released,
        Void
    }

    /// @dev Slots:
    ///     0  node 160 | windowEnd 40 | unanswered 24 | openTrials 24 | state 8
    ///     1  amount u128 | refunded u64 | parts 8 | lodgeEnd 40
    ///     2  partsRoot
    struct Batch {
        address node;
        uint40 windowEnd; // demands for receipts: by
        uint24 unanswered; // demands
        uint24 openTrials; // attached and neither acquitted nor slashed
        BatchState state;
        uint128 amount;
        uint64 refunded; // bit i: part i of a void batch
        uint8 parts;
        uint40 lodgeEnd; // trials are attached by; not before windowEnd
        bytes32 partsRoot; // tree over keccak256(abi.encode(part))
    }

    enum DemandState {
        None,
        Demanded,
        Answered,
        Ended
    }

    /// @dev One slot.
    struct ReceiptDemand {
        address payer;
        uint40 deadline;
        DemandState state;
    }

    struct Params {
        uint40 window; // from redemption: demands for receipts; from lodging a loose receipt: first demands
        uint40 closeDelay; // from the user's request; at least the window
        uint40 receiptTurn; // the node's, to publish a receipt
        uint40 lodgeTurn; // the challenger's, from a published receipt to lodging it, and from lodging to the first demand
        uint128 receiptFee; // for a demand, and for lodging
        uint128 minBond;
        uint16 bondFactorBps; // bond = max(minBond, amount * factor / 10000)
        uint16 userShareBps; // of what a conviction takes
        uint16 challengerShareBps; // of what a conviction or a missed turn takes; the rest is burned
    }

    event Deposited(address indexed account, uint256 amount);
    event Withdrawn(address indexed account, uint256 amount);
    event Credited(address indexed account, uint256 amount);
    event ChannelOpened(
        bytes32 indexed channelId, address indexed user, address indexed node, address signer, uint128 amount
    );
    event ChannelToppedUp(bytes32 indexed channelId, uint128 amount);
    event ChannelClosing(bytes32 indexed channelId, uint40 closeAt);
    event ChannelClosed(bytes32 indexed channelId, uint128 refunded);
    event BatchRedeemed(
        uint256 indexed batchId, address indexed node, uint128 amount, uint128 bond, uint40 windowEnd, Part[] parts
    );
    event BatchReleased(uint256 indexed batchId, address indexed node, uint128 amount);
    event BatchVoid(uint256 indexed batchId, address indexed node);
    event PartRefunded(uint256 indexed batchId, bytes32 indexed channelId, uint128 amount);
    event ReceiptDemanded(
        uint256 indexed batchId, bytes32 indexed channelId, uint64 indexed sequence, address payer, uint40 deadline
    );
    event ReceiptPublished(uint256 indexed batchId, bytes32 indexed digest, Receipt receipt, bytes signature);
    event ReceiptWithheld(uint256 indexed batchId, bytes32 indexed channelId, uint64 indexed sequence);
    event DemandRefunded(uint256 indexed batchId, bytes32 indexed channelId, uint64 indexed sequence);
    event NodeConvicted(address indexed node, uint256 taken, uint256 compensation, uint256 reward, uint256 burned);

    /// @notice A constructor parameter outside its range.
    error ParameterOutOfRange(string name, uint256 actual, uint256 min, uint256 max);
    /// @notice The token delivered another amount than it was told to; tokens that charge on transfer are not supported.
    error TransferMismatch(uint256 received, uint256 expected);
    /// @notice Nothing would move.
    error ZeroAmount();
    /// @notice This deployment knows no Permit2 contract; approve, or use another kind of deposit.
    error NoPermit2();
    /// @notice The caller's balance does not suffice; deposit more.
    error InsufficientBalance(address account, uint256 balance, uint256 needed);
    /// @notice The caller has nothing to withdraw.
    error NothingToWithdraw(address account);
    /// @notice The channel exists; choose another salt.
    error ChannelExists(bytes32 channelId);
    /// @notice The channel is not in the state that this call needs. None: no such channel.
    error WrongChannelState(bytes32 channelId, ChannelState actual, ChannelState expected);
    /// @notice Only the channel's user may do this.
    error NotUser(bytes32 channelId, address actual, address expected);
    /// @notice Only the channel's node, or a valid session key of it, may do this.
    error NotNode(address actual, address expected);
    /// @notice Only the trials may do this.
    error NotTrials(address actual, address expected);
    /// @notice The deadline has passed.
    error TooLate(uint256 time, uint256 deadline);
    /// @notice The deadline has not passed; try again after it.
    error TooEarly(uint256 time, uint256 deadline);
    /// @notice A batch has from one channel to as many as its tree holds.
    error PartCount(uint256 actual, uint256 max);
    /// @notice All channels of a batch are to one node.
    error OtherNode(bytes32 channelId, address actual, address expected);
    /// @notice The redemption does not begin after the last redeemed receipt, or ends before it begins.
    error WrongSequence(bytes32 channelId, uint64 first, uint64 last, uint64 expectedFirst);
    /// @notice Less than was redeemed before, or more than the voucher or the deposit covers.
    error WrongCumulative(bytes32 channelId, uint128 actual, uint128 min, uint128 max);
    /// @notice The voucher is not signed by the channel's signer.
    error BadVoucher(bytes32 channelId, address signer);
    /// @notice The receipt is not signed by a key that the node answers for.
    error NotSignedByNode(address node, address recovered);
    /// @notice The batch is not in the state that this call needs. None: no such batch.
    error WrongBatchState(uint256 batchId, BatchState actual, BatchState expected);
    /// @notice The batch has no such part.
    error NotInBatch(uint256 batchId, bytes32 actual, bytes32 expected);
    /// @notice The part does not hold this receipt: another channel or a sequence outside its range.
    error NotInPart(bytes32 channelId, uint64 sequence, bytes32 partChannelId, uint64 first, uint64 last);
    /// @notice A demand is unanswered or a trial not over.
    error UnderChallenge(uint256 batchId, uint256 unanswered, uint256 openTrials);
    /// @notice The part has been refunded.
    error AlreadyRefunded(uint256 batchId, uint256 index);
    /// @notice The demand is not in the state that this call needs. None: no such demand.
    error WrongDemandState(uint256 batchId, uint64 sequence, DemandState actual, DemandState expected);
    /// @notice The receipt's digest is not the one that the node redeemed.
    error ReceiptRootMismatch(bytes32 actual, bytes32 expected);
    // ---------------------------------------------------------------------------------------------------- money

    /// @notice Adds to the caller's balance; needs an allowance.
    function deposit(uint128 amount) external;

    /// @notice The same with a permit of the token (EIP-2612) by the caller. A permit that somebody else has used already does
    /// no harm.
    function depositWithPermit(uint128 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external;

    /// @notice Adds to `from`'s balance what it has authorised this contract to receive (EIP-3009). Anybody may call.
    function depositWithAuthorization(
        address from,
        uint128 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @notice Adds to `owner`'s balance what it has signed for Permit2 with this contract as spender. Anybody may call.
    function depositWithPermit2(
        address owner,
        uint128 amount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata signature
    ) external;

    /// @notice Pays the caller its balance: what it deposited and did not put into channels, and what it is owed.
    function withdraw() external returns (uint256 amount);

    // ------------------------------------------------------------------------------------------------- channels

    /// @notice Opens a channel from the caller's balance.
    /// @param signer signs the vouchers; zero: the caller
    /// @param salt makes the id unique among the caller's channels to this node; never use one again
    /// @return channelId see `channelIdOf`
    function open(address node, address signer, uint128 amount, bytes32 salt) external returns (bytes32 channelId);

    /// @notice Adds to an open channel of the caller's from its balance.
    function topUp(bytes32 channelId, uint128 amount) external;

    /// @notice The user begins to close a channel. The node can redeem until it is closed.
    function requestClose(bytes32 channelId) external;

    /// @notice Returns what the node has not claimed, once the delay is over. Anybody may call.
    function close(bytes32 channelId) external;

    /// @notice The node closes a channel at once: what it has not claimed goes back. Batches go on.
    function closeByNode(bytes32 channelId) external;

    // ------------------------------------------------------------------------------------------------ redemption

    /// @notice Claims what receipts of one or more channels of one node have earned; pledges the batch's bond. By the node or a
    /// valid session key of it.
    function redeem(Redemption[] calldata redemptions) external returns (uint256 batchId);

    /// @notice Pays a batch out to its node after the window, if nobody waits for anything of it. Anybody may call.
    function release(uint256 batchId) external;

    /// @notice Returns a part of a void batch to its channel's user. Anybody may call.
    function refund(Place calldata place) external;

    // ------------------------------------------------------------------------------------------------- receipts

    /// @notice Asks to see a receipt of a batch, within its window. Costs `receiptFee`, from an allowance.
    function demandReceipt(Place calldata place, uint64 sequence) external;

    /// @notice Publishes a receipt that was asked for. Anybody may; the fee is the node's.
    /// @param proof of the receipt's digest under the part's root
    function publishReceipt(
        Place calldata place,
        Receipt calldata receipt,
        bytes calldata signature,
        bytes32[] calldata proof
    ) external;

    /// @notice A receipt was not published in time: the batch is void and its bond is taken, `challengerShare` of it for who asked.
    /// If the batch is void already: returns the fee. Anybody may call.
    function receiptTimeout(uint256 batchId, bytes32 channelId, uint64 sequence) external;

    // ---------------------------------------------------------------------------------------------------- views

    /// @notice A channel; all zero if there is none.
    function channel(bytes32 channelId) external view returns (Channel memory);

    /// @notice The id of a channel.
    function channelIdOf(address user, address node, bytes32 salt) external pure returns (bytes32);

    /// @notice A batch; all zero if there is none. A pending batch of a convicted node is as good as void.
    function batch(uint256 batchId) external view returns (Batch memory);

    /// @notice The id that the next batch will have; the first is 1.
    function nextBatchId() external view returns (uint256);

    /// @notice A demand for a receipt; all zero if there is none.
    function receiptDemand(uint256 batchId, bytes32 channelId, uint64 sequence)
        external
        view
        returns (ReceiptDemand memory);

    /// @notice What the signer of a voucher signs.
    function voucherDigest(Voucher calldata voucher) external view returns (bytes32);

    /// @notice What the node signs.
    function receiptDigest(Receipt calldata receipt) external view returns (bytes32);

    /// @notice Checks that the receipt is its channel's node's: the digest, and whose channel it is.
    function signedReceipt(Receipt calldata receipt, bytes calldata signature)
        external
        view
        returns (bytes32 digest, address node);

    /// @notice Checks that a batch has this part.
    function checkPlace(Place calldata place) external view;

    /// @notice The parameters of this deployment.
    function params() external view returns (Params memory);

    /// @notice What `withdraw` would pay.
    function balanceOf(address account) external view returns (uint256);

    /// @notice Balances of all accounts together.
    function totalBalances() external view returns (uint256);

    /// @notice Deposits of channels that are not closed, without what is claimed, and batches that are neither released nor refunded.
    function totalCommitted() external view returns (uint256);

    /// @notice Fees of demands and trials that nobody has got yet.
    function totalFees() external view returns (uint256);

    /// @notice Rewards of slashed trials that are not settled.
    /// @dev totalBalances + totalCommitted + totalFees + totalRewards is the contract's token balance.
    function totalRewards() external view returns (uint256);

    /// @notice The payment token.
    function token() external view returns (address);

    /// @notice The nodes.
    function nodes() external view returns (address);

    /// @notice The Permit2 contract; zero: none.
    function permit2() external view returns (address);

    /// @notice The only caller of the functions below.
    function trials() external view returns (address);

    /// @notice Trials only: makes a pending batch wait for a trial of this receipt.
    /// @return windowEnd the batch's
    function hold(Place calldata place, bytes32 channelId, uint64 sequence) external returns (uint40 windowEnd);

    /// @notice Trials only: a batch waits for one trial less.
    function letGo(uint256 batchId) external;

    /// @notice Trials only: takes a fee from the payer's allowance.
    function takeFee(address payer, uint128 amount) external;

    /// @notice Trials only: credits a fee that is held.
    function payFee(address to, uint128 amount) external;

    /// @notice Trials only: convicts the node of a channel.
    /// @return reward is held until `payReward`; zero if the node was convicted before
    function convict(bytes32 channelId) external returns (uint128 reward);

    /// @notice Trials only: credits a reward that is held.
    function payReward(address to, uint128 amount) external;
}
