//! The solver: a pure function of the chain's state, the watcher's own recomputation and what it has learned, to the next
//! move.
//!
//! # Why it always ends
//!
//! The claimed trace and the own one have the same shape. If their roots differ, a walk from the root along the first
//! differing node ends at the first differing (layer, row); everything that this row reads is equal in both. Its operator
//! list, once posted, differs first at some operator whose inputs are all equal, and a walk down that tensor's pages ends at
//! the first differing element. Every step needs at most one answer. So each call yields a move that brings the walk forward,
//! a wait for somebody's deadline, a timeout, or a proof. A commitment to something that is no tensor (a page of
//! another length than the shape's, a node in the empty part of a tree) has no answer that the contract accepts, so it ends in a timeout.

use std::collections::HashMap;

use sworn_commit::witness::{Claim, Evidence, Inputs, PartialTree, Proof, build};
use sworn_commit::{Hash, TraceTree, section_tree, tensor, trace, tree};
use sworn_isa::{Descriptor, Opcode, Program, Section, SectionKind};

use crate::game::{Game, MAX_DEPTH, OpeningState, Target};

/// The own recomputation of one (layer, row).
pub struct Replay {
    /// Every operator's output, in program order, as committed.
    pub ops: Vec<Vec<u8>>,
    /// What a witness opens besides.
    pub inputs: Box<dyn Inputs + Send + Sync>,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("ops", &self.ops.len()).finish_non_exhaustive()
    }
}

/// The own recomputation of a job.
#[derive(Debug)]
pub struct Own {
    /// The trace of a teacher-forced pass over the submitted tokens.
    pub trace: TraceTree,
    /// The tokens that the pass selects, per head row.
    pub selected: Vec<u32>,
    /// The submitted tokens.
    pub output: Vec<u32>,
    /// What was recomputed in full so far.
    pub replays: HashMap<(u16, u32), Replay>,
}

/// Something that was asked of the node over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asked<T> {
    /// not yet
    #[default]
    No,
    /// served, and it fits what is on chain
    Got(T),
    /// not served, or it does not fit
    Refused,
}

/// What the node served. Nothing in here is believed unless it hashes to what is on chain.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    /// The claimed leaves.
    pub trace: Asked<TraceTree>,
    /// Claimed operator tensors.
    pub tensors: HashMap<(u16, u32, u16), Asked<Vec<u8>>>,
}

/// The chain's clock and the caller's caution.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// timestamp of the latest block
    pub now: u64,
    /// seconds that a transaction may take to be included
    pub margin: u64,
}

/// A demand with its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// what is demanded
    pub target: Target,
    /// the answered opening that allows it after the window
    pub parent: Option<Target>,
    /// hash of the targeted node
    pub node_hash: Hash,
    /// its path
    pub path: Vec<Hash>,
    /// PAGES, PAGE: the posted operator list
    pub op_roots: Vec<Hash>,
    /// PAGES, PAGE: the operator
    pub descriptor: Option<Descriptor>,
    /// PAGES, PAGE: its path in the section
    pub descriptor_proof: Vec<Hash>,
}

/// A wrong element, ready to be proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accusation {
    /// where
    pub claim: Claim,
    /// which operator
    pub opcode: Opcode,
    /// the witness and both values
    pub proof: Proof,
}

/// The next move.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// The claimed trace is the own one.
    NodeIsRight,
    /// Ask the node for its trace over HTTP.
    FetchTrace,
    /// Recompute this (layer, row) in full.
    Replay(u16, u32),
    /// Ask the node for an operator's tensor over HTTP; it must have this root.
    FetchTensor {
        /// layer, row, operator
        at: (u16, u32, u16),
        /// as posted
        root: Hash,
        /// length by its shape
        len: usize,
    },
    /// Demand an opening.
    Demand(Box<Demand>),
    /// Nothing to do before this second.
    Wait(u64),
    /// Slash a silent node.
    Timeout(Target),
    /// Announce, then prove.
    Accuse(Box<Accusation>),
    /// The node is wrong, but no rule lets anybody open more: too late.
    TooLate,
    /// The own data contradict themselves: never accuse with them.
    Broken(String),
}

/// The next move in a job that has a result and no outcome.
pub fn next(game: &Game, program: &Program, own: &Own, learned: &Learned, clock: Clock) -> Move {
    match (Solver { game, program, own, learned, clock, ancestors: Vec::new() }).run() {
        Ok(m) | Err(m) => m,
    }
}

