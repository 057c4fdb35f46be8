//! The [`Backend`] of this crate.
//!
//! All device work of a backend happens on one thread of its own: the runtime keeps a queue per calling thread, and one
//! queue orders everything. Sessions live there; what a caller holds are their numbers.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use sworn_commit::RunParams;
use sworn_engine::{Backend, EngineError, ExportSink, Result, Session, Work};
use sworn_model::Model;

use crate::GpuError;
use crate::adapter::{Adapter, Selection};
use crate::batch::{Done, Exports, Pending, Share, Wanted};
use crate::gpu::{Gpu, Products};
use crate::loaded::Loaded;
use crate::sequence::{Sequence, Sequences};

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
        Self::with_products(model, selection, None)
    }

    /// [`Self::new`] with matrices multiplied in another way than the adapter's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_products(model: Arc<Model>, selection: &Selection, products: Option<Products>) -> Result<Self> {
        let (own, selection) = (model.clone(), selection.clone());
        let (worker, adapter) = Worker::start(move || {
            let mut gpu = Gpu::open(&selection)?;
            if let Some(products) = products {
                gpu.set_products(products);
            }
            let adapter = gpu.adapter();
            tracing::debug!(%adapter, "uploading the model");
            Ok((State { loaded: Loaded::new(gpu, own)?, sequences: Sequences::new(), next: 0 }, adapter))
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
            state.sequences.insert(id, Sequence::new(capacity));
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

    /// All in the same batches: a weight is read once for all, and one launch serves all.
    fn extend_many(&self, work: &mut [Work<'_>]) -> Vec<Result<Vec<u32>>> {
        let mut results: Vec<Option<Result<Vec<u32>>>> = work.iter().map(|_| None).collect();
        let (mut own, mut tasks) = (Vec::new(), Vec::new());
        for (k, w) in work.iter_mut().enumerate() {
            let Work { session, tokens, head_from, sink } = w;
            let own_session = session.as_any_mut().and_then(|s| s.downcast_mut::<WgpuSession>());
            if own_session.is_none_or(|s| !s.worker.same(&self.worker)) {
                results[k] = Some(session.extend(tokens, *head_from, &mut **sink));
                continue;
            }
            let Some(session) = session.as_any_mut().and_then(|s| s.downcast_mut::<WgpuSession>()) else { continue };
            own.push(k);
            tasks.push(Task::new(session, tokens, *head_from, &mut **sink));
        }
        let ran = run(&self.worker, &mut tasks);
        for (k, mut task) in own.into_iter().zip(tasks) {
            if let Err(e) = &ran {
                // What the device does to one batch it does to all that are in it.
                task.failed.get_or_insert_with(|| EngineError::Device { backend: NAME, message: e.to_string() });
            }
            results[k] = Some(task.end());
        }
        results.into_iter().flatten().collect()
    }
}

/// A session's number, and what its caller checks without asking the device.
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
        self.worker.send(Box::new(move |state| {
            let gone = state.sequences.remove(&id);
            state.loaded.close(gone);
        }));
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

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let wanted = u64::from(self.len) + tokens.len() as u64;
        if wanted > u64::from(self.capacity) {
            return Err(EngineError::Capacity { wanted, capacity: self.capacity });
        }
        match tokens.iter().find(|t| **t >= self.vocab) {
            Some(token) => Err(EngineError::Token { token: *token, vocab: self.vocab }),
            None => Ok(()),
        }
    }
}

/// One session's part of the work.
struct Task<'a> {
    session: &'a mut WgpuSession,
    /// What is not queued yet.
    rest: &'a [u32],
    /// Positions that are queued or done.
    queued: u32,
    head_from: u32,
    exports: Exports,
    logits: bool,
    sink: &'a mut dyn ExportSink,
    selected: Vec<u32>,
    failed: Option<EngineError>,
}

impl<'a> Task<'a> {
    fn new(session: &'a mut WgpuSession, tokens: &'a [u32], head_from: u32, sink: &'a mut dyn ExportSink) -> Self {
        let exports = match sink.wants_exports() {
            true if sink.wants_leaves() => Exports::Leaves,
            true => Exports::Tensors,
            false => Exports::Nothing,
        };
        let failed = session.check(tokens).err();
        let (queued, logits) = (session.len, sink.wants_logits());
        let rest = if failed.is_some() { &[] } else { tokens };
        Task { session, rest, queued, head_from, exports, logits, sink, selected: Vec::new(), failed }
    }

    /// The next `n` positions.
    fn share(&mut self, n: usize) -> Share {
        let (now, later) = self.rest.split_at(n);
        let wanted = Wanted {
            head_from: self.head_from.saturating_sub(self.queued),
            exports: self.exports,
            logits: self.logits,
        };
        self.rest = later;
        self.queued += now.len() as u32;
        Share { id: self.session.id, tokens: now.to_vec(), wanted }
    }

    /// Takes what a batch gave.
    fn take(&mut self, done: &Done, k: usize) {
        if self.failed.is_some() {
            return;
        }
        match done.deliver(k, self.session.layers + 1, self.sink) {
            Ok(()) => {
                self.session.len += done.shares[k].rows;
                self.selected.extend(&done.shares[k].tokens);
            }
            Err(e) => (self.failed, self.rest) = (Some(e), &[]),
        }
    }

