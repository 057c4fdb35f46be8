//! The chooser of tokens against the operators that it stands for, and what it draws against the distribution that is meant.

use proptest::prelude::*;
use sworn_commit::RunParams;
use sworn_engine::kernels::{Input, apply};
use sworn_engine::sampling::{Chooser, Tail};
use sworn_engine::{OpTensor, Simd};
use sworn_isa::fixed::CL;
use sworn_isa::sampling::{BINS, NOISE_ENTRIES, PENALTY_WINDOW, Q12_ONE, Sampling};
use sworn_isa::{Descriptor, Dtype, Opcode, Operand, OperandKind};
use sworn_model::quantise::{exp_table, noise_table};

/// A head's operators after the logits, which operator 0 stands for. Table 0 is that of powers of two, table 1 the noise.
fn head(vocabulary: u32, group: u32, shift: i32) -> Vec<Descriptor> {
    let op = |k: usize| Operand::op(k as u32, Dtype::I32);
    let groups = vocabulary / group;
    let mut ops: Vec<Descriptor> = Vec::new();
    let mut add = |opcode, [outer, inner]: [u32; 2], params, inputs: &[Operand]| {
        let mut operands = [Operand::NONE; 4];
        operands[..inputs.len()].copy_from_slice(inputs);
        let export = opcode == Opcode::Sample;
        ops.push(Descriptor { opcode, dtype: Dtype::I32, export, bits: 0, outer, div: 0, inner, params, operands });
        ops.len() - 1
    };
    let (v, g, fine) = (vocabulary as i32, group as i32, shift - 8);
    let logits = add(Opcode::Linear, [vocabulary, 1], [1, 0, 1, 0], &[]);
    let z = add(Opcode::Temper, [vocabulary, 1], [PENALTY_WINDOW as i32, 0, 0, 0], &[op(logits), Operand::token(0)]);
    let part = add(Opcode::Max, [groups, 1], [g, 0, 0, 0], &[op(z)]);
    let max = add(Opcode::Max, [1, 1], [groups as i32, 0, 0, 0], &[op(part)]);
    let exp = Operand::table(0, 0, Dtype::U16);
    let mut cut = |kind, params, third: Option<Operand>, parent: Option<usize>| {
        let inputs: Vec<Operand> = [op(z), op(max)].into_iter().chain(third).collect();
        let h = add(Opcode::Histogram, [BINS as u32, groups], params, &inputs);
        let h = add(Opcode::Sum, [BINS as u32, 1], [groups as i32, 0, 0, 0], &[op(h)]);
        let inputs: Vec<Operand> = [op(h)].into_iter().chain(parent.map(op)).collect();
        add(Opcode::Cut, [1, 2], [kind, 0, 0, 0], &inputs)
    };
    let first = cut(0, [g, 0, shift, 0], None, None);
    let second = cut(0, [g, 0, fine, shift], Some(op(first)), Some(first));
    let mass = cut(1, [g, 1, shift, 0], Some(exp), None);
    let inputs = [op(max), op(first), op(second), op(mass)];
    let threshold = add(Opcode::Threshold, [1, 1], [shift, fine, 0, 0], &inputs);
    let noise = Operand::table(1, 0, Dtype::I32);
    add(Opcode::Sample, [1, 1], [v, 0, 0, 0], &[op(z), Operand::token(1), op(threshold), noise]);
    ops
}

/// The token by the operators one by one.
fn one_by_one(ops: &[Descriptor], logits: &[i32], run: &RunParams, t: u32, recent: &[u32], tables: &[OpTensor]) -> u32 {
    let mut outputs = vec![OpTensor::I32(logits.to_vec())];
    for d in &ops[1..] {
        let inputs: [Input<'_>; 4] = std::array::from_fn(|k| match d.operands[k].kind {
            OperandKind::Op => Input::Tensor(outputs[d.operands[k].index as usize].view()),
            OperandKind::Table => Input::Tensor(tables[d.operands[k].index as usize].view()),
            OperandKind::Token if d.opcode == Opcode::Temper => Input::Tokens(recent),
            _ => Input::None,
        });
        outputs.push(apply(d, t, &inputs, run, Simd::detect()).unwrap());
    }
    outputs.last().and_then(|o| o.get(0)).unwrap() as u32
}

fn tables() -> (Vec<u16>, Vec<i32>) {
    let exp = exp_table().into_iter().map(|v| v as u16).collect();
    (exp, noise_table().into_iter().map(|v| v as i32).collect())
}

/// A parameter that is left out, at an end of its range, of a usual size, or anything.
fn parameter(usual: std::ops::RangeInclusive<u32>, lo: u32, hi: u32) -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0), 1 => Just(lo), 1 => Just(hi), 4 => usual, 1 => lo..=hi]
}

