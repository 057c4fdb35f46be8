//! `sworn node`.

pub(super) mod list;
mod price;
mod suggest;

use std::process::ExitCode;
use std::sync::Arc;

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;
use sworn_bindings::INodes;
use sworn_chain::{Receipt, Sender, SenderOptions, Store};
use sworn_node::{ChannelTerms, EngineProver, EventSink, Honest, NodeConfig};

use crate::account_key::AccountKey;
use crate::args;
use crate::backend;
use crate::events::{EventLog, stop_signal};
use crate::fault::{Fault, Result};
use crate::link::{Account, Link, Viewed};
use crate::models;
use crate::monitoring::Monitoring;
use crate::output::note;
use crate::settings::Settings;
use crate::times;

#[derive(Serialize)]
struct Status {
    node: Address,
    endpoint: String,
    stake: String,
    free: String,
    locked: String,
    unbonding: String,
    unbonding_at: u64,
    capacity: u32,
    active: u32,
    served: u32,
    timed_out: u32,
    slashed: u32,
    withdrawable: String,
    asks: Vec<Offer>,
}

#[derive(Serialize)]
struct Offer {
    model: String,
    model_id: B256,
    per_input_token: String,
    per_output_token: String,
    max_tokens: u32,
}

pub(super) async fn run(settings: &Settings, verb: args::Node) -> Result<ExitCode> {
    match verb {
        args::Node::Run(command) => return serve(settings, command).await,
        args::Node::Suggest(command) => {
            suggest::run(settings, command).await?;
            return Ok(ExitCode::SUCCESS);
        }
        args::Node::Price(command) if command.unposted || command.as_posted => {
            price::list(settings, command).await?;
            return Ok(ExitCode::SUCCESS);
        }
        args::Node::List(command) => {
            list::run(settings, command).await?;
            return Ok(ExitCode::SUCCESS);
        }
        args::Node::Status { address } => {
            status(settings, address).await?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let account = Account::open(settings).await?;
    let nodes = account.link.chain.deployment().nodes;
    let receipts = match verb {
        args::Node::Register { endpoint, capacity } => {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(Fault::usage(format!(
                    "{endpoint:?} is no HTTP address: give one that watchers can reach, like http://node.example:9545"
                )));
            }
            vec![account.send(nodes, &INodes::configureCall { endpoint, capacity }).await?]
        }
        args::Node::Price(price) => {
            let (model, price) = price::read(settings, &account.link, &price)?;
            let call = INodes::setAskCall {
                modelId: model,
                perInputToken: price.per_input_token,
                perOutputToken: price.per_output_token,
                maxTokens: price.max_tokens,
            };
            vec![account.send(nodes, &call).await?]
        }
        args::Node::Stake { amount } => stake(&account, account.link.currency.parse(&amount)?).await?,
        args::Node::Unstake { amount } => {
            let amount = account.link.currency.parse(&amount)?;
            let receipt = account.send(nodes, &INodes::requestUnstakeCall { amount }).await?;
            let delay = account.link.chain.nodes().UNSTAKE_DELAY().call().await.viewed()?;
            note(format!(
                "{} can be withdrawn in {}",
                account.link.currency.show(U256::from(amount)),
                times::span(delay)
            ));
            vec![receipt]
        }
        args::Node::Withdraw => withdraw(&account).await?,
        args::Node::Run(_) | args::Node::Suggest(_) | args::Node::List(_) | args::Node::Status { .. } => Vec::new(),
    };
    settings.out.result(&receipts, |receipts| {
        receipts.iter().map(|r| format!("{}  {}", r.label, r.hash)).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn stake(account: &Account, amount: u128) -> Result<Vec<Receipt>> {
    let nodes = account.link.chain.deployment().nodes;
    let mut receipts: Vec<Receipt> = account.allow(nodes, U256::from(amount)).await?.into_iter().collect();
    receipts.push(account.send(nodes, &INodes::depositCall { amount }).await?);
    Ok(receipts)
}

async fn withdraw(account: &Account) -> Result<Vec<Receipt>> {
    let chain = &account.link.chain;
    let (nodes, now) = (chain.nodes(), chain.now().await?);
    let mut receipts = super::money::withdraw(account).await?;
    let node = nodes.node(account.address()).call().await.viewed()?;
    if node.unbonding > 0 && node.unbondingAt <= now {
        receipts.push(account.send(*nodes.address(), &INodes::withdrawStakeCall {}).await?);
    } else if node.unbonding > 0 {
        note(format!(
            "{} of stake can be withdrawn {}",
            account.link.currency.show(U256::from(node.unbonding)),
            times::relative(node.unbondingAt, now)
        ));
    }
    if receipts.is_empty() {
        note("nothing is due now; `sworn money` shows what is, and when");
    }
    Ok(receipts)
}

async fn status(settings: &Settings, address: Option<Address>) -> Result<()> {
    let address = match address {
        Some(address) => address,
        None => settings.account().await?,
    };
    let link = Link::open(settings).await?;
    let nodes = link.chain.nodes();
    let node = nodes.node(address).call().await.viewed()?;
    let free = nodes.freeStake(address).call().await.viewed()?;
    let mut asks = Vec::new();
    let store = models::store(settings);
    for name in store.list()? {
        let Ok(model) = store.load(&name) else { continue };
        let id = B256::from(model.id());
        let ask = nodes.ask(address, id).call().await.viewed()?;
        if ask.maxTokens > 0 && !asks.iter().any(|o: &Offer| o.model_id == id) {
            asks.push(Offer {
                model: name,
                model_id: id,
                per_input_token: ask.perInputToken.to_string(),
                per_output_token: ask.perOutputToken.to_string(),
                max_tokens: ask.maxTokens,
            });
        }
    }
    let status = Status {
        node: address,
        endpoint: node.endpoint.clone(),
        stake: node.stake.to_string(),
        free: free.to_string(),
        locked: node.locked.to_string(),
        unbonding: node.unbonding.to_string(),
        unbonding_at: node.unbondingAt,
        capacity: node.capacity,
        active: node.active,
        served: node.served,
        timed_out: node.timedOut,
        slashed: node.slashed,
        withdrawable: link.chain.market().withdrawable(address).call().await.viewed()?.to_string(),
        asks,
    };
    let now = link.chain.now().await?;
    settings.out.result(&status, |s| {
        let money = |digits: &str| link.currency.show(digits.parse::<U256>().unwrap_or_default());
        let endpoint: String = s.endpoint.chars().filter(|c| !c.is_control()).collect();
        let mut text = format!(
            "{}\n  endpoint      {}\n  stake         {} ({} free, {} in bonds)\n  jobs          {} of {} at a time\n  record        {} served, {} late, {} slashed\n  withdrawable  {}",
            s.node,
            if endpoint.is_empty() { "none" } else { &endpoint },
            money(&s.stake),
            money(&s.free),
            money(&s.locked),
            s.active,
            s.capacity,
            s.served,
            s.timed_out,
            s.slashed,
            money(&s.withdrawable),
        );
        if node.unbonding > 0 {
            text.push_str(&format!("\n  unbonding     {}, free {}", money(&s.unbonding), times::relative(s.unbonding_at, now)));
        }
        for o in &s.asks {
            text.push_str(&format!("\n  ask           {}: {} per input token, {} per output token, up to {} tokens", o.model, money(&o.per_input_token), money(&o.per_output_token), o.max_tokens));
        }
        text
    })
}

/// How the node is paid by receipts, and with which key.
fn channel_terms(
    settings: &Settings,
    receipts: &args::Receipts,
    link: &Link,
    account: &AccountKey,
) -> Result<Option<ChannelTerms>> {
    if receipts.no_channels {
        return Ok(None);
    }
    let signer = match &receipts.session_key {
        Some(path) => settings.session_signer(path, receipts.session_key_password_file.as_deref())?,
        None => account.clone().local("receipts, one for every answer: give it a --session-key (or --no-channels)")?,
    };
    let mut terms = ChannelTerms::new(signer);
    terms.redeem_at = link.currency.parse(&receipts.redeem_at)?;
    terms.surge_max_bps = receipts.surge_max.saturating_mul(100);
    terms.streams = receipts.streams.into();
    if receipts.reserved >= receipts.streams {
        return Err(Fault::usage(format!(
            "--reserved {} leaves none of the {} places of --streams to others: hold fewer, or have more",
            receipts.reserved, receipts.streams
        )));
    }
    terms.reserved = receipts.reserved.into();
    terms.reserved_premium_bps = receipts.reserved_premium.saturating_mul(100);
    terms.contract_signers = receipts.contract_signers;
    terms.spot_discount_bps = receipts.spot_discount.saturating_mul(100);
    Ok(Some(terms))
}

/// Where a node keeps journal and state.
fn state(settings: &Settings, account: Address) -> std::path::PathBuf {
    settings.home.join("node").join(account.to_string())
}

async fn serve(settings: &Settings, command: args::NodeRun) -> Result<ExitCode> {
    // Cheap checks first; the model takes a while to load, the password a person.
    let deployment = settings.deployment()?;
    settings.key_place()?;
    let link = Link::to(&settings.rpc, deployment).await?;
    let key = settings.open_key().await?;
    let terms = channel_terms(settings, &command.receipts, &link, &key)?;
    let data = command.state.unwrap_or_else(|| state(settings, key.address()));
    let store = Store::open(data.join("node.redb"), &link.chain)?;
    let model = models::load(settings, &command.engine.model)?;
    let choice = command.engine.backend;
    let together = usize::from(command.concurrency);
    let prover = backend::blocking(move || {
        let chosen = backend::open(model, choice)?;
        Ok(EngineProver::new().together(together).with(chosen.backend.clone(), chosen.cpu()?))
    })
    .await?;

    let sender = Sender::new(link.chain.clone(), key, store.clone(), SenderOptions::default());
    let mut config = NodeConfig::new(&data);
    config.listen = Some(command.listen);
    config.accept_open = command.open_jobs;
    config.workers = together;
    config.http_rate = command.rate_limit;
    config.channels = terms;
    let monitoring = Monitoring::start(command.monitoring, config.pulse.clone()).await?;
    let (log, mut finished) = EventLog::new(settings.out);
    let sink = EventSink::new(move |event| log.tell(event));
    let node = sworn_node::Node::start(config, sender, store, Arc::new(prover), Arc::new(Honest), sink).await?;
    let stop = async {
        tokio::select! {
            () = stop_signal() => {}
            _ = finished.recv() => {}
        }
    };
    let ended = node.run(stop).await;
    monitoring.stop().await;
    ended?;
    Ok(ExitCode::SUCCESS)
}
