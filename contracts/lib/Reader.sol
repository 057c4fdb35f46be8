// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ModelShape} from "../interfaces/IModels.sol";
import {IStepVerifier, Read, TraceContext, Witness} from "../interfaces/IStepVerifier.sol";
import {ITrees} from "../interfaces/ITrees.sol";
import {Descriptor, Head, Kind, Operand} from "./Descriptor.sol";
import {Rows} from "./Rows.sol";
import {Dtype, Slice, Slices} from "./Slice.sol";
import {Trees} from "./Trees.sol";

/// @notice The element under judgement, what it is judged by, and how many reads of the witness are used up.
/// @dev `traceAt`, `modelAt` and `witnessAt` are where these arguments of the call lie in calldata: a struct in memory cannot hold
/// references into calldata, and handing three of them down every call leaves the stack no room.
struct Step {
    uint256 traceAt;
    uint256 modelAt;
    uint256 witnessAt;
    uint256 layer;
    uint256 row;
    uint256 op;
    uint256 element;
    uint256 position;
    uint256 count; // elements of the output
    Head head;
    uint256 operands;
    uint256 cursor;
}

using Reader for Step global;

/// @notice Which pages of a tensor hold a run of its elements.
struct Run {
    uint256 page; // the first one
    uint256 pages;
    uint256 byteLength; // of the whole tensor
    uint256 offset; // of the run's first element in the first page
    uint256 dtype;
}

