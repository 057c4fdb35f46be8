//! Floating-point weights to the integers of the instruction set.
//!
//! This is the only floating-point arithmetic on the way to an answer, and it runs once, at import. It has to give the same
//! integers everywhere, or the same file would have two model ids: it uses only IEEE operations that are exactly rounded
//! (`+ − × ÷ √`), reads exponents from the bits instead of calling a logarithm, and takes sine, cosine and power from a
//! library in pure Rust rather than from the operating system.

use sworn_isa::{Dtype, RowFormat};

/// Fractional bits of the residual stream and of everything `LINEAR` produces.
pub const FRACTION: i32 = 14;
/// Fractional bits of stored values (V of the attention).
pub const VALUE_FRACTION: i32 = 10;
/// Fractional bits of probabilities.
pub const PROB_FRACTION: i32 = 15;
/// Largest weight magnitude.
pub const WEIGHT_MAX: i32 = 127;

/// 2^e for e in the range of normal doubles.
fn pow2(e: i32) -> f64 {
    f64::from_bits(((e.clamp(-1022, 1023) + 1023) as u64) << 52)
}

/// ⌊log2 x⌋ of a positive normal number.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// A scale m·2^e, m in [2^15, 2^16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Mantissa.
    pub m: u16,
    /// Exponent.
    pub e: i32,
}

impl Scale {
    /// The scale nearest to a positive normal `x`, ties upward.
    pub fn nearest(x: f64) -> Self {
        let e = exponent(x) - 15;
        let m = (x / pow2(e) + 0.5).floor();
        if m >= 65536.0 { Scale { m: 1 << 15, e: e + 1 } } else { Scale { m: m as u16, e } }
    }

    /// Its value.
    pub fn value(self) -> f64 {
        f64::from(self.m) * pow2(self.e)
    }

    /// This scale times two constants, rounded again. Two factors, not their product: the order of roundings is part of the id.
    pub fn times(self, a: f64, b: f64) -> Self {
        Scale::nearest(self.value() * a * b)
    }
}

/// Rounds a row of weights to nearest on a grid of its own scale; returns the scale and ‖q‖₁.
pub fn quantise_row(row: &[f32], q: &mut [i8]) -> (Scale, u64) {
    let max = row.iter().fold(0f32, |a, w| a.max(w.abs()));
    // The bound keeps the scale of an all-zero row a number.
    let scale = Scale::nearest((f64::from(max) / f64::from(WEIGHT_MAX)).max(1e-12));
    let s = scale.value();
    let limit = f64::from(WEIGHT_MAX);
    let mut l1 = 0;
    for (q, w) in q.iter_mut().zip(row) {
        let v = (f64::from(*w) / s + 0.5).floor().clamp(-limit, limit) as i8;
        l1 += u64::from(v.unsigned_abs());
        *q = v;
    }
    (scale, l1)
}

/// A norm's gains g_i as S_i·2^(−15)·2^es with a common exponent es: the gain table, es appended as its last element.
/// `None` where the exponent does not fit the table.
pub fn gain_table(gain: &[f32]) -> Option<Vec<i64>> {
    let max = gain.iter().fold(0f64, |a, g| a.max(f64::from(*g).abs()));
    let es = if max < f64::MIN_POSITIVE { 0 } else { exponent(max) + i32::from(max != pow2(exponent(max))) };
    let mut table: Vec<i64> = gain
        .iter()
        .map(|g| {
            let s = (f64::from(*g).abs() * pow2(15 - es) + 0.5).floor().min(32767.0) as i64;
            if *g < 0.0 { -s } else { s }
        })
        .collect();
    table.push(i64::from(i16::try_from(es).ok()?));
    Some(table)
}

/// T[j] = round(2^15·2^(−j/256)), j = 0…256.
pub fn exp_table() -> Vec<i64> {
    (0..=256).map(|j| (32768.0 * libm::exp2(-f64::from(j) / 256.0) + 0.5).floor() as i64).collect()
}

/// Cosine and sine tables `[positions][head/2]` of the rotary embedding in Q15. `divisors` scale each pair's wavelength.
pub fn rope_tables(positions: u32, head: u32, base: f64, divisors: Option<&[f32]>) -> (Vec<i64>, Vec<i64>) {
    let frequency: Vec<f64> = (0..head / 2)
        .map(|i| {
            let f = libm::pow(base, -f64::from(2 * i) / f64::from(head));
            divisors.map_or(f, |d| f / f64::from(d[i as usize]))
        })
        .collect();
    let q15 = |x: f64| (x * 32768.0 + 0.5).floor().clamp(-32767.0, 32767.0) as i64;
    let mut cos = Vec::with_capacity(positions as usize * frequency.len());
    let mut sin = Vec::with_capacity(positions as usize * frequency.len());
    for p in 0..positions {
        for f in &frequency {
            let angle = f64::from(p) * f;
            cos.push(q15(libm::cos(angle)));
            sin.push(q15(libm::sin(angle)));
        }
    }
    (cos, sin)
}

