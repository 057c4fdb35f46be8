//! The execution of a batch: the next positions of one or several sequences, read from the weights together.

use sworn_commit::{Hash, HeadRow};
use sworn_engine::{EngineError, ExportSink};
use sworn_isa::SectionKind;

use crate::GpuError;
use crate::gpu::{Buffer, Later, Place};
use crate::kernels::ROW_WORDS;
use crate::loaded::Loaded;
use crate::pool::STEP;
use crate::scratch::{Scratch, Shape};
use crate::sequence::{At, Sequences};
use crate::staging::Layout;

/// Rows that run together: on a GPU as many as keep it busy.
const ROWS: u32 = 64;
const ROWS_ON_GPU: u32 = 256;
/// Head rows that run together; each holds a vector as long as the vocabulary.
pub(crate) const HEAD_ROWS: u32 = 16;

type Result<T> = std::result::Result<T, GpuError>;

/// How exports are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exports {
    Nothing,
    Tensors,
    Leaves,
}

/// What a batch is to yield of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The first of the sequence's rows that the head runs for.
    pub(crate) head_from: u32,
    pub(crate) exports: Exports,
    pub(crate) logits: bool,
}

/// A sequence's share of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    /// The sequence.
    pub(crate) id: u64,
    /// The tokens of its next positions.
    pub(crate) tokens: Vec<u32>,
    pub(crate) wanted: Wanted,
}

/// A row of a batch.
#[derive(Clone, Copy)]
struct Row {
    share: usize,
    position: u32,
    token: u32,
    /// The slot of its sequence's position 0.
    first_slot: u32,
    /// Its number in the batch.
    number: u32,
}

/// A queued batch.
pub(crate) struct Pending {
    shares: Vec<Share>,
    /// Each share's first position.
    firsts: Vec<u32>,
    /// Rows that the head ran for, in the batch's order.
    head: Vec<Row>,
    /// The likeliest token of each of them.
    best: Option<Later>,
    /// Logits of some of them, by their place in `head`.
    logits: Vec<(Vec<usize>, Later)>,
    layout: Option<Layout>,
    tensors: Option<Later>,
    leaves: Option<Later>,
}

/// What a batch yielded.
pub(crate) struct Done {
    layout: Option<Layout>,
    tensors: Option<Vec<u8>>,
    /// The leaf of every row of every layer, layer by layer.
    leaves: Vec<Hash>,
    rows: usize,
    pub(crate) shares: Vec<Yield>,
}

/// What a batch yielded of one sequence.
pub(crate) struct Yield {
    pub(crate) first: u32,
    /// The number of its first row in the batch, and how many they are.
    from: usize,
    pub(crate) rows: u32,
    exports: Exports,
    /// Position and logits, where they are wanted.
    pub(crate) logits: Vec<(u32, Vec<i32>)>,
    /// The selected tokens, the first of which is at this position.
    pub(crate) tokens: Vec<u32>,
    head: u32,
    /// Their log-probabilities, where exports are wanted and the model commits to them.
    log_probs: Vec<HeadRow>,
}

impl Loaded {
    /// How many rows may run together if none is at position `positions` or later, so that every tensor fits a binding.
    pub(crate) fn most_rows(&self, positions: u32) -> Result<u32> {
        let ops = || self.sections[..2].iter().flat_map(|s| &s.ops);
        let widest = ops().map(|d| d.count(positions.max(1).next_multiple_of(STEP) - 1)).max().unwrap_or(1);
        let rows = self.gpu.max_words() as u64 / widest.next_multiple_of(4).max(1);
        if rows == 0 {
            return Err(GpuError::Unsupported(format!(
                "one position's largest tensor has {widest} elements, more than the {} that a binding of {} holds",
                self.gpu.max_words(),
                self.gpu.adapter().name
            )));
        }
        let together = if self.gpu.splits() { ROWS_ON_GPU } else { ROWS };
        Ok(rows.min(u64::from(together)) as u32)
    }

