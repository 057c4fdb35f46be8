//! The loop: news from the chain in, one move per job out.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sworn_bindings::IChallenges::{self, IChallengesEvents};
use sworn_bindings::IMarket::{self, IMarketEvents};
use sworn_bindings::{self as sol, Deployment, Event, IERC20, ModelShape, TraceContext, opening_id, run_params};
use sworn_chain::{Chain, Cursor, CursorOptions, Head, Intent, Receipt, Seen, Sender, SenderOptions, Store};
use sworn_commit::witness::Claim;
use sworn_commit::{Hash, TraceTree, sequence};
use sworn_engine::Backend;
use sworn_isa::SectionKind;
use tokio::sync::{Semaphore, mpsc};

use crate::event::{Tx, WatcherEvent, job_number};
use crate::executor::Executor;
use crate::game::{Game, Outcome};
use crate::job::{Announcement, Job, sol_target};
use crate::served::Served;
use crate::solver::{self, Accusation, Asked, Clock, Demand, Move, Own, Replay};
use crate::{Result, WatchError};

const ANNOUNCEMENTS: &str = "watch/announcements";
const CHECKPOINT: &str = "watch/checkpoint";
/// Blocks before the oldest open job that are read again after a restart, in case the chain was reorganised meanwhile.
const OVERLAP: u64 = 64;
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
    /// Seconds that a transaction may take to be included: how far from a deadline the watcher keeps. None: a tenth of the
    /// challenger's turn.
    pub margin: Option<u64>,
    /// How transactions are sent.
    pub sender: SenderOptions,
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
            margin: None,
            sender: SenderOptions::default(),
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
    key: Option<PrivateKeySigner>,
    tell: impl FnMut(&WatcherEvent) + Send,
    stop: impl Future<Output = ()> + Send,
) -> Result<()> {
    if key.is_none() && !config.dry_run {
        return Err(WatchError::NoKey);
    }
    if config.backends.is_empty() {
        return Err(WatchError::NoModel);
    }
    let mut executors = HashMap::new();
    for backend in &config.backends {
        let executor = Executor::new(backend.clone())?;
        executors.insert(executor.model().id(), Arc::new(executor));
    }
    // The block from which events are read depends on the journal, which is bound to the chain.
    let chain = Chain::connect(&config.rpc, config.deployment.clone()).await?;
    let store = Store::open(config.state.join("watch.redb"), &chain)?;
    let checkpoint: u64 = store.get(CHECKPOINT, "block")?.unwrap_or(0);
    let from = config.deployment.block.max(checkpoint.saturating_sub(OVERLAP));
    let chain = Chain::connect(&config.rpc, Deployment { block: from, ..config.deployment.clone() }).await?;

    let account = key.as_ref().map(PrivateKeySigner::address);
    let sender =
        key.filter(|_| !config.dry_run).map(|k| Sender::new(chain.clone(), k, store.clone(), config.sender.clone()));
    let params = chain.challenges().params().call().await.map_err(sworn_chain::Error::from)?;
    let challenger_turn = params.challengerTurn.to::<u64>();
    let margin = config.margin.unwrap_or((challenger_turn / 10).clamp(2, 600));
    let (tx, rx) = mpsc::unbounded_channel();
    let cursor = fresh_cursor(&config.state, &chain)?;
    let mut watcher = Watcher {
        config,
        chain,
        store,
        sender,
        me: account.unwrap_or_default(),
        executors,
        cursor: Some(cursor),
        challenger_turn,
        margin,
        jobs: BTreeMap::new(),
        times: HashMap::new(),
        served: Served::default(),
        cores: Arc::new(Semaphore::new(1)),
        results: tx,
        generation: 0,
        tell,
        caught_up: false,
        checkpoint_at: 0,
    };
    watcher.started(account, from);
    watcher.prepare().await?;
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
    Withdraw,
}

/// What a task brings back.
enum Done {
    Audit(Result<(Own, Hash), String>, u64),
    SelfCheck(Result<Vec<String>, String>, u64),
    Trace(Result<TraceTree, String>),
    Replay((u16, u32), Result<Replay, String>),
    Tensor((u16, u32, u16), Result<Vec<u8>, String>),
    Judged(Claim, Result<(), String>),
    Tx(Purpose, Result<Receipt, sworn_chain::Error>),
}

