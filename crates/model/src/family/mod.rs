//! Families of models: which matrices and tables there are, and the forward pass as a program of the instruction set.
//!
//! All families are one block with parts that a model has or has not: biases, head norms, post norms, caps, windows. What
//! the instruction set computes without an operator of its own is folded into constants at import: √n of the norms and the
//! scale of the scores into weights' scales and gains, the embedding's factor into its rows' scales, and the order in which
//! q and k rotate into the order of their rows.

mod builder;
mod head;
mod program;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use builder::reducible;
pub(crate) use head::can_log_probs;
use serde::{Deserialize, Serialize};
use sworn_isa::{MAX_POSITIONS, RowFormat};

use crate::{
    error::{ModelError, Result},
    hyper::{Hyper, RopeLayout},
    source::{ROPE_DIVISORS, Source},
};

/// What a model computes, and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The source's hyper-parameters.
    #[serde(flatten)]
    pub hyper: Hyper,
    /// Most positions of a job; at most 8,192.
    pub positions: u32,
    /// Whether runs may sample; otherwise they take the largest logit.
    pub sampling: bool,
    /// Whether runs commit to log-probabilities.
    #[serde(default)]
    pub log_probs: bool,
}

/// Widths of the quantised activations, one per place where weights of every block are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationBits {
    /// Input of q, k and v.
    pub attention: u8,
    /// Input of gate and up.
    pub ffn: u8,
    /// Input of down.
    pub down: u8,
    /// Input of the head.
    pub head: u8,
}

impl Default for ActivationBits {
    fn default() -> Self {
        ActivationBits { attention: 16, ffn: 16, down: 16, head: 16 }
    }
}

/// What a matrix is in its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Role {
    /// Rows of tokens; the head's matrix as well where it is tied.
    Embedding,
    /// Projection to queries.
    Query,
    /// Projection to keys.
    Key,
    /// Projection to values.
    Value,
    /// Projection of the attention's output.
    Output,
    /// Gate of the feed-forward part.
    Gate,
    /// What the gate lets through.
    Up,
    /// Back to the residual stream.
    Down,
    /// Rows of logits.
    Head,
}

impl Role {
    /// The matrices of a block, in the order of their numbers.
    pub const BLOCK: [Role; 7] = [Role::Query, Role::Key, Role::Value, Role::Output, Role::Gate, Role::Up, Role::Down];

    /// Its tensor's name, inside of its block where it has one.
    pub const fn tensor(self) -> &'static str {
        match self {
            Role::Embedding => "token_embd",
            Role::Query => "attn_q",
            Role::Key => "attn_k",
            Role::Value => "attn_v",
            Role::Output => "attn_output",
            Role::Gate => "ffn_gate",
            Role::Up => "ffn_up",
            Role::Down => "ffn_down",
            Role::Head => "output",
        }
    }
}

/// The row format of each role's matrices: the same in every block, since all blocks share their program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Formats([RowFormat; 9]);

impl Formats {
    /// The format of a role's matrices.
    pub const fn of(&self, role: Role) -> RowFormat {
        self.0[role as usize]
    }

    /// Sets the format of a role's matrices.
    pub const fn set(&mut self, role: Role, format: RowFormat) {
        self.0[role as usize] = format;
    }
}

/// A matrix of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSpec {
    /// Its tensor.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Rows.
    pub rows: u32,
    /// Elements per row.
    pub cols: u32,
}

/// A table of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TableSpec {
    Exponential,
    Cosine,
    Sine,
    Noise,
    Logarithm,
    /// Gains of a norm over `n` elements, all times `factor`. Without a rotation's order: `rotated` gains are permuted as q
    /// and k are.
    Gain {
        tensor: String,
        n: u32,
        factor: f64,
        rotated: bool,
    },
    /// A bias of `n` elements.
    Bias {
        tensor: String,
        n: u32,
        rotated: bool,
    },
    /// How far back a block's queries attend.
    Window {
        name: String,
        width: u32,
    },
}

/// Tables of every block, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockTable {
    AttentionNorm,
    FfnNorm,
    Bias(Role),
    QueryNorm,
    KeyNorm,
    PostAttentionNorm,
    PostFfnNorm,
    Window,
}

impl Config {
    /// What an import computes: the model's positions capped at `max_positions` and at the instruction set's, and sampling
    /// and log-probabilities, if they are asked for and its vocabulary allows them.
    ///
    /// # Errors
    /// A size or number outside of the instruction set's ranges.
    pub fn new(hyper: Hyper, max_positions: Option<u32>, sampling: bool, log_probs: bool) -> Result<Self> {
        let positions = hyper.context.min(max_positions.unwrap_or(MAX_POSITIONS)).min(MAX_POSITIONS);
        let sampling = sampling && head::can_sample(hyper.vocab);
        let log_probs = log_probs && head::can_log_probs(hyper.vocab);
        let config = Config { hyper, positions, sampling, log_probs };
        config.check()?;
        Ok(config)
    }

