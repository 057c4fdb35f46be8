//! Chooses nodes, and asks the next when one fails.
//!
//! An answer is made of parts, one per node that gave some of it. The noise of sampling depends on position and seed alone, so another
//! node that continues the prompt and the tokens so far gives exactly the tokens that the first would have given.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use metrics::counter;
use serde_json::json;
use sworn_chain::{Store, Table};
use sworn_receipts::{ClientOptions, Domain, NodeInfo, SignedOffer, Tier};
use tokio::sync::Notify;

use crate::error::{ApiError, PaymentOption, digits};
use crate::file::ReceiptFile;
use crate::ledger::{Ledger, LedgerError};
use crate::measure;
use crate::part::{Part, Stop, shown};
use crate::peer::{ChannelInfo, Peer, unpoisoned};
use crate::upstream::{Answer, Asked, Event, Finish, Later, Question, Upstream};

pub(crate) const RECEIPTS: Table = "gateway/receipts";
pub(crate) const EVIDENCE: Table = "gateway/evidence";
/// Events that may wait for the reader.
const AHEAD: usize = 64;
/// Parts of an answer, at most: whoever fails so often will fail again.
const PARTS: usize = 6;
/// How often nodes are asked for their offers.
const PROBE: Duration = Duration::from_secs(5);

/// What an operator decides about nodes and money.
#[derive(Clone, Debug, Default)]
pub struct RouterConfig {
    /// The most that one request may cost; none: whatever is asked.
    pub max_price: Option<u128>,
    /// Only these nodes, if there are any.
    pub allow: Vec<Address>,
    /// Never these.
    pub deny: Vec<Address>,
    /// CAIP-2 name of the chain, for refusals.
    pub network: String,
    /// The payment token, for refusals.
    pub asset: Address,
    /// How patient the client of nodes is.
    pub patience: ClientOptions,
}

/// Answers from nodes, paid from channels.
pub struct Router {
    pub(crate) domain: Domain,
    pub(crate) config: RouterConfig,
    pub(crate) key: PrivateKeySigner,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) store: Store,
    peers: RwLock<Vec<Arc<Peer>>>,
    /// Nodes that signed something false, and what.
    banned: Mutex<HashMap<Address, String>>,
    /// Requests whose receipts are awaited where they were asked.
    pub(crate) active: Mutex<HashSet<(B256, u64)>>,
    /// Where a channel is short of money: for whoever can add some.
    pub(crate) short: Notify,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("domain", &self.domain)
            .field("signer", &self.key.address())
            .finish_non_exhaustive()
    }
}

/// A channel in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purse {
    /// The channel.
    pub channel: B256,
    /// What it owes, and what open requests may add.
    pub spent: u128,
    /// Whether its node can be asked now.
    pub usable: bool,
}

/// A node that could answer now.
pub(crate) struct Candidate {
    pub(crate) peer: Arc<Peer>,
    pub(crate) offer: SignedOffer,
    pub(crate) maximum: u128,
}

impl Router {
    /// With a key that signs vouchers; accounts, receipts and evidence are kept in `store`.
    ///
    /// # Errors
    /// The disk fails.
    pub fn new(
        domain: Domain,
        config: RouterConfig,
        key: PrivateKeySigner,
        store: Store,
    ) -> Result<Arc<Self>, LedgerError> {
        let banned = store.all::<ReceiptFile>(EVIDENCE)?;
        let banned = banned.into_iter().map(|(_, f)| (f.node, f.fault.unwrap_or_default())).collect();
        Ok(Arc::new(Router {
            domain,
            config,
            key,
            ledger: Arc::new(Ledger::open(store.clone())?),
            store,
            peers: RwLock::default(),
            banned: Mutex::new(banned),
            active: Mutex::default(),
            short: Notify::new(),
        }))
    }

