//! The parts of an attention.

use std::arch::x86_64::*;

use sworn_isa::fixed::CL;

use super::{exp2neg, transpose, words};
use crate::simd::PAD;

/// Positions whose values are added up for one strip after another while a cache holds them.
const POSITIONS: usize = 256;
/// Queries that read a block of keys together.
const ROWS: usize = 8;

/// See [`crate::simd::Simd::products`]: sixteen keys at a time, one per lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2")]
pub(in crate::simd) fn products(q: &[i8], keys: &[i8], stride: usize, width: usize, s: &mut [i32]) {
    let padded = width.next_multiple_of(PAD);
    let rows = q.len() / padded;
    if rows == 0 || s.is_empty() {
        return;
    }
    let n = s.len() / rows;
    let flip = _mm512_set1_epi8(i8::MIN);
    // What 128, added to every element of a key, adds.
    let sum = |q: &[i8]| q.iter().fold(0i32, |a, q| a.wrapping_add(i32::from(*q)));
    let excess: Vec<i32> = q.chunks_exact(padded).map(|q| sum(&q[..width]).wrapping_mul(-128)).collect();
    for j in (0..n).step_by(16) {
        let here = 16.min(n - j);
        let mask = ((1u32 << here) - 1) as u16;
        for d in (0..width).step_by(64) {
            let part = 64.min(width - d);
            let only = u64::MAX >> (64 - part);
            let mut v = [flip; 16];
            for (i, v) in v.iter_mut().enumerate().take(here) {
                let key = &keys[(j + i) * stride + d..][..part];
                // SAFETY: the mask keeps the read within the slice.
                *v = _mm512_xor_si512(unsafe { _mm512_maskz_loadu_epi8(only, key.as_ptr()) }, flip);
            }
            transpose(&mut v);
            let mut r = 0;
            while r < rows {
                let mut from = [_mm512_setzero_si512(); ROWS];
                let some = ROWS.min(rows - r);
                for (i, from) in from.iter_mut().enumerate().take(some) {
                    *from = match d {
                        0 => _mm512_set1_epi32(excess[r + i]),
                        // SAFETY: the mask keeps the read within this row of `s`, which has n elements.
                        _ => unsafe { _mm512_maskz_loadu_epi32(mask, s[(r + i) * n + j..].as_ptr()) },
                    };
                }
                let q = &q[r * padded + d..];
                match some {
                    8 => dots::<8>(&v, q, padded, &mut from),
                    4..8 => dots::<4>(&v, q, padded, &mut from),
                    3 => dots::<3>(&v, q, padded, &mut from),
                    2 => dots::<2>(&v, q, padded, &mut from),
                    _ => dots::<1>(&v, q, padded, &mut from),
                }
                let done = if (4..8).contains(&some) { 4 } else { some };
                for (i, sums) in from.iter().enumerate().take(done) {
                    // SAFETY: as above.
                    unsafe { _mm512_mask_storeu_epi32(s[(r + i) * n + j..].as_mut_ptr(), mask, *sums) };
                }
                r += done;
            }
        }
    }
}

/// Adds the products of R queries with sixteen keys' 64 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2")]
fn dots<const R: usize>(v: &[__m512i; 16], q: &[i8], padded: usize, sums: &mut [__m512i; ROWS]) {
    let q: [&[i8; 64]; R] = std::array::from_fn(|r| q[r * padded..].first_chunk().unwrap_or(&[0; 64]));
    let mut acc: [__m512i; R] = std::array::from_fn(|r| sums[r]);
    for (t, v) in v.iter().enumerate() {
        for r in 0..R {
            // SAFETY: t < 16 dwords are there.
            let four = unsafe { q[r].as_ptr().cast::<i32>().add(t).read_unaligned() };
            acc[r] = _mm512_dpbusd_epi32(acc[r], *v, _mm512_set1_epi32(four));
        }
    }
    sums[..R].copy_from_slice(&acc);
}

