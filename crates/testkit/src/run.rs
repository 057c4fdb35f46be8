//! A whole run with every operator's output in memory: what a node commits to, honestly or not, and what a challenger recomputes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sworn_commit::witness::Inputs;
use sworn_commit::{Hash, TraceDims, TraceTree, tensor, trace};
use sworn_engine::{Backend, Cpu, NoExports, OpHook, OpTensor};
use sworn_model::Model;

use crate::tamper::{self, Place};

/// Prompt tokens.
pub const PROMPT: u32 = 45;
/// Output tokens.
pub const NEW: u32 = 8;

/// Outputs of the operators by (layer, position), later by (layer, row).
pub type Captured = HashMap<(u16, u32), Vec<Vec<u8>>>;

/// Keeps every operator's output, after the hook that tampers.
struct Capture {
    into: Arc<Mutex<Captured>>,
    lie: Option<Box<dyn OpHook>>,
}

impl OpHook for Capture {
    fn after(&mut self, layer: u16, position: u32, op: usize, out: &mut OpTensor) {
        if let Some(lie) = self.lie.as_mut().filter(|l| l.wants(layer, position)) {
            lie.after(layer, position, op, out);
        }
        let mut all = self.into.lock().unwrap();
        let ops = all.entry((layer, position)).or_default();
        assert_eq!(ops.len(), op);
        ops.push(out.bytes());
    }
}

/// A run with every operator's output.
#[derive(Clone)]
pub struct Run {
    /// The model.
    pub model: Arc<Model>,
    /// Sizes of the trace.
    pub dims: TraceDims,
    /// The prompt, the same in every run.
    pub prompt: Vec<u32>,
    /// Output tokens.
    pub output: Vec<u32>,
    /// What the head chose in their places.
    pub selected: Vec<u32>,
    /// By (layer, row).
    pub ops: Captured,
    /// Leaves of the trace, by layer.
    pub leaves: Vec<Vec<Hash>>,
}

impl Run {
    /// Generates, or follows `output`; `lie`: with a wrong element at this place, by this attempt.
    ///
    /// # Panics
    /// The engine fails.
    pub fn new(model: &Arc<Model>, lie: Option<(Place, u32)>, output: Option<&[u32]>) -> Self {
        let model = model.clone();
        let into = Arc::new(Mutex::new(Captured::new()));
        let inner = into.clone();
        let model_ = model.clone();
        let hook = Arc::new(move || {
            let lie = lie.and_then(|(place, attempt)| tamper::hook(&model_, place, attempt));
            Box::new(Capture { into: inner.clone(), lie }) as Box<dyn OpHook>
        });
        let cpu = Cpu::with_threads(model.clone(), 1).unwrap().with_hook(hook);
        let prompt: Vec<u32> = (0..PROMPT).map(|i| 3 + i * 7 % 300).collect();
        let mut session = cpu.session(256).unwrap();
        let mut selected = session.extend(&prompt, PROMPT - 1, &mut NoExports).unwrap();
        let mut out = Vec::new();
        for i in 0..NEW as usize {
            let next = output.map_or(selected[i], |o| o[i]);
            out.push(next);
            if i + 1 < NEW as usize {
                selected.extend(session.extend(&[next], 0, &mut NoExports).unwrap());
            }
        }
        let dims = TraceDims { layers: model.layers(), n_in: PROMPT, n_out: NEW };
        let ops: Captured =
            into.lock().unwrap().drain().filter_map(|((l, p), v)| Some(((l, dims.row(l, p)?), v))).collect();
        let mut run = Run { model, dims, prompt, output: out, selected, ops, leaves: Vec::new() };
        run.leaves = (0..dims.layer_count()).map(|l| (0..dims.rows(l)).map(|r| run.leaf(l, r)).collect()).collect();
        run
    }

    /// A leaf of the trace.
    pub fn leaf(&self, layer: u16, row: u32) -> Hash {
        let roots: Vec<_> = self.exports(layer, row).iter().map(|t| tensor::tensor_root(t)).collect();
        trace::leaf(&roots)
    }

    /// What a row exports.
    pub fn exports(&self, layer: u16, row: u32) -> Vec<Vec<u8>> {
        let section = self.model.program().section(self.model.section_kind(layer).unwrap());
        section.exports().iter().map(|k| self.ops[&(layer, row)][*k].clone()).collect()
    }

    /// The whole trace.
    pub fn trace(&self) -> TraceTree {
        TraceTree::new(self.leaves.clone())
    }

    /// The list of operators of a row.
    pub fn op_roots(&self, layer: u16, row: u32) -> Vec<Hash> {
        self.ops[&(layer, row)].iter().map(|t| tensor::tensor_root(t)).collect()
    }
}

/// What a proof may need of a run at one (layer, position).
pub struct RunInputs {
    /// The run.
    pub run: Arc<Run>,
    /// Layer.
    pub layer: u16,
    /// Position.
    pub position: u32,
}

impl Inputs for RunInputs {
    fn previous(&self) -> Vec<Vec<u8>> {
        self.run.exports(self.layer - 1, self.position)
    }
    fn cached(&self, position: u32) -> Vec<Vec<u8>> {
        self.run.exports(self.layer, position)
    }
    fn weight_row(&self, matrix: u32, row: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        let m = &self.run.model;
        let mut path = m.row_tree(matrix as usize).path(0, row as u64);
        path.extend(m.weights_tree().path(0, matrix as u64));
        Some((m.weight(matrix as usize).row(row as usize).to_vec(), path))
    }
    fn table(&self, table: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        let m = &self.run.model;
        Some((m.table(table as usize).bytes.clone(), m.tables_tree().path(0, table as u64)))
    }
    fn prompt(&self) -> &[u32] {
        &self.run.prompt
    }
    fn output(&self) -> &[u32] {
        &self.run.output
    }
}
