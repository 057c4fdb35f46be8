//! Reductions over a vector and the few-element operators of the norm. Sums beyond 32 bits are kept in 16-bit limbs.

use cubecl::prelude::*;

use super::arith::*;
use super::{Rows, line, start};

/// `MAX_ABS`. Cubes: groups × rows; the units of a cube share a group.
#[cube(launch_unchecked)]
pub(crate) fn max_abs(
    ctx: &[u32],
    x: &[i32],
    out: &mut [i32],
    xr: Rows,
    or: Rows,
    group: u32,
    floor: u32,
    #[comptime] units: u32,
) {
    let (i, r) = (CUBE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let from = start(&xr, &line) + i * group;
    let mut max = floor;
    let mut k = UNIT_POS;
    while k < group {
        let m = magnitude(x[(from + k) as usize]);
        if m > max {
            max = m;
        }
        k += units;
    }
    let mut shared = Shared::<[u32]>::new_slice(units as usize);
    shared[UNIT_POS as usize] = max;
    sync_cube();
    if UNIT_POS == 0u32 {
        for u in 1..units {
            let m = shared[u as usize];
            if m > max {
                max = m;
            }
        }
        out[(start(&or, &line) + i) as usize] = i32::reinterpret(max);
    }
}

/// `SUM_SQ`. Cubes: groups × rows. `each` is 1 where every group has a maximum of its own, otherwise 0. Each square is below 2^32; with at most 2,048 per group both halves stay below 2^27.
#[cube(launch_unchecked)]
pub(crate) fn sum_sq(
    ctx: &[u32],
    x: &[i32],
    max: &[i32],
    out: &mut [i32],
    xr: Rows,
    mr: Rows,
    or: Rows,
    group: u32,
    each: u32,
    #[comptime] units: u32,
) {
    let (i, r) = (CUBE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let from = start(&xr, &line) + i * group;
    let max_abs = u32::reinterpret(max[(start(&mr, &line) + i * each) as usize]);
    let mut low = 0u32;
    let mut high = 0u32;
    let mut k = UNIT_POS;
    while k < group {
        let y = norm_term(magnitude(x[(from + k) as usize]), max_abs);
        let square = y * y;
        low += square & 65535u32;
        high += square >> 16u32;
        k += units;
    }
    let mut lows = Shared::<[u32]>::new_slice(units as usize);
    let mut highs = Shared::<[u32]>::new_slice(units as usize);
    lows[UNIT_POS as usize] = low;
    highs[UNIT_POS as usize] = high;
    sync_cube();
    if UNIT_POS == 0u32 {
        for u in 1..units {
            low += lows[u as usize];
            high += highs[u as usize];
        }
        let o = start(&or, &line) + 2u32 * i;
        out[o as usize] = i32::reinterpret(high + (low >> 16u32));
        out[(o + 1u32) as usize] = i32::reinterpret(low & 65535u32);
    }
}

/// `RMS`, one unit per result. Cubes: results × rows.
#[cube(launch_unchecked)]
pub(crate) fn rms(
    ctx: &[u32],
    ss: &[i32],
    max: &[i32],
    out: &mut [i32],
    sr: Rows,
    mr: Rows,
    or: Rows,
    groups: u32,
    epsilon: u32,
    n: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let line = line(ctx, r);
        let max_abs = u32::reinterpret(max[(start(&mr, &line) + i) as usize]);
        let from = start(&sr, &line) + 2u32 * groups * i;
        let mut limb0 = 0u32;
        let mut limb1 = 0u32;
        let mut limb2 = 0u32;
        for g in 0..groups {
            let upper = u32::reinterpret(ss[(from + 2u32 * g) as usize]);
            let lower = u32::reinterpret(ss[(from + 2u32 * g + 1u32) as usize]);
            limb0 += lower & 65535u32;
            limb1 += (lower >> 16u32) + (upper & 65535u32);
            limb2 += upper >> 16u32;
        }
        let y = norm_term(epsilon, max_abs);
        let square = y * y;
        limb0 += square & 65535u32;
        limb1 += (square >> 16u32) + (limb0 >> 16u32);
        limb2 += limb1 >> 16u32;
        let low = (limb0 & 65535u32) | (limb1 << 16u32);
        let high = limb2;

        let (root, sf) = root_of(low, high);
        let o = start(&or, &line) + 2u32 * i;
        out[o as usize] = i32::reinterpret(root);
        out[(o + 1u32) as usize] = bitlen(max_abs) - 16i32 + (sf >> 1u32) as i32;
    }
}

/// `NORM_SCALE`, one unit per scale. Cubes: scales × rows.
#[cube(launch_unchecked)]
pub(crate) fn norm_scale(
    ctx: &[u32],
    a: &[i32],
    rms: &[i32],
    gain: &[i32],
    out: &mut [i32],
    ar: Rows,
    rr: Rows,
    or: Rows,
    n: u32,
    bits: u32,
    scales: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < scales {
        let line = line(ctx, r);
        let max_abs = u32::reinterpret(a[(start(&ar, &line) + i) as usize]);
        let at = start(&rr, &line) + 2u32 * i;
        let root = u32::reinterpret(rms[at as usize]);
        let (m, e) = divided_scale(max_abs, bits, root, rms[(at + 1u32) as usize]);
        let o = start(&or, &line) + 2u32 * i;
        out[o as usize] = i32::reinterpret(m);
        out[(o + 1u32) as usize] = e + gain[n as usize];
    }
}
