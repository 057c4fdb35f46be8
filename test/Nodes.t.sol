// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Nodes} from "../contracts/Nodes.sol";
import {IModels} from "../contracts/interfaces/IModels.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {Fixture} from "./support/Fixture.sol";
import {FeeToken} from "./support/FeeToken.sol";
import {TinyModel} from "./support/TinyModel.sol";

contract NodesTest is Fixture {
    function nodeOf(address who) internal view returns (INodes.Node memory) {
        return nodes.node(who);
    }

    function lock(address who, uint128 amount) internal {
        vm.prank(address(market));
        nodes.lockBond(who, amount);
    }

    function release(address who, uint128 amount, bool served) internal {
        vm.prank(address(market));
        nodes.releaseBond(who, amount, served);
    }

    function take(address who, uint128 amount, uint128 taken, bool slash) internal {
        vm.prank(address(market));
        nodes.takeBond(who, amount, taken, slash);
    }

    // ---------------------------------------------------------------------------------------------------- offer

    function test_references() public view {
        assertEq(nodes.token(), address(token));
        assertEq(nodes.models(), address(models));
        assertEq(nodes.market(), address(market));
        assertEq(nodes.channels(), address(channels));
        assertEq(nodes.UNSTAKE_DELAY(), 10 minutes);
    }

    function test_configure() public {
        vm.expectEmit();
        emit INodes.NodeUpdated(nils, "https://nils.example", 3);
        vm.prank(nils);
        nodes.configure("https://nils.example", 3);
        assertEq(nodeOf(nils).endpoint, "https://nils.example");
        assertEq(nodeOf(nils).capacity, 3);
    }

    function test_setAsk() public {
        vm.expectEmit();
        emit INodes.AskSet(nils, modelId, 3, 5, 100);
        vm.prank(nils);
        nodes.setAsk(modelId, 3, 5, 100);
        INodes.Ask memory ask = nodes.ask(nils, modelId);
        assertEq(abi.encode(ask), abi.encode(3, 5, 100));
    }

    function test_setAsk_unknownModel() public {
        vm.expectRevert(abi.encodeWithSelector(IModels.UnknownModel.selector, bytes32("?")));
        nodes.setAsk("?", 1, 1, 1);
    }

    // ---------------------------------------------------------------------------------------------------- stake

    function test_deposit() public {
        vm.expectEmit();
        emit INodes.StakeDeposited(nils, 70);
        vm.prank(nils);
        nodes.deposit(70);
        assertEq(nodeOf(nils).stake, 70);
        assertEq(nodes.freeStake(nils), 70);
        assertEq(token.balanceOf(nils), FUNDS - 70);
    }

    function test_deposit_zero() public {
        vm.expectRevert(INodes.ZeroAmount.selector);
        nodes.deposit(0);
    }

    function test_deposit_feeOnTransfer() public {
        FeeToken cheat = new FeeToken();
        Nodes n = new Nodes(address(cheat), address(models), address(market), address(channels), 1);
        cheat.mint(nils, 100);
        vm.startPrank(nils);
        cheat.approve(address(n), 100);
        vm.expectRevert(abi.encodeWithSelector(INodes.TransferMismatch.selector, 99, 100));
        n.deposit(100);
    }

    function test_requestUnstake() public {
        vm.startPrank(nora);
        vm.expectEmit();
        emit INodes.UnstakeRequested(nora, 300 ether, uint64(block.timestamp + 10 minutes));
        nodes.requestUnstake(300 ether);
        assertEq(nodes.freeStake(nora), 700 ether);
        skip(5 minutes);
        nodes.requestUnstake(100 ether);
        assertEq(nodeOf(nora).unbonding, 400 ether);
        assertEq(nodeOf(nora).unbondingAt, block.timestamp + 10 minutes);
        assertEq(nodeOf(nora).stake, STAKE);
    }

    function test_requestUnstake_zero() public {
        vm.expectRevert(INodes.ZeroAmount.selector);
        nodes.requestUnstake(0);
    }

    function test_requestUnstake_locked() public {
        lock(nora, 900 ether);
        vm.startPrank(nora);
        nodes.requestUnstake(60 ether);
        vm.expectRevert(abi.encodeWithSelector(INodes.InsufficientFreeStake.selector, nora, 40 ether, 40 ether + 1));
        nodes.requestUnstake(40 ether + 1);
    }

    function test_withdrawStake() public {
        vm.startPrank(nora);
        nodes.requestUnstake(STAKE);
        uint64 at = nodeOf(nora).unbondingAt;
        vm.warp(at - 1);
        vm.expectRevert(abi.encodeWithSelector(INodes.StillUnbonding.selector, at - 1, at));
        nodes.withdrawStake();
        vm.warp(at);
        vm.expectEmit();
        emit INodes.StakeWithdrawn(nora, STAKE);
        nodes.withdrawStake();
        assertEq(token.balanceOf(nora), FUNDS);
        assertEq(nodeOf(nora).stake, 0);
        vm.expectRevert(abi.encodeWithSelector(INodes.NothingUnbonding.selector, nora));
        nodes.withdrawStake();
    }

    // --------------------------------------------------------------------------------------------------- market

    function test_onlyMarket() public {
        bytes memory error_ = abi.encodeWithSelector(INodes.NotMarket.selector, mallory, address(market));
        vm.startPrank(mallory);
        vm.expectRevert(error_);
        nodes.lockBond(nora, 1);
        vm.expectRevert(error_);
        nodes.releaseBond(nora, 1, true);
        vm.expectRevert(error_);
        nodes.takeBond(nora, 1, 1, true);
    }

    function test_lockBond() public {
        vm.expectEmit();
        emit INodes.BondLocked(nora, 10);
        lock(nora, 10);
        assertEq(nodeOf(nora).locked, 10);
        assertEq(nodeOf(nora).active, 1);
        assertEq(nodes.freeStake(nora), STAKE - 10);
    }

    function test_lockBond_freeStake() public {
        lock(nora, STAKE - 1);
        vm.expectRevert(abi.encodeWithSelector(INodes.InsufficientFreeStake.selector, nora, 1, 2));
        lock(nora, 2);
    }

    function test_lockBond_capacity() public {
        for (uint256 i; i < CAPACITY; i++) {
            lock(nora, 1);
        }
        vm.expectRevert(abi.encodeWithSelector(INodes.AtCapacity.selector, nora, CAPACITY, CAPACITY));
        lock(nora, 1);
    }

    function test_releaseBond() public {
        lock(nora, 10);
        lock(nora, 20);
        vm.expectEmit();
        emit INodes.BondReleased(nora, 20);
        release(nora, 20, true);
        release(nora, 10, false);
        INodes.Node memory n = nodeOf(nora);
        assertEq(abi.encode(n.stake, n.locked, n.active, n.served), abi.encode(STAKE, 0, 0, 1));
        vm.expectRevert(abi.encodeWithSelector(INodes.BondMismatch.selector, nora, 0, 1));
        release(nora, 1, true);
    }

    function test_takeBond() public {
        lock(nora, 10);
        lock(nora, 20);
        vm.expectEmit();
        emit INodes.BondReleased(nora, 7);
        vm.expectEmit();
        emit INodes.BondTaken(nora, 3, false);
        take(nora, 10, 3, false);
        take(nora, 20, 20, true);
        INodes.Node memory n = nodeOf(nora);
        assertEq(abi.encode(n.stake, n.locked, n.active), abi.encode(STAKE - 23, 0, 0));
        assertEq(abi.encode(n.served, n.timedOut, n.slashed), abi.encode(0, 1, 1));
        assertEq(token.balanceOf(address(market)), 23);
    }

    function test_takeBond_mismatch() public {
        lock(nora, 10);
        vm.expectRevert(abi.encodeWithSelector(INodes.BondMismatch.selector, nora, 10, 11));
        take(nora, 10, 11, true);
        vm.expectRevert(abi.encodeWithSelector(INodes.BondMismatch.selector, nora, 10, 11));
        take(nora, 11, 11, true);
    }

    // ------------------------------------------------------------------------------------------------- channels

    function pledge(uint128 amount) internal {
        vm.prank(address(channels));
        nodes.pledge(nora, amount);
    }

    function endPledge(uint128 amount, uint128 taken) internal {
        vm.prank(address(channels));
        nodes.endPledge(nora, amount, taken);
    }

    function test_onlyChannels() public {
        bytes memory error_ = abi.encodeWithSelector(INodes.NotChannels.selector, address(market), address(channels));
        vm.startPrank(address(market));
        vm.expectRevert(error_);
        nodes.pledge(nora, 1);
        vm.expectRevert(error_);
        nodes.endPledge(nora, 1, 0);
        vm.expectRevert(error_);
        nodes.convict(nora);
        vm.stopPrank();
        error_ = abi.encodeWithSelector(INodes.NotMarket.selector, address(channels), address(market));
        vm.prank(address(channels));
        vm.expectRevert(error_);
        nodes.lockBond(nora, 1);
    }

    function test_pledge() public {
        lock(nora, 100 ether);
        vm.expectEmit();
        emit INodes.Pledged(nora, 700 ether);
        pledge(700 ether);
        INodes.Node memory n = nodeOf(nora);
        assertEq(abi.encode(n.pledged, n.locked, n.active), abi.encode(700 ether, 100 ether, 1));
        assertEq(nodes.freeStake(nora), 200 ether);
        bytes memory error_ =
            abi.encodeWithSelector(INodes.InsufficientFreeStake.selector, nora, 200 ether, 200 ether + 1);
        vm.expectRevert(error_);
        pledge(200 ether + 1);
        vm.expectRevert(error_);
        lock(nora, 200 ether + 1);
        vm.expectRevert(error_);
        vm.prank(nora);
        nodes.requestUnstake(200 ether + 1);
    }

    function test_endPledge() public {
        pledge(10);
        pledge(20);
        vm.expectEmit();
        emit INodes.PledgeEnded(nora, 10, 0);
        endPledge(10, 0);
        vm.expectEmit();
        emit INodes.PledgeEnded(nora, 5, 15);
        endPledge(20, 15);
        INodes.Node memory n = nodeOf(nora);
        assertEq(abi.encode(n.pledged, n.stake, n.slashed), abi.encode(0, STAKE - 15, 1));
        assertEq(token.balanceOf(address(channels)), 15);
        vm.expectRevert(abi.encodeWithSelector(INodes.BondMismatch.selector, nora, 0, 1));
        endPledge(1, 0);
        pledge(1);
        vm.expectRevert(abi.encodeWithSelector(INodes.BondMismatch.selector, nora, 1, 2));
        endPledge(1, 2);
    }

    /// All but the market's bonds goes: free, pledged, unbonding.
    function test_convict() public {
        lock(nora, 100 ether);
        pledge(200 ether);
        vm.prank(nora);
        nodes.requestUnstake(300 ether);
        vm.expectEmit();
        emit INodes.Convicted(nora, 900 ether);
        vm.prank(address(channels));
        assertEq(nodes.convict(nora), 900 ether);
        INodes.Node memory n = nodeOf(nora);
        assertEq(
            abi.encode(n.stake, n.locked, n.pledged, n.unbonding, n.active), abi.encode(100 ether, 100 ether, 0, 0, 1)
        );
        assertTrue(nodes.isConvicted(nora));
        assertEq(token.balanceOf(address(channels)), 900 ether);
        assertEq(token.balanceOf(address(nodes)), 100 ether);
        // Once.
        vm.prank(address(channels));
        assertEq(nodes.convict(nora), 0);
        bytes memory error_ = abi.encodeWithSelector(INodes.NodeConvicted.selector, nora);
        vm.expectRevert(error_);
        pledge(0);
        vm.expectRevert(error_);
        endPledge(0, 0);
        vm.expectRevert(error_);
        lock(nora, 0);
        // The market ends its job, and what is left can be had.
        take(nora, 100 ether, 40 ether, true);
        vm.startPrank(nora);
        nodes.requestUnstake(60 ether);
        skip(10 minutes);
        nodes.withdrawStake();
        assertEq(nodeOf(nora).stake, 0);
    }

    // --------------------------------------------------------------------------------------------- session keys

    function test_sessionKey() public {
        uint40 until = uint40(block.timestamp + 100);
        assertFalse(nodes.actsFor(nora, walt));
        assertFalse(nodes.answersFor(nora, walt));
        assertTrue(nodes.actsFor(nora, nora));
        assertTrue(nodes.answersFor(nora, nora));
        vm.expectEmit();
        emit INodes.SessionKeySet(nora, walt, until);
        vm.prank(nora);
        nodes.setSessionKey(walt, until);
        assertEq(nodes.sessionKey(nora, walt), until);
        assertFalse(nodes.answersFor(nils, walt));
        vm.warp(until);
        assertTrue(nodes.actsFor(nora, walt));
        skip(1);
        assertFalse(nodes.actsFor(nora, walt));
        assertTrue(nodes.answersFor(nora, walt));
        vm.expectRevert(abi.encodeWithSelector(INodes.NoSessionKey.selector, nora, walt));
        vm.prank(nora);
        nodes.revokeSessionKey(walt);
    }

    function test_revokeSessionKey() public {
        vm.startPrank(nora);
        nodes.setSessionKey(walt, uint40(block.timestamp + 100));
        vm.expectEmit();
        emit INodes.SessionKeyRevoked(nora, walt);
        nodes.revokeSessionKey(walt);
        assertFalse(nodes.actsFor(nora, walt));
        assertTrue(nodes.answersFor(nora, walt));
        vm.expectRevert(abi.encodeWithSelector(INodes.NoSessionKey.selector, nora, walt));
        nodes.revokeSessionKey(walt);
        nodes.setSessionKey(walt, uint40(block.timestamp));
        assertTrue(nodes.actsFor(nora, walt));
    }

    function test_setSessionKey_bad() public {
        uint40 past = uint40(block.timestamp - 1);
        vm.expectRevert(abi.encodeWithSelector(INodes.BadSessionKey.selector, walt, block.timestamp, past));
        nodes.setSessionKey(walt, past);
        vm.expectRevert(
            abi.encodeWithSelector(INodes.BadSessionKey.selector, address(0), block.timestamp, block.timestamp)
        );
        nodes.setSessionKey(address(0), uint40(block.timestamp));
    }

    // ----------------------------------------------------------------------------------------------------- fuzz

    function testFuzz_stake(uint256[16] memory choices, uint128[16] memory amounts) public {
        uint128[] memory bonds = new uint128[](16);
        uint256 n;
        vm.prank(nora);
        nodes.configure("", 16);
        for (uint256 i; i < 16; i++) {
            uint256 choice = choices[i] % 8;
            uint256 free = nodes.freeStake(nora);
            if (choice == 0 && free > 0) {
                bonds[n++] = uint128(bound(amounts[i], 1, free));
                lock(nora, bonds[n - 1]);
            } else if (choice == 1 && n > 0) {
                release(nora, bonds[--n], true);
            } else if (choice == 2 && n > 0) {
                take(nora, bonds[n - 1], uint128(bound(amounts[i], 0, bonds[n - 1])), true);
                n--;
            } else if (choice == 3 && free > 0) {
                vm.prank(nora);
                nodes.requestUnstake(uint128(bound(amounts[i], 1, free)));
            } else if (choice == 4 && nodeOf(nora).unbonding > 0) {
                skip(10 minutes);
                vm.prank(nora);
                nodes.withdrawStake();
            } else if (choice == 5 && free > 0) {
                pledge(uint128(bound(amounts[i], 1, free)));
            } else if (choice == 6 && nodeOf(nora).pledged > 0) {
                uint128 amount = uint128(bound(amounts[i], 1, nodeOf(nora).pledged));
                endPledge(amount, amount / 2);
            } else {
                vm.prank(nora);
                nodes.deposit(uint128(bound(amounts[i], 1, 1 ether)));
            }
            INodes.Node memory s = nodeOf(nora);
            assertGe(s.stake, uint256(s.locked) + s.pledged + s.unbonding);
            assertEq(s.active, n);
            assertEq(token.balanceOf(address(nodes)), s.stake);
        }
    }
}
