//! Matrices of floats, or of a source's own blocks, to the rows of the instruction set.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sworn_isa::RowFormat;

use crate::{
    blocks,
    error::{ModelError, Result},
    family::{ActivationBits, Config, Formats, MatrixSpec, Role},
    gptq::Compensation,
    load::row_norm,
    pack::FloatTensors,
    quantise::{self, FRACTION, Scale, WEIGHT_MAX},
};

/// How weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormats {
    /// The blocks of files that have blocks of 32 with a scale; int8 per row otherwise.
    #[default]
    Auto,
    /// Int8 with one scale per row, whatever the file has.
    Int8,
}

impl WeightFormats {
    /// For people.
    pub(crate) const fn rounding(self, calibrated: bool) -> &'static str {
        match (self, calibrated) {
            (Self::Auto, false) => "blocks as in the source, otherwise nearest, int8 per row",
            (Self::Auto, true) => "blocks as in the source, otherwise error-compensated, int8 per row",
            (Self::Int8, false) => "nearest, int8 per row",
            (Self::Int8, true) => "error-compensated, int8 per row",
        }
    }
}

/// The format of each role's matrices. All blocks share one program, so where a source stores a role's matrices in
/// different types, they all get eight bits in blocks.
pub(crate) fn formats(config: &Config, weights: WeightFormats, source: &dyn FloatTensors) -> Result<Formats> {
    let mut formats = Formats::default();
    if weights == WeightFormats::Int8 {
        return Ok(formats);
    }
    let mut found: Vec<(Role, RowFormat)> = Vec::new();
    for m in config.matrices() {
        let blocks = if RowFormat::Q4.fits(m.cols as usize) { source.blocks(&m.name, 0)? } else { None };
        let format = blocks.map_or(RowFormat::I8, |b| blocks::format_of(&b));
        let of_role = found.iter().find(|(role, _)| *role == m.role).map_or(format, |(_, f)| *f);
        found.retain(|(role, _)| *role != m.role);
        found.push((m.role, if of_role == format { format } else { RowFormat::Q8 }));
    }
    found.into_iter().for_each(|(role, format)| formats.set(role, format));
    Ok(formats)
}

/// A matrix as stored.
pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    pub(crate) row_bytes: usize,
    /// Largest ‖row‖₁.
    pub(crate) l1: u64,
}

/// The rows of a matrix as stored.
pub(crate) fn matrix(
    spec: &MatrixSpec,
    format: RowFormat,
    config: &Config,
    source: &dyn FloatTensors,
    compensation: Option<&Compensation>,
) -> Result<Stored> {
    let head = 4 * config.columns(spec.role) as usize;
    let row_bytes = head + format.bytes(spec.cols as usize);
    let mut bytes = vec![0u8; row_bytes * spec.rows as usize];
    let l1 = bytes
        .par_chunks_exact_mut(row_bytes)
        .enumerate()
        .map_init(
            || vec![0f32; spec.cols as usize],
            |floats, (r, out)| -> Result<u64> {
                let (scales, weights) = out.split_at_mut(head);
                let r = match spec.role {
                    Role::Query | Role::Key => config.rotated_row(r as u32),
                    _ => r as u32,
                };
                let scale = row(&spec.name, r, format, floats, weights, source)?;
                if let Some(c) = compensation {
                    c.round(floats, &[scale], bytemuck::cast_slice_mut(weights));
                }
                let pairs = row_scales(scale, format, spec.role, config);
                for (slot, s) in scales.as_chunks_mut::<4>().0.iter_mut().zip(pairs) {
                    let sh = i16::try_from(-(s.e + FRACTION)).map_err(|_| {
                        ModelError::Gguf(format!("tensor {}, row {r} has weights of an impossible size", spec.name))
                    })?;
                    slot[..2].copy_from_slice(&s.m.to_be_bytes());
                    slot[2..].copy_from_slice(&sh.to_be_bytes());
                }
                row_norm(format, weights)
                    .ok_or_else(|| ModelError::Gguf(format!("tensor {}, row {r} leaves its format's range", spec.name)))
            },
        )
        .try_reduce(|| 0, |a, b| Ok(a.max(b)))?;
    Ok(Stored { bytes, row_bytes, l1 })
}