/// Where the two traces part, as far as it is known: the layer and row in the order of the trace.
pub fn first_known_difference(game: &Game, own: &Own, learned: &Learned) -> Option<(u16, u32)> {
    if own.trace.layers_root() == game.layers_root {
        return own.mismatch().map(|row| (game.dims.layers + 1, row));
    }
    match &learned.trace {
        Asked::Got(t) => t.first_difference(&own.trace),
        _ => None,
    }
}

impl Own {
    /// The first head row whose selected token is not the submitted one.
    fn mismatch(&self) -> Option<u32> {
        let rows = self.selected.iter().zip(&self.output);
        rows.enumerate().find(|(_, (a, b))| a != b).map(|(row, _)| row as u32)
    }
}

/// How a walk down a tree ended.
enum Walk {
    /// The claimed tree is the own one.
    Equal,
    /// The first differing leaf.
    Leaf(u64),
    /// This node must be opened.
    Closed { level: u32, index: u64 },
}

struct Solver<'a> {
    game: &'a Game,
    program: &'a Program,
    own: &'a Own,
    learned: &'a Learned,
    clock: Clock,
    /// Demands that lead from the root to where the walk stands.
    ancestors: Vec<Demand>,
}

/// `Err` is a move that must come first.
type Step<T> = Result<T, Move>;

/// The disputed (layer, row) with the claimed trees around it.
struct Place {
    layer: u16,
    row: u32,
    top: PartialTree,
    rows: PartialTree,
}

impl<'a> Solver<'a> {
    fn run(&mut self) -> Step<Move> {
        let Some(place) = self.locate()? else { return Ok(Move::NodeIsRight) };
        self.expired()?;
        let kind = SectionKind::of_layer(place.layer, self.game.dims.layers)
            .ok_or_else(|| Move::Broken("a layer that the model does not have".into()))?;
        let section = self.program.section(kind);
        let replay = self.replay(place.layer, place.row, section)?;
        let roots = self.op_list(&place, section)?;
        let wrong = replay.ops.iter().zip(&roots).position(|(own, root)| tensor::tensor_root(own) != *root);
        let (op, claimed, pages) = match wrong {
            Some(op) => self.tensor(&place, section, op, &replay.ops[op], &roots)?,
            None => {
                // Equal in every operator, so what is wrong is the token that was submitted.
                let op = section.ops.iter().position(|d| selects(d.opcode));
                let op = op.ok_or_else(|| {
                    Move::Broken("every operator is right, yet the leaf differs: replay and trace disagree".into())
                })?;
                let own = &replay.ops[op];
                (op, own.clone(), PartialTree::new(tensor::tensor_tree(own)))
            }
        };
        self.accuse(&place, section, op, replay, &roots, &claimed, &pages)
    }

    /// A demand that the node let pass.
    fn expired(&self) -> Step<()> {
        for (target, o) in &self.game.openings {
            if let OpeningState::Demanded { deadline } = o.state
                && self.clock.now > deadline
            {
                return Err(Move::Timeout(*target));
            }
        }
        Ok(())
    }

