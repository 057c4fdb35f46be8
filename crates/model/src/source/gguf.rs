//! A GGUF file as a source.

use std::path::Path;

use super::{RowBlocks, Source, Text, file::sha256, printable, text};
use crate::{
    directory::SourceInfo,
    error::{ModelError, Result},
    gguf::Gguf,
    hyper::Hyper,
    pack::FloatTensors,
    progress::{OnProgress, Progress, Stage},
};

/// A vector of divisors of the rotary frequencies, one per pair, that a file may have.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// An open file and its hyper-parameters.
pub(crate) struct GgufSource {
    gguf: Gguf,
    hyper: Hyper,
}

impl GgufSource {
    /// Opens a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let hyper = Hyper::from_gguf(&gguf)?;
        Ok(GgufSource { gguf, hyper })
    }
}

impl Source for GgufSource {
    fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    fn names(&self) -> Vec<&str> {
        self.gguf.tensors().keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<(usize, usize)> {
        self.gguf.tensors().get(name).map(|t| (t.rows, t.cols))
    }

    fn name(&self) -> Result<Option<String>> {
        Ok(self.gguf.string("general.name")?.map(printable))
    }

    fn text(&self) -> Result<Text> {
        text::of_gguf(&self.gguf, self.hyper.vocab)
    }

    fn info(&self, progress: OnProgress<'_>) -> Result<SourceInfo> {
        let total = self.gguf.bytes().len() as u64;
        let mut done = 0;
        let mut report = |n| {
            done += n;
            progress(Progress { stage: Stage::Checksum, done, total });
        };
        Ok(SourceInfo {
            format: "GGUF".into(),
            bytes: total,
            sha256: sha256(self.gguf.bytes(), &mut report),
            license: self.gguf.string("general.license")?.map(printable),
        })
    }
}

impl FloatTensors for GgufSource {
    fn row(&self, name: &str, row: u32, out: &mut [f32]) -> Result<()> {
        self.gguf.read_row(self.gguf.tensor(name)?, row as usize, out);
        Ok(())
    }

    fn vector(&self, name: &str, n: u32) -> Result<Vec<f32>> {
        let mut out = vec![0.0; n as usize];
        self.row(name, 0, &mut out)?;
        Ok(out)
    }

    fn blocks(&self, name: &str, row: u32) -> Result<Option<RowBlocks>> {
        self.gguf.read_blocks(self.gguf.tensor(name)?, row as usize)
    }

    /// Those of the file, and those of the scaling that it names: llama.cpp applies both.
    fn rope_divisors(&self, pairs: u32) -> Result<Option<Vec<f32>>> {
        let scaled = self.hyper.rope_scaling.divisors(self.hyper.rope_base, self.hyper.head_dim);
        let Some(t) = self.gguf.tensors().get(ROPE_DIVISORS) else { return Ok(scaled) };
        if (t.rows, t.cols) != (1, pairs as usize) {
            return Err(ModelError::Gguf(format!(
                "tensor {ROPE_DIVISORS} has {} elements, {pairs} are needed",
                t.rows * t.cols
            )));
        }
        let mut v = self.vector(ROPE_DIVISORS, pairs)?;
        if v.iter().any(|d| !d.is_finite() || *d <= 0.0) {
            return Err(ModelError::Gguf(format!("tensor {ROPE_DIVISORS} holds a divisor that is not positive")));
        }
        for (v, d) in v.iter_mut().zip(scaled.iter().flatten()) {
            *v *= d;
        }
        Ok(Some(v))
    }
}
