//! What a client asks, read from OpenAI's request bodies. Whatever would change the answer and cannot be done is refused; whatever
//! says nothing about the answer is let pass.

use alloy::primitives::{B256, I256, U256};
use serde_json::Value;
use sworn_isa::Sampling;
use sworn_model::{Message, Model, ModelError};
use sworn_receipts::Tier;

use crate::error::ApiError;
use crate::fields::{Fields, out_of_range, unsupported, wrong_type};
use crate::selection::{Selection, samples};

type Result<T> = std::result::Result<T, ApiError>;

/// OpenAI's bound.
const MOST_STOPS: usize = 4;
/// OpenAI's bound for conversations; completions have 5, which this extends.
const MOST_LOGPROBS: u64 = 20;
/// OpenAI's default of `/v1/completions`.
const COMPLETION_TOKENS: u32 = 16;
/// Fields that name the caller's own business.
const NEUTRAL: [&str; 5] = ["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// A request of either kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) model: String,
    pub(crate) input: Input,
    selection: Selection,
    seed: Option<B256>,
    pub(crate) max_new: Option<u32>,
    pub(crate) stops: Vec<String>,
    /// Whether the answer comes in pieces, and whether the last says what was used.
    pub(crate) stream: Option<bool>,
    pub(crate) logprobs: Option<u8>,
    pub(crate) tier: Tier,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    Chat(Vec<Message>),
    Text(String),
    Tokens(Vec<u32>),
}

/// A request in the model's terms.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_new: u32,
    pub(crate) sampling: Sampling,
    pub(crate) seed: B256,
}

