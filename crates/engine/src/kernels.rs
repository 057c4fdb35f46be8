//! One operator at one position: the kernels of every opcode except the batched `LINEAR`, and [`apply`], which runs any
//! operator on given operands.
//!
//! Values outside an opcode's declared ranges (a tampered run has them) wrap; nothing here panics.

use sworn_commit::RunParams;
use sworn_isa::fixed::{
    CL, add_clamp, bitlen, dequant, exp2neg, gelu_exponent, norm_scale, norm_term, prob, quant_scale, rms, scale_times,
    shift, signed, silu_mul, smul15, smulrs, soft_cap, soft_cap_exponent, to_fixed,
};
use sworn_isa::{Descriptor, Opcode};

use crate::activation::{Activation, Forms, Kernel};
use crate::linear::{self, Matrix, Scale};
use crate::simd::Simd;
use crate::tensor::{OpTensor, View};

mod logprob;
mod sampling;

pub(crate) use logprob::top;

/// What one operand of an operator supplies.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// unused
    None,
    /// OP, PREV, TABLE: exactly the elements that the opcode reads
    Tensor(View<'a>),
    /// CACHE: the exported tensor at positions 0…t, one after the other
    Cache(View<'a>),
    /// WEIGHT
    Matrix(Matrix<'a>),
    /// TOKEN
    Token(u32),
    /// TOKEN of `TEMPER`: the tokens at positions max(0, t − 63)…t
    Tokens(&'a [u32]),
}

/// Operands that do not fit a descriptor; programs that passed [`sworn_isa::Program::validate`] have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{opcode}: operand {operand} does not have the size or type that the operator reads")]
pub struct Mismatch {
    /// the operator
    pub opcode: Opcode,
    /// the operand
    pub operand: usize,
}

/// The operands of one operator, checked as they are taken.
pub(crate) struct Inputs<'a, 'b> {
    pub(crate) d: &'b Descriptor,
    pub(crate) t: u32,
    pub(crate) inputs: &'b [Input<'a>; 4],
    pub(crate) run: &'b RunParams,
}

impl<'a> Inputs<'a, '_> {
    fn mismatch(&self, operand: usize) -> Mismatch {
        Mismatch { opcode: self.d.opcode, operand }
    }

    fn tensor(&self, k: usize) -> Result<View<'a>, Mismatch> {
        match self.inputs[k] {
            Input::Tensor(v) if Some(v.len() as u64) == self.d.operand_elements(k, self.t) => Ok(v),
            _ => Err(self.mismatch(k)),
        }
    }

    fn cache(&self, k: usize) -> Result<View<'a>, Mismatch> {
        let per_position = self.d.operand_elements(k, self.t).unwrap_or(0);
        match self.inputs[k] {
            Input::Cache(v) if v.len() as u64 == per_position * (u64::from(self.t) + 1) => Ok(v),
            _ => Err(self.mismatch(k)),
        }
    }

    fn i32s(&self, k: usize) -> Result<&'a [i32], Mismatch> {
        match self.tensor(k)? {
            View::I32(v) => Ok(v),
            _ => Err(self.mismatch(k)),
        }
    }

    fn i16s(&self, k: usize) -> Result<&'a [i16], Mismatch> {
        match self.tensor(k)? {
            View::I16(v) => Ok(v),
            _ => Err(self.mismatch(k)),
        }
    }

    fn u16s(&self, k: usize) -> Result<&'a [u16], Mismatch> {
        match self.tensor(k)? {
            View::U16(v) => Ok(v),
            _ => Err(self.mismatch(k)),
        }
    }

    fn i8s(&self, k: usize) -> Result<&'a [i8], Mismatch> {
        match self.tensor(k)? {
            View::I8(v) => Ok(v),
            _ => Err(self.mismatch(k)),
        }
    }

    fn matrix(&self, k: usize) -> Result<Matrix<'a>, Mismatch> {
        match self.inputs[k] {
            Input::Matrix(m) => Ok(m),
            _ => Err(self.mismatch(k)),
        }
    }

    fn scale(&self, k: usize) -> Result<Scale, Mismatch> {
        let s = self.i32s(k)?;
        Ok(Scale { m: s[0] as u32, e: s[1] })
    }
}

