//! `sworn gateway`.

mod auto_open;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::B256;
use serde::Serialize;
use sworn_chain::Store;
use sworn_gateway::{Config, Follower, Gateway, Limits, Offered, Page, Router, RouterConfig};
use sworn_receipts::{ClientOptions, Domain};
use tokio::net::TcpListener;

use crate::account_key::AccountKey;
use crate::args;
use crate::events::stop_signal;
use crate::fault::{Doing, Fault, Result};
use crate::link::{Account, Link, Viewed};
use crate::models;
use crate::output::note;
use crate::settings::Settings;

/// How often the chain is asked for new channels and deposits.
const FOLLOW: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Listening {
    event: &'static str,
    url: String,
    signer: alloy::primitives::Address,
    models: Vec<String>,
    channels: usize,
}

pub(super) async fn run(settings: &Settings, command: args::Gateway) -> Result<ExitCode> {
    // Cheap checks first; a model takes a while to load, the password a person.
    let deployment = settings.deployment()?;
    settings.key_place()?;
    let api_keys = command.api_key_file.as_deref().map(api_keys).transpose()?.unwrap_or_default();
    let link = Link::to(&settings.rpc, deployment).await?;
    let max_price = command.max_price.as_deref().map(|p| link.currency.parse(p)).transpose()?;
    let key = settings.open_key().await?.local("vouchers, one for every request: open channels with --signer")?;
    let signer = key.address();
    let terms = auto_open::Terms::of(&command.auto, &link.currency)?;
    let state = command.state.unwrap_or_else(|| settings.home.join("gateway").join(signer.to_string()));
    let store = Store::open(state.join("gateway.redb"), &link.chain)?;
    let payer = match terms {
        // A journal of its own: the account's other commands go on beside the gateway.
        Some(_) => Some(Account::with_key(link.clone(), AccountKey::Local(key.clone()), state.join("wallet")).await?),
        None => None,
    };

    let mut offered = Vec::new();
    for name in &command.model {
        let model = models::load(settings, name)?;
        let id = B256::from(model.id());
        // The tokenizer and the template are the chain's: loading has checked them against the manifest, whose hash is the id.
        if !link.chain.models().exists(id).call().await.viewed()? {
            return Err(Fault::failed(format!(
                "model {id} is not registered on this chain: `sworn model register {name}` registers it"
            )));
        }
        model.tokenizer()?;
        offered.push(Offered { name: name.clone(), model });
    }

    let d = link.chain.deployment();
    let domain = Domain { chain_id: d.chain_id, channels: d.channels };
    let routing = RouterConfig {
        max_price,
        allow: command.allow,
        deny: command.deny,
        network: format!("eip155:{}", d.chain_id),
        asset: d.token,
        patience: ClientOptions::default(),
    };
    let router = Router::new(domain, routing, key, store)?;
    let mut follower = Follower::new(link.chain.clone(), signer);
    let channels = follower.channels().await?;
    let count = channels.len();
    router.set_channels(channels);
    router.probe().await;
    if count == 0 && terms.is_none() {
        note(format!(
            "no open channel names {signer} as its signer yet: `sworn channel open NODE AMOUNT --signer {signer}` opens one"
        ));
    }

    let limits = Limits {
        body: command.body_limit,
        concurrency: usize::from(command.concurrency),
        rate: command.rate_limit,
        time: Duration::from_secs(command.answer_time),
        max_new: command.default_max_tokens,
        ..Limits::default()
    };
    let ids = offered.iter().map(|o| o.model.id().into()).collect();
    let models = offered.iter().map(|o| o.name.clone()).collect();
    let page = (!command.no_page).then(|| Page {
        // A chain on this machine is read by its browsers too; any other RPC may have a key in it that is not theirs.
        rpc: command.page_rpc.or_else(|| is_local(&settings.rpc).then(|| settings.rpc.clone())),
        signer,
        symbol: link.currency.symbol.clone(),
        decimals: link.currency.decimals,
        contracts: d.clone(),
    });
    let config = Config { models: offered, api_keys, origins: command.allow_origin, limits, page };
    let gateway = Gateway::new(config, Arc::new(router.clone()));
    let address = command.listen;
    let listener = TcpListener::bind(address)
        .await
        .doing(|| format!("cannot listen on {address}: give another address with --listen"))?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    let begun = Listening { event: "listening", url, signer, models, channels: count };
    settings.out.line(&begun, |b| {
        format!("listening  {}  models {}  channels {}  signer {}", b.url, b.models.join(", "), b.channels, b.signer)
    })?;

    let keeping = tokio::spawn({
        let router = router.clone();
        async move { router.keep().await }
    });
    let opening = terms.zip(payer).map(|(terms, payer)| {
        tokio::spawn(auto_open::AutoOpen::new(payer, router.clone(), ids, terms, settings.out).keep())
    });
    let following = tokio::spawn(follower.follow(router, FOLLOW));
    let served = gateway.serve(listener, stop_signal()).await;
    keeping.abort();
    following.abort();
    if let Some(opening) = opening {
        opening.abort();
    }
    served.doing(|| "the gateway's listener failed".into())?;
    Ok(ExitCode::SUCCESS)
}

/// Whether an RPC is one of this machine.
fn is_local(rpc: &str) -> bool {
    let host = reqwest::Url::parse(rpc).ok().and_then(|u| u.host_str().map(str::to_owned));
    host.is_some_and(|h| matches!(&*h, "localhost" | "127.0.0.1" | "[::1]"))
}

/// One key a line; a file, so that no key is in a process list.
fn api_keys(path: &std::path::Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .doing(|| format!("cannot read the API keys in {}: check --api-key-file", path.display()))?;
    let keys: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    if keys.is_empty() {
        return Err(Fault::usage(format!("{} holds no key: write one a line", path.display())));
    }
    Ok(keys)
}
