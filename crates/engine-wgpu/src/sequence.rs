//! One sequence, and the execution of a layer for a batch of rows.

use std::collections::HashMap;
use std::ops::Range;

use sworn_commit::RunParams;
use sworn_engine::Simd;
use sworn_engine::sampling::Chooser;
use sworn_isa::sampling::PENALTY_WINDOW;
use sworn_isa::{Descriptor, Operand, OperandKind, Sampling, Section, SectionKind};
use sworn_model::Model;

use crate::GpuError;
use crate::gpu::{Buffer, Call, Place, Source};
use crate::kernels::Numbering;
use crate::loaded::Loaded;
use crate::plan::Run;
use crate::scratch::Scratch;

type Result<T> = std::result::Result<T, GpuError>;

/// Every open sequence, by its number.
pub(crate) type Sequences = HashMap<u64, Sequence>;

/// One sequence's state.
pub(crate) struct Sequence {
    /// The tokens so far.
    pub(crate) tokens: Vec<u32>,
    pub(crate) capacity: u32,
    /// How tokens are sampled.
    pub(crate) run: RunParams,
    /// Its slots in the caches.
    pub(crate) slots: Range<u32>,
}

impl Sequence {
    /// An empty sequence.
    pub(crate) fn new(capacity: u32) -> Self {
        Sequence { tokens: Vec::new(), capacity, run: RunParams::default(), slots: 0..0 }
    }

    pub(crate) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Samples like this from now on.
    pub(crate) fn set_run(&mut self, run: RunParams) {
        self.run = run;
    }

    /// Forgets the positions from `len` on.
    pub(crate) fn truncate(&mut self, len: u32) {
        self.tokens.truncate(len as usize);
    }

    /// Whether more than the largest logit decides.
    pub(crate) fn samples(&self) -> bool {
        self.run.sampling.inverse_temperature != 0 || self.run.sampling.penalty != 0
    }
}

/// A layer and the rows it is executed for.
pub(crate) struct At<'a> {
    pub(crate) layer: u16,
    /// Rows.
    pub(crate) rows: u32,
    /// The last of their positions.
    pub(crate) last: u32,
    /// What the rows are.
    pub(crate) ctx: &'a Buffer,
}

impl Loaded {
    /// Makes room for a sequence's positions up to `positions`.
    pub(crate) fn reserve(&mut self, sequence: &mut Sequence, positions: u32) -> Result<()> {
        let (kept, capacity) = (sequence.len(), sequence.capacity);
        self.pool.reserve(&self.gpu, &mut sequence.slots, kept, positions, capacity)
    }

    /// Gives back what a sequence holds on the device.
    pub(crate) fn close(&mut self, sequence: Option<Sequence>) {
        if let Some(mut sequence) = sequence {
            self.pool.release(&mut sequence.slots);
            self.pool.trim();
        }
    }

    /// Samples on the host what the operators behind the logits would.
    pub(crate) fn choose(&self, sequence: &Sequence, logits: &[(u32, Vec<i32>)]) -> Result<Vec<u32>> {
        let (false, Some(tail)) = (logits.is_empty(), &self.tail) else { return Ok(Vec::new()) };
        let table = |o: &Operand| &self.model.operand_table(o, self.model.layers() + 1).values;
        let exp: Vec<u16> = table(&tail.exp).iter().map(|v| *v as u16).collect();
        let chooser = Chooser::new(&exp, table(&tail.noise), tail.shift, Simd::detect())
            .ok_or_else(|| GpuError::Unsupported("a table that sampling reads has another length".into()))?;
        let mut scratch = Vec::new();
        let choose = |(position, logits): &(u32, Vec<i32>)| {
            let known = &sequence.tokens[..sequence.tokens.len().min(*position as usize + 1)];
            let recent = &known[known.len().saturating_sub(PENALTY_WINDOW as usize)..];
            chooser.choose(logits, &sequence.run, *position, recent, &mut scratch)
        };
        Ok(logits.iter().map(choose).collect())
    }

    /// Whether the model can be sampled like this.
    pub(crate) fn samples(&self, sampling: &Sampling) -> bool {
        self.tail.is_some() || *sampling == Sampling::GREEDY
    }

