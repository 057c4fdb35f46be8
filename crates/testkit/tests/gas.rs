//! Gas of a whole challenge on SmolLM2: every operator of every section, at 100 and at 4,096 positions, on the compiled
//! contracts in revm (Prague rules, so calldata's floor price is in). Compared with `test/gas/challenge.json`;
//! `SWORN_GAS_UPDATE=1` rewrites it.
#![allow(clippy::print_stdout, reason = "the table is the report")]

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy::primitives::{B256, Bytes, U256};
use sworn_bindings::{Claim, IChallenges, Target, Witness};
use sworn_commit::witness::{self, Evidence, Inputs, PartialTree};
use sworn_commit::{Hash, RunParams, TraceDims, Tree, keccak, tensor, trace};
use sworn_engine::{Cpu, Replay, replay};
use sworn_isa::{Opcode, SectionKind};
use sworn_model::{Model, ModelStore, pull};
use sworn_testkit::court::{Court, NODE, WATCHER};
use sworn_testkit::devnet::root;

/// A figure may move this much, in percent, before it counts as changed.
const TOLERANCE: u64 = 3;

/// A run of SmolLM2 whose output is one token, seen at one (layer, row); what the other layers exported there is made up.
struct Seen {
    program: sworn_isa::Program,
    dims: TraceDims,
    replay: Replay,
    top: Tree,
    previous: Tree,
    rows: Vec<Hash>,
}

fn leaf(tensors: &[Vec<u8>]) -> Hash {
    trace::leaf(&tensors.iter().map(|t| tensor::tensor_root(t)).collect::<Vec<_>>())
}

impl Seen {
    fn new(cpu: &Cpu, model: &Model, prompt: &[u32], layer: u16) -> Self {
        let dims = TraceDims { layers: model.layers(), n_in: prompt.len() as u32, n_out: 1 };
        let row = dims.rows(layer) - 1;
        let replay = replay(cpu, prompt, &[1], &RunParams::default(), layer, row).unwrap();
        let made_up = |l: u16, r: u32| keccak(&[&l.to_be_bytes(), &r.to_be_bytes()]);
        let tree = |l: u16| (0..dims.rows(l)).map(|r| made_up(l, r)).collect::<Vec<_>>();
        let mut before = layer.checked_sub(1).map(tree).unwrap_or_default();
        if layer > 0 {
            before[replay.position as usize] = leaf(&replay.previous());
        }
        let previous = Tree::new(before);
        let rows = match layer {
            l if l == 0 || l == dims.layers + 1 => tree(l),
            _ => (0..row).map(|j| leaf(&replay.cached(j))).chain([[0; 32]]).collect(),
        };
        let roots = (0..dims.layer_count()).map(|l| if l + 1 == layer { previous.root() } else { made_up(l, 0) });
        let top = Tree::new(roots.collect());
        Seen { program: model.program().clone(), dims, replay, top, previous, rows }
    }

    /// Plays a challenge of the last (or, for `MIX`, the last full) block's element of operator `op`.
    fn challenge(&self, world: &mut Court, model: &Model, prompt: &[u32], op: usize) -> BTreeMap<&'static str, u64> {
        let (layer, row) = (self.replay.layer, self.replay.row);
        let kind = SectionKind::of_layer(layer, self.dims.layers).unwrap();
        let section = self.program.section(kind);
        let d = section.ops[op];
        let t = self.replay.position;
        let mut element = d.count(t) as usize - 1;
        if d.opcode == Opcode::Mix {
            element = ((t as usize + 1) / 16 - 1) * d.inner as usize + 5;
        }
        // The lie: one bit of one element, or another token than the best, emitted and committed to.
        let mut ops = self.replay.ops.clone();
        let mut output = vec![0u32];
        let mut hint = 0;
        if d.opcode == Opcode::Select {
            hint = u32::from_be_bytes(ops[op][..4].try_into().unwrap());
            output[0] = (hint + 1) % model.manifest().vocab;
            ops[op] = output[0].to_be_bytes().to_vec();
        } else {
            let w = d.dtype.width();
            if d.opcode == Opcode::Top {
                hint = u32::from_be_bytes(ops[op][element * w..][..4].try_into().unwrap());
            }
            ops[op][(element + 1) * w - 1] ^= 1;
        }
        let op_roots: Vec<Hash> = ops.iter().map(|t| tensor::tensor_root(t)).collect();
        let mut rows = self.rows.clone();
        rows[row as usize] = trace::leaf(&section.exports().iter().map(|k| op_roots[*k]).collect::<Vec<_>>());
        let rows = Tree::new(rows);
        let mut roots = self.top.leaves().to_vec();
        roots[layer as usize] = rows.root();
        let top = Tree::new(roots);

