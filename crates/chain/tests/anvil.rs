//! The crate against a real anvil with the real contracts.
#![allow(missing_docs, dead_code, unreachable_pub)]

#[path = "support/devnet.rs"]
mod devnet;
#[path = "support/server.rs"]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use alloy::providers::{Provider, ProviderBuilder};
use devnet::{Devnet, NOWHERE, Params, UNIT, approve};
use serde_json::{Value, json};
use server::server;
use sworn_bindings::{Deployment, Event, IERC20, IMarket, INodes};
use sworn_chain::{Chain, Cursor, CursorOptions, Error, Intent, Sender, SenderOptions, Store};

async fn devnet() -> Devnet {
    Devnet::start(None, Params::default()).await
}

fn transfer(d: &Deployment, key: &str, to: Address, amount: u128) -> Intent {
    Intent::call(key, d.token, &IERC20::transferCall { to, value: U256::from(amount) })
}

#[tokio::test]
async fn connections_are_checked() {
    let net = devnet().await;
    let url = net.anvil.endpoint();
    let d = &net.deployment;

    let e = Chain::connect("gopher://x", d.clone()).await.unwrap_err();
    assert!(matches!(e, Error::Url { .. }), "{e}");
    let e = Chain::connect("http://user:secret@127.0.0.1:1", d.clone()).await.unwrap_err();
    assert!(matches!(e, Error::Unreachable { .. }), "{e}");
    assert!(e.to_string().contains("check that the node runs"), "{e}");
    assert!(!e.to_string().contains("secret"), "{e}");
    let e = Chain::connect(&url, Deployment { chain_id: 1, ..d.clone() }).await.unwrap_err();
    assert!(matches!(e, Error::WrongChain { actual: 31337, expected: 1, .. }), "{e}");
    let e = Chain::connect(&url, Deployment { market: NOWHERE, ..d.clone() }).await.unwrap_err();
    assert!(matches!(e, Error::NoContract { name: "market", .. }), "{e}");

    let chain = net.chain().await;
    assert_eq!(chain.market().nextJobId().call().await.unwrap(), U256::ONE);
    assert_eq!(chain.nodes().market().call().await.unwrap(), d.market);
}

#[tokio::test]
async fn the_same_key_sends_once() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(10 * UNIT).await;
    let sender = net.sender(key.clone(), dir.path()).await;
    let intent = transfer(&net.deployment, "pay/1", NOWHERE, UNIT);
    // At once from several tasks, then again, then from a new process.
    let (a, b, c) = tokio::join!(sender.send(&intent), sender.send(&intent), sender.send(&intent));
    let first = a.unwrap();
    assert_eq!((&first, &first), (&b.unwrap(), &c.unwrap()));
    assert!(first.gas_used > 21_000 && first.cost() > U256::ZERO);
    drop(sender);
    let sender = net.sender(key.clone(), dir.path()).await;
    assert_eq!(sender.send(&intent).await.unwrap(), first);
    assert_eq!(sender.receipt("pay/1").unwrap(), Some(first));

    // Many keys at once: every nonce once.
    let intents: Vec<_> = (0..8).map(|i| transfer(&net.deployment, &format!("many/{i}"), NOWHERE, 1)).collect();
    let sent: Vec<_> = intents
        .iter()
        .map(|i| {
            let s = sender.clone();
            let i = i.clone();
            tokio::spawn(async move { s.send(&i).await })
        })
        .collect();
    for s in sent {
        s.await.unwrap().unwrap();
    }
    let balances = sender.chain().balances(key.address()).await.unwrap();
    assert_eq!(balances.token, U256::from(9 * UNIT - 8));
    assert_eq!(balances.tokens(), balances.token);
    assert!(sender.unfinished().unwrap().is_empty());
}

