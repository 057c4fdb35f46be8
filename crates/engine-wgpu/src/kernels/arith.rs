//! The primitives of `sworn_isa::fixed` as device functions.
//!
//! Only 32-bit words: no device needs 64-bit integers or floats for an answer. Shift amounts stay below 32 by explicit
//! branches, because what a larger one does differs between shading languages.

use cubecl::prelude::*;

/// |x| as an unsigned word; −2^31 gives 2^31.
#[cube]
pub(crate) fn magnitude(x: i32) -> u32 {
    let u = u32::reinterpret(x);
    if x < 0 { (u ^ 0xFFFF_FFFFu32) + 1u32 } else { u }
}

/// Gives `m` the sign of `negative`.
#[cube]
pub(crate) fn signed(negative: bool, m: u32) -> i32 {
    let u = if negative { (m ^ 0xFFFF_FFFFu32) + 1u32 } else { m };
    i32::reinterpret(u)
}

#[cube]
pub(crate) fn bitlen(a: u32) -> i32 {
    let zeros = a.leading_zeros();
    32i32 - zeros as i32
}

/// `v >> s` for s ≥ 0, `v << −s` otherwise; 32 and more give 0.
#[cube]
pub(crate) fn shift(v: u32, s: i32) -> u32 {
    let mut r = 0u32;
    if s >= 0i32 {
        if s < 32i32 {
            r = v >> (s as u32);
        }
    } else if s > -32i32 {
        r = v << ((0i32 - s) as u32);
    }
    r
}

#[cube]
pub(crate) fn mul15r(a: u32, b: u32) -> u32 {
    (a >> 15u32) * b + (((a & 32767u32) * b + 16384u32) >> 15u32)
}

#[cube]
pub(crate) fn smul15(a: i32, b: i32) -> i32 {
    signed((a < 0) != (b < 0), mul15r(magnitude(a), magnitude(b)))
}

/// The high word of a·b, from 16-bit limbs.
#[cube]
pub(crate) fn product_high(a: u32, b: u32) -> u32 {
    let al = a & 65535u32;
    let ah = a >> 16u32;
    let bl = b & 65535u32;
    let bh = b >> 16u32;
    let lh = al * bh;
    let hl = ah * bl;
    let middle = ((al * bl) >> 16u32) + (lh & 65535u32) + (hl & 65535u32);
    ah * bh + (lh >> 16u32) + (hl >> 16u32) + (middle >> 16u32)
}

/// min(CL, round(a·b / 2^s)) with the exact product.
#[cube]
pub(crate) fn mulrs(a: u32, b: u32, shift: i32) -> u32 {
    let mut r = 0u32;
    if shift < 1i32 {
        if a != 0u32 {
            r = 1073741823u32;
        }
    } else {
        let mut s = shift as u32;
        if s > 63u32 {
            s = 63u32;
        }
        let low = a * b;
        let high = product_high(a, b);
        if s > 32u32 {
            // The rounding bit lies in the high word; the product is below 2^63, so the sum cannot overflow.
            r = (high + (1u32 << (s - 33u32))) >> (s - 32u32);
        } else {
            let sum = low + (1u32 << (s - 1u32));
            let carried = high + if sum < low { 1u32 } else { 0u32 };
            if s == 32u32 {
                r = carried;
            } else if (carried >> s) != 0u32 {
                r = 1073741823u32;
            } else {
                r = (sum >> s) | (carried << (32u32 - s));
            }
        }
        if r > 1073741823u32 {
            r = 1073741823u32;
        }
    }
    r
}

#[cube]
pub(crate) fn smulrs(x: i32, b: u32, shift: i32) -> i32 {
    signed(x < 0, mulrs(magnitude(x), b, shift))
}

/// Floor of the square root, one result bit at a time.
#[cube]
pub(crate) fn isqrt(n: u32) -> u32 {
    let mut rest = n;
    let mut root = 0u32;
    let mut bit = 1073741824u32;
    for _ in 0..16u32 {
        let trial = root + bit;
        root >>= 1u32;
        if rest >= trial {
            rest -= trial;
            root += bit;
        }
        bit >>= 2u32;
    }
    root
}

