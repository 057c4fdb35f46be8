//! `sworn job`.

use std::process::ExitCode;

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;
use sworn_bindings::IMarket::{self, IMarketEvents};
use sworn_bindings::{Event, JobState, run_params};
use sworn_commit::sequence;

use crate::args;
use crate::fault::{Fault, Result};
use crate::history::{self, Said};
use crate::link::{Account, Link, Viewed};
use crate::models;
use crate::sampling::ShownRun;
use crate::settings::Settings;
use crate::times;

/// A job as it is shown. Amounts are in the token's smallest unit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) job: u64,
    pub(crate) status: &'static str,
    pub(crate) model_id: B256,
    pub(crate) user: Address,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Address>,
    pub(crate) escrow: String,
    pub(crate) bond: String,
    pub(crate) deadline: u64,
    pub(crate) max_tokens: u32,
    /// How tokens are selected, with the seed that the market has formed.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<ShownRun>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_root: Option<B256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) layers_root: Option<B256>,
    pub(crate) input_tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) paid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refunded: Option<String>,
}

#[derive(Serialize)]
struct Row {
    job: u64,
    status: &'static str,
    user: Address,
    node: Option<Address>,
    input_tokens: u32,
    output_tokens: u32,
    escrow: String,
    deadline: u64,
}

