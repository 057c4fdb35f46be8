//! Models on this machine, by name, id or path.

use std::path::PathBuf;
use std::sync::Arc;

use sworn_model::{Model, ModelStore};

use crate::fault::{Fault, Result};
use crate::settings::Settings;

/// The store of the home directory.
pub(crate) fn store(settings: &Settings) -> ModelStore {
    ModelStore::new(&settings.home)
}

/// Loads what a name, a path, or an id (or its beginning, eight digits or more) means.
pub(crate) fn load(settings: &Settings, wanted: &str) -> Result<Arc<Model>> {
    Ok(Arc::new(match by_id(settings, wanted)? {
        Some(path) => Model::load(path)?,
        None => store(settings).load(wanted)?,
    }))
}

/// The directory of the stored model whose id begins with `wanted`; `None` if `wanted` cannot be an id or is a model's name.
fn by_id(settings: &Settings, wanted: &str) -> Result<Option<PathBuf>> {
    let digits = wanted.strip_prefix("0x").unwrap_or(wanted).to_ascii_lowercase();
    let store = store(settings);
    let names = store.list()?;
    if digits.len() < 8
        || digits.len() > 64
        || !digits.bytes().all(|b| b.is_ascii_hexdigit())
        || names.iter().any(|n| n == wanted)
    {
        return Ok(None);
    }
    let mut found = Vec::new();
    for name in names {
        let path = store.resolve(&name)?;
        // The recorded id is enough to choose by; loading checks it against the manifest.
        let description = std::fs::read(path.join(sworn_model::directory::DESCRIPTION)).unwrap_or_default();
        let id = serde_json::from_slice::<serde_json::Value>(&description)
            .ok()
            .and_then(|d| Some(d["model_id"].as_str()?.to_owned()));
        if id.is_some_and(|id| id.trim_start_matches("0x").starts_with(&digits)) {
            found.push((name, path));
        }
    }
    match found.len() {
        0 => Err(Fault::failed(format!(
            "no model with id {wanted} under {}: `sworn model list` shows what is here, `sworn model import PATH` adds a model",
            store.home().display()
        ))),
        // Copies of one model under several names are one model; different ones are ambiguous.
        1 => Ok(found.pop().map(|(_, path)| path)),
        _ if digits.len() == 64 => Ok(found.pop().map(|(_, path)| path)),
        _ => {
            let names: Vec<_> = found.into_iter().map(|(name, _)| name).collect();
            Err(Fault::usage(format!(
                "{wanted} is the beginning of several ids ({}): give more digits or a name",
                names.join(", ")
            )))
        }
    }
}

/// `0x` and the id.
pub(crate) fn id_text(id: &[u8]) -> String {
    format!("0x{}", hex::encode(id))
}
