//! Runs of operators that one cube computes together, because a dispatch costs more than most operators. They write only
//! what later operators read; the arithmetic is that of the single kernels.

use cubecl::prelude::*;

use super::arith::*;
use super::{Rows, start};

/// The largest of what the units hold, for all of them.
#[cube]
fn shared_max(own: u32, #[comptime] units: u32) -> u32 {
    let mut shared = Shared::<[u32]>::new_slice(units as usize);
    shared[UNIT_POS as usize] = own;
    sync_cube();
    let mut max = own;
    for u in 0..units {
        let m = shared[u as usize];
        if m > max {
            max = m;
        }
    }
    sync_cube();
    max
}

/// The sum of what the units hold, for all of them.
#[cube]
fn shared_sum(own: u32, #[comptime] units: u32) -> u32 {
    let mut shared = Shared::<[u32]>::new_slice(units as usize);
    shared[UNIT_POS as usize] = own;
    sync_cube();
    let mut sum = 0u32;
    for u in 0..units {
        sum += shared[u as usize];
    }
    sync_cube();
    sum
}

/// `MAX_ABS`, `SUM_SQ`, `RMS`, `GAIN`, `MAX_ABS`, `QUANT`, `NORM_SCALE` of a vector that is one group. One cube per row.
#[cube(launch_unchecked)]
pub(crate) fn norm(
    ctx: &[u32],
    x: &[i32],
    gain: &[i32],
    out: &mut [i32],
    scale: &mut [i32],
    xr: Rows,
    or: Rows,
    sr: Rows,
    n: u32,
    x_floor: u32,
    epsilon: u32,
    v_floor: u32,
    bits: u32,
    scale_bits: u32,
    #[comptime] units: u32,
) {
    let r = CUBE_POS_X;
    let t = ctx[0] + r;
    let from = start(&xr, r, t);

    let mut own = x_floor;
    let mut i = UNIT_POS;
    while i < n {
        let m = magnitude(x[(from + i) as usize]);
        if m > own {
            own = m;
        }
        i += units;
    }
    let x_max = shared_max(own, units);

    let mut low = 0u32;
    let mut high = 0u32;
    let mut top = v_floor;
    let mut j = UNIT_POS;
    while j < n {
        let value = x[(from + j) as usize];
        let y = norm_term(magnitude(value), x_max);
        let square = y * y;
        low += square & 65535u32;
        high += square >> 16u32;
        let v = magnitude(smul15(value, gain[j as usize]));
        if v > top {
            top = v;
        }
        j += units;
    }
    let ss_low = shared_sum(low, units);
    let ss_high = shared_sum(high, units);
    let v_max = shared_max(top, units);

    let to = start(&or, r, t);
    let mut k = UNIT_POS;
    while k < n {
        let v = smul15(x[(from + k) as usize], gain[k as usize]);
        out[(to + k) as usize] = quant(v, v_max, bits);
        k += units;
    }

    if UNIT_POS == 0u32 {
        let y = norm_term(epsilon, x_max);
        let square = y * y;
        // Both sums are below 2^27 + 2^16, so the carries fit.
        let limb0 = ss_low + (square & 65535u32);
        let upper = ss_high + (square >> 16u32) + (limb0 >> 16u32);
        let (root, sf) = root_of((limb0 & 65535u32) | (upper << 16u32), upper >> 16u32);
        let mut divisor = root;
        if root == 0u32 {
            divisor = 1u32;
        }
        let exponent = bitlen(x_max) - 16i32 + (sf >> 1u32) as i32;
        let m = quant_mantissa(v_max, scale_bits);
        let mut c = 16u32;
        if m >= divisor {
            c = 15u32;
        }
        let s = start(&sr, r, t);
        scale[s as usize] = i32::reinterpret((m << c) / divisor);
        scale[(s + 1u32) as usize] = quant_exponent(v_max, scale_bits) + gain[n as usize] - exponent - c as i32;
    }
}

