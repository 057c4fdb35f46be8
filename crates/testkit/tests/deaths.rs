//! Programs that are killed just before a write to the disk: the first life at the first write, the n-th at the n-th, until one lives to the
//! end. Each place between two writes of node and watcher is one where it died, and what was half done then is done in the end, once.
//!
//! And a node that a prompt takes more memory from than it has: it ends that job late, and no other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sworn_bindings::JobState;
use sworn_model::SyntheticSpec;
use sworn_testkit::devnet::{DevnetError, Terms};
use sworn_testkit::process::Process;
use sworn_testkit::scenario::{Stage, eventually, prompt};
use sworn_testkit::tried::tried;

const LIAR: &str = env!("CARGO_BIN_EXE_sworn-liar");
const PATIENCE: Duration = Duration::from_secs(240);
/// Fewer would mean that the game was over before the writes began.
const LEAST: u32 = 20;

type Result<T, E = DevnetError> = std::result::Result<T, E>;

/// `dies_at_writes`, which is built beside the tests.
fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let found = exe.ancestors().map(|d| d.join("examples/libdies_at_writes.so")).find(|p| p.is_file());
    found.expect("the library `dies_at_writes` is not built: run `cargo build --workspace --examples`")
}

/// Agents that start from now on die at their writes once the file that this names is there.
fn doomed(stage: &mut Stage, name: &str) -> PathBuf {
    let file = stage.net.dir.path().join(format!("{name}.lives"));
    stage.environment = vec![("LD_PRELOAD", library()), ("SWORN_DIES", file.clone())];
    file
}

/// A game during which agents die and are started again.
async fn play(agents: &[&Process], game: impl Future<Output = Result<()>>) {
    let keep = agents.iter().map(|a| Box::pin(a.keep_running()));
    let ended = tokio::select! {
        ended = game => ended,
        (failed, ..) = futures_util::future::select_all(keep) => failed.map(drop),
    };
    let lives: Vec<u32> = agents.iter().map(|a| a.starts()).collect();
    if let Err(e) = ended {
        let stories: Vec<String> = agents.iter().map(|a| a.complaint("").to_string()).collect();
        panic!("{e}, after {lives:?} lives\n{}", stories.join("\n"));
    }
    assert!(lives.iter().all(|n| *n >= LEAST), "{lives:?} lives");
    let deaths = lives.iter().map(|n| u64::from(n - 1)).sum();
    tried(
        "processes killed at a write to the disk, nothing lost or done twice",
        deaths,
        0,
        "each write of node and watcher, in turn",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2e_a_node_that_dies_at_every_write_is_paid_once() {
    let mut stage = Stage::synthetic(1).await.unwrap();
    let lives = doomed(&mut stage, "node");
    let node = stage.node(&[]).await.unwrap();
    std::fs::write(lives, []).unwrap();
    let game = async {
        let job = stage.ask(&prompt(15), 6).await?;
        let submitted = stage.until(job, JobState::Submitted, PATIENCE).await?;
        stage.skip_window().await?;
        stage.until(job, JobState::Final, PATIENCE).await?;
        eventually(PATIENCE, async || stage.settle_final(&submitted).await).await
    };
    play(&[&node], game).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2e_a_liar_and_a_watcher_that_die_at_every_write_end_in_one_slash() {
    let mut stage = Stage::synthetic(1).await.unwrap();
    let liars = doomed(&mut stage, "liar");
    let liar = stage.liar(Path::new(LIAR), &["--lie", "LINEAR+interactive", "--seed", "5"]).await.unwrap();
    let watchers = doomed(&mut stage, "watcher");
    let watcher = stage.watch(&[]).unwrap();
    watcher.wait("started", PATIENCE).await.unwrap();
    let job = stage.ask(&prompt(15), 6).await.unwrap();
    for lives in [liars, watchers] {
        std::fs::write(lives, []).unwrap();
    }
    let game = async {
        let submitted = stage.to_the_withdrawal(&liar, || watcher.events(), job, PATIENCE).await?;
        eventually(PATIENCE, async || stage.settle_slash(&submitted).await).await
    };
    play(&[&liar, &watcher], game).await;
}

/// A long prompt takes hundreds of megabytes, which are found to be missing while it is executed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2e_a_prompt_that_does_not_fit_into_memory_ends_its_own_job_alone() {
    let spec = SyntheticSpec {
        layers: 12,
        hidden: 64,
        heads: 8,
        kv_heads: 8,
        head_dim: 64,
        ffn: 64,
        context: 8_192,
        ..SyntheticSpec::default()
    };
    let mut stage = Stage::of(Terms::default(), &spec).await.unwrap();
    let node = stage.node(&[]).await.unwrap();
    let first = stage.ask(&prompt(15), 6).await.unwrap();
    stage.until(first, JobState::Submitted, PATIENCE).await.unwrap();
    // As much as it has taken so far, and half of what the prompt takes.
    stage.memory = Some(node.data().unwrap() + (100 << 20));
    drop(node);
    let node = stage.node_of(&stage.operator, &stage.listen, &[]).await.unwrap();
    let game = async {
        let long = stage.ask(&prompt(8_000), 6).await?;
        let beside = stage.ask(&prompt(16), 6).await?;
        stage.until(beside, JobState::Submitted, PATIENCE).await?;
        eventually(PATIENCE, async || {
            let deadly = |e: &serde_json::Value| e["event"] == "failed" && e["error"].to_string().contains("3 times");
            let told = node.events().iter().any(deadly);
            told.then_some(()).ok_or_else(|| DevnetError::other("it tries again and again"))
        })
        .await?;
        let after = stage.ask(&prompt(17), 6).await?;
        stage.until(after, JobState::Submitted, PATIENCE).await?;
        stage.net.skip(stage.terms.market.submitTimeout.to::<u64>() + 1).await?;
        stage.until(long, JobState::Expired, PATIENCE).await?;
        for job in [first, beside, after] {
            stage.until(job, JobState::Final, PATIENCE).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = game => ended.unwrap_or_else(|e: DevnetError| panic!("{}", node.complaint(&e.to_string()))),
        failed = node.keep_running() => drop(failed.unwrap()),
    }
    let story = node.complaint("").to_string();
    assert!(node.starts() == 4 && story.contains("memory allocation of"), "{story}");
    tried(
        "jobs whose prompt does not fit into memory: late, and no other job with them",
        1,
        0,
        "after three deaths of the node",
    );
}
