//! Who computes, and how a node behaves: the two seams.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use alloy::primitives::{B256, U256};
use serde::{Deserialize, Serialize};
use sworn_bindings::Target;
use sworn_commit::{HeadRow, Manifest, RunParams, TraceDims, TraceTree};
use sworn_engine::{Backend, Cpu, EngineError, Limits, Request, Scheduler, audit, replay};
use sworn_isa::SectionKind;
use sworn_isa::logprob::LogProbs;
use sworn_receipts::{Engine, Receipt};

use crate::{Error, Result};

/// What a user bought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: U256,
    /// The model that answers.
    pub model: B256,
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// Most output tokens.
    pub max_new: u32,
    /// How to sample, as the chain has it.
    #[serde(default, with = "words")]
    pub run: RunParams,
}

/// Run parameters as the chain's two words.
mod words {
    use alloy::primitives::{B256, U256};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use sworn_bindings::{run_params, sampling_word};
    use sworn_commit::RunParams;

    pub(super) fn serialize<S: Serializer>(run: &RunParams, s: S) -> Result<S::Ok, S::Error> {
        (sampling_word(&run.sampling), B256::from(run.seed)).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<RunParams, D::Error> {
        let (sampling, seed) = <(U256, B256)>::deserialize(d)?;
        run_params(sampling, seed).ok_or_else(|| D::Error::custom("sampling parameters outside their ranges"))
    }
}

/// An answer and its commitment.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Output tokens.
    pub tokens: Vec<u32>,
    /// The trace that is committed to.
    pub trace: TraceTree,
    /// The log-probabilities that it commits to; none if the model has none.
    pub log_probs: Vec<HeadRow>,
}

impl Execution {
    /// Shortens an answer to a prompt of `n_in` tokens to its first `tokens` tokens, at least one; longer than it is: nothing
    /// happens.
    pub fn cut(&mut self, n_in: usize, tokens: usize) {
        let wanted = tokens.max(1);
        let layers = self.trace.layers().len().saturating_sub(2) as u16;
        let dims = TraceDims { layers, n_in: n_in as u32, n_out: wanted as u32 };
        if wanted < self.tokens.len()
            && let Some(shorter) = self.trace.cut(&dims)
        {
            self.trace = shorter;
            self.tokens.truncate(wanted);
            self.log_probs.truncate(wanted);
        }
    }
}

/// Computes answers and, later, whatever of them is demanded. All calls block and may take long; the same arguments give the same
/// result, also in another process.
pub trait Prover: Send + Sync + 'static {
    /// Models it has.
    fn models(&self) -> Vec<B256>;

    /// What it computes with, each once.
    fn engines(&self) -> Vec<Engine> {
        Vec::new()
    }

    /// Blocks of a model it has.
    fn layers(&self, model: B256) -> Option<u16>;

    /// What the public knows of a model it has: vocabulary, positions, stop tokens.
    fn manifest(&self, model: B256) -> Option<Manifest>;

    /// Answers a job; several may be asked for at a time.
    ///
    /// # Errors
    /// It cannot, or `cancel` was set.
    fn execute(&self, job: &Job, cancel: &Arc<AtomicBool>) -> Result<Execution>;

    /// As [`Self::execute`], token by token, each with the log-probabilities at its place if the model has them. The answer also
    /// ends with the token at which `on_token` breaks. A prover that cannot do this answers in full first.
    ///
    /// # Errors
    /// As [`Self::execute`].
    fn stream(
        &self,
        job: &Job,
        cancel: &Arc<AtomicBool>,
        on_token: &mut dyn FnMut(u32, Option<&HeadRow>) -> ControlFlow<()>,
    ) -> Result<Execution> {
        let mut done = self.execute(job, cancel)?;
        let rows = done.log_probs.iter().map(Some).chain(std::iter::repeat(None));
        if let Some(last) = done.tokens.iter().zip(rows).position(|(t, row)| on_token(*t, row).is_break()) {
            done.cut(job.prompt.len(), last + 1);
        }
        Ok(done)
    }

    /// The trace of an answered job, again.
    ///
    /// # Errors
    /// It cannot.
    fn leaves(&self, job: &Job, tokens: &[u32]) -> Result<TraceTree>;

    /// The log-probabilities of an answered job, again; none if its model has none.
    ///
    /// # Errors
    /// It cannot.
    fn log_probs(&self, job: &Job, tokens: &[u32]) -> Result<Vec<HeadRow>>;

    /// Whether a model commits to log-probabilities.
    fn tells_log_probs(&self, _model: B256) -> bool {
        false
    }

    /// The outputs of every operator of (layer, row), as committed.
    ///
    /// # Errors
    /// There is no such row, or it cannot.
    fn ops(&self, job: &Job, tokens: &[u32], layer: u16, row: u32) -> Result<Vec<Vec<u8>>>;
}

/// What a node may be seen to do. The methods' defaults are the protocol; test support overrides them.
pub trait Conduct: Send + Sync + 'static {
    /// Whether a demand is answered.
    fn answers(&self, _job: &Job, _target: &Target) -> bool {
        true
    }

    /// The bytes of an answer.
    fn answer(&self, _job: &Job, _target: &Target, computed: Vec<u8>) -> Vec<u8> {
        computed
    }

    /// The receipt that is signed for an answer.
    fn receipt(&self, honest: Receipt) -> Receipt {
        honest
    }

    /// Whether a receipt is served to whoever asks over HTTP.
    fn serves(&self, _receipt: &Receipt) -> bool {
        true
    }

    /// Whether a receipt that was demanded on chain is published there.
    fn publishes(&self, _receipt: &Receipt) -> bool {
        true
    }

    /// The served trace; none: it is withheld.
    fn serve_trace(&self, _job: &Job, trace: TraceTree) -> Option<TraceTree> {
        Some(trace)
    }

    /// The served log-probabilities; none: they are withheld.
    fn serve_log_probs(&self, _job: &Job, rows: Vec<HeadRow>) -> Option<Vec<HeadRow>> {
        Some(rows)
    }

    /// The served operators of (layer, row); none: they are withheld.
    fn serve_ops(&self, _job: &Job, _layer: u16, _row: u32, ops: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Some(ops)
    }
}

