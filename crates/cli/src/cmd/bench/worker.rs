//! One executor in a process of its own, measured on request.
//!
//! A process each, so that peak memory is the executor's own, thread pools do not meet, and stopping the run ends whatever is
//! executing. A request is a line of JSON on stdin, the reply a line on stdout; `client` asks.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sworn_commit::RunParams;
use sworn_engine::{Backend, Cpu, NoExports, Session, TraceRecorder, Work};
use sworn_eval::{CandlePeer, Evaluation, Options};
use sworn_model::{Model, SyntheticSpec};

use crate::args::BackendChoice;
use crate::fault::{Fault, Result};
use crate::output::Output;
use crate::{backend, models};

use super::host;

/// What a worker is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Loads a model directory on `cpu` with so many threads, or on another backend; gives [`Loaded`].
    Load { model: PathBuf, gpu: bool, threads: usize },
    /// Loads a GGUF in candle, whose threads the environment sets; gives [`Loaded`].
    LoadCandle { gguf: PathBuf },
    /// Takes the prompt in one sequence and decodes in another that begins with its first token; gives [`Timing`].
    Speed { prompt: Vec<u32>, decode: u32, oath: bool },
    /// Answers and repeats the answer; gives [`AuditTiming`].
    Audit { prompt: Vec<u32>, output: u32 },
    /// Fills a context but for its end, then takes `prompt` more tokens and decodes `decode`; gives [`Timing`].
    Context { tokens: Vec<u32>, prompt: u32, decode: u32 },
    /// Decodes several sequences together, each after its prompt; gives [`Timing`], without the prompts' time.
    Jobs { prompts: Vec<Vec<u32>>, decode: u32 },
    /// Compares with the float reading of the file; gives [`Windows`].
    Perplexity { gguf: PathBuf, window: u32, windows: u32 },
    /// Writes a model of random weights; gives null.
    Synthesise { spec: SyntheticSpec, out: PathBuf },
}

/// A model is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    pub(super) backend: String,
    pub(super) adapter: String,
}

/// Seconds that the parts of a run took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Timing {
    pub(super) prefill_s: f64,
    pub(super) decode_s: f64,
    /// Peak memory of the process so far.
    pub(super) peak_memory: Option<u64>,
}

/// Seconds of an answer under oath and of its audit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AuditTiming {
    pub(super) generate_s: f64,
    pub(super) audit_s: f64,
    /// Of both.
    pub(super) trace_root: String,
}

/// All windows together, then each one's difference of perplexity in percent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Windows {
    pub(super) integer: f64,
    pub(super) float: f64,
    pub(super) delta_percent: f64,
    pub(super) standard_error: f64,
    pub(super) top1_agreement: f64,
    pub(super) tokens: u32,
    pub(super) each: Vec<f64>,
}

/// The reply's line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Done(Value),
    Failed(String),
}

/// Reads a reply's line.
pub(super) fn read_reply<T: DeserializeOwned>(line: &str) -> Result<T> {
    match serde_json::from_str(line)? {
        Reply::Done(value) => Ok(serde_json::from_value(value)?),
        Reply::Failed(message) => Err(Fault::failed(message)),
    }
}

/// Answers requests until stdin ends.
pub(super) fn serve(out: Output) -> Result<()> {
    let mut executor = Executor::None;
    for line in std::io::stdin().lock().lines() {
        let reply = match serde_json::from_str(&line?) {
            Ok(request) => match executor.answer(request) {
                Ok(value) => Reply::Done(value),
                Err(fault) => Reply::Failed(fault.to_string()),
            },
            Err(e) => Reply::Failed(format!("no request: {e}")),
        };
        out.line(&reply, |r| serde_json::to_string(r).unwrap_or_default())?;
    }
    Ok(())
}

enum Executor {
    None,
    Ours(Arc<dyn Backend>),
    Candle(Box<CandlePeer>),
}