/// ε of a root-mean-square norm over n elements as `RMS` adds it: round(√(n·ε)·2^14).
pub fn norm_floor(n: u32, epsilon: f64) -> i32 {
    ((f64::from(n) * epsilon).sqrt() * pow2(FRACTION)).round_ties_even().clamp(1.0, f64::from(sworn_isa::fixed::CL))
        as i32
}

/// The constant of `SCALE_Q`: log2(e)/√head in Q13, over the two int8 grids' 127².
pub fn score_scale(head: u32) -> Scale {
    let grid = 1.0 / f64::from(WEIGHT_MAX);
    Scale::nearest(std::f64::consts::LOG2_E / f64::from(head).sqrt() * pow2(13) * grid * grid)
}

/// The widest quantiser whose products with a row of ‖w‖₁ = `l1` fit the format's accumulator, or `None` if nine bits are too many.
pub fn activation_bits(format: RowFormat, l1: u64) -> Option<u8> {
    (9..=16u8).rev().find(|b| partial_sums_fit(format, l1, *b))
}

/// Whether every partial sum of a row with ‖w‖₁ = `l1` times `bits`-wide activations fits the format's accumulator.
pub fn partial_sums_fit(format: RowFormat, l1: u64, bits: u8) -> bool {
    let max = if bits == 8 { 127 } else { (1u64 << (bits - 1)) - 1 };
    l1.saturating_mul(max) <= format.bound()
}

/// Big-endian bytes of a tensor.
pub fn encode(dtype: Dtype, values: &[i64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * dtype.width());
    for v in values {
        out.extend_from_slice(&v.to_be_bytes()[8 - dtype.width()..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn constants_of_a_64_wide_head() {
        // 48022·2^−19, the figure of the arithmetic's executable simulation.
        assert_eq!(score_scale(64), Scale { m: 48022, e: -19 });
        assert_eq!(norm_floor(576, f64::from(1e-5f32)), 1243);
        let t = exp_table();
        assert_eq!((t.len(), t[0], t[128], t[256]), (257, 32768, 23170, 16384));
    }

    #[test]
    fn scales_near_powers_of_two() {
        assert_eq!(Scale::nearest(1.0), Scale { m: 32768, e: -15 });
        assert_eq!(Scale::nearest(1.0 - f64::EPSILON), Scale { m: 32768, e: -15 });
        assert_eq!(Scale::nearest(1.5), Scale { m: 49152, e: -15 });
        assert_eq!(Scale::nearest(1e-12).e, -55);
    }

    #[test]
    fn gains_with_zeros_signs_and_powers() {
        assert_eq!(gain_table(&[0.0, 0.0]).unwrap(), [0, 0, 0]);
        // A largest gain of exactly 2^k has the mantissa 2^15, which is clamped.
        assert_eq!(gain_table(&[1.0, -0.5]).unwrap(), [32767, -16384, 0]);
        assert_eq!(gain_table(&[-3.0, 0.25]).unwrap(), [-24576, 2048, 2]);
    }

    #[test]
    fn activation_width_shrinks_with_the_row() {
        let bits = |l1| activation_bits(RowFormat::I8, l1);
        assert_eq!([bits(65538), bits(65539), bits(1 << 23), bits(1 << 24)], [Some(16), Some(15), Some(9), None]);
        assert_eq!(activation_bits(RowFormat::Q4, 65538 << 12), Some(16));
        assert_eq!(activation_bits(RowFormat::Q8, (65538 << 16) + (1 << 16)), Some(15));
    }

    proptest! {
        #[test]
        fn quantised_rows_are_within_half_a_step(row in proptest::collection::vec(-8f32..8.0, 1..80)) {
            let mut q = vec![0; row.len()];
            let (scale, l1) = quantise_row(&row, &mut q);
            prop_assert_eq!(l1, q.iter().map(|q| u64::from(q.unsigned_abs())).sum::<u64>());
            for (q, w) in q.iter().zip(&row) {
                prop_assert!((f64::from(*q) * scale.value() - f64::from(*w)).abs() <= scale.value() * 0.5001 + 1e-9);
            }
        }

        #[test]
        fn every_scale_is_normalised(x in 1e-30f64..1e30) {
            let s = Scale::nearest(x);
            prop_assert!(s.m >= 1 << 15 && (s.value() / x - 1.0).abs() <= 1.0 / 65536.0);
        }
    }
}
