//! The measurements, one after another.

mod compare;
mod growth;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use indicatif::ProgressBar;
use sworn_isa::{Opcode, SectionKind};
use sworn_model::Model;

use crate::args::{BackendChoice, Bench};
use crate::backend;
use crate::fault::{Fault, Result};
use crate::models::{self, id_text};
use crate::output::note;
use crate::progress;
use crate::settings::Settings;

use super::client::Worker;
use super::host;
use super::llama::LlamaBench;
use super::plan::Plan;
use super::report::{Bandwidth, ByEngine, ByThreads, Perplexity, Report};
use super::stat::Stat;
use super::worker::{Loaded, Request, Windows};

/// Keys of [`super::report::ByEngine`].
const OURS: &str = "ours";
const OATH: &str = "ours_oath";
const LLAMA: &str = "llamacpp";
const CANDLE: &str = "candle";

/// A run in progress.
struct Run {
    start: Instant,
    home: PathBuf,
    plan: Plan,
    model: Arc<Model>,
    /// A text's tokens, to take prompts from.
    text: Vec<u32>,
    gpu: bool,
    /// The file the model was imported from, if it is here: what peers run.
    gguf: Option<PathBuf>,
    llama: Option<LlamaBench>,
    candle: bool,
    report: Report,
}

/// Everything, in turn.
pub(super) async fn measure(settings: &Settings, command: &Bench) -> Result<Report> {
    let mut run = Run::new(settings, command)?;
    run.bandwidth().await?;
    let loading = Instant::now();
    let (mut ours, loaded) = run.load_ours(run.plan.threads).await?;
    run.report.load_ms = Some((loading.elapsed().as_secs_f64() * 1e3).round());
    (run.report.backend, run.report.adapter) = (loaded.backend, loaded.adapter);
    run.speed(&mut ours, run.plan.threads, run.plan.runs).await?;
    run.oath(&mut ours).await?;
    run.audit(&mut ours).await?;
    run.contexts(&mut ours).await?;
    run.jobs(&mut ours).await?;
    drop(ours);
    if !run.gpu && run.plan.threads > 1 {
        let (mut one, _) = run.load_ours(1).await?;
        run.speed(&mut one, 1, run.plan.runs_one_thread).await?;
    }
    run.shares();
    run.perplexity().await;
    run.shapes().await;
    run.report.seconds = run.start.elapsed().as_secs();
    Ok(run.report)
}

