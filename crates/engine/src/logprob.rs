//! Log-probabilities of a row of logits in one go, for backends whose kernels end at the logits. The `cpu` backend runs the operators one by one.

use sworn_commit::HeadRow;
use sworn_isa::Descriptor;
use sworn_isa::logprob::{LogProbs, MASSLESS, log_prob, log_sum, mass, total_parts};

use crate::kernels::top;
use crate::simd::Simd;

/// Computes what a head's operators of log-probabilities would.
#[derive(Clone, Debug)]
pub struct LogProber {
    at: LogProbs,
    exp: Vec<u16>,
    ln: Vec<u16>,
    simd: Simd,
}

impl LogProber {
    /// For a head's operators, with `table` to look up a table's values; `None` if the head has no log-probabilities in the arrangement that importers
    /// write, or a table of another length.
    pub fn new(ops: &[Descriptor], table: impl Fn(u32) -> Vec<u16>) -> Option<Self> {
        let at = LogProbs::find(ops)?;
        let (exp, ln) = (table(at.exp.index), table(at.ln.index));
        (exp.len() == 257 && ln.len() == 257).then(|| LogProber { at, exp, ln, simd: Simd::detect() })
    }

    /// The row of the token that was selected from `logits`.
    pub fn row(&self, logits: &[i32], token: u32) -> HeadRow {
        self.simd.run(|| {
            let mut likeliest = vec![0; self.at.n.min(logits.len())];
            top(logits, &mut likeliest);
            let of = |token: u32| logits.get(token as usize).copied().unwrap_or(i32::MIN);
            let likeliest: Vec<u32> = likeliest.into_iter().map(|t| t as u32).collect();
            let max = likeliest.first().map_or(0, |t| of(*t));
            let distances = logits.iter().map(|z| max.wrapping_sub(*z) as u32).filter(|d| *d < MASSLESS);
            let total = distances.map(|d| u64::from(mass(d, &self.exp))).sum();
            let sum = total_parts(total)
                .map_or(max, |(k, j, r)| log_sum(max, k, r, i32::from(self.ln[j]), i32::from(self.ln[j + 1])));
            let log_probs = std::iter::once(&token).chain(&likeliest).map(|t| log_prob(of(*t), sum)).collect();
            HeadRow { top: likeliest, log_probs }
        })
    }
}
