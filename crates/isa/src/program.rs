//! Programs: the three sections of a model and the checks that make them safe to run and to verify.

use alloc::vec::Vec;

use thiserror::Error;

use crate::descriptor::{DESCRIPTOR_BYTES, Descriptor, DescriptorError, Dtype, Opcode, Operand, OperandKind};
use crate::{logprob, row::RowFormat, sampling};

/// Most operators in a section; the contract that registers models admits no more.
pub const MAX_OPS: usize = 96;
/// Most positions of one job: the attention ranges hold up to here.
pub const MAX_POSITIONS: u32 = 8192;

/// Which section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SectionKind {
    /// layer 0
    Embedding = 0,
    /// layers 1…L
    Block = 1,
    /// layer L + 1
    Head = 2,
}

impl SectionKind {
    /// The section of `layer` in a model of `layers` blocks.
    pub const fn of_layer(layer: u16, layers: u16) -> Option<Self> {
        if layer == 0 {
            Some(SectionKind::Embedding)
        } else if layer <= layers {
            Some(SectionKind::Block)
        } else if layer == layers + 1 {
            Some(SectionKind::Head)
        } else {
            None
        }
    }
}

/// The operators of one section, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// The operators.
    pub ops: Vec<Descriptor>,
}

impl Section {
    /// Indexes of exported operators: export number e is operator `exports()[e]`.
    pub fn exports(&self) -> Vec<usize> {
        (0..self.ops.len()).filter(|k| self.ops[*k].export).collect()
    }

    /// All descriptors, concatenated.
    pub fn encode(&self) -> Vec<u8> {
        self.ops.iter().flat_map(|d| d.encode()).collect()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// A length that is no multiple of 64 or a malformed descriptor.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProgramError> {
        if !bytes.len().is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(ProgramError::Length(bytes.len()));
        }
        let ops = bytes.chunks_exact(DESCRIPTOR_BYTES).enumerate();
        let ops = ops.map(|(op, b)| Descriptor::decode(b).map_err(|source| ProgramError::Descriptor { op, source }));
        Ok(Section { ops: ops.collect::<Result<_, _>>()? })
    }
}

/// A whole program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Embedding, block, head.
    pub sections: [Section; 3],
}

/// A program that must not be run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// truncated bytes
    #[error("program bytes are a multiple of 64, not {0}: the file is truncated or not a program")]
    Length(usize),
    /// section sizes do not add up
    #[error("the manifest counts {expected} operators, the program holds {actual}")]
    Count {
        /// from the manifest
        expected: usize,
        /// found
        actual: usize,
    },
    /// undecodable descriptor
    #[error("operator {op}: {source}")]
    Descriptor {
        /// its index
        op: usize,
        /// what is wrong
        source: DescriptorError,
    },
    /// a descriptor that breaks a rule
    #[error("section {section:?}, operator {op} ({opcode}): {what}")]
    Invalid {
        /// section
        section: SectionKind,
        /// operator
        op: usize,
        /// its opcode
        opcode: Opcode,
        /// the rule
        what: &'static str,
    },
    /// a section without operators or exports
    #[error("section {0:?}: {1}")]
    Section(SectionKind, &'static str),
}

impl Program {
    /// The section of a layer's kind.
    pub fn section(&self, kind: SectionKind) -> &Section {
        &self.sections[kind as usize]
    }

    /// All sections, concatenated.
    pub fn encode(&self) -> Vec<u8> {
        self.sections.iter().flat_map(Section::encode).collect()
    }

    /// Splits bytes by the section sizes of a manifest.
    ///
    /// # Errors
    /// Sizes that do not match, or a malformed descriptor.
    pub fn decode(bytes: &[u8], counts: [u16; 3]) -> Result<Self, ProgramError> {
        let all = Section::decode(bytes)?.ops;
        let expected = counts.iter().map(|c| *c as usize).sum();
        if all.len() != expected {
            return Err(ProgramError::Count { expected, actual: all.len() });
        }
        let mut ops = all.into_iter();
        let sections = counts.map(|c| Section { ops: ops.by_ref().take(c as usize).collect() });
        Ok(Program { sections })
    }

