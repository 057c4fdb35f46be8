//! A request, from its voucher to its receipt.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use alloy::primitives::{B256, Bytes};
use sworn_bindings::{ChannelState as OnChain, IChannels};
use sworn_commit::sequence;
use sworn_isa::logprob::MOST;
use sworn_receipts::wire::{self, ChannelState, InFlight, ReceiptPage};
use sworn_receipts::{
    Answered, Ask, Code, Event, Finish, Receipt, Refusal, SignedReceipt, SignedVoucher, Tier, Voucher, sign_sync,
};
use tokio::sync::OwnedSemaphorePermit;

use super::live::{Live, Reader};
use super::record::{OpenRecord, ReceiptRecord, job_id};
use super::{Account, Channels, unavailable};
use crate::measure;
use crate::work::{DEADLY, Shared, blocking, unpoisoned};
use crate::{Error, Execution, NodeEvent, Result};

/// How long a request that gives way may take to be gone: its execution stops between two steps of the model.
const GIVING_WAY: Duration = Duration::from_secs(5);
/// How often it is written down what a client has.
const PROGRESS: Duration = Duration::from_secs(1);
/// Bytes of receipts and tokens in one page, about: a token is at most 11 characters.
const PAGE_TOKENS: usize = 400_000;

fn refuse<T>(code: Code, error: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, error))
}

impl Shared {
    /// The channels, if the node has any.
    pub(super) fn open_channels(&self) -> Result<&Channels, Refusal> {
        match &self.channels {
            Some(channels) => Ok(channels),
            None => refuse(Code::NotFound, "this node is not paid by receipts"),
        }
    }

    /// Begins an answer, joins one that is under way, or repeats one that is over.
    pub(super) async fn ask(self: &Arc<Self>, channel: B256, ask: Ask) -> Result<Reader, Refusal> {
        let told = ask.logprobs;
        Ok(self.answer_to(channel, ask).await?.telling(told))
    }

    async fn answer_to(self: &Arc<Self>, channel: B256, ask: Ask) -> Result<Reader, Refusal> {
        let channels = self.open_channels()?;
        let Some((voucher, order)) = ask.voucher(channel).map(|v| (v.clone(), v.requestHash)) else {
            return refuse(Code::BadRequest, "there are no such sampling parameters");
        };
        let mut view = channels.view(channel).await?;
        // Before anything is told of the channel: its prompts are its user's.
        channels.check_signer(view.signer, &voucher, &ask.voucher).await?;
        if let Some(reader) = channels.again(channel, ask.request, order)? {
            return Ok(reader);
        }
        if view.state != OnChain::Open {
            return refuse(Code::ChannelClosed, "the channel is closing");
        }
        self.check_sizes(&ask)?;
        channels.check_offer(&ask.offer, ask.model)?;
        if !ask.sampling.is_zero() && !channels.samples(ask.model).await? {
            return refuse(Code::BadRequest, "the model does not sample: ask for the likeliest tokens");
        }
        let Some(maximum) = ask.maximum() else {
            return refuse(Code::BadRequest, "the price does not fit 128 bits");
        };
        let account = channels.account(channel, &view)?;
        // The user may have topped up a moment ago.
        if unpoisoned(&account).book.needed(maximum) > view.deposit {
            view = channels.view_again(channel).await?;
        }
        // Only who can pay displaces others, and never its own requests: what gives way costs its client nothing.
        let pays = unpoisoned(&account).book.needed(maximum) <= ask.cumulative.min(view.deposit);
        let place = channels.place(ask.offer.offer.tier().unwrap_or_default(), pays.then_some(channel)).await?;
        let open = OpenRecord {
            channel,
            request: ask.request,
            order,
            model: ask.model,
            prompt: ask.prompt,
            max_new: ask.max_new,
            sampling: ask.sampling,
            seed: ask.seed,
            offer: ask.offer.offer,
            maximum,
            tokens: Vec::new(),
        };
        let (shared, signature) = (self.clone(), ask.voucher);
        let begun = blocking(move || Ok(shared.begin(&account, &view, open, voucher, signature, place))).await;
        begun.map_err(unavailable)?
    }
}

