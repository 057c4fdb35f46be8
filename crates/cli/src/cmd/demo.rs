//! `sworn demo`: a chain, two nodes and a watcher as processes of their own, and a user.

mod cast;
mod counter;
mod report;
mod timeline;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use sworn_isa::Opcode;
use sworn_model::Model;
use tokio::sync::mpsc;

use super::{ask, devnet, job, model, money};
use crate::args;
use crate::events::stop_signal;
use crate::fault::{Fault, Result};
use crate::link::Viewed;
use crate::localnet::Localnet;
use crate::output::note;
use crate::process::Line;
use crate::prompt;
use crate::settings::Settings;
use crate::tools;

use cast::{Cast, Processes};
use counter::{Counter, Sold};
use report::Report;
use timeline::{Stage, Timeline};

/// Longest time the whole play may take once everybody is on stage.
const PATIENCE: Duration = Duration::from_secs(240);
const HONEST_QUESTION: &str = "What is 2 + 2?";
const LIAR_QUESTION: &str = "Explain what a smart contract is.";
/// Over the counter, of either node.
const COUNTER_QUESTION: &str = "What is the capital of France?";

/// Lies that are no opcode's name.
const OTHER_LIES: [&str; 9] =
    ["token", "model", "padding", "withhold", "malformed", "mute", "interactive", "second-story", "open"];

