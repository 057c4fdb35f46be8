//! A chain with the contracts, a model and money, for tests: anvil as a child process, deployed from forge's artifacts.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alloy::network::{EthereumWallet, NetworkTransactionBuilder, TransactionBuilder};
use alloy::primitives::{Address, B256, Bytes, TxKind, U256, hex};
use alloy::providers::{Provider, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::k256::elliptic_curve::rand_core::OsRng;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolValue};
use rand::Rng;
use serde_json::{Value, json};
use sworn_bindings::{Deployment, IChallenges, IChannels, IDevToken, IMarket, IModels, sampling_word};
use sworn_chain::{Chain, Intent, Receipt, Sender, SenderOptions, Store};
use sworn_isa::Sampling;
use sworn_model::Model;
use tokio::sync::{Mutex, MutexGuard};

/// Where a slashed bond's burned part goes.
pub const BURN: Address = alloy::primitives::address!("000000000000000000000000000000000000dEaD");
/// What every actor begins with for gas, in wei.
pub const ETHER: u128 = 1_000_000_000_000_000_000_000;
/// What every actor begins with, in the token's smallest unit.
pub const PURSE: u128 = 1_000_000_000_000_000_000_000;
/// Password of the keystores that [`Actor::keystore`] writes.
pub const PASSWORD: &str = "tell nobody 7261";

/// What a test's chain cannot do without.
#[derive(Debug, thiserror::Error)]
pub enum DevnetError {
    /// the artifacts are missing
    #[error("{0} is missing: run `make contracts` (or `node_modules/.bin/forge build`)")]
    Artifact(PathBuf),
    /// no anvil
    #[error("no anvil at {0}: run `make setup`, or set SWORN_ANVIL")]
    Anvil(PathBuf),
    /// anything else
    #[error("{0}")]
    Other(String),
}

impl DevnetError {
    /// From whatever went wrong.
    pub fn other(e: impl std::fmt::Display) -> Self {
        DevnetError::Other(e.to_string())
    }
}

type Result<T, E = DevnetError> = std::result::Result<T, E>;

/// Terms of a deployment.
#[derive(Clone, Debug)]
pub struct Terms {
    /// of the market
    pub market: IMarket::Params,
    /// of the channels
    pub channels: IChannels::Params,
    /// of the challenges
    pub challenges: IChallenges::Params,
    /// of the stake, in seconds
    pub unstake_delay: u64,
}

impl Default for Terms {
    /// Longer than a busy machine needs; tests that wait for the end of a turn let time jump.
    fn default() -> Self {
        let t = |seconds: u64| alloy::primitives::Uint::<40, 1>::from(seconds);
        Terms {
            market: IMarket::Params {
                acceptTimeout: t(120),
                auctionTime: t(10),
                submitTimeout: t(300),
                challengeWindow: t(90),
                minBond: 10_000_000_000_000_000_000,
                bondFactorBps: 20_000,
                latePenaltyBps: 500,
                userShareBps: 3_000,
                challengerShareBps: 4_000,
            },
            channels: IChannels::Params {
                window: t(90),
                closeDelay: t(180),
                receiptTurn: t(60),
                lodgeTurn: t(60),
                receiptFee: 10_000_000_000_000_000,
                minBond: 10_000_000_000_000_000_000,
                bondFactorBps: 20_000,
                userShareBps: 3_000,
                challengerShareBps: 4_000,
            },
            challenges: IChallenges::Params {
                nodeTurn: t(60),
                challengerTurn: t(60),
                demandFee: 10_000_000_000_000_000,
            },
            unstake_delay: 7_200,
        }
    }
}

/// The repository.
pub fn root() -> PathBuf {
    match std::env::var_os("SWORN_ROOT") {
        Some(root) => root.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
    }
}

/// Creation code of a contract, as forge built it.
///
/// # Errors
/// It is not built.
pub fn creation_code(name: &str) -> Result<Vec<u8>> {
    let path = root().join(format!("out/{name}.sol/{name}.json"));
    let artifact = || -> Option<Vec<u8>> {
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).ok()?).ok()?;
        hex::decode(json["bytecode"]["object"].as_str()?).ok()
    };
    artifact().ok_or(DevnetError::Artifact(path))
}

fn anvil_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SWORN_ANVIL") {
        return Ok(path.into());
    }
    // The package's own binary: the wrapper would survive a kill with the chain as its child.
    let packages = root().join("node_modules/@foundry-rs");
    let found = std::fs::read_dir(&packages).into_iter().flatten().flatten().map(|e| e.path().join("bin/anvil"));
    found.into_iter().find(|p| p.is_file()).ok_or(DevnetError::Anvil(packages))
}

