//! Weight rows in every format.

use rand::Rng;
use rand::seq::IndexedRandom;
use sworn_isa::{GROUP, GROUP_SCALE_MAX, RowFormat};

use super::draw::Gen;

/// A weight row with all its scale pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// (mantissa, right shift) per scale column
    pub scales: Vec<(u16, i16)>,
    format: RowFormat,
    /// What follows the scale pairs.
    body: Vec<u8>,
}

impl Row {
    /// The row as a model stores and hashes it.
    pub fn bytes(&self) -> Vec<u8> {
        let scales = self.scales.iter().flat_map(|(m, sh)| m.to_be_bytes().into_iter().chain(sh.to_be_bytes()));
        scales.chain(self.body.iter().copied()).collect()
    }

    /// How the weights are stored.
    pub fn format(&self) -> RowFormat {
        self.format
    }

    /// Elements.
    pub fn columns(&self) -> usize {
        self.format.elements(self.body.len()).unwrap_or(0)
    }

    /// The integer weights.
    pub fn weights(&self) -> Vec<i32> {
        self.format.weights(&self.body).unwrap_or_default()
    }
}

impl Gen<'_> {
    pub(super) fn format(&mut self) -> RowFormat {
        *RowFormat::ALL.choose(self.rng).unwrap_or(&RowFormat::I8)
    }

    /// A row length: mostly short, sometimes so long that the accumulator's bound can be reached.
    pub(super) fn columns(&mut self, format: RowFormat) -> u32 {
        let longest = match format {
            RowFormat::I8 => return self.long(2100),
            RowFormat::Q4 => 2144,
            RowFormat::Q8 => 8288,
        };
        match self.rng.random_range(0..64) {
            0 => longest,
            1..4 => *[512, 576, 1024, 1536].choose(self.rng).unwrap_or(&576),
            _ => 32 * self.size(5),
        }
    }

    /// A row for activations `a` whose ‖w‖₁ is at most `limit`, and whose scales match an activation exponent of `other`.
    pub(super) fn row(&mut self, format: RowFormat, a: &[i64], limit: i64, columns: u32, other: i64) -> Row {
        // Mostly aligned signs reach the accumulator's bound.
        let aligned = self.rng.random_range(0..4) == 0;
        let body = match format {
            RowFormat::I8 => self.plain(a, limit, aligned),
            RowFormat::Q4 => self.nibbles(a, limit, aligned),
            RowFormat::Q8 => self.scaled(a, limit, aligned),
        };
        let scales = (0..columns).map(|_| {
            let m = if self.rng.random_range(0..16) == 0 { self.value((0, 65535)) } else { self.mantissa() };
            (m as u16, (-self.exponent(-other)) as i16)
        });
        Row { scales: scales.collect(), format, body }
    }

    fn bytes(&mut self, a: &[i64], aligned: bool) -> Vec<i64> {
        let mut w = self.vector(a.len(), (-127, 127));
        if aligned {
            w.iter_mut().zip(a).for_each(|(w, a)| *w = if *a < 0 { -w.abs() } else { w.abs() });
        }
        w
    }

    fn plain(&mut self, a: &[i64], limit: i64, aligned: bool) -> Vec<u8> {
        let mut norm = 0;
        let fit = |w: i64| {
            let w = if norm + w.abs() > limit { 0 } else { w };
            norm += w.abs();
            w as u8
        };
        self.bytes(a, aligned).into_iter().map(fit).collect()
    }

    fn nibbles(&mut self, a: &[i64], limit: i64, aligned: bool) -> Vec<u8> {
        let groups = a.len() / GROUP;
        let top = i64::from(GROUP_SCALE_MAX);
        let mut s = self.vector(groups, (-top, top));
        let mut m = self.vector(groups, (-32767, 32767));
        let mut q = self.vector(a.len(), (0, 15));
        let extreme = self.rng.random_range(0..4) == 0;
        let mut left = limit;
        for g in 0..groups {
            let at = g * GROUP..(g + 1) * GROUP;
            if aligned {
                let sign = if a[at.start] < 0 { -1 } else { 1 };
                (s[g], m[g]) = if extreme { (top, 32767 * sign) } else { (s[g], m[g].abs() * sign) };
                q[at.clone()].iter_mut().zip(&a[at.clone()]).for_each(|(q, a)| {
                    *q = if (*a < 0) == (s[g] < 0) { 15 } else { 0 };
                });
            }
            let norm: i64 = q[at].iter().map(|q| (s[g] * q + 2 * m[g]).abs()).sum();
            if norm <= left {
                left -= norm;
            } else {
                // As much as is left, and nothing after it.
                s[g] = 0;
                m[g] = (left / 64).min(32767) * if m[g] < 0 { -1 } else { 1 };
                left -= 64 * m[g].abs();
            }
        }
        let halves = q.chunks(GROUP).flat_map(|q| (0..16).map(|j| (q[j] | (q[j + 16] << 4)) as u8));
        s.iter().chain(&m).flat_map(|v| (*v as i16).to_be_bytes()).chain(halves).collect()
    }

    fn scaled(&mut self, a: &[i64], limit: i64, aligned: bool) -> Vec<u8> {
        let groups = a.len() / GROUP;
        let top = i64::from(GROUP_SCALE_MAX);
        let mut s = self.vector(groups, if aligned { (0, top) } else { (-top, top) });
        let mut q = self.bytes(a, aligned);
        if aligned && self.rng.random_range(0..4) == 0 {
            s.fill(top);
            q.iter_mut().for_each(|q| *q = if *q < 0 { -127 } else { 127 });
        }
        let mut left = limit;
        for (s, q) in s.iter_mut().zip(q.chunks(GROUP)) {
            let norm: i64 = q.iter().map(|q| q.abs()).sum();
            *s = (left / norm.max(1)).min(s.abs()) * s.signum();
            left -= norm * s.abs();
        }
        s.iter().flat_map(|v| (*v as i16).to_be_bytes()).chain(q.iter().map(|q| *q as u8)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::draw::SplitMix;
    use super::*;

    #[test]
    fn rows_stay_within_their_norm_and_reach_it() {
        for format in RowFormat::ALL {
            let (mut rng, limit) = (SplitMix(1), format.bound() as i64 / 32767);
            let mut g = Gen { rng: &mut rng };
            let mut largest = 0;
            for _ in 0..4000 {
                let columns = g.columns(format);
                let a = vec![32767; columns as usize];
                let row = g.row(format, &a, limit, 1, 0);
                assert_eq!((row.columns(), row.weights().len()), (columns as usize, columns as usize));
                let norm: i64 = row.weights().iter().map(|w| i64::from(w.abs())).sum();
                assert!(norm <= limit, "{format:?}");
                largest = largest.max(norm);
            }
            assert!(largest as f64 > limit as f64 * 0.99, "{format:?} reaches only {largest} of {limit}");
        }
    }
}
