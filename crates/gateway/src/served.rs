//! What a response says about who answered and what it cost.

use alloy::primitives::{Address, B256, Bytes};
use serde_json::{Value, json};
use sworn_receipts::Tier;

use crate::error::digits;

/// A part of an answer that one node gave, with its receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The node.
    pub node: Address,
    /// The channel that paid.
    pub channel: B256,
    /// What the part cost.
    pub price: u128,
    /// As what it was sold.
    pub tier: Tier,
    /// EIP-712 digest of the receipt: its name.
    pub digest: B256,
    /// The receipt as JSON.
    pub receipt: Value,
    /// The node's signature under it.
    pub signature: Bytes,
    /// What identifies the run.
    pub trace_root: B256,
    /// Prompt tokens of the part; of a continuation they hold the output before it.
    pub n_in: u32,
    /// Output tokens of the part.
    pub n_out: u32,
}

impl Served {
    /// The part as a response shows it.
    pub fn shown(&self) -> Value {
        json!({
            "node": self.node,
            "channel": self.channel,
            "price": digits(self.price),
            "tier": self.tier.name(),
            "receiptDigest": self.digest,
            "receipt": self.receipt,
            "signature": self.signature,
            "traceRoot": self.trace_root,
        })
    }
}
