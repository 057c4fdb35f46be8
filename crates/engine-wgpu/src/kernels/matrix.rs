//! Operators that read weights.
//!
//! A matrix (or a run of its rows, where a binding cannot hold all) is stored as 4-vectors of words: word `[k][row]` holds
//! four elements of a row, the first in its low byte, or eight of four bits in the order of the file, and a vector holds four
//! neighbouring rows. Rows and columns are padded with zeros. A scale is a word: mantissa in the low half, shift in the high
//! half. A group's word holds its scale in the low half and its minimum in the high half.
//!
//! Accumulators of the block formats have up to 48 bits and are kept as 2^16·high + low. Per group and row at most twice
//! 65,535 is added to `low`, so it stays below 2^32 for the 2^15 groups that a row may have; `high` wraps, which is exact
//! because the sum fits in the end.

use cubecl::prelude::*;

use super::arith::*;
use super::{Rows, line, start};

/// Rows of int8.
pub(crate) const I8: u32 = 0;
/// Groups of four bits with scale and minimum.
pub(crate) const Q4: u32 = 1;

/// Byte `k` of every word, sign-extended.
#[cube]
fn byte<N: Size>(words: Vector<i32, N>, #[comptime] k: u32) -> Vector<i32, N> {
    let left = comptime!((24 - 8 * k) as i32);
    (words << Vector::new(left)) >> Vector::new(24i32)
}

/// Four bits of every word, from bit `4·k` on.
#[cube]
fn nibble<N: Size>(words: Vector<i32, N>, #[comptime] k: u32) -> Vector<i32, N> {
    let right = comptime!((4 * k) as i32);
    (words >> Vector::new(right)) & Vector::new(15i32)
}

/// Sign-extends the low half.
#[cube]
fn low_half(word: u32) -> i32 {
    ((word & 65535u32) ^ 32768u32) as i32 - 32768i32
}

#[cube]
fn scale_shift(scale: u32) -> i32 {
    low_half(scale >> 16u32)
}

/// Weight `i` of a row.
#[cube]
fn weight(weights: &[u32], groups: &[u32], i: u32, row: u32, padded_rows: u32, #[comptime] format: u32) -> i32 {
    if comptime!(format == Q4) {
        let word = weights[(((i >> 5u32) * 4u32 + ((i & 15u32) >> 2u32)) * padded_rows + row) as usize];
        let q = (word >> (8u32 * (i & 3u32) + 4u32 * ((i >> 4u32) & 1u32))) & 15u32;
        let group = groups[((i >> 5u32) * padded_rows + row) as usize];
        low_half(group) * q as i32 + 2i32 * scale_shift(group)
    } else {
        let word = weights[((i >> 2u32) * padded_rows + row) as usize];
        let b = (word >> (8u32 * (i & 3u32))) & 255u32;
        let q = (b ^ 128u32) as i32 - 128i32;
        if comptime!(format == I8) { q } else { low_half(groups[((i >> 5u32) * padded_rows + row) as usize]) * q }
    }
}

/// `EMBED`. Cubes: elements × rows. Tokens whose row another part of the matrix holds are left to that part.
#[cube(launch_unchecked)]
pub(crate) fn embed(
    ctx: &[u32],
    weights: &[u32],
    groups: &[u32],
    scales: &[u32],
    out: &mut [i32],
    or: Rows,
    n: u32,
    first_row: u32,
    rows: u32,
    padded_rows: u32,
    scale_offset: u32,
    #[comptime] format: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    let token = ctx[(4u32 * r + 1u32) as usize];
    if i < n && token >= first_row && token - first_row < rows {
        let line = line(ctx, r);
        let row = token - first_row;
        let w = weight(weights, groups, i, row, padded_rows, format);
        let scale = scales[(scale_offset + row) as usize];
        out[(start(&or, &line) + i) as usize] = smulrs(w, scale & 65535u32, scale_shift(scale));
    }
}

