//! Integer primitives. Every function is total on its stated range and panics nowhere; the ranges are the callers'
//! obligations, proven in [`crate::spec`]. Values outside them wrap or saturate but never cause a panic.

/// Largest magnitude of a Q14 value, 2^30 − 1.
pub const CL: i32 = (1 << 30) - 1;
/// log2(e) in Q14, the constant of `SILU_MUL`.
pub const LOG2E_Q14: u32 = 23637;

/// 0.044715 in Q15, the cubic term of `GELU_MUL`.
pub const GELU_CUBIC_Q15: u32 = 1465;
/// √(2/π)·log2(e)/2 in Q15: doubled and read in Q13, the slope of `GELU_MUL`.
pub const GELU_SLOPE_Q13: u32 = 18860;

/// Bits of `a`; 0 for 0.
#[inline]
pub const fn bitlen(a: u32) -> i32 {
    32 - a.leading_zeros() as i32
}

/// Gives `magnitude` the sign of `negative`; zero has no sign.
#[inline]
pub const fn signed(negative: bool, magnitude: u32) -> i32 {
    if negative { (magnitude as i32).wrapping_neg() } else { magnitude as i32 }
}

/// `v >> s` for s ≥ 0, `v << −s` otherwise; shifts of 32 and more give 0.
#[inline]
pub const fn shift(v: u32, s: i32) -> u32 {
    if s >= 32 || s <= -32 {
        0
    } else if s >= 0 {
        v >> s
    } else {
        v << -s
    }
}

/// round(a·b / 2^15), half up; a ≤ 2^30, b ≤ 2^15.
#[inline]
pub const fn mul15r(a: u32, b: u32) -> u32 {
    (a >> 15).wrapping_mul(b).wrapping_add(((a & 32767).wrapping_mul(b).wrapping_add(1 << 14)) >> 15)
}

/// ±[`mul15r`] with the product's sign.
#[inline]
pub const fn smul15(a: i32, b: i32) -> i32 {
    signed((a < 0) != (b < 0), mul15r(a.unsigned_abs(), b.unsigned_abs()))
}

/// min([`CL`], round(a·b / 2^s)), half up, from the exact 64-bit product. s > 63 counts as 63; s < 1 gives 0 for a = 0 and `CL` otherwise.
#[inline]
pub const fn mulrs(a: u32, b: u32, s: i32) -> u32 {
    if s < 1 {
        return if a == 0 { 0 } else { CL as u32 };
    }
    let s = if s > 63 { 63 } else { s };
    // a < 2^31 and b < 2^32: the product is below 2^63 and adding 2^62 at most stays below 2^64.
    let r = ((a as u64 * b as u64).wrapping_add(1 << (s - 1))) >> s;
    if r > CL as u64 { CL as u32 } else { r as u32 }
}

/// ±[`mulrs`] with the sign of `x`.
#[inline]
pub const fn smulrs(x: i32, b: u32, s: i32) -> i32 {
    signed(x < 0, mulrs(x.unsigned_abs(), b, s))
}

/// Floor of the square root.
#[inline]
pub const fn isqrt(n: u32) -> u32 {
    n.isqrt()
}

/// 2^(−d) for d in Q13 as Q15, by linear interpolation in `table` (257 entries of round(2^15·2^(−j/256))).
///
/// `lookup(j)` gives `(table[j], table[j + 1])`.
#[inline]
pub fn exp2neg_with<E>(d: u32, lookup: impl FnOnce(u32) -> Result<(u32, u32), E>) -> Result<u32, E> {
    let (t0, t1) = lookup(exp2neg_index(d))?;
    Ok(exp2neg_interpolate(d, t0, t1))
}

/// The table index j that [`exp2neg`] reads (j and j + 1), also where the result is 0.
#[inline]
pub const fn exp2neg_index(d: u32) -> u32 {
    (d & 8191) >> 5
}

/// The interpolation of [`exp2neg`] between two neighbouring entries.
#[inline]
pub const fn exp2neg_interpolate(d: u32, t0: u32, t1: u32) -> u32 {
    let i = d >> 13;
    if i > 16 {
        return 0;
    }
    let e = t0.wrapping_sub((t0.wrapping_sub(t1).wrapping_mul(d & 31).wrapping_add(16)) >> 5);
    if i == 0 { e } else { (e.wrapping_add(1 << (i - 1))) >> i }
}

/// [`exp2neg_with`] on a slice of 257 entries.
#[inline]
pub fn exp2neg(d: u32, table: &[u16]) -> u32 {
    let j = exp2neg_index(d) as usize;
    exp2neg_interpolate(d, table[j] as u32, table[j + 1] as u32)
}

/// The shift that brings a maximum magnitude to `bits` significant bits.
#[inline]
const fn quant_shift(max_abs: u32, bits: u8) -> i32 {
    bitlen(max_abs) - if bits == 8 { 16 } else { bits as i32 - 1 }
}