    /// Queues the next positions of sequences, each of which is in the batch once and has room for them. What they yield is
    /// had by [`Self::finish`].
    pub(crate) fn start(&mut self, sequences: &mut Sequences, shares: Vec<Share>) -> Result<Pending> {
        let (mut rows, mut firsts) = (Vec::new(), Vec::new());
        for (share, Share { id, tokens, .. }) in shares.iter().enumerate() {
            let sequence = sequences.get(id).ok_or_else(closed)?;
            let first = sequence.len();
            if sequence.slots.len() < first as usize + tokens.len() {
                return Err(GpuError::Device("a sequence without room in the caches".into()));
            }
            for (position, token) in (first..).zip(tokens) {
                let number = rows.len() as u32;
                rows.push(Row { share, position, token: *token, first_slot: sequence.slots.start, number });
            }
            firsts.push(first);
        }
        let last = rows.iter().map(|r| r.position).max().ok_or_else(|| GpuError::Device("an empty batch".into()))?;
        let exports = shares.iter().any(|s| s.wanted.exports != Exports::Nothing);
        self.take_scratch(Shape { rows: rows.len() as u32, positions: last + 1, exports })?;
        let Some(scratch) = self.scratch.last() else { return Err(GpuError::Device("no working memory".into())) };

        let count = rows.len() as u32;
        // A layer reads the layer before row by row.
        let ctx = self.context(&rows, |r| r.number)?;
        let layers = self.model.layers();
        for layer in 0..=layers {
            self.layer(&At { layer, rows: count, last, ctx: &ctx }, scratch)?;
            if let Some(staging) = &scratch.staging {
                let exports = self.sections[self.kind(layer)? as usize].exports().len();
                let sources: Result<Vec<_>> = (0..exports).map(|e| self.export(layer, e, scratch)).collect();
                staging.pack(&self.gpu, &ctx, layer, count, &sources?);
            }
        }
        let in_head = |r: &Row| r.position >= firsts[r.share].saturating_add(shares[r.share].wanted.head_from);
        let head: Vec<Row> = rows.iter().filter(|r| in_head(r)).copied().collect();
        let (best, logits) = self.head(sequences, &shares, scratch, &head)?;
        let (mut layout, mut tensors, mut leaves) = (None, None, None);
        if let Some(staging) = &scratch.staging {
            let wanted = |e: Exports| shares.iter().any(|s| s.wanted.exports == e);
            layout = Some(staging.layout(rows.len()));
            if wanted(Exports::Leaves) {
                staging.hash(&self.gpu);
                leaves = Some(self.gpu.read_later(vec![staging.handle(true)]));
            }
            if wanted(Exports::Tensors) {
                tensors = Some(self.gpu.read_later(vec![staging.handle(false)]));
            }
        } else if best.is_none() && logits.is_empty() {
            // Nothing is read: wait for the device all the same, so that a failure is known now.
            let (buffer, _) = self.export(layers, 0, scratch)?;
            self.gpu.read_later(vec![buffer.slice(0, 1)]).wait()?;
        }
        self.gpu.check(scratch.written().chain(self.pool.buffers()))?;
        for share in &shares {
            sequences.get_mut(&share.id).ok_or_else(closed)?.tokens.extend_from_slice(&share.tokens);
        }
        Ok(Pending { shares, firsts, head, best, logits, layout, tensors, leaves })
    }

    /// The head of some rows, and the selection of the likeliest tokens.
    #[allow(clippy::type_complexity)]
    fn head(
        &self,
        sequences: &Sequences,
        shares: &[Share],
        scratch: &Scratch,
        rows: &[Row],
    ) -> Result<(Option<Later>, Vec<(Vec<usize>, Later)>)> {
        if rows.is_empty() {
            return Ok((None, Vec::new()));
        }
        let read = |row: &Row| {
            let Share { id, wanted, .. } = &shares[row.share];
            let committed = wanted.exports != Exports::Nothing && self.log_probs.is_some();
            wanted.logits || committed || sequences.get(id).is_some_and(|s| s.samples())
        };
        let (best, mut logits) = (self.gpu.empty(rows.len())?, Vec::new());
        for (chunk, own) in rows.chunks(HEAD_ROWS as usize).enumerate() {
            let done = chunk * HEAD_ROWS as usize;
            let ctx = self.context(own, |r| r.number)?;
            let last = own.iter().map(|r| r.position).max().unwrap_or(0);
            let at = At { layer: self.model.layers() + 1, rows: own.len() as u32, last, ctx: &ctx };
            self.layer(&at, scratch)?;
            let of_logits = self.sections[SectionKind::Head as usize].ops.len() - 1;
            let found = scratch.inner(SectionKind::Head, of_logits);
            let (buffer, place) = found.ok_or_else(|| GpuError::Device("no memory for logits".into()))?;
            // Rows are padded, so each is read on its own.
            let wanted: Vec<usize> = (0..own.len()).filter(|k| read(&own[*k])).collect();
            if !wanted.is_empty() {
                let slice = |k: &usize| buffer.slice(k * place.stride as usize, self.vocabulary());
                let later = self.gpu.read_later(wanted.iter().map(slice).collect());
                logits.push((wanted.iter().map(|k| done + k).collect(), later));
            }
            let to = Place { offset: done as u32, ..Place::batch(1) };
            self.gpu.arg_max(&ctx, own.len() as u32, (buffer, place), (&best, to), self.vocabulary() as u32);
        }
        Ok((Some(self.gpu.read_later(vec![best.slice(0, rows.len())])), logits))
    }