    /// Checks everything against the ranges of the instruction set.
    ///
    /// # Errors
    /// Names what is out of range.
    pub fn check(&self) -> Result<()> {
        let c = &self.hyper;
        let bad = |what: String| {
            Err(ModelError::unsupported(what, "the instruction set's ranges are in docs/instruction-set.md"))
        };
        let wide = [("hidden width", c.hidden), ("feed-forward width", c.ffn), ("vocabulary", c.vocab)];
        if let Some((name, n)) = wide.into_iter().find(|(_, n)| *n == 0 || *n > 1 << 20) {
            return bad(format!("{name} {n}"));
        }
        if c.layers == 0 || c.layers > 4096 {
            return bad(format!("{} blocks", c.layers));
        }
        if c.kv_heads == 0 || c.heads == 0 || !c.heads.is_multiple_of(c.kv_heads) {
            return bad(format!("{} query heads over {} key/value heads", c.heads, c.kv_heads));
        }
        if c.head_dim == 0 || !c.head_dim.is_multiple_of(2) || c.head_dim > 256 || c.heads > 1 << 12 {
            return bad(format!("{} heads of width {} (even widths up to 256 are supported)", c.heads, c.head_dim));
        }
        let reduced = [c.hidden, c.heads * c.head_dim, c.ffn];
        if let Some(n) = reduced.into_iter().find(|n| !reducible(*n)) {
            return bad(format!("a width of {n}, which does not factor into groups of at most {}", builder::GROUP));
        }
        if self.positions == 0 || self.positions > MAX_POSITIONS {
            return bad(format!("a context of {} positions", self.positions));
        }
        if !(c.rope_base.is_finite() && c.rope_base >= 1.0) {
            return bad(format!("rotary base {}", c.rope_base));
        }
        if !(c.epsilon.is_finite() && c.epsilon > 0.0 && c.epsilon < 1.0) {
            return bad(format!("norm ε {}", c.epsilon));
        }
        let scale = |x: f64| x.is_finite() && (1e-6..=1e6).contains(&x);
        if !scale(c.query_scalar) || !scale(c.embedding_scale) || !scale(c.rope_scaling.magnitude()) {
            return bad("a scale of queries, embedding or rotation beyond all models".into());
        }
        // A cap is at most 2^30 in its own units, and its reciprocal a scale with a shift of 1 to 63.
        let cap = |c: Option<f64>| c.is_none_or(|c| (0.01..=10_000.0).contains(&c));
        if !cap(c.score_cap) || !cap(c.logit_cap) {
            return bad(format!("caps of {:?} and {:?}", c.score_cap, c.logit_cap));
        }
        if self.sampling && !head::can_sample(c.vocab) {
            return bad(format!("sampling from {} tokens", c.vocab));
        }
        if self.log_probs && !head::can_log_probs(c.vocab) {
            return bad(format!("log-probabilities of {} tokens", c.vocab));
        }
        Ok(())
    }

    fn query_width(&self) -> u32 {
        self.hyper.heads * self.hyper.head_dim
    }

    fn key_width(&self) -> u32 {
        self.hyper.kv_heads * self.hyper.head_dim
    }

    /// Rows and columns of a role's matrices.
    fn sizes(&self, role: Role) -> (u32, u32) {
        let c = &self.hyper;
        match role {
            Role::Embedding | Role::Head => (c.vocab, c.hidden),
            Role::Query => (self.query_width(), c.hidden),
            Role::Key | Role::Value => (self.key_width(), c.hidden),
            Role::Output => (c.hidden, self.query_width()),
            Role::Gate | Role::Up => (c.ffn, c.hidden),
            Role::Down => (c.hidden, c.ffn),
        }
    }

    /// Every matrix, in the order of their numbers.
    pub fn matrices(&self) -> Vec<MatrixSpec> {
        let matrix = |name: String, role: Role| {
            let (rows, cols) = self.sizes(role);
            MatrixSpec { name, role, rows, cols }
        };
        let mut all = vec![matrix("token_embd.weight".into(), Role::Embedding)];
        for l in 0..self.hyper.layers {
            all.extend(Role::BLOCK.map(|role| matrix(format!("blk.{l}.{}.weight", role.tensor()), role)));
        }
        if !self.hyper.tied {
            all.push(matrix("output.weight".into(), Role::Head));
        }
        all
    }

    /// Whether any block's attention ends before the longest job's first position.
    fn has_windows(&self) -> bool {
        self.hyper
            .sliding_window
            .is_some_and(|w| w.size < self.positions && (0..self.hyper.layers).any(|l| w.of_block(l).is_some()))
    }

    fn has_bias(&self, role: Role) -> bool {
        let c = &self.hyper;
        match role {
            Role::Query | Role::Key | Role::Value => c.qkv_bias,
            Role::Output => c.output_bias,
            Role::Gate | Role::Up | Role::Down => c.ffn_bias,
            Role::Embedding | Role::Head => false,
        }
    }

