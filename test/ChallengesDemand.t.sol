// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Challenges} from "../contracts/Challenges.sol";
import {IChallenges, OpeningId, Target, TargetKind} from "../contracts/interfaces/IChallenges.sol";
import {IChannels} from "../contracts/interfaces/IChannels.sol";
import {ICourt} from "../contracts/interfaces/ICourt.sol";
import {IMarket, JobId, JobState} from "../contracts/interfaces/IMarket.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {ITrials} from "../contracts/interfaces/ITrials.sol";
import {ITrees} from "../contracts/interfaces/ITrees.sol";
import {Fixture} from "./support/Fixture.sol";
import {TinyTrace} from "./support/TinyTrace.sol";

contract ChallengesDemandTest is Fixture {
    TinyTrace internal trace;
    JobId internal id;

    function setUp() public override {
        super.setUp();
        trace = honestTrace(3, 3);
        id = submitted(trace);
    }

    function expectDemand(bytes memory error_, OpeningId parent, Target memory t, IChallenges.DemandProof memory p)
        internal
    {
        vm.expectRevert(error_);
        vm.prank(walt);
        challenges.demand(id, parent, t, p);
    }

    function expectTarget(Target memory t, Target memory good, string memory field, uint256 actual, uint256 limit)
        internal
    {
        IChallenges.DemandProof memory p = trace.proof(good);
        expectDemand(abi.encodeWithSelector(IChallenges.BadTarget.selector, field, actual, limit), NONE, t, p);
    }

    function depthOf(OpeningId o) internal view returns (uint8) {
        return challenges.opening(o).depth;
    }

    // --------------------------------------------------------------------------------------------------- accept

    /// Demands the target and checks everything that follows.
    function accepts(Target memory t) internal {
        OpeningId expected = challenges.openingId(id, t);
        uint40 deadline = uint40(block.timestamp) + cp.nodeTurn;
        uint256 fees = market.totalFees();
        uint256 balance = token.balanceOf(walt);
        (bytes32 hash, uint32 leafCount, uint32 byteLength) =
            (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        IChallenges.DemandProof memory p = trace.proof(t);
        vm.expectEmit();
        emit IChallenges.Demanded(id, expected, walt, t, hash, leafCount, byteLength, 1, deadline);
        vm.prank(walt);
        assertEq(OpeningId.unwrap(challenges.demand(id, NONE, t, p)), OpeningId.unwrap(expected));
        IChallenges.Opening memory o = challenges.opening(expected);
        assertEq(o.payer, walt);
        assertEq(uint8(o.state), uint8(IChallenges.OpeningState.Demanded));
        assertEq(abi.encode(o.depth, o.turnEnd), abi.encode(1, deadline));
        assertEq(o.paramsHash, keccak256(abi.encode(t, hash, leafCount, byteLength)));
        assertFalse(challenges.settled(id));
        assertEq(token.balanceOf(walt), balance - cp.demandFee);
        assertEq(market.totalFees(), fees + cp.demandFee);
        assertConserved();
    }

    function test_demand_layers() public {
        accepts(layersTarget(2, 0)); // the root itself: four layers
        accepts(layersTarget(1, 1));
        assertEq(challenges.feesPaid(id, walt), 2 * cp.demandFee);
    }

    function test_demand_positions() public {
        // five rows in every layer but the head, three there
        accepts(positionsTarget(0, 3, 0));
        accepts(positionsTarget(1, 2, 1));
        accepts(positionsTarget(2, 1, 2));
        accepts(positionsTarget(3, 2, 0));
    }

    function test_demand_opList() public {
        accepts(opListTarget(0, 0));
        accepts(opListTarget(2, 4));
        accepts(opListTarget(3, 2));
    }

    function test_demand_pages() public {
        open(id, opListTarget(1, 4), trace);
        accepts(pagesTarget(1, 4, 0, 1, 0));
        // five pages of scores at position 4
        accepts(pagesTarget(1, 4, 1, 3, 0));
        accepts(pagesTarget(1, 4, 1, 1, 2));
    }

    function test_demand_page() public {
        open(id, opListTarget(1, 4), trace);
        accepts(pageTarget(1, 4, 1, 4));
        accepts(pageTarget(1, 4, 2, 1));
        open(id, opListTarget(3, 2), trace);
        accepts(pageTarget(3, 2, 1, 0)); // a tensor of one page
    }

    // ---------------------------------------------------------------------------------------------------- times

    function test_demand_window() public {
        vm.warp(windowEnd(id));
        demand(id, layersTarget(1, 0), trace);
        vm.warp(windowEnd(id) + 1);
        Target memory t = layersTarget(1, 1);
        bytes memory error_ =
            abi.encodeWithSelector(IChallenges.TooLate.selector, id, block.timestamp, block.timestamp - 1);
        expectDemand(error_, NONE, t, trace.proof(t));
    }

    function test_demand_parent() public {
        OpeningId parent = open(id, layersTarget(2, 0), trace);
        uint40 end = challenges.opening(parent).turnEnd;
        vm.warp(end);
        OpeningId child = demand(id, parent, positionsTarget(1, 3, 0), trace);
        assertEq(depthOf(child), 2);
        vm.warp(end + 1);
        Target memory t = positionsTarget(2, 3, 0);
        bytes memory error_ = abi.encodeWithSelector(IChallenges.TooLate.selector, id, end + 1, end);
        expectDemand(error_, parent, t, trace.proof(t));
    }

    function test_demand_parent_afterTheWindow() public {
        vm.warp(windowEnd(id));
        OpeningId parent = open(id, layersTarget(2, 0), trace);
        vm.warp(windowEnd(id) + cp.challengerTurn);
        demand(id, parent, positionsTarget(1, 3, 0), trace);
    }

    function test_demand_parent_unanswered() public {
        OpeningId parent = demand(id, layersTarget(2, 0), trace);
        Target memory t = layersTarget(1, 0);
        bytes memory error_ =
            abi.encodeWithSelector(IChallenges.ParentState.selector, parent, IChallenges.OpeningState.Demanded);
        expectDemand(error_, parent, t, trace.proof(t));
        parent = challenges.openingId(id, layersTarget(2, 1));
        error_ = abi.encodeWithSelector(IChallenges.ParentState.selector, parent, IChallenges.OpeningState.None);
        expectDemand(error_, parent, t, trace.proof(t));
    }

    function test_demand_parent_rank() public {
        OpeningId parent = open(id, layersTarget(1, 0), trace);
        Target memory t = layersTarget(1, 1);
        // kind 0, level 1: 254
        bytes memory error_ = abi.encodeWithSelector(IChallenges.ParentRank.selector, 254, 254);
        expectDemand(error_, parent, t, trace.proof(t));
        t = layersTarget(2, 0);
        error_ = abi.encodeWithSelector(IChallenges.ParentRank.selector, 254, 253);
        expectDemand(error_, parent, t, trace.proof(t));
        parent = open(id, opListTarget(0, 0), trace);
        t = positionsTarget(0, 1, 0);
        error_ = abi.encodeWithSelector(IChallenges.ParentRank.selector, 2 * 256 + 255, 256 + 254);
        expectDemand(error_, parent, t, trace.proof(t));
    }

    function test_demand_parent_job() public {
        OpeningId parent = open(id, layersTarget(2, 0), trace);
        JobId other = id;
        id = submitted(trace);
        Target memory t = layersTarget(1, 0);
        expectDemand(abi.encodeWithSelector(IChallenges.ParentJob.selector, other, id), parent, t, trace.proof(t));
    }

    /// A chain as long as a challenge may be: each opening below the last.
    function chain() internal returns (OpeningId last) {
        last = open(id, layersTarget(2, 0), trace);
        Target[7] memory t = [
            layersTarget(1, 0),
            positionsTarget(1, 3, 0),
            positionsTarget(1, 2, 1),
            positionsTarget(1, 1, 2),
            opListTarget(1, 4),
            pagesTarget(1, 4, 1, 3, 0),
            pagesTarget(1, 4, 1, 2, 1)
        ];
        for (uint256 i; i < t.length; i++) {
            last = demand(id, last, t[i], trace);
            assertEq(depthOf(last), i + 2);
            answer(id, t[i], trace);
        }
    }

    function test_demand_tooDeep() public {
        OpeningId last = chain();
        Target memory t = pageTarget(1, 4, 1, 4);
        expectDemand(abi.encodeWithSelector(IChallenges.TooDeep.selector, 9, 8), last, t, trace.proof(t));
    }

    // --------------------------------------------------------------------------------------------------- repeat

    function test_demand_twice() public {
        Target memory t = layersTarget(2, 0);
        OpeningId o = demand(id, t, trace);
        bytes memory error_ =
            abi.encodeWithSelector(IChallenges.AlreadyDemanded.selector, o, IChallenges.OpeningState.Demanded, 1);
        expectDemand(error_, NONE, t, trace.proof(t));
        answer(id, t, trace);
        error_ = abi.encodeWithSelector(IChallenges.AlreadyDemanded.selector, o, IChallenges.OpeningState.Answered, 1);
        expectDemand(error_, NONE, t, trace.proof(t));
    }

    /// I3: an accomplice demands what an honest challenger will need, at the greatest depth, so that nothing can follow.
    function test_demand_lowersDepth() public {
        OpeningId deepest = chain();
        Target memory t = pagesTarget(1, 4, 1, 2, 1);
        uint256 paid = challenges.feesPaid(id, walt);
        IChallenges.Opening memory before = challenges.opening(deepest);
        OpeningId parent = challenges.openingId(id, opListTarget(1, 4)); // depth 6
        IChallenges.DemandProof memory none;
        vm.expectEmit();
        emit IChallenges.DepthLowered(id, deepest, wanda, 7);
        vm.prank(wanda);
        challenges.demand(id, parent, t, none);
        IChallenges.Opening memory o = challenges.opening(deepest);
        assertEq(abi.encode(o.payer, o.state, o.turnEnd), abi.encode(before.payer, before.state, before.turnEnd));
        assertEq(o.depth, 7);
        assertEq(challenges.feesPaid(id, walt) + challenges.feesPaid(id, wanda), paid);
        demand(id, deepest, pageTarget(1, 4, 1, 2), trace);
        // From the window it is the first of its chain, whatever came before.
        vm.prank(wanda);
        challenges.demand(id, NONE, t, none);
        assertEq(depthOf(deepest), 1);
    }

    function test_demand_lowersDepth_unanswered() public {
        OpeningId parent = open(id, layersTarget(2, 0), trace);
        Target memory t = positionsTarget(1, 3, 0);
        OpeningId o = demand(id, parent, t, trace);
        uint40 deadline = challenges.opening(o).turnEnd;
        skip(5);
        demand(id, t, trace);
        assertEq(depthOf(o), 1);
        assertEq(challenges.opening(o).turnEnd, deadline);
        vm.warp(windowEnd(id) + 1);
        bytes memory error_ =
            abi.encodeWithSelector(IChallenges.TooLate.selector, id, block.timestamp, block.timestamp - 1);
        expectDemand(error_, NONE, t, trace.proof(t));
    }

    // -------------------------------------------------------------------------------------------------- targets

    function test_demand_badLayers() public {
        Target memory good = layersTarget(1, 0);
        expectTarget(layersTarget(0, 0), good, "level", 0, 3);
        expectTarget(layersTarget(3, 0), good, "level", 3, 3);
        expectTarget(layersTarget(1, 2), good, "index", 2, 2);
        expectTarget(Target(TargetKind.Layers, 1, 0, 0, 1, 0), good, "unused field", 0, 0);
        expectTarget(Target(TargetKind.Layers, 0, 1, 0, 1, 0), good, "unused field", 0, 0);
        expectTarget(Target(TargetKind.Layers, 0, 0, 1, 1, 0), good, "unused field", 0, 0);
    }

    function test_demand_badPositions() public {
        Target memory good = positionsTarget(0, 1, 0);
        expectTarget(positionsTarget(4, 1, 0), good, "layer", 4, 4);
        expectTarget(positionsTarget(0, 0, 0), good, "level", 0, 4);
        expectTarget(positionsTarget(0, 4, 0), good, "level", 4, 4);
        expectTarget(positionsTarget(3, 3, 0), good, "level", 3, 3);
        // five rows: the node of rows six and seven holds nothing
        expectTarget(positionsTarget(0, 1, 3), good, "index", 3, 3);
        expectTarget(Target(TargetKind.Positions, 0, 1, 0, 1, 0), good, "unused field", 1, 0);
        expectTarget(Target(TargetKind.Positions, 0, 0, 1, 1, 0), good, "unused field", 1, 0);
    }

    function test_demand_badOpList() public {
        Target memory good = opListTarget(0, 0);
        expectTarget(opListTarget(4, 0), good, "layer", 4, 4);
        expectTarget(opListTarget(0, 5), good, "row", 5, 5);
        expectTarget(opListTarget(3, 3), good, "row", 3, 3);
        expectTarget(Target(TargetKind.OpList, 0, 0, 1, 0, 0), good, "unused field", 2, 0);
        expectTarget(Target(TargetKind.OpList, 0, 0, 0, 1, 0), good, "unused field", 2, 0);
        expectTarget(Target(TargetKind.OpList, 0, 0, 0, 0, 1), good, "unused field", 2, 0);
    }

    function test_demand_badPages() public {
        open(id, opListTarget(1, 4), trace);
        Target memory good = pagesTarget(1, 4, 1, 1, 0);
        expectTarget(pagesTarget(1, 4, 3, 1, 0), good, "op", 3, 3);
        expectTarget(pagesTarget(1, 4, 1, 0, 0), good, "level", 0, 4);
        expectTarget(pagesTarget(1, 4, 1, 4, 0), good, "level", 4, 4);
        expectTarget(pagesTarget(1, 4, 1, 1, 3), good, "index", 3, 3);
        good = pageTarget(1, 4, 1, 0);
        expectTarget(pageTarget(1, 4, 1, 5), good, "index", 5, 5);
        expectTarget(Target(TargetKind.Page, 1, 4, 1, 1, 0), good, "unused field", 4, 0);
    }

    function test_demand_unusedProof() public {
        Target[3] memory targets = [layersTarget(1, 0), positionsTarget(0, 1, 0), opListTarget(0, 0)];
        for (uint256 i; i < 3; i++) {
            IChallenges.DemandProof memory p = trace.proof(targets[i]);
            p.opRoots = new bytes32[](1);
            expectDemand(abi.encodeWithSelector(IChallenges.UnusedProof.selector, "opRoots"), NONE, targets[i], p);
            p = trace.proof(targets[i]);
            p.descriptor = hex"00";
            expectDemand(abi.encodeWithSelector(IChallenges.UnusedProof.selector, "descriptor"), NONE, targets[i], p);
            p = trace.proof(targets[i]);
            p.descriptorProof = new bytes32[](1);
            expectDemand(
                abi.encodeWithSelector(IChallenges.UnusedProof.selector, "descriptorProof"), NONE, targets[i], p
            );
        }
    }

    // --------------------------------------------------------------------------------------------------- proofs

    function kinds(uint256 i) internal pure returns (Target memory) {
        Target[5] memory t = [
            layersTarget(1, 1),
            positionsTarget(1, 1, 1),
            opListTarget(3, 2),
            pagesTarget(1, 4, 1, 1, 1),
            pageTarget(1, 4, 2, 1)
        ];
        return t[i];
    }

    /// I7: a demand with any bit changed is refused.
    /// forge-config: default.fuzz.runs = 128
    function testFuzz_demand_changed(uint256 kind, uint256 bit) public {
        open(id, opListTarget(1, 4), trace);
        Target memory t = kinds(bound(kind, 0, 4));
        IChallenges.DemandProof memory p = trace.proof(t);
        uint256 words = 1 + p.path.length + p.opRoots.length + p.descriptorProof.length;
        bit = bound(bit, 0, words * 256 + p.descriptor.length * 8 - 1);
        uint256 at = bit / 256;
        bytes32 flip = bytes32(uint256(1) << (bit % 256));
        if (at == 0) {
            p.nodeHash ^= flip;
        } else if (at < 1 + p.path.length) {
            p.path[at - 1] ^= flip;
        } else if (at < 1 + p.path.length + p.opRoots.length) {
            p.opRoots[at - 1 - p.path.length] ^= flip;
        } else if (at < words) {
            p.descriptorProof[at - 1 - p.path.length - p.opRoots.length] ^= flip;
        } else {
            p.descriptor[(bit - words * 256) / 8] ^= bytes1(uint8(1 << (bit % 8)));
        }
        vm.prank(walt);
        try challenges.demand(id, NONE, t, p) {
            fail();
        } catch (bytes memory reason) {
            bytes4 selector = bytes4(reason);
            assertTrue(selector == IChallenges.RootMismatch.selector || selector == IChallenges.OpListMismatch.selector);
        }
    }

    function test_demand_pathLength() public {
        open(id, opListTarget(1, 4), trace);
        for (uint256 i; i < 5; i++) {
            Target memory t = kinds(i);
            IChallenges.DemandProof memory p = trace.proof(t);
            uint256 n = p.path.length;
            bytes32[] memory path = p.path;
            p.path = new bytes32[](n + 1);
            for (uint256 k; k < n; k++) {
                p.path[k] = path[k];
            }
            expectDemand(abi.encodeWithSelector(ITrees.ProofLength.selector, n + 1, n), NONE, t, p);
            p.path = new bytes32[](n - 1);
            vm.expectPartialRevert(ITrees.ProofLength.selector);
            vm.prank(walt);
            challenges.demand(id, NONE, t, p);
        }
    }

    function test_demand_opListNotOpened() public {
        Target memory t = pageTarget(1, 4, 0, 0);
        bytes memory error_ = abi.encodeWithSelector(IChallenges.OpListNotOpened.selector, id, 1, 4);
        expectDemand(error_, NONE, t, trace.proof(t));
        // Demanded is not opened.
        demand(id, opListTarget(1, 4), trace);
        expectDemand(error_, NONE, t, trace.proof(t));
    }

    function test_demand_descriptor() public {
        open(id, opListTarget(1, 4), trace);
        Target memory t = pageTarget(1, 4, 0, 0);
        IChallenges.DemandProof memory p = trace.proof(t);
        p.descriptor = new bytes(63);
        expectDemand(abi.encodeWithSelector(IChallenges.DescriptorLength.selector, 63, 64), NONE, t, p);
    }

    function test_demand_state() public {
        id = buy(1, 1);
        IChallenges.DemandProof memory p;
        bytes memory error_ =
            abi.encodeWithSelector(IChallenges.WrongState.selector, id, JobState.Assigned, JobState.Submitted);
        expectDemand(error_, NONE, layersTarget(1, 0), p);
        id = JobId.wrap(77);
        error_ = abi.encodeWithSelector(IChallenges.WrongState.selector, id, JobState.None, JobState.Submitted);
        expectDemand(error_, NONE, layersTarget(1, 0), p);
    }

    struct RawTarget {
        uint8 kind;
        uint16 layer;
        uint32 row;
        uint16 op;
        uint8 level;
        uint32 index;
    }

    function testFuzz_openingId(uint128[2] memory job, RawTarget[2] memory raw, bool[7] memory equal) public view {
        // Unrelated targets differ everywhere; these share what chance says.
        RawTarget memory r = raw[1];
        if (equal[0]) job[1] = job[0];
        if (equal[1]) r.kind = raw[0].kind;
        if (equal[2]) r.layer = raw[0].layer;
        if (equal[3]) r.row = raw[0].row;
        if (equal[4]) r.op = raw[0].op;
        if (equal[5]) r.level = raw[0].level;
        if (equal[6]) r.index = raw[0].index;
        Target[2] memory t;
        for (uint256 i; i < 2; i++) {
            r = raw[i];
            t[i] = Target(TargetKind(r.kind % 5), r.layer, r.row, r.op, r.level, r.index);
        }
        OpeningId a = challenges.openingId(JobId.wrap(job[0]), t[0]);
        OpeningId b = challenges.openingId(JobId.wrap(job[1]), t[1]);
        bool same = keccak256(abi.encode(job[0], t[0])) == keccak256(abi.encode(job[1], t[1]));
        assertEq(OpeningId.unwrap(a) == OpeningId.unwrap(b), same);
    }

    // ---------------------------------------------------------------------------------------------- constructor

    function expectConstructor(bytes memory error_, address models_, address verifier) internal {
        vm.expectRevert(error_);
        new Challenges(address(market), address(trials), models_, verifier, cp);
    }

    function test_views() public view {
        assertEq(challenges.market(), address(market));
        assertEq(challenges.trials(), address(trials));
        assertEq(challenges.models(), address(models));
        assertEq(challenges.stepVerifier(), stepVerifier);
        assertEq(abi.encode(challenges.params()), abi.encode(cp));
    }

    function test_constructor_parameters() public {
        bytes4 error_ = IChallenges.ParameterOutOfRange.selector;
        IChallenges.Params memory good = cp;
        cp.nodeTurn = 0;
        expectConstructor(
            abi.encodeWithSelector(error_, "nodeTurn", 0, 1, type(uint32).max), address(models), stepVerifier
        );
        cp = good;
        cp.challengerTurn = 0;
        expectConstructor(
            abi.encodeWithSelector(error_, "challengerTurn", 0, 1, type(uint32).max), address(models), stepVerifier
        );
        cp = good;
        cp.demandFee = 0;
        expectConstructor(
            abi.encodeWithSelector(error_, "demandFee", 0, 1, type(uint128).max), address(models), stepVerifier
        );
    }

    function test_constructor_wiring() public {
        address next = vm.computeCreateAddress(address(this), vm.getNonce(address(this)));
        bytes4 error_ = IChallenges.WrongWiring.selector;
        expectConstructor(
            abi.encodeWithSelector(error_, "market.challenges", address(challenges), next),
            address(models),
            stepVerifier
        );
        next = wire();
        expectConstructor(abi.encodeWithSelector(error_, "market.models", address(models), walt), walt, stepVerifier);
        next = wire();
        vm.mockCall(address(trials), abi.encodeCall(ICourt.challenges, ()), abi.encode(walt));
        expectConstructor(
            abi.encodeWithSelector(error_, "trials.challenges", walt, next), address(models), stepVerifier
        );
        wireWrong(address(trials), abi.encodeCall(ITrials.models, ()), "trials.models", address(models));
        wireWrong(address(channels), abi.encodeCall(IChannels.trials, ()), "channels.trials", address(trials));
        wireWrong(address(channels), abi.encodeCall(IChannels.nodes, ()), "channels.nodes", address(nodes));
        wireWrong(address(channels), abi.encodeCall(IChannels.token, ()), "channels.token", address(token));
        wireWrong(address(nodes), abi.encodeCall(INodes.channels, ()), "nodes.channels", address(channels));
        next = wire();
        vm.mockCall(address(nodes), abi.encodeCall(INodes.market, ()), abi.encode(walt));
        expectConstructor(
            abi.encodeWithSelector(error_, "nodes.market", walt, address(market)), address(models), stepVerifier
        );
        next = wire();
        vm.mockCall(address(nodes), abi.encodeCall(INodes.models, ()), abi.encode(walt));
        expectConstructor(
            abi.encodeWithSelector(error_, "nodes.models", walt, address(models)), address(models), stepVerifier
        );
        next = wire();
        vm.mockCall(address(nodes), abi.encodeCall(INodes.token, ()), abi.encode(walt));
        expectConstructor(
            abi.encodeWithSelector(error_, "nodes.token", walt, address(token)), address(models), stepVerifier
        );
        next = wire();
        expectConstructor(abi.encodeWithSelector(error_, "stepVerifier has no code", walt, walt), address(models), walt);
    }

    function wireWrong(address where, bytes memory view_, string memory name, address right) internal {
        wire();
        vm.mockCall(where, view_, abi.encode(walt));
        expectConstructor(
            abi.encodeWithSelector(IChallenges.WrongWiring.selector, name, walt, right), address(models), stepVerifier
        );
    }

    /// Makes both courts name the next contract as their challenges.
    function wire() internal returns (address next) {
        vm.clearMockedCalls();
        next = vm.computeCreateAddress(address(this), vm.getNonce(address(this)));
        vm.mockCall(address(market), abi.encodeCall(ICourt.challenges, ()), abi.encode(next));
        vm.mockCall(address(trials), abi.encodeCall(ICourt.challenges, ()), abi.encode(next));
    }

    /// I8, to the second.
    function test_constructor_unstakeDelay() public {
        uint64 turns = cp.nodeTurn + cp.challengerTurn;
        unstakeDelay(mp.submitTimeout + mp.challengeWindow + 8 * turns);
        rp.lodgeTurn += 10_000;
        unstakeDelay(rp.window + rp.receiptTurn + 2 * rp.lodgeTurn + 9 * turns);
        rp.window += 20_000;
        unstakeDelay(2 * rp.window + rp.receiptTurn + rp.lodgeTurn + 9 * turns);
    }

    function unstakeDelay(uint64 longest) internal {
        wire();
        vm.mockCall(address(market), abi.encodeCall(IMarket.params, ()), abi.encode(mp));
        vm.mockCall(address(channels), abi.encodeCall(IChannels.params, ()), abi.encode(rp));
        vm.mockCall(address(nodes), abi.encodeCall(INodes.UNSTAKE_DELAY, ()), abi.encode(longest));
        expectConstructor(
            abi.encodeWithSelector(IChallenges.UnstakeDelayTooShort.selector, longest, longest),
            address(models),
            stepVerifier
        );
        wire();
        vm.mockCall(address(market), abi.encodeCall(IMarket.params, ()), abi.encode(mp));
        vm.mockCall(address(channels), abi.encodeCall(IChannels.params, ()), abi.encode(rp));
        vm.mockCall(address(nodes), abi.encodeCall(INodes.UNSTAKE_DELAY, ()), abi.encode(longest + 1));
        new Challenges(address(market), address(trials), address(models), stepVerifier, cp);
    }
}
