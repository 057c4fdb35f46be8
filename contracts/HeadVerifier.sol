// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ModelShape} from "./interfaces/IModels.sol";
import {Claim, IStepVerifier, TraceContext, Witness} from "./interfaces/IStepVerifier.sol";
import {Claims} from "./lib/Claims.sol";
import {LogProbs} from "./lib/LogProbs.sol";
import {Ops} from "./lib/Ops.sol";
import {Step} from "./lib/Reader.sol";
import {Selection} from "./lib/Selection.sol";

/// @title HeadVerifier
/// @notice The part of `StepVerifier` that judges the opcodes which choose a token and say how likely tokens were. Callers call `StepVerifier`.
contract HeadVerifier is IStepVerifier {
    /// @inheritdoc IStepVerifier
    function judge(
        TraceContext calldata trace,
        ModelShape calldata model,
        Claim calldata claim,
        Witness calldata witness
    ) external pure returns (int256 claimed, int256 computed) {
        Step memory s;
        claimed = Claims.open(s, trace, model, claim, witness);
        uint256 opcode = s.head.opcode();
        computed = compute(s, opcode, claimed);
        Claims.close(s, opcode == 21 || opcode == 32 || opcode == 33);
    }

    /// @dev the right value
    function compute(Step memory s, uint256 opcode, int256 claimed) private pure returns (int256) {
        if (opcode < 30) {
            if (opcode == 21) return Selection.select(s, claimed);
            if (opcode == 26) return Selection.temper(s);
            if (opcode == 27) return Ops.groupMax(s);
            if (opcode == 28) return Selection.histogram(s);
            if (opcode == 29) return Ops.groupSum(s);
        } else {
            if (opcode == 30) return Selection.cut(s);
            if (opcode == 31) return Selection.threshold(s);
            if (opcode == 32) return Selection.sample(s, claimed);
            if (opcode == 33) return LogProbs.top(s, claimed);
            if (opcode == 34) return LogProbs.mass(s);
            if (opcode == 35) return LogProbs.logSum(s);
            if (opcode == 36) return LogProbs.logProb(s);
        }
        revert Malformed(opcode);
    }
}
