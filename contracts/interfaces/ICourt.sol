// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {TraceContext} from "./IStepVerifier.sol";

/// @dev Bit 127 says whose it is: clear for a job of the market, set for a receipt on trial. Fits u128.
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

/// @title ICourt
/// @notice What the challenges contract needs of whoever holds a job and the money around it: the market for jobs, the
/// trials for receipts. A job can be challenged while it is Submitted, and ends Final or Slashed.
/// @dev Trust: `challenges` is fixed at construction and is the only caller of the four functions that move money.
interface ICourt {
    /// @notice What a challenge needs of a job.
    struct Trial {
        JobState state;
        uint40 deadline; // demands without a parent: by
        uint32 nIn;
        uint32 nOut;
        address node;
        bytes32 modelId;
        bytes32 layersRoot;
    }

    /// @notice A job's state.
    function stateOf(JobId jobId) external view returns (JobState);

    /// @notice The part of a job that a demand needs.
    function trial(JobId jobId) external view returns (Trial memory);

    /// @notice The part of a job that a judgement needs.
    function evidence(JobId jobId) external view returns (JobState state, bytes32 modelId, TraceContext memory context);

    /// @notice The only caller of the four functions below.
    function challenges() external view returns (address);

    /// @notice Challenges only: takes a demand fee from the payer's allowance.
    function takeFee(address payer, JobId jobId, uint128 amount) external;

    /// @notice Challenges only: credits the fees of a slashed job back to who paid them.
    function refundFee(address payer, JobId jobId, uint128 amount) external;

    /// @notice Challenges only: slashes the job; the reward is held until `payReward`.
    function slash(JobId jobId) external;

    /// @notice Challenges only: credits the reward of a slashed job.
    function payReward(JobId jobId, address to) external;
}
