//! Random and extreme cases of every opcode, within the ranges that [`sworn_isa::spec`] proves.
//!
//! One generator serves every differential test: a case carries the descriptor, the position, the operands' values and the
//! output that the scalar reference computes from them. The same seed gives the same cases everywhere.

use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use sworn_isa::{Descriptor, Dtype, Opcode, Operand, OperandKind, RowData, Sampling, StepReader, element, fixed::CL};

/// What one operand of a [`Case`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperandData {
    /// unused
    None,
    /// OP or TABLE: every element of the tensor read, so for a tail operand all slabs
    Tensor(Vec<i64>),
    /// CACHE: the exported tensor at positions 0…t
    Cache(Vec<Vec<i64>>),
    /// WEIGHT: all rows
    Rows(Vec<Row>),
    /// TOKEN
    Token(u32),
}

/// A weight row with all its scale pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// (mantissa, right shift) per scale column
    pub scales: Vec<(u16, i16)>,
    /// int8 elements
    pub elements: Vec<i8>,
}

impl Row {
    /// The row as a model stores and hashes it.
    pub fn bytes(&self) -> Vec<u8> {
        let scales = self.scales.iter().flat_map(|(m, sh)| m.to_be_bytes().into_iter().chain(sh.to_be_bytes()));
        scales.chain(self.elements.iter().map(|e| *e as u8)).collect()
    }
}

/// One operator with inputs and the output they determine.
#[derive(Clone, Debug)]
pub struct Case {
    /// The operator.
    pub descriptor: Descriptor,
    /// The position.
    pub t: u32,
    /// As many as the descriptor has operand slots.
    pub operands: Vec<OperandData>,
    /// `SELECT`: the claimed token; otherwise 0.
    pub claimed: i64,
    /// `SELECT`: the smallest index of the largest logit; otherwise 0.
    pub hint: u32,
    /// Every output element, by [`sworn_isa::element`].
    pub expected: Vec<i64>,
}

impl Case {
    /// Operand `k` as it is stored and hashed: big-endian at its declared width. Empty for operands that are no tensor.
    pub fn bytes(&self, k: usize) -> Vec<u8> {
        match &self.operands[k] {
            OperandData::Tensor(v) => encode(v, self.descriptor.operands[k].dtype),
            _ => Vec::new(),
        }
    }

    /// The expected output as it is stored and hashed.
    pub fn expected_bytes(&self) -> Vec<u8> {
        encode(&self.expected, self.descriptor.dtype)
    }
}

/// Values as big-endian two's complement of `dtype`'s width.
pub fn encode(values: &[i64], dtype: Dtype) -> Vec<u8> {
    let w = dtype.width();
    values.iter().flat_map(|v| v.to_be_bytes().into_iter().skip(8 - w)).collect()
}

/// Serves a case's operands to the scalar reference.
pub struct CaseReader<'a> {
    /// The case.
    pub case: &'a Case,
    /// The output elements computed so far.
    pub own: &'a [i64],
}

/// A read outside what a case holds: the generator and the opcode's definition disagree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("operand {operand}: element {at} does not exist")]
pub struct Outside {
    operand: usize,
    at: u64,
}