/// Computes operator `d` at position `t` in full, for a run that samples as `run` says.
///
/// `SELECT` and `SAMPLE` give the token that is selected, whatever token follows.
///
/// # Errors
/// Operands that do not fit the descriptor.
pub fn apply(
    d: &Descriptor,
    t: u32,
    inputs: &[Input<'_>; 4],
    run: &RunParams,
    simd: Simd,
) -> Result<OpTensor, Mismatch> {
    let mut out = OpTensor::zeros(d.dtype, d.count(t) as usize);
    apply_into(&Inputs { d, t, inputs, run }, simd, &mut out)?;
    Ok(out)
}

/// [`apply`] into a tensor of the output's type, which takes the output's size.
pub(crate) fn apply_into(x: &Inputs<'_, '_>, simd: Simd, out: &mut OpTensor) -> Result<(), Mismatch> {
    let d = x.d;
    out.resize(d.count(x.t) as usize);
    match out {
        OpTensor::I32(out) => simd.run(|| words(x, simd, out)),
        OpTensor::I8(out) if d.opcode == Opcode::Quant => {
            let (v, a) = (x.i32s(0)?, x.i32s(1)?);
            simd.run(|| quant(v, a, d.bits, group(d, 0), out, |q| q as i8));
            Ok(())
        }
        OpTensor::I16(out) if d.opcode == Opcode::Quant => {
            let (v, a) = (x.i32s(0)?, x.i32s(1)?);
            simd.run(|| quant(v, a, d.bits, group(d, 0), out, |q| q as i16));
            Ok(())
        }
        OpTensor::I16(out) if d.opcode == Opcode::ToFixed => {
            let (v, s) = (x.i32s(0)?, d.params[0].clamp(1, 30));
            simd.run(|| out.iter_mut().zip(v).for_each(|(o, v)| *o = to_fixed(*v, s) as i16));
            Ok(())
        }
        OpTensor::U16(out) => simd.run(|| probabilities(x, simd, out)),
        _ => Err(Mismatch { opcode: d.opcode, operand: 0 }),
    }
}

fn group(d: &Descriptor, p: usize) -> usize {
    d.params[p].max(1) as usize
}

/// The opcodes with I32 outputs.
#[inline(always)]
fn words(x: &Inputs<'_, '_>, simd: Simd, out: &mut [i32]) -> Result<(), Mismatch> {
    let d = x.d;
    let n = x.t as usize + 1;
    match d.opcode {
        Opcode::Embed => {
            let Input::Token(token) = x.inputs[0] else { return Err(x.mismatch(0)) };
            let m = x.matrix(1)?;
            let Some(scale) = m.scale(token as usize) else { return Err(x.mismatch(1)) };
            m.weights(token as usize, out).ok_or_else(|| x.mismatch(1))?;
            out.iter_mut().for_each(|o| *o = smulrs(*o, scale.m, scale.e));
        }
        Opcode::MaxAbs => {
            let floor = d.params[0].max(0) as u32;
            for (o, g) in out.iter_mut().zip(x.i32s(0)?.chunks_exact(group(d, 1))) {
                *o = g.iter().fold(floor, |a, v| a.max(v.unsigned_abs())) as i32;
            }
        }
        Opcode::SumSq => {
            // One maximum for all groups, or one for each.
            let max = x.i32s(1)?.iter().cycle();
            for ((o, g), max) in out.chunks_exact_mut(2).zip(x.i32s(0)?.chunks_exact(group(d, 0))).zip(max) {
                let sum = sum_squares(g, *max as u32);
                o[0] = (sum >> 16) as i32;
                o[1] = (sum & 65535) as i32;
            }
        }
        Opcode::Rms => {
            let parts = x.i32s(0)?.chunks_exact(2 * group(d, 1));
            for ((o, parts), max) in out.chunks_exact_mut(2).zip(parts).zip(x.i32s(1)?) {
                let sum = parts.chunks_exact(2).fold(0u64, |sum, p| {
                    sum.wrapping_add(u64::from(p[0] as u32) << 16).wrapping_add(u64::from(p[1] as u32))
                });
                let (r, k) = rms(sum, *max as u32, d.params[0] as u32);
                o.copy_from_slice(&[r as i32, k]);
            }
        }
        Opcode::Gain => {
            let (v, s) = (x.i32s(0)?, x.i16s(1)?);
            let n = group(d, 0);
            for (o, v) in out.chunks_exact_mut(n).zip(v.chunks_exact(n)) {
                o.iter_mut().zip(v).zip(s).for_each(|((o, v), s)| *o = smul15(*v, i32::from(*s)));
            }
        }
        Opcode::QuantScale => {
            for (o, a) in out.chunks_exact_mut(2).zip(x.i32s(0)?) {
                let (m, e) = quant_scale(*a as u32, d.bits, d.params[0]);
                o.copy_from_slice(&[m as i32, e]);
            }
        }
        Opcode::NormScale => {
            let (a, rk, s) = (x.i32s(0)?, x.i32s(1)?, x.i16s(2)?);
            let exponent = s.last().copied().map_or(0, i32::from);
            for ((o, rk), a) in out.chunks_exact_mut(2).zip(rk.chunks_exact(2)).zip(a) {
                // A mantissa has 16 bits and an exponent is small, or the operator before was tampered with.
                let (r, k) = ((rk[0] as u32).clamp(1, 65535), rk[1].clamp(-(1 << 20), 1 << 20));
                let (m, e) = norm_scale(*a as u32, d.bits, r, k, exponent);
                o.copy_from_slice(&[m as i32, e]);
            }
        }
        Opcode::Linear => {
            let m = x.matrix(2)?;
            if m.rows() != out.len() || Some(m.columns() as u64) != d.operand_elements(0, x.t) {
                return Err(x.mismatch(2));
            }
            let (mut a, mut forms) = (Activation::default(), Forms::default());
            forms.add(m.format(), Kernel::Rows);
            a.set(x.tensor(0)?, m.columns(), forms).ok_or_else(|| x.mismatch(0))?;
            linear::rows(&m, 0, &[&a], &[x.scale(1)?], &mut [out], simd);
        }
        Opcode::Rope => {
            let half = group(d, 0) / 2;
            let at = x.t as usize * half;
            let (v, cos, sin) = (x.i32s(0)?, x.i16s(1)?, x.i16s(2)?);
            let (Some(cos), Some(sin)) = (cos.get(at..at + half), sin.get(at..at + half)) else {
                return Err(x.mismatch(1));
            };
            for (o, v) in out.chunks_exact_mut(2 * half).zip(v.chunks_exact(2 * half)) {
                for (((o, v), c), s) in o.as_chunks_mut::<2>().0.iter_mut().zip(v.as_chunks::<2>().0).zip(cos).zip(sin)
                {
                    let (c, s) = (i32::from(*c), i32::from(*s));
                    o[0] = smul15(v[0], c).wrapping_sub(smul15(v[1], s));
                    o[1] = smul15(v[0], s).wrapping_add(smul15(v[1], c));
                }
            }
        }
        Opcode::ScaleQ => {
            for (o, a) in out.chunks_exact_mut(2).zip(x.i32s(0)?) {
                let scale = quant_scale(*a as u32, 8, d.params[0]);
                let (m, e) = scale_times(scale, d.params[1] as u32, d.params[2]);
                o.copy_from_slice(&[m as i32, e]);
            }
        }
        Opcode::Scores => {
            let (q, qs) = (x.i8s(0)?, x.i32s(1)?);
            let (View::I8(k), View::I32(ks)) = (x.cache(2)?, x.cache(3)?) else { return Err(x.mismatch(2)) };
            let (g, shared) = (group(d, 0), group(d, 1));
            let kv = (q.len() / g / shared).max(1);
            for ((h, out), (q, qs)) in
                out.chunks_exact_mut(n).enumerate().zip(q.chunks_exact(g).zip(qs.as_chunks::<2>().0))
            {
                let from = h / shared;
                for (j, o) in out.iter_mut().enumerate() {
                    let k = &k[(j * kv + from) * g..][..g];
                    let acc = q.iter().zip(k).fold(0i32, |a, (q, k)| a + i32::from(*q) * i32::from(*k));
                    let at = 2 * (j * kv + from);
                    *o = score(acc, *qs, [ks[at], ks[at + 1]]);
                }
            }
        }
        Opcode::RowMax => {
            let (s, heads) = (x.i32s(0)?, d.inner as usize);
            running(out, heads, n, d.div as usize, |h, range, before| {
                let max = s[h * n..][range].iter().copied().max();
                max.into_iter().chain(before).max().unwrap_or(0)
            });
        }
        Opcode::RowSum => {
            let (e, heads) = (x.u16s(0)?, d.inner as usize);
            running(out, heads, n, d.div as usize, |h, range, before| {
                e[h * n..][range].iter().fold(before.unwrap_or(0), |a, e| a.wrapping_add(i32::from(*e)))
            });
        }
        Opcode::Mix => {
            let p = x.u16s(0)?;
            let View::I16(v) = x.cache(1)? else { return Err(x.mismatch(1)) };
            let (g, shared, inner) = (group(d, 0), group(d, 1), d.inner as usize);
            let per_position = inner / shared;
            for b in 0..out.len() / inner.max(1) {
                let (before, own) = out.split_at_mut(b * inner);
                let own = &mut own[..inner];
                if b > 0 {
                    own.copy_from_slice(&before[(b - 1) * inner..]);
                } else {
                    own.fill(0);
                }
                for (h, own) in own.chunks_exact_mut(g).enumerate() {
                    for j in 16 * b..n.min(16 * b + 16) {
                        let p = i32::from(p[h * n + j]);
                        mix_add(own, p, &v[j * per_position + h / shared * g..][..g]);
                    }
                }
            }
        }
        Opcode::GeluMul => {
            let (g, u, table) = (x.i32s(0)?, x.i32s(1)?, x.u16s(2)?);
            for ((o, g), u) in out.iter_mut().zip(g).zip(u) {
                *o = silu_mul(*g, *u, exp2neg(gelu_exponent(*g), table));
            }
        }
        Opcode::SiluMul => {
            let (g, u, table) = (x.i32s(0)?, x.i32s(1)?, x.u16s(2)?);
            simd.silu_mul(g, u, table, out);
        }
        Opcode::Add => {
            let (a, b) = (x.i32s(0)?, x.i32s(1)?);
            out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o = add_clamp(*a, *b));
        }
        Opcode::Select => out[0] = select(x.i32s(0)?) as i32,
        Opcode::Dequant => {
            let (scale, fraction) = (x.i32s(1)?, d.params[0]);
            let (m, e) = (scale[0] as u32, scale[1]);
            match x.tensor(0)? {
                View::I8(q) => out.iter_mut().zip(q).for_each(|(o, q)| *o = dequant(i32::from(*q), m, e, fraction)),
                View::I16(q) => out.iter_mut().zip(q).for_each(|(o, q)| *o = dequant(i32::from(*q), m, e, fraction)),
                _ => return Err(x.mismatch(0)),
            }
        }
        Opcode::SoftCap => {
            let (v, table) = (x.i32s(0)?, x.u16s(1)?);
            let (cap, m, sh) = (d.params[0] as u32, d.params[1] as u32, d.params[2]);
            for (o, v) in out.iter_mut().zip(v) {
                *o = soft_cap(*v, cap, exp2neg(soft_cap_exponent(*v, m, sh), table));
            }
        }
        Opcode::Window => {
            let (s, width) = (x.i32s(0)?, x.i32s(1)?[0].max(0) as usize);
            let hidden = n.saturating_sub(width);
            for (o, s) in out.chunks_exact_mut(n).zip(s.chunks_exact(n)) {
                o.copy_from_slice(s);
                o[..hidden].fill(-CL);
            }
        }
        Opcode::Max => {
            for (o, g) in out.iter_mut().zip(x.i32s(0)?.chunks_exact(group(d, 0))) {
                *o = g.iter().copied().max().unwrap_or(0);
            }
        }
        Opcode::Sum => {
            for (o, g) in out.iter_mut().zip(x.i32s(0)?.chunks_exact(group(d, 0))) {
                *o = g.iter().copied().fold(0, i32::wrapping_add);
            }
        }
        Opcode::Temper | Opcode::Histogram | Opcode::Cut | Opcode::Threshold | Opcode::Sample => {
            return sampling::apply(x, out);
        }
        Opcode::Top | Opcode::Mass | Opcode::LogSum | Opcode::LogProb => return logprob::apply(x, simd, out),
        Opcode::Quant | Opcode::ToFixed | Opcode::Exp | Opcode::Prob => return Err(x.mismatch(0)),
    }
    Ok(())
}

