//! Log-probabilities: the integer arithmetic of `TOP`, `MASS`, `LOG_SUM` and `LOG_PROB`, and how a head arranges them.
//!
//! They are those of the model's own distribution: of the logits before penalty, temperature and cuts. Logits and log-probabilities are Q14 in
//! natural-logarithm units.

use crate::descriptor::{Descriptor, Opcode, Operand, OperandKind};
use crate::fixed::{CL, exp2neg_index, exp2neg_interpolate};
use crate::sampling::mass_exponent;

/// Most elements of a `TOP`.
pub const MOST: u32 = 20;
/// Most logits of a `MASS`' group: so many masses of at most 2^21 stay below 2^31.
pub const GROUP: u32 = 512;
/// Most groups that a `LOG_SUM` adds: 8 KB.
pub const GROUPS: u32 = 2048;
/// Entries of the logarithm's table.
pub const LN_ENTRIES: usize = 257;
/// Fraction bits of a mass.
pub const MASS_FRACTION: u32 = 21;
/// From this distance behind the largest logit on, 16 in Q14, a token has no mass whatever the table: it is over 23 octaves less likely.
pub const MASSLESS: u32 = 16 << 14;

/// Octaves that a mass is finer than a power of two in Q15.
const FINER: u32 = MASS_FRACTION - 15;
/// ln 2 in Q18.
const LN2_Q18: u32 = 181_704;
/// Bits of a total that its logarithm is taken from.
const MANTISSA: i32 = 23;

/// The probability, relative to the largest logit's and in Q21, of a token `distance` behind it.
#[inline]
pub fn mass(distance: u32, table: &[u16]) -> u32 {
    let d = mass_exponent(distance);
    let j = exp2neg_index(d) as usize;
    mass_interpolate(d, u32::from(table[j]), u32::from(table[j + 1]))
}

/// [`mass`] from its exponent in Q13 and the two entries of the table at [`exp2neg_index`].
#[inline]
const fn mass_interpolate(d: u32, t0: u32, t1: u32) -> u32 {
    let i = d >> 13;
    if i > 16 + FINER {
        return 0;
    }
    let e = exp2neg_interpolate(d & 8191, t0, t1) << FINER;
    e.wrapping_add(1 << i >> 1) >> i
}

/// The part of `LOG_SUM` that depends on the total mass: (k, j, r) where the total is 2^(21 + k)·(1 + (j + r/2^14)/256) in Q21. `None` for a total
/// below 1, which has not even the largest logit's mass, or beyond all groups'.
#[inline]
pub const fn total_parts(total: u64) -> Option<(u32, usize, i32)> {
    if total < 1 << MASS_FRACTION || total >= 1 << 42 {
        return None;
    }
    let bits = 64 - total.leading_zeros() as i32;
    let x = if bits >= MANTISSA { total >> (bits - MANTISSA) } else { total << (MANTISSA - bits) } as u32;
    let fraction = x & ((1 << (MANTISSA - 1)) - 1);
    Some((bits as u32 - MASS_FRACTION - 1, (fraction >> 14) as usize, (fraction & 16383) as i32))
}

/// `LOG_SUM`: max + ln(total), from the parts of [`total_parts`] and the table's entries j and j + 1.
#[inline]
pub const fn log_sum(max: i32, k: u32, r: i32, t0: i32, t1: i32) -> i32 {
    let octaves = ((k * LN2_Q18 + 8) >> 4) as i32;
    max.wrapping_add(octaves).wrapping_add(t0 + (((t1 - t0) * r + (1 << 13)) >> 14))
}

/// `LOG_PROB`: −min([`CL`], log sum − logit). A logit above the sum of all, which only a tampered run has, counts as far below.
#[inline]
pub const fn log_prob(logit: i32, log_sum: i32) -> i32 {
    let behind = log_sum.wrapping_sub(logit) as u32;
    if behind > CL as u32 { -CL } else { -(behind as i32) }
}

/// Whether token `a` comes before token `b` in the order of `TOP`: (token, logit).
#[inline]
pub const fn before(a: (i64, i64), b: (i64, i64)) -> bool {
    a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)
}

/// Where a head has the operators of its log-probabilities, in the one arrangement that importers write. The tables' contents are not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogProbs {
    /// The operator whose output is the logits.
    pub logits: usize,
    /// The selected token, `SELECT` or `SAMPLE`; exported.
    pub token: usize,
    /// The `TOP`; exported.
    pub top: usize,
    /// The `LOG_PROB`; exported: element 0 is the selected token's, the others are those of `TOP`.
    pub log_prob: usize,
    /// How many tokens `TOP` has.
    pub n: usize,
    /// The table of powers of two.
    pub exp: Operand,
    /// The table of logarithms.
    pub ln: Operand,
}

