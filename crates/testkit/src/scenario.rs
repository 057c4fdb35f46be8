//! One dishonest node against one watcher on a chain of their own, from the question to the last withdrawal.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use serde_json::Value;
use sworn_bindings::IChallenges::{IChallengesEvents, OpeningState};
use sworn_bindings::{Event, IERC20, IMarket, INodes, JobState, opening_id};
use sworn_isa::Sampling;
use sworn_model::{Model, SyntheticSpec, synthetic};

use crate::devnet::{Actor, BURN, Devnet, DevnetError, PURSE, Terms, free_port};
use crate::process::Process;

/// Stake of a node.
pub const STAKE: u128 = 100_000_000_000_000_000_000;
/// Price of a prompt token.
pub const INPUT_PRICE: u128 = 1_000_000_000_000_000;
/// Price of an output token.
pub const OUTPUT_PRICE: u128 = 5_000_000_000_000_000;

/// A node that wants to answer does so sooner.
const SILENCE: Duration = Duration::from_secs(6);

type Result<T, E = DevnetError> = std::result::Result<T, E>;

/// A prompt of so many tokens, all within the synthetic model's vocabulary.
pub fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| 3 + (i * 29 + 5) % 300).collect()
}

/// A chain, a model, and three parties.
pub struct Stage {
    /// The chain.
    pub net: Devnet,
    /// The model.
    pub model: Arc<Model>,
    /// The operator of the node.
    pub operator: Actor,
    /// Who asks.
    pub user: Actor,
    /// Who watches.
    pub watcher: Actor,
    /// The deployment's terms.
    pub terms: Terms,
    /// Where the node serves.
    pub listen: String,
    /// The chain's server, as agents are told.
    pub agents_rpc: String,
    /// How much the agents log.
    pub log: &'static str,
    /// Whether the agents' disks get full: [`Process::fill_disk`].
    pub disks_fill: bool,
    /// Bytes that the agents may have for their data; none: all there are.
    pub memory: Option<u64>,
    /// What agents that start from now on have in their environment.
    pub environment: Vec<(&'static str, PathBuf)>,
}

/// Tries until it succeeds.
///
/// # Errors
/// The last failure, if it does not in time.
pub async fn eventually(patience: Duration, what: impl AsyncFn() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match what().await {
            Err(e) if start.elapsed() > patience => return Err(e),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(()) => return Ok(()),
        }
    }
}

/// The product's program, built beside the tests.
///
/// # Errors
/// It is not built.
pub fn sworn() -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(DevnetError::other)?;
    let found = exe.ancestors().skip(1).take(2).map(|d| d.join("sworn")).find(|p| p.is_file());
    found.ok_or_else(|| DevnetError::other("the program `sworn` is not built: run `cargo build --workspace --bins`"))
}

/// Somebody's keystore signs.
fn signed_by(command: &mut Command, actor: &Actor) -> Result<()> {
    let (key, password) = actor.keystore()?;
    command.arg("--key").arg(key).arg("--password-file").arg(password);
    Ok(())
}