/// A port that nobody listens on now, and that the system gives to no connection until somebody does: below those it chooses itself.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    let mut rng = rand::rng();
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let found = (0..1_000).map(|_| rng.random_range(10_000..32_000)).find(free);
    found.ok_or_else(|| DevnetError::other("no port is free"))
}

/// A child process that does not outlive its owner.
#[derive(Debug)]
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A chain with the contracts.
pub struct Devnet {
    /// Its RPC.
    pub rpc: String,
    /// Where the contracts are.
    pub deployment: Deployment,
    /// A checked connection.
    pub chain: Chain,
    /// Everything that the devnet writes.
    pub dir: tempfile::TempDir,
    /// Tokens there are.
    pub minted: U256,
    /// The block that no reorganisation replaces, nor one before it. Held while the clock jumps.
    pub floor: Arc<Mutex<u64>>,
    _anvil: Guard,
}

impl Devnet {
    /// Starts anvil and deploys.
    ///
    /// # Errors
    /// Something is missing; the message names the cure.
    pub async fn start(terms: &Terms) -> Result<Self> {
        let dir = tempfile::tempdir().map_err(DevnetError::other)?;
        let mut last = None;
        // Another process may take the port in between.
        for _ in 0..3 {
            match Self::anvil(&dir).await {
                Ok((anvil, rpc)) => return Self::deploy(anvil, rpc, dir, terms).await,
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| DevnetError::other("anvil does not start")))
    }

    async fn anvil(dir: &tempfile::TempDir) -> Result<(Guard, String)> {
        let binary = anvil_binary()?;
        let port = free_port()?;
        let log = std::fs::File::create(dir.path().join("anvil.log")).map_err(DevnetError::other)?;
        let child = Command::new(&binary)
            .args([
                "--port",
                &port.to_string(),
                "--block-time",
                "1",
                "--mixed-mining",
                "--accounts",
                "1",
                "--gas-limit",
                "60000000",
            ])
            // Where it keeps the states of old blocks, which it leaves behind when it is killed.
            .arg("--cache-path")
            .arg(dir.path().join("anvil-states"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(DevnetError::other)?)
            .stderr(log)
            .spawn()
            .map_err(|_| DevnetError::Anvil(binary))?;
        let mut anvil = Guard(child);
        let rpc = format!("http://127.0.0.1:{port}");
        let provider = ProviderBuilder::new().connect_http(rpc.parse().map_err(DevnetError::other)?);
        for _ in 0..100 {
            if provider.get_chain_id().await.is_ok() {
                return Ok((anvil, rpc));
            }
            if anvil.0.try_wait().ok().flatten().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = std::fs::read_to_string(dir.path().join("anvil.log")).unwrap_or_default();
        Err(DevnetError::Other(format!("anvil does not answer on {rpc}: {log}")))
    }

    async fn deploy(anvil: Guard, rpc: String, dir: tempfile::TempDir, terms: &Terms) -> Result<Self> {
        let provider = ProviderBuilder::new().connect_http(rpc.parse().map_err(DevnetError::other)?);
        let deployer = PrivateKeySigner::random();
        let me = deployer.address();
        set_ether(&provider, me, ETHER).await?;
        let wallet = EthereumWallet::from(deployer);
        let block = provider.get_block_number().await.map_err(DevnetError::other)?;
        let [token, verifier, models, nodes, market, channels, trials, challenges] =
            [0, 1, 2, 3, 4, 5, 6, 7].map(|n| me.create(n));
        let creations: [(&str, Vec<u8>); 8] = [
            ("DevToken", Vec::new()),
            ("StepVerifier", Vec::new()),
            ("Models", Vec::new()),
            ("Nodes", (token, models, market, channels, terms.unstake_delay).abi_encode_params()),
            ("Market", (token, models, nodes, challenges, terms.market.clone()).abi_encode_params()),
            ("Channels", (token, nodes, trials, Address::ZERO, terms.channels.clone()).abi_encode_params()),
            ("Trials", (channels, models, challenges).abi_encode_params()),
            ("Challenges", (market, trials, models, verifier, terms.challenges.clone()).abi_encode_params()),
        ];
        let mut pending = Vec::new();
        for (nonce, (name, arguments)) in creations.into_iter().enumerate() {
            let code = [creation_code(name)?, arguments].concat();
            let mut request = TransactionRequest::default()
                .with_from(me)
                .with_nonce(nonce as u64)
                .with_chain_id(31337)
                .with_gas_limit(14_000_000)
                .with_max_fee_per_gas(20_000_000_000)
                .with_max_priority_fee_per_gas(1)
                .with_input(Bytes::from(code));
            request.to = Some(TxKind::Create);
            let signed = request.build(&wallet).await.map_err(DevnetError::other)?;
            let sent = provider.send_tx_envelope(signed).await;
            pending.push((name, sent.map_err(|e| DevnetError::Other(format!("{name}: {e}")))?));
        }
        for (name, tx) in pending {
            let receipt = tx.with_timeout(Some(Duration::from_secs(60))).get_receipt().await;
            let receipt = receipt.map_err(|e| DevnetError::Other(format!("{name}: {e}")))?;
            if !receipt.status() {
                return Err(DevnetError::Other(format!("the creation of {name} reverted")));
            }
        }
        let deployment = Deployment {
            chain_id: 31337,
            token,
            models,
            nodes,
            market,
            channels,
            trials,
            challenges,
            step_verifier: verifier,
            block,
        };
        deployment.save(dir.path().join("deployment.json")).map_err(DevnetError::other)?;
        let chain = Chain::connect(&rpc, deployment.clone()).await.map_err(DevnetError::other)?;
        Ok(Devnet { rpc, deployment, chain, dir, minted: U256::ZERO, floor: Arc::default(), _anvil: anvil })
    }

    /// The deployment's file.
    pub fn deployment_file(&self) -> PathBuf {
        self.dir.path().join("deployment.json")
    }

    /// An account with gas money and [`PURSE`] tokens.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn actor(&mut self, name: &str) -> Result<Actor> {
        self.actor_with(name, PURSE).await
    }

    /// An account with gas money and so many tokens.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn actor_with(&mut self, name: &str, purse: u128) -> Result<Actor> {
        let signer = PrivateKeySigner::random();
        set_ether(self.chain.provider(), signer.address(), ETHER).await?;
        let dir = self.dir.path().join(name);
        let store = Store::open(dir.join("actor.redb"), &self.chain).map_err(DevnetError::other)?;
        let sender = Sender::new(self.chain.clone(), signer.clone(), store, SenderOptions::default());
        let actor = Actor { name: name.to_owned(), signer, sender, dir };
        let call = IDevToken::mintCall { to: actor.address(), amount: U256::from(purse) };
        actor.send("mint", self.deployment.token, &call).await?;
        self.minted += U256::from(purse);
        Ok(actor)
    }