    /// The first (layer, row) that is wrong.
    fn locate(&mut self) -> Step<Option<Place>> {
        let (game, own) = (self.game, self.own);
        let head = game.dims.layers + 1;
        let mut top = PartialTree::new(own.trace.top().clone());
        if own.trace.layers_root() == game.layers_root {
            let place = |layer: u16, row, top| {
                let rows = PartialTree::new(own.trace.layer(layer).clone());
                Some(Place { layer, row, top, rows })
            };
            if let Some(row) = own.mismatch() {
                return Ok(place(head, row, top));
            }
            // An operator list is not determined by its leaf: a right trace can still be opened with a wrong list.
            for target in game.openings.keys() {
                let Some(posted) = game.hashes(target).filter(|_| target.kind == crate::game::Kind::OpList) else {
                    continue;
                };
                let Some(kind) = SectionKind::of_layer(target.layer, game.dims.layers) else { continue };
                let replay = self.replay(target.layer, target.row, self.program.section(kind))?;
                if replay.ops.iter().map(|t| tensor::tensor_root(t)).ne(posted) {
                    return Ok(place(target.layer, target.row, top));
                }
            }
            return Ok(None);
        }

        if let Asked::No = self.learned.trace {
            return Err(Move::FetchTrace);
        }
        let served = match &self.learned.trace {
            Asked::Got(t) => Some(t),
            _ => None,
        };
        for target in game.openings.keys() {
            if let (crate::game::Kind::Layers, Some(hashes)) = (target.kind, game.hashes(target)) {
                top.learn_descendants(target.level as u32, target.index as u64, &hashes);
            }
        }
        top.learn(top.depth(), 0, game.layers_root);
        if let Some(served) = served {
            learn_all(&mut top, served.top());
        }
        let layer = self.descend(&top, |s, level, index| Demand {
            target: Target::layers(level, index),
            path: s.0.path(level, index),
            node_hash: s.0.node(level, index),
            ..Demand::EMPTY
        })?;
        let layer = layer.ok_or_else(|| Move::Broken("the own layers tree changed".into()))? as u16;

        let mut rows = PartialTree::new(own.trace.layer(layer).clone());
        for target in game.openings.keys() {
            if let (crate::game::Kind::Positions, Some(hashes)) = (target.kind, game.hashes(target))
                && target.layer == layer
            {
                rows.learn_descendants(target.level as u32, target.index as u64, &hashes);
            }
        }
        rows.learn(rows.depth(), 0, top.node(0, layer as u64));
        if let Some(served) = served {
            learn_all(&mut rows, served.layer(layer));
        }
        let up = top.path(0, layer as u64);
        let row = self.descend(&rows, |s, level, index| Demand {
            target: Target::positions(layer, level, index),
            path: [s.0.path(level, index), up.clone()].concat(),
            node_hash: s.0.node(level, index),
            ..Demand::EMPTY
        })?;
        let row = row.ok_or_else(|| Move::Broken("the own layer tree changed".into()))? as u32;
        // A submitted token that the head did not select can come before the first differing row.
        let row = if layer == head { own.mismatch().map_or(row, |m| m.min(row)) } else { row };
        Ok(Some(Place { layer, row, top, rows }))
    }

    /// Follows the first differing node of a claimed tree to a leaf; demands what is closed.
    fn descend(
        &mut self,
        tree: &PartialTree,
        demand: impl Fn((&PartialTree,), u32, u64) -> Demand,
    ) -> Step<Option<u64>> {
        // What was passed on the way: in steps of an answer, as a demand would go.
        let passed = |s: &mut Self, leaf_or: (u32, u64)| {
            let (down_to, index) = leaf_or;
            let mut level = tree.depth();
            while level > down_to {
                s.ancestors.push(demand((tree,), level, index >> (level - down_to)));
                level = level.saturating_sub(6);
            }
        };
        match walk(tree) {
            Walk::Equal => Ok(None),
            Walk::Leaf(i) => {
                passed(self, (0, i));
                Ok(Some(i))
            }
            Walk::Closed { level, index } => {
                passed(self, (level, index));
                Err(self.open(demand((tree,), level, index)))
            }
        }
    }

    /// The posted operator list.
    fn op_list(&mut self, place: &Place, section: &Section) -> Step<Vec<Hash>> {
        let target = Target::op_list(place.layer, place.row);
        let mut path = place.rows.path(0, place.row as u64);
        path.extend(place.top.path(0, place.layer as u64));
        let demand = Demand { target, path, node_hash: place.rows.node(0, place.row as u64), ..Demand::EMPTY };
        let Some(roots) = self.game.hashes(&target) else { return Err(self.open(demand)) };
        self.ancestors.push(demand);
        if roots.len() != section.ops.len() {
            return Err(Move::Broken("the posted operator list has another length than the program".into()));
        }
        Ok(roots)
    }

    /// The wrong operator, its claimed bytes as far as they matter, and its claimed page tree.
    fn tensor(
        &mut self,
        place: &Place,
        section: &Section,
        op: usize,
        own: &[u8],
        roots: &[Hash],
    ) -> Step<(usize, Vec<u8>, PartialTree)> {
        let at = (place.layer, place.row, op as u16);
        let mut pages = PartialTree::new(tensor::tensor_tree(own));
        match self.learned.tensors.get(&at).unwrap_or(&Asked::No) {
            Asked::Got(claimed) if tensor::tensor_root(claimed) == roots[op] && claimed.len() == own.len() => {
                learn_all(&mut pages, &tensor::tensor_tree(claimed));
                return Ok((op, claimed.clone(), pages));
            }
            Asked::No => return Err(Move::FetchTensor { at, root: roots[op], len: own.len() }),
            _ => {}
        }
        let here = |t: &Target| (t.layer, t.row, t.op) == at;
        for target in self.game.openings.keys().filter(|t| here(t)) {
            if let (crate::game::Kind::Pages, Some(hashes)) = (target.kind, self.game.hashes(target)) {
                pages.learn_descendants(target.level as u32, target.index as u64, &hashes);
            }
        }
        pages.learn(pages.depth(), 0, roots[op]);
        let demand = |tree: &PartialTree, level, index| Demand {
            target: Target::pages(at.0, at.1, at.2, level, index),
            parent: None,
            node_hash: tree.node(level, index),
            path: tree.path(level, index),
            op_roots: roots.to_vec(),
            descriptor: Some(section.ops[op]),
            descriptor_proof: section_tree(section).path(0, op as u64),
        };
        let page = self.descend(&pages, |s, level, index| demand(s.0, level, index))?;
        let page = page.ok_or_else(|| Move::Broken("the own tensor changed".into()))?;
        let target = Target::pages(at.0, at.1, at.2, 0, page);
        let Some(data) = self.game.answer(&target) else { return Err(self.open(demand(&pages, 0, page))) };
        let start = page as usize * tensor::PAGE;
        let mut claimed = own.to_vec();
        match claimed.get_mut(start..start + data.len()) {
            Some(slot) => slot.copy_from_slice(data),
            None => return Err(Move::Broken("an answered page lies outside its tensor".into())),
        }
        Ok((op, claimed, pages))
    }

