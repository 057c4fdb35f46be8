//! The 64-byte operator descriptor.

use thiserror::Error;

/// Bytes of an encoded [`Descriptor`].
pub const DESCRIPTOR_BYTES: usize = 64;

/// Element type of a stored tensor, big-endian two's complement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dtype {
    /// signed 8 bit
    I8 = 0,
    /// signed 16 bit
    I16 = 1,
    /// signed 32 bit
    I32 = 2,
    /// unsigned 16 bit
    U16 = 3,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn width(self) -> usize {
        match self {
            Dtype::I8 => 1,
            Dtype::I16 | Dtype::U16 => 2,
            Dtype::I32 => 4,
        }
    }

    /// The type with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Dtype::I8,
            1 => Dtype::I16,
            2 => Dtype::I32,
            3 => Dtype::U16,
            _ => return None,
        })
    }

    /// The element at the start of `bytes`, which holds at least [`Dtype::width`] bytes.
    pub fn decode(self, bytes: &[u8]) -> i64 {
        match self {
            Dtype::I8 => bytes[0] as i8 as i64,
            Dtype::I16 => i16::from_be_bytes([bytes[0], bytes[1]]) as i64,
            Dtype::U16 => u16::from_be_bytes([bytes[0], bytes[1]]) as i64,
            Dtype::I32 => i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as i64,
        }
    }
}

macro_rules! opcodes {
    ($($variant:ident = $code:literal, $name:literal, $doc:literal;)*) => {
        /// An operator's kind. Definitions: [`crate::spec`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Opcode { $(#[doc = $doc] $variant = $code,)* }

        impl Opcode {
            /// Every opcode, in order of its code.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$variant),*];

            /// The opcode with this code.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Opcode::$variant),)* _ => None }
            }

            /// Its name in the specification.
            pub const fn name(self) -> &'static str {
                match self { $(Opcode::$variant => $name,)* }
            }

            /// The opcode of this name, in any case.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|o| o.name().eq_ignore_ascii_case(name))
            }
        }
    };
}

opcodes! {
    Embed = 1, "EMBED", "row of the embedding matrix";
    MaxAbs = 2, "MAX_ABS", "largest magnitude per group";
    SumSq = 3, "SUM_SQ", "sum of squares per group";
    Rms = 4, "RMS", "root of the mean square";
    Gain = 5, "GAIN", "elementwise gain";
    Quant = 6, "QUANT", "quantise by a maximum";
    QuantScale = 7, "QUANT_SCALE", "scale of a quantised vector";
    NormScale = 8, "NORM_SCALE", "scale of a normalised, quantised vector";
    Linear = 9, "LINEAR", "matrix times vector, requantised";
    Rope = 10, "ROPE", "rotary position embedding";
    ScaleQ = 11, "SCALE_Q", "scale of q with the attention constant";
    ToFixed = 12, "TO_FIXED", "round to a fixed grid";
    Scores = 13, "SCORES", "attention scores";
    RowMax = 14, "ROW_MAX", "running maximum over positions";
    Exp = 15, "EXP", "powers of two under the maximum";
    RowSum = 16, "ROW_SUM", "running sum over positions";
    Prob = 17, "PROB", "attention probabilities";
    Mix = 18, "MIX", "probability-weighted values, running";
    SiluMul = 19, "SILU_MUL", "gated activation";
    Add = 20, "ADD", "residual addition";
    Select = 21, "SELECT", "greedy token selection";
    Dequant = 22, "DEQUANT", "quantised vector back to Q14";
    GeluMul = 23, "GELU_MUL", "gated activation with GELU";
    SoftCap = 24, "SOFT_CAP", "smooth bound on a magnitude";
    Window = 25, "WINDOW", "sliding window over scores";
    Temper = 26, "TEMPER", "repetition penalty and temperature";
    Max = 27, "MAX", "largest value per group";
    Histogram = 28, "HISTOGRAM", "tokens or probability mass by distance from the maximum";
    Sum = 29, "SUM", "sum per group";
    Cut = 30, "CUT", "bin in which a rank or a mass is reached";
    Threshold = 31, "THRESHOLD", "smallest logit that may be sampled";
    Sample = 32, "SAMPLE", "token selection with noise";
    Top = 33, "TOP", "likeliest tokens in order";
    Mass = 34, "MASS", "probability mass per group";
    LogSum = 35, "LOG_SUM", "logarithm of the whole mass";
    LogProb = 36, "LOG_PROB", "log-probabilities of tokens";
}

