//! Random lies, thousands of them: any element of any operator of any layer at any position, and a node of any kind behind it. Every one
//! ends in a slash, by the contracts themselves; and an honest node's answer, accused at a random element with a right witness, is never
//! proven wrong. `SWORN_LIES` says how many, `SWORN_SEED` where to begin.
//!
//! And any two dishonest [actors](sworn_testkit::actors) meet, `SWORN_PAIRS` times each pair, and the rules hold against both.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alloy::primitives::U256;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sworn_bindings::JobState;
use sworn_commit::witness::{self, Evidence, PartialTree};
use sworn_commit::{tensor, trace};
use sworn_isa::{Opcode, SectionKind};
use sworn_model::{Model, ModelStore, SyntheticSpec, pull, synthetic};
use sworn_testkit::actors::{Actor, Cast, Node, Shows, Trick};
use sworn_testkit::court::{Court, NODE, USER, WATCHER};
use sworn_testkit::run::{NEW, PROMPT, Run, RunInputs};
use sworn_testkit::table::{End, TURN, Table};
use sworn_testkit::tamper::{Place, operators};
use sworn_testkit::tried::{times, tried};
use sworn_watcher::game::{Kind, Target};
use sworn_watcher::solver::Demand;

const WINDOW: u64 = 400;
const REFUSED: &str = "moves against the rules, all refused";
const WHAT: &str = "late, garbled, partial or repeated answers, early timeouts, repeated demands, copied, hasty or second proofs, early or second pay, bound stake, purchases out of bounds";
/// Times that somebody may try something during a game in which nobody else does anything.
const IDLE: u32 = 4;

/// What the games have in common.
struct Stage {
    model: Arc<Model>,
    /// The honest answer.
    honest: Arc<Run>,
    opcodes: Vec<Opcode>,
}

impl Stage {
    fn synthetic(dir: &std::path::Path) -> Self {
        Self::of(synthetic(&SyntheticSpec::default(), dir.join("m")).unwrap())
    }

    fn of(model: Model) -> Self {
        let model = Arc::new(model);
        let honest = Arc::new(Run::new(&model, None, None));
        let has = |o: &Opcode| !operators(model.program(), *o).is_empty();
        let opcodes = Opcode::ALL.iter().copied().filter(has).collect();
        Stage { model, honest, opcodes }
    }

    /// A place for a lie: every opcode as likely, then every layer, then every position.
    fn place(&self, rng: &mut StdRng) -> (Opcode, Place) {
        let opcode = self.opcodes[rng.random_range(0..self.opcodes.len())];
        let all = operators(self.model.program(), opcode);
        let (kind, op) = all[rng.random_range(0..all.len())];
        let last = PROMPT + NEW - 1;
        let (layer, position) = match kind {
            SectionKind::Embedding => (0, rng.random_range(0..last)),
            SectionKind::Block => (rng.random_range(1..=self.model.layers()), rng.random_range(0..last)),
            SectionKind::Head => (self.model.layers() + 1, rng.random_range(PROMPT - 1..last)),
        };
        (opcode, Place { layer, position, op, element: None, seed: rng.random() })
    }

    /// A run with a wrong element that its commitment shows, and the honest run of the same tokens.
    fn lie(&self, rng: &mut StdRng) -> (Opcode, Place, Run, Arc<Run>) {
        loop {
            let (opcode, place) = self.place(rng);
            let run = Run::new(&self.model, Some((place, rng.random_range(0..6))), None);
            // An answer that goes on after a stop token is refused when it is submitted.
            if run.output[..run.output.len() - 1].iter().any(|t| self.model.manifest().stop_tokens.contains(t)) {
                continue;
            }
            let own = if run.output == self.honest.output {
                self.honest.clone()
            } else {
                Arc::new(Run::new(&self.model, None, Some(&run.output)))
            };
            if run.trace() != own.trace() || own.selected != run.output {
                return (opcode, place, run, own);
            }
        }
    }

