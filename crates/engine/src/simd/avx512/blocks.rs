//! Blocks of [`crate::packed`] times activation vectors.

use std::arch::x86_64::*;

use sworn_isa::RowFormat;
use sworn_isa::fixed::CL;

use crate::activation::Activation;
use crate::linear::Scale;
use crate::packed::{BLOCK, Layout};

/// How many bytes ahead of the weights at hand memory is asked for.
const AHEAD: usize = 4096;

/// A block's sixteen rows times P vectors, requantised; `outs` take as many rows as they are long. The activations have their
/// elements' bytes ([`Activation::q8`]) and, for Q4 rows, the groups' sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2")]
pub(in crate::simd) fn block<const P: usize>(
    block: &[u8],
    layout: &Layout,
    acts: [&Activation; P],
    scales: [Scale; P],
    outs: [&mut [i32]; P],
) {
    // What lies before the weights; they ask for what is ahead of themselves.
    for line in (0..layout.weights).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(line + AHEAD).cast());
    }
    let narrow = acts.iter().all(|a| a.narrow);
    let sums = match (layout.format, narrow) {
        (RowFormat::I8, true) => bytes::<P, true>(block, layout, acts),
        (RowFormat::I8, false) => bytes::<P, false>(block, layout, acts),
        (RowFormat::Q4, true) => groups::<P, true, true>(block, layout, acts),
        (RowFormat::Q4, false) => groups::<P, true, false>(block, layout, acts),
        (RowFormat::Q8, true) => groups::<P, false, true>(block, layout, acts),
        (RowFormat::Q8, false) => groups::<P, false, false>(block, layout, acts),
    };
    let pairs = &block[..4 * BLOCK];
    // SAFETY: sixteen words each, the second after the first.
    let (m, e) = unsafe {
        let m = _mm256_loadu_si256(pairs.as_ptr().cast());
        let e = _mm256_loadu_si256(pairs.as_ptr().add(2 * BLOCK).cast());
        (_mm512_cvtepu16_epi32(m), _mm512_cvtepi16_epi32(e))
    };
    for ((sums, scale), out) in sums.into_iter().zip(scales).zip(outs) {
        let out = &mut out[..];
        let n = out.len().min(BLOCK);
        let y = requantise(sums, layout.format.shift(), m, e, scale);
        // SAFETY: the mask keeps the write within the slice.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr(), ((1u32 << n) - 1) as u16, y) };
    }
}

/// See [`crate::simd::Simd::interleave`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
pub(in crate::simd) fn interleave(rows: [&[u8]; BLOCK], out: &mut [u8]) {
    for (i, out) in out.chunks_mut(16 * 64).enumerate() {
        let mut v = rows.map(|row| super::bytes(row, 64 * i));
        super::transpose(&mut v);
        for (v, out) in v.iter().zip(out.as_chunks_mut::<64>().0) {
            // SAFETY: sixty-four bytes are there.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *v) };
        }
    }
}

/// 64-bit sums of the rows 0, 2, … and 1, 3, ….
type Sums = (__m512i, __m512i);

/// `fixed::narrow` and `fixed::smulrs`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn requantise(sums: Sums, r: u32, m: __m512i, e: __m512i, a: Scale) -> __m512i {
    let zero = _mm512_setzero_si512();
    let half = _mm512_set1_epi64(if r == 0 { 0 } else { 1 << (r - 1) });
    let x = |s: __m512i| _mm512_srl_epi64(_mm512_add_epi64(_mm512_abs_epi64(s), half), _mm_cvtsi32_si128(r as i32));
    let negative = |s: __m512i| _mm512_cmplt_epi64_mask(s, zero);
    let b = _mm512_mullo_epi32(m, _mm512_set1_epi32(a.m as i32));
    let by = _mm512_sub_epi32(e, _mm512_set1_epi32(a.e));
    let shift = _mm512_min_epi32(_mm512_max_epi32(by, _mm512_set1_epi32(1)), _mm512_set1_epi32(63));
    let most = _mm512_set1_epi64(i64::from(CL));
    let y = |x: __m512i, b: __m512i, shift: __m512i| {
        let half = _mm512_sllv_epi64(_mm512_set1_epi64(1), _mm512_sub_epi64(shift, _mm512_set1_epi64(1)));
        _mm512_min_epu64(_mm512_srlv_epi64(_mm512_add_epi64(_mm512_mul_epu32(x, b), half), shift), most)
    };
    let low = _mm512_set1_epi64(0xffff_ffff);
    let (x0, x1) = (x(sums.0), x(sums.1));
    let y0 = y(x0, b, _mm512_and_si512(shift, low));
    let y1 = y(x1, _mm512_srli_epi64::<32>(b), _mm512_srli_epi64::<32>(shift));
    let merge = |even: __m512i, odd: __m512i| _mm512_mask_shuffle_epi32::<0xA0>(even, 0xAAAA, odd);
    let (x, y) = (merge(x0, x1), merge(y0, y1));
    // A shift of less than one is none that a product survives.
    let over = _mm512_cmplt_epi32_mask(by, _mm512_set1_epi32(1));
    let least = _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(x, x), _mm512_set1_epi32(CL));
    let y = _mm512_mask_mov_epi32(y, over, least);
    let negative = spread(negative(sums.0)) | spread(negative(sums.1)) << 1;
    _mm512_mask_sub_epi32(y, negative, zero, y)
}

