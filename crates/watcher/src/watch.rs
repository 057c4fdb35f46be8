//! The loop: news from the chain in, one move per job and per batch of receipts out.

mod account;
mod batches;
mod case;
mod jobs;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::network::EthereumWallet;
use alloy::primitives::{Address, B256};
use alloy::sol_types::SolCall;
use sworn_bindings::IChallenges::IChallengesEvents;
use sworn_bindings::IMarket::IMarketEvents;
use sworn_bindings::{Deployment, Event, run_params};
use sworn_chain::{Chain, Cursor, CursorOptions, Head, Intent, REACH, Receipt, Seen, Sender, SenderOptions, Store};
use sworn_commit::witness::Claim;
use sworn_commit::{Hash, TraceTree, sequence};
use sworn_engine::Backend;
use sworn_ops::Pulse;
use sworn_receipts::Answered;
use tokio::sync::{Semaphore, mpsc};

use self::account::{Account, Allowed, Purse};
use self::batches::{Checked, Sent};
pub use self::case::Case;
pub use self::jobs::demand_call;
use crate::event::{Tx, WatcherEvent, job_number};
use crate::executor::Executor;
use crate::job::Job;
use crate::measure;
use crate::receipts::Batch;
use crate::served::Served;
use crate::solver::{Accusation, Own, Replay};
use crate::{Result, WatchError};

const ANNOUNCEMENTS: &str = "watch/announcements";
/// Tokens of receipts that this watcher lodged.
const ANSWERS: &str = "watch/answers";
/// The block from which the next process reads.
const CHECKPOINT: &str = "watch/checkpoint";
/// Times the node is asked for its trace before the interactive descent begins.
const SERVED_TRIES: u32 = 2;

/// How to watch.
#[derive(Clone)]
pub struct Config {
    /// The chain's RPC.
    pub rpc: String,
    /// Where the contracts are.
    pub deployment: Deployment,
    /// Journal and state.
    pub state: PathBuf,
    /// One executor per model that is watched.
    pub backends: Vec<Arc<dyn Backend>>,
    /// Find faults but send nothing.
    pub dry_run: bool,
    /// Stop when nothing is left to do.
    pub once: bool,
    /// Bring this receipt to trial, play that and nothing else, then stop.
    pub case: Option<Case>,
    /// Seconds that a transaction may take to be included: how far from a deadline the watcher keeps. None: a tenth of the
    /// challenger's turn.
    pub margin: Option<u64>,
    /// How transactions are sent.
    pub sender: SenderOptions,
    /// Where it is told whether the watcher follows its chain.
    pub pulse: Pulse,
}

impl Config {
    /// With the defaults.
    pub fn new(rpc: impl Into<String>, deployment: Deployment, state: impl Into<PathBuf>) -> Self {
        Config {
            rpc: rpc.into(),
            deployment,
            state: state.into(),
            backends: Vec::new(),
            dry_run: false,
            once: false,
            case: None,
            margin: None,
            sender: SenderOptions::default(),
            pulse: Pulse::default(),
        }
    }
}

