//! Sixteen weight rows side by side, for many activation vectors at once.
//!
//! With one row per vector lane a product needs no sum across lanes, and the weights are unpacked once per batch.

use sworn_isa::{GROUP, RowFormat};

use crate::linear::Matrix;
use crate::simd::Simd;

/// Rows of a panel.
pub(crate) const BLOCK: usize = 16;
/// Most activation vectors that a pass over a panel multiplies.
pub(crate) const WIDTH: usize = 8;

/// Sixteen rows, unpacked.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    /// Elements 2j and 2j + 1 of row r at 2·(16·j + r), K padded with zeros to whole groups.
    pub(crate) weights: Vec<i16>,
    /// Scale of group g of row r at 16·g + r; empty where rows have none.
    pub(crate) scales: Vec<i32>,
    /// The minima, laid out as the weights are, groups taking the place of elements; empty where rows have none.
    minima: Option<Box<Panel>>,
}

impl Panel {
    /// Unpacks rows `first…first + 15` of a matrix; rows that it does not have are zero.
    pub(crate) fn load(&mut self, m: &Matrix<'_>, first: usize, simd: Simd) {
        let rows: [&[u8]; BLOCK] = std::array::from_fn(|r| m.data(first + r).unwrap_or_default());
        let groups = m.columns().div_ceil(GROUP);
        // Every element is written, those beyond a row as zero.
        self.weights.resize(groups * GROUP * BLOCK, 0);
        self.scales.clear();
        let format = m.format();
        let elements = match format {
            RowFormat::I8 => 0,
            RowFormat::Q4 => 4 * groups,
            RowFormat::Q8 => 2 * groups,
        };
        let q = rows.map(|r| r.get(elements..).unwrap_or_default());
        simd.unpack(q, format == RowFormat::Q4, &mut self.weights);
        if format == RowFormat::I8 {
            self.minima = None;
            return;
        }
        let word = |row: &[u8], i: usize| match row.get(2 * i..2 * i + 2) {
            Some(b) => i16::from_be_bytes([b[0], b[1]]),
            None => 0,
        };
        self.scales.resize(groups * BLOCK, 0);
        for (r, row) in rows.iter().enumerate() {
            for g in 0..groups {
                self.scales[g * BLOCK + r] = i32::from(word(row, g));
            }
        }
        if format == RowFormat::Q8 {
            self.minima = None;
            return;
        }
        let minima = self.minima.get_or_insert_default();
        // A scale of one has every 32 products added up in 64 bits.
        minima.scales.clear();
        minima.scales.resize(groups.div_ceil(GROUP) * BLOCK, 1);
        minima.weights.clear();
        minima.weights.resize(groups.next_multiple_of(GROUP) * BLOCK, 0);
        for (r, row) in rows.iter().enumerate() {
            for g in 0..groups {
                minima.weights[2 * (BLOCK * (g / 2) + r) + g % 2] = word(row, groups + g);
            }
        }
    }

    /// Adds up each of the rows times each activation vector: `wide` and, for Q4 rows, the group sums.
    pub(crate) fn times<const P: usize>(
        &self,
        wide: [&[i16]; P],
        coarse: [&[i16]; P],
        fine: [&[i16]; P],
        out: &mut [[i64; BLOCK]; P],
        simd: Simd,
    ) {
        simd.panel(self, wide, out);
        let Some(minima) = &self.minima else { return };
        let mut part = [[0; BLOCK]; P];
        for (sums, shift) in [(coarse, 11), (fine, 1)] {
            simd.panel(minima, sums, &mut part);
            for (out, part) in out.iter_mut().flatten().zip(part.iter().flatten()) {
                *out += part << shift;
            }
        }
    }
}
