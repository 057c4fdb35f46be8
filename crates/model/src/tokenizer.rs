//! Text to tokens and back.
//!
//! The `tokenizers` library does the encoding, from a `tokenizer.json`: a Hugging Face directory's own, or one that is built here
//! of a GGUF's vocabulary with deterministic bytes (its hash is part of the model id). Decoding is a table of each token's bytes,
//! so that text can be streamed as it is generated.

mod file;
mod pretokenizer;
mod sentencepiece;
mod spelling;
mod vocabulary;

use std::collections::HashSet;

pub(crate) use file::kind;
pub use pretokenizer::PreTokenizer;
pub use sentencepiece::SentencePiece;
use spelling::Spelling;
pub use vocabulary::Vocabulary;
pub(crate) use vocabulary::byte_characters;

use crate::error::{ModelError, Result};

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// Token `i` is `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<u32>,
    special: HashSet<u32>,
    /// Whether a space at the very beginning of a decoded text is dropped: the encoder put it there.
    drops_space: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {} special)", self.len(), self.special.len())
    }
}

impl Tokenizer {
    /// Loads a `tokenizer.json` of a byte-level or a SentencePiece BPE.
    ///
    /// # Errors
    /// The file is damaged or of another kind.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let unread = |e: &dyn std::fmt::Display| {
            ModelError::Tokenizer(format!("{} cannot be read: {e}", crate::directory::TOKENIZER))
        };
        // Read as plain JSON first: the library does not expect a decoder that is none.
        let file: serde_json::Value = serde_json::from_slice(json).map_err(|e| unread(&e))?;
        let spelling = Spelling::of(&file["decoder"])?;
        drop(file);
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| unread(&e))?;
        // Published files may carry settings of somebody's training: a prompt is neither cut nor filled up.
        inner.with_truncation(None).map_err(|e| unread(&e))?.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let mut vocab: Vec<(u32, String)> = inner.get_vocab(true).into_iter().map(|(t, id)| (id, t)).collect();
        vocab.sort_unstable();
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for (i, (id, token)) in vocab.iter().enumerate() {
            if *id as usize != i {
                return Err(ModelError::Tokenizer(format!("token {i} is missing or occurs twice")));
            }
            spelling.spell(token, added.contains_key(id), &mut bytes);
            starts.push(
                u32::try_from(bytes.len()).map_err(|_| ModelError::Tokenizer("the vocabulary is too large".into()))?,
            );
        }
        let special = added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        Ok(Tokenizer { inner, bytes, starts, special, drops_space: spelling.drops_space() })
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

    /// The token that the file itself puts before every text, if it does.
    pub(crate) fn prefix(&self) -> Result<Option<u32>> {
        let ids = |special| -> Result<Vec<u32>> {
            let encoding = self.inner.encode_fast("a", special).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
            Ok(encoding.get_ids().to_vec())
        };
        let (bare, whole) = (ids(false)?, ids(true)?);
        Ok(whole.first().copied().filter(|_| whole.len() > bare.len() && whole.first() != bare.first()))
    }

    /// Ids of the control tokens, in ascending order.
    pub(crate) fn special(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.special.iter().copied().collect();
        ids.sort_unstable();
        ids
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

    /// The text of tokens, with or without the special ones. Bytes that are no UTF-8 become U+FFFD. The space that a vocabulary
    /// of the SentencePiece kind begins every text with is not part of it.
    pub fn decode(&self, ids: &[u32], with_special: bool) -> String {
        let mut stream = self.stream(with_special);
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Decodes token by token.
    pub fn stream(&self, with_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, with_special, at_start: self.drops_space, pending: Vec::new() }
    }
}

/// Turns tokens into pieces of text as they come. Concatenated, the pieces are [`Tokenizer::decode`] of all tokens; each piece is
/// whole characters, so a character that spans tokens appears with its last one.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    with_special: bool,
    /// Whether a space that comes now is dropped.
    at_start: bool,
    /// The beginning of a character whose rest has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl TextStream<'_> {
    /// The text that this token completes; often empty in the middle of a character.
    pub fn push(&mut self, id: u32) -> String {
        if !self.with_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let mut bytes = self.tokenizer.token_bytes(id);
        if self.at_start && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.at_start = false;
        }
        self.pending.extend_from_slice(bytes);
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
        kinds[0] = file::kind::CONTROL;
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
