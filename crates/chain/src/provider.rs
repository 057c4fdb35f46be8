//! A checked connection to one deployment.

use std::sync::Arc;
use std::time::Duration;

use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::network::{Ethereum, TransactionBuilder};
use alloy::primitives::{Address, B256, Bytes};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use alloy::sol_types::SolCall;
use alloy::transports::http::reqwest::Url;
use alloy::transports::layers::RetryBackoffLayer;
use sworn_bindings::{
    Deployment, Event, IChallenges, IChannels, ICourt, IERC20, IMarket, IModels, INodes, IStepVerifier, ITrials,
};

use crate::retry::Patience;
use crate::{Error, Result};

/// Times a request is repeated before its caller hears of the failure.
const RETRIES: u32 = 4;
/// How long an answer may take before the request is repeated: a server that says nothing must not hold up an agent.
const SILENCE: Duration = Duration::from_secs(20);
/// Pause before each repetition.
const PAUSE_MS: u64 = 250;

/// A block, as far as an agent cares: the chain's clock is `timestamp`, never the wall's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Block number.
    pub number: u64,
    /// Block hash.
    pub hash: B256,
    /// Seconds.
    pub timestamp: u64,
    /// Gas that fits a block.
    pub gas_limit: u64,
    /// Per gas; none before EIP-1559.
    pub base_fee: Option<u64>,
}

/// A connection to the chain that a deployment is on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chain {
    provider: DynProvider,
    deployment: Arc<Deployment>,
    genesis: B256,
    url: Arc<str>,
    poll: Duration,
}

