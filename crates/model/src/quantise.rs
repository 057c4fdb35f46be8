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
pub fn pow2(e: i32) -> f64 {
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

/// A norm's gains g_i times `factor` as S_i·2^(−15)·2^es with a common exponent es: the gain table, es appended as its last
/// element. `None` where the exponent does not fit the table.
pub fn gain_table(gain: &[f32], factor: f64) -> Option<Vec<i64>> {
    let gain = || gain.iter().map(|g| f64::from(*g) * factor);
    let max = gain().fold(0f64, |a, g| a.max(g.abs()));
    let es = if max < f64::MIN_POSITIVE { 0 } else { exponent(max) + i32::from(max != pow2(exponent(max))) };
    let mut table: Vec<i64> = gain()
        .map(|g| {
            let s = (g.abs() * pow2(15 - es) + 0.5).floor().min(32767.0) as i64;
            if g < 0.0 { -s } else { s }
        })
        .collect();
    table.push(i64::from(i16::try_from(es).ok()?));
    Some(table)
}

/// T[j] = round(2^15·2^(−j/256)), j = 0…256.
pub fn exp_table() -> Vec<i64> {
    (0..=256).map(|j| (32768.0 * libm::exp2(-f64::from(j) / 256.0) + 0.5).floor() as i64).collect()
}

/// T[j] = round(2^14·ln(1 + j/256)), j = 0…256.
pub fn ln_table() -> Vec<i64> {
    (0..=256).map(|j| (pow2(FRACTION) * libm::log(1.0 + f64::from(j) / 256.0) + 0.5).floor() as i64).collect()
}

/// The noise of `SAMPLE`, Gumbel variates in Q14: T[n] = round(2^14·−ln(−ln(1 − V_n))), V_n = 2^(⌊n/256⌋ − 32)·(1 + (n mod 256)/256),
/// n = 0…8191, and V_8192 = 1 − 2^−10 in place of 1. It falls from 22.2 to −1.9.
pub fn noise_table() -> Vec<i64> {
    let gumbel = |v: f64| (pow2(FRACTION) * -libm::log(-libm::log1p(-v)) + 0.5).floor() as i64;
    let entry = |n: i32| gumbel(pow2(n / 256 - 32) * (1.0 + f64::from(n % 256) / 256.0));
    (0..8192).map(entry).chain([gumbel(1.0 - pow2(-10))]).collect()
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

/// What turns the product of a query's and a key's int8 grids into a score in log2 units, Q13: log2(e)/√`scalar`, over the
/// grids' 127². Rotations that lengthen by `magnitude` do so on both sides.
pub fn score_factor(scalar: f64, magnitude: f64) -> f64 {
    let grid = 1.0 / f64::from(WEIGHT_MAX);
    std::f64::consts::LOG2_E / scalar.sqrt() * pow2(13) * grid * grid * magnitude * magnitude
}

/// The constant of `SCALE_Q`: [`score_factor`] as a scale.
pub fn score_scale(scalar: f64, magnitude: f64) -> Scale {
    Scale::nearest(score_factor(scalar, magnitude))
}

/// The parameters of `SOFT_CAP` for values with `bits` fractional bits and a cap of 0.01 to 15,000.
pub fn cap(cap: f64, bits: i32) -> [i32; 3] {
    let cap = cap * pow2(bits);
    let scale = Scale::nearest(2.0 * std::f64::consts::LOG2_E * pow2(13) / cap);
    [(cap + 0.5).floor() as i32, i32::from(scale.m), -scale.e]
}

/// A bias in Q14; `None` beyond ±(2^30 − 1).
pub fn bias_table(bias: &[f32]) -> Option<Vec<i64>> {
    let word = |b: &f32| {
        let v = (f64::from(*b) * pow2(FRACTION) + 0.5).floor();
        (v.abs() <= f64::from(sworn_isa::fixed::CL)).then_some(v as i64)
    };
    bias.iter().map(word).collect()
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
        assert_eq!(score_scale(64.0, 1.0), Scale { m: 48022, e: -19 });
        assert_eq!(norm_floor(576, f64::from(1e-5f32)), 1243);
        let t = exp_table();
        assert_eq!((t.len(), t[0], t[128], t[256]), (257, 32768, 23170, 16384));
    }

    #[test]
    fn noise_has_the_moments_of_the_gumbel_distribution() {
        let t: Vec<f64> = noise_table().iter().map(|n| *n as f64 / 16384.0).collect();
        assert_eq!(t.len(), sworn_isa::sampling::NOISE_ENTRIES);
        assert!(t.windows(2).all(|p| p[0] > p[1]));
        // Between two entries a word is as likely here as there, so the moments of a line weigh as much as the interval.
        let mut moments = [0.0; 4];
        for n in 0..8192 {
            let (a, b) = (t[n], t[n + 1]);
            let p = pow2(n as i32 / 256 - 40);
            let line = [1.0, (a + b) / 2.0, (a * a + a * b + b * b) / 3.0, (a + b) * (a * a + b * b) / 4.0];
            moments.iter_mut().zip(line).for_each(|(m, l)| *m += p * l);
        }
        let [total, mean, square, cube] = moments;
        let variance = square - mean * mean;
        let skewness = (cube - 3.0 * mean * square + 2.0 * mean * mean * mean) / variance.powf(1.5);
        assert!((total - 1.0).abs() < 1e-9, "{total}");
        assert!((mean - 0.577_215_66).abs() < 2e-4, "{mean}");
        assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 1e-3, "{variance}");
        assert!((skewness - 1.139_547_1).abs() < 3e-3, "{skewness}");
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
        assert_eq!(gain_table(&[0.0, 0.0], 1.0).unwrap(), [0, 0, 0]);
        // A largest gain of exactly 2^k has the mantissa 2^15, which is clamped.
        assert_eq!(gain_table(&[1.0, -0.5], 1.0).unwrap(), [32767, -16384, 0]);
        assert_eq!(gain_table(&[-3.0, 0.25], 1.0).unwrap(), [-24576, 2048, 2]);
        assert_eq!(gain_table(&[-0.75, 0.0625], 4.0).unwrap(), [-24576, 2048, 2]);
    }

    #[test]
    fn caps_and_biases() {
        // 50 in log2 units, Q13: 50·1.4427·8192; its slope 2·log2(e)·2^13/cap is 2/50.
        let [c, m, sh] = cap(50.0 * std::f64::consts::LOG2_E, 13);
        assert_eq!(c, 590_928);
        assert!((f64::from(m) * pow2(-sh) - 0.04).abs() < 1e-6 && (1 << 15..1 << 16).contains(&m));
        for c in [0.01, 15_000.0] {
            let [c, m, sh] = cap(c, FRACTION);
            assert!((1..1 << 30).contains(&c) && (1 << 15..1 << 16).contains(&m) && (1..=63).contains(&sh));
        }
        assert_eq!(bias_table(&[1.0, -0.5, 1e-6]).unwrap(), [16384, -8192, 0]);
        assert_eq!((bias_table(&[65536.0]), bias_table(&[f32::NAN])), (None, None));
        assert!((score_factor(64.0, 2.0) / score_factor(16.0, 1.0) - 2.0).abs() < 1e-12);
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
