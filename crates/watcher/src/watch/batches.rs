//! Batches of receipts: read, re-executed and, where a receipt is false or hidden, brought to trial.

use std::time::{Duration, Instant};

use alloy::primitives::{B256, U256};
use alloy::sol_types::SolCall;
use sworn_bindings::{IChannels, IChannels::IChannelsEvents, ITrials, ITrials::ITrialsEvents};
use sworn_chain::{Head, Intent, Receipt as Mined, Seen};
use sworn_commit::sequence;
use sworn_receipts::{Domain, Receipt, SignedReceipt};

use super::account::Purse;
use super::{ANNOUNCEMENTS, ANSWERS, Done, Purpose, Subject, Watcher, endpoint, millis, tx};
use crate::Result;
use crate::event::{WatcherEvent, job_number};
use crate::executor::Executor;
use crate::job::Job;
use crate::receipts::{self, Batch, Entry, Step, Verdict, Wanted};

/// What came of looking at a receipt.
pub(super) enum Checked {
    /// Re-executed; when it is wrong, a second execution agrees.
    Executed { ok: bool, positions: u32, claimed: B256, own: B256, ms: u64 },
    /// No honest run gives these tokens.
    Malformed,
    /// Nothing can be said, and why.
    Skipped(String),
}

/// A step that is a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) step: Step,
    pub(super) channel: B256,
    pub(super) sequence: u64,
}

impl<F: FnMut(&WatcherEvent) + Send> Watcher<F> {
    pub(super) fn domain(&self) -> Domain {
        Domain { chain_id: self.config.deployment.chain_id, channels: self.config.deployment.channels }
    }

    pub(super) fn apply_channels(&mut self, event: &IChannelsEvents, seen: &Seen) {
        match event {
            IChannelsEvents::BatchRedeemed(_) if self.only.is_some() => {}
            IChannelsEvents::BatchRedeemed(e) => {
                let window = self.channels_window;
                let batch = Batch::new(e.batchId, seen.block, e.node, e.windowEnd.to(), window, e.parts.clone());
                let (id, receipts) = (job_number(e.batchId), batch.receipts());
                self.tell(WatcherEvent::BatchSeen { batch: id, node: e.node, receipts, amount: e.amount.to_string() });
                self.batches.insert(id, batch);
            }
            IChannelsEvents::BatchReleased(e) => self.batch_over(e.batchId, true, seen.block),
            IChannelsEvents::BatchVoid(e) => self.batch_over(e.batchId, false, seen.block),
            IChannelsEvents::ReceiptDemanded(e) => {
                if let Some(sheet) = self.batches.get_mut(&job_number(e.batchId)).and_then(|b| b.sheet(e.channelId)) {
                    sheet.wanted.insert(e.sequence, Wanted { payer: e.payer, deadline: e.deadline.to() });
                }
            }
            IChannelsEvents::ReceiptPublished(e) => {
                let receipt = Receipt::from(&e.receipt);
                let (channel, sequence) = (receipt.channelId, receipt.sequence);
                let signed = SignedReceipt { receipt, signature: e.signature.clone() };
                if let Some(sheet) = self.batches.get_mut(&job_number(e.batchId)).and_then(|b| b.sheet(channel)) {
                    sheet.wanted.remove(&sequence);
                    sheet.entries.entry(sequence).or_insert_with(|| Entry::new(signed, Vec::new(), Vec::new()));
                }
            }
            IChannelsEvents::ReceiptWithheld(e) => {
                if let Some(sheet) = self.batches.get_mut(&job_number(e.batchId)).and_then(|b| b.sheet(e.channelId)) {
                    sheet.wanted.remove(&e.sequence);
                }
            }
            IChannelsEvents::NodeConvicted(e) => {
                // Nothing of it will be paid any more. What a fault shown without a trial earns is there at once; after a trial
                // there is more to come.
                if !self.jobs.values().any(|j| j.receipt.is_some() && j.node == e.node) {
                    self.earned(Purse::Channels, seen.block);
                }
                let void = self.batches.extract_if(.., |_, b| b.node == e.node);
                self.ended.extend(void.map(|(_, b)| (b.block, seen.block)));
                for job in self.jobs.values_mut().filter(|j| j.receipt.is_some() && j.node == e.node) {
                    job.reward = e.reward;
                }
                self.tell(WatcherEvent::Convicted {
                    node: e.node,
                    taken: e.taken.to_string(),
                    compensation: e.compensation.to_string(),
                    reward: e.reward.to_string(),
                    burned: e.burned.to_string(),
                });
            }
            IChannelsEvents::Withdrawn(e) if e.account == self.me => {
                self.tell(WatcherEvent::Withdrawn { amount: e.amount.to_string() });
            }
            _ => {}
        }
    }