/// The opcodes with U16 outputs.
fn probabilities(x: &Inputs<'_, '_>, simd: Simd, out: &mut [u16]) -> Result<(), Mismatch> {
    let n = x.t as usize + 1;
    match x.d.opcode {
        Opcode::Exp => {
            let (s, max, table) = (x.i32s(0)?, x.i32s(1)?, x.u16s(2)?);
            for ((out, s), max) in out.chunks_exact_mut(n).zip(s.chunks_exact(n)).zip(max) {
                simd.exp(s, *max, table, out);
            }
        }
        Opcode::Prob => {
            let (e, z) = (x.u16s(0)?, x.i32s(1)?);
            for ((out, e), z) in out.chunks_exact_mut(n).zip(e.chunks_exact(n)).zip(z) {
                out.iter_mut().zip(e).for_each(|(o, e)| *o = prob(u32::from(*e), *z as u32) as u16);
            }
        }
        _ => return Err(x.mismatch(0)),
    }
    Ok(())
}

/// A reduction over blocks of positions, each block continuing from the one before: `step(h, block, before)`.
fn running(
    out: &mut [i32],
    heads: usize,
    n: usize,
    block: usize,
    step: impl Fn(usize, std::ops::Range<usize>, Option<i32>) -> i32,
) {
    let (heads, block) = (heads.max(1), block.max(1));
    for i in 0..out.len() {
        let (b, h) = (i / heads, i % heads);
        let before = (b > 0).then(|| out[i - heads]);
        out[i] = step(h, b * block..n.min((b + 1) * block), before);
    }
}