impl core::fmt::Display for Opcode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an operand is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OperandKind {
    /// unused
    None = 0,
    /// operator `index` of the same layer and position
    Op = 1,
    /// export of the previous layer at the same position, `index` counted from its last export
    Prev = 2,
    /// export `index` of this layer at every position up to this one
    Cache = 3,
    /// weight matrix
    Weight = 4,
    /// table
    Table = 5,
    /// token at position t + `index`
    Token = 6,
}

/// One operand of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Where it is read from.
    pub kind: OperandKind,
    /// Read the last slab of a running reduction.
    pub tail: bool,
    /// Element type of the tensor read (I8 where it has none).
    pub dtype: Dtype,
    /// WEIGHT, TABLE: step per block layer; tail: the reduction's `div`.
    pub stride: u16,
    /// Operator, export, matrix, table or token offset.
    pub index: u32,
}

impl Operand {
    /// An unused operand.
    pub const NONE: Operand = Operand { kind: OperandKind::None, tail: false, dtype: Dtype::I8, stride: 0, index: 0 };

    /// Operator `index` of the same section.
    pub const fn op(index: u32, dtype: Dtype) -> Self {
        Operand { kind: OperandKind::Op, tail: false, dtype, stride: 0, index }
    }

    /// The last slab of running reduction `index` over blocks of `div` positions.
    pub const fn tail(index: u32, dtype: Dtype, div: u16) -> Self {
        Operand { kind: OperandKind::Op, tail: true, dtype, stride: div, index }
    }

    /// Export of the previous layer, `index` counted from its last.
    pub const fn prev(index: u32, dtype: Dtype) -> Self {
        Operand { kind: OperandKind::Prev, tail: false, dtype, stride: 0, index }
    }

    /// Export `index` of this layer at positions up to this one.
    pub const fn cache(index: u32, dtype: Dtype) -> Self {
        Operand { kind: OperandKind::Cache, tail: false, dtype, stride: 0, index }
    }

    /// Weight matrix `index` + `stride`·(layer − 1).
    pub const fn weight(index: u32, stride: u16) -> Self {
        Operand { kind: OperandKind::Weight, tail: false, dtype: Dtype::I8, stride, index }
    }

    /// Table `index` + `stride`·(layer − 1).
    pub const fn table(index: u32, stride: u16, dtype: Dtype) -> Self {
        Operand { kind: OperandKind::Table, tail: false, dtype, stride, index }
    }

    /// The token at position t + `offset`.
    pub const fn token(offset: u32) -> Self {
        Operand { kind: OperandKind::Token, tail: false, dtype: Dtype::I32, stride: 0, index: offset }
    }

    /// The matrix or table this operand means at `layer` (0 = embedding, blocks from 1), inside a block section.
    pub const fn resolve(&self, block_layer: u16) -> u32 {
        self.index.saturating_add(self.stride as u32 * block_layer.saturating_sub(1) as u32)
    }

    fn encode(&self) -> [u8; 8] {
        let mut b = [0; 8];
        b[0] = self.kind as u8;
        b[1] = self.tail as u8 | (self.dtype as u8) << 1;
        b[2..4].copy_from_slice(&self.stride.to_be_bytes());
        b[4..].copy_from_slice(&self.index.to_be_bytes());
        b
    }

    fn decode(b: &[u8]) -> Result<Self, DescriptorError> {
        let kind = match b[0] {
            0 => OperandKind::None,
            1 => OperandKind::Op,
            2 => OperandKind::Prev,
            3 => OperandKind::Cache,
            4 => OperandKind::Weight,
            5 => OperandKind::Table,
            6 => OperandKind::Token,
            k => return Err(DescriptorError::OperandKind(k)),
        };
        if b[1] > 7 {
            return Err(DescriptorError::Flags(b[1]));
        }
        let dtype = Dtype::from_code(b[1] >> 1).ok_or(DescriptorError::Dtype(b[1] >> 1))?;
        let stride = u16::from_be_bytes([b[2], b[3]]);
        let index = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
        Ok(Operand { kind, tail: b[1] & 1 == 1, dtype, stride, index })
    }
}

