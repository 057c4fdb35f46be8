//! Tokenizer, chat template and special tokens of a source, checked against each other.

use crate::{
    chat::{ChatTemplate, Message},
    directory::SpecialTokens,
    error::{ModelError, Result},
    gguf::Gguf,
    tokenizer::{PreTokenizer, SentencePiece, Tokenizer, Vocabulary, kind},
};

/// Tokens that end a turn in the usual templates: generation stops at them even where a file names only the end of a text.
const TURN_ENDS: [&str; 3] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>"];

/// What a model directory needs besides weights.
pub(crate) struct Text {
    /// The `tokenizer.json`.
    pub(crate) tokenizer: Vec<u8>,
    pub(crate) chat_template: String,
    /// In ascending order.
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) special_tokens: SpecialTokens,
    /// Whether a plain text begins with the `bos` token.
    pub(crate) add_bos: bool,
}

impl Text {
    /// Checks a tokenizer against the vocabulary's size and its template, and completes the stop tokens.
    pub(super) fn checked(mut self, tokenizer: &Tokenizer, vocab: u32) -> Result<Self> {
        if tokenizer.is_empty() || tokenizer.len() > vocab as usize {
            return Err(ModelError::Tokenizer(format!(
                "it has {} tokens, the embedding {vocab} rows: they belong to different models",
                tokenizer.len()
            )));
        }
        let turn_ends = TURN_ENDS.iter().filter_map(|t| tokenizer.id(t)).filter(|id| tokenizer.is_special(*id));
        self.stop_tokens.extend(turn_ends);
        self.stop_tokens.extend(self.special_tokens.eos);
        self.stop_tokens.sort_unstable();
        self.stop_tokens.dedup();
        check_tokenizer(tokenizer, self.special_tokens.unknown)?;
        let spelling = |id: Option<u32>| {
            id.map_or(String::new(), |i| String::from_utf8_lossy(tokenizer.token_bytes(i)).into_owned())
        };
        let (bos, eos) = (spelling(self.special_tokens.bos), spelling(self.special_tokens.eos));
        let chat = ChatTemplate::new(&self.chat_template, &bos, &eos)?;
        if chat.is_present() {
            check_chat(&chat, tokenizer)?;
        }
        Ok(self)
    }
}

/// Reads the text parts of a GGUF file whose embedding has `vocab` rows.
pub(super) fn of_gguf(gguf: &Gguf, vocab: u32) -> Result<Text> {
    let missing = |key: &str| ModelError::Gguf(format!("metadata {key} is missing"));
    let model = gguf.string("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    if tokens.is_empty() || tokens.len() > vocab as usize {
        return Err(ModelError::Gguf(format!("the tokenizer has {} tokens, the embedding {vocab} rows", tokens.len())));
    }
    let kinds = gguf.ints("tokenizer.ggml.token_type")?.ok_or_else(|| missing("tokenizer.ggml.token_type"))?;
    let merges = gguf.strings("tokenizer.ggml.merges")?;
    let id = |key: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{key}");
        match gguf.uint(&key)? {
            None => Ok(None),
            Some(v) if v < tokens.len() as u64 => Ok(Some(v as u32)),
            Some(v) => Err(ModelError::Gguf(format!("{key} = {v} is outside of the vocabulary of {}", tokens.len()))),
        }
    };
    // A file with pieces marks the token, and need not name it.
    let marked = || kinds.iter().position(|k| model == "llama" && *k == kind::UNKNOWN).map(|id| id as u32);
    let unknown = id("unknown_token_id")?.or_else(marked);
    let (json, adds_bos) = match model {
        "gpt2" => {
            let pre = PreTokenizer::from_name(gguf.string("tokenizer.ggml.pre")?.unwrap_or("default"))?;
            let merges = merges.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
            (Vocabulary { tokens, kinds, merges, pre, unknown }.to_json()?, pre.adds_bos())
        }
        "llama" => {
            let scores = gguf.floats("tokenizer.ggml.scores")?;
            if merges.is_none() && scores.is_none() {
                return Err(missing("tokenizer.ggml.scores"));
            }
            let pieces = SentencePiece {
                tokens,
                kinds,
                scores: scores.unwrap_or_default(),
                merges,
                unknown,
                space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
            };
            (pieces.to_json()?, true)
        }
        other => {
            return Err(ModelError::unsupported(
                format!("tokenizer {other:?}"),
                "supported are byte-level BPE (\"gpt2\": SmolLM2, Llama 3, Qwen) and SentencePiece BPE (\"llama\": Llama 2, Mistral, Gemma)",
            ));
        }
    };
    let text = Text {
        chat_template: gguf.string("tokenizer.chat_template")?.unwrap_or_default().to_owned(),
        stop_tokens: [id("eot_token_id")?, id("eom_token_id")?].into_iter().flatten().collect(),
        special_tokens: SpecialTokens {
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            unknown,
            padding: id("padding_token_id")?,
        },
        add_bos: gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos),
        tokenizer: json,
    };
    let tokenizer = Tokenizer::from_json(&text.tokenizer)?;
    text.checked(&tokenizer, vocab)
}

/// Control tokens encode to themselves, and text comes back as it was.
fn check_tokenizer(tokenizer: &Tokenizer, unknown: Option<u32>) -> Result<()> {
    let bad = |what: String| {
        ModelError::Tokenizer(format!("{what}: vocabulary, token types and merges do not fit each other"))
    };
    for id in tokenizer.special() {
        let spelling = String::from_utf8_lossy(tokenizer.token_bytes(id));
        if tokenizer.encode(&spelling)? != [id] {
            return Err(bad(format!("special token {spelling:?} does not encode to its id {id}")));
        }
    }
    for c in (b' '..=b'~').map(char::from) {
        let ids = tokenizer.encode(&c.to_string())?;
        if unknown.is_some_and(|u| ids.contains(&u)) || tokenizer.decode(&ids, true) != c.to_string() {
            return Err(bad(format!("character {c:?} has no token")));
        }
    }
    for sample in ["Hello, world! It's 1234.5 %", " two  spaces\n\n\tand tabs", "if (x <= 10) { return x * 2; }"] {
        let back = tokenizer.decode(&tokenizer.encode(sample)?, true);
        // Line breaks and tabs may have no token in a small vocabulary; printable ASCII always has.
        let printable = |s: &str| s.chars().filter(|c| matches!(c, ' '..='~')).collect::<String>();
        if printable(&back) != printable(sample) {
            return Err(bad(format!("{sample:?} comes back as {back:?}")));
        }
    }
    Ok(())
}

/// The template renders a conversation, and what it renders contains the conversation.
fn check_chat(chat: &ChatTemplate, tokenizer: &Tokenizer) -> Result<()> {
    let text = chat.render(&[Message::new("user", "ping 42")], true)?;
    if !text.contains("ping 42") {
        return Err(ModelError::Template("it drops the user's message; the model's chat template is damaged".into()));
    }
    // A vocabulary may put a space of its own after every special token, or take some away.
    let bare = |s: &str| s.split_whitespace().collect::<String>();
    if bare(&tokenizer.decode(&tokenizer.encode(&text)?, true)) != bare(&text) {
        return Err(ModelError::Tokenizer(format!("the rendered conversation {text:?} does not survive encoding")));
    }
    Ok(())
}
