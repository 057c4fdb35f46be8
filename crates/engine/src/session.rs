//! Sessions of the `cpu` backend, alone or several together.

use std::any::Any;

use sworn_commit::{Hash, RunParams};
use sworn_isa::SectionKind;

use crate::layer::{Lane, LayerCache, Slot};
use crate::tensor::OpTensor;
use crate::trace::{ROWS, Rows};
use crate::{Cpu, EngineError, ExportSink, OpHook, Result, Session, Work};

/// Positions that run together: enough to reuse every weight row, few enough to stay in the caches.
const CHUNK: usize = 128;
/// Head rows that run together; each holds a vector as long as the vocabulary.
const HEAD_CHUNK: usize = 16;
/// Positions whose exports are encoded and hashed in one go: few enough to stay in a cache, enough to fill the hash function's
/// lanes. A session with fewer positions in a pass gathers its layers' exports and has them hashed at the end.
const HASH_CHUNK: usize = 8;

pub(crate) struct CpuSession {
    cpu: Cpu,
    capacity: u32,
    len: u32,
    /// Per layer 0…L.
    caches: Vec<LayerCache>,
    slots: Vec<Slot>,
    /// Exports that wait for the end of the pass to be hashed.
    rows: Rows,
    hook: Option<Box<dyn OpHook>>,
    run: RunParams,
    /// All tokens so far.
    tokens: Vec<u32>,
}

/// The exports of one (layer, position), encoded.
#[derive(Default)]
struct Record {
    layer: u16,
    position: u32,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Record {
    fn set(&mut self, layer: u16, position: u32, exports: &[OpTensor]) {
        (self.layer, self.position) = (layer, position);
        self.bytes.clear();
        self.ends.clear();
        self.bytes.reserve(exports.iter().map(|t| t.len() * t.dtype().width()).sum());
        for t in exports {
            t.view().append_bytes(&mut self.bytes);
            self.ends.push(self.bytes.len());
        }
    }

    fn deliver(&self, sink: &mut dyn ExportSink) -> Result<()> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let tensors: Vec<&[u8]> = starts.zip(&self.ends).map(|(a, b)| &self.bytes[a..*b]).collect();
        sink.export(self.layer, self.position, &tensors)
    }
}

impl CpuSession {
    pub(crate) fn new(cpu: &Cpu, capacity: u32) -> Self {
        let exec = cpu.executor();
        let layers = exec.model.layers();
        let kinds = (0..=layers).filter_map(|l| SectionKind::of_layer(l, layers));
        let caches = kinds.map(|kind| LayerCache::new(exec.plan.section(kind), capacity)).collect();
        CpuSession {
            cpu: cpu.clone(),
            capacity,
            len: 0,
            caches,
            slots: Vec::new(),
            rows: Rows::default(),
            hook: cpu.hook(),
            run: RunParams::default(),
            tokens: Vec::new(),
        }
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let wanted = u64::from(self.len) + tokens.len() as u64;
        if wanted > u64::from(self.capacity) {
            return Err(EngineError::Capacity { wanted, capacity: self.capacity });
        }
        self.cpu.check_tokens(tokens)
    }

    /// Everything that the caches hold beyond the finished positions is forgotten, so that the session can be used on.
    fn forget_unfinished(&mut self) {
        let exec = self.cpu.executor();
        let layers = exec.model.layers();
        for (layer, cache) in (0..=layers).zip(&mut self.caches) {
            if let Some(kind) = SectionKind::of_layer(layer, layers) {
                cache.truncate(exec.plan.section(kind), self.len);
            }
        }
    }
}

impl Session for CpuSession {
    fn len(&self) -> u32 {
        self.len
    }

    fn set_run(&mut self, run: RunParams) -> Result<()> {
        self.cpu.check_run(&run)?;
        self.run = run;
        Ok(())
    }

