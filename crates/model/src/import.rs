//! GGUF to a model directory.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sworn_commit::Hash;

use crate::{
    chat::{ChatTemplate, Message},
    directory::{SourceInfo, SpecialTokens},
    error::{ModelError, Result},
    gguf::Gguf,
    llama::LlamaConfig,
    load::Model,
    pack::{FloatTensors, Parts, pack},
    progress::{OnProgress, Progress, Stage},
    source::RowBlocks,
    tokenizer::{PreTokenizer, Tokenizer, Vocabulary, byte_characters},
};

/// Choices of an import. All of them are part of the model id; the defaults are what other nodes will have chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportOptions {
    /// Most positions of a job; default: the model's context, at most 8,192.
    pub max_positions: Option<u32>,
    /// A name for people; default: the file's own. Not part of the id.
    pub name: Option<String>,
}

/// Imports a GGUF file into the directory `out` and loads it from there. The same file and options give the same bytes and
/// the same id, everywhere. `out` appears when everything is written, or not at all.
///
/// # Errors
/// Names what is wrong with the file, the disk or the target.
pub fn import_gguf(
    file: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ImportOptions,
    progress: OnProgress<'_>,
) -> Result<Model> {
    let file = file.as_ref();
    let gguf = Gguf::open(file)?;
    import_open(&gguf, out.as_ref(), options, progress)?;
    Model::load(out)
}

fn import_open(gguf: &Gguf, out: &Path, options: &ImportOptions, progress: OnProgress<'_>) -> Result<Hash> {
    // Everything that can be refused is refused before the first byte is written.
    let config = LlamaConfig::from_gguf(gguf, options.max_positions)?;
    let text = text_parts(gguf, config.vocab)?;
    let source = SourceInfo {
        format: "GGUF".into(),
        bytes: gguf.bytes().len() as u64,
        sha256: sha256(gguf.bytes(), progress),
        license: gguf.string("general.license")?.map(printable),
    };
    let name = match (&options.name, gguf.string("general.name")?) {
        (Some(n), _) => n.clone(),
        (None, Some(n)) => printable(n),
        (None, None) => "unnamed".to_owned(),
    };
    let parts = Parts {
        name,
        config,
        tokenizer: text.tokenizer,
        chat_template: text.chat_template,
        stop_tokens: text.stop_tokens,
        special_tokens: text.special_tokens,
        add_bos: text.add_bos,
        source,
    };
    pack(out, parts, &GgufTensors(gguf), progress)
}

/// A name out of a file that anybody may have written, fit to be shown on a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn sha256(bytes: &[u8], progress: OnProgress<'_>) -> String {
    let mut hasher = Sha256::new();
    let total = bytes.len() as u64;
    let mut done = 0;
    for chunk in bytes.chunks(4 << 20) {
        hasher.update(chunk);
        done += chunk.len() as u64;
        progress(Progress { stage: Stage::Checksum, done, total });
    }
    hex::encode(hasher.finalize())
}

struct GgufTensors<'a>(&'a Gguf);

impl FloatTensors for GgufTensors<'_> {
    fn row(&self, name: &str, row: u32, out: &mut [f32]) -> Result<()> {
        self.0.read_row(self.0.tensor(name)?, row as usize, out);
        Ok(())
    }

    fn vector(&self, name: &str, n: u32) -> Result<Vec<f32>> {
        let mut out = vec![0.0; n as usize];
        self.row(name, 0, &mut out)?;
        Ok(out)
    }

    fn blocks(&self, name: &str, row: u32) -> Result<Option<RowBlocks>> {
        self.0.read_blocks(self.0.tensor(name)?, row as usize)
    }

    fn rope_divisors(&self, pairs: u32) -> Result<Option<Vec<f32>>> {
        const NAME: &str = "rope_freqs.weight";
        let Some(t) = self.0.tensors().get(NAME) else { return Ok(None) };
        if (t.rows, t.cols) != (1, pairs as usize) {
            return Err(ModelError::Gguf(format!(
                "tensor {NAME} has {} elements, {pairs} are needed",
                t.rows * t.cols
            )));
        }
        let v = self.vector(NAME, pairs)?;
        if v.iter().any(|d| !d.is_finite() || *d <= 0.0) {
            return Err(ModelError::Gguf(format!("tensor {NAME} holds a divisor that is not positive")));
        }
        Ok(Some(v))
    }
}

