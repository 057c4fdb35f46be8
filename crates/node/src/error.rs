//! What can go wrong.

use std::net::SocketAddr;
use std::path::PathBuf;

use alloy::primitives::{B256, U256};
use thiserror::Error;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a node.
#[derive(Debug, Error)]
pub enum Error {
    /// chain, journal or transaction
    #[error(transparent)]
    Chain(#[from] sworn_chain::Error),
    /// execution
    #[error(transparent)]
    Engine(#[from] sworn_engine::EngineError),
    /// the model is not loaded
    #[error("job {job} is for model {model}, which this node does not have: start it with that model")]
    NoModel {
        /// the job
        job: U256,
        /// its model
        model: B256,
    },
    /// executions that ended the process
    #[error(
        "job {job} ended the process {deaths} times while it was executed: it is not tried again. Is the memory too small for its prompt? Offer fewer tokens (`sworn node price --longest N`)"
    )]
    Deadly {
        /// the job
        job: U256,
        /// how often
        deaths: u64,
    },
    /// the model is unknown to the chain
    #[error("model {0} is not registered on this chain: register it first (`sworn model register`)")]
    Unregistered(B256),
    /// a demand for what the trace does not have
    #[error("job {job}: the trace has no {target}")]
    NoTarget {
        /// the job
        job: U256,
        /// what was demanded
        target: String,
    },
    /// the listener
    #[error("cannot listen on {address}: {source}; choose another address")]
    Listen {
        /// as configured
        address: SocketAddr,
        /// as the system says
        source: std::io::Error,
    },
    /// a file of the node
    #[error("{path}: {source}; check disk space and permissions")]
    File {
        /// the file
        path: PathBuf,
        /// as the system says
        source: std::io::Error,
    },
    /// a task died
    #[error("a task of the node died ({0}): this is a defect, please report it")]
    Task(#[from] tokio::task::JoinError),
    /// a prover of another kind failed
    #[error("{0}")]
    Prover(String),
}
