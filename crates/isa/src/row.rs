//! How a weight row stores its integer weights.

use alloc::vec::Vec;

/// Elements of a group of the block formats.
pub const GROUP: usize = 32;
/// Largest magnitude of a group's scale.
pub const GROUP_SCALE_MAX: i32 = 4095;

/// The format of a matrix's rows: parameter p3 of `EMBED` and `LINEAR`. After its scale pairs a row of K elements holds
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RowFormat {
    /// K elements I8: w = q.
    #[default]
    I8 = 0,
    /// Groups of 32 with scale and minimum: K/32 scales s I16, K/32 minima m I16, K/2 bytes. Byte j of a group's sixteen holds element j
    /// in its low and element j + 16 in its high half, q in 0…15: w = s·q + 2m.
    Q4 = 1,
    /// Groups of 32 with a scale: K/32 scales s I16, K elements q I8: w = s·q.
    Q8 = 2,
}

impl RowFormat {
    /// Every format.
    pub const ALL: [RowFormat; 3] = [RowFormat::I8, RowFormat::Q4, RowFormat::Q8];

    /// The format with this code.
    pub const fn from_code(code: i32) -> Option<Self> {
        match code {
            0 => Some(RowFormat::I8),
            1 => Some(RowFormat::Q4),
            2 => Some(RowFormat::Q8),
            _ => None,
        }
    }

    /// Its name in the specification.
    pub const fn name(self) -> &'static str {
        match self {
            RowFormat::I8 => "I8",
            RowFormat::Q4 => "Q4",
            RowFormat::Q8 => "Q8",
        }
    }

    /// Whether rows of `k` elements can have this format.
    pub const fn fits(self, k: usize) -> bool {
        k > 0 && (matches!(self, RowFormat::I8) || k.is_multiple_of(GROUP))
    }

    /// Bytes of a row of `k` elements without its scale pairs.
    pub const fn bytes(self, k: usize) -> usize {
        match self {
            RowFormat::I8 => k,
            RowFormat::Q4 => k / GROUP * 4 + k / 2,
            RowFormat::Q8 => k / GROUP * 2 + k,
        }
    }

    /// Elements of a row of `bytes` bytes without its scale pairs; `None` if no row has that length.
    pub const fn elements(self, bytes: usize) -> Option<usize> {
        let k = match self {
            RowFormat::I8 => bytes,
            RowFormat::Q4 => bytes / 20 * GROUP,
            RowFormat::Q8 => bytes / 34 * GROUP,
        };
        if self.bytes(k) == bytes { Some(k) } else { None }
    }

    /// By how many bits `LINEAR` narrows the accumulator: its magnitude stays below 2^(31 + shift) − 2^shift.
    pub const fn shift(self) -> u32 {
        match self {
            RowFormat::I8 => 0,
            RowFormat::Q4 => 12,
            RowFormat::Q8 => 16,
        }
    }

    /// Largest ‖w‖₁·max|a| that a row may have.
    pub const fn bound(self) -> u64 {
        ((1 << 31) - 1) << self.shift()
    }

    /// Integer weight k of a row of `n` elements; 0 outside of it. `row` holds what follows the scale pairs.
    pub fn weight(self, row: &[u8], n: usize, k: usize) -> i32 {
        let groups = n / GROUP;
        let i16_at = |i: usize| match row.get(2 * i..2 * i + 2) {
            Some(b) => i32::from(i16::from_be_bytes([b[0], b[1]])),
            None => 0,
        };
        let byte = |i: usize| row.get(i).copied().unwrap_or(0);
        let g = k / GROUP;
        match self {
            RowFormat::I8 => i32::from(byte(k) as i8),
            RowFormat::Q4 => {
                let b = byte(4 * groups + 16 * g + k % 16);
                let q = if k % GROUP < 16 { b & 15 } else { b >> 4 };
                i16_at(g) * i32::from(q) + 2 * i16_at(groups + g)
            }
            RowFormat::Q8 => i16_at(g) * i32::from(byte(2 * groups + k) as i8),
        }
    }

    /// All integer weights of a row; `None` if no row has that length.
    pub fn weights(self, row: &[u8]) -> Option<Vec<i32>> {
        let n = self.elements(row.len())?;
        Some((0..n).map(|k| self.weight(row, n, k)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts() {
        let mut row = alloc::vec![0u8; RowFormat::Q4.bytes(64)];
        assert_eq!(row.len(), 40);
        row[..2].copy_from_slice(&(-4095i16).to_be_bytes());
        row[2..4].copy_from_slice(&7i16.to_be_bytes());
        row[4..6].copy_from_slice(&100i16.to_be_bytes());
        row[6..8].copy_from_slice(&(-3i16).to_be_bytes());
        row[8] = 0xf2;
        row[8 + 16 + 15] = 0x51;
        let w = RowFormat::Q4.weights(&row).unwrap();
        assert_eq!((w[0], w[16], w[1]), (-4095 * 2 + 200, -4095 * 15 + 200, 200));
        assert_eq!((w[32 + 15], w[32 + 31], w[32]), (7 - 6, 35 - 6, -6));

        let mut row = alloc::vec![0u8; RowFormat::Q8.bytes(32)];
        row[..2].copy_from_slice(&4095i16.to_be_bytes());
        row[2] = 0x80;
        assert_eq!(RowFormat::Q8.weights(&row).unwrap()[..2], [-4095 * 128, 0]);
        assert_eq!(RowFormat::I8.weights(&[255, 1]).unwrap(), [-1, 1]);
        assert_eq!(RowFormat::Q4.weights(&[0; 39]), None);
        assert_eq!(RowFormat::Q8.elements(34 * 5 + 1), None);
    }

    #[test]
    fn lengths_are_inverse() {
        for f in RowFormat::ALL {
            for k in [32, 64, 576, 14336] {
                assert_eq!(f.elements(f.bytes(k)), Some(k));
                assert!(f.fits(k));
            }
        }
        assert!(!RowFormat::Q4.fits(33) && RowFormat::I8.fits(33) && !RowFormat::I8.fits(0));
    }
}
