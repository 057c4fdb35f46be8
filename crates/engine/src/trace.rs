//! From a run to its commitment, while it runs.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use sworn_commit::{Hash, TraceBuilder, TraceDims, TraceTree, sequence, tensor, trace};

use crate::{EngineError, ExportSink, Result};

/// Bytes of exports that are hashed together, so that several threads have work.
const BATCH: usize = 1 << 20;

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
}

/// An [`ExportSink`] that hashes what it is given.
pub struct TraceRecorder<'a> {
    layers: u16,
    n_in: u32,
    builder: TraceBuilder,
    waiting: Vec<Waiting>,
    bytes: usize,
    cancel: Option<&'a AtomicBool>,
}

struct Waiting {
    layer: u16,
    row: u32,
    tensors: Vec<u8>,
    ends: Vec<usize>,
}

impl Waiting {
    fn leaf(&self) -> Hash {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let roots: Vec<Hash> = starts.zip(&self.ends).map(|(a, b)| tensor::tensor_root(&self.tensors[a..*b])).collect();
        trace::leaf(&roots)
    }
}

impl<'a> TraceRecorder<'a> {
    /// For a model of `layers` blocks and a prompt of `n_in` tokens. A set `cancel` flag stops the run.
    pub fn new(layers: u16, n_in: u32, cancel: Option<&'a AtomicBool>) -> Self {
        let builder = TraceBuilder::new(layers);
        TraceRecorder { layers, n_in, builder, waiting: Vec::new(), bytes: 0, cancel }
    }

    /// Hashes what was given so far.
    ///
    /// # Errors
    /// The backend left out a row or gave one twice.
    pub fn flush(&mut self) -> Result<()> {
        let leaves: Vec<Hash> = match self.waiting.len() {
            0..4 => self.waiting.iter().map(Waiting::leaf).collect(),
            _ => self.waiting.par_iter().map(Waiting::leaf).collect(),
        };
        self.bytes = 0;
        for (w, leaf) in self.waiting.drain(..).zip(leaves) {
            if w.layer > self.layers + 1 || self.builder.rows(w.layer) != w.row {
                let message = format!(
                    "the backend gave layer {} row {} out of order: this is a defect of the backend",
                    w.layer, w.row
                );
                return Err(EngineError::Sink(message));
            }
            self.builder.push(w.layer, leaf);
        }
        Ok(())
    }

    /// Root over the layers' roots of what was given so far.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn layers_root(&mut self) -> Result<Hash> {
        self.flush()?;
        Ok(self.builder.layers_root())
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
        let tree = self.builder.finish();
        let layers_root = tree.layers_root();
        let (input, output) = (sequence::hash(prompt), sequence::hash(output));
        let root = trace::trace_root(model, &input, &output, dims.positions(), &layers_root);
        Ok(Trace { dims, tree, layers_root, root })
    }
}

impl ExportSink for TraceRecorder<'_> {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> Result<()> {
        if self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(EngineError::Sink("cancelled".into()));
        }
        let head = layer == self.layers + 1;
        let row = if head { position.wrapping_sub(self.n_in - 1) } else { position };
        let mut ends = Vec::with_capacity(tensors.len());
        let mut bytes = Vec::with_capacity(tensors.iter().map(|t| t.len()).sum());
        for t in tensors {
            bytes.extend_from_slice(t);
            ends.push(bytes.len());
        }
        self.bytes += bytes.len();
        self.waiting.push(Waiting { layer, row, tensors: bytes, ends });
        if self.bytes >= BATCH { self.flush() } else { Ok(()) }
    }
}
