//! What a client checks of a receipt before it believes it. What it cannot check without the model, a watcher can.

use alloy::primitives::{Address, B256};
use sworn_commit::sequence;
use thiserror::Error;

use crate::{Ask, Domain, Receipt, SignedReceipt, recover};

/// A receipt that is not of this answer. Each is evidence against the node, but for [`Mismatch::Signature`] and [`Mismatch::Signer`]:
/// whoever sent it cannot be held to it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Mismatch {
    /// no signature
    #[error("the receipt's signature is none")]
    Signature,
    /// somebody else's
    #[error("the receipt is signed by {actual}, not by the node")]
    Signer { actual: Address },
    /// a field
    #[error("the receipt's {field} is {actual}, not {expected}")]
    Field { field: &'static str, actual: String, expected: String },
    /// a price beyond 128 bits
    #[error("the price of {n_in} prompt tokens and {n_out} output tokens does not fit 128 bits")]
    Price { n_in: u32, n_out: u32 },
}

fn same<T: PartialEq + ToString>(field: &'static str, actual: T, expected: T) -> Result<(), Mismatch> {
    match actual == expected {
        true => Ok(()),
        false => Err(Mismatch::Field { field, actual: actual.to_string(), expected: expected.to_string() }),
    }
}

/// Checks a receipt against what was sent and what came: signature by a key of the node (`is_node` knows them), request, hashes,
/// counts, sampling, and a price as offered. Whether its sequence number and total are right, [`follows`] says.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_answer(
    domain: &Domain,
    channel: B256,
    ask: &Ask,
    output: &[u32],
    signed: &SignedReceipt,
    is_node: impl FnOnce(Address) -> bool,
) -> Result<(), Mismatch> {
    let r = &signed.receipt;
    let signer = recover(domain, r, &signed.signature).map_err(|_| Mismatch::Signature)?;
    if !is_node(signer) {
        return Err(Mismatch::Signer { actual: signer });
    }
    let (n_in, n_out) = (ask.prompt.len() as u32, output.len() as u32);
    same("channel", r.channelId, channel)?;
    same("request", r.request, ask.request)?;
    same("model", r.modelId, ask.model)?;
    same("number of prompt tokens", r.nIn, n_in)?;
    same("number of output tokens", r.nOut, n_out)?;
    same("input hash", r.inputHash, sequence::hash(&ask.prompt).into())?;
    same("output hash", r.outputHash, sequence::hash(output).into())?;
    same("limit of output tokens", r.maxNew, ask.max_new)?;
    same("sampling", r.sampling, ask.sampling)?;
    same("seed", r.seed, ask.seed)?;
    let price = ask.offer.offer.price(n_in, n_out).ok_or(Mismatch::Price { n_in, n_out })?;
    same("price", r.price, price)
}

