//! Hyper-parameters: the same model gives the same ones as a GGUF and as a Hugging Face directory.

mod support;

use serde_json::{Value, json};
use support::gguf_file::{GgufFile, Meta, Tensor};
use sworn_model::{
    Gguf, Hyper, ModelError,
    hyper::{Activation, Architecture, RopeLayout, RopeScaling, SlidingWindow, WindowedBlocks},
};

/// Metadata of a model of width 64 with 4 + 2 heads of 16, vocabulary 10.
fn metadata(architecture: &str) -> GgufFile {
    let mut file = GgufFile { version: 3, meta: vec![], tensors: vec![] };
    file.set("general.architecture", Meta::Text(architecture.into()));
    for (key, v) in [
        ("block_count", 4),
        ("context_length", 1000),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
    ] {
        file.set(&format!("{architecture}.{key}"), Meta::U32(v));
    }
    file.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Meta::F32(1e-6));
    file.set(&format!("{architecture}.rope.freq_base"), Meta::F32(1e6));
    file.tensors.push(tensor("token_embd.weight", &[64, 10]));
    file
}

fn tensor(name: &str, dims: &[u64]) -> Tensor {
    let n = dims.iter().product::<u64>() as usize;
    Tensor { name: name.into(), dims: dims.to_vec(), dtype: 0, bytes: vec![0; 4 * n] }
}

fn of_gguf(file: &GgufFile) -> Result<Hyper, ModelError> {
    Hyper::from_gguf(&Gguf::from_bytes(file.bytes()).unwrap())
}

fn config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 10,
        "max_position_embeddings": 1000, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn refused(result: Result<Hyper, ModelError>, word: &str) {
    let e = result.expect_err(word).to_string();
    assert!(e.contains(word), "{word:?} is not in: {e}");
}

#[test]
fn both_kinds_of_files_agree() {
    for name in ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"] {
        let architecture = if name == "mistral" { "llama" } else { name };
        let mut file = metadata(architecture);
        if name == "qwen2" {
            file.tensors.push(tensor("blk.0.attn_q.bias", &[64]));
        }
        let mut config = config(name);
        if name == "mistral" {
            config["sliding_window"] = Value::Null;
        }
        if name == "gemma2" {
            config["query_pre_attn_scalar"] = 16.into();
        }
        let a = of_gguf(&file).unwrap();
        let mut b = Hyper::from_config(&config).unwrap();
        let interleaved = architecture == "llama";
        assert_eq!(a.rope_layout == RopeLayout::Interleaved, interleaved);
        assert_eq!(b.rope_layout, RopeLayout::Halves);
        b.rope_layout = a.rope_layout;
        assert_eq!(a, b, "{name}");
        assert_eq!(a.architecture.name(), architecture);
        let back: Hyper = serde_json::from_value(serde_json::to_value(&a).unwrap()).unwrap();
        assert_eq!(back, a);
    }
}

#[test]
fn each_family_has_what_makes_it_one() {
    let hyper = |name: &str| Hyper::from_config(&with(config(name), "sliding_window", 7.into())).unwrap();
    let llama = hyper("llama");
    assert_eq!((llama.qkv_bias, llama.head_norms, llama.post_norms), (false, false, false));
    assert_eq!((llama.embedding_scale, llama.query_scalar, llama.activation), (1.0, 16.0, Activation::Silu));
    assert_eq!(llama.sliding_window, None);
    assert_eq!(llama.epsilon, f64::from(1e-6f32));
    let all = SlidingWindow { size: 7, blocks: WindowedBlocks::All };
    assert_eq!(hyper("mistral").sliding_window, Some(all));
    let qwen2 = hyper("qwen2");
    assert_eq!((qwen2.qkv_bias, qwen2.output_bias, qwen2.sliding_window), (true, false, None));
    assert!(hyper("qwen3").head_norms);
    let gemma = hyper("gemma");
    assert_eq!((gemma.embedding_scale, gemma.activation, gemma.score_cap), (8.0, Activation::GeluTanh, None));
    let gemma2 = hyper("gemma2");
    assert_eq!((gemma2.post_norms, gemma2.query_scalar), (true, 256.0));
    assert_eq!((gemma2.score_cap, gemma2.logit_cap), (Some(50.0), Some(30.0)));
    let window = gemma2.sliding_window.unwrap();
    assert_eq!([0, 1, 2, 3].map(|b| window.of_block(b)), [Some(7), None, Some(7), None]);

    let bias = Hyper::from_config(&with(with(config("llama"), "attention_bias", true.into()), "mlp_bias", true.into()));
    let bias = bias.unwrap();
    assert!(bias.qkv_bias && bias.output_bias && bias.ffn_bias);
    let uncapped = with(with(config("gemma2"), "attn_logit_softcapping", Value::Null), "sliding_window", Value::Null);
    let uncapped = Hyper::from_config(&uncapped).unwrap();
    assert_eq!((uncapped.score_cap, uncapped.logit_cap, uncapped.sliding_window), (None, Some(30.0), None));
}

