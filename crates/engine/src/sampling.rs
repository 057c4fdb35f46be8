//! Which token follows: the operators from `TEMPER` to `SAMPLE` in one go.
//!
//! [`Chooser::choose`] gives the token that the operators would, but computes only what can change it: no histogram without a cut that
//! needs it, and noise only for tokens that the largest possible noise would still make the first.

use sworn_commit::{RunParams, keccak_words};
use sworn_isa::fixed::CL;
use sworn_isa::sampling::{BINS, NOISE_ENTRIES, PENALTY_WINDOW, Sampling, bin, mass, noise};
use sworn_isa::{Descriptor, Opcode, Operand, OperandKind};

use crate::simd::Simd;

/// From this distance behind the largest logit on, 12 in Q14, a token has no mass whatever the table: it is over 17 octaves less likely.
const MASSLESS: u32 = 12 << 14;
/// Tokens that one hash has words for.
const WORDS: usize = 8;
/// Hashes that are computed together, as many as a processor has lanes for.
const HASHES: usize = 8;

/// Where a head has the operators that sample, in the one arrangement that [`Chooser`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The operator whose output is the logits.
    pub logits: usize,
    /// The `SAMPLE`.
    pub sample: usize,
    /// The table of powers of two.
    pub exp: Operand,
    /// The table of noise.
    pub noise: Operand,
    /// log2 of a bin's width.
    pub shift: u32,
    /// The operators in between.
    members: [u64; 4],
}

impl Tail {
    /// Finds it in a head's operators; `None` if they sample in another way or not at all, or another operator reads what is in between.
    pub fn find(ops: &[Descriptor]) -> Option<Self> {
        let sample = ops.iter().position(|d| d.opcode == Opcode::Sample)?;
        let mut walk = Walk { ops, members: [0; 4] };
        let z = walk.enter(sample, 0, Opcode::Temper)?;
        let threshold = walk.enter(sample, 2, Opcode::Threshold)?;
        let max = source(ops, threshold, 0)?;
        let [first, fine, mass] = [1, 2, 3].map(|k| walk.enter(threshold, k, Opcode::Cut));
        let (first, fine, mass) = (first?, fine?, mass?);
        let (mut at, mut below) = (threshold, max);
        while below != z {
            below = walk.enter(at, 0, Opcode::Max)?;
            at = below;
            below = source(ops, at, 0)?;
        }
        let [shift, fine_shift, ..] = ops[threshold].params;
        let mut histogram = |cut: usize, params: [i32; 4]| {
            let mut at = walk.enter_any(cut, 0, &[Opcode::Sum, Opcode::Histogram])?;
            while ops[at].opcode == Opcode::Sum {
                at = walk.enter_any(at, 0, &[Opcode::Sum, Opcode::Histogram])?;
            }
            let d = &ops[at];
            let reads = (source(ops, at, 0), source(ops, at, 1)) == (Some(z), Some(max));
            (reads && d.params[1..] == params[1..]).then_some(d.operands[2])
        };
        let ranks = histogram(first, [0, 0, shift, 0])?;
        let parent = histogram(fine, [0, 0, fine_shift, shift])?;
        let exp = histogram(mass, [0, 1, shift, 0])?;
        let cuts = ranks == Operand::NONE
            && [first, fine, mass].map(|c| ops[c].params[0]) == [0, 0, 1]
            && ops[first].operands[1] == Operand::NONE
            && ops[mass].operands[1] == Operand::NONE
            && source(ops, fine, 1) == Some(first)
            && parent == ops[fine].operands[1];
        let Walk { members, .. } = walk;
        let tail = Tail {
            logits: source(ops, z, 0)?,
            sample,
            exp,
            noise: ops[sample].operands[3],
            shift: u32::try_from(shift).ok()?,
            members,
        };
        let alone = ops.iter().enumerate().all(|(k, d)| {
            let inside = d.operands.iter().any(|o| o.kind == OperandKind::Op && tail.has(o.index as usize));
            (!inside || k == sample || tail.has(k)) && !(d.export && tail.has(k))
        });
        (cuts && alone).then_some(tail)
    }

    /// Whether operator `k` lies between the logits and the `SAMPLE`.
    pub fn has(&self, k: usize) -> bool {
        self.members.get(k / 64).is_some_and(|m| m >> (k % 64) & 1 == 1)
    }
}

/// The operator whose whole output operand `k` of operator `at` is.
fn source(ops: &[Descriptor], at: usize, k: usize) -> Option<usize> {
    let o = ops.get(at)?.operands[k];
    (o.kind == OperandKind::Op && !o.tail && (o.index as usize) < at).then_some(o.index as usize)
}

/// A walk from operator to operator that remembers where it was.
struct Walk<'a> {
    ops: &'a [Descriptor],
    members: [u64; 4],
}

impl Walk<'_> {
    fn enter(&mut self, at: usize, k: usize, opcode: Opcode) -> Option<usize> {
        self.enter_any(at, k, &[opcode])
    }

    fn enter_any(&mut self, at: usize, k: usize, opcodes: &[Opcode]) -> Option<usize> {
        let next = source(self.ops, at, k).filter(|next| opcodes.contains(&self.ops[*next].opcode))?;
        *self.members.get_mut(next / 64)? |= 1 << (next % 64);
        Some(next)
    }
}

/// Chooses tokens as a program's tail does.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'a> {
    exp: &'a [u16],
    noise: &'a [i32],
    shift: u32,
    simd: Simd,
}

