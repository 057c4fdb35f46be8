//! A model on the device, and the execution of a batch of positions of one sequence.

use std::sync::Arc;

use cubecl::server::Handle;
use sworn_isa::{Descriptor, Dtype, Operand, OperandKind, Section, SectionKind};
use sworn_model::Model;

use crate::GpuError;
use crate::fused::Run;
use crate::gpu::{Buffer, Call, Gpu, Place, Source};
use crate::matrix::{Matrix, PackedRows};

/// Positions that run together.
const ROWS: u32 = 64;
/// Head rows that run together; each holds a vector as long as the vocabulary.
const HEAD_ROWS: u32 = 16;
/// Buffers that grow with the sequence do so in steps of this many positions.
const STEP: u32 = 256;

type Result<T> = std::result::Result<T, GpuError>;

/// A model's weights and tables on a device.
pub(crate) struct Loaded {
    gpu: Gpu,
    model: Arc<Model>,
    matrices: Vec<Option<Matrix>>,
    tables: Vec<Option<Buffer>>,
    /// Per section and export: whether a CACHE operand reads it, so that all positions are kept.
    kept: [Vec<bool>; 3],
    /// Working memory by shape, last used last.
    scratch: Vec<Scratch>,
}

/// One sequence's state on the device.
pub(crate) struct Sequence {
    pub(crate) len: u32,
    capacity: u32,
    /// Positions that `caches` have room for.
    room: u32,
    /// Per layer 0…L and export.
    caches: Vec<Vec<Option<Buffer>>>,
}

/// What a batch is to yield.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// The first row that the head runs for.
    pub(crate) head_from: u32,
    pub(crate) exports: bool,
    pub(crate) logits: bool,
}

/// What a batch yielded.
#[derive(Default)]
pub(crate) struct Batch {
    /// Layer, position and the exported tensors as committed.
    pub(crate) records: Vec<(u16, u32, Vec<Vec<u8>>)>,
    /// Position and logits.
    pub(crate) logits: Vec<(u32, Vec<i32>)>,
    /// The selected token of each head row.
    pub(crate) tokens: Vec<u32>,
}

/// Outputs that only the batch needs. Blocks run one after the other, so they share theirs.
struct Scratch {
    rows: u32,
    positions: u32,
    every_layer: bool,
    /// Per section and operator that is not exported.
    inner: [Vec<Option<Buffer>>; 3],
    /// Per slot and export that is not kept.
    exports: Vec<Vec<Option<Buffer>>>,
}

impl Scratch {
    /// The slot that holds a layer's exports: one each where all are read afterwards, otherwise blocks alternate between
    /// two, because a block reads the exports of the layer before.
    fn slot(every_layer: bool, layer: u16) -> usize {
        match layer {
            0 => 0,
            l if every_layer => l as usize,
            l => 1 + (l as usize - 1) % 2,
        }
    }
}

/// Words from one row to the next where the last row is at most position `positions` − 1.
fn stride(d: &Descriptor, positions: u32) -> u32 {
    d.count(positions - 1) as u32
}

