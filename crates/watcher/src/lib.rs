//! Re-executes every answer and proves wrong ones wrong.
//!
//! **Owns** the audit of submitted results, the [`solver`] that plays a challenge to its end, the journal of announcements,
//! and the event stream of `sworn watch`. **May depend on** `isa`, `commit`, `model`, `engine`, `bindings`, `chain`.
//! **Must never** accuse on the word of a single execution, believe served data that does not hash to what is on chain, or
//! keep something that only it remembers outside its journal.
#![forbid(unsafe_code)]

mod error;
mod event;
mod executor;
pub mod game;
mod job;
mod served;
pub mod solver;
mod watch;

pub use error::{Result, WatchError};
pub use event::{Tx, WatcherEvent};
pub use executor::Executor;
pub use watch::{Config, watch};
