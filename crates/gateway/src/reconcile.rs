//! Receipts that never came: after a crash, a lost connection, a node that was away.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use sworn_receipts::{Code, Error};
use tokio::time::timeout;

use crate::file::ReceiptFile;
use crate::ledger::OpenRequest;
use crate::part::Refused;
use crate::peer::Peer;
use crate::router::Router;

/// Requests that are looked after at a time.
const AT_A_TIME: usize = 16;
/// For a node's answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl Router {
    fn working(&self) -> MutexGuard<'_, HashSet<(B256, u64)>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is under way: its receipt is awaited where it was asked.
    pub(crate) fn work(&self, channel: B256, request: u64) {
        self.working().insert((channel, request));
    }

    /// It is not any more; if its receipt has not come, it is looked for from now on.
    pub(crate) fn rest(&self, channel: B256, request: u64) {
        self.working().remove(&(channel, request));
    }

    /// Asks for receipts that are due.
    pub async fn reconcile(self: &Arc<Self>) {
        let due = match self.ledger.open_requests() {
            Ok(all) => all,
            Err(error) => {
                tracing::error!(%error, "open requests cannot be read");
                return;
            }
        };
        let peers = self.peers();
        let mut looked = 0;
        for open in due {
            if self.working().contains(&(open.channel, open.ask.request)) {
                continue;
            }
            let Some(peer) = peers.iter().find(|p| p.id == open.channel) else { continue };
            looked += 1;
            if looked > AT_A_TIME || peer.conduct().resting().is_some() {
                continue;
            }
            match timeout(PATIENCE, self.look_after(peer, &open)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(node = %peer.node, error, "a receipt is still due"),
                Err(_) => peer.failed(None),
            }
        }
    }

    async fn look_after(self: &Arc<Self>, peer: &Arc<Peer>, open: &OpenRequest) -> Result<(), String> {
        let request = open.ask.request;
        match peer.client.answered(peer.id, request).await {
            Ok(answered) => match self.enter(peer, &open.ask, &answered.output, answered.signed.clone()).await {
                Ok(_) => {
                    tracing::info!(node = %peer.node, request, "a receipt came late");
                    Ok(())
                }
                Err(Refused::Fault(fault)) => {
                    let (prompt, output) = (&open.ask.prompt, &answered.output);
                    let mut file = ReceiptFile::new(self.domain, peer.node, answered.signed, prompt, output);
                    file.fault = Some(fault);
                    self.convict(file);
                    Ok(())
                }
                Err(Refused::Stranger(why)) => Err(why),
                Err(Refused::Failed(e)) => Err(e.to_string()),
            },
            Err(Error::Refused { refusal, .. }) if refusal.code == Code::NotFound => {
                // Not answered, or never taken: the channel's state tells.
                let state = peer.client.channel(peer.id).await.map_err(|e| e.to_string())?;
                if state.in_flight.iter().any(|f| f.request == request) {
                    return Err("the node is still at it".into());
                }
                self.ledger.forget(peer.id, request).map_err(|e| e.to_string())
            }
            Err(e) => Err(e.to_string()),
        }
    }
}
