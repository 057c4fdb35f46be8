//! What an operator decides.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use alloy::primitives::{B256, U256};
use alloy::signers::local::PrivateKeySigner;
use sworn_ops::Pulse;

/// A price for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The model.
    pub model: B256,
    /// Price of a prompt token, in the token's smallest unit.
    pub per_input_token: u128,
    /// Price of an output token.
    pub per_output_token: u128,
    /// Prompt and output together, at most.
    pub max_tokens: u32,
}

/// What the node wants to be true on chain before it serves; whatever is not, is made so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Where others reach the HTTP side; none: leave what is posted.
    pub endpoint: Option<String>,
    /// Jobs at a time; none: leave what is posted.
    pub capacity: Option<u32>,
    /// Least stake; missing tokens are deposited from the account. Zero: leave it.
    pub stake: u128,
    /// Asks to post.
    pub offers: Vec<Offer>,
}

/// How a node is paid by receipts.
#[derive(Clone, Debug)]
pub struct ChannelTerms {
    /// Signs offers and receipts: the account's own key, or a session key of it.
    pub signer: PrivateKeySigner,
    /// Receipts are redeemed when they have earned at least this much; a channel that closes is redeemed in any case.
    pub redeem_at: u128,
    /// What is added to the posted prices at most when the node is busy, in 1/10 000.
    pub surge_max_bps: u16,
    /// How long an offer is good.
    pub offer_life: Duration,
    /// Whether a channel's signer may be a contract (ERC-1271). It can disown what it signed until a voucher is redeemed, so this is trust.
    pub contract_signers: bool,
    /// What a spot request costs less, in 1/10 000; 0: none are offered.
    pub spot_discount_bps: u16,
    /// What a reserved place costs more, in 1/10 000.
    pub reserved_premium_bps: u16,
    /// Places of `streams` that are for reserved requests alone; 0: none are offered.
    pub reserved: usize,
    /// Answers at a time.
    pub streams: usize,
    /// Answers at a time in one channel.
    pub per_channel: usize,
}

impl ChannelTerms {
    /// Defaults, with the key that signs.
    pub fn new(signer: PrivateKeySigner) -> Self {
        ChannelTerms {
            signer,
            redeem_at: 1_000_000_000_000_000_000,
            surge_max_bps: 0,
            offer_life: Duration::from_secs(120),
            contract_signers: false,
            spot_discount_bps: 0,
            reserved_premium_bps: 0,
            reserved: 0,
            streams: 16,
            per_channel: 8,
        }
    }
}

/// How a node runs.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Journal and traces.
    pub data: PathBuf,
    /// Where to listen; none: no HTTP.
    pub listen: Option<SocketAddr>,
    /// What to post before serving.
    pub registration: Registration,
    /// Whether to take open jobs that its asks cover.
    pub accept_open: bool,
    /// Executions at a time; they share the model's steps, and the oldest goes first.
    pub workers: usize,
    /// Pay is withdrawn when at least this much is owed; none: never.
    pub withdraw_at: Option<U256>,
    /// Longest wait of an HTTP client.
    pub http_timeout: Duration,
    /// HTTP requests at a time.
    pub http_concurrency: usize,
    /// HTTP requests a second from one address; 0: no bound. An address of this machine has none.
    pub http_rate: u32,
    /// How it is paid by receipts; none: by jobs alone.
    pub channels: Option<ChannelTerms>,
    /// Memory for recomputed operators, in bytes.
    pub ops_cache: usize,
    /// Where it is told whether the node follows its chain.
    pub pulse: Pulse,
}

impl NodeConfig {
    /// Defaults, with a directory for journal and traces.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        NodeConfig {
            data: data.into(),
            listen: None,
            registration: Registration::default(),
            accept_open: false,
            workers: 8,
            withdraw_at: Some(U256::ONE),
            http_timeout: Duration::from_secs(20),
            http_concurrency: 32,
            http_rate: 100,
            channels: None,
            ops_cache: 64 << 20,
            pulse: Pulse::default(),
        }
    }
}
