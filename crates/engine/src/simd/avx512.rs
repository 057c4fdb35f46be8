//! AVX-512 with VNNI.

use std::arch::x86_64::*;

use sworn_isa::GROUP;
use sworn_isa::logprob::MASSLESS;

use crate::activation::Activation;
use crate::panel::{BLOCK, Panel};

pub(super) mod attention;
pub(super) mod blocks;

/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ, CD and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vnni,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn run<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// The bytes `at…at + 63` of which the slice has; zeros beyond.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes(s: &[u8], at: usize) -> __m512i {
    match s.get(at..at + 64) {
        // SAFETY: 64 bytes are there.
        Some(s) => unsafe { _mm512_loadu_si512(s.as_ptr().cast()) },
        None => {
            let s = s.get(at..).unwrap_or_default();
            // SAFETY: the mask keeps the read within the fewer than 64 bytes that are there.
            unsafe { _mm512_maskz_loadu_epi8((1u64 << s.len()) - 1, s.as_ptr().cast()) }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn signed(s: &[i8], at: usize) -> __m512i {
    bytes(bytemuck::cast_slice(s), at)
}

/// Sixteen-bit elements `at…at + 31`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words(s: &[i16], at: usize) -> __m512i {
    bytes(bytemuck::cast_slice(s), 2 * at)
}

/// Sum of the sixteen 32-bit lanes in pairs of 64 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(v: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_srai_epi64::<32>(v), _mm512_srai_epi64::<32>(_mm512_slli_epi64::<32>(v)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
pub(super) fn tile<const R: usize, const C: usize>(
    rows: [&[i8]; R],
    cols: [&[i16]; C],
    k: usize,
    out: &mut [[i32; C]; R],
) {
    let (mut rows, mut cols) = (rows, cols);
    rows.iter_mut().for_each(|r| *r = &r[..k]);
    cols.iter_mut().for_each(|c| *c = &c[..k]);
    let mut acc = [[_mm512_setzero_si512(); C]; R];
    let whole = k & !31;
    let mut i = 0;
    while i < whole {
        let mut a = [_mm512_setzero_si512(); C];
        for c in 0..C {
            // SAFETY: i + 32 ≤ k, the slice's length.
            a[c] = unsafe { _mm512_loadu_si512(cols[c].as_ptr().add(i).cast()) };
        }
        for r in 0..R {
            // SAFETY: as above.
            let w = _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(rows[r].as_ptr().add(i).cast()) });
            for c in 0..C {
                acc[r][c] = _mm512_dpwssd_epi32(acc[r][c], w, a[c]);
            }
        }
        i += 32;
    }
    if i < k {
        let mask: u32 = (1 << (k - i)) - 1;
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
    }
    for r in 0..R {
        for c in 0..C {
            out[r][c] = _mm512_reduce_add_epi32(acc[r][c]);
        }
    }
}

/// Swaps the bytes of sixteen-bit elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn swap_words(v: __m512i) -> __m512i {
    let lane = _mm_set_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1);
    _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(lane))
}

/// Σ over groups of the big-endian words times each of N vectors of sums, in 64-bit lanes. |sums| ≤ 4096.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn by_groups<const N: usize>(words_of: &[u8], sums: [&[i16]; N]) -> [__m512i; N] {
    let zero = _mm512_setzero_si512();
    let mut total = [zero; N];
    for (i, of) in words_of.chunks(64).enumerate() {
        let w = swap_words(bytes(of, 0));
        for n in 0..N {
            // At most 2^15·2^12·2 per lane.
            total[n] = _mm512_add_epi64(total[n], pairs(_mm512_dpwssd_epi32(zero, w, words(sums[n], 32 * i))));
        }
    }
    total
}

