//! Attention of one position without its intermediate tensors.
//!
//! The same sums as `SCORES`, `ROW_MAX`, `EXP`, `ROW_SUM`, `PROB` and `MIX` one after another; only what the last slab of `MIX`
//! holds is kept. Integer sums are exact, so leaving out the running partial results changes nothing.

use std::cell::RefCell;

use sworn_isa::fixed::{CL, bitlen, shift, signed};

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
    let Scratch { q: wide, s, e, km, ke } = scratch;
    let heads = q.len() / c.key_width;
    let n = c.keys.len() / (c.kv * c.key_width);
    wide.clear();
    wide.extend(q.iter().map(|v| i16::from(*v)));
    s.resize(heads * n, 0);
    let mut h = 0;
    while h < heads {
        let q = |i: usize| &wide[(h + i) * c.key_width..][..c.key_width];
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
    e.resize(heads * n, 0);
    for ((s, e), q_scale) in s.chunks_exact_mut(n).zip(e.chunks_exact_mut(n)).zip(q_scales.as_chunks::<2>().0) {
        scale(s, *q_scale, km, ke);
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

    /// The six operators one after another, in full; the last slab of `MIX`.
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
        let s = run(Opcode::Scores, Dtype::I32, [heads, 1, 1], [key, shared, 0, 0], &inputs, [0, 0]);
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

    proptest! {
        #[test]
        fn fused_attention_is_the_operators_one_by_one(
            t in 0u32..130, kv in 1usize..4, shared in 1usize..7, key_width in 1usize..80, value_width in 1usize..70, seed: u64,
        ) {
            let mut s = seed | 1;
            let mut next = |lo: i32, hi: i32| {
                s ^= s << 13; s ^= s >> 7; s ^= s << 17;
                match s % 8 { 0 => lo, 1 => hi, _ => lo + ((s >> 20) % (hi - lo + 1) as u64) as i32 }
            };
            let n = t as usize + 1;
            // Scores from far below the table's range to the clamp.
            let e = next(-30, 10);
            let q: Vec<i8> = (0..kv * shared * key_width).map(|_| next(-127, 127) as i8).collect();
            let q_scales: Vec<i32> = (0..kv * shared).flat_map(|_| [next(32768, 65535), e]).collect();
            let keys: Vec<i8> = (0..n * kv * key_width).map(|_| next(-127, 127) as i8).collect();
            let key_scales: Vec<i32> = (0..n * kv).flat_map(|_| [next(32768, 65535), next(-45, -20) - e]).collect();
            let values: Vec<i16> = (0..n * kv * value_width).map(|_| next(-32767, 32767) as i16).collect();
            let table: Vec<u16> = (0..257).map(|j| (32768.0 * (-f64::from(j) / 256.0).exp2() + 0.5) as u16).collect();
            let c = Context {
                keys: &keys, key_scales: &key_scales, values: &values, table: &table, kv, shared, key_width, value_width,
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