fn runs() -> impl Strategy<Value = RunParams> {
    let parameters = (
        parameter(2048..=16384, 1, 1 << 20),
        parameter(1..=60, 1, (1 << 20) - 1),
        parameter(30_000..=65_000, 1, 1 << 16),
        parameter(1000..=60_000, 1, (1 << 24) - 1),
        parameter(4096..=6000, 1 << 8, (1 << 16) - 1),
        any::<[u8; 32]>(),
    );
    parameters.prop_map(|(inverse_temperature, top_k, top_p, min_distance, penalty, seed)| RunParams {
        sampling: Sampling { inverse_temperature, top_k, top_p, min_distance, penalty },
        seed,
    })
}

/// Vocabulary and group length.
const SIZES: [(u32, u32); 6] = [(1, 1), (7, 7), (60, 12), (128, 64), (600, 20), (3000, 1500)];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn the_chooser_selects_what_the_operators_do(
        run in runs(), size in 0usize..SIZES.len(), t in 0u32..200, spread in 0u32..31, ties: bool, seed: u64, shift in prop_oneof![Just(10), 8i32..=20],
    ) {
        let (vocabulary, group) = SIZES[size];
        let mut s = seed | 1;
        let mut next = || { s ^= s << 13; s ^= s >> 7; s ^= s << 17; s >> 11 };
        // From all equal to all over the range; many ties if asked for.
        let logits: Vec<i32> = (0..vocabulary).map(|_| {
            let r = (next() % (1u64 << (spread + 1))) as i64 - (1i64 << spread);
            let r = if ties { r >> spread.saturating_sub(2) << spread.saturating_sub(2) } else { r };
            match next() % 64 { 0 => CL, 1 => -CL, _ => r.clamp(-i64::from(CL), i64::from(CL)) as i32 }
        }).collect();
        let recent: Vec<u32> = (0..(t + 1).min(PENALTY_WINDOW)).map(|_| (next() % u64::from(2 * vocabulary)) as u32).collect();
        let ops = head(vocabulary, group, shift);
        let tail = Tail::find(&ops).expect("the usual arrangement");
        prop_assert_eq!((tail.logits, tail.sample, tail.shift), (0, ops.len() - 1, shift as u32));
        prop_assert!((1..tail.sample).all(|k| tail.has(k)));
        let (exp, noise) = tables();
        let all = [OpTensor::U16(exp.clone()), OpTensor::I32(noise.clone())];
        let want = one_by_one(&ops, &logits, &run, t, &recent, &all);
        for simd in Simd::all() {
            let chooser = Chooser::new(&exp, &noise, tail.shift, simd).unwrap();
            prop_assert_eq!(chooser.choose(&logits, &run, t, &recent, &mut vec![1, 2, 3]), want);
        }
    }
}

#[test]
fn other_arrangements_are_not_taken_for_the_usual_one() {
    let ops = head(60, 12, 10);
    assert!(Tail::find(&ops).is_some());
    type Change = fn(&mut Vec<Descriptor>);
    let broken: [Change; 7] = [
        |ops| ops.truncate(ops.len() - 1),
        |ops| ops[3].export = true,
        // The finer histogram with bins of another width, or of another parent.
        |ops| ops[7].params[2] += 1,
        |ops| ops[7].operands[2] = Operand::op(5, Dtype::I32),
        // A cut by rank in place of one by mass.
        |ops| ops[12].params[0] = 0,
        |ops| ops[13].operands[1] = Operand::op(9, Dtype::I32),
        // Somebody else reads what the chooser does not compute.
        |ops| ops.push(Descriptor { opcode: Opcode::Max, export: false, ..ops[3] }),
    ];
    for (i, change) in broken.iter().enumerate() {
        let mut ops = ops.clone();
        change(&mut ops);
        assert_eq!(Tail::find(&ops), None, "change {i}");
    }
    let (exp, noise) = tables();
    assert!(Chooser::new(&exp[1..], &noise, 10, Simd::SCALAR).is_none());
    assert!(Chooser::new(&exp, &noise[..NOISE_ENTRIES - 1], 10, Simd::SCALAR).is_none());
}

/// The distribution that the parameters mean, in floating point, for logits without tokens at the very edge of a cut.
fn meant(
    logits: &[f64],
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    penalised: &[(usize, f64)],
) -> Vec<f64> {
    let mut l = logits.to_vec();
    for (j, penalty) in penalised {
        l[*j] = if l[*j] > 0.0 { l[*j] / penalty } else { l[*j] * penalty };
    }
    l.iter_mut().for_each(|l| *l /= temperature);
    let mut order: Vec<usize> = (0..l.len()).collect();
    order.sort_by(|a, b| l[*b].total_cmp(&l[*a]));
    let max = l[order[0]];
    let weight: Vec<f64> = l.iter().map(|l| (l - max).exp()).collect();
    let total: f64 = weight.iter().sum();
    let mut before = 0.0;
    let mut p = vec![0.0; l.len()];
    for (rank, j) in order.into_iter().enumerate() {
        if rank < top_k && before < top_p * total && weight[j] >= min_p {
            p[j] = weight[j];
        }
        before += weight[j];
    }
    let total: f64 = p.iter().sum();
    p.iter().map(|p| p / total).collect()
}

