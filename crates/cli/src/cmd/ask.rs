//! `sworn ask`: choosing a node, buying, waiting. The demo's user goes through the same functions.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use alloy::sol_types::SolEvent;
use serde::Serialize;
use sworn_bindings::IMarket::{self, IMarketEvents};
use sworn_bindings::INodes::INodesEvents;
use sworn_bindings::{Event, INodes, JobState, sampling_word};
use sworn_chain::Receipt;
use sworn_commit::{TraceDims, sequence};
use sworn_isa::Sampling;
use sworn_model::Model;
use sworn_watcher::Served;

use super::job;
use crate::args::{Ask, Purchase};
use crate::fault::{Fault, Result};
use crate::history;
use crate::link::{Account, Link, Viewed};
use crate::logprobs;
use crate::models;
use crate::output::note;
use crate::progress;
use crate::prompt;
use crate::sampling;
use crate::settings::Settings;
use crate::times;

/// What to buy.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The model.
    pub(crate) model: B256,
    /// Zero: open to any node.
    pub(crate) node: Address,
    /// The prompt.
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the longest answer.
    pub(crate) max_new: u32,
    /// The most to pay.
    pub(crate) max_price: u128,
    /// How to select tokens.
    pub(crate) sampling: Sampling,
    /// The user's part of the seed.
    pub(crate) user_seed: B256,
}

impl Order {
    fn greedy(model: B256, node: Address, prompt: Vec<u32>, max_new: u32, max_price: u128) -> Self {
        let (sampling, user_seed) = (Sampling::GREEDY, B256::ZERO);
        Self { model, node, prompt, max_new, max_price, sampling, user_seed }
    }
}

/// A bought job.
#[derive(Clone, Debug)]
pub(crate) struct Bought {
    /// Its id.
    pub(crate) job: u64,
    /// What was sent for it.
    pub(crate) receipts: Vec<Receipt>,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    job: job::Shown,
    price_ceiling: String,
    user_seed: B256,
    /// Of every token, if they were asked for: served by the node, and what its answer commits to.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<logprobs::Shown>>,
    transactions: Vec<Receipt>,
}

