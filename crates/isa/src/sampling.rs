//! Sampling: the parameters of a run, and the integer arithmetic of the operators that apply them.
//!
//! Logits are Q14 in natural-logarithm units, and so are distances between them.

use crate::fixed::{CL, LOG2E_Q14, exp2neg, mul15r, smulrs};

/// Bins of a `HISTOGRAM`.
pub const BINS: usize = 256;
/// Tokens back that the repetition penalty looks at.
pub const PENALTY_WINDOW: u32 = 64;
/// log2 of a bin's width in the first histogram: 1/16 in natural-logarithm units.
pub const BIN_SHIFT: u32 = 10;
/// log2 of a bin's width in the second histogram, 256 of which make one bin of the first.
pub const FINE_SHIFT: u32 = 2;
/// Entries of the noise table.
pub const NOISE_ENTRIES: usize = 8193;
/// 1 in the fixed point of [`Sampling::inverse_temperature`] and [`Sampling::penalty`].
pub const Q12_ONE: u32 = 1 << 12;

/// How a run selects its tokens. All zero: the largest logit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sampling {
    /// 1/temperature in Q12, at most 2^20; 0: no noise.
    pub inverse_temperature: u32,
    /// Only the so many most likely tokens; 0: all. Tokens less than 2^−12 behind the last of them stay as well.
    pub top_k: u32,
    /// Only the most likely tokens that have this much of the probability, in Q16, at most 2^16; 0: all. Rounded up to tokens less than 1/16
    /// behind the last of them; tokens 15.9 and more behind the first have no part in it.
    pub top_p: u32,
    /// Only tokens at most this far behind the most likely one, in Q14 (−ln of min-p), below 2^24; 0: all.
    pub min_distance: u32,
    /// Divisor of positive (factor of negative) logits of tokens among the last [`PENALTY_WINDOW`], in Q12, 2^8…2^16 − 1; 0: none.
    pub penalty: u32,
}

impl Sampling {
    /// The largest logit.
    pub const GREEDY: Sampling = Sampling { inverse_temperature: 0, top_k: 0, top_p: 0, min_distance: 0, penalty: 0 };

    /// Whether every parameter is in its range; contracts refuse jobs with others.
    pub const fn is_valid(&self) -> bool {
        self.inverse_temperature <= 1 << 20
            && self.top_k < 1 << 20
            && self.top_p <= 1 << 16
            && self.min_distance < 1 << 24
            && (self.penalty == 0 || (self.penalty >= 1 << 8 && self.penalty < 1 << 16))
    }

    /// The 32-byte word that a job carries: the fields as u32, big-endian, from the lowest bits up.
    pub fn pack(&self) -> [u8; 32] {
        let mut word = [0; 32];
        let fields = [self.inverse_temperature, self.top_k, self.top_p, self.min_distance, self.penalty];
        for (i, f) in fields.into_iter().enumerate() {
            word[28 - 4 * i..32 - 4 * i].copy_from_slice(&f.to_be_bytes());
        }
        word
    }

    /// Reads what [`Self::pack`] wrote; `None` for a word that no valid parameters give.
    pub fn unpack(word: &[u8; 32]) -> Option<Self> {
        let field =
            |i: usize| u32::from_be_bytes([word[28 - 4 * i], word[29 - 4 * i], word[30 - 4 * i], word[31 - 4 * i]]);
        let s = Sampling {
            inverse_temperature: field(0),
            top_k: field(1),
            top_p: field(2),
            min_distance: field(3),
            penalty: field(4),
        };
        (s.is_valid() && s.pack() == *word).then_some(s)
    }

    /// `TEMPER`: the logit after penalty and temperature.
    #[inline]
    pub const fn temper(&self, logit: i32, repeated: bool) -> i32 {
        let mut l = logit;
        if repeated && self.penalty != 0 {
            l = if l > 0 { smulrs(l, (1 << 27) / self.penalty, 15) } else { smulrs(l, self.penalty, 12) };
        }
        smulrs(l, if self.inverse_temperature == 0 { Q12_ONE } else { self.inverse_temperature }, 12)
    }