/// `LINEAR`, and the `ADD` after it. Cubes: row quads × tiles of the batch. A unit computes four rows for `tile` positions;
/// `splits` units share the columns and fold their partial sums, which is exact in any order.
#[cube(launch_unchecked)]
pub(crate) fn linear<N: Size>(
    ctx: &[u32],
    a: &[i32],
    scale: &[i32],
    weights: &[Vector<i32, N>],
    groups: &[Vector<i32, N>],
    scales: &[u32],
    addend: &[i32],
    out: &mut [i32],
    ar: Rows,
    sr: Rows,
    dr: Rows,
    or: Rows,
    batch: u32,
    words: u32,
    quads: u32,
    first_row: u32,
    rows: u32,
    scale_offset: u32,
    #[comptime] format: u32,
    #[comptime] add: bool,
    #[comptime] tile: u32,
    #[comptime] lanes: u32,
    #[comptime] splits: u32,
) {
    let quad = CUBE_POS_X * lanes + UNIT_POS_X;
    let r0 = CUBE_POS_Y * tile;
    let mut starts = Array::<u32>::new(comptime!(tile as usize));
    // The accumulators, or where there are groups their upper parts.
    let mut acc = Array::<Vector<i32, N>>::new(comptime!(tile as usize));
    let mut low = Array::<Vector<i32, N>>::new(comptime!(if format == I8 { 1 } else { tile as usize }));
    #[unroll]
    for p in 0..tile {
        // Rows beyond the batch repeat its last one and are not written.
        let mut r = r0 + p;
        if r >= batch {
            r = batch - 1u32;
        }
        starts[p as usize] = start(&ar, &line(ctx, r));
        acc[p as usize] = Vector::new(0i32);
        if comptime!(format != I8) {
            low[p as usize] = Vector::new(0i32);
        }
    }
    if quad < quads {
        // Where nothing is split, the column must not depend on the unit even formally: a software adapter then loads an
        // activation once for all lanes.
        let mut k = 0u32;
        if comptime!(splits > 1) {
            k = UNIT_POS_Y;
        }
        if comptime!(format == I8) {
            while k < words {
                let word = weights[(k * quads + quad) as usize];
                let w0 = byte::<N>(word, 0u32);
                let w1 = byte::<N>(word, 1u32);
                let w2 = byte::<N>(word, 2u32);
                let w3 = byte::<N>(word, 3u32);
                #[unroll]
                for p in 0..tile {
                    // Beyond the last column the weights are zero and the buffers padded: whatever is read has no effect.
                    let at = starts[p as usize] + 4u32 * k;
                    let a0 = Vector::<i32, N>::new(a[at as usize]);
                    let a1 = Vector::<i32, N>::new(a[(at + 1u32) as usize]);
                    let a2 = Vector::<i32, N>::new(a[(at + 2u32) as usize]);
                    let a3 = Vector::<i32, N>::new(a[(at + 3u32) as usize]);
                    acc[p as usize] = acc[p as usize] + w0 * a0 + w1 * a1 + w2 * a2 + w3 * a3;
                }
                k += splits;
            }
        } else {
            let per_group = comptime!(if format == Q4 { 4u32 } else { 8u32 });
            // Here k numbers groups.
            while k * per_group < words {
                let group = groups[(k * quads + quad) as usize];
                let s = (group << Vector::new(16i32)) >> Vector::new(16i32);
                let m = group >> Vector::new(16i32);
                let mut dots = Array::<Vector<i32, N>>::new(comptime!(tile as usize));
                let mut sums = Array::<i32>::new(comptime!(tile as usize));
                #[unroll]
                for p in 0..tile {
                    dots[p as usize] = Vector::new(0i32);
                    sums[p as usize] = 0i32;
                }
                for i in 0..per_group {
                    let word = weights[((k * per_group + i) * quads + quad) as usize];
                    if comptime!(format == Q4) {
                        let w0 = nibble::<N>(word, 0u32);
                        let w1 = nibble::<N>(word, 2u32);
                        let w2 = nibble::<N>(word, 4u32);
                        let w3 = nibble::<N>(word, 6u32);
                        let v0 = nibble::<N>(word, 1u32);
                        let v1 = nibble::<N>(word, 3u32);
                        let v2 = nibble::<N>(word, 5u32);
                        let v3 = nibble::<N>(word, 7u32);
                        #[unroll]
                        for p in 0..tile {
                            let at = starts[p as usize] + 32u32 * k + 4u32 * i;
                            let (a0, a1) = (a[at as usize], a[(at + 1u32) as usize]);
                            let (a2, a3) = (a[(at + 2u32) as usize], a[(at + 3u32) as usize]);
                            let (b0, b1) = (a[(at + 16u32) as usize], a[(at + 17u32) as usize]);
                            let (b2, b3) = (a[(at + 18u32) as usize], a[(at + 19u32) as usize]);
                            let first = w0 * Vector::new(a0)
                                + w1 * Vector::new(a1)
                                + w2 * Vector::new(a2)
                                + w3 * Vector::new(a3);
                            let second = v0 * Vector::new(b0)
                                + v1 * Vector::new(b1)
                                + v2 * Vector::new(b2)
                                + v3 * Vector::new(b3);
                            dots[p as usize] = dots[p as usize] + first + second;
                            sums[p as usize] = sums[p as usize] + a0 + a1 + a2 + a3 + b0 + b1 + b2 + b3;
                        }
                    } else {
                        let w0 = byte::<N>(word, 0u32);
                        let w1 = byte::<N>(word, 1u32);
                        let w2 = byte::<N>(word, 2u32);
                        let w3 = byte::<N>(word, 3u32);
                        #[unroll]
                        for p in 0..tile {
                            let at = starts[p as usize] + 32u32 * k + 4u32 * i;
                            let a0 = Vector::<i32, N>::new(a[at as usize]);
                            let a1 = Vector::<i32, N>::new(a[(at + 1u32) as usize]);
                            let a2 = Vector::<i32, N>::new(a[(at + 2u32) as usize]);
                            let a3 = Vector::<i32, N>::new(a[(at + 3u32) as usize]);
                            dots[p as usize] = dots[p as usize] + w0 * a0 + w1 * a1 + w2 * a2 + w3 * a3;
                        }
                    }
                }
                #[unroll]
                for p in 0..tile {
                    // |s| < 2^12 and the lower half below 2^16: no product overflows.
                    let d = dots[p as usize];
                    let lower = s * (d & Vector::new(65535i32));
                    acc[p as usize] = acc[p as usize] + s * (d >> Vector::new(16i32)) + (lower >> Vector::new(16i32));
                    low[p as usize] = low[p as usize] + (lower & Vector::new(65535i32));
                    if comptime!(format == Q4) {
                        // |m| < 2^15 (importers keep −2^15 out), twice the sum of a group below 2^21.
                        let twice = sums[p as usize] + sums[p as usize];
                        let under = m * Vector::new(twice & 65535i32);
                        acc[p as usize] =
                            acc[p as usize] + m * Vector::new(twice >> 16i32) + (under >> Vector::new(16i32));
                        low[p as usize] = low[p as usize] + (under & Vector::new(65535i32));
                    }
                }
                k += splits;
            }
        }
    }
    if comptime!(splits > 1) {
        let cube = comptime!((lanes * splits) as usize);
        let mut shared = Shared::<[Vector<i32, N>]>::new_slice(cube);
        #[unroll]
        for p in 0..tile {
            shared[(UNIT_POS_Y * lanes + UNIT_POS_X) as usize] = acc[p as usize];
            sync_cube();
            if UNIT_POS_Y == 0u32 {
                for s in 1..splits {
                    acc[p as usize] += shared[(s * lanes + UNIT_POS_X) as usize];
                }
            }
            sync_cube();
            if comptime!(format != I8) {
                shared[(UNIT_POS_Y * lanes + UNIT_POS_X) as usize] = low[p as usize];
                sync_cube();
                if UNIT_POS_Y == 0u32 {
                    for s in 1..splits {
                        low[p as usize] += shared[(s * lanes + UNIT_POS_X) as usize];
                    }
                }
                sync_cube();
            }
        }
    }
    if UNIT_POS_Y == 0u32 && quad < quads {
        #[unroll]
        for p in 0..tile {
            let r = r0 + p;
            if r < batch {
                let line = line(ctx, r);
                let at = start(&sr, &line);
                let am = u32::reinterpret(scale[at as usize]);
                let ae = scale[(at + 1u32) as usize];
                let o = start(&or, &line) + first_row;
                let d = start(&dr, &line) + first_row;
                #[unroll]
                for lane in 0..4u32 {
                    let row = 4u32 * quad + lane;
                    if row < rows {
                        let w = scales[(scale_offset + row) as usize];
                        let mut sum = acc[p as usize].extract(lane as usize);
                        if comptime!(format != I8) {
                            let right = comptime!(if format == Q4 { 12u32 } else { 16u32 });
                            sum = narrow(sum, u32::reinterpret(low[p as usize].extract(lane as usize)), right);
                        }
                        let mut y = smulrs(sum, am * (w & 65535u32), scale_shift(w) - ae);
                        if comptime!(add) {
                            y = add_clamp(addend[(d + row) as usize], y);
                        }
                        out[(o + row) as usize] = y;
                    }
                }
            }
        }
    }
}

