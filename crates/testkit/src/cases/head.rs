//! Cases of the operators that select a token.

use std::sync::LazyLock;

use rand::Rng;
use rand::seq::IndexedRandom;
use sworn_commit::RunParams;
use sworn_isa::fixed::CL;
use sworn_isa::logprob::{self, GROUP, GROUPS, LN_ENTRIES, MASSLESS};
use sworn_isa::sampling::{self, BINS, NOISE_ENTRIES, PENALTY_WINDOW};
use sworn_isa::{Descriptor, Dtype, Opcode, Operand};
use sworn_model::quantise::{ln_table, noise_table};

use super::draw::{Gen, Q14, SplitMix, WORD};
use super::{Case, OperandData, exp_table};

static NOISE: LazyLock<Vec<i64>> = LazyLock::new(noise_table);

/// Most that the bins of all groups of a `HISTOGRAM` add up to: tokens, and their mass.
const TOKENS: i64 = 1 << 18;
const MASS: i64 = 1 << 30;

impl Gen<'_> {
    /// Shape, parameters, operands and their values of an operator of the head at position `t`; sets those parameters of the run that make the case
    /// worth a look.
    pub(super) fn head(&mut self, d: &mut Descriptor, t: u32, run: &mut RunParams) -> (Vec<Operand>, Vec<OperandData>) {
        use OperandData::{Tensor, Token, Tokens};
        let op = |k: u32| Operand::op(k, Dtype::I32);
        match d.opcode {
            Opcode::Select => {
                let vocabulary = self.size(300);
                d.params[0] = vocabulary as i32;
                (vec![op(0), Operand::token(1)], vec![Tensor(self.vector(vocabulary as usize, Q14)), Token(0)])
            }
            Opcode::Temper => {
                let vocabulary = self.size(200);
                (d.outer, d.params[0]) = (vocabulary, PENALTY_WINDOW as i32);
                // Few different tokens or many, some of them none of the vocabulary's.
                let different = self.size(2 * vocabulary);
                let tokens = (0..=t).map(|_| self.rng.random_range(0..different)).collect();
                let logits = self.vector(vocabulary as usize, Q14);
                (vec![op(0), Operand::token(0)], vec![Tensor(logits), Tokens(tokens)])
            }
            Opcode::Max => {
                let (groups, g) = (self.size(4), self.long(2048));
                (d.outer, d.params[0]) = (groups, g as i32);
                (vec![op(0)], vec![Tensor(self.vector((groups * g) as usize, WORD))])
            }
            Opcode::Sum => {
                let (groups, g) = (self.size(4), self.long(2048));
                (d.outer, d.params[0]) = (groups, g as i32);
                let top = MASS / i64::from(g);
                let least = if self.rng.random_range(0..4) == 0 { -top } else { 0 };
                (vec![op(0)], vec![Tensor(self.vector((groups * g) as usize, (least, top)))])
            }
            Opcode::Histogram => self.histogram(d),
            Opcode::Cut => self.cut(d, run),
            Opcode::Threshold => {
                let shift = self.rng.random_range(8..=20);
                d.params = [shift, shift - 8, 0, 0];
                let mut data = vec![Tensor(vec![self.value(Q14)])];
                data.extend((0..3).map(|_| Tensor(self.place())));
                ((0..4).map(op).collect(), data)
            }
            Opcode::Sample => {
                let vocabulary = self.size(300);
                d.params[0] = vocabulary as i32;
                let z = if self.rng.random_range(0..4) == 0 {
                    self.vector(vocabulary as usize, Q14)
                } else {
                    // Close enough together that the noise decides.
                    let around = self.rng.random_range(-(1 << 20)..1 << 20);
                    let width = 1 << self.rng.random_range(0..20);
                    (0..vocabulary).map(|_| around + self.rng.random_range(-width..=width)).collect()
                };
                let max = z.iter().copied().max().unwrap_or(0);
                let least = match self.rng.random_range(0..4) {
                    0 => Q14.0,
                    1 => max,
                    _ => (max - self.rng.random_range(0..1 << 19)).max(Q14.0),
                };
                let table = if self.rng.random_range(0..16) == 0 {
                    self.vector(NOISE_ENTRIES, (1 - (1 << 19), (1 << 19) - 1))
                } else {
                    NOISE.clone()
                };
                (
                    vec![op(0), Operand::token(1), op(1), Operand::table(0, 0, Dtype::I32)],
                    vec![Tensor(z), Token(0), Tensor(vec![least]), Tensor(table)],
                )
            }
            Opcode::Top => {
                let vocabulary = self.size(300);
                let n = self.size(vocabulary.min(logprob::MOST));
                (d.inner, d.params[0]) = (n, vocabulary as i32);
                let logits = match self.rng.random_range(0..3) {
                    // Few different ones.
                    0 => (0..vocabulary).map(|_| self.rng.random_range(-3..3)).collect(),
                    _ => self.vector(vocabulary as usize, Q14),
                };
                (vec![op(0)], vec![Tensor(logits)])
            }
            Opcode::Mass => self.masses(d),
            Opcode::LogSum => {
                let n = match self.rng.random_range(0..64) {
                    0 => GROUPS,
                    1 => 513,
                    _ => self.size(12),
                };
                d.params[0] = n as i32;
                // The largest logit's own mass is among them.
                let mut groups = self.vector(n as usize, (0, MASS));
                groups[0] = groups[0].max(1 << logprob::MASS_FRACTION);
                let table = match self.rng.random_range(0..16) {
                    0 => self.vector(LN_ENTRIES, (0, 65535)),
                    _ => ln_table(),
                };
                let data = vec![Tensor(vec![self.value(Q14)]), Tensor(groups), Tensor(table)];
                (vec![op(0), op(1), Operand::table(0, 0, Dtype::U16)], data)
            }
            Opcode::LogProb => {
                let vocabulary = self.size(300);
                let n = self.size(vocabulary.min(logprob::MOST));
                (d.inner, d.params[0]) = (n + 1, vocabulary as i32);
                let logits = self.vector(vocabulary as usize, Q14);
                let max = logits.iter().copied().max().unwrap_or(0);
                let sum = max + self.edge((0, 1 << 18));
                let tokens = (0..n).map(|_| i64::from(self.rng.random_range(0..vocabulary))).collect();
                let token = i64::from(self.rng.random_range(0..vocabulary));
                let data = vec![Tensor(logits), Tensor(vec![sum]), Tensor(tokens), Tensor(vec![token])];
                ((0..4).map(op).collect(), data)
            }
            opcode => panic!("{opcode} does not belong in the head"),
        }
    }

    fn masses(&mut self, d: &mut Descriptor) -> (Vec<Operand>, Vec<OperandData>) {
        use OperandData::Tensor;
        let (groups, g) = match self.rng.random_range(0..64) {
            0 => (2, GROUP),
            1..8 => (1, self.rng.random_range(25..200)),
            _ => (self.size(4), self.size(24)),
        };
        (d.outer, d.params[0]) = (groups, g as i32);
        let max = self.value(Q14);
        let massless = i64::from(MASSLESS);
        let z = (0..groups * g).map(|_| {
            let distance = match self.rng.random_range(0..8) {
                0 => return self.value((Q14.0, max)),
                1 => 0,
                2 => massless + self.rng.random_range(-2..3),
                // Around the octaves.
                3 => (self.rng.random_range(0..25) * 11_357 + self.rng.random_range(-2..3)).max(0),
                _ => self.rng.random_range(0..=massless),
            };
            (max - distance).max(-i64::from(CL))
        });
        let data = vec![Tensor(z.collect()), Tensor(vec![max]), Tensor(exp_table())];
        (vec![Operand::op(0, Dtype::I32), Operand::op(1, Dtype::I32), Operand::table(0, 0, Dtype::U16)], data)
    }

    /// A cut: its bin and the total before it.
    fn place(&mut self) -> Vec<i64> {
        vec![self.edge((0, BINS as i64)), self.edge((0, TOKENS))]
    }

    fn histogram(&mut self, d: &mut Descriptor) -> (Vec<Operand>, Vec<OperandData>) {
        use OperandData::Tensor;
        let op = |k: u32| Operand::op(k, Dtype::I32);
        let (groups, g) = match self.rng.random_range(0..128) {
            0 => (1, 2048),
            1..16 => (1, self.rng.random_range(25..100)),
            _ => (self.size(3), self.size(24)),
        };
        (d.outer, d.inner) = (BINS as u32, groups);
        let masses: bool = self.rng.random();
        let shift = *[0, 2, 10, 10, 20, self.rng.random_range(0..=20)].choose(self.rng).unwrap_or(&10);
        let parent = !masses && self.rng.random();
        let outer_shift = if parent { shift + 8 } else { 0 };
        d.params = [g as i32, i32::from(masses), shift, outer_shift];
        let max = self.value(Q14);
        let place = self.place();
        let z = (0..groups * g).map(|_| {
            let distance = match self.rng.random_range(0..4) {
                0 => return self.value((Q14.0, max)),
                1 if parent => (place[0] << outer_shift) + self.rng.random_range(-2..(1 << outer_shift) + 2),
                1 => self.edge((0, 1 << 18)),
                _ => self.rng.random_range(0..=300 << shift),
            };
            (max - distance.max(0)).max(Q14.0)
        });
        let z = z.collect();
        let mut data = vec![Tensor(z), Tensor(vec![max])];
        let mut kinds = vec![op(0), op(1)];
        if masses {
            data.push(Tensor(exp_table()));
            kinds.push(Operand::table(0, 0, Dtype::U16));
        } else if parent {
            data.push(Tensor(place));
            kinds.push(op(2));
        }
        (kinds, data)
    }

    fn cut(&mut self, d: &mut Descriptor, run: &mut RunParams) -> (Vec<Operand>, Vec<OperandData>) {
        use OperandData::Tensor;
        let op = |k: u32| Operand::op(k, Dtype::I32);
        d.inner = 2;
        let mass = self.rng.random();
        d.params[0] = i32::from(mass);
        let total = if mass { MASS } else { TOKENS };
        let mut bins = match self.rng.random_range(0..4) {
            0 => self.vector(BINS, (0, total / BINS as i64)),
            // Most of it in the first bins, as probabilities are.
            1 => (0..BINS).map(|b| self.rng.random_range(0..=(total >> 3) >> (b / 8).min(40))).collect(),
            _ => vec![0; BINS],
        };
        let mut left = total;
        for b in &mut bins {
            *b = (*b).min(left);
            left -= *b;
        }
        for _ in 0..self.rng.random_range(0..6) {
            let b = self.rng.random_range(0..BINS);
            let more = self.value((0, left));
            bins[b] += more;
            left -= more;
        }
        let parent = (self.rng.random_range(0..if mass { 8 } else { 2 }) == 0).then(|| self.place());
        if !mass && self.rng.random() {
            // A rank at the end of a bin, or next to it.
            let until = self.rng.random_range(0..=BINS);
            let before = parent.as_ref().map_or(0, |p| p[1]);
            let rank = before + bins[..until].iter().sum::<i64>() + self.rng.random_range(-1..=1);
            run.sampling.top_k = rank.clamp(0, (1 << 20) - 1) as u32;
        }
        match parent {
            Some(p) => (vec![op(0), op(1)], vec![Tensor(bins), Tensor(p)]),
            None => (vec![op(0)], vec![Tensor(bins)]),
        }
    }
}

