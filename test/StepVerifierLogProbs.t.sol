// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../contracts/interfaces/IStepVerifier.sol";
import {Judging} from "./support/Judging.sol";
import {Naive} from "./support/Naive.sol";

/// The opcodes of log-probabilities.
contract StepVerifierLogProbsTest is Judging {
    int256[] internal logits;
    int256[] internal order;

    function setUp() public override {
        super.setUp();
        claim.layer = 4;
        claim.row = 3;
        d.dtype = 2;
    }

    // --------------------------------------------------------------------------------------------------------- TOP

    uint256 internal constant N = 300;

    /// 300 logits, every fourth equal to one before, and the first `n` of them in order
    function ranked(uint256 n) internal {
        logits = vector(N, 30);
        for (uint256 i = 4; i < N; i += 4) {
            logits[i] = logits[i - 3];
        }
        (logits[17], logits[200]) = (Naive.CL, Naive.CL);
        bool[] memory taken = new bool[](N);
        for (uint256 k; k < n; k++) {
            uint256 first = N;
            for (uint256 j; j < N; j++) {
                if (!taken[j] && (first == N || logits[j] > logits[first])) first = j;
            }
            taken[first] = true;
            order.push(int256(first));
        }
        d.operands[0] = operand(OP, I32, tensor(logits, I32));
        d.opcode = 33;
        d.p[0] = int32(int256(N));
        d.inner = uint32(n);
        expected = order;
    }

    /// element `i` is claimed to be what `expected` says
    function judged(uint256 i, uint256 against) internal returns (int256 computed) {
        claim.element = uint32(i);
        hint = uint32(against);
        delete reads;
        if (i > 0) readOp(claim.op, i - 1, 1, I32);
        if (expected[i] >= 0 && expected[i] < int256(N)) readOp(0, uint256(expected[i]), 1, I32);
        if (i > 0) readOp(0, uint256(expected[i - 1]), 1, I32);
        readOp(0, against, 1, I32);
        int256 claimed;
        (claimed, computed) = judge(witness(I32));
        assertEq(claimed, expected[i]);
    }

    function claimInstead(uint256 i, int256 token) internal {
        expected[i] = token;
        ops[claim.op] = encode(expected, I32);
    }

    /// Nothing can be held against a right element, not even a token that comes before it elsewhere in the order.
    function test_top() public {
        ranked(20);
        place();
        for (uint256 i; i < 20; i++) {
            for (uint256 j; j < N; j += 13) {
                assertEq(judged(i, j), order[i]);
            }
            for (uint256 j; j < 20; j++) {
                assertEq(judged(i, uint256(order[j])), order[i]);
            }
        }
    }

    /// The right token is held against one that comes later or too early, one that is none, and one below zero.
    function test_top_of_others() public {
        ranked(20);
        place();
        for (uint256 i; i < 20; i++) {
            int256[4] memory wrong = [
                i == 19 ? int256((uint256(order[19]) + 1) % N) : order[i + 1],
                i == 0 ? int256((uint256(order[0]) + 5) % N) : order[i - 1],
                int256(N),
                -1
            ];
            for (uint256 k; k < 4; k++) {
                claimInstead(i, wrong[k]);
                assertEq(judged(i, uint256(order[i])), order[i]);
                // A token that is no better proves nothing.
                if (i > 0) assertEq(judged(i, uint256(order[i - 1])), wrong[k]);
                claimInstead(i, order[i]);
            }
        }
    }

    function test_top_of_equals() public {
        ranked(1);
        for (uint256 i; i < N; i++) {
            logits[i] = -Naive.CL;
        }
        ops[0] = encode(logits, I32);
        (order, expected, d.inner) = (list(0, 1), list(0, 1), 2);
        place();
        assertEq(judged(1, 2), 1);
        assertEq(judged(1, 0), 1);
        claimInstead(1, 3);
        assertEq(judged(1, 2), 2);
        assertEq(judged(1, 1), 1);
        assertEq(judged(1, 4), 3);
        // Twice the same.
        claimInstead(1, 0);
        assertEq(judged(1, 1), 1);
        claimInstead(0, 2);
        assertEq(judged(0, 0), 0);
    }

    function test_top_changed() public {
        ranked(20);
        place();
        claimInstead(7, order[9]);
        assertEq(judged(7, uint256(order[7])), order[7]);
        hinted = true;
        checkMutations(witness(I32));
    }

    function test_top_of_a_hint_outside() public {
        ranked(3);
        place();
        assertEq(judged(2, N - 1), order[2]);
        hint = uint32(N);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.OutsideOperand.selector, N, 1, N));
        verifier.judge(traceContext(), modelShape(), claim, witness(I32));
    }

    function test_top_after_no_token() public {
        ranked(3);
        place();
        claimInstead(1, -5);
        claim.element = 2;
        hint = uint32(uint256(order[2]));
        delete reads;
        readOp(claim.op, 1, 1, I32);
        readOp(0, uint256(order[2]), 1, I32);
        readOp(0, 0, 1, I32);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, -5));
        verifier.judge(traceContext(), modelShape(), claim, witness(I32));
    }

    // -------------------------------------------------------------------------------------------------------- MASS

    uint256 internal size;
    int256 internal best;

    function naiveMass(uint256 distance, uint256[] memory t) internal pure returns (uint256) {
        uint256 x = Naive.rounded((distance > 2 ** 30 ? 2 ** 30 : distance) * 23637, 15);
        uint256 i = x / 8192;
        uint256 j = x % 8192 / 32;
        uint256 e = t[j] - ((t[j] - t[j + 1]) * (x % 32) + 16) / 32;
        return i > 22 ? 0 : i == 0 ? e * 64 : Naive.rounded(e * 64, i);
    }

    /// groups of `g` logits up to 2^bits behind the first
    function masses(uint256 g, uint256 groups, uint256 bits) internal {
        size = g;
        best = 123456;
        logits = vector(g * groups, bits);
        for (uint256 i; i < g * groups; i++) {
            logits[i] = best - int256(Naive.mag(logits[i]));
        }
        logits[g / 2] = best;
        massed(groups);
    }

    function massed(uint256 groups) internal {
        uint256[] memory t = expTable();
        d.operands[0] = operand(OP, I32, tensor(logits, I32));
        d.operands[1] = operand(OP, I32, tensor(list(best), I32));
        d.operands[2] = operand(TABLE, U16, 0);
        d.opcode = 34;
        d.outer = uint32(groups);
        d.p[0] = int32(int256(size));
        expected = new int256[](groups);
        for (uint256 i; i < groups * size; i++) {
            expected[i / size] += int256(naiveMass(uint256(best - logits[i]), t));
        }
    }

    function readMass(uint256 i) internal {
        readOp(0, size * i, size, I32);
        readOp(1, 0, 1, I32);
        readTable(0, 0, 257, U16);
    }

    function test_mass() public {
        masses(37, 4, 18);
        check(readMass);
    }

    function test_mass_of_the_far() public {
        masses(50, 3, 30);
        check(readMass);
    }

    /// Around every octave, and where nothing has any mass.
    function test_mass_at_the_ends() public {
        (size, best) = (96, Naive.CL);
        logits = new int256[](96);
        for (uint256 i; i < 96; i++) {
            logits[i] = best - int256(i / 4 * 11357 + i % 4);
        }
        (logits[90], logits[91], logits[92]) = (best - 2 ** 18, best - 2 ** 18 - 1, best - 2 ** 18 + 1);
        (logits[93], logits[94], logits[95]) = (-Naive.CL, best, best - 2 ** 30);
        massed(1);
        place();
        checkElement(0, readMass);
    }

    /// The most that a group can have.
    function test_mass_of_the_heaviest() public {
        (size, best) = (512, -Naive.CL);
        logits = new int256[](512);
        for (uint256 i; i < 512; i++) {
            logits[i] = best;
        }
        massed(1);
        assertEq(expected[0], 2 ** 30);
        place();
        checkElement(0, readMass);
    }

    function test_mass_above_the_largest() public {
        masses(37, 1, 18);
        logits[36] = best + 1;
        ops[0] = encode(logits, I32);
        place();
        prepare(0, readMass);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, best));
        verifier.judge(traceContext(), modelShape(), claim, witness(I32));
    }

    // ----------------------------------------------------------------------------------------------------- LOG_SUM

    int256[] internal ln;
    uint256 internal total;

    /// not the logarithms, but as increasing as they are
    function logarithms() internal {
        for (uint256 i; i < 257; i++) {
            ln.push(int256(i) * 44 + int256(Naive.mag(random(3))));
        }
        tables.push(encode(ln, U16));
    }

    function logSum(int256 max, int256[] memory groups) internal {
        if (ln.length == 0) logarithms();
        d.operands[0] = operand(OP, I32, tensor(list(max), I32));
        d.operands[1] = operand(OP, I32, tensor(groups, I32));
        d.operands[2] = operand(TABLE, U16, 0);
        d.opcode = 35;
        size = groups.length;
        d.p[0] = int32(int256(size));
        total = 0;
        for (uint256 i; i < size; i++) {
            total += uint256(groups[i]);
        }
        uint256 k = Naive.bitlen(total) - 22;
        uint256 x = total * 2 / 2 ** k - 2 ** 22;
        int256 step = (ln[x / 16384 + 1] - ln[x / 16384]) * int256(x % 16384);
        int256 rounded = (step + 8192 - int256(uint256(step + 8192) % 16384)) / 16384;
        expected = list(max + int256((k * 181704 + 8) / 16) + ln[x / 16384] + rounded);
    }

    function readLogSum(uint256) internal {
        readOp(0, 0, 1, I32);
        readOp(1, 0, size, I32);
        uint256 k = Naive.bitlen(total) - 22;
        readTable(0, (total * 2 / 2 ** k - 2 ** 22) / 16384, 2, U16);
    }

    function test_log_sum() public {
        int256[] memory groups = magnitudes(96, 29);
        groups[3] = 2 ** 21 + 12345;
        logSum(-77777, groups);
        check(readLogSum);
    }

    /// Alone, the largest logit is certain.
    function test_log_sum_of_the_least() public {
        logSum(Naive.CL, list(0, 2 ** 21));
        assertEq(expected[0], Naive.CL + ln[0]);
        check(readLogSum);
    }

    function test_log_sum_of_the_most() public {
        int256[] memory groups = new int256[](2048);
        for (uint256 i; i < 2048; i++) {
            groups[i] = 2 ** 31 - 1;
        }
        logSum(Naive.CL, groups);
        place();
        checkElement(0, readLogSum);
    }

    /// forge-config: default.fuzz.runs = 24
    function testFuzz_log_sum(uint256 a, uint256 b) public {
        logSum(5, list(int256(a % 2 ** 21 + 2 ** 21), int256(b % 2 ** (a % 32))));
        place();
        checkElement(0, readLogSum);
    }

    function test_log_sum_of_too_little() public {
        logSum(0, list(0, 2 ** 21));
        place();
        ops[1] = encode(list(1, 2 ** 21 - 2), I32);
        prepare(0, readLogSum);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, 2 ** 21 - 1));
        verifier.judge(traceContext(), modelShape(), claim, witness(I32));
    }

    // ---------------------------------------------------------------------------------------------------- LOG_PROB

    int256[] internal top;
    int256 internal sum;

    function logProb(int256 sum_) internal {
        sum = sum_;
        logits = vector(101, 29);
        (logits[0], logits[50], logits[100]) = (-Naive.CL, 0, 2 ** 29);
        for (uint256 i; i < 20; i++) {
            top.push(int256((i * 37 + 100) % 101));
        }
        d.operands[0] = operand(OP, I32, tensor(logits, I32));
        d.operands[1] = operand(OP, I32, tensor(list(sum), I32));
        d.operands[2] = operand(OP, I32, tensor(top, I32));
        d.operands[3] = operand(OP, I32, tensor(list(0), I32));
        d.opcode = 36;
        d.p[0] = 101;
        d.inner = 21;
        expected = new int256[](21);
        for (uint256 i; i < 21; i++) {
            int256 behind = sum - logits[i == 0 ? 0 : uint256(top[i - 1])];
            expected[i] = behind > Naive.CL ? -Naive.CL : -behind;
        }
    }

    function readLogProb(uint256 i) internal {
        readOp(1, 0, 1, I32);
        if (i == 0) readOp(3, 0, 1, I32);
        else readOp(2, i - 1, 1, I32);
        readOp(0, i == 0 ? 0 : uint256(top[i - 1]), 1, I32);
    }

    function test_log_prob() public {
        logProb(2 ** 29 + 54321);
        check(readLogProb);
    }

    function test_log_prob_of_the_certain() public {
        logProb(2 ** 29);
        assertEq(expected[1], 0);
        check(readLogProb);
    }

    function test_log_prob_of_the_impossible() public {
        logProb(Naive.CL + 2 ** 18);
        assertEq(expected[0], -Naive.CL);
        check(readLogProb);
    }

    function test_log_prob_above_the_sum() public {
        logProb(2 ** 29);
        place();
        ops[1] = encode(list(2 ** 29 - 1), I32);
        prepare(1, readLogProb);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, 2 ** 29));
        verifier.judge(traceContext(), modelShape(), claim, witness(I32));
    }

    function test_log_prob_of_nothing_else() public {
        logProb(2 ** 29);
        d.inner = 1;
        expected = list(expected[0]);
        place();
        prepare(0, readLogProb);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.Malformed.selector, 36));
        verifier.judge(traceContext(), modelShape(), claim, witness(I32));
    }
}