#[test]
fn windows_of_qwen_begin_at_a_block() {
    let qwen = |first: u32| {
        let c = with(with(config("qwen2"), "use_sliding_window", true.into()), "sliding_window", 5.into());
        with(c, "max_window_layers", first.into())
    };
    let window = Hyper::from_config(&qwen(3)).unwrap().sliding_window.unwrap();
    assert_eq!([0, 2, 3].map(|b| window.of_block(b)), [None, None, Some(5)]);
    assert_eq!(Hyper::from_config(&qwen(4)).unwrap().sliding_window, None);
    let types = |list: [&str; 4]| with(qwen(3), "layer_types", json!(list.map(|t| format!("{t}_attention"))));
    Hyper::from_config(&types(["full", "full", "full", "sliding"])).unwrap();
    refused(Hyper::from_config(&types(["full", "sliding", "full", "sliding"])), "layer_types");
}

#[test]
fn defaults_are_the_families_own() {
    let without = |name: &str, keys: &[&str]| {
        let mut c = config(name);
        keys.iter().for_each(|k| assert!(c.as_object_mut().unwrap().remove(*k).is_some()));
        Hyper::from_config(&c)
    };
    let llama =
        without("llama", &["head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"])
            .unwrap();
    assert_eq!((llama.head_dim, llama.kv_heads, llama.rope_base, llama.tied), (16, 4, 10_000.0, false));
    assert_eq!(without("qwen3", &["head_dim"]).unwrap().head_dim, 128);
    let gemma = without("gemma", &["head_dim", "tie_word_embeddings"]).unwrap();
    assert_eq!((gemma.head_dim, gemma.tied), (256, true));
    for key in ["model_type", "hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings"] {
        refused(without("llama", &[key]), key);
    }
    refused(without("qwen2", &["num_key_value_heads"]), "num_key_value_heads");
    refused(Hyper::from_config(&config("mistral")), "sliding_window");
    let file = metadata("gemma2");
    assert_eq!(of_gguf(&file).unwrap().sliding_window.unwrap().size, 4096);
    let mut large = file.clone();
    large.set("gemma2.block_count", Meta::U32(46));
    assert_eq!(of_gguf(&large).unwrap().query_scalar, 16.0);
    let mut scaled = file;
    scaled.set("gemma2.attention.scale", Meta::F32(0.125));
    assert_eq!(of_gguf(&scaled).unwrap().query_scalar, 64.0);
    let mut untied = metadata("llama");
    untied.tensors.push(tensor("output.weight", &[64, 10]));
    assert!(!of_gguf(&untied).unwrap().tied);
}