    /// Queues a layer's operators.
    pub(crate) fn layer(&self, at: &At<'_>, scratch: &Scratch) -> Result<()> {
        let kind = self.kind(at.layer)?;
        let section = &self.sections[kind as usize];
        let memory = Memory { loaded: self, at, scratch, section, kind };
        let mut calls = Vec::new();
        for step in &self.plans[kind as usize] {
            // Of several products of one vector, the first stands for all.
            let ops = if step.run == Run::Project { step.ops.start..step.ops.start + 1 } else { step.ops.clone() };
            calls.clear();
            for op in ops {
                let d = &section.ops[op];
                let mut operands = [Source::None; 4];
                for (source, o) in operands.iter_mut().zip(&d.operands) {
                    *source = memory.source(d, o, step.run == Run::Project)?;
                }
                let ((out, place), planes) = (memory.output(op)?, self.packed[kind as usize][op]);
                let (ctx, batch, last) = (at.ctx, at.rows, at.last);
                calls.push(Call { descriptor: d, ctx, batch, last, operands, out, place, planes });
            }
            self.gpu.launch_run(step.run, &calls)?;
        }
        Ok(())
    }

    /// Where layer `layer`, not the head, keeps export `e` of a batch.
    pub(crate) fn export<'a>(&'a self, layer: u16, e: usize, scratch: &'a Scratch) -> Result<(&'a Buffer, Place)> {
        if let Some((buffer, words)) = self.pool.buffer(layer, e) {
            return Ok((buffer, Place { numbering: Numbering::Slot, ..Place::batch(words) }));
        }
        let section = &self.sections[self.kind(layer)? as usize];
        let missing = || GpuError::Device(format!("layer {layer} has no export {e}"));
        let d = section.exports().get(e).map(|op| &section.ops[*op]).ok_or_else(missing)?;
        let buffer = scratch.export(layer, e).ok_or_else(missing)?;
        Ok((buffer, Place::batch(crate::scratch::stride(d, scratch.shape.positions))))
    }
}

/// Resolves the operands of one layer's operators.
struct Memory<'a> {
    loaded: &'a Loaded,
    at: &'a At<'a>,
    scratch: &'a Scratch,
    section: &'a Section,
    kind: SectionKind,
}

impl<'a> Memory<'a> {
    /// Where operator `op` writes.
    fn output(&self, op: usize) -> Result<(&'a Buffer, Place)> {
        if !self.section.ops[op].export {
            let missing = || GpuError::Device(format!("operator {op} has no memory"));
            return self.scratch.inner(self.kind, op).ok_or_else(missing);
        }
        let e = self.section.ops[..op].iter().filter(|d| d.export).count();
        self.loaded.export(self.at.layer, e, self.scratch)
    }

    /// What operand `o` is; of a matrix, those under each other where `stacked`.
    fn source(&self, d: &Descriptor, o: &Operand, stacked: bool) -> Result<Source<'a>> {
        let none = |what: &str| GpuError::Unsupported(format!("{}: its {what} {} does not exist", d.opcode, o.index));
        Ok(match o.kind {
            OperandKind::None => Source::None,
            OperandKind::Token => Source::Token,
            OperandKind::Op => {
                let from = self.section.ops.get(o.index as usize).ok_or_else(|| none("operator"))?;
                let (buffer, place) = self.output(o.index as usize)?;
                // The last slab has as many elements as one step of the reduction.
                let tail = o.tail.then(|| (u32::from(o.stride), (from.outer * from.inner)));
                match self.loaded.packed[self.kind as usize][o.index as usize] {
                    0 => Source::Rows(buffer, Place { tail, ..place }),
                    planes => Source::Packed(buffer, place, planes),
                }
            }
            OperandKind::Prev => {
                let layer = self.at.layer.checked_sub(1).ok_or_else(|| none("layer before"))?;
                let exports = self.loaded.kept[self.loaded.kind(layer)? as usize].len();
                let e = exports.checked_sub(1 + o.index as usize).ok_or_else(|| none("export"))?;
                let (buffer, mut place) = self.loaded.export(layer, e, self.scratch)?;
                if place.numbering == Numbering::Batch {
                    place.numbering = Numbering::Source;
                }
                Source::Rows(buffer, place)
            }
            OperandKind::Cache => {
                let (buffer, place) = self.loaded.export(self.at.layer, o.index as usize, self.scratch)?;
                Source::Cache(buffer, place.stride)
            }
            OperandKind::Weight => {
                let i = Model::resolve(o, self.at.layer);
                let found = if stacked { self.loaded.stack(i) } else { self.loaded.matrix(i) };
                Source::Matrix(found.ok_or_else(|| none("matrix"))?)
            }
            OperandKind::Table => {
                let t = self.loaded.table(Model::resolve(o, self.at.layer));
                Source::Table(t.ok_or_else(|| none("table"))?)
            }
        })
    }
}
