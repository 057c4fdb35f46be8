//! Agents whose RPC server fails in every way that servers do: a liar is slashed all the same and its watcher paid, an honest node is paid
//! and never challenged, and every token is where it must be. Part of `make test-long`; `SWORN_FAULTS` says how many games, `SWORN_SEED` where to begin.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use sworn_bindings::JobState;
use sworn_testkit::devnet::DevnetError;
use sworn_testkit::faulty::FaultyRpc;
use sworn_testkit::scenario::{Process, Stage};
use sworn_testkit::tried::{times, tried};

const LIAR: &str = env!("CARGO_BIN_EXE_sworn-liar");
const PATIENCE: Duration = Duration::from_secs(240);

fn prompt() -> Vec<u32> {
    (0..15).map(|i| 3 + (i * 29 + 5) % 300).collect()
}

/// A stage whose agents reach the chain through a server that fails.
async fn stage(seed: u64) -> (Stage, FaultyRpc) {
    let mut stage = Stage::synthetic(seed).await.unwrap();
    let faulty = FaultyRpc::start(&stage.net.rpc, seed).await.unwrap();
    stage.agents_rpc = faulty.url.clone();
    // A program that starts on a dead server says so and ends: that is another test's.
    faulty.calm(true);
    (stage, faulty)
}

async fn liar_is_slashed(seed: u64) -> BTreeMap<&'static str, u64> {
    let lies = ["LINEAR", "MIX", "ADD+interactive", "RMS", "withhold", "EXP", "token", "SCORES+interactive"];
    let (stage, faulty) = stage(seed).await;
    let lie = lies[(seed as usize / 2) % lies.len()];
    let liar = stage.liar(Path::new(LIAR), &["--lie", lie, "--seed", &seed.to_string()]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    watcher.wait("started", PATIENCE).await.unwrap();
    faulty.calm(false);
    let job = stage.ask(&prompt(), 6).await.unwrap();
    if let Err(e) = stage.to_the_slash(&liar, || watcher.events(), job, PATIENCE).await {
        panic!("seed {seed}, {lie}: {e}\n{}\n{}\n{:?}", watcher.complaint(""), liar.complaint(""), faulty.met());
    }
    faulty.met()
}

async fn paid(stage: &Stage, watcher: &Process, job: u64) -> Result<(), DevnetError> {
    let submitted = stage.until(job, JobState::Submitted, PATIENCE).await?;
    watcher.wait("audited", PATIENCE).await?;
    stage.skip_window().await?;
    stage.until(job, JobState::Final, PATIENCE).await?;
    // By its money: a withdrawal whose answer was lost is told of by nobody.
    let start = Instant::now();
    loop {
        match stage.settle_final(&submitted).await {
            Err(e) if start.elapsed() > PATIENCE => return Err(e),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(()) => break,
        }
    }
    let told = |e: &serde_json::Value| e["event"] == "announced" || e["event"] == "demanded" || e["event"] == "lodged";
    match watcher.events().iter().any(told) {
        true => Err(watcher.complaint("an honest node was challenged")),
        false => Ok(()),
    }
}

async fn honest_node_is_paid(seed: u64) -> BTreeMap<&'static str, u64> {
    let (stage, faulty) = stage(seed).await;
    let node = stage.node(&[]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    watcher.wait("started", PATIENCE).await.unwrap();
    faulty.calm(false);
    let job = stage.ask(&prompt(), 6).await.unwrap();
    if let Err(e) = paid(&stage, &watcher, job).await {
        panic!("seed {seed}: {e}\n{}\n{}\n{:?}", watcher.complaint(""), node.complaint(""), faulty.met());
    }
    faulty.met()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2e_agents_behind_a_faulty_server() {
    let (games, first) = (times("SWORN_FAULTS", 4), times("SWORN_SEED", 1));
    let mut met: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in first..first + games {
        let faults = if seed % 2 == 0 { liar_is_slashed(seed).await } else { honest_node_is_paid(seed).await };
        faults.into_iter().for_each(|(kind, n)| *met.entry(kind).or_default() += n);
    }
    let kinds: Vec<String> = met.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    tried("games with agents behind a faulty RPC server", games, 0, kinds.join(", "));
    assert!(met.len() > 2, "{met:?}");
}