    /// Registers a model.
    ///
    /// # Errors
    /// The registry refuses it.
    pub async fn register(&self, model: &Model, by: &Actor) -> Result<Receipt> {
        let manifest = model.manifest().encode().into();
        let program = model.program().encode().into();
        let call = IModels::registerCall { manifest, program, hint: String::new() };
        by.send("register", self.deployment.models, &call).await
    }

    /// What is in a block now stays there: the deepest reorganisation ends at the head.
    ///
    /// # Errors
    /// The chain does not answer.
    pub async fn settle(&self) -> Result<()> {
        self.settled().await.map(drop)
    }

    async fn settled(&self) -> Result<MutexGuard<'_, u64>> {
        let mut floor = self.floor.lock().await;
        *floor = self.chain.head().await.map_err(DevnetError::other)?.number;
        Ok(floor)
    }

    /// Lets the chain's clock jump. Reorganisations do not reach back behind the jump: they would undo what took minutes.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn skip(&self, seconds: u64) -> Result<()> {
        let _floor = self.settled().await?;
        ask(self.chain.provider(), "evm_increaseTime", json!([seconds])).await?;
        ask(self.chain.provider(), "evm_mine", json!([])).await.map(drop)
    }

    /// Makes so many blocks, seconds apart.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn mine(&self, blocks: u64) -> Result<()> {
        ask(self.chain.provider(), "anvil_mine", json!([blocks, 1])).await.map(drop)
    }

    /// Takes so many blocks back, and puts none in their place.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn roll_back(&self, blocks: u64) -> Result<()> {
        ask(self.chain.provider(), "anvil_rollback", json!([blocks])).await.map(drop)
    }

    /// Replaces the blocks since something came true by empty ones.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn undo(&self, holds: impl AsyncFn(u64) -> Result<bool>) -> Result<()> {
        let head = self.chain.head().await.map_err(DevnetError::other)?.number;
        let mut last = head;
        while holds(last).await? {
            last -= 1;
        }
        ask(self.chain.provider(), "anvil_reorg", json!([head - last, []])).await.map(drop)
    }

    /// Tokens that the actors and the contracts hold, and tokens that were burned.
    ///
    /// # Errors
    /// The chain does not answer.
    pub async fn all_tokens(&self, actors: &[&Actor]) -> Result<U256> {
        let d = &self.deployment;
        let mut sum = U256::ZERO;
        for who in actors.iter().map(|a| a.address()).chain([d.market, d.nodes, d.channels, BURN]) {
            sum += self.tokens_of(who).await?;
        }
        Ok(sum)
    }

    /// Gives an account so much for gas, in wei, and no more.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn set_ether(&self, who: Address, wei: u128) -> Result<()> {
        set_ether(self.chain.provider(), who, wei).await
    }

    /// Tokens that an account holds.
    ///
    /// # Errors
    /// The chain does not answer.
    pub async fn tokens_of(&self, who: Address) -> Result<U256> {
        self.chain.token().balanceOf(who).call().await.map_err(DevnetError::other)
    }
}

