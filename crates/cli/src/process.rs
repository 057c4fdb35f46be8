//! Processes that devnet and demo start, each with a log file. None outlives this program's interest in it.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::fault::{Doing, Fault, Result};

/// A line of JSON that a process said.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Which process.
    pub(crate) from: &'static str,
    /// What it said.
    pub(crate) value: Value,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program. Its stderr, and whatever of its stdout is no JSON line for `lines`, goes to `NAME.log` under `logs`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        name: &'static str,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        logs: &Path,
        lines: Option<mpsc::UnboundedSender<Line>>,
    ) -> Result<Self> {
        let log = logs.join(format!("{}.log", name.replace(' ', "-")));
        let file = File::create(&log).doing(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        // What this program was told by its environment is not meant for its children: they get flags.
        for (variable, _) in std::env::vars_os().filter(|(v, _)| v.to_str().is_some_and(|v| v.starts_with("SWORN_"))) {
            command.env_remove(variable);
        }
        command.stderr(file.try_clone()?);
        command.stdout(if lines.is_some() { Stdio::piped() } else { file.try_clone()?.into() });
        let mut child = command.spawn().doing(|| format!("cannot start {}", program.display()))?;
        if let (Some(lines), Some(stdout)) = (lines, child.stdout.take()) {
            tokio::spawn(async move {
                let mut log = tokio::fs::File::from_std(file);
                let mut reader = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = reader.next_line().await {
                    let _ = log.write_all(format!("{line}\n").as_bytes()).await;
                    if let Ok(value) = serde_json::from_str(&line) {
                        let _ = lines.send(Line { from: name, value });
                    }
                }
            });
        }
        Ok(Self { name, child, log })
    }

    /// Fails if the process has ended, with the end of its log.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(Fault::failed(format!("{} ended early ({status}):\n{}", self.name, tail(&self.log)))),
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(12)..];
    last.iter().map(|l| format!("  | {l}")).collect::<Vec<_>>().join("\n")
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").doing(|| "cannot listen on 127.0.0.1".into())?;
    Ok(listener.local_addr()?.port())
}