    fn batch_over(&mut self, id: U256, released: bool, block: u64) {
        if let Some(b) = self.batches.remove(&job_number(id)) {
            self.ended.push((b.block, block));
            if !released {
                self.earned(Purse::Channels, block);
            }
            self.tell(WatcherEvent::BatchOver { batch: job_number(id), node: b.node, released });
        }
    }

    pub(super) fn apply_trials(&mut self, event: &ITrialsEvents, seen: &Seen) {
        match event {
            ITrialsEvents::ReceiptLodged(e) => {
                let (id, receipt) = (job_number(e.jobId), Receipt::from(&e.receipt));
                if self.only.is_some_and(|only| only != id) {
                    return;
                }
                let (channel, sequence, deadline) = (receipt.channelId, receipt.sequence, e.deadline.to());
                self.tell(WatcherEvent::Lodged { job: id, node: e.node, channel, sequence, deadline });
                let batch = self.batches.values_mut().find(|b| b.claims(channel, sequence));
                let mut tokens =
                    self.store.get::<(Vec<u32>, Vec<u32>)>(ANSWERS, &e.digest.to_string()).unwrap_or_default();
                if let Some(entry) = batch.and_then(|b| b.sheet(channel)).and_then(|s| s.entries.get_mut(&sequence)) {
                    // Whoever lodged it: its trial is the job's matter now.
                    entry.verdict = Verdict::Settled;
                    tokens = tokens.or_else(|| entry.tokens.clone());
                }
                let Some(executor) = self.executors.get(&receipt.modelId.0) else {
                    self.tell(WatcherEvent::UnknownModel { job: id, model: receipt.modelId });
                    return;
                };
                let layers = executor.model().layers();
                let Some(mut job) = Job::lodged(id, seen.block, e.node, receipt, layers, deadline) else { return };
                job.announced = self.store.get(ANNOUNCEMENTS, &id.to_string()).unwrap_or_default();
                if let Some((prompt, output)) = tokens {
                    job.found(prompt, output);
                }
                self.jobs.insert(id, job);
            }
            ITrialsEvents::TrialAcquitted(e) => {
                let id = job_number(e.jobId);
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.acquitted();
                    self.tell(WatcherEvent::Acquitted { job: id });
                }
            }
            _ => {}
        }
    }

    /// Whether nothing is left to do for any batch.
    pub(super) fn batches_idle(&self, now: u64) -> bool {
        let rests = |b: &Batch| b.muted || b.next(self.me, now, self.margin) == Step::Rest;
        self.batches.values().all(|b| !b.busy && rests(b))
    }

    pub(super) async fn decide_batches(&mut self, head: Head) -> Result<()> {
        let ready = |b: &&Batch| {
            !b.busy && !b.muted && b.after_block <= head.number && b.not_before.is_none_or(|t| t <= Instant::now())
        };
        let ids: Vec<u64> = self.batches.values().filter(ready).map(|b| job_number(b.id)).collect();
        for id in ids {
            self.decide_batch(id, head).await?;
        }
        Ok(())
    }

    async fn decide_batch(&mut self, id: u64, head: Head) -> Result<()> {
        let (me, margin, domain, patience) = (self.me, self.margin, self.domain(), self.patience());
        let Some(batch) = self.batches.get_mut(&id) else { return Ok(()) };
        let step = batch.next(me, head.timestamp, margin);
        let (part, sequence) = match step {
            Step::Rest | Step::Wait => return Ok(()),
            Step::Read(part) => (part, batch.parts[part].first),
            Step::Demand(part, s) | Step::Withheld(part, s) | Step::Overclaim(part, s) => (part, s),
            Step::Check(part, s) | Step::Malformed(part, s) | Step::Lodge(part, s) => (part, s),
        };
        let channel = batch.parts[part].channelId;
        let sent = Sent { step, channel, sequence };
        match step {
            Step::Rest | Step::Wait => {}
            Step::Read(part) => {
                batch.busy = true;
                let (chain, node, own) = (self.chain.clone(), batch.node, batch.parts[part].clone());
                self.fetch(Subject::Batch(id), async move {
                    let read = match endpoint(&chain, node).await {
                        Ok(endpoint) => receipts::read(&chain, &domain, &endpoint, node, &own, patience).await,
                        Err(e) => Err(e),
                    };
                    Done::Receipts(part, read)
                });
            }
            Step::Check(part, sequence) => {
                let Some(entry) = batch.entry(part, sequence).cloned() else { return Ok(()) };
                let Some(executor) = self.executors.get(&entry.signed.receipt.modelId.0).cloned() else {
                    let reason = format!("no model directory for {}", entry.signed.receipt.modelId);
                    self.checked(id, part, sequence, Checked::Skipped(reason));
                    return Ok(());
                };
                batch.busy = true;
                self.compute(Subject::Batch(id), move || Done::Checked(part, sequence, check(&executor, &entry)));
            }
            _ if self.sender.is_none() => {
                batch.muted = true;
                let next = match step {
                    Step::Lodge(..) => "bring the receipt to trial",
                    Step::Demand(..) => "demand the receipt",
                    Step::Withheld(..) => "time the demand out",
                    _ => "convict the node of the receipt",
                };
                self.tell(WatcherEvent::WouldAct { batch: id, channel, sequence, next: next.into() });
            }
            Step::Demand(part, sequence) => {
                let Some(place) = batch.place(part) else { return Ok(()) };
                let call = IChannels::demandReceiptCall { place, sequence };
                self.send_batch(id, self.config.deployment.channels, &call, sent, "demandReceipt");
            }
            Step::Withheld(_, sequence) => {
                let call = IChannels::receiptTimeoutCall { batchId: U256::from(id), channelId: channel, sequence };
                self.send_batch(id, self.config.deployment.channels, &call, sent, "receiptTimeout");
            }
            Step::Overclaim(part, sequence) => {
                let Some(place) = batch.place(part) else { return Ok(()) };
                let Some(Entry { signed, .. }) = batch.entry(part, sequence).cloned() else { return Ok(()) };
                let (receipt, signature) = ((&signed.receipt).into(), signed.signature);
                let call = ITrials::convictOverclaimCall { place, receipt, signature };
                self.send_batch(id, self.config.deployment.trials, &call, sent, "convictOverclaim");
            }
            Step::Malformed(part, sequence) => {
                let Some(Entry { signed, tokens, .. }) = batch.entry(part, sequence).cloned() else { return Ok(()) };
                let (prompt, output) = tokens.unwrap_or_default();
                let call = ITrials::convictMalformedCall {
                    receipt: (&signed.receipt).into(),
                    signature: signed.signature,
                    input: sequence::encode(&prompt).into(),
                    output: sequence::encode(&output).into(),
                };
                self.send_batch(id, self.config.deployment.trials, &call, sent, "convictMalformed");
            }
            Step::Lodge(part, sequence) => {
                let Some(place) = batch.place(part) else { return Ok(()) };
                let Some(Entry { signed, tokens, .. }) = batch.entry(part, sequence).cloned() else { return Ok(()) };
                if let Some(tokens) = tokens {
                    // The node may no longer serve them once it is accused.
                    self.store.put(ANSWERS, &domain.digest(&signed.receipt).to_string(), &tokens)?;
                }
                let (receipt, signature) = ((&signed.receipt).into(), signed.signature);
                let call = ITrials::lodgeCall { receipt, signature, place };
                self.send_batch(id, self.config.deployment.trials, &call, sent, "lodge");
            }
        }
        Ok(())
    }

    fn send_batch<C: SolCall>(
        &mut self,
        id: u64,
        to: alloy::primitives::Address,
        call: &C,
        sent: Sent,
        name: &'static str,
    ) {
        let key = format!("batch/{id}/{name}/{}/{}", sent.channel, sent.sequence);
        self.send(Subject::Batch(id), Intent::call(key, to, call), Purpose::Batch(name, sent));
    }

    /// A task of a batch's is over.
    pub(super) async fn finished_batch(&mut self, id: u64, done: Done) {
        let Some(batch) = self.batches.get_mut(&id) else { return };
        batch.busy = false;
        match done {
            Done::Receipts(part, result) => {
                let note = result.as_ref().err().cloned().unwrap_or_default();
                let (receipts, served) = result.as_ref().map_or((0, false), |all| (all.len(), true));
                let channel = batch.parts.get(part).map(|p| p.channelId).unwrap_or_default();
                batch.took(part, result.ok());
                self.tell(WatcherEvent::ReceiptsRead { batch: id, channel, receipts, served, note });
            }
            Done::Checked(part, sequence, checked) => self.checked(id, part, sequence, checked),
            Done::Tx(Purpose::Batch(call, sent), Ok(mined)) => self.batch_sent(id, call, sent, &mined),
            Done::Tx(_, Ok(_)) => {}
            Done::Tx(purpose, Err(e)) => {
                batch.failures += 1;
                let pause = Duration::from_millis(500 * u64::from(batch.failures.min(20)));
                batch.not_before = Some(Instant::now() + pause);
                // What the contract refuses by its own word will be refused again; the token, until there is money and leave to take it.
                let refused = e.revert().is_some_and(|r| !r.is_the_tokens());
                if let (Purpose::Batch(_, sent), true) = (purpose, refused) {
                    batch.dealt_with(sent.step);
                }
                self.error(None, format!("batch {id}: {e}"));
            }
            Done::Audit(Err(reason), _) => {
                batch.muted = true;
                self.error(None, format!("batch {id}: {reason}"));
            }
            _ => {}
        }
    }

    fn batch_sent(&mut self, id: u64, call: &'static str, sent: Sent, mined: &Mined) {
        if let Some(batch) = self.batches.get_mut(&id) {
            batch.after_block = mined.block;
            batch.failures = 0;
            batch.dealt_with(sent.step);
        }
        let Sent { channel, sequence, .. } = sent;
        self.tell(WatcherEvent::BatchSent { batch: id, channel, sequence, call: call.into(), tx: tx(mined) });
    }

    fn checked(&mut self, id: u64, part: usize, sequence: u64, checked: Checked) {
        let Some(batch) = self.batches.get_mut(&id) else { return };
        let channel = batch.parts.get(part).map(|p| p.channelId).unwrap_or_default();
        let Some(entry) = batch.entry(part, sequence) else { return };
        let event = match checked {
            Checked::Executed { ok, positions, claimed, own, ms } => {
                entry.verdict = if ok { Verdict::Settled } else { Verdict::Wrong };
                if ok {
                    // Receipts are many; what is right need not be kept.
                    entry.tokens = None;
                }
                let (claimed_root, own_root) = (claimed, own);
                WatcherEvent::ReceiptAudited { batch: id, channel, sequence, ok, positions, claimed_root, own_root, ms }
            }
            Checked::Malformed => {
                entry.verdict = Verdict::Malformed;
                return;
            }
            Checked::Skipped(reason) => {
                entry.verdict = Verdict::Settled;
                WatcherEvent::ReceiptSkipped { batch: id, channel, sequence, reason }
            }
        };
        self.tell(event);
    }
}

