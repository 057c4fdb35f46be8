// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../interfaces/IStepVerifier.sol";

/// @notice element types, as the descriptors number them
library Dtype {
    uint256 internal constant I8 = 0;
    uint256 internal constant I16 = 1;
    uint256 internal constant I32 = 2;
    uint256 internal constant U16 = 3;

    /// @notice bytes of an element
    function width(uint256 dtype) internal pure returns (uint256) {
        // Byte k of the constant (from the right) is the width of type k.
        return (0x02040201 >> (dtype << 3)) & 0xff;
    }
}

/// @notice Consecutive elements in calldata: where the first one lies (64 bits), their type (64 bits), and, for elements
/// of a cache, how far apart in calldata one position lies from the next.
type Slice is uint256;

using Slices for Slice global;

/// @title Slices
/// @notice Values and reductions over authenticated elements.
/// @dev Elements stay in calldata: a word costs the same there as in memory, and nothing has to be copied. A word that is
/// read at the end of a slice may hold bytes beyond it; every loop shifts or masks them out. All assembly here only
/// reads calldata.
library Slices {
    function make(uint256 at, uint256 dtype) internal pure returns (Slice) {
        return Slice.wrap(at | (dtype << 64));
    }

    /// @notice the same elements, repeated every `step` bytes
    function every(Slice s, uint256 step) internal pure returns (Slice) {
        return Slice.wrap(Slice.unwrap(s) | (step << 128));
    }

    function dtypeOf(Slice s) internal pure returns (uint256) {
        return (Slice.unwrap(s) >> 64) & 0xffffffffffffffff;
    }

    /// @notice the same elements at the `j`-th next position
    function position(Slice s, uint256 j) internal pure returns (Slice) {
        unchecked {
            return Slice.wrap(Slice.unwrap(s) + j * (Slice.unwrap(s) >> 128));
        }
    }

    /// @notice element `i`
    function get(Slice s, uint256 i) internal pure returns (int256 v) {
        (uint256 at, uint256 w, uint256 top) = layout(s);
        assembly ("memory-safe") {
            v := signextend(top, shr(sub(256, shl(3, w)), calldataload(add(at, mul(i, w)))))
        }
    }

    /// @dev `top` is the index of the byte whose highest bit is the sign, 31 for an unsigned type
    function layout(Slice s) private pure returns (uint256 at, uint256 w, uint256 top) {
        unchecked {
            uint256 dtype = dtypeOf(s);
            at = uint64(Slice.unwrap(s));
            w = Dtype.width(dtype);
            top = dtype == Dtype.U16 ? 31 : w - 1;
        }
    }

    // ------------------------------------------------------------------------------------------------ reductions

    /// @notice the largest magnitude of `n` elements
    function maxAbs(Slice s, uint256 n) internal pure returns (uint256 m) {
        (uint256 at, uint256 w, uint256 top) = layout(s);
        if (w == 4) return maxAbs32(at, n);
        assembly ("memory-safe") {
            let shift := sub(256, shl(3, w))
            for { let end := add(at, mul(n, w)) } lt(at, end) { at := add(at, w) } {
                let v := signextend(top, shr(shift, calldataload(at)))
                let sign := sar(255, v)
                v := sub(xor(v, sign), sign)
                if gt(v, m) { m := v }
            }
        }
    }

    /// @notice Σ min(65535, |x| shifted by `shift`)² over `n` elements
    function sumSquares(Slice s, uint256 n, int256 shift) internal pure returns (uint256 total) {
        (uint256 at, uint256 w, uint256 top) = layout(s);
        if (w == 4) return sumSquares32(at, n, shift);
        assembly ("memory-safe") {
            // One of the two is zero, so shifting by both is shifting by the one that is meant.
            let right := mul(shift, sgt(shift, 0))
            let left := sub(right, shift)
            let drop := sub(256, shl(3, w))
            for { let end := add(at, mul(n, w)) } lt(at, end) { at := add(at, w) } {
                let v := signextend(top, shr(drop, calldataload(at)))
                let sign := sar(255, v)
                v := shl(left, shr(right, sub(xor(v, sign), sign)))
                if gt(v, 65535) { v := 65535 }
                total := add(total, mul(v, v))
            }
        }
    }

    // Both on I32, eight elements a turn, in two sets of every second element, so that each has a lane of 64 bits. A negative
    // element's magnitude is its complement plus one; elements beyond the end become zero.

    function maxAbs32(uint256 at, uint256 n) private pure returns (uint256 m) {
        assembly ("memory-safe") {
            for { let end := add(at, shl(2, n)) } lt(at, end) { at := add(at, 32) } {
                let x := calldataload(at)
                let left := sub(end, at)
                if lt(left, 32) {
                    let drop := shl(3, sub(32, left))
                    x := shl(drop, shr(drop, x))
                }
                for { let set := 0 } lt(set, 64) { set := add(set, 32) } {
                    let u := and(shr(set, x), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
                    let sign := and(shr(31, u), 0x0000000000000001000000000000000100000000000000010000000000000001)
                    u := add(xor(u, mul(sign, 0xffffffff)), sign)
                    // Bit 32 of m + 2^32 − u says m ≥ u; where it is set m stays, elsewhere u takes its place.
                    let stays :=
                        and(
                            shr(32, sub(or(m, 0x0000000100000000000000010000000000000001000000000000000100000000), u)),
                            0x0000000000000001000000000000000100000000000000010000000000000001
                        )
                    m := xor(u, and(xor(u, m), mul(stays, 0xffffffff)))
                }
            }
            // the largest of the four lanes
            let lanes := m
            m := 0
            for {} lanes { lanes := shr(64, lanes) } {
                let u := and(lanes, 0xffffffff)
                if gt(u, m) { m := u }
            }
        }
    }

    /// @param shift between −16 and 16
    function sumSquares32(uint256 at, uint256 n, int256 shift) private pure returns (uint256 total) {
        assembly ("memory-safe") {
            let right := mul(shift, sgt(shift, 0))
            let up := sub(right, shift)
            for { let end := add(at, shl(2, n)) } lt(at, end) { at := add(at, 32) } {
                let x := calldataload(at)
                let left := sub(end, at)
                if lt(left, 32) {
                    let drop := shl(3, sub(32, left))
                    x := shl(drop, shr(drop, x))
                }
                for { let set := 0 } lt(set, 64) { set := add(set, 32) } {
                    let u := and(shr(set, x), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
                    let t := and(shr(31, u), 0x0000000000000001000000000000000100000000000000010000000000000001)
                    u := add(xor(u, mul(t, 0xffffffff)), t)
                    // At most 16 bits of a lane fall into the upper half of the one below.
                    u := and(shr(right, u), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
                    u := shl(up, u)
                    // Below 2^47 now. Bit 63 of u + 2^63 − 2^16 says that u has more than 16 bits; then it becomes 65535.
                    t := and(
                        shr(63, add(u, 0x7fffffffffff00007fffffffffff00007fffffffffff00007fffffffffff0000)),
                        0x0000000000000001000000000000000100000000000000010000000000000001
                    )
                    u := and(or(u, mul(t, 0xffff)), 0x000000000000ffff000000000000ffff000000000000ffff000000000000ffff)
                    // Squares by the product with the lanes last to first; see `dot`.
                    t := or(shl(128, u), shr(128, u))
                    t := or(
                        and(shl(64, t), 0xffffffffffffffff0000000000000000ffffffffffffffff0000000000000000),
                        and(shr(64, t), 0x0000000000000000ffffffffffffffff0000000000000000ffffffffffffffff)
                    )
                    total := add(total, shr(192, mul(u, t)))
                }
            }
        }
    }

    /// @notice the largest of `n` ≥ 1 elements
    function max(Slice s, uint256 n) internal pure returns (int256 m) {
        (uint256 at, uint256 w, uint256 top) = layout(s);
        if (w == 4) return max32(at, n);
        m = get(s, 0);
        assembly ("memory-safe") {
            let shift := sub(256, shl(3, w))
            for { let end := add(at, mul(n, w)) } lt(at, end) { at := add(at, w) } {
                let v := signextend(top, shr(shift, calldataload(at)))
                if sgt(v, m) { m := v }
            }
        }
    }

    /// @notice the sum of `n` elements
    function sum(Slice s, uint256 n) internal pure returns (int256 total) {
        (uint256 at, uint256 w, uint256 top) = layout(s);
        if (w == 4) return sum32(at, n);
        assembly ("memory-safe") {
            let shift := sub(256, shl(3, w))
            for { let end := add(at, mul(n, w)) } lt(at, end) { at := add(at, w) } {
                total := add(total, signextend(top, shr(shift, calldataload(at))))
            }
        }
    }

    /// @notice whether `v` is one of `n` elements
    function contains(Slice s, uint256 n, int256 v) internal pure returns (bool) {
        unchecked {
            for (uint256 i; i < n; ++i) {
                if (get(s, i) == v) return true;
            }
        }
        return false;
    }

    // On I32, in lanes as above. An element with its sign bit flipped is larger by 2^31 and unsigned, so the order stays; elements
    // beyond the end become zero, the least there is.

    function max32(uint256 at, uint256 n) private pure returns (int256 m) {
        assembly ("memory-safe") {
            let lanes := 0
            for { let end := add(at, shl(2, n)) } lt(at, end) { at := add(at, 32) } {
                let x := xor(calldataload(at), 0x8000000080000000800000008000000080000000800000008000000080000000)
                let left := sub(end, at)
                if lt(left, 32) {
                    let drop := shl(3, sub(32, left))
                    x := shl(drop, shr(drop, x))
                }
                for { let set := 0 } lt(set, 64) { set := add(set, 32) } {
                    let u := and(shr(set, x), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
                    // as in `maxAbs32`
                    let stays :=
                        and(
                            shr(
                                32,
                                sub(or(lanes, 0x0000000100000000000000010000000000000001000000000000000100000000), u)
                            ),
                            0x0000000000000001000000000000000100000000000000010000000000000001
                        )
                    lanes := xor(u, and(xor(u, lanes), mul(stays, 0xffffffff)))
                }
            }
            for {} lanes { lanes := shr(64, lanes) } {
                let u := and(lanes, 0xffffffff)
                if gt(u, m) { m := u }
            }
            m := sub(m, 0x80000000)
        }
    }

    function sum32(uint256 at, uint256 n) private pure returns (int256 total) {
        assembly ("memory-safe") {
            let lanes := 0
            for { let end := add(at, shl(2, n)) } lt(at, end) { at := add(at, 32) } {
                let x := xor(calldataload(at), 0x8000000080000000800000008000000080000000800000008000000080000000)
                let left := sub(end, at)
                if lt(left, 32) {
                    let drop := shl(3, sub(32, left))
                    x := shl(drop, shr(drop, x))
                }
                lanes := add(lanes, and(x, 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff))
                lanes := add(lanes, and(shr(32, x), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff))
            }
            total := shr(192, mul(lanes, 0x0000000000000001000000000000000100000000000000010000000000000001))
            total := sub(total, shl(31, n))
        }
    }

    /// @notice how many of `n` elements, I32, are at least `least`
    function atLeast(Slice s, uint256 n, int256 least) internal pure returns (uint256 count) {
        if (dtypeOf(s) != Dtype.I32) revert IStepVerifier.DtypePair(dtypeOf(s), Dtype.I32);
        if (least <= type(int32).min) return n;
        if (least > type(int32).max) return 0;
        uint256 at = uint64(Slice.unwrap(s));
        // No element beyond the end is counted, since the bound is not the least.
        uint256 bound = laneBound(least);
        assembly ("memory-safe") {
            let lanes := 0
            for { let end := add(at, shl(2, n)) } lt(at, end) { at := add(at, 32) } {
                let x := xor(calldataload(at), 0x8000000080000000800000008000000080000000800000008000000080000000)
                let left := sub(end, at)
                if lt(left, 32) {
                    let drop := shl(3, sub(32, left))
                    x := shl(drop, shr(drop, x))
                }
                let u := add(and(x, 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff), bound)
                lanes := add(lanes, and(shr(32, u), 0x0000000000000001000000000000000100000000000000010000000000000001))
                u := add(and(shr(32, x), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff), bound)
                lanes := add(lanes, and(shr(32, u), 0x0000000000000001000000000000000100000000000000010000000000000001))
            }
            count := shr(192, mul(lanes, 0x0000000000000001000000000000000100000000000000010000000000000001))
        }
    }

    /// @dev in every lane 2^32 less the bound, counted from the least there is: its sum with an element has bit 32 where that is not smaller
    function laneBound(int256 least) private pure returns (uint256 bound) {
        if (least < type(int32).min) least = type(int32).min;
        assembly ("memory-safe") {
            bound := mul(sub(0x80000000, least), 0x0000000000000001000000000000000100000000000000010000000000000001)
        }
    }

    /// @notice `HISTOGRAM`'s mass of those of `n` elements, I32, that lie `nearest` to `farthest` below `top`
    /// @param farthest at most 2^18: then the power's shift, below 32, needs no test
    /// @param t the table of powers, U16
    function mass(Slice s, uint256 n, int256 top, uint256 nearest, uint256 farthest, Slice t)
        internal
        pure
        returns (int256 total)
    {
        unchecked {
            int256 least = top - int256(farthest);
            uint256 low = laneBound(least);
            uint256 above = laneBound(top - int256(nearest) + 1);
            uint256 at = uint64(Slice.unwrap(s));
            for (uint256 end = at + 4 * n; at < end; at += 32) {
                // Most words hold nothing of the bin.
                if (!anyBetween(at, low, above)) continue;
                uint256 last = end - at < 32 ? end : at + 32;
                total += massOf(at, last, top, nearest, farthest - nearest, uint64(Slice.unwrap(t)));
            }
        }
    }

    /// @dev whether one of the eight elements at `at` is not below the one bound and below the other
    function anyBetween(uint256 at, uint256 low, uint256 above) private pure returns (bool any) {
        assembly ("memory-safe") {
            let x := xor(calldataload(at), 0x8000000080000000800000008000000080000000800000008000000080000000)
            let u := and(x, 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
            let hits := xor(add(u, low), add(u, above))
            u := and(shr(32, x), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
            hits := or(hits, xor(add(u, low), add(u, above)))
            any := iszero(iszero(and(hits, 0x0000000100000000000000010000000000000001000000000000000100000000)))
        }
    }

    function massOf(uint256 at, uint256 last, int256 top, uint256 nearest, uint256 span, uint256 t)
        private
        pure
        returns (int256 total)
    {
        uint256 rising;
        assembly ("memory-safe") {
            for {} lt(at, last) { at := add(at, 4) } {
                let d := sub(top, signextend(3, shr(224, calldataload(at))))
                if gt(sub(d, nearest), span) { continue }
                d := shr(15, add(mul(d, 23637), 16384))
                // exp2neg
                let e := calldataload(add(t, shl(1, shr(5, and(d, 8191)))))
                let next := and(shr(224, e), 0xffff)
                e := shr(240, e)
                rising := or(rising, gt(next, e))
                e := sub(e, shr(5, add(mul(sub(e, next), and(d, 31)), 16)))
                d := shr(13, d)
                // One is shifted by d, as it is meant.
                // slither-disable-next-line incorrect-shift
                e := shr(d, add(e, shr(1, shl(d, 1))))
                total := add(total, shr(3, add(e, 4)))
            }
        }
        if (rising != 0) revert IStepVerifier.ValueRange(int256(rising));
    }

    /// @notice `MASS` of `n` elements, I32, none of them above `top`
    /// @param t the table of powers, U16
    function wholeMass(Slice s, uint256 n, int256 top, Slice t) internal pure returns (int256 total) {
        unchecked {
            // From there on nothing has any mass, and up to there the power's shift, below 32, needs no test.
            uint256 low = laneBound(top - (1 << 18));
            uint256 above = laneBound(top + 1);
            uint256 at = uint64(Slice.unwrap(s));
            for (uint256 end = at + 4 * n; at < end; at += 32) {
                if (!anyBetween(at, low, above)) continue;
                total += wholeMassOf(at, end - at < 32 ? end : at + 32, top, uint64(Slice.unwrap(t)));
            }
        }
    }

    function wholeMassOf(uint256 at, uint256 last, int256 top, uint256 t) private pure returns (int256 total) {
        uint256 rising;
        assembly ("memory-safe") {
            for {} lt(at, last) { at := add(at, 4) } {
                let d := sub(top, signextend(3, shr(224, calldataload(at))))
                if gt(d, 0x40000) { continue }
                d := shr(15, add(mul(d, 23637), 16384))
                // exp2neg, six bits finer
                let e := calldataload(add(t, shl(1, shr(5, and(d, 8191)))))
                let next := and(shr(224, e), 0xffff)
                e := shr(240, e)
                rising := or(rising, gt(next, e))
                e := sub(e, shr(5, add(mul(sub(e, next), and(d, 31)), 16)))
                d := shr(13, d)
                // slither-disable-next-line incorrect-shift
                total := add(total, shr(d, add(shl(6, e), shr(1, shl(d, 1)))))
            }
        }
        if (rising != 0) revert IStepVerifier.ValueRange(int256(rising));
    }

    /// @notice Σ p[j]·v at position j, over `n` positions
    function weighted(Slice p, Slice v, uint256 n) internal pure returns (int256 total) {
        unchecked {
            for (uint256 j; j < n; ++j) {
                total += get(p, j) * get(position(v, j), 0);
            }
        }
    }

    // ---------------------------------------------------------------------------------------------- dot products

    /// @notice Σ a[k]·b[k] over `n` elements; one of them I8, the other I8 or I16
    function dot(Slice a, Slice b, uint256 n) internal pure returns (int256) {
        uint256 da = dtypeOf(a);
        uint256 db = dtypeOf(b);
        uint256 pa = uint64(Slice.unwrap(a));
        uint256 pb = uint64(Slice.unwrap(b));
        if (da == Dtype.I8 && db == Dtype.I8) return dot8(pa, pb, n);
        if (da == Dtype.I8 && db == Dtype.I16) return dot16(pa, pb, n);
        if (da == Dtype.I16 && db == Dtype.I8) return dot16(pb, pa, n);
        revert IStepVerifier.DtypePair(da, db);
    }

    // Eight products in one multiplication: with a word cut into eight 32-bit lanes, the highest lane of the product of two
    // words is Σ x[i]·y[7−i]. So one operand is put in reverse order. Flipping the sign bit makes an element unsigned, that is
    // larger by 2^7 (2^15): then every lane of the product stays below 2^32 (8·255·65535 at most) and none carries
    // into the next. The sums of the lanes themselves take the offsets off again at the end:
    // Σ(x+A)(y+B) = Σxy + B·Σ(x+A) + A·Σ(y+B) − n·A·B.

    /// @dev both I8: 32 elements a turn, in four sets of every fourth element
    function dot8(uint256 a, uint256 b, uint256 n) private pure returns (int256 acc) {
        assembly ("memory-safe") {
            let sums := 0
            for { let end := add(a, n) } lt(a, end) {} {
                let x := xor(calldataload(a), 0x8080808080808080808080808080808080808080808080808080808080808080)
                let y := xor(calldataload(b), 0x8080808080808080808080808080808080808080808080808080808080808080)
                let left := sub(end, a)
                if lt(left, 32) {
                    let drop := shl(3, sub(32, left))
                    x := shl(drop, shr(drop, x))
                    y := shl(drop, shr(drop, y))
                }
                // the lanes of y, last to first
                y := or(shl(128, y), shr(128, y))
                y := or(
                    and(shl(64, y), 0xffffffffffffffff0000000000000000ffffffffffffffff0000000000000000),
                    and(shr(64, y), 0x0000000000000000ffffffffffffffff0000000000000000ffffffffffffffff)
                )
                y := or(
                    and(shl(32, y), 0xffffffff00000000ffffffff00000000ffffffff00000000ffffffff00000000),
                    and(shr(32, y), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
                )
                for { let set := 0 } lt(set, 32) { set := add(set, 8) } {
                    let p := and(shr(set, x), 0x000000ff000000ff000000ff000000ff000000ff000000ff000000ff000000ff)
                    let q := and(shr(set, y), 0x000000ff000000ff000000ff000000ff000000ff000000ff000000ff000000ff)
                    sums := add(sums, add(p, q))
                    acc := add(acc, shr(224, mul(p, q)))
                }
                a := add(a, 32)
                b := add(b, 32)
            }
            // The eight lanes' total, added up at twice their width.
            sums := add(
                and(sums, 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff),
                and(shr(32, sums), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
            )
            sums := shr(192, mul(sums, 0x0000000000000001000000000000000100000000000000010000000000000001))
            acc := add(sub(acc, shl(7, sums)), shl(14, n))
        }
    }

    /// @dev `a` I8, `b` I16: 16 elements a turn, the odd and the even ones
    function dot16(uint256 a, uint256 b, uint256 n) private pure returns (int256 acc) {
        assembly ("memory-safe") {
            let sumsA := 0
            let sumsB := 0
            for { let end := add(a, n) } lt(a, end) {} {
                let x := xor(calldataload(a), 0x8080808080808080808080808080808080808080808080808080808080808080)
                let y := xor(calldataload(b), 0x8000800080008000800080008000800080008000800080008000800080008000)
                let left := sub(end, a)
                if lt(left, 16) {
                    let drop := shl(4, sub(16, left))
                    y := shl(drop, shr(drop, y))
                    drop := shl(3, sub(32, left))
                    x := shl(drop, shr(drop, x))
                }
                // The first 16 bytes of x, spread to 16-bit lanes, last to first: each step swaps the halves of every unit and
                // moves them to the lower half of twice the room.
                x := or(shr(192, x), and(x, 0x0000000000000000ffffffffffffffff00000000000000000000000000000000))
                x := and(or(shl(64, x), shr(32, x)), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
                x := and(or(shl(32, x), shr(16, x)), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
                x := and(or(shl(16, x), shr(8, x)), 0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff)
                for { let set := 0 } lt(set, 32) { set := add(set, 16) } {
                    let p := and(shr(set, x), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
                    let q :=
                        and(shr(sub(16, set), y), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
                    sumsA := add(sumsA, p)
                    sumsB := add(sumsB, q)
                    acc := add(acc, shr(224, mul(p, q)))
                }
                a := add(a, 16)
                b := add(b, 32)
            }
            // Lanes hold at most 65535 a turn and set, so they have room for 2^19 elements, more than fit a transaction.
            sumsA := add(
                and(sumsA, 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff),
                and(shr(32, sumsA), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
            )
            sumsA := shr(192, mul(sumsA, 0x0000000000000001000000000000000100000000000000010000000000000001))
            sumsB := add(
                and(sumsB, 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff),
                and(shr(32, sumsB), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
            )
            sumsB := shr(192, mul(sumsB, 0x0000000000000001000000000000000100000000000000010000000000000001))
            acc := add(sub(acc, add(shl(15, sumsA), shl(7, sumsB))), shl(22, n))
        }
    }
}
