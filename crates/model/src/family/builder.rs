//! Operators appended to a section one by one.

use sworn_isa::{Descriptor, Dtype, Opcode, Operand, RowFormat, Section};

/// Longest vector that one `SUM_SQ` group reduces, and one of the other reductions unless a section would get too long.
pub(super) const GROUP: u32 = 2048;

/// The longest group of at most `most` elements that divides `n`.
pub(super) fn group(n: u32, most: u32) -> u32 {
    (1..=most.min(n)).rev().find(|g| n.is_multiple_of(*g)).unwrap_or(1)
}

/// Whether repeated grouping reduces `n` elements to one.
pub(super) fn reducible(mut n: u32) -> bool {
    while n > 1 {
        let g = group(n, GROUP);
        if g == 1 {
            return false;
        }
        n /= g;
    }
    true
}

/// Type of a vector quantised to `bits`.
pub(super) const fn quantised(bits: u8) -> Dtype {
    if bits == 8 { Dtype::I8 } else { Dtype::I16 }
}

pub(super) struct Shape {
    pub(super) outer: u32,
    pub(super) div: u32,
    pub(super) inner: u32,
    pub(super) dtype: Dtype,
}

pub(super) const fn vector(inner: u32, dtype: Dtype) -> Shape {
    Shape { outer: 1, div: 0, inner, dtype }
}

pub(super) const fn words(inner: u32) -> Shape {
    vector(inner, Dtype::I32)
}

/// The I32 tensor of operator `k`.
pub(super) const fn op(k: u32) -> Operand {
    Operand::op(k, Dtype::I32)
}

/// A matrix as a section reads it.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub(super) operand: Operand,
    pub(super) format: RowFormat,
    /// Scale pair of a row that is meant, and how many a row has.
    pub(super) column: u32,
    pub(super) columns: u32,
}

/// A quantised vector and its scale.
#[derive(Clone, Copy)]
pub(super) struct Activation {
    pub(super) values: Operand,
    pub(super) scale: Operand,
    pub(super) len: u32,
}

/// What a root-mean-square norm needs besides its input.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    /// Elements that are normed together.
    pub(super) width: u32,
    /// ε as `RMS` adds it.
    pub(super) floor: i32,
    pub(super) gain: Operand,
}

/// A section under construction; every method gives the number of the operator that holds its result.
pub(super) struct Builder {
    ops: Vec<Descriptor>,
    /// Longest group of `MAX_ABS`.
    most: u32,
}

impl Builder {
    pub(super) fn new(most: u32) -> Self {
        Builder { ops: Vec::new(), most }
    }

    pub(super) fn add<const P: usize>(&mut self, opcode: Opcode, shape: Shape, p: [i32; P], o: &[Operand]) -> u32 {
        let mut params = [0; 4];
        params[..P].copy_from_slice(&p);
        let mut operands = [Operand::NONE; 4];
        operands[..o.len()].copy_from_slice(o);
        let Shape { outer, div, inner, dtype } = shape;
        self.ops.push(Descriptor { opcode, dtype, export: false, bits: 0, outer, div, inner, params, operands });
        self.ops.len() as u32 - 1
    }

    fn with_bits(&mut self, op: u32, bits: u8) -> u32 {
        self.ops[op as usize].bits = bits;
        op
    }

    pub(super) fn export(&mut self, op: u32) {
        self.ops[op as usize].export = true;
    }

    pub(super) fn section(self) -> Section {
        Section { ops: self.ops }
    }

    /// The largest magnitude of a whole vector, in as many levels as its length needs.
    pub(super) fn max_abs(&mut self, x: Operand, n: u32, floor: i32) -> u32 {
        self.levels(x, n, self.most, |b, n, g, x| b.add(Opcode::MaxAbs, words(n), [floor, g], &[x]))
    }

    /// A reduction in levels. The configuration's check made sure that every length is reducible, so this ends.
    fn levels(
        &mut self,
        mut x: Operand,
        mut n: u32,
        most: u32,
        mut level: impl FnMut(&mut Self, u32, i32, Operand) -> u32,
    ) -> u32 {
        loop {
            let g = group(n, most);
            n /= g;
            let reduced = level(self, n, g as i32, x);
            if n == 1 {
                return reduced;
            }
            x = op(reduced);
        }
    }

    /// The largest value of a vector.
    pub(super) fn max(&mut self, x: Operand, n: u32) -> u32 {
        self.levels(x, n, GROUP, |b, n, g, x| b.add(Opcode::Max, words(n), [g], &[x]))
    }

