// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../interfaces/IStepVerifier.sol";
import {Descriptor, Kind} from "./Descriptor.sol";
import {Fixed} from "./Fixed.sol";
import {Step} from "./Reader.sol";
import {Sampling} from "./Sampling.sol";
import {Slice, Slices} from "./Slice.sol";

/// @title Selection
/// @notice The opcodes that choose a token: one function each, which gives one output element from what it reads.
/// @dev As in `Ops`, the order of the reads is the specification's.
library Selection {
    /// @dev bins of a histogram
    uint256 private constant BINS = 256;
    /// @dev a distance beyond which no token has any mass: 2^(−23) in Q15 is rounded to 0
    int256 private constant NEGLIGIBLE = 1 << 18;
    /// @dev 1 in Q12
    uint256 private constant ONE = 1 << 12;

    /// @dev 21: greedy selection
    /// @param claimed the value of the claimed element itself, which this opcode reads
    function select(Step memory s, int256 claimed) internal pure returns (int256) {
        (bool decided, uint256 c, uint256 hint) = contest(s, claimed);
        if (decided) return int256(c);
        uint256 n = s.head.size(0);
        int256 chosen = s.value(0, n, c);
        int256 other = s.value(0, n, hint);
        return other > chosen || (other == chosen && hint < c) ? int256(hint) : claimed;
    }

    /// @dev 26: repetition penalty and temperature
    function temper(Step memory s) internal pure returns (int256 l) {
        uint256 word = s.trace().sampling;
        l = s.value(0, s.count, s.element);
        uint256 penalty = Sampling.penalty(word);
        unchecked {
            if (penalty != 0) {
                uint256 end = s.position + 1;
                uint256 first = end - Fixed.min(s.head.size(0), end);
                if (s.holds(1, first, end, s.element)) {
                    l = l > 0 ? Fixed.smulrs(l, (1 << 27) / penalty, 15) : Fixed.smulrs(l, penalty, 12);
                }
            }
        }
        uint256 factor = Sampling.inverseTemperature(word);
        return Fixed.smulrs(l, factor == 0 ? ONE : factor, 12);
    }

    /// @dev 28: tokens of a group, or their probability mass, by distance from the maximum
    function histogram(Step memory s) internal pure returns (int256) {
        uint256 g = s.head.size(0);
        uint256 groups = s.head.inner();
        Slice z;
        unchecked {
            z = s.tensor(0, groups * g, s.element % groups * g, g);
        }
        int256 max = s.value(1, 1, 0);
        if (z.atLeast(g, max + 1) != 0) revert IStepVerifier.ValueRange(max);
        return s.head.param(1) == 0 ? number(s, z, g, max) : mass(s, z, g, max);
    }

    /// @dev how many of `n` elements belong to the judged element's bin
    function number(Step memory s, Slice z, uint256 n, int256 max) private pure returns (int256) {
        (int256 nearest, int256 farthest) = distances(s);
        if (nearest > farthest) return 0;
        unchecked {
            return int256(z.atLeast(n, max - farthest) - z.atLeast(n, max - nearest + 1));
        }
    }

    /// @dev the distances from the maximum that belong to the judged element's bin; reads the parent cut if there is one
    function distances(Step memory s) private pure returns (int256 nearest, int256 farthest) {
        uint256 shift = parameter(s, 2);
        uint256 parentShift = parameter(s, 3);
        unchecked {
            uint256 bin = s.element / s.head.inner();
            s.head.check(bin < BINS);
            farthest = type(int64).max;
            if (parentShift != 0) {
                s.head.check(s.head.param(1) == 0);
                uint256 parent = Fixed.unsigned(s.value(2, 2, 0));
                if (parent >= BINS) return (1, 0);
                nearest = int256(parent << parentShift);
                if (parent < BINS - 1) farthest = nearest + int256(1 << parentShift) - 1;
            }
            nearest += int256(bin << shift);
            if (bin < BINS - 1) {
                int256 last = nearest + int256(1 << shift) - 1;
                if (last < farthest) farthest = last;
            }
        }
    }

    /// @dev their probability mass
    function mass(Step memory s, Slice z, uint256 n, int256 max) private pure returns (int256) {
        (int256 nearest, int256 farthest) = distances(s);
        Slice t = s.tensor(2, 257, 0, 257);
        if (farthest > NEGLIGIBLE) farthest = NEGLIGIBLE;
        return nearest > farthest ? int256(0) : Slices.mass(z, n, max, uint256(nearest), uint256(farthest), t);
    }

    /// @dev 30: bin in which a rank or a mass is reached, and the total before it
    function cut(Step memory s) internal pure returns (int256) {
        Slice h = s.tensor(0, BINS, 0, BINS);
        uint256 target = s.head.param(0) == 0 ? rank(s) : share(s, h);
        unchecked {
            if (target != 0) {
                uint256 before;
                for (uint256 b; b < BINS; ++b) {
                    uint256 here = Fixed.unsigned(h.get(b));
                    if (before + here >= target) return int256(s.element & 1 == 0 ? b : before);
                    before += here;
                }
            }
            return s.element & 1 == 0 ? int256(BINS) : int256(0);
        }
    }

    /// @dev how many of the likeliest tokens stay, less those before the parent cut's bin
    function rank(Step memory s) private pure returns (uint256 k) {
        k = Sampling.topK(s.trace().sampling);
        if (Descriptor.operand(s.operands, 1).kind() == Kind.NONE) return k;
        Slice parent = s.tensor(1, 2, 0, 2);
        uint256 before = Fixed.unsigned(parent.get(1));
        unchecked {
            return Fixed.unsigned(parent.get(0)) >= BINS || before >= k ? 0 : k - before;
        }
    }

    /// @dev the mass that stays, rounded up
    function share(Step memory s, Slice h) private pure returns (uint256) {
        if (Descriptor.operand(s.operands, 1).kind() != Kind.NONE) s.tensor(1, 2, 0, 2);
        unchecked {
            return (Fixed.unsigned(h.sum(BINS)) * Sampling.topP(s.trace().sampling) + 0xffff) >> 16;
        }
    }

    /// @dev 31: least logit that may be sampled
    function threshold(Step memory s) internal pure returns (int256) {
        int256 max = s.value(0, 1, 0);
        uint256 k = Fixed.unsigned(s.value(1, 2, 0));
        uint256 finer = Fixed.unsigned(s.value(2, 2, 0));
        uint256 p = Fixed.unsigned(s.value(3, 2, 0));
        uint256 shift = parameter(s, 0);
        uint256 distance = Sampling.minDistance(s.trace().sampling);
        unchecked {
            if (distance == 0) distance = type(uint32).max;
            // The last bin has no end, so a cut in it cuts nothing.
            if (k < BINS - 1) {
                uint256 within = (Fixed.min(finer, BINS - 1) + 1) << parameter(s, 1);
                distance = Fixed.min(distance, (k << shift) + within - 1);
            }
            if (p < BINS - 1) distance = Fixed.min(distance, ((p + 1) << shift) - 1);
            int256 least = max - int256(distance);
            return least < -int256(Fixed.CL) ? -int256(Fixed.CL) : least;
        }
    }

    /// @dev 32: selection with noise
    /// @param claimed the value of the claimed element itself, which this opcode reads
    function sample(Step memory s, int256 claimed) internal pure returns (int256) {
        (bool decided, uint256 c, uint256 hint) = contest(s, claimed);
        if (decided) return int256(c);
        uint256 n = s.head.size(0);
        int256 chosen = s.value(0, n, c);
        int256 other = s.value(0, n, hint);
        int256 least = s.value(2, 1, 0);
        bool admitted = chosen >= least;
        // A hint that may not be sampled proves nothing, but its reads are the opcode's.
        bool rival = other >= least;
        if (Sampling.inverseTemperature(s.trace().sampling) != 0) {
            chosen += noise(s, c);
            other += noise(s, hint);
        }
        if (!rival) return claimed;
        return !admitted || other > chosen || (other == chosen && hint < c) ? int256(hint) : claimed;
    }

    // --------------------------------------------------------------------------------------------------- shared

    /// @dev the claimed token and the one held against it, unless the token that follows in the sequence decides
    function contest(Step memory s, int256 claimed) private pure returns (bool decided, uint256 c, uint256 hint) {
        s.head.check(s.count == 1);
        uint32 h = s.witness().hint;
        uint256 token = s.token(1);
        if (int256(token) != claimed) {
            if (h != 0) revert IStepVerifier.UnexpectedHint(h);
            return (true, token, 0);
        }
        return (false, token, h);
    }

    /// @dev the noise of token `j` at the judged element's position
    function noise(Step memory s, uint256 j) private pure returns (int256) {
        uint256 v = Sampling.noiseWord(s.trace().seed, s.position, j);
        Slice t = s.tensor(3, 8193, Sampling.noiseIndex(v), 2);
        return Sampling.noise(v, t.get(0), t.get(1));
    }

    /// @dev parameter `k` where it shifts something
    function parameter(Step memory s, uint256 k) private pure returns (uint256) {
        int256 p = s.head.param(k);
        s.head.check(p >= 0 && p < 64);
        return uint256(p);
    }
}
