// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../interfaces/IStepVerifier.sol";
import {Fixed} from "./Fixed.sol";
import {Step} from "./Reader.sol";
import {Slice, Slices} from "./Slice.sol";

/// @title LogProbs
/// @notice The opcodes of log-probabilities: one function each, which gives one output element from what it reads.
/// @dev As in `Ops`, the order of the reads is the specification's.
library LogProbs {
    /// @dev ln 2 in Q18
    uint256 private constant LN2 = 181704;

    /// @dev 33: likeliest tokens in order
    /// @param claimed the value of the claimed element itself, which this opcode reads
    function top(Step memory s, int256 claimed) internal pure returns (int256) {
        uint256 n = s.head.size(0);
        // The token before has no place in the order if there is none: then every token comes after it.
        int256 p;
        if (s.element != 0) p = s.own(s.element - 1);
        bool named = claimed >= 0 && claimed < int256(n);
        int256 chosen;
        if (named) chosen = s.value(0, n, uint256(claimed));
        int256 previous = type(int256).max;
        if (s.element != 0) previous = s.value(0, n, Fixed.unsigned(p));
        uint256 h = s.witness().hint;
        int256 other = s.value(0, n, h);
        if (!precedes(p, previous, int256(h), other)) return claimed;
        if (named && precedes(p, previous, claimed, chosen) && !precedes(int256(h), other, claimed, chosen)) {
            return claimed;
        }
        return int256(h);
    }

    /// @dev whether token `a`, of the one logit, comes before token `b`, of the other
    function precedes(int256 a, int256 logitA, int256 b, int256 logitB) private pure returns (bool) {
        return logitA > logitB || (logitA == logitB && a < b);
    }

    /// @dev 34: probability mass of a group
    function mass(Step memory s) internal pure returns (int256) {
        unchecked {
            uint256 g = s.head.size(0);
            Slice z = s.tensor(0, s.count * g, s.element * g, g);
            int256 max = s.value(1, 1, 0);
            if (z.atLeast(g, max + 1) != 0) revert IStepVerifier.ValueRange(max);
            return Slices.wholeMass(z, g, max, s.tensor(2, 257, 0, 257));
        }
    }

    /// @dev 35: the largest logit plus the logarithm of the whole mass
    function logSum(Step memory s) internal pure returns (int256) {
        int256 max = s.value(0, 1, 0);
        uint256 n = s.head.size(0);
        uint256 total = Fixed.unsigned(s.tensor(1, n, 0, n).sum(n));
        // Less than the largest logit's own mass, or more than all groups'.
        if (total < 1 << 21 || total >= 1 << 42) revert IStepVerifier.ValueRange(int256(total));
        unchecked {
            uint256 octaves = Fixed.bitlen(total) - 22;
            uint256 fraction = ((total << 1) >> octaves) & 0x3fffff;
            Slice t = s.tensor(2, 257, fraction >> 14, 2);
            int256 t0 = t.get(0);
            int256 step = (t.get(1) - t0) * int256(fraction & 16383);
            return max + int256((octaves * LN2 + 8) >> 4) + t0 + ((step + 8192) >> 14);
        }
    }

    /// @dev 36: log-probability of the selected token, or of one of the likeliest
    function logProb(Step memory s) internal pure returns (int256) {
        s.head.check(s.count > 1);
        int256 sum = s.value(1, 1, 0);
        uint256 token;
        unchecked {
            token = Fixed.unsigned(s.element == 0 ? s.value(3, 1, 0) : s.value(2, s.count - 1, s.element - 1));
        }
        int256 logit = s.value(0, s.head.size(0), token);
        if (logit > sum) revert IStepVerifier.ValueRange(logit);
        unchecked {
            return -int256(Fixed.min(Fixed.CL, uint256(sum - logit)));
        }
    }
}