    /// An honest answer, accused at a random element by a witness that is right in every word.
    fn accused(&self, tally: &mut Tally, court: &mut Court, rng: &mut StdRng, cast: &Cast) {
        let own = &self.honest;
        let (layer, row) = loop {
            let layer = rng.random_range(0..own.dims.layer_count());
            let row = rng.random_range(0..own.dims.rows(layer));
            if own.ops.contains_key(&(layer, row)) {
                break (layer, row);
            }
        };
        let position = own.dims.position(layer, row);
        let program = self.model.program();
        let section = program.section(self.model.section_kind(layer).unwrap());
        let op = rng.random_range(0..section.ops.len());
        let element = rng.random_range(0..section.ops[op].count(position)) as u32;
        let claim = witness::Claim { layer, row, op: op as u16, element };

        let mut table = Table::before(court, Node::Answers, (**own).clone());
        let before = Wealth::of(&mut table);
        tally.join_in(&mut table, rng, cast);
        let claimed = own.trace();
        let mut path = claimed.layer(layer).path(0, u64::from(row));
        path.extend(claimed.top().path(0, u64::from(layer)));
        let target = Target::op_list(layer, row);
        let node_hash = claimed.layer(layer).leaves()[row as usize];
        let demand = Demand {
            target,
            parent: None,
            node_hash,
            path,
            op_roots: Vec::new(),
            descriptor: None,
            descriptor_proof: Vec::new(),
        };
        table.demand(&demand, WATCHER);
        for _ in 0..IDLE {
            table.now += 1;
            table.others_play();
        }
        table.node_plays();
        table.meddle();

        let (op_roots, ops) = (own.op_roots(layer, row), &own.ops[&(layer, row)]);
        let partial = |l: u16| PartialTree::new(claimed.layer(l).clone());
        let (top, rows) = (PartialTree::new(claimed.top().clone()), partial(layer));
        let previous = partial(layer.saturating_sub(1));
        let pages = PartialTree::new(tensor::tensor_tree(&ops[op]));
        let inputs = RunInputs { run: own.clone(), layer, position };
        let evidence = Evidence {
            program,
            dims: own.dims,
            top: &top,
            previous_rows: &previous,
            rows: &rows,
            op_roots: &op_roots,
            ops,
            claimed: &ops[op],
            claimed_pages: &pages,
            inputs: &inputs,
            hint: rng.random_range(0..self.model.manifest().vocab),
        };
        assert_eq!(trace::leaf(&roots(own, layer, row)), node_hash);
        let hearing = table.hearing().unwrap();
        // Some claims cannot even be written down: there is nothing to accuse then.
        if let Ok(proof) = witness::build(claim, &evidence) {
            let believed = hearing.accuse(claim, &proof.witness);
            assert!(believed.is_err(), "an honest {claim:?} was proven wrong");
        }
        assert_eq!(hearing.state(), JobState::Submitted);
        table.node_plays();
        table.hearing().unwrap().finalize();
        before.holds(&mut table, cast);
        tally.leave(&mut table);
    }
}

/// What the parties have, all told.
#[derive(Clone, Copy)]
struct Wealth {
    user: U256,
    node: U256,
    watcher: U256,
    bond: u128,
}

impl Wealth {
    /// Once the job is bought and answered.
    fn of(table: &mut Table) -> Self {
        let hearing = table.hearing().unwrap();
        let bond = hearing.locked();
        let (user, node, watcher) = (hearing.wealth(USER), hearing.wealth(NODE), hearing.wealth(WATCHER));
        Wealth { user, node, watcher, bond }
    }

    /// The rules that hold against everybody, at the end of a game.
    fn holds(&self, table: &mut Table, cast: &Cast) {
        let hearing = table.hearing().unwrap();
        let lies = cast.liar.is_some();
        assert_eq!(hearing.state(), if lies { JobState::Slashed } else { JobState::Final });
        hearing.conserved();
        assert_eq!(hearing.locked(), 0, "a bond is still bound");
        let now = Wealth::of(table);
        if lies {
            // What others pay it for demands is a thousandth of what it loses.
            assert!(now.node < self.node - U256::from(self.bond / 2), "a liar lost less than half of its bond");
            // A flooder whose demand is not answered has the reward: it spends the user's money here.
            assert!(cast.flooded || now.watcher > self.watcher, "who proved a lie has not gained");
            assert!(cast.flooded || now.user > self.user, "who was lied to has nothing for it");
        } else {
            assert!(now.node > self.node, "an honest node is not paid");
            assert!(now.watcher <= self.watcher, "who accused falsely has gained");
        }
    }
}

fn roots(run: &Run, layer: u16, row: u32) -> Vec<sworn_commit::Hash> {
    run.exports(layer, row).iter().map(|t| tensor::tensor_root(t)).collect()
}

/// What the games of one thread came to.
#[derive(Default)]
struct Tally {
    gas: Vec<u64>,
    answers: Vec<u32>,
    timeouts: u64,
    accomplices: u64,
    refused: u64,
    tricks: BTreeSet<Trick>,
    layers: BTreeSet<u16>,
    positions: BTreeSet<u32>,
    opcodes: BTreeSet<Opcode>,
    failed: Vec<u64>,
}

