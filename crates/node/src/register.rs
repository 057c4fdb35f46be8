//! Makes true on chain what the operator wants to be true.

use alloy::primitives::{Address, U256, Uint};
use sworn_bindings::{IERC20, INodes};
use sworn_chain::{Intent, Receipt, Sender};

use crate::{Error, EventSink, NodeEvent, Offer, Registration, Result};

/// How long a session key is authorised for, in seconds.
const SESSION_LIFE: u64 = 90 * 86_400;
/// A key with less than this left is authorised anew.
const SESSION_REST: u64 = 30 * 86_400;

/// Compares with the chain and posts what differs; a repetition posts nothing.
pub(crate) async fn register(r: &Registration, sender: &Sender, sink: &EventSink) -> Result<()> {
    let chain = sender.chain();
    let (me, nodes) = (sender.account(), chain.deployment().nodes);
    let told = |what: String, receipt: Receipt| sink.emit(NodeEvent::Registered { what, receipt });

    for offer in &r.offers {
        if !chain.models().exists(offer.model).call().await.map_err(sworn_chain::Error::from)? {
            return Err(Error::Unregistered(offer.model));
        }
    }

    let node = chain.nodes().node(me).call().await.map_err(sworn_chain::Error::from)?;
    let endpoint = r.endpoint.clone().unwrap_or_else(|| node.endpoint.clone());
    let capacity = r.capacity.unwrap_or(node.capacity);
    if endpoint != node.endpoint || capacity != node.capacity {
        let what = format!("endpoint {endpoint}, capacity {capacity}");
        let key = format!("configure/{capacity}/{endpoint}");
        told(what, sender.again(&Intent::call(key, nodes, &INodes::configureCall { endpoint, capacity })).await?);
    }

    if let Some(missing) = r.stake.checked_sub(node.stake.saturating_sub(node.unbonding)).filter(|m| *m > 0) {
        approve(sender, nodes, U256::from(missing)).await?;
        let call = INodes::depositCall { amount: missing };
        let receipt = sender.again(&Intent::call(format!("deposit/{missing}"), nodes, &call)).await?;
        told(format!("stake {}", r.stake), receipt);
    }

    for offer in &r.offers {
        let ask = chain.nodes().ask(me, offer.model).call().await.map_err(sworn_chain::Error::from)?;
        let wanted = INodes::Ask {
            perInputToken: offer.per_input_token,
            perOutputToken: offer.per_output_token,
            maxTokens: offer.max_tokens,
        };
        if ask != wanted {
            let call = INodes::setAskCall {
                modelId: offer.model,
                perInputToken: offer.per_input_token,
                perOutputToken: offer.per_output_token,
                maxTokens: offer.max_tokens,
            };
            let Offer { model, per_input_token, per_output_token, max_tokens } = offer;
            let key = format!("ask/{model}/{per_input_token}/{per_output_token}/{max_tokens}");
            told(format!("ask for {model}"), sender.again(&Intent::call(key, nodes, &call)).await?);
        }
    }
    Ok(())
}

/// Authorises the key that signs receipts, if it is not the account's own: anew when its time is almost over. One that is not valid is
/// authorised by a node that starts (`fresh`) alone: to one that runs on and on it was revoked, and stays so.
pub(crate) async fn session_key(key: Address, fresh: bool, sender: &Sender, sink: &EventSink) -> Result<()> {
    let Some(left) = rest(key, sender).await? else { return Ok(()) };
    if left >= SESSION_REST || (left == 0 && !fresh) {
        return Ok(());
    }
    let chain = sender.chain();
    let valid_until = chain.now().await?.saturating_add(SESSION_LIFE);
    let call = INodes::setSessionKeyCall { key, validUntil: Uint::from(valid_until) };
    let receipt = sender.again(&Intent::call(format!("session/{key}"), chain.deployment().nodes, &call)).await?;
    sink.emit(NodeEvent::Registered { what: format!("session key {key}"), receipt });
    Ok(())
}

/// For how many seconds a key is still authorised; none if it is the account's own.
async fn rest(key: Address, sender: &Sender) -> Result<Option<u64>> {
    let (chain, me) = (sender.chain(), sender.account());
    if key == me {
        return Ok(None);
    }
    let until = chain.nodes().sessionKey(me, key).call().await.map_err(sworn_chain::Error::from)?;
    Ok(Some(until.to::<u64>().saturating_sub(chain.now().await?)))
}

/// Lets `spender` take at least `amount`.
async fn approve(sender: &Sender, spender: Address, amount: U256) -> Result<()> {
    let token = sender.chain().token();
    let allowed = token.allowance(sender.account(), spender).call().await.map_err(sworn_chain::Error::from)?;
    if allowed < amount {
        let call = IERC20::approveCall { spender, value: amount };
        sender.again(&Intent::call(format!("approve/{amount}"), *token.address(), &call)).await?;
    }
    Ok(())
}
