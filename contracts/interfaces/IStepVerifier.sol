// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ModelShape} from "./IModels.sol";

/// @notice What a job commits to.
struct TraceContext {
    bytes32 layersRoot;
    bytes32 inputHash;
    bytes32 outputHash;
    uint32 nIn;
    uint32 nOut;
    uint256 sampling; // as the job has it; valid
    bytes32 seed;
}

/// @notice Names one element of one operator's output.
struct Claim {
    uint16 layer;
    uint32 row;
    uint16 op;
    uint32 element;
}

/// @notice One opened input; docs/protocol.md ("The witness") says what each kind of operand puts in the fields. A field that a kind
/// does not use is empty.
struct Read {
    bytes data;
    bytes32[] proof;
    bytes32[] leaves;
    bytes32[] leafProof;
}

/// @notice Everything a judgement needs besides the claim.
struct Witness {
    bytes32[] opRoots; // the operator list of the claimed row
    bytes descriptor;
    bytes32[] descriptorProof;
    bytes page; // the page of the claimed tensor with the claimed element
    bytes32[] pageProof;
    uint32 hint; // SELECT, SAMPLE, TOP: the index held against the claimed one; zero where it is not read
    Read[] reads; // in the order in which the opcode reads
}

/// @title IStepVerifier
/// @notice The judge of one element: stateless, and without knowledge of any model. It implements every opcode of
/// docs/instruction-set.md; what an operator computes, and from what, comes from its descriptor.
/// @dev A right element, computed from right inputs, is never judged otherwise. Errors are for witnesses: whatever does not
/// lead from the commitments to the value is rejected, down to a field that should have been empty. See also `ITrees`.
interface IStepVerifier {
    /// @notice The claim names a layer, row, operator or element that does not exist.
    /// @param what 0 layer, 1 row, 2 operator, 3 element
    error NoSuch(uint8 what, uint256 index, uint256 count);
    /// @notice The operator list is not as long as its section's program.
    error OpListLength(uint256 actual, uint256 expected);
    /// @notice The descriptor is not one that its opcode can execute; no element of it can be judged.
    error Malformed(uint256 opcode);
    /// @notice An input is outside its declared range, so an earlier element is wrong: prove that one.
    error ValueRange(int256 value);
    /// @notice No opcode multiplies vectors of these two element types.
    error DtypePair(uint256 a, uint256 b);
    /// @notice A proof leads to another node than the committed one.
    error RootMismatch(bytes32 actual, bytes32 expected);
    /// @notice The witness has another number of reads than the opcode.
    error ReadCount(uint256 actual, uint256 expected);
    /// @notice A field that this kind of read does not use is not empty.
    error FieldNotEmpty();
    /// @notice A hint where none is read.
    error UnexpectedHint(uint32 hint);
    /// @notice Other than all export roots of the opened positions.
    error LeafCount(uint256 actual, uint256 expected);
    /// @notice Elements [first, first + count) do not all lie in an operand of `length`.
    error OutsideOperand(uint256 first, uint256 count, uint256 length);
    /// @notice The descriptor's operand names something that does not exist.
    error NoSuchOperand(uint256 kind, uint256 index, uint256 count);
    /// @notice The opcode cannot read operand `operand` from this kind.
    error WrongKind(uint256 operand, uint256 kind);

    /// @notice The claimed value of one element and the value its opcode yields from the inputs the trace commits to.
    /// @dev The caller has checked that `witness.opRoots` is the operator list of (claim.layer, claim.row).
    function judge(
        TraceContext calldata trace,
        ModelShape calldata model,
        Claim calldata claim,
        Witness calldata witness
    ) external view returns (int256 claimed, int256 computed);
}