impl Channels {
    /// A place for a request of this tier: a reserved one in a place that is held for it, a standard one in the place of a spot request of
    /// another channel than `displacing` if need be; none: it displaces nobody.
    async fn place(&self, tier: Tier, displacing: Option<B256>) -> Result<OwnedSemaphorePermit, Refusal> {
        let busy =
            || Refusal::new(Code::Busy, "this node answers as many requests as it can: try again or take another");
        let held = || self.reserved.clone().try_acquire_owned().ok().filter(|_| tier == Tier::Reserved);
        if let Some(place) = held().or_else(|| self.places.clone().try_acquire_owned().ok()) {
            return Ok(place);
        }
        let Some(own) = displacing.filter(|_| tier != Tier::Spot) else { return Err(busy()) };
        // The one that has least, so that little is given away.
        let least = {
            let lives = unpoisoned(&self.lives);
            let others = lives.iter().filter(|((channel, _), _)| *channel != own).map(|(_, live)| live);
            others.filter_map(|l| Some((l.stake()?, l.clone()))).min_by_key(|(tokens, _)| *tokens)
        };
        let Some((tokens, live)) = least else { return Err(busy()) };
        live.preempt();
        tracing::info!(tokens, "a spot request gives way");
        let place = tokio::time::timeout(GIVING_WAY, self.places.clone().acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or_else(busy)
    }
}

impl Shared {
    /// What can be seen to be wrong without the chain.
    fn check_sizes(&self, ask: &Ask) -> Result<(), Refusal> {
        let Some(manifest) = self.prover.manifest(ask.model) else {
            return refuse(Code::NoModel, "this node does not have the model");
        };
        if ask.prompt.is_empty() || ask.max_new == 0 {
            return refuse(
                Code::BadRequest,
                "a request has at least one prompt token and asks for at least one new token",
            );
        }
        if let Some(token) = ask.prompt.iter().find(|t| **t >= manifest.vocab) {
            return refuse(Code::BadRequest, format!("the model has no token {token}"));
        }
        if ask.logprobs.is_some_and(|n| u32::from(n) > MOST) {
            return refuse(Code::BadRequest, format!("log-probabilities are of the {MOST} likeliest tokens at most"));
        }
        if ask.logprobs.is_some() && !self.prover.tells_log_probs(ask.model) {
            return refuse(Code::BadRequest, "the model does not commit to log-probabilities: ask without them");
        }
        let all = ask.prompt.len() as u64 + u64::from(ask.max_new);
        if all > u64::from(ask.offer.offer.maxTokens) || all - 1 > u64::from(manifest.max_positions) {
            let (offered, positions) = (ask.offer.offer.maxTokens, manifest.max_positions);
            let told =
                format!("{all} tokens are too many: the offer is up to {offered}, the model has {positions} positions");
            return refuse(Code::TooLong, told);
        }
        Ok(())
    }

