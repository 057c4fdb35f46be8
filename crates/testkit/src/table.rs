//! A challenge move by move: the watcher's solver against a node of any kind, with the rules of `Challenges` enforced by a table that was
//! written from the protocol's page, and, where there is a [`Court`], by the contracts themselves.

use std::collections::HashMap;
use std::sync::Arc;

use alloy::primitives::Address;
use rand::Rng;
use rand::rngs::StdRng;
use sworn_commit::{Hash, TraceTree, Tree, tensor, trace, tree};
use sworn_isa::Opcode;
use sworn_watcher::game::{Game, Kind, MAX_DEPTH, Opening, OpeningState, Target};
use sworn_watcher::solver::{self, Asked, Clock, Demand, Learned, Move, Own, Replay};

use crate::actors::Node;
use crate::court::{Court, USER, WATCHER};
use crate::hearing::Hearing;
use crate::run::{NEW, Run, RunInputs};

/// Seconds that a node has for an answer, and a challenger for the next move.
pub const TURN: u64 = 20;

/// How a challenge ends.
#[derive(Debug, PartialEq)]
pub enum End {
    /// There is nothing to challenge.
    Right,
    /// The node did not answer.
    Timeout(Target),
    /// A wrong element is proven.
    #[allow(missing_docs, reason = "the fields of a claim")]
    Proven { opcode: Opcode, layer: u16, row: u32, element: u32, claimed: i64, computed: i64 },
}

/// The chain: checks each move as the contract does.
pub struct Table<'c> {
    court: Option<Hearing<'c>>,
    node: Node,
    claimed: Arc<Run>,
    /// (layer, row) → another operator list than the run's, as far as the leaf allows
    pub other_lists: HashMap<(u16, u32), Vec<Hash>>,
    /// What the node has committed to.
    pub trace: TraceTree,
    /// What was opened.
    pub game: Game,
    /// Seconds since the result.
    pub now: u64,
    /// The node answers nothing before.
    pub answers_from: u64,
    /// Openings that were demanded.
    pub demands: u32,
    /// Openings whose depth was lowered by another demand.
    pub lowered: u32,
    /// Chooses what an accomplice, or a vandal, demands and announces without ever proving anything; none: there is none.
    pub accomplice: Option<StdRng>,
}

impl<'c> Table<'c> {
    /// Where the contracts check every move too.
    ///
    /// # Panics
    /// The contracts refuse the job or its answer.
    pub fn before(court: &'c mut Court, node: Node, claimed: Run) -> Self {
        let (trace, window) = (claimed.trace(), court.window);
        let (job, _) = court.job(&claimed.model, &claimed.prompt, NEW, &claimed.output, trace.layers_root());
        Table { court: Some(Hearing::new(court, job)), ..Self::new(node, claimed, window) }
    }

