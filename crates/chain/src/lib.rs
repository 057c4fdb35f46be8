//! Everything between Sworn's agents and a chain.
//!
//! **Owns** the [`Chain`] handle (provider, contracts, clock, balances), keys from keystore files, the [`Store`] an agent keeps
//! on disk, the journaled [`Sender`] and the event [`Cursor`]. **May depend on** `bindings`, alloy and redb. **Must never** know
//! of models or execution, decide what an agent does, or take a secret from anywhere but a keystore.
#![forbid(unsafe_code)]

mod balances;
mod cursor;
mod error;
pub mod key;
mod measure;
mod provider;
mod retry;
mod sender;
mod store;

pub use balances::Balances;
pub use cursor::{Batch, Cursor, CursorOptions, LEAD, REACH, Seen};
pub use error::{Error, Result};
pub use measure::describe as describe_measurements;
pub use provider::{Chain, Head};
pub use retry::persistently;
pub use sender::{Intent, Receipt, Sender, SenderOptions};
pub use store::{Changes, Store, Table};