impl Loaded {
    /// Uploads what the model's operators refer to.
    pub(crate) fn new(gpu: Gpu, model: Arc<Model>) -> Result<Self> {
        let mut matrices: Vec<Option<Matrix>> = Vec::new();
        let mut tables: Vec<Option<Buffer>> = Vec::new();
        for layer in 0..=model.layers() + 1 {
            let Some(kind) = model.section_kind(layer) else { continue };
            for o in model.program().section(kind).ops.iter().flat_map(|d| d.operands) {
                let i = Model::resolve(&o, layer);
                match o.kind {
                    OperandKind::Weight => {
                        grow(&mut matrices, i);
                        if matrices[i].is_none() {
                            let m = model.weight(i);
                            let packed = PackedRows { rows: m.rows, cols: m.cols, scales: m.scales, bytes: m.bytes };
                            matrices[i] = Some(Matrix::upload(&gpu, packed, usize::MAX)?);
                        }
                    }
                    OperandKind::Table => {
                        grow(&mut tables, i);
                        if tables[i].is_none() {
                            tables[i] = Some(gpu.upload(model.table(i).values.clone())?);
                        }
                    }
                    _ => {}
                }
            }
        }
        let kept = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head].map(|kind| {
            let section = model.program().section(kind);
            let reads = |e: usize| {
                let mut operands = section.ops.iter().flat_map(|d| d.operands);
                operands.any(|o| o.kind == OperandKind::Cache && o.index as usize == e)
            };
            (0..section.exports().len()).map(reads).collect()
        });
        Ok(Loaded { gpu, model, matrices, tables, kept, scratch: Vec::new() })
    }

    /// An empty sequence.
    pub(crate) fn sequence(&self, capacity: u32) -> Sequence {
        Sequence { len: 0, capacity, room: 0, caches: Vec::new() }
    }

    /// How many positions from `len` on may run together, so that every tensor fits a binding.
    pub(crate) fn rows(&self, len: u32, capacity: u32) -> Result<u32> {
        let positions = (len + ROWS).min(capacity);
        let sections = &self.model.program().sections;
        let ops = || sections[..2].iter().flat_map(|s| &s.ops);
        let widest = ops().map(|d| d.count(positions.next_multiple_of(STEP) - 1)).max().unwrap_or(1);
        let rows = self.gpu.max_words() as u64 / widest.max(1);
        if rows == 0 {
            return Err(GpuError::Unsupported(format!(
                "one position's largest tensor has {widest} elements, more than the {} that a binding of {} holds",
                self.gpu.max_words(),
                self.gpu.adapter().name
            )));
        }
        Ok(rows.min(u64::from(ROWS)) as u32)
    }

    /// Executes the next positions.
    pub(crate) fn run(&mut self, sequence: &mut Sequence, tokens: &[u32], wanted: Wanted) -> Result<Batch> {
        let (rows, first) = (tokens.len() as u32, sequence.len);
        let last = first + rows - 1;
        sequence.reserve(self, last + 1)?;
        self.take_scratch(rows, last + 1, wanted.exports)?;
        let Some(scratch) = self.scratch.last() else { return Err(GpuError::Device("no working memory".into())) };

        let ctx = self.context(first, tokens)?;
        let layers = self.model.layers();
        for layer in 0..=layers {
            let at = At { layer, first, row: 0, rows, ctx: &ctx };
            self.layer(&at, sequence, scratch, None)?;
        }

        let mut batch = Batch::default();
        let selected = self.gpu.empty(rows as usize)?;
        let mut row = wanted.head_from;
        while row < rows {
            let n = HEAD_ROWS.min(rows - row);
            let ctx = self.context(first + row, &tokens[row as usize..(row + n) as usize])?;
            let at = At { layer: layers + 1, first: first + row, row, rows: n, ctx: &ctx };
            self.layer(&at, sequence, scratch, Some(&selected))?;
            if wanted.logits {
                self.read_logits(&at, scratch, &mut batch)?;
            }
            row += n;
        }
        self.read_back(sequence, scratch, &selected, first, rows, wanted, &mut batch)?;
        sequence.len += rows;
        Ok(batch)
    }

    fn context(&self, first: u32, tokens: &[u32]) -> Result<Buffer> {
        self.gpu.upload(std::iter::once(first).chain(tokens.iter().copied()).map(|t| t as i32).collect())
    }

    /// Makes the working memory of this shape the last one of the list.
    fn take_scratch(&mut self, rows: u32, positions: u32, every_layer: bool) -> Result<()> {
        let positions = positions.next_multiple_of(STEP);
        let fits = |s: &Scratch| (s.rows, s.positions, s.every_layer) == (rows, positions, every_layer);
        if let Some(i) = self.scratch.iter().position(fits) {
            let found = self.scratch.remove(i);
            self.scratch.push(found);
            return Ok(());
        }
        // Two: a prompt's batches, and decoding.
        if self.scratch.len() > 1 {
            self.scratch.remove(0);
        }
        let program = self.model.program();
        let buffer = |d: &Descriptor, rows: u32| self.gpu.empty((rows * stride(d, positions)) as usize).map(Some);
        let mut inner = [Vec::new(), Vec::new(), Vec::new()];
        for (kind, buffers) in inner.iter_mut().enumerate() {
            let rows = if kind == SectionKind::Head as usize { rows.min(HEAD_ROWS) } else { rows };
            for d in &program.sections[kind].ops {
                buffers.push(if d.export { None } else { buffer(d, rows)? });
            }
        }
        let slots = if every_layer { usize::from(self.model.layers()) + 1 } else { 3 };
        let mut exports = Vec::new();
        for slot in 0..slots {
            let kind = if slot == 0 { SectionKind::Embedding } else { SectionKind::Block };
            let section = program.section(kind);
            let own = section.exports().into_iter().zip(&self.kept[kind as usize]);
            let own = own.map(|(op, kept)| if *kept { Ok(None) } else { buffer(&section.ops[op], rows) });
            exports.push(own.collect::<Result<Vec<_>>>()?);
        }
        self.scratch.push(Scratch { rows, positions, every_layer, inner, exports });
        Ok(())
    }

    /// Queues a layer's operators.
    fn layer(&self, at: &At<'_>, sequence: &Sequence, scratch: &Scratch, selected: Option<&Buffer>) -> Result<()> {
        let kind = self.kind(at.layer)?;
        let section = self.model.program().section(kind);
        let memory = Memory { loaded: self, at, sequence, scratch, selected, section, kind };
        let mut op = 0;
        while op < section.ops.len() {
            let run = Run::find(section, op);
            let mut calls = Vec::with_capacity(run.len());
            for (op, d) in section.ops.iter().enumerate().skip(op).take(run.len()) {
                let mut operands = [Source::None; 4];
                for (source, o) in operands.iter_mut().zip(&d.operands) {
                    *source = memory.source(d, o)?;
                }
                let (out, place) = memory.output(op)?;
                let last = at.first + at.rows - 1;
                calls.push(Call { descriptor: d, ctx: at.ctx, batch: at.rows, last, operands, out, place });
            }
            self.gpu.launch_run(run, &calls)?;
            op += run.len();
        }
        Ok(())
    }

    fn kind(&self, layer: u16) -> Result<SectionKind> {
        self.model.section_kind(layer).ok_or_else(|| GpuError::Device(format!("layer {layer} does not exist")))
    }

    /// The logits that `SELECT` read.
    fn read_logits(&self, at: &At<'_>, scratch: &Scratch, batch: &mut Batch) -> Result<()> {
        let section = self.model.program().section(SectionKind::Head);
        let Some(select) = section.ops.iter().find(|d| d.export) else { return Ok(()) };
        let o = select.operands[0];
        let buffers = &scratch.inner[SectionKind::Head as usize];
        let (OperandKind::Op, Some(Some(buffer))) = (o.kind, buffers.get(o.index as usize)) else { return Ok(()) };
        let n = select.params[0] as usize;
        let read = self.gpu.read(vec![buffer.slice(0, at.rows as usize * n)])?;
        for (position, row) in (at.first..).zip(read[0].chunks_exact(n)) {
            batch.logits.push((position, row.to_vec()));
        }
        Ok(())
    }

    /// Reads selected tokens and exports at once, and makes sure that nothing they came from failed.
    #[allow(clippy::too_many_arguments, reason = "one call site")]
    fn read_back(
        &self,
        sequence: &Sequence,
        scratch: &Scratch,
        selected: &Buffer,
        first: u32,
        rows: u32,
        wanted: Wanted,
        batch: &mut Batch,
    ) -> Result<()> {
        let head = wanted.head_from.min(rows);
        let mut handles: Vec<Handle> = Vec::new();
        // (layer, descriptor, words per row)
        let mut what: Vec<(u16, &Descriptor, usize)> = Vec::new();
        if wanted.exports {
            for layer in 0..=self.model.layers() {
                let kind = self.kind(layer)?;
                let section = self.model.program().section(kind);
                for (e, op) in section.exports().into_iter().enumerate() {
                    let d = &section.ops[op];
                    let (buffer, place) = self.export(layer, e, sequence, scratch)?;
                    let stride = place.stride as usize;
                    let from = if place.absolute { first as usize * stride } else { 0 };
                    handles.push(buffer.slice(from, rows as usize * stride));
                    what.push((layer, d, stride));
                }
            }
        }
        if head < rows {
            handles.push(selected.slice(head as usize, (rows - head) as usize));
        } else if handles.is_empty() {
            // Nothing is read: wait for the device all the same, so that a failure is known now.
            let (buffer, _) = self.export(self.model.layers(), 0, sequence, scratch)?;
            handles.push(buffer.slice(0, 1));
        }
        let read = self.gpu.read(handles)?;
        self.gpu.check(scratch.inner.iter().chain(&scratch.exports).chain(&sequence.caches).flatten().flatten())?;

        let mut tensors = what.iter().zip(&read).peekable();
        while let Some(((layer, _, _), _)) = tensors.peek() {
            let layer = *layer;
            let mut records: Vec<_> = (first..first + rows).map(|t| (layer, t, Vec::new())).collect();
            while let Some(((_, d, stride), words)) = tensors.next_if(|((l, _, _), _)| *l == layer) {
                for ((_, t, own), row) in records.iter_mut().zip(words.chunks_exact(*stride)) {
                    own.push(encode(d.dtype, &row[..d.count(*t) as usize]));
                }
            }
            batch.records.extend(records);
        }
        if head < rows {
            let layer = self.model.layers() + 1;
            for (position, token) in (first + head..).zip(read.last().into_iter().flatten()) {
                batch.tokens.push(*token as u32);
                if wanted.exports {
                    batch.records.push((layer, position, vec![encode(Dtype::I32, &[*token])]));
                }
            }
        }
        Ok(())
    }

    /// Where layer `layer`, not the head, keeps export `e` of a batch.
    fn export<'a>(
        &self,
        layer: u16,
        e: usize,
        sequence: &'a Sequence,
        scratch: &'a Scratch,
    ) -> Result<(&'a Buffer, Place)> {
        let kind = self.kind(layer)?;
        let section = self.model.program().section(kind);
        let missing = || GpuError::Device(format!("layer {layer} has no export {e}"));
        let d = section.exports().get(e).map(|op| &section.ops[*op]).ok_or_else(missing)?;
        if let Some(Some(Some(buffer))) =
            sequence.caches.get(layer as usize).map(|c| c.get(e)).map(|c| c.map(|b| b.as_ref()))
        {
            return Ok((buffer, Place { absolute: true, ..Place::batch(d.count(0) as u32) }));
        }
        let slot = Scratch::slot(scratch.every_layer, layer);
        match scratch.exports.get(slot).and_then(|s| s.get(e)) {
            Some(Some(buffer)) => Ok((buffer, Place::batch(stride(d, scratch.positions)))),
            _ => Err(missing()),
        }
    }
}

