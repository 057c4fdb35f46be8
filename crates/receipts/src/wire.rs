//! The node's channel API on the wire.
//!
//! JSON with camelCase names; 128- and 256-bit integers are decimal strings, hashes, addresses and signatures 0x-hex.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/offers` | `[`[`SignedOffer`]`]` |
//! | `POST /v1/channels/{id}/answers` with [`Ask`] | `text/event-stream` of [`Event`]s, the last a receipt or an error |
//! | `POST /v1/channels/{id}/answers/{request}/end` with [`End`] | 204 |
//! | `GET /v1/channels/{id}` | [`ChannelState`] |
//! | `GET /v1/channels/{id}/requests/{request}` | [`Answered`] |
//! | `GET /v1/channels/{id}/receipts?from=&to=` | [`ReceiptPage`] |
//! | `GET /v1/channels/{id}/receipts/{sequence}` | [`Answered`] |
//! | `GET /v1/channels/{id}/receipts/{sequence}/trace`, `…/ops/{layer}/{row}` | as for jobs |
//!
//! A refusal is a [`Refusal`] with a status of its [`Code`].

use std::fmt;

use alloy::primitives::{Address, B256, Bytes, U256};
use serde::{Deserialize, Serialize};
use sworn_bindings::{order_hash, run_params};
use sworn_commit::{RunParams, sequence};

use crate::{Offer, Receipt, Voucher};

/// Receipts in one answer, at most.
pub const PAGE: u64 = 256;
/// Log-probabilities of other tokens beside each output token, at most.
pub const TOP: u8 = 20;
/// Bytes of an [`Ask`] that a client may send: the longest prompt that the contracts admit, in decimal, and the rest.
pub const ASK_BYTES: usize = 256 << 10;

/// An offer with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOffer {
    /// The offer.
    pub offer: Offer,
    /// By the node's account or a session key of it.
    pub signature: Bytes,
}

/// A receipt with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedReceipt {
    /// The receipt.
    pub receipt: Receipt,
    /// By the node's account or a session key of it.
    pub signature: Bytes,
}

/// A voucher with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedVoucher {
    /// The voucher.
    pub voucher: Voucher,
    /// By the channel's signer.
    pub signature: Bytes,
}

/// A request for an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    /// The client's number of it: unique in the channel. The same request again is the same answer again.
    pub request: u64,
    /// The model.
    pub model: B256,
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// Most output tokens.
    pub max_new: u32,
    /// How to sample, as a job has it.
    #[serde(with = "crate::decimal")]
    pub sampling: U256,
    /// Seed of the noise; zero if there is none.
    pub seed: B256,
    /// Ceiling on all that the channel pays, this request included: as in the voucher.
    #[serde(with = "crate::decimal")]
    pub cumulative: u128,
    /// Signature of the [`Voucher`] by the channel's signer.
    pub voucher: Bytes,
    /// What it is to cost: the node's own offer.
    pub offer: SignedOffer,
    /// Log-probabilities of so many likeliest tokens beside each; absent: none at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
}

impl Ask {
    /// How to sample; `None` for a word that no valid parameters give.
    pub fn run(&self) -> Option<RunParams> {
        run_params(self.sampling, self.seed)
    }

    /// Hash of what is asked; `None` as [`Self::run`].
    pub fn request_hash(&self) -> Option<B256> {
        Some(order_hash(self.model, sequence::hash(&self.prompt), self.max_new, &self.run()?))
    }

    /// The voucher whose signature it carries; `None` as [`Self::run`].
    pub fn voucher(&self, channel: B256) -> Option<Voucher> {
        Some(Voucher {
            channelId: channel,
            request: self.request,
            modelId: self.model,
            cumulative: self.cumulative,
            requestHash: self.request_hash()?,
        })
    }

    /// The most that it can cost; `None` if that does not fit 128 bits.
    pub fn maximum(&self) -> Option<u128> {
        self.offer.offer.price(u32::try_from(self.prompt.len()).ok()?, self.max_new)
    }
}

/// "Enough": the answer ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Output tokens that are wanted, at least one. Fewer than are there already: the rest is dropped and not charged. More than
    /// are there: it ends when it gets so far.
    pub tokens: u32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model's stop token.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The client said enough, or left.
    Ended,
}

/// A token and its natural log-probability in Q14.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopToken {
    /// The token.
    pub token: u32,
    /// Its log-probability, in 1/16 384.
    pub logprob: i32,
}

/// Log-probabilities at an output position, in Q14.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Of the token that was selected.
    pub logprob: i32,
    /// Of the likeliest tokens, the likeliest first.
    pub top: Vec<TopToken>,
}

/// One event of an answer's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An output token.
    Token {
        /// 0, 1, 2, …
        index: u32,
        /// The token.
        token: u32,
        /// If they were asked for.
        logprobs: Option<Logprobs>,
    },
    /// The end, and what it costs.
    Receipt {
        /// What the node stands by.
        signed: SignedReceipt,
        /// Why it ended.
        finish: Finish,
    },
    /// The end: the node cannot go on. Nothing is owed.
    Error(Refusal),
}

#[derive(Serialize, Deserialize)]
struct TokenData {
    index: u32,
    token: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
}

#[derive(Serialize, Deserialize)]
struct ReceiptData {
    #[serde(flatten)]
    signed: SignedReceipt,
    finish: Finish,
}

