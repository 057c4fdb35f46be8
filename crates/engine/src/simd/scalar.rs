//! Portable code; the other files give the same bits.

use sworn_isa::GROUP;
use sworn_isa::fixed::{CL, exp2neg, signed, silu_exponent, silu_mul as silu};
use sworn_isa::logprob::{self, MASSLESS};

use crate::activation::Activation;
use crate::panel::{BLOCK, Panel};

#[inline(always)]
pub(super) fn tile<const R: usize, const C: usize>(
    rows: [&[i8]; R],
    cols: [&[i16]; C],
    k: usize,
    out: &mut [[i32; C]; R],
) {
    for (r, row) in rows.iter().enumerate() {
        for (c, col) in cols.iter().enumerate() {
            let products = row[..k].iter().zip(&col[..k]).map(|(w, a)| i32::from(*w) * i32::from(*a));
            out[r][c] = products.fold(0, i32::wrapping_add);
        }
    }
}

#[inline(always)]
fn word(bytes: &[u8], i: usize) -> i32 {
    i32::from(i16::from_be_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

#[inline(always)]
pub(super) fn q4(row: &[u8], groups: usize, a: &Activation) -> i64 {
    let mut total = 0i64;
    for (g, a) in a.wide.as_chunks::<GROUP>().0.iter().take(groups).enumerate() {
        let q = &row[4 * groups + 16 * g..][..16];
        let (low, high) = a.split_at(16);
        let (mut dot, mut sum) = (0i32, 0i32);
        for ((q, low), high) in q.iter().zip(low).zip(high) {
            dot += i32::from(q & 15) * i32::from(*low) + i32::from(q >> 4) * i32::from(*high);
            sum += i32::from(*low) + i32::from(*high);
        }
        total += i64::from(word(row, g)) * i64::from(dot) + 2 * i64::from(word(row, groups + g)) * i64::from(sum);
    }
    total
}

#[inline(always)]
pub(super) fn q8(row: &[u8], groups: usize, a: &Activation) -> i64 {
    let mut total = 0i64;
    for (g, a) in a.wide.as_chunks::<GROUP>().0.iter().take(groups).enumerate() {
        let q = &row[2 * groups + GROUP * g..][..GROUP];
        let dot: i32 = q.iter().zip(a).map(|(q, a)| i32::from(*q as i8) * i32::from(*a)).sum();
        total += i64::from(word(row, g)) * i64::from(dot);
    }
    total
}

#[inline(always)]
pub(super) fn panel<const P: usize>(p: &Panel, acts: [&[i16]; P], out: &mut [[i64; BLOCK]; P]) {
    for (out, a) in out.iter_mut().zip(acts) {
        *out = [0; BLOCK];
        for (g, (w, a)) in p.weights.chunks_exact(GROUP * BLOCK).zip(a.as_chunks::<GROUP>().0).enumerate() {
            let mut dots = [0i32; BLOCK];
            for (w, a) in w.as_chunks::<{ 2 * BLOCK }>().0.iter().zip(a.as_chunks::<2>().0) {
                for (dot, w) in dots.iter_mut().zip(w.as_chunks::<2>().0) {
                    *dot = dot.wrapping_add(i32::from(w[0]) * i32::from(a[0]) + i32::from(w[1]) * i32::from(a[1]));
                }
            }
            for (r, (out, dot)) in out.iter_mut().zip(dots).enumerate() {
                let scale = p.scales.get(g * BLOCK + r).copied().unwrap_or(1);
                *out += i64::from(scale) * i64::from(dot);
            }
        }
    }
}

/// See [`Panel::weights`].
pub(super) fn unpack(rows: [&[u8]; BLOCK], nibbles: bool, out: &mut [i16]) {
    for (g, out) in out.chunks_exact_mut(GROUP * BLOCK).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            let mut w = [0i16; GROUP];
            if nibbles {
                let q = row.get(16 * g..16 * g + 16).unwrap_or_default();
                for (i, q) in q.iter().enumerate() {
                    (w[i], w[i + 16]) = (i16::from(q & 15), i16::from(q >> 4));
                }
            } else {
                let q = row.get(GROUP * g..).unwrap_or_default();
                w.iter_mut().zip(q).for_each(|(w, q)| *w = i16::from(*q as i8));
            }
            for (j, w) in w.as_chunks::<2>().0.iter().enumerate() {
                out[2 * (BLOCK * j + r)..][..2].copy_from_slice(w);
            }
        }
    }
}

/// See [`super::Simd::interleave`].
pub(super) fn interleave(rows: [&[u8]; BLOCK], out: &mut [u8]) {
    for (j, out) in out.as_chunks_mut::<{ 4 * BLOCK }>().0.iter_mut().enumerate() {
        for (out, row) in out.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
            let four = row.get(4 * j..).unwrap_or_default();
            for (i, out) in out.iter_mut().enumerate() {
                *out = four.get(i).copied().unwrap_or(0);
            }
        }
    }
}

#[inline(always)]
pub(super) fn mass(z: &[i32], max: i32, table: &[u16]) -> i32 {
    let distances = z.iter().map(|z| max.wrapping_sub(*z) as u32).filter(|d| *d < MASSLESS);
    distances.fold(0, |sum, d| sum.wrapping_add(logprob::mass(d, table) as i32))
}

#[inline(always)]
pub(super) fn exp(s: &[i32], max: i32, table: &[u16], out: &mut [u16]) {
    out.iter_mut().zip(s).for_each(|(o, s)| *o = exp2neg(max.wrapping_sub(*s) as u32, table) as u16);
}

#[inline(always)]
pub(super) fn silu_mul(g: &[i32], u: &[i32], table: &[u16], out: &mut [i32]) {
    for ((o, g), u) in out.iter_mut().zip(g).zip(u) {
        *o = silu(*g, *u, exp2neg(silu_exponent(*g), table));
    }
}

/// `SCORES` from dot products, in place: `fixed::smulrs` without branches.
#[inline(always)]
pub(super) fn scale(s: &mut [i32], q: [i32; 2], km: &[u32], ke: &[i32]) {
    for ((s, m), e) in s.iter_mut().zip(km).zip(ke) {
        let x = s.unsigned_abs();
        let b = (q[0] as u32).wrapping_mul(*m);
        let by = 0i32.wrapping_sub(q[1]).wrapping_sub(*e);
        let shift = by.clamp(1, 63) as u32;
        let y = (u64::from(x) * u64::from(b)).wrapping_add(1 << (shift - 1)) >> shift;
        let y = y.min(CL as u64) as u32;
        let least = if x == 0 { 0 } else { CL as u32 };
        *s = signed(*s < 0, if by < 1 { least } else { y });
    }
}

/// Elements `range` of each head's `width`.
#[inline(always)]
pub(super) fn mix(
    p: &[u16],
    n: usize,
    values: &[i16],
    stride: usize,
    range: std::ops::Range<usize>,
    width: usize,
    out: &mut [i32],
) {
    for out in out.chunks_exact_mut(width) {
        out[range.clone()].fill(0);
    }
    for j in 0..n {
        let v = &values[j * stride..][range.clone()];
        for (out, p) in out.chunks_exact_mut(width).zip(p.chunks_exact(n)) {
            let p = i32::from(p[j]);
            if p != 0 {
                let sums = &mut out[range.clone()];
                sums.iter_mut().zip(v).for_each(|(a, v)| *a = a.wrapping_add(p.wrapping_mul(i32::from(*v))));
            }
        }
    }
}