/// What a `TOP` should hold: all tokens sorted. Held against each is any token.
pub(super) fn rank(case: &mut Case, rng: &mut SplitMix) {
    let OperandData::Tensor(logits) = &case.operands[0] else { return };
    let mut order: Vec<i64> = (0..logits.len() as i64).collect();
    order.sort_by_key(|t| (std::cmp::Reverse(logits[*t as usize]), *t));
    order.truncate(case.descriptor.inner as usize);
    case.hint = rng.random_range(0..logits.len() as u32);
    case.expected = order;
}

/// What a `SELECT` or `SAMPLE` should select: an independent look at every token.
fn best(case: &Case) -> u32 {
    let sample = case.descriptor.opcode == Opcode::Sample;
    let [OperandData::Tensor(z), _, least, table] = &case.operands[..] else { return 0 };
    let (least, table) = match (sample, least, table) {
        (true, OperandData::Tensor(least), OperandData::Tensor(table)) => (least[0], &table[..]),
        _ => (i64::MIN, &[][..]),
    };
    let table: Vec<i32> = table.iter().map(|t| *t as i32).collect();
    let noise = |j: usize| {
        let silent = !sample || case.run.sampling.inverse_temperature == 0;
        if silent { 0 } else { i64::from(sampling::noise(case.run.noise(case.t, j as u32), &table)) }
    };
    let mut best = (i64::MIN, 0);
    for (j, z) in z.iter().enumerate().filter(|(_, z)| **z >= least) {
        let sum = z + noise(j);
        if sum > best.0 {
            best = (sum, j as u32);
        }
    }
    best.1
}

/// Half of the selections are honest; the rest claim another token than follows, or a token that is not the best, which the best one or any
/// other is held against.
pub(super) fn select(case: &mut Case, rng: &mut SplitMix) {
    let OperandData::Tensor(logits) = &case.operands[0] else { return };
    let vocabulary = logits.len() as u32;
    let best = best(case);
    let any = rng.random_range(0..vocabulary);
    (case.selected, case.hint) = (best, best);
    let (claimed, token) = match rng.random_range(0..6) {
        0 => (any, any),
        1 => (any, best),
        2 if case.descriptor.opcode == Opcode::Sample => {
            case.hint = rng.random_range(0..vocabulary);
            (any, any)
        }
        _ => (best, best),
    };
    case.claimed = claimed as i64;
    case.operands[1] = OperandData::Token(token);
}
