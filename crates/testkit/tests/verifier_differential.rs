//! Differential test (a): the scalar reference against the compiled `StepVerifier`, run in revm, every opcode. Each case is a
//! whole proof: descriptor, pages, weight rows, tables, tokens and cached positions with their Merkle paths.
#![allow(clippy::print_stdout, reason = "the counts are the report")]

use alloy::primitives::{B256, Bytes, I256};
use sworn_bindings::{Claim, IStepVerifier, ModelShape, TraceContext, Witness};
use sworn_isa::Opcode;
use sworn_testkit::cases::{Case, OperandData, cases};
use sworn_testkit::court::Court;
use sworn_testkit::fixture::{Fixture, Part};
use sworn_testkit::tried::tried;

const CASES: usize = 10_000;
/// A judge's gas is measured elsewhere; here a whole tensor may be opened at once.
const GAS: u64 = 1 << 28;

fn call(fixture: &Fixture, element: u32) -> (IStepVerifier::judgeCall, i64, i64) {
    let (claim, proof) = fixture.prove(element).unwrap();
    let [input, output] = fixture.sequences();
    let call = IStepVerifier::judgeCall {
        trace: TraceContext::new(&fixture.dims, fixture.layers_root, input, output, &fixture.run),
        model: ModelShape::of(&fixture.manifest, &fixture.program),
        claim: Claim::from(claim),
        witness: Witness::from(&proof.witness),
    };
    (call, proof.claimed, proof.computed)
}

/// One element of a case: as it should be, or the one value of it changed.
fn judged(case: &Case, at: usize, lie: bool) -> (IStepVerifier::judgeCall, i64, i64) {
    let mut claimed = if case.selects() { vec![case.claimed] } else { case.expected.clone() };
    if lie {
        claimed[at] ^= 1;
    }
    call(&Fixture::new(case, &claimed), at as u32)
}

fn run_opcode(opcode: Opcode) {
    let mut court = Court::new(600, 60);
    let mut lies = 0;
    for (n, chunk) in cases(opcode, 0xa0).take(CASES).collect::<Vec<_>>().chunks(500).enumerate() {
        let mut expected = Vec::new();
        let calls = chunk.iter().enumerate().map(|(i, case)| {
            // First, last, and everything between in turn.
            let at = match i % 3 {
                0 => 0,
                1 => case.expected.len() - 1,
                _ => (n * 7919 + i * 104_729) % case.expected.len(),
            };
            let lie = i % 5 == 0 && !case.selects();
            lies += usize::from(lie);
            let (call, claimed, computed) = judged(case, at, lie);
            assert_eq!(computed, case.expected[at], "{opcode}: the witness does not compute what the reference does");
            expected.push((claimed, computed));
            call
        });
        let calls: Vec<_> = calls.collect();
        for ((case, want), call) in chunk.iter().zip(expected).zip(&calls) {
            let want = (I256::try_from(want.0).unwrap(), I256::try_from(want.1).unwrap());
            assert_eq!(court.judge(call, GAS), Some(want), "{opcode}: {case:?}");
        }
    }
    println!("{:12} {lies} of the cases are lies", opcode.name());
    tried(
        "opcodes: contracts against the reference, cases",
        CASES as u64,
        0,
        "every opcode, values at random and at their bounds",
    );
}

