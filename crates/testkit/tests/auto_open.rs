//! A gateway that opens and fills its own channels, with the programs that people run.

use std::time::{Duration, Instant};

use alloy::primitives::U256;
use serde_json::{Value, json};
use sworn_testkit::devnet::{PURSE, free_port};
use sworn_testkit::scenario::{OUTPUT_PRICE, STAKE, Stage};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_gateway_opens_and_fills_its_channels() {
    let mut stage = Stage::synthetic(3).await.unwrap();
    let (rival, other) = (stage.net.actor("rival").await.unwrap(), stage.net.actor("other").await.unwrap());
    let elsewhere = [(); 2].map(|()| format!("127.0.0.1:{}", free_port().unwrap()));
    // Three that offer the model; one of them does not answer.
    stage.register_node(&rival, &elsewhere[0], 3 * OUTPUT_PRICE).await.unwrap();
    stage.register_node(&other, &elsewhere[1], OUTPUT_PRICE).await.unwrap();
    let _cheap = stage.node(&[]).await.unwrap();
    let _dear = stage.node_of(&rival, &elsewhere[0], &[]).await.unwrap();

    let model = stage.model.path().to_str().unwrap().to_owned();
    let (each, limit) = (PURSE / 2_000, PURSE / 400);
    let flags = ["--auto-open", "0.5", "--auto-open-nodes", "2", "--auto-open-limit", "2.5"];
    let (gateway, url) = stage.gateway(&stage.user, &model, &flags).await.unwrap();
    let http = reqwest::Client::new();
    let ask = async || {
        let body = json!({ "model": model, "prompt": "one two three", "max_tokens": 24, "temperature": 0 });
        let response = http.post(format!("{url}/v1/completions")).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let toppings = || gateway.events().iter().filter(|e| e["event"] == "channel_topped_up").count();
    // Nobody opened a channel; a request costs 0.123 or three times that, so that one of 0.5 lasts for a few.
    let (start, mut answered, mut paid) = (Instant::now(), 0, 0u128);
    while answered < 6 || toppings() < 2 {
        assert!(start.elapsed() < PATIENCE, "{answered} answers\n{}", gateway.complaint("too few"));
        match ask().await {
            (200, body) => {
                answered += 1;
                paid += body["sworn"]["price"].as_str().unwrap().parse::<u128>().unwrap();
            }
            (402 | 503, _) => tokio::time::sleep(Duration::from_millis(200)).await,
            (status, body) => panic!("{status}: {body}"),
        }
    }
    let opened: Vec<Value> = gateway.events().into_iter().filter(|e| e["event"] == "channel_opened").collect();
    assert!((2..=3).contains(&opened.len()), "{}", gateway.complaint("channels"));
    // Not more than the limit, and what left the wallet is in channels or was paid.
    let (mut deposits, mut claimed) = (0, 0);
    for e in &opened {
        let c =
            stage.net.chain.channels().channel(e["channel"].as_str().unwrap().parse().unwrap()).call().await.unwrap();
        (deposits, claimed) = (deposits + c.deposit, claimed + c.claimed);
        assert_eq!(c.deposit % each, 0);
    }
    assert!(deposits - claimed <= limit && deposits >= paid, "{deposits} {claimed} {paid}");
    assert_eq!(stage.net.tokens_of(stage.user.address()).await.unwrap(), U256::from(PURSE - deposits));
    assert_eq!(stage.net.tokens_of(rival.address()).await.unwrap(), U256::from(PURSE - STAKE));
}