impl Ask {
    /// The body of `/v1/chat/completions`.
    pub(crate) fn chat(body: Value) -> Result<Self> {
        let mut f = Fields::new(body, "")?;
        let messages = messages(f.need("messages")?)?;
        let (old, new) = (whole32(&mut f, "max_tokens", 1)?, whole32(&mut f, "max_completion_tokens", 1)?);
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            return Err(unsupported("max_tokens", "max_completion_tokens says another number: give one of them"));
        }
        let told = f.flag("logprobs")?.unwrap_or(false);
        let top = f.whole("top_logprobs", 0..=MOST_LOGPROBS)?;
        if top.is_some_and(|n| n > 0) && !told {
            return Err(unsupported("top_logprobs", "it needs logprobs to be true"));
        }
        let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
        f.only("tools", empty, "no tools are called here")?;
        f.only("functions", empty, "no functions are called here")?;
        f.only("tool_choice", |v| v == "none" || v == "auto", "no tools are called here")?;
        f.only("function_call", |v| v == "none" || v == "auto", "no functions are called here")?;
        f.only("parallel_tool_calls", Value::is_boolean, "no tools are called here")?;
        f.only("modalities", |v| *v == serde_json::json!(["text"]), "answers are text")?;
        f.only("audio", |_| false, "answers are text")?;
        f.only("response_format", |v| v["type"] == "text", "answers are free text")?;
        f.only("prediction", |_| false, "nothing is predicted")?;
        f.only("web_search_options", |_| false, "nothing is searched")?;
        f.only("reasoning_effort", |_| false, "models take no effort")?;
        f.only("verbosity", |v| v == "medium", "models take no verbosity")?;
        f.only("store", |v| v == false, "conversations are not stored")?;
        Self::common(f, Input::Chat(messages), old.or(new), told.then(|| top.unwrap_or(0) as u8))
    }

    /// The body of `/v1/completions`.
    pub(crate) fn completion(body: Value) -> Result<Self> {
        let mut f = Fields::new(body, "")?;
        let input = prompt(f.need("prompt")?)?;
        let max_new = whole32(&mut f, "max_tokens", 1)?.unwrap_or(COMPLETION_TOKENS);
        let logprobs = f.whole("logprobs", 0..=MOST_LOGPROBS)?.map(|n| n as u8);
        f.only("echo", |v| v == false, "the prompt is not repeated")?;
        f.only("suffix", |v| v == "", "nothing is inserted before a suffix")?;
        f.only("best_of", |v| v == 1, "one answer is computed")?;
        Self::common(f, input, Some(max_new), logprobs)
    }

    fn common(mut f: Fields, input: Input, max_new: Option<u32>, logprobs: Option<u8>) -> Result<Self> {
        let model = match f.need("model")? {
            Value::String(s) => s,
            other => return Err(wrong_type("model", "a string", &other)),
        };
        f.only("n", |v| v == 1, "one answer is given to a request")?;
        f.only("presence_penalty", |v| v.as_f64() == Some(0.0), "repetition_penalty is what models here can do")?;
        f.only("frequency_penalty", |v| v.as_f64() == Some(0.0), "repetition_penalty is what models here can do")?;
        f.only("logit_bias", |v| v.as_object().is_some_and(serde_json::Map::is_empty), "no token is favoured")?;
        let temperature = f.number("temperature")?;
        if let Some(t) = temperature.filter(|t| !(0.0..=2.0).contains(t)) {
            return Err(out_of_range("temperature", &t, "from 0 to 2"));
        }
        // OpenAI's 0 means the likeliest token alone, as does the least that there is here.
        let top_p = f.number("top_p")?.map(|p| if p == 0.0 { 1.0 / 65536.0 } else { p });
        let selection = Selection {
            temperature,
            top_p,
            top_k: f.whole("top_k", 0..=(1 << 20) - 1)?.map(|k| k as u32),
            min_p: f.number("min_p")?,
            penalty: f.number("repetition_penalty")?,
        };
        let seed = f.take("seed").map(|v| seed(&v)).transpose()?;
        let stops = stops(f.take("stop"))?;
        let stream = f.flag("stream")?.unwrap_or(false);
        let mut usage = false;
        if let Some(options) = f.take("stream_options") {
            if !stream {
                return Err(unsupported("stream_options", "it is only allowed when stream is true"));
            }
            let mut options = Fields::new(options, "stream_options")?;
            usage = options.flag("include_usage")?.unwrap_or(false);
            // Padding against readers of lengths; none is added either way.
            options.ignore(&["include_obfuscation"]);
            options.end()?;
        }
        let tier = f.take("service_tier").map(|v| tier(&v)).transpose()?.unwrap_or_default();
        f.ignore(&NEUTRAL);
        f.end()?;
        Ok(Ask { model, input, selection, seed, max_new, stops, stream: stream.then_some(usage), logprobs, tier })
    }

    /// Tokens and parameters for a model. `most` bounds what is generated when the client names no number.
    pub(crate) fn encode(&self, model: &Model, most: u32) -> Result<Encoded> {
        let (prompt, at) = match &self.input {
            Input::Chat(messages) => {
                if !model.chat().is_present() {
                    return Err(unsupported("messages", "this model has no chat template: use /v1/completions"));
                }
                (model.encode_chat(messages).map_err(|e| unencodable(&e, "messages"))?, "messages")
            }
            Input::Text(text) => (model.encode_text(text).map_err(|e| unencodable(&e, "prompt"))?, "prompt"),
            Input::Tokens(tokens) => (tokens.clone(), "prompt"),
        };
        let vocab = model.manifest().vocab;
        if prompt.is_empty() {
            return Err(ApiError::invalid(at, "invalid_value", format!("{at} is empty: it has no tokens")));
        }
        if let Some(token) = prompt.iter().find(|t| **t >= vocab) {
            return Err(out_of_range(at, token, &format!("tokens below {vocab}")));
        }
        // The last token selected is not executed itself, so one more fits; as OpenAI counts, it does not.
        let context = u64::from(model.manifest().max_positions);
        let n_in = prompt.len() as u64;
        let room = context.saturating_sub(n_in);
        let wanted = self.max_new.map_or(u64::from(most).min(room), u64::from);
        if room == 0 || wanted > room {
            let message = format!(
                "This model's maximum context length is {context} tokens. However, you requested {} tokens ({n_in} in the {at}, {wanted} in the completion).",
                n_in + wanted
            );
            return Err(ApiError::invalid(at, "context_length_exceeded", message));
        }
        let sampling = self.sampling(model)?;
        let seed = match self.seed {
            _ if sampling.inverse_temperature == 0 => B256::ZERO,
            Some(seed) => seed,
            None => random()?,
        };
        Ok(Encoded { prompt, max_new: wanted as u32, sampling, seed })
    }

    fn sampling(&self, model: &Model) -> Result<Sampling> {
        let able = samples(model);
        let mut selection = self.selection;
        if able {
            // OpenAI's default.
            selection.temperature = Some(selection.temperature.unwrap_or(1.0));
        } else if selection.temperature.is_none_or(|t| t == 0.0) && selection.penalty.is_none_or(|p| p == 1.0) {
            // Always the most likely token, which no cut removes.
            selection = Selection { temperature: Some(0.0), ..Selection::default() };
        } else {
            let param = if selection.penalty.is_some() { "repetition_penalty" } else { "temperature" };
            return Err(unsupported(param, "this model always takes the most likely token"));
        }
        selection.parameters().map_err(|e| {
            let param = if e.field == "penalty" { "repetition_penalty" } else { e.field };
            out_of_range(param, &e.value, e.range)
        })
    }
}

