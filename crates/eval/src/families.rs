//! The forward pass of every family in single precision, with candle's operators, as the families' papers and configurations
//! define it.
//!
//! It shares nothing with the integer program but the hyper-parameters: tensors are read by candle, from either kind of
//! source, and nothing is folded, permuted or rounded.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{ops, rotary_emb};
use rayon::prelude::*;
use sworn_engine::Result;
use sworn_model::Hyper;
use sworn_model::hyper::{Activation, Architecture, RopeLayout};

use crate::{candle_error, reference};

/// A model in single precision.
pub struct FloatModel {
    hyper: Hyper,
    /// By the names that GGUF gives them.
    tensors: HashMap<String, Tensor>,
    /// Angular frequency of each rotary pair.
    frequencies: Vec<f64>,
}

impl FloatModel {
    /// Reads a GGUF file, or a directory with safetensors.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn open(path: &Path, hyper: &Hyper) -> Result<Self> {
        let tensors = if path.is_dir() { safetensors(path, hyper) } else { gguf(path) }?;
        let tensors = tensors.map_err(candle_error)?;
        let pairs = hyper.head_dim as usize / 2;
        let mut divisors = hyper.rope_scaling.divisors(hyper.rope_base, hyper.head_dim).unwrap_or(vec![1.0; pairs]);
        if let Some(own) = tensors.get("rope_freqs.weight") {
            let own: Vec<f32> = own.flatten_all().and_then(|t| t.to_vec1()).map_err(candle_error)?;
            divisors.iter_mut().zip(own).for_each(|(d, o)| *d *= o);
        }
        let frequency =
            |(i, d): (usize, &f32)| hyper.rope_base.powf(-2.0 * i as f64 / f64::from(hyper.head_dim)) / f64::from(*d);
        let frequencies = divisors.iter().enumerate().map(frequency).collect();
        Ok(FloatModel { hyper: hyper.clone(), tensors, frequencies })
    }

    /// The logits at every position of one sequence.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than its neighbours need.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.forward(tokens).map_err(candle_error)
    }

    fn tensor(&self, name: &str) -> candle_core::Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("tensor {name} is missing")))
    }

    fn forward(&self, tokens: &[u32]) -> candle_core::Result<Vec<Vec<f32>>> {
        let h = &self.hyper;
        let rotary = self.rotary(tokens.len())?;
        let embedding = self.tensor("token_embd.weight")?;
        let mut x = (embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)? * h.embedding_scale)?;
        for l in 0..h.layers {
            let block = Block { model: self, layer: l };
            let mut y = block.attention(&block.norm(&x, "attn_norm")?, &rotary)?;
            if h.post_norms {
                y = block.norm(&y, "post_attention_norm")?;
            }
            x = (x + y)?;
            let mut y = block.feed_forward(&block.norm(&x, "ffn_norm")?)?;
            if h.post_norms {
                y = block.norm(&y, "post_ffw_norm")?;
            }
            x = (x + y)?;
        }
        let x = ops::rms_norm(&x, self.tensor("output_norm.weight")?, h.epsilon as f32)?;
        let head = if h.tied { embedding } else { self.tensor("output.weight")? };
        let logits = cap(x.matmul(&head.t()?)?, h.logit_cap)?;
        let width = logits.dim(D::Minus1)?;
        let all: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        Ok(all.par_chunks(width).map(<[f32]>::to_vec).collect())
    }

    /// Cosine and sine of every position and pair.
    fn rotary(&self, n: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let angles: Vec<f64> = (0..n).flat_map(|t| self.frequencies.iter().map(move |f| t as f64 * f)).collect();
        let angles = Tensor::from_vec(angles, (n, self.frequencies.len()), &Device::Cpu)?;
        let magnitude = self.hyper.rope_scaling.magnitude();
        let table = |x: Tensor| (x * magnitude)?.to_dtype(DType::F32);
        Ok((table(angles.cos()?)?, table(angles.sin()?)?))
    }
}

/// c·tanh(x/c)
fn cap(x: Tensor, cap: Option<f64>) -> candle_core::Result<Tensor> {
    match cap {
        Some(c) => (x / c)?.tanh()? * c,
        None => Ok(x),
    }
}

struct Block<'a> {
    model: &'a FloatModel,
    layer: u32,
}

