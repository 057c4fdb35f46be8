//! The `cpu` backend: threads and vector instructions, on any machine.

use std::sync::Arc;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use sworn_isa::{OperandKind, SectionKind};
use sworn_model::Model;

use crate::layer::{Executor, LayerCache, Slot};
use crate::plan::Plan;
use crate::simd::Simd;
use crate::tensor::OpTensor;
use crate::{Backend, EngineError, ExportSink, OpHook, Result, Session};

/// Positions that run together: enough to reuse every weight row, few enough to stay in the caches.
const CHUNK: usize = 64;
/// Head rows that run together; each holds a vector as long as the vocabulary.
const HEAD_CHUNK: usize = 16;

/// Makes one hook per session.
pub type HookFactory = Arc<dyn Fn() -> Box<dyn OpHook> + Send + Sync>;

/// A model ready to run on this machine's processor.
#[derive(Clone)]
pub struct Cpu {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<Model>,
    plan: Plan,
    pool: Arc<ThreadPool>,
    simd: Simd,
    hook: Option<HookFactory>,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({}, {:?})", self.adapter(), self.inner.model)
    }
}

impl Cpu {
    /// On all processors.
    ///
    /// # Errors
    /// The system refuses threads.
    pub fn new(model: Arc<Model>) -> Result<Self> {
        Self::with_threads(model, 0)
    }

    /// On `threads` threads; 0 means one per processor.
    ///
    /// # Errors
    /// The system refuses threads.
    pub fn with_threads(model: Arc<Model>, threads: usize) -> Result<Self> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("cpu-{i}")).build();
        let pool =
            pool.map_err(|e| EngineError::Device { backend: "cpu", message: format!("starting threads: {e}") })?;
        let plan = Plan::new(&model);
        Ok(Cpu { inner: Arc::new(Inner { model, plan, pool: Arc::new(pool), simd: Simd::detect(), hook: None }) })
    }

    /// The same backend with a hook after every operator that the hook wants: of every session, and of
    /// [`crate::replay`]. Positions that a hook wants run one by one with every operator's output in full.
    pub fn with_hook(&self, hook: HookFactory) -> Self {
        let Inner { model, pool, simd, .. } = &*self.inner;
        let (model, pool) = (model.clone(), pool.clone());
        Cpu { inner: Arc::new(Inner { plan: Plan::new(&model), model, pool, simd: *simd, hook: Some(hook) }) }
    }

    /// The same backend with other vector instructions.
    pub fn with_simd(&self, simd: Simd) -> Self {
        let Inner { model, pool, hook, .. } = &*self.inner;
        let (model, pool, hook) = (model.clone(), pool.clone(), hook.clone());
        Cpu { inner: Arc::new(Inner { plan: Plan::new(&model), model, pool, simd, hook }) }
    }

    pub(crate) fn executor(&self) -> Executor<'_> {
        Executor { model: &self.inner.model, plan: &self.inner.plan, simd: self.inner.simd }
    }

    pub(crate) fn pool(&self) -> &ThreadPool {
        &self.inner.pool
    }

    pub(crate) fn hook(&self) -> Option<Box<dyn OpHook>> {
        self.inner.hook.as_ref().map(|h| h())
    }

    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.inner.model.manifest().vocab;
        match tokens.iter().find(|t| **t >= vocab) {
            None => Ok(()),
            Some(token) => Err(EngineError::Token { token: *token, vocab }),
        }
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn adapter(&self) -> String {
        let threads = self.inner.pool.current_num_threads();
        let (arch, simd) = (std::env::consts::ARCH, self.inner.simd.name());
        format!("{arch} {simd}, {threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn model(&self) -> &Arc<Model> {
        &self.inner.model
    }

    fn session(&self, capacity: u32) -> Result<Box<dyn Session>> {
        let max = self.inner.model.manifest().max_positions;
        if capacity > max {
            return Err(EngineError::Capacity { wanted: u64::from(capacity), capacity: max });
        }
        let layers = self.inner.model.layers();
        let kinds = (0..=layers).filter_map(|l| SectionKind::of_layer(l, layers));
        let caches = kinds.map(|kind| LayerCache::new(self.inner.plan.section(kind), capacity)).collect();
        let (slots, hook) = (Vec::new(), self.hook());
        Ok(Box::new(CpuSession { cpu: self.clone(), capacity, len: 0, caches, slots, hook }))
    }
}

struct CpuSession {
    cpu: Cpu,
    capacity: u32,
    len: u32,
    /// Per layer 0…L.
    caches: Vec<LayerCache>,
    slots: Vec<Slot>,
    hook: Option<Box<dyn OpHook>>,
}

