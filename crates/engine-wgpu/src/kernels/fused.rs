//! Runs of operators that one cube computes together, because a dispatch costs more than most operators. They write only
//! what later operators read; the arithmetic is that of the single kernels.

use cubecl::prelude::*;

use super::arith::*;
use super::attention::{After, score};
use super::{Rows, line, start};

/// The low byte of `q` as byte `b` of a word.
#[cube]
fn byte_at(q: u32, #[comptime] b: u32) -> u32 {
    (q & 255u32) << comptime!(8 * b)
}

/// Word `k` of a row of packed activations that begins at `to`: the low bytes of four of them and, where there are two planes,
/// the high ones before. See [`super::dot`].
#[cube]
fn store(out: &mut [i32], to: u32, k: u32, low: u32, high: u32, #[comptime] planes: u32) {
    if comptime!(planes == 1) {
        out[(to + k) as usize] = i32::reinterpret(low);
    } else {
        out[(to + 2u32 * k) as usize] = i32::reinterpret(high);
        out[(to + 2u32 * k + 1u32) as usize] = i32::reinterpret(low);
    }
}

/// Elements 4·k to 4·k + 3 of x, of which there are `n`, quantised and stored as [`store`] does.
#[cube]
fn quantise_word(
    x: &[i32],
    from: u32,
    n: u32,
    k: u32,
    max: u32,
    bits: u32,
    out: &mut [i32],
    to: u32,
    #[comptime] planes: u32,
) {
    let mut low = 0u32;
    let mut high = 0u32;
    #[unroll]
    for b in 0..4u32 {
        let i = 4u32 * k + b;
        if i < n {
            let q = u32::reinterpret(quant(x[(from + i) as usize], max, bits));
            low = low | byte_at(q, b);
            high = high | byte_at(q >> 8u32, b);
        }
    }
    store(out, to, k, low, high, planes);
}

/// The largest of what the units hold, for all of them.
#[cube]
fn shared_max(own: u32, #[comptime] units: u32) -> u32 {
    let mut shared = Shared::<[u32]>::new_slice(units as usize);
    shared[UNIT_POS as usize] = own;
    sync_cube();
    // Halved until few enough are left for every unit to look at all of them.
    let mut left = comptime!(units).runtime();
    while left > 32u32 {
        left /= 2u32;
        if UNIT_POS < left {
            let m = shared[(UNIT_POS + left) as usize];
            if m > shared[UNIT_POS as usize] {
                shared[UNIT_POS as usize] = m;
            }
        }
        sync_cube();
    }
    let mut max = shared[0];
    for u in 1..left {
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
    let mut left = comptime!(units).runtime();
    while left > 32u32 {
        left /= 2u32;
        if UNIT_POS < left {
            shared[UNIT_POS as usize] += shared[(UNIT_POS + left) as usize];
        }
        sync_cube();
    }
    let mut sum = 0u32;
    for u in 0..left {
        sum += shared[u as usize];
    }
    sync_cube();
    sum
}

/// `MAX_ABS`, `SUM_SQ`, `RMS`, `GAIN`, `MAX_ABS`, `QUANT`, `NORM_SCALE` of a whole vector of at most 2^15 elements, in
/// however many levels the maxima are taken. One cube per row.
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
    #[comptime] planes: u32,
) {
    let r = CUBE_POS_X;
    let line = line(ctx, r);
    let from = start(&xr, &line);

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

    let to = start(&or, &line);
    if comptime!(planes == 0) {
        let mut k = UNIT_POS;
        while k < n {
            let v = smul15(x[(from + k) as usize], gain[k as usize]);
            out[(to + k) as usize] = quant(v, v_max, bits);
            k += units;
        }
    } else {
        let mut k = UNIT_POS;
        while 4u32 * k < n {
            let mut low = 0u32;
            let mut high = 0u32;
            #[unroll]
            for b in 0..4u32 {
                let i = 4u32 * k + b;
                if i < n {
                    let v = smul15(x[(from + i) as usize], gain[i as usize]);
                    let q = u32::reinterpret(quant(v, v_max, bits));
                    low = low | byte_at(q, b);
                    high = high | byte_at(q >> 8u32, b);
                }
            }
            store(out, to, k, low, high, planes);
            k += units;
        }
    }

    if UNIT_POS == 0u32 {
        let y = norm_term(epsilon, x_max);
        let square = y * y;
        // Both sums are below 2^31 for 2^15 elements, so the carries fit.
        let limb0 = ss_low + (square & 65535u32);
        let upper = ss_high + (square >> 16u32) + (limb0 >> 16u32);
        let (root, sf) = root_of((limb0 & 65535u32) | (upper << 16u32), upper >> 16u32);
        let k = bitlen(x_max) - 16i32 + (sf >> 1u32) as i32;
        let (m, e) = divided_scale(v_max, scale_bits, root, k);
        let s = start(&sr, &line);
        scale[s as usize] = i32::reinterpret(m);
        scale[(s + 1u32) as usize] = e + gain[n as usize];
    }
}

