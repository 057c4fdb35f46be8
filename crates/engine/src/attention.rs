//! Attention of one position without its intermediate tensors.
//!
//! The same sums as `SCORES`, `SOFT_CAP`, `WINDOW`, `ROW_MAX`, `EXP`, `ROW_SUM`, `PROB` and `MIX` one after another; only what
//! the last slab of `MIX` holds is kept. Integer sums are exact, so leaving out the running partial results changes nothing.
//! What a window hides has the score −`CL`, whose power of two is 0 beside any usual score: then it is not computed at all.

use std::cell::RefCell;

use sworn_isa::fixed::{CL, bitlen, exp2neg, shift, signed, soft_cap, soft_cap_exponent};

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
    /// what bounds the scores
    pub(crate) cap: Option<Cap<'a>>,
    /// how many positions, the last ones, are seen; `None`: all
    pub(crate) window: Option<usize>,
    /// key/value heads
    pub(crate) kv: usize,
    /// query heads per key/value head
    pub(crate) shared: usize,
    /// width of a key head
    pub(crate) key_width: usize,
    /// width of a value head
    pub(crate) value_width: usize,
}

impl Context<'_> {
    /// Without the first positions.
    fn after(self, positions: usize) -> Self {
        Context {
            keys: &self.keys[positions * self.kv * self.key_width..],
            key_scales: &self.key_scales[2 * positions * self.kv..],
            values: &self.values[positions * self.kv * self.value_width..],
            ..self
        }
    }
}

/// A `SOFT_CAP`: the bound, the factor m·2^(−sh) and 2^(−x).
#[derive(Clone, Copy)]
pub(crate) struct Cap<'a> {
    pub(crate) bound: u32,
    pub(crate) m: u32,
    pub(crate) sh: i32,
    pub(crate) table: &'a [u16],
}

impl Cap<'_> {
    #[inline(always)]
    fn apply(&self, s: &mut [i32]) {
        for s in s {
            *s = soft_cap(*s, self.bound, exp2neg(soft_cap_exponent(*s, self.m, self.sh), self.table));
        }
    }
}

#[derive(Default)]
struct Scratch {
    q: Vec<i16>,
    s: Vec<i32>,
    e: Vec<u16>,
    /// Scales of the keys of one head: mantissas and exponents.
    km: Vec<u32>,
    ke: Vec<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Some query heads of one position that read the same key/value head.
pub(crate) struct Unit<'a, 'o> {
    context: Context<'a>,
    /// The key/value head.
    from: usize,
    q: &'a [i8],
    q_scales: &'a [i32],
    out: &'o mut [i32],
}

impl<'a, 'o> Unit<'a, 'o> {
    /// Attention of all heads of one position in units of `together` heads, a divisor of the heads that share a key/value
    /// head: `q` and `q_scales` by head, sums to `out` by head.
    pub(crate) fn split(
        c: Context<'a>,
        q: &'a [i8],
        q_scales: &'a [i32],
        out: &'o mut [i32],
        together: usize,
    ) -> impl Iterator<Item = Self> {
        let q = q.chunks_exact(together * c.key_width).zip(q_scales.chunks_exact(2 * together));
        let out = out.chunks_exact_mut(together * c.value_width);
        q.zip(out).enumerate().map(move |(i, ((q, q_scales), out))| Unit {
            context: c,
            from: i * together / c.shared,
            q,
            q_scales,
            out,
        })
    }