macro_rules! opcodes {
    ($($test:ident: $opcode:ident;)*) => {
        $(#[test] fn $test() { run_opcode(Opcode::$opcode); })*

        #[test]
        fn every_opcode_has_its_test() {
            assert_eq!([$(Opcode::$opcode),*], Opcode::ALL);
        }
    };
}

opcodes! {
    embed: Embed; max_abs: MaxAbs; sum_sq: SumSq; rms: Rms; gain: Gain; quant: Quant; quant_scale: QuantScale;
    norm_scale: NormScale; linear: Linear; rope: Rope; scale_q: ScaleQ; to_fixed: ToFixed; scores: Scores; row_max: RowMax;
    exp: Exp; row_sum: RowSum; prob: Prob; mix: Mix; silu_mul: SiluMul; add: Add; select: Select; dequant: Dequant;
    gelu_mul: GeluMul; soft_cap: SoftCap; window: Window; temper: Temper; max: Max; histogram: Histogram; sum: Sum; cut: Cut;
    threshold: Threshold; sample: Sample; top: Top; mass: Mass; log_sum: LogSum; log_prob: LogProb;
}

/// I7: a proof with any byte changed is rejected or leaves the verdict as it is (a hint that names another index may).
#[test]
fn any_changed_byte_of_a_proof_is_rejected() {
    let mut court = Court::new(600, 60);
    let mut flips = 0;
    for opcode in Opcode::ALL {
        // A case with proofs of some depth that reads all it can, so that there is something to flip.
        let case = cases(*opcode, 0xf1).take(400).max_by_key(|c| {
            let bytes: usize = (0..4).map(|k| c.bytes(k).len()).sum();
            let sampling = c.run.sampling.penalty.min(c.run.sampling.inverse_temperature) != 0;
            let operands = c.operands.iter().filter(|o| **o != OperandData::None).count();
            let told = c.selects() && c.expected[0] != c.claimed;
            (!told, sampling, bytes < 6000, operands, bytes.min(3000), c.t)
        });
        let case = case.unwrap();
        let (honest, claimed, computed) = judged(&case, case.expected.len() - 1, false);
        let verdict = court.judge(&honest, GAS);
        assert_eq!(verdict, Some((I256::try_from(claimed).unwrap(), I256::try_from(computed).unwrap())), "{opcode}");
        let mut calls = Vec::new();
        let flip = |b: &mut [u8], i: usize| b[i] ^= 1 << (i % 8);
        let hashes = |h: &[B256], put: &mut dyn FnMut(Vec<B256>)| {
            for k in 0..h.len() {
                for i in 0..32 {
                    let mut h = h.to_vec();
                    flip(&mut h[k].0, i);
                    put(h);
                }
            }
        };
        let bytes = |b: &Bytes, put: &mut dyn FnMut(Bytes)| {
            for i in 0..b.len() {
                let mut b = b.to_vec();
                flip(&mut b, i);
                put(b.into());
            }
        };
        let w = &honest.witness;
        let mut with = |change: &dyn Fn(&mut Witness)| {
            let mut call = honest.clone();
            change(&mut call.witness);
            calls.push(call);
        };
        bytes(&w.descriptor, &mut |v| with(&|w| w.descriptor = v.clone()));
        bytes(&w.page, &mut |v| with(&|w| w.page = v.clone()));
        hashes(&w.descriptorProof, &mut |v| with(&|w| w.descriptorProof = v.clone()));
        hashes(&w.pageProof, &mut |v| with(&|w| w.pageProof = v.clone()));
        // The root of the operator itself; the others are bound by the list's hash, which the caller checks.
        hashes(&w.opRoots[sworn_testkit::fixture::OP as usize..], &mut |v| {
            with(&|w| w.opRoots[sworn_testkit::fixture::OP as usize] = v[0])
        });
        for (k, r) in w.reads.iter().enumerate() {
            bytes(&r.data, &mut |v| with(&|w| w.reads[k].data = v.clone()));
            hashes(&r.proof, &mut |v| with(&|w| w.reads[k].proof = v.clone()));
            hashes(&r.leaves, &mut |v| with(&|w| w.reads[k].leaves = v.clone()));
            hashes(&r.leafProof, &mut |v| with(&|w| w.reads[k].leafProof = v.clone()));
        }
        flips += calls.len();
        for call in &calls {
            assert_eq!(court.judge(call, GAS), None, "{opcode}: a changed proof was accepted: {:?}", call.witness);
        }
    }
    tried("proofs with a byte changed, all rejected", flips as u64, 0, "every byte of a proof of every opcode");
}

/// A page's length is the shape's and nobody's choice: who commits to a tensor with a zero byte more, or without its last, and
/// opens it truthfully, is rejected, whether it is the claimed tensor or one that the claim reads.
#[test]
fn tensors_of_another_length_are_rejected() {
    let mut court = Court::new(600, 60);
    type Spoil = fn(&mut Vec<u8>);
    let spoils: [Spoil; 2] = [|tensor| tensor.push(0), |tensor| tensor.truncate(tensor.len().saturating_sub(1))];
    let mut rejected = [0; 2];
    for opcode in Opcode::ALL {
        let mut calls = Vec::new();
        for case in cases(*opcode, 0x1e).take(60) {
            let claimed = if case.selects() { vec![case.claimed] } else { case.expected.clone() };
            let at = case.expected.len() as u32 - 1;
            let (honest, ..) = call(&Fixture::new(&case, &claimed), at);
            assert!(court.judge(&honest, GAS).is_some());
            for (spoil, part) in spoils.iter().flat_map(|s| [(s, Part::Claimed), (s, Part::Inputs)]) {
                let spoilt = |p, tensor: &mut Vec<u8>| {
                    if p == part {
                        spoil(tensor)
                    }
                };
                let fixture = Fixture::spoilt(&case, &claimed, &spoilt);
                // Where the byte that is missing is read, no witness can be built.
                if fixture.prove(at).is_err() {
                    continue;
                }
                let (call, ..) = call(&fixture, at);
                let lens = |w: &Witness| {
                    [&w.page].into_iter().chain(w.reads.iter().map(|r| &r.data)).map(|b| b.len()).collect::<Vec<_>>()
                };
                // Another page of a tensor may be spoilt than the one that is read.
                if lens(&call.witness) != lens(&honest.witness) {
                    rejected[part as usize] += 1;
                    calls.push(call);
                }
            }
        }
        for call in &calls {
            assert_eq!(
                court.judge(call, GAS),
                None,
                "{opcode}: pages of a wrong length were accepted: {:?}",
                call.witness
            );
        }
    }
    assert!(rejected.iter().all(|n| *n > 500), "{rejected:?}");
    println!("{} claimed tensors and {} inputs of wrong lengths rejected", rejected[0], rejected[1]);
}
