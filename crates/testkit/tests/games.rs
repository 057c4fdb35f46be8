//! Whole challenges in memory: the solver against every kind of node, with the rules of `Challenges` enforced by a table.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use alloy::primitives::Address;
use sworn_commit::witness::Inputs;
use sworn_commit::{Hash, TraceDims, TraceTree, tensor, trace, tree};
use sworn_engine::{Backend, Cpu, NoExports, OpHook, OpTensor};
use sworn_isa::{Opcode, SectionKind};
use sworn_model::{Model, SyntheticSpec, synthetic};
use sworn_testkit::tamper::{self, Place};
use sworn_watcher::game::{Game, Kind, MAX_DEPTH, Opening, OpeningState, Target};
use sworn_watcher::solver::{self, Asked, Clock, Demand, Learned, Move, Own, Replay};

const PROMPT: u32 = 45;
const NEW: u32 = 8;
const NODE_TURN: u64 = 20;
const CHALLENGER_TURN: u64 = 20;

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap().keep();
            Arc::new(synthetic(&SyntheticSpec::default(), dir.join("m")).unwrap())
        })
        .clone()
}

type Captured = HashMap<(u16, u32), Vec<Vec<u8>>>;

/// Keeps every operator's output, after the hook that tampers.
struct Capture {
    into: Arc<Mutex<Captured>>,
    lie: Option<Box<dyn OpHook>>,
}

impl OpHook for Capture {
    fn after(&mut self, layer: u16, position: u32, op: usize, out: &mut OpTensor) {
        if let Some(lie) = self.lie.as_mut().filter(|l| l.wants(layer, position)) {
            lie.after(layer, position, op, out);
        }
        let mut all = self.into.lock().unwrap();
        let ops = all.entry((layer, position)).or_default();
        assert_eq!(ops.len(), op);
        ops.push(out.bytes());
    }
}

/// A run with every operator's output.
#[derive(Clone)]
struct Run {
    model: Arc<Model>,
    dims: TraceDims,
    prompt: Vec<u32>,
    output: Vec<u32>,
    selected: Vec<u32>,
    /// by (layer, row)
    ops: Captured,
    leaves: Vec<Vec<Hash>>,
}

impl Run {
    /// Generates, or follows `output`.
    fn new(lie: Option<(Place, u32)>, output: Option<&[u32]>) -> Self {
        let model = model();
        let into = Arc::new(Mutex::new(Captured::new()));
        let inner = into.clone();
        let model_ = model.clone();
        let hook = Arc::new(move || {
            let lie = lie.and_then(|(place, attempt)| tamper::hook(&model_, place, attempt));
            Box::new(Capture { into: inner.clone(), lie }) as Box<dyn OpHook>
        });
        let cpu = Cpu::with_threads(model.clone(), 1).unwrap().with_hook(hook);
        let prompt: Vec<u32> = (0..PROMPT).map(|i| 3 + i * 7 % 300).collect();
        let mut session = cpu.session(256).unwrap();
        let mut selected = session.extend(&prompt, PROMPT - 1, &mut NoExports).unwrap();
        let mut out = Vec::new();
        for i in 0..NEW as usize {
            let next = output.map_or(selected[i], |o| o[i]);
            out.push(next);
            if i + 1 < NEW as usize {
                selected.extend(session.extend(&[next], 0, &mut NoExports).unwrap());
            }
        }
        let dims = TraceDims { layers: model.layers(), n_in: PROMPT, n_out: NEW };
        let ops: Captured =
            into.lock().unwrap().drain().filter_map(|((l, p), v)| Some(((l, dims.row(l, p)?), v))).collect();
        let mut run = Run { model, dims, prompt, output: out, selected, ops, leaves: Vec::new() };
        run.leaves = (0..dims.layer_count()).map(|l| (0..dims.rows(l)).map(|r| run.leaf(l, r)).collect()).collect();
        run
    }

    fn leaf(&self, layer: u16, row: u32) -> Hash {
        let roots: Vec<_> = self.exports(layer, row).iter().map(|t| tensor::tensor_root(t)).collect();
        trace::leaf(&roots)
    }

