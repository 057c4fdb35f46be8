//! Log-probabilities as they are asked for and shown.

use std::fmt::Write;

use clap::Args;
use serde::Serialize;
use sworn_commit::HeadRow;
use sworn_isa::SectionKind;
use sworn_isa::logprob::LogProbs;
use sworn_model::{Model, Tokenizer};

use crate::fault::{Fault, Result};

/// 1 in a log-probability's fixed point, Q14.
const ONE: f64 = 16_384.0;

/// Whether log-probabilities are wanted.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct LogProbFlags {
    /// Show every token's log-probability, and those of the N most likely tokens in its place (0 to 20)
    ///
    /// They are of the model's own distribution, before temperature, penalty and cuts, and under oath like the tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=20))]
    pub(crate) logprobs: Option<u8>,
}

impl LogProbFlags {
    /// How many are wanted, and where a model's head has them.
    pub(crate) fn of_model(self, model: &Model) -> Result<Option<(usize, LogProbs)>> {
        let Some(wanted) = self.logprobs else { return Ok(None) };
        let found = LogProbs::find(&model.program().section(SectionKind::Head).ops);
        let found = found.ok_or_else(|| {
            Fault::failed(format!(
                "model {} does not commit to log-probabilities: leave out --logprobs, or import it again without `sworn model import --no-logprobs`",
                model.description().name
            ))
        })?;
        Ok(Some((usize::from(wanted), found)))
    }
}

/// How many likely tokens a model's runs commit to with their log-probabilities; 0: none.
pub(crate) fn log_probs(model: &Model) -> usize {
    LogProbs::find(&model.program().section(SectionKind::Head).ops).map_or(0, |found| found.n)
}

/// A token and how likely it was.
#[derive(Clone, Debug, Serialize)]
struct Likely {
    token: u32,
    text: String,
    /// Its bytes, which need not be whole characters.
    bytes: Vec<u8>,
    /// Natural logarithm, exactly `logprob_q14` / 2^14.
    logprob: f64,
    logprob_q14: i32,
}

impl Likely {
    fn new(tokenizer: &Tokenizer, token: u32, logprob_q14: i32) -> Self {
        let bytes = tokenizer.token_bytes(token).to_vec();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Likely { token, text, bytes, logprob: f64::from(logprob_q14) / ONE, logprob_q14 }
    }

    fn show(&self) -> String {
        format!("{:?} {:.4}", self.text, self.logprob)
    }
}

/// One output token with the likeliest in its place.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    chosen: Likely,
    top: Vec<Likely>,
}

/// Every output token with the `n` likeliest in its place.
pub(crate) fn shown(tokenizer: &Tokenizer, tokens: &[u32], rows: &[HeadRow], n: usize) -> Vec<Shown> {
    let rows = tokens.iter().zip(rows).map(|(token, row)| Shown {
        chosen: Likely::new(tokenizer, *token, row.chosen()),
        top: row.likeliest().take(n).map(|(token, p)| Likely::new(tokenizer, token, p)).collect(),
    });
    rows.collect()
}

/// For people: a line a token.
pub(crate) fn text(shown: &[Shown]) -> String {
    let mut text = String::from("log-probabilities (nats)");
    for s in shown {
        let top: Vec<String> = s.top.iter().map(Likely::show).collect();
        let _ = write!(text, "\n  {}", s.chosen.show());
        if !top.is_empty() {
            let _ = write!(text, "  of  {}", top.join(", "));
        }
    }
    text
}
