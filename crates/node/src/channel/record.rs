//! What the node remembers of channels: the requests it has begun and the receipts it has signed.
//!
//! A receipt, its channel's new total and the end of its request are one write, done before the receipt leaves the process: after a
//! crash there is no receipt without its number, no number without its receipt, and no request with two receipts.

use alloy::primitives::{B256, Bytes, U256};
use serde::{Deserialize, Serialize};
use sworn_bindings::run_params;
use sworn_chain::{Changes, Store, Table};
use sworn_receipts::{Answered, Offer, Receipt, Voucher};

use super::redeem::{BatchRecord, WantedRecord};
use crate::journal::AnswerRecord;
use crate::{Job, Result};

const BOOKS: Table = "node/channels/books";
const OPEN: Table = "node/channels/open";
const DONE: Table = "node/channels/done";
const RECEIPTS: Table = "node/channels/receipts";
const BATCHES: Table = "node/channels/batches";
const WANTED: Table = "node/channels/wanted";

/// A channel's total, and the voucher that covers it best.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BookRecord {
    pub(crate) channel: B256,
    pub(crate) sequence: u64,
    #[serde(with = "sworn_receipts::decimal")]
    pub(crate) cumulative: u128,
    /// The one with the largest ceiling.
    pub(crate) voucher: Voucher,
    pub(crate) signature: Bytes,
}

/// A request without a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenRecord {
    pub(crate) channel: B256,
    pub(crate) request: u64,
    pub(crate) order: B256,
    pub(crate) model: B256,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_new: u32,
    #[serde(with = "sworn_receipts::decimal")]
    pub(crate) sampling: U256,
    pub(crate) seed: B256,
    pub(crate) offer: Offer,
    #[serde(with = "sworn_receipts::decimal")]
    pub(crate) maximum: u128,
    /// Output that the client has, as far as it was written down.
    pub(crate) tokens: Vec<u32>,
}

impl OpenRecord {
    /// As the prover takes it; `None` for sampling parameters that do not exist.
    pub(crate) fn job(&self) -> Option<Job> {
        Some(Job {
            id: job_id(self.channel, self.request),
            model: self.model,
            prompt: self.prompt.clone(),
            max_new: self.max_new,
            run: run_params(self.sampling, self.seed)?,
        })
    }
}

/// A receipt, everything that it is about, and the order that it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReceiptRecord {
    pub(crate) answered: Answered,
    pub(crate) order: B256,
}

impl ReceiptRecord {
    /// As the prover takes it; `None` for sampling parameters that do not exist.
    pub(crate) fn job(&self) -> Option<Job> {
        let r = &self.answered.signed.receipt;
        Some(Job {
            id: job_id(r.channelId, r.request),
            model: r.modelId,
            prompt: self.answered.prompt.clone(),
            max_new: r.maxNew,
            run: r.run()?,
        })
    }

    pub(crate) fn answer(&self) -> AnswerRecord {
        let layers_root = self.answered.signed.receipt.layersRoot;
        AnswerRecord { tokens: self.answered.output.clone(), layers_root }
    }
}

/// What an answer is called inside this process and in the names of its files: beyond any id that the contracts give.
pub(crate) fn job_id(channel: B256, request: u64) -> U256 {
    let mut hash = sworn_commit::keccak(&[&channel.0, &request.to_be_bytes()]);
    hash[0] |= 0x80;
    U256::from_be_bytes(hash)
}

fn request_key(channel: B256, request: u64) -> String {
    format!("{channel}/{request}")
}

/// Rises with the sequence.
fn receipt_key(channel: B256, sequence: u64) -> String {
    format!("{channel}/{sequence:020}")
}

/// The tables of channels. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    store: Store,
}

impl Ledger {
    pub(crate) fn new(store: Store) -> Self {
        Ledger { store }
    }

    pub(crate) fn books(&self) -> Result<Vec<BookRecord>> {
        Ok(self.store.all(BOOKS)?.into_iter().map(|(_, book)| book).collect())
    }

    pub(crate) fn book(&self, channel: B256) -> Result<Option<BookRecord>> {
        Ok(self.store.get(BOOKS, &channel.to_string())?)
    }

    pub(crate) fn open_requests(&self) -> Result<Vec<OpenRecord>> {
        Ok(self.store.all(OPEN)?.into_iter().map(|(_, open)| open).collect())
    }