/// See [`crate::simd::Simd::scale`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in crate::simd) fn scale(s: &mut [i32], q: [i32; 2], km: &[u32], ke: &[i32]) {
    let n = s.len().min(km.len()).min(ke.len());
    let zero = _mm512_setzero_si512();
    let (one, one64, top) = (_mm512_set1_epi32(1), _mm512_set1_epi64(1), _mm512_set1_epi32(63));
    let (most, low) = (_mm512_set1_epi64(i64::from(CL)), _mm512_set1_epi64(0xffff_ffff));
    let (qm, qe) = (_mm512_set1_epi32(q[0]), _mm512_set1_epi32(0i32.wrapping_sub(q[1])));
    for ((s, km), ke) in s[..n].chunks_mut(16).zip(km[..n].chunks(16)).zip(ke[..n].chunks(16)) {
        let mask = ((1u32 << s.len()) - 1) as u16;
        // SAFETY: the mask keeps the reads within the chunks, which have the same length.
        let (v, m, e) = unsafe {
            let m = _mm512_maskz_loadu_epi32(mask, km.as_ptr().cast());
            (_mm512_maskz_loadu_epi32(mask, s.as_ptr()), m, _mm512_maskz_loadu_epi32(mask, ke.as_ptr()))
        };
        let x = _mm512_abs_epi32(v);
        let b = _mm512_mullo_epi32(m, qm);
        let by = _mm512_sub_epi32(qe, e);
        let shift = _mm512_min_epi32(_mm512_max_epi32(by, one), top);
        let half = |x: __m512i, b: __m512i, shift: __m512i| {
            let half = _mm512_sllv_epi64(one64, _mm512_sub_epi64(shift, one64));
            _mm512_min_epu64(_mm512_srlv_epi64(_mm512_add_epi64(_mm512_mul_epu32(x, b), half), shift), most)
        };
        let even = half(x, b, _mm512_and_si512(shift, low));
        let odd = half(_mm512_srli_epi64::<32>(x), _mm512_srli_epi64::<32>(b), _mm512_srli_epi64::<32>(shift));
        let y = _mm512_mask_shuffle_epi32::<0xA0>(even, 0xAAAA, odd);
        let over = _mm512_cmplt_epi32_mask(by, one);
        let least = _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(x, x), _mm512_set1_epi32(CL));
        let y = _mm512_mask_mov_epi32(y, over, least);
        let y = _mm512_mask_sub_epi32(y, _mm512_cmplt_epi32_mask(v, zero), zero, y);
        // SAFETY: the mask keeps the write within the chunk.
        unsafe { _mm512_mask_storeu_epi32(s.as_mut_ptr(), mask, y) };
    }
}

/// A table of powers of two in registers: elements 0…255, and 1…256.
struct Table {
    here: [__m512i; 8],
    next: [__m512i; 8],
}

impl Table {
    /// `None` for one that is not like a power's, so that words would overflow.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(table: &[u16; 257]) -> Option<Self> {
        let at = |i: usize| words(bytemuck::cast_slice(table), i);
        let t = Table { here: std::array::from_fn(|i| at(32 * i)), next: std::array::from_fn(|i| at(32 * i + 1)) };
        let (most, step) = (_mm512_set1_epi16(i16::MIN), _mm512_set1_epi16(2000));
        let fine = t.here.iter().zip(&t.next).all(|(here, next)| {
            let falls = _mm512_cmpge_epu16_mask(*here, *next) & _mm512_cmple_epu16_mask(*here, most);
            falls & _mm512_cmple_epu16_mask(_mm512_sub_epi16(*here, *next), step) == u32::MAX
        });
        fine.then_some(t)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn pick(t: &[__m512i; 8], j: __m512i, second: u32, fourth: u32) -> __m512i {
        let ab = |i: usize| _mm512_permutex2var_epi16(t[i], j, t[i + 1]);
        let low = _mm512_mask_mov_epi16(ab(0), second, ab(2));
        let high = _mm512_mask_mov_epi16(ab(4), second, ab(6));
        _mm512_mask_mov_epi16(low, fourth, high)
    }