/// @title Reader
/// @notice Authenticates the reads of a witness, one after the other, as the opcode asks for them: "The witness" of
/// docs/protocol.md.
library Reader {
    // ------------------------------------------------------------------------------------------------- context

    function trace(Step memory s) internal pure returns (TraceContext calldata c) {
        uint256 at = s.traceAt;
        assembly ("memory-safe") {
            c := at
        }
    }

    function model(Step memory s) internal pure returns (ModelShape calldata m) {
        uint256 at = s.modelAt;
        assembly ("memory-safe") {
            m := at
        }
    }

    function witness(Step memory s) internal pure returns (Witness calldata w) {
        uint256 at = s.witnessAt;
        assembly ("memory-safe") {
            w := at
        }
    }

    /// @notice the section that a layer runs: 0 embedding, 1 block, 2 head
    function section(Step memory s, uint256 layer) internal pure returns (uint256) {
        if (layer == 0) return 0;
        return layer <= s.model().layers ? 1 : 2;
    }

    /// @notice the rows of a layer: positions that run, or, for the head, tokens that come out
    function rows(Step memory s, uint256 layer) internal pure returns (uint256) {
        TraceContext calldata c = s.trace();
        return layer > s.model().layers ? c.nOut : uint256(c.nIn) + c.nOut - 1;
    }

    // --------------------------------------------------------------------------------------------------- tensors

    /// @notice elements [first, first + len) of operand `k`, which has `n`
    function tensor(Step memory s, uint256 k, uint256 n, uint256 first, uint256 len) internal pure returns (Slice) {
        if (len == 0 || first >= n || len > n - first) revert IStepVerifier.OutsideOperand(first, len, n);
        Operand o = Descriptor.operand(s.operands, k);
        uint256 kind = o.kind();
        uint256 total = n;
        if (kind == Kind.OP) {
            if (o.tail()) {
                uint256 every = o.stride();
                s.head.check(every != 0);
                unchecked {
                    total = (s.position + every) / every * n;
                    first += total - n;
                }
            }
            return operatorTensor(s, o.index(), o.source(), total, first, len);
        }
        if (kind == Kind.PREV) return previous(s, o, total, first, len);
        if (kind == Kind.TABLE) return table(s, o, total, first, len);
        revert IStepVerifier.WrongKind(k, kind);
    }

    /// @notice element `i` of operand `k`, which has `n`
    function value(Step memory s, uint256 k, uint256 n, uint256 i) internal pure returns (int256) {
        return tensor(s, k, n, i, 1).get(0);
    }

    /// @notice an earlier element of the judged tensor itself
    function own(Step memory s, uint256 i) internal pure returns (int256) {
        if (i >= s.element) revert IStepVerifier.OutsideOperand(i, 1, s.element);
        Read calldata r = next(s);
        (Slice slice, bytes32 root) = pages(r.data, r.proof, run(s.head.dtype(), s.count, i, 1));
        noLeaves(r);
        same(root, s.witness().opRoots[s.op]);
        return slice.get(0);
    }

    function operatorTensor(Step memory s, uint256 index, uint256 dtype, uint256 total, uint256 first, uint256 len)
        private
        pure
        returns (Slice slice)
    {
        // Only what ran before it can have been an operator's input.
        if (index >= s.op) revert IStepVerifier.NoSuchOperand(Kind.OP, index, s.op);
        Read calldata r = next(s);
        bytes32 root;
        (slice, root) = pages(r.data, r.proof, run(dtype, total, first, len));
        noLeaves(r);
        same(root, s.witness().opRoots[index]);
    }

    function previous(Step memory s, Operand o, uint256 total, uint256 first, uint256 len)
        private
        pure
        returns (Slice slice)
    {
        uint256 layer = s.layer;
        if (layer == 0) revert IStepVerifier.NoSuchOperand(Kind.PREV, o.index(), 0);
        unchecked {
            --layer;
        }
        Read calldata r = next(s);
        bytes32 root;
        (slice, root) = pages(r.data, r.proof, run(o.source(), total, first, len));

        uint256 n = exports(s, layer);
        if (r.leaves.length != n) revert IStepVerifier.LeafCount(r.leaves.length, n);
        // Counted back from the last export, so that a block may follow the embedding as well as a block.
        if (o.index() >= n) revert IStepVerifier.NoSuchOperand(Kind.PREV, o.index(), n);
        unchecked {
            same(root, r.leaves[n - 1 - o.index()]);
        }
        uint256 pos;
        (root, pos) = Trees.pathRoot(positionHash(r.leaves, 0, n), s.position, rows(s, layer), r.leafProof, 0);
        underLayers(s, layer, root, r.leafProof, pos);
    }

    function table(Step memory s, Operand o, uint256 total, uint256 first, uint256 len)
        private
        pure
        returns (Slice slice)
    {
        Read calldata r = next(s);
        bytes32 root;
        uint256 pos;
        (slice, root, pos) = pagesFrom(r.data, r.proof, 0, run(o.source(), total, first, len));
        noLeaves(r);
        (root, pos) = Trees.pathRoot(root, numbered(s, o), s.model().tables, r.proof, pos);
        Trees.done(r.proof, pos);
        same(root, s.model().tablesRoot);
    }

    // ----------------------------------------------------------------------------------------------------- cache

    /// @notice elements [first, first + len) of operand `k`, which has `n` at each position, at `positions` positions
    /// from `from` on
    function cached(Step memory s, uint256 k, uint256 n, uint256 first, uint256 len, uint256 from, uint256 positions)
        internal
        pure
        returns (Slice slice)
    {
        if (len == 0 || first >= n || len > n - first) revert IStepVerifier.OutsideOperand(first, len, n);
        Operand o = Descriptor.operand(s.operands, k);
        if (o.kind() != Kind.CACHE) revert IStepVerifier.WrongKind(k, o.kind());
        // The head's rows are not the positions of a context.
        if (s.layer > s.model().layers) revert IStepVerifier.NoSuchOperand(Kind.CACHE, o.index(), 0);

        Read calldata r = next(s);
        bytes32[] memory leaves = new bytes32[](positions);
        slice = cachedPages(s, r, o.index(), leaves, run(o.source(), n, first, len));
        underRows(s, leaves, from, r.leafProof);
    }

    /// @dev `leaves` are this layer's, from position `from` on
    function underRows(Step memory s, bytes32[] memory leaves, uint256 from, bytes32[] calldata proof) private pure {
        (bytes32 root, uint256 pos) = Trees.rangeRoot(leaves, from, rows(s, s.layer), proof, 0);
        underLayers(s, s.layer, root, proof, pos);
    }

    /// @dev fills `leaves` with the hashes of the positions, of whose export `index` `r` carries the pages of `each`
    function cachedPages(Step memory s, Read calldata r, uint256 index, bytes32[] memory leaves, Run memory each)
        private
        pure
        returns (Slice slice)
    {
        uint256 n = exports(s, s.layer);
        if (index >= n) revert IStepVerifier.NoSuchOperand(Kind.CACHE, index, n);
        if (r.leaves.length != leaves.length * n) revert IStepVerifier.LeafCount(r.leaves.length, leaves.length * n);
        uint256 size = Trees.pagesLength(each.byteLength, each.page, each.pages);
        if (r.data.length != leaves.length * size) revert ITrees.DataLength(r.data.length, leaves.length * size);
        uint256 pos;
        for (uint256 j; j < leaves.length; ++j) {
            Slice here;
            bytes32 root;
            (here, root, pos) = pagesFrom(r.data[j * size:(j + 1) * size], r.proof, pos, each);
            same(root, r.leaves[j * n + index]);
            leaves[j] = positionHash(r.leaves, j * n, n);
            if (j == 0) slice = here.every(size);
        }
        Trees.done(r.proof, pos);
    }

    // --------------------------------------------------------------------------------------------- weights, tokens

    /// @notice row `i` of the weight matrix of operand `k`, which has `rowCount` rows of `len` elements
    /// @dev Opcodes with a matrix have its scale column in parameter 1, the number of columns in parameter 2 and the format of
    /// its rows in parameter 3.
    /// @return m mantissa of the row's scale
    /// @return sh its shift
    /// @return elements what follows the scale pairs
    function weights(Step memory s, uint256 k, uint256 rowCount, uint256 i, uint256 len)
        internal
        pure
        returns (uint256 m, int256 sh, Slice elements)
    {
        uint256 columns = s.head.size(2);
        uint256 format = uint256(s.head.param(3));
        s.head.check(Rows.fits(format, len));
        uint256 at = weightRow(s, k, rowCount, i, 4 * columns + Rows.size(format, len));
        int256 column = s.head.param(1);
        s.head.check(column >= 0 && column < int256(columns));
        unchecked {
            m = uint256(Slices.make(at, Dtype.U16).get(2 * uint256(column)));
            sh = Slices.make(at, Dtype.I16).get(2 * uint256(column) + 1);
            elements = Slices.make(at + 4 * columns, Dtype.I8);
        }
    }

    /// @dev where in calldata that row lies, `length` bytes long
    function weightRow(Step memory s, uint256 k, uint256 rowCount, uint256 i, uint256 length)
        private
        pure
        returns (uint256 at)
    {
        Operand o = Descriptor.operand(s.operands, k);
        if (o.kind() != Kind.WEIGHT) revert IStepVerifier.WrongKind(k, o.kind());
        Read calldata r = next(s);
        noLeaves(r);
        bytes calldata data = r.data;
        if (data.length != length) revert ITrees.DataLength(data.length, length);
        (bytes32 root, uint256 pos) = Trees.pathRoot(Trees.hashTagged(Trees.TAG_ROW, data), i, rowCount, r.proof, 0);
        (root, pos) = Trees.pathRoot(root, numbered(s, o), s.model().weights, r.proof, pos);
        Trees.done(r.proof, pos);
        same(root, s.model().weightsRoot);
        assembly ("memory-safe") {
            at := data.offset
        }
    }

    /// @notice the token of operand `k`
    function token(Step memory s, uint256 k) internal pure returns (uint256) {
        Operand o = Descriptor.operand(s.operands, k);
        if (o.kind() != Kind.TOKEN) revert IStepVerifier.WrongKind(k, o.kind());
        TraceContext calldata c = s.trace();
        uint256 n = c.nIn;
        bytes32 expected = c.inputHash;
        uint256 at;
        unchecked {
            at = s.position + o.index();
            if (at >= n) {
                at -= n;
                n = c.nOut;
                expected = c.outputHash;
            }
        }
        if (at >= n) revert IStepVerifier.NoSuchOperand(Kind.TOKEN, at, n);
        // Tokens are unsigned; below 2^31 that is the same, and no vocabulary is larger.
        return uint32(int32(tokens(s, n, expected, at, 1).get(0)));
    }

    /// @notice whether token `wanted` is among those of operand `k` at positions [first, end)
    function holds(Step memory s, uint256 k, uint256 first, uint256 end, uint256 wanted) internal pure returns (bool) {
        Operand o = Descriptor.operand(s.operands, k);
        if (o.kind() != Kind.TOKEN) revert IStepVerifier.WrongKind(k, o.kind());
        TraceContext calldata c = s.trace();
        uint256 n = c.nIn;
        bool found;
        if (first < n) found = among(s, n, c.inputHash, first, end < n ? end : n, wanted);
        if (end > n) {
            unchecked {
                found = among(s, c.nOut, c.outputHash, first > n ? first - n : 0, end - n, wanted) || found;
            }
        }
        return found;
    }

    /// @dev the same in one of the two sequences, which has `n` tokens
    function among(Step memory s, uint256 n, bytes32 hash, uint256 first, uint256 end, uint256 wanted)
        private
        pure
        returns (bool)
    {
        if (end > n) revert IStepVerifier.NoSuchOperand(Kind.TOKEN, end, n);
        unchecked {
            return tokens(s, n, hash, first, end - first).contains(end - first, int256(wanted));
        }
    }

    /// @dev `len` tokens from `first` on of the sequence of `n` that hashes to `expected`
    function tokens(Step memory s, uint256 n, bytes32 expected, uint256 first, uint256 len)
        private
        pure
        returns (Slice slice)
    {
        Read calldata r = next(s);
        bytes32 root;
        (slice, root) = pages(r.data, r.proof, run(Dtype.I32, n, first, len));
        noLeaves(r);
        same(Trees.sequenceHash(n, root), expected);
    }

    // --------------------------------------------------------------------------------------------------- shared

    /// @dev the next unused read
    function next(Step memory s) private pure returns (Read calldata) {
        Read[] calldata reads = s.witness().reads;
        uint256 i = s.cursor;
        if (i >= reads.length) revert IStepVerifier.ReadCount(reads.length, i + 1);
        unchecked {
            s.cursor = i + 1;
        }
        return reads[i];
    }

    /// @notice elements [first, first + len) of a tensor of `total`
    function run(uint256 dtype, uint256 total, uint256 first, uint256 len) internal pure returns (Run memory r) {
        unchecked {
            uint256 w = Dtype.width(dtype);
            r.page = first * w / Trees.PAGE;
            r.pages = ((first + len) * w + Trees.PAGE - 1) / Trees.PAGE - r.page;
            r.byteLength = total * w;
            r.offset = first * w % Trees.PAGE;
            r.dtype = dtype;
        }
    }

    /// @notice the elements of the run whose pages are `data`, and the root of their tensor by all of `proof`
    function pages(bytes calldata data, bytes32[] calldata proof, Run memory r)
        internal
        pure
        returns (Slice slice, bytes32 root)
    {
        uint256 pos;
        (slice, root, pos) = pagesFrom(data, proof, 0, r);
        Trees.done(proof, pos);
    }

    /// @dev the same by what of `proof` begins at `pos` and ends before `end`; `pagesRoot` refuses data of another length
    /// than the shape's
    function pagesFrom(bytes calldata data, bytes32[] calldata proof, uint256 pos, Run memory r)
        private
        pure
        returns (Slice slice, bytes32 root, uint256 end)
    {
        uint256 at;
        assembly ("memory-safe") {
            at := data.offset
        }
        unchecked {
            slice = Slices.make(at + r.offset, r.dtype);
        }
        (root, end) = Trees.pagesRoot(data, r.page, r.pages, r.byteLength, proof, pos);
    }

    /// @dev the number of a weight matrix or table: blocks count on by the stride
    function numbered(Step memory s, Operand o) private pure returns (uint256) {
        unchecked {
            if (section(s, s.layer) == 1) return o.index() + o.stride() * (s.layer - 1);
            s.head.check(o.stride() == 0);
            return o.index();
        }
    }

    /// @dev how many tensors a layer exports
    function exports(Step memory s, uint256 layer) private pure returns (uint256 n) {
        uint256 mask = s.model().exportMasks[section(s, layer)];
        unchecked {
            for (; mask != 0; mask &= mask - 1) {
                ++n;
            }
        }
    }

    /// @dev the leaf of a position whose export roots are `n` of `leaves`, from `first` on
    function positionHash(bytes32[] calldata leaves, uint256 first, uint256 n) private pure returns (bytes32 hash) {
        uint8 tag = Trees.TAG_POSITION;
        assembly ("memory-safe") {
            // Scratch beyond the free memory pointer: used up at once, so nothing is allocated.
            let free := mload(0x40)
            mstore8(free, tag)
            calldatacopy(add(free, 1), add(leaves.offset, shl(5, first)), shl(5, n))
            hash := keccak256(free, add(shl(5, n), 1))
        }
    }

    /// @dev `root` is the root of `layer`, and what is left of `proof` its path to the layers' root
    function underLayers(Step memory s, uint256 layer, bytes32 root, bytes32[] calldata proof, uint256 pos)
        private
        pure
    {
        unchecked {
            (root, pos) = Trees.pathRoot(root, layer, uint256(s.model().layers) + 2, proof, pos);
        }
        Trees.done(proof, pos);
        same(root, s.trace().layersRoot);
    }

    function noLeaves(Read calldata r) private pure {
        if (r.leaves.length != 0 || r.leafProof.length != 0) revert IStepVerifier.FieldNotEmpty();
    }

    function same(bytes32 actual, bytes32 expected) internal pure {
        if (actual != expected) revert IStepVerifier.RootMismatch(actual, expected);
    }
}