    fn exports(&self, layer: u16, row: u32) -> Vec<Vec<u8>> {
        let section = self.model.program().section(self.model.section_kind(layer).unwrap());
        section.exports().iter().map(|k| self.ops[&(layer, row)][*k].clone()).collect()
    }

    fn trace(&self) -> TraceTree {
        TraceTree::new(self.leaves.clone())
    }

    fn op_roots(&self, layer: u16, row: u32) -> Vec<Hash> {
        self.ops[&(layer, row)].iter().map(|t| tensor::tensor_root(t)).collect()
    }
}

struct RunInputs {
    run: Arc<Run>,
    layer: u16,
    position: u32,
}

impl Inputs for RunInputs {
    fn previous(&self) -> Vec<Vec<u8>> {
        self.run.exports(self.layer - 1, self.position)
    }
    fn cached(&self, position: u32) -> Vec<Vec<u8>> {
        self.run.exports(self.layer, position)
    }
    fn weight_row(&self, matrix: u32, row: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        let m = &self.run.model;
        let mut path = m.row_tree(matrix as usize).path(0, row as u64);
        path.extend(m.weights_tree().path(0, matrix as u64));
        Some((m.weight(matrix as usize).row(row as usize).to_vec(), path))
    }
    fn table(&self, table: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        let m = &self.run.model;
        Some((m.table(table as usize).bytes.clone(), m.tables_tree().path(0, table as u64)))
    }
    fn prompt(&self) -> &[u32] {
        &self.run.prompt
    }
    fn output(&self) -> &[u32] {
        &self.run.output
    }
}

/// How a node plays.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    /// answers everything
    Answers,
    /// answers openings up to this depth of the descent
    AnswersUpTo(Kind),
    /// answers nothing
    Silent,
}

#[derive(Debug, PartialEq)]
enum End {
    Right,
    Timeout(Target),
    Proven { opcode: Opcode, layer: u16, row: u32, element: u32, claimed: i64, computed: i64 },
}

/// The chain: checks each move as the contract does.
struct Table {
    node: Node,
    claimed: Arc<Run>,
    /// (layer, row) → another operator list than the run's, as far as the leaf allows
    other_lists: HashMap<(u16, u32), Vec<Hash>>,
    trace: TraceTree,
    game: Game,
    now: u64,
    /// The node answers nothing before.
    answers_from: u64,
    demands: u32,
    lowered: u32,
}

impl Table {
    fn new(node: Node, claimed: Run, window: u64) -> Self {
        let trace = claimed.trace();
        let game = Game::new(claimed.dims, trace.layers_root(), window);
        let claimed = Arc::new(claimed);
        Table {
            node,
            claimed,
            other_lists: HashMap::new(),
            trace,
            game,
            now: 0,
            answers_from: 0,
            demands: 0,
            lowered: 0,
        }
    }

    fn list(&self, layer: u16, row: u32) -> Vec<Hash> {
        self.other_lists.get(&(layer, row)).cloned().unwrap_or_else(|| self.claimed.op_roots(layer, row))
    }