    fn extend(&mut self, tokens: &[u32], head_from: u32, sink: &mut dyn ExportSink) -> Result<Vec<u32>> {
        self.check(tokens)?;
        let cpu = self.cpu.clone();
        let mut entry = Entry::new(self, tokens, head_from, sink);
        while entry.begin(CHUNK) > 0 {
            let done = pass(&cpu, &mut [&mut entry]);
            entry.fail(done.err());
        }
        entry.finish()
    }

    fn truncate(&mut self, len: u32) -> Result<()> {
        self.len = self.len.min(len);
        self.forget_unfinished();
        Ok(())
    }

    fn as_any_mut(&mut self) -> Option<&mut dyn Any> {
        Some(self)
    }
}

/// One session's part of a run.
struct Entry<'a> {
    session: &'a mut CpuSession,
    /// Still to be executed.
    tokens: &'a [u32],
    head_from: u32,
    sink: &'a mut dyn ExportSink,
    /// Positions of this pass; the first slots hold them.
    now: usize,
    records: Vec<Record>,
    /// Of layers 0…L at the positions of this pass, layer by layer, if the sink takes leaves.
    leaves: Vec<Hash>,
    selected: Vec<u32>,
    error: Option<EngineError>,
}

impl<'a> Entry<'a> {
    fn new(session: &'a mut CpuSession, tokens: &'a [u32], head_from: u32, sink: &'a mut dyn ExportSink) -> Self {
        let (records, leaves, selected) = (Vec::new(), Vec::new(), Vec::new());
        Entry { session, tokens, head_from, sink, now: 0, records, leaves, selected, error: None }
    }

    /// Takes up to `most` positions for the next pass; how many it took.
    fn begin(&mut self, most: usize) -> usize {
        let CpuSession { slots, len, run, tokens, .. } = &mut *self.session;
        let n = if self.error.is_some() { 0 } else { most.min(self.tokens.len()) };
        let (now, later) = self.tokens.split_at(n);
        if slots.len() < n {
            slots.resize_with(n, Slot::default);
        }
        tokens.truncate(*len as usize);
        tokens.extend_from_slice(now);
        for (i, (slot, token)) in slots.iter_mut().zip(now).enumerate() {
            slot.begin(*token, *len + i as u32);
            if slot.position >= self.head_from {
                slot.sample(run, tokens);
            }
        }
        (self.tokens, self.now) = (later, n);
        n
    }

    /// Slots of this pass whose head is wanted.
    fn heads(&mut self) -> &mut [Slot] {
        let CpuSession { slots, len, .. } = &mut *self.session;
        let first = (self.head_from.saturating_sub(*len) as usize).min(self.now);
        &mut slots[first..self.now]
    }

    /// After a pass: its positions are finished, or with an error forgotten.
    fn fail(&mut self, error: Option<EngineError>) {
        self.error = self.error.take().or(error);
        if self.error.is_some() {
            self.session.forget_unfinished();
        } else {
            self.session.len += self.now as u32;
        }
        self.now = 0;
    }

    fn finish(self) -> Result<Vec<u32>> {
        match self.error {
            None => Ok(self.selected),
            Some(e) => Err(e),
        }
    }

    fn deliver_leaves(&mut self) -> Result<()> {
        for (layer, leaves) in (0..).zip(self.leaves.chunks(self.now.max(1))) {
            for (slot, leaf) in self.session.slots.iter().zip(leaves) {
                self.sink.leaf(layer, slot.position, *leaf)?;
            }
        }
        Ok(())
    }

    /// Runs `work` unless something failed before.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) {
        if self.error.is_none() {
            self.error = work(self).err();
        }
    }
}

