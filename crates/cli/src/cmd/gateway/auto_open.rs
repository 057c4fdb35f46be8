//! `sworn gateway --auto-open`: channels are opened and topped up as they are needed, within a limit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256};
use serde::Serialize;
use sworn_bindings::ChannelState;
use sworn_gateway::Router;

use crate::amount::Currency;
use crate::args;
use crate::cmd::{channel, node};
use crate::fault::{Fault, Result};
use crate::link::{Account, Viewed};
use crate::output::Output;

/// How often the channels are looked at while nobody lacks anything.
const EVERY: Duration = Duration::from_secs(10);
/// Rest after a failure, and between two looks for nodes when there are too few.
const REST: Duration = Duration::from_secs(30);

/// What an operator has said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// What a channel is opened with, and topped up by.
    each: u128,
    /// Channels for a model.
    nodes: usize,
    /// What open channels may hold in all.
    limit: u128,
}

impl Terms {
    pub(super) fn of(flags: &args::AutoOpen, currency: &Currency) -> Result<Option<Self>> {
        let Some(each) = &flags.auto_open else { return Ok(None) };
        let each = currency.parse(each)?;
        let limit = match &flags.auto_open_limit {
            Some(limit) => currency.parse(limit)?,
            None => each.saturating_mul(10),
        };
        if each == 0 || limit < each {
            return Err(Fault::usage("--auto-open is more than nothing and at most --auto-open-limit"));
        }
        Ok(Some(Terms { each, nodes: flags.auto_open_nodes.get().into(), limit }))
    }

    /// What is to be added to which channel, and how many channels are missing for a model whose nodes are `offering`. `held` is
    /// what open channels hold now.
    fn plan(&self, purses: &[Own], offering: &[Address], mut held: u128) -> (Vec<B256>, Vec<Address>) {
        let mut room = |amount: u128| {
            let fits = held.checked_add(amount).is_some_and(|sum| sum <= self.limit);
            if fits {
                held += amount;
            }
            fits
        };
        let usable: Vec<&Own> = purses.iter().filter(|p| p.usable && offering.contains(&p.node)).collect();
        let low = usable.iter().filter(|p| p.left < self.each.div_ceil(2));
        let top_up = low.filter(|_| room(self.each)).map(|p| p.channel).collect();
        let new = offering.iter().filter(|n| !purses.iter().any(|p| p.node == **n));
        let missing = self.nodes.saturating_sub(usable.len());
        (top_up, new.take(missing).filter(|_| room(self.each)).copied().collect())
    }
}

/// A channel of the gateway's own account, as the chain has it now.
#[derive(Clone, Copy, Debug)]
struct Own {
    channel: B256,
    node: Address,
    /// What is neither owed nor promised.
    left: u128,
    usable: bool,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Told {
    ChannelOpened { channel: B256, node: Address, amount: String },
    ChannelToppedUp { channel: B256, amount: String },
}

pub(super) struct AutoOpen {
    account: Account,
    router: Arc<Router>,
    models: Vec<B256>,
    terms: Terms,
    out: Output,
    /// Channels of the account that are not closed, with their nodes, and when this opened them; none: not read yet.
    known: Option<BTreeMap<B256, (Address, Option<Instant>)>>,
    /// Nodes that offer each model, and when they were read.
    offering: BTreeMap<B256, (Instant, Vec<Address>)>,
}

impl AutoOpen {
    pub(super) fn new(account: Account, router: Arc<Router>, models: Vec<B256>, terms: Terms, out: Output) -> Self {
        AutoOpen { account: account.quiet(), router, models, terms, out, known: None, offering: BTreeMap::new() }
    }

