// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChallenges, Target, TargetKind} from "../../contracts/interfaces/IChallenges.sol";
import {Claim, Read, Witness} from "../../contracts/interfaces/IStepVerifier.sol";
import {NaiveTree} from "./NaiveTree.sol";
import {TinyModel} from "./TinyModel.sol";

/// @notice The trace of one job of the tiny model, with at most one lie, and all that can be asked of it.
contract TinyTrace {
    uint32 public immutable nIn;
    uint32 public immutable nOut;
    bool public immutable lies;
    uint16 private immutable _lieLayer;
    uint32 private immutable _lieRow;
    uint16 private immutable _lieOp;
    uint32 private immutable _lieElement;

    bytes32[][4] private _leaves; // by layer
    bytes32[] private _layers;

    constructor(uint32 nIn_, uint32 nOut_, bool lies_, Claim memory lie) {
        nIn = nIn_;
        nOut = nOut_;
        lies = lies_;
        (_lieLayer, _lieRow, _lieOp, _lieElement) = (lie.layer, lie.row, lie.op, lie.element);
        for (uint16 layer; layer < TinyModel.LAYERS + 2; layer++) {
            uint32 n = layer == TinyModel.LAYERS + 1 ? nOut_ : nIn_ + nOut_ - 1;
            for (uint32 row; row < n; row++) {
                _leaves[layer].push(_leaf(layer, row));
            }
            _layers.push(NaiveTree.root(_leaves[layer]));
        }
    }

    // ------------------------------------------------------------------------------------------------- contents

    function sectionOf(uint16 layer) public pure returns (uint8) {
        return layer == 0 ? 0 : layer <= TinyModel.LAYERS ? 1 : 2;
    }

    function rows(uint16 layer) public view returns (uint32) {
        return layer == TinyModel.LAYERS + 1 ? nOut : nIn + nOut - 1;
    }

    function position(uint16 layer, uint32 row) public view returns (uint32) {
        return layer == TinyModel.LAYERS + 1 ? nIn - 1 + row : row;
    }

    /// @notice an element as the operators make it from the embedding
    function honest(uint16 layer, uint32 row, uint16 op, uint32 i) public view returns (int32) {
        uint256 b = (uint256(position(layer, row)) * 7919 + uint256(i) * 104729) % 1000;
        uint8 s = sectionOf(layer);
        if (s == 0) return int32(int256(b));
        if (s == 1 && op == 0) return int32(int256(2 * 3 ** (layer - 1) * b));
        if (s == 1 && op == 2) return int32(int256(3 ** layer * b));
        if (s == 2 && op == 0) return int32(int256(2 * 3 ** TinyModel.LAYERS * b));
        return int32(int256(b)); // the scores and the selection, which no test here judges
    }

    function value(uint16 layer, uint32 row, uint16 op, uint32 i) public view returns (int32 v) {
        v = honest(layer, row, op, i);
        if (lies && layer == _lieLayer && row == _lieRow && op == _lieOp && i == _lieElement) v += 1;
    }

    function elements(uint16 layer, uint32 row, uint16 op) public view returns (uint32) {
        uint8 s = sectionOf(layer);
        if (s == 1 && op == 1) return 256 * (position(layer, row) + 1);
        if (s == 2 && op == 1) return 1;
        return TinyModel.WIDTH;
    }

    function tensor(uint16 layer, uint32 row, uint16 op) public view virtual returns (bytes memory data) {
        uint32 n = elements(layer, row, op);
        // Each element is written with a whole word, the next one overwrites what is too much: room for the last.
        data = new bytes(4 * uint256(n) + 32);
        for (uint32 i; i < n; i++) {
            uint256 word = uint256(uint32(value(layer, row, op, i))) << 224;
            assembly {
                mstore(add(add(data, 32), mul(4, i)), word)
            }
        }
        assembly {
            mstore(data, mul(4, n))
        }
    }

    function opRoots(uint16 layer, uint32 row) public view returns (bytes32[] memory roots) {
        roots = new bytes32[](TinyModel.section(sectionOf(layer)).length);
        for (uint16 op; op < roots.length; op++) {
            roots[op] = NaiveTree.root(NaiveTree.pageHashes(tensor(layer, row, op)));
        }
    }

    function exportRoots(uint16 layer, uint32 row) public view returns (bytes32[] memory exported) {
        bytes32[] memory all = opRoots(layer, row);
        exported = new bytes32[](all.length);
        uint256 n;
        for (uint256 op; op < all.length; op++) {
            if (TinyModel.isExported(sectionOf(layer), op)) exported[n++] = all[op];
        }
        assembly {
            mstore(exported, n)
        }
    }

    function _leaf(uint16 layer, uint32 row) private view returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(2), exportRoots(layer, row)));
    }

    function layersRoot() public view returns (bytes32) {
        return NaiveTree.root(_layers);
    }

    // ------------------------------------------------------------------------------------------------- openings

    /// @notice the leaves of the tree that holds the target's node
    function leavesOf(Target memory t) public view returns (bytes32[] memory) {
        if (t.kind == TargetKind.Layers) return _layers;
        if (t.kind == TargetKind.Positions || t.kind == TargetKind.OpList) return _leaves[t.layer];
        return NaiveTree.pageHashes(tensor(t.layer, t.row, t.op));
    }

    function nodeHash(Target memory t) public view returns (bytes32) {
        uint256 index = t.kind == TargetKind.OpList ? t.row : t.index;
        return NaiveTree.node(leavesOf(t), t.level, index);
    }

    function proof(Target memory t) external view returns (IChallenges.DemandProof memory p) {
        bytes32[] memory leaves = leavesOf(t);
        p.nodeHash = nodeHash(t);
        p.path = NaiveTree.path(leaves, t.level, t.kind == TargetKind.OpList ? t.row : t.index);
        if (t.kind == TargetKind.Positions || t.kind == TargetKind.OpList) {
            p.path = NaiveTree.concat(p.path, NaiveTree.path(_layers, 0, t.layer));
        } else if (t.kind == TargetKind.Pages || t.kind == TargetKind.Page) {
            uint8 s = sectionOf(t.layer);
            p.opRoots = opRoots(t.layer, t.row);
            p.descriptor = TinyModel.section(s)[t.op];
            p.descriptorProof = NaiveTree.path(TinyModel.descriptorLeaves(s), 0, t.op);
        }
    }

    function leafCount(Target memory t) public view returns (uint32) {
        if (t.kind == TargetKind.OpList) return uint32(TinyModel.section(sectionOf(t.layer)).length);
        return uint32(leavesOf(t).length);
    }

    function byteLength(Target memory t) public view returns (uint32) {
        if (t.kind != TargetKind.Pages && t.kind != TargetKind.Page) return 0;
        return 4 * elements(t.layer, t.row, t.op);
    }

    function answer(Target memory t) external view returns (bytes memory data) {
        if (t.kind == TargetKind.OpList) return abi.encodePacked(opRoots(t.layer, t.row));
        if (t.kind == TargetKind.Page) return page(t.layer, t.row, t.op, t.index);
        bytes32[] memory leaves = leavesOf(t);
        uint256 height = t.level < 6 ? t.level : 6;
        bytes32[] memory nodes = new bytes32[](2 ** height);
        for (uint256 i; i < nodes.length; i++) {
            nodes[i] = NaiveTree.node(leaves, t.level - height, (uint256(t.index) << height) + i);
        }
        return abi.encodePacked(nodes);
    }

    function page(uint16 layer, uint32 row, uint16 op, uint32 index) public view returns (bytes memory data) {
        bytes memory all = tensor(layer, row, op);
        uint256 end = 1024 * (uint256(index) + 1);
        if (end > all.length) end = all.length;
        data = new bytes(end - 1024 * uint256(index));
        assembly {
            mcopy(add(data, 32), add(add(all, 32), mul(1024, index)), mload(data))
        }
    }

    // ------------------------------------------------------------------------------------------------ witnesses

    /// @notice the witness for an element of one of the sums
    function witness(Claim memory c) external view returns (Witness memory w) {
        uint8 s = sectionOf(c.layer);
        w.opRoots = opRoots(c.layer, c.row);
        w.descriptor = TinyModel.section(s)[c.op];
        w.descriptorProof = NaiveTree.path(TinyModel.descriptorLeaves(s), 0, c.op);
        (w.page, w.pageProof) = pageOf(c.layer, c.row, c.op, c.element);
        w.reads = new Read[](2);
        w.reads[1] = readPrevious(c);
        w.reads[0] = w.reads[1];
        if (s == 1 && c.op == 2) {
            bytes32[] memory none = new bytes32[](0);
            (bytes memory data, bytes32[] memory path) = pageOf(c.layer, c.row, 0, c.element);
            w.reads[0] = Read(data, path, none, none);
        }
    }

    function readPrevious(Claim memory c) public view returns (Read memory r) {
        uint16 layer = c.layer - 1;
        uint32 row = position(c.layer, c.row);
        uint16 op = layer == 0 ? 0 : 2;
        (r.data, r.proof) = pageOf(layer, row, op, c.element);
        r.leaves = exportRoots(layer, row);
        r.leafProof = NaiveTree.concat(NaiveTree.path(_leaves[layer], 0, row), NaiveTree.path(_layers, 0, layer));
    }

    function pageOf(uint16 layer, uint32 row, uint16 op, uint32 element)
        public
        view
        returns (bytes memory data, bytes32[] memory path)
    {
        uint32 index = element * 4 / 1024;
        data = page(layer, row, op, index);
        path = NaiveTree.path(NaiveTree.pageHashes(tensor(layer, row, op)), 0, index);
    }
}
