//! One step of a plan, carried out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use alloy::primitives::{B256, U256};
use sworn_bindings::{IChallenges, IMarket, ITrials, Target, is_receipt, order_hash};
use sworn_chain::{Intent, Sender};
use sworn_commit::{HeadOpening, HeadRow, TraceDims, TraceTree, sequence};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::{self, Opened};
use crate::channel::Channels;
use crate::journal::{AnswerRecord, DemandRecord, JobRecord, Journal};
use crate::plan::Action;
use crate::prices::Prices;
use crate::{Conduct, Error, EventSink, Job, NodeConfig, NodeEvent, Prover, Result, register};

/// Recomputations for demands at a time. Those for HTTP have a place of their own, so that visitors cannot delay an answer.
const ANSWERS: usize = 2;

/// An execution that has ended the process so often is not tried again.
pub(crate) const DEADLY: u64 = 3;

/// What the agent's tasks and the HTTP side share.
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) sender: Sender,
    pub(crate) prover: Arc<dyn Prover>,
    pub(crate) conduct: Arc<dyn Conduct>,
    pub(crate) journal: Journal,
    pub(crate) sink: EventSink,
    pub(crate) prices: Arc<Prices>,
    pub(crate) channels: Option<Channels>,
    executions: Semaphore,
    answers: Arc<Semaphore>,
    visits: Arc<Semaphore>,
    cancels: std::sync::Mutex<HashMap<U256, Arc<AtomicBool>>>,
    pub(crate) open_jobs: std::sync::Mutex<OpenJobs>,
    rows: std::sync::Mutex<Rows>,
}

/// This node's jobs, as of the last look at the chain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenJobs {
    pub(crate) under_way: usize,
    pub(crate) unanswered: usize,
}

/// For whom something is recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Demand,
    Visit,
}

type RowKey = (U256, u16, u32);

/// Recomputed rows, the latest first, up to a number of bytes.
#[derive(Default)]
struct Rows {
    kept: VecDeque<(RowKey, Arc<Vec<Vec<u8>>>)>,
    bytes: usize,
}

fn size(ops: &[Vec<u8>]) -> usize {
    ops.iter().map(|op| op.len() + 64).sum()
}

impl Rows {
    fn get(&mut self, key: RowKey) -> Option<Arc<Vec<Vec<u8>>>> {
        let at = self.kept.iter().position(|(k, _)| *k == key)?;
        let row = self.kept.remove(at)?;
        self.kept.push_front(row.clone());
        Some(row.1)
    }

    fn put(&mut self, key: RowKey, ops: Arc<Vec<Vec<u8>>>, limit: usize) {
        if self.kept.iter().any(|(k, _)| *k == key) {
            return;
        }
        self.bytes += size(&ops);
        self.kept.push_front((key, ops));
        while self.bytes > limit
            && let Some((_, old)) = self.kept.pop_back()
        {
            self.bytes -= size(&old);
        }
    }

    fn forget(&mut self, job: U256) {
        self.kept.retain(|((j, _, _), _)| *j != job);
        self.bytes = self.kept.iter().map(|(_, ops)| size(ops)).sum();
    }
}

pub(crate) fn unpoisoned<T>(m: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f).await?
}

impl Shared {
    pub(crate) fn new(
        config: NodeConfig,
        sender: Sender,
        prover: Arc<dyn Prover>,
        conduct: Arc<dyn Conduct>,
        journal: Journal,
        sink: EventSink,
    ) -> Self {
        let (chain, account) = (sender.chain().clone(), sender.account());
        let prices = Arc::new(Prices::new(chain.clone(), account, &config.data));
        let terms = config.channels.clone();
        let channels = terms.map(|t| Channels::new(t, chain, account, journal.store().clone(), prices.clone()));
        let executions = Semaphore::new(config.workers.max(1));
        let (answers, visits) = (Arc::new(Semaphore::new(ANSWERS)), Arc::new(Semaphore::new(1)));
        let (cancels, open_jobs, rows) = Default::default();
        Shared {
            config,
            sender,
            prover,
            conduct,
            journal,
            sink,
            prices,
            channels,
            executions,
            answers,
            visits,
            cancels,
            open_jobs,
            rows,
        }
    }

    /// Stops the execution of a job, or of all.
    pub(crate) fn cancel(&self, job: Option<U256>) {
        let cancels = unpoisoned(&self.cancels);
        cancels
            .iter()
            .filter(|(id, _)| job.is_none_or(|j| j == **id))
            .for_each(|(_, c)| c.store(true, Ordering::Relaxed));
    }