/// Watches until `stop` resolves, or with [`Config::once`] until nothing is left to do. `tell` hears of everything in order.
///
/// # Errors
/// The chain is not the deployment's, the state directory is unusable, or an executor cannot start. Outages of the RPC are
/// waited out.
pub async fn watch(
    config: Config,
    key: Option<EthereumWallet>,
    tell: impl FnMut(&WatcherEvent) + Send,
    stop: impl Future<Output = ()> + Send,
) -> Result<()> {
    if key.is_none() && !config.dry_run {
        return Err(WatchError::NoKey);
    }
    if config.backends.is_empty() {
        return Err(WatchError::NoModel);
    }
    measure::describe();
    let mut executors = HashMap::new();
    for backend in &config.backends {
        let executor = Executor::new(backend.clone())?;
        executors.insert(executor.model().id(), Arc::new(executor));
    }
    // The block from which events are read depends on the journal, which is bound to the chain.
    let chain = Chain::connect(&config.rpc, config.deployment.clone()).await?;
    let store = Store::open(config.state.join("watch.redb"), &chain)?;
    let checkpoint: u64 = store.get(CHECKPOINT, "block")?.unwrap_or(0);
    let from = config.deployment.block.max(checkpoint.saturating_sub(REACH));
    let chain = Chain::connect(&config.rpc, Deployment { block: from, ..config.deployment.clone() }).await?;

    let sender =
        key.filter(|_| !config.dry_run).map(|k| Sender::new(chain.clone(), k, store.clone(), config.sender.clone()));
    let params = chain.challenges().params().call().await.map_err(sworn_chain::Error::from)?;
    let channels = chain.channels().params().call().await.map_err(sworn_chain::Error::from)?;
    let challenger_turn = params.challengerTurn.to::<u64>();
    let margin = config.margin.unwrap_or((challenger_turn / 10).clamp(2, 600));
    let (tx, rx) = mpsc::unbounded_channel();
    let cursor = fresh_cursor(&config.state, &chain)?;
    let mut watcher = Watcher {
        config,
        chain,
        store,
        me: sender.as_ref().map(Sender::account).unwrap_or_default(),
        sender,
        executors,
        cursor: Some(cursor),
        challenger_turn,
        channels_window: channels.window.to(),
        margin,
        jobs: BTreeMap::new(),
        batches: BTreeMap::new(),
        ended: Vec::new(),
        times: HashMap::new(),
        served: Served::default(),
        cores: Arc::new(Semaphore::new(1)),
        results: tx,
        generation: 0,
        tell,
        caught_up: false,
        checkpoint_at: 0,
        account: Account::default(),
        only: None,
        now: 0,
    };
    let account = watcher.sender.as_ref().map(Sender::account);
    watcher.started(account, from);
    watcher.prepare().await;
    if let Some(case) = watcher.config.case.take() {
        // No job has the number 0: a node that was convicted at once leaves but the reward to collect.
        watcher.only = Some(watcher.bring(case).await?.unwrap_or(0));
        watcher.config.once = true;
    }
    watcher.run(rx, stop).await
}

/// A cursor that begins at the beginning: the watcher keeps nothing that the chain can tell.
fn fresh_cursor(state: &std::path::Path, chain: &Chain) -> Result<Cursor> {
    let path = state.join("events.redb");
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(WatchError::Io { path, source: e }),
        _ => {}
    }
    let store = Store::open(&path, chain)?;
    Ok(Cursor::open(chain.clone(), store, "watch", CursorOptions::default())?)
}

/// Why a transaction was sent.
enum Purpose {
    Demand(String),
    Announce(B256),
    Prove(Box<Accusation>, usize),
    Timeout(String),
    Contest,
    Settle,
    Reclaim,
    /// About a batch: the call's name, and what it is about.
    Batch(&'static str, Sent),
}

/// What a task works on.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Job(u64),
    Batch(u64),
}

/// What a task brings back.
enum Done {
    Audit(Result<(Own, Hash), String>, u64),
    SelfCheck(Result<Vec<String>, String>, u64),
    Trace(Result<TraceTree, String>),
    Replay((u16, u32), Result<Replay, String>),
    Tensor((u16, u32, u16), Result<Vec<u8>, String>),
    Tokens(Result<Box<Answered>, String>),
    /// The receipts of a batch's part.
    Receipts(usize, Result<Vec<Answered>, String>),
    Checked(usize, u64, Checked),
    Judged(Claim, Result<(), String>),
    Tx(Purpose, Result<Receipt, sworn_chain::Error>),
}

/// What is over.
enum Finished {
    Task(Subject, Done),
    Allowed(Allowed),
    Withdrawal(Purse, Result<Receipt, sworn_chain::Error>),
}

/// And in which generation it began.
type Message = (u64, Finished);

struct Watcher<F> {
    config: Config,
    chain: Chain,
    store: Store,
    sender: Option<Sender>,
    me: Address,
    executors: HashMap<Hash, Arc<Executor>>,
    cursor: Option<Cursor>,
    challenger_turn: u64,
    channels_window: u64,
    margin: u64,
    jobs: BTreeMap<u64, Job>,
    batches: BTreeMap<u64, Batch>,
    /// The blocks in which jobs and batches came, and those in which they ended, as long as a reorganisation may take the end back.
    ended: Vec<(u64, u64)>,
    /// Timestamps of blocks with answers.
    times: HashMap<u64, u64>,
    served: Served,
    /// Executions run one after another.
    cores: Arc<Semaphore>,
    results: mpsc::UnboundedSender<Message>,
    /// Counts reorganisations: what was begun before one is not believed after it.
    generation: u64,
    tell: F,
    caught_up: bool,
    checkpoint_at: u64,
    account: Account,
    /// The only job that is watched.
    only: Option<u64>,
    /// Time of the latest block that is known.
    now: u64,
}

