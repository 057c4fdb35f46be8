//! Operators over the positions up to each row's own. Row r is position t and has N = t + 1 of them, so a later row of the
//! batch does more work; `Rows::stride` has room for the longest.

use cubecl::prelude::*;

use super::arith::*;
use super::{Rows, line, start};

/// What follows `SCORES` element by element.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct After {
    /// `SOFT_CAP`'s bound; 0: none.
    pub(crate) cap: u32,
    /// Mantissa of its constant.
    pub(crate) m: u32,
    /// Shift of its constant.
    pub(crate) sh: i32,
    /// Whether `WINDOW` follows (1).
    pub(crate) windowed: u32,
}

/// One score: `query` and `key` count vectors, of which a head has `group`.
#[cube]
pub(crate) fn score<N: Size>(
    q: &[Vector<i32, N>],
    k: &[Vector<i32, N>],
    query: u32,
    key: u32,
    group: u32,
    m: u32,
    shift: i32,
    table: &[i32],
    after: &After,
    #[comptime] width: u32,
) -> i32 {
    let mut sums = Vector::<i32, N>::new(0i32);
    for d in 0..group {
        sums += q[(query + d) as usize] * k[(key + d) as usize];
    }
    let mut acc = sums.extract(0usize);
    #[unroll]
    for lane in 1..width {
        acc += sums.extract(lane as usize);
    }
    let mut s = smulrs(acc, m, shift);
    if after.cap != 0u32 {
        s = soft_cap(s, after.cap, after.m, after.sh, table);
    }
    s
}

/// `SCORES`, and where they follow `SOFT_CAP` and `WINDOW`. Cubes: positions × rows × heads. `q` and `k` are read as vectors of
/// `width`; `k_stride` and `ks_stride` are words from position to position.
#[cube(launch_unchecked)]
pub(crate) fn scores<N: Size>(
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
    #[comptime] width: u32,
) {
    let (j, r, h) = (ABSOLUTE_POS_X, CUBE_POS_Y, CUBE_POS_Z);
    let line = line(ctx, r);
    let t = line.t;
    if j <= t {
        let kv = h / shared_by;
        let query = (start(&qr, &line) + h * group) / width;
        let key = ((line.first + j) * k_stride + kv * group) / width;
        let scale = start(&qsr, &line) + 2u32 * h;
        let key_scale = (line.first + j) * ks_stride + 2u32 * kv;
        let m = u32::reinterpret(qs[scale as usize]) * u32::reinterpret(ks[key_scale as usize]);
        let e = 0i32 - qs[(scale + 1u32) as usize] - ks[(key_scale + 1u32) as usize];
        let mut s = score::<N>(q, k, query, key, group / width, m, e, table, &after, width);
        if after.windowed == 1u32 {
            s = windowed(s, j, t, u32::reinterpret(window[0]));
        }
        out[(start(&or, &line) + h * (t + 1u32) + j) as usize] = s;
    }
}

/// `ROW_MAX` and `ROW_SUM`: a running reduction over blocks of positions. Cubes: heads × rows; each unit reduces a block,
/// then folds the blocks before it.
#[cube(launch_unchecked)]
pub(crate) fn row_scan(
    ctx: &[u32],
    s: &[i32],
    out: &mut [i32],
    sr: Rows,
    or: Rows,
    heads: u32,
    block: u32,
    #[comptime] units: u32,
    #[comptime] sum: bool,
) {
    let (h, r) = (CUBE_POS_X, CUBE_POS_Y);
    let line = line(ctx, r);
    let t = line.t;
    let n = t + 1u32;
    let from = start(&sr, &line) + h * n;
    let to = start(&or, &line) + h;
    let blocks = t / block + 1u32;
    let mut shared = Shared::<[i32]>::new_slice(units as usize);
    // The neutral element: no score lies below −CL, no sum has a term before the first.
    let neutral = if comptime!(sum) { 0u32 } else { 0x8000_0001u32 };
    let mut carry = i32::reinterpret(neutral);
    let mut first = 0u32;
    while first < blocks {
        let b = first + UNIT_POS;
        let mut own = i32::reinterpret(neutral);
        if b < blocks {
            let mut j = b * block;
            let mut end = j + block;
            if end > n {
                end = n;
            }
            while j < end {
                own = combine(own, s[(from + j) as usize], sum);
                j += 1u32;
            }
        }
        shared[UNIT_POS as usize] = own;
        sync_cube();
        let mut total = carry;
        for u in 0..units {
            let before = shared[u as usize];
            if u < UNIT_POS {
                total = combine(total, before, sum);
            }
            carry = combine(carry, before, sum);
        }
        if b < blocks {
            out[(to + b * heads) as usize] = combine(total, own, sum);
        }
        sync_cube();
        first += units;
    }
}

#[cube]
fn combine(a: i32, b: i32, #[comptime] sum: bool) -> i32 {
    if comptime!(sum) {
        a + b
    } else {
        let mut m = a;
        if b > m {
            m = b;
        }
        m
    }
}

