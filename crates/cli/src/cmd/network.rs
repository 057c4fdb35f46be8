//! `sworn network`: what has happened on the market, from the chain alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;
use sworn_bindings::IChallenges::IChallengesEvents;
use sworn_bindings::IChannels::IChannelsEvents;
use sworn_bindings::IMarket::IMarketEvents;
use sworn_bindings::INodes::INodesEvents;
use sworn_bindings::ITrials::ITrialsEvents;
use sworn_bindings::{Event, is_receipt};

use crate::args::Network;
use crate::fault::Result;
use crate::history::{self, Said};
use crate::link::Link;
use crate::output::table;
use crate::settings::Settings;
use crate::times;

/// Percentiles by the nearest rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Percentiles<T> {
    p50: Option<T>,
    p90: Option<T>,
    p99: Option<T>,
}

/// One model's jobs.
#[derive(Debug, Default, Serialize)]
struct OfModel {
    model: B256,
    created: u64,
    served: u64,
    late: u64,
    slashed: u64,
    /// what users paid for them
    volume: String,
    /// seconds from a node's assignment to its answer
    seconds: Percentiles<u64>,
    /// paid for a token of prompt or answer
    price: Percentiles<String>,
}

/// All that happened.
#[derive(Debug, Serialize)]
struct Report {
    /// seconds that it covers
    period: u64,
    nodes: usize,
    /// that answered a job or redeemed receipts
    active_nodes: usize,
    users: usize,
    receipts: u64,
    /// what users paid, by job and by receipt
    volume: String,
    models: Vec<OfModel>,
    /// by reason code
    failures: BTreeMap<&'static str, u64>,
}

/// A job so far.
#[derive(Clone, Copy, Default)]
struct Job {
    model: B256,
    tokens: u64,
    assigned: Option<u64>,
}

#[derive(Default)]
struct Tally {
    of: OfModel,
    paid: U256,
    seconds: Vec<u64>,
    prices: Vec<U256>,
}

/// The value below which this many percent are.
fn percentile<T: Clone>(sorted: &[T], percent: usize) -> Option<T> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).cloned()
}

fn percentiles<T: Clone + Ord>(mut values: Vec<T>) -> Percentiles<T> {
    values.sort();
    let [p50, p90, p99] = [50, 90, 99].map(|p| percentile(&values, p));
    Percentiles { p50, p90, p99 }
}

/// Why a node lost a bond or its stake: what the same transaction says besides. `None`: nothing that this version knows.
fn reason(event: &Event) -> Option<&'static str> {
    match event {
        Event::Challenges(IChallengesEvents::FraudProven(e)) if is_receipt(e.jobId) => Some("receipt_proven_false"),
        Event::Challenges(IChallengesEvents::FraudProven(_)) => Some("answer_proven_false"),
        Event::Challenges(IChallengesEvents::TimedOut(_)) => Some("demand_unanswered"),
        Event::Channels(IChannelsEvents::ReceiptWithheld(_)) => Some("receipt_hidden"),
        Event::Trials(ITrialsEvents::OverclaimShown(_)) => Some("overclaimed"),
        Event::Trials(ITrialsEvents::EquivocationShown(_)) => Some("two_receipts_for_one_request"),
        Event::Trials(ITrialsEvents::MalformedShown(_)) => Some("receipt_malformed"),
        _ => None,
    }
}

pub(super) async fn run(settings: &Settings, command: Network) -> Result<ExitCode> {
    let link = Link::open(settings).await?;
    let report = gather(&link, command.days).await?;
    settings.out.result(&report, |r| text(&link, r))?;
    Ok(ExitCode::SUCCESS)
}

/// Times of blocks, asked for where logs do not tell.
struct Times<'a> {
    link: &'a Link,
    known: HashMap<u64, u64>,
}

impl Times<'_> {
    async fn of(&mut self, said: &Said) -> Result<u64> {
        if let Some(time) = said.time.or_else(|| self.known.get(&said.block).copied()) {
            return Ok(time);
        }
        let time = self.link.chain.block(said.block.into()).await?.map_or(0, |b| b.timestamp);
        self.known.insert(said.block, time);
        Ok(time)
    }
}