    /// The contract's checks of a demand, written against the protocol's page.
    fn demand(&mut self, d: &Demand, payer: Address) {
        let depth = match d.parent {
            None => {
                assert!(self.now <= self.game.window_end, "a demand without a parent after the window");
                1
            }
            Some(p) => {
                let o = &self.game.openings[&p];
                let OpeningState::Answered { turn_end, .. } = o.state else { panic!("parent is not answered") };
                assert!(self.now <= turn_end && p.rank() < d.target.rank(), "{:?} under {p:?}", d.target);
                o.depth + 1
            }
        };
        assert!(depth <= MAX_DEPTH);
        if let Some(o) = self.game.openings.get_mut(&d.target) {
            assert!(depth < o.depth, "demanded again without need: {:?}", d.target);
            o.depth = depth;
            self.lowered += 1;
            return;
        }
        let dims = self.game.dims;
        let t = d.target;
        let top_depth = tree::depth(dims.layer_count() as u64);
        let climb = |depth: u32, index: u64, leaf: Hash, path: &[Hash]| {
            let (root, used) = tree::range_root(&[leaf], index, depth, path).unwrap();
            (root, path[used..].to_vec())
        };
        let layer_up = |root: Hash, rest: &[Hash]| {
            let (root, rest) = climb(top_depth, t.layer as u64, root, rest);
            assert!(rest.is_empty());
            root
        };
        let (root, expected) = match t.kind {
            Kind::Layers => {
                let (root, rest) = climb(top_depth - t.level as u32, t.index as u64, d.node_hash, &d.path);
                assert!(rest.is_empty() && t.level > 0);
                (root, self.game.layers_root)
            }
            Kind::Positions => {
                let depth = trace::rows_depth(dims.rows(t.layer)) - t.level as u32;
                let (root, rest) = climb(depth, t.index as u64, d.node_hash, &d.path);
                assert!(t.level > 0);
                (layer_up(root, &rest), self.game.layers_root)
            }
            Kind::OpList => {
                let (root, rest) = climb(trace::rows_depth(dims.rows(t.layer)), t.row as u64, d.node_hash, &d.path);
                (layer_up(root, &rest), self.game.layers_root)
            }
            Kind::Pages | Kind::Page => {
                let posted = self.game.hashes(&Target::op_list(t.layer, t.row)).expect("the list is open");
                assert_eq!(posted, d.op_roots);
                let descriptor = d.descriptor.unwrap();
                let bytes = descriptor.bytes(dims.position(t.layer, t.row));
                let (root, rest) = climb(tensor::depth(bytes) - t.level as u32, t.index as u64, d.node_hash, &d.path);
                assert!(rest.is_empty());
                (root, posted[t.op as usize])
            }
            Kind::Tokens => panic!("the tokens of a job are on chain"),
        };
        assert_eq!(root, expected, "{t:?}");
        self.demands += 1;
        let state = OpeningState::Demanded { deadline: self.now + NODE_TURN };
        self.game.openings.insert(t, Opening { payer, depth, state });
    }

    /// The node answers what it can and wants to.
    fn node_plays(&mut self) {
        let open = self.game.openings.iter().filter(|(_, o)| matches!(o.state, OpeningState::Demanded { .. }));
        let open: Vec<_> = open.map(|(t, _)| *t).collect();
        for t in open {
            let willing = match self.node {
                Node::Answers => true,
                Node::AnswersUpTo(kind) => t.kind <= kind,
                Node::Silent => false,
            };
            let data = match t.kind {
                _ if !willing || self.now < self.answers_from => None,
                Kind::Layers => Some(self.trace.top().descendants(t.level as u32, t.index as u64).concat()),
                Kind::Positions => Some(self.trace.layer(t.layer).descendants(t.level as u32, t.index as u64).concat()),
                // A leaf that is no hash of operator roots has no answer.
                Kind::OpList => (self.claimed.leaf(t.layer, t.row)
                    == self.trace.layer(t.layer).leaves()[t.row as usize])
                    .then(|| self.list(t.layer, t.row).concat()),
                Kind::Tokens => None,
                Kind::Pages | Kind::Page => {
                    let bytes = &self.claimed.ops[&(t.layer, t.row)][t.op as usize];
                    // A root that is no tensor's has no answer.
                    (tensor::tensor_root(bytes) == self.list(t.layer, t.row)[t.op as usize]).then(|| match t.kind {
                        Kind::Pages => tensor::tensor_tree(bytes).descendants(t.level as u32, t.index as u64).concat(),
                        _ => bytes.chunks(tensor::PAGE).nth(t.index as usize).unwrap().to_vec(),
                    })
                }
            };
            if let Some(data) = data {
                let turn_end = self.now + CHALLENGER_TURN;
                self.game.openings.get_mut(&t).unwrap().state = OpeningState::Answered { turn_end, data };
            }
        }
    }

    /// Whether the contract would let the job become final.
    fn could_finalise(&self) -> bool {
        self.now > self.game.window_end
            && self.game.openings.values().all(|o| match o.state {
                OpeningState::Demanded { .. } => false,
                OpeningState::Answered { turn_end, .. } => self.now > turn_end,
            })
    }

