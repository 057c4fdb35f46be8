// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Judging} from "./support/Judging.sol";
import {Naive} from "./support/Naive.sol";

/// The opcodes on vectors.
contract StepVerifierOpsTest is Judging {
    // ------------------------------------------------------------------------------------------------------- EMBED

    uint256 internal constant VOCAB = 101;

    function embed(uint16 layer, uint32 row) internal {
        claim.layer = layer;
        claim.row = row;
        masks[0] = 1 << ops.length;
        uint256 token = tokens[row];
        for (uint256 m; m < 3; m++) {
            matrices.push();
        }
        d.outer = 24;
        expected = new int256[](24);
        for (uint256 r; r < VOCAB; r++) {
            int256[] memory e = vector(24, 7);
            matrices[1].push(bytes.concat(hex"8001000ac0de0011fedc0016", encode(e, I8)));
            if (r != token) continue;
            for (uint256 i; i < 24; i++) {
                expected[i] = Naive.smulrs(e[i], 0xc0de, 0x11);
            }
        }
        // The other matrices have fewer rows.
        matrices[0].push("a row");
        matrices[2].push("another row");
        d.opcode = 1;
        d.dtype = 2;
        d.p = [int32(int256(VOCAB)), 1, 3, 0];
        d.operands[0] = operand(TOKEN, 0, 0);
        d.operands[1] = operand(WEIGHT, I8, 1);
        check(readEmbed);
    }

    function readEmbed(uint256) internal {
        readToken(claim.row);
        readRow(1, tokens[claim.row]);
    }

    function test_embed_of_a_prompt_token() public {
        embed(0, 17);
    }

    function test_embed_of_an_output_token() public {
        embed(0, 22);
    }

    // ----------------------------------------------------------------------------------------- MAX_ABS, SUM_SQ, RMS

    /// three exports of the layer before; x is the first
    function previousOf(int256[] memory x) internal {
        exportTensor(claim.layer - 1, position(), x, I32);
        exportTensor(claim.layer - 1, position(), vector(3, 7), I8);
        exportTensor(claim.layer - 1, position(), vector(300, 30), I32);
        masks[section(claim.layer - 1)] = 7;
    }

    function maxAbs() internal {
        int256[] memory x = vector(2 * 200, 31);
        // The second group lies under the floor.
        for (uint256 i = 200; i < 400; i++) {
            x[i] /= 1 << 20;
        }
        previousOf(x);
        d.opcode = 2;
        d.dtype = 2;
        d.outer = 2;
        d.p = [int32(5000), 200, 0, 0];
        d.operands[0] = operand(PREV, I32, 2);
        expected = list(0, 5000);
        for (uint256 i; i < 200; i++) {
            int256 m = int256(Naive.mag(x[i]));
            if (m > expected[0]) expected[0] = m;
        }
        check(readMaxAbs);
    }

    function readMaxAbs(uint256 i) internal {
        readPrevious(0, 200 * i, 200, I32);
    }

    function test_max_abs_of_a_block_before() public {
        maxAbs();
    }

    function test_max_abs_of_the_embedding() public {
        claim.layer = 1;
        maxAbs();
    }

    function test_max_abs_in_the_head() public {
        claim.layer = 4;
        claim.row = 3;
        maxAbs();
    }

    function sumSq(uint256 bits) internal {
        int256[] memory x = vector(3 * 30, bits);
        uint256 max = 1;
        for (uint256 i; i < x.length; i++) {
            if (Naive.mag(x[i]) > max) max = Naive.mag(x[i]);
        }
        d.operands[0] = operand(OP, I32, tensor(x, I32));
        d.operands[1] = operand(OP, I32, tensor(list(int256(max)), I32));
        d.opcode = 3;
        d.dtype = 2;
        d.outer = 3;
        d.inner = 2;
        d.p[0] = 30;
        expected = new int256[](6);
        for (uint256 g; g < 3; g++) {
            uint256 sum;
            for (uint256 i = 30 * g; i < 30 * g + 30; i++) {
                sum += Naive.normTerm(Naive.mag(x[i]), max) ** 2;
            }
            expected[2 * g] = int256(sum / 65536);
            expected[2 * g + 1] = int256(sum % 65536);
        }
        check(readSumSq);
    }

    function readSumSq(uint256 i) internal {
        readOp(0, i / 2 * 30, 30, I32);
        readOp(1, 0, 1, I32);
    }

    function test_sum_sq_of_large_values() public {
        sumSq(31);
    }

    function test_sum_sq_of_small_values() public {
        sumSq(9);
    }

    function test_rms() public {
        int256[] memory parts = list(123456789, 65535);
        parts = new int256[](6);
        uint256 sum;
        for (uint256 g; g < 3; g++) {
            parts[2 * g] = int256(Naive.mag(random(27))) | 1 << 20;
            parts[2 * g + 1] = int256(Naive.mag(random(16)));
            sum += uint256(parts[2 * g]) * 65536 + uint256(parts[2 * g + 1]);
        }
        d.operands[0] = operand(OP, I32, tensor(parts, I32));
        d.operands[1] = operand(OP, I32, tensor(list(987654321), I32));
        d.opcode = 4;
        d.dtype = 2;
        d.inner = 2;
        d.p = [int32(1256), 3, 0, 0];
        (uint256 r, int256 k) = Naive.rms(sum, 987654321, 1256);
        expected = list(int256(r), k);
        check(readRms);
    }

    function readRms(uint256) internal {
        readOp(0, 0, 6, I32);
        readOp(1, 0, 1, I32);
    }

    // -------------------------------------------------------------------------------------------------------- GAIN

    function test_gain() public {
        int256[] memory x = vector(20, 30);
        int256[] memory s = vector(21, 15);
        tables.push("a table");
        tables.push(encode(s, I16));
        tables.push("another table");
        d.operands[0] = operand(OP, I32, tensor(x, I32));
        // Table 0 + 1·(layer − 1).
        d.operands[1] = operand(TABLE, I16, 0) | 1 << 32;
        d.opcode = 5;
        d.dtype = 2;
        d.outer = 20;
        d.p[0] = 20;
        expected = new int256[](20);
        for (uint256 i; i < 20; i++) {
            expected[i] = Naive.smul15r(x[i], s[i]);
        }
        check(readGain);
    }

    function readGain(uint256 i) internal {
        readOp(0, i, 1, I32);
        readTable(1, i, 1, I16);
    }

    // ------------------------------------------------------------------------------------------------------- QUANT

    uint256 internal skipped;

    function quant(uint8 bits, uint256 magnitude, bool isTail) internal {
        int256[] memory v = vector(2 * 12, magnitude);
        int256[] memory a = list(1, 1);
        for (uint256 i; i < 24; i++) {
            if (int256(Naive.mag(v[i])) > a[i / 12]) a[i / 12] = int256(Naive.mag(v[i]));
        }
        // Position 17 lies in the second block of sixteen: an earlier slab precedes the tail.
        skipped = isTail ? 24 : 0;
        int256[] memory all = new int256[](skipped + 24);
        for (uint256 i; i < 24; i++) {
            all[skipped + i] = v[i];
        }
        uint64 index = tensor(all, I32);
        d.operands[0] = isTail ? tail(I32, 16, index) : operand(OP, I32, index);
        d.operands[1] = operand(OP, I32, tensor(a, I32));
        d.opcode = 6;
        d.bits = bits;
        d.dtype = bits == 8 ? 0 : 1;
        d.outer = 2;
        d.inner = 12;
        d.p[0] = 12;
        expected = new int256[](24);
        for (uint256 i; i < 24; i++) {
            expected[i] = Naive.quant(v[i], uint256(a[i / 12]), bits);
        }
        check(readQuant);
    }

    function readQuant(uint256 i) internal {
        readOp(0, skipped + i, 1, I32);
        readOp(1, i / 12, 1, I32);
    }

    function test_quant_to_8_bits() public {
        quant(8, 31, false);
    }

    function test_quant_to_8_bits_of_small_values() public {
        quant(8, 6, false);
    }

    function test_quant_to_16_bits() public {
        quant(16, 31, false);
    }

    function test_quant_to_11_bits_of_small_values() public {
        quant(11, 6, false);
    }

    function test_quant_of_a_tail() public {
        quant(8, 28, true);
    }

    function quantScale(uint8 bits) internal {
        int256[] memory a = magnitudes(3, 31);
        a[1] = 1;
        d.operands[0] = operand(OP, I32, tensor(a, I32));
        d.opcode = 7;
        d.bits = bits;
        d.dtype = 2;
        d.outer = 3;
        d.inner = 2;
        d.p[0] = -14;
        expected = new int256[](6);
        for (uint256 g; g < 3; g++) {
            (uint256 m, int256 e) = Naive.quantScale(uint256(a[g]), bits);
            (expected[2 * g], expected[2 * g + 1]) = (int256(m), e - 14);
        }
        check(readGroupMaximum);
    }

    function readGroupMaximum(uint256 i) internal {
        readOp(0, i / 2, 1, I32);
    }

    function test_quant_scale_of_8_bits() public {
        quantScale(8);
    }

    function test_quant_scale_of_12_bits() public {
        quantScale(12);
    }

    function normScale(uint8 bits, int256 r) internal {
        int256[] memory s = vector(7, 15);
        s[6] = -3;
        tables.push(encode(s, I16));
        d.operands[0] = operand(OP, I32, tensor(list(77777), I32));
        d.operands[1] = operand(OP, I32, tensor(list(r, 21), I32));
        d.operands[2] = operand(TABLE, I16, 0);
        d.opcode = 8;
        d.bits = bits;
        d.dtype = 2;
        d.inner = 2;
        d.p[0] = 6;
        (uint256 m, int256 e) = Naive.quantScale(77777, bits);
        bool less = int256(m) < r;
        expected =
            list(int256(m) * (less ? int256(65536) : int256(32768)) / r, e - 3 - 21 - (less ? int256(16) : int256(15)));
        check(readNormScale);
    }

    function readNormScale(uint256) internal {
        readOp(0, 0, 1, I32);
        readOp(1, 0, 2, I32);
        readTable(0, 6, 1, I16);
    }

    function test_norm_scale_of_8_bits() public {
        normScale(8, 33333);
    }

    function test_norm_scale_of_16_bits() public {
        normScale(16, 60000);
    }

    // ------------------------------------------------------------------------------------------------------- LINEAR

    uint256 internal dtypeA;
    uint256 internal sizeK;

    function linear(uint256 dtype, uint256 k) internal {
        dtypeA = dtype;
        sizeK = k;
        int256[] memory a = vector(k, dtype == I8 ? 7 : 15);
        d.operands[0] = operand(OP, dtype, tensor(a, dtype));
        d.operands[1] = operand(OP, I32, tensor(list(50001, -20), I32));
        // Matrix 1 + 2·(layer − 1) of six.
        d.operands[2] = operand(WEIGHT, I8, 1) | 2 << 32;
        d.opcode = 9;
        d.dtype = 2;
        d.outer = 5;
        d.p = [int32(int256(k)), 0, 2, 0];
        for (uint256 m; m < 6; m++) {
            matrices.push();
            matrices[m].push("a row");
        }
        delete matrices[3];
        expected = new int256[](5);
        for (uint256 r; r < 5; r++) {
            int256[] memory w = vector(k, 7);
            matrices[3].push(bytes.concat(hex"9abc0005ffff7fff", encode(w, I8)));
            int256 acc;
            for (uint256 i; i < k; i++) {
                acc += a[i] * w[i];
            }
            expected[r] = Naive.smulrs(acc, 50001 * 0x9abc, 5 + 20);
        }
        check(readLinear);
    }

    function readLinear(uint256 i) internal {
        readOp(0, 0, sizeK, dtypeA);
        readOp(1, 0, 2, I32);
        readRow(3, i);
    }

    function test_linear_of_8_bits() public {
        linear(I8, 70);
    }

    function test_linear_of_16_bits_on_two_pages() public {
        linear(I16, 530);
    }

    // --------------------------------------------------------------------------------------------- ROPE and the scales

    function test_rope() public {
        uint256 g = 6;
        int256[] memory x = vector(2 * g, 30);
        int256[] memory c = vector(20 * g / 2, 15);
        int256[] memory s = vector(20 * g / 2, 15);
        tables.push(encode(c, I16));
        tables.push(encode(s, I16));
        d.operands[0] = operand(OP, I32, tensor(x, I32));
        d.operands[1] = operand(TABLE, I16, 0);
        d.operands[2] = operand(TABLE, I16, 1);
        d.opcode = 10;
        d.dtype = 2;
        d.outer = 2;
        d.inner = 6;
        d.p = [int32(6), 20, 0, 0];
        expected = new int256[](12);
        for (uint256 i; i < 12; i += 2) {
            uint256 at = claim.row * 3 + i % 6 / 2;
            expected[i] = Naive.smul15r(x[i], c[at]) - Naive.smul15r(x[i + 1], s[at]);
            expected[i + 1] = Naive.smul15r(x[i], s[at]) + Naive.smul15r(x[i + 1], c[at]);
        }
        check(readRope);
    }

    function readRope(uint256 i) internal {
        readOp(0, i / 2 * 2, 2, I32);
        readTable(0, claim.row * 3 + i % 6 / 2, 1, I16);
        readTable(1, claim.row * 3 + i % 6 / 2, 1, I16);
    }

    function test_scale_q() public {
        int256[] memory a = magnitudes(3, 31);
        a[0] = 0xffffffff >> 1;
        a[1] = 32768;
        d.operands[0] = operand(OP, I32, tensor(a, I32));
        d.opcode = 11;
        d.dtype = 2;
        d.outer = 3;
        d.inner = 2;
        d.p = [int32(-14), 40000, -7, 0];
        expected = new int256[](6);
        for (uint256 g; g < 3; g++) {
            (uint256 m, int256 e) = Naive.quantScale(uint256(a[g]), 8);
            bool high = m * 40000 >= 2 ** 31;
            expected[2 * g] = int256(m * 40000 / (high ? 65536 : 32768));
            expected[2 * g + 1] = e - 14 - 7 + (high ? int256(16) : int256(15));
        }
        check(readGroupMaximum);
    }

    function test_to_fixed() public {
        int256[] memory v = vector(12, 31);
        d.operands[0] = operand(OP, I32, tensor(v, I32));
        d.opcode = 12;
        d.dtype = 1;
        d.outer = 12;
        d.p[0] = 4;
        expected = new int256[](12);
        for (uint256 i; i < 12; i++) {
            expected[i] = Naive.toFixed(v[i], 4);
        }
        check(readToFixed);
    }

    function readToFixed(uint256 i) internal {
        readOp(0, i, 1, I32);
    }

    // -------------------------------------------------------------------------------------------------- SILU_MUL, ADD

    int256[] internal gates;

    function test_silu_mul() public {
        gates = vector(16, 18);
        gates[0] = 0;
        gates[1] = -(2 ** 30) + 1;
        gates[2] = 2 ** 30 - 1;
        int256[] memory u = vector(16, 30);
        d.operands[0] = operand(OP, I32, tensor(gates, I32));
        d.operands[1] = operand(OP, I32, tensor(u, I32));
        d.operands[2] = operand(TABLE, U16, 0);
        uint256[] memory t = expTable();
        d.opcode = 19;
        d.dtype = 2;
        d.outer = 16;
        expected = new int256[](16);
        for (uint256 i; i < 16; i++) {
            expected[i] = Naive.siluMul(gates[i], u[i], t);
        }
        check(readSilu);
    }

    function readSilu(uint256 i) internal {
        readOp(0, i, 1, I32);
        readOp(1, i, 1, I32);
        readTable(0, expIndex(Naive.rounded(Naive.mag(gates[i]) * 23637, 15)), 2, U16);
    }

    function test_add() public {
        int256[] memory x = vector(10, 30);
        int256[] memory y = vector(10, 30);
        (x[0], y[0]) = (Naive.CL, 1);
        (x[1], y[1]) = (-Naive.CL, -Naive.CL);
        d.operands[1] = operand(OP, I32, tensor(y, I32));
        previousOf(x);
        d.operands[0] = operand(PREV, I32, 2);
        d.opcode = 20;
        d.dtype = 2;
        d.outer = 10;
        expected = new int256[](10);
        for (uint256 i; i < 10; i++) {
            expected[i] = Naive.addClamp(x[i], y[i]);
        }
        check(readAdd);
    }

    function readAdd(uint256 i) internal {
        readPrevious(0, i, 1, I32);
        readOp(0, i, 1, I32);
    }

    // ------------------------------------------------------------------------------------------------------- SELECT

    function selection(int256 claimed, int256 best) internal {
        claim.layer = 4;
        claim.row = 3;
        int256[] memory logits = vector(300, 29);
        logits[uint256(best)] = 2 ** 29;
        // An equal logit behind it does not win.
        logits[299] = 2 ** 29;
        d.operands[0] = operand(OP, I32, tensor(logits, I32));
        d.operands[1] = operand(TOKEN, 0, 1);
        d.opcode = 21;
        d.dtype = 2;
        d.p[0] = 300;
        expected = list(claimed);
        place();
        claim.element = 0;
    }

    function readLogits(uint256 c) internal {
        readToken(nIn + claim.row);
        readOp(0, c, 1, I32);
        readOp(0, hint, 1, I32);
    }

    function test_select_of_the_best_token() public {
        tokens[nIn + 3] = 44;
        selection(44, 44);
        uint32[3] memory hints = [uint32(44), 43, 299];
        for (uint256 i; i < 3; i++) {
            hint = hints[i];
            delete reads;
            readLogits(44);
            (int256 claimed, int256 computed) = judge(witness(I32));
            assertEq(claimed, 44);
            assertEq(computed, 44);
        }
    }

    function test_select_of_another_token() public {
        tokens[nIn + 3] = 45;
        selection(45, 44);
        hint = 44;
        readLogits(45);
        (int256 claimed, int256 computed) = judge(witness(I32));
        assertEq(claimed, 45);
        assertEq(computed, 44);
        hinted = true;
        checkMutations(witness(I32));
    }

    function test_select_of_a_later_equal() public {
        tokens[nIn + 3] = 299;
        selection(299, 44);
        hint = 44;
        readLogits(299);
        (int256 claimed, int256 computed) = judge(witness(I32));
        assertEq(claimed, 299);
        assertEq(computed, 44);
    }

    function test_select_of_what_does_not_follow() public {
        tokens[nIn + 3] = 45;
        selection(44, 44);
        readToken(nIn + 3);
        (int256 claimed, int256 computed) = judge(witness(I32));
        assertEq(claimed, 44);
        assertEq(computed, 45);
        checkMutations(witness(I32));
    }
}
