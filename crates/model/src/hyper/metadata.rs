//! Hyper-parameters from GGUF metadata.

use super::{
    Architecture, Hyper, RopeLayout, RopeScaling, SlidingWindow, WindowedBlocks, no_experts, no_partial_rotation,
    single,
};
use crate::{
    error::{ModelError, Result},
    gguf::Gguf,
};

/// Keys (after the architecture's name) of things that no supported family does. A file that has one computes something else.
const FOREIGN: [&str; 14] = [
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "swin_norm",
    "use_parallel_residual",
    "interleave_moe_layer_step",
    "attention.temperature_scale",
    "attention.temperature_length",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.layer_norm_epsilon",
    "attention.kv_lora_rank",
    "rope.dimension_sections",
    "rope.scaling.yarn_log_multiplier",
];

/// Metadata of one architecture: keys without its prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn uint(&self, key: &str) -> Result<Option<u32>> {
        let key = self.key(key);
        let v = self.gguf.uint(&key)?;
        v.map(|v| u32::try_from(v).map_err(|_| ModelError::Gguf(format!("{key} = {v} is out of range")))).transpose()
    }

    fn need(&self, key: &str) -> Result<u32> {
        self.uint(key)?.ok_or_else(|| missing(&self.key(key)))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        self.gguf.float(&self.key(key))
    }

    fn rope_scaling(&self, context: u32) -> Result<RopeScaling> {
        let factor = match self.float("rope.scaling.factor")? {
            None => self.float("rope.scale_linear")?,
            factor => factor,
        }
        .filter(|f| *f != 0.0);
        let key = self.key("rope.scaling.type");
        // Files from before there were kinds have a factor alone, and mean a linear one.
        let kind = self.gguf.string(&key)?.unwrap_or("linear");
        match (kind, factor) {
            ("none", _) | ("linear", None) => Ok(RopeScaling::None),
            ("linear", Some(1.0)) => Ok(RopeScaling::None),
            ("linear", Some(factor)) => Ok(RopeScaling::Linear { factor }),
            ("yarn", Some(factor)) => {
                if let Some(v) = self.float("rope.scaling.yarn_ext_factor")?.filter(|v| *v != 1.0) {
                    return Err(ModelError::unsupported(
                        format!("{} = {v}", self.key("rope.scaling.yarn_ext_factor")),
                        "YaRN is supported with an extrapolation factor of 1",
                    ));
                }
                let original = self.uint("rope.scaling.original_context_length")?.unwrap_or(context);
                let attention = match self.float("rope.scaling.yarn_attn_factor")? {
                    None => self.float("rope.scaling.attn_factor")?,
                    factor => factor,
                };
                Ok(RopeScaling::Yarn {
                    factor,
                    original: original.into(),
                    fast: self.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    slow: self.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    magnitude: RopeScaling::yarn_magnitude(factor) * attention.unwrap_or(1.0),
                })
            }
            ("yarn", None) => Err(missing(&self.key("rope.scaling.factor"))),
            (other, _) => Err(ModelError::unsupported(
                format!("rotary scaling {other:?}"),
                "supported are none, linear, yarn, and divisors per pair in rope_freqs.weight",
            )),
        }
    }
}

fn missing(key: &str) -> ModelError {
    ModelError::Gguf(format!("metadata {key} is missing"))
}

impl Hyper {
    /// Reads the hyper-parameters of a GGUF file.
    ///
    /// # Errors
    /// Names what is missing, contradictory or not supported.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let name = gguf.string("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
        let architecture = Architecture::from_name(name)?;
        let keys = Keys { gguf, architecture: name };
        if let Some(key) = FOREIGN.iter().map(|k| keys.key(k)).find(|k| gguf.metadata().contains_key(k)) {
            return Err(ModelError::unsupported(
                format!("metadata {key} (no {name} model has it)"),
                "take the plain model that this one was derived from",
            ));
        }
        if gguf.bool(&keys.key("attention.causal"))? == Some(false) {
            return Err(ModelError::unsupported("attention to later positions", "take a model that generates text"));
        }
        no_experts(keys.uint("expert_count")?.unwrap_or(0).into())?;

        let hidden = keys.need("embedding_length")?;
        let heads = keys.need("attention.head_count")?;
        let layers = keys.need("block_count")?;
        let context = keys.need("context_length")?;
        let head_dim = match keys.uint("attention.key_length")? {
            Some(d) => d,
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(ModelError::Gguf(format!("{heads} heads do not divide a width of {hidden}"))),
        };
        if keys.uint("attention.value_length")?.is_some_and(|n| n != head_dim) {
            return Err(ModelError::unsupported(
                "value heads of another width than key heads",
                "take a model where they agree",
            ));
        }
        no_partial_rotation(keys.uint("rope.dimension_count")?.unwrap_or(head_dim).into(), head_dim)?;
        let rows = gguf.tensor("token_embd.weight")?.rows;
        let vocab = u32::try_from(rows).map_err(|_| ModelError::Gguf("the vocabulary is out of range".into()))?;
        if let Some(v) = keys.uint("vocab_size")?.filter(|v| *v != vocab) {
            return Err(ModelError::Gguf(format!("{name}.vocab_size is {v}, but the embedding has {vocab} rows")));
        }

        let gemma2 = architecture == Architecture::Gemma2;
        let window = keys.uint("attention.sliding_window")?.or(gemma2.then_some(4096)).filter(|size| *size > 0);
        let blocks = if gemma2 { WindowedBlocks::Even } else { WindowedBlocks::All };
        // The format has no key for it, and the 27B Gemma 2 alone (46 blocks) differs.
        let query_scalar = match keys.float("attention.scale")?.filter(|s| *s != 0.0) {
            Some(scale) => 1.0 / (scale * scale),
            None if gemma2 && layers == 46 && heads > 0 => f64::from(hidden) / f64::from(heads),
            None => head_dim.into(),
        };
        let cap = |key: &str, gemma2s: f64| -> Result<Option<f64>> {
            Ok(keys.float(key)?.or(gemma2.then_some(gemma2s)).filter(|c| *c != 0.0))
        };
        let has = |name: &str| gguf.tensors().contains_key(name);
        Hyper {
            architecture,
            layers,
            hidden,
            heads,
            kv_heads: keys.uint("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            ffn: keys.need("feed_forward_length")?,
            vocab,
            context,
            epsilon: keys
                .float("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| missing(&keys.key("attention.layer_norm_rms_epsilon")))?,
            tied: !has("output.weight"),
            rope_base: single(keys.float("rope.freq_base")?.unwrap_or(10_000.0)),
            rope_scaling: keys.rope_scaling(context)?,
            rope_layout: match architecture {
                Architecture::Llama => RopeLayout::Interleaved,
                _ => RopeLayout::Halves,
            },
            qkv_bias: ["q", "k", "v"].iter().any(|n| has(&format!("blk.0.attn_{n}.bias"))),
            output_bias: has("blk.0.attn_output.bias"),
            ffn_bias: ["gate", "up", "down"].iter().any(|n| has(&format!("blk.0.ffn_{n}.bias"))),
            head_norms: architecture == Architecture::Qwen3,
            post_norms: gemma2,
            sliding_window: window.map(|size| SlidingWindow { size, blocks }),
            query_scalar,
            score_cap: cap("attn_logit_softcapping", 50.0)?,
            logit_cap: cap("final_logit_softcapping", 30.0)?,
            embedding_scale: if architecture.is_gemma() { f64::from(hidden).sqrt() } else { 1.0 },
            activation: architecture.activation(),
        }
        .check()
    }
}
