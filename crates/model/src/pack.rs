//! Float tensors to a model directory. Imports and synthetic models take this same way.

use std::path::Path;

use rayon::prelude::*;
use sworn_commit::{Hash, Manifest, Tree, keccak, row_leaf, section_tree, tensor};
use sworn_isa::{Dtype, RowFormat, SectionKind};

use crate::{
    directory::{self, Description, Index, MatrixEntry, SourceInfo, SpecialTokens, StagedFile, Staging, TableEntry},
    error::{ModelError, Result},
    llama::{ActivationBits, BLOCK_WEIGHTS, LlamaConfig},
    progress::{OnProgress, Progress, Stage},
    quantise::{self, FRACTION, Scale, WEIGHT_MAX},
    source::RowBlocks,
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
    pub(crate) config: LlamaConfig,
    pub(crate) tokenizer: Vec<u8>,
    pub(crate) chat_template: String,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) add_bos: bool,
    pub(crate) source: SourceInfo,
}

/// What a matrix multiplies, which decides the constants folded into its scales.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    /// A normalised vector; its scale lacks √n.
    Norm,
    /// The attention's output on an int8 grid; its scale lacks 1/127.
    Mix,
    /// The activation on a grid of a power of two.
    Gated,
}

/// Writes the directory and returns the model id.
pub(crate) fn pack(target: &Path, parts: Parts, source: &dyn FloatTensors, progress: OnProgress<'_>) -> Result<Hash> {
    let config = parts.config;
    config.check()?;
    let staging = Staging::begin(target)?;
    let mut index = Index::default();

    let mut l1 = L1::default();
    let mut file = staging.create(directory::WEIGHTS)?;
    let matrices = config.matrices();
    let total = matrices.len() as u64;
    for (i, (name, rows, cols)) in matrices.into_iter().enumerate() {
        progress(Progress { stage: Stage::Quantise, done: i as u64, total });
        let site = Site::of(i as u32, &config);
        let (bytes, row_l1) = quantise_matrix(&name, rows, cols, site, &config, source)?;
        // An untied embedding is only looked up, never multiplied.
        if site != Site::Embedding || config.tied {
            l1.record(site, row_l1);
        }
        let scales = site.scales(&config);
        let root = row_tree(&bytes, (4 * scales + cols) as usize).root();
        file.write(&bytes)?;
        index.weights.push(MatrixEntry { name, rows, cols, scales, format: 0, root });
    }
    file.finish()?;
    progress(Progress { stage: Stage::Quantise, done: total, total });

    let bits = l1.bits()?;
    let program = config.program(bits)?;
    staging.write(directory::PROGRAM, &program.encode())?;

    let mut file = staging.create(directory::TABLES)?;
    write_tables(&mut file, &mut index, &config, source)?;
    file.finish()?;

    staging.write(directory::TOKENIZER, &parts.tokenizer)?;
    staging.write(directory::CHAT_TEMPLATE, parts.chat_template.as_bytes())?;
    staging.write(directory::INDEX, &json(&index)?)?;

    let sections = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head].map(|k| program.section(k));
    let manifest = Manifest {
        layers: config.layers,
        vocab: config.vocab,
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
        architecture: "llama".into(),
        parameters,
        config,
        activation_bits: bits,
        rounding: "nearest, int8 per row".into(),
        special_tokens: parts.special_tokens,
        add_bos: parts.add_bos,
        source: parts.source,
    };
    staging.write(directory::DESCRIPTION, &json(&description)?)?;
    staging.write(directory::MANIFEST, &manifest.encode())?;
    staging.publish()?;
    Ok(id)
}

/// The tree over the leaves of rows of `row_bytes` bytes each.
pub(crate) fn row_tree(bytes: &[u8], row_bytes: usize) -> Tree {
    Tree::new(bytes.par_chunks_exact(row_bytes.max(1)).map(row_leaf).collect())
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

/// Where a matrix is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Site {
    Embedding,
    Attention,
    Output,
    Ffn,
    Down,
    Head,
}

impl Site {
    fn of(number: u32, config: &LlamaConfig) -> Self {
        if number == 0 {
            return Site::Embedding;
        }
        let n = BLOCK_WEIGHTS.len() as u32;
        if number > n * u32::from(config.layers) {
            return Site::Head;
        }
        match (number - 1) % n {
            0..=2 => Site::Attention,
            3 => Site::Output,
            4 | 5 => Site::Ffn,
            _ => Site::Down,
        }
    }

    fn scales(self, config: &LlamaConfig) -> u32 {
        if self == Site::Embedding { config.embedding_columns() } else { 1 }
    }
}

/// Largest ‖row‖₁ at each site: decides how wide the activations may be.
#[derive(Default)]
struct L1 {
    attention: u64,
    output: u64,
    ffn: u64,
    down: u64,
    head: u64,
}