    /// The selected tokens. What was queued behind a failure is forgotten, so that the session can be used on.
    fn end(self) -> Result<Vec<u32>> {
        match self.failed {
            None => Ok(self.selected),
            Some(e) => {
                let len = self.session.len;
                self.session.truncate(len)?;
                Err(e)
            }
        }
    }
}

/// Executes what several sessions of one worker are to do, batch by batch: while one is read back and given to the sinks, the
/// device computes the next.
fn run(worker: &Worker, tasks: &mut [Task<'_>]) -> Result<()> {
    let wanted: Vec<(u64, u32)> = tasks.iter().map(|t| (t.session.id, t.queued + t.rest.len() as u32)).collect();
    let lacking = worker.call(move |state| Ok(state.reserve(&wanted)))?;
    for (task, lacking) in tasks.iter_mut().zip(lacking) {
        if let (Some(e), None) = (lacking, &task.failed) {
            (task.failed, task.rest) = (Some(e.into()), &[]);
        }
    }
    // The tasks that have a share in each batch under way.
    let mut under_way: VecDeque<(Vec<usize>, Pending)> = VecDeque::new();
    loop {
        let mut open: Vec<usize> = (0..tasks.len()).filter(|k| !tasks[*k].rest.is_empty()).collect();
        if open.is_empty() && under_way.is_empty() {
            return Ok(());
        }
        let mut next = None;
        if !open.is_empty() {
            let positions = open.iter().map(|k| tasks[*k].queued + tasks[*k].rest.len() as u32).max().unwrap_or(1);
            let mut room = worker.call(move |state| state.loaded.most_rows(positions))? as usize;
            // Those with the least to do first, so that what they leave goes to the others.
            open.sort_by_key(|k| tasks[*k].rest.len());
            let (mut members, mut shares) = (Vec::new(), Vec::new());
            for (i, k) in open.iter().enumerate() {
                let n = tasks[*k].rest.len().min(room.div_ceil(open.len() - i));
                if n > 0 {
                    room -= n;
                    members.push(*k);
                    shares.push(tasks[*k].share(n));
                }
            }
            next = Some((members, shares));
        }
        // Two are under way, unless nothing is left to be queued.
        let more = tasks.iter().any(|t| !t.rest.is_empty());
        let due = if next.is_none() || !under_way.is_empty() || !more { under_way.pop_front() } else { None };
        let (due_members, due) = due.map_or((None, None), |(members, pending)| (Some(members), Some(pending)));
        let (members, shares) = next.map_or((None, None), |(members, shares)| (Some(members), Some(shares)));
        let (queued, done) = worker.call(move |state| {
            let State { loaded, sequences, .. } = state;
            let queued = shares.map(|shares| loaded.start(sequences, shares)).transpose()?;
            Ok((queued, due.map(|pending| loaded.finish(sequences, pending)).transpose()?))
        })?;
        if let (Some(members), Some(pending)) = (members, queued) {
            under_way.push_back((members, pending));
        }
        if let (Some(members), Some(done)) = (due_members, done) {
            members.iter().enumerate().for_each(|(share, k)| tasks[*k].take(&done, share));
        }
    }
}

impl Session for WgpuSession {
    fn len(&self) -> u32 {
        self.len
    }

    fn extend(&mut self, tokens: &[u32], head_from: u32, sink: &mut dyn ExportSink) -> Result<Vec<u32>> {
        let worker = self.worker.clone();
        let mut tasks = [Task::new(self, tokens, head_from, sink)];
        let ran = run(&worker, &mut tasks);
        let [mut task] = tasks;
        if let Err(e) = ran {
            task.failed.get_or_insert(e);
        }
        task.end()
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

    fn as_any_mut(&mut self) -> Option<&mut dyn Any> {
        Some(self)
    }
}

/// What the device thread owns.
struct State {
    loaded: Loaded,
    sequences: Sequences,
    next: u64,
}

impl State {
    /// Makes room for each session's positions; says which of them cannot have it, and why.
    fn reserve(&mut self, wanted: &[(u64, u32)]) -> Vec<Option<GpuError>> {
        let State { loaded, sequences, .. } = self;
        let reserve = |(id, positions): &(u64, u32)| {
            let sequence = sequences.get_mut(id)?;
            loaded.reserve(sequence, *positions).err()
        };
        wanted.iter().map(reserve).collect()
    }
}

type Job = Box<dyn FnOnce(&mut State) + Send>;

/// The way to the device thread, which ends with the last of these.
struct Worker {
    jobs: Mutex<Sender<Job>>,
    /// Tells workers apart.
    identity: Arc<()>,
}

impl Clone for Worker {
    fn clone(&self) -> Self {
        Worker { jobs: Mutex::new(self.sender()), identity: self.identity.clone() }
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
        Ok((Worker { jobs: Mutex::new(jobs), identity: Arc::new(()) }, value))
    }

    /// Whether both are ways to one thread.
    fn same(&self, other: &Worker) -> bool {
        Arc::ptr_eq(&self.identity, &other.identity)
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