impl Executor {
    fn answer(&mut self, request: Request) -> Result<Value> {
        Ok(match request {
            Request::Load { model, gpu, threads } => {
                let model = Arc::new(Model::load(&model)?);
                let backend: Arc<dyn Backend> = match gpu {
                    true => backend::open(model, BackendChoice::Wgpu)?.backend,
                    false => Arc::new(Cpu::with_threads(model, threads)?),
                };
                let loaded = Loaded { backend: backend.name().into(), adapter: backend.adapter() };
                *self = Self::Ours(backend);
                serde_json::to_value(loaded)?
            }
            Request::LoadCandle { gguf } => {
                *self = Self::Candle(Box::new(CandlePeer::open(&gguf)?));
                serde_json::to_value(Loaded { backend: "candle".into(), adapter: CandlePeer::VERSION.into() })?
            }
            Request::Speed { prompt, decode, oath } => {
                let (prefill_s, decode_s) = match self {
                    Self::Candle(peer) => candle_speed(peer, &prompt, decode)?,
                    _ => speed(self.ours()?, &prompt, decode, oath)?,
                };
                serde_json::to_value(Timing { prefill_s, decode_s, peak_memory: host::peak_memory(None) })?
            }
            Request::Audit { prompt, output } => serde_json::to_value(audit(self.ours()?, &prompt, output)?)?,
            Request::Context { tokens, prompt, decode } => {
                let (prefill_s, decode_s) = context(self.ours()?, &tokens, prompt, decode)?;
                serde_json::to_value(Timing { prefill_s, decode_s, peak_memory: None })?
            }
            Request::Jobs { prompts, decode } => {
                let decode_s = jobs(self.ours()?, &prompts, decode)?;
                serde_json::to_value(Timing { prefill_s: 0.0, decode_s, peak_memory: None })?
            }
            Request::Perplexity { gguf, window, windows } => {
                let backend = self.ours()?;
                let tokens = backend.model().encode_text(&sworn_eval::unwrap_lines(sworn_eval::TEXT))?;
                let options = Options { window, max_tokens: window.saturating_mul(windows) };
                let (all, each) = sworn_eval::evaluate_windows(backend, &gguf, &tokens, &options, &mut |_| {})?;
                serde_json::to_value(Windows::new(&all, &each))?
            }
            Request::Synthesise { spec, out } => {
                sworn_model::synthetic(&spec, out)?;
                Value::Null
            }
        })
    }

    fn ours(&self) -> Result<&dyn Backend> {
        match self {
            Self::Ours(backend) => Ok(&**backend),
            _ => Err(Fault::failed("no model is loaded")),
        }
    }
}

