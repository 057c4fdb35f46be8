//! A node against a real anvil with the real contracts and a synthetic model.
#![allow(missing_docs, dead_code, unreachable_pub)]

#[path = "../../chain/tests/support/devnet.rs"]
mod devnet;
#[path = "../../chain/tests/support/server.rs"]
mod server;

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use devnet::{Devnet, Params, UNIT, approve};
use server::server;
use sworn_bindings::{IChallenges, IMarket, IModels, JobState, ModelShape, Target, TargetKind, opening_id};
use sworn_chain::{Error as ChainError, Intent, Sender, Store};
use sworn_commit::{
    HeadRow, Manifest, RunParams, TraceDims, TraceTree, descriptor_leaf, section_tree, sequence, tensor, trace,
};
use sworn_engine::Cpu;
use sworn_isa::SectionKind;
use sworn_model::{Model, synthetic};
use sworn_node::{
    Conduct, EngineProver, EventSink, Execution, Honest, Job, Node, NodeConfig, NodeEvent, Offer, Price, PriceList,
    Prover, Registration,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const STAKE: u128 = 1_000 * UNIT;

/// A devnet with a registered model and a user with money.
struct World {
    net: Devnet,
    dir: tempfile::TempDir,
    model: Arc<Model>,
    user: Sender,
    key: PrivateKeySigner,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<sworn_node::Result<()>>,
    events: Arc<Mutex<Vec<NodeEvent>>>,
    url: String,
}

impl World {
    async fn new(p: Params) -> World {
        let dir = tempfile::tempdir().unwrap();
        let spec = synthetic::SyntheticSpec::default();
        let model = Arc::new(synthetic::synthetic(&spec, dir.path().join("model")).unwrap());
        let net = Devnet::start(None, p).await;
        let user = net.account(10_000 * UNIT).await;
        let user = net.sender(user, dir.path()).await;
        let call = IModels::registerCall {
            manifest: model.manifest().encode().into(),
            program: model.program().encode().into(),
            hint: "test".into(),
        };
        user.send(&Intent::call("model", net.deployment.models, &call)).await.unwrap();
        approve(&user, net.deployment.market).await;
        let key = net.account(2 * STAKE).await;
        World { net, dir, model, user, key }
    }

    fn id(&self) -> B256 {
        self.model.id().into()
    }

    fn me(&self) -> Address {
        self.key.address()
    }

    fn prover(&self) -> Arc<dyn Prover> {
        Arc::new(EngineProver::new().with_cpu(Cpu::with_threads(self.model.clone(), 1).unwrap()))
    }

    fn config(&self) -> NodeConfig {
        let offer =
            Offer { model: self.id(), per_input_token: UNIT / 1_000, per_output_token: UNIT / 100, max_tokens: 400 };
        let registration = Registration {
            endpoint: Some("http://node.example".into()),
            capacity: Some(8),
            stake: STAKE,
            offers: vec![offer],
        };
        let mut config = NodeConfig::new(self.data());
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        config.registration = registration;
        config
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    async fn node(&self) -> Running {
        self.node_with(self.config(), self.prover(), Arc::new(Honest)).await
    }

    async fn node_with(&self, config: NodeConfig, prover: Arc<dyn Prover>, conduct: Arc<dyn Conduct>) -> Running {
        self.node_on(self.net.chain().await, config, prover, conduct).await
    }

    async fn node_on(
        &self,
        chain: sworn_chain::Chain,
        config: NodeConfig,
        prover: Arc<dyn Prover>,
        conduct: Arc<dyn Conduct>,
    ) -> Running {
        let path = self.data().join("journal.redb");
        // A task that was dropped in the middle of a computation holds the file until that ends; a killed process does not.
        let store = loop {
            match Store::open(&path, &chain) {
                Ok(store) => break store,
                Err(ChainError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(e) => panic!("{e}"),
            }
        };
        let sender = Sender::new(chain, self.key.clone(), store.clone(), Default::default());
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = EventSink::new({
            let events = events.clone();
            move |e: &NodeEvent| events.lock().unwrap().push(e.clone())
        });
        let node = Node::start(config, sender, store, prover, conduct, sink).await.unwrap();
        let url = node.address().map(|a| format!("http://{a}")).unwrap_or_default();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(node.run(async move {
            let _ = stopped.await;
        }));
        Running { stop, task, events, url }
    }

    /// Buys an answer from `node` (zero: from anybody).
    async fn buy(&self, name: &str, node: Address, prompt: &[u32], max_new: u32) -> U256 {
        let call = IMarket::createJobCall {
            modelId: self.id(),
            node,
            promptTokens: sequence::encode(prompt).into(),
            maxNew: max_new,
            maxPrice: UNIT,
            sampling: U256::ZERO,
            userSeed: B256::ZERO,
        };
        let id = self.user.chain().market().nextJobId().call().await.unwrap();
        self.user.send(&Intent::call(format!("buy/{name}"), self.net.deployment.market, &call)).await.unwrap();
        id
    }

    async fn job(&self, id: U256) -> IMarket::Job {
        self.user.chain().market().job(id).call().await.unwrap()
    }

    async fn reaches(&self, id: U256, state: JobState) -> IMarket::Job {
        eventually(&format!("job {id} {state:?}"), async || Some(self.job(id).await).filter(|j| j.state == state)).await
    }

    /// Time passes until the job is over.
    async fn finish(&self, id: U256, state: JobState) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.job(id).await.state != state {
            assert!(Instant::now() < until, "job {id} never {state:?}: {:?}", self.job(id).await);
            self.net.pass(20).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// All tokens there are, wherever: nothing is lost.
    async fn conserved(&self) {
        let chain = self.user.chain();
        let m = chain.market();
        let held = chain.token().balanceOf(*m.address()).call().await.unwrap();
        let mut owed = U256::ZERO;
        owed += m.totalEscrow().call().await.unwrap();
        owed += m.totalWithdrawable().call().await.unwrap();
        owed += m.totalFees().call().await.unwrap();
        owed += m.totalRewards().call().await.unwrap();
        assert_eq!(held, owed);
    }

    fn leaf_of(&self, layer: u16, ops: &[Vec<u8>]) -> [u8; 32] {
        let kind = SectionKind::of_layer(layer, self.model.layers()).unwrap();
        let section = &self.model.program().sections[kind as usize];
        let roots: Vec<_> =
            section.ops.iter().zip(ops).filter(|(d, _)| d.export).map(|(_, o)| tensor::tensor_root(o)).collect();
        trace::leaf(&roots)
    }
}

impl Running {
    fn has(&self, f: impl Fn(&NodeEvent) -> bool) -> bool {
        self.events.lock().unwrap().iter().any(f)
    }

    async fn waits_for(&self, what: &str, f: impl Fn(&NodeEvent) -> bool) {
        eventually(what, async || self.has(&f).then_some(())).await;
    }

    fn failures(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter_map(|e| {
                if let NodeEvent::Failed { action, error } = e { Some(format!("{action}: {error}")) } else { None }
            })
            .collect()
    }

    async fn stop(self) -> Vec<NodeEvent> {
        let _ = self.stop.send(());
        self.task.await.unwrap().unwrap();
        let events = self.events.lock().unwrap().clone();
        assert!(matches!(events.last(), Some(NodeEvent::Stopped)));
        events
    }

    /// As kill -9, as far as a task can be killed.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn eventually<T>(what: &str, mut f: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = f().await {
            return value;
        }
        assert!(Instant::now() < until, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn get(url: &str) -> (u16, Vec<u8>) {
    let response = reqwest::get(url).await.unwrap();
    (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_executed_served_finalized_and_paid() {
    let world = World::new(Params::default()).await;
    let shape = world.user.chain().models().shape(world.id()).call().await.unwrap();
    assert_eq!(shape, ModelShape::of(world.model.manifest(), world.model.program()));

    let node = world.node().await;
    let before = world.user.chain().balances(world.me()).await.unwrap();
    assert_eq!(before.stake, STAKE);
    let prompt: Vec<u32> = (0..40).map(|i| (i * 7) % 300).collect();
    let id = world.buy("one", world.me(), &prompt, 24).await;
    let job = world.reaches(id, JobState::Submitted).await;
    assert_eq!(job.nIn, 40);
    assert!((1..=24).contains(&job.nOut));

    // Whatever is served hashes to what is on chain.
    let base = format!("{}/v1/jobs/{id}", node.url);
    let (status, body) = get(&base).await;
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, json["prompt"].as_array().unwrap().len()), (200, 40));
    let tokens: Vec<u32> = serde_json::from_value(json["tokens"].clone()).unwrap();
    assert_eq!(B256::from(sequence::hash(&tokens)), job.outputHash);
    let dims = TraceDims { layers: world.model.layers(), n_in: job.nIn, n_out: job.nOut };
    let (_, bytes) = get(&format!("{base}/trace")).await;
    let tree = TraceTree::decode(&bytes, &dims).unwrap();
    assert_eq!(B256::from(tree.layers_root()), job.layersRoot);
    for (layer, row) in [(0, 3), (2, 50), (4, 1)] {
        let (status, bytes) = get(&format!("{base}/ops/{layer}/{row}")).await;
        let kind = SectionKind::of_layer(layer, world.model.layers()).unwrap();
        let section = &world.model.program().sections[kind as usize];
        let mut rest = &bytes[..];
        let position = dims.position(layer, row);
        let ops: Vec<Vec<u8>> = section
            .ops
            .iter()
            .map(|d| {
                let (op, others) = rest.split_at(d.bytes(position) as usize);
                rest = others;
                op.to_vec()
            })
            .collect();
        assert_eq!((status, rest.len()), (200, 0));
        assert_eq!(world.leaf_of(layer, &ops), tree.layer(layer).leaves()[row as usize]);
    }

    world.finish(id, JobState::Final).await;
    node.waits_for("withdrawal", |e| matches!(e, NodeEvent::Withdrawn { .. })).await;
    let price = u128::from(job.nIn) * (UNIT / 1_000) + u128::from(job.nOut) * (UNIT / 100);
    let after = world.user.chain().balances(world.me()).await.unwrap();
    assert_eq!(after.token - before.token, U256::from(price));
    assert_eq!((after.stake, after.locked, after.withdrawable), (STAKE, 0, U256::ZERO));
    world.conserved().await;
    assert_eq!(node.failures(), Vec::<String>::new());
    let events = node.stop().await;
    let names: Vec<String> =
        events.iter().map(|e| serde_json::to_value(e).unwrap()["event"].as_str().unwrap().to_owned()).collect();
    let order = ["started", "assigned", "executing", "executed", "submitted", "finalized", "withdrawn", "stopped"];
    let places: Vec<_> =
        order.iter().map(|n| names.iter().position(|m| m == n).unwrap_or_else(|| panic!("{n}: {names:?}"))).collect();
    // Pay can be withdrawn before the event of its finalization is read.
    assert!(places[..6].is_sorted(), "{names:?}");
    // A restart finds everything as it should be and posts nothing.
    let node = world.node().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = node.stop().await;
    assert!(
        !again.iter().any(|e| matches!(e, NodeEvent::Registered { .. } | NodeEvent::Submitted { .. })),
        "{again:?}"
    );
}

/// What a challenger proves of one target.
fn demand_proof(world: &World, tree: &TraceTree, ops: &[Vec<u8>], t: &Target) -> IChallenges::DemandProof {
    let hashes = |v: Vec<[u8; 32]>| v.into_iter().map(B256::from).collect::<Vec<_>>();
    let mut proof = IChallenges::DemandProof {
        nodeHash: B256::ZERO,
        path: vec![],
        opRoots: vec![],
        descriptor: Default::default(),
        descriptorProof: vec![],
    };
    let (level, index) = (u32::from(t.level), u64::from(t.index));
    match t.kind {
        TargetKind::Layers => {
            proof.nodeHash = tree.top().node(level, index).into();
            proof.path = hashes(tree.top().path(level, index));
        }
        TargetKind::Positions => {
            proof.nodeHash = tree.layer(t.layer).node(level, index).into();
            proof.path = hashes(tree.path(t.layer, level, index));
        }
        TargetKind::OpList => {
            proof.nodeHash = tree.layer(t.layer).node(0, t.row.into()).into();
            proof.path = hashes(tree.path(t.layer, 0, t.row.into()));
        }
        _ => {
            let pages = tensor::tensor_tree(&ops[t.op as usize]);
            proof.nodeHash = pages.node(level, index).into();
            proof.path = hashes(pages.path(level, index));
            proof.opRoots = hashes(ops.iter().map(|o| tensor::tensor_root(o)).collect());
            let kind = SectionKind::of_layer(t.layer, world.model.layers()).unwrap();
            let section = &world.model.program().sections[kind as usize];
            proof.descriptor = section.ops[t.op as usize].encode().to_vec().into();
            assert_eq!(section_tree(section).leaves()[t.op as usize], descriptor_leaf(&section.ops[t.op as usize]));
            proof.descriptorProof = hashes(section_tree(section).path(0, t.op.into()));
        }
    }
    proof
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demands_are_answered_and_delay_the_pay() {
    let world = World::new(Params::default()).await;
    let node = world.node().await;
    let prompt: Vec<u32> = (0..70).collect();
    let id = world.buy("one", world.me(), &prompt, 5).await;
    let job = world.reaches(id, JobState::Submitted).await;
    let prover = world.prover();
    let bought = Job { id, model: world.id(), prompt, max_new: 5, run: RunParams::default() };
    let Execution { tokens, trace, .. } = prover.execute(&bought, &Arc::new(AtomicBool::new(false))).unwrap();
    assert_eq!(B256::from(trace.layers_root()), job.layersRoot);
    let head = world.model.layers() + 1;
    let row = 0;
    let ops = prover.ops(&bought, &tokens, head, row).unwrap();
    // The logits take two pages.
    let logits = ops.iter().position(|o| o.len() > tensor::PAGE).unwrap() as u16;
    let challenges = world.net.deployment.challenges;
    let mut parent = B256::ZERO;
    for target in [
        Target::layers(3, 0),
        Target::positions(2, 7, 0),
        Target::positions(2, 2, 17),
        Target::op_list(head, row),
        Target::pages(head, row, logits, 1, 0),
        Target::page(head, row, logits, 1),
    ] {
        let proof = demand_proof(&world, &trace, &ops, &target);
        let shown = target.to_string();
        let key = format!("demand/{shown}");
        let opening = opening_id(id, &target);
        assert_eq!(opening, world.user.chain().challenges().openingId(id, target.clone()).call().await.unwrap());
        let call = IChallenges::demandCall { jobId: id, parent, target: target.clone(), proof };
        world.user.send(&Intent::call(key, challenges, &call)).await.unwrap_or_else(|e| panic!("{shown}: {e}"));
        node.waits_for(&shown, |e| matches!(e, NodeEvent::Answered { target, .. } if *target == shown)).await;
        parent = opening;
    }
    assert_eq!(node.failures(), Vec::<String>::new());
    // The challenger's last turn is not over when the window is.
    world.net.pass(61).await;
    world.finish(id, JobState::Final).await;
    // The fees of the demands are the node's.
    node.waits_for("withdrawal", |e| matches!(e, NodeEvent::Withdrawn { .. })).await;
    let price = u128::from(job.nIn) * (UNIT / 1_000) + u128::from(job.nOut) * (UNIT / 100);
    let paid = world.user.chain().balances(world.me()).await.unwrap().token;
    assert_eq!(paid, U256::from(STAKE + price + 6 * (UNIT / 100)));
    world.conserved().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_when_killed_at_any_moment() {
    let world = World::new(Params { submit: 3_600, ..Params::default() }).await;
    // Registered before the first job names it.
    world.node().await.stop().await;
    let mut ids = Vec::new();
    for j in 0..4u32 {
        let prompt: Vec<u32> = (0..20 + j).collect();
        ids.push(world.buy(&format!("{j}"), world.me(), &prompt, 12).await);
    }
    let mut kills = 0u64;
    let mut done = false;
    while !done {
        assert!(kills < 400, "it makes no progress");
        let node = world.node().await;
        // Moments spread over the life of a job; longer as time goes on, so that it ends.
        tokio::time::sleep(Duration::from_millis(1 + kills)).await;
        node.kill().await;
        kills += 1;
        done = true;
        for id in &ids {
            done &= world.job(*id).await.state == JobState::Submitted;
        }
    }
    // Journal and traces are gone as well: the chain has all that is needed.
    std::fs::remove_dir_all(world.data()).unwrap();
    let mut over = false;
    while !over {
        assert!(kills < 800, "it makes no progress");
        world.net.pass(10).await;
        let node = world.node().await;
        tokio::time::sleep(Duration::from_millis(1 + (kills * 7) % 60)).await;
        node.kill().await;
        kills += 1;
        over = true;
        for id in &ids {
            over &= world.job(*id).await.state == JobState::Final;
        }
    }
    let node = world.node().await;
    let mut price = 0;
    for id in &ids {
        let job = world.job(*id).await;
        price += u128::from(job.nIn) * (UNIT / 1_000) + u128::from(job.nOut) * (UNIT / 100);
    }
    eventually("all pay", async || {
        let b = world.user.chain().balances(world.me()).await.unwrap();
        (b.token == U256::from(STAKE + price) && b.stake == STAKE && b.locked == 0).then_some(())
    })
    .await;
    world.conserved().await;
    // One transaction each: registration 4, and a submission and a finalization per job, and at least one withdrawal.
    let sent =
        alloy::providers::Provider::get_transaction_count(world.user.chain().provider(), world.me()).await.unwrap();
    let least = 4 + 4 * 2 + 1;
    assert!((least..=least + 4).contains(&sent), "{sent} transactions after {kills} kills");
    eprintln!("{kills} kills, {sent} transactions");
    assert_eq!(node.failures(), Vec::<String>::new());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorganisation_that_gives_the_id_to_another_job_is_followed() {
    let world = World::new(Params::default()).await;
    let node = world.node().await;
    node.waits_for("start", |e| matches!(e, NodeEvent::Started { .. })).await;
    let snapshot = world.net.rpc("evm_snapshot", serde_json::json!([])).await;
    let gone = world.buy("a", world.me(), &[1, 2, 3, 4, 5], 4).await;
    world.reaches(gone, JobState::Submitted).await;
    world.finish(gone, JobState::Final).await;
    node.waits_for("withdrawal", |e| matches!(e, NodeEvent::Withdrawn { .. })).await;

    world.net.rpc("evm_revert", serde_json::json!([snapshot])).await;
    world.net.pass(7).await;
    let prompt = [200, 201, 202];
    let id = world.buy("b", world.me(), &prompt, 6).await;
    assert_eq!(id, gone);
    let job = world.reaches(id, JobState::Submitted).await;
    let bought = Job { id, model: world.id(), prompt: prompt.to_vec(), max_new: 6, run: RunParams::default() };
    let honest = world.prover().execute(&bought, &Arc::new(AtomicBool::new(false))).unwrap();
    assert_eq!(job.layersRoot, B256::from(honest.trace.layers_root()));
    let (_, bytes) = get(&format!("{}/v1/jobs/{id}/trace", node.url)).await;
    assert_eq!(bytes, honest.trace.encode());
    world.finish(id, JobState::Final).await;
    eventually("pay", async || {
        let b = world.user.chain().balances(world.me()).await.unwrap();
        (b.token > U256::from(STAKE) && b.withdrawable.is_zero()).then_some(())
    })
    .await;
    node.stop().await;
}

/// Whether a job is paid, and the pay withdrawn.
async fn is_paid(world: &World, id: U256) -> Option<()> {
    let b = world.user.chain().balances(world.me()).await.unwrap();
    let paid = b.token > U256::from(STAKE) && b.withdrawable.is_zero();
    (world.job(id).await.state == JobState::Final && paid).then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorganisation_that_takes_the_pay_back_is_followed() {
    let world = World::new(Params::default()).await;
    let node = world.node().await;
    let id = world.buy("a", world.me(), &[1, 2, 3, 4, 5], 4).await;
    world.reaches(id, JobState::Submitted).await;
    world.finish(id, JobState::Final).await;
    eventually("pay", async || is_paid(&world, id).await).await;

    let chain = world.user.chain();
    let is_final =
        async |block: u64| chain.market().job(id).block(block.into()).call().await.unwrap().state == JobState::Final;
    world.net.undo(chain, is_final).await;
    eventually("pay again", async || is_paid(&world, id).await).await;

    // And of a node that is not there.
    node.stop().await;
    world.net.undo(chain, is_final).await;
    let node = world.node().await;
    eventually("pay once more", async || is_paid(&world, id).await).await;
    node.stop().await;
}

/// Forwards to anvil until it is told not to.
async fn flaky_rpc(to: u16, down: Arc<AtomicBool>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let down = down.clone();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let cut = async {
                    while !down.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = cut => {}
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_wait_for_the_end_of_their_windows_cost_few_requests() {
    let world = World::new(Params { window: 600, ..Params::default() }).await;
    world.node().await.stop().await;
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let count = move |request: &serde_json::Value| {
        counted.fetch_add(request.to_string().matches("\"eth_call\"").count() as u64, Ordering::Relaxed);
        true
    };
    let rpc = server(world.net.anvil.endpoint(), count).await;
    let chain = sworn_chain::Chain::connect(&rpc, world.net.deployment.clone()).await.unwrap();
    let chain = chain.with_poll(Duration::from_millis(5));
    let node = world.node_on(chain, world.config(), world.prover(), Arc::new(Honest)).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        ids.push(world.buy(name, world.me(), &[1, 2, 3], 4).await);
    }
    for id in &ids {
        world.reaches(*id, JobState::Submitted).await;
    }
    // News are cold.
    let blocks = async |n: u64| {
        for _ in 0..n {
            world.net.pass(1).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    blocks(20).await;
    let before = calls.load(Ordering::Relaxed);
    blocks(40).await;
    // What the node itself is owed, in every block; each job once in 64 blocks.
    let asked = calls.load(Ordering::Relaxed) - before;
    assert!(asked <= 40 + 6 * 2, "{asked} calls in 40 blocks for 6 jobs");
    assert!(asked >= 20, "{asked}: the node does not follow");
    for id in ids {
        world.finish(id, JobState::Final).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_rpc_is_told_and_outlived() {
    let world = World::new(Params::default()).await;
    world.node().await.stop().await;
    let down = Arc::new(AtomicBool::new(false));
    let rpc = flaky_rpc(world.net.anvil.port(), down.clone()).await;
    let chain = sworn_chain::Chain::connect(&rpc, world.net.deployment.clone()).await.unwrap();
    let node = world
        .node_on(chain.with_poll(Duration::from_millis(20)), world.config(), world.prover(), Arc::new(Honest))
        .await;
    node.waits_for("start", |e| matches!(e, NodeEvent::Started { .. })).await;
    down.store(true, Ordering::Relaxed);
    let id = world.buy("a", world.me(), &[1, 2, 3], 4).await;
    node.waits_for("complaint", |e| matches!(e, NodeEvent::Failed { action, .. } if action.contains("chain"))).await;
    assert_eq!(world.job(id).await.state, JobState::Assigned);
    down.store(false, Ordering::Relaxed);
    world.reaches(id, JobState::Submitted).await;
    node.stop().await;
}

const CHILD: &str = "SWORN_TEST_NODE_PROCESS";

/// Not a test: the node that [`a_process_killed_by_the_system_resumes`] starts as a process and kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_process() {
    let Ok(settings) = std::env::var(CHILD) else { return };
    let s: serde_json::Value = serde_json::from_str(&settings).unwrap();
    let text = |name: &str| s[name].as_str().unwrap().to_owned();
    let deployment = serde_json::from_value(s["deployment"].clone()).unwrap();
    let chain =
        sworn_chain::Chain::connect(&text("rpc"), deployment).await.unwrap().with_poll(Duration::from_millis(20));
    let store = Store::open(PathBuf::from(text("data")).join("journal.redb"), &chain).unwrap();
    let sender =
        Sender::new(chain, text("key").parse::<PrivateKeySigner>().unwrap(), store.clone(), Default::default());
    let model = Arc::new(Model::load(text("model")).unwrap());
    let prover = Arc::new(EngineProver::new().with_cpu(Cpu::with_threads(model, 1).unwrap()));
    let config = NodeConfig::new(text("data"));
    let node = Node::start(config, sender, store, prover, Arc::new(Honest), EventSink::none()).await.unwrap();
    node.run(std::future::pending()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_by_the_system_resumes() {
    let world = World::new(Params { submit: 3_600, ..Params::default() }).await;
    world.node().await.stop().await;
    let settings = serde_json::json!({
        "deployment": world.net.deployment, "rpc": world.net.anvil.endpoint(), "data": world.data(),
        "model": world.model.path(), "key": format!("{}", world.key.to_bytes()),
    });
    let mut ids = Vec::new();
    for j in 0..3u32 {
        ids.push(world.buy(&format!("{j}"), world.me(), &[j, 4, 5, 6], 10).await);
    }
    let mut kills = 0u64;
    loop {
        let mut over = true;
        let mut submitted = true;
        for id in &ids {
            let state = world.job(*id).await.state;
            over &= state == JobState::Final;
            submitted &= state != JobState::Assigned;
        }
        let b = world.user.chain().balances(world.me()).await.unwrap();
        if over && b.withdrawable.is_zero() {
            break;
        }
        assert!(kills < 200, "it makes no progress");
        if submitted {
            world.net.pass(4).await;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node_process", "--nocapture"])
            .env(CHILD, settings.to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Longer each time: on a slow machine too it gets somewhere before it dies.
        tokio::time::sleep(Duration::from_millis(10 + (kills * 7) % 90 + kills * 3)).await;
        assert!(child.try_wait().unwrap().is_none(), "the node ended by itself");
        // SIGKILL: nothing of it runs again.
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    let mut price = 0;
    for id in &ids {
        let job = world.job(*id).await;
        price += u128::from(job.nIn) * (UNIT / 1_000) + u128::from(job.nOut) * (UNIT / 100);
    }
    let b = world.user.chain().balances(world.me()).await.unwrap();
    assert_eq!((b.token, b.stake, b.locked), (U256::from(STAKE + price), STAKE, 0));
    let sent =
        alloy::providers::Provider::get_transaction_count(world.user.chain().provider(), world.me()).await.unwrap();
    eprintln!("{kills} kills, {sent} transactions");
    // Registration 4; a submission and a finalization per job; one withdrawal at least, one per job at most.
    assert!((4 + 3 * 2 + 1..=4 + 3 * 3).contains(&sent), "{sent}");
    world.conserved().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_jobs_are_taken_as_soon_as_they_pay_the_price() {
    let world = World::new(Params::default()).await;
    let config = NodeConfig { accept_open: true, ..world.config() };
    let node = world.node_with(config, world.prover(), Arc::new(Honest)).await;
    // Twelve times the posted price of an output token, without a transaction.
    let price = Price { per_input_token: UNIT / 1_000, per_output_token: 12 * UNIT / 100, max_tokens: 200 };
    PriceList([(world.id(), price)].into()).write(&PriceList::file(&world.data())).unwrap();
    // This one costs 6.05 of a ceiling of one token; the other 0.483, which its offer has risen to after 9.66 seconds of 20.
    let dear = world.buy("dear", Address::ZERO, &[1; 50], 50).await;
    let fair = world.buy("fair", Address::ZERO, &[1, 2, 3], 4).await;
    world.net.pass(5).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.job(fair).await.state, JobState::Open);
    world.net.pass(6).await;
    let job = world.reaches(fair, JobState::Submitted).await;
    assert_eq!((job.perInputToken, job.perOutputToken), (price.per_input_token, price.per_output_token));
    assert_eq!(job.escrow, price.per_input_token * 3 + price.per_output_token * 4);
    world.net.pass(30).await;
    assert_eq!(world.job(dear).await.state, JobState::Open);
    world.finish(fair, JobState::Final).await;
    assert!(node.has(|e| matches!(e, NodeEvent::Accepted { .. })));
    assert_eq!(node.failures(), Vec::<String>::new());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_node_ends_its_job_and_frees_its_bond() {
    let world = World::new(Params { submit: 100, ..Params::default() }).await;
    world.node().await.stop().await;
    let id = world.buy("late", world.me(), &[5, 6], 3).await;
    let bond = world.job(id).await.bond;
    world.net.pass(101).await;
    let node = world.node().await;
    world.reaches(id, JobState::Expired).await;
    node.waits_for("closed", |e| matches!(e, NodeEvent::Closed { state: "expired", .. })).await;
    let b = world.user.chain().balances(world.me()).await.unwrap();
    assert_eq!((b.stake, b.locked), (STAKE - bond / 20, 0));
    assert!(!node.has(|e| matches!(e, NodeEvent::Executing { .. })));
    node.stop().await;
}

/// Test-support nodes bring their own conduct: this one shows nothing.
struct Silent;

impl Conduct for Silent {
    fn answers(&self, _: &Job, _: &Target) -> bool {
        false
    }

    fn serve_trace(&self, _: &Job, _: TraceTree) -> Option<TraceTree> {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conduct_decides_what_is_shown_and_silence_is_slashed() {
    let world = World::new(Params::default()).await;
    let node = world.node_with(world.config(), world.prover(), Arc::new(Silent)).await;
    let id = world.buy("one", world.me(), &[9, 8, 7], 3).await;
    let job = world.reaches(id, JobState::Submitted).await;
    assert_eq!(get(&format!("{}/v1/jobs/{id}/trace", node.url)).await.0, 404);
    let prover = world.prover();
    let bought = Job { id, model: world.id(), prompt: vec![9, 8, 7], max_new: 3, run: RunParams::default() };
    let trace = prover.execute(&bought, &Arc::new(AtomicBool::new(false))).unwrap().trace;
    let target = Target::layers(1, 0);
    let proof = demand_proof(&world, &trace, &[], &target);
    let challenges = world.net.deployment.challenges;
    let call = IChallenges::demandCall { jobId: id, parent: B256::ZERO, target: target.clone(), proof };
    world.user.send(&Intent::call("demand", challenges, &call)).await.unwrap();
    node.waits_for("the demand", |e| matches!(e, NodeEvent::Demanded { .. })).await;
    world.net.pass(61).await;
    world
        .user
        .send(&Intent::call("timeout", challenges, &IChallenges::timeoutCall { jobId: id, target }))
        .await
        .unwrap();
    node.waits_for("the slash", |e| matches!(e, NodeEvent::Slashed { bond, .. } if *bond == U256::from(job.bond)))
        .await;
    assert!(!node.has(|e| matches!(e, NodeEvent::Answered { .. })));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_get_clear_refusals_and_cannot_exhaust_the_node() {
    let world = World::new(Params::default()).await;
    let config = NodeConfig { http_concurrency: 2, http_timeout: Duration::from_millis(400), ..world.config() };
    let node = world.node_with(config, Arc::new(Slow(world.prover())), Arc::new(Honest)).await;
    let id = world.buy("one", world.me(), &[1, 2, 3], 3).await;
    world.reaches(id, JobState::Submitted).await;
    let huge = "9".repeat(400);
    for (path, wanted) in [
        ("/health", 200),
        ("/v1/info", 200),
        ("/v1/jobs/77", 404),
        ("/v1/jobs/77/trace", 404),
        ("/v1/jobs/-1", 400),
        ("/v1/jobs/one", 400),
        ("/v1/jobs/0x1", 400),
        ("/v1/jobs/%00/trace", 400),
        (&format!("/v1/jobs/{huge}"), 400),
        ("/v1/jobs/1/ops/99/0", 404),
        ("/v1/jobs/1/ops/1/4000000000", 404),
        ("/v1/jobs/1/ops/70000/0", 400),
        ("/v1/jobs/1/ops/x/y", 400),
        ("/nothing", 404),
    ] {
        let (status, body) = get(&format!("{}{path}", node.url)).await;
        assert_eq!(status, wanted, "{path}: {}", String::from_utf8_lossy(&body));
        if wanted != 200 {
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert!(
                json["error"].as_str().is_some_and(|e| !e.is_empty()) && json["request"].is_string(),
                "{path}: {json}"
            );
        }
    }
    let info = sworn_receipts::Client::new(&node.url, Default::default()).unwrap().info().await.unwrap();
    assert_eq!((info.account, &info.models[..], info.jobs_under_way), (world.me(), &[world.id()][..], 1));
    let client = reqwest::Client::new();
    let response = client.post(format!("{}/v1/info", node.url)).body(vec![0; 1 << 20]).send().await;
    assert!(response.is_err() || response.unwrap().status() == 405);
    // The node closes that connection, whose body it did not read; whoever asked on it again might be too quick.
    let other = reqwest::Client::new();
    let response = other.get(format!("{}/health", node.url)).header("x-request-id", "mine-1").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-1");

    // Two slow requests fill the node; a third is told to come back; all end in time.
    let slow = format!("{}/v1/jobs/{id}/ops/1/0", node.url);
    let start = Instant::now();
    let (a, b, c) = tokio::join!(get(&slow), get(&slow), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        get(&format!("{}/health", node.url)).await
    });
    assert_eq!((a.0, b.0, c.0), (504, 504, 503));
    assert!(start.elapsed() < Duration::from_secs(2));
    node.stop().await;
}

/// Takes its time to replay.
struct Slow(Arc<dyn Prover>);

impl Prover for Slow {
    fn models(&self) -> Vec<B256> {
        self.0.models()
    }

    fn layers(&self, model: B256) -> Option<u16> {
        self.0.layers(model)
    }

    fn manifest(&self, model: B256) -> Option<Manifest> {
        self.0.manifest(model)
    }

    fn execute(&self, job: &Job, cancel: &Arc<AtomicBool>) -> sworn_node::Result<Execution> {
        self.0.execute(job, cancel)
    }

    fn leaves(&self, job: &Job, tokens: &[u32]) -> sworn_node::Result<TraceTree> {
        self.0.leaves(job, tokens)
    }

    fn log_probs(&self, job: &Job, tokens: &[u32]) -> sworn_node::Result<Vec<HeadRow>> {
        self.0.log_probs(job, tokens)
    }

    fn ops(&self, job: &Job, tokens: &[u32], layer: u16, row: u32) -> sworn_node::Result<Vec<Vec<u8>>> {
        if (layer, row) == (1, 0) {
            std::thread::sleep(Duration::from_millis(1_000));
        }
        self.0.ops(job, tokens, layer, row)
    }
}

/// For the compiler: a running node can be moved to another thread.
fn _send(node: Node) -> impl Future<Output = sworn_node::Result<()>> + Send {
    node.run(std::future::pending())
}
