//! Dot products: the only code that depends on the processor, and the only `unsafe` of this crate.
//!
//! Sums of i8·i16 products wrap modulo 2^32, so every implementation gives the same bits in any order; the importer's bound
//! on the weights' norm keeps them from wrapping at all.

/// Rows of a tile.
pub(crate) const ROWS: usize = 4;
/// Activation vectors of a tile.
pub(crate) const COLS: usize = 4;

/// The instructions to use. Values other than [`Simd::SCALAR`] come from [`Simd::detect`] only, so holding one proves that the
/// processor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Simd {
    /// Portable code.
    pub const SCALAR: Simd = Simd(Level::Scalar);

    /// The best that this processor has.
    pub fn detect() -> Self {
        Self::all()[0]
    }

    /// Everything that this processor has, best first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 {
                all.push(Simd(Level::Avx512));
            }
            if avx2 {
                all.push(Simd(Level::Avx2));
            }
        }
        all.push(Simd::SCALAR);
        all
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512-vnni",
        }
    }

    /// `out[r][c] = Σ_k rows[r][k]·cols[c][k]` modulo 2^32, over the shortest length given.
    #[inline]
    pub(crate) fn tile<const R: usize, const C: usize>(
        self,
        rows: [&[i8]; R],
        cols: [&[i16]; C],
        out: &mut [[i32; C]; R],
    ) {
        let k = rows.iter().map(|r| r.len()).chain(cols.iter().map(|c| c.len())).min().unwrap_or(0);
        match self.0 {
            Level::Scalar => scalar(rows, cols, k, out),
            // SAFETY: `Level::Avx2` exists only where `detect` found AVX2, and every slice has at least `k` elements.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::tile_avx2(rows, cols, k, out) },
            // SAFETY: as above with AVX-512 F, BW, VL and VNNI.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::tile_avx512(rows, cols, k, out) },
        }
    }

    /// Runs `f` compiled for these instructions, so that its loops may be vectorised with them.
    #[inline]
    pub(crate) fn run<T>(self, f: impl FnOnce() -> T) -> T {
        match self.0 {
            Level::Scalar => f(),
            // SAFETY: the levels exist only where `detect` found AVX2 (AVX-512 implies that it did).
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => unsafe { x86::run_avx2(f) },
        }
    }
}