impl Sequence {
    /// Makes room for `positions` in the kept exports, with what they hold.
    fn reserve(&mut self, loaded: &Loaded, positions: u32) -> Result<()> {
        if positions <= self.room && !self.caches.is_empty() {
            return Ok(());
        }
        let room = positions.max(2 * self.room).next_multiple_of(STEP).min(self.capacity.max(positions));
        let mut caches = Vec::new();
        for layer in 0..=loaded.model.layers() {
            let kind = loaded.kind(layer)?;
            let section = loaded.model.program().section(kind);
            let mut own = Vec::new();
            for (e, op) in section.exports().into_iter().enumerate() {
                if !loaded.kept[kind as usize][e] {
                    own.push(None);
                    continue;
                }
                let n = section.ops[op].count(0) as usize;
                let buffer = loaded.gpu.empty(room as usize * n)?;
                if let Some(Some(Some(old))) = self.caches.get(layer as usize).map(|c| c.get(e).map(|b| b.as_ref())) {
                    loaded.gpu.copy(old, &buffer, self.len as usize * n);
                }
                own.push(Some(buffer));
            }
            caches.push(own);
        }
        (self.caches, self.room) = (caches, room);
        Ok(())
    }
}

/// A layer and a run of positions.
struct At<'a> {
    layer: u16,
    /// First position.
    first: u32,
    /// Its row in the batch (the head may begin later than the batch).
    row: u32,
    rows: u32,
    ctx: &'a Buffer,
}

