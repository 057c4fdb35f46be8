//! AVX2.

use std::arch::x86_64::*;

use sworn_isa::GROUP;

use crate::activation::Activation;
use crate::panel::{BLOCK, Panel};

/// # Safety
/// The processor has AVX2, BMI, LZCNT and POPCNT.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn run<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// Asks for a cache line.
#[inline(always)]
pub(super) fn prefetch(line: &[u8]) {
    // SAFETY: SSE is part of the target, and a prefetch reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
}

/// The bytes `at…at + 31` of which the slice has; zeros beyond.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(s: &[u8], at: usize) -> __m256i {
    let mut padded = [0u8; 32];
    let whole = match s.get(at..at + 32) {
        Some(whole) => whole,
        None => {
            let rest = s.get(at..).unwrap_or_default();
            padded[..rest.len()].copy_from_slice(rest);
            &padded
        }
    };
    // SAFETY: thirty-two bytes are there.
    unsafe { _mm256_loadu_si256(whole.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn signed(s: &[i8], at: usize) -> __m256i {
    bytes(bytemuck::cast_slice(s), at)
}

#[inline]
#[target_feature(enable = "avx2")]
fn words(s: &[i16], at: usize) -> __m256i {
    bytes(bytemuck::cast_slice(s), 2 * at)
}

/// Sum of the eight 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(v: __m256i) -> i64 {
    sum_wide(_mm256_add_epi64(
        _mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)),
        _mm256_cvtepi32_epi64(_mm256_extracti128_si256::<1>(v)),
    ))
}

/// Sum of the four 64-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_wide(v: __m256i) -> i64 {
    let v = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    _mm_cvtsi128_si64(_mm_add_epi64(v, _mm_unpackhi_epi64(v, v)))
}

#[target_feature(enable = "avx2")]
pub(super) fn tile<const R: usize, const C: usize>(
    rows: [&[i8]; R],
    cols: [&[i16]; C],
    k: usize,
    out: &mut [[i32; C]; R],
) {
    // Two rows at a time: with sixteen registers more accumulators would be spilled.
    let mut r = 0;
    while r + 2 <= R {
        let mut two = [[0; C]; 2];
        block([rows[r], rows[r + 1]], cols, k, &mut two);
        out[r..r + 2].copy_from_slice(&two);
        r += 2;
    }
    if r < R {
        let mut one = [[0; C]; 1];
        block([rows[r]], cols, k, &mut one);
        out[r] = one[0];
    }
}

#[target_feature(enable = "avx2")]
fn block<const R: usize, const C: usize>(rows: [&[i8]; R], cols: [&[i16]; C], k: usize, out: &mut [[i32; C]; R]) {
    let (mut rows, mut cols) = (rows, cols);
    rows.iter_mut().for_each(|r| *r = &r[..k]);
    cols.iter_mut().for_each(|c| *c = &c[..k]);
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

/// Big-endian word `i`, in every 16-bit lane of a half.
#[inline]
fn word(s: &[u8], i: usize) -> i16 {
    match s.get(2 * i..2 * i + 2) {
        Some(b) => i16::from_be_bytes([b[0], b[1]]),
        None => 0,
    }
}

/// Σ over groups of the big-endian words of a row times `sums`. |sums| ≤ 4096.
#[inline]
#[target_feature(enable = "avx2")]
fn by_groups(words_of: &[u8], groups: usize, sums: &[i16]) -> i64 {
    let words_of = &words_of[..2 * groups];
    let lane = _mm_set_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1);
    let swap = _mm256_broadcastsi128_si256(lane);
    let mut total = 0;
    let mut g = 0;
    while g < groups {
        // At most 2^15·2^12·2 per lane.
        total += sum(_mm256_madd_epi16(_mm256_shuffle_epi8(bytes(words_of, 2 * g), swap), words(sums, g)));
        g += 16;
    }
    total
}

/// Q4 rows times one vector. NARROW: the elements are int8 and only [`crate::activation::Bytes::hi`] counts.
#[target_feature(enable = "avx2")]
pub(super) fn q4<const R: usize, const NARROW: bool>(rows: [&[u8]; R], groups: usize, a: &Activation) -> [i64; R] {
    let (scales, q) = (rows.map(|r| &r[..2 * groups]), rows.map(|r| &r[4 * groups..20 * groups]));
    let (hi, lo) = (&a.q4.hi, &a.q4.lo);
    let (zero, nibble) = (_mm256_setzero_si256(), _mm256_set1_epi8(15));
    let steps = groups.div_ceil(2);
    let mut out = [0; R];
    // Sixteen steps keep the 32-bit lanes exact: 16·2·4·15·255·4095 < 2^31.
    let mut step = 0;
    while step < steps {
        let end = steps.min(step + 16);
        let (mut high, mut low) = ([zero; R], [zero; R]);
        while step < end {
            // Two of the four groups that lie together.
            let at = 128 * (step / 2) + 32 * (step % 2);
            let (hi0, hi1) = (signed(hi, at), signed(hi, at + 64));
            let (lo0, lo1) = if NARROW { (zero, zero) } else { (bytes(lo, at), bytes(lo, at + 64)) };
            for r in 0..R {
                let v = bytes(q[r], 32 * step);
                let q0 = _mm256_and_si256(v, nibble);
                let q1 = _mm256_and_si256(_mm256_srli_epi16::<4>(v), nibble);
                let s = _mm256_set_m128i(
                    _mm_set1_epi16(word(scales[r], 2 * step + 1)),
                    _mm_set1_epi16(word(scales[r], 2 * step)),
                );
                // At most 4·15·128 and 4·15·255 per 16-bit lane.
                let h = _mm256_add_epi16(_mm256_maddubs_epi16(q0, hi0), _mm256_maddubs_epi16(q1, hi1));
                high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(h, s));
                if !NARROW {
                    let l = _mm256_add_epi16(_mm256_maddubs_epi16(lo0, q0), _mm256_maddubs_epi16(lo1, q1));
                    low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(l, s));
                }
            }
            step += 1;
        }
        for r in 0..R {
            out[r] += if NARROW { sum(high[r]) } else { (sum(high[r]) << 8) + sum(low[r]) };
        }
    }
    for r in 0..R {
        let minima = &rows[r][2 * groups..];
        out[r] += (by_groups(minima, groups, &a.coarse) << 11) + (by_groups(minima, groups, &a.fine) << 1);
    }
    out
}

