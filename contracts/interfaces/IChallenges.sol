// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {JobId, JobState} from "./ICourt.sol";
import {Claim, Witness} from "./IStepVerifier.sol";

/// @dev From the high bits: jobId u128, rank u16, layer u16, row u32, op u16, index u32, zero u16. The rank is
/// kind·256 + 255 − level: a child ranks above its parent. Tokens are everybody's parent: rank 0. One target has one id.
type OpeningId is bytes32;

enum TargetKind {
    Layers,
    Positions,
    OpList,
    Pages,
    Page,
    Tokens
}

struct Target {
    TargetKind kind;
    uint16 layer;
    uint32 row;
    uint16 op;
    uint8 level;
    uint32 index;
}

/// @title IChallenges
/// @notice Demands for openings of a job's trace, answers, timeouts, fraud proofs, rewards, for two courts: the market's jobs
/// and the receipts on trial, told apart by bit 63 of the id. Holds no money.
/// @dev Trust: none beyond the contracts fixed at construction. The constructor checks that they are wired to each other
/// and that unstaking takes longer than the longest job or batch of receipts with its challenges.
///
/// Liveness: one honest challenger who acts within `challengerTurn` can follow any lie to its end, whatever others demand:
/// an opening that somebody else demanded needs no second demand, its answer is public, and an opening that somebody
/// demanded at a needlessly great depth can be demanded again at a smaller one.
///
/// "By" a deadline includes its second.
interface IChallenges {
    enum OpeningState {
        None,
        Demanded,
        Answered
    }

    /// @dev Slots: 0 payer 160 | state 8 | depth 8 | turnEnd 40; 1 paramsHash
    struct Opening {
        address payer;
        OpeningState state;
        uint8 depth;
        uint40 turnEnd; // Demanded: answer by; Answered: end of the challenger's turn
        bytes32 paramsHash; // keccak256(abi.encode(target, nodeHash, leafCount, byteLength))
    }

    struct Params {
        uint40 nodeTurn;
        uint40 challengerTurn;
        uint128 demandFee;
    }

    /// @notice What a demand must prove; unused fields are empty.
    struct DemandProof {
        bytes32 nodeHash; // the hash of the targeted node
        bytes32[] path; // from the node up to layersRoot (kinds 0-2: path in R_layer, then in the layers tree) or to opRoots[op] (kinds 3, 4); none (kind 5)
        bytes32[] opRoots; // kinds 3, 4
        bytes descriptor; // kinds 3, 4: of operator op
        bytes32[] descriptorProof;
    }

    /// @param leafCount leaves of the tree that holds the node: layers, rows or pages; for an operator list its length;
    /// @param byteLength of the operator's tensor (kinds 3, 4) or of the tokens (kind 5)
    event Demanded(
        JobId indexed jobId,
        OpeningId indexed openingId,
        address indexed payer,
        Target target,
        bytes32 nodeHash,
        uint32 leafCount,
        uint32 byteLength,
        uint8 depth,
        uint40 deadline
    );
    /// @notice An opening that existed was demanded again from nearer the root, so that more can follow it.
    event DepthLowered(JobId indexed jobId, OpeningId indexed openingId, address indexed by, uint8 depth);
    event Answered(JobId indexed jobId, OpeningId indexed openingId, address indexed by, Target target, bytes data);
    event Announced(JobId indexed jobId, address indexed by, bytes32 commitment);
    event FraudProven(JobId indexed jobId, address indexed by, Claim claim, int256 claimed, int256 computed);
    event TimedOut(JobId indexed jobId, OpeningId indexed openingId, address indexed payer);
    event RewardContested(JobId indexed jobId, address indexed by);
    event RewardSettled(JobId indexed jobId, address indexed to);
    event FeesReclaimed(JobId indexed jobId, address indexed payer, uint256 amount);

