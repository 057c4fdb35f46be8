//! Weight matrices in the layout that [`crate::kernels::matrix`] reads.

use sworn_isa::{GROUP, RowFormat};

use crate::GpuError;
use crate::gpu::{Buffer, Gpu};

/// A matrix as a model stores it: rows of big-endian scale pairs (m u16, sh i16) and weights in the rows' format.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Scale pairs of a row.
    pub scales: usize,
    /// What follows the scale pairs.
    pub format: RowFormat,
    /// All rows, one after the other.
    pub bytes: &'a [u8],
}

impl PackedRows<'_> {
    fn row_bytes(&self) -> usize {
        4 * self.scales + self.format.bytes(self.cols)
    }

    /// Words of weights per row.
    fn words(&self) -> usize {
        match self.format {
            RowFormat::I8 | RowFormat::Q8 => self.cols.div_ceil(4),
            RowFormat::Q4 => self.cols / 8,
        }
    }

    /// Words of group scales per row.
    fn groups(&self) -> usize {
        match self.format {
            RowFormat::I8 => 0,
            RowFormat::Q4 | RowFormat::Q8 => self.cols / GROUP,
        }
    }
}

/// A matrix on the device, or several under each other that multiply the same vector.
pub(crate) struct Matrix {
    pub(crate) parts: Vec<Part>,
    pub(crate) format: RowFormat,
    /// Words of weights per row.
    pub(crate) words_per_row: u32,
}

/// As many rows as one binding holds.
pub(crate) struct Part {
    pub(crate) first: u32,
    pub(crate) rows: u32,
    /// Quadruples of rows.
    pub(crate) quads: u32,
    pub(crate) words: Buffer,
    /// Scales (and minima) of groups; for rows without groups the words once more, which nothing reads.
    pub(crate) groups: Buffer,
    pub(crate) scales: Buffer,
}

impl Part {
    pub(crate) fn padded_rows(&self) -> u32 {
        4 * self.quads
    }
}

impl Matrix {
    /// Packs and uploads, at most `most_rows` to a binding. `stack` is at least one matrix; all have the same columns, scale
    /// pairs and format.
    pub(crate) fn upload(gpu: &Gpu, stack: &[PackedRows<'_>], most_rows: usize) -> Result<Self, GpuError> {
        let Some(m) = stack.first() else { return Err(GpuError::Unsupported("a matrix without rows".into())) };
        let rows: usize = stack.iter().map(|m| m.rows).sum();
        let words_per_row = m.words();
        let per_part = (gpu.max_words() / words_per_row.max(m.scales).max(1)).min(most_rows) / 4 * 4;
        let alike = |o: &PackedRows<'_>| {
            (o.cols, o.scales, o.format) == (m.cols, m.scales, m.format) && o.bytes.len() == o.rows * o.row_bytes()
        };
        if per_part == 0 || !m.format.fits(m.cols) || !stack.iter().all(alike) {
            return Err(GpuError::Unsupported(format!(
                "a matrix of {rows} rows and {} columns in format {}",
                m.cols,
                m.format.name()
            )));
        }
        let all: Vec<&[u8]> = stack.iter().flat_map(|m| m.bytes.chunks_exact(m.row_bytes())).collect();
        let mut parts = Vec::new();
        for first in (0..rows).step_by(per_part) {
            let own = &all[first..rows.min(first + per_part)];
            let packed = pack(m, own);
            let words = gpu.upload(packed.words)?;
            parts.push(Part {
                first: first as u32,
                rows: own.len() as u32,
                quads: own.len().div_ceil(4) as u32,
                groups: if packed.groups.is_empty() { words.clone() } else { gpu.upload(packed.groups)? },
                words,
                scales: gpu.upload(packed.scales)?,
            });
        }
        Ok(Matrix { parts, format: m.format, words_per_row: words_per_row as u32 })
    }
}

