// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChallenges, OpeningId, Target} from "../contracts/interfaces/IChallenges.sol";
import {Claim} from "../contracts/interfaces/IStepVerifier.sol";
import {IMarket, JobId, JobState} from "../contracts/interfaces/IMarket.sol";
import {Fixture} from "./support/Fixture.sol";
import {NaiveTree} from "./support/NaiveTree.sol";
import {TinyTrace} from "./support/TinyTrace.sol";

/// The last operator's tensors of block 1 have a byte more than their shape.
contract LongTrace is TinyTrace {
    constructor(uint32 nIn_, uint32 nOut_) TinyTrace(nIn_, nOut_, false, Claim(0, 0, 0, 0)) {}

    function tensor(uint16 layer, uint32 row, uint16 op) public view override returns (bytes memory data) {
        data = super.tensor(layer, row, op);
        if (layer == 1 && op == 2) data = bytes.concat(data, hex"00");
    }
}

/// The same with a byte less.
contract ShortTrace is TinyTrace {
    constructor(uint32 nIn_, uint32 nOut_) TinyTrace(nIn_, nOut_, false, Claim(0, 0, 0, 0)) {}

    function tensor(uint16 layer, uint32 row, uint16 op) public view override returns (bytes memory data) {
        data = super.tensor(layer, row, op);
        if (layer == 1 && op == 2) {
            assembly {
                mstore(data, sub(mload(data), 1))
            }
        }
    }
}

