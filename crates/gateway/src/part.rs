//! One node's part of an answer: the request, its tokens, its receipt, and what is done when one of them is not as it should be.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::gauge;
use sworn_bindings::sampling_word;
use sworn_receipts::{
    Ask, Code, Error, Event as NodeEvent, Finish as NodeFinish, Mismatch, Receipt, Refusal, SignedReceipt,
    SignedVoucher,
};
use tokio::time::{Instant as Deadline, sleep, timeout};

use crate::error::ApiError;
use crate::file::ReceiptFile;
use crate::ledger::{Begun, LedgerError};
use crate::measure;
use crate::router::{Candidate, RECEIPTS, Router};
use crate::served::Served;
use crate::upstream::{Asked, Event, Finish, Logprobs, Question, Token};

/// Times that a refusal which can be mended is mended. Requests of one channel overtake each other on their way, and one that was overtaken
/// has a voucher too low for the other.
const MENDS: usize = 8;
/// How long a receipt may take once the answer was told to end.
const ENDING: Duration = Duration::from_secs(30);
/// How long, and how often, a node whose stream broke is asked for the receipt before another continues.
const RECOVERY: Duration = Duration::from_millis(1500);
const RECOVERIES: u32 = 4;
/// How long a node is left alone that had no place for a spot request.
const GAVE_WAY: Duration = Duration::from_secs(1);

/// A part that is to be given.
pub(crate) struct Part<'a> {
    pub(crate) router: &'a Arc<Router>,
    pub(crate) question: &'a Question,
    pub(crate) candidate: Candidate,
}

/// A part that is over.
pub(crate) struct Ended {
    pub(crate) served: Option<Served>,
    pub(crate) stop: Stop,
}

/// Why a part is over.
pub(crate) enum Stop {
    /// The answer is whole.
    Finished(Finish),
    /// Nobody reads any more.
    Left,
    /// Somebody else may continue.
    Failed(ApiError),
}

impl Stop {
    /// Its name among what is measured.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Stop::Finished(_) => "finished",
            Stop::Left => "left",
            Stop::Failed(e) => e.code,
        }
    }
}

/// What a part has so far.
struct Progress {
    ask: Ask,
    output: Vec<u32>,
    /// After how many tokens the node was told to end.
    ending: Option<u32>,
    left: bool,
    began: Instant,
    first: Option<Instant>,
}