    fn block_tables(&self) -> Vec<BlockTable> {
        use BlockTable as T;
        let mut all = vec![T::AttentionNorm, T::FfnNorm];
        all.extend(Role::BLOCK.into_iter().filter(|r| self.has_bias(*r)).map(T::Bias));
        if self.hyper.head_norms {
            all.extend([T::QueryNorm, T::KeyNorm]);
        }
        if self.hyper.post_norms {
            all.extend([T::PostAttentionNorm, T::PostFfnNorm]);
        }
        if self.has_windows() {
            all.push(T::Window);
        }
        all
    }

    fn shared_tables(&self) -> Vec<TableSpec> {
        let mut all = vec![TableSpec::Exponential, TableSpec::Cosine, TableSpec::Sine];
        if self.sampling {
            all.push(TableSpec::Noise);
        }
        // The last of them: `program.rs` counts on it.
        if self.log_probs {
            all.push(TableSpec::Logarithm);
        }
        all
    }

    /// Every table, in the order of their numbers.
    pub(crate) fn tables(&self) -> Vec<TableSpec> {
        let c = &self.hyper;
        let mut all = self.shared_tables();
        let block = self.block_tables();
        for l in 0..c.layers {
            let gain = |name: &str, n: u32, factor: f64, rotated: bool| TableSpec::Gain {
                tensor: format!("blk.{l}.{name}.weight"),
                n,
                factor,
                rotated,
            };
            all.extend(block.iter().map(|t| match t {
                BlockTable::AttentionNorm => gain("attn_norm", c.hidden, 1.0, false),
                BlockTable::FfnNorm => gain("ffn_norm", c.hidden, 1.0, false),
                BlockTable::QueryNorm => {
                    let score = crate::quantise::score_factor(c.query_scalar, c.rope_scaling.magnitude());
                    gain("attn_q_norm", c.head_dim, f64::from(c.head_dim).sqrt() * score, true)
                }
                BlockTable::KeyNorm => gain("attn_k_norm", c.head_dim, f64::from(c.head_dim).sqrt(), true),
                BlockTable::PostAttentionNorm => {
                    gain("post_attention_norm", c.hidden, f64::from(c.hidden).sqrt(), false)
                }
                BlockTable::PostFfnNorm => gain("post_ffw_norm", c.hidden, f64::from(c.hidden).sqrt(), false),
                BlockTable::Bias(role) => TableSpec::Bias {
                    tensor: format!("blk.{l}.{}.bias", role.tensor()),
                    n: self.sizes(*role).0,
                    rotated: matches!(role, Role::Query | Role::Key),
                },
                BlockTable::Window => {
                    let width = c.sliding_window.and_then(|w| w.of_block(l)).unwrap_or(self.positions);
                    TableSpec::Window { name: format!("blk.{l}.window"), width: width.min(self.positions) }
                }
            }));
        }
        all.push(TableSpec::Gain { tensor: "output_norm.weight".into(), n: c.hidden, factor: 1.0, rotated: false });
        all
    }

    /// Every tensor that is needed has its shape, and none is left over: a leftover would mean that the model computes
    /// something else.
    ///
    /// # Errors
    /// Names the first tensor that is missing, of another shape, or not known.
    pub(crate) fn check_tensors(&self, source: &dyn Source) -> Result<()> {
        let matrices = self.matrices().into_iter().map(|m| (m.name, m.rows, m.cols));
        let vectors = self.tables().into_iter().filter_map(|t| match t {
            TableSpec::Gain { tensor, n, .. } | TableSpec::Bias { tensor, n, .. } => Some((tensor, 1, n)),
            _ => None,
        });
        let mut wanted = BTreeSet::from([ROPE_DIVISORS.to_owned()]);
        for (name, rows, cols) in matrices.chain(vectors) {
            let (r, c) = source.shape(&name).ok_or_else(|| ModelError::Gguf(format!("tensor {name} is missing")))?;
            if (r, c) != (rows as usize, cols as usize) {
                return Err(ModelError::Gguf(format!(
                    "tensor {name} has {r} rows of {c}, the metadata implies {rows} of {cols}"
                )));
            }
            wanted.insert(name);
        }
        match source.names().into_iter().find(|n| !wanted.contains(*n)) {
            None => Ok(()),
            Some(n) => Err(ModelError::unsupported(
                format!("tensor {n} (a plain {} model has none of this name)", self.hyper.architecture.name()),
                "experts and adapters are not supported; merge or remove them when converting",
            )),
        }
    }

    /// Scale pairs per row of a matrix: the embedding has its own, and the head's where the matrix is shared.
    pub fn columns(&self, role: Role) -> u32 {
        if role == Role::Embedding { 1 + u32::from(self.hyper.tied) } else { 1 }
    }

    /// The source's row that becomes row `row` of a q or k (matrix, bias or head norm), so that the elements that rotate
    /// together lie side by side.
    pub fn rotated_row(&self, row: u32) -> u32 {
        let width = self.hyper.head_dim;
        match self.hyper.rope_layout {
            RopeLayout::Interleaved => row,
            RopeLayout::Halves => {
                let (head, i) = (row / width, row % width);
                head * width + i / 2 + (i % 2) * (width / 2)
            }
        }
    }
}
