// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IChallenges} from "./interfaces/IChallenges.sol";
import {ChannelState, IChannels, Part, Place, Receipt} from "./interfaces/IChannels.sol";
import {ICourt, JobId, JobState} from "./interfaces/ICourt.sol";
import {IModels} from "./interfaces/IModels.sol";
import {TraceContext} from "./interfaces/IStepVerifier.sol";
import {Fault, ITrials} from "./interfaces/ITrials.sol";
import {Receipts} from "./lib/Receipts.sol";
import {Sampling} from "./lib/Sampling.sol";
import {Tokens} from "./lib/Tokens.sol";
import {Trees} from "./lib/Trees.sol";

/// @title Trials
/// @notice See ITrials.
contract Trials is ITrials, ReentrancyGuardTransient {
    /// @inheritdoc ITrials
    address public immutable channels;
    /// @inheritdoc ITrials
    address public immutable models;
    /// @inheritdoc ICourt
    address public immutable challenges;

    uint40 private immutable _window;
    uint40 private immutable _lodgeTurn;
    uint128 private immutable _lodgeFee;

    /// A receipt on trial. Slots:
    ///     0  node 160 | state 8 | deadline 40 | nIn 32
    ///     1  lodger 160 | nOut 32 | sequence 64
    ///     2-6  channelId, modelId, inputHash, outputHash, layersRoot
    ///     7, 8  sampling, seed (written if they are not zero)
    ///     9  batchId 64 | fees u128
    ///     10 reward u128
    struct Case {
        address node;
        JobState state;
        uint40 deadline;
        uint32 nIn;
        address lodger;
        uint32 nOut;
        uint64 sequence;
        bytes32 channelId;
        bytes32 modelId;
        bytes32 inputHash;
        bytes32 outputHash;
        bytes32 layersRoot;
        uint256 sampling;
        bytes32 seed;
        uint64 batchId; // that waits for the trial; 0: none
        uint128 fees; // of demands
        uint128 reward;
    }

    mapping(JobId jobId => Case) private _cases;
    mapping(bytes32 digest => JobId) private _jobOf;
    uint256 private _nextJobId = Receipts.JOB_BIT | 1;

    constructor(address channels_, address models_, address challenges_) {
        channels = channels_;
        models = models_;
        challenges = challenges_;
        IChannels c = IChannels(channels_);
        if (c.trials() != address(this)) revert WrongTrials(c.trials(), address(this));
        IChannels.Params memory p = c.params();
        (_window, _lodgeTurn, _lodgeFee) = (p.window, p.lodgeTurn, p.receiptFee);
    }

    modifier onlyChallenges() {
        if (msg.sender != challenges) revert NotChallenges(msg.sender, challenges);
        _;
    }

    // --------------------------------------------------------------------------------------------------- trials

    /// @inheritdoc ITrials
    function lodge(Receipt calldata receipt, bytes calldata signature, Place calldata place)
        external
        nonReentrant
        returns (JobId jobId)
    {
        (bytes32 digest, address node) = IChannels(channels).signedReceipt(receipt, signature);
        if (JobId.unwrap(_jobOf[digest]) != 0) revert AlreadyLodged(digest, _jobOf[digest]);
        Fault fault = Receipts.fault(IModels(models), receipt);
        if (fault != Fault.None) revert Malformed(fault);
        jobId = JobId.wrap(_nextJobId++);
        _jobOf[digest] = jobId;
        Case storage t = _cases[jobId];
        t.state = JobState.Submitted;
        t.node = node;
        t.lodger = msg.sender;
        _write(t, receipt);
        // Whoever has not seen the receipt before has time from now on.
        uint40 deadline = _after(_window);
        if (place.batchId == 0) {
            _unredeemed(receipt.channelId, receipt.sequence);
        } else {
            // The channels call nobody; and nonReentrant.
            // slither-disable-next-line reentrancy-no-eth
            deadline = _attach(jobId, t, place);
            uint40 turn = _after(_lodgeTurn);
            if (deadline < turn) deadline = turn;
        }
        t.deadline = deadline;
        emit ReceiptLodged(jobId, digest, node, receipt, Receipts.traceRoot(receipt), deadline);
        IChannels(channels).takeFee(msg.sender, _lodgeFee);
    }

    /// Whether a receipt without a batch can still come into one, or could lately.
    function _unredeemed(bytes32 channelId, uint64 sequence) private view {
        IChannels.Channel memory c = IChannels(channels).channel(channelId);
        bool over = c.state == ChannelState.Closed && block.timestamp > c.closeAt + _window;
        if (over || sequence <= c.sequence) revert NotTriable(channelId, sequence, c.sequence);
    }

    function _write(Case storage t, Receipt calldata r) private {
        t.nIn = r.nIn;
        t.nOut = r.nOut;
        t.sequence = r.sequence;
        t.channelId = r.channelId;
        t.modelId = r.modelId;
        t.inputHash = r.inputHash;
        t.outputHash = r.outputHash;
        t.layersRoot = r.layersRoot;
        if (r.sampling != 0) t.sampling = r.sampling;
        if (Sampling.inverseTemperature(r.sampling) != 0) t.seed = r.seed;
    }

    /// @inheritdoc ITrials
    function attach(JobId jobId, Place calldata place) external nonReentrant {
        Case storage t = _inState(jobId, JobState.Submitted);
        if (t.batchId != 0) revert AlreadyAttached(jobId, t.batchId);
        _attach(jobId, t, place);
    }

    /// @return windowEnd of the batch
    function _attach(JobId jobId, Case storage t, Place calldata place) private returns (uint40 windowEnd) {
        t.batchId = uint64(place.batchId);
        emit TrialAttached(jobId, place.batchId);
        return IChannels(channels).hold(place, t.channelId, t.sequence);
    }

    /// @inheritdoc ITrials
    function acquit(JobId jobId) external nonReentrant {
        Case storage t = _inState(jobId, JobState.Submitted);
        if (block.timestamp <= t.deadline) revert TooEarly(block.timestamp, t.deadline);
        if (!IChallenges(challenges).settled(jobId)) revert TrialUnderChallenge(jobId);
        t.state = JobState.Final;
        uint128 fees = t.fees + _lodgeFee;
        t.fees = 0;
        emit TrialAcquitted(jobId, fees);
        if (t.batchId != 0) IChannels(channels).letGo(t.batchId);
        IChannels(channels).payFee(t.node, fees);
    }

    /// @inheritdoc ICourt
    function takeFee(address payer, JobId jobId, uint128 amount) external onlyChallenges nonReentrant {
        _inState(jobId, JobState.Submitted).fees += amount;
        IChannels(channels).takeFee(payer, amount);
    }

    /// @inheritdoc ICourt
    function refundFee(address payer, JobId jobId, uint128 amount) external onlyChallenges nonReentrant {
        Case storage t = _inState(jobId, JobState.Slashed);
        if (amount > t.fees) revert NotHeld(jobId, t.fees, amount);
        t.fees -= amount;
        IChannels(channels).payFee(payer, amount);
    }

    /// @inheritdoc ICourt
    function slash(JobId jobId) external onlyChallenges nonReentrant {
        Case storage t = _inState(jobId, JobState.Submitted);
        t.state = JobState.Slashed;
        IChannels(channels).payFee(t.lodger, _lodgeFee);
        t.reward = IChannels(channels).convict(t.channelId);
    }

    /// @inheritdoc ICourt
    function payReward(JobId jobId, address to) external onlyChallenges nonReentrant {
        Case storage t = _inState(jobId, JobState.Slashed);
        // Nothing, if the node was convicted before. The challenges contract asks once.
        uint128 reward = t.reward;
        t.reward = 0;
        IChannels(channels).payReward(to, reward);
    }

    // ---------------------------------------------------------------------------------------------- convictions

    /// @inheritdoc ITrials
    function convictOverclaim(Place calldata place, Receipt calldata receipt, bytes calldata signature)
        external
        nonReentrant
    {
        IChannels(channels).checkPlace(place);
        Part calldata part = place.part;
        if (receipt.channelId != part.channelId || receipt.sequence != part.last) {
            revert NotLast(receipt.channelId, receipt.sequence, part.channelId, part.last);
        }
        bytes32 digest = _signed(receipt, signature);
        if (part.cumulative <= receipt.cumulative) revert NotOverclaimed(part.cumulative, receipt.cumulative);
        emit OverclaimShown(place.batchId, digest);
        _convict(receipt.channelId);
    }

    /// @inheritdoc ITrials
    function convictEquivocation(
        Receipt calldata a,
        bytes calldata signatureA,
        Receipt calldata b,
        bytes calldata signatureB
    ) external nonReentrant {
        bytes32 first = _signed(a, signatureA);
        bytes32 second = _signed(b, signatureB);
        bool twice = a.sequence == b.sequence || a.request == b.request;
        if (a.channelId != b.channelId || !twice || first == second) {
            revert NoEquivocation(first, second);
        }
        emit EquivocationShown(first, second);
        _convict(a.channelId);
    }

    /// @inheritdoc ITrials
    function convictMalformed(
        Receipt calldata receipt,
        bytes calldata signature,
        bytes calldata input,
        bytes calldata output
    ) external nonReentrant {
        bytes32 digest = _signed(receipt, signature);
        Fault fault = Receipts.fault(IModels(models), receipt);
        if (fault == Fault.None && input.length != 0) {
            _sameTokens(input, receipt.inputHash);
            fault = Receipts.sequenceFault(IModels(models), receipt, input, receipt.nIn, false);
        }
        if (fault == Fault.None && output.length != 0) {
            _sameTokens(output, receipt.outputHash);
            fault = Receipts.sequenceFault(IModels(models), receipt, output, receipt.nOut, true);
        }
        if (fault == Fault.None) revert NotMalformed();
        emit MalformedShown(digest, fault);
        _convict(receipt.channelId);
    }

    /// Convicts the node of a channel; the reward is the caller's.
    function _convict(bytes32 channelId) private {
        uint128 reward = IChannels(channels).convict(channelId);
        IChannels(channels).payReward(msg.sender, reward);
    }

    /// The digest of a receipt that its channel's node has signed.
    function _signed(Receipt calldata receipt, bytes calldata signature) private view returns (bytes32 digest) {
        (digest,) = IChannels(channels).signedReceipt(receipt, signature);
    }

    function _sameTokens(bytes calldata tokens, bytes32 expected) private pure {
        if (!Tokens.isSequence(tokens)) revert TokensMismatch(0, expected);
        bytes32 actual = Trees.tokensHash(tokens);
        if (actual != expected) revert TokensMismatch(actual, expected);
    }

    // ---------------------------------------------------------------------------------------------------- views

    /// @inheritdoc ICourt
    function stateOf(JobId jobId) external view returns (JobState) {
        return _cases[jobId].state;
    }

    /// @inheritdoc ICourt
    function trial(JobId jobId) external view returns (Trial memory) {
        Case storage t = _cases[jobId];
        return Trial(t.state, t.deadline, t.nIn, t.nOut, t.node, t.modelId, t.layersRoot);
    }

    /// @inheritdoc ICourt
    function evidence(JobId jobId)
        external
        view
        returns (JobState state, bytes32 modelId, TraceContext memory context)
    {
        Case storage t = _cases[jobId];
        context = TraceContext(t.layersRoot, t.inputHash, t.outputHash, t.nIn, t.nOut, t.sampling, t.seed);
        return (t.state, t.modelId, context);
    }

    /// @inheritdoc ITrials
    function batchOf(JobId jobId) external view returns (uint256) {
        return _cases[jobId].batchId;
    }

    /// @inheritdoc ITrials
    function jobOf(bytes32 digest) external view returns (JobId) {
        return _jobOf[digest];
    }

    /// @inheritdoc ITrials
    function nextJobId() external view returns (uint256) {
        return _nextJobId;
    }

    // --------------------------------------------------------------------------------------------------- checks

    function _inState(JobId jobId, JobState expected) private view returns (Case storage t) {
        t = _cases[jobId];
        if (t.state != expected) revert WrongState(jobId, t.state, expected);
    }

    function _after(uint40 delay) private view returns (uint40) {
        return uint40(block.timestamp) + delay;
    }
}