    /// The channels that may be used, as the chain has them now.
    pub fn set_channels(&self, channels: Vec<ChannelInfo>) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *peers);
        for info in channels {
            if !self.may_ask(info.node) {
                continue;
            }
            // A node that has moved is asked at its new address, by a client of its own.
            match old.iter().find(|p| p.id == info.id && p.info().endpoint == info.endpoint) {
                Some(peer) => {
                    peer.update(info);
                    peers.push(peer.clone());
                }
                None => {
                    let node = info.node;
                    match Peer::new(info, self.config.patience) {
                        Ok(peer) => peers.push(Arc::new(peer)),
                        Err(error) => tracing::warn!(%node, %error, "node not used"),
                    }
                }
            }
        }
    }

    /// Of a channel: receipts known without a gap, what it owes, and what open requests may add.
    pub fn standing(&self, channel: B256) -> (u64, u128, u128) {
        self.ledger.standing(channel)
    }

    /// The channels in use.
    pub fn channels(&self) -> Vec<Purse> {
        let purse = |peer: &Arc<Peer>| {
            let info = peer.info();
            let (_, owed, promised) = self.ledger.standing(info.id);
            let usable = peer.is_shut().is_none() && !self.is_banned(info.node) && peer.conduct().resting().is_none();
            Purse { channel: info.id, spent: owed.saturating_add(promised), usable }
        };
        self.peers().iter().map(purse).collect()
    }

    /// Whether this gateway may ask a node.
    pub fn may_ask(&self, node: Address) -> bool {
        let wanted = self.config.allow.is_empty() || self.config.allow.contains(&node);
        wanted && !self.config.deny.contains(&node) && !self.is_banned(node)
    }

    /// Resolves when a request was refused because channels hold too little, or none is there.
    pub async fn short(&self) {
        self.short.notified().await;
    }

    pub(crate) fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks every node that is not resting for its offers.
    pub async fn probe(&self) {
        let peers = self.peers().into_iter().filter(|p| p.is_shut().is_none() && p.conduct().resting().is_none());
        let domain = self.domain;
        let mut asked = tokio::task::JoinSet::new();
        for peer in peers {
            asked.spawn(async move {
                if let Err(error) = peer.refresh(&domain).await {
                    tracing::info!(node = %peer.node, %error, "node gives no offers");
                    peer.failed(None);
                }
            });
        }
        while asked.join_next().await.is_some() {}
    }

    /// Keeps offers fresh and asks for receipts that never came, until it is dropped.
    pub async fn keep(self: &Arc<Self>) {
        loop {
            self.probe().await;
            self.reconcile().await;
            tokio::time::sleep(PROBE).await;
        }
    }

    /// A node has signed something false: it is not asked again, and what it signed is kept.
    pub(crate) fn convict(&self, file: ReceiptFile) {
        let (node, fault) = (file.node, file.fault.clone().unwrap_or_default());
        counter!(measure::REFUSED_RECEIPTS, "node" => node.to_string()).increment(1);
        tracing::error!(%node, fault, digest = %file.digest, "a node's receipt is false: kept as evidence, the node is not asked again");
        if let Err(error) = self.store.put(EVIDENCE, &file.digest.to_string(), &file) {
            tracing::error!(%error, "evidence could not be kept");
        }
        unpoisoned(&self.banned).insert(node, fault);
    }

    pub(crate) fn is_banned(&self, node: Address) -> bool {
        unpoisoned(&self.banned).contains_key(&node)
    }

    /// Who could give this part now, the best first; otherwise why nobody can.
    fn candidates(
        &self,
        (model, tier): (B256, Tier),
        n_in: u32,
        max_new: u32,
        tried: &[B256],
    ) -> Result<Vec<Candidate>, ApiError> {
        let mut found = Vec::new();
        let mut why = Refusals::default();
        for peer in self.peers() {
            if tried.contains(&peer.id) {
                continue;
            }
            why.channels += 1;
            if self.is_banned(peer.node) || peer.is_shut().is_some() {
                why.unusable += 1;
                continue;
            }
            if let Some(rest) = peer.conduct().resting() {
                why.resting = Some(why.resting.map_or(rest, |r| r.min(rest)));
                continue;
            }
            let Some(offer) = peer.offer(model, tier) else {
                why.no_offer += 1;
                continue;
            };
            if u64::from(n_in) + u64::from(max_new) > u64::from(offer.offer.maxTokens) {
                why.longest = why.longest.max(offer.offer.maxTokens);
                continue;
            }
            let Some(maximum) = offer.offer.price(n_in, max_new) else { continue };
            if self.config.max_price.is_some_and(|most| maximum > most) {
                why.cheapest = Some(why.cheapest.map_or(maximum, |c: u128| c.min(maximum)));
                continue;
            }
            if let Err(needed) = self.ledger.covers(peer.id, peer.deposit(), maximum) {
                why.accepts.push(self.payment_option(&peer, needed, maximum));
                continue;
            }
            let score = peer.conduct().score(maximum, max_new, &peer.info().record);
            found.push((score, Candidate { peer, offer, maximum }));
        }
        if found.is_empty() {
            if why.channels == 0 || !why.accepts.is_empty() {
                self.short.notify_one();
            }
            return Err(why.explain(self, model));
        }
        found.sort_by_key(|(score, _)| *score);
        Ok(found.into_iter().map(|(_, c)| c).collect())
    }

    fn payment_option(&self, peer: &Peer, needed: u128, maximum: u128) -> PaymentOption {
        PaymentOption {
            scheme: "sworn-channel",
            network: self.config.network.clone(),
            asset: self.config.asset.to_string(),
            pay_to: self.domain.channels.to_string(),
            max_amount_required: digits(maximum),
            resource: "/v1/chat/completions".into(),
            description: format!(
                "top the channel up: it holds {}, {needed} would be needed (sworn channel topup)",
                peer.deposit()
            ),
            extra: json!({
                "node": peer.node, "channel": peer.id, "signer": self.key.address(),
                "deposit": digits(peer.deposit()), "needed": digits(needed),
            }),
        }
    }

    /// Gives an answer part by part.
    async fn relay(self: Arc<Self>, question: Question, mut asked: Asked, mut candidates: Vec<Candidate>) {
        let mut given: Vec<u32> = Vec::new();
        let mut served = Vec::new();
        let mut tried: Vec<B256> = Vec::new();
        let mut last: Option<ApiError> = None;
        for round in 0..PARTS {
            if round > 0 {
                let (n_in, left) = (question.prompt.len() + given.len(), question.max_new - given.len() as u32);
                // Whoever failed is asked again only if nobody else is there.
                let again = self.candidates((question.model, question.tier), n_in as u32, left, &tried);
                candidates = match again {
                    Ok(c) => c,
                    Err(e) => {
                        let e = last.take().unwrap_or(e);
                        let _ = asked.events.send(Event::Failed(e)).await;
                        return;
                    }
                };
            }
            let Some(candidate) = candidates.into_iter().next() else { break };
            candidates = Vec::new();
            let peer = candidate.peer.clone();
            peer.conduct().under_way += 1;
            let part = Part { router: &self, question: &question, candidate };
            let ended = part.give(&mut given, &mut asked).await;
            peer.conduct().under_way -= 1;
            let outcome = ended.stop.outcome();
            counter!(measure::ASKED, "node" => peer.node.to_string(), "outcome" => outcome).increment(1);
            served.extend(ended.served);
            match ended.stop {
                Stop::Finished(finish) => {
                    let _ = asked.events.send(Event::Done(finish, served)).await;
                    return;
                }
                Stop::Left => return,
                Stop::Failed(e) => {
                    let fatal = matches!(e.code, "receipt_refused" | "internal_error" | "request_refused");
                    tracing::info!(node = %peer.node, request = question.request, error = %e, given = given.len(), "part failed");
                    if fatal {
                        let _ = asked.events.send(Event::Failed(e)).await;
                        return;
                    }
                    last = Some(e);
                }
            }
            if given.len() as u32 >= question.max_new {
                let _ = asked.events.send(Event::Done(Finish::Length, served)).await;
                return;
            }
            tried.push(peer.id);
            let when = if given.is_empty() { "before" } else { "within" };
            counter!(measure::FAILOVERS, "when" => when).increment(1);
        }
        let e = last.unwrap_or_else(|| ApiError::upstream("upstream_failed", "every node that was asked failed"));
        let _ = asked.events.send(Event::Failed(e)).await;
    }
}

