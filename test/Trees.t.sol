// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {ITrees} from "../contracts/interfaces/ITrees.sol";
import {Trees} from "../contracts/lib/Trees.sol";
import {NaiveTree} from "./support/NaiveTree.sol";

/// The library's functions take calldata, so they are called through a contract.
contract TreesHarness {
    function depth(uint256 n) external pure returns (uint256) {
        return Trees.depth(n);
    }

    function treeRoot(bytes32[] memory leaves) external pure returns (bytes32) {
        return Trees.treeRoot(leaves);
    }

    function subtreeRoot(bytes32[] memory nodes, uint256 level, uint256 height) external pure returns (bytes32) {
        return Trees.subtreeRoot(nodes, level, height);
    }

    function rangeRoot(bytes32[] memory leaves, uint256 first, uint256 n, bytes32[] calldata proof, uint256 pos)
        external
        pure
        returns (bytes32, uint256)
    {
        return Trees.rangeRoot(leaves, first, n, proof, pos);
    }

    function pathRoot(bytes32 node, uint256 index, uint256 n, bytes32[] calldata proof, uint256 pos)
        external
        pure
        returns (bytes32, uint256)
    {
        return Trees.pathRoot(node, index, n, proof, pos);
    }

    function hashPages(bytes calldata data) external pure returns (bytes32[] memory) {
        return Trees.hashPages(data);
    }

    function pagesRoot(
        bytes calldata data,
        uint256 first,
        uint256 pages,
        uint256 byteLength,
        bytes32[] calldata proof,
        uint256 pos
    ) external pure returns (bytes32, uint256) {
        return Trees.pagesRoot(data, first, pages, byteLength, proof, pos);
    }

    function hashTagged(uint8 tag, bytes calldata data) external pure returns (bytes32) {
        return Trees.hashTagged(tag, data);
    }

    function tokensHash(bytes calldata data) external pure returns (bytes32) {
        return Trees.tokensHash(data);
    }

    function done(bytes32[] calldata proof, uint256 pos) external pure {
        Trees.done(proof, pos);
    }
}