/// `MAX_ABS`, `QUANT` and `QUANT_SCALE`, or `SCALE_Q` where `constant`. Cubes: groups × rows.
#[cube(launch_unchecked)]
pub(crate) fn quantise(
    ctx: &[u32],
    x: &[i32],
    out: &mut [i32],
    scale: &mut [i32],
    xr: Rows,
    or: Rows,
    sr: Rows,
    group: u32,
    floor: u32,
    bits: u32,
    scale_bits: u32,
    exponent: i32,
    c_m: u32,
    c_e: i32,
    #[comptime] units: u32,
    #[comptime] constant: bool,
) {
    let (g, r) = (CUBE_POS_X, CUBE_POS_Y);
    let t = ctx[0] + r;
    let from = start(&xr, r, t) + g * group;
    let mut own = floor;
    let mut i = UNIT_POS;
    while i < group {
        let m = magnitude(x[(from + i) as usize]);
        if m > own {
            own = m;
        }
        i += units;
    }
    let max = shared_max(own, units);
    let to = start(&or, r, t) + g * group;
    let mut k = UNIT_POS;
    while k < group {
        out[(to + k) as usize] = quant(x[(from + k) as usize], max, bits);
        k += units;
    }
    if UNIT_POS == 0u32 {
        let s = start(&sr, r, t) + 2u32 * g;
        let mut m = quant_mantissa(max, scale_bits);
        let mut e = quant_exponent(max, scale_bits) + exponent;
        if comptime!(constant) {
            let p = m * c_m;
            let b = p >> 31u32;
            m = p >> (15u32 + b);
            e = e + c_e + 15i32 + b as i32;
        }
        scale[s as usize] = i32::reinterpret(m);
        scale[(s + 1u32) as usize] = e;
    }
}

/// `SCORES`, `ROW_MAX`, `EXP`, `ROW_SUM`, `PROB`. Cubes: heads × rows. A unit keeps to its own positions, so what it stores
/// between the steps only it reads; the last slab of a running reduction is the reduction over all positions.
#[cube(launch_unchecked)]
pub(crate) fn probabilities(
    ctx: &[u32],
    q: &[i32],
    qs: &[i32],
    k: &[i32],
    ks: &[i32],
    table: &[i32],
    out: &mut [i32],
    qr: Rows,
    qsr: Rows,
    k_stride: u32,
    ks_stride: u32,
    or: Rows,
    group: u32,
    shared_by: u32,
    #[comptime] units: u32,
) {
    let (h, r) = (CUBE_POS_X, CUBE_POS_Y);
    let t = ctx[0] + r;
    let n = t + 1u32;
    let kv = h / shared_by;
    let query = start(&qr, r, t) + h * group;
    let query_scale = start(&qsr, r, t) + 2u32 * h;
    let qm = u32::reinterpret(qs[query_scale as usize]);
    let qe = qs[(query_scale + 1u32) as usize];
    let to = start(&or, r, t) + h * n;

    let mut top = i32::reinterpret(0x8000_0001u32);
    let mut j = UNIT_POS;
    while j < n {
        let key = j * k_stride + kv * group;
        let mut acc = 0i32;
        for d in 0..group {
            acc += q[(query + d) as usize] * k[(key + d) as usize];
        }
        let key_scale = j * ks_stride + 2u32 * kv;
        let m = qm * u32::reinterpret(ks[key_scale as usize]);
        let s = smulrs(acc, m, 0i32 - qe - ks[(key_scale + 1u32) as usize]);
        out[(to + j) as usize] = s;
        if s > top {
            top = s;
        }
        j += units;
    }
    // Order as unsigned words, for the one maximum there is.
    let biased = shared_max(u32::reinterpret(top) ^ 0x8000_0000u32, units);
    let max = i32::reinterpret(biased ^ 0x8000_0000u32);

    let mut own = 0u32;
    let mut i = UNIT_POS;
    while i < n {
        let e = exp2neg(u32::reinterpret(max - out[(to + i) as usize]), table);
        out[(to + i) as usize] = i32::reinterpret(e);
        own += e;
        i += units;
    }
    let z = shared_sum(own, units);
    let mut p = UNIT_POS;
    while p < n {
        let e = u32::reinterpret(out[(to + p) as usize]);
        out[(to + p) as usize] = i32::reinterpret(prob(e, z));
        p += units;
    }
}
