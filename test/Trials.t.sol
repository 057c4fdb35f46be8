// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Trials} from "../contracts/Trials.sol";
import {IChallenges, OpeningId, Target, TargetKind} from "../contracts/interfaces/IChallenges.sol";
import {IChannels, Place, Receipt as SignedReceipt, Redemption} from "../contracts/interfaces/IChannels.sol";
import {ICourt, JobId, JobState} from "../contracts/interfaces/ICourt.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {Claim, TraceContext, Witness} from "../contracts/interfaces/IStepVerifier.sol";
import {Fault, ITrials} from "../contracts/interfaces/ITrials.sol";
import {Exchange} from "./support/Exchange.sol";
import {TinyTrace} from "./support/TinyTrace.sol";

contract TrialsTest is Exchange {
    uint256 internal constant BIT = 1 << 63;
    bytes32 internal constant WALTS = keccak256("walt's salt");

    Claim internal lie = Claim(2, 4, 2, 290);
    TinyTrace internal trace;
    /// of a lying trace: the last receipt of the batch
    SignedReceipt internal bad;
    Place internal place;
    JobId internal job;

    function setUp() public override {
        super.setUp();
        trace = new TinyTrace(3, 3, true, lie);
        bad = receipt(10, trace);
        place = redeemed(10);
    }

    function lodge(SignedReceipt memory r, Place memory where) internal returns (JobId) {
        bytes memory signature = signed(r);
        vm.prank(walt);
        return trials.lodge(r, signature, where);
    }

    function lodgeBad() internal {
        job = lodge(bad, place);
    }

    function tokensTarget(uint16 which) internal pure returns (Target memory) {
        return Target(TargetKind.Tokens, which, 0, 0, 0, 0);
    }

    function demandTokens(uint16 which) internal returns (OpeningId) {
        IChallenges.DemandProof memory p;
        p.nodeHash = which == 0 ? bad.inputHash : bad.outputHash;
        vm.prank(walt);
        return challenges.demand(job, NONE, tokensTarget(which), p);
    }

    function answerTokens(uint16 which, bytes memory data) internal {
        vm.prank(mallory);
        challenges.answer(job, tokensTarget(which), which == 0 ? bad.inputHash : bad.outputHash, 1, 12, data);
    }

    function prove() internal {
        announce();
        proveAnnounced();
    }

    function announce() internal {
        open(job, opListTarget(lie.layer, lie.row), trace);
        bytes32 commitment = challenges.commitmentOf(job, lie, walt, WALTS);
        vm.prank(walt);
        challenges.announce(job, commitment);
        vm.roll(block.number + 1);
    }

    function proveAnnounced() internal {
        Witness memory w = trace.witness(lie);
        vm.prank(walt);
        challenges.proveFraud(job, lie, WALTS, w);
    }

    function expectState(JobState actual, JobState expected) internal {
        vm.expectRevert(abi.encodeWithSelector(ITrials.WrongState.selector, job, actual, expected));
    }

    // ---------------------------------------------------------------------------------------------------- lodge

    function test_lodge() public {
        bytes32 traceRoot =
            keccak256(abi.encodePacked(uint8(5), modelId, bad.inputHash, bad.outputHash, uint32(5), bad.layersRoot));
        uint40 end = batchOf(place).windowEnd;
        bytes32 digest = channels.receiptDigest(bad);
        assertEq(trials.nextJobId(), BIT | 1);
        vm.expectEmit();
        emit ITrials.TrialAttached(JobId.wrap(BIT | 1), 1);
        vm.expectEmit();
        emit ITrials.ReceiptLodged(JobId.wrap(BIT | 1), digest, nora, bad, traceRoot, end);
        lodgeBad();
        assertEq(JobId.unwrap(job), BIT | 1);
        assertEq(JobId.unwrap(trials.jobOf(digest)), BIT | 1);
        assertEq(trials.batchOf(job), 1);
        ICourt.Trial memory t = trials.trial(job);
        assertEq(abi.encode(t), abi.encode(JobState.Submitted, end, 3, 3, nora, modelId, trace.layersRoot()));
        (JobState state, bytes32 model, TraceContext memory c) = trials.evidence(job);
        assertEq(abi.encode(state, model), abi.encode(JobState.Submitted, modelId));
        assertEq(abi.encode(c), abi.encode(trace.layersRoot(), bad.inputHash, bad.outputHash, 3, 3, 0, bytes32(0)));
        assertEq(batchOf(place).openTrials, 1);
        assertEq(channels.totalFees(), rp.receiptFee);
        assertEq(token.balanceOf(walt), FUNDS - rp.receiptFee);
        assertConserved();
        vm.warp(end + 1);
        vm.expectRevert(abi.encodeWithSelector(IChannels.UnderChallenge.selector, 1, 0, 1));
        channels.release(1);
    }

    function test_lodge_lastSecond() public {
        vm.warp(batchOf(place).windowEnd);
        lodgeBad();
        // Whoever lodges it has a turn to demand.
        assertEq(trials.trial(job).deadline, block.timestamp + rp.lodgeTurn);
    }

    function test_lodge_late() public {
        uint40 end = batchOf(place).lodgeEnd;
        vm.warp(end + 1);
        bytes memory signature = signed(bad);
        vm.expectRevert(abi.encodeWithSelector(IChannels.TooLate.selector, end + 1, end));
        trials.lodge(bad, signature, place);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotTriable.selector, id, 10, 10));
        trials.lodge(bad, signature, nowhere());
    }

    /// What was not redeemed can be tried while the channel lives, and a window after it.
    function test_lodge_closed() public {
        vm.prank(nora);
        channels.closeByNode(id);
        skip(rp.window);
        lodge(receipt(11), nowhere());
        skip(1);
        SignedReceipt memory r = receipt(12);
        bytes memory signature = signed(r);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotTriable.selector, id, 12, 10));
        trials.lodge(r, signature, nowhere());
    }

    function test_lodge_loose() public {
        job = lodge(receipt(11), nowhere());
        assertEq(trials.trial(job).deadline, block.timestamp + rp.window);
        assertEq(trials.batchOf(job), 0);
        assertEq(batchOf(place).openTrials, 0);
    }

    function test_lodge_twice() public {
        lodgeBad();
        bytes memory signature = sign(noraKey, channels.receiptDigest(bad));
        vm.expectRevert(
            abi.encodeWithSelector(ITrials.AlreadyLodged.selector, channels.receiptDigest(bad), JobId.wrap(BIT | 1))
        );
        trials.lodge(bad, signature, nowhere());
    }

    function test_lodge_signature() public {
        bytes32 digest = channels.receiptDigest(bad);
        bytes memory signature = sign(malloryKey, digest);
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotSignedByNode.selector, nora, mallory));
        trials.lodge(bad, signature, nowhere());
        // another node's
        serve(nils);
        signature = sign(nilsKey, digest);
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotSignedByNode.selector, nora, nils));
        trials.lodge(bad, signature, nowhere());
        // another chain's
        signature = signed(bad);
        vm.chainId(8453);
        vm.expectPartialRevert(IChannels.NotSignedByNode.selector);
        trials.lodge(bad, signature, nowhere());
    }

    function testFuzz_lodge_signature(uint256 field, uint64 salt) public {
        bytes memory signature = signed(bad);
        salt = uint64(bound(salt, 1, 1_000));
        field = field % 14;
        if (field == 0) bad.channelId = bytes32(uint256(salt));
        if (field == 1) bad.sequence += salt;
        if (field == 2) bad.modelId = bytes32(uint256(salt));
        if (field == 3) bad.inputHash = bytes32(uint256(salt));
        if (field == 4) bad.outputHash = bytes32(uint256(salt));
        if (field == 5) bad.nIn += uint32(salt);
        if (field == 6) bad.nOut += uint32(salt);
        if (field == 7) bad.maxNew += uint32(salt);
        if (field == 8) bad.sampling += salt;
        if (field == 9) bad.seed = bytes32(uint256(salt));
        if (field == 10) bad.layersRoot = bytes32(uint256(salt));
        if (field == 11) bad.price += salt;
        if (field == 12) bad.cumulative += salt;
        if (field == 13) bad.request -= salt;
        vm.expectPartialRevert(IChannels.NotSignedByNode.selector);
        trials.lodge(bad, signature, nowhere());
    }

    function test_lodge_malformed() public {
        bad.nOut = 4; // more than asked for
        bytes memory signature = signed(bad);
        vm.expectRevert(abi.encodeWithSelector(ITrials.Malformed.selector, Fault.Length));
        trials.lodge(bad, signature, nowhere());
    }

    function test_lodge_otherPart() public {
        SignedReceipt memory r = receipt(11);
        bytes memory signature = signed(r);
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotInPart.selector, id, 11, id, 1, 10));
        trials.lodge(r, signature, place);
    }

    /// A sampled receipt keeps how it was drawn.
    function test_lodge_sampled() public {
        vm.mockCall(address(models), abi.encodeCall(models.samples, (modelId)), abi.encode(true));
        bad.sampling = 5120;
        bad.seed = "noise";
        lodgeBad();
        (,, TraceContext memory c) = trials.evidence(job);
        assertEq(abi.encode(c.sampling, c.seed), abi.encode(5120, bytes32("noise")));
    }

    // --------------------------------------------------------------------------------------------------- attach

    function test_attach() public {
        SignedReceipt memory r = receipt(11);
        job = lodge(r, nowhere());
        skip(10);
        place = redeemed(12);
        vm.expectEmit();
        emit ITrials.TrialAttached(job, 2);
        vm.prank(mallory);
        trials.attach(job, place);
        assertEq(batchOf(place).openTrials, 1);
        vm.expectRevert(abi.encodeWithSelector(ITrials.AlreadyAttached.selector, job, 2));
        trials.attach(job, place);
        vm.warp(trials.trial(job).deadline + 1);
        trials.acquit(job);
        vm.warp(batchOf(place).windowEnd + 1);
        channels.release(2);
        assertConserved();
    }

    function test_attach_wrong() public {
        job = lodge(receipt(11), nowhere());
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotInPart.selector, id, 11, id, 1, 10));
        trials.attach(job, place);
        JobId none = JobId.wrap(BIT | 9);
        vm.expectRevert(abi.encodeWithSelector(ITrials.WrongState.selector, none, JobState.None, JobState.Submitted));
        trials.attach(none, place);
        place = redeemed(12);
        vm.warp(batchOf(place).lodgeEnd + 1);
        vm.expectPartialRevert(IChannels.TooLate.selector);
        trials.attach(job, place);
    }

    // --------------------------------------------------------------------------------------------------- acquit

    function test_acquit() public {
        lodgeBad();
        demandTokens(0);
        answerTokens(0, tokens(3));
        uint40 end = trials.trial(job).deadline;
        vm.warp(end);
        vm.expectRevert(abi.encodeWithSelector(ITrials.TooEarly.selector, end, end));
        trials.acquit(job);
        vm.warp(end + 1);
        vm.expectEmit();
        emit ITrials.TrialAcquitted(job, rp.receiptFee + cp.demandFee);
        vm.prank(mallory);
        trials.acquit(job);
        assertTrial(job, JobState.Final);
        assertEq(channels.balanceOf(nora), rp.receiptFee + cp.demandFee);
        assertEq(channels.totalFees(), 0);
        channels.release(1);
        assertConserved();
        expectState(JobState.Final, JobState.Submitted);
        trials.acquit(job);
    }

    function test_acquit_underChallenge() public {
        lodgeBad();
        demandTokens(0);
        vm.warp(trials.trial(job).deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(ITrials.TrialUnderChallenge.selector, job));
        trials.acquit(job);
    }

    // --------------------------------------------------------------------------------------------------- tokens

    function test_tokens() public {
        lodgeBad();
        OpeningId o = demandTokens(1);
        assertEq(OpeningId.unwrap(o), bytes32((BIT | 1) << 128 | 1 << 96), "id");
        assertEq(challenges.opening(o).depth, 0);
        assertEq(challenges.feesPaid(job, walt), cp.demandFee);
        vm.expectRevert(abi.encodeWithSelector(IChallenges.AnswerLength.selector, 8, 12));
        answerTokens(1, tokens(2));
        vm.expectPartialRevert(IChallenges.AnswerMismatch.selector);
        answerTokens(1, abi.encodePacked(uint32(1), uint32(2), uint32(3)));
        vm.expectEmit();
        emit IChallenges.Answered(job, o, mallory, tokensTarget(1), tokens(3));
        answerTokens(1, tokens(3));
        vm.expectRevert(
            abi.encodeWithSelector(IChallenges.AlreadyDemanded.selector, o, IChallenges.OpeningState.Answered, 0)
        );
        demandTokens(1);
    }

    /// Each page of tokens costs as much as a demand.
    function test_tokens_fee() public {
        (nIn, nOut) = (64, 8);
        bad = receipt(11);
        bad.nOut = 300;
        bad.maxNew = 300;
        vm.mockCall(address(models), abi.encodeCall(models.dimensions, (modelId)), abi.encode(2, 1000, 8192));
        job = lodge(bad, nowhere());
        demandTokens(1); // 1,200 bytes
        assertEq(challenges.feesPaid(job, walt), 2 * cp.demandFee);
        assertConserved();
    }

    /// The window is over when the tokens come; from them the trace can still be followed.
    function test_tokens_parent() public {
        lodgeBad();
        vm.warp(trials.trial(job).deadline);
        OpeningId o = demandTokens(0);
        skip(cp.nodeTurn);
        answerTokens(0, tokens(3));
        skip(cp.challengerTurn);
        OpeningId under = demand(job, o, layersTarget(2, 0), trace);
        assertEq(challenges.opening(under).depth, 1);
        answer(job, layersTarget(2, 0), trace);
        // Tokens lie under nothing.
        IChallenges.DemandProof memory p;
        p.nodeHash = bad.outputHash;
        vm.expectPartialRevert(IChallenges.ParentRank.selector);
        vm.prank(walt);
        challenges.demand(job, o, tokensTarget(1), p);
    }

    function expectTarget(Target memory t, IChallenges.DemandProof memory p, bytes memory error_) internal {
        vm.expectRevert(error_);
        vm.prank(walt);
        challenges.demand(job, NONE, t, p);
    }

    function test_tokens_target() public {
        bad.outputHash = keccak256("the other sequence");
        lodgeBad();
        IChallenges.DemandProof memory p;
        p.nodeHash = bad.inputHash;
        bytes4 error_ = IChallenges.BadTarget.selector;
        expectTarget(tokensTarget(2), p, abi.encodeWithSelector(error_, "layer", 2, 2));
        bytes memory unused = abi.encodeWithSelector(error_, "unused field", 5, 0);
        expectTarget(Target(TargetKind.Tokens, 0, 1, 0, 0, 0), p, unused);
        expectTarget(Target(TargetKind.Tokens, 0, 0, 1, 0, 0), p, unused);
        expectTarget(Target(TargetKind.Tokens, 0, 0, 0, 1, 0), p, unused);
        expectTarget(Target(TargetKind.Tokens, 0, 0, 0, 0, 1), p, unused);
        expectTarget(
            tokensTarget(1), p, abi.encodeWithSelector(IChallenges.RootMismatch.selector, bad.inputHash, bad.outputHash)
        );
        p.path = new bytes32[](1);
        vm.expectRevert();
        vm.prank(walt);
        challenges.demand(job, NONE, tokensTarget(0), p);
        delete p.path;
        p.opRoots = new bytes32[](1);
        expectTarget(tokensTarget(0), p, abi.encodeWithSelector(IChallenges.UnusedProof.selector, "opRoots"));
    }

    /// The tokens of a job are in its transactions.
    function test_tokens_job() public {
        job = submitted(trace);
        IChallenges.DemandProof memory p;
        p.nodeHash = bad.inputHash;
        expectTarget(tokensTarget(0), p, abi.encodeWithSelector(IChallenges.BadTarget.selector, "kind", 5, 5));
    }

    /// Hidden tokens are silence.
    function test_tokens_timeout() public {
        lodgeBad();
        demandTokens(0);
        skip(cp.nodeTurn + 1);
        challenges.timeout(job, tokensTarget(0));
        assertTrial(job, JobState.Slashed);
        assertTrue(nodes.node(nora).convicted);
        // 40 % of the stake, and the fee for lodging
        assertEq(channels.balanceOf(walt), STAKE * 4 / 10 + rp.receiptFee);
        vm.prank(walt);
        challenges.reclaimFees(job);
        assertEq(channels.balanceOf(walt), STAKE * 4 / 10 + rp.receiptFee + cp.demandFee);
        assertConserved();
    }

    // --------------------------------------------------------------------------------------------------- fraud

    /// One wrong element of one receipt, all the way; the pending batches of all users are void.
    function test_proveFraud() public {
        bytes32 other = openChannel(wanda, nora, 50 ether, "w");
        uint256 second = redeem(redemption(other, 5));
        vm.prank(nora);
        nodes.requestUnstake(100 ether);
        lodgeBad();
        announce();
        vm.expectEmit();
        emit INodes.Convicted(nora, STAKE);
        vm.expectEmit();
        emit IChannels.NodeConvicted(nora, STAKE, STAKE * 3 / 10, STAKE * 4 / 10, STAKE * 3 / 10);
        proveAnnounced();
        assertTrial(job, JobState.Slashed);
        INodes.Node memory n = nodes.node(nora);
        assertEq(
            abi.encode(n.stake, n.locked, n.pledged, n.unbonding, n.convicted), abi.encode(0, 0, 0, 0, true), "node"
        );
        assertEq(channels.totalRewards(), STAKE * 4 / 10);
        assertEq(channels.balanceOf(uma), STAKE * 3 / 10);
        assertEq(token.balanceOf(DEAD), STAKE * 3 / 10);
        skip(cp.challengerTurn + 1);
        challenges.settleReward(job);
        assertEq(channels.balanceOf(walt), STAKE * 4 / 10 + rp.receiptFee);
        assertEq(channels.totalRewards(), 0);

        skip(1 days);
        vm.expectRevert(abi.encodeWithSelector(INodes.NodeConvicted.selector, nora));
        channels.release(second);
        channels.refund(place);
        assertEq(channels.balanceOf(uma), STAKE * 3 / 10 + 10 * PRICE);
        assertConserved();
        // Nothing is locked for it again.
        bytes memory error_ = abi.encodeWithSelector(INodes.NodeConvicted.selector, nora);
        vm.startPrank(nora);
        nodes.deposit(STAKE);
        vm.stopPrank();
        Redemption memory more = redemption(id, 12);
        vm.expectRevert(error_);
        vm.prank(nora);
        channels.redeem(one(more));
        vm.expectRevert(error_);
        vm.prank(uma);
        market.createJob(modelId, nora, tokens(1), 1, type(uint128).max, 0, 0);
    }

    /// Bonds of the market's jobs stay for these.
    function test_convict_marketBond() public {
        JobId bought = submitted(trace);
        uint128 bond = market.job(bought).bond;
        lodgeBad();
        prove();
        INodes.Node memory n = nodes.node(nora);
        assertEq(abi.encode(n.stake, n.locked), abi.encode(bond, bond));
        assertEq(channels.totalRewards(), (STAKE - bond) * 4 / 10);
        vm.warp(windowEnd(bought) + 1);
        market.finalize(bought);
        assertEq(nodes.freeStake(nora), bond);
        assertConserved();
    }

    /// The stake is gone already: fees come back, the reward is nothing, nothing reverts.
    function test_convict_twice() public {
        lodgeBad();
        JobId second = lodge(receipt(9), place);
        prove();
        job = second;
        demandTokens(1);
        skip(cp.nodeTurn + 1);
        challenges.timeout(job, tokensTarget(1));
        assertTrial(job, JobState.Slashed);
        assertEq(channels.balanceOf(walt), 2 * rp.receiptFee);
        vm.prank(walt);
        challenges.reclaimFees(job);
        assertEq(channels.balanceOf(walt), 2 * rp.receiptFee + cp.demandFee);
        assertConserved();
    }

    /// A trial that goes on after the conviction ends as any other, and its batch is void all the same.
    function test_acquit_convicted() public {
        lodgeBad();
        JobId second = lodge(receipt(9), place);
        prove();
        channels.refund(place);
        vm.warp(trials.trial(second).deadline + 1);
        trials.acquit(second);
        assertTrial(second, JobState.Final);
        assertConserved();
    }

    /// After the release it is over, as with a job: no trial, so nobody need keep tokens for one.
    function test_lodge_released() public {
        vm.warp(batchOf(place).windowEnd + 1);
        channels.release(1);
        bytes memory signature = signed(bad);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotTriable.selector, id, 10, 10));
        trials.lodge(bad, signature, nowhere());
        vm.expectPartialRevert(IChannels.WrongBatchState.selector);
        trials.lodge(bad, signature, place);
    }

    /// A trial that began before the redemption goes on after a release that did not wait for it.
    function test_proveFraud_released() public {
        bad.sequence = 11;
        job = lodge(bad, nowhere());
        redeemed(12);
        vm.warp(trials.trial(job).deadline);
        open(job, opListTarget(lie.layer, lie.row), trace);
        skip(1);
        channels.release(2);
        bytes32 commitment = challenges.commitmentOf(job, lie, walt, WALTS);
        vm.prank(walt);
        challenges.announce(job, commitment);
        vm.roll(block.number + 1);
        proveAnnounced();
        assertTrue(nodes.node(nora).convicted);
        assertEq(channels.balanceOf(nora), 2 * PRICE);
        assertEq(channels.balanceOf(uma), STAKE * 3 / 10);
        assertConserved();
    }

    /// The longest a batch can wait: the last demand for a receipt, the last second of everything after it.
    function test_longest() public {
        uint40 start = uint40(block.timestamp);
        vm.warp(start + rp.window);
        vm.prank(walt);
        channels.demandReceipt(place, 9);
        skip(rp.receiptTurn);
        nIn = 3;
        SignedReceipt memory r = receipt(9);
        channels.publishReceipt(place, r, signed(r), receiptProof(id, 1, 10, 9));
        skip(rp.lodgeTurn);
        job = lodge(receipt(9), place);
        uint256 longest = start + rp.window + rp.receiptTurn + rp.lodgeTurn + rp.lodgeTurn;
        assertEq(trials.trial(job).deadline, longest);
        vm.warp(longest);
        OpeningId parent = demandTokens(0);
        skip(cp.nodeTurn);
        answerTokens(0, tokens(3));
        skip(cp.challengerTurn);
        Target[5] memory path = [
            layersTarget(2, 0),
            positionsTarget(2, 3, 0),
            opListTarget(2, 4),
            pagesTarget(2, 4, 1, 3, 0),
            pageTarget(2, 4, 1, 3)
        ];
        for (uint256 i; i < 5; i++) {
            parent = demand(job, parent, path[i], trace);
            skip(cp.nodeTurn);
            answer(job, path[i], trace);
            skip(cp.challengerTurn);
        }
        assertEq(block.timestamp, longest + 6 * (cp.nodeTurn + cp.challengerTurn));
        vm.expectRevert(abi.encodeWithSelector(ITrials.TrialUnderChallenge.selector, job));
        trials.acquit(job);
        skip(1);
        trials.acquit(job);
        channels.release(1);
        assertLt(block.timestamp - start, nodes.UNSTAKE_DELAY());
        assertConserved();
    }

    // ------------------------------------------------------------------------------------------------ wiring

    function test_onlyChallenges() public {
        lodgeBad();
        bytes memory error_ = abi.encodeWithSelector(ITrials.NotChallenges.selector, mallory, address(challenges));
        vm.startPrank(mallory);
        vm.expectRevert(error_);
        trials.takeFee(walt, job, 1);
        vm.expectRevert(error_);
        trials.refundFee(mallory, job, 1);
        vm.expectRevert(error_);
        trials.slash(job);
        vm.expectRevert(error_);
        trials.payReward(job, mallory);
    }

    function test_challenges_states() public {
        lodgeBad();
        vm.startPrank(address(challenges));
        expectState(JobState.Submitted, JobState.Slashed);
        trials.refundFee(walt, job, 1);
        expectState(JobState.Submitted, JobState.Slashed);
        trials.payReward(job, walt);
        trials.slash(job);
        vm.expectRevert(abi.encodeWithSelector(ITrials.NotHeld.selector, job, 0, 1));
        trials.refundFee(walt, job, 1);
        expectState(JobState.Slashed, JobState.Submitted);
        trials.takeFee(walt, job, 1);
        expectState(JobState.Slashed, JobState.Submitted);
        trials.slash(job);
        trials.payReward(job, walt);
        // There is one reward.
        trials.payReward(job, walt);
        assertEq(channels.balanceOf(walt), STAKE * 4 / 10 + rp.receiptFee);
        assertConserved();
    }

    function test_constructor() public {
        assertEq(trials.channels(), address(channels));
        assertEq(trials.models(), address(models));
        assertEq(trials.challenges(), address(challenges));
        address next = vm.computeCreateAddress(address(this), vm.getNonce(address(this)));
        vm.expectRevert(abi.encodeWithSelector(ITrials.WrongTrials.selector, address(trials), next));
        new Trials(address(channels), address(models), address(challenges));
    }
}
