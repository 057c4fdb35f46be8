//! Who computes, and how a node behaves: the two seams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use alloy::primitives::{B256, U256};
use serde::{Deserialize, Serialize};
use sworn_bindings::Target;
use sworn_commit::{RunParams, TraceTree};
use sworn_engine::{Backend, Cpu, Request, audit, generate, replay};

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
}

/// An answer and its commitment.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Output tokens.
    pub tokens: Vec<u32>,
    /// The trace that is committed to.
    pub trace: TraceTree,
}

/// Computes answers and, later, whatever of them is demanded. All calls block and may take long; the same arguments give the same
/// result, also in another process.
pub trait Prover: Send + Sync + 'static {
    /// Models it has.
    fn models(&self) -> Vec<B256>;

    /// Blocks of a model it has.
    fn layers(&self, model: B256) -> Option<u16>;

    /// Answers a job.
    ///
    /// # Errors
    /// It cannot, or `cancel` was set.
    fn execute(&self, job: &Job, cancel: &AtomicBool) -> Result<Execution>;

    /// The trace of an answered job, again.
    ///
    /// # Errors
    /// It cannot.
    fn leaves(&self, job: &Job, tokens: &[u32]) -> Result<TraceTree>;

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

    /// The served trace; none: it is withheld.
    fn serve_trace(&self, _job: &Job, trace: TraceTree) -> Option<TraceTree> {
        Some(trace)
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

/// Computes with the engine: answers on any backend, replays on the cpu backend, which gives the same bits.
#[derive(Default)]
pub struct EngineProver {
    models: BTreeMap<B256, (Arc<dyn Backend>, Arc<Cpu>)>,
}

impl std::fmt::Debug for EngineProver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.models.keys()).finish()
    }
}

impl EngineProver {
    /// Without models.
    pub fn new() -> Self {
        EngineProver::default()
    }

    /// Adds a model: `backend` answers and repeats answers, `cpu` replays rows. Both must be of the same model.
    #[must_use]
    pub fn with(mut self, backend: Arc<dyn Backend>, cpu: Arc<Cpu>) -> Self {
        self.models.insert(backend.model().id().into(), (backend, cpu));
        self
    }

    /// Adds a model that the cpu backend does alone.
    #[must_use]
    pub fn with_cpu(self, cpu: Cpu) -> Self {
        let cpu = Arc::new(cpu);
        self.with(cpu.clone(), cpu)
    }

    fn of(&self, job: &Job) -> Result<&(Arc<dyn Backend>, Arc<Cpu>)> {
        self.models.get(&job.model).ok_or(Error::NoModel { job: job.id, model: job.model })
    }
}

impl Prover for EngineProver {
    fn models(&self) -> Vec<B256> {
        self.models.keys().copied().collect()
    }

    fn layers(&self, model: B256) -> Option<u16> {
        self.models.get(&model).map(|(backend, _)| backend.model().layers())
    }

    fn execute(&self, job: &Job, cancel: &AtomicBool) -> Result<Execution> {
        let (backend, _) = self.of(job)?;
        let stop = &backend.model().manifest().stop_tokens;
        let request = Request {
            prompt: &job.prompt,
            max_new: job.max_new,
            stop,
            run: RunParams::default(),
            cancel: Some(cancel),
        };
        let done = generate(&**backend, &request, &mut |_| {})?;
        Ok(Execution { tokens: done.tokens, trace: done.trace.tree })
    }

    fn leaves(&self, job: &Job, tokens: &[u32]) -> Result<TraceTree> {
        let (backend, _) = self.of(job)?;
        Ok(audit(&**backend, &job.prompt, tokens, &RunParams::default(), None)?.trace.tree)
    }

    fn ops(&self, job: &Job, tokens: &[u32], layer: u16, row: u32) -> Result<Vec<Vec<u8>>> {
        let (_, cpu) = self.of(job)?;
        Ok(replay(cpu, &job.prompt, tokens, &RunParams::default(), layer, row)?.ops)
    }
}
