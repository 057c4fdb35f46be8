// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Market} from "../contracts/Market.sol";
import {IMarket, JobId, JobState} from "../contracts/interfaces/IMarket.sol";
import {IModels} from "../contracts/interfaces/IModels.sol";
import {INodes} from "../contracts/interfaces/INodes.sol";
import {FalseToken} from "./support/FalseToken.sol";
import {FeeToken} from "./support/FeeToken.sol";
import {Fixture} from "./support/Fixture.sol";
import {NaiveTree} from "./support/NaiveTree.sol";

contract MarketBuyTest is Fixture {
    /// 3 in, 4 out
    uint128 internal constant PRICE = 3 * PER_INPUT + 4 * PER_OUTPUT;

    function create(address node, bytes memory prompt, uint32 maxNew, uint128 maxPrice) internal returns (JobId) {
        vm.prank(uma);
        return market.createJob(modelId, node, prompt, maxNew, maxPrice, 0, 0);
    }

    function expectCreate(bytes memory error_, address node, bytes memory prompt, uint32 maxNew, uint128 maxPrice)
        internal
    {
        vm.expectRevert(error_);
        create(node, prompt, maxNew, maxPrice);
    }

    // ------------------------------------------------------------------------------------------------ createJob

    function test_createJob_named() public {
        JobId id = JobId.wrap(1);
        bytes memory prompt = tokens(3);
        vm.expectEmit();
        emit IMarket.JobCreated(id, uma, nora, modelId, 4, PRICE, 0, 0, prompt);
        vm.expectEmit();
        emit IMarket.JobAccepted(id, nora, 10 ether, uint40(block.timestamp + mp.submitTimeout));
        JobId created = create(nora, prompt, 4, PRICE);
        assertEq(JobId.unwrap(created), 1);
        assertEq(market.nextJobId(), 2);

        IMarket.Job memory j = market.job(id);
        assertState(id, JobState.Assigned);
        assertEq(j.user, uma);
        assertEq(j.node, nora);
        assertEq(j.deadline, block.timestamp + mp.submitTimeout);
        assertEq(abi.encode(j.nIn, j.nOut, j.maxNew), abi.encode(3, 0, 4));
        assertEq(j.modelId, modelId);
        bytes32 root = NaiveTree.root(NaiveTree.pageHashes(prompt));
        assertEq(j.inputHash, keccak256(abi.encodePacked(uint8(8), uint32(3), root)));
        assertEq(abi.encode(j.escrow, j.bond), abi.encode(PRICE, 10 ether));
        assertEq(abi.encode(j.perInputToken, j.perOutputToken), abi.encode(PER_INPUT, PER_OUTPUT));
        assertEq(market.traceRoot(id), 0);

        assertEq(token.balanceOf(uma), FUNDS - PRICE);
        assertEq(market.totalEscrow(), PRICE);
        assertEq(nodes.node(nora).locked, 10 ether);
        assertConserved();
    }

    function test_createJob_bondFactor() public {
        JobId id = create(nora, tokens(3), 40, type(uint128).max);
        uint128 price = 3 * PER_INPUT + 40 * PER_OUTPUT;
        assertEq(market.job(id).bond, 2 * price);
        assertEq(nodes.node(nora).locked, 2 * price);
    }

    function test_createJob_free() public {
        vm.prank(nora);
        nodes.setAsk(modelId, 0, 0, 100);
        JobId id = create(nora, tokens(3), 4, 0);
        assertEq(abi.encode(market.job(id).escrow, market.job(id).bond), abi.encode(0, 10 ether));
        assertEq(token.balanceOf(uma), FUNDS);
    }

    function test_createJob_notOffered() public {
        expectCreate(abi.encodeWithSelector(IMarket.NotOffered.selector, nils, modelId), nils, tokens(3), 4, PRICE);
        vm.prank(nora);
        nodes.setAsk(modelId, 1, 1, 0);
        expectCreate(abi.encodeWithSelector(IMarket.NotOffered.selector, nora, modelId), nora, tokens(3), 4, PRICE);
    }

    function test_createJob_moreThanOffered() public {
        vm.prank(nora);
        nodes.setAsk(modelId, 1, 1, 6);
        expectCreate(abi.encodeWithSelector(IMarket.MoreThanOffered.selector, 7, 6), nora, tokens(3), 4, PRICE);
        create(nora, tokens(3), 3, PRICE);
    }

    function test_createJob_ceiling() public {
        bytes memory error_ = abi.encodeWithSelector(IMarket.PriceOverCeiling.selector, PRICE, PRICE - 1);
        expectCreate(error_, nora, tokens(3), 4, PRICE - 1);
        create(nora, tokens(3), 4, PRICE);
    }

    function test_createJob_hugeAsk() public {
        vm.prank(nora);
        nodes.setAsk(modelId, type(uint128).max, type(uint128).max, 100);
        uint256 price = 7 * uint256(type(uint128).max);
        bytes memory error_ = abi.encodeWithSelector(IMarket.PriceOverCeiling.selector, price, type(uint128).max);
        expectCreate(error_, nora, tokens(3), 4, type(uint128).max);
        assertEq(market.quote(modelId, nora, 1, 1) / 2, type(uint128).max);
    }

    function test_createJob_capacity() public {
        for (uint256 i; i < CAPACITY; i++) {
            create(nora, tokens(1), 1, PRICE);
        }
        bytes memory error_ = abi.encodeWithSelector(INodes.AtCapacity.selector, nora, CAPACITY, CAPACITY);
        expectCreate(error_, nora, tokens(1), 1, PRICE);
    }

    function test_createJob_freeStake() public {
        vm.prank(nora);
        nodes.requestUnstake(STAKE - 9 ether);
        bytes memory error_ = abi.encodeWithSelector(INodes.InsufficientFreeStake.selector, nora, 9 ether, 10 ether);
        expectCreate(error_, nora, tokens(1), 1, PRICE);
    }

    function test_createJob_open() public {
        JobId id = JobId.wrap(1);
        vm.expectEmit();
        emit IMarket.JobCreated(id, uma, address(0), modelId, 4, 50 ether, 0, 0, tokens(3));
        create(address(0), tokens(3), 4, 50 ether);
        IMarket.Job memory j = market.job(id);
        assertState(id, JobState.Open);
        assertEq(j.node, address(0));
        assertEq(j.escrow, 50 ether);
        assertEq(j.deadline, block.timestamp + mp.acceptTimeout);
        assertConserved();
    }

    function test_createJob_unknownModel() public {
        vm.expectRevert(abi.encodeWithSelector(IModels.UnknownModel.selector, bytes32("?")));
        market.createJob("?", nora, tokens(1), 1, 0, 0, 0);
    }

    function test_createJob_tokenBytes() public {
        expectCreate(abi.encodeWithSelector(IMarket.TokenBytes.selector, 0), nora, "", 4, PRICE);
        expectCreate(abi.encodeWithSelector(IMarket.TokenBytes.selector, 7), nora, new bytes(7), 4, PRICE);
    }

    function test_createJob_vocabulary() public {
        bytes memory prompt = bytes.concat(tokens(2), bytes4(uint32(1000)));
        bytes memory error_ = abi.encodeWithSelector(IMarket.TokenOutOfVocabulary.selector, 2, 1000, 1000);
        expectCreate(error_, nora, prompt, 4, PRICE);
        expectCreate(error_, address(0), prompt, 4, PRICE);
        create(nora, bytes.concat(tokens(2), bytes4(uint32(999))), 4, PRICE);
    }

    function test_createJob_noNewTokens() public {
        expectCreate(abi.encodeWithSelector(IMarket.NoNewTokens.selector), nora, tokens(3), 0, PRICE);
    }

    function test_createJob_positions() public {
        // 125 + 4 - 1 = 128 positions
        vm.prank(nora);
        nodes.setAsk(modelId, 0, 0, 1000);
        create(nora, tokens(125), 4, 0);
        bytes memory error_ = abi.encodeWithSelector(IMarket.TooManyPositions.selector, 129, 128);
        expectCreate(error_, nora, tokens(126), 4, 0);
        error_ = abi.encodeWithSelector(IMarket.TooManyPositions.selector, uint256(type(uint32).max) + 2, 128);
        expectCreate(error_, nora, tokens(3), type(uint32).max, 0);
    }

    /// The instruction set ends at 8192 positions, whatever a model says.
    function test_createJob_positionsOfTheInstructionSet() public {
        vm.mockCall(address(models), abi.encodeCall(IModels.dimensions, (modelId)), abi.encode(2, 1000, 1 << 24));
        bytes memory error_ = abi.encodeWithSelector(IMarket.TooManyPositions.selector, 8193, 8192);
        expectCreate(error_, address(0), tokens(3), 8191, 0);
        create(address(0), tokens(3), 8190, 0);
    }

    // ------------------------------------------------------------------------------------------------- sampling

    /// temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, penalty 1.1
    function sampling() internal pure returns (uint256) {
        return word(5120, 40, 62259, 49081, 4506);
    }

    function word(uint256 a, uint256 b, uint256 c, uint256 d, uint256 e) internal pure returns (uint256) {
        return a | b << 32 | c << 64 | d << 96 | e << 128;
    }

    function sample(uint256 sampling_, bytes32 userSeed) internal returns (JobId) {
        vm.prank(uma);
        return market.createJob(modelId, nora, tokens(3), 4, PRICE, sampling_, userSeed);
    }

    function samplingModel() internal {
        vm.mockCall(address(models), abi.encodeCall(IModels.samples, (modelId)), abi.encode(true));
    }

    function seedOf(JobId id, bytes32 userSeed) internal view returns (bytes32) {
        return keccak256(
            abi.encode(block.chainid, address(market), id, userSeed, block.prevrandao, blockhash(block.number - 1))
        );
    }

    function test_createJob_sampling() public {
        samplingModel();
        vm.prevrandao(bytes32(uint256(12345)));
        JobId id = JobId.wrap(1);
        bytes32 seed = seedOf(id, "mine");
        vm.expectEmit();
        emit IMarket.JobCreated(id, uma, nora, modelId, 4, PRICE, sampling(), seed, tokens(3));
        sample(sampling(), "mine");
        IMarket.Job memory j = market.job(id);
        assertEq(j.sampling, sampling());
        assertEq(j.seed, seed);
        bytes32 order = keccak256(abi.encodePacked(uint8(9), modelId, j.inputHash, uint32(4), j.sampling, j.seed));
        assertEq(market.orderHash(id), order);
        // Later blocks change nothing.
        vm.prevrandao(bytes32(uint256(6)));
        vm.roll(block.number + 1);
        assertEq(market.job(id).seed, seed);
    }

    function test_createJob_seed() public {
        samplingModel();
        bytes32[5] memory seeds;
        seeds[0] = market.job(sample(sampling(), "mine")).seed;
        seeds[1] = market.job(sample(sampling(), "mine")).seed;
        vm.prevrandao(bytes32(uint256(12345)));
        seeds[2] = seedOf(JobId.wrap(1), "mine");
        seeds[3] = market.job(sample(sampling(), "yours")).seed;
        for (uint256 i; i < 5; i++) {
            for (uint256 k; k < i; k++) {
                assertNotEq(seeds[i], seeds[k]);
            }
        }
        // Without a temperature there is no noise and no seed.
        assertEq(market.job(sample(word(0, 40, 0, 0, 4506), "mine")).seed, 0);
    }

    /// Neither the seed nor the parameters of a greedy job are written.
    function test_createJob_greedy() public {
        IMarket.Job memory j = market.job(sample(0, "mine"));
        assertEq(j.sampling, 0);
        assertEq(j.seed, 0);
    }

    function test_createJob_greedyModel() public {
        vm.expectRevert(abi.encodeWithSelector(IMarket.GreedyModel.selector, modelId));
        sample(sampling(), 0);
    }

    function expectBadSampling(uint256 sampling_, uint256 index, uint256 actual, uint256 min, uint256 max) internal {
        vm.expectRevert(abi.encodeWithSelector(IMarket.BadSampling.selector, index, actual, min, max));
        sample(sampling_, 0);
    }

    function test_createJob_badSampling() public {
        samplingModel();
        vm.prank(nora);
        nodes.configure("", 100);
        vm.prank(nora);
        nodes.setAsk(modelId, 0, 0, 100);
        sample(word(1 << 20, (1 << 20) - 1, 1 << 16, (1 << 24) - 1, (1 << 16) - 1), 0);
        sample(word(1, 1, 1, 1, 1 << 8), 0);
        expectBadSampling(word((1 << 20) + 1, 0, 0, 0, 0), 0, (1 << 20) + 1, 0, 1 << 20);
        expectBadSampling(word(0, 1 << 20, 0, 0, 0), 1, 1 << 20, 0, (1 << 20) - 1);
        expectBadSampling(word(0, 0, (1 << 16) + 1, 0, 0), 2, (1 << 16) + 1, 0, 1 << 16);
        expectBadSampling(word(0, 0, 0, 1 << 24, 0), 3, 1 << 24, 0, (1 << 24) - 1);
        expectBadSampling(word(0, 0, 0, 0, 255), 4, 255, 1 << 8, (1 << 16) - 1);
        expectBadSampling(word(0, 0, 0, 0, 1 << 16), 4, 1 << 16, 1 << 8, (1 << 16) - 1);
        expectBadSampling(1 << 160, 5, 1, 0, 0);
        expectBadSampling(1 << 255, 5, 1 << 95, 0, 0);
    }

    function test_createJob_feeOnTransfer() public {
        FeeToken cheat = new FeeToken();
        cheat.mint(uma, 100);
        expectRefused(cheat, abi.encodeWithSelector(IMarket.TransferMismatch.selector, 99, 100));
    }

    function test_createJob_falseToken() public {
        FalseToken cheat = new FalseToken();
        cheat.mint(uma, 100);
        expectRefused(cheat, abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(cheat)));
    }

    /// A market of a token of uma's that does not move as it is told.
    function expectRefused(IERC20 cheat, bytes memory error_) internal {
        Market m = new Market(address(cheat), address(models), address(nodes), address(challenges), mp);
        vm.startPrank(uma);
        cheat.approve(address(m), 100);
        vm.expectRevert(error_);
        m.createJob(modelId, address(0), tokens(1), 1, 100, 0, 0);
    }

    function testFuzz_createJob(uint32 nIn, uint32 maxNew, uint128 perInput, uint128 perOutput) public {
        nIn = uint32(bound(nIn, 1, 100));
        maxNew = uint32(bound(maxNew, 1, 128 - nIn));
        perInput = uint128(bound(perInput, 0, 1 ether));
        perOutput = uint128(bound(perOutput, 0, 1 ether));
        vm.startPrank(nora);
        nodes.deposit(10_000 ether);
        nodes.setAsk(modelId, perInput, perOutput, 128);
        vm.stopPrank();
        uint256 price = uint256(nIn) * perInput + uint256(maxNew) * perOutput;
        assertEq(market.quote(modelId, nora, nIn, maxNew), price);
        JobId id = create(nora, tokens(nIn), maxNew, type(uint128).max);
        IMarket.Job memory j = market.job(id);
        assertEq(j.escrow, price);
        assertEq(j.bond, price * 2 > 10 ether ? price * 2 : 10 ether);
        assertEq(token.balanceOf(address(market)), price);
        assertConserved();
    }

    // ------------------------------------------------------------------------------------------------ acceptJob

    function test_acceptJob() public {
        JobId id = create(address(0), tokens(3), 4, 50 ether);
        vm.warp(market.job(id).deadline);
        vm.expectEmit();
        emit IMarket.Credited(uma, 50 ether - PRICE, id);
        vm.expectEmit();
        emit IMarket.JobAccepted(id, nora, 10 ether, uint40(block.timestamp + mp.submitTimeout));
        vm.prank(nora);
        market.acceptJob(id, PER_INPUT, PER_OUTPUT);
        IMarket.Job memory j = market.job(id);
        assertState(id, JobState.Assigned);
        assertEq(j.node, nora);
        assertEq(j.escrow, PRICE);
        assertEq(j.perInputToken, PER_INPUT);
        assertEq(j.perOutputToken, PER_OUTPUT);
        assertEq(market.withdrawable(uma), 50 ether - PRICE);
        assertConserved();
    }

    function testFuzz_offerFor(uint128 ceiling, uint40 age) public {
        ceiling = uint128(bound(ceiling, 0, 50 ether));
        age = uint40(bound(age, 0, mp.acceptTimeout));
        JobId id = create(address(0), tokens(3), 4, ceiling);
        skip(age);
        uint256 offer = age < mp.auctionTime ? uint256(ceiling) * age / mp.auctionTime : ceiling;
        assertEq(market.offerFor(id), offer);
        // What is bid for an output token alone, at most and a unit over it.
        uint128 bid = uint128(offer / 4);
        vm.startPrank(nora);
        vm.expectRevert(abi.encodeWithSelector(IMarket.PriceOverCeiling.selector, 4 * (bid + 1), offer));
        market.acceptJob(id, 0, bid + 1);
        market.acceptJob(id, 0, bid);
        vm.stopPrank();
        assertEq(market.offerFor(id), 0);
        assertEq(market.job(id).escrow, 4 * bid);
        assertEq(market.withdrawable(uma), ceiling - 4 * bid);
        assertConserved();
    }

    /// Prices that overflow 128 bits are over every ceiling.
    function test_acceptJob_hugeBid() public {
        JobId id = create(address(0), tokens(3), 4, 50 ether);
        skip(mp.acceptTimeout);
        uint256 price = 7 * uint256(type(uint128).max);
        vm.expectRevert(abi.encodeWithSelector(IMarket.PriceOverCeiling.selector, price, 50 ether));
        vm.prank(nora);
        market.acceptJob(id, type(uint128).max, type(uint128).max);
    }

    /// Whoever is content with less is first: the dearer node's bid is refused until the cheaper one has had its chance.
    function test_acceptJob_cheapestFirst() public {
        JobId id = create(address(0), tokens(3), 4, 40 ether);
        skip(mp.auctionTime / 2);
        vm.expectRevert(abi.encodeWithSelector(IMarket.PriceOverCeiling.selector, 24 ether, 20 ether));
        vm.prank(nora);
        market.acceptJob(id, 0, 6 ether);
        vm.prank(nora);
        market.acceptJob(id, 0, 5 ether);
        assertEq(market.job(id).escrow, 20 ether);
    }

    function test_acceptJob_late() public {
        JobId id = create(address(0), tokens(3), 4, 50 ether);
        uint40 deadline = market.job(id).deadline;
        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(IMarket.TooLate.selector, id, deadline + 1, deadline));
        vm.prank(nora);
        market.acceptJob(id, PER_INPUT, PER_OUTPUT);
    }

    function test_acceptJob_ceiling() public {
        JobId id = create(address(0), tokens(3), 4, PRICE - 1);
        skip(mp.acceptTimeout);
        vm.expectRevert(abi.encodeWithSelector(IMarket.PriceOverCeiling.selector, PRICE, PRICE - 1));
        vm.prank(nora);
        market.acceptJob(id, PER_INPUT, PER_OUTPUT);
    }

    /// Posted asks do not matter, stake does.
    function test_acceptJob_noStake() public {
        JobId id = create(address(0), tokens(3), 4, PRICE);
        skip(mp.auctionTime);
        vm.expectRevert();
        vm.prank(nils);
        market.acceptJob(id, PER_INPUT, PER_OUTPUT);
    }

    function test_acceptJob_state() public {
        JobId none = JobId.wrap(9);
        vm.expectRevert(abi.encodeWithSelector(IMarket.WrongState.selector, none, JobState.None, JobState.Open));
        market.acceptJob(none, 0, 0);
        JobId id = create(address(0), tokens(3), 4, PRICE);
        skip(mp.auctionTime);
        vm.startPrank(nora);
        market.acceptJob(id, PER_INPUT, PER_OUTPUT);
        vm.expectRevert(abi.encodeWithSelector(IMarket.WrongState.selector, id, JobState.Assigned, JobState.Open));
        market.acceptJob(id, PER_INPUT, PER_OUTPUT);
    }

    // ------------------------------------------------------------------------------------------------ cancelJob

    function test_cancelJob() public {
        JobId id = create(address(0), tokens(3), 4, 50 ether);
        vm.expectEmit();
        emit IMarket.JobCancelled(id, 50 ether);
        vm.startPrank(uma);
        market.cancelJob(id);
        assertState(id, JobState.Cancelled);
        assertEq(market.withdrawable(uma), 50 ether);
        assertConserved();
        vm.expectRevert(abi.encodeWithSelector(IMarket.WrongState.selector, id, JobState.Cancelled, JobState.Open));
        market.cancelJob(id);
    }

    function test_cancelJob_notUser() public {
        JobId id = create(address(0), tokens(3), 4, 50 ether);
        vm.expectRevert(abi.encodeWithSelector(IMarket.NotUser.selector, id, mallory, uma));
        vm.prank(mallory);
        market.cancelJob(id);
    }

    function test_cancelJob_assigned() public {
        JobId id = create(nora, tokens(3), 4, PRICE);
        vm.expectRevert(abi.encodeWithSelector(IMarket.WrongState.selector, id, JobState.Assigned, JobState.Open));
        vm.prank(uma);
        market.cancelJob(id);
    }

    // ---------------------------------------------------------------------------------------------------- quote

    function test_quote() public {
        assertEq(market.quote(modelId, nora, 3, 4), PRICE);
        vm.expectRevert(abi.encodeWithSelector(IMarket.NotOffered.selector, nils, modelId));
        market.quote(modelId, nils, 3, 4);
        vm.expectRevert(abi.encodeWithSelector(IMarket.MoreThanOffered.selector, 129, 128));
        market.quote(modelId, nora, 125, 4);
    }
}
