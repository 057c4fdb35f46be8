//! Payment and failover: the gateway between OpenAI's API and nodes that fail in every way there is a switch for.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use support::node::Failing;
use support::{PLENTY, World};
use sworn_gateway::{Config, Limits, ReceiptFile, RouterConfig};

const PROMPT: &str = "the quick brown fox";

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_the_models_and_is_paid_once() {
    let w = World::new();
    let (cheap, dear) = (w.cheap().await, w.dear().await);
    let g = w.gateway(&[&dear, &cheap], "state").await;
    let want = w.honest(PROMPT, 12);
    let n_in = w.model.encode_text(PROMPT).unwrap().len() as u64;
    for round in 1..=3u64 {
        let (status, body) = g.complete(PROMPT, 12).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["choices"][0]["text"], w.text(&want));
        assert_eq!(body["choices"][0]["finish_reason"], "length");
        let usage = json!({ "prompt_tokens": n_in, "completion_tokens": 12, "total_tokens": n_in + 12 });
        assert_eq!(body["usage"], usage);
        let price = u128::from(n_in) + 24;
        assert_eq!(body["sworn"]["price"], price.to_string());
        assert_eq!(body["sworn"]["node"], json!(cheap.key.address()));
        assert_eq!(cheap.total(), (round, price * u128::from(round)));
        // The receipt's file says what an audit needs.
        let digest = body["sworn"]["receipts"][0]["receiptDigest"].as_str().unwrap();
        let (status, file) = g.get(&format!("/v1/receipts/{digest}")).await;
        let file: ReceiptFile = serde_json::from_value(file).unwrap();
        assert_eq!((status, file.check()), (200, Ok(cheap.key.address())));
        assert_eq!(file.tokens, want);
    }
    assert_eq!(dear.asked.load(Ordering::SeqCst), 0);
    let (status, missing) = g.get(&format!("/v1/receipts/0x{}", "00".repeat(32))).await;
    assert_eq!((status, &missing["error"]["code"]), (404, &json!("not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_another_node_gives_the_same_answer() {
    for how in [
        Failing::Busy,
        Failing::Cut(3),
        Failing::Die(3),
        Failing::Die(0),
        Failing::Fail(0),
        Failing::Fail(5),
        Failing::EndEarly(2),
    ] {
        let w = World::new();
        let (cheap, dear) = (w.cheap().await, w.dear().await);
        let g = w.gateway(&[&cheap, &dear], "state").await;
        cheap.fail(how.clone());
        let (status, body) = g.complete(PROMPT, 12).await;
        assert_eq!(status, 200, "{how:?}: {body}");
        assert_eq!(body["choices"][0]["text"], w.text(&w.honest(PROMPT, 12)), "{how:?}");
        // Also those whose receipt was lost with their node.
        assert_eq!(body["usage"]["completion_tokens"], 12, "{how:?}");
        let receipts = body["sworn"]["receipts"].as_array().unwrap();
        let nodes: Vec<_> = receipts.iter().map(|r| r["node"].clone()).collect();
        let both = matches!(how, Failing::Cut(_) | Failing::EndEarly(_));
        let (a, b) = (json!(cheap.key.address()), json!(dear.key.address()));
        assert_eq!(nodes, if both { vec![a, b] } else { vec![b] }, "{how:?}");
        assert_eq!(dear.asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_receipt_is_kept_and_its_node_left() {
    for how in [Failing::Overcharge, Failing::Overadd, Failing::OtherTokens, Failing::OtherKey] {
        let w = World::new();
        let (cheap, dear) = (w.cheap().await, w.dear().await);
        let g = w.gateway(&[&cheap, &dear], "state").await;
        cheap.fail(how.clone());
        let (status, body) = g.complete(PROMPT, 8).await;
        assert_eq!((status, &body["error"]["code"]), (502, &json!("receipt_refused")), "{how:?}: {body}");
        for _ in 0..2 {
            let (status, body) = g.complete(PROMPT, 8).await;
            assert_eq!((status, &body["sworn"]["node"]), (200, &json!(dear.key.address())), "{how:?}");
        }
        assert_eq!(cheap.asked.load(Ordering::SeqCst), 1, "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_are_bought_as_they_are_sold() {
    let w = World::new();
    let node = w.node((2, 4), PLENTY, Duration::ZERO).await;
    let g = w.gateway(&[&node], "state").await;
    let n_in = w.model.encode_text(PROMPT).unwrap().len() as u128;
    for (asked, told, name, price) in [
        ("auto", "default", "standard", 2 * n_in + 32),
        ("flex", "flex", "spot", n_in + 16),
        ("priority", "priority", "reserved", 4 * n_in + 64),
    ] {
        let body = json!({ "model": "small", "prompt": PROMPT, "max_tokens": 8, "service_tier": asked });
        let (status, body) = g.post("/v1/completions", &body).await;
        assert_eq!((status, &body["service_tier"]), (200, &json!(told)), "{body}");
        assert_eq!(body["sworn"]["price"], price.to_string());
        assert_eq!(body["sworn"]["receipts"][0]["tier"], name);
    }
    let (_, models) = g.get("/v1/models").await;
    let offer = &models["data"][0]["sworn"]["offers"][0];
    assert_eq!((&offer["spot"]["perOutputToken"], &offer["perOutputToken"]), (&json!("2"), &json!("4")));

    // What is preempted costs nothing, and the answer goes on elsewhere.
    let (node, other) = (w.cheap().await, w.node((20, 40), PLENTY, Duration::ZERO).await);
    let g = w.gateway(&[&node, &other], "other").await;
    node.fail(Failing::Preempt(3));
    let body = json!({ "model": "small", "prompt": PROMPT, "max_tokens": 8, "service_tier": "flex" });
    let (status, body) = g.post("/v1/completions", &body).await;
    assert_eq!((status, &body["choices"][0]["text"]), (200, &json!(w.text(&w.honest(PROMPT, 8)))), "{body}");
    assert_eq!(body["sworn"]["node"], json!(other.key.address()));
    assert_eq!((node.total(), g.router.standing(node.channel)), ((0, 0), (0, 0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_offer_is_renewed() {
    let w = World::new();
    let cheap = w.cheap().await;
    let g = w.gateway(&[&cheap], "state").await;
    cheap.fail(Failing::StaleOffer);
    assert_eq!(g.complete(PROMPT, 4).await.0, 200);
    assert_eq!(cheap.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_lost_its_file_resynchronises() {
    let w = World::new();
    let cheap = w.cheap().await;
    let first = w.gateway(&[&cheap], "one").await;
    assert_eq!(first.complete(PROMPT, 4).await.0, 200);
    let second = w.gateway(&[&cheap], "two").await;
    let (status, body) = second.complete(PROMPT, 4).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(cheap.total().0, 2);
    // The first hears of the other's receipt in the same way, but knows that it did not ask for it: it pays no more than it owes.
    let (status, body) = first.complete(PROMPT, 4).await;
    assert_eq!((status, &body["error"]["code"]), (402, &json!("payment_refused")), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_that_no_voucher_covers_is_not_believed() {
    for by in [None, Some(alloy::signers::local::PrivateKeySigner::random())] {
        let w = World::new();
        let cheap = w.cheap().await;
        let g = w.gateway(&[&cheap], "state").await;
        cheap.fail(Failing::Claim(by));
        let (status, body) = g.complete(PROMPT, 4).await;
        assert_eq!((status, &body["error"]["code"]), (402, &json!("payment_refused")), "{body}");
        assert_eq!(g.router.standing(cheap.channel), (0, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_never_came_is_fetched_after_a_restart() {
    let w = World::new();
    let slow = w.node((1, 2), PLENTY, Duration::from_millis(30)).await;
    let state = "state";
    let channel = slow.channel;
    {
        let g = w.gateway(&[&slow], state).await;
        // Killed in the middle of an answer: what the ledger has is all that is left.
        let router = g.router.clone();
        let asking = tokio::spawn(async move { g.complete(PROMPT, 30).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        asking.abort();
        let (_, owed, open) = router.standing(channel);
        assert!(owed == 0 && open > 0);
    }
    // The answer was ended where its reader left, and its receipt entered.
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if slow.total().0 == 1 {
            break;
        }
    }
    assert_eq!(slow.total().0, 1);
    assert!(slow.total().1 < 30 * 2, "the node stopped early");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_end_the_answer_at_the_node() {
    let w = World::new();
    let slow = w.node((1, 2), PLENTY, Duration::from_millis(20)).await;
    let g = w.gateway(&[&slow], "state").await;
    let text = w.text(&w.honest(PROMPT, 60));
    let chars: Vec<char> = text.chars().collect();
    let stop: String = chars[5..9].iter().collect();
    let cut = &text[..text.find(&stop).unwrap()];
    let body = json!({ "model": "small", "prompt": PROMPT, "max_tokens": 60, "stop": stop });
    let (status, whole) = g.post("/v1/completions", &body).await;
    assert_eq!(status, 200, "{whole}");
    assert_eq!((&whole["choices"][0]["text"], &whole["choices"][0]["finish_reason"]), (&json!(cut), &json!("stop")));
    assert!(whole["usage"]["completion_tokens"].as_u64().unwrap() < 60);

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let chunks = g.stream(streamed).await;
    assert_eq!(chunks.last(), Some(&json!("[DONE]")));
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, cut);
    let usage = &chunks[chunks.len() - 2];
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    let last = &chunks[chunks.len() - 3];
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["sworn"]["receipts"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn money_and_limits() {
    let w = World::new();
    let poor = w.node((1, 2), 100, Duration::ZERO).await;
    let g = w.gateway(&[&poor], "state").await;
    let (status, body) = g.complete(PROMPT, 100).await;
    assert_eq!((status, &body["error"]["code"]), (402, &json!("insufficient_channel")), "{body}");
    let accepts = &body["accepts"][0];
    assert_eq!((&accepts["scheme"], &accepts["network"]), (&json!("sworn-channel"), &json!("eip155:31337")));
    assert_eq!(accepts["extra"]["node"], json!(poor.key.address()));
    // The channel pays as long as it can.
    let price = w.model.encode_text(PROMPT).unwrap().len() as u128 + 20;
    let mut paid = 0;
    while g.complete(PROMPT, 10).await.0 == 200 {
        paid += price;
    }
    assert!(paid <= 100 && paid + price > 100);
    assert_eq!(poor.total().1, paid);

    // Probabilities that nobody tells are refused rather than left out.
    let body = json!({ "model": "small", "prompt": PROMPT, "max_tokens": 2, "logprobs": 1 });
    let cheap = w.cheap().await;
    let (status, told) = w.gateway(&[&cheap], "told").await.post("/v1/completions", &body).await;
    assert_eq!((status, &told["error"]["param"]), (400, &json!("logprobs")), "{told}");

    let none = w.gateway(&[], "none").await;
    let (status, body) = none.complete(PROMPT, 4).await;
    assert_eq!((status, &body["error"]["code"]), (402, &json!("no_channel")), "{body}");
    assert_eq!(none.get("/ready").await.0, 503);

    let strict = RouterConfig { max_price: Some(20), ..RouterConfig::default() };
    let limits = Limits { body: 2000, ..Limits::default() };
    let config = Config { api_keys: vec!["secret".into()], limits, ..Config::default() };
    let g = w.gateway_with(&[&cheap], "strict", strict, config).await;
    assert_eq!(g.complete(PROMPT, 4).await.1["error"]["code"], "invalid_api_key");
    let ask = |body: serde_json::Value| {
        g.http.post(format!("{}/v1/completions", g.url)).bearer_auth("secret").json(&body).send()
    };
    let sent = ask(json!({ "model": "small", "prompt": PROMPT, "max_tokens": 50 })).await.unwrap();
    assert_eq!(sent.json::<serde_json::Value>().await.unwrap()["error"]["code"], "price_limit");
    let sent = ask(json!({ "model": "small", "prompt": "x".repeat(3000) })).await.unwrap();
    assert_eq!(sent.status(), 413);
    assert_eq!(sent.json::<serde_json::Value>().await.unwrap()["error"]["code"], "request_too_large");
    assert_eq!(g.get("/ready").await.0, 200);
    assert_eq!(g.get("/v1/models").await.1["error"]["code"], "invalid_api_key");
    assert_eq!(g.get("/v1/nothing").await.1["error"]["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_add_up() {
    let w = World::new();
    let cheap = w.node((1, 2), PLENTY, Duration::from_millis(2)).await;
    let g = std::sync::Arc::new(w.gateway(&[&cheap], "state").await);
    let want = w.text(&w.honest(PROMPT, 10));
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let g = g.clone();
        all.spawn(async move { g.complete(PROMPT, 10).await });
    }
    while let Some(done) = all.join_next().await {
        let (status, body) = done.unwrap();
        assert_eq!((status, &body["choices"][0]["text"]), (200, &json!(want)), "{body}");
    }
    let price = w.model.encode_text(PROMPT).unwrap().len() as u128 + 20;
    assert_eq!(cheap.total(), (12, 12 * price));
    assert_eq!(g.router.standing(cheap.channel), (12, 12 * price, 0));
    let (_, models) = g.get("/v1/models").await;
    assert_eq!(models["data"][0]["id"], "small");
    assert_eq!(models["data"][0]["sworn"]["offers"][0]["perOutputToken"], "2");
    let measured = g.http.get(format!("{}/metrics", g.url)).send().await.unwrap().text().await.unwrap();
    assert!(measured.contains("sworn_gateway_requests_total"), "{measured}");
}

/// What the gateway adds to the time until the first token: `cargo nextest run -p sworn-gateway --run-ignored only --no-capture latency`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; it wants a quiet machine"]
async fn latency_added_before_the_first_token() {
    use sworn_receipts::{Ask, Client, ClientOptions, sign_sync};
    let w = World::new();
    let (direct, behind) = (w.cheap().await, w.cheap().await);
    let g = w.gateway(&[&behind], "state").await;
    let client = Client::new(&direct.url, ClientOptions::default()).unwrap();
    let offer = client.offers().await.unwrap().remove(0);
    let prompt = w.model.encode_text(PROMPT).unwrap();
    let (mut alone, mut through) = (Vec::new(), Vec::new());
    for request in 0..100u64 {
        let began = std::time::Instant::now();
        let mut ask = Ask {
            request,
            model: w.model.id().into(),
            prompt: prompt.clone(),
            max_new: 2,
            sampling: Default::default(),
            seed: Default::default(),
            cumulative: PLENTY,
            voucher: Default::default(),
            offer: offer.clone(),
            logprobs: None,
        };
        let voucher = ask.voucher(direct.channel).unwrap();
        ask.voucher = sign_sync(&w.key, &support::DOMAIN, &voucher).unwrap().into();
        let mut answer = client.ask(direct.channel, &ask).await.unwrap();
        answer.next().await.unwrap();
        alone.push(began.elapsed());
        while answer.next().await.unwrap().is_some() {}

        let body = json!({ "model": "small", "prompt": PROMPT, "max_tokens": 2, "stream": true });
        let began = std::time::Instant::now();
        let mut sent = g.http.post(format!("{}/v1/completions", g.url)).json(&body).send().await.unwrap();
        sent.chunk().await.unwrap();
        through.push(began.elapsed());
        while sent.chunk().await.unwrap().is_some() {}
    }
    alone.sort_unstable();
    through.sort_unstable();
    let at = |times: &[Duration], part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
    for part in [50, 95] {
        let (a, t) = (at(&alone, part), at(&through, part));
        eprintln!("p{part}: {a:.2} ms alone, {t:.2} ms through the gateway, {:.2} ms added", t - a);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_described_only_if_it_can_be_paid() {
    let w = World::new();
    let cheap = w.cheap().await;
    let g = w.gateway(&[&cheap], "state").await;
    let stranger = json!(alloy::primitives::Address::repeat_byte(7));
    let (status, told) = g.get(&format!("/v1/nodes/{}", stranger.as_str().unwrap())).await;
    assert_eq!((status, &told["info"]), (200, &json!(null)));
    assert!(told["why"].as_str().unwrap().contains("no open channel"), "{told}");
    assert_eq!(g.get("/v1/nodes/me").await.0, 400);
    let (status, told) = g.get(&format!("/v1/nodes/{}", cheap.key.address())).await;
    // This one has nothing to say of itself, but it was asked.
    assert_eq!((status, &told["info"]), (200, &json!(null)));
    assert!(!told["why"].as_str().unwrap().contains("no open channel"), "{told}");
}
