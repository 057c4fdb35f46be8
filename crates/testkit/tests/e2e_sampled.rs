//! Sampled jobs with the programs that people run: answered together by one node, watched, final; and what a lie in one costs.

use std::path::Path;
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use sworn_bindings::{JobState, run_params};
use sworn_engine::{Cpu, Request, generate};
use sworn_isa::Sampling;
use sworn_isa::sampling::Q12_ONE;
use sworn_model::{ImportOptions, Model, import};
use sworn_testkit::process::Process;
use sworn_testkit::scenario::Stage;

#[allow(dead_code, reason = "shared with the model crate's tests")]
#[path = "../../model/tests/support/hf_directory.rs"]
mod hf_directory;

const LIAR: &str = env!("CARGO_BIN_EXE_sworn-liar");
const PATIENCE: Duration = Duration::from_secs(100);

/// A small model whose jobs may sample, imported from another project's format.
fn model(dir: &Path) -> Model {
    let files = dir.join("files");
    std::fs::create_dir(&files).unwrap();
    hf_directory::model("qwen3", true).write(&files, 1);
    let options = ImportOptions { sampling: true, ..ImportOptions::default() };
    import(&files, dir.join("model"), &options, &mut |_| {}).unwrap()
}

fn sampling() -> Sampling {
    Sampling { inverse_temperature: Q12_ONE * 5 / 4, top_k: 40, penalty: Q12_ONE * 11 / 10, ..Sampling::GREEDY }
}

fn prompt(seed: u32) -> Vec<u32> {
    (0..16).map(|i| 3 + (i * 29 + 7 * seed) % 250).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_jobs_at_once_are_answered_as_alone_and_paid() {
    const JOBS: u32 = 8;
    const NEW: u32 = 24;
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::stored(model(dir.path())).await.unwrap();
    let node = stage.node(&[]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    let mut jobs = Vec::new();
    for i in 0..JOBS {
        // Some greedy, most not.
        let how = if i % 4 == 3 { Sampling::GREEDY } else { sampling() };
        jobs.push((i, stage.ask_sampled(&prompt(i), NEW, &how).await.unwrap()));
    }
    let cpu = Cpu::with_threads(stage.model.clone(), 1).unwrap();
    let mut seeds = Vec::new();
    for (i, id) in &jobs {
        let Ok(job) = stage.until(*id, JobState::Submitted, PATIENCE).await else {
            panic!("{}", node.complaint("a job is not answered"));
        };
        let run = run_params(job.sampling, job.seed).unwrap();
        let stop = &stage.model.manifest().stop_tokens;
        let request = Request { prompt: &prompt(*i), max_new: NEW, stop, run, cancel: None };
        let alone = generate(&cpu, &request, &mut |_| {}).unwrap();
        assert_eq!(job.layersRoot, B256::from(alone.trace.tree.layers_root()), "job {id}");
        assert_eq!(job.seed == B256::ZERO, run.sampling == Sampling::GREEDY, "job {id}");
        seeds.push(job.seed);
    }
    seeds.retain(|s| *s != B256::ZERO);
    seeds.sort();
    seeds.dedup();
    assert_eq!(seeds.len(), 6, "every sampled job has a seed of its own");

    let start = Instant::now();
    let audited = || watcher.events().into_iter().filter(|e| e["event"] == "audited").collect::<Vec<_>>();
    while audited().len() < JOBS as usize {
        assert!(start.elapsed() < PATIENCE, "{}", watcher.complaint("not every job is audited"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(audited().iter().all(|e| e["ok"] == true), "{}", watcher.complaint("a right answer looks wrong"));
    stage.skip_window().await.unwrap();
    for (_, id) in jobs {
        stage
            .until(id, JobState::Final, PATIENCE)
            .await
            .unwrap_or_else(|e| panic!("{}", node.complaint(&e.to_string())));
    }
}

/// A sampled job whose node lies is slashed; returns the proof.
async fn slashed(lie: &str) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::stored(model(dir.path())).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", lie, "--seed", "5"]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    let job = stage.ask_sampled(&prompt(1), 8, &sampling()).await.unwrap();
    let submitted = stage.until(job, JobState::Submitted, PATIENCE).await;
    let submitted = submitted.unwrap_or_else(|e| panic!("{}", liar.complaint(&e.to_string())));
    let told =
        |p: &Process, e: &dyn std::fmt::Display| panic!("{}\n{}", p.complaint(&e.to_string()), liar.complaint(""));
    let proven = watcher.wait("proven", PATIENCE).await.unwrap_or_else(|e| told(&watcher, &e));
    stage.skip_challenger_turn().await.unwrap();
    watcher.wait("withdrawn", PATIENCE).await.unwrap_or_else(|e| told(&watcher, &e));
    stage.until(job, JobState::Slashed, PATIENCE).await.unwrap();
    stage.settle_slash(&submitted).await.unwrap();
    let lied = liar.wait("lied", Duration::ZERO).await.unwrap();
    for field in ["layer", "row", "op", "element", "opcode", "claimed"] {
        assert_eq!(lied[field], proven[field], "{lied} {proven}");
    }
    proven
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_draw_did_not_give_is_slashed() {
    assert_eq!(slashed("token").await["opcode"], "SAMPLE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_draw_is_slashed() {
    assert_eq!(slashed("SAMPLE").await["opcode"], "SAMPLE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_penalty_is_slashed() {
    assert_eq!(slashed("TEMPER+interactive").await["opcode"], "TEMPER");
}
