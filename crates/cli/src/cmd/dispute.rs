//! `sworn dispute`.

mod equivocation;
mod lodge;

use std::collections::BTreeMap;
use std::process::ExitCode;

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;
use sworn_bindings::IChallenges::IChallengesEvents;
use sworn_bindings::IMarket::IMarketEvents;
use sworn_bindings::ITrials::ITrialsEvents;
use sworn_bindings::{Event, JobState, is_receipt};

use super::job;
use crate::args;
use crate::fault::Result;
use crate::history::{self, Said};
use crate::link::{Link, Viewed};
use crate::settings::Settings;

#[derive(Serialize)]
struct Row {
    job: u64,
    status: &'static str,
    node: Address,
    demands: u32,
    answers: u32,
    outcome: String,
    last_block: u64,
}

#[derive(Serialize)]
struct Step {
    block: u64,
    what: &'static str,
    detail: String,
    transaction: B256,
    gas: u64,
}

#[derive(Serialize)]
struct Shown {
    job: u64,
    status: &'static str,
    steps: Vec<Step>,
}

pub(super) async fn run(settings: &Settings, verb: args::Dispute) -> Result<ExitCode> {
    match verb {
        args::Dispute::List { limit } => list(settings, &Link::open(settings).await?, limit).await?,
        args::Dispute::Show { job } => show(settings, &Link::open(settings).await?, job).await?,
        args::Dispute::Lodge(command) => return lodge::run(settings, command).await,
        args::Dispute::Equivocation(command) => return equivocation::run(settings, command).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(settings: &Settings, link: &Link, limit: u64) -> Result<()> {
    let said = history::events(link, &[link.chain.deployment().challenges], [None; 4]).await?;
    let mut jobs: BTreeMap<u64, Vec<&Said>> = BTreeMap::new();
    for s in &said {
        if let Event::Challenges(event) = &s.event {
            jobs.entry(u64::try_from(event.job()).unwrap_or_default()).or_default().push(s);
        }
    }
    let mut rows = Vec::new();
    for (id, events) in jobs.into_iter().rev().take(limit.try_into().unwrap_or(usize::MAX)) {
        let (state, node) = standing(link, id).await?;
        let mut row =
            Row { job: id, status: state.name(), node, demands: 0, answers: 0, outcome: "open".into(), last_block: 0 };
        for s in events {
            row.last_block = s.block;
            let Event::Challenges(event) = &s.event else { continue };
            match event {
                IChallengesEvents::Demanded(_) => row.demands += 1,
                IChallengesEvents::Answered(_) => row.answers += 1,
                IChallengesEvents::FraudProven(_) => row.outcome = "fraud proven".into(),
                IChallengesEvents::TimedOut(_) => row.outcome = "node silent".into(),
                _ => {}
            }
        }
        if row.outcome == "open" && state.is_terminal() {
            row.outcome = "nothing wrong found".into();
        }
        rows.push(row);
    }
    settings.out.result(&rows, |rows| {
        if rows.is_empty() {
            return "no disputes".to_owned();
        }
        let mut table = crate::output::table(["job", "status", "node", "demands", "answers", "outcome"]);
        for r in rows {
            table.add_row([
                r.job.to_string(),
                r.status.to_owned(),
                r.node.to_string(),
                r.demands.to_string(),
                r.answers.to_string(),
                r.outcome.clone(),
            ]);
        }
        table.to_string()
    })
}

/// How a job or a receipt's trial stands, and whose it is.
async fn standing(link: &Link, id: u64) -> Result<(JobState, Address)> {
    let id = U256::from(id);
    if is_receipt(id) {
        let trial = link.chain.receipt_court().trial(id).call().await.viewed()?;
        return Ok((trial.state, trial.node));
    }
    let job = link.chain.market().job(id).call().await.viewed()?;
    Ok((job.state, job.node))
}

async fn show(settings: &Settings, link: &Link, id: u64) -> Result<()> {
    let status = match is_receipt(U256::from(id)) {
        true => standing(link, id).await?.0.name(),
        false => job::existing(link, id).await?.state.name(),
    };
    let mut steps = Vec::new();
    for s in history::of_job(link, U256::from(id)).await? {
        let Some((what, detail)) = describe(&s.event, link) else { continue };
        let gas = link.chain.receipt(s.transaction).await?.map_or(0, |r| r.gas_used);
        steps.push(Step { block: s.block, what, detail, transaction: s.transaction, gas });
    }
    settings.out.result(&Shown { job: id, status, steps }, |d| {
        let mut table = crate::output::table(["block", "what", "detail", "gas", "transaction"]);
        for s in &d.steps {
            table.add_row([
                s.block.to_string(),
                s.what.to_owned(),
                s.detail.clone(),
                s.gas.to_string(),
                s.transaction.to_string(),
            ]);
        }
        format!("job {}  {}\n{table}", d.job, d.status)
    })
}

/// What an event says, in a word and a line.
fn describe(event: &Event, link: &Link) -> Option<(&'static str, String)> {
    let money = |amount: U256| link.currency.show(amount);
    Some(match event {
        Event::Challenges(event) => match event {
            IChallengesEvents::Demanded(e) => ("demand", format!("{} by {}", e.target, e.payer)),
            IChallengesEvents::DepthLowered(e) => ("depth lowered", format!("to {} by {}", e.depth, e.by)),
            IChallengesEvents::Answered(e) => ("answer", format!("{}: {} bytes by {}", e.target, e.data.len(), e.by)),
            IChallengesEvents::Announced(e) => ("announcement", format!("by {}", e.by)),
            IChallengesEvents::FraudProven(e) => (
                "fraud proven",
                format!(
                    "layer {} row {} operator {} element {}: claimed {}, computed {}; by {}",
                    e.claim.layer, e.claim.row, e.claim.op, e.claim.element, e.claimed, e.computed, e.by
                ),
            ),
            IChallengesEvents::TimedOut(e) => ("timeout", format!("reward to {}", e.payer)),
            IChallengesEvents::RewardContested(e) => ("reward contested", format!("by {}", e.by)),
            IChallengesEvents::RewardSettled(e) => ("reward settled", format!("to {}", e.to)),
            IChallengesEvents::FeesReclaimed(e) => ("fees reclaimed", format!("{} by {}", money(e.amount), e.payer)),
        },
        Event::Market(event) => match event {
            IMarketEvents::JobCreated(e) => ("job", format!("by {}, escrow {}", e.user, money(U256::from(e.escrow)))),
            IMarketEvents::JobAccepted(e) => ("accepted", format!("by {}, bond {}", e.node, money(U256::from(e.bond)))),
            IMarketEvents::ResultSubmitted(e) => {
                ("result", format!("{} tokens, trace root {}", e.outputTokens.len() / 4, e.traceRoot))
            }
            IMarketEvents::JobFinalized(e) => ("final", format!("paid {}, back {}", money(e.paid), money(e.refunded))),
            IMarketEvents::JobSlashed(e) => (
                "slashed",
                format!(
                    "bond {}: {} to the user (and the escrow of {}), {} to the challenger, {} burned",
                    money(e.bond),
                    money(e.compensation),
                    money(e.refunded),
                    money(e.reward),
                    money(e.burned)
                ),
            ),
            _ => return None,
        },
        Event::Trials(ITrialsEvents::ReceiptLodged(e)) => (
            "lodged",
            format!("receipt {} of channel {}, trace root {}", e.receipt.sequence, e.receipt.channelId, e.traceRoot),
        ),
        Event::Trials(ITrialsEvents::TrialAcquitted(e)) => {
            ("acquitted", format!("fees of {} to the node", money(e.fees)))
        }
        _ => return None,
    })
}
