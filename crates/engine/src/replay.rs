//! One (layer, row) of a known run, with every operator's output and everything it was computed from.
//!
//! Only tokens need to be kept of a run: this recomputes the rest, layer by layer, holding the hidden states of all positions
//! and the cache of the layer at hand.

use std::sync::Arc;

use rayon::prelude::*;
use sworn_commit::witness::Inputs;
use sworn_commit::{Hash, RunParams, TraceDims, tensor};
use sworn_isa::SectionKind;
use sworn_model::Model;

use crate::generate::forced;
use crate::layer::{LayerCache, Slot};
use crate::tensor::OpTensor;
use crate::{Backend, Cpu, EngineError, OpHook, Result};

/// Positions that run together.
const CHUNK: usize = 64;

/// What [`replay`] found.
pub struct Replay {
    /// The layer.
    pub layer: u16,
    /// The row of the layer.
    pub row: u32,
    /// The row's position.
    pub position: u32,
    /// Every operator's output, in program order, big-endian as committed.
    pub ops: Vec<Vec<u8>>,
    model: Arc<Model>,
    previous: Vec<Vec<u8>>,
    cached: Vec<Vec<Vec<u8>>>,
    prompt: Vec<u32>,
    output: Vec<u32>,
    run: RunParams,
}

impl Replay {
    /// Roots of the operators' outputs, in program order.
    pub fn op_roots(&self) -> Vec<Hash> {
        self.ops.par_iter().map(|t| tensor::tensor_root(t)).collect()
    }
}

/// Keeps the outputs of one (layer, position), after the backend's own hook.
struct Capture {
    layer: u16,
    position: u32,
    ops: Vec<Vec<u8>>,
    inner: Option<Box<dyn OpHook>>,
}

impl OpHook for Capture {
    fn wants(&self, layer: u16, position: u32) -> bool {
        (layer, position) == (self.layer, self.position)
            || self.inner.as_ref().is_some_and(|h| h.wants(layer, position))
    }

    fn after(&mut self, layer: u16, position: u32, op: usize, out: &mut OpTensor) {
        if let Some(h) = self.inner.as_mut().filter(|h| h.wants(layer, position)) {
            h.after(layer, position, op, out);
        }
        if (layer, position) == (self.layer, self.position) {
            self.ops.push(out.bytes());
        }
    }
}

/// Recomputes (layer, row) of the run that gave `output` for `prompt`, sampled as `run` says, by a teacher-forced pass up to that layer. A backend with a
/// hook replays what it would have committed to, tampered elements included.
///
/// # Errors
/// A row that the run does not have, or tokens that do not fit the model.
pub fn replay(cpu: &Cpu, prompt: &[u32], output: &[u32], run: &RunParams, layer: u16, row: u32) -> Result<Replay> {
    let tokens = forced(prompt, output)?;
    cpu.check_run(run)?;
    cpu.check_tokens(&tokens)?;
    let model = cpu.model().clone();
    let max = model.manifest().max_positions;
    if tokens.len() as u64 > u64::from(max) {
        return Err(EngineError::Capacity { wanted: tokens.len() as u64, capacity: max });
    }
    let dims = TraceDims { layers: model.layers(), n_in: prompt.len() as u32, n_out: output.len() as u32 };
    if row >= dims.rows(layer) {
        return Err(EngineError::Request(format!(
            "the run has no row {row} in layer {layer}: it has {} there",
            dims.rows(layer)
        )));
    }
    let position = dims.position(layer, row);
    let mut capture = Capture { layer, position, ops: Vec::new(), inner: cpu.hook() };
    let (previous, cached) = pass(cpu, &tokens[..=position as usize], run, layer, &mut capture)?;
    let (ops, prompt, output) = (capture.ops, prompt.to_vec(), output.to_vec());
    Ok(Replay { layer, row, position, ops, model, previous, cached, prompt, output, run: *run })
}

