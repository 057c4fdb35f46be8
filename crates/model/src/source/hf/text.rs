//! Tokenizer, chat template and special tokens of a Hugging Face directory.

use std::path::Path;

use serde_json::Value;

use super::{read_json, read_small};
use crate::{
    directory::SpecialTokens,
    error::{ModelError, Result},
    source::Text,
    tokenizer::Tokenizer,
};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";

/// The files that are read here.
pub(super) const FILES: [&str; 5] = [TEMPLATE_JSON, TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG];

/// Reads the text parts of a directory whose embedding has `vocab` rows. The tokenizer is the publisher's file, byte for byte.
pub(super) fn read(directory: &Path, config: &Value, vocab: u32) -> Result<Text> {
    let json = read_small(directory, TOKENIZER)?.ok_or_else(|| {
        ModelError::unsupported(
            format!("{} without {TOKENIZER}", directory.display()),
            "save the model again with its fast tokenizer, or take a GGUF of it",
        )
    })?;
    let tokenizer = Tokenizer::from_json(&json)?;
    let own = read_json(directory, TOKENIZER_CONFIG)?.unwrap_or_default();
    let generation = read_json(directory, GENERATION_CONFIG)?.unwrap_or_default();

    let special_tokens = SpecialTokens {
        bos: special(&tokenizer, &own, config, "bos_token")?,
        eos: special(&tokenizer, &own, config, "eos_token")?,
        unknown: special(&tokenizer, &own, config, "unk_token")?,
        padding: special(&tokenizer, &own, config, "pad_token")?,
    };
    let named = [&generation, config].into_iter().find(|c| !c["eos_token_id"].is_null());
    let stop_tokens = match named {
        Some(c) => ids(&tokenizer, &c["eos_token_id"], "eos_token_id")?,
        None => Vec::new(),
    };
    let add_bos = match own["add_bos_token"].as_bool() {
        Some(add) => add,
        None => special_tokens.bos.is_some() && tokenizer.prefix()? == special_tokens.bos,
    };
    let chat_template = template(directory, &own)?;
    Text { tokenizer: json, chat_template, stop_tokens, special_tokens, add_bos }.checked(&tokenizer, vocab)
}

/// A special token: by its spelling in the tokenizer's configuration, else by its id in the model's.
fn special(tokenizer: &Tokenizer, own: &Value, config: &Value, name: &str) -> Result<Option<u32>> {
    let entry = &own[name];
    if let Some(spelling) = entry.as_str().or(entry["content"].as_str()) {
        let id = tokenizer.id(spelling);
        let missing = || ModelError::Files(format!("{TOKENIZER_CONFIG}: {name} {spelling:?} is not in {TOKENIZER}"));
        return id.map(Some).ok_or_else(missing);
    }
    let key = format!("{name}_id");
    match &config[&key] {
        Value::Null => Ok(None),
        // A list of several ends: the first is the one that a text ends with.
        id => Ok(ids(tokenizer, id, &key)?.first().copied()),
    }
}

/// One id or a list of ids.
fn ids(tokenizer: &Tokenizer, value: &Value, key: &str) -> Result<Vec<u32>> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let id = |v: &Value| {
        let id = v.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < tokenizer.len());
        id.ok_or_else(|| ModelError::Files(format!("{key}: {v} is not a token of {TOKENIZER}")))
    };
    list.iter().map(id).collect()
}

/// The chat template: from a file of its own, else from the tokenizer's configuration; empty if there is none.
fn template(directory: &Path, own: &Value) -> Result<String> {
    if let Some(bytes) = read_small(directory, TEMPLATE)? {
        return String::from_utf8(bytes).map_err(|_| ModelError::Template(format!("{TEMPLATE} is not UTF-8")));
    }
    let separate = read_json(directory, TEMPLATE_JSON)?.unwrap_or_default();
    for entry in [&separate["chat_template"], &own["chat_template"]] {
        match entry {
            Value::Null => {}
            Value::String(template) => return Ok(template.clone()),
            Value::Array(named) => {
                let default = named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
                let missing = || ModelError::Template("of several templates none is named \"default\"".into());
                return default.map(str::to_owned).ok_or_else(missing);
            }
            _ => return Err(ModelError::Template("it is neither a text nor a list".into())),
        }
    }
    Ok(String::new())
}
