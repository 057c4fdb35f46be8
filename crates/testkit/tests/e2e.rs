//! Every lie, told by a process of its own on a chain of its own, ends in a slash; honest nodes are left alone. The chain, the
//! nodes and the watcher are the programs that people run.
//!
//! Turns are long, so that a busy machine does not decide an outcome; where a turn must pass, the chain's clock jumps.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::primitives::U256;
use alloy::providers::Provider;
use serde_json::Value;
use sworn_bindings::JobState;
use sworn_engine::{Backend, Cpu};
use sworn_model::{Message, Model};
use sworn_testkit::devnet::{DevnetError, ETHER, PURSE};
use sworn_testkit::liar::perturb;
use sworn_testkit::process::Process;
use sworn_testkit::scenario::{Stage, prompt};
use sworn_testkit::tried::tried;
use sworn_watcher::{Config, watch};
use tokio::task::JoinHandle;

const LIAR: &str = env!("CARGO_BIN_EXE_sworn-liar");
/// For a whole challenge on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// A watcher: `sworn watch`, or in this process with a model that the test has damaged.
enum Watcher {
    Program(Box<Process>),
    Task { events: Arc<Mutex<Vec<Value>>>, task: JoinHandle<()> },
}

impl Watcher {
    fn start(stage: &Stage) -> Self {
        Watcher::Program(Box::new(stage.watch(&[]).unwrap()))
    }

    fn with_model(stage: &Stage, model: Arc<Model>) -> Self {
        let mut config = Config::new(&stage.net.rpc, stage.net.deployment.clone(), stage.watcher.dir.join("broken"));
        config.backends.push(Arc::new(Cpu::with_threads(model, 1).unwrap()) as Arc<dyn Backend>);
        let events = Arc::new(Mutex::new(Vec::new()));
        let (sink, key) = (events.clone(), stage.watcher.signer.clone());
        let task = tokio::spawn(async move {
            let tell =
                move |e: &sworn_watcher::WatcherEvent| sink.lock().unwrap().push(serde_json::to_value(e).unwrap());
            watch(config, Some(key.into()), tell, std::future::pending()).await.unwrap();
        });
        Watcher::Task { events, task }
    }

    fn all(&self) -> Vec<Value> {
        match self {
            Watcher::Program(p) => p.events(),
            Watcher::Task { events, .. } => events.lock().unwrap().clone(),
        }
    }

    fn named(&self, event: &str) -> Vec<Value> {
        self.all().into_iter().filter(|e| e["event"] == event).collect()
    }

    fn story(&self) -> String {
        match self {
            Watcher::Program(p) => p.complaint("so far").to_string(),
            Watcher::Task { .. } => self.all().iter().map(|e| format!("{e}\n")).collect(),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Watcher::Task { task, .. } = self {
            task.abort();
        }
    }
}

struct Played {
    lied: Value,
    watcher: Watcher,
}

impl Played {
    fn proven(&self) -> Value {
        self.watcher
            .named("proven")
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("nothing proven:\n{}", self.watcher.story()))
    }

    fn count(&self, event: &str) -> usize {
        self.watcher.named(event).len()
    }

    fn gas(&self) -> u64 {
        self.watcher.all().iter().filter_map(|e| e["gas"].as_u64()).sum()
    }
}

/// Lies, watches, and returns when the job is slashed, everything is withdrawn and every token accounted for.
async fn play(lie: &str, seed: u64) -> Played {
    play_on(Stage::synthetic(1).await.unwrap(), lie, seed, &prompt(21), 8, &[]).await
}

async fn play_on(stage: Stage, lie: &str, seed: u64, prompt: &[u32], max_new: u32, more: &[&str]) -> Played {
    let seed = seed.to_string();
    let arguments = [&["--lie", lie, "--seed", &seed], more].concat();
    let liar = stage.liar(Path::new(LIAR), &arguments).await.unwrap();
    let watcher = Watcher::start(&stage);
    let job = stage.ask(prompt, max_new).await.unwrap();
    if let Err(e) = stage.to_the_slash(&liar, || watcher.all(), job, PATIENCE).await {
        panic!("{lie}: {e}\nwatcher:\n{}\n{}", watcher.story(), liar.complaint(""));
    }
    let lied = liar.wait("lied", Duration::ZERO).await.unwrap();
    tried(
        "liars as processes on anvil, all slashed",
        1,
        0,
        "lies and silences of every kind; every token accounted for",
    );
    Played { lied, watcher }
}

