// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {IChallenges} from "../contracts/interfaces/IChallenges.sol";
import {IChannels} from "../contracts/interfaces/IChannels.sol";
import {IMarket} from "../contracts/interfaces/IMarket.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {ITrials} from "../contracts/interfaces/ITrials.sol";
import {Deploy} from "../script/Deploy.s.sol";

contract DeployTest is Test {
    Deploy internal script = new Deploy();

    function deploy(Deploy.Config memory c) internal returns (Deploy.Deployment memory) {
        return script.deploy(c, address(script));
    }

    function test_deploy_presets() public {
        string[2] memory names = ["devnet", "l2"];
        for (uint256 i; i < 2; i++) {
            Deploy.Config memory c = script.preset(names[i]);
            Deploy.Deployment memory d = deploy(c);
            IMarket m = IMarket(d.market);
            assertEq(m.token(), d.token);
            assertEq(m.models(), d.models);
            assertEq(m.nodes(), d.nodes);
            assertEq(m.challenges(), d.challenges);
            assertEq(INodes(d.nodes).market(), d.market);
            assertEq(INodes(d.nodes).UNSTAKE_DELAY(), c.unstakeDelay);
            assertEq(IChallenges(d.challenges).stepVerifier(), d.stepVerifier);
            IChannels r = IChannels(d.channels);
            assertEq(INodes(d.nodes).channels(), d.channels);
            assertEq(r.token(), d.token);
            assertEq(r.nodes(), d.nodes);
            assertEq(r.trials(), d.trials);
            assertEq(r.permit2(), address(0));
            assertEq(abi.encode(r.params()), abi.encode(c.channels));
            assertEq(ITrials(d.trials).channels(), d.channels);
            assertEq(IChallenges(d.challenges).trials(), d.trials);
            assertEq(abi.encode(m.params()), abi.encode(c.market));
            assertEq(abi.encode(IChallenges(d.challenges).params()), abi.encode(c.challenges));
        }
    }

    function test_preset_unknown() public {
        vm.expectRevert(abi.encodeWithSelector(Deploy.UnknownPreset.selector, "mainnet"));
        script.preset("mainnet");
    }

    function test_deploy_token() public {
        Deploy.Config memory c = script.preset("devnet");
        vm.chainId(8453);
        vm.expectRevert(abi.encodeWithSelector(Deploy.TokenNeeded.selector, 8453));
        deploy(c);
        c.token = makeAddr("a dollar");
        // Nodes answers from its own record which token it holds; no call to the token itself is made.
        assertEq(IMarket(deploy(c).market).token(), c.token);
    }

    function test_deploy_elsewhere() public {
        Deploy.Config memory c = script.preset("devnet");
        vm.expectPartialRevert(Deploy.AddressMismatch.selector);
        script.deploy(c, makeAddr("another account"));
    }

    /// One test for all that reads the environment, which tests share.
    function test_config() public {
        Deploy.Config memory c = script.config();
        assertEq(abi.encode(c), abi.encode(script.preset("devnet")));

        vm.setEnv("SWORN_PRESET", "l2");
        vm.setEnv("SWORN_TOKEN", "0x00000000000000000000000000000000000000aa");
        vm.setEnv("SWORN_ACCEPT_TIMEOUT", "1");
        vm.setEnv("SWORN_AUCTION_TIME", "0");
        vm.setEnv("SWORN_SUBMIT_TIMEOUT", "2");
        vm.setEnv("SWORN_CHALLENGE_WINDOW", "3");
        vm.setEnv("SWORN_MIN_BOND", "4000000000000000000");
        vm.setEnv("SWORN_BOND_FACTOR_BPS", "5");
        vm.setEnv("SWORN_LATE_PENALTY_BPS", "6");
        vm.setEnv("SWORN_USER_SHARE_BPS", "7");
        vm.setEnv("SWORN_CHALLENGER_SHARE_BPS", "8");
        vm.setEnv("SWORN_NODE_TURN", "9000000");
        vm.setEnv("SWORN_CHALLENGER_TURN", "10");
        vm.setEnv("SWORN_DEMAND_FEE", "11");
        vm.setEnv("SWORN_CHANNEL_WINDOW", "13");
        vm.setEnv("SWORN_CLOSE_DELAY", "14");
        vm.setEnv("SWORN_RECEIPT_TURN", "15");
        vm.setEnv("SWORN_LODGE_TURN", "16");
        vm.setEnv("SWORN_RECEIPT_FEE", "17");
        vm.setEnv("SWORN_BATCH_MIN_BOND", "4000000000000000000");
        vm.setEnv("SWORN_BATCH_BOND_FACTOR_BPS", "18");
        vm.setEnv("SWORN_PERMIT2", "0x00000000000000000000000000000000000000bb");
        c = script.config();
        assertEq(c.token, address(0xaa));
        assertEq(abi.encode(c.market), abi.encode(1, 0, 2, 3, 4 ether, 5, 6, 7, 8));
        assertEq(abi.encode(c.challenges), abi.encode(9_000_000, 10, 11));
        assertEq(abi.encode(c.channels), abi.encode(13, 14, 15, 16, 17, 4 ether, 18, 7, 8));
        assertEq(c.permit2, address(0xbb));
        assertEq(c.unstakeDelay, 13 + 15 + 16 + 16 + 9 * 9_000_010 + 1);
        deploy(c);
        vm.setEnv("SWORN_CHALLENGE_WINDOW", "90000000");
        c = script.config();
        assertEq(c.unstakeDelay, 2 + 90_000_000 + 8 * 9_000_010 + 1);
        deploy(c);

        vm.setEnv("SWORN_UNSTAKE_DELAY", "12");
        assertEq(script.config().unstakeDelay, 12);
        vm.setEnv("SWORN_USER_SHARE_BPS", "65536");
        vm.expectRevert(abi.encodeWithSelector(Deploy.ParameterTooLarge.selector, "SWORN_USER_SHARE_BPS", 65536, 65535));
        script.config();

        string[23] memory set = [
            "SWORN_PRESET",
            "SWORN_TOKEN",
            "SWORN_ACCEPT_TIMEOUT",
            "SWORN_AUCTION_TIME",
            "SWORN_SUBMIT_TIMEOUT",
            "SWORN_CHALLENGE_WINDOW",
            "SWORN_MIN_BOND",
            "SWORN_BOND_FACTOR_BPS",
            "SWORN_LATE_PENALTY_BPS",
            "SWORN_USER_SHARE_BPS",
            "SWORN_CHALLENGER_SHARE_BPS",
            "SWORN_NODE_TURN",
            "SWORN_CHALLENGER_TURN",
            "SWORN_DEMAND_FEE",
            "SWORN_CHANNEL_WINDOW",
            "SWORN_CLOSE_DELAY",
            "SWORN_RECEIPT_TURN",
            "SWORN_LODGE_TURN",
            "SWORN_RECEIPT_FEE",
            "SWORN_BATCH_MIN_BOND",
            "SWORN_BATCH_BOND_FACTOR_BPS",
            "SWORN_PERMIT2",
            "SWORN_UNSTAKE_DELAY"
        ];
        for (uint256 i; i < set.length; i++) {
            vm.setEnv(set[i], "");
        }
    }

    function test_write() public {
        Deploy.Deployment memory d = deploy(script.preset("devnet"));
        vm.roll(77);
        string memory path = string.concat(vm.projectRoot(), "/cache/deployment-test.json");
        script.write(d, path);
        string memory json = vm.readFile(path);
        assertEq(vm.parseJsonUint(json, ".chainId"), 31337);
        assertEq(vm.parseJsonUint(json, ".block"), 77);
        assertEq(vm.parseJsonAddress(json, ".token"), d.token);
        assertEq(vm.parseJsonAddress(json, ".models"), d.models);
        assertEq(vm.parseJsonAddress(json, ".nodes"), d.nodes);
        assertEq(vm.parseJsonAddress(json, ".market"), d.market);
        assertEq(vm.parseJsonAddress(json, ".channels"), d.channels);
        assertEq(vm.parseJsonAddress(json, ".trials"), d.trials);
        assertEq(vm.parseJsonAddress(json, ".challenges"), d.challenges);
        assertEq(vm.parseJsonAddress(json, ".stepVerifier"), d.stepVerifier);
        vm.removeFile(path);
    }
}
