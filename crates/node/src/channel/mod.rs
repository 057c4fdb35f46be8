//! Payment by receipts, from the node's side.
//!
//! [`book`] keeps what a channel owes, [`record`] what of it is on disk, [`live`] an answer under way, [`serve`] takes a request from
//! its voucher to its receipt, [`offer`] says what it costs, [`http`] is all of it on the wire, and [`redeem`] brings receipts to the
//! chain.
#![allow(
    clippy::result_large_err,
    reason = "a refusal carries what mends it, is rare, and goes straight to the client"
)]

mod book;
pub(crate) mod http;
mod live;
mod offer;
pub(crate) mod record;
pub(crate) mod redeem;
mod serve;
mod signer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, Bytes};
use sworn_bindings::{ChannelState, IChannels};
use sworn_chain::{Chain, Store};
use sworn_receipts::{Code, Domain, Refusal, Voucher};
use tokio::sync::Semaphore;

use crate::prices::Prices;
use crate::work::unpoisoned;
use crate::{ChannelTerms, Result};
use book::Book;
use live::Live;
use record::{BookRecord, Ledger};

/// How long what the chain says of a channel is believed.
const FRESH: Duration = Duration::from_secs(10);

/// What the node's channels share.
pub(crate) struct Channels {
    pub(crate) terms: ChannelTerms,
    pub(crate) domain: Domain,
    pub(crate) ledger: Ledger,
    chain: Chain,
    node: Address,
    accounts: Mutex<HashMap<B256, Arc<Mutex<Account>>>>,
    lives: Mutex<HashMap<(B256, u64), Arc<Live>>>,
    views: Mutex<HashMap<B256, (Instant, IChannels::Channel)>>,
    prices: Arc<Prices>,
    /// Whether jobs and receipts of a model may sample.
    samples: Mutex<HashMap<B256, bool>>,
    /// Receipts of a channel that are known to be claimed, if that is all of them.
    claimed: Mutex<HashMap<B256, u64>>,
    /// Answers at a time, those in reserved places excepted.
    places: Arc<Semaphore>,
    /// Reserved places, and how many there are in all.
    reserved: Arc<Semaphore>,
    held: usize,
    /// Whether something was earned since the last plan.
    earned: AtomicBool,
}

/// A channel's book with the voucher that covers it.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) book: Book,
    voucher: Voucher,
    signature: Bytes,
}

impl Account {
    fn record(&self, channel: B256) -> BookRecord {
        BookRecord {
            channel,
            sequence: self.book.sequence,
            cumulative: self.book.cumulative,
            voucher: self.voucher.clone(),
            signature: self.signature.clone(),
        }
    }
}

/// For a person and a program why not; the log has the rest.
fn unavailable(error: impl std::fmt::Display) -> Refusal {
    tracing::warn!(%error, "channels");
    Refusal::new(Code::Unavailable, "the node cannot look this up now; try again")
}

impl Channels {
    pub(crate) fn new(terms: ChannelTerms, chain: Chain, node: Address, store: Store, prices: Arc<Prices>) -> Self {
        let deployment = chain.deployment();
        let domain = Domain { chain_id: deployment.chain_id, channels: deployment.channels };
        // Somebody must get in without a reservation.
        let streams = terms.streams.max(1);
        let held = terms.reserved.min(streams - 1);
        let (places, reserved) = (Arc::new(Semaphore::new(streams - held)), Arc::new(Semaphore::new(held)));
        let (accounts, lives, views, samples, claimed) = Default::default();
        let ledger = Ledger::new(store);
        Channels {
            terms,
            domain,
            ledger,
            chain,
            node,
            accounts,
            lives,
            views,
            prices,
            samples,
            claimed,
            places,
            reserved,
            held,
            earned: AtomicBool::new(false),
        }
    }

    /// The chain has news of a channel.
    pub(crate) fn forget_view(&self, channel: B256) {
        unpoisoned(&self.views).remove(&channel);
    }

    /// What was known of the chain is so no more.
    pub(crate) fn forget_chain(&self) {
        unpoisoned(&self.views).clear();
        unpoisoned(&self.claimed).clear();
    }

    /// A channel to this node, as the chain has it.
    async fn view(&self, channel: B256) -> Result<IChannels::Channel, Refusal> {
        let known =
            unpoisoned(&self.views).get(&channel).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, c)| c.clone());
        if let Some(view) = known {
            return Ok(view);
        }
        let view = self.chain.channels().channel(channel).call().await.map_err(unavailable)?;
        // Only its own are remembered: strangers can name any number of others.
        if view.state == ChannelState::None || view.node != self.node {
            return Err(Refusal::new(Code::NoChannel, format!("there is no channel {channel} to this node")));
        }
        unpoisoned(&self.views).insert(channel, (Instant::now(), view.clone()));
        Ok(view)
    }

    /// The same, and not from memory.
    async fn view_again(&self, channel: B256) -> Result<IChannels::Channel, Refusal> {
        self.forget_view(channel);
        self.view(channel).await
    }

    /// Whether receipts of a model may sample: one that may not would convict its node.
    async fn samples(&self, model: B256) -> Result<bool, Refusal> {
        if let Some(known) = unpoisoned(&self.samples).get(&model) {
            return Ok(*known);
        }
        let samples = self.chain.models().samples(model).call().await.map_err(unavailable)?;
        unpoisoned(&self.samples).insert(model, samples);
        Ok(samples)
    }

    /// A channel's account, read from the journal when it is first needed. `view` guards against a journal that was lost: numbers
    /// that the chain has seen must not be given again.
    fn account(&self, channel: B256, view: &IChannels::Channel) -> Result<Arc<Mutex<Account>>, Refusal> {
        let mut accounts = unpoisoned(&self.accounts);
        let account = match accounts.get(&channel) {
            Some(account) => account.clone(),
            None => {
                let record = self.ledger.book(channel).map_err(unavailable)?;
                let known = record.as_ref().map_or(0, |r| r.sequence);
                if known < view.sequence {
                    let told =
                        "this node no longer has this channel's receipts and cannot go on with it; open a new one";
                    return Err(Refusal::new(Code::ChannelClosed, told));
                }
                let account = Arc::new(Mutex::new(match record {
                    Some(r) => Account {
                        book: Book::new(r.sequence, r.cumulative),
                        voucher: r.voucher,
                        signature: r.signature,
                    },
                    None => Account { book: Book::default(), voucher: Voucher::default(), signature: Bytes::new() },
                }));
                accounts.insert(channel, account.clone());
                account
            }
        };
        Ok(account)
    }

    /// Whether something was earned since this was last asked.
    pub(crate) fn has_earned(&self) -> bool {
        self.earned.swap(false, Ordering::Relaxed)
    }

    /// Answers under way.
    pub(crate) fn answering(&self) -> usize {
        self.terms.streams.max(1) - self.places.available_permits() - self.reserved.available_permits()
    }

    /// Ends every answer under way with what its client has.
    pub(crate) fn stop(&self) {
        unpoisoned(&self.lives).values().for_each(|live| live.leave());
    }
}
