// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @title Naive
/// @notice The primitives of docs/instruction-set.md once more, as plainly as their text: powers and divisions of checked
/// integers instead of shifts, loops instead of closed forms. What `Fixed` is compared with.
library Naive {
    int256 internal constant CL = 2 ** 30 - 1;

    function mag(int256 x) internal pure returns (uint256) {
        return x >= 0 ? uint256(x) : uint256(-x);
    }

    /// a · 2^−s, floored
    function scaled(uint256 a, int256 s) internal pure returns (uint256) {
        return s >= 0 ? a / 2 ** uint256(s) : a * 2 ** uint256(-s);
    }

    function bitlen(uint256 a) internal pure returns (uint256 n) {
        for (; a > 0; a /= 2) {
            ++n;
        }
    }

    /// a / 2^s, rounded half up
    function rounded(uint256 a, uint256 s) internal pure returns (uint256) {
        return (2 * a / 2 ** s + 1) / 2;
    }

    function mulrs(uint256 a, uint256 b, int256 s) internal pure returns (uint256) {
        if (s < 1) return a == 0 ? 0 : uint256(CL);
        uint256 r = rounded(a * b, s > 63 ? 63 : uint256(s));
        return r > uint256(CL) ? uint256(CL) : r;
    }

    function smulrs(int256 x, uint256 b, int256 s) internal pure returns (int256) {
        int256 r = int256(mulrs(mag(x), b, s));
        return x < 0 ? -r : r;
    }

    function smul15r(int256 a, int256 b) internal pure returns (int256) {
        int256 r = int256(rounded(mag(a) * mag(b), 15));
        return a < 0 ? (b < 0 ? r : -r) : (b < 0 ? -r : r);
    }

    function isqrt(uint256 n) internal pure returns (uint256 r) {
        for (uint256 bit = 1 << 16; bit > 0; bit /= 2) {
            if ((r + bit) * (r + bit) <= n) r += bit;
        }
    }

    function exp2neg(uint256 d, uint256[] memory t) internal pure returns (uint256) {
        uint256 i = d / 8192;
        if (i > 16) return 0;
        uint256 j = d % 8192 / 32;
        uint256 e = t[j] - ((t[j] - t[j + 1]) * (d % 32) + 16) / 32;
        return i == 0 ? e : rounded(e, i);
    }

    function quantShift(uint256 a, uint256 bits) internal pure returns (int256) {
        return int256(bitlen(a)) - (bits == 8 ? int256(16) : int256(bits) - 1);
    }

    function quant(int256 v, uint256 a, uint256 bits) internal pure returns (int256 q) {
        int256 s = quantShift(a, bits);
        if (bits == 8) {
            uint256 r = 0x7F000000 / scaled(a, s);
            q = int256(rounded(scaled(mag(v), s) * r, 24));
        } else {
            uint256 m = s > 0 ? rounded(mag(v), uint256(s)) : scaled(mag(v), s);
            uint256 limit = 2 ** (bits - 1) - 1;
            q = int256(s > 0 && m > limit ? limit : m);
        }
        if (v < 0) q = -q;
    }

    function quantScale(uint256 a, uint256 bits) internal pure returns (uint256, int256) {
        int256 s = quantShift(a, bits);
        return bits == 8 ? (scaled(a, s), s) : (32768, s - 15);
    }

    function normTerm(uint256 x, uint256 max) internal pure returns (uint256) {
        uint256 y = scaled(x, int256(bitlen(max)) - 16);
        return y > 65535 ? 65535 : y;
    }

    function rms(uint256 sum, uint256 max, uint256 epsilon) internal pure returns (uint256, int256) {
        uint256 y = normTerm(epsilon, max);
        uint256 ss = sum + y * y;
        uint256 sf;
        while (bitlen(ss) > 32 + sf) {
            sf += 2;
        }
        return (isqrt(ss / 2 ** sf), int256(bitlen(max)) - 16 + int256(sf / 2));
    }

    function prob(uint256 e, uint256 z) internal pure returns (uint256) {
        uint256 l = bitlen(z);
        return rounded(e * (2 ** 31 / scaled(z, int256(l) - 16)), l);
    }

    function siluMul(int256 g, int256 u, uint256[] memory t) internal pure returns (int256) {
        uint256 den = 32768 + exp2neg(rounded(mag(g) * 23637, 15), t);
        uint256 sigma = (2 ** 30 + den / 2) / den;
        if (g < 0) sigma = 32768 - sigma;
        int256 z = int256(mulrs(rounded(mag(g) * sigma, 15), mag(u), 14));
        return (g < 0) == (u < 0) ? z : -z;
    }

    function geluMul(int256 g, int256 u, uint256[] memory t) internal pure returns (int256) {
        uint256 den = 32768 + exp2neg(geluExponent(g), t);
        uint256 sigma = (2 ** 30 + den / 2) / den;
        if (g < 0) sigma = 32768 - sigma;
        int256 z = int256(mulrs(rounded(mag(g) * sigma, 15), mag(u), 14));
        return (g < 0) == (u < 0) ? z : -z;
    }

    function geluExponent(int256 g) internal pure returns (uint256) {
        uint256 a = mag(g) > 2 ** 18 - 1 ? 2 ** 18 - 1 : mag(g);
        uint256 c = 32768 + rounded((a / 8) ** 2 / 128 * 1465, 15);
        return 2 * rounded(mulrs(a, c, 15) * 18860, 15);
    }

    function softCap(int256 x, uint256 cap, uint256 m, int256 sh, uint256[] memory t) internal pure returns (int256) {
        uint256 e = exp2neg(mulrs(mag(x), m, sh), t);
        uint256 den = 32768 + e;
        int256 y = int256(rounded(cap * (((32768 - e) * 32768 + den / 2) / den), 15));
        return x < 0 ? -y : y;
    }

    /// weight k of a row that was encoded as scales, minima (Q4) and numbers
    function weight(int256 s, int256 m, int256 q) internal pure returns (int256) {
        return s * q + 2 * m;
    }

    function narrow(int256 acc, uint256 r) internal pure returns (int256) {
        int256 y = int256(rounded(mag(acc), r));
        return acc < 0 ? -y : y;
    }

    function noiseWord(bytes32 seed, uint256 t, uint256 j) internal pure returns (uint256 v) {
        bytes32 hash = keccak256(abi.encodePacked(seed, uint32(t), uint32(j / 8)));
        for (uint256 k = 4 * (j % 8); k < 4 * (j % 8) + 4; ++k) {
            v = v * 256 + uint8(hash[k]);
        }
        if (v == 0) v = 1;
    }

    /// index into the noise table, and how many 64ths of the way to the next entry
    function noisePlace(uint256 v) internal pure returns (uint256 n, uint256 part) {
        uint256 bits = bitlen(v);
        // The bits after the leading one, as 14.
        uint256 f = (v - 2 ** (bits - 1)) * 2 ** 32 / 2 ** (bits - 1) / 2 ** 18;
        return ((bits - 1) * 256 + f / 64, f % 64);
    }

    function noise(uint256 v, int256 t0, int256 t1) internal pure returns (int256) {
        (, uint256 part) = noisePlace(v);
        int256 x = (t0 - t1) * int256(part) + 32;
        return t0 - (x >= 0 ? x / 64 : -((63 - x) / 64));
    }

    function addClamp(int256 x, int256 y) internal pure returns (int256) {
        int256 z = x + y;
        return z > CL ? CL : z < -CL ? -CL : z;
    }

    function toFixed(int256 v, uint256 s) internal pure returns (int256) {
        int256 m = int256(rounded(mag(v), s));
        if (m > 32767) m = 32767;
        return v < 0 ? -m : m;
    }

    /// T[j] = round(2^15·2^(−j/256)): 2^(−1/256) in Q120, multiplied up
    function expTable() internal pure returns (uint256[] memory t) {
        t = new uint256[](257);
        // 2^120 · 2^(−1/256), from eight square roots of 2^−1, each in Q120.
        uint256 root = 1 << 119;
        for (uint256 i; i < 8; ++i) {
            root = sqrt(root << 120);
        }
        uint256 x = 1 << 120;
        for (uint256 j; j <= 256; ++j) {
            t[j] = rounded(x, 105);
            x = x * root >> 120;
        }
    }

    function sqrt(uint256 n) private pure returns (uint256 r) {
        for (uint256 bit = 1 << 127; bit > 0; bit /= 2) {
            if ((r + bit) * (r + bit) <= n) r += bit;
        }
    }
}