/// The sum of each vector's 64-bit lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums<const R: usize>(v: &[__m512i; R]) -> [i64; R] {
    let mut out = [0; R];
    if R == 4 {
        let ab = _mm512_add_epi64(_mm512_unpacklo_epi64(v[0], v[1]), _mm512_unpackhi_epi64(v[0], v[1]));
        let cd = _mm512_add_epi64(_mm512_unpacklo_epi64(v[2], v[3]), _mm512_unpackhi_epi64(v[2], v[3]));
        // 128-bit lanes: of each two vectors two sums, four times.
        let low = _mm512_shuffle_i64x2::<0x44>(ab, cd);
        let high = _mm512_shuffle_i64x2::<0xEE>(ab, cd);
        let half = _mm512_add_epi64(low, high);
        let half = _mm512_add_epi64(half, _mm512_shuffle_i64x2::<0xB1>(half, half));
        let mut lanes = [0i64; 8];
        // SAFETY: eight elements are there.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), half) };
        out.copy_from_slice(&[lanes[0], lanes[1], lanes[4], lanes[5]]);
    } else {
        for r in 0..R {
            out[r] = _mm512_reduce_add_epi64(v[r]);
        }
    }
    out
}

/// Q4 rows times one vector. NARROW: the elements are int8 and only [`crate::activation::Bytes::hi`] counts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q4<const R: usize, const NARROW: bool>(rows: [&[u8]; R], groups: usize, a: &Activation) -> [i64; R] {
    let mut q = rows;
    q.iter_mut().for_each(|r| *r = &r[4 * groups..20 * groups]);
    let steps = groups.div_ceil(4);
    let (hi, lo) = (&a.q4.hi[..128 * steps], &a.q4.lo[..128 * steps]);
    let (zero, nibble) = (_mm512_setzero_si512(), _mm512_set1_epi8(15));
    // Of the eight bytes of four scales that every 128-bit lane gets, lane i takes scale i to the low half of each 32 bits.
    let spread = {
        let lane = |i: i32| (0x8080_0000u32 as i32) | (2 * i) << 8 | (2 * i + 1);
        let [a, b, c, d] = [lane(0), lane(1), lane(2), lane(3)];
        _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d)
    };
    let mut total = [zero; R];
    // Sixteen steps keep the 32-bit lanes exact: 16·8·15·255·4095 < 2^31.
    let mut step = 0;
    while step < steps {
        let end = steps.min(step + 16);
        let (mut high, mut low) = ([zero; R], [zero; R]);
        while step < end {
            let at = 128 * step;
            let (hi0, hi1) = (signed(hi, at), signed(hi, at + 64));
            let (lo0, lo1) = if NARROW { (zero, zero) } else { (bytes(lo, at), bytes(lo, at + 64)) };
            for r in 0..R {
                let v = bytes(q[r], 64 * step);
                let q0 = _mm512_and_si512(v, nibble);
                let q1 = _mm512_and_si512(_mm512_srli_epi16::<4>(v), nibble);
                // What follows a row's last scales meets nibbles that are zero.
                let s = match rows[r][8 * step..].first_chunk() {
                    Some(s) => u64::from_le_bytes(*s),
                    None => 0,
                };
                let s = _mm512_shuffle_epi8(_mm512_set1_epi64(s as i64), spread);
                // Both fit the low half of a lane: 8·15·128 and 8·15·255; the high half is the sign, which meets a zero.
                let h = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, q0, hi0), q1, hi1);
                high[r] = _mm512_dpwssd_epi32(high[r], h, s);
                if !NARROW {
                    let l = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, lo0, q0), lo1, q1);
                    low[r] = _mm512_dpwssd_epi32(low[r], l, s);
                }
            }
            step += 1;
        }
        for r in 0..R {
            let sum = if NARROW {
                pairs(high[r])
            } else {
                _mm512_add_epi64(_mm512_slli_epi64::<8>(pairs(high[r])), pairs(low[r]))
            };
            total[r] = _mm512_add_epi64(total[r], sum);
        }
    }
    for r in 0..R {
        let [coarse, fine] = by_groups(&rows[r][2 * groups..4 * groups], [&a.coarse, &a.fine]);
        let minima = _mm512_add_epi64(_mm512_slli_epi64::<10>(coarse), fine);
        total[r] = _mm512_add_epi64(total[r], _mm512_slli_epi64::<1>(minima));
    }
    sums(&total)
}

