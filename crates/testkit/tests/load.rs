//! Jobs by the thousand: several nodes and watchers as processes on one machine, all jobs in flight at once. None is lost, none late, every
//! token is where it must be, and a second round leaves every process as large as the first left it. `SWORN_LOAD` says how many jobs a round
//! has; the figures are of this machine, which runs the chain and everybody on it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alloy::primitives::U256;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use sworn_bindings::IMarket::IMarketEvents;
use sworn_bindings::{Event, IMarket};
use sworn_chain::{Cursor, CursorOptions, Store};
use sworn_testkit::devnet::{Actor, BURN, DevnetError, Terms, free_port};
use sworn_testkit::process::Process;
use sworn_testkit::scenario::{OUTPUT_PRICE, Stage, eventually};
use sworn_testkit::tried::{times, tried};

const NODES: usize = 3;
const USERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(1_200);
/// What a process may grow by from the end of one round to the end of the next.
const SLACK: u64 = 24 << 20;

type Result<T, E = DevnetError> = std::result::Result<T, E>;

/// Seconds of the chain at which each job was bought, answered, paid.
#[derive(Default)]
struct Times {
    bought: BTreeMap<U256, u64>,
    answered: BTreeMap<U256, u64>,
    paid: BTreeMap<U256, u64>,
    other: Vec<String>,
}

impl Times {
    async fn read(&mut self, cursor: &mut Cursor, stage: &Stage) -> Result<()> {
        let batch = cursor.poll().await.map_err(DevnetError::other)?;
        let mut seconds = BTreeMap::new();
        for seen in &batch.events {
            let Event::Market(event) = &seen.event else { continue };
            let at = match seconds.get(&seen.block) {
                Some(at) => *at,
                None => {
                    let block = stage.net.chain.block(seen.block.into()).await.map_err(DevnetError::other)?;
                    let at = block.ok_or_else(|| DevnetError::other("a block is gone"))?.timestamp;
                    seconds.insert(seen.block, at);
                    at
                }
            };
            match event {
                IMarketEvents::JobCreated(e) => drop(self.bought.insert(e.jobId, at)),
                IMarketEvents::ResultSubmitted(e) => drop(self.answered.insert(e.jobId, at)),
                IMarketEvents::JobFinalized(e) => drop(self.paid.insert(e.jobId, at)),
                IMarketEvents::JobExpired(_) | IMarketEvents::JobSlashed(_) | IMarketEvents::JobCancelled(_) => {
                    self.other.push(format!("{event:?}"));
                }
                _ => {}
            }
        }
        cursor.commit(&batch).map_err(DevnetError::other)
    }
}

struct Load {
    stage: Stage,
    operators: Vec<Actor>,
    users: Vec<Actor>,
    watching: Vec<Actor>,
    nodes: Vec<Process>,
    watchers: Vec<Process>,
    cursor: Cursor,
    times: Times,
    /// The chain's second in which each round's answers could begin.
    held: BTreeMap<u64, u64>,
}

impl Load {
    async fn set_up(jobs: u64) -> Load {
        let long = |seconds: u64| alloy::primitives::Uint::<40, 1>::from(seconds);
        let mut terms = Terms::default();
        terms.market.submitTimeout = long(3_600);
        // A jump of the clock ends it: jobs must not become final while others are still answered.
        terms.market.challengeWindow = long(3_600);
        terms.unstake_delay = 86_400;
        let bond = terms.market.minBond;
        let mut stage = Stage::under(terms, 1).await.unwrap();
        let (mut operators, mut users, mut watching) = (Vec::new(), Vec::new(), Vec::new());
        let capacity = jobs.div_ceil(NODES as u64) as u32;
        let stake = bond * u128::from(capacity);
        for n in 0..NODES {
            operators.push(stage.net.actor_with(&format!("operator-{n}"), stake).await.unwrap());
        }
        for n in 0..USERS {
            users.push(stage.net.actor_with(&format!("user-{n}"), bond * u128::from(jobs)).await.unwrap());
        }
        for n in 0..2 {
            watching.push(stage.net.actor(&format!("watcher-{n}")).await.unwrap());
        }
        let mut nodes = Vec::new();
        for operator in &operators {
            let listen = format!("127.0.0.1:{}", free_port().unwrap());
            stage.enroll(operator, &listen, OUTPUT_PRICE, stake, capacity).await.unwrap();
            nodes.push(stage.node_of(operator, &listen, &[]).await.unwrap());
        }
        let watchers: Vec<Process> = watching.iter().map(|w| stage.watch_as(w, &[]).unwrap()).collect();
        for watcher in &watchers {
            watcher.wait("started", PATIENCE).await.unwrap();
        }
        let store = Store::open(stage.net.dir.path().join("load.redb"), &stage.net.chain).unwrap();
        let cursor = Cursor::open(stage.net.chain.clone(), store, "load", CursorOptions::default()).unwrap();
        Load {
            stage,
            operators,
            users,
            watching,
            nodes,
            watchers,
            cursor,
            times: Times::default(),
            held: BTreeMap::new(),
        }
    }

