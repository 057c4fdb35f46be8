//! The executor that a flag means, and what to tell about the choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use sworn_engine::{Backend, Cpu};
use sworn_model::Model;

use crate::args::BackendChoice;
use crate::fault::{Fault, Result};
use crate::output::note;

/// An executor and how it came to be chosen.
#[derive(Clone)]
pub(crate) struct Chosen {
    /// Executes.
    pub(crate) backend: Arc<dyn Backend>,
    /// What results say about it.
    pub(crate) about: About,
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
    let (backend, fallback) = select(model, choice)?;
    let about = About { backend: backend.name(), adapter: backend.adapter(), fallback };
    note(match &about.fallback {
        Some(reason) => format!("backend {}: {} (not wgpu: {reason})", about.backend, about.adapter),
        None => format!("backend {}: {}", about.backend, about.adapter),
    });
    Ok(Chosen { backend, about })
}

fn select(model: Arc<Model>, choice: BackendChoice) -> Result<(Arc<dyn Backend>, Option<String>)> {
    match choice {
        BackendChoice::Cpu => Ok((Arc::new(Cpu::new(model)?), None)),
        BackendChoice::Wgpu => Ok((wgpu(model)?, None)),
        BackendChoice::Auto => match sworn_engine_wgpu::probe().iter().find(|a| a.is_gpu()) {
            // A software adapter gives the same bits, more slowly than the cpu backend does.
            None => Ok((Arc::new(Cpu::new(model)?), Some("no GPU adapter found".to_owned()))),
            Some(adapter) => match wgpu(model.clone()) {
                Ok(backend) => Ok((backend, None)),
                Err(e) => Ok((Arc::new(Cpu::new(model)?), Some(format!("{adapter} cannot be used: {e}")))),
            },
        },
    }
}

fn wgpu(_model: Arc<Model>) -> Result<Arc<dyn Backend>> {
    Err(Fault::failed("the wgpu backend is not built in"))
}

/// Runs long work of the engine off the async threads; Ctrl-C sets the flag it watches.
pub(crate) async fn cancellable<T: Send + 'static>(work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Result<T> {
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
