//! The scalar reference: one output element of one operator, from the inputs it reads.

use alloc::vec::Vec;

use thiserror::Error;

use crate::descriptor::{Descriptor, Opcode};
use crate::fixed::{
    CL, add_clamp, dequant, exp2neg_with, gelu_exponent, narrow, norm_scale, norm_term, prob, quant, quant_scale, rms,
    scale_times, silu_exponent, silu_mul, smul15, smulrs, soft_cap, soft_cap_exponent, to_fixed,
};
use crate::logprob;
use crate::row::RowFormat;
use crate::sampling::{self, Sampling};

/// One row of a weight matrix: its scale pair (of the column asked for) and its integer weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowData {
    /// mantissa
    pub m: u16,
    /// right shift
    pub sh: i16,
    /// integer weights, as [`RowFormat`] defines them
    pub weights: Vec<i32>,
}

/// Supplies what an element reads. A prover's reader records the reads and so learns which pages to open; the order of
/// calls is the order of [`crate::spec`].
pub trait StepReader {
    /// Why a read failed.
    type Error;

    /// Elements `[start, start + len)` of operand `operand` (of its last slab, for a tail operand).
    fn read(&mut self, operand: usize, start: u64, len: u64) -> Result<Vec<i64>, Self::Error>;
    /// The same elements of a CACHE operand at each of `positions` positions from `first`, position-major.
    fn cache(
        &mut self,
        operand: usize,
        first: u32,
        positions: u32,
        start: u64,
        len: u64,
    ) -> Result<Vec<i64>, Self::Error>;
    /// Row `row` of a WEIGHT operand with the scale of `column`.
    fn row(&mut self, operand: usize, row: u32, column: u32) -> Result<RowData, Self::Error>;
    /// The token of a TOKEN operand.
    fn token(&mut self, operand: usize) -> Result<u32, Self::Error>;
    /// The tokens of prompt‖output at positions `[first, first + len)`: those of the prompt are one read, those of the output
    /// another.
    fn tokens(&mut self, operand: usize, first: u32, len: u32) -> Result<Vec<u32>, Self::Error>;
    /// How this run samples.
    fn sampling(&mut self) -> Sampling;
    /// The run's noise for `token` at `position`: word `token mod 8` of keccak256(seed ‖ position u32 ‖ (token div 8) u32).
    fn noise(&mut self, position: u32, token: u32) -> u32;
    /// An earlier element of the operator's own output.
    fn own(&mut self, index: u64) -> Result<i64, Self::Error>;
    /// The claimed value of the element itself (`SELECT`, `SAMPLE`, `TOP`).
    fn claimed(&mut self) -> Result<i64, Self::Error>;
    /// The index that the prover holds against a claimed one.
    fn hint(&mut self) -> u32;
}

/// An element that cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StepError<E> {
    /// The reader failed.
    #[error("{0}")]
    Read(E),
    /// The index lies outside the output.
    #[error("element {index} of an output of {count}")]
    Element {
        /// asked for
        index: u64,
        /// elements of the output
        count: u64,
    },
    /// A value outside its declared range: an input is itself wrong.
    #[error("{opcode}: an input is outside its range")]
    Range {
        /// the operator
        opcode: Opcode,
    },
    /// A descriptor that [`crate::Program::validate`] would reject.
    #[error("{opcode}: malformed descriptor")]
    Malformed {
        /// the operator
        opcode: Opcode,
    },
}

impl<E> From<E> for StepError<E> {
    fn from(e: E) -> Self {
        StepError::Read(e)
    }
}