/// Row `r` of a tensor in `format`; gives the scale of its integers.
fn row(
    name: &str,
    r: u32,
    format: RowFormat,
    floats: &mut [f32],
    out: &mut [u8],
    source: &dyn FloatTensors,
) -> Result<Scale> {
    if format != RowFormat::I8
        && let Some(blocks) = source.blocks(name, r)?
        && blocks::format_of(&blocks) == format
    {
        return Ok(blocks::keep_row(&blocks, out));
    }
    source.row(name, r, floats)?;
    if floats.iter().any(|w| !w.is_finite()) {
        return Err(ModelError::Gguf(format!("tensor {name}, row {r} holds a number that is not finite")));
    }
    match format {
        RowFormat::I8 => Ok(quantise::quantise_row(floats, bytemuck::cast_slice_mut(out)).0),
        RowFormat::Q8 => Ok(blocks::quantise_row(floats, out)),
        // `formats` chose it because every row has such blocks.
        RowFormat::Q4 => Err(ModelError::Gguf(format!("tensor {name}, row {r} has no blocks of four bits"))),
    }
}

/// The scale pairs of a row: what its consumers multiply by, constants of the place folded in.
fn row_scales(scale: Scale, format: RowFormat, role: Role, config: &Config) -> impl Iterator<Item = Scale> {
    let c = &config.hyper;
    // `LINEAR` narrows its accumulator; `EMBED` takes the weights as they are.
    let narrowed = Scale { m: scale.m, e: scale.e + format.shift() as i32 };
    let normed = || narrowed.times(1.0, f64::from(c.hidden).sqrt());
    let first = match role {
        Role::Embedding => scale.times(1.0, c.embedding_scale),
        Role::Query | Role::Key | Role::Value | Role::Gate | Role::Up | Role::Head => normed(),
        Role::Output => narrowed.times(1.0 / f64::from(WEIGHT_MAX), 1.0),
        Role::Down => narrowed,
    };
    let second = (role == Role::Embedding && c.tied).then(normed);
    std::iter::once(first).chain(second)
}

/// How wide the activations may be, from the matrices that multiply them.
#[derive(Default)]
pub(crate) struct Widths {
    attention: Option<u8>,
    ffn: Option<u8>,
    down: Option<u8>,
    head: Option<u8>,
}

impl Widths {
    /// Takes a matrix with the largest ‖row‖₁ `l1` into account.
    pub(crate) fn record(&mut self, role: Role, format: RowFormat, l1: u64, config: &Config) -> Result<()> {
        let (place, slot) = match role {
            // An untied embedding is only looked up, never multiplied.
            Role::Embedding if !config.hyper.tied => return Ok(()),
            Role::Embedding | Role::Head => ("the head", &mut self.head),
            Role::Query | Role::Key | Role::Value => ("q, k or v", &mut self.attention),
            Role::Gate | Role::Up => ("gate or up", &mut self.ffn),
            Role::Down => ("down", &mut self.down),
            Role::Output if quantise::partial_sums_fit(format, l1, 8) => return Ok(()),
            Role::Output => {
                return Err(ModelError::unsupported(
                    "an attention output wider than int8 sums allow",
                    "take a narrower model",
                ));
            }
        };
        let bits = quantise::activation_bits(format, l1).ok_or_else(|| {
            ModelError::unsupported(
                format!(
                    "a row of {place} whose weights sum to {l1}: not even 9-bit activations keep its sums in range"
                ),
                "take a narrower model",
            )
        })?;
        *slot = Some(slot.map_or(bits, |b| b.min(bits)));
        Ok(())
    }

    pub(crate) fn bits(&self) -> ActivationBits {
        let wide = |b: Option<u8>| b.unwrap_or(16);
        ActivationBits {
            attention: wide(self.attention),
            ffn: wide(self.ffn),
            down: wide(self.down),
            head: wide(self.head),
        }
    }
}
