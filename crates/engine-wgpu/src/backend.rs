//! The [`Backend`] of this crate.
//!
//! All device work of a backend happens on one thread of its own: the runtime keeps a queue per calling thread, and one
//! queue orders everything. Sessions live there; what a caller holds are their numbers.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use sworn_commit::RunParams;
use sworn_engine::{Backend, EngineError, ExportSink, Result, Session};
use sworn_model::Model;

use crate::GpuError;
use crate::adapter::{Adapter, Selection};
use crate::gpu::Gpu;
use crate::loaded::Loaded;
use crate::sequence::{Batch, Exports, Sequence, Wanted};

/// What errors call this backend.
const NAME: &str = "wgpu";

impl From<GpuError> for EngineError {
    fn from(e: GpuError) -> Self {
        match e {
            GpuError::Unsupported(reason) => EngineError::Unsupported { backend: NAME, reason },
            e => EngineError::Device { backend: NAME, message: e.to_string() },
        }
    }
}

/// A model ready to run on a GPU, or on a software adapter.
#[derive(Clone)]
pub struct WgpuBackend {
    model: Arc<Model>,
    adapter: &'static Adapter,
    worker: Worker,
}

impl WgpuBackend {
    /// Opens an adapter and uploads the model.
    ///
    /// # Errors
    /// There is no such adapter, it fails, or it cannot hold the model.
    pub fn new(model: Arc<Model>, selection: &Selection) -> Result<Self> {
        let (own, selection) = (model.clone(), selection.clone());
        let (worker, adapter) = Worker::start(move || {
            let gpu = Gpu::open(&selection)?;
            let adapter = gpu.adapter();
            tracing::debug!(%adapter, "uploading the model");
            Ok((State { loaded: Loaded::new(gpu, own)?, sequences: HashMap::new(), next: 0 }, adapter))
        })?;
        Ok(WgpuBackend { model, adapter, worker })
    }

    /// The adapter in use.
    pub fn device(&self) -> &'static Adapter {
        self.adapter
    }
}

impl std::fmt::Debug for WgpuBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WgpuBackend({}, {:?})", self.adapter, self.model)
    }
}

impl Backend for WgpuBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn adapter(&self) -> String {
        self.adapter.name.clone()
    }

    fn model(&self) -> &Arc<Model> {
        &self.model
    }

    fn session(&self, capacity: u32) -> Result<Box<dyn Session>> {
        let max = self.model.manifest().max_positions;
        if capacity > max {
            return Err(EngineError::Capacity { wanted: u64::from(capacity), capacity: max });
        }
        let id = self.worker.call(move |state| {
            let id = state.next;
            state.next += 1;
            state.sequences.insert(id, state.loaded.sequence(capacity, RunParams::default()));
            Ok(id)
        })?;
        Ok(Box::new(WgpuSession {
            worker: self.worker.clone(),
            vocab: self.model.manifest().vocab,
            layers: self.model.layers(),
            capacity,
            id,
            len: 0,
        }))
    }
}

struct WgpuSession {
    worker: Worker,
    vocab: u32,
    layers: u16,
    capacity: u32,
    id: u64,
    len: u32,
}

impl Drop for WgpuSession {
    fn drop(&mut self) {
        let id = self.id;
        self.worker.send(Box::new(move |state| drop(state.sequences.remove(&id))));
    }
}

impl WgpuSession {
    /// Runs `f` on the session's state on the device thread.
    fn on_device<T, F>(&self, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Loaded, &mut Sequence) -> Result<T, GpuError> + Send + 'static,
    {
        let id = self.id;
        self.worker.call(move |state| {
            let gone = || GpuError::Device("the session is closed".into());
            f(&mut state.loaded, state.sequences.get_mut(&id).ok_or_else(gone)?)
        })
    }

    /// Executes `tokens`, batch by batch: while one is read back and given to the sink, the device computes the next.
    fn batches(&mut self, tokens: &[u32], head_from: u32, sink: &mut dyn ExportSink) -> Result<Vec<u32>> {
        let exports = match sink.wants_exports() {
            true if sink.wants_leaves() => Exports::Leaves,
            true => Exports::Tensors,
            false => Exports::Nothing,
        };
        let logits = sink.wants_logits();
        let mut selected = Vec::new();
        let mut rest: Arc<[u32]> = tokens.into();
        let mut queued = 0;
        while !rest.is_empty() || queued > 0 {
            let own = rest.clone();
            let (n, batch) = self.on_device(move |loaded, sequence| {
                let mut n = 0;
                if !own.is_empty() {
                    n = (loaded.rows(sequence)? as usize).min(own.len());
                    let head_from = head_from.saturating_sub(sequence.len());
                    loaded.start(sequence, &own[..n], Wanted { head_from, exports, logits })?;
                }
                // Two are under way, unless nothing is left to be queued.
                let wait = n == own.len() || queued > 0;
                Ok((n, if wait { loaded.finish(sequence)? } else { None }))
            })?;
            queued += u32::from(n > 0);
            rest = rest[n..].into();
            if let Some(batch) = batch {
                queued -= 1;
                self.deliver(&batch, exports, sink)?;
                self.len += batch.rows;
                selected.extend(batch.tokens);
            }
        }
        Ok(selected)
    }