    /// Plays to the end. `serves`: the node's HTTP side.
    fn play(&mut self, own: &Arc<Run>, serves: Option<&Run>) -> End {
        let mut mine = Own {
            trace: own.trace(),
            selected: own.selected.clone(),
            output: own.output.clone(),
            replays: HashMap::new(),
        };
        let mut learned = Learned::default();
        for _ in 0..400 {
            let clock = Clock { now: self.now, margin: 2 };
            let m = solver::next(&self.game, own.model.program(), &mine, &learned, clock);
            match m {
                Move::NodeIsRight => return End::Right,
                Move::FetchTrace => {
                    let t = serves.map(Run::trace).filter(|t| t.layers_root() == self.game.layers_root);
                    learned.trace = t.map_or(Asked::Refused, Asked::Got);
                    continue;
                }
                Move::Replay(layer, row) => {
                    let position = own.dims.position(layer, row);
                    let inputs = Box::new(RunInputs { run: own.clone(), layer, position });
                    mine.replays.insert((layer, row), Replay { ops: own.ops[&(layer, row)].clone(), inputs });
                    continue;
                }
                Move::FetchTensor { at, root, len } => {
                    let t = serves.map(|s| s.ops[&(at.0, at.1)][at.2 as usize].clone());
                    let t = t.filter(|t| tensor::tensor_root(t) == root && t.len() == len);
                    learned.tensors.insert(at, t.map_or(Asked::Refused, Asked::Got));
                    continue;
                }
                Move::Demand(d) => self.demand(&d, Address::ZERO),
                Move::Wait(until) => self.now = self.now.max(until.min(self.now + 5)),
                Move::Timeout(t) => {
                    let OpeningState::Demanded { deadline } = self.game.openings[&t].state else { panic!("answered") };
                    assert!(self.now > deadline);
                    return End::Timeout(t);
                }
                Move::Accuse(a) => {
                    let c = a.claim;
                    let at = (c.layer, c.row);
                    // The claim is about what was committed, and the value is the honest one.
                    let posted = self.game.hashes(&Target::op_list(c.layer, c.row)).expect("the list is open");
                    assert_eq!(posted, a.proof.witness.op_roots);
                    let d = own.model.program().section(own.model.section_kind(c.layer).unwrap()).ops[c.op as usize];
                    let value = |run: &Run| {
                        d.dtype.decode(&run.ops[&at][c.op as usize][c.element as usize * d.dtype.width()..])
                    };
                    assert_eq!(a.proof.claimed, value(&self.claimed));
                    if d.opcode != Opcode::Select {
                        assert_eq!(a.proof.computed, value(own));
                    }
                    return End::Proven {
                        opcode: a.opcode,
                        layer: c.layer,
                        row: c.row,
                        element: c.element,
                        claimed: a.proof.claimed,
                        computed: a.proof.computed,
                    };
                }
                Move::TooLate => panic!("too late at {}", self.now),
                Move::Broken(why) => panic!("{why}"),
            }
            self.now += 2;
            self.node_plays();
            assert!(!self.could_finalise(), "a fraudulent job could become final at {}", self.now);
        }
        panic!("the game does not end")
    }
}

/// A run with a wrong element of `opcode` that its commitment shows.
fn lying(opcode: Opcode, layer: u16, position: u32) -> Run {
    let model = model();
    let (kind, op) = tamper::operators(model.program(), opcode)[0];
    let (layer, position) = match kind {
        SectionKind::Embedding => (0, position),
        SectionKind::Block => (layer, position),
        SectionKind::Head => (model.layers() + 1, position.max(PROMPT)),
    };
    for seed in 0..20 {
        let run = Run::new(Some((Place { layer, position, op, element: None, seed }, seed as u32 / 2)), None);
        let honest = honest(&run);
        if run.trace() != honest.trace() || honest.selected != run.output {
            return run;
        }
    }
    panic!("no wrong element of {opcode} shows")
}

/// The same tokens, honestly.
fn honest(run: &Run) -> Arc<Run> {
    Arc::new(Run::new(None, Some(&run.output)))
}