#[inline(always)]
fn scalar<const R: usize, const C: usize>(rows: [&[i8]; R], cols: [&[i16]; C], k: usize, out: &mut [[i32; C]; R]) {
    for (r, row) in rows.iter().enumerate() {
        for (c, col) in cols.iter().enumerate() {
            let products = row[..k].iter().zip(&col[..k]).map(|(w, a)| i32::from(*w) * i32::from(*a));
            out[r][c] = products.fold(0, i32::wrapping_add);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn run_avx2<T>(f: impl FnOnce() -> T) -> T {
        f()
    }

    /// # Safety
    /// The processor has AVX2; every slice has at least `k` elements.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn tile_avx2<const R: usize, const C: usize>(
        rows: [&[i8]; R],
        cols: [&[i16]; C],
        k: usize,
        out: &mut [[i32; C]; R],
    ) {
        // Two rows at a time: with sixteen registers more accumulators would be spilled.
        let mut r = 0;
        while r + 2 <= R {
            let mut two = [[0; C]; 2];
            // SAFETY: as this function's.
            unsafe { block_avx2([rows[r], rows[r + 1]], cols, k, &mut two) };
            out[r..r + 2].copy_from_slice(&two);
            r += 2;
        }
        if r < R {
            let mut one = [[0; C]; 1];
            // SAFETY: as this function's.
            unsafe { block_avx2([rows[r]], cols, k, &mut one) };
            out[r] = one[0];
        }
    }

    /// # Safety
    /// The processor has AVX2; every slice has at least `k` elements.
    #[target_feature(enable = "avx2")]
    unsafe fn block_avx2<const R: usize, const C: usize>(
        rows: [&[i8]; R],
        cols: [&[i16]; C],
        k: usize,
        out: &mut [[i32; C]; R],
    ) {
        let mut acc = [[_mm256_setzero_si256(); C]; R];
        let whole = k & !15;
        let mut i = 0;
        while i < whole {
            let mut a = [_mm256_setzero_si256(); C];
            for c in 0..C {
                // SAFETY: i + 16 ≤ k, within the slice.
                a[c] = unsafe { _mm256_loadu_si256(cols[c].as_ptr().add(i).cast()) };
            }
            for r in 0..R {
                // SAFETY: i + 16 ≤ k, within the slice.
                let w = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(rows[r].as_ptr().add(i).cast()) });
                for c in 0..C {
                    acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(w, a[c]));
                }
            }
            i += 16;
        }
        for r in 0..R {
            for c in 0..C {
                let v = acc[r][c];
                let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0x4E>(v));
                let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0xB1>(v));
                out[r][c] = _mm_cvtsi128_si32(v);
                for i in whole..k {
                    out[r][c] = out[r][c].wrapping_add(i32::from(rows[r][i]) * i32::from(cols[c][i]));
                }
            }
        }
    }

    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VNNI; every slice has at least `k` elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
    pub(super) unsafe fn tile_avx512<const R: usize, const C: usize>(
        rows: [&[i8]; R],
        cols: [&[i16]; C],
        k: usize,
        out: &mut [[i32; C]; R],
    ) {
        let mut acc = [[_mm512_setzero_si512(); C]; R];
        let mut i = 0;
        while i < k {
            // The last, partial step reads zeros beyond k.
            let mask: u32 = if k - i >= 32 { u32::MAX } else { (1 << (k - i)) - 1 };
            let mut a = [_mm512_setzero_si512(); C];
            for c in 0..C {
                // SAFETY: the mask keeps the read within i..k, within the slice.
                a[c] = unsafe { _mm512_maskz_loadu_epi16(mask, cols[c].as_ptr().add(i)) };
            }
            for r in 0..R {
                // SAFETY: as above.
                let w = _mm512_cvtepi8_epi16(unsafe { _mm256_maskz_loadu_epi8(mask, rows[r].as_ptr().add(i)) });
                for c in 0..C {
                    acc[r][c] = _mm512_dpwssd_epi32(acc[r][c], w, a[c]);
                }
            }
            i += 32;
        }
        for r in 0..R {
            for c in 0..C {
                out[r][c] = _mm512_reduce_add_epi32(acc[r][c]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check<const R: usize, const C: usize>(w: &[Vec<i8>], a: &[Vec<i16>]) -> Result<(), TestCaseError> {
        let rows: [&[i8]; R] = std::array::from_fn(|r| &w[r][..]);
        let cols: [&[i16]; C] = std::array::from_fn(|c| &a[c][..]);
        let mut want = [[0; C]; R];
        Simd::SCALAR.tile(rows, cols, &mut want);
        for simd in Simd::all() {
            let mut got = [[1; C]; R];
            simd.tile(rows, cols, &mut got);
            prop_assert_eq!(got, want, "{}", simd.name());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn every_level_gives_the_scalar_sums(k in 0usize..200, seed: u64, extreme: bool) {
            let mut s = seed | 1;
            let mut next = || { s ^= s << 13; s ^= s >> 7; s ^= s << 17; s };
            let w: Vec<Vec<i8>> = (0..ROWS).map(|_| (0..k).map(|_| if extreme { -128 } else { next() as i8 }).collect()).collect();
            let a: Vec<Vec<i16>> = (0..COLS).map(|_| (0..k).map(|_| if extreme { i16::MIN } else { next() as i16 }).collect()).collect();
            check::<ROWS, COLS>(&w, &a)?;
            check::<ROWS, 1>(&w, &a)?;
            check::<1, COLS>(&w, &a)?;
            check::<1, 3>(&w, &a)?;
            check::<1, 1>(&w, &a)?;
        }
    }
}
