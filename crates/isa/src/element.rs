//! The scalar reference: one output element of one operator, from the inputs it reads.

use alloc::vec::Vec;

use thiserror::Error;

use crate::descriptor::{Descriptor, Opcode};
use crate::fixed::{
    add_clamp, exp2neg_with, norm_scale, norm_term, prob, quant, quant_scale, rms, scale_times, silu_exponent,
    silu_mul, smul15, smulrs, to_fixed,
};

/// One row of a weight matrix: its scale pair (of the column asked for) and its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowData {
    /// mantissa
    pub m: u16,
    /// right shift
    pub sh: i16,
    /// int8 elements
    pub elements: Vec<i8>,
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
    /// An earlier element of the operator's own output.
    fn own(&mut self, index: u64) -> Result<i64, Self::Error>;
    /// The claimed value of the element itself (`SELECT` only).
    fn claimed(&mut self) -> Result<i64, Self::Error>;
    /// The index that the prover holds against a claimed selection.
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
            let x = *row.elements.get(i as usize).ok_or_else(range)? as i32;
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
            let max = word(one!(1, 0))?;
            let mut sum = 0u64;
            for v in x {
                let y = norm_term(int(v)?.unsigned_abs(), max) as u64;
                sum += y * y;
            }
            if i.is_multiple_of(2) { int((sum >> 16) as i64)? as i64 } else { (sum & 65535) as i64 }
        }
        Opcode::Rms => {
            let parts = r.read(0, 0, 2 * group(1)?)?;
            let max = word(one!(1, 0))?;
            let mut sum = 0u64;
            for p in parts.chunks_exact(2) {
                sum += ((word(p[0])? as u64) << 16) + word(p[1])? as u64;
            }
            let (root, k) = rms(sum, max, word(d.params[0] as i64)?);
            pair(root, k)
        }
        Opcode::Gain => {
            let x = int(one!(0, i))?;
            let s = int(one!(1, i))?;
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
            let a = word(one!(0, 0))?;
            let rk = r.read(1, 0, 2)?;
            let gain_exponent = exponent(one!(2, param(0)?))?;
            let (m, e) = norm_scale(a, d.bits, mantissa(rk[0])?, exponent(rk[1])?, gain_exponent);
            pair(m, e)
        }
        Opcode::Linear => {
            let a = r.read(0, 0, group(0)?)?;
            let scale = r.read(1, 0, 2)?;
            let row = r.row(2, i as u32, param(1)? as u32)?;
            let mut acc = 0i64;
            for (w, x) in row.elements.iter().zip(&a) {
                acc += *w as i64 * x;
            }
            let acc = int(acc)?;
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
        Opcode::SiluMul => {
            let (g, u) = (int(one!(0, i))?, int(one!(1, i))?);
            let e = exp2neg_with(silu_exponent(g), |j| {
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
    })
}
