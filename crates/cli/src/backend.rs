//! The executor that a flag means, and what to tell about the choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use sworn_engine::{Backend, Cpu};
use sworn_engine_wgpu::{Selection, WgpuBackend, probe};
use sworn_model::Model;

use crate::args::BackendChoice;
use crate::fault::{Fault, Result};
use crate::output::note;

/// An executor and how it came to be chosen.
#[derive(Clone)]
pub(crate) struct Chosen {
    /// Executes.
    pub(crate) backend: Arc<dyn Backend>,
    /// The cpu backend, if that is what executes.
    cpu: Option<Arc<Cpu>>,
    /// What results say about it.
    pub(crate) about: About,
}

impl Chosen {
    /// A cpu backend of the same model, for what only it does: replaying the operators of one row.
    pub(crate) fn cpu(&self) -> Result<Arc<Cpu>> {
        match &self.cpu {
            Some(cpu) => Ok(cpu.clone()),
            None => Ok(Arc::new(Cpu::new(self.backend.model().clone())?)),
        }
    }
}

/// What results say about the executor: never a silent choice.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    /// `cpu` or `wgpu`.
    pub(crate) backend: &'static str,
    /// The device, as its driver names it.
    pub(crate) adapter: String,
    /// Why it is not the one that `auto` prefers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fallback: Option<String>,
}

/// Prepares the model on the executor that `choice` means, and says on stderr which it is.
pub(crate) fn open(model: Arc<Model>, choice: BackendChoice) -> Result<Chosen> {
    let chosen = select(model, choice)?;
    let about = &chosen.about;
    note(match &about.fallback {
        Some(reason) => format!("backend {}: {} (not wgpu: {reason})", about.backend, about.adapter),
        None => format!("backend {}: {}", about.backend, about.adapter),
    });
    Ok(chosen)
}

fn select(model: Arc<Model>, choice: BackendChoice) -> Result<Chosen> {
    match choice {
        BackendChoice::Cpu => cpu(model, None),
        BackendChoice::Wgpu => wgpu(model, &Selection::Best),
        BackendChoice::Auto => match probe().iter().find(|a| a.is_gpu()) {
            // A software adapter gives the same bits, more slowly than the cpu backend does.
            None => cpu(model, Some("no GPU adapter found".to_owned())),
            Some(adapter) => wgpu(model.clone(), &Selection::Gpu)
                .or_else(|e| cpu(model, Some(format!("{adapter} cannot be used: {e}")))),
        },
    }
}

fn cpu(model: Arc<Model>, fallback: Option<String>) -> Result<Chosen> {
    let cpu = Arc::new(Cpu::new(model)?);
    let about = About { backend: cpu.name(), adapter: cpu.adapter(), fallback };
    Ok(Chosen { backend: cpu.clone(), cpu: Some(cpu), about })
}

fn wgpu(model: Arc<Model>, selection: &Selection) -> Result<Chosen> {
    let gpu = WgpuBackend::new(model, selection)?;
    let about = About { backend: gpu.name(), adapter: gpu.adapter(), fallback: None };
    Ok(Chosen { backend: Arc::new(gpu), cpu: None, about })
}

/// Runs long work of the engine off the async threads; Ctrl-C sets the flag it watches.
pub(crate) async fn cancellable<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
) -> Result<T> {
    let cancel = Arc::new(AtomicBool::new(false));
    let seen = cancel.clone();
    let mut task = tokio::task::spawn_blocking(move || work(&seen));
    tokio::select! {
        done = &mut task => done?,
        _ = tokio::signal::ctrl_c() => {
            cancel.store(true, Ordering::Relaxed);
            // What runs now looks at the flag at every position.
            let _ = task.await;
            Err(Fault::failed("stopped by Ctrl-C"))
        }
    }
}

/// Runs blocking work off the async threads to its end.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