/// The pair of `QUANT_SCALE`, or of `SCALE_Q` where `constant`.
#[cube]
fn scale_pair(max: u32, bits: u32, exponent: i32, c_m: u32, c_e: i32, #[comptime] constant: bool) -> (u32, i32) {
    let mut m = quant_mantissa(max, bits);
    let mut e = quant_exponent(max, bits) + exponent;
    if comptime!(constant) {
        let p = m * c_m;
        let b = p >> 31u32;
        m = p >> (15u32 + b);
        e = e + c_e + 15i32 + b as i32;
    }
    (m, e)
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
    #[comptime] planes: u32,
) {
    let (g, r) = (CUBE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let from = start(&xr, &line) + g * group;
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
    if comptime!(planes == 0) {
        let to = start(&or, &line) + g * group;
        let mut k = UNIT_POS;
        while k < group {
            out[(to + k) as usize] = quant(x[(from + k) as usize], max, bits);
            k += units;
        }
    } else {
        // Several groups are whole words each.
        let to = start(&or, &line) + g * (group / 4u32) * planes;
        let mut k = UNIT_POS;
        while 4u32 * k < group {
            quantise_word(x, from, group, k, max, bits, out, to, planes);
            k += units;
        }
    }
    if UNIT_POS == 0u32 {
        let s = start(&sr, &line) + 2u32 * g;
        let (m, e) = scale_pair(max, scale_bits, exponent, c_m, c_e, constant);
        scale[s as usize] = i32::reinterpret(m);
        scale[(s + 1u32) as usize] = e;
    }
}

/// `SILU_MUL` or `GELU_MUL`, and the first `MAX_ABS` over it. Cubes: groups × rows.
#[cube(launch_unchecked)]
pub(crate) fn activate(
    ctx: &[u32],
    g: &[i32],
    u: &[i32],
    table: &[i32],
    out: &mut [i32],
    max: &mut [i32],
    gr: Rows,
    ur: Rows,
    or: Rows,
    mr: Rows,
    group: u32,
    floor: u32,
    #[comptime] units: u32,
    #[comptime] gelu: bool,
) {
    let (c, r) = (CUBE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let (gate, up) = (start(&gr, &line) + c * group, start(&ur, &line) + c * group);
    let to = start(&or, &line) + c * group;
    let mut own = floor;
    let mut i = UNIT_POS;
    while i < group {
        let v = gated(g[(gate + i) as usize], u[(up + i) as usize], table, gelu);
        out[(to + i) as usize] = v;
        let m = magnitude(v);
        if m > own {
            own = m;
        }
        i += units;
    }
    let top = shared_max(own, units);
    if UNIT_POS == 0u32 {
        max[(start(&mr, &line) + c) as usize] = i32::reinterpret(top);
    }
}

/// `QUANT` and `QUANT_SCALE` of a whole vector, whose maximum is the largest of `maxima` values and `floor`. Cubes: elements, or
/// words of packed ones, × rows.
#[cube(launch_unchecked)]
pub(crate) fn quantise_long(
    ctx: &[u32],
    x: &[i32],
    max: &[i32],
    out: &mut [i32],
    scale: &mut [i32],
    xr: Rows,
    mr: Rows,
    or: Rows,
    sr: Rows,
    n: u32,
    maxima: u32,
    floor: u32,
    bits: u32,
    scale_bits: u32,
    exponent: i32,
    #[comptime] planes: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let from = start(&mr, &line);
    let mut top = floor;
    for k in 0..maxima {
        let m = u32::reinterpret(max[(from + k) as usize]);
        if m > top {
            top = m;
        }
    }
    if comptime!(planes == 0) {
        if i < n {
            out[(start(&or, &line) + i) as usize] = quant(x[(start(&xr, &line) + i) as usize], top, bits);
        }
    } else if 4u32 * i < n {
        quantise_word(x, start(&xr, &line), n, i, top, bits, out, start(&or, &line), planes);
    }
    if i == 0u32 {
        let s = start(&sr, &line);
        scale[s as usize] = i32::reinterpret(quant_mantissa(top, scale_bits));
        scale[(s + 1u32) as usize] = quant_exponent(top, scale_bits) + exponent;
    }
}

/// One head of `ROPE`, `MAX_ABS`, `QUANT` and `QUANT_SCALE` or `SCALE_Q`, by one cube.
#[cube]
fn rotate_head(
    x: &[i32],
    cos: &[i32],
    sin: &[i32],
    out: &mut [i32],
    scale: &mut [i32],
    from: u32,
    to: u32,
    to_scale: u32,
    angles: u32,
    group: u32,
    floor: u32,
    exponent: i32,
    c_m: u32,
    c_e: i32,
    #[comptime] units: u32,
    #[comptime] constant: bool,
) {
    let half = group / 2u32;
    let mut own = floor;
    let mut i = UNIT_POS;
    while i < half {
        let (a, b) = rotated(x, cos, sin, from, angles, i);
        let (ma, mb) = (magnitude(a), magnitude(b));
        if ma > own {
            own = ma;
        }
        if mb > own {
            own = mb;
        }
        i += units;
    }
    let max = shared_max(own, units);
    let mut k = UNIT_POS;
    while k < half {
        let (a, b) = rotated(x, cos, sin, from, angles, k);
        out[(to + 2u32 * k) as usize] = quant(a, max, 8u32);
        out[(to + 2u32 * k + 1u32) as usize] = quant(b, max, 8u32);
        k += units;
    }
    if UNIT_POS == 0u32 {
        let (m, e) = scale_pair(max, 8u32, exponent, c_m, c_e, constant);
        scale[to_scale as usize] = i32::reinterpret(m);
        scale[(to_scale + 1u32) as usize] = e;
    }
}

/// Pair `i` of a vector that begins at `from`, turned by the angles that begin at `angles`.
#[cube]
fn rotated(x: &[i32], cos: &[i32], sin: &[i32], from: u32, angles: u32, i: u32) -> (i32, i32) {
    let (a, b) = (x[(from + 2u32 * i) as usize], x[(from + 2u32 * i + 1u32) as usize]);
    let (c, s) = (cos[(angles + i) as usize], sin[(angles + i) as usize]);
    (smul15(a, c) - smul15(b, s), smul15(a, s) + smul15(b, c))
}

/// What `heads` does to all heads of q or of k.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Turn {
    /// Heads.
    pub(crate) heads: u32,
    /// Floor of the maximum.
    pub(crate) floor: u32,
    /// Exponent of the scale.
    pub(crate) exponent: i32,
}

/// Query and key heads: `ROPE`, `MAX_ABS`, `QUANT` and the scale (`SCALE_Q`, `QUANT_SCALE`); values: `TO_FIXED`. Cubes: heads
/// of q, of k, groups of v × rows.
#[cube(launch_unchecked)]
pub(crate) fn heads(
    ctx: &[u32],
    q: &[i32],
    k: &[i32],
    v: &[i32],
    cos: &[i32],
    sin: &[i32],
    q8: &mut [i32],
    q_scale: &mut [i32],
    k8: &mut [i32],
    k_scale: &mut [i32],
    v16: &mut [i32],
    qr: Rows,
    kr: Rows,
    vr: Rows,
    q8r: Rows,
    qsr: Rows,
    k8r: Rows,
    ksr: Rows,
    v16r: Rows,
    group: u32,
    q_turn: Turn,
    k_turn: Turn,
    c_m: u32,
    c_e: i32,
    values: u32,
    value_shift: u32,
    #[comptime] units: u32,
) {
    let (c, r) = (CUBE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let t = line.t;
    let angles = t * (group / 2u32);
    if c < q_turn.heads {
        rotate_head(
            q,
            cos,
            sin,
            q8,
            q_scale,
            start(&qr, &line) + c * group,
            start(&q8r, &line) + c * group,
            start(&qsr, &line) + 2u32 * c,
            angles,
            group,
            q_turn.floor,
            q_turn.exponent,
            c_m,
            c_e,
            units,
            true,
        );
    } else if c < q_turn.heads + k_turn.heads {
        let h = c - q_turn.heads;
        rotate_head(
            k,
            cos,
            sin,
            k8,
            k_scale,
            start(&kr, &line) + h * group,
            start(&k8r, &line) + h * group,
            start(&ksr, &line) + 2u32 * h,
            angles,
            group,
            k_turn.floor,
            k_turn.exponent,
            c_m,
            c_e,
            units,
            false,
        );
    } else {
        let first = (c - q_turn.heads - k_turn.heads) * group;
        let mut i = first + UNIT_POS;
        while i < first + group && i < values {
            let x = v[(start(&vr, &line) + i) as usize];
            v16[(start(&v16r, &line) + i) as usize] = to_fixed(x, value_shift);
            i += units;
        }
    }
}

/// `SCORES`, `SOFT_CAP`, `WINDOW`, `ROW_MAX`, `EXP`, `ROW_SUM`, `PROB`. Cubes: heads × rows. A unit keeps to its own positions,
/// so what it stores between the steps only it reads; the last slab of a running reduction is the reduction over all positions.
/// Where `scored`, `out` already holds the scores.
#[cube(launch_unchecked)]
pub(crate) fn probabilities<N: Size>(
    ctx: &[u32],
    q: &[Vector<i32, N>],
    qs: &[i32],
    k: &[Vector<i32, N>],
    ks: &[i32],
    table: &[i32],
    window: &[i32],
    out: &mut [i32],
    qr: Rows,
    qsr: Rows,
    k_stride: u32,
    ks_stride: u32,
    or: Rows,
    group: u32,
    shared_by: u32,
    after: After,
    #[comptime] units: u32,
    #[comptime] width: u32,
    #[comptime] scored: bool,
) {
    let (h, r) = (CUBE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let t = line.t;
    let n = t + 1u32;
    let to = start(&or, &line) + h * n;

    let mut top = i32::reinterpret(0x8000_0001u32);
    if comptime!(scored) {
        let mut j = UNIT_POS;
        while j < n {
            let s = out[(to + j) as usize];
            if s > top {
                top = s;
            }
            j += units;
        }
    } else {
        let kv = h / shared_by;
        let query = (start(&qr, &line) + h * group) / width;
        let query_scale = start(&qsr, &line) + 2u32 * h;
        let qm = u32::reinterpret(qs[query_scale as usize]);
        let qe = qs[(query_scale + 1u32) as usize];
        let mut j = UNIT_POS;
        while j < n {
            let key_scale = (line.first + j) * ks_stride + 2u32 * kv;
            let m = qm * u32::reinterpret(ks[key_scale as usize]);
            let e = 0i32 - qe - ks[(key_scale + 1u32) as usize];
            let key = ((line.first + j) * k_stride + kv * group) / width;
            let mut s = score::<N>(q, k, query, key, group / width, m, e, table, &after, width);
            if after.windowed == 1u32 {
                s = windowed(s, j, t, u32::reinterpret(window[0]));
            }
            out[(to + j) as usize] = s;
            if s > top {
                top = s;
            }
            j += units;
        }
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