#[test]
fn every_opcode_by_both_paths() {
    // Those of other families' programs: tests/families.rs.
    let has = |o: &&Opcode| !tamper::operators(model().program(), **o).is_empty();
    for opcode in Opcode::ALL.iter().filter(has) {
        let liar = lying(*opcode, 2, 47);
        let own = honest(&liar);
        let mut ends = Vec::new();
        // Served; interactive; interactive with a window that closes after the first demand.
        for (serves, window) in [(true, 1000), (false, 1000), (false, 3)] {
            let mut table = Table::new(Node::Answers, liar.clone(), window);
            let end = table.play(&own, serves.then_some(&liar));
            let End::Proven { opcode: at, .. } = end else { panic!("{opcode}: {end:?}") };
            assert_eq!(at, *opcode);
            assert_eq!(table.demands, if serves { 1 } else { table.demands });
            assert!(table.demands <= 8);
            ends.push(end);
        }
        assert!(ends.iter().all(|e| *e == ends[0]));
    }
}

#[test]
fn silence_ends_in_a_timeout_wherever_it_begins() {
    let liar = lying(Opcode::Linear, 1, 20);
    let own = honest(&liar);
    for (node, kind) in [
        (Node::Silent, Kind::Layers),
        (Node::AnswersUpTo(Kind::Layers), Kind::Positions),
        (Node::AnswersUpTo(Kind::Positions), Kind::OpList),
        (Node::AnswersUpTo(Kind::OpList), Kind::Page),
    ] {
        let end = Table::new(node, liar.clone(), 1000).play(&own, None);
        assert!(matches!(end, End::Timeout(t) if t.kind == kind), "{node:?}: {end:?}");
    }
    // A node that serves its trace and answers nothing.
    let end = Table::new(Node::Silent, liar.clone(), 1000).play(&own, Some(&liar));
    assert!(matches!(end, End::Timeout(t) if t.kind == Kind::OpList), "{end:?}");
}

#[test]
fn an_honest_node_is_left_alone() {
    let run = Run::new(None, None);
    let own = honest(&run);
    let mut table = Table::new(Node::Answers, run, 1000);
    assert_eq!(table.play(&own, None), End::Right);
    assert_eq!(table.demands, 0);
}

#[test]
fn the_second_story_that_is_served_is_not_believed() {
    let liar = lying(Opcode::Mix, 3, 33);
    let own = honest(&liar);
    let end = Table::new(Node::Answers, liar, 1000).play(&own, Some(&own));
    assert!(matches!(end, End::Proven { opcode: Opcode::Mix, .. }), "{end:?}");
}

#[test]
fn an_emitted_token_that_the_head_did_not_select() {
    // The commitment is that of an honest execution of the emitted tokens; only SELECT can be wrong.
    let mut tokens = Run::new(None, None).output;
    tokens[3] = (tokens[3] + 1) % 300 + 3;
    let committed_honestly = Run::new(None, Some(&tokens));
    let own = honest(&committed_honestly);
    assert_eq!(own.trace(), committed_honestly.trace());
    let end = Table::new(Node::Answers, committed_honestly.clone(), 1000).play(&own, None);
    let End::Proven { opcode: Opcode::Select, row: 3, claimed, computed, .. } = end else { panic!("{end:?}") };
    assert_eq!((claimed, computed), (own.selected[3] as i64, tokens[3] as i64));

    // The commitment says what was emitted: then a larger logit is held against it.
    let mut table = committed_honestly;
    let at = (table.dims.layers + 1, 3);
    let (_, select) = tamper::operators(model().program(), Opcode::Select)[0];
    table.ops.get_mut(&at).unwrap()[select] = tokens[3].to_be_bytes().to_vec();
    table.leaves[at.0 as usize][3] = table.leaf(at.0, 3);
    // A wrong row after it changes nothing.
    table.leaves[at.0 as usize][6] = [9; 32];
    let end = Table::new(Node::Answers, table, 1000).play(&own, None);
    let End::Proven { opcode: Opcode::Select, row: 3, claimed, computed, .. } = end else { panic!("{end:?}") };
    assert_eq!((claimed, computed), (tokens[3] as i64, own.selected[3] as i64));
}

