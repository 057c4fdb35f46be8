//! One layer over a batch of positions.

use sworn_commit::RunParams;
use sworn_isa::sampling::PENALTY_WINDOW;
use sworn_isa::{Descriptor, Opcode, Operand, OperandKind, RowFormat, SectionKind};
use sworn_model::Model;

use crate::activation::{Activation, Forms, Kernel};
use crate::attention::{Cap, Context, Query, Unit, parts};
use crate::kernels::{Input, Inputs, Mismatch, apply_into};
use crate::linear::{self, Job, Matrix, Scale};
use crate::packed::{Packed, Packs};
use crate::plan::{Attention, Linears, Plan, SectionPlan, Step};
use crate::sampling::{Chooser, Tail};
use crate::simd::Simd;
use crate::team::Team;
use crate::tensor::{OpTensor, View};
use crate::{EngineError, OpHook, Result};

/// Query heads of an attention that run together at most, and the scores of all of them: as many as a second-level cache holds
/// with what is made of them.
const ROWS: usize = 24;
const SCORES: usize = 1 << 16;

/// A position on its way through the layers.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) token: u32,
    pub(crate) position: u32,
    /// How the sequence samples, and the last tokens up to this position: for the head alone.
    run: RunParams,
    recent: Vec<u32>,
    /// As long as the vocabulary, for the choice of a token.
    tempered: Vec<i32>,
    /// Outputs of the operators, per section; kept from layer to layer so that nothing is allocated anew.
    bufs: [Vec<OpTensor>; 3],
    /// Exports of the layer before, in program order.
    prev: Vec<OpTensor>,
    /// What the `LINEAR`s at hand multiply, in the forms that they read.
    acts: Vec<Activation>,
}

impl Slot {
    pub(crate) fn begin(&mut self, token: u32, position: u32) {
        (self.token, self.position) = (token, position);
        self.prev.clear();
    }

    /// Before the head: how the sequence samples, and its tokens up to this position or on.
    pub(crate) fn sample(&mut self, run: &RunParams, tokens: &[u32]) {
        let end = tokens.len().min(self.position as usize + 1);
        self.run = *run;
        self.recent.clear();
        self.recent.extend_from_slice(&tokens[end.saturating_sub(PENALTY_WINDOW as usize)..end]);
    }

    /// Outputs of the layer that ran last in `kind`.
    pub(crate) fn outputs(&self, kind: SectionKind) -> &[OpTensor] {
        &self.bufs[kind as usize]
    }

    /// Swaps the exports of the layer before with those kept elsewhere.
    pub(crate) fn exchange(&mut self, exports: &mut Vec<OpTensor>) {
        std::mem::swap(&mut self.prev, exports);
    }

    /// Exports of the layer before, in program order.
    pub(crate) fn exports(&self) -> &[OpTensor] {
        &self.prev
    }
}

/// What a layer exported at positions 0…, for the exports that later positions read.
#[derive(Default)]
pub(crate) struct LayerCache {
    exports: Vec<Option<OpTensor>>,
}

impl LayerCache {
    /// Room for `positions` positions.
    pub(crate) fn new(section: &SectionPlan, positions: u32) -> Self {
        let exports = section.cached.iter().enumerate().map(|(e, cached)| {
            cached.then(|| {
                let mut t = OpTensor::zeros(section.export_dtype(e), 0);
                t.reserve(section.ops[section.exports[e]].count(0) as usize * positions as usize);
                t
            })
        });
        LayerCache { exports: exports.collect() }
    }

    /// Forgets everything from `positions` on.
    pub(crate) fn truncate(&mut self, section: &SectionPlan, positions: u32) {
        for (e, t) in self.exports.iter_mut().enumerate() {
            if let Some(t) = t {
                t.truncate(section.ops[section.exports[e]].count(0) as usize * positions as usize);
            }
        }
    }

    /// Export `e` at the first `positions` positions, `n` elements each.
    fn view(&self, e: u32, n: u64, positions: usize) -> Option<View<'_>> {
        self.exports.get(e as usize)?.as_ref()?.view().slice(0..n as usize * positions)
    }

    fn append(&mut self, e: usize, t: &OpTensor) {
        if let Some(Some(c)) = self.exports.get_mut(e) {
            c.append(t);
        }
    }
}

/// One sequence's part of a batch.
pub(crate) struct Lane<'a> {
    /// Consecutive positions.
    pub(crate) slots: &'a mut [Slot],
    /// Exactly the positions before the first slot.
    pub(crate) cache: &'a mut LayerCache,
    /// Watches this sequence.
    pub(crate) hook: Option<&'a mut (dyn OpHook + 'static)>,
}