    /// Buys, waits until all is answered, audited and paid.
    async fn round(&mut self, round: u64, jobs: u64) -> Result<()> {
        let start = Instant::now();
        // Nobody answers before all is bought, so that all are in flight at once.
        self.nodes.iter().try_for_each(|node| node.hold(true))?;
        let (stage, users, operators) = (&self.stage, &self.users, &self.operators);
        let buy = |n: u64| async move {
            let prompt: Vec<u32> = (0..15).map(|i| 3 + (i * 29 + n as u32 * 7) % 300).collect();
            let (user, node) = (&users[n as usize % USERS], &operators[n as usize % NODES]);
            // A ceiling of its own, so that no two are the same purchase.
            user.ask(&stage.model, node.address(), &prompt, 4, (1 << 80) + u128::from(round * jobs + n)).await
        };
        // The first of each user lets the market take tokens.
        for n in 0..USERS as u64 {
            buy(n).await?;
        }
        let rest = stream::iter(USERS as u64..jobs).map(buy).buffer_unordered(64);
        rest.try_collect::<Vec<_>>().await?;
        self.times.read(&mut self.cursor, &self.stage).await?;
        let all = (round * jobs) as usize;
        assert_eq!((self.times.bought.len(), self.times.answered.len()), (all, all - jobs as usize));
        eprintln!("round {round}: {jobs} in flight after {:.1} s", start.elapsed().as_secs_f64());
        self.held.insert(round, self.stage.net.chain.head().await.map_err(DevnetError::other)?.timestamp);
        self.nodes.iter().try_for_each(|node| node.hold(false))?;
        while self.times.answered.len() < all {
            self.patience(start, "answers")?;
            self.times.read(&mut self.cursor, &self.stage).await?;
        }
        while self.watchers.iter().any(|w| audited(w) < all) {
            self.patience(start, "audits")?;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.stage.skip_window().await?;
        while self.times.paid.len() < all {
            self.patience(start, "payments")?;
            self.times.read(&mut self.cursor, &self.stage).await?;
        }
        Ok(())
    }

    fn patience(&self, start: Instant, what: &str) -> Result<()> {
        if start.elapsed() < PATIENCE {
            return Ok(());
        }
        let (answered, paid) = (self.times.answered.len(), self.times.paid.len());
        let audits: Vec<usize> = self.watchers.iter().map(audited).collect();
        Err(DevnetError::Other(format!("too few {what}: {answered} answered, {audits:?} audited, {paid} paid")))
    }

    fn sizes(&self) -> Vec<(String, u64)> {
        let all = self.nodes.iter().chain(&self.watchers);
        all.map(|p| (p.name.clone(), p.resident().unwrap_or_default())).collect()
    }

    /// Everything is withdrawn: the market is empty and no token is gone.
    async fn settle(&self) -> Result<()> {
        let market = self.stage.net.deployment.market;
        for user in &self.users {
            let due = self.stage.net.chain.market().withdrawable(user.address()).call().await;
            if !due.map_err(DevnetError::other)?.is_zero() {
                user.send("withdraw", market, &IMarket::withdrawCall {}).await?;
            }
        }
        let left = self.stage.net.tokens_of(market).await?;
        if !left.is_zero() || !self.stage.net.tokens_of(BURN).await?.is_zero() {
            return Err(DevnetError::Other(format!("the market still holds {left}")));
        }
        let stage = &self.stage;
        let own = [&stage.operator, &stage.user, &stage.watcher];
        let all: Vec<&Actor> = self.operators.iter().chain(&self.users).chain(&self.watching).chain(own).collect();
        match stage.net.all_tokens(&all).await? {
            all if all == stage.net.minted => Ok(()),
            all => Err(DevnetError::Other(format!("there are {all} tokens, {} were minted", stage.net.minted))),
        }
    }
}

fn audited(watcher: &Process) -> usize {
    watcher.events().iter().filter(|e| e["event"] == "audited").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_in_flight_by_the_hundred() {
    let jobs = times("SWORN_LOAD", 150);
    let mut load = Load::set_up(jobs).await;
    let mut sizes = Vec::new();
    let start = Instant::now();
    for round in 1..=2 {
        if let Err(e) = load.round(round, jobs).await {
            let complaints = load.nodes.iter().chain(&load.watchers).map(|p| p.complaint("so far").to_string());
            let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("load.log");
            std::fs::write(&path, complaints.collect::<Vec<_>>().join("\n\n")).unwrap();
            panic!("round {round}: {e} ({})", path.display());
        }
        sizes.push(load.sizes());
        eprintln!("round {round}: paid after {:.1} s; {:?}", start.elapsed().as_secs_f64(), sizes.last());
    }
    eventually(PATIENCE, async || load.settle().await).await.unwrap();
    assert_eq!(load.times.other, Vec::<String>::new());
    for watcher in &load.watchers {
        let told = watcher.events();
        assert!(
            told.iter().all(|e| e["event"] != "demanded" && e["event"] != "announced"),
            "an honest node was accused"
        );
        assert!(told.iter().filter(|e| e["event"] == "audited").all(|e| e["ok"] == true));
    }
    for ((name, first), (_, second)) in sizes[0].iter().zip(&sizes[1]) {
        assert!(*second <= first + first / 5 + SLACK, "{name} grows: {first} bytes after a round, {second} after two");
    }
    let round = |id: &U256| (id.to::<u64>() - 1) / jobs + 1;
    let waits = load.times.answered.iter().map(|(id, at)| at.saturating_sub(load.held[&round(id)]));
    let mut waits: Vec<u64> = waits.collect();
    waits.sort_unstable();
    let (middle, last) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    let largest = sizes.iter().flatten().map(|(_, bytes)| bytes >> 20).max().unwrap_or_default();
    let figures = format!(
        "{jobs} in each of 2 rounds, {NODES} nodes, 2 watchers; from all at once to their answers: p50 {middle} s, p99 {last} s; {:.1} jobs a second; largest process {largest} MiB",
        2.0 * jobs as f64 / start.elapsed().as_secs_f64()
    );
    tried("jobs in flight at once, all answered, audited and paid", 2 * jobs, 0, figures);
}
