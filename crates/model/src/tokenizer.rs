//! Text to tokens and back.
//!
//! The `tokenizers` library does the encoding, from a `tokenizer.json` that is built here with deterministic bytes (its hash
//! is part of the model id). Decoding is a table of each token's bytes, so that text can be streamed as it is generated.

use std::collections::HashSet;

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};
use serde_json::json;

use crate::error::{ModelError, Result};

/// Kind of a token in a GGUF.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The 256 characters that stand for bytes in a byte-level vocabulary: printable ones for themselves, the others moved up.
pub(crate) fn byte_characters() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut next = 256u32;
    for b in 0..=255u8 {
        let printable = matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        table[b as usize] = if printable {
            char::from(b)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\u{FFFD}')
        };
    }
    table
}

/// How text is cut into words before byte-pair encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// GPT-2's pattern.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    SmolLm,
    /// Llama 3's pattern: digits in threes.
    Llama3,
    /// Qwen 2's pattern: Llama 3's with single digits.
    Qwen2,
}

impl PreTokenizer {
    /// By the name that GGUF files use.
    ///
    /// # Errors
    /// The name is not known.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gpt-2" | "gpt2" | "default" => Self::Gpt2,
            "smollm" => Self::SmolLm,
            "llama-bpe" | "llama3" | "llama-v3" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            other => {
                return Err(ModelError::unsupported(
                    format!("pre-tokenizer {other:?}"),
                    "supported are gpt-2, default, smollm, llama-bpe, qwen2",
                ));
            }
        })
    }

    fn to_json(self) -> serde_json::Value {
        let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = |digits: &str| {
            let regex = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
        };
        let sequence = |parts: [serde_json::Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => sequence([json!({"type": "Digits", "individual_digits": true}), byte_level(true)]),
            Self::Llama3 => sequence([split(r"\p{N}{1,3}"), byte_level(false)]),
            Self::Qwen2 => sequence([split(r"\p{N}"), byte_level(false)]),
        }
    }
}

/// A byte-level BPE vocabulary.
#[derive(Clone, Debug)]
pub struct Vocabulary<'a> {
    /// Tokens by id.
    pub tokens: &'a [String],
    /// Kinds by id, as GGUF numbers them; 3 are control tokens, 4 are defined by the user.
    pub kinds: &'a [i64],
    /// Merges in order of their rank, the two halves separated by a space.
    pub merges: &'a [String],
    /// How text is cut.
    pub pre: PreTokenizer,
    /// The token for characters that have none.
    pub unknown: Option<u32>,
}

impl Vocabulary<'_> {
    /// The `tokenizer.json` of this vocabulary.
    ///
    /// # Errors
    /// Tokens or merges contradict each other.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let bad = |what: String| ModelError::Gguf(format!("tokenizer: {what}"));
        if self.kinds.len() != self.tokens.len() {
            return Err(bad(format!("{} tokens with {} kinds", self.tokens.len(), self.kinds.len())));
        }
        let mut seen = HashSet::with_capacity(self.tokens.len());
        for (id, t) in self.tokens.iter().enumerate() {
            if t.is_empty() || !seen.insert(t.as_str()) {
                return Err(bad(format!("token {id} ({t:?}) is empty or occurs twice")));
            }
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        for m in self.merges {
            let (a, b) = m.split_once(' ').ok_or_else(|| bad(format!("merge {m:?} is not a pair")))?;
            let known = seen.contains(a) && seen.contains(b) && seen.contains(format!("{a}{b}").as_str());
            if !known {
                return Err(bad(format!("merge {m:?} uses a token that does not exist")));
            }
            merges.push((a, b));
        }
        let unknown = match self.unknown {
            None => None,
            Some(id) => {
                Some(self.tokens.get(id as usize).ok_or_else(|| bad(format!("unknown token {id} does not exist")))?)
            }
        };
        let added: Vec<_> = (0..self.tokens.len())
            .filter(|id| matches!(self.kinds[*id], CONTROL | USER_DEFINED))
            .map(|id| {
                json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": self.kinds[id] == CONTROL})
            })
            .collect();
        let file = TokenizerFile {
            version: "1.0",
            truncation: (),
            padding: (),
            added_tokens: added,
            normalizer: (self.pre == PreTokenizer::Qwen2).then(|| json!({"type": "NFC"})),
            pre_tokenizer: self.pre.to_json(),
            post_processor: (),
            decoder: json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
            model: Bpe {
                kind: "BPE",
                dropout: (),
                unk_token: unknown.map(String::as_str),
                continuing_subword_prefix: (),
                end_of_word_suffix: (),
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: self.pre == PreTokenizer::Llama3,
                vocab: InOrder(self.tokens),
                merges: Pairs(&merges),
            },
        };
        serde_json::to_vec(&file).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }
}

