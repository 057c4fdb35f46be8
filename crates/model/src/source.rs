//! Where a model comes from: what every kind of source gives the importer.

mod file;
mod gguf;
mod hf;
mod text;

use std::path::Path;

pub(crate) use file::MappedFile;
pub(crate) use gguf::{GgufSource, ROPE_DIVISORS};
pub(crate) use hf::HfSource;
pub(crate) use text::Text;

use crate::{
    directory::SourceInfo,
    error::{ModelError, Result},
    hyper::Hyper,
    pack::FloatTensors,
    progress::OnProgress,
};

/// A model in files: tensors by the names that GGUF gives them (`blk.0.attn_q.weight`), hyper-parameters, text.
pub(crate) trait Source: FloatTensors {
    /// Its hyper-parameters.
    fn hyper(&self) -> &Hyper;

    /// Names of all tensors.
    fn names(&self) -> Vec<&str>;

    /// Rows and columns of a tensor, a vector being one row; `None` if there is none of this name.
    fn shape(&self, name: &str) -> Option<(usize, usize)>;

    /// Its own name, as it states it.
    fn name(&self) -> Result<Option<String>>;

    /// Tokenizer, chat template and special tokens, checked against each other.
    fn text(&self) -> Result<Text>;

    /// What is recorded of it. Reads every byte.
    fn info(&self, progress: OnProgress<'_>) -> Result<SourceInfo>;
}

/// Opens a `.gguf` file, or a directory as Hugging Face lays it out.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Source>> {
    if path.is_dir() {
        return Ok(Box::new(HfSource::open(path)?));
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return Err(ModelError::Argument(format!(
            "{} is one file of a model; name the directory that holds it together with config.json and tokenizer.json",
            path.display()
        )));
    }
    Ok(Box::new(GgufSource::open(path)?))
}

/// A name out of a file that anybody may have written, fit to be shown on a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Weights of a row in groups of 32, exactly as the source has them.
#[derive(Clone, Debug, PartialEq)]
pub enum RowBlocks {
    /// weight = d·q + m, q of 4 bits
    Q4 {
        /// (d, m) per group: of either sign, finite, and exact.
        groups: Vec<(f64, f64)>,
        /// 0…15, in order of the elements.
        q: Vec<u8>,
    },
    /// weight = d·q
    Q8 {
        /// d per group: of either sign, finite, and exact.
        groups: Vec<f64>,
        /// −128…127, in order of the elements.
        q: Vec<i8>,
    },
}

impl RowBlocks {
    /// Elements of a group.
    pub const GROUP: usize = 32;

    /// Whether every scale and minimum is a number.
    pub(crate) fn is_finite(&self) -> bool {
        match self {
            Self::Q4 { groups, .. } => groups.iter().all(|(d, m)| d.is_finite() && m.is_finite()),
            Self::Q8 { groups, .. } => groups.iter().all(|d| d.is_finite()),
        }
    }

    /// Element `i`, exactly.
    ///
    /// # Panics
    /// If the row has no such element.
    pub fn weight(&self, i: usize) -> f64 {
        match self {
            Self::Q4 { groups, q } => {
                let (d, m) = groups[i / Self::GROUP];
                d * f64::from(q[i]) + m
            }
            Self::Q8 { groups, q } => groups[i / Self::GROUP] * f64::from(q[i]),
        }
    }
}