impl StepReader for CaseReader<'_> {
    type Error = Outside;

    fn read(&mut self, operand: usize, start: u64, len: u64) -> Result<Vec<i64>, Outside> {
        let (d, outside) = (&self.case.descriptor, Outside { operand, at: start });
        let OperandData::Tensor(v) = &self.case.operands[operand] else { return Err(outside) };
        let n = d.operand_elements(operand, self.case.t).unwrap_or(0) as usize;
        let slab = v.len().checked_sub(n).map(|at| &v[at..]);
        let range = start as usize..(start + len) as usize;
        slab.and_then(|s| s.get(range)).map(<[i64]>::to_vec).ok_or(outside)
    }

    fn cache(&mut self, operand: usize, first: u32, positions: u32, start: u64, len: u64) -> Result<Vec<i64>, Outside> {
        let outside = Outside { operand, at: start };
        let OperandData::Cache(c) = &self.case.operands[operand] else { return Err(outside) };
        let rows = c.get(first as usize..(first + positions) as usize).ok_or(outside.clone())?;
        let mut out = Vec::new();
        for row in rows {
            out.extend_from_slice(row.get(start as usize..(start + len) as usize).ok_or(outside.clone())?);
        }
        Ok(out)
    }

    fn row(&mut self, operand: usize, row: u32, column: u32) -> Result<RowData, Outside> {
        let outside = Outside { operand, at: row as u64 };
        let OperandData::Rows(rows) = &self.case.operands[operand] else { return Err(outside) };
        let r = rows.get(row as usize).ok_or(outside.clone())?;
        let (m, sh) = *r.scales.get(column as usize).ok_or(outside)?;
        Ok(RowData { m, sh, weights: r.elements.iter().map(|e| i32::from(*e)).collect() })
    }

    fn token(&mut self, operand: usize) -> Result<u32, Outside> {
        match self.case.operands[operand] {
            OperandData::Token(t) => Ok(t),
            _ => Err(Outside { operand, at: 0 }),
        }
    }

    fn tokens(&mut self, operand: usize, first: u32, _: u32) -> Result<Vec<u32>, Outside> {
        Err(Outside { operand, at: u64::from(first) })
    }

    fn sampling(&mut self) -> Sampling {
        Sampling::GREEDY
    }

    fn noise(&mut self, _: u32, _: u32) -> u32 {
        0
    }

    fn own(&mut self, index: u64) -> Result<i64, Outside> {
        self.own.get(index as usize).copied().ok_or(Outside { operand: usize::MAX, at: index })
    }

    fn claimed(&mut self) -> Result<i64, Outside> {
        Ok(self.case.claimed)
    }

    fn hint(&mut self) -> u32 {
        self.case.hint
    }
}

/// An endless stream of cases of `opcode`; take as many as needed.
pub fn cases(opcode: Opcode, seed: u64) -> impl Iterator<Item = Case> {
    let mut rng = SplitMix(seed ^ (opcode as u64) << 56);
    std::iter::repeat_with(move || {
        let (descriptor, t, operands) = Gen { rng: &mut rng }.case(opcode);
        let mut case = Case { descriptor, t, operands, claimed: 0, hint: 0, expected: Vec::new() };
        if opcode == Opcode::Select {
            select(&mut case, &mut rng);
        }
        let mut own = Vec::new();
        for i in 0..descriptor.count(t) {
            let value = element(&descriptor, t, i, &mut CaseReader { case: &case, own: &own });
            own.push(value.unwrap_or_else(|e| panic!("generated case is out of range: {e}: {case:?}")));
        }
        case.expected = own;
        case
    })
}

/// Half of the selections are honest; the rest claim another token than follows, or a token that is not the best.
fn select(case: &mut Case, rng: &mut SplitMix) {
    let OperandData::Tensor(logits) = &case.operands[0] else { return };
    let best = logits.iter().enumerate().rev().max_by_key(|(_, v)| **v).map_or(0, |(i, _)| i as u32);
    let any = rng.random_range(0..logits.len() as u32);
    case.hint = best;
    let (claimed, token) = match rng.random_range(0..4) {
        0 => (any, any),
        1 => (any, best),
        _ => (best, best),
    };
    case.claimed = claimed as i64;
    case.operands[1] = OperandData::Token(token);
}

const MANTISSA: (i64, i64) = (1 << 15, (1 << 16) - 1);
const Q14: (i64, i64) = (-(CL as i64), CL as i64);
const WORD: (i64, i64) = (-(i32::MAX as i64), i32::MAX as i64);

/// SplitMix64: the same cases with every version of every library, and fast where dependencies are not optimised.
struct SplitMix(u64);

impl RngCore for SplitMix {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        out.chunks_mut(8).for_each(|c| {
            let word = self.next_u64().to_le_bytes();
            c.copy_from_slice(&word[..c.len()]);
        });
    }
}

struct Gen<'a> {
    rng: &'a mut SplitMix,
}

