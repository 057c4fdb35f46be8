//! The default model, from its publisher to a verified directory. Needs the network once; afterwards `$SWORN_HOME` has it.

mod support;

use std::time::Instant;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use support::interpreter::Interpreter;
use sworn_model::{
    ImportOptions, Message, Model, ModelStore, WeightFormats, import_gguf, pull, pull::pull_as, store::sworn_home,
};

/// The id of SmolLM2-135M-Instruct, Q4_1, as imported by default. Another value means that a node which imported the same
/// file can no longer serve those who did so before: change it only on purpose.
const MODEL_ID: &str = "f3997f2abded064b8011592f8c39932d0b0a7e5069209d66b1f398bf10b5b7fa";

/// The same with `weights: int8` and without sampling, as the executable simulation of the arithmetic has it.
const INT8_ID: &str = "6fc7ed7197cb07cd11ed7c1fe7d710a82ecd87f73cc43e5cda0057eb7d4a4be9";

/// What the executable simulation of the arithmetic gives for a prompt.
#[derive(Deserialize)]
struct Golden {
    prompt: String,
    input_ids: Vec<u32>,
    greedy: Vec<u32>,
    text: String,
    /// Of the residual stream of all prompt positions (i32 little-endian), entering each block and leaving the last.
    #[serde(default)]
    residual_sha256: Vec<String>,
    /// Of the logits at the last prompt position.
    #[serde(default)]
    logits_sha256: String,
}

fn golden() -> Vec<Golden> {
    serde_json::from_str(include_str!("smollm2_golden.json")).unwrap()
}

/// As the simulation has it: int8 rows, the most likely token.
fn simulated() -> Model {
    let options =
        ImportOptions { weights: WeightFormats::Int8, sampling: false, log_probs: false, ..ImportOptions::default() };
    pull_as("smollm2-135m", "smollm2-135m-int8", &options, sworn_home().unwrap(), &mut |_| {}).unwrap()
}

fn model() -> Model {
    pull("smollm2-135m", sworn_home().unwrap(), &mut |_| {}).expect("the default model is pulled once over the network")
}

#[test]
fn smollm2_has_its_id_wherever_it_is_imported() {
    let pulled = model();
    assert_eq!(hex::encode(pulled.id()), MODEL_ID);
    let store = ModelStore::from_env().unwrap();
    assert!(store.list().unwrap().contains(&"smollm2-135m".to_owned()));
    let t = Instant::now();
    assert_eq!(hex::encode(simulated().id()), INT8_ID);
    let loaded = store.load("smollm2-135m").unwrap();
    let load = t.elapsed();
    let t = Instant::now();
    assert_eq!(hex::encode(loaded.verify(&mut |_| {}).unwrap()), MODEL_ID);
    let verify = t.elapsed();

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("elsewhere/other-name");
    let t = Instant::now();
    let gguf = store.source_file("smollm2-135m").unwrap();
    let again = import_gguf(gguf, &out, &ImportOptions::default(), &mut |_| {}).unwrap();
    eprintln!("load {load:?}, verify {verify:?}, import {:?}", t.elapsed());
    assert_eq!(again.id(), pulled.id());
    for file in ["manifest.bin", "program.bin", "weights.bin", "tables.bin", "index.json", "tokenizer.json"] {
        let same = std::fs::read(out.join(file)).unwrap() == std::fs::read(pulled.path().join(file)).unwrap();
        assert!(same, "{file}");
    }
}

#[test]
fn smollm2_prompts_and_answers_are_the_known_tokens() {
    let model = model();
    for g in golden() {
        assert_eq!(model.encode_chat(&[Message::new("user", &g.prompt)]).unwrap(), g.input_ids);
        let tokenizer = model.tokenizer().unwrap();
        assert_eq!(tokenizer.decode(&g.greedy, true), g.text);
        let mut stream = tokenizer.stream(true);
        let streamed: String = g.greedy.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(streamed + &stream.finish(), g.text);
    }
    for text in ["naïve café — 東京 2024\n\n\tπ ≈ 3.14159 🙂🙂", "def f(x):\n    return x**2  # ok"] {
        let tokenizer = model.tokenizer().unwrap();
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), false), text);
    }
}

#[test]
fn smollm2_through_the_scalar_reference_is_golden() {
    let model = simulated();
    let g = &golden()[0];
    assert_eq!(g.residual_sha256.len(), model.layers() as usize + 1);
    let mut run = Interpreter::new(&model, model.layers());
    g.input_ids.iter().for_each(|id| run.push(*id));
    let sha256 = |values: &mut dyn Iterator<Item = i64>| {
        let mut hash = Sha256::new();
        values.for_each(|v| hash.update((v as i32).to_le_bytes()));
        hex::encode(hash.finalize())
    };
    for layer in 0..=model.layers() {
        let mut stream = (0..g.input_ids.len()).flat_map(|t| run.hidden(layer, t).to_vec());
        assert_eq!(sha256(&mut stream), g.residual_sha256[layer as usize], "residual stream after layer {layer}");
    }
    let (logits, token) = run.head();
    assert_eq!(sha256(&mut logits.into_iter()), g.logits_sha256);
    assert_eq!(token, g.greedy[0]);
}
