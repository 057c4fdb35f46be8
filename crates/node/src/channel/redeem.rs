//! From receipts to money: when to claim, what to show, when to collect. What is due follows from the chain and the journal alone.

use std::sync::Arc;

use alloy::primitives::{B256, Bytes, U256};
use alloy::sol_types::SolValue;
use serde::{Deserialize, Serialize};
use sworn_bindings::IChannels::{self, BatchState, DemandState, IChannelsEvents};
use sworn_bindings::{ChannelState, Event, ITrials, Part, Redemption};
use sworn_chain::{Batch, Head, Intent};
use sworn_receipts::{place, receipts_tree};

use super::record::{BookRecord, ReceiptRecord};
use crate::journal::{AnswerRecord, JobRecord};
use crate::work::{Shared, blocking, unpoisoned};
use crate::{Error, NodeEvent, Result};

/// Channels that one batch holds, as the contract has it.
const PARTS: usize = 64;
/// Receipts of one channel in one batch: bounds the work of showing one of them.
const RECEIPTS: u64 = 4_096;

/// A batch, as its event told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchRecord {
    pub(crate) batch: U256,
    parts: Bytes,
    /// It is paid or void: the latest block when that was seen.
    #[serde(default)]
    pub(crate) ended: Option<u64>,
}

impl BatchRecord {
    pub(crate) fn of(e: &IChannels::BatchRedeemed) -> Self {
        BatchRecord { batch: e.batchId, parts: e.parts.abi_encode().into(), ended: None }
    }

    pub(crate) fn parts(&self) -> Vec<Part> {
        Vec::<Part>::abi_decode(&self.parts).unwrap_or_default()
    }
}

/// Somebody wants to see a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WantedRecord {
    pub(crate) batch: U256,
    pub(crate) channel: B256,
    pub(crate) sequence: u64,
    pub(crate) deadline: u64,
}

/// A channel that owes more than was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owing {
    pub(crate) amount: u128,
    pub(crate) closing: bool,
}

/// A pending batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) batch: U256,
    pub(crate) state: BatchState,
    /// Nothing new can come after this second.
    pub(crate) end: u64,
    /// Nobody waits for anything of it.
    pub(crate) quiet: bool,
}

/// All that a decision depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) now: u64,
    pub(crate) owing: Vec<Owing>,
    pub(crate) redeem_at: u128,
    pub(crate) batches: Vec<Pending>,
    /// Receipts that are asked for and that the node means to publish.
    pub(crate) wanted: Vec<(u64, Step)>,
    pub(crate) balance: U256,
    pub(crate) withdraw_at: Option<U256>,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Publish a receipt that was asked for.
    Publish {
        /// the batch
        batch: U256,
        /// the channel
        channel: B256,
        /// the receipt's number
        sequence: u64,
    },
    /// Claim what receipts have earned.
    Redeem,
    /// Collect a batch.
    Release(U256),
    /// Put a batch aside: nothing can follow, but for a reorganisation.
    Close(U256),
    /// Move what is owed to the account.
    Withdraw,
}

/// The steps that are due, the most urgent first.
pub(crate) fn decide(view: &View) -> Vec<Step> {
    let mut wanted: Vec<_> = view.wanted.iter().filter(|(deadline, _)| view.now <= *deadline).collect();
    wanted.sort_by_key(|(deadline, _)| *deadline);
    let mut steps: Vec<Step> = wanted.into_iter().map(|(_, step)| *step).collect();

    let earned = view.owing.iter().fold(0u128, |sum, o| sum.saturating_add(o.amount));
    let closing = view.owing.iter().any(|o| o.closing && o.amount > 0);
    if earned > 0 && (closing || earned >= view.redeem_at) {
        steps.push(Step::Redeem);
    }
    for b in &view.batches {
        match b.state {
            BatchState::Pending if b.quiet && view.now > b.end => steps.push(Step::Release(b.batch)),
            BatchState::Released | BatchState::Void => steps.push(Step::Close(b.batch)),
            // Unknown: an RPC server that is a block behind, or a reorganisation that may bring it back.
            _ => {}
        }
    }
    if view.withdraw_at.is_some_and(|least| view.balance >= least.max(U256::ONE)) {
        steps.push(Step::Withdraw);
    }
    steps
}

fn failed(e: alloy::contract::Error) -> Error {
    sworn_chain::Error::from(e).into()
}