    /// Executions that an orderly end of the process cuts off are not what ended it.
    pub(crate) fn excuse(&self) {
        unpoisoned(&self.cancels).keys().for_each(|id| self.journal.end(*id));
    }

    /// Jobs that are executed now.
    pub(crate) fn executing(&self) -> usize {
        unpoisoned(&self.cancels).len()
    }

    /// Frees what is kept of a job.
    pub(crate) fn forget(&self, job: U256) {
        self.cancel(Some(job));
        unpoisoned(&self.rows).forget(job);
        self.journal.remove_trace(job);
    }

    pub(crate) async fn perform(self: &Arc<Self>, action: Action) -> Result<()> {
        let d = self.sender.chain().deployment();
        let market = d.market;
        match action {
            Action::Execute(id) => self.execute(id).await,
            Action::Submit(id) => {
                let Some((record, answer)) = self.answered(id)? else { return Ok(()) };
                let tokens = sequence::encode(&answer.tokens);
                let job = &record.job;
                let input = sequence::hash(&job.prompt);
                let call = IMarket::submitResultCall {
                    jobId: id,
                    order: order_hash(job.model, input, job.max_new, &job.run),
                    outputTokens: tokens.into(),
                    layersRoot: answer.layers_root,
                };
                let key = format!("submit/{id}/{}", answer.layers_root);
                let receipt = self.sender.send(&Intent::call(key, market, &call).by(record.deadline)).await?;
                self.sink.emit(NodeEvent::Submitted { job: id, receipt });
                Ok(())
            }
            Action::Accept(id) => {
                let Some(record) = self.journal.job(id)? else { return Ok(()) };
                // Withdrawn meanwhile.
                let Some(price) = self.prices.of(record.job.model).await? else { return Ok(()) };
                let (input, output) = (price.per_input_token, price.per_output_token);
                let call = IMarket::acceptJobCall { jobId: id, perInputToken: input, perOutputToken: output };
                // The price in the key: after a change of prices the bid is another transaction.
                let key = format!("accept/{id}/{input}/{output}");
                let receipt = self.sender.send(&Intent::call(key, market, &call)).await?;
                self.sink.emit(NodeEvent::Accepted { job: id, receipt });
                Ok(())
            }
            Action::Answer { opening, .. } => {
                let demand = self.journal.demands()?.into_iter().find(|r| r.opening == opening);
                match demand {
                    Some(demand) => self.answer(&demand).await,
                    None => Ok(()),
                }
            }
            Action::Finalize(id) => {
                let intent = if is_receipt(id) {
                    Intent::call(format!("acquit/{id}"), d.trials, &ITrials::acquitCall { jobId: id })
                } else {
                    Intent::call(format!("finalize/{id}"), market, &IMarket::finalizeCall { jobId: id })
                };
                self.sender.send(&intent).await?;
                Ok(())
            }
            Action::Expire(id) => {
                self.cancel(Some(id));
                let call = IMarket::expireCall { jobId: id };
                self.sender.send(&Intent::call(format!("expire/{id}"), market, &call)).await?;
                Ok(())
            }
            Action::Withdraw => {
                let me = self.sender.account();
                let owed =
                    self.sender.chain().market().withdrawable(me).call().await.map_err(sworn_chain::Error::from)?;
                let intent = Intent::call("withdraw", market, &IMarket::withdrawCall {});
                let receipt = self.sender.again(&intent).await?;
                // The event has the amount; a withdrawal that a former process sent may have been of another.
                let amount = self.withdrawn(receipt.hash).await.unwrap_or(owed);
                self.sink.emit(NodeEvent::Withdrawn { amount, receipt });
                Ok(())
            }
            Action::Renew => match &self.config.channels {
                Some(terms) => {
                    let key = terms.signer.address();
                    register::session_key(key, false, &self.sender, &self.sink).await
                }
                None => Ok(()),
            },
            Action::Channel(step) => self.perform_channel(step).await,
            // Done by the agent itself: it owns the list of jobs.
            Action::Close(_) => Ok(()),
        }
    }

    async fn withdrawn(&self, transaction: B256) -> Option<U256> {
        let events = self.sender.chain().events_of(transaction).await.ok()?;
        events.into_iter().find_map(|e| match e {
            sworn_bindings::Event::Market(IMarket::IMarketEvents::Withdrawn(w)) => Some(w.amount),
            _ => None,
        })
    }

