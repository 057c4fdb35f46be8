//! An activation vector in the forms that the dot products read.

use sworn_isa::{GROUP, RowFormat};

use crate::tensor::View;

/// Elements that a step of the Q4 kernels takes: four groups, whose sixteen bytes each fill a vector.
pub(crate) const Q4_STEP: usize = 4 * GROUP;
/// Elements that a step of the Q8 kernels takes.
pub(crate) const Q8_STEP: usize = 2 * GROUP;
/// Group sums come in whole vectors of this many.
pub(crate) const SUMS: usize = 32;

/// Signed high bytes and unsigned low bytes of an int16 vector: a = 256·hi + lo.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes {
    pub(crate) hi: Vec<i8>,
    pub(crate) lo: Vec<u8>,
}

/// One activation vector; everything is padded with zeros.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activation {
    /// K elements as int16, padded to whole groups.
    pub(crate) wide: Vec<i16>,
    /// Whether the elements were int8; [`Bytes::hi`] then holds them and [`Bytes::lo`] nothing.
    pub(crate) narrow: bool,
    /// For Q4 rows: of four groups first their elements 0…15, then their elements 16…31.
    pub(crate) q4: Bytes,
    /// For Q8 rows: in order.
    pub(crate) q8: Bytes,
    /// The sum of each group is 1024·coarse + fine, fine in 0…1023, padded to [`SUMS`].
    pub(crate) coarse: Vec<i16>,
    /// See [`Self::coarse`].
    pub(crate) fine: Vec<i16>,
    /// The sum of [`Bytes::hi`] over each group, padded to [`SUMS`].
    pub(crate) high_sums: Vec<i16>,
}

/// How rows are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// As they are stored, with one vector at a time.
    Rows,
    /// Unpacked, see [`crate::panel`].
    Panels,
    /// Rearranged, see [`crate::packed`].
    Blocks,
}

/// Which forms are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forms {
    /// [`Activation::q4`]
    pub(crate) q4: bool,
    /// [`Activation::q8`] and [`Activation::high_sums`]
    pub(crate) q8: bool,
    /// [`Activation::coarse`] and [`Activation::fine`]
    pub(crate) sums: bool,
}

impl Forms {
    /// Adds what rows of `format` are multiplied with.
    pub(crate) fn add(&mut self, format: RowFormat, kernel: Kernel) {
        self.q4 |= format == RowFormat::Q4 && kernel == Kernel::Rows;
        self.q8 |= format == RowFormat::Q8 && kernel == Kernel::Rows || kernel == Kernel::Blocks;
        self.sums |= format == RowFormat::Q4;
    }
}

impl Activation {
    /// Takes the last `k` elements of a quantised tensor; `None` if it is none or too short.
    pub(crate) fn set(&mut self, t: View<'_>, k: usize, forms: Forms) -> Option<()> {
        let padded = k.next_multiple_of(GROUP);
        self.wide.clear();
        match t {
            View::I16(a) => self.wide.extend_from_slice(&a[a.len().checked_sub(k)?..]),
            View::I8(a) => self.wide.extend(a[a.len().checked_sub(k)?..].iter().map(|v| i16::from(*v))),
            _ => return None,
        }
        self.wide.resize(padded, 0);
        self.narrow = matches!(t, View::I8(_));
        if forms.q4 {
            self.split_q4();
        }
        if forms.q8 {
            self.split_q8();
        }
        if forms.sums {
            self.sum();
        }
        Some(())
    }

    #[inline(always)]
    fn split_q4(&mut self) {
        let n = self.wide.len().next_multiple_of(Q4_STEP);
        let Bytes { hi, lo } = &mut self.q4;
        hi.resize(n, 0);
        lo.resize(n, 0);
        for ((a, hi), lo) in
            self.wide.chunks(Q4_STEP).zip(hi.chunks_exact_mut(Q4_STEP)).zip(lo.chunks_exact_mut(Q4_STEP))
        {
            if a.len() < Q4_STEP {
                hi.fill(0);
                lo.fill(0);
            }
            for (g, a) in a.as_chunks::<GROUP>().0.iter().enumerate() {
                for (half, a) in a.as_chunks::<16>().0.iter().enumerate() {
                    let at = 64 * half + 16 * g;
                    halves(a, self.narrow, &mut hi[at..at + 16], &mut lo[at..at + 16]);
                }
            }
        }
    }

    #[inline(always)]
    fn split_q8(&mut self) {
        let n = self.wide.len().next_multiple_of(Q8_STEP);
        let Bytes { hi, lo } = &mut self.q8;
        hi.clear();
        hi.resize(n, 0);
        lo.clear();
        lo.resize(n, 0);
        halves(&self.wide, self.narrow, hi, lo);
        self.high_sums.clear();
        let sum = |g: &[i8; GROUP]| g.iter().fold(0i16, |a, v| a.wrapping_add(i16::from(*v)));
        self.high_sums.extend(hi.as_chunks::<GROUP>().0.iter().map(sum));
        self.high_sums.resize(self.high_sums.len().next_multiple_of(SUMS), 0);
    }

    #[inline(always)]
    fn sum(&mut self) {
        self.coarse.clear();
        self.fine.clear();
        for g in self.wide.as_chunks::<GROUP>().0 {
            // At most 2^20.
            let sum = g.iter().fold(0i32, |a, v| a.wrapping_add(i32::from(*v)));
            self.coarse.push((sum >> 10) as i16);
            self.fine.push((sum & 1023) as i16);
        }
        self.coarse.resize(self.coarse.len().next_multiple_of(SUMS), 0);
        self.fine.resize(self.fine.len().next_multiple_of(SUMS), 0);
    }
}

#[inline(always)]
fn halves(a: &[i16], narrow: bool, hi: &mut [i8], lo: &mut [u8]) {
    if narrow {
        hi.iter_mut().zip(a).for_each(|(hi, a)| *hi = *a as i8);
    } else {
        for ((hi, lo), a) in hi.iter_mut().zip(lo).zip(a) {
            (*hi, *lo) = ((*a >> 8) as i8, *a as u8);
        }
    }
}
