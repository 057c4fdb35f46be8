//! From a run to its commitment, while it runs.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use sworn_commit::{Hash, HeadRow, TraceBuilder, TraceDims, TraceTree, sequence, trace};

use crate::tensor::OpTensor;
use crate::{EngineError, ExportSink, Result};

/// Bytes of exports that are hashed together, so that several threads have work.
const BATCH: usize = 1 << 20;
/// Fewest rows that are worth a thread: they fill the hash function's lanes a few times over.
pub(crate) const ROWS: usize = 4;

/// What rows export, encoded one after the other. Emptied and filled again, it allocates nothing.
#[derive(Default)]
pub(crate) struct Rows {
    bytes: Vec<u8>,
    /// Where each tensor ends.
    ends: Vec<usize>,
    /// How many tensors each row has.
    counts: Vec<usize>,
}

impl Rows {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.counts.clear();
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, exports: &[OpTensor]) {
        for t in exports {
            t.view().append_bytes(&mut self.bytes);
            self.ends.push(self.bytes.len());
        }
        self.counts.push(exports.len());
    }

    fn push_encoded(&mut self, tensors: &[&[u8]]) {
        for t in tensors {
            self.bytes.extend_from_slice(t);
            self.ends.push(self.bytes.len());
        }
        self.counts.push(tensors.len());
    }

    /// Rows so far.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// The leaves of the rows from `first` on, as many as `out` has room for.
    pub(crate) fn hash(&self, first: usize, out: &mut [Hash]) {
        let before = self.counts.iter().take(first).sum();
        let counts = self.counts.get(first..).unwrap_or_default();
        let counts = &counts[..counts.len().min(out.len())];
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let tensors: Vec<&[u8]> = starts
            .zip(&self.ends)
            .skip(before)
            .take(counts.iter().sum())
            .map(|(from, to)| &self.bytes[from..*to])
            .collect();
        let mut leaves = Vec::with_capacity(counts.len());
        trace::leaves(&tensors, counts, &mut leaves);
        for (out, leaf) in out.iter_mut().zip(leaves) {
            *out = leaf;
        }
    }
}

/// A finished run's commitment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Sizes.
    pub dims: TraceDims,
    /// Every leaf and the trees over them.
    pub tree: TraceTree,
    /// What the node posts.
    pub layers_root: Hash,
    /// What identifies the run: model, input, output and every exported tensor.
    pub root: Hash,
    /// The log-probabilities that the head's rows commit to; none if the model has none.
    pub log_probs: Vec<HeadRow>,
}

impl Trace {
    fn of(
        dims: TraceDims,
        tree: TraceTree,
        model: &Hash,
        prompt: &[u32],
        output: &[u32],
        log_probs: Vec<HeadRow>,
    ) -> Self {
        let layers_root = tree.layers_root();
        let (input, output) = (sequence::hash(prompt), sequence::hash(output));
        let root = trace::trace_root(model, &input, &output, dims.positions(), &layers_root);
        Trace { dims, tree, layers_root, root, log_probs }
    }

    /// The commitment to the same run, ended after `output`, which this run's output begins with.
    ///
    /// # Errors
    /// This run is shorter.
    pub fn cut(&self, model: &Hash, prompt: &[u32], output: &[u32]) -> Result<Self> {
        let dims = TraceDims { layers: self.dims.layers, n_in: prompt.len() as u32, n_out: output.len() as u32 };
        let shorter = self.tree.cut(&dims).filter(|_| !prompt.is_empty() && !output.is_empty());
        let tree = shorter.ok_or_else(|| EngineError::Request("a trace cannot be cut to more than it has".into()))?;
        let log_probs = self.log_probs.iter().take(output.len()).cloned().collect();
        Ok(Trace::of(dims, tree, model, prompt, output, log_probs))
    }
}

/// An [`ExportSink`] that hashes what it is given.
pub struct TraceRecorder<'a> {
    layers: u16,
    n_in: u32,
    builder: TraceBuilder,
    /// Exports that are not hashed yet, and the layer and row of each.
    waiting: Rows,
    names: Vec<(u16, u32)>,
    log_probs: Vec<HeadRow>,
    cancel: Option<&'a AtomicBool>,
}

impl<'a> TraceRecorder<'a> {
    /// For a model of `layers` blocks and a prompt of `n_in` tokens. A set `cancel` flag stops the run.
    pub fn new(layers: u16, n_in: u32, cancel: Option<&'a AtomicBool>) -> Self {
        let builder = TraceBuilder::new(layers);
        let (waiting, names, log_probs) = Default::default();
        TraceRecorder { layers, n_in, builder, waiting, names, log_probs, cancel }
    }

    /// As [`Self::new`], with the first `rows` positions of a run that began with the same tokens: a leaf depends on the tokens up to its
    /// position only. `rows` is less than `n_in`, so no row of the head is among them.
    pub fn resume(of: &TraceTree, layers: u16, n_in: u32, rows: u32) -> Self {
        let mut recorder = Self::new(layers, n_in, None);
        for layer in 0..=layers {
            let leaves = of.layer(layer).leaves().iter().take(rows.min(n_in.saturating_sub(1)) as usize);
            leaves.for_each(|leaf| recorder.builder.push(layer, *leaf));
        }
        recorder
    }