        let mut gas = BTreeMap::new();
        let (job, [created, submitted]) = world.job(model, prompt, 1, &output, top.root());
        gas.insert("createJob", created);
        gas.insert("submitResult", submitted);
        let words = |h: &[Hash]| h.iter().map(B256::from).collect::<Vec<_>>();
        let mut path = rows.path(0, row as u64);
        path.extend(top.path(0, layer as u64));
        let target = Target::op_list(layer, row);
        let demand = IChallenges::demandCall {
            jobId: job,
            parent: B256::ZERO,
            target: target.clone(),
            proof: IChallenges::DemandProof {
                nodeHash: rows.leaves()[row as usize].into(),
                path: words(&path),
                opRoots: Vec::new(),
                descriptor: Bytes::new(),
                descriptorProof: Vec::new(),
            },
        };
        gas.insert("demand", world.send(WATCHER, world.challenges, &demand).0);
        let answer = IChallenges::answerCall {
            jobId: job,
            target,
            nodeHash: rows.leaves()[row as usize].into(),
            leafCount: op_roots.len() as u32,
            byteLength: 0,
            data: op_roots.concat().into(),
        };
        gas.insert("answer", world.send(NODE, world.challenges, &answer).0);

        let (top, previous, rows) =
            (PartialTree::new(top), PartialTree::new(self.previous.clone()), PartialTree::new(rows));
        let pages = PartialTree::new(tensor::tensor_tree(&ops[op]));
        let tokens = Tokens { replay: &self.replay, output: &output };
        let evidence = Evidence {
            program: &self.program,
            dims: self.dims,
            top: &top,
            previous_rows: &previous,
            rows: &rows,
            op_roots: &op_roots,
            ops: &self.replay.ops,
            claimed: &ops[op],
            claimed_pages: &pages,
            inputs: &tokens,
            hint,
        };
        let claim = witness::Claim { layer, row, op: op as u16, element: element as u32 };
        let proof = witness::build(claim, &evidence).unwrap();
        assert_ne!(proof.claimed, proof.computed, "{}: not a lie", d.opcode);
        let claim = Claim::from(claim);
        let salt = B256::repeat_byte(7);
        let hidden = IChallenges::commitmentOfCall { jobId: job, claim: claim.clone(), sender: WATCHER, salt };
        let (_, commitment) = world.send(WATCHER, world.challenges, &hidden);
        let announce = IChallenges::announceCall { jobId: job, commitment };
        gas.insert("announce", world.send(WATCHER, world.challenges, &announce).0);
        world.block.number += U256::from(1);
        let prove = IChallenges::proveFraudCall { jobId: job, claim, salt, witness: Witness::from(&proof.witness) };
        gas.insert("proveFraud", world.send(WATCHER, world.challenges, &prove).0);
        world.block.timestamp += U256::from(61);
        gas.insert(
            "settleReward",
            world.send(WATCHER, world.challenges, &IChallenges::settleRewardCall { jobId: job }).0,
        );
        gas.insert(
            "reclaimFees",
            world.send(WATCHER, world.challenges, &IChallenges::reclaimFeesCall { jobId: job }).0,
        );
        gas
    }
}

