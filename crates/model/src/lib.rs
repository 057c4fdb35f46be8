//! Models: from a GGUF file or a Hugging Face directory to the directory that every part of the system reads.
//!
//! **Owns** the sources and their hyper-parameters ([`Gguf`], [`Hyper`]), the integer quantisation ([`import()`]), the programs
//! of the families ([`family`]), the model directory and its reproducible id, loading ([`Model`]), tokenizer and chat template,
//! the store under `$SWORN_HOME` with its downloads ([`ModelStore`], [`pull`]), and [`synthetic`] models. **May depend on**
//! `isa`, `commit`, the file system and the network. **Must never** know of a chain or a device, and never let a float reach
//! an answer: floats end at import.

mod blocks;
pub mod chat;
pub mod directory;
mod error;
pub mod family;
pub mod gguf;
pub mod gptq;
pub mod hyper;
mod import;
mod load;
mod pack;
mod progress;
pub mod pull;
pub mod quantise;
pub mod small;
mod source;
pub mod store;
pub mod synthetic;
mod tables;
pub mod tokenizer;
mod weights;

pub use chat::{ChatTemplate, Message};
pub use error::{ModelError, Result};
pub use gguf::Gguf;
pub use hyper::Hyper;
pub use import::{ImportOptions, import, import_calibrated, import_gguf};
pub use load::{Model, Table, WeightMatrix};
pub use progress::{OnProgress, Progress, Stage};
pub use pull::pull;
pub use source::RowBlocks;
pub use store::ModelStore;
pub use synthetic::{SyntheticSpec, synthetic};
pub use tokenizer::{TextStream, Tokenizer};
pub use weights::WeightFormats;
