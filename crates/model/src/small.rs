//! Small random models of every family, in the files that people publish: for tests that begin where a user begins, at the
//! import.
//!
//! One seed gives one model, whichever layout it is written in; only [`Layout::Blocks`] rounds its weights.

mod gguf;
mod hf;

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    error::{ModelError, Result},
    synthetic::{SyntheticSpec, random},
};

/// Families, each with every part that its published models have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2: a head of its own
    Llama2,
    /// Llama 3: shared k/v heads, frequencies stretched by wavelength
    Llama3,
    /// SmolLM2: the head shares the embedding's matrix
    SmolLm2,
    /// Mistral: attention within a window
    Mistral,
    /// Qwen 2 and 2.5: biases of q, k and v; YaRN
    Qwen2,
    /// Qwen 3: q and k normed head by head
    Qwen3,
    /// Gemma: GELU, scaled embedding, gains above one
    Gemma,
    /// Gemma 2: norms after the parts, caps, windows in every other block
    Gemma2,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 8] = [
        Family::Llama2,
        Family::Llama3,
        Family::SmolLm2,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Gemma,
        Family::Gemma2,
    ];

    /// A name for files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Llama2 => "llama2",
            Family::Llama3 => "llama3",
            Family::SmolLm2 => "smollm2",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
        }
    }

    /// As `config.json` names it.
    const fn model_type(self) -> &'static str {
        match self {
            Family::Llama2 | Family::Llama3 | Family::SmolLm2 => "llama",
            other => other.name(),
        }
    }

    /// As `general.architecture` names it.
    const fn architecture(self) -> &'static str {
        match self {
            Family::Mistral => "llama",
            other => other.model_type(),
        }
    }

    const fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma | Family::Gemma2)
    }

    const fn is_tied(self) -> bool {
        !matches!(self, Family::Llama2 | Family::Llama3 | Family::Mistral | Family::Qwen2)
    }
}

/// Files that a model is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A directory with `config.json`, `tokenizer.json` and safetensors, F32
    HuggingFace,
    /// One GGUF file, F32
    Gguf,
    /// One GGUF file: the embedding in Q8_0, the other matrices in Q4_1, vectors in F32
    Blocks,
}

/// Sizes that all families have here.
struct Sizes {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: u32,
    context: u32,
    window: u32,
}

const SIZES: Sizes = Sizes {
    layers: 2,
    hidden: 64,
    heads: 4,
    kv_heads: 2,
    // heads · head_dim is not the hidden width.
    head_dim: 32,
    ffn: 96,
    vocab: 320,
    context: 128,
    window: 12,
};
/// Rotary base of all families here.
const ROPE_BASE: f64 = 10_000.0;
const EPSILON: f64 = 1e-5;

/// A tensor of a model: its name in both layouts, shape and numbers. Norms' gains are whole, q and k in halves.
struct Tensor {
    hf: String,
    gguf: String,
    rows: Option<usize>,
    cols: usize,
    values: Vec<f32>,
}

impl Tensor {
    fn is_norm(&self) -> bool {
        self.gguf.ends_with("norm.weight")
    }

    /// Whether its rows rotate: q and k, not their norms.
    fn rotates(&self) -> bool {
        ["attn_q.", "attn_k."].iter().any(|n| self.gguf.contains(n))
    }
}

/// Writes a model under `directory` and gives the path to import: of the GGUF file or of the directory's own directory.
///
/// # Errors
/// The disk refuses.
pub fn write(family: Family, layout: Layout, seed: u64, directory: &Path) -> Result<PathBuf> {
    fs::create_dir_all(directory).map_err(ModelError::io("creating", directory))?;
    let tensors = tensors(family, seed);
    let vocabulary = SyntheticSpec { vocab: SIZES.vocab, ..SyntheticSpec::default() }.vocabulary();
    match layout {
        Layout::HuggingFace => {
            let path = directory.join(family.name());
            fs::create_dir_all(&path).map_err(ModelError::io("creating", &path))?;
            hf::write(family, &tensors, &vocabulary, &path)?;
            Ok(path)
        }
        Layout::Gguf | Layout::Blocks => {
            let path = directory.join(format!("{}.gguf", family.name()));
            let bytes = gguf::file(family, &tensors, &vocabulary, layout == Layout::Blocks);
            fs::write(&path, bytes).map_err(ModelError::io("writing", &path))?;
            Ok(path)
        }
    }
}

