//! An anvil with Sworn's contracts, deployed from forge's artifacts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use alloy::dyn_abi::DynSolValue;
use alloy::network::{EthereumWallet, TransactionBuilder};
use alloy::node_bindings::{Anvil, AnvilInstance};
use alloy::primitives::{Address, Bytes, U256, address};
use alloy::providers::{Provider, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use sworn_bindings::{Deployment, IDevToken};
use sworn_chain::{Chain, Intent, Sender, SenderOptions, Store};

/// One token.
pub const UNIT: u128 = 1_000_000_000_000_000_000;

/// Seconds in which an open job's offer rises to its ceiling.
const AUCTION: u128 = 20;

/// Market and challenge parameters, in seconds and tokens.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    pub submit: u64,
    pub window: u64,
    pub turn: u64,
}

impl Default for Params {
    fn default() -> Self {
        Params { submit: 600, window: 60, turn: 60 }
    }
}

pub struct Devnet {
    pub anvil: AnvilInstance,
    pub deployment: Deployment,
    pub rich: PrivateKeySigner,
    /// anvil keeps the states of old blocks there, and leaves them behind.
    _states: tempfile::TempDir,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn tool(name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(format!("SWORN_{}", name.to_uppercase())) {
        return path.into();
    }
    // The binary itself: killing npm's shim around it would leave it running.
    let packages = root().join("node_modules/@foundry-rs");
    let found = std::fs::read_dir(&packages).into_iter().flatten().flatten().map(|e| e.path().join("bin").join(name));
    found
        .into_iter()
        .find(|p| {
            p.is_file()
                && p.parent().and_then(Path::parent).is_some_and(|d| d.join("package.json").is_file())
                && is_binary(p)
        })
        .unwrap_or_else(|| panic!("{name} not found: run `make setup`, or set SWORN_{}", name.to_uppercase()))
}

fn is_binary(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|b| b.starts_with(b"\x7fELF") || b.starts_with(&[0xcf, 0xfa]))
}

fn bytecode(name: &str) -> Bytes {
    static BUILD: Mutex<()> = Mutex::new(());
    let path = root().join(format!("out/{name}.sol/{name}.json"));
    {
        let _guard = BUILD.lock().unwrap();
        if !path.is_file() {
            let built = Command::new(tool("forge"))
                .args(["build", "--skip", "test", "script"])
                .current_dir(root())
                .status()
                .unwrap();
            assert!(built.success(), "forge build failed");
        }
    }
    let artifact: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    artifact["bytecode"]["object"].as_str().unwrap().parse().unwrap()
}

fn uint(v: u128) -> DynSolValue {
    DynSolValue::Uint(U256::from(v), 256)
}

impl Devnet {
    /// Starts anvil: a block for every transaction, or one every `block_time` seconds.
    pub async fn start(block_time: Option<u64>, p: Params) -> Devnet {
        let states = tempfile::tempdir().unwrap();
        let cache = states.path().display().to_string();
        let mut anvil = Anvil::at(tool("anvil")).args(["--order", "fifo", "--cache-path", &cache]);
        if let Some(seconds) = block_time {
            anvil = anvil.block_time(seconds).arg("--mixed-mining");
        }
        let anvil = anvil.try_spawn().unwrap_or_else(|e| panic!("anvil: {e}"));
        let rich: PrivateKeySigner = anvil.first_key().clone().into();
        let provider =
            ProviderBuilder::new().wallet(EthereumWallet::from(rich.clone())).connect_http(anvil.endpoint_url());
        let from = rich.address();
        let deploy = async |name: &str, args: Vec<DynSolValue>| -> Address {
            let mut code = bytecode(name).to_vec();
            code.extend(DynSolValue::Tuple(args).abi_encode_params());
            let request = TransactionRequest::default().with_from(from).with_deploy_code(code);
            let receipt = provider.send_transaction(request).await.unwrap().get_receipt().await.unwrap();
            assert!(receipt.status(), "deploying {name} failed");
            receipt.contract_address.unwrap()
        };
        let token = deploy("DevToken", vec![]).await;
        let step_verifier = deploy("StepVerifier", vec![]).await;
        let models = deploy("Models", vec![]).await;
        let nonce = provider.get_transaction_count(from).await.unwrap();
        let [market, channels, trials, challenges] = [1, 2, 3, 4].map(|n| from.create(nonce + n));
        let a = DynSolValue::Address;
        let unstake = p.submit + 2 * p.window + 21 * p.turn + 1;
        let nodes = deploy("Nodes", vec![a(token), a(models), a(market), a(channels), uint(unstake.into())]).await;
        let params = [60, AUCTION, p.submit.into(), p.window.into(), 10 * UNIT, 20_000, 500, 3_000, 4_000].map(uint);
        let made =
            deploy("Market", vec![a(token), a(models), a(nodes), a(challenges), DynSolValue::Tuple(params.to_vec())])
                .await;
        assert_eq!(made, market);
        let params = [p.window, 2 * p.window, p.turn, p.turn].map(u128::from);
        let money = [UNIT / 100, 10 * UNIT, 20_000, 3_000, 4_000];
        let params = DynSolValue::Tuple(params.into_iter().chain(money).map(uint).collect());
        let made = deploy("Channels", vec![a(token), a(nodes), a(trials), a(Address::ZERO), params]).await;
        assert_eq!(made, channels);
        let made = deploy("Trials", vec![a(channels), a(models), a(challenges)]).await;
        assert_eq!(made, trials);
        let params = [p.turn.into(), p.turn.into(), UNIT / 100].map(uint);
        let made = deploy(
            "Challenges",
            vec![a(market), a(trials), a(models), a(step_verifier), DynSolValue::Tuple(params.to_vec())],
        )
        .await;
        assert_eq!(made, challenges);
        let chain_id = anvil.chain_id();
        let deployment = Deployment {
            chain_id,
            token,
            models,
            nodes,
            market,
            channels,
            trials,
            challenges,
            step_verifier,
            block: 0,
        };
        Devnet { anvil, deployment, rich, _states: states }
    }