fn unencodable(e: &ModelError, param: &str) -> ApiError {
    ApiError::invalid(param, "invalid_value", format!("{param} cannot be given to this model: {e}"))
}

fn random() -> Result<B256> {
    use rand::TryRngCore;
    let mut seed = B256::ZERO;
    rand::rngs::OsRng.try_fill_bytes(&mut seed.0).map_err(|e| ApiError::internal(&e))?;
    Ok(seed)
}

fn whole32(f: &mut Fields, key: &str, least: u64) -> Result<Option<u32>> {
    Ok(f.whole(key, least..=u64::from(u32::MAX))?.map(|n| n as u32))
}

/// OpenAI's names of tiers: `flex` may be preempted and is cheaper, `priority` has places held for it.
fn tier(value: &Value) -> Result<Tier> {
    match value.as_str() {
        Some("auto" | "default" | "scale") => Ok(Tier::Standard),
        Some("flex") => Ok(Tier::Spot),
        Some("priority") => Ok(Tier::Reserved),
        Some(other) => Err(out_of_range("service_tier", &other, "auto, default, flex or priority")),
        None => Err(wrong_type("service_tier", "a string", value)),
    }
}

/// Any integer of 64 bits; or, beyond OpenAI's, all 32 bytes in hexadecimal.
fn seed(value: &Value) -> Result<B256> {
    let hex = value.as_str().and_then(|s| s.strip_prefix("0x")).filter(|s| s.len() == 64).and_then(|s| s.parse().ok());
    let number = value.as_u64().map(|n| B256::from(U256::from(n)));
    let negative = value.as_i64().and_then(|n| I256::try_from(n).ok()).map(|n| B256::from(n.into_raw()));
    match number.or(negative).or(hex) {
        Some(seed) => Ok(seed),
        None if value.is_number() => Err(out_of_range("seed", value, "an integer of 64 bits")),
        None => Err(wrong_type("seed", "an integer", value)),
    }
}

fn stops(value: Option<Value>) -> Result<Vec<String>> {
    let stops = match value {
        None => Vec::new(),
        Some(Value::String(s)) => vec![s],
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|v| match v {
                Value::String(s) => Ok(s),
                other => Err(wrong_type("stop", "strings", &other)),
            })
            .collect::<Result<_>>()?,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if stops.len() > MOST_STOPS {
        return Err(out_of_range("stop", &stops.len(), "at most 4 strings"));
    }
    if stops.iter().any(String::is_empty) {
        return Err(out_of_range("stop", &"\"\"", "a string that is not empty"));
    }
    Ok(stops)
}

