//! The `cpu` backend: threads and vector instructions, on any machine.

use std::sync::Arc;

use sworn_commit::RunParams;
use sworn_isa::{Opcode, Sampling, SectionKind};
use sworn_model::Model;

use crate::layer::Executor;
use crate::packed::Packs;
use crate::plan::Plan;
use crate::session::{CpuSession, extend_together};
use crate::simd::Simd;
use crate::team::Team;
use crate::{Backend, EngineError, OpHook, Result, Session, Work};

/// Makes one hook per session.
pub type HookFactory = Arc<dyn Fn() -> Box<dyn OpHook> + Send + Sync>;

/// A model ready to run on this machine's processor.
#[derive(Clone)]
pub struct Cpu {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<Model>,
    plan: Arc<Plan>,
    packs: Arc<Packs>,
    team: Arc<Team>,
    simd: Simd,
    hook: Option<HookFactory>,
}

impl Inner {
    /// The same, to be changed.
    fn share(&self) -> Self {
        let Inner { model, plan, packs, team, simd, hook } = self;
        let (model, plan, packs) = (model.clone(), plan.clone(), packs.clone());
        Inner { model, plan, packs, team: team.clone(), simd: *simd, hook: hook.clone() }
    }
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
        let team = Team::new(threads)
            .map_err(|e| EngineError::Device { backend: "cpu", message: format!("starting threads: {e}") })?;
        let plan = Arc::new(Plan::new(&model));
        let packs = Arc::new(Packs::new(model.index().weights.len()));
        let (team, simd) = (Arc::new(team), Simd::detect());
        Ok(Cpu { inner: Arc::new(Inner { model, plan, packs, team, simd, hook: None }) })
    }

    /// The same backend with a hook after every operator that the hook wants: of every session, and of
    /// [`crate::replay`]. Positions that a hook wants run one by one with every operator's output in full.
    pub fn with_hook(&self, hook: HookFactory) -> Self {
        Cpu { inner: Arc::new(Inner { hook: Some(hook), ..self.inner.share() }) }
    }

    /// The same backend with other vector instructions.
    pub fn with_simd(&self, simd: Simd) -> Self {
        Cpu { inner: Arc::new(Inner { simd, ..self.inner.share() }) }
    }

    pub(crate) fn executor(&self) -> Executor<'_> {
        let Inner { model, plan, packs, team, simd, .. } = &*self.inner;
        Executor { model, plan, packs, team, simd: *simd }
    }

    /// Whether both run the same model in the same way.
    pub(crate) fn same(&self, other: &Cpu) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(crate) fn hook(&self) -> Option<Box<dyn OpHook>> {
        self.inner.hook.as_ref().map(|h| h())
    }

    pub(crate) fn check_run(&self, run: &RunParams) -> Result<()> {
        if !run.sampling.is_valid() {
            return Err(EngineError::Request("a sampling parameter is outside its range".into()));
        }
        let head = &self.inner.plan.section(SectionKind::Head).ops;
        if run.sampling != Sampling::GREEDY && !head.iter().any(|d| d.opcode == Opcode::Sample) {
            return Err(EngineError::Request(
                "this model's program selects the likeliest token only: leave out sampling parameters".into(),
            ));
        }
        Ok(())
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
        let threads = self.inner.team.threads();
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
        Ok(Box::new(CpuSession::new(self, capacity)))
    }

    fn extend_many(&self, work: &mut [Work<'_>]) -> Vec<Result<Vec<u32>>> {
        extend_together(self, work)
    }
}
