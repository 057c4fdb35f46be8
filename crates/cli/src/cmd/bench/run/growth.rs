//! Longer contexts, more jobs, larger models.

use crate::fault::{Fault, Result};

use super::super::client::Worker;
use super::super::host;
use super::super::plan::Shape;
use super::super::report::{Concurrency, Context, Size};
use super::super::stat::Stat;
use super::super::worker::Request;
use super::{LLAMA, OURS, Run};

/// Tokens decoded at a context's end, and the longest part of a prompt that is taken before them.
const END_DECODED: u32 = 16;
const END_PROMPT: u32 = 128;
/// Positions of a synthetic model: what a comparison needs.
const SHAPE_CONTEXT: u32 = 512;
/// Repetitions where the workload itself is long.
const FEW: usize = 3;

impl Run {
    /// Speed at the end of contexts, ours and llama.cpp's.
    pub(super) async fn contexts(&mut self, ours: &mut Worker) -> Result<()> {
        let room = self.model.manifest().max_positions;
        let contexts: Vec<u32> = self.plan.contexts.iter().copied().filter(|c| *c <= room).collect();
        let bar = self.stage("context", contexts.len());
        for positions in contexts {
            let prompt = END_PROMPT.min(positions.saturating_sub(END_DECODED));
            let filled = positions - END_DECODED - prompt;
            let tokens = self.prompt(0, filled + prompt);
            let timing = ours.time(&Request::Context { tokens, prompt, decode: END_DECODED }).await?;
            let (prefill, decode) = (f64::from(prompt) / timing.prefill_s, f64::from(END_DECODED) / timing.decode_s);
            let mut context = Context { positions, prefill_tok_s: [].into(), decode_tok_s: [].into() };
            context.prefill_tok_s.extend(tenths(prefill).map(|r| (OURS.to_owned(), r)));
            context.decode_tok_s.extend(tenths(decode).map(|r| (OURS.to_owned(), r)));
            if let Some(llama) = &self.llama {
                let threads = self.plan.threads;
                let prefill = llama.run(threads, prompt, 0, filled).await;
                let decode = llama.run(threads, 0, END_DECODED, filled + prompt).await;
                match (prefill, decode) {
                    (Ok(p), Ok(d)) => {
                        let (prefill, decode) = (p.prefill_tok_s.and_then(tenths), d.decode_tok_s.and_then(tenths));
                        context.prefill_tok_s.extend(prefill.map(|r| (LLAMA.to_owned(), r)));
                        context.decode_tok_s.extend(decode.map(|r| (LLAMA.to_owned(), r)));
                    }
                    (Err(fault), _) | (_, Err(fault)) => {
                        self.note(format!("llama.cpp left out at a context of {positions}: {fault}"));
                    }
                }
            }
            self.report.context.push(context);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Tokens per second of several answers at a time.
    pub(super) async fn jobs(&mut self, ours: &mut Worker) -> Result<()> {
        let bar = self.stage("jobs at a time", FEW);
        let (jobs, prompt, decode) = (self.plan.jobs, self.plan.job_prompt, self.plan.job_decode);
        let prompts: Vec<_> = (0..jobs).map(|i| self.prompt(i.saturating_mul(prompt), prompt)).collect();
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for _ in 0..FEW {
            for (prompts, rates) in [(&prompts[..1], &mut alone), (&prompts[..], &mut together)] {
                let timing = ours.time(&Request::Jobs { prompts: prompts.to_vec(), decode }).await?;
                rates.push(prompts.len() as f64 * f64::from(decode) / timing.decode_s);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let over_one_job = Stat::of_ratios(together.iter().zip(&alone));
        let decode_tok_s = Stat::of(together);
        self.report.concurrency = Some(Concurrency { jobs, decode_tok_s, over_one_job });
        Ok(())
    }

    /// Models of other sizes, with random weights. What does not fit here is left out with a note.
    pub(super) async fn shapes(&mut self) {
        if self.plan.shapes.is_empty() {
            return;
        }
        let bar = self.stage("model sizes", self.plan.shapes.len());
        for shape in self.plan.shapes {
            match self.shape(shape).await {
                Ok(size) => self.report.sizes.push(size),
                Err(fault) => self.note(format!("size {} left out: {fault}", shape.name)),
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
    }

    async fn shape(&self, shape: &Shape) -> Result<Size> {
        let available = host::available_memory();
        // The file is mapped whole, and writing it takes a few matrices more.
        if shape.weights_run() > available / 2 {
            return Err(Fault::failed(format!("it needs {} bytes, {available} are free", shape.weights_run() * 2)));
        }
        let dir = tempfile::tempdir()?;
        let model = dir.path().join("model");
        let threads = self.plan.threads;
        let mut worker = Worker::start(&self.home, threads)?;
        let spec = shape.spec(SHAPE_CONTEXT);
        worker.ask::<()>(&Request::Synthesise { spec, out: model.clone() }).await?;
        drop(worker);
        let load = Request::Load { model, gpu: self.gpu, threads };
        let (mut worker, _) = Worker::load(&self.home, threads, &load).await?;
        // Any tokens of the vocabulary: the weights are random, too.
        let prompt: Vec<u32> = (0..self.plan.prompt).map(|i| i.wrapping_mul(2_654_435_761) % spec.vocab).collect();
        let request = Request::Speed { prompt, decode: self.plan.decode.min(32), oath: false };
        worker.time(&request).await?;
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for _ in 0..FEW {
            let timing = worker.time(&request).await?;
            prefill.push(f64::from(self.plan.prompt) / timing.prefill_s);
            decode.push(f64::from(self.plan.decode.min(32)) / timing.decode_s);
        }
        let part = shape.weights_run() as f64 / shape.weights() as f64;
        let (prefill_tok_s, decode_tok_s) = (Stat::of(prefill), Stat::of(decode));
        Ok(Size {
            shape: shape.name.to_owned(),
            layers: shape.layers(),
            layers_run: shape.layers_run(),
            weights: shape.weights(),
            weights_run: shape.weights_run(),
            prefill_tok_s,
            decode_tok_s,
            prefill_tok_s_whole: prefill_tok_s.map(|s| s.times(part)),
            decode_tok_s_whole: decode_tok_s.map(|s| s.times(part)),
        })
    }
}

/// Rounded, if it is a number.
fn tenths(rate: f64) -> Option<f64> {
    rate.is_finite().then(|| (rate * 10.0).round() / 10.0)
}