struct TextParts {
    tokenizer: Vec<u8>,
    chat_template: String,
    stop_tokens: Vec<u32>,
    special_tokens: SpecialTokens,
    add_bos: bool,
}

/// Tokenizer, chat template and special tokens, checked against each other.
fn text_parts(gguf: &Gguf, vocab: u32) -> Result<TextParts> {
    let missing = |key: &str| ModelError::Gguf(format!("metadata {key} is missing"));
    let model = gguf.string("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
    if model != "gpt2" {
        return Err(ModelError::unsupported(
            format!("tokenizer {model:?}"),
            "supported is byte-level BPE (\"gpt2\"), as in SmolLM, SmolLM2 and Llama 3",
        ));
    }
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    if tokens.is_empty() || tokens.len() > vocab as usize {
        return Err(ModelError::Gguf(format!("the tokenizer has {} tokens, the embedding {vocab} rows", tokens.len())));
    }
    let kinds = gguf.ints("tokenizer.ggml.token_type")?.ok_or_else(|| missing("tokenizer.ggml.token_type"))?;
    let merges = gguf.strings("tokenizer.ggml.merges")?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let pre = PreTokenizer::from_name(gguf.string("tokenizer.ggml.pre")?.unwrap_or("default"))?;
    let id = |key: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{key}");
        match gguf.uint(&key)? {
            None => Ok(None),
            Some(v) if v < tokens.len() as u64 => Ok(Some(v as u32)),
            Some(v) => Err(ModelError::Gguf(format!("{key} = {v} is outside of the vocabulary of {}", tokens.len()))),
        }
    };
    let special_tokens = SpecialTokens {
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unknown: id("unknown_token_id")?,
        padding: id("padding_token_id")?,
    };
    let mut stop_tokens: Vec<u32> =
        [special_tokens.eos, id("eot_token_id")?, id("eom_token_id")?].into_iter().flatten().collect();
    stop_tokens.sort_unstable();
    stop_tokens.dedup();

    let vocabulary = Vocabulary { tokens, kinds, merges, pre, unknown: special_tokens.unknown };
    let json = vocabulary.to_json()?;
    let tokenizer = Tokenizer::from_json(&json)?;
    check_tokenizer(&tokenizer, tokens, kinds)?;

    let chat_template = gguf.string("tokenizer.chat_template")?.unwrap_or_default().to_owned();
    let spelling = |id: Option<u32>| id.map_or("", |i| tokens[i as usize].as_str());
    let chat = ChatTemplate::new(&chat_template, spelling(special_tokens.bos), spelling(special_tokens.eos))?;
    if chat.is_present() {
        check_chat(&chat, &tokenizer)?;
    }
    let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
    Ok(TextParts { tokenizer: json, chat_template, stop_tokens, special_tokens, add_bos })
}

/// Control tokens encode to themselves, and text comes back as it was.
fn check_tokenizer(tokenizer: &Tokenizer, tokens: &[String], kinds: &[i64]) -> Result<()> {
    let bad = |what: String| {
        ModelError::Tokenizer(format!("{what}: the file's vocabulary, token types and merges do not fit each other"))
    };
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        if *kind == 3 && tokenizer.encode(token)? != [id as u32] {
            return Err(bad(format!("special token {token:?} does not encode to its id {id}")));
        }
    }
    let alphabet = byte_characters();
    if let Some(c) = (b' '..=b'~').find(|c| tokenizer.id(&alphabet[*c as usize].to_string()).is_none()) {
        return Err(bad(format!("character {:?} has no token", char::from(c))));
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
        return Err(ModelError::Template(
            "it drops the user's message; the file's tokenizer.chat_template is damaged".into(),
        ));
    }
    if tokenizer.decode(&tokenizer.encode(&text)?, true) != text {
        return Err(ModelError::Tokenizer(format!("the rendered conversation {text:?} does not survive encoding")));
    }
    Ok(())
}
