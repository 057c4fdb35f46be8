//! What a watcher tells: one event a line.

use alloy::primitives::{Address, B256, U256};
use serde::{Deserialize, Serialize};

/// A mined transaction of the watcher's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tx {
    /// transaction hash
    pub tx: B256,
    /// gas it used
    pub gas: u64,
    /// block that holds it
    pub block: u64,
}

/// Something that happened. Amounts are in the token's smallest unit, as decimal strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are named for readers of the JSON lines")]
pub enum WatcherEvent {
    /// Watching begins.
    Started {
        account: Option<Address>,
        chain_id: u64,
        from_block: u64,
        models: Vec<B256>,
        backend: String,
        adapter: String,
    },
    /// Everything up to the latest block is known.
    CaughtUp { block: u64, jobs: usize },
    /// A job was created.
    JobSeen { job: u64, model: B256, node: Option<Address>, prompt_tokens: u32 },
    /// No model directory for a job: it is not watched.
    UnknownModel { job: u64, model: B256 },
    /// A result was re-executed.
    Audited { job: u64, ok: bool, positions: u32, claimed_root: B256, own_root: B256, ms: u64 },
    /// Model, executor and reference agree with themselves: a fee may be spent.
    SelfChecked { job: u64, checks: Vec<String>, ms: u64 },
    /// They do not: no transaction will be sent for this job.
    SelfCheckFailed { job: u64, reason: String },
    /// The node's HTTP side was asked.
    Asked { job: u64, what: String, served: bool, note: String },
    /// Where the node's trace and the own one part.
    Disputed { job: u64, layer: u16, row: u32, position: u32 },
    /// An opening was demanded.
    Demanded {
        job: u64,
        target: String,
        #[serde(flatten)]
        tx: Tx,
    },
    /// An opening was answered, by whomever.
    Answered {
        job: u64,
        target: String,
        by: Address,
        bytes: usize,
        #[serde(flatten)]
        tx: Tx,
    },
    /// The claim is committed to.
    Announced {
        job: u64,
        commitment: B256,
        #[serde(flatten)]
        tx: Tx,
    },
    /// The contract found the element wrong.
    Proven {
        job: u64,
        layer: u16,
        row: u32,
        position: u32,
        op: u16,
        opcode: String,
        element: u32,
        claimed: i64,
        computed: i64,
        calldata: usize,
        #[serde(flatten)]
        tx: Tx,
    },
    /// A demand passed its deadline, and the node was slashed for it.
    TimedOut {
        job: u64,
        target: String,
        #[serde(flatten)]
        tx: Tx,
    },
    /// The node of a job lost its bond, by whomever.
    Slashed {
        job: u64,
        node: Address,
        bond: String,
        refunded: String,
        compensation: String,
        reward: String,
        burned: String,
    },
    /// The reward was taken over with an earlier announcement.
    Contested {
        job: u64,
        #[serde(flatten)]
        tx: Tx,
    },
    /// The reward is ours.
    Rewarded { job: u64, amount: String },
    /// Demand fees are ours again.
    Reclaimed { job: u64, amount: String },
    /// A settling transaction: `settleReward`, `reclaimFees`, `withdraw`, `approve`.
    Sent {
        #[serde(skip_serializing_if = "Option::is_none")]
        job: Option<u64>,
        call: String,
        #[serde(flatten)]
        tx: Tx,
    },
    /// Money left the market for the watcher's account.
    Withdrawn { amount: String },
    /// A job became final.
    Finalized { job: u64, paid: String },
    /// A fault was found and nothing is sent, because the watcher was told so.
    WouldChallenge { job: u64, next: String },
    /// A node claims what receipts have earned.
    BatchSeen { batch: u64, node: Address, receipts: u64, amount: String },
    /// The receipts of one channel in a batch were read, or not.
    ReceiptsRead { batch: u64, channel: B256, receipts: usize, served: bool, note: String },
    /// A receipt's answer was re-executed.
    ReceiptAudited {
        batch: u64,
        channel: B256,
        sequence: u64,
        ok: bool,
        positions: u32,
        claimed_root: B256,
        own_root: B256,
        ms: u64,
    },
    /// A receipt's answer could not be re-executed here, or this machine contradicts itself: nothing is done about it.
    ReceiptSkipped { batch: u64, channel: B256, sequence: u64, reason: String },
    /// A receipt is on trial, by whomever: from now on it is a job.
    Lodged { job: u64, node: Address, channel: B256, sequence: u64, deadline: u64 },
    /// A transaction about a batch: `demandReceipt`, `receiptTimeout`, `lodge`, `convictOverclaim`, `convictMalformed`.
    BatchSent {
        batch: u64,
        channel: B256,
        sequence: u64,
        call: String,
        #[serde(flatten)]
        tx: Tx,
    },
    /// A batch was paid out, or is void.
    BatchOver { batch: u64, node: Address, released: bool },
    /// A node lost its stake for a receipt, by whomever.
    Convicted { node: Address, taken: String, compensation: String, reward: String, burned: String },
    /// A receipt's trial ended without a fault found in time.
    Acquitted { job: u64 },
    /// A fault was found and nothing is sent, because the watcher was told so.
    WouldAct { batch: u64, channel: B256, sequence: u64, next: String },
    /// Something went wrong; the watcher goes on.
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        job: Option<u64>,
        message: String,
    },
}

/// A job's number: ids count from one.
pub(crate) fn job_number(id: U256) -> u64 {
    u64::try_from(id).unwrap_or(u64::MAX)
}