/// Q8 rows times one vector. NARROW as in [`q4`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q8<const R: usize, const NARROW: bool>(rows: [&[u8]; R], groups: usize, a: &Activation) -> [i64; R] {
    let mut q = rows;
    q.iter_mut().for_each(|r| *r = &r[2 * groups..34 * groups]);
    let steps = groups.div_ceil(2);
    let (hi, lo) = (&a.q8.hi[..64 * steps], &a.q8.lo[..64 * steps]);
    let (zero, flip) = (_mm512_setzero_si512(), _mm512_set1_epi8(i8::MIN));
    // Of the four bytes of two scales, the lower lanes take the first and the upper the second to the high half of each 32 bits.
    let spread = {
        let [a, b] = [0x0001_8080, 0x0203_8080];
        _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b)
    };
    let mut total = [zero; R];
    for step in 0..steps {
        let (h, l) = (signed(hi, 64 * step), if NARROW { zero } else { bytes(lo, 64 * step) });
        for r in 0..R {
            let w = bytes(q[r], 64 * step);
            // q + 128 is unsigned; what 128 adds is taken off by the groups' sums below.
            let d = _mm512_dpbusd_epi32(zero, _mm512_xor_si512(w, flip), h);
            let d = if NARROW { d } else { _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(d), l, w) };
            // What follows a row's last scale meets elements that are zero in both vectors.
            let s = match rows[r][4 * step..].first_chunk() {
                Some(s) => u32::from_le_bytes(*s),
                None => 0,
            };
            let s = _mm512_srai_epi32::<16>(_mm512_shuffle_epi8(_mm512_set1_epi32(s as i32), spread));
            total[r] = _mm512_add_epi64(total[r], _mm512_mul_epi32(d, s));
            total[r] = _mm512_add_epi64(total[r], _mm512_mul_epi32(_mm512_srli_epi64::<32>(d), s));
        }
    }
    for r in 0..R {
        let [excess] = by_groups(&rows[r][..2 * groups], [&a.high_sums]);
        let excess = if NARROW { _mm512_slli_epi64::<7>(excess) } else { _mm512_slli_epi64::<15>(excess) };
        total[r] = _mm512_sub_epi64(total[r], excess);
    }
    sums(&total)
}

/// Sixteen rows' elements to pairs side by side, see [`Panel::weights`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
pub(super) fn unpack(rows: [&[u8]; BLOCK], nibbles: bool, out: &mut [i16]) {
    for (g, out) in out.chunks_exact_mut(GROUP * BLOCK).enumerate() {
        let mut v = [_mm512_setzero_si512(); BLOCK];
        for (v, row) in v.iter_mut().zip(rows) {
            *v = if nibbles {
                let q = match row.get(16 * g..16 * g + 16) {
                    // SAFETY: sixteen bytes are there.
                    Some(q) => unsafe { _mm_loadu_si128(q.as_ptr().cast()) },
                    None => _mm_setzero_si128(),
                };
                let low = _mm_and_si128(q, _mm_set1_epi8(15));
                let high = _mm_and_si128(_mm_srli_epi16::<4>(q), _mm_set1_epi8(15));
                _mm512_cvtepu8_epi16(_mm256_set_m128i(high, low))
            } else {
                let row = row.get(GROUP * g..).unwrap_or_default();
                let mask = if row.len() >= GROUP { u32::MAX } else { (1 << row.len()) - 1 };
                // SAFETY: the mask keeps the read within the row.
                _mm512_cvtepi8_epi16(unsafe { _mm256_maskz_loadu_epi8(mask, row.as_ptr().cast()) })
            };
        }
        transpose(&mut v);
        for (v, out) in v.iter().zip(out.as_chunks_mut::<32>().0) {
            // SAFETY: thirty-two elements are there.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *v) };
        }
    }
}