/// The watcher has proven exactly the first wrong element of what was committed to.
fn assert_exact(played: &Played) {
    let (lied, proven) = (&played.lied, played.proven());
    for (a, b) in [
        ("layer", "layer"),
        ("row", "row"),
        ("op", "op"),
        ("element", "element"),
        ("opcode", "opcode"),
        ("claimed", "claimed"),
    ] {
        assert_eq!(lied[a], proven[b], "{a}: {lied} {proven}");
    }
    // For a selection either of two values can be held against the claim.
    if proven["opcode"] != "SELECT" {
        assert_eq!(lied["honest"], proven["computed"], "{lied} {proven}");
    }
    assert_ne!(proven["claimed"], proven["computed"]);
    eprintln!(
        "{}: layer {} row {} element {}: {} is {}; {} demands, {} gas",
        proven["opcode"],
        proven["layer"],
        proven["row"],
        proven["element"],
        proven["claimed"],
        proven["computed"],
        played.count("demanded"),
        played.gas()
    );
}

macro_rules! wrong_element {
    ($($test:ident $opcode:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                // Another place for every opcode.
                let seed = sworn_isa::Opcode::from_name($opcode).map_or(0, |o| 40 + o as u64);
                let played = play($opcode, seed).await;
                assert_eq!(played.proven()["opcode"], $opcode);
                assert_eq!(played.count("demanded"), 1, "{}", played.watcher.story());
                assert_exact(&played);
            }
        )*

        #[test]
        fn every_opcode_is_lied_about() {
            // The others, which this model's program does not have, are lied about in tests/families.rs.
            let tested = [$($opcode),*];
            let llama = |o: &&sworn_isa::Opcode| **o <= sworn_isa::Opcode::Select || **o >= sworn_isa::Opcode::Top;
            assert!(sworn_isa::Opcode::ALL.iter().filter(llama).all(|o| tested.contains(&o.name())));
        }
    };
}

