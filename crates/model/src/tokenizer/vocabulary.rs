//! Byte-level BPE vocabularies: GPT-2's kind, and that of SmolLM, Llama 3, Qwen.

use serde_json::json;

use super::{
    PreTokenizer,
    file::{self, Bpe, TokenizerFile, kind},
};
use crate::error::Result;

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
        let tokens = file::distinct(self.tokens, self.kinds)?;
        let merges = file::merge_pairs(self.merges, &tokens)?;
        let unknown = file::unknown_token(self.tokens, self.unknown)?;
        let mut model = Bpe::new(self.tokens, &merges, unknown);
        model.ignore_merges = self.pre.keeps_whole_words();
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let mut file = TokenizerFile::new(model, decoder);
        file.added_tokens = file::added_tokens(self.tokens, |id| match self.kinds[id] {
            kind::CONTROL => Some(true),
            kind::USER_DEFINED => Some(false),
            _ => None,
        });
        file.normalizer = (self.pre == PreTokenizer::Qwen2).then(|| json!({"type": "NFC"}));
        file.pre_tokenizer = Some(self.pre.to_json());
        file.to_json()
    }
}
