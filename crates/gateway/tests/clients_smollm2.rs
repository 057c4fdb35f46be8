//! OpenAI's own clients, unmodified, against a gateway whose node runs the real model.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use alloy::signers::local::PrivateKeySigner;
use support::World;
use sworn_engine::Cpu;
use sworn_gateway::{Config, RouterConfig};
use sworn_model::ModelStore;

async fn run(mut command: Command) {
    let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let done = done.expect("the client's interpreter starts: script/setup --test installs what it needs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn smollm2_serves_the_official_clients() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let clients = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let model = Arc::new(ModelStore::from_env().unwrap().load("smollm2-135m").unwrap());
    let backend = Arc::new(Cpu::new(model.clone()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let world = World { dir, model, backend, key: PrivateKeySigner::random() };
    let node = world.node((3, 5), 10_000_000, Duration::ZERO).await;
    let config = Config { api_keys: vec!["secret".into()], ..Config::default() };
    let gateway = world.gateway_with(&[&node], "state", RouterConfig::default(), config).await;
    let base = format!("{}/v1", gateway.url);

    let cache = std::env::var_os("SWORN_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|h| h.join(".cache/sworn"))).unwrap();
    let mut python = Command::new(cache.join("python/bin/python"));
    python.arg(clients.join("check.py")).args([&base, "small"]);
    run(python).await;

    // The client resolves where the npm packages are: at the root of the checkout.
    let mut javascript = Command::new("node");
    javascript.arg(clients.join("check.mjs")).args([&base, "small"]).current_dir(root);
    run(javascript).await;
    // All answers are settled: nothing is left open but what a client left in the middle of.
    let (receipts, owed) = node.total();
    assert!(receipts > 20 && owed > 0);
}
