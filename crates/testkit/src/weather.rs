//! What befalls a chain: reorganisations up to 64 deep that lose their transactions, a lost mempool, fees a hundredfold, no blocks for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sworn_chain::Chain;
use tokio::task::JoinHandle;

use crate::devnet::{Devnet, DevnetError, ask};
use crate::process::unpoisoned;

/// Deepest reorganisation.
const DEEPEST: u64 = 64;

/// Trouble on a devnet, for a while.
pub struct Weather {
    met: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    task: JoinHandle<()>,
}

impl Weather {
    /// So many troubles from now on, moments apart; which and when follows from a seed.
    pub fn start(net: &Devnet, seed: u64, troubles: u32) -> Self {
        let met: Arc<Mutex<BTreeMap<&'static str, u64>>> = Arc::default();
        let (chain, floor, log) = (net.chain.clone(), net.floor.clone(), met.clone());
        let task = tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed ^ 0x5EA);
            for _ in 0..troubles {
                tokio::time::sleep(Duration::from_millis(rng.random_range(100..3_000))).await;
                // Nobody else moves the clock meanwhile.
                let floor = floor.lock().await;
                // A devnet that ends takes its weather along.
                if let Ok(kind) = trouble(&chain, *floor, &mut rng).await {
                    *unpoisoned(&log).entry(kind).or_default() += 1;
                }
            }
        });
        Weather { met, task }
    }

    /// The troubles so far, by kind.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        unpoisoned(&self.met).clone()
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn trouble(chain: &Chain, floor: u64, rng: &mut StdRng) -> Result<&'static str, DevnetError> {
    let ask = async |method: &'static str, params: Value| ask(chain.provider(), method, params).await;
    match rng.random_range(0..5) {
        0 | 1 => {
            let head = chain.head().await.map_err(DevnetError::other)?.number;
            let depth = rng.random_range(1..=DEEPEST).min(head.saturating_sub(floor));
            if depth == 0 {
                return Ok("no block to replace");
            }
            ask("anvil_reorg", json!([depth, []])).await?;
            Ok("reorganisations")
        }
        2 => {
            ask("anvil_dropAllTransactions", json!([])).await?;
            Ok("lost mempools")
        }
        3 => {
            let base = chain.head().await.map_err(DevnetError::other)?.base_fee.unwrap_or(1_000_000_000);
            ask("anvil_setNextBlockBaseFeePerGas", json!([format!("{:#x}", base.saturating_mul(100))])).await?;
            Ok("fees a hundredfold")
        }
        _ => {
            ask("evm_setIntervalMining", json!([0])).await?;
            ask("evm_setAutomine", json!([false])).await?;
            tokio::time::sleep(Duration::from_millis(rng.random_range(500..4_000))).await;
            ask("evm_setAutomine", json!([true])).await?;
            ask("evm_setIntervalMining", json!([1])).await?;
            ask("evm_mine", json!([])).await?;
            Ok("stalls")
        }
    }
}
