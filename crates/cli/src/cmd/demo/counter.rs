//! The counter: answers bought through `sworn gateway`, paid by receipts.

use std::path::Path;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;
use serde_json::{Value, json};
use sworn_bindings::{IChannels, IERC20, Part};
use tokio::sync::mpsc;

use super::cast::Cast;
use crate::fault::{Fault, Result};
use crate::link::Viewed;
use crate::localnet::{Localnet, whole};
use crate::process::{Line, Process, free_port};
use crate::settings::Settings;

/// Tokens in each channel.
const CHANNEL: u64 = 20;
/// Longest wait for a gateway, and for its answer.
const PATIENCE: Duration = Duration::from_secs(90);

/// An answer over the counter.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sold {
    pub(super) node: Address,
    pub(super) answer: String,
    /// The receipt's digest.
    pub(super) receipt: String,
    pub(super) trace_root: String,
    /// In the token's smallest unit.
    pub(super) price: String,
}

/// The user's deposit, and a channel to each node whose vouchers the gateway signs.
pub(super) async fn open(cast: &Cast, net: &Localnet) -> Result<()> {
    let d = net.link.chain.deployment();
    let user = &cast.user.account;
    let amount = u128::try_from(whole(CHANNEL)).unwrap_or(u128::MAX);
    user.send(d.token, &IERC20::approveCall { spender: d.channels, value: U256::from(2 * amount) }).await?;
    user.send(d.channels, &IChannels::depositCall { amount: 2 * amount }).await?;
    for (node, salt) in [(&cast.honest, 1), (&cast.liar, 2)] {
        let (node, signer) = (node.account.address(), cast.gateway.account.address());
        let salt = B256::repeat_byte(salt);
        user.send(d.channels, &IChannels::openCall { node, signer, amount, salt }).await?;
    }
    Ok(())
}

/// A gateway that asks one node only.
pub(super) struct Counter {
    pub(super) process: Process,
    base: String,
}

impl Counter {
    /// Starts it.
    #[allow(clippy::too_many_arguments, reason = "what a process is started with")]
    pub(super) fn start(
        settings: &Settings,
        net: &Localnet,
        cast: &Cast,
        name: &'static str,
        node: Address,
        model: &str,
        dir: &Path,
        lines: mpsc::UnboundedSender<Line>,
    ) -> Result<Self> {
        let port = free_port()?;
        let path = |p: &Path| p.display().to_string();
        let pairs = [
            ("--home", path(&settings.home)),
            ("--rpc", net.rpc.clone()),
            ("--deployment", path(&net.deployment_file)),
            ("--key", path(&cast.gateway.key_file)),
            ("--password-file", path(&net.password_file())),
            ("--model", model.to_owned()),
            ("--log", "info".to_owned()),
            ("--listen", format!("127.0.0.1:{port}")),
            ("--allow", node.to_string()),
            ("--state", path(&dir.join("state").join(name))),
        ];
        let mut arguments = vec!["gateway".to_owned(), "--json".to_owned()];
        arguments.extend(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        let process = Process::start(name, &std::env::current_exe()?, arguments, dir, Some(lines))?;
        Ok(Counter { process, base: format!("http://127.0.0.1:{port}") })
    }

    /// Asks as any OpenAI client would.
    pub(super) async fn chat(&mut self, question: &str, max_tokens: u32) -> Result<Sold> {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let until = Instant::now() + PATIENCE;
        while !client.get(format!("{}/ready", self.base)).send().await.is_ok_and(|r| r.status().is_success()) {
            self.process.check()?;
            if Instant::now() > until {
                return Err(Fault::failed("the gateway does not get ready"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let models: Value = client.get(format!("{}/v1/models", self.base)).send().await?.json().await?;
        let body = json!({
            "model": models["data"][0]["id"],
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
        });
        let answer = client.post(format!("{}/v1/chat/completions", self.base)).json(&body).send().await?;
        let receipt = answer.headers().get("x-sworn-receipt").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body: Value = answer.json().await?;
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let sworn = &body["sworn"];
        let parts = (text(&body["choices"][0]["message"]["content"]), receipt, text(&sworn["traceRoot"]));
        let (Some(answer), Some(receipt), Some(trace_root)) = parts else {
            return Err(Fault::failed(format!("the gateway answered {body}")));
        };
        let node = text(&sworn["node"]).and_then(|a| a.parse().ok()).unwrap_or_default();
        Ok(Sold { node, answer, receipt, trace_root, price: text(&sworn["price"]).unwrap_or_default() })
    }
}

/// A batch as its node redeemed it.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) id: U256,
    pub(super) node: Address,
    pub(super) amount: u128,
    pub(super) parts: Vec<Part>,
    pub(super) released: bool,
    /// Its node hid a receipt.
    pub(super) void: bool,
}

/// What a conviction took, and where it went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conviction {
    pub(super) taken: U256,
    pub(super) compensation: U256,
    pub(super) reward: U256,
    pub(super) burned: U256,
}

/// The user takes back its part of the batches that became void, and its share of the stake.
pub(super) async fn collect(cast: &Cast, net: &Localnet, batches: &[Batch]) -> Result<()> {
    let (user, channels) = (&cast.user.account, net.link.chain.deployment().channels);
    for batch in batches.iter().filter(|b| b.node == cast.liar.account.address()) {
        for part in &batch.parts {
            if let Some(place) = sworn_receipts::place(batch.id, &batch.parts, part.channelId) {
                user.send(channels, &IChannels::refundCall { place }).await?;
            }
        }
    }
    if !net.link.chain.channels().balanceOf(user.address()).call().await.viewed()?.is_zero() {
        user.send(channels, &IChannels::withdrawCall {}).await?;
    }
    Ok(())
}
