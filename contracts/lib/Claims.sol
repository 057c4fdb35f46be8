// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ModelShape} from "../interfaces/IModels.sol";
import {Claim, IStepVerifier, TraceContext, Witness} from "../interfaces/IStepVerifier.sol";
import {ITrees} from "../interfaces/ITrees.sol";
import {Descriptor, Head} from "./Descriptor.sol";
import {Reader, Step} from "./Reader.sol";
import {Slice} from "./Slice.sol";
import {Trees} from "./Trees.sol";

/// @title Claims
/// @notice The parts of a judgement that are the same for every opcode: what is claimed, and that the witness holds nothing else.
library Claims {
    /// @notice fills `s` with the element under judgement and its operator, and gives its claimed value; all authenticated
    function open(
        Step memory s,
        TraceContext calldata trace,
        ModelShape calldata model,
        Claim calldata claim,
        Witness calldata witness
    ) internal pure returns (int256 claimed) {
        assembly ("memory-safe") {
            // Where the arguments lie in calldata; see `Step`. The first three fields.
            mstore(s, trace)
            mstore(add(s, 32), model)
            mstore(add(s, 64), witness)
        }
        locate(s, claim);
        describe(s);
        claimed = value(s);
    }

    /// @notice reverts unless the opcode has read all that the witness holds
    /// @param hinted whether it reads the hint
    function close(Step memory s, bool hinted) internal pure {
        Witness calldata witness = s.witness();
        if (s.cursor != witness.reads.length) revert IStepVerifier.ReadCount(witness.reads.length, s.cursor);
        if (witness.hint != 0 && !hinted) revert IStepVerifier.UnexpectedHint(witness.hint);
    }

    /// @dev where the claim is
    function locate(Step memory s, Claim calldata claim) private pure {
        uint256 layers = uint256(s.model().layers) + 2;
        s.layer = claim.layer;
        if (s.layer >= layers) revert IStepVerifier.NoSuch(0, s.layer, layers);
        uint256 rows = s.rows(s.layer);
        s.row = claim.row;
        if (s.row >= rows) revert IStepVerifier.NoSuch(1, s.row, rows);
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
        if (s.op >= ops) revert IStepVerifier.NoSuch(2, s.op, ops);
        if (witness.opRoots.length != ops) revert IStepVerifier.OpListLength(witness.opRoots.length, ops);

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
        if (s.element >= s.count) revert IStepVerifier.NoSuch(3, s.element, s.count);
    }

    /// @dev the claimed value
    function value(Step memory s) private pure returns (int256) {
        Witness calldata witness = s.witness();
        (Slice slice, bytes32 root) =
            Reader.pages(witness.page, witness.pageProof, Reader.run(s.head.dtype(), s.count, s.element, 1));
        Reader.same(root, witness.opRoots[s.op]);
        return slice.get(0);
    }
}
