// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IMarket} from "../interfaces/IMarket.sol";
import {Fixed} from "./Fixed.sol";

/// @title Sampling
/// @notice The sampling parameters of a job: docs/instruction-set.md ("Sampling").
library Sampling {
    uint256 private constant PARAMETERS = 5;

    /// @notice reverts unless every parameter of the word is in its range
    function check(uint256 word) internal pure {
        inRange(word, 0, 0, 1 << 20);
        inRange(word, 1, 0, (1 << 20) - 1);
        inRange(word, 2, 0, 1 << 16);
        inRange(word, 3, 0, (1 << 24) - 1);
        if (penalty(word) != 0) inRange(word, 4, 1 << 8, (1 << 16) - 1);
        uint256 above = word >> (32 * PARAMETERS);
        if (above != 0) revert IMarket.BadSampling(PARAMETERS, above, 0, 0);
    }

    /// @notice whether `check` would let the word pass
    function isValid(uint256 word) internal pure returns (bool) {
        uint256 p = penalty(word);
        return parameter(word, 0) <= 1 << 20 && parameter(word, 1) < 1 << 20 && parameter(word, 2) <= 1 << 16
            && parameter(word, 3) < 1 << 24 && (p == 0 || (p >= 1 << 8 && p < 1 << 16))
            && word >> (32 * PARAMETERS) == 0;
    }

    function inRange(uint256 word, uint256 index, uint256 min, uint256 max) private pure {
        uint256 p = parameter(word, index);
        if (p < min || p > max) revert IMarket.BadSampling(index, p, min, max);
    }

    function parameter(uint256 word, uint256 index) private pure returns (uint256) {
        unchecked {
            return uint32(word >> (32 * index));
        }
    }

    /// @notice 1/temperature in Q12; 0: no noise
    function inverseTemperature(uint256 word) internal pure returns (uint256) {
        return parameter(word, 0);
    }

    /// @notice only the so many most likely tokens; 0: all
    function topK(uint256 word) internal pure returns (uint256) {
        return parameter(word, 1);
    }

    /// @notice only the most likely tokens that together have this probability, Q16; 0: all
    function topP(uint256 word) internal pure returns (uint256) {
        return parameter(word, 2);
    }

    /// @notice only tokens whose logit is at most this far below the largest, Q14; 0: all
    function minDistance(uint256 word) internal pure returns (uint256) {
        return parameter(word, 3);
    }

    /// @notice of logits of tokens that were there lately, Q12; 0: none
    function penalty(uint256 word) internal pure returns (uint256) {
        return parameter(word, 4);
    }

    // --------------------------------------------------------------------------------------------------- noise

    /// @notice the word behind the noise of token `j` at position `t`, at least 1
    function noiseWord(bytes32 seed, uint256 t, uint256 j) internal pure returns (uint256 v) {
        unchecked {
            uint256 place = (t << 224) | (j >> 3 << 192);
            assembly ("memory-safe") {
                mstore(0, seed)
                mstore(32, place)
                v := keccak256(0, 40)
            }
            v = uint32(v >> (32 * (7 - (j & 7))));
            if (v == 0) v = 1;
        }
    }

    /// @notice the index n of the table entries n and n + 1 that the noise of word `v` lies between
    function noiseIndex(uint256 v) internal pure returns (uint256) {
        unchecked {
            return (Fixed.bitlen(v) - 1) * 256 + (fraction(v) >> 6);
        }
    }

    /// @notice the noise of word `v` from these two entries
    function noise(uint256 v, int256 t0, int256 t1) internal pure returns (int256) {
        unchecked {
            return t0 - (((t0 - t1) * int256(fraction(v) & 63) + 32) >> 6);
        }
    }

    /// @dev the 14 bits after the leading one
    function fraction(uint256 v) private pure returns (uint256) {
        unchecked {
            return ((v << (33 - Fixed.bitlen(v))) & 0xffffffff) >> 18;
        }
    }
}
