// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Place, Receipt} from "./IChannels.sol";
import {ICourt, JobId, JobState} from "./ICourt.sol";

/// @notice Why a receipt cannot be honest, whatever its trace.
enum Fault {
    None,
    Model, // not registered
    Length, // no prompt, no answer, or an answer longer than asked for
    Positions, // more than the model or the instruction set has
    Sampling, // parameters that no job could have
    Count, // a sequence of another length than the receipt says
    Vocabulary, // a token that the model does not have
    Stop // a stop token before the last
}

/// @title ITrials
/// @notice The court of receipts. A receipt that was lodged is a job to the challenges contract: whoever proves one element of its
/// trace wrong, or asks for what the node does not show, convicts the node. What is wrong without a trace is shown here directly.
/// Holds no money: fees and rewards are with the channels, from whose allowance fees are taken.
/// @dev A conviction takes the node's whole stake but the bonds of the market's jobs, once. The user of the receipt, whoever showed
/// it and the burn have their shares; the pending batches of all users of the node are void.
///
/// Ids have bit 63 set and count up from there. A trial is in the state Submitted, Final (acquitted) or Slashed.
interface ITrials is ICourt {
    event ReceiptLodged(
        JobId indexed jobId,
        bytes32 indexed digest,
        address indexed node,
        Receipt receipt,
        bytes32 traceRoot,
        uint40 deadline
    );
    event TrialAttached(JobId indexed jobId, uint256 indexed batchId);
    event TrialAcquitted(JobId indexed jobId, uint256 fees);
    event OverclaimShown(uint256 indexed batchId, bytes32 indexed digest);
    event EquivocationShown(bytes32 indexed first, bytes32 indexed second);
    event MalformedShown(bytes32 indexed digest, Fault fault);

    /// @notice A contract given at construction is wired to another one.
    error WrongTrials(address actual, address expected);
    /// @notice The deadline has not passed; try again after it.
    error TooEarly(uint256 time, uint256 deadline);
    /// @notice Only the challenges contract may do this.
    error NotChallenges(address actual, address expected);
    /// @notice The receipt has been lodged.
    error AlreadyLodged(bytes32 digest, JobId jobId);
    /// @notice The receipt was redeemed, so its batch must be named; or its channel was closed longer than a window ago.
    error NotTriable(bytes32 channelId, uint64 sequence, uint64 redeemed);
    /// @notice The receipt has a fault that no trial is needed for; show it.
    error Malformed(Fault fault);
    /// @notice The receipt has no fault that these tokens show.
    error NotMalformed();
    /// @notice The tokens are not those of the receipt, or no whole tokens.
    error TokensMismatch(bytes32 actual, bytes32 expected);
    /// @notice The receipt is not the last of the part.
    error NotLast(bytes32 channelId, uint64 sequence, bytes32 partChannelId, uint64 last);
    /// @notice The batch claims no more than the receipt says.
    error NotOverclaimed(uint128 claimed, uint128 cumulative);
    /// @notice The receipts are of different requests, or the same.
    error NoEquivocation(bytes32 first, bytes32 second);
    /// @notice The trial is not in the state that this call needs. None: no such trial.
    error WrongState(JobId jobId, JobState actual, JobState expected);
    /// @notice The trial counts for a batch already.
    error AlreadyAttached(JobId jobId, uint256 batchId);
    /// @notice A demand of the trial is unanswered or a challenger's turn is not over.
    error TrialUnderChallenge(JobId jobId);
    /// @notice More than what this trial holds. The challenges contract never asks for it.
    error NotHeld(JobId jobId, uint256 held, uint256 asked);

    // --------------------------------------------------------------------------------------------------- trials

    /// @notice Brings a receipt to trial: from now on it can be challenged like a job. Costs `receiptFee`, from an allowance: the
    /// node's if it is acquitted, otherwise back. A receipt is lodged once.
    /// @dev Possible until the receipt's batch is over, or, if it was not redeemed, until a window after its channel was closed. A
    /// node keeps the tokens of an answer as long: nobody can ask for them later.
    /// @param place the part of a pending batch that holds the receipt, so that the batch waits; a batchId of zero: none
    function lodge(Receipt calldata receipt, bytes calldata signature, Place calldata place) external returns (JobId);

    /// @notice Makes a pending batch wait for a trial that was lodged before, without it.
    function attach(JobId jobId, Place calldata place) external;

    /// @notice Ends a trial that nobody has won in time; its fees are the node's. Anybody may call.
    function acquit(JobId jobId) external;

    // ---------------------------------------------------------------------------------------------- convictions

    /// @notice Convicts a node that claimed more than its last receipt says. The reward is the caller's, as with the next two.
    function convictOverclaim(Place calldata place, Receipt calldata receipt, bytes calldata signature) external;

    /// @notice Convicts a node that signed two receipts for one request.
    function convictEquivocation(
        Receipt calldata a,
        bytes calldata signatureA,
        Receipt calldata b,
        bytes calldata signatureB
    ) external;

    /// @notice Convicts a node that signed a receipt that no honest run gives, whatever the trace: see `Fault`.
    /// @param input the prompt, output the answer, big-endian u32 each; a sequence that is not needed may be left empty
    function convictMalformed(
        Receipt calldata receipt,
        bytes calldata signature,
        bytes calldata input,
        bytes calldata output
    ) external;

    // ---------------------------------------------------------------------------------------------------- views

    /// @notice The batch that waits for a trial; zero: none.
    function batchOf(JobId jobId) external view returns (uint256);

    /// @notice The trial of a receipt; zero before it is lodged.
    function jobOf(bytes32 digest) external view returns (JobId);

    /// @notice The id that the next trial will have.
    function nextJobId() external view returns (uint256);

    /// @notice The models.
    function models() external view returns (address);

    /// @notice The channels.
    function channels() external view returns (address);
}