impl Shared {
    /// Writes what events say to the journal. May see the same event again. Whether a plan depends on it.
    pub(crate) fn learn_channels(&self, event: &IChannelsEvents) -> Result<bool> {
        let Some(channels) = &self.channels else { return Ok(false) };
        let me = self.sender.account();
        match event {
            IChannelsEvents::ChannelToppedUp(e) => channels.forget_view(e.channelId),
            IChannelsEvents::ChannelClosing(e) => channels.forget_view(e.channelId),
            IChannelsEvents::ChannelClosed(e) => channels.forget_view(e.channelId),
            IChannelsEvents::BatchRedeemed(e) if e.node == me => {
                channels.ledger.put_batch(&BatchRecord::of(e))?;
                e.parts.iter().for_each(|p| channels.forget_view(p.channelId));
            }
            IChannelsEvents::ReceiptDemanded(e) if channels.ledger.batch(e.batchId)?.is_some() => {
                let (batch, channel, sequence, deadline) = (e.batchId, e.channelId, e.sequence, e.deadline.to());
                channels.ledger.put_wanted(&WantedRecord { batch, channel, sequence, deadline })?;
                let by = e.payer;
                self.sink.emit(NodeEvent::ReceiptDemanded { batch, channel, sequence, by, deadline });
            }
            _ => {}
        }
        Ok(true)
    }

