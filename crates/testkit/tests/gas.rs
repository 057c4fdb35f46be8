//! Gas of a whole challenge on SmolLM2: every operator of every section, at 100 and at 4,096 positions, on the compiled
//! contracts in revm (Prague rules, so calldata's floor price is in). Compared with `test/gas/challenge.json`;
//! `SWORN_GAS_UPDATE=1` rewrites it.
#![allow(clippy::print_stdout, reason = "the table is the report")]

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy::primitives::{Address, B256, Bytes, TxKind, U256};
use alloy::sol_types::{SolCall, SolValue};
use revm::context::result::{ExecutionResult, Output};
use revm::context::{BlockEnv, CfgEnv, TxEnv};
use revm::database::{CacheDB, EmptyDB};
use revm::primitives::hardfork::SpecId;
use revm::{Context, ExecuteCommitEvm, MainBuilder, MainContext};
use sworn_bindings::{
    Claim, IChallenges, IChannels, IDevToken, IERC20, IMarket, IModels, INodes, Revert, Target, Witness, order_hash,
};
use sworn_commit::witness::{self, Evidence, Inputs, PartialTree};
use sworn_commit::{Hash, RunParams, TraceDims, Tree, keccak, sequence, tensor, trace};
use sworn_engine::{Cpu, Replay, replay};
use sworn_isa::{Opcode, SectionKind};
use sworn_model::{Model, ModelStore, pull};
use sworn_testkit::devnet::{creation_code, root};

const USER: Address = Address::repeat_byte(0xA1);
const NODE: Address = Address::repeat_byte(0xA2);
const WATCHER: Address = Address::repeat_byte(0xA3);
/// A figure may move this much, in percent, before it counts as changed.
const TOLERANCE: u64 = 3;

/// All contracts on one in-memory chain.
struct World {
    db: CacheDB<EmptyDB>,
    block: BlockEnv,
    created: u64,
    token: Address,
    models: Address,
    nodes: Address,
    market: Address,
    challenges: Address,
}

impl World {
    fn new() -> Self {
        let mut block = BlockEnv { number: U256::from(100), timestamp: U256::from(1_000_000), ..BlockEnv::default() };
        block.gas_limit = 1 << 40;
        let zero = Address::ZERO;
        let mut w = World {
            db: CacheDB::new(EmptyDB::new()),
            block,
            created: 0,
            token: zero,
            models: zero,
            nodes: zero,
            market: zero,
            challenges: zero,
        };
        w.token = w.create("DevToken", Vec::new());
        let verifier = w.create("StepVerifier", Vec::new());
        w.models = w.create("Models", Vec::new());
        let at = |n| USER.create(w.created + n);
        let [nodes, market, channels, trials, challenges] = [0, 1, 2, 3, 4].map(at);
        w.nodes = w.create("Nodes", (w.token, w.models, market, channels, 10_000_000u64).abi_encode_params());
        let params = IMarket::Params {
            acceptTimeout: 60u64.try_into().unwrap(),
            auctionTime: 20u64.try_into().unwrap(),
            submitTimeout: 600u64.try_into().unwrap(),
            challengeWindow: 600u64.try_into().unwrap(),
            minBond: 1_000_000,
            bondFactorBps: 20_000,
            latePenaltyBps: 500,
            userShareBps: 3_000,
            challengerShareBps: 4_000,
        };
        w.market = w.create("Market", (w.token, w.models, nodes, challenges, params).abi_encode_params());
        let params = IChannels::Params {
            window: 600u64.try_into().unwrap(),
            closeDelay: 600u64.try_into().unwrap(),
            receiptTurn: 60u64.try_into().unwrap(),
            lodgeTurn: 60u64.try_into().unwrap(),
            receiptFee: 1000,
            minBond: 1_000_000,
            bondFactorBps: 20_000,
            userShareBps: 3_000,
            challengerShareBps: 4_000,
        };
        w.create("Channels", (w.token, nodes, trials, zero, params).abi_encode_params());
        w.create("Trials", (channels, w.models, challenges).abi_encode_params());
        let turns = IChallenges::Params {
            nodeTurn: 60u64.try_into().unwrap(),
            challengerTurn: 60u64.try_into().unwrap(),
            demandFee: 1000,
        };
        w.challenges = w.create("Challenges", (market, trials, w.models, verifier, turns).abi_encode_params());
        assert_eq!((w.nodes, w.market, w.challenges), (nodes, market, challenges));
        for who in [USER, NODE, WATCHER] {
            w.send(who, w.token, &IDevToken::mintCall { to: who, amount: U256::from(1) << 100 });
            for spender in [market, nodes] {
                w.send(who, w.token, &IERC20::approveCall { spender, value: U256::MAX });
            }
        }
        w
    }

