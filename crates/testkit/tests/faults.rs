//! Games in which everything fails but the money: the RPC server of each agent (late, lost, unanswered, twice, 429, an old head), the chain
//! (reorganisations, a lost mempool, fees a hundredfold, stalls), the agents themselves (killed between a request and its answer, started
//! again), their disks (full for a while), their owners (two installations on one key). A liar is slashed all the same and its watcher paid;
//! an honest node is paid and never challenged; every token is where it must be.
//!
//! `SWORN_FAULTS` says how many games, `SWORN_SEED` where to begin; a seed is a game.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use sworn_bindings::JobState;
use sworn_testkit::actors::Actor;
use sworn_testkit::devnet::{DevnetError, free_port};
use sworn_testkit::faulty::FaultyRpc;
use sworn_testkit::process::Process;
use sworn_testkit::scenario::{Stage, eventually, prompt};
use sworn_testkit::tried::{times, tried};
use sworn_testkit::weather::Weather;

const LIAR: &str = env!("CARGO_BIN_EXE_sworn-liar");
/// What liars lie about.
const LIES: [&str; 7] = ["LINEAR", "MIX", "ADD", "RMS", "EXP", "SCORES", "token"];
const PATIENCE: Duration = Duration::from_secs(300);

type Result<T, E = DevnetError> = std::result::Result<T, E>;
type Met = BTreeMap<&'static str, u64>;

/// What goes wrong in a game.
#[derive(Debug)]
struct Plan {
    /// What the node lies about, and how it plays; none: it is honest.
    lie: Option<String>,
    server: bool,
    /// Troubles of the chain.
    weather: u32,
    /// Of each agent.
    deaths: u32,
    twins: bool,
    full_disks: u32,
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Plan {
            lie: rng.random_bool(0.5).then(|| {
                let plays: Vec<&str> = Actor::all().into_iter().filter_map(Actor::argument).collect();
                format!("{}{}", LIES[rng.random_range(0..LIES.len())], plays[rng.random_range(0..plays.len())])
            }),
            server: rng.random_bool(0.6),
            weather: if rng.random_bool(0.6) { rng.random_range(1..12) } else { 0 },
            deaths: if rng.random_bool(0.5) { rng.random_range(1..6) } else { 0 },
            twins: rng.random_bool(0.25),
            full_disks: if rng.random_bool(0.25) { rng.random_range(1..3) } else { 0 },
        }
    }
}

/// What several processes told, in an order that only grows.
#[derive(Default)]
struct Told {
    read: Vec<usize>,
    all: Vec<Value>,
}

impl Told {
    fn by(&mut self, agents: &[&Process]) -> Vec<Value> {
        self.read.resize(agents.len(), 0);
        for (agent, read) in agents.iter().zip(&mut self.read) {
            let events = agent.events();
            self.all.extend(events[*read..].iter().cloned());
            *read = events.len();
        }
        self.all.clone()
    }
}

struct Game {
    seed: u64,
    plan: Plan,
    stage: Stage,
    /// Before the node, and before the watcher; their twins share them.
    servers: [FaultyRpc; 2],
    nodes: Vec<Arc<Process>>,
    watchers: Vec<Arc<Process>>,
    told: Mutex<Told>,
}

impl Game {
    /// Everybody is there, and nothing has failed yet: a program that starts on a dead server says so and ends.
    async fn set_up(seed: u64) -> Result<Game> {
        let plan = Plan::of(seed);
        let mut stage = Stage::synthetic(seed).await?;
        stage.disks_fill = plan.full_disks > 0;
        let server = async |n: u64| {
            let server = FaultyRpc::start(&stage.net.rpc, seed * 2 + n).await?;
            server.calm(true);
            Ok::<_, DevnetError>(server)
        };
        let servers = [server(0).await?, server(1).await?];
        stage.agents_rpc = servers[0].url.clone();
        let mut nodes = Vec::new();
        match &plan.lie {
            Some(lie) => {
                let arguments = ["--lie", lie, "--seed", &seed.to_string()];
                nodes.push(Arc::new(stage.liar(Path::new(LIAR), &arguments).await?));
            }
            None => {
                nodes.push(Arc::new(stage.node(&[]).await?));
                if plan.twins {
                    let listen = format!("127.0.0.1:{}", free_port()?);
                    let twin = stage.operator.twin("operator-twin")?;
                    nodes.push(Arc::new(stage.node_of(&twin, &listen, &[]).await?));
                }
            }
        }
        stage.agents_rpc = servers[1].url.clone();
        let mut watchers = vec![Arc::new(stage.watch(&[])?)];
        if plan.twins {
            watchers.push(Arc::new(stage.watch_as(&stage.watcher.twin("watcher-twin")?, &[])?));
        }
        for watcher in &watchers {
            watcher.wait("started", PATIENCE).await?;
        }
        Ok(Game { seed, plan, stage, servers, nodes, watchers, told: Mutex::default() })
    }

    fn told(&self) -> Vec<Value> {
        let watchers: Vec<&Process> = self.watchers.iter().map(AsRef::as_ref).collect();
        self.told.lock().unwrap().by(&watchers)
    }

