//! What an operator decides about the HTTP side.

use std::sync::Arc;
use std::time::Duration;

use sworn_model::Model;

use crate::page::Page;

/// A model and the name that clients know it by. Its id in hexadecimal names it as well.
#[derive(Clone, Debug)]
pub struct Offered {
    /// The name.
    pub name: String,
    /// Tokenizer, template, sizes.
    pub model: Arc<Model>,
}

/// Bounds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Answers under way.
    pub concurrency: usize,
    /// Open connections; a quarter of them from one address.
    pub connections: usize,
    /// Requests a second from one address; 0: no bound. An address of this machine has none.
    pub rate: u32,
    /// Time of an answer, from the request to its last token.
    pub time: Duration,
    /// Tokens of an answer whose length the client leaves open.
    pub max_new: u32,
    /// Time that answers under way have when the gateway stops.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body: 1 << 20,
            concurrency: 64,
            connections: 512,
            rate: 20,
            time: Duration::from_secs(600),
            max_new: 1024,
            farewell: Duration::from_secs(20),
        }
    }
}

/// The HTTP side.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Models, in the order of the list.
    pub models: Vec<Offered>,
    /// Keys of which a client must send one; none: everybody may ask.
    pub api_keys: Vec<String>,
    /// Origins of web pages that may ask.
    pub origins: Vec<String>,
    /// Bounds.
    pub limits: Limits,
    /// What the page is told; none: it is not served.
    pub page: Option<Page>,
}
