//! Hyper-parameters from a Hugging Face `config.json`.

use serde_json::{Map, Value};

use super::{
    Activation, Architecture, Hyper, RopeLayout, RopeScaling, SlidingWindow, WindowedBlocks, no_experts,
    no_partial_rotation, single,
};
use crate::error::{ModelError, Result};

/// Keys of things that no supported family does, unless they are null.
const FOREIGN: [&str; 6] = [
    "quantization_config",
    "text_config",
    "vision_config",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
];

/// A JSON object, and its name for messages. A null value counts as absent.
struct Object<'a> {
    name: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    fn of(name: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| ModelError::Files(format!("{name} is not a JSON object")))?;
        Ok(Object { name, map })
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn kind(&self, key: &str, wanted: &str) -> ModelError {
        ModelError::Files(format!("{}: {key} is not {wanted}", self.name))
    }

    fn missing(&self, key: &str) -> ModelError {
        ModelError::Files(format!("{}: {key} is missing", self.name))
    }

    fn uint(&self, key: &str) -> Result<Option<u32>> {
        let parse = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        self.get(key).map(|v| parse(v).ok_or_else(|| self.kind(key, "an integer below 2^32"))).transpose()
    }

    fn need(&self, key: &str) -> Result<u32> {
        self.uint(key)?.ok_or_else(|| self.missing(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.kind(key, "a number"))).transpose()
    }

    fn need_float(&self, key: &str) -> Result<f64> {
        self.float(key)?.ok_or_else(|| self.missing(key))
    }

    fn bool(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.kind(key, "true or false")))
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.kind(key, "a text"))).transpose()
    }
}

impl Hyper {
    /// Reads the hyper-parameters out of a parsed `config.json`.
    ///
    /// # Errors
    /// Names what is missing, contradictory or not supported.
    pub fn from_config(config: &Value) -> Result<Self> {
        let c = Object::of("config.json", config)?;
        let model_type = c.string("model_type")?.ok_or_else(|| c.missing("model_type"))?;
        let architecture = Architecture::from_name(model_type)?;
        if let Some(key) = FOREIGN.iter().find(|k| c.get(k).is_some()) {
            return Err(ModelError::unsupported(
                format!("config.json with {key}"),
                "take the publisher's text-only model in F32, F16 or BF16",
            ));
        }
        for key in ["num_experts", "num_local_experts", "n_routed_experts"] {
            no_experts(c.uint(key)?.unwrap_or(0).into())?;
        }

        let hidden = c.need("hidden_size")?;
        let heads = c.need("num_attention_heads")?;
        let head_dim = match (c.uint("head_dim")?, architecture) {
            (Some(d), _) => d,
            (None, Architecture::Qwen3) => 128,
            (None, Architecture::Gemma | Architecture::Gemma2) => 256,
            (None, _) if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            (None, _) => return Err(ModelError::Files(format!("config.json: {heads} heads do not divide {hidden}"))),
        };
        let kv_heads = match c.uint("num_key_value_heads")? {
            Some(n) => n,
            None if model_type == "llama" => heads,
            None => return Err(c.missing("num_key_value_heads")),
        };
        let layers = c.need("num_hidden_layers")?;
        let context = c.need("max_position_embeddings")?;
        let rope = c.rope(context, head_dim)?;
        c.check_activation(architecture)?;

        let gemma2 = architecture == Architecture::Gemma2;
        let bias = c.bool("attention_bias", false)?;
        let cap = |key: &str, default: f64| -> Result<Option<f64>> {
            match c.map.get(key) {
                _ if !gemma2 => Ok(None),
                None => Ok(Some(default)),
                Some(_) => Ok(c.float(key)?.map(single)),
            }
        };
        Hyper {
            architecture,
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn: c.need("intermediate_size")?,
            vocab: c.need("vocab_size")?,
            context,
            epsilon: single(c.float("rms_norm_eps")?.unwrap_or(1e-6)),
            tied: c.bool("tie_word_embeddings", architecture.is_gemma())?,
            rope_base: rope.0,
            rope_scaling: rope.1,
            rope_layout: RopeLayout::Halves,
            qkv_bias: architecture == Architecture::Qwen2 || bias,
            output_bias: architecture != Architecture::Qwen2 && bias,
            ffn_bias: c.bool("mlp_bias", false)?,
            head_norms: architecture == Architecture::Qwen3,
            post_norms: gemma2,
            sliding_window: c.sliding_window(model_type, layers)?,
            query_scalar: if gemma2 { c.float("query_pre_attn_scalar")?.unwrap_or(256.0) } else { head_dim.into() },
            score_cap: cap("attn_logit_softcapping", 50.0)?,
            logit_cap: cap("final_logit_softcapping", 30.0)?,
            embedding_scale: if architecture.is_gemma() { f64::from(hidden).sqrt() } else { 1.0 },
            activation: architecture.activation(),
        }
        .check()
    }
}