/// The protocol, nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Honest;

impl Conduct for Honest {}

/// Computes with the engine: answers on any backend, many jobs of a model together; replays on the cpu backend, which gives the
/// same bits.
pub struct EngineProver {
    models: BTreeMap<B256, Served>,
    limits: Limits,
}

/// A model and what computes it.
struct Served {
    backend: Arc<dyn Backend>,
    cpu: Arc<Cpu>,
    /// Started with the model's first job: a node that only answers demands needs no thread for it.
    scheduler: OnceLock<Scheduler>,
    starting: Mutex<()>,
}

impl std::fmt::Debug for EngineProver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.models.keys()).finish()
    }
}

impl Default for EngineProver {
    fn default() -> Self {
        EngineProver::new()
    }
}

impl EngineProver {
    /// Without models.
    pub fn new() -> Self {
        EngineProver { models: BTreeMap::new(), limits: Limits::default() }
    }

    /// How many jobs of a model run together, at least one; what comes on top waits. Usually [`crate::NodeConfig::workers`].
    #[must_use]
    pub fn together(mut self, jobs: usize) -> Self {
        self.limits.sequences = jobs.max(1);
        self
    }

    /// Adds a model: `backend` answers and repeats answers, `cpu` replays rows. Both must be of the same model.
    #[must_use]
    pub fn with(mut self, backend: Arc<dyn Backend>, cpu: Arc<Cpu>) -> Self {
        let id = backend.model().id().into();
        let (scheduler, starting) = Default::default();
        self.models.insert(id, Served { backend, cpu, scheduler, starting });
        self
    }

    /// Adds a model that the cpu backend does alone.
    #[must_use]
    pub fn with_cpu(self, cpu: Cpu) -> Self {
        let cpu = Arc::new(cpu);
        self.with(cpu.clone(), cpu)
    }

    fn of(&self, job: &Job) -> Result<&Served> {
        self.models.get(&job.model).ok_or(Error::NoModel { job: job.id, model: job.model })
    }

    fn scheduler<'a>(&self, of: &'a Served) -> Result<&'a Scheduler, EngineError> {
        let _one_at_a_time = of.starting.lock().unwrap_or_else(PoisonError::into_inner);
        match of.scheduler.get() {
            Some(started) => Ok(started),
            None => {
                let fresh = Scheduler::new(of.backend.clone(), self.limits)?;
                Ok(of.scheduler.get_or_init(|| fresh))
            }
        }
    }
}

impl Prover for EngineProver {
    fn models(&self) -> Vec<B256> {
        self.models.keys().copied().collect()
    }

    fn engines(&self) -> Vec<Engine> {
        let engine = |s: &Served| Engine { backend: s.backend.name().into(), adapter: s.backend.adapter() };
        let mut engines: Vec<Engine> = self.models.values().map(engine).collect();
        engines.sort();
        engines.dedup();
        engines
    }

    fn layers(&self, model: B256) -> Option<u16> {
        self.models.get(&model).map(|served| served.backend.model().layers())
    }

    fn manifest(&self, model: B256) -> Option<Manifest> {
        self.models.get(&model).map(|served| served.backend.model().manifest().clone())
    }

    fn execute(&self, job: &Job, cancel: &Arc<AtomicBool>) -> Result<Execution> {
        self.stream(job, cancel, &mut |_, _| ControlFlow::Continue(()))
    }

    fn stream(
        &self,
        job: &Job,
        cancel: &Arc<AtomicBool>,
        on_token: &mut dyn FnMut(u32, Option<&HeadRow>) -> ControlFlow<()>,
    ) -> Result<Execution> {
        let served = self.of(job)?;
        let stop = &served.backend.model().manifest().stop_tokens;
        let request = Request { prompt: &job.prompt, max_new: job.max_new, stop, run: job.run, cancel: None };
        let done = self.scheduler(served)?.generate_until(&request, cancel.clone(), on_token)?;
        Ok(Execution { tokens: done.tokens, trace: done.trace.tree, log_probs: done.trace.log_probs })
    }

    fn leaves(&self, job: &Job, tokens: &[u32]) -> Result<TraceTree> {
        Ok(audit(&*self.of(job)?.backend, &job.prompt, tokens, &job.run, None)?.trace.tree)
    }

    fn log_probs(&self, job: &Job, tokens: &[u32]) -> Result<Vec<HeadRow>> {
        match self.tells_log_probs(job.model) {
            true => Ok(audit(&*self.of(job)?.backend, &job.prompt, tokens, &job.run, None)?.trace.log_probs),
            false => Ok(Vec::new()),
        }
    }

    fn tells_log_probs(&self, model: B256) -> bool {
        let head = |served: &Served| LogProbs::find(&served.backend.model().program().section(SectionKind::Head).ops);
        self.models.get(&model).and_then(head).is_some()
    }

    fn ops(&self, job: &Job, tokens: &[u32], layer: u16, row: u32) -> Result<Vec<Vec<u8>>> {
        Ok(replay(&self.of(job)?.cpu, &job.prompt, tokens, &job.run, layer, row)?.ops)
    }
}
