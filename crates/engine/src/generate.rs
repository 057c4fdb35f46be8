//! Answering a prompt, and repeating an answer.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use sworn_commit::{Hash, RunParams};

use crate::trace::{Trace, TraceRecorder};
use crate::{Backend, EngineError, Result};

/// What to answer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Prompt tokens, at least one.
    pub prompt: &'a [u32],
    /// Most output tokens, at least one.
    pub max_new: u32,
    /// Tokens that end the output (and belong to it).
    pub stop: &'a [u32],
    /// How to select tokens, and the seed; the default is the likeliest token.
    pub run: RunParams,
    /// Set from another thread to stop early with an error.
    pub cancel: Option<&'a AtomicBool>,
}

impl Request<'_> {
    /// What can be wrong with a request before it runs.
    pub(crate) fn check(&self, backend: &dyn Backend) -> Result<()> {
        if self.prompt.is_empty() || self.max_new == 0 {
            return Err(EngineError::Request(
                "a request has at least one prompt token and asks for at least one new token".into(),
            ));
        }
        capacity(backend, self.prompt.len() as u64 + u64::from(self.max_new) - 1).map(drop)
    }
}

/// An answer under oath.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Output tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// The commitment to the run.
    pub trace: Trace,
    /// Prompt tokens per second.
    pub prefill_tok_s: f64,
    /// Output tokens per second, the first excepted (prefill selects it); 0 if there was no other.
    pub decode_tok_s: f64,
}

impl Generation {
    /// Shortens the answer to its first `tokens` tokens, at least one: what it would be if it had ended there. Longer than it is:
    /// nothing happens.
    ///
    /// # Errors
    /// The trace is not of this answer.
    pub fn cut(&mut self, model: &Hash, prompt: &[u32], tokens: usize) -> Result<()> {
        let wanted = tokens.max(1);
        if wanted >= self.tokens.len() {
            return Ok(());
        }
        self.trace = self.trace.cut(model, prompt, &self.tokens[..wanted])?;
        self.tokens.truncate(wanted);
        Ok(())
    }
}

/// An answer repeated.
#[derive(Clone, Debug)]
pub struct Audit {
    /// What an honest node commits to for these tokens.
    pub trace: Trace,
    /// The tokens that the model selects. A trace may equal the honest one and its output still be a lie: the first row where
    /// this differs from the output has a `SELECT` or `SAMPLE` that does not yield the token that follows.
    pub selected: Vec<u32>,
    /// Positions per second.
    pub tok_s: f64,
}

impl Audit {
    /// The first output token that the model would not have selected.
    pub fn first_wrong_token(&self, output: &[u32]) -> Option<u32> {
        self.selected.iter().zip(output).position(|(a, b)| a != b).map(|i| i as u32)
    }
}

pub(crate) fn rate(tokens: usize, since: Instant) -> f64 {
    tokens as f64 / since.elapsed().as_secs_f64().max(1e-9)
}

/// Answers a prompt. `on_token` sees every output token as it is selected.
///
/// # Errors
/// An empty request, a sequence beyond the model's positions, a token outside the vocabulary, a failing device, or `cancel`.
pub fn generate(backend: &dyn Backend, request: &Request<'_>, on_token: &mut dyn FnMut(u32)) -> Result<Generation> {
    generate_until(backend, request, &mut |token| {
        on_token(token);
        ControlFlow::Continue(())
    })
}

/// As [`generate`]; the answer also ends with the token at which `on_token` breaks.
///
/// # Errors
/// As [`generate`].
pub fn generate_until(
    backend: &dyn Backend,
    request: &Request<'_>,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation> {
    let Request { prompt, max_new, stop, run, cancel } = *request;
    request.check(backend)?;
    let model = backend.model();
    let capacity = capacity(backend, prompt.len() as u64 + u64::from(max_new) - 1)?;
    let n_in = prompt.len() as u32;
    let mut recorder = TraceRecorder::new(model.layers(), n_in, cancel);
    let mut session = backend.session(capacity)?;
    session.set_run(run)?;
    let selected = |tokens: Vec<u32>| match tokens[..] {
        [token] => Ok(token),
        _ => {
            Err(EngineError::Device { backend: backend.name(), message: "it did not select exactly one token".into() })
        }
    };

    let start = Instant::now();
    let mut next = selected(session.extend(prompt, n_in - 1, &mut recorder)?)?;
    let prefill_tok_s = rate(prompt.len(), start);
    let mut tokens = vec![next];
    let mut flow = on_token(next);
    let start = Instant::now();
    while flow.is_continue() && (tokens.len() as u32) < max_new && !stop.contains(&next) {
        next = selected(session.extend(&[next], session.len(), &mut recorder)?)?;
        tokens.push(next);
        flow = on_token(next);
    }
    let decode_tok_s = if tokens.len() > 1 { rate(tokens.len() - 1, start) } else { 0.0 };
    let trace = recorder.finish(&model.id(), prompt, &tokens)?;
    Ok(Generation { tokens, trace, prefill_tok_s, decode_tok_s })
}

/// Computes the honest trace of a known prompt and output, sampled as `run` says, in one teacher-forced pass; the head runs only where a
/// token was produced.
///
/// # Errors
/// As [`generate`].
pub fn audit(
    backend: &dyn Backend,
    prompt: &[u32],
    output: &[u32],
    run: &RunParams,
    cancel: Option<&AtomicBool>,
) -> Result<Audit> {
    let tokens = forced(prompt, output)?;
    let model = backend.model();
    let n_in = prompt.len() as u32;
    let mut recorder = TraceRecorder::new(model.layers(), n_in, cancel);
    let mut session = backend.session(capacity(backend, tokens.len() as u64)?)?;
    session.set_run(*run)?;
    let start = Instant::now();
    let selected = session.extend(&tokens, n_in - 1, &mut recorder)?;
    let tok_s = rate(tokens.len(), start);
    let trace = recorder.finish(&model.id(), prompt, output)?;
    Ok(Audit { trace, selected, tok_s })
}

/// The tokens at the positions that ran: everything but the last output token.
pub(crate) fn forced(prompt: &[u32], output: &[u32]) -> Result<Vec<u32>> {
    match output {
        [inner @ .., _] if !prompt.is_empty() => Ok([prompt, inner].concat()),
        _ => Err(EngineError::Request("a run has at least one prompt token and one output token".into())),
    }
}

pub(crate) fn capacity(backend: &dyn Backend, positions: u64) -> Result<u32> {
    let capacity = backend.model().manifest().max_positions;
    match u32::try_from(positions) {
        Ok(n) if n <= capacity => Ok(n),
        _ => Err(EngineError::Capacity { wanted: positions, capacity }),
    }
}
