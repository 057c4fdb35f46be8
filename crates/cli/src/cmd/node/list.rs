//! `sworn node list`: every node with its price, stake and record, all of it from the chain.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;
use sworn_bindings::IChannels::IChannelsEvents;
use sworn_bindings::IMarket::IMarketEvents;
use sworn_bindings::INodes::INodesEvents;
use sworn_bindings::{Event, is_receipt};

use crate::args::{ListNodes, NodeOrder};
use crate::fault::Result;
use crate::history;
use crate::link::{Link, Viewed};
use crate::models;
use crate::settings::Settings;
use crate::times;

/// A node's record. Amounts are in the token's smallest unit.
#[derive(Clone, Debug, Default, Serialize)]
struct Row {
    node: Address,
    endpoint: String,
    /// none: the model is not offered
    per_input_token: Option<String>,
    per_output_token: Option<String>,
    stake: String,
    served: u32,
    timed_out: u32,
    slashed: u32,
    convicted: bool,
    /// receipts in batches that were paid
    receipts: u64,
    /// what users have paid it in all, by job and by receipt: the part of a record that cannot be had for nothing
    volume: String,
    /// seconds since it registered
    age: u64,
    #[serde(skip)]
    price: Option<u128>,
    #[serde(skip)]
    paid: U256,
    #[serde(skip)]
    staked: u128,
}

pub(super) async fn run(settings: &Settings, command: ListNodes) -> Result<()> {
    let link = Link::open(settings).await?;
    let model: B256 = models::load(settings, &command.model)?.id().into();
    let mut rows = gather(&link, model).await?;
    if command.offering {
        rows.retain(|r| r.price.is_some() && !r.convicted);
    }
    sort(&mut rows, command.sort);
    rows.truncate(usize::try_from(command.limit).unwrap_or(usize::MAX));
    let currency = &link.currency;
    settings.out.result(&rows, |rows| {
        if rows.is_empty() {
            return "no node".to_owned();
        }
        let titles = ["node", "input", "output", "stake", "paid volume", "served", "late", "slashed", "age"];
        let mut table = crate::output::table(titles);
        let money = |amount: &str| currency.show(amount.parse().unwrap_or_default());
        for r in rows {
            let price = |p: &Option<String>| p.as_deref().map_or_else(|| "-".to_owned(), money);
            table.add_row([
                if r.convicted { format!("{} convicted", r.node) } else { r.node.to_string() },
                price(&r.per_input_token),
                price(&r.per_output_token),
                money(&r.stake),
                money(&r.volume),
                (u64::from(r.served) + r.receipts).to_string(),
                r.timed_out.to_string(),
                r.slashed.to_string(),
                times::span(r.age),
            ]);
        }
        table.to_string()
    })
}

/// Nodes that offer a model and are not convicted, those with the best record first.
pub(in crate::cmd) async fn by_record(link: &Link, model: B256) -> Result<Vec<Address>> {
    let mut rows = gather(link, model).await?;
    rows.retain(|r| r.price.is_some() && !r.convicted && !r.endpoint.is_empty());
    sort(&mut rows, NodeOrder::Record);
    Ok(rows.into_iter().map(|r| r.node).collect())
}

/// The middle of what nodes ask that offer the model and are not convicted, for a prompt and an output token.
pub(super) async fn market(link: &Link, model: B256) -> Result<(Option<U256>, Option<U256>)> {
    let rows = gather(link, model).await?;
    let median = |price: fn(&Row) -> Option<&String>| {
        let offering = rows.iter().filter(|r| !r.convicted);
        let mut asked: Vec<U256> = offering.filter_map(|r| price(r)?.parse().ok()).collect();
        asked.sort();
        asked.get(asked.len() / 2).copied()
    };
    Ok((median(|r| r.per_input_token.as_ref()), median(|r| r.per_output_token.as_ref())))
}

