//! The same model as a GGUF and as a Hugging Face directory: the same program, the same weights, the same tables.

mod support;

use std::fs;

use support::{
    gguf_file::{GgufFile, Meta, Tensor, tiny},
    hf_directory::{FFN, HEAD, HEADS, HIDDEN, HfDirectory, KV, LAYERS, Stored, model},
};
use sworn_model::{ImportOptions, Model, ModelError, import};

fn imported(path: &std::path::Path, out: &std::path::Path) -> Result<Model, ModelError> {
    import(path, out, &ImportOptions::default(), &mut |_| {})
}

/// A row as GGUF orders it: for the Llamas, elements that rotate together side by side.
fn gguf_rows(t: &Stored, interleaved: bool) -> Vec<f32> {
    let rows: Vec<&[f32]> = t.values.chunks(*t.shape.last().unwrap()).collect();
    let rotates = t.gguf.contains("attn_q.") || t.gguf.contains("attn_k.");
    if !(interleaved && rotates) {
        return t.values.clone();
    }
    let source = |r: usize| r / HEAD * HEAD + r % HEAD / 2 + r % 2 * (HEAD / 2);
    (0..rows.len()).flat_map(|r| rows[source(r)].to_vec()).collect()
}

/// The same model as a GGUF.
fn as_gguf(m: &HfDirectory, model_type: &str) -> GgufFile {
    let architecture = if model_type == "mistral" { "llama" } else { model_type };
    let mut file = tiny();
    file.meta.retain(|(key, _)| key.starts_with("tokenizer."));
    file.set("general.architecture", Meta::Text(architecture.into()));
    let mut set = |key: &str, value| file.set(&format!("{architecture}.{key}"), value);
    for (key, v) in [
        ("block_count", LAYERS),
        ("context_length", 128),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV),
        ("attention.key_length", HEAD),
    ] {
        set(key, Meta::U32(v as u32));
    }
    set("attention.layer_norm_rms_epsilon", Meta::F32(1e-6));
    if let Some(window) = m.config["sliding_window"].as_u64() {
        set("attention.sliding_window", Meta::U32(window as u32));
    }
    let gemma = architecture.starts_with("gemma");
    file.tensors = m
        .tensors
        .iter()
        .map(|t| {
            let one = if gemma && t.gguf.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let rows = gguf_rows(t, architecture == "llama");
            Tensor {
                name: t.gguf.clone(),
                dims: t.shape.iter().rev().map(|d| *d as u64).collect(),
                dtype: 0,
                bytes: rows.iter().flat_map(|v| (v + one).to_le_bytes()).collect(),
            }
        })
        .collect();
    file
}

#[test]
fn both_kinds_of_files_give_the_same_model() {
    for model_type in ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"] {
        for (tied, shards) in [(true, 1), (false, 3)] {
            let dir = tempfile::tempdir().unwrap();
            let mut m = model(model_type, tied);
            if model_type == "gemma2" {
                m.config["query_pre_attn_scalar"] = HEAD.into();
            }
            let (hf, gguf) = (dir.path().join("hf"), dir.path().join("model.gguf"));
            fs::create_dir(&hf).unwrap();
            m.write(&hf, shards);
            fs::write(&gguf, as_gguf(&m, model_type).bytes()).unwrap();
            let a = imported(&hf, &dir.path().join("a")).unwrap_or_else(|e| panic!("{model_type}: {e}"));
            let b = imported(&gguf, &dir.path().join("b")).unwrap_or_else(|e| panic!("{model_type}: {e}"));
            assert_eq!(a.program(), b.program(), "{model_type}");
            assert_eq!(a.index(), b.index(), "{model_type}");
            assert_ne!(a.id(), b.id(), "their tokenizers differ");
            assert_eq!(a.description().source.format, "safetensors");
            assert_eq!(a.description().name, format!("tiny-{model_type}"));
            let again = imported(&hf, &dir.path().join("again")).unwrap();
            assert_eq!(again.id(), a.id());
            assert_eq!(again.verify(&mut |_| {}).unwrap(), a.id());
            let options =
                ImportOptions { max_positions: Some(40), name: Some("short".into()), ..ImportOptions::default() };
            let short = import(&hf, dir.path().join("short"), &options, &mut |_| {}).unwrap();
            assert_eq!((short.manifest().max_positions, short.description().name.as_str()), (40, "short"));
        }
    }
}

#[test]
fn storage_types_that_hold_the_same_numbers_give_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let ids = [Some(safetensors::Dtype::F32), Some(safetensors::Dtype::F16), Some(safetensors::Dtype::BF16), None].map(
        |dtype| {
            let mut m = model("qwen3", true);
            m.store_as(dtype);
            let hf = dir.path().join(format!("{dtype:?}"));
            fs::create_dir(&hf).unwrap();
            m.write(&hf, 2);
            imported(&hf, &dir.path().join(format!("{dtype:?}-out"))).unwrap().id()
        },
    );
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let refused = |change: &dyn Fn(&mut HfDirectory), word: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut m = model("llama", true);
        change(&mut m);
        let hf = dir.path().join("hf");
        fs::create_dir(&hf).unwrap();
        m.write(&hf, 1);
        let e = imported(&hf, &dir.path().join("out")).map(|_| ()).expect_err(word).to_string();
        assert!(e.contains(word), "{word:?} is not in: {e}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{word}");
        let single = imported(&hf.join("model.safetensors"), &dir.path().join("out")).map(|_| ()).unwrap_err();
        assert!(single.to_string().contains("name the directory"), "{single}");
    };
    refused(&|m| m.config["num_hidden_layers"] = 3.into(), "blk.2.");
    refused(&|m| m.config["num_hidden_layers"] = 1.into(), "blk.1.");
    refused(&|m| m.config["intermediate_size"] = 65.into(), "65");
    refused(&|m| m.tensor("model.norm.weight").values[3] = f32::NAN, "not finite");
    refused(&|m| m.tensor("model.layers.1.mlp.up_proj.weight").values[3] = f32::INFINITY, "not finite");
    refused(&|m| m.config["tie_word_embeddings"] = false.into(), "output.weight");
    refused(&|m| drop(m.files.remove("tokenizer.json")), "tokenizer.json");
}
