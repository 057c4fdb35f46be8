//! Executes a model's program.
//!
//! **Owns** the [`Backend`]/[`Session`] interface that every executor implements and the `cpu` backend; generation, the
//! teacher-forced pass and the replay of one layer's operators. **May depend on** `isa`, `commit`, `model`. **Must never**
//! let a float decide an answer, know of a chain, or give other bits than [`sworn_isa::spec`] defines.

use std::sync::Arc;

use sworn_commit::{Hash, RunParams};
use sworn_isa::Sampling;
use sworn_model::Model;
use thiserror::Error;

mod activation;
mod attention;
mod batch;
pub mod calibrate;
mod cpu;
mod generate;
pub mod kernels;
mod layer;
mod linear;
mod logprob;
mod packed;
mod panel;
mod plan;
mod replay;
pub mod sampling;
mod session;
mod simd;
mod team;
mod tensor;
mod trace;

pub use batch::{Limits, Scheduler};
pub use cpu::{Cpu, HookFactory};
pub use generate::{Audit, Generation, Request, audit, generate, generate_until};
pub use linear::{Matrix, Scale};
pub use logprob::LogProber;
pub use replay::{Replay, replay};
pub use simd::Simd;
pub use tensor::{OpTensor, View};
pub use trace::{Trace, TraceRecorder};

/// Why an execution failed.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The sequence does not fit.
    #[error("{wanted} positions exceed the session's capacity of {capacity}: shorten the prompt or raise the limit")]
    Capacity {
        /// positions asked for
        wanted: u64,
        /// positions there are
        capacity: u32,
    },
    /// A token outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    Token {
        /// the token
        token: u32,
        /// vocabulary size
        vocab: u32,
    },
    /// The model cannot be executed here.
    #[error("this model cannot be executed by the {backend} backend: {reason}")]
    Unsupported {
        /// backend's name
        backend: &'static str,
        /// what is missing
        reason: String,
    },
    /// The device failed.
    #[error("{backend} device error: {message}")]
    Device {
        /// backend's name
        backend: &'static str,
        /// as reported
        message: String,
    },
    /// A request that cannot be run.
    #[error("{0}")]
    Request(String),
    /// The float model to compare with cannot be computed.
    #[error("float reference: {0}")]
    Reference(String),
    /// The caller's sink refused (disk full, cancelled).
    #[error("execution stopped: {0}")]
    Sink(String),
}

/// Result of this crate.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Receives what a run exports, layer-major or position-major as the backend pleases; each (layer, position) once.
pub trait ExportSink {
    /// All exported tensors of one (layer, position), in program order, big-endian as committed. For the head (layer L + 1)
    /// `position` is the position whose successor is selected.
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> Result<()>;

    /// Whether [`Self::export`] wants to be called at all.
    fn wants_exports(&self) -> bool {
        true
    }

    /// Whether [`Self::leaf`] does as well as [`Self::export`]. A backend may then hash where it computes and spare copying the
    /// tensors; it need not. All rows of one layer come the same way.
    fn wants_leaves(&self) -> bool {
        false
    }

    /// The leaf ([`sworn_commit::trace::leaf`]) of one (layer, position), in place of its tensors.
    fn leaf(&mut self, _layer: u16, _position: u32, _leaf: Hash) -> Result<()> {
        Ok(())
    }

    /// Whether [`Self::logits`] wants to be called for head rows.
    fn wants_logits(&self) -> bool {
        false
    }

    /// The logits (Q14) of a head row.
    fn logits(&mut self, _position: u32, _logits: &[i32]) -> Result<()> {
        Ok(())
    }
}

/// A sink for runs whose trace nobody needs.
pub struct NoExports;

impl ExportSink for NoExports {
    fn export(&mut self, _: u16, _: u32, _: &[&[u8]]) -> Result<()> {
        Ok(())
    }

    fn wants_exports(&self) -> bool {
        false
    }
}

/// A loaded model on a device.
pub trait Backend: Send + Sync {
    /// `cpu` or `wgpu`.
    fn name(&self) -> &'static str;
    /// The device as its driver names it.
    fn adapter(&self) -> String;
    /// The model it executes.
    fn model(&self) -> &Arc<Model>;
    /// An empty sequence of at most `capacity` positions.
    fn session(&self, capacity: u32) -> Result<Box<dyn Session>>;
    /// [`Session::extend`] of several sessions of this backend, in whatever order or together: each gets the bits that it
    /// would get alone, and one that fails disturbs no other. Results are in the order of `work`.
    fn extend_many(&self, work: &mut [Work<'_>]) -> Vec<Result<Vec<u32>>> {
        work.iter_mut().map(|w| w.session.extend(w.tokens, w.head_from, &mut *w.sink)).collect()
    }
}

/// What [`Backend::extend_many`] does to one session: the arguments of [`Session::extend`].
pub struct Work<'a> {
    /// The session.
    pub session: &'a mut dyn Session,
    /// Tokens of the next positions.
    pub tokens: &'a [u32],
    /// From which position on the head runs.
    pub head_from: u32,
    /// Receives what the run exports.
    pub sink: &'a mut dyn ExportSink,
}

/// One sequence: tokens so far and the cached exports of every layer.
pub trait Session: Send {
    /// Positions executed so far.
    fn len(&self) -> u32;
    /// Whether nothing was executed yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Sets how this session selects tokens from now on; without it, the largest logit.
    ///
    /// # Errors
    /// Parameters outside their ranges, or which the model or the backend cannot sample with.
    fn set_run(&mut self, run: RunParams) -> Result<()> {
        match run.sampling {
            Sampling::GREEDY => Ok(()),
            _ => Err(EngineError::Request(
                "this backend selects the likeliest token only: leave out sampling parameters".into(),
            )),
        }
    }
    /// Executes `tokens` at the next positions: decode with one token, prefill or a teacher-forced pass with many, always the
    /// same bits. The head runs for positions ≥ `head_from` (`u32::MAX`: for none). Returns their selected tokens.
    fn extend(&mut self, tokens: &[u32], head_from: u32, sink: &mut dyn ExportSink) -> Result<Vec<u32>>;
    /// Forgets everything after the first `len` positions, so that another continuation of them can be executed.
    ///
    /// # Errors
    /// The backend cannot.
    fn truncate(&mut self, _len: u32) -> Result<()> {
        let reason = "its sessions cannot be shortened".into();
        Err(EngineError::Unsupported { backend: "this", reason })
    }
    /// The session itself, for a backend that runs several of its own together.
    fn as_any_mut(&mut self) -> Option<&mut dyn std::any::Any> {
        None
    }
}

/// Sees every operator's output right after it was computed, and may change elements of it: everything computed afterwards
/// reads the changed tensor. Only the `cpu` backend takes hooks; without one they cost nothing.
pub trait OpHook: Send {
    /// Whether [`Self::after`] is to be called at this layer and position.
    fn wants(&self, _layer: u16, _position: u32) -> bool {
        true
    }

    /// Operator `op` of `layer` at `position` gave `out`, in full.
    fn after(&mut self, layer: u16, position: u32, op: usize, out: &mut OpTensor);
}
