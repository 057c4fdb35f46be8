// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {HeadVerifier} from "./HeadVerifier.sol";
import {ModelShape} from "./interfaces/IModels.sol";
import {Claim, IStepVerifier, TraceContext, Witness} from "./interfaces/IStepVerifier.sol";
import {Attention} from "./lib/Attention.sol";
import {Claims} from "./lib/Claims.sol";
import {Ops} from "./lib/Ops.sol";
import {Step} from "./lib/Reader.sol";

/// @title StepVerifier
/// @notice See `IStepVerifier`. The opcodes of the head are judged by a second contract, because one would be longer than a contract may be;
/// it is created with this one, and what it says is said here word for word.
contract StepVerifier is IStepVerifier {
    /// @notice the judge of the head's opcodes
    address public immutable headVerifier = address(new HeadVerifier());

    /// @inheritdoc IStepVerifier
    // handOver ends the call, as it is to: the other judge's answer is this one's.
    // slither-disable-next-line incorrect-return
    function judge(
        TraceContext calldata trace,
        ModelShape calldata model,
        Claim calldata claim,
        Witness calldata witness
    ) external view returns (int256 claimed, int256 computed) {
        bytes calldata descriptor = witness.descriptor;
        if (descriptor.length != 0) {
            uint256 opcode = uint8(descriptor[0]);
            if (opcode == 21 || opcode > 25) handOver();
        }
        Step memory s;
        claimed = Claims.open(s, trace, model, claim, witness);
        computed = compute(s);
        Claims.close(s, false);
    }

    /// @dev answers the call with the other judge's answer
    function handOver() private view {
        address other = headVerifier;
        assembly ("memory-safe") {
            let free := mload(0x40)
            calldatacopy(free, 0, calldatasize())
            let right := staticcall(gas(), other, free, calldatasize(), 0, 0)
            returndatacopy(free, 0, returndatasize())
            switch right
            case 0 { revert(free, returndatasize()) }
            default { return(free, returndatasize()) }
        }
    }

    /// @dev the right value
    function compute(Step memory s) private pure returns (int256) {
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
        } else if (opcode < 21) {
            if (opcode == 16) return Attention.rowSum(s);
            if (opcode == 17) return Attention.prob(s);
            if (opcode == 18) return Attention.mix(s);
            if (opcode == 19) return Ops.gated(s, false);
            return Ops.add(s);
        } else {
            if (opcode == 22) return Ops.dequant(s);
            if (opcode == 23) return Ops.gated(s, true);
            if (opcode == 24) return Ops.softCap(s);
            if (opcode == 25) return Attention.window(s);
        }
        revert Malformed(opcode);
    }
}
