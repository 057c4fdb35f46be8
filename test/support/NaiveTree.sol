// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @notice The trees of docs/protocol.md written as the page says them, node by node, to compare the library with.
library NaiveTree {
    bytes32 internal constant EMPTY = keccak256(hex"ff");

    function depth(uint256 n) internal pure returns (uint256 d) {
        while (2 ** d < n) d++;
    }

    function join(bytes32 left, bytes32 right) internal pure returns (bytes32) {
        return keccak256(bytes.concat(hex"01", left, right));
    }

    /// @notice node `index` of `level`
    function node(bytes32[] memory leaves, uint256 level, uint256 index) internal pure returns (bytes32) {
        if (level == 0) return index < leaves.length ? leaves[index] : EMPTY;
        return join(node(leaves, level - 1, 2 * index), node(leaves, level - 1, 2 * index + 1));
    }

    function root(bytes32[] memory leaves) internal pure returns (bytes32) {
        return node(leaves, depth(leaves.length), 0);
    }

    /// @notice the siblings from node `index` of `level` up to the root
    function path(bytes32[] memory leaves, uint256 level, uint256 index) internal pure returns (bytes32[] memory p) {
        uint256 top = depth(leaves.length);
        p = new bytes32[](top - level);
        for (uint256 l = level; l < top; l++) {
            p[l - level] = node(leaves, l, index ^ 1);
            index /= 2;
        }
    }

    /// @notice left sibling, then right sibling, level by level
    function rangeProof(bytes32[] memory leaves, uint256 first, uint256 count)
        internal
        pure
        returns (bytes32[] memory p)
    {
        uint256 top = depth(leaves.length);
        uint256 last = first + count - 1;
        p = new bytes32[](2 * top);
        uint256 n;
        for (uint256 l; l < top; l++) {
            if (first % 2 == 1) p[n++] = node(leaves, l, first - 1);
            if (last % 2 == 0) p[n++] = node(leaves, l, last + 1);
            first /= 2;
            last /= 2;
        }
        assembly {
            mstore(p, n)
        }
    }

    function pageHashes(bytes memory data) internal pure returns (bytes32[] memory hashes) {
        hashes = new bytes32[]((data.length + 1023) / 1024);
        for (uint256 i; i < hashes.length; i++) {
            uint256 n = data.length - 1024 * i < 1024 ? data.length - 1024 * i : 1024;
            bytes memory page = new bytes(n);
            assembly {
                mcopy(add(page, 32), add(add(data, 32), mul(1024, i)), n)
            }
            hashes[i] = keccak256(bytes.concat(hex"00", page));
        }
    }

    function concat(bytes32[] memory a, bytes32[] memory b) internal pure returns (bytes32[] memory c) {
        c = new bytes32[](a.length + b.length);
        for (uint256 i; i < a.length; i++) {
            c[i] = a[i];
        }
        for (uint256 i; i < b.length; i++) {
            c[a.length + i] = b[i];
        }
    }
}
