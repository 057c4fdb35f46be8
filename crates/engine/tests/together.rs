//! Sessions that run together give the bits that each gives alone, and one that fails disturbs no other.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use sworn_commit::RunParams;
use sworn_engine::{Backend, Cpu, EngineError, ExportSink, NoExports, Session, Work};
use sworn_model::{Model, SyntheticSpec, synthetic};

mod families;

/// Sometimes a synthetic model, more often one of a family.
fn any_model(seed: u64) -> (Option<tempfile::TempDir>, Arc<Model>) {
    let all = families::models();
    match all.get(seed as usize % (all.len() + 4)) {
        Some((_, model)) => (None, model.clone()),
        None => {
            let (dir, model) = model(seed);
            (Some(dir), model)
        }
    }
}

/// How session `i` selects: every other one samples where the model can.
fn parameters(i: usize, session: &mut dyn Session) {
    if i % 2 == 1 && session.set_run(families::sampled(i as u8)).is_err() {
        session.set_run(RunParams::default()).unwrap();
    }
}

fn model(seed: u64) -> (tempfile::TempDir, Arc<Model>) {
    let dir = tempfile::tempdir().unwrap();
    let spec = SyntheticSpec { seed, layers: 1 + (seed % 3) as u16, context: 256, ..SyntheticSpec::default() };
    let model = synthetic(&spec, dir.path().join("model")).unwrap();
    (dir, Arc::new(model))
}

/// Keeps everything; of a position that was executed again, what came last. Refuses a layer when told to.
#[derive(Default)]
struct Everything {
    exports: HashMap<(u16, u32), Vec<Vec<u8>>>,
    logits: HashMap<u32, Vec<i32>>,
    full_from: Option<u16>,
}

impl ExportSink for Everything {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> Result<(), EngineError> {
        if self.full_from.is_some_and(|l| layer >= l) {
            return Err(EngineError::Sink("disk full".into()));
        }
        self.exports.insert((layer, position), tensors.iter().map(|t| t.to_vec()).collect());
        Ok(())
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, position: u32, logits: &[i32]) -> Result<(), EngineError> {
        self.logits.insert(position, logits.to_vec());
        Ok(())
    }
}

/// What a round does to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Rest,
    Extend(usize),
    /// Beyond the capacity.
    TooMany,
    /// A token outside the vocabulary, after some others.
    Unknown(usize),
    /// The sink refuses this layer.
    Full(usize, u16),
    /// Goes back by so many positions first.
    Back(u32, usize),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        1 => Just(Turn::Rest),
        4 => Just(Turn::Extend(1)),
        3 => (1usize..40).prop_map(Turn::Extend),
        1 => Just(Turn::TooMany),
        1 => (0usize..5).prop_map(Turn::Unknown),
        1 => (1usize..5, 0u16..5).prop_map(|(n, l)| Turn::Full(n, l)),
        1 => (1u32..30, 1usize..20).prop_map(|(b, n)| Turn::Back(b, n)),
    ]
}

/// As many positions as the models of the families have.
const CAPACITY: u32 = 128;

