//! `sworn bench`.
//!
//! Whatever executes is measured in a process of its own ([`worker`]); what is compared is measured in turns, so that a
//! disturbance of the machine meets both.

mod client;
mod host;
mod llama;
mod page;
mod plan;
mod report;
mod run;
mod stat;
mod worker;

use std::path::Path;
use std::process::ExitCode;

use crate::args::Bench;
use crate::backend;
use crate::fault::{Doing, Fault, Result};
use crate::output::note;
use crate::settings::Settings;

use report::Report;

pub(super) async fn run(settings: &Settings, command: Bench) -> Result<ExitCode> {
    if command.worker {
        let out = settings.out;
        backend::blocking(move || worker::serve(out)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = match &command.from {
        Some(file) => read(file)?,
        None => tokio::select! {
            report = run::measure(settings, &command) => report?,
            // Dropping the run ends the processes that measure.
            _ = tokio::signal::ctrl_c() => return Err(Fault::failed("stopped by Ctrl-C")),
        },
    };
    if let Some(file) = &command.markdown {
        std::fs::write(file, page::page(&report)).doing(|| format!("cannot write {}", file.display()))?;
        note(format!("wrote {}", file.display()));
    }
    settings.out.result(&report, page::summary)?;
    Ok(if report.trace_root_equals_cpu == Some(false) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A report that `--json` printed.
fn read(file: &Path) -> Result<Report> {
    let text = std::fs::read(file).doing(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).doing(|| format!("{} is not what `sworn bench --json` prints", file.display()))
}