#[tokio::test]
async fn doomed_calls_are_explained_and_cost_nothing() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(UNIT).await;
    let sender = net.sender(key.clone(), dir.path()).await;
    let before = sender.chain().balances(key.address()).await.unwrap();
    let market = net.deployment.market;
    let e = sender.send(&Intent::call("f", market, &IMarket::finalizeCall { jobId: U256::from(7) })).await.unwrap_err();
    let revert = e.revert().unwrap();
    assert!(revert.is("WrongState") && revert.arg("jobId") == Some("7"), "{e}");
    let e = sender.send(&transfer(&net.deployment, "too much", NOWHERE, 2 * UNIT)).await.unwrap_err();
    assert!(e.revert().unwrap().is("ERC20InsufficientBalance"), "{e}");
    let e =
        sender.send(&Intent::call("d", net.deployment.nodes, &INodes::depositCall { amount: 5 })).await.unwrap_err();
    assert!(e.revert().unwrap().is("ERC20InsufficientAllowance"), "{e}");
    assert_eq!(sender.chain().balances(key.address()).await.unwrap(), before);
    // What failed is not remembered: the same key works once the cause is gone.
    approve(&sender, net.deployment.nodes).await;
    sender.send(&Intent::call("d", net.deployment.nodes, &INodes::depositCall { amount: 5 })).await.unwrap();
    assert_eq!(sender.chain().balances(key.address()).await.unwrap().stake, 5);

    let poor = sender_without_gas(&net, dir.path()).await;
    let e = poor
        .send(&Intent::call("p", net.deployment.nodes, &INodes::configureCall { endpoint: "x".into(), capacity: 1 }))
        .await
        .unwrap_err();
    assert!(matches!(e, Error::Funds { .. }), "{e}");
}

async fn sender_without_gas(net: &Devnet, dir: &std::path::Path) -> Sender {
    let key = net.account(0).await;
    net.rpc("anvil_setBalance", json!([key.address(), "0x1"])).await;
    net.sender(key, dir).await
}

#[tokio::test]
async fn stuck_transactions_are_replaced_and_survive_a_crash() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(10 * UNIT).await;
    let chain = net.chain().await;
    let path = dir.path().join("s.redb");
    let quick = SenderOptions { bump_after: Duration::from_millis(150), ..SenderOptions::default() };
    let open = || Sender::new(chain.clone(), key.clone(), Store::open(&path, &chain).unwrap(), quick.clone());
    let (one, two) = (transfer(&net.deployment, "one", NOWHERE, 1), transfer(&net.deployment, "two", NOWHERE, 2));

    // No blocks: the process dies while both wait.
    net.rpc("evm_setAutomine", json!([false])).await;
    let sender = open();
    for intent in [&one, &two] {
        assert!(tokio::time::timeout(Duration::from_millis(300), sender.send(intent)).await.is_err());
    }
    assert_eq!(sender.unfinished().unwrap(), ["one", "two"]);
    drop(sender);

    // The RPC forgets its queue; the next process finds both in its journal and raises their fees.
    net.rpc("anvil_dropAllTransactions", json!([])).await;
    let sender = open();
    let resume = tokio::spawn({
        let s = sender.clone();
        async move { s.resume().await }
    });
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!resume.is_finished());
    net.rpc("evm_mine", json!([])).await;
    net.rpc("evm_setAutomine", json!([true])).await;
    assert_eq!(resume.await.unwrap().unwrap(), ["one", "two"]);
    let (a, b) = (sender.send(&one).await.unwrap(), sender.send(&two).await.unwrap());
    assert_ne!(a.hash, b.hash);
    assert!(a.gas_price > b.gas_price || a.block < b.block, "the first was replaced: {a:?} {b:?}");
    assert_eq!(chain.token().balanceOf(NOWHERE).call().await.unwrap(), U256::from(3));
    assert_eq!(chain.provider().get_transaction_count(key.address()).await.unwrap(), 2);
}

