//! `sworn channel`.

use std::process::ExitCode;

use alloy::primitives::{Address, B256, U256};
use alloy::sol_types::SolEvent;
use rand::TryRngCore;
use serde::Serialize;
use sworn_bindings::IChannels::{self, IChannelsEvents};
use sworn_bindings::{ChannelState, Event};
use sworn_chain::Receipt;

use crate::args;
use crate::fault::{Fault, Result};
use crate::history::{self, account as indexed};
use crate::link::{Account, Link, Viewed};
use crate::output::note;
use crate::settings::Settings;
use crate::times;

#[derive(Serialize)]
struct Shown {
    channel: B256,
    user: Address,
    node: Address,
    signer: Address,
    state: &'static str,
    deposit: String,
    claimed: String,
    /// receipts that the node has redeemed
    redeemed: u64,
    /// chain time; zero: not closing
    close_at: u64,
}

#[derive(Serialize)]
struct Opened {
    channel: B256,
    transactions: Vec<Receipt>,
}

pub(super) async fn run(settings: &Settings, verb: args::Channel) -> Result<ExitCode> {
    match verb {
        args::Channel::Show { channel } => {
            let link = Link::open(settings).await?;
            let shown = show(&link, channel).await?;
            print(settings, &link, &[shown]).await?;
        }
        args::Channel::List { of, all } => {
            let of = match of {
                Some(of) => of,
                None => settings.account().await?,
            };
            list(settings, of, all).await?;
        }
        args::Channel::Open { node, amount, signer } => {
            let account = Account::open(settings).await?;
            let amount = account.link.currency.parse(&amount)?;
            let (channel, transactions) = open(&account, node, amount, signer).await?;
            settings.out.result(&Opened { channel, transactions }, |o| o.channel.to_string())?;
        }
        verb => {
            let account = Account::open(settings).await?;
            let receipts = send(&account, verb).await?;
            settings.out.result(&receipts, |receipts| {
                receipts.iter().map(|r| format!("{}  {}", r.label, r.hash)).collect::<Vec<_>>().join("\n")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The verbs that are transactions and nothing else.
async fn send(account: &Account, verb: args::Channel) -> Result<Vec<Receipt>> {
    let channels = account.link.chain.deployment().channels;
    let currency = &account.link.currency;
    Ok(match verb {
        args::Channel::Deposit { amount } => {
            let amount = currency.parse(&amount)?;
            let mut receipts: Vec<Receipt> = account.allow(channels, U256::from(amount)).await?.into_iter().collect();
            receipts.push(account.send(channels, &IChannels::depositCall { amount }).await?);
            receipts
        }
        args::Channel::Topup { channel, amount } => top_up(account, channel, currency.parse(&amount)?).await?,
        args::Channel::Close { channel } => close(account, channel).await?,
        args::Channel::Withdraw => {
            if balance(account).await?.is_zero() {
                note("nothing to withdraw: `sworn channel list` shows what channels hold");
                return Ok(Vec::new());
            }
            vec![account.send(channels, &IChannels::withdrawCall {}).await?]
        }
        args::Channel::Open { .. } | args::Channel::Show { .. } | args::Channel::List { .. } => Vec::new(),
    })
}

async fn balance(account: &Account) -> Result<U256> {
    account.link.chain.channels().balanceOf(account.address()).call().await.viewed()
}

/// Adds to a channel.
pub(super) async fn top_up(account: &Account, channel: B256, amount: u128) -> Result<Vec<Receipt>> {
    let mut receipts = fund(account, amount).await?;
    let call = IChannels::topUpCall { channelId: channel, amount };
    receipts.push(account.send(account.link.chain.deployment().channels, &call).await?);
    Ok(receipts)
}

/// Deposits what the balance lacks for `amount`.
async fn fund(account: &Account, amount: u128) -> Result<Vec<Receipt>> {
    let missing = U256::from(amount).saturating_sub(balance(account).await?);
    let Ok(missing) = u128::try_from(missing) else { return Ok(Vec::new()) };
    if missing == 0 {
        return Ok(Vec::new());
    }
    let channels = account.link.chain.deployment().channels;
    let mut receipts: Vec<Receipt> = account.allow(channels, U256::from(missing)).await?.into_iter().collect();
    receipts.push(account.send(channels, &IChannels::depositCall { amount: missing }).await?);
    Ok(receipts)
}

/// Opens a channel; its name, and the transactions that it took.
pub(super) async fn open(
    account: &Account,
    node: Address,
    amount: u128,
    signer: Option<Address>,
) -> Result<(B256, Vec<Receipt>)> {
    let channels = account.link.chain.deployment().channels;
    let mut receipts = fund(account, amount).await?;
    let mut salt = B256::ZERO;
    rand::rngs::OsRng
        .try_fill_bytes(&mut salt.0)
        .map_err(|e| Fault::failed(format!("this machine gives no random numbers ({e})")))?;
    let signer = signer.unwrap_or_default();
    let receipt = account.send(channels, &IChannels::openCall { node, signer, amount, salt }).await?;
    let events = account.link.chain.events_of(receipt.hash).await?;
    let channel = events.into_iter().find_map(|event| match event {
        Event::Channels(IChannelsEvents::ChannelOpened(e)) => Some(e.channelId),
        _ => None,
    });
    receipts.push(receipt);
    let channel =
        channel.ok_or_else(|| Fault::failed("the chain did not say which channel was opened: use another RPC"))?;
    Ok((channel, receipts))
}

/// Begins to close, or ends what was begun when its time has come.
async fn close(account: &Account, channel: B256) -> Result<Vec<Receipt>> {
    let chain = &account.link.chain;
    let channels = chain.deployment().channels;
    let (state, now) = (chain.channels().channel(channel).call().await.viewed()?, chain.now().await?);
    match state.state {
        ChannelState::Open => {
            let receipt = account.send(channels, &IChannels::requestCloseCall { channelId: channel }).await?;
            let closing = chain.channels().channel(channel).call().await.viewed()?;
            note(format!(
                "the node may still redeem; `sworn channel close {channel}` again {} returns the rest",
                times::relative(closing.closeAt.to(), chain.now().await?)
            ));
            Ok(vec![receipt])
        }
        ChannelState::Closing if now > state.closeAt.to::<u64>() => {
            let receipt = account.send(channels, &IChannels::closeCall { channelId: channel }).await?;
            note("the rest is in your balance: `sworn channel withdraw` pays it out");
            Ok(vec![receipt])
        }
        ChannelState::Closing => Err(Fault::failed(format!(
            "the channel can be closed {}: its node may redeem until then",
            times::relative(state.closeAt.to(), now)
        ))),
        ChannelState::Closed => Err(Fault::failed("the channel is closed")),
        _ => Err(unknown(channel)),
    }
}

fn unknown(channel: B256) -> Fault {
    Fault::failed(format!("there is no channel {channel} on this chain: `sworn channel list` shows yours"))
}

async fn show(link: &Link, id: B256) -> Result<Shown> {
    let c = link.chain.channels().channel(id).call().await.viewed()?;
    let state = match c.state {
        ChannelState::Open => "open",
        ChannelState::Closing => "closing",
        ChannelState::Closed => "closed",
        _ => return Err(unknown(id)),
    };
    Ok(Shown {
        channel: id,
        user: c.user,
        node: c.node,
        signer: c.signer,
        state,
        deposit: c.deposit.to_string(),
        claimed: c.claimed.to_string(),
        redeemed: c.sequence,
        close_at: c.closeAt.to(),
    })
}

/// Every channel that was opened by a user, or to a node, or by one to the other.
async fn opened(link: &Link, user: Option<Address>, node: Option<Address>) -> Result<Vec<(B256, Address)>> {
    let signature = Some(IChannels::ChannelOpened::SIGNATURE_HASH);
    let topics = [signature, None, user.and_then(indexed), node.and_then(indexed)];
    let said = history::events(link, &[link.chain.deployment().channels], topics).await?;
    let channel = |said: history::Said| match said.event {
        Event::Channels(IChannelsEvents::ChannelOpened(e)) => Some((e.channelId, e.node)),
        _ => None,
    };
    Ok(said.into_iter().filter_map(channel).collect())
}

/// Every channel that a user has opened, with its node.
pub(super) async fn of_user(link: &Link, user: Address) -> Result<Vec<(B256, Address)>> {
    opened(link, Some(user), None).await
}

async fn list(settings: &Settings, of: Address, all: bool) -> Result<()> {
    let link = Link::open(settings).await?;
    let mut found = of_user(&link, of).await?;
    found.extend(opened(&link, None, Some(of)).await?);
    let mut shown: Vec<Shown> = Vec::new();
    for (channel, _) in found {
        if shown.iter().all(|s| s.channel != channel) {
            let one = show(&link, channel).await?;
            if all || one.state != "closed" {
                shown.push(one);
            }
        }
    }
    let balance = link.chain.channels().balanceOf(of).call().await.viewed()?;
    print(settings, &link, &shown).await?;
    note(format!("{} is in no channel", link.currency.show(balance)));
    Ok(())
}

async fn print(settings: &Settings, link: &Link, shown: &[Shown]) -> Result<()> {
    let now = link.chain.now().await?;
    let money = |digits: &str| link.currency.show(digits.parse::<U256>().unwrap_or_default());
    settings.out.result(&shown, |shown| {
        let mut table = crate::output::table(["channel", "node", "state", "holds", "claimed", "receipts redeemed"]);
        for s in shown.iter() {
            let state = match s.close_at {
                0 => s.state.to_owned(),
                at if s.state == "closing" => format!("closing, {}", times::relative(at, now)),
                _ => s.state.to_owned(),
            };
            table.add_row([
                s.channel.to_string(),
                s.node.to_string(),
                state,
                money(&s.deposit),
                money(&s.claimed),
                s.redeemed.to_string(),
            ]);
        }
        table.to_string()
    })
}