/// `SELECT`: the smallest index of the largest logit. One cube per row.
#[cube(launch_unchecked)]
pub(crate) fn select(
    ctx: &[u32],
    logits: &[i32],
    out: &mut [i32],
    lr: Rows,
    or: Rows,
    vocabulary: u32,
    #[comptime] units: u32,
) {
    let r = CUBE_POS_X;
    let line = line(ctx, r);
    let from = start(&lr, &line);
    let mut best = UNIT_POS;
    if best >= vocabulary {
        best = 0u32;
    }
    let mut top = logits[(from + best) as usize];
    let mut j = best + units;
    while j < vocabulary {
        let v = logits[(from + j) as usize];
        if v > top {
            top = v;
            best = j;
        }
        j += units;
    }
    let mut tops = Shared::<[i32]>::new_slice(units as usize);
    let mut bests = Shared::<[u32]>::new_slice(units as usize);
    tops[UNIT_POS as usize] = top;
    bests[UNIT_POS as usize] = best;
    sync_cube();
    if UNIT_POS == 0u32 {
        for u in 1..units {
            let v = tops[u as usize];
            let index = bests[u as usize];
            if v > top || (v == top && index < best) {
                top = v;
                best = index;
            }
        }
        out[start(&or, &line) as usize] = i32::reinterpret(best);
    }
}
