//! The loop: news from the chain, a plan, its steps.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use sworn_bindings::IChallenges::{IChallengesEvents, OpeningState};
use sworn_bindings::IMarket::IMarketEvents;
use sworn_bindings::INodes::INodesEvents;
use sworn_bindings::ITrials::ITrialsEvents;
use sworn_bindings::{Event, ICourt, JobState, is_receipt, run_params};
use sworn_chain::{Batch, Cursor, CursorOptions, Head, Sender, Store};
use sworn_commit::sequence;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::channel::Channels;
use crate::http;
use crate::journal::{AnswerRecord, DemandRecord, JobRecord, Journal};
use crate::known::Known;
use crate::measure;
use crate::plan::{Action, DemandView, JobView, Step, View, decide};
use crate::work::{OpenJobs, Shared, unpoisoned};
use crate::{Conduct, Error, EventSink, Job, NodeConfig, NodeEvent, Prover, Result, register};

/// Jobs that the chain is asked about at a time.
const LOOKS: usize = 32;
/// How often a session key is looked after, in seconds.
const DAY: u64 = 86_400;
/// Longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause before a step with a deadline is tried again.
const URGENT_PAUSE: Duration = Duration::from_secs(2);
/// How long transactions under way may take when the node stops; the journal has them anyway.
const FAREWELL: Duration = Duration::from_secs(5);

/// A node, registered and ready to [`run`](Node::run).
pub struct Node {
    shared: Arc<Shared>,
    cursor: Cursor,
    listener: Option<TcpListener>,
    jobs: BTreeMap<U256, Known>,
    /// Jobs whose end a reorganisation may still take back, with the latest block when it was seen.
    ended: BTreeMap<U256, u64>,
    /// Of both.
    demands: BTreeMap<B256, DemandRecord>,
    /// The head that the last plan was made for.
    seen: Option<Head>,
    /// The second from which the session key is to be looked after.
    renew_at: u64,
    under_way: HashSet<Action>,
    failures: HashMap<Action, (u32, Instant)>,
    tasks: JoinSet<(Action, Result<()>)>,
    /// Whether something that a plan depends on has changed without a new block.
    changed: bool,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("account", &self.shared.sender.account()).field("jobs", &self.jobs.len()).finish()
    }
}