/// Looks at a receipt: its tokens, then its trace.
pub(super) fn check(executor: &Executor, entry: &Entry) -> Checked {
    let start = Instant::now();
    let receipt = &entry.signed.receipt;
    let Some((prompt, output)) = &entry.tokens else {
        // Hidden: a trial makes the node show them.
        let claimed = receipt.trace_root().unwrap_or_default().into();
        return Checked::Executed { ok: false, positions: 0, claimed, own: B256::ZERO, ms: 0 };
    };
    if receipts::fault(receipt, prompt, output, executor.model().manifest()).is_some() {
        return Checked::Malformed;
    }
    let (Some(run), Some(dims)) = (receipt.run(), receipt.dims(executor.model().layers())) else {
        return Checked::Malformed;
    };
    let (own, root) = match executor.audit(prompt, output, &run) {
        Ok(audited) => audited,
        Err(e) => return Checked::Skipped(e.to_string()),
    };
    let ok = B256::from(own.trace.layers_root()) == receipt.layersRoot && own.selected == *output;
    // The fee is spent on the word of two executions, never of one.
    if !ok && let Err(reason) = executor.self_check(prompt, output, &run, &own.trace, &own.selected) {
        return Checked::Skipped(reason);
    }
    Checked::Executed {
        ok,
        positions: dims.positions(),
        claimed: receipt.trace_root().unwrap_or_default().into(),
        own: root.into(),
        ms: millis(start),
    }
}