#[derive(Serialize)]
struct TokenizerFile<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<serde_json::Value>,
    normalizer: Option<serde_json::Value>,
    pre_tokenizer: serde_json::Value,
    post_processor: (),
    decoder: serde_json::Value,
    model: Bpe<'a>,
}

#[derive(Serialize)]
struct Bpe<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: InOrder<'a>,
    merges: Pairs<'a>,
}

/// Tokens as a map to their ids, in order of the ids: the bytes must not depend on a hash map.
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

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// Token `i` is `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<u32>,
    special: HashSet<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {} special)", self.len(), self.special.len())
    }
}

impl Tokenizer {
    /// Loads a `tokenizer.json` of a byte-level BPE.
    ///
    /// # Errors
    /// The file is damaged or of another kind.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| ModelError::Tokenizer(format!("{} cannot be read: {e}", crate::directory::TOKENIZER)))?;
        let added = inner.get_added_tokens_decoder();
        let mut vocab: Vec<(u32, String)> = inner.get_vocab(true).into_iter().map(|(t, id)| (id, t)).collect();
        vocab.sort_unstable();
        let byte_of: std::collections::HashMap<char, u8> = byte_characters().into_iter().zip(0..=255u8).collect();
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for (i, (id, token)) in vocab.iter().enumerate() {
            if *id as usize != i {
                return Err(ModelError::Tokenizer(format!("token {i} is missing or occurs twice")));
            }
            if added.contains_key(id) {
                bytes.extend(token.as_bytes());
            } else {
                for c in token.chars() {
                    match byte_of.get(&c) {
                        Some(b) => bytes.push(*b),
                        // A token outside the byte alphabet stands for itself.
                        None => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            starts.push(
                u32::try_from(bytes.len()).map_err(|_| ModelError::Tokenizer("the vocabulary is too large".into()))?,
            );
        }
        let special = added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        Ok(Tokenizer { inner, bytes, starts, special })
    }

    /// Tokens there are.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of a text. Special tokens that are written out in it are recognised; none is added.
    ///
    /// # Errors
    /// The library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Bytes that a token stands for; none for ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        match (self.starts.get(id as usize), self.starts.get(id as usize + 1)) {
            (Some(a), Some(b)) => &self.bytes[*a as usize..*b as usize],
            _ => &[],
        }
    }

    /// Whether a token is a control token rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The text of tokens, with or without the special ones. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], with_special: bool) -> String {
        let mut stream = self.stream(with_special);
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Decodes token by token.
    pub fn stream(&self, with_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, with_special, pending: Vec::new() }
    }
}

