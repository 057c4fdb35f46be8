use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::*;

#[path = "../../../tests/support/hf_directory.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use more of it")]
mod hf_directory;

use hf_directory::{HfDirectory, Stored, VOCAB, model, serialised};

fn open(m: &HfDirectory, shards: usize) -> Result<(tempfile::TempDir, HfSource)> {
    let dir = tempfile::tempdir().unwrap();
    m.write(dir.path(), shards);
    HfSource::open(dir.path()).map(|s| (dir, s))
}

fn refused<T>(result: Result<T>, word: &str) {
    let e = result.err().expect(word).to_string();
    assert!(e.contains(word), "{word:?} is not in: {e}");
}

#[test]
fn every_type_of_model_is_read_as_it_was_written() {
    for model_type in ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"] {
        for (tied, shards, dtype) in
            [(true, 1, Some(Dtype::F32)), (false, 1, Some(Dtype::BF16)), (false, 3, None), (true, 2, Some(Dtype::F16))]
        {
            let mut m = model(model_type, tied);
            m.store_as(dtype);
            let (_dir, source) = open(&m, shards).unwrap();
            let mut names: Vec<&str> = m.tensors.iter().map(|t| t.gguf.as_str()).collect();
            names.sort_unstable();
            assert_eq!(source.names(), names);
            for t in &m.tensors {
                let cols = *t.shape.last().unwrap();
                let rows = t.values.len() / cols;
                assert_eq!(source.shape(&t.gguf), Some((rows, cols)));
                let one = if model_type.starts_with("gemma") && t.gguf.ends_with("norm.weight") { 1.0 } else { 0.0 };
                let mut row = vec![0.0; cols];
                for (r, want) in t.values.chunks(cols).enumerate() {
                    source.row(&t.gguf, r as u32, &mut row).unwrap();
                    assert!(row.iter().zip(want).all(|(a, b)| *a == *b + one), "{model_type} {} row {r}", t.gguf);
                }
                assert_eq!(source.blocks(&t.gguf, 0).unwrap(), None);
                refused(source.row(&t.gguf, rows as u32, &mut row), "rows of");
                refused(source.row(&t.gguf, 0, &mut row[1..]), "rows of");
            }
            refused(source.vector("blk.0.nothing.weight", 4), "missing");
            assert_eq!(source.name().unwrap().unwrap(), format!("tiny-{model_type}"));

            let text = source.text().unwrap();
            assert_eq!(text.stop_tokens, [2]);
            let special = [text.special_tokens.bos, text.special_tokens.eos, text.special_tokens.unknown];
            assert_eq!((special, text.special_tokens.padding), ([Some(1), Some(2), Some(0)], None));
            let stored = fs::read(source.directory.join("tokenizer.json")).unwrap();
            assert_eq!(text.tokenizer, stored, "the publisher's bytes");
            assert_eq!(text.add_bos, matches!(model_type, "mistral" | "gemma" | "gemma2"), "by its post-processor");
        }
    }
}

#[test]
fn the_digest_is_that_of_sha256sums_list() {
    let m = model("llama", true);
    let (dir, source) = open(&m, 2).unwrap();
    let info = source.info(&mut |_| {}).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let digest = |bytes: &[u8]| sha256(bytes, &mut |_| {});
    let line = |n: &String| format!("{}  {n}\n", digest(&fs::read(dir.path().join(n)).unwrap()));
    assert_eq!(info.sha256, digest(names.iter().map(line).collect::<String>().as_bytes()));
    let size = |n: &String| fs::metadata(dir.path().join(n)).unwrap().len();
    assert_eq!((info.bytes, info.format.as_str()), (names.iter().map(size).sum(), "safetensors"));
    fs::write(dir.path().join("README.md"), "no part of the model").unwrap();
    assert_eq!(HfSource::open(dir.path()).unwrap().info(&mut |_| {}).unwrap(), info);
}

#[test]
fn a_tied_head_that_is_stored_is_not_used() {
    let mut m = model("llama", false);
    m.config["tie_word_embeddings"] = true.into();
    let (_dir, source) = open(&m, 1).unwrap();
    assert!(source.hyper().tied && source.shape("output.weight").is_none());
}

