//! NEON, which every 64-bit ARM processor has.

use std::arch::aarch64::*;

use sworn_isa::GROUP;

use crate::activation::Activation;

/// Eight elements from `at`.
#[inline]
fn words(s: &[i16], at: usize) -> int16x8_t {
    let s = &s[at..at + 8];
    // SAFETY: eight elements are there; NEON is part of the target.
    unsafe { vld1q_s16(s.as_ptr()) }
}

/// Sixteen bytes from `at`.
#[inline]
fn bytes(s: &[u8], at: usize) -> uint8x16_t {
    let s = &s[at..at + 16];
    // SAFETY: sixteen bytes are there.
    unsafe { vld1q_u8(s.as_ptr()) }
}

/// Adds sixteen products.
#[inline]
fn add(acc: int32x4_t, w: int8x16_t, a0: int16x8_t, a1: int16x8_t) -> int32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe {
        let (w0, w1) = (vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w));
        let acc = vmlal_s16(acc, vget_low_s16(w0), vget_low_s16(a0));
        let acc = vmlal_high_s16(acc, w0, a0);
        let acc = vmlal_s16(acc, vget_low_s16(w1), vget_low_s16(a1));
        vmlal_high_s16(acc, w1, a1)
    }
}

#[inline]
pub(super) fn tile<const R: usize, const C: usize>(
    rows: [&[i8]; R],
    cols: [&[i16]; C],
    k: usize,
    out: &mut [[i32; C]; R],
) {
    // SAFETY: NEON is part of the target.
    let mut acc = [[unsafe { vdupq_n_s32(0) }; C]; R];
    let whole = k & !15;
    for i in (0..whole).step_by(16) {
        for r in 0..R {
            // SAFETY: NEON is part of the target.
            let w = unsafe { vreinterpretq_s8_u8(bytes(bytemuck::cast_slice(rows[r]), i)) };
            for c in 0..C {
                acc[r][c] = add(acc[r][c], w, words(cols[c], i), words(cols[c], i + 8));
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            // SAFETY: NEON is part of the target.
            out[r][c] = unsafe { vaddvq_s32(acc[r][c]) };
            for i in whole..k {
                out[r][c] = out[r][c].wrapping_add(i32::from(rows[r][i]) * i32::from(cols[c][i]));
            }
        }
    }
}

#[inline]
fn word(s: &[u8], i: usize) -> i64 {
    i64::from(i16::from_be_bytes([s[2 * i], s[2 * i + 1]]))
}

#[inline]
pub(super) fn q4(row: &[u8], groups: usize, a: &Activation) -> i64 {
    let mut total = 0;
    for g in 0..groups {
        let v = bytes(row, 4 * groups + 16 * g);
        let at = |i: usize| words(&a.wide, GROUP * g + 8 * i);
        // SAFETY: NEON is part of the target.
        let dot = unsafe {
            let (low, high) = (vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8::<4>(v));
            let dot = add(vdupq_n_s32(0), vreinterpretq_s8_u8(low), at(0), at(1));
            vaddvq_s32(add(dot, vreinterpretq_s8_u8(high), at(2), at(3)))
        };
        let sum = 1024 * i64::from(a.coarse[g]) + i64::from(a.fine[g]);
        total += word(row, g) * i64::from(dot) + 2 * word(row, groups + g) * sum;
    }
    total
}

#[inline]
pub(super) fn q8(row: &[u8], groups: usize, a: &Activation) -> i64 {
    let mut total = 0;
    for g in 0..groups {
        let q = |i: usize| bytes(row, 2 * groups + GROUP * g + 16 * i);
        let at = |i: usize| words(&a.wide, GROUP * g + 8 * i);
        // SAFETY: NEON is part of the target.
        let dot = unsafe {
            let dot = add(vdupq_n_s32(0), vreinterpretq_s8_u8(q(0)), at(0), at(1));
            vaddvq_s32(add(dot, vreinterpretq_s8_u8(q(1)), at(2), at(3)))
        };
        total += word(row, g) * i64::from(dot);
    }
    total
}
