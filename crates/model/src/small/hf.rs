//! The directory that Hugging Face's tools write.

use std::{fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::{EPSILON, Family, ROPE_BASE, SIZES, Tensor};
use crate::{
    error::{ModelError, Result},
    synthetic::{TEMPLATE, VocabularyParts},
};

fn config(family: Family) -> Value {
    let s = &SIZES;
    let mut c = json!({
        "model_type": family.model_type(), "hidden_size": s.hidden, "intermediate_size": s.ffn,
        "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim, "vocab_size": s.vocab, "max_position_embeddings": s.context, "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_BASE, "tie_word_embeddings": family.is_tied(), "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32",
    });
    c["hidden_act"] = if family.is_gemma() { "gelu_pytorch_tanh" } else { "silu" }.into();
    match family {
        Family::Llama3 => {
            c["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        }
        Family::Qwen2 => {
            c["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
            c["use_sliding_window"] = false.into();
        }
        Family::Mistral => c["sliding_window"] = s.window.into(),
        Family::Gemma2 => {
            c["sliding_window"] = s.window.into();
            c["query_pre_attn_scalar"] = 24.into();
            c["attn_logit_softcapping"] = 2.0.into();
            c["final_logit_softcapping"] = 5.0.into();
        }
        _ => {}
    }
    c
}

pub(super) fn write(family: Family, tensors: &[Tensor], vocabulary: &VocabularyParts, directory: &Path) -> Result<()> {
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(ModelError::io("writing", &path))
    };
    file("config.json", config(family).to_string().as_bytes())?;
    file("tokenizer.json", &vocabulary.to_json()?)?;
    let own = json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE});
    file("tokenizer_config.json", own.to_string().as_bytes())?;

    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|t| {
            let above_one = if family.is_gemma() && t.is_norm() { 1.0 } else { 0.0 };
            t.values.iter().flat_map(|v| (v - above_one).to_le_bytes()).collect()
        })
        .collect();
    let damaged = |e: safetensors::SafeTensorError| ModelError::Argument(format!("writing safetensors: {e}"));
    let views = tensors.iter().zip(&bytes).map(|(t, b)| {
        let shape = t.rows.into_iter().chain([t.cols]).collect();
        Ok((t.hf.clone(), TensorView::new(Dtype::F32, shape, b).map_err(damaged)?))
    });
    let views: Vec<(String, TensorView<'_>)> = views.collect::<Result<_>>()?;
    file("model.safetensors", &safetensors::serialize(views, None).map_err(damaged)?)
}
