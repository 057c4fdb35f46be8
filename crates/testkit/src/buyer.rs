//! Somebody who buys answers with vouchers, and keeps the receipts.

use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use sworn_bindings::{IChannels, IERC20};
use sworn_receipts::{Ask, Client, ClientOptions, Domain, Event, SignedReceipt, check_answer, sign_sync};

use crate::devnet::DevnetError;
use crate::scenario::Stage;

type Result<T, E = DevnetError> = std::result::Result<T, E>;

/// A channel from the stage's user to its node.
#[derive(Debug)]
pub struct Buyer {
    /// Its id.
    pub channel: B256,
    /// Who must have signed receipts: the node's account, or a session key of it.
    pub node_key: Address,
    domain: Domain,
    client: Client,
    key: PrivateKeySigner,
    model: B256,
    node: Address,
    requests: u64,
    /// What was promised so far: more than it costs.
    promised: u128,
}

impl Buyer {
    /// Deposits, and opens a channel to the stage's node, which serves already.
    ///
    /// # Errors
    /// The chain refuses.
    pub async fn open(stage: &Stage, amount: u128) -> Result<Self> {
        let d = &stage.net.deployment;
        let (user, node) = (&stage.user, stage.operator.address());
        let approve = IERC20::approveCall { spender: d.channels, value: U256::from(amount) };
        user.send("approve channels", d.token, &approve).await?;
        user.send("deposit", d.channels, &IChannels::depositCall { amount }).await?;
        let (key, salt) = (PrivateKeySigner::random(), B256::repeat_byte(1));
        let open = IChannels::openCall { node, signer: key.address(), amount, salt };
        user.send("open", d.channels, &open).await?;
        let channel = stage.net.chain.channels().channelIdOf(user.address(), node, salt).call().await;
        Ok(Buyer {
            channel: channel.map_err(DevnetError::other)?,
            domain: Domain { chain_id: d.chain_id, channels: d.channels },
            client: Client::new(&format!("http://{}", stage.listen), ClientOptions::default())
                .map_err(DevnetError::other)?,
            key,
            model: stage.model.id().into(),
            node,
            node_key: node,
            requests: 0,
            promised: 0,
        })
    }

    /// A receipt as a gateway keeps it.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn file(&self, prompt: &[u32], tokens: &[u32], signed: &SignedReceipt) -> Result<serde_json::Value> {
        let mut file = serde_json::to_value(signed).map_err(DevnetError::other)?;
        file["format"] = "sworn-receipt/1".into();
        file["domain"] = serde_json::to_value(self.domain).map_err(DevnetError::other)?;
        file["node"] = self.node.to_string().into();
        file["digest"] = self.domain.digest(&signed.receipt).to_string().into();
        file["input_tokens"] = prompt.into();
        file["tokens"] = tokens.into();
        Ok(file)
    }

    /// Buys an answer; the receipt is of these tokens, signed by the node.
    ///
    /// # Errors
    /// The node refuses, or its receipt is not of this answer.
    pub async fn ask(&mut self, prompt: &[u32], max_new: u32) -> Result<(Vec<u32>, SignedReceipt)> {
        let offers = self.client.offers().await.map_err(DevnetError::other)?;
        let offer = offers.into_iter().find(|o| o.offer.modelId == self.model);
        let offer = offer.ok_or_else(|| DevnetError::other("the node does not offer the model"))?;
        self.requests += 1;
        let mut ask = Ask {
            request: self.requests,
            model: self.model,
            prompt: prompt.to_vec(),
            max_new,
            sampling: U256::ZERO,
            seed: B256::ZERO,
            cumulative: 0,
            voucher: Default::default(),
            offer,
            logprobs: None,
        };
        self.promised += ask.maximum().ok_or_else(|| DevnetError::other("a price beyond 128 bits"))?;
        ask.cumulative = self.promised;
        let voucher = ask.voucher(self.channel).ok_or_else(|| DevnetError::other("sampling that does not exist"))?;
        ask.voucher = sign_sync(&self.key, &self.domain, &voucher).map_err(DevnetError::other)?.into();
        let mut answer = self.client.ask(self.channel, &ask).await.map_err(DevnetError::other)?;
        let mut tokens = Vec::new();
        while let Some(event) = answer.next().await.map_err(DevnetError::other)? {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Receipt { signed, .. } => {
                    check_answer(&self.domain, self.channel, &ask, &tokens, &signed, |a| a == self.node_key)
                        .map_err(DevnetError::other)?;
                    return Ok((tokens, signed));
                }
                Event::Error(e) => return Err(DevnetError::other(e)),
            }
        }
        Err(DevnetError::other("the stream ended without a receipt"))
    }
}
