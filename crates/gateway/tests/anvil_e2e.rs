//! The gateway, two real nodes and the real contracts: a channel opened on chain, answers paid from it, receipts redeemed.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use sworn_bindings::{IChannels, IERC20};
use sworn_chain::{Sender, SenderOptions, Store};
use sworn_engine::Cpu;
use sworn_gateway::{Config, Follower, Gateway, Offered, ReceiptFile, Router, RouterConfig};
use sworn_model::{Model, SyntheticSpec, synthetic};
use sworn_node::{ChannelTerms, EngineProver, EventSink, Honest, Node, NodeConfig, NodeEvent, Offer, Registration};
use sworn_receipts::{ClientOptions, Domain};
use sworn_testkit::devnet::{Actor, Devnet, Terms, free_port};
use tokio::sync::oneshot;

const UNIT: u128 = 1_000_000_000_000_000_000;
const CHANNEL: u128 = 20 * UNIT;

struct Serving {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<sworn_node::Result<()>>,
    events: Arc<Mutex<Vec<NodeEvent>>>,
}

/// A node with its price of an output token, in thousandths.
async fn serve(net: &Devnet, model: &Arc<Model>, actor: &Actor, price: u128) -> Serving {
    let port = free_port().unwrap();
    let data = actor.dir.join("node");
    let mut config = NodeConfig::new(&data);
    config.listen = Some(format!("127.0.0.1:{port}").parse().unwrap());
    config.registration = Registration {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        capacity: Some(8),
        stake: 100 * UNIT,
        offers: vec![Offer {
            model: model.id().into(),
            per_input_token: UNIT / 10_000,
            per_output_token: price * UNIT / 1_000,
            max_tokens: 400,
        }],
    };
    // The session key's receipts count as the node's.
    let terms = ChannelTerms::new(PrivateKeySigner::random());
    config.channels = Some(ChannelTerms { redeem_at: UNIT / 1_000, ..terms });
    let store = Store::open(data.join("node.redb"), &net.chain).unwrap();
    let sender = Sender::new(net.chain.clone(), actor.signer.clone(), store.clone(), SenderOptions::default());
    let prover = EngineProver::new().with_cpu(Cpu::new(model.clone()).unwrap());
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = EventSink::new({
        let events = events.clone();
        move |e: &NodeEvent| events.lock().unwrap().push(e.clone())
    });
    let node = Node::start(config, sender, store, Arc::new(prover), Arc::new(Honest), sink).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(node.run(async move {
        let _ = stopped.await;
    }));
    Serving { stop, task, events }
}

