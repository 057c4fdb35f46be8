//! Where answers come from, as the OpenAI side sees it: tokens one after another, then what was paid for them.

use std::pin::Pin;
use std::sync::Arc;

use alloy::primitives::{Address, B256};
use sworn_isa::Sampling;
use sworn_receipts::{NodeInfo, Tier};
use tokio::sync::{mpsc, watch};

use crate::error::ApiError;
use crate::served::Served;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The request's id, for logs.
    pub request: String,
    /// The model.
    pub model: B256,
    /// Prompt tokens, at least one.
    pub prompt: Arc<[u32]>,
    /// Most output tokens, at least one.
    pub max_new: u32,
    /// How tokens are selected.
    pub sampling: Sampling,
    /// Seed of the noise; zero without a temperature.
    pub seed: B256,
    /// Tokens that end an answer.
    pub stop: Arc<[u32]>,
    /// As what to buy it, from nodes that sell that; as a standard request from others.
    pub tier: Tier,
    /// How many likely tokens to tell the probability of beside the chosen one's; none: no probabilities.
    pub logprobs: Option<u8>,
}

/// A token of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: u32,
    /// Its probability, if it was asked for and the model tells.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities, in the model's fixed point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logprobs {
    /// The chosen token's, in Q14, at most 0.
    pub chosen: i32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, i32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With a stop token, or where it was told to end.
    Stop,
    /// At its greatest length.
    Length,
}

/// What happens while an answer is given.
#[derive(Clone, Debug)]
pub enum Event {
    /// The next token.
    Token(Token),
    /// The end, and who gave which part of it for how much.
    Done(Finish, Vec<Served>),
    /// No more will come.
    Failed(ApiError),
}

/// An answer under way. Dropping it says that nobody reads any more: the answer is ended with the tokens that were given.
#[derive(Debug)]
pub struct Answer {
    /// What happens.
    pub events: mpsc::Receiver<Event>,
    end: watch::Sender<Option<u32>>,
}

/// The other end of an [`Answer`].
#[derive(Debug)]
pub struct Asked {
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// After how many tokens to end, once it is known.
    pub end: watch::Receiver<Option<u32>>,
}

impl Answer {
    /// Both ends of an answer; `ahead` events may wait.
    pub fn pair(ahead: usize) -> (Answer, Asked) {
        let (to, events) = mpsc::channel(ahead.max(1));
        let (end, ends) = watch::channel(None);
        (Answer { events, end }, Asked { events: to, end: ends })
    }

    /// The answer is to end with its `tokens`-th token.
    pub fn end_at(&self, tokens: u32) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(tokens);
            }
            first
        });
    }
}

/// A future that is not named.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Gives answers.
pub trait Upstream: Send + Sync {
    /// Begins an answer. Refusals that are known before the first token are errors; later ones are [`Event::Failed`].
    fn ask(&self, question: Question) -> Later<'_, Result<Answer, ApiError>>;

    /// Whether somebody could answer for this model now; otherwise why not.
    fn ready(&self, model: B256) -> Result<(), ApiError>;

    /// What it would cost and from whom, for the list of models.
    fn describe(&self, model: B256) -> serde_json::Value;

    /// A kept receipt file.
    fn receipt(&self, digest: B256) -> Result<Option<serde_json::Value>, ApiError>;

    /// What a node says of itself, or why it is not known.
    fn node(&self, node: Address) -> Later<'_, Result<NodeInfo, String>>;
}
