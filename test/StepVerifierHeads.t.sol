// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Judging} from "./support/Judging.sol";
import {Naive} from "./support/Naive.sol";

/// Norms of several groups, and the elementwise opcodes that not every family of models has.
contract StepVerifierHeadsTest is Judging {
    // -------------------------------------------------------------------------------------------------- head norms

    uint256 internal constant G = 16;

    function test_sum_sq_each_by_its_own_maximum() public {
        int256[] memory x = vector(3 * G, 30);
        int256[] memory max = new int256[](3);
        for (uint256 i; i < x.length; i++) {
            // Groups of very different size.
            x[i] /= int256(1 << (10 * (i / G)));
            int256 m = int256(Naive.mag(x[i]));
            if (m > max[i / G]) max[i / G] = m;
        }
        d.operands[0] = operand(OP, I32, tensor(x, I32));
        d.operands[1] = operand(OP, I32, tensor(max, I32));
        d.opcode = 3;
        d.dtype = 2;
        d.outer = 3;
        d.inner = 2;
        d.p = [int32(int256(G)), 1, 0, 0];
        expected = new int256[](6);
        for (uint256 g; g < 3; g++) {
            uint256 sum;
            for (uint256 i = G * g; i < G * g + G; i++) {
                sum += Naive.normTerm(Naive.mag(x[i]), uint256(max[g])) ** 2;
            }
            (expected[2 * g], expected[2 * g + 1]) = (int256(sum / 65536), int256(sum % 65536));
        }
        check(readSumSq);
    }

    function readSumSq(uint256 i) internal {
        readOp(0, i / 2 * G, G, I32);
        readOp(1, i / 2, 1, I32);
    }

    function test_rms_of_each_head() public {
        // Three heads of two groups each.
        int256[] memory parts = new int256[](12);
        int256[] memory max = new int256[](3);
        for (uint256 i; i < 12; i += 2) {
            parts[i] = int256(Naive.mag(random(27))) | 1 << 20;
            parts[i + 1] = int256(Naive.mag(random(16)));
            max[i / 4] = int256(Naive.mag(random(30)) | 1 << (10 * (i / 4)));
        }
        d.operands[0] = operand(OP, I32, tensor(parts, I32));
        d.operands[1] = operand(OP, I32, tensor(max, I32));
        d.opcode = 4;
        d.dtype = 2;
        d.outer = 3;
        d.inner = 2;
        d.p = [int32(1256), 2, 0, 0];
        expected = new int256[](6);
        for (uint256 h; h < 3; h++) {
            uint256 sum =
                uint256(parts[4 * h] + parts[4 * h + 2]) * 65536 + uint256(parts[4 * h + 1] + parts[4 * h + 3]);
            (uint256 r, int256 k) = Naive.rms(sum, uint256(max[h]), 1256);
            (expected[2 * h], expected[2 * h + 1]) = (int256(r), k);
        }
        check(readRms);
    }

    function readRms(uint256 i) internal {
        readOp(0, i / 2 * 4, 4, I32);
        readOp(1, i / 2, 1, I32);
    }

    function test_gain_of_each_head() public {
        int256[] memory x = vector(3 * 5, 30);
        int256[] memory s = vector(6, 15);
        (x[4], s[4]) = (-Naive.CL, -32767);
        tables.push(encode(s, I16));
        d.operands[0] = operand(OP, I32, tensor(x, I32));
        d.operands[1] = operand(TABLE, I16, 0);
        d.opcode = 5;
        d.dtype = 2;
        d.outer = 3;
        d.inner = 5;
        d.p[0] = 5;
        expected = new int256[](15);
        for (uint256 i; i < 15; i++) {
            expected[i] = Naive.smul15r(x[i], s[i % 5]);
        }
        check(readGain);
    }

    function readGain(uint256 i) internal {
        readOp(0, i, 1, I32);
        readTable(0, i % 5, 1, I16);
    }

    function test_norm_scale_of_each_head() public {
        int256[] memory s = vector(6, 15);
        s[5] = -3;
        tables.push(encode(s, I16));
        int256[] memory a = magnitudes(3, 30);
        int256[] memory r = new int256[](6);
        expected = new int256[](6);
        for (uint256 h; h < 3; h++) {
            a[h] += 1;
            (r[2 * h], r[2 * h + 1]) = (32768 + int256(Naive.mag(random(15))), random(4));
            (uint256 m, int256 e) = Naive.quantScale(uint256(a[h]), 8);
            int256 less = int256(m) < r[2 * h] ? int256(1) : int256(0);
            expected[2 * h] = int256(m << (15 + uint256(less))) / r[2 * h];
            expected[2 * h + 1] = e - 3 - r[2 * h + 1] - 15 - less;
        }
        d.operands[0] = operand(OP, I32, tensor(a, I32));
        d.operands[1] = operand(OP, I32, tensor(r, I32));
        d.operands[2] = operand(TABLE, I16, 0);
        d.opcode = 8;
        d.bits = 8;
        d.dtype = 2;
        d.outer = 3;
        d.inner = 2;
        d.p[0] = 5;
        check(readNormScale);
    }

    function readNormScale(uint256 i) internal {
        readOp(0, i / 2, 1, I32);
        readOp(1, i / 2 * 2, 2, I32);
        readTable(0, 5, 1, I16);
    }

    // ------------------------------------------------------------------------------------------------- elementwise

    function test_add_a_bias() public {
        int256[] memory x = vector(10, 30);
        int256[] memory y = vector(10, 30);
        (x[0], y[0]) = (Naive.CL, 1);
        (x[1], y[1]) = (-Naive.CL, -Naive.CL);
        d.operands[0] = operand(OP, I32, tensor(x, I32));
        d.operands[1] = operand(TABLE, I32, 0) | 1 << 32;
        tables.push("a table");
        tables.push(encode(y, I32));
        d.opcode = 20;
        d.dtype = 2;
        d.outer = 10;
        expected = new int256[](10);
        for (uint256 i; i < 10; i++) {
            expected[i] = Naive.addClamp(x[i], y[i]);
        }
        check(readBias);
    }

    function readBias(uint256 i) internal {
        readOp(0, i, 1, I32);
        readTable(1, i, 1, I32);
    }

    uint256 internal dtypeA;

    function dequant(uint256 dtype, int256 e, int32 f) internal {
        dtypeA = dtype;
        int256[] memory a = vector(8, dtype == I8 ? 7 : 15);
        a[0] = dtype == I8 ? int256(-127) : int256(-32767);
        d.operands[0] = operand(OP, dtype, tensor(a, dtype));
        d.operands[1] = operand(OP, I32, tensor(list(40001, e), I32));
        d.opcode = 22;
        d.dtype = 2;
        d.outer = 8;
        d.p[0] = f;
        expected = new int256[](8);
        for (uint256 i; i < 8; i++) {
            expected[i] = Naive.smulrs(a[i], 40001, -e - f);
        }
        check(readDequant);
    }

    function readDequant(uint256 i) internal {
        readOp(0, i, 1, dtypeA);
        readOp(1, 0, 2, I32);
    }

    function test_dequant_of_8_bits() public {
        dequant(I8, -24, 14);
    }

    function test_dequant_of_16_bits() public {
        dequant(I16, -10, 3);
    }

    /// A shift below one saturates.
    function test_dequant_of_too_much() public {
        dequant(I16, -10, 10);
    }

    int256[] internal gates;

    function test_gelu_mul() public {
        gates = vector(16, 18);
        gates[0] = 0;
        gates[1] = -(2 ** 30) + 1;
        gates[2] = 2 ** 30 - 1;
        (gates[3], gates[4]) = (2 ** 18 - 1, -(2 ** 18));
        (gates[5], gates[6]) = (16384, -16384);
        int256[] memory u = vector(16, 30);
        (u[2], u[5]) = (Naive.CL, 16384);
        d.operands[0] = operand(OP, I32, tensor(gates, I32));
        d.operands[1] = operand(OP, I32, tensor(u, I32));
        d.operands[2] = operand(TABLE, U16, 0);
        uint256[] memory t = expTable();
        d.opcode = 23;
        d.dtype = 2;
        d.outer = 16;
        expected = new int256[](16);
        for (uint256 i; i < 16; i++) {
            expected[i] = Naive.geluMul(gates[i], u[i], t);
        }
        // GELU(1) = 0.8412 in Q14.
        assertApproxEqAbs(expected[5], 13782, 4);
        check(readGelu);
    }

    function readGelu(uint256 i) internal {
        readOp(0, i, 1, I32);
        readOp(1, i, 1, I32);
        readTable(0, expIndex(Naive.geluExponent(gates[i])), 2, U16);
    }

    function test_soft_cap() public {
        gates = vector(12, 25);
        (gates[0], gates[1], gates[2]) = (0, Naive.CL, -Naive.CL);
        (gates[3], gates[4]) = (50 * 16384, -30 * 16384);
        d.operands[0] = operand(OP, I32, tensor(gates, I32));
        d.operands[1] = operand(TABLE, U16, 0);
        uint256[] memory t = expTable();
        // A cap of 50: 2·log2(e)·2^13/(50·2^14) = 60494·2^−21.
        d.opcode = 24;
        d.dtype = 2;
        d.outer = 12;
        d.p = [int32(50 * 16384), 60494, 21, 0];
        expected = new int256[](12);
        for (uint256 i; i < 12; i++) {
            expected[i] = Naive.softCap(gates[i], 50 * 16384, 60494, 21, t);
        }
        // 50·tanh(1) = 38.08; beyond reach the cap itself.
        assertApproxEqAbs(expected[3], 623892, 100);
        assertEq(expected[1], 50 * 16384);
        check(readSoftCap);
    }

    function readSoftCap(uint256 i) internal {
        readOp(0, i, 1, I32);
        readTable(0, expIndex(Naive.mulrs(Naive.mag(gates[i]), 60494, 21)), 2, U16);
    }

    // ------------------------------------------------------------------------------------------------------ WINDOW

    int256 internal wide;

    function window(int256 w) internal {
        wide = w;
        int256[] memory s = vector(2 * 18, 20);
        d.operands[0] = operand(OP, I32, tensor(s, I32));
        d.operands[1] = operand(TABLE, I32, 0);
        tables.push(encode(list(w), I32));
        d.opcode = 25;
        d.dtype = 2;
        d.outer = 2;
        d.div = 1;
        expected = new int256[](36);
        for (uint256 i; i < 36; i++) {
            expected[i] = int256(i % 18) + w > 17 ? s[i] : -Naive.CL;
        }
        check(readWindow);
    }

    function readWindow(uint256 i) internal {
        readTable(0, 0, 1, I32);
        if (int256(i % 18) + wide > 17) readOp(0, i, 1, I32);
    }

    function test_window_of_five() public {
        window(5);
    }

    function test_window_of_all() public {
        window(18);
    }

    function test_window_of_everything() public {
        window(2 ** 31 - 1);
    }
}
