// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IModels} from "../interfaces/IModels.sol";
import {Descriptor, Head, Kind, Operand} from "./Descriptor.sol";
import {Trees} from "./Trees.sol";

/// @title Programs
/// @notice Checks that the descriptors of a program name only what exists, and derives what the registry stores of them.
/// @dev Not a type checker: whether an operator's inputs have the sizes its opcode wants is the importer's business, and a
/// model whose operators cannot be judged harms only who buys its answers.
library Programs {
    /// @notice answers of the deepest challenge: what the registry admits and what the challenges allow are one number
    uint8 internal constant MAX_DEPTH = 8;
    /// @notice levels of a tree that one answer opens
    uint8 internal constant LEVELS_PER_ANSWER = 6;
    /// @notice the instruction set's proofs of range hold for positions below this
    uint32 internal constant MAX_POSITIONS = 8192;

    /// @notice what a program may refer to, and the longest sequence it runs
    struct Bounds {
        uint256 layers;
        uint256 positions;
        uint256 weights;
        uint256 tables;
    }

    struct Section {
        bytes32 root;
        uint256 exportMask;
        uint256 exports;
        uint256 largestTensor; // bytes
        bool samples; // exports a SAMPLE
    }

    uint8 internal constant EMBEDDING = 0;
    uint8 internal constant BLOCK = 1;
    uint8 internal constant HEAD = 2;

    uint256 internal constant LAST_OPCODE = 36;
    uint256 internal constant SAMPLE = 32;

    /// @notice the section that a layer runs
    function sectionOf(uint256 layer, uint256 layers) internal pure returns (uint8) {
        if (layer == 0) return EMBEDDING;
        return layer <= layers ? BLOCK : HEAD;
    }

    /// @notice bytes per element: I8, I16, I32, U16
    function width(Head h) internal pure returns (uint256) {
        uint256 dtype = h.dtype();
        return dtype == 0 ? 1 : dtype == 2 ? 4 : 2;
    }

    /// @notice bytes of an operator's tensor at position t
    function byteLength(Head h, uint256 t) internal pure returns (uint256) {
        return h.count(t) * width(h);
    }

    /// @notice checks a section and folds it
    /// @param program its descriptors
    /// @param previousExports fewest exports among the layers that may precede one of this section
    function fold(uint8 section, bytes calldata program, uint256 previousExports, Bounds memory bounds)
        internal
        pure
        returns (Section memory s)
    {
        uint256 ops = program.length / Descriptor.BYTES;
        bytes32[] memory leaves = new bytes32[](ops);
        for (uint256 k; k < ops; ++k) {
            bytes calldata descriptor = program[k * Descriptor.BYTES:(k + 1) * Descriptor.BYTES];
            leaves[k] = Trees.hashTagged(Trees.TAG_DESCRIPTOR, descriptor);
            if (checkHead(section, k, Head.wrap(uint256(bytes32(descriptor[:32]))), bounds, s)) {
                s.exportMask |= uint256(1) << k;
                ++s.exports;
            }
        }
        if (s.exports == 0) revert IModels.NoExports(section);
        // Operands come second: a cache reads exports that may follow in program order.
        for (uint256 k; k < ops; ++k) {
            uint256 word = uint256(bytes32(program[k * Descriptor.BYTES + 32:(k + 1) * Descriptor.BYTES]));
            for (uint256 i; i < 4; ++i) {
                checkOperand(section, k, Descriptor.operand(word, i), s.exports, previousExports, bounds);
            }
        }
        s.root = Trees.treeRoot(leaves);
    }

    /// @return exported whether the operator is exported
    function checkHead(uint8 section, uint256 k, Head h, Bounds memory bounds, Section memory s)
        private
        pure
        returns (bool exported)
    {
        uint256 opcode = h.opcode();
        if (opcode == 0 || opcode > LAST_OPCODE) bad(section, k, "opcode", opcode, LAST_OPCODE + 1);
        if (h.dtype() > 3) bad(section, k, "element type", h.dtype(), 4);
        uint256 flags = (Head.unwrap(h) >> 232) & 0xff;
        if (flags > 1) bad(section, k, "flags", flags, 2);
        uint256 largest = byteLength(h, bounds.positions - 1);
        if (largest == 0) bad(section, k, "shape", 0, 0);
        // An opening carries the length as u32; the depth limit is far below it.
        if (largest > type(uint32).max) bad(section, k, "shape", largest, uint256(type(uint32).max) + 1);
        if (largest > s.largestTensor) s.largestTensor = largest;
        exported = flags == 1;
        if (exported && opcode == SAMPLE) s.samples = true;
    }

    function checkOperand(
        uint8 section,
        uint256 k,
        Operand o,
        uint256 exports,
        uint256 previousExports,
        Bounds memory bounds
    ) private pure {
        uint256 kind = o.kind();
        uint256 flags = (Operand.unwrap(o) >> 48) & 0xff;
        if (flags > 7) bad(section, k, "operand flags", flags, 8);
        if (o.tail() && kind != Kind.OP) bad(section, k, "tail operand", kind, Kind.OP);
        if (o.tail() && o.stride() == 0) bad(section, k, "tail stride", 0, 0);

        uint256 limit;
        if (kind == Kind.NONE) {
            return;
        } else if (kind == Kind.OP) {
            // Only earlier operators: the program is acyclic.
            limit = k;
        } else if (kind == Kind.PREV) {
            limit = previousExports;
        } else if (kind == Kind.CACHE) {
            // The head runs only for positions that produced a token, so it has no rows to read at the others.
            limit = section == HEAD ? 0 : exports;
        } else if (kind == Kind.WEIGHT || kind == Kind.TABLE) {
            limit = kind == Kind.WEIGHT ? bounds.weights : bounds.tables;
            if (section != BLOCK && o.stride() != 0) bad(section, k, "operand stride", o.stride(), 1);
            uint256 last = o.index() + o.stride() * (section == BLOCK ? bounds.layers - 1 : 0);
            if (last >= limit) bad(section, k, "operand index", last, limit);
            return;
        } else if (kind == Kind.TOKEN) {
            // The last position's next token is the last of the sequence; there is none after it.
            limit = 2;
        } else {
            bad(section, k, "operand kind", kind, Kind.TOKEN + 1);
        }
        if (o.index() >= limit) bad(section, k, "operand index", o.index(), limit);
    }

    function bad(uint8 section, uint256 k, string memory field, uint256 actual, uint256 limit) private pure {
        revert IModels.BadDescriptor(section, uint16(k), field, actual, limit);
    }
}