/// Transposes sixteen vectors of sixteen 32-bit elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(v: &mut [__m512i; 16]) {
    let mut t = *v;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for i in 0..4 {
        let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
        v[4 * i] = _mm512_unpacklo_epi64(a, c);
        v[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        v[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        v[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // v[4i + j] holds column 4l + j of rows 4i…4i + 3 in lane l.
    for j in 0..4 {
        let [a, b, c, d] = [v[j], v[4 + j], v[8 + j], v[12 + j]];
        let (low0, high0) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
        let (low1, high1) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xEE>(c, d));
        t[j] = _mm512_shuffle_i32x4::<0x88>(low0, low1);
        t[4 + j] = _mm512_shuffle_i32x4::<0xDD>(low0, low1);
        t[8 + j] = _mm512_shuffle_i32x4::<0x88>(high0, high1);
        t[12 + j] = _mm512_shuffle_i32x4::<0xDD>(high0, high1);
    }
    *v = t;
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn panel<const P: usize>(p: &Panel, acts: [&[i16]; P], out: &mut [[i64; BLOCK]; P]) {
    let groups = p.weights.len() / (GROUP * BLOCK);
    let acts = acts.map(|a| &a[..GROUP * groups]);
    let scaled = !p.scales.is_empty();
    assert!(!scaled || p.scales.len() >= BLOCK * groups);
    let zero = _mm512_setzero_si512();
    let (mut even, mut odd, mut acc) = ([zero; P], [zero; P], [zero; P]);
    for g in 0..groups {
        for j in 0..GROUP / 2 {
            let at = GROUP / 2 * g + j;
            // SAFETY: the weights hold 16·groups vectors of 32 elements.
            let w = unsafe { _mm512_loadu_si512(p.weights.as_ptr().add(32 * at).cast()) };
            for i in 0..P {
                // SAFETY: 2·at + 2 ≤ 32·groups, the slice's length.
                let a = unsafe { acts[i].as_ptr().add(2 * at).cast::<i32>().read_unaligned() };
                acc[i] = _mm512_dpwssd_epi32(acc[i], w, _mm512_set1_epi32(a));
            }
        }
        if scaled {
            // SAFETY: sixteen scales per group are there.
            let s = unsafe { _mm512_loadu_si512(p.scales.as_ptr().add(BLOCK * g).cast()) };
            let s_odd = _mm512_srli_epi64::<32>(s);
            for i in 0..P {
                even[i] = _mm512_add_epi64(even[i], _mm512_mul_epi32(acc[i], s));
                odd[i] = _mm512_add_epi64(odd[i], _mm512_mul_epi32(_mm512_srli_epi64::<32>(acc[i]), s_odd));
                acc[i] = zero;
            }
        }
    }
    for i in 0..P {
        if !scaled {
            even[i] = _mm512_srai_epi64::<32>(_mm512_slli_epi64::<32>(acc[i]));
            odd[i] = _mm512_srai_epi64::<32>(acc[i]);
        }
        // Lane l of `even` is row 2l, of `odd` row 2l + 1.
        let first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        let second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
        let (low, high) = out[i].split_at_mut(8);
        // SAFETY: eight elements each.
        unsafe {
            _mm512_storeu_si512(low.as_mut_ptr().cast(), _mm512_permutex2var_epi64(even[i], first, odd[i]));
            _mm512_storeu_si512(high.as_mut_ptr().cast(), _mm512_permutex2var_epi64(even[i], second, odd[i]));
        }
    }
}

/// Sixteen magnitudes |a|·b/2^15, rounded: `fixed::mul15r`.
#[inline]
#[target_feature(enable = "avx512f")]
fn mul15r(a: __m512i, b: __m512i) -> __m512i {
    let low = _mm512_mullo_epi32(_mm512_and_si512(a, _mm512_set1_epi32(32767)), b);
    let low = _mm512_srli_epi32::<15>(_mm512_add_epi32(low, _mm512_set1_epi32(1 << 14)));
    _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32::<15>(a), b), low)
}

/// Sixteen times `fixed::exp2neg`.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2neg(d: __m512i, table: &[u16; 257]) -> __m512i {
    let j = _mm512_srli_epi32::<5>(_mm512_and_si512(d, _mm512_set1_epi32(8191)));
    // SAFETY: j ≤ 255, and four bytes from element 255 on are the table's last two elements.
    let pair = unsafe { _mm512_i32gather_epi32::<2>(j, table.as_ptr().cast()) };
    let (t0, t1) = (_mm512_and_si512(pair, _mm512_set1_epi32(65535)), _mm512_srli_epi32::<16>(pair));
    let f = _mm512_and_si512(d, _mm512_set1_epi32(31));
    let step = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_sub_epi32(t0, t1), f), _mm512_set1_epi32(16));
    let e = _mm512_sub_epi32(t0, _mm512_srli_epi32::<5>(step));
    let i = _mm512_srli_epi32::<13>(d);
    let half = _mm512_srli_epi32::<1>(_mm512_sllv_epi32(_mm512_set1_epi32(1), i));
    let seen = _mm512_cmple_epu32_mask(i, _mm512_set1_epi32(16));
    _mm512_maskz_srlv_epi32(seen, _mm512_add_epi32(e, half), i)
}