/// Q8 rows times one vector.
#[target_feature(enable = "avx2")]
pub(super) fn q8<const R: usize>(rows: [&[u8]; R], groups: usize, a: &Activation) -> [i64; R] {
    let (scales, q) = (rows.map(|r| &r[..2 * groups]), rows.map(|r| &r[2 * groups..34 * groups]));
    let mut total = [_mm256_setzero_si256(); R];
    for g in 0..groups {
        let (a0, a1) = (words(&a.wide, 32 * g), words(&a.wide, 32 * g + 16));
        for r in 0..R {
            let w = bytes(q[r], 32 * g);
            let w0 = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(w));
            let w1 = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(w));
            // At most 4·2^7·2^15 per lane.
            let d = _mm256_add_epi32(_mm256_madd_epi16(w0, a0), _mm256_madd_epi16(w1, a1));
            let s = _mm256_set1_epi32(i32::from(word(scales[r], g)));
            total[r] = _mm256_add_epi64(total[r], _mm256_mul_epi32(d, s));
            total[r] = _mm256_add_epi64(total[r], _mm256_mul_epi32(_mm256_srli_epi64::<32>(d), s));
        }
    }
    let mut out = [0; R];
    for r in 0..R {
        out[r] = sum_wide(total[r]);
    }
    out
}

/// A panel times up to four vectors; the rows eight at a time.
#[target_feature(enable = "avx2")]
pub(super) fn panel<const P: usize>(p: &Panel, acts: [&[i16]; P], out: &mut [[i64; BLOCK]; P]) {
    let groups = p.weights.len() / (GROUP * BLOCK);
    let acts = acts.map(|a| &a[..GROUP * groups]);
    let scaled = !p.scales.is_empty();
    assert!(!scaled || p.scales.len() >= BLOCK * groups);
    let zero = _mm256_setzero_si256();
    for half in 0..2 {
        let (mut even, mut odd, mut acc) = ([zero; P], [zero; P], [zero; P]);
        for g in 0..groups {
            for j in 0..GROUP / 2 {
                let at = GROUP / 2 * g + j;
                // SAFETY: the weights hold 16·groups times 32 elements.
                let w = unsafe { _mm256_loadu_si256(p.weights.as_ptr().add(32 * at + 16 * half).cast()) };
                for i in 0..P {
                    // SAFETY: 2·at + 2 ≤ 32·groups, the slice's length.
                    let a = unsafe { acts[i].as_ptr().add(2 * at).cast::<i32>().read_unaligned() };
                    acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(w, _mm256_set1_epi32(a)));
                }
            }
            if scaled {
                // SAFETY: sixteen scales per group are there.
                let s = unsafe { _mm256_loadu_si256(p.scales.as_ptr().add(BLOCK * g + 8 * half).cast()) };
                let s_odd = _mm256_srli_epi64::<32>(s);
                for i in 0..P {
                    even[i] = _mm256_add_epi64(even[i], _mm256_mul_epi32(acc[i], s));
                    odd[i] = _mm256_add_epi64(odd[i], _mm256_mul_epi32(_mm256_srli_epi64::<32>(acc[i]), s_odd));
                    acc[i] = zero;
                }
            }
        }
        for i in 0..P {
            let (mut lanes, mut evens, mut odds) = ([0i32; 8], [0i64; 4], [0i64; 4]);
            // SAFETY: thirty-two bytes each.
            unsafe {
                _mm256_storeu_si256(lanes.as_mut_ptr().cast(), acc[i]);
                _mm256_storeu_si256(evens.as_mut_ptr().cast(), even[i]);
                _mm256_storeu_si256(odds.as_mut_ptr().cast(), odd[i]);
            }
            for r in 0..8 {
                let wide = if r % 2 == 0 { evens[r / 2] } else { odds[r / 2] };
                out[i][8 * half + r] = if scaled { wide } else { i64::from(lanes[r]) };
            }
        }
    }
}