/// A run of rows as the device holds it, each list padded with zeros to whole quadruples of rows.
struct Packed {
    /// `[word][row]`: four elements to a word, or eight where they have four bits.
    words: Vec<i32>,
    /// `[group][row]`: the scale in the low half, the minimum in the high half.
    groups: Vec<i32>,
    /// `[column][row]`: the mantissa in the low half, the shift in the high half.
    scales: Vec<i32>,
}

fn pack(m: &PackedRows<'_>, rows: &[&[u8]]) -> Packed {
    let padded = rows.len().next_multiple_of(4);
    let (words, groups) = (m.words(), m.groups());
    let mut out =
        Packed { words: vec![0; words * padded], groups: vec![0; groups * padded], scales: vec![0; m.scales * padded] };
    let half = |b: &[u8], i: usize| u32::from(u16::from_be_bytes([b[2 * i], b[2 * i + 1]]));
    // Sixteen rows at a time, so that what is written to stays in the cache.
    for (band, rows) in rows.chunks(16).enumerate() {
        for (row, bytes) in rows.iter().enumerate().map(|(i, b)| (16 * band + i, *b)) {
            let (pairs, rest) = bytes.split_at(4 * m.scales);
            for column in 0..m.scales {
                let (mantissa, shift) = (half(pairs, 2 * column), half(pairs, 2 * column + 1));
                out.scales[column * padded + row] = (shift << 16 | mantissa) as i32;
            }
            let halves = match m.format {
                RowFormat::I8 => 0,
                RowFormat::Q4 => 2 * groups,
                RowFormat::Q8 => groups,
            };
            let (heads, elements) = rest.split_at(2 * halves);
            for g in 0..groups {
                let minimum = if m.format == RowFormat::Q4 { half(heads, groups + g) } else { 0 };
                out.groups[g * padded + row] = (minimum << 16 | half(heads, g)) as i32;
            }
            for (k, four) in elements.chunks(4).enumerate() {
                let mut b = [0u8; 4];
                b[..four.len()].copy_from_slice(four);
                out.words[k * padded + row] = i32::from_le_bytes(b);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_padded_with_zeros() {
        // Two rows of one scale pair and five elements.
        let bytes = [0x80, 0x01, 0xFF, 0xFE, 1, 2, 3, 4, 5, 0x90, 0x02, 0, 7, 0xFF, 0xFE, 0xFD, 0xFC, 0xFB];
        let m = PackedRows { rows: 2, cols: 5, scales: 1, format: RowFormat::I8, bytes: &bytes };
        let rows: Vec<&[u8]> = bytes.chunks_exact(9).collect();
        let packed = pack(&m, &rows);
        assert_eq!(packed.words, [0x0403_0201, 0xFCFD_FEFFu32 as i32, 0, 0, 5, 0xFB, 0, 0]);
        assert_eq!(packed.scales, [0xFFFE_8001u32 as i32, 0x0007_9002, 0, 0]);
        assert!(packed.groups.is_empty());
        let packed = pack(&m, &rows[1..]);
        assert_eq!(packed.words, [0xFCFD_FEFFu32 as i32, 0, 0, 0, 0xFB, 0, 0, 0]);
        assert_eq!(packed.scales, [0x0007_9002, 0, 0, 0]);
    }

    #[test]
    fn groups_keep_their_scales_and_minima() {
        for (format, words) in [(RowFormat::Q4, 8), (RowFormat::Q8, 16)] {
            let mut row: Vec<u8> = vec![0x80, 0x01, 0, 9];
            row.extend((0..format.bytes(64)).map(|i| i as u8));
            let m = PackedRows { rows: 1, cols: 64, scales: 1, format, bytes: &row };
            let packed = pack(&m, &[&row]);
            assert_eq!(packed.words.len(), 4 * words);
            assert_eq!(packed.scales[0], 0x0009_8001);
            let (group, first) = match format {
                // Two scales, two minima: the first of each is in bytes 0 and 4.
                RowFormat::Q4 => (0x0405_0001, 0x0B0A_0908),
                _ => (0x0000_0001, 0x0706_0504),
            };
            assert_eq!((packed.groups[0], packed.words[0]), (group, first), "{}", format.name());
        }
    }
}
