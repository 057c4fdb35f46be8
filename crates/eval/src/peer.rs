//! Candle's own quantised Llama on the same file: a second engine to compare speeds with.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};
use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};
use sworn_engine::Result;

use crate::{candle_error, reference};

/// Bytes of a GGUF's tensors that a decoded token reads: all of them, but for an embedding that is not the head as well.
///
/// # Errors
/// The file cannot be read.
pub fn bytes_per_token(gguf: &Path) -> Result<u64> {
    let file = File::open(gguf).map_err(|e| reference(format!("{}: {e}", gguf.display())))?;
    let tensors = Content::read(&mut BufReader::new(file)).map_err(candle_error)?.tensor_infos;
    let own_head = tensors.contains_key("output.weight");
    let read = tensors.iter().filter(|(name, _)| !own_head || *name != "token_embd.weight");
    let bytes = read.map(|(_, t)| t.shape.elem_count() / t.ggml_dtype.block_size() * t.ggml_dtype.type_size());
    Ok(bytes.map(|b| b as u64).sum())
}

/// A GGUF loaded by candle, with one sequence. It executes on rayon's global threads, whose number the environment variable
/// `RAYON_NUM_THREADS` sets.
pub struct CandlePeer {
    model: ModelWeights,
    len: usize,
}

impl CandlePeer {
    /// Version of candle.
    pub const VERSION: &'static str = "0.11";

    /// Loads a file of the Llama architecture.
    ///
    /// # Errors
    /// The file cannot be read or is of another architecture.
    pub fn open(gguf: &Path) -> Result<Self> {
        let file = File::open(gguf).map_err(|e| reference(format!("{}: {e}", gguf.display())))?;
        let mut file = BufReader::new(file);
        let content = Content::read(&mut file).map_err(candle_error)?;
        let model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).map_err(candle_error)?;
        Ok(CandlePeer { model, len: 0 })
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.model.clear_kv_cache();
        self.len = 0;
    }

    /// Appends tokens and gives the likeliest next one.
    ///
    /// # Errors
    /// A sequence beyond candle's rotary tables, or an operator that fails.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<u32> {
        if self.len + tokens.len() > MAX_SEQ_LEN {
            return Err(reference(format!("candle's Llama has rotary tables for {MAX_SEQ_LEN} positions")));
        }
        let next = self.forward(tokens).map_err(candle_error)?;
        self.len += tokens.len();
        Ok(next)
    }

    fn forward(&mut self, tokens: &[u32]) -> candle_core::Result<u32> {
        let x = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.model.forward(&x, self.len)?;
        logits.squeeze(0)?.argmax(D::Minus1)?.to_scalar()
    }
}