/// Bit i to bit 2i.
#[inline]
fn spread(m: u8) -> u16 {
    let m = u16::from(m);
    let m = (m | m << 4) & 0x0f0f;
    let m = (m | m << 2) & 0x3333;
    (m | m << 1) & 0x5555
}

/// Lanes of 32 bits, signed, to lanes of 64.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(v: __m512i) -> Sums {
    (_mm512_srai_epi64::<32>(_mm512_slli_epi64::<32>(v)), _mm512_srai_epi64::<32>(v))
}

/// Four bytes in every lane.
///
/// # Safety
/// Dword `i` is there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four<T>(of: *const T, i: usize) -> __m512i {
    // SAFETY: by the caller.
    _mm512_set1_epi32(unsafe { of.cast::<i32>().add(i).read_unaligned() })
}

/// I8 rows: sums modulo 2^32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2")]
fn bytes<const P: usize, const NARROW: bool>(block: &[u8], layout: &Layout, acts: [&Activation; P]) -> [Sums; P] {
    /// Sums that one vector is split over, so that they do not wait for one another.
    const WAYS: usize = 2;
    let zero = _mm512_setzero_si512();
    let flip = _mm512_set1_epi8(i8::MIN);
    let steps = 8 * layout.groups;
    let weights = &block[layout.weights..][..64 * steps];
    let hi = acts.map(|a| a.q8.hi[..4 * steps].as_ptr());
    let lo = acts.map(|a| a.q8.lo[..4 * steps].as_ptr());
    let (mut high, mut low) = ([[zero; WAYS]; P], [[zero; WAYS]; P]);
    let mut j = 0;
    while j < steps {
        for way in 0..WAYS {
            _mm_prefetch::<_MM_HINT_T0>(weights.as_ptr().wrapping_add(64 * (j + way) + AHEAD).cast());
        }
        for way in 0..WAYS {
            // SAFETY: `steps` is a multiple of `WAYS`, and as many vectors and dwords are there.
            unsafe {
                let w = _mm512_loadu_si512(weights.as_ptr().add(64 * (j + way)).cast());
                // w + 128 is unsigned; what 128 adds is taken off at the end.
                let u = _mm512_xor_si512(w, flip);
                for p in 0..P {
                    high[p][way] = _mm512_dpbusd_epi32(high[p][way], u, four(hi[p], j + way));
                    if !NARROW {
                        low[p][way] = _mm512_dpbusd_epi32(low[p][way], four(lo[p], j + way), w);
                    }
                }
            }
        }
        j += WAYS;
    }
    let mut out = [(zero, zero); P];
    for p in 0..P {
        let excess = acts[p].high_sums.iter().fold(0i32, |a, s| a.wrapping_add(i32::from(*s)));
        let h = _mm512_add_epi32(high[p][0], high[p][1]);
        let h = _mm512_sub_epi32(h, _mm512_set1_epi32(excess.wrapping_shl(7)));
        let sum = match NARROW {
            true => h,
            false => _mm512_add_epi32(_mm512_slli_epi32::<8>(h), _mm512_add_epi32(low[p][0], low[p][1])),
        };
        out[p] = widen(sum);
    }
    out
}

