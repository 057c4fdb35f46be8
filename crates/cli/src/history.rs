//! What the contracts have said, read from logs.

use alloy::primitives::{Address, B256, U256};
use alloy::providers::Provider;
use alloy::rpc::types::{Filter, FilterSet, Topic};
use sworn_bindings::{Event, Part};

use crate::fault::Result;
use crate::link::Link;

/// An event and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    /// What was said.
    pub(crate) event: Event,
    /// Block number.
    pub(crate) block: u64,
    /// Transaction.
    pub(crate) transaction: B256,
    /// The block's time, if the server tells it with the log.
    pub(crate) time: Option<u64>,
}

/// Events of a contract, oldest first. `topics` are the event's signature and its indexed values; `None` matches all.
pub(crate) async fn events(link: &Link, contracts: &[Address], topics: [Option<B256>; 4]) -> Result<Vec<Said>> {
    let deployment = link.chain.deployment();
    let last = link.chain.head().await?.number;
    let filter = Filter {
        address: FilterSet::from(contracts.to_vec()),
        topics: topics.map(|t| t.map_or_else(Topic::default, Topic::from)),
        ..Filter::default()
    };
    let mut found = Vec::new();
    // Servers limit blocks or results of a request, each in its own way: a range that is refused is read in halves.
    let mut ranges = vec![(deployment.block, last)];
    while let Some((from, to)) = ranges.pop() {
        match link.chain.provider().get_logs(&filter.clone().from_block(from).to_block(to)).await {
            Ok(logs) => found.extend(logs.iter().filter_map(|log| {
                Some(Said {
                    event: Event::decode(deployment, log.address(), log.data())?,
                    block: log.block_number?,
                    transaction: log.transaction_hash?,
                    time: log.block_timestamp,
                })
            })),
            Err(e) if e.as_error_resp().is_some() && from < to => {
                let middle = from + (to - from) / 2;
                ranges.push((middle + 1, to));
                ranges.push((from, middle));
            }
            Err(e) => return Err(sworn_chain::Error::from(e).into()),
        }
    }
    Ok(found)
}

/// All that market, trials and challenges have said of a job.
pub(crate) async fn of_job(link: &Link, job: U256) -> Result<Vec<Said>> {
    let d = link.chain.deployment();
    events(link, &[d.market, d.trials, d.challenges], [None, Some(job.into()), None, None]).await
}

/// How many receipts the parts of a batch claim for.
pub(crate) fn receipts(parts: &[Part]) -> u64 {
    parts.iter().map(|p| (p.last - p.first).saturating_add(1)).fold(0, u64::saturating_add)
}

/// An account as an indexed value.
pub(crate) fn account(address: Address) -> Option<B256> {
    Some(address.into_word())
}
