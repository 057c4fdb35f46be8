//! Whole challenges in memory: the solver against every kind of node, with the rules of `Challenges` enforced by a table.

use std::sync::{Arc, OnceLock};

use alloy::primitives::Address;
use sworn_commit::Hash;
use sworn_isa::{Opcode, SectionKind};
use sworn_model::{Model, SyntheticSpec, synthetic};
use sworn_testkit::actors::Node;
use sworn_testkit::run::{PROMPT, Run};
use sworn_testkit::table::{End, Table};
use sworn_testkit::tamper::{self, Place};
use sworn_watcher::game::{Kind, MAX_DEPTH, Opening, OpeningState, Target};
use sworn_watcher::solver::Demand;

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap().keep();
            Arc::new(synthetic(&SyntheticSpec::default(), dir.join("m")).unwrap())
        })
        .clone()
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
        let run = Run::new(&model, Some((Place { layer, position, op, element: None, seed }, seed as u32 / 2)), None);
        let honest = honest(&run);
        if run.trace() != honest.trace() || honest.selected != run.output {
            return run;
        }
    }
    panic!("no wrong element of {opcode} shows")
}

/// The same tokens, honestly.
fn honest(run: &Run) -> Arc<Run> {
    Arc::new(Run::new(&model(), None, Some(&run.output)))
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
    let run = Run::new(&model(), None, None);
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
    let mut tokens = Run::new(&model(), None, None).output;
    tokens[3] = (tokens[3] + 1) % 300 + 3;
    let committed_honestly = Run::new(&model(), None, Some(&tokens));
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
    let run = Run::new(&model(), None, None);
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
    let run = Run::new(&model(), None, None);
    let (_, op) = tamper::operators(run.model.program(), Opcode::SiluMul)[0];
    let place = Place { layer: 2, position: 30, op, element: Some(0), seed: 0 };
    let mut own = Run::new(&model(), Some((place, 4)), Some(&run.output));
    own.output = run.output.clone();
    let own = Arc::new(own);
    let mut table = Table::new(Node::Answers, run, 1000);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.play(&own, None)));
    let message = *result.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("the own executor is wrong"), "{message}");
}
