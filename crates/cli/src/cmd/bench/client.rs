//! Workers, from the side that asks.

use std::path::Path;
use std::process::Stdio;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::fault::{Doing, Fault, Result};

use super::worker::{self, Loaded, Request, Timing};

/// A worker's process. It ends when this is dropped.
pub(super) struct Worker {
    child: Child,
    stdin: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
    stderr: tempfile::NamedTempFile,
}

impl Worker {
    /// Starts a worker that has loaded nothing. `threads` is for candle, which takes it from the environment.
    pub(super) fn start(home: &Path, threads: usize) -> Result<Self> {
        let stderr = tempfile::NamedTempFile::new()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--home").arg(home).args(["--json", "bench", "--worker"]);
        // What this program was told by its environment is not meant for its workers.
        for (variable, _) in std::env::vars_os().filter(|(v, _)| v.to_str().is_some_and(|v| v.starts_with("SWORN_"))) {
            command.env_remove(variable);
        }
        command.env("RAYON_NUM_THREADS", threads.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr.reopen()?).kill_on_drop(true);
        let mut child = command.spawn().doing(|| "cannot start a measuring process".into())?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::failed("a measuring process has no pipes"));
        };
        Ok(Worker { child, stdin, replies: BufReader::new(stdout).lines(), stderr })
    }

    /// Starts a worker and lets it load something.
    pub(super) async fn load(home: &Path, threads: usize, request: &Request) -> Result<(Self, Loaded)> {
        let mut worker = Self::start(home, threads)?;
        let loaded = worker.ask(request).await?;
        Ok((worker, loaded))
    }

    /// Asks and waits for the reply.
    pub(super) async fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let sent = async {
            self.stdin.write_all(&line).await?;
            self.stdin.flush().await?;
            self.replies.next_line().await
        };
        match sent.await {
            Ok(Some(reply)) => worker::read_reply(&reply),
            Ok(None) => Err(self.died().await),
            Err(e) => Err(self.died().await.while_doing(format!("a measuring process cannot be reached: {e}"))),
        }
    }

    /// Asks for a [`Timing`].
    pub(super) async fn time(&mut self, request: &Request) -> Result<Timing> {
        self.ask(request).await
    }

    async fn died(&mut self) -> Fault {
        let status = self.child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
        let said = std::fs::read_to_string(self.stderr.path()).unwrap_or_default();
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
        Fault::failed(format!("a measuring process ended ({status}): {last}"))
    }
}