/// One operator of a program: what it computes, its output's shape and type, and where its inputs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// What it computes.
    pub opcode: Opcode,
    /// Element type of the output.
    pub dtype: Dtype,
    /// Whether the output's root is part of the position's leaf.
    pub export: bool,
    /// Width of a quantiser, 8…16; otherwise 0.
    pub bits: u8,
    /// Outer dimension.
    pub outer: u32,
    /// Positions per step of the middle dimension; 0: the middle dimension is 1.
    pub div: u32,
    /// Inner dimension.
    pub inner: u32,
    /// Parameters p0…p3.
    pub params: [i32; 4],
    /// Operands 0…3.
    pub operands: [Operand; 4],
}

/// Bytes that are no descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DescriptorError {
    /// wrong length
    #[error("a descriptor has 64 bytes, not {0}")]
    Length(usize),
    /// unknown opcode
    #[error("opcode {0} is not in instruction set 1")]
    Opcode(u8),
    /// unknown element type
    #[error("element type {0} does not exist (0…3 do)")]
    Dtype(u8),
    /// undefined flag bits
    #[error("undefined flag bits in {0:#04x}")]
    Flags(u8),
    /// unknown operand kind
    #[error("operand kind {0} does not exist (0…6 do)")]
    OperandKind(u8),
}

impl Descriptor {
    /// Elements of the middle dimension at position `t`.
    pub const fn steps(&self, t: u32) -> u64 {
        if self.div == 0 { 1 } else { (t as u64 + 1).div_ceil(self.div as u64) }
    }

    /// Elements of the output at position `t`.
    pub const fn count(&self, t: u32) -> u64 {
        (self.outer as u64 * self.inner as u64).saturating_mul(self.steps(t))
    }

    /// Bytes of the output at position `t`.
    pub const fn bytes(&self, t: u32) -> u64 {
        self.count(t).saturating_mul(self.dtype.width() as u64)
    }

    /// Elements n that operand `k` must have at position `t` (for a tail operand: of its last slab); `None` for operands
    /// that are no tensor or do not exist.
    pub fn operand_elements(&self, k: usize, t: u32) -> Option<u64> {
        use Opcode::*;
        let count = self.count(t);
        let n = t as u64 + 1;
        let p = |i: usize| self.params[i].max(0) as u64;
        let heads = self.outer as u64;
        let kv = |h: u64| if p(1) == 0 { 0 } else { h / p(1) };
        Some(match (self.opcode, k) {
            (MaxAbs, 0) => count.saturating_mul(p(1)),
            (SumSq, 0) => (count / 2).saturating_mul(p(0)),
            (SumSq, 1) if p(1) == 0 => 1,
            (SumSq | Rms, 1) => count / 2,
            (Rms, 0) => count.saturating_mul(p(1)),
            (Gain, 0) => count,
            (Gain, 1) => p(0) + 1,
            (Quant, 0) => count,
            (Quant, 1) => {
                if p(0) == 0 {
                    0
                } else {
                    count / p(0)
                }
            }
            (QuantScale | ScaleQ, 0) => count / 2,
            (NormScale, 0) => count / 2,
            (NormScale, 1) => count,
            (NormScale, 2) => p(0) + 1,
            (Linear, 0) => p(0),
            (Linear, 1) => 2,
            (Rope, 0) => count,
            (Rope, 1 | 2) => p(1) * p(0) / 2,
            (ToFixed, 0) => count,
            (Scores, 0) => heads * p(0),
            (Scores, 1) => 2 * heads,
            (Scores, 2) => kv(heads) * p(0),
            (Scores, 3) => 2 * kv(heads),
            (RowMax | RowSum, 0) => self.inner as u64 * n,
            (Exp | Prob, 0) => heads * n,
            (Exp | Prob, 1) => heads,
            (Exp, 2) => 257,
            (Mix, 0) => {
                if p(0) == 0 {
                    0
                } else {
                    self.inner as u64 / p(0) * n
                }
            }
            (Mix, 1) => {
                if p(0) == 0 {
                    0
                } else {
                    kv(self.inner as u64 / p(0)) * p(0)
                }
            }
            (SiluMul | GeluMul | Add, 0 | 1) => count,
            (SiluMul | GeluMul, 2) | (SoftCap, 1) => 257,
            (Dequant | SoftCap | Window | Temper, 0) => count,
            (Dequant, 1) => 2,
            (Window, 1) => 1,
            (Max | Sum | Mass, 0) => count.saturating_mul(p(0)),
            (Histogram, 0) => (self.inner as u64).saturating_mul(p(0)),
            (Histogram | Mass, 1) | (Threshold | LogSum, 0) | (Sample, 2) | (LogProb, 1 | 3) => 1,
            (Histogram, 2) if p(1) == 1 => 257,
            (Mass, 2) => 257,
            (LogSum, 2) => crate::logprob::LN_ENTRIES as u64,
            (Histogram, 2) | (Cut, 1) | (Threshold, 1..=3) => 2,
            (Cut, 0) => crate::sampling::BINS as u64,
            (Select | Sample | Top | LogProb, 0) | (LogSum, 1) => p(0),
            (LogProb, 2) => count.saturating_sub(1),
            (Sample, 3) => crate::sampling::NOISE_ENTRIES as u64,
            _ => return None,
        })
    }