    pub async fn chain(&self) -> Chain {
        let chain = Chain::connect(&self.anvil.endpoint(), self.deployment.clone()).await.unwrap();
        chain.with_poll(std::time::Duration::from_millis(20))
    }

    /// Any method of the RPC.
    pub async fn rpc(&self, method: &'static str, params: Value) -> Value {
        let provider = ProviderBuilder::new().connect_http(self.anvil.endpoint_url());
        provider.raw_request(method.into(), params).await.unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// Moves the clock and makes a block.
    pub async fn pass(&self, seconds: u64) {
        self.rpc("evm_increaseTime", json!([seconds])).await;
        self.rpc("evm_mine", json!([])).await;
    }

    /// Replaces the blocks since something came true by empty ones.
    pub async fn undo(&self, chain: &Chain, holds: impl AsyncFn(u64) -> bool) {
        let head = chain.head().await.unwrap().number;
        let mut last = head;
        while holds(last).await {
            last -= 1;
        }
        assert!(last < head, "it never came true");
        self.rpc("anvil_reorg", json!([head - last, []])).await;
    }

    /// A new account with gas money and `tokens` of the payment token, in wei.
    pub async fn account(&self, tokens: u128) -> PrivateKeySigner {
        let key = PrivateKeySigner::random();
        let wei = format!("{:#x}", 1_000 * UNIT);
        self.rpc("anvil_setBalance", json!([key.address(), wei])).await;
        if tokens > 0 {
            let provider = ProviderBuilder::new()
                .wallet(EthereumWallet::from(self.rich.clone()))
                .connect_http(self.anvil.endpoint_url());
            let token = IDevToken::new(self.deployment.token, provider);
            let sent = token.mint(key.address(), U256::from(tokens)).send().await.unwrap();
            assert!(sent.get_receipt().await.unwrap().status());
        }
        key
    }

    /// A contract of the tests' own, as forge built it.
    pub async fn deploy(&self, name: &str, args: Vec<DynSolValue>) -> Address {
        let provider = ProviderBuilder::new()
            .wallet(EthereumWallet::from(self.rich.clone()))
            .connect_http(self.anvil.endpoint_url());
        let mut code = bytecode(name).to_vec();
        code.extend(DynSolValue::Tuple(args).abi_encode_params());
        let request = TransactionRequest::default().with_from(self.rich.address()).with_deploy_code(code);
        let receipt = provider.send_transaction(request).await.unwrap().get_receipt().await.unwrap();
        assert!(receipt.status(), "deploying {name} failed");
        receipt.contract_address.unwrap()
    }

    /// A sender with its journal in `dir`.
    pub async fn sender(&self, key: PrivateKeySigner, dir: &Path) -> Sender {
        self.sender_with(key, dir, SenderOptions::default()).await
    }

    /// [`Self::sender`], behaving so.
    pub async fn sender_with(&self, key: PrivateKeySigner, dir: &Path, options: SenderOptions) -> Sender {
        let chain = self.chain().await;
        let store = Store::open(dir.join(format!("{}.redb", key.address())), &chain).unwrap();
        Sender::new(chain, key, store, options)
    }
}

/// Lets a spender take all tokens.
pub async fn approve(sender: &Sender, spender: Address) {
    let call = sworn_bindings::IERC20::approveCall { spender, value: U256::MAX };
    let token = sender.chain().deployment().token;
    sender.send(&Intent::call(format!("approve/{spender}"), token, &call)).await.unwrap();
}

/// An address without anything at it.
pub const NOWHERE: Address = address!("0x000000000000000000000000000000000000bEEF");
