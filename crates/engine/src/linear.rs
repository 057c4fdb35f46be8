//! `LINEAR`: rows of int8 weights times a batch of activation vectors.

use rayon::prelude::*;
use sworn_isa::fixed::smulrs;

use crate::simd::{COLS, ROWS, Simd};

/// A scale pair: for activations m·2^e, for a weight row m·2^(−e).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// mantissa
    pub m: u32,
    /// exponent, of a weight row: right shift
    pub e: i32,
}

/// A weight matrix as stored: row after row, scale pairs (m u16, shift i16, big-endian) and then int8 elements.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    bytes: &'a [u8],
    rows: usize,
    columns: usize,
    pairs: usize,
    pair: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `pairs` scale pairs and `columns` elements, read with scale pair `pair`; `None` if `bytes` is not that long
    /// or there is no such pair.
    pub fn new(bytes: &'a [u8], rows: usize, columns: usize, pairs: usize, pair: usize) -> Option<Self> {
        let len = (4 * pairs).checked_add(columns)?.checked_mul(rows)?;
        (bytes.len() == len && pair < pairs).then_some(Matrix { bytes, rows, columns, pairs, pair })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    fn stored(&self, i: usize) -> Option<&'a [u8]> {
        let stride = 4 * self.pairs + self.columns;
        self.bytes.get(i.checked_mul(stride)?..)?.get(..stride)
    }

    /// The elements of row `i`.
    pub fn row(&self, i: usize) -> Option<&'a [i8]> {
        Some(bytemuck::cast_slice(&self.stored(i)?[4 * self.pairs..]))
    }

    /// The scale of row `i`.
    pub fn scale(&self, i: usize) -> Option<Scale> {
        let b = &self.stored(i)?[4 * self.pair..];
        let (m, e) = (u16::from_be_bytes([b[0], b[1]]), i16::from_be_bytes([b[2], b[3]]));
        Some(Scale { m: u32::from(m), e: i32::from(e) })
    }
}

/// Rows `[first, first + outs[0].len())` of `m` times each of `acts`, requantised.
pub(crate) fn rows(
    m: &Matrix<'_>,
    first: usize,
    acts: &[&[i16]],
    scales: &[Scale],
    outs: &mut [&mut [i32]],
    simd: Simd,
) {
    let n = outs.first().map_or(0, |o| o.len());
    let mut r = 0;
    while r < n {
        let block = if r + ROWS <= n { ROWS } else { 1 };
        let mut w: [&[i8]; ROWS] = [&[]; ROWS];
        let mut ws = [Scale { m: 0, e: 0 }; ROWS];
        for i in 0..block {
            let (Some(row), Some(scale)) = (m.row(first + r + i), m.scale(first + r + i)) else { return };
            (w[i], ws[i]) = (row, scale);
        }
        let mut c = 0;
        while c < acts.len() {
            if block == ROWS && c + COLS <= acts.len() {
                let mut acc = [[0; COLS]; ROWS];
                simd.tile(w, std::array::from_fn(|i| acts[c + i]), &mut acc);
                for j in 0..COLS {
                    let column: [i32; ROWS] = std::array::from_fn(|i| acc[i][j]);
                    requantise(&column, &ws, scales[c + j], &mut outs[c + j][r..r + ROWS]);
                }
                c += COLS;
            } else if block == ROWS {
                let mut acc = [[0; 1]; ROWS];
                simd.tile(w, [acts[c]], &mut acc);
                requantise(&acc.map(|a| a[0]), &ws, scales[c], &mut outs[c][r..r + ROWS]);
                c += 1;
            } else {
                let mut acc = [[0; 1]; 1];
                simd.tile([w[0]], [acts[c]], &mut acc);
                requantise(&acc[0], &ws, scales[c], &mut outs[c][r..r + 1]);
                c += 1;
            }
        }
        r += block;
    }
}

#[inline(always)]
fn requantise(acc: &[i32], rows: &[Scale], a: Scale, out: &mut [i32]) {
    for ((o, acc), w) in out.iter_mut().zip(acc).zip(rows) {
        *o = smulrs(*acc, a.m.wrapping_mul(w.m), w.e.wrapping_sub(a.e));
    }
}

/// One `LINEAR` over a batch: `outs[p]` receives all rows times `acts[p]`.
pub(crate) struct Job<'a, 'o> {
    pub(crate) matrix: Matrix<'a>,
    pub(crate) acts: Vec<&'a [i16]>,
    pub(crate) scales: Vec<Scale>,
    pub(crate) outs: Vec<&'o mut [i32]>,
}

/// Runs independent jobs, split by rows over the threads of the current pool: a weight row is read once for the whole batch.
pub(crate) fn run(mut jobs: Vec<Job<'_, '_>>, simd: Simd) {
    struct Task<'a, 'o> {
        matrix: Matrix<'a>,
        first: usize,
        acts: &'o [&'a [i16]],
        scales: &'o [Scale],
        outs: Vec<&'o mut [i32]>,
    }
    // Enough tasks that threads finish together, few enough that a row block is worth handing over.
    let total: usize = jobs.iter().map(|j| j.matrix.rows).sum();
    let block = (total / (4 * rayon::current_num_threads())).clamp(16, 1024).next_multiple_of(ROWS);
    let mut tasks: Vec<Task<'_, '_>> = Vec::new();
    for Job { matrix, acts, scales, outs } in &mut jobs {
        let from = tasks.len();
        for out in outs {
            for (i, part) in out.chunks_mut(block).enumerate() {
                if from + i == tasks.len() {
                    let outs = Vec::with_capacity(acts.len());
                    tasks.push(Task { matrix: *matrix, first: i * block, acts, scales, outs });
                }
                tasks[from + i].outs.push(part);
            }
        }
    }
    let run = |t: &mut Task<'_, '_>| rows(&t.matrix, t.first, t.acts, t.scales, &mut t.outs, simd);
    if rayon::current_num_threads() == 1 {
        tasks.iter_mut().for_each(run);
    } else {
        tasks.par_iter_mut().with_max_len(1).for_each(run);
    }
}
