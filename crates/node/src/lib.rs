//! A node: serves models under oath.
//!
//! **Owns** the life of a job from the node's side ([`plan`] decides, the agent acts), the [`Prover`] and [`Conduct`] seams, the
//! answers to demands, the HTTP side and the events of `sworn node run`. **May depend on** `isa`, `commit`, `model`, `engine`,
//! `bindings`, `chain`, `receipts`. **Must never** sign for or post what it has not executed, keep anything that chain and journal
//! do not give back after a crash, or contain dishonest behaviour: tests bring that along through the seams.
//!
//! # HTTP
//!
//! What concerns jobs is `GET`, read-only and hashable against what is on chain; errors are `{"error": …, "request": id}` with the
//! request's id, which also is in the header `x-request-id`.
//!
//! | path | body |
//! |---|---|
//! | `/health` | `{"status": "ok"}` |
//! | `/v1/info` | account, models, version, what computes, jobs under way and how many of them run and wait to, answers under way and their places: [`sworn_receipts::NodeInfo`] |
//! | `/v1/jobs/{id}` | state, model, prompt, sampling, seed, tokens, layersRoot |
//! | `/v1/jobs/{id}/trace` | every leaf, 32 bytes each, layer-major, as [`sworn_commit::TraceTree::encode`] |
//! | `/v1/offers`, `/v1/channels/…` | payment by receipts, see [`sworn_receipts::wire`]: offers, answers as they are made, receipts and their traces |
//! | `/v1/jobs/{id}/ops/{layer}/{row}` | the outputs of every operator of that row, one after another, as committed; their lengths follow from the program |
//! | `/v1/jobs/{id}/logprobs` | the log-probabilities of every output token with their path to the layers root, as [`sworn_commit::HeadOpening::encode`] |
#![forbid(unsafe_code)]

mod agent;
mod answer;
mod channel;
mod config;
mod error;
mod event;
mod http;
mod journal;
mod known;
mod measure;
pub mod plan;
mod prices;
mod prover;
mod register;
mod work;

pub use agent::Node;
pub use config::{ChannelTerms, NodeConfig, Offer, Registration};
pub use error::{Error, Result};
pub use event::{EventSink, NodeEvent};
pub use prices::{Price, PriceList};
pub use prover::{Conduct, EngineProver, Execution, Honest, Job, Prover};
