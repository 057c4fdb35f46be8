// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Challenges} from "../../contracts/Challenges.sol";
import {Market} from "../../contracts/Market.sol";
import {Nodes} from "../../contracts/Nodes.sol";
import {DevToken} from "../../contracts/dev/DevToken.sol";
import {IChallenges, OpeningId, Target, TargetKind} from "../../contracts/interfaces/IChallenges.sol";
import {IMarket, JobId, JobState} from "../../contracts/interfaces/IMarket.sol";
import {INodes} from "../../contracts/interfaces/INodes.sol";
import {Claim, Witness} from "../../contracts/interfaces/IStepVerifier.sol";
import {Steps} from "./Steps.sol";
import {TinyModel} from "./TinyModel.sol";
import {TinyTrace} from "./TinyTrace.sol";

/// @notice Everybody of a market at once: random steps, each one possible when it is taken. A step that finds nothing to do
/// lets another be done, or else says so in `idle`.
contract Handler is Steps {
    uint256 internal constant PEOPLE = 3;
    /// that are begun for want of anything else
    uint256 internal constant MOST_JOBS = 16;
    bytes32 internal constant SALT = keccak256("salt");

    DevToken internal immutable token;
    Market internal immutable market;
    Nodes internal immutable nodes;
    Challenges internal immutable challenges;
    bytes32 internal immutable modelId;
    TinyTrace internal immutable truth;
    TinyTrace internal immutable falsehood;
    Claim internal lie;

    address[PEOPLE] public users;
    address[PEOPLE] public servers;
    address[PEOPLE] public watchers;

    /// what is known of a job besides what the chain says
    struct Note {
        JobState state; // as last seen
        bool lied;
        bool silent; // the node has let a demand pass
        address announcer;
        uint256 announcedAt;
    }

    mapping(uint256 job => Note) public notes;
    mapping(uint256 job => Target[]) internal _asked;

    constructor(
        DevToken token_,
        Market market_,
        Nodes nodes_,
        Challenges challenges_,
        bytes32 modelId_,
        TinyTrace truth_,
        TinyTrace falsehood_,
        Claim memory lie_
    ) {
        (token, market, nodes, challenges, modelId) = (token_, market_, nodes_, challenges_, modelId_);
        (truth, falsehood, lie) = (truth_, falsehood_, lie_);
        string[3] memory names = ["first", "second", "third"];
        for (uint256 i; i < PEOPLE; i++) {
            users[i] = _person(string.concat("user ", names[i]));
            servers[i] = _person(string.concat("node ", names[i]));
            watchers[i] = _person(string.concat("watcher ", names[i]));
            vm.startPrank(servers[i]);
            nodes.configure("", 5);
            nodes.deposit(200 ether);
            nodes.setAsk(modelId, uint128(i) * 0.1 ether, uint128(i) * 1 ether, 100);
            vm.stopPrank();
        }
    }

    function _person(string memory name) private returns (address who) {
        who = makeAddr(name);
        token.mint(who, 1_000_000 ether);
        vm.startPrank(who);
        token.approve(address(market), type(uint256).max);
        token.approve(address(nodes), type(uint256).max);
        vm.stopPrank();
    }

    function jobs() public view returns (uint256) {
        return market.nextJobId() - 1;
    }

    function tokensOf(uint256 n) internal pure returns (bytes memory data) {
        for (uint256 i; i < n; i++) {
            data = bytes.concat(data, bytes4(uint32(100 + i)));
        }
    }

    /// A job in this state, from a random one on; zero if there is none.
    function find(JobState state, uint256 seed) internal view returns (uint256) {
        uint256 n = jobs();
        for (uint256 i; i < n; i++) {
            uint256 id = (seed % n + i) % n + 1;
            if (market.job(JobId.wrap(id)).state == state) return id;
        }
        return 0;
    }

    function traceOf(uint256 id) public view returns (TinyTrace) {
        return notes[id].lied ? falsehood : truth;
    }

    // ----------------------------------------------------------------------------------------------------- users

    function create(uint256 who, uint256 whom, uint256 extra) external step("create") {
        _create(who, whom, extra);
    }

    function _create(uint256 who, uint256 whom, uint256 extra) private {
        address node = servers[whom % PEOPLE];
        if (extra % 3 == 0 || !_free(node)) node = address(0);
        uint128 ceiling = uint128(bound(extra, 50 ether, 80 ether));
        (bytes memory prompt, uint32 maxNew) = (tokensOf(truth.nIn()), truth.nOut());
        vm.prank(users[who % PEOPLE]);
        market.createJob(modelId, node, prompt, maxNew, ceiling, 0, 0);
    }

    /// Whether a node can take a job more: twice its price is locked, or the least.
    function _free(address node) private view returns (bool) {
        INodes.Node memory n = nodes.node(node);
        uint256 bond = 2 * market.quote(modelId, node, truth.nIn(), truth.nOut());
        return n.active < n.capacity && nodes.freeStake(node) >= (bond > 10 ether ? bond : 10 ether);
    }

    function cancel(uint256 seed) external step("cancel") {
        uint256 id = find(JobState.Open, seed);
        // Rarely, or nothing would be left to accept.
        if (id == 0 || seed % 4 != 0) return _idle();
        vm.prank(market.job(JobId.wrap(id)).user);
        market.cancelJob(JobId.wrap(id));
    }

    function withdraw(uint256 who) external step("withdraw") {
        if (!withdrawAny(who)) _idle();
    }

    function withdrawAny(uint256 who) public returns (bool) {
        address[9] memory all;
        for (uint256 i; i < PEOPLE; i++) {
            (all[3 * i], all[3 * i + 1], all[3 * i + 2]) = (users[i], servers[i], watchers[i]);
        }
        for (uint256 i; i < 9; i++) {
            address a = all[(who % 9 + i) % 9];
            if (market.withdrawable(a) == 0) continue;
            vm.prank(a);
            market.withdraw();
            return true;
        }
        return false;
    }

    // ----------------------------------------------------------------------------------------------------- nodes

    function accept(uint256 who, uint256 seed) external step("accept") {
        uint256 id = find(JobState.Open, seed);
        address node = servers[who % PEOPLE];
        if (id == 0 || !_free(node)) return _idle();
        if (block.timestamp > market.job(JobId.wrap(id)).deadline) return _idle();
        IMarket.Job memory j = market.job(JobId.wrap(id));
        // Any bid that the offer has risen to and the stake covers.
        uint256 price = Math.min(market.offerFor(JobId.wrap(id)), nodes.freeStake(node) / 2);
        uint128 most = uint128(price / (uint256(j.nIn) + j.maxNew));
        uint128 bid = uint128(bound(seed, most / 2, most));
        vm.prank(node);
        market.acceptJob(JobId.wrap(id), bid, bid);
    }

    function submit(uint256 seed, uint256 mood) external step("submit") {
        uint256 id = find(JobState.Assigned, seed);
        if (id == 0 || block.timestamp > market.job(JobId.wrap(id)).deadline) return _idle();
        notes[id].lied = mood % 2 == 0;
        bytes32 root = traceOf(id).layersRoot();
        bytes memory output = tokensOf(truth.nOut());
        bytes32 order = market.orderHash(JobId.wrap(id));
        vm.prank(market.job(JobId.wrap(id)).node);
        market.submitResult(JobId.wrap(id), order, output, root);
    }

    /// A node answers the first demand it can; the liar as readily as the honest.
    function answer(uint256 seed) external step("answer") {
        uint256 n = jobs();
        for (uint256 k; k < n; k++) {
            uint256 id = (seed % n + k) % n + 1;
            if (market.job(JobId.wrap(id)).state != JobState.Submitted) continue;
            for (uint256 i; i < _asked[id].length; i++) {
                if (_answer(id, _asked[id][i])) return;
            }
        }
        _idle();
    }

    function _answer(uint256 id, Target memory t) private returns (bool) {
        IChallenges.Opening memory o = challenges.opening(challenges.openingId(JobId.wrap(id), t));
        if (o.state != IChallenges.OpeningState.Demanded || block.timestamp > o.turnEnd) return false;
        TinyTrace trace = traceOf(id);
        bytes memory data = trace.answer(t);
        (bytes32 hash, uint32 leaves, uint32 length) = (trace.nodeHash(t), trace.leafCount(t), trace.byteLength(t));
        vm.prank(market.job(JobId.wrap(id)).node);
        challenges.answer(JobId.wrap(id), t, hash, leaves, length, data);
        return true;
    }

    function unstake(uint256 who, uint256 amount) external step("unstake") {
        address node = servers[who % PEOPLE];
        INodes.Node memory n = nodes.node(node);
        if (n.unbonding > 0 && block.timestamp >= n.unbondingAt) {
            vm.prank(node);
            nodes.withdrawStake();
        } else if (n.unbonding == 0 && nodes.freeStake(node) > 100 ether) {
            vm.prank(node);
            nodes.requestUnstake(uint128(bound(amount, 1, 20 ether)));
        } else {
            vm.prank(node);
            nodes.deposit(uint128(bound(amount, 1, 50 ether)));
        }
    }

    // ------------------------------------------------------------------------------------------------ challengers

    function demand(uint256 who, uint256 seed, uint256 what) external step("demand") {
        uint256 id = find(JobState.Submitted, seed);
        if (id == 0) return _idle();
        Target memory t = _choose(id, what);
        (bool possible, OpeningId parent) = _parentFor(id, t, seed % 2 == 0);
        if (!possible) return _idle();
        bool first = _opening(id, t).state == IChallenges.OpeningState.None;
        IChallenges.DemandProof memory proof = traceOf(id).proof(t);
        vm.prank(watchers[who % PEOPLE]);
        challenges.demand(JobId.wrap(id), parent, t, proof);
        if (first) _asked[id].push(t);
    }

    function _choose(uint256 id, uint256 what) private view returns (Target memory) {
        bool listed = challenges.opListHash(JobId.wrap(id), lie.layer, lie.row) != 0;
        // Every other first demand is the one that a proof needs.
        what %= listed ? 6 : 8;
        if (what == 0) return Target(TargetKind.Layers, 0, 0, 0, 2, 0);
        if (what == 1) return Target(TargetKind.Layers, 0, 0, 0, 1, 1);
        if (what == 2) return Target(TargetKind.Positions, lie.layer, 0, 0, 2, 0);
        if (!listed || what == 3) return Target(TargetKind.OpList, lie.layer, lie.row, 0, 0, 0);
        if (what == 4) return Target(TargetKind.Pages, lie.layer, lie.row, lie.op, 1, 0);
        return Target(TargetKind.Page, lie.layer, lie.row, lie.op, 0, 0);
    }

    function _opening(uint256 id, Target memory t) private view returns (IChallenges.Opening memory) {
        return challenges.opening(challenges.openingId(JobId.wrap(id), t));
    }

    /// Under which opening the target can be demanded now, if it can.
    function _parentFor(uint256 id, Target memory t, bool fromTheWindow) private view returns (bool, OpeningId parent) {
        parent = _parent(id, t);
        bool inWindow = block.timestamp <= market.job(JobId.wrap(id)).deadline;
        if (inWindow && fromTheWindow) parent = OpeningId.wrap(0);
        uint8 depth = 1;
        if (OpeningId.unwrap(parent) != 0) depth += challenges.opening(parent).depth;
        else if (!inWindow) return (false, parent);
        IChallenges.Opening memory o = _opening(id, t);
        return (o.state == IChallenges.OpeningState.None || depth < o.depth, parent);
    }

    /// An answered opening that a demand may follow.
    function _parent(uint256 id, Target memory t) private view returns (OpeningId) {
        for (uint256 i; i < _asked[id].length; i++) {
            Target memory p = _asked[id][i];
            if (uint256(p.kind) * 256 + 255 - p.level >= uint256(t.kind) * 256 + 255 - t.level) continue;
            OpeningId parent = challenges.openingId(JobId.wrap(id), p);
            IChallenges.Opening memory o = challenges.opening(parent);
            bool alive = o.state == IChallenges.OpeningState.Answered && block.timestamp <= o.turnEnd;
            if (alive && o.depth < 8) return parent;
        }
        return OpeningId.wrap(0);
    }

    function announce(uint256 who, uint256 seed) external step("announce") {
        uint256 n = jobs();
        uint256 id;
        for (uint256 i; i < n && id == 0; i++) {
            uint256 k = (seed % n + i) % n + 1;
            bool fresh = notes[k].lied && notes[k].announcer == address(0);
            bool listed = challenges.opListHash(JobId.wrap(k), lie.layer, lie.row) != 0;
            if (fresh && listed && market.job(JobId.wrap(k)).state == JobState.Submitted) id = k;
        }
        if (id == 0) return _idle();
        address watcher = watchers[who % PEOPLE];
        bytes32 commitment = challenges.commitmentOf(JobId.wrap(id), lie, watcher, SALT);
        vm.prank(watcher);
        challenges.announce(JobId.wrap(id), commitment);
        notes[id].announcer = watcher;
        notes[id].announcedAt = block.number;
    }

    function prove(uint256 seed) public returns (bool) {
        uint256 n = jobs();
        for (uint256 i; i < n; i++) {
            if (_prove((seed % n + i) % n + 1)) return did("prove");
        }
        return false;
    }

    function _prove(uint256 id) private returns (bool) {
        JobId job = JobId.wrap(id);
        Note memory note = notes[id];
        if (market.job(job).state != JobState.Submitted || !note.lied) return false;
        if (note.announcer == address(0) || block.number <= note.announcedAt) return false;
        if (challenges.opListHash(job, lie.layer, lie.row) == 0) return false;
        Witness memory w = falsehood.witness(lie);
        vm.prank(note.announcer);
        challenges.proveFraud(job, lie, SALT, w);
        return true;
    }

    // ---------------------------------------------------------------------------------------------- passers-by

    /// Ends what can be ended: the first of six ways that finds something to do, beginning anywhere.
    function close(uint256 who, uint256 seed, uint256 begin) external step("close") {
        for (uint256 i; i < 6; i++) {
            uint256 way = (begin % 6 + i) % 6;
            if (way == 0 && prove(seed)) return;
            if (way == 1 && finalize(seed)) return;
            if (way == 2 && timeout(seed)) return;
            if (way == 3 && expire(seed)) return;
            if (way == 4 && settle(seed)) return;
            if (way == 5 && reclaim(who, seed)) return;
        }
        _idle();
    }

    function finalize(uint256 seed) public returns (bool) {
        uint256 n = jobs();
        for (uint256 i; i < n; i++) {
            JobId id = JobId.wrap((seed % n + i) % n + 1);
            IMarket.Job memory j = market.job(id);
            if (j.state == JobState.Submitted && block.timestamp > j.deadline && challenges.settled(id)) {
                market.finalize(id);
                return did("finalize");
            }
        }
        return false;
    }

    function expire(uint256 seed) public returns (bool) {
        uint256 n = jobs();
        for (uint256 i; i < n; i++) {
            JobId id = JobId.wrap((seed % n + i) % n + 1);
            IMarket.Job memory j = market.job(id);
            bool waits = j.state == JobState.Open || j.state == JobState.Assigned;
            if (waits && block.timestamp > j.deadline) {
                market.expire(id);
                return did("expire");
            }
        }
        return false;
    }

    function settle(uint256 seed) public returns (bool) {
        uint256 n = jobs();
        for (uint256 i; i < n; i++) {
            JobId id = JobId.wrap((seed % n + i) % n + 1);
            (address winner, uint40 end, bool paid) = challenges.rewardOf(id);
            if (winner == address(0) || paid || block.timestamp <= end) continue;
            challenges.settleReward(id);
            return did("settle");
        }
        return false;
    }

    function reclaim(uint256 who, uint256 seed) public returns (bool) {
        uint256 n = jobs();
        address watcher = watchers[who % PEOPLE];
        for (uint256 i; i < n; i++) {
            JobId id = JobId.wrap((seed % n + i) % n + 1);
            if (market.job(id).state != JobState.Slashed || challenges.feesPaid(id, watcher) == 0) continue;
            vm.prank(watcher);
            challenges.reclaimFees(id);
            return did("reclaim");
        }
        return false;
    }

    function timeout(uint256 seed) public returns (bool) {
        uint256 n = jobs();
        for (uint256 i; i < n; i++) {
            if (_timeout((seed % n + i) % n + 1)) return did("timeout");
        }
        return false;
    }

    function _timeout(uint256 id) private returns (bool) {
        if (market.job(JobId.wrap(id)).state != JobState.Submitted) return false;
        for (uint256 i; i < _asked[id].length; i++) {
            Target memory t = _asked[id][i];
            IChallenges.Opening memory o = _opening(id, t);
            if (o.state != IChallenges.OpeningState.Demanded || block.timestamp <= o.turnEnd) continue;
            challenges.timeout(JobId.wrap(id), t);
            notes[id].silent = true;
            return true;
        }
        return false;
    }

    function pass(uint256 time) external step("pass") {
        vm.roll(block.number + 1);
        vm.warp(block.timestamp + bound(time, 1, 6));
    }

    /// There is nothing of its kind to do: a user orders, or else a node adds to its stake.
    function _idle() private {
        uint256 seed = idle + busy;
        address node = servers[seed % PEOPLE];
        if (jobs() < MOST_JOBS) {
            _create(seed, seed, seed);
        } else if (token.balanceOf(node) > 0) {
            vm.prank(node);
            nodes.deposit(1);
        } else {
            idle++;
            return;
        }
        instead++;
    }

    // ------------------------------------------------------------------------------------------------- what is so

    /// @notice notes the jobs' states; reverts on a step that is none
    function observe() external {
        for (uint256 id = 1; id <= jobs(); id++) {
            JobState now_ = market.job(JobId.wrap(id)).state;
            JobState before = notes[id].state;
            if (now_ != before) {
                // Terminal states are last; a job under way moves forward only.
                assertLt(uint8(before), uint8(JobState.Final), "a terminal state changed");
                assertGt(uint8(now_), uint8(before), "a job went back");
                notes[id].state = now_;
            }
            if (now_ == JobState.Slashed) assertTrue(notes[id].lied || notes[id].silent, "an honest job was slashed");
        }
    }

    /// @notice how many jobs are in a state
    function inState(JobState state) public view returns (uint256 n) {
        for (uint256 id = 1; id <= jobs(); id++) {
            if (market.job(JobId.wrap(id)).state == state) n++;
        }
    }
}
