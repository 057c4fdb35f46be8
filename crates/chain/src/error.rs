//! What can go wrong, with its cure.

use std::path::PathBuf;

use alloy::primitives::{Address, B256, U256};
use alloy::transports::TransportError;
use sworn_bindings::Revert;
use thiserror::Error;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between an agent and its chain.
#[derive(Debug, Error)]
pub enum Error {
    /// not a URL
    #[error("{url:?} is no RPC address: give one like http://127.0.0.1:8545")]
    Url {
        /// as given
        url: String,
    },
    /// nobody answers
    #[error("no answer from the RPC at {url} ({reason}): check that the node runs and that the address is right")]
    Unreachable {
        /// where
        url: String,
        /// as reported
        reason: String,
    },
    /// another chain
    #[error(
        "the RPC at {url} serves chain {actual}, the deployment is on chain {expected}: give that chain's RPC or another deployment file"
    )]
    WrongChain {
        /// where
        url: String,
        /// chain id there
        actual: u64,
        /// chain id of the deployment
        expected: u64,
    },
    /// no code
    #[error(
        "no contract at {address} ({name}) on chain {chain}: the deployment file is of another chain or an older devnet; deploy again"
    )]
    NoContract {
        /// which of the deployment's contracts
        name: &'static str,
        /// where it should be
        address: Address,
        /// chain id
        chain: u64,
    },
    /// the RPC gave an error
    #[error("the RPC refused: {0}")]
    Rpc(TransportError),
    /// an answer that cannot be
    #[error("the RPC's answer makes no sense: {0}; use another RPC")]
    Answer(String),
    /// a call that fails; nothing was sent
    #[error("{what}: {revert}")]
    Reverted {
        /// the call
        what: String,
        /// why
        revert: Box<Revert>,
    },
    /// a transaction that failed in its block
    #[error("{what} failed in transaction {hash}: {revert}")]
    Failed {
        /// the call
        what: String,
        /// the transaction
        hash: B256,
        /// why
        revert: Box<Revert>,
    },
    /// no gas money
    #[error(
        "{account} has {balance} wei, too little to pay for gas ({reason}): send it some of the chain's own currency"
    )]
    Funds {
        /// sender
        account: Address,
        /// what it has
        balance: U256,
        /// as reported
        reason: String,
    },
    /// needs more gas than a transaction may have
    #[error("{what} needs {gas} gas, more than the {limit} of a block")]
    Gas {
        /// the call
        what: String,
        /// estimated
        gas: u64,
        /// of the latest block
        limit: u64,
    },
    /// fees above what the operator allows
    #[error("gas costs {fee} wei now, over the limit of {limit}: wait, or raise the limit")]
    FeeLimit {
        /// now
        fee: u128,
        /// allowed
        limit: u128,
    },
    /// the store is in use
    #[error("{path} is used by another process: stop it, or give this one another data directory")]
    Locked {
        /// the file
        path: PathBuf,
    },
    /// the store fails
    #[error("{path}: {reason}; check disk space and permissions")]
    Store {
        /// the file
        path: PathBuf,
        /// as reported
        reason: String,
    },
    /// the store belongs to another chain
    #[error(
        "{path} was written for another chain or deployment: give another data directory, or remove it if that chain was a devnet that is gone"
    )]
    OtherChain {
        /// the file
        path: PathBuf,
    },
    /// a key cannot be used
    #[error("key {path}: {reason}")]
    Key {
        /// the keystore file
        path: PathBuf,
        /// what is wrong, with its cure
        reason: String,
    },
}

impl Error {
    /// The revert that stopped a call, sent or not.
    pub fn revert(&self) -> Option<&Revert> {
        match self {
            Error::Reverted { revert, .. } | Error::Failed { revert, .. } => Some(revert),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anybody doing anything: the RPC or the network failed, not the call.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::FeeLimit { .. } | Error::Answer(_) => true,
            Error::Rpc(e) => !matches!(e, TransportError::ErrorResp(_)) || is_busy(e),
            _ => false,
        }
    }

    /// Of a failed view call or simulation.
    pub(crate) fn of_call(what: &str, e: TransportError) -> Self {
        match e.as_error_resp() {
            Some(payload) => match payload.as_revert_data() {
                Some(data) => Error::Reverted { what: what.to_owned(), revert: Box::new(Revert::decode(&data)) },
                None if payload.message.contains("revert") => {
                    Error::Reverted { what: what.to_owned(), revert: Box::new(Revert::decode(&[])) }
                }
                None => Error::Rpc(e),
            },
            None => e.into(),
        }
    }
}

fn is_busy(e: &TransportError) -> bool {
    let text = e.to_string();
    ["rate limit", "too many requests", "timeout", "temporarily"].iter().any(|w| text.to_lowercase().contains(w))
}

impl From<TransportError> for Error {
    fn from(e: TransportError) -> Self {
        match &e {
            TransportError::Transport(kind) => Error::Unreachable { url: "the RPC".into(), reason: kind.to_string() },
            _ => Error::Rpc(e),
        }
    }
}

impl From<alloy::contract::Error> for Error {
    fn from(e: alloy::contract::Error) -> Self {
        match e {
            alloy::contract::Error::TransportError(e) => Error::of_call("the call", e),
            other => Error::Answer(other.to_string()),
        }
    }
}
