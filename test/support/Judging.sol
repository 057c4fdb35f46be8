// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ModelShape} from "../../contracts/interfaces/IModels.sol";
import {Read, TraceContext, Witness} from "../../contracts/interfaces/IStepVerifier.sol";
import {Naive} from "./Naive.sol";
import {Op, World} from "./World.sol";

/// @notice Judges all elements of an output: each one, honest, is judged right; one bit off, it is judged wrong; and the proof of that is
/// rejected with any byte changed.
abstract contract Judging is World {
    uint256 internal nonce;
    Op internal d;
    int256[] internal expected;
    /// `SELECT` only: a hint may be changed into another good one
    bool internal hinted;

    function setUp() public virtual {
        claim.layer = 2;
        claim.row = 17;
        for (uint256 i; i < nIn + nOut; i++) {
            tokens.push(uint32(i * 37 % 101));
        }
        d.outer = 1;
        d.inner = 1;
    }

    // ----------------------------------------------------------------------------------------------------- values

    /// -bound…bound, at random magnitudes
    function random(uint256 bits) internal returns (int256) {
        uint256 x = uint256(keccak256(abi.encode(nonce++)));
        int256 m = int256((x >> 8) & ((1 << (x % (bits + 1))) - 1));
        return x >> 255 == 1 ? -m : m;
    }

    function vector(uint256 n, uint256 bits) internal returns (int256[] memory v) {
        v = new int256[](n);
        for (uint256 i; i < n; i++) {
            v[i] = random(bits);
        }
    }

    function magnitudes(uint256 n, uint256 bits) internal returns (int256[] memory v) {
        v = vector(n, bits);
        for (uint256 i; i < n; i++) {
            v[i] = int256(Naive.mag(v[i]));
        }
    }

    /// mantissa, exponent, mantissa, …
    function scales(uint256 n, int256 e) internal returns (int256[] memory v) {
        v = new int256[](2 * n);
        for (uint256 i; i < n; i++) {
            v[2 * i] = 65535 - int256(Naive.mag(random(14)));
            v[2 * i + 1] = e + int256(i % 3);
        }
    }

    function list(int256 a) internal pure returns (int256[] memory v) {
        v = new int256[](1);
        v[0] = a;
    }

    function list(int256 a, int256 b) internal pure returns (int256[] memory v) {
        v = new int256[](2);
        v[0] = a;
        v[1] = b;
    }

    function expTable() internal returns (uint256[] memory t) {
        t = Naive.expTable();
        int256[] memory v = new int256[](257);
        for (uint256 i; i < 257; i++) {
            v[i] = int256(t[i]);
        }
        tables.push(encode(v, U16));
    }

    function expIndex(uint256 x) internal pure returns (uint256) {
        return x % 8192 / 32;
    }

    /// arbitrary exports of the rows that a CACHE or PREV operand reads
    function exportTensor(uint256 layer, uint256 row, int256[] memory v, uint256 dtype) internal {
        exported[layer][row].push(encode(v, dtype));
    }

    // ---------------------------------------------------------------------------------------------------- checking

    function judge(Witness memory w) internal view returns (int256, int256) {
        return verifier.judge(traceContext(), modelShape(), claim, w);
    }

    function place() internal {
        claim.op = uint16(ops.length);
        ops.push(encode(expected, d.dtype));
        descriptors.push(describe(d, masks[section(claim.layer)] >> claim.op & 1 == 1));
        // An operator behind it, so that it is not the last.
        ops.push("behind");
        descriptors.push(new bytes(64));
    }

    function check(function(uint256) internal read) internal {
        place();
        for (uint256 i; i < expected.length; i++) {
            checkElement(i, read);
        }
        // The last element, one bit off, is proven wrong by this proof and by none like it.
        uint256 last = expected.length - 1;
        corrupt(last);
        prepare(last, read);
        Witness memory w = witness(d.dtype);
        checkMutations(w);
    }

    function prepare(uint256 i, function(uint256) internal read) internal {
        claim.element = uint32(i);
        delete reads;
        read(i);
    }

    function corrupt(uint256 i) internal {
        uint256 at = (i + 1) * width(d.dtype) - 1;
        ops[claim.op][at] ^= 0x01;
    }

    function checkElement(uint256 i, function(uint256) internal read) internal {
        prepare(i, read);
        (int256 claimed, int256 computed) = judge(witness(d.dtype));
        assertEq(claimed, expected[i], "claimed");
        assertEq(computed, expected[i], "computed");
        corrupt(i);
        prepare(i, read);
        (claimed, computed) = judge(witness(d.dtype));
        assertNotEq(claimed, expected[i], "the wrong claim");
        assertEq(computed, expected[i], "the right value");
        corrupt(i);
    }

    function checkMutations(Witness memory w) internal {
        TraceContext memory c = traceContext();
        ModelShape memory m = modelShape();
        mutateBytes(c, m, w, w.descriptor, "descriptor");
        mutateHashes(c, m, w, w.descriptorProof, "descriptorProof");
        mutateBytes(c, m, w, w.page, "page");
        mutateHashes(c, m, w, w.pageProof, "pageProof");
        for (uint256 i; i < w.reads.length; i++) {
            mutateBytes(c, m, w, w.reads[i].data, "data");
            mutateHashes(c, m, w, w.reads[i].proof, "proof");
            mutateHashes(c, m, w, w.reads[i].leaves, "leaves");
            mutateHashes(c, m, w, w.reads[i].leafProof, "leafProof");
        }
        mutateLengths(c, m, w);
        if (!hinted) {
            for (uint256 k; k < 32; k++) {
                w.hint ^= uint32(1 << k);
                rejected(c, m, w, "hint");
                w.hint ^= uint32(1 << k);
            }
        }
    }

    function rejected(TraceContext memory c, ModelShape memory m, Witness memory w, string memory what) internal view {
        try verifier.judge(c, m, claim, w) {
            revert(string.concat("accepted with another ", what));
        } catch {}
    }

    function mutateBytes(
        TraceContext memory c,
        ModelShape memory m,
        Witness memory w,
        bytes memory b,
        string memory what
    ) internal view {
        for (uint256 i; i < b.length; i++) {
            b[i] ^= 0x10;
            rejected(c, m, w, what);
            b[i] ^= 0x10;
        }
    }

    function mutateHashes(
        TraceContext memory c,
        ModelShape memory m,
        Witness memory w,
        bytes32[] memory h,
        string memory what
    ) internal view {
        for (uint256 i; i < h.length; i++) {
            for (uint256 k; k < 32; k++) {
                h[i] ^= bytes32(1 << (8 * k));
                rejected(c, m, w, what);
                h[i] ^= bytes32(1 << (8 * k));
            }
        }
    }

    function longer(bytes memory b) internal pure returns (bytes memory) {
        return bytes.concat(b, hex"00");
    }

    function shorter(bytes memory b) internal pure returns (bytes memory c) {
        c = bytes.concat(b);
        assembly {
            mstore(c, sub(mload(c), 1))
        }
    }

    function longer(bytes32[] memory h) internal pure returns (bytes32[] memory) {
        return resized(h, h.length + 1);
    }

    function resized(bytes32[] memory h, uint256 n) internal pure returns (bytes32[] memory r) {
        r = new bytes32[](n);
        for (uint256 i; i < n && i < h.length; i++) {
            r[i] = h[i];
        }
    }

    function mutateLengths(TraceContext memory c, ModelShape memory m, Witness memory w) internal view {
        bytes memory b = w.descriptor;
        w.descriptor = longer(b);
        rejected(c, m, w, "descriptor length");
        w.descriptor = shorter(b);
        rejected(c, m, w, "descriptor length");
        w.descriptor = b;
        b = w.page;
        w.page = longer(b);
        rejected(c, m, w, "page length");
        w.page = shorter(b);
        rejected(c, m, w, "page length");
        w.page = b;
        bytes32[] memory h = w.descriptorProof;
        w.descriptorProof = longer(h);
        rejected(c, m, w, "descriptorProof length");
        w.descriptorProof = resized(h, h.length - 1);
        rejected(c, m, w, "descriptorProof length");
        w.descriptorProof = h;
        h = w.pageProof;
        w.pageProof = longer(h);
        rejected(c, m, w, "pageProof length");
        w.pageProof = h;
        h = w.opRoots;
        w.opRoots = longer(h);
        rejected(c, m, w, "opRoots length");
        w.opRoots = resized(h, h.length - 1);
        rejected(c, m, w, "opRoots length");
        w.opRoots = h;
        for (uint256 i; i < w.reads.length; i++) {
            mutateReadLengths(c, m, w, i);
        }
        uint256 n = w.reads.length;
        Read[] memory all = w.reads;
        w.reads = new Read[](n + 1);
        for (uint256 i; i < n; i++) {
            w.reads[i] = all[i];
        }
        rejected(c, m, w, "read more");
        w.reads[n] = all[n - 1];
        rejected(c, m, w, "read more");
        w.reads = new Read[](n - 1);
        for (uint256 i; i + 1 < n; i++) {
            w.reads[i] = all[i];
        }
        rejected(c, m, w, "read less");
        w.reads = all;
    }

    function mutateReadLengths(TraceContext memory c, ModelShape memory m, Witness memory w, uint256 i) internal view {
        bytes memory b = w.reads[i].data;
        w.reads[i].data = longer(b);
        rejected(c, m, w, "data length");
        w.reads[i].data = shorter(b);
        rejected(c, m, w, "data length");
        w.reads[i].data = b;
        bytes32[] memory h = w.reads[i].proof;
        w.reads[i].proof = longer(h);
        rejected(c, m, w, "proof length");
        if (h.length > 0) {
            w.reads[i].proof = resized(h, h.length - 1);
            rejected(c, m, w, "proof length");
        }
        w.reads[i].proof = h;
        h = w.reads[i].leaves;
        w.reads[i].leaves = longer(h);
        rejected(c, m, w, "leaves length");
        w.reads[i].leaves = h;
        h = w.reads[i].leafProof;
        w.reads[i].leafProof = longer(h);
        rejected(c, m, w, "leafProof length");
        if (h.length > 0) {
            w.reads[i].leafProof = resized(h, h.length - 1);
            rejected(c, m, w, "leafProof length");
        }
        w.reads[i].leafProof = h;
    }
}
