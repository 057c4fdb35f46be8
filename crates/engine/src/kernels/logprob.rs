//! The operators of log-probabilities. They run for every token that comes out, so they look at a logit closely only where it counts.

use sworn_isa::Opcode;
use sworn_isa::fixed::CL;
use sworn_isa::logprob::{MOST, log_prob, log_sum, total_parts};

use super::{Inputs, Mismatch, group};
use crate::simd::Simd;

/// Logits that are compared at once with the last of the likeliest so far.
const BLOCK: usize = 64;

#[inline(always)]
pub(super) fn apply(x: &Inputs<'_, '_>, simd: Simd, out: &mut [i32]) -> Result<(), Mismatch> {
    match x.d.opcode {
        Opcode::Top => top(x.i32s(0)?, out),
        Opcode::Mass => {
            let (max, table) = (x.i32s(1)?[0], x.u16s(2)?);
            for (o, z) in out.iter_mut().zip(x.i32s(0)?.chunks_exact(group(x.d, 0))) {
                *o = simd.mass(z, max, table);
            }
        }
        Opcode::LogSum => {
            let (max, table) = (x.i32s(0)?[0], x.u16s(2)?);
            let total = x.i32s(1)?.iter().map(|m| u64::from(*m as u32)).sum();
            // Only a tampered run has a total without a logarithm.
            out[0] = total_parts(total).map_or(max, |(k, j, r)| {
                let entry = |j: usize| i32::from(table[j]);
                log_sum(max, k, r, entry(j), entry(j + 1))
            });
        }
        Opcode::LogProb => {
            let (logits, sum) = (x.i32s(0)?, x.i32s(1)?[0]);
            for (o, token) in out.iter_mut().zip(x.i32s(3)?.iter().chain(x.i32s(2)?)) {
                // No token of a run that was not tampered with lies outside the vocabulary.
                *o = logits.get(*token as u32 as usize).map_or(-CL, |z| log_prob(*z, sum));
            }
        }
        _ => return Err(x.mismatch(0)),
    }
    Ok(())
}

/// The tokens of the largest logits, largest first, the smaller index first among equals.
#[inline(always)]
pub(crate) fn top(logits: &[i32], out: &mut [i32]) {
    let mut best = [(0i32, 0i32); MOST as usize];
    let n = out.len().min(best.len());
    let mut found = 0;
    for (b, block) in logits.chunks(BLOCK).enumerate() {
        let largest = block.iter().copied().fold(i32::MIN, i32::max);
        // An equal logit further on comes after.
        if found == n && (n == 0 || largest <= best[n - 1].0) {
            continue;
        }
        for (i, z) in block.iter().enumerate() {
            if found == n && *z <= best[n - 1].0 {
                continue;
            }
            found = n.min(found + 1);
            let mut at = found - 1;
            while at > 0 && best[at - 1].0 < *z {
                best[at] = best[at - 1];
                at -= 1;
            }
            best[at] = (*z, (b * BLOCK + i) as i32);
        }
    }
    out.iter_mut().zip(best).for_each(|(o, (_, token))| *o = token);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_likeliest_are_the_first_of_all_in_order(
            logits in proptest::collection::vec(-9i32..9, 1..300), n in 1usize..20, scale in 0u32..26,
        ) {
            let n = n.min(logits.len());
            let logits: Vec<i32> = logits.iter().map(|z| z << scale).collect();
            let mut order: Vec<i32> = (0..logits.len() as i32).collect();
            order.sort_by_key(|t| (std::cmp::Reverse(logits[*t as usize]), *t));
            let mut out = vec![-1; n];
            top(&logits, &mut out);
            prop_assert_eq!(&out[..], &order[..n]);
        }
    }
}