    /// Checks every rule of [`crate::spec`] that does not need the weights: shapes agree with what readers expect,
    /// references point backwards and into existing exports, parameters lie in their ranges.
    ///
    /// # Errors
    /// The first rule that is broken, with its place.
    pub fn validate(&self, max_positions: u32) -> Result<(), ProgramError> {
        for kind in [SectionKind::Embedding, SectionKind::Block, SectionKind::Head] {
            let section = self.section(kind);
            if section.ops.is_empty() || section.ops.len() > MAX_OPS {
                return Err(ProgramError::Section(kind, "has no operators or more than 96"));
            }
            if section.exports().is_empty() {
                return Err(ProgramError::Section(kind, "exports nothing"));
            }
            for op in 0..section.ops.len() {
                self.check(kind, op, max_positions).map_err(|what| ProgramError::Invalid {
                    section: kind,
                    op,
                    opcode: section.ops[op].opcode,
                    what,
                })?;
            }
        }
        let head = &self.section(SectionKind::Head).ops;
        let exported: Vec<_> = head.iter().filter(|d| d.export).collect();
        let (first, others) = exported.split_at(exported.len().min(1));
        if !first.iter().all(|d| matches!(d.opcode, Opcode::Select | Opcode::Sample))
            || !others.iter().all(|d| matches!(d.opcode, Opcode::Top | Opcode::LogProb))
        {
            return Err(ProgramError::Section(
                SectionKind::Head,
                "must export its SELECT or SAMPLE, and after it nothing but a TOP and a LOG_PROB",
            ));
        }
        Ok(())
    }

