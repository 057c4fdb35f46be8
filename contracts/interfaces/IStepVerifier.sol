// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ModelShape} from "./IModels.sol";

struct TraceContext {
    bytes32 layersRoot;
    bytes32 inputHash;
    bytes32 outputHash;
    uint32 nIn;
    uint32 nOut;
}

struct Claim {
    uint16 layer;
    uint32 row;
    uint16 op;
    uint32 element;
}

struct Read {
    bytes data;
    bytes32[] proof;
    bytes32[] leaves;
    bytes32[] leafProof;
}

struct Witness {
    bytes32[] opRoots;
    bytes descriptor;
    bytes32[] descriptorProof;
    bytes page;
    bytes32[] pageProof;
    uint32 hint;
    Read[] reads;
}

interface IStepVerifier {
    /// @notice The claimed value of one element and the value its opcode yields from the inputs the trace commits to.
    /// @dev The caller has checked that `witness.opRoots` is the operator list of (claim.layer, claim.row).
    function judge(TraceContext calldata trace, ModelShape calldata model, Claim calldata claim, Witness calldata witness)
        external
        pure
        returns (int256 claimed, int256 computed);
}