/// Checks that a receipt continues the channel: the next number, and a total that grew by its price. `previous` is the receipt of
/// the number before, none for the channel's first.
///
/// # Errors
/// It does not.
pub fn follows(previous: Option<&Receipt>, receipt: &Receipt) -> Result<(), Mismatch> {
    let (sequence, cumulative) = previous.map_or((0, 0), |p| (p.sequence, p.cumulative));
    same("sequence number", receipt.sequence, sequence.saturating_add(1))?;
    same("total", receipt.cumulative, cumulative.saturating_add(receipt.price))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Offer, SignedOffer, sign_sync};
    use alloy::primitives::{Bytes, U256};
    use alloy::signers::local::PrivateKeySigner;

    const DOMAIN: Domain = Domain { chain_id: 1, channels: Address::repeat_byte(2) };
    const CHANNEL: B256 = B256::repeat_byte(9);

    fn ask() -> Ask {
        let offer = Offer { perInputToken: 2, perOutputToken: 3, ..Offer::default() };
        Ask {
            request: 4,
            model: B256::repeat_byte(7),
            prompt: vec![1, 2],
            max_new: 8,
            sampling: U256::ZERO,
            seed: B256::ZERO,
            cumulative: 1_000,
            voucher: Bytes::new(),
            offer: SignedOffer { offer, signature: Bytes::new() },
            logprobs: None,
        }
    }

    fn honest(ask: &Ask, output: &[u32]) -> Receipt {
        Receipt {
            channelId: CHANNEL,
            sequence: 1,
            request: ask.request,
            modelId: ask.model,
            inputHash: sequence::hash(&ask.prompt).into(),
            outputHash: sequence::hash(output).into(),
            nIn: ask.prompt.len() as u32,
            nOut: output.len() as u32,
            maxNew: ask.max_new,
            sampling: ask.sampling,
            seed: ask.seed,
            layersRoot: B256::repeat_byte(1),
            price: 13,
            cumulative: 13,
        }
    }

    #[test]
    fn a_receipt_is_believed_only_if_all_of_it_is_right() {
        let (ask, output, key) = (ask(), [5, 6, 7], PrivateKeySigner::random());
        let check = |receipt: Receipt| {
            let signature = sign_sync(&key, &DOMAIN, &receipt).unwrap().into();
            check_answer(&DOMAIN, CHANNEL, &ask, &output, &SignedReceipt { receipt, signature }, |a| a == key.address())
        };
        let right = honest(&ask, &output);
        assert_eq!(check(right.clone()), Ok(()));
        for wrong in [
            Receipt { channelId: B256::ZERO, ..right.clone() },
            Receipt { request: 5, ..right.clone() },
            Receipt { modelId: B256::ZERO, ..right.clone() },
            Receipt { nIn: 3, ..right.clone() },
            Receipt { nOut: 2, ..right.clone() },
            Receipt { inputHash: B256::ZERO, ..right.clone() },
            Receipt { outputHash: B256::ZERO, ..right.clone() },
            Receipt { maxNew: 9, ..right.clone() },
            Receipt { sampling: U256::ONE, ..right.clone() },
            Receipt { seed: B256::repeat_byte(1), ..right.clone() },
            Receipt { price: 14, ..right.clone() },
        ] {
            assert!(matches!(check(wrong), Err(Mismatch::Field { .. })));
        }
        let signature: Bytes = sign_sync(&key, &DOMAIN, &right).unwrap().into();
        let signed = SignedReceipt { receipt: right.clone(), signature };
        let stranger = check_answer(&DOMAIN, CHANNEL, &ask, &output, &signed, |_| false);
        assert_eq!(stranger, Err(Mismatch::Signer { actual: key.address() }));
        let unsigned = SignedReceipt { signature: Bytes::new(), ..signed };
        assert_eq!(check_answer(&DOMAIN, CHANNEL, &ask, &output, &unsigned, |_| true), Err(Mismatch::Signature));
    }

    #[test]
    fn receipts_follow_each_other() {
        let first = Receipt { sequence: 1, price: 5, cumulative: 5, ..Receipt::default() };
        let second = Receipt { sequence: 2, price: 6, cumulative: 11, ..Receipt::default() };
        assert_eq!(follows(None, &first), Ok(()));
        assert_eq!(follows(Some(&first), &second), Ok(()));
        assert!(follows(None, &second).is_err() && follows(Some(&second), &first).is_err());
        assert!(follows(Some(&first), &Receipt { cumulative: 12, ..second }).is_err());
        let full = Receipt { sequence: u64::MAX, cumulative: u128::MAX, ..Receipt::default() };
        assert!(follows(Some(&full), &Receipt { price: 1, ..full.clone() }).is_ok(), "saturates instead of panicking");
    }

    #[test]
    fn what_an_ask_promises() {
        let ask = ask();
        let voucher = ask.voucher(CHANNEL).unwrap();
        assert_eq!(voucher.requestHash, honest(&ask, &[5]).request_hash().unwrap());
        assert_eq!((voucher.request, voucher.cumulative), (4, 1_000));
        assert_eq!(ask.maximum(), Some(2 * 2 + 8 * 3));
        assert_eq!(Ask { sampling: U256::MAX, ..ask }.voucher(CHANNEL), None);
    }
}