pub(super) async fn run(settings: &Settings, verb: args::Job) -> Result<ExitCode> {
    match verb {
        args::Job::Create(command) => super::ask::create(settings, &command).await?,
        args::Job::List { of, limit } => list(settings, of, limit).await?,
        args::Job::Show { job, model } => {
            let link = Link::open(settings).await?;
            let shown = show(settings, &link, job, model.as_deref()).await?;
            let now = link.chain.now().await?;
            settings.out.result(&shown, |s| text(s, &link, now))?;
        }
        args::Job::Cancel { job } => {
            let account = Account::open(settings).await?;
            let call = IMarket::cancelJobCall { jobId: U256::from(job) };
            let receipt = account.send(account.link.chain.deployment().market, &call).await?;
            settings.out.result(&receipt, |r| {
                format!("job {job} cancelled; its escrow can be withdrawn (`sworn money --withdraw`)\n{}", r.hash)
            })?;
        }
        args::Job::Settle { job } => settle(settings, job).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn settle(settings: &Settings, id: u64) -> Result<()> {
    let account = Account::open(settings).await?;
    let chain = &account.link.chain;
    let job = existing(&account.link, id).await?;
    let (now, market, due) = (chain.now().await?, chain.deployment().market, job.deadline.to::<u64>());
    let early =
        |what: &str| Fault::failed(format!("job {id} is {}: {what} {}", job.state.name(), times::relative(due, now)));
    let receipt = match job.state {
        JobState::Open | JobState::Assigned if now <= due => return Err(early("it can expire")),
        JobState::Submitted if now <= due => return Err(early("its challenge window ends")),
        JobState::Open | JobState::Assigned => {
            account.send(market, &IMarket::expireCall { jobId: U256::from(id) }).await?
        }
        JobState::Submitted => account.send(market, &IMarket::finalizeCall { jobId: U256::from(id) }).await?,
        state => return Err(Fault::failed(format!("job {id} is {} already: nothing to settle", state.name()))),
    };
    settings.out.result(&receipt, |r| format!("job {id}: {} done\n{}", r.label, r.hash))
}

/// A job that exists.
pub(crate) async fn existing(link: &Link, id: u64) -> Result<IMarket::Job> {
    let job = link.chain.market().job(U256::from(id)).call().await.viewed()?;
    if job.state == JobState::None {
        return Err(Fault::failed(format!("there is no job {id}; `sworn job list` shows those there are")));
    }
    Ok(job)
}

/// All there is to know of a job; texts if its model is on this machine.
pub(crate) async fn show(settings: &Settings, link: &Link, id: u64, model: Option<&str>) -> Result<Shown> {
    let job = existing(link, id).await?;
    let said = history::of_job(link, U256::from(id)).await?;
    let mut shown = of(id, &job, &said);
    if job.nOut > 0 {
        let root = link.chain.market().traceRoot(U256::from(id)).call().await.viewed()?;
        shown.trace_root = Some(root);
    }
    let named = model.map_or_else(|| job.modelId.to_string(), str::to_owned);
    match (models::load(settings, &named), model) {
        (Ok(model), _) => {
            let tokenizer = model.tokenizer()?;
            shown.prompt = Some(tokenizer.decode(&shown.input_tokens, false));
            shown.text = (!shown.tokens.is_empty()).then(|| tokenizer.decode(&shown.tokens, false));
        }
        (Err(e), Some(_)) => return Err(e),
        // Its numbers are worth showing without its texts.
        (Err(_), None) => {}
    }
    Ok(shown)
}

fn of(id: u64, job: &IMarket::Job, said: &[Said]) -> Shown {
    let mut shown = Shown {
        job: id,
        status: job.state.name(),
        model_id: job.modelId,
        user: job.user,
        node: Some(job.node).filter(|n| !n.is_zero()),
        escrow: job.escrow.to_string(),
        bond: job.bond.to_string(),
        deadline: job.deadline.to(),
        max_tokens: job.maxNew,
        // The market takes no parameters outside their ranges.
        run: run_params(job.sampling, job.seed).map(|run| ShownRun::new(&run)),
        trace_root: None,
        layers_root: (job.nOut > 0).then_some(job.layersRoot),
        input_tokens: Vec::new(),
        tokens: Vec::new(),
        prompt: None,
        text: None,
        paid: None,
        refunded: None,
    };
    for s in said {
        let Event::Market(event) = &s.event else { continue };
        match event {
            IMarketEvents::JobCreated(e) => shown.input_tokens = sequence::decode(&e.promptTokens).unwrap_or_default(),
            IMarketEvents::ResultSubmitted(e) => shown.tokens = sequence::decode(&e.outputTokens).unwrap_or_default(),
            IMarketEvents::JobFinalized(e) => {
                shown.paid = Some(e.paid.to_string());
                shown.refunded = Some(e.refunded.to_string());
            }
            IMarketEvents::JobExpired(e) => shown.refunded = Some(e.refunded.to_string()),
            IMarketEvents::JobCancelled(e) => shown.refunded = Some(e.refunded.to_string()),
            IMarketEvents::JobSlashed(e) => shown.refunded = Some(e.refunded.to_string()),
            _ => {}
        }
    }
    shown
}

fn text(s: &Shown, link: &Link, now: u64) -> String {
    let money = |digits: &str| link.currency.show(digits.parse::<U256>().unwrap_or_default());
    let mut lines = vec![format!("job {}  {}", s.job, s.status)];
    let mut line = |label: &str, value: String| lines.push(format!("  {label:<12}{value}"));
    line("model", s.model_id.to_string());
    line("user", s.user.to_string());
    line("node", s.node.map_or_else(|| "none yet".to_owned(), |n| n.to_string()));
    line("escrow", money(&s.escrow));
    line("bond", money(&s.bond));
    line("deadline", times::relative(s.deadline, now));
    line("tokens", format!("{} in, {} out of at most {}", s.input_tokens.len(), s.tokens.len(), s.max_tokens));
    if let Some(run) = s.run.filter(|run| !run.is_greedy()) {
        line("selection", run.text());
    }
    for (label, value) in [("paid", &s.paid), ("refunded", &s.refunded)] {
        if let Some(value) = value {
            line(label, money(value));
        }
    }
    if let Some(root) = s.trace_root {
        line("trace root", root.to_string());
    }
    for (label, value) in [("prompt", &s.prompt), ("answer", &s.text)] {
        if let Some(value) = value {
            line(label, plain(value));
        }
    }
    lines.join("\n")
}

/// Text of strangers without what would steer a terminal; lines are indented under their label.
pub(crate) fn plain(text: &str) -> String {
    let kept: String = text.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    kept.trim().replace('\n', "\n              ")
}

async fn list(settings: &Settings, of: Option<Address>, limit: u64) -> Result<()> {
    let link = Link::open(settings).await?;
    let market = link.chain.market();
    let next: u64 = market.nextJobId().call().await.viewed()?.try_into().unwrap_or(u64::MAX);
    let mut rows = Vec::new();
    for id in (1..next).rev() {
        if rows.len() as u64 >= limit {
            break;
        }
        let job = market.job(U256::from(id)).call().await.viewed()?;
        if of.is_some_and(|a| a != job.user && a != job.node) {
            continue;
        }
        rows.push(Row {
            job: id,
            status: job.state.name(),
            user: job.user,
            node: Some(job.node).filter(|n| !n.is_zero()),
            input_tokens: job.nIn,
            output_tokens: job.nOut,
            escrow: job.escrow.to_string(),
            deadline: job.deadline.to(),
        });
    }
    let now = link.chain.now().await?;
    settings.out.result(&rows, |rows| {
        if rows.is_empty() {
            return "no jobs".to_owned();
        }
        let mut table = crate::output::table(["job", "status", "user", "node", "in", "out", "escrow", "deadline"]);
        for r in rows {
            let live = matches!(r.status, "open" | "assigned" | "submitted");
            table.add_row([
                r.job.to_string(),
                r.status.to_owned(),
                r.user.to_string(),
                r.node.map_or_else(|| "-".to_owned(), |n| n.to_string()),
                r.input_tokens.to_string(),
                r.output_tokens.to_string(),
                link.currency.show(r.escrow.parse::<U256>().unwrap_or_default()),
                if live { times::relative(r.deadline, now) } else { "-".to_owned() },
            ]);
        }
        table.to_string()
    })
}