type Message = (u64, u64, Done);

struct Watcher<F> {
    config: Config,
    chain: Chain,
    store: Store,
    sender: Option<Sender>,
    me: Address,
    executors: HashMap<Hash, Arc<Executor>>,
    cursor: Option<Cursor>,
    challenger_turn: u64,
    margin: u64,
    jobs: BTreeMap<u64, Job>,
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
}

impl<F: FnMut(&WatcherEvent) + Send> Watcher<F> {
    fn tell(&mut self, event: WatcherEvent) {
        tracing::debug!(?event, "event");
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

    /// Finishes what a former process began, and lets the market take fees.
    async fn prepare(&mut self) -> Result<()> {
        let Some(sender) = self.sender.clone() else { return Ok(()) };
        let background = sender.clone();
        tokio::spawn(async move {
            if let Err(e) = background.resume().await {
                tracing::warn!(error = %e, "resuming transactions");
            }
        });
        let market = self.config.deployment.market;
        let allowance = self.chain.token().allowance(self.me, market).call().await.map_err(sworn_chain::Error::from)?;
        if allowance < U256::MAX >> 1 {
            let call = IERC20::approveCall { spender: market, value: U256::MAX };
            // The allowance in the key: one that was spent or revoked is renewed.
            let intent = Intent::call(format!("approve/{allowance}"), self.config.deployment.token, &call);
            match sender.send(&intent).await {
                Ok(r) => self.tell(WatcherEvent::Sent { job: None, call: "approve".into(), tx: tx(&r) }),
                Err(e) => self.error(None, format!("the market cannot take demand fees: {e}")),
            }
        }
        Ok(())
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
                () = &mut stop => return Ok(()),
                Some((generation, job, done)) = results.recv() => self.finished(generation, job, done).await,
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
                    self.error(None, format!("{e}; trying again"));
                    (pause * 2).clamp(Duration::from_secs(1), Duration::from_secs(30))
                }
                Err(e) => return Err(e),
            };
        }
    }

    async fn step(&mut self) -> Result<()> {
        let head = self.news().await?;
        self.decide(head).await
    }

    /// Whether nothing is left to do for any job.
    fn idle(&self) -> bool {
        self.jobs.values().all(|j| !j.busy && (j.done || j.muted || j.right || j.game.is_none()))
    }

    /// Reads events up to the latest block.
    async fn news(&mut self) -> Result<Head> {
        loop {
            let Some(cursor) = &mut self.cursor else {
                self.cursor = Some(fresh_cursor(&self.config.state, &self.chain)?);
                continue;
            };
            let batch = cursor.poll().await?;
            if batch.reorganised {
                // Everything is rebuilt from the new chain.
                self.generation += 1;
                self.jobs.clear();
                self.times.clear();
                self.caught_up = false;
                self.cursor = None;
                continue;
            }
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
            Event::Models(_) | Event::Nodes(_) | Event::Channels(_) | Event::Trials(_) => {}
        }
        Ok(())
    }

    fn apply_market(&mut self, event: &IMarketEvents, seen: &Seen) {
        let id = match event {
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
        self.checkpoint(head)
    }

    /// Remembers from where the next process must read.
    fn checkpoint(&mut self, head: Head) -> Result<()> {
        self.jobs.retain(|_, j| !j.done);
        let oldest = self.jobs.values().map(|j| j.created).min().unwrap_or(head.number);
        if oldest > self.checkpoint_at {
            self.store.put(CHECKPOINT, "block", &oldest)?;
            self.checkpoint_at = oldest;
        }
        Ok(())
    }

    async fn decide_job(&mut self, id: u64, head: Head) -> Result<()> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let Some(game) = &job.game else { return Ok(()) };
        match game.outcome {
            Some(Outcome::Slashed) if self.sender.is_some() => return self.collect(id, head).await,
            Some(_) => {
                job.done = true;
                return Ok(());
            }
            None => {}
        }
        if job.muted {
            return Ok(());
        }
        let Some(executor) = self.executors.get(&job.model).cloned() else { return Ok(()) };
        let Some(own) = &job.own else {
            job.busy = true;
            let (prompt, output, run) = (job.prompt.clone(), job.output.clone(), job.run);
            self.compute(id, move || {
                let start = Instant::now();
                let result = executor.audit(&prompt, &output, &run).map_err(|e| e.to_string());
                Done::Audit(result, millis(start))
            });
            return Ok(());
        };
        let clock = Clock { now: head.timestamp, margin: self.margin };
        let next = solver::next(game, executor.model().program(), own, &job.learned, clock);
        job.right = next == Move::NodeIsRight;
        match next {
            Move::NodeIsRight | Move::Wait(_) => {}
            Move::FetchTrace => {
                job.busy = true;
                let (dims, root, node) = (game.dims, game.layers_root, job.node);
                // A node that dawdles must not use up the window.
                let left = game.window_end.saturating_sub(head.timestamp);
                let patience = Duration::from_secs((left / 8).max(1));
                let (chain, served) = (self.chain.clone(), self.served.clone());
                self.fetch(id, async move {
                    let endpoint = endpoint(&chain, node).await;
                    Done::Trace(match endpoint {
                        Ok(endpoint) => served.trace(&endpoint, id, &dims, &root, patience).await,
                        Err(e) => Err(e),
                    })
                });
            }
            Move::FetchTensor { at, root, .. } => {
                job.busy = true;
                let dims = game.dims;
                let kind = SectionKind::of_layer(at.0, dims.layers);
                let ops = kind.map_or(&[][..], |k| &executor.model().program().section(k).ops);
                let t = dims.position(at.0, at.1);
                let lens: Vec<usize> = ops.iter().map(|d| d.bytes(t) as usize).collect();
                let patience = Duration::from_secs((self.challenger_turn / 8).max(1));
                let (chain, served, node) = (self.chain.clone(), self.served.clone(), job.node);
                self.fetch(id, async move {
                    let endpoint = endpoint(&chain, node).await;
                    Done::Tensor(
                        at,
                        match endpoint {
                            Ok(endpoint) => served.tensor(&endpoint, id, at, &lens, &root, patience).await,
                            Err(e) => Err(e),
                        },
                    )
                });
            }
            Move::Replay(layer, row) => {
                job.busy = true;
                let differs = own.trace.layers_root() != game.layers_root || own.selected != own.output;
                let position = game.dims.position(layer, row);
                let (prompt, output, run) = (job.prompt.clone(), job.output.clone(), job.run);
                let trace = own.trace.clone();
                if differs && !job.told_dispute {
                    job.told_dispute = true;
                    self.tell(WatcherEvent::Disputed { job: id, layer, row, position });
                }
                self.compute(id, move || {
                    Done::Replay((layer, row), executor.replay(&prompt, &output, &run, (layer, row), &trace))
                });
            }
            Move::Broken(reason) => {
                job.muted = true;
                self.tell(WatcherEvent::SelfCheckFailed { job: id, reason });
            }
            Move::TooLate => {
                job.muted = true;
                self.error(Some(id), "the node is wrong, but every term for demands is over");
            }
            Move::Demand(_) | Move::Timeout(_) | Move::Accuse(_) if self.sender.is_none() => {
                job.muted = true;
                let next = match next {
                    Move::Demand(d) => format!("demand {}", sol_target(&d.target)),
                    Move::Timeout(t) => format!("time out {}", sol_target(&t)),
                    _ => "prove an element wrong".to_owned(),
                };
                self.tell(WatcherEvent::WouldChallenge { job: id, next });
            }
            Move::Demand(_) | Move::Accuse(_) if !job.checked => {
                job.busy = true;
                let (prompt, output, run) = (job.prompt.clone(), job.output.clone(), job.run);
                let (trace, selected) = (own.trace.clone(), own.selected.clone());
                self.compute(id, move || {
                    let start = Instant::now();
                    let result = executor.self_check(&prompt, &output, &run, &trace, &selected);
                    Done::SelfCheck(result, millis(start))
                });
            }
            Move::Demand(d) => {
                let call = demand_call(id, &d);
                let target = sol_target(&d.target).to_string();
                // The parent in the key: an opening demanded again from nearer the root is another transaction.
                let parent = d.parent.map_or("root".to_owned(), |p| sol_target(&p).to_string());
                let key = format!("{id}/demand/{target}/{parent}");
                self.send_challenges(id, key, &call, Purpose::Demand(target));
            }
            Move::Timeout(t) => {
                let target = sol_target(&t);
                let call = IChallenges::timeoutCall { jobId: U256::from(id), target: target.clone() };
                self.send_challenges(id, format!("{id}/timeout/{target}"), &call, Purpose::Timeout(target.to_string()));
            }
            Move::Accuse(a) => self.accuse(id, *a, head).await?,
        }
        Ok(())
    }

    /// Has the judge on chain confirm the proof, announces, and a block later proves.
    async fn accuse(&mut self, id: u64, a: Accusation, head: Head) -> Result<()> {
        let me = self.me;
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let (Some(game), Some(executor)) = (&job.game, self.executors.get(&job.model)) else { return Ok(()) };
        let claim = sol::Claim::from(a.claim);
        if job.judged != Some(a.claim) {
            job.busy = true;
            let model = executor.model();
            let shape = ModelShape::of(model.manifest(), model.program());
            let (input, output) = (sequence::hash(&job.prompt), sequence::hash(&job.output));
            let context = TraceContext::new(&game.dims, game.layers_root, input, output, &job.run);
            let (chain, deployment) = (self.chain.clone(), self.config.deployment.clone());
            self.fetch(id, async move {
                let call = sol::IStepVerifier::judgeCall {
                    trace: context,
                    model: shape,
                    claim,
                    witness: (&a.proof.witness).into(),
                };
                // An RPC that stumbles says nothing about the witness: only the judge's own word ends this job's case.
                let verifier = deployment.step_verifier;
                let verdict = sworn_chain::persistently("judge", || chain.simulate("judge", me, verifier, &call)).await;
                Done::Judged(
                    a.claim,
                    match verdict {
                        Ok(v) if v.claimed == v.computed => {
                            Err("the judge on chain finds the element right".to_owned())
                        }
                        Ok(_) => Ok(()),
                        Err(e) => Err(format!("the judge on chain does not accept the witness: {e}")),
                    },
                )
            });
            return Ok(());
        }
        let announced = match &job.announced {
            Some(known) if known.claim() == a.claim => known.clone(),
            _ => {
                let Claim { layer, row, op, element } = a.claim;
                let salt = B256::from(StdRng::from_os_rng().random::<[u8; 32]>());
                let commitment = commitment(id, &a.claim, me, salt);
                let announcement = Announcement { layer, row, op, element, salt, commitment };
                // Without the salt the reward is lost, so it is on disk before anybody hears of it.
                self.store.put(ANNOUNCEMENTS, &id.to_string(), &announcement)?;
                job.announced = Some(announcement.clone());
                announcement
            }
        };
        match game.announcements.get(&(me, announced.commitment)) {
            None => {
                let call = IChallenges::announceCall { jobId: U256::from(id), commitment: announced.commitment };
                let key = format!("{id}/announce/{}", announced.commitment);
                self.send_challenges(id, key, &call, Purpose::Announce(announced.commitment));
            }
            Some(block) if head.number > *block => {
                let witness = (&a.proof.witness).into();
                let call = IChallenges::proveFraudCall { jobId: U256::from(id), claim, salt: announced.salt, witness };
                let size = call.abi_encoded_size() + 4;
                let key = format!("{id}/prove/{}", announced.commitment);
                self.send_challenges(id, key, &call, Purpose::Prove(Box::new(a), size));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// After a slash: the reward, the fees, the money.
    async fn collect(&mut self, id: u64, head: Head) -> Result<()> {
        let me = self.me;
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let Some(game) = &job.game else { return Ok(()) };
        let jobid = U256::from(id);
        let mut waits = false;
        if let Some(fraud) = &game.fraud {
            let earlier = job
                .announced
                .as_ref()
                .filter(|a| a.claim() == fraud.claim && game.announcements.contains_key(&(me, a.commitment)));
            if fraud.by == me {
                if game.settled.is_none() {
                    if head.timestamp > fraud.contest_end {
                        let call = IChallenges::settleRewardCall { jobId: jobid };
                        self.send_challenges(id, format!("{id}/settle"), &call, Purpose::Settle);
                        return Ok(());
                    }
                    waits = true;
                }
            } else if let (Some(a), false) = (earlier, job.contested) {
                job.contested = true;
                let call = IChallenges::contestRewardCall { jobId: jobid, salt: a.salt };
                self.send_challenges(id, format!("{id}/contest"), &call, Purpose::Contest);
                return Ok(());
            }
        }
        if game.paid(me) && !game.reclaimed.contains(&me) {
            let call = IChallenges::reclaimFeesCall { jobId: jobid };
            self.send_challenges(id, format!("{id}/reclaim"), &call, Purpose::Reclaim);
        } else if !waits && !job.withdrawn {
            let market = self.config.deployment.market;
            let intent = Intent::call(format!("{id}/withdraw"), market, &IMarket::withdrawCall {});
            let due = self.chain.market().withdrawable(me).call().await.map_err(sworn_chain::Error::from)?;
            if due.is_zero() {
                job.withdrawn = true;
            } else {
                self.send(id, intent, Purpose::Withdraw);
            }
        } else if !waits {
            job.done = true;
        }
        Ok(())
    }

    fn send_challenges<C: SolCall>(&mut self, id: u64, key: String, call: &C, purpose: Purpose) {
        let intent = Intent::call(key, self.config.deployment.challenges, call);
        self.send(id, intent, purpose);
    }

    fn send(&mut self, id: u64, intent: Intent, purpose: Purpose) {
        let Some(sender) = self.sender.clone() else { return };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.busy = true;
        }
        self.fetch(id, async move { Done::Tx(purpose, sender.send(&intent).await) });
    }

    /// Runs an execution off the async threads, one at a time.
    fn compute(&self, id: u64, work: impl FnOnce() -> Done + Send + 'static) {
        let cores = self.cores.clone();
        self.fetch(id, async move {
            let _permit = cores.acquire_owned().await;
            match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(e) => Done::Audit(Err(format!("the executor crashed: {e}")), 0),
            }
        });
    }

    fn fetch(&self, id: u64, work: impl Future<Output = Done> + Send + 'static) {
        let (results, generation) = (self.results.clone(), self.generation);
        tokio::spawn(async move {
            let _ = results.send((generation, id, work.await));
        });
    }

    async fn finished(&mut self, generation: u64, id: u64, done: Done) {
        if generation != self.generation {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.busy = false;
        match done {
            Done::Audit(Ok((own, root)), ms) => {
                let game = job.game.as_ref();
                let equal = game.is_some_and(|g| own.trace.layers_root() == g.layers_root);
                let ok = equal && own.selected == own.output;
                let positions = game.map_or(0, |g| g.dims.positions());
                let (claimed_root, own_root) = (B256::from(job.trace_root), B256::from(root));
                job.own = Some(own);
                self.tell(WatcherEvent::Audited { job: id, ok, positions, claimed_root, own_root, ms });
            }
            Done::SelfCheck(Ok(checks), ms) => {
                job.checked = true;
                self.tell(WatcherEvent::SelfChecked { job: id, checks, ms });
            }
            Done::Audit(Err(reason), _)
            | Done::SelfCheck(Err(reason), _)
            | Done::Replay(_, Err(reason))
            | Done::Judged(_, Err(reason)) => {
                job.muted = true;
                self.tell(WatcherEvent::SelfCheckFailed { job: id, reason });
            }
            Done::Judged(claim, Ok(())) => job.judged = Some(claim),
            Done::Replay(at, Ok(replay)) => {
                if let Some(own) = &mut job.own {
                    own.replays.insert(at, replay);
                }
            }
            Done::Trace(result) => {
                let (served, note) = (result.is_ok(), result.as_ref().err().cloned().unwrap_or_default());
                job.served_tries += 1;
                match result {
                    Ok(tree) => job.learned.trace = Asked::Got(tree),
                    Err(_) if job.served_tries >= SERVED_TRIES => job.learned.trace = Asked::Refused,
                    Err(_) => job.not_before = Some(Instant::now() + Duration::from_millis(300)),
                }
                self.tell(WatcherEvent::Asked { job: id, what: "trace".into(), served, note });
            }
            Done::Tensor(at, result) => {
                let (served, note) = (result.is_ok(), result.as_ref().err().cloned().unwrap_or_default());
                job.learned.tensors.insert(at, result.map_or(Asked::Refused, Asked::Got));
                let what = format!("operators of layer {} row {}", at.0, at.1);
                self.tell(WatcherEvent::Asked { job: id, what, served, note });
            }
            Done::Tx(purpose, Ok(receipt)) => {
                job.after_block = receipt.block;
                job.failures = 0;
                self.sent(id, purpose, &receipt);
            }
            Done::Tx(purpose, Err(e)) => {
                job.failures += 1;
                // Another's transaction may have come first: look again when the chain has moved.
                let pause = Duration::from_millis(500 * u64::from(job.failures.min(20)));
                job.not_before = Some(Instant::now() + pause);
                if matches!(purpose, Purpose::Contest) || (matches!(purpose, Purpose::Withdraw) && e.revert().is_some())
                {
                    tracing::debug!(job = id, error = %e, "nothing to collect");
                    job.withdrawn |= matches!(purpose, Purpose::Withdraw);
                } else {
                    self.error(Some(id), e.to_string());
                }
            }
        }
    }

    fn sent(&mut self, id: u64, purpose: Purpose, receipt: &Receipt) {
        let tx = tx(receipt);
        let position = |job: &Job, c: &Claim| job.game.as_ref().map_or(0, |g: &Game| g.dims.position(c.layer, c.row));
        let settle = |call: &str| WatcherEvent::Sent { job: Some(id), call: call.into(), tx: tx.clone() };
        let event = match purpose {
            Purpose::Demand(target) => WatcherEvent::Demanded { job: id, target, tx },
            Purpose::Announce(commitment) => WatcherEvent::Announced { job: id, commitment, tx },
            Purpose::Prove(a, calldata) => WatcherEvent::Proven {
                job: id,
                layer: a.claim.layer,
                row: a.claim.row,
                position: self.jobs.get(&id).map_or(0, |j| position(j, &a.claim)),
                op: a.claim.op,
                opcode: a.opcode.name().to_owned(),
                element: a.claim.element,
                claimed: a.proof.claimed,
                computed: a.proof.computed,
                calldata,
                tx,
            },
            Purpose::Timeout(target) => WatcherEvent::TimedOut { job: id, target, tx },
            Purpose::Contest => WatcherEvent::Contested { job: id, tx },
            Purpose::Settle => settle("settleReward"),
            Purpose::Reclaim => settle("reclaimFees"),
            Purpose::Withdraw => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.withdrawn = true;
                }
                settle("withdraw")
            }
        };
        self.tell(event);
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

fn commitment(job: u64, claim: &Claim, who: Address, salt: B256) -> B256 {
    let Claim { layer, row, op, element } = *claim;
    let call = (U256::from(job), layer, row, op, element, who, salt);
    use alloy::sol_types::SolValue;
    alloy::primitives::keccak256(call.abi_encode_params())
}

fn demand_call(job: u64, d: &Demand) -> IChallenges::demandCall {
    let id = U256::from(job);
    let words = |h: &[Hash]| h.iter().map(B256::from).collect::<Vec<_>>();
    IChallenges::demandCall {
        jobId: id,
        parent: d.parent.map_or(B256::ZERO, |p| opening_id(id, &sol_target(&p))),
        target: sol_target(&d.target),
        proof: IChallenges::DemandProof {
            nodeHash: d.node_hash.into(),
            path: words(&d.path),
            opRoots: words(&d.op_roots),
            descriptor: d.descriptor.map_or_else(Default::default, |d| d.encode().to_vec().into()),
            descriptorProof: words(&d.descriptor_proof),
        },
    }
}
