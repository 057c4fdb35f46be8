//! Operators whose output elements are independent of each other. Cubes: elements × rows.

use cubecl::prelude::*;

use super::arith::*;
use super::{Rows, line, start};

#[cube(launch_unchecked)]
pub(crate) fn gain(ctx: &[u32], x: &[i32], s: &[i32], out: &mut [i32], xr: Rows, or: Rows, n: u32, period: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let line = line(ctx, r);
        let v = x[(start(&xr, &line) + i) as usize];
        out[(start(&or, &line) + i) as usize] = smul15(v, s[(i % period) as usize]);
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
        let line = line(ctx, r);
        let max = u32::reinterpret(a[(start(&ar, &line) + i / group) as usize]);
        let value = v[(start(&vr, &line) + i) as usize];
        out[(start(&or, &line) + i) as usize] = quant(value, max, bits);
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
        let line = line(ctx, r);
        let max = u32::reinterpret(a[(start(&ar, &line) + i) as usize]);
        let o = start(&or, &line) + 2u32 * i;
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
        let line = line(ctx, r);
        let max = u32::reinterpret(a[(start(&ar, &line) + i) as usize]);
        let p = quant_mantissa(max, 8u32) * c_m;
        let b = p >> 31u32;
        let o = start(&or, &line) + 2u32 * i;
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
        let line = line(ctx, r);
        let t = line.t;
        let at = start(&xr, &line) + 2u32 * i;
        let (a, b) = (x[at as usize], x[(at + 1u32) as usize]);
        let entry = t * half + i % half;
        let (c, s) = (cos[entry as usize], sin[entry as usize]);
        let o = start(&or, &line) + 2u32 * i;
        out[o as usize] = smul15(a, c) - smul15(b, s);
        out[(o + 1u32) as usize] = smul15(a, s) + smul15(b, c);
    }
}

#[cube(launch_unchecked)]
pub(crate) fn fixed(ctx: &[u32], v: &[i32], out: &mut [i32], vr: Rows, or: Rows, n: u32, s: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let line = line(ctx, r);
        out[(start(&or, &line) + i) as usize] = to_fixed(v[(start(&vr, &line) + i) as usize], s);
    }
}

/// `SILU_MUL` and `GELU_MUL`.
#[cube(launch_unchecked)]
pub(crate) fn gate(
    ctx: &[u32],
    g: &[i32],
    u: &[i32],
    table: &[i32],
    out: &mut [i32],
    gr: Rows,
    ur: Rows,
    or: Rows,
    n: u32,
    #[comptime] gelu: bool,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let line = line(ctx, r);
        let up = u[(start(&ur, &line) + i) as usize];
        out[(start(&or, &line) + i) as usize] = gated(g[(start(&gr, &line) + i) as usize], up, table, gelu);
    }
}

/// `DEQUANT`.
#[cube(launch_unchecked)]
pub(crate) fn dequantise(
    ctx: &[u32],
    a: &[i32],
    scale: &[i32],
    out: &mut [i32],
    ar: Rows,
    sr: Rows,
    or: Rows,
    n: u32,
    fraction: i32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let line = line(ctx, r);
        let at = start(&sr, &line);
        let m = u32::reinterpret(scale[at as usize]);
        let e = scale[(at + 1u32) as usize];
        out[(start(&or, &line) + i) as usize] = smulrs(a[(start(&ar, &line) + i) as usize], m, 0i32 - e - fraction);
    }
}

/// `SOFT_CAP` of `n` elements, or where `per_position` of that many for each position up to the row's own.
#[cube(launch_unchecked)]
pub(crate) fn cap(
    ctx: &[u32],
    x: &[i32],
    table: &[i32],
    out: &mut [i32],
    xr: Rows,
    or: Rows,
    n: u32,
    cap: u32,
    m: u32,
    sh: i32,
    #[comptime] per_position: bool,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let t = line.t;
    let mut count = n;
    if comptime!(per_position) {
        count = n * (t + 1u32);
    }
    if i < count {
        out[(start(&or, &line) + i) as usize] = soft_cap(x[(start(&xr, &line) + i) as usize], cap, m, sh, table);
    }
}

/// `WINDOW` of `heads` rows of scores.
#[cube(launch_unchecked)]
pub(crate) fn window(ctx: &[u32], s: &[i32], width: &[i32], out: &mut [i32], sr: Rows, or: Rows, heads: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let t = line.t;
    if i < heads * (t + 1u32) {
        let own = s[(start(&sr, &line) + i) as usize];
        out[(start(&or, &line) + i) as usize] = windowed(own, i % (t + 1u32), t, u32::reinterpret(width[0]));
    }
}

#[cube(launch_unchecked)]
pub(crate) fn add(ctx: &[u32], x: &[i32], y: &[i32], out: &mut [i32], xr: Rows, yr: Rows, or: Rows, n: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < n {
        let line = line(ctx, r);
        let a = x[(start(&xr, &line) + i) as usize];
        let b = y[(start(&yr, &line) + i) as usize];
        out[(start(&or, &line) + i) as usize] = add_clamp(a, b);
    }
}