async fn open(net: &Devnet, user: &Actor, node: Address, signer: Address) -> B256 {
    let salt = B256::left_padding_from(node.as_slice());
    let call = IChannels::openCall { node, signer, amount: CHANNEL, salt };
    user.send(&format!("open/{node}"), net.deployment.channels, &call).await.unwrap();
    net.chain.channels().channelIdOf(user.address(), node, salt).call().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_channels_pay_for_chat_and_nodes_redeem() {
    let mut net = Devnet::start(&Terms::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let model = Arc::new(synthetic(&SyntheticSpec::default(), dir.path().join("model")).unwrap());
    let (user, one, two) =
        (net.actor("user").await.unwrap(), net.actor("one").await.unwrap(), net.actor("two").await.unwrap());
    net.register(&model, &user).await.unwrap();
    let channels = net.deployment.channels;
    let call = IERC20::approveCall { spender: channels, value: U256::MAX };
    user.send("approve", net.deployment.token, &call).await.unwrap();
    user.send("deposit", channels, &IChannels::depositCall { amount: 3 * CHANNEL }).await.unwrap();
    let cheap = serve(&net, &model, &one, 1).await;
    let dear = serve(&net, &model, &two, 5).await;

    // The gateway's key holds nothing; the user's channels name it.
    let key = PrivateKeySigner::random();
    let cheap_channel = open(&net, &user, one.address(), key.address()).await;
    let mut follower = Follower::new(net.chain.clone(), key.address());
    // The second channel is opened in a block whose number was read before, of a chain that then was replaced by a shorter one.
    net.mine(20).await.unwrap();
    assert_eq!(follower.channels().await.unwrap().len(), 1);
    net.roll_back(20).await.unwrap();
    let dear_channel = open(&net, &user, two.address(), key.address()).await;
    let domain = Domain { chain_id: net.deployment.chain_id, channels };
    let store = Store::open(dir.path().join("gateway.redb"), &net.chain).unwrap();
    let routing = RouterConfig { patience: ClientOptions::default(), ..RouterConfig::default() };
    let router = Router::new(domain, routing, key.clone(), store).unwrap();
    let found = follower.channels().await.unwrap();
    assert_eq!(found.len(), 2);
    router.set_channels(found);
    router.probe().await;
    let models = vec![Offered { name: "small".into(), model: model.clone() }];
    let gateway = Gateway::new(Config { models, ..Config::default() }, Arc::new(router.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(gateway.serve(listener, std::future::pending()));

    let http = reqwest::Client::new();
    let ask = async |max: u32, stop: Option<&str>| -> (u16, Value) {
        let messages = json!([{ "role": "user", "content": "hello" }]);
        let body = json!({ "model": "small", "messages": messages, "max_tokens": max, "stop": stop,
            "logprobs": true, "top_logprobs": 2 });
        let sent = http.post(format!("{url}/v1/chat/completions")).json(&body).send().await.unwrap();
        (sent.status().as_u16(), sent.json().await.unwrap())
    };
    let (status, first) = ask(24, None).await;
    assert_eq!(status, 200, "{first}");
    let text = first["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(first["sworn"]["node"], json!(one.address()));

    // Log-probabilities are the node's, of what it commits to.
    let told = first["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert!(!told.is_empty());
    for token in told {
        let (own, top) = (token["logprob"].as_f64().unwrap(), token["top_logprobs"].as_array().unwrap());
        let [likeliest, second] = &top[..] else { panic!("{token}") };
        assert!(likeliest["logprob"].as_f64() >= second["logprob"].as_f64() && own <= 0.0, "{token}");
        assert!(own <= likeliest["logprob"].as_f64().unwrap(), "{token}");
    }

    // A stop string ends the answer at the node, which is paid for less.
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[4..6].iter().collect();
    let (status, stopped) = ask(24, Some(&stop)).await;
    assert_eq!(status, 200, "{stopped}");
    assert_eq!(stopped["choices"][0]["message"]["content"], text[..text.find(&stop).unwrap()]);
    let price = |v: &Value| v["sworn"]["price"].as_str().unwrap().parse::<u128>().unwrap();
    assert!(price(&stopped) <= price(&first));

    // The receipt is a file that checks, signed by the session key.
    let digest = first["sworn"]["receipts"][0]["receiptDigest"].as_str().unwrap();
    let file: ReceiptFile = http.get(format!("{url}/v1/receipts/{digest}")).send().await.unwrap().json().await.unwrap();
    assert_ne!(file.check().unwrap(), one.address());
    let on_chain = net.chain.channels().receiptDigest((&file.signed.receipt).into()).call().await.unwrap();
    assert_eq!(on_chain, file.digest);

    // The node redeems what the gateway says it owes.
    let (_, owed, open) = router.standing(cheap_channel);
    assert_eq!((owed, open), (price(&first) + price(&stopped), 0));
    let mut claimed = 0;
    for _ in 0..100 {
        claimed = net.chain.channels().channel(cheap_channel).call().await.unwrap().claimed;
        if claimed == owed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(claimed, owed, "{:?}", cheap.events.lock().unwrap());

    // Without the cheap node the other gives the same answer.
    let _ = cheap.stop.send(());
    let _ = cheap.task.await;
    let (status, again) = ask(24, None).await;
    assert_eq!(status, 200, "{again}");
    assert_eq!(again["choices"][0]["message"]["content"], text);
    assert_eq!(again["sworn"]["node"], json!(two.address()));
    assert_eq!(router.standing(dear_channel).1, price(&again));
    let _ = dear.stop.send(());
    let _ = dear.task.await;
}
