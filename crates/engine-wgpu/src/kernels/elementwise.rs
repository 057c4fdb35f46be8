//! Operators whose output elements are independent of each other. Cubes: elements × rows.

use cubecl::prelude::*;

use super::arith::*;
use super::{Rows, start};

#[cube(launch_unchecked)]
pub(crate) fn gain(ctx: &[u32], x: &[i32], s: &[i32], out: &mut [i32], xr: Rows, or: Rows, n: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let t = ctx[0] + r;
        let v = x[(start(&xr, r, t) + i) as usize];
        out[(start(&or, r, t) + i) as usize] = smul15(v, s[i as usize]);
    }
}

#[cube(launch_unchecked)]
pub(crate) fn quantise(
    ctx: &[u32],
    v: &[i32],
    a: &[i32],
    out: &mut [i32],
    vr: Rows,
    ar: Rows,
    or: Rows,
    n: u32,
    group: u32,
    bits: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let t = ctx[0] + r;
        let max = u32::reinterpret(a[(start(&ar, r, t) + i / group) as usize]);
        let value = v[(start(&vr, r, t) + i) as usize];
        out[(start(&or, r, t) + i) as usize] = quant(value, max, bits);
    }
}

/// One unit per group.
#[cube(launch_unchecked)]
pub(crate) fn quant_scale(
    ctx: &[u32],
    a: &[i32],
    out: &mut [i32],
    ar: Rows,
    or: Rows,
    groups: u32,
    bits: u32,
    exponent: i32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < groups {
        let t = ctx[0] + r;
        let max = u32::reinterpret(a[(start(&ar, r, t) + i) as usize]);
        let o = start(&or, r, t) + 2u32 * i;
        out[o as usize] = i32::reinterpret(quant_mantissa(max, bits));
        out[(o + 1u32) as usize] = quant_exponent(max, bits) + exponent;
    }
}

/// One unit per group.
#[cube(launch_unchecked)]
pub(crate) fn scale_q(
    ctx: &[u32],
    a: &[i32],
    out: &mut [i32],
    ar: Rows,
    or: Rows,
    groups: u32,
    exponent: i32,
    c_m: u32,
    c_e: i32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < groups {
        let t = ctx[0] + r;
        let max = u32::reinterpret(a[(start(&ar, r, t) + i) as usize]);
        let p = quant_mantissa(max, 8u32) * c_m;
        let b = p >> 31u32;
        let o = start(&or, r, t) + 2u32 * i;
        out[o as usize] = i32::reinterpret(p >> (15u32 + b));
        out[(o + 1u32) as usize] = quant_exponent(max, 8u32) + exponent + c_e + 15i32 + b as i32;
    }
}

/// One unit per pair.
#[cube(launch_unchecked)]
pub(crate) fn rope(
    ctx: &[u32],
    x: &[i32],
    cos: &[i32],
    sin: &[i32],
    out: &mut [i32],
    xr: Rows,
    or: Rows,
    pairs: u32,
    half: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < pairs {
        let t = ctx[0] + r;
        let at = start(&xr, r, t) + 2u32 * i;
        let (a, b) = (x[at as usize], x[(at + 1u32) as usize]);
        let entry = t * half + i % half;
        let (c, s) = (cos[entry as usize], sin[entry as usize]);
        let o = start(&or, r, t) + 2u32 * i;
        out[o as usize] = smul15(a, c) - smul15(b, s);
        out[(o + 1u32) as usize] = smul15(a, s) + smul15(b, c);
    }
}

#[cube(launch_unchecked)]
pub(crate) fn fixed(ctx: &[u32], v: &[i32], out: &mut [i32], vr: Rows, or: Rows, n: u32, s: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let t = ctx[0] + r;
        out[(start(&or, r, t) + i) as usize] = to_fixed(v[(start(&vr, r, t) + i) as usize], s);
    }
}

#[cube(launch_unchecked)]
pub(crate) fn silu(
    ctx: &[u32],
    g: &[i32],
    u: &[i32],
    table: &[i32],
    out: &mut [i32],
    gr: Rows,
    ur: Rows,
    or: Rows,
    n: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let t = ctx[0] + r;
        let gate = g[(start(&gr, r, t) + i) as usize];
        let up = u[(start(&ur, r, t) + i) as usize];
        let e = exp2neg(mul15r(magnitude(gate), 23637u32), table);
        out[(start(&or, r, t) + i) as usize] = silu_mul(gate, up, e);
    }
}

#[cube(launch_unchecked)]
pub(crate) fn add(ctx: &[u32], x: &[i32], y: &[i32], out: &mut [i32], xr: Rows, yr: Rows, or: Rows, n: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let t = ctx[0] + r;
        let a = x[(start(&xr, r, t) + i) as usize];
        let b = y[(start(&yr, r, t) + i) as usize];
        out[(start(&or, r, t) + i) as usize] = add_clamp(a, b);
    }
}
