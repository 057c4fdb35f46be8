// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {
    ChannelState,
    IChannels,
    Part,
    Place,
    Receipt as SignedReceipt,
    Redemption,
    Voucher
} from "../../contracts/interfaces/IChannels.sol";
import {JobId, JobState} from "../../contracts/interfaces/ICourt.sol";
import {Fixture} from "./Fixture.sol";
import {NaiveTree} from "./NaiveTree.sol";
import {TinyTrace} from "./TinyTrace.sol";

/// @notice A channel from uma to nora, and the papers that go over it: vouchers that uma's gateway signs, receipts that nora's
/// session key signs. Receipt n costs one token more than the one before.
abstract contract Exchange is Fixture {
    uint128 internal constant DEPOSIT = 100 ether;
    uint128 internal constant PRICE = 1 ether;
    bytes32 internal constant SALT = "first";

    /// signs uma's vouchers
    address internal gateway;
    uint256 internal gatewayKey;
    /// signs nora's receipts
    address internal session;
    uint256 internal sessionKey;
    uint256 internal noraKey;
    uint256 internal malloryKey;
    uint256 internal nilsKey;

    bytes32 internal id;
    /// what the receipts of `receipt` commit to
    bytes32 internal layersRoot = keccak256("layers root");
    uint32 internal nIn = 3;
    uint32 internal nOut = 3;

    function setUp() public virtual override {
        super.setUp();
        (gateway, gatewayKey) = makeAddrAndKey("uma's gateway");
        (session, sessionKey) = makeAddrAndKey("nora's session key");
        (, noraKey) = makeAddrAndKey("nora, a node");
        (, nilsKey) = makeAddrAndKey("nils, another node");
        (, malloryKey) = makeAddrAndKey("mallory");
        vm.prank(nora);
        nodes.setSessionKey(session, uint40(block.timestamp + 30 days));
        id = openChannel(uma, nora, DEPOSIT, SALT);
    }

    // ----------------------------------------------------------------------------------------------------- papers

    function openChannel(address user, address node, uint128 amount, bytes32 salt) internal returns (bytes32) {
        vm.startPrank(user);
        channels.deposit(amount);
        bytes32 opened = channels.open(node, gateway, amount, salt);
        vm.stopPrank();
        return opened;
    }

    function hashOf(bytes memory sequence) internal pure returns (bytes32) {
        bytes32 root = NaiveTree.root(NaiveTree.pageHashes(sequence));
        return keccak256(abi.encodePacked(uint8(8), uint32(sequence.length / 4), root));
    }

    function receipt(bytes32 channelId, uint64 sequence) internal view returns (SignedReceipt memory r) {
        r.channelId = channelId;
        r.sequence = sequence;
        // Numbered by the client, in an order of its own.
        r.request = type(uint64).max - sequence;
        r.modelId = modelId;
        r.inputHash = hashOf(tokens(nIn));
        r.outputHash = hashOf(tokens(nOut));
        r.nIn = nIn;
        r.nOut = nOut;
        r.maxNew = nOut;
        r.layersRoot = layersRoot;
        r.price = PRICE;
        r.cumulative = PRICE * sequence;
    }

    function receipt(uint64 sequence) internal view returns (SignedReceipt memory) {
        return receipt(id, sequence);
    }

    /// The receipt of a trace.
    function receipt(uint64 sequence, TinyTrace trace) internal returns (SignedReceipt memory) {
        (nIn, nOut, layersRoot) = (trace.nIn(), trace.nOut(), trace.layersRoot());
        return receipt(sequence);
    }

    function sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function signed(SignedReceipt memory r) internal view returns (bytes memory) {
        return sign(sessionKey, channels.receiptDigest(r));
    }

    function voucher(bytes32 channelId, uint64 sequence, uint128 cumulative) internal view returns (Voucher memory) {
        return Voucher(channelId, sequence, modelId, cumulative, keccak256("the request"));
    }

    function digests(bytes32 channelId, uint64 first, uint64 last) internal view returns (bytes32[] memory leaves) {
        leaves = new bytes32[](last - first + 1);
        for (uint64 i; i < leaves.length; i++) {
            leaves[i] = channels.receiptDigest(receipt(channelId, first + i));
        }
    }

    function receiptsRoot(bytes32 channelId, uint64 first, uint64 last) internal view returns (bytes32) {
        return NaiveTree.root(digests(channelId, first, last));
    }

    function receiptProof(bytes32 channelId, uint64 first, uint64 last, uint64 sequence)
        internal
        view
        returns (bytes32[] memory)
    {
        return NaiveTree.path(digests(channelId, first, last), 0, sequence - first);
    }

    /// All receipts from the last redeemed one to `last`.
    function redemption(bytes32 channelId, uint64 last) internal view returns (Redemption memory r) {
        uint64 first = channels.channel(channelId).sequence + 1;
        r.voucher = voucher(channelId, last, PRICE * last);
        r.signature = sign(gatewayKey, channels.voucherDigest(r.voucher));
        r.firstSequence = first;
        r.lastSequence = last;
        r.cumulative = PRICE * last;
        r.receiptsRoot = receiptsRoot(channelId, first, last);
    }

    function one(Redemption memory r) internal pure returns (Redemption[] memory list) {
        list = new Redemption[](1);
        list[0] = r;
    }

    function redeem(Redemption memory r) internal returns (uint256 batchId) {
        vm.prank(session);
        return channels.redeem(one(r));
    }

    /// A batch of uma's channel from the last redeemed receipt to `last`, and where its part is.
    function redeemed(uint64 last) internal returns (Place memory) {
        Redemption memory r = redemption(id, last);
        Part memory part =
            Part(id, r.firstSequence, last, PRICE * (last - r.firstSequence + 1), r.cumulative, r.receiptsRoot);
        return Place(redeem(r), part, 0, new bytes32[](0));
    }

    function nowhere() internal pure returns (Place memory place) {}

    // --------------------------------------------------------------------------------------------------- checks

    function batchOf(Place memory place) internal view returns (IChannels.Batch memory) {
        return channels.batch(place.batchId);
    }

    function assertBatch(Place memory place, IChannels.BatchState expected) internal view {
        assertEq(uint8(batchOf(place).state), uint8(expected), "batch");
    }

    function assertChannel(bytes32 channelId, ChannelState expected) internal view {
        assertEq(uint8(channels.channel(channelId).state), uint8(expected), "channel");
    }

    function assertTrial(JobId job, JobState expected) internal view {
        assertEq(uint8(trials.stateOf(job)), uint8(expected), "trial");
    }
}
