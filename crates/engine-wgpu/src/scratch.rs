//! Working memory of a batch of positions.

use sworn_isa::{Descriptor, SectionKind};

use crate::GpuError;
use crate::batch::HEAD_ROWS;
use crate::gpu::{Buffer, Gpu, Place};
use crate::loaded::Loaded;
use crate::plan::Run;
use crate::pool::STEP;
use crate::staging::Staging;

type Result<T> = std::result::Result<T, GpuError>;

/// More rows than these are rounded up to a multiple of them.
const FEW: u32 = 8;
/// Working memories that are kept: for a prompt's batches, its last one, and decoding.
const KEPT: usize = 3;

/// What decides the working memory's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows there is room for.
    pub(crate) rows: u32,
    /// Positions of a sequence there is room for.
    pub(crate) positions: u32,
    /// Whether exports of all layers are read afterwards.
    pub(crate) exports: bool,
}

/// Outputs that only the batch needs. Blocks run one after the other, so they share theirs.
pub(crate) struct Scratch {
    pub(crate) shape: Shape,
    /// Per section and operator that is not exported.
    inner: [Vec<Option<(Buffer, Place)>>; 3],
    /// Per slot and export that is not kept: blocks alternate between two slots, because a block reads the exports of the
    /// layer before.
    exports: [Vec<Option<Buffer>>; 3],
    /// Where exports go as they are committed.
    pub(crate) staging: Option<Staging>,
}

/// Words from one row to the next where the last row is at most position `positions` − 1. Whole vectors of four, so that rows
/// can be read as such.
pub(crate) fn stride(d: &Descriptor, positions: u32) -> u32 {
    (d.count(positions - 1) as u32).next_multiple_of(4)
}

/// Words from one row to the next of packed activations.
fn packed_stride(d: &Descriptor, planes: u32) -> u32 {
    (planes * (d.count(0) as u32).div_ceil(4)).next_multiple_of(4)
}

impl Scratch {
    fn new(loaded: &Loaded, shape: Shape) -> Result<Self> {
        let Shape { rows, positions, exports } = shape;
        let gpu = &loaded.gpu;
        let buffer = |d: &Descriptor, rows: u32| gpu.empty(rows as usize * stride(d, positions) as usize);
        let mut inner = [Vec::new(), Vec::new(), Vec::new()];
        for (kind, outputs) in inner.iter_mut().enumerate() {
            let rows = if kind == SectionKind::Head as usize { rows.min(HEAD_ROWS) } else { rows };
            let ops = &loaded.sections[kind].ops;
            for step in &loaded.plans[kind] {
                if step.run == Run::Project {
                    side_by_side(gpu, &ops[step.ops.clone()], rows, outputs)?;
                    continue;
                }
                for op in step.ops.clone() {
                    let (d, planes) = (&ops[op], loaded.packed[kind][op]);
                    outputs.push(match (d.export, planes) {
                        (true, _) => None,
                        (_, 0) => Some((buffer(d, rows)?, Place::batch(stride(d, positions)))),
                        _ => {
                            let words = packed_stride(d, planes);
                            Some((gpu.empty(rows as usize * words as usize)?, Place::batch(words)))
                        }
                    });
                }
            }
        }
        let mut slots = [Vec::new(), Vec::new(), Vec::new()];
        for (slot, outputs) in slots.iter_mut().enumerate() {
            let kind = usize::from(slot > 0);
            let section = &loaded.sections[kind];
            for (op, kept) in section.exports().into_iter().zip(&loaded.kept[kind]) {
                outputs.push(if *kept { None } else { Some(buffer(&section.ops[op], rows)?) });
            }
        }
        let staging = if exports { Some(Staging::new(loaded, rows)?) } else { None };
        Ok(Scratch { shape, inner, exports: slots, staging })
    }

    /// Where operator `op` of a section, which is not exported, writes.
    pub(crate) fn inner(&self, kind: SectionKind, op: usize) -> Option<(&Buffer, Place)> {
        self.inner[kind as usize].get(op).and_then(Option::as_ref).map(|(buffer, place)| (buffer, *place))
    }

    /// Where a layer keeps export `e`, which only the batch needs.
    pub(crate) fn export(&self, layer: u16, e: usize) -> Option<&Buffer> {
        let slot = if layer == 0 { 0 } else { 1 + (usize::from(layer) - 1) % 2 };
        self.exports[slot].get(e).and_then(Option::as_ref)
    }

    /// Every buffer that launches write.
    pub(crate) fn written(&self) -> impl Iterator<Item = &Buffer> {
        let inner = self.inner.iter().flatten().flatten().map(|(buffer, _)| buffer);
        inner.chain(self.exports.iter().flatten().flatten()).chain(self.staging.iter().flat_map(Staging::written))
    }
}

/// The outputs of several products of one vector: a row of the batch holds them one after the other.
fn side_by_side(gpu: &Gpu, ops: &[Descriptor], rows: u32, out: &mut Vec<Option<(Buffer, Place)>>) -> Result<()> {
    let total: u32 = ops.iter().map(|d| d.count(0) as u32).sum();
    let stride = total.next_multiple_of(4);
    let buffer = gpu.empty(rows as usize * stride as usize)?;
    let mut offset = 0;
    for d in ops {
        out.push(Some((buffer.clone(), Place { offset, ..Place::batch(stride) })));
        offset += d.count(0) as u32;
    }
    Ok(())
}

impl Loaded {
    /// Makes working memory for a batch of this shape the last one of the list.
    pub(crate) fn take_scratch(&mut self, shape: Shape) -> Result<()> {
        // How many rows a batch has changes while sequences come and go.
        let rows = if shape.rows > FEW { shape.rows.next_multiple_of(FEW) } else { shape.rows };
        let shape = Shape { rows, positions: shape.positions.next_multiple_of(STEP), ..shape };
        if let Some(i) = self.scratch.iter().position(|s| s.shape == shape) {
            let found = self.scratch.remove(i);
            self.scratch.push(found);
            return Ok(());
        }
        if self.scratch.len() >= KEPT {
            self.scratch.remove(0);
        }
        let new = Scratch::new(self, shape)?;
        self.scratch.push(new);
        Ok(())
    }
}
