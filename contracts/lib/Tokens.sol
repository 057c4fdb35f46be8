// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @title Tokens
/// @notice Token sequences in calldata: big-endian u32 each.
library Tokens {
    /// @notice whether the bytes are whole tokens, at least one
    function isSequence(bytes calldata tokens) internal pure returns (bool) {
        return tokens.length != 0 && tokens.length % 4 == 0;
    }

    /// @notice token `i` of a sequence that has it
    function at(bytes calldata tokens, uint256 i) internal pure returns (uint32 tok) {
        // A slice per token would check its bounds twice; the caller counts only whole tokens.
        assembly ("memory-safe") {
            tok := shr(224, calldataload(add(tokens.offset, shl(2, i))))
        }
    }

    /// @notice whether `tok` is one of the stop tokens
    function isStop(uint32 tok, uint32[] memory stops) internal pure returns (bool) {
        for (uint256 k; k < stops.length; ++k) {
            if (tok == stops[k]) return true;
        }
        return false;
    }
}