    async fn execute(self: &Arc<Self>, id: U256) -> Result<()> {
        let deaths = self.journal.deaths(id);
        if deaths >= DEADLY {
            return Err(Error::Deadly { job: id, deaths });
        }
        // What may have ended the process is tried again alone, so that no other job is blamed for it.
        let places = if deaths == 0 { 1 } else { self.config.workers.max(1) };
        let _permit = self.executions.acquire_many(places as u32).await;
        let Some(record) = self.journal.job(id)?.filter(|r| r.answer.is_none()) else { return Ok(()) };
        let cancel = Arc::new(AtomicBool::new(false));
        unpoisoned(&self.cancels).insert(id, cancel.clone());
        self.sink.emit(NodeEvent::Executing { job: id });
        let start = Instant::now();
        let (shared, job) = (self.clone(), record.job.clone());
        let done = blocking(move || {
            shared.journal.begin(job.id)?;
            let done = shared.prover.execute(&job, &cancel);
            shared.journal.end(job.id);
            let done = done?;
            // Before the journal says that the job is executed, so that no crash leaves an answer without its trace for long.
            shared.journal.put_trace(job.id, &done.trace)?;
            shared.keep_log_probs(&job, &done.trace, &done.log_probs);
            Ok(done)
        })
        .await;
        unpoisoned(&self.cancels).remove(&id);
        let done = done?;
        let layers_root = B256::from(done.trace.layers_root());
        let tokens = done.tokens.len();
        // The job may have ended, or a reorganisation may have given its id to another, while this ran.
        let Some(mut now) = self.journal.job(id)?.filter(|r| r.job == record.job && r.ended.is_none()) else {
            return Ok(());
        };
        now.answer = Some(AnswerRecord { tokens: done.tokens, layers_root });
        self.journal.put_job(&now)?;
        let seconds = start.elapsed().as_secs_f64();
        self.sink.emit(NodeEvent::Executed { job: id, tokens, seconds, layers_root });
        Ok(())
    }

    async fn answer(self: &Arc<Self>, demand: &DemandRecord) -> Result<()> {
        let id = demand.job;
        let (Some(target), Some((record, answer))) = (demand.target(), self.answered(id)?) else { return Ok(()) };
        let data = self.open(&record.job, &answer, &target).await?;
        let data = self.conduct.answer(&record.job, &target, data);
        let shown = target.to_string();
        let call = IChallenges::answerCall {
            jobId: id,
            target,
            nodeHash: demand.node_hash,
            leafCount: demand.leaf_count,
            byteLength: demand.byte_length,
            data: data.into(),
        };
        let key = format!("answer/{}/{}", demand.opening, demand.node_hash);
        let challenges = self.sender.chain().deployment().challenges;
        let receipt = self.sender.send(&Intent::call(key, challenges, &call).by(demand.deadline)).await?;
        self.sink.emit(NodeEvent::Answered { job: id, target: shown, receipt });
        Ok(())
    }

    /// The bytes that answer a demand, computed.
    async fn open(self: &Arc<Self>, job: &Job, answer: &AnswerRecord, target: &Target) -> Result<Vec<u8>> {
        let data = match Opened::of(target) {
            Some(Opened::Trace) => {
                let tree = self.trace(job, answer, Purpose::Demand).await?;
                answer::from_trace(target, &tree)
            }
            Some(Opened::Ops) => {
                let ops = self.ops(job, answer, target.layer, target.row, Purpose::Demand).await?;
                answer::from_ops(target, &ops)
            }
            Some(Opened::Tokens) => match target.layer {
                0 => Some(sequence::encode(&job.prompt)),
                1 => Some(sequence::encode(&answer.tokens)),
                _ => None,
            },
            None => None,
        };
        data.ok_or_else(|| Error::NoTarget { job: job.id, target: target.to_string() })
    }

    /// A job with its answer, if it has one.
    pub(crate) fn answered(&self, id: U256) -> Result<Option<(JobRecord, AnswerRecord)>> {
        Ok(self.journal.job(id)?.and_then(|r| r.answer.clone().map(|a| (r, a))))
    }

