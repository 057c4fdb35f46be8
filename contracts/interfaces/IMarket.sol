// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

type JobId is uint256;

enum JobState {
    None,
    Open,
    Assigned,
    Submitted,
    Final,
    Expired,
    Cancelled,
    Slashed
}

interface IMarket {
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
        uint128 escrow; // what the user paid in
        uint128 bond;
        uint128 perInputToken;
        uint128 perOutputToken;
    }

    struct Params {
        uint40 acceptTimeout;
        uint40 submitTimeout;
        uint40 challengeWindow;
        uint128 minBond;
        uint16 bondFactorBps; // bond = max(minBond, escrow * factor / 10000)
        uint16 latePenaltyBps; // of the bond, to the user
        uint16 userShareBps; // of a slashed bond
        uint16 challengerShareBps; // of a slashed bond; the rest is burned
    }

    event JobCreated(JobId indexed jobId, address indexed user, address indexed node, bytes32 modelId, uint32 maxNew, uint128 escrow, bytes promptTokens);
    event JobAccepted(JobId indexed jobId, address indexed node, uint128 bond, uint40 deadline);
    event ResultSubmitted(JobId indexed jobId, address indexed node, bytes outputTokens, bytes32 layersRoot, bytes32 traceRoot, uint40 windowEnd);
    event JobFinalized(JobId indexed jobId, uint256 paid, uint256 refunded);
    event JobExpired(JobId indexed jobId, uint256 refunded, uint256 penalty);
    event JobCancelled(JobId indexed jobId, uint256 refunded);
    event JobSlashed(JobId indexed jobId, address indexed node, uint256 bond, uint256 refunded, uint256 compensation, uint256 reward, uint256 burned);
    event Credited(address indexed account, uint256 amount, JobId indexed jobId);
    event Withdrawn(address indexed account, uint256 amount);

    /// @param node zero: open to any node whose ask is at or under maxPrice
    /// @param promptTokens big-endian u32 each
    function createJob(bytes32 modelId, address node, bytes calldata promptTokens, uint32 maxNew, uint128 maxPrice) external returns (JobId);
    function acceptJob(JobId jobId) external;
    function cancelJob(JobId jobId) external;
    function submitResult(JobId jobId, bytes calldata outputTokens, bytes32 layersRoot) external;
    function expire(JobId jobId) external;
    function finalize(JobId jobId) external;
    function withdraw() external returns (uint256);

    function job(JobId jobId) external view returns (Job memory);
    function nextJobId() external view returns (uint256);
    function params() external view returns (Params memory);
    function traceRoot(JobId jobId) external view returns (bytes32);
    function quote(bytes32 modelId, address node, uint32 nIn, uint32 maxNew) external view returns (uint256);
    function withdrawable(address account) external view returns (uint256);
    function totalEscrow() external view returns (uint256);
    function totalWithdrawable() external view returns (uint256);
    function totalFees() external view returns (uint256);
    function totalRewards() external view returns (uint256);

    // Challenges only
    function takeFee(address payer, JobId jobId, uint128 amount) external;
    function refundFee(address payer, JobId jobId, uint128 amount) external;
    /// slashes the job; the reward is held until payReward
    function slash(JobId jobId) external;
    function payReward(JobId jobId, address to) external;
}