/// Why there is no candidate.
#[derive(Default)]
struct Refusals {
    channels: usize,
    unusable: usize,
    no_offer: usize,
    longest: u32,
    cheapest: Option<u128>,
    resting: Option<Duration>,
    accepts: Vec<PaymentOption>,
}

impl Refusals {
    /// The reason that is nearest to an answer.
    fn explain(self, router: &Router, model: B256) -> ApiError {
        if !self.accepts.is_empty() {
            let message = "no channel holds enough for this request: top one up, or ask for fewer tokens";
            return ApiError::payment("insufficient_channel", message, self.accepts);
        }
        if let Some(cheapest) = self.cheapest {
            let most = router.config.max_price.unwrap_or_default();
            let message = format!(
                "the cheapest node asks up to {cheapest}, the gateway's limit is {most} (--max-price): ask for fewer tokens"
            );
            return ApiError::payment("price_limit", message, Vec::new());
        }
        if let Some(rest) = self.resting {
            let seconds = rest.as_secs() + 1;
            return ApiError::unavailable(
                "nodes_resting",
                "nodes failed a moment ago and are left alone for a while",
                seconds,
            );
        }
        if self.longest > 0 {
            let message = format!("no node takes so many tokens; the longest offer is {} in all", self.longest);
            return ApiError::invalid("max_tokens", "context_length_exceeded", message);
        }
        if self.channels == 0 {
            let option = PaymentOption {
                scheme: "sworn-channel",
                network: router.config.network.clone(),
                asset: router.config.asset.to_string(),
                pay_to: router.domain.channels.to_string(),
                max_amount_required: "0".into(),
                resource: "/v1/chat/completions".into(),
                description: "open a channel to a node with the gateway's key as signer (sworn channel open)".into(),
                extra: json!({ "signer": router.key.address(), "model": model }),
            };
            return ApiError::payment("no_channel", "there is no channel to any node", vec![option]);
        }
        if self.unusable == self.channels {
            return ApiError::unavailable(
                "nodes_unusable",
                "no channel's node can be used any more; the log says why",
                60,
            );
        }
        ApiError::unavailable("no_offer", "no node with a channel offers this model now", 5)
    }
}