/// The value of output element `i` of operator `d` at position `t`, computed from what `r` supplies.
///
/// # Errors
/// A failed read, an index outside the output, or an input outside its declared range.
pub fn element<R: StepReader>(d: &Descriptor, t: u32, i: u64, r: &mut R) -> Result<i64, StepError<R::Error>> {
    let count = d.count(t);
    if i >= count {
        return Err(StepError::Element { index: i, count });
    }
    let opcode = d.opcode;
    let range = || StepError::Range { opcode };
    let param = |k: usize| u64::try_from(d.params[k]).map_err(|_| StepError::Malformed { opcode });
    // A parameter that divides.
    let group = |k: usize| match d.params[k] {
        v if v > 0 => Ok(v as u64),
        _ => Err(StepError::Malformed { opcode }),
    };
    let n = t as u64 + 1;
    let int = |v: i64| i32::try_from(v).map_err(|_| range());
    let word = |v: i64| u32::try_from(v).map_err(|_| range());
    let mantissa = |v: i64| u32::try_from(v).ok().filter(|m| *m < 1 << 16).ok_or_else(range);
    let exponent = |v: i64| i32::try_from(v).ok().filter(|e| e.abs() < 1 << 20).ok_or_else(range);
    macro_rules! one {
        ($operand:expr, $index:expr) => {
            r.read($operand, $index, 1)?[0]
        };
    }
    let pair = |m: u32, e: i32| if i.is_multiple_of(2) { m as i64 } else { e as i64 };

    Ok(match opcode {
        Opcode::Embed => {
            let token = r.token(0)?;
            let row = r.row(1, token, param(1)? as u32)?;
            let x = *row.weights.get(i as usize).ok_or_else(range)?;
            smulrs(x, row.m as u32, row.sh as i32) as i64
        }
        Opcode::MaxAbs => {
            let g = group(1)?;
            let mut max = word(d.params[0] as i64)?;
            for v in r.read(0, i * g, g)? {
                max = max.max(int(v)?.unsigned_abs());
            }
            max as i64
        }
        Opcode::SumSq => {
            let g = group(0)?;
            let x = r.read(0, i / 2 * g, g)?;
            let max = word(one!(1, if d.params[1] == 0 { 0 } else { i / 2 }))?;
            let mut sum = 0u64;
            for v in x {
                let y = norm_term(int(v)?.unsigned_abs(), max) as u64;
                sum += y * y;
            }
            if i.is_multiple_of(2) { int((sum >> 16) as i64)? as i64 } else { (sum & 65535) as i64 }
        }
        Opcode::Rms => {
            let len = 2 * group(1)?;
            let parts = r.read(0, i / 2 * len, len)?;
            let max = word(one!(1, i / 2))?;
            let mut sum = 0u64;
            for p in parts.chunks_exact(2) {
                sum += ((word(p[0])? as u64) << 16) + word(p[1])? as u64;
            }
            let (root, k) = rms(sum, max, word(d.params[0] as i64)?);
            pair(root, k)
        }
        Opcode::Gain => {
            let x = int(one!(0, i))?;
            let s = int(one!(1, i % group(0)?))?;
            smul15(x, s) as i64
        }
        Opcode::Quant => {
            let v = int(one!(0, i))?;
            let a = word(one!(1, i / group(0)?))?;
            if v.unsigned_abs() > a {
                return Err(range());
            }
            quant(v, a, d.bits) as i64
        }
        Opcode::QuantScale => {
            let (m, e) = quant_scale(word(one!(0, i / 2))?, d.bits, d.params[0]);
            pair(m, e)
        }
        Opcode::NormScale => {
            let a = word(one!(0, i / 2))?;
            let rk = r.read(1, i & !1, 2)?;
            let gain_exponent = exponent(one!(2, param(0)?))?;
            let (m, e) = norm_scale(a, d.bits, mantissa(rk[0])?, exponent(rk[1])?, gain_exponent);
            pair(m, e)
        }
        Opcode::Linear => {
            let a = r.read(0, 0, group(0)?)?;
            let scale = r.read(1, 0, 2)?;
            let row = r.row(2, i as u32, param(1)? as u32)?;
            let format = RowFormat::from_code(d.params[3]).ok_or(StepError::Malformed { opcode })?;
            let mut acc = 0i64;
            for (w, x) in row.weights.iter().zip(&a) {
                acc += *w as i64 * x;
            }
            let acc = narrow(acc, format.shift()).ok_or_else(range)?;
            smulrs(acc, mantissa(scale[0])? * row.m as u32, row.sh as i32 - exponent(scale[1])?) as i64
        }
        Opcode::Rope => {
            let g = group(0)?;
            let x = r.read(0, i & !1, 2)?;
            let at = t as u64 * (g / 2) + i % g / 2;
            let (c, s) = (int(one!(1, at))?, int(one!(2, at))?);
            let (a, b) = (int(x[0])?, int(x[1])?);
            if i.is_multiple_of(2) {
                int(smul15(a, c) as i64 - smul15(b, s) as i64)? as i64
            } else {
                int(smul15(a, s) as i64 + smul15(b, c) as i64)? as i64
            }
        }
        Opcode::ScaleQ => {
            let scale = quant_scale(word(one!(0, i / 2))?, 8, d.params[0]);
            let (m, e) = scale_times(scale, mantissa(d.params[1] as i64)?, d.params[2]);
            pair(m, e)
        }
        Opcode::ToFixed => to_fixed(int(one!(0, i))?, d.params[0]) as i64,
        Opcode::Scores => {
            let g = group(0)?;
            let (h, j) = (i / n, i % n);
            let kv = h / group(1)?;
            let q = r.read(0, h * g, g)?;
            let qs = r.read(1, 2 * h, 2)?;
            let k = r.cache(2, j as u32, 1, kv * g, g)?;
            let ks = r.cache(3, j as u32, 1, 2 * kv, 2)?;
            let acc: i64 = q.iter().zip(&k).map(|(a, b)| a * b).sum();
            let shift = -exponent(qs[1])? - exponent(ks[1])?;
            smulrs(int(acc)?, mantissa(qs[0])? * mantissa(ks[0])?, shift) as i64
        }
        Opcode::RowMax | Opcode::RowSum => {
            let block = group(0)?;
            let heads = d.inner as u64;
            let (b, h) = (i / heads, i % heads);
            let values = r.read(0, h * n + b * block, block.min(n - b * block))?;
            let before = if b > 0 { Some(r.own(i - heads)?) } else { None };
            if opcode == Opcode::RowMax {
                values.into_iter().chain(before).max().unwrap_or(0)
            } else {
                int(values.into_iter().chain(before).sum())? as i64
            }
        }
        Opcode::Exp => {
            let s = one!(0, i);
            let m = one!(1, i / n);
            let difference = u32::try_from(m - s).map_err(|_| range())?;
            let e = exp2neg_with(difference, |j| {
                let pair = r.read(2, j as u64, 2)?;
                Ok::<_, StepError<R::Error>>((word(pair[0])?, word(pair[1])?))
            })?;
            e as i64
        }
        Opcode::Prob => {
            let e = word(one!(0, i))?;
            let z = word(one!(1, i / n))?;
            if e > z {
                return Err(range());
            }
            prob(e, z) as i64
        }
        Opcode::Mix => {
            let g = group(0)?;
            let inner = d.inner as u64;
            let (b, h, x) = (i / inner, i % inner / g, i % g);
            let first = 16 * b;
            let len = 16.min(n - first);
            let p = r.read(0, h * n + first, len)?;
            let v = r.cache(1, first as u32, len as u32, h / group(1)? * g + x, 1)?;
            let before = if b > 0 { r.own(i - inner)? } else { 0 };
            int(before + p.iter().zip(&v).map(|(p, v)| p * v).sum::<i64>())? as i64
        }
        Opcode::SiluMul | Opcode::GeluMul => {
            let (g, u) = (int(one!(0, i))?, int(one!(1, i))?);
            let d = if opcode == Opcode::SiluMul { silu_exponent(g) } else { gelu_exponent(g) };
            let e = exp2neg_with(d, |j| {
                let pair = r.read(2, j as u64, 2)?;
                Ok::<_, StepError<R::Error>>((word(pair[0])?, word(pair[1])?))
            })?;
            silu_mul(g, u, e) as i64
        }
        Opcode::Add => {
            let (x, y) = (int(one!(0, i))?, int(one!(1, i))?);
            add_clamp(x, y) as i64
        }
        Opcode::Select => {
            let claimed = r.claimed()?;
            let token = r.token(1)? as i64;
            if token != claimed {
                return Ok(token);
            }
            let (c, hint) = (word(claimed)? as u64, r.hint() as u64);
            let vocabulary = group(0)?;
            if c >= vocabulary || hint >= vocabulary {
                return Err(range());
            }
            let (chosen, other) = (one!(0, c), one!(0, hint));
            if other > chosen || (other == chosen && hint < c) { hint as i64 } else { claimed }
        }
        Opcode::Dequant => {
            let q = int(one!(0, i))?;
            let scale = r.read(1, 0, 2)?;
            dequant(q, mantissa(scale[0])?, exponent(scale[1])?, d.params[0]) as i64
        }
        Opcode::SoftCap => {
            let x = int(one!(0, i))?;
            let exponent = soft_cap_exponent(x, mantissa(d.params[1] as i64)?, d.params[2]);
            let e = exp2neg_with(exponent, |j| {
                let pair = r.read(1, j as u64, 2)?;
                Ok::<_, StepError<R::Error>>((word(pair[0])?, word(pair[1])?))
            })?;
            soft_cap(x, word(d.params[0] as i64)?, e) as i64
        }
        Opcode::Window => {
            let width = word(one!(1, 0))? as u64;
            if i % n + width > t as u64 { one!(0, i) } else { -(CL as i64) }
        }
        Opcode::Temper => {
            let logit = int(one!(0, i))?;
            let s = r.sampling();
            let mut repeated = false;
            if s.penalty != 0 {
                let len = (param(0)? as u32).min(t + 1);
                repeated = r.tokens(1, t + 1 - len, len)?.contains(&(i as u32));
            }
            s.temper(logit, repeated) as i64
        }
        Opcode::Max => {
            let g = group(0)?;
            r.read(0, i * g, g)?.into_iter().max().unwrap_or(0)
        }
        Opcode::Sum => {
            let g = group(0)?;
            int(r.read(0, i * g, g)?.into_iter().sum())? as i64
        }
        Opcode::Histogram => {
            let g = group(0)?;
            let groups = d.inner as u64;
            let (bin, at) = (i / groups, i % groups);
            let z = r.read(0, at * g, g)?;
            let max = one!(1, 0);
            let masses = d.params[1] == 1;
            let parent = if d.params[3] == 0 { None } else { Some((word(one!(2, 0))?, d.params[3] as u32)) };
            let mut table = Vec::new();
            if masses {
                for v in r.read(2, 0, 257)? {
                    table.push(u16::try_from(v).map_err(|_| range())?);
                }
            }
            let mut sum = 0i64;
            for z in z {
                let distance = u32::try_from(max - z).map_err(|_| range())?;
                if sampling::bin(distance, param(2)? as u32, parent) == Some(bin as u32) {
                    sum += if masses { sampling::mass(distance, &table) as i64 } else { 1 };
                }
            }
            int(sum)? as i64
        }
        Opcode::Cut => {
            let bins = r.read(0, 0, sampling::BINS as u64)?;
            let mut counts = [0u32; sampling::BINS];
            for (c, b) in counts.iter_mut().zip(&bins) {
                *c = word(*b)?;
            }
            let parent = if d.operands[1] == crate::Operand::NONE {
                None
            } else {
                let p = r.read(1, 0, 2)?;
                Some([word(p[0])?, word(p[1])?])
            };
            let cut = r.sampling().cut(d.params[0] == 1, &counts, parent);
            cut[(i & 1) as usize] as i64
        }
        Opcode::Threshold => {
            let max = int(one!(0, 0))?;
            let k = [word(one!(1, 0))?, word(one!(2, 0))?];
            let p = word(one!(3, 0))?;
            r.sampling().threshold(max, k, p, param(0)? as u32, param(1)? as u32) as i64
        }
        Opcode::Sample => {
            let claimed = r.claimed()?;
            let token = r.token(1)? as i64;
            if token != claimed {
                return Ok(token);
            }
            let (c, hint) = (word(claimed)?, r.hint());
            let vocabulary = group(0)?;
            if c as u64 >= vocabulary || hint as u64 >= vocabulary {
                return Err(range());
            }
            let (chosen, other) = (one!(0, c as u64), one!(0, hint as u64));
            let least = one!(2, 0);
            let mut noises = [0i64; 2];
            if r.sampling().inverse_temperature != 0 {
                for (noise, j) in noises.iter_mut().zip([c, hint]) {
                    let v = r.noise(t, j);
                    let pair = r.read(3, sampling::noise_index(v) as u64, 2)?;
                    *noise = sampling::noise_interpolate(v, int(pair[0])?, int(pair[1])?) as i64;
                }
            }
            let (chosen, other) =
                ((chosen >= least).then_some(chosen + noises[0]), (other >= least).then_some(other + noises[1]));
            // None, a token that may not be sampled, is less than any.
            if other > chosen || (other.is_some() && other == chosen && hint < c) { hint as i64 } else { claimed }
        }
        Opcode::Top => {
            let claimed = r.claimed()?;
            let vocabulary = group(0)?;
            let named = |v: i64| u64::try_from(v).ok().filter(|v| *v < vocabulary);
            let previous = if i > 0 { Some(r.own(i - 1)?) } else { None };
            let chosen = match named(claimed) {
                Some(c) => Some((claimed, one!(0, c))),
                None => None,
            };
            let previous = match previous {
                Some(p) => Some((p, one!(0, named(p).ok_or_else(range)?))),
                None => None,
            };
            let hint = r.hint() as i64;
            let other = (hint, one!(0, named(hint).ok_or_else(range)?));
            // What may stand here comes after the token before.
            let may = |token: (i64, i64)| previous.is_none_or(|p| logprob::before(p, token));
            let better = chosen.is_none_or(|c| !may(c) || logprob::before(other, c));
            if may(other) && better { hint } else { claimed }
        }
        Opcode::Mass => {
            let g = group(0)?;
            let z = r.read(0, i * g, g)?;
            let max = one!(1, 0);
            let mut table = Vec::new();
            for v in r.read(2, 0, 257)? {
                table.push(u16::try_from(v).map_err(|_| range())?);
            }
            let mut sum = 0i64;
            for z in z {
                sum += logprob::mass(u32::try_from(max - z).map_err(|_| range())?, &table) as i64;
            }
            int(sum)? as i64
        }
        Opcode::LogSum => {
            let max = int(one!(0, 0))?;
            let mut total = 0u64;
            for v in r.read(1, 0, group(0)?)? {
                total += word(v)? as u64;
            }
            let (k, j, rest) = logprob::total_parts(total).ok_or_else(range)?;
            let pair = r.read(2, j as u64, 2)?;
            logprob::log_sum(max, k, rest, int(pair[0])?, int(pair[1])?) as i64
        }
        Opcode::LogProb => {
            let log_sum = int(one!(1, 0))?;
            let token = match i {
                0 => one!(3, 0),
                _ => one!(2, i - 1),
            };
            let logit = int(one!(0, word(token)? as u64))?;
            if logit > log_sum {
                return Err(range());
            }
            logprob::log_prob(logit, log_sum) as i64
        }
    })
}
