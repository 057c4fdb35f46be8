//! What a model's matrices are multiplied by, over a text: the second moments of their inputs, for error-compensated rounding.
//!
//! The activations are the exact integers of a run of the model, so the moments are the same on every machine.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use sworn_isa::{Opcode, OperandKind, Section, SectionKind};
use sworn_model::gptq::{Compensation, Moments};
use sworn_model::quantise::pow2;

use crate::tensor::OpTensor;
use crate::{Backend, Cpu, EngineError, NoExports, OpHook, Result};

/// Inputs that are summed up together.
const TOGETHER: usize = 64;

/// The operators around the matrices that read one and the same vector.
#[derive(Clone, Debug)]
struct Site {
    /// `LINEAR`s that read it.
    linears: Vec<usize>,
    /// The quantised vector.
    vector: usize,
    /// Its scale.
    scale: usize,
    /// Whose result divides it, where the vector is not itself normalised: what these matrices add to the residual stream matters in
    /// relation to the size of the stream.
    rms: Option<usize>,
}

fn sites(section: &Section) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    let last_rms = section.ops.iter().rposition(|d| d.opcode == Opcode::Rms);
    for (k, d) in section.ops.iter().enumerate().filter(|(_, d)| d.opcode == Opcode::Linear) {
        let (vector, scale) = (d.operands[0], d.operands[1]);
        if vector.kind != OperandKind::Op || scale.kind != OperandKind::Op {
            continue;
        }
        let (vector, scale) = (vector.index as usize, scale.index as usize);
        match sites.iter_mut().find(|s| (s.vector, s.scale) == (vector, scale)) {
            Some(site) => site.linears.push(k),
            None => {
                let normalised = section.ops.get(scale).is_some_and(|d| d.opcode == Opcode::NormScale);
                let rms = last_rms.filter(|_| !normalised);
                sites.push(Site { linears: vec![k], vector, scale, rms });
            }
        }
    }
    sites
}

/// The sums so far: per (layer, site) the inputs that wait, and the moments.
struct Sums {
    sites: [Vec<Site>; 3],
    ops: [usize; 3],
    layers: u16,
    of: BTreeMap<(u16, usize), (Vec<f64>, Moments)>,
}

struct Collect {
    range: Range<u16>,
    sums: Arc<Mutex<Sums>>,
    /// Outputs of the row at hand that a site needs.
    outputs: BTreeMap<usize, Vec<i64>>,
}

impl OpHook for Collect {
    fn wants(&self, layer: u16, _: u32) -> bool {
        self.range.contains(&layer)
    }

    fn after(&mut self, layer: u16, _: u32, op: usize, out: &mut OpTensor) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kind) = SectionKind::of_layer(layer, sums.layers) else { return };
        let kind = kind as usize;
        let needed = |s: &Site| s.vector == op || s.scale == op || s.rms == Some(op);
        if sums.sites[kind].iter().any(needed) {
            self.outputs.insert(op, out.values());
        }
        if op + 1 != sums.ops[kind] {
            return;
        }
        for (i, site) in sums.sites[kind].clone().iter().enumerate() {
            let (Some(vector), Some([m, e])) =
                (self.outputs.get(&site.vector), self.outputs.get(&site.scale).map(|s| &s[..]))
            else {
                continue;
            };
            let mut unit = *m as f64 * pow2(*e as i32);
            if let Some([r, k]) = site.rms.and_then(|r| self.outputs.get(&r)).map(|r| &r[..]) {
                unit /= *r as f64 * pow2(*k as i32);
            }
            let (waiting, moments) =
                sums.of.entry((layer, i)).or_insert_with(|| (Vec::new(), Moments::new(vector.len())));
            waiting.extend(vector.iter().map(|q| *q as f64 * unit));
            if waiting.len() >= TOGETHER * moments.len() {
                moments.add(waiting);
                waiting.clear();
            }
        }
        self.outputs.clear();
    }
}

