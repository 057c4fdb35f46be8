//! The channels that a key signs for, as the chain has them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use sworn_bindings::{ChannelState, IChannels, INodes};
use sworn_chain::{Chain, Error, REACH, Result};

use crate::peer::ChannelInfo;
use crate::router::Router;
use crate::score::Record;

/// Blocks that are asked for at a time.
const RANGE: u64 = 5_000;

/// Reads channels from the chain.
#[derive(Debug)]
pub struct Follower {
    chain: Chain,
    signer: Address,
    /// Channels with their nodes.
    known: BTreeMap<B256, Address>,
    /// Keys that nodes have set.
    keys: BTreeMap<Address, Vec<Address>>,
    next: u64,
}

impl Follower {
    /// Of the channels whose vouchers `signer` signs.
    pub fn new(chain: Chain, signer: Address) -> Self {
        let next = chain.deployment().block;
        Follower { chain, signer, known: BTreeMap::new(), keys: BTreeMap::new(), next }
    }

    /// The open channels now.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn channels(&mut self) -> Result<Vec<ChannelInfo>> {
        let head = self.chain.head().await?;
        // Blocks that were read may have been replaced since, and another server may know more of them.
        self.next = self.next.saturating_sub(REACH).max(self.chain.deployment().block);
        while self.next <= head.number {
            let to = (self.next + RANGE - 1).min(head.number);
            self.read(self.next, to).await?;
            self.next = to + 1;
        }
        let mut open = Vec::new();
        let (channels, nodes) = (self.chain.channels(), self.chain.nodes());
        for (id, node) in &self.known {
            let channel = channels.channel(*id).call().await.map_err(Error::from)?;
            if channel.state != ChannelState::Open || channel.signer != self.signer {
                continue;
            }
            let state = nodes.node(*node).call().await.map_err(Error::from)?;
            if state.endpoint.is_empty() || state.convicted {
                continue;
            }
            let mut keys = Vec::new();
            for key in self.keys.get(node).into_iter().flatten() {
                // An offer or a receipt of a key that is not valid any more would not be redeemable.
                if nodes.actsFor(*node, *key).call().await.map_err(Error::from)? {
                    keys.push(*key);
                }
            }
            let record =
                Record { served: state.served.into(), timed_out: state.timedOut.into(), slashed: state.slashed.into() };
            let endpoint = state.endpoint;
            open.push(ChannelInfo { id: *id, node: *node, endpoint, keys, deposit: channel.deposit, record });
        }
        Ok(open)
    }

    async fn read(&mut self, from: u64, to: u64) -> Result<()> {
        let d = self.chain.deployment();
        let opened = Filter::new()
            .address(vec![d.channels, d.nodes])
            .event_signature(vec![IChannels::ChannelOpened::SIGNATURE_HASH, INodes::SessionKeySet::SIGNATURE_HASH])
            .from_block(from)
            .to_block(to);
        for log in self.chain.provider().get_logs(&opened).await? {
            if let Ok(e) = IChannels::ChannelOpened::decode_log(&log.inner) {
                if e.signer == self.signer {
                    self.known.insert(e.channelId, e.node);
                }
            } else if let Ok(e) = INodes::SessionKeySet::decode_log(&log.inner) {
                let keys = self.keys.entry(e.node).or_default();
                if !keys.contains(&e.key) {
                    keys.push(e.key);
                }
            }
        }
        Ok(())
    }

    /// Tells a router of every change, until it is dropped.
    pub async fn follow(mut self, router: Arc<Router>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            match self.channels().await {
                Ok(channels) => router.set_channels(channels),
                Err(error) => tracing::warn!(%error, "channels cannot be read from the chain"),
            }
        }
    }
}