/// Exports at one position, encoded.
type Exports = Vec<Vec<u8>>;

/// Runs layers 0…`target` for `tokens`; returns the previous layer's exports at the last position and the target's at all before.
fn pass(
    cpu: &Cpu,
    tokens: &[u32],
    run: &RunParams,
    target: u16,
    capture: &mut Capture,
) -> Result<(Exports, Vec<Exports>)> {
    let exec = cpu.executor();
    let layers = exec.model.layers();
    let mut slots: Vec<Slot> = Vec::new();
    slots.resize_with(tokens.len().min(CHUNK), Slot::default);
    let mut states: Vec<Vec<OpTensor>> = vec![Vec::new(); tokens.len()];
    let encode = |exports: &[OpTensor]| exports.iter().map(OpTensor::bytes).collect::<Exports>();
    for layer in 0..target {
        let Some(kind) = SectionKind::of_layer(layer, layers) else { continue };
        let mut cache = LayerCache::new(exec.plan.section(kind), tokens.len() as u32);
        for (c, states) in states.chunks_mut(CHUNK).enumerate() {
            let slots = load(&mut slots, tokens, c * CHUNK, states);
            exec.layer(layer, kind, slots, &mut cache, Some(capture))?;
            slots.iter_mut().zip(states).for_each(|(slot, state)| slot.exchange(state));
        }
    }
    let previous = states.last().map(|s| encode(s)).unwrap_or_default();
    let Some(kind) = SectionKind::of_layer(target, layers) else { return Ok((previous, Vec::new())) };
    let mut cache = LayerCache::new(exec.plan.section(kind), tokens.len() as u32);
    let mut cached = Vec::new();
    // A head row depends on its own position only.
    let first = if kind == SectionKind::Head { tokens.len() - 1 } else { 0 };
    for (c, states) in states[first..].chunks_mut(CHUNK).enumerate() {
        let slots = load(&mut slots, tokens, first + c * CHUNK, states);
        if kind == SectionKind::Head {
            slots.iter_mut().for_each(|slot| slot.sample(run, tokens));
        }
        exec.layer(target, kind, slots, &mut cache, Some(capture))?;
        if kind != SectionKind::Head {
            cached.extend(slots.iter().map(|s| encode(s.exports())));
        }
    }
    cached.truncate(tokens.len() - 1);
    Ok((previous, cached))
}

/// Puts `states`, which begin at position `first`, into slots.
fn load<'s>(slots: &'s mut [Slot], tokens: &[u32], first: usize, states: &mut [Vec<OpTensor>]) -> &'s mut [Slot] {
    let slots = &mut slots[..states.len()];
    for (i, (slot, state)) in slots.iter_mut().zip(states).enumerate() {
        slot.begin(tokens[first + i], (first + i) as u32);
        slot.exchange(state);
    }
    slots
}

impl Inputs for Replay {
    fn previous(&self) -> Vec<Vec<u8>> {
        self.previous.clone()
    }

    fn cached(&self, position: u32) -> Vec<Vec<u8>> {
        self.cached.get(position as usize).cloned().unwrap_or_default()
    }

    fn weight_row(&self, matrix: u32, row: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        let entry = self.model.index().weights.get(matrix as usize)?;
        if row >= entry.rows {
            return None;
        }
        let mut path = self.model.row_tree(matrix as usize).path(0, u64::from(row));
        path.extend(self.model.weights_tree().path(0, u64::from(matrix)));
        Some((self.model.weight(matrix as usize).row(row as usize).to_vec(), path))
    }

    fn table(&self, table: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        if table as usize >= self.model.index().tables.len() {
            return None;
        }
        Some((self.model.table(table as usize).bytes.clone(), self.model.tables_tree().path(0, u64::from(table))))
    }

    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn output(&self) -> &[u32] {
        &self.output
    }

    fn run(&self) -> RunParams {
        self.run
    }
}