impl Node {
    /// Opens the journal in `store` (which may be the sender's), posts what is to be posted, listens.
    ///
    /// # Errors
    /// A model is not registered, tokens are missing, the address is taken, disk or RPC fail.
    pub async fn start(
        config: NodeConfig,
        sender: Sender,
        store: Store,
        prover: Arc<dyn Prover>,
        conduct: Arc<dyn Conduct>,
        sink: EventSink,
    ) -> Result<Self> {
        measure::describe();
        let journal = Journal::new(store.clone(), config.data.join("traces"))?;
        register::register(&config.registration, &sender, &sink).await?;
        if let Some(terms) = &config.channels {
            register::session_key(terms.signer.address(), true, &sender, &sink).await?;
        }
        let listener = match config.listen {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| Error::Listen { address, source })?)
            }
            None => None,
        };
        let cursor = Cursor::open(sender.chain().clone(), store, "node", CursorOptions::default())?;
        let (mut jobs, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for record in journal.jobs()? {
            match record.ended {
                Some(at) => drop(ended.insert(record.job.id, at)),
                None => drop(jobs.insert(record.job.id, Known::new(record))),
            }
        }
        let demands = journal.demands()?.into_iter().map(|d| (d.opening, d)).collect();
        let shared = Arc::new(Shared::new(config, sender, prover, conduct, journal, sink));
        shared.resume_requests()?;
        Ok(Node {
            shared,
            cursor,
            listener,
            jobs,
            ended,
            demands,
            seen: None,
            renew_at: 0,
            under_way: HashSet::new(),
            failures: HashMap::new(),
            tasks: JoinSet::new(),
            changed: true,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(|l| l.local_addr().ok())
    }

    /// Serves until `shutdown` resolves. Failures of chain, disk or execution are told and tried again; nothing is lost by dropping
    /// the future at any point.
    ///
    /// # Errors
    /// A defect of this program.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let shared = self.shared.clone();
        let (stop, stopped) = watch::channel(false);
        let listen = self.address().map(|a| a.to_string());
        let server = self.listener.take().map(|listener| tokio::spawn(http::serve(listener, shared.clone(), stopped)));
        let account = shared.sender.account();
        shared.sink.emit(NodeEvent::Started { account, models: shared.prover.models(), listen });

        // Beside everything else: an old transaction may wait long for its block.
        let resumed = tokio::spawn({
            let shared = shared.clone();
            async move {
                if let Err(error) = shared.sender.resume().await {
                    tracing::warn!(%error, "resuming transactions");
                }
            }
        });
        let mut shutdown = std::pin::pin!(shutdown);
        let mut failed = 0u32;
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(done) = self.tasks.join_next() => self.finished(done?),
                () = tokio::time::sleep(pause) => {
                    pause = shared.sender.chain().poll();
                    match self.tick().await {
                        Ok(()) => failed = 0,
                        Err(error) => {
                            shared.config.pulse.bad(&error);
                            // Once per outage; the log has the rest.
                            if failed == 0 {
                                shared.sink.emit(NodeEvent::Failed { action: "following the chain".into(), error: error.to_string() });
                            } else {
                                tracing::debug!(%error, failed, "following the chain");
                            }
                            pause = (pause * 2u32.saturating_pow(failed.min(16))).min(LONGEST_PAUSE);
                            failed += 1;
                        }
                    }
                }
            }
        }
        shared.config.pulse.stopping();
        shared.cancel(None);
        if let Some(channels) = &shared.channels {
            channels.stop();
        }
        let _ = stop.send(true);
        resumed.abort();
        let last = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, last).await;
        shared.excuse();
        if let Some(server) = server {
            let _ = tokio::time::timeout(FAREWELL, server).await;
        }
        shared.sink.emit(NodeEvent::Stopped);
        Ok(())
    }

    async fn tick(&mut self) -> Result<()> {
        let batch = self.cursor.poll().await?;
        self.reconsider(&batch)?;
        self.learn(&batch)?;
        self.cursor.commit(&batch)?;
        if !batch.caught_up {
            self.shared.config.pulse.behind();
            return Ok(());
        }
        self.shared.config.pulse.good();
        self.measure();
        // Receipts come without a block.
        self.changed |= self.shared.channels.as_ref().is_some_and(Channels::has_earned);
        let now = Instant::now();
        let due = self.failures.iter().any(|(action, (_, at))| *at <= now && !self.under_way.contains(action));
        if self.changed || due || self.seen != Some(batch.head) {
            self.step(batch.head).await?;
            self.seen = Some(batch.head);
            self.changed = false;
        }
        Ok(())
    }

    fn measure(&self) {
        let shared = &self.shared;
        let mine = self.jobs.values().map(|known| &known.record).filter(|r| r.mine);
        let unanswered = mine.clone().filter(|r| r.answer.is_none()).count();
        let open = OpenJobs { under_way: mine.count(), unanswered };
        *unpoisoned(&shared.open_jobs) = open;
        measure::under_way("jobs", open.under_way);
        measure::under_way("running", shared.executing());
        measure::under_way("answers", shared.channels.as_ref().map_or(0, Channels::answering));
        measure::under_way("demands", self.demands.values().filter(|d| self.jobs.contains_key(&d.job)).count());
    }

    /// Takes up again what a reorganisation may have taken back, and lets go of what none will.
    fn reconsider(&mut self, batch: &Batch) -> Result<()> {
        if batch.replaced.is_none() && self.seen == Some(batch.head) {
            return Ok(());
        }
        if batch.replaced.is_some() {
            self.jobs.values_mut().for_each(Known::forget_chain);
            self.changed = true;
        }
        self.shared.reconsider_channels(batch)?;
        let undone: Vec<U256> = self.ended.iter().filter(|(_, at)| batch.undoes(**at)).map(|(id, _)| *id).collect();
        for id in undone {
            if let Some(record) = self.shared.journal.job(id)? {
                self.keep(record)?;
            }
        }
        let before = self.ended.len();
        self.ended.retain(|_, at| !batch.head.buries(*at));
        if self.ended.len() < before {
            let (jobs, ended) = (&self.jobs, &self.ended);
            let over = |d: &&DemandRecord| !jobs.contains_key(&d.job) && !ended.contains_key(&d.job);
            let demands: Vec<B256> = self.demands.values().filter(over).map(|d| d.opening).collect();
            for opening in demands {
                self.shared.journal.remove_demand(opening)?;
                self.demands.remove(&opening);
            }
        }
        Ok(())
    }

    /// Writes what events say to the journal. May see the same event again.
    fn learn(&mut self, batch: &Batch) -> Result<()> {
        let me = self.shared.sender.account();
        for seen in &batch.events {
            self.heard(seen.event.job());
            match &seen.event {
                Event::Market(e) => self.learn_market(e, me)?,
                Event::Channels(e) => {
                    if !self.shared.learn_channels(e)? {
                        continue;
                    }
                }
                Event::Trials(e) => self.learn_trial(e)?,
                Event::Nodes(INodesEvents::AskSet(e)) if e.node == me => {
                    self.shared.prices.forget();
                    continue;
                }
                Event::Challenges(IChallengesEvents::Demanded(e)) if self.jobs.contains_key(&e.jobId) => {
                    let record = DemandRecord::of(e);
                    self.shared.journal.put_demand(&record)?;
                    let deadline = record.deadline;
                    if self.demands.insert(record.opening, record).is_none() {
                        let target = e.target.to_string();
                        self.shared.sink.emit(NodeEvent::Demanded { job: e.jobId, target, by: e.payer, deadline });
                    }
                }
                // Demands are kept until their job ends: a reorganisation may take an answer back, and the chain says which are open.
                Event::Challenges(IChallengesEvents::Answered(_)) => {}
                _ => continue,
            }
            self.changed = true;
        }
        Ok(())
    }

    fn learn_market(&mut self, event: &IMarketEvents, me: Address) -> Result<()> {
        let shared = self.shared.clone();
        match event {
            IMarketEvents::JobCreated(e) => {
                let servable = shared.prover.layers(e.modelId).is_some();
                if e.node != me && !(e.node.is_zero() && servable) {
                    return Ok(());
                }
                let Some(prompt) = sequence::decode(&e.promptTokens) else { return Ok(()) };
                // The market admits no parameters that do not fit.
                let Some(run) = run_params(e.sampling, e.seed) else { return Ok(()) };
                let job = Job { id: e.jobId, model: e.modelId, prompt, max_new: e.maxNew, run };
                let known = shared.journal.job(job.id)?.filter(|r| r.job == job);
                // After a reorganisation the id may be another job's.
                if known.is_none() {
                    shared.forget(job.id);
                }
                let fresh = JobRecord { job, answer: None, mine: false, deadline: None, ended: None };
                self.keep(known.unwrap_or(fresh))?;
            }
            IMarketEvents::JobAccepted(e) if e.node == me => {
                if let Some(mut record) = self.record(e.jobId) {
                    let Job { id: job, max_new, .. } = record.job;
                    let prompt_tokens = record.job.prompt.len();
                    if !record.mine {
                        shared.sink.emit(NodeEvent::Assigned {
                            job,
                            prompt_tokens,
                            max_new,
                            deadline: e.deadline.to(),
                        });
                    }
                    record.mine = true;
                    record.deadline = Some(e.deadline.to());
                    self.keep(record)?;
                }
            }
            // The chain's word stands above the journal's: it may be another process of the same account that answered.
            IMarketEvents::ResultSubmitted(e) if e.node == me => {
                if let (Some(mut record), Some(tokens)) = (self.record(e.jobId), sequence::decode(&e.outputTokens)) {
                    record.answer = Some(AnswerRecord { tokens, layers_root: e.layersRoot });
                    self.keep(record)?;
                }
            }
            IMarketEvents::JobFinalized(e) if self.is_mine(e.jobId) => {
                shared.sink.emit(NodeEvent::Finalized { job: e.jobId, paid: e.paid });
            }
            IMarketEvents::JobSlashed(e) if e.node == me => {
                shared.sink.emit(NodeEvent::Slashed { job: e.jobId, bond: e.bond });
            }
            _ => {}
        }
        Ok(())
    }

    fn learn_trial(&mut self, event: &ITrialsEvents) -> Result<()> {
        match event {
            ITrialsEvents::ReceiptLodged(e) => {
                if let Some(record) = self.shared.lodged(e)? {
                    let known = self.shared.journal.job(e.jobId)?.filter(|r| r.job == record.job);
                    self.keep(known.unwrap_or(record))?;
                }
            }
            ITrialsEvents::TrialAcquitted(e) if self.is_mine(e.jobId) => {
                self.shared.sink.emit(NodeEvent::Finalized { job: e.jobId, paid: e.fees });
            }
            _ => {}
        }
        Ok(())
    }

    fn is_mine(&self, id: U256) -> bool {
        self.jobs.get(&id).is_some_and(|known| known.record.mine)
    }

    fn record(&self, id: U256) -> Option<JobRecord> {
        self.jobs.get(&id).map(|known| known.record.clone())
    }

    /// There may be something new about a job.
    fn heard(&mut self, job: Option<U256>) {
        if let Some(known) = job.and_then(|id| self.jobs.get_mut(&id)) {
            known.heard();
        }
    }

    /// As a job that something may follow for.
    fn keep(&mut self, record: JobRecord) -> Result<()> {
        let record = JobRecord { ended: None, ..record };
        self.shared.journal.put_job(&record)?;
        self.ended.remove(&record.job.id);
        match self.jobs.entry(record.job.id) {
            Entry::Vacant(vacant) => drop(vacant.insert(Known::new(record))),
            Entry::Occupied(mut occupied) => {
                occupied.get_mut().record = record;
                occupied.get_mut().heard();
            }
        }
        Ok(())
    }

    /// Plans for `head` and begins what is due.
    async fn step(&mut self, head: Head) -> Result<()> {
        self.look_again(head).await?;
        let steps = crate::channel::redeem::decide(&self.shared.channels_view(head.timestamp).await?);
        let mut actions: Vec<Action> = steps.into_iter().map(Action::Channel).collect();
        actions.extend(decide(&self.view(head).await?));
        self.failures.retain(|action, _| actions.contains(action));
        let now = Instant::now();
        for action in actions {
            match action {
                Action::Close(id) => {
                    self.close(id, head)?;
                    continue;
                }
                Action::Channel(Step::Close(batch)) => {
                    self.shared.close_batch(batch, head)?;
                    continue;
                }
                _ => {}
            }
            let waits = self.failures.get(&action).is_some_and(|(_, at)| *at > now);
            if !waits && self.under_way.insert(action) {
                let shared = self.shared.clone();
                self.tasks.spawn(async move {
                    let result = shared.perform(action).await;
                    (action, result)
                });
            }
        }
        Ok(())
    }

    /// Asks the chain about the jobs that may be otherwise by now.
    async fn look_again(&mut self, head: Head) -> Result<()> {
        let open = self.shared.config.accept_open;
        let due: Vec<U256> =
            self.jobs.iter().filter(|(_, known)| known.is_due(head, open)).map(|(id, _)| *id).collect();
        let looks = stream::iter(due).map(|id| self.look(id, head));
        let looks: Vec<_> = looks.buffered(LOOKS).try_collect().await?;
        for (record, job) in looks.into_iter().flatten() {
            if let Some(known) = self.jobs.get_mut(&job.id) {
                known.found(record, job, head);
            }
        }
        Ok(())
    }

    /// Joins the journal with the chain's state.
    async fn view(&self, head: Head) -> Result<View<'_>> {
        let jobs = self.jobs.values().filter_map(Known::job).collect();
        let shared = &self.shared;
        let NodeConfig { accept_open, withdraw_at, .. } = shared.config;
        let withdrawable = match withdraw_at {
            Some(_) => {
                let owed = shared.sender.chain().market().withdrawable(shared.sender.account()).call().await;
                owed.map_err(sworn_chain::Error::from)?
            }
            None => U256::ZERO,
        };
        let renew_at = shared.channels.is_some().then_some(self.renew_at);
        Ok(View { now: head.timestamp, jobs, accept_open, withdrawable, withdraw_at, renew_at })
    }

    /// A job as the journal and the chain have it; `None` if the journal does not.
    async fn look(&self, id: U256, head: Head) -> Result<Option<(JobRecord, JobView)>> {
        let shared = &self.shared;
        let chain = shared.sender.chain();
        let OnChain { state, deadline, node } = self.on_chain(id).await?;
        // Executions write to the journal beside this loop.
        let Some(record) = shared.journal.job(id)? else { return Ok(None) };
        let mut demands = Vec::new();
        let mut settled = false;
        if state == JobState::Submitted {
            demands = self.demands_of(&record.job).await?;
            settled = head.timestamp > deadline
                && chain.challenges().settled(id).call().await.map_err(sworn_chain::Error::from)?;
        }
        let wanted = state == JobState::Open && shared.config.accept_open;
        let covered = wanted && self.is_covered(&record.job).await?;
        let job = JobView {
            id,
            state,
            deadline,
            mine: node == shared.sender.account(),
            servable: shared.prover.layers(record.job.model).is_some(),
            executed: record.answer.is_some(),
            settled,
            covered,
            demands,
        };
        Ok(Some((record, job)))
    }

    /// Whether an open job pays what the node asks by now.
    async fn is_covered(&self, job: &Job) -> Result<bool> {
        let Some(price) = self.shared.prices.of(job.model).await? else { return Ok(false) };
        let Some(price) = price.longest(job.prompt.len(), job.max_new) else { return Ok(false) };
        let market = self.shared.sender.chain().market();
        let offer = market.offerFor(job.id).call().await.map_err(sworn_chain::Error::from)?;
        Ok(U256::from(price) <= offer)
    }

    /// A job of the market, or a receipt on trial.
    async fn on_chain(&self, id: U256) -> Result<OnChain> {
        let chain = self.shared.sender.chain();
        let failed = sworn_chain::Error::from;
        if is_receipt(id) {
            let court = ICourt::new(chain.deployment().trials, chain.provider().clone());
            let trial = court.trial(id).call().await.map_err(failed)?;
            return Ok(OnChain { state: trial.state, deadline: trial.deadline.to(), node: trial.node });
        }
        let job = chain.market().job(id).call().await.map_err(failed)?;
        Ok(OnChain { state: job.state, deadline: job.deadline.to(), node: job.node })
    }

    /// Demands that the chain still counts as unanswered and that the node means to answer.
    async fn demands_of(&self, job: &Job) -> Result<Vec<DemandView>> {
        let shared = &self.shared;
        let challenges = shared.sender.chain().challenges();
        let mut views = Vec::new();
        for d in self.demands.values().filter(|d| d.job == job.id) {
            let opening = challenges.opening(d.opening).call().await.map_err(sworn_chain::Error::from)?;
            // Not demanded may mean answered, or an RPC server that is a block behind: the demand is asked about again.
            if let Some(target) = d.target().filter(|_| opening.state == OpeningState::Demanded)
                && shared.conduct.answers(job, &target)
            {
                views.push(DemandView { opening: d.opening, deadline: opening.turnEnd.to() });
            }
        }
        Ok(views)
    }

    fn close(&mut self, id: U256, head: Head) -> Result<()> {
        let Some(known) = self.jobs.get(&id) else { return Ok(()) };
        let (record, state) = (known.record.clone(), known.job().map_or(JobState::None, |job| job.state));
        // Events tell of the other ends, with their amounts.
        if record.mine && !matches!(state, JobState::Final | JobState::Slashed) {
            self.shared.sink.emit(NodeEvent::Closed { job: id, state: state.name() });
        }
        self.shared.forget(id);
        self.shared.journal.put_job(&JobRecord { ended: Some(head.number), ..record })?;
        self.jobs.remove(&id);
        self.ended.insert(id, head.number);
        Ok(())
    }

    fn finished(&mut self, (action, result): (Action, Result<()>)) {
        self.under_way.remove(&action);
        self.heard(action.job());
        self.changed = true;
        let Err(error) = result else {
            self.failures.remove(&action);
            if action == Action::Renew {
                self.renew_at = self.seen.map_or(0, |head| head.timestamp + DAY);
            }
            return;
        };
        let revert = match &error {
            Error::Chain(e) => e.revert().map(|r| r.name.as_str()).unwrap_or_default(),
            _ => "",
        };
        // Somebody was faster, which is as good; the next plan sees it.
        let overtaken = matches!(
            revert,
            "WrongState" | "NotDemanded" | "NothingToWithdraw" | "WrongBatchState" | "WrongDemandState"
        );
        let times = self.failures.get(&action).map_or(0, |(times, _)| times + 1);
        let longest = match action {
            Action::Answer { .. } | Action::Submit(_) | Action::Channel(Step::Publish { .. }) => URGENT_PAUSE,
            _ => LONGEST_PAUSE,
        };
        let pause = (Duration::from_millis(250) * 2u32.saturating_pow(times.min(16))).min(longest);
        self.failures.insert(action, (times, Instant::now() + pause));
        // Not every repetition is news.
        if !overtaken && (times + 1).is_power_of_two() {
            self.shared.sink.emit(NodeEvent::Failed { action: describe(action), error: error.to_string() });
        }
    }
}

/// What a plan must know of a job from the chain.
struct OnChain {
    state: JobState,
    deadline: u64,
    node: Address,
}

fn describe(action: Action) -> String {
    match action {
        Action::Answer { job, opening } => format!("answering opening {opening} of job {job}"),
        Action::Submit(id) => format!("submitting job {id}"),
        Action::Execute(id) => format!("executing job {id}"),
        Action::Accept(id) => format!("accepting job {id}"),
        Action::Finalize(id) => format!("finalizing job {id}"),
        Action::Expire(id) => format!("expiring job {id}"),
        Action::Close(id) => format!("closing job {id}"),
        Action::Withdraw => "withdrawing".into(),
        Action::Renew => "renewing the session key".into(),
        Action::Channel(step) => match step {
            Step::Publish { batch, channel, sequence } => {
                format!("publishing receipt {sequence} of channel {channel} for batch {batch}")
            }
            Step::Redeem => "redeeming receipts".into(),
            Step::Release(batch) => format!("releasing batch {batch}"),
            Step::Close(batch) => format!("closing batch {batch}"),
            Step::Withdraw => "withdrawing what channels paid".into(),
        },
    }
}