fn prompt(value: Value) -> Result<Input> {
    match value {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(mut list) if list.len() == 1 && (list[0].is_string() || list[0].is_array()) => {
            prompt(list.swap_remove(0))
        }
        Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_number) => {
            let token = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
            let tokens = list.iter().map(|v| token(v).ok_or_else(|| out_of_range("prompt", v, "tokens")));
            Ok(Input::Tokens(tokens.collect::<Result<_>>()?))
        }
        Value::Array(_) => {
            Err(unsupported("prompt", "one prompt is answered at a time: a string, or an array of tokens"))
        }
        other => Err(wrong_type("prompt", "a string or an array of tokens", &other)),
    }
}

fn messages(value: Value) -> Result<Vec<Message>> {
    let Value::Array(list) = value else { return Err(wrong_type("messages", "an array", &value)) };
    if list.is_empty() {
        return Err(out_of_range("messages", &"[]", "at least one message"));
    }
    list.into_iter().enumerate().map(|(i, m)| message(m, &format!("messages[{i}]"))).collect()
}

fn message(value: Value, at: &str) -> Result<Message> {
    let mut f = Fields::new(value, at)?;
    let role = match f.need("role")? {
        Value::String(role) => role,
        other => return Err(wrong_type(&f.path("role"), "a string", &other)),
    };
    let role = match role.as_str() {
        "developer" | "system" => "system",
        "user" => "user",
        "assistant" => "assistant",
        _ => return Err(unsupported(f.path("role"), "a turn is the system's, the user's or the assistant's")),
    };
    let content = content(f.need("content")?, &f.path("content"))?;
    let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty) || v == "";
    // What clients send back of an assistant's message as they got it.
    for key in ["name", "refusal", "annotations", "audio", "tool_calls", "function_call"] {
        f.only(key, empty, "a turn is its text")?;
    }
    f.end()?;
    Ok(Message::new(role, content))
}