    /// Admits a request, writes it down and starts it. Blocks for the disk.
    fn begin(
        self: &Arc<Self>,
        account: &std::sync::Mutex<Account>,
        view: &IChannels::Channel,
        open: OpenRecord,
        voucher: Voucher,
        signature: Bytes,
        place: OwnedSemaphorePermit,
    ) -> Result<Reader, Refusal> {
        let channels = self.open_channels()?;
        let (channel, request) = (open.channel, open.request);
        let live = {
            let mut account = unpoisoned(account);
            // The same request may have come twice at the same time.
            if let Some(reader) = channels.again(channel, request, open.order)? {
                return Ok(reader);
            }
            if account.book.flights().count() >= channels.terms.per_channel {
                return refuse(Code::Busy, "this channel has as many requests under way as it may: try again");
            }
            let ceiling = voucher.cumulative;
            if let Err(needed) = account.book.admit(request, open.maximum, ceiling, view.deposit) {
                let last = channels.ledger.receipt(channel, account.book.sequence).map_err(unavailable)?;
                let (voucher, signature) = (account.voucher.clone(), account.signature.clone());
                return Err(Refusal {
                    needed: Some(needed.0),
                    deposit: Some(view.deposit),
                    price: Some(open.maximum),
                    covered_by: last.is_some().then(|| Box::new(SignedVoucher { voucher, signature })),
                    last_receipt: last.map(|r| r.answered.signed),
                    ..Refusal::new(Code::Payment, format!("the request needs a voucher and a channel of {}", needed.0))
                });
            }
            let better = ceiling > account.voucher.cumulative || account.signature.is_empty();
            let before = (account.voucher.clone(), account.signature.clone());
            if better {
                (account.voucher, account.signature) = (voucher, signature);
            }
            if let Err(error) = channels.ledger.begin(&open, &account.record(channel)) {
                account.book.release(request);
                (account.voucher, account.signature) = before;
                return Err(unavailable(error));
            }
            let live = Live::new(open.order, open.offer.tier() == Some(Tier::Spot));
            unpoisoned(&channels.lives).insert((channel, request), live.clone());
            live
        };
        let reader = live.read();
        self.start(open, live, Some(place));
        Ok(reader)
    }

