// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {IStepVerifier} from "../contracts/interfaces/IStepVerifier.sol";
import {Dtype, Slice, Slices} from "../contracts/lib/Slice.sol";
import {Naive} from "./support/Naive.sol";

/// The loops over calldata words against one element at a time, with arbitrary bytes before and after the slice.
contract StepVerifierSliceTest is Test {
    function slice(bytes calldata data, uint256 from, uint256 dtype) private pure returns (Slice) {
        uint256 at;
        assembly ("memory-safe") {
            at := add(data.offset, from)
        }
        return Slices.make(at, dtype);
    }

    function element(bytes memory data, uint256 from, uint256 dtype, uint256 i) private pure returns (int256) {
        uint256 w = [uint256(1), 2, 4, 2][dtype];
        uint256 v;
        for (uint256 k; k < w; ++k) {
            v = v * 256 + uint8(data[from + i * w + k]);
        }
        if (dtype != 3 && v >= 2 ** (8 * w - 1)) return int256(v) - int256(2 ** (8 * w));
        return int256(v);
    }

    function dotOf(bytes calldata a, uint256 da, bytes calldata b, uint256 db, uint256 from, uint256 n)
        external
        pure
        returns (int256)
    {
        return slice(a, from, da).dot(slice(b, from, db), n);
    }

    function reduce(bytes calldata a, uint256 from, uint256 dtype, uint256 n, int256 shift)
        external
        pure
        returns (int256[4] memory)
    {
        Slice s = slice(a, from, dtype);
        return [int256(s.maxAbs(n)), int256(s.sumSquares(n, shift)), s.max(n), s.sum(n)];
    }

    function weighted(bytes calldata p, bytes calldata v, uint256 from, uint256 n, uint256 step)
        external
        pure
        returns (int256)
    {
        return slice(p, from, Dtype.U16).weighted(slice(v, from, Dtype.I16).every(step), n);
    }

    function random(uint256 seed, uint256 n) private pure returns (bytes memory data) {
        data = new bytes(n);
        // Constant bytes now and then: the extremes of every lane at once.
        bool flat = seed % 5 == 0;
        uint8 fill = [0x80, 0x7f, 0xff, 0x00][seed >> 8 & 3];
        for (uint256 i; i < n; i += 32) {
            bytes32 w = keccak256(abi.encode(seed, i));
            for (uint256 k; k < 32 && i + k < n; ++k) {
                data[i + k] = flat ? bytes1(fill) : w[k];
            }
        }
    }

    function checkDot(uint256 seed, uint256 da, uint256 db, uint256 n, uint256 from) private view {
        bytes memory a = random(uint256(keccak256(abi.encode(seed, 1))), from + 2 * n + 3);
        bytes memory b = random(uint256(keccak256(abi.encode(seed, 2))), from + 2 * n + 3);
        int256 expected;
        for (uint256 i; i < n; ++i) {
            expected += element(a, from, da, i) * element(b, from, db, i);
        }
        assertEq(this.dotOf(a, da, b, db, from, n), expected);
    }

    function testFuzz_dot_i8_i8(uint256 seed, uint16 n, uint8 from) public view {
        checkDot(seed, Dtype.I8, Dtype.I8, uint256(n) % 200 + 1, from);
    }

    function testFuzz_dot_i8_i16(uint256 seed, uint16 n, uint8 from) public view {
        checkDot(seed, Dtype.I8, Dtype.I16, uint256(n) % 200 + 1, from);
    }

    function testFuzz_dot_i16_i8(uint256 seed, uint16 n, uint8 from) public view {
        checkDot(seed, Dtype.I16, Dtype.I8, uint256(n) % 200 + 1, from);
    }

    /// every pair of extremes at lengths about a whole number of words, and at the longest
    function test_dot_extremes() public view {
        uint256[10] memory lengths = [uint256(1), 15, 16, 17, 31, 32, 33, 576, 1536, 8191];
        uint8[4] memory fills = [0x80, 0x7f, 0xff, 0x00];
        for (uint256 l; l < lengths.length; ++l) {
            uint256 n = lengths[l];
            for (uint256 f; f < 16; ++f) {
                bytes memory a = filled(fills[f / 4], 2 * n);
                bytes memory b = filled(fills[f % 4], 2 * n);
                int256 x = element(a, 0, 0, 0);
                assertEq(this.dotOf(a, 0, b, 0, 0, n), int256(n) * x * element(b, 0, 0, 0));
                assertEq(this.dotOf(a, 0, b, 1, 0, n), int256(n) * x * element(b, 0, 1, 0));
            }
        }
    }

    function filled(uint8 fill, uint256 n) private pure returns (bytes memory data) {
        data = new bytes(n);
        for (uint256 i; i < n; ++i) {
            data[i] = bytes1(fill);
        }
    }

    function test_dot_of_other_types_is_refused() public {
        for (uint256 da; da < 4; ++da) {
            for (uint256 db; db < 4; ++db) {
                if ((da == 0 && db < 2) || (da == 1 && db == 0)) continue;
                vm.expectRevert(abi.encodeWithSelector(IStepVerifier.DtypePair.selector, da, db));
                this.dotOf(new bytes(64), da, new bytes(64), db, 0, 4);
            }
        }
    }

    function testFuzz_reductions(uint256 seed, uint16 length, uint8 from, int8 shift) public view {
        uint256 n = uint256(length) % 150 + 1;
        shift = int8(bound(shift, -16, 16));
        for (uint256 dtype; dtype < 4; ++dtype) {
            bytes memory a = random(uint256(keccak256(abi.encode(seed, dtype))), uint256(from) + 4 * n);
            int256[4] memory expected = naive(a, from, dtype, n, shift);
            int256[4] memory actual = this.reduce(a, from, dtype, n, shift);
            for (uint256 k; k < 4; ++k) {
                assertEq(actual[k], expected[k]);
            }
        }
    }

    function naive(bytes memory a, uint256 from, uint256 dtype, uint256 n, int256 shift)
        private
        pure
        returns (int256[4] memory r)
    {
        r[2] = type(int256).min;
        for (uint256 i; i < n; ++i) {
            int256 x = element(a, from, dtype, i);
            int256 m = int256(Naive.mag(x));
            if (m > r[0]) r[0] = m;
            m = int256(Naive.scaled(uint256(m), shift));
            r[1] += m > 65535 ? int256(65535) ** 2 : m * m;
            if (x > r[2]) r[2] = x;
            r[3] += x;
        }
    }

    function testFuzz_weighted(uint256 seed, uint8 from, uint8 n, uint8 step) public view {
        n = n % 17;
        bytes memory p = random(seed, uint256(from) + 2 * uint256(n));
        bytes memory v = random(~seed, uint256(from) + uint256(n) * step + 2);
        int256 expected;
        for (uint256 j; j < n; ++j) {
            expected += element(p, from, 3, j) * element(v, from + j * step, 1, 0);
        }
        assertEq(this.weighted(p, v, from, n, step), expected);
    }
}
