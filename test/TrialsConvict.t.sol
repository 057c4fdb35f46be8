// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChannels, Place, Receipt as SignedReceipt, Redemption} from "../contracts/interfaces/IChannels.sol";
import {Fault, ITrials} from "../contracts/interfaces/ITrials.sol";
import {Exchange} from "./support/Exchange.sol";
import {TinyModel} from "./support/TinyModel.sol";

contract TrialsConvictTest is Exchange {
    /// What a conviction of nora leaves, with walt as who showed it.
    function assertConvicted() internal view {
        assertTrue(nodes.node(nora).convicted);
        assertEq(nodes.node(nora).stake, 0);
        assertEq(channels.balanceOf(walt), STAKE * 4 / 10);
        assertEq(channels.balanceOf(uma), STAKE * 3 / 10);
        assertEq(token.balanceOf(DEAD), STAKE * 3 / 10);
        assertEq(channels.totalRewards(), 0);
        assertConserved();
    }

    // ------------------------------------------------------------------------------------------------ overclaim

    /// The gateway allowed ten, the last receipt came to less, the node claims all that was allowed.
    function overclaimed() internal returns (Place memory place, SignedReceipt memory last) {
        last = receipt(10);
        last.cumulative = 10 * PRICE - 1;
        place = redeemed(10);
    }

    function overclaim(Place memory place, SignedReceipt memory r) internal {
        bytes memory signature = signed(r);
        vm.prank(walt);
        trials.convictOverclaim(place, r, signature);
    }

    function test_convictOverclaim() public {
        (Place memory place, SignedReceipt memory last) = overclaimed();
        vm.expectEmit();
        emit ITrials.OverclaimShown(1, channels.receiptDigest(last));
        overclaim(place, last);
        assertConvicted();
        channels.refund(place);
        assertEq(channels.balanceOf(uma), STAKE * 3 / 10 + 10 * PRICE);
    }

    function test_convictOverclaim_released() public {
        (Place memory place, SignedReceipt memory last) = overclaimed();
        vm.warp(batchOf(place).windowEnd + 1);
        channels.release(1);
        overclaim(place, last);
        assertConvicted();
    }

    function test_convictOverclaim_honest() public {
        Place memory place = redeemed(10);
        SignedReceipt memory last = receipt(10);
        bytes memory signature = signed(last);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotOverclaimed.selector, 10 * PRICE, 10 * PRICE));
        trials.convictOverclaim(place, last, signature);
        // To claim less harms nobody.
        last.cumulative = 11 * PRICE;
        signature = signed(last);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotOverclaimed.selector, 10 * PRICE, 11 * PRICE));
        trials.convictOverclaim(place, last, signature);
    }

    function test_convictOverclaim_notLast() public {
        Place memory place = redeemed(10);
        SignedReceipt memory r = receipt(9);
        bytes memory signature = signed(r);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotLast.selector, id, 9, id, 10));
        trials.convictOverclaim(place, r, signature);
        bytes32 other = openChannel(walt, nora, 1 ether, "o");
        r = receipt(other, 10);
        r.cumulative = 0;
        signature = signed(r);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotLast.selector, other, 10, id, 10));
        trials.convictOverclaim(place, r, signature);
    }

    function test_convictOverclaim_forged() public {
        (Place memory place, SignedReceipt memory last) = overclaimed();
        bytes memory signature = sign(malloryKey, channels.receiptDigest(last));
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotSignedByNode.selector, nora, mallory));
        trials.convictOverclaim(place, last, signature);
        signature = signed(last);
        place.part.cumulative += 1;
        vm.expectPartialRevert(IChannels.NotInBatch.selector);
        trials.convictOverclaim(place, last, signature);
    }

    // --------------------------------------------------------------------------------------------- equivocation

    function equivocate(SignedReceipt memory a, SignedReceipt memory b) internal {
        (bytes memory signatureA, bytes memory signatureB) = (signed(a), signed(b));
        vm.prank(walt);
        trials.convictEquivocation(a, signatureA, b, signatureB);
    }

    /// However little they differ; neither needs to be redeemed.
    function testFuzz_convictEquivocation(uint256 field, uint64 salt) public {
        (SignedReceipt memory a, SignedReceipt memory b) = (receipt(4), receipt(4));
        salt = uint64(bound(salt, 1, 1_000));
        field = field % 13;
        if (field == 0) b.modelId = bytes32(uint256(salt));
        if (field == 1) b.inputHash = bytes32(uint256(salt));
        if (field == 2) b.outputHash = bytes32(uint256(salt));
        if (field == 3) b.nIn += uint32(salt);
        if (field == 4) b.nOut += uint32(salt);
        if (field == 5) b.maxNew += uint32(salt);
        if (field == 6) b.sampling += salt;
        if (field == 7) b.seed = bytes32(uint256(salt));
        if (field == 8) b.layersRoot = bytes32(uint256(salt));
        if (field == 9) b.price += salt;
        if (field == 10) b.cumulative += salt;
        // Two receipts with one number, or two for one request.
        if (field == 11) b.request -= salt;
        if (field == 12) b.sequence += salt;
        equivocate(a, b);
        assertConvicted();
    }

    /// By different keys of the node, one of them revoked: it answers for both.
    function test_convictEquivocation_keys() public {
        (SignedReceipt memory a, SignedReceipt memory b) = (receipt(4), receipt(4));
        b.price += 1;
        vm.prank(nora);
        nodes.revokeSessionKey(session);
        bytes memory signatureA = signed(a);
        bytes memory signatureB = sign(noraKey, channels.receiptDigest(b));
        vm.prank(walt);
        trials.convictEquivocation(a, signatureA, b, signatureB);
        assertConvicted();
    }

    function test_convictEquivocation_none() public {
        (SignedReceipt memory a, SignedReceipt memory b) = (receipt(4), receipt(5));
        expectNone(a, a);
        expectNone(a, b);
        bytes32 other = openChannel(walt, nora, 1 ether, "o");
        expectNone(a, receipt(other, 4));
    }

    function expectNone(SignedReceipt memory a, SignedReceipt memory b) internal {
        (bytes32 first, bytes32 second) = (channels.receiptDigest(a), channels.receiptDigest(b));
        (bytes memory signatureA, bytes memory signatureB) = (signed(a), signed(b));
        vm.expectRevert(abi.encodeWithSelector(ITrials.NoEquivocation.selector, first, second));
        trials.convictEquivocation(a, signatureA, b, signatureB);
    }

    function test_convictEquivocation_forged() public {
        (SignedReceipt memory a, SignedReceipt memory b) = (receipt(4), receipt(4));
        b.price += 1;
        bytes memory good = signed(a);
        bytes memory forged = sign(malloryKey, channels.receiptDigest(b));
        bytes memory error_ = abi.encodeWithSelector(IChannels.NotSignedByNode.selector, nora, mallory);
        vm.expectRevert(error_);
        trials.convictEquivocation(a, good, b, forged);
        vm.expectRevert(error_);
        trials.convictEquivocation(b, forged, a, good);
    }

    // ------------------------------------------------------------------------------------------------ malformed

    function malformed(SignedReceipt memory r, bytes memory input, bytes memory output, Fault fault) internal {
        bytes memory signature = signed(r);
        vm.expectEmit();
        emit ITrials.MalformedShown(channels.receiptDigest(r), fault);
        vm.prank(walt);
        trials.convictMalformed(r, signature, input, output);
        assertConvicted();
    }

    function test_convictMalformed_model() public {
        SignedReceipt memory r = receipt(1);
        r.modelId = "none";
        malformed(r, "", "", Fault.Model);
    }

    function test_convictMalformed_noPrompt() public {
        SignedReceipt memory r = receipt(1);
        r.nIn = 0;
        malformed(r, "", "", Fault.Length);
    }

    function test_convictMalformed_noAnswer() public {
        SignedReceipt memory r = receipt(1);
        r.nOut = 0;
        malformed(r, "", "", Fault.Length);
    }

    function test_convictMalformed_tooLong() public {
        SignedReceipt memory r = receipt(1);
        r.maxNew = r.nOut - 1;
        malformed(r, "", "", Fault.Length);
    }

    function test_convictMalformed_positions() public {
        SignedReceipt memory r = receipt(1);
        r.nIn = TinyModel.MAX_POSITIONS - r.nOut + 2;
        malformed(r, "", "", Fault.Positions);
    }

    function test_convictMalformed_sampling() public {
        SignedReceipt memory r = receipt(1);
        r.sampling = 5120; // a greedy model
        malformed(r, "", "", Fault.Sampling);
    }

    function test_convictMalformed_samplingWord() public {
        vm.mockCall(address(models), abi.encodeCall(models.samples, (modelId)), abi.encode(true));
        SignedReceipt memory r = receipt(1);
        r.sampling = 1 << 160;
        malformed(r, "", "", Fault.Sampling);
    }

    function test_convictMalformed_count() public {
        SignedReceipt memory r = receipt(1);
        r.nIn = 4;
        malformed(r, tokens(3), "", Fault.Count);
    }

    function test_convictMalformed_countOut() public {
        SignedReceipt memory r = receipt(1);
        r.nOut = 2;
        malformed(r, "", tokens(3), Fault.Count);
    }

    function test_convictMalformed_vocabulary() public {
        SignedReceipt memory r = receipt(1);
        bytes memory input = bytes.concat(tokens(2), bytes4(uint32(1000)));
        r.inputHash = hashOf(input);
        malformed(r, input, "", Fault.Vocabulary);
    }

    function test_convictMalformed_vocabularyOut() public {
        SignedReceipt memory r = receipt(1);
        bytes memory output = bytes.concat(bytes4(uint32(type(uint32).max)), tokens(2));
        r.outputHash = hashOf(output);
        malformed(r, tokens(3), output, Fault.Vocabulary);
    }

    function test_convictMalformed_stop() public {
        SignedReceipt memory r = receipt(1);
        bytes memory output = bytes.concat(tokens(1), bytes4(TinyModel.STOP), tokens(1));
        r.outputHash = hashOf(output);
        malformed(r, "", output, Fault.Stop);
    }

    function expectHonest(SignedReceipt memory r, bytes memory input, bytes memory output) internal {
        bytes memory signature = signed(r);
        vm.expectRevert(ITrials.NotMalformed.selector);
        trials.convictMalformed(r, signature, input, output);
    }

    /// What an honest receipt may be: a stop token last or in the prompt, an early end without one.
    function test_convictMalformed_honest() public {
        SignedReceipt memory r = receipt(1);
        expectHonest(r, "", "");
        expectHonest(r, tokens(3), tokens(3));
        r.maxNew = 100;
        expectHonest(r, tokens(3), tokens(3));
        bytes memory stopped = bytes.concat(tokens(2), bytes4(TinyModel.STOP));
        r.outputHash = hashOf(stopped);
        bytes memory prompt = bytes.concat(bytes4(TinyModel.STOP), tokens(2));
        r.inputHash = hashOf(prompt);
        expectHonest(r, prompt, stopped);
        r.nIn = TinyModel.MAX_POSITIONS - r.nOut + 1;
        expectHonest(r, "", stopped);
        vm.mockCall(address(models), abi.encodeCall(models.samples, (modelId)), abi.encode(true));
        r.sampling = 5120;
        expectHonest(r, "", stopped);
    }

    function test_convictMalformed_otherTokens() public {
        SignedReceipt memory r = receipt(1);
        bytes memory signature = signed(r);
        vm.expectRevert(abi.encodeWithSelector(ITrials.TokensMismatch.selector, hashOf(tokens(4)), hashOf(tokens(3))));
        trials.convictMalformed(r, signature, tokens(4), "");
        vm.expectRevert(abi.encodeWithSelector(ITrials.TokensMismatch.selector, hashOf(tokens(4)), hashOf(tokens(3))));
        trials.convictMalformed(r, signature, "", tokens(4));
        vm.expectRevert(abi.encodeWithSelector(ITrials.TokensMismatch.selector, bytes32(0), hashOf(tokens(3))));
        trials.convictMalformed(r, signature, hex"010203", "");
    }

    function test_convictMalformed_forged() public {
        SignedReceipt memory r = receipt(1);
        r.modelId = "none";
        bytes memory signature = sign(malloryKey, channels.receiptDigest(r));
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotSignedByNode.selector, nora, mallory));
        trials.convictMalformed(r, signature, "", "");
    }

    // ---------------------------------------------------------------------------------------------------- money

    /// I6: a node that is its own user and its own challenger loses by a conviction, whatever it has.
    function testFuzz_convict_neverPays(uint128 stake) public {
        stake = uint128(bound(stake, 3, FUNDS));
        vm.startPrank(nils);
        nodes.deposit(stake);
        bytes32 own = channels.open(nils, nils, 0, "own");
        vm.stopPrank();
        SignedReceipt memory r = receipt(own, 1);
        r.modelId = "none";
        bytes memory signature = sign(nilsKey, channels.receiptDigest(r));
        vm.prank(nils);
        trials.convictMalformed(r, signature, "", "");
        assertLt(channels.balanceOf(nils), stake);
        assertGt(token.balanceOf(DEAD), 0);
        assertConserved();
    }
}