    fn start(self: &Arc<Self>, open: OpenRecord, live: Arc<Live>, place: Option<OwnedSemaphorePermit>) {
        let shared = self.clone();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let Some(channels) = &shared.channels else { return };
            let key = (open.channel, open.request);
            match shared.answer_request(channels, open.clone(), &live) {
                Ok(last) => live.finish(last),
                Err(error) => {
                    let wanted = !live.cancel.load(Ordering::Relaxed);
                    if wanted {
                        let action = format!("answering request {} of channel {}", open.request, open.channel);
                        shared.sink.emit(NodeEvent::Failed { action, error: error.to_string() });
                    }
                    if let Err(error) = channels.abandon(&open) {
                        tracing::warn!(%error, "journal");
                    }
                    live.fail(match live.is_preempted() {
                        true => Refusal::new(
                            Code::Preempted,
                            "a request at the full price took this one's place; nothing is owed",
                        ),
                        false => Refusal::new(Code::Failed, "the node could not answer; nothing is owed"),
                    });
                }
            }
            unpoisoned(&channels.lives).remove(&key);
        });
    }

    /// Takes up what a former process left: what a client has of an answer is paid, what nobody has is forgotten, and what ended the
    /// process again and again.
    pub(crate) fn resume_requests(self: &Arc<Self>) -> Result<()> {
        let Some(channels) = &self.channels else { return Ok(()) };
        for open in channels.ledger.open_requests()? {
            let id = job_id(open.channel, open.request);
            if open.tokens.is_empty() || self.journal.deaths(id) >= DEADLY {
                channels.ledger.abandon(&open)?;
                self.journal.end(id);
                continue;
            }
            let Some(record) = channels.ledger.book(open.channel)? else { continue };
            let account = unpoisoned(&channels.accounts)
                .entry(open.channel)
                .or_insert_with(|| Arc::new(std::sync::Mutex::new(Account::of(record))))
                .clone();
            unpoisoned(&account).book.resume(open.request, open.maximum);
            // What a client has of it is signed for, so that it gives way no more.
            let live = Live::from(open.order, false, open.tokens.clone());
            unpoisoned(&channels.lives).insert((open.channel, open.request), live.clone());
            self.start(open, live, None);
        }
        Ok(())
    }

    /// Computes an answer, or what a former process left of one, and signs for it. Blocks.
    fn answer_request(&self, channels: &Channels, mut open: OpenRecord, live: &Live) -> Result<Event> {
        let job = open.job().ok_or_else(|| Error::Prover("sampling parameters outside their ranges".into()))?;
        let began = Instant::now();
        let mut done = if open.tokens.is_empty() {
            let mut written = Instant::now();
            let mut first = true;
            let ledger = &channels.ledger;
            self.prover.stream(&job, &live.cancel, &mut |token, row| {
                if std::mem::take(&mut first) {
                    measure::first_token(began.elapsed());
                }
                let flow = live.push(token, row);
                if written.elapsed() >= PROGRESS {
                    open.tokens = live.taken();
                    // Not being able to write it down is no reason to stop; the receipt will be the test.
                    if let Err(error) = ledger.progress(&open) {
                        tracing::warn!(%error, "journal");
                    }
                    written = Instant::now();
                }
                flow
            })?
        } else {
            self.journal.begin(job.id)?;
            let trace = self.prover.leaves(&job, &open.tokens);
            self.journal.end(job.id);
            let trace = trace?;
            // A receipt says nothing of log-probabilities.
            Execution { tokens: open.tokens.clone(), trace, log_probs: Vec::new() }
        };
        if live.is_preempted() {
            return Err(Error::Prover("a spot request gave way".into()));
        }
        done.cut(open.prompt.len(), live.wanted() as usize);
        let receipt = self.sign(channels, &open, &done)?;
        // Kept for whoever wants to check it; it can be computed again.
        if let Err(error) = self.journal.put_trace(job.id, &done.trace) {
            tracing::warn!(%error, "the trace is not kept");
        }
        measure::answer(began.elapsed());
        let Answered { signed, finish, .. } = receipt.answered;
        let r = &signed.receipt;
        self.sink.emit(NodeEvent::Receipt {
            channel: r.channelId,
            sequence: r.sequence,
            tokens: r.nOut,
            price: r.price.to_string(),
            cumulative: r.cumulative.to_string(),
        });
        Ok(Event::Receipt { signed, finish })
    }

    /// Signs a receipt. It is on disk before anybody sees it, and there is one for a request at most.
    fn sign(&self, channels: &Channels, open: &OpenRecord, done: &Execution) -> Result<ReceiptRecord> {
        let manifest = self.prover.manifest(open.model);
        let (n_in, n_out) = (open.prompt.len() as u32, done.tokens.len() as u32);
        let stopped = manifest.zip(done.tokens.last()).is_some_and(|(m, last)| m.stop_tokens.contains(last));
        let finish = match stopped {
            true => Finish::Stop,
            false if n_out == open.max_new => Finish::Length,
            false => Finish::Ended,
        };
        let unpayable =
            || Error::Prover("the price is not what was admitted: this is a defect, please report it".into());
        let price = open.offer.price(n_in, n_out).ok_or_else(unpayable)?;
        let account = unpoisoned(&channels.accounts).get(&open.channel).cloned().ok_or_else(unpayable)?;
        let mut account = unpoisoned(&account);
        let (sequence, cumulative) = account.book.next(open.request, price).ok_or_else(unpayable)?;
        let receipt = self.conduct.receipt(Receipt {
            channelId: open.channel,
            sequence,
            request: open.request,
            modelId: open.model,
            inputHash: sequence::hash(&open.prompt).into(),
            outputHash: sequence::hash(&done.tokens).into(),
            nIn: n_in,
            nOut: n_out,
            maxNew: open.max_new,
            sampling: open.sampling,
            seed: open.seed,
            layersRoot: done.trace.layers_root().into(),
            price,
            cumulative,
        });
        let signature =
            sign_sync(&channels.terms.signer, &channels.domain, &receipt).map_err(|e| Error::Prover(e.to_string()))?;
        let signed = SignedReceipt { receipt, signature: signature.into() };
        let answered = Answered { signed, finish, prompt: open.prompt.clone(), output: done.tokens.clone() };
        let record = ReceiptRecord { answered, order: open.order };
        let mut book = account.record(open.channel);
        (book.sequence, book.cumulative) = (sequence, cumulative);
        channels.ledger.settle(&record, &book)?;
        account.book.settle(open.request, sequence, cumulative);
        channels.earned.store(true, Ordering::Relaxed);
        Ok(record)
    }
}

