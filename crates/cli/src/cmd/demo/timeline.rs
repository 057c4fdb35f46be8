//! What happens, as it happens: every transaction of every block, and what the processes say beside it.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use owo_colors::{OwoColorize, Style};
use serde::Serialize;
use serde_json::{Value, json};
use sworn_bindings::IChallenges::{IChallengesCalls, IChallengesEvents};
use sworn_bindings::IChannels::{IChannelsCalls, IChannelsEvents};
use sworn_bindings::IERC20::IERC20Calls;
use sworn_bindings::IMarket::{IMarketCalls, IMarketEvents};
use sworn_bindings::IModels::IModelsCalls;
use sworn_bindings::INodes::{INodesCalls, INodesEvents};
use sworn_bindings::ITrials::{ITrialsCalls, ITrialsEvents};
use sworn_bindings::{Deployment, Event, IDevToken, is_receipt};
use sworn_commit::sequence;
use sworn_isa::SectionKind;
use sworn_model::Model;
use tokio::sync::mpsc;

use super::cast::Cast;
use super::counter::{Batch, Conviction};
use crate::amount::Currency;
use crate::cmd::job::plain;
use crate::fault::Result;
use crate::link::Link;
use crate::localnet::{Localnet, call, short};
use crate::output::{Output, note};
use crate::process::Line;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Crew,
    Honest,
    Liar,
    User,
    Watcher,
    Chain,
}

impl Stage {
    fn of(name: &str) -> Self {
        match name {
            "honest node" => Self::Honest,
            "dishonest node" => Self::Liar,
            "user" => Self::User,
            "watcher" => Self::Watcher,
            _ => Self::Crew,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Crew => "demo",
            Self::Honest => "honest node",
            Self::Liar => "dishonest node",
            Self::User => "user",
            Self::Watcher => "watcher",
            Self::Chain => "contract",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Crew => Style::new().dimmed(),
            Self::Honest => Style::new().green(),
            Self::Liar => Style::new().red(),
            Self::User => Style::new().cyan(),
            Self::Watcher => Style::new().yellow(),
            Self::Chain => Style::new().magenta().bold(),
        }
    }
}

/// A transaction of somebody in the cast.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Transaction {
    pub(super) call: String,
    pub(super) by: &'static str,
    pub(super) gas: u64,
    pub(super) tx: B256,
    pub(super) block: u64,
    #[serde(skip)]
    pub(super) job: Option<u64>,
}

/// The wrong element, as the contract found it or, where the node fell silent, as the liar told it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LieFound {
    pub(super) layer: u16,
    pub(super) position: u32,
    pub(super) op: String,
    pub(super) element: u64,
    pub(super) claimed: i64,
    pub(super) computed: i64,
}

struct Play {
    link: Link,
    rpc: String,
    names: BTreeMap<Address, &'static str>,
    model: Arc<Model>,
    opcodes: [Vec<&'static str>; 3],
    layers: u16,
    seen: u64,
    prompts: BTreeMap<u64, u32>,
}

/// Prints and remembers.
pub(super) struct Timeline {
    out: Output,
    start: Instant,
    coloured: bool,
    play: Option<Play>,
    pub(super) transactions: Vec<Transaction>,
    pub(super) proven: Option<LieFound>,
    pub(super) told: Option<LieFound>,
    pub(super) answers: u32,
    pub(super) slash: Option<Slash>,
    /// The wrong element of the receipt on trial.
    pub(super) proven_of_receipt: Option<LieFound>,
    /// The receipt's trial.
    pub(super) trial: Option<u64>,
    pub(super) batches: Vec<Batch>,
    pub(super) conviction: Option<Conviction>,
}

/// How a bond was divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slash {
    pub(super) bond: U256,
    pub(super) refunded: U256,
    pub(super) compensation: U256,
    pub(super) reward: U256,
    pub(super) burned: U256,
}

