//! Attention of one position, or of several together, without its intermediate tensors.
//!
//! The same sums as `SCORES`, `SOFT_CAP`, `WINDOW`, `ROW_MAX`, `EXP`, `ROW_SUM`, `PROB` and `MIX` one after another; only what
//! the last slab of `MIX` holds is kept. Integer sums are exact, so leaving out the running partial results changes nothing.
//! What a window hides has the score −`CL`, whose power of two is 0 beside any usual score: then it is not computed at all.

use std::cell::RefCell;

use sworn_isa::fixed::{CL, bitlen, exp2neg, shift, soft_cap, soft_cap_exponent};

use crate::simd::{PAD, Simd};

pub(crate) mod parts;

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

    /// The first positions.
    fn until(self, positions: usize) -> Self {
        let n = positions * self.kv;
        Context {
            keys: &self.keys[..n * self.key_width],
            key_scales: &self.key_scales[..2 * n],
            values: &self.values[..n * self.value_width],
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
    /// The rows' queries, padded with zeros.
    q: Vec<i8>,
    /// Scores, a row each, as long as the longest row.
    s: Vec<i32>,
    e: Vec<u16>,
    /// Scales of the keys of one head: mantissas and exponents.
    km: Vec<u32>,
    ke: Vec<i32>,
    sums: Vec<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// A query head at one position.
struct Row<'a, 'o> {
    /// Positions that it may see: its own is the last.
    n: usize,
    q: &'a [i8],
    scale: [i32; 2],
    out: &'o mut [i32],
}

/// Query heads, of one or more positions, that read the same key/value head.
pub(crate) struct Unit<'a, 'o> {
    /// Of the last of the positions.
    context: Context<'a>,
    /// The key/value head.
    from: usize,
    /// By position.
    rows: Vec<Row<'a, 'o>>,
}

/// What the heads of one position ask for: queries and their scales by head, and where the sums go, by head.
pub(crate) struct Query<'a, 'o> {
    pub(crate) position: u32,
    pub(crate) q: &'a [i8],
    pub(crate) scales: &'a [i32],
    pub(crate) out: &'o mut [i32],
}

impl<'a, 'o> Unit<'a, 'o> {
    /// Attention of all heads of consecutive positions, in units of `together` heads, a divisor of the heads that share a
    /// key/value head. `c` is the context of the last position.
    pub(crate) fn split(
        c: Context<'a>,
        queries: impl Iterator<Item = Query<'a, 'o>>,
        together: usize,
    ) -> impl Iterator<Item = Self> {
        let units = c.kv * c.shared / together;
        let mut units: Vec<Self> =
            (0..units).map(|i| Unit { context: c, from: i * together / c.shared, rows: Vec::new() }).collect();
        for Query { position, q, scales, out } in queries {
            let heads = q.chunks_exact(c.key_width).zip(scales.as_chunks::<2>().0);
            let heads = heads.zip(out.chunks_exact_mut(c.value_width));
            for (h, ((q, scale), out)) in heads.enumerate() {
                if let Some(unit) = units.get_mut(h / together) {
                    unit.rows.push(Row { n: position as usize + 1, q, scale: *scale, out });
                }
            }
        }
        units.into_iter()
    }

    pub(crate) fn run(mut self, simd: Simd) {
        SCRATCH.with_borrow_mut(|s| simd.run(|| self.attend(s, simd)));
    }

    #[inline(always)]
    fn attend(&mut self, scratch: &mut Scratch, simd: Simd) {
        let c = self.context;
        let hidden = |n: usize| c.window.map_or(0, |width| n.saturating_sub(width));
        let least = self.rows.iter().map(|r| hidden(r.n)).min().unwrap_or(0);
        if least > 0 && self.rows.iter().all(|r| hidden(r.n) < r.n) {
            self.scores(least, scratch, simd);
            let each = scratch.s.len() / self.rows.len();
            let rows = self.rows.iter().zip(scratch.s.chunks_exact(each));
            if rows.into_iter().all(|(r, s)| outweighs_hidden(&s[hidden(r.n) - least..r.n - least])) {
                return self.weigh(least, scratch, simd);
            }
        }
        self.scores(0, scratch, simd);
        self.weigh(0, scratch, simd);
    }

    /// Scores of every row at every position but the first `skip`, capped; −`CL` where a window hides it.
    #[inline(always)]
    fn scores(&self, skip: usize, scratch: &mut Scratch, simd: Simd) {
        let c = self.context.after(skip);
        let Scratch { q, s, km, ke, .. } = scratch;
        let n = c.keys.len() / (c.kv * c.key_width);
        let padded = c.key_width.next_multiple_of(PAD);
        q.clear();
        for row in &self.rows {
            q.extend_from_slice(row.q);
            q.resize(q.len() + padded - c.key_width, 0);
        }
        s.resize(self.rows.len() * n, 0);
        simd.products(q, &c.keys[self.from * c.key_width..], c.kv * c.key_width, c.key_width, s);
        km.resize(n, 0);
        ke.resize(n, 0);
        let scales = c.key_scales.as_chunks::<2>().0.get(self.from..).unwrap_or_default();
        for ((m, e), scale) in km.iter_mut().zip(ke.iter_mut()).zip(scales.iter().step_by(c.kv)) {
            (*m, *e) = (scale[0] as u32, scale[1]);
        }
        for (row, s) in self.rows.iter().zip(s.chunks_exact_mut(n)) {
            let s = &mut s[..row.n - skip];
            simd.scale(s, row.scale, km, ke);
            if let Some(cap) = &c.cap {
                cap.apply(s);
            }
            if let Some(width) = c.window {
                s[..row.n.saturating_sub(width.saturating_add(skip))].fill(-CL);
            }
        }
    }

    /// The values after the first `skip`, weighed by the scores.
    #[inline(always)]
    fn weigh(&mut self, skip: usize, scratch: &mut Scratch, simd: Simd) {
        let c = self.context.after(skip);
        let Scratch { s, e, .. } = &mut *scratch;
        let n = c.keys.len() / (c.kv * c.key_width);
        e.resize(s.len(), 0);
        for (row, (s, e)) in self.rows.iter().zip(s.chunks_exact(n).zip(e.chunks_exact_mut(n))) {
            let (e, later) = e.split_at_mut(row.n - skip);
            later.fill(0);
            probabilities(&s[..e.len()], c.table, e, simd);
        }
        self.mix(skip, scratch, simd);
        for (row, sums) in self.rows.iter_mut().zip(scratch.sums.chunks_exact(c.value_width)) {
            row.out.copy_from_slice(sums);
        }
    }

    /// The values after the first `skip` by the rows' probabilities.
    #[inline(always)]
    fn mix(&self, skip: usize, scratch: &mut Scratch, simd: Simd) {
        let c = self.context.after(skip);
        let n = c.keys.len() / (c.kv * c.key_width);
        scratch.sums.resize(self.rows.len() * c.value_width, 0);
        let (values, stride) = (&c.values[self.from * c.value_width..], c.kv * c.value_width);
        simd.mix(&scratch.e, n, values, stride, c.value_width, &mut scratch.sums);
    }
}

/// Whether these scores of a head have a largest beside which 2^x of a hidden one, −`CL`, is 0 (`exp2neg` of more than 16).
#[inline(always)]
fn outweighs_hidden(s: &[i32]) -> bool {
    largest(s).wrapping_add(CL) as u32 >> 13 > 16
}

#[inline(always)]
fn largest(s: &[i32]) -> i32 {
    s.iter().fold(i32::MIN, |a, s| a.max(*s))
}

/// `ROW_MAX`, `EXP`, `ROW_SUM` and `PROB` of one head.
#[inline(always)]
fn probabilities(s: &[i32], table: &[u16], e: &mut [u16], simd: Simd) {
    simd.exp(s, largest(s), table, e);
    normalise(e, total(e));
}

#[inline(always)]
fn total(e: &[u16]) -> u32 {
    e.iter().fold(0u32, |z, e| z.wrapping_add(u32::from(*e)))
}

/// `PROB`: `fixed::prob` with the reciprocal taken out of the loop.
#[inline(always)]
fn normalise(e: &mut [u16], z: u32) {
    let l = bitlen(z);
    let r = (1u32 << 31).checked_div(shift(z, l - 16)).unwrap_or(0);
    let half = if l == 0 { 0 } else { 1u32 << (l - 1) };
    if (0..32).contains(&l) {
        e.iter_mut().for_each(|e| *e = (u32::from(*e).wrapping_mul(r).wrapping_add(half) >> l) as u16);
    } else {
        e.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sworn_commit::RunParams;
    use sworn_isa::{Descriptor, Dtype, Opcode, Operand};

    use super::*;
    use crate::kernels::{Input, apply};
    use crate::team::Team;
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
            t in prop_oneof![3 => 0u32..130, 1 => 250u32..300], queries in 1u32..6,
            kv in 1usize..4, shared in 1usize..7, key_width in 1usize..140, value_width in 1usize..70, cap in caps(),
            window in windows(), opposed in prop_oneof![3 => Just(false), 1 => Just(true)], seed: u64,
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
            let queries = queries.min(t + 1);
            let q: Vec<Vec<i8>> = (0..queries)
                .map(|_| (0..kv * shared * key_width).map(|_| next(least, 127) as i8).collect())
                .collect();
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
            // Consecutive positions, of which t is the last.
            let positions = t + 1 - queries..=t;
            let want: Vec<_> = positions.clone().zip(&q).map(|(t, q)| step_by_step(&c.until(t as usize + 1), q, &q_scales, t)).collect();
            let teams = [1, 2, 5].map(|n| Team::new(n).unwrap());
            for simd in Simd::all() {
                for together in [1, shared] {
                    let mut out: Vec<_> = want.iter().map(|w| vec![7; w.len()]).collect();
                    let queries = positions.clone().zip(&q).zip(&mut out);
                    let queries = queries.map(|((position, q), out)| Query { position, q, scales: &q_scales, out });
                    Unit::split(c, queries, together).for_each(|u| u.run(simd));
                    prop_assert_eq!(&out, &want, "{} {}", simd.name(), together);
                }
                if window.is_none() {
                    for team in &teams {
                        let (position, mut out) = (t, vec![7; want[0].len()]);
                        let query = Query { position, q: &q[q.len() - 1], scales: &q_scales, out: &mut out };
                        parts::attend(c, query, team, simd);
                        prop_assert_eq!(&out, &want[want.len() - 1], "{} {}", simd.name(), team.threads());
                    }
                }
            }
        }
    }
}