impl Windows {
    fn new(all: &Evaluation, each: &[Evaluation]) -> Self {
        Windows {
            integer: all.ppl_integer,
            float: all.ppl_float,
            delta_percent: all.ppl_delta_percent,
            standard_error: all.standard_error,
            top1_agreement: all.top1_agreement,
            tokens: all.tokens,
            each: each.iter().map(|e| e.ppl_delta_percent).collect(),
        }
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

fn one(selected: &[u32]) -> Result<u32> {
    selected.last().copied().ok_or_else(|| Fault::failed("the backend selected no token: this is a defect of it"))
}

/// Decodes `n` tokens after `next`.
fn decode(
    session: &mut dyn Session,
    mut next: u32,
    n: u32,
    sink: &mut dyn sworn_engine::ExportSink,
) -> Result<Vec<u32>> {
    let mut output = vec![next];
    for _ in 0..n {
        let at = session.len();
        next = one(&session.extend(&[next], at, sink)?)?;
        output.push(next);
    }
    Ok(output)
}

/// Seconds of taking the prompt, and of decoding from one token on. Under oath each includes everything up to the trace's root.
fn speed(backend: &dyn Backend, prompt: &[u32], n: u32, oath: bool) -> Result<(f64, f64)> {
    let (model, n_in) = (backend.model(), prompt.len() as u32);
    let first = prompt.get(..1).ok_or_else(|| Fault::failed("the prompt is empty"))?;
    let recorder = |n_in| TraceRecorder::new(model.layers(), n_in, None);

    let mut session = backend.session(n_in)?;
    let (start, prefill_s);
    if oath {
        let mut sink = recorder(n_in);
        start = Instant::now();
        let next = session.extend(prompt, n_in - 1, &mut sink)?;
        sink.finish(&model.id(), prompt, &next)?;
        prefill_s = seconds(start);
    } else {
        start = Instant::now();
        session.extend(prompt, n_in - 1, &mut NoExports)?;
        prefill_s = seconds(start);
    }

    let mut session = backend.session(n.saturating_add(1))?;
    let (start, decode_s);
    if oath {
        let mut sink = recorder(1);
        let next = one(&session.extend(first, 0, &mut sink)?)?;
        start = Instant::now();
        let output = decode(&mut *session, next, n, &mut sink)?;
        sink.finish(&model.id(), first, &output)?;
        decode_s = seconds(start);
    } else {
        let next = one(&session.extend(first, 0, &mut NoExports)?)?;
        start = Instant::now();
        decode(&mut *session, next, n, &mut NoExports)?;
        decode_s = seconds(start);
    }
    Ok((prefill_s, decode_s))
}

fn candle_speed(peer: &mut CandlePeer, prompt: &[u32], n: u32) -> Result<(f64, f64)> {
    peer.clear();
    let start = Instant::now();
    peer.extend(prompt)?;
    let prefill_s = seconds(start);
    peer.clear();
    let mut next = peer.extend(prompt.get(..1).unwrap_or_default())?;
    let start = Instant::now();
    for _ in 0..n {
        next = peer.extend(&[next])?;
    }
    Ok((prefill_s, seconds(start)))
}

fn audit(backend: &dyn Backend, prompt: &[u32], output: u32) -> Result<AuditTiming> {
    // Without stop tokens: the same lengths in every run and for every model.
    let run = RunParams::default();
    let request = sworn_engine::Request { prompt, max_new: output, stop: &[], run, cancel: None };
    let start = Instant::now();
    let answer = sworn_engine::generate(backend, &request, &mut |_| {})?;
    let generate_s = seconds(start);
    let start = Instant::now();
    let audit = sworn_engine::audit(backend, prompt, &answer.tokens, &run, None)?;
    let audit_s = seconds(start);
    if audit.trace.root != answer.trace.root {
        return Err(Fault::failed("the audit of an answer gave another trace root: this is a defect of the backend"));
    }
    Ok(AuditTiming { generate_s, audit_s, trace_root: models::id_text(&audit.trace.root) })
}

fn context(backend: &dyn Backend, tokens: &[u32], prompt: u32, n: u32) -> Result<(f64, f64)> {
    let before = tokens.len().saturating_sub(prompt as usize);
    let (fill, prompt) = tokens.split_at(before);
    let mut session = backend.session((tokens.len() as u32).saturating_add(n))?;
    session.extend(fill, u32::MAX, &mut NoExports)?;
    let start = Instant::now();
    let next = one(&session.extend(prompt, tokens.len() as u32 - 1, &mut NoExports)?)?;
    let prefill_s = seconds(start);
    let start = Instant::now();
    decode(&mut *session, next, n, &mut NoExports)?;
    Ok((prefill_s, seconds(start)))
}

/// One sequence of several.
struct Job {
    session: Box<dyn Session>,
    next: u32,
}

fn jobs(backend: &dyn Backend, prompts: &[Vec<u32>], n: u32) -> Result<f64> {
    let mut jobs = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let mut session = backend.session((prompt.len() as u32).saturating_add(n))?;
        let next = one(&session.extend(prompt, prompt.len() as u32 - 1, &mut NoExports)?)?;
        jobs.push(Job { session, next });
    }
    let start = Instant::now();
    for _ in 0..n {
        step(backend, &mut jobs)?;
    }
    Ok(seconds(start))
}

/// Every job's next token.
fn step(backend: &dyn Backend, jobs: &mut [Job]) -> Result<()> {
    let tokens: Vec<[u32; 1]> = jobs.iter().map(|j| [j.next]).collect();
    let mut sinks: Vec<NoExports> = jobs.iter().map(|_| NoExports).collect();
    let mut work: Vec<Work<'_>> = (jobs.iter_mut().zip(&tokens).zip(&mut sinks))
        .map(|((job, tokens), sink)| Work { head_from: job.session.len(), session: &mut *job.session, tokens, sink })
        .collect();
    let selected = backend.extend_many(&mut work);
    for (job, selected) in jobs.iter_mut().zip(selected) {
        job.next = one(&selected?)?;
    }
    Ok(())
}