/// 2^(−d), d in Q13, as Q15; `table` holds 257 entries.
#[cube]
pub(crate) fn exp2neg(d: u32, table: &[i32]) -> u32 {
    let j = (d & 8191u32) >> 5u32;
    let t0 = table[j as usize] as u32;
    let t1 = table[(j + 1u32) as usize] as u32;
    let i = d >> 13u32;
    let mut r = 0u32;
    if i <= 16u32 {
        let e = t0 - (((t0 - t1) * (d & 31u32) + 16u32) >> 5u32);
        if i == 0u32 {
            r = e;
        } else {
            r = (e + (1u32 << (i - 1u32))) >> i;
        }
    }
    r
}

/// The shift that brings a maximum magnitude to the quantiser's width.
#[cube]
pub(crate) fn quant_shift(max_abs: u32, bits: u32) -> i32 {
    let width = if bits == 8u32 { 16i32 } else { bits as i32 - 1i32 };
    bitlen(max_abs) - width
}

/// The mantissa of `QUANT_SCALE`.
#[cube]
pub(crate) fn quant_mantissa(max_abs: u32, bits: u32) -> u32 {
    if bits == 8u32 { shift(max_abs, quant_shift(max_abs, bits)) } else { 32768u32 }
}

/// The exponent of `QUANT_SCALE` before the input's own.
#[cube]
pub(crate) fn quant_exponent(max_abs: u32, bits: u32) -> i32 {
    let s = quant_shift(max_abs, bits);
    if bits == 8u32 { s } else { s - 15i32 }
}

#[cube]
pub(crate) fn quant(v: i32, max_abs: u32, bits: u32) -> i32 {
    let s = quant_shift(max_abs, bits);
    let m = magnitude(v);
    let mut q = shift(m, s);
    if bits == 8u32 {
        let a = shift(max_abs, s);
        let mut reciprocal = 0u32;
        if a != 0u32 {
            reciprocal = 0x7F00_0000u32 / a;
        }
        q = (q * reciprocal + 8388608u32) >> 24u32;
    } else if s > 0i32 {
        let limit = (1u32 << (bits - 1u32)) - 1u32;
        q = (m + (1u32 << ((s - 1i32) as u32))) >> (s as u32);
        if q > limit {
            q = limit;
        }
    }
    signed(v < 0, q)
}

/// `SUM_SQ`'s term.
#[cube]
pub(crate) fn norm_term(x: u32, max_abs: u32) -> u32 {
    let y = shift(x, bitlen(max_abs) - 16i32);
    if y > 65535u32 { 65535u32 } else { y }
}

#[cube]
pub(crate) fn to_fixed(v: i32, s: u32) -> i32 {
    let mut q = (magnitude(v) + (1u32 << (s - 1u32))) >> s;
    if q > 32767u32 {
        q = 32767u32;
    }
    signed(v < 0, q)
}

#[cube]
pub(crate) fn prob(e: u32, z: u32) -> u32 {
    let mut r = 0u32;
    let bits = bitlen(z);
    if bits > 0i32 {
        let l = bits as u32;
        let reciprocal = 0x8000_0000u32 / shift(z, bits - 16i32);
        // A shift by 32 is out of the declared range of Z (below 2^29).
        if l < 32u32 {
            r = (e * reciprocal + (1u32 << (l - 1u32))) >> l;
        }
    }
    r
}

#[cube]
pub(crate) fn silu_mul(g: i32, u: i32, e: u32) -> i32 {
    let den = 32768u32 + e;
    let mut sigma = (1073741824u32 + (den >> 1u32)) / den;
    if g < 0 {
        sigma = 32768u32 - sigma;
    }
    signed((g < 0) != (u < 0), mulrs(mul15r(magnitude(g), sigma), magnitude(u), 14i32))
}

