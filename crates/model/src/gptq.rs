//! Error-compensated rounding of weights (GPTQ: Frantar et al., "Accurate Post-Training Quantization for Generative Pre-trained
//! Transformers", 2022).
//!
//! Rounding to nearest makes each weight's error small; what matters is the error of the products with typical inputs. Given the second
//! moments H = Σ x·xᵀ of a matrix's inputs over a calibration text, weights are rounded one after another, and the error of each is taken
//! up by those not yet rounded, in the way that minimises the expected squared error of the row's product.
//!
//! Floating point, but reproducible: every sum is formed in a fixed order, whatever the number of threads, from `+ − × ÷ √` alone.

use rayon::prelude::*;

use crate::Result;
use crate::quantise::{Scale, WEIGHT_MAX};

/// Gives the compensation for a matrix, by its number; `None`: its rows are rounded to nearest.
pub type Calibration<'a> = &'a mut dyn FnMut(u32) -> Result<Option<Compensation>>;

/// Added to the diagonal, relative to its mean: keeps directions that the text does not excite from blowing up.
const DAMPING: f64 = 0.01;
/// Rows that are rounded together, so that each element of the factor is read once for all of them.
const ROWS: usize = 8;

/// Second moments of a matrix's inputs.
#[derive(Clone, Debug)]
pub struct Moments {
    n: usize,
    /// n × n, of which the lower triangle is used.
    sums: Vec<f64>,
}

impl Moments {
    /// For inputs of `n` elements.
    pub fn new(n: usize) -> Self {
        Moments { n, sums: vec![0.0; n * n] }
    }

    /// Elements of an input.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether inputs have no elements.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Adds inputs, one after another in `xs`, in this order; lengths that are no multiple of [`Self::len`] lose their end.
    pub fn add(&mut self, xs: &[f64]) {
        let n = self.n;
        if n == 0 {
            return;
        }
        // Every entry is one sum over the inputs in their order, so threads may share the rows as they like.
        self.sums.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
            for x in xs.chunks_exact(n) {
                let xi = x[i];
                row[..=i].iter_mut().zip(x).for_each(|(h, xj)| *h += xi * xj);
            }
        });
    }

    /// What [`Compensation::round`] needs; `None` where the moments are not finite or too degenerate to be factored.
    pub fn compensation(&self) -> Option<Compensation> {
        let n = self.n;
        let at = |i: usize, j: usize| self.sums[i.max(j) * n + i.min(j)];
        let diagonal: Vec<f64> = (0..n).map(|i| at(i, i)).collect();
        let damping = DAMPING * diagonal.iter().sum::<f64>() / n.max(1) as f64;
        if !(damping.is_finite() && damping > 0.0) {
            return None;
        }
        // The most excited inputs first: their errors have the most others left to take them up.
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(|a, b| diagonal[*b as usize].total_cmp(&diagonal[*a as usize]).then(a.cmp(b)));
        // With H = V·Vᵀ, V upper triangular, the inverse is UᵀU for U = V⁻¹, upper triangular as well. The Cholesky factor of H with rows and columns
        // in reverse order is V in reverse order.
        let last = n.wrapping_sub(1);
        let mut l = vec![0f64; n * n];
        for i in 0..n {
            for j in 0..=i {
                let (a, b) = (order[last - i] as usize, order[last - j] as usize);
                l[i * n + j] = at(a, b) + if i == j { damping } else { 0.0 };
            }
        }
        cholesky(&mut l, n)?;
        let inverse = invert_lower(&l, n);
        // U[i][j] = inverse[last − i][last − j], j ≥ i.
        let mut factor = vec![0f32; n * n];
        for i in 0..n {
            for j in i..n {
                factor[i * n + j] = inverse[(last - i) * n + last - j] as f32;
            }
        }
        (0..n).all(|i| factor[i * n + i].is_normal()).then_some(Compensation { n, order, factor })
    }
}

/// The lower Cholesky factor of a symmetric matrix of which the lower triangle is given, in place.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for k in 0..n {
        let pivot = a[k * n + k];
        if !(pivot.is_finite() && pivot > 0.0) {
            return None;
        }
        let pivot = pivot.sqrt();
        a[k * n + k] = pivot;
        let (done, rest) = a.split_at_mut((k + 1) * n);
        let _ = done;
        rest.par_chunks_exact_mut(n).for_each(|row| row[k] /= pivot);
        let column: Vec<f64> = rest.chunks_exact(n).map(|row| row[k]).collect();
        rest.par_chunks_exact_mut(n).with_min_len(64).enumerate().for_each(|(i, row)| {
            let f = column[i];
            row[k + 1..k + 2 + i].iter_mut().zip(&column).for_each(|(a, c)| *a -= f * c);
        });
    }
    Some(())
}

/// The inverse of a lower triangular matrix.
fn invert_lower(l: &[f64], n: usize) -> Vec<f64> {
    // Column by column of the inverse, each stored as a row: solving L·x = e_j.
    let mut columns = vec![0f64; n * n];
    columns.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(j, x)| {
        for i in j..n {
            let sum = (j..i).fold(if i == j { 1.0 } else { 0.0 }, |sum, k| sum - l[i * n + k] * x[k]);
            x[i] = sum / l[i * n + i];
        }
    });
    let mut inverse = vec![0f64; n * n];
    for j in 0..n {
        for i in j..n {
            inverse[i * n + j] = columns[j * n + i];
        }
    }
    inverse
}

