// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Challenges} from "../../contracts/Challenges.sol";
import {Channels} from "../../contracts/Channels.sol";
import {Nodes} from "../../contracts/Nodes.sol";
import {Trials} from "../../contracts/Trials.sol";
import {DevToken} from "../../contracts/dev/DevToken.sol";
import {IChallenges, OpeningId, Target, TargetKind} from "../../contracts/interfaces/IChallenges.sol";
import {
    ChannelState,
    IChannels,
    Part,
    Place,
    Receipt as SignedReceipt,
    Redemption,
    Voucher
} from "../../contracts/interfaces/IChannels.sol";
import {JobId, JobState} from "../../contracts/interfaces/ICourt.sol";
import {NaiveTree} from "./NaiveTree.sol";
import {Steps} from "./Steps.sol";

/// @notice Everybody who pays and is paid by receipts, at once: random steps, each one possible when it is taken. A step that
/// finds nothing to do lets another be done, or else says so in `idle`.
contract ChannelsHandler is Steps {
    uint256 internal constant USERS = 3;
    uint256 internal constant SERVERS = 3;
    uint256 internal constant WATCHERS = 2;
    uint128 internal constant PRICE = 1 ether;

    DevToken internal immutable token;
    Nodes internal immutable nodes;
    Channels internal immutable channels;
    Trials internal immutable trials;
    Challenges internal immutable challenges;
    bytes32 internal immutable modelId;
    IChannels.Params internal params;
    bytes32 internal tokensHash;
    bytes internal sequence;

    /// users, watchers, then nodes, new ones included
    address[] public people;
    /// who serves now, convicted or not
    address[SERVERS] internal servers;
    mapping(address => uint256) internal keys;
    bytes32[] internal ids;
    /// batch b has one part, parts[b - 1]
    Part[] internal parts;
    mapping(uint256 batchId => uint64[]) internal asked;
    JobId[] internal jobs;
    mapping(JobId => bool[2]) internal tokensAsked;
    /// has signed twice, or been silent at a trial
    mapping(address node => bool) public guilty;
    mapping(uint256 batchId => IChannels.BatchState) internal seen;

    constructor(
        DevToken token_,
        Nodes nodes_,
        Channels channels_,
        Trials trials_,
        Challenges challenges_,
        bytes32 modelId_
    ) {
        (token, nodes, channels, trials, challenges, modelId) =
        (token_, nodes_, channels_, trials_, challenges_, modelId_);
        params = channels_.params();
        sequence = abi.encodePacked(uint32(1), uint32(2));
        tokensHash = keccak256(abi.encodePacked(uint8(8), uint32(2), NaiveTree.root(NaiveTree.pageHashes(sequence))));
        for (uint256 i; i < USERS + WATCHERS; i++) {
            person();
        }
        for (uint256 i; i < SERVERS; i++) {
            enroll(i);
        }
    }

    function person() private returns (address who) {
        uint256 key;
        (who, key) = makeAddrAndKey(string.concat("person ", vm.toString(people.length)));
        people.push(who);
        keys[who] = key;
        token.mint(who, 1_000_000 ether);
        vm.startPrank(who);
        token.approve(address(nodes), type(uint256).max);
        token.approve(address(channels), type(uint256).max);
        vm.stopPrank();
    }

    function enroll(uint256 place) private {
        servers[place] = person();
        vm.prank(servers[place]);
        nodes.deposit(300 ether);
    }

    /// There is nothing of its kind to do: a user puts money by for channels to come.
    function _idle() private {
        address u = user(idle + busy);
        if (token.balanceOf(u) == 0) {
            idle++;
            return;
        }
        vm.prank(u);
        channels.deposit(1);
        instead++;
    }

    function user(uint256 seed) internal view returns (address) {
        return people[seed % USERS];
    }

    function server(uint256 seed) public view returns (address) {
        return servers[seed % SERVERS];
    }

    function watcher(uint256 seed) internal view returns (address) {
        return people[USERS + seed % WATCHERS];
    }

    function peopleCount() external view returns (uint256) {
        return people.length;
    }

    function channelCount() external view returns (uint256) {
        return ids.length;
    }

    function channelAt(uint256 i) public view returns (IChannels.Channel memory) {
        return channels.channel(ids[i]);
    }

    function batchCount() public view returns (uint256) {
        return parts.length;
    }

    function trialCount() public view returns (uint256) {
        return jobs.length;
    }

    function trialAt(uint256 i) external view returns (JobId) {
        return jobs[i];
    }

    // ------------------------------------------------------------------------------------------------------ papers

    function receiptOf(bytes32 id, uint64 n) internal view returns (SignedReceipt memory r) {
        (r.channelId, r.sequence, r.modelId, r.inputHash, r.outputHash) = (id, n, modelId, tokensHash, tokensHash);
        r.request = n;
        (r.nIn, r.nOut, r.maxNew, r.price, r.cumulative) = (2, 2, 2, PRICE, PRICE * n);
    }

    function signed(bytes32 id, SignedReceipt memory r) internal view returns (bytes memory) {
        return sign(channels.channel(id).node, channels.receiptDigest(r));
    }

    function sign(address who, bytes32 digest) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[who], digest);
        return abi.encodePacked(r, s, v);
    }

    function leaves(Part memory part) internal view returns (bytes32[] memory all) {
        all = new bytes32[](part.last - part.first + 1);
        for (uint64 i; i < all.length; i++) {
            all[i] = channels.receiptDigest(receiptOf(part.channelId, part.first + i));
        }
    }

    function placeOf(uint256 batchId) internal view returns (Place memory) {
        return Place(batchId, parts[batchId - 1], 0, new bytes32[](0));
    }

    // ------------------------------------------------------------------------------------------------------- users

    function open(uint256 who, uint256 whom, uint256 amount) external step("open") {
        if (ids.length >= 40) return _idle();
        address u = user(who);
        uint128 deposit = uint128(bound(amount, 5 ether, 30 ether));
        vm.startPrank(u);
        channels.deposit(deposit);
        ids.push(channels.open(server(whom), u, deposit, bytes32(ids.length)));
        vm.stopPrank();
    }

    function topUp(uint256 seed, uint256 amount) external step("topUp") {
        uint256 i = find(seed, ChannelState.Open);
        if (i == ids.length) return _idle();
        uint128 more = uint128(bound(amount, 1, 5 ether));
        vm.startPrank(channelAt(i).user);
        channels.deposit(more);
        channels.topUp(ids[i], more);
        vm.stopPrank();
    }

    function find(uint256 seed, ChannelState state) internal view returns (uint256) {
        uint256 n = ids.length;
        for (uint256 k; k < n; k++) {
            uint256 i = (seed % n + k) % n;
            if (channelAt(i).state == state) return i;
        }
        return n;
    }

    function close(uint256 seed, uint256 mood) external step("close") {
        uint256 i = find(seed, ChannelState.Closing);
        if (i < ids.length && block.timestamp > channelAt(i).closeAt) return channels.close(ids[i]);
        i = find(seed, ChannelState.Open);
        // Rarely, or nothing would be left.
        if (i == ids.length || mood % 4 != 0) return _idle();
        if (mood % 3 == 0) {
            vm.prank(channelAt(i).node);
            channels.closeByNode(ids[i]);
        } else {
            vm.prank(channelAt(i).user);
            channels.requestClose(ids[i]);
        }
    }

    function withdraw(uint256 seed) external step("withdraw") {
        if (!withdrawAny(seed)) _idle();
    }

    function withdrawAny(uint256 seed) public returns (bool) {
        for (uint256 k; k < people.length; k++) {
            address who = people[(seed % people.length + k) % people.length];
            if (channels.balanceOf(who) == 0) continue;
            vm.prank(who);
            channels.withdraw();
            return true;
        }
        return false;
    }

    // ------------------------------------------------------------------------------------------------------- nodes

    function redeem(uint256 seed, uint256 howMany) external step("redeem") {
        uint256 i = find(seed, howMany % 5 == 0 ? ChannelState.Closing : ChannelState.Open);
        if (i == ids.length) return _idle();
        IChannels.Channel memory c = channelAt(i);
        uint64 last = c.sequence + uint64(bound(howMany, 1, 5));
        if (PRICE * last > c.deposit || nodes.isConvicted(c.node)) return _idle();
        uint128 amount = PRICE * (last - c.sequence);
        if (nodes.freeStake(c.node) < (2 * amount > 10 ether ? 2 * amount : 10 ether)) return _idle();
        _redeem(c, Part(ids[i], c.sequence + 1, last, amount, PRICE * last, 0));
    }

    function _redeem(IChannels.Channel memory c, Part memory part) private {
        part.receiptsRoot = NaiveTree.root(leaves(part));
        Voucher memory v = Voucher(part.channelId, part.last, modelId, part.cumulative, "request");
        Redemption[] memory list = new Redemption[](1);
        bytes memory signature = sign(c.user, channels.voucherDigest(v));
        list[0] = Redemption(v, signature, part.first, part.last, part.cumulative, part.receiptsRoot);
        vm.prank(c.node);
        channels.redeem(list);
        parts.push(part);
    }

    function publish(uint256 seed) external step("publish") {
        for (uint256 k; k < batchCount(); k++) {
            uint256 b = (seed % batchCount() + k) % batchCount() + 1;
            if (channels.batch(b).state != IChannels.BatchState.Pending) continue;
            for (uint256 i; i < asked[b].length; i++) {
                if (_publish(b, asked[b][i])) return;
            }
        }
        _idle();
    }

    function _publish(uint256 b, uint64 n) private returns (bool) {
        Part memory part = parts[b - 1];
        IChannels.ReceiptDemand memory d = channels.receiptDemand(b, part.channelId, n);
        if (d.state != IChannels.DemandState.Demanded || block.timestamp > d.deadline) return false;
        SignedReceipt memory r = receiptOf(part.channelId, n);
        bytes memory signature = signed(part.channelId, r);
        channels.publishReceipt(placeOf(b), r, signature, NaiveTree.path(leaves(part), 0, n - part.first));
        return true;
    }

    function unstake(uint256 who, uint256 amount) external step("unstake") {
        address node = server(who);
        // Whoever was convicted is replaced.
        if (nodes.isConvicted(node)) return enroll(who % SERVERS);
        uint256 free = nodes.freeStake(node);
        vm.startPrank(node);
        if (nodes.node(node).unbonding > 0 && block.timestamp >= nodes.node(node).unbondingAt) nodes.withdrawStake();
        else if (amount % 2 == 0 && free > 50 ether) nodes.requestUnstake(uint128(bound(amount, 1, 20 ether)));
        else nodes.deposit(uint128(bound(amount, 1, 20 ether)));
        vm.stopPrank();
    }

    // ------------------------------------------------------------------------------------------------------ watchers

    function demand(uint256 who, uint256 seed, uint256 which) external step("demand") {
        if (batchCount() == 0) return _idle();
        uint256 b = seed % batchCount() + 1;
        Part memory part = parts[b - 1];
        uint64 n = uint64(bound(which, part.first, part.last));
        IChannels.Batch memory batch = channels.batch(b);
        if (batch.state != IChannels.BatchState.Pending || block.timestamp > batch.windowEnd) return _idle();
        if (channels.receiptDemand(b, part.channelId, n).state != IChannels.DemandState.None) return _idle();
        vm.prank(watcher(who));
        channels.demandReceipt(placeOf(b), n);
        asked[b].push(n);
    }

    function lodge(uint256 who, uint256 seed, uint256 which) external step("lodge") {
        if (which % 3 == 0) return lodgeLoose(who, seed, which);
        if (batchCount() == 0) return _idle();
        uint256 b = seed % batchCount() + 1;
        IChannels.Batch memory batch = channels.batch(b);
        if (batch.state != IChannels.BatchState.Pending || block.timestamp > batch.lodgeEnd) return _idle();
        // The first of a batch may have been lodged before it was redeemed.
        uint64 first = parts[b - 1].first;
        JobId job = trials.jobOf(channels.receiptDigest(receiptOf(parts[b - 1].channelId, first)));
        if (JobId.unwrap(job) != 0 && trials.batchOf(job) == 0 && trials.stateOf(job) == JobState.Submitted) {
            trials.attach(job, placeOf(b));
            did("attach");
            return;
        }
        SignedReceipt memory r = receiptOf(parts[b - 1].channelId, uint64(bound(which, first, parts[b - 1].last)));
        if (JobId.unwrap(trials.jobOf(channels.receiptDigest(r))) != 0) return _idle();
        _lodge(watcher(who), r, b);
    }

    /// The next receipt of a channel, before it is redeemed.
    function lodgeLoose(uint256 who, uint256 seed, uint256 which) private {
        uint256 i = find(seed, which % 2 == 0 ? ChannelState.Open : ChannelState.Closing);
        if (i == ids.length) return _idle();
        SignedReceipt memory r = receiptOf(ids[i], channelAt(i).sequence + 1);
        if (JobId.unwrap(trials.jobOf(channels.receiptDigest(r))) != 0) return _idle();
        _lodge(watcher(who), r, 0);
    }

    function _lodge(address who, SignedReceipt memory r, uint256 b) private {
        Place memory place;
        if (b != 0) place = placeOf(b);
        bytes memory signature = signed(r.channelId, r);
        vm.prank(who);
        jobs.push(trials.lodge(r, signature, place));
    }

    function tokensTarget(uint256 which) internal pure returns (Target memory) {
        return Target(TargetKind.Tokens, uint16(which), 0, 0, 0, 0);
    }

    function demandTokens(uint256 who, uint256 seed, uint256 which) external step("tokens") {
        which %= 2;
        for (uint256 k; k < jobs.length; k++) {
            JobId job = jobs[(seed % jobs.length + k) % jobs.length];
            if (trials.stateOf(job) != JobState.Submitted || tokensAsked[job][which]) continue;
            if (block.timestamp > trials.trial(job).deadline) continue;
            IChallenges.DemandProof memory p;
            p.nodeHash = tokensHash;
            vm.prank(watcher(who));
            challenges.demand(job, OpeningId.wrap(0), tokensTarget(which), p);
            tokensAsked[job][which] = true;
            return;
        }
        _idle();
    }

    function _opening(JobId job, uint256 which) private view returns (IChallenges.Opening memory) {
        return challenges.opening(challenges.openingId(job, tokensTarget(which)));
    }

    function answerTokens(uint256 seed) external step("answer") {
        for (uint256 k; k < 2 * jobs.length; k++) {
            JobId job = jobs[(seed % jobs.length + k / 2) % jobs.length];
            IChallenges.Opening memory o = _opening(job, k % 2);
            if (trials.stateOf(job) != JobState.Submitted || o.state != IChallenges.OpeningState.Demanded) continue;
            if (block.timestamp > o.turnEnd) continue;
            return challenges.answer(job, tokensTarget(k % 2), tokensHash, 1, 8, sequence);
        }
        _idle();
    }

    function equivocate(uint256 who, uint256 seed, uint256 mood) external step("equivocate") {
        // Rarely, or nothing would be left.
        if (ids.length == 0 || mood % 8 != 0) return _idle();
        bytes32 id = ids[seed % ids.length];
        (SignedReceipt memory a, SignedReceipt memory b) = (receiptOf(id, 1), receiptOf(id, 1));
        b.layersRoot = "another";
        (bytes memory signatureA, bytes memory signatureB) = (signed(id, a), signed(id, b));
        guilty[channels.channel(id).node] = true;
        vm.prank(watcher(who));
        trials.convictEquivocation(a, signatureA, b, signatureB);
    }

    // ---------------------------------------------------------------------------------------------------- passers-by

    /// Ends what can be ended: the first of five ways that finds something to do, beginning anywhere.
    function end(uint256 seed, uint256 begin) external step("end") {
        for (uint256 i; i < 6; i++) {
            uint256 way = (begin % 6 + i) % 6;
            if (way == 0 && release(seed)) return;
            if (way == 1 && refund(seed)) return;
            if (way == 2 && withheld(seed)) return;
            if (way == 3 && acquit(seed)) return;
            if (way == 4 && silent(seed)) return;
            if (way == 5 && reclaim(seed)) return;
        }
        _idle();
    }

    function release(uint256 seed) public returns (bool) {
        for (uint256 k; k < batchCount(); k++) {
            uint256 id = (seed % batchCount() + k) % batchCount() + 1;
            IChannels.Batch memory b = channels.batch(id);
            if (b.state != IChannels.BatchState.Pending || block.timestamp <= b.lodgeEnd) continue;
            if (b.unanswered != 0 || b.openTrials != 0 || nodes.isConvicted(b.node)) continue;
            channels.release(id);
            return did("release");
        }
        return false;
    }

    function refund(uint256 seed) public returns (bool) {
        for (uint256 k; k < batchCount(); k++) {
            uint256 id = (seed % batchCount() + k) % batchCount() + 1;
            IChannels.Batch memory b = channels.batch(id);
            bool isVoid = b.state == IChannels.BatchState.Void
                || (b.state == IChannels.BatchState.Pending && nodes.isConvicted(b.node));
            if (!isVoid || b.refunded != 0) continue;
            channels.refund(placeOf(id));
            return did("refund");
        }
        return false;
    }

    function withheld(uint256 seed) public returns (bool) {
        for (uint256 k; k < batchCount(); k++) {
            uint256 id = (seed % batchCount() + k) % batchCount() + 1;
            IChannels.Batch memory b = channels.batch(id);
            bool isVoid = b.state == IChannels.BatchState.Void || nodes.isConvicted(b.node);
            for (uint256 i; i < asked[id].length; i++) {
                bytes32 channelId = parts[id - 1].channelId;
                IChannels.ReceiptDemand memory d = channels.receiptDemand(id, channelId, asked[id][i]);
                if (d.state != IChannels.DemandState.Demanded || (!isVoid && block.timestamp <= d.deadline)) continue;
                channels.receiptTimeout(id, channelId, asked[id][i]);
                return did("withheld");
            }
        }
        return false;
    }

    function acquit(uint256 seed) public returns (bool) {
        for (uint256 k; k < jobs.length; k++) {
            JobId job = jobs[(seed % jobs.length + k) % jobs.length];
            if (trials.stateOf(job) != JobState.Submitted || block.timestamp <= trials.trial(job).deadline) continue;
            if (!challenges.settled(job)) continue;
            trials.acquit(job);
            return did("acquit");
        }
        return false;
    }

    function silent(uint256 seed) public returns (bool) {
        for (uint256 k; k < 2 * jobs.length; k++) {
            JobId job = jobs[(seed % jobs.length + k / 2) % jobs.length];
            IChallenges.Opening memory o = _opening(job, k % 2);
            if (trials.stateOf(job) != JobState.Submitted || o.state != IChallenges.OpeningState.Demanded) continue;
            if (block.timestamp <= o.turnEnd) continue;
            guilty[trials.trial(job).node] = true;
            challenges.timeout(job, tokensTarget(k % 2));
            return did("silent");
        }
        return false;
    }

    function reclaim(uint256 seed) public returns (bool) {
        for (uint256 k; k < WATCHERS * jobs.length; k++) {
            JobId job = jobs[(seed % jobs.length + k / WATCHERS) % jobs.length];
            address who = watcher(k);
            if (trials.stateOf(job) != JobState.Slashed || challenges.feesPaid(job, who) == 0) continue;
            vm.prank(who);
            challenges.reclaimFees(job);
            return did("reclaim");
        }
        return false;
    }

    function closeAll() external {
        for (uint256 i; i < ids.length; i++) {
            IChannels.Channel memory c = channelAt(i);
            if (c.state == ChannelState.Open) {
                vm.prank(c.user);
                channels.requestClose(ids[i]);
            }
        }
        skip(params.closeDelay + 1);
        for (uint256 i; i < ids.length; i++) {
            if (channelAt(i).state == ChannelState.Closing) channels.close(ids[i]);
        }
    }

    function pass(uint256 time) external step("pass") {
        vm.roll(block.number + 1);
        vm.warp(block.timestamp + bound(time, 1, 8));
    }

    // ---------------------------------------------------------------------------------------------------- what is so

    /// @notice notes the batches' states; reverts on a step that is none, and on an innocent node's conviction
    function observe() external {
        for (uint256 b = 1; b <= batchCount(); b++) {
            IChannels.BatchState now_ = channels.batch(b).state;
            if (now_ != seen[b]) assertLt(uint8(seen[b]), uint8(IChannels.BatchState.Released), "an end changed");
            seen[b] = now_;
        }
        for (uint256 i; i < people.length; i++) {
            assertEq(nodes.isConvicted(people[i]), guilty[people[i]], "guilt");
        }
    }

    /// @notice what is pledged for a node's pending batches
    function pledgedFor(address node) external view returns (uint256 sum) {
        for (uint256 b = 1; b <= batchCount(); b++) {
            IChannels.Batch memory batch = channels.batch(b);
            if (batch.node != node || batch.state != IChannels.BatchState.Pending) continue;
            sum += 2 * batch.amount > params.minBond ? 2 * batch.amount : params.minBond;
        }
    }

    /// @notice what channels and batches hold
    function committed() external view returns (uint256 sum) {
        for (uint256 i; i < ids.length; i++) {
            IChannels.Channel memory c = channelAt(i);
            if (c.state != ChannelState.Closed) sum += c.deposit - c.claimed;
        }
        for (uint256 b = 1; b <= batchCount(); b++) {
            IChannels.Batch memory batch = channels.batch(b);
            bool holds = batch.state == IChannels.BatchState.Pending
                || (batch.state == IChannels.BatchState.Void && batch.refunded == 0);
            if (holds) sum += batch.amount;
        }
    }

    /// @notice fees that nobody has got
    function fees() external view returns (uint256 sum) {
        for (uint256 b = 1; b <= batchCount(); b++) {
            for (uint256 i; i < asked[b].length; i++) {
                IChannels.ReceiptDemand memory d = channels.receiptDemand(b, parts[b - 1].channelId, asked[b][i]);
                if (d.state == IChannels.DemandState.Demanded) sum += params.receiptFee;
            }
        }
        for (uint256 i; i < jobs.length; i++) {
            JobState state = trials.stateOf(jobs[i]);
            if (state == JobState.Submitted) sum += params.receiptFee;
            for (uint256 w; w < WATCHERS && state != JobState.Final; w++) {
                sum += challenges.feesPaid(jobs[i], watcher(w));
            }
        }
    }
}