/// All layers for the positions that the entries took. An error of one entry's sink is kept in the entry; the error returned
/// concerns all.
fn pass(cpu: &Cpu, entries: &mut [&mut Entry<'_>]) -> Result<()> {
    let exec = cpu.executor();
    let layers = exec.model.layers();
    for layer in 0..=layers {
        let Some(kind) = SectionKind::of_layer(layer, layers) else { continue };
        let lanes = entries.iter_mut().map(|e| {
            let CpuSession { caches, slots, hook, .. } = &mut *e.session;
            let hook = hook.as_mut().map(|h| &mut **h);
            Lane { slots: &mut slots[..e.now], cache: &mut caches[layer as usize], hook }
        });
        exec.lanes(layer, kind, &mut lanes.collect::<Vec<_>>())?;
        keep(cpu, layer, entries);
    }
    hash_gathered(cpu, entries);
    for e in entries.iter_mut().filter(|e| e.sink.wants_exports()) {
        let n = (layers as usize + 1) * e.now;
        e.attempt(|e| match e.sink.wants_leaves() {
            true => e.deliver_leaves(),
            false => e.records[..n].iter().try_for_each(|r| r.deliver(e.sink)),
        });
    }
    let mut todo: Vec<&mut Entry<'_>> = entries.iter_mut().map(|e| &mut **e).filter(|e| e.error.is_none()).collect();
    let mut firsts = vec![0; todo.len()];
    loop {
        // As many head rows as run together, from one entry after another.
        let mut room = HEAD_CHUNK;
        let mut lanes = Vec::new();
        let mut none: Vec<LayerCache> = Vec::new();
        none.resize_with(todo.len(), LayerCache::default);
        let mut taken = Vec::new();
        for (i, ((e, first), cache)) in todo.iter_mut().zip(&mut firsts).zip(&mut none).enumerate() {
            let n = room.min(e.heads().len() - *first);
            if n > 0 && e.error.is_none() {
                taken.push((i, *first, n));
                let range = *first..*first + n;
                (*first, room) = (*first + n, room - n);
                let e = &mut **e;
                let from = (e.head_from.saturating_sub(e.session.len) as usize).min(e.now);
                let CpuSession { slots, hook, .. } = &mut *e.session;
                let hook = hook.as_mut().map(|h| &mut **h);
                lanes.push(Lane { slots: &mut slots[from..e.now][range], cache, hook });
            }
        }
        if lanes.is_empty() {
            return Ok(());
        }
        exec.lanes(layers + 1, SectionKind::Head, &mut lanes)?;
        drop(lanes);
        for (i, first, n) in taken {
            todo[i].attempt(|e| deliver_heads(cpu, e, first, n));
        }
    }
}

/// Takes what the layer that ran last exported: the leaves, or what is needed for them, or the tensors encoded.
fn keep(cpu: &Cpu, layer: u16, entries: &mut [&mut Entry<'_>]) {
    let (mut pairs, mut chunks) = (Vec::new(), Vec::new());
    for e in entries.iter_mut().filter(|e| e.sink.wants_exports()) {
        let CpuSession { slots, rows, .. } = &mut *e.session;
        let slots = &slots[..e.now];
        let done = layer as usize * e.now;
        if !e.sink.wants_leaves() {
            e.records.resize_with(e.records.len().max(done + e.now), Record::default);
            pairs.extend(slots.iter().zip(&mut e.records[done..]));
            continue;
        }
        if layer == 0 {
            rows.clear();
            e.leaves.clear();
        }
        e.leaves.resize(done + e.now, [0; 32]);
        if e.now < HASH_CHUNK {
            slots.iter().for_each(|slot| rows.push(slot.exports()));
        } else {
            chunks.extend(slots.chunks(HASH_CHUNK).zip(e.leaves[done..].chunks_mut(HASH_CHUNK)));
        }
    }
    let team = cpu.executor().team;
    team.each(pairs, |(slot, record)| record.set(layer, slot.position, slot.exports()));
    team.each(chunks, |(slots, leaves)| {
        let mut rows = Rows::default();
        slots.iter().for_each(|slot| rows.push(slot.exports()));
        rows.hash(0, leaves);
    });
}

/// Hashes what [`keep`] gathered.
fn hash_gathered(cpu: &Cpu, entries: &mut [&mut Entry<'_>]) {
    let team = cpu.executor().team;
    let mut parts = Vec::new();
    for e in entries.iter_mut().filter(|e| e.sink.wants_exports() && e.sink.wants_leaves() && e.now < HASH_CHUNK) {
        let rows = &e.session.rows;
        let each = rows.len().div_ceil(team.threads()).max(ROWS);
        parts.extend(e.leaves.chunks_mut(each).enumerate().map(|(i, leaves)| (rows, i * each, leaves)));
    }
    team.each(parts, |(rows, first, leaves)| rows.hash(first, leaves));
}

/// The selected tokens of finished head rows, and to the sink what it wants of them.
fn deliver_heads(cpu: &Cpu, e: &mut Entry<'_>, first: usize, n: usize) -> Result<()> {
    let exec = cpu.executor();
    let (layer, kind) = (exec.model.layers() + 1, SectionKind::Head);
    let section = exec.plan.section(kind);
    let (record, logits) = (e.sink.wants_exports(), e.sink.wants_logits());
    let operator = section.logits.filter(|_| logits);
    let from = (e.head_from.saturating_sub(e.session.len) as usize).min(e.now) + first;
    for slot in &e.session.slots[from..from + n] {
        let token = slot.exports().first().and_then(|t| t.get(0)).unwrap_or(0);
        e.selected.push(token as u32);
        if record {
            let mut r = Record::default();
            r.set(layer, slot.position, slot.exports());
            r.deliver(e.sink)?;
        }
        if let Some(OpTensor::I32(values)) = operator.and_then(|k| slot.outputs(kind).get(k)) {
            e.sink.logits(slot.position, values)?;
        }
    }
    Ok(())
}

/// [`crate::Backend::extend_many`]: every pass takes some positions of each session, so that one reading of the weights
/// serves them all.
pub(crate) fn extend_together(cpu: &Cpu, work: &mut [Work<'_>]) -> Vec<Result<Vec<u32>>> {
    let mut results: Vec<Option<Result<Vec<u32>>>> = work.iter().map(|_| None).collect();
    let mut entries = Vec::new();
    for (result, w) in results.iter_mut().zip(work) {
        let own = w.session.as_any_mut().and_then(|s| s.downcast_mut::<CpuSession>());
        if own.is_none_or(|s| s.hook.is_some() || !s.cpu.same(cpu)) {
            *result = Some(w.session.extend(w.tokens, w.head_from, &mut *w.sink));
            continue;
        }
        let Some(session) = w.session.as_any_mut().and_then(|s| s.downcast_mut::<CpuSession>()) else { continue };
        match session.check(w.tokens) {
            Ok(()) => entries.push((result, Entry::new(session, w.tokens, w.head_from, &mut *w.sink))),
            Err(e) => *result = Some(Err(e)),
        }
    }
    loop {
        // Short pieces first: what they leave of the pass goes to the long ones.
        let mut order: Vec<&mut Entry<'_>> =
            entries.iter_mut().map(|(_, e)| e).filter(|e| e.error.is_none() && !e.tokens.is_empty()).collect();
        order.sort_by_key(|e| e.tokens.len());
        let (mut room, mut waiting) = (CHUNK.max(order.len()), order.len());
        for e in &mut order {
            room -= e.begin(room / waiting.max(1));
            waiting -= 1;
        }
        if order.is_empty() {
            break;
        }
        // Without hooks only a program that cannot be executed fails here, and it fails for all.
        let failed = pass(cpu, &mut order).err().map(|e| e.to_string());
        for e in order {
            e.fail(failed.clone().map(|reason| EngineError::Unsupported { backend: "cpu", reason }));
        }
    }
    for (result, entry) in entries {
        *result = Some(entry.finish());
    }
    results.into_iter().flatten().collect()
}
