//! Rows in groups of 32 to the block formats of the instruction set.
//!
//! A source's own blocks keep their integers; only their scales and minima are put on one grid per row, whose step S is the
//! row's scale: fine enough that every weight is within 2^−12 of the row's largest. As all of import, this is reproducible:
//! only exactly rounded operations, in a fixed order.

use sworn_isa::{GROUP, GROUP_SCALE_MAX, RowFormat};

use crate::{quantise::Scale, source::RowBlocks};

/// Largest magnitude of a group's minimum.
const MINIMUM_MAX: f64 = 32767.0;
/// Keeps the scale of an all-zero row a number.
const LEAST_STEP: f64 = 1e-16;

/// Rounds to nearest, ties upward, within ±`limit`.
fn round(x: f64, limit: f64) -> f64 {
    (x + 0.5).floor().clamp(-limit, limit)
}

/// The step of a row's grid: the least that holds all scales and minima.
fn step(scales: impl Iterator<Item = f64>, minima: impl Iterator<Item = f64>) -> Scale {
    let largest = |i: &mut dyn Iterator<Item = f64>| i.fold(0f64, |a, x| a.max(x.abs()));
    let scale = largest(&mut { scales }) / f64::from(GROUP_SCALE_MAX);
    let minimum = largest(&mut { minima }) / (2.0 * MINIMUM_MAX);
    Scale::nearest(scale.max(minimum).max(LEAST_STEP))
}

/// A row's own blocks as stored after its scale pairs, and the step of its grid. `out` has the format's bytes.
pub(crate) fn keep_row(blocks: &RowBlocks, out: &mut [u8]) -> Scale {
    match blocks {
        RowBlocks::Q4 { groups, q } => {
            let scale = step(groups.iter().map(|g| g.0), groups.iter().map(|g| g.1));
            let s = scale.value();
            let (scales, rest) = out.split_at_mut(2 * groups.len());
            let (minima, quants) = rest.split_at_mut(2 * groups.len());
            let words = scales.as_chunks_mut::<2>().0.iter_mut().zip(minima.as_chunks_mut::<2>().0);
            for ((d, m), (scale, minimum)) in groups.iter().zip(words) {
                let rounded = round(d / s, f64::from(GROUP_SCALE_MAX));
                // The minimum takes up what the scale's rounding does to the middle of the group.
                let middle = 7.5 * (d - rounded * s);
                let m = round((m + middle) / (2.0 * s), MINIMUM_MAX);
                *scale = (rounded as i16).to_be_bytes();
                *minimum = (m as i16).to_be_bytes();
            }
            for (group, out) in q.as_chunks::<GROUP>().0.iter().zip(quants.as_chunks_mut::<{ GROUP / 2 }>().0) {
                let (low, high) = group.split_at(GROUP / 2);
                for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                    *out = (low & 15) | (high << 4);
                }
            }
            scale
        }
        RowBlocks::Q8 { groups, q } => {
            // −128 is outside of the format: such a group gets a grid that is a little coarser.
            let least = q.as_chunks::<GROUP>().0.iter().map(|g| g.contains(&i8::MIN));
            let groups: Vec<(f64, bool)> = groups
                .iter()
                .zip(least)
                .map(|(d, least)| (if least { d * 128.0 / 127.0 } else { *d }, least))
                .collect();
            let scale = step(groups.iter().map(|g| g.0), std::iter::empty());
            let (scales, quants) = out.split_at_mut(2 * groups.len());
            let quants = quants.as_chunks_mut::<GROUP>().0.iter_mut().zip(q.as_chunks::<GROUP>().0);
            for (((d, least), word), (out, q)) in groups.iter().zip(scales.as_chunks_mut::<2>().0).zip(quants) {
                *word = (round(d / scale.value(), f64::from(GROUP_SCALE_MAX)) as i16).to_be_bytes();
                for (out, q) in out.iter_mut().zip(q) {
                    let q = if *least { round(f64::from(*q) * 127.0 / 128.0, 127.0) as i8 } else { *q };
                    *out = q as u8;
                }
            }
            scale
        }
    }
}

/// A row rounded to nearest on a grid of its own for every 32 weights: format Q8.
pub(crate) fn quantise_row(row: &[f32], out: &mut [u8]) -> Scale {
    let groups = row.as_chunks::<GROUP>().0;
    let largest = |g: &[f32; GROUP]| f64::from(g.iter().fold(0f32, |a, w| a.max(w.abs())));
    let scale = step(groups.iter().map(|g| largest(g) / 127.0), std::iter::empty());
    let (scales, quants) = out.split_at_mut(2 * groups.len());
    let words = scales.as_chunks_mut::<2>().0.iter_mut().zip(quants.as_chunks_mut::<GROUP>().0);
    for (group, (word, out)) in groups.iter().zip(words) {
        // Up, so that the largest weight stays within ±127.
        let s = (largest(group) / 127.0 / scale.value()).ceil().clamp(1.0, f64::from(GROUP_SCALE_MAX));
        *word = (s as i16).to_be_bytes();
        for (out, w) in out.iter_mut().zip(group) {
            *out = round(f64::from(*w) / (s * scale.value()), 127.0) as i8 as u8;
        }
    }
    scale
}

