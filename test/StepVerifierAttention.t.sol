// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Judging} from "./support/Judging.sol";
import {Naive} from "./support/Naive.sol";

/// The opcodes on the context: grouped keys and values, positions in and behind the first block.
contract StepVerifierAttentionTest is Judging {
    uint256 internal constant HEADS = 4;
    uint256 internal constant PER = 2;
    uint256 internal constant KV = HEADS / PER;

    uint256 internal n;

    function at(uint32 t) internal {
        claim.row = t;
        n = t + 1;
    }

    // ------------------------------------------------------------------------------------------------------- SCORES

    uint256 internal constant G = 40;

    /// keys, their scales, and something else, exported at every position; at the claimed one by operators
    function scores(uint32 t) internal {
        at(t);
        int256[] memory q = vector(HEADS * G, 7);
        int256[] memory qs = scales(HEADS, -12);
        d.operands[0] = operand(OP, I8, tensor(q, I8));
        d.operands[1] = operand(OP, I32, tensor(qs, I32));
        masks[1] = 4 | 8 | 32;
        expected = new int256[](HEADS * n);
        for (uint256 j; j < n; j++) {
            int256[] memory k = vector(KV * G, 7);
            int256[] memory ks = scales(KV, -9);
            if (j == t) {
                tensor(k, I8);
                tensor(ks, I32);
                tensor(vector(1, 7), I8);
                tensor(vector(9, 15), I16);
            } else {
                exportTensor(claim.layer, j, k, I8);
                exportTensor(claim.layer, j, ks, I32);
                exportTensor(claim.layer, j, vector(9, 15), I16);
            }
            for (uint256 h; h < HEADS; h++) {
                expected[h * n + j] = score(q, qs, k, ks, h);
            }
        }
        d.operands[2] = operand(CACHE, I8, 0);
        d.operands[3] = operand(CACHE, I32, 1);
        d.opcode = 13;
        d.dtype = 2;
        d.outer = uint32(HEADS);
        d.div = 1;
        d.p = [int32(int256(G)), int32(int256(PER)), 0, 0];
        check(readScores);
    }

    function score(int256[] memory q, int256[] memory qs, int256[] memory k, int256[] memory ks, uint256 h)
        internal
        pure
        returns (int256)
    {
        uint256 kv = h / PER;
        int256 acc;
        for (uint256 x; x < G; x++) {
            acc += q[h * G + x] * k[kv * G + x];
        }
        return Naive.smulrs(acc, uint256(qs[2 * h] * ks[2 * kv]), -qs[2 * h + 1] - ks[2 * kv + 1]);
    }

    function readScores(uint256 i) internal {
        (uint256 h, uint256 j) = (i / n, i % n);
        readOp(0, h * G, G, I8);
        readOp(1, 2 * h, 2, I32);
        readCache(0, j, 1, h / PER * G, G, I8);
        readCache(1, j, 1, h / PER * 2, 2, I32);
    }

    function test_scores_at_the_first_position() public {
        scores(0);
    }

    function test_scores_at_a_later_position() public {
        scores(5);
    }

    // ---------------------------------------------------------------------------------------------- ROW_MAX, ROW_SUM

    uint256 internal blockSize;

    function rowReduction(uint8 opcode, uint32 t, uint256 size) internal {
        at(t);
        blockSize = size;
        uint256 dtype = opcode == 14 ? I32 : U16;
        int256[] memory s = opcode == 14 ? vector(HEADS * n, 30) : magnitudes(HEADS * n, 15);
        d.operands[0] = operand(OP, dtype, tensor(s, dtype));
        d.opcode = opcode;
        d.dtype = 2;
        d.div = uint32(size);
        d.inner = uint32(HEADS);
        d.p[0] = int32(int256(size));
        expected = new int256[]((n + size - 1) / size * HEADS);
        for (uint256 i; i < expected.length; i++) {
            (uint256 b, uint256 h) = (i / HEADS, i % HEADS);
            int256 r = opcode == 14 ? type(int256).min : int256(0);
            for (uint256 j; j < n && j < (b + 1) * size; j++) {
                int256 x = s[h * n + j];
                r = opcode == 14 ? (x > r ? x : r) : r + x;
            }
            expected[i] = r;
        }
        check(readReduction);
    }

    function readReduction(uint256 i) internal {
        (uint256 b, uint256 h) = (i / HEADS, i % HEADS);
        uint256 len = n - b * blockSize < blockSize ? n - b * blockSize : blockSize;
        readOp(0, h * n + b * blockSize, len, d.opcode == 14 ? I32 : U16);
        if (b > 0) readOp(claim.op, i - HEADS, 1, I32);
    }

    function test_row_max_of_one_block() public {
        rowReduction(14, 3, 16);
    }

    function test_row_max_of_several_blocks() public {
        rowReduction(14, 17, 7);
    }

    function test_row_sum_of_one_block() public {
        rowReduction(16, 15, 16);
    }

    function test_row_sum_of_several_blocks() public {
        rowReduction(16, 17, 7);
    }

    // ------------------------------------------------------------------------------------------------------ EXP, PROB

    int256[] internal distances;
    uint256 internal skipped;

    /// the maximum or sum of each head, behind those of the earlier blocks
    function statistics(int256[] memory last, uint64 every) internal returns (uint64) {
        skipped = ((n + every - 1) / every - 1) * HEADS;
        int256[] memory all = vector(skipped + HEADS, 20);
        for (uint256 h; h < HEADS; h++) {
            all[skipped + h] = last[h];
        }
        return tail(I32, every, tensor(all, I32));
    }

    function exp(uint32 t) internal {
        at(t);
        int256[] memory m = vector(HEADS, 29);
        int256[] memory s = magnitudes(HEADS * n, 18);
        distances = s;
        distances[0] = 0;
        distances[1] = 17 << 13;
        distances[2] = (17 << 13) - 1;
        for (uint256 i; i < s.length; i++) {
            s[i] = m[i / n] - distances[i];
        }
        d.operands[0] = operand(OP, I32, tensor(s, I32));
        d.operands[1] = statistics(m, 16);
        uint256[] memory table = expTable();
        d.operands[2] = operand(TABLE, U16, 0);
        d.opcode = 15;
        d.dtype = 3;
        d.outer = uint32(HEADS);
        d.div = 1;
        d.p[0] = int32(int256(HEADS));
        expected = new int256[](HEADS * n);
        for (uint256 i; i < s.length; i++) {
            expected[i] = int256(Naive.exp2neg(uint256(distances[i]), table));
        }
        check(readExp);
    }

    function readExp(uint256 i) internal {
        readOp(0, i, 1, I32);
        readOp(1, skipped + i / n, 1, I32);
        readTable(0, expIndex(uint256(distances[i])), 2, U16);
    }

    function test_exp_in_the_first_block() public {
        exp(3);
    }

    function test_exp_behind_the_first_block() public {
        exp(17);
    }

    function test_prob() public {
        at(17);
        int256[] memory e = magnitudes(HEADS * n, 15);
        int256[] memory z = new int256[](HEADS);
        for (uint256 i; i < e.length; i++) {
            z[i / n] += e[i];
        }
        // One head whose every position is as good as the best.
        for (uint256 j; j < n; j++) {
            e[j] = 32768;
        }
        z[0] = 32768 * int256(n);
        d.operands[0] = operand(OP, U16, tensor(e, U16));
        d.operands[1] = statistics(z, 5);
        d.opcode = 17;
        d.dtype = 3;
        d.outer = uint32(HEADS);
        d.div = 1;
        d.p[0] = int32(int256(HEADS));
        expected = new int256[](HEADS * n);
        for (uint256 i; i < e.length; i++) {
            expected[i] = int256(Naive.prob(uint256(e[i]), uint256(z[i / n])));
        }
        check(readProb);
    }

    function readProb(uint256 i) internal {
        readOp(0, i, 1, U16);
        readOp(1, skipped + i / n, 1, I32);
    }

    // --------------------------------------------------------------------------------------------------------- MIX

    uint256 internal constant D = 3;

    function mix(uint32 t) internal {
        at(t);
        int256[] memory p = magnitudes(HEADS * n, 11);
        d.operands[0] = operand(OP, U16, tensor(p, U16));
        masks[1] = 2 | 4;
        expected = new int256[]((n + 15) / 16 * HEADS * D);
        for (uint256 j; j < n; j++) {
            int256[] memory v = vector(KV * D, 15);
            if (j == t) {
                tensor(vector(2, 30), I32);
                tensor(v, I16);
            } else {
                exportTensor(claim.layer, j, vector(2, 30), I32);
                exportTensor(claim.layer, j, v, I16);
            }
            for (uint256 i = j / 16 * HEADS * D; i < expected.length; i++) {
                uint256 h = i % (HEADS * D) / D;
                expected[i] += p[h * n + j] * v[h / PER * D + i % D];
            }
        }
        d.operands[1] = operand(CACHE, I16, 1);
        d.opcode = 18;
        d.dtype = 2;
        d.div = 16;
        d.inner = uint32(HEADS * D);
        d.p = [int32(int256(D)), int32(int256(PER)), 16, 0];
        check(readMix);
    }

    function readMix(uint256 i) internal {
        (uint256 b, uint256 h) = (i / (HEADS * D), i % (HEADS * D) / D);
        uint256 len = n - 16 * b < 16 ? n - 16 * b : 16;
        readOp(0, h * n + 16 * b, len, U16);
        readCache(1, 16 * b, len, h / PER * D + i % D, 1, I16);
        if (b > 0) readOp(claim.op, i - HEADS * D, 1, I32);
    }

    function test_mix_at_the_first_position() public {
        mix(0);
    }

    function test_mix_of_a_whole_block() public {
        mix(15);
    }

    function test_mix_behind_the_first_block() public {
        mix(18);
    }
}
