//! The execution of a batch of positions of one sequence.

use std::collections::VecDeque;

use sworn_commit::{Hash, HeadRow, RunParams};
use sworn_engine::Simd;
use sworn_engine::sampling::Chooser;
use sworn_isa::sampling::PENALTY_WINDOW;
use sworn_isa::{Descriptor, Operand, OperandKind, Sampling, Section, SectionKind};
use sworn_model::Model;

use crate::GpuError;
use crate::gpu::{Buffer, Call, Later, Place, Source};
use crate::loaded::Loaded;
use crate::plan::Run;
use crate::scratch::{Scratch, Shape};
use crate::staging::Layout;

/// Positions that run together.
const ROWS: u32 = 64;
/// Head rows that run together; each holds a vector as long as the vocabulary.
pub(crate) const HEAD_ROWS: u32 = 16;
/// Buffers that grow with the sequence do so in steps of this many positions.
pub(crate) const STEP: u32 = 256;

type Result<T> = std::result::Result<T, GpuError>;

/// One sequence's state on the device.
pub(crate) struct Sequence {
    /// The tokens so far.
    tokens: Vec<u32>,
    capacity: u32,
    /// How tokens are sampled.
    run: RunParams,
    /// Positions that `caches` have room for.
    room: u32,
    /// Per layer 0…L and export.
    caches: Vec<Vec<Option<Buffer>>>,
    /// Batches that were queued and not read yet.
    pending: VecDeque<Pending>,
}

/// How exports are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exports {
    Nothing,
    Tensors,
    Leaves,
}

/// What a batch is to yield.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// The first row that the head runs for.
    pub(crate) head_from: u32,
    pub(crate) exports: Exports,
    pub(crate) logits: bool,
}

/// A queued batch.
struct Pending {
    first: u32,
    rows: u32,
    wanted: Wanted,
    /// The tokens that the device selected.
    tokens: Option<Later>,
    /// First position of a part of the head's rows, and their logits.
    logits: Vec<(u32, Later)>,
    exports: Option<(Layout, Later)>,
}

/// What a batch yielded.
pub(crate) struct Batch {
    pub(crate) first: u32,
    pub(crate) rows: u32,
    /// All exports as committed, or the pages' hashes, and how to take them apart.
    pub(crate) exports: Option<(Layout, Vec<u8>)>,
    /// Position and logits.
    pub(crate) logits: Vec<(u32, Vec<i32>)>,
    /// The selected token of each head row, the first of which is at this position.
    pub(crate) tokens: Vec<u32>,
    /// Their log-probabilities, where exports are wanted and the model commits to them.
    pub(crate) log_probs: Vec<HeadRow>,
    pub(crate) head: u32,
}

impl Batch {
    /// The leaf of every layer at every position, if hashes were wanted.
    pub(crate) fn leaves(&self) -> Vec<Hash> {
        self.exports.as_ref().map_or_else(Vec::new, |(layout, hashes)| layout.leaves(hashes))
    }
}

impl Loaded {
    /// An empty sequence.
    pub(crate) fn sequence(&self, capacity: u32, run: RunParams) -> Sequence {
        let (caches, pending) = (Vec::new(), VecDeque::new());
        Sequence { tokens: Vec::new(), capacity, run, room: 0, caches, pending }
    }

    /// How many positions from `len` on may run together, so that every tensor fits a binding.
    pub(crate) fn rows(&self, sequence: &Sequence) -> Result<u32> {
        let positions = (sequence.len() + ROWS).min(sequence.capacity);
        let ops = || self.sections[..2].iter().flat_map(|s| &s.ops);
        let widest = ops().map(|d| d.count(positions.next_multiple_of(STEP) - 1)).max().unwrap_or(1);
        let rows = self.gpu.max_words() as u64 / widest.next_multiple_of(4).max(1);
        if rows == 0 {
            return Err(GpuError::Unsupported(format!(
                "one position's largest tensor has {widest} elements, more than the {} that a binding of {} holds",
                self.gpu.max_words(),
                self.gpu.adapter().name
            )));
        }
        Ok(rows.min(u64::from(ROWS)) as u32)
    }