async fn gather(link: &Link, days: Option<u32>) -> Result<Report> {
    let (d, now) = (link.chain.deployment().clone(), link.chain.now().await?);
    let since = days.map_or(0, |days| now.saturating_sub(u64::from(days) * 86_400));
    let contracts = [d.market, d.channels, d.trials, d.challenges, d.nodes];
    let said = history::events(link, &contracts, [None; 4]).await?;
    let mut reasons: HashMap<B256, &'static str> = HashMap::new();
    for s in &said {
        if let Some(why) = reason(&s.event) {
            reasons.insert(s.transaction, why);
        }
    }

    let mut times = Times { link, known: HashMap::new() };
    let mut jobs: HashMap<U256, Job> = HashMap::new();
    let mut models: BTreeMap<B256, Tally> = BTreeMap::new();
    let mut failures: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut batches: HashMap<U256, u64> = HashMap::new();
    let (mut nodes, mut active, mut users) = (BTreeSet::<Address>::new(), BTreeSet::new(), BTreeSet::new());
    let (mut first, mut receipts, mut by_receipt) = (None, 0u64, U256::ZERO);
    for s in &said {
        let time = times.of(s).await?;
        first.get_or_insert(time);
        // Jobs and batches of before are needed to understand what came of them.
        let counts = time >= since;
        let mut fails = |why: &'static str| *failures.entry(why).or_default() += u64::from(counts);
        let why = || reasons.get(&s.transaction).copied().unwrap_or("unknown");
        match &s.event {
            Event::Nodes(INodesEvents::NodeUpdated(e)) => {
                nodes.insert(e.node);
            }
            Event::Market(IMarketEvents::JobCreated(e)) => {
                let tokens = e.promptTokens.len() as u64 / 4;
                jobs.insert(e.jobId, Job { model: e.modelId, tokens, ..Job::default() });
                if counts {
                    models.entry(e.modelId).or_default().of.created += 1;
                    users.insert(e.user);
                }
            }
            Event::Market(IMarketEvents::JobAccepted(e)) => {
                jobs.entry(e.jobId).or_default().assigned = Some(time);
            }
            Event::Market(IMarketEvents::ResultSubmitted(e)) => {
                let job = jobs.entry(e.jobId).or_default();
                job.tokens += e.outputTokens.len() as u64 / 4;
                if let Some(assigned) = job.assigned.filter(|_| counts) {
                    models.entry(job.model).or_default().seconds.push(time.saturating_sub(assigned));
                    active.insert(e.node);
                }
            }
            Event::Market(IMarketEvents::JobFinalized(e)) if counts => {
                let job = jobs.get(&e.jobId).copied().unwrap_or_default();
                let tally = models.entry(job.model).or_default();
                tally.of.served += 1;
                tally.paid += e.paid;
                tally.prices.extend(e.paid.checked_div(U256::from(job.tokens)));
            }
            Event::Market(IMarketEvents::JobExpired(e)) => {
                let job = jobs.get(&e.jobId).copied().unwrap_or_default();
                if job.assigned.is_some() {
                    models.entry(job.model).or_default().of.late += u64::from(counts);
                }
                fails(if job.assigned.is_some() { "late" } else { "nobody_accepted" });
            }
            Event::Market(IMarketEvents::JobCancelled(_)) => fails("cancelled_by_user"),
            Event::Market(IMarketEvents::JobSlashed(e)) => {
                let job = jobs.get(&e.jobId).copied().unwrap_or_default();
                models.entry(job.model).or_default().of.slashed += u64::from(counts);
                fails(why());
            }
            Event::Channels(IChannelsEvents::ChannelOpened(e)) if counts => {
                users.insert(e.user);
            }
            Event::Channels(IChannelsEvents::BatchRedeemed(e)) => {
                batches.insert(e.batchId, history::receipts(&e.parts));
                if counts {
                    active.insert(e.node);
                }
            }
            Event::Channels(IChannelsEvents::BatchReleased(e)) if counts => {
                receipts += batches.get(&e.batchId).copied().unwrap_or(0);
                by_receipt += U256::from(e.amount);
            }
            Event::Channels(IChannelsEvents::NodeConvicted(_) | IChannelsEvents::ReceiptWithheld(_)) => fails(why()),
            _ => {}
        }
    }
    failures.retain(|_, n| *n > 0);
    let mut volume = by_receipt;
    let models = models.into_iter().map(|(model, tally)| {
        volume += tally.paid;
        let prices = percentiles(tally.prices);
        let digits = |p: Option<U256>| p.map(|p| p.to_string());
        let price = Percentiles { p50: digits(prices.p50), p90: digits(prices.p90), p99: digits(prices.p99) };
        OfModel { model, volume: tally.paid.to_string(), seconds: percentiles(tally.seconds), price, ..tally.of }
    });
    let models = models.filter(|m| m.created + m.served + m.late + m.slashed > 0).collect();
    Ok(Report {
        period: now.saturating_sub(first.unwrap_or(now).max(since)),
        nodes: nodes.len(),
        active_nodes: active.len(),
        users: users.len(),
        receipts,
        volume: volume.to_string(),
        models,
        failures,
    })
}

fn text(link: &Link, r: &Report) -> String {
    let money = |digits: &str| link.currency.show(digits.parse::<U256>().unwrap_or_default());
    let mut text = format!(
        "{}: {} nodes ({} active), {} users, {} receipts paid, volume {}",
        times::span(r.period),
        r.nodes,
        r.active_nodes,
        r.users,
        r.receipts,
        money(&r.volume)
    );
    if !r.models.is_empty() {
        let mut rows = table([
            "model",
            "jobs",
            "served",
            "late",
            "slashed",
            "volume",
            "seconds p50 p90 p99",
            "token's price p50 p90 p99",
        ]);
        for m in &r.models {
            let list = |values: [Option<String>; 3]| values.map(|v| v.unwrap_or_else(|| "–".into())).join("  ");
            let seconds = [&m.seconds.p50, &m.seconds.p90, &m.seconds.p99].map(|s| s.map(|s| s.to_string()));
            let price = [&m.price.p50, &m.price.p90, &m.price.p99].map(|p| p.as_deref().map(money));
            rows.add_row([
                m.model.to_string(),
                m.created.to_string(),
                m.served.to_string(),
                m.late.to_string(),
                m.slashed.to_string(),
                money(&m.volume),
                list(seconds),
                list(price),
            ]);
        }
        text.push_str(&format!("\n\n{rows}"));
    }
    for (reason, count) in &r.failures {
        text.push_str(&format!("\n{count:>6}  {reason}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let p = percentiles((1..=200u64).rev().collect());
        assert_eq!((p.p50, p.p90, p.p99), (Some(100), Some(180), Some(198)));
        let p = percentiles(vec![7u64]);
        assert_eq!((p.p50, p.p99), (Some(7), Some(7)));
        assert_eq!(percentiles(Vec::<u64>::new()), Percentiles::default());
    }
}
