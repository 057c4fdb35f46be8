// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Channels} from "../contracts/Channels.sol";
import {IChannels, Part, Place, Redemption, Voucher} from "../contracts/interfaces/IChannels.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {ITrees} from "../contracts/interfaces/ITrees.sol";
import {Exchange} from "./support/Exchange.sol";
import {NaiveTree} from "./support/NaiveTree.sol";
import {Wallet} from "./support/Wallet.sol";

contract ChannelsRedeemTest is Exchange {
    function expectRedeem(bytes memory error_, Redemption memory r) internal {
        vm.expectRevert(error_);
        vm.prank(nora);
        channels.redeem(one(r));
    }

    function badVoucher() internal view returns (bytes memory) {
        return abi.encodeWithSelector(IChannels.BadVoucher.selector, id, channels.channel(id).signer);
    }

    // --------------------------------------------------------------------------------------------------- redeem

    function test_redeem() public {
        Redemption memory r = redemption(id, 10);
        Part[] memory parts = new Part[](1);
        parts[0] = Part(id, 1, 10, 10 * PRICE, 10 * PRICE, r.receiptsRoot);
        uint40 end = uint40(block.timestamp) + rp.window;
        vm.expectEmit();
        emit IChannels.BatchRedeemed(1, nora, 10 * PRICE, 20 * PRICE, end, parts);
        vm.prank(nora);
        assertEq(channels.redeem(one(r)), 1);
        IChannels.Batch memory b = channels.batch(1);
        assertEq(
            abi.encode(b),
            abi.encode(
                nora,
                end,
                0,
                0,
                IChannels.BatchState.Pending,
                uint128(10 * PRICE),
                0,
                1,
                end,
                keccak256(abi.encode(parts[0]))
            ),
            "batch"
        );
        IChannels.Channel memory c = channels.channel(id);
        assertEq(abi.encode(c.sequence, c.claimed, c.deposit), abi.encode(10, 10 * PRICE, DEPOSIT));
        INodes.Node memory n = nodes.node(nora);
        assertEq(abi.encode(n.pledged, n.locked, n.active), abi.encode(20 * PRICE, 0, 0));
        assertEq(nodes.freeStake(nora), STAKE - 20 * PRICE);
        assertEq(channels.nextBatchId(), 2);
        assertConserved();
    }

    function test_redeem_minBond() public {
        redeemed(1);
        assertEq(nodes.node(nora).pledged, rp.minBond);
    }

    function test_redeem_again() public {
        redeemed(3);
        Place memory place = redeemed(5);
        assertEq(abi.encode(place.part.first, place.part.amount), abi.encode(4, 2 * PRICE));
        assertEq(batchOf(place).amount, 2 * PRICE);
        assertEq(channels.channel(id).claimed, 5 * PRICE);
    }

    function test_redeem_session() public {
        Redemption memory r = redemption(id, 1);
        vm.prank(nora);
        nodes.revokeSessionKey(session);
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotNode.selector, session, nora));
        vm.prank(session);
        channels.redeem(one(r));
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotNode.selector, mallory, nora));
        vm.prank(mallory);
        channels.redeem(one(r));
        vm.prank(nora);
        channels.redeem(one(r));
    }

    function test_redeem_replay() public {
        Redemption memory r = redemption(id, 10);
        redeem(r);
        expectRedeem(abi.encodeWithSelector(IChannels.WrongSequence.selector, id, 1, 10, 11), r);
        // The same voucher for a range of its own.
        r.firstSequence = 11;
        expectRedeem(abi.encodeWithSelector(IChannels.WrongSequence.selector, id, 11, 10, 11), r);
    }

    function test_redeem_gap() public {
        Redemption memory r = redemption(id, 10);
        r.firstSequence = 2;
        expectRedeem(abi.encodeWithSelector(IChannels.WrongSequence.selector, id, 2, 10, 1), r);
    }

    function test_redeem_cumulative() public {
        redeemed(5);
        Redemption memory r = redemption(id, 10);
        bytes4 error_ = IChannels.WrongCumulative.selector;
        r.cumulative = 10 * PRICE + 1;
        expectRedeem(abi.encodeWithSelector(error_, id, r.cumulative, 5 * PRICE, 10 * PRICE), r);
        r.cumulative = 5 * PRICE - 1;
        expectRedeem(abi.encodeWithSelector(error_, id, r.cumulative, 5 * PRICE, 10 * PRICE), r);
        // Less than the voucher allows is what an early end comes to; nothing, too.
        r.cumulative = 5 * PRICE;
        redeem(r);
        assertEq(channels.channel(id).claimed, 5 * PRICE);
    }

    /// What a signer promises beyond the deposit is not there.
    function test_redeem_deposit() public {
        Redemption memory r = redemption(id, 101);
        bytes4 error_ = IChannels.WrongCumulative.selector;
        expectRedeem(abi.encodeWithSelector(error_, id, 101 * PRICE, 0, DEPOSIT), r);
        r.cumulative = DEPOSIT;
        redeem(r);
        assertEq(channels.totalCommitted(), DEPOSIT);
    }

    function test_redeem_stake() public {
        vm.prank(nora);
        nodes.requestUnstake(STAKE - 15 ether);
        Redemption memory r = redemption(id, 10);
        expectRedeem(abi.encodeWithSelector(INodes.InsufficientFreeStake.selector, nora, 15 ether, 20 * PRICE), r);
    }

    function test_redeem_unknownChannel() public {
        Redemption memory r = redemption(id, 1);
        r.voucher.channelId = "none";
        expectRedeem(abi.encodeWithSelector(IChannels.NotNode.selector, nora, address(0)), r);
    }

    // ----------------------------------------------------------------------------------------- voucher signature

    function testFuzz_redeem_signature(uint256 field, uint128 salt) public {
        Redemption memory r = redemption(id, 10);
        salt = uint128(bound(salt, 1, type(uint64).max));
        field = field % 4;
        if (field == 0) r.voucher.request += uint64(bound(salt, 1, 1_000));
        if (field == 1) r.voucher.modelId = bytes32(uint256(salt));
        if (field == 2) r.voucher.cumulative += salt;
        if (field == 3) r.voucher.requestHash = bytes32(uint256(salt));
        expectRedeem(badVoucher(), r);
    }

    function testFuzz_redeem_signatureBytes(uint256 at, uint8 flip) public {
        Redemption memory r = redemption(id, 10);
        vm.assume(flip != 0);
        at = at % 65;
        r.signature[at] = bytes1(uint8(r.signature[at]) ^ flip);
        expectRedeem(badVoucher(), r);
    }

    function test_redeem_otherSigner() public {
        Redemption memory r = redemption(id, 10);
        r.signature = sign(malloryKey, channels.voucherDigest(r.voucher));
        expectRedeem(badVoucher(), r);
        r.signature = sign(noraKey, channels.voucherDigest(r.voucher));
        expectRedeem(badVoucher(), r);
        r.signature = "";
        expectRedeem(badVoucher(), r);
    }

    function test_redeem_otherChannel() public {
        bytes32 other = openChannel(uma, nora, 50 ether, "second");
        Redemption memory r = redemption(other, 10);
        r.voucher.channelId = id;
        expectRedeem(badVoucher(), r);
    }

    function test_redeem_otherChain() public {
        Redemption memory r = redemption(id, 10);
        vm.chainId(8453);
        expectRedeem(badVoucher(), r);
    }

    function test_redeem_otherContract() public {
        Redemption memory r = redemption(id, 10);
        Channels other = new Channels(address(token), address(nodes), address(trials), address(0), rp);
        assertNotEq(other.voucherDigest(r.voucher), channels.voucherDigest(r.voucher));
        r.signature = sign(gatewayKey, other.voucherDigest(r.voucher));
        expectRedeem(badVoucher(), r);
    }

    /// The digests, written down again.
    function test_digests() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Sworn Channels"),
                keccak256("1"),
                block.chainid,
                address(channels)
            )
        );
        Voucher memory v = voucher(id, 3, 4);
        bytes32 message = keccak256(
            abi.encode(
                keccak256(
                    "Voucher(bytes32 channelId,uint64 request,bytes32 modelId,uint128 cumulative,bytes32 requestHash)"
                ),
                id,
                3,
                modelId,
                4,
                v.requestHash
            )
        );
        assertEq(channels.voucherDigest(v), keccak256(abi.encodePacked(hex"1901", domain, message)), "voucher");
        message = keccak256(
            abi.encode(
                keccak256(
                    "Receipt(bytes32 channelId,uint64 sequence,uint64 request,bytes32 modelId,bytes32 inputHash,bytes32 outputHash,uint32 nIn,uint32 nOut,uint32 maxNew,uint256 sampling,bytes32 seed,bytes32 layersRoot,uint128 price,uint128 cumulative)"
                ),
                receipt(3)
            )
        );
        assertEq(channels.receiptDigest(receipt(3)), keccak256(abi.encodePacked(hex"1901", domain, message)), "receipt");
    }

    function test_redeem_wallet() public {
        Wallet wallet = new Wallet(gateway);
        vm.startPrank(uma);
        channels.deposit(10 ether);
        id = channels.open(nora, address(wallet), 10 ether, "wallet");
        vm.stopPrank();
        redeemed(3);
        Redemption memory r = redemption(id, 5);
        wallet.hand(walt);
        expectRedeem(badVoucher(), r);
    }

    // ---------------------------------------------------------------------------------------------------- batches

    /// Several users' channels in one batch.
    function several(uint256 n) internal returns (Redemption[] memory list, bytes32[] memory ids) {
        list = new Redemption[](n);
        ids = new bytes32[](n);
        for (uint256 i; i < n; i++) {
            ids[i] = openChannel(i % 2 == 0 ? walt : wanda, nora, 3 ether, bytes32(i));
            list[i] = redemption(ids[i], uint64(i % 3 + 1));
        }
    }

    function partsOf(Redemption[] memory list) internal pure returns (Part[] memory parts, bytes32[] memory leaves) {
        parts = new Part[](list.length);
        leaves = new bytes32[](list.length);
        for (uint256 i; i < list.length; i++) {
            Redemption memory r = list[i];
            parts[i] =
                Part(r.voucher.channelId, r.firstSequence, r.lastSequence, r.cumulative, r.cumulative, r.receiptsRoot);
            leaves[i] = keccak256(abi.encode(parts[i]));
        }
    }

    function placeOf(uint256 batchId, Redemption[] memory list, uint8 index) internal pure returns (Place memory) {
        (Part[] memory parts, bytes32[] memory leaves) = partsOf(list);
        return Place(batchId, parts[index], index, NaiveTree.path(leaves, 0, index));
    }

    function test_redeem_several() public {
        (Redemption[] memory list,) = several(5);
        vm.prank(nora);
        uint256 batchId = channels.redeem(list);
        (, bytes32[] memory leaves) = partsOf(list);
        assertEq(channels.batch(batchId).partsRoot, NaiveTree.root(leaves));
        assertEq(channels.batch(batchId).amount, (1 + 2 + 3 + 1 + 2) * PRICE);
        for (uint8 i; i < 5; i++) {
            channels.checkPlace(placeOf(batchId, list, i));
        }
    }

    function test_redeem_most() public {
        vm.prank(nora);
        nodes.deposit(STAKE);
        (Redemption[] memory list,) = several(64);
        vm.prank(nora);
        uint256 batchId = channels.redeem(list);
        channels.checkPlace(placeOf(batchId, list, 63));
        vm.startPrank(nora);
        vm.expectRevert(abi.encodeWithSelector(IChannels.PartCount.selector, 65, 64));
        channels.redeem(new Redemption[](65));
        vm.expectRevert(abi.encodeWithSelector(IChannels.PartCount.selector, 0, 64));
        channels.redeem(new Redemption[](0));
    }

    function test_redeem_otherNode() public {
        serve(nils);
        bytes32 other = openChannel(walt, nils, 3 ether, "n");
        Redemption[] memory list = new Redemption[](2);
        list[0] = redemption(id, 1);
        list[1] = redemption(other, 1);
        vm.expectRevert(abi.encodeWithSelector(IChannels.OtherNode.selector, other, nils, nora));
        vm.prank(nora);
        channels.redeem(list);
    }

    function testFuzz_place(uint256 n, uint256 at, uint256 field, uint256 salt) public {
        n = bound(n, 1, 7);
        (Redemption[] memory list,) = several(n);
        vm.prank(nora);
        uint256 batchId = channels.redeem(list);
        Place memory place = placeOf(batchId, list, uint8(at % n));
        channels.checkPlace(place);
        salt = bound(salt, 1, type(uint64).max);
        field = field % 8;
        if (field == 0) place.part.channelId = bytes32(salt);
        if (field == 1) place.part.first += uint64(bound(salt, 1, 1_000));
        if (field == 2) place.part.last += uint64(bound(salt, 1, 1_000));
        if (field == 3) place.part.amount += uint128(salt);
        if (field == 4) place.part.cumulative += uint128(salt);
        if (field == 5) place.part.receiptsRoot = bytes32(salt);
        if (field == 6 && n > 1) place.index = uint8((place.index + 1) % n);
        else if (field == 6) place.index = 1;
        if (field == 7) place.proof = NaiveTree.concat(place.proof, new bytes32[](1));
        vm.expectRevert();
        channels.checkPlace(place);
    }

    // -------------------------------------------------------------------------------------------------- release

    function test_release() public {
        Place memory place = redeemed(10);
        uint40 end = batchOf(place).windowEnd;
        vm.warp(end);
        vm.expectRevert(abi.encodeWithSelector(IChannels.TooEarly.selector, end, end));
        channels.release(place.batchId);
        vm.warp(end + 1);
        vm.expectEmit();
        emit IChannels.BatchReleased(place.batchId, nora, 10 * PRICE);
        vm.prank(mallory);
        channels.release(place.batchId);
        assertBatch(place, IChannels.BatchState.Released);
        assertEq(channels.balanceOf(nora), 10 * PRICE);
        assertEq(channels.totalCommitted(), DEPOSIT - 10 * PRICE);
        assertEq(nodes.node(nora).pledged, 0);
        assertConserved();
        vm.expectRevert(
            abi.encodeWithSelector(
                IChannels.WrongBatchState.selector, 1, IChannels.BatchState.Released, IChannels.BatchState.Pending
            )
        );
        channels.release(place.batchId);
        vm.expectRevert(
            abi.encodeWithSelector(
                IChannels.WrongBatchState.selector, 1, IChannels.BatchState.Released, IChannels.BatchState.Void
            )
        );
        channels.refund(place);
    }

    function test_release_none() public {
        vm.expectRevert(
            abi.encodeWithSelector(
                IChannels.WrongBatchState.selector, 9, IChannels.BatchState.None, IChannels.BatchState.Pending
            )
        );
        channels.release(9);
    }

    // --------------------------------------------------------------------------------------------------- refund

    function test_refund() public {
        (Redemption[] memory list, bytes32[] memory ids) = several(3);
        vm.prank(nora);
        uint256 batchId = channels.redeem(list);
        Place memory place = placeOf(batchId, list, 2);
        vm.expectRevert(
            abi.encodeWithSelector(
                IChannels.WrongBatchState.selector, 1, IChannels.BatchState.Pending, IChannels.BatchState.Void
            )
        );
        channels.refund(place);
        vm.prank(address(trials));
        channels.convict(id);
        skip(1 days);
        vm.expectRevert(abi.encodeWithSelector(INodes.NodeConvicted.selector, nora));
        channels.release(batchId);

        vm.expectEmit();
        emit IChannels.BatchVoid(batchId, nora);
        vm.expectEmit();
        emit IChannels.PartRefunded(batchId, ids[2], 3 * PRICE);
        vm.prank(mallory);
        channels.refund(place);
        assertEq(channels.balanceOf(walt), 3 * PRICE);
        vm.expectRevert(abi.encodeWithSelector(IChannels.AlreadyRefunded.selector, batchId, 2));
        channels.refund(place);
        channels.refund(placeOf(batchId, list, 0));
        channels.refund(placeOf(batchId, list, 1));
        assertEq(channels.balanceOf(walt), 4 * PRICE);
        assertEq(channels.balanceOf(wanda), 2 * PRICE);
        assertEq(channels.batch(batchId).refunded, 7);
        assertConserved();
    }

    function test_refund_proof() public {
        Place memory place = redeemed(2);
        vm.prank(address(trials));
        channels.convict(id);
        place.part.amount += 1;
        vm.expectRevert(
            abi.encodeWithSelector(
                IChannels.NotInBatch.selector, 1, keccak256(abi.encode(place.part)), batchOf(place).partsRoot
            )
        );
        channels.refund(place);
        place.index = 1;
        vm.expectRevert(abi.encodeWithSelector(ITrees.OutsideTree.selector, 1, 1, 1));
        channels.refund(place);
    }
}
