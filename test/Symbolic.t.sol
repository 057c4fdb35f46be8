// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Fixed} from "../contracts/lib/Fixed.sol";
import {Trees} from "../contracts/lib/Trees.sol";

/// @notice Properties for every input, not for random ones: `script/symbolic` has halmos prove them. Each states a function that is
/// written for gas (unchecked, in assembly) in plain checked arithmetic.
contract SymbolicTest {
    uint256 internal constant CL = (1 << 30) - 1;

    /// The number of bits: a fits into n, and not into n − 1.
    function check_bitlen(uint128 a) public pure {
        uint256 n = Fixed.bitlen(a);
        assert(n <= 128);
        assert(uint256(a) >> n == 0);
        if (a != 0) assert(uint256(a) >> (n - 1) == 1);
    }

    /// Nothing overflows for the operands that opcodes have.
    function check_mul15r(uint64 a, uint64 b) public pure {
        assert(Fixed.mul15r(a, b) == (uint256(a) * uint256(b) + 16384) / 32768);
    }

    function check_mulrs(uint64 a, uint16 b, int64 s) public pure {
        uint256 got = Fixed.mulrs(a, b, s);
        assert(got <= CL);
        if (s < 1) {
            assert(got == (a == 0 ? 0 : CL));
        } else {
            uint256 n = s > 63 ? 63 : uint256(int256(s));
            uint256 exact = (uint256(a) * uint256(b) + (uint256(1) << (n - 1))) >> n;
            assert(got == (exact < CL ? exact : CL));
        }
    }

    /// Rounding to nearest is off by half a step at most, and the same for both signs.
    function check_narrow(int64 acc, uint8 r) public pure {
        if (r == 0 || r > 32 || acc == type(int64).min) return;
        uint256 m = uint256(int256(acc < 0 ? -acc : acc));
        if ((m + (uint256(1) << (r - 1))) >> r > uint256(uint32(type(int32).max))) return;
        int256 got = Fixed.narrow(acc, r);
        assert(got == -Fixed.narrow(-acc, r));
        int256 off = (got << r) - acc;
        assert(off <= int256(1) << (r - 1) && off >= -(int256(1) << (r - 1)));
    }

    function check_addClamp(int32 x, int32 y) public pure {
        int256 sum = int256(x) + int256(y);
        int256 got = Fixed.addClamp(x, y);
        int256 limit = int256(CL);
        assert(got == (sum > limit ? limit : sum < -limit ? -limit : sum));
    }

    /// Never above the table's entry, whatever lies between the entries.
    function check_exp2neg(uint32 d, uint16 t0, uint16 t1) public pure {
        if (t1 > t0) return;
        assert(Fixed.exp2neg(d, t0, t1) <= t0);
    }

    /// The least depth that has room for n leaves.
    function check_depth(uint32 n) public pure {
        if (n == 0) return;
        uint256 d = Trees.depth(n);
        assert(uint256(1) << d >= n);
        if (d != 0) assert(uint256(1) << (d - 1) < n);
    }

    /// Pages cover a tensor, and none is empty.
    function check_pageCount(uint32 byteLength) public pure {
        uint256 n = Trees.pageCount(byteLength);
        assert(n * 1024 >= byteLength);
        if (n > 1) assert((n - 1) * 1024 < byteLength);
    }

    /// No second node leads to the same root by the same path, at any place of a tree of eight.
    function check_climb(bytes32 a, bytes32 b, bytes32[] calldata proof) public pure {
        if (a == b || proof.length != 3) return;
        for (uint256 index; index < 8; ++index) {
            (bytes32 one,) = Trees.climb(a, index, 3, proof, 0);
            (bytes32 other,) = Trees.climb(b, index, 3, proof, 0);
            assert(one != other);
        }
    }

    /// Nor the same node from the other side of its sibling.
    function check_place(bytes32 a, bytes32[] calldata proof) public pure {
        if (proof.length != 3 || a == proof[0]) return;
        for (uint256 index; index < 8; index += 2) {
            (bytes32 one,) = Trees.climb(a, index, 3, proof, 0);
            (bytes32 other,) = Trees.climb(a, index + 1, 3, proof, 0);
            assert(one != other);
        }
    }
}
