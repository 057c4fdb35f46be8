// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Market} from "../contracts/Market.sol";
import {IChallenges} from "../contracts/interfaces/IChallenges.sol";
import {IMarket, JobId, JobState} from "../contracts/interfaces/IMarket.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {Fixture} from "./support/Fixture.sol";
import {NaiveTree} from "./support/NaiveTree.sol";
import {TinyModel} from "./support/TinyModel.sol";

contract MarketServeTest is Fixture {
    bytes32 internal constant ROOT = keccak256("layers root");
    uint128 internal constant PRICE = 3 * PER_INPUT + 4 * PER_OUTPUT;

    JobId internal id;

    /// of `id`
    bytes32 internal order;

    function setUp() public override {
        super.setUp();
        id = buy(3, 4);
        order = market.orderHash(id);
    }

    function expectState(JobState actual, JobState expected) internal {
        vm.expectRevert(abi.encodeWithSelector(IMarket.WrongState.selector, id, actual, expected));
    }

    function asChallenges() internal {
        vm.prank(address(challenges));
    }

    function submitTokens(bytes memory answer_) internal {
        vm.prank(nora);
        market.submitResult(id, order, answer_, ROOT);
    }

    function stop() internal pure returns (bytes memory) {
        return abi.encodePacked(TinyModel.STOP);
    }

    // --------------------------------------------------------------------------------------------- submitResult

    function test_submitResult() public {
        vm.warp(market.job(id).deadline);
        bytes memory answer_ = tokens(4);
        bytes32 outputHash =
            keccak256(abi.encodePacked(uint8(8), uint32(4), NaiveTree.root(NaiveTree.pageHashes(answer_))));
        bytes32 traceRoot =
            keccak256(abi.encodePacked(uint8(5), modelId, market.job(id).inputHash, outputHash, uint32(6), ROOT));
        uint40 end = uint40(block.timestamp) + mp.challengeWindow;
        vm.expectEmit();
        emit IMarket.ResultSubmitted(id, nora, answer_, ROOT, traceRoot, end);
        submitTokens(answer_);
        IMarket.Job memory j = market.job(id);
        assertState(id, JobState.Submitted);
        assertEq(j.nOut, 4);
        assertEq(j.outputHash, outputHash);
        assertEq(j.layersRoot, ROOT);
        assertEq(j.deadline, end);
        assertEq(market.traceRoot(id), traceRoot);
    }

    function test_submitResult_stops() public {
        submitTokens(bytes.concat(tokens(1), stop()));
        assertEq(market.job(id).nOut, 2);
    }

    function test_submitResult_stopsAtTheEnd() public {
        submitTokens(bytes.concat(tokens(3), stop()));
        assertEq(market.job(id).nOut, 4);
    }

    function test_submitResult_late() public {
        uint40 deadline = market.job(id).deadline;
        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(IMarket.TooLate.selector, id, deadline + 1, deadline));
        submitTokens(tokens(4));
    }

    function test_submitResult_notNode() public {
        vm.expectRevert(abi.encodeWithSelector(IMarket.NotNode.selector, id, mallory, nora));
        vm.prank(mallory);
        market.submitResult(id, 0, tokens(4), ROOT);
    }

    function test_submitResult_order() public {
        bytes32 hash =
            keccak256(abi.encodePacked(uint8(9), modelId, market.job(id).inputHash, uint32(4), uint256(0), bytes32(0)));
        assertEq(order, hash);
        assertEq(market.orderHash(JobId.wrap(99)), 0);
        JobId other = buy(2, 4);
        bytes32 wrong = market.orderHash(other);
        assertNotEq(wrong, order);
        vm.expectRevert(abi.encodeWithSelector(IMarket.OrderMismatch.selector, id, wrong, order));
        vm.prank(nora);
        market.submitResult(id, wrong, tokens(4), ROOT);
    }

    function test_submitResult_twice() public {
        submitTokens(tokens(4));
        expectState(JobState.Submitted, JobState.Assigned);
        submitTokens(tokens(4));
    }

    function test_submitResult_tokenBytes() public {
        vm.expectRevert(abi.encodeWithSelector(IMarket.TokenBytes.selector, 0));
        submitTokens("");
        vm.expectRevert(abi.encodeWithSelector(IMarket.TokenBytes.selector, 3));
        submitTokens(hex"000000");
    }

    function test_submitResult_tooLong() public {
        vm.expectRevert(abi.encodeWithSelector(IMarket.AnswerTooLong.selector, 5, 4));
        submitTokens(tokens(5));
    }

    function test_submitResult_vocabulary() public {
        vm.expectRevert(abi.encodeWithSelector(IMarket.TokenOutOfVocabulary.selector, 3, type(uint32).max, 1000));
        submitTokens(bytes.concat(tokens(3), hex"ffffffff"));
    }

    function test_submitResult_stopTooEarly() public {
        vm.expectRevert(abi.encodeWithSelector(IMarket.StopTokenTooEarly.selector, 1, 7));
        submitTokens(bytes.concat(tokens(1), stop(), tokens(2)));
    }

    function test_submitResult_stopMissing() public {
        vm.expectRevert(abi.encodeWithSelector(IMarket.StopTokenMissing.selector, 3, 4, 102));
        submitTokens(tokens(3));
    }

    // --------------------------------------------------------------------------------------------------- expire

    function test_expire_open() public {
        vm.prank(uma);
        id = market.createJob(modelId, address(0), tokens(3), 4, 50 ether, 0, 0);
        uint40 deadline = market.job(id).deadline;
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(IMarket.TooEarly.selector, id, deadline, deadline));
        market.expire(id);
        vm.warp(deadline + 1);
        vm.expectEmit();
        emit IMarket.JobExpired(id, 50 ether, 0);
        market.expire(id);
        assertState(id, JobState.Expired);
        assertEq(market.withdrawable(uma), 50 ether);
        assertConserved();
    }

    function test_expire_late() public {
        uint40 deadline = market.job(id).deadline;
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(IMarket.TooEarly.selector, id, deadline, deadline));
        market.expire(id);
        vm.warp(deadline + 1);
        vm.expectEmit();
        emit IMarket.JobExpired(id, PRICE, 0.5 ether);
        vm.prank(mallory);
        market.expire(id);
        assertState(id, JobState.Expired);
        assertEq(market.withdrawable(uma), PRICE + 0.5 ether);
        INodes.Node memory n = nodes.node(nora);
        assertEq(abi.encode(n.stake, n.locked, n.active, n.timedOut), abi.encode(STAKE - 0.5 ether, 0, 0, 1));
        assertConserved();
        expectState(JobState.Expired, JobState.Assigned);
        market.expire(id);
        expectState(JobState.Expired, JobState.Assigned);
        submitTokens(tokens(4));
    }

    function test_expire_submitted() public {
        submitTokens(tokens(4));
        skip(1 days);
        expectState(JobState.Submitted, JobState.Assigned);
        market.expire(id);
    }

    // ------------------------------------------------------------------------------------------------- finalize

    function test_finalize() public {
        submitTokens(bytes.concat(tokens(1), stop()));
        uint40 end = windowEnd(id);
        vm.warp(end);
        vm.expectRevert(abi.encodeWithSelector(IMarket.TooEarly.selector, id, end, end));
        market.finalize(id);
        vm.warp(end + 1);
        uint128 paid = 3 * PER_INPUT + 2 * PER_OUTPUT;
        vm.expectEmit();
        emit IMarket.JobFinalized(id, paid, 2 * PER_OUTPUT);
        vm.prank(mallory);
        market.finalize(id);
        assertState(id, JobState.Final);
        assertEq(market.withdrawable(nora), paid);
        assertEq(market.withdrawable(uma), 2 * PER_OUTPUT);
        INodes.Node memory n = nodes.node(nora);
        assertEq(abi.encode(n.stake, n.locked, n.active, n.served), abi.encode(STAKE, 0, 0, 1));
        assertConserved();
        expectState(JobState.Final, JobState.Submitted);
        market.finalize(id);
    }

    function test_finalize_assigned() public {
        skip(1 days);
        expectState(JobState.Assigned, JobState.Submitted);
        market.finalize(id);
    }

    function test_finalize_underChallenge() public {
        submitTokens(tokens(4));
        vm.warp(windowEnd(id) + 1);
        vm.mockCall(address(challenges), abi.encodeCall(IChallenges.settled, (id)), abi.encode(false));
        vm.expectRevert(abi.encodeWithSelector(IMarket.UnderChallenge.selector, id));
        market.finalize(id);
    }

    function test_finalize_fees() public {
        submitTokens(tokens(4));
        asChallenges();
        market.takeFee(walt, id, 0.25 ether);
        assertEq(market.totalFees(), 0.25 ether);
        assertConserved();
        vm.warp(windowEnd(id) + 1);
        market.finalize(id);
        assertEq(market.totalFees(), 0);
        assertEq(market.withdrawable(nora), PRICE + 0.25 ether);
        assertConserved();
    }

    // ------------------------------------------------------------------------------------------------- withdraw

    function test_withdraw() public {
        submitTokens(tokens(4));
        vm.warp(windowEnd(id) + 1);
        market.finalize(id);
        vm.expectEmit();
        emit IMarket.Withdrawn(nora, PRICE);
        vm.startPrank(nora);
        assertEq(market.withdraw(), PRICE);
        assertEq(token.balanceOf(nora), FUNDS - STAKE + PRICE);
        assertEq(market.totalWithdrawable(), 0);
        assertConserved();
        vm.expectRevert(abi.encodeWithSelector(IMarket.NothingToWithdraw.selector, nora));
        market.withdraw();
    }

    // ----------------------------------------------------------------------------------------------- challenges

    function test_onlyChallenges() public {
        submitTokens(tokens(4));
        bytes memory error_ = abi.encodeWithSelector(IMarket.NotChallenges.selector, mallory, address(challenges));
        vm.startPrank(mallory);
        vm.expectRevert(error_);
        market.takeFee(walt, id, 1);
        vm.expectRevert(error_);
        market.refundFee(mallory, id, 1);
        vm.expectRevert(error_);
        market.slash(id);
        vm.expectRevert(error_);
        market.payReward(id, mallory);
    }

    function test_challenges_states() public {
        expectState(JobState.Assigned, JobState.Submitted);
        asChallenges();
        market.takeFee(walt, id, 1);
        expectState(JobState.Assigned, JobState.Submitted);
        asChallenges();
        market.slash(id);
        submitTokens(tokens(4));
        expectState(JobState.Submitted, JobState.Slashed);
        asChallenges();
        market.refundFee(walt, id, 1);
        expectState(JobState.Submitted, JobState.Slashed);
        asChallenges();
        market.payReward(id, walt);
    }

    function test_slash() public {
        submitTokens(tokens(4));
        asChallenges();
        market.takeFee(walt, id, 0.01 ether);
        vm.expectEmit();
        emit IMarket.JobSlashed(id, nora, 10 ether, PRICE, 3 ether, 4 ether, 3 ether);
        asChallenges();
        market.slash(id);
        assertState(id, JobState.Slashed);
        assertEq(market.withdrawable(uma), PRICE + 3 ether);
        assertEq(market.totalRewards(), 4 ether);
        assertEq(token.balanceOf(DEAD), 3 ether);
        INodes.Node memory n = nodes.node(nora);
        assertEq(abi.encode(n.stake, n.locked, n.active, n.slashed), abi.encode(STAKE - 10 ether, 0, 0, 1));
        assertConserved();

        vm.expectRevert(abi.encodeWithSelector(IMarket.NotHeld.selector, id, 0.01 ether, 0.01 ether + 1));
        asChallenges();
        market.refundFee(walt, id, 0.01 ether + 1);
        asChallenges();
        market.refundFee(walt, id, 0.01 ether);
        asChallenges();
        market.payReward(id, wanda);
        assertEq(market.withdrawable(walt), 0.01 ether);
        assertEq(market.withdrawable(wanda), 4 ether);
        assertEq(market.totalFees() + market.totalRewards(), 0);
        vm.expectRevert(abi.encodeWithSelector(IMarket.NotHeld.selector, id, 0, 1));
        asChallenges();
        market.payReward(id, wanda);
        expectState(JobState.Slashed, JobState.Submitted);
        asChallenges();
        market.slash(id);
        assertConserved();
    }

    /// I6: whoever is node, user and challenger at once loses by a slash.
    function testFuzz_slash_neverPays(uint16 userShare, uint16 challengerShare, uint128 minBond) public {
        challengerShare = uint16(bound(challengerShare, 1, 9_999));
        userShare = uint16(bound(userShare, 0, 9_999 - challengerShare));
        // From the smallest bond of which the challenger's share is not rounded to nothing.
        minBond = uint128(bound(minBond, 9_999 / challengerShare + 1, 100 ether));
        mp.userShareBps = userShare;
        mp.challengerShareBps = challengerShare;
        mp.minBond = minBond;
        vm.etch(
            address(market),
            address(new Market(address(token), address(models), address(nodes), address(challenges), mp)).code
        );
        vm.prank(nora);
        nodes.setAsk(modelId, 0, 0, 100);
        vm.prank(nora);
        id = market.createJob(modelId, nora, tokens(1), 1, 0, 0, 0);
        submit(id, 1, ROOT);
        asChallenges();
        market.slash(id);
        assertLt(market.withdrawable(nora) + market.totalRewards(), minBond);
        assertGt(token.balanceOf(DEAD), 0);
        assertGt(market.totalRewards(), 0);
    }

    // ---------------------------------------------------------------------------------------------- constructor

    function expectParameter(string memory name, uint256 actual, uint256 min, uint256 max) internal {
        vm.expectRevert(abi.encodeWithSelector(IMarket.ParameterOutOfRange.selector, name, actual, min, max));
        new Market(address(token), address(models), address(nodes), address(challenges), mp);
    }

    function test_params() public view {
        assertEq(abi.encode(market.params()), abi.encode(mp));
        assertEq(market.token(), address(token));
        assertEq(market.models(), address(models));
        assertEq(market.nodes(), address(nodes));
        assertEq(market.challenges(), address(challenges));
    }

    function test_constructor_parameters() public {
        IMarket.Params memory good = mp;
        mp.acceptTimeout = 0;
        mp.auctionTime = 0;
        expectParameter("acceptTimeout", 0, 1, type(uint32).max);
        mp = good;
        mp.auctionTime = mp.acceptTimeout + 1;
        expectParameter("auctionTime", mp.auctionTime, 0, mp.acceptTimeout);
        mp = good;
        mp.submitTimeout = 0;
        expectParameter("submitTimeout", 0, 1, type(uint32).max);
        mp = good;
        mp.challengeWindow = type(uint40).max;
        expectParameter("challengeWindow", type(uint40).max, 1, type(uint32).max);
        mp = good;
        mp.minBond = 0;
        expectParameter("minBond", 0, 3, type(uint128).max);
        mp.minBond = 2;
        expectParameter("minBond", 2, 3, type(uint128).max);
        mp = good;
        mp.latePenaltyBps = 10_001;
        expectParameter("latePenaltyBps", 10_001, 0, 10_000);
        mp = good;
        mp.challengerShareBps = 0;
        expectParameter("challengerShareBps", 0, 1, 9_999);
        mp = good;
        mp.userShareBps = 6_000;
        expectParameter("userShareBps", 6_000, 0, 5_999);
    }
}