    /// From the question to the last token.
    async fn play(&self) -> Result<Met> {
        let job = self.stage.ask(&prompt(15), 6).await?;
        // The user's own transactions are nobody's to lose.
        self.stage.net.settle().await?;
        let clients = [&self.nodes[0], &self.watchers[0]];
        for (server, client) in self.servers.iter().zip(clients) {
            server.calm(!self.plan.server);
            server.kills(client.clone(), self.plan.deaths);
        }
        let weather = Weather::start(&self.stage.net, self.seed, self.plan.weather);
        let outcome = async {
            match &self.plan.lie {
                Some(_) => self.to_the_slash(job).await,
                None => self.to_the_pay(job).await,
            }
        };
        tokio::select! {
            ended = outcome => ended?,
            failed = self.keep_running() => failed.map(drop)?,
            failed = self.fill_disks() => failed.map(drop)?,
        }
        let mut met = weather.met();
        for server in &self.servers {
            server.met().into_iter().for_each(|(kind, n)| *met.entry(kind).or_default() += n);
        }
        *met.entry("full disks").or_default() += u64::from(self.plan.full_disks);
        *met.entry("twins").or_default() += u64::from(self.plan.twins);
        Ok(met)
    }

    async fn to_the_slash(&self, job: u64) -> Result<()> {
        let submitted = self.stage.to_the_withdrawal(&self.nodes[0], || self.told(), job, PATIENCE).await?;
        // A reorganisation may still take back what was told.
        self.stage.until(job, JobState::Slashed, PATIENCE).await?;
        eventually(PATIENCE, async || self.stage.settle_slash(&submitted).await).await
    }

    async fn to_the_pay(&self, job: u64) -> Result<()> {
        let submitted = self.stage.until(job, JobState::Submitted, PATIENCE).await?;
        eventually(PATIENCE, async || {
            let audited = self.told().iter().any(|e| e["event"] == "audited");
            audited.then_some(()).ok_or_else(|| DevnetError::other("nobody audits the answer"))
        })
        .await?;
        self.stage.skip_window().await?;
        self.stage.until(job, JobState::Final, PATIENCE).await?;
        eventually(PATIENCE, async || self.stage.settle_final(&submitted).await).await?;
        let accusation = |e: &&Value| ["announced", "demanded", "lodged"].iter().any(|kind| e["event"] == *kind);
        match self.told().iter().find(accusation) {
            Some(event) => Err(DevnetError::Other(format!("an honest node was challenged: {event}"))),
            None => Ok(()),
        }
    }

    async fn keep_running(&self) -> Result<std::convert::Infallible> {
        let agents = self.nodes.iter().chain(&self.watchers).map(|agent| agent.keep_running());
        futures_util::future::select_all(agents.map(Box::pin)).await.0
    }

    /// One agent's after the other's, for seconds.
    async fn fill_disks(&self) -> Result<std::convert::Infallible> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0xD15C);
        let agents = [&self.nodes[0], &self.watchers[0]];
        for _ in 0..self.plan.full_disks {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..3_000))).await;
            let agent = agents[rng.random_range(0..2)];
            agent.fill_disk(true)?;
            tokio::time::sleep(Duration::from_millis(rng.random_range(500..5_000))).await;
            agent.fill_disk(false)?;
        }
        std::future::pending().await
    }

    /// Everything that may explain a failure, in a file.
    fn report(&self, error: &DevnetError) -> String {
        let agents = self.nodes.iter().chain(&self.watchers);
        let complaints: Vec<String> =
            agents.map(|a| a.complaint(&format!("started {} times", a.starts())).to_string()).collect();
        let met: Vec<Met> = self.servers.iter().map(FaultyRpc::met).collect();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{}.log", self.seed));
        let text = format!("{:?}\n{error}\n{met:?}\n\n{}", self.plan, complaints.join("\n\n"));
        std::fs::write(&path, text).unwrap();
        format!("seed {}, {:?}: {error} ({})", self.seed, self.plan, path.display())
    }
}

async fn play(seed: u64) -> Result<Met, String> {
    let game = Game::set_up(seed).await.map_err(|e| format!("seed {seed}: {e}"))?;
    let played = game.play().await.map_err(|e| game.report(&e));
    if std::env::var_os("SWORN_FAULTS_TELL").is_some() {
        eprintln!("seed {seed}: {}", if played.is_ok() { "as it should be" } else { "FAILED" });
    }
    played
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn games_in_which_everything_fails_but_the_money() {
    let (games, first) = (times("SWORN_FAULTS", 50), times("SWORN_SEED", 1));
    // Agents wait more than they work.
    let at_once = std::thread::available_parallelism().map_or(2, usize::from) * 3;
    let played: Vec<_> = stream::iter(first..first + games).map(play).buffer_unordered(at_once).collect().await;
    let failed: Vec<&String> = played.iter().filter_map(|p| p.as_ref().err()).collect();
    let mut met = Met::new();
    let faults = played.iter().flatten().flatten();
    faults.for_each(|(kind, n)| *met.entry(kind).or_default() += n);
    let kinds: Vec<String> = met.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    tried("games in which server, chain, disk and process fail", games, failed.len() as u64, kinds.join(", "));
    assert!(failed.is_empty(), "{} of {games} games: {failed:#?}", failed.len());
    assert!(games < 20 || met.len() > 10, "too few kinds of faults: {met:?}");
}