/// The JSON that a program prints.
fn printed(command: &mut Command) -> Result<Value> {
    let output = command.output().map_err(DevnetError::other)?;
    if !output.status.success() {
        return Err(DevnetError::other(String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(DevnetError::other)
}

impl Stage {
    /// With a synthetic model.
    ///
    /// # Errors
    /// Something is missing.
    pub async fn synthetic(seed: u64) -> Result<Self> {
        Self::under(Terms::default(), seed).await
    }

    /// With a synthetic model, under other terms.
    ///
    /// # Errors
    /// Something is missing.
    pub async fn under(terms: Terms, seed: u64) -> Result<Self> {
        Self::of(terms, &SyntheticSpec { seed, ..SyntheticSpec::default() }).await
    }

    /// With a synthetic model of other sizes, under other terms.
    ///
    /// # Errors
    /// Something is missing.
    pub async fn of(terms: Terms, spec: &SyntheticSpec) -> Result<Self> {
        let net = Devnet::start(&terms).await?;
        let model = synthetic(spec, net.dir.path().join("model")).map_err(DevnetError::other)?;
        Self::with(net, terms, model).await
    }

    /// With a model of the store.
    ///
    /// # Errors
    /// Something is missing.
    pub async fn stored(model: Model) -> Result<Self> {
        let terms = Terms::default();
        let net = Devnet::start(&terms).await?;
        Self::with(net, terms, model).await
    }

    async fn with(mut net: Devnet, terms: Terms, model: Model) -> Result<Self> {
        let (operator, user, watcher) =
            (net.actor("operator").await?, net.actor("user").await?, net.actor("watcher").await?);
        net.register(&model, &user).await?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let agents_rpc = net.rpc.clone();
        Ok(Stage {
            net,
            model: Arc::new(model),
            operator,
            user,
            watcher,
            terms,
            listen,
            agents_rpc,
            log: "info",
            disks_fill: false,
            memory: None,
            environment: Vec::new(),
        })
    }

    /// Starts the node that lies.
    ///
    /// # Errors
    /// It does not start.
    pub async fn liar(&self, program: &Path, arguments: &[&str]) -> Result<Process> {
        self.register_node(&self.operator, &self.listen, OUTPUT_PRICE).await?;
        let mut command = self.command(program);
        self.common(&mut command, &self.operator)?;
        command.args(["--listen", &self.listen, "--backend", "cpu"]).args(arguments);
        let process = Process::start("liar", self.net.dir.path(), command)?;
        process.wait("started", Duration::from_secs(60)).await?;
        Ok(process)
    }

    /// Starts an honest node: `sworn node run`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn node(&self, arguments: &[&str]) -> Result<Process> {
        self.register_node(&self.operator, &self.listen, OUTPUT_PRICE).await?;
        self.node_of(&self.operator, &self.listen, arguments).await
    }

    /// Starts `sworn node run` for somebody who is registered.
    ///
    /// # Errors
    /// It does not start.
    pub async fn node_of(&self, operator: &Actor, listen: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = self.command(&sworn()?);
        command.args(["node", "run"]);
        signed_by(&mut command, operator)?;
        command.args(["--listen", listen]).args(arguments);
        let process = self.node_as(operator, command)?;
        process.wait("started", Duration::from_secs(60)).await?;
        Ok(process)
    }

    /// Starts a `sworn node run` that says itself where its key is and where it listens.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn node_as(&self, operator: &Actor, mut command: Command) -> Result<Process> {
        self.about(&mut command, operator);
        command.args(["--backend", "cpu"]);
        Process::start(&operator.name, self.net.dir.path(), command)
    }

    /// Starts `sworn watch`.
    ///
    /// # Errors
    /// It does not start.
    pub fn watch(&self, arguments: &[&str]) -> Result<Process> {
        self.watch_as(&self.watcher, arguments)
    }

    /// Starts `sworn watch` for somebody else.
    ///
    /// # Errors
    /// It does not start.
    pub fn watch_as(&self, who: &Actor, arguments: &[&str]) -> Result<Process> {
        let mut command = self.command(&sworn()?);
        command.arg("watch");
        self.common(&mut command, who)?;
        command.args(["--backend", "cpu"]).args(arguments);
        Process::start(&who.name, self.net.dir.path(), command)
    }

    /// Starts `sworn gateway` with a key that signs vouchers, for a model by name or path; and where it listens.
    ///
    /// # Errors
    /// It does not start.
    pub async fn gateway(&self, signer: &Actor, model: &str, arguments: &[&str]) -> Result<(Process, String)> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(sworn()?);
        command.args(["gateway", "--json", "--log", "info", "--rpc", &self.net.rpc, "--listen", &listen]);
        command.arg("--deployment").arg(self.net.deployment_file());
        signed_by(&mut command, signer)?;
        command.args(["--model", model]).args(arguments).arg("--state").arg(signer.dir.join("state"));
        let process = Process::start("gateway", self.net.dir.path(), command)?;
        process.wait("listening", Duration::from_secs(60)).await?;
        Ok((process, format!("http://{listen}")))
    }

    /// Starts `sworn dispute lodge` for the watcher's account.
    ///
    /// # Errors
    /// It does not start.
    pub fn lodge(&self, file: &Path) -> Result<Process> {
        let mut command = Command::new(sworn()?);
        command.args(["dispute", "lodge"]).arg(file);
        self.common(&mut command, &self.watcher)?;
        command.args(["--backend", "cpu"]);
        Process::start("lodge", self.net.dir.path(), command)
    }

    /// What a verb of `sworn` about the stage's model prints as JSON.
    ///
    /// # Errors
    /// It fails, or prints something else.
    pub fn says(&self, verb: &[&str], arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(sworn()?);
        command.args(verb).args(["--json", "--rpc", &self.net.rpc]);
        command.arg("--deployment").arg(self.net.deployment_file()).arg("--home").arg(self.net.dir.path().join("home"));
        command.arg("--model").arg(self.model.path()).args(arguments);
        printed(&mut command)
    }

    /// What a verb of `sworn` prints as JSON when somebody's key signs.
    ///
    /// # Errors
    /// It fails, or prints something else.
    pub fn does(&self, who: &Actor, verb: &[&str]) -> Result<Value> {
        let mut command = Command::new(sworn()?);
        command.args(verb).args(["--json", "--rpc", &self.net.rpc]);
        command.arg("--deployment").arg(self.net.deployment_file()).arg("--home").arg(self.net.dir.path().join("home"));
        signed_by(&mut command, who)?;
        printed(&mut command)
    }

    /// A program within its limits; where disks get full, one whose writes then fail like those on a full disk, instead of a signal.
    fn command(&self, program: &Path) -> Command {
        let mut limits = String::new();
        if self.disks_fill {
            limits.push_str("trap '' XFSZ; ");
        }
        if let Some(bytes) = self.memory {
            limits.push_str(&format!("ulimit -d {}; ", bytes >> 10));
        }
        let mut command = match limits.is_empty() {
            true => Command::new(program),
            false => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(limits + "exec \"$0\" \"$@\"").arg(program);
                shell
            }
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn common(&self, command: &mut Command, actor: &Actor) -> Result<()> {
        self.about(command, actor);
        signed_by(command, actor)
    }

    /// Chain, model and somebody's state.
    fn about(&self, command: &mut Command, actor: &Actor) {
        command.args(["--json", "--log", self.log, "--rpc", &self.agents_rpc]);
        command.arg("--deployment").arg(self.net.deployment_file());
        command.arg("--home").arg(self.net.dir.path().join("home"));
        command.arg("--model").arg(self.model.path()).arg("--state").arg(actor.dir.join("state"));
    }

    /// Stake, endpoint and price of a node.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn register_node(&self, operator: &Actor, listen: &str, output_price: u128) -> Result<()> {
        self.enroll(operator, listen, output_price, STAKE, 16).await
    }

    /// [`Self::register_node`] with a stake and a capacity for more jobs at a time.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn enroll(
        &self,
        operator: &Actor,
        listen: &str,
        output_price: u128,
        stake: u128,
        capacity: u32,
    ) -> Result<()> {
        let d = &self.net.deployment;
        let approve = IERC20::approveCall { spender: d.nodes, value: U256::from(stake) };
        operator.send("approve nodes", d.token, &approve).await?;
        operator.send("deposit", d.nodes, &INodes::depositCall { amount: stake }).await?;
        let configure = INodes::configureCall { endpoint: format!("http://{listen}"), capacity };
        operator.send("configure", d.nodes, &configure).await?;
        let ask = INodes::setAskCall {
            modelId: self.model.id().into(),
            perInputToken: INPUT_PRICE,
            perOutputToken: output_price,
            maxTokens: self.model.manifest().max_positions,
        };
        operator.send("ask", d.nodes, &ask).await.map(drop)
    }

    /// Buys an answer.
    ///
    /// # Errors
    /// The market refuses.
    pub async fn ask(&self, prompt: &[u32], max_new: u32) -> Result<u64> {
        self.user.ask(&self.model, self.operator.address(), prompt, max_new, PURSE / 10).await
    }

    /// Buys a sampled answer.
    ///
    /// # Errors
    /// The market refuses.
    pub async fn ask_sampled(&self, prompt: &[u32], max_new: u32, sampling: &Sampling) -> Result<u64> {
        self.user.ask_sampled(&self.model, self.operator.address(), prompt, max_new, PURSE / 10, sampling).await
    }

    /// The job as the market has it.
    ///
    /// # Errors
    /// The chain does not answer.
    pub async fn job(&self, id: u64) -> Result<IMarket::Job> {
        self.net.chain.market().job(U256::from(id)).call().await.map_err(DevnetError::other)
    }

    /// Waits until a job is in this state.
    ///
    /// # Errors
    /// It does not happen in time.
    pub async fn until(&self, id: u64, state: JobState, patience: Duration) -> Result<IMarket::Job> {
        let start = Instant::now();
        loop {
            let job = self.job(id).await?;
            if job.state == state {
                return Ok(job);
            }
            if start.elapsed() > patience {
                return Err(DevnetError::Other(format!(
                    "job {id} is {}, not {}, after {patience:?}",
                    job.state.name(),
                    state.name()
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Follows a challenge to its end, letting turns pass: the job is slashed, all have withdrawn, every token is accounted for. `told` is
    /// what the watcher has told so far.
    ///
    /// # Errors
    /// It does not come to that in time.
    pub async fn to_the_slash(
        &self,
        liar: &Process,
        told: impl Fn() -> Vec<Value>,
        job: u64,
        patience: Duration,
    ) -> Result<()> {
        let submitted = self.to_the_withdrawal(liar, told, job, patience).await?;
        self.until(job, JobState::Slashed, Duration::ZERO).await?;
        self.settle_slash(&submitted).await
    }

    /// Follows a challenge, letting turns pass, until the watcher tells that it has withdrawn; the job as it was submitted.
    ///
    /// # Errors
    /// It does not come to that in time.
    pub async fn to_the_withdrawal(
        &self,
        liar: &Process,
        told: impl Fn() -> Vec<Value>,
        job: u64,
        patience: Duration,
    ) -> Result<IMarket::Job> {
        let start = Instant::now();
        let submitted =
            self.until(job, JobState::Submitted, patience).await.map_err(|e| liar.complaint(&e.to_string()))?;
        let mut demanded: Option<(Instant, B256)> = None;
        let mut read = 0;
        loop {
            let all = told();
            for event in &all[read..] {
                match event["event"].as_str().unwrap_or_default() {
                    "demanded" => {
                        let tx = event["tx"].as_str().and_then(|tx| tx.parse().ok());
                        demanded = tx.map(|tx| (Instant::now(), tx));
                    }
                    "answered" => demanded = None,
                    "proven" => self.skip_challenger_turn().await?,
                    "self_check_failed" => return Err(DevnetError::other(event)),
                    _ => {}
                }
            }
            read = all.len();
            if let Some((_, tx)) = demanded.filter(|(at, _)| at.elapsed() > SILENCE) {
                demanded = None;
                // The watcher may only not have heard of the answer yet.
                if self.waits_for_answer(tx).await? {
                    self.skip_node_turn().await?;
                }
            }
            if all.iter().any(|e| e["event"] == "withdrawn") {
                return Ok(submitted);
            }
            if start.elapsed() > patience {
                return Err(DevnetError::other("the challenge does not end"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether what a transaction demanded is unanswered on chain.
    async fn waits_for_answer(&self, tx: B256) -> Result<bool> {
        // A reorganisation may have taken the demand back: the watcher tells of it again.
        let events = self.net.chain.events_of(tx).await.unwrap_or_default();
        let demand = events.into_iter().find_map(|e| match e {
            Event::Challenges(IChallengesEvents::Demanded(e)) => Some(opening_id(e.jobId, &e.target)),
            _ => None,
        });
        let Some(opening) = demand else { return Ok(false) };
        let opening = self.net.chain.challenges().opening(opening).call().await.map_err(DevnetError::other)?;
        Ok(opening.state == OpeningState::Demanded)
    }

    /// Lets the node's turn pass.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn skip_node_turn(&self) -> Result<()> {
        self.net.skip(self.terms.challenges.nodeTurn.to::<u64>() + 1).await
    }

    /// Lets the challenger's turn pass, and so the contest for a reward.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn skip_challenger_turn(&self) -> Result<()> {
        self.net.skip(self.terms.challenges.challengerTurn.to::<u64>() + 1).await
    }

    /// Lets the challenge window pass.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn skip_window(&self) -> Result<()> {
        self.net.skip(self.terms.market.challengeWindow.to::<u64>() + 1).await
    }

    /// Checks where every token is after a slash that the watcher brought about, once all have withdrawn.
    ///
    /// # Errors
    /// Names the amount that is not what it must be.
    pub async fn settle_slash(&self, job: &IMarket::Job) -> Result<()> {
        let market = self.net.deployment.market;
        self.user_withdraws().await?;
        let p = &self.terms.market;
        let share = |bps: u16| job.bond * u128::from(bps) / 10_000;
        let (compensation, reward) = (share(p.userShareBps), share(p.challengerShareBps));
        let burned = job.bond - compensation - reward;
        self.holds("user", self.user.address(), PURSE + compensation).await?;
        self.holds("watcher", self.watcher.address(), PURSE + reward).await?;
        self.holds("operator", self.operator.address(), PURSE - STAKE).await?;
        self.holds("nodes", self.net.deployment.nodes, STAKE - job.bond).await?;
        self.holds("burned", BURN, burned).await?;
        self.holds("market", market, 0).await?;
        self.conserved().await
    }

    /// Checks where every token is after a job that was paid, once all have withdrawn.
    ///
    /// # Errors
    /// Names the amount that is not what it must be.
    pub async fn settle_final(&self, job: &IMarket::Job) -> Result<()> {
        let market = self.net.deployment.market;
        self.user_withdraws().await?;
        let price = u128::from(job.nIn) * INPUT_PRICE + u128::from(job.nOut) * OUTPUT_PRICE;
        self.holds("user", self.user.address(), PURSE - price).await?;
        self.holds("operator", self.operator.address(), PURSE - STAKE + price).await?;
        self.holds("watcher", self.watcher.address(), PURSE).await?;
        self.holds("nodes", self.net.deployment.nodes, STAKE).await?;
        self.holds("market", market, 0).await?;
        self.conserved().await
    }

    async fn user_withdraws(&self) -> Result<()> {
        let due = self.net.chain.market().withdrawable(self.user.address()).call().await.map_err(DevnetError::other)?;
        if !due.is_zero() {
            self.user.send("withdraw", self.net.deployment.market, &IMarket::withdrawCall {}).await?;
        }
        Ok(())
    }

    async fn holds(&self, name: &str, who: Address, expected: u128) -> Result<()> {
        let actual = self.net.tokens_of(who).await?;
        if actual == U256::from(expected) {
            return Ok(());
        }
        Err(DevnetError::Other(format!("{name} holds {actual}, not {expected}")))
    }

    async fn conserved(&self) -> Result<()> {
        let all = self.net.all_tokens(&[&self.operator, &self.user, &self.watcher]).await?;
        if all == self.net.minted {
            return Ok(());
        }
        Err(DevnetError::Other(format!("there are {all} tokens, {} were minted", self.net.minted)))
    }
}