    /// Waits for a batch.
    pub(crate) fn finish(&self, sequences: &Sequences, pending: Pending) -> Result<Done> {
        let Pending { shares, firsts, head, best, logits, layout, tensors, leaves } = pending;
        let mut of_row: Vec<Vec<i32>> = vec![Vec::new(); head.len()];
        for (places, later) in logits {
            for (place, bytes) in places.iter().zip(later.wait()?) {
                of_row[*place] = bytemuck::pod_collect_to_vec(&bytes);
            }
        }
        let best: Vec<u32> = match best {
            Some(later) => later.wait()?.iter().flat_map(|b| bytemuck::pod_collect_to_vec(b)).collect(),
            None => Vec::new(),
        };
        let bytes = |later: Option<Later>| -> Result<Option<Vec<u8>>> {
            later.map(|l| Ok(l.wait()?.first().map(|b| b.to_vec()).unwrap_or_default())).transpose()
        };
        let (tensors, hashes) = (bytes(tensors)?, bytes(leaves)?);
        let mut yields = Vec::with_capacity(shares.len());
        let (mut from, mut of_head) = (0, 0);
        for (share, first) in shares.iter().zip(firsts) {
            let rows = share.tokens.len();
            let heads = rows - (share.wanted.head_from as usize).min(rows);
            let own = of_head..of_head + heads;
            of_head += heads;
            let sequence = sequences.get(&share.id).ok_or_else(closed)?;
            let taken = own.clone().map(|k| (head[k].position, std::mem::take(&mut of_row[k])));
            let logits: Vec<_> = taken.filter(|(_, logits)| !logits.is_empty()).collect();
            let tokens = match sequence.samples() {
                true => self.choose(sequence, &logits)?,
                false => best[own].to_vec(),
            };
            let prober = self.log_probs.as_ref().filter(|_| share.wanted.exports != Exports::Nothing);
            let log_probs = prober.map(|p| logits.iter().zip(&tokens).map(|((_, l), t)| p.row(l, *t)).collect());
            yields.push(Yield {
                first,
                from,
                rows: rows as u32,
                exports: share.wanted.exports,
                logits: if share.wanted.logits { logits } else { Vec::new() },
                tokens,
                head: first + (rows - heads) as u32,
                log_probs: log_probs.unwrap_or_default(),
            });
            from += rows;
        }
        let leaves = layout.as_ref().zip(hashes).map(|(layout, hashes)| layout.leaves(&hashes)).unwrap_or_default();
        Ok(Done { layout, tensors, leaves, rows: from, shares: yields })
    }

    /// What the kernels are told of rows.
    fn context(&self, rows: &[Row], source: impl Fn(&Row) -> u32) -> Result<Buffer> {
        let words = |r: &Row| -> [i32; ROW_WORDS] { [r.position, r.token, r.first_slot, source(r)].map(|w| w as i32) };
        self.gpu.upload(rows.iter().flat_map(words).collect())
    }
}

