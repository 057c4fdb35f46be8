//! A receipt on disk: all that a re-execution needs, and the node's signature under it. `sworn audit` reads it.

use alloy::primitives::B256;
use serde::{Deserialize, Serialize};
use sworn_receipts::{Domain, SignedReceipt, recover};

/// The format's name.
pub const FORMAT: &str = "sworn-receipt/1";

/// A receipt with the tokens it speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptFile {
    /// [`FORMAT`].
    pub format: String,
    /// Which contract on which chain it is for.
    pub domain: Domain,
    /// The node that it is of.
    pub node: alloy::primitives::Address,
    /// Its name.
    pub digest: B256,
    /// The receipt and its signature.
    #[serde(flatten)]
    pub signed: SignedReceipt,
    /// The prompt's tokens.
    pub input_tokens: Vec<u32>,
    /// The answer's tokens.
    pub tokens: Vec<u32>,
    /// What is wrong with it, if the gateway refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl ReceiptFile {
    /// Of an answer.
    pub fn new(
        domain: Domain,
        node: alloy::primitives::Address,
        signed: SignedReceipt,
        input: &[u32],
        output: &[u32],
    ) -> Self {
        ReceiptFile {
            format: FORMAT.to_owned(),
            domain,
            node,
            digest: domain.digest(&signed.receipt),
            signed,
            input_tokens: input.to_vec(),
            tokens: output.to_vec(),
            fault: None,
        }
    }

    /// What contradicts itself in it, before anything is executed.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<alloy::primitives::Address, String> {
        if self.format != FORMAT {
            return Err(format!("its format is {:?}, this build reads {FORMAT}", self.format));
        }
        let r = &self.signed.receipt;
        if self.domain.digest(r) != self.digest {
            return Err("its digest is not the receipt's".into());
        }
        if !r.is_of(&self.input_tokens, &self.tokens) {
            return Err("its tokens are not those that the receipt speaks of".into());
        }
        recover(&self.domain, r, &self.signed.signature).map_err(|_| "its signature is none".into())
    }
}
