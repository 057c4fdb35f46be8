//! A chain on this machine with the contracts deployed, and accounts with play money.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use sworn_bindings::{Deployment, IDevToken};

use crate::account_key::AccountKey;
use crate::fault::{Doing, Fault, Result};
use crate::keystore;
use crate::link::{Account, Link};
use crate::process::{Process, free_port};
use crate::tools;

/// Anvil's first account: unlocked there, known to everybody, worth nothing anywhere.
const DEPLOYER: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
/// Wei for gas of every account.
const GAS_MONEY: u128 = 10_000_000_000_000_000_000;
/// Password of the keystores; what they hold is play money.
pub(crate) const PASSWORD: &str = "devnet";

/// A running chain.
#[derive(Debug)]
pub(crate) struct Localnet {
    /// Its RPC.
    pub(crate) rpc: String,
    /// Where the deployment is written down.
    pub(crate) deployment_file: PathBuf,
    /// A connection.
    pub(crate) link: Link,
    /// The chain's process.
    pub(crate) anvil: Process,
    dir: PathBuf,
}

/// An account with a keystore on a [`Localnet`].
#[derive(Clone, Debug)]
pub(crate) struct Purse {
    /// Signs.
    pub(crate) account: Account,
    /// The keystore.
    pub(crate) key_file: PathBuf,
}

impl Localnet {
    /// Starts anvil and deploys with the forge script. Files and logs go to `dir`; `port` 0 means any.
    pub(crate) async fn start(root: &Path, dir: &Path, port: u16) -> Result<Self> {
        let (anvil, forge) = (tools::foundry("anvil", root)?, tools::foundry("forge", root)?);
        std::fs::create_dir_all(dir).doing(|| format!("cannot create {}", dir.display()))?;
        let port = if port == 0 { free_port()? } else { port };
        let rpc = format!("http://127.0.0.1:{port}");
        if port_taken(port) {
            return Err(Fault::failed(format!(
                "port {port} is taken: stop what listens there, or choose another with --port"
            )));
        }
        // anvil keeps the states of old blocks there, and leaves them behind: another devnet's are of no use.
        let states = dir.join("anvil-states");
        if states.exists() {
            std::fs::remove_dir_all(&states).doing(|| format!("cannot remove {}", states.display()))?;
        }
        let arguments = [
            "--cache-path".to_owned(),
            states.display().to_string(),
            "--port".into(),
            port.to_string(),
            "--block-time".into(),
            "1".into(),
            "--accounts".into(),
            "1".into(),
            "--gas-limit".into(),
            "60000000".into(),
        ];
        let mut anvil = Process::start("anvil", &anvil, arguments, dir, None)?;
        let mut patience = 100;
        while call(&rpc, "eth_chainId", json!([])).await.is_err() {
            anvil.check()?;
            patience -= 1;
            if patience == 0 {
                return Err(Fault::failed(format!(
                    "anvil does not answer at {rpc}; its log is {}",
                    dir.join("anvil.log").display()
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let deployment_file = dir.join("deployment.json");
        deploy(&forge, root, &rpc, dir, &deployment_file).await?;
        let link = Link::to(&rpc, Deployment::load(&deployment_file)?).await?;
        Ok(Self { rpc, deployment_file, link, anvil, dir: dir.to_owned() })
    }

    /// A new account with gas money, `tokens` and a keystore.
    pub(crate) async fn purse(&self, name: &str, tokens: U256) -> Result<Purse> {
        let signer = PrivateKeySigner::random();
        let key_file = self.dir.join("keys").join(format!("{name}.json"));
        if key_file.exists() {
            // Of a devnet that is gone, chain and all.
            std::fs::remove_file(&key_file)?;
        }
        keystore::create(&key_file, &signer, PASSWORD)?;
        std::fs::write(self.password_file(), PASSWORD)?;
        call(&self.rpc, "anvil_setBalance", json!([signer.address(), U256::from(GAS_MONEY)])).await?;
        let account =
            Account::with_key(self.link.clone(), AccountKey::Local(signer), self.dir.join("cli")).await?.quiet();
        let mint = IDevToken::mintCall { to: account.address(), amount: tokens };
        account.send(self.link.chain.deployment().token, &mint).await?;
        Ok(Purse { account, key_file })
    }

    /// The file with the keystores' password.
    pub(crate) fn password_file(&self) -> PathBuf {
        self.dir.join("keys/password")
    }
}

/// Deploys with `script/Deploy.s.sol`.
async fn deploy(forge: &Path, root: &Path, rpc: &str, dir: &Path, file: &Path) -> Result<()> {
    // The script may only write inside the checkout; the file moves to its place afterwards.
    let written = root.join("cache").join(format!("deployment-{}.json", std::process::id()));
    std::fs::create_dir_all(root.join("cache"))?;
    let log = std::fs::File::create(dir.join("deploy.log"))?;
    let mut command = tokio::process::Command::new(forge);
    for (variable, _) in std::env::vars_os().filter(|(v, _)| v.to_str().is_some_and(|v| v.starts_with("FOUNDRY_"))) {
        command.env_remove(variable);
    }
    command
        .args([
            "script",
            "script/Deploy.s.sol",
            "--broadcast",
            "--unlocked",
            "--sender",
            DEPLOYER,
            "--rpc-url",
            rpc,
            "--non-interactive",
        ])
        .current_dir(root)
        .env("SWORN_DEPLOYMENT", &written)
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    let status = command.status().await.doing(|| format!("cannot start {}", forge.display()))?;
    let moved = std::fs::read(&written).and_then(|bytes| std::fs::write(file, bytes));
    let _ = std::fs::remove_file(&written);
    if !status.success() {
        return Err(Fault::failed(format!("the forge script failed ({status}): {}", dir.join("deploy.log").display())));
    }
    moved.doing(|| format!("the forge script wrote no deployment; its log is {}", dir.join("deploy.log").display()))
}

fn port_taken(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_err()
}

/// A call of the chain's RPC that has no typed form.
pub(crate) async fn call(rpc: &str, method: &str, params: Value) -> Result<Value> {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
    let answer: Value = client.post(rpc).json(&request).send().await?.json().await?;
    match answer.get("result") {
        Some(result) => Ok(result.clone()),
        None => Err(Fault::failed(format!("{method}: {}", answer["error"]["message"].as_str().unwrap_or("no answer")))),
    }
}

/// Ether or tokens of 18 decimals.
pub(crate) fn whole(amount: u64) -> U256 {
    U256::from(amount) * U256::from(10u64).pow(U256::from(18))
}

/// Whether an address is an account of ours or a contract, for people.
pub(crate) fn short(address: Address) -> String {
    let text = address.to_string();
    format!("{}…{}", &text[..6], &text[38..])
}
