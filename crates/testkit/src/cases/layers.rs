//! Cases of the operators of embedding and blocks.

use rand::Rng;
use rand::seq::IndexedRandom;
use sworn_isa::{Descriptor, Dtype, Opcode, Operand, RowFormat};

use super::draw::{Gen, Q14, WORD};
use super::rows::Row;
use super::{OperandData, exp_table};

impl Gen<'_> {
    /// Shape, parameters, operands and their values of an operator at position `t`.
    pub(super) fn layer(&mut self, d: &mut Descriptor, t: u32) -> (Vec<Operand>, Vec<OperandData>) {
        use OperandData::{Cache, Rows, Tensor, Token};
        let op = |k: u32| Operand::op(k, Dtype::I32);
        let n = t as usize + 1;
        let mut data = Vec::new();
        let opcode = d.opcode;
        let kinds: Vec<Operand> = match opcode {
            Opcode::Embed => {
                let (rows, columns, format) = (self.size(6), self.size(3), self.format());
                let len = if format == RowFormat::I8 { self.size(40) } else { 32 * self.size(2) };
                d.outer = len;
                d.params = [rows as i32, self.rng.random_range(0..columns) as i32, columns as i32, format as i32];
                data.push(Token(self.rng.random_range(0..rows)));
                let all = (0..rows).map(|_| self.row(format, &vec![1; len as usize], i64::MAX, columns, 0));
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
                let each = self.rng.random();
                d.params = [g as i32, i32::from(each), 0, 0];
                let x = self.vector((outer * g) as usize, WORD);
                let max =
                    if each { x.chunks(g as usize).map(|x| self.maximum(x)).collect() } else { vec![self.maximum(&x)] };
                data.extend([Tensor(x), Tensor(max)]);
                vec![op(0), op(1)]
            }
            Opcode::Rms => {
                let (outer, groups) =
                    (self.size(3), if self.rng.random_range(0..64) == 0 { 1024 } else { self.size(8) });
                (d.outer, d.inner) = (outer, 2);
                let max: Vec<i64> = (0..outer).map(|_| self.value((1, i32::MAX as i64))).collect();
                let least = max.iter().copied().min().unwrap_or(1);
                let epsilon = self.value((1, least.min((1 << 30) - 1)));
                d.params = [epsilon as i32, groups as i32, 0, 0];
                let mut ss = Vec::new();
                for i in 0..outer * groups {
                    // The group that holds the maximum has at least its square.
                    let least = if i % groups == 0 { 1 << 14 } else { 0 };
                    ss.extend([self.value((least, (1 << 27) - 1)), self.value((0, 65535))]);
                }
                data.extend([Tensor(ss), Tensor(max)]);
                vec![op(0), op(1)]
            }
            Opcode::Gain => {
                let (times, len) = (self.size(3), self.size(64));
                d.outer = times * len;
                d.params[0] = len as i32;
                let mut s = self.vector(len as usize, (-32767, 32767));
                s.push(self.value((-200, 200)));
                data.extend([Tensor(self.vector((times * len) as usize, Q14)), Tensor(s)]);
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
                let (groups, len) = (self.size(4), self.size(12));
                (d.outer, d.inner) = (groups, 2);
                d.bits = self.rng.random_range(8..=16);
                d.params[0] = len as i32;
                data.push(Tensor((0..groups).map(|_| self.value((1, 1 << 30))).collect()));
                data.push(Tensor(
                    (0..groups).flat_map(|_| [self.mantissa(), self.rng.random_range(-16..32)]).collect(),
                ));
                let mut s = self.vector(len as usize, (-32767, 32767));
                s.push(self.rng.random_range(-200..200));
                data.push(Tensor(s));
                vec![op(0), op(1), Operand::table(0, 0, Dtype::I16)]
            }
            Opcode::Linear => {
                let (rows, columns, format) = (self.size(5), self.size(3), self.format());
                let k = self.columns(format);
                let wide = self.rng.random();
                let top = if wide { 32767 } else { 127 };
                d.outer = rows;
                d.params = [k as i32, self.rng.random_range(0..columns) as i32, columns as i32, format as i32];
                let a = self.vector(k as usize, (-top, top));
                let scale = vec![self.mantissa(), self.rng.random_range(-80..30)];
                // What the importer guarantees: no sum of products leaves the accumulator.
                let limit = format.bound() as i64 / top;
                let all: Vec<Row> = (0..rows).map(|_| self.row(format, &a, limit, columns, scale[1])).collect();
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
            Opcode::SiluMul | Opcode::GeluMul => {
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
                vec![op(0), if self.rng.random() { op(1) } else { Operand::table(0, 0, Dtype::I32) }]
            }
            Opcode::Dequant => {
                d.outer = self.size(64);
                d.params[0] = self.rng.random_range(-255..256);
                let (top, dtype) = if self.rng.random() { (127, Dtype::I8) } else { (32767, Dtype::I16) };
                let a = self.vector(d.outer as usize, (-top, top));
                let scale = vec![self.mantissa(), self.exponent(d.params[0].into())];
                data.extend([Tensor(a), Tensor(scale)]);
                vec![Operand::op(0, dtype), op(1)]
            }
            Opcode::SoftCap => {
                // Logits, or the scores of some heads.
                if self.rng.random() {
                    d.outer = self.size(64);
                } else {
                    (d.outer, d.div) = (self.size(4), 1);
                }
                let sh = if self.rng.random() { self.rng.random_range(12..32) } else { self.rng.random_range(1..=63) };
                d.params = [self.value((1, (1 << 30) - 1)) as i32, self.mantissa() as i32, sh, 0];
                data.extend([Tensor(self.vector(d.count(t) as usize, Q14)), Tensor(exp_table())]);
                vec![op(0), Operand::table(0, 0, Dtype::U16)]
            }
            Opcode::Window => {
                (d.outer, d.div) = (self.size(4), 1);
                let near = i64::from(t) + self.rng.random_range(-1..=2);
                let width = if self.rng.random() { near.max(1) } else { self.value((0, Q14.1)) };
                data.extend([Tensor(self.vector(d.count(t) as usize, Q14)), Tensor(vec![width])]);
                vec![op(0), Operand::table(0, 0, Dtype::I32)]
            }
            _ => panic!("{opcode} belongs in the head"),
        };
        (kinds, data)
    }
}
