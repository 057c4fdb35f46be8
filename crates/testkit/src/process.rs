//! A program under test: started, listened to, killed, started again.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::devnet::{DevnetError, Guard};

type Result<T, E = DevnetError> = std::result::Result<T, E>;

/// A program that tells its events as JSON lines. It does not outlive this value.
pub struct Process {
    /// What it is, for messages.
    pub name: String,
    lines: Arc<Mutex<Vec<Value>>>,
    running: Mutex<Running>,
    log: PathBuf,
}

struct Running {
    command: Command,
    child: Guard,
    starts: u32,
}

/// What a mutex holds, whoever panicked with it.
pub(crate) fn unpoisoned<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts a program; its stderr goes to a file in `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        File::create(&log).map_err(DevnetError::other)?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let child = spawn(name, &mut command, &log, &lines)?;
        Ok(Process { name: name.to_owned(), lines, running: Mutex::new(Running { command, child, starts: 1 }), log })
    }

    /// Everything it told, in all its lives.
    pub fn events(&self) -> Vec<Value> {
        unpoisoned(&self.lines).clone()
    }

    /// Ends it at once, without a chance to say anything (SIGKILL).
    pub fn kill(&self) {
        let _ = unpoisoned(&self.running).child.0.kill();
    }

    /// Starts it again, with the same arguments, whenever it has ended: what a service manager does. For ever.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn keep_running(&self) -> Result<std::convert::Infallible> {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut running = unpoisoned(&self.running);
            if running.child.0.try_wait().map_err(DevnetError::other)?.is_some() {
                running.child = spawn(&self.name, &mut running.command, &self.log, &self.lines)?;
                running.starts += 1;
            }
        }
    }

    /// Holds it where it is, or lets it go on (SIGSTOP, SIGCONT).
    ///
    /// # Errors
    /// It has ended.
    pub fn hold(&self, held: bool) -> Result<()> {
        let pid = unpoisoned(&self.running).child.0.id().to_string();
        let signal = if held { "kill -STOP \"$0\"" } else { "kill -CONT \"$0\"" };
        let done = Command::new("sh").args(["-c", signal, &pid]).status();
        match done.map_err(DevnetError::other)?.success() {
            true => Ok(()),
            false => Err(self.complaint("it cannot be held")),
        }
    }

    /// Bytes of memory that it holds now; `None` where the system does not tell as Linux does, or when it has ended.
    pub fn resident(&self) -> Option<u64> {
        self.status("VmRSS:")
    }

    /// Bytes of data that it has asked for, whether it uses them or not; what [`Stage::memory`](crate::scenario::Stage::memory) limits.
    pub fn data(&self) -> Option<u64> {
        self.status("VmData:")
    }

    fn status(&self, name: &str) -> Option<u64> {
        let pid = unpoisoned(&self.running).child.0.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|l| l.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        unpoisoned(&self.running).starts
    }

    /// Lets its disk be full, or have room again: no file may grow. For a program of a [stage whose disks
    /// fill](crate::scenario::Stage::disks_fill).
    ///
    /// # Errors
    /// There is no `prlimit`.
    pub fn fill_disk(&self, full: bool) -> Result<()> {
        let pid = unpoisoned(&self.running).child.0.id().to_string();
        let limit = if full { "--fsize=0:unlimited" } else { "--fsize=unlimited" };
        let set = Command::new("prlimit").args(["--pid", &pid, limit]).output().map_err(DevnetError::other)?;
        // A program that has just ended has no disk to fill.
        match set.status.success() || String::from_utf8_lossy(&set.stderr).contains("No such process") {
            true => Ok(()),
            false => Err(DevnetError::other(String::from_utf8_lossy(&set.stderr))),
        }
    }

    /// Waits for an event of this name.
    ///
    /// # Errors
    /// It does not come in time; the message has the program's log.
    pub async fn wait(&self, event: &str, patience: Duration) -> Result<Value> {
        let start = Instant::now();
        loop {
            if let Some(found) = self.events().into_iter().find(|e| e["event"] == event) {
                return Ok(found);
            }
            if start.elapsed() > patience {
                return Err(self.complaint(&format!("no {event:?} event in {patience:?}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until it ends; how, and what it logged.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn ended(&mut self, patience: Duration) -> Result<(ExitStatus, String)> {
        let start = Instant::now();
        loop {
            let ended = unpoisoned(&self.running).child.0.try_wait().map_err(DevnetError::other)?;
            match ended {
                Some(status) => return Ok((status, std::fs::read_to_string(&self.log).unwrap_or_default())),
                None if start.elapsed() > patience => return Err(self.complaint("it does not end")),
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// An error with what the program told and logged.
    pub fn complaint(&self, what: &str) -> DevnetError {
        let told: Vec<_> = self.events().iter().map(Value::to_string).collect();
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        DevnetError::Other(format!("{}: {what}\n{}\n{log}", self.name, told.join("\n")))
    }
}

fn spawn(name: &str, command: &mut Command, log: &Path, lines: &Arc<Mutex<Vec<Value>>>) -> Result<Guard> {
    let stderr = File::options().append(true).open(log).map_err(DevnetError::other)?;
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn();
    let mut child = Guard(spawned.map_err(|e| DevnetError::Other(format!("{name}: {e}")))?);
    let stdout = child.0.stdout.take().ok_or_else(|| DevnetError::other("no stdout"))?;
    let sink = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            if let Ok(value) = serde_json::from_str(&line) {
                unpoisoned(&sink).push(value);
            }
        }
    });
    Ok(child)
}