    /// Queues the next positions. What they yield is had by [`Self::finish`], in the same order.
    pub(crate) fn start(&mut self, sequence: &mut Sequence, tokens: &[u32], wanted: Wanted) -> Result<()> {
        let (rows, first) = (tokens.len() as u32, sequence.len());
        let last = first + rows - 1;
        sequence.reserve(self, last + 1)?;
        let exports = wanted.exports != Exports::Nothing;
        self.take_scratch(Shape { rows, positions: last + 1, exports })?;
        let Some(scratch) = self.scratch.last() else { return Err(GpuError::Device("no working memory".into())) };

        let ctx = self.context(first, tokens)?;
        let layers = self.model.layers();
        for layer in 0..=layers {
            let at = At { layer, first, row: 0, rows, ctx: &ctx };
            self.layer(&at, sequence, scratch)?;
            if let Some(staging) = &scratch.staging {
                let exports = self.sections[self.kind(layer)? as usize].exports().len();
                let sources: Result<Vec<_>> = (0..exports).map(|e| self.export(layer, e, sequence, scratch)).collect();
                staging.pack(&self.gpu, &ctx, layer, &sources?);
            }
        }
        let mut pending = Pending { first, rows, wanted, tokens: None, logits: Vec::new(), exports: None };
        self.head(sequence, scratch, tokens, &mut pending)?;
        if let Some(staging) = &scratch.staging {
            let hashes = wanted.exports == Exports::Leaves;
            if hashes {
                staging.hash(&self.gpu);
            }
            pending.exports = Some((staging.layout(), self.gpu.read_later(vec![staging.handle(hashes)])));
        } else if pending.tokens.is_none() && pending.logits.is_empty() {
            // Nothing is read: wait for the device all the same, so that a failure is known now.
            let (buffer, _) = self.export(layers, 0, sequence, scratch)?;
            self.gpu.read_later(vec![buffer.slice(0, 1)]).wait()?;
        }
        self.gpu.check(scratch.written().chain(sequence.caches.iter().flatten().flatten()))?;
        sequence.pending.push_back(pending);
        sequence.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// The head of a batch's last rows, and the selection of tokens where that needs no sampling.
    fn head(&self, sequence: &Sequence, scratch: &Scratch, tokens: &[u32], pending: &mut Pending) -> Result<()> {
        let (first, rows) = (pending.first, pending.rows);
        let chosen_here = sequence.run.sampling.inverse_temperature != 0 || sequence.run.sampling.penalty != 0;
        let vocabulary = self.vocabulary();
        let mut row = pending.wanted.head_from;
        if row >= rows {
            return Ok(());
        }
        let selected = self.gpu.empty(rows as usize)?;
        while row < rows {
            let n = HEAD_ROWS.min(rows - row);
            let ctx = self.context(first + row, &tokens[row as usize..(row + n) as usize])?;
            let at = At { layer: self.model.layers() + 1, first: first + row, row, rows: n, ctx: &ctx };
            self.layer(&at, sequence, scratch)?;
            let last = self.sections[SectionKind::Head as usize].ops.len() - 1;
            let logits = scratch.inner(SectionKind::Head, last);
            let (logits, place) = logits.ok_or_else(|| GpuError::Device("no memory for logits".into()))?;
            let committed = pending.wanted.exports != Exports::Nothing && self.log_probs.is_some();
            if pending.wanted.logits || chosen_here || committed {
                // Rows are padded, so each is read on its own.
                let rows = (0..n as usize).map(|r| logits.slice(r * place.stride as usize, vocabulary)).collect();
                pending.logits.push((at.first, self.gpu.read_later(rows)));
            }
            if !chosen_here {
                let to = Place { offset: row, ..Place::batch(1) };
                self.gpu.arg_max(&ctx, n, (logits, place), (&selected, to), vocabulary as u32);
            }
            row += n;
        }
        if !chosen_here {
            let head = pending.wanted.head_from;
            let handle = selected.slice(head as usize, (rows - head) as usize);
            pending.tokens = Some(self.gpu.read_later(vec![handle]));
        }
        Ok(())
    }

    /// Waits for the oldest batch that was queued and not finished; `None` if there is none.
    pub(crate) fn finish(&self, sequence: &mut Sequence) -> Result<Option<Batch>> {
        let Some(pending) = sequence.pending.pop_front() else { return Ok(None) };
        let Pending { first, rows, wanted, tokens, logits, exports } = pending;
        let mut batch = Batch {
            first,
            rows,
            exports: None,
            logits: Vec::new(),
            tokens: Vec::new(),
            log_probs: Vec::new(),
            head: first + wanted.head_from.min(rows),
        };
        for (position, later) in logits {
            for (position, row) in (position..).zip(later.wait()?) {
                batch.logits.push((position, bytemuck::pod_collect_to_vec(&row)));
            }
        }
        match tokens {
            Some(later) => batch.tokens = later.wait()?.iter().flat_map(|b| bytemuck::pod_collect_to_vec(b)).collect(),
            None => batch.tokens = self.choose(sequence, &batch.logits)?,
        }
        if let Some(prober) = self.log_probs.as_ref().filter(|_| wanted.exports != Exports::Nothing) {
            let rows = batch.logits.iter().zip(&batch.tokens);
            batch.log_probs = rows.map(|((_, logits), token)| prober.row(logits, *token)).collect();
        }
        if let Some((layout, later)) = exports {
            let bytes = later.wait()?.first().map(|b| b.to_vec()).unwrap_or_default();
            batch.exports = Some((layout, bytes));
        }
        Ok(Some(batch))
    }

    /// Samples on the host what the operators behind the logits would.
    fn choose(&self, sequence: &Sequence, logits: &[(u32, Vec<i32>)]) -> Result<Vec<u32>> {
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

    fn context(&self, first: u32, tokens: &[u32]) -> Result<Buffer> {
        self.gpu.upload(std::iter::once(first).chain(tokens.iter().copied()).map(|t| t as i32).collect())
    }

    /// Queues a layer's operators.
    fn layer(&self, at: &At<'_>, sequence: &Sequence, scratch: &Scratch) -> Result<()> {
        let kind = self.kind(at.layer)?;
        let section = &self.sections[kind as usize];
        let memory = Memory { loaded: self, at, sequence, scratch, section, kind };
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
                let (out, place) = memory.output(op)?;
                let last = at.first + at.rows - 1;
                calls.push(Call { descriptor: d, ctx: at.ctx, batch: at.rows, last, operands, out, place });
            }
            self.gpu.launch_run(step.run, &calls)?;
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
        let section = &self.sections[self.kind(layer)? as usize];
        let missing = || GpuError::Device(format!("layer {layer} has no export {e}"));
        let d = section.exports().get(e).map(|op| &section.ops[*op]).ok_or_else(missing)?;
        let kept = sequence.caches.get(usize::from(layer)).and_then(|own| own.get(e));
        if let Some(Some(buffer)) = kept {
            return Ok((buffer, Place { absolute: true, ..Place::batch(d.count(0) as u32) }));
        }
        let buffer = scratch.export(layer, e).ok_or_else(missing)?;
        Ok((buffer, Place::batch(crate::scratch::stride(d, scratch.shape.positions))))
    }
}

impl Sequence {
    pub(crate) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Samples like this from now on.
    pub(crate) fn set_run(&mut self, run: RunParams) {
        self.run = run;
    }

