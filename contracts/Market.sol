// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IChallenges} from "./interfaces/IChallenges.sol";
import {ICourt, JobId, JobState} from "./interfaces/ICourt.sol";
import {IMarket} from "./interfaces/IMarket.sol";
import {IModels} from "./interfaces/IModels.sol";
import {INodes} from "./interfaces/INodes.sol";
import {TraceContext} from "./interfaces/IStepVerifier.sol";
import {Programs} from "./lib/Programs.sol";
import {Sampling} from "./lib/Sampling.sol";
import {Tokens} from "./lib/Tokens.sol";
import {Trees} from "./lib/Trees.sol";

/// @title Market
/// @notice See IMarket.
contract Market is IMarket, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    /// @notice the instruction set's proofs of range hold for positions below this
    uint32 public constant MAX_POSITIONS = Programs.MAX_POSITIONS;
    /// @notice where the burned part of a slash goes: nobody has its key, and an ERC-20 need not have a burn function
    address public constant BURN = 0x000000000000000000000000000000000000dEaD;

    uint256 private constant BPS = 10_000;

    /// @inheritdoc IMarket
    address public immutable token;
    /// @inheritdoc IMarket
    address public immutable models;
    /// @inheritdoc IMarket
    address public immutable nodes;
    /// @inheritdoc ICourt
    address public immutable challenges;

    uint40 private immutable _acceptTimeout;
    uint40 private immutable _auctionTime;
    uint40 private immutable _submitTimeout;
    uint40 private immutable _challengeWindow;
    uint128 private immutable _minBond;
    uint16 private immutable _bondFactorBps;
    uint16 private immutable _latePenaltyBps;
    uint16 private immutable _userShareBps;
    uint16 private immutable _challengerShareBps;

    /// What a job holds besides its escrow.
    struct Held {
        uint128 fees;
        uint128 reward;
    }

    /// Sums of what this contract owes, by reason; together they are its token balance.
    struct Totals {
        uint128 escrow;
        uint128 withdrawable;
        uint128 fees;
        uint128 rewards;
    }

    mapping(JobId jobId => Job) private _jobs;
    mapping(JobId jobId => Held) private _held;
    mapping(address account => uint256) private _withdrawable;
    Totals private _totals;
    uint256 private _nextJobId = 1;

    constructor(address token_, address models_, address nodes_, address challenges_, Params memory p) {
        token = token_;
        models = models_;
        nodes = nodes_;
        challenges = challenges_;

        _inRange("acceptTimeout", p.acceptTimeout, 1, type(uint32).max);
        // Whoever is content with the ceiling alone still finds the job open.
        _inRange("auctionTime", p.auctionTime, 0, p.acceptTimeout);
        _inRange("submitTimeout", p.submitTimeout, 1, type(uint32).max);
        _inRange("challengeWindow", p.challengeWindow, 1, type(uint32).max);
        _inRange("latePenaltyBps", p.latePenaltyBps, 0, BPS);
        _inRange("challengerShareBps", p.challengerShareBps, 1, BPS - 1);
        // The share of the smallest bond is not rounded to nothing.
        _inRange("minBond", p.minBond, (BPS - 1) / p.challengerShareBps + 1, type(uint128).max);
        // Something is burned of every bond, so a node that is its own user and challenger loses by a slash.
        _inRange("userShareBps", p.userShareBps, 0, BPS - 1 - p.challengerShareBps);

        _acceptTimeout = p.acceptTimeout;
        _auctionTime = p.auctionTime;
        _submitTimeout = p.submitTimeout;
        _challengeWindow = p.challengeWindow;
        _minBond = p.minBond;
        _bondFactorBps = p.bondFactorBps;
        _latePenaltyBps = p.latePenaltyBps;
        _userShareBps = p.userShareBps;
        _challengerShareBps = p.challengerShareBps;
    }

    modifier onlyChallenges() {
        if (msg.sender != challenges) revert NotChallenges(msg.sender, challenges);
        _;
    }

    // ------------------------------------------------------------------------------------------------------ buy

    /// @inheritdoc IMarket
    function createJob(
        bytes32 modelId,
        address node,
        bytes calldata promptTokens,
        uint32 maxNew,
        uint128 maxPrice,
        uint256 sampling,
        bytes32 userSeed
    ) external nonReentrant returns (JobId jobId) {
        jobId = JobId.wrap(_nextJobId++);
        Job storage j = _jobs[jobId];
        j.user = msg.sender;
        j.modelId = modelId;
        j.maxNew = maxNew;
        j.nIn = _checkPrompt(modelId, promptTokens, maxNew);
        j.inputHash = Trees.tokensHash(promptTokens);
        bytes32 seed = sampling == 0 ? bytes32(0) : _setRun(jobId, j, sampling, userSeed);

        _hold(j, node, maxPrice);
        _created(jobId, node, sampling, seed, promptTokens);
        if (node != address(0)) _assign(jobId, j, node);
        _pull(msg.sender, j.escrow);
    }

    /// Checks and stores how a job samples; fixes the seed, if noise needs one.
    function _setRun(JobId jobId, Job storage j, uint256 sampling, bytes32 userSeed) private returns (bytes32 seed) {
        Sampling.check(sampling);
        if (!IModels(models).samples(j.modelId)) revert GreedyModel(j.modelId);
        j.sampling = sampling;
        if (Sampling.inverseTemperature(sampling) == 0) return 0;
        // Nobody knows both hashes of the block when the user signs. The block before counts as well, because chains exist whose
        // PREVRANDAO is a constant.
        seed = keccak256(
            abi.encode(block.chainid, address(this), jobId, userSeed, block.prevrandao, blockhash(block.number - 1))
        );
        j.seed = seed;
    }

    /// Sets what of the ceiling the job holds: all while it is open, else the price at the node's ask.
    function _hold(Job storage j, address node, uint128 maxPrice) private {
        uint128 escrow = maxPrice;
        if (node == address(0)) {
            j.state = JobState.Open;
            j.deadline = _after(_acceptTimeout);
        } else {
            INodes.Ask memory ask;
            (ask, escrow) = _askUnder(maxPrice, node, j.modelId, j.nIn, j.maxNew);
            j.perInputToken = ask.perInputToken;
            j.perOutputToken = ask.perOutputToken;
        }
        j.escrow = escrow;
        _totals.escrow += escrow;
    }

    function _created(JobId jobId, address node, uint256 sampling, bytes32 seed, bytes calldata promptTokens) private {
        Job storage j = _jobs[jobId];
        emit JobCreated(jobId, msg.sender, node, j.modelId, j.maxNew, j.escrow, sampling, seed, promptTokens);
    }

    /// @inheritdoc IMarket
    function cancelJob(JobId jobId) external nonReentrant {
        Job storage j = _inState(jobId, JobState.Open);
        if (msg.sender != j.user) revert NotUser(jobId, msg.sender, j.user);
        j.state = JobState.Cancelled;
        emit JobCancelled(jobId, j.escrow);
        _endEscrow(jobId, j.user, j.escrow);
    }

    // ---------------------------------------------------------------------------------------------------- serve

    /// @inheritdoc IMarket
    function acceptJob(JobId jobId, uint128 perInputToken, uint128 perOutputToken) external nonReentrant {
        Job storage j = _inState(jobId, JobState.Open);
        _notAfter(jobId, j.deadline);
        uint128 price = _under(_offer(j), _price(perInputToken, perOutputToken, j.nIn, j.maxNew));
        uint128 rest = j.escrow - price;
        j.escrow = price;
        j.perInputToken = perInputToken;
        j.perOutputToken = perOutputToken;
        _endEscrow(jobId, j.user, rest);
        _assign(jobId, j, msg.sender);
    }

    /// @inheritdoc IMarket
    function offerFor(JobId jobId) external view returns (uint256) {
        Job storage j = _jobs[jobId];
        return j.state == JobState.Open ? _offer(j) : 0;
    }

    /// What an open job pays now.
    function _offer(Job storage j) private view returns (uint256) {
        uint256 age = block.timestamp + _acceptTimeout - j.deadline;
        return age < _auctionTime ? uint256(j.escrow) * age / _auctionTime : j.escrow;
    }

    /// @inheritdoc IMarket
    function submitResult(JobId jobId, bytes32 order, bytes calldata outputTokens, bytes32 layersRoot)
        external
        nonReentrant
    {
        Job storage j = _inState(jobId, JobState.Assigned);
        if (msg.sender != j.node) revert NotNode(jobId, msg.sender, j.node);
        _notAfter(jobId, j.deadline);
        bytes32 expected = _orderHash(j);
        if (order != expected) revert OrderMismatch(jobId, order, expected);
        j.nOut = _checkAnswer(j.modelId, outputTokens, j.maxNew);
        j.outputHash = Trees.tokensHash(outputTokens);
        j.layersRoot = layersRoot;
        j.state = JobState.Submitted;
        j.deadline = _after(_challengeWindow);
        emit ResultSubmitted(jobId, msg.sender, outputTokens, layersRoot, _traceRoot(j), j.deadline);
    }

    function _assign(JobId jobId, Job storage j, address node) private {
        uint256 scaled = uint256(j.escrow) * _bondFactorBps / BPS;
        uint128 bond = scaled > _minBond ? scaled.toUint128() : _minBond;
        j.state = JobState.Assigned;
        j.node = node;
        j.deadline = _after(_submitTimeout);
        j.bond = bond;
        emit JobAccepted(jobId, node, bond, j.deadline);
        INodes(nodes).lockBond(node, bond);
    }

    // ------------------------------------------------------------------------------------------------------ end

    /// @inheritdoc IMarket
    function expire(JobId jobId) external nonReentrant {
        Job storage j = _jobs[jobId];
        JobState state = j.state;
        if (state != JobState.Open && state != JobState.Assigned) revert WrongState(jobId, state, JobState.Assigned);
        _onlyAfter(jobId, j.deadline);
        j.state = JobState.Expired;
        uint128 penalty = state == JobState.Open ? 0 : uint128(uint256(j.bond) * _latePenaltyBps / BPS);
        emit JobExpired(jobId, j.escrow, penalty);
        _endEscrow(jobId, j.user, j.escrow);
        _credit(jobId, j.user, penalty);
        if (state == JobState.Assigned) INodes(nodes).takeBond(j.node, j.bond, penalty, false);
    }

    /// @inheritdoc IMarket
    function finalize(JobId jobId) external nonReentrant {
        Job storage j = _inState(jobId, JobState.Submitted);
        _onlyAfter(jobId, j.deadline);
        if (!IChallenges(challenges).settled(jobId)) revert UnderChallenge(jobId);
        j.state = JobState.Final;

        // The escrow is the price of the longest answer and this one is no longer, so nothing overflows.
        uint128 escrow = j.escrow;
        uint128 paid = j.nIn * j.perInputToken + j.nOut * j.perOutputToken;
        emit JobFinalized(jobId, paid, escrow - paid);
        _totals.escrow -= escrow;
        _credit(jobId, j.user, escrow - paid);

        uint128 fees = _held[jobId].fees;
        if (fees != 0) {
            _held[jobId].fees = 0;
            _totals.fees -= fees;
        }
        _credit(jobId, j.node, uint256(paid) + fees);
        INodes(nodes).releaseBond(j.node, j.bond, true);
    }

    /// @inheritdoc IMarket
    function withdraw() external nonReentrant returns (uint256 amount) {
        amount = _withdrawable[msg.sender];
        if (amount == 0) revert NothingToWithdraw(msg.sender);
        _withdrawable[msg.sender] = 0;
        _totals.withdrawable -= uint128(amount);
        emit Withdrawn(msg.sender, amount);
        IERC20(token).safeTransfer(msg.sender, amount);
    }

    // ----------------------------------------------------------------------------------------------- challenges

    /// @inheritdoc ICourt
    function takeFee(address payer, JobId jobId, uint128 amount) external onlyChallenges nonReentrant {
        _inState(jobId, JobState.Submitted);
        _held[jobId].fees += amount;
        _totals.fees += amount;
        _pull(payer, amount);
    }

    /// @inheritdoc ICourt
    function refundFee(address payer, JobId jobId, uint128 amount) external onlyChallenges nonReentrant {
        _inState(jobId, JobState.Slashed);
        Held storage h = _held[jobId];
        if (amount > h.fees) revert NotHeld(jobId, h.fees, amount);
        h.fees -= amount;
        _totals.fees -= amount;
        _credit(jobId, payer, amount);
    }

    /// @inheritdoc ICourt
    function slash(JobId jobId) external onlyChallenges nonReentrant {
        Job storage j = _inState(jobId, JobState.Submitted);
        j.state = JobState.Slashed;
        uint128 bond = j.bond;
        uint128 compensation = uint128(uint256(bond) * _userShareBps / BPS);
        uint128 reward = uint128(uint256(bond) * _challengerShareBps / BPS);
        // The remainder, not a share: what rounding leaves is burned.
        uint128 burned = bond - compensation - reward;
        emit JobSlashed(jobId, j.node, bond, j.escrow, compensation, reward, burned);

        _held[jobId].reward = reward;
        _totals.rewards += reward;
        _endEscrow(jobId, j.user, j.escrow);
        _credit(jobId, j.user, compensation);
        INodes(nodes).takeBond(j.node, bond, bond, true);
        IERC20(token).safeTransfer(BURN, burned);
    }

    /// @inheritdoc ICourt
    function payReward(JobId jobId, address to) external onlyChallenges nonReentrant {
        _inState(jobId, JobState.Slashed);
        uint128 reward = _held[jobId].reward;
        if (reward == 0) revert NotHeld(jobId, 0, 1);
        _held[jobId].reward = 0;
        _totals.rewards -= reward;
        _credit(jobId, to, reward);
    }

    // ---------------------------------------------------------------------------------------------------- views

    /// @inheritdoc IMarket
    function job(JobId jobId) external view returns (Job memory) {
        return _jobs[jobId];
    }

    /// @inheritdoc ICourt
    function stateOf(JobId jobId) external view returns (JobState) {
        return _jobs[jobId].state;
    }

    /// @inheritdoc ICourt
    function trial(JobId jobId) external view returns (Trial memory) {
        Job storage j = _jobs[jobId];
        return Trial(j.state, j.deadline, j.nIn, j.nOut, j.node, j.modelId, j.layersRoot);
    }

    /// @inheritdoc ICourt
    function evidence(JobId jobId)
        external
        view
        returns (JobState state, bytes32 modelId, TraceContext memory context)
    {
        Job storage j = _jobs[jobId];
        context = TraceContext(j.layersRoot, j.inputHash, j.outputHash, j.nIn, j.nOut, j.sampling, j.seed);
        return (j.state, j.modelId, context);
    }

    /// @inheritdoc IMarket
    function nextJobId() external view returns (uint256) {
        return _nextJobId;
    }

    /// @inheritdoc IMarket
    function params() external view returns (Params memory) {
        return Params(
            _acceptTimeout,
            _auctionTime,
            _submitTimeout,
            _challengeWindow,
            _minBond,
            _bondFactorBps,
            _latePenaltyBps,
            _userShareBps,
            _challengerShareBps
        );
    }

    /// @inheritdoc IMarket
    function orderHash(JobId jobId) external view returns (bytes32) {
        Job storage j = _jobs[jobId];
        return j.nIn == 0 ? bytes32(0) : _orderHash(j);
    }

    /// @inheritdoc IMarket
    function traceRoot(JobId jobId) external view returns (bytes32) {
        Job storage j = _jobs[jobId];
        return j.nOut == 0 ? bytes32(0) : _traceRoot(j);
    }

    /// @inheritdoc IMarket
    function quote(bytes32 modelId, address node, uint32 nIn, uint32 maxNew) external view returns (uint256 price) {
        (, price) = _ask(node, modelId, nIn, maxNew);
    }

    /// @inheritdoc IMarket
    function withdrawable(address account) external view returns (uint256) {
        return _withdrawable[account];
    }

    /// @inheritdoc IMarket
    function totalEscrow() external view returns (uint256) {
        return _totals.escrow;
    }

    /// @inheritdoc IMarket
    function totalWithdrawable() external view returns (uint256) {
        return _totals.withdrawable;
    }

    /// @inheritdoc IMarket
    function totalFees() external view returns (uint256) {
        return _totals.fees;
    }

    /// @inheritdoc IMarket
    function totalRewards() external view returns (uint256) {
        return _totals.rewards;
    }

    // --------------------------------------------------------------------------------------------------- checks

    function _inState(JobId jobId, JobState expected) private view returns (Job storage j) {
        j = _jobs[jobId];
        if (j.state != expected) revert WrongState(jobId, j.state, expected);
    }

    function _notAfter(JobId jobId, uint40 deadline) private view {
        if (block.timestamp > deadline) revert TooLate(jobId, block.timestamp, deadline);
    }

    function _onlyAfter(JobId jobId, uint40 deadline) private view {
        if (block.timestamp <= deadline) revert TooEarly(jobId, block.timestamp, deadline);
    }

    function _after(uint40 delay) private view returns (uint40) {
        return uint40(block.timestamp) + delay;
    }

    /// A node's ask, and what the longest answer costs at it.
    function _ask(address node, bytes32 modelId, uint32 nIn, uint32 maxNew)
        private
        view
        returns (INodes.Ask memory ask, uint256 price)
    {
        ask = INodes(nodes).ask(node, modelId);
        if (ask.maxTokens == 0) revert NotOffered(node, modelId);
        uint256 tokens = uint256(nIn) + maxNew;
        if (tokens > ask.maxTokens) revert MoreThanOffered(tokens, ask.maxTokens);
        price = _price(ask.perInputToken, ask.perOutputToken, nIn, maxNew);
    }

    /// Of a prompt and the longest answer.
    function _price(uint256 perInputToken, uint256 perOutputToken, uint32 nIn, uint32 maxNew)
        private
        pure
        returns (uint256)
    {
        return nIn * perInputToken + maxNew * perOutputToken;
    }

    function _under(uint256 ceiling, uint256 price) private pure returns (uint128) {
        if (price > ceiling) revert PriceOverCeiling(price, ceiling);
        // No ceiling is more.
        return uint128(price);
    }

    function _askUnder(uint128 maxPrice, address node, bytes32 modelId, uint32 nIn, uint32 maxNew)
        private
        view
        returns (INodes.Ask memory ask, uint128)
    {
        uint256 price;
        (ask, price) = _ask(node, modelId, nIn, maxNew);
        return (ask, _under(maxPrice, price));
    }

    function _checkPrompt(bytes32 modelId, bytes calldata tokens, uint32 maxNew) private view returns (uint32) {
        (, uint32 vocab, uint32 maxPositions) = IModels(models).dimensions(modelId);
        if (maxNew == 0) revert NoNewTokens();
        uint256 nIn = _countTokens(tokens);
        // The last token is selected but not run.
        uint256 positions = nIn + maxNew - 1;
        uint256 limit = maxPositions < MAX_POSITIONS ? maxPositions : MAX_POSITIONS;
        if (positions > limit) revert TooManyPositions(positions, limit);
        for (uint256 i; i < nIn; ++i) {
            uint32 tok = Tokens.at(tokens, i);
            if (tok >= vocab) revert TokenOutOfVocabulary(i, tok, vocab);
        }
        return uint32(nIn);
    }

    function _checkAnswer(bytes32 modelId, bytes calldata tokens, uint32 maxNew) private view returns (uint32) {
        (, uint32 vocab,) = IModels(models).dimensions(modelId);
        uint32[] memory stops = IModels(models).stopTokens(modelId);
        uint256 nOut = _countTokens(tokens);
        if (nOut > maxNew) revert AnswerTooLong(nOut, maxNew);
        for (uint256 i; i < nOut; ++i) {
            uint32 tok = Tokens.at(tokens, i);
            if (tok >= vocab) revert TokenOutOfVocabulary(i, tok, vocab);
            bool stop = Tokens.isStop(tok, stops);
            if (i + 1 < nOut) {
                if (stop) revert StopTokenTooEarly(i, tok);
            } else if (!stop && nOut != maxNew) {
                revert StopTokenMissing(nOut, maxNew, tok);
            }
        }
        return uint32(nOut);
    }

    function _countTokens(bytes calldata tokens) private pure returns (uint256) {
        if (!Tokens.isSequence(tokens)) revert TokenBytes(tokens.length);
        return tokens.length / 4;
    }

    function _orderHash(Job storage j) private view returns (bytes32) {
        uint256 sampling = j.sampling;
        bytes32 seed = Sampling.inverseTemperature(sampling) == 0 ? bytes32(0) : j.seed;
        return keccak256(abi.encodePacked(Trees.TAG_ORDER, j.modelId, j.inputHash, j.maxNew, sampling, seed));
    }

    function _traceRoot(Job storage j) private view returns (bytes32) {
        return keccak256(
            abi.encodePacked(Trees.TAG_TRACE, j.modelId, j.inputHash, j.outputHash, j.nIn + j.nOut - 1, j.layersRoot)
        );
    }

    function _inRange(string memory name, uint256 actual, uint256 min, uint256 max) private pure {
        if (actual < min || actual > max) revert ParameterOutOfRange(name, actual, min, max);
    }

    // ---------------------------------------------------------------------------------------------------- money

    function _pull(address from, uint128 amount) private {
        IERC20 t = IERC20(token);
        uint256 before = t.balanceOf(address(this));
        t.safeTransferFrom(from, address(this), amount);
        uint256 received = t.balanceOf(address(this)) - before;
        if (received != amount) revert TransferMismatch(received, amount);
    }

    function _endEscrow(JobId jobId, address user, uint128 amount) private {
        _totals.escrow -= amount;
        _credit(jobId, user, amount);
    }

    function _credit(JobId jobId, address account, uint256 amount) private {
        if (amount == 0) return;
        _withdrawable[account] += amount;
        _totals.withdrawable += amount.toUint128();
        emit Credited(account, amount, jobId);
    }
}