/// The format that keeps a source's blocks.
pub(crate) fn format_of(blocks: &RowBlocks) -> RowFormat {
    match blocks {
        RowBlocks::Q4 { .. } => RowFormat::Q4,
        RowBlocks::Q8 { .. } => RowFormat::Q8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The row's weights as stored.
    fn stored(format: RowFormat, bytes: &[u8], scale: Scale) -> Vec<f64> {
        format.weights(bytes).unwrap().iter().map(|w| f64::from(*w) * scale.value()).collect()
    }

    fn check(blocks: &RowBlocks, n: usize) {
        let format = format_of(blocks);
        let mut bytes = vec![0; format.bytes(n)];
        let scale = keep_row(blocks, &mut bytes);
        assert!(crate::load::row_norm(format, &bytes).is_some(), "{blocks:?}");
        let got = stored(format, &bytes, scale);
        let want: Vec<f64> = (0..n).map(|i| blocks.weight(i)).collect();
        let (spread, bound) = bounds(blocks, &want);
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() <= bound, "{g} for {w} of {spread}: {blocks:?}");
        }
    }

    /// The largest weight that a row's blocks can hold, and how far off weights may be: 2^−12 of it.
    fn bounds(blocks: &RowBlocks, weights: &[f64]) -> (f64, f64) {
        let largest = match blocks {
            RowBlocks::Q4 { groups, .. } => {
                groups.iter().fold(0f64, |a, (d, m)| a.max(m.abs()).max((15.0 * d + m).abs()))
            }
            RowBlocks::Q8 { groups, .. } => groups.iter().fold(0f64, |a, d| a.max(127.0 * d.abs())),
        };
        // The grid of scales has no step for a −128: it is 128/127 coarser there, which moves weights by half of a quantum.
        let coarser = matches!(blocks, RowBlocks::Q8 { q, .. } if q.contains(&i8::MIN));
        let half = if coarser { largest / 127.0 * 0.51 } else { 0.0 };
        assert!(weights.iter().all(|w| w.abs() <= largest * 1.01));
        (largest, largest / 4096.0 + half + 1e-15)
    }

    proptest! {
        #[test]
        fn blocks_of_four_bits_keep_their_weights(
            groups in proptest::collection::vec((-1f64..1.0, -9f64..9.0), 1..12), seed: u64,
        ) {
            let q = (0..groups.len() * 32).map(|i| (seed.rotate_left(i as u32 * 7) & 15) as u8).collect();
            check(&RowBlocks::Q4 { groups: groups.clone(), q }, 32 * groups.len());
        }

        #[test]
        fn blocks_of_eight_bits_keep_their_weights(groups in proptest::collection::vec(-1f64..1.0, 1..12), seed: u64) {
            let q = (0..groups.len() * 32).map(|i| seed.rotate_left(i as u32 * 11) as u8 as i8).collect();
            check(&RowBlocks::Q8 { groups: groups.clone(), q }, 32 * groups.len());
        }

        #[test]
        fn groups_of_floats_are_within_half_a_step(mut row in proptest::collection::vec(-8f32..8.0, 96)) {
            row[40..64].iter_mut().for_each(|w| *w /= 500.0);
            let mut bytes = vec![0; RowFormat::Q8.bytes(96)];
            let scale = quantise_row(&row, &mut bytes);
            prop_assert!(crate::load::row_norm(RowFormat::Q8, &bytes).is_some());
            for (group, (got, want)) in stored(RowFormat::Q8, &bytes, scale).chunks(32).zip(row.chunks(32)).enumerate() {
                let largest = want.iter().fold(0f32, |a, w| a.max(w.abs()));
                let step = f64::from(largest) / 127.0 + scale.value();
                for (g, w) in got.iter().zip(want) {
                    prop_assert!((g - f64::from(*w)).abs() <= 0.51 * step, "group {}", group);
                }
            }
        }
    }

    #[test]
    fn symmetric_blocks_stay_symmetric() {
        // Q4_0: weight d·(q − 8), so minimum and scale must keep their ratio for zeros to stay zeros.
        let groups: Vec<(f64, f64)> = [0.013, -0.5, 0.25, 1e-4].map(|d| (d, -8.0 * d)).to_vec();
        let q = (0..128).map(|i| (i % 16) as u8).collect();
        let mut bytes = vec![0; RowFormat::Q4.bytes(128)];
        keep_row(&RowBlocks::Q4 { groups, q }, &mut bytes);
        let w = RowFormat::Q4.weights(&bytes).unwrap();
        assert!(w.iter().skip(8).step_by(16).all(|w| *w == 0), "{w:?}");
    }

    #[test]
    fn rows_of_zeros() {
        let mut bytes = vec![1; RowFormat::Q4.bytes(32)];
        let scale = keep_row(&RowBlocks::Q4 { groups: vec![(0.0, 0.0)], q: vec![9; 32] }, &mut bytes);
        assert!(scale.m >= 1 << 15 && RowFormat::Q4.weights(&bytes).unwrap().iter().all(|w| *w == 0));
        let mut bytes = vec![1; RowFormat::Q8.bytes(32)];
        quantise_row(&[0.0; 32], &mut bytes);
        assert!(RowFormat::Q8.weights(&bytes).unwrap().iter().all(|w| *w == 0));
    }
}