contract TreesTest is Test {
    TreesHarness internal trees = new TreesHarness();

    function leaves(uint256 seed, uint256 n) internal pure returns (bytes32[] memory l) {
        l = new bytes32[](n);
        for (uint256 i; i < n; i++) {
            l[i] = keccak256(abi.encode(seed, i));
        }
    }

    function slice(bytes32[] memory all, uint256 first, uint256 n) internal pure returns (bytes32[] memory l) {
        l = new bytes32[](n);
        for (uint256 i; i < n; i++) {
            l[i] = all[first + i];
        }
    }

    function bytesOf(uint256 seed, uint256 n) internal pure returns (bytes memory data) {
        data = new bytes(n);
        for (uint256 i; i < n; i++) {
            data[i] = bytes1(uint8(seed >> (i % 31)) ^ uint8(i));
        }
    }

    // ---------------------------------------------------------------------------------------------------- depth

    function test_depth() public view {
        uint8[10] memory expected = [0, 1, 2, 2, 3, 3, 3, 3, 4, 4];
        for (uint256 n = 1; n <= 10; n++) {
            assertEq(trees.depth(n), expected[n - 1]);
        }
        assertEq(trees.depth(8192), 13);
        assertEq(trees.depth(8193), 14);
    }

    function testFuzz_depth(uint32 n) public view {
        vm.assume(n > 0);
        uint256 d = trees.depth(n);
        assertGe(uint256(1) << d, n);
        if (n > 1) assertLt(uint256(1) << (d - 1), n);
    }

    function test_depth_noLeaves() public {
        vm.expectRevert(ITrees.NoLeaves.selector);
        trees.depth(0);
    }

    function test_emptyRoot() public pure {
        bytes32 expected = NaiveTree.EMPTY;
        for (uint256 level; level < 14; level++) {
            assertEq(Trees.emptyRoot(level), expected);
            expected = NaiveTree.join(expected, expected);
        }
    }

    // ---------------------------------------------------------------------------------------------------- roots

    function test_treeRoot_everySmallTree() public view {
        for (uint256 n = 1; n <= 67; n++) {
            bytes32[] memory l = leaves(n, n);
            assertEq(trees.treeRoot(l), NaiveTree.root(l));
        }
    }

    function test_treeRoot_noLeaves() public {
        vm.expectRevert(ITrees.NoLeaves.selector);
        trees.treeRoot(new bytes32[](0));
    }

    function testFuzz_subtreeRoot_fillsUp(uint256 seed, uint256 n, uint256 level) public view {
        level = bound(level, 0, 3);
        n = bound(n, 1, 128 >> level);
        // The nodes of one level of a tree, without the empty ones to the right, give the same root.
        bytes32[] memory l = leaves(seed, n << level);
        bytes32[] memory nodes = new bytes32[](n);
        for (uint256 i; i < n; i++) {
            nodes[i] = NaiveTree.node(l, level, i);
        }
        uint256 top = NaiveTree.depth(l.length);
        assertEq(trees.subtreeRoot(nodes, level, top - level), NaiveTree.root(l));
        assertEq(trees.subtreeRoot(nodes, level, top - level + 2), NaiveTree.node(l, top + 2, 0));
    }

    // --------------------------------------------------------------------------------------------------- ranges

    function test_rangeRoot_everySmallRange() public view {
        for (uint256 n = 1; n <= 9; n++) {
            bytes32[] memory l = leaves(n, n);
            for (uint256 first; first < n; first++) {
                for (uint256 count = 1; first + count <= n; count++) {
                    bytes32[] memory proof = NaiveTree.rangeProof(l, first, count);
                    (bytes32 root, uint256 used) = trees.rangeRoot(slice(l, first, count), first, n, proof, 0);
                    assertEq(root, NaiveTree.root(l));
                    assertEq(used, proof.length);
                }
            }
        }
    }

    function testFuzz_rangeRoot(uint256 seed, uint256 n, uint256 first, uint256 count, uint256 before) public view {
        (n, before) = (bound(n, 1, 100), bound(before, 0, 3));
        first = bound(first, 0, n - 1);
        count = bound(count, 1, n - first);
        bytes32[] memory l = leaves(seed, n);
        // The proof may stand after another and before another.
        bytes32[] memory proof = NaiveTree.concat(leaves(1, before), NaiveTree.rangeProof(l, first, count));
        (bytes32 root, uint256 used) =
            trees.rangeRoot(slice(l, first, count), first, n, NaiveTree.concat(proof, leaves(2, 2)), before);
        assertEq(root, NaiveTree.root(l));
        assertEq(used, proof.length);
    }

    function testFuzz_rangeRoot_changed(uint256 seed, uint256 n, uint256 first, uint256 count, uint256 bit)
        public
        view
    {
        n = bound(n, 2, 60);
        first = bound(first, 0, n - 1);
        count = bound(count, 1, n - first);
        bytes32[] memory l = leaves(seed, n);
        bytes32[] memory part = slice(l, first, count);
        bytes32[] memory proof = NaiveTree.rangeProof(l, first, count);
        bit = bound(bit, 0, 256 * (count + proof.length) - 1);
        uint256 at = bit / 256;
        bytes32 flip = bytes32(uint256(1) << (bit % 256));
        if (at < count) part[at] ^= flip;
        else proof[at - count] ^= flip;
        (bytes32 root,) = trees.rangeRoot(part, first, n, proof, 0);
        assertNotEq(root, NaiveTree.root(l));
    }

    function testFuzz_pathRoot_otherIndex(uint256 seed, uint256 n, uint256 index, uint256 other) public view {
        n = bound(n, 2, 60);
        index = bound(index, 0, n - 1);
        other = bound(other, 0, n - 1);
        vm.assume(index != other);
        bytes32[] memory l = leaves(seed, n);
        (bytes32 root,) = trees.pathRoot(l[index], other, n, NaiveTree.path(l, 0, index), 0);
        assertNotEq(root, NaiveTree.root(l));
    }

    function testFuzz_rangeRoot_shortProof(uint256 seed, uint256 n, uint256 first, uint256 count) public {
        n = bound(n, 2, 60);
        first = bound(first, 0, n - 1);
        count = bound(count, 1, n - first);
        bytes32[] memory l = leaves(seed, n);
        bytes32[] memory proof = NaiveTree.rangeProof(l, first, count);
        vm.assume(proof.length > 0);
        bytes32[] memory short = slice(proof, 0, proof.length - 1);
        vm.expectRevert(abi.encodeWithSelector(ITrees.ProofLength.selector, short.length, proof.length));
        trees.rangeRoot(slice(l, first, count), first, n, short, 0);
    }

    function test_rangeRoot_outside() public {
        bytes32[] memory none = new bytes32[](0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.OutsideTree.selector, 3, 2, 4));
        trees.rangeRoot(leaves(0, 2), 3, 4, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.OutsideTree.selector, 4, 1, 4));
        trees.rangeRoot(leaves(0, 1), 4, 4, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.OutsideTree.selector, 0, 0, 4));
        trees.rangeRoot(none, 0, 4, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.OutsideTree.selector, type(uint256).max, 2, 4));
        trees.rangeRoot(leaves(0, 2), type(uint256).max, 4, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.OutsideTree.selector, 4, 1, 4));
        trees.pathRoot(0, 4, 4, none, 0);
    }

    function testFuzz_pathRoot(uint256 seed, uint256 n, uint256 index) public view {
        n = bound(n, 1, 100);
        index = bound(index, 0, n - 1);
        bytes32[] memory l = leaves(seed, n);
        bytes32[] memory proof = NaiveTree.path(l, 0, index);
        (bytes32 root, uint256 used) = trees.pathRoot(l[index], index, n, proof, 0);
        assertEq(root, NaiveTree.root(l));
        assertEq(used, proof.length);
    }

    function test_pathRoot_shortProof() public {
        vm.expectRevert(abi.encodeWithSelector(ITrees.ProofLength.selector, 2, 3));
        trees.pathRoot(0, 4, 5, leaves(0, 2), 0);
    }

    function test_done() public {
        trees.done(leaves(0, 3), 3);
        vm.expectRevert(abi.encodeWithSelector(ITrees.ProofLength.selector, 3, 2));
        trees.done(leaves(0, 3), 2);
    }

    // ---------------------------------------------------------------------------------------------------- pages

    function testFuzz_hashPages(uint256 seed, uint256 n) public view {
        n = bound(n, 0, 3100);
        bytes memory data = bytesOf(seed, n);
        assertEq(abi.encode(trees.hashPages(data)), abi.encode(NaiveTree.pageHashes(data)));
    }

    function test_hashPages_edges() public view {
        uint16[6] memory lengths = [1, 1023, 1024, 1025, 2048, 2049];
        for (uint256 i; i < lengths.length; i++) {
            bytes memory data = bytesOf(i, lengths[i]);
            assertEq(abi.encode(trees.hashPages(data)), abi.encode(NaiveTree.pageHashes(data)));
        }
        assertEq(trees.hashPages(hex"2a")[0], keccak256(hex"002a"));
        assertNotEq(trees.hashPages(hex"2a00")[0], trees.hashPages(hex"2a")[0]);
    }

    function testFuzz_pagesRoot(uint256 seed, uint256 n, uint256 first, uint256 count) public view {
        n = bound(n, 1, 6000);
        bytes memory data = bytesOf(seed, n);
        bytes32[] memory hashes = NaiveTree.pageHashes(data);
        first = bound(first, 0, hashes.length - 1);
        count = bound(count, 1, hashes.length - first);
        uint256 end = first + count == hashes.length ? n : (first + count) * 1024;
        bytes memory part = new bytes(end - first * 1024);
        for (uint256 i; i < part.length; i++) {
            part[i] = data[first * 1024 + i];
        }
        bytes32[] memory proof = NaiveTree.rangeProof(hashes, first, count);
        (bytes32 root, uint256 used) = trees.pagesRoot(part, first, count, n, proof, 0);
        assertEq(root, NaiveTree.root(hashes));
        assertEq(used, proof.length);
    }

    function test_pagesRoot_length() public {
        bytes32[] memory none = new bytes32[](0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.DataLength.selector, 99, 100));
        trees.pagesRoot(new bytes(99), 0, 1, 100, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.DataLength.selector, 101, 100));
        trees.pagesRoot(new bytes(101), 0, 1, 100, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.DataLength.selector, 1024, 100));
        trees.pagesRoot(new bytes(1024), 0, 1, 100, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.DataLength.selector, 100, 1024));
        trees.pagesRoot(new bytes(100), 0, 1, 1124, none, 0);
        vm.expectRevert(abi.encodeWithSelector(ITrees.OutsideTree.selector, 1, 1, 1));
        trees.pagesRoot(new bytes(100), 1, 1, 100, none, 0);
    }

    // --------------------------------------------------------------------------------------------------- hashes

    function test_hashes() public view {
        bytes32[] memory l = leaves(5, 2);
        assertEq(Trees.EMPTY, keccak256(hex"ff"));
        assertEq(Trees.hashNode(l[0], l[1]), keccak256(bytes.concat(hex"01", l[0], l[1])));
        assertEq(Trees.hashPosition(l), keccak256(bytes.concat(hex"02", l[0], l[1])));
        assertEq(Trees.hashOpList(l), keccak256(bytes.concat(hex"030002", l[0], l[1])));
        assertEq(trees.hashTagged(4, hex"abcd"), keccak256(hex"04abcd"));
        assertEq(trees.hashTagged(6, ""), keccak256(hex"06"));
    }

    function testFuzz_tokensHash(uint256 seed, uint256 n) public view {
        n = bound(n, 1, 600);
        bytes memory data = bytesOf(seed, 4 * n);
        bytes32 root = NaiveTree.root(NaiveTree.pageHashes(data));
        assertEq(trees.tokensHash(data), keccak256(abi.encodePacked(uint8(8), uint32(n), root)));
    }
}
