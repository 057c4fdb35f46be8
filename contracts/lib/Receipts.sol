// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Receipt, Voucher} from "../interfaces/IChannels.sol";
import {IModels} from "../interfaces/IModels.sol";
import {Fault} from "../interfaces/ITrials.sol";
import {Programs} from "./Programs.sol";
import {Sampling} from "./Sampling.sol";
import {Tokens} from "./Tokens.sol";
import {Trees} from "./Trees.sol";

/// @title Receipts
/// @notice EIP-712 hashes of vouchers and receipts, and what of a receipt is wrong whatever its trace.
library Receipts {
    /// @notice the bit of a JobId that says it is a receipt's
    uint256 internal constant JOB_BIT = 1 << 127;

    bytes32 internal constant VOUCHER =
        keccak256("Voucher(bytes32 channelId,uint64 request,bytes32 modelId,uint128 cumulative,bytes32 requestHash)");
    bytes32 internal constant RECEIPT = keccak256(
        "Receipt(bytes32 channelId,uint64 sequence,uint64 request,bytes32 modelId,bytes32 inputHash,bytes32 outputHash,uint32 nIn,uint32 nOut,uint32 maxNew,uint256 sampling,bytes32 seed,bytes32 layersRoot,uint128 price,uint128 cumulative)"
    );

    /// @dev A struct of value types is encoded as its fields are.
    function hash(Voucher calldata v) internal pure returns (bytes32) {
        return keccak256(abi.encode(VOUCHER, v));
    }

    function hash(Receipt calldata r) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT, r));
    }

    /// @notice what binds model, prompt, answer and trace, as for a job
    function traceRoot(Receipt calldata r) internal pure returns (bytes32) {
        return keccak256(
            abi.encodePacked(Trees.TAG_TRACE, r.modelId, r.inputHash, r.outputHash, r.nIn + r.nOut - 1, r.layersRoot)
        );
    }

    /// @notice the fault that the receipt shows by itself
    function fault(IModels models, Receipt calldata r) internal view returns (Fault) {
        if (!models.exists(r.modelId)) return Fault.Model;
        if (r.nIn == 0 || r.nOut == 0 || r.nOut > r.maxNew) return Fault.Length;
        (,, uint32 maxPositions) = models.dimensions(r.modelId);
        uint256 limit = maxPositions < Programs.MAX_POSITIONS ? maxPositions : Programs.MAX_POSITIONS;
        // The last token is selected but not run.
        if (uint256(r.nIn) + r.nOut - 1 > limit) return Fault.Positions;
        if (r.sampling != 0 && (!Sampling.isValid(r.sampling) || !models.samples(r.modelId))) return Fault.Sampling;
        return Fault.None;
    }

    /// @notice the fault that a sequence of `n` tokens shows
    /// @param isOutput stop tokens count
    function sequenceFault(IModels models, Receipt calldata r, bytes calldata tokens, uint256 n, bool isOutput)
        internal
        view
        returns (Fault)
    {
        uint256 count = tokens.length / 4;
        if (count != n) return Fault.Count;
        (, uint32 vocab,) = models.dimensions(r.modelId);
        uint32[] memory stops = isOutput ? models.stopTokens(r.modelId) : new uint32[](0);
        for (uint256 i; i < count; ++i) {
            uint32 tok = Tokens.at(tokens, i);
            if (tok >= vocab) return Fault.Vocabulary;
            if (i + 1 < count && Tokens.isStop(tok, stops)) return Fault.Stop;
        }
        return Fault.None;
    }
}
