// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Head} from "./Descriptor.sol";
import {Fixed} from "./Fixed.sol";
import {Step} from "./Reader.sol";
import {Rows} from "./Rows.sol";
import {Slice} from "./Slice.sol";

/// @title Ops
/// @notice The opcodes on vectors: one function each, which gives one output element from what it reads.
/// @dev The order of the reads is that of docs/instruction-set.md ("Which elements an output element reads"), because the
/// witness brings them in that order. Sums and products of stored values and of u32 parameters stay far below 2^256, so
/// `unchecked` is exact; an index that no right descriptor yields is outside its operand and reverts there.
library Ops {
    /// @dev 1: row of the embedding matrix
    function embed(Step memory s) internal pure returns (int256) {
        uint256 token = s.token(0);
        (uint256 m, int256 sh, Slice row) = s.weights(1, s.head.size(0), token, s.count);
        return Fixed.smulrs(Rows.weight(row, uint256(s.head.param(3)), s.count, s.element), m, sh);
    }

    /// @dev 2: largest magnitude of a group
    function maxAbs(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 g = s.head.size(1);
            uint256 floor = s.head.size(0);
            uint256 m = s.tensor(0, s.count * g, s.element * g, g).maxAbs(g);
            return int256(m > floor ? m : floor);
        }
    }

    /// @dev 3: sum of squares of a group, in two words
    function sumSquares(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 g = s.head.size(0);
            Slice x = s.tensor(0, (s.count >> 1) * g, (s.element >> 1) * g, g);
            uint256 max =
                Fixed.unsigned(s.head.param(1) == 0 ? s.value(1, 1, 0) : s.value(1, s.count >> 1, s.element >> 1));
            uint256 sum = x.sumSquares(g, Fixed.normShift(max));
            return int256(s.element & 1 == 0 ? sum >> 16 : sum & 65535);
        }
    }

    /// @dev 4: root of some groups' sums of squares, and its exponent
    function rms(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 g = s.head.size(1);
            Slice parts = s.tensor(0, s.count * g, (s.element >> 1) * 2 * g, 2 * g);
            uint256 sum;
            for (uint256 i; i < g; ++i) {
                sum += (Fixed.unsigned(parts.get(2 * i)) << 16) + Fixed.unsigned(parts.get(2 * i + 1));
            }
            (uint256 r, int256 k) = Fixed.rms(sum, groupMaximum(s, 1), s.head.size(0));
            return s.element & 1 == 0 ? int256(r) : k;
        }
    }

    /// @dev 5: elementwise gain
    function gain(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 n = s.head.size(0);
            int256 x = s.value(0, s.count, s.element);
            return Fixed.smul15r(x, s.value(1, n + 1, s.element % n));
        }
    }

    /// @dev 6: quantise by the group's largest magnitude
    function quant(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 g = s.head.size(0);
            int256 v = s.value(0, s.count, s.element);
            return Fixed.quant(v, Fixed.unsigned(s.value(1, s.count / g, s.element / g)), bits(s));
        }
    }

    /// @dev 7: scale of a quantised group
    function quantScale(Step memory s) internal pure returns (int256) {
        unchecked {
            (uint256 m, int256 e) = Fixed.quantScale(groupMaximum(s, 0), bits(s));
            return s.element & 1 == 0 ? int256(m) : e + s.head.param(0);
        }
    }

    /// @dev 8: scale of a normalised, quantised vector
    function normScale(Step memory s) internal pure returns (int256) {
        unchecked {
            (uint256 m, int256 e) = Fixed.quantScale(groupMaximum(s, 0), bits(s));
            Slice root = s.tensor(1, s.count, s.element & ~uint256(1), 2);
            uint256 n = s.head.size(0);
            (m, e) = Fixed.normScale(m, e, Fixed.mantissa(root.get(0)), root.get(1), s.value(2, n + 1, n));
            return s.element & 1 == 0 ? int256(m) : e;
        }
    }

    /// @dev 9: row of a matrix times vector, requantised
    function linear(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 k = s.head.size(0);
            Slice a = s.tensor(0, k, 0, k);
            Slice scale = s.tensor(1, 2, 0, 2);
            (uint256 m, int256 sh, Slice row) = s.weights(2, s.count, s.element, k);
            int256 acc = Rows.dot(row, uint256(s.head.param(3)), a, k);
            return Fixed.smulrs(acc, Fixed.mantissa(scale.get(0)) * m, sh - scale.get(1));
        }
    }

    /// @dev 10: rotation of an interleaved pair by the position's angle
    function rope(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 half = s.head.size(0) >> 1;
            s.head.check(half != 0 && s.head.size(0) & 1 == 0);
            uint256 n = s.head.size(1) * half;
            uint256 at = s.position * half + (s.element >> 1) % half;
            Slice x = s.tensor(0, s.count, s.element & ~uint256(1), 2);
            int256 c = s.value(1, n, at);
            int256 d = s.value(2, n, at);
            if (s.element & 1 == 0) return Fixed.smul15r(x.get(0), c) - Fixed.smul15r(x.get(1), d);
            return Fixed.smul15r(x.get(0), d) + Fixed.smul15r(x.get(1), c);
        }
    }

    /// @dev 11: an 8-bit group's scale times the attention constant
    function scaleQ(Step memory s) internal pure returns (int256) {
        unchecked {
            (uint256 m, int256 e) = Fixed.quantScale(groupMaximum(s, 0), 8);
            (m, e) = Fixed.scaleProduct(m, e + s.head.param(0), Fixed.mantissa(s.head.param(1)), s.head.param(2));
            return s.element & 1 == 0 ? int256(m) : e;
        }
    }

    /// @dev 12: round to a fixed grid
    function toFixed(Step memory s) internal pure returns (int256) {
        return Fixed.toFixed(s.value(0, s.count, s.element), s.head.size(0));
    }

    /// @dev 19, 23: gated activation
    /// @param gelu GELU in its tanh form instead of SiLU
    function gated(Step memory s, bool gelu) internal pure returns (int256) {
        int256 g = s.value(0, s.count, s.element);
        int256 u = s.value(1, s.count, s.element);
        return Fixed.siluMul(g, u, exp2neg(s, 2, gelu ? Fixed.geluExponent(g) : Fixed.siluExponent(g)));
    }

    /// @dev 20: residual addition
    function add(Step memory s) internal pure returns (int256) {
        int256 x = s.value(0, s.count, s.element);
        return Fixed.addClamp(x, s.value(1, s.count, s.element));
    }

    /// @dev 22: quantised back to Q14
    function dequant(Step memory s) internal pure returns (int256) {
        int256 a = s.value(0, s.count, s.element);
        Slice scale = s.tensor(1, 2, 0, 2);
        unchecked {
            return Fixed.smulrs(a, Fixed.mantissa(scale.get(0)), -scale.get(1) - s.head.param(0));
        }
    }

    /// @dev 24: smooth bound on a magnitude
    function softCap(Step memory s) internal pure returns (int256) {
        int256 x = s.value(0, s.count, s.element);
        uint256 d = Fixed.mulrs(Fixed.abs(x), Fixed.mantissa(s.head.param(1)), s.head.param(2));
        return Fixed.softCap(x, s.head.size(0), exp2neg(s, 1, d));
    }

    /// @dev 27: largest element of a group
    function groupMax(Step memory s) internal pure returns (int256) {
        (Slice x, uint256 g) = group(s);
        return x.max(g);
    }

    /// @dev 29: sum of a group
    function groupSum(Step memory s) internal pure returns (int256) {
        (Slice x, uint256 g) = group(s);
        return x.sum(g);
    }

    // --------------------------------------------------------------------------------------------------- shared

    /// @notice 2^(−d) from the two entries of the table, operand `k`, that it lies between
    function exp2neg(Step memory s, uint256 k, uint256 d) internal pure returns (uint256) {
        Slice t = s.tensor(k, 257, Fixed.exp2negIndex(d), 2);
        return Fixed.exp2neg(d, Fixed.unsigned(t.get(0)), Fixed.unsigned(t.get(1)));
    }

    /// @dev the element of operand `k` for the judged element's group
    function groupMaximum(Step memory s, uint256 k) private pure returns (uint256) {
        unchecked {
            return Fixed.unsigned(s.value(k, s.count >> 1, s.element >> 1));
        }
    }

    /// @dev the judged element's group of parameter 0 elements
    function group(Step memory s) private pure returns (Slice, uint256 g) {
        unchecked {
            g = s.head.size(0);
            return (s.tensor(0, s.count * g, s.element * g, g), g);
        }
    }

    function bits(Step memory s) private pure returns (uint256 b) {
        b = s.head.bits();
        s.head.check(b >= 8 && b <= 16);
    }
}