    /// Hashes what was given so far.
    ///
    /// # Errors
    /// The backend left out a row or gave one twice.
    pub fn flush(&mut self) -> Result<()> {
        let mut leaves = vec![[0; 32]; self.waiting.len()];
        let each = leaves.len().div_ceil(rayon::current_num_threads()).max(ROWS);
        let waiting = &self.waiting;
        match leaves.len() {
            0..=ROWS => waiting.hash(0, &mut leaves),
            _ => leaves.par_chunks_mut(each).enumerate().for_each(|(i, part)| waiting.hash(i * each, part)),
        }
        self.waiting.clear();
        let names = std::mem::take(&mut self.names);
        let done = names.iter().zip(leaves).try_for_each(|((layer, row), leaf)| self.push(*layer, *row, leaf));
        self.names = names;
        self.names.clear();
        done
    }

    fn push(&mut self, layer: u16, row: u32, leaf: Hash) -> Result<()> {
        if layer > self.layers + 1 || self.builder.rows(layer) != row {
            return Err(EngineError::Sink(format!(
                "the backend gave layer {layer} row {row} out of order: this is a defect of the backend"
            )));
        }
        self.builder.push(layer, leaf);
        Ok(())
    }

    fn row(&self, layer: u16, position: u32) -> Result<u32> {
        if self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(EngineError::Sink("cancelled".into()));
        }
        // A position before the head's first becomes a row far beyond any that is expected next.
        let head = layer == self.layers + 1;
        Ok(if head { position.wrapping_sub(self.n_in - 1) } else { position })
    }

    /// Root over the layers' roots of what was given so far.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn layers_root(&mut self) -> Result<Hash> {
        self.flush()?;
        Ok(self.builder.layers_root())
    }

    /// The log-probabilities of the rows so far; none if the model has none.
    pub fn log_probs(&self) -> &[HeadRow] {
        &self.log_probs
    }

    /// The commitment to a whole run.
    ///
    /// # Errors
    /// As [`Self::flush`], or rows are missing.
    pub fn finish(mut self, model: &Hash, prompt: &[u32], output: &[u32]) -> Result<Trace> {
        self.flush()?;
        let dims = TraceDims { layers: self.layers, n_in: prompt.len() as u32, n_out: output.len() as u32 };
        if let Some(l) = (0..dims.layer_count()).find(|l| self.builder.rows(*l) != dims.rows(*l)) {
            let (rows, wanted) = (self.builder.rows(l), dims.rows(l));
            return Err(EngineError::Sink(format!(
                "layer {l} has {rows} rows, not {wanted}: this is a defect of the backend"
            )));
        }
        Ok(Trace::of(dims, self.builder.finish(), model, prompt, output, self.log_probs))
    }
}

impl ExportSink for TraceRecorder<'_> {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> Result<()> {
        self.names.push((layer, self.row(layer, position)?));
        if layer == self.layers + 1 {
            self.log_probs.extend(HeadRow::from_exports(tensors));
        }
        self.waiting.push_encoded(tensors);
        if self.waiting.bytes.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn wants_leaves(&self) -> bool {
        true
    }

    fn leaf(&mut self, layer: u16, position: u32, leaf: Hash) -> Result<()> {
        let row = self.row(layer, position)?;
        self.push(layer, row, leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row (layer, position) exports so many tensors of such sizes.
    fn tensors(layer: u16, position: u32) -> Vec<Vec<u8>> {
        let n = usize::from(layer) % 5;
        (0..n).map(|k| vec![(usize::from(layer) + k) as u8 ^ position as u8; 700 * k + position as usize]).collect()
    }

    #[test]
    fn leaves_and_exports_give_the_same_trace() {
        let (prompt, output) = ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]);
        let (layers, positions) = (6, 10);
        let mut roots = Vec::new();
        for how in 0..3 {
            let mut recorder = TraceRecorder::new(layers, prompt.len() as u32, None);
            for position in 0..positions {
                for layer in (0..layers + 2).filter(|l| *l <= layers || position >= 2) {
                    let tensors = tensors(layer, position);
                    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
                    if how == 0 || how == 1 && layer > 3 {
                        recorder.export(layer, position, &tensors).unwrap();
                    } else {
                        let roots: Vec<Hash> = tensors.iter().map(|t| sworn_commit::tensor::tensor_root(t)).collect();
                        recorder.leaf(layer, position, trace::leaf(&roots)).unwrap();
                    }
                }
            }
            let root = recorder.layers_root().unwrap();
            let trace = recorder.finish(&[0; 32], &prompt, &output).unwrap();
            assert_eq!(root, trace.layers_root);
            roots.push(trace.root);
        }
        assert!(roots.iter().all(|r| *r == roots[0]));
    }

    #[test]
    fn rows_out_of_order_missing_rows_and_cancel_surface() {
        let cancel = AtomicBool::new(false);
        let mut recorder = TraceRecorder::new(2, 1, Some(&cancel));
        recorder.leaf(0, 0, [1; 32]).unwrap();
        assert!(matches!(recorder.leaf(0, 2, [1; 32]), Err(EngineError::Sink(_))));
        assert!(matches!(recorder.leaf(4, 0, [1; 32]), Err(EngineError::Sink(_))));
        recorder.export(0, 1, &[&[1]]).unwrap();
        recorder.export(0, 1, &[&[1]]).unwrap();
        assert!(matches!(recorder.flush(), Err(EngineError::Sink(_))));
        cancel.store(true, Ordering::Relaxed);
        assert!(matches!(recorder.leaf(1, 0, [1; 32]), Err(EngineError::Sink(_))));
        assert!(matches!(recorder.export(1, 0, &[]), Err(EngineError::Sink(_))));
        assert!(matches!(recorder.finish(&[0; 32], &[1], &[2]), Err(EngineError::Sink(_))));
    }
}