    /// Forgets the positions from `len` on, and what was queued.
    pub(crate) fn truncate(&mut self, len: u32) {
        self.tokens.truncate(len as usize);
        self.pending.clear();
    }

    /// Makes room for `positions` in the kept exports, with what they hold.
    fn reserve(&mut self, loaded: &Loaded, positions: u32) -> Result<()> {
        if positions <= self.room && !self.caches.is_empty() {
            return Ok(());
        }
        let room = positions.max(2 * self.room).next_multiple_of(STEP).min(self.capacity.max(positions));
        let mut caches = Vec::new();
        for layer in 0..=loaded.model.layers() {
            let kind = loaded.kind(layer)? as usize;
            let section = &loaded.sections[kind];
            let mut own = Vec::new();
            for (e, op) in section.exports().into_iter().enumerate() {
                if !loaded.kept[kind][e] {
                    own.push(None);
                    continue;
                }
                let n = section.ops[op].count(0) as usize;
                let buffer = loaded.gpu.empty(room as usize * n)?;
                if let Some(Some(Some(old))) = self.caches.get(usize::from(layer)).map(|c| c.get(e).map(|b| b.as_ref()))
                {
                    loaded.gpu.copy(old, &buffer, self.tokens.len() * n);
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
        self.loaded.export(self.at.layer, e, self.sequence, self.scratch)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sworn_model::{SyntheticSpec, synthetic};

    use super::*;
    use crate::adapter::Selection;
    use crate::gpu::Gpu;

    #[test]
    fn a_batch_split_as_on_a_gpu_exports_the_same_and_hashes_to_its_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let model = Arc::new(synthetic(&SyntheticSpec::default(), dir.path().join("model")).unwrap());
        let tokens: Vec<u32> = (0..90).map(|i| i * 37 % 331).collect();
        let run = |split: bool, exports: Exports| {
            let mut gpu = Gpu::open(&Selection::Best).unwrap_or_else(|e| panic!("{e}"));
            gpu.set_split(split);
            let mut loaded = Loaded::new(gpu, model.clone()).unwrap();
            let mut sequence = loaded.sequence(128, RunParams::default());
            let mut all = Vec::new();
            // One, four and eight positions to a tile, with rows left over.
            for part in [&tokens[..1], &tokens[1..4], &tokens[4..37], &tokens[37..]] {
                let wanted = Wanted { head_from: 0, exports, logits: true };
                loaded.start(&mut sequence, part, wanted).unwrap();
                all.push(loaded.finish(&mut sequence).unwrap().unwrap());
            }
            all
        };
        let [split, whole] = [true, false].map(|split| run(split, Exports::Tensors));
        let hashed = run(false, Exports::Leaves);
        for ((a, b), hashed) in split.iter().zip(&whole).zip(&hashed) {
            assert!(a.logits == b.logits && a.tokens == b.tokens);
            let (layout, bytes) = a.exports.as_ref().unwrap();
            assert!(*bytes == b.exports.as_ref().unwrap().1);
            let mut leaves = Vec::new();
            let mut hash = |_: u16, _: usize, tensors: &[&[u8]]| {
                let roots: Vec<Hash> = tensors.iter().map(|t| sworn_commit::tensor::tensor_root(t)).collect();
                leaves.push(sworn_commit::trace::leaf(&roots));
                Ok::<_, ()>(())
            };
            layout.tensors(bytes, &mut hash).unwrap();
            assert_eq!(hashed.leaves(), leaves);
        }
    }
}
