//! Every family: small random models in the files that people publish, imported, executed by the `cpu` backend, and compared
//! with the float reading of the same files.
#![allow(clippy::print_stdout, reason = "the figures are the report")]

use std::path::Path;
use std::sync::Arc;

use sworn_engine::{Backend, Cpu, EngineError, ExportSink};
use sworn_eval::FloatModel;
use sworn_model::small::{Family, Layout, write};
use sworn_model::{ImportOptions, Model, WeightFormats, import};

/// The logits of every position, in float.
struct Logits(Vec<Vec<f32>>);

impl ExportSink for Logits {
    fn export(&mut self, _: u16, _: u32, _: &[&[u8]]) -> Result<(), EngineError> {
        Ok(())
    }

    fn wants_exports(&self) -> bool {
        false
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, _: u32, logits: &[i32]) -> Result<(), EngineError> {
        self.0.push(logits.iter().map(|l| *l as f32 / 16384.0).collect());
        Ok(())
    }
}

fn imported(path: &Path, weights: WeightFormats, out: &Path) -> Arc<Model> {
    let options = ImportOptions { weights, sampling: true, ..ImportOptions::default() };
    Arc::new(import(path, out, &options, &mut |_| {}).unwrap())
}

/// Logits of all positions, by prefill in chunks of these lengths over and over.
fn run(cpu: &Cpu, tokens: &[u32], chunks: &[usize]) -> (Vec<Vec<f32>>, Vec<u32>) {
    let mut session = cpu.session(tokens.len() as u32).unwrap();
    let (mut sink, mut selected, mut rest) = (Logits(Vec::new()), Vec::new(), tokens);
    for n in chunks.iter().cycle() {
        let (now, later) = rest.split_at((*n).min(rest.len()));
        selected.extend(session.extend(now, 0, &mut sink).unwrap());
        rest = later;
        if rest.is_empty() {
            return (sink.0, selected);
        }
    }
    unreachable!("the chunks are not empty")
}

/// Root of the mean squared difference over the reference's standard deviation, and the share of equal most likely tokens.
fn distance(got: &[Vec<f32>], want: &[Vec<f32>]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    let best = |v: &[f32]| v.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    let (mut error, mut square, mut same) = (0.0, 0.0, 0);
    for (g, w) in got.iter().zip(want) {
        assert_eq!(g.len(), w.len());
        let mean = w.iter().map(|w| f64::from(*w)).sum::<f64>() / w.len() as f64;
        error += g.iter().zip(w).map(|(g, w)| f64::from(g - w).powi(2)).sum::<f64>();
        square += w.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum::<f64>();
        same += usize::from(best(g) == best(w));
    }
    ((error / square).sqrt(), same as f64 / got.len() as f64)
}

/// Longer than the windows.
fn tokens() -> Vec<u32> {
    (0..48u32).map(|i| 3 + (i * i * 7 + i * 31) % 317).collect()
}

#[test]
fn every_family_predicts_what_its_float_reading_predicts() {
    let tokens = tokens();
    for family in Family::ALL {
        for layout in [Layout::HuggingFace, Layout::Gguf, Layout::Blocks] {
            let dir = tempfile::tempdir().unwrap();
            let path = write(family, layout, 5, dir.path()).unwrap();
            let model = imported(&path, WeightFormats::Auto, &dir.path().join("model"));
            let cpu = Cpu::new(model.clone()).unwrap();
            let (got, selected) = run(&cpu, &tokens, &[tokens.len()]);
            let want = FloatModel::open(&path, &model.description().config.hyper).unwrap().logits(&tokens).unwrap();
            let (error, same) = distance(&got, &want);
            println!("{} {layout:?}: relative error {error:.4}, same most likely token {same:.3}", family.name());
            // Weights on int8 rows are off by up to 0.4 % of their row's largest each, and eight-bit keys and values add to
            // it; blocks are kept.
            assert!(error < 0.05 && same > 0.85, "{} {layout:?}: {error} {same}", family.name());
            let (each, one_by_one) = run(&cpu, &tokens, &[1]);
            assert!(each == got && one_by_one == selected, "decode and prefill are the same bits");
            assert!(run(&cpu, &tokens, &[5, 1, 17]).0 == got);
        }
    }
}

#[test]
fn both_layouts_of_a_model_give_the_same_weights() {
    for family in Family::ALL {
        let dir = tempfile::tempdir().unwrap();
        let models = [Layout::HuggingFace, Layout::Gguf].map(|layout| {
            let path = write(family, layout, 9, dir.path()).unwrap();
            imported(&path, WeightFormats::Auto, &dir.path().join(format!("{layout:?}")))
        });
        let [hf, gguf] = models.map(|m| m.manifest().clone());
        assert_eq!(hf.weights_root, gguf.weights_root, "{}", family.name());
        assert_eq!(hf.section_roots, gguf.section_roots, "{}", family.name());
        assert_eq!(hf.tables_root, gguf.tables_root, "{}", family.name());
    }
}

#[test]
fn a_part_left_out_is_noticed() {
    // The bound of the first test tells a family from the same without one of its parts.
    let tokens = tokens();
    type Change = fn(&mut sworn_model::Hyper);
    let changes: [(Family, Change); 8] = [
        (Family::Llama3, |h| h.rope_scaling = sworn_model::hyper::RopeScaling::None),
        (Family::Qwen2, |h| h.qkv_bias = false),
        (Family::Qwen2, |h| h.rope_scaling = sworn_model::hyper::RopeScaling::None),
        (Family::Qwen3, |h| h.head_norms = false),
        (Family::Mistral, |h| h.sliding_window = None),
        (Family::Gemma, |h| h.activation = sworn_model::hyper::Activation::Silu),
        (Family::Gemma2, |h| h.score_cap = None),
        (Family::Gemma2, |h| h.sliding_window = None),
    ];
    for (i, (family, change)) in changes.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(family, Layout::HuggingFace, 5, dir.path()).unwrap();
        let model = imported(&path, WeightFormats::Auto, &dir.path().join("model"));
        let mut hyper = model.description().config.hyper.clone();
        let got = run(&Cpu::new(model).unwrap(), &tokens, &[tokens.len()]).0;
        change(&mut hyper);
        let want = FloatModel::open(&path, &hyper).unwrap().logits(&tokens).unwrap();
        let (error, _) = distance(&got, &want);
        println!("{i} {}: {error:.4}", family.name());
        assert!(error > 0.05, "{i} {}: {error}", family.name());
    }
}
