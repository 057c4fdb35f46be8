//! Weight matrices in the layout that [`crate::kernels::matrix`] reads.

use crate::GpuError;
use crate::gpu::{Buffer, Gpu};

/// A matrix as a model stores it: rows of big-endian scale pairs (m u16, sh i16) and int8 elements.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Scale pairs of a row.
    pub scales: usize,
    /// All rows, one after the other.
    pub bytes: &'a [u8],
}

/// A matrix on the device.
pub(crate) struct Matrix {
    pub(crate) parts: Vec<Part>,
    /// Words of four elements per row.
    pub(crate) words_per_row: u32,
}

/// As many rows as one binding holds.
pub(crate) struct Part {
    pub(crate) first: u32,
    pub(crate) rows: u32,
    /// Quadruples of rows.
    pub(crate) quads: u32,
    pub(crate) words: Buffer,
    pub(crate) scales: Buffer,
}

impl Part {
    pub(crate) fn padded_rows(&self) -> u32 {
        4 * self.quads
    }
}

impl Matrix {
    /// Packs and uploads, at most `most_rows` to a binding.
    pub(crate) fn upload(gpu: &Gpu, m: PackedRows<'_>, most_rows: usize) -> Result<Self, GpuError> {
        let words_per_row = m.cols.div_ceil(4);
        let per_part = (gpu.max_words() / words_per_row.max(m.scales)).min(most_rows) / 4 * 4;
        if per_part == 0 || m.bytes.len() != m.rows * (4 * m.scales + m.cols) {
            return Err(GpuError::Unsupported(format!("a matrix of {} rows and {} columns", m.rows, m.cols)));
        }
        let mut parts = Vec::new();
        for first in (0..m.rows).step_by(per_part) {
            let rows = per_part.min(m.rows - first);
            let quads = rows.div_ceil(4);
            let (words, scales) = pack(m, first, rows);
            parts.push(Part {
                first: first as u32,
                rows: rows as u32,
                quads: quads as u32,
                words: gpu.upload(words)?,
                scales: gpu.upload(scales)?,
            });
        }
        Ok(Matrix { parts, words_per_row: words_per_row as u32 })
    }
}

/// Words `[k/4][row]` and scales `[column][row]` of a run of rows, both padded with zeros to whole quadruples of rows.
fn pack(m: PackedRows<'_>, first: usize, rows: usize) -> (Vec<i32>, Vec<i32>) {
    let padded = rows.next_multiple_of(4);
    let row_bytes = 4 * m.scales + m.cols;
    let mut words = vec![0i32; m.cols.div_ceil(4) * padded];
    let mut scales = vec![0i32; m.scales * padded];
    // Sixteen rows at a time, so that what is written to stays in the cache.
    for band in (0..rows).step_by(16) {
        for row in band..rows.min(band + 16) {
            let bytes = &m.bytes[(first + row) * row_bytes..][..row_bytes];
            let (pairs, elements) = bytes.split_at(4 * m.scales);
            for (column, b) in pairs.chunks_exact(4).enumerate() {
                let (mantissa, shift) = (u16::from_be_bytes([b[0], b[1]]), u16::from_be_bytes([b[2], b[3]]));
                scales[column * padded + row] = (u32::from(shift) << 16 | u32::from(mantissa)) as i32;
            }
            for (k, four) in elements.chunks(4).enumerate() {
                let mut b = [0u8; 4];
                b[..four.len()].copy_from_slice(four);
                words[k * padded + row] = i32::from_le_bytes(b);
            }
        }
    }
    (words, scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_padded_with_zeros() {
        // Two rows of one scale pair and five elements.
        let bytes = [0x80, 0x01, 0xFF, 0xFE, 1, 2, 3, 4, 5, 0x90, 0x02, 0, 7, 0xFF, 0xFE, 0xFD, 0xFC, 0xFB];
        let m = PackedRows { rows: 2, cols: 5, scales: 1, bytes: &bytes };
        let (words, scales) = pack(m, 0, 2);
        assert_eq!(words, [0x0403_0201, 0xFCFD_FEFFu32 as i32, 0, 0, 5, 0xFB, 0, 0]);
        assert_eq!(scales, [0xFFFE_8001u32 as i32, 0x0007_9002, 0, 0]);
        let (words, scales) = pack(m, 1, 1);
        assert_eq!(words, [0xFCFD_FEFFu32 as i32, 0, 0, 0, 0xFB, 0, 0, 0]);
        assert_eq!(scales, [0x0007_9002, 0, 0, 0]);
    }
}