impl Part<'_> {
    /// Asks, and passes on what comes. `given` are the answer's tokens so far, and gets those of this part.
    pub(crate) async fn give(mut self, given: &mut Vec<u32>, asked: &mut Asked) -> Ended {
        let start = given.len() as u32;
        let prompt = [&self.question.prompt, &given[..]].concat();
        let began = Instant::now();
        let (ask, stream) = match self.open(prompt, self.question.max_new - start).await {
            Ok(open) => open,
            Err(e) => return Ended { served: None, stop: Stop::Failed(e) },
        };
        let request = ask.request;
        let mut progress = Progress { ask, output: Vec::new(), ending: None, left: false, began, first: None };
        let ended = self.read(stream, &mut progress, start, given, asked).await;
        self.router.rest(self.candidate.peer.id, request);
        match ended {
            Ended { served, .. } if progress.left => Ended { served, stop: Stop::Left },
            ended => ended,
        }
    }

    /// Gets a stream, mending what can be mended.
    async fn open(&mut self, prompt: Vec<u32>, max_new: u32) -> Result<(Ask, sworn_receipts::Answer), ApiError> {
        let mut last = None;
        for _ in 0..MENDS {
            let ask = self.begin(&prompt, max_new).await?;
            let (peer, request) = (self.candidate.peer.clone(), ask.request);
            match peer.client.ask(peer.id, &ask).await {
                Ok(stream) => return Ok((ask, stream)),
                Err(e) => {
                    let mended = self.mend(&ask, e).await;
                    self.router.rest(peer.id, request);
                    match mended {
                        ControlFlow::Continue(e) => last = Some(e),
                        ControlFlow::Break(e) => return Err(e),
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| ApiError::upstream("node_refused", "the node refuses")))
    }

    /// Enters the request in the ledger and signs its voucher.
    async fn begin(&self, prompt: &[u32], max_new: u32) -> Result<Ask, ApiError> {
        let q = self.question;
        let Candidate { peer, offer, maximum } = &self.candidate;
        let mut ask = Ask {
            request: 0,
            model: q.model,
            prompt: prompt.to_vec(),
            max_new,
            sampling: sampling_word(&q.sampling),
            seed: q.seed,
            cumulative: 0,
            voucher: Default::default(),
            offer: offer.clone(),
            logprobs: q.logprobs,
        };
        let (router, channel, deposit, maximum) = (self.router.clone(), peer.id, peer.deposit(), *maximum);
        let begun = tokio::task::spawn_blocking(move || {
            let numbered = router.ledger.begin(channel, deposit, maximum, |Begun { request, cumulative }| {
                (ask.request, ask.cumulative) = (request, cumulative);
                ask
            });
            let mut ask = numbered?;
            router.work(channel, ask.request);
            if let Some(voucher) = ask.voucher(channel)
                && let Ok(signature) = sworn_receipts::sign_sync(&router.key, &router.domain, &voucher)
            {
                ask.voucher = signature.into();
            }
            Ok::<_, LedgerError>(ask)
        });
        match begun.await.map_err(|e| ApiError::internal(&e))? {
            Ok(ask) if ask.voucher.is_empty() => Err(ApiError::internal(&"the voucher could not be signed")),
            Ok(ask) => Ok(ask),
            Err(e @ LedgerError::Short { .. }) => {
                self.router.short.notify_one();
                Err(ApiError::payment("insufficient_channel", e.to_string(), Vec::new()))
            }
            Err(e) => Err(ApiError::internal(&e)),
        }
    }

    /// What to do about a refusal: go on (the same node may take it now), or give up on this node.
    async fn mend(&mut self, ask: &Ask, e: Error) -> ControlFlow<ApiError, ApiError> {
        let peer = self.candidate.peer.clone();
        let Error::Refused { status, retry_after, refusal } = e else {
            // It may have arrived: the request stays open until the node can be asked.
            peer.failed(None);
            return ControlFlow::Break(ApiError::upstream("node_unreachable", e.to_string()));
        };
        let text = format!("node {} refuses: {}", peer.node, shown(&refusal.error));
        let again = || ApiError::upstream("node_refused", text.clone());
        if matches!(refusal.code, Code::Failed | Code::Unknown) && status != 503 && status != 429 {
            peer.failed(None);
            return ControlFlow::Break(ApiError::upstream("node_failed", text));
        }
        // Refused before it was taken: it costs nothing.
        if let Err(e) = self.router.ledger.forget(peer.id, ask.request) {
            return ControlFlow::Break(ApiError::internal(&e));
        }
        match refusal.code {
            Code::Payment => {
                // Overtaken: a voucher of now covers what the node asks for.
                let now = self.router.ledger.covers(peer.id, peer.deposit(), self.candidate.maximum);
                let enough =
                    now.is_ok_and(|now| refusal.needed.is_some_and(|needed| ask.cumulative < needed && needed <= now));
                if enough {
                    return ControlFlow::Continue(again());
                }
                // The node has something that this gateway does not know of.
                let adopted = self.router.covered(&peer, &refusal).is_some_and(|(last, covered)| {
                    let before = self.router.ledger.standing(peer.id);
                    let adopted = self.router.ledger.adopt(peer.id, last, covered);
                    adopted.is_ok() && self.router.ledger.standing(peer.id) != before
                });
                if adopted {
                    tracing::warn!(node = %peer.node, channel = %peer.id, "resynchronised with the node's last receipt");
                    return ControlFlow::Continue(again());
                }
                peer.failed(None);
                ControlFlow::Break(ApiError::payment("payment_refused", text, Vec::new()))
            }
            Code::OfferExpired | Code::WrongOffer => match self.fresh_offer(ask).await {
                Some(()) => ControlFlow::Continue(again()),
                None => ControlFlow::Break(ApiError::unavailable("no_offer", text, 5)),
            },
            Code::RequestUsed => ControlFlow::Continue(again()),
            Code::Busy | Code::Unavailable => {
                let seconds = retry_after.unwrap_or(1);
                peer.failed(Some(Duration::from_secs(seconds)));
                ControlFlow::Break(ApiError::busy("nodes_busy", text, seconds.max(1)))
            }
            Code::ChannelClosed | Code::NoChannel | Code::WrongSigner => {
                peer.shut(shown(&refusal.error));
                ControlFlow::Break(ApiError::payment("channel_refused", text, Vec::new()))
            }
            Code::NoModel => {
                peer.forget_offer(ask.model);
                ControlFlow::Break(ApiError::unavailable("no_offer", text, 5))
            }
            _ => {
                peer.failed(None);
                ControlFlow::Break(again())
            }
        }
    }

    /// Takes a new offer, if it is still within the operator's limit.
    async fn fresh_offer(&mut self, ask: &Ask) -> Option<()> {
        let peer = self.candidate.peer.clone();
        peer.forget_offer(ask.model);
        peer.refresh(&self.router.domain).await.ok()?;
        let offer = peer.offer(ask.model, self.question.tier)?;
        let maximum = offer.offer.price(ask.prompt.len() as u32, ask.max_new)?;
        let fits = self.router.config.max_price.is_none_or(|most| maximum <= most);
        (self.candidate.offer, self.candidate.maximum) = (offer, maximum);
        fits.then_some(())
    }

    /// Passes tokens on until the receipt.
    async fn read(
        &self,
        mut stream: sworn_receipts::Answer,
        p: &mut Progress,
        start: u32,
        given: &mut Vec<u32>,
        asked: &mut Asked,
    ) -> Ended {
        let mut until = None;
        loop {
            let patience = until.unwrap_or_else(|| Deadline::now() + Duration::from_secs(3600));
            tokio::select! {
                changed = asked.end.changed(), if p.ending.is_none() => {
                    p.left = changed.is_err();
                    let wanted = asked.end.borrow().map(|n| n.saturating_sub(start));
                    self.end(p, wanted.unwrap_or(p.output.len() as u32).max(1));
                    until = Some(Deadline::now() + ENDING);
                }
                event = stream.next() => match event {
                    Ok(Some(NodeEvent::Token { token, logprobs, .. })) => {
                        self.take(token, logprobs, p, given, asked).await;
                    }
                    Ok(Some(NodeEvent::Receipt { signed, finish })) => return self.settle(p, signed, finish).await,
                    Ok(Some(NodeEvent::Error(refusal))) => {
                        let peer = &self.candidate.peer;
                        let preempted = refusal.code == Code::Preempted;
                        peer.failed(preempted.then_some(GAVE_WAY));
                        // Nothing is owed for an answer without a receipt; the node has said that none will come.
                        if let Err(e) = self.router.ledger.forget(peer.id, p.ask.request) {
                            return failed(ApiError::internal(&e));
                        }
                        let text = format!("node {} failed: {}", peer.node, shown(&refusal.error));
                        return failed(ApiError::upstream(if preempted { "preempted" } else { "node_failed" }, text));
                    }
                    Ok(None) => return self.recover(p, given, asked, "the stream ended").await,
                    Err(e) => return self.recover(p, given, asked, &e.to_string()).await,
                },
                () = tokio::time::sleep_until(patience), if until.is_some() => {
                    return self.recover(p, given, asked, "no receipt in time").await;
                }
            }
        }
    }

    async fn take(
        &self,
        token: u32,
        logprobs: Option<sworn_receipts::Logprobs>,
        p: &mut Progress,
        given: &mut Vec<u32>,
        asked: &mut Asked,
    ) {
        if p.first.is_none() {
            p.first = Some(Instant::now());
            self.candidate.peer.conduct().first_token(p.began.elapsed());
        }
        p.output.push(token);
        if p.ending.is_none() {
            given.push(token);
            let top = |l: sworn_receipts::Logprobs| l.top.into_iter().map(|t| (t.token, t.logprob)).collect();
            let logprobs = logprobs.map(|l| Logprobs { chosen: l.logprob, top: top(l) });
            // Nobody reads: the other arm hears of it.
            let _ = asked.events.send(Event::Token(Token { token, logprobs })).await;
        }
    }

    /// Tells the node that the answer is to have so many tokens.
    fn end(&self, p: &mut Progress, tokens: u32) {
        p.ending = Some(tokens);
        let (peer, request) = (self.candidate.peer.clone(), p.ask.request);
        tokio::spawn(async move {
            if let Err(error) = peer.client.end(peer.id, request, tokens).await {
                tracing::debug!(node = %peer.node, request, %error, "the node was not told to end");
            }
        });
    }

    /// The stream broke. The node may have a receipt for what it gave.
    async fn recover(&self, p: &mut Progress, given: &mut Vec<u32>, asked: &mut Asked, why: &str) -> Ended {
        let peer = self.candidate.peer.clone();
        peer.failed(None);
        for round in 0..RECOVERIES {
            match timeout(RECOVERY, peer.client.answered(peer.id, p.ask.request)).await {
                Ok(Ok(answered)) => {
                    // What the node signed for goes beyond what arrived, or is all of it.
                    if !answered.output.starts_with(&p.output) {
                        return self.refuse(
                            p,
                            &answered.signed,
                            &answered.output,
                            "output is not what the stream gave",
                        );
                    }
                    for token in answered.output.into_iter().skip(p.output.len()) {
                        self.take(token, None, p, given, asked).await;
                    }
                    return self.settle(p, answered.signed, answered.finish).await;
                }
                // It is alive, and may be signing.
                Ok(Err(Error::Refused { .. })) => sleep(Duration::from_millis(100 << round)).await,
                _ => break,
            }
        }
        // The request stays open: the receipt may still come.
        failed(ApiError::upstream(
            "node_lost",
            format!("node {} was lost in the middle of an answer: {why}", peer.node),
        ))
    }

    /// Checks the receipt and enters it.
    async fn settle(&self, p: &mut Progress, signed: SignedReceipt, finish: NodeFinish) -> Ended {
        let peer = self.candidate.peer.clone();
        let ended = finish == NodeFinish::Ended;
        let wanted = p.ending.filter(|_| ended).map_or(p.output.len(), |n| n as usize);
        let output = &p.output[..wanted.min(p.output.len())];
        let served = match self.router.enter(&peer, &p.ask, output, signed.clone()).await {
            Ok(served) => served,
            Err(Refused::Fault(fault)) => return self.refuse(p, &signed, output, &fault),
            Err(Refused::Stranger(why)) => {
                peer.shut(why.clone());
                return failed(ApiError::upstream("receipt_refused", why));
            }
            Err(Refused::Failed(e)) => return failed(e),
        };
        let since = p.first.map_or(Duration::ZERO, |f| f.elapsed());
        peer.conduct().succeeded(output.len() as u32, since);
        let stop = if output.last().is_some_and(|t| self.question.stop.contains(t)) {
            Stop::Finished(Finish::Stop)
        } else if output.len() as u32 >= p.ask.max_new {
            Stop::Finished(Finish::Length)
        } else if p.ending.is_some() {
            Stop::Finished(Finish::Stop)
        } else {
            // Paid for, and too short: somebody else continues.
            peer.failed(None);
            Stop::Failed(ApiError::upstream("ended_early", format!("node {} ended its answer early", peer.node)))
        };
        Ended { served: Some(served), stop }
    }

    /// The receipt is false.
    fn refuse(&self, p: &Progress, signed: &SignedReceipt, output: &[u32], fault: &str) -> Ended {
        let node = self.candidate.peer.node;
        let mut file = ReceiptFile::new(self.router.domain, node, signed.clone(), &p.ask.prompt, output);
        file.fault = Some(fault.to_owned());
        self.router.convict(file);
        failed(ApiError::upstream("receipt_refused", format!("node {node} signed a false receipt: {fault}")))
    }
}

/// Why a receipt is not entered.
pub(crate) enum Refused {
    /// It is the node's, and false.
    Fault(String),
    /// It is not the node's.
    Stranger(String),
    /// The gateway failed.
    Failed(ApiError),
}

impl Router {
    /// The last receipt that a refusal shows, if the node has signed it, and what this gateway's own key has promised of the channel. A
    /// total that no voucher covers is not believed: whoever adds to it would be promised the difference.
    fn covered<'r>(&self, peer: &crate::peer::Peer, refusal: &'r Refusal) -> Option<(&'r Receipt, u128)> {
        let SignedReceipt { receipt, signature } = refusal.last_receipt.as_ref()?;
        let by_node = sworn_receipts::recover(&self.domain, receipt, signature).is_ok_and(|s| peer.is_node(s));
        let SignedVoucher { voucher, signature } = refusal.covered_by.as_deref()?;
        let by_us = sworn_receipts::recover(&self.domain, voucher, signature).is_ok_and(|s| s == self.key.address());
        let here = receipt.channelId == peer.id && voucher.channelId == peer.id;
        (by_node && by_us && here).then_some((receipt, voucher.cumulative.min(peer.deposit())))
    }

    /// Checks a receipt against its request and output, enters it and keeps it as a file.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        peer: &Arc<crate::peer::Peer>,
        ask: &Ask,
        output: &[u32],
        signed: SignedReceipt,
    ) -> Result<Served, Refused> {
        let domain = self.domain;
        match sworn_receipts::check_answer(&domain, peer.id, ask, output, &signed, |s| peer.is_node(s)) {
            Ok(()) => {}
            Err(e @ (Mismatch::Signature | Mismatch::Signer { .. })) => return Err(Refused::Stranger(e.to_string())),
            Err(e) => return Err(Refused::Fault(e.to_string())),
        }
        let Some(trace_root) = signed.receipt.trace_root() else {
            return Err(Refused::Fault("the receipt is for no token".into()));
        };
        let file = ReceiptFile::new(domain, peer.node, signed, &ask.prompt, output);
        let (router, channel, kept) = (self.clone(), peer.id, file.clone());
        let entered = tokio::task::spawn_blocking(move || {
            router.ledger.settle(channel, &kept.signed, (RECEIPTS, &kept.digest.to_string(), &kept))
        });
        match entered.await.map_err(|e| Refused::Failed(ApiError::internal(&e)))? {
            Ok(()) => {}
            Err(e @ LedgerError::Contradiction { .. }) => return Err(Refused::Fault(e.to_string())),
            Err(e) => return Err(Refused::Failed(ApiError::internal(&e))),
        }
        let r = &file.signed.receipt;
        gauge!(measure::PAID, "node" => peer.node.to_string()).increment(r.price as f64);
        Ok(Served {
            node: peer.node,
            channel: peer.id,
            price: r.price,
            tier: ask.offer.offer.tier().unwrap_or_default(),
            digest: file.digest,
            receipt: serde_json::to_value(r).map_err(|e| Refused::Failed(ApiError::internal(&e)))?,
            signature: file.signed.signature.clone(),
            trace_root: trace_root.into(),
            n_in: r.nIn,
            n_out: r.nOut,
        })
    }
}

fn failed(e: ApiError) -> Ended {
    Ended { served: None, stop: Stop::Failed(e) }
}

/// A node's words, short and plain.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
