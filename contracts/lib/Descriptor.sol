// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../interfaces/IStepVerifier.sol";

/// @notice the kinds of operands
library Kind {
    uint256 internal constant NONE = 0;
    uint256 internal constant OP = 1;
    uint256 internal constant PREV = 2;
    uint256 internal constant CACHE = 3;
    uint256 internal constant WEIGHT = 4;
    uint256 internal constant TABLE = 5;
    uint256 internal constant TOKEN = 6;
}

/// @notice the first 32 bytes of a descriptor: opcode, output type, flags, bits, shape, parameters
type Head is uint256;

/// @notice one operand: kind u8, flags u8, stride u16, index u32
type Operand is uint256;

using Descriptor for Head global;
using Descriptor for Operand global;

/// @title Descriptor
/// @notice Decodes the 64-byte operator descriptor of docs/instruction-set.md from its two words.
library Descriptor {
    uint256 internal constant BYTES = 64;

    function opcode(Head h) internal pure returns (uint256) {
        return Head.unwrap(h) >> 248;
    }

    /// @notice the element type of the output
    function dtype(Head h) internal pure returns (uint256) {
        return (Head.unwrap(h) >> 240) & 0xff;
    }

    function bits(Head h) internal pure returns (uint256) {
        return (Head.unwrap(h) >> 224) & 0xff;
    }

    function div(Head h) internal pure returns (uint256) {
        return (Head.unwrap(h) >> 160) & 0xffffffff;
    }

    function inner(Head h) internal pure returns (uint256) {
        return (Head.unwrap(h) >> 128) & 0xffffffff;
    }

    /// @notice parameter `k`
    function param(Head h, uint256 k) internal pure returns (int256) {
        unchecked {
            return int32(uint32(Head.unwrap(h) >> (96 - 32 * k)));
        }
    }

    /// @notice parameter `k` where it counts or divides something
    function size(Head h, uint256 k) internal pure returns (uint256) {
        int256 p = param(h, k);
        if (p <= 0) revert IStepVerifier.Malformed(opcode(h));
        return uint256(p);
    }

    /// @notice elements of the output at position `t`; below 2^97
    function count(Head h, uint256 t) internal pure returns (uint256) {
        unchecked {
            uint256 outer = (Head.unwrap(h) >> 192) & 0xffffffff;
            uint256 d = div(h);
            return outer * (d == 0 ? 1 : (t + d) / d) * inner(h);
        }
    }

    /// @notice reverts unless the descriptor obeys its opcode's rule
    function check(Head h, bool rule) internal pure {
        if (!rule) revert IStepVerifier.Malformed(opcode(h));
    }

    /// @notice operand `k` of the descriptor's second word
    function operand(uint256 word, uint256 k) internal pure returns (Operand) {
        unchecked {
            return Operand.wrap((word >> (192 - 64 * k)) & 0xffffffffffffffff);
        }
    }

    function kind(Operand o) internal pure returns (uint256) {
        return Operand.unwrap(o) >> 56;
    }

    /// @notice the operand is the last slab of a running reduction
    function tail(Operand o) internal pure returns (bool) {
        return (Operand.unwrap(o) >> 48) & 1 == 1;
    }

    /// @notice the element type of the tensor that is read
    function source(Operand o) internal pure returns (uint256) {
        return (Operand.unwrap(o) >> 49) & 3;
    }

    function stride(Operand o) internal pure returns (uint256) {
        return (Operand.unwrap(o) >> 32) & 0xffff;
    }

    function index(Operand o) internal pure returns (uint256) {
        return Operand.unwrap(o) & 0xffffffff;
    }
}
