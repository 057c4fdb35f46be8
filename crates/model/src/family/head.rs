//! From logits to a token: penalty, temperature, the cuts by rank, mass and distance, and a draw with noise; and to log-probabilities.

use sworn_isa::{
    Dtype, Opcode, Operand, logprob,
    sampling::{BIN_SHIFT, BINS, FINE_SHIFT, PENALTY_WINDOW},
};

use super::builder::{Builder, GROUP, Shape, group, op, reducible, words};

/// Whether a vocabulary of `n` tokens can be sampled from: it falls into groups that the histograms can count.
pub(super) fn can_sample(n: u32) -> bool {
    n <= 1 << 18 && reducible(n) && n / group(n, GROUP) <= GROUP
}

/// Whether log-probabilities can be had of a vocabulary of `n` tokens: it falls into groups whose masses can be added.
pub(crate) fn can_log_probs(n: u32) -> bool {
    reducible(n) && n / group(n, logprob::GROUP) <= logprob::GROUPS
}

/// The largest logit's token.
pub(super) fn select(b: &mut Builder, logits: u32, vocab: u32) -> u32 {
    b.add(Opcode::Select, words(1), [vocab as i32], &[op(logits), Operand::token(1)])
}

/// The token that a run's parameters and seed give.
pub(super) fn sample(b: &mut Builder, logits: u32, vocab: u32, exp: Operand, noise: Operand) -> u32 {
    let (coarse, fine) = (BIN_SHIFT as i32, FINE_SHIFT as i32);
    let z = b.add(Opcode::Temper, words(vocab), [PENALTY_WINDOW as i32], &[op(logits), Operand::token(0)]);
    let max = b.max(op(z), vocab);
    let rank = cut(b, z, max, vocab, [0, coarse, 0], None);
    let finer = cut(b, z, max, vocab, [0, fine, coarse], Some(op(rank)));
    let mass = cut(b, z, max, vocab, [1, coarse, 0], Some(exp));
    let threshold = b.add(Opcode::Threshold, words(1), [coarse, fine], &[op(max), op(rank), op(finer), op(mass)]);
    b.add(Opcode::Sample, words(1), [vocab as i32], &[op(z), Operand::token(1), op(threshold), noise])
}

/// Histogram and cut. `[kind, shift, parent's shift]` are their parameters; `third` is the exponential's table (by mass) or
/// the cut that this one refines.
fn cut(b: &mut Builder, z: u32, max: u32, vocab: u32, p: [i32; 3], third: Option<Operand>) -> u32 {
    let [kind, shift, parent_shift] = p;
    let g = group(vocab, GROUP);
    let groups = vocab / g;
    let bins = Shape { outer: BINS as u32, div: 0, inner: groups, dtype: Dtype::I32 };
    let read: Vec<Operand> = [op(z), op(max)].into_iter().chain(third).collect();
    let counts = b.add(Opcode::Histogram, bins, [g as i32, kind, shift, parent_shift], &read);
    let totals = b.add(Opcode::Sum, words(BINS as u32), [groups as i32], &[op(counts)]);
    let parent = third.filter(|_| kind == 0);
    let read: Vec<Operand> = std::iter::once(op(totals)).chain(parent).collect();
    b.add(Opcode::Cut, words(2), [kind], &read)
}

/// The likeliest tokens, and their and the selected token's log-probabilities, exported: of the logits as they are, before penalty, temperature and cuts.
pub(super) fn log_probs(b: &mut Builder, logits: u32, token: u32, vocab: u32, exp: Operand, ln: Operand) {
    let max = b.max(op(logits), vocab);
    let g = group(vocab, logprob::GROUP);
    let masses = b.add(Opcode::Mass, words(vocab / g), [g as i32], &[op(logits), op(max), exp]);
    let sum = b.add(Opcode::LogSum, words(1), [(vocab / g) as i32], &[op(max), op(masses), ln]);
    let n = vocab.min(logprob::MOST);
    let top = b.add(Opcode::Top, words(n), [vocab as i32], &[op(logits)]);
    let read = [op(logits), op(sum), op(top), op(token)];
    let probabilities = b.add(Opcode::LogProb, words(n + 1), [vocab as i32], &read);
    b.export(top);
    b.export(probabilities);
}