    /// Thirty-two times `fixed::exp2neg`, of two vectors' lanes in order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn exp(&self, a: __m512i, b: __m512i, evens: __m512i) -> __m512i {
        // Everything from 17 on is 0.
        let most = _mm512_set1_epi32((18 << 13) - 1);
        let (a, b) = (_mm512_min_epu32(a, most), _mm512_min_epu32(b, most));
        let low = _mm512_permutex2var_epi16(a, evens, b);
        let high = _mm512_permutex2var_epi16(a, _mm512_add_epi16(evens, _mm512_set1_epi16(1)), b);
        let i = _mm512_or_si512(_mm512_slli_epi16::<3>(high), _mm512_srli_epi16::<13>(low));
        let j = _mm512_srli_epi16::<5>(_mm512_and_si512(low, _mm512_set1_epi16(8191)));
        let f = _mm512_and_si512(low, _mm512_set1_epi16(31));
        let second = _mm512_test_epi16_mask(j, _mm512_set1_epi16(64));
        let fourth = _mm512_test_epi16_mask(j, _mm512_set1_epi16(128));
        let here = Self::pick(&self.here, j, second, fourth);
        let next = Self::pick(&self.next, j, second, fourth);
        let step = _mm512_mullo_epi16(_mm512_sub_epi16(here, next), f);
        let step = _mm512_srli_epi16::<5>(_mm512_add_epi16(step, _mm512_set1_epi16(16)));
        let e = _mm512_sub_epi16(here, step);
        // A shift by 16 and more leaves nothing.
        let one = _mm512_set1_epi16(1);
        let rounded = _mm512_srlv_epi16(e, _mm512_sub_epi16(i, one));
        let rounded = _mm512_srli_epi16::<1>(_mm512_add_epi16(rounded, one));
        _mm512_mask_mov_epi16(rounded, _mm512_testn_epi16_mask(i, i), e)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in crate::simd) fn exp(s: &[i32], max: i32, table: &[u16; 257], out: &mut [u16]) {
    let n = s.len().min(out.len());
    let (s, out) = (&s[..n], &mut out[..n]);
    let max = _mm512_set1_epi32(max);
    // A few are not worth loading the table.
    let whole = if n < 64 { None } else { Table::new(table) };
    let rest = match whole {
        None => 0,
        Some(table) => {
            let mut evens = [0u16; 32];
            evens.iter_mut().zip((0..).step_by(2)).for_each(|(e, i)| *e = i);
            // SAFETY: thirty-two elements are there.
            let evens = unsafe { _mm512_loadu_si512(evens.as_ptr().cast()) };
            let (whole, _) = s.as_chunks::<32>();
            for (s, out) in whole.iter().zip(out.as_chunks_mut::<32>().0) {
                // SAFETY: thirty-two elements are there.
                unsafe {
                    let a = _mm512_sub_epi32(max, _mm512_loadu_si512(s.as_ptr().cast()));
                    let b = _mm512_sub_epi32(max, _mm512_loadu_si512(s.as_ptr().add(16).cast()));
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), table.exp(a, b, evens));
                }
            }
            32 * whole.len()
        }
    };
    for (s, out) in s[rest..].chunks(16).zip(out[rest..].chunks_mut(16)) {
        let mask = ((1u32 << s.len()) - 1) as u16;
        // SAFETY: the mask keeps the read within the chunk.
        let v = unsafe { _mm512_maskz_loadu_epi32(mask, s.as_ptr()) };
        let e = _mm512_cvtepi32_epi16(exp2neg(_mm512_sub_epi32(max, v), table));
        // SAFETY: as above; both chunks have the same length.
        unsafe { _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, e) };
    }
}

