// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ITrees} from "../interfaces/ITrees.sol";

/// @title Trees
/// @notice The hashing of docs/protocol.md: domain-separated keccak256, binary trees padded with empty leaves, pages of
/// tensors, range proofs.
/// @dev Every tree's depth follows from a leaf count that the caller takes from public parameters, never from a proof's
/// length. Proofs are consumed from a position in an array, so several can follow one another in it; whoever consumes the
/// last one calls `done`.
library Trees {
    /// @notice bytes of a tensor page
    uint256 internal constant PAGE = 1024;
    /// @notice the leaf that pads every tree
    bytes32 internal constant EMPTY = keccak256(hex"ff");

    uint8 internal constant TAG_PAGE = 0x00;
    uint8 internal constant TAG_NODE = 0x01;
    uint8 internal constant TAG_POSITION = 0x02;
    uint8 internal constant TAG_OP_LIST = 0x03;
    uint8 internal constant TAG_ROW = 0x04;
    uint8 internal constant TAG_TRACE = 0x05;
    uint8 internal constant TAG_DESCRIPTOR = 0x06;
    uint8 internal constant TAG_MANIFEST = 0x07;
    uint8 internal constant TAG_TOKENS = 0x08;
    uint8 internal constant TAG_ORDER = 0x09;

    // ---------------------------------------------------------------------------------------------------- shape

    /// @notice ⌈log2 n⌉, the depth of a tree over n leaves
    function depth(uint256 n) internal pure returns (uint256 d) {
        if (n == 0) revert ITrees.NoLeaves();
        while ((uint256(1) << d) < n) ++d;
    }

    /// @notice pages of a tensor
    function pageCount(uint256 byteLength) internal pure returns (uint256) {
        return (byteLength + (PAGE - 1)) / PAGE;
    }

    /// @notice how many bytes `count` pages from `first` carry: all of them full but the tensor's last
    function pagesLength(uint256 byteLength, uint256 first, uint256 count) internal pure returns (uint256) {
        uint256 pages = pageCount(byteLength);
        if (count == 0 || first + count > pages) revert ITrees.OutsideTree(first, count, pages);
        return (first + count == pages ? byteLength : (first + count) * PAGE) - first * PAGE;
    }

    /// @notice the root of a subtree of height `level` that holds no leaf
    function emptyRoot(uint256 level) internal pure returns (bytes32 root) {
        root = EMPTY;
        for (uint256 i; i < level; ++i) {
            root = hashNode(root, root);
        }
    }

    // --------------------------------------------------------------------------------------------------- hashes

    function hashNode(bytes32 left, bytes32 right) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, TAG_NODE)
            mstore(add(free, 1), left)
            mstore(add(free, 33), right)
            hash := keccak256(free, 65)
        }
    }

    /// @notice tag ‖ data
    function hashTagged(uint8 tag, bytes calldata data) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, tag)
            calldatacopy(add(free, 1), data.offset, data.length)
            hash := keccak256(free, add(data.length, 1))
        }
    }

    /// @notice the leaf of a position: its exported roots in program order
    function hashPosition(bytes32[] memory exportRoots) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(TAG_POSITION, exportRoots));
    }

    /// @notice the operator list of a position: count and all roots in program order
    function hashOpList(bytes32[] memory opRoots) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(TAG_OP_LIST, uint16(opRoots.length), opRoots));
    }

    /// @notice the hashes of consecutive pages, each of its bytes alone
    /// @dev A page's length is part of what is hashed, and never the prover's choice: callers compare `data.length` with
    /// `pagesLength` of the shape before they compare a hash, or made the data themselves.
    function hashPages(bytes calldata data) internal pure returns (bytes32[] memory hashes) {
        uint256 pages = pageCount(data.length);
        hashes = new bytes32[](pages);
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, TAG_PAGE)
            let body := add(free, 1)
            let left := data.length
            let from := data.offset
            for { let to := add(hashes, 32) } left { to := add(to, 32) } {
                let n := left
                if gt(n, PAGE) { n := PAGE }
                calldatacopy(body, from, n)
                mstore(to, keccak256(free, add(n, 1)))
                from := add(from, n)
                left := sub(left, n)
            }
        }
    }

    /// @notice the root of a whole tensor
    function tensorRoot(bytes calldata data) internal pure returns (bytes32) {
        return treeRoot(hashPages(data));
    }

    /// @notice the hash of a token sequence, given as big-endian u32 each
    function tokensHash(bytes calldata tokens) internal pure returns (bytes32) {
        return sequenceHash(tokens.length / 4, tensorRoot(tokens));
    }

    /// @notice the same of `n` tokens, below 2^32, whose tensor has this root
    function sequenceHash(uint256 n, bytes32 root) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            mstore8(0, TAG_TOKENS)
            mstore(1, shl(224, n))
            mstore(5, root)
            hash := keccak256(0, 37)
        }
    }

    // ---------------------------------------------------------------------------------------------------- trees

    /// @notice the root of a tree over all its leaves; the array is overwritten
    function treeRoot(bytes32[] memory leaves) internal pure returns (bytes32) {
        return subtreeRoot(leaves, 0, depth(leaves.length));
    }

    /// @notice the root of the subtree `height` levels up whose leftmost nodes, at `level`, are `nodes`; the others are
    /// empty. The array is overwritten.
    function subtreeRoot(bytes32[] memory nodes, uint256 level, uint256 height) internal pure returns (bytes32 root) {
        uint256 n = nodes.length;
        if (n == 0) revert ITrees.NoLeaves();
        bytes32 empty = emptyRoot(level);
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, TAG_NODE)
            let l := add(free, 1)
            let r := add(free, 33)
            let base := add(nodes, 32)
            for { let i := 0 } lt(i, height) { i := add(i, 1) } {
                let to := base
                let end := add(base, shl(5, n))
                for { let from := base } lt(from, end) { from := add(from, 64) } {
                    mstore(l, mload(from))
                    let right := empty
                    if lt(add(from, 32), end) { right := mload(add(from, 32)) }
                    mstore(r, right)
                    mstore(to, keccak256(free, 65))
                    to := add(to, 32)
                }
                n := shr(1, add(n, 1))
                mstore(l, empty)
                mstore(r, empty)
                empty := keccak256(free, 65)
            }
            root := mload(base)
        }
    }

    // --------------------------------------------------------------------------------------------------- proofs

    /// @notice the root of a tree over `leafCount` leaves that holds `leaves` from `first` on
    /// @dev Level by level from the leaves up: the left sibling if the range begins at an odd index, then the right
    /// sibling if its last index is even. `leaves` is overwritten.
    /// @param pos where in `proof` to begin
    /// @return root the root
    /// @return next the first unused position of `proof`
    function rangeRoot(bytes32[] memory leaves, uint256 first, uint256 leafCount, bytes32[] calldata proof, uint256 pos)
        internal
        pure
        returns (bytes32 root, uint256 next)
    {
        // `first` comes from public parameters or a u32 of the caller's; the sum cannot overflow for any that passes.
        if (leaves.length == 0 || first >= leafCount || leaves.length > leafCount - first) {
            revert ITrees.OutsideTree(first, leaves.length, leafCount);
        }
        next = pos;
        // A variable per purpose would be more than the stack holds.
        uint256 height = depth(leafCount);
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, TAG_NODE)
            let last := add(first, sub(mload(leaves), 1))
            for {} height { height := sub(height, 1) } {
                let from := add(leaves, 32)
                let to := from
                let end := add(from, shl(5, add(sub(last, first), 1)))
                if and(first, 1) {
                    // Reading past the array's end is caught below by the position, whatever is read.
                    mstore(add(free, 1), calldataload(add(proof.offset, shl(5, next))))
                    next := add(next, 1)
                    mstore(add(free, 33), mload(from))
                    mstore(to, keccak256(free, 65))
                    from := add(from, 32)
                    to := add(to, 32)
                }
                for {} lt(add(from, 32), end) { from := add(from, 64) } {
                    mstore(add(free, 1), mload(from))
                    mstore(add(free, 33), mload(add(from, 32)))
                    mstore(to, keccak256(free, 65))
                    to := add(to, 32)
                }
                if lt(from, end) {
                    mstore(add(free, 1), mload(from))
                    mstore(add(free, 33), calldataload(add(proof.offset, shl(5, next))))
                    next := add(next, 1)
                    mstore(to, keccak256(free, 65))
                }
                first := shr(1, first)
                last := shr(1, last)
            }
            root := mload(add(leaves, 32))
        }
        if (next > proof.length) revert ITrees.ProofLength(proof.length, next);
    }

    /// @notice the root of a tree over `leafCount` nodes of one level that holds `node` at `index`
    function pathRoot(bytes32 node, uint256 index, uint256 leafCount, bytes32[] calldata proof, uint256 pos)
        internal
        pure
        returns (bytes32 root, uint256 next)
    {
        if (index >= leafCount) revert ITrees.OutsideTree(index, 1, leafCount);
        return climb(node, index, depth(leafCount), proof, pos);
    }

    /// @notice climbs `height` levels from `node` at `index` of its level
    function climb(bytes32 node, uint256 index, uint256 height, bytes32[] calldata proof, uint256 pos)
        internal
        pure
        returns (bytes32 root, uint256 next)
    {
        next = pos + height;
        if (next > proof.length) revert ITrees.ProofLength(proof.length, next);
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, TAG_NODE)
            root := node
            let from := add(proof.offset, shl(5, pos))
            for { let end := add(from, shl(5, height)) } lt(from, end) { from := add(from, 32) } {
                // An odd index is a right child: its hash goes to the second place, its sibling to the first.
                let side := shl(5, and(index, 1))
                mstore(add(add(free, 1), side), root)
                mstore(sub(add(free, 33), side), calldataload(from))
                root := keccak256(free, 65)
                index := shr(1, index)
            }
        }
    }

    /// @notice the root of a tensor of `byteLength` bytes whose pages from `firstPage` on are `data`
    /// @param pages how many pages the read needs; `data` must be exactly as long as these are
    function pagesRoot(
        bytes calldata data,
        uint256 firstPage,
        uint256 pages,
        uint256 byteLength,
        bytes32[] calldata proof,
        uint256 pos
    ) internal pure returns (bytes32 root, uint256 next) {
        uint256 expected = pagesLength(byteLength, firstPage, pages);
        if (data.length != expected) revert ITrees.DataLength(data.length, expected);
        return rangeRoot(hashPages(data), firstPage, pageCount(byteLength), proof, pos);
    }

    /// @notice all of `proof` has been used
    function done(bytes32[] calldata proof, uint256 pos) internal pure {
        if (pos != proof.length) revert ITrees.ProofLength(proof.length, pos);
    }
}
