// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ICourt, JobId, JobState} from "./ICourt.sol";

/// @title IMarket
/// @notice Jobs and the money around them: escrow, demand fees, rewards, balances to withdraw. One of the three contracts
/// that hold tokens.
/// @dev Trust: the payment token must move exactly what it is told and never charge on transfer (payments in check it).
/// No admin, no upgrade, no pause. `challenges` is fixed at construction and is the only caller that can slash; it is
/// immutable too. Money leaves by `withdraw` only, and by the burn of a slash: a transfer to 0x…dEaD, because an ERC-20
/// need not have a burn function.
///
/// Times are seconds of block.timestamp. "By" a deadline includes its second; what waits for it to pass may happen in the
/// next.
interface IMarket is ICourt {
    /// @dev Slots:
    ///     0  user 160 | state 8 | deadline 40 | nIn 32
    ///     1  node 160 | nOut 32 | maxNew 32
    ///     2  modelId
    ///     3  inputHash
    ///     4  outputHash
    ///     5  layersRoot
    ///     6  escrow u128 | bond u128
    ///     7  perInputToken u128 | perOutputToken u128
    ///     8  sampling (written unless the job is greedy)
    ///     9  seed (written if the job samples with a temperature)
    struct Job {
        address user;
        JobState state;
        uint40 deadline; // Open: accept by; Assigned: submit by; Submitted: end of the challenge window
        uint32 nIn;
        address node;
        uint32 nOut;
        uint32 maxNew;
        bytes32 modelId;
        bytes32 inputHash;
        bytes32 outputHash;
        bytes32 layersRoot;
        uint128 escrow; // Open: the user's ceiling; from then on the price of the longest answer
        uint128 bond;
        uint128 perInputToken;
        uint128 perOutputToken;
        uint256 sampling; // u32 each from the lowest bits up: inverse temperature, top-k, top-p, min distance, penalty; 0: greedy
        bytes32 seed; // of the noise; zero without a temperature
    }

    struct Params {
        uint40 acceptTimeout;
        uint40 auctionTime; // in which an open job's offer rises from nothing to its ceiling
        uint40 submitTimeout;
        uint40 challengeWindow;
        uint128 minBond;
        uint16 bondFactorBps; // bond = max(minBond, escrow * factor / 10000)
        uint16 latePenaltyBps; // of the bond, to the user
        uint16 userShareBps; // of a slashed bond
        uint16 challengerShareBps; // of a slashed bond; the rest is burned
    }

    event JobCreated(
        JobId indexed jobId,
        address indexed user,
        address indexed node,
        bytes32 modelId,
        uint32 maxNew,
        uint128 escrow,
        uint256 sampling,
        bytes32 seed,
        bytes promptTokens
    );
    event JobAccepted(JobId indexed jobId, address indexed node, uint128 bond, uint40 deadline);
    event ResultSubmitted(
        JobId indexed jobId,
        address indexed node,
        bytes outputTokens,
        bytes32 layersRoot,
        bytes32 traceRoot,
        uint40 windowEnd
    );
    event JobFinalized(JobId indexed jobId, uint256 paid, uint256 refunded);
    event JobExpired(JobId indexed jobId, uint256 refunded, uint256 penalty);
    event JobCancelled(JobId indexed jobId, uint256 refunded);
    event JobSlashed(
        JobId indexed jobId,
        address indexed node,
        uint256 bond,
        uint256 refunded,
        uint256 compensation,
        uint256 reward,
        uint256 burned
    );
    event Credited(address indexed account, uint256 amount, JobId indexed jobId);
    event Withdrawn(address indexed account, uint256 amount);

    /// @notice A constructor parameter outside its range.
    error ParameterOutOfRange(string name, uint256 actual, uint256 min, uint256 max);
    /// @notice The job is not in the state that this call needs. None: no such job.
    error WrongState(JobId jobId, JobState actual, JobState expected);
    /// @notice The deadline has passed.
    error TooLate(JobId jobId, uint256 time, uint256 deadline);
    /// @notice The deadline has not passed; try again after it.
    error TooEarly(JobId jobId, uint256 time, uint256 deadline);
    /// @notice Only the job's user may do this.
    error NotUser(JobId jobId, address actual, address expected);
    /// @notice Only the job's node may do this.
    error NotNode(JobId jobId, address actual, address expected);
    /// @notice Only the challenges contract may do this.
    error NotChallenges(address actual, address expected);
    /// @notice Token sequences are four bytes per token, at least one.
    error TokenBytes(uint256 length);
    /// @notice No new tokens were asked for.
    error NoNewTokens();
    /// @notice Prompt and output would run more positions than the model or the instruction set has.
    error TooManyPositions(uint256 positions, uint256 limit);
    /// @notice The model has no such token.
    error TokenOutOfVocabulary(uint256 index, uint32 token, uint32 vocab);
    /// @notice A sampling parameter is outside its range, or bits above the parameters are set.
    /// @param index the parameter, counted from the lowest bits; 5: the bits above
    error BadSampling(uint256 index, uint256 actual, uint256 min, uint256 max);
    /// @notice The model selects greedily; ask without sampling parameters.
    error GreedyModel(bytes32 modelId);
    /// @notice The answer was computed for another order: a reorganisation may have given the job's id to another.
    error OrderMismatch(JobId jobId, bytes32 actual, bytes32 expected);
    /// @notice The node does not offer this model.
    error NotOffered(address node, bytes32 modelId);
    /// @notice The node offers fewer tokens than prompt and output take.
    error MoreThanOffered(uint256 tokens, uint32 maxTokens);
    /// @notice At the node's ask the longest answer costs more than the ceiling.
    error PriceOverCeiling(uint256 price, uint256 maxPrice);
    /// @notice The answer is longer than the job allows.
    error AnswerTooLong(uint256 nOut, uint32 maxNew);
    /// @notice A stop token comes before the last token.
    error StopTokenTooEarly(uint256 index, uint32 token);
    /// @notice The answer ends before `maxNew` without a stop token.
    error StopTokenMissing(uint256 nOut, uint32 maxNew, uint32 last);
    /// @notice A demand is unanswered or a challenger's turn is not over.
    error UnderChallenge(JobId jobId);
    /// @notice The token delivered another amount than it was told to; tokens that charge on transfer are not supported.
    error TransferMismatch(uint256 received, uint256 expected);
    /// @notice The caller has nothing to withdraw.
    error NothingToWithdraw(address account);
    /// @notice More than what this job holds. The challenges contract never asks for it.
    error NotHeld(JobId jobId, uint256 held, uint256 asked);