    pub(super) fn quant(&mut self, v: Operand, max: u32, n: u32, bits: u8, g: u32) -> u32 {
        let q = self.add(Opcode::Quant, vector(n, quantised(bits)), [g as i32], &[v, op(max)]);
        self.with_bits(q, bits)
    }

    pub(super) fn quant_scale(&mut self, max: u32, groups: u32, bits: u8, e: i32) -> u32 {
        let scale = self.add(Opcode::QuantScale, words(2 * groups), [e], &[op(max)]);
        self.with_bits(scale, bits)
    }

    /// A vector with `e` as the exponent of its unit, quantised as a whole.
    pub(super) fn quantise(&mut self, v: Operand, n: u32, bits: u8, e: i32) -> Activation {
        let max = self.max_abs(v, n, 1);
        let q = self.quant(v, max, n, bits, n);
        let scale = self.quant_scale(max, 1, bits, e);
        Activation { values: Operand::op(q, quantised(bits)), scale: op(scale), len: n }
    }

    pub(super) fn linear(&mut self, a: Activation, rows: u32, w: Weights) -> u32 {
        let p = [a.len as i32, w.column as i32, w.columns as i32, w.format as i32];
        self.add(Opcode::Linear, words(rows), p, &[a.values, a.scale, w.operand])
    }

    pub(super) fn norm_scale(&mut self, max: u32, rms: u32, heads: u32, norm: Norm, bits: u8) -> u32 {
        let p = [norm.width as i32];
        let scale = self.add(Opcode::NormScale, words(2 * heads), p, &[op(max), op(rms), norm.gain]);
        self.with_bits(scale, bits)
    }

    /// The largest magnitude and the root mean square of a whole vector.
    fn rms(&mut self, x: Operand, norm: Norm) -> (u32, u32) {
        let n = norm.width;
        let max = self.max_abs(x, n, norm.floor);
        let g = group(n, GROUP);
        let ss = self.add(Opcode::SumSq, words(2 * (n / g)), [g as i32], &[x, op(max)]);
        (max, self.add(Opcode::Rms, words(2), [norm.floor, (n / g) as i32], &[op(ss), op(max)]))
    }

    /// Root-mean-square norm with gain, quantised for the matrices that read it.
    pub(super) fn norm(&mut self, x: Operand, norm: Norm, bits: u8) -> Activation {
        let n = norm.width;
        let (_, rms) = self.rms(x, norm);
        let v = self.add(Opcode::Gain, words(n), [n as i32], &[x, norm.gain]);
        let max = self.max_abs(op(v), n, 1);
        let a = self.quant(op(v), max, n, bits, n);
        let scale = self.norm_scale(max, rms, 1, norm, bits);
        Activation { values: Operand::op(a, quantised(bits)), scale: op(scale), len: n }
    }

    /// Root-mean-square norm with gain, back in Q14. The gains come last: so the one maximum serves norm and quantiser.
    pub(super) fn norm_in_place(&mut self, x: Operand, norm: Norm) -> u32 {
        const BITS: u8 = 16;
        let n = norm.width;
        let (max, rms) = self.rms(x, norm);
        let q = self.quant(x, max, n, BITS, n);
        let scale = self.norm_scale(max, rms, 1, norm, BITS);
        let v = self.add(
            Opcode::Dequant,
            words(n),
            [crate::quantise::FRACTION],
            &[Operand::op(q, quantised(BITS)), op(scale)],
        );
        self.add(Opcode::Gain, words(n), [n as i32], &[op(v), norm.gain])
    }

    /// Root-mean-square norm of each head: the vector times its gains, and each head's root mean square, by which
    /// `NORM_SCALE` divides.
    pub(super) fn head_norm(&mut self, x: u32, heads: u32, norm: Norm) -> (u32, u32) {
        let width = norm.width as i32;
        let max = self.add(Opcode::MaxAbs, words(heads), [norm.floor, width], &[op(x)]);
        let ss = self.add(Opcode::SumSq, words(2 * heads), [width, 1], &[op(x), op(max)]);
        let rms = self.add(Opcode::Rms, words(2 * heads), [norm.floor, 1], &[op(ss), op(max)]);
        let v = self.add(Opcode::Gain, words(heads * norm.width), [width], &[op(x), norm.gain]);
        (v, rms)
    }
}
