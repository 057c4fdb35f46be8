//! What a run commits to as log-probabilities against a float log-softmax of its logits.
#![allow(clippy::print_stdout, reason = "the errors are the report")]

use std::sync::Arc;

use sworn_commit::{HeadRow, RunParams};
use sworn_engine::{Backend, Cpu, EngineError, ExportSink, LogProber, Request, audit, generate};
use sworn_isa::logprob::LogProbs;
use sworn_isa::sampling::Q12_ONE;
use sworn_isa::{Sampling, SectionKind};
use sworn_model::small::{Family, Layout, write};
use sworn_model::{Message, Model, ModelStore, pull::pull};

/// Logits and log-probabilities of every head row.
#[derive(Default)]
struct Seen {
    head: u16,
    logits: Vec<Vec<i32>>,
    rows: Vec<HeadRow>,
}

impl ExportSink for Seen {
    fn export(&mut self, layer: u16, _: u32, tensors: &[&[u8]]) -> Result<(), EngineError> {
        if layer == self.head {
            self.rows.push(HeadRow::from_exports(tensors).expect("three exports"));
        }
        Ok(())
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, _: u32, logits: &[i32]) -> Result<(), EngineError> {
        self.logits.push(logits.to_vec());
        Ok(())
    }
}

fn log_softmax(logits: &[i32]) -> Vec<f64> {
    let z = |z: &i32| f64::from(*z) / 16384.0;
    let max = logits.iter().map(z).fold(f64::MIN, f64::max);
    let sum = max + logits.iter().map(|l| (z(l) - max).exp()).sum::<f64>().ln();
    logits.iter().map(|l| z(l) - sum).collect()
}

/// The head rows of a run over `tokens`, all of them checked; largest and mean error in nats.
fn check(cpu: &Cpu, run: RunParams, tokens: &[u32]) -> (f64, f64, usize) {
    let model = cpu.model();
    let mut seen = Seen { head: model.layers() + 1, ..Seen::default() };
    let mut session = cpu.session(tokens.len() as u32).unwrap();
    session.set_run(run).unwrap();
    let selected = session.extend(tokens, 0, &mut seen).unwrap();
    assert_eq!((seen.rows.len(), seen.logits.len()), (tokens.len(), tokens.len()));
    let head = &model.program().section(SectionKind::Head).ops;
    let tables = |k: u32| model.table(k as usize).values.iter().map(|v| *v as u16).collect();
    let prober = LogProber::new(head, tables).unwrap();
    let n = LogProbs::find(head).unwrap().n;
    let (mut worst, mut total, mut count) = (0f64, 0f64, 0);
    for ((row, logits), token) in seen.rows.iter().zip(&seen.logits).zip(selected) {
        assert_eq!(*row, prober.row(logits, token));
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by_key(|t| (std::cmp::Reverse(logits[*t as usize]), *t));
        assert_eq!(row.top, order[..n]);
        let exact = log_softmax(logits);
        for (token, p) in row.likeliest().chain([(token, row.chosen())]) {
            let error = (f64::from(p) / 16384.0 - exact[token as usize]).abs();
            (worst, total, count) = (worst.max(error), total + error, count + 1);
        }
    }
    (worst, total / count as f64, count)
}

fn sampled(seed: u8) -> RunParams {
    let sampling =
        Sampling { inverse_temperature: Q12_ONE / 2, penalty: Q12_ONE * 3 / 2, top_k: 30, ..Sampling::GREEDY };
    RunParams { sampling, seed: [seed; 32] }
}

#[test]
fn log_probabilities_are_those_of_the_untouched_logits() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(Family::Llama3, Layout::Blocks, 3, dir.path()).unwrap();
    let model = sworn_model::import(file, dir.path().join("m"), &Default::default(), &mut |_| {}).unwrap();
    let model = Arc::new(model);
    let tokens: Vec<u32> = (0..60).map(|i| 3 + i * 31 % 250).collect();
    for run in [RunParams::default(), sampled(1)] {
        let cpu = Cpu::with_threads(model.clone(), 2).unwrap();
        let (worst, mean, count) = check(&cpu, run, &tokens);
        println!("{count} log-probabilities: at most {worst:.6}, on average {mean:.6} nats off");
        assert!(worst < 0.0005, "{worst}");

        // However a token came about, its row is the same.
        let request = Request { prompt: &tokens[..20], max_new: 12, stop: &[], run, cancel: None };
        let g = generate(&cpu, &request, &mut |_| {}).unwrap();
        assert_eq!(g.trace.log_probs.len(), 12);
        assert_eq!(audit(&cpu, &tokens[..20], &g.tokens, &run, None).unwrap().trace, g.trace);
        for (row, token) in g.trace.log_probs.iter().zip(&g.tokens) {
            let known = row.likeliest().find(|(t, _)| t == token);
            assert!(known.is_none_or(|(_, p)| p == row.chosen()));
        }
    }
}

#[test]
fn smollm2_log_probabilities_are_exact_to_two_thousandths() {
    let store = ModelStore::from_env().unwrap();
    let model: Arc<Model> = Arc::new(pull("smollm2-135m", store.home(), &mut |_| {}).unwrap());
    let cpu = Cpu::new(model.clone()).unwrap();
    let prompts = ["What is the capital of France?", "Write a poem about the sea.", "17 * 23 ="];
    let (mut worst, mut mean, mut all) = (0f64, 0f64, 0);
    for (i, prompt) in prompts.iter().enumerate() {
        let ids = model.encode_chat(&[Message::new("user", *prompt)]).unwrap();
        let run = if i == 1 { sampled(2) } else { RunParams::default() };
        let request = Request { prompt: &ids, max_new: 40, stop: &[], run, cancel: None };
        let tokens = generate(&cpu, &request, &mut |_| {}).unwrap().tokens;
        let (w, m, n) = check(&cpu, run, &[ids, tokens].concat());
        (worst, mean, all) = (worst.max(w), mean + m * n as f64, all + n);
    }
    println!("{all} log-probabilities of SmolLM2: at most {worst:.6}, on average {:.6} nats off", mean / all as f64);
    assert!(worst < 0.002, "{worst}");
}
