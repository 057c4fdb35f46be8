//! One receipt that somebody brings: executed, lodged, and then played like any other case.

use alloy::primitives::{B256, U256};
use sworn_bindings::{ITrials, Place};
use sworn_chain::Intent;
use sworn_commit::sequence;
use sworn_receipts::SignedReceipt;

use super::account::Purse;
use super::batches::{Checked, check};
use super::{ANSWERS, Watcher, tx};
use crate::event::{WatcherEvent, job_number};
use crate::receipts::Entry;
use crate::{Result, WatchError};

/// A receipt to bring to trial.
#[derive(Clone, Debug)]
pub struct Case {
    /// The receipt.
    pub signed: SignedReceipt,
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The answer's tokens.
    pub output: Vec<u32>,
    /// Its place in a pending batch, if it was redeemed.
    pub place: Option<Place>,
}

impl<F: FnMut(&WatcherEvent) + Send> Watcher<F> {
    /// Executes the receipt and, if it is false, lodges it or finds its trial; its number. `None`: the node was convicted at once, of
    /// tokens that no honest run gives.
    pub(super) async fn bring(&mut self, case: Case) -> Result<Option<u64>> {
        let digest = self.domain().digest(&case.signed.receipt);
        let model = case.signed.receipt.modelId;
        let executor = self.executors.get(&model.0).cloned().ok_or(WatchError::OtherModel(model))?;
        let entry = Entry::new(case.signed.clone(), case.prompt.clone(), case.output.clone());
        if entry.tokens.is_none() {
            return Err(WatchError::Case("the tokens are not those that the receipt speaks of".into()));
        }
        let checked = tokio::task::spawn_blocking(move || check(&executor, &entry)).await;
        let checked = checked.map_err(|e| WatchError::Case(format!("the executor crashed: {e}")))?;
        let sender = self.sender.clone().ok_or(WatchError::NoKey)?;
        let (receipt, signature) = ((&case.signed.receipt).into(), case.signed.signature);
        let trials = self.config.deployment.trials;
        match checked {
            Checked::Executed { ok: true, .. } => {
                return Err(WatchError::Case("it is what the model gives: there is nothing to challenge".into()));
            }
            Checked::Skipped(reason) => return Err(WatchError::Case(reason)),
            Checked::Malformed => {
                let (input, output) = (sequence::encode(&case.prompt).into(), sequence::encode(&case.output).into());
                let call = ITrials::convictMalformedCall { receipt, signature, input, output };
                let mined = sender.send(&Intent::call(format!("case/{digest}/malformed"), trials, &call)).await?;
                self.earned(Purse::Channels, mined.block);
                self.tell(WatcherEvent::Sent { job: None, call: "convictMalformed".into(), tx: tx(&mined) });
                return Ok(None);
            }
            Checked::Executed { .. } => {}
        }
        self.store.put(ANSWERS, &digest.to_string(), &(case.prompt, case.output))?;
        let known = self.trial_of(digest).await?;
        if known.is_none() {
            let call = ITrials::lodgeCall { receipt, signature, place: case.place.unwrap_or_default() };
            let mined = sender.send(&Intent::call(format!("case/{digest}/lodge"), trials, &call)).await?;
            self.tell(WatcherEvent::Sent { job: None, call: "lodge".into(), tx: tx(&mined) });
        }
        match known {
            Some(job) => Ok(Some(job)),
            None => self.trial_of(digest).await,
        }
    }

    async fn trial_of(&self, digest: B256) -> Result<Option<u64>> {
        let job = self.chain.trials().jobOf(digest).call().await.map_err(sworn_chain::Error::from)?;
        Ok(Some(job).filter(|j| *j != U256::ZERO).map(job_number))
    }
}