/// How the error of each weight of a row is spread over the weights after it.
#[derive(Clone, Debug)]
pub struct Compensation {
    n: usize,
    /// Weights in the order of their rounding.
    order: Vec<u32>,
    /// Upper triangular factor of the inverse moments, in that order.
    factor: Vec<f32>,
}

impl Compensation {
    /// Elements of a row.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether rows have no elements.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Rounds rows of weights, one after another in `rows`, to their grids `scales` within ±127. Rows and scales beyond the shorter of
    /// the two are left alone.
    pub fn round(&self, rows: &[f32], scales: &[Scale], q: &mut [i8]) {
        let n = self.n.max(1);
        let blocks = rows.par_chunks(ROWS * n).zip(scales.par_chunks(ROWS)).zip(q.par_chunks_mut(ROWS * n));
        blocks.for_each(|((rows, scales), q)| self.round_block(rows, scales, q));
    }

    fn round_block(&self, rows: &[f32], scales: &[Scale], q: &mut [i8]) {
        let n = self.n.max(1);
        let limit = WEIGHT_MAX as f32;
        let mut rest: Vec<Vec<f32>> = rows
            .chunks_exact(n)
            .zip(scales)
            .map(|(row, s)| {
                let s = s.value();
                self.order.iter().map(|k| (f64::from(row[*k as usize]) / s) as f32).collect()
            })
            .collect();
        for (i, k) in self.order.iter().enumerate() {
            let factor = &self.factor[i * n..(i + 1) * n];
            for (rest, q) in rest.iter_mut().zip(q.chunks_exact_mut(n)) {
                let w = rest[i];
                let rounded = (w + 0.5).floor().clamp(-limit, limit);
                q[*k as usize] = rounded as i8;
                let error = (w - rounded) / factor[i];
                rest[i + 1..].iter_mut().zip(&factor[i + 1..]).for_each(|(r, f)| *r -= error * f);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantise::quantise_row;

    struct Random(u64);

    impl Random {
        /// Roughly normal.
        fn next(&mut self) -> f64 {
            (0..6)
                .map(|_| {
                    self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (self.0 >> 40) as f64 / f64::from(1 << 24) - 0.5
                })
                .sum()
        }
    }

    /// Inputs whose elements go together, as activations do.
    fn inputs(n: usize, count: usize, r: &mut Random) -> Vec<f64> {
        let mixing: Vec<f64> = (0..n * 4).map(|_| r.next()).collect();
        let mut xs = Vec::new();
        for _ in 0..count {
            let hidden: Vec<f64> = (0..4).map(|_| r.next()).collect();
            for i in 0..n {
                let common: f64 = (0..4).map(|k| mixing[i * 4 + k] * hidden[k]).sum();
                xs.push(common + 0.1 * r.next());
            }
        }
        xs
    }

    #[test]
    fn products_with_typical_inputs_come_nearer() {
        let (n, rows) = (48, 20);
        let mut r = Random(1);
        let xs = inputs(n, 400, &mut r);
        let mut moments = Moments::new(n);
        moments.add(&xs);
        let compensation = moments.compensation().unwrap();
        let weights: Vec<f32> = (0..n * rows).map(|_| r.next() as f32).collect();
        // A coarse grid, so that rounding matters.
        let scale = Scale::nearest(0.2);
        let mut q = vec![0; n * rows];
        compensation.round(&weights, &vec![scale; rows], &mut q);
        let error = |q: &dyn Fn(usize) -> f64| -> f64 {
            let of = |row: usize, x: &[f64]| {
                (0..n).map(|k| (q(row * n + k) * scale.value() - f64::from(weights[row * n + k])) * x[k]).sum::<f64>()
            };
            xs.chunks(n).flat_map(|x| (0..rows).map(move |row| of(row, x).powi(2))).sum()
        };
        let nearest = error(&|i| (f64::from(weights[i]) / scale.value()).round());
        let compensated = error(&|i| f64::from(q[i]));
        assert!(compensated < nearest / 3.0, "{compensated} against {nearest}");
    }

    #[test]
    fn without_correlation_it_is_rounding_to_nearest() {
        let n = 16;
        let mut moments = Moments::new(n);
        for i in 0..n {
            let mut x = vec![0.0; n];
            x[i] = 1.0 + i as f64;
            moments.add(&x);
        }
        let mut r = Random(2);
        let row: Vec<f32> = (0..n).map(|_| r.next() as f32).collect();
        let mut want = vec![0; n];
        let (scale, _) = quantise_row(&row, &mut want);
        let mut q = vec![0; n];
        moments.compensation().unwrap().round(&row, &[scale], &mut q);
        assert_eq!(q, want);
    }

    #[test]
    fn the_same_whatever_the_threads() {
        let n = 40;
        let mut r = Random(3);
        let xs = inputs(n, 100, &mut r);
        let weights: Vec<f32> = (0..n * 30).map(|_| r.next() as f32).collect();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut moments = Moments::new(n);
                xs.chunks(n * 7).for_each(|xs| moments.add(xs));
                let mut q = vec![0; n * 30];
                moments.compensation().unwrap().round(&weights, &[Scale::nearest(0.05); 30], &mut q);
                q
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn degenerate_moments_are_refused() {
        assert!(Moments::new(8).compensation().is_none());
        let mut m = Moments::new(2);
        m.add(&[f64::NAN, 1.0]);
        assert!(m.compensation().is_none());
        assert!(Moments::new(0).compensation().is_none());
    }
}
