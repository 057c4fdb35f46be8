// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {Challenges} from "../../contracts/Challenges.sol";
import {Channels} from "../../contracts/Channels.sol";
import {Market} from "../../contracts/Market.sol";
import {Models} from "../../contracts/Models.sol";
import {Nodes} from "../../contracts/Nodes.sol";
import {Trials} from "../../contracts/Trials.sol";
import {DevToken} from "../../contracts/dev/DevToken.sol";
import {IChallenges, OpeningId, Target, TargetKind} from "../../contracts/interfaces/IChallenges.sol";
import {IChannels} from "../../contracts/interfaces/IChannels.sol";
import {IMarket, JobId, JobState} from "../../contracts/interfaces/IMarket.sol";
import {INodes} from "../../contracts/interfaces/INodes.sol";
import {Claim} from "../../contracts/interfaces/IStepVerifier.sol";
import {Deploy} from "../../script/Deploy.s.sol";
import {TinyModel} from "./TinyModel.sol";
import {TinyTrace} from "./TinyTrace.sol";

/// @notice A deployment with the tiny model, a node that serves it, and the people of the tests.
abstract contract Fixture is Test {
    uint128 internal constant FUNDS = 1_000_000 ether;
    uint128 internal constant STAKE = 1_000 ether;
    uint128 internal constant PER_INPUT = 0.1 ether;
    uint128 internal constant PER_OUTPUT = 1 ether;
    uint32 internal constant CAPACITY = 4;
    address internal constant DEAD = 0x000000000000000000000000000000000000dEaD;

    /// buys answers
    address internal uma = makeAddr("uma, a user");
    /// serves the tiny model
    address internal nora = makeAddr("nora, a node");
    /// serves nothing yet
    address internal nils = makeAddr("nils, another node");
    /// looks for lies
    address internal walt = makeAddr("walt, a watcher");
    /// looks for lies, too
    address internal wanda = makeAddr("wanda, another watcher");
    /// wants what is not hers
    address internal mallory = makeAddr("mallory");

    DevToken internal token;
    Models internal models;
    Nodes internal nodes;
    Market internal market;
    Channels internal channels;
    Trials internal trials;
    Challenges internal challenges;
    address internal stepVerifier;
    bytes32 internal modelId;

    IMarket.Params internal mp;
    IChallenges.Params internal cp;
    IChannels.Params internal rp;

    function setUp() public virtual {
        vm.warp(1_700_000_000);
        vm.roll(1_000);
        Deploy script = new Deploy();
        deploy(script, script.preset("devnet"));
    }

    /// @notice everything anew, with these parameters
    function deploy(Deploy script, Deploy.Config memory c) internal {
        Deploy.Deployment memory d = script.deploy(c, address(script));
        token = DevToken(d.token);
        models = Models(d.models);
        nodes = Nodes(d.nodes);
        market = Market(d.market);
        channels = Channels(d.channels);
        trials = Trials(d.trials);
        challenges = Challenges(d.challenges);
        stepVerifier = d.stepVerifier;
        mp = c.market;
        cp = c.challenges;
        rp = c.channels;

        address[6] memory people = [uma, nora, nils, walt, wanda, mallory];
        for (uint256 i; i < people.length; i++) {
            token.mint(people[i], FUNDS);
            vm.startPrank(people[i]);
            token.approve(address(market), type(uint256).max);
            token.approve(address(nodes), type(uint256).max);
            token.approve(address(channels), type(uint256).max);
            vm.stopPrank();
        }
        modelId = models.register(TinyModel.manifest(), TinyModel.program(), "ipfs://tiny");
        serve(nora);
    }

    // ---------------------------------------------------------------------------------------------------- steps

    function serve(address who) internal {
        vm.startPrank(who);
        nodes.configure("https://node.example", CAPACITY);
        nodes.deposit(STAKE);
        nodes.setAsk(modelId, PER_INPUT, PER_OUTPUT, TinyModel.MAX_POSITIONS);
        vm.stopPrank();
    }

    /// @notice n tokens, none of them the stop token
    function tokens(uint256 n) internal pure returns (bytes memory data) {
        for (uint256 i; i < n; i++) {
            data = bytes.concat(data, bytes4(uint32(100 + i)));
        }
    }

    /// @notice a job that names nora
    function buy(uint32 nIn, uint32 maxNew) internal returns (JobId) {
        vm.prank(uma);
        return market.createJob(modelId, nora, tokens(nIn), maxNew, type(uint128).max, 0, 0);
    }

    function submit(JobId jobId, uint32 nOut, bytes32 layersRoot) internal {
        bytes32 order = market.orderHash(jobId);
        vm.prank(nora);
        market.submitResult(jobId, order, tokens(nOut), layersRoot);
    }

    function submitted(TinyTrace trace) internal returns (JobId jobId) {
        jobId = buy(trace.nIn(), trace.nOut());
        submit(jobId, trace.nOut(), trace.layersRoot());
    }

    function honestTrace(uint32 nIn, uint32 nOut) internal returns (TinyTrace) {
        return new TinyTrace(nIn, nOut, false, Claim(0, 0, 0, 0));
    }

    function demand(JobId jobId, OpeningId parent, Target memory t, TinyTrace trace) internal returns (OpeningId) {
        IChallenges.DemandProof memory proof = trace.proof(t);
        vm.prank(walt);
        return challenges.demand(jobId, parent, t, proof);
    }

    function demand(JobId jobId, Target memory t, TinyTrace trace) internal returns (OpeningId) {
        return demand(jobId, NONE, t, trace);
    }

    function answer(JobId jobId, Target memory t, TinyTrace trace) internal {
        answer(jobId, t, trace, trace.answer(t));
    }

    function answer(JobId jobId, Target memory t, TinyTrace trace, bytes memory data) internal {
        (bytes32 hash, uint32 leafCount, uint32 byteLength) =
            (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        vm.prank(nora);
        challenges.answer(jobId, t, hash, leafCount, byteLength, data);
    }

    function open(JobId jobId, Target memory t, TinyTrace trace) internal returns (OpeningId id) {
        id = demand(jobId, NONE, t, trace);
        answer(jobId, t, trace);
    }

    // -------------------------------------------------------------------------------------------------- targets

    OpeningId internal constant NONE = OpeningId.wrap(0);

    function layersTarget(uint8 level, uint32 index) internal pure returns (Target memory) {
        return Target(TargetKind.Layers, 0, 0, 0, level, index);
    }

    function positionsTarget(uint16 layer, uint8 level, uint32 index) internal pure returns (Target memory) {
        return Target(TargetKind.Positions, layer, 0, 0, level, index);
    }

    function opListTarget(uint16 layer, uint32 row) internal pure returns (Target memory) {
        return Target(TargetKind.OpList, layer, row, 0, 0, 0);
    }

    function pagesTarget(uint16 layer, uint32 row, uint16 op, uint8 level, uint32 index)
        internal
        pure
        returns (Target memory)
    {
        return Target(TargetKind.Pages, layer, row, op, level, index);
    }

    function pageTarget(uint16 layer, uint32 row, uint16 op, uint32 index) internal pure returns (Target memory) {
        return Target(TargetKind.Page, layer, row, op, 0, index);
    }

    // --------------------------------------------------------------------------------------------------- checks

    function stateOf(JobId jobId) internal view returns (JobState) {
        return market.job(jobId).state;
    }

    function assertState(JobId jobId, JobState expected) internal view {
        assertEq(uint8(stateOf(jobId)), uint8(expected), "state");
    }

    function windowEnd(JobId jobId) internal view returns (uint40) {
        return market.job(jobId).deadline;
    }

    /// @notice I4: what market and channels owe is what they have
    function assertConserved() internal view {
        uint256 owed = market.totalEscrow() + market.totalWithdrawable() + market.totalFees() + market.totalRewards();
        assertEq(token.balanceOf(address(market)), owed, "market's tokens");
        owed = channels.totalBalances() + channels.totalCommitted() + channels.totalFees() + channels.totalRewards();
        assertEq(token.balanceOf(address(channels)), owed, "channels' tokens");
    }
}
