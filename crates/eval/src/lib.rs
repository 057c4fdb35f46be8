//! How far the integer model is from the float reading of the file it was imported from.
//!
//! Floats are measured here, never used: the float model is computed with candle from the GGUF's tensors, dequantised to f32,
//! on the same tokens, and its predictions are compared with those of the integer model.
//!
//! **Owns** this measurement, the float forward pass it needs, and candle as a [peer](CandlePeer) of benchmarks. **May
//! depend on** `model`, `engine` and candle, which is why it is a crate of its own: nothing else pays for candle's build.
//! **Must never** be used to produce an answer.

use std::path::Path;

use sworn_engine::{Backend, EngineError, ExportSink, Result};

mod families;
mod peer;

pub use families::FloatModel;
pub use peer::{CandlePeer, bytes_per_token};

/// The first chapters of Jane Austen's *Persuasion* (1817, in the public domain): a text for figures that anyone can repeat,
/// long enough for nine windows of 512 tokens. As printed, so [`unwrap_lines`] belongs before it.
pub const TEXT: &str = include_str!("../data/persuasion.txt");

/// Fractional bits of a logit.
const FRACTION: i32 = 14;

/// What to measure on.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Length of the independent sequences that the text is cut into.
    pub window: u32,
    /// Most tokens to use; 0 means all.
    pub max_tokens: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { window: 512, max_tokens: 4608 }
    }
}

/// What [`evaluate`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Perplexity of the integer model.
    pub ppl_integer: f64,
    /// Perplexity of the float reading.
    pub ppl_float: f64,
    /// How much greater the integer model's perplexity is, in percent.
    pub ppl_delta_percent: f64,
    /// Standard error of that difference, in percent.
    pub standard_error: f64,
    /// Mean Kullback–Leibler divergence of the integer from the float predictions, in nats.
    pub kl: f64,
    /// Share of positions with the same most likely token.
    pub top1_agreement: f64,
    /// Positions compared.
    pub tokens: u32,
}

/// Where an evaluation is: `done` of `total` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// compared so far
    pub done: u32,
    /// to compare
    pub total: u32,
}

/// Text with the line breaks inside of paragraphs replaced by spaces: as running text, not as it was set in print.
pub fn unwrap_lines(text: &str) -> String {
    let text = text.replace('\r', "");
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut before = None;
    while let Some(c) = chars.next() {
        let alone = c == '\n' && before != Some('\n') && chars.peek() != Some(&'\n');
        out.push(if alone { ' ' } else { c });
        before = Some(c);
    }
    out
}

/// Compares the integer model on `backend` with the float reading of `gguf`, the file it was imported from.
///
/// # Errors
/// Another file, a text shorter than one window, or an architecture that the float reference does not know.
pub fn evaluate(
    backend: &dyn Backend,
    gguf: &Path,
    tokens: &[u32],
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation> {
    Ok(evaluate_windows(backend, gguf, tokens, options, progress)?.0)
}

/// [`evaluate`], with each window's own figures after those of all windows together.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_windows(
    backend: &dyn Backend,
    gguf: &Path,
    tokens: &[u32],
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Evaluation, Vec<Evaluation>)> {
    let model = backend.model();
    let description = model.description();
    let size = std::fs::metadata(gguf).map_err(|e| reference(format!("{}: {e}", gguf.display())))?.len();
    if size != description.source.bytes {
        return Err(reference(format!(
            "{} has {size} bytes, but the model was imported from a file of {}: name the file it was imported from",
            gguf.display(),
            description.source.bytes
        )));
    }
    let window = options.window.clamp(2, model.manifest().max_positions) as usize;
    let limit = if options.max_tokens == 0 { usize::MAX } else { options.max_tokens as usize };
    let windows: Vec<&[u32]> = tokens.chunks_exact(window).take((limit / window).max(1)).collect();
    if windows.is_empty() {
        return Err(EngineError::Request(format!(
            "the text has {} tokens and one window needs {window}: give a longer text or a shorter window",
            tokens.len()
        )));
    }
    let total = (windows.len() * window) as u32;
    progress(Progress { done: 0, total });
    let float = FloatModel::open(gguf, &description.config.hyper)?;
    let mut sum = Sums::default();
    let mut each = Vec::with_capacity(windows.len());
    for (i, tokens) in windows.iter().enumerate() {
        let mut session = backend.session(window as u32)?;
        let logits = float.logits(tokens)?;
        let mut sink = Compare { tokens, float: &logits, rows: Vec::new() };
        session.extend(tokens, 0, &mut sink)?;
        if sink.rows.len() != window {
            return Err(EngineError::Device { backend: backend.name(), message: "it gave no logits".into() });
        }
        sum.add(&sink.rows);
        let mut own = Sums::default();
        own.add(&sink.rows);
        each.push(own.finish());
        progress(Progress { done: ((i + 1) * window) as u32, total });
    }
    Ok((sum.finish(), each))
}

fn reference(message: String) -> EngineError {
    EngineError::Reference(message)
}