    /// A place to recompute in. It moves into the computation: a visitor who hangs up must not make room for the next while
    /// the first one's work goes on.
    async fn place(&self, purpose: Purpose) -> Option<OwnedSemaphorePermit> {
        let places = match purpose {
            Purpose::Demand => &self.answers,
            Purpose::Visit => &self.visits,
        };
        // Never closed.
        places.clone().acquire_owned().await.ok()
    }

    /// A job's trace: from its file, or recomputed.
    pub(crate) async fn trace(
        self: &Arc<Self>,
        job: &Job,
        answer: &AnswerRecord,
        purpose: Purpose,
    ) -> Result<TraceTree> {
        let layers = self.prover.layers(job.model).ok_or(Error::NoModel { job: job.id, model: job.model })?;
        let dims = TraceDims { layers, n_in: job.prompt.len() as u32, n_out: answer.tokens.len() as u32 };
        let (shared, job, answer) = (self.clone(), job.clone(), answer.clone());
        let place = self.place(purpose).await;
        blocking(move || {
            let _place = place;
            if let Some(tree) = shared.journal.trace(job.id, &dims, answer.layers_root) {
                return Ok(tree);
            }
            let tree = shared.prover.leaves(&job, &answer.tokens)?;
            if let Err(error) = shared.journal.put_trace(job.id, &tree) {
                tracing::warn!(job = %job.id, %error, "the trace is not kept");
            }
            Ok(tree)
        })
        .await
    }

    /// A job's log-probabilities with their path to the layers root, as it is served; `None` if its model has none.
    pub(crate) async fn log_probs(self: &Arc<Self>, job: &Job, answer: &AnswerRecord) -> Result<Option<HeadOpening>> {
        let tree = self.trace(job, answer, Purpose::Visit).await?;
        let (shared, job, answer) = (self.clone(), job.clone(), answer.clone());
        let place = self.place(Purpose::Visit).await;
        blocking(move || {
            let _place = place;
            if let Some(opening) = shared.journal.log_probs(job.id, &tree, &answer.tokens) {
                return Ok(Some(opening));
            }
            let rows = shared.prover.log_probs(&job, &answer.tokens)?;
            shared.keep_log_probs(&job, &tree, &rows);
            Ok((!rows.is_empty()).then(|| HeadOpening::new(&tree, rows)))
        })
        .await
    }

    /// Keeps log-probabilities if there are any: without them they are computed again when somebody asks.
    fn keep_log_probs(&self, job: &Job, tree: &TraceTree, rows: &[HeadRow]) {
        if rows.is_empty() {
            return;
        }
        if let Err(error) = self.journal.put_log_probs(job.id, &HeadOpening::new(tree, rows.to_vec())) {
            tracing::warn!(job = %job.id, %error, "the log-probabilities are not kept");
        }
    }

    /// The operators of a row, recomputed or remembered.
    pub(crate) async fn ops(
        self: &Arc<Self>,
        job: &Job,
        answer: &AnswerRecord,
        layer: u16,
        row: u32,
        purpose: Purpose,
    ) -> Result<Arc<Vec<Vec<u8>>>> {
        let key = (job.id, layer, row);
        let place = self.place(purpose).await;
        if let Some(ops) = unpoisoned(&self.rows).get(key) {
            return Ok(ops);
        }
        let (shared, job, tokens) = (self.clone(), job.clone(), answer.tokens.clone());
        let ops = blocking(move || {
            let _place = place;
            shared.prover.ops(&job, &tokens, layer, row)
        });
        let ops = Arc::new(ops.await?);
        unpoisoned(&self.rows).put(key, ops.clone(), self.config.ops_cache);
        Ok(ops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_rows_are_bounded_and_the_oldest_go_first() {
        let mut rows = Rows::default();
        let row = |n: usize| Arc::new(vec![vec![0; n]]);
        let key = |r: u32| (U256::ONE, 1, r);
        for r in 0..4 {
            rows.put(key(r), row(1_000), 3_500);
        }
        assert!(rows.get(key(0)).is_none());
        assert!(rows.get(key(1)).is_some());
        rows.put(key(4), row(1_000), 3_500);
        assert!(rows.get(key(2)).is_none(), "used longest ago");
        assert!(rows.get(key(1)).is_some());
        rows.put(key(5), row(100_000), 3_500);
        assert_eq!((rows.kept.len(), rows.bytes), (0, 0));
        rows.put(key(6), row(10), 3_500);
        rows.forget(U256::ONE);
        assert_eq!((rows.kept.len(), rows.bytes), (0, 0));
    }
}