async fn set_ether(provider: &impl Provider, who: Address, wei: u128) -> Result<()> {
    ask(provider, "anvil_setBalance", json!([who, U256::from(wei)])).await.map(drop)
}

/// What the chain's server says to a method of its own.
pub(crate) async fn ask(provider: &impl Provider, method: &'static str, params: Value) -> Result<Value> {
    provider.client().request(method, params).await.map_err(DevnetError::other)
}

/// Somebody with a key and money.
#[derive(Debug)]
pub struct Actor {
    /// Its name.
    pub name: String,
    /// Its key.
    pub signer: PrivateKeySigner,
    /// Its transactions.
    pub sender: Sender,
    /// Its directory.
    pub dir: PathBuf,
}

impl Actor {
    /// Its account.
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// Calls a contract once under this key and waits for the block.
    ///
    /// # Errors
    /// The call reverts.
    pub async fn send<C: SolCall>(&self, key: &str, to: Address, call: &C) -> Result<Receipt> {
        let sent = self.sender.send(&Intent::call(key, to, call)).await;
        sent.map_err(|e| DevnetError::Other(format!("{}: {e}", self.name)))
    }

    /// Another installation of the same account: the key in a directory of its own.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn twin(&self, name: &str) -> Result<Actor> {
        let dir = self.dir.with_file_name(name);
        std::fs::create_dir_all(&dir).map_err(DevnetError::other)?;
        Ok(Actor { name: name.to_owned(), signer: self.signer.clone(), sender: self.sender.clone(), dir })
    }

    /// Its key as a keystore file, and a file with [`PASSWORD`].
    ///
    /// # Errors
    /// The disk refuses.
    pub fn keystore(&self) -> Result<(PathBuf, PathBuf)> {
        let password = self.dir.join("password");
        std::fs::write(&password, PASSWORD).map_err(DevnetError::other)?;
        PrivateKeySigner::encrypt_keystore(&self.dir, &mut OsRng, self.signer.to_bytes(), PASSWORD, Some("key"))
            .map_err(DevnetError::other)?;
        Ok((self.dir.join("key"), password))
    }

    /// Buys an answer from `node`; returns the job's id.
    ///
    /// # Errors
    /// The market refuses.
    pub async fn ask(
        &self,
        model: &Model,
        node: Address,
        prompt: &[u32],
        max_new: u32,
        max_price: u128,
    ) -> Result<u64> {
        self.ask_sampled(model, node, prompt, max_new, max_price, &Sampling::GREEDY).await
    }

    /// [`Self::ask`], sampled.
    ///
    /// # Errors
    /// The market refuses.
    pub async fn ask_sampled(
        &self,
        model: &Model,
        node: Address,
        prompt: &[u32],
        max_new: u32,
        max_price: u128,
        sampling: &Sampling,
    ) -> Result<u64> {
        let chain = self.sender.chain();
        let (market, token) = (chain.deployment().market, chain.deployment().token);
        let approve = sworn_bindings::IERC20::approveCall { spender: market, value: U256::MAX };
        self.send("approve", token, &approve).await?;
        let call = IMarket::createJobCall {
            modelId: model.id().into(),
            node,
            promptTokens: sworn_commit::sequence::encode(prompt).into(),
            maxNew: max_new,
            maxPrice: max_price,
            sampling: sampling_word(sampling),
            userSeed: B256::ZERO,
        };
        let key = format!("ask/{node}/{}", sworn_commit::keccak(&[&call.abi_encode()]).map(|b| b.to_string()).concat());
        let receipt = self.send(&key, market, &call).await?;
        let events = chain.events_of(receipt.hash).await.map_err(DevnetError::other)?;
        let id = events.into_iter().find_map(|e| match e {
            sworn_bindings::Event::Market(IMarket::IMarketEvents::JobCreated(e)) => u64::try_from(e.jobId).ok(),
            _ => None,
        });
        id.ok_or_else(|| DevnetError::other("the market did not say which job it made"))
    }
}
