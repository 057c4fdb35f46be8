//! Names of tensors: Hugging Face's to GGUF's.

use crate::{
    error::{ModelError, Result},
    hyper::Architecture,
};

/// The name that GGUF gives a tensor; `None` for those that hold no weights.
pub(super) fn canonical(stored: &str, architecture: Architecture) -> Result<Option<String>> {
    let whole = match stored {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Ok(Some(name.to_owned()));
    }
    let unknown = || {
        ModelError::unsupported(
            format!("tensor {stored} (no {} model has one of this name)", architecture.name()),
            "experts, adapters and added parts are not supported; merge or remove them",
        )
    };
    let (block, part) =
        stored.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
    // Frequencies that old files carry along; they follow from the configuration.
    if part == "self_attn.rotary_emb.inv_freq" {
        return Ok(None);
    }
    let canonical_number = block.parse::<u16>().is_ok_and(|n| n.to_string() == block);
    let (module, kind) = part.rsplit_once('.').ok_or_else(unknown)?;
    let four_norms = architecture == Architecture::Gemma2;
    let name = match module {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        // The same name for two places: after the attention in Gemma 2, before the feed-forward part elsewhere.
        "post_attention_layernorm" if four_norms => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        "pre_feedforward_layernorm" if four_norms => "ffn_norm",
        "post_feedforward_layernorm" if four_norms => "post_ffw_norm",
        _ => return Err(unknown()),
    };
    if !canonical_number || !matches!(kind, "weight" | "bias") {
        return Err(unknown());
    }
    Ok(Some(format!("blk.{block}.{name}.{kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_gguf() {
        let of = |stored: &str, a| canonical(stored, a).unwrap();
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(of("lm_head.weight", Architecture::Llama), some("output.weight"));
        assert_eq!(of("model.layers.7.self_attn.o_proj.bias", Architecture::Qwen2), some("blk.7.attn_output.bias"));
        let norm = "model.layers.11.post_attention_layernorm.weight";
        assert_eq!(of(norm, Architecture::Gemma), some("blk.11.ffn_norm.weight"));
        assert_eq!(of(norm, Architecture::Gemma2), some("blk.11.post_attention_norm.weight"));
        assert_eq!(of("model.layers.0.self_attn.rotary_emb.inv_freq", Architecture::Llama), None);
        for bad in [
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.0.pre_feedforward_layernorm.weight",
            "model.layers.00.self_attn.q_proj.weight",
            "model.layers.-1.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.weight_scale",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "model.layers.0",
            "transformer.wte.weight",
        ] {
            let e = canonical(bad, Architecture::Llama).unwrap_err().to_string();
            assert!(e.contains(bad), "{e}");
        }
    }
}
