//! Sworn's contracts, seen from Rust.
//!
//! **Owns** the types, calls, events and errors of `contracts/interfaces` (generated when the crate is built, so they cannot
//! drift), conversions between them and the types of `commit`, readable [`revert`]s, typed [`event`]s and the
//! [`Deployment`] file. **May depend on** `isa`, `commit` and alloy. **Must never** talk to a chain.
#![forbid(unsafe_code)]

mod convert;
mod deployment;
pub mod event;
pub mod revert;

/// The interfaces as `sol!` reads them: each contract is a module, file-level types stand beside them.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated from the Solidity sources, which carry the docs"
)]
mod interfaces {
    include!(concat!(env!("OUT_DIR"), "/interfaces.rs"));
}

pub use convert::{is_receipt, job_dims, opening_id, order_hash, run_params, sampling_word};
pub use deployment::{Deployment, DeploymentError};
pub use event::Event;
pub use interfaces::*;
pub use revert::Revert;
