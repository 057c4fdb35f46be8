//! `sworn money`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use alloy::primitives::{Address, U256};
use alloy::sol_types::SolEvent;
use serde::Serialize;
use sworn_bindings::IChallenges::{self, IChallengesEvents};
use sworn_bindings::IMarket::{self, IMarketEvents};
use sworn_bindings::{Event, JobState};
use sworn_chain::Receipt;

use crate::amount::ether;
use crate::args;
use crate::fault::Result;
use crate::history::{self, Said, account as indexed};
use crate::link::{Account, Link, Viewed};
use crate::settings::Settings;
use crate::times;

#[derive(Serialize)]
struct Report {
    account: Address,
    /// wei of the chain's own currency, for gas
    gas: String,
    buckets: Vec<Bucket>,
    total: String,
}

/// Payment tokens in one place.
#[derive(Serialize)]
struct Bucket {
    what: String,
    amount: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<u64>,
    /// chain time; none: now, or when something else happens
    #[serde(skip_serializing_if = "Option::is_none")]
    released_at: Option<u64>,
    how: String,
}

pub(super) async fn run(settings: &Settings, command: args::Money) -> Result<ExitCode> {
    if command.withdraw {
        let account = Account::open(settings).await?;
        let receipts = withdraw(&account).await?;
        settings.out.result(&receipts, |receipts| match receipts.first() {
            Some(r) => format!("withdrawn  {}", r.hash),
            None => "nothing to withdraw; `sworn money` shows what is on its way".to_owned(),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let address = match command.address {
        Some(address) => address,
        None => settings.account().await?,
    };
    let link = Link::open(settings).await?;
    let report = report(&link, address).await?;
    let now = link.chain.now().await?;
    settings.out.result(&report, |r| {
        let money = |digits: &str| link.currency.show(digits.parse::<U256>().unwrap_or_default());
        let mut table = crate::output::table(["bucket", "amount", "released", "how"]);
        for b in &r.buckets {
            let when = b.released_at.map_or_else(
                || "-".to_owned(),
                |at| if at <= now { "now".to_owned() } else { times::relative(at, now) },
            );
            table.add_row([b.what.clone(), money(&b.amount), when, b.how.clone()]);
        }
        let gas = ether(r.gas.parse().unwrap_or_default());
        format!("{}\n{table}\ntotal {}; {gas} for gas", r.account, money(&r.total))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Collects what the market owes the account, if anything.
pub(super) async fn withdraw(account: &Account) -> Result<Vec<Receipt>> {
    let market = account.link.chain.market();
    if market.withdrawable(account.address()).call().await.viewed()?.is_zero() {
        return Ok(Vec::new());
    }
    Ok(vec![account.send(*market.address(), &IMarket::withdrawCall {}).await?])
}

async fn report(link: &Link, account: Address) -> Result<Report> {
    let chain = &link.chain;
    let (balances, now) = (chain.balances(account).await?, chain.now().await?);
    let node = chain.nodes().node(account).call().await.viewed()?;
    let delay = chain.nodes().UNSTAKE_DELAY().call().await.viewed()?;
    let mut buckets = Vec::new();
    let mut add = |what: &str, amount: U256, job: Option<u64>, released_at: Option<u64>, how: String| {
        if !amount.is_zero() {
            buckets.push(Bucket { what: what.to_owned(), amount: amount.to_string(), job, released_at, how });
        }
    };
    add("wallet", balances.token, None, Some(now), "yours".into());
    add("owed by the market", balances.withdrawable, None, Some(now), "sworn money --withdraw".into());
    let free = U256::from(balances.stake) - U256::from(balances.locked) - U256::from(balances.unbonding);
    add(
        "free stake",
        free,
        None,
        Some(now + delay),
        format!("sworn node unstake, {} later sworn node withdraw", times::span(delay)),
    );
    add("unbonding stake", U256::from(balances.unbonding), None, Some(node.unbondingAt), "sworn node withdraw".into());

    let params = chain.challenges().params().call().await.viewed()?;
    for id in jobs_of(link, account).await? {
        let job = chain.market().job(U256::from(id)).call().await.viewed()?;
        if job.state.is_terminal() || job.state == JobState::None {
            continue;
        }
        let due = job.deadline.to::<u64>() + 1;
        let then = match job.state {
            JobState::Open => "comes back if nobody accepts; sworn job cancel at any time",
            JobState::Assigned => "pays the answer, or comes back if it is late",
            _ => "pays the node when the challenge window is over, or comes back on fraud",
        };
        if job.user == account {
            add(&format!("escrow of job {id}"), U256::from(job.escrow), Some(id), Some(due), then.into());
        }
        if job.node == account {
            let then = if job.state == JobState::Submitted {
                "free when the job is final"
            } else {
                "free when the job is answered and final"
            };
            add(&format!("bond of job {id}"), U256::from(job.bond), Some(id), Some(due), then.into());
        }
    }
    for id in challenged_by(link, account).await? {
        let challenges = chain.challenges();
        let job = chain.market().job(U256::from(id)).call().await.viewed()?;
        let fees = challenges.feesPaid(U256::from(id), account).call().await.viewed()?;
        let how = match job.state {
            JobState::Slashed => Some("reclaimFees: sworn watch collects it"),
            JobState::Final => None,
            _ => Some("comes back if the job is slashed, otherwise the node's"),
        };
        if let Some(how) = how {
            add(
                &format!("demand fees of job {id}"),
                U256::from(fees),
                Some(id),
                (job.state == JobState::Slashed).then_some(now),
                how.into(),
            );
        }
        let reward = challenges.rewardOf(U256::from(id)).call().await.viewed()?;
        if reward.winner == account && !reward.paid {
            let amount = reward_of(link, id).await?;
            add(
                &format!("reward of job {id}"),
                amount,
                Some(id),
                Some(reward.contestEnd.to::<u64>() + 1),
                format!(
                    "settleReward after the contest of {}: sworn watch collects it",
                    times::span(params.challengerTurn.to())
                ),
            );
        }
    }
    let total = buckets.iter().filter_map(|b| b.amount.parse::<U256>().ok()).fold(U256::ZERO, |a, b| a + b);
    Ok(Report { account, gas: balances.native.to_string(), buckets, total: total.to_string() })
}

/// Jobs that the account bought or serves.
async fn jobs_of(link: &Link, account: Address) -> Result<BTreeSet<u64>> {
    let market = [link.chain.deployment().market];
    let created = Some(IMarket::JobCreated::SIGNATURE_HASH);
    let mut said = history::events(link, &market, [created, None, indexed(account), None]).await?;
    said.extend(history::events(link, &market, [created, None, None, indexed(account)]).await?);
    said.extend(
        history::events(link, &market, [Some(IMarket::JobAccepted::SIGNATURE_HASH), None, indexed(account), None])
            .await?,
    );
    Ok(said
        .iter()
        .filter_map(|s| match &s.event {
            Event::Market(IMarketEvents::JobCreated(e)) => u64::try_from(e.jobId).ok(),
            Event::Market(IMarketEvents::JobAccepted(e)) => u64::try_from(e.jobId).ok(),
            _ => None,
        })
        .collect())
}

/// Jobs that the account paid demands for or proved fraudulent.
async fn challenged_by(link: &Link, account: Address) -> Result<BTreeSet<u64>> {
    let challenges = [link.chain.deployment().challenges];
    let demanded = Some(IChallenges::Demanded::SIGNATURE_HASH);
    let mut said: Vec<Said> = history::events(link, &challenges, [demanded, None, None, indexed(account)]).await?;
    said.extend(
        history::events(
            link,
            &challenges,
            [Some(IChallenges::FraudProven::SIGNATURE_HASH), None, indexed(account), None],
        )
        .await?,
    );
    Ok(said
        .iter()
        .filter_map(|s| match &s.event {
            Event::Challenges(IChallengesEvents::Demanded(e)) => u64::try_from(e.jobId).ok(),
            Event::Challenges(IChallengesEvents::FraudProven(e)) => u64::try_from(e.jobId).ok(),
            _ => None,
        })
        .collect())
}

async fn reward_of(link: &Link, job: u64) -> Result<U256> {
    let said = history::of_job(link, U256::from(job)).await?;
    Ok(said
        .iter()
        .find_map(|s| match &s.event {
            Event::Market(IMarketEvents::JobSlashed(e)) => Some(e.reward),
            _ => None,
        })
        .unwrap_or_default())
}
