//! `sworn bench` on a small model, where no peer is: what it prints, never how fast anything was.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sworn_model::SyntheticSpec;

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sworn"));
    for (variable, _) in std::env::vars_os().filter(|(v, _)| v.to_string_lossy().starts_with("SWORN_")) {
        command.env_remove(variable);
    }
    command.env("SWORN_HOME", dir).current_dir(dir).args(arguments).stdin(Stdio::null());
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

fn model(dir: &Path) {
    sworn_model::synthetic(&SyntheticSpec::default(), dir.join("models/small")).unwrap();
}

/// A figure with its spread, measured `n` times.
fn sane(report: &Value, key: &str, n: u64) {
    let stat = &report[key];
    let [median, min, max] = ["median", "min", "max"].map(|k| stat[k].as_f64().unwrap_or(f64::NAN));
    assert!(min <= median && median <= max, "{key}: {stat}");
    assert_eq!(stat["n"], n, "{key}");
}

#[test]
fn a_report_has_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let output = run(dir.path(), &["bench", "small", "--quick", "--runs", "2", "--json", "--markdown", "page.md"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    // Without the GGUF there is nothing to compare with: the keys are there, null, and a note says why.
    let absent = [
        "decode_ratio_llamacpp",
        "prefill_ratio_llamacpp",
        "decode_ratio_llamacpp_oath",
        "prefill_ratio_llamacpp_oath",
        "ppl_delta_percent",
        "perplexity",
        "trace_root_equals_cpu",
    ];
    for key in absent {
        assert_eq!(report.get(key), Some(&Value::Null), "{key}");
    }
    assert!(report["notes"].to_string().contains("GGUF") && stderr.contains("GGUF"), "{stderr}");

    // Seven pairs a run: what they differ by is small.
    for (key, n) in [("oath_overhead_decode", 14), ("oath_overhead_prefill", 14), ("audit_over_generate", 2)] {
        sane(&report, key, n);
    }
    let threads = report["threads"].as_u64().unwrap();
    let counts = if threads == 1 { vec![1] } else { vec![1, threads] };
    for threads in counts {
        let threads = threads.to_string();
        for engine in ["ours", "ours_oath"] {
            for key in ["prefill_tok_s", "decode_tok_s"] {
                let n = report[key][engine][&threads]["n"].as_u64();
                assert!(n.is_some_and(|n| n > 0), "{key} {engine} {threads}: {report}");
            }
        }
        sane(&report["bandwidth"]["bytes_per_s"], &threads, 3);
    }
    sane(&report["time_to_first_token_ms"], "ours", 2);
    let matrices = report["bandwidth"]["bytes_per_token"]["ours"].as_u64().unwrap();
    assert!((1 << 10..1 << 20).contains(&matrices), "{matrices}");
    if cfg!(target_os = "linux") {
        assert!(report["peak_memory_bytes"]["ours"].as_u64().unwrap() > 1 << 20);
    }
    let contexts: Vec<_> = report["context"].as_array().unwrap().iter().map(|c| &c["positions"]).collect();
    assert_eq!(contexts, [128, 512]);
    sane(&report["concurrency"], "decode_tok_s", 3);
    assert_eq!(report["concurrency"]["jobs"], 8);
    assert_eq!((&report["backend"], &report["model"]), (&"cpu".into(), &"synthetic-3x48-1".into()));

    // The page is made from the report alone.
    std::fs::write(dir.path().join("report.json"), &output.stdout).unwrap();
    let again = run(dir.path(), &["bench", "--from", "report.json", "--markdown", "again.md"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let page = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(page("page.md"), page("again.md"));
    assert!(page("page.md").contains("| the oath's price, decode | **"));
}

#[test]
fn slips_and_strange_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    std::fs::write(dir.path().join("no-report"), "[]").unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["bench", "--threads", "0"], 2, "--threads"),
        (&["bench", "none"], 1, "none"),
        (&["bench", "small", "--gguf", "nowhere"], 2, "--gguf"),
        (&["bench", "small", "--gguf", "no-report", "--llama-bench", "nowhere"], 2, "--llama-bench"),
        (&["bench", "--from", "no-report"], 1, "no-report"),
    ];
    for (arguments, code, word) in cases {
        let output = run(dir.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(word) && !stderr.contains("panicked") && output.stdout.is_empty(), "{stderr}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let mut bench =
        command(dir.path(), &["bench", "small", "--quick", "--runs", "1000"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|l| l.contains("bench: speed")));
    assert!(Command::new("kill").args(["-INT", &bench.id().to_string()]).status().unwrap().success());
    assert!(lines.any(|l| l.contains("stopped by Ctrl-C")));
    assert_eq!(bench.wait().unwrap().code(), Some(1));
}