/// The replay's inputs with the output that the lie emits.
struct Tokens<'a> {
    replay: &'a Replay,
    output: &'a [u32],
}

impl Inputs for Tokens<'_> {
    fn previous(&self) -> Vec<Vec<u8>> {
        self.replay.previous()
    }

    fn cached(&self, position: u32) -> Vec<Vec<u8>> {
        self.replay.cached(position)
    }

    fn weight_row(&self, matrix: u32, row: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        self.replay.weight_row(matrix, row)
    }

    fn table(&self, table: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        self.replay.table(table)
    }

    fn prompt(&self) -> &[u32] {
        self.replay.prompt()
    }

    fn output(&self) -> &[u32] {
        self.output
    }
}

#[test]
fn smollm2_challenge_gas() {
    let store = ModelStore::from_env().unwrap();
    let model = Arc::new(pull("smollm2-135m", store.home(), &mut |_| {}).unwrap());
    let cpu = Cpu::new(model.clone()).unwrap();
    let mut world = Court::new(600, 60);
    world.register(&model);
    let words = model.encode_text("An answer under oath is worth what a lie would cost. ").unwrap();

    let mut figures = BTreeMap::new();
    let mut whole = 0;
    for positions in [100u32, 4096] {
        let prompt: Vec<u32> = words.iter().copied().cycle().take(positions as usize).collect();
        // The head's sizes do not depend on the context, and running all layers over 4,096 positions takes minutes.
        let layers = if positions == 100 { vec![0, 1, model.layers() + 1] } else { vec![0, 1] };
        for layer in layers {
            let seen = Seen::new(&cpu, &model, &prompt, layer);
            let kind = SectionKind::of_layer(layer, model.layers()).unwrap();
            for (op, d) in model.program().section(kind).ops.iter().enumerate() {
                let gas = seen.challenge(&mut world, &model, &prompt, op);
                let name = match d.opcode {
                    Opcode::Linear if kind == SectionKind::Head => "LINEAR head".to_owned(),
                    Opcode::Linear => format!("LINEAR K={}", d.params[0]),
                    o => o.name().to_owned(),
                };
                let challenge: u64 = ["demand", "answer", "announce", "proveFraud", "settleReward", "reclaimFees"]
                    .iter()
                    .map(|c| gas[c])
                    .sum();
                whole = whole.max(challenge);
                // Of several operators of one opcode, the dearest.
                let worst = |figures: &mut BTreeMap<String, u64>, key: String, used: u64| {
                    let f = figures.entry(key).or_default();
                    *f = used.max(*f);
                };
                worst(&mut figures, format!("proveFraud {name} at {positions}"), gas["proveFraud"]);
                for call in ["createJob", "submitResult", "demand", "answer", "announce", "settleReward", "reclaimFees"]
                {
                    worst(&mut figures, format!("{call} at {positions}"), gas[call]);
                }
            }
        }
    }
    figures.insert("dearest whole challenge, trace served".into(), whole);
    for (name, used) in &figures {
        println!("{used:>9}  {name}");
    }

    let path = root().join("test/gas/challenge.json");
    if std::env::var_os("SWORN_GAS_UPDATE").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&figures).unwrap() + "\n").unwrap();
    }
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}: SWORN_GAS_UPDATE=1 writes it", path.display()));
    let kept: BTreeMap<String, u64> = serde_json::from_str(&text).unwrap();
    assert_eq!(
        kept.keys().collect::<Vec<_>>(),
        figures.keys().collect::<Vec<_>>(),
        "SWORN_GAS_UPDATE=1 renews the snapshot"
    );
    for (name, used) in &figures {
        assert!(
            used.abs_diff(kept[name]) * 100 <= kept[name] * TOLERANCE,
            "{name}: {used}, was {}: SWORN_GAS_UPDATE=1 renews",
            kept[name]
        );
    }
}