impl Timeline {
    pub(super) fn new(out: Output) -> Self {
        let terminal = if out.json() { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        Self {
            out,
            start: Instant::now(),
            coloured: terminal && std::env::var_os("NO_COLOR").is_none(),
            play: None,
            transactions: Vec::new(),
            proven: None,
            told: None,
            answers: 0,
            slash: None,
            proven_of_receipt: None,
            trial: None,
            batches: Vec::new(),
            conviction: None,
        }
    }

    /// From here on the chain is followed.
    pub(super) async fn begin(&mut self, net: &Localnet, cast: &Cast, model: &Arc<Model>) -> Result<()> {
        model.tokenizer()?;
        let section = |kind| model.program().section(kind).ops.iter().map(|d| d.opcode.name()).collect();
        self.play = Some(Play {
            link: net.link.clone(),
            rpc: net.rpc.clone(),
            names: cast.named().into_iter().map(|(name, address)| (address, name)).collect(),
            model: model.clone(),
            opcodes: [section(SectionKind::Embedding), section(SectionKind::Block), section(SectionKind::Head)],
            layers: model.layers(),
            seen: net.link.chain.deployment().block,
            prompts: BTreeMap::new(),
        });
        self.catch_up().await
    }

    /// Tells what happens while `work` goes on.
    pub(super) async fn during<T>(
        &mut self,
        heard: &mut mpsc::UnboundedReceiver<Line>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    self.catch_up().await?;
                    return done;
                }
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    self.catch_up().await?;
                    self.listen(heard)?;
                }
            }
        }
    }

    /// Tells all that the processes have said since.
    pub(super) fn listen(&mut self, heard: &mut mpsc::UnboundedReceiver<Line>) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        while let Ok(line) = heard.try_recv() {
            self.hear(&line)?;
            lines.push(line);
        }
        Ok(lines)
    }

    pub(super) fn text(&self, text: &str) -> Result<()> {
        if self.out.json() {
            note(text);
            Ok(())
        } else {
            self.out.stream(&format!("{text}\n"))
        }
    }

    pub(super) fn heading(&self, title: &str) -> Result<()> {
        let style = if self.coloured { Style::new().bold() } else { Style::new() };
        self.text(&format!("\n{}", title.style(style)))
    }

    pub(super) fn say(&self, who: Stage, what: &str) -> Result<()> {
        let style = if self.coloured { who.style() } else { Style::new() };
        let name = format!("{:<14}", who.name());
        self.text(&format!("{:>6.1} s  {}  {what}", self.start.elapsed().as_secs_f64(), name.style(style)))
    }

    /// What a process says that is not a transaction of its own.
    fn hear(&mut self, line: &Line) -> Result<()> {
        let (who, v) = (Stage::of(line.from), &line.value);
        let number = |field: &str| v[field].as_u64().unwrap_or_default();
        match v["event"].as_str().unwrap_or_default() {
            "started" => self.say(
                who,
                &match v["adapter"].as_str() {
                    Some(adapter) => format!(
                        "is up, a process of its own; backend {}: {adapter}",
                        v["backend"].as_str().unwrap_or_default()
                    ),
                    None => "is up, a process of its own".to_owned(),
                },
            ),
            "lied" => {
                let lie = LieFound {
                    layer: number("layer") as u16,
                    position: number("position") as u32,
                    op: v["opcode"].as_str().unwrap_or_default().to_owned(),
                    element: number("element"),
                    claimed: v["claimed"].as_i64().unwrap_or_default(),
                    computed: v["honest"].as_i64().unwrap_or_default(),
                };
                let said = format!(
                    "lies in secret: layer {}, position {}, {} element {} becomes {} instead of {}",
                    lie.layer, lie.position, lie.op, lie.element, lie.claimed, lie.computed
                );
                self.told.get_or_insert(lie);
                self.say(who, &said)
            }
            "audited" if v["ok"] == true => self.say(
                who,
                &format!(
                    "re-executed {} in {} ms, {} positions in one pass: every hash agrees",
                    case(number("job")),
                    number("ms"),
                    number("positions")
                ),
            ),
            "audited" => self.say(
                who,
                &format!(
                    "re-executed {} in {} ms: it does NOT give the trace that was sworn to",
                    case(number("job")),
                    number("ms")
                ),
            ),
            "receipt_audited" => self.say(
                who,
                &format!(
                    "re-executed receipt {} of batch {} in {} ms: {}",
                    number("sequence"),
                    number("batch"),
                    number("ms"),
                    if v["ok"] == true { "every hash agrees" } else { "it does NOT give what was signed" }
                ),
            ),
            "self_checked" => self.say(who, &format!("checked itself before accusing anybody ({} ms)", number("ms"))),
            "self_check_failed" => {
                self.say(who, &format!("does not trust itself: {}", v["reason"].as_str().unwrap_or_default()))
            }
            "asked" => {
                let got = if v["served"] == true { "got it" } else { "got nothing that hashes to the commitment" };
                self.say(who, &format!("asked the node for {}: {got}", v["what"].as_str().unwrap_or_default()))
            }
            "disputed" => self.say(
                who,
                &format!(
                    "the two traces part at layer {}, row {} (position {})",
                    number("layer"),
                    number("row"),
                    number("position")
                ),
            ),
            "error" => self.say(who, &format!("error: {}", v["message"].as_str().unwrap_or_default())),
            "failed" => self.say(
                who,
                &format!("{}: {}", v["action"].as_str().unwrap_or_default(), v["error"].as_str().unwrap_or_default()),
            ),
            _ => Ok(()),
        }
    }

    /// Tells every block since the last one told.
    pub(super) async fn catch_up(&mut self) -> Result<()> {
        loop {
            let Some(play) = &self.play else { return Ok(()) };
            if play.seen >= play.link.chain.head().await?.number {
                return Ok(());
            }
            let number = play.seen + 1;
            let block = call(&play.rpc, "eth_getBlockByNumber", json!([format!("{number:#x}"), true])).await?;
            for tx in block["transactions"].as_array().into_iter().flatten() {
                self.transaction(tx, number).await?;
            }
            if let Some(play) = &mut self.play {
                play.seen = number;
            }
        }
    }

    async fn transaction(&mut self, tx: &Value, block: u64) -> Result<()> {
        let Some(play) = &self.play else { return Ok(()) };
        let address = |field: &str| tx[field].as_str().and_then(|a| a.parse::<Address>().ok());
        let (Some(from), Some(hash)) = (address("from"), tx["hash"].as_str().and_then(|h| h.parse::<B256>().ok()))
        else {
            return Ok(());
        };
        let Some(by) = play.names.get(&from).copied() else { return Ok(()) };
        let Some(receipt) = play.link.chain.receipt(hash).await? else { return Ok(()) };
        let deployment = play.link.chain.deployment().clone();
        let name = call_name(&deployment, address("to"), tx["input"].as_str().unwrap_or_default());
        let gas = receipt.gas_used;
        let events: Vec<Event> =
            receipt.logs().iter().filter_map(|log| Event::decode(&deployment, log.address(), log.data())).collect();
        let job = events.iter().find_map(job_of);
        let cost = format!("{name}, {} gas", grouped(gas));
        self.transactions.push(Transaction { call: name.clone(), by, gas, tx: hash, block, job });
        let mut told = false;
        for event in &events {
            if let Some((who, what)) = self.event(event, Stage::of(by)) {
                let tail = if told { String::new() } else { format!("  ({cost})") };
                self.say(who, &format!("{what}{}", self.dim(&tail)))?;
                told = true;
            }
        }
        if !receipt.status() {
            return self
                .say(Stage::of(by), &format!("a transaction failed in its block{}", self.dim(&format!("  ({cost})"))));
        }
        // What no contract of Sworn's had a word for: allowances, play money.
        if !told {
            let what = match name.as_str() {
                "approve" => "lets a contract take tokens".to_owned(),
                "mint" => "gets play money".to_owned(),
                other => format!("{other} done"),
            };
            self.say(Stage::of(by), &format!("{what}{}", self.dim(&format!("  ({cost})"))))?;
        }
        Ok(())
    }

    fn dim(&self, text: &str) -> String {
        if self.coloured { text.dimmed().to_string() } else { text.to_owned() }
    }

    /// What an event means to a person; `None` for what another event of the same transaction says better.
    fn event(&mut self, event: &Event, by: Stage) -> Option<(Stage, String)> {
        let play = self.play.as_mut()?;
        let currency = play.link.currency.clone();
        let money = |amount: U256| currency.show(amount);
        let name = |address: &Address| play.names.get(address).map_or_else(|| short(*address), |n| format!("the {n}"));
        let number = |id: &U256| u64::try_from(*id).unwrap_or_default();
        Some(match event {
            Event::Channels(event) => match event {
                IChannelsEvents::Deposited(e) => (by, format!("deposits {} for channels", money(e.amount))),
                IChannelsEvents::ChannelOpened(e) => (
                    by,
                    format!(
                        "opens a channel of {} to {}; the gateway's key signs its vouchers",
                        money(U256::from(e.amount)),
                        name(&e.node)
                    ),
                ),
                IChannelsEvents::BatchRedeemed(e) => {
                    self.batches.push(Batch {
                        id: e.batchId,
                        node: e.node,
                        amount: e.amount,
                        parts: e.parts.clone(),
                        released: false,
                        void: false,
                    });
                    let receipts: u64 = e.parts.iter().map(|p| p.last - p.first + 1).sum();
                    let said = format!(
                        "redeems batch {}: {receipts} receipt{}, {}; {} of its stake is bound until the window is over",
                        e.batchId,
                        if receipts == 1 { "" } else { "s" },
                        money(U256::from(e.amount)),
                        money(U256::from(e.bond))
                    );
                    (by, said)
                }
                IChannelsEvents::BatchReleased(e) => {
                    self.batches.iter_mut().filter(|b| b.id == e.batchId).for_each(|b| b.released = true);
                    (
                        Stage::Chain,
                        format!("batch {} is paid: {} to {}", e.batchId, money(U256::from(e.amount)), name(&e.node)),
                    )
                }
                IChannelsEvents::BatchVoid(e) => {
                    self.batches.iter_mut().filter(|b| b.id == e.batchId).for_each(|b| b.void = true);
                    let why = match self.conviction {
                        Some(_) => "is convicted",
                        None => "did not show a receipt, and its bond is gone",
                    };
                    (Stage::Chain, format!("batch {} is void: {} {why}", e.batchId, name(&e.node)))
                }
                IChannelsEvents::ReceiptDemanded(e) => {
                    (by, format!("demands to see receipt {} of batch {}", e.sequence, e.batchId))
                }
                IChannelsEvents::ReceiptPublished(e) => {
                    (by, format!("publishes receipt {} of batch {}", e.receipt.sequence, e.batchId))
                }
                IChannelsEvents::NodeConvicted(e) => {
                    self.conviction = Some(Conviction {
                        taken: e.taken,
                        compensation: e.compensation,
                        reward: e.reward,
                        burned: e.burned,
                    });
                    let said = format!(
                        "{} is CONVICTED: its stake of {} is gone, {} to the user, {} to the challenger, {} burned; its batches are void",
                        name(&e.node),
                        money(e.taken),
                        money(e.compensation),
                        money(e.reward),
                        money(e.burned)
                    );
                    (Stage::Chain, said)
                }
                IChannelsEvents::PartRefunded(e) => {
                    (by, format!("takes {} of the void batch back", money(U256::from(e.amount))))
                }
                IChannelsEvents::Withdrawn(e) => (by, format!("withdraws {}", money(e.amount))),
                _ => return None,
            },
            Event::Trials(event) => match event {
                ITrialsEvents::ReceiptLodged(e) => {
                    let id = number(&e.jobId);
                    self.trial = Some(id);
                    play.prompts.insert(id, e.receipt.nIn);
                    (by, format!("brings receipt {} of {} to trial", e.receipt.sequence, name(&e.node)))
                }
                _ => return None,
            },
            Event::Models(_) => (by, "registers the model: from now on its id names every weight".to_owned()),
            Event::Nodes(event) => match event {
                INodesEvents::StakeDeposited(e) => (by, format!("stakes {}", money(U256::from(e.amount)))),
                INodesEvents::NodeUpdated(e) => {
                    (by, format!("serves its traces at {}, {} jobs at a time", plain(&e.endpoint), e.capacity))
                }
                INodesEvents::AskSet(e) => (
                    by,
                    format!(
                        "asks {} per prompt token, {} per output token",
                        money(U256::from(e.perInputToken)),
                        money(U256::from(e.perOutputToken))
                    ),
                ),
                INodesEvents::StakeWithdrawn(e) => (by, format!("withdraws {} of stake", money(U256::from(e.amount)))),
                _ => return None,
            },
            Event::Market(event) => match event {
                IMarketEvents::JobCreated(e) => {
                    let tokens = sequence::decode(&e.promptTokens).unwrap_or_default();
                    play.prompts.insert(number(&e.jobId), tokens.len() as u32);
                    let question = question(&text_of(&play.model, &tokens));
                    (
                        by,
                        format!(
                            "job {}: asks {} “{question}” and puts {} in escrow",
                            e.jobId,
                            name(&e.node),
                            money(U256::from(e.escrow))
                        ),
                    )
                }
                IMarketEvents::JobAccepted(e) => (
                    Stage::Chain,
                    format!("job {}: {} of the node's stake is now its bond", e.jobId, money(U256::from(e.bond))),
                ),
                IMarketEvents::ResultSubmitted(e) => {
                    let tokens = sequence::decode(&e.outputTokens).unwrap_or_default();
                    let text = plain(&text_of(&play.model, &tokens));
                    (by, format!("job {}: answers under oath “{text}”\n{:26}trace root {}", e.jobId, "", e.traceRoot))
                }
                IMarketEvents::JobFinalized(e) => (
                    Stage::Chain,
                    format!(
                        "job {} is FINAL: {} to the node, {} back to the user",
                        e.jobId,
                        money(e.paid),
                        money(e.refunded)
                    ),
                ),
                IMarketEvents::JobSlashed(e) => {
                    self.slash = Some(Slash {
                        bond: e.bond,
                        refunded: e.refunded,
                        compensation: e.compensation,
                        reward: e.reward,
                        burned: e.burned,
                    });
                    let said = format!(
                        "job {} is SLASHED: of the bond of {}, {} to the user (and the escrow of {} back), {} to the challenger, {} burned",
                        e.jobId,
                        money(e.bond),
                        money(e.compensation),
                        money(e.refunded),
                        money(e.reward),
                        money(e.burned)
                    );
                    (Stage::Chain, said)
                }
                IMarketEvents::JobExpired(e) => {
                    (Stage::Chain, format!("job {} expired: {} back to the user", e.jobId, money(e.refunded)))
                }
                IMarketEvents::JobCancelled(e) => {
                    (Stage::Chain, format!("job {} cancelled: {} back to the user", e.jobId, money(e.refunded)))
                }
                IMarketEvents::Withdrawn(e) => (by, format!("withdraws {}", money(e.amount))),
                IMarketEvents::Credited(_) => return None,
            },
            Event::Challenges(event) => match event {
                IChallengesEvents::Demanded(e) => (by, format!("demands to see: {}", e.target)),
                IChallengesEvents::Answered(e) => {
                    self.answers += u32::from(!is_receipt(e.jobId));
                    (by, format!("shows {} ({} bytes)", e.target, e.data.len()))
                }
                IChallengesEvents::Announced(_) => {
                    (by, "announces a claim, sealed, so that nobody can copy it".to_owned())
                }
                IChallengesEvents::FraudProven(e) => {
                    let (layer, row, op) = (e.claim.layer, e.claim.row, usize::from(e.claim.op));
                    let section = match layer {
                        0 => 0,
                        l if l <= play.layers => 1,
                        _ => 2,
                    };
                    let n_in = play.prompts.get(&number(&e.jobId)).copied().unwrap_or(1);
                    let position = if section == 2 { n_in - 1 + row } else { row };
                    let opcode = play.opcodes[section].get(op).copied().unwrap_or("?");
                    let value = |v: &alloy::primitives::I256| i64::try_from(*v).unwrap_or(i64::MAX);
                    let lie = LieFound {
                        layer,
                        position,
                        op: opcode.to_owned(),
                        element: e.claim.element.into(),
                        claimed: value(&e.claimed),
                        computed: value(&e.computed),
                    };
                    let said = format!(
                        "ONE ELEMENT IS WRONG: layer {layer}, position {position}, {opcode} (operator {op}), element {}: sworn {}, computed on chain {}",
                        lie.element, lie.claimed, lie.computed
                    );
                    match is_receipt(e.jobId) {
                        true => self.proven_of_receipt = Some(lie),
                        false => self.proven = Some(lie),
                    }
                    (Stage::Chain, said)
                }
                IChallengesEvents::TimedOut(e) => (
                    Stage::Chain,
                    format!("the node did not show what was demanded in time; reward to {}", name(&e.payer)),
                ),
                IChallengesEvents::RewardContested(e) => (by, format!("contests the reward of job {}", e.jobId)),
                IChallengesEvents::RewardSettled(e) if is_receipt(e.jobId) => {
                    (Stage::Chain, format!("the reward of the trial goes to {}", name(&e.to)))
                }
                IChallengesEvents::RewardSettled(e) => {
                    (Stage::Chain, format!("the reward of job {} goes to {}", e.jobId, name(&e.to)))
                }
                IChallengesEvents::FeesReclaimed(e) => {
                    (by, format!("gets its demand fees of {} back", money(e.amount)))
                }
                IChallengesEvents::DepthLowered(_) => return None,
            },
        })
    }

    /// Transactions of a job, in order.
    pub(super) fn of_job(&self, job: u64) -> Vec<&Transaction> {
        self.transactions.iter().filter(|t| t.job == Some(job)).collect()
    }
}