/// Executes layers of one model.
#[derive(Clone, Copy)]
pub(crate) struct Executor<'a> {
    pub(crate) model: &'a Model,
    pub(crate) plan: &'a Plan,
    pub(crate) packs: &'a Packs,
    pub(crate) team: &'a Team,
    pub(crate) simd: Simd,
}

fn unsupported(e: Mismatch) -> EngineError {
    EngineError::Unsupported { backend: "cpu", reason: e.to_string() }
}

/// Where the operands of one layer at one position come from.
struct Scope<'a> {
    exec: Executor<'a>,
    layer: u16,
    token: u32,
    position: u32,
    run: &'a RunParams,
    recent: &'a [u32],
    prev: &'a [OpTensor],
    cache: Option<&'a LayerCache>,
}

impl<'a> Executor<'a> {
    /// Runs `layer` for consecutive positions; what it exports becomes [`Slot::exports`]. The cache holds exactly the positions
    /// before the first slot.
    pub(crate) fn layer(
        &self,
        layer: u16,
        kind: SectionKind,
        slots: &mut [Slot],
        cache: &mut LayerCache,
        hook: Option<&mut (dyn OpHook + 'static)>,
    ) -> Result<()> {
        self.lanes(layer, kind, &mut [Lane { slots, cache, hook }])
    }

    /// [`Self::layer`] for several sequences at once: weights are read once for all of them.
    pub(crate) fn lanes(&self, layer: u16, kind: SectionKind, lanes: &mut [Lane<'_>]) -> Result<()> {
        let section = self.plan.section(kind);
        for slot in lanes.iter_mut().flat_map(|l| l.slots.iter_mut()) {
            let bufs = &mut slot.bufs[kind as usize];
            bufs.resize_with(section.ops.len(), || OpTensor::I32(Vec::new()));
            for (buf, d) in bufs.iter_mut().zip(&section.ops) {
                if buf.dtype() != d.dtype {
                    *buf = OpTensor::zeros(d.dtype, 0);
                }
            }
        }
        match &section.steps {
            Some(steps) if lanes.iter().all(|l| l.hook.is_none()) => self.batch(layer, kind, steps, lanes)?,
            _ => lanes.iter_mut().try_for_each(|lane| self.watched(layer, kind, lane))?,
        }
        for slot in lanes.iter_mut().flat_map(|l| l.slots.iter_mut()) {
            slot.prev.resize_with(section.exports.len(), || OpTensor::I32(Vec::new()));
            for (prev, op) in slot.prev.iter_mut().zip(&section.exports) {
                std::mem::swap(prev, &mut slot.bufs[kind as usize][*op]);
            }
        }
        Ok(())
    }

    /// One sequence, the positions alone that its hook wants or that cannot run together.
    fn watched(&self, layer: u16, kind: SectionKind, lane: &mut Lane<'_>) -> Result<()> {
        let section = self.plan.section(kind);
        let Lane { slots, cache, hook } = lane;
        let mut rest = &mut **slots;
        while !rest.is_empty() {
            let wants = |s: &Slot| hook.as_ref().is_some_and(|h| h.wants(layer, s.position));
            let batch = match section.steps {
                Some(_) => rest.iter().take_while(|s| !wants(s)).count(),
                None => 0,
            };
            let (now, later) = rest.split_at_mut(batch.max(1));
            match (&section.steps, batch) {
                (Some(steps), 1..) => {
                    self.batch(layer, kind, steps, &mut [Lane { slots: now, cache, hook: None }])?;
                }
                _ => {
                    let position = now[0].position;
                    let watching = hook.as_mut().filter(|h| h.wants(layer, position));
                    self.single(layer, kind, &mut now[0], cache, watching.map(|h| &mut **h as &mut dyn OpHook))?;
                }
            }
            rest = later;
        }
        Ok(())
    }

    /// One position, every operator's output in full.
    fn single(
        &self,
        layer: u16,
        kind: SectionKind,
        slot: &mut Slot,
        cache: &mut LayerCache,
        mut hook: Option<&mut (dyn OpHook + '_)>,
    ) -> Result<()> {
        let section = self.plan.section(kind);
        let bufs = &mut slot.bufs[kind as usize];
        for (k, d) in section.ops.iter().enumerate() {
            let (before, out) = bufs.split_at_mut(k);
            let out = &mut out[0];
            let (token, position) = (slot.token, slot.position);
            let (run, recent, prev) = (&slot.run, &slot.recent[..], &slot.prev[..]);
            let scope = Scope { exec: *self, layer, token, position, run, recent, prev, cache: Some(cache) };
            scope.apply(d, before, out)?;
            if let Some(h) = &mut hook {
                h.after(layer, position, k, out);
                // A hook changes elements, not shapes.
                if out.dtype() != d.dtype || out.len() as u64 != d.count(position) {
                    return Err(EngineError::Sink(format!(
                        "a hook changed the shape of operator {k} of layer {layer}"
                    )));
                }
            }
            if let Some(e) = section.exports.iter().position(|x| *x == k) {
                cache.append(e, out);
            }
        }
        Ok(())
    }

    /// Many positions, step by step.
    fn batch(&self, layer: u16, kind: SectionKind, steps: &[Step], lanes: &mut [Lane<'_>]) -> Result<()> {
        let section = self.plan.section(kind);
        let mut appended = 0;
        let mut append = |lanes: &mut [Lane<'_>], until: usize| {
            while let Some(op) = section.exports.get(appended).filter(|op| **op < until) {
                for Lane { slots, cache, .. } in lanes.iter_mut() {
                    slots.iter().for_each(|slot| cache.append(appended, &slot.bufs[kind as usize][*op]));
                }
                appended += 1;
            }
        };
        for step in steps {
            match step {
                Step::Local(ops) => self.each_slot(lanes, |slot| {
                    let (token, position) = (slot.token, slot.position);
                    let (run, recent, prev) = (&slot.run, &slot.recent[..], &slot.prev[..]);
                    let scope = Scope { exec: *self, layer, token, position, run, recent, prev, cache: None };
                    ops.iter().try_for_each(|k| {
                        let (before, out) = slot.bufs[kind as usize].split_at_mut(*k);
                        scope.apply(&section.ops[*k], before, &mut out[0])
                    })
                })?,
                Step::Linear(group) => self.linear(layer, kind, group, lanes)?,
                Step::Choose(tail) => self.each_slot(lanes, |slot| self.choose(layer, kind, tail, slot))?,
                Step::Attend(a) => {
                    append(lanes, a.mix);
                    self.attend(layer, kind, a, lanes)?;
                }
            }
        }
        append(lanes, usize::MAX);
        Ok(())
    }

    /// Calls `work` with every slot, on the whole team; the first error in order.
    fn each_slot(&self, lanes: &mut [Lane<'_>], work: impl Fn(&mut Slot) -> Result<()> + Sync) -> Result<()> {
        if let [Lane { slots: [slot], .. }] = lanes {
            return work(slot);
        }
        let slots = lanes.iter_mut().flat_map(|l| l.slots.iter_mut());
        let mut results: Vec<Result<()>> = Vec::new();
        let slots: Vec<&mut Slot> = slots.collect();
        results.resize_with(slots.len(), || Ok(()));
        self.team.each(slots.into_iter().zip(&mut results), |(slot, result)| *result = work(slot));
        results.into_iter().collect()
    }

    /// The token that the operators after the logits select, without their outputs.
    fn choose(&self, layer: u16, kind: SectionKind, tail: &Tail, slot: &mut Slot) -> Result<()> {
        let wrong = |operand| unsupported(Mismatch { opcode: Opcode::Sample, operand });
        let table = |o: &Operand| self.plan.table(o.resolve(layer));
        let (Some(OpTensor::U16(exp)), Some(OpTensor::I32(noise))) = (table(&tail.exp), table(&tail.noise)) else {
            return Err(wrong(3));
        };
        let chooser = Chooser::new(exp, noise, tail.shift, self.simd).ok_or_else(|| wrong(3))?;
        let (before, out) = slot.bufs[kind as usize].split_at_mut(tail.sample);
        let (OpTensor::I32(logits), OpTensor::I32(out)) = (&before[tail.logits], &mut out[0]) else {
            return Err(wrong(0));
        };
        let token = chooser.choose(logits, &slot.run, slot.position, &slot.recent, &mut slot.tempered);
        out.clear();
        out.push(token as i32);
        Ok(())
    }

    fn matrix(&self, layer: u16, d: &Descriptor, operand: usize) -> Result<Matrix<'a>> {
        let w = self.model.operand_weight(&d.operands[operand], layer);
        let format = RowFormat::from_code(d.params[3]);
        let pair = d.params[1].max(0) as usize;
        format
            .and_then(|format| Matrix::with_format(w.bytes, w.rows, w.cols, w.scales, pair, format))
            .ok_or_else(|| unsupported(Mismatch { opcode: d.opcode, operand }))
    }

    /// The matrix rearranged, where there are instructions for that.
    fn packed(&self, layer: u16, d: &Descriptor, operand: usize, m: &Matrix<'_>) -> Option<&'a Packed> {
        let number = Model::resolve(&d.operands[operand], layer);
        if !self.simd.has_blocks() {
            return None;
        }
        // The copy is what is read from now on.
        self.packs.get(number, m, self.team, self.simd, || self.model.release_weight(number))
    }

    fn linear(&self, layer: u16, kind: SectionKind, group: &Linears, lanes: &mut [Lane<'_>]) -> Result<()> {
        let section = self.plan.section(kind);
        let first = group.ops[0].0;
        let batch = lanes.iter().map(|l| l.slots.len()).sum();
        let mut jobs = Vec::with_capacity(group.ops.len());
        let mut forms = vec![Forms::default(); group.sources.len()];
        for (k, source) in &group.ops {
            let d = &section.ops[*k];
            let matrix = self.matrix(layer, d, 2)?;
            if matrix.rows() as u64 != d.count(0) || Some(matrix.columns() as u64) != d.operand_elements(0, 0) {
                return Err(unsupported(Mismatch { opcode: d.opcode, operand: 2 }));
            }
            let packed = self.packed(layer, d, 2, &matrix);
            forms[*source].add(matrix.format(), Kernel::of(packed.is_some(), batch));
            let [acts, scales, outs] = [batch; 3];
            jobs.push(Job {
                matrix,
                packed,
                acts: Vec::with_capacity(acts),
                scales: Vec::with_capacity(scales),
                outs: Vec::with_capacity(outs),
            });
        }
        self.each_slot(lanes, |slot| {
            slot.acts.resize_with(group.sources.len().max(slot.acts.len()), Activation::default);
            for ((act, source), forms) in slot.acts.iter_mut().zip(&group.sources).zip(&forms) {
                let t = slot.bufs[kind as usize][source.op].view();
                let set = self.simd.run(|| act.set(t, source.columns, *forms));
                set.ok_or_else(|| unsupported(Mismatch { opcode: Opcode::Linear, operand: 0 }))?;
            }
            Ok(())
        })?;
        for slot in lanes.iter_mut().flat_map(|l| l.slots.iter_mut()) {
            let Slot { bufs, acts, .. } = slot;
            let (before, outs) = bufs[kind as usize].split_at_mut(first);
            for ((job, (k, source)), out) in jobs.iter_mut().zip(&group.ops).zip(outs) {
                let d = &section.ops[*k];
                let wrong = |operand| unsupported(Mismatch { opcode: d.opcode, operand });
                let scale = match before.get(d.operands[1].index as usize) {
                    Some(OpTensor::I32(s)) if s.len() >= 2 => &s[s.len() - 2..],
                    _ => return Err(wrong(1)),
                };
                let OpTensor::I32(out) = out else { return Err(wrong(0)) };
                out.resize(job.matrix.rows(), 0);
                job.acts.push(&acts[*source]);
                job.scales.push(Scale { m: scale[0] as u32, e: scale[1] });
                job.outs.push(out);
            }
        }
        linear::run(jobs, self.team, self.simd);
        Ok(())
    }

    fn attend(&self, layer: u16, kind: SectionKind, a: &Attention, lanes: &mut [Lane<'_>]) -> Result<()> {
        let section = self.plan.section(kind);
        let (scores, exp, mix) = (&section.ops[a.scores], &section.ops[a.exp], &section.ops[a.mix]);
        let shared = scores.params[1].max(1) as usize;
        let heads = scores.outer as usize;
        let kv = heads / shared;
        let (key_width, value_width) = (scores.params[0].max(1) as usize, mix.params[0].max(1) as usize);
        let wrong = |d: &Descriptor, operand| unsupported(Mismatch { opcode: d.opcode, operand });
        let Some(OpTensor::U16(table)) = self.plan.table(exp.operands[2].resolve(layer)) else {
            return Err(wrong(exp, 2));
        };
        let cap = a.cap.map(|k| {
            let d = &section.ops[k];
            match self.plan.table(d.operands[1].resolve(layer)) {
                Some(OpTensor::U16(table)) => {
                    Ok(Cap { bound: d.params[0] as u32, m: d.params[1] as u32, sh: d.params[2], table })
                }
                _ => Err(wrong(d, 1)),
            }
        });
        let window = a.window.map(|k| {
            let d = &section.ops[k];
            match self.plan.table(d.operands[1].resolve(layer)) {
                Some(OpTensor::I32(width)) if !width.is_empty() => Ok(width[0].max(0) as usize),
                _ => Err(wrong(d, 1)),
            }
        });
        let (cap, window) = (cap.transpose()?, window.transpose()?);
        let batch: usize = lanes.iter().map(|l| l.slots.len()).sum();
        // Splitting by single heads balances better, but where keys are rearranged sharing them between heads is far cheaper.
        let threads = self.team.threads();
        let single = threads > 1 && batch < 2 * threads && !self.simd.has_blocks();
        let together = if single { 1 } else { shared };
        let mut units = Vec::with_capacity(batch * heads / together);
        for Lane { slots, cache, .. } in lanes.iter_mut() {
            let longest = slots.last().map_or(1, |s| s.position as usize + 1);
            let rows = (SCORES / longest).clamp(1, ROWS);
            // Enough units that threads finish together.
            let fair = (slots.len() * kv).div_ceil(4 * threads);
            for slots in slots.chunks_mut((rows / together).clamp(1, fair.max(1))) {
                let n = slots.last().map_or(1, |s| s.position as usize + 1);
                let cached = |d: &Descriptor, k: usize| {
                    let elements = d.operand_elements(k, 0);
                    elements.and_then(|e| cache.view(d.operands[k].index, e, n)).ok_or_else(|| wrong(d, k))
                };
                let View::I8(keys) = cached(scores, 2)? else { return Err(wrong(scores, 2)) };
                let View::I32(key_scales) = cached(scores, 3)? else { return Err(wrong(scores, 3)) };
                let View::I16(values) = cached(mix, 1)? else { return Err(wrong(mix, 1)) };
                let context =
                    Context { keys, key_scales, values, table, cap, window, kv, shared, key_width, value_width };
                let mut queries = Vec::with_capacity(slots.len());
                for slot in slots {
                    let (before, out) = slot.bufs[kind as usize].split_at_mut(a.mix);
                    let (OpTensor::I8(q), OpTensor::I32(scales)) =
                        (&before[scores.operands[0].index as usize], &before[scores.operands[1].index as usize])
                    else {
                        return Err(wrong(scores, 0));
                    };
                    let OpTensor::I32(out) = &mut out[0] else { return Err(wrong(mix, 0)) };
                    out.resize(mix.inner as usize, 0);
                    queries.push(Query { position: slot.position, q, scales, out });
                }
                if queries.len() == 1 && batch < 2 * threads && parts::pays(n, window, self.team) {
                    queries.into_iter().for_each(|q| parts::attend(context, q, self.team, self.simd));
                    continue;
                }
                units.extend(Unit::split(context, queries.into_iter(), together));
            }
        }
        self.team.each(units, |unit| unit.run(self.simd));
        Ok(())
    }
}

impl Scope<'_> {
    fn apply(&self, d: &Descriptor, before: &[OpTensor], out: &mut OpTensor) -> Result<()> {
        let mut inputs = [Input::None; 4];
        for (k, input) in inputs.iter_mut().enumerate() {
            if d.operands[k].kind != OperandKind::None {
                *input =
                    self.input(d, k, before).ok_or_else(|| unsupported(Mismatch { opcode: d.opcode, operand: k }))?;
            }
        }
        apply_into(&Inputs { d, t: self.position, inputs: &inputs, run: self.run }, self.exec.simd, out)
            .map_err(unsupported)
    }

    fn input<'s>(&'s self, d: &Descriptor, k: usize, before: &'s [OpTensor]) -> Option<Input<'s>> {
        let o = &d.operands[k];
        let n = d.operand_elements(k, self.position).unwrap_or(0) as usize;
        // A tail operand is the last n elements, whether all slabs of the reduction are there or only the last.
        let last = |t: &'s OpTensor| {
            let v = t.view();
            if o.tail { v.slice(v.len().checked_sub(n)?..v.len()) } else { Some(v) }
        };
        Some(match o.kind {
            OperandKind::None => Input::None,
            OperandKind::Op => Input::Tensor(last(before.get(o.index as usize)?)?),
            OperandKind::Prev => {
                let at = self.prev.len().checked_sub(1 + o.index as usize)?;
                Input::Tensor(self.prev[at].view())
            }
            OperandKind::Table => {
                let v = self.exec.plan.table(o.resolve(self.layer))?.view();
                Input::Tensor(v.slice(0..n.min(v.len()))?)
            }
            OperandKind::Cache => Input::Cache(self.cache?.view(o.index, n as u64, self.position as usize + 1)?),
            OperandKind::Weight => Input::Matrix(self.exec.matrix(self.layer, d, k).ok()?),
            OperandKind::Token => match d.opcode {
                // The token that follows is not known yet where it is selected; the kernel does not need it.
                Opcode::Select | Opcode::Sample => Input::None,
                Opcode::Temper => Input::Tokens(self.recent),
                _ => Input::Token(self.token),
            },
        })
    }
}
