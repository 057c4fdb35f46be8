//! The `tokenizer.json` that is built of a GGUF's vocabulary: its bytes are part of the model id, so nothing in it may depend
//! on the order of a hash map.

use std::collections::HashSet;

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};
use serde_json::{Value, json};

use crate::error::{ModelError, Result};

/// Kinds of tokens in a GGUF.
pub(crate) mod kind {
    pub(crate) const NORMAL: i64 = 1;
    pub(crate) const UNKNOWN: i64 = 2;
    pub(crate) const CONTROL: i64 = 3;
    pub(crate) const USER_DEFINED: i64 = 4;
}

pub(super) fn bad(what: String) -> ModelError {
    ModelError::Gguf(format!("tokenizer: {what}"))
}

/// Checks that there is a kind for each token, and that no token is empty or there twice; gives them as a set.
pub(super) fn distinct<'a>(tokens: &'a [String], kinds: &[i64]) -> Result<HashSet<&'a str>> {
    if kinds.len() != tokens.len() {
        return Err(bad(format!("{} tokens with {} kinds", tokens.len(), kinds.len())));
    }
    let mut seen = HashSet::with_capacity(tokens.len());
    for (id, t) in tokens.iter().enumerate() {
        if t.is_empty() || !seen.insert(t.as_str()) {
            return Err(bad(format!("token {id} ({t:?}) is empty or occurs twice")));
        }
    }
    Ok(seen)
}

/// The two halves of every merge, which are tokens, as is what they make.
pub(super) fn merge_pairs<'a>(merges: &'a [String], tokens: &HashSet<&str>) -> Result<Vec<(&'a str, &'a str)>> {
    let mut pairs = Vec::with_capacity(merges.len());
    for m in merges {
        let (a, b) = m.split_once(' ').ok_or_else(|| bad(format!("merge {m:?} is not a pair")))?;
        let known = tokens.contains(a) && tokens.contains(b) && tokens.contains(format!("{a}{b}").as_str());
        if !known {
            return Err(bad(format!("merge {m:?} uses a token that does not exist")));
        }
        pairs.push((a, b));
    }
    Ok(pairs)
}

/// The spelling of the token for characters that have none.
pub(super) fn unknown_token(tokens: &[String], id: Option<u32>) -> Result<Option<&str>> {
    let token = |id: u32| tokens.get(id as usize).ok_or_else(|| bad(format!("unknown token {id} does not exist")));
    Ok(id.map(token).transpose()?.map(String::as_str))
}

/// Tokens that are found in a text before it is cut, as they are.
pub(super) fn added_tokens(tokens: &[String], wanted: impl Fn(usize) -> Option<bool>) -> Vec<Value> {
    let entry = |id: usize| {
        let special = wanted(id)?;
        Some(json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special}))
    };
    (0..tokens.len()).filter_map(entry).collect()
}

#[derive(Serialize)]
pub(super) struct TokenizerFile<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    pub(super) added_tokens: Vec<Value>,
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    post_processor: (),
    pub(super) decoder: Value,
    pub(super) model: Bpe<'a>,
}

impl<'a> TokenizerFile<'a> {
    pub(super) fn new(model: Bpe<'a>, decoder: Value) -> Self {
        TokenizerFile {
            version: "1.0",
            truncation: (),
            padding: (),
            added_tokens: Vec::new(),
            normalizer: None,
            pre_tokenizer: None,
            post_processor: (),
            decoder,
            model,
        }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }
}

#[derive(Serialize)]
pub(super) struct Bpe<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    vocab: InOrder<'a>,
    merges: Pairs<'a>,
}

impl<'a> Bpe<'a> {
    pub(super) fn new(tokens: &'a [String], merges: &'a [(&'a str, &'a str)], unknown: Option<&'a str>) -> Self {
        Bpe {
            kind: "BPE",
            dropout: (),
            unk_token: unknown,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab: InOrder(tokens),
            merges: Pairs(merges),
        }
    }
}

/// Tokens as a map to their ids, in order of the ids.
struct InOrder<'a>(&'a [String]);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let mut m = s.serialize_map(Some(self.0.len()))?;
        for (id, t) in self.0.iter().enumerate() {
            m.serialize_entry(t, &id)?;
        }
        m.end()
    }
}

struct Pairs<'a>(&'a [(&'a str, &'a str)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let mut q = s.serialize_seq(Some(self.0.len()))?;
        for p in self.0 {
            q.serialize_element(p)?;
        }
        q.end()
    }
}
