//! Every family's program, imported, run and sampled: whatever operator of it is lied about, the watcher's solver finds the
//! wrong element and the contract's judge confirms it.
#![allow(clippy::print_stdout, reason = "the counts are the report")]

use std::collections::BTreeSet;
use std::sync::Arc;

use alloy::primitives::{Address, I256};
use sworn_bindings::{Claim, IStepVerifier, ModelShape, TraceContext, Witness};
use sworn_commit::{RunParams, TraceDims, TraceTree, sequence, tensor};
use sworn_engine::{Backend, Cpu, Request, generate, replay};
use sworn_isa::sampling::Q12_ONE;
use sworn_isa::{Opcode, Sampling};
use sworn_model::{ImportOptions, import};
use sworn_testkit::court::Court;
use sworn_testkit::tamper::{self, Wanted};
use sworn_watcher::Executor;
use sworn_watcher::game::{Game, Kind, Opening, OpeningState};
use sworn_watcher::solver::{self, Accusation, Asked, Clock, Learned, Move};

#[allow(dead_code, reason = "shared with the model crate's tests")]
#[path = "../../model/tests/support/hf_directory.rs"]
mod hf_directory;

const FAMILIES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"];
/// What a transaction may cost.
const GAS: u64 = 1 << 24;
/// Beyond the tests' clock.
const LATE: u64 = 1_000;

/// A small model of a family that samples.
fn family(name: &str, dir: &std::path::Path) -> Cpu {
    let files = dir.join(name);
    std::fs::create_dir(&files).unwrap();
    hf_directory::model(name, true).write(&files, 1);
    let options = ImportOptions { sampling: true, ..ImportOptions::default() };
    let model = import(&files, dir.join(format!("{name}-model")), &options, &mut |_| {}).unwrap();
    Cpu::with_threads(Arc::new(model), 1).unwrap()
}

/// Every parameter in use.
fn sampled(seed: u8) -> RunParams {
    let sampling = Sampling {
        inverse_temperature: Q12_ONE * 5 / 4,
        top_k: 40,
        top_p: 60_000,
        min_distance: 4 << 14,
        penalty: Q12_ONE * 11 / 10,
    };
    RunParams { sampling, seed: [seed; 32] }
}

/// What a node committed to.
struct Story {
    tokens: Vec<u32>,
    tree: TraceTree,
    /// Repeats its run.
    cpu: Cpu,
}