#[test]
fn rotary_scalings_are_read_from_both() {
    let scaling = |v: Value| Hyper::from_config(&with(config("llama"), "rope_scaling", v)).map(|h| h.rope_scaling);
    assert_eq!(
        scaling(json!({"type": "linear", "factor": 2.0})).unwrap(),
        RopeScaling::Linear { factor: 2.0 },
        "an old file's key"
    );
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192});
    assert_eq!(scaling(llama3).unwrap(), RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 });
    let magnitude = 0.1 * 4f64.ln() + 1.0;
    let is_yarn = |s: RopeScaling| {
        let RopeScaling::Yarn { factor, original, fast, slow, magnitude: m } = s else { panic!("{s:?}") };
        assert_eq!((factor, original, fast, slow), (4.0, 250.0, 32.0, 1.0));
        assert!((m - magnitude).abs() < 1e-9);
    };
    is_yarn(scaling(json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250})).unwrap());
    let newer = json!({"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0});
    let newer = Hyper::from_config(&with(config("llama"), "rope_parameters", newer)).unwrap();
    assert_eq!((newer.rope_base, newer.rope_scaling), (5e5, RopeScaling::None));
    for (v, word) in [
        (json!({"type": "dynamic", "factor": 2.0}), "dynamic"),
        (json!({"rope_type": "longrope"}), "longrope"),
        (json!({"factor": 2.0}), "rope_type"),
        (json!({"type": "linear"}), "factor"),
        (json!({"type": "linear", "factor": 0.1}), "rotary scaling"),
        (json!({"type": "yarn", "factor": 4.0, "mscale": 1.0}), "mscale"),
        (json!({"type": "yarn", "factor": 4.0, "truncate": false}), "between pairs"),
        (json!([1]), "not a JSON object"),
    ] {
        refused(Hyper::from_config(&with(config("llama"), "rope_scaling", v)), word);
    }

    let gguf = |entries: &[(&str, Meta)]| {
        let mut f = metadata("llama");
        entries.iter().for_each(|(k, v)| f.set(&format!("llama.rope.{k}"), v.clone()));
        of_gguf(&f)
    };
    let text = |s: &str| Meta::Text(s.into());
    let factor = |f: f32| ("scaling.factor", Meta::F32(f));
    let none = gguf(&[("scaling.type", text("none")), factor(2.0)]).unwrap();
    assert_eq!(none.rope_scaling, RopeScaling::None);
    assert_eq!(gguf(&[factor(0.0)]).unwrap().rope_scaling, RopeScaling::None);
    let linear = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(gguf(&[factor(2.0)]).unwrap().rope_scaling, linear);
    assert_eq!(gguf(&[("scale_linear", Meta::F32(2.0))]).unwrap().rope_scaling, linear);
    let entries = [("scaling.type", text("yarn")), factor(4.0), ("scaling.original_context_length", Meta::U32(250))];
    is_yarn(gguf(&entries).unwrap().rope_scaling);
    refused(gguf(&[("scaling.type", text("yarn"))]), "scaling.factor");
    refused(gguf(&[("scaling.type", text("longrope"))]), "longrope");
    refused(gguf(&[("dimension_count", Meta::U32(8))]), "whole heads");
}

#[test]
fn what_is_unknown_is_named() {
    for (key, value, word) in [
        ("model_type", json!("mixtral"), "mixtral"),
        ("model_type", json!(7), "model_type"),
        ("num_experts", json!(8), "8 experts"),
        ("num_local_experts", json!(4), "4 experts"),
        ("hidden_act", json!("relu"), "relu"),
        ("hidden_act", json!("gelu_pytorch_tanh"), "silu"),
        ("partial_rotary_factor", json!(0.5), "whole heads"),
        ("quantization_config", json!({}), "quantization_config"),
        ("num_attention_heads", json!(0), "number of heads 0"),
        ("num_attention_heads", json!(5), "5 query heads"),
        ("head_dim", json!(15), "width 15"),
        ("head_dim", json!(4_294_967_294u32), "head width"),
        ("num_hidden_layers", json!(5000), "5000 blocks"),
        ("vocab_size", json!(-1), "integer"),
        ("vocab_size", json!(1u64 << 40), "integer"),
        ("rms_norm_eps", json!(1.5), "norm ε"),
        ("rope_theta", json!(0), "rotary base"),
    ] {
        refused(Hyper::from_config(&with(config("llama"), key, value)), word);
    }
    refused(Hyper::from_config(&with(config("gemma2"), "hidden_activation", "gelu".into())), "gelu");
    Hyper::from_config(&with(config("gemma"), "hidden_act", "gelu".into())).unwrap();
    refused(Hyper::from_config(&with(config("gemma2"), "query_pre_attn_scalar", 0.into())), "query scalar");
    refused(Hyper::from_config(&json!([])), "JSON object");
    for (key, value, word) in [
        ("expert_count", Meta::U32(8), "8 experts"),
        ("attention.value_length", Meta::U32(8), "value heads"),
        ("attention.causal", Meta::Bool(false), "later positions"),
        ("logit_scale", Meta::F32(2.0), "logit_scale"),
        ("vocab_size", Meta::U32(11), "10 rows"),
        ("block_count", Meta::Text("4".into()), "unsigned integer"),
    ] {
        let mut f = metadata("qwen2");
        f.set(&format!("qwen2.{key}"), value);
        refused(of_gguf(&f), word);
    }
    refused(of_gguf(&metadata("phi3")), "phi3");
    let mut f = metadata("llama");
    f.remove("llama.context_length");
    refused(of_gguf(&f), "llama.context_length is missing");
    assert_eq!(of_gguf(&metadata("llama")).unwrap().architecture, Architecture::Llama);
}