contract ChallengesAnswerTest is Fixture {
    TinyTrace internal trace;
    JobId internal id;

    function setUp() public override {
        super.setUp();
        trace = honestTrace(3, 3);
        id = submitted(trace);
    }

    function answerAs(address who, Target memory t, bytes memory data) internal {
        (bytes32 hash, uint32 leafCount, uint32 byteLength) =
            (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        vm.prank(who);
        challenges.answer(id, t, hash, leafCount, byteLength, data);
    }

    function expectAnswer(bytes memory error_, Target memory t, bytes memory data) internal {
        (bytes32 hash, uint32 leafCount, uint32 byteLength) =
            (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        vm.expectRevert(error_);
        vm.prank(nora);
        challenges.answer(id, t, hash, leafCount, byteLength, data);
    }

    function expectState(JobState actual, JobState expected) internal {
        vm.expectRevert(abi.encodeWithSelector(IChallenges.WrongState.selector, id, actual, expected));
    }

    // --------------------------------------------------------------------------------------------------- answer

    /// Demands and answers, and checks what follows.
    function accepts(Target memory t, address who) internal {
        OpeningId o = demand(id, t, trace);
        bytes memory data = trace.answer(t);
        (bytes32 hash, uint32 leafCount, uint32 byteLength) =
            (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        vm.warp(challenges.opening(o).turnEnd);
        vm.expectEmit();
        emit IChallenges.Answered(id, o, who, t, data);
        vm.prank(who);
        challenges.answer(id, t, hash, leafCount, byteLength, data);
        IChallenges.Opening memory after_ = challenges.opening(o);
        assertEq(uint8(after_.state), uint8(IChallenges.OpeningState.Answered));
        assertEq(after_.turnEnd, block.timestamp + cp.challengerTurn);
        assertFalse(challenges.settled(id));
        vm.warp(after_.turnEnd);
        assertFalse(challenges.settled(id));
        vm.warp(after_.turnEnd + 1);
        assertTrue(challenges.settled(id));
    }

    function test_answer_layers() public {
        accepts(layersTarget(2, 0), nora);
    }

    function test_answer_layers_byAnybody() public {
        accepts(layersTarget(1, 1), mallory);
    }

    function test_answer_positions() public {
        accepts(positionsTarget(1, 3, 0), mallory);
    }

    function test_answer_positions_lastOfThree() public {
        accepts(positionsTarget(3, 1, 1), nora);
    }

    function test_answer_opList() public {
        Target memory t = opListTarget(2, 4);
        accepts(t, nora);
        bytes32[] memory roots = trace.opRoots(2, 4);
        assertEq(challenges.opListHash(id, 2, 4), keccak256(abi.encodePacked(uint8(3), uint16(3), roots)));
        assertEq(challenges.opListHash(id, 2, 3), 0);
    }

    function test_answer_pages() public {
        open(id, opListTarget(1, 4), trace);
        accepts(pagesTarget(1, 4, 1, 3, 0), mallory);
    }

    function test_answer_page() public {
        open(id, opListTarget(1, 4), trace);
        accepts(pageTarget(1, 4, 2, 1), mallory); // the last: 176 bytes
    }

    function test_answer_page_full() public {
        open(id, opListTarget(1, 4), trace);
        accepts(pageTarget(1, 4, 1, 0), nora);
    }

    /// 66 rows and 66 pages of scores: seven levels, of which an answer opens six.
    function test_answer_deepTrees() public {
        trace = honestTrace(64, 3);
        id = submitted(trace);
        Target memory t = positionsTarget(1, 7, 0);
        OpeningId top = demand(id, t, trace);
        bytes memory data = trace.answer(t);
        assertEq(data.length, 64 * 32);
        answer(id, t, trace, data);
        // The last of the 64 nodes that are not empty holds rows 64 and 65.
        t = positionsTarget(1, 1, 32);
        IChallenges.DemandProof memory p = trace.proof(t);
        bytes32 child;
        assembly {
            child := mload(add(add(data, 32), mul(32, 32)))
        }
        assertEq(p.nodeHash, child);
        vm.prank(walt);
        challenges.demand(id, top, t, p);
        answer(id, t, trace);

        t = opListTarget(1, 65);
        OpeningId list = open(id, t, trace);
        t = pagesTarget(1, 65, 1, 7, 0);
        top = demand(id, list, t, trace);
        answer(id, t, trace);
        t = pagesTarget(1, 65, 1, 1, 32);
        demand(id, top, t, trace);
        answer(id, t, trace);
        t = pageTarget(1, 65, 1, 65);
        demand(id, top, t, trace);
        answer(id, t, trace);
        // An inner node of a half full level: 64..127, of which two hold a page.
        t = pagesTarget(1, 65, 1, 6, 1);
        demand(id, top, t, trace);
        data = trace.answer(t);
        bytes memory stuffed = bytes.concat(data);
        stuffed[2 * 32] ^= 0x01;
        bytes32 other = NaiveTree.EMPTY ^ bytes32(uint256(1) << 248);
        expectAnswer(abi.encodeWithSelector(IChallenges.NotEmpty.selector, 2, other, NaiveTree.EMPTY), t, stuffed);
        answer(id, t, trace, data);
    }

    function test_answer_late() public {
        Target memory t = layersTarget(2, 0);
        OpeningId o = demand(id, t, trace);
        uint40 end = challenges.opening(o).turnEnd;
        vm.warp(end + 1);
        expectAnswer(abi.encodeWithSelector(IChallenges.TooLate.selector, id, end + 1, end), t, trace.answer(t));
    }

    function test_answer_notDemanded() public {
        Target memory t = layersTarget(2, 0);
        OpeningId o = challenges.openingId(id, t);
        bytes memory data = trace.answer(t);
        bytes4 error_ = IChallenges.NotDemanded.selector;
        expectAnswer(abi.encodeWithSelector(error_, o, IChallenges.OpeningState.None), t, data);
        open(id, t, trace);
        expectAnswer(abi.encodeWithSelector(error_, o, IChallenges.OpeningState.Answered), t, data);
    }

    function test_answer_params() public {
        Target memory t = layersTarget(2, 0);
        demand(id, t, trace);
        bytes memory data = trace.answer(t);
        bytes32 hash = trace.nodeHash(t);
        bytes32 expected = keccak256(abi.encode(t, hash, 4, 0));
        bytes4 error_ = IChallenges.ParamsMismatch.selector;
        vm.startPrank(nora);
        vm.expectRevert(abi.encodeWithSelector(error_, keccak256(abi.encode(t, ~hash, 4, 0)), expected));
        challenges.answer(id, t, ~hash, 4, 0, data);
        vm.expectRevert(abi.encodeWithSelector(error_, keccak256(abi.encode(t, hash, 3, 0)), expected));
        challenges.answer(id, t, hash, 3, 0, data);
        vm.expectRevert(abi.encodeWithSelector(error_, keccak256(abi.encode(t, hash, 4, 1)), expected));
        challenges.answer(id, t, hash, 4, 1, data);
    }

    function kinds(uint256 i) internal pure returns (Target memory) {
        Target[5] memory t = [
            layersTarget(2, 0),
            positionsTarget(1, 3, 0),
            opListTarget(1, 3),
            pagesTarget(1, 4, 1, 3, 0),
            pageTarget(1, 4, 2, 1)
        ];
        return t[i];
    }

    function test_answer_length() public {
        open(id, opListTarget(1, 4), trace);
        for (uint256 i; i < 5; i++) {
            Target memory t = kinds(i);
            demand(id, t, trace);
            bytes memory data = trace.answer(t);
            bytes4 error_ = IChallenges.AnswerLength.selector;
            expectAnswer(abi.encodeWithSelector(error_, data.length + 1, data.length), t, bytes.concat(data, hex"00"));
            expectAnswer(abi.encodeWithSelector(error_, 0, data.length), t, "");
        }
    }

    /// Who commits to a page of another length than the shape's has no answer: neither that page nor the right one.
    function test_answer_length_committed() public {
        uint256[2] memory lengths = [uint256(177), 175];
        Target memory t = pageTarget(1, 4, 2, 1);
        bytes memory right = trace.answer(t);
        for (uint256 i; i < 2; i++) {
            trace = i == 0 ? TinyTrace(new LongTrace(3, 3)) : TinyTrace(new ShortTrace(3, 3));
            id = submitted(trace);
            open(id, opListTarget(1, 4), trace);
            demand(id, t, trace);
            bytes memory data = trace.answer(t);
            assertEq(data.length, lengths[i]);
            bytes32 hash = trace.nodeHash(t);
            assertEq(hash, keccak256(bytes.concat(hex"00", data)));
            expectAnswer(abi.encodeWithSelector(IChallenges.AnswerLength.selector, data.length, 176), t, data);
            bytes32 other = keccak256(bytes.concat(hex"00", right));
            expectAnswer(abi.encodeWithSelector(IChallenges.AnswerMismatch.selector, other, hash), t, right);
        }
    }

    /// I7: an answer with any bit changed is refused.
    /// forge-config: default.fuzz.runs = 128
    function testFuzz_answer_changed(uint256 kind, uint256 bit) public {
        open(id, opListTarget(1, 4), trace);
        Target memory t = kinds(bound(kind, 0, 4));
        demand(id, t, trace);
        bytes memory data = trace.answer(t);
        bit = bound(bit, 0, 8 * data.length - 1);
        data[bit / 8] ^= bytes1(uint8(1 << (bit % 8)));
        (bytes32 hash, uint32 leafCount, uint32 byteLength) =
            (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        vm.prank(nora);
        try challenges.answer(id, t, hash, leafCount, byteLength, data) {
            // The leaf binds the exported roots only. What the node says of the others binds itself.
            assertEq(bound(kind, 0, 4), 2, "accepted");
            assertEq(bit / 256, 1, "the scores are not exported");
        } catch (bytes memory reason) {
            bytes4 selector = bytes4(reason);
            assertTrue(selector == IChallenges.AnswerMismatch.selector || selector == IChallenges.NotEmpty.selector);
        }
    }

    function test_answer_opList_notNode() public {
        Target memory t = opListTarget(1, 3);
        demand(id, t, trace);
        (bytes32 hash, bytes memory data) = (trace.nodeHash(t), trace.answer(t));
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NotNode.selector, id, mallory, nora));
        vm.prank(mallory);
        challenges.answer(id, t, hash, 3, 0, data);
    }

    /// A node that changes its story: the second list is not asked for, and the first one binds.
    function test_answer_opList_binds() public {
        Target memory t = opListTarget(1, 3);
        open(id, t, trace);
        bytes32 bound_ = challenges.opListHash(id, 1, 3);
        bytes memory other = trace.answer(t);
        other[32] ^= 0x01; // the scores' root, which the leaf does not bind
        OpeningId o = challenges.openingId(id, t);
        expectAnswer(
            abi.encodeWithSelector(IChallenges.NotDemanded.selector, o, IChallenges.OpeningState.Answered), t, other
        );
        assertEq(challenges.opListHash(id, 1, 3), bound_);
    }

    function test_answer_state() public {
        Target memory t = layersTarget(2, 0);
        OpeningId o = demand(id, t, trace);
        Target memory u = layersTarget(1, 0);
        demand(id, u, trace);
        vm.warp(challenges.opening(o).turnEnd + 1);
        challenges.timeout(id, t);
        bytes memory data = trace.answer(u);
        (bytes32 hash, uint32 leafCount) = (trace.nodeHash(u), trace.leafCount(u));
        expectState(JobState.Slashed, JobState.Submitted);
        challenges.answer(id, u, hash, leafCount, 0, data);
    }

    // -------------------------------------------------------------------------------------------------- timeout

    function test_timeout() public {
        Target memory t = layersTarget(2, 0);
        OpeningId o = demand(id, t, trace);
        uint40 end = challenges.opening(o).turnEnd;
        vm.warp(end);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.TooEarly.selector, id, end, end));
        challenges.timeout(id, t);
        vm.warp(end + 1);
        vm.expectEmit();
        emit IChallenges.TimedOut(id, o, walt);
        vm.prank(mallory);
        challenges.timeout(id, t);
        assertState(id, JobState.Slashed);
        assertEq(market.withdrawable(walt), 4 ether);
        assertEq(market.withdrawable(mallory), 0);
        assertEq(market.withdrawable(uma), 3 * PER_INPUT + 3 * PER_OUTPUT + 3 ether);
        assertEq(token.balanceOf(DEAD), 3 ether);
        assertEq(nodes.node(nora).stake, STAKE - 10 ether);
        assertEq(market.totalRewards(), 0);
        assertConserved();
    }

    function test_timeout_notDemanded() public {
        Target memory t = layersTarget(2, 0);
        OpeningId o = challenges.openingId(id, t);
        bytes4 error_ = IChallenges.NotDemanded.selector;
        vm.expectRevert(abi.encodeWithSelector(error_, o, IChallenges.OpeningState.None));
        challenges.timeout(id, t);
        open(id, t, trace);
        skip(1 days);
        vm.expectRevert(abi.encodeWithSelector(error_, o, IChallenges.OpeningState.Answered));
        challenges.timeout(id, t);
    }

    /// I5: after a slash every call reverts, except for taking money out.
    function test_timeout_ends() public {
        Target memory t = layersTarget(2, 0);
        Target memory u = layersTarget(1, 0);
        OpeningId o = demand(id, t, trace);
        demand(id, u, trace);
        vm.warp(challenges.opening(o).turnEnd + 1);
        challenges.timeout(id, t);
        expectState(JobState.Slashed, JobState.Submitted);
        challenges.timeout(id, u);
        expectState(JobState.Slashed, JobState.Submitted);
        challenges.announce(id, bytes32(0));
        IChallenges.DemandProof memory p;
        expectState(JobState.Slashed, JobState.Submitted);
        challenges.demand(id, NONE, layersTarget(1, 1), p);
        vm.expectRevert(abi.encodeWithSelector(IMarket.WrongState.selector, id, JobState.Slashed, JobState.Submitted));
        market.finalize(id);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NoRewardHeld.selector, id));
        challenges.settleReward(id);
    }

    // -------------------------------------------------------------------------------------------------- settled

    function test_settled_finalize() public {
        vm.warp(windowEnd(id));
        Target memory t = layersTarget(2, 0);
        OpeningId o = demand(id, t, trace);
        vm.warp(windowEnd(id) + 1);
        bytes memory error_ = abi.encodeWithSelector(IMarket.UnderChallenge.selector, id);
        vm.expectRevert(error_);
        market.finalize(id);
        answer(id, t, trace);
        vm.warp(challenges.opening(o).turnEnd);
        vm.expectRevert(error_);
        market.finalize(id);
        vm.warp(challenges.opening(o).turnEnd + 1);
        market.finalize(id);
        assertEq(market.withdrawable(nora), 3 * PER_INPUT + 3 * PER_OUTPUT + cp.demandFee);
    }

    /// Every turn used up to its last second, on the longest path there is.
    function test_settled_longest() public {
        uint256 window = windowEnd(id);
        vm.warp(window);
        Target[8] memory path = [
            layersTarget(2, 0),
            layersTarget(1, 0),
            positionsTarget(1, 3, 0),
            positionsTarget(1, 1, 2),
            opListTarget(1, 4),
            pagesTarget(1, 4, 1, 3, 0),
            pagesTarget(1, 4, 1, 1, 1),
            pageTarget(1, 4, 1, 3)
        ];
        OpeningId parent = NONE;
        for (uint256 i; i < path.length; i++) {
            parent = demand(id, parent, path[i], trace);
            vm.warp(challenges.opening(parent).turnEnd);
            answer(id, path[i], trace);
            vm.warp(challenges.opening(parent).turnEnd);
        }
        assertEq(block.timestamp, window + 8 * (cp.nodeTurn + cp.challengerTurn));
        assertFalse(challenges.settled(id));
        skip(1);
        market.finalize(id);
        assertState(id, JobState.Final);
        assertEq(market.withdrawable(nora), 3 * PER_INPUT + 3 * PER_OUTPUT + 8 * cp.demandFee);
        assertConserved();
    }

    // --------------------------------------------------------------------------------------------- reclaimFees

    function test_reclaimFees() public {
        Target memory t = layersTarget(2, 0);
        OpeningId o = demand(id, t, trace);
        demand(id, layersTarget(1, 0), trace);
        Target memory u = layersTarget(1, 1);
        IChallenges.DemandProof memory p = trace.proof(u);
        vm.prank(wanda);
        challenges.demand(id, NONE, u, p);

        expectState(JobState.Submitted, JobState.Slashed);
        challenges.reclaimFees(id);
        vm.warp(challenges.opening(o).turnEnd + 1);
        challenges.timeout(id, t);
        vm.expectEmit();
        emit IChallenges.FeesReclaimed(id, walt, 2 * cp.demandFee);
        vm.prank(walt);
        challenges.reclaimFees(id);
        vm.prank(wanda);
        challenges.reclaimFees(id);
        assertEq(market.withdrawable(walt), 4 ether + 2 * cp.demandFee);
        assertEq(market.withdrawable(wanda), cp.demandFee);
        assertEq(market.totalFees(), 0);
        assertConserved();
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NoFees.selector, id, walt));
        vm.prank(walt);
        challenges.reclaimFees(id);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.NoFees.selector, id, mallory));
        vm.prank(mallory);
        challenges.reclaimFees(id);
    }
}