    fn run(&mut self, from: Address, kind: TxKind, data: Bytes) -> (u64, Output) {
        let mut cfg = CfgEnv::default();
        cfg.set_spec_and_mainnet_gas_params(SpecId::PRAGUE);
        cfg.disable_nonce_check = true;
        let context = Context::mainnet().with_db(&mut self.db).with_block(self.block.clone()).with_cfg(cfg);
        let tx =
            TxEnv::builder().caller(from).kind(kind).data(data).gas_limit(100_000_000).gas_price(0).build().unwrap();
        let result = context.build_mainnet().transact_commit(tx).unwrap();
        let gas = result.tx_gas_used();
        match result {
            ExecutionResult::Success { output, .. } => (gas, output),
            ExecutionResult::Revert { output, .. } => panic!("{}", Revert::decode(&output)),
            ExecutionResult::Halt { reason, .. } => panic!("{reason:?}"),
        }
    }

    fn create(&mut self, name: &str, arguments: Vec<u8>) -> Address {
        let mut code = creation_code(name).unwrap_or_else(|e| panic!("{e}"));
        code.extend(arguments);
        self.created += 1;
        *self.run(USER, TxKind::Create, code.into()).1.address().unwrap()
    }

    fn send<C: SolCall>(&mut self, from: Address, to: Address, call: &C) -> (u64, C::Return) {
        let (gas, output) = self.run(from, TxKind::Call(to), call.abi_encode().into());
        (gas, C::abi_decode_returns(output.data()).unwrap())
    }

    fn register(&mut self, model: &Model) {
        let call = IModels::registerCall {
            manifest: model.manifest().encode().into(),
            program: model.program().encode().into(),
            hint: String::new(),
        };
        self.send(NODE, self.models, &call);
        self.send(NODE, self.nodes, &INodes::configureCall { endpoint: "http://node".into(), capacity: 10_000 });
        self.send(NODE, self.nodes, &INodes::depositCall { amount: 1 << 90 });
        let ask =
            INodes::setAskCall { modelId: model.id().into(), perInputToken: 1, perOutputToken: 2, maxTokens: 8192 };
        self.send(NODE, self.nodes, &ask);
    }
}

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
    fn challenge(&self, world: &mut World, model: &Model, prompt: &[u32], op: usize) -> BTreeMap<&'static str, u64> {
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
        let create = IMarket::createJobCall {
            modelId: model.id().into(),
            node: NODE,
            promptTokens: sequence::encode(prompt).into(),
            maxNew: 1,
            maxPrice: 1 << 40,
            sampling: U256::ZERO,
            userSeed: B256::ZERO,
        };
        let (used, job) = world.send(USER, world.market, &create);
        gas.insert("createJob", used);
        let submit = IMarket::submitResultCall {
            jobId: job,
            order: order_hash(create.modelId, sequence::hash(prompt), create.maxNew, &RunParams::default()),
            outputTokens: sequence::encode(&output).into(),
            layersRoot: top.root().into(),
        };
        gas.insert("submitResult", world.send(NODE, world.market, &submit).0);
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
    let mut world = World::new();
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
