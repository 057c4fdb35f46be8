//! The result: what `--json` prints and the page is made from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stat::Stat;

/// Figures by engine: `ours` executes, `ours_oath` also commits to the trace, `llamacpp` and `candle` are the peers.
pub(crate) type ByEngine<T> = BTreeMap<String, T>;
/// Figures by number of threads.
pub(crate) type ByThreads = BTreeMap<usize, Stat>;

/// All figures of one run. Rates are tokens per second; a ratio of ours and theirs is greater than one where ours is faster.
/// A figure that could not be measured is null and a note says why.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) model_id: String,
    pub(crate) backend: String,
    pub(crate) adapter: String,
    pub(crate) quick: bool,
    pub(crate) threads: usize,
    /// Repetitions of each comparison.
    pub(crate) runs: usize,
    /// Tokens of the prompt and tokens decoded in the speed comparisons.
    pub(crate) prompt_tokens: u32,
    pub(crate) decoded_tokens: u32,
    pub(crate) host: Host,
    pub(crate) versions: BTreeMap<String, String>,

    /// Ours, without a trace, over llama.cpp's: all threads.
    pub(crate) decode_ratio_llamacpp: Option<Stat>,
    pub(crate) prefill_ratio_llamacpp: Option<Stat>,
    /// The same with the trace that an oath binds.
    pub(crate) decode_ratio_llamacpp_oath: Option<Stat>,
    pub(crate) prefill_ratio_llamacpp_oath: Option<Stat>,
    /// Time with the trace over time without it, minus one.
    pub(crate) oath_overhead_decode: Option<Stat>,
    pub(crate) oath_overhead_prefill: Option<Stat>,
    /// Time of an audit over the time of the generation that it checks.
    pub(crate) audit_over_generate: Option<Stat>,
    pub(crate) audit: Option<AuditSizes>,
    /// How much greater the integer model's perplexity is than its float reading's, in percent: each window of the text.
    pub(crate) ppl_delta_percent: Option<Stat>,
    pub(crate) perplexity: Option<Perplexity>,

    pub(crate) prefill_tok_s: ByEngine<ByThreads>,
    pub(crate) decode_tok_s: ByEngine<ByThreads>,
    /// From the prompt's tokens to the first token of the answer, the model loaded, all threads.
    pub(crate) time_to_first_token_ms: ByEngine<Stat>,
    /// From the start of the process to a model that is ready.
    pub(crate) load_ms: Option<f64>,
    /// Greatest resident memory of a process that loads the model, takes the prompt and decodes; files it maps count.
    pub(crate) peak_memory_bytes: ByEngine<u64>,
    pub(crate) bandwidth: Option<Bandwidth>,
    pub(crate) context: Vec<Context>,
    pub(crate) sizes: Vec<Size>,
    pub(crate) concurrency: Option<Concurrency>,
    /// Whether the trace root of the same answer is that of the `cpu` backend; only where another backend was measured.
    pub(crate) trace_root_equals_cpu: Option<bool>,
    /// What was left out and why.
    pub(crate) notes: Vec<String>,
    pub(crate) seconds: u64,
}

/// The machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    pub(crate) processors: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) os: String,
    /// Day of the run, UTC.
    pub(crate) date: String,
    /// Share of the processors' time that other programs took before the run; above a few percent the figures are noisy.
    pub(crate) busy_before: f64,
}

/// Sizes behind `audit_over_generate`, and its two times.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AuditSizes {
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) generate_s: Option<Stat>,
    pub(crate) audit_s: Option<Stat>,
}

/// All windows of the text together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Perplexity {
    pub(crate) integer: f64,
    pub(crate) float: f64,
    pub(crate) delta_percent: f64,
    pub(crate) standard_error: f64,
    pub(crate) top1_agreement: f64,
    pub(crate) window: u32,
    pub(crate) tokens: u32,
}

/// What the memory allows: a decoded token reads every weight once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bandwidth {
    /// Streaming reads over a buffer larger than the caches, by threads.
    pub(crate) bytes_per_s: ByThreads,
    pub(crate) buffer_bytes: u64,
    /// Weights that a decoded token reads.
    pub(crate) bytes_per_token: ByEngine<u64>,
    /// Tokens per second at that bandwidth, all threads.
    pub(crate) limit_tok_s: ByEngine<f64>,
    /// Share of it that was reached.
    pub(crate) share: ByEngine<f64>,
}

/// Speed at a context's end: the positions before it are filled, then a part of a prompt is taken and tokens are decoded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Context {
    pub(crate) positions: u32,
    pub(crate) prefill_tok_s: ByEngine<f64>,
    pub(crate) decode_tok_s: ByEngine<f64>,
}

/// Speed of a model of random weights with the matrices of a real one, or of as many of its layers as fit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Size {
    pub(crate) shape: String,
    pub(crate) layers: u16,
    pub(crate) layers_run: u16,
    /// Weights of the whole shape that a token is multiplied with, and those of the part that ran.
    pub(crate) weights: u64,
    pub(crate) weights_run: u64,
    /// Measured on the part.
    pub(crate) prefill_tok_s: Option<Stat>,
    pub(crate) decode_tok_s: Option<Stat>,
    /// The part's figures times `weights_run / weights`.
    pub(crate) prefill_tok_s_whole: Option<Stat>,
    pub(crate) decode_tok_s_whole: Option<Stat>,
}

/// Several answers at a time, every one's next token executed together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Concurrency {
    pub(crate) jobs: u32,
    /// Tokens decoded per second by all jobs together.
    pub(crate) decode_tok_s: Option<Stat>,
    /// The same over what one job alone decodes.
    pub(crate) over_one_job: Option<Stat>,
}
