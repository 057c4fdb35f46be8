//! Makes true on chain what the operator wants to be true.

use alloy::primitives::{Address, U256, Uint, keccak256};
use sworn_bindings::{IERC20, INodes};
use sworn_chain::{Intent, Receipt, Sender};

use crate::journal::Journal;
use crate::{Error, EventSink, NodeEvent, Registration, Result};

/// How long a session key is authorised for, in seconds.
const SESSION_LIFE: u64 = 90 * 86_400;
/// A key with less than this left is authorised anew.
const SESSION_REST: u64 = 30 * 86_400;

/// Compares with the chain and posts what differs; a repetition posts nothing.
pub(crate) async fn register(r: &Registration, sender: &Sender, journal: &Journal, sink: &EventSink) -> Result<()> {
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
        let call = INodes::configureCall { endpoint, capacity };
        told(what, send(sender, journal, "configure", |key| Intent::call(key, nodes, &call)).await?);
    }

    if let Some(missing) = r.stake.checked_sub(node.stake.saturating_sub(node.unbonding)).filter(|m| *m > 0) {
        approve(sender, journal, nodes, U256::from(missing)).await?;
        let call = INodes::depositCall { amount: missing };
        told(
            format!("stake {}", r.stake),
            send(sender, journal, "deposit", |key| Intent::call(key, nodes, &call)).await?,
        );
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
            let kind = format!("ask/{}", offer.model);
            told(
                format!("ask for {}", offer.model),
                send(sender, journal, &kind, |key| Intent::call(key, nodes, &call)).await?,
            );
        }
    }
    Ok(())
}

/// Authorises the key that signs receipts, if it is not the account's own: anew when its time is almost over.
pub(crate) async fn session_key(key: Address, sender: &Sender, journal: &Journal, sink: &EventSink) -> Result<()> {
    match rest(key, sender).await? {
        Some(left) if left < SESSION_REST => authorise(key, sender, journal, sink).await,
        _ => Ok(()),
    }
}

/// The same for a node that runs on and on; but a key that is not valid any more was revoked, and stays so.
pub(crate) async fn renew_session_key(
    key: Address,
    sender: &Sender,
    journal: &Journal,
    sink: &EventSink,
) -> Result<()> {
    match rest(key, sender).await? {
        Some(left) if (1..SESSION_REST).contains(&left) => authorise(key, sender, journal, sink).await,
        _ => Ok(()),
    }
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

async fn authorise(key: Address, sender: &Sender, journal: &Journal, sink: &EventSink) -> Result<()> {
    let chain = sender.chain();
    let valid_until = chain.now().await?.saturating_add(SESSION_LIFE);
    let call = INodes::setSessionKeyCall { key, validUntil: Uint::from(valid_until) };
    let receipt = send(sender, journal, "session", |k| Intent::call(k, chain.deployment().nodes, &call)).await?;
    sink.emit(NodeEvent::Registered { what: format!("session key {key}"), receipt });
    Ok(())
}

/// Lets `spender` take at least `amount`.
async fn approve(sender: &Sender, journal: &Journal, spender: Address, amount: U256) -> Result<()> {
    let token = sender.chain().token();
    let allowed = token.allowance(sender.account(), spender).call().await.map_err(sworn_chain::Error::from)?;
    if allowed < amount {
        let call = IERC20::approveCall { spender, value: amount };
        send(sender, journal, "approve", |key| Intent::call(key, *token.address(), &call)).await?;
    }
    Ok(())
}

/// Sends something that may be sent again on another day: its key carries what is sent, and a number that rises when it is done.
/// A crash in between finds the same number, hence the same transaction, unless the operator has changed their mind.
pub(crate) async fn send(
    sender: &Sender,
    journal: &Journal,
    kind: &str,
    intent: impl FnOnce(String) -> Intent,
) -> Result<Receipt> {
    let number = journal.counter(kind)?;
    let mut intent = intent(String::new());
    intent.key = format!("{kind}/{number}/{}", keccak256(&intent.data));
    let receipt = sender.send(&intent).await?;
    journal.advance(kind, number)?;
    Ok(receipt)
}
