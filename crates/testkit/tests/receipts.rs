//! Receipts under watch, with the programs that people run: a false one convicts its node, a hidden one voids its batch, and an
//! honest node is left alone.
//!
//! Turns are long, so that a busy machine does not decide an outcome; where a turn must pass, the chain's clock jumps.

use std::path::Path;
use std::time::{Duration, Instant};

use alloy::primitives::U256;
use serde_json::Value;
use sworn_bindings::IChannels::{self, BatchState};
use sworn_bindings::{IERC20, ITrials, Place};
use sworn_receipts::{Domain, SignedReceipt, place, sign_sync};
use sworn_testkit::buyer::Buyer;
use sworn_testkit::devnet::{DevnetError, PURSE, free_port};
use sworn_testkit::process::Process;
use sworn_testkit::scenario::{OUTPUT_PRICE, STAKE, Stage, prompt};

const LIAR: &str = env!("CARGO_BIN_EXE_sworn-liar");
const PATIENCE: Duration = Duration::from_secs(100);
const DEPOSIT: u128 = PURSE / 10;

/// Waits for an event; the message of a failure has what both sides told.
async fn heard(process: &Process, other: &Process, event: &str) -> Value {
    match process.wait(event, PATIENCE).await {
        Ok(value) => value,
        Err(e) => panic!("{e}\n{}", other.complaint("so far")),
    }
}

fn named(process: &Process, event: &str) -> Vec<Value> {
    process.events().into_iter().filter(|e| e["event"] == event).collect()
}

async fn batch(stage: &Stage) -> IChannels::Batch {
    stage.net.chain.channels().batch(U256::ONE).call().await.unwrap()
}

