//! A weight matrix rearranged once so that sixteen rows lie side by side.
//!
//! With one row per 32-bit lane a product needs no sum across lanes, four elements of sixteen rows are one read, and what is
//! read stays as small as it was stored. Only `simd` levels that have a kernel for it use it.

use std::sync::OnceLock;

use sworn_isa::{GROUP, RowFormat};

use crate::linear::Matrix;
use crate::simd::Simd;
use crate::team::Team;

/// Rows of a block.
pub(crate) const BLOCK: usize = 16;
/// A block's parts begin at multiples of this.
const LINE: usize = 64;
/// Blocks that a thread takes at a time when a matrix is rearranged.
const TOGETHER: usize = 16;

/// Where the parts of a block lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) format: RowFormat,
    /// Groups of a row, the last one padded with zeros.
    pub(crate) groups: usize,
    /// Scale of group g of row r: little-endian words at 2·(16·g + r) from here. None in I8.
    pub(crate) scales: usize,
    /// Minima of groups 2j and 2j + 1 of row r: little-endian words at 4·(16·j + r) from here. Q4 alone.
    pub(crate) minima: usize,
    /// Bytes 4j…4j + 3 of row r's elements as they are stored at 4·(16·j + r) from here.
    pub(crate) weights: usize,
    /// Bytes of a block. It begins with the rows' scale pairs: sixteen mantissas, sixteen exponents, little-endian words.
    pub(crate) stride: usize,
}

impl Layout {
    pub(crate) fn new(format: RowFormat, columns: usize) -> Self {
        let groups = columns.div_ceil(GROUP);
        let scales = LINE;
        let minima = match format {
            RowFormat::I8 => scales,
            _ => scales + (2 * BLOCK * groups).next_multiple_of(LINE),
        };
        let (weights, each) = match format {
            RowFormat::Q4 => (minima + LINE * groups.div_ceil(2), GROUP / 2),
            _ => (minima, GROUP),
        };
        Layout { format, groups, scales, minima, weights, stride: weights + each * BLOCK * groups }
    }
}

/// A matrix with one of its scale pairs per row.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    columns: usize,
    pair: usize,
    bytes: Vec<u8>,
    /// Where the first block begins.
    from: usize,
}

impl Packed {
    pub(crate) fn new(m: &Matrix<'_>, team: &Team, simd: Simd) -> Self {
        let layout = Layout::new(m.format(), m.columns());
        let len = layout.stride * m.rows().div_ceil(BLOCK);
        let mut bytes = vec![0; len + LINE - 1];
        // Vectors that straddle lines would be read twice.
        let from = bytes.as_ptr().align_offset(LINE).min(LINE - 1);
        let parts = bytes[from..][..len].chunks_mut(layout.stride * TOGETHER).enumerate();
        team.each(parts, |(i, part)| {
            for (j, block) in part.chunks_exact_mut(layout.stride).enumerate() {
                fill(m, &layout, BLOCK * (TOGETHER * i + j), block, simd);
            }
        });
        Packed { layout, rows: m.rows(), columns: m.columns(), pair: m.pair(), bytes, from }
    }

    /// Whether this is `m`, if it was made of that weight matrix.
    fn fits(&self, m: &Matrix<'_>) -> bool {
        (self.layout.format, self.rows, self.columns, self.pair) == (m.format(), m.rows(), m.columns(), m.pair())
    }

    /// Rows 16·i … 16·i + 15, those beyond the last zero.
    #[inline]
    pub(crate) fn block(&self, i: usize) -> &[u8] {
        &self.bytes[self.from + i * self.layout.stride..][..self.layout.stride]
    }
}

fn fill(m: &Matrix<'_>, layout: &Layout, first: usize, block: &mut [u8], simd: Simd) {
    let groups = m.columns() / GROUP;
    let mut elements_of = [&[][..]; BLOCK];
    for r in 0..BLOCK.min(m.rows().saturating_sub(first)) {
        let (Some(row), Some(scale)) = (m.data(first + r), m.scale(first + r)) else { continue };
        block[2 * r..][..2].copy_from_slice(&(scale.m as u16).to_le_bytes());
        block[2 * (BLOCK + r)..][..2].copy_from_slice(&(scale.e as i16).to_le_bytes());
        let (words, elements) = row.split_at(match m.format() {
            RowFormat::I8 => 0,
            RowFormat::Q4 => 4 * groups,
            RowFormat::Q8 => 2 * groups,
        });
        let (scales, minima) = words.as_chunks::<2>().0.split_at(groups.min(words.len() / 2));
        for (to, s) in block[layout.scales + 2 * r..].chunks_mut(2 * BLOCK).zip(scales) {
            to[..2].copy_from_slice(&[s[1], s[0]]);
        }
        for (to, m) in block[layout.minima + 4 * r..].chunks_mut(4 * BLOCK).zip(minima.chunks(2)) {
            for (to, m) in to.as_chunks_mut::<2>().0.iter_mut().zip(m) {
                *to = [m[1], m[0]];
            }
        }
        elements_of[r] = elements;
    }
    simd.interleave(elements_of, &mut block[layout.weights..]);
}

/// A model's matrices, each rearranged when it is first multiplied.
#[derive(Debug, Default)]
pub(crate) struct Packs(Vec<OnceLock<Packed>>);

impl Packs {
    /// For `n` matrices.
    pub(crate) fn new(n: usize) -> Self {
        Packs((0..n).map(|_| OnceLock::new()).collect())
    }

    /// Matrix number `i`, which is `m`; `None` if it was rearranged with another of its scale pairs. `rearranged` is called right
    /// after it was.
    pub(crate) fn get(
        &self,
        i: usize,
        m: &Matrix<'_>,
        team: &Team,
        simd: Simd,
        rearranged: impl FnOnce(),
    ) -> Option<&Packed> {
        let packed = self.0.get(i)?.get_or_init(|| {
            let packed = Packed::new(m, team, simd);
            rearranged();
            packed
        });
        Some(packed).filter(|p| p.fits(m))
    }
}