/// Fees rise beyond what there is, and fall again.
#[tokio::test]
async fn a_fee_that_was_raised_beyond_the_money_comes_down_again() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(10 * UNIT).await;
    let impatient = SenderOptions { bump_after: Duration::from_secs(1), ..SenderOptions::default() };
    let sender = net.sender_with(key, dir.path(), impatient).await;
    net.rpc("evm_setAutomine", json!([false])).await;
    // For a whole transfer at this price ten times the money would not do.
    let beyond = U256::from(10 * 1_000 * UNIT / 50_000);
    let (dear, cheap) = (json!([beyond]), json!([U256::from(1_000_000_000)]));
    let mine = async |fee: &Value| {
        net.rpc("anvil_setNextBlockBaseFeePerGas", fee.clone()).await;
        net.rpc("evm_mine", json!([])).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let intent = transfer(&net.deployment, "pay", NOWHERE, 7);
    // Whoever wants it asks again while there is no money for it.
    let paid = async {
        loop {
            match sender.send(&intent).await {
                Err(Error::Funds { .. }) => tokio::time::sleep(Duration::from_millis(100)).await,
                other => return other,
            }
        }
    };
    let fees = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for _ in 0..12 {
            mine(&dear).await;
        }
        net.rpc("anvil_dropAllTransactions", json!([])).await;
        for _ in 0..60 {
            mine(&cheap).await;
        }
    };
    tokio::select! {
        paid = paid => drop(paid.unwrap()),
        () = fees => panic!("it waits for ever"),
    }
    assert_eq!(sender.chain().token().balanceOf(NOWHERE).call().await.unwrap(), U256::from(7));
}

#[tokio::test]
async fn two_agents_on_one_key_do_not_lose_transactions() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(10 * UNIT).await;
    let chain = net.chain().await;
    let agent = |name: &str| {
        let store = Store::open(dir.path().join(name), &chain).unwrap();
        Sender::new(chain.clone(), key.clone(), store, SenderOptions::default())
    };
    let (a, b) = (agent("a"), agent("b"));
    for round in 0..4u128 {
        let (x, y) = (
            transfer(&net.deployment, &format!("a{round}"), NOWHERE, 1),
            transfer(&net.deployment, &format!("b{round}"), NOWHERE, 100),
        );
        let (x, y) = tokio::join!(a.send(&x), b.send(&y));
        x.unwrap();
        y.unwrap();
    }
    assert_eq!(chain.token().balanceOf(NOWHERE).call().await.unwrap(), U256::from(404));
}

#[tokio::test]
async fn a_transaction_that_a_reorganisation_removed_is_sent_again() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(10 * UNIT).await;
    let sender = net.sender(key.clone(), dir.path()).await;
    let intent = transfer(&net.deployment, "pay", NOWHERE, 7);
    let snapshot = net.rpc("evm_snapshot", json!([])).await;
    sender.send(&intent).await.unwrap();
    assert_eq!(net.rpc("evm_revert", json!([snapshot])).await, json!(true));
    net.pass(5).await;
    assert_eq!(sender.chain().token().balanceOf(NOWHERE).call().await.unwrap(), U256::ZERO);
    sender.send(&intent).await.unwrap();
    assert_eq!(sender.chain().token().balanceOf(NOWHERE).call().await.unwrap(), U256::from(7));
}

/// As the one before; but what is in a block is no reason not to do it again.
#[tokio::test]
async fn what_may_have_to_happen_again_happens_again_and_what_is_on_its_way_does_not() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(100 * UNIT).await;
    let sender = net.sender(key.clone(), dir.path()).await;
    let intent = transfer(&net.deployment, "pay", NOWHERE, 7);
    let paid = async || sender.chain().token().balanceOf(NOWHERE).call().await.unwrap();
    let first = sender.again(&intent).await.unwrap();
    let second = sender.again(&intent).await.unwrap();
    assert_ne!(first.hash, second.hash);
    assert_eq!(paid().await, U256::from(14));
    // A reorganisation takes the second back: it is on its way, and no third.
    net.rpc("anvil_rollback", json!([1])).await;
    assert_eq!(paid().await, U256::from(7));
    assert_eq!(sender.again(&intent).await.unwrap().hash, second.hash);
    assert_eq!(paid().await, U256::from(14));
    // So is one that was signed by a process that died.
    net.rpc("evm_setAutomine", json!([false])).await;
    let dies = tokio::time::timeout(Duration::from_secs(1), sender.again(&intent)).await;
    assert!(dies.is_err());
    net.rpc("evm_setAutomine", json!([true])).await;
    net.rpc("evm_mine", json!([])).await;
    sender.again(&intent).await.unwrap();
    assert_eq!(paid().await, U256::from(21));
    // While one is on its way, a reorganisation takes the one before, which it waits for.
    net.rpc("evm_setAutomine", json!([false])).await;
    let fourth = sender.again(&intent);
    let disturbs = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        net.rpc("anvil_rollback", json!([1])).await;
        net.rpc("anvil_dropAllTransactions", json!([])).await;
        net.rpc("evm_setAutomine", json!([true])).await;
    };
    let (fourth, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(30), fourth), disturbs);
    fourth.unwrap().unwrap();
    assert_eq!(paid().await, U256::from(28));
}

