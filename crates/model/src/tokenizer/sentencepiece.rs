//! SentencePiece vocabularies of the BPE kind: Llama 1 and 2, Mistral, TinyLlama, Gemma.

use std::collections::HashMap;

use serde_json::json;

use super::file::{self, Bpe, TokenizerFile, bad, kind};
use crate::error::Result;

/// What such a vocabulary writes for a space.
const SPACE: &str = "▁";

/// A SentencePiece vocabulary: pieces with scores, and a token per byte for what no piece covers.
#[derive(Clone, Debug)]
pub struct SentencePiece<'a> {
    /// Tokens by id, `▁` for a space.
    pub tokens: &'a [String],
    /// Kinds by id, as GGUF numbers them: 1 normal, 2 unknown, 3 control, 4 defined by the user, 5 unused, 6 byte.
    pub kinds: &'a [i64],
    /// Scores by id: of two merges, the one whose result has the higher score comes first. Unused where there are merges.
    pub scores: &'a [f32],
    /// Merges in order of their rank, if the file has them.
    pub merges: Option<&'a [String]>,
    /// The token for what neither pieces nor bytes cover.
    pub unknown: Option<u32>,
    /// Whether a text, and what follows a special token in it, begins with a space of its own.
    pub space_prefix: bool,
}

impl SentencePiece<'_> {
    /// The `tokenizer.json` of this vocabulary.
    ///
    /// # Errors
    /// Tokens, scores or merges contradict each other.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let tokens = self.spaced()?;
        let distinct = file::distinct(&tokens, self.kinds)?;
        let merges = match self.merges {
            Some(merges) => file::merge_pairs(merges, &distinct)?,
            None => self.merges_by_score(&tokens)?,
        };
        let unknown = file::unknown_token(&tokens, self.unknown)?;
        let mut model = Bpe::new(&tokens, &merges, unknown);
        (model.fuse_unk, model.byte_fallback) = (true, true);
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
        if self.space_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        }
        let mut file = TokenizerFile::new(model, json!({"type": "Sequence", "decoders": decoders}));
        file.normalizer = Some(json!({"type": "Sequence", "normalizers": normalizers}));
        file.added_tokens = file::added_tokens(&tokens, |id| match self.kinds[id] {
            kind::CONTROL | kind::UNKNOWN => Some(true),
            kind::USER_DEFINED => Some(false),
            _ => None,
        });
        file.to_json()
    }

    /// The tokens, those of the user with spaces for `▁`: they are looked for in the text before its spaces are replaced.
    fn spaced(&self) -> Result<Vec<String>> {
        if self.kinds.len() != self.tokens.len() {
            return Err(bad(format!("{} tokens with {} kinds", self.tokens.len(), self.kinds.len())));
        }
        let spaced = |(t, k): (&String, &i64)| if *k == kind::USER_DEFINED { t.replace(SPACE, " ") } else { t.clone() };
        Ok(self.tokens.iter().zip(self.kinds).map(spaced).collect())
    }

    /// Every way to make a normal token of two others, the best score first. Where scores are equal the ids decide, so that the
    /// order is the same everywhere.
    fn merges_by_score<'t>(&self, tokens: &'t [String]) -> Result<Vec<(&'t str, &'t str)>> {
        if self.scores.len() != tokens.len() {
            return Err(bad(format!("{} tokens with {} scores", tokens.len(), self.scores.len())));
        }
        if let Some(id) = self.scores.iter().position(|s| s.is_nan()) {
            return Err(bad(format!("the score of token {id} is not a number")));
        }
        let normal = |id: &usize| self.kinds[*id] == kind::NORMAL;
        let ids: HashMap<&str, usize> = (0..tokens.len()).filter(normal).map(|id| (tokens[id].as_str(), id)).collect();
        let mut merges = Vec::new();
        for id in (0..tokens.len()).filter(normal) {
            for (at, _) in tokens[id].char_indices().skip(1) {
                let (left, right) = tokens[id].split_at(at);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                    merges.push((id, *l, *r));
                }
            }
        }
        merges.sort_unstable_by(|a, b| self.scores[b.0].total_cmp(&self.scores[a.0]).then_with(|| a.cmp(b)));
        Ok(merges.into_iter().map(|(_, l, r)| (tokens[l].as_str(), tokens[r].as_str())).collect())
    }
}