impl Account {
    pub(super) fn of(r: super::record::BookRecord) -> Self {
        Account { book: super::Book::new(r.sequence, r.cumulative), voucher: r.voucher, signature: r.signature }
    }
}

impl Channels {
    /// A reader of a request that was begun before; none: it is new.
    fn again(&self, channel: B256, request: u64, order: B256) -> Result<Option<Reader>, Refusal> {
        let used = || Refusal::new(Code::RequestUsed, "the number of this request was used for another one");
        // An answer that ends between the two looks is found by the second.
        let live = unpoisoned(&self.lives).get(&(channel, request)).cloned();
        if let Some(live) = live {
            return if live.order == order { Ok(Some(live.read())) } else { Err(used()) };
        }
        let Some(record) = self.ledger.receipt_of(channel, request).map_err(unavailable)? else { return Ok(None) };
        if record.order != order {
            return Err(used());
        }
        let Answered { signed, finish, output, .. } = record.answered;
        let live = Live::from(order, false, output);
        live.finish(Event::Receipt { signed, finish });
        Ok(Some(live.read()))
    }

    /// Ends a request that nothing is owed for.
    fn abandon(&self, open: &OpenRecord) -> Result<()> {
        self.ledger.abandon(open)?;
        if let Some(account) = unpoisoned(&self.accounts).get(&open.channel) {
            unpoisoned(account).book.release(open.request);
        }
        Ok(())
    }

    /// "Enough" for a request under way; one that is over stays as it is.
    pub(super) fn end(&self, channel: B256, request: u64, tokens: u32) -> Result<(), Refusal> {
        if let Some(live) = unpoisoned(&self.lives).get(&(channel, request)) {
            live.end(tokens);
            return Ok(());
        }
        self.answered(channel, request).map(drop)
    }

    /// The receipt of a request.
    pub(super) fn answered(&self, channel: B256, request: u64) -> Result<ReceiptRecord, Refusal> {
        let record = self.ledger.receipt_of(channel, request).map_err(unavailable)?;
        record.ok_or_else(|| Refusal::new(Code::NotFound, format!("request {request} has no receipt")))
    }

    /// The receipt with a number.
    pub(super) fn receipt(&self, channel: B256, sequence: u64) -> Result<ReceiptRecord, Refusal> {
        let record = self.ledger.receipt(channel, sequence).map_err(unavailable)?;
        record.ok_or_else(|| Refusal::new(Code::NotFound, format!("the channel has no receipt {sequence}")))
    }

    /// Receipts `from` to `to`, as many as fit a page.
    pub(super) fn page(&self, channel: B256, from: u64, to: u64) -> Result<ReceiptPage, Refusal> {
        let (mut page, mut tokens) = (ReceiptPage::default(), 0);
        for sequence in from.max(1)..=to {
            if page.receipts.len() as u64 >= wire::PAGE || tokens >= PAGE_TOKENS {
                page.next = Some(sequence);
                break;
            }
            let Some(record) = self.ledger.receipt(channel, sequence).map_err(unavailable)? else { break };
            tokens += record.answered.prompt.len() + record.answered.output.len();
            page.receipts.push(record.answered);
        }
        Ok(page)
    }

    /// How a channel stands.
    pub(super) async fn state(&self, channel: B256) -> Result<ChannelState, Refusal> {
        let view = self.view(channel).await?;
        let account = self.account(channel, &view)?;
        let account = unpoisoned(&account);
        let (sequence, cumulative) = (account.book.sequence, account.book.cumulative);
        let last = self.ledger.receipt(channel, sequence).map_err(unavailable)?;
        Ok(ChannelState {
            sequence,
            cumulative,
            deposit: view.deposit,
            in_flight: account.book.flights().map(|(request, maximum)| InFlight { request, maximum }).collect(),
            last_receipt: last.map(|r| r.answered.signed),
        })
    }
}
