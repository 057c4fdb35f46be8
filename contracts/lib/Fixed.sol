// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../interfaces/IStepVerifier.sol";

/// @title Fixed
/// @notice The integer primitives of docs/instruction-set.md on 256-bit words.
/// @dev Stored values have at most 32 bits, so no formula here comes near 256 bits: `unchecked` is exact arithmetic. A
/// value that no right input can produce reverts with `ValueRange`.
library Fixed {
    /// @notice the largest magnitude of a Q14 value
    uint256 internal constant CL = (1 << 30) - 1;
    /// @notice log2 e in Q14
    uint256 internal constant LOG2_E = 23637;
    /// @notice 0.044715 in Q15, the cubic term of GELU
    uint256 internal constant GELU_CUBIC = 1465;
    /// @notice √(2/π)·log2 e / 2 in Q15: doubled and read in Q13, its slope
    uint256 internal constant GELU_SLOPE = 18860;

    // ------------------------------------------------------------------------------------------------ words

    /// @notice bits of an unsigned value below 2^128
    function bitlen(uint256 a) internal pure returns (uint256 n) {
        assembly ("memory-safe") {
            n := shl(6, gt(a, 0xffffffffffffffff))
            n := or(n, shl(5, gt(shr(n, a), 0xffffffff)))
            n := or(n, shl(4, gt(shr(n, a), 0xffff)))
            n := or(n, shl(3, gt(shr(n, a), 0xff)))
            n := or(n, shl(2, gt(shr(n, a), 0xf)))
            // What is left has four bits; nibble k of the constant (from the right) is bitlen(k).
            // slither-disable-next-line incorrect-shift
            n := add(n, and(shr(shl(2, shr(n, a)), 0x4444444433332210), 0xf))
        }
    }

    function abs(int256 x) internal pure returns (uint256) {
        unchecked {
            return uint256(x < 0 ? -x : x);
        }
    }

    /// @notice a magnitude under a sign
    function signed(uint256 magnitude, bool negative) internal pure returns (int256) {
        unchecked {
            return negative ? -int256(magnitude) : int256(magnitude);
        }
    }

    /// @notice a value that must be at least zero
    function unsigned(int256 x) internal pure returns (uint256) {
        if (x < 0) revert IStepVerifier.ValueRange(x);
        return uint256(x);
    }

    /// @notice a scale's mantissa
    function mantissa(int256 x) internal pure returns (uint256) {
        if (x < 0 || x > 65535) revert IStepVerifier.ValueRange(x);
        return uint256(x);
    }

    function min(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }

    /// @notice `a >> s`, or `a << -s`
    function shifted(uint256 a, int256 s) internal pure returns (uint256) {
        unchecked {
            return s < 0 ? a << uint256(-s) : a >> uint256(s);
        }
    }

    // ------------------------------------------------------------------------------------------- multiplication

    /// @notice (a·b + 2^14) >> 15
    function mul15r(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            return (a * b + (1 << 14)) >> 15;
        }
    }

    /// @notice ±mul15r of the magnitudes under the product's sign
    function smul15r(int256 a, int256 b) internal pure returns (int256) {
        return signed(mul15r(abs(a), abs(b)), (a < 0) != (b < 0));
    }

    /// @notice min(CL, (a·b + 2^(s−1)) >> s); s > 63 counts as 63; s < 1 gives 0 for a = 0 and CL otherwise
    function mulrs(uint256 a, uint256 b, int256 s) internal pure returns (uint256) {
        unchecked {
            if (s < 1) return a == 0 ? 0 : CL;
            uint256 n = s > 63 ? 63 : uint256(s);
            return min(CL, (a * b + (1 << (n - 1))) >> n);
        }
    }

    /// @notice ±mulrs of the magnitude of `x` under its sign
    function smulrs(int256 x, uint256 b, int256 s) internal pure returns (int256) {
        return signed(mulrs(abs(x), b, s), x < 0);
    }

    /// @notice ±((|acc| + 2^(r−1)) >> r), or acc itself for r = 0, in 32 bits
    function narrow(int256 acc, uint256 r) internal pure returns (int256) {
        unchecked {
            uint256 m = abs(acc);
            if (r != 0) m = (m + (1 << (r - 1))) >> r;
            if (m > uint32(type(int32).max)) revert IStepVerifier.ValueRange(acc);
            return signed(m, acc < 0);
        }
    }

    // ---------------------------------------------------------------------------------------------------- roots

    /// @notice the floor of the square root
    function isqrt(uint256 n) internal pure returns (uint256 r) {
        if (n == 0) return 0;
        unchecked {
            // Newton's iteration falls from any start at or above the root and stops at its floor.
            r = 1 << ((bitlen(n) + 1) >> 1);
            while (true) {
                uint256 next = (r + n / r) >> 1;
                if (next >= r) return r;
                r = next;
            }
        }
    }

    // ---------------------------------------------------------------------------------------------- powers of two

    /// @notice the index j of the table entries j and j + 1 that `exp2neg` interpolates between
    function exp2negIndex(uint256 d) internal pure returns (uint256) {
        return (d & 8191) >> 5;
    }

    /// @notice 2^(−d), d in Q13, result in Q15
    /// @param t0 entry j of the table
    /// @param t1 entry j + 1, at most t0
    function exp2neg(uint256 d, uint256 t0, uint256 t1) internal pure returns (uint256) {
        unchecked {
            uint256 i = d >> 13;
            if (i > 16) return 0;
            if (t1 > t0) revert IStepVerifier.ValueRange(int256(t1));
            uint256 e = t0 - (((t0 - t1) * (d & 31) + 16) >> 5);
            return i == 0 ? e : (e + (1 << (i - 1))) >> i;
        }
    }

    // ---------------------------------------------------------------------------------------------- quantisation

    /// @notice the element `v` of a vector whose largest magnitude is `a`, in `bits` bits
    function quant(int256 v, uint256 a, uint256 bits) internal pure returns (int256) {
        unchecked {
            uint256 m = abs(v);
            if (a == 0 || m > a) revert IStepVerifier.ValueRange(v);
            int256 s = quantShift(a, bits);
            if (bits == 8) {
                uint256 r = 0x7F000000 / shifted(a, s);
                m = (shifted(m, s) * r + (1 << 23)) >> 24;
            } else if (s > 0) {
                m = min((m + (1 << uint256(s - 1))) >> uint256(s), (1 << (bits - 1)) - 1);
            } else {
                m = m << uint256(-s);
            }
            return signed(m, v < 0);
        }
    }

    /// @notice the scale (m, e) of that vector
    function quantScale(uint256 a, uint256 bits) internal pure returns (uint256 m, int256 e) {
        unchecked {
            if (a == 0) revert IStepVerifier.ValueRange(0);
            int256 s = quantShift(a, bits);
            return bits == 8 ? (shifted(a, s), s) : (1 << 15, s - 15);
        }
    }

    /// @dev the shift that brings `a` to 16 bits, or to bits − 1
    function quantShift(uint256 a, uint256 bits) private pure returns (int256) {
        unchecked {
            return int256(bitlen(a)) - (bits == 8 ? int256(16) : int256(bits) - 1);
        }
    }

    // ---------------------------------------------------------------------------------------------- normalisation

    /// @notice the shift that brings the largest magnitude `x` of a vector to 16 bits
    function normShift(uint256 x) internal pure returns (int256) {
        unchecked {
            return int256(bitlen(x)) - 16;
        }
    }

    /// @notice the root r of a sum of squares and its exponent
    /// @param sum of the squares of the vector's elements, brought to 16 bits
    /// @param x the largest magnitude of the vector
    /// @param epsilon counts as one more element
    function rms(uint256 sum, uint256 x, uint256 epsilon) internal pure returns (uint256 r, int256 k) {
        unchecked {
            k = normShift(x);
            uint256 y = min(65535, shifted(epsilon, k));
            sum += y * y;
            uint256 bits = bitlen(sum);
            uint256 sf = bits > 31 ? (bits - 31) & ~uint256(1) : 0;
            return (isqrt(sum >> sf), k + int256(sf >> 1));
        }
    }

    /// @notice the scale of a normalised, quantised vector: its quantiser's scale (a, s) over the root (r, k)
    /// @param g the gain's exponent
    function normScale(uint256 a, int256 s, uint256 r, int256 k, int256 g) internal pure returns (uint256, int256) {
        unchecked {
            if (r == 0) revert IStepVerifier.ValueRange(0);
            return a >= r ? ((a << 15) / r, s + g - k - 15) : ((a << 16) / r, s + g - k - 16);
        }
    }

    /// @notice the product of scales (m, e) and (cm, ce)
    function scaleProduct(uint256 m, int256 e, uint256 cm, int256 ce) internal pure returns (uint256, int256) {
        unchecked {
            uint256 p = m * cm;
            uint256 beta = p >> 31;
            return (p >> (15 + beta), e + ce + 15 + int256(beta));
        }
    }

    /// @notice v rounded by `s` ≥ 1 bits into an i16
    function toFixed(int256 v, uint256 s) internal pure returns (int256) {
        unchecked {
            return signed(min((abs(v) + (1 << (s - 1))) >> s, 32767), v < 0);
        }
    }

    // --------------------------------------------------------------------------------------- attention, activation

    /// @notice e / z in Q15
    function prob(uint256 e, uint256 z) internal pure returns (uint256) {
        unchecked {
            if (z == 0 || e > z) revert IStepVerifier.ValueRange(int256(z));
            uint256 l = bitlen(z);
            uint256 r = (1 << 31) / shifted(z, int256(l) - 16);
            return (e * r + (1 << (l - 1))) >> l;
        }
    }

    /// @notice |g|·log2 e in Q13, whose `exp2neg` is the `e` of `siluMul`
    function siluExponent(int256 g) internal pure returns (uint256) {
        return mul15r(abs(g), LOG2_E);
    }

    /// @notice g·σ(g)·u
    function siluMul(int256 g, int256 u, uint256 e) internal pure returns (int256) {
        unchecked {
            uint256 den = 32768 + e;
            uint256 sigma = ((1 << 30) + (den >> 1)) / den;
            if (g < 0) sigma = 32768 - sigma;
            return signed(mulrs(mul15r(abs(g), sigma), abs(u), 14), (g < 0) != (u < 0));
        }
    }

    /// @notice 2·√(2/π)·log2 e·|g|·(1 + 0.044715·g²) in Q13: with the `exp2neg` of it `siluMul` is GELU's tanh form
    function geluExponent(int256 g) internal pure returns (uint256) {
        unchecked {
            // From 16 on the exponential is 0 anyway.
            uint256 a = min(abs(g), (1 << 18) - 1);
            uint256 c = 32768 + mul15r(((a >> 3) * (a >> 3)) >> 7, GELU_CUBIC);
            return 2 * mul15r(mulrs(a, c, 15), GELU_SLOPE);
        }
    }

    /// @notice cap·tanh from `e`, the exponential
    function softCap(int256 x, uint256 cap, uint256 e) internal pure returns (int256) {
        unchecked {
            e = min(e, 32768);
            uint256 den = 32768 + e;
            return signed(mul15r(cap, (((32768 - e) << 15) + (den >> 1)) / den), x < 0);
        }
    }

    /// @notice x + y clamped to ±CL
    function addClamp(int256 x, int256 y) internal pure returns (int256) {
        unchecked {
            int256 z = x + y;
            int256 limit = int256(CL);
            return z > limit ? limit : z < -limit ? -limit : z;
        }
    }
}
