//! The gateway: OpenAI's HTTP API in front of nodes that answer under oath.
//!
//! **Owns** OpenAI's request and response shapes, text from tokens as it comes with stop strings, the choice of a node, failover, and
//! the payment from channels with everything that it must remember. **May depend on** `receipts`, `model`, `chain`, `bindings`. **Must
//! never** execute a model, hold a wallet's key longer than a deposit needs, pay for an answer whose receipt it has not checked, or
//! give out text that a stop string may still take back.
//!
//! # HTTP
//!
//! Bodies and errors are OpenAI's; `model` is a name or an id of [`Config::models`]. With API keys, what is below `/v1` wants one as a
//! bearer token. Every response has an `x-request-id`, the caller's if it sends one.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/models`, `GET /v1/models/{name}` | models; `sworn` has id, context, whether it samples, and every node's offer |
//! | `POST /v1/chat/completions`, `POST /v1/completions` | an answer or its stream (`stream`, `stream_options`, `stop`, `temperature`, `top_p`, `seed`, `max_tokens`, `logprobs`); `sworn` has node, price, trace root and receipts, `x-sworn-receipt` the last one's digest. Without a channel that pays: 402 with `accepts` |
//! | `GET /v1/receipts/{digest}` | a receipt's file, which `sworn audit` and `sworn dispute lodge` take |
//! | `GET /v1/nodes/{address}` | `info`: what a node with an open channel says of itself, its `/v1/info`; or `why` it is not known |
//! | `GET /health` | `{"status": "ok"}` |
//! | `GET /ready` | per model whether somebody answers, and why not; 503 if any has nobody |
//! | `GET /metrics` | Prometheus' text format |
//! | `GET /`, `GET /page.json` | the page, and what it is told of the deployment |
#![forbid(unsafe_code)]

mod answer;
mod config;
mod cors;
mod error;
mod fields;
mod file;
mod follow;
mod ledger;
mod measure;
mod page;
mod part;
mod peer;
mod reconcile;
mod reply;
mod request;
mod router;
mod score;
pub mod selection;
mod served;
mod server;
pub mod stop;
mod text;
mod upstream;

pub use config::{Config, Limits, Offered};
pub use error::{ApiError, PaymentOption};
pub use file::{FORMAT, ReceiptFile};
pub use follow::Follower;
pub use page::Page;
pub use peer::ChannelInfo;
pub use router::{Purse, Router, RouterConfig};
pub use score::Record;
pub use served::Served;
pub use server::Gateway;
pub use upstream::{Answer, Asked, Event, Finish, Later, Logprobs, Question, Token, Upstream};

/// Reads a body as a conversation and as a completion, and forgets it: for fuzzing, which must reach what only the server calls.
#[doc(hidden)]
pub fn read_body(body: &[u8]) {
    if let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) {
        let _ = request::Ask::chat(body.clone());
        let _ = request::Ask::completion(body);
    }
}
