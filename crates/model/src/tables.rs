//! The tables of a model directory.

use sworn_commit::tensor;
use sworn_isa::Dtype;

use crate::{
    directory::{Index, StagedFile, TableEntry},
    error::{ModelError, Result},
    family::{Config, TableSpec},
    pack::FloatTensors,
    quantise,
};

/// Writes every table, and its entry in the index.
pub(crate) fn write(
    file: &mut StagedFile,
    index: &mut Index,
    config: &Config,
    source: &dyn FloatTensors,
) -> Result<()> {
    let c = &config.hyper;
    let (cos, sin) = {
        let divisors = source.rope_divisors(c.head_dim / 2)?;
        quantise::rope_tables(config.positions, c.head_dim, c.rope_base, divisors.as_deref())
    };
    for spec in config.tables() {
        let (name, dtype, values) = match spec {
            TableSpec::Exponential => ("exp2".to_owned(), Dtype::U16, quantise::exp_table()),
            TableSpec::Cosine => ("rope_cos".to_owned(), Dtype::I16, cos.clone()),
            TableSpec::Sine => ("rope_sin".to_owned(), Dtype::I16, sin.clone()),
            TableSpec::Noise => ("noise".to_owned(), Dtype::I32, quantise::noise_table()),
            TableSpec::Logarithm => ("ln".to_owned(), Dtype::U16, quantise::ln_table()),
            TableSpec::Gain { tensor, n, factor, rotated } => {
                let gain = vector(&tensor, n, rotated, config, source)?;
                let table = quantise::gain_table(&gain, factor)
                    .ok_or_else(|| ModelError::Gguf(format!("tensor {tensor} has gains of an impossible size")))?;
                (tensor, Dtype::I16, table)
            }
            TableSpec::Bias { tensor, n, rotated } => {
                let bias = vector(&tensor, n, rotated, config, source)?;
                let table = quantise::bias_table(&bias)
                    .ok_or_else(|| ModelError::Gguf(format!("tensor {tensor} has a bias of 65,536 or more")))?;
                (tensor, Dtype::I32, table)
            }
            TableSpec::Window { name, width } => (name, Dtype::I32, vec![i64::from(width)]),
        };
        let bytes = quantise::encode(dtype, &values);
        file.write(&bytes)?;
        let root = tensor::tensor_root(&bytes);
        index.tables.push(TableEntry { name, dtype: dtype as u8, elements: values.len() as u32, root });
    }
    Ok(())
}

/// A vector of the source, in the order in which its rows rotate.
fn vector(name: &str, n: u32, rotated: bool, config: &Config, source: &dyn FloatTensors) -> Result<Vec<f32>> {
    let v = source.vector(name, n)?;
    if v.len() != n as usize || v.iter().any(|g| !g.is_finite()) {
        return Err(ModelError::Gguf(format!("tensor {name} holds a number that is not finite")));
    }
    if !rotated {
        return Ok(v);
    }
    Ok((0..n).map(|i| v[config.rotated_row(i) as usize]).collect())
}