#[test]
fn commitments_to_nothing_end_in_timeouts() {
    let run = Run::new(None, None);
    let own = honest(&run);
    // A leaf that no operator list has.
    let mut broken = run.clone();
    broken.leaves[2][11] = [7; 32];
    let end = Table::new(Node::Answers, broken, 1000).play(&own, None);
    assert_eq!(end, End::Timeout(Target::op_list(2, 11)));

    // A right trace, and an operator list with a root that no tensor has, opened on somebody else's demand.
    let mut table = Table::new(Node::Answers, run.clone(), 1000);
    let mut list = run.op_roots(2, 11);
    let inner = own.model.program().section(SectionKind::Block).ops.iter().position(|d| !d.export).unwrap();
    list[inner] = [3; 32];
    table.other_lists.insert((2, 11), list);
    let target = Target::op_list(2, 11);
    let state = OpeningState::Answered { turn_end: 30, data: table.list(2, 11).concat() };
    table.game.openings.insert(target, Opening { payer: Address::ZERO, depth: 1, state });
    let end = table.play(&own, None);
    assert_eq!(end, End::Timeout(Target::pages(2, 11, inner as u16, 0, 0)));
}

/// Opens node by node down to (layer 2, row 30), so that the chain reaches a needless depth.
fn accomplice(table: &mut Table, steps: usize) -> Option<Target> {
    let claimed = table.trace.clone();
    let (top, rows) = (claimed.top(), claimed.layer(2));
    let mut chain = Vec::new();
    for level in (1..=top.depth()).rev() {
        chain.push((Target::layers(level, 2 >> level), top.node(level, 2 >> level), top.path(level, 2 >> level)));
    }
    for level in (1..=rows.depth()).rev() {
        let path = claimed.path(2, level, 30 >> level);
        chain.push((Target::positions(2, level, 30 >> level), rows.node(level, 30 >> level), path));
    }
    let mut parent = None;
    for (target, node_hash, path) in chain.into_iter().take(steps) {
        demand(table, parent, target, node_hash, path);
        table.node_plays();
        parent = Some(target);
    }
    parent
}

fn demand(table: &mut Table, parent: Option<Target>, target: Target, node_hash: Hash, path: Vec<Hash>) {
    let (op_roots, descriptor_proof) = (Vec::new(), Vec::new());
    let d = Demand { target, parent, node_hash, path, op_roots, descriptor: None, descriptor_proof };
    table.demand(&d, Address::repeat_byte(1));
}

#[test]
fn openings_of_others_are_reused() {
    let liar = lying(Opcode::Add, 2, 30);
    let own = honest(&liar);
    let mut table = Table::new(Node::Answers, liar, 3);
    accomplice(&mut table, 8);
    let before = table.demands;
    table.now = 10;
    let end = table.play(&own, None);
    assert!(matches!(end, End::Proven { opcode: Opcode::Add, .. }), "{end:?}");
    assert!(table.demands - before <= 2, "everything above the row was open already");
}

#[test]
fn an_opening_demanded_at_the_greatest_depth_is_lowered() {
    let liar = lying(Opcode::Add, 2, 30);
    let own = honest(&liar);
    let mut table = Table::new(Node::Answers, liar, 3);
    let parent = accomplice(&mut table, 7);
    // At depth 8: nothing could follow it. Answered when every other challenger's turn is nearly over.
    let (leaf, path) = (table.trace.layer(2).leaves()[30], table.trace.path(2, 0, 30));
    demand(&mut table, parent, Target::op_list(2, 30), leaf, path);
    assert_eq!(table.game.openings[&Target::op_list(2, 30)].depth, MAX_DEPTH);
    (table.now, table.answers_from) = (6, 19);
    let end = table.play(&own, None);
    assert!(matches!(end, End::Proven { opcode: Opcode::Add, .. }), "{end:?}");
    assert!(table.lowered > 0 && table.now > 20);
}

#[test]
fn a_watcher_that_is_wrong_itself_does_not_accuse() {
    // Its own executor is broken: the node is honest.
    let run = Run::new(None, None);
    let (_, op) = tamper::operators(run.model.program(), Opcode::SiluMul)[0];
    let place = Place { layer: 2, position: 30, op, element: Some(0), seed: 0 };
    let mut own = Run::new(Some((place, 4)), Some(&run.output));
    own.output = run.output.clone();
    let own = Arc::new(own);
    let mut table = Table::new(Node::Answers, run, 1000);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.play(&own, None)));
    let message = *result.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("the own executor is wrong"), "{message}");
}