/// The name of a called function.
fn call_name(d: &Deployment, to: Option<Address>, input: &str) -> String {
    let selector: Option<[u8; 4]> = input.get(2..10).and_then(|s| hex::decode(s).ok()).and_then(|b| b.try_into().ok());
    let (Some(to), Some(selector)) = (to, selector) else { return "transfer".to_owned() };
    let known = match to {
        a if a == d.market => IMarketCalls::name_by_selector(selector),
        a if a == d.nodes => INodesCalls::name_by_selector(selector),
        a if a == d.challenges => IChallengesCalls::name_by_selector(selector),
        a if a == d.models => IModelsCalls::name_by_selector(selector),
        a if a == d.channels => IChannelsCalls::name_by_selector(selector),
        a if a == d.trials => ITrialsCalls::name_by_selector(selector),
        _ => IERC20Calls::name_by_selector(selector).or_else(|| IDevToken::IDevTokenCalls::name_by_selector(selector)),
    };
    known.map_or_else(|| format!("0x{}", hex::encode(selector)), str::to_owned)
}

fn job_of(event: &Event) -> Option<u64> {
    let id = match event {
        Event::Market(event) => event.job()?,
        Event::Challenges(event) => event.job(),
        Event::Trials(ITrialsEvents::ReceiptLodged(e)) => e.jobId,
        Event::Models(_) | Event::Nodes(_) | Event::Channels(_) | Event::Trials(_) => return None,
    };
    u64::try_from(id).ok()
}

/// A job, or the trial of a receipt.
fn case(id: u64) -> String {
    if is_receipt(U256::from(id)) { "the receipt on trial".to_owned() } else { format!("job {id}") }
}

/// The words of tokens; none if the tokenizer fails.
fn text_of(model: &Model, tokens: &[u32]) -> String {
    model.tokenizer().map(|t| t.decode(tokens, false)).unwrap_or_default()
}

/// The user's words in a rendered conversation.
fn question(prompt: &str) -> String {
    for known in [super::HONEST_QUESTION, super::LIAR_QUESTION] {
        if prompt.contains(known) {
            return known.to_owned();
        }
    }
    plain(prompt)
}

/// `1,234,567`.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A difference with its sign.
pub(super) fn signed(currency: &Currency, before: U256, after: U256) -> String {
    match after.cmp(&before) {
        std::cmp::Ordering::Less => format!("-{}", currency.show(before - after)),
        std::cmp::Ordering::Equal => currency.show(U256::ZERO),
        std::cmp::Ordering::Greater => format!("+{}", currency.show(after - before)),
    }
}
