//! Events in order, each at least once, across restarts and reorganisations.

use std::collections::VecDeque;

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::B256;
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::transports::TransportError;
use serde::{Deserialize, Serialize};
use sworn_bindings::Event;

use crate::{Chain, Error, Head, Result, Store, Table};

const CURSORS: Table = "sworn/cursors";

/// Blocks that a reorganisation can replace; after a deeper one a cursor may read everything again.
pub const REACH: u64 = 128;
/// A server that says nothing to fewer blocks than these is asked for no fewer: it is down.
const LEAST_CHUNK: u64 = 64;
/// Blocks by which the state that an RPC server tells may be before or after the head that it told: servers behind one name differ.
pub const LEAD: u64 = 16;

/// How a cursor reads.
#[derive(Clone, Debug)]
pub struct CursorOptions {
    /// Most blocks of one request; fewer by itself, until the cursor has caught up, when the RPC finds it too many or fails.
    pub chunk: u64,
    /// Block hashes that are remembered: how deep a reorganisation can be without reading everything again. At least [`REACH`], or what
    /// [`Batch::undoes`] says of an end that [`Head::buries`] is too little.
    pub remembered: usize,
}

impl Default for CursorOptions {
    fn default() -> Self {
        CursorOptions { chunk: 2_000, remembered: REACH as usize }
    }
}

/// An event and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What happened.
    pub event: Event,
    /// Block number.
    pub block: u64,
    /// Transaction.
    pub transaction: B256,
    /// Position among the block's logs.
    pub index: u64,
}

/// News from the chain.
#[derive(Clone, Debug)]
pub struct Batch {
    /// In the chain's order.
    pub events: Vec<Seen>,
    /// The latest block when they were read.
    pub head: Head,
    /// Whether there is nothing after them up to `head`.
    pub caught_up: bool,
    /// Blocks after this one were read before and then replaced: events that are gone stay gone, others may come again.
    pub replaced: Option<u64>,
    place: Place,
}

impl Batch {
    /// Whether a reorganisation may have taken back what was found to be so when `head` was the latest block.
    pub fn undoes(&self, head: u64) -> bool {
        self.replaced.is_some_and(|stayed| head.saturating_add(LEAD) >= stayed)
    }
}

impl Head {
    /// Whether no reorganisation will take back what was found to be so when `before` was the latest block, but for one so deep that all
    /// events come again.
    pub fn buries(&self, before: u64) -> bool {
        self.number > before.saturating_add(REACH)
    }
}

/// The last blocks that were read, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    blocks: VecDeque<(u64, B256)>,
}

/// Reads all events of a deployment's contracts.
///
/// `poll`, act, `commit`: an agent that dies between gets the same events again, so its actions must be idempotent.
#[derive(Debug)]
pub struct Cursor {
    chain: Chain,
    store: Store,
    name: String,
    options: CursorOptions,
    /// Blocks of the next request, at most.
    chunk: u64,
    place: Place,
}

impl Cursor {
    /// Continues the cursor of this name, or begins at the deployment's block.
    ///
    /// # Errors
    /// The store fails.
    pub fn open(chain: Chain, store: Store, name: &str, options: CursorOptions) -> Result<Self> {
        let place = store.get(CURSORS, name)?.unwrap_or_default();
        let chunk = options.chunk.max(1);
        Ok(Cursor { chain, store, name: name.to_owned(), options, chunk, place })
    }

    /// Reads on; an empty batch if there is nothing new. Does not wait.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn poll(&mut self) -> Result<Batch> {
        let mut place = self.place.clone();
        let replaced = self.rewind(&mut place).await?;
        let head = self.chain.head().await?;
        crate::measure::head(&head);
        let from = place.blocks.back().map_or(self.chain.deployment().block, |(number, _)| number + 1);
        let mut batch = Batch { events: Vec::new(), head, caught_up: true, replaced, place };
        if from > head.number {
            return Ok(batch);
        }
        loop {
            let to = head.number.min(from + self.chunk - 1);
            let Some(last) = self.chain.block(BlockNumberOrTag::Number(to)).await? else {
                batch.caught_up = false;
                return Ok(batch);
            };
            let logs = match self.chain.provider().get_logs(&self.filter(from, to)).await {
                Ok(logs) => logs,
                // The many words of "too many blocks" or "too many results" have this in common: fewer blocks cure them.
                Err(TransportError::ErrorResp(e)) if to > from => {
                    self.chunk = (to - from).div_ceil(2);
                    tracing::debug!(chunk = self.chunk, error = %e, "asking for fewer blocks");
                    continue;
                }
                // Or it takes longer for so many than it may.
                Err(e) => {
                    self.chunk = self.chunk.min((to - from).div_ceil(2).max(LEAST_CHUNK));
                    return Err(e.into());
                }
            };
            // A reorganisation meanwhile, of these blocks or of those read before: the next poll finds the common ancestor.
            let earlier = batch.place.blocks.back().copied();
            for block in earlier.into_iter().chain([(to, last.hash)]) {
                if !self.has(block).await? {
                    batch.caught_up = false;
                    return Ok(batch);
                }
            }
            for log in logs {
                let (Some(block), Some(transaction), Some(index)) =
                    (log.block_number, log.transaction_hash, log.log_index)
                else {
                    return Err(Error::Answer("a log of a mined block without its place".into()));
                };
                match Event::decode(self.chain.deployment(), log.address(), log.data()) {
                    Some(event) => batch.events.push(Seen { event, block, transaction, index }),
                    None => {
                        tracing::warn!(address = %log.address(), block, "a log that the interfaces do not describe")
                    }
                }
            }
            batch.events.sort_by_key(|e| (e.block, e.index));
            batch.place.blocks.push_back((to, last.hash));
            while batch.place.blocks.len() > self.options.remembered.max(1) {
                batch.place.blocks.pop_front();
            }
            batch.caught_up = to == head.number;
            if batch.caught_up {
                self.chunk = self.options.chunk.max(1);
            }
            return Ok(batch);
        }
    }

    /// Marks a batch as dealt with.
    ///
    /// # Errors
    /// The store fails; then the batch will come again.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.place != self.place {
            self.store.put(CURSORS, &self.name, &batch.place)?;
            self.place = batch.place.clone();
        }
        Ok(())
    }

    /// Drops blocks that the chain no longer has; the last that it still has, if there were any.
    async fn rewind(&self, place: &mut Place) -> Result<Option<u64>> {
        let mut reorganised = false;
        while let Some(block) = place.blocks.back().copied() {
            if self.has(block).await? {
                break;
            }
            place.blocks.pop_back();
            reorganised = true;
        }
        let stayed = place.blocks.back().map_or(self.chain.deployment().block, |(n, _)| *n);
        if reorganised {
            tracing::warn!(cursor = self.name, to = stayed, "the chain was reorganised: reading again");
        }
        Ok(reorganised.then_some(stayed))
    }

    /// Whether a block is the chain's now.
    async fn has(&self, (number, hash): (u64, B256)) -> Result<bool> {
        Ok(self.chain.block(BlockNumberOrTag::Number(number)).await?.is_some_and(|b| b.hash == hash))
    }

    fn filter(&self, from: u64, to: u64) -> Filter {
        let d = self.chain.deployment();
        Filter::new()
            .address(vec![d.models, d.nodes, d.market, d.challenges, d.channels, d.trials])
            .from_block(from)
            .to_block(to)
    }
}
