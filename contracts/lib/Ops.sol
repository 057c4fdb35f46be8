// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../interfaces/IStepVerifier.sol";
import {Head} from "./Descriptor.sol";
import {Fixed} from "./Fixed.sol";
import {Step} from "./Reader.sol";
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
        return Fixed.smulrs(row.get(s.element), m, sh);
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
            uint256 sum = x.sumSquares(g, Fixed.normShift(Fixed.unsigned(s.value(1, 1, 0))));
            return int256(s.element & 1 == 0 ? sum >> 16 : sum & 65535);
        }
    }

    /// @dev 4: root of all groups' sums of squares, and its exponent
    function rms(Step memory s) internal pure returns (int256) {
        unchecked {
            s.head.check(s.count == 2);
            uint256 g = s.head.size(1);
            Slice parts = s.tensor(0, 2 * g, 0, 2 * g);
            uint256 sum;
            for (uint256 i; i < g; ++i) {
                sum += (Fixed.unsigned(parts.get(2 * i)) << 16) + Fixed.unsigned(parts.get(2 * i + 1));
            }
            (uint256 r, int256 k) = Fixed.rms(sum, Fixed.unsigned(s.value(1, 1, 0)), s.head.size(0));
            return s.element == 0 ? int256(r) : k;
        }
    }

    /// @dev 5: elementwise gain
    function gain(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 n = s.head.size(0);
            int256 x = s.value(0, n, s.element);
            return Fixed.smul15r(x, s.value(1, n + 1, s.element));
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
            (uint256 m, int256 e) = Fixed.quantScale(groupMaximum(s), bits(s));
            return s.element & 1 == 0 ? int256(m) : e + s.head.param(0);
        }
    }

    /// @dev 8: scale of a normalised, quantised vector
    function normScale(Step memory s) internal pure returns (int256) {
        unchecked {
            s.head.check(s.count == 2);
            (uint256 m, int256 e) = Fixed.quantScale(Fixed.unsigned(s.value(0, 1, 0)), bits(s));
            Slice root = s.tensor(1, 2, 0, 2);
            uint256 n = s.head.size(0);
            (m, e) = Fixed.normScale(m, e, Fixed.mantissa(root.get(0)), root.get(1), s.value(2, n + 1, n));
            return s.element == 0 ? int256(m) : e;
        }
    }

    /// @dev 9: row of a matrix times vector, requantised
    function linear(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 k = s.head.size(0);
            Slice a = s.tensor(0, k, 0, k);
            Slice scale = s.tensor(1, 2, 0, 2);
            (uint256 m, int256 sh, Slice row) = s.weights(2, s.count, s.element, k);
            return Fixed.smulrs(row.dot(a, k), Fixed.mantissa(scale.get(0)) * m, sh - scale.get(1));
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
            (uint256 m, int256 e) = Fixed.quantScale(groupMaximum(s), 8);
            (m, e) = Fixed.scaleProduct(m, e + s.head.param(0), Fixed.mantissa(s.head.param(1)), s.head.param(2));
            return s.element & 1 == 0 ? int256(m) : e;
        }
    }

    /// @dev 12: round to a fixed grid
    function toFixed(Step memory s) internal pure returns (int256) {
        return Fixed.toFixed(s.value(0, s.count, s.element), s.head.size(0));
    }

    /// @dev 19: gated activation
    function siluMul(Step memory s) internal pure returns (int256) {
        int256 g = s.value(0, s.count, s.element);
        int256 u = s.value(1, s.count, s.element);
        return Fixed.siluMul(g, u, exp2neg(s, Fixed.siluExponent(g)));
    }

    /// @dev 20: residual addition
    function add(Step memory s) internal pure returns (int256) {
        int256 x = s.value(0, s.count, s.element);
        return Fixed.addClamp(x, s.value(1, s.count, s.element));
    }

    /// @dev 21: greedy selection
    /// @param claimed the value of the claimed element itself, which this opcode reads
    function select(Step memory s, int256 claimed) internal pure returns (int256) {
        s.head.check(s.count == 1);
        uint32 hint = s.witness().hint;
        int256 token = int256(s.token(1));
        if (token != claimed) {
            if (hint != 0) revert IStepVerifier.UnexpectedHint(hint);
            return token;
        }
        uint256 c = uint256(claimed);
        uint256 n = s.head.size(0);
        int256 chosen = s.value(0, n, c);
        int256 other = s.value(0, n, hint);
        return other > chosen || (other == chosen && hint < c) ? int256(uint256(hint)) : claimed;
    }

    // --------------------------------------------------------------------------------------------------- shared

    /// @notice 2^(−d) from the two entries of the table, operand 2, that it lies between
    function exp2neg(Step memory s, uint256 d) internal pure returns (uint256) {
        Slice t = s.tensor(2, 257, Fixed.exp2negIndex(d), 2);
        return Fixed.exp2neg(d, Fixed.unsigned(t.get(0)), Fixed.unsigned(t.get(1)));
    }

    function groupMaximum(Step memory s) private pure returns (uint256) {
        unchecked {
            return Fixed.unsigned(s.value(0, s.count >> 1, s.element >> 1));
        }
    }

    function bits(Step memory s) private pure returns (uint256 b) {
        b = s.head.bits();
        s.head.check(b >= 8 && b <= 16);
    }
}