    #[allow(clippy::too_many_arguments, reason = "each is one part of the evidence")]
    fn accuse(
        &self,
        place: &Place,
        section: &Section,
        op: usize,
        replay: &Replay,
        roots: &[Hash],
        claimed: &[u8],
        pages: &PartialTree,
    ) -> Step<Move> {
        let d = &section.ops[op];
        let own = &replay.ops[op];
        let byte = own.iter().zip(claimed).position(|(a, b)| a != b).unwrap_or(0);
        let claim =
            Claim { layer: place.layer, row: place.row, op: op as u16, element: (byte / d.dtype.width()) as u32 };
        let previous = place.layer.checked_sub(1).map(|l| PartialTree::new(self.own.trace.layer(l).clone()));
        let evidence = Evidence {
            program: self.program,
            dims: self.game.dims,
            top: &place.top,
            previous_rows: previous.as_ref().unwrap_or(&place.rows),
            rows: &place.rows,
            op_roots: roots,
            ops: &replay.ops,
            claimed,
            claimed_pages: pages,
            inputs: &*replay.inputs,
            hint: hint(d, own, claim.element),
        };
        let proof = build(claim, &evidence).map_err(|e| Move::Broken(format!("no witness for {claim:?}: {e}")))?;
        if proof.claimed == proof.computed {
            return Err(Move::Broken(format!(
                "the scalar reference confirms the node at {claim:?} ({}): the own executor is wrong",
                proof.claimed
            )));
        }
        Ok(Move::Accuse(Box::new(Accusation { claim, opcode: d.opcode, proof })))
    }