/// Turns tokens into pieces of text as they come. Concatenated, the pieces are [`Tokenizer::decode`] of all tokens; each piece is
/// whole characters, so a character that spans tokens appears with its last one.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    with_special: bool,
    /// The beginning of a character whose rest has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl TextStream<'_> {
    /// The text that this token completes; often empty in the middle of a character.
    pub fn push(&mut self, id: u32) -> String {
        if !self.with_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.pending.extend_from_slice(self.tokenizer.token_bytes(id));
        let mut text = String::new();
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(s) => {
                    text.push_str(s);
                    rest = &[];
                }
                Err(e) => {
                    let (good, bad) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(good));
                    rest = bad;
                    if let Some(n) = e.error_len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &bad[n..];
                        continue;
                    }
                }
            }
            break;
        }
        self.pending = rest.to_vec();
        text
    }

    /// What is left when no token follows: U+FFFD for an unfinished character.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens() -> (Vec<String>, Vec<i64>, Vec<String>) {
        let mut tokens = vec!["<|end|>".to_owned()];
        tokens.extend(byte_characters().map(String::from));
        tokens.extend(["in", "ing", "Ġt"].map(String::from));
        let mut kinds = vec![1; tokens.len()];
        kinds[0] = CONTROL;
        (tokens, kinds, ["i n", "in g", "Ġ t"].map(String::from).to_vec())
    }

    fn tokenizer(pre: PreTokenizer) -> Tokenizer {
        let (tokens, kinds, merges) = tokens();
        let v = Vocabulary { tokens: &tokens, kinds: &kinds, merges: &merges, pre, unknown: None };
        assert_eq!(v.to_json().unwrap(), v.to_json().unwrap());
        Tokenizer::from_json(&v.to_json().unwrap()).unwrap()
    }

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let all: HashSet<char> = byte_characters().into_iter().collect();
        assert_eq!(all.len(), 256);
        assert_eq!((byte_characters()[b' ' as usize], byte_characters()[b'\n' as usize]), ('Ġ', 'Ċ'));
    }

    #[test]
    fn merges_and_special_tokens() {
        let t = tokenizer(PreTokenizer::Gpt2);
        assert_eq!(t.encode("ing").unwrap(), [258]);
        assert_eq!(t.encode("a<|end|>").unwrap(), [1 + 97, 0]);
        assert!(t.is_special(0) && !t.is_special(5));
        assert_eq!(t.decode(&[98, 0], true), "a<|end|>");
        assert_eq!(t.decode(&[98, 0], false), "a");
        assert_eq!(t.decode(&[98, 4_000_000], true), "a");
    }

    #[test]
    fn digits_are_cut_as_named() {
        let (mut tokens, mut kinds, mut merges) = tokens();
        tokens.extend(["12", "123"].map(String::from));
        kinds.extend([1, 1]);
        merges.extend(["1 2", "12 3"].map(String::from));
        let count = |pre| {
            let v = Vocabulary { tokens: &tokens, kinds: &kinds, merges: &merges, pre, unknown: None };
            Tokenizer::from_json(&v.to_json().unwrap()).unwrap().encode("1231").unwrap().len()
        };
        assert_eq!(count(PreTokenizer::Gpt2), 2);
        assert_eq!(count(PreTokenizer::SmolLm), 4);
        assert_eq!(count(PreTokenizer::Llama3), 2);
        assert_eq!(count(PreTokenizer::Qwen2), 4);
    }

    #[test]
    fn contradictions_are_errors() {
        let (tokens, kinds, _) = tokens();
        let json = |tokens: &[String], kinds: &[i64], merges: &[&str], unknown| {
            let merges: Vec<_> = merges.iter().map(|m| (*m).to_owned()).collect();
            Vocabulary { tokens, kinds, merges: &merges, pre: PreTokenizer::Gpt2, unknown }.to_json()
        };
        assert!(json(&tokens, &kinds[1..], &[], None).is_err());
        assert!(json(&tokens, &kinds, &["in"], None).is_err());
        assert!(json(&tokens, &kinds, &["x y"], None).is_err());
        assert!(json(&tokens, &kinds, &[], Some(999)).is_err());
        let twice: Vec<_> = tokens.iter().map(|_| "a".to_owned()).collect();
        assert!(json(&twice, &kinds, &[], None).is_err());
        assert!(PreTokenizer::from_name("deepseek-llm").is_err());
        assert!(Tokenizer::from_json(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn text_round_trips_and_streams(text in ".{0,40}") {
            for pre in [PreTokenizer::Gpt2, PreTokenizer::SmolLm, PreTokenizer::Llama3] {
                let t = tokenizer(pre);
                let ids = t.encode(&text).unwrap();
                prop_assert_eq!(t.decode(&ids, true), text.clone());
            }
        }

        #[test]
        fn any_tokens_decode_as_their_bytes_do(ids in proptest::collection::vec(1u32..260, 0..60)) {
            let t = tokenizer(PreTokenizer::Gpt2);
            let bytes: Vec<u8> = ids.iter().flat_map(|i| t.token_bytes(*i).to_vec()).collect();
            prop_assert_eq!(t.decode(&ids, true), String::from_utf8_lossy(&bytes));
        }
    }
}
