// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ChannelState, IChannels, Place, Redemption} from "../contracts/interfaces/IChannels.sol";
import {Exchange} from "./support/Exchange.sol";

contract ChannelsOpenTest is Exchange {
    function expectState(ChannelState actual, ChannelState expected) internal {
        vm.expectRevert(abi.encodeWithSelector(IChannels.WrongChannelState.selector, id, actual, expected));
    }

    // ----------------------------------------------------------------------------------------------------- open

    function test_open() public {
        vm.startPrank(walt);
        channels.deposit(5 ether);
        bytes32 expected = keccak256(abi.encode(walt, nora, bytes32("s")));
        vm.expectEmit();
        emit IChannels.ChannelOpened(expected, walt, nora, walt, 3 ether);
        bytes32 opened = channels.open(nora, address(0), 3 ether, "s");
        assertEq(opened, expected);
        IChannels.Channel memory c = channels.channel(opened);
        assertEq(
            abi.encode(c),
            abi.encode(walt, nora, 0, walt, 0, ChannelState.Open, uint128(3 ether), uint128(0)),
            "channel"
        );
        assertEq(channels.balanceOf(walt), 2 ether);
        assertEq(channels.totalCommitted(), DEPOSIT + 3 ether);
        assertConserved();
    }

    function test_open_signer() public view {
        assertEq(channels.channel(id).signer, gateway);
    }

    /// An id is never used again, or two runs of receipts could clash.
    function test_open_twice() public {
        vm.startPrank(uma);
        channels.deposit(1);
        vm.expectRevert(abi.encodeWithSelector(IChannels.ChannelExists.selector, id));
        channels.open(nora, gateway, 1, SALT);
        vm.stopPrank();
        vm.prank(nora);
        channels.closeByNode(id);
        vm.prank(uma);
        vm.expectRevert(abi.encodeWithSelector(IChannels.ChannelExists.selector, id));
        channels.open(nora, gateway, 1, SALT);
    }

    function test_open_balance() public {
        vm.prank(uma);
        vm.expectRevert(abi.encodeWithSelector(IChannels.InsufficientBalance.selector, uma, 0, 1));
        channels.open(nora, gateway, 1, "other");
    }

    // ---------------------------------------------------------------------------------------------------- topUp

    function test_topUp() public {
        vm.startPrank(uma);
        channels.deposit(3 ether);
        vm.expectEmit();
        emit IChannels.ChannelToppedUp(id, 2 ether);
        channels.topUp(id, 2 ether);
        assertEq(channels.channel(id).deposit, DEPOSIT + 2 ether);
        assertEq(channels.balanceOf(uma), 1 ether);
        assertConserved();
        vm.expectRevert(IChannels.ZeroAmount.selector);
        channels.topUp(id, 0);
        vm.expectRevert(abi.encodeWithSelector(IChannels.InsufficientBalance.selector, uma, 1 ether, 2 ether));
        channels.topUp(id, 2 ether);
        channels.requestClose(id);
        expectState(ChannelState.Closing, ChannelState.Open);
        channels.topUp(id, 1);
    }

    function test_topUp_notUser() public {
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotUser.selector, id, walt, uma));
        vm.prank(walt);
        channels.topUp(id, 1);
    }

    // ---------------------------------------------------------------------------------------------------- close

    function test_close() public {
        uint40 at = uint40(block.timestamp) + rp.closeDelay;
        vm.expectEmit();
        emit IChannels.ChannelClosing(id, at);
        vm.prank(uma);
        channels.requestClose(id);
        vm.warp(at);
        vm.expectRevert(abi.encodeWithSelector(IChannels.TooEarly.selector, at, at));
        channels.close(id);
        vm.warp(at + 1);
        vm.expectEmit();
        emit IChannels.ChannelClosed(id, DEPOSIT);
        vm.prank(mallory);
        channels.close(id);
        assertChannel(id, ChannelState.Closed);
        assertEq(channels.balanceOf(uma), DEPOSIT);
        assertEq(channels.totalCommitted(), 0);
        assertConserved();
        expectState(ChannelState.Closed, ChannelState.Closing);
        channels.close(id);
    }

    function test_close_states() public {
        expectState(ChannelState.Open, ChannelState.Closing);
        channels.close(id);
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotUser.selector, id, mallory, uma));
        vm.prank(mallory);
        channels.requestClose(id);
        vm.startPrank(uma);
        channels.requestClose(id);
        expectState(ChannelState.Closing, ChannelState.Open);
        channels.requestClose(id);
    }

    /// The node redeems in the very last second before the user closes; what it claims stays claimed.
    function test_close_race() public {
        vm.prank(uma);
        channels.requestClose(id);
        vm.warp(channels.channel(id).closeAt);
        Place memory place = redeemed(10);
        skip(1);
        channels.close(id);
        assertEq(channels.balanceOf(uma), DEPOSIT - 10 * PRICE);
        assertEq(channels.totalCommitted(), 10 * PRICE);
        vm.warp(batchOf(place).windowEnd + 1);
        channels.release(place.batchId);
        assertEq(channels.balanceOf(nora), 10 * PRICE);
        assertConserved();
    }

    function test_close_tooLateToRedeem() public {
        Redemption memory r = redemption(id, 10);
        vm.prank(uma);
        channels.requestClose(id);
        vm.warp(channels.channel(id).closeAt + 1);
        channels.close(id);
        vm.prank(nora);
        expectState(ChannelState.Closed, ChannelState.Open);
        channels.redeem(one(r));
    }

    // ---------------------------------------------------------------------------------------------- closeByNode

    function test_closeByNode() public {
        Place memory place = redeemed(10);
        vm.expectRevert(abi.encodeWithSelector(IChannels.NotNode.selector, session, nora));
        vm.prank(session);
        channels.closeByNode(id);
        vm.prank(nora);
        channels.closeByNode(id);
        assertEq(channels.balanceOf(uma), DEPOSIT - 10 * PRICE);
        vm.warp(batchOf(place).windowEnd + 1);
        channels.release(place.batchId);
        assertEq(channels.balanceOf(nora), 10 * PRICE);
        assertConserved();
        expectState(ChannelState.Closed, ChannelState.Open);
        vm.prank(nora);
        channels.closeByNode(id);
    }

    function test_closeByNode_closing() public {
        vm.prank(uma);
        channels.requestClose(id);
        vm.prank(nora);
        channels.closeByNode(id);
        assertChannel(id, ChannelState.Closed);
    }
}
