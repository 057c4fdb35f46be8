// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {IStepVerifier} from "../contracts/interfaces/IStepVerifier.sol";
import {Fixed} from "../contracts/lib/Fixed.sol";
import {Naive} from "./support/Naive.sol";

/// Vectors of the executable simulation of the arithmetic, and fuzz against the naive formulas, at random bit lengths.
contract StepVerifierFixedTest is Test {
    uint256[] table;

    function setUp() public {
        table = Naive.expTable();
    }

    /// uniform over bit lengths 0…bits
    function word(uint256 seed, uint256 bits) private pure returns (uint256) {
        return (seed >> 8) & ((1 << (seed % (bits + 1))) - 1);
    }

    function int32Of(uint256 seed, uint256 bits) private pure returns (int256) {
        int256 m = int256(word(seed, bits));
        return seed >> 255 == 1 ? -m : m;
    }

    // ------------------------------------------------------------------------------------------------- vectors

    function test_mulrs_vectors() public pure {
        uint256[4][20] memory v = [
            [uint256(16771), 31892269, 3, 1073741823],
            [uint256(26), 535214420, 20, 13271],
            [uint256(56817914), 423, 17, 183365],
            [uint256(5274), 22476, 2, 29634606],
            [uint256(101134817), 72228372, 52, 2],
            [uint256(927), 8316005, 20, 7352],
            [uint256(7), 575704705, 25, 120],
            [uint256(7404), 64, 17, 4],
            [uint256(1), 1, 32, 0],
            [uint256(7663), 3217372416, 61, 0],
            [uint256(477729), 12175265, 39, 11],
            [uint256(114307), 12061, 4, 86166045],
            [uint256(21015), 28609610, 14, 36696225],
            [uint256(35), 24024804, 13, 102645],
            [uint256(112744556), 166721137, 30, 17505978],
            [uint256(40406201), 1, 22, 10],
            [uint256(213923932), 9429, 38, 7],
            [uint256(6574166), 44135, 29, 540],
            [uint256(64), 27698774, 30, 2],
            [uint256(110412), 111066, 23, 1462]
        ];
        for (uint256 i; i < v.length; ++i) {
            assertEq(Fixed.mulrs(v[i][0], v[i][1], int256(v[i][2])), v[i][3]);
        }
        assertEq(Fixed.mulrs(0, 5, 0), 0);
        assertEq(Fixed.mulrs(1, 0, 0), Fixed.CL);
        assertEq(Fixed.mulrs(1, 1, -7), Fixed.CL);
        assertEq(Fixed.mulrs((1 << 31) - 1, (1 << 32) - 1, 64), Fixed.mulrs((1 << 31) - 1, (1 << 32) - 1, 63));
        assertEq(Fixed.mulrs((1 << 31) - 1, (1 << 32) - 1, 63), 1);
    }

    function test_mul15r_vectors() public pure {
        uint256[3][8] memory v = [
            [uint256(541947804), 21426, 354363209],
            [uint256(171119836), 14130, 73789163],
            [uint256(948574730), 28421, 822736890],
            [uint256(1036770576), 17815, 563661737],
            [uint256(813923553), 32642, 810793842],
            [uint256(82818219), 7969, 20140942],
            [uint256(73780845), 13793, 31056494],
            [uint256(614281314), 14940, 280070887]
        ];
        for (uint256 i; i < v.length; ++i) {
            assertEq(Fixed.mul15r(v[i][0], v[i][1]), v[i][2]);
        }
        assertEq(Fixed.mul15r(1 << 30, 1 << 15), 1 << 30);
    }

    function test_isqrt_vectors() public pure {
        uint256[2][6] memory v = [
            [uint256(1073741824), 32768],
            [uint256(1073741825), 32768],
            [uint256(2147483647), 46340],
            [uint256(2147483648), 46340],
            [uint256(4294967295), 65535],
            [uint256(3000000000), 54772]
        ];
        for (uint256 i; i < v.length; ++i) {
            assertEq(Fixed.isqrt(v[i][0]), v[i][1]);
        }
        for (uint256 n; n < 300; ++n) {
            assertEq(Fixed.isqrt(n), Naive.isqrt(n));
        }
    }

    function test_exp2neg_vectors() public view {
        uint256[2][16] memory v = [
            [uint256(0), 32768],
            [uint256(1), 32765],
            [uint256(16), 32723],
            [uint256(31), 32682],
            [uint256(32), 32679],
            [uint256(33), 32676],
            [uint256(4096), 23170],
            [uint256(8191), 16385],
            [uint256(8192), 16384],
            [uint256(10000), 14060],
            [uint256(65536), 128],
            [uint256(100000), 7],
            [uint256(131071), 1],
            [uint256(139263), 0],
            [uint256(139264), 0],
            [uint256(1048576), 0]
        ];
        for (uint256 i; i < v.length; ++i) {
            assertEq(exp2neg(v[i][0]), v[i][1]);
        }
    }

    function test_quant_vectors() public pure {
        int256[16] memory v = [
            int256(-586580),
            181442,
            -94097,
            712370,
            416661,
            474949,
            150397,
            -283101,
            -457894,
            -108221,
            150683,
            -277455,
            -741740,
            -818446,
            -956489,
            -622348
        ];
        int256[16] memory a8 = [int256(-78), 24, -12, 95, 55, 63, 20, -38, -61, -14, 20, -37, -98, -109, -127, -83];
        int256[16] memory a16 = [
            int256(-18331),
            5670,
            -2941,
            22262,
            13021,
            14842,
            4700,
            -8847,
            -14309,
            -3382,
            4709,
            -8670,
            -23179,
            -25576,
            -29890,
            -19448
        ];
        for (uint256 i; i < v.length; ++i) {
            assertEq(Fixed.quant(v[i], 956489, 8), a8[i]);
            assertEq(Fixed.quant(v[i], 956489, 16), a16[i]);
        }
        (uint256 m, int256 e) = Fixed.quantScale(956489, 8);
        assertEq(m, 59780);
        assertEq(e, 4);
        (m, e) = Fixed.quantScale(956489, 16);
        assertEq(m, 32768);
        assertEq(e, -10);
    }

    function test_quant_reaches_its_bound_and_no_further() public pure {
        uint256[9] memory maxima =
            [uint256(1), 2, 3, 32767, 32768, 65535, 65536, (1 << 30) - 1, uint256(uint32(type(int32).max))];
        for (uint256 i; i < maxima.length; ++i) {
            for (uint256 bits = 8; bits <= 16; ++bits) {
                int256 q = Fixed.quant(int256(maxima[i]), maxima[i], bits);
                assertLe(q, int256((1 << (bits - 1)) - 1));
                assertGe(q, int256(1 << (bits - 2)));
                assertEq(Fixed.quant(-int256(maxima[i]), maxima[i], bits), -q);
                (uint256 m,) = Fixed.quantScale(maxima[i], bits);
                assertTrue(m >= 1 << 15 && m < 1 << 16);
            }
        }
    }

    /// forge-config: default.allow_internal_expect_revert = true
    function test_values_no_right_input_yields_are_refused() public {
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, int256(8)));
        this.quant(8, 7, 8);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, int256(0)));
        this.quant(0, 0, 8);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, int256(0)));
        this.prob(0, 0);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, int256(0)));
        this.normScale(0);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, int256(65536)));
        this.mantissa(65536);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, int256(-1)));
        this.mantissa(-1);
    }

    function quant(int256 v, uint256 a, uint256 bits) external pure returns (int256) {
        return Fixed.quant(v, a, bits);
    }

    function prob(uint256 e, uint256 z) external pure returns (uint256) {
        return Fixed.prob(e, z);
    }

    function normScale(uint256 r) external pure {
        Fixed.normScale(32768, 0, r, 0, 0);
    }

    function mantissa(int256 x) external pure returns (uint256) {
        return Fixed.mantissa(x);
    }

    // ---------------------------------------------------------------------------------------------------- fuzz

    function exp2neg(uint256 d) private view returns (uint256) {
        uint256 j = Fixed.exp2negIndex(d);
        return Fixed.exp2neg(d, table[j], table[j + 1]);
    }

    function testFuzz_bitlen(uint256 seed) public pure {
        uint256 a = word(seed, 128);
        assertEq(Fixed.bitlen(a), Naive.bitlen(a));
    }

    function test_bitlen_at_powers() public pure {
        for (uint256 i; i < 128; ++i) {
            assertEq(Fixed.bitlen(1 << i), i + 1);
            assertEq(Fixed.bitlen((1 << i) - 1), i);
        }
    }

    function testFuzz_mulrs(uint256 a, uint256 b, int8 s) public pure {
        a = word(a, 31);
        b = word(b, 32);
        assertEq(Fixed.mulrs(a, b, s), Naive.mulrs(a, b, s));
    }

    function testFuzz_smul15r(uint256 a, uint256 b) public pure {
        int256 x = int32Of(a, 30);
        int256 y = int32Of(b, 15);
        assertEq(Fixed.smul15r(x, y), Naive.smul15r(x, y));
    }

    function testFuzz_isqrt(uint256 n) public pure {
        n = word(n, 32);
        assertEq(Fixed.isqrt(n), Naive.isqrt(n));
    }

    function testFuzz_exp2neg(uint256 d) public view {
        d = word(d, 31);
        assertEq(exp2neg(d), Naive.exp2neg(d, table));
    }

    function testFuzz_quant(uint256 v, uint256 a, uint256 bits) public pure {
        bits = bound(bits, 8, 16);
        uint256 max = word(a, 31);
        if (max == 0) max = 1;
        int256 x = int256(word(v, 31) % (max + 1));
        if (v >> 255 == 1) x = -x;
        assertEq(Fixed.quant(x, max, bits), Naive.quant(x, max, bits));
        (uint256 m, int256 e) = Fixed.quantScale(max, bits);
        (uint256 m2, int256 e2) = Naive.quantScale(max, bits);
        assertEq(m, m2);
        assertEq(e, e2);
    }

    function testFuzz_rms(uint256 sum, uint256 max, uint256 epsilon) public pure {
        sum = word(sum, 45);
        max = word(max, 31);
        epsilon = word(epsilon, 30);
        (uint256 r, int256 k) = Fixed.rms(sum, max, epsilon);
        (uint256 r2, int256 k2) = Naive.rms(sum, max, epsilon);
        assertEq(r, r2);
        assertEq(k, k2);
    }

    function testFuzz_normScale(uint256 a, uint256 r) public pure {
        a = bound(a, 1 << 15, (1 << 16) - 1);
        r = bound(r, 1 << 15, (1 << 16) - 1);
        (uint256 m, int256 e) = Fixed.normScale(a, 3, r, 5, -7);
        assertEq(m, a < r ? a * 65536 / r : a * 32768 / r);
        assertEq(e, 3 - 7 - 5 - (a < r ? int256(16) : int256(15)));
        assertTrue(m >= 1 << 15 && m < 1 << 16);
    }

    function testFuzz_scaleProduct(uint256 a, uint256 b) public pure {
        a = bound(a, 1 << 15, (1 << 16) - 1);
        b = bound(b, 1 << 15, (1 << 16) - 1);
        (uint256 m, int256 e) = Fixed.scaleProduct(a, -3, b, 9);
        bool high = a * b >= 1 << 31;
        assertEq(m, a * b / (high ? 65536 : 32768));
        assertEq(e, 6 + (high ? int256(16) : int256(15)));
        assertTrue(m >= 1 << 15 && m < 1 << 16);
    }

    function testFuzz_prob(uint256 e, uint256 z) public pure {
        z = word(z, 28);
        if (z == 0) z = 1;
        e = word(e, 15) % (z + 1);
        assertEq(Fixed.prob(e, z), Naive.prob(e, z));
    }

    function testFuzz_silu(uint256 g, uint256 u) public view {
        int256 x = int32Of(g, 30);
        int256 y = int32Of(u, 30);
        assertEq(Fixed.siluMul(x, y, exp2neg(Fixed.siluExponent(x))), Naive.siluMul(x, y, table));
    }

    function testFuzz_addClamp(uint256 a, uint256 b) public pure {
        int256 x = int32Of(a, 31);
        int256 y = int32Of(b, 31);
        assertEq(Fixed.addClamp(x, y), Naive.addClamp(x, y));
    }

    function testFuzz_toFixed(uint256 v, uint256 s) public pure {
        s = bound(s, 1, 30);
        int256 x = int32Of(v, 31);
        assertEq(Fixed.toFixed(x, s), Naive.toFixed(x, s));
    }

    function test_exp_table_ends() public view {
        assertEq(table[0], 32768);
        assertEq(table[1], 32679);
        assertEq(table[128], 23170);
        assertEq(table[255], 16428);
        assertEq(table[256], 16384);
    }
}
