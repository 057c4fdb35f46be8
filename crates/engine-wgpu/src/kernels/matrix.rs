//! Operators that read weights.
//!
//! A matrix (or a run of its rows, where a binding cannot hold all) is stored as 4-vectors of words: word `[k/4][row]` holds
//! elements k … k+3 of a row, the first in its low byte, and a vector holds four neighbouring rows. Rows and columns are
//! padded with zeros. A scale is a word: mantissa in the low half, shift in the high half.

use cubecl::prelude::*;

use super::arith::*;
use super::{Rows, start};

/// Byte `k` of every word, sign-extended.
#[cube]
fn byte<N: Size>(words: Vector<i32, N>, #[comptime] k: u32) -> Vector<i32, N> {
    let left = comptime!((24 - 8 * k) as i32);
    (words << Vector::new(left)) >> Vector::new(24i32)
}

/// `EMBED`. Cubes: elements × rows. Tokens whose row another part of the matrix holds are left to that part.
#[cube(launch_unchecked)]
pub(crate) fn embed(
    ctx: &[u32],
    weights: &[u32],
    scales: &[u32],
    out: &mut [i32],
    or: Rows,
    n: u32,
    first_row: u32,
    rows: u32,
    padded_rows: u32,
    scale_offset: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    let token = ctx[(1u32 + r) as usize];
    if i < n && token >= first_row && token - first_row < rows {
        let t = ctx[0] + r;
        let row = token - first_row;
        let word = weights[((i >> 2u32) * padded_rows + row) as usize];
        let b = (word >> (8u32 * (i & 3u32))) & 255u32;
        let x = (b ^ 128u32) as i32 - 128i32;
        let scale = scales[(scale_offset + row) as usize];
        out[(start(&or, r, t) + i) as usize] = smulrs(x, scale & 65535u32, scale_shift(scale));
    }
}

#[cube]
fn scale_shift(scale: u32) -> i32 {
    ((scale >> 16u32) ^ 32768u32) as i32 - 32768i32
}

/// `LINEAR`. Cubes: row quads × tiles of the batch. A unit computes four rows for `tile` positions; `splits` units share
/// the columns and fold their partial sums, which is exact in any order.
#[cube(launch_unchecked)]
pub(crate) fn linear<N: Size>(
    ctx: &[u32],
    a: &[i32],
    scale: &[i32],
    weights: &[Vector<i32, N>],
    scales: &[u32],
    out: &mut [i32],
    ar: Rows,
    sr: Rows,
    or: Rows,
    batch: u32,
    words: u32,
    quads: u32,
    first_row: u32,
    rows: u32,
    scale_offset: u32,
    #[comptime] tile: u32,
    #[comptime] lanes: u32,
    #[comptime] splits: u32,
) {
    let quad = CUBE_POS_X * lanes + UNIT_POS_X;
    let r0 = CUBE_POS_Y * tile;
    let mut starts = Array::<u32>::new(comptime!(tile as usize));
    let mut acc = Array::<Vector<i32, N>>::new(comptime!(tile as usize));
    #[unroll]
    for p in 0..tile {
        // Rows beyond the batch repeat its last one and are not written.
        let mut r = r0 + p;
        if r >= batch {
            r = batch - 1u32;
        }
        starts[p as usize] = start(&ar, r, ctx[0] + r);
        acc[p as usize] = Vector::new(0i32);
    }
    if quad < quads {
        // Where nothing is split, the column must not depend on the unit even formally: a software adapter then loads an
        // activation once for all lanes.
        let mut k = 0u32;
        if comptime!(splits > 1) {
            k = UNIT_POS_Y;
        }
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
        }
    }
    if UNIT_POS_Y == 0u32 && quad < quads {
        #[unroll]
        for p in 0..tile {
            let r = r0 + p;
            if r < batch {
                let t = ctx[0] + r;
                let at = start(&sr, r, t);
                let am = u32::reinterpret(scale[at as usize]);
                let ae = scale[(at + 1u32) as usize];
                let o = start(&or, r, t) + first_row;
                #[unroll]
                for lane in 0..4u32 {
                    let row = 4u32 * quad + lane;
                    if row < rows {
                        let w = scales[(scale_offset + row) as usize];
                        let sum = acc[p as usize].extract(lane as usize);
                        out[(o + row) as usize] = smulrs(sum, am * (w & 65535u32), scale_shift(w) - ae);
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
    let t = ctx[0] + r;
    let from = start(&lr, r, t);
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
        out[start(&or, r, t) as usize] = i32::reinterpret(best);
    }
}
