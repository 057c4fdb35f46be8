// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChannels} from "../contracts/interfaces/IChannels.sol";
import {JobState} from "../contracts/interfaces/ICourt.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {ChannelsHandler} from "./support/ChannelsHandler.sol";
import {Fixture} from "./support/Fixture.sol";

contract ChannelsInvariantsTest is Fixture {
    ChannelsHandler internal handler;
    bytes4[] internal steps;

    function setUp() public override {
        super.setUp();
        handler = new ChannelsHandler(token, nodes, channels, trials, challenges, modelId);
        // Twice what everything else waits for.
        bytes4[18] memory all = [
            ChannelsHandler.open.selector,
            ChannelsHandler.redeem.selector,
            ChannelsHandler.redeem.selector,
            ChannelsHandler.demand.selector,
            ChannelsHandler.publish.selector,
            ChannelsHandler.publish.selector,
            ChannelsHandler.lodge.selector,
            ChannelsHandler.lodge.selector,
            ChannelsHandler.demandTokens.selector,
            ChannelsHandler.answerTokens.selector,
            ChannelsHandler.answerTokens.selector,
            ChannelsHandler.topUp.selector,
            ChannelsHandler.close.selector,
            ChannelsHandler.withdraw.selector,
            ChannelsHandler.unstake.selector,
            ChannelsHandler.equivocate.selector,
            ChannelsHandler.end.selector,
            ChannelsHandler.pass.selector
        ];
        for (uint256 i; i < all.length; i++) {
            steps.push(all[i]);
        }
        targetContract(address(handler));
        targetSelector(FuzzSelector(address(handler), steps));
    }

    function invariant_all() public {
        assertConserved();
        handler.observe();
        uint256 balances;
        uint256 held;
        for (uint256 i; i < handler.peopleCount(); i++) {
            balances += channels.balanceOf(handler.people(i));
            held += token.balanceOf(handler.people(i));
        }
        assertEq(channels.totalBalances(), balances, "balances");
        assertEq(channels.totalCommitted(), handler.committed(), "committed");
        assertEq(channels.totalFees(), handler.fees(), "fees");
        uint256 stakes = nodes.node(nora).stake;
        for (uint256 i; i < handler.peopleCount(); i++) {
            address who = handler.people(i);
            INodes.Node memory n = nodes.node(who);
            stakes += n.stake;
            assertGe(n.stake, uint256(n.locked) + n.pledged + n.unbonding, "stake");
            assertEq(n.pledged, n.convicted ? 0 : handler.pledgedFor(who), "pledged");
        }
        assertEq(token.balanceOf(address(nodes)), stakes, "stakes");
        // The fixture's own node and people take no part.
        held += token.balanceOf(address(channels)) + stakes - nodes.node(nora).stake + token.balanceOf(DEAD);
        assertEq(held + 6 * FUNDS, token.totalSupply(), "supply");
    }

    /// Whatever has happened, everything ends: no channel, no batch, no demand, no trial can hold money for ever.
    function afterInvariant() public {
        handler.assertBusy();
        vm.roll(block.number + 1);
        handler.closeAll();
        skip(2 * rp.window + rp.receiptTurn + rp.lodgeTurn + 9 * (cp.nodeTurn + cp.challengerTurn));
        // Whoever has not answered by now never does.
        while (handler.silent(0)) {}
        while (handler.withheld(0)) {}
        while (handler.acquit(0)) {}
        while (handler.release(0)) {}
        while (handler.refund(0)) {}
        while (handler.reclaim(0)) {}
        while (handler.withdrawAny(0)) {}
        for (uint256 i; i < handler.trialCount(); i++) {
            assertGe(uint8(trials.stateOf(handler.trialAt(i))), uint8(JobState.Final), "a trial did not end");
        }
        for (uint256 b = 1; b <= handler.batchCount(); b++) {
            assertGe(uint8(channels.batch(b).state), uint8(IChannels.BatchState.Released), "a batch did not end");
        }
        assertEq(token.balanceOf(address(channels)), 0, "money was left over");
    }

    /// The campaign is worth something only if its steps do something: see Invariants.t.sol.
    function test_stepsDoSomething() public {
        for (uint256 i; i < 1_000; i++) {
            uint256 r = uint256(keccak256(abi.encode("channel step", i)));
            (bool ok, bytes memory reason) = address(handler)
                .call(
                    abi.encodePacked(
                        steps[r % steps.length],
                        keccak256(abi.encode(r, 1)),
                        keccak256(abi.encode(r, 2)),
                        keccak256(abi.encode(r, 3))
                    )
                );
            if (!ok) {
                assembly {
                    revert(add(reason, 32), mload(reason))
                }
            }
            if (i % 100 == 0) invariant_all();
        }
        invariant_all();
        string[21] memory names = [
            "open",
            "topUp",
            "close",
            "withdraw",
            "redeem",
            "publish",
            "unstake",
            "demand",
            "lodge",
            "attach",
            "tokens",
            "answer",
            "equivocate",
            "end",
            "pass",
            "release",
            "refund",
            "withheld",
            "acquit",
            "silent",
            "reclaim"
        ];
        for (uint256 i; i < names.length; i++) {
            assertGt(handler.count(bytes32(bytes(names[i]))), 0, names[i]);
        }
        afterInvariant();
    }
}