    /// Looks after the channels until it is dropped.
    pub(super) async fn keep(mut self) {
        loop {
            let rest = match self.step().await {
                Ok(()) => EVERY,
                Err(error) => {
                    tracing::error!(%error, account = %self.account.address(), "channels could not be opened or topped up");
                    // What is short stays short: the notice would only make it try at once.
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            tokio::select! {
                () = self.router.short() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn step(&mut self) -> Result<()> {
        for model in self.models.clone() {
            let each = self.terms.each;
            let (purses, held) = self.own().await?;
            let offering = self.offering(model, &purses).await?;
            let (top_up, new) = self.terms.plan(&purses, &offering, held);
            for id in top_up {
                channel::top_up(&self.account, id, each).await?;
                self.out.line(&Told::ChannelToppedUp { channel: id, amount: each.to_string() }, |_| {
                    format!(
                        "topped up  channel {id}  {}",
                        self.account.link.currency.show(alloy::primitives::U256::from(each))
                    )
                })?;
            }
            for node in new {
                let (id, _) = channel::open(&self.account, node, each, None).await?;
                self.known.get_or_insert_default().insert(id, (node, Some(Instant::now())));
                self.out.line(&Told::ChannelOpened { channel: id, node, amount: each.to_string() }, |_| {
                    format!("opened  channel {id}  node {node}")
                })?;
            }
        }
        Ok(())
    }

    /// The account's own channels, and what they hold in all: also those whose nodes are not asked any more, since their money is still
    /// there. Deposits are the chain's: the router may not have seen the last one.
    async fn own(&mut self) -> Result<(Vec<Own>, u128)> {
        if self.known.is_none() {
            let opened = channel::of_user(&self.account.link, self.account.address()).await?;
            self.known = Some(opened.into_iter().map(|(id, node)| (id, (node, None))).collect());
        }
        let Some(known) = &mut self.known else { return Ok((Vec::new(), 0)) };
        let (channels, purses) = (self.account.link.chain.channels(), self.router.channels());
        let (mut own, mut held) = (Vec::with_capacity(known.len()), 0u128);
        for (id, (node, opened)) in known.clone() {
            let c = channels.channel(id).call().await.viewed()?;
            if c.state == ChannelState::Closed {
                known.remove(&id);
                continue;
            }
            // Whose vouchers another key signs, is another gateway's.
            if c.signer != self.account.address() {
                continue;
            }
            held = held.saturating_add(c.deposit.saturating_sub(c.claimed));
            let purse = purses.iter().find(|p| p.channel == id);
            let spent = purse.map_or(0, |p| p.spent);
            // The router hears of a new channel a little later.
            let usable = purse.map_or(opened.is_some_and(|at| at.elapsed() < REST), |p| p.usable);
            own.push(Own { channel: id, node, left: c.deposit.saturating_sub(spent), usable });
        }
        Ok((own, held))
    }

    /// Nodes that offer a model: read anew when there are too few channels, but not all the time.
    async fn offering(&mut self, model: B256, purses: &[Own]) -> Result<Vec<Address>> {
        if let Some((read, nodes)) = self.offering.get(&model) {
            let served = purses.iter().filter(|p| p.usable && nodes.contains(&p.node)).count();
            if served >= self.terms.nodes || read.elapsed() < REST {
                return Ok(nodes.clone());
            }
        }
        let mut nodes = node::list::by_record(&self.account.link, model).await?;
        nodes.retain(|n| self.router.may_ask(*n));
        self.offering.insert(model, (Instant::now(), nodes.clone()));
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purse(n: u8, left: u128, usable: bool) -> Own {
        Own { channel: B256::repeat_byte(n), node: Address::repeat_byte(n), left, usable }
    }

    #[test]
    fn as_many_channels_as_wanted_and_no_more_than_the_limit() {
        let terms = Terms { each: 10, nodes: 2, limit: 35 };
        let nodes = [1, 2, 3, 4].map(Address::repeat_byte);
        let plan = |purses: &[Own], held| {
            let (top_up, new) = terms.plan(purses, &nodes, held);
            (top_up.iter().map(|c| c.0[0]).collect::<Vec<_>>(), new.iter().map(|n| n.0[0]).collect::<Vec<_>>())
        };
        assert_eq!(plan(&[], 0), (vec![], vec![1, 2]));
        assert_eq!(plan(&[], 20), (vec![], vec![1]), "the limit");
        assert_eq!(plan(&[purse(1, 10, true), purse(2, 5, true)], 15), (vec![], vec![]));
        assert_eq!(plan(&[purse(1, 4, true), purse(2, 0, true)], 4), (vec![1, 2], vec![]));
        assert_eq!(plan(&[purse(1, 4, true), purse(2, 0, true)], 20), (vec![1], vec![]), "room for one");
        // One that cannot be asked is not filled, and another takes its place.
        assert_eq!(plan(&[purse(1, 0, false), purse(2, 9, true)], 9), (vec![], vec![3]));
        // Nor one whose node does not offer the model.
        assert_eq!(plan(&[purse(9, 0, true)], 0), (vec![], vec![1, 2]));
        assert_eq!(plan(&[], u128::MAX), (vec![], vec![]));
    }
}