    /// @notice A constructor parameter outside its range.
    error ParameterOutOfRange(string name, uint256 actual, uint256 min, uint256 max);
    /// @notice A contract given at construction is wired to another one.
    error WrongWiring(string name, address actual, address expected);
    /// @notice Unstaking would be over before the longest challenge.
    error UnstakeDelayTooShort(uint256 delay, uint256 longestChallenge);
    /// @notice The job is not in the state that this call needs. None: no such job.
    error WrongState(JobId jobId, JobState actual, JobState expected);
    /// @notice The deadline has passed.
    error TooLate(JobId jobId, uint256 time, uint256 deadline);
    /// @notice The deadline has not passed; try again after it.
    error TooEarly(JobId jobId, uint256 time, uint256 deadline);
    /// @notice The tree has no such node, or a field that this kind does not use is not zero.
    /// @param field the target's field, @param limit the first value that is too large (or one more than the only one)
    error BadTarget(string field, uint256 actual, uint256 limit);
    /// @notice A proof field that this kind does not use is not empty.
    error UnusedProof(string field);
    /// @notice The parent is of another job.
    error ParentJob(JobId actual, JobId expected);
    /// @notice The parent does not lie nearer the root: by kind, then by level.
    error ParentRank(uint256 parent, uint256 child);
    /// @notice The parent is not answered.
    error ParentState(OpeningId parent, OpeningState actual);
    /// @notice No demand may lie so deep.
    error TooDeep(uint256 depth, uint256 limit);
    /// @notice Somebody has demanded this opening from as near the root; use it.
    error AlreadyDemanded(OpeningId openingId, OpeningState state, uint8 depth);
    /// @notice The proof leads to another root than the committed one.
    error RootMismatch(bytes32 actual, bytes32 expected);
    /// @notice The operator list of this position has not been opened.
    error OpListNotOpened(JobId jobId, uint16 layer, uint32 row);
    /// @notice These operator roots are not the opened list.
    error OpListMismatch(bytes32 actual, bytes32 expected);
    /// @notice A descriptor is 64 bytes.
    error DescriptorLength(uint256 actual, uint256 expected);
    /// @notice Nobody waits for this opening.
    error NotDemanded(OpeningId openingId, OpeningState actual);
    /// @notice Node hash, leaf count and byte length are not those of the demand; its event has them.
    error ParamsMismatch(bytes32 actual, bytes32 expected);
    /// @notice Only the job's node may post an operator list: the leaf does not determine it.
    error NotNode(JobId jobId, address actual, address expected);
    /// @notice The answer is not as long as it must be.
    error AnswerLength(uint256 actual, uint256 expected);
    /// @notice The answer does not hash to the opened node.
    error AnswerMismatch(bytes32 actual, bytes32 expected);
    /// @notice A node wholly beyond the leaf count is not the empty subtree of its level.
    error NotEmpty(uint256 child, bytes32 actual, bytes32 expected);
    /// @notice The caller has announced this already.
    error AlreadyAnnounced(bytes32 commitment, uint256 blockNumber);
    /// @notice The caller has not announced this claim with this salt; announce it, prove it a block later.
    error NotAnnounced(bytes32 commitment);
    /// @notice The announcement must be at least one block old.
    error AnnouncedTooLate(uint256 blockNumber, uint256 current);
    /// @notice The element is right: no fraud.
    error NotFraud(int256 claimed, int256 computed);
    /// @notice The job was not slashed by a fraud proof, or its reward is paid.
    error NoRewardHeld(JobId jobId);
    /// @notice Whoever has the reward announced no later.
    error NotEarlier(uint256 announcement, uint256 winner);
    /// @notice The caller has paid no fee for this job, or has it back.
    error NoFees(JobId jobId, address payer);

    /// @notice Demands that a node of the job's trace be opened. Costs `demandFee`, from an allowance for the job's court; tokens
    /// cost as much again for each 1,024 bytes of them.
    /// @dev A second demand for the same opening is possible only from nearer the root (a smaller depth): it lowers the
    /// depth, costs nothing and changes nothing else. Without it, an accomplice of the node could demand an opening at the
    /// greatest depth and so forbid its children.
    /// Tokens (layer 0: the prompt, 1: the answer) exist for receipts only, those of a job are in its transactions. They are
    /// demanded without a parent and lie at depth 0: whoever needs them to know what to demand next has all of the depth left.
    /// @param parent zero before the window closes; otherwise an answered opening of this job, of smaller rank, whose
    /// challenger's turn is not over; not necessarily the nearest one
    function demand(JobId jobId, OpeningId parent, Target calldata target, DemandProof calldata proof)
        external
        returns (OpeningId);

    /// @notice Answers a demand. Anybody may, except for operator lists.
    /// @param data kinds 0-3: the child hashes, concatenated; kind 4: the page's bytes; kind 5: all tokens
    function answer(
        JobId jobId,
        Target calldata target,
        bytes32 nodeHash,
        uint32 leafCount,
        uint32 byteLength,
        bytes calldata data
    ) external;

    /// @notice Slashes a job whose node let a demand pass its deadline. Anybody may call; the reward is the demander's.
    function timeout(JobId jobId, Target calldata target) external;

    /// @notice Commits the caller to a claim without telling it, so that a copied proof cannot take its reward.
    /// @param commitment see `commitmentOf`
    function announce(JobId jobId, bytes32 commitment) external;

    /// @notice Proves one element wrong and slashes the job. Reverts if it is right.
    /// @dev Possible until the job is final. Needs the position's operator list opened, and the announcement at least one
    /// block old.
    function proveFraud(JobId jobId, Claim calldata claim, bytes32 salt, Witness calldata witness) external;

    /// @notice Takes over the reward with an earlier announcement of the same claim, within `challengerTurn`.
    function contestReward(JobId jobId, bytes32 salt) external;

    /// @notice Pays the reward out after the contest. Anybody may call.
    function settleReward(JobId jobId) external;

    /// @notice Credits the caller's demand fees of a slashed job back.
    function reclaimFees(JobId jobId) external;

    /// @notice The id of a target's opening.
    function openingId(JobId jobId, Target calldata target) external pure returns (OpeningId);

    /// @notice An opening; all zero if nobody has demanded it.
    function opening(OpeningId id) external view returns (Opening memory);

    /// @notice The hash of the opened operator list of a position; zero before.
    function opListHash(JobId jobId, uint16 layer, uint32 row) external view returns (bytes32);

    /// @notice The parameters of this deployment.
    function params() external view returns (Params memory);

    /// @notice No unanswered demand and every challenger's turn is over.
    function settled(JobId jobId) external view returns (bool);

    /// @notice What to announce for a claim.
    function commitmentOf(JobId jobId, Claim calldata claim, address sender, bytes32 salt)
        external
        pure
        returns (bytes32);

    /// @notice Demand fees that the payer has paid for this job and not reclaimed.
    function feesPaid(JobId jobId, address payer) external view returns (uint256);

    /// @notice Who has the reward of a proven fraud, and until when it can be contested; zero without one.
    function rewardOf(JobId jobId) external view returns (address winner, uint40 contestEnd, bool paid);

    /// @notice The receipts.
    function trials() external view returns (address);

    /// @notice The jobs.
    function market() external view returns (address);

    /// @notice The models.
    function models() external view returns (address);

    /// @notice The judge.
    function stepVerifier() external view returns (address);
}
