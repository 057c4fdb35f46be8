//! Attention of one position without its intermediate tensors.
//!
//! The same sums as `SCORES`, `ROW_MAX`, `EXP`, `ROW_SUM`, `PROB` and `MIX` one after another; only what the last slab of `MIX`
//! holds is kept. Integer sums are exact, so leaving out the running partial results changes nothing.

use std::cell::RefCell;

use rayon::prelude::*;
use sworn_isa::fixed::{bitlen, shift};

use crate::kernels::{exp, mix_add, score};
use crate::simd::Simd;

/// What every query at one position attends to.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// keys at positions 0…t, position-major
    pub(crate) keys: &'a [i8],
    /// their scales
    pub(crate) key_scales: &'a [i32],
    /// values at the same positions
    pub(crate) values: &'a [i16],
    /// 2^(−x)
    pub(crate) table: &'a [u16],
    /// key/value heads
    pub(crate) kv: usize,
    /// query heads per key/value head
    pub(crate) shared: usize,
    /// width of a key head
    pub(crate) key_width: usize,
    /// width of a value head
    pub(crate) value_width: usize,
}

#[derive(Default)]
struct Scratch {
    q: Vec<i16>,
    s: Vec<i32>,
    e: Vec<u16>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Attention of all heads of one position: `q` and `q_scales` by head, sums to `out` by head. `split` spreads the heads over
/// the threads of the current pool.
pub(crate) fn attend(c: &Context<'_>, q: &[i8], q_scales: &[i32], out: &mut [i32], split: bool, simd: Simd) {
    // Splitting by single heads balances better than by key/value heads; sharing a key between heads is cheaper.
    let heads = if split { 1 } else { c.shared };
    let unit = |(u, out): (usize, &mut [i32])| {
        let first = u * heads;
        let q = &q[first * c.key_width..][..heads * c.key_width];
        let scales = &q_scales[2 * first..][..2 * heads];
        SCRATCH.with_borrow_mut(|s| simd.run(|| group(c, first / c.shared, q, scales, out, s, simd)));
    };
    if split {
        out.par_chunks_mut(heads * c.value_width).enumerate().for_each(unit);
    } else {
        out.chunks_mut(heads * c.value_width).enumerate().for_each(unit);
    }
}

/// Query heads that read the same key/value head `kv`.
#[inline(always)]
fn group(c: &Context<'_>, kv: usize, q: &[i8], q_scales: &[i32], out: &mut [i32], scratch: &mut Scratch, simd: Simd) {
    let Scratch { q: wide, s, e } = scratch;
    let heads = q.len() / c.key_width;
    let n = c.keys.len() / (c.kv * c.key_width);
    wide.clear();
    wide.extend(q.iter().map(|v| i16::from(*v)));
    s.resize(heads * n, 0);
    let mut h = 0;
    while h < heads {
        let q = |i: usize| &wide[(h + i) * c.key_width..][..c.key_width];
        let (scales, s) = (&q_scales[2 * h..], &mut s[h * n..]);
        h += match heads - h {
            1 => scores::<1>(c, kv, [q(0)], scales, n, s, simd),
            2 => scores::<2>(c, kv, [q(0), q(1)], scales, n, s, simd),
            3 => scores::<3>(c, kv, [q(0), q(1), q(2)], scales, n, s, simd),
            _ => scores::<4>(c, kv, [q(0), q(1), q(2), q(3)], scales, n, s, simd),
        };
    }
    e.resize(heads * n, 0);
    for (s, e) in s.chunks_exact(n).zip(e.chunks_exact_mut(n)) {
        let max = s.iter().copied().max().unwrap_or(0);
        exp(s, max, c.table, e);
        let z = e.iter().fold(0u32, |z, e| z.wrapping_add(u32::from(*e)));
        // `fixed::prob` with the reciprocal taken out of the loop.
        let l = bitlen(z);
        let r = (1u32 << 31).checked_div(shift(z, l - 16)).unwrap_or(0);
        let half = if l == 0 { 0 } else { 1u32 << (l - 1) };
        e.iter_mut().for_each(|e| *e = shift(u32::from(*e).wrapping_mul(r).wrapping_add(half), l) as u16);
    }
    out.fill(0);
    for j in 0..n {
        let v = &c.values[(j * c.kv + kv) * c.value_width..][..c.value_width];
        for (h, out) in out.chunks_exact_mut(c.value_width).enumerate() {
            match e[h * n + j] {
                0 => {}
                p => mix_add(out, i32::from(p), v),
            }
        }
    }
}

/// Scores of C heads, four positions at a time; returns C.
#[inline(always)]
fn scores<const C: usize>(
    c: &Context<'_>,
    kv: usize,
    q: [&[i16]; C],
    q_scales: &[i32],
    n: usize,
    s: &mut [i32],
    simd: Simd,
) -> usize {
    let key = |j: usize| &c.keys[(j * c.kv + kv) * c.key_width..][..c.key_width];
    let mut put = |j: usize, acc: &[i32; C]| {
        let ks = &c.key_scales[2 * (j * c.kv + kv)..];
        for (h, acc) in acc.iter().enumerate() {
            s[h * n + j] = score(*acc, [q_scales[2 * h], q_scales[2 * h + 1]], [ks[0], ks[1]]);
        }
    };
    let mut j = 0;
    while j + 4 <= n {
        let mut acc = [[0; C]; 4];
        simd.tile([key(j), key(j + 1), key(j + 2), key(j + 3)], q, &mut acc);
        acc.iter().enumerate().for_each(|(i, acc)| put(j + i, acc));
        j += 4;
    }
    while j < n {
        let mut acc = [[0; C]; 1];
        simd.tile([key(j)], q, &mut acc);
        put(j, &acc[0]);
        j += 1;
    }
    C
}
