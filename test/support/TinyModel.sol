// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {NaiveTree} from "./NaiveTree.sol";

/// @notice A model of two blocks whose operators are sums, so that a test can write its honest trace down.
///
///     embedding  0 EMBED  (exported)   h = b
///     block      0 ADD    (exported)   a = h' + h'
///                1 SCORES              t + 1 pages of whatever: only its length matters here
///                2 ADD    (exported)   h = a + h'
///     head       0 ADD    (exported)   y = h' + h'
///                1 SELECT (exported)
///
/// h' is what the layer before exports last, so layer l's h is 3^l·b.
library TinyModel {
    uint16 internal constant LAYERS = 2;
    uint32 internal constant VOCAB = 1000;
    uint32 internal constant MAX_POSITIONS = 128;
    uint32 internal constant STOP = 7;
    /// @notice elements of a hidden state: two pages, the second not full
    uint32 internal constant WIDTH = 300;

    uint8 internal constant I32 = 2;

    function operand(uint8 kind, uint32 index) internal pure returns (bytes8) {
        // The tensors that operands 1 to 3 read are I32: bits 1 and 2 of the flags.
        return bytes8(bytes.concat(bytes1(kind), bytes1(kind < 4 ? 2 * I32 : 0), bytes2(0), bytes4(index)));
    }

    function descriptor(
        uint8 opcode,
        bool exported,
        uint32 outer,
        uint32 div,
        uint32 inner,
        bytes16 params,
        bytes8 a,
        bytes8 b
    ) internal pure returns (bytes memory) {
        return abi.encodePacked(
            opcode, I32, uint8(exported ? 1 : 0), uint8(0), outer, div, inner, params, a, b, bytes16(0)
        );
    }

    function embed() internal pure returns (bytes memory) {
        bytes16 params = bytes16(abi.encodePacked(VOCAB, uint32(0), uint32(1), uint32(0)));
        return descriptor(1, true, 1, 0, WIDTH, params, operand(6, 0), operand(4, 0));
    }

    function add(bool exported, bytes8 a, bytes8 b) internal pure returns (bytes memory) {
        return descriptor(20, exported, 1, 0, WIDTH, 0, a, b);
    }

    function section(uint8 which) internal pure returns (bytes[] memory ops) {
        bytes8 prev = operand(2, 0);
        if (which == 0) {
            ops = new bytes[](1);
            ops[0] = embed();
        } else if (which == 1) {
            ops = new bytes[](3);
            ops[0] = add(true, prev, prev);
            ops[1] = descriptor(13, false, 1, 1, 256, 0, operand(1, 0), operand(3, 0));
            ops[2] = add(true, operand(1, 0), prev);
        } else {
            ops = new bytes[](2);
            ops[0] = add(true, prev, prev);
            ops[1] = descriptor(
                21, true, 1, 0, 1, bytes16(abi.encodePacked(VOCAB, uint96(0))), operand(1, 0), operand(6, 1)
            );
        }
    }

    function descriptorLeaves(uint8 which) internal pure returns (bytes32[] memory leaves) {
        bytes[] memory ops = section(which);
        leaves = new bytes32[](ops.length);
        for (uint256 i; i < ops.length; i++) {
            leaves[i] = keccak256(bytes.concat(hex"06", ops[i]));
        }
    }

    function program() internal pure returns (bytes memory p) {
        for (uint8 s; s < 3; s++) {
            bytes[] memory ops = section(s);
            for (uint256 i; i < ops.length; i++) {
                p = bytes.concat(p, ops[i]);
            }
        }
    }

    function manifest() internal pure returns (bytes memory) {
        bytes memory head = abi.encodePacked(
            uint16(1),
            LAYERS,
            VOCAB,
            MAX_POSITIONS,
            uint16(1),
            uint16(3),
            uint16(2),
            NaiveTree.root(descriptorLeaves(0)),
            NaiveTree.root(descriptorLeaves(1)),
            NaiveTree.root(descriptorLeaves(2))
        );
        return abi.encodePacked(
            head,
            uint32(1),
            keccak256("weights"),
            uint32(1),
            keccak256("tables"),
            keccak256("tokenizer"),
            keccak256("template"),
            uint8(1),
            STOP
        );
    }

    function isExported(uint8 which, uint256 op) internal pure returns (bool) {
        return uint8(section(which)[op][2]) & 1 == 1;
    }
}
