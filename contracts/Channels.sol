// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Purse} from "./Purse.sol";
import {ChannelState, IChannels, Part, Place, Receipt, Redemption, Voucher} from "./interfaces/IChannels.sol";
import {INodes} from "./interfaces/INodes.sol";
import {Receipts} from "./lib/Receipts.sol";
import {Trees} from "./lib/Trees.sol";

/// @title Channels
/// @notice See IChannels.
contract Channels is Purse, EIP712, Multicall {
    using SafeCast for uint256;

    /// @notice channels that one batch may pay from: as many bits as `Batch.refunded` has
    uint256 public constant MAX_PARTS = 64;

    uint256 private constant BPS = 10_000;

    /// @inheritdoc IChannels
    address public immutable nodes;
    /// @inheritdoc IChannels
    address public immutable trials;

    uint40 private immutable _window;
    uint40 private immutable _closeDelay;
    uint40 private immutable _receiptTurn;
    uint40 private immutable _lodgeTurn;
    uint128 private immutable _receiptFee;
    uint128 private immutable _minBond;
    uint16 private immutable _bondFactorBps;
    uint16 private immutable _userShareBps;
    uint16 private immutable _challengerShareBps;

    // Written through references.
    // slither-disable-next-line uninitialized-state
    mapping(bytes32 channelId => Channel) private _channels;
    mapping(uint256 batchId => Batch) private _batches;
    // slither-disable-next-line uninitialized-state
    mapping(bytes32 key => ReceiptDemand) private _demands;
    uint256 private _nextBatchId = 1;

    constructor(address token_, address nodes_, address trials_, address permit2_, Params memory p)
        Purse(token_, permit2_)
        EIP712("Sworn Channels", "1")
    {
        nodes = nodes_;
        trials = trials_;

        _inRange("window", p.window, 1, type(uint32).max);
        // Whoever sees a channel closing can redeem, and be challenged for it, before it is closed.
        _inRange("closeDelay", p.closeDelay, p.window, type(uint32).max);
        _inRange("receiptTurn", p.receiptTurn, 1, type(uint32).max);
        _inRange("lodgeTurn", p.lodgeTurn, 1, type(uint32).max);
        _inRange("receiptFee", p.receiptFee, 1, type(uint128).max);
        _inRange("challengerShareBps", p.challengerShareBps, 1, BPS - 1);
        // The share of the smallest bond is not rounded to nothing.
        _inRange("minBond", p.minBond, (BPS - 1) / p.challengerShareBps + 1, type(uint128).max);
        // Something is burned of all that is taken, so a node that is its own user and challenger loses by a conviction.
        _inRange("userShareBps", p.userShareBps, 0, BPS - 1 - p.challengerShareBps);

        _window = p.window;
        _closeDelay = p.closeDelay;
        _receiptTurn = p.receiptTurn;
        _lodgeTurn = p.lodgeTurn;
        _receiptFee = p.receiptFee;
        _minBond = p.minBond;
        _bondFactorBps = p.bondFactorBps;
        _userShareBps = p.userShareBps;
        _challengerShareBps = p.challengerShareBps;
    }

    modifier onlyTrials() {
        _fromTrials();
        _;
    }

    /// Not in the modifier, whose code is wherever it is used.
    function _fromTrials() private view {
        if (msg.sender != trials) revert NotTrials(msg.sender, trials);
    }

    // ------------------------------------------------------------------------------------------------- channels

    /// @inheritdoc IChannels
    function open(address node, address signer, uint128 amount, bytes32 salt)
        external
        nonReentrant
        returns (bytes32 channelId)
    {
        channelId = channelIdOf(msg.sender, node, salt);
        Channel storage c = _channels[channelId];
        if (c.state != ChannelState.None) revert ChannelExists(channelId);
        if (signer == address(0)) signer = msg.sender;
        c.user = msg.sender;
        c.node = node;
        c.signer = signer;
        c.state = ChannelState.Open;
        c.deposit = amount;
        emit ChannelOpened(channelId, msg.sender, node, signer, amount);
        _commit(msg.sender, amount);
    }

    /// @inheritdoc IChannels
    function topUp(bytes32 channelId, uint128 amount) external nonReentrant {
        Channel storage c = _usersOpen(channelId);
        if (amount == 0) revert ZeroAmount();
        c.deposit += amount;
        emit ChannelToppedUp(channelId, amount);
        _commit(msg.sender, amount);
    }

    /// @inheritdoc IChannels
    function requestClose(bytes32 channelId) external nonReentrant {
        Channel storage c = _usersOpen(channelId);
        c.state = ChannelState.Closing;
        c.closeAt = _after(_closeDelay);
        emit ChannelClosing(channelId, c.closeAt);
    }

    /// @inheritdoc IChannels
    function close(bytes32 channelId) external nonReentrant {
        Channel storage c = _inState(channelId, ChannelState.Closing);
        _onlyAfter(c.closeAt);
        _close(channelId, c);
    }

    /// @inheritdoc IChannels
    function closeByNode(bytes32 channelId) external nonReentrant {
        Channel storage c = _live(channelId);
        if (msg.sender != c.node) revert NotNode(msg.sender, c.node);
        _close(channelId, c);
    }

    function _close(bytes32 channelId, Channel storage c) private {
        uint128 rest = c.deposit - c.claimed;
        c.state = ChannelState.Closed;
        c.closeAt = uint40(block.timestamp);
        emit ChannelClosed(channelId, rest);
        _uncommit(c.user, rest);
    }

    function _usersOpen(bytes32 channelId) private view returns (Channel storage c) {
        c = _inState(channelId, ChannelState.Open);
        if (msg.sender != c.user) revert NotUser(channelId, msg.sender, c.user);
    }

    /// A channel that can still be redeemed from.
    function _live(bytes32 channelId) private view returns (Channel storage) {
        if (_channels[channelId].state == ChannelState.Closing) return _channels[channelId];
        return _inState(channelId, ChannelState.Open);
    }

    // ----------------------------------------------------------------------------------------------- redemption

    /// @inheritdoc IChannels
    function redeem(Redemption[] calldata redemptions) external nonReentrant returns (uint256 batchId) {
        uint256 n = redemptions.length;
        if (n == 0 || n > MAX_PARTS) revert PartCount(n, MAX_PARTS);
        address node = _channels[redemptions[0].voucher.channelId].node;
        if (msg.sender != node && !INodes(nodes).actsFor(node, msg.sender)) revert NotNode(msg.sender, node);

        Part[] memory parts = new Part[](n);
        bytes32[] memory leaves = new bytes32[](n);
        uint128 amount;
        for (uint256 i; i < n; ++i) {
            parts[i] = _claim(redemptions[i], node);
            leaves[i] = keccak256(abi.encode(parts[i]));
            amount += parts[i].amount;
        }
        batchId = _nextBatchId++;
        _startBatch(batchId, node, amount, uint8(n), Trees.treeRoot(leaves), parts);
    }

    function _startBatch(uint256 batchId, address node, uint128 amount, uint8 n, bytes32 partsRoot, Part[] memory parts)
        private
    {
        Batch storage b = _batches[batchId];
        uint40 windowEnd = _after(_window);
        b.node = node;
        b.windowEnd = windowEnd;
        b.state = BatchState.Pending;
        b.amount = amount;
        b.parts = n;
        b.lodgeEnd = windowEnd;
        b.partsRoot = partsRoot;
        uint128 bond = _bond(amount);
        emit BatchRedeemed(batchId, node, amount, bond, windowEnd, parts);
        INodes(nodes).pledge(node, bond);
    }

    /// Checks a redemption and moves its channel on.
    function _claim(Redemption calldata r, address node) private returns (Part memory) {
        bytes32 id = r.voucher.channelId;
        Channel storage c = _live(id);
        if (c.node != node) revert OtherNode(id, c.node, node);
        uint64 first = c.sequence + 1;
        uint64 last = r.lastSequence;
        if (r.firstSequence != first || last < first) revert WrongSequence(id, r.firstSequence, last, first);
        uint128 claimed = c.claimed;
        uint128 most = r.voucher.cumulative < c.deposit ? r.voucher.cumulative : c.deposit;
        if (r.cumulative < claimed || r.cumulative > most) revert WrongCumulative(id, r.cumulative, claimed, most);
        if (!SignatureChecker.isValidSignatureNowCalldata(c.signer, voucherDigest(r.voucher), r.signature)) {
            revert BadVoucher(id, c.signer);
        }
        c.sequence = last;
        c.claimed = r.cumulative;
        return Part(id, first, last, r.cumulative - claimed, r.cumulative, r.receiptsRoot);
    }

    /// @inheritdoc IChannels
    function release(uint256 batchId) external nonReentrant {
        Batch storage b = _batches[batchId];
        _pending(batchId, b);
        _onlyAfter(b.lodgeEnd);
        if (b.unanswered != 0 || b.openTrials != 0) revert UnderChallenge(batchId, b.unanswered, b.openTrials);
        b.state = BatchState.Released;
        (address node, uint128 amount) = (b.node, b.amount);
        emit BatchReleased(batchId, node, amount);
        _uncommit(node, amount);
        // Refuses for a convicted node.
        INodes(nodes).endPledge(node, _bond(amount), 0);
    }

    /// @inheritdoc IChannels
    function refund(Place calldata place) external nonReentrant {
        Batch storage b = _at(place);
        if (!_isVoid(place.batchId, b)) revert WrongBatchState(place.batchId, b.state, BatchState.Void);
        uint64 bit = uint64(1) << place.index;
        if (b.refunded & bit != 0) revert AlreadyRefunded(place.batchId, place.index);
        b.refunded |= bit;
        emit PartRefunded(place.batchId, place.part.channelId, place.part.amount);
        _uncommit(_channels[place.part.channelId].user, place.part.amount);
    }

    /// The batch that has this part.
    function _at(Place calldata place) private view returns (Batch storage b) {
        b = _batches[place.batchId];
        if (b.state == BatchState.None) revert WrongBatchState(place.batchId, b.state, BatchState.Pending);
        (bytes32 root, uint256 used) =
            Trees.pathRoot(keccak256(abi.encode(place.part)), place.index, b.parts, place.proof, 0);
        Trees.done(place.proof, used);
        if (root != b.partsRoot) revert NotInBatch(place.batchId, root, b.partsRoot);
    }

    /// Whether nobody will be paid for the batch; notes it if a conviction is the reason.
    function _isVoid(uint256 batchId, Batch storage b) private returns (bool) {
        if (b.state == BatchState.Pending && INodes(nodes).isConvicted(b.node)) _void(batchId, b);
        return b.state == BatchState.Void;
    }

    function _void(uint256 batchId, Batch storage b) private {
        b.state = BatchState.Void;
        emit BatchVoid(batchId, b.node);
    }

    function _bond(uint128 amount) private view returns (uint128) {
        uint256 scaled = uint256(amount) * _bondFactorBps / BPS;
        return scaled > _minBond ? scaled.toUint128() : _minBond;
    }

    // ------------------------------------------------------------------------------------------------- receipts

    /// @inheritdoc IChannels
    function demandReceipt(Place calldata place, uint64 sequence) external nonReentrant {
        Batch storage b = _at(place);
        _pending(place.batchId, b);
        _notAfter(b.windowEnd);
        bytes32 channelId = place.part.channelId;
        _inPart(place.part, channelId, sequence);
        ReceiptDemand storage d = _demand(place.batchId, channelId, sequence, DemandState.None);
        uint40 deadline = _after(_receiptTurn);
        (d.payer, d.deadline, d.state) = (msg.sender, deadline, DemandState.Demanded);
        ++b.unanswered;
        emit ReceiptDemanded(place.batchId, channelId, sequence, msg.sender, deadline);
        _pullFee(msg.sender, _receiptFee);
    }

    /// @inheritdoc IChannels
    function publishReceipt(
        Place calldata place,
        Receipt calldata receipt,
        bytes calldata signature,
        bytes32[] calldata proof
    ) external nonReentrant {
        Batch storage b = _at(place);
        _pending(place.batchId, b);
        _inPart(place.part, receipt.channelId, receipt.sequence);
        ReceiptDemand storage d = _demand(place.batchId, receipt.channelId, receipt.sequence, DemandState.Demanded);
        _notAfter(d.deadline);
        (bytes32 digest,) = signedReceipt(receipt, signature);
        _inReceipts(place.part, digest, receipt.sequence, proof);
        d.state = DemandState.Answered;
        --b.unanswered;
        // Somebody may want to lodge what could not be seen before.
        uint40 lodgeEnd = _after(_lodgeTurn);
        if (lodgeEnd > b.lodgeEnd) b.lodgeEnd = lodgeEnd;
        emit ReceiptPublished(place.batchId, digest, receipt, signature);
        _endFee(b.node, _receiptFee);
    }

    /// @inheritdoc IChannels
    function receiptTimeout(uint256 batchId, bytes32 channelId, uint64 sequence) external nonReentrant {
        ReceiptDemand storage d = _demand(batchId, channelId, sequence, DemandState.Demanded);
        Batch storage b = _batches[batchId];
        bool wasVoid = _isVoid(batchId, b);
        if (!wasVoid) _onlyAfter(d.deadline);
        d.state = DemandState.Ended;
        --b.unanswered;
        emit DemandRefunded(batchId, channelId, sequence);
        _endFee(d.payer, _receiptFee);
        if (wasVoid) return;

        emit ReceiptWithheld(batchId, channelId, sequence);
        _void(batchId, b);
        uint128 bond = _bond(b.amount);
        uint128 reward = uint128(uint256(bond) * _challengerShareBps / BPS);
        _credit(d.payer, reward);
        INodes(nodes).endPledge(b.node, bond, bond);
        _burn(bond - reward);
    }

    /// The demand for a receipt, in this state.
    function _demand(uint256 batchId, bytes32 channelId, uint64 sequence, DemandState expected)
        private
        view
        returns (ReceiptDemand storage d)
    {
        d = _demandOf(batchId, channelId, sequence);
        if (d.state != expected) revert WrongDemandState(batchId, sequence, d.state, expected);
    }

    function _demandOf(uint256 batchId, bytes32 channelId, uint64 sequence)
        private
        view
        returns (ReceiptDemand storage)
    {
        return _demands[keccak256(abi.encode(batchId, channelId, sequence))];
    }

    function _inPart(Part calldata part, bytes32 channelId, uint64 sequence) private pure {
        if (channelId != part.channelId || sequence < part.first || sequence > part.last) {
            revert NotInPart(channelId, sequence, part.channelId, part.first, part.last);
        }
    }

    function _inReceipts(Part calldata part, bytes32 digest, uint64 sequence, bytes32[] calldata proof) private pure {
        (bytes32 root, uint256 used) =
            Trees.pathRoot(digest, sequence - part.first, uint256(part.last) - part.first + 1, proof, 0);
        Trees.done(proof, used);
        if (root != part.receiptsRoot) revert ReceiptRootMismatch(root, part.receiptsRoot);
    }

    /// @inheritdoc IChannels
    function signedReceipt(Receipt calldata receipt, bytes calldata signature)
        public
        view
        returns (bytes32 digest, address node)
    {
        digest = receiptDigest(receipt);
        node = _channels[receipt.channelId].node;
        (address by,,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (by == address(0) || !INodes(nodes).answersFor(node, by)) revert NotSignedByNode(node, by);
    }

    // --------------------------------------------------------------------------------------------------- trials

    /// @inheritdoc IChannels
    function hold(Place calldata place, bytes32 channelId, uint64 sequence)
        external
        onlyTrials
        nonReentrant
        returns (uint40 windowEnd)
    {
        Batch storage b = _at(place);
        _pending(place.batchId, b);
        _notAfter(b.lodgeEnd);
        _inPart(place.part, channelId, sequence);
        ++b.openTrials;
        return b.windowEnd;
    }

    /// @inheritdoc IChannels
    function letGo(uint256 batchId) external onlyTrials nonReentrant {
        --_batches[batchId].openTrials;
    }

    /// @inheritdoc IChannels
    function takeFee(address payer, uint128 amount) external onlyTrials nonReentrant {
        _pullFee(payer, amount);
    }

    /// @inheritdoc IChannels
    function payFee(address to, uint128 amount) external onlyTrials nonReentrant {
        _endFee(to, amount);
    }

    /// @inheritdoc IChannels
    function convict(bytes32 channelId) external onlyTrials nonReentrant returns (uint128 reward) {
        Channel storage c = _channels[channelId];
        // The contract that this one was built with; and nonReentrant.
        // slither-disable-next-line reentrancy-benign
        uint128 taken = INodes(nodes).convict(c.node);
        uint128 compensation = uint128(uint256(taken) * _userShareBps / BPS);
        reward = uint128(uint256(taken) * _challengerShareBps / BPS);
        // The remainder, not a share: what rounding leaves is burned.
        uint128 burned = taken - compensation - reward;
        _totals.rewards += reward;
        emit NodeConvicted(c.node, taken, compensation, reward, burned);
        _credit(c.user, compensation);
        _burn(burned);
    }

    /// @inheritdoc IChannels
    function payReward(address to, uint128 amount) external onlyTrials nonReentrant {
        _totals.rewards -= amount;
        _credit(to, amount);
    }

    // ---------------------------------------------------------------------------------------------------- views

    /// @inheritdoc IChannels
    function checkPlace(Place calldata place) external view {
        _at(place);
    }

    /// @inheritdoc IChannels
    function channel(bytes32 channelId) external view returns (Channel memory) {
        return _channels[channelId];
    }

    /// @inheritdoc IChannels
    function channelIdOf(address user, address node, bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(user, node, salt));
    }

    /// @inheritdoc IChannels
    function batch(uint256 batchId) external view returns (Batch memory) {
        return _batches[batchId];
    }

    /// @inheritdoc IChannels
    function nextBatchId() external view returns (uint256) {
        return _nextBatchId;
    }

    /// @inheritdoc IChannels
    function receiptDemand(uint256 batchId, bytes32 channelId, uint64 sequence)
        external
        view
        returns (ReceiptDemand memory)
    {
        return _demandOf(batchId, channelId, sequence);
    }

    /// @inheritdoc IChannels
    function voucherDigest(Voucher calldata voucher) public view returns (bytes32) {
        return _hashTypedDataV4(Receipts.hash(voucher));
    }

    /// @inheritdoc IChannels
    function receiptDigest(Receipt calldata receipt) public view returns (bytes32) {
        return _hashTypedDataV4(Receipts.hash(receipt));
    }

    /// @inheritdoc IChannels
    function params() external view returns (Params memory) {
        return Params(
            _window,
            _closeDelay,
            _receiptTurn,
            _lodgeTurn,
            _receiptFee,
            _minBond,
            _bondFactorBps,
            _userShareBps,
            _challengerShareBps
        );
    }

    // --------------------------------------------------------------------------------------------------- checks

    function _inState(bytes32 channelId, ChannelState expected) private view returns (Channel storage c) {
        c = _channels[channelId];
        if (c.state != expected) revert WrongChannelState(channelId, c.state, expected);
    }

    function _pending(uint256 batchId, Batch storage b) private view {
        if (b.state != BatchState.Pending) revert WrongBatchState(batchId, b.state, BatchState.Pending);
    }

    function _after(uint40 delay) private view returns (uint40) {
        return uint40(block.timestamp) + delay;
    }

    function _notAfter(uint40 deadline) private view {
        if (block.timestamp > deadline) revert TooLate(block.timestamp, deadline);
    }

    function _onlyAfter(uint40 deadline) private view {
        if (block.timestamp <= deadline) revert TooEarly(block.timestamp, deadline);
    }

    function _inRange(string memory name, uint256 actual, uint256 min, uint256 max) private pure {
        if (actual < min || actual > max) revert ParameterOutOfRange(name, actual, min, max);
    }
}
