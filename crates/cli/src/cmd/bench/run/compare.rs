//! Ours beside the peers, with the oath beside without, the audit beside the answer.

use crate::fault::{Fault, Result};

use super::super::client::Worker;
use super::super::report::AuditSizes;
use super::super::stat::Stat;
use super::super::worker::{AuditTiming, Request};
use super::{CANDLE, LLAMA, OATH, OURS, Run};

/// Tokens per second of each round.
#[derive(Default)]
struct Rates {
    prefill: Vec<f64>,
    decode: Vec<f64>,
    peak_memory: Option<u64>,
}

impl Run {
    /// Ours, llama.cpp, ours under oath, candle; again and again.
    pub(super) async fn speed(&mut self, ours: &mut Worker, threads: usize, runs: usize) -> Result<()> {
        let all = threads == self.plan.threads;
        let bar = self.stage(if all { "speed" } else { "speed on 1 thread" }, runs);
        let mut candle = self.load_candle(threads).await;
        self.time(ours, true).await?;
        let [mut plain, mut oath, mut llama, mut other] = [(); 4].map(|()| Rates::default());
        for round in 0..runs {
            self.time(ours, false).await?.add_to(&mut plain);
            if let Some(timing) = self.time_llama(threads).await {
                timing.add_to(&mut llama);
            }
            self.time(ours, true).await?.add_to(&mut oath);
            if let Some(worker) = candle.as_mut().filter(|_| round < self.plan.runs_candle) {
                match self.time(worker, false).await {
                    Ok(timing) => timing.add_to(&mut other),
                    Err(fault) => {
                        self.note(format!("candle stopped: {fault}"));
                        (candle, self.candle) = (None, false);
                    }
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let engines = [(OURS, &plain), (OATH, &oath), (LLAMA, &llama), (CANDLE, &other)];
        let report = &mut self.report;
        for (engine, rates) in engines {
            for (rates, into) in
                [(&rates.prefill, &mut report.prefill_tok_s), (&rates.decode, &mut report.decode_tok_s)]
            {
                if let Some(stat) = Stat::of(rates.iter().copied()) {
                    into.entry(engine.to_owned()).or_default().insert(threads, stat);
                }
            }
            if all {
                let first = rates.prefill.iter().map(|rate| f64::from(self.plan.prompt) / rate * 1e3);
                report.time_to_first_token_ms.extend(Stat::of(first).map(|s| (engine.to_owned(), s)));
                report.peak_memory_bytes.extend(rates.peak_memory.map(|m| (engine.to_owned(), m)));
            }
        }
        if all {
            report.prefill_ratio_llamacpp = Stat::of_ratios(plain.prefill.iter().zip(&llama.prefill));
            report.decode_ratio_llamacpp = Stat::of_ratios(plain.decode.iter().zip(&llama.decode));
            report.prefill_ratio_llamacpp_oath = Stat::of_ratios(oath.prefill.iter().zip(&llama.prefill));
            report.decode_ratio_llamacpp_oath = Stat::of_ratios(oath.decode.iter().zip(&llama.decode));
        }
        Ok(())
    }

    /// One sample of a worker.
    async fn time(&self, worker: &mut Worker, oath: bool) -> Result<Sample> {
        let prompt = self.prompt(0, self.plan.prompt);
        let timing = worker.time(&Request::Speed { prompt, decode: self.plan.decode, oath }).await?;
        Ok(Sample {
            prefill: f64::from(self.plan.prompt) / timing.prefill_s,
            decode: f64::from(self.plan.decode) / timing.decode_s,
            peak_memory: timing.peak_memory,
        })
    }

    /// One sample of llama.cpp; after a failure it is left out.
    async fn time_llama(&mut self, threads: usize) -> Option<Sample> {
        let llama = self.llama.as_ref()?;
        let run = llama.run(threads, self.plan.prompt, self.plan.decode, 0).await.and_then(|run| {
            let incomplete = || Fault::failed("llama-bench left out a test");
            let (prefill, decode) =
                (run.prefill_tok_s.ok_or_else(incomplete)?, run.decode_tok_s.ok_or_else(incomplete)?);
            Ok((Sample { prefill, decode, peak_memory: run.peak_memory }, run.version))
        });
        match run {
            Ok((sample, version)) => {
                self.report.versions.insert(LLAMA.into(), version);
                Some(sample)
            }
            Err(fault) => {
                self.llama = None;
                self.note(format!("llama.cpp stopped: {fault}"));
                None
            }
        }
    }

    /// A worker with candle, warmed up.
    async fn load_candle(&mut self, threads: usize) -> Option<Worker> {
        let gguf = self.gguf.clone().filter(|_| self.candle)?;
        let loaded = async {
            let (mut worker, loaded) = Worker::load(&self.home, threads, &Request::LoadCandle { gguf }).await?;
            worker.time(&Request::Speed { prompt: self.prompt(0, 8), decode: 1, oath: false }).await?;
            Ok::<_, Fault>((worker, loaded))
        };
        match loaded.await {
            Ok((worker, loaded)) => {
                self.report.versions.insert(CANDLE.into(), loaded.adapter);
                Some(worker)
            }
            Err(fault) => {
                self.candle = false;
                self.note(format!("no candle: {fault}"));
                None
            }
        }
    }

    /// Pairs with and without the trace. Every other pair begins with the trace, so that a drift of the machine's speed cancels.
    pub(super) async fn oath(&mut self, ours: &mut Worker) -> Result<()> {
        let bar = self.stage("oath", self.plan.pairs);
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for i in 0..self.plan.pairs {
            let first = self.time(ours, i % 2 == 1).await?;
            let second = self.time(ours, i % 2 == 0).await?;
            let (plain, oath) = if i % 2 == 0 { (first, second) } else { (second, first) };
            // Rates of the same tokens: their quotient is that of the times, the other way round.
            prefill.push(plain.prefill / oath.prefill - 1.0);
            decode.push(plain.decode / oath.decode - 1.0);
            bar.inc(1);
        }
        bar.finish_and_clear();
        self.report.oath_overhead_prefill = Stat::of(prefill);
        self.report.oath_overhead_decode = Stat::of(decode);
        Ok(())
    }

    /// An answer, then its audit.
    pub(super) async fn audit(&mut self, ours: &mut Worker) -> Result<()> {
        let bar = self.stage("audit", self.plan.audits);
        let room = self.model.manifest().max_positions;
        let output = self.plan.audit_output.min(room.saturating_sub(self.plan.audit_prompt)).max(1);
        let request = Request::Audit { prompt: self.prompt(0, self.plan.audit_prompt.min(room)), output };
        let (mut generate, mut audit, mut root) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..self.plan.audits {
            let timing: AuditTiming = ours.ask(&request).await?;
            generate.push(timing.generate_s);
            audit.push(timing.audit_s);
            root = timing.trace_root;
            bar.inc(1);
        }
        if self.gpu {
            let model = self.model.path().to_owned();
            let threads = self.plan.threads;
            let (mut cpu, _) = Worker::load(&self.home, threads, &Request::Load { model, gpu: false, threads }).await?;
            let timing: AuditTiming = cpu.ask(&request).await?;
            self.report.trace_root_equals_cpu = Some(timing.trace_root == root);
        }
        bar.finish_and_clear();
        self.report.audit_over_generate = Stat::of_ratios(audit.iter().zip(&generate));
        self.report.audit = Some(AuditSizes {
            prompt_tokens: self.plan.audit_prompt,
            output_tokens: output,
            generate_s: Stat::of(generate),
            audit_s: Stat::of(audit),
        });
        Ok(())
    }
}

/// One measurement in tokens per second.
#[derive(Clone, Copy)]
struct Sample {
    prefill: f64,
    decode: f64,
    peak_memory: Option<u64>,
}

impl Sample {
    fn add_to(self, rates: &mut Rates) {
        rates.prefill.push(self.prefill);
        rates.decode.push(self.decode);
        // Later samples include what other measurements left behind.
        rates.peak_memory = rates.peak_memory.or(self.peak_memory);
    }
}