    /// `CUT`: (bin, total of the bins before it). The bin is the first one with which the running total of `bins` reaches the target, or
    /// 256 if there is no target or it is out of reach. The target is, for a mass, top-p of the whole, rounded up; otherwise top-k, less what
    /// a `parent` cut has before its bin.
    pub fn cut(&self, mass: bool, bins: &[u32; BINS], parent: Option<[u32; 2]>) -> [u32; 2] {
        let target = if mass {
            let total: u64 = bins.iter().map(|b| u64::from(*b)).sum();
            (total * u64::from(self.top_p)).div_ceil(1 << 16)
        } else {
            match parent {
                Some([bin, before]) if bin as usize >= BINS || before >= self.top_k => 0,
                Some([_, before]) => u64::from(self.top_k - before),
                None => u64::from(self.top_k),
            }
        };
        if target == 0 {
            return [BINS as u32, 0];
        }
        let mut before = 0u64;
        for (b, n) in bins.iter().enumerate() {
            if before + u64::from(*n) >= target {
                return [b as u32, before.min(u64::from(u32::MAX)) as u32];
            }
            before += u64::from(*n);
        }
        [BINS as u32, 0]
    }

    /// `THRESHOLD`: the least tempered logit that may be selected. `k`: the bins of both cuts by rank, `p`: of the cut by mass, for
    /// histograms of bin widths 2^`shift` and 2^`fine`.
    pub fn threshold(&self, max: i32, k: [u32; 2], p: u32, shift: u32, fine: u32) -> i32 {
        let last = BINS as u32 - 1;
        let mut distance = u64::from(u32::MAX);
        if self.min_distance > 0 {
            distance = u64::from(self.min_distance);
        }
        // The last bin is open: a cut there cuts nothing.
        if k[0] < last {
            let within = (u64::from(k[1].min(last)) + 1) << fine;
            distance = distance.min((u64::from(k[0]) << shift) + within - 1);
        }
        if p < last {
            distance = distance.min(((u64::from(p) + 1) << shift) - 1);
        }
        (i64::from(max) - distance as i64).max(-i64::from(CL)) as i32
    }
}

/// The bin of a token `distance` behind the largest logit: bins of width 2^`shift`, the last one open. With a parent (its bin, its
/// shift) only tokens in that bin count, measured from where it begins.
#[inline]
pub const fn bin(distance: u32, shift: u32, parent: Option<(u32, u32)>) -> Option<u32> {
    let last = BINS as u32 - 1;
    let rest = match parent {
        None => distance,
        Some((of, parent_shift)) => {
            let at = distance >> parent_shift;
            let at = if at > last { last } else { at };
            if at != of {
                return None;
            }
            distance - (of << parent_shift)
        }
    };
    let b = rest >> shift;
    Some(if b > last { last } else { b })
}

/// The exponent, in Q13, of the probability of a token `distance` behind the largest logit.
#[inline]
pub const fn mass_exponent(distance: u32) -> u32 {
    mul15r(if distance > 1 << 30 { 1 << 30 } else { distance }, LOG2E_Q14)
}

/// Probability mass relative to the largest logit's, in Q12.
#[inline]
pub fn mass(distance: u32, table: &[u16]) -> u32 {
    (exp2neg(mass_exponent(distance), table) + 4) >> 3
}

/// The position of noise word `v` in the noise table, which is logarithmic: the entries are Gumbel variates in Q14,
/// −ln(−ln(1 − V)), at V = 2^(⌊n/256⌋ − 32)·(1 + (n mod 256)/256), so that rare large noise is as fine as common noise.
#[inline]
pub const fn noise_index(v: u32) -> u32 {
    let (k, fraction) = noise_parts(v);
    (31 - k) * 256 + (fraction >> 6)
}

/// The noise between table entries [`noise_index`] and the one after it.
#[inline]
pub const fn noise_interpolate(v: u32, t0: i32, t1: i32) -> i32 {
    let (_, fraction) = noise_parts(v);
    t0.wrapping_sub((t0.wrapping_sub(t1).wrapping_mul((fraction & 63) as i32).wrapping_add(32)) >> 6)
}

/// Leading zeros, and the 14 bits after the leading one.
const fn noise_parts(v: u32) -> (u32, u32) {
    let v = if v == 0 { 1 } else { v };
    let k = v.leading_zeros();
    let fraction = if k == 31 { 0 } else { (v << (k + 1)) >> 18 };
    (k, fraction)
}

