//! What can go wrong.

use thiserror::Error;

use crate::wire::Refusal;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a client and a node.
#[derive(Debug, Error)]
pub enum Error {
    /// bytes that are no signature of ours
    #[error("this is no signature: 65 bytes with a low s and v of 27 or 28 are expected")]
    Signature,
    /// the key refuses
    #[error("signing: {0}")]
    Signer(#[from] alloy::signers::Error),
    /// not a node's address
    #[error("{0:?} is no node's endpoint: an http or https URL is expected")]
    Endpoint(String),
    /// the node cannot be reached, or the connection broke
    #[error("the node cannot be reached: {0}")]
    Unreachable(String),
    /// the node is silent
    #[error("the node was silent for {0:?}")]
    Silent(std::time::Duration),
    /// the node says no
    #[error("the node refuses ({status}): {refusal}")]
    Refused {
        /// HTTP status
        status: u16,
        /// seconds after which it may be asked again, if it says so
        retry_after: Option<u64>,
        /// why
        refusal: Box<Refusal>,
    },
    /// what came is not what the API says
    #[error("the node's answer is malformed: {0}")]
    Malformed(String),
    /// more than there can be
    #[error("the node serves more than {0} bytes")]
    TooLong(u64),
}

impl Error {
    /// Whether the same request may succeed elsewhere or later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable(_) | Error::Silent(_) => true,
            Error::Refused { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}