impl Tally {
    /// A cast as chance has it, of which everybody who is no node is one.
    fn any_liar(rng: &mut StdRng) -> Cast {
        let silent = [Node::Silent, Node::AnswersUpTo(Kind::Layers), Node::AnswersUpTo(Kind::OpList)];
        let shown = |shown: bool| if shown { Shows::Committed } else { Shows::Nothing };
        let liar = match rng.random_range(0..10) {
            0..5 => (Node::Answers, Shows::Committed),
            5..8 => (Node::Answers, Shows::Nothing),
            _ => (silent[rng.random_range(0..3)], shown(rng.random())),
        };
        Cast { liar: Some(liar), flooded: rng.random(), tricks: Trick::ALL.to_vec() }
    }

    fn join_in(&mut self, table: &mut Table, rng: &mut StdRng, cast: &Cast) {
        table.hearing().unwrap().meddled(rng.random(), &cast.tricks);
        if cast.flooded {
            table.accomplice = Some(StdRng::seed_from_u64(rng.random()));
            self.accomplices += 1;
        }
    }

    fn leave(&mut self, table: &mut Table) {
        let hearing = table.hearing().unwrap();
        self.refused += hearing.refused;
        self.tricks.extend(&hearing.tried);
    }

    /// One lie, from its place to the slash.
    fn play(&mut self, stage: &Stage, court: &mut Court, rng: &mut StdRng, cast: &Cast) {
        let (opcode, place, run, own) = stage.lie(rng);
        let (node, shows) = cast.liar.unwrap();
        let shown = match shows {
            Shows::Committed => Some(run.clone()),
            Shows::Nothing => None,
            Shows::Another => Some((*own).clone()),
        };
        let mut table = Table::before(court, node, run);
        let before = Wealth::of(&mut table);
        self.join_in(&mut table, rng, cast);
        match (table.play(&own, shown.as_ref()), node) {
            (End::Proven { opcode: proven, layer, .. }, _) => {
                assert_eq!((proven, layer), (opcode, place.layer), "{place:?}");
            }
            (End::Timeout(_), Node::Silent | Node::AnswersUpTo(_)) => self.timeouts += 1,
            (end, _) => panic!("{opcode} at {place:?}: {end:?}"),
        }
        before.holds(&mut table, cast);
        self.leave(&mut table);
        let hearing = table.hearing().unwrap();
        self.gas.push(hearing.gas);
        self.answers.push(hearing.answers);
        self.layers.insert(place.layer);
        self.positions.insert(place.position);
        self.opcodes.insert(opcode);
    }

    fn join(&mut self, other: Tally) {
        self.gas.extend(other.gas);
        self.answers.extend(other.answers);
        self.timeouts += other.timeouts;
        self.accomplices += other.accomplices;
        self.refused += other.refused;
        self.tricks.extend(other.tricks);
        self.layers.extend(other.layers);
        self.positions.extend(other.positions);
        self.opcodes.extend(other.opcodes);
        self.failed.extend(other.failed);
    }
}

/// Plays `count` games on every core; each has a number from which all its choices follow.
fn games(count: u64, game: impl Fn(&mut Tally, u64, &mut Court, &mut StdRng) + Sync, stage: &Stage) -> Tally {
    let (next, seed) = (AtomicU64::new(0), times("SWORN_SEED", 1));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    std::thread::scope(|scope| {
        let play = || {
            let mut tally = Tally::default();
            let fresh = || {
                let mut court = Court::new(WINDOW, TURN);
                court.register(&stage.model);
                court
            };
            let mut court = fresh();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return tally;
                }
                let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1 << 32).wrapping_add(n));
                if catch_unwind(AssertUnwindSafe(|| game(&mut tally, n, &mut court, &mut rng))).is_err() {
                    tally.failed.push(n);
                    court = fresh();
                }
            }
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(play)).collect();
        let mut tally = Tally::default();
        all.into_iter().for_each(|t| tally.join(t.join().unwrap()));
        tally
    })
}

