//! Payment by receipts against a real anvil with the real contracts and a synthetic model.
#![allow(missing_docs, dead_code, unreachable_pub)]

#[path = "../../chain/tests/support/devnet.rs"]
mod devnet;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use devnet::{Devnet, Params, UNIT, approve};
use sworn_bindings::IChannels::BatchState;
use sworn_bindings::{IChallenges, IChannels, IModels, INodes, ITrials, Part, Place, Target};
use sworn_chain::{Error as ChainError, Intent, Sender, Store};
use sworn_commit::{HeadRow, Manifest, TraceTree};
use sworn_engine::{Cpu, audit};
use sworn_model::{Model, synthetic};
use sworn_node::{
    ChannelTerms, Conduct, EngineProver, EventSink, Execution, Honest, Job, Node, NodeConfig, NodeEvent, Offer, Prover,
    Registration,
};
use sworn_receipts::{
    Answered, Ask, Client, ClientOptions, Code, Domain, Error, Event, Finish, Receipt, SignedReceipt, Tier,
    check_answer, follows, sign_sync,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const STAKE: u128 = 1_000 * UNIT;
const CHANNEL: u128 = 10 * UNIT;

struct World {
    net: Devnet,
    dir: tempfile::TempDir,
    model: Arc<Model>,
    user: Sender,
    hot: PrivateKeySigner,
    key: PrivateKeySigner,
    session: PrivateKeySigner,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<sworn_node::Result<()>>,
    events: Arc<Mutex<Vec<NodeEvent>>>,
    client: Client,
    url: String,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let spec = synthetic::SyntheticSpec { context: 512, ..Default::default() };
        let model = Arc::new(synthetic::synthetic(&spec, dir.path().join("model")).unwrap());
        let net = Devnet::start(None, Params::default()).await;
        let user = net.account(10_000 * UNIT).await;
        let user = net.sender(user, dir.path()).await;
        let call = IModels::registerCall {
            manifest: model.manifest().encode().into(),
            program: model.program().encode().into(),
            hint: "test".into(),
        };
        user.send(&Intent::call("model", net.deployment.models, &call)).await.unwrap();
        approve(&user, net.deployment.channels).await;
        let call = IChannels::depositCall { amount: 1_000 * UNIT };
        user.send(&Intent::call("deposit", net.deployment.channels, &call)).await.unwrap();
        let key = net.account(2 * STAKE).await;
        let (hot, session) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        World { net, dir, model, user, hot, key, session }
    }

    fn domain(&self) -> Domain {
        Domain { chain_id: self.net.deployment.chain_id, channels: self.net.deployment.channels }
    }

    fn config(&self, redeem_at: u128) -> NodeConfig {
        let offer = Offer {
            model: self.model.id().into(),
            per_input_token: UNIT / 1_000,
            per_output_token: UNIT / 100,
            max_tokens: 400,
        };
        let mut config = NodeConfig::new(self.data());
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        config.registration = Registration {
            endpoint: Some("http://node.example".into()),
            capacity: Some(8),
            stake: STAKE,
            offers: vec![offer],
        };
        config.channels = Some(ChannelTerms { redeem_at, ..ChannelTerms::new(self.session.clone()) });
        config
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    fn prover(&self) -> Arc<dyn Prover> {
        Arc::new(Paced(EngineProver::new().with_cpu(Cpu::with_threads(self.model.clone(), 1).unwrap())))
    }

    async fn node(&self, redeem_at: u128) -> Running {
        self.node_in(self.data(), redeem_at).await
    }

    async fn node_in(&self, data: PathBuf, redeem_at: u128) -> Running {
        self.node_with(data, redeem_at, Arc::new(Honest)).await
    }

    async fn node_with(&self, data: PathBuf, redeem_at: u128, conduct: Arc<dyn Conduct>) -> Running {
        self.node_of(data, conduct, |config| {
            let terms = config.channels.map(|t| ChannelTerms { redeem_at, ..t });
            NodeConfig { channels: terms, ..config }
        })
        .await
    }

    async fn node_of(
        &self,
        data: PathBuf,
        conduct: Arc<dyn Conduct>,
        change: impl FnOnce(NodeConfig) -> NodeConfig,
    ) -> Running {
        let chain = self.net.chain().await;
        let path = data.join("journal.redb");
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
        let config = NodeConfig { data, ..change(self.config(u128::MAX)) };
        let node = Node::start(config, sender, store, self.prover(), conduct, sink).await.unwrap();
        let url = format!("http://{}", node.address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(node.run(async move {
            let _ = stopped.await;
        }));
        let client = Client::new(&url, ClientOptions::default()).unwrap();
        Running { stop, task, events, client, url }
    }

    async fn open(&self, salt: u8) -> B256 {
        self.open_for(self.hot.address(), salt).await
    }

    async fn open_for(&self, signer: Address, salt: u8) -> B256 {
        let (salt, node) = (B256::repeat_byte(salt), self.key.address());
        let call = IChannels::openCall { node, signer, amount: CHANNEL, salt };
        self.user.send(&Intent::call(format!("open/{salt}"), self.net.deployment.channels, &call)).await.unwrap();
        let me = self.user.account();
        self.user.chain().channels().channelIdOf(me, node, salt).call().await.unwrap()
    }

    /// A request with its voucher.
    async fn request(&self, node: &Running, channel: B256, request: u64, max_new: u32, cumulative: u128) -> Ask {
        let offer = node.client.offers().await.unwrap().remove(0);
        let ask = Ask {
            request,
            model: self.model.id().into(),
            prompt: (1..20).map(|t| t + request as u32).collect(),
            max_new,
            sampling: U256::ZERO,
            seed: B256::ZERO,
            cumulative,
            voucher: Default::default(),
            offer,
            logprobs: None,
        };
        self.sign(channel, ask, &self.hot)
    }

    fn sign(&self, channel: B256, ask: Ask, by: &PrivateKeySigner) -> Ask {
        let voucher = ask.voucher(channel).unwrap();
        Ask { voucher: sign_sync(by, &self.domain(), &voucher).unwrap().into(), ..ask }
    }

    fn checked(&self, channel: B256, ask: &Ask, (tokens, signed, _): &(Vec<u32>, SignedReceipt, Finish)) {
        check_answer(&self.domain(), channel, ask, tokens, signed, |a| a == self.session.address()).unwrap();
        let cpu = Cpu::with_threads(self.model.clone(), 1).unwrap();
        let honest = audit(&cpu, &ask.prompt, tokens, &ask.run().unwrap(), None).unwrap();
        assert_eq!(signed.receipt.layersRoot, B256::from(honest.trace.layers_root));
        assert_eq!(honest.first_wrong_token(tokens), None);
    }

    /// Where the only receipt of the only channel of a batch is.
    fn place(&self, batch: U256, signed: &SignedReceipt) -> Place {
        let part = Part {
            channelId: signed.receipt.channelId,
            first: 1,
            last: 1,
            amount: signed.receipt.price,
            cumulative: signed.receipt.cumulative,
            receiptsRoot: sworn_receipts::receipts_root(&self.domain(), [&signed.receipt]),
        };
        Place { batchId: batch, part, index: 0, proof: vec![] }
    }

    async fn channel(&self, id: B256) -> IChannels::Channel {
        self.user.chain().channels().channel(id).call().await.unwrap()
    }
}

impl Running {
    async fn answer(&self, channel: B256, ask: &Ask) -> (Vec<u32>, SignedReceipt, Finish) {
        let mut answer = self.client.ask(channel, ask).await.unwrap();
        let mut tokens = Vec::new();
        loop {
            match answer.next().await.unwrap().expect("a receipt") {
                Event::Token { token, .. } => tokens.push(token),
                Event::Receipt { signed, finish } => {
                    tokens.truncate(signed.receipt.nOut as usize);
                    return (tokens, signed, finish);
                }
                Event::Error(e) => panic!("{e}"),
            }
        }
    }

    async fn refused(&self, channel: B256, ask: &Ask) -> sworn_receipts::Refusal {
        match self.client.ask(channel, ask).await {
            Err(Error::Refused { status, refusal, .. }) => {
                assert_eq!(status, refusal.code.status());
                *refusal
            }
            other => panic!("{other:?}"),
        }
    }

    async fn waits_for(&self, what: &str, f: impl Fn(&NodeEvent) -> bool) -> NodeEvent {
        eventually(what, async || self.events.lock().unwrap().iter().find(|e| f(e)).cloned()).await
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap().unwrap();
    }
}

/// As fast as a person reads: so that there is a middle of an answer.
struct Paced(EngineProver);

impl Prover for Paced {
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

    fn stream(
        &self,
        job: &Job,
        cancel: &Arc<AtomicBool>,
        on_token: &mut dyn FnMut(u32, Option<&HeadRow>) -> ControlFlow<()>,
    ) -> sworn_node::Result<Execution> {
        self.0.stream(job, cancel, &mut |token, row| {
            std::thread::sleep(Duration::from_millis(15));
            on_token(token, row)
        })
    }

    fn leaves(&self, job: &Job, tokens: &[u32]) -> sworn_node::Result<TraceTree> {
        self.0.leaves(job, tokens)
    }

    fn tells_log_probs(&self, model: B256) -> bool {
        self.0.tells_log_probs(model)
    }

    fn log_probs(&self, job: &Job, tokens: &[u32]) -> sworn_node::Result<Vec<HeadRow>> {
        self.0.log_probs(job, tokens)
    }

    fn ops(&self, job: &Job, tokens: &[u32], layer: u16, row: u32) -> sworn_node::Result<Vec<Vec<u8>>> {
        self.0.ops(job, tokens, layer, row)
    }
}

async fn eventually<T>(what: &str, mut f: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = f().await {
            return value;
        }
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_key_is_renewed_while_the_node_runs_unless_it_was_revoked() {
    const DAY: u64 = 86_400;
    let w = World::new().await;
    let node = w.node(u128::MAX).await;
    let (nodes, me, key) = (w.user.chain().nodes(), w.key.address(), w.session.address());
    let until = async || nodes.sessionKey(me, key).call().await.unwrap().to::<u64>();
    let first = until().await;
    w.net.pass(61 * DAY).await;
    eventually("a key that is valid for longer", async || (until().await > first + 60 * DAY).then_some(())).await;

    let other = w.net.sender(w.key.clone(), &w.dir.path().join("other")).await;
    let revoke = INodes::revokeSessionKeyCall { key };
    other.send(&Intent::call("revoke", w.net.deployment.nodes, &revoke)).await.unwrap();
    let revoked = until().await;
    for _ in 0..3 {
        w.net.pass(DAY + 1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(until().await, revoked);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_answers_are_streamed_paid_redeemed_released_and_withdrawn() {
    let w = World::new().await;
    let node = w.node(u128::MAX).await;
    let channel = w.open(1).await;

    // Signed by the session key, which the node has had authorised.
    let offers = node.client.offers().await.unwrap();
    assert_eq!((offers.len(), offers[0].offer.node), (1, w.key.address()));
    let until = w.user.chain().nodes().sessionKey(w.key.address(), w.session.address()).call().await.unwrap();
    assert!(until.to::<u64>() > 0);

    // Whole, several at a time, and ended by the client.
    let first = w.request(&node, channel, 7, 12, UNIT).await;
    let one = node.answer(channel, &first).await;
    w.checked(channel, &first, &one);
    follows(None, &one.1.receipt).unwrap();
    assert_eq!(one.2, Finish::Length);

    let (b, c) = (w.request(&node, channel, 1, 9, 2 * UNIT).await, w.request(&node, channel, 2, 9, 2 * UNIT).await);
    let (two, three) = tokio::join!(node.answer(channel, &b), node.answer(channel, &c));
    w.checked(channel, &b, &two);
    w.checked(channel, &c, &three);
    let mut later = [two.1.receipt.clone(), three.1.receipt.clone()];
    later.sort_by_key(|r| r.sequence);
    follows(Some(&one.1.receipt), &later[0]).unwrap();
    follows(Some(&later[0]), &later[1]).unwrap();

    let long = w.request(&node, channel, 3, 300, 8 * UNIT).await;
    let mut answer = node.client.ask(channel, &long).await.unwrap();
    let mut got = Vec::new();
    let ended = loop {
        match answer.next().await.unwrap().unwrap() {
            Event::Token { token, .. } => {
                got.push(token);
                if got.len() == 5 {
                    node.client.end(channel, 3, 4).await.unwrap();
                }
            }
            Event::Receipt { signed, finish } => break (got[..4].to_vec(), signed, finish),
            Event::Error(e) => panic!("{e}"),
        }
    };
    assert_eq!((ended.1.receipt.nOut, ended.2), (4, Finish::Ended));
    w.checked(channel, &long, &ended);

    // Again: the same receipt, no second price.
    assert_eq!(node.answer(channel, &first).await, one);
    let state = node.client.channel(channel).await.unwrap();
    assert_eq!((state.sequence, state.in_flight.len()), (4, 0));
    assert_eq!(state.cumulative, ended.1.receipt.cumulative);
    let page = node.client.receipts(channel, 2, 99).await.unwrap();
    assert_eq!((page.receipts.len(), page.next), (3, None));
    assert!(page.receipts.iter().all(|r| r.signed.receipt.is_of(&r.prompt, &r.output)));
    let trace = reqwest::get(format!("{}/v1/channels/{channel}/receipts/4/trace", node.url)).await.unwrap();
    let dims = ended.1.receipt.dims(w.model.layers()).unwrap();
    let tree = TraceTree::decode(&trace.bytes().await.unwrap(), &dims).unwrap();
    assert_eq!(B256::from(tree.layers_root()), ended.1.receipt.layersRoot);
    let ops = reqwest::get(format!("{}/v1/channels/{channel}/receipts/4/ops/1/0", node.url)).await.unwrap();
    assert!(ops.status().is_success());
    node.stop().await;

    // Redeemed when it is worth it, released after the window, withdrawn.
    let node = w.node(UNIT / 100).await;
    node.waits_for("redeemed", |e| matches!(e, NodeEvent::Redeemed { .. })).await;
    let on_chain = w.channel(channel).await;
    assert_eq!((on_chain.sequence, on_chain.claimed), (4, state.cumulative));
    let token = w.user.chain().token();
    let before = token.balanceOf(w.key.address()).call().await.unwrap();
    w.net.pass(61).await;
    node.waits_for("released", |e| matches!(e, NodeEvent::Released { .. })).await;
    node.waits_for("withdrawn", |e| matches!(e, NodeEvent::Withdrawn { .. })).await;
    let after = token.balanceOf(w.key.address()).call().await.unwrap();
    assert_eq!(after - before, U256::from(state.cumulative));

    // Still the same answer, and the numbers go on.
    assert_eq!(node.answer(channel, &first).await, one);
    let next = w.request(&node, channel, 4, 3, 3 * UNIT).await;
    let five = node.answer(channel, &next).await;
    follows(Some(&ended.1.receipt), &five.1.receipt).unwrap();

    // A channel that closes is redeemed at once, however little it owes.
    let call = IChannels::requestCloseCall { channelId: channel };
    w.user.send(&Intent::call("close", w.net.deployment.channels, &call)).await.unwrap();
    eventually("redeemed before the end", async || (w.channel(channel).await.sequence == 5).then_some(())).await;
    let mut number = 4;
    eventually("refused", async || {
        number += 1;
        let closing = w.request(&node, channel, number, 3, 3 * UNIT).await;
        match node.client.ask(channel, &closing).await {
            // The node looks at the channel now and then: until then it answers.
            Ok(_) => None,
            Err(Error::Refused { refusal, .. }) => (refusal.code == Code::ChannelClosed).then_some(()),
            Err(e) => panic!("{e}"),
        }
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2e_reorganisations_that_take_money_back_are_followed() {
    let w = World::new().await;
    let node = w.node(UNIT / 100).await;
    let channel = w.open(1).await;
    let (chain, token) = (w.user.chain(), w.user.chain().token());
    let before = token.balanceOf(w.key.address()).call().await.unwrap();
    let request = w.request(&node, channel, 7, 12, UNIT).await;
    let cumulative = node.answer(channel, &request).await.1.receipt.cumulative;

    let claimed = async |block: u64| {
        chain.channels().channel(channel).block(block.into()).call().await.unwrap().claimed == cumulative
    };
    let is_claimed = async || claimed(chain.head().await.unwrap().number).await.then_some(());
    eventually("redeemed", is_claimed).await;
    w.net.undo(chain, claimed).await;
    eventually("redeemed again", is_claimed).await;

    let released = async |block: u64| {
        let last = chain.channels().nextBatchId().call().await.unwrap() - U256::ONE;
        chain.channels().batch(last).block(block.into()).call().await.unwrap().state == BatchState::Released
    };
    let is_paid = async || {
        let now = token.balanceOf(w.key.address()).call().await.unwrap();
        (now - before == U256::from(cumulative)).then_some(())
    };
    w.net.pass(61).await;
    eventually("paid", is_paid).await;
    w.net.undo(chain, released).await;
    eventually("paid again", is_paid).await;

    // And of a node that is not there.
    node.stop().await;
    w.net.undo(chain, released).await;
    let node = w.node(UNIT / 100).await;
    eventually("paid once more", is_paid).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_log_probabilities_are_those_of_the_trace() {
    let w = World::new().await;
    let node = w.node(u128::MAX).await;
    let channel = w.open(1).await;
    let ask = Ask { logprobs: Some(3), ..w.request(&node, channel, 1, 6, UNIT).await };
    let mut answer = node.client.ask(channel, &ask).await.unwrap();
    let (mut tokens, mut told) = (Vec::new(), Vec::new());
    let receipt = loop {
        match answer.next().await.unwrap().unwrap() {
            Event::Token { token, logprobs, .. } => {
                tokens.push(token);
                told.push(logprobs.unwrap());
            }
            Event::Receipt { signed, .. } => break signed.receipt,
            Event::Error(e) => panic!("{e}"),
        }
    };
    let cpu = Cpu::new(w.model.clone()).unwrap();
    let trace = audit(&cpu, &ask.prompt, &tokens, &ask.run().unwrap(), None).unwrap().trace;
    assert_eq!(B256::from(trace.layers_root), receipt.layersRoot);
    assert_eq!(told.len(), trace.log_probs.len());
    for (told, row) in told.iter().zip(&trace.log_probs) {
        let top: Vec<(u32, i32)> = told.top.iter().map(|t| (t.token, t.logprob)).collect();
        assert_eq!((told.logprob, top), (row.chosen(), row.likeliest().take(3).collect()));
    }

    let many = Ask { logprobs: Some(21), ..w.request(&node, channel, 2, 6, 2 * UNIT).await };
    let refused = node.client.ask(channel, &many).await.err().unwrap().to_string();
    assert!(refused.contains("20 likeliest"), "{refused}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_killed_node_signs_no_second_receipt() {
    let w = World::new().await;
    let node = w.node(u128::MAX).await;
    let channel = w.open(1).await;
    let done = w.request(&node, channel, 1, 5, UNIT).await;
    let answered = node.answer(channel, &done).await;

    // In the middle of an answer, after a part of it was written down: what a kill -9 leaves on the disk.
    let long = w.request(&node, channel, 2, 350, 9 * UNIT).await;
    let mut answer = node.client.ask(channel, &long).await.unwrap();
    let (mut got, start) = (0, Instant::now());
    while start.elapsed() < Duration::from_millis(1_600) {
        assert!(matches!(answer.next().await.unwrap().unwrap(), Event::Token { .. }));
        got += 1;
    }
    let left = w.dir.path().join("left");
    std::fs::create_dir(&left).unwrap();
    std::fs::copy(w.data().join("journal.redb"), left.join("journal.redb")).unwrap();
    drop(answer);
    node.stop().await;

    let node = w.node_in(left.clone(), u128::MAX).await;
    assert_eq!(node.answer(channel, &done).await, answered, "the same receipt, not a new one");
    let rest = eventually("the rest is signed for", async || node.client.answered(channel, 2).await.ok()).await;
    let Answered { signed, output, finish, .. } = rest;
    assert_eq!((signed.receipt.sequence, finish), (2, Finish::Ended));
    assert!(!output.is_empty() && output.len() <= got, "{} of {got}", output.len());
    follows(Some(&answered.1.receipt), &signed.receipt).unwrap();
    w.checked(channel, &long, &(output.clone(), signed.clone(), finish));
    // What is asked again is answered with that receipt, also by the next process.
    assert_eq!(node.answer(channel, &long).await.1, signed);
    node.stop().await;
    let node = w.node_in(left, u128::MAX).await;
    assert_eq!(node.client.answered(channel, 2).await.unwrap().signed, signed);
    assert_eq!(node.client.channel(channel).await.unwrap().sequence, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_what_a_node_refuses() {
    let w = World::new().await;
    let node = w.node(u128::MAX).await;
    let channel = w.open(1).await;
    let good = w.request(&node, channel, 1, 5, UNIT).await;
    let again = |ask: Ask| w.sign(channel, ask, &w.hot);

    assert_eq!(node.refused(B256::ZERO, &good).await.code, Code::NoChannel);
    assert_eq!(node.refused(channel, &w.sign(channel, good.clone(), &w.key)).await.code, Code::WrongSigner);
    assert_eq!(node.refused(channel, &Ask { cumulative: 2 * UNIT, ..good.clone() }).await.code, Code::WrongSigner);
    let poor = node.refused(channel, &again(Ask { cumulative: 10, ..good.clone() })).await;
    let price = good.maximum().unwrap();
    assert_eq!(
        (poor.code, poor.needed, poor.deposit, poor.price),
        (Code::Payment, Some(price), Some(CHANNEL), Some(price))
    );
    let dear = again(Ask { cumulative: u128::MAX, max_new: 380, ..good.clone() });
    assert!(dear.maximum().unwrap() < CHANNEL);
    let mut forged = good.clone();
    forged.offer.offer.perOutputToken = 0;
    assert_eq!(node.refused(channel, &again(forged)).await.code, Code::WrongOffer);
    assert_eq!(node.refused(channel, &again(Ask { max_new: 382, ..good.clone() })).await.code, Code::TooLong);
    assert_eq!(node.refused(channel, &again(Ask { max_new: 0, ..good.clone() })).await.code, Code::BadRequest);
    assert_eq!(node.refused(channel, &again(Ask { prompt: vec![], ..good.clone() })).await.code, Code::BadRequest);
    assert_eq!(
        node.refused(channel, &again(Ask { prompt: vec![u32::MAX], ..good.clone() })).await.code,
        Code::BadRequest
    );
    let nowhere = again(Ask { model: B256::repeat_byte(9), ..good.clone() });
    assert_eq!(node.refused(channel, &nowhere).await.code, Code::NoModel);
    node.answer(channel, &good).await;
    assert_eq!(node.refused(channel, &again(Ask { max_new: 6, ..good.clone() })).await.code, Code::RequestUsed);

    // A connection whose body was too long is closed: none is used twice.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let url = format!("{}/v1/channels/{channel}", node.url);
    let post = async |path: &str, body: Vec<u8>| {
        http.post(format!("{url}/{path}")).body(body).send().await.unwrap().status().as_u16()
    };
    assert_eq!(post("answers", b"{}".to_vec()).await, 400);
    assert_eq!(post("answers", vec![b' '; 1 << 20]).await, 413);
    assert_eq!(post("answers/1/end", b"{\"tokens\":1}".to_vec()).await, 204, "over, and stays as it is");
    assert_eq!(post("answers/99/end", b"{\"tokens\":1}".to_vec()).await, 404);
    for path in ["receipts?from=x", "receipts/x", "requests/-1"] {
        assert_eq!(reqwest::get(format!("{url}/{path}")).await.unwrap().status().as_u16(), 400, "{path}");
    }
    assert!(node.client.receipts(channel, 50, 60).await.unwrap().receipts.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_contract_signs_vouchers_for_a_node_that_trusts_it() {
    let w = World::new().await;
    let wallet = w.net.deploy("Wallet", vec![DynSolValue::Address(w.hot.address())]).await;
    let (channel, nobody) = (w.open_for(wallet, 1).await, w.open_for(Address::repeat_byte(7), 2).await);
    let node = w.node(u128::MAX).await;
    let ask = w.request(&node, channel, 1, 3, UNIT).await;
    let refusal = node.refused(channel, &ask).await;
    assert!(refusal.code == Code::WrongSigner && refusal.error.contains("asks no contracts"), "{refusal}");
    node.stop().await;

    let trusting = |t: ChannelTerms| ChannelTerms { contract_signers: true, redeem_at: 1, ..t };
    let node = w.node_of(w.data(), Arc::new(Honest), |c| NodeConfig { channels: c.channels.map(trusting), ..c }).await;
    let other = w.sign(channel, ask.clone(), &w.session);
    for (channel, ask) in [(channel, &other), (nobody, &w.sign(nobody, ask.clone(), &w.hot))] {
        assert_eq!(node.refused(channel, ask).await.code, Code::WrongSigner);
    }
    let answer = node.answer(channel, &ask).await;
    w.checked(channel, &ask, &answer);
    // The contracts ask the wallet, too.
    node.waits_for("the redemption", |e| matches!(e, NodeEvent::Redeemed { .. })).await;
    assert_eq!(w.channel(channel).await.claimed, answer.1.receipt.price);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_spot_requests_give_way_and_reserved_places_are_held() {
    let w = World::new().await;
    let terms = |terms: ChannelTerms| ChannelTerms {
        spot_discount_bps: 5_000,
        reserved_premium_bps: 10_000,
        reserved: 1,
        streams: 2,
        ..terms
    };
    let node = w.node_of(w.data(), Arc::new(Honest), |c| NodeConfig { channels: c.channels.map(terms), ..c }).await;
    let (channel, cheap) = (w.open(1).await, w.open(2).await);
    let offers = node.client.offers().await.unwrap();
    let prices: Vec<_> = offers.iter().map(|o| (o.offer.tier(), o.offer.perOutputToken)).collect();
    let unit = UNIT / 100;
    let tiers = [(Tier::Standard, unit), (Tier::Spot, unit / 2), (Tier::Reserved, 2 * unit)];
    assert_eq!(prices, tiers.map(|(t, p)| (Some(t), p)));
    let ask_of = async |channel: B256, request: u64, tier: usize, max_new: u32, cumulative: u128| {
        let ask = w.request(&node, channel, request, max_new, cumulative).await;
        w.sign(channel, Ask { offer: offers[tier].clone(), ..ask }, &w.hot)
    };
    let ask = async |request: u64, tier: usize, max_new: u32| ask_of(channel, request, tier, max_new, CHANNEL).await;

    // The only place that is not held goes to a spot request, and then to whoever pays more.
    let mut spot = node.client.ask(cheap, &ask_of(cheap, 1, 1, 300, CHANNEL).await).await.unwrap();
    assert!(matches!(spot.next().await.unwrap(), Some(Event::Token { .. })));
    for (channel, ask, why) in [
        (channel, ask(2, 1, 5).await, "a spot request displaces nobody"),
        (channel, ask_of(channel, 7, 0, 5, 1).await, "nor does one that cannot pay"),
        (cheap, ask_of(cheap, 8, 0, 5, CHANNEL).await, "nor one of the same channel"),
    ] {
        assert_eq!(node.refused(channel, &ask).await.code, Code::Busy, "{why}");
    }
    let mut standard = node.client.ask(channel, &ask(3, 0, 100).await).await.unwrap();
    let refusal = loop {
        match spot.next().await.unwrap() {
            Some(Event::Token { .. }) => {}
            Some(Event::Error(refusal)) => break refusal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal.code, Code::Preempted);
    assert!(matches!(standard.next().await.unwrap(), Some(Event::Token { .. })));
    assert_eq!(node.refused(channel, &ask(4, 0, 5).await).await.code, Code::Busy);

    // The held one is free for a request that pays for it, and only for one.
    let reserved = ask(5, 2, 5).await;
    let (held, other) = (node.answer(channel, &reserved).await, ask(6, 2, 5).await);
    w.checked(channel, &reserved, &held);
    assert_eq!(held.1.receipt.price, reserved.maximum().unwrap());
    drop(standard);
    node.answer(channel, &other).await;
    // Nothing is owed for what gave way; whoever left pays for what it had.
    let state = eventually("the channel to rest", async || {
        Some(node.client.channel(channel).await.unwrap()).filter(|s| s.in_flight.is_empty())
    });
    let state = state.await;
    assert_eq!((state.sequence, node.client.channel(cheap).await.unwrap().sequence), (3, 0));
    let receipts = node.client.receipts(channel, 1, 9).await.unwrap().receipts;
    assert_eq!(state.cumulative, receipts.iter().map(|a| a.signed.receipt.price).sum::<u128>());
    assert!(!node.events.lock().unwrap().iter().any(|e| matches!(e, NodeEvent::Failed { .. })));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_client_that_leaves_pays_for_what_it_has() {
    let w = World::new().await;
    let node = w.node(u128::MAX).await;
    let channel = w.open(1).await;
    let long = w.request(&node, channel, 1, 350, 9 * UNIT).await;
    let mut answer = node.client.ask(channel, &long).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 3 {
        if let Event::Token { token, .. } = answer.next().await.unwrap().unwrap() {
            got.push(token);
        }
    }
    drop(answer);
    let rest = eventually("it ends", async || node.client.answered(channel, 1).await.ok()).await;
    assert_eq!(rest.finish, Finish::Ended);
    assert!(rest.output.len() >= 3 && rest.output.len() < 350 && rest.output.starts_with(&got));
    w.checked(channel, &long, &(rest.output.clone(), rest.signed.clone(), rest.finish));
    let state = node.client.channel(channel).await.unwrap();
    assert_eq!((state.sequence, state.in_flight.len()), (1, 0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_receipt_is_published_lodged_demanded_and_acquitted() {
    let w = World::new().await;
    let node = w.node(UNIT / 100).await;
    let channel = w.open(1).await;
    let ask = w.request(&node, channel, 1, 6, UNIT).await;
    let (tokens, signed, _) = node.answer(channel, &ask).await;
    let redeemed = node.waits_for("redeemed", |e| matches!(e, NodeEvent::Redeemed { .. })).await;
    let NodeEvent::Redeemed { batch, .. } = redeemed else { unreachable!() };

    // Somebody demands to see it.
    let (channels, domain, place) = (w.net.deployment.channels, w.domain(), w.place(batch, &signed));
    let call = IChannels::demandReceiptCall { place: place.clone(), sequence: 1 };
    w.user.send(&Intent::call("demand", channels, &call)).await.unwrap();
    node.waits_for("published", |e| matches!(e, NodeEvent::Published { .. })).await;

    // And lodges it, and demands its tokens.
    let r = &signed.receipt;
    let receipt = sworn_bindings::Receipt::from(r);
    let digest = w.user.chain().channels().receiptDigest(receipt.clone()).call().await.unwrap();
    assert_eq!(digest, domain.digest(r), "signed here as checked there");
    let call = ITrials::lodgeCall { receipt, signature: signed.signature.clone(), place };
    w.user.send(&Intent::call("lodge", w.net.deployment.trials, &call)).await.unwrap();
    let lodged = node.waits_for("lodged", |e| matches!(e, NodeEvent::Lodged { .. })).await;
    let NodeEvent::Lodged { job, .. } = lodged else { unreachable!() };
    for (name, target, hash) in [
        ("prompt", Target::tokens(false), r.inputHash),
        ("answer", Target::tokens(true), r.outputHash),
        ("top", Target::layers(sworn_commit::tree::depth(u64::from(w.model.layers()) + 2) as u8, 0), r.layersRoot),
    ] {
        let proof = IChallenges::DemandProof { nodeHash: hash, ..empty_proof() };
        let call = IChallenges::demandCall { jobId: job, parent: B256::ZERO, target, proof };
        w.user.send(&Intent::call(name, w.net.deployment.challenges, &call)).await.unwrap();
    }
    eventually("all are answered", async || {
        let events = node.events.lock().unwrap();
        (events.iter().filter(|e| matches!(e, NodeEvent::Answered { .. })).count() == 3).then_some(())
    })
    .await;
    assert_eq!(tokens.len(), r.nOut as usize);

    // Nothing is wrong with it: acquitted, released.
    let until = Instant::now() + Duration::from_secs(60);
    let batch_of = async || w.user.chain().channels().batch(batch).call().await.unwrap();
    while batch_of().await.state != BatchState::Released {
        assert!(Instant::now() < until, "{:?} {:?}", batch_of().await, node.events.lock().unwrap());
        w.net.pass(30).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    node.waits_for("acquitted", |e| matches!(e, NodeEvent::Finalized { .. })).await;
    node.stop().await;
}

/// Publishes nothing.
struct Hiding;

impl Conduct for Hiding {
    fn publishes(&self, _: &Receipt) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_receipt_that_is_hidden_costs_its_batch() {
    let w = World::new().await;
    let node = w.node_with(w.data(), UNIT / 100, Arc::new(Hiding)).await;
    let channel = w.open(1).await;
    let ask = w.request(&node, channel, 1, 6, UNIT).await;
    let (_, signed, _) = node.answer(channel, &ask).await;
    let redeemed = node.waits_for("redeemed", |e| matches!(e, NodeEvent::Redeemed { .. })).await;
    let NodeEvent::Redeemed { batch, .. } = redeemed else { unreachable!() };
    let (channels, place) = (w.net.deployment.channels, w.place(batch, &signed));
    let call = IChannels::demandReceiptCall { place: place.clone(), sequence: 1 };
    w.user.send(&Intent::call("demand", channels, &call)).await.unwrap();
    node.waits_for("demanded", |e| matches!(e, NodeEvent::ReceiptDemanded { .. })).await;
    w.net.pass(61).await;
    let call = IChannels::receiptTimeoutCall { batchId: batch, channelId: channel, sequence: 1 };
    w.user.send(&Intent::call("timeout", channels, &call)).await.unwrap();
    assert_eq!(w.user.chain().channels().batch(batch).call().await.unwrap().state, BatchState::Void);
    w.user.send(&Intent::call("refund", channels, &IChannels::refundCall { place })).await.unwrap();
    // The node goes on with what is left to it, and does not try to collect.
    let next = w.request(&node, channel, 2, 3, 2 * UNIT).await;
    node.answer(channel, &next).await;
    eventually("the next batch", async || {
        let events = node.events.lock().unwrap();
        (events.iter().filter(|e| matches!(e, NodeEvent::Redeemed { .. })).count() == 2).then_some(())
    })
    .await;
    assert!(!node.events.lock().unwrap().iter().any(|e| matches!(e, NodeEvent::Released { .. })));
    node.stop().await;
}

fn empty_proof() -> IChallenges::DemandProof {
    IChallenges::DemandProof {
        nodeHash: B256::ZERO,
        path: vec![],
        opRoots: vec![],
        descriptor: Default::default(),
        descriptorProof: vec![],
    }
}
