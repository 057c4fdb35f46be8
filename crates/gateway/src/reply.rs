//! Responses, in OpenAI's shapes.

use alloy::primitives::B256;
use serde_json::{Value, json};
use sworn_receipts::Tier;

use crate::served::Served;
use crate::text::Told;
use crate::upstream::Finish;

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// What all parts of a response have in common.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// The request's id, which the response's contains.
    pub(crate) request: String,
    pub(crate) created: u64,
    /// As the client named it.
    pub(crate) model: String,
    pub(crate) model_id: B256,
    /// The seed that was used, for a repetition.
    pub(crate) seed: B256,
    pub(crate) logprobs: bool,
}

impl Head {
    fn object(&self, name: &str) -> Value {
        let prefix = if self.kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        json!({
            "id": format!("{prefix}-{}", self.request),
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.model_id,
        })
    }

    /// The whole answer.
    pub(crate) fn whole(&self, text: &str, tokens: &[Told], ending: &Ending) -> Value {
        let finish = ending.finish;
        let (object, choice) = match self.kind {
            Kind::Chat => (
                "chat.completion",
                json!({
                    "index": 0,
                    "message": { "role": "assistant", "content": text, "refusal": null },
                    "logprobs": self.told(tokens),
                    "finish_reason": reason(finish),
                }),
            ),
            Kind::Completion => (
                "text_completion",
                json!({ "index": 0, "text": text, "logprobs": self.told(tokens), "finish_reason": reason(finish) }),
            ),
        };
        let mut body = self.object(object);
        body["choices"] = json!([choice]);
        body["usage"] = ending.usage.shown();
        body["service_tier"] = service_tier(&ending.served);
        body["sworn"] = self.sworn(&ending.served);
        body
    }

    /// A chunk of a streamed answer. `usage` says that the stream's last chunk tells the usage, so that this one says that it does not.
    pub(crate) fn chunk(&self, delta: Delta<'_>, usage: bool) -> Value {
        let (text, tokens, finish): (Option<&str>, &[Told], _) = match delta {
            Delta::Role => (None, &[], None),
            Delta::Text(text, tokens) => (Some(text), tokens, None),
            Delta::Finish(finish, _) => (None, &[], Some(reason(finish))),
        };
        let logprobs = if tokens.is_empty() { Value::Null } else { self.told(tokens) };
        let (object, choice) = match self.kind {
            Kind::Chat => {
                let content = match (&delta, text) {
                    (Delta::Role, _) => json!({ "role": "assistant", "content": "" }),
                    (_, Some(text)) => json!({ "content": text }),
                    _ => json!({}),
                };
                let choice = json!({ "index": 0, "delta": content, "logprobs": logprobs, "finish_reason": finish });
                ("chat.completion.chunk", choice)
            }
            Kind::Completion => (
                "text_completion",
                json!({ "index": 0, "text": text.unwrap_or(""), "logprobs": logprobs, "finish_reason": finish }),
            ),
        };
        let mut body = self.object(object);
        body["choices"] = json!([choice]);
        if usage {
            body["usage"] = Value::Null;
        }
        if let Delta::Finish(_, served) = delta {
            body["service_tier"] = service_tier(served);
            body["sworn"] = self.sworn(served);
        }
        body
    }

    /// The chunk after the last, with the usage alone.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Value {
        let mut body = self.object(if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" });
        body["choices"] = json!([]);
        body["usage"] = usage.shown();
        body
    }

    /// Who answered under which oath, and for how much.
    fn sworn(&self, served: &[Served]) -> Value {
        let last = served.last();
        json!({
            "modelId": self.model_id,
            "seed": self.seed,
            "node": last.map(|s| s.node),
            "channel": last.map(|s| s.channel),
            "price": crate::error::digits(served.iter().fold(0, |sum, s| sum.saturating_add(s.price))),
            "traceRoot": last.map(|s| s.trace_root),
            "receipts": served.iter().map(Served::shown).collect::<Vec<_>>(),
        })
    }

    fn told(&self, tokens: &[Told]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self.kind {
            Kind::Chat => {
                let one =
                    |bytes: &[u8], logprob: f64| json!({ "token": text(bytes), "logprob": logprob, "bytes": bytes });
                let content = tokens.iter().map(|t| {
                    let mut entry = one(&t.bytes, t.logprob);
                    entry["top_logprobs"] = t.top.iter().map(|(b, l)| one(b, *l)).collect();
                    entry
                });
                json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
            }
            Kind::Completion => {
                let top = |t: &Told| t.top.iter().map(|(b, l)| (text(b), json!(l))).collect::<serde_json::Map<_, _>>();
                json!({
                    "tokens": tokens.iter().map(|t| text(&t.bytes)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": tokens.iter().map(|t| t.offset).collect::<Vec<_>>(),
                })
            }
        }
    }
}

/// What a chunk adds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delta<'a> {
    Role,
    Text(&'a str, &'a [Told]),
    Finish(Finish, &'a [Served]),
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// What the last part was sold as, in OpenAI's words.
fn service_tier(served: &[Served]) -> Value {
    let name = served.last().map(|s| match s.tier {
        Tier::Standard => "default",
        Tier::Spot => "flex",
        Tier::Reserved => "priority",
    });
    name.into()
}

/// Tokens of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of the prompt.
    pub(crate) n_in: u32,
    /// Given or paid for, whichever is more: a stop string hides tokens that were paid for, and a node that dies may leave some that are not.
    pub(crate) n_out: u64,
}

impl Usage {
    pub(crate) fn new(n_in: u32, given: u32, served: &[Served]) -> Self {
        let paid = served.iter().map(|s| u64::from(s.n_out)).sum();
        Usage { n_in, n_out: u64::from(given).max(paid) }
    }

    fn shown(self) -> Value {
        let Usage { n_in, n_out } = self;
        json!({ "prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": u64::from(n_in) + n_out })
    }
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) finish: Finish,
    pub(crate) served: Vec<Served>,
    pub(crate) usage: Usage,
}