    fn replay(&self, layer: u16, row: u32, section: &Section) -> Step<&'a Replay> {
        let replay = self.own.replays.get(&(layer, row)).ok_or(Move::Replay(layer, row))?;
        if replay.ops.len() != section.ops.len() {
            return Err(Move::Broken("the replay has another number of operators than the program".into()));
        }
        let roots: Vec<_> = section.exports().iter().map(|k| tensor::tensor_root(&replay.ops[*k])).collect();
        if self.own.trace.layer(layer).leaves().get(row as usize) != Some(&trace::leaf(&roots)) {
            return Err(Move::Broken(format!("the replay of layer {layer}, row {row} is not what the own trace says")));
        }
        Ok(replay)
    }

    /// The move that brings `demand` forward.
    fn open(&self, demand: Demand) -> Move {
        if let Err(m) = self.expired() {
            return m;
        }
        if let Some(o) = self.game.openings.get(&demand.target) {
            // Somebody demanded it already; perhaps so deep that nothing could follow it.
            let needed = o.depth as u32 + self.answers_after(&demand.target);
            if needed > MAX_DEPTH as u32
                && let Some((depth, parent)) = self.parent(&demand.target)
                && depth < o.depth
            {
                return Move::Demand(Box::new(Demand { parent, ..demand }));
            }
            return match o.state {
                OpeningState::Demanded { deadline } => Move::Wait(deadline + 1),
                OpeningState::Answered { .. } => Move::Broken("an answered opening taught nothing".into()),
            };
        }
        match self.parent(&demand.target) {
            Some((depth, parent)) if depth as u32 + self.answers_after(&demand.target) <= MAX_DEPTH as u32 => {
                Move::Demand(Box::new(Demand { parent, ..demand }))
            }
            best => self.lower_an_ancestor().unwrap_or(match best {
                Some((depth, parent)) if depth <= MAX_DEPTH => Move::Demand(Box::new(Demand { parent, ..demand })),
                _ => Move::TooLate,
            }),
        }
    }

    /// An opening on the way that can be demanded again from nearer the root.
    fn lower_an_ancestor(&self) -> Option<Move> {
        self.ancestors.iter().find_map(|a| {
            let o = self.game.openings.get(&a.target)?;
            let (depth, parent) = self.parent(&a.target)?;
            (depth < o.depth).then(|| Move::Demand(Box::new(Demand { parent, ..a.clone() })))
        })
    }

    /// The smallest depth at which `target` can be demanded now, and from where.
    fn parent(&self, target: &Target) -> Option<(u8, Option<Target>)> {
        let Clock { now, margin } = self.clock;
        for margin in [margin, 0] {
            if now + margin <= self.game.window_end {
                return Some((1, None));
            }
            let parents = self.game.openings.iter().filter_map(|(t, o)| match o.state {
                OpeningState::Answered { turn_end, .. } if now + margin <= turn_end && t.rank() < target.rank() => {
                    Some((o.depth + 1, std::cmp::Reverse(turn_end), *t))
                }
                _ => None,
            });
            if let Some((depth, _, parent)) = parents.min() {
                return Some((depth, Some(parent)));
            }
        }
        None
    }

    /// The most answers that can still be needed after this one.
    fn answers_after(&self, target: &Target) -> u32 {
        use crate::game::Kind::{Layers, OpList, Page, Pages, Positions, Tokens};
        let dims = &self.game.dims;
        let answers = |depth: u32| depth.div_ceil(6);
        let below = answers((target.level as u32).saturating_sub(6));
        let rows = |layer| answers(tree::depth(dims.rows(layer) as u64));
        let tensor = |layers: std::ops::RangeInclusive<u16>| {
            let depth = |layer: u16| {
                let section = self.program.section(SectionKind::of_layer(layer, dims.layers)?);
                let t = dims.positions() - 1;
                section.ops.iter().map(|d| tensor::depth(d.bytes(t))).max()
            };
            answers(layers.filter_map(depth).max().unwrap_or(0)) + 1
        };
        match target.kind {
            // Whichever layer it will be: one of each section stands for all.
            Layers => {
                below + rows(0) + 1 + [0, 1, dims.layers + 1].map(|l| tensor(l..=l)).into_iter().max().unwrap_or(2)
            }
            Positions => below + 1 + tensor(target.layer..=target.layer),
            OpList => tensor(target.layer..=target.layer),
            Pages => below + 1,
            Page | Tokens => 0,
        }
    }
}

impl Demand {
    /// Of nothing: what a demand does not need.
    pub const EMPTY: Demand = Demand {
        target: Target::layers(0, 0),
        parent: None,
        node_hash: [0; 32],
        path: Vec::new(),
        op_roots: Vec::new(),
        descriptor: None,
        descriptor_proof: Vec::new(),
    };
}

/// Follows the first differing node as far as claimed nodes are known.
fn walk(tree: &PartialTree) -> Walk {
    let (mut level, mut index) = (tree.depth(), 0);
    if tree.node(level, index) == tree.own().node(level, index) {
        return Walk::Equal;
    }
    while level > 0 {
        let (left, right) = (2 * index, 2 * index + 1);
        let (Some(l), Some(_)) = (tree.claimed(level - 1, left), tree.claimed(level - 1, right)) else {
            return Walk::Closed { level, index };
        };
        index = if l != tree.own().node(level - 1, left) { left } else { right };
        level -= 1;
    }
    Walk::Leaf(index)
}

/// Records every node of a fully known claimed tree.
fn learn_all(partial: &mut PartialTree, claimed: &sworn_commit::Tree) {
    for level in 0..=claimed.depth() {
        for index in 0..1u64 << (claimed.depth() - level) {
            partial.learn(level, index, claimed.node(level, index));
        }
    }
}

/// Whether the operator's output is a token.
pub(crate) fn selects(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Select | Opcode::Sample)
}

/// What is held against a wrong token: the right one, by the own recomputation.
fn hint(d: &Descriptor, own: &[u8], element: u32) -> u32 {
    let (from, width) = (element as usize * d.dtype.width(), d.dtype.width());
    match own.get(from..from + width) {
        Some(token) if selects(d.opcode) || d.opcode == Opcode::Top => {
            u32::try_from(d.dtype.decode(token)).unwrap_or(0)
        }
        _ => 0,
    }
}