impl Upstream for Arc<Router> {
    fn ask(&self, question: Question) -> Later<'_, Result<Answer, ApiError>> {
        Box::pin(async move {
            let candidates =
                self.candidates((question.model, question.tier), question.prompt.len() as u32, question.max_new, &[])?;
            let (answer, asked) = Answer::pair(AHEAD);
            tokio::spawn(self.clone().relay(question, asked, candidates));
            Ok(answer)
        })
    }

    fn ready(&self, model: B256) -> Result<(), ApiError> {
        self.candidates((model, Tier::Standard), 1, 1, &[]).map(drop)
    }

    fn describe(&self, model: B256) -> serde_json::Value {
        self.peers().iter().filter(|p| !self.is_banned(p.node)).filter_map(|p| p.shown(model)).collect()
    }

    fn node(&self, node: Address) -> Later<'_, Result<NodeInfo, String>> {
        Box::pin(async move {
            // No other is asked: an address that anybody may register is no reason to connect to it.
            let peer = self.peers().into_iter().find(|p| p.node == node);
            let peer = peer.ok_or_else(|| "this gateway has no open channel to the node".to_owned())?;
            peer.client.info().await.map_err(|e| shown(&e.to_string()))
        })
    }

    fn receipt(&self, digest: B256) -> Result<Option<serde_json::Value>, ApiError> {
        let name = digest.to_string();
        let kept = self.store.get::<serde_json::Value>(RECEIPTS, &name).map_err(|e| ApiError::internal(&e))?;
        match kept {
            Some(file) => Ok(Some(file)),
            None => self.store.get(EVIDENCE, &name).map_err(|e| ApiError::internal(&e)),
        }
    }
}