impl Block<'_> {
    fn part(&self, name: &str) -> candle_core::Result<&Tensor> {
        self.model.tensor(&format!("blk.{}.{name}", self.layer))
    }

    fn norm(&self, x: &Tensor, name: &str) -> candle_core::Result<Tensor> {
        ops::rms_norm(&x.contiguous()?, self.part(&format!("{name}.weight"))?, self.model.hyper.epsilon as f32)
    }

    fn project(&self, x: &Tensor, name: &str, bias: bool) -> candle_core::Result<Tensor> {
        let y = x.matmul(&self.part(&format!("{name}.weight"))?.t()?)?;
        if bias { y.broadcast_add(self.part(&format!("{name}.bias"))?) } else { Ok(y) }
    }

    fn attention(&self, x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> candle_core::Result<Tensor> {
        let h = &self.model.hyper;
        let n = x.dim(0)?;
        let (heads, kv, width) = (h.heads as usize, h.kv_heads as usize, h.head_dim as usize);
        let split = |x: Tensor, heads: usize| x.reshape((1, n, heads, width))?.transpose(1, 2)?.contiguous();
        let rotated = |name: &str, heads: usize| {
            let mut x = split(self.project(x, name, h.qkv_bias)?, heads)?;
            if h.head_norms {
                x = self.norm(&x, &format!("{name}_norm"))?;
            }
            match h.rope_layout {
                RopeLayout::Interleaved => rotary_emb::rope_i(&x, cos, sin),
                RopeLayout::Halves => rotary_emb::rope(&x, cos, sin),
            }
        };
        let shared = |x: Tensor| {
            let x = x.unsqueeze(2)?.expand((1, kv, heads / kv, n, width))?;
            x.reshape((1, heads, n, width))?.contiguous()
        };
        let q = rotated("attn_q", heads)?;
        let k = shared(rotated("attn_k", kv)?)?;
        let v = shared(split(self.project(x, "attn_v", h.qkv_bias)?, kv)?)?;
        let scores = cap((q.matmul(&k.t()?)? / h.query_scalar.sqrt())?, h.score_cap)?;
        let window = h.sliding_window.and_then(|w| w.of_block(self.layer)).map_or(usize::MAX, |w| w as usize);
        let visible = |i: usize, j: usize| j <= i && i - j < window;
        let mask: Vec<f32> =
            (0..n).flat_map(|i| (0..n).map(move |j| if visible(i, j) { 0.0 } else { f32::NEG_INFINITY })).collect();
        let scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, 1, n, n), &Device::Cpu)?)?;
        let mixed = ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((n, heads * width))?;
        self.project(&mixed, "attn_output", h.output_bias)
    }

    fn feed_forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let h = &self.model.hyper;
        let gate = self.project(x, "ffn_gate", h.ffn_bias)?;
        let gate = match h.activation {
            Activation::Silu => ops::silu(&gate)?,
            // candle's plain `gelu` is the tanh form.
            Activation::GeluTanh => gate.gelu()?,
        };
        self.project(&(gate * self.project(x, "ffn_up", h.ffn_bias)?)?, "ffn_down", h.ffn_bias)
    }
}

type Tensors = candle_core::Result<HashMap<String, Tensor>>;

fn gguf(path: &Path) -> Result<Tensors> {
    let file = File::open(path).map_err(|e| reference(format!("{}: {e}", path.display())))?;
    let mut file = BufReader::new(file);
    let content = Content::read(&mut file).map_err(candle_error)?;
    let device = Device::Cpu;
    let mut read = |name: &String| Ok((name.clone(), content.tensor(&mut file, name, &device)?.dequantize(&device)?));
    Ok(content.tensor_infos.keys().map(&mut read).collect())
}

fn safetensors(dir: &Path, hyper: &Hyper) -> Result<Tensors> {
    let failed = |e: std::io::Error| reference(format!("{}: {e}", dir.display()));
    let mut all = HashMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            all.extend(candle_core::safetensors::load(&path, &Device::Cpu).map_err(candle_error)?);
        }
    }
    let tensors = all.into_iter().map(|(name, tensor)| {
        let tensor = tensor.to_dtype(DType::F32)?;
        let norm = name.ends_with("norm.weight");
        // The Gemmas store what a norm's gains are above one.
        let above_one = norm && matches!(hyper.architecture, Architecture::Gemma | Architecture::Gemma2);
        Ok((plain_name(&name, hyper.post_norms), if above_one { (tensor + 1.0)? } else { tensor }))
    });
    Ok(tensors.collect())
}

/// GGUF's name of a tensor of Hugging Face's.
fn plain_name(name: &str, post_norms: bool) -> String {
    let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|n| n.split_once('.')) else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            other => other,
        }
        .to_owned();
    };
    let (module, kind) = part.rsplit_once('.').unwrap_or((part, ""));
    let module = match module {
        "input_layernorm" => "attn_norm",
        // The same name means the norm after the attention where there are such norms, and the one before the feed-forward
        // part where there are not.
        "post_attention_layernorm" if post_norms => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => other,
    };
    format!("blk.{layer}.{module}.{kind}")
}