    /// @notice Buys an answer; needs an allowance for the escrow.
    /// @dev With a named node its ask decides the price, its bond is locked at once and the job is Assigned. Without, the
    /// ceiling is held, the job is auctioned (`offerFor`), and what the accepting node's bid leaves of it is credited back.
    /// @param node zero: open to any node
    /// @param promptTokens big-endian u32 each
    /// @param maxNew tokens of the longest answer
    /// @param maxPrice ceiling for the prompt and the longest answer together
    /// @param sampling the parameters of docs/instruction-set.md ("Sampling"), packed; 0: greedy
    /// @param userSeed the user's part of the seed; the rest is the block's
    function createJob(
        bytes32 modelId,
        address node,
        bytes calldata promptTokens,
        uint32 maxNew,
        uint128 maxPrice,
        uint256 sampling,
        bytes32 userSeed
    ) external returns (JobId);

    /// @notice Takes an open job at the caller's own prices, which nothing posted binds; locks its bond.
    /// @dev A reverse auction in one call: the job's offer rises, and the first to accept is whoever is content with least. Nobody
    /// gains by naming more than its price, because the offer must have risen to it.
    /// @param perInputToken price of a prompt token
    /// @param perOutputToken price of an output token
    function acceptJob(JobId jobId, uint128 perInputToken, uint128 perOutputToken) external;

    /// @notice The user takes back an open job.
    function cancelJob(JobId jobId) external;

    /// @notice The node posts its answer and the root of its trace. Opens the challenge window.
    /// @param order what the answer was computed for: the job's `orderHash`
    /// @param outputTokens big-endian u32 each
    /// @param layersRoot the tree over the layers' roots
    function submitResult(JobId jobId, bytes32 order, bytes calldata outputTokens, bytes32 layersRoot) external;

    /// @notice Ends a job that nobody accepted, or whose node is late: then the penalty goes to the user. Anybody may call.
    function expire(JobId jobId) external;

    /// @notice Pays the node for the tokens it delivered and refunds the rest of the escrow. Anybody may call.
    /// @dev Liveness: waits for the window, for every unanswered demand and every challenger's turn, so at most
    /// 8·(nodeTurn + challengerTurn) beyond the window.
    function finalize(JobId jobId) external;

    /// @notice Pays the caller all it is owed.
    function withdraw() external returns (uint256);

    /// @notice A job; all zero if there is none.
    function job(JobId jobId) external view returns (Job memory);

    /// @notice The id that the next job will have; the first is 1.
    function nextJobId() external view returns (uint256);

    /// @notice The parameters of this deployment.
    function params() external view returns (Params memory);

    /// @notice The hash of all that an answer depends on: model, prompt, longest answer, sampling, seed. Zero if there is no such job.
    function orderHash(JobId jobId) external view returns (bytes32);

    /// @notice The hash that binds model, prompt, answer and trace of a submitted job; zero before.
    function traceRoot(JobId jobId) external view returns (bytes32);

    /// @notice What an open job pays now for the prompt and its longest answer: floor(ceiling · age / auctionTime) until it is
    /// auctionTime old, then its ceiling. Zero for every other job.
    function offerFor(JobId jobId) external view returns (uint256);

    /// @notice What the longest answer costs at the node's ask.
    function quote(bytes32 modelId, address node, uint32 nIn, uint32 maxNew) external view returns (uint256);

    /// @notice What `withdraw` would pay.
    function withdrawable(address account) external view returns (uint256);

    /// @notice Escrow of all jobs that are not terminal.
    function totalEscrow() external view returns (uint256);

    /// @notice Owed to all accounts together.
    function totalWithdrawable() external view returns (uint256);

    /// @notice Demand fees of jobs that are not final and that nobody has reclaimed.
    function totalFees() external view returns (uint256);

    /// @notice Rewards of slashed jobs that are not settled.
    /// @dev totalEscrow + totalWithdrawable + totalFees + totalRewards is the contract's token balance.
    function totalRewards() external view returns (uint256);

    /// @notice The payment token.
    function token() external view returns (address);

    /// @notice The models.
    function models() external view returns (address);

    /// @notice The nodes.
    function nodes() external view returns (address);
}