fn tensors(family: Family, seed: u64) -> Vec<Tensor> {
    let s = &SIZES;
    let mut all = Vec::new();
    // Uniform around zero; `deviation` is the standard deviation.
    let mut add = |hf: String, gguf: String, rows: Option<usize>, cols: usize, mean: f32, deviation: f32| {
        let mut values = vec![0.0; rows.unwrap_or(1) * cols];
        random(seed, &gguf, deviation, &mut values);
        values.iter_mut().for_each(|v| *v += mean);
        all.push(Tensor { hf, gguf, rows, cols, values });
    };
    // Gemma's embedding is multiplied by √hidden.
    let embedding = if family.is_gemma() { 0.3 / (s.hidden as f32).sqrt() } else { 0.3 };
    let vocab = s.vocab as usize;
    add("model.embed_tokens.weight".into(), "token_embd.weight".into(), Some(vocab), s.hidden, 0.0, embedding);
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    for l in 0..s.layers {
        let name = |hf: &str, gguf: &str, kind: &str| {
            (format!("model.layers.{l}.{hf}.{kind}"), format!("blk.{l}.{gguf}.{kind}"))
        };
        for (hf, gguf, rows, cols, gain) in [
            ("self_attn.q_proj", "attn_q", q, s.hidden, 1.6),
            ("self_attn.k_proj", "attn_k", kv, s.hidden, 1.6),
            ("self_attn.v_proj", "attn_v", kv, s.hidden, 1.0),
            ("self_attn.o_proj", "attn_output", s.hidden, q, 3.0),
            ("mlp.gate_proj", "ffn_gate", s.ffn, s.hidden, 1.5),
            ("mlp.up_proj", "ffn_up", s.ffn, s.hidden, 1.5),
            ("mlp.down_proj", "ffn_down", s.hidden, s.ffn, 3.0),
        ] {
            let (a, b) = name(hf, gguf, "weight");
            add(a, b, Some(rows), cols, 0.0, gain / (cols as f32).sqrt());
            if family == Family::Qwen2 && ["attn_q", "attn_k", "attn_v"].contains(&gguf) {
                let (a, b) = name(hf, gguf, "bias");
                add(a, b, None, rows, 0.0, 0.5);
            }
        }
        let mut norm = |hf: &str, gguf: &str, n: usize| {
            let (a, b) = name(hf, gguf, "weight");
            add(a, b, None, n, 1.0, 0.3);
        };
        norm("input_layernorm", "attn_norm", s.hidden);
        if family == Family::Gemma2 {
            norm("post_attention_layernorm", "post_attention_norm", s.hidden);
            norm("pre_feedforward_layernorm", "ffn_norm", s.hidden);
            norm("post_feedforward_layernorm", "post_ffw_norm", s.hidden);
        } else {
            norm("post_attention_layernorm", "ffn_norm", s.hidden);
        }
        if family == Family::Qwen3 {
            norm("self_attn.q_norm", "attn_q_norm", s.head_dim);
            norm("self_attn.k_norm", "attn_k_norm", s.head_dim);
        }
    }
    add("model.norm.weight".into(), "output_norm.weight".into(), None, s.hidden, 1.0, 0.3);
    if !family.is_tied() {
        let deviation = 1.5 / (s.hidden as f32).sqrt();
        add("lm_head.weight".into(), "output.weight".into(), Some(vocab), s.hidden, 0.0, deviation);
    }
    all
}