impl Run {
    fn new(settings: &Settings, command: &Bench) -> Result<Self> {
        let start = Instant::now();
        let model = models::load(settings, &command.model)?;
        let text = model.encode_text(&sworn_eval::unwrap_lines(sworn_eval::TEXT))?;
        if text.is_empty() {
            return Err(Fault::failed("the model's tokenizer makes no tokens of a text: it cannot be measured"));
        }
        let gpu = match command.backend {
            BackendChoice::Cpu => false,
            BackendChoice::Wgpu => true,
            BackendChoice::Auto => sworn_engine_wgpu::probe().iter().any(|a| a.is_gpu()),
        };
        let plan = Plan::new(command, host::processors());
        let report = Report {
            model: model.description().name.clone(),
            model_id: id_text(&model.id()),
            quick: command.quick,
            threads: plan.threads,
            runs: plan.runs,
            prompt_tokens: plan.prompt,
            decoded_tokens: plan.decode,
            host: host::describe(),
            versions: [("sworn".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            ..Report::default()
        };
        let home = settings.home.clone();
        let mut run = Run { start, home, plan, model, text, gpu, gguf: None, llama: None, candle: false, report };
        if run.report.host.busy_before > 0.1 {
            let busy = run.report.host.busy_before * 100.0;
            run.note(format!(
                "other programs took {busy:.0} % of the processors before the run: its figures are noisy"
            ));
        }
        if let Some(label) = &command.label {
            run.report.versions.insert("label".into(), label.clone());
        }
        run.find_peers(settings, command)?;
        Ok(run)
    }

    fn find_peers(&mut self, settings: &Settings, command: &Bench) -> Result<()> {
        let gguf = match &command.gguf {
            Some(file) if file.is_file() => Some(file.clone()),
            Some(file) => return Err(Fault::usage(format!("no GGUF at {}: check --gguf", file.display()))),
            None => models::store(settings).source_file(&command.model).ok().filter(|f| f.is_file()),
        };
        let Some(gguf) = gguf else {
            self.note(
                "no peers and no perplexity: the GGUF that the model was imported from is not here (--gguf names it)",
            );
            return Ok(());
        };
        self.gguf = Some(gguf.clone());
        if self.gpu {
            self.note("no peers: they run on the processor, so there is nothing to compare a GPU with");
            return Ok(());
        }
        match LlamaBench::find(command.llama_bench.as_deref(), &gguf) {
            Ok(llama) => self.llama = Some(llama),
            Err(fault) if fault.code() == 2 => return Err(fault),
            Err(fault) => self.note(format!("no llama.cpp: {fault}")),
        }
        self.candle = true;
        Ok(())
    }

    /// Says what is measured now, and counts it for a person.
    fn stage(&self, label: &'static str, steps: usize) -> ProgressBar {
        note(format!("bench: {label} (after {} s)", self.start.elapsed().as_secs()));
        progress::bar(label, steps as u64)
    }

    /// Tells now and in the report.
    fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        note(format!("note: {text}"));
        self.report.notes.push(text);
    }

    /// `n` tokens of the text from `from` on; it repeats where it is too short.
    fn prompt(&self, from: u32, n: u32) -> Vec<u32> {
        self.text.iter().copied().cycle().skip(from as usize % self.text.len()).take(n as usize).collect()
    }

    async fn load_ours(&self, threads: usize) -> Result<(Worker, Loaded)> {
        let model = self.model.path().to_owned();
        Worker::load(&self.home, threads, &Request::Load { model, gpu: self.gpu, threads }).await
    }

    async fn bandwidth(&mut self) -> Result<()> {
        let bytes = (host::available_memory() / 8).min(self.plan.buffer as u64).max(1 << 20);
        let mut bytes_per_s = ByThreads::new();
        let mut counts = vec![1, self.plan.threads];
        counts.dedup();
        let bar = self.stage("memory", 3 * counts.len());
        for threads in counts {
            let mut rates = Vec::new();
            for _ in 0..3 {
                let passes = self.plan.passes;
                rates.push(backend::blocking(move || Ok(host::bandwidth(threads, bytes as usize, passes))).await?);
                bar.inc(1);
            }
            bytes_per_s.extend(Stat::of(rates).map(|s| (threads, s)));
        }
        bar.finish_and_clear();
        let mut bytes_per_token = ByEngine::from([(OURS.to_owned(), weight_bytes(&self.model))]);
        let gguf = self.gguf.as_ref().and_then(|g| sworn_eval::bytes_per_token(g).ok());
        bytes_per_token.extend(gguf.map(|bytes| (LLAMA.to_owned(), bytes)));
        let (limit_tok_s, share) = (ByEngine::new(), ByEngine::new());
        let bandwidth = Bandwidth { bytes_per_s, buffer_bytes: bytes, bytes_per_token, limit_tok_s, share };
        self.report.bandwidth = (!self.gpu).then_some(bandwidth);
        Ok(())
    }

    /// What the decoding reached of the memory's limit.
    fn shares(&mut self) {
        let threads = self.plan.threads;
        let Some(bandwidth) = &mut self.report.bandwidth else { return };
        let Some(rate) = bandwidth.bytes_per_s.get(&threads) else { return };
        for (engine, bytes) in &bandwidth.bytes_per_token {
            let limit = rate.median / *bytes as f64;
            bandwidth.limit_tok_s.insert(engine.clone(), (limit * 10.0).round() / 10.0);
            if let Some(decode) = self.report.decode_tok_s.get(engine).and_then(|d| d.get(&threads)) {
                bandwidth.share.insert(engine.clone(), (decode.median / limit * 1e3).round() / 1e3);
            }
        }
    }

    async fn perplexity(&mut self) {
        let Some(gguf) = self.gguf.clone() else { return };
        let bar = self.stage("perplexity", 1);
        let (window, windows) = (self.plan.window, self.plan.windows);
        let measured = async {
            let (mut worker, _) = self.load_ours(self.plan.threads).await?;
            worker.ask::<Windows>(&Request::Perplexity { gguf, window, windows }).await
        };
        match measured.await {
            Err(fault) => self.note(format!("no perplexity: {fault}")),
            Ok(w) => {
                self.report.ppl_delta_percent = Stat::of(w.each);
                self.report.perplexity = Some(Perplexity {
                    integer: w.integer,
                    float: w.float,
                    delta_percent: w.delta_percent,
                    standard_error: w.standard_error,
                    top1_agreement: w.top1_agreement,
                    window,
                    tokens: w.tokens,
                });
            }
        }
        bar.finish_and_clear();
    }
}

/// Bytes of weights that a decoded token reads: every matrix that it is multiplied with.
fn weight_bytes(model: &Model) -> u64 {
    let matrices = (0..=model.layers().saturating_add(1)).filter_map(|layer| Some((layer, model.section_kind(layer)?)));
    let sections = matrices.flat_map(|(layer, kind): (u16, SectionKind)| {
        let ops = &model.program().section(kind).ops;
        ops.iter().filter(|d| d.opcode == Opcode::Linear).map(move |d| model.operand_weight(&d.operands[2], layer))
    });
    sections.map(|w| w.bytes.len() as u64).sum()
}
