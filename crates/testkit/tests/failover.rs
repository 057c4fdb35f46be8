//! A node is killed in the middle of an answer, with the programs that people run: the gateway goes on with another, no word is lost or
//! repeated, and nothing is paid twice.

use std::time::{Duration, Instant};

use alloy::primitives::{B256, U256};
use serde_json::{Value, json};
use sworn_bindings::{IChannels, IERC20};
use sworn_model::ModelStore;
use sworn_testkit::devnet::{Actor, PURSE, free_port};
use sworn_testkit::scenario::{OUTPUT_PRICE, Stage};

const MODEL: &str = "smollm2-135m";
const DEPOSIT: u128 = PURSE / 10;
const PATIENCE: Duration = Duration::from_secs(100);
/// More than the cheap node gives in the second until it first writes down how far it is.
const TOKENS: u32 = 450;

/// A channel from the stage's user, with somebody else's key for its vouchers.
async fn open(stage: &Stage, node: &Actor, signer: &Actor) -> B256 {
    let (channels, node, salt) = (stage.net.deployment.channels, node.address(), B256::ZERO);
    let call = IChannels::openCall { node, signer: signer.address(), amount: DEPOSIT, salt };
    stage.user.send(&format!("open {node}"), channels, &call).await.unwrap();
    stage.net.chain.channels().channelIdOf(stage.user.address(), node, salt).call().await.unwrap()
}

fn body(stream: bool) -> Value {
    json!({
        "model": MODEL, "stream": stream, "stream_options": stream.then(|| json!({ "include_usage": true })),
        "prompt": "Numbers: 1, 2, 3, 4, 5, 6, 7,", "max_tokens": TOKENS, "temperature": 0,
    })
}

/// Events of a stream as they come.
struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Events {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let data = std::str::from_utf8(&event).unwrap().trim().trim_start_matches("data: ").to_owned();
                match &*data {
                    "[DONE]" => return None,
                    data if data.starts_with(':') => continue,
                    data => return Some(serde_json::from_str(data).unwrap()),
                }
            }
            self.buffer.extend_from_slice(&self.response.chunk().await.unwrap().expect("the stream breaks off"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_node_is_killed_in_the_middle_of_an_answer() {
    let mut stage = Stage::stored(ModelStore::from_env().unwrap().load(MODEL).unwrap()).await.unwrap();
    let (rival, signer) = (stage.net.actor("rival").await.unwrap(), stage.net.actor("gateway").await.unwrap());
    let d = stage.net.deployment.clone();
    let approve = IERC20::approveCall { spender: d.channels, value: U256::MAX };
    stage.user.send("approve channels", d.token, &approve).await.unwrap();
    stage.user.send("deposit", d.channels, &IChannels::depositCall { amount: 2 * DEPOSIT }).await.unwrap();
    let elsewhere = format!("127.0.0.1:{}", free_port().unwrap());
    stage.register_node(&rival, &elsewhere, 3 * OUTPUT_PRICE).await.unwrap();
    let cheap = stage.node(&[]).await.unwrap();
    let dear = stage.node_of(&rival, &elsewhere, &[]).await.unwrap();
    let channel = open(&stage, &stage.operator, &signer).await;
    open(&stage, &rival, &signer).await;
    let (gateway, url) = stage.gateway(&signer, MODEL, &[]).await.unwrap();
    let http = reqwest::Client::new();
    let start = Instant::now();
    while http.get(format!("{url}/ready")).send().await.unwrap().status() != 200 {
        assert!(start.elapsed() < PATIENCE, "{}", gateway.complaint("not ready"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Long enough for the node to have written down how far it is.
    let response = http.post(format!("{url}/v1/completions")).json(&body(true)).send().await.unwrap();
    assert_eq!(response.status(), 200, "{}", gateway.complaint(""));
    let mut events = Events { response, buffer: Vec::new() };
    let (mut cheap, mut before, mut text, mut last) = (Some(cheap), 0, String::new(), Value::Null);
    let mut usage = Value::Null;
    let mut begun = None;
    while let Some(event) = events.next().await {
        assert!(event["error"].is_null(), "{event}\n{}", gateway.complaint(""));
        if let Some(piece) = event["choices"][0]["text"].as_str() {
            text.push_str(piece);
            let begun: &Instant = begun.get_or_insert_with(Instant::now);
            before += u32::from(cheap.is_some());
            if begun.elapsed() > Duration::from_millis(1_300) {
                // As by kill -9.
                cheap = None;
            }
        }
        if event["sworn"].is_object() {
            last = event["sworn"].clone();
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    assert!(cheap.is_none() && before < TOKENS, "the answer came before the node could be killed: {before} tokens");
    let nodes: Vec<_> = last["receipts"].as_array().unwrap().iter().map(|r| r["node"].clone()).collect();
    assert_eq!(nodes, [json!(rival.address())], "{last}\n{}", gateway.complaint(""));

    // The same as when nobody dies.
    let whole = http.post(format!("{url}/v1/completions")).json(&body(false)).send().await.unwrap();
    let whole: Value = whole.json().await.unwrap();
    assert_eq!((&whole["choices"][0]["text"], &whole["usage"]), (&json!(text), &usage), "{whole}");

    // Risen again, the node signs for what it had given and written down; the gateway fetches that receipt and pays it, once.
    let risen = stage.node_of(&stage.operator, &stage.listen, &[]).await.unwrap();
    let signed = risen.wait("receipt", PATIENCE).await.unwrap();
    let given = signed["tokens"].as_u64().unwrap() as u32;
    assert!(0 < given && given <= before, "{given} of {before} tokens");
    let (start, paid) = (Instant::now(), format!("sworn_gateway_paid{{node=\"{}\"}}", stage.operator.address()));
    let price = signed["price"].as_str().unwrap();
    loop {
        let measured = http.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
        if measured.lines().any(|l| l.strip_prefix(&paid).is_some_and(|n| n.trim() == price)) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{measured}\n{}", gateway.complaint("the receipt is not paid"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let state: Value =
        reqwest::get(format!("http://{}/v1/channels/{channel}", stage.listen)).await.unwrap().json().await.unwrap();
    assert_eq!((&state["sequence"], &state["cumulative"], &state["inFlight"]), (&json!(1), &json!(price), &json!([])));
    drop(dear);
}
