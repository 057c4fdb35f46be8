//! Stored rows to single precision.
//!
//! The arithmetic is that of the format's reference: single precision, every product and sum rounded by itself, in this order.
//! Another order would be other numbers, and so another model id for the same file.

use half::{bf16, f16};

use super::types::{BLOCK, SUPER_BLOCK, TensorType};

pub(super) fn half(b: &[u8]) -> f32 {
    f16::from_le_bytes([b[0], b[1]]).to_f32()
}

/// One row of a tensor; `bytes` and `out` are whole units of the same number.
pub(super) fn row(dtype: TensorType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        TensorType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        TensorType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
        TensorType::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = bf16::from_le_bytes(*b).to_f32();
            }
        }
        TensorType::Q8_0 => units(dtype, bytes, out, q8_0),
        TensorType::Q4_0 => units(dtype, bytes, out, q4_0),
        TensorType::Q4_1 => units(dtype, bytes, out, q4_1),
        TensorType::Q5_0 => units(dtype, bytes, out, q5_0),
        TensorType::Q5_1 => units(dtype, bytes, out, q5_1),
        TensorType::Q2K => units(dtype, bytes, out, q2_k),
        TensorType::Q3K => units(dtype, bytes, out, q3_k),
        TensorType::Q4K => units(dtype, bytes, out, q4_k),
        TensorType::Q5K => units(dtype, bytes, out, q5_k),
        TensorType::Q6K => units(dtype, bytes, out, q6_k),
    }
}

fn units(dtype: TensorType, bytes: &[u8], out: &mut [f32], unit: impl Fn(&[u8], &mut [f32])) {
    let (weights, size) = dtype.unit();
    for (o, b) in out.chunks_exact_mut(weights).zip(bytes.chunks_exact(size)) {
        unit(b, o);
    }
}

fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = half(b);
    for (o, q) in out.iter_mut().zip(&b[2..]) {
        *o = *q as i8 as f32 * d;
    }
}

fn q4_0(b: &[u8], out: &mut [f32]) {
    let d = half(b);
    for (i, q) in b[2..].iter().enumerate() {
        out[i] = ((q & 15) as i32 - 8) as f32 * d;
        out[i + BLOCK / 2] = ((q >> 4) as i32 - 8) as f32 * d;
    }
}

fn q4_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    for (i, q) in b[4..].iter().enumerate() {
        out[i] = (q & 15) as f32 * d + m;
        out[i + BLOCK / 2] = (q >> 4) as f32 * d + m;
    }
}

/// 5-bit integers: the fifth bits as a little-endian word of 32, then 16 bytes of the low four.
pub(super) fn fives(b: &[u8]) -> [u8; BLOCK] {
    let high = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let mut q = [0; BLOCK];
    for (i, low) in b[4..4 + BLOCK / 2].iter().enumerate() {
        q[i] = low & 15;
        q[i + BLOCK / 2] = low >> 4;
    }
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high >> i & 1) << 4) as u8;
    }
    q
}

fn q5_0(b: &[u8], out: &mut [f32]) {
    let d = half(b);
    for (o, q) in out.iter_mut().zip(fives(&b[2..])) {
        *o = (i32::from(q) - 16) as f32 * d;
    }
}

fn q5_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    for (o, q) in out.iter_mut().zip(fives(&b[4..])) {
        *o = f32::from(q) * d + m;
    }
}

/// 16 pairs of scale (low nibble) and minimum (high nibble), 64 bytes of 2-bit integers, scale, scale of the minima. A byte
/// holds four elements of a half block that are 32 apart.
fn q2_k(b: &[u8], out: &mut [f32]) {
    let (scales, q) = (&b[..16], &b[16..80]);
    let (d, dmin) = (half(&b[80..]), half(&b[82..]));
    for (i, o) in out.iter_mut().enumerate() {
        let (part, plane, column) = (i / 128, i / 32 % 4, i % 32);
        let scale = scales[i / 16];
        let (d, m) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        *o = d * f32::from(q[part * 32 + column] >> (2 * plane) & 3) - m;
    }
}

/// 32 bytes of inverted third bits, 64 bytes of 2-bit integers as in Q2_K, 16 scales of 6 bits, scale.
fn q3_k(b: &[u8], out: &mut [f32]) {
    let (high, low, packed, d) = (&b[..32], &b[32..96], &b[96..108], half(&b[108..]));
    // Scales: the low four bits as nibbles of 8 bytes, the high two in four planes of the other 4 bytes.
    let scale = |j: usize| {
        let nibble = packed[j % 8] >> (4 * (j / 8)) & 15;
        let top = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        i32::from(nibble | top << 4) - 32
    };
    for (i, o) in out.iter_mut().enumerate() {
        let (part, plane, column) = (i / 128, i / 32 % 4, i % 32);
        let q = i32::from(low[part * 32 + column] >> (2 * plane) & 3);
        let q = if high[column] >> (part * 4 + plane) & 1 == 0 { q - 4 } else { q };
        *o = d * scale(i / 16) as f32 * q as f32;
    }
}

/// Scale and minimum number `j` of the eight pairs of 6 bits that 12 bytes hold: four whole pairs in the low bits of the first
/// eight bytes, whose two high bits are those of the other four, with nibbles in the last four bytes.
pub(super) fn scale_and_minimum(b: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (b[j] & 63, b[j + 4] & 63)
    } else {
        (b[j + 4] & 15 | b[j - 4] >> 6 << 4, b[j + 4] >> 4 | b[j] >> 6 << 4)
    }
}

/// Scale, scale of the minima, pairs, 128 bytes: each 32 of them hold 64 elements, the first 32 in their low nibbles.
fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(b), half(&b[2..]));
    for (j, o) in out.chunks_exact_mut(BLOCK).enumerate() {
        let (scale, minimum) = scale_and_minimum(&b[4..16], j);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (o, q) in o.iter_mut().zip(&b[16 + j / 2 * BLOCK..]) {
            *o = d * f32::from(q >> (4 * (j % 2)) & 15) - m;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit j of byte i belongs to element i of group j.
fn q5_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(b), half(&b[2..]));
    let high = &b[16..48];
    for (j, o) in out.chunks_exact_mut(BLOCK).enumerate() {
        let (scale, minimum) = scale_and_minimum(&b[4..16], j);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(minimum));
        for ((o, q), high) in o.iter_mut().zip(&b[48 + j / 2 * BLOCK..]).zip(high) {
            let q = q >> (4 * (j % 2)) & 15 | (high >> j & 1) << 4;
            *o = d * f32::from(q) - m;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 scales of 8 bits, scale. In each half block, four groups of 32
/// elements share 64 bytes of nibbles (groups 0 and 2, 1 and 3) and 32 bytes of pairs.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(&b[208..]));
    for (i, o) in out.iter_mut().enumerate() {
        let (part, group, column) = (i / 128, i / 32 % 4, i % 32);
        let nibble = low[part * 64 + group % 2 * 32 + column] >> (4 * (group / 2)) & 15;
        let pair = high[part * 32 + column] >> (2 * group) & 3;
        let q = i32::from(nibble | pair << 4) - 32;
        *o = d * f32::from(scales[i / 16] as i8) * q as f32;
    }
}

const _: () = assert!(SUPER_BLOCK == 8 * BLOCK);
