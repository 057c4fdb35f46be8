//! What an operator's monitoring reads of a process.
//!
//! **Owns** the process's recorder of measurements, the [`Pulse`] of an agent's loop, and the server of `/metrics`, `/health` and `/ready`.
//! **May depend on** the metrics facade, its Prometheus exporter and axum. **Must never** know what is measured: each crate names and
//! describes its own.
//!
//! | path | body |
//! |---|---|
//! | `/metrics` | Prometheus' text format 0.0.4 |
//! | `/health` | `{"alive": …, "turned_seconds_ago": …}`; 503 when the agent's loop is stuck: restart it |
//! | `/ready` | `{"ready": …, "reason": …}`; 503 as long as the agent does not follow its chain, or when it is stopping |
#![forbid(unsafe_code)]

mod pulse;
mod recorder;
mod server;

pub use pulse::Pulse;
pub use recorder::{CONTENT_TYPE, install, render, upkeep};
pub use server::serve;