    fn deliver(&self, batch: &Batch, exports: Exports, sink: &mut dyn ExportSink) -> Result<()> {
        match (exports, &batch.exports) {
            (Exports::Tensors, Some((layout, bytes))) => {
                layout.tensors(bytes, |layer, row, tensors| sink.export(layer, batch.first + row as u32, tensors))?
            }
            (Exports::Leaves, Some(_)) => {
                let leaves = batch.leaves();
                for (layer, rows) in (0..).zip(leaves.chunks(batch.rows as usize)) {
                    for (position, leaf) in (batch.first..).zip(rows) {
                        sink.leaf(layer, position, *leaf)?;
                    }
                }
            }
            _ => {}
        }
        if sink.wants_logits() {
            batch.logits.iter().try_for_each(|(position, values)| sink.logits(*position, values))?;
        }
        if exports != Exports::Nothing {
            for (i, (position, token)) in (batch.head..).zip(&batch.tokens).enumerate() {
                match batch.log_probs.get(i) {
                    Some(row) => row.exports(*token, |t| sink.export(self.layers + 1, position, &t))?,
                    None => sink.export(self.layers + 1, position, &[&token.to_be_bytes()])?,
                }
            }
        }
        Ok(())
    }
}

impl Session for WgpuSession {
    fn len(&self) -> u32 {
        self.len
    }

    fn extend(&mut self, tokens: &[u32], head_from: u32, sink: &mut dyn ExportSink) -> Result<Vec<u32>> {
        let wanted = u64::from(self.len) + tokens.len() as u64;
        if wanted > u64::from(self.capacity) {
            return Err(EngineError::Capacity { wanted, capacity: self.capacity });
        }
        if let Some(token) = tokens.iter().find(|t| **t >= self.vocab) {
            return Err(EngineError::Token { token: *token, vocab: self.vocab });
        }
        let done = self.batches(tokens, head_from, sink);
        if done.is_err() {
            // What was queued behind the failure is forgotten, so that the session can be used on.
            self.truncate(self.len)?;
        }
        done
    }

    fn set_run(&mut self, run: RunParams) -> Result<()> {
        if !run.sampling.is_valid() {
            return Err(EngineError::Request("sampling parameters outside their ranges".into()));
        }
        let can = self.on_device(move |loaded, sequence| {
            let can = loaded.samples(&run.sampling);
            if can {
                sequence.set_run(run);
            }
            Ok(can)
        })?;
        let reason = "this model selects the likeliest token only: leave out sampling parameters";
        if can { Ok(()) } else { Err(EngineError::Request(reason.into())) }
    }

    fn truncate(&mut self, len: u32) -> Result<()> {
        let len = self.len.min(len);
        self.on_device(move |_, sequence| {
            sequence.truncate(len);
            Ok(())
        })?;
        self.len = len;
        Ok(())
    }
}

/// What the device thread owns.
struct State {
    loaded: Loaded,
    sequences: HashMap<u64, Sequence>,
    next: u64,
}

type Job = Box<dyn FnOnce(&mut State) + Send>;

/// The way to the device thread, which ends with the last of these.
struct Worker {
    jobs: Mutex<Sender<Job>>,
}

impl Clone for Worker {
    fn clone(&self) -> Self {
        Worker { jobs: Mutex::new(self.sender()) }
    }
}

impl Worker {
    /// Starts the thread and waits for what `open` gives there.
    fn start<T, F>(open: F) -> Result<(Self, T)>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<(State, T), GpuError> + Send + 'static,
    {
        let (jobs, queue) = channel::<Job>();
        let (answer, opened) = channel();
        let body = move || {
            let state = match caught(open) {
                Ok((state, value)) => {
                    let _ = answer.send(Ok(value));
                    state
                }
                Err(e) => {
                    let _ = answer.send(Err(e));
                    return;
                }
            };
            let mut state = state;
            while let Ok(job) = queue.recv() {
                job(&mut state);
            }
        };
        let failed = |e: std::io::Error| GpuError::Device(format!("starting the device thread: {e}"));
        thread::Builder::new().name(NAME.into()).spawn(body).map_err(failed)?;
        let value = opened.recv().map_err(|_| ended())??;
        Ok((Worker { jobs: Mutex::new(jobs) }, value))
    }

    fn sender(&self) -> Sender<Job> {
        self.jobs.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn send(&self, job: Job) {
        // If the thread is gone there is nothing left to do for it.
        let _ = self.sender().send(job);
    }

    /// Runs `f` on the device thread. A panic there, of the runtime or a driver, is an error here.
    fn call<T, F>(&self, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut State) -> Result<T, GpuError> + Send + 'static,
    {
        let (answer, answered) = channel();
        self.send(Box::new(move |state| {
            let _ = answer.send(caught(|| f(state)));
        }));
        Ok(answered.recv().map_err(|_| ended())??)
    }
}

fn ended() -> GpuError {
    GpuError::Device("the device thread ended: restart, or use the cpu backend".into())
}

fn caught<T>(f: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(GpuError::Device(message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the device runtime failed: {}", text.unwrap_or("no reason given"))
}
