//! Re-executes every answer and proves wrong ones wrong.
//!
//! **Owns** the audit of submitted results and of receipts, the [`solver`] that plays a challenge to its end, the journal of
//! announcements, and the event stream of `sworn watch`. **May depend on** `isa`, `commit`, `model`, `engine`, `bindings`, `chain`,
//! `receipts`.
//! **Must never** accuse on the word of a single execution, believe served data that does not hash to what is on chain, or
//! keep something that only it remembers outside its journal.
//!
//! # How it works
//!
//! Events from the chain (the cursor) fill one [`game::Game`] per job. A submitted result is re-executed by one teacher-forced pass
//! ([`Executor`]). From then on [`solver::next`] — pure, fed with the game, the own recomputation and what the node served — yields
//! one [`solver::Move`] at a time, and the loop makes it: ask over HTTP, recompute a row, demand, time out, announce, prove. Nothing
//! but the salt of an announcement is remembered outside the chain, so a killed watcher goes on where it was.
//!
//! A redeemed batch of receipts is read from its node, held against the root on chain, and each answer re-executed the same way. What
//! the node does not serve is demanded on chain. A receipt that is wrong is lodged, and from then on it is one more job.
//!
//! Before anything is sent, the watcher doubts itself: the model's bytes are hashed against its id, a second executor repeats the
//! audit, the scalar reference confirms elements of every operator of the disputed row, and the judge on chain confirms the proof by
//! a call. What fails there is an event `self_check_failed`, and no transaction.
#![forbid(unsafe_code)]

mod error;
mod event;
mod executor;
pub mod game;
mod job;
mod measure;
mod receipts;
mod served;
pub mod solver;
mod watch;

pub use error::{Result, WatchError};
pub use event::{Tx, WatcherEvent};
pub use executor::Executor;
pub use job::sol_target;
pub use served::Served;
pub use watch::{Case, Config, demand_call, watch};
