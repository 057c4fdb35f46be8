//! Writes small models as Hugging Face lays them out, whole or broken on purpose.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Width of the residual stream.
pub(crate) const HIDDEN: usize = 32;
/// Width of the feed-forward part.
pub(crate) const FFN: usize = 64;
/// Query heads, key/value heads, width of a head: `HEADS · HEAD` is not the width.
pub(crate) const HEADS: usize = 4;
pub(crate) const KV: usize = 2;
pub(crate) const HEAD: usize = 16;
/// Transformer blocks.
pub(crate) const LAYERS: usize = 2;
/// Rows of the embedding; a few more than the tokenizers have tokens.
pub(crate) const VOCAB: usize = 384;

/// A tensor: the names that Hugging Face and GGUF give it, its shape and numbers.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) gguf: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
    pub(crate) dtype: Dtype,
}

/// A directory under construction.
#[derive(Clone, Debug)]
pub(crate) struct HfDirectory {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<Stored>,
    /// Other files by name.
    pub(crate) files: BTreeMap<&'static str, Value>,
    /// Written as it is, not as JSON.
    pub(crate) template: Option<String>,
}

/// Small pseudo-random numbers that all three storage types hold exactly.
fn numbers(seed: usize, n: usize) -> Vec<f32> {
    let mut s = (seed as u32).wrapping_mul(2_654_435_761) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 25) as f32 / 64.0 - 1.0
        })
        .collect()
}

/// A model of a type that `config.json` may name.
pub(crate) fn model(model_type: &str, tied: bool) -> HfDirectory {
    let gemma = model_type.starts_with("gemma");
    let mut config = json!({
        "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD, "vocab_size": VOCAB,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "eos_token_id": 2, "_name_or_path": format!("maker/tiny-{model_type}"),
    });
    match model_type {
        "mistral" => config["sliding_window"] = 24.into(),
        "gemma2" => {
            config["sliding_window"] = 24.into();
            config["query_pre_attn_scalar"] = 8.into();
        }
        _ => {}
    }
    let mut m = HfDirectory { config, tensors: vec![], files: BTreeMap::new(), template: None };
    let (q, kv) = (HEADS * HEAD, KV * HEAD);
    m.add("model.embed_tokens.weight", "token_embd.weight", &[VOCAB, HIDDEN]);
    for l in 0..LAYERS {
        let mut block = |hf: &str, gguf: &str, shape: &[usize]| {
            m.add(&format!("model.layers.{l}.{hf}"), &format!("blk.{l}.{gguf}"), shape);
        };
        for (hf, gguf, rows, cols) in [
            ("self_attn.q_proj", "attn_q", q, HIDDEN),
            ("self_attn.k_proj", "attn_k", kv, HIDDEN),
            ("self_attn.v_proj", "attn_v", kv, HIDDEN),
            ("self_attn.o_proj", "attn_output", HIDDEN, q),
            ("mlp.gate_proj", "ffn_gate", FFN, HIDDEN),
            ("mlp.up_proj", "ffn_up", FFN, HIDDEN),
            ("mlp.down_proj", "ffn_down", HIDDEN, FFN),
        ] {
            block(&format!("{hf}.weight"), &format!("{gguf}.weight"), &[rows, cols]);
            if model_type == "qwen2" && gguf.starts_with("attn_") && gguf != "attn_output" {
                block(&format!("{hf}.bias"), &format!("{gguf}.bias"), &[rows]);
            }
        }
        if model_type == "qwen3" {
            block("self_attn.q_norm.weight", "attn_q_norm.weight", &[HEAD]);
            block("self_attn.k_norm.weight", "attn_k_norm.weight", &[HEAD]);
        }
        block("input_layernorm.weight", "attn_norm.weight", &[HIDDEN]);
        if model_type == "gemma2" {
            block("post_attention_layernorm.weight", "post_attention_norm.weight", &[HIDDEN]);
            block("pre_feedforward_layernorm.weight", "ffn_norm.weight", &[HIDDEN]);
            block("post_feedforward_layernorm.weight", "post_ffw_norm.weight", &[HIDDEN]);
        } else {
            block("post_attention_layernorm.weight", "ffn_norm.weight", &[HIDDEN]);
        }
    }
    m.add("model.norm.weight", "output_norm.weight", &[HIDDEN]);
    if !tied {
        m.add("lm_head.weight", "output.weight", &[VOCAB, HIDDEN]);
    }
    let pieces = gemma || model_type == "mistral";
    m.files.insert("tokenizer.json", if pieces { sentencepiece_json(!gemma) } else { byte_level_json() });
    m.files.insert(
        "tokenizer_config.json",
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "unk_token": "<unk>", "pad_token": null,
               "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"}),
    );
    m
}