/// `QUANT`: the element `v` of a vector whose largest magnitude is `max_abs`.
#[inline]
pub const fn quant(v: i32, max_abs: u32, bits: u8) -> i32 {
    let s = quant_shift(max_abs, bits);
    let m = v.unsigned_abs();
    let q = if bits == 8 {
        let a = shift(max_abs, s);
        let r = match 0x7F00_0000u32.checked_div(a) {
            Some(r) => r,
            None => 0,
        };
        (shift(m, s).wrapping_mul(r).wrapping_add(1 << 23)) >> 24
    } else if s > 0 {
        let limit = (1u32 << (bits - 1)) - 1;
        let q = (m.wrapping_add(1 << (s - 1))) >> s;
        if q > limit { limit } else { q }
    } else {
        shift(m, s)
    };
    signed(v < 0, q)
}

/// `QUANT_SCALE`: the scale (m, e) of a vector quantised with maximum `max_abs`, whose unit is 2^`exponent`.
#[inline]
pub const fn quant_scale(max_abs: u32, bits: u8, exponent: i32) -> (u32, i32) {
    let s = quant_shift(max_abs, bits);
    if bits == 8 { (shift(max_abs, s), s + exponent) } else { (1 << 15, s - 15 + exponent) }
}

/// `SCALE_Q`: a scale times the constant scale (c_m, c_e), floor, renormalised.
#[inline]
pub const fn scale_times(scale: (u32, i32), c_m: u32, c_e: i32) -> (u32, i32) {
    let p = scale.0.wrapping_mul(c_m);
    let b = (p >> 31) as i32;
    (p >> (15 + b), scale.1 + c_e + 15 + b)
}

/// `SUM_SQ`'s term: the magnitude brought to 16 bits by the maximum `max_abs`.
#[inline]
pub const fn norm_term(x: u32, max_abs: u32) -> u32 {
    let y = shift(x, bitlen(max_abs) - 16);
    if y > 65535 { 65535 } else { y }
}

/// `RMS`: (r, k) from the sum of squares without ε, the maximum and ε'.
#[inline]
pub const fn rms(sum_sq: u64, max_abs: u32, epsilon: u32) -> (u32, i32) {
    let y = norm_term(epsilon, max_abs) as u64;
    let ss = sum_sq.wrapping_add(y * y);
    let bits = 64 - ss.leading_zeros() as i32;
    let sf = (bits - 31) & !1;
    let sf = if sf < 0 { 0 } else { sf };
    (isqrt((ss >> sf) as u32), bitlen(max_abs) - 16 + sf / 2)
}

/// `NORM_SCALE`: the activation's scale from the quantiser's maximum, (r, k) and the gain exponent.
#[inline]
pub const fn norm_scale(max_abs: u32, bits: u8, r: u32, k: i32, gain_exponent: i32) -> (u32, i32) {
    let (a, s) = quant_scale(max_abs, bits, 0);
    let r = if r == 0 { 1 } else { r };
    let (d, c) = if a >= r { ((a << 15) / r, -15) } else { ((a << 16) / r, -16) };
    (d, s + gain_exponent - k + c)
}

/// `TO_FIXED`: round by `s` bits into an i16, s in 1…30.
#[inline]
pub const fn to_fixed(v: i32, s: i32) -> i32 {
    let q = (v.unsigned_abs().wrapping_add(1 << (s - 1))) >> s;
    signed(v < 0, if q > 32767 { 32767 } else { q })
}

/// `PROB`: e·2^15/Z rounded, in Q15.
#[inline]
pub const fn prob(e: u32, z: u32) -> u32 {
    let l = bitlen(z);
    let zn = shift(z, l - 16);
    let r = match (1u32 << 31).checked_div(zn) {
        Some(r) => r,
        None => 0,
    };
    if l == 0 { 0 } else { (e.wrapping_mul(r).wrapping_add(1 << (l - 1))) >> l }
}

/// `SILU_MUL` from `e = exp2neg(silu_exponent(g))`.
#[inline]
pub const fn silu_mul(g: i32, u: i32, e: u32) -> i32 {
    let den = 32768u32.wrapping_add(e);
    let s = ((1u32 << 30) + (den >> 1)) / if den == 0 { 1 } else { den };
    let s = if g < 0 { 32768u32.wrapping_sub(s) } else { s };
    signed((g < 0) != (u < 0), mulrs(mul15r(g.unsigned_abs(), s), u.unsigned_abs(), 14))
}

/// |g|·log2(e) in Q13: the exponent of [`silu_mul`]'s sigmoid.
#[inline]
pub const fn silu_exponent(g: i32) -> u32 {
    mul15r(g.unsigned_abs(), LOG2E_Q14)
}