/// Waits until the batch is in this state.
async fn batch_is(stage: &Stage, state: BatchState) -> Result<(), DevnetError> {
    let start = Instant::now();
    loop {
        let actual = batch(stage).await.state;
        if actual as u8 == state as u8 {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(DevnetError::other(format!("the batch is in state {}", actual as u8)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The user takes back its part of the void batch; every token is somewhere.
async fn refund_and_count(stage: &Stage) {
    let d = &stage.net.deployment;
    let seen = stage.net.chain.channels().BatchRedeemed_filter().from_block(0).query().await.unwrap();
    let (redeemed, _) = &seen[0];
    let place = place(redeemed.batchId, &redeemed.parts, redeemed.parts[0].channelId).unwrap();
    stage.user.send("refund", d.channels, &IChannels::refundCall { place }).await.unwrap();
    stage.user.send("withdraw channels", d.channels, &IChannels::withdrawCall {}).await.unwrap();
    let all = stage.net.all_tokens(&[&stage.operator, &stage.user, &stage.watcher]).await.unwrap();
    assert_eq!(all, stage.net.minted, "tokens are lost or made");
}

/// A node signs a false receipt and redeems it; the watcher brings it to trial and takes the reward.
async fn convicted(lie: &str, hides: bool) {
    let stage = Stage::synthetic(3).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", lie, "--seed", "4", "--redeem-at", "1"]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    let mut buyer = Buyer::open(&stage, DEPOSIT).await.unwrap();
    let (tokens, signed) = buyer.ask(&prompt(21), 8).await.unwrap();
    let lied = heard(&liar, &watcher, "lied").await;
    let seen = heard(&watcher, &liar, "batch_seen").await;
    assert_eq!(
        (seen["receipts"].as_u64(), seen["amount"].as_str()),
        (Some(1), Some(&*signed.receipt.price.to_string()))
    );
    if hides {
        heard(&watcher, &liar, "receipts_read").await;
        stage.net.skip(stage.terms.channels.window.to::<u64>() / 2 + 1).await.unwrap();
    }
    let lodged = heard(&watcher, &liar, "lodged").await;
    let proven = heard(&watcher, &liar, "proven").await;
    for key in ["layer", "row", "position", "op", "opcode", "claimed"] {
        assert_eq!(proven[key], lied[key], "{key}: {proven} {lied}");
    }
    assert_eq!((&proven["job"], &proven["computed"]), (&lodged["job"], &lied["honest"]));
    let taken = heard(&watcher, &liar, "convicted").await;
    assert_eq!(taken["taken"].as_str().unwrap(), STAKE.to_string(), "the whole stake");
    stage.skip_challenger_turn().await.unwrap();
    heard(&watcher, &liar, "withdrawn").await;

    let share = |bps: u16| STAKE / 10_000 * u128::from(bps);
    let reward = share(stage.terms.channels.challengerShareBps);
    let holds = stage.net.tokens_of(stage.watcher.address()).await.unwrap();
    // The fee for a receipt that was published is the node's.
    let spent = if hides { stage.terms.channels.receiptFee } else { 0 };
    assert_eq!(holds, U256::from(PURSE + reward - spent), "the reward, and every other fee again");
    refund_and_count(&stage).await;
    assert_eq!(tokens.len(), signed.receipt.nOut as usize);
    let released = stage.net.chain.channels().balanceOf(stage.operator.address()).call().await.unwrap();
    assert_eq!(released, U256::ZERO, "nothing of the batch is the node's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_receipt_costs_the_whole_stake() {
    convicted("LINEAR", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_receipt_that_is_hidden_as_long_as_can_be_costs_the_whole_stake() {
    // Served to nobody: the receipt, its tokens and every opening come by demands on chain.
    convicted("MIX+interactive", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_false_receipt_can_bring_it_to_trial() {
    let stage = Stage::synthetic(3).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "MIX", "--seed", "4", "--redeem-at", "1"]).await.unwrap();
    let mut buyer = Buyer::open(&stage, DEPOSIT).await.unwrap();
    let (tokens, signed) = buyer.ask(&prompt(21), 8).await.unwrap();
    let file = stage.net.dir.path().join("receipt.json");
    std::fs::write(&file, buyer.file(&prompt(21), &tokens, &signed).unwrap().to_string()).unwrap();
    batch_is(&stage, BatchState::Pending).await.unwrap();
    let lodge = stage.lodge(&file).unwrap();
    let lied = heard(&liar, &lodge, "lied").await;
    let proven = heard(&lodge, &liar, "proven").await;
    assert_eq!((&proven["claimed"], &proven["element"]), (&lied["claimed"], &lied["element"]));
    heard(&lodge, &liar, "convicted").await;
    stage.skip_challenger_turn().await.unwrap();
    heard(&lodge, &liar, "withdrawn").await;
    let reward = STAKE / 10_000 * u128::from(stage.terms.channels.challengerShareBps);
    assert_eq!(stage.net.tokens_of(stage.watcher.address()).await.unwrap(), U256::from(PURSE + reward));
    refund_and_count(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_receipts_for_one_request_cost_the_whole_stake() {
    let stage = Stage::synthetic(3).await.unwrap();
    let _node = stage.node(&["--redeem-at", "100"]).await.unwrap();
    let mut buyer = Buyer::open(&stage, DEPOSIT).await.unwrap();
    let (tokens, signed) = buyer.ask(&prompt(21), 4).await.unwrap();
    let domain = Domain { chain_id: stage.net.deployment.chain_id, channels: stage.net.deployment.channels };
    let (mut other, mut next) = (signed.receipt.clone(), signed.receipt.clone());
    (other.price, other.cumulative, next.request) = (other.price + 1, other.cumulative + 1, next.request + 1);
    let sign = |receipt: sworn_receipts::Receipt| {
        let signature = sign_sync(&stage.operator.signer, &domain, &receipt).unwrap().into();
        SignedReceipt { receipt, signature }
    };
    let files = [&signed, &sign(other), &sign(next)].map(|signed| {
        let file = stage.net.dir.path().join(format!("{}.json", domain.digest(&signed.receipt)));
        std::fs::write(&file, buyer.file(&prompt(21), &tokens, signed).unwrap().to_string()).unwrap();
        file
    });
    let [first, second, third] = files.each_ref().map(|f| f.to_str().unwrap());
    let show = |b: &str| stage.does(&stage.watcher, &["dispute", "equivocation", first, b]);
    for (b, why) in [(first, "the same receipt twice"), (third, "two for one request")] {
        let error = show(b).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let sent = show(second).unwrap();
    assert_eq!((&sent[0]["label"], &sent[1]["label"]), (&"convictEquivocation".into(), &"withdraw".into()), "{sent}");
    let reward = STAKE / 10_000 * u128::from(stage.terms.channels.challengerShareBps);
    assert_eq!(stage.net.tokens_of(stage.watcher.address()).await.unwrap(), U256::from(PURSE + reward));
    assert!(show(second).unwrap_err().to_string().contains("convicted already"));
    let all = stage.net.all_tokens(&[&stage.operator, &stage.user, &stage.watcher]).await.unwrap();
    assert_eq!(all, stage.net.minted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_receipt_is_not_brought_to_trial() {
    let stage = Stage::synthetic(3).await.unwrap();
    let node = stage.node(&["--redeem-at", "100"]).await.unwrap();
    let mut buyer = Buyer::open(&stage, DEPOSIT).await.unwrap();
    let (tokens, signed) = buyer.ask(&prompt(21), 4).await.unwrap();
    let file = stage.net.dir.path().join("receipt.json");
    std::fs::write(&file, buyer.file(&prompt(21), &tokens, &signed).unwrap().to_string()).unwrap();
    let (status, told) = stage.lodge(&file).unwrap().ended(PATIENCE).await.unwrap();
    assert!(!status.success() && told.contains("there is nothing to challenge"), "{told}");
    assert!(stage.net.chain.trials().jobOf(sworn_digest(&stage, &signed)).call().await.unwrap().is_zero());
    drop(node);
}

fn sworn_digest(stage: &Stage, signed: &sworn_receipts::SignedReceipt) -> alloy::primitives::B256 {
    let d = &stage.net.deployment;
    sworn_receipts::Domain { chain_id: d.chain_id, channels: d.channels }.digest(&signed.receipt)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_a_hidden_receipt_is_void() {
    let stage = Stage::synthetic(3).await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "LINEAR+mute", "--redeem-at", "1"]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    let mut buyer = Buyer::open(&stage, DEPOSIT).await.unwrap();
    buyer.ask(&prompt(21), 4).await.unwrap();
    let read = heard(&watcher, &liar, "receipts_read").await;
    assert_eq!(read["served"], false, "{read}");
    stage.net.skip(stage.terms.channels.window.to::<u64>() / 2 + 1).await.unwrap();
    let demanded = heard(&watcher, &liar, "batch_sent").await;
    assert_eq!(demanded["call"], "demandReceipt");
    stage.net.skip(stage.terms.channels.receiptTurn.to::<u64>() + 1).await.unwrap();
    let over = heard(&watcher, &liar, "batch_over").await;
    assert_eq!(over["released"], false);
    batch_is(&stage, BatchState::Void).await.unwrap();
    let bond = stage.terms.channels.minBond;
    let reward = bond / 10_000 * u128::from(stage.terms.channels.challengerShareBps);
    heard(&watcher, &liar, "withdrawn").await;
    let holds = stage.net.tokens_of(stage.watcher.address()).await.unwrap();
    assert_eq!(holds, U256::from(PURSE + reward), "a share of the bond, and the fee again");
    assert!(named(&watcher, "lodged").is_empty());
    refund_and_count(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_it_would_do_and_ends() {
    let stage = Stage::synthetic(3).await.unwrap();
    let _liar =
        stage.liar(Path::new(LIAR), &["--lie", "MIX+interactive", "--redeem-at", &PURSE.to_string()]).await.unwrap();
    let mut buyer = Buyer::open(&stage, DEPOSIT).await.unwrap();
    let (_, signed) = buyer.ask(&prompt(21), 4).await.unwrap();
    // On trial, with tokens that only a demand would bring.
    let d = &stage.net.deployment;
    let fees = IERC20::approveCall { spender: d.channels, value: U256::MAX };
    stage.user.send("approve fees", d.token, &fees).await.unwrap();
    let lodge = ITrials::lodgeCall {
        receipt: (&signed.receipt).into(),
        signature: signed.signature.clone(),
        place: Place::default(),
    };
    stage.user.send("lodge", d.trials, &lodge).await.unwrap();
    let mut dry = stage.watch(&["--dry-run", "--once"]).unwrap();
    let (status, told) = dry.ended(PATIENCE).await.unwrap();
    assert!(status.success(), "{told}");
    let [would] = &named(&dry, "would_challenge")[..] else { panic!("{}", dry.complaint("what it would do")) };
    assert!(would["next"].as_str().unwrap().starts_with("demand "), "{would}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_nodes_receipts_are_audited_and_paid() {
    let stage = Stage::synthetic(3).await.unwrap();
    let monitored = [(); 2].map(|()| format!("127.0.0.1:{}", free_port().unwrap()));
    let node = stage.node(&["--redeem-at", "0.3", "--metrics", &monitored[0]]).await.unwrap();
    let watcher = stage.watch(&["--metrics", &monitored[1]]).unwrap();
    let mut buyer = Buyer::open(&stage, DEPOSIT).await.unwrap();
    let mut price = 0;
    let mut asked = 0;
    // Until a batch is due, and no answer more: what comes after it would make a second one.
    while price < PURSE / 10_000 * 3 {
        let (_, signed) = buyer.ask(&prompt(21), 6 + asked).await.unwrap();
        (price, asked) = (price + signed.receipt.price, asked + 1);
    }
    let seen = heard(&watcher, &node, "batch_seen").await;
    let receipts = seen["receipts"].as_u64().unwrap() as usize;
    let start = Instant::now();
    while named(&watcher, "receipt_audited").len() < receipts {
        assert!(start.elapsed() < PATIENCE, "{}", watcher.complaint("not all are audited"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(named(&watcher, "receipt_audited").iter().all(|a| a["ok"] == true), "{}", watcher.complaint(""));
    stage.net.skip(stage.terms.channels.window.to::<u64>() + 1).await.unwrap();
    let over = heard(&watcher, &node, "batch_over").await;
    assert_eq!(over["released"], true);
    batch_is(&stage, BatchState::Released).await.unwrap();
    for event in ["lodged", "batch_sent", "receipt_skipped", "error"] {
        assert!(named(&watcher, event).is_empty(), "{}", watcher.complaint(event));
    }
    let paid: u128 = seen["amount"].as_str().unwrap().parse().unwrap();
    assert_eq!((paid, receipts), (price, asked as usize));
    let due = stage.net.chain.channels().balanceOf(stage.operator.address()).call().await.unwrap();
    let held = stage.net.tokens_of(stage.operator.address()).await.unwrap();
    assert_eq!(due + held, U256::from(PURSE - STAKE + paid));

    // What monitoring reads of both.
    for (address, expected) in monitored.iter().zip([
        &[
            "sworn_node_events_total{event=\"redeemed\"}",
            "sworn_node_tokens_total{way=\"receipt\"}",
            "sworn_node_first_token_seconds_bucket",
            "sworn_chain_transactions_total{call=\"redeem\",outcome=\"mined\"}",
            "sworn_chain_balance_wei",
        ][..],
        &[
            "sworn_watcher_audits_total{what=\"receipt\",outcome=\"right\"}",
            "sworn_watcher_audit_seconds_count",
            "sworn_watcher_watched{what=\"batches\"}",
        ],
    ]) {
        for page in ["health", "ready"] {
            let status = reqwest::get(format!("http://{address}/{page}")).await.unwrap().status();
            assert_eq!(status, 200, "{page} of {address}");
        }
        let told = reqwest::get(format!("http://{address}/metrics")).await.unwrap().text().await.unwrap();
        for series in
            expected.iter().chain(&["sworn_agent_ready 1", "sworn_chain_head_block", "# HELP sworn_chain_head_block"])
        {
            assert!(told.contains(series), "{series} in\n{told}");
        }
    }

    // What everybody can read of the node, and what another would ask.
    let nodes = stage.says(&["node", "list"], &["--sort", "volume", "--offering"]).unwrap();
    let [node] = nodes.as_array().unwrap().as_slice() else { panic!("{nodes}") };
    assert_eq!(node["node"].as_str().unwrap().parse(), Ok(stage.operator.address()));
    assert_eq!((node["volume"].as_str(), node["receipts"].as_u64()), (Some(&*paid.to_string()), Some(receipts as u64)));
    assert_eq!((&node["slashed"], &node["convicted"]), (&0.into(), &false.into()));
    assert_eq!(node["per_output_token"].as_str(), Some(&*OUTPUT_PRICE.to_string()));
    let price = stage.says(&["node", "suggest"], &["--backend", "cpu", "--watts", "100"]).unwrap();
    assert_eq!(price["market_output"].as_str(), Some(&*OUTPUT_PRICE.to_string()));
    let amount = |key: &str| price[key].as_str().unwrap().parse::<u128>().unwrap();
    assert!(amount("cost_output") > 0 && amount("output") >= amount("cost_output"), "{price}");

    // Prices move without a transaction, and back.
    let (model, state) = (stage.model.path().to_str().unwrap(), stage.operator.dir.join("state"));
    let set = |flags: &[&str]| {
        let verb = [&["node", "price", model, "--state", state.to_str().unwrap()], flags].concat();
        stage.does(&stage.operator, &verb).unwrap()
    };
    let offered = async || {
        let offers = reqwest::get(format!("http://{}/v1/offers", stage.listen)).await.unwrap();
        let offers: Value = offers.json().await.unwrap();
        offers[0]["offer"]["perOutputToken"].as_str().unwrap().to_owned()
    };
    set(&["--input", "0.001", "--output", "0.02", "--unposted"]);
    assert_eq!(offered().await, "20000000000000000");
    set(&["--as-posted"]);
    assert_eq!(offered().await, OUTPUT_PRICE.to_string());
}