wrong_element! {
    lie_embed "EMBED", lie_max_abs "MAX_ABS", lie_sum_sq "SUM_SQ", lie_rms "RMS", lie_gain "GAIN", lie_quant "QUANT",
    lie_quant_scale "QUANT_SCALE", lie_norm_scale "NORM_SCALE", lie_linear "LINEAR", lie_rope "ROPE", lie_scale_q "SCALE_Q",
    lie_to_fixed "TO_FIXED", lie_scores "SCORES", lie_row_max "ROW_MAX", lie_exp "EXP", lie_row_sum "ROW_SUM", lie_prob "PROB",
    lie_mix "MIX", lie_silu_mul "SILU_MUL", lie_add "ADD", lie_select "SELECT", lie_top "TOP", lie_mass "MASS", lie_log_sum "LOG_SUM",
    lie_log_prob "LOG_PROB",
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_token() {
    let played = play("token", 3).await;
    assert_eq!(played.proven()["opcode"], "SELECT");
    assert_exact(&played);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_model() {
    let played = play("model", 5).await;
    assert_exact(&played);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_withhold() {
    let played = play("withhold", 4).await;
    assert_eq!((played.count("demanded"), played.count("answered"), played.count("timed_out")), (1, 0, 1));
}

/// Answers to begin with, then falls silent.
async fn falls_silent(lie: &str, seed: u64, answered: std::ops::RangeInclusive<usize>, at: &str) {
    let played = play(lie, seed).await;
    assert!(answered.contains(&played.count("answered")), "{}", played.watcher.story());
    let timed_out = &played.watcher.named("timed_out")[0];
    assert!(timed_out["target"].as_str().unwrap().contains(at), "{timed_out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_withhold_positions() {
    falls_silent("MIX+withhold:positions", 6, 1..=1, "level").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_withhold_operators() {
    falls_silent("ADD+withhold:oplist", 7, 2..=2, "operators").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_withhold_pages() {
    falls_silent("EXP+withhold:pages", 8, 3..=3, "page").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_mute() {
    // The trace is served, so one demand suffices to find out.
    falls_silent("LINEAR+mute", 9, 0..=0, "operators").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_malformed() {
    falls_silent("malformed", 10, 0..=0, "layer roots").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_padding() {
    falls_silent("padding+interactive", 11, 3..=3, "page").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_second_story() {
    let played = play("SCORES+second-story", 12).await;
    assert_exact(&played);
    assert!(played.watcher.named("asked").iter().all(|e| e["served"] == false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lie_interactive() {
    let played = play("SILU_MUL+interactive", 13).await;
    assert_exact(&played);
    assert_eq!(played.count("answered"), 4, "{}", played.watcher.story());
    // The committed trace is that of an honest execution, so there is nothing to descend to.
    let played = play("token+interactive", 14).await;
    assert_exact(&played);
    assert_eq!(played.count("answered"), 1, "{}", played.watcher.story());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_watcher_goes_on() {
    let stage = Stage::synthetic(2).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "ROW_SUM+interactive", "--seed", "15"]).await.unwrap();
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    let submitted = stage.until(job, JobState::Submitted, PATIENCE).await.unwrap();
    let mut told = Vec::new();
    // Killed after every step of the challenge.
    for step in ["demanded", "answered", "announced", "proven", "withdrawn"] {
        let watcher = Watcher::start(&stage);
        let start = Instant::now();
        let mut skipped = false;
        while watcher.named(step).is_empty() {
            assert!(start.elapsed() < PATIENCE, "no {step}:\n{}\n{}", watcher.story(), liar.complaint(""));
            if !skipped && !watcher.named("slashed").is_empty() {
                skipped = true;
                stage.skip_challenger_turn().await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        told.extend(watcher.all());
        drop(watcher);
    }
    let count = |name: &str| told.iter().filter(|e| e["event"] == name).count();
    assert_eq!((count("announced"), count("proven")), (1, 1));
    stage.settle_slash(&submitted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slash_that_a_reorganisation_takes_back_comes_again() {
    let stage = Stage::synthetic(3).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "LINEAR", "--seed", "17"]).await.unwrap();
    // The job is much older than its end.
    liar.hold(true).unwrap();
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    stage.net.mine(sworn_chain::REACH + 20).await.unwrap();
    liar.hold(false).unwrap();
    stage.until(job, JobState::Submitted, PATIENCE).await.unwrap();
    for _ in 0..2 {
        let mut watcher = stage.watch(&["--once"]).unwrap();
        let slashed = stage.to_the_slash(&liar, || watcher.events(), job, PATIENCE).await;
        slashed.unwrap_or_else(|e| panic!("{e}\n{}\n{}", watcher.complaint(""), liar.complaint("")));
        // Nothing is left to do, as far as it can know.
        watcher.ended(PATIENCE).await.unwrap();
        let market = stage.net.chain.market();
        let is_slashed = async |block: u64| {
            let job = market.job(U256::from(job)).block(block.into()).call().await.map_err(DevnetError::other)?;
            Ok(job.state == JobState::Slashed)
        };
        stage.net.undo(is_slashed).await.unwrap();
        assert_eq!(stage.job(job).await.unwrap().state, JobState::Submitted);
    }
}

/// Every demand pays a fee, which the market may take because the watcher allowed it when it started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_whose_allowance_a_reorganisation_takes_back_challenges_all_the_same() {
    let stage = Stage::synthetic(3).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "LINEAR+interactive", "--seed", "18"]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    watcher.wait("caught_up", PATIENCE).await.unwrap();
    let (token, me) = (stage.net.chain.token(), stage.watcher.address());
    let allowed = async |block: u64| {
        let allowance = token.allowance(me, stage.net.deployment.market).block(block.into()).call().await;
        Ok(allowance.map_err(DevnetError::other)? > U256::ZERO)
    };
    stage.net.undo(allowed).await.unwrap();
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    let slashed = stage.to_the_slash(&liar, || watcher.events(), job, PATIENCE).await;
    slashed.unwrap_or_else(|e| panic!("{e}\n{}\n{}", watcher.complaint(""), liar.complaint("")));
}

/// An account without money for gas can allow nothing; when it has some, nobody must start the watcher again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_whose_account_gets_its_gas_money_late_challenges_all_the_same() {
    let stage = Stage::synthetic(3).await.unwrap();
    let me = stage.watcher.address();
    stage.net.set_ether(me, 0).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "LINEAR+interactive", "--seed", "19"]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    watcher.wait("error", PATIENCE).await.unwrap();
    watcher.wait("caught_up", PATIENCE).await.unwrap();
    stage.net.set_ether(me, ETHER).await.unwrap();
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    let slashed = stage.to_the_slash(&liar, || watcher.events(), job, PATIENCE).await;
    slashed.unwrap_or_else(|e| panic!("{e}\n{}\n{}", watcher.complaint(""), liar.complaint("")));
}

/// In the blocks that replace others the reward may not yet be due when its settlement comes, so that what withdrew it withdraws less.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reward_that_a_reorganisation_puts_behind_its_withdrawal_is_withdrawn_all_the_same() {
    let stage = Stage::synthetic(3).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "LINEAR+interactive", "--seed", "20"]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    let complain = |e: DevnetError| panic!("{e}\n{}\n{}", watcher.complaint(""), liar.complaint(""));
    let submitted = stage.to_the_withdrawal(&liar, || watcher.events(), job, PATIENCE).await.unwrap_or_else(complain);

    let provider = stage.net.chain.provider();
    let proven = watcher.wait("proven", Duration::ZERO).await.unwrap()["block"].as_u64().unwrap();
    let sent: Vec<Value> = watcher.events().into_iter().filter(|e| e["event"] == "sent").collect();
    let after = sent.iter().filter(|e| e["block"].as_u64().unwrap() > proven);
    let (calls, hashes): (Vec<&str>, Vec<&Value>) = after.map(|e| (e["call"].as_str().unwrap(), &e["tx"])).unzip();
    assert!(calls.contains(&"settleReward") && calls.last() == Some(&"withdraw"), "{sent:?}");
    let mut raw = Vec::new();
    for hash in &hashes {
        let method = "eth_getRawTransactionByHash".into();
        raw.push(provider.raw_request::<_, Value>(method, [hash]).await.unwrap());
    }
    stage.net.roll_back(stage.net.chain.head().await.unwrap().number - proven).await.unwrap();
    let soon = stage.net.chain.head().await.unwrap().timestamp + 1;
    provider.raw_request::<_, Value>("evm_setNextBlockTimestamp".into(), [soon]).await.unwrap();
    for raw in raw {
        // The watcher may have been quicker.
        drop(provider.raw_request::<_, Value>("eth_sendRawTransaction".into(), [raw]).await);
    }
    for (call, hash) in calls.iter().zip(hashes) {
        let hash = hash.as_str().unwrap().parse().unwrap();
        let receipt = provider.get_transaction_receipt(hash).await.unwrap().unwrap_or_else(|| panic!("{call} is lost"));
        assert_eq!(receipt.status(), *call != "settleReward", "{call}");
    }

    stage.skip_challenger_turn().await.unwrap();
    let start = Instant::now();
    while let Err(e) = stage.settle_slash(&submitted).await {
        if start.elapsed() > PATIENCE {
            complain(e);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_watchers_share_one_reward() {
    let mut stage = Stage::synthetic(4).await.unwrap();
    let second = stage.net.actor("second").await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "GAIN+interactive", "--seed", "16"]).await.unwrap();
    let watchers = [stage.watch(&[]).unwrap(), stage.watch_as(&second, &[]).unwrap()];
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    let start = Instant::now();
    let told = |event: &str| watchers.iter().filter(|w| w.events().iter().any(|e| e["event"] == event)).count();
    while told("proven") == 0 {
        let story = || watchers.iter().map(|w| w.complaint("").to_string()).collect::<String>();
        assert!(start.elapsed() < PATIENCE, "{}{}", story(), liar.complaint(""));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let slashed = stage.until(job, JobState::Slashed, PATIENCE).await.unwrap();
    // Whoever announced earlier takes the reward over if the other proved first.
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.skip_challenger_turn().await.unwrap();
    for w in &watchers {
        if w.events().iter().any(|e| e["event"] == "demanded" || e["event"] == "proven") {
            w.wait("withdrawn", PATIENCE).await.unwrap();
        }
    }
    assert_eq!(told("proven"), 1);
    assert_eq!(told("rewarded"), 1);
    let reward = slashed.bond * 4_000 / 10_000;
    let mut purses = [U256::ZERO; 2];
    for (purse, who) in purses.iter_mut().zip([&stage.watcher, &second]) {
        *purse = stage.net.tokens_of(who.address()).await.unwrap();
    }
    purses.sort();
    assert_eq!(purses, [U256::from(PURSE), U256::from(PURSE + reward)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_was_full_answers_when_there_is_room_again() {
    let mut stage = Stage::synthetic(3).await.unwrap();
    stage.disks_fill = true;
    let node = stage.node(&[]).await.unwrap();
    node.fill_disk(true).unwrap();
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    node.wait("failed", PATIENCE).await.unwrap();
    node.fill_disk(false).unwrap();
    stage.until(job, JobState::Submitted, PATIENCE).await.unwrap();
    assert_eq!(node.starts(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_nodes_are_paid_and_broken_watchers_silent() {
    let stage = Stage::synthetic(3).await.unwrap();
    let node = stage.node(&[]).await.unwrap();
    let watcher = Watcher::start(&stage);
    let job = stage.ask(&prompt(21), 8).await.unwrap();
    let submitted = stage.until(job, JobState::Submitted, PATIENCE).await.unwrap();
    wait(&watcher, "audited").await;
    assert_eq!(watcher.named("audited")[0]["ok"], true);
    drop(watcher);

    // Its files were damaged after they were imported: it sees a wrong trace everywhere, and says so of itself.
    let damaged = perturb(&stage.model, 1, &stage.watcher.dir).unwrap();
    let broken = Watcher::with_model(&stage, Arc::new(damaged));
    wait(&broken, "self_check_failed").await;
    assert_eq!(broken.named("audited")[0]["ok"], false);
    assert!(broken.named("demanded").is_empty());

    stage.skip_window().await.unwrap();
    stage.until(job, JobState::Final, PATIENCE).await.unwrap();
    node.wait("withdrawn", PATIENCE).await.unwrap();
    assert!(!broken.all().iter().any(|e| e["event"] == "announced" || e["event"] == "demanded"));
    assert!(node.events().iter().all(|e| e["event"] != "slashed"));
    stage.settle_final(&submitted).await.unwrap();
}

async fn wait(watcher: &Watcher, event: &str) {
    let start = Instant::now();
    while watcher.named(event).is_empty() {
        assert!(start.elapsed() < PATIENCE, "no {event}:\n{}", watcher.story());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The real model, fetched if it is not on this machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smollm2_lies() {
    let home = sworn_model::ModelStore::from_env().unwrap().home().to_owned();
    let model = tokio::task::spawn_blocking(move || sworn_model::pull("smollm2-135m", home, &mut |_| {}));
    let model = model.await.unwrap().unwrap();
    let prompt = model.encode_chat(&[Message::new("user", "Why is the sky blue?")]).unwrap();
    let stage = Stage::stored(model).await.unwrap();
    let played = play_on(stage, "LINEAR", 2, &prompt, 12, &["--layer", "17"]).await;
    assert_exact(&played);
    let ms = |event: &str| played.watcher.named(event)[0]["ms"].clone();
    eprintln!("audit {} ms, self-check {} ms, proof {} gas", ms("audited"), ms("self_checked"), played.proven()["gas"]);
}
