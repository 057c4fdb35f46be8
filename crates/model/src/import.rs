//! A model in files to a model directory.

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize};
use sworn_commit::Hash;
use sworn_isa::MAX_POSITIONS;

use crate::{
    error::{ModelError, Result},
    hyper::{Activation, RopeLayout},
    llama::LlamaConfig,
    load::Model,
    pack::{Parts, pack},
    progress::OnProgress,
    source::{self, Source},
};

/// Choices of an import. All of them are part of the model id; the defaults are what other nodes will have chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportOptions {
    /// Most positions of a job; default: the model's context, at most 8,192.
    pub max_positions: Option<u32>,
    /// A name for people; default: the file's own. Not part of the id.
    pub name: Option<String>,
}

/// Imports a model into the directory `out` and loads it from there: a `.gguf` file, or a directory with `config.json`,
/// `tokenizer.json` and safetensors. The same files and options give the same bytes and the same id, everywhere. `out` appears
/// when everything is written, or not at all.
///
/// # Errors
/// Names what is wrong with the files, the disk or the target.
pub fn import(
    path: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ImportOptions,
    progress: OnProgress<'_>,
) -> Result<Model> {
    let source = source::open(path.as_ref())?;
    import_open(&*source, out.as_ref(), options, progress)?;
    Model::load(out)
}

/// As [`import`], of a GGUF file whatever it is called.
///
/// # Errors
/// Names what is wrong with the file, the disk or the target.
pub fn import_gguf(
    file: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ImportOptions,
    progress: OnProgress<'_>,
) -> Result<Model> {
    let source = source::GgufSource::open(file.as_ref())?;
    import_open(&source, out.as_ref(), options, progress)?;
    Model::load(out)
}

fn import_open(source: &dyn Source, out: &Path, options: &ImportOptions, progress: OnProgress<'_>) -> Result<Hash> {
    // Everything that can be refused is refused before the first byte is written.
    let config = llama(source, options.max_positions)?;
    let text = source.text()?;
    let parts = Parts {
        name: options.name.clone().or(source.name()?).unwrap_or_else(|| "unnamed".to_owned()),
        config,
        tokenizer: text.tokenizer,
        chat_template: text.chat_template,
        stop_tokens: text.stop_tokens,
        special_tokens: text.special_tokens,
        add_bos: text.add_bos,
        source: source.info(progress)?,
    };
    pack(out, parts, source, progress)
}

/// The sizes of a plain Llama, and the check that the model is one.
fn llama(source: &dyn Source, max_positions: Option<u32>) -> Result<LlamaConfig> {
    let h = source.hyper();
    let parts = [
        (h.rope_layout == RopeLayout::Halves, "rotates the halves of its heads"),
        (h.rope_scaling.magnitude() != 1.0, "scales its scores for longer contexts"),
        (h.qkv_bias || h.output_bias || h.ffn_bias, "has biases"),
        (h.head_norms || h.post_norms, "has norms that a Llama does not have"),
        (h.sliding_window.is_some(), "attends to a window"),
        (h.score_cap.is_some() || h.logit_cap.is_some(), "caps its scores"),
        (h.query_scalar != f64::from(h.head_dim), "scales its scores in its own way"),
        (h.embedding_scale != 1.0 || h.activation != Activation::Silu, "is a Gemma"),
    ];
    if let Some((_, what)) = parts.into_iter().find(|(there, _)| *there) {
        return Err(ModelError::unsupported(
            format!("architecture {:?} ({} model that {what})", h.architecture.name(), h.architecture.name()),
            "supported is \"llama\" (Llama 2/3, SmolLM, SmolLM2, TinyLlama and others of that shape)",
        ));
    }
    let config = LlamaConfig {
        layers: u16::try_from(h.layers).map_err(|_| ModelError::Argument(format!("{} blocks", h.layers)))?,
        hidden: h.hidden,
        heads: h.heads,
        kv_heads: h.kv_heads,
        head_dim: h.head_dim,
        ffn: h.ffn,
        vocab: h.vocab,
        positions: h.context.min(max_positions.unwrap_or(MAX_POSITIONS)).min(MAX_POSITIONS),
        rope_base: h.rope_base,
        epsilon: h.epsilon,
        tied: h.tied,
    };
    config.check()?;
    let vectors = config.gains().into_iter().map(|n| (n, 1, config.hidden));
    check_tensors(source, config.matrices().into_iter().chain(vectors).collect())?;
    Ok(config)
}

/// Every tensor has its shape, and none is left over: a leftover would mean that the model computes something else.
fn check_tensors(source: &dyn Source, wanted: Vec<(String, u32, u32)>) -> Result<()> {
    for (name, rows, cols) in &wanted {
        let (r, c) = source.shape(name).ok_or_else(|| ModelError::Gguf(format!("tensor {name} is missing")))?;
        if (r, c) != (*rows as usize, *cols as usize) {
            return Err(ModelError::Gguf(format!(
                "tensor {name} has {r} rows of {c}, the metadata implies {rows} of {cols}"
            )));
        }
    }
    let wanted: BTreeSet<&str> = wanted.iter().map(|(name, ..)| name.as_str()).collect();
    let known = |name: &str| name == source::ROPE_DIVISORS || wanted.contains(name);
    match source.names().into_iter().find(|n| !known(n)) {
        None => Ok(()),
        Some(n) => Err(ModelError::unsupported(
            format!("tensor {n} (a plain Llama has none of this name)"),
            "biases, experts and adapters are not supported; merge or remove them when converting",
        )),
    }
}