struct Run {
    session: Box<dyn Session>,
    sink: Everything,
    tokens: Vec<u32>,
    selected: HashMap<u32, u32>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_sessions_gives_the_bits_that_each_gives_alone(
        seed in 0u64..1000,
        rounds in proptest::collection::vec(proptest::collection::vec(turn(), 6), 1..8),
        sessions in 1usize..=6,
        heads: u8,
        threads in 1usize..4,
    ) {
        let (_dir, model) = any_model(seed);
        let cpu = Cpu::with_threads(model.clone(), threads).unwrap();
        let vocab = model.manifest().vocab;
        let mut runs: Vec<Run> = (0..sessions)
            .map(|_| Run {
                session: cpu.session(CAPACITY).unwrap(),
                sink: Everything::default(),
                tokens: Vec::new(),
                selected: HashMap::new(),
            })
            .collect();
        runs.iter_mut().enumerate().for_each(|(i, run)| parameters(i, &mut *run.session));
        let mut next = seed;
        for round in rounds {
            let mut asked = Vec::new();
            for (run, turn) in runs.iter_mut().zip(&round) {
                let n = match *turn {
                    Turn::Rest => 0,
                    Turn::Extend(n) | Turn::Unknown(n) | Turn::Full(n, _) => n,
                    Turn::TooMany => CAPACITY as usize + 1,
                    Turn::Back(back, n) => {
                        let kept = run.session.len().saturating_sub(back);
                        run.session.truncate(kept).unwrap();
                        run.tokens.truncate(kept as usize);
                        run.selected.retain(|p, _| *p < kept);
                        n
                    }
                };
                let mut tokens: Vec<u32> = (0..n)
                    .map(|_| {
                        next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        (next >> 33) as u32 % vocab
                    })
                    .collect();
                if matches!(turn, Turn::Unknown(_)) {
                    tokens.push(vocab);
                }
                run.sink.full_from = if let Turn::Full(_, l) = turn { Some(*l) } else { None };
                // Every position's head, that of the last, or none.
                let after = run.session.len() + tokens.len() as u32;
                let head_from = [0, after.saturating_sub(1), u32::MAX][heads as usize % 3];
                asked.push((tokens, head_from));
            }
            let mut work: Vec<Work<'_>> = runs
                .iter_mut()
                .zip(&asked)
                .map(|(run, (tokens, head_from))| Work {
                    session: &mut *run.session,
                    tokens,
                    head_from: *head_from,
                    sink: &mut run.sink,
                })
                .collect();
            let results = cpu.extend_many(&mut work);
            prop_assert_eq!(results.len(), sessions);
            for (((run, turn), (tokens, head_from)), result) in runs.iter_mut().zip(&round).zip(asked).zip(results) {
                let before = run.tokens.len();
                let fits = before + tokens.len() <= CAPACITY as usize;
                let heads = if head_from == u32::MAX { 0 } else { before + tokens.len() - before.max(head_from as usize).min(before + tokens.len()) };
                match (turn, result) {
                    (Turn::Unknown(_), Err(EngineError::Token { .. })) if fits => {}
                    (Turn::Full(_, l), Err(EngineError::Sink(_))) if fits && (*l <= model.layers() || heads > 0) => {}
                    (_, Err(EngineError::Capacity { .. })) if !fits => {}
                    (_, Ok(selected)) if fits => {
                        prop_assert_eq!(selected.len(), heads);
                        let first = (before + tokens.len() - heads) as u32;
                        run.selected.extend((first..).zip(selected));
                        run.tokens.extend(tokens);
                    }
                    (turn, other) => prop_assert!(false, "{:?} gave {:?}", turn, other.map_err(|e| e.to_string())),
                }
                prop_assert_eq!(run.session.len() as usize, run.tokens.len());
            }
        }
        for (i, run) in runs.iter().enumerate() {
            let mut alone = cpu.session(CAPACITY).unwrap();
            parameters(i, &mut *alone);
            let mut want = Everything::default();
            let selected = alone.extend(&run.tokens, 0, &mut want).unwrap();
            let n = run.tokens.len() as u32;
            for layer in 0..=model.layers() {
                for p in 0..n {
                    prop_assert_eq!(&run.sink.exports[&(layer, p)], &want.exports[&(layer, p)], "{} {}", layer, p);
                }
            }
            let head = model.layers() + 1;
            for (p, token) in &run.selected {
                prop_assert_eq!(*token, selected[*p as usize]);
                prop_assert_eq!(&run.sink.exports[&(head, *p)], &want.exports[&(head, *p)]);
                prop_assert_eq!(&run.sink.logits[p], &want.logits[p]);
            }
        }
    }
}

#[test]
fn sessions_of_another_backend_run_too() {
    let (_dir, model) = model(2);
    let (a, b) = (Cpu::with_threads(model.clone(), 1).unwrap(), Cpu::with_threads(model, 2).unwrap());
    let (mut own, mut foreign) = (a.session(20).unwrap(), b.session(20).unwrap());
    let (mut s, mut t) = (NoExports, NoExports);
    let tokens = [3, 1, 4, 1, 5];
    let mut work = [
        Work { session: &mut *own, tokens: &tokens, head_from: 4, sink: &mut s },
        Work { session: &mut *foreign, tokens: &tokens, head_from: 4, sink: &mut t },
    ];
    let results: Vec<_> = a.extend_many(&mut work).into_iter().map(Result::unwrap).collect();
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0].len(), 1);
}
