//! What the tokens of a vocabulary stand for, by the `decoder` of a `tokenizer.json`.

use std::collections::HashMap;

use serde_json::Value;

use super::vocabulary::byte_characters;
use crate::error::{ModelError, Result};

/// How tokens spell bytes.
pub(super) enum Spelling {
    /// Each character stands for a byte.
    Bytes(HashMap<char, u8>),
    /// Tokens are text, in which some strings stand for others.
    Text {
        /// What stands for what, in order.
        replace: Vec<(String, String)>,
        /// Whether `<0xHH>` is a byte.
        byte_tokens: bool,
        /// Whether a space at the very beginning is no part of the text.
        drops_space: bool,
    },
}

fn refused(what: impl std::fmt::Display) -> ModelError {
    ModelError::unsupported(
        format!("a tokenizer with {what}"),
        "supported are byte-level BPE and SentencePiece BPE, with their usual decoders",
    )
}

impl Spelling {
    /// By the `decoder` of the file.
    pub(super) fn of(decoder: &Value) -> Result<Self> {
        let one = std::slice::from_ref(decoder);
        let parts = match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"].as_array().ok_or_else(|| refused("a decoder without parts"))?,
            _ => one,
        };
        if let [part] = parts
            && part["type"] == "ByteLevel"
        {
            return Ok(Self::Bytes(byte_characters().into_iter().zip(0..=255u8).collect()));
        }
        let (mut replace, mut byte_tokens, mut drops_space, mut fused) = (Vec::new(), false, false, false);
        for part in parts {
            let text = |key: &str| part[key].as_str().map(str::to_owned);
            match part["type"].as_str() {
                Some("Replace") if !fused => {
                    let pattern = part["pattern"]["String"].as_str().filter(|p| !p.is_empty()).map(str::to_owned);
                    let both = pattern.zip(text("content"));
                    replace.push(both.ok_or_else(|| refused("a decoder that replaces patterns"))?);
                }
                Some("Metaspace") if !fused => {
                    let space = text("replacement").filter(|r| !r.is_empty());
                    replace.push((space.ok_or_else(|| refused("a damaged decoder"))?, " ".to_owned()));
                    drops_space |= part["prepend_scheme"] != "never" && part["add_prefix_space"] != false;
                }
                Some("ByteFallback") if !fused => byte_tokens = true,
                Some("Fuse") => fused = true,
                Some("Strip") if fused && part["content"] == " " && part["start"] == 1 && part["stop"] == 0 => {
                    drops_space = true;
                }
                kind => return Err(refused(format!("decoder {}", kind.unwrap_or("null")))),
            }
        }
        if replace.is_empty() && !byte_tokens {
            return Err(refused("an empty decoder"));
        }
        Ok(Self::Text { replace, byte_tokens, drops_space })
    }

    /// Whether a space at the very beginning is no part of the text.
    pub(super) fn drops_space(&self) -> bool {
        matches!(self, Self::Text { drops_space: true, .. })
    }

    /// Appends what a token stands for. Added tokens of a byte-level vocabulary are plain text.
    pub(super) fn spell(&self, token: &str, added: bool, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(_) if added => out.extend(token.as_bytes()),
            Self::Bytes(byte_of) => {
                for c in token.chars() {
                    match byte_of.get(&c) {
                        Some(b) => out.push(*b),
                        // A token outside the byte alphabet stands for itself.
                        None => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            Self::Text { byte_tokens: true, .. } if byte_token(token).is_some() => out.extend(byte_token(token)),
            Self::Text { replace, .. } => {
                let text = replace.iter().fold(token.to_owned(), |t, (from, to)| t.replace(from, to));
                out.extend(text.as_bytes());
            }
        }
    }
}

/// The byte of a token `<0xHH>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decoders_that_mean_something_else_are_refused() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let fuse = json!({"type": "Fuse"});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let sequence = |parts: &[&Value]| Spelling::of(&json!({"type": "Sequence", "decoders": parts}));
        assert!(sequence(&[&replace, &fuse, &strip]).unwrap().drops_space());
        assert!(!sequence(&[&replace, &fuse]).unwrap().drops_space());
        let metaspace =
            |scheme: &str| Spelling::of(&json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}));
        assert!(metaspace("first").unwrap().drops_space() && !metaspace("never").unwrap().drops_space());
        for (bad, word) in [
            (sequence(&[&replace, &strip, &fuse]), "Strip"),
            (sequence(&[&fuse]), "empty"),
            (sequence(&[]), "empty"),
            (Spelling::of(&Value::Null), "null"),
            (Spelling::of(&json!({"type": "WordPiece", "prefix": "##"})), "WordPiece"),
            (Spelling::of(&json!({"type": "Replace", "pattern": {"Regex": "x"}, "content": ""})), "patterns"),
        ] {
            let e = bad.err().expect(word).to_string();
            assert!(e.contains(word), "{e}");
        }
    }

    #[test]
    fn byte_tokens_have_two_digits() {
        assert_eq!(
            ["<0x0A>", "<0xff>", "<0x+1>", "<0x123>", "<0xg0>"].map(byte_token),
            [Some(10), Some(255), None, None, None]
        );
    }
}