/// Plays lies and tells what they came to.
fn all_slashed(what: &str, stage: &Stage, count: u64) -> Tally {
    let play = |tally: &mut Tally, _, court: &mut Court, rng: &mut StdRng| {
        let cast = Tally::any_liar(rng);
        tally.play(stage, court, rng, &cast);
    };
    let mut t = games(count, play, stage);
    t.gas.sort_unstable();
    t.answers.sort_unstable();
    let of = |v: &[u64], at: usize| v.get(at).copied().unwrap_or_default();
    let (middle, worst) = (of(&t.gas, t.gas.len() / 2), of(&t.gas, t.gas.len().saturating_sub(1)));
    let figures = format!(
        "{} opcodes, {} layers, {} positions, {} by timeout, {} beside an accomplice who floods; challenger's gas {middle} median, {worst} worst; node's answers {} median, {} worst",
        t.opcodes.len(),
        t.layers.len(),
        t.positions.len(),
        t.timeouts,
        t.accomplices,
        t.answers.get(t.answers.len() / 2).copied().unwrap_or_default(),
        t.answers.last().copied().unwrap_or_default(),
    );
    tried(REFUSED, t.refused, 0, WHAT);
    tried(what, count, t.failed.len() as u64, figures);
    assert!(t.failed.is_empty(), "games {:?}: SWORN_SEED and SWORN_LIES play them again", t.failed);
    assert_eq!(t.gas.len() as u64, count);
    // What bonds are sized by: `CHALLENGE_GAS` of script/Deploy.s.sol, which is for the deepest challenge.
    assert!(worst <= 3_000_000, "a challenge of {worst} gas");
    t
}

#[test]
fn every_random_lie_is_slashed() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::synthetic(dir.path());
    let t = all_slashed("random lies, all slashed", &stage, times("SWORN_LIES", 10_000));
    assert_eq!(t.opcodes.len(), stage.opcodes.len(), "{:?}", t.opcodes);
    assert_eq!(t.layers.len(), usize::from(stage.honest.dims.layer_count()));
}

/// The same about a real model, fetched if it is not on this machine.
#[test]
fn every_random_lie_about_smollm2_is_slashed() {
    let home = ModelStore::from_env().unwrap().home().to_owned();
    let stage = Stage::of(pull("smollm2-135m", home, &mut |_| {}).unwrap());
    all_slashed("random lies about SmolLM2, all slashed", &stage, times("SWORN_LIES", 10_000).div_ceil(50));
}

#[test]
fn no_honest_answer_is_proven_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::synthetic(dir.path());
    let count = times("SWORN_LIES", 10_000);
    let cast = Cast { liar: None, flooded: false, tricks: Trick::ALL.to_vec() };
    let t = games(count, |tally, _, court, rng| stage.accused(tally, court, rng, &cast), &stage);
    tried(REFUSED, t.refused, 0, WHAT);
    tried("honest answers accused, none slashed", count, t.failed.len() as u64, "one random element each");
    assert!(t.failed.is_empty(), "games {:?}", t.failed);
}

/// Every pair of the adversary table, and each of it with itself.
#[test]
fn any_two_dishonest_actors_meet() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::synthetic(dir.path());
    let (all, times) = (Actor::all(), times("SWORN_PAIRS", 4));
    let pairs: Vec<_> =
        (0..all.len()).flat_map(|a| (a..all.len()).map(move |b| (a, b))).map(|(a, b)| [all[a], all[b]]).collect();
    let game = |tally: &mut Tally, n: u64, court: &mut Court, rng: &mut StdRng| {
        let pair = pairs[n as usize % pairs.len()];
        // Of two liars each has its turn.
        let casts = match pair {
            [Actor::Liar(..), Actor::Liar(..)] => vec![Cast::of(&pair[..1]), Cast::of(&pair[1..])],
            _ => vec![Cast::of(&pair)],
        };
        for cast in casts {
            match cast.liar {
                Some(_) => tally.play(&stage, court, rng, &cast),
                None => stage.accused(tally, court, rng, &cast),
            }
        }
    };
    let count = pairs.len() as u64 * times;
    let t = games(count, game, &stage);
    let failed: Vec<String> = t
        .failed
        .iter()
        .map(|n| {
            let [a, b] = pairs[*n as usize % pairs.len()];
            format!("game {n}: {a} and {b}")
        })
        .collect();
    let figures = format!(
        "{} actors, {} tricks refused {} times, {} lies slashed",
        all.len(),
        t.tricks.len(),
        t.refused,
        t.gas.len()
    );
    tried("pairs of dishonest actors, every rule held against both", count, failed.len() as u64, figures);
    assert!(failed.is_empty(), "{failed:#?}");
    let never: Vec<_> = Trick::ALL.iter().filter(|trick| !t.tricks.contains(trick)).collect();
    assert!(never.is_empty(), "never tried: {never:?}");
}
