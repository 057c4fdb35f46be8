//! A model on the device: what is uploaded, and in which runs its operators are computed.

use std::collections::BTreeMap;
use std::sync::Arc;

use sworn_engine::LogProber;
use sworn_engine::sampling::Tail;
use sworn_isa::{Opcode, OperandKind, Section, SectionKind};
use sworn_model::Model;

use crate::GpuError;
use crate::gpu::{Buffer, Gpu, Products};
use crate::matrix::{Matrix, PackedRows};
use crate::plan::{Run, Step, packed, plan};
use crate::pool::Pool;
use crate::scratch::Scratch;

type Result<T> = std::result::Result<T, GpuError>;

/// A model's weights and tables on a device.
pub(crate) struct Loaded {
    pub(crate) gpu: Gpu,
    pub(crate) model: Arc<Model>,
    /// Matrices that an operator of its own reads, by number.
    matrices: Vec<Option<Matrix>>,
    /// Matrices under each other that multiply the same vector, by the number of the first.
    stacks: BTreeMap<usize, Matrix>,
    tables: Vec<Option<Buffer>>,
    /// What runs: of the head only what the logits need.
    pub(crate) sections: [Section; 3],
    /// The sections' runs.
    pub(crate) plans: [Vec<Step>; 3],
    /// Per section and operator: bytes of an element where they are packed, 0 where an element is a word.
    pub(crate) packed: [Vec<u32>; 3],
    /// Per section and export: whether a CACHE operand reads it, so that all positions are kept.
    pub(crate) kept: [Vec<bool>; 3],
    /// How tokens are sampled, where the model can.
    pub(crate) tail: Option<Tail>,
    /// Log-probabilities, where the model commits to them.
    pub(crate) log_probs: Option<LogProber>,
    /// What all sequences keep.
    pub(crate) pool: Pool,
    /// Working memory by shape, last used last.
    pub(crate) scratch: Vec<Scratch>,
}

impl Loaded {
    /// Uploads what the model's operators refer to.
    pub(crate) fn new(gpu: Gpu, model: Arc<Model>) -> Result<Self> {
        let (head, tail) = head(model.program().section(SectionKind::Head))?;
        let [embedding, block, _] = model.program().sections.clone();
        let sections = [embedding, block, head];
        let plans = [0, 1, 2].map(|k| plan(&sections[k], gpu.bindings()));
        let packed = [0, 1, 2].map(|k| match gpu.products() {
            Products::Words => vec![0; sections[k].ops.len()],
            _ => packed(&sections[k], &plans[k]),
        });
        let kept: [Vec<bool>; 3] = [0, 1, 2].map(|k| {
            let section: &Section = &sections[k];
            let reads = |e: usize| {
                let mut operands = section.ops.iter().flat_map(|d| d.operands);
                operands.any(|o| o.kind == OperandKind::Cache && o.index as usize == e)
            };
            (0..section.exports().len()).map(reads).collect()
        });
        let elements = |layer: u16| {
            let kind = model.section_kind(layer).unwrap_or(SectionKind::Block) as usize;
            let exports = sections[kind].exports();
            exports
                .iter()
                .zip(&kept[kind])
                .map(|(op, k)| if *k { sections[kind].ops[*op].count(0) as usize } else { 0 })
                .collect()
        };
        let pool = Pool::new((0..=model.layers()).map(elements).collect());
        let (matrices, stacks, tables, scratch) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
        let table = |k: u32| model.table(k as usize).values.iter().map(|v| *v as u16).collect();
        let whole = model.program().section(SectionKind::Head);
        let log_probs = LogProber::new(&whole.ops, table);
        if log_probs.is_none() && whole.exports().len() > 1 {
            return Err(GpuError::Unsupported(
                "its head has log-probabilities in another arrangement than importers write".into(),
            ));
        }
        let mut loaded = Loaded {
            gpu,
            model,
            matrices,
            stacks,
            tables,
            sections,
            plans,
            packed,
            kept,
            tail,
            log_probs,
            pool,
            scratch,
        };
        for layer in 0..=loaded.model.layers() + 1 {
            loaded.upload(layer)?;
        }
        Ok(loaded)
    }

    /// Uploads what a layer reads and no layer before it did.
    fn upload(&mut self, layer: u16) -> Result<()> {
        let kind = self.kind(layer)? as usize;
        for step in &self.plans[kind] {
            let operands = |at: usize| self.sections[kind].ops[at].operands.map(|o| (o, Model::resolve(&o, layer)));
            let weights =
                step.ops.clone().flat_map(operands).filter(|(o, _)| o.kind == OperandKind::Weight).map(|(_, i)| i);
            let weights: Vec<usize> = weights.collect();
            let rows = |i: usize| {
                let m = self.model.weight(i);
                PackedRows { rows: m.rows, cols: m.cols, scales: m.scales, format: m.format, bytes: m.bytes }
            };
            match step.run {
                Run::Project => {
                    let stack: Vec<_> = weights.iter().map(|i| rows(*i)).collect();
                    self.stacks.insert(weights[0], Matrix::upload(&self.gpu, &stack, usize::MAX)?);
                    weights.iter().for_each(|i| self.model.release_weight(*i));
                }
                _ => {
                    for i in weights {
                        let matrix = grown(&mut self.matrices, i);
                        if matrix.is_none() {
                            *matrix = Some(Matrix::upload(&self.gpu, &[rows(i)], usize::MAX)?);
                            self.model.release_weight(i);
                        }
                    }
                }
            }
            for (_, i) in step.ops.clone().flat_map(operands).filter(|(o, _)| o.kind == OperandKind::Table) {
                let table = grown(&mut self.tables, i);
                if table.is_none() {
                    *table = Some(self.gpu.upload(self.model.table(i).values.clone())?);
                }
            }
        }
        Ok(())
    }

    /// The section of a layer.
    pub(crate) fn kind(&self, layer: u16) -> Result<SectionKind> {
        self.model.section_kind(layer).ok_or_else(|| GpuError::Device(format!("layer {layer} does not exist")))
    }

    pub(crate) fn matrix(&self, i: usize) -> Option<&Matrix> {
        self.matrices.get(i).and_then(Option::as_ref)
    }

    pub(crate) fn stack(&self, first: usize) -> Option<&Matrix> {
        self.stacks.get(&first)
    }

    pub(crate) fn table(&self, i: usize) -> Option<&Buffer> {
        self.tables.get(i).and_then(Option::as_ref)
    }

    /// Elements of the head's logits.
    pub(crate) fn vocabulary(&self) -> usize {
        self.sections[SectionKind::Head as usize].ops.last().map_or(0, |d| d.count(0) as usize)
    }
}

/// The operators up to the logits, and how a token is sampled from them.
fn head(section: &Section) -> Result<(Section, Option<Tail>)> {
    let selects = section.ops.iter().find(|d| d.export && d.opcode == Opcode::Select).map(|d| d.operands[0]);
    let tail = Tail::find(&section.ops);
    let logits = match (&tail, selects) {
        (Some(tail), _) => Some(tail.logits),
        (None, Some(o)) if o.kind == OperandKind::Op && !o.tail => Some(o.index as usize),
        _ => None,
    };
    let ops = logits.and_then(|k| section.ops.get(..=k)).ok_or_else(|| {
        GpuError::Unsupported("its head neither selects nor samples in the arrangement that importers write".into())
    })?;
    Ok((Section { ops: ops.to_vec() }, tail))
}

fn grown<T>(v: &mut Vec<Option<T>>, i: usize) -> &mut Option<T> {
    if v.len() <= i {
        v.resize_with(i + 1, || None);
    }
    &mut v[i]
}
