//! SmolLM2 against the executable simulation of the arithmetic: tokens, every layer's residual stream, logits, answer.
//!
//! `tests/data/golden.json` is what the simulation gives with weights rounded to nearest.

use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};
use sworn_engine::{Backend, Cpu, EngineError, ExportSink};
use sworn_model::{ImportOptions, Message, Model, ModelStore, WeightFormats, pull::pull_as};

/// The residual stream is the last export of the embedding and of every block.
struct Residuals {
    layers: Vec<Sha256>,
    logits: Vec<i32>,
}

impl ExportSink for Residuals {
    fn export(&mut self, layer: u16, _: u32, tensors: &[&[u8]]) -> Result<(), EngineError> {
        if let (Some(hash), Some(hidden)) = (self.layers.get_mut(layer as usize), tensors.last()) {
            for word in hidden.chunks_exact(4) {
                hash.update([word[3], word[2], word[1], word[0]]);
            }
        }
        Ok(())
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, _: u32, logits: &[i32]) -> Result<(), EngineError> {
        self.logits = logits.to_vec();
        Ok(())
    }
}

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn model() -> Model {
    let store = ModelStore::from_env().unwrap();
    let options =
        ImportOptions { weights: WeightFormats::Int8, sampling: false, log_probs: false, ..ImportOptions::default() };
    pull_as("smollm2-135m", "smollm2-135m-int8", &options, store.home(), &mut |_| {}).unwrap()
}

#[test]
fn smollm2_is_the_simulation_bit_for_bit() {
    let golden: Value = serde_json::from_str(include_str!("data/golden.json")).unwrap();
    let model = Arc::new(model());
    let cpu = Cpu::new(model.clone()).unwrap();
    for p in golden["prompts"].as_array().unwrap() {
        let prompt = p["prompt"].as_str().unwrap();
        let ids = model.encode_chat(&[Message::new("user", prompt)]).unwrap();
        assert_eq!(ids, numbers(&p["input_ids"]), "{prompt}");

        let mut session = cpu.session(512).unwrap();
        let mut sink = Residuals { layers: vec![Sha256::new(); model.layers() as usize + 1], logits: Vec::new() };
        let mut next = session.extend(&ids, ids.len() as u32 - 1, &mut sink).unwrap();
        let residuals: Vec<String> = sink.layers.into_iter().map(|h| hex::encode(h.finalize())).collect();
        let want = p["residual_sha256_after_layer"].as_array().unwrap();
        assert_eq!(residuals.len(), want.len());
        for (layer, (got, want)) in residuals.iter().zip(want).enumerate() {
            assert_eq!(got, want.as_str().unwrap(), "{prompt}: residual after layer {layer}");
        }
        let logits: Vec<u8> = sink.logits.iter().flat_map(|l| l.to_le_bytes()).collect();
        assert_eq!(hex::encode(Sha256::digest(logits)), p["last_logits_sha256"].as_str().unwrap(), "{prompt}");

        let want = numbers(&p["greedy"]);
        let mut got = Vec::new();
        loop {
            assert_eq!(next.len(), 1);
            got.push(next[0]);
            if model.is_stop(next[0]) || got.len() == want.len() {
                break;
            }
            next = session.extend(&next, session.len(), &mut sworn_engine::NoExports).unwrap();
        }
        assert_eq!(got, want, "{prompt}");
    }
}
