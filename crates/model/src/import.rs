//! A model in files to a model directory.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sworn_commit::Hash;

use crate::{
    error::Result,
    family::Config,
    gptq::Calibration,
    load::Model,
    pack::{Parts, pack},
    progress::OnProgress,
    source::{self, Source},
    weights::WeightFormats,
};

/// Choices of an import. All of them are part of the model id; the defaults are what other nodes will have chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportOptions {
    /// Most positions of a job; default: the model's context, at most 8,192.
    pub max_positions: Option<u32>,
    /// A name for people; default: the file's own. Not part of the id.
    pub name: Option<String>,
    /// How weights are stored.
    pub weights: WeightFormats,
    /// Whether runs may sample, where the vocabulary allows it; otherwise they take the most likely token.
    pub sampling: bool,
    /// Whether runs commit to log-probabilities, where the vocabulary allows it.
    pub log_probs: bool,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions {
            max_positions: None,
            name: None,
            weights: WeightFormats::default(),
            sampling: true,
            log_probs: true,
        }
    }
}

impl ImportOptions {
    /// Whether a model has what these options ask for, as far as its vocabulary allows.
    pub(crate) fn made(&self, model: &Model) -> bool {
        let d = model.description();
        let (hyper, positions) = (d.config.hyper.clone(), self.max_positions);
        let wanted = Config::new(hyper, positions, self.sampling, self.log_probs);
        wanted.is_ok_and(|c| c == d.config) && d.rounding == self.weights.rounding(false)
    }
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
    import_open(&*source, out.as_ref(), options, None, progress)?;
    Model::load(out)
}

/// As [`import`], with the rows that are stored as int8 rounded so that their products with typical inputs come out right.
///
/// # Errors
/// As [`import`], or `calibration` fails.
pub fn import_calibrated(
    path: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ImportOptions,
    calibration: Calibration<'_>,
    progress: OnProgress<'_>,
) -> Result<Model> {
    let source = source::open(path.as_ref())?;
    import_open(&*source, out.as_ref(), options, Some(calibration), progress)?;
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
    import_open(&source, out.as_ref(), options, None, progress)?;
    Model::load(out)
}

fn import_open(
    source: &dyn Source,
    out: &Path,
    options: &ImportOptions,
    calibration: Option<Calibration<'_>>,
    progress: OnProgress<'_>,
) -> Result<Hash> {
    // Everything that can be refused is refused before the first byte is written.
    let config = Config::new(source.hyper().clone(), options.max_positions, options.sampling, options.log_probs)?;
    config.check_tensors(source)?;
    let text = source.text()?;
    let parts = Parts {
        name: options.name.clone().or(source.name()?).unwrap_or_else(|| "unnamed".to_owned()),
        config,
        weights: options.weights,
        tokenizer: text.tokenizer,
        chat_template: text.chat_template,
        stop_tokens: text.stop_tokens,
        special_tokens: text.special_tokens,
        add_bos: text.add_bos,
        source: source.info(progress)?,
    };
    pack(out, parts, source, calibration, progress)
}