pub(super) async fn run(settings: &Settings, command: args::Demo) -> Result<ExitCode> {
    known(&command.lie)?;
    let root = tools::root(command.root.as_deref())?;
    let liar = tools::sibling("sworn-liar")?;
    let dir = tempfile::Builder::new().prefix("sworn-demo-").tempdir()?;
    let played = tokio::select! {
        played = play(settings, &command, &root, &liar, dir.path()) => played,
        () = stop_signal() => Err(Fault::failed("stopped")),
    };
    if command.keep || played.as_ref().is_err_and(|e| e.code() != 0) {
        note(format!("logs and state are in {}", dir.keep().display()));
    }
    let report = played?;
    if settings.out.json() {
        settings.out.result(&report, |_| String::new())?;
    }
    Ok(if report.as_it_should_be() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A slip in the name of the lie is found before anything is started.
fn known(lie: &str) -> Result<()> {
    let parts_known = lie.split('+').all(|part| {
        let word = part.split(':').next().unwrap_or_default();
        Opcode::from_name(word).is_some() || OTHER_LIES.contains(&word.to_ascii_lowercase().as_str())
    });
    if parts_known {
        return Ok(());
    }
    let opcodes: Vec<_> = Opcode::ALL.iter().map(|o| o.name()).collect();
    Err(Fault::usage(format!(
        "{lie:?} is no lie the demo knows: give an opcode ({}), token, model, withhold or malformed",
        opcodes.join(", ")
    )))
}

async fn play(settings: &Settings, command: &args::Demo, root: &Path, liar: &Path, dir: &Path) -> Result<Report> {
    let mut timeline = Timeline::new(settings.out);
    timeline.heading("The stage")?;
    let loaded = devnet::obtain(settings, &command.model, dir).await?;
    timeline.say(
        Stage::Crew,
        &format!(
            "model {} ({} blocks, {:.1} M weights), id {}",
            command.model,
            loaded.layers(),
            loaded.description().parameters as f64 / 1e6,
            crate::models::id_text(&loaded.id())
        ),
    )?;
    let net = Localnet::start(root, dir, 0).await?;
    timeline.say(Stage::Crew, &format!("anvil at {}, contracts deployed by script/Deploy.s.sol", net.rpc))?;
    let cast = Cast::assemble(&net).await?;
    timeline.begin(&net, &cast, &loaded).await?;
    let (lines, mut heard) = mpsc::unbounded_channel();
    timeline.during(&mut heard, model::register(&cast.honest.account, &loaded, String::new())).await?;
    timeline.during(&mut heard, cast.register(&net, loaded.id().into())).await?;
    let name = devnet::named(&command.model, Some(&loaded));
    let mut processes = Processes::start(settings, command, &net, &cast, liar, &name, dir, lines.clone())?;
    wait_until_started(&mut timeline, &mut processes, &mut heard).await?;
    let before = cast.balances(&net).await?;

    timeline.heading("Two questions")?;
    let id = B256::from(loaded.id());
    let (honest, fraud) = timeline.during(&mut heard, questions(&cast, &loaded, id, command.max_tokens)).await?;
    let ask_at = |who: &'static str, node: &crate::localnet::Purse| {
        Counter::start(settings, &net, &cast, who, node.account.address(), &name, dir, lines.clone())
    };
    timeline.heading("The counter: an OpenAI client, a gateway, receipts instead of transactions")?;
    timeline.during(&mut heard, counter::open(&cast, &net)).await?;
    let mut gateway = ask_at("gateway", &cast.honest)?;
    let sold = timeline.during(&mut heard, gateway.chat(COUNTER_QUESTION, command.max_tokens)).await?;
    told(&timeline, &net, "the honest node", &sold)?;

    timeline.heading("The watcher at work")?;
    follow(&mut timeline, &mut processes, &mut heard, &net, &cast, honest, fraud).await?;
    timeline.heading("A false receipt")?;
    let mut gateway = ask_at("gateway 2", &cast.liar)?;
    let lied = timeline.during(&mut heard, gateway.chat(COUNTER_QUESTION, command.max_tokens)).await?;
    told(&timeline, &net, "the dishonest node", &lied)?;
    trial(&mut timeline, &mut processes, &mut heard, &net, &cast).await?;
    let batches = timeline.batches.clone();
    timeline.during(&mut heard, counter::collect(&cast, &net, &batches)).await?;
    // The user collects like everybody: what the market owes is pulled, never pushed.
    timeline.during(&mut heard, money::withdraw(&cast.user.account)).await?;
    let after = cast.balances(&net).await?;

    timeline.heading("The books")?;
    let path = loaded.path().display().to_string();
    let honest_shown = job::show(settings, &net.link, honest, Some(&path)).await?;
    let fraud_shown = job::show(settings, &net.link, fraud, Some(&path)).await?;
    let report = Report::new(&timeline, &honest_shown, &fraud_shown, (sold, lied), before, after);
    timeline.text(&report.text(&net.link.currency))?;
    Ok(report)
}

/// Buys both answers, one from each node.
async fn questions(cast: &Cast, model: &Model, id: B256, max_new: u32) -> Result<(u64, u64)> {
    let mut jobs = Vec::new();
    for (question, node) in [(HONEST_QUESTION, &cast.honest), (LIAR_QUESTION, &cast.liar)] {
        let prompt = prompt::encode(model, question, false)?;
        let order = ask::order_from(&cast.user.account.link, id, node.account.address(), prompt, max_new).await?;
        jobs.push(ask::buy(&cast.user.account, &order).await?.job);
    }
    Ok((jobs[0], jobs[1]))
}

/// Says what was sold over the counter.
fn told(timeline: &Timeline, net: &Localnet, node: &str, sold: &Sold) -> Result<()> {
    let price = net.link.currency.show(sold.price.parse().unwrap_or_default());
    timeline.say(
        Stage::User,
        &format!(
            "asks at the gateway “{COUNTER_QUESTION}”: {node} answers “{}” for {price}, without a transaction\n{:26}receipt {}",
            job::plain(&sold.answer),
            "",
            sold.receipt
        ),
    )
}

/// Tells what happens until the false receipt has cost its node the stake, the honest batch is paid and nobody waits for money.
async fn trial(
    timeline: &mut Timeline,
    processes: &mut Processes,
    heard: &mut mpsc::UnboundedReceiver<Line>,
    net: &Localnet,
    cast: &Cast,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        processes.check()?;
        timeline.catch_up().await?;
        timeline.listen(heard)?;
        let paid = timeline.batches.iter().any(|b| b.released && b.node == cast.honest.account.address());
        let void = timeline.batches.iter().any(|b| b.void);
        if (timeline.conviction.is_some() || void) && paid {
            let channels = net.link.chain.channels();
            let mut owed =
                channels.totalRewards().call().await.viewed()? + channels.totalFees().call().await.viewed()?;
            owed += channels.balanceOf(cast.watcher.account.address()).call().await.viewed()?;
            if owed.is_zero() {
                return Ok(());
            }
        }
        if Instant::now() > until {
            return Err(Fault::failed(format!(
                "after {} s the false receipt {} and the honest batch {}",
                PATIENCE.as_secs(),
                if timeline.conviction.is_some() { "has convicted its node" } else { "is not proven wrong" },
                if paid { "is paid" } else { "is not paid" }
            )));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn wait_until_started(
    timeline: &mut Timeline,
    processes: &mut Processes,
    heard: &mut mpsc::UnboundedReceiver<Line>,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut missing = processes.names();
    while !missing.is_empty() {
        processes.check()?;
        if Instant::now() > until {
            return Err(Fault::failed(format!("{} did not start in {} s", missing.join(", "), PATIENCE.as_secs())));
        }
        timeline.catch_up().await?;
        for line in timeline.listen(heard)? {
            if line.value["event"] == "started" {
                missing.retain(|name| *name != line.from);
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Tells what happens until both jobs are over and everybody has been paid.
async fn follow(
    timeline: &mut Timeline,
    processes: &mut Processes,
    heard: &mut mpsc::UnboundedReceiver<Line>,
    net: &Localnet,
    cast: &Cast,
    honest: u64,
    fraud: u64,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        processes.check()?;
        timeline.catch_up().await?;
        timeline.listen(heard)?;
        let states = [job::existing(&net.link, honest).await?.state, job::existing(&net.link, fraud).await?.state];
        if states.iter().all(|s| s.is_terminal()) {
            let market = net.link.chain.market();
            let mut owed = market.totalFees().call().await.viewed()? + market.totalRewards().call().await.viewed()?;
            for actor in [&cast.honest, &cast.watcher] {
                owed += market.withdrawable(actor.account.address()).call().await.viewed()?;
            }
            if owed.is_zero() {
                return Ok(());
            }
        }
        if Instant::now() > until {
            let names = states.map(|s| s.name());
            return Err(Fault::failed(format!(
                "after {} s the honest job is {} and the other {}",
                PATIENCE.as_secs(),
                names[0],
                names[1]
            )));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
