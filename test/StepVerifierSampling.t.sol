// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../contracts/interfaces/IStepVerifier.sol";
import {Judging} from "./support/Judging.sol";
import {Naive} from "./support/Naive.sol";

/// The opcodes that choose a token.
contract StepVerifierSamplingTest is Judging {
    uint256 internal constant BINS = 256;

    function setUp() public override {
        super.setUp();
        claim.layer = 4;
        claim.row = 3;
        d.dtype = 2;
        seed = keccak256("seed");
    }

    function word(uint256 a, uint256 b, uint256 c, uint256 d_, uint256 e) internal pure returns (uint256) {
        return a | b << 32 | c << 64 | d_ << 96 | e << 128;
    }

    // ------------------------------------------------------------------------------------------------------ TEMPER

    /// Position 22: the prompt's twenty tokens and three of the output, fewer than 64.
    function temper(uint256 inverse, uint256 penalty) internal {
        sampling = word(inverse, 9, 9, 9, penalty);
        int256[] memory l = vector(101, 30);
        for (uint256 i; i < 23; i++) {
            l[tokens[i]] = vector(1, 20)[0];
        }
        (l[0], l[37], l[74]) = (Naive.CL, -Naive.CL, 0);
        tempered(l, inverse, penalty, 0);
        check(readTemper);
    }

    uint256 internal from;

    function tempered(int256[] memory l, uint256 inverse, uint256 penalty, uint256 first) internal {
        from = first;
        d.operands[0] = operand(OP, I32, tensor(l, I32));
        d.operands[1] = operand(TOKEN, I32, 0);
        d.opcode = 26;
        d.outer = uint32(l.length);
        d.p[0] = 64;
        expected = new int256[](l.length);
        for (uint256 i; i < l.length; i++) {
            int256 x = l[i];
            for (uint256 k = first; penalty != 0 && k <= position(); k++) {
                if (tokens[k] != i) continue;
                x = x > 0 ? Naive.smulrs(x, 2 ** 27 / penalty, 15) : Naive.smulrs(x, penalty, 12);
                break;
            }
            expected[i] = Naive.smulrs(x, inverse == 0 ? 4096 : inverse, 12);
        }
    }

    function readTemper(uint256 i) internal {
        readOp(0, i, 1, I32);
        if (uint32(sampling >> 128) == 0) return;
        if (from < nIn) readTokens(from, nIn - from);
        uint256 begin = from > nIn ? from : nIn;
        if (position() >= nIn) readTokens(begin, position() + 1 - begin);
    }

    function test_temper_nothing() public {
        temper(0, 0);
    }

    function test_temper_by_a_temperature() public {
        temper(5120, 0);
    }

    function test_temper_by_a_penalty() public {
        temper(0, 4506);
    }

    function test_temper_by_the_strongest() public {
        temper(1 << 20, 65535);
    }

    function test_temper_by_the_weakest() public {
        temper(1, 256);
    }

    function elements(uint256[] memory which) internal {
        place();
        for (uint256 i; i < which.length; i++) {
            checkElement(which[i], readTemper);
        }
    }

    /// The first row: only the prompt has tokens.
    function test_temper_of_the_first_row() public {
        claim.row = 0;
        sampling = word(5120, 0, 0, 0, 8192);
        tempered(vector(101, 30), 5120, 8192, 0);
        uint256[] memory which = new uint256[](3);
        (which[0], which[1], which[2]) = (tokens[0], tokens[19], tokens[20]);
        elements(which);
    }

    /// A prompt of 20 and 90 tokens of the output: 64 of them are all there is to see.
    function test_temper_of_a_late_row() public {
        for (uint256 i = tokens.length; i < 110; i++) {
            tokens.push(uint32(i));
        }
        tokens[100 - 64] = 97;
        tokens[100 - 63] = 98;
        (nOut, claim.row) = (90, 81);
        sampling = word(0, 0, 0, 0, 8192);
        tempered(vector(101, 30), 0, 8192, 37);
        uint256[] memory which = new uint256[](4);
        (which[0], which[1], which[2], which[3]) = (97, 98, 100, 50);
        elements(which);
    }

    // ---------------------------------------------------------------------------------------------------- MAX, SUM

    function reduction(uint8 opcode, bool extreme) internal {
        int256[] memory x = vector(2 * 37, 25);
        for (uint256 i; i < 37; i++) {
            // A group without a positive value, and one of the least there is.
            x[i] = extreme ? -(2 ** 31) : -int256(Naive.mag(x[i])) - 1;
        }
        if (extreme) x[37 + 5] = 2 ** 31 - 1;
        d.operands[0] = operand(OP, I32, tensor(x, I32));
        d.opcode = opcode;
        d.outer = 2;
        d.p[0] = 37;
        expected = opcode == 27 ? list(-(2 ** 31), -(2 ** 31)) : list(0, 0);
        for (uint256 i; i < 74; i++) {
            if (opcode == 29) expected[i / 37] += x[i];
            else if (x[i] > expected[i / 37]) expected[i / 37] = x[i];
        }
        check(readGroup);
    }

    function readGroup(uint256 i) internal {
        readOp(0, 37 * i, 37, I32);
    }

    function test_max() public {
        reduction(27, false);
    }

    function test_max_of_extremes() public {
        reduction(27, true);
    }

    function test_sum() public {
        reduction(29, false);
    }

    // --------------------------------------------------------------------------------------------------- HISTOGRAM

    uint256 internal constant G = 50;

    int256[] internal logits;
    int256 internal best;

    /// two groups of logits, up to 2^`bits` behind the first
    function distances(uint256 bits) internal {
        best = 123456;
        for (uint256 i; i < 2 * G; i++) {
            logits.push(best - int256(Naive.mag(random(bits))));
        }
        logits[60] = best;
        d.operands[0] = operand(OP, I32, tensor(logits, I32));
        d.operands[1] = operand(OP, I32, tensor(list(best), I32));
        d.opcode = 28;
        d.outer = uint32(BINS);
        d.inner = 2;
    }

    function bin(uint256 distance, uint256 shift) internal pure returns (uint256) {
        uint256 b = distance / 2 ** shift;
        return b > 255 ? 255 : b;
    }

    /// @param parent bin of the first histogram; 256 for none
    function histogram(bool masses, uint256 shift, uint256 parentShift, uint256 parent) internal {
        d.p = [int32(int256(G)), masses ? int32(1) : int32(0), int32(int256(shift)), int32(int256(parentShift))];
        uint256[] memory t;
        if (masses) {
            t = expTable();
            d.operands[2] = operand(TABLE, U16, 0);
        }
        if (parentShift != 0) d.operands[2] = operand(OP, I32, tensor(list(int256(parent), 77), I32));
        expected = new int256[](2 * BINS);
        for (uint256 i; i < 2 * G; i++) {
            uint256 distance = uint256(best - logits[i]);
            uint256 from_ = parent << parentShift;
            if (parentShift != 0) {
                if (bin(distance, parentShift) != parent) continue;
                distance -= from_;
            }
            uint256 x = Naive.mag(best - logits[i]);
            if (x > 2 ** 30) x = 2 ** 30;
            expected[
                2
                * bin(distance, shift)
                + i
                / G
            ] += masses ? int256((Naive.exp2neg(Naive.rounded(x * 23637, 15), t) + 4) / 8) : int256(1);
        }
        place();
        int256 total;
        for (uint256 i; i < 2 * BINS; i++) {
            total += expected[i];
            // The bins with something in them, their neighbours, and the ends.
            bool near = expected[i] != 0 || (i > 1 && expected[i - 2] != 0) || i < 2 || i >= 2 * BINS - 2;
            if (near) checkElement(i, readHistogram);
        }
        assertGt(total, 0, "nothing in any bin");
    }

    function readHistogram(uint256 i) internal {
        readOp(0, i % 2 * G, G, I32);
        readOp(1, 0, 1, I32);
        if (d.p[1] == 1) readTable(0, 0, 257, U16);
        if (d.p[3] != 0) readOp(2, 0, 1, I32);
    }

    function test_histogram_of_tokens() public {
        distances(18);
        histogram(false, 10, 0, 0);
    }

    function test_histogram_of_far_tokens() public {
        distances(30);
        logits[7] = -Naive.CL;
        ops[0] = encode(logits, I32);
        histogram(false, 10, 0, 0);
    }

    function test_histogram_within_a_bin() public {
        distances(12);
        histogram(false, 2, 10, 1);
    }

    function test_histogram_within_the_first_bin() public {
        distances(12);
        histogram(false, 2, 10, 0);
    }

    function test_histogram_within_the_last_bin() public {
        distances(19);
        histogram(false, 2, 10, 255);
    }

    function test_histogram_of_mass() public {
        distances(18);
        histogram(true, 10, 0, 0);
    }

    function test_histogram_of_mass_of_all() public {
        distances(10);
        histogram(true, 20, 0, 0);
    }

    /// Without a cut before there is nothing to refine.
    function test_histogram_within_no_bin() public {
        distances(12);
        d.p = [int32(int256(G)), 0, 2, 10];
        d.operands[2] = operand(OP, I32, tensor(list(256, 0), I32));
        expected = new int256[](2 * BINS);
        place();
        checkElement(0, readHistogram);
        checkElement(511, readHistogram);
    }

    function test_histogram_over_a_wrong_maximum() public {
        distances(12);
        ops[1] = encode(list(best - 1), I32);
        d.p = [int32(int256(G)), 0, 10, 0];
        expected = new int256[](2 * BINS);
        place();
        prepare(1, readHistogram);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, best - 1));
        judge(witness(I32));
    }

    // --------------------------------------------------------------------------------------------------------- CUT

    /// @param parent the cut before, if `hasParent`
    function cut(bool mass, bool hasParent, int256[] memory parent, int256[] memory result) internal {
        int256[] memory h = new int256[](BINS);
        (h[0], h[3], h[10], h[255]) = (2, 5, 2 ** 30 - 100, 10);
        d.operands[0] = operand(OP, I32, tensor(h, I32));
        if (hasParent) d.operands[1] = operand(OP, I32, tensor(parent, I32));
        d.opcode = 30;
        d.outer = 2;
        d.p[0] = mass ? int32(1) : int32(0);
        expected = result;
        place();
        checkElement(0, readCut);
        checkElement(1, readCut);
    }

    function readCut(uint256) internal {
        readOp(0, 0, 256, I32);
        if (d.operands[1] != 0) readOp(1, 0, 2, I32);
    }

    function rank(uint256 k, int256[] memory result) internal {
        sampling = word(4096, k, 0, 0, 0);
        cut(false, false, result, result);
    }

    function test_cut_of_all() public {
        rank(0, list(256, 0));
    }

    function test_cut_at_the_first() public {
        rank(2, list(0, 0));
    }

    function test_cut_at_a_rank() public {
        rank(3, list(3, 2));
    }

    function test_cut_at_a_rank_reached() public {
        rank(7, list(3, 2));
    }

    function test_cut_within_a_bin() public {
        sampling = word(4096, 9, 0, 0, 0);
        cut(false, true, list(3, 3), list(3, 2));
    }

    function test_cut_within_no_bin() public {
        sampling = word(4096, 9, 0, 0, 0);
        cut(false, true, list(256, 0), list(256, 0));
    }

    function test_cut_within_a_bin_too_late() public {
        sampling = word(4096, 9, 0, 0, 0);
        cut(false, true, list(3, 9), list(256, 0));
    }

    function test_cut_by_no_mass() public {
        cut(true, false, list(0), list(256, 0));
    }

    /// The whole is 2^30 − 83; the least share of it, rounded up, is 2^14.
    function test_cut_by_the_least_mass() public {
        sampling = word(4096, 0, 1, 0, 0);
        cut(true, false, list(0), list(10, 7));
    }

    function test_cut_by_all_mass() public {
        sampling = word(4096, 0, 1 << 16, 0, 0);
        cut(true, false, list(0), list(255, 2 ** 30 - 93));
    }

    // --------------------------------------------------------------------------------------------------- THRESHOLD

    function threshold(int256 max, int256[3] memory bins, int256 result) internal {
        d.operands[0] = operand(OP, I32, tensor(list(max), I32));
        for (uint256 i; i < 3; i++) {
            d.operands[i + 1] = operand(OP, I32, tensor(list(bins[i], 99), I32));
        }
        d.opcode = 31;
        d.p = [int32(10), 2, 0, 0];
        expected = list(result);
        check(readThreshold);
    }

    function readThreshold(uint256) internal {
        for (uint256 i; i < 4; i++) {
            readOp(i, 0, 1, I32);
        }
    }

    function test_threshold_of_all() public {
        threshold(5, [int256(256), 256, 256], -Naive.CL);
    }

    function test_threshold_by_distance() public {
        sampling = word(4096, 0, 0, 49081, 0);
        threshold(-5, [int256(256), 256, 256], -5 - 49081);
    }

    function test_threshold_by_rank() public {
        sampling = word(4096, 0, 0, 49081, 0);
        threshold(700, [int256(3), 7, 9], 700 - (3 * 1024 + 8 * 4 - 1));
    }

    function test_threshold_by_rank_without_a_finer_bin() public {
        threshold(700, [int256(254), 256, 255], 700 - (254 * 1024 + 1024 - 1));
    }

    function test_threshold_by_mass() public {
        threshold(700, [int256(3), 7, 2], 700 - (3 * 1024 - 1));
    }

    function test_threshold_at_the_end() public {
        sampling = word(4096, 0, 0, (1 << 24) - 1, 0);
        threshold(-Naive.CL + 5, [int256(255), 0, 255], -Naive.CL);
    }

    // ------------------------------------------------------------------------------------------------------ SAMPLE

    int256[] internal noises;
    int256 internal least;

    uint256 internal constant N = 300;

    /// 300 logits within a few units, and the naive choice among them
    function sampled(uint256 inverse) internal returns (uint256 first) {
        sampling = word(inverse, 0, 0, 0, 0);
        logits = vector(N, 16);
        least = -20000;
        for (uint256 i; i < 8193; i++) {
            // Not the real variates, but as increasing as they are.
            noises.push(int256(i) * 43 - 180_000 + int256(Naive.mag(random(5))));
        }
        int256 highest = type(int256).min;
        for (uint256 i; i < N; i++) {
            if (logits[i] < least) continue;
            int256 z = logits[i] + (inverse == 0 ? int256(0) : noiseOf(i));
            if (z > highest) (first, highest) = (i, z);
        }
    }

    function noiseOf(uint256 j) internal view returns (int256) {
        uint256 v = Naive.noiseWord(seed, position(), j);
        (uint256 n,) = Naive.noisePlace(v);
        return Naive.noise(v, noises[n], noises[n + 1]);
    }

    function placed(uint256 claimed) internal {
        tokens[nIn + claim.row] = uint32(claimed);
        d.operands[0] = operand(OP, I32, tensor(logits, I32));
        d.operands[1] = operand(TOKEN, I32, 1);
        d.operands[2] = operand(OP, I32, tensor(list(least), I32));
        d.operands[3] = operand(TABLE, I32, 0);
        tables.push(encode(noises, I32));
        d.opcode = 32;
        d.p[0] = int32(int256(N));
        expected = list(int256(claimed));
        place();
        claim.element = 0;
    }

    function judged(uint256 claimed, uint256 against) internal returns (int256 computed) {
        hint = uint32(against);
        delete reads;
        readToken(nIn + claim.row);
        readOp(0, claimed, 1, I32);
        readOp(0, hint, 1, I32);
        readOp(1, 0, 1, I32);
        if (uint32(sampling) != 0) {
            uint256[2] memory both = [claimed, against];
            for (uint256 i; i < 2; i++) {
                (uint256 n,) = Naive.noisePlace(Naive.noiseWord(seed, position(), both[i]));
                readTable(0, n, 2, I32);
            }
        }
        int256 actual;
        (actual, computed) = judge(witness(I32));
        assertEq(actual, int256(claimed));
    }

    /// Nothing can be held against the right token, and the right token against any other.
    function sample(uint256 inverse) internal {
        uint256 right = sampled(inverse);
        placed(right);
        for (uint256 i; i < N; i += 7) {
            assertEq(judged(right, i), int256(right));
        }
    }

    function test_sample() public {
        sample(4096);
    }

    function test_sample_without_noise() public {
        sample(0);
    }

    function another(uint256 inverse, uint256 at) internal {
        uint256 right = sampled(inverse);
        uint256 wrong = (right + at) % N;
        placed(wrong);
        assertEq(judged(wrong, right), int256(right));
    }

    /// forge-config: default.fuzz.runs = 16
    function testFuzz_sample_another(uint256 inverse, uint256 at, bytes32 seed_) public {
        seed = seed_;
        another(inverse % 3, at % (N - 1) + 1);
    }

    function test_sample_changed() public {
        uint256 right = sampled(4096);
        placed((right + 1) % N);
        judged((right + 1) % N, right);
        hinted = true;
        checkMutations(witness(I32));
    }

    /// A token below the threshold loses to any that may be sampled, and wins against none.
    function test_sample_below_the_threshold() public {
        sampled(4096);
        (logits[5], logits[6], logits[7]) = (-20001, -20000, 2 ** 20);
        least = -20000;
        placed(5);
        assertEq(judged(5, 6), 6);
        assertEq(judged(5, 5), 5);
        logits[8] = -20001;
        delete tables;
        delete descriptors;
        delete ops;
        placed(6);
        assertEq(judged(6, 5), 6);
        assertEq(judged(6, 8), 6);
    }

    function test_sample_of_equals() public {
        sampled(0);
        for (uint256 i; i < N; i++) {
            logits[i] = 17;
        }
        placed(100);
        assertEq(judged(100, 101), 100);
        assertEq(judged(100, 100), 100);
        assertEq(judged(100, 99), 99);
        assertEq(judged(100, 0), 0);
    }

    function test_sample_of_what_does_not_follow() public {
        uint256 right = sampled(4096);
        placed(right);
        tokens[nIn + claim.row] = uint32(right + 1);
        readToken(nIn + claim.row);
        (, int256 computed) = judge(witness(I32));
        assertEq(computed, int256(right + 1));
        checkMutations(witness(I32));
    }

    /// One word in 2^32 is zero; it counts as one. The ends of the table are reached.
    function test_noise_of_extremes() public pure {
        uint256[6] memory v = [uint256(1), 2, 3, 0x80000000, 0xffffffff, 0x00010000];
        uint256[6] memory n = [uint256(0), 256, 384, 31 * 256, 8191, 16 * 256];
        for (uint256 i; i < 6; i++) {
            (uint256 at, uint256 part) = Naive.noisePlace(v[i]);
            assertEq(at, n[i]);
            assertEq(part, i == 4 ? 63 : 0);
        }
    }
}
