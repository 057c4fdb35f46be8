// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ModelShape} from "./interfaces/IModels.sol";
import {Claim, IStepVerifier, TraceContext, Witness} from "./interfaces/IStepVerifier.sol";
import {ITrees} from "./interfaces/ITrees.sol";
import {Attention} from "./lib/Attention.sol";
import {Descriptor, Head} from "./lib/Descriptor.sol";
import {Ops} from "./lib/Ops.sol";
import {Reader, Step} from "./lib/Reader.sol";
import {Selection} from "./lib/Selection.sol";
import {Slice} from "./lib/Slice.sol";
import {Trees} from "./lib/Trees.sol";

/// @title StepVerifier
/// @notice See `IStepVerifier`.
contract StepVerifier is IStepVerifier {
    /// @inheritdoc IStepVerifier
    function judge(
        TraceContext calldata trace,
        ModelShape calldata model,
        Claim calldata claim,
        Witness calldata witness
    ) external pure returns (int256 claimed, int256 computed) {
        Step memory s;
        assembly ("memory-safe") {
            // Where the arguments lie in calldata; see `Step`. The first three fields.
            mstore(s, trace)
            mstore(add(s, 32), model)
            mstore(add(s, 64), witness)
        }
        locate(s, claim);
        describe(s);
        claimed = open(s);
        computed = compute(s, claimed);

        if (s.cursor != witness.reads.length) revert ReadCount(witness.reads.length, s.cursor);
        uint256 opcode = s.head.opcode();
        if (witness.hint != 0 && opcode != 21 && opcode != 32) revert UnexpectedHint(witness.hint);
    }

    /// @dev where the claim is
    function locate(Step memory s, Claim calldata claim) private pure {
        uint256 layers = uint256(s.model().layers) + 2;
        s.layer = claim.layer;
        if (s.layer >= layers) revert NoSuch(0, s.layer, layers);
        uint256 rows = s.rows(s.layer);
        s.row = claim.row;
        if (s.row >= rows) revert NoSuch(1, s.row, rows);
        s.op = claim.op;
        s.element = claim.element;
        // A head row has the position of the token before the one it selects.
        s.position = s.layer + 1 == layers ? uint256(s.trace().nIn) + s.row - 1 : s.row;
    }

    /// @dev what the operator computes
    function describe(Step memory s) private pure {
        Witness calldata witness = s.witness();
        uint256 section = s.section(s.layer);
        uint256 ops = s.model().opCounts[section];
        if (s.op >= ops) revert NoSuch(2, s.op, ops);
        if (witness.opRoots.length != ops) revert OpListLength(witness.opRoots.length, ops);

        bytes calldata descriptor = witness.descriptor;
        if (descriptor.length != Descriptor.BYTES) revert ITrees.DataLength(descriptor.length, Descriptor.BYTES);
        (bytes32 root, uint256 pos) =
            Trees.pathRoot(Trees.hashTagged(Trees.TAG_DESCRIPTOR, descriptor), s.op, ops, witness.descriptorProof, 0);
        Trees.done(witness.descriptorProof, pos);
        Reader.same(root, s.model().sectionRoots[section]);

        s.head = Head.wrap(uint256(bytes32(descriptor[0:32])));
        s.operands = uint256(bytes32(descriptor[32:64]));
        s.head.check(s.head.dtype() < 4);
        s.count = s.head.count(s.position);
        if (s.element >= s.count) revert NoSuch(3, s.element, s.count);
    }

    /// @dev the claimed value
    function open(Step memory s) private pure returns (int256) {
        Witness calldata witness = s.witness();
        (Slice slice, bytes32 root) =
            Reader.pages(witness.page, witness.pageProof, Reader.run(s.head.dtype(), s.count, s.element, 1));
        Reader.same(root, witness.opRoots[s.op]);
        return slice.get(0);
    }

    /// @dev the right value
    function compute(Step memory s, int256 claimed) private pure returns (int256) {
        uint256 opcode = s.head.opcode();
        if (opcode < 11) {
            if (opcode < 6) {
                if (opcode == 1) return Ops.embed(s);
                if (opcode == 2) return Ops.maxAbs(s);
                if (opcode == 3) return Ops.sumSquares(s);
                if (opcode == 4) return Ops.rms(s);
                if (opcode == 5) return Ops.gain(s);
            } else {
                if (opcode == 6) return Ops.quant(s);
                if (opcode == 7) return Ops.quantScale(s);
                if (opcode == 8) return Ops.normScale(s);
                if (opcode == 9) return Ops.linear(s);
                return Ops.rope(s);
            }
        } else if (opcode < 16) {
            if (opcode == 11) return Ops.scaleQ(s);
            if (opcode == 12) return Ops.toFixed(s);
            if (opcode == 13) return Attention.scores(s);
            if (opcode == 14) return Attention.rowMax(s);
            return Attention.exp(s);
        } else if (opcode < 22) {
            if (opcode == 16) return Attention.rowSum(s);
            if (opcode == 17) return Attention.prob(s);
            if (opcode == 18) return Attention.mix(s);
            if (opcode == 19) return Ops.gated(s, false);
            if (opcode == 20) return Ops.add(s);
            return Selection.select(s, claimed);
        } else if (opcode < 27) {
            if (opcode == 22) return Ops.dequant(s);
            if (opcode == 23) return Ops.gated(s, true);
            if (opcode == 24) return Ops.softCap(s);
            if (opcode == 25) return Attention.window(s);
            return Selection.temper(s);
        } else {
            if (opcode == 27) return Ops.groupMax(s);
            if (opcode == 28) return Selection.histogram(s);
            if (opcode == 29) return Ops.groupSum(s);
            if (opcode == 30) return Selection.cut(s);
            if (opcode == 31) return Selection.threshold(s);
            if (opcode == 32) return Selection.sample(s, claimed);
        }
        revert Malformed(opcode);
    }
}