impl Chain {
    /// Connects and checks: somebody answers, it is the deployment's chain, every contract has code.
    ///
    /// # Errors
    /// One of these does not hold.
    pub async fn connect(rpc: &str, deployment: Deployment) -> Result<Self> {
        let url: Url = rpc.parse().map_err(|_| Error::Url { url: rpc.to_owned() })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Url { url: rpc.to_owned() });
        }
        let local = url.host_str().is_some_and(|h| h == "localhost" || h == "[::1]" || h.starts_with("127."));
        // Shown in errors and logs: an RPC's path or user part may be its access key.
        let shown = format!("{}://{}", url.scheme(), url.authority().rsplit('@').next().unwrap_or_default());
        let patience = RetryBackoffLayer::new_with_policy(RETRIES, PAUSE_MS, u64::MAX, Patience);
        let http = alloy::transports::http::reqwest::Client::builder().timeout(SILENCE).build();
        let http = http.map_err(|e| Error::Unreachable { url: shown.clone(), reason: e.to_string() })?;
        let client = RpcClient::builder().layer(patience).http_with_client(http, url);
        let provider = ProviderBuilder::new().disable_recommended_fillers().connect_client(client).erased();

        let unreachable =
            |e: alloy::transports::TransportError| Error::Unreachable { url: shown.clone(), reason: e.to_string() };
        let actual = provider.get_chain_id().await.map_err(unreachable)?;
        if actual != deployment.chain_id {
            return Err(Error::WrongChain { url: shown, actual, expected: deployment.chain_id });
        }
        for (name, address) in deployment.contracts() {
            if provider.get_code_at(address).await?.is_empty() {
                return Err(Error::NoContract { name, address, chain: actual });
            }
        }
        let genesis = match provider.get_block_by_number(BlockNumberOrTag::Earliest).await? {
            Some(block) => block.header.hash,
            None => return Err(Error::Answer("it has no first block".into())),
        };
        let poll = if local { Duration::from_millis(200) } else { Duration::from_secs(2) };
        Ok(Chain { provider, deployment: Arc::new(deployment), genesis, url: shown.into(), poll })
    }

    /// Sets how often the chain is asked for news (default: 0.2 s on this machine, 2 s elsewhere).
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }

    /// How often the chain is asked for news.
    pub fn poll(&self) -> Duration {
        self.poll
    }

    /// The RPC's address without what may be secret in it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the contracts are.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// Hash of the chain's first block: tells one devnet from the next.
    pub fn genesis(&self) -> B256 {
        self.genesis
    }

    /// For calls that this crate does not wrap.
    pub fn provider(&self) -> &DynProvider {
        &self.provider
    }

    /// The market.
    pub fn market(&self) -> IMarket::IMarketInstance<DynProvider> {
        IMarket::new(self.deployment.market, self.provider.clone())
    }

    /// The nodes.
    pub fn nodes(&self) -> INodes::INodesInstance<DynProvider> {
        INodes::new(self.deployment.nodes, self.provider.clone())
    }

    /// The models.
    pub fn models(&self) -> IModels::IModelsInstance<DynProvider> {
        IModels::new(self.deployment.models, self.provider.clone())
    }

    /// The challenges.
    pub fn challenges(&self) -> IChallenges::IChallengesInstance<DynProvider> {
        IChallenges::new(self.deployment.challenges, self.provider.clone())
    }

    /// Channels, and what receipts have earned in them.
    pub fn channels(&self) -> IChannels::IChannelsInstance<DynProvider> {
        IChannels::new(self.deployment.channels, self.provider.clone())
    }

    /// Receipts on trial.
    pub fn trials(&self) -> ITrials::ITrialsInstance<DynProvider> {
        ITrials::new(self.deployment.trials, self.provider.clone())
    }

    /// Receipts on trial, as challenges see them.
    pub fn receipt_court(&self) -> ICourt::ICourtInstance<DynProvider> {
        ICourt::new(self.deployment.trials, self.provider.clone())
    }

    /// The judge.
    pub fn step_verifier(&self) -> IStepVerifier::IStepVerifierInstance<DynProvider> {
        IStepVerifier::new(self.deployment.step_verifier, self.provider.clone())
    }

    /// The payment token.
    pub fn token(&self) -> IERC20::IERC20Instance<DynProvider> {
        IERC20::new(self.deployment.token, self.provider.clone())
    }

    /// The latest block.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn head(&self) -> Result<Head> {
        self.block(BlockNumberOrTag::Latest).await?.ok_or_else(|| Error::Answer("it has no latest block".into()))
    }

    /// The latest block's time, which decides deadlines.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn now(&self) -> Result<u64> {
        Ok(self.head().await?.timestamp)
    }

    /// A block by number or tag.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn block(&self, which: BlockNumberOrTag) -> Result<Option<Head>> {
        let block = self.provider.get_block_by_number(which).await?;
        Ok(block.map(|b| Head {
            number: b.header.number,
            hash: b.header.hash,
            timestamp: b.header.timestamp,
            gas_limit: b.header.gas_limit,
            base_fee: b.header.base_fee_per_gas,
        }))
    }

    /// A transaction's receipt; `None` while it is in no block.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn receipt(&self, hash: B256) -> Result<Option<TransactionReceipt>> {
        Ok(self.provider.get_transaction_receipt(hash).await?)
    }

    /// What Sworn's contracts said in a transaction, in order.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn events_of(&self, hash: B256) -> Result<Vec<Event>> {
        let receipt = self.receipt(hash).await?;
        let logs = receipt.iter().flat_map(|r| r.logs());
        Ok(logs.filter_map(|log| Event::decode(&self.deployment, log.address(), log.data())).collect())
    }

    /// Calls without sending; `what` names the call in errors.
    ///
    /// # Errors
    /// The call reverts, or the RPC fails.
    pub async fn simulate<C: SolCall>(&self, what: &str, from: Address, to: Address, call: &C) -> Result<C::Return> {
        let data = self.simulate_raw(what, from, to, call.abi_encode().into(), BlockId::latest()).await?;
        C::abi_decode_returns(&data).map_err(|e| Error::Answer(format!("{what}: {e}")))
    }

    pub(crate) async fn simulate_raw(
        &self,
        what: &str,
        from: Address,
        to: Address,
        data: Bytes,
        at: BlockId,
    ) -> Result<Bytes> {
        let request = TransactionRequest::default().with_from(from).with_to(to).with_input(data);
        <DynProvider as Provider<Ethereum>>::call(&self.provider, request)
            .block(at)
            .await
            .map_err(|e| Error::of_call(what, e))
    }
}
