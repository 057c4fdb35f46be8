//! What a node tells its operator.

use std::fmt;
use std::sync::Arc;

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;
use sworn_chain::Receipt;

/// Something that happened, one JSON object each.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields say what they are")]
pub enum NodeEvent {
    /// It serves from now on.
    Started { account: Address, models: Vec<B256>, listen: Option<String> },
    /// A posting was brought up to date.
    Registered { what: String, receipt: Receipt },
    /// A job is the node's.
    Assigned { job: U256, prompt_tokens: usize, max_new: u32, deadline: u64 },
    /// It took an open job.
    Accepted { job: U256, receipt: Receipt },
    /// It begins to execute.
    Executing { job: U256 },
    /// The answer is there.
    Executed { job: U256, tokens: usize, seconds: f64, layers_root: B256 },
    /// The answer is posted.
    Submitted { job: U256, receipt: Receipt },
    /// Somebody wants to see a part of a trace.
    Demanded { job: U256, target: String, by: Address, deadline: u64 },
    /// It is shown.
    Answered { job: U256, target: String, receipt: Receipt },
    /// The job is over and paid.
    Finalized { job: U256, paid: U256 },
    /// The job is over: late, cancelled or taken by another node.
    Closed { job: U256, state: &'static str },
    /// The bond is gone.
    Slashed { job: U256, bond: U256 },
    /// An answer of a channel is over and signed for.
    Receipt { channel: B256, sequence: u64, tokens: u32, price: String, cumulative: String },
    /// Receipts are claimed.
    Redeemed { batch: U256, amount: String, receipt: Receipt },
    /// A batch of receipts is paid.
    Released { batch: U256, receipt: Receipt },
    /// Somebody wants to see a receipt.
    ReceiptDemanded { batch: U256, channel: B256, sequence: u64, by: Address, deadline: u64 },
    /// It is published.
    Published { batch: U256, channel: B256, sequence: u64, receipt: Receipt },
    /// A receipt is on trial.
    Lodged { job: U256, channel: B256, sequence: u64, deadline: u64 },
    /// Pay is in the account.
    Withdrawn { amount: U256, receipt: Receipt },
    /// Something did not work; it is tried again unless it cannot.
    Failed { action: String, error: String },
    /// It no longer serves.
    Stopped,
}

/// Where events go; called on the node's task, so it must not block.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(&NodeEvent) + Send + Sync>);

impl EventSink {
    /// A sink from a function.
    pub fn new(f: impl Fn(&NodeEvent) + Send + Sync + 'static) -> Self {
        EventSink(Arc::new(f))
    }

    /// Nobody listens.
    pub fn none() -> Self {
        EventSink::new(|_| {})
    }

    pub(crate) fn emit(&self, event: NodeEvent) {
        match &event {
            NodeEvent::Failed { action, error } => tracing::warn!(action, error, "failed"),
            NodeEvent::Slashed { job, bond } => tracing::error!(%job, %bond, "slashed"),
            other => tracing::info!(event = ?other, "node"),
        }
        crate::measure::event(&event);
        (self.0)(&event);
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}
