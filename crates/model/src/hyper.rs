//! The hyper-parameters of a model, the same whichever files it comes in.
//!
//! [`Hyper::from_gguf`] reads GGUF metadata, [`Hyper::from_config`] the `config.json` of a Hugging Face directory. Both refuse
//! what they do not know: a parameter that is silently ignored is another model.

mod config;
mod metadata;
mod rope;

pub use rope::{RopeLayout, RopeScaling};
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// Families of models. A family fixes which tensors there are; everything else is a field of [`Hyper`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama 1–3, Mistral, SmolLM, SmolLM2, TinyLlama
    Llama,
    /// Qwen 2 and 2.5
    Qwen2,
    /// Qwen 3
    Qwen3,
    /// Gemma 1
    Gemma,
    /// Gemma 2
    Gemma2,
}

impl Architecture {
    /// For error messages.
    const SUPPORTED: &'static str =
        "supported are llama (also Mistral, SmolLM2, TinyLlama), qwen2, qwen3, gemma, gemma2";

    /// Its name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
        }
    }

    /// By its name, as GGUF (`general.architecture`) and Hugging Face (`model_type`) write it.
    fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "llama" | "mistral" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "gemma" => Self::Gemma,
            "gemma2" => Self::Gemma2,
            other => return Err(ModelError::unsupported(format!("architecture {other:?}"), Self::SUPPORTED)),
        })
    }

    /// Whether it is one of the Gemmas: scaled embeddings and GELU.
    const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2)
    }

    /// Whether the gains of its norms lack a one in Hugging Face's files; GGUF's have it added.
    pub(crate) const fn adds_one_to_gains(self) -> bool {
        self.is_gemma()
    }

    const fn activation(self) -> Activation {
        if self.is_gemma() { Activation::GeluTanh } else { Activation::Silu }
    }
}

/// The function in the gate of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
    GeluTanh,
}

/// A window of attention and the blocks that have one. The others attend to all positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlidingWindow {
    /// Latest positions that a query attends to, its own included; at least 1.
    pub size: u32,
    /// The blocks that have it.
    pub blocks: WindowedBlocks,
}

/// Which blocks have a window of attention. Blocks count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowedBlocks {
    /// All (Mistral).
    All,
    /// 0, 2, 4, … (Gemma 2).
    Even,
    /// This one and those after it (Qwen 2).
    From(u32),
}

impl SlidingWindow {
    /// The window of a block, if it has one.
    pub const fn of_block(&self, block: u32) -> Option<u32> {
        let has = match self.blocks {
            WindowedBlocks::All => true,
            WindowedBlocks::Even => block.is_multiple_of(2),
            WindowedBlocks::From(first) => block >= first,
        };
        if has { Some(self.size) } else { None }
    }
}

/// Hyper-parameters. Widths count elements; a projection's matrix has one row per output.
///
/// Norms are root-mean-square norms whose gain multiplies as it is stored: the sources add the one that Gemma's files leave
/// out where they leave it out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyper {
    /// The family.
    pub architecture: Architecture,
    /// Transformer blocks; 1 to 4,096.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head, even. `heads · head_dim` need not be `hidden`.
    pub head_dim: u32,
    /// Width of the feed-forward part.
    pub ffn: u32,
    /// Rows of the embedding.
    pub vocab: u32,
    /// Positions that the model was made for.
    pub context: u32,
    /// ε of the norms, below 1; a single-precision number.
    pub epsilon: f64,
    /// Whether the head multiplies by the embedding's matrix.
    pub tied: bool,
    /// Base of the rotary embedding, above 1; a single-precision number.
    pub rope_base: f64,
    /// How the rotary embedding is stretched.
    pub rope_scaling: RopeScaling,
    /// Which elements of a head rotate together, in the rows of the source's q and k (matrices, biases, and norms).
    pub rope_layout: RopeLayout,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub ffn_bias: bool,
    /// Whether q and k are normed head by head before they rotate (Qwen 3).
    pub head_norms: bool,
    /// Whether the outputs of attention and feed-forward part are normed before they join the residual stream (Gemma 2).
    pub post_norms: bool,
    /// Attention of limited reach.
    pub sliding_window: Option<SlidingWindow>,
    /// Scores are divided by the square root of this; the head's width in most models.
    pub query_scalar: f64,
    /// A score s becomes c·tanh(s/c) before the softmax.
    pub score_cap: Option<f64>,
    /// A logit l becomes c·tanh(l/c).
    pub logit_cap: Option<f64>,
    /// The embedding is multiplied by this (√hidden in the Gemmas, else 1).
    pub embedding_scale: f64,
    /// The gate's function.
    pub activation: Activation,
}

impl Hyper {
    /// Widest of the widths: what keeps all products of two of them within 64 bits, and far above any model.
    const MAX_WIDTH: u32 = 1 << 24;

    /// Checks that the sizes make sense by themselves; whether the instruction set can hold them is for others to say.
    fn check(self) -> Result<Self> {
        let bad = |what: String| Err(ModelError::unsupported(what, "compare the file with its publisher's"));
        let widths = [
            ("hidden width", self.hidden),
            ("number of heads", self.heads),
            ("number of key/value heads", self.kv_heads),
            ("head width", self.head_dim),
            ("feed-forward width", self.ffn),
            ("vocabulary", self.vocab),
        ];
        if let Some((name, n)) = widths.into_iter().find(|(_, n)| *n == 0 || *n > Self::MAX_WIDTH) {
            return bad(format!("{name} {n}"));
        }
        if self.layers == 0 || self.layers > 4096 {
            return bad(format!("{} blocks", self.layers));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad(format!("{} query heads over {} key/value heads", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) || u64::from(self.heads) * u64::from(self.head_dim) > 1 << 24 {
            return bad(format!("{} heads of width {}", self.heads, self.head_dim));
        }
        if self.context == 0 {
            return bad("a context of 0 positions".into());
        }
        if self.sliding_window.is_some_and(|w| w.size == 0) {
            return bad("a window of 0 positions".into());
        }
        if !(self.rope_base.is_finite() && self.rope_base > 1.0) {
            return bad(format!("rotary base {}", self.rope_base));
        }
        if !(self.epsilon > 0.0 && self.epsilon < 1.0) {
            return bad(format!("norm ε {}", self.epsilon));
        }
        let positive =
            [("query scalar", Some(self.query_scalar)), ("score cap", self.score_cap), ("logit cap", self.logit_cap)];
        for (name, v) in positive {
            if let Some(v) = v.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return bad(format!("{name} {v}"));
            }
        }
        self.rope_scaling.check()?;
        Ok(self)
    }
}

/// A number as GGUF stores it: both kinds of source shall give the same model.
fn single(v: f64) -> f64 {
    f64::from(v as f32)
}

/// Refusals that both readers share.
fn no_experts(n: u64) -> Result<()> {
    if n > 0 {
        return Err(ModelError::unsupported(format!("a mixture of {n} experts"), "take a dense model"));
    }
    Ok(())
}

fn no_partial_rotation(rotated: f64, head_dim: u32) -> Result<()> {
    if rotated != f64::from(head_dim) {
        return Err(ModelError::unsupported(
            format!("a rotary embedding of {rotated} of each head's {head_dim} elements"),
            "take a model that rotates whole heads",
        ));
    }
    Ok(())
}
