// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Fixed} from "./Fixed.sol";
import {Dtype, Slice, Slices} from "./Slice.sol";
import {IStepVerifier} from "../interfaces/IStepVerifier.sol";

/// @title Rows
/// @notice Weight rows in the formats of docs/instruction-set.md ("Weight rows"). A row here is what follows its scale pairs, in
/// calldata; whoever hands one over has checked its format and length by `fits` and `size`.
library Rows {
    uint256 internal constant I8 = 0;
    uint256 internal constant Q4 = 1;
    uint256 internal constant Q8 = 2;

    /// @dev elements that share a scale
    uint256 private constant GROUP = 32;

    /// @notice whether rows of `n` elements can have this format
    function fits(uint256 format, uint256 n) internal pure returns (bool) {
        return format == I8 || (format <= Q8 && n % GROUP == 0);
    }

    /// @notice bytes of a row of `n` elements
    function size(uint256 format, uint256 n) internal pure returns (uint256) {
        unchecked {
            if (format == I8) return n;
            return n / GROUP * (format == Q4 ? 20 : 34);
        }
    }

    /// @notice weight `i` of a row of `n`
    function weight(Slice row, uint256 format, uint256 n, uint256 i) internal pure returns (int256) {
        if (format == I8) return row.get(i);
        unchecked {
            uint256 at = uint64(Slice.unwrap(row));
            uint256 groups = n / GROUP;
            uint256 g = i / GROUP;
            int256 scale = Slices.make(at, Dtype.I16).get(g);
            if (format == Q8) return scale * Slices.make(at + 2 * groups, Dtype.I8).get(i);
            uint256 q = uint256(Slices.make(at + 4 * groups, Dtype.I8).get(16 * g + i % 16));
            q = (i % GROUP < 16 ? q : q >> 4) & 15;
            return scale * int256(q) + 2 * Slices.make(at, Dtype.I16).get(groups + g);
        }
    }

    /// @notice Σ w[k]·a[k] over `n` elements, narrowed as the format says; `a` I8 or I16
    function dot(Slice row, uint256 format, Slice a, uint256 n) internal pure returns (int256) {
        if (format == I8) return Fixed.narrow(row.dot(a, n), 0);
        uint256 dtype = a.dtypeOf();
        if (dtype != Dtype.I8 && dtype != Dtype.I16) revert IStepVerifier.DtypePair(dtype, Dtype.I8);
        bool wide = dtype == Dtype.I16;
        uint256 at = uint64(Slice.unwrap(row));
        uint256 vector = uint64(Slice.unwrap(a));
        unchecked {
            if (format == Q4) return Fixed.narrow(dotQ4(at, vector, n / GROUP, wide), 12);
            return Fixed.narrow(dotQ8(at, vector, n / GROUP, wide), 16);
        }
    }

    // As in `Slices.dot`: lanes instead of elements, one vector last to first, offsets that make everything unsigned. Here a group's 32
    // elements are two words of sixteen 16-bit lanes; products of every second lane have 32 bits each, and eight of them add up in
    // the highest. With q + A and a + B for q and a: Σqa = Σ(q+A)(a+B) − B·Σ(q+A) − A·Σ(a+B) + 32·A·B.

    /// @dev Σ_g s_g·Σ q·a + 2·m_g·Σ a; here A = 0
    function dotQ4(uint256 row, uint256 a, uint256 groups, bool wide) private pure returns (int256 acc) {
        unchecked {
            for (uint256 g; g < groups; ++g) {
                uint256 x = reversed(bytes16At(row + 4 * groups + 16 * g));
                (uint256 products, uint256 qs, uint256 total) = group(
                    x & 0x000f000f000f000f000f000f000f000f000f000f000f000f000f000f000f000f,
                    (x >> 4) & 0x000f000f000f000f000f000f000f000f000f000f000f000f000f000f000f000f,
                    vectorAt(a, 2 * g, wide),
                    vectorAt(a, 2 * g + 1, wide)
                );
                uint256 b = wide ? 15 : 7;
                acc += i16At(row + 2 * g) * (int256(products) - int256(qs << b));
                acc += 2 * i16At(row + 2 * (groups + g)) * (int256(total) - int256(GROUP << b));
            }
        }
    }

    /// @dev Σ_g s_g·Σ q·a; here A = 2^7
    function dotQ8(uint256 row, uint256 a, uint256 groups, bool wide) private pure returns (int256 acc) {
        unchecked {
            for (uint256 g; g < groups; ++g) {
                uint256 at = row + 2 * groups + GROUP * g;
                (uint256 products, uint256 qs, uint256 total) = group(
                    reversed(bytes16At(at)) ^ 0x0080008000800080008000800080008000800080008000800080008000800080,
                    reversed(bytes16At(at + 16)) ^ 0x0080008000800080008000800080008000800080008000800080008000800080,
                    vectorAt(a, 2 * g, wide),
                    vectorAt(a, 2 * g + 1, wide)
                );
                uint256 b = wide ? 15 : 7;
                int256 inner = int256(products) - int256(qs << b) - int256(total << 7) + int256(GROUP << (b + 7));
                acc += i16At(row + 2 * g) * inner;
            }
        }
    }

    /// @dev the products of x0 with y0 and of x1 with y1, added up, and the sums of the x and of the y. x below 2^8, y below 2^16:
    /// no lane of the four products' sum reaches 2^30.
    function group(uint256 x0, uint256 x1, uint256 y0, uint256 y1)
        private
        pure
        returns (uint256 products, uint256 xs, uint256 ys)
    {
        assembly ("memory-safe") {
            let p := and(x0, 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            let q := and(shr(16, y0), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            products := mul(p, q)
            xs := p
            ys := q
            p := and(shr(16, x0), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            q := and(y0, 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            products := add(products, mul(p, q))
            xs := add(xs, p)
            ys := add(ys, q)
            p := and(x1, 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            q := and(shr(16, y1), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            products := add(products, mul(p, q))
            xs := add(xs, p)
            ys := add(ys, q)
            p := and(shr(16, x1), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            q := and(y1, 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            products := shr(224, add(products, mul(p, q)))
            xs := shr(224, mul(add(xs, p), 0x0000000100000001000000010000000100000001000000010000000100000001))
            ys := shr(224, mul(add(ys, q), 0x0000000100000001000000010000000100000001000000010000000100000001))
        }
    }

    /// @dev sixteen elements of the vector from element 16·`half` on, larger by 2^15 or 2^7, in 16-bit lanes
    function vectorAt(uint256 a, uint256 half, bool wide) private pure returns (uint256 y) {
        unchecked {
            if (wide) {
                uint256 at = a + 32 * half;
                assembly ("memory-safe") {
                    y := xor(calldataload(at), 0x8000800080008000800080008000800080008000800080008000800080008000)
                }
                return y;
            }
            y = bytes16At(a + 16 * half);
        }
        assembly ("memory-safe") {
            y := and(or(shl(64, y), y), 0x0000000000000000ffffffffffffffff0000000000000000ffffffffffffffff)
            y := and(or(shl(32, y), y), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
            y := and(or(shl(16, y), y), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            y := and(or(shl(8, y), y), 0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff)
            y := xor(y, 0x0080008000800080008000800080008000800080008000800080008000800080)
        }
    }

    /// @dev sixteen bytes, spread to 16-bit lanes, last to first; the steps are those of `Slices.dot16`
    function reversed(uint256 x) private pure returns (uint256 r) {
        assembly ("memory-safe") {
            r := or(shr(64, x), and(shl(128, x), 0x0000000000000000ffffffffffffffff00000000000000000000000000000000))
            r := and(or(shl(64, r), shr(32, r)), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff)
            r := and(or(shl(32, r), shr(16, r)), 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff)
            r := and(or(shl(16, r), shr(8, r)), 0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff)
        }
    }

    function bytes16At(uint256 at) private pure returns (uint256 x) {
        assembly ("memory-safe") {
            x := shr(128, calldataload(at))
        }
    }

    function i16At(uint256 at) private pure returns (int256 v) {
        assembly ("memory-safe") {
            v := signextend(1, shr(240, calldataload(at)))
        }
    }
}