fn candle_error(e: candle_core::Error) -> EngineError {
    reference(e.to_string())
}

/// One position's comparison.
#[derive(Clone, Copy)]
struct Row {
    kl: f64,
    same: bool,
    /// Negative log likelihoods of the token that follows: integer, float.
    nll: Option<(f64, f64)>,
}

struct Compare<'a> {
    tokens: &'a [u32],
    float: &'a [Vec<f32>],
    rows: Vec<Row>,
}

impl ExportSink for Compare<'_> {
    fn export(&mut self, _: u16, _: u32, _: &[&[u8]]) -> Result<()> {
        Ok(())
    }

    fn wants_exports(&self) -> bool {
        false
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, position: u32, logits: &[i32]) -> Result<()> {
        let at = position as usize;
        let float = self.float.get(at).ok_or_else(|| EngineError::Sink(format!("there is no position {at}")))?;
        self.rows.push(compare(logits, float, self.tokens.get(at + 1).copied()));
        Ok(())
    }
}

/// ln Σ exp of the values and the index of the largest.
fn log_sum(values: impl Iterator<Item = f64> + Clone) -> (f64, usize) {
    let (mut best, mut max) = (0, f64::NEG_INFINITY);
    for (i, v) in values.clone().enumerate() {
        if v > max {
            (best, max) = (i, v);
        }
    }
    (max + values.map(|v| (v - max).exp()).sum::<f64>().ln(), best)
}

fn compare(integer: &[i32], float: &[f32], next: Option<u32>) -> Row {
    let unit = f64::from(1i32 << FRACTION).recip();
    let p = integer.iter().map(|l| f64::from(*l) * unit);
    let q = float.iter().map(|l| f64::from(*l));
    let ((zp, best_p), (zq, best_q)) = rayon::join(|| log_sum(p.clone()), || log_sum(q.clone()));
    let kl = p.clone().zip(q.clone()).map(|(p, q)| (q - zq).exp() * ((q - zq) - (p - zp))).sum();
    let nll = next.map(|t| t as usize).filter(|t| *t < integer.len() && *t < float.len());
    let nll = nll.map(|t| (zp - f64::from(integer[t]) * unit, zq - f64::from(float[t])));
    Row { kl, same: best_p == best_q, nll }
}

#[derive(Default)]
struct Sums {
    rows: u32,
    kl: f64,
    same: u32,
    integer: f64,
    float: f64,
    differences: Vec<f64>,
}

impl Sums {
    fn add(&mut self, rows: &[Row]) {
        for r in rows {
            self.rows += 1;
            self.kl += r.kl;
            self.same += u32::from(r.same);
            if let Some((integer, float)) = r.nll {
                self.integer += integer;
                self.float += float;
                self.differences.push(integer - float);
            }
        }
    }

    fn finish(&self) -> Evaluation {
        let n = (self.differences.len() as f64).max(1.0);
        let mean = self.differences.iter().sum::<f64>() / n;
        let variance = self.differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n;
        Evaluation {
            ppl_integer: (self.integer / n).exp(),
            ppl_float: (self.float / n).exp(),
            ppl_delta_percent: mean.exp_m1() * 100.0,
            standard_error: (variance / n).sqrt() * 100.0,
            kl: self.kl / f64::from(self.rows.max(1)),
            top1_agreement: f64::from(self.same) / f64::from(self.rows.max(1)),
            tokens: self.rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_predictions_have_no_distance() {
        let integer = [1 << 14, -(3 << 14), 0, 5 << 13];
        let float = [1.0, -3.0, 0.0, 2.5];
        let row = compare(&integer, &float, Some(3));
        let (a, b) = row.nll.unwrap();
        assert!(row.kl.abs() < 1e-12 && row.same && (a - b).abs() < 1e-12, "{} {a} {b}", row.kl);
        let z = float.iter().map(|x: &f32| f64::from(*x).exp()).sum::<f64>().ln();
        assert!((a - (z - 2.5)).abs() < 1e-12);
        assert!(compare(&integer, &[1.0, -3.0, 3.0, 2.5], None).kl > 0.1);
    }

    #[test]
    fn figures_of_known_differences() {
        let row = |i, f| Row { kl: 0.5, same: i == f, nll: Some((i, f)) };
        let mut sums = Sums::default();
        sums.add(&[row(1.0, 1.0), row(2.0, 1.0)]);
        let e = sums.finish();
        assert!((e.ppl_integer - 1.5f64.exp()).abs() < 1e-12 && (e.ppl_float - 1f64.exp()).abs() < 1e-12);
        assert!((e.ppl_delta_percent - 100.0 * 0.5f64.exp_m1()).abs() < 1e-9);
        assert!((e.standard_error - 100.0 * 0.5 / 2f64.sqrt()).abs() < 1e-9);
        assert_eq!((e.kl, e.top1_agreement, e.tokens), (0.5, 0.5, 2));
    }

    #[test]
    fn only_single_line_breaks_are_unwrapped() {
        assert_eq!(unwrap_lines("a\nb\n\nc\r\nd\n"), "a b\n\nc d ");
    }
}