/// Resolves the operands of one layer's operators.
struct Memory<'a> {
    loaded: &'a Loaded,
    at: &'a At<'a>,
    sequence: &'a Sequence,
    scratch: &'a Scratch,
    selected: Option<&'a Buffer>,
    section: &'a Section,
    kind: SectionKind,
}

impl<'a> Memory<'a> {
    /// Where operator `op` writes.
    fn output(&self, op: usize) -> Result<(&'a Buffer, Place)> {
        let d = &self.section.ops[op];
        if !d.export {
            let missing = || GpuError::Device(format!("operator {op} has no memory"));
            let buffer = self.scratch.inner[self.kind as usize][op].as_ref().ok_or_else(missing)?;
            return Ok((buffer, Place::batch(stride(d, self.scratch.positions))));
        }
        if let Some(selected) = self.selected {
            return Ok((selected, Place { offset: self.at.row, ..Place::batch(1) }));
        }
        let e = self.section.ops[..op].iter().filter(|d| d.export).count();
        self.loaded.export(self.at.layer, e, self.sequence, self.scratch)
    }

    fn source(&self, d: &Descriptor, o: &Operand) -> Result<Source<'a>> {
        let none = |what: &str| GpuError::Unsupported(format!("{}: its {what} {} does not exist", d.opcode, o.index));
        Ok(match o.kind {
            OperandKind::None => Source::None,
            OperandKind::Token => Source::Token,
            OperandKind::Op => {
                let from = self.section.ops.get(o.index as usize).ok_or_else(|| none("operator"))?;
                let (buffer, place) = self.output(o.index as usize)?;
                // The last slab has as many elements as one step of the reduction.
                let tail = o.tail.then(|| (u32::from(o.stride), (from.outer * from.inner)));
                Source::Rows(buffer, Place { tail, ..place })
            }
            OperandKind::Prev => {
                let layer = self.at.layer.checked_sub(1).ok_or_else(|| none("layer before"))?;
                let exports = self.loaded.kept[self.loaded.kind(layer)? as usize].len();
                let e = exports.checked_sub(1 + o.index as usize).ok_or_else(|| none("export"))?;
                let (buffer, place) = self.loaded.export(layer, e, self.sequence, self.scratch)?;
                let offset = if place.absolute { 0 } else { self.at.row * place.stride };
                Source::Rows(buffer, Place { offset, ..place })
            }
            OperandKind::Cache => {
                let (buffer, place) =
                    self.loaded.export(self.at.layer, o.index as usize, self.sequence, self.scratch)?;
                Source::Cache(buffer, place.stride)
            }
            OperandKind::Weight => {
                let m = self.loaded.matrices.get(Model::resolve(o, self.at.layer)).and_then(Option::as_ref);
                Source::Matrix(m.ok_or_else(|| none("matrix"))?)
            }
            OperandKind::Table => {
                let t = self.loaded.tables.get(Model::resolve(o, self.at.layer)).and_then(Option::as_ref);
                Source::Table(t.ok_or_else(|| none("table"))?)
            }
        })
    }
}