/// Draws at many positions of one run are compared with the distribution that is meant by a χ² test: with n degrees of freedom the statistic has
/// mean n and variance 2n, and lies beyond n + 4·√(2n) in fewer than one of two thousand honest tests. The seeds are fixed, so the outcome is too.
#[test]
fn draws_have_the_distribution_that_is_meant() {
    const DRAWS: u32 = 25_000;
    let q = |x: f64, bits: i32| (x * 2f64.powi(bits)).round() as u32;
    let (exp, noise) = tables();
    let chooser = Chooser::new(&exp, &noise, 10, Simd::detect()).unwrap();
    // A flat one, one with a few likely tokens, and one as long as a small vocabulary, with its likely tokens anywhere.
    let flat = vec![0.25; 40];
    let steep: Vec<f64> = (0..30).map(|j| 3.0 - 0.4 * f64::from(j)).collect();
    let long: Vec<f64> =
        (0..2000u32).map(|j| 6.0 - 0.3 * f64::from(j.wrapping_mul(1_664_525) % 2000).powf(0.45)).collect();
    // Logits, temperature, top-k, top-p, min-p, penalty.
    type Test<'a> = (&'a [f64], f64, usize, f64, f64, f64);
    let tests: [Test<'_>; 10] = [
        (&flat, 1.0, usize::MAX, 2.0, 0.0, 1.0),
        (&steep, 1.0, usize::MAX, 2.0, 0.0, 1.0),
        (&steep, 0.5, usize::MAX, 2.0, 0.0, 1.0),
        (&steep, 2.0, 7, 2.0, 0.0, 1.0),
        (&steep, 1.5, usize::MAX, 0.8, 0.0, 1.0),
        (&steep, 1.0, usize::MAX, 2.0, 0.05, 1.0),
        (&steep, 1.0, usize::MAX, 2.0, 0.0, 1.5),
        (&long, 1.0, usize::MAX, 2.0, 0.0, 1.0),
        (&long, 0.7, 50, 2.0, 0.0, 1.0),
        (&long, 1.3, 400, 2.0, 0.01, 1.2),
    ];
    for (n, (logits, temperature, top_k, top_p, min_p, penalty)) in tests.into_iter().enumerate() {
        let sampling = Sampling {
            inverse_temperature: q(1.0 / temperature, 12),
            top_k: if top_k == usize::MAX { 0 } else { top_k as u32 },
            top_p: if top_p > 1.0 { 0 } else { q(top_p, 16) },
            min_distance: if min_p == 0.0 { 0 } else { q(-min_p.ln(), 14) },
            penalty: if penalty == 1.0 { 0 } else { (penalty * f64::from(Q12_ONE)) as u32 },
        };
        let run = RunParams { sampling, seed: [n as u8 + 1; 32] };
        let integers: Vec<i32> = logits.iter().map(|l| (l * 16384.0).round() as i32).collect();
        let recent = [1, 3, 29, 3];
        let penalised = [1, 3, 29].map(|j| (j, penalty));
        let p = meant(logits, temperature, top_k, top_p, min_p, &penalised);
        let mut counts = vec![0u32; p.len()];
        let mut scratch = Vec::new();
        for t in 0..DRAWS {
            counts[chooser.choose(&integers, &run, t, &recent, &mut scratch) as usize] += 1;
        }
        // Tokens that are expected less than ten times count together.
        let (mut rare, mut statistic, mut cells) = ([0.0; 2], 0.0, 0);
        for (p, n) in p.iter().zip(&counts) {
            let (expected, n) = (p * f64::from(DRAWS), f64::from(*n));
            if expected >= 10.0 {
                statistic += (n - expected).powi(2) / expected;
                cells += 1;
            } else {
                assert!(*p > 0.0 || n == 0.0, "test {n}: a token that was cut was drawn");
                rare = [rare[0] + expected, rare[1] + n];
            }
        }
        if rare[0] > 0.0 {
            statistic += (rare[1] - rare[0]).powi(2) / rare[0];
            cells += 1;
        }
        let freedom = f64::from(cells - 1);
        assert!(cells > 4, "test {n} has {cells} cells");
        let bound = freedom + 4.0 * (2.0 * freedom).sqrt();
        assert!(statistic < bound, "test {n}: χ² = {statistic:.1} with {freedom} degrees of freedom, bound {bound:.1}");
    }
}
