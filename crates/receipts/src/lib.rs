//! Payment by receipts: what a user and a node promise each other off chain.
//!
//! A user who has a channel to a node signs a [`Voucher`] with every request: the channel pays up to so much in total. The node
//! answers as it goes and ends with a [`Receipt`]: this is what was asked and answered, this is what it commits to, and this is
//! what the channel owes now. An [`Offer`] is a node's price, signed, good for a while.
//!
//! **Owns** these three as EIP-712 data, signing and checking them, price arithmetic, the tree over a batch of receipts, the
//! [`wire`] format of a node's channel API and a [`Client`] for it. **May depend on** `commit`, `bindings`. **Must never** talk to a
//! chain, run a model, or believe anything a node serves beyond its bounds.
#![forbid(unsafe_code)]

mod batch;
mod check;
mod client;
pub mod decimal;
mod error;
mod signing;
mod sse;
mod typed;
pub mod wire;

pub use batch::{place, receipts_root, receipts_tree};
pub use check::{Mismatch, check_answer, follows};
pub use client::{Answer, Client, ClientOptions};
pub use error::{Error, Result};
pub use signing::{recover, sign, sign_sync};
pub use sse::{SseEvent, SseReader};
pub use typed::{Domain, Offer, Receipt, Tier, Voucher};
pub use wire::{
    Answered, Ask, ChannelState, Code, End, Engine, Event, Finish, InFlight, Logprobs, NodeInfo, ReceiptPage, Refusal,
    SignedOffer, SignedReceipt, SignedVoucher, TopToken,
};
