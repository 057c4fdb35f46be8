// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChallenges, OpeningId, Target} from "../contracts/interfaces/IChallenges.sol";
import {JobId} from "../contracts/interfaces/IMarket.sol";
import {Claim, Witness} from "../contracts/interfaces/IStepVerifier.sol";
import {Fixture} from "./support/Fixture.sol";
import {TinyModel} from "./support/TinyModel.sol";
import {TinyTrace} from "./support/TinyTrace.sol";

/// @notice What each call costs as a transaction of its own, calldata included, kept in test/gas/. `forge test` rewrites the
/// files, `FORGE_SNAPSHOT_CHECK=true forge test --match-contract Gas` compares. The proof of each opcode at full size is
/// measured with the Rust tests, which can make real traces.
/// forge-config: default.isolate = true
contract GasTest is Fixture {
    Claim internal lie = Claim(2, 4, 2, 290);
    TinyTrace internal trace;
    JobId internal id;

    function setUp() public override {
        super.setUp();
        trace = new TinyTrace(3, 3, true, lie);
        // Not the first of anything: what is measured is the everyday case.
        id = submitted(trace);
        vm.warp(windowEnd(id) + 1);
        market.finalize(id);
    }

    function snap(string memory name) internal {
        vm.snapshotGasLastCall("calls", name);
    }

    /// EIP-170 allows 24,576 bytes.
    function test_sizes() public {
        string[8] memory names =
            ["Models", "Nodes", "Market", "Channels", "Trials", "Challenges", "StepVerifier", "HeadVerifier"];
        for (uint256 i; i < names.length; i++) {
            bytes memory code = vm.getDeployedCode(string.concat(names[i], ".sol"));
            assertLe(code.length, 24_576, names[i]);
            vm.snapshotValue("sizes", names[i], code.length);
        }
    }

    function test_gas_register() public {
        bytes memory manifest = TinyModel.manifest();
        manifest[200] ^= 0x01; // another tokenizer
        bytes memory program = TinyModel.program();
        models.register(manifest, program, "");
        snap("register, 6 operators");
    }

    function test_gas_job() public {
        bytes memory prompt = tokens(100);
        vm.prank(uma);
        id = market.createJob(modelId, nora, prompt, 28, type(uint128).max, 0, 0);
        snap("createJob, 100 tokens, named node");
        bytes32 root = trace.layersRoot();
        bytes memory output = tokens(28);
        bytes32 order = market.orderHash(id);
        vm.roll(block.number + 1);
        vm.prank(nora);
        market.submitResult(id, order, output, root);
        snap("submitResult, 28 tokens");
        vm.warp(windowEnd(id) + 1);
        market.finalize(id);
        snap("finalize");
        vm.prank(nora);
        market.withdraw();
        snap("withdraw");
    }

    function test_gas_sampled() public {
        vm.mockCall(address(models), abi.encodeCall(models.samples, (modelId)), abi.encode(true));
        bytes memory prompt = tokens(100);
        vm.prank(uma);
        market.createJob(modelId, nora, prompt, 28, type(uint128).max, 5120, "mine");
        snap("createJob, 100 tokens, named node, sampled");
    }

    function test_gas_open() public {
        bytes memory prompt = tokens(100);
        vm.prank(uma);
        id = market.createJob(modelId, address(0), prompt, 28, 100 ether, 0, 0);
        snap("createJob, 100 tokens, open");
        skip(mp.auctionTime);
        vm.prank(nora);
        market.acceptJob(id, PER_INPUT, PER_OUTPUT);
        snap("acceptJob");
    }

    function measure(OpeningId parent, Target memory t, string memory name) internal returns (OpeningId o) {
        o = demand(id, parent, t, trace);
        snap(string.concat("demand ", name));
        answer(id, t, trace);
        snap(string.concat("answer ", name));
    }

    function test_gas_challenge() public {
        id = submitted(trace);
        OpeningId o = measure(NONE, layersTarget(2, 0), "layers, 4");
        o = measure(o, positionsTarget(2, 3, 0), "positions, 8");
        o = measure(o, opListTarget(2, 4), "operator list, 3");
        o = measure(o, pagesTarget(2, 4, 1, 3, 0), "pages, 8");
        measure(o, pageTarget(2, 4, 1, 3), "page, 1024 bytes");

        bytes32 salt = keccak256("salt");
        bytes32 commitment = challenges.commitmentOf(id, lie, walt, salt);
        vm.prank(walt);
        challenges.announce(id, commitment);
        snap("announce");
        vm.roll(block.number + 1);
        Witness memory w = trace.witness(lie);
        vm.prank(walt);
        challenges.proveFraud(id, lie, salt, w);
        snap("proveFraud, ADD");
        skip(cp.challengerTurn + 1);
        challenges.settleReward(id);
        snap("settleReward");
        vm.prank(walt);
        challenges.reclaimFees(id);
        snap("reclaimFees");
    }

    /// A tree of 64 nodes and more: the largest answer of hashes there is.
    function test_gas_sixLevels() public {
        trace = honestTrace(64, 3);
        id = submitted(trace);
        measure(NONE, positionsTarget(1, 7, 0), "positions, 64");
    }

    function test_gas_timeout() public {
        id = submitted(trace);
        Target memory t = layersTarget(2, 0);
        OpeningId o = demand(id, t, trace);
        vm.warp(challenges.opening(o).turnEnd + 1);
        challenges.timeout(id, t);
        snap("timeout");
    }
}