impl Done {
    /// Gives a sink what the batch yielded of share `k`. `head` is the number of the head's layer.
    pub(crate) fn deliver(
        &self,
        k: usize,
        head: u16,
        sink: &mut dyn ExportSink,
    ) -> std::result::Result<(), EngineError> {
        let own = &self.shares[k];
        let rows = own.from..own.from + own.rows as usize;
        match (own.exports, &self.layout, &self.tensors) {
            (Exports::Tensors, Some(layout), Some(bytes)) => layout.tensors(bytes, rows, |layer, row, tensors| {
                sink.export(layer, own.first + (row - own.from) as u32, tensors)
            })?,
            (Exports::Leaves, ..) => {
                for (layer, of_layer) in (0..).zip(self.leaves.chunks(self.rows.max(1))) {
                    for (position, leaf) in (own.first..).zip(&of_layer[rows.clone()]) {
                        sink.leaf(layer, position, *leaf)?;
                    }
                }
            }
            _ => {}
        }
        own.logits.iter().try_for_each(|(position, values)| sink.logits(*position, values))?;
        if own.exports != Exports::Nothing {
            for (i, (position, token)) in (own.head..).zip(&own.tokens).enumerate() {
                match own.log_probs.get(i) {
                    Some(row) => row.exports(*token, |t| sink.export(head, position, &t))?,
                    None => sink.export(head, position, &[&token.to_be_bytes()])?,
                }
            }
        }
        Ok(())
    }
}

fn closed() -> GpuError {
    GpuError::Device("the session is closed".into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sworn_model::{Model, SyntheticSpec, synthetic};

    use super::*;
    use crate::adapter::Selection;
    use crate::gpu::{Gpu, Products};
    use crate::sequence::Sequence;

    fn model() -> Arc<Model> {
        let dir = tempfile::tempdir().unwrap();
        Arc::new(synthetic(&SyntheticSpec { layers: 2, ..SyntheticSpec::default() }, dir.path().join("model")).unwrap())
    }

    fn gpu() -> Gpu {
        Gpu::open(&Selection::Best).unwrap_or_else(|e| panic!("{e}"))
    }

    /// One sequence's batches of the given tokens.
    fn run(gpu: Gpu, model: &Arc<Model>, parts: &[&[u32]], exports: Exports) -> Vec<Done> {
        let mut loaded = Loaded::new(gpu, model.clone()).unwrap();
        let mut sequences = Sequences::from([(0, Sequence::new(128))]);
        let total: usize = parts.iter().map(|p| p.len()).sum();
        loaded.reserve(sequences.get_mut(&0).unwrap(), total as u32).unwrap();
        let mut batch = |tokens: &&[u32]| {
            let wanted = Wanted { head_from: 0, exports, logits: true };
            let pending = loaded.start(&mut sequences, vec![Share { id: 0, tokens: tokens.to_vec(), wanted }]).unwrap();
            loaded.finish(&sequences, pending).unwrap()
        };
        parts.iter().map(&mut batch).collect()
    }

    #[test]
    fn a_batch_split_as_on_a_gpu_exports_the_same_and_hashes_to_its_leaves() {
        let model = model();
        let tokens: Vec<u32> = (0..45).map(|i| i * 37 % 331).collect();
        // One, four and eight positions to a tile, with rows left over; nine rows have working memory for sixteen.
        let parts = [&tokens[..1], &tokens[1..4], &tokens[4..13], &tokens[13..]];
        let run = |split: bool, exports: Exports| {
            let mut gpu = gpu();
            gpu.set_split(split);
            gpu.set_products(if split { Products::Dots } else { Products::Words });
            run(gpu, &model, &parts, exports)
        };
        let [split, whole] = [true, false].map(|split| run(split, Exports::Tensors));
        let hashed = run(false, Exports::Leaves);
        for ((a, b), hashed) in split.iter().zip(&whole).zip(&hashed) {
            let (of_a, of_b) = (&a.shares[0], &b.shares[0]);
            assert!(of_a.logits == of_b.logits && of_a.tokens == of_b.tokens && !of_a.logits.is_empty());
            let (layout, bytes) = (a.layout.as_ref().unwrap(), a.tensors.as_ref().unwrap());
            let (mut all, mut same, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
            let rows = || 0..of_a.rows as usize;
            let mut hash = |_: u16, _: usize, tensors: &[&[u8]]| {
                let roots: Vec<Hash> = tensors.iter().map(|t| sworn_commit::tensor::tensor_root(t)).collect();
                leaves.push(sworn_commit::trace::leaf(&roots));
                all.extend(tensors.concat());
                Ok::<_, ()>(())
            };
            layout.tensors(bytes, rows(), &mut hash).unwrap();
            let mut keep = |_: u16, _: usize, tensors: &[&[u8]]| {
                same.extend(tensors.concat());
                Ok::<_, ()>(())
            };
            layout.tensors(b.tensors.as_ref().unwrap(), rows(), &mut keep).unwrap();
            assert!(all == same);
            assert_eq!(hashed.leaves, leaves);
        }
    }
}
