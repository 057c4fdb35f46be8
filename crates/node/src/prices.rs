//! What a node asks for a model: by its price list, which its operator edits without a transaction, or else as posted on chain.
//!
//! The list decides the offers that the node signs for channels and its bids for open jobs. Jobs that name the node are bought at the
//! posted price, whatever the list says.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use sworn_bindings::INodes;
use sworn_chain::Chain;

use crate::work::unpoisoned;

/// How long what is posted is believed.
const FRESH: Duration = Duration::from_secs(10);

/// A price, in the payment token's smallest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Of a prompt token.
    #[serde(with = "sworn_receipts::decimal")]
    pub per_input_token: u128,
    /// Of an output token.
    #[serde(with = "sworn_receipts::decimal")]
    pub per_output_token: u128,
    /// Prompt and output together, at most; 0: the model is not offered.
    pub max_tokens: u32,
}

impl Price {
    /// Of a prompt and its longest answer; `None` if it does not fit, or is for more tokens than are offered.
    pub(crate) fn longest(&self, n_in: usize, max_new: u32) -> Option<u128> {
        let n_in = u32::try_from(n_in).ok()?;
        let fits = n_in.checked_add(max_new)? <= self.max_tokens;
        let (input, output) = (self.per_input_token, self.per_output_token);
        let sum = input.checked_mul(n_in.into())?.checked_add(output.checked_mul(max_new.into())?);
        sum.filter(|_| fits)
    }
}

/// A node's own prices by model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceList(pub BTreeMap<B256, Price>);

impl PriceList {
    /// Where a node with this directory of state has its list.
    pub fn file(data: &Path) -> PathBuf {
        data.join("prices.json")
    }

    /// Reads a list; a file that does not exist is an empty one.
    ///
    /// # Errors
    /// It cannot be read, or is no list.
    pub fn read(file: &Path) -> io::Result<Self> {
        match fs::read(file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(PriceList::default()),
            Err(e) => Err(e),
        }
    }

    /// Writes a list so that whoever reads meanwhile sees the old one or the new one.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let beside = file.with_extension("json.new");
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut new = fs::File::create(&beside)?;
        new.write_all(&serde_json::to_vec_pretty(self)?)?;
        new.sync_all()?;
        fs::rename(beside, file)
    }
}

/// What is known of the list's file.
#[derive(Debug, Default)]
struct Own {
    changed: Option<SystemTime>,
    list: PriceList,
}

/// Prices of a running node.
#[derive(Debug)]
pub(crate) struct Prices {
    chain: Chain,
    node: Address,
    file: PathBuf,
    own: Mutex<Own>,
    posted: Mutex<HashMap<B256, (Instant, INodes::Ask)>>,
}

impl Prices {
    pub(crate) fn new(chain: Chain, node: Address, data: &Path) -> Self {
        let (own, posted) = Default::default();
        Prices { chain, node, file: PriceList::file(data), own, posted }
    }

    /// The chain has news of what is posted.
    pub(crate) fn forget(&self) {
        unpoisoned(&self.posted).clear();
    }

    /// What the node asks for a model now; `None`: it does not offer it.
    pub(crate) async fn of(&self, model: B256) -> Result<Option<Price>, sworn_chain::Error> {
        let price = match self.own(model) {
            Some(price) => price,
            None => {
                let ask = self.posted(model).await?;
                Price {
                    per_input_token: ask.perInputToken,
                    per_output_token: ask.perOutputToken,
                    max_tokens: ask.maxTokens,
                }
            }
        };
        Ok(Some(price).filter(|p| p.max_tokens > 0))
    }

    /// By the list, which is read again when its file has changed. A list that cannot be read leaves the old prices.
    fn own(&self, model: B256) -> Option<Price> {
        let changed = fs::metadata(&self.file).and_then(|m| m.modified()).ok();
        let mut own = unpoisoned(&self.own);
        if own.changed != changed {
            match PriceList::read(&self.file) {
                Ok(list) => *own = Own { changed, list },
                Err(error) => {
                    tracing::warn!(file = %self.file.display(), %error, "the price list cannot be read: old prices stay");
                    own.changed = changed;
                }
            }
        }
        own.list.0.get(&model).copied()
    }

    async fn posted(&self, model: B256) -> Result<INodes::Ask, sworn_chain::Error> {
        let known = unpoisoned(&self.posted).get(&model).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, a)| a.clone());
        if let Some(ask) = known {
            return Ok(ask);
        }
        let ask = self.chain.nodes().ask(self.node, model).call().await?;
        unpoisoned(&self.posted).insert(model, (Instant::now(), ask.clone()));
        Ok(ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_written_whole_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = PriceList::file(&dir.path().join("deeper"));
        assert_eq!(PriceList::read(&file).unwrap(), PriceList::default());
        let price = Price { per_input_token: u128::MAX, per_output_token: 0, max_tokens: 7 };
        let list = PriceList([(B256::repeat_byte(1), price)].into());
        list.write(&file).unwrap();
        assert_eq!(PriceList::read(&file).unwrap(), list);
        fs::write(&file, "{").unwrap();
        assert!(PriceList::read(&file).is_err());
    }

    #[test]
    fn the_longest_answers_price_is_exact_or_refused() {
        let price = Price { per_input_token: 2, per_output_token: 3, max_tokens: 10 };
        assert_eq!((price.longest(4, 6), price.longest(5, 6), price.longest(usize::MAX, 0)), (Some(26), None, None));
        assert_eq!(Price { per_input_token: u128::MAX, ..price }.longest(2, 1), None);
    }
}