/// `GELU_MUL`'s exponent in Q13: 2·√(2/π)·log2(e)·|g|·(1 + 0.044715·g²), so that the sigmoid of it gives GELU's tanh form.
/// From |g| = 16 on it is constant, where 2^(−d) is 0 anyway.
#[inline]
pub const fn gelu_exponent(g: i32) -> u32 {
    let a = g.unsigned_abs();
    let a = if a > (1 << 18) - 1 { (1 << 18) - 1 } else { a };
    let square = ((a >> 3) * (a >> 3)) >> 7;
    let factor = 32768 + mul15r(square, GELU_CUBIC_Q15);
    2 * mul15r(mulrs(a, factor, 15), GELU_SLOPE_Q13)
}

/// `SOFT_CAP`'s exponent in Q13: |x| times the constant m·2^(−sh).
#[inline]
pub const fn soft_cap_exponent(x: i32, m: u32, sh: i32) -> u32 {
    mulrs(x.unsigned_abs(), m, sh)
}

/// `SOFT_CAP`: cap·tanh from `e = exp2neg(soft_cap_exponent(…))`.
#[inline]
pub const fn soft_cap(x: i32, cap: u32, e: u32) -> i32 {
    let e = if e > 32768 { 32768 } else { e };
    let den = 32768 + e;
    let tanh = (((32768 - e) << 15) + (den >> 1)) / den;
    signed(x < 0, mul15r(cap, tanh))
}

/// `DEQUANT`: q·m·2^(e + fraction), rounded.
#[inline]
pub const fn dequant(q: i32, m: u32, e: i32, fraction: i32) -> i32 {
    smulrs(q, m, 0i32.wrapping_sub(e).wrapping_sub(fraction))
}

/// ±((|acc| + 2^(r−1)) >> r): a `LINEAR` accumulator of a block format, brought to 32 bits. `None` if it does not fit.
#[inline]
pub const fn narrow(acc: i64, r: u32) -> Option<i32> {
    let half = if r == 0 { 0 } else { 1u64 << (r - 1) };
    let m = match acc.unsigned_abs().checked_add(half) {
        Some(m) => m >> r,
        None => return None,
    };
    if m > i32::MAX as u64 { None } else { Some(signed(acc < 0, m as u32)) }
}

/// `ADD`: x + y clamped to ±[`CL`].
#[inline]
pub const fn add_clamp(x: i32, y: i32) -> i32 {
    let z = x as i64 + y as i64;
    if z > CL as i64 {
        CL
    } else if z < -(CL as i64) {
        -CL
    } else {
        z as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // Computed by the executable simulation of the arithmetic.
        assert_eq!(mulrs(16771, 31892269, 3), 1073741823);
        assert_eq!(mulrs(26, 535214420, 20), 13271);
        assert_eq!(mulrs(56817914, 423, 17), 183365);
        assert_eq!(mulrs(101134817, 72228372, 52), 2);
        assert_eq!(mul15r(541947804, 21426), 354363209);
        assert_eq!(mul15r(171119836, 14130), 73789163);
        assert_eq!(isqrt(4294967295), 65535);
        assert_eq!(isqrt(3000000000), 54772);
        assert_eq!(bitlen(0), 0);
        assert_eq!(bitlen(u32::MAX), 32);
    }

    #[test]
    fn quantiser_extremes() {
        for a in [1u32, 2, 3, 32767, 32768, 65535, 65536, 1 << 29, (1 << 30) - 1, 1 << 30, i32::MAX as u32] {
            for bits in 8..=16u8 {
                let limit = (1i32 << (bits - 1)) - 1;
                let q = quant(a as i32, a, bits);
                assert!((0..=limit).contains(&q) && quant(-(a as i32), a, bits) == -q, "{a} {bits} {q}");
                let (m, _) = quant_scale(a, bits, -14);
                assert!((1 << 15..1 << 16).contains(&m));
            }
        }
    }

    proptest! {
        #[test]
        fn mul15r_is_the_rounded_product(a in 0u32..=1 << 30, b in 0u32..=1 << 15) {
            prop_assert_eq!(mul15r(a, b) as u64, (a as u64 * b as u64 + (1 << 14)) >> 15);
        }

        #[test]
        fn mulrs_is_the_rounded_product(a in 0u32..1 << 31, b: u32, s in -3i32..80) {
            let want = if s < 1 {
                if a == 0 { 0 } else { CL as u128 }
            } else {
                let s = s.min(63);
                ((a as u128 * b as u128 + (1u128 << (s - 1))) >> s).min(CL as u128)
            };
            prop_assert_eq!(mulrs(a, b, s) as u128, want);
        }

        #[test]
        fn rms_root_has_sixteen_bits(x in 1u32..=1 << 30, rest in 0u64..(8191 << 32), eps in 0u32..1 << 20) {
            let max = x.max(eps).max(1);
            let y = norm_term(max, max) as u64;
            let (r, _) = rms(rest + if x >= eps { y * y } else { 0 }, max, eps);
            prop_assert!((1 << 15..1 << 16).contains(&r));
        }

        #[test]
        fn probabilities_stay_below_one(e in 0u32..=32768, more in 0u32..=(8191 << 15)) {
            prop_assert!(prob(e, 32768 + more) <= 32768);
        }
    }
}