/// The noise of word `v` from the table of [`NOISE_ENTRIES`] entries.
#[inline]
pub fn noise(v: u32, table: &[i32]) -> i32 {
    let n = noise_index(v) as usize;
    noise_interpolate(v, table[n], table[n + 1])
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;

    fn table() -> alloc::vec::Vec<u16> {
        (0..257).map(|j| (32768.0 * (-f64::from(j) / 256.0).exp2() + 0.5) as u16).collect()
    }

    #[test]
    fn greedy_changes_nothing() {
        for l in [0, 1, -1, 12345, -CL, CL] {
            assert_eq!(Sampling::GREEDY.temper(l, true), l);
        }
        assert_eq!(Sampling::GREEDY.threshold(5, [256, 256], 256, BIN_SHIFT, FINE_SHIFT), -CL);
        assert!(Sampling::GREEDY.is_valid());
    }

    #[test]
    fn a_penalty_moves_logits_towards_the_unlikely() {
        let s = Sampling { penalty: 2 * Q12_ONE, ..Sampling::GREEDY };
        assert_eq!((s.temper(1000, true), s.temper(-1000, true), s.temper(1000, false)), (500, -2000, 1000));
    }

    #[test]
    fn cuts() {
        let mut bins = [0; BINS];
        (bins[0], bins[3], bins[255]) = (2, 5, 10);
        let s = Sampling { top_k: 4, top_p: 1 << 15, ..Sampling::GREEDY };
        assert_eq!(s.cut(false, &bins, None), [3, 2]);
        assert_eq!(s.cut(false, &bins, Some([3, 2])), [0, 0]);
        assert_eq!(s.cut(false, &bins, Some([256, 0])), [256, 0]);
        // Half of 17, rounded up, is 9.
        assert_eq!(s.cut(true, &bins, None), [255, 7]);
        assert_eq!(Sampling { top_k: 18, ..s }.cut(false, &bins, None), [256, 0]);
        assert_eq!(s.threshold(0, [3, 0], 256, 10, 2), -(3 * 1024 + 3));
    }

    proptest! {
        #[test]
        fn packing_is_inverse(word in proptest::array::uniform5(0u32..1 << 17)) {
            let [inverse_temperature, top_k, top_p, min_distance, penalty] = word;
            let s = Sampling { inverse_temperature, top_k, top_p, min_distance, penalty };
            prop_assert_eq!(Sampling::unpack(&s.pack()), s.is_valid().then_some(s));
            let mut other = s.pack();
            other[0] = 1;
            prop_assert_eq!(Sampling::unpack(&other), None);
        }

        #[test]
        fn every_token_has_a_bin(distance: u32, of in 0u32..256) {
            let b = bin(distance, BIN_SHIFT, None).unwrap();
            prop_assert!(b < 256);
            let fine = bin(distance, FINE_SHIFT, Some((b, BIN_SHIFT))).unwrap();
            prop_assert!(b == 255 || (b << BIN_SHIFT) + (fine << FINE_SHIFT) <= distance);
            prop_assert_eq!(bin(distance, FINE_SHIFT, Some((of, BIN_SHIFT))).is_some(), of == b);
        }

        #[test]
        fn masses_fall(distance in 0u32..1 << 20, more in 0u32..1 << 20) {
            let t = table();
            prop_assert!(mass(distance, &t) >= mass(distance + more, &t));
            prop_assert!(mass(distance, &t) <= 4096);
        }

        #[test]
        fn noise_stays_in_its_table(v: u32) {
            prop_assert!(noise_index(v) < NOISE_ENTRIES as u32 - 1);
            prop_assert_eq!(noise_interpolate(v, 7, 7), 7);
        }

        #[test]
        fn tempering_keeps_the_order(a: i32, b: i32, inverse_temperature in 1u32..1 << 20) {
            let s = Sampling { inverse_temperature, ..Sampling::GREEDY };
            let (a, b) = (a.clamp(-CL, CL), b.clamp(-CL, CL));
            prop_assert!(a > b || s.temper(a, false) <= s.temper(b, false));
        }
    }
}