/// See [`crate::simd::Simd::mix`]: thirty-two elements at a time, two positions per product.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in crate::simd) fn mix(p: &[u16], n: usize, values: &[i16], stride: usize, width: usize, out: &mut [i32]) {
    let whole = width / 32 * 32;
    let heads = out.len() / width;
    out.fill(0);
    for from in (0..n).step_by(POSITIONS) {
        let here = POSITIONS.min(n - from);
        let values = &values[from * stride..];
        for d in (0..whole).step_by(32) {
            let (values, mut h) = (&values[d..], 0);
            while h < heads {
                let (p, out) = (&p[h * n + from..], &mut out[h * width + d..]);
                h += match heads - h {
                    1 => strip::<1>(p, n, here, values, stride, width, out),
                    2 => strip::<2>(p, n, here, values, stride, width, out),
                    3 => strip::<3>(p, n, here, values, stride, width, out),
                    4 => strip::<4>(p, n, here, values, stride, width, out),
                    5 => strip::<5>(p, n, here, values, stride, width, out),
                    _ => strip::<6>(p, n, here, values, stride, width, out),
                };
            }
        }
    }
    // A probability of one is taken for minus one by signed products.
    for (p, out) in p.chunks_exact(n.max(1)).zip(out.chunks_exact_mut(width)) {
        if whole > 0 && p.iter().fold(0, |a, p| a | *p) > 0x7fff {
            for (j, _) in p.iter().enumerate().filter(|(_, p)| **p > 0x7fff) {
                let v = &values[j * stride..][..whole];
                out.iter_mut().zip(v).for_each(|(a, v)| *a = a.wrapping_add(i32::from(*v) << 16));
            }
        }
    }
    if whole < width {
        crate::simd::scalar::mix(p, n, values, stride, whole..width, width, out);
    }
}

/// Adds the first 32 elements of H heads, whose probabilities are `each` apart; returns H.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn strip<const H: usize>(
    p: &[u16],
    each: usize,
    n: usize,
    values: &[i16],
    stride: usize,
    width: usize,
    out: &mut [i32],
) -> usize {
    let zero = _mm512_setzero_si512();
    let (mut low, mut high) = ([zero; H], [zero; H]);
    let p: [&[u16]; H] = std::array::from_fn(|h| &p[h * each..][..n]);
    let at = |j: usize| words(&values[j * stride..][..32], 0);
    let mut add = |a: __m512i, b: __m512i, pair: [i32; H]| {
        let (ab0, ab1) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
        for h in 0..H {
            let pair = _mm512_set1_epi32(pair[h]);
            low[h] = _mm512_dpwssd_epi32(low[h], ab0, pair);
            high[h] = _mm512_dpwssd_epi32(high[h], ab1, pair);
        }
    };
    for j in (0..n & !1).step_by(2) {
        // SAFETY: j + 2 ≤ n, the slices' length.
        add(at(j), at(j + 1), std::array::from_fn(|h| unsafe { p[h].as_ptr().add(j).cast::<i32>().read_unaligned() }));
    }
    if n % 2 == 1 {
        add(at(n - 1), zero, std::array::from_fn(|h| i32::from(p[h][n - 1])));
    }
    // Lane l of `low` holds elements 8l…8l + 3, of `high` 8l + 4…8l + 7.
    let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for h in 0..H {
        let out = &mut out[h * width..][..32];
        // SAFETY: thirty-two elements are there.
        unsafe {
            let to = out.as_mut_ptr();
            let (a, b) = (_mm512_loadu_si512(to.cast()), _mm512_loadu_si512(to.add(16).cast()));
            let a = _mm512_add_epi32(a, _mm512_permutex2var_epi64(low[h], first, high[h]));
            let b = _mm512_add_epi32(b, _mm512_permutex2var_epi64(low[h], second, high[h]));
            _mm512_storeu_si512(to.cast(), a);
            _mm512_storeu_si512(to.add(16).cast(), b);
        }
    }
    H
}