/// x + y clamped to ±CL. The sum wraps exactly if its sign is neither operand's.
#[cube]
pub(crate) fn add_clamp(x: i32, y: i32) -> i32 {
    let sum = x + y;
    let mut m = magnitude(sum);
    let mut negative = sum < 0;
    if ((x ^ sum) & (y ^ sum)) < 0 {
        m = 1073741823u32;
        negative = x < 0;
    }
    if m > 1073741823u32 {
        m = 1073741823u32;
    }
    signed(negative, m)
}

/// √ of a 64-bit sum of squares as `RMS` takes it, and the even shift before it.
#[cube]
pub(crate) fn root_of(low: u32, high: u32) -> (u32, u32) {
    let mut bits = bitlen(low);
    if high != 0u32 {
        bits = 32i32 + bitlen(high);
    }
    // Even, rounded down; not negative.
    let mut sf = 0u32;
    if bits > 31i32 {
        sf = ((bits - 31i32) as u32) & 0xFFFF_FFFEu32;
    }
    let mut n = low;
    if sf >= 32u32 {
        n = high >> (sf - 32u32);
    } else if sf > 0u32 {
        n = (low >> sf) | (high << (32u32 - sf));
    }
    (isqrt(n), sf)
}

/// ±((|x| + 2^(right − 1)) >> right) for x = 2^16·high + low, right at most 16, where that fits a word.
#[cube]
pub(crate) fn narrow(high: i32, low: u32, #[comptime] right: u32) -> i32 {
    let mut upper = u32::reinterpret(high) + (low >> 16u32);
    let mut lower = low & 65535u32;
    let negative = upper >= 0x8000_0000u32;
    if negative {
        upper = upper ^ 0xFFFF_FFFFu32;
        lower = 65536u32 - lower;
        // A lower part of zero carries.
        upper += lower >> 16u32;
        lower = lower & 65535u32;
    }
    let rounded = lower + (1u32 << comptime!(right - 1));
    let m = (upper << comptime!(16 - right)) + (rounded >> right);
    signed(negative, m)
}

/// The exponent of `GELU_MUL`.
#[cube]
pub(crate) fn gelu_exponent(g: i32) -> u32 {
    let mut a = magnitude(g);
    if a > 262143u32 {
        a = 262143u32;
    }
    let square = ((a >> 3u32) * (a >> 3u32)) >> 7u32;
    let factor = 32768u32 + mul15r(square, 1465u32);
    2u32 * mul15r(mulrs(a, factor, 15i32), 18860u32)
}

/// `SOFT_CAP`: cap·tanh(x/cap), m·2^(−sh) = 2·log2(e)·2^13/cap.
#[cube]
pub(crate) fn soft_cap(x: i32, cap: u32, m: u32, sh: i32, table: &[i32]) -> i32 {
    let e = exp2neg(mulrs(magnitude(x), m, sh), table);
    let den = 32768u32 + e;
    let tanh = (((32768u32 - e) << 15u32) + (den >> 1u32)) / den;
    signed(x < 0, mul15r(cap, tanh))
}

/// `NORM_SCALE` without the gain table's exponent, from (root, k) of `RMS`.
#[cube]
pub(crate) fn divided_scale(max_abs: u32, bits: u32, root: u32, k: i32) -> (u32, i32) {
    let mut divisor = root;
    if root == 0u32 {
        divisor = 1u32;
    }
    let m = quant_mantissa(max_abs, bits);
    let mut c = 16u32;
    if m >= divisor {
        c = 15u32;
    }
    ((m << c) / divisor, quant_exponent(max_abs, bits) - k - c as i32)
}

/// The gated activation: GELU where `gelu`, otherwise SiLU.
#[cube]
pub(crate) fn gated(g: i32, u: i32, table: &[i32], #[comptime] gelu: bool) -> i32 {
    let d = if comptime!(gelu) { gelu_exponent(g) } else { mul15r(magnitude(g), 23637u32) };
    silu_mul(g, u, exp2neg(d, table))
}

/// `WINDOW` of the score of position `j`. Compared without a sum: any width is below 2^31.
#[cube]
pub(crate) fn windowed(s: i32, j: u32, t: u32, width: u32) -> i32 {
    let mut out = s;
    if t - j >= width {
        out = 0i32 - 1073741823i32;
    }
    out
}
