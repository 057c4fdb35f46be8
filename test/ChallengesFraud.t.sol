// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChallenges, OpeningId, Target} from "../contracts/interfaces/IChallenges.sol";
import {JobId, JobState} from "../contracts/interfaces/IMarket.sol";
import {Claim, Witness} from "../contracts/interfaces/IStepVerifier.sol";
import {Fixture} from "./support/Fixture.sol";
import {TinyTrace} from "./support/TinyTrace.sol";

contract ChallengesFraudTest is Fixture {
    bytes32 internal constant SALT = keccak256("walt's salt");
    bytes32 internal constant SALT_2 = keccak256("wanda's salt");

    /// the lie of the fixture: the second block's residual sum at position 4
    Claim internal lie = Claim(2, 4, 2, 290);
    TinyTrace internal trace;
    JobId internal id;

    function setUp() public override {
        super.setUp();
        caught(lie);
    }

    /// A job whose trace has this one lie, its operator list open.
    function caught(Claim memory claim) internal {
        trace = new TinyTrace(3, 3, true, claim);
        id = submitted(trace);
        open(id, opListTarget(claim.layer, claim.row), trace);
    }

    function announce(address who, Claim memory claim, bytes32 salt) internal {
        bytes32 commitment = challenges.commitmentOf(id, claim, who, salt);
        vm.prank(who);
        challenges.announce(id, commitment);
    }

    function prove(address who, Claim memory claim, bytes32 salt) internal {
        Witness memory w = trace.witness(claim);
        vm.prank(who);
        challenges.proveFraud(id, claim, salt, w);
    }

    function expectProof(bytes memory error_, address who, Claim memory claim, bytes32 salt) internal {
        Witness memory w = trace.witness(claim);
        vm.expectRevert(error_);
        vm.prank(who);
        challenges.proveFraud(id, claim, salt, w);
    }

    function nextBlock() internal {
        vm.roll(block.number + 1);
        skip(1);
    }

    // ------------------------------------------------------------------------------------------------- announce

    function test_announce() public {
        bytes32 commitment = challenges.commitmentOf(id, lie, walt, SALT);
        assertEq(
            commitment, keccak256(abi.encode(id, lie.layer, lie.row, lie.op, lie.element, walt, SALT)), "commitment"
        );
        vm.expectEmit();
        emit IChallenges.Announced(id, walt, commitment);
        vm.prank(walt);
        challenges.announce(id, commitment);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.AlreadyAnnounced.selector, commitment, block.number));
        vm.prank(walt);
        challenges.announce(id, commitment);
    }

    function test_announce_state() public {
        id = buy(1, 1);
        vm.expectRevert(
            abi.encodeWithSelector(IChallenges.WrongState.selector, id, JobState.Assigned, JobState.Submitted)
        );
        challenges.announce(id, bytes32(0));
    }

    // ----------------------------------------------------------------------------------------------- proveFraud

    function test_proveFraud() public {
        announce(walt, lie, SALT);
        nextBlock();
        int256 right = trace.honest(2, 4, 2, 290);
        vm.expectEmit();
        emit IChallenges.FraudProven(id, walt, lie, right + 1, right);
        prove(walt, lie, SALT);
        assertState(id, JobState.Slashed);
        assertEq(market.totalRewards(), 4 ether);
        assertEq(market.withdrawable(walt), 0);
        (address winner, uint40 end, bool paid) = challenges.rewardOf(id);
        assertEq(winner, walt);
        assertEq(end, block.timestamp + cp.challengerTurn);
        assertFalse(paid);
        assertConserved();
    }

    /// Every sum of the tiny model, first and last element, first and last row, every layer.
    function test_proveFraud_everywhere() public {
        vm.prank(nora);
        nodes.configure("", 100);
        Claim[8] memory claims = [
            Claim(1, 0, 0, 0),
            Claim(1, 4, 0, 299),
            Claim(1, 2, 2, 255),
            Claim(2, 3, 2, 256),
            Claim(2, 0, 0, 17),
            Claim(3, 0, 0, 0),
            Claim(3, 1, 0, 255),
            Claim(3, 2, 0, 299)
        ];
        for (uint256 i; i < claims.length; i++) {
            caught(claims[i]);
            announce(walt, claims[i], SALT);
            nextBlock();
            prove(walt, claims[i], SALT);
            assertState(id, JobState.Slashed);
            assertConserved();
        }
    }

    /// An honest element, next to the lie as elsewhere, proves nothing.
    function test_proveFraud_honest() public {
        Claim memory claim = Claim(2, 4, 2, 289);
        announce(walt, claim, SALT);
        nextBlock();
        int256 right = trace.honest(2, 4, 2, 289);
        expectProof(abi.encodeWithSelector(IChallenges.NotFraud.selector, right, right), walt, claim, SALT);
    }

    function test_proveFraud_afterTheWindow() public {
        announce(walt, lie, SALT);
        vm.roll(block.number + 1);
        vm.warp(windowEnd(id) + 1 days);
        assertTrue(challenges.settled(id));
        prove(walt, lie, SALT);
        assertState(id, JobState.Slashed);
    }

    function test_proveFraud_final() public {
        announce(walt, lie, SALT);
        vm.roll(block.number + 1);
        vm.warp(windowEnd(id) + 1 days);
        market.finalize(id);
        bytes memory error_ =
            abi.encodeWithSelector(IChallenges.WrongState.selector, id, JobState.Final, JobState.Submitted);
        expectProof(error_, walt, lie, SALT);
    }

    function test_proveFraud_notAnnounced() public {
        announce(walt, lie, SALT);
        nextBlock();
        bytes4 error_ = IChallenges.NotAnnounced.selector;
        bytes32 commitment = challenges.commitmentOf(id, lie, walt, SALT_2);
        expectProof(abi.encodeWithSelector(error_, commitment), walt, lie, SALT_2);
        // Copied from the mempool: neither walt's salt nor walt's announcement is worth anything to another.
        commitment = challenges.commitmentOf(id, lie, mallory, SALT);
        expectProof(abi.encodeWithSelector(error_, commitment), mallory, lie, SALT);
        bytes32 copied = challenges.commitmentOf(id, lie, walt, SALT);
        vm.prank(mallory);
        challenges.announce(id, copied);
        nextBlock();
        expectProof(abi.encodeWithSelector(error_, commitment), mallory, lie, SALT);
        prove(walt, lie, SALT);
    }

    function test_proveFraud_sameBlock() public {
        announce(walt, lie, SALT);
        bytes memory error_ = abi.encodeWithSelector(IChallenges.AnnouncedTooLate.selector, block.number, block.number);
        expectProof(error_, walt, lie, SALT);
    }

    function test_proveFraud_opListNotOpened() public {
        Claim memory claim = Claim(2, 3, 2, 1);
        announce(walt, claim, SALT);
        nextBlock();
        expectProof(abi.encodeWithSelector(IChallenges.OpListNotOpened.selector, id, 2, 3), walt, claim, SALT);
    }

    function test_proveFraud_badOp() public {
        Claim memory claim = Claim(2, 4, 3, 1);
        announce(walt, claim, SALT);
        nextBlock();
        Witness memory w = trace.witness(lie);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.BadTarget.selector, "op", 3, 3));
        vm.prank(walt);
        challenges.proveFraud(id, claim, SALT, w);
    }

    /// I7: whatever bit of a valid witness is changed, the proof is refused.
    /// forge-config: default.fuzz.runs = 128
    function testFuzz_proveFraud_changed(uint256 part, uint256 bit) public {
        announce(walt, lie, SALT);
        nextBlock();
        Witness memory w = trace.witness(lie);
        part = bound(part, 0, 9);
        if (part == 0) flip(w.opRoots, bit);
        else if (part == 1) flip(w.descriptor, bit);
        else if (part == 2) flip(w.descriptorProof, bit);
        else if (part == 3) flip(w.page, bit);
        else if (part == 4) flip(w.pageProof, bit);
        else if (part == 5) flip(w.reads[0].data, bit);
        else if (part == 6) flip(w.reads[0].proof, bit);
        else if (part == 7) flip(w.reads[1].data, bit);
        else if (part == 8) flip(w.reads[1].leaves, bit);
        else flip(w.reads[1].leafProof, bit);
        vm.expectRevert();
        vm.prank(walt);
        challenges.proveFraud(id, lie, SALT, w);
    }

    function flip(bytes32[] memory words, uint256 bit) internal pure {
        bit = bit % (256 * words.length);
        words[bit / 256] ^= bytes32(uint256(1) << (bit % 256));
    }

    function flip(bytes memory data, uint256 bit) internal pure {
        bit = bit % (8 * data.length);
        data[bit / 8] ^= bytes1(uint8(1 << (bit % 8)));
    }

    // --------------------------------------------------------------------------------------------------- reward

    function test_contestReward() public {
        announce(wanda, lie, SALT_2);
        announce(walt, lie, SALT);
        nextBlock();
        prove(walt, lie, SALT);
        (, uint40 end,) = challenges.rewardOf(id);
        vm.warp(end);
        vm.expectEmit();
        emit IChallenges.RewardContested(id, wanda);
        vm.prank(wanda);
        challenges.contestReward(id, SALT_2);
        (address winner,,) = challenges.rewardOf(id);
        assertEq(winner, wanda);
        // The order within a block counts, and the loser cannot take it back.
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NotEarlier.selector, 2, 1));
        vm.prank(walt);
        challenges.contestReward(id, SALT);
        vm.warp(end + 1);
        challenges.settleReward(id);
        assertEq(market.withdrawable(wanda), 4 ether);
        assertEq(market.withdrawable(walt), 0);
        assertConserved();
    }

    function test_contestReward_late() public {
        announce(wanda, lie, SALT_2);
        announce(walt, lie, SALT);
        nextBlock();
        prove(walt, lie, SALT);
        (, uint40 end,) = challenges.rewardOf(id);
        vm.warp(end + 1);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.TooLate.selector, id, end + 1, end));
        vm.prank(wanda);
        challenges.contestReward(id, SALT_2);
    }

    function test_contestReward_notEarlier() public {
        announce(walt, lie, SALT);
        announce(wanda, lie, SALT_2);
        nextBlock();
        prove(walt, lie, SALT);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NotEarlier.selector, 2, 1));
        vm.prank(wanda);
        challenges.contestReward(id, SALT_2);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NotEarlier.selector, 1, 1));
        vm.prank(walt);
        challenges.contestReward(id, SALT);
    }

    function test_contestReward_otherClaim() public {
        announce(wanda, Claim(2, 4, 2, 291), SALT_2);
        announce(walt, lie, SALT);
        nextBlock();
        prove(walt, lie, SALT);
        bytes32 commitment = challenges.commitmentOf(id, lie, wanda, SALT_2);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NotAnnounced.selector, commitment));
        vm.prank(wanda);
        challenges.contestReward(id, SALT_2);
    }

    function test_contestReward_noVerdict() public {
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NoRewardHeld.selector, id));
        challenges.contestReward(id, SALT);
    }

    function test_settleReward() public {
        announce(walt, lie, SALT);
        nextBlock();
        prove(walt, lie, SALT);
        (, uint40 end,) = challenges.rewardOf(id);
        vm.warp(end);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.TooEarly.selector, id, end, end));
        challenges.settleReward(id);
        vm.warp(end + 1);
        vm.expectEmit();
        emit IChallenges.RewardSettled(id, walt);
        vm.prank(mallory);
        challenges.settleReward(id);
        assertEq(market.withdrawable(walt), 4 ether);
        assertEq(market.totalRewards(), 0);
        (,, bool paid) = challenges.rewardOf(id);
        assertTrue(paid);
        bytes memory error_ = abi.encodeWithSelector(IChallenges.NoRewardHeld.selector, id);
        vm.expectRevert(error_);
        challenges.settleReward(id);
        vm.expectRevert(error_);
        challenges.contestReward(id, SALT);
    }

    function test_settleReward_noVerdict() public {
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NoRewardHeld.selector, id));
        challenges.settleReward(id);
    }

    /// The whole story: descent by openings alone, proof, money. The watcher is back where it was, and the reward above.
    function test_wholeChallenge() public {
        trace = new TinyTrace(3, 3, true, lie);
        id = submitted(trace);
        uint256 before = token.balanceOf(walt) + market.withdrawable(walt);
        vm.warp(windowEnd(id));
        Target[3] memory path = [layersTarget(2, 0), positionsTarget(2, 3, 0), opListTarget(2, 4)];
        OpeningId parent = NONE;
        for (uint256 i; i < path.length; i++) {
            parent = demand(id, parent, path[i], trace);
            skip(cp.nodeTurn);
            answer(id, path[i], trace);
            skip(cp.challengerTurn);
        }
        announce(walt, lie, SALT);
        nextBlock();
        prove(walt, lie, SALT);
        skip(cp.challengerTurn + 1);
        challenges.settleReward(id);
        vm.startPrank(walt);
        challenges.reclaimFees(id);
        market.withdraw();
        assertEq(token.balanceOf(walt), before + 4 ether);
        assertConserved();
    }
}