#[test]
fn scaled_rotations_have_divisors() {
    let mut m = model("llama", true);
    m.config["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0});
    let (_dir, source) = open(&m, 1).unwrap();
    assert_eq!(source.rope_divisors(8).unwrap(), Some(vec![4.0; 8]));
    assert_eq!(open(&model("llama", true), 1).unwrap().1.rope_divisors(8).unwrap(), None);
}

#[test]
fn tensors_that_are_not_understood_are_named() {
    let changed = |change: &dyn Fn(&mut HfDirectory)| {
        let mut m = model("llama", false);
        change(&mut m);
        open(&m, 1)
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    refused(changed(&|m| m.tensor(q).dtype = Dtype::F64), "F64");
    refused(changed(&|m| m.tensor(q).name = "model.layers.0.mlp.experts.0.w1.weight".into()), "experts");
    refused(changed(&|m| m.tensor(q).shape = vec![4, 16, 32]), "shape");
    refused(
        changed(&|m| {
            let t = m.tensor(q);
            (t.shape, t.values) = (vec![0, 32], vec![]);
        }),
        "empty",
    );
    refused(changed(&|m| m.config["model_type"] = "mixtral".into()), "mixtral");
}

#[test]
fn damaged_and_hostile_files_are_errors() {
    let m = model("llama", false);
    let dir = tempfile::tempdir().unwrap();
    let reopened = || HfSource::open(dir.path());
    refused(reopened(), "config.json");
    m.write(dir.path(), 1);
    let weights = dir.path().join("model.safetensors");
    let good = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    refused(reopened(), "has no model.safetensors");

    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for n in (0..header.min(200)).chain([8 + header, good.len() - 1]) {
        fs::write(&weights, &good[..n]).unwrap();
        refused(reopened(), "model.safetensors");
    }
    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let huge = u64::MAX - 7;
    for bad in [
        file("{}", 1),
        file("[]", 0),
        file("{\"a\": 1}", 0),
        file(&format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,{huge}]}}}}"), 4),
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4),
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551615,4],\"data_offsets\":[0,4]}}", 4),
        u64::MAX.to_le_bytes().to_vec(),
    ] {
        fs::write(&weights, bad).unwrap();
        refused(reopened(), "model.safetensors");
    }
    fs::remove_file(&weights).unwrap();

    let index = |map: Value| fs::write(dir.path().join(SHARDS), json!({"weight_map": map}).to_string()).unwrap();
    for bad in [json!({}), json!([]), json!({"a": "../x.safetensors"}), json!({"a": "/etc/passwd"}), json!({"a": 7})] {
        index(bad);
        refused(reopened(), SHARDS);
    }
    index(json!({"a": "1.safetensors", "b": "2.safetensors"}));
    fs::write(dir.path().join("1.safetensors"), &good).unwrap();
    refused(reopened(), "check the path");
    fs::write(dir.path().join("2.safetensors"), serialised(&m.tensors[..1])).unwrap();
    refused(reopened(), "twice");
    fs::write(dir.path().join("2.safetensors"), serialised(&[] as &[Stored])).unwrap();
    reopened().unwrap();
    fs::write(dir.path().join(CONFIG), "{").unwrap();
    refused(reopened(), CONFIG);
}

#[test]
fn texts_are_checked() {
    let text = |change: &dyn Fn(&mut HfDirectory)| {
        let mut m = model("qwen2", true);
        change(&mut m);
        let (_dir, source) = open(&m, 1)?;
        source.text()
    };
    let own = |key: &'static str, value: Value| {
        text(&|m| m.files.get_mut("tokenizer_config.json").unwrap()[key] = value.clone())
    };
    refused(text(&|m| drop(m.files.remove("tokenizer.json"))), "tokenizer.json");
    refused(
        text(&|m| drop(m.files.insert("tokenizer.json", json!({"decoder": {"type": "ByteLevel"}})))),
        "cannot be read",
    );
    refused(text(&|m| m.files.get_mut("tokenizer.json").unwrap()["decoder"] = Value::Null), "decoder null");
    refused(text(&|m| m.config["vocab_size"] = 200.into()), "200 rows");
    refused(text(&|m| m.config["eos_token_id"] = json!([2, VOCAB])), "not a token");
    refused(own("bos_token", "<nothing>".into()), "<nothing>");
    refused(own("chat_template", "{% if %}".into()), "chat template");
    refused(own("chat_template", "always the same".into()), "drops the user's message");
    refused(own("chat_template", json!([{"name": "tools", "template": "x"}])), "default");
    assert!(own("add_bos_token", true.into()).unwrap().add_bos);
    let named =
        json!([{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}"}]);
    assert_eq!(own("chat_template", named).unwrap().chat_template, "{{ messages[0].content }}");
    assert_eq!(own("chat_template", Value::Null).unwrap().chat_template, "");
    let template = "{{ messages[0]['content'] }}!";
    let separate = text(&|m| m.template = Some(template.into())).unwrap();
    assert_eq!(separate.chat_template, template, "a file of its own comes first");

    let generation =
        |ids: Value| text(&|m| drop(m.files.insert("generation_config.json", json!({"eos_token_id": ids}))));
    assert_eq!(generation(json!([7, 5, 5])).unwrap().stop_tokens, [2, 5, 7]);
    assert_eq!(generation(5.into()).unwrap().stop_tokens, [2, 5]);
    assert_eq!(generation(Value::Null).unwrap().stop_tokens, [2]);
    let bare = text(&|m| {
        m.files.remove("tokenizer_config.json");
        m.config["bos_token_id"] = 1.into();
    });
    let bare = bare.unwrap();
    assert_eq!((bare.special_tokens.bos, bare.special_tokens.eos, bare.add_bos), (Some(1), Some(2), false));
}
