//! How text is cut into words before byte-pair encoding.

use serde_json::{Value, json};

use crate::error::{ModelError, Result};

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
    /// Mistral's newer pattern: words break where lower case ends; single digits.
    Tekken,
}

impl PreTokenizer {
    /// By the name that GGUF files use.
    ///
    /// # Errors
    /// The name is not known.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gpt-2" | "gpt2" | "default" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" => Self::SmolLm,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "falcon3" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "tekken" => Self::Tekken,
            other => {
                return Err(ModelError::unsupported(
                    format!("pre-tokenizer {other:?}"),
                    "supported are gpt-2, default, smollm, llama-bpe, qwen2, tekken",
                ));
            }
        })
    }

    /// Whether a word that is a token as a whole is not cut further, whatever the merges make of it.
    pub(super) fn keeps_whole_words(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// Whether texts begin with the `bos` token where a file does not say.
    pub(crate) fn adds_bos(self) -> bool {
        self == Self::Llama3
    }

    pub(super) fn to_json(self) -> Value {
        let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = |regex: String| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let words = |digits: &str| {
            split(format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ))
        };
        let cased_words = || {
            let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
            let before = r"[^\r\n\p{L}\p{N}]?";
            split(format!(
                r"{before}{upper}*{lower}+|{before}{upper}+{lower}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ))
        };
        let sequence = |parts: [Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => sequence([json!({"type": "Digits", "individual_digits": true}), byte_level(true)]),
            Self::Llama3 => sequence([words(r"\p{N}{1,3}"), byte_level(false)]),
            Self::Qwen2 => sequence([words(r"\p{N}"), byte_level(false)]),
            Self::Tekken => sequence([cased_words(), byte_level(false)]),
        }
    }
}