    /// The sections whose exports a PREV operand of `kind` may mean.
    fn previous(kind: SectionKind) -> &'static [SectionKind] {
        match kind {
            SectionKind::Embedding => &[],
            SectionKind::Block => &[SectionKind::Embedding, SectionKind::Block],
            SectionKind::Head => &[SectionKind::Block],
        }
    }

    fn check(&self, kind: SectionKind, op: usize, max_positions: u32) -> Result<(), &'static str> {
        use Opcode::*;
        let section = self.section(kind);
        let d = &section.ops[op];
        let top = max_positions.clamp(1, MAX_POSITIONS) - 1;
        if d.count(0) == 0 || d.bytes(top) > 1 << 30 {
            return Err("the output is empty or over 1 GiB");
        }
        let p = d.params;
        let dtype = match d.opcode {
            Quant => {
                if d.bits == 8 {
                    Dtype::I8
                } else {
                    Dtype::I16
                }
            }
            ToFixed => Dtype::I16,
            Exp | Prob => Dtype::U16,
            _ => Dtype::I32,
        };
        if d.dtype != dtype {
            return Err("wrong element type of the output");
        }
        let quantises = matches!(d.opcode, Quant | QuantScale | NormScale);
        if quantises != (8..=16).contains(&d.bits) || (!quantises && d.bits != 0) {
            return Err("bits must be 8…16 for quantisers and 0 otherwise");
        }
        // Shapes. `flat`: no position-dependent dimension.
        let flat = d.div == 0;
        let dynamic = match d.opcode {
            Scores | Exp | Prob => d.div == 1 && d.inner == 1,
            RowMax | RowSum => d.outer == 1 && d.div == p[0] as u32 && (1..=2048).contains(&p[0]),
            Mix => d.outer == 1 && d.div == 16,
            Window => d.div == 1 && d.inner == 1,
            SoftCap => flat || (d.div == 1 && d.inner == 1),
            _ => flat,
        };
        if !dynamic {
            return Err("the shape does not fit the opcode");
        }
        let count = d.count(0);
        let divides = |g: i32, n: u64| g > 0 && n.is_multiple_of(g as u64);
        let ok = match d.opcode {
            Embed => {
                p[0] > 0 && (0..p[2]).contains(&p[1]) && p[2] <= 16 && count <= 1 << 20 && format_fits(p[3], count)
            }
            MaxAbs => p[0] >= 1 && (1..=8192).contains(&p[1]),
            SumSq => (1..=2048).contains(&p[0]) && count.is_multiple_of(2) && (0..=1).contains(&p[1]),
            Rms => count.is_multiple_of(2) && (1..1 << 30).contains(&p[0]) && (1..=1024).contains(&p[1]),
            Gain => divides(p[0], count),
            Quant => divides(p[0], count),
            QuantScale => count.is_multiple_of(2) && p[0].abs() < 256,
            NormScale => count.is_multiple_of(2) && p[0] > 0,
            Linear => {
                (1..=1 << 20).contains(&p[0])
                    && (0..p[2]).contains(&p[1])
                    && p[2] <= 16
                    && format_fits(p[3], p[0] as u64)
            }
            Rope => p[0] % 2 == 0 && divides(p[0], count) && p[1] > 0 && p[1] as u32 > top,
            ScaleQ => {
                count.is_multiple_of(2) && p[0].abs() < 256 && (1 << 15..1 << 16).contains(&p[1]) && p[2].abs() < 256
            }
            ToFixed => (1..=30).contains(&p[0]),
            Scores => (1..=256).contains(&p[0]) && divides(p[1], d.outer as u64),
            RowMax | RowSum => true,
            Exp | Prob => p[0] as u64 == d.outer as u64,
            Mix => p[2] == 16 && divides(p[0], d.inner as u64) && divides(p[1], d.inner as u64 / p[0] as u64),
            SiluMul | GeluMul | Add => true,
            Select => count == 1 && p[0] > 0,
            Dequant => p[0].abs() < 256,
            SoftCap => (1..1 << 30).contains(&p[0]) && (1 << 15..1 << 16).contains(&p[1]) && (1..=63).contains(&p[2]),
            Window => true,
            Temper => p[0] == sampling::PENALTY_WINDOW as i32,
            Max | Sum => (1..=2048).contains(&p[0]),
            Histogram => {
                d.outer as usize == sampling::BINS
                    && (1..=2048).contains(&p[0])
                    && (0..=1).contains(&p[1])
                    && (0..=20).contains(&p[2])
                    && (0..=28).contains(&p[3])
                    // Only ranks are refined.
                    && (p[3] == 0 || (p[1] == 0 && p[3] == p[2] + 8))
                    // Every token's mass is at most 2^12, so the sum over all fits an i32.
                    && p[0] as u64 * d.inner as u64 <= 1 << 18
            }
            Cut => count == 2 && (0..=1).contains(&p[0]),
            Threshold => count == 1 && (8..=20).contains(&p[0]) && p[1] == p[0] - 8,
            Sample => count == 1 && p[0] > 0,
            Top => p[0] > 0 && count <= u64::from(logprob::MOST).min(p[0] as u64),
            Mass => (1..=logprob::GROUP as i32).contains(&p[0]) && count <= u64::from(logprob::GROUPS),
            LogSum => count == 1 && (1..=logprob::GROUPS as i32).contains(&p[0]),
            LogProb => p[0] > 0 && (2..=u64::from(logprob::MOST) + 1).contains(&count),
        };
        if !ok {
            return Err("a parameter is outside its range");
        }
        self.check_operands(kind, op, top)
    }

    fn check_operands(&self, kind: SectionKind, op: usize, top: u32) -> Result<(), &'static str> {
        use Opcode::*;
        use OperandKind as K;
        let section = self.section(kind);
        let d = &section.ops[op];
        let wanted: [&[K]; 4] = match d.opcode {
            Embed => [&[K::Token], &[K::Weight], &[], &[]],
            MaxAbs | QuantScale | ScaleQ | ToFixed => [&[K::Op, K::Prev], &[], &[], &[]],
            SumSq | Rms | Quant => [&[K::Op, K::Prev], &[K::Op, K::Prev], &[], &[]],
            Add => [&[K::Op, K::Prev], &[K::Op, K::Prev, K::Table], &[], &[]],
            Gain => [&[K::Op, K::Prev], &[K::Table], &[], &[]],
            NormScale => [&[K::Op], &[K::Op], &[K::Table], &[]],
            Linear => [&[K::Op], &[K::Op], &[K::Weight], &[]],
            Rope => [&[K::Op], &[K::Table], &[K::Table], &[]],
            Scores => [&[K::Op], &[K::Op], &[K::Cache], &[K::Cache]],
            RowMax | RowSum => [&[K::Op], &[], &[], &[]],
            Exp => [&[K::Op], &[K::Op], &[K::Table], &[]],
            Prob => [&[K::Op], &[K::Op], &[], &[]],
            Mix => [&[K::Op], &[K::Cache], &[], &[]],
            SiluMul | GeluMul => [&[K::Op], &[K::Op], &[K::Table], &[]],
            Select => [&[K::Op], &[K::Token], &[], &[]],
            Dequant => [&[K::Op], &[K::Op], &[], &[]],
            SoftCap | Window => [&[K::Op], &[K::Table], &[], &[]],
            Temper => [&[K::Op], &[K::Token], &[], &[]],
            Max | Sum => [&[K::Op], &[], &[], &[]],
            Histogram if d.params[1] == 1 => [&[K::Op], &[K::Op], &[K::Table], &[]],
            Histogram if d.params[3] == 0 => [&[K::Op], &[K::Op], &[], &[]],
            Histogram => [&[K::Op], &[K::Op], &[K::Op], &[]],
            Cut if d.operands[1] == Operand::NONE => [&[K::Op], &[], &[], &[]],
            Cut => [&[K::Op], &[K::Op], &[], &[]],
            Threshold => [&[K::Op], &[K::Op], &[K::Op], &[K::Op]],
            Sample => [&[K::Op], &[K::Token], &[K::Op], &[K::Table]],
            Top => [&[K::Op], &[], &[], &[]],
            Mass | LogSum => [&[K::Op], &[K::Op], &[K::Table], &[]],
            LogProb => [&[K::Op], &[K::Op], &[K::Op], &[K::Op]],
        };
        for (k, kinds) in wanted.iter().enumerate() {
            let o = d.operands[k];
            if kinds.is_empty() {
                if o != Operand::NONE {
                    return Err("an unused operand is not empty");
                }
                continue;
            }
            if !kinds.contains(&o.kind) {
                return Err("an operand has the wrong kind");
            }
            if o.tail && o.kind != K::Op {
                return Err("only an OP operand can be a tail");
            }
            if !o.tail && o.stride != 0 && !(matches!(o.kind, K::Weight | K::Table) && kind == SectionKind::Block) {
                return Err("a stride has no meaning here");
            }
            let reads = |from: &Descriptor| {
                let fits = [0, 15, 16, top].iter().all(|t| Some(from.count(*t)) == d.operand_total(k, *t));
                fits && from.dtype == o.dtype && (!o.tail || (o.stride > 0 && from.div == o.stride as u32))
            };
            let allowed = allowed_types(d.opcode, k);
            if !matches!(o.kind, K::Weight | K::Token) && !allowed.contains(&o.dtype) {
                return Err("an operand has the wrong element type");
            }
            match o.kind {
                K::Op => {
                    let index = o.index as usize;
                    if index >= op {
                        return Err("an operand refers to a later operator");
                    }
                    if !reads(&section.ops[index]) {
                        return Err("an operand does not have the size or type that the opcode reads");
                    }
                }
                K::Prev | K::Cache => {
                    let own = [kind];
                    let sections = if o.kind == K::Cache { &own[..] } else { Self::previous(kind) };
                    if sections.is_empty() {
                        return Err("the embedding has no previous layer");
                    }
                    for s in sections {
                        let s = self.section(*s);
                        let exports = s.exports();
                        let at = match o.kind {
                            K::Prev => exports.iter().rev().nth(o.index as usize),
                            _ => exports.get(o.index as usize),
                        };
                        let Some(&at) = at else { return Err("an operand refers to an export that does not exist") };
                        if o.kind == K::Cache && at >= op {
                            return Err("a cached export is computed after its reader");
                        }
                        if s.ops[at].div != 0 || !reads(&s.ops[at]) {
                            return Err("an operand does not have the size or type that the opcode reads");
                        }
                    }
                }
                K::Token if o.index != matches!(d.opcode, Select | Sample) as u32 => return Err("wrong token offset"),
                _ => {}
            }
        }
        if d.opcode >= Temper || d.opcode == Select {
            // They read the run's sampling parameters and its output, which only head rows have.
            if kind != SectionKind::Head {
                return Err("the operator belongs in the head");
            }
        }
        Ok(())
    }
}

/// Whether rows of K elements can have this format.
fn format_fits(format: i32, k: u64) -> bool {
    RowFormat::from_code(format).is_some_and(|f| f.fits(k as usize))
}

fn allowed_types(opcode: Opcode, operand: usize) -> &'static [Dtype] {
    use Opcode::*;
    match (opcode, operand) {
        (Linear, 0) => &[Dtype::I8, Dtype::I16],
        (Scores, 0 | 2) => &[Dtype::I8],
        (Mix, 1) | (Gain, 1) | (NormScale, 2) | (Rope, 1 | 2) => &[Dtype::I16],
        (Dequant, 0) => &[Dtype::I8, Dtype::I16],
        (Histogram, 2) => &[Dtype::U16, Dtype::I32],
        (Exp | SiluMul | GeluMul | Mass | LogSum, 2) | (SoftCap, 1) | (RowSum | Prob | Mix, 0) => &[Dtype::U16],
        _ => &[Dtype::I32],
    }
}