impl<F: FnMut(&WatcherEvent) + Send> Watcher<F> {
    fn tell(&mut self, event: WatcherEvent) {
        tracing::debug!(?event, "event");
        measure::event(&event);
        (self.tell)(&event);
    }

    fn error(&mut self, job: Option<u64>, message: impl Into<String>) {
        self.tell(WatcherEvent::Error { job, message: message.into() });
    }

    fn started(&mut self, account: Option<Address>, from_block: u64) {
        let backend = self.config.backends[0].clone();
        self.tell(WatcherEvent::Started {
            account,
            chain_id: self.config.deployment.chain_id,
            from_block,
            models: self.executors.keys().map(B256::from).collect(),
            backend: backend.name().to_owned(),
            adapter: backend.adapter(),
        });
    }

    /// Finishes what a former process began, and lets market and channels take fees.
    async fn prepare(&mut self) {
        let Some(sender) = self.sender.clone() else { return };
        let background = sender.clone();
        tokio::spawn(async move {
            if let Err(error) = background.resume().await {
                tracing::warn!(%error, "resuming transactions");
            }
        });
        let allowed = account::allow_fees(&self.chain, &sender).await;
        self.allowed(allowed);
    }

    async fn run(
        &mut self,
        mut results: mpsc::UnboundedReceiver<Message>,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let mut stop = std::pin::pin!(stop);
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = &mut stop => {
                    self.config.pulse.stopping();
                    return Ok(());
                }
                Some((generation, finished)) = results.recv() => self.finished(generation, finished).await,
                () = tokio::time::sleep(pause) => {}
            }
            pause = match self.step().await {
                Ok(()) => {
                    if self.config.once && self.caught_up && self.idle() {
                        return Ok(());
                    }
                    self.chain.poll()
                }
                Err(WatchError::Chain(e)) if e.is_transient() => {
                    self.config.pulse.bad(&e);
                    self.error(None, format!("{e}; trying again"));
                    (pause * 2).clamp(Duration::from_secs(1), Duration::from_secs(30))
                }
                Err(e) => return Err(e),
            };
        }
    }

    async fn step(&mut self) -> Result<()> {
        let head = self.news().await?;
        self.config.pulse.good();
        measure::watched("jobs", self.jobs.len());
        measure::watched("batches", self.batches.len());
        self.now = head.timestamp;
        self.decide(head).await
    }

    /// Whether nothing is left to do.
    fn idle(&self) -> bool {
        self.account.idle()
            && self.batches_idle(self.now)
            && self.jobs.values().all(|j| !j.busy && (j.done || j.muted || j.right || j.game.is_none()))
    }

    /// Reads events up to the latest block.
    async fn news(&mut self) -> Result<Head> {
        loop {
            let Some(cursor) = &mut self.cursor else {
                self.cursor = Some(fresh_cursor(&self.config.state, &self.chain)?);
                continue;
            };
            let batch = cursor.poll().await?;
            if batch.replaced.is_some() {
                // Everything is rebuilt from the new chain, which may not have what lets contracts take fees.
                self.generation += 1;
                self.jobs.clear();
                self.batches.clear();
                self.ended.clear();
                self.times.clear();
                self.caught_up = false;
                self.cursor = None;
                self.account = Account::default();
                self.allow();
                continue;
            }
            self.config.pulse.behind();
            for seen in &batch.events {
                self.apply(seen).await?;
            }
            let Some(cursor) = &mut self.cursor else { continue };
            cursor.commit(&batch)?;
            if batch.caught_up {
                if !self.caught_up {
                    self.caught_up = true;
                    let (block, jobs) = (batch.head.number, self.jobs.len());
                    self.tell(WatcherEvent::CaughtUp { block, jobs });
                }
                return Ok(batch.head);
            }
        }
    }

    async fn time_of(&mut self, block: u64) -> Result<u64> {
        if let Some(t) = self.times.get(&block) {
            return Ok(*t);
        }
        let head = self.chain.block(block.into()).await?;
        let time = head.ok_or_else(|| sworn_chain::Error::Answer(format!("block {block} is gone")))?.timestamp;
        if self.times.len() > 4096 {
            self.times.clear();
        }
        self.times.insert(block, time);
        Ok(time)
    }

    async fn apply(&mut self, seen: &Seen) -> Result<()> {
        match &seen.event {
            Event::Market(e) => self.apply_market(e, seen),
            Event::Challenges(e) => {
                let time = self.time_of(seen.block).await?;
                self.apply_challenges(e, seen, time).await?;
            }
            Event::Channels(e) => self.apply_channels(e, seen),
            Event::Trials(e) => self.apply_trials(e, seen),
            Event::Models(_) | Event::Nodes(_) => {}
        }
        Ok(())
    }

    fn apply_market(&mut self, event: &IMarketEvents, seen: &Seen) {
        let id = match event {
            IMarketEvents::JobCreated(_) if self.only.is_some() => return,
            IMarketEvents::JobCreated(e) => {
                let (job, model) = (job_number(e.jobId), e.modelId);
                let prompt = sequence::decode(&e.promptTokens).unwrap_or_default();
                let node = Some(e.node).filter(|n| !n.is_zero());
                self.tell(WatcherEvent::JobSeen { job, model, node, prompt_tokens: prompt.len() as u32 });
                let known = self.executors.contains_key(&model.0) && !prompt.is_empty();
                // The market admits no parameters that do not fit.
                if let Some(run) = run_params(e.sampling, e.seed).filter(|_| known) {
                    let mut watched = Job::new(job, seen.block, model.0, e.node, prompt, run);
                    watched.announced = self.store.get(ANNOUNCEMENTS, &job.to_string()).unwrap_or_default();
                    self.jobs.insert(job, watched);
                } else {
                    self.tell(WatcherEvent::UnknownModel { job, model });
                }
                return;
            }
            IMarketEvents::JobAccepted(e) => e.jobId,
            IMarketEvents::ResultSubmitted(e) => e.jobId,
            IMarketEvents::JobFinalized(e) => e.jobId,
            IMarketEvents::JobExpired(e) => e.jobId,
            IMarketEvents::JobCancelled(e) => e.jobId,
            IMarketEvents::JobSlashed(e) => e.jobId,
            IMarketEvents::Withdrawn(e) => {
                if e.account == self.me {
                    self.tell(WatcherEvent::Withdrawn { amount: e.amount.to_string() });
                }
                return;
            }
            IMarketEvents::Credited(_) => return,
        };
        let id = job_number(id);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let layers = self.executors.get(&job.model).map_or(0, |e| e.model().layers());
        job.market(event, layers);
        match event {
            IMarketEvents::JobFinalized(e) => {
                self.tell(WatcherEvent::Finalized { job: id, paid: e.paid.to_string() });
            }
            IMarketEvents::JobSlashed(e) => self.tell(WatcherEvent::Slashed {
                job: id,
                node: e.node,
                bond: e.bond.to_string(),
                refunded: e.refunded.to_string(),
                compensation: e.compensation.to_string(),
                reward: e.reward.to_string(),
                burned: e.burned.to_string(),
            }),
            _ => {}
        }
    }

    async fn apply_challenges(&mut self, event: &IChallengesEvents, seen: &Seen, time: u64) -> Result<()> {
        let id = job_number(event.job());
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        job.challenges(event, seen.block, time, self.challenger_turn);
        let reward = job.reward.to_string();
        match event {
            IChallengesEvents::Answered(e) => {
                let gas = self.chain.receipt(seen.transaction).await?.map_or(0, |r| r.gas_used);
                let tx = Tx { tx: seen.transaction, gas, block: seen.block };
                let target = e.target.to_string();
                self.tell(WatcherEvent::Answered { job: id, target, by: e.by, bytes: e.data.len(), tx });
            }
            IChallengesEvents::RewardSettled(e) if e.to == self.me => {
                self.tell(WatcherEvent::Rewarded { job: id, amount: reward });
            }
            IChallengesEvents::TimedOut(e) if e.payer == self.me => {
                self.tell(WatcherEvent::Rewarded { job: id, amount: reward });
            }
            IChallengesEvents::FeesReclaimed(e) if e.payer == self.me => {
                self.tell(WatcherEvent::Reclaimed { job: id, amount: e.amount.to_string() });
            }
            _ => {}
        }
        Ok(())
    }

    /// One move for every job that waits for none.
    async fn decide(&mut self, head: Head) -> Result<()> {
        if !self.caught_up {
            return Ok(());
        }
        let ready = |j: &&Job| {
            !j.busy
                && !j.done
                && j.game.is_some()
                && j.after_block <= head.number
                && j.not_before.is_none_or(|t| t <= Instant::now())
        };
        let ids: Vec<u64> = self.jobs.values().filter(ready).map(|j| j.id).collect();
        for id in ids {
            self.decide_job(id, head).await?;
        }
        self.decide_batches(head).await?;
        self.decide_account(head).await?;
        self.checkpoint(head)
    }

    /// Remembers from where the next process must read.
    fn checkpoint(&mut self, head: Head) -> Result<()> {
        self.ended.extend(self.jobs.extract_if(.., |_, j| j.done).map(|(_, j)| (j.created, head.number)));
        self.ended.retain(|(_, at)| !head.buries(*at));
        let (jobs, batches) = (self.jobs.values().map(|j| j.created), self.batches.values().map(|b| b.block));
        let ended = self.ended.iter().map(|(created, _)| *created);
        let oldest = jobs.chain(batches).chain(ended).min().unwrap_or(head.number);
        if oldest > self.checkpoint_at {
            self.store.put(CHECKPOINT, "block", &oldest)?;
            self.checkpoint_at = oldest;
        }
        Ok(())
    }

    /// How long a node may take over an answer that others wait for.
    fn patience(&self) -> Duration {
        Duration::from_secs((self.challenger_turn / 8).max(1))
    }

    fn send_challenges<C: SolCall>(&mut self, id: u64, key: String, call: &C, purpose: Purpose) {
        let deadline = self.jobs.get(&id).and_then(|j| j.game.as_ref()?.next_deadline(self.now));
        let intent = Intent::call(key, self.config.deployment.challenges, call).by(deadline);
        self.send(Subject::Job(id), intent, purpose);
    }

    fn send(&mut self, subject: Subject, intent: Intent, purpose: Purpose) {
        let Some(sender) = self.sender.clone() else { return };
        match subject {
            Subject::Job(id) => self.jobs.get_mut(&id).into_iter().for_each(|j| j.busy = true),
            Subject::Batch(id) => self.batches.get_mut(&id).into_iter().for_each(|b| b.busy = true),
        }
        self.fetch(subject, async move { Done::Tx(purpose, sender.send(&intent).await) });
    }

    /// Runs an execution off the async threads, one at a time.
    fn compute(&self, subject: Subject, work: impl FnOnce() -> Done + Send + 'static) {
        let cores = self.cores.clone();
        self.fetch(subject, async move {
            let _permit = cores.acquire_owned().await;
            match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(e) => Done::Audit(Err(format!("the executor crashed: {e}")), 0),
            }
        });
    }

    fn fetch(&self, subject: Subject, work: impl Future<Output = Done> + Send + 'static) {
        self.report(async move { Finished::Task(subject, work.await) });
    }

    /// Does something beside everything else; the loop hears what came of it.
    fn report(&self, work: impl Future<Output = Finished> + Send + 'static) {
        let (results, generation) = (self.results.clone(), self.generation);
        tokio::spawn(async move {
            let _ = results.send((generation, work.await));
        });
    }

    async fn finished(&mut self, generation: u64, finished: Finished) {
        if generation != self.generation {
            return;
        }
        match finished {
            Finished::Task(Subject::Job(id), done) => self.finished_job(id, done),
            Finished::Task(Subject::Batch(id), done) => self.finished_batch(id, done).await,
            Finished::Allowed(allowed) => self.allowed(allowed),
            Finished::Withdrawal(purse, result) => self.withdrawal(purse, result),
        }
    }
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

fn tx(r: &Receipt) -> Tx {
    Tx { tx: r.hash, gas: r.gas_used, block: r.block }
}

async fn endpoint(chain: &Chain, node: Address) -> Result<String, String> {
    let node = chain.nodes().node(node).call().await.map_err(|e| e.to_string())?;
    if node.endpoint.is_empty() { Err("the node has published no endpoint".into()) } else { Ok(node.endpoint) }
}
