//! Events as values.

use alloy::primitives::{Address, LogData};
use alloy::sol_types::SolEventInterface;

use crate::{Deployment, IChallenges, IMarket, IModels, INodes};

/// Anything Sworn's contracts say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "one variant per contract")]
pub enum Event {
    Models(IModels::IModelsEvents),
    Nodes(INodes::INodesEvents),
    Market(IMarket::IMarketEvents),
    Challenges(IChallenges::IChallengesEvents),
}

impl Event {
    /// Reads a log of one of the deployment's contracts; `None` for any other log.
    pub fn decode(deployment: &Deployment, address: Address, log: &LogData) -> Option<Self> {
        let (topics, data) = (log.topics(), &log.data);
        match address {
            a if a == deployment.models => IModels::IModelsEvents::decode_raw_log(topics, data).ok().map(Event::Models),
            a if a == deployment.nodes => INodes::INodesEvents::decode_raw_log(topics, data).ok().map(Event::Nodes),
            a if a == deployment.market => IMarket::IMarketEvents::decode_raw_log(topics, data).ok().map(Event::Market),
            a if a == deployment.challenges => {
                IChallenges::IChallengesEvents::decode_raw_log(topics, data).ok().map(Event::Challenges)
            }
            _ => None,
        }
    }
}