fn content(value: Value, at: &str) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| {
                let mut f = Fields::new(part, &format!("{at}[{i}]"))?;
                if f.need("type")? != "text" {
                    return Err(unsupported(f.path("type"), "models here read text only"));
                }
                let text = f.text("text")?.unwrap_or_default();
                f.end()?;
                Ok(text)
            })
            .collect(),
        other => Err(wrong_type(at, "a string or an array of parts", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(extra: Value) -> Result<Ask> {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Ask::chat(body)
    }

    #[test]
    fn all_of_a_request_is_read() {
        let ask = chat(json!({
            "messages": [
                { "role": "developer", "content": [{ "type": "text", "text": "be " }, { "type": "text", "text": "brief" }] },
                { "role": "user", "content": "hi" },
                { "role": "assistant", "content": "yes", "refusal": null, "tool_calls": [] },
            ],
            "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "seed": -1, "n": 1,
            "max_completion_tokens": 9, "stop": ["a", "b"], "stream": true, "stream_options": { "include_usage": true },
            "logprobs": true, "top_logprobs": 3, "user": "u", "metadata": {}, "presence_penalty": 0, "tools": [],
            "response_format": { "type": "text" }, "logit_bias": {}, "service_tier": "flex",
        }))
        .unwrap();
        let turns = [("system", "be brief"), ("user", "hi"), ("assistant", "yes")];
        assert_eq!(ask.input, Input::Chat(turns.map(|(r, c)| Message::new(r, c)).to_vec()));
        assert_eq!((ask.max_new, ask.stream, ask.logprobs, ask.tier), (Some(9), Some(true), Some(3), Tier::Spot));
        assert_eq!((ask.seed, ask.stops.len()), (Some(B256::repeat_byte(0xff)), 2));
        let want = Selection {
            temperature: Some(0.5),
            top_k: Some(40),
            top_p: Some(0.9),
            min_p: Some(0.1),
            penalty: Some(1.1),
        };
        assert_eq!(ask.selection, want);
        let plain = chat(json!({ "stop": null, "temperature": null, "stream": false })).unwrap();
        assert_eq!((plain.max_new, plain.stream, plain.logprobs, plain.seed), (None, None, None, None));
    }

    #[test]
    fn slips_name_their_parameter() {
        for (extra, param, code) in [
            (json!({ "temprature": 1 }), "temprature", "unknown_parameter"),
            (json!({ "temperature": 2.1 }), "temperature", "invalid_value"),
            (json!({ "temperature": "hot" }), "temperature", "invalid_type"),
            (json!({ "max_tokens": 0 }), "max_tokens", "invalid_value"),
            (json!({ "max_tokens": 1.5 }), "max_tokens", "invalid_value"),
            (json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_tokens", "unsupported_parameter"),
            (json!({ "n": 2 }), "n", "unsupported_parameter"),
            (json!({ "service_tier": "first" }), "service_tier", "invalid_value"),
            (json!({ "stop": ["1", "2", "3", "4", "5"] }), "stop", "invalid_value"),
            (json!({ "stop": "" }), "stop", "invalid_value"),
            (json!({ "stop": [1] }), "stop", "invalid_type"),
            (json!({ "tools": [{}] }), "tools", "unsupported_parameter"),
            (json!({ "response_format": { "type": "json_object" } }), "response_format", "unsupported_parameter"),
            (json!({ "top_logprobs": 2 }), "top_logprobs", "unsupported_parameter"),
            (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs", "invalid_value"),
            (json!({ "stream_options": {} }), "stream_options", "unsupported_parameter"),
            (json!({ "stream": true, "stream_options": { "x": 1 } }), "stream_options.x", "unknown_parameter"),
            (json!({ "seed": 1.5 }), "seed", "invalid_value"),
            (json!({ "seed": "7" }), "seed", "invalid_type"),
            (json!({ "logit_bias": { "5": 1 } }), "logit_bias", "unsupported_parameter"),
            (json!({ "frequency_penalty": 0.1 }), "frequency_penalty", "unsupported_parameter"),
            (json!({ "model": 7 }), "model", "invalid_type"),
            (json!({ "model": null }), "model", "missing_required_parameter"),
            (json!({ "messages": [] }), "messages", "invalid_value"),
            (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "messages[0].role", "unsupported_parameter"),
            (json!({ "messages": [{ "role": "user" }] }), "messages[0].content", "missing_required_parameter"),
            (
                json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
                "messages[0].content[0].type",
                "unsupported_parameter",
            ),
        ] {
            let e = chat(extra.clone()).unwrap_err();
            assert_eq!((e.param.as_deref(), e.code), (Some(param), code), "{extra}: {e}");
            assert_eq!(e.body()["error"]["type"], "invalid_request_error");
        }
        assert_eq!(Ask::chat(json!([])).unwrap_err().code, "invalid_type");
    }

    #[test]
    fn completions_take_text_or_tokens() {
        let ask = |prompt: Value| Ask::completion(json!({ "model": "m", "prompt": prompt }));
        assert_eq!(ask(json!("a")).unwrap().input, Input::Text("a".into()));
        assert_eq!(ask(json!(["a"])).unwrap().input, Input::Text("a".into()));
        assert_eq!(ask(json!([1, 2])).unwrap().input, Input::Tokens(vec![1, 2]));
        assert_eq!(ask(json!([[1, 2]])).unwrap().input, Input::Tokens(vec![1, 2]));
        assert_eq!(ask(json!("a")).unwrap().max_new, Some(16));
        for wrong in
            [json!(["a", "b"]), json!([]), json!([-1]), json!([4294967296u64]), json!(7), json!({}), json!(null)]
        {
            assert!(ask(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