/// See [`super::Simd::mass`].
#[target_feature(enable = "avx512f")]
pub(super) fn mass(z: &[i32], max: i32, table: &[u16; 257]) -> i32 {
    let max = _mm512_set1_epi32(max);
    let mut sum = _mm512_setzero_si512();
    for z in z.chunks(16) {
        let mask = ((1u32 << z.len()) - 1) as u16;
        // SAFETY: the mask keeps the read within the chunk.
        let distance = _mm512_sub_epi32(max, unsafe { _mm512_maskz_loadu_epi32(mask, z.as_ptr()) });
        let near = _mm512_mask_cmplt_epu32_mask(mask, distance, _mm512_set1_epi32(MASSLESS as i32));
        if near == 0 {
            continue;
        }
        let d = mul15r(_mm512_maskz_mov_epi32(near, distance), _mm512_set1_epi32(23637));
        let e = _mm512_slli_epi32::<6>(exp2neg(_mm512_and_si512(d, _mm512_set1_epi32(8191)), table));
        let i = _mm512_srli_epi32::<13>(d);
        let half = _mm512_srli_epi32::<1>(_mm512_sllv_epi32(_mm512_set1_epi32(1), i));
        sum = _mm512_mask_add_epi32(sum, near, sum, _mm512_srlv_epi32(_mm512_add_epi32(e, half), i));
    }
    _mm512_reduce_add_epi32(sum)
}

/// Eight times min(CL, (a·b + 2^13) >> 14) of the even 32-bit lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn mulrs14(a: __m512i, b: __m512i) -> __m512i {
    let r = _mm512_srli_epi64::<14>(_mm512_add_epi64(_mm512_mul_epu32(a, b), _mm512_set1_epi64(1 << 13)));
    _mm512_min_epu64(r, _mm512_set1_epi64((1 << 30) - 1))
}

#[target_feature(enable = "avx512f")]
pub(super) fn silu_mul(g: &[i32], u: &[i32], table: &[u16; 257], out: &mut [i32]) {
    let n = g.len().min(u.len()).min(out.len());
    let (zero, one) = (_mm512_setzero_si512(), _mm512_set1_epi32(1));
    for ((g, u), out) in g[..n].chunks(16).zip(u[..n].chunks(16)).zip(out[..n].chunks_mut(16)) {
        let mask = ((1u32 << g.len()) - 1) as u16;
        // SAFETY: the mask keeps the reads within the chunks, which have the same length.
        let (g, u) =
            unsafe { (_mm512_maskz_loadu_epi32(mask, g.as_ptr()), _mm512_maskz_loadu_epi32(mask, u.as_ptr())) };
        let (ga, ua) = (_mm512_abs_epi32(g), _mm512_abs_epi32(u));
        let e = exp2neg(mul15r(ga, _mm512_set1_epi32(23637)), table);
        let den = _mm512_add_epi32(_mm512_set1_epi32(32768), e);
        let num = _mm512_add_epi32(_mm512_set1_epi32(1 << 30), _mm512_srli_epi32::<1>(den));
        // The quotient is at most 2^15, so a single-precision one is off by one at most; the remainder tells.
        let q = _mm512_cvttps_epi32(_mm512_div_ps(_mm512_cvtepi32_ps(num), _mm512_cvtepi32_ps(den)));
        let rest = _mm512_sub_epi32(num, _mm512_mullo_epi32(q, den));
        let q = _mm512_mask_sub_epi32(q, _mm512_cmplt_epi32_mask(rest, zero), q, one);
        let q = _mm512_mask_add_epi32(q, _mm512_cmpge_epi32_mask(rest, den), q, one);
        let negative = _mm512_cmplt_epi32_mask(g, zero);
        let s = _mm512_mask_sub_epi32(q, negative, _mm512_set1_epi32(32768), q);
        let x = mul15r(ga, s);
        let even = mulrs14(x, ua);
        let odd = mulrs14(_mm512_srli_epi64::<32>(x), _mm512_srli_epi64::<32>(ua));
        let y = _mm512_or_si512(even, _mm512_slli_epi64::<32>(odd));
        let flip = negative ^ _mm512_cmplt_epi32_mask(u, zero);
        // SAFETY: the mask keeps the write within the chunk.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr(), mask, _mm512_mask_sub_epi32(y, flip, zero, y)) };
    }
}