/// One that was in a block is queued again by a reorganisation, and no block takes it: nobody asks for it any more.
#[tokio::test]
async fn a_transaction_that_others_wait_for_gets_a_higher_fee_though_nobody_follows_it() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(10 * UNIT).await;
    let impatient = SenderOptions { bump_after: Duration::from_secs(1), ..SenderOptions::default() };
    let sender = net.sender_with(key, dir.path(), impatient).await;
    let first = sender.send(&transfer(&net.deployment, "first", NOWHERE, 7)).await.unwrap();
    let raw = net.rpc("eth_getRawTransactionByHash", json!([first.hash])).await;
    net.rpc("evm_setAutomine", json!([false])).await;
    net.rpc("anvil_rollback", json!([1])).await;
    net.rpc("eth_sendRawTransaction", json!([raw])).await;
    let second = transfer(&net.deployment, "second", NOWHERE, 1);
    let raised = async {
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let queued = net.rpc("eth_getTransactionByHash", json!([first.hash])).await;
            if queued.is_null() {
                net.rpc("evm_setAutomine", json!([true])).await;
                net.rpc("evm_mine", json!([])).await;
                return;
            }
        }
        panic!("no block takes it, and its fee stays");
    };
    let (sent, ()) = tokio::join!(sender.send(&second), raised);
    sent.unwrap();
    assert_eq!(sender.chain().token().balanceOf(NOWHERE).call().await.unwrap(), U256::from(8));
}

fn configured(batch: &sworn_chain::Batch) -> Vec<u32> {
    let capacity = |e: &sworn_chain::Seen| match &e.event {
        Event::Nodes(INodes::INodesEvents::NodeUpdated(u)) => Some(u.capacity),
        _ => None,
    };
    batch.events.iter().filter_map(capacity).collect()
}

