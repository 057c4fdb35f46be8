// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {OpeningId, Target} from "../contracts/interfaces/IChallenges.sol";
import {IMarket, JobId, JobState} from "../contracts/interfaces/IMarket.sol";
import {Claim, Witness} from "../contracts/interfaces/IStepVerifier.sol";
import {Deploy} from "../script/Deploy.s.sol";
import {Fixture} from "./support/Fixture.sol";
import {TinyTrace} from "./support/TinyTrace.sol";

/// @notice What honesty costs and dishonesty loses, at any gas price that a deployment was sized for, in wei: every call is a transaction of
/// its own, and its gas is what it used.
/// forge-config: default.isolate = true
/// forge-config: default.fuzz.runs = 64
contract EconomicsTest is Fixture {
    bytes32 internal constant SALT = keccak256("salt");

    Claim internal lie = Claim(2, 4, 2, 290);
    uint256 internal gasPrice;
    uint256 internal weiPerToken;
    JobId internal id;
    /// gas of the challenger, and of the node
    uint256 internal challenge;
    uint256 internal answers;

    /// The contracts sized for a gas price up to which `share` of it is paid, and a token of any worth that a stake of the fixture covers.
    function size(uint256 price, uint256 worth, uint256 share) internal {
        uint256 most = bound(price, 1e6, 1e12);
        Deploy script = new Deploy();
        // A minimal bond of up to 400 tokens.
        uint256 least = script.LOSS_PER_COST() * script.CHALLENGE_GAS() * most * 2 / 400;
        weiPerToken = bound(worth, least, least * 1e6);
        gasPrice = bound(share, 1, most);
        deploy(script, script.sized(script.preset("devnet"), most, weiPerToken));
        (challenge, answers) = (0, 0);
    }

    function spent() internal view returns (uint256) {
        return vm.lastCallGas().gasTotalUsed;
    }

    function inWei(uint256 amount) internal view returns (uint256) {
        return amount * weiPerToken / 1 ether;
    }

    function wealth(address who) internal view returns (uint256) {
        return token.balanceOf(who) + market.withdrawable(who);
    }

    function opened(Target memory t, TinyTrace trace, address by) internal {
        (OpeningId none, bytes memory data) = (NONE, trace.answer(t));
        (bytes32 hash, uint32 leafCount, uint32 byteLength) =
            (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        vm.startPrank(by);
        challenges.demand(id, none, t, trace.proof(t));
        challenge += spent();
        vm.stopPrank();
        vm.prank(nora);
        challenges.answer(id, t, hash, leafCount, byteLength, data);
        answers += spent();
    }

    /// From the demand to the money, by one account.
    function convicted(address by) internal {
        TinyTrace trace = new TinyTrace(3, 3, true, lie);
        id = submitted(trace);
        opened(opListTarget(lie.layer, lie.row), trace, by);
        opened(pageTarget(lie.layer, lie.row, lie.op, lie.element * 4 / 1024), trace, by);
        bytes32 commitment = challenges.commitmentOf(id, lie, by, SALT);
        vm.prank(by);
        challenges.announce(id, commitment);
        challenge += spent();
        vm.roll(block.number + 1);
        skip(1);
        Witness memory w = trace.witness(lie);
        vm.prank(by);
        challenges.proveFraud(id, lie, SALT, w);
        challenge += spent();
        skip(cp.challengerTurn + 1);
        challenges.settleReward(id);
        challenge += spent();
        vm.startPrank(by);
        challenges.reclaimFees(id);
        challenge += spent();
        market.withdraw();
        challenge += spent();
        vm.stopPrank();
    }

    /// The bond is sized by more gas than a real model's dearest challenge, or this one, uses.
    function checkGas() internal {
        Deploy script = new Deploy();
        string memory measured = vm.readFile("test/gas/challenge.json");
        assertGe(script.CHALLENGE_GAS(), vm.parseJsonUint(measured, "['dearest whole challenge, trace served']"));
        assertGe(script.ANSWER_GAS(), vm.parseJsonUint(measured, "['answer at 4096']"));
        assertGt(challenge, 500_000, "the challenge was measured");
        assertGe(script.CHALLENGE_GAS(), challenge, "challenge");
        assertGe(script.ANSWER_GAS(), answers / 2, "answers");
    }

    function testFuzz_liarLosesTenTimesWhatItsChallengerSpends(uint256 price, uint256 worth, uint256 share) public {
        size(price, worth, share);
        uint256 before = wealth(walt);
        convicted(walt);
        checkGas();
        assertEq(uint8(market.job(id).state), uint8(JobState.Slashed));
        (uint256 cost, uint256 lost) = (challenge * gasPrice, inWei(market.job(id).bond));
        assertGe(inWei(wealth(walt) - before), cost, "the challenger is paid");
        assertGe(lost, 10 * cost, "loss to cost");
    }

    /// Convicting oneself gives the reward back, not what is burned and what the user gets.
    function testFuzz_convictingOneselfLosesTenTimesWhatItSaves(uint256 price, uint256 worth, uint256 share) public {
        size(price, worth, share);
        // Node and challenger are one person with two accounts.
        uint256 before = wealth(mallory) + wealth(nora) + nodes.node(nora).stake;
        convicted(mallory);
        uint256 lost = before - (wealth(mallory) + wealth(nora) + nodes.node(nora).stake);
        assertGe(inWei(lost), 10 * challenge * gasPrice, "loss to cost");
    }

    /// Whoever floods an honest node with demands pays it for every answer.
    function testFuzz_floodedNodeIsPaid(uint256 price, uint256 worth, uint256 share) public {
        size(price, worth, share);
        TinyTrace trace = honestTrace(3, 3);
        id = submitted(trace);
        uint256 before = wealth(nora);
        opened(layersTarget(1, 1), trace, mallory);
        opened(positionsTarget(1, 2, 0), trace, mallory);
        opened(opListTarget(1, 2), trace, mallory);
        vm.warp(windowEnd(id) + cp.nodeTurn + cp.challengerTurn + 1);
        market.finalize(id);
        IMarket.Job memory j = market.job(id);
        uint256 pay = uint256(j.nIn) * PER_INPUT + uint256(j.nOut) * PER_OUTPUT;
        assertGe(inWei(wealth(nora) - before - pay), answers * gasPrice, "the node is paid");
    }
}