    pub(crate) fn run(self, simd: Simd) {
        let Unit { context, from, q, q_scales, out } = self;
        SCRATCH.with_borrow_mut(|s| simd.run(|| group(&context, from, q, q_scales, out, s, simd)));
    }
}

/// Query heads that read the same key/value head `kv`.
#[inline(always)]
fn group(c: &Context<'_>, kv: usize, q: &[i8], q_scales: &[i32], out: &mut [i32], scratch: &mut Scratch, simd: Simd) {
    let n = c.keys.len() / (c.kv * c.key_width);
    let hidden = c.window.map_or(0, |width| n.saturating_sub(width));
    scratch.q.clear();
    scratch.q.extend(q.iter().map(|v| i16::from(*v)));
    if hidden > 0 && hidden < n {
        let seen = c.after(hidden);
        scores(&seen, kv, q_scales, scratch, simd);
        if scratch.s.chunks_exact(n - hidden).all(outweighs_hidden) {
            return weigh(&seen, kv, out, scratch, simd);
        }
    }
    scores(c, kv, q_scales, scratch, simd);
    if hidden > 0 {
        scratch.s.chunks_exact_mut(n).for_each(|s| s[..hidden].fill(-CL));
    }
    weigh(c, kv, out, scratch, simd);
}

/// Whether these scores of a head have a largest beside which 2^x of a hidden one, −`CL`, is 0 (`exp2neg` of more than 16).
#[inline(always)]
fn outweighs_hidden(s: &[i32]) -> bool {
    let max = s.iter().copied().max().unwrap_or(-CL);
    max.wrapping_add(CL) as u32 >> 13 > 16
}

/// Scores of every head at every position, capped.
#[inline(always)]
fn scores(c: &Context<'_>, kv: usize, q_scales: &[i32], scratch: &mut Scratch, simd: Simd) {
    let Scratch { q, s, km, ke, .. } = scratch;
    let heads = q.len() / c.key_width;
    let n = c.keys.len() / (c.kv * c.key_width);
    s.resize(heads * n, 0);
    let mut h = 0;
    while h < heads {
        let q = |i: usize| &q[(h + i) * c.key_width..][..c.key_width];
        let s = &mut s[h * n..];
        h += match heads - h {
            1 => products::<1>(c, kv, [q(0)], n, s, simd),
            2 => products::<2>(c, kv, [q(0), q(1)], n, s, simd),
            3 => products::<3>(c, kv, [q(0), q(1), q(2)], n, s, simd),
            _ => products::<4>(c, kv, [q(0), q(1), q(2), q(3)], n, s, simd),
        };
    }
    km.clear();
    ke.clear();
    for scale in c.key_scales.as_chunks::<2>().0.iter().skip(kv).step_by(c.kv) {
        km.push(scale[0] as u32);
        ke.push(scale[1]);
    }
    for (s, q_scale) in s.chunks_exact_mut(n).zip(q_scales.as_chunks::<2>().0) {
        scale(s, *q_scale, km, ke);
    }
    if let Some(cap) = &c.cap {
        cap.apply(s);
    }
}

/// The values, weighed by the scores.
#[inline(always)]
fn weigh(c: &Context<'_>, kv: usize, out: &mut [i32], scratch: &mut Scratch, simd: Simd) {
    let Scratch { s, e, .. } = scratch;
    let n = c.keys.len() / (c.kv * c.key_width);
    e.resize(s.len(), 0);
    for (s, e) in s.chunks_exact(n).zip(e.chunks_exact_mut(n)) {
        let max = s.iter().copied().max().unwrap_or(0);
        simd.exp(s, max, c.table, e);
        let z = e.iter().fold(0u32, |z, e| z.wrapping_add(u32::from(*e)));
        // `fixed::prob` with the reciprocal taken out of the loop.
        let l = bitlen(z);
        let r = (1u32 << 31).checked_div(shift(z, l - 16)).unwrap_or(0);
        let half = if l == 0 { 0 } else { 1u32 << (l - 1) };
        if (0..32).contains(&l) {
            e.iter_mut().for_each(|e| *e = (u32::from(*e).wrapping_mul(r).wrapping_add(half) >> l) as u16);
        } else {
            e.fill(0);
        }
    }
    simd.mix(e, n, &c.values[kv * c.value_width..], c.kv * c.value_width, c.value_width, out);
}

/// `SCORES` from dot products, in place: `fixed::smulrs` without branches.
#[inline(always)]
fn scale(s: &mut [i32], q: [i32; 2], km: &[u32], ke: &[i32]) {
    for ((s, m), e) in s.iter_mut().zip(km).zip(ke) {
        let x = s.unsigned_abs();
        let b = (q[0] as u32).wrapping_mul(*m);
        let by = 0i32.wrapping_sub(q[1]).wrapping_sub(*e);
        let shift = by.clamp(1, 63) as u32;
        let y = (u64::from(x) * u64::from(b)).wrapping_add(1 << (shift - 1)) >> shift;
        let y = y.min(CL as u64) as u32;
        let least = if x == 0 { 0 } else { CL as u32 };
        *s = signed(*s < 0, if by < 1 { least } else { y });
    }
}

/// Dot products of C heads with every key, four positions at a time; returns C.
#[inline(always)]
fn products<const C: usize>(c: &Context<'_>, kv: usize, q: [&[i16]; C], n: usize, s: &mut [i32], simd: Simd) -> usize {
    let key = |j: usize| &c.keys[(j * c.kv + kv) * c.key_width..][..c.key_width];
    let mut put = |j: usize, acc: &[i32; C]| {
        for (h, acc) in acc.iter().enumerate() {
            s[h * n + j] = *acc;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sworn_commit::RunParams;
    use sworn_isa::{Descriptor, Dtype, Opcode, Operand};

    use super::*;
    use crate::kernels::{Input, apply};
    use crate::tensor::{OpTensor, View};

    /// The operators one after another, in full; the last slab of `MIX`.
    fn step_by_step(c: &Context<'_>, q: &[i8], q_scales: &[i32], t: u32) -> Vec<i32> {
        let heads = (c.kv * c.shared) as u32;
        let [key, value, shared] = [c.key_width, c.value_width, c.shared].map(|x| x as i32);
        let run = |opcode, dtype, [outer, div, inner]: [u32; 3], params, inputs: &[Input<'_>], tails: [u16; 2]| {
            let mut operands = [Operand::NONE; 4];
            for (o, tail) in operands.iter_mut().zip(tails) {
                *o = if tail > 0 { Operand::tail(0, Dtype::I32, tail) } else { Operand::op(0, Dtype::I32) };
            }
            let d = Descriptor { opcode, dtype, export: false, bits: 0, outer, div, inner, params, operands };
            let mut all = [Input::None; 4];
            all[..inputs.len()].copy_from_slice(inputs);
            apply(&d, t, &all, &RunParams::default(), Simd::SCALAR).unwrap()
        };
        fn tensor(t: &OpTensor) -> Input<'_> {
            Input::Tensor(t.view())
        }
        let last = |t: &OpTensor, n: usize| match t {
            OpTensor::I32(v) => v[v.len() - n..].to_vec(),
            _ => Vec::new(),
        };
        let inputs = [
            Input::Tensor(View::I8(q)),
            Input::Tensor(View::I32(q_scales)),
            Input::Cache(View::I8(c.keys)),
            Input::Cache(View::I32(c.key_scales)),
        ];
        let mut s = run(Opcode::Scores, Dtype::I32, [heads, 1, 1], [key, shared, 0, 0], &inputs, [0, 0]);
        if let Some(cap) = &c.cap {
            let inputs = [tensor(&s), Input::Tensor(View::U16(cap.table))];
            let params = [cap.bound as i32, cap.m as i32, cap.sh, 0];
            s = run(Opcode::SoftCap, Dtype::I32, [heads, 1, 1], params, &inputs, [0, 0]);
        }
        if let Some(window) = c.window {
            let width = [window as i32];
            s = run(
                Opcode::Window,
                Dtype::I32,
                [heads, 1, 1],
                [0; 4],
                &[tensor(&s), Input::Tensor(View::I32(&width))],
                [0, 0],
            );
        }
        let m = run(Opcode::RowMax, Dtype::I32, [1, 16, heads], [16, 0, 0, 0], &[tensor(&s)], [0, 0]);
        let m = last(&m, heads as usize);
        let table = Input::Tensor(View::U16(c.table));
        let h = [heads as i32, 0, 0, 0];
        let inputs = [tensor(&s), Input::Tensor(View::I32(&m)), table];
        let e = run(Opcode::Exp, Dtype::U16, [heads, 1, 1], h, &inputs, [0, 16]);
        let z = run(Opcode::RowSum, Dtype::I32, [1, 16, heads], [16, 0, 0, 0], &[tensor(&e)], [0, 0]);
        let z = last(&z, heads as usize);
        let p = run(Opcode::Prob, Dtype::U16, [heads, 1, 1], h, &[tensor(&e), Input::Tensor(View::I32(&z))], [0, 16]);
        let inner = heads * c.value_width as u32;
        let inputs = [tensor(&p), Input::Cache(View::I16(c.values))];
        let o = run(Opcode::Mix, Dtype::I32, [1, 16, inner], [value, shared, 16, 0], &inputs, [0, 0]);
        last(&o, inner as usize)
    }

    /// No window, a usual one, or one that hides everything.
    fn windows() -> impl Strategy<Value = Option<usize>> {
        prop_oneof![1 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(1)), 4 => (2usize..140).prop_map(Some)]
    }

    /// No cap, a usual one, or any that a program may have: bound, m, sh.
    fn caps() -> impl Strategy<Value = Option<(u32, u32, i32)>> {
        prop_oneof![
            2 => Just(None),
            2 => (1u32 << 16..1 << 20, 32768u32..65536, 14i32..20).prop_map(Some),
            1 => (prop_oneof![Just(1u32), Just((1 << 30) - 1), 1u32..1 << 30], 32768u32..65536, 1i32..64).prop_map(Some),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn fused_attention_is_the_operators_one_by_one(
            t in 0u32..130, kv in 1usize..4, shared in 1usize..7, key_width in 1usize..80, value_width in 1usize..70,
            cap in caps(), window in windows(), opposed in prop_oneof![3 => Just(false), 1 => Just(true)], seed: u64,
        ) {
            let mut s = seed | 1;
            let mut next = |lo: i32, hi: i32| {
                s ^= s << 13; s ^= s >> 7; s ^= s << 17;
                match s % 8 { 0 => lo, 1 => hi, _ => lo + ((s >> 20) % (hi - lo + 1) as u64) as i32 }
            };
            let n = t as usize + 1;
            // Scores from far below the table's range to the clamp.
            let e = next(-30, 10);
            // Opposed: scores are all negative and those that are seen may all be at the clamp, as low as what is hidden.
            let least = if opposed { 1 } else { -127 };
            let q: Vec<i8> = (0..kv * shared * key_width).map(|_| next(least, 127) as i8).collect();
            let q_scales: Vec<i32> = (0..kv * shared).flat_map(|_| [next(32768, 65535), e]).collect();
            let keys: Vec<i8> = (0..n * kv * key_width).map(|_| next(-127, -least) as i8).collect();
            let key_scales: Vec<i32> = (0..n * kv).flat_map(|_| [next(32768, 65535), next(-45, -20) - e]).collect();
            let values: Vec<i16> = (0..n * kv * value_width).map(|_| next(-32767, 32767) as i16).collect();
            let table: Vec<u16> = (0..257).map(|j| (32768.0 * (-f64::from(j) / 256.0).exp2() + 0.5) as u16).collect();
            let c = Context {
                keys: &keys, key_scales: &key_scales, values: &values, table: &table,
                cap: cap.map(|(bound, m, sh)| Cap { bound, m, sh, table: &table }),
                window, kv, shared, key_width, value_width,
            };
            let want = step_by_step(&c, &q, &q_scales, t);
            for simd in Simd::all() {
                for together in [1, shared] {
                    let mut out = vec![7; want.len()];
                    Unit::split(c, &q, &q_scales, &mut out, together).for_each(|u| u.run(simd));
                    prop_assert_eq!(&out, &want, "{} {}", simd.name(), together);
                }
            }
        }
    }
}
