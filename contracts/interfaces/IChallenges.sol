// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {JobId} from "./IMarket.sol";
import {Claim, Witness} from "./IStepVerifier.sol";

type OpeningId is bytes32;

enum TargetKind {
    Layers,
    Positions,
    OpList,
    Pages,
    Page
}

struct Target {
    TargetKind kind;
    uint16 layer;
    uint32 row;
    uint16 op;
    uint8 level;
    uint32 index;
}

interface IChallenges {
    enum OpeningState {
        None,
        Demanded,
        Answered
    }

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

    /// what a demand must prove; unused fields are empty
    struct DemandProof {
        bytes32 nodeHash; // the hash of the targeted node
        bytes32[] path; // from the node up to layersRoot (kinds 0-2: path in R_layer, then in the layers tree) or to opRoots[op] (kinds 3, 4)
        bytes32[] opRoots; // kinds 3, 4
        bytes descriptor; // kinds 3, 4: of operator op
        bytes32[] descriptorProof;
    }

    event Demanded(JobId indexed jobId, OpeningId indexed openingId, address indexed payer, Target target, bytes32 nodeHash, uint32 leafCount, uint32 byteLength, uint8 depth, uint40 deadline);
    event Answered(JobId indexed jobId, OpeningId indexed openingId, address indexed by, Target target, bytes data);
    event Announced(JobId indexed jobId, address indexed by, bytes32 commitment);
    event FraudProven(JobId indexed jobId, address indexed by, Claim claim, int256 claimed, int256 computed);
    event TimedOut(JobId indexed jobId, OpeningId indexed openingId, address indexed payer);
    event RewardContested(JobId indexed jobId, address indexed by);
    event RewardSettled(JobId indexed jobId, address indexed to);
    event FeesReclaimed(JobId indexed jobId, address indexed payer, uint256 amount);

    /// @param parent zero before the window closes
    function demand(JobId jobId, OpeningId parent, Target calldata target, DemandProof calldata proof) external returns (OpeningId);
    /// @param data kinds 0-3: the child hashes, concatenated; kind 4: the page's bytes
    function answer(JobId jobId, Target calldata target, bytes32 nodeHash, uint32 leafCount, uint32 byteLength, bytes calldata data) external;
    function timeout(JobId jobId, Target calldata target) external;
    function announce(JobId jobId, bytes32 commitment) external;
    function proveFraud(JobId jobId, Claim calldata claim, bytes32 salt, Witness calldata witness) external;
    function contestReward(JobId jobId, bytes32 salt) external;
    function settleReward(JobId jobId) external;
    function reclaimFees(JobId jobId) external;

    function openingId(JobId jobId, Target calldata target) external pure returns (OpeningId);
    function opening(OpeningId openingId) external view returns (Opening memory);
    function opListHash(JobId jobId, uint16 layer, uint32 row) external view returns (bytes32);
    function params() external view returns (Params memory);
    /// @notice no unanswered demand and every challenger's turn is over
    function settled(JobId jobId) external view returns (bool);
    function commitmentOf(JobId jobId, Claim calldata claim, address sender, bytes32 salt) external pure returns (bytes32);
}