impl L1 {
    fn record(&mut self, site: Site, l1: u64) {
        let slot = match site {
            Site::Attention => &mut self.attention,
            Site::Output => &mut self.output,
            Site::Ffn => &mut self.ffn,
            Site::Down => &mut self.down,
            Site::Embedding | Site::Head => &mut self.head,
        };
        *slot = l1.max(*slot);
    }

    fn bits(&self) -> Result<ActivationBits> {
        let wide = |place: &str, l1: u64| {
            quantise::activation_bits(RowFormat::I8, l1).ok_or_else(|| {
                ModelError::unsupported(
                    format!("a row of {place} whose weights sum to {l1}: not even 9-bit activations keep its sums below 2^31"),
                    "take a narrower model",
                )
            })
        };
        if !quantise::partial_sums_fit(RowFormat::I8, self.output, 8) {
            return Err(ModelError::unsupported(
                "an attention output wider than int8 sums allow",
                "take a narrower model",
            ));
        }
        Ok(ActivationBits {
            attention: wide("q, k or v", self.attention)?,
            ffn: wide("gate or up", self.ffn)?,
            down: wide("down", self.down)?,
            head: wide("the head", self.head)?,
        })
    }
}

/// The rows of a matrix as stored, and the largest ‖row‖₁.
fn quantise_matrix(
    name: &str,
    rows: u32,
    cols: u32,
    site: Site,
    config: &LlamaConfig,
    source: &dyn FloatTensors,
) -> Result<(Vec<u8>, u64)> {
    let head = 4 * site.scales(config) as usize;
    let row_bytes = head + cols as usize;
    let mut bytes = vec![0u8; row_bytes * rows as usize];
    let l1 = bytes
        .par_chunks_exact_mut(row_bytes)
        .enumerate()
        .map_init(
            || vec![0f32; cols as usize],
            |floats, (r, out)| -> Result<u64> {
                source.row(name, r as u32, floats)?;
                if floats.iter().any(|w| !w.is_finite()) {
                    return Err(ModelError::Gguf(format!("tensor {name}, row {r} holds a number that is not finite")));
                }
                let (scales, elements) = out.split_at_mut(head);
                let (scale, l1) = quantise::quantise_row(floats, bytemuck::cast_slice_mut(elements));
                for (slot, s) in scales.as_chunks_mut::<4>().0.iter_mut().zip(row_scales(scale, site, config)) {
                    let sh = i16::try_from(-(s.e + FRACTION)).map_err(|_| {
                        ModelError::Gguf(format!("tensor {name}, row {r} has weights of an impossible size"))
                    })?;
                    slot[..2].copy_from_slice(&s.m.to_be_bytes());
                    slot[2..].copy_from_slice(&sh.to_be_bytes());
                }
                Ok(l1)
            },
        )
        .try_reduce(|| 0, |a, b| Ok(a.max(b)))?;
    Ok((bytes, l1))
}

/// The scale pairs of a row: what its consumers multiply by, constants of the place folded in.
fn row_scales(scale: Scale, site: Site, config: &LlamaConfig) -> impl Iterator<Item = Scale> {
    let folded = |input: Input| match input {
        Input::Norm => scale.times(1.0, f64::from(config.hidden).sqrt()),
        Input::Mix => scale.times(1.0 / f64::from(WEIGHT_MAX), 1.0),
        Input::Gated => scale.times(1.0, 1.0),
    };
    let (first, second) = match site {
        Site::Embedding => (scale, config.tied.then(|| folded(Input::Norm))),
        Site::Attention | Site::Ffn | Site::Head => (folded(Input::Norm), None),
        Site::Output => (folded(Input::Mix), None),
        Site::Down => (folded(Input::Gated), None),
    };
    std::iter::once(first).chain(second)
}

fn write_tables(
    file: &mut StagedFile,
    index: &mut Index,
    config: &LlamaConfig,
    source: &dyn FloatTensors,
) -> Result<()> {
    let mut add = |name: String, dtype: Dtype, values: Vec<i64>| -> Result<()> {
        let bytes = quantise::encode(dtype, &values);
        file.write(&bytes)?;
        let root = tensor::tensor_root(&bytes);
        index.tables.push(TableEntry { name, dtype: dtype as u8, elements: values.len() as u32, root });
        Ok(())
    };
    add("exp2".into(), Dtype::U16, quantise::exp_table())?;
    let divisors = source.rope_divisors(config.head_dim / 2)?;
    let (cos, sin) = quantise::rope_tables(config.positions, config.head_dim, config.rope_base, divisors.as_deref());
    add("rope_cos".into(), Dtype::I16, cos)?;
    add("rope_sin".into(), Dtype::I16, sin)?;
    for name in config.gains() {
        let gain = source.vector(&name, config.hidden)?;
        if gain.iter().any(|g| !g.is_finite()) {
            return Err(ModelError::Gguf(format!("tensor {name} holds a number that is not finite")));
        }
        let table = quantise::gain_table(&gain)
            .ok_or_else(|| ModelError::Gguf(format!("tensor {name} has gains of an impossible size")))?;
        add(name, Dtype::I16, table)?;
    }
    Ok(())
}