impl LogProbs {
    /// Finds it in a head's operators: exported are the token, `TOP` and `LOG_PROB`, in this order and nothing else, and what they are computed from
    /// is what their names promise.
    pub fn find(ops: &[Descriptor]) -> Option<Self> {
        let mut exports = (0..ops.len()).filter(|k| ops[*k].export);
        let (token, top, log_prob) = (exports.next()?, exports.next()?, exports.next()?);
        let is = |at: usize, opcode: Opcode| (ops[at].opcode == opcode).then_some(at);
        if exports.next().is_some() || !matches!(ops[token].opcode, Opcode::Select | Opcode::Sample) {
            return None;
        }
        let (top, log_prob) = (is(top, Opcode::Top)?, is(log_prob, Opcode::LogProb)?);
        let logits = source(ops, log_prob, 0)?;
        let sum = is(source(ops, log_prob, 1)?, Opcode::LogSum)?;
        let max = is(source(ops, sum, 0)?, Opcode::Max)?;
        let mass = is(source(ops, sum, 1)?, Opcode::Mass)?;
        let mut below = max;
        while below != logits {
            below = source(ops, is(below, Opcode::Max)?, 0)?;
        }
        let agree = source(ops, log_prob, 2) == Some(top)
            && source(ops, log_prob, 3) == Some(token)
            && source(ops, top, 0) == Some(logits)
            && (source(ops, mass, 0), source(ops, mass, 1)) == (Some(logits), Some(max));
        let (exp, ln) = (ops[mass].operands[2], ops[sum].operands[2]);
        let n = ops[top].count(0) as usize;
        agree.then_some(LogProbs { logits, token, top, log_prob, n, exp, ln })
    }
}

/// The operator whose whole output operand `k` of operator `at` is.
fn source(ops: &[Descriptor], at: usize, k: usize) -> Option<usize> {
    let o = ops.get(at)?.operands[k];
    (o.kind == OperandKind::Op && !o.tail && (o.index as usize) < at).then_some(o.index as usize)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn exp_table() -> Vec<u16> {
        (0..257).map(|j| (32768.0 * (-f64::from(j) / 256.0).exp2() + 0.5) as u16).collect()
    }

    fn ln_table() -> Vec<i32> {
        (0..LN_ENTRIES).map(|j| (16384.0 * (1.0 + j as f64 / 256.0).ln() + 0.5) as i32).collect()
    }

    fn ln_of(total: u64) -> i32 {
        let t = ln_table();
        let (k, j, r) = total_parts(total).unwrap();
        log_sum(0, k, r, t[j], t[j + 1])
    }

    #[test]
    fn masses_are_powers() {
        let t = exp_table();
        assert_eq!(mass(0, &t), 1 << MASS_FRACTION);
        assert_eq!((mass(MASSLESS, &t), mass(u32::MAX, &t)), (0, 0));
        // Whatever the table.
        assert_eq!(mass(MASSLESS, &[u16::MAX; 257]), 0);
        for distance in (0..MASSLESS).step_by(97) {
            let want = f64::from(1 << MASS_FRACTION) * (-f64::from(distance) / 16384.0).exp();
            let error = (f64::from(mass(distance, &t)) - want).abs();
            assert!(error <= 0.51 + want * 2e-4, "{distance}: {want} {error}");
        }
    }

    #[test]
    fn totals_and_their_ends() {
        assert_eq!(ln_of(1 << 21), 0);
        assert_eq!((total_parts((1 << 21) - 1), total_parts(1 << 42)), (None, None));
        assert_eq!(total_parts((1 << 42) - 1).map(|p| (p.0, p.1, p.2)), Some((20, 255, 16383)));
        assert_eq!((log_prob(5, 5), log_prob(-CL, CL + (1 << 18)), log_prob(6, 5)), (0, -CL, -CL));
    }

    proptest! {
        #[test]
        fn logarithms_are_exact_to_the_last_place(total in 1u64 << 21..1 << 42) {
            let want = 16384.0 * (total as f64 / f64::from(1 << MASS_FRACTION)).ln();
            prop_assert!((f64::from(ln_of(total)) - want).abs() < 1.6, "{} {}", ln_of(total), want);
        }

        #[test]
        fn masses_fall(distance in 0u32..1 << 20, more in 0u32..1 << 20) {
            let t = exp_table();
            prop_assert!(mass(distance, &t) >= mass(distance + more, &t));
            prop_assert!(mass(distance, &t) <= 1 << MASS_FRACTION);
        }

        #[test]
        fn no_input_panics(max: i32, total: u64, logit: i32, sum: i32, r in 0i32..16384, t0 in 0i32..65536, t1 in 0i32..65536) {
            if let Some((k, j, _)) = total_parts(total) {
                prop_assert!(k <= 20 && j < LN_ENTRIES - 1);
                let _ = log_sum(max, k, r, t0, t1);
            }
            prop_assert!((-CL..=0).contains(&log_prob(logit, sum)));
        }
    }
}