/// The smallest index of the largest logit.
pub(crate) fn select(logits: &[i32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// `SCORES` from its dot product and the two scales.
#[inline(always)]
pub(crate) fn score(acc: i32, qs: [i32; 2], ks: [i32; 2]) -> i32 {
    smulrs(acc, (qs[0] as u32).wrapping_mul(ks[0] as u32), 0i32.wrapping_sub(qs[1]).wrapping_sub(ks[1]))
}

/// Adds p·v to the running sums of `MIX`.
#[inline(always)]
pub(crate) fn mix_add(sums: &mut [i32], p: i32, v: &[i16]) {
    sums.iter_mut().zip(v).for_each(|(a, v)| *a = a.wrapping_add(p.wrapping_mul(i32::from(*v))));
}

/// Σ of [`norm_term`]²: the shift is the same for all, so it is taken out of the loop.
#[inline(always)]
fn sum_squares(x: &[i32], max: u32) -> u64 {
    let s = bitlen(max) - 16;
    let square = |y: u32| u64::from(y.min(65535)) * u64::from(y.min(65535));
    if s >= 0 {
        x.iter().map(|v| square(v.unsigned_abs() >> s)).sum()
    } else {
        x.iter().map(|v| u64::from(norm_term(v.unsigned_abs(), max)).pow(2)).sum()
    }
}

/// `QUANT`: [`sworn_isa::fixed::quant`] with the shift and the reciprocal computed once per group.
#[inline(always)]
fn quant<T>(v: &[i32], a: &[i32], bits: u8, group: usize, out: &mut [T], narrow: impl Fn(i32) -> T) {
    for ((out, v), a) in out.chunks_exact_mut(group).zip(v.chunks_exact(group)).zip(a) {
        let a = *a as u32;
        let put = |out: &mut [T], f: &dyn Fn(u32) -> u32| {
            out.iter_mut().zip(v).for_each(|(o, v)| *o = narrow(signed(*v < 0, f(v.unsigned_abs()))));
        };
        if bits == 8 {
            let s = bitlen(a) - 16;
            let r = 0x7F00_0000u32.checked_div(shift(a, s)).unwrap_or(0);
            let q = |m: u32| m.wrapping_mul(r).wrapping_add(1 << 23) >> 24;
            if s >= 0 {
                out.iter_mut().zip(v).for_each(|(o, v)| *o = narrow(signed(*v < 0, q(v.unsigned_abs() >> s))));
            } else {
                put(out, &|m| q(shift(m, s)));
            }
        } else {
            let s = bitlen(a) - (i32::from(bits) - 1);
            let limit = (1u32 << (bits - 1)) - 1;
            if s > 0 {
                let half = 1u32 << (s - 1);
                out.iter_mut().zip(v).for_each(|(o, v)| {
                    *o = narrow(signed(*v < 0, (v.unsigned_abs().wrapping_add(half) >> s).min(limit)));
                });
            } else {
                put(out, &|m| shift(m, s));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_logits_is_selected() {
        assert_eq!(select(&[-5, 7, 7, 3]), 1);
        assert_eq!(select(&[0]), 0);
        assert_eq!(select(&[]), 0);
    }
}