impl<'a> Chooser<'a> {
    /// With the tables and the bin width of a [`Tail`]; `None` if they do not have the size that the operators read.
    pub fn new(exp: &'a [u16], noise: &'a [i32], shift: u32, simd: Simd) -> Option<Self> {
        let fits = exp.len() == 257 && noise.len() == NOISE_ENTRIES && (8..=20).contains(&shift);
        fits.then_some(Chooser { exp, noise, shift, simd })
    }

    /// The token that follows position `t`. `recent`: the tokens at positions max(0, t − 63)…t. `scratch` saves an allocation as long as the
    /// vocabulary if it is kept.
    pub fn choose(&self, logits: &[i32], run: &RunParams, t: u32, recent: &[u32], scratch: &mut Vec<i32>) -> u32 {
        let s = &run.sampling;
        if s.inverse_temperature == 0 && s.penalty == 0 {
            return self.simd.run(|| largest(logits));
        }
        scratch.resize(logits.len(), 0);
        self.simd.run(|| temper(logits, s, recent, scratch));
        let z = &scratch[..];
        if s.inverse_temperature == 0 {
            // Without noise the largest is chosen, which no cut removes.
            return self.simd.run(|| largest(z));
        }
        let max = self.simd.run(|| z.iter().copied().max().unwrap_or(0));
        let least = self.threshold(z, max, s);
        draw(z, least, self.noise, run, t)
    }

    /// `HISTOGRAM`, `SUM`, `CUT` and `THRESHOLD`.
    fn threshold(&self, z: &[i32], max: i32, s: &Sampling) -> i32 {
        let distance = |z: &i32| max.wrapping_sub(*z) as u32;
        let fine = self.shift - 8;
        let mut cuts = [BINS as u32; 2];
        let mut by_mass = BINS as u32;
        if s.top_k != 0 {
            let mut bins = [0u32; BINS];
            z.iter().for_each(|z| bins[(distance(z) >> self.shift).min(BINS as u32 - 1) as usize] += 1);
            let first = s.cut(false, &bins, None);
            cuts[0] = first[0];
            // A cut in the last bin, which is open, or none at all needs no finer one.
            if first[0] < BINS as u32 - 1 {
                bins.fill(0);
                let parent = Some((first[0], self.shift));
                z.iter().filter_map(|z| bin(distance(z), fine, parent)).for_each(|b| bins[b as usize] += 1);
                cuts[1] = s.cut(false, &bins, Some(first))[0];
            }
        }
        if s.top_p != 0 {
            let mut bins = [0u32; BINS];
            for d in z.iter().map(distance).filter(|d| *d < MASSLESS) {
                bins[(d >> self.shift).min(BINS as u32 - 1) as usize] += mass(d, self.exp);
            }
            by_mass = s.cut(true, &bins, None)[0];
        }
        s.threshold(max, cuts, by_mass, self.shift, fine)
    }
}

/// `TEMPER` of all logits.
#[inline(always)]
pub(crate) fn temper(logits: &[i32], s: &Sampling, recent: &[u32], out: &mut [i32]) {
    out.iter_mut().zip(logits).for_each(|(z, l)| *z = s.temper(*l, false));
    if s.penalty != 0 {
        let window = recent.len().saturating_sub(PENALTY_WINDOW as usize);
        for token in &recent[window..] {
            if let (Some(z), Some(l)) = (out.get_mut(*token as usize), logits.get(*token as usize)) {
                *z = s.temper(*l, true);
            }
        }
    }
}

/// The smallest index of the largest of values that were clamped to Q14.
#[inline(always)]
fn largest(z: &[i32]) -> u32 {
    let max = z.iter().copied().max().unwrap_or(0).min(CL);
    z.iter().position(|z| *z >= max).unwrap_or(0) as u32
}

/// `SAMPLE`: the smallest index of the largest z + noise among z ≥ `least`; 0 if there is none, which only a tampered run has.
pub(crate) fn draw(z: &[i32], least: i32, table: &[i32], run: &RunParams, t: u32) -> u32 {
    let first = z.iter().copied().enumerate().fold((0, i32::MIN), |a, (j, z)| if z > a.1 { (j, z) } else { a });
    if run.sampling.inverse_temperature == 0 {
        return first.0 as u32;
    }
    let most = i64::from(table.iter().copied().max().unwrap_or(0));
    let span = WORDS * HASHES;
    let mut best = (i64::MIN, 0);
    let mut words = [[0u32; WORDS]; HASHES];
    // Less than this, and no noise lifts a token to the best so far.
    let mut floor = i64::from(least);
    let mut look = |at: usize, best: &mut (i64, usize), floor: &mut i64| {
        let from = at * span;
        let part = &z[from..z.len().min(from + span)];
        if part.iter().all(|z| i64::from(*z) < *floor) {
            return;
        }
        keccak_words(&run.seed, t, (at * HASHES) as u32, &mut words);
        for ((i, z), v) in part.iter().enumerate().zip(words.as_flattened()) {
            let z = i64::from(*z);
            if z >= *floor {
                let sum = z + i64::from(noise(*v, table));
                if sum > best.0 || (sum == best.0 && from + i < best.1) {
                    *best = (sum, from + i);
                    *floor = (*floor).max(sum - most);
                }
            }
        }
    };
    if first.1 < least {
        return 0;
    }
    // The largest first: most of the others need not be looked at then.
    look(first.0 / span, &mut best, &mut floor);
    for at in (0..z.len().div_ceil(span)).filter(|at| *at != first.0 / span) {
        look(at, &mut best, &mut floor);
    }
    best.1 as u32
}
