//! llama.cpp's own `llama-bench`, on the same file.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::fault::{Doing, Fault, Result};
use crate::tools;

use super::host;

/// A `llama-bench` that was found.
#[derive(Clone, Debug)]
pub(super) struct LlamaBench {
    program: PathBuf,
    gguf: PathBuf,
    /// The release it was built from, as far as its place tells.
    release: Option<String>,
}

/// One of its tests: a prompt taken, or tokens decoded, at a depth.
#[derive(Clone, Debug, Deserialize)]
struct Test {
    build_commit: String,
    build_number: u64,
    n_prompt: u32,
    n_gen: u32,
    samples_ts: Vec<f64>,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) prefill_tok_s: Option<f64>,
    pub(super) decode_tok_s: Option<f64>,
    pub(super) version: String,
    pub(super) peak_memory: Option<u64>,
}

impl LlamaBench {
    /// The program that was named; or the newest that `script/bench-peers` built; or the one on the PATH.
    pub(super) fn find(named: Option<&Path>, gguf: &Path) -> Result<Self> {
        let gguf = gguf.to_owned();
        if let Some(program) = named {
            return match program.is_file() {
                true => Ok(LlamaBench { program: program.to_owned(), gguf, release: None }),
                false => Err(Fault::usage(format!("no llama-bench at {}: check --llama-bench", program.display()))),
            };
        }
        if let Some((program, release)) = built(&peers_directory()) {
            return Ok(LlamaBench { program, gguf, release: Some(release) });
        }
        match tools::on_path("llama-bench") {
            Some(program) => Ok(LlamaBench { program, gguf, release: None }),
            None => Err(Fault::failed(
                "llama-bench not found: script/bench-peers builds it, or name one with --llama-bench",
            )),
        }
    }

    /// Runs one repetition of each test on so many threads: `prompt` tokens taken, `decode` decoded, both after `depth` others.
    /// Zero leaves a test out. Like ours, each comes after a warm-up.
    pub(super) async fn run(&self, threads: usize, prompt: u32, decode: u32, depth: u32) -> Result<Run> {
        let numbers = [("-t", threads.to_string()), ("-p", prompt.to_string()), ("-n", decode.to_string())];
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.gguf).args(numbers.iter().flat_map(|(flag, n)| [*flag, n.as_str()]));
        command.args(["-d", &depth.to_string(), "-r", "1", "-o", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().doing(|| format!("cannot start {}", self.program.display()))?;
        let (id, mut peak_memory) = (child.id(), None);
        let mut done = std::pin::pin!(child.wait_with_output());
        let output = loop {
            tokio::select! {
                output = &mut done => break output?,
                () = tokio::time::sleep(Duration::from_millis(50)) => {
                    if let Some(peak) = id.and_then(|id| host::peak_memory(Some(id))) {
                        peak_memory = Some(peak);
                    }
                }
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
        if !output.status.success() {
            return Err(Fault::failed(format!("llama-bench failed ({}): {last}", output.status)));
        }
        let mut run = self.read(&output.stdout)?;
        run.peak_memory = peak_memory;
        Ok(run)
    }

    fn read(&self, json: &[u8]) -> Result<Run> {
        let tests: Vec<Test> = serde_json::from_slice(json)
            .doing(|| "llama-bench printed something unexpected; try another release".into())?;
        let first = tests.first().ok_or_else(|| Fault::failed("llama-bench ran no test"))?;
        let rate = |wanted: fn(&Test) -> bool| {
            let test = tests.iter().find(|t| wanted(t))?;
            test.samples_ts.first().copied().filter(|r| r.is_finite() && *r > 0.0)
        };
        let build = format!("build {} ({})", first.build_number, first.build_commit);
        Ok(Run {
            prefill_tok_s: rate(|t| t.n_prompt > 0 && t.n_gen == 0),
            decode_tok_s: rate(|t| t.n_gen > 0 && t.n_prompt == 0),
            version: self.release.clone().unwrap_or(build),
            peak_memory: None,
        })
    }
}

/// Where script/bench-peers puts what it builds.
fn peers_directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("SWORN_CACHE").or_else(|| set("XDG_CACHE_HOME").map(|c| c.join("sworn")));
    let cache = cache.or_else(|| std::env::home_dir().map(|h| h.join(".cache/sworn")));
    cache.unwrap_or_default().join("peers")
}

/// The last of the directories `llama.cpp-RELEASE` that holds a program, and its release.
fn built(peers: &Path) -> Option<(PathBuf, String)> {
    let program = format!("llama-bench{}", std::env::consts::EXE_SUFFIX);
    let mut found: Vec<_> = std::fs::read_dir(peers)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let release = entry.file_name().to_str()?.strip_prefix("llama.cpp-")?.to_owned();
            let path = entry.path().join(&program);
            let built = path.metadata().ok()?.modified().ok()?;
            Some((built, path, release))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, path, release)| (path, release))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(prompt: u32, generated: u32, rate: &str) -> String {
        format!(
            r#"{{"build_commit":"abc","build_number":7,"n_prompt":{prompt},"n_gen":{generated},"samples_ts":[{rate}],"more":1}}"#
        )
    }

    #[test]
    fn its_json_is_read() {
        let bench = LlamaBench { program: "p".into(), gguf: "g".into(), release: None };
        let json = format!("[{},{}]", test(128, 0, "300.5"), test(0, 64, "120.25"));
        let run = bench.read(json.as_bytes()).unwrap();
        assert_eq!((run.prefill_tok_s, run.decode_tok_s), (Some(300.5), Some(120.25)));
        assert_eq!(run.version, "build 7 (abc)");
        let run = bench.read(format!("[{}]", test(0, 64, "")).as_bytes()).unwrap();
        assert_eq!((run.prefill_tok_s, run.decode_tok_s), (None, None));
        assert!(bench.read(b"[]").is_err() && bench.read(b"warning: ...").is_err());
    }

    #[test]
    fn the_newest_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(built(dir.path()).is_none() && built(&dir.path().join("none")).is_none());
        for release in ["0.9.9", "0.10.0"] {
            let place = dir.path().join(format!("llama.cpp-{release}"));
            std::fs::create_dir(&place).unwrap();
            std::fs::write(place.join(format!("llama-bench{}", std::env::consts::EXE_SUFFIX)), release).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::create_dir(dir.path().join("llama.cpp-empty")).unwrap();
        assert_eq!(built(dir.path()).map(|(_, release)| release).as_deref(), Some("0.10.0"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = LlamaBench::find(Some(Path::new("/nowhere/llama-bench")), Path::new("g")).unwrap_err();
        assert_eq!(error.code(), 2);
    }
}