/// The exports of one (layer, position), encoded.
pub(crate) struct Record {
    layer: u16,
    position: u32,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Record {
    pub(crate) fn new(layer: u16, position: u32, exports: &[OpTensor]) -> Self {
        let size = exports.iter().map(|t| t.len() * t.dtype().width()).sum();
        let mut bytes = Vec::with_capacity(size);
        let mut ends = Vec::with_capacity(exports.len());
        for t in exports {
            t.view().append_bytes(&mut bytes);
            ends.push(bytes.len());
        }
        Record { layer, position, bytes, ends }
    }

    fn deliver(&self, sink: &mut dyn ExportSink) -> Result<()> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let tensors: Vec<&[u8]> = starts.zip(&self.ends).map(|(a, b)| &self.bytes[a..*b]).collect();
        sink.export(self.layer, self.position, &tensors)
    }
}

impl CpuSession {
    /// Layers 0…L for the slots, and their exports if wanted.
    fn body(&mut self, n: usize, record: bool) -> Result<Vec<Record>> {
        let exec = self.cpu.executor();
        let layers = exec.model.layers();
        let slots = &mut self.slots[..n];
        let mut records = Vec::new();
        for (layer, cache) in (0..=layers).zip(&mut self.caches) {
            let Some(kind) = SectionKind::of_layer(layer, layers) else { continue };
            let hook = self.hook.as_mut().map(|h| &mut **h as &mut dyn OpHook);
            exec.layer(layer, kind, slots, cache, hook)?;
            if record {
                let new = slots.par_iter().map(|s| Record::new(layer, s.position, s.exports()));
                match slots.len() {
                    1 => records.extend(slots.iter().map(|s| Record::new(layer, s.position, s.exports()))),
                    _ => records.par_extend(new),
                }
            }
        }
        Ok(records)
    }

    /// After an error: the caches hold the finished positions only, so the session can be used on.
    fn forget_unfinished(&mut self) {
        let (plan, layers) = (&self.cpu.inner.plan, self.cpu.inner.model.layers());
        for (layer, cache) in (0..=layers).zip(&mut self.caches) {
            if let Some(kind) = SectionKind::of_layer(layer, layers) {
                cache.truncate(plan.section(kind), self.len);
            }
        }
    }

    fn chunk(
        &mut self,
        tokens: &[u32],
        head_from: u32,
        sink: &mut dyn ExportSink,
        selected: &mut Vec<u32>,
    ) -> Result<()> {
        let n = tokens.len();
        if self.slots.len() < n {
            self.slots.resize_with(n, Slot::default);
        }
        for (i, (slot, token)) in self.slots.iter_mut().zip(tokens).enumerate() {
            slot.begin(*token, self.len + i as u32);
        }
        let cpu = self.cpu.clone();
        let (record, logits) = (sink.wants_exports(), sink.wants_logits());
        let done = cpu.pool().install(|| self.body(n, record));
        done?.iter().try_for_each(|r| r.deliver(sink))?;

        let (layer, kind) = (cpu.inner.model.layers() + 1, SectionKind::Head);
        let exec = cpu.executor();
        let section = cpu.inner.plan.section(kind);
        let select = section.exports.first().map(|op| section.ops[*op]);
        let first = (head_from.saturating_sub(self.len) as usize).min(n);
        for slots in self.slots[first..n].chunks_mut(HEAD_CHUNK) {
            let mut none = LayerCache::default();
            let hook = self.hook.as_mut().map(|h| &mut **h as &mut dyn OpHook);
            cpu.pool().install(|| exec.layer(layer, kind, slots, &mut none, hook))?;
            for slot in slots.iter() {
                let token = slot.exports().first().and_then(|t| t.get(0)).unwrap_or(0);
                selected.push(token as u32);
                if record {
                    Record::new(layer, slot.position, slot.exports()).deliver(sink)?;
                }
                let operand = select.map(|d| d.operands[0]).filter(|o| logits && o.kind == OperandKind::Op);
                if let Some(OpTensor::I32(values)) = operand.and_then(|o| slot.outputs(kind).get(o.index as usize)) {
                    sink.logits(slot.position, values)?;
                }
            }
        }
        self.len += n as u32;
        Ok(())
    }
}

impl Session for CpuSession {
    fn len(&self) -> u32 {
        self.len
    }

    fn extend(&mut self, tokens: &[u32], head_from: u32, sink: &mut dyn ExportSink) -> Result<Vec<u32>> {
        let wanted = u64::from(self.len) + tokens.len() as u64;
        if wanted > u64::from(self.capacity) {
            return Err(EngineError::Capacity { wanted, capacity: self.capacity });
        }
        self.cpu.check_tokens(tokens)?;
        let mut selected = Vec::new();
        for chunk in tokens.chunks(CHUNK) {
            let done = self.chunk(chunk, head_from, sink, &mut selected);
            if done.is_err() {
                self.forget_unfinished();
            }
            done?;
        }
        Ok(selected)
    }
}
