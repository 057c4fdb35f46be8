//! The code that depends on the processor, behind one safe interface.
//!
//! Every implementation gives the same bits: sums are exact, or wrap modulo 2^32 in any order. The ranges that keep the block
//! formats' partial sums exact hold for every row that loading accepts (|scale| ≤ 4095) and any activations.

use sworn_isa::RowFormat;

use crate::activation::Activation;
use crate::linear::Scale;
use crate::packed::Layout;
use crate::panel::{BLOCK, Panel};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

/// Rows of a tile.
pub(crate) const ROWS: usize = 4;
/// What [`Simd::products`] wants queries padded to.
pub(crate) const PAD: usize = 64;

/// The instructions to use. Values other than [`Simd::SCALAR`] come from [`Simd::detect`] only, so holding one proves that the
/// processor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "aarch64")]
    Neon,
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
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512cd")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 {
                all.push(Simd(Level::Avx512));
            }
            if avx2 {
                all.push(Simd(Level::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Simd(Level::Neon));
        all.push(Simd::SCALAR);
        all
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
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
            Level::Scalar => scalar::tile(rows, cols, k, out),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::tile(rows, cols, k, out),
            // SAFETY: `Level::Avx2` exists only where `detect` found AVX2.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::tile(rows, cols, k, out) },
            // SAFETY: as above with AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::tile(rows, cols, k, out) },
        }
    }

    /// The exact sums of rows of `format`, without their scale pairs, times one activation vector that has the format's
    /// forms; I8 sums modulo 2^32. Rows are as long as `columns` elements take.
    #[inline]
    pub(crate) fn dots<const R: usize>(
        self,
        format: RowFormat,
        rows: [&[u8]; R],
        columns: usize,
        a: &Activation,
    ) -> [i64; R] {
        let groups = columns / sworn_isa::GROUP;
        match (format, self.0) {
            (RowFormat::I8, _) => {
                let mut out = [[0; 1]; R];
                self.tile(rows.map(bytemuck::cast_slice), [&a.wide[..columns]], &mut out);
                out.map(|o| i64::from(o[0]))
            }
            (RowFormat::Q4, Level::Scalar) => rows.map(|r| scalar::q4(r, groups, a)),
            (RowFormat::Q8, Level::Scalar) => rows.map(|r| scalar::q8(r, groups, a)),
            #[cfg(target_arch = "aarch64")]
            (RowFormat::Q4, Level::Neon) => rows.map(|r| neon::q4(r, groups, a)),
            #[cfg(target_arch = "aarch64")]
            (RowFormat::Q8, Level::Neon) => rows.map(|r| neon::q8(r, groups, a)),
            // SAFETY: `Level::Avx2` exists only where `detect` found AVX2.
            #[cfg(target_arch = "x86_64")]
            (RowFormat::Q4, Level::Avx2) if a.narrow => unsafe { avx2::q4::<R, true>(rows, groups, a) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (RowFormat::Q4, Level::Avx2) => unsafe { avx2::q4::<R, false>(rows, groups, a) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (RowFormat::Q8, Level::Avx2) => unsafe { avx2::q8(rows, groups, a) },
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            (RowFormat::Q4, Level::Avx512) if a.narrow => unsafe { avx512::q4::<R, true>(rows, groups, a) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (RowFormat::Q4, Level::Avx512) => unsafe { avx512::q4::<R, false>(rows, groups, a) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (RowFormat::Q8, Level::Avx512) if a.narrow => unsafe { avx512::q8::<R, true>(rows, groups, a) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (RowFormat::Q8, Level::Avx512) => unsafe { avx512::q8::<R, false>(rows, groups, a) },
        }
    }

    /// Sixteen rows' elements, int8 or nibbles in groups of 32, side by side as [`Panel::weights`] has them; zeros beyond a
    /// row's end.
    #[inline]
    pub(crate) fn unpack(self, rows: [&[u8]; BLOCK], nibbles: bool, out: &mut [i16]) {
        match self.0 {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::unpack(rows, nibbles, out) },
            _ => scalar::unpack(rows, nibbles, out),
        }
    }

    /// Whether [`Self::block`] is there, so that rearranging matrices pays.
    pub(crate) fn has_blocks(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => true,
            _ => false,
        }
    }

    /// Four bytes of each of sixteen rows after four of the row before, as [`crate::packed::Layout::weights`] has them; zeros
    /// beyond a row's end.
    pub(crate) fn interleave(self, rows: [&[u8]; BLOCK], out: &mut [u8]) {
        match self.0 {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::blocks::interleave(rows, out) },
            _ => scalar::interleave(rows, out),
        }
    }

    /// The rows of a block of [`crate::packed`] times P vectors of one width, requantised; each `outs` takes as many rows as it
    /// is long. Does nothing where [`Self::has_blocks`] is false.
    #[inline]
    pub(crate) fn block<const P: usize>(
        self,
        block: &[u8],
        layout: &Layout,
        acts: [&Activation; P],
        scales: [Scale; P],
        outs: [&mut [i32]; P],
    ) {
        match self.0 {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::blocks::block(block, layout, acts, scales, outs) },
            _ => {}
        }
    }

    /// How many activation vectors a pass over a panel takes at best.
    pub(crate) fn panel_width(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 8,
            _ => 4,
        }
    }

    /// A panel's rows times each of P activation vectors as long as the panel's rows: exact with scales, modulo 2^32
    /// without.
    #[inline]
    pub(crate) fn panel<const P: usize>(self, p: &Panel, acts: [&[i16]; P], out: &mut [[i64; BLOCK]; P]) {
        match self.0 {
            Level::Scalar => scalar::panel(p, acts, out),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => scalar::panel(p, acts, out),
            // SAFETY: `Level::Avx2` exists only where `detect` found AVX2.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::panel(p, acts, out) },
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::panel(p, acts, out) },
        }
    }

    /// Asks for `len` bytes from `at`, as far as the slice has them, to be read soon.
    #[inline]
    pub(crate) fn prefetch(self, bytes: &[u8], at: usize, len: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(b) = bytes.get(at..(at + len).min(bytes.len())) {
            for line in b.chunks(64) {
                avx2::prefetch(line);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (bytes, at, len);
    }

    /// `EXP` of one head: 2^(−(max − s)) for each score; `table` is the exponential's.
    #[inline]
    pub(crate) fn exp(self, s: &[i32], max: i32, table: &[u16], out: &mut [u16]) {
        match (self.0, <&[u16; 257]>::try_from(table)) {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Ok(table)) => unsafe { avx512::attention::exp(s, max, table, out) },
            _ => self.run(|| scalar::exp(s, max, table, out)),
        }
    }

    /// `MASS` of one group modulo 2^32; `table` is the exponential's.
    #[inline]
    pub(crate) fn mass(self, z: &[i32], max: i32, table: &[u16]) -> i32 {
        match (self.0, <&[u16; 257]>::try_from(table)) {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Ok(table)) => unsafe { avx512::mass(z, max, table) },
            _ => self.run(|| scalar::mass(z, max, table)),
        }
    }

    /// `SILU_MUL`; `table` is the exponential's.
    #[inline]
    pub(crate) fn silu_mul(self, g: &[i32], u: &[i32], table: &[u16], out: &mut [i32]) {
        match (self.0, <&[u16; 257]>::try_from(table)) {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Ok(table)) => unsafe { avx512::silu_mul(g, u, table, out) },
            _ => self.run(|| scalar::silu_mul(g, u, table, out)),
        }
    }

    /// `s[r·n + j] = Σ_d q[r·padded + d]·keys[j·stride + d]` for d < `width`: the dot products of R queries with n keys, where
    /// `padded` is the width rounded up to [`PAD`], R = q.len() / padded and n = s.len() / R.
    #[inline]
    pub(crate) fn products(self, q: &[i8], keys: &[i8], stride: usize, width: usize, s: &mut [i32]) {
        match self.0 {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::attention::products(q, keys, stride, width, s) },
            _ => {
                let padded = width.next_multiple_of(PAD);
                let n = s.len() / (q.len() / padded).max(1);
                for (q, s) in q.chunks_exact(padded).zip(s.chunks_exact_mut(n.max(1))) {
                    let q: Vec<i16> = q[..width].iter().map(|q| i16::from(*q)).collect();
                    let key = |j: usize| &keys[j * stride..][..width];
                    let (fours, rest) = s.as_chunks_mut::<4>();
                    for (j, s) in fours.iter_mut().enumerate() {
                        let mut acc = [[0]; 4];
                        self.tile(std::array::from_fn(|i| key(4 * j + i)), [&q], &mut acc);
                        *s = acc.map(|[a]| a);
                    }
                    for (j, s) in rest.iter_mut().enumerate() {
                        let mut acc = [[0]; 1];
                        self.tile([key(4 * fours.len() + j)], [&q], &mut acc);
                        *s = acc[0][0];
                    }
                }
            }
        }
    }

    /// `SCORES` from dot products of a query of scale `q`, in place; `km` and `ke` are the keys' scales.
    #[inline]
    pub(crate) fn scale(self, s: &mut [i32], q: [i32; 2], km: &[u32], ke: &[i32]) {
        match self.0 {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::attention::scale(s, q, km, ke) },
            _ => self.run(|| scalar::scale(s, q, km, ke)),
        }
    }

    /// `MIX` of H heads that read the same values: `out[h·width + d] = Σ_j p[h·n + j]·values[j·stride + d]` modulo 2^32, for n
    /// positions and `width` elements.
    #[inline]
    pub(crate) fn mix(self, p: &[u16], n: usize, values: &[i16], stride: usize, width: usize, out: &mut [i32]) {
        match self.0 {
            // SAFETY: `Level::Avx512` exists only where `detect` found AVX-512.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::attention::mix(p, n, values, stride, width, out) },
            _ => self.run(|| scalar::mix(p, n, values, stride, 0..width, width, out)),
        }
    }

    /// Runs `f` compiled for these instructions, so that its loops may be vectorised with them.
    #[inline]
    pub(crate) fn run<T>(self, f: impl FnOnce() -> T) -> T {
        match self.0 {
            Level::Scalar => f(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => f(),
            // SAFETY: `Level::Avx2` exists only where `detect` found all that is enabled.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::run(f) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::run(f) },
        }
    }
}

#[cfg(test)]
#[path = "simd/tests.rs"]
mod tests;