/// `EXP`. Cubes: positions × rows × heads.
#[cube(launch_unchecked)]
pub(crate) fn exp(ctx: &[u32], s: &[i32], max: &[i32], table: &[i32], out: &mut [i32], sr: Rows, mr: Rows, or: Rows) {
    let (j, r, h) = (ABSOLUTE_POS_X, CUBE_POS_Y, CUBE_POS_Z);
    let line = line(ctx, r);
    let t = line.t;
    if j <= t {
        let i = h * (t + 1u32) + j;
        let top = max[(start(&mr, &line) + h) as usize];
        let difference = top - s[(start(&sr, &line) + i) as usize];
        let e = exp2neg(u32::reinterpret(difference), table);
        out[(start(&or, &line) + i) as usize] = i32::reinterpret(e);
    }
}

/// `PROB`. Cubes: positions × rows × heads.
#[cube(launch_unchecked)]
pub(crate) fn probability(ctx: &[u32], e: &[i32], z: &[i32], out: &mut [i32], er: Rows, zr: Rows, or: Rows) {
    let (j, r, h) = (ABSOLUTE_POS_X, CUBE_POS_Y, CUBE_POS_Z);
    let line = line(ctx, r);
    let t = line.t;
    if j <= t {
        let i = h * (t + 1u32) + j;
        let total = u32::reinterpret(z[(start(&zr, &line) + h) as usize]);
        let value = u32::reinterpret(e[(start(&er, &line) + i) as usize]);
        out[(start(&or, &line) + i) as usize] = i32::reinterpret(prob(value, total));
    }
}

/// `MIX`. Cubes: elements × rows; a unit runs over all positions and writes the running sum after each sixteen.
#[cube(launch_unchecked)]
pub(crate) fn mix(
    ctx: &[u32],
    p: &[i32],
    v: &[i32],
    out: &mut [i32],
    pr: Rows,
    v_stride: u32,
    or: Rows,
    inner: u32,
    group: u32,
    shared_by: u32,
) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < inner {
        let line = line(ctx, r);
        let t = line.t;
        let n = t + 1u32;
        let h = i / group;
        let from = start(&pr, &line) + h * n;
        let column = h / shared_by * group + i % group;
        let to = start(&or, &line) + i;
        let mut acc = 0i32;
        for j in 0..n {
            acc += p[(from + j) as usize] * v[((line.first + j) * v_stride + column) as usize];
            if (j & 15u32) == 15u32 || j == t {
                out[(to + (j >> 4u32) * inner) as usize] = acc;
            }
        }
    }
}

/// `MIX` where only the sum over all positions is read. Cubes: elements × rows × chunks of `chunk` positions; the units of a
/// column share its positions. Chunk c writes slab c, and a single chunk the last one: whoever reads that of several calls
/// [`fold_slabs`] first.
#[cube(launch_unchecked)]
pub(crate) fn mix_last(
    ctx: &[u32],
    p: &[i32],
    v: &[i32],
    out: &mut [i32],
    pr: Rows,
    v_stride: u32,
    or: Rows,
    inner: u32,
    group: u32,
    shared_by: u32,
    chunk: u32,
    #[comptime] lanes: u32,
    #[comptime] splits: u32,
) {
    let (r, c) = (CUBE_POS_Y, CUBE_POS_Z);
    let i = CUBE_POS_X * lanes + UNIT_POS_X;
    let line = line(ctx, r);
    let t = line.t;
    let n = t + 1u32;
    let mut acc = 0i32;
    if i < inner {
        let h = i / group;
        let from = start(&pr, &line) + h * n;
        let column = h / shared_by * group + i % group;
        let mut end = n;
        if n - 1u32 >= (c + 1u32) * chunk {
            end = (c + 1u32) * chunk;
        }
        let mut j = c * chunk + UNIT_POS_Y;
        while j < end {
            acc += p[(from + j) as usize] * v[((line.first + j) * v_stride + column) as usize];
            j += splits;
        }
    }
    if comptime!(splits > 1) {
        let mut shared = Shared::<[i32]>::new_slice(comptime!((lanes * splits) as usize));
        shared[(UNIT_POS_Y * lanes + UNIT_POS_X) as usize] = acc;
        sync_cube();
        if UNIT_POS_Y == 0u32 {
            for s in 1..splits {
                acc += shared[(s * lanes + UNIT_POS_X) as usize];
            }
        }
    }
    if UNIT_POS_Y == 0u32 && i < inner {
        let mut slab = c;
        if CUBE_COUNT_Z == 1u32 {
            slab = t >> 4u32;
        }
        // A chunk behind the row's position writes nothing: its slab may not exist.
        if c * chunk <= t {
            out[(start(&or, &line) + slab * inner + i) as usize] = acc;
        }
    }
}

/// Adds up the chunks that [`mix_last`] left in the first slabs, into the last one. Cubes: elements × rows.
#[cube(launch_unchecked)]
pub(crate) fn fold_slabs(ctx: &[u32], out: &mut [i32], or: Rows, inner: u32, chunk: u32) {
    let (i, r) = (ABSOLUTE_POS_X, CUBE_POS_Y);
    if i < inner {
        let line = line(ctx, r);
        let t = line.t;
        let at = start(&or, &line) + i;
        let mut acc = 0i32;
        for c in 0..t / chunk + 1u32 {
            acc += out[(at + c * inner) as usize];
        }
        out[(at + (t >> 4u32) * inner) as usize] = acc;
    }
}