impl Gen<'_> {
    /// A value of the range: its ends, neighbours of powers of two, a random number of bits, or uniform.
    fn value(&mut self, (lo, hi): (i64, i64)) -> i64 {
        let rng = &mut *self.rng;
        let v = match rng.random_range(0..8) {
            0 => *[lo, hi, 0, 1, -1].choose(rng).unwrap_or(&lo),
            1 => (1i64 << rng.random_range(0..32)) + rng.random_range(-1..=1),
            2 => -(1i64 << rng.random_range(0..32)) + rng.random_range(-1..=1),
            3..6 => {
                let bits = rng.random_range(1..33);
                let m = rng.random_range(0..1i64 << bits);
                if rng.random() { m } else { -m }
            }
            _ => return rng.random_range(lo..=hi),
        };
        if (lo..=hi).contains(&v) { v } else { rng.random_range(lo..=hi) }
    }

    /// A vector, sometimes constant at an extreme.
    fn vector(&mut self, n: usize, range: (i64, i64)) -> Vec<i64> {
        match self.rng.random_range(0..16) {
            0 => vec![range.1; n],
            1 => vec![range.0; n],
            // A typical vector: one magnitude throughout.
            2..10 => {
                let top = self.value((0, range.1.max(0))).max(range.0).max(1);
                let range = (range.0.max(-top), range.1.min(top).max(range.0));
                (0..n).map(|_| self.rng.random_range(range.0..=range.1)).collect()
            }
            _ => (0..n).map(|_| self.value(range)).collect(),
        }
    }

    fn size(&mut self, max: u32) -> u32 {
        match self.rng.random_range(0..6) {
            0 => 1,
            1 => max,
            _ => self.rng.random_range(1..=max),
        }
    }

    fn position(&mut self) -> u32 {
        let near_block = *[0, 1, 14, 15, 16, 17, 31, 32, 47].choose(self.rng).unwrap_or(&0);
        if self.rng.random_range(0..8) == 0 { self.rng.random_range(0..128) } else { near_block }
    }

    fn mantissa(&mut self) -> i64 {
        self.value(MANTISSA)
    }

    /// A maximum magnitude for `v`: the true one, or a larger one.
    fn maximum(&mut self, v: &[i64]) -> i64 {
        let max = v.iter().map(|x| x.abs()).max().unwrap_or(0).max(1);
        if self.rng.random_range(0..4) == 0 { self.value((max, i32::MAX as i64)) } else { max }
    }

    /// An exponent e so that the total shift −e − `other` is mostly within 0…70.
    fn exponent(&mut self, other: i64) -> i64 {
        let shift = match self.rng.random_range(0..8) {
            0 => *[-3, -1, 0, 1, 2, 31, 32, 33, 62, 63, 64, 70].choose(self.rng).unwrap_or(&1),
            _ => self.rng.random_range(1..64),
        };
        -shift - other
    }

    fn case(&mut self, opcode: Opcode) -> (Descriptor, u32, Vec<OperandData>) {
        use OperandData::{Cache, Rows, Tensor, Token};
        let op = |k: u32| Operand::op(k, Dtype::I32);
        let mut d = Descriptor {
            opcode,
            dtype: Dtype::I32,
            export: false,
            bits: 0,
            outer: 1,
            div: 0,
            inner: 1,
            params: [0; 4],
            operands: [Operand::NONE; 4],
        };
        let t = self.position();
        let n = t as usize + 1;
        let mut data = Vec::new();
        let kinds: Vec<Operand> = match opcode {
            Opcode::Embed => {
                let (rows, len, columns) = (self.size(6), self.size(40), self.size(3));
                d.outer = len;
                d.params = [rows as i32, self.rng.random_range(0..columns) as i32, columns as i32, 0];
                data.push(Token(self.rng.random_range(0..rows)));
                let all = (0..rows).map(|_| {
                    let elements = self.vector(len as usize, (-127, 127));
                    self.row(elements, columns, 0)
                });
                data.push(Rows(all.collect()));
                vec![Operand::token(0), Operand::weight(0, 0)]
            }
            Opcode::MaxAbs => {
                let (outer, g) = (self.size(4), self.size(100));
                d.outer = outer;
                d.params =
                    [self.value((1, i32::MAX as i64)).min(1 << self.rng.random_range(0..31)) as i32, g as i32, 0, 0];
                data.push(Tensor(self.vector((outer * g) as usize, WORD)));
                vec![op(0)]
            }
            Opcode::SumSq => {
                let (outer, g) = (self.size(3), self.long(2048));
                (d.outer, d.inner) = (outer, 2);
                d.params[0] = g as i32;
                let x = self.vector((outer * g) as usize, WORD);
                let max = self.maximum(&x);
                data.extend([Tensor(x), Tensor(vec![max])]);
                vec![op(0), op(1)]
            }
            Opcode::Rms => {
                let groups = self.size(8);
                (d.outer, d.inner) = (1, 2);
                let max = self.value((1, i32::MAX as i64));
                let epsilon = self.value((1, max.min((1 << 30) - 1)));
                d.params = [epsilon as i32, groups as i32, 0, 0];
                let mut ss = Vec::new();
                for g in 0..groups {
                    // The group that holds the maximum has at least its square.
                    let high =
                        if g == 0 { self.value((1 << 14, (1 << 27) - 1)) } else { self.value((0, (1 << 27) - 1)) };
                    ss.extend([high, self.value((0, 65535))]);
                }
                data.extend([Tensor(ss), Tensor(vec![max])]);
                vec![op(0), op(1)]
            }
            Opcode::Gain => {
                let len = self.size(64);
                d.outer = len;
                d.params[0] = len as i32;
                let mut s = self.vector(len as usize, (-32767, 32767));
                s.push(self.value((-200, 200)));
                data.extend([Tensor(self.vector(len as usize, Q14)), Tensor(s)]);
                vec![op(0), Operand::table(0, 0, Dtype::I16)]
            }
            Opcode::Quant => {
                let (outer, g) = (self.size(4), self.size(48));
                (d.outer, d.inner) = (outer, g);
                d.bits = if self.rng.random() { 8 } else { self.rng.random_range(9..=16) };
                d.dtype = if d.bits == 8 { Dtype::I8 } else { Dtype::I16 };
                d.params[0] = g as i32;
                let tail = self.rng.random_range(0..4) == 0;
                let mut v: Vec<i64> = Vec::new();
                let mut a = Vec::new();
                for _ in 0..outer {
                    let x = self.vector(g as usize, WORD);
                    a.push(self.maximum(&x));
                    v.extend(x);
                }
                if tail {
                    // Earlier slabs of the running reduction that the operand's tail does not mean.
                    let mut all = self.vector(v.len() * (n.div_ceil(16) - 1), WORD);
                    all.extend(v);
                    v = all;
                }
                data.extend([Tensor(v), Tensor(a)]);
                vec![if tail { Operand::tail(0, Dtype::I32, 16) } else { op(0) }, op(1)]
            }
            Opcode::QuantScale | Opcode::ScaleQ => {
                let groups = self.size(8);
                (d.outer, d.inner) = (groups, 2);
                d.params[0] = self.rng.random_range(-255..256);
                if opcode == Opcode::QuantScale {
                    d.bits = self.rng.random_range(8..=16);
                } else {
                    d.params[1] = self.mantissa() as i32;
                    d.params[2] = self.rng.random_range(-255..256);
                }
                data.push(Tensor((0..groups).map(|_| self.value((1, i32::MAX as i64))).collect()));
                vec![op(0)]
            }
            Opcode::NormScale => {
                let len = self.size(12);
                d.inner = 2;
                d.bits = self.rng.random_range(8..=16);
                d.params[0] = len as i32;
                data.push(Tensor(vec![self.value((1, 1 << 30))]));
                data.push(Tensor(vec![self.mantissa(), self.rng.random_range(-16..32)]));
                let mut s = self.vector(len as usize, (-32767, 32767));
                s.push(self.rng.random_range(-200..200));
                data.push(Tensor(s));
                vec![op(0), op(1), Operand::table(0, 0, Dtype::I16)]
            }
            Opcode::Linear => {
                let (rows, k, columns) = (self.size(5), self.long(2100), self.size(3));
                let wide = self.rng.random();
                let top = if wide { 32767 } else { 127 };
                d.outer = rows;
                d.params = [k as i32, self.rng.random_range(0..columns) as i32, columns as i32, 0];
                let a = self.vector(k as usize, (-top, top));
                let limit = i32::MAX as i64 / top;
                let scale = vec![self.mantissa(), self.rng.random_range(-80..30)];
                let all = (0..rows).map(|_| {
                    let mut w = self.vector(k as usize, (-127, 127));
                    // Mostly aligned signs reach the accumulator's bound; the importer guarantees the norm.
                    if self.rng.random_range(0..4) == 0 {
                        w.iter_mut().zip(&a).for_each(|(w, a)| *w = if *a < 0 { -w.abs() } else { w.abs() });
                    }
                    let mut norm = 0;
                    for w in &mut w {
                        if norm + w.abs() > limit {
                            *w = 0;
                        }
                        norm += w.abs();
                    }
                    self.row(w, columns, scale[1])
                });
                let all = all.collect();
                data.extend([Tensor(a), Tensor(scale), Rows(all)]);
                let dtype = if wide { Dtype::I16 } else { Dtype::I8 };
                vec![Operand::op(0, dtype), op(1), Operand::weight(0, 0)]
            }
            Opcode::Rope => {
                let (groups, g) = (self.size(4), 2 * self.size(32));
                let positions = t + self.size(3);
                (d.outer, d.inner) = (groups, g);
                d.params = [g as i32, positions as i32, 0, 0];
                data.push(Tensor(self.vector((groups * g) as usize, Q14)));
                let len = (positions * g / 2) as usize;
                let cos = self.vector(len, (-32767, 32767));
                let sin = cos.iter().map(|c| {
                    let top = (32767u64 * 32767 - c.unsigned_abs().pow(2)).isqrt() as i64;
                    if self.rng.random() { self.value((-top, top)) } else { top }
                });
                let sin = sin.collect();
                data.extend([Tensor(cos), Tensor(sin)]);
                vec![op(0), Operand::table(0, 0, Dtype::I16), Operand::table(1, 0, Dtype::I16)]
            }
            Opcode::ToFixed => {
                d.outer = self.size(64);
                d.dtype = Dtype::I16;
                d.params[0] = self.rng.random_range(1..=30);
                data.push(Tensor(self.vector(d.outer as usize, WORD)));
                vec![op(0)]
            }
            Opcode::Scores => {
                let (kv, per, g) = (self.size(3), self.size(4), self.size(256));
                let heads = kv * per;
                (d.outer, d.div) = (heads, 1);
                d.params = [g as i32, per as i32, 0, 0];
                let q = self.vector((heads * g) as usize, (-127, 127));
                let e = self.rng.random_range(-60..20);
                let qs = (0..heads).flat_map(|_| [self.mantissa(), e]).collect();
                let k = (0..n).map(|_| self.vector((kv * g) as usize, (-127, 127))).collect();
                let ks = (0..n).map(|_| (0..kv).flat_map(|_| [self.mantissa(), self.exponent(e)]).collect()).collect();
                data.extend([Tensor(q), Tensor(qs), Cache(k), Cache(ks)]);
                vec![Operand::op(0, Dtype::I8), op(1), Operand::cache(0, Dtype::I8), Operand::cache(1, Dtype::I32)]
            }
            Opcode::RowMax | Opcode::RowSum => {
                let (heads, block) = (self.size(5), *[1, 2, 7, 16, 64, 1024].choose(self.rng).unwrap_or(&16));
                (d.div, d.inner) = (block as u32, heads);
                d.params[0] = block;
                let (range, dtype) =
                    if opcode == Opcode::RowMax { (Q14, Dtype::I32) } else { ((0, 1 << 15), Dtype::U16) };
                data.push(Tensor(self.vector(heads as usize * n, range)));
                vec![Operand::op(0, dtype)]
            }
            Opcode::Exp => {
                let heads = self.size(4);
                (d.outer, d.div, d.dtype) = (heads, 1, Dtype::U16);
                d.params[0] = heads as i32;
                let block = *[1u16, 16, 1024].choose(self.rng).unwrap_or(&16);
                let (mut s, mut last) = (Vec::new(), Vec::new());
                for _ in 0..heads {
                    let max = self.value(Q14);
                    // Near the maximum (the table's range is 17 octaves of 2^13) or anywhere below it.
                    let near = self.rng.random();
                    let low = if near { (max - (18 << 13)).max(Q14.0) } else { Q14.0 };
                    s.extend(
                        (0..n).map(|_| if near { self.rng.random_range(low..=max) } else { self.value((low, max)) }),
                    );
                    last.push(max);
                }
                let mut m = self.vector(heads as usize * (n.div_ceil(block as usize) - 1), Q14);
                m.extend(last);
                data.extend([Tensor(s), Tensor(m), Tensor(exp_table())]);
                vec![op(0), Operand::tail(1, Dtype::I32, block), Operand::table(0, 0, Dtype::U16)]
            }
            Opcode::Prob => {
                let heads = self.size(4);
                (d.outer, d.div, d.dtype) = (heads, 1, Dtype::U16);
                d.params[0] = heads as i32;
                let block = *[1u16, 16, 1024].choose(self.rng).unwrap_or(&16);
                let e = self.vector(heads as usize * n, (0, 1 << 15));
                let mut z: Vec<i64> = self.vector(heads as usize * (n.div_ceil(block as usize) - 1), (0, 1 << 28));
                for row in e.chunks(n) {
                    let sum = row.iter().sum::<i64>().max(1 << 15);
                    z.push(if self.rng.random() { sum } else { self.value((1 << 15, 1 << 28)) });
                }
                data.extend([Tensor(e), Tensor(z)]);
                vec![Operand::op(0, Dtype::U16), Operand::tail(1, Dtype::I32, block)]
            }
            Opcode::Mix => {
                let (kv, per, g) = (self.size(2), self.size(3), self.size(20));
                let heads = kv * per;
                (d.div, d.inner) = (16, heads * g);
                d.params = [g as i32, per as i32, 16, 0];
                let mut p = Vec::new();
                for _ in 0..heads {
                    // Probabilities add up to one and at most half a unit of rounding each.
                    let mut left = (1i64 << 15) + 1 + n as i64 / 2;
                    let row: Vec<i64> = (0..n)
                        .map(|_| {
                            let v = self.value((0, left.min(1 << 15)));
                            left -= v;
                            v
                        })
                        .collect();
                    p.extend(row);
                }
                let v = (0..n).map(|_| self.vector((kv * g) as usize, (-32767, 32767))).collect();
                data.extend([Tensor(p), Cache(v)]);
                vec![Operand::op(0, Dtype::U16), Operand::cache(0, Dtype::I16)]
            }
            Opcode::SiluMul => {
                d.outer = self.size(64);
                let g = self.vector(d.outer as usize, Q14);
                let u = self.vector(d.outer as usize, Q14);
                data.extend([Tensor(g), Tensor(u), Tensor(exp_table())]);
                vec![op(0), op(1), Operand::table(0, 0, Dtype::U16)]
            }
            Opcode::Add => {
                d.outer = self.size(64);
                let x = self.vector(d.outer as usize, Q14);
                let y = self.vector(d.outer as usize, Q14);
                data.extend([Tensor(x), Tensor(y)]);
                vec![op(0), op(1)]
            }
            Opcode::Select => {
                let vocabulary = self.size(300);
                d.params[0] = vocabulary as i32;
                data.extend([Tensor(self.vector(vocabulary as usize, Q14)), Token(0)]);
                vec![op(0), Operand::token(1)]
            }
            _ => panic!("{opcode} has no cases"),
        };
        d.operands[..kinds.len()].copy_from_slice(&kinds);
        debug_assert!(kinds.iter().all(|o| o.kind != OperandKind::None));
        data.resize(4, OperandData::None);
        (d, t, data)
    }

    /// A length that is mostly short and sometimes as long as it may be.
    fn long(&mut self, max: u32) -> u32 {
        match self.rng.random_range(0..32) {
            0 => max,
            1 => *[516, 576, 1024, 1536].choose(self.rng).unwrap_or(&576),
            _ => self.size(96),
        }
    }

    /// A row whose scales match an activation exponent of `other` in every column.
    fn row(&mut self, elements: Vec<i64>, columns: u32, other: i64) -> Row {
        let scales = (0..columns).map(|_| {
            let m = if self.rng.random_range(0..16) == 0 { self.value((0, 65535)) } else { self.mantissa() };
            (m as u16, (-self.exponent(-other)) as i16)
        });
        Row { scales: scales.collect(), elements: elements.into_iter().map(|e| e as i8).collect() }
    }
}

/// T\[j\] = round(2^15·2^(−j/256)), j = 0…256.
pub fn exp_table() -> Vec<i64> {
    (0..=256).map(|j| (32768.0 * (-(j as f64) / 256.0).exp2() + 0.5).floor() as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_has_cases_and_equal_seeds_give_equal_cases() {
        for opcode in Opcode::ALL {
            let a: Vec<_> = cases(*opcode, 7).take(300).collect();
            let b: Vec<_> = cases(*opcode, 7).take(300).collect();
            for (a, b) in a.iter().zip(&b) {
                assert_eq!((&a.expected, &a.operands), (&b.expected, &b.operands));
                assert_eq!(a.expected.len() as u64, a.descriptor.count(a.t));
                for k in 0..4 {
                    if let OperandData::Tensor(v) = &a.operands[k] {
                        assert_eq!(Some(v.len() as u64), a.descriptor.operand_total(k, a.t), "{opcode} operand {k}");
                    }
                }
            }
        }
    }
}
