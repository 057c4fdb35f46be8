//! Random numbers that reach the ends of their ranges.

use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use sworn_commit::RunParams;
use sworn_isa::{Sampling, fixed::CL};

const MANTISSA: (i64, i64) = (1 << 15, (1 << 16) - 1);
pub(super) const Q14: (i64, i64) = (-(CL as i64), CL as i64);
pub(super) const WORD: (i64, i64) = (-(i32::MAX as i64), i32::MAX as i64);

/// SplitMix64: the same cases with every version of every library, and fast where dependencies are not optimised.
pub(super) struct SplitMix(pub(super) u64);

impl RngCore for SplitMix {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        out.chunks_mut(8).for_each(|c| {
            let word = self.next_u64().to_le_bytes();
            c.copy_from_slice(&word[..c.len()]);
        });
    }
}

/// Draws the parts of a case.
pub(super) struct Gen<'a> {
    pub(super) rng: &'a mut SplitMix,
}

impl Gen<'_> {
    /// A value of the range: its ends, neighbours of powers of two, a random number of bits, or uniform.
    pub(super) fn value(&mut self, (lo, hi): (i64, i64)) -> i64 {
        let rng = &mut *self.rng;
        let v = match rng.random_range(0..8) {
            0 => *[lo, hi, 0, 1, -1].choose(rng).unwrap_or(&lo),
            1 => (1i64 << rng.random_range(0..32)) + rng.random_range(-1..=1),
            2 => -(1i64 << rng.random_range(0..32)) + rng.random_range(-1..=1),
            3..6 => {
                let bits = rng.random_range(1..33);
                let m = rng.random_range(0..1i64 << bits);
                if rng.random() { m } else { -m }
            }
            _ => return rng.random_range(lo..=hi),
        };
        if (lo..=hi).contains(&v) { v } else { rng.random_range(lo..=hi) }
    }

    /// A vector, sometimes constant at an extreme.
    pub(super) fn vector(&mut self, n: usize, range: (i64, i64)) -> Vec<i64> {
        match self.rng.random_range(0..16) {
            0 => vec![range.1; n],
            1 => vec![range.0; n],
            // A typical vector: one magnitude throughout.
            2..10 => {
                let top = self.value((0, range.1.max(0))).max(range.0).max(1);
                let range = (range.0.max(-top), range.1.min(top).max(range.0));
                (0..n).map(|_| self.rng.random_range(range.0..=range.1)).collect()
            }
            _ => (0..n).map(|_| self.value(range)).collect(),
        }
    }

    pub(super) fn size(&mut self, max: u32) -> u32 {
        match self.rng.random_range(0..6) {
            0 => 1,
            1 => max,
            _ => self.rng.random_range(1..=max),
        }
    }

    pub(super) fn position(&mut self) -> u32 {
        let near_block = *[0, 1, 14, 15, 16, 17, 31, 32, 47].choose(self.rng).unwrap_or(&0);
        if self.rng.random_range(0..8) == 0 { self.rng.random_range(0..128) } else { near_block }
    }

    pub(super) fn mantissa(&mut self) -> i64 {
        self.value(MANTISSA)
    }

    /// A maximum magnitude for `v`: the true one, or a larger one.
    pub(super) fn maximum(&mut self, v: &[i64]) -> i64 {
        let max = v.iter().map(|x| x.abs()).max().unwrap_or(0).max(1);
        if self.rng.random_range(0..4) == 0 { self.value((max, i32::MAX as i64)) } else { max }
    }

    /// An exponent e so that the total shift −e − `other` is mostly within 0…70.
    pub(super) fn exponent(&mut self, other: i64) -> i64 {
        let shift = match self.rng.random_range(0..8) {
            0 => *[-3, -1, 0, 1, 2, 31, 32, 33, 62, 63, 64, 70].choose(self.rng).unwrap_or(&1),
            _ => self.rng.random_range(1..64),
        };
        -shift - other
    }

    /// A length that is mostly short and sometimes as long as it may be.
    pub(super) fn long(&mut self, max: u32) -> u32 {
        match self.rng.random_range(0..32) {
            0 => max,
            1 => *[516, 576, 1024, 1536].choose(self.rng).unwrap_or(&576),
            _ => self.size(96),
        }
    }

    /// One of the few values at the ends of `range`, or any.
    pub(super) fn edge(&mut self, (lo, hi): (i64, i64)) -> i64 {
        match self.rng.random_range(0..4) {
            0 => (lo + self.rng.random_range(0..3)).min(hi),
            1 => (hi - self.rng.random_range(0..3)).max(lo),
            _ => self.rng.random_range(lo..=hi),
        }
    }

    /// How a run samples: every parameter is often left out and sometimes at the end of its range.
    pub(super) fn run(&mut self) -> RunParams {
        let mut field = |lo: i64, hi: i64| {
            if self.rng.random_range(0..3) == 0 { 0 } else { self.edge((lo, hi)) as u32 }
        };
        let sampling = Sampling {
            inverse_temperature: field(1, 1 << 20),
            top_k: field(1, (1 << 20) - 1),
            top_p: field(1, 1 << 16),
            min_distance: field(1, (1 << 24) - 1),
            penalty: field(1 << 8, (1 << 16) - 1),
        };
        let mut seed = [0; 32];
        match self.rng.random_range(0..8) {
            0 => {}
            1 => seed = [255; 32],
            _ => self.rng.fill_bytes(&mut seed),
        }
        RunParams { sampling, seed }
    }
}
