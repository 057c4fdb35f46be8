//! Events as values.

use alloy::primitives::{Address, LogData, U256};
use alloy::sol_types::SolEventInterface;

use crate::{Deployment, IChallenges, IChannels, IMarket, IModels, INodes, ITrials};

/// Anything Sworn's contracts say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "one variant per contract")]
pub enum Event {
    Models(IModels::IModelsEvents),
    Nodes(INodes::INodesEvents),
    Market(IMarket::IMarketEvents),
    Channels(IChannels::IChannelsEvents),
    Trials(ITrials::ITrialsEvents),
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
            a if a == deployment.channels => {
                IChannels::IChannelsEvents::decode_raw_log(topics, data).ok().map(Event::Channels)
            }
            a if a == deployment.trials => ITrials::ITrialsEvents::decode_raw_log(topics, data).ok().map(Event::Trials),
            a if a == deployment.challenges => {
                IChallenges::IChallengesEvents::decode_raw_log(topics, data).ok().map(Event::Challenges)
            }
            _ => None,
        }
    }

    /// The job, or the receipt on trial, that it is about, if it is about one.
    pub fn job(&self) -> Option<U256> {
        match self {
            Event::Market(e) => e.job(),
            Event::Challenges(e) => Some(e.job()),
            Event::Trials(ITrials::ITrialsEvents::ReceiptLodged(e)) => Some(e.jobId),
            Event::Trials(ITrials::ITrialsEvents::TrialAttached(e)) => Some(e.jobId),
            Event::Trials(ITrials::ITrialsEvents::TrialAcquitted(e)) => Some(e.jobId),
            _ => None,
        }
    }
}

impl IChallenges::IChallengesEvents {
    /// The job it is about.
    pub fn job(&self) -> U256 {
        match self {
            Self::Demanded(e) => e.jobId,
            Self::DepthLowered(e) => e.jobId,
            Self::Answered(e) => e.jobId,
            Self::Announced(e) => e.jobId,
            Self::FraudProven(e) => e.jobId,
            Self::TimedOut(e) => e.jobId,
            Self::RewardContested(e) => e.jobId,
            Self::RewardSettled(e) => e.jobId,
            Self::FeesReclaimed(e) => e.jobId,
        }
    }
}

impl IMarket::IMarketEvents {
    /// The job it is about, if it is about one.
    pub fn job(&self) -> Option<U256> {
        Some(match self {
            Self::JobCreated(e) => e.jobId,
            Self::JobAccepted(e) => e.jobId,
            Self::ResultSubmitted(e) => e.jobId,
            Self::JobFinalized(e) => e.jobId,
            Self::JobExpired(e) => e.jobId,
            Self::JobCancelled(e) => e.jobId,
            Self::JobSlashed(e) => e.jobId,
            Self::Credited(e) => e.jobId,
            Self::Withdrawn(_) => return None,
        })
    }
}