/// Q4 or Q8 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2")]
fn groups<const P: usize, const Q4: bool, const NARROW: bool>(
    block: &[u8],
    layout: &Layout,
    acts: [&Activation; P],
) -> [Sums; P] {
    let zero = _mm512_setzero_si512();
    let (flip, nibble) = (_mm512_set1_epi8(i8::MIN), _mm512_set1_epi8(15));
    let groups = layout.groups;
    let each = if Q4 { 256 } else { 512 };
    let scales = &block[layout.scales..][..32 * groups];
    let weights = &block[layout.weights..][..each * groups];
    let hi = acts.map(|a| a.q8.hi[..32 * groups].as_ptr());
    let lo = acts.map(|a| a.q8.lo[..32 * groups].as_ptr());
    let excess = acts.map(|a| a.high_sums[..groups].as_ptr());
    let mut total = if Q4 { minima(block, layout, acts) } else { [(zero, zero); P] };
    for g in 0..groups {
        let ahead = weights.as_ptr().wrapping_add(each * g + AHEAD);
        for i in 0..each / 64 {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * i).cast());
        }
        let mut q = [zero; 8];
        // SAFETY: each·groups bytes and sixteen scales a group are there.
        let s = unsafe {
            let at = weights.as_ptr().add(each * g);
            if Q4 {
                for i in 0..4 {
                    let v = _mm512_loadu_si512(at.add(64 * i).cast());
                    q[i] = _mm512_and_si512(v, nibble);
                    q[4 + i] = _mm512_and_si512(_mm512_srli_epi16::<4>(v), nibble);
                }
            } else {
                for (i, q) in q.iter_mut().enumerate() {
                    *q = _mm512_loadu_si512(at.add(64 * i).cast());
                }
            }
            _mm512_cvtepi16_epi32(_mm256_loadu_si256(scales.as_ptr().add(32 * g).cast()))
        };
        let s_odd = _mm512_srli_epi64::<32>(s);
        // Products that add to one sum wait for one another, so a few vectors have several sums.
        let (mut high, mut low) = ([[zero; 2]; P], [[zero; 2]; P]);
        let ways = if P == 1 { 2 } else { 1 };
        if !Q4 {
            for p in 0..P {
                // q + 128 is unsigned; what 128 adds is taken off here.
                // SAFETY: a sum per group is there.
                high[p][0] = _mm512_set1_epi32(-128 * i32::from(unsafe { *excess[p].add(g) }));
            }
        }
        for i in 0..8 {
            let u = if Q4 { q[i] } else { _mm512_xor_si512(q[i], flip) };
            for p in 0..P {
                // SAFETY: eight dwords a group are there.
                high[p][i % ways] = _mm512_dpbusd_epi32(high[p][i % ways], u, unsafe { four(hi[p], 8 * g + i) });
            }
        }
        if !NARROW {
            let one = P >= 4;
            if one {
                for p in 0..P {
                    low[p][0] = _mm512_slli_epi32::<8>(high[p][0]);
                }
            }
            for i in 0..8 {
                for p in 0..P {
                    // SAFETY: as above.
                    low[p][i % ways] = _mm512_dpbusd_epi32(low[p][i % ways], unsafe { four(lo[p], 8 * g + i) }, q[i]);
                }
            }
            for p in 0..P {
                if ways == 2 {
                    high[p][0] = _mm512_add_epi32(high[p][0], high[p][1]);
                    low[p][0] = _mm512_add_epi32(low[p][0], low[p][1]);
                }
                high[p][0] = match one {
                    true => low[p][0],
                    false => _mm512_add_epi32(_mm512_slli_epi32::<8>(high[p][0]), low[p][0]),
                };
            }
        } else if ways == 2 {
            high[0][0] = _mm512_add_epi32(high[0][0], high[0][1]);
        }
        for p in 0..P {
            let d = high[p][0];
            total[p].0 = _mm512_add_epi64(total[p].0, _mm512_mul_epi32(d, s));
            total[p].1 = _mm512_add_epi64(total[p].1, _mm512_mul_epi32(_mm512_srli_epi64::<32>(d), s_odd));
        }
    }
    total
}

/// Twice the minima times the groups' sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2")]
fn minima<const P: usize>(block: &[u8], layout: &Layout, acts: [&Activation; P]) -> [Sums; P] {
    let zero = _mm512_setzero_si512();
    let pairs = layout.groups.div_ceil(2);
    let minima = &block[layout.minima..][..64 * pairs];
    let coarse = acts.map(|a| a.coarse[..2 * pairs].as_ptr());
    let fine = acts.map(|a| a.fine[..2 * pairs].as_ptr());
    let mut total = [(zero, zero); P];
    let mut j = 0;
    while j < pairs {
        // Thirty-one keep 32 bits exact: 31·2·2^15·2^10 < 2^31.
        let end = pairs.min(j + 31);
        let (mut c, mut f) = ([zero; P], [zero; P]);
        while j < end {
            // SAFETY: as many vectors and dwords are there.
            unsafe {
                let m = _mm512_loadu_si512(minima.as_ptr().add(64 * j).cast());
                for p in 0..P {
                    c[p] = _mm512_dpwssd_epi32(c[p], m, four(coarse[p], j));
                    f[p] = _mm512_dpwssd_epi32(f[p], m, four(fine[p], j));
                }
            }
            j += 1;
        }
        for p in 0..P {
            let (c, f) = (widen(c[p]), widen(f[p]));
            let sum = |c, f| _mm512_add_epi64(_mm512_slli_epi64::<11>(c), _mm512_slli_epi64::<1>(f));
            total[p].0 = _mm512_add_epi64(total[p].0, sum(c.0, f.0));
            total[p].1 = _mm512_add_epi64(total[p].1, sum(c.1, f.1));
        }
    }
    total
}
