// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IChallenges, OpeningId, Target, TargetKind} from "./interfaces/IChallenges.sol";
import {IChannels} from "./interfaces/IChannels.sol";
import {ICourt, JobId, JobState} from "./interfaces/ICourt.sol";
import {IMarket} from "./interfaces/IMarket.sol";
import {IModels} from "./interfaces/IModels.sol";
import {INodes} from "./interfaces/INodes.sol";
import {ITrials} from "./interfaces/ITrials.sol";
import {Claim, IStepVerifier, TraceContext, Witness} from "./interfaces/IStepVerifier.sol";
import {Descriptor, Head} from "./lib/Descriptor.sol";
import {Programs} from "./lib/Programs.sol";
import {Receipts} from "./lib/Receipts.sol";
import {Trees} from "./lib/Trees.sol";

/// @title Challenges
/// @notice See IChallenges.
contract Challenges is IChallenges, ReentrancyGuardTransient {
    /// @notice openings on one path from a layer root to a page
    uint8 public constant MAX_DEPTH = Programs.MAX_DEPTH;
    /// @notice levels that one answer opens
    uint8 public constant LEVELS_PER_ANSWER = Programs.LEVELS_PER_ANSWER;

    /// @inheritdoc IChallenges
    address public immutable market;
    /// @inheritdoc IChallenges
    address public immutable trials;
    /// @inheritdoc IChallenges
    address public immutable models;
    /// @inheritdoc IChallenges
    address public immutable stepVerifier;

    /// Below that of every other target: no tree is 255 levels high.
    uint256 private constant TOKENS_RANK = 0;

    uint40 private immutable _nodeTurn;
    uint40 private immutable _challengerTurn;
    uint128 private immutable _demandFee;

    /// What a job waits for. One slot.
    struct Docket {
        uint32 unanswered; // demands
        uint40 turnsEnd; // the last challenger's turn of all that are answered
        uint64 announcements; // so far
    }

    /// Slots: 0 winner 160 | layer u16 | row u32 | op u16 | element u32; 1 announcement u64 | contestEnd u40 | paid 8
    struct Verdict {
        address winner;
        uint16 layer;
        uint32 row;
        uint16 op;
        uint32 element;
        uint64 announcement;
        uint40 contestEnd;
        bool paid;
    }

    struct Announcement {
        uint64 number; // from 1, in the order of the job's announcements
        uint64 blockNumber;
    }

    mapping(OpeningId => Opening) private _openings;
    mapping(JobId => Docket) private _dockets;
    mapping(JobId => Verdict) private _verdicts;
    mapping(JobId => mapping(uint256 layerAndRow => bytes32)) private _opLists;
    mapping(JobId => mapping(address by => mapping(bytes32 commitment => Announcement))) private _announcements;
    mapping(JobId => mapping(address payer => uint256)) private _fees;

    constructor(address market_, address trials_, address models_, address stepVerifier_, Params memory p) {
        _inRange("nodeTurn", p.nodeTurn, 1, type(uint32).max);
        _inRange("challengerTurn", p.challengerTurn, 1, type(uint32).max);
        _inRange("demandFee", p.demandFee, 1, type(uint128).max);

        IMarket m = IMarket(market_);
        ITrials t = ITrials(trials_);
        IChannels c = IChannels(t.channels());
        INodes n = INodes(m.nodes());
        _wired("market.challenges", m.challenges(), address(this));
        _wired("market.models", m.models(), models_);
        _wired("trials.challenges", t.challenges(), address(this));
        _wired("trials.models", t.models(), models_);
        _wired("channels.trials", c.trials(), trials_);
        _wired("channels.nodes", c.nodes(), address(n));
        _wired("channels.token", c.token(), m.token());
        _wired("nodes.market", n.market(), market_);
        _wired("nodes.channels", n.channels(), address(c));
        _wired("nodes.models", n.models(), models_);
        _wired("nodes.token", n.token(), m.token());
        if (stepVerifier_.code.length == 0) {
            revert WrongWiring("stepVerifier has no code", stepVerifier_, stepVerifier_);
        }

        // A bond must still be there when the last challenge of its job ends, and a stake when the last of its receipts does.
        uint256 turns = uint256(p.nodeTurn) + p.challengerTurn;
        uint256 longest = _longestJob(m.params(), turns);
        uint256 receipt = _longestReceipt(c.params(), turns);
        if (receipt > longest) longest = receipt;
        if (n.UNSTAKE_DELAY() <= longest) revert UnstakeDelayTooShort(n.UNSTAKE_DELAY(), longest);

        market = market_;
        trials = trials_;
        models = models_;
        stepVerifier = stepVerifier_;
        _nodeTurn = p.nodeTurn;
        _challengerTurn = p.challengerTurn;
        _demandFee = p.demandFee;
    }

    function _longestJob(IMarket.Params memory p, uint256 turns) private pure returns (uint256) {
        return uint256(p.submitTimeout) + p.challengeWindow + MAX_DEPTH * turns;
    }

    /// From the redemption: the last lodging, the last first demand of its trial, the tokens and what lies under them.
    function _longestReceipt(IChannels.Params memory p, uint256 turns) private pure returns (uint256) {
        uint256 lodged = uint256(p.window) + p.receiptTurn + p.lodgeTurn;
        return lodged + (p.window > p.lodgeTurn ? p.window : p.lodgeTurn) + (MAX_DEPTH + 1) * turns;
    }

    // --------------------------------------------------------------------------------------------------- demand

    /// @inheritdoc IChallenges
    function demand(JobId jobId, OpeningId parent, Target calldata target, DemandProof calldata proof)
        external
        nonReentrant
        returns (OpeningId id)
    {
        ICourt.Trial memory j = _onTrial(jobId);
        id = openingId(jobId, target);
        uint8 depth = _depthUnder(jobId, parent, id, j.deadline);
        Opening storage o = _openings[id];
        if (o.state != OpeningState.None) {
            // The fields of the target are checked: the id names all of them, and somebody has demanded it.
            if (depth >= o.depth) revert AlreadyDemanded(id, o.state, o.depth);
            o.depth = depth;
            emit DepthLowered(jobId, id, msg.sender, depth);
            return id;
        }

        (uint32 leafCount, uint32 byteLength) = _checkTarget(jobId, j, target, proof);
        uint40 deadline = uint40(block.timestamp) + _nodeTurn;
        o.payer = msg.sender;
        o.state = OpeningState.Demanded;
        o.depth = depth;
        o.turnEnd = deadline;
        o.paramsHash = keccak256(abi.encode(target, proof.nodeHash, leafCount, byteLength));
        ++_dockets[jobId].unanswered;
        uint128 fee = _demandFee;
        // Tokens are posted whole, so each page of them has its price.
        if (target.kind == TargetKind.Tokens) fee *= 1 + byteLength / 1024;
        _fees[jobId][msg.sender] += fee;
        emit Demanded(jobId, id, msg.sender, target, proof.nodeHash, leafCount, byteLength, depth, deadline);
        _court(jobId).takeFee(msg.sender, jobId, fee);
    }

    /// Whether a demand is in time, and how deep it lies.
    function _depthUnder(JobId jobId, OpeningId parent, OpeningId child, uint40 windowEnd)
        private
        view
        returns (uint8 depth)
    {
        if (OpeningId.unwrap(parent) == 0) {
            if (block.timestamp > windowEnd) revert TooLate(jobId, block.timestamp, windowEnd);
            return _rank(child) == TOKENS_RANK ? 0 : 1;
        }
        uint256 parentJob = uint256(OpeningId.unwrap(parent)) >> 128;
        if (parentJob != JobId.unwrap(jobId)) revert ParentJob(JobId.wrap(parentJob), jobId);
        uint256 parentRank = _rank(parent);
        uint256 childRank = _rank(child);
        if (parentRank >= childRank) revert ParentRank(parentRank, childRank);
        Opening storage o = _openings[parent];
        if (o.state != OpeningState.Answered) revert ParentState(parent, o.state);
        if (block.timestamp > o.turnEnd) revert TooLate(jobId, block.timestamp, o.turnEnd);
        depth = o.depth + 1;
        if (depth > MAX_DEPTH) revert TooDeep(depth, MAX_DEPTH);
    }

    /// Checks that the target is a node of the job's trace whose hash is proof.nodeHash.
    function _checkTarget(JobId jobId, ICourt.Trial memory j, Target calldata t, DemandProof calldata proof)
        private
        view
        returns (uint32 leafCount, uint32 byteLength)
    {
        if (t.kind == TargetKind.Tokens) return _checkTokens(jobId, t, proof);
        (uint16 layers,,) = IModels(models).dimensions(j.modelId);
        uint256 layerCount = uint256(layers) + 2;
        if (t.kind == TargetKind.Layers) {
            _unused(t.layer == 0 && t.row == 0 && t.op == 0, t);
            leafCount = uint32(layerCount);
            _noOpProof(proof);
            (bytes32 root, uint256 used) = _treeRoot(t, leafCount, proof);
            Trees.done(proof.path, used);
            _sameRoot(root, j.layersRoot);
            return (leafCount, 0);
        }

        if (t.layer >= layerCount) revert BadTarget("layer", t.layer, layerCount);
        uint8 section = Programs.sectionOf(t.layer, layers);
        uint256 rows = section == Programs.HEAD ? j.nOut : uint256(j.nIn) + j.nOut - 1;
        if (t.kind == TargetKind.Positions || t.kind == TargetKind.OpList) {
            _noOpProof(proof);
            bytes32 root;
            uint256 used;
            if (t.kind == TargetKind.Positions) {
                _unused(t.row == 0 && t.op == 0, t);
                (root, used) = _treeRoot(t, rows, proof);
                leafCount = uint32(rows);
            } else {
                _unused(t.op == 0 && t.level == 0 && t.index == 0, t);
                if (t.row >= rows) revert BadTarget("row", t.row, rows);
                (root, used) = Trees.pathRoot(proof.nodeHash, t.row, rows, proof.path, 0);
                (leafCount,,) = IModels(models).section(j.modelId, section);
            }
            (root, used) = Trees.pathRoot(root, t.layer, layerCount, proof.path, used);
            Trees.done(proof.path, used);
            _sameRoot(root, j.layersRoot);
        } else {
            // The operator list was opened for this row, so the row exists.
            _checkOpList(jobId, t.layer, t.row, proof.opRoots);
            byteLength = _tensorBytes(j, section, t, proof);
            leafCount = uint32(Trees.pageCount(byteLength));
            bytes32 root;
            uint256 used;
            if (t.kind == TargetKind.Pages) {
                (root, used) = _treeRoot(t, leafCount, proof);
            } else {
                _unused(t.level == 0, t);
                if (t.index >= leafCount) revert BadTarget("index", t.index, leafCount);
                (root, used) = Trees.pathRoot(proof.nodeHash, t.index, leafCount, proof.path, 0);
            }
            Trees.done(proof.path, used);
            _sameRoot(root, proof.opRoots[t.op]);
        }
    }

    /// Checks that the target is one of the two sequences of a receipt.
    function _checkTokens(JobId jobId, Target calldata t, DemandProof calldata proof)
        private
        view
        returns (uint32 leafCount, uint32 byteLength)
    {
        if (!_isReceipt(jobId)) revert BadTarget("kind", uint256(t.kind), uint256(TargetKind.Tokens));
        if (t.layer > 1) revert BadTarget("layer", t.layer, 2);
        _unused(t.row == 0 && t.op == 0 && t.level == 0 && t.index == 0, t);
        _noOpProof(proof);
        Trees.done(proof.path, 0);
        (,, TraceContext memory c) = _court(jobId).evidence(jobId);
        _sameRoot(proof.nodeHash, t.layer == 0 ? c.inputHash : c.outputHash);
        byteLength = 4 * (t.layer == 0 ? c.nIn : c.nOut);
        leafCount = uint32(Trees.pageCount(byteLength));
    }

    /// The root above an inner node that the target names by level and index.
    function _treeRoot(Target calldata t, uint256 leafCount, DemandProof calldata proof)
        private
        pure
        returns (bytes32 root, uint256 used)
    {
        uint256 height = Trees.depth(leafCount);
        // Level 0 is opened by the next kind of target.
        if (t.level == 0 || t.level > height) revert BadTarget("level", t.level, height + 1);
        // Nothing hangs below a node without leaves, so nothing is to be had by opening it.
        uint256 nodes = ((leafCount - 1) >> t.level) + 1;
        if (t.index >= nodes) revert BadTarget("index", t.index, nodes);
        return Trees.climb(proof.nodeHash, t.index, height - t.level, proof.path, 0);
    }

    /// The bytes of the target's tensor, from its operator's descriptor.
    function _tensorBytes(ICourt.Trial memory j, uint8 section, Target calldata t, DemandProof calldata proof)
        private
        view
        returns (uint32)
    {
        (uint16 ops,, bytes32 sectionRoot) = IModels(models).section(j.modelId, section);
        if (t.op >= ops) revert BadTarget("op", t.op, ops);
        if (proof.descriptor.length != Descriptor.BYTES) {
            revert DescriptorLength(proof.descriptor.length, Descriptor.BYTES);
        }
        (bytes32 root, uint256 used) = Trees.pathRoot(
            Trees.hashTagged(Trees.TAG_DESCRIPTOR, proof.descriptor), t.op, ops, proof.descriptorProof, 0
        );
        Trees.done(proof.descriptorProof, used);
        _sameRoot(root, sectionRoot);
        uint256 position = section == Programs.HEAD ? uint256(j.nIn) - 1 + t.row : t.row;
        // The registry has checked that the largest tensor of the model fits.
        return uint32(Programs.byteLength(Head.wrap(uint256(bytes32(proof.descriptor[:32]))), position));
    }

    // --------------------------------------------------------------------------------------------------- answer

    /// @inheritdoc IChallenges
    function answer(
        JobId jobId,
        Target calldata target,
        bytes32 nodeHash,
        uint32 leafCount,
        uint32 byteLength,
        bytes calldata data
    ) external nonReentrant {
        ICourt.Trial memory j = _onTrial(jobId);
        OpeningId id = openingId(jobId, target);
        Opening storage o = _openings[id];
        if (o.state != OpeningState.Demanded) revert NotDemanded(id, o.state);
        if (block.timestamp > o.turnEnd) revert TooLate(jobId, block.timestamp, o.turnEnd);
        bytes32 paramsHash = keccak256(abi.encode(target, nodeHash, leafCount, byteLength));
        if (paramsHash != o.paramsHash) revert ParamsMismatch(paramsHash, o.paramsHash);

        if (target.kind == TargetKind.OpList) {
            if (msg.sender != j.node) revert NotNode(jobId, msg.sender, j.node);
            _opLists[jobId][_layerAndRow(target.layer, target.row)] = _checkOpListAnswer(j, target, nodeHash, data);
        } else if (target.kind == TargetKind.Page) {
            // The shape's length, whatever was committed to: a page of another one has no answer.
            uint256 expected = Trees.pagesLength(byteLength, target.index, 1);
            if (data.length != expected) revert AnswerLength(data.length, expected);
            _sameAnswer(Trees.hashPages(data)[0], nodeHash);
        } else if (target.kind == TargetKind.Tokens) {
            if (data.length != byteLength) revert AnswerLength(data.length, byteLength);
            _sameAnswer(Trees.tokensHash(data), nodeHash);
        } else {
            _checkDescendants(target, nodeHash, leafCount, data);
        }

        uint40 turnEnd = uint40(block.timestamp) + _challengerTurn;
        o.state = OpeningState.Answered;
        o.turnEnd = turnEnd;
        Docket storage d = _dockets[jobId];
        --d.unanswered;
        // Time does not go back, so the last answer's turn is the last to end.
        d.turnsEnd = turnEnd;
        emit Answered(jobId, id, msg.sender, target, data);
    }

    /// @return the operator list's hash
    function _checkOpListAnswer(ICourt.Trial memory j, Target calldata t, bytes32 leaf, bytes calldata data)
        private
        view
        returns (bytes32)
    {
        (uint16 layers,,) = IModels(models).dimensions(j.modelId);
        (uint16 ops, uint256 exportMask,) = IModels(models).section(j.modelId, Programs.sectionOf(t.layer, layers));
        bytes32[] memory roots = _words(data, ops);
        bytes32[] memory exported = new bytes32[](ops);
        uint256 n;
        for (uint256 k; k < ops; ++k) {
            if ((exportMask >> k) & 1 == 1) exported[n++] = roots[k];
        }
        assembly ("memory-safe") {
            mstore(exported, n)
        }
        _sameAnswer(Trees.hashPosition(exported), leaf);
        return Trees.hashOpList(roots);
    }

    function _checkDescendants(Target calldata t, bytes32 nodeHash, uint32 leafCount, bytes calldata data)
        private
        pure
    {
        uint256 height = t.level < LEVELS_PER_ANSWER ? t.level : LEVELS_PER_ANSWER;
        uint256 level = t.level - height;
        bytes32[] memory nodes = _words(data, uint256(1) << height);
        // Descendants that hold a leaf: the demand checked that the node itself does, so at least one.
        uint256 first = uint256(t.index) << height;
        uint256 held = ((uint256(leafCount) - 1) >> level) + 1 - first;
        if (held < nodes.length) {
            bytes32 empty = Trees.emptyRoot(level);
            for (uint256 i = held; i < nodes.length; ++i) {
                if (nodes[i] != empty) revert NotEmpty(i, nodes[i], empty);
            }
        }
        _sameAnswer(Trees.subtreeRoot(nodes, level, height), nodeHash);
    }

    function _words(bytes calldata data, uint256 n) private pure returns (bytes32[] memory words) {
        if (data.length != n * 32) revert AnswerLength(data.length, n * 32);
        words = new bytes32[](n);
        assembly ("memory-safe") {
            calldatacopy(add(words, 32), data.offset, data.length)
        }
    }

    /// @inheritdoc IChallenges
    function timeout(JobId jobId, Target calldata target) external nonReentrant {
        _requireSubmitted(jobId, _court(jobId).stateOf(jobId));
        OpeningId id = openingId(jobId, target);
        Opening storage o = _openings[id];
        if (o.state != OpeningState.Demanded) revert NotDemanded(id, o.state);
        if (block.timestamp <= o.turnEnd) revert TooEarly(jobId, block.timestamp, o.turnEnd);
        emit TimedOut(jobId, id, o.payer);
        _court(jobId).slash(jobId);
        _court(jobId).payReward(jobId, o.payer);
    }

    // ---------------------------------------------------------------------------------------------------- fraud

    /// @inheritdoc IChallenges
    function announce(JobId jobId, bytes32 commitment) external nonReentrant {
        _requireSubmitted(jobId, _court(jobId).stateOf(jobId));
        Announcement storage a = _announcements[jobId][msg.sender][commitment];
        if (a.number != 0) revert AlreadyAnnounced(commitment, a.blockNumber);
        a.number = ++_dockets[jobId].announcements;
        a.blockNumber = uint64(block.number);
        emit Announced(jobId, msg.sender, commitment);
    }

    /// @inheritdoc IChallenges
    function proveFraud(JobId jobId, Claim calldata claim, bytes32 salt, Witness calldata witness)
        external
        nonReentrant
    {
        (JobState state, bytes32 modelId, TraceContext memory context) = _court(jobId).evidence(jobId);
        _requireSubmitted(jobId, state);
        Announcement memory a = _announced(jobId, claim, salt);
        if (block.number <= a.blockNumber) revert AnnouncedTooLate(a.blockNumber, block.number);
        _checkOpList(jobId, claim.layer, claim.row, witness.opRoots);
        if (claim.op >= witness.opRoots.length) revert BadTarget("op", claim.op, witness.opRoots.length);

        (int256 claimed, int256 computed) =
            IStepVerifier(stepVerifier).judge(context, IModels(models).shape(modelId), claim, witness);
        if (claimed == computed) revert NotFraud(claimed, computed);

        _verdicts[jobId] = Verdict({
            winner: msg.sender,
            layer: claim.layer,
            row: claim.row,
            op: claim.op,
            element: claim.element,
            announcement: a.number,
            contestEnd: uint40(block.timestamp) + _challengerTurn,
            paid: false
        });
        emit FraudProven(jobId, msg.sender, claim, claimed, computed);
        _court(jobId).slash(jobId);
    }

    /// @inheritdoc IChallenges
    function contestReward(JobId jobId, bytes32 salt) external nonReentrant {
        Verdict storage v = _heldReward(jobId);
        if (block.timestamp > v.contestEnd) revert TooLate(jobId, block.timestamp, v.contestEnd);
        Announcement memory a = _announced(jobId, Claim(v.layer, v.row, v.op, v.element), salt);
        if (a.number >= v.announcement) revert NotEarlier(a.number, v.announcement);
        v.winner = msg.sender;
        v.announcement = a.number;
        emit RewardContested(jobId, msg.sender);
    }

    /// @inheritdoc IChallenges
    function settleReward(JobId jobId) external nonReentrant {
        Verdict storage v = _heldReward(jobId);
        if (block.timestamp <= v.contestEnd) revert TooEarly(jobId, block.timestamp, v.contestEnd);
        v.paid = true;
        emit RewardSettled(jobId, v.winner);
        _court(jobId).payReward(jobId, v.winner);
    }

    /// @inheritdoc IChallenges
    function reclaimFees(JobId jobId) external nonReentrant {
        JobState state = _court(jobId).stateOf(jobId);
        if (state != JobState.Slashed) revert WrongState(jobId, state, JobState.Slashed);
        uint256 amount = _fees[jobId][msg.sender];
        if (amount == 0) revert NoFees(jobId, msg.sender);
        _fees[jobId][msg.sender] = 0;
        emit FeesReclaimed(jobId, msg.sender, amount);
        // A sum of fees that the market took as u128.
        _court(jobId).refundFee(msg.sender, jobId, uint128(amount));
    }

    /// The caller's announcement of a claim.
    function _announced(JobId jobId, Claim memory claim, bytes32 salt) private view returns (Announcement memory a) {
        bytes32 commitment = _commitment(jobId, claim, msg.sender, salt);
        a = _announcements[jobId][msg.sender][commitment];
        if (a.number == 0) revert NotAnnounced(commitment);
    }

    function _heldReward(JobId jobId) private view returns (Verdict storage v) {
        v = _verdicts[jobId];
        if (v.winner == address(0) || v.paid) revert NoRewardHeld(jobId);
    }

    // ---------------------------------------------------------------------------------------------------- views

    /// @inheritdoc IChallenges
    function openingId(JobId jobId, Target calldata t) public pure returns (OpeningId) {
        uint256 rank = t.kind == TargetKind.Tokens ? TOKENS_RANK : uint256(t.kind) * 256 + 255 - t.level;
        return OpeningId.wrap(
            bytes32(
                (JobId.unwrap(jobId) << 128) | (rank << 112) | (uint256(t.layer) << 96) | (uint256(t.row) << 64)
                    | (uint256(t.op) << 48) | (uint256(t.index) << 16)
            )
        );
    }

    /// @inheritdoc IChallenges
    function opening(OpeningId id) external view returns (Opening memory) {
        return _openings[id];
    }

    /// @inheritdoc IChallenges
    function opListHash(JobId jobId, uint16 layer, uint32 row) external view returns (bytes32) {
        return _opLists[jobId][_layerAndRow(layer, row)];
    }

    /// @inheritdoc IChallenges
    function params() external view returns (Params memory) {
        return Params(_nodeTurn, _challengerTurn, _demandFee);
    }

    /// @inheritdoc IChallenges
    function settled(JobId jobId) external view returns (bool) {
        Docket storage d = _dockets[jobId];
        return d.unanswered == 0 && block.timestamp > d.turnsEnd;
    }

    /// @inheritdoc IChallenges
    function commitmentOf(JobId jobId, Claim calldata claim, address sender, bytes32 salt)
        external
        pure
        returns (bytes32)
    {
        return _commitment(jobId, claim, sender, salt);
    }

    /// @inheritdoc IChallenges
    function feesPaid(JobId jobId, address payer) external view returns (uint256) {
        return _fees[jobId][payer];
    }

    /// @inheritdoc IChallenges
    function rewardOf(JobId jobId) external view returns (address winner, uint40 contestEnd, bool paid) {
        Verdict storage v = _verdicts[jobId];
        return (v.winner, v.contestEnd, v.paid);
    }

    // --------------------------------------------------------------------------------------------------- checks

    /// Who holds the job.
    function _court(JobId jobId) private view returns (ICourt) {
        return ICourt(_isReceipt(jobId) ? trials : market);
    }

    function _isReceipt(JobId jobId) private pure returns (bool) {
        return JobId.unwrap(jobId) & Receipts.JOB_BIT != 0;
    }

    function _onTrial(JobId jobId) private view returns (ICourt.Trial memory j) {
        j = _court(jobId).trial(jobId);
        _requireSubmitted(jobId, j.state);
    }

    function _requireSubmitted(JobId jobId, JobState state) private pure {
        if (state != JobState.Submitted) revert WrongState(jobId, state, JobState.Submitted);
    }

    function _checkOpList(JobId jobId, uint16 layer, uint32 row, bytes32[] calldata opRoots) private view {
        bytes32 expected = _opLists[jobId][_layerAndRow(layer, row)];
        if (expected == 0) revert OpListNotOpened(jobId, layer, row);
        bytes32 actual = Trees.hashOpList(opRoots);
        if (actual != expected) revert OpListMismatch(actual, expected);
    }

    function _commitment(JobId jobId, Claim memory claim, address sender, bytes32 salt) private pure returns (bytes32) {
        return keccak256(abi.encode(jobId, claim.layer, claim.row, claim.op, claim.element, sender, salt));
    }

    function _rank(OpeningId id) private pure returns (uint256) {
        return (uint256(OpeningId.unwrap(id)) >> 112) & 0xffff;
    }

    function _layerAndRow(uint16 layer, uint32 row) private pure returns (uint256) {
        return (uint256(layer) << 32) | row;
    }

    /// One target must have one id: what its kind does not use is zero.
    function _unused(bool zero, Target calldata t) private pure {
        if (!zero) revert BadTarget("unused field", uint256(t.kind), 0);
    }

    function _noOpProof(DemandProof calldata proof) private pure {
        if (proof.opRoots.length != 0) revert UnusedProof("opRoots");
        if (proof.descriptor.length != 0) revert UnusedProof("descriptor");
        if (proof.descriptorProof.length != 0) revert UnusedProof("descriptorProof");
    }

    function _sameRoot(bytes32 actual, bytes32 expected) private pure {
        if (actual != expected) revert RootMismatch(actual, expected);
    }

    function _sameAnswer(bytes32 actual, bytes32 expected) private pure {
        if (actual != expected) revert AnswerMismatch(actual, expected);
    }

    function _inRange(string memory name, uint256 actual, uint256 min, uint256 max) private pure {
        if (actual < min || actual > max) revert ParameterOutOfRange(name, actual, min, max);
    }

    function _wired(string memory name, address actual, address expected) private pure {
        if (actual != expected) revert WrongWiring(name, actual, expected);
    }
}