#[tokio::test]
async fn events_come_in_order_at_least_once_and_follow_reorganisations() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let key = net.account(0).await;
    let sender = net.sender(key, dir.path()).await;
    let chain = net.chain().await;
    let configure = async |capacity: u32| {
        let call = INodes::configureCall { endpoint: "http://node".into(), capacity };
        sender.send(&Intent::call(format!("c{capacity}"), net.deployment.nodes, &call)).await.unwrap();
    };
    let store = Store::open(dir.path().join("cursor.redb"), &chain).unwrap();
    let open =
        |chunk| Cursor::open(chain.clone(), store.clone(), "test", CursorOptions { chunk, remembered: 64 }).unwrap();

    for capacity in 1..=5 {
        configure(capacity).await;
    }
    let mut cursor = open(3);
    let mut seen = Vec::new();
    loop {
        let batch = cursor.poll().await.unwrap();
        // Uncommitted batches come again.
        assert_eq!(configured(&cursor.poll().await.unwrap()), configured(&batch));
        seen.extend(configured(&batch));
        cursor.commit(&batch).unwrap();
        if batch.caught_up {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    // Another process goes on where the last one stopped.
    let snapshot = net.rpc("evm_snapshot", json!([])).await;
    configure(6).await;
    let mut cursor = open(1_000);
    let batch = cursor.poll().await.unwrap();
    assert_eq!((configured(&batch), batch.replaced), (vec![6], None));
    cursor.commit(&batch).unwrap();
    assert!(configured(&cursor.poll().await.unwrap()).is_empty());

    // Block 6 is replaced by another.
    net.rpc("evm_revert", json!([snapshot])).await;
    net.pass(9).await;
    configure(7).await;
    let mut got = Vec::new();
    let mut reorganised = false;
    for _ in 0..4 {
        let batch = cursor.poll().await.unwrap();
        reorganised |= batch.replaced.is_some();
        got.extend(configured(&batch));
        cursor.commit(&batch).unwrap();
    }
    assert!(reorganised);
    assert_eq!(got.last(), Some(&7), "{got:?}");
    assert!(!got.contains(&6), "{got:?}");
}

/// Blocks that were read are replaced after a poll has seen that they are still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorganisation_in_the_middle_of_a_poll_is_noticed() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let sender = net.sender(net.account(0).await, dir.path()).await;
    let upstream = net.anvil.endpoint();
    let armed = Arc::new(AtomicBool::new(false));
    let (trigger, handle) = (armed.clone(), tokio::runtime::Handle::current());
    // The head is asked for after the blocks that were read.
    let reorganises = move |asked: &Value| {
        let for_head = asked["method"] == "eth_getBlockByNumber" && asked["params"][0] == "latest";
        if for_head && trigger.swap(false, Ordering::Relaxed) {
            let provider = ProviderBuilder::new().connect_http(upstream.parse().unwrap());
            let reorg = provider.raw_request::<_, Value>("anvil_reorg".into(), json!([2, []]));
            tokio::task::block_in_place(|| handle.block_on(reorg)).unwrap();
        }
        true
    };
    let url = server(net.anvil.endpoint(), reorganises).await;
    let chain = Chain::connect(&url, net.deployment.clone()).await.unwrap();
    let store = Store::open(dir.path().join("cursor.redb"), &chain).unwrap();
    let mut cursor = Cursor::open(chain, store, "test", CursorOptions::default()).unwrap();
    let mut read = async || {
        let batch = cursor.poll().await.unwrap();
        cursor.commit(&batch).unwrap();
        (configured(&batch), batch.caught_up, batch.replaced.is_some())
    };
    assert_eq!(read().await, (vec![], true, false));
    let call = INodes::configureCall { endpoint: "http://node".into(), capacity: 7 };
    sender.send(&Intent::call("c7", net.deployment.nodes, &call)).await.unwrap();
    assert_eq!(read().await, (vec![7], true, false));
    net.rpc("anvil_mine", json!([1])).await;
    armed.store(true, Ordering::Relaxed);
    assert_eq!(read().await, (vec![], false, false));
    assert!(!armed.load(Ordering::Relaxed));
    assert_eq!(read().await, (vec![], true, true));
}

#[tokio::test]
async fn a_store_of_another_devnet_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let (a, b) = (devnet().await, devnet().await);
    let (a, b) = (a.chain().await, b.chain().await);
    if a.genesis() != b.genesis() {
        drop(Store::open(&path, &a).unwrap());
        assert!(matches!(Store::open(&path, &b), Err(Error::OtherChain { .. })));
    }
    assert_eq!(a.receipt(B256::ZERO).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_for_many_blocks_is_asked_for_fewer() {
    let net = devnet().await;
    let dir = tempfile::tempdir().unwrap();
    let sender = net.sender(net.account(0).await, dir.path()).await;
    let call = INodes::configureCall { endpoint: "http://node".into(), capacity: 7 };
    sender.send(&Intent::call("c7", net.deployment.nodes, &call)).await.unwrap();
    net.rpc("anvil_mine", json!([300])).await;

    let few = |asked: &Value| {
        let block = |name: &str| {
            let text = asked["params"][0][name].as_str().unwrap_or("0x0");
            u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
        };
        asked["method"] != "eth_getLogs" || block("toBlock") - block("fromBlock") < 100
    };
    let url = server(net.anvil.endpoint(), few).await;
    let chain = Chain::connect(&url, net.deployment.clone()).await.unwrap();
    let store = Store::open(dir.path().join("cursor.redb"), &chain).unwrap();
    let mut cursor = Cursor::open(chain, store, "test", CursorOptions::default()).unwrap();
    let (mut seen, mut failures) = (Vec::new(), 0);
    loop {
        match cursor.poll().await {
            Ok(batch) => {
                seen.extend(configured(&batch));
                cursor.commit(&batch).unwrap();
                if batch.caught_up {
                    break;
                }
            }
            Err(e) => {
                failures += 1;
                assert!(e.is_transient() && failures < 4, "{e}");
            }
        }
    }
    assert_eq!((seen, failures), (vec![7], 2));
}
