//! A channel to a node, and what the gateway knows of the node at its other end.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use sworn_receipts::{Client, ClientOptions, Domain, SignedOffer, Tier, recover};

use crate::error::digits;
use crate::score::{Conduct, Record};
use crate::server::now;

/// An offer is not used in its last seconds: the request takes some to arrive.
const MARGIN: u64 = 3;

/// What the chain says of a channel and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The channel.
    pub id: B256,
    /// The node.
    pub node: Address,
    /// Where the node listens.
    pub endpoint: String,
    /// Keys beside its account that the node answers for.
    pub keys: Vec<Address>,
    /// What the channel holds in all, paid parts included.
    pub deposit: u128,
    /// The node's record.
    pub record: Record,
}

/// A channel in use.
pub(crate) struct Peer {
    info: RwLock<ChannelInfo>,
    pub(crate) id: B256,
    pub(crate) node: Address,
    pub(crate) client: Client,
    pub(crate) conduct: Mutex<Conduct>,
    offers: Mutex<Vec<SignedOffer>>,
    /// Why it is not used until the chain says something new.
    shut: Mutex<Option<String>>,
}

impl Peer {
    pub(crate) fn new(info: ChannelInfo, options: ClientOptions) -> sworn_receipts::Result<Self> {
        Ok(Peer {
            id: info.id,
            node: info.node,
            client: Client::new(&info.endpoint, options)?,
            info: RwLock::new(info),
            conduct: Mutex::default(),
            offers: Mutex::default(),
            shut: Mutex::default(),
        })
    }

    pub(crate) fn info(&self) -> ChannelInfo {
        self.info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn deposit(&self) -> u128 {
        self.info.read().unwrap_or_else(PoisonError::into_inner).deposit
    }

    /// The same channel as the chain has it now.
    pub(crate) fn update(&self, info: ChannelInfo) {
        let mut held = self.info.write().unwrap_or_else(PoisonError::into_inner);
        if *held != info {
            *held = info;
            *unpoisoned(&self.shut) = None;
        }
    }

    pub(crate) fn conduct(&self) -> MutexGuard<'_, Conduct> {
        unpoisoned(&self.conduct)
    }

    pub(crate) fn shut(&self, why: impl Into<String>) {
        let why = why.into();
        tracing::warn!(node = %self.node, channel = %self.id, why, "channel not used any more");
        *unpoisoned(&self.shut) = Some(why);
    }

    pub(crate) fn is_shut(&self) -> Option<String> {
        unpoisoned(&self.shut).clone()
    }

    /// Whether a signature is the node's.
    pub(crate) fn is_node(&self, signer: Address) -> bool {
        signer == self.node || self.info.read().unwrap_or_else(PoisonError::into_inner).keys.contains(&signer)
    }

    /// A valid offer for a model: of this tier, or else the standard one.
    pub(crate) fn offer(&self, model: B256, tier: Tier) -> Option<SignedOffer> {
        self.offer_of(model, tier).or_else(|| self.offer_of(model, Tier::Standard))
    }

    fn offer_of(&self, model: B256, tier: Tier) -> Option<SignedOffer> {
        let until = now() + MARGIN;
        let offers = unpoisoned(&self.offers);
        let fits = |o: &&SignedOffer| o.offer.modelId == model && o.offer.tier() == Some(tier);
        offers.iter().filter(fits).find(|o| o.offer.validUntil >= until).cloned()
    }

    /// Asks the node for its offers; those that it has not signed are none.
    pub(crate) async fn refresh(&self, domain: &Domain) -> sworn_receipts::Result<()> {
        let fetched = self.client.offers().await?;
        let own = |o: &SignedOffer| {
            o.offer.node == self.node
                && recover(domain, &o.offer, &o.signature).is_ok_and(|signer| self.is_node(signer))
        };
        let (own, others): (Vec<_>, Vec<_>) = fetched.into_iter().partition(own);
        if !others.is_empty() {
            tracing::warn!(node = %self.node, count = others.len(), "offers that the node has not signed");
        }
        *unpoisoned(&self.offers) = own;
        Ok(())
    }

    pub(crate) fn forget_offer(&self, model: B256) {
        unpoisoned(&self.offers).retain(|o| o.offer.modelId != model);
    }

    /// For the list of models.
    pub(crate) fn shown(&self, model: B256) -> Option<serde_json::Value> {
        let o = self.offer_of(model, Tier::Standard)?.offer;
        let price = |tier| {
            let o = self.offer_of(model, tier)?.offer;
            let (input, output) = (digits(o.perInputToken), digits(o.perOutputToken));
            Some(serde_json::json!({ "perInputToken": input, "perOutputToken": output }))
        };
        Some(serde_json::json!({
            "spot": price(Tier::Spot),
            "reserved": price(Tier::Reserved),
            "node": self.node,
            "perInputToken": digits(o.perInputToken),
            "perOutputToken": digits(o.perOutputToken),
            "maxTokens": o.maxTokens,
            "surgeBps": o.surgeBps,
            "validUntil": o.validUntil,
        }))
    }

    pub(crate) fn failed(&self, rest: Option<Duration>) {
        self.conduct().failed(rest);
    }
}

pub(crate) fn unpoisoned<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