fn grow<T>(v: &mut Vec<Option<T>>, i: usize) {
    if v.len() <= i {
        v.resize_with(i + 1, || None);
    }
}

/// Big-endian at the declared width, as committed.
fn encode(dtype: Dtype, values: &[i32]) -> Vec<u8> {
    match dtype {
        Dtype::I8 => values.iter().map(|v| *v as u8).collect(),
        Dtype::I16 | Dtype::U16 => values.iter().flat_map(|v| (*v as u16).to_be_bytes()).collect(),
        Dtype::I32 => values.iter().flat_map(|v| v.to_be_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use sworn_model::{SyntheticSpec, synthetic};

    use super::*;
    use crate::adapter::Selection;

    #[test]
    fn a_batch_split_as_on_a_gpu_exports_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let model = Arc::new(synthetic(&SyntheticSpec::default(), dir.path().join("model")).unwrap());
        let tokens: Vec<u32> = (0..90).map(|i| i * 37 % 331).collect();
        let run = |split: bool| {
            let mut gpu = Gpu::open(&Selection::Best).unwrap_or_else(|e| panic!("{e}"));
            gpu.set_split(split);
            let mut loaded = Loaded::new(gpu, model.clone()).unwrap();
            let mut sequence = loaded.sequence(128);
            let mut all = Vec::new();
            // One, four and eight positions to a tile, with rows left over.
            for part in [&tokens[..1], &tokens[1..4], &tokens[4..37], &tokens[37..]] {
                let wanted = Wanted { head_from: 0, exports: true, logits: true };
                let batch = loaded.run(&mut sequence, part, wanted).unwrap();
                all.push((batch.records, batch.logits, batch.tokens));
            }
            all
        };
        assert!(run(true) == run(false));
    }
}