/// Reads all nodes.
async fn gather(link: &Link, model: B256) -> Result<Vec<Row>> {
    let d = link.chain.deployment().clone();
    let all = [None; 4];
    let mut rows: BTreeMap<Address, Row> = BTreeMap::new();
    let mut begun: BTreeMap<Address, u64> = BTreeMap::new();
    for said in history::events(link, &[d.nodes], all).await? {
        if let Event::Nodes(INodesEvents::NodeUpdated(e)) = said.event {
            rows.entry(e.node).or_insert_with(|| Row { node: e.node, ..Row::default() });
            let first = begun.entry(e.node).or_insert(said.block);
            *first = said.block.min(*first);
        }
    }
    let (mut of_job, mut pay) = (BTreeMap::new(), Vec::new());
    for said in history::events(link, &[d.market], all).await? {
        match said.event {
            Event::Market(IMarketEvents::ResultSubmitted(e)) if !is_receipt(e.jobId) => {
                of_job.insert(e.jobId, e.node);
            }
            Event::Market(IMarketEvents::JobFinalized(e)) => pay.push((e.jobId, e.paid)),
            _ => {}
        }
    }
    let mut earn = |node: &Address, amount: U256, receipts: u64| {
        if let Some(row) = rows.get_mut(node) {
            row.paid = row.paid.saturating_add(amount);
            row.receipts += receipts;
        }
    };
    for (job, paid) in pay {
        if let Some(node) = of_job.get(&job) {
            earn(node, paid, 0);
        }
    }
    let mut batches: BTreeMap<U256, u64> = BTreeMap::new();
    let mut released = Vec::new();
    for said in history::events(link, &[d.channels], all).await? {
        match said.event {
            Event::Channels(IChannelsEvents::BatchRedeemed(e)) => {
                batches.insert(e.batchId, history::receipts(&e.parts));
            }
            Event::Channels(IChannelsEvents::BatchReleased(e)) => released.push((e.batchId, e.node, e.amount)),
            _ => {}
        }
    }
    for (batch, node, amount) in released {
        earn(&node, U256::from(amount), batches.get(&batch).copied().unwrap_or(0));
    }

    let (nodes, now) = (link.chain.nodes(), link.chain.now().await?);
    let mut out = Vec::with_capacity(rows.len());
    for (address, mut row) in rows {
        let node = nodes.node(address).call().await.viewed()?;
        let ask = nodes.ask(address, model).call().await.viewed()?;
        if ask.maxTokens > 0 {
            row.per_input_token = Some(ask.perInputToken.to_string());
            row.per_output_token = Some(ask.perOutputToken.to_string());
            row.price = Some(ask.perInputToken.saturating_add(ask.perOutputToken));
        }
        let since = link.chain.block(begun[&address].into()).await?.map_or(now, |b| b.timestamp);
        (row.endpoint, row.convicted) = (node.endpoint, node.convicted);
        (row.served, row.timed_out, row.slashed) = (node.served, node.timedOut, node.slashed);
        (row.stake, row.staked) = (node.stake.to_string(), node.stake);
        (row.volume, row.age) = (row.paid.to_string(), now.saturating_sub(since));
        out.push(row);
    }
    Ok(out)
}

fn sort(rows: &mut [Row], by: NodeOrder) {
    match by {
        NodeOrder::Price => {
            rows.sort_by_key(|r| (r.convicted, r.price.unwrap_or(u128::MAX), std::cmp::Reverse(r.paid)))
        }
        NodeOrder::Stake => rows.sort_by_key(|r| std::cmp::Reverse(r.staked)),
        NodeOrder::Volume => rows.sort_by_key(|r| (r.convicted, std::cmp::Reverse(r.paid))),
        NodeOrder::Age => rows.sort_by_key(|r| (r.convicted, std::cmp::Reverse(r.age))),
        // Faults count for what was paid beside them: a fresh name has no faults, but nothing to weigh against them either.
        NodeOrder::Record => rows.sort_by(|a, b| {
            let faults = |r: &Row| U256::from(u64::from(r.timed_out) + 10 * u64::from(r.slashed));
            let weight = |r: &Row| r.paid.saturating_add(U256::ONE);
            let share = |r: &Row, other: &Row| faults(r).saturating_mul(weight(other));
            let key = (a.convicted, share(a, b)).cmp(&(b.convicted, share(b, a)));
            key.then(b.paid.cmp(&a.paid)).then(b.age.cmp(&a.age))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u8, paid: u64, slashed: u32, convicted: bool, price: u128) -> Row {
        let node = Address::repeat_byte(n);
        Row { node, paid: U256::from(paid), slashed, convicted, price: Some(price), age: 10, ..Row::default() }
    }

    fn order(by: NodeOrder) -> Vec<u8> {
        let mut rows =
            [row(1, 0, 0, false, 9), row(2, 1_000, 1, false, 5), row(3, 10, 1, false, 7), row(4, 5_000, 0, true, 1)];
        sort(&mut rows, by);
        rows.iter().map(|r| r.node.0[0]).collect()
    }

    #[test]
    fn records_weigh_faults_by_what_was_paid() {
        // One fault in a thousand weighs less than one in ten; a convicted node is last whatever it earned.
        assert_eq!(order(NodeOrder::Record), [1, 2, 3, 4]);
        assert_eq!(order(NodeOrder::Volume), [2, 3, 1, 4]);
        assert_eq!(order(NodeOrder::Price), [2, 3, 1, 4]);
    }
}
