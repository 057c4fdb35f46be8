// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChannels, Place, Receipt as SignedReceipt} from "../contracts/interfaces/IChannels.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {ITrees} from "../contracts/interfaces/ITrees.sol";
import {Exchange} from "./support/Exchange.sol";
import {NaiveTree} from "./support/NaiveTree.sol";

contract ChannelsReceiptsTest is Exchange {
    Place internal place;

    function setUp() public override {
        super.setUp();
        place = redeemed(10);
    }

    function demand(uint64 sequence) internal {
        vm.prank(walt);
        channels.demandReceipt(place, sequence);
    }

    function publish(uint64 sequence) internal {
        SignedReceipt memory r = receipt(sequence);
        bytes memory signature = signed(r);
        bytes32[] memory proof = receiptProof(id, 1, 10, sequence);
        vm.prank(mallory);
        channels.publishReceipt(place, r, signature, proof);
    }

    function expectPublish(bytes memory error_, uint64 sequence) internal {
        SignedReceipt memory r = receipt(sequence);
        expectPublish(error_, r, signed(r), receiptProof(id, 1, 10, sequence));
    }

    function expectPublish(bytes memory error_, SignedReceipt memory r, bytes memory signature, bytes32[] memory proof)
        internal
    {
        vm.expectRevert(error_);
        channels.publishReceipt(place, r, signature, proof);
    }

    function deadlineOf(uint64 sequence) internal view returns (uint40) {
        return channels.receiptDemand(place.batchId, id, sequence).deadline;
    }

    function wrongDemand(uint64 sequence, IChannels.DemandState actual, IChannels.DemandState expected)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodeWithSelector(IChannels.WrongDemandState.selector, 1, sequence, actual, expected);
    }

    // -------------------------------------------------------------------------------------------- demandReceipt

    function test_demandReceipt() public {
        vm.warp(batchOf(place).windowEnd);
        uint40 deadline = uint40(block.timestamp) + rp.receiptTurn;
        vm.expectEmit();
        emit IChannels.ReceiptDemanded(1, id, 7, walt, deadline);
        demand(7);
        IChannels.ReceiptDemand memory d = channels.receiptDemand(1, id, 7);
        assertEq(abi.encode(d), abi.encode(walt, deadline, IChannels.DemandState.Demanded));
        assertEq(batchOf(place).unanswered, 1);
        assertEq(token.balanceOf(walt), FUNDS - rp.receiptFee);
        assertEq(channels.totalFees(), rp.receiptFee);
        assertConserved();
        skip(1);
        vm.expectRevert(abi.encodeWithSelector(IChannels.UnderChallenge.selector, 1, 1, 0));
        channels.release(1);
    }

    function test_demandReceipt_late() public {
        uint40 end = batchOf(place).windowEnd;
        vm.warp(end + 1);
        vm.expectRevert(abi.encodeWithSelector(IChannels.TooLate.selector, end + 1, end));
        demand(7);
    }

    function test_demandReceipt_twice() public {
        demand(7);
        vm.expectRevert(wrongDemand(7, IChannels.DemandState.Demanded, IChannels.DemandState.None));
        demand(7);
        publish(7);
        vm.expectRevert(wrongDemand(7, IChannels.DemandState.Answered, IChannels.DemandState.None));
        demand(7);
    }

    function test_demandReceipt_range() public {
        uint64[2] memory wrong = [uint64(0), 11];
        for (uint256 i; i < 2; i++) {
            vm.expectRevert(abi.encodeWithSelector(IChannels.NotInPart.selector, id, wrong[i], id, 1, 10));
            demand(wrong[i]);
        }
    }

    function test_demandReceipt_released() public {
        vm.warp(batchOf(place).windowEnd + 1);
        channels.release(1);
        vm.expectRevert(
            abi.encodeWithSelector(
                IChannels.WrongBatchState.selector, 1, IChannels.BatchState.Released, IChannels.BatchState.Pending
            )
        );
        demand(1);
    }

    // ------------------------------------------------------------------------------------------- publishReceipt

    function test_publishReceipt() public {
        demand(7);
        vm.warp(deadlineOf(7));
        SignedReceipt memory r = receipt(7);
        vm.expectEmit();
        emit IChannels.ReceiptPublished(1, channels.receiptDigest(r), r, signed(r));
        publish(7);
        assertEq(batchOf(place).unanswered, 0);
        assertEq(channels.balanceOf(nora), rp.receiptFee);
        assertEq(channels.totalFees(), 0);
        // The challenger's turn outlasts the window here.
        uint40 lodgeEnd = uint40(block.timestamp) + rp.lodgeTurn;
        assertEq(batchOf(place).lodgeEnd, lodgeEnd);
        vm.warp(lodgeEnd);
        vm.expectRevert(abi.encodeWithSelector(IChannels.TooEarly.selector, lodgeEnd, lodgeEnd));
        channels.release(1);
        vm.warp(lodgeEnd + 1);
        channels.release(1);
        assertConserved();
    }

    function test_publishReceipt_soon() public {
        uint40 end = batchOf(place).windowEnd;
        demand(1);
        publish(1);
        assertEq(batchOf(place).lodgeEnd, end);
    }

    function test_publishReceipt_late() public {
        demand(7);
        uint40 deadline = deadlineOf(7);
        vm.warp(deadline + 1);
        expectPublish(abi.encodeWithSelector(IChannels.TooLate.selector, deadline + 1, deadline), 7);
    }

    function test_publishReceipt_notDemanded() public {
        expectPublish(wrongDemand(7, IChannels.DemandState.None, IChannels.DemandState.Demanded), 7);
    }

    function test_publishReceipt_other() public {
        demand(7);
        SignedReceipt memory r = receipt(7);
        bytes memory signature = signed(r);
        bytes32[] memory proof = receiptProof(id, 1, 10, 7);
        // not by the node
        bytes32 digest = channels.receiptDigest(r);
        expectPublish(
            abi.encodeWithSelector(IChannels.NotSignedByNode.selector, nora, mallory),
            r,
            sign(malloryKey, digest),
            proof
        );
        expectPublish(abi.encodeWithSelector(IChannels.NotSignedByNode.selector, nora, address(0)), r, hex"00", proof);
        // not the one that was redeemed
        SignedReceipt memory other = receipt(7);
        other.layersRoot = keccak256("another");
        bytes memory otherSignature = signed(other);
        vm.expectPartialRevert(IChannels.ReceiptRootMismatch.selector);
        channels.publishReceipt(place, other, otherSignature, proof);
        // not in its place
        bytes32[] memory otherProof = receiptProof(id, 1, 10, 6);
        vm.expectPartialRevert(IChannels.ReceiptRootMismatch.selector);
        channels.publishReceipt(place, r, signature, otherProof);
        expectPublish(
            abi.encodeWithSelector(ITrees.ProofLength.selector, 5, 4),
            r,
            signature,
            NaiveTree.concat(proof, new bytes32[](1))
        );
        // not of this channel
        other.channelId = "another";
        expectPublish(
            abi.encodeWithSelector(IChannels.NotInPart.selector, bytes32("another"), 7, id, 1, 10),
            other,
            signature,
            proof
        );
    }

    /// A revoked key's receipts stay the node's.
    function test_publishReceipt_revoked() public {
        demand(7);
        vm.prank(nora);
        nodes.revokeSessionKey(session);
        publish(7);
    }

    function test_publishReceipt_ownKey() public view {
        SignedReceipt memory r = receipt(3);
        (bytes32 digest, address node) = channels.signedReceipt(r, sign(noraKey, channels.receiptDigest(r)));
        assertEq(digest, channels.receiptDigest(r));
        assertEq(node, nora);
    }

    // ------------------------------------------------------------------------------------------- receiptTimeout

    function test_receiptTimeout() public {
        demand(7);
        vm.warp(deadlineOf(7));
        vm.expectRevert(abi.encodeWithSelector(IChannels.TooEarly.selector, deadlineOf(7), deadlineOf(7)));
        channels.receiptTimeout(1, id, 7);
        skip(1);
        vm.expectEmit();
        emit IChannels.DemandRefunded(1, id, 7);
        vm.expectEmit();
        emit IChannels.ReceiptWithheld(1, id, 7);
        vm.expectEmit();
        emit IChannels.BatchVoid(1, nora);
        vm.prank(mallory);
        channels.receiptTimeout(1, id, 7);
        assertBatch(place, IChannels.BatchState.Void);
        // the bond of 20: 8 to the challenger, 12 burned
        assertEq(channels.balanceOf(walt), rp.receiptFee + 8 * PRICE);
        assertEq(token.balanceOf(DEAD), 12 * PRICE);
        INodes.Node memory n = nodes.node(nora);
        assertEq(abi.encode(n.stake, n.pledged, n.slashed, n.convicted), abi.encode(STAKE - 20 * PRICE, 0, 1, false));
        assertConserved();

        channels.refund(place);
        assertEq(channels.balanceOf(uma), 10 * PRICE);
        assertConserved();
        vm.expectRevert(wrongDemand(7, IChannels.DemandState.Ended, IChannels.DemandState.Demanded));
        channels.receiptTimeout(1, id, 7);
        // The channel goes on.
        place = redeemed(12);
        vm.warp(batchOf(place).windowEnd + 1);
        channels.release(2);
        assertEq(channels.balanceOf(nora), 2 * PRICE);
    }

    /// Other demands of a void batch are refunded at once, and nothing more is taken.
    function test_receiptTimeout_void() public {
        demand(7);
        demand(8);
        vm.warp(deadlineOf(7) + 1);
        channels.receiptTimeout(1, id, 7);
        channels.receiptTimeout(1, id, 8);
        assertEq(channels.balanceOf(walt), 2 * rp.receiptFee + 8 * PRICE);
        assertEq(batchOf(place).unanswered, 0);
        assertEq(channels.totalFees(), 0);
        assertConserved();
        vm.expectRevert(
            abi.encodeWithSelector(
                IChannels.WrongBatchState.selector, 1, IChannels.BatchState.Void, IChannels.BatchState.Pending
            )
        );
        demand(9);
    }

    /// The node was convicted: no turn to wait for, no bond to take.
    function test_receiptTimeout_convicted() public {
        demand(7);
        vm.prank(address(trials));
        channels.convict(id);
        uint256 before = token.balanceOf(DEAD);
        channels.receiptTimeout(1, id, 7);
        assertBatch(place, IChannels.BatchState.Void);
        assertEq(channels.balanceOf(walt), rp.receiptFee);
        assertEq(token.balanceOf(DEAD), before);
        assertConserved();
    }

    function test_receiptTimeout_none() public {
        vm.expectRevert(wrongDemand(7, IChannels.DemandState.None, IChannels.DemandState.Demanded));
        channels.receiptTimeout(1, id, 7);
    }

    /// Nothing that challengers do makes a batch wait longer than this for being lodged against.
    function test_lodgeEnd_bound() public {
        uint40 end = batchOf(place).windowEnd;
        for (uint64 s = 1; s <= 10; s++) {
            vm.warp(end - 10 + s);
            demand(s);
        }
        for (uint64 s = 1; s <= 10; s++) {
            vm.warp(deadlineOf(s));
            publish(s);
        }
        assertEq(batchOf(place).lodgeEnd, end + rp.receiptTurn + rp.lodgeTurn);
    }
}
