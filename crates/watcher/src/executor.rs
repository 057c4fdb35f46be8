//! The own recomputation, and the doubts about it.

use std::sync::{Arc, OnceLock};

use sworn_commit::witness::{Claim, Evidence, PartialTree, build};
use sworn_commit::{Hash, RunParams, TraceDims, TraceTree, tensor};
use sworn_engine::{Backend, Cpu, Simd, audit, replay};
use sworn_isa::{Opcode, SectionKind};
use sworn_model::Model;

use crate::solver::{Own, Replay, selects};

/// Elements of a disputed row that the scalar reference recomputes before the watcher believes its own replay.
const SPOT_CHECKS: u64 = 96;

/// One model, executed.
pub struct Executor {
    backend: Arc<dyn Backend>,
    cpu: Cpu,
    verified: OnceLock<Result<(), String>>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Executor({} on {})", self.backend.name(), self.backend.adapter())
    }
}

impl From<sworn_engine::Replay> for Replay {
    fn from(mut r: sworn_engine::Replay) -> Self {
        Replay { ops: std::mem::take(&mut r.ops), inputs: Box::new(r) }
    }
}

impl Executor {
    /// Audits with `backend`; replays with a `cpu` backend of its own.
    ///
    /// # Errors
    /// The system refuses threads.
    pub fn new(backend: Arc<dyn Backend>) -> sworn_engine::Result<Self> {
        let cpu = Cpu::new(backend.model().clone())?;
        Ok(Executor { backend, cpu, verified: OnceLock::new() })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.backend.model()
    }

    /// The backend that audits.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// One teacher-forced pass over a submitted result.
    ///
    /// # Errors
    /// The execution fails.
    pub fn audit(&self, prompt: &[u32], output: &[u32], run: &RunParams) -> sworn_engine::Result<(Own, Hash)> {
        let a = audit(&*self.backend, prompt, output, run, None)?;
        let root = a.trace.root;
        Ok((
            Own { trace: a.trace.tree, selected: a.selected, output: output.to_vec(), replays: Default::default() },
            root,
        ))
    }

    /// Whether this machine can be trusted with an accusation: the model's bytes are those of its id, and another executor (the
    /// cpu backend if the audit ran elsewhere, otherwise its portable code) gives the same trace.
    ///
    /// # Errors
    /// What disagrees with what.
    pub fn self_check(
        &self,
        prompt: &[u32],
        output: &[u32],
        run: &RunParams,
        own: &TraceTree,
        selected: &[u32],
    ) -> Result<Vec<String>, String> {
        self.verified.get_or_init(|| self.verify()).clone()?;
        let (second, name) = self.second();
        let again =
            audit(&second, prompt, output, run, None).map_err(|e| format!("the second execution failed: {e}"))?;
        if again.trace.tree != *own || again.selected != selected {
            let place = again.trace.tree.first_difference(own);
            let place = place.map_or("the selected tokens".to_owned(), |(l, r)| format!("layer {l}, row {r}"));
            return Err(format!("{} and {name} disagree at {place}: this machine computes wrongly", self.describe()));
        }
        Ok(vec!["model id".into(), format!("{} = {name}", self.describe())])
    }

    fn describe(&self) -> String {
        format!("{} ({})", self.backend.name(), self.backend.adapter())
    }

    fn second(&self) -> (Cpu, String) {
        if self.backend.name() != self.cpu.name() {
            return (self.cpu.clone(), format!("cpu ({})", self.cpu.adapter()));
        }
        let portable = self.cpu.with_simd(Simd::SCALAR);
        let name = format!("cpu ({})", portable.adapter());
        (portable, name)
    }

    fn verify(&self) -> Result<(), String> {
        let model = self.model();
        let id = model.verify(&mut |_| {}).map_err(|e| format!("the model's files are not what its id says: {e}"))?;
        if id == model.id() { Ok(()) } else { Err("the model's files have another id than it claims".into()) }
    }

    /// Recomputes one (layer, row) in full and has the scalar reference confirm elements of every operator.
    ///
    /// # Errors
    /// The execution fails, or the reference disagrees.
    pub fn replay(
        &self,
        prompt: &[u32],
        output: &[u32],
        run: &RunParams,
        (layer, row): (u16, u32),
        own: &TraceTree,
    ) -> Result<Replay, String> {
        let replay: Replay = replay(&self.cpu, prompt, output, run, layer, row).map_err(|e| e.to_string())?.into();
        let dims = TraceDims { layers: self.model().layers(), n_in: prompt.len() as u32, n_out: output.len() as u32 };
        self.spot_check(dims, layer, row, &replay, own)?;
        Ok(replay)
    }

    fn spot_check(
        &self,
        dims: TraceDims,
        layer: u16,
        row: u32,
        replay: &Replay,
        own: &TraceTree,
    ) -> Result<(), String> {
        let program = self.model().program();
        let kind = SectionKind::of_layer(layer, dims.layers).ok_or("a layer that the model does not have")?;
        let section = program.section(kind);
        let trees = |l: u16| PartialTree::new(own.layer(l).clone());
        let (top, rows, previous) = (PartialTree::new(own.top().clone()), trees(layer), trees(layer.saturating_sub(1)));
        let roots: Vec<Hash> = replay.ops.iter().map(|t| tensor::tensor_root(t)).collect();
        let per_op = (SPOT_CHECKS / section.ops.len().max(1) as u64).max(1);
        let mut state = u64::from(layer) << 32 | u64::from(row);
        for (op, d) in section.ops.iter().enumerate() {
            let Some(bytes) = replay.ops.get(op) else { return Err("the replay lacks an operator".into()) };
            let count = (bytes.len() / d.dtype.width()) as u64;
            let pages = PartialTree::new(tensor::tensor_tree(bytes));
            // A row of a large matrix costs a hash of the whole matrix; one of each suffices.
            let selects = selects(d.opcode);
            let checks = if selects || matches!(d.opcode, Opcode::Linear | Opcode::Embed) { 1 } else { per_op };
            for i in 0..checks.min(count) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let element = if i == 0 { count - 1 } else { (state >> 33) % count };
                let claim = Claim { layer, row, op: op as u16, element: element as u32 };
                let evidence = Evidence {
                    program,
                    dims,
                    top: &top,
                    previous_rows: &previous,
                    rows: &rows,
                    op_roots: &roots,
                    ops: &replay.ops,
                    claimed: bytes,
                    claimed_pages: &pages,
                    inputs: &*replay.inputs,
                    hint: 0,
                };
                let proof =
                    build(claim, &evidence).map_err(|e| format!("{} at layer {layer}, row {row}: {e}", d.opcode))?;
                // A token that was not selected is a lie of the node, not a fault of this machine.
                if proof.claimed != proof.computed && !selects {
                    return Err(format!(
                        "{} (operator {op} of layer {layer}, row {row}, element {element}): the executor says {}, the reference {}",
                        d.opcode, proof.claimed, proof.computed
                    ));
                }
            }
        }
        Ok(())
    }
}
