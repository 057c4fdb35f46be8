// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Channels} from "../contracts/Channels.sol";
import {Market} from "../contracts/Market.sol";
import {Nodes} from "../contracts/Nodes.sol";
import {IChannels} from "../contracts/interfaces/IChannels.sol";
import {IMarket, JobId} from "../contracts/interfaces/IMarket.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {Deploy} from "../script/Deploy.s.sol";
import {Fixture} from "./support/Fixture.sol";
import {HookToken} from "./support/HookToken.sol";
import {TinyModel} from "./support/TinyModel.sol";

contract ReentrancyTest is Fixture {
    HookToken internal hook;

    function setUp() public override {
        super.setUp();
        hook = new HookToken();
        Deploy script = new Deploy();
        Deploy.Config memory c = script.preset("devnet");
        c.token = address(hook);
        Deploy.Deployment memory d = script.deploy(c, address(script));
        (market, nodes, channels) = (Market(d.market), Nodes(d.nodes), Channels(d.channels));
        (bool ok,) = d.models
            .call(
                abi.encodeWithSignature("register(bytes,bytes,string)", TinyModel.manifest(), TinyModel.program(), "")
            );
        assertTrue(ok);
        hook.mint(uma, 1_000 ether);
        hook.mint(nora, 1_000 ether);
        vm.prank(uma);
        hook.approve(address(market), type(uint256).max);
        vm.prank(uma);
        hook.approve(address(channels), type(uint256).max);
        vm.prank(nora);
        hook.approve(address(nodes), type(uint256).max);
    }

    function arm(address target, bytes memory data) internal {
        hook.arm(target, data);
    }

    /// The call in the middle was made and refused by the guard.
    function assertRefused() internal view {
        assertEq(hook.target(), address(0), "no call was made");
        assertFalse(hook.called(), "the call went through");
        assertEq(bytes4(hook.result()), ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
    }

    function open() internal returns (JobId id) {
        vm.prank(uma);
        id = market.createJob(modelId, address(0), tokens(1), 1, 10 ether, 0, 0);
    }

    function test_createJob() public {
        bytes[4] memory calls = [
            abi.encodeCall(IMarket.createJob, (modelId, address(0), tokens(1), 1, 0, 0, 0)),
            abi.encodeCall(IMarket.withdraw, ()),
            abi.encodeCall(IMarket.expire, (JobId.wrap(1))),
            abi.encodeCall(IMarket.finalize, (JobId.wrap(1)))
        ];
        for (uint256 i; i < calls.length; i++) {
            arm(address(market), calls[i]);
            open();
            assertRefused();
            assertEq(market.nextJobId(), i + 2);
        }
    }

    function test_withdraw() public {
        JobId id = open();
        vm.prank(uma);
        market.cancelJob(id);
        arm(address(market), abi.encodeCall(IMarket.withdraw, ()));
        vm.prank(uma);
        assertEq(market.withdraw(), 10 ether);
        assertRefused();
        assertEq(hook.balanceOf(uma), 1_000 ether);
        assertEq(hook.balanceOf(address(market)), 0);
    }

    function test_nodes() public {
        arm(address(nodes), abi.encodeCall(INodes.withdrawStake, ()));
        vm.prank(nora);
        nodes.deposit(100 ether);
        assertRefused();
        vm.startPrank(nora);
        nodes.requestUnstake(100 ether);
        skip(10 minutes);
        arm(address(nodes), abi.encodeCall(INodes.deposit, (1)));
        nodes.withdrawStake();
        assertRefused();
        assertEq(hook.balanceOf(nora), 1_000 ether);
    }

    function test_channels() public {
        bytes[5] memory calls = [
            abi.encodeCall(IChannels.deposit, (1)),
            abi.encodeCall(IChannels.withdraw, ()),
            abi.encodeCall(IChannels.open, (nora, address(0), 0, "again")),
            abi.encodeCall(IChannels.release, (1)),
            abi.encodeCall(IChannels.receiptTimeout, (1, 0, 1))
        ];
        for (uint256 i; i < calls.length; i++) {
            arm(address(channels), calls[i]);
            vm.prank(uma);
            channels.deposit(10 ether);
            assertRefused();
        }
        arm(address(channels), abi.encodeCall(IChannels.withdraw, ()));
        vm.prank(uma);
        assertEq(channels.withdraw(), 50 ether);
        assertRefused();
        assertEq(hook.balanceOf(uma), 1_000 ether);
        assertEq(hook.balanceOf(address(channels)), 0);
    }
}