    /// Writes down a request with its channel's best voucher: from here on it may be answered.
    pub(crate) fn begin(&self, open: &OpenRecord, book: &BookRecord) -> Result<()> {
        let changes = Changes::default().put(OPEN, request_key(open.channel, open.request), open)?.put(
            BOOKS,
            book.channel.to_string(),
            book,
        )?;
        Ok(self.store.apply(&changes)?)
    }

    /// Writes down how far a request is.
    pub(crate) fn progress(&self, open: &OpenRecord) -> Result<()> {
        Ok(self.store.put(OPEN, &request_key(open.channel, open.request), open)?)
    }

    /// Forgets a request that nothing is owed for.
    pub(crate) fn abandon(&self, open: &OpenRecord) -> Result<()> {
        Ok(self.store.remove(OPEN, &request_key(open.channel, open.request))?)
    }

    /// Writes down a receipt. After this it is signed, whatever happens.
    pub(crate) fn settle(&self, receipt: &ReceiptRecord, book: &BookRecord) -> Result<()> {
        let r = &receipt.answered.signed.receipt;
        let key = request_key(r.channelId, r.request);
        let changes = Changes::default()
            .put(RECEIPTS, receipt_key(r.channelId, r.sequence), receipt)?
            .put(DONE, &key, &r.sequence)?
            .put(BOOKS, book.channel.to_string(), book)?
            .remove(OPEN, key);
        Ok(self.store.apply(&changes)?)
    }

    /// The receipt with this number.
    pub(crate) fn receipt(&self, channel: B256, sequence: u64) -> Result<Option<ReceiptRecord>> {
        Ok(self.store.get(RECEIPTS, &receipt_key(channel, sequence))?)
    }

    /// The receipt of this request.
    pub(crate) fn receipt_of(&self, channel: B256, request: u64) -> Result<Option<ReceiptRecord>> {
        match self.store.get(DONE, &request_key(channel, request))? {
            Some(sequence) => self.receipt(channel, sequence),
            None => Ok(None),
        }
    }

    /// Receipts `first` to `last` as far as there are any, without gaps.
    pub(crate) fn receipts(&self, channel: B256, first: u64, last: u64) -> Result<Vec<Receipt>> {
        let mut receipts = Vec::new();
        for sequence in first..=last {
            let Some(record) = self.receipt(channel, sequence)? else { break };
            receipts.push(record.answered.signed.receipt);
        }
        Ok(receipts)
    }

    pub(crate) fn batches(&self) -> Result<Vec<BatchRecord>> {
        Ok(self.store.all(BATCHES)?.into_iter().map(|(_, batch)| batch).collect())
    }

    pub(crate) fn batch(&self, id: U256) -> Result<Option<BatchRecord>> {
        Ok(self.store.get(BATCHES, &id.to_string())?)
    }

    pub(crate) fn put_batch(&self, batch: &BatchRecord) -> Result<()> {
        Ok(self.store.put(BATCHES, &batch.batch.to_string(), batch)?)
    }

    pub(crate) fn wanted(&self) -> Result<Vec<WantedRecord>> {
        Ok(self.store.all(WANTED)?.into_iter().map(|(_, wanted)| wanted).collect())
    }

    pub(crate) fn put_wanted(&self, w: &WantedRecord) -> Result<()> {
        Ok(self.store.put(WANTED, &format!("{}/{}", w.batch, receipt_key(w.channel, w.sequence)), w)?)
    }

    /// Forgets a batch that has ended and what was asked for of it; the names of its answers' traces.
    pub(crate) fn forget_batch(&self, batch: &BatchRecord) -> Result<Vec<U256>> {
        let mut changes = Changes::default().remove(BATCHES, batch.batch.to_string());
        for w in self.wanted()?.into_iter().filter(|w| w.batch == batch.batch) {
            changes = changes.remove(WANTED, format!("{}/{}", w.batch, receipt_key(w.channel, w.sequence)));
        }
        let mut names = Vec::new();
        for part in batch.parts() {
            let receipts = self.receipts(part.channelId, part.first, part.last)?;
            names.extend(receipts.into_iter().map(|r| job_id(r.channelId, r.request)));
        }
        self.store.apply(&changes)?;
        Ok(names)
    }
}
