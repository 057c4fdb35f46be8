//! Float tensors to a model directory. Imports and synthetic models take this same way.

use std::path::Path;

use rayon::prelude::*;
use sworn_commit::{Hash, Manifest, Tree, keccak, row_leaves, section_tree};
use sworn_isa::{RowFormat, SectionKind};

use crate::{
    directory::{self, Description, Index, MatrixEntry, SourceInfo, SpecialTokens, Staging},
    error::{ModelError, Result},
    family::{Config, MatrixSpec},
    gptq::Calibration,
    progress::{OnProgress, Progress, Stage},
    source::RowBlocks,
    tables,
    weights::{self, WeightFormats, Widths},
};

/// Where float weights come from.
pub(crate) trait FloatTensors: Sync {
    /// One row of a matrix.
    fn row(&self, name: &str, row: u32, out: &mut [f32]) -> Result<()>;
    /// A whole vector of `n` elements.
    fn vector(&self, name: &str, n: u32) -> Result<Vec<f32>>;
    /// Per-pair divisors of the rotary frequencies, if the model has them.
    fn rope_divisors(&self, pairs: u32) -> Result<Option<Vec<f32>>>;
    /// One row of a matrix in the source's own blocks, where it has some that can be kept without loss.
    fn blocks(&self, _name: &str, _row: u32) -> Result<Option<RowBlocks>> {
        Ok(None)
    }
}

/// Everything but the weights.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) weights: WeightFormats,
    pub(crate) tokenizer: Vec<u8>,
    pub(crate) chat_template: String,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) add_bos: bool,
    pub(crate) source: SourceInfo,
}

/// Writes the directory and returns the model id.
pub(crate) fn pack(
    target: &Path,
    parts: Parts,
    source: &dyn FloatTensors,
    mut calibration: Option<Calibration<'_>>,
    progress: OnProgress<'_>,
) -> Result<Hash> {
    let config = parts.config;
    config.check()?;
    let formats = weights::formats(&config, parts.weights, source)?;
    let staging = Staging::begin(target)?;
    let mut index = Index::default();

    let mut widths = Widths::default();
    let mut file = staging.create(directory::WEIGHTS)?;
    let matrices = config.matrices();
    let total = matrices.len() as u64;
    for (i, spec) in matrices.into_iter().enumerate() {
        progress(Progress { stage: Stage::Quantise, done: i as u64, total });
        let format = formats.of(spec.role);
        let compensation = match &mut calibration {
            Some(calibration) if format == RowFormat::I8 => calibration(i as u32)?,
            _ => None,
        };
        let stored = weights::matrix(&spec, format, &config, source, compensation.as_ref())?;
        widths.record(spec.role, format, stored.l1, &config)?;
        let root = row_tree(&stored.bytes, stored.row_bytes).root();
        file.write(&stored.bytes)?;
        let MatrixSpec { name, role, rows, cols } = spec;
        let scales = config.columns(role);
        index.weights.push(MatrixEntry { name, rows, cols, scales, format: format as u8, root });
    }
    file.finish()?;
    progress(Progress { stage: Stage::Quantise, done: total, total });

    let bits = widths.bits();
    let program = config.program(bits, &formats)?;
    staging.write(directory::PROGRAM, &program.encode())?;

    let mut file = staging.create(directory::TABLES)?;
    tables::write(&mut file, &mut index, &config, source)?;
    file.finish()?;

    staging.write(directory::TOKENIZER, &parts.tokenizer)?;
    staging.write(directory::CHAT_TEMPLATE, parts.chat_template.as_bytes())?;
    staging.write(directory::INDEX, &json(&index)?)?;

    let sections = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head].map(|k| program.section(k));
    let manifest = Manifest {
        layers: layers(&config)?,
        vocab: config.hyper.vocab,
        max_positions: config.positions,
        op_counts: sections.map(|s| s.ops.len() as u16),
        section_roots: sections.map(|s| section_tree(s).root()),
        weights: index.weights.len() as u32,
        weights_root: weights_tree(&index).root(),
        tables: index.tables.len() as u32,
        tables_root: tables_tree(&index).root(),
        tokenizer_hash: keccak(&[&parts.tokenizer]),
        chat_template_hash: keccak(&[parts.chat_template.as_bytes()]),
        stop_tokens: parts.stop_tokens,
    };
    let id = manifest.id();
    let parameters = index.weights.iter().map(|m| u64::from(m.rows) * u64::from(m.cols)).sum();
    let description = Description {
        name: parts.name,
        model_id: hex::encode(id),
        architecture: config.hyper.architecture.name().into(),
        parameters,
        selection: selection(&config).into(),
        config,
        activation_bits: bits,
        rounding: parts.weights.rounding(calibration.is_some()).into(),
        special_tokens: parts.special_tokens,
        add_bos: parts.add_bos,
        source: parts.source,
    };
    staging.write(directory::DESCRIPTION, &json(&description)?)?;
    staging.write(directory::MANIFEST, &manifest.encode())?;
    staging.publish()?;
    Ok(id)
}

fn layers(config: &Config) -> Result<u16> {
    let layers = config.hyper.layers;
    u16::try_from(layers).map_err(|_| ModelError::Argument(format!("{layers} blocks")))
}

/// How tokens are selected, for people.
fn selection(config: &Config) -> &'static str {
    if config.sampling { "as each run asks: sampled or greedy" } else { "greedy, the most likely token always" }
}

/// The tree over the leaves of rows of `row_bytes` bytes each.
pub(crate) fn row_tree(bytes: &[u8], row_bytes: usize) -> Tree {
    /// Rows that one thread hashes together.
    const TOGETHER: usize = 64;
    let row_bytes = row_bytes.max(1);
    let parts = bytes.par_chunks(row_bytes * TOGETHER);
    Tree::new(parts.flat_map_iter(|part| row_leaves(part.chunks_exact(row_bytes))).collect())
}

/// The tree over the matrices' roots.
pub(crate) fn weights_tree(index: &Index) -> Tree {
    Tree::new(index.weights.iter().map(|m| m.root).collect())
}

/// The tree over the tables' roots.
pub(crate) fn tables_tree(index: &Index) -> Tree {
    Tree::new(index.tables.iter().map(|t| t.root).collect())
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| ModelError::Argument(format!("describing the model: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}