/// The solver against a node that serves and answers all of its story; `None` if it finds nothing wrong.
fn accuse(executor: &Executor, prompt: &[u32], run: &RunParams, story: &Story) -> Option<Accusation> {
    let program = executor.model().program();
    let dims = dims(executor, prompt, story);
    let ops = |layer, row| replay(&story.cpu, prompt, &story.tokens, run, layer, row).unwrap().ops.clone();
    let (mut own, _) = executor.audit(prompt, &story.tokens, run).unwrap();
    let mut game = Game::new(dims, story.tree.layers_root(), LATE);
    let mut learned = Learned::default();
    for _ in 0..16 {
        match solver::next(&game, program, &own, &learned, Clock { now: 0, margin: 0 }) {
            Move::NodeIsRight => return None,
            Move::Accuse(accusation) => return Some(*accusation),
            Move::FetchTrace => learned.trace = Asked::Got(story.tree.clone()),
            Move::Replay(layer, row) => {
                let replay = executor.replay(prompt, &story.tokens, run, (layer, row), &own.trace).unwrap();
                own.replays.insert((layer, row), replay);
            }
            Move::FetchTensor { at: (layer, row, op), .. } => {
                let claimed = ops(layer, row).swap_remove(op as usize);
                learned.tensors.insert((layer, row, op), Asked::Got(claimed));
            }
            Move::Demand(d) => {
                assert_eq!(d.target.kind, Kind::OpList, "the trace was served");
                let list = ops(d.target.layer, d.target.row);
                let data = list.iter().map(|t| tensor::tensor_root(t)).collect::<Vec<_>>().concat();
                let state = OpeningState::Answered { turn_end: LATE, data };
                game.openings.insert(d.target, Opening { payer: Address::ZERO, depth: 1, state });
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the solver does not come to an end");
}

fn dims(executor: &Executor, prompt: &[u32], story: &Story) -> TraceDims {
    let layers = executor.model().layers();
    TraceDims { layers, n_in: prompt.len() as u32, n_out: story.tokens.len() as u32 }
}

/// Has the contract confirm an accusation.
fn convict(court: &mut Court, executor: &Executor, prompt: &[u32], run: &RunParams, story: &Story, a: &Accusation) {
    let model = executor.model();
    let (input, output) = (sequence::hash(prompt), sequence::hash(&story.tokens));
    let call = IStepVerifier::judgeCall {
        trace: TraceContext::new(&dims(executor, prompt, story), story.tree.layers_root(), input, output, run),
        model: ModelShape::of(model.manifest(), model.program()),
        claim: Claim::from(a.claim),
        witness: Witness::from(&a.proof.witness),
    };
    let (claimed, computed) = court.judge(&call, GAS).expect("the verifier accepts the witness");
    assert_ne!(claimed, computed, "{}", a.opcode);
    assert_eq!(computed, I256::try_from(a.proof.computed).unwrap(), "{}", a.opcode);
    assert_eq!(claimed, I256::try_from(a.proof.claimed).unwrap(), "{}", a.opcode);
}

#[test]
fn every_operator_of_every_family_can_be_convicted() {
    let mut court = Court::new(600, 60);
    let dir = tempfile::tempdir().unwrap();
    let mut convicted = BTreeSet::new();
    let mut programs = BTreeSet::new();
    for (f, name) in FAMILIES.into_iter().enumerate() {
        let cpu = family(name, dir.path());
        let executor = Executor::new(Arc::new(cpu.clone())).unwrap();
        let prompt: Vec<u32> = (0..27).map(|i| 3 + (i * 31 + f as u32) % 250).collect();
        let run = sampled(f as u8);
        let stop = &cpu.model().manifest().stop_tokens;
        let request = Request { prompt: &prompt, max_new: 5, stop, run, cancel: None };

        let honest = generate(&cpu, &request, &mut |_| {}).unwrap();
        let story = Story { tokens: honest.tokens, tree: honest.trace.tree, cpu: cpu.clone() };
        assert_eq!(accuse(&executor, &prompt, &run, &story), None, "{name}");
        let own = executor.audit(&prompt, &story.tokens, &run).unwrap().0;
        executor.self_check(&prompt, &story.tokens, &run, &own.trace, &own.selected).unwrap();

        let sections = &cpu.model().program().sections;
        let opcodes: BTreeSet<u8> = sections.iter().flat_map(|s| &s.ops).map(|d| d.opcode as u8).collect();
        programs.extend(&opcodes);
        let mut proofs = 0;
        for opcode in Opcode::ALL.iter().filter(|o| opcodes.contains(&(**o as u8))) {
            // A lie that changes nothing that is exported, such as a cut that cuts no deeper than another one, is none.
            let tries =
                (0..4).find_map(|i| tamper::lie(&cpu, &request, *opcode, Wanted::default(), 7 * i + f as u64).ok());
            let Some(lie) = tries else {
                println!("{name}: no lie about {opcode} left a trace");
                continue;
            };
            let story = Story { tokens: lie.generation.tokens, tree: lie.generation.trace.tree, cpu: lie.cpu };
            let accusation = accuse(&executor, &prompt, &run, &story).unwrap();
            assert_eq!(accusation.opcode, *opcode, "{name}");
            convict(&mut court, &executor, &prompt, &run, &story, &accusation);
            convicted.insert(*opcode as u8);
            proofs += 1;
        }
        println!("{name}: {proofs} of {} opcodes convicted", opcodes.len());
    }
    assert_eq!(convicted, programs);
}

/// A right trace of tokens that the draw would not have given: other noise, or a token that a cut excludes.
#[test]
fn a_token_that_was_not_drawn_is_convicted() {
    let mut court = Court::new(600, 60);
    let dir = tempfile::tempdir().unwrap();
    let cpu = family("qwen3", dir.path());
    let executor = Executor::new(Arc::new(cpu.clone())).unwrap();
    let prompt: Vec<u32> = (0..12).map(|i| 5 + i * 17 % 200).collect();
    let run = sampled(1);
    let request = |run| Request { prompt: &prompt, max_new: 8, stop: &[], run, cancel: None };
    let right = generate(&cpu, &request(run), &mut |_| {}).unwrap().tokens;
    let others = [sampled(2), RunParams::default()];
    let mut lies: Vec<Vec<u32>> = others.map(|r| generate(&cpu, &request(r), &mut |_| {}).unwrap().tokens).to_vec();
    for at in 0..right.len() {
        let mut tokens = right.clone();
        tokens[at] = (tokens[at] + 1 + at as u32) % cpu.model().manifest().vocab;
        lies.push(tokens);
    }
    for tokens in lies {
        assert_ne!(tokens, right);
        let wrong = tokens.iter().zip(&right).position(|(a, b)| a != b).unwrap();
        // The commitment of an honest pass over these tokens.
        let (own, _) = executor.audit(&prompt, &tokens, &run).unwrap();
        let story = Story { tokens, tree: own.trace, cpu: cpu.clone() };
        let accusation = accuse(&executor, &prompt, &run, &story).unwrap();
        assert_eq!((accusation.opcode, accusation.claim.row), (Opcode::Sample, wrong as u32));
        convict(&mut court, &executor, &prompt, &run, &story, &accusation);
    }
}
