// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Fixed} from "./Fixed.sol";
import {Ops} from "./Ops.sol";
import {Step} from "./Reader.sol";
import {Slice} from "./Slice.sol";

/// @title Attention
/// @notice The opcodes on the context: one function each, which gives one output element from what it reads.
/// @dev As in `Ops`, the order of the reads is the specification's. Rows have an element for each of the position + 1 positions of
/// the context; what grows with it is summed up in blocks, so that no element reads more than one.
library Attention {
    /// @dev positions in a block of `MIX`
    uint256 private constant MIX_BLOCK = 16;

    /// @dev 13: a query against the key of one position
    function scores(Step memory s) internal pure returns (int256) {
        s.head.check(s.head.div() == 1 && s.head.inner() == 1);
        uint256 g = s.head.size(0);
        Slice q = query(s, 0, g);
        Slice qs = query(s, 1, 2);
        int256 acc = q.dot(key(s, 2, g), g);
        Slice ks = key(s, 3, 2);
        unchecked {
            return Fixed.smulrs(acc, Fixed.mantissa(qs.get(0)) * Fixed.mantissa(ks.get(0)), -qs.get(1) - ks.get(1));
        }
    }

    /// @dev the `each` elements of operand `k` for the judged element's head
    function query(Step memory s, uint256 k, uint256 each) private pure returns (Slice) {
        unchecked {
            uint256 n = s.position + 1;
            return s.tensor(k, s.count / n * each, s.element / n * each, each);
        }
    }

    /// @dev the `each` elements of cached operand `k` for its key/value head, at its position
    function key(Step memory s, uint256 k, uint256 each) private pure returns (Slice) {
        unchecked {
            uint256 n = s.position + 1;
            uint256 per = s.head.size(1);
            return s.cached(k, s.count / n / per * each, s.element / n / per * each, each, s.element % n, 1);
        }
    }

    /// @dev 14: running maximum
    function rowMax(Step memory s) internal pure returns (int256 m) {
        (Slice x, uint256 n) = blockOf(s);
        m = x.max(n);
        if (s.element >= s.head.inner()) {
            int256 before = s.own(s.element - s.head.inner());
            if (before > m) m = before;
        }
    }

    /// @dev 15: power of two of the distance to the maximum
    function exp(Step memory s) internal pure returns (int256) {
        int256 x = rowValue(s);
        int256 m = rowStatistic(s);
        return int256(Ops.exp2neg(s, 2, Fixed.unsigned(m - x)));
    }

    /// @dev 16: running sum
    function rowSum(Step memory s) internal pure returns (int256 sum) {
        (Slice x, uint256 n) = blockOf(s);
        sum = x.sum(n);
        if (s.element >= s.head.inner()) sum += s.own(s.element - s.head.inner());
    }

    /// @dev 17: share of the sum
    function prob(Step memory s) internal pure returns (int256) {
        uint256 e = Fixed.unsigned(rowValue(s));
        return int256(Fixed.prob(e, Fixed.unsigned(rowStatistic(s))));
    }

    /// @dev 18: running sum of the values, weighted by probability
    function mix(Step memory s) internal pure returns (int256 sum) {
        s.head.check(s.head.param(2) == int256(MIX_BLOCK) && s.head.div() == MIX_BLOCK);
        (uint256 first, uint256 len) = span(s, MIX_BLOCK);
        uint256 inner = s.head.inner();
        uint256 g = s.head.size(0);
        unchecked {
            uint256 n = s.position + 1;
            Slice p = s.tensor(0, inner / g * n, s.element % inner / g * n + first, len);
            sum = p.weighted(values(s, g, first, len), len);
            if (first != 0) sum += s.own(s.element - inner);
        }
    }

    /// @dev the judged element's dimension of its key/value head, at `len` positions
    function values(Step memory s, uint256 g, uint256 first, uint256 len) private pure returns (Slice) {
        unchecked {
            uint256 inner = s.head.inner();
            uint256 per = s.head.size(1);
            uint256 at = s.element % inner / g / per * g + s.element % g;
            return s.cached(1, inner / g / per * g, at, 1, first, len);
        }
    }

    /// @dev 25: scores of the last positions only
    function window(Step memory s) internal pure returns (int256) {
        s.head.check(s.head.div() == 1 && s.head.inner() == 1);
        uint256 width = Fixed.unsigned(s.value(1, 1, 0));
        unchecked {
            if (s.element % (s.position + 1) + width <= s.position) return -int256(Fixed.CL);
        }
        return s.value(0, s.count, s.element);
    }

    // --------------------------------------------------------------------------------------------------- shared

    /// @dev the elements of its row that a running reduction adds at the judged element
    function blockOf(Step memory s) private pure returns (Slice, uint256) {
        unchecked {
            uint256 size = s.head.size(0);
            s.head.check(s.head.div() == size);
            (uint256 first, uint256 len) = span(s, size);
            uint256 heads = s.head.inner();
            uint256 n = s.position + 1;
            return (s.tensor(0, heads * n, (s.element % heads) * n + first, len), len);
        }
    }

    /// @dev the positions of the judged element's block
    function span(Step memory s, uint256 size) private pure returns (uint256 first, uint256 len) {
        unchecked {
            uint256 n = s.position + 1;
            first = s.element / s.head.inner() * size;
            // Only a shape with more than one such matrix has elements beyond the last block.
            s.head.check(first < n);
            len = Fixed.min(size, n - first);
        }
    }

    /// @dev the element of operand 0 at the judged element's head and position
    function rowValue(Step memory s) private pure returns (int256) {
        unchecked {
            s.head.check(s.count == s.head.size(0) * (s.position + 1));
            return s.value(0, s.count, s.element);
        }
    }

    /// @dev the element of operand 1 for the judged element's head
    function rowStatistic(Step memory s) private pure returns (int256) {
        unchecked {
            return s.value(1, s.head.size(0), s.element / (s.position + 1));
        }
    }
}
