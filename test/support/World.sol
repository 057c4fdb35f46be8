// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {StepVerifier} from "../../contracts/StepVerifier.sol";
import {ModelShape} from "../../contracts/interfaces/IModels.sol";
import {Claim, Read, TraceContext, Witness} from "../../contracts/interfaces/IStepVerifier.sol";
import {NaiveTree} from "./NaiveTree.sol";

/// @notice A 64-byte descriptor in parts.
struct Op {
    uint8 opcode;
    uint8 dtype;
    uint8 bits;
    uint32 outer;
    uint32 div;
    uint32 inner;
    int32[4] p;
    uint64[4] operands;
}

/// @notice A model and a trace of which just so much exists as one claim needs: the claimed row's tensors, exports of the rows it
/// reads, and weights, tables and tokens. Rows and siblings that nobody opens are arbitrary hashes.
abstract contract World is Test {
    uint256 internal constant I8 = 0;
    uint256 internal constant I16 = 1;
    uint256 internal constant I32 = 2;
    uint256 internal constant U16 = 3;

    uint64 internal constant OP = 1;
    uint64 internal constant PREV = 2;
    uint64 internal constant CACHE = 3;
    uint64 internal constant WEIGHT = 4;
    uint64 internal constant TABLE = 5;
    uint64 internal constant TOKEN = 6;

    StepVerifier internal verifier = new StepVerifier();

    uint16 internal layers = 3;
    uint32 internal nIn = 20;
    uint32 internal nOut = 5;
    uint32[] internal tokens;
    Claim internal claim;
    /// of the claimed section
    bytes[] internal descriptors;
    /// bit k: operator k is exported
    uint256[3] internal masks;
    /// the claimed row's tensors, by operator
    bytes[] internal ops;
    /// layer → row → its exports, in program order
    mapping(uint256 => mapping(uint256 => bytes[])) internal exported;
    bytes[][] internal matrices;
    bytes[] internal tables;
    /// leaves of the matrices' tree that are no matrices of ours: their count, and siblings instead of rows for a large matrix
    uint256 internal otherMatrices;
    uint256 internal matrixRows;
    uint256 internal rowIndex;
    Read[] internal reads;
    uint32 internal hint;
    /// how the run samples
    uint256 internal sampling;
    bytes32 internal seed;

    // ------------------------------------------------------------------------------------------------- encoding

    function width(uint256 dtype) internal pure returns (uint256) {
        return [uint256(1), 2, 4, 2][dtype];
    }

    function encode(int256[] memory v, uint256 dtype) internal pure returns (bytes memory b) {
        uint256 w = width(dtype);
        b = new bytes(v.length * w);
        for (uint256 i; i < v.length; i++) {
            for (uint256 k; k < w; k++) {
                b[i * w + k] = bytes1(uint8(uint256(v[i]) >> (8 * (w - 1 - k))));
            }
        }
    }

    function describe(Op memory d, bool isExported) internal pure returns (bytes memory) {
        return bytes.concat(
            abi.encodePacked(d.opcode, d.dtype, isExported ? uint8(1) : uint8(0), d.bits, d.outer, d.div, d.inner),
            abi.encodePacked(d.p[0], d.p[1], d.p[2], d.p[3]),
            abi.encodePacked(d.operands[0], d.operands[1], d.operands[2], d.operands[3])
        );
    }

    function operand(uint64 kind, uint256 dtype, uint64 index) internal pure returns (uint64) {
        return kind << 56 | uint64(dtype) << 49 | index;
    }

    function tail(uint256 dtype, uint64 stride, uint64 index) internal pure returns (uint64) {
        return operand(OP, dtype, index) | 1 << 48 | stride << 32;
    }

    /// @notice adds an operator of the claimed row before the claimed one
    function tensor(int256[] memory v, uint256 dtype) internal returns (uint64 index) {
        index = uint64(ops.length);
        ops.push(encode(v, dtype));
        descriptors.push(abi.encodePacked(keccak256(abi.encode("descriptor", index)), bytes32(0)));
    }

    // ------------------------------------------------------------------------------------------------ commitments

    function tensorRoot(bytes memory b) internal pure returns (bytes32) {
        return NaiveTree.root(NaiveTree.pageHashes(b));
    }

    function opRoots() internal view returns (bytes32[] memory r) {
        r = new bytes32[](ops.length);
        for (uint256 i; i < r.length; i++) {
            r[i] = tensorRoot(ops[i]);
        }
    }

    function section(uint256 layer) internal view returns (uint256) {
        return layer == 0 ? 0 : layer > layers ? 2 : 1;
    }

    function rows(uint256 layer) internal view returns (uint256) {
        return layer > layers ? nOut : nIn + nOut - 1;
    }

    function position() internal view returns (uint256) {
        return claim.layer > layers ? nIn + claim.row - 1 : claim.row;
    }

    function exportRoots(uint256 layer, uint256 row) internal view returns (bytes32[] memory r) {
        uint256 mask = masks[section(layer)];
        if (layer == claim.layer && row == claim.row) {
            r = new bytes32[](ops.length);
            uint256 n;
            for (uint256 k; k < ops.length; k++) {
                if (mask >> k & 1 == 1) r[n++] = tensorRoot(ops[k]);
            }
            assembly {
                mstore(r, n)
            }
        } else {
            bytes[] storage e = exported[layer][row];
            r = new bytes32[](e.length);
            for (uint256 k; k < r.length; k++) {
                r[k] = tensorRoot(e[k]);
            }
        }
    }

    function rowLeaves(uint256 layer) internal view returns (bytes32[] memory leaves) {
        leaves = new bytes32[](rows(layer));
        for (uint256 row; row < leaves.length; row++) {
            bool known = exported[layer][row].length > 0 || (layer == claim.layer && row == claim.row);
            leaves[row] = known
                ? keccak256(abi.encodePacked(bytes1(0x02), exportRoots(layer, row)))
                : keccak256(abi.encode("row", layer, row));
        }
    }

    function layerRoots() internal view returns (bytes32[] memory r) {
        r = new bytes32[](uint256(layers) + 2);
        for (uint256 l; l < r.length; l++) {
            // Only the claimed layer and the one before it are ever opened.
            r[l] = l == claim.layer || l + 1 == claim.layer
                ? NaiveTree.root(rowLeaves(l))
                : keccak256(abi.encode("layer", l));
        }
    }

    function rowHash(bytes memory row) internal pure returns (bytes32) {
        return keccak256(bytes.concat(hex"04", row));
    }

    function rowHashes(uint256 matrix) internal view returns (bytes32[] memory r) {
        bytes[] storage m = matrices[matrix];
        r = new bytes32[](m.length);
        for (uint256 i; i < r.length; i++) {
            r[i] = rowHash(m[i]);
        }
    }

    /// @dev with `matrixRows` set, a matrix has one known row, at `rowIndex`, and arbitrary siblings
    function rowPath(uint256 matrix, uint256 row) internal view returns (bytes32 root, bytes32[] memory path) {
        if (matrixRows == 0) {
            bytes32[] memory hashes = rowHashes(matrix);
            return (NaiveTree.root(hashes), NaiveTree.path(hashes, 0, row));
        }
        path = new bytes32[](NaiveTree.depth(matrixRows));
        root = rowHash(matrices[matrix][0]);
        for (uint256 l; l < path.length; l++) {
            path[l] = keccak256(abi.encode("row sibling", l));
            root = rowIndex >> l & 1 == 0 ? NaiveTree.join(root, path[l]) : NaiveTree.join(path[l], root);
        }
    }

    function matrixRoots() internal view returns (bytes32[] memory r) {
        r = new bytes32[](matrices.length + otherMatrices);
        for (uint256 i; i < r.length; i++) {
            if (i < matrices.length) (r[i],) = rowPath(i, 0);
            else r[i] = keccak256(abi.encode("matrix", i));
        }
    }

    function tableRoots() internal view returns (bytes32[] memory r) {
        r = new bytes32[](tables.length);
        for (uint256 i; i < r.length; i++) {
            r[i] = tensorRoot(tables[i]);
        }
    }

    function descriptorHashes() internal view returns (bytes32[] memory r) {
        r = new bytes32[](descriptors.length);
        for (uint256 i; i < r.length; i++) {
            r[i] = keccak256(bytes.concat(hex"06", descriptors[i]));
        }
    }

    function sequence(uint256 from, uint256 n) internal view returns (bytes memory b) {
        int256[] memory v = new int256[](n);
        for (uint256 i; i < n; i++) {
            v[i] = int256(uint256(tokens[from + i]));
        }
        b = encode(v, I32);
    }

    function traceContext() internal view returns (TraceContext memory c) {
        c.layersRoot = NaiveTree.root(layerRoots());
        c.nIn = nIn;
        c.nOut = nOut;
        c.sampling = sampling;
        c.seed = seed;
        if (tokens.length > 0) {
            c.inputHash = keccak256(abi.encodePacked(bytes1(0x08), nIn, tensorRoot(sequence(0, nIn))));
            c.outputHash = keccak256(abi.encodePacked(bytes1(0x08), nOut, tensorRoot(sequence(nIn, nOut))));
        }
    }

    function modelShape() internal view returns (ModelShape memory m) {
        m.layers = layers;
        m.vocab = 1000;
        m.maxPositions = 8192;
        m.exportMasks = masks;
        uint256 s = section(claim.layer);
        m.opCounts[s] = uint16(descriptors.length);
        m.sectionRoots[s] = NaiveTree.root(descriptorHashes());
        m.weights = uint32(matrices.length + otherMatrices);
        if (m.weights > 0) m.weightsRoot = NaiveTree.root(matrixRoots());
        m.tables = uint32(tables.length);
        if (m.tables > 0) m.tablesRoot = NaiveTree.root(tableRoots());
    }

    // ---------------------------------------------------------------------------------------------------- witness

    function open(bytes memory b, uint256 first, uint256 len, uint256 dtype)
        internal
        pure
        returns (bytes memory data, bytes32[] memory proof)
    {
        uint256 from = first * width(dtype) / 1024;
        uint256 to = ((first + len) * width(dtype) - 1) / 1024 + 1;
        proof = NaiveTree.rangeProof(NaiveTree.pageHashes(b), from, to - from);
        uint256 end = to * 1024 < b.length ? to * 1024 : b.length;
        data = new bytes(end - from * 1024);
        for (uint256 i; i < data.length; i++) {
            data[i] = b[from * 1024 + i];
        }
    }

    function readOp(uint256 index, uint256 first, uint256 len, uint256 dtype) internal {
        Read storage r = reads.push();
        (r.data, r.proof) = open(ops[index], first, len, dtype);
    }

    function readPrevious(uint256 index, uint256 first, uint256 len, uint256 dtype) internal {
        Read storage r = reads.push();
        uint256 layer = claim.layer - 1;
        bytes[] storage e = exported[layer][position()];
        (r.data, r.proof) = open(e[index], first, len, dtype);
        r.leaves = exportRoots(layer, position());
        r.leafProof =
            NaiveTree.concat(NaiveTree.path(rowLeaves(layer), 0, position()), NaiveTree.path(layerRoots(), 0, layer));
    }

    function readCache(uint256 index, uint256 from, uint256 positions, uint256 first, uint256 len, uint256 dtype)
        internal
    {
        Read storage r = reads.push();
        for (uint256 t = from; t < from + positions; t++) {
            bytes memory b = t == claim.row ? exportOfClaimed(index) : exported[claim.layer][t][index];
            (bytes memory data, bytes32[] memory proof) = open(b, first, len, dtype);
            r.data = bytes.concat(r.data, data);
            r.proof = NaiveTree.concat(r.proof, proof);
            r.leaves = NaiveTree.concat(r.leaves, exportRoots(claim.layer, t));
        }
        r.leafProof = NaiveTree.concat(
            NaiveTree.rangeProof(rowLeaves(claim.layer), from, positions), NaiveTree.path(layerRoots(), 0, claim.layer)
        );
    }

    function exportOfClaimed(uint256 index) internal view returns (bytes memory) {
        uint256 mask = masks[section(claim.layer)];
        for (uint256 k;; k++) {
            if (mask >> k & 1 == 0) continue;
            if (index == 0) return ops[k];
            index--;
        }
    }

    function readTable(uint256 table, uint256 first, uint256 len, uint256 dtype) internal {
        Read storage r = reads.push();
        bytes32[] memory proof;
        (r.data, proof) = open(tables[table], first, len, dtype);
        r.proof = NaiveTree.concat(proof, NaiveTree.path(tableRoots(), 0, table));
    }

    function readRow(uint256 matrix, uint256 row) internal {
        Read storage r = reads.push();
        r.data = matrices[matrix][matrixRows == 0 ? row : 0];
        (, bytes32[] memory path) = rowPath(matrix, row);
        r.proof = NaiveTree.concat(path, NaiveTree.path(matrixRoots(), 0, matrix));
    }

    function readToken(uint256 at) internal {
        readTokens(at, 1);
    }

    /// @dev all of the prompt or all of the output
    function readTokens(uint256 at, uint256 n) internal {
        Read storage r = reads.push();
        if (at < nIn) (r.data, r.proof) = open(sequence(0, nIn), at, n, I32);
        else (r.data, r.proof) = open(sequence(nIn, nOut), at - nIn, n, I32);
    }

    function witness(uint256 dtype) internal view returns (Witness memory w) {
        w.opRoots = opRoots();
        w.descriptor = descriptors[claim.op];
        w.descriptorProof = NaiveTree.path(descriptorHashes(), 0, claim.op);
        (w.page, w.pageProof) = open(ops[claim.op], claim.element, 1, dtype);
        w.hint = hint;
        w.reads = reads;
    }
}