impl HfDirectory {
    fn add(&mut self, name: &str, gguf: &str, shape: &[usize]) {
        let values = numbers(self.tensors.len() + 1, shape.iter().product());
        let (name, gguf, shape) = (name.to_owned(), gguf.to_owned(), shape.to_vec());
        self.tensors.push(Stored { name, gguf, shape, values, dtype: Dtype::F32 });
    }

    /// Stores all tensors as this type, or each as another where there is none.
    pub(crate) fn store_as(&mut self, dtype: Option<Dtype>) {
        let types = [Dtype::F32, Dtype::F16, Dtype::BF16];
        self.tensors.iter_mut().enumerate().for_each(|(i, t)| t.dtype = dtype.unwrap_or(types[i % 3]));
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Stored {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// Writes everything, the tensors in so many files.
    pub(crate) fn write(&self, directory: &Path, shards: usize) {
        let json =
            |name: &str, v: &Value| fs::write(directory.join(name), serde_json::to_vec_pretty(v).unwrap()).unwrap();
        json("config.json", &self.config);
        self.files.iter().for_each(|(name, v)| json(name, v));
        if let Some(t) = &self.template {
            fs::write(directory.join("chat_template.jinja"), t).unwrap();
        }
        if shards == 1 {
            fs::write(directory.join("model.safetensors"), serialised(&self.tensors)).unwrap();
            return;
        }
        let mut map = serde_json::Map::new();
        for (i, part) in self.tensors.chunks(self.tensors.len().div_ceil(shards)).enumerate() {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
            fs::write(directory.join(&file), serialised(part)).unwrap();
            part.iter().for_each(|t| drop(map.insert(t.name.clone(), file.clone().into())));
        }
        json("model.safetensors.index.json", &json!({"metadata": {"total_size": 1}, "weight_map": map}));
    }
}

/// The bytes of a safetensors file.
pub(crate) fn serialised(tensors: &[Stored]) -> Vec<u8> {
    let bytes = |t: &Stored| -> Vec<u8> {
        match t.dtype {
            Dtype::F16 => t.values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => t.values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F64 => t.values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            _ => t.values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let data: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    let view = |(t, d)| {
        let t: &Stored = t;
        let d: &Vec<u8> = d;
        (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), d).unwrap())
    };
    safetensors::serialize(tensors.iter().zip(&data).map(view), None).unwrap()
}

fn added(tokens: &[&str]) -> Vec<Value> {
    let entry = |(id, t): (usize, &&str)| json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    tokens.iter().enumerate().map(entry).collect()
}

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// A byte-level BPE: three special tokens, the bytes, two merges.
fn byte_level_json() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut push = |t: &str| vocab.insert(t.to_owned(), vocab.len().into());
    SPECIAL.iter().for_each(|t| drop(push(t)));
    let mut moved = 0x100;
    for b in 0..=255u8 {
        let visible = matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
        moved += u32::from(!visible);
        push(&char::from_u32(if visible { b.into() } else { moved - 1 }).unwrap().to_string());
    }
    ["in", "ing"].iter().for_each(|t| drop(push(t)));
    json!({
        "version": "1.0", "added_tokens": added(&SPECIAL), "normalizer": null,
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "unk_token": null, "vocab": vocab, "merges": [["i", "n"], ["in", "g"]]},
    })
}

/// A SentencePiece BPE: special tokens, byte tokens, printable ASCII, two merges.
fn sentencepiece_json(prefix: bool) -> Value {
    let mut vocab = serde_json::Map::new();
    let mut push = |t: &str| vocab.insert(t.to_owned(), vocab.len().into());
    SPECIAL.iter().for_each(|t| drop(push(t)));
    (0..=255u8).for_each(|b| drop(push(&format!("<0x{b:02X}>"))));
    (b'!'..=b'~').for_each(|b| drop(push(&char::from(b).to_string())));
    ["▁", "▁p", "in"].iter().for_each(|t| drop(push(t)));
    let bos = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                     "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                     "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0", "added_tokens": added(&SPECIAL), "truncation": null, "padding": null,
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": null,
        "post_processor": bos, "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": [["▁", "p"], ["i", "n"]]},
    })
}