impl Object<'_> {
    /// The activation that the file names is the family's.
    fn check_activation(&self, architecture: Architecture) -> Result<()> {
        let (gated, named) = (self.string("hidden_activation")?, self.string("hidden_act")?);
        let name = gated.or(named);
        let fits = match architecture.activation() {
            Activation::Silu => matches!(name, None | Some("silu")),
            // Gemma 1 was published with "gelu" under the older key, and means the tanh form all the same.
            Activation::GeluTanh => {
                matches!(name, None | Some("gelu_pytorch_tanh"))
                    || architecture == Architecture::Gemma && gated.is_none() && name == Some("gelu")
            }
        };
        if fits {
            return Ok(());
        }
        Err(ModelError::unsupported(
            format!("activation {:?} in a {} model", name.unwrap_or_default(), architecture.name()),
            "supported are silu (Llama, Mistral, Qwen) and gelu_pytorch_tanh (Gemma)",
        ))
    }

    /// Base and scaling of the rotary embedding, which newer files keep together in an object of their own.
    fn rope(&self, context: u32, head_dim: u32) -> Result<(f64, RopeScaling)> {
        let parameters = self.get("rope_parameters");
        let object = match parameters.or(self.get("rope_scaling")) {
            None => None,
            Some(v) => Some(Object::of("config.json: rope parameters", v)?),
        };
        let of_both = |key: &str| -> Result<Option<f64>> {
            match object.as_ref().map(|o| o.float(key)).transpose()?.flatten() {
                None => self.float(key),
                v => Ok(v),
            }
        };
        let base = single(of_both("rope_theta")?.unwrap_or(10_000.0));
        let rotated = of_both("partial_rotary_factor")?.unwrap_or(1.0);
        no_partial_rotation(rotated * f64::from(head_dim), head_dim)?;
        let Some(o) = object else { return Ok((base, RopeScaling::None)) };

        let kind = match o.string("rope_type")? {
            None => o.string("type")?,
            kind => kind,
        };
        let factor = || o.need_float("factor");
        let scaling = match kind {
            None if parameters.is_none() => return Err(o.missing("rope_type")),
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: factor()? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: factor()?,
                low: o.need_float("low_freq_factor")?,
                high: o.need_float("high_freq_factor")?,
                original: o.need("original_max_position_embeddings")?.into(),
            },
            Some("yarn") => {
                if let Some(key) = ["mscale", "mscale_all_dim"].into_iter().find(|k| o.get(k).is_some()) {
                    return Err(ModelError::unsupported(format!("YaRN with {key}"), "take a model without"));
                }
                if !o.bool("truncate", true)? {
                    return Err(ModelError::unsupported("YaRN with bounds between pairs", "take a model without"));
                }
                let factor = factor()?;
                let magnitude = o.float("attention_factor")?;
                RopeScaling::Yarn {
                    factor,
                    original: o.uint("original_max_position_embeddings")?.unwrap_or(context).into(),
                    fast: o.float("beta_fast")?.unwrap_or(32.0),
                    slow: o.float("beta_slow")?.unwrap_or(1.0),
                    magnitude: magnitude.unwrap_or_else(|| RopeScaling::yarn_magnitude(factor)),
                }
            }
            Some(other) => {
                return Err(ModelError::unsupported(
                    format!("rotary scaling {other:?}"),
                    "supported are default, linear, llama3, yarn",
                ));
            }
        };
        Ok((base, scaling))
    }

    /// The window, and the blocks that `layer_types` or the family's own rule gives it to.
    fn sliding_window(&self, model_type: &str, layers: u32) -> Result<Option<SlidingWindow>> {
        let size = match (self.map.get("sliding_window"), model_type) {
            (None, "gemma2") => Some(4096),
            (None, "mistral") => return Err(self.missing("sliding_window")),
            _ => self.uint("sliding_window")?,
        };
        let blocks = match model_type {
            "mistral" => Some(WindowedBlocks::All),
            "gemma2" => Some(WindowedBlocks::Even),
            "qwen2" | "qwen3" if self.bool("use_sliding_window", false)? => {
                Some(WindowedBlocks::From(self.need("max_window_layers")?))
            }
            _ => None,
        };
        let ruled = match (size, blocks) {
            (Some(_), Some(WindowedBlocks::From(first))) if first >= layers => None,
            (Some(size), Some(blocks)) => Some(SlidingWindow { size, blocks }),
            _ => None,
        };
        let Some(types) = self.get("layer_types") else { return Ok(ruled) };
        let types = types.as_array().ok_or_else(|| self.kind("layer_types", "a list"))?;
        let named = |block: u32, kind: &Value| {
            let window = ruled.and_then(|w| w.of_block(block));
            kind.as_str() == Some(if window.is_some() { "sliding_attention" } else { "full_attention" })
        };
        if types.len() != layers as usize || !(0..layers).zip(types).all(|(block, kind)| named(block, kind)) {
            return Err(ModelError::unsupported(
                format!("layer_types other than a {model_type} model's own"),
                "take a model with its family's pattern of attention",
            ));
        }
        Ok(ruled)
    }
}