    /// What the contracts' side has seen.
    pub fn hearing(&mut self) -> Option<&mut Hearing<'c>> {
        self.court.as_mut()
    }

    /// On the day of the result, without the contracts.
    pub fn new(node: Node, claimed: Run, window: u64) -> Self {
        let trace = claimed.trace();
        let game = Game::new(claimed.dims, trace.layers_root(), window);
        let claimed = Arc::new(claimed);
        Table {
            court: None,
            node,
            claimed,
            other_lists: HashMap::new(),
            trace,
            game,
            now: 0,
            answers_from: 0,
            demands: 0,
            lowered: 0,
            accomplice: None,
        }
    }

    /// The list of operators that the node posts.
    pub fn list(&self, layer: u16, row: u32) -> Vec<Hash> {
        self.other_lists.get(&(layer, row)).cloned().unwrap_or_else(|| self.claimed.op_roots(layer, row))
    }

    /// The contract's checks of a demand, written against the protocol's page.
    ///
    /// # Panics
    /// It breaks a rule.
    pub fn demand(&mut self, d: &Demand, payer: Address) {
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
            if let Some(hearing) = &mut self.court {
                hearing.demand(d, payer, self.now);
            }
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
        if let Some(hearing) = &mut self.court {
            hearing.demand(d, payer, self.now);
        }
        let state = OpeningState::Demanded { deadline: self.now + TURN };
        self.game.openings.insert(t, Opening { payer, depth, state });
    }

    /// The node answers what it can and wants to.
    pub fn node_plays(&mut self) {
        let open = self.game.openings.iter().filter(|(_, o)| matches!(o.state, OpeningState::Demanded { .. }));
        let open: Vec<_> = open.map(|(t, _)| *t).collect();
        for t in open {
            let willing = match self.node {
                Node::Answers => true,
                Node::AnswersUpTo(kind) => t.kind <= kind,
                Node::Silent => false,
            };
            let data = self.answer_to(&t).filter(|_| willing && self.now >= self.answers_from);
            if let Some(data) = data {
                if let Some(hearing) = &mut self.court {
                    hearing.answer(&t, &data, self.now);
                }
                let turn_end = self.now + TURN;
                self.game.openings.get_mut(&t).unwrap().state = OpeningState::Answered { turn_end, data };
            }
        }
    }

    /// The right answer to a demand; none: there is none.
    fn answer_to(&self, t: &Target) -> Option<Vec<u8>> {
        match t.kind {
            Kind::Layers => Some(self.trace.top().descendants(t.level as u32, t.index as u64).concat()),
            Kind::Positions => Some(self.trace.layer(t.layer).descendants(t.level as u32, t.index as u64).concat()),
            // A leaf that is no hash of operator roots has no answer.
            Kind::OpList => (self.claimed.leaf(t.layer, t.row) == self.trace.layer(t.layer).leaves()[t.row as usize])
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
        }
    }

    /// What the rules allow to whoever pays: demands of anything at random, announcements of nothing; and no more after that.
    fn flood(&mut self) {
        let Some(mut rng) = self.accomplice.take() else { return };
        if rng.random_range(0..3) == 0 && self.now <= self.game.window_end {
            let d = self.anything(&mut rng);
            if self.game.openings.get(&d.target).is_none_or(|o| o.depth > 1) {
                self.demand(&d, USER);
            }
        }
        if rng.random_range(0..6) == 0
            && let Some(hearing) = &mut self.court
        {
            hearing.announce_nothing(rng.random::<[u8; 32]>().into(), self.now);
        }
        self.accomplice = Some(rng);
    }

    /// A demand without a parent of any node of any tree, or of any operator list.
    fn anything(&self, rng: &mut StdRng) -> Demand {
        let dims = self.game.dims;
        let layer = rng.random_range(0..dims.layer_count());
        let (top, rows) = (self.trace.top(), self.trace.layer(layer));
        let up = top.path(0, u64::from(layer));
        // A node that has leaves below it.
        let node = |tree: &Tree, leaves: u32, rng: &mut StdRng| {
            let level = rng.random_range(1..=tree.depth());
            (level, u64::from(rng.random_range(0..=(leaves - 1) >> level)))
        };
        let (target, node_hash, path) = match rng.random_range(0..3) {
            0 => {
                let (level, index) = node(top, u32::from(dims.layer_count()), rng);
                (Target::layers(level, index), top.node(level, index), top.path(level, index))
            }
            1 if rows.depth() > 0 => {
                let (level, index) = node(rows, dims.rows(layer), rng);
                let path = [rows.path(level, index), up].concat();
                (Target::positions(layer, level, index), rows.node(level, index), path)
            }
            _ => {
                let row = rng.random_range(0..dims.rows(layer));
                let path = [rows.path(0, u64::from(row)), up].concat();
                (Target::op_list(layer, row), rows.leaves()[row as usize], path)
            }
        };
        Demand { target, node_hash, path, ..Demand::EMPTY }
    }

    /// Whoever is neither the node nor its challenger has a move.
    pub fn others_play(&mut self) {
        self.flood();
        self.meddle();
    }

    /// Whoever is no party to the rules tries something.
    pub fn meddle(&mut self) {
        let open = self.game.openings.iter().filter(|(_, o)| matches!(o.state, OpeningState::Demanded { .. }));
        let open: Vec<_> = open.filter_map(|(t, _)| Some((*t, self.answer_to(t)?))).collect();
        if let Some(hearing) = &mut self.court {
            hearing.meddle(&open, self.now);
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
    ///
    /// # Panics
    /// A move breaks a rule, or the game does not end.
    pub fn play(&mut self, own: &Arc<Run>, serves: Option<&Run>) -> End {
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
                Move::Demand(d) => self.demand(&d, WATCHER),
                Move::Wait(until) => self.now = self.now.max(until.min(self.now + 5)),
                Move::Timeout(t) => {
                    let OpeningState::Demanded { deadline } = self.game.openings[&t].state else { panic!("answered") };
                    assert!(self.now > deadline);
                    if let Some(hearing) = &mut self.court {
                        hearing.timeout(&t, self.now);
                    }
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
                    if let Some(hearing) = &mut self.court {
                        hearing.at(self.now);
                        hearing.accuse(c, &a.proof.witness).unwrap_or_else(|e| panic!("{}: {e}", a.opcode));
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
            self.others_play();
            self.node_plays();
            self.meddle();
            assert!(!self.could_finalise(), "a fraudulent job could become final at {}", self.now);
        }
        panic!("the game does not end")
    }
}
