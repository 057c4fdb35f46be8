//! A stake key that never leaves a key management service: the node's process holds a session key alone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use alloy::primitives::hex;
use sworn_testkit::buyer::Buyer;
use sworn_testkit::devnet::{Guard, PURSE, free_port};
use sworn_testkit::scenario::{Stage, sworn};

const PATIENCE: Duration = Duration::from_secs(60);

/// The service, with one key in it.
struct Service {
    url: String,
    key: String,
    _process: Guard,
}

impl Service {
    fn start(secret: &[u8]) -> Self {
        let home = Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/sworn");
        let cache = std::env::var_os("SWORN_CACHE").map_or(home, Into::into);
        let port = free_port().unwrap();
        let mut command = Command::new(cache.join("python/bin/python"));
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/kms.py")).arg(port.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // Left open: the service ends with its input.
        writeln!(child.stdin.as_mut().unwrap(), "{}", hex::encode(secret)).unwrap();
        let mut key = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut key).unwrap();
        assert_eq!(key.trim().len(), 36, "the service does not start: is `script/setup --test` done?");
        Service { url: format!("http://127.0.0.1:{port}"), key: key.trim().to_owned(), _process: Guard(child) }
    }

    /// A command that finds the service as every AWS tool does.
    fn command(&self) -> Command {
        let mut command = Command::new(sworn().unwrap());
        command.env("AWS_ENDPOINT_URL", &self.url).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_node_whose_stake_key_is_in_a_key_management_service() {
    let mut stage = Stage::synthetic(5).await.unwrap();
    let session = stage.net.actor("session").await.unwrap();
    let (keystore, password) = session.keystore().unwrap();
    let service = Service::start(stage.operator.signer.to_bytes().as_slice());
    stage.register_node(&stage.operator, &stage.listen, 1_000_000_000_000_000).await.unwrap();

    // By id and by alias, the account is the key's.
    for key in [format!("aws-kms:{}", service.key), "aws-kms:alias/stake".to_owned()] {
        let shown = service.command().args(["key", "show", "--json", "--key", &key]).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        let address: alloy::primitives::Address = shown["address"].as_str().unwrap().parse().unwrap();
        assert_eq!(address, stage.operator.address());
    }
    let none = service.command().args(["key", "show", "--key", "aws-kms:alias/nobody"]).output().unwrap();
    let told = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(!none.status.success() && told.contains("alias/nobody") && told.contains("AWS_REGION"), "{told}");

    // Receipts are many a second: they want a key at hand.
    let command = |arguments: &[&str]| {
        let mut command = service.command();
        command.args(["node", "run", "--key", "aws-kms:alias/stake", "--listen", &stage.listen]).args(arguments);
        command
    };
    let (ended, told) = stage.node_as(&stage.operator, command(&[])).unwrap().ended(PATIENCE).await.unwrap();
    assert!(!ended.success() && told.contains("--session-key"), "{told}");

    let mut with_session = command(&["--redeem-at", "0.000001"]);
    with_session.arg("--session-key").arg(&keystore).arg("--session-key-password-file").arg(&password);
    let node = stage.node_as(&stage.operator, with_session).unwrap();
    node.wait("started", PATIENCE).await.unwrap();
    let mut buyer = Buyer::open(&stage, PURSE / 10).await.unwrap();
    buyer.node_key = session.address();
    let (_, signed) = buyer.ask(&[3, 1, 4, 1, 5], 6).await.unwrap();
    let redeemed = node.wait("redeemed", PATIENCE).await.unwrap();
    assert_eq!(redeemed["amount"], signed.receipt.price.to_string());
    let job = stage.ask(&[2, 7, 1, 8], 4).await.unwrap();
    stage.until(job, sworn_bindings::JobState::Submitted, PATIENCE).await.unwrap();
}
