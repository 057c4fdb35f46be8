// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IMarket, JobId, JobState} from "../contracts/interfaces/IMarket.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {Claim} from "../contracts/interfaces/IStepVerifier.sol";
import {Fixture} from "./support/Fixture.sol";
import {Handler} from "./support/Handler.sol";
import {TinyTrace} from "./support/TinyTrace.sol";

contract InvariantsTest is Fixture {
    Handler internal handler;
    uint256 internal supply;
    bytes4[] internal steps;

    function setUp() public override {
        super.setUp();
        Claim memory lie = Claim(2, 2, 0, 270);
        handler = new Handler(
            token, market, nodes, challenges, modelId, honestTrace(3, 2), new TinyTrace(3, 2, true, lie), lie
        );
        supply = token.totalSupply();
        // Twice what everything else waits for.
        bytes4[15] memory all = [
            Handler.create.selector,
            Handler.create.selector,
            Handler.submit.selector,
            Handler.submit.selector,
            Handler.demand.selector,
            Handler.demand.selector,
            Handler.answer.selector,
            Handler.pass.selector,
            Handler.accept.selector,
            Handler.announce.selector,
            Handler.cancel.selector,
            Handler.close.selector,
            Handler.pass.selector,
            Handler.unstake.selector,
            Handler.withdraw.selector
        ];
        for (uint256 i; i < all.length; i++) {
            steps.push(all[i]);
        }
        targetContract(address(handler));
        targetSelector(FuzzSelector(address(handler), steps));
    }

    function people(uint256 i) internal view returns (address) {
        return i < 3 ? handler.users(i) : i < 6 ? handler.servers(i - 3) : handler.watchers(i - 6);
    }

    /// One campaign checks all: each invariant of its own would run the same sequences again.
    function invariant_all() public {
        checkMoney();
        checkTotals();
        handler.observe(); // I1, I2, I5
        checkSlashes();
    }

    /// I4
    function checkMoney() internal view {
        assertConserved();
        assertEq(token.totalSupply(), supply);
        uint256 owed;
        uint256 held;
        for (uint256 i; i < 9; i++) {
            owed += market.withdrawable(people(i));
            held += token.balanceOf(people(i));
        }
        assertEq(owed, market.totalWithdrawable(), "balances");
        for (uint256 i; i < 3; i++) {
            held += nodes.node(handler.servers(i)).stake;
        }
        // The fixture's own node and people take no part.
        held += token.balanceOf(address(market)) + token.balanceOf(DEAD) + 6 * FUNDS;
        assertEq(held, supply, "supply");
        assertEq(token.balanceOf(address(nodes)), stakes(), "stakes");
    }

    function stakes() internal view returns (uint256 sum) {
        sum = nodes.node(nora).stake;
        for (uint256 i; i < 3; i++) {
            sum += nodes.node(handler.servers(i)).stake;
        }
    }

    /// What the totals say is what the jobs say.
    function checkTotals() internal view {
        uint256 escrow;
        uint256[3] memory locked;
        uint256[3] memory active;
        uint256 fees;
        for (uint256 id = 1; id <= handler.jobs(); id++) {
            IMarket.Job memory j = market.job(JobId.wrap(id));
            if (j.state < JobState.Final) escrow += j.escrow;
            for (uint256 i; i < 3; i++) {
                if (j.node == handler.servers(i) && j.state < JobState.Final) {
                    locked[i] += j.bond;
                    active[i]++;
                }
                if (j.state != JobState.Final) fees += challenges.feesPaid(JobId.wrap(id), handler.watchers(i));
            }
        }
        assertEq(market.totalEscrow(), escrow, "escrow");
        assertEq(market.totalFees(), fees, "fees");
        for (uint256 i; i < 3; i++) {
            INodes.Node memory n = nodes.node(handler.servers(i));
            assertEq(n.locked, locked[i], "locked");
            assertEq(n.active, active[i], "active");
            assertGe(n.stake, uint256(n.locked) + n.unbonding, "stake");
        }
    }

    /// I6
    function checkSlashes() internal view {
        uint256 slashed = handler.inState(JobState.Slashed);
        assertGe(token.balanceOf(DEAD), slashed * 3 ether);
        uint256 records;
        for (uint256 i; i < 3; i++) {
            records += nodes.node(handler.servers(i)).slashed;
        }
        assertEq(records, slashed);
    }

    /// Whatever has happened, everything ends: no demand, no turn, no job can hold money for ever.
    function afterInvariant() public {
        handler.assertBusy();
        vm.roll(block.number + 1);
        vm.warp(block.timestamp + mp.acceptTimeout + mp.submitTimeout + mp.challengeWindow);
        // Whoever has not answered by now never does.
        for (uint256 i; i < handler.jobs(); i++) {
            handler.timeout(i);
        }
        skip(8 * (cp.nodeTurn + cp.challengerTurn));
        for (uint256 i; i <= handler.jobs(); i++) {
            handler.finalize(i);
            handler.expire(i);
            handler.settle(i);
            for (uint256 w; w < 3; w++) {
                handler.reclaim(w, i);
            }
        }
        while (handler.withdrawAny(0)) {}
        uint256 terminal;
        for (uint8 s = uint8(JobState.Final); s <= uint8(JobState.Slashed); s++) {
            terminal += handler.inState(JobState(s));
        }
        assertEq(terminal, handler.jobs(), "a job did not end");
        assertEq(token.balanceOf(address(market)), 0, "money was left over");
    }

    /// The campaign is worth something only if its steps do something: one long sequence of the same kind, drawn from a
    /// fixed seed, in which most do, and each of them some of the time.
    function test_stepsDoSomething() public {
        for (uint256 i; i < 1_500; i++) {
            uint256 r = uint256(keccak256(abi.encode("step", i)));
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
        }
        invariant_all();
        string[16] memory names = [
            "create",
            "submit",
            "demand",
            "answer",
            "accept",
            "announce",
            "cancel",
            "close",
            "pass",
            "unstake",
            "withdraw",
            "prove",
            "finalize",
            "timeout",
            "expire",
            "settle"
        ];
        for (uint256 i; i < names.length; i++) {
            assertGt(handler.count(bytes32(bytes(names[i]))), 1, names[i]);
        }
        assertGt(handler.count("reclaim"), 1, "reclaim");
        handler.assertOfTheirOwn();
        afterInvariant();
    }
}