impl Event {
    /// Its name and data in the stream.
    pub fn encode(&self) -> (&'static str, String) {
        // Maps with string keys and integers: nothing here that JSON cannot say.
        fn json(value: &impl Serialize) -> String {
            serde_json::to_string(value).unwrap_or_default()
        }
        match self {
            Event::Token { index, token, logprobs } => {
                ("token", json(&TokenData { index: *index, token: *token, logprobs: logprobs.clone() }))
            }
            Event::Receipt { signed, finish } => {
                ("receipt", json(&ReceiptData { signed: signed.clone(), finish: *finish }))
            }
            Event::Error(refusal) => ("error", json(refusal)),
        }
    }

    /// Reads an event; `None` for a name that this version does not know.
    ///
    /// # Errors
    /// The data is not what the name says.
    pub fn decode(name: &str, data: &str) -> serde_json::Result<Option<Self>> {
        Ok(Some(match name {
            "token" => {
                let TokenData { index, token, logprobs } = serde_json::from_str(data)?;
                Event::Token { index, token, logprobs }
            }
            "receipt" => {
                let ReceiptData { signed, finish } = serde_json::from_str(data)?;
                Event::Receipt { signed, finish }
            }
            "error" => Event::Error(serde_json::from_str(data)?),
            _ => return Ok(None),
        }))
    }
}

/// A request that has its receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// What the node stands by.
    #[serde(flatten)]
    pub signed: SignedReceipt,
    /// Why it ended.
    pub finish: Finish,
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// Output tokens.
    pub output: Vec<u32>,
}

/// Receipts in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptPage {
    /// By rising sequence number, without gaps.
    pub receipts: Vec<Answered>,
    /// Where to go on, if there are more in the range that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// The client's number of it.
    pub request: u64,
    /// The most that it can cost.
    #[serde(with = "crate::decimal")]
    pub maximum: u128,
}

/// How a channel stands with the node, to resynchronise from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelState {
    /// Receipts there are.
    pub sequence: u64,
    /// What the channel owes in total after the last.
    #[serde(with = "crate::decimal")]
    pub cumulative: u128,
    /// What the channel holds in total, paid parts included, as far as the node has seen.
    #[serde(with = "crate::decimal")]
    pub deposit: u128,
    /// Requests without a receipt.
    pub in_flight: Vec<InFlight>,
    /// The last receipt.
    pub last_receipt: Option<SignedReceipt>,
}

/// Why a node refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// What was sent makes no sense.
    BadRequest,
    /// It is too long for the model or the offer.
    TooLong,
    /// The node does not have the model.
    NoModel,
    /// There is nothing under this name.
    NotFound,
    /// The channel does not exist, or is not to this node.
    NoChannel,
    /// The channel is closing or closed.
    ChannelClosed,
    /// The voucher is not signed by the channel's signer.
    WrongSigner,
    /// The voucher's or the channel's amount does not cover the request.
    Payment,
    /// The offer is not this node's, or for something else.
    WrongOffer,
    /// The offer is over: take a new one.
    OfferExpired,
    /// The request's number was used for another request.
    RequestUsed,
    /// Too much at a time.
    Busy,
    /// The node cannot answer now.
    Unavailable,
    /// A spot request gave way to another; nothing is owed.
    Preempted,
    /// The node failed.
    Failed,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Code::BadRequest | Code::TooLong | Code::WrongSigner | Code::WrongOffer => 400,
            Code::Payment => 402,
            Code::NoModel | Code::NotFound | Code::NoChannel => 404,
            Code::ChannelClosed | Code::RequestUsed | Code::OfferExpired => 409,
            Code::Busy => 429,
            Code::Failed | Code::Unknown => 500,
            Code::Unavailable | Code::Preempted => 503,
        }
    }
}

/// A refusal, with what a client needs to mend it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// For a person.
    pub error: String,
    /// For a program.
    #[serde(default = "unknown")]
    pub code: Code,
    /// What the voucher must allow.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::decimal::option")]
    pub needed: Option<u128>,
    /// What the channel holds.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::decimal::option")]
    pub deposit: Option<u128>,
    /// What the request can cost.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::decimal::option")]
    pub price: Option<u128>,
    /// The channel's last receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_receipt: Option<SignedReceipt>,
    /// The voucher that covers it: the user's own word that so much may be owed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covered_by: Option<Box<SignedVoucher>>,
}

fn unknown() -> Code {
    Code::Unknown
}

impl Refusal {
    /// A refusal without figures.
    pub fn new(code: Code, error: impl Into<String>) -> Self {
        Refusal {
            error: error.into(),
            code,
            needed: None,
            deposit: None,
            price: None,
            last_receipt: None,
            covered_by: None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

/// What a node says of itself; nothing of it is proven.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Its account.
    pub account: Address,
    /// The chain's id.
    pub chain_id: u64,
    /// The market.
    pub market: Address,
    /// Models it has.
    pub models: Vec<B256>,
    /// Whether it takes open jobs.
    pub accepts_open_jobs: bool,
    /// The contract of the channels it serves; none: it serves none.
    pub channels: Option<Address>,
    /// What computes.
    #[serde(default)]
    pub engines: Vec<Engine>,
    /// Answers over channels under way.
    pub answers_running: usize,
    /// How many there may be.
    #[serde(default)]
    pub answers_at_most: usize,
    /// Jobs that it has taken and that are not closed.
    pub jobs_under_way: usize,
    /// Jobs that are being executed.
    pub jobs_running: usize,
    /// Jobs that wait for that.
    pub jobs_waiting: usize,
    /// Its program's version.
    pub version: String,
}

/// What computes a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Engine {
    /// The kind: cpu, wgpu.
    pub backend: String,
    /// The device, in its driver's words.
    pub adapter: String,
}
