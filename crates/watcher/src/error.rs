//! What stops a watcher.

use thiserror::Error;

/// Result of this crate.
pub type Result<T, E = WatchError> = std::result::Result<T, E>;

/// What stops a watcher. Everything else is told as an event and lived with.
#[derive(Debug, Error)]
pub enum WatchError {
    /// the chain or the disk
    #[error(transparent)]
    Chain(#[from] sworn_chain::Error),
    /// an executor
    #[error("the executor cannot be used: {0}")]
    Engine(#[from] sworn_engine::EngineError),
    /// nothing to watch with
    #[error("no model was given: pull or import the models whose jobs are to be watched")]
    NoModel,
    /// no key and not told to only look
    #[error("a watcher needs a key to challenge with: give one, or --dry-run to only look")]
    NoKey,
    /// a receipt of a model that is not here
    #[error("the receipt is of model {0}: give that model with --model")]
    OtherModel(alloy::primitives::B256),
    /// a receipt that is not brought to trial, and why
    #[error("the receipt is not brought to trial: {0}")]
    Case(String),
    /// the disk, outside the store
    #[error("{path}: {source}; check disk space and permissions")]
    Io {
        /// the file
        path: std::path::PathBuf,
        /// as the system says
        source: std::io::Error,
    },
}