/// The moments of the inputs of every matrix in layers `layers` (0 the embedding, L + 1 the head), by the matrix's number, over `sequences`
/// of tokens. Matrices that read the same vector share their moments. `progress` is told the tokens that are done.
///
/// Memory: 8 n² bytes for each vector of n elements that a matrix of these layers reads.
///
/// # Errors
/// Tokens that do not fit the model, or `progress` says that it is enough.
pub fn moments(
    cpu: &Cpu,
    sequences: &[Vec<u32>],
    layers: Range<u16>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<BTreeMap<u32, Arc<Moments>>> {
    let model = cpu.model().clone();
    let kinds = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head];
    let sections = kinds.map(|k| model.program().section(k));
    let sums = Arc::new(Mutex::new(Sums {
        sites: sections.map(sites),
        ops: sections.map(|s| s.ops.len()),
        layers: model.layers(),
        of: BTreeMap::new(),
    }));
    let hook = {
        let (sums, range) = (sums.clone(), layers.clone());
        move || {
            let collect = Collect { range: range.clone(), sums: sums.clone(), outputs: BTreeMap::new() };
            Box::new(collect) as Box<dyn OpHook>
        }
    };
    let hooked = cpu.with_hook(Arc::new(hook));
    let head_from = if layers.contains(&(model.layers() + 1)) { 0 } else { u32::MAX };
    let mut done = 0;
    for tokens in sequences {
        let capacity = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let mut session = hooked.session(capacity)?;
        for chunk in tokens.chunks(TOGETHER) {
            session.extend(chunk, head_from, &mut NoExports)?;
            done += chunk.len();
            progress(done)?;
        }
    }
    let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
    let of = std::mem::take(&mut sums.of);
    let mut result = BTreeMap::new();
    for ((layer, i), (waiting, mut moments)) in of {
        moments.add(&waiting);
        let moments = Arc::new(moments);
        let Some(kind) = SectionKind::of_layer(layer, model.layers()) else { continue };
        for linear in &sums.sites[kind as usize][i].linears {
            let matrix = sections[kind as usize].ops[*linear].operands[2].resolve(layer);
            result.insert(matrix, moments.clone());
        }
    }
    if result.is_empty() {
        return Err(EngineError::Request(
            "no matrix was multiplied: give a calibration text of some hundred words".into(),
        ));
    }
    Ok(result)
}

/// Gives every matrix of a model the compensation that a text asks for, as an importer wants it: matrix by matrix. The moments of
/// as many layers as fit into a budget of memory are taken in one run of the model.
pub struct Calibrator {
    cpu: Cpu,
    sequences: Vec<Vec<u32>>,
    budget: u64,
    /// The layer that multiplies by each matrix, and the bytes of its moments.
    layers: BTreeMap<u32, (u16, u64)>,
    moments: BTreeMap<u32, Arc<Moments>>,
}

impl Calibrator {
    /// Takes the moments over `tokens` in sequences of `window`, in at most about `budget` bytes (more if one layer needs more).
    pub fn new(cpu: Cpu, tokens: &[u32], window: usize, budget: u64) -> Self {
        let model = cpu.model();
        let mut layers = BTreeMap::new();
        for layer in 1..=model.layers() + 1 {
            let Some(kind) = SectionKind::of_layer(layer, model.layers()) else { continue };
            for d in model.program().section(kind).ops.iter().filter(|d| d.opcode == Opcode::Linear) {
                let n = d.params[0].max(0) as u64;
                layers.insert(d.operands[2].resolve(layer), (layer, 8 * n * n));
            }
        }
        let sequences = tokens.chunks(window.max(1)).map(<[u32]>::to_vec).collect();
        Calibrator { cpu, sequences, budget, layers, moments: BTreeMap::new() }
    }

    /// The compensation of `matrix`; none for one that is only looked up, or whose inputs the text does not excite enough. `progress` is told
    /// the first and last layer that are being measured and the tokens that are done.
    ///
    /// # Errors
    /// As [`moments`].
    pub fn compensation(
        &mut self,
        matrix: u32,
        progress: &mut dyn FnMut(u16, u16, usize) -> Result<()>,
    ) -> Result<Option<Compensation>> {
        let Some((layer, _)) = self.layers.get(&matrix).copied() else { return Ok(None) };
        if !self.moments.contains_key(&matrix) {
            let of =
                |layer: u16| self.layers.values().filter(|(l, _)| *l == layer).map(|(_, bytes)| bytes).sum::<u64>();
            let head = self.cpu.model().layers() + 1;
            let mut end = layer + 1;
            let mut bytes = of(layer);
            // A tied head's matrix comes first of all, by itself.
            while layer != head && end < head && bytes + of(end) <= self.budget {
                bytes += of(end);
                end += 1;
            }
            self.moments.clear();
            self.moments = moments(&self.cpu, &self.sequences, layer..end, &mut |done| progress(layer, end - 1, done))?;
        }
        Ok(self.moments.get(&matrix).and_then(|m| m.compensation()))
    }

    /// Tokens of one run.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }
}