pub(super) async fn run(settings: &Settings, command: Ask) -> Result<ExitCode> {
    // Slips are found before money is spent.
    prompt::check_stops(&command.stop)?;
    let model = models::load(settings, &command.order.model)?;
    command.logprobs.of_model(&model)?;
    let (account, order, bought) = purchase(settings, &command.order).await?;
    let link = &account.link;
    let patience = Duration::from_secs(command.patience);
    wait(link, bought.job, command.wait_final, patience).await?;
    let mut shown = job::show(settings, link, bought.job, Some(&command.order.model)).await?;
    shown.text = shown.text.map(|text| sworn_gateway::stop::cut(&text, &command.stop));
    let status = shown.status;
    // An answer that is there is shown, whatever becomes of its log-probabilities.
    let (logprobs, missing) = match opened(settings, link, &shown, &command).await {
        Ok(logprobs) => (logprobs, None),
        Err(fault) => (None, Some(fault)),
    };
    let report = Report {
        job: shown,
        price_ceiling: order.max_price.to_string(),
        user_seed: order.user_seed,
        logprobs,
        transactions: bought.receipts,
    };
    let now = link.chain.now().await?;
    settings.out.result(&report, |r| {
        let mut text = r.job.text.clone().unwrap_or_default();
        if let Some(shown) = &r.logprobs {
            text.push_str("\n\n");
            text.push_str(&logprobs::text(shown));
        }
        text
    })?;
    let left = times::relative(report.job.deadline, now);
    match status {
        "submitted" => note(format!("job {} is answered; its challenge window ends {left}", bought.job)),
        "final" => note(format!("job {} is final: paid {}", bought.job, digits(link, report.job.paid.as_deref()))),
        other => {
            note(format!(
                "job {} is {other}: {} came back; `sworn money` shows where it is",
                bought.job,
                digits(link, report.job.refunded.as_deref())
            ));
            return Ok(ExitCode::FAILURE);
        }
    }
    missing.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// The log-probabilities of an answer, if they were asked for: what the node serves, believed as far as it hashes to what is on chain.
async fn opened(
    settings: &Settings,
    link: &Link,
    shown: &job::Shown,
    command: &Ask,
) -> Result<Option<Vec<logprobs::Shown>>> {
    let model = models::load(settings, &command.order.model)?;
    let Some((wanted, found)) = command.logprobs.of_model(&model)? else { return Ok(None) };
    let id = shown.job;
    let job = job::existing(link, id).await?;
    if !matches!(job.state, JobState::Submitted | JobState::Final) {
        return Ok(None);
    }
    if job.outputHash != sequence::hash(&shown.tokens) {
        return Err(Fault::failed(format!(
            "the chain was reorganised meanwhile: `sworn job show {id}` shows the answer"
        )));
    }
    let dims = TraceDims { layers: model.layers(), n_in: job.nIn, n_out: shown.tokens.len() as u32 };
    let node = link.chain.nodes().node(job.node).call().await.viewed()?;
    let served = Served::default();
    let opening = served.log_probs(&node.endpoint, id, &dims, found.n, &shown.tokens, &job.layersRoot).await;
    let opening = opening.map_err(|why| {
        Fault::failed(why).while_doing(format!(
            "job {id} is answered, but the node does not open its log-probabilities; any watcher can recompute them: `sworn audit` of `sworn job show {id} --json`"
        ))
    })?;
    Ok(Some(logprobs::shown(model.tokenizer()?, &shown.tokens, &opening.rows, wanted)))
}

/// `sworn job create`.
pub(super) async fn create(settings: &Settings, command: &Purchase) -> Result<()> {
    let (account, order, bought) = purchase(settings, command).await?;
    let report = Report {
        job: job::show(settings, &account.link, bought.job, None).await?,
        price_ceiling: order.max_price.to_string(),
        user_seed: order.user_seed,
        logprobs: None,
        transactions: bought.receipts,
    };
    settings.out.result(&report, |r| r.job.job.to_string())
}

/// Orders what the flags say, and says what it is.
async fn purchase(settings: &Settings, command: &Purchase) -> Result<(Account, Order, Bought)> {
    let prompt = prompt::read(&command.prompt)?;
    let model = models::load(settings, &command.model)?;
    let sampling = command.sampling.for_model(&model)?;
    let user_seed = sampling::seed(command.seed, &sampling)?;
    let account = Account::open(settings).await?;
    let link = &account.link;
    let prompt = prompt::encode(&model, &prompt, command.raw)?;
    let ceiling = command.max_price.as_deref().map(|p| link.currency.parse(p)).transpose()?;
    let order = Order { sampling, user_seed, ..order(link, &model, prompt, command, ceiling).await? };
    let bought = buy(&account, &order).await?;
    note(format!(
        "job {}: at most {} for {} tokens in and up to {} out",
        bought.job,
        link.currency.show(U256::from(order.max_price)),
        order.prompt.len(),
        order.max_new
    ));
    Ok((account, order, bought))
}

fn digits(link: &Link, amount: Option<&str>) -> String {
    link.currency.show(amount.and_then(|a| a.parse::<U256>().ok()).unwrap_or_default())
}

/// A greedy order.
async fn order(
    link: &Link,
    model: &Model,
    prompt: Vec<u32>,
    command: &Purchase,
    ceiling: Option<u128>,
) -> Result<Order> {
    let id = B256::from(model.id());
    if !link.chain.models().exists(id).call().await.viewed()? {
        return Err(Fault::failed(format!(
            "model {} is not registered on this chain: `sworn model register {}` registers it",
            id, command.model
        )));
    }
    if command.open {
        let max_price =
            ceiling.ok_or_else(|| Fault::usage("an open job needs --max-price: it is what nodes bid under"))?;
        return Ok(Order::greedy(id, Address::ZERO, prompt, command.max_tokens, max_price));
    }
    let (n_in, max_new) = (prompt.len() as u32, command.max_tokens);
    let (node, quote) = match command.node {
        Some(node) => (node, quote(link, id, node, n_in, max_new).await?),
        None => cheapest(link, id, n_in, max_new).await?,
    };
    if let Some(ceiling) = ceiling.filter(|c| *c < quote) {
        return Err(Fault::failed(format!(
            "{node} asks {}, more than --max-price {}: raise it, ask for fewer tokens or name another node",
            link.currency.show(U256::from(quote)),
            link.currency.show(U256::from(ceiling))
        )));
    }
    Ok(Order::greedy(id, node, prompt, max_new, ceiling.unwrap_or(quote)))
}

/// An order from a node at its own price.
pub(crate) async fn order_from(
    link: &Link,
    model: B256,
    node: Address,
    prompt: Vec<u32>,
    max_new: u32,
) -> Result<Order> {
    let max_price = quote(link, model, node, prompt.len() as u32, max_new).await?;
    Ok(Order::greedy(model, node, prompt, max_new, max_price))
}

async fn quote(link: &Link, model: B256, node: Address, n_in: u32, max_new: u32) -> Result<u128> {
    let ask = link.chain.nodes().ask(node, model).call().await.viewed()?;
    if ask.maxTokens == 0 {
        return Err(Fault::failed(format!(
            "{node} does not offer this model: leave --node out to ask the cheapest that does"
        )));
    }
    let quote = link.chain.market().quote(model, node, n_in, max_new).call().await.viewed()?;
    u128::try_from(quote).map_err(|_| Fault::failed(format!("{node} asks an absurd price")))
}

/// The cheapest node that would take this job now.
async fn cheapest(link: &Link, model: B256, n_in: u32, max_new: u32) -> Result<(Address, u128)> {
    let d = link.chain.deployment();
    let posted =
        history::events(link, &[d.nodes], [Some(INodes::AskSet::SIGNATURE_HASH), None, Some(model), None]).await?;
    let nodes: BTreeSet<Address> = posted
        .iter()
        .filter_map(|said| match &said.event {
            Event::Nodes(INodesEvents::AskSet(e)) => Some(e.node),
            _ => None,
        })
        .collect();
    let (contract, params) = (link.chain.nodes(), link.chain.market().params().call().await.viewed()?);
    let mut best: Option<(Address, u128)> = None;
    let mut refused = Vec::new();
    for node in nodes {
        let ask = contract.ask(node, model).call().await.viewed()?;
        if ask.maxTokens == 0 {
            continue;
        }
        if u64::from(n_in) + u64::from(max_new) > u64::from(ask.maxTokens) {
            refused.push(format!("{node} takes at most {} tokens", ask.maxTokens));
            continue;
        }
        let state = contract.node(node).call().await.viewed()?;
        let price = quote(link, model, node, n_in, max_new).await?;
        let bond =
            U256::from(params.minBond).max(U256::from(price) * U256::from(params.bondFactorBps) / U256::from(10_000));
        let free = contract.freeStake(node).call().await.viewed()?;
        if state.active >= state.capacity {
            refused.push(format!("{node} is at capacity"));
        } else if free < bond {
            refused.push(format!("{node} has too little free stake for the bond"));
        } else if best.is_none_or(|(_, p)| price < p) {
            best = Some((node, price));
        }
    }
    best.ok_or_else(|| {
        let why = if refused.is_empty() { "nobody offers it".to_owned() } else { refused.join("; ") };
        Fault::failed(format!(
            "no node can answer with this model now: {why}. Wait, ask for fewer tokens, or leave the job --open"
        ))
    })
}

/// Lets the market take the price and creates the job.
pub(crate) async fn buy(account: &Account, order: &Order) -> Result<Bought> {
    let chain = &account.link.chain;
    let price = U256::from(order.max_price);
    let has = chain.token().balanceOf(account.address()).call().await.viewed()?;
    if has < price {
        return Err(Fault::failed(format!(
            "{} has {}, the job may cost {}: get more tokens or ask for fewer",
            account.address(),
            account.link.currency.show(has),
            account.link.currency.show(price)
        )));
    }
    let mut receipts: Vec<Receipt> = account.allow(chain.deployment().market, price).await?.into_iter().collect();
    let call = IMarket::createJobCall {
        modelId: order.model,
        node: order.node,
        promptTokens: sequence::encode(&order.prompt).into(),
        maxNew: order.max_new,
        maxPrice: order.max_price,
        sampling: sampling_word(&order.sampling),
        userSeed: order.user_seed,
    };
    let receipt = account.send(chain.deployment().market, &call).await?;
    let job = chain.events_of(receipt.hash).await?.into_iter().find_map(|event| match event {
        Event::Market(IMarketEvents::JobCreated(e)) => u64::try_from(e.jobId).ok(),
        _ => None,
    });
    receipts.push(receipt);
    let job = job.ok_or_else(|| Fault::failed("the market did not say which job it created: use another RPC"))?;
    Ok(Bought { job, receipts })
}

/// Waits until the job is answered, or with `to_the_end` until it is terminal. Ctrl-C leaves; the job goes on.
pub(crate) async fn wait(link: &Link, id: u64, to_the_end: bool, patience: Duration) -> Result<JobState> {
    let spinner = progress::spinner("waiting for the node");
    let until = Instant::now() + patience;
    let leave = |why: &str| {
        Fault::failed(format!(
            "{why}; the job goes on: `sworn job show {id}` shows it, `sworn job settle {id}` ends it when it is due"
        ))
    };
    loop {
        let job = job::existing(link, id).await?;
        if job.state.is_terminal() || (job.state == JobState::Submitted && !to_the_end) {
            spinner.finish_and_clear();
            return Ok(job.state);
        }
        spinner.set_message(format!("job {id} is {}", job.state.name()));
        let now = link.chain.now().await?;
        let due = job.deadline.to::<u64>();
        if job.state != JobState::Submitted && now > due {
            return Err(Fault::failed(format!(
                "nobody answered in time: `sworn job settle {id}` brings the escrow back"
            )));
        }
        if Instant::now() >= until {
            return Err(leave("patience is over"));
        }
        tokio::select! {
            () = tokio::time::sleep(link.chain.poll().max(Duration::from_millis(300))) => {}
            _ = tokio::signal::ctrl_c() => return Err(leave("stopped waiting")),
        }
    }
}