    /// Takes up again what a reorganisation may have taken back, and lets go of what none will.
    pub(crate) fn reconsider_channels(&self, news: &Batch) -> Result<()> {
        let Some(channels) = &self.channels else { return Ok(()) };
        if news.replaced.is_some() {
            channels.forget_chain();
        }
        for record in channels.ledger.batches()? {
            match record.ended {
                Some(at) if news.undoes(at) => channels.ledger.put_batch(&BatchRecord { ended: None, ..record })?,
                Some(at) if news.head.buries(at) => {
                    let names = channels.ledger.forget_batch(&record)?;
                    names.into_iter().for_each(|name| self.journal.remove_trace(name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts a batch aside that is paid or void.
    pub(crate) fn close_batch(&self, batch: U256, head: Head) -> Result<()> {
        let Some(channels) = &self.channels else { return Ok(()) };
        match channels.ledger.batch(batch)? {
            Some(record) => channels.ledger.put_batch(&BatchRecord { ended: Some(head.number), ..record }),
            None => Ok(()),
        }
    }

    /// A receipt of this node that is on trial, as a job: from here on its demands are answered like a job's.
    pub(crate) fn lodged(&self, e: &ITrials::ReceiptLodged) -> Result<Option<JobRecord>> {
        let Some(channels) = self.channels.as_ref().filter(|_| e.node == self.sender.account()) else {
            return Ok(None);
        };
        let r = &e.receipt;
        let known = channels.ledger.receipt(r.channelId, r.sequence)?;
        let same = |k: &ReceiptRecord| channels.domain.digest(&k.answered.signed.receipt) == e.digest;
        let Some(record) = known.filter(same) else {
            tracing::error!(job = %e.jobId, channel = %r.channelId, sequence = r.sequence, "a receipt on trial is not in this journal");
            return Ok(None);
        };
        let Some(job) = record.job() else { return Ok(None) };
        let (job, answer) = (crate::Job { id: e.jobId, ..job }, record.answer());
        let deadline = e.deadline.to();
        self.sink.emit(NodeEvent::Lodged { job: job.id, channel: r.channelId, sequence: r.sequence, deadline });
        Ok(Some(JobRecord { job, answer: Some(AnswerRecord { ..answer }), mine: true, deadline: None, ended: None }))
    }

    /// Joins journal and chain.
    pub(crate) async fn channels_view(&self, now: u64) -> Result<View> {
        let Some(channels) = &self.channels else { return Ok(View { now, ..View::default() }) };
        let contract = self.sender.chain().channels();
        let owing = self.owing().await?;
        let pending: Vec<BatchRecord> = channels.ledger.batches()?.into_iter().filter(|b| b.ended.is_none()).collect();
        let mut batches = Vec::new();
        for record in &pending {
            let b = contract.batch(record.batch).call().await.map_err(failed)?;
            let quiet = b.unanswered.is_zero() && b.openTrials.is_zero();
            batches.push(Pending { batch: record.batch, state: b.state, end: b.lodgeEnd.to(), quiet });
        }
        let mut wanted = Vec::new();
        let is_pending = |w: &WantedRecord| pending.iter().any(|b| b.batch == w.batch);
        for w in channels.ledger.wanted()?.into_iter().filter(is_pending) {
            let demand = contract.receiptDemand(w.batch, w.channel, w.sequence).call().await.map_err(failed)?;
            let record = channels.ledger.receipt(w.channel, w.sequence)?;
            let shown = record.is_some_and(|r| self.conduct.publishes(&r.answered.signed.receipt));
            if demand.state == DemandState::Demanded && shown {
                let step = Step::Publish { batch: w.batch, channel: w.channel, sequence: w.sequence };
                wanted.push((demand.deadline.to(), step));
            }
        }
        let balance = match self.config.withdraw_at {
            Some(_) => contract.balanceOf(self.sender.account()).call().await.map_err(failed)?,
            None => U256::ZERO,
        };
        let owing = owing.iter().map(|(o, _, _)| *o).collect();
        let (redeem_at, withdraw_at) = (channels.terms.redeem_at, self.config.withdraw_at);
        Ok(View { now, owing, redeem_at, batches, wanted, balance, withdraw_at })
    }

    /// Channels with receipts that are not claimed, the most first.
    async fn owing(&self) -> Result<Vec<(Owing, BookRecord, IChannels::Channel)>> {
        let Some(channels) = &self.channels else { return Ok(Vec::new()) };
        let mut owing = Vec::new();
        for book in channels.ledger.books()? {
            let claimed = unpoisoned(&channels.claimed).get(&book.channel).copied();
            if book.sequence == 0 || claimed == Some(book.sequence) {
                continue;
            }
            let Ok(view) = channels.view_again(book.channel).await else { continue };
            let open = matches!(view.state, ChannelState::Open | ChannelState::Closing);
            if view.sequence >= book.sequence || !open {
                unpoisoned(&channels.claimed).insert(book.channel, book.sequence);
                continue;
            }
            let amount = book.cumulative.saturating_sub(view.claimed);
            owing.push((Owing { amount, closing: view.state == ChannelState::Closing }, book, view));
        }
        owing.sort_by_key(|(o, _, _)| std::cmp::Reverse((o.closing, o.amount)));
        Ok(owing)
    }

    /// Does a step.
    pub(crate) async fn perform_channel(self: &Arc<Self>, step: Step) -> Result<()> {
        let contract = self.sender.chain().deployment().channels;
        match step {
            Step::Redeem => self.redeem(contract).await,
            Step::Release(batch) => {
                let call = IChannels::releaseCall { batchId: batch };
                let receipt = self.sender.send(&Intent::call(format!("release/{batch}"), contract, &call)).await?;
                self.sink.emit(NodeEvent::Released { batch, receipt });
                Ok(())
            }
            Step::Publish { batch, channel, sequence } => self.publish(contract, batch, channel, sequence).await,
            // Done by the agent itself: it knows the latest block.
            Step::Close(_) => Ok(()),
            Step::Withdraw => {
                let me = self.sender.account();
                let amount = self.sender.chain().channels().balanceOf(me).call().await.map_err(failed)?;
                let intent = Intent::call("channels/withdraw", contract, &IChannels::withdrawCall {});
                let receipt = self.sender.again(&intent).await?;
                self.sink.emit(NodeEvent::Withdrawn { amount, receipt });
                Ok(())
            }
        }
    }

    async fn redeem(self: &Arc<Self>, contract: alloy::primitives::Address) -> Result<()> {
        let owing = self.owing().await?;
        let shared = self.clone();
        let redemptions = blocking(move || {
            let Some(channels) = &shared.channels else { return Ok(Vec::new()) };
            let mut redemptions = Vec::new();
            for (_, book, view) in owing.into_iter().take(PARTS) {
                let (first, last) = (view.sequence + 1, book.sequence.min(view.sequence.saturating_add(RECEIPTS)));
                let receipts = channels.ledger.receipts(book.channel, first, last)?;
                // Without all of them nothing can be claimed, and a gap is a defect of the journal.
                let Some(end) = receipts.last().filter(|r| r.sequence == last) else { continue };
                redemptions.push(Redemption {
                    cumulative: end.cumulative,
                    receiptsRoot: receipts_tree(&channels.domain, &receipts).root().into(),
                    voucher: (&book.voucher).into(),
                    signature: book.signature,
                    firstSequence: first,
                    lastSequence: last,
                });
            }
            Ok(redemptions)
        })
        .await?;
        if redemptions.is_empty() {
            return Ok(());
        }
        let call = IChannels::redeemCall { redemptions };
        // What it claims is in the key: a claim that was signed before and is in no block is not this one.
        let mut intent = Intent::call(String::new(), contract, &call);
        intent.key = format!("redeem/{}", alloy::primitives::keccak256(&intent.data));
        let receipt = self.sender.again(&intent).await?;
        for event in self.sender.chain().events_of(receipt.hash).await? {
            if let Event::Channels(IChannelsEvents::BatchRedeemed(e)) = event {
                let (batch, amount, receipt) = (e.batchId, e.amount.to_string(), receipt.clone());
                self.sink.emit(NodeEvent::Redeemed { batch, amount, receipt });
            }
        }
        Ok(())
    }

    async fn publish(
        self: &Arc<Self>,
        contract: alloy::primitives::Address,
        batch: U256,
        channel: B256,
        sequence: u64,
    ) -> Result<()> {
        let shared = self.clone();
        let intent = blocking(move || {
            let Some(channels) = &shared.channels else { return Ok(None) };
            let Some(place) = channels.ledger.batch(batch)?.and_then(|b| place(b.batch, &b.parts(), channel)) else {
                return Ok(None);
            };
            let Some(record) = channels.ledger.receipt(channel, sequence)? else { return Ok(None) };
            let (first, last) = (place.part.first, place.part.last);
            let Some(index) = sequence.checked_sub(first).filter(|_| sequence <= last) else { return Ok(None) };
            let receipts = channels.ledger.receipts(channel, first, last)?;
            let proof = receipts_tree(&channels.domain, &receipts).prove(index, 1);
            let signed = record.answered.signed;
            let call = IChannels::publishReceiptCall {
                place,
                receipt: (&signed.receipt).into(),
                signature: signed.signature,
                proof: proof.into_iter().map(B256::from).collect(),
            };
            let key = format!("publish/{batch}/{channel}/{sequence}");
            let wanted = channels.ledger.wanted()?;
            let wanted = wanted.iter().find(|w| (w.batch, w.channel, w.sequence) == (batch, channel, sequence));
            Ok(Some(Intent::call(key, contract, &call).by(wanted.map(|w| w.deadline))))
        })
        .await?;
        let Some(intent) = intent else { return Ok(()) };
        let receipt = self.sender.send(&intent).await?;
        self.sink.emit(NodeEvent::Published { batch, channel, sequence, receipt });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimed_when_it_is_worth_it_or_else_lost() {
        let view = |owing: &[(u128, bool)]| View {
            owing: owing.iter().map(|(amount, closing)| Owing { amount: *amount, closing: *closing }).collect(),
            redeem_at: 100,
            ..View::default()
        };
        assert_eq!(decide(&view(&[])), []);
        assert_eq!(decide(&view(&[(60, false), (39, false)])), []);
        assert_eq!(decide(&view(&[(60, false), (40, false)])), [Step::Redeem]);
        assert_eq!(decide(&view(&[(1, true), (2, false)])), [Step::Redeem]);
        assert_eq!(decide(&view(&[(0, true)])), []);
        assert_eq!(decide(&View { redeem_at: 0, ..view(&[(0, false)]) }), []);
        assert_eq!(decide(&view(&[(u128::MAX, false), (u128::MAX, false)])), [Step::Redeem]);
    }

    #[test]
    fn a_batch_from_window_to_money() {
        let id = U256::from(3);
        let batch = |state, quiet| Pending { batch: id, state, end: 50, quiet };
        let at = |now, b| decide(&View { now, batches: vec![b], ..View::default() });
        assert_eq!(at(50, batch(BatchState::Pending, true)), []);
        assert_eq!(at(51, batch(BatchState::Pending, true)), [Step::Release(id)]);
        assert_eq!(at(51, batch(BatchState::Pending, false)), []);
        assert_eq!(at(9, batch(BatchState::Released, true)), [Step::Close(id)]);
        assert_eq!(at(9, batch(BatchState::Void, false)), [Step::Close(id)]);
        assert_eq!(at(99, batch(BatchState::None, true)), []);
    }

    #[test]
    fn what_is_asked_for_comes_first_and_in_time() {
        let step = |sequence| Step::Publish { batch: U256::ONE, channel: B256::ZERO, sequence };
        let view = View {
            now: 10,
            wanted: vec![(30, step(1)), (10, step(2)), (9, step(3))],
            balance: U256::from(7),
            withdraw_at: Some(U256::from(7)),
            ..View::default()
        };
        assert_eq!(decide(&view), [step(2), step(1), Step::Withdraw]);
        assert_eq!(decide(&View { balance: U256::ZERO, withdraw_at: Some(U256::ZERO), ..View::default() }), []);
    }
}