    /// Elements of the whole tensor that operand `k` is read from (more than [`Self::operand_elements`] for a tail operand).
    pub fn operand_total(&self, k: usize, t: u32) -> Option<u64> {
        let n = self.operand_elements(k, t)?;
        let o = self.operands[k];
        Some(if o.tail { n.saturating_mul((t as u64 + 1).div_ceil(o.stride.max(1) as u64)) } else { n })
    }

    /// The 64 bytes that are hashed.
    pub fn encode(&self) -> [u8; DESCRIPTOR_BYTES] {
        let mut b = [0; DESCRIPTOR_BYTES];
        b[0] = self.opcode as u8;
        b[1] = self.dtype as u8;
        b[2] = self.export as u8;
        b[3] = self.bits;
        for (i, v) in [self.outer, self.div, self.inner].into_iter().enumerate() {
            b[4 + 4 * i..8 + 4 * i].copy_from_slice(&v.to_be_bytes());
        }
        for (i, v) in self.params.into_iter().enumerate() {
            b[16 + 4 * i..20 + 4 * i].copy_from_slice(&v.to_be_bytes());
        }
        for (i, o) in self.operands.iter().enumerate() {
            b[32 + 8 * i..40 + 8 * i].copy_from_slice(&o.encode());
        }
        b
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Any byte that no descriptor has.
    pub fn decode(b: &[u8]) -> Result<Self, DescriptorError> {
        if b.len() != DESCRIPTOR_BYTES {
            return Err(DescriptorError::Length(b.len()));
        }
        let word = |i: usize| u32::from_be_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        if b[2] > 1 {
            return Err(DescriptorError::Flags(b[2]));
        }
        let mut operands = [Operand::NONE; 4];
        for (i, o) in operands.iter_mut().enumerate() {
            *o = Operand::decode(&b[32 + 8 * i..40 + 8 * i])?;
        }
        Ok(Descriptor {
            opcode: Opcode::from_code(b[0]).ok_or(DescriptorError::Opcode(b[0]))?,
            dtype: Dtype::from_code(b[1]).ok_or(DescriptorError::Dtype(b[1]))?,
            export: b[2] == 1,
            bits: b[3],
            outer: word(4),
            div: word(8),
            inner: word(12),
            params: [word(16) as i32, word(20) as i32, word(24) as i32, word(28) as i32],
            operands,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_is_the_inverse_of_encoding_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 64)) {
            let mut bytes = bytes;
            bytes[0] = bytes[0] % Opcode::ALL.len() as u8 + 1;
            bytes[1] &= 3;
            bytes[2] &= 1;
            for i in 0..4 { bytes[32 + 8 * i] %= 7; bytes[33 + 8 * i] &= 7; }
            let d = Descriptor::decode(&bytes).unwrap();
            prop_assert_eq!(&d.encode()[..], &bytes[..]);
            for k in 0..4 { let _ = d.operand_total(k, 8191); }
        }

        #[test]
        fn any_bytes_are_a_descriptor_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(d) = Descriptor::decode(&bytes) { prop_assert_eq!(&d.encode()[..], &bytes[..]); }
        }
    }

    #[test]
    fn names_and_codes_are_unique() {
        for (i, o) in Opcode::ALL.iter().enumerate() {
            assert_eq!(*o as usize, i + 1);
            assert_eq!(Opcode::from_name(o.name()), Some(*o));
            assert_eq!(Opcode::from_code(*o as u8), Some(*o));
        }
    }
}
