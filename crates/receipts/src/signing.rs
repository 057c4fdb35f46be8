//! Signing promises, and finding out who did.

use alloy::primitives::{Address, Signature};
use alloy::signers::{Signer, SignerSync};
use alloy::sol_types::SolStruct;

use crate::{Domain, Error, Result};

/// Signs a promise: r ‖ s ‖ v.
///
/// # Errors
/// The signer refuses.
pub async fn sign<T: SolStruct + Send + Sync>(
    signer: &(impl Signer + Sync),
    domain: &Domain,
    promise: &T,
) -> Result<Vec<u8>> {
    Ok(signer.sign_hash(&domain.digest(promise)).await?.as_bytes().to_vec())
}

/// [`sign`] with a key at hand.
///
/// # Errors
/// The signer refuses.
pub fn sign_sync<T: SolStruct>(signer: &impl SignerSync, domain: &Domain, promise: &T) -> Result<Vec<u8>> {
    Ok(signer.sign_hash_sync(&domain.digest(promise))?.as_bytes().to_vec())
}

/// Who signed a promise. Exactly what the contract accepts: 65 bytes, low s, v 27 or 28, so that a signature that holds here holds
/// there, and nobody can make a second one from it.
///
/// # Errors
/// No such signature.
pub fn recover<T: SolStruct>(domain: &Domain, promise: &T, signature: &[u8]) -> Result<Address> {
    let bytes: &[u8; 65] = signature.try_into().map_err(|_| Error::Signature)?;
    if !matches!(bytes[64], 27 | 28) {
        return Err(Error::Signature);
    }
    let signature = Signature::from_raw_array(bytes).map_err(|_| Error::Signature)?;
    if signature.normalize_s().is_some() {
        return Err(Error::Signature);
    }
    signature.recover_address_from_prehash(&domain.digest(promise)).map_err(|_| Error::Signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Offer, Receipt, Voucher};
    use alloy::primitives::{B256, U256};
    use alloy::signers::local::PrivateKeySigner;
    use proptest::prelude::*;

    const DOMAIN: Domain = Domain { chain_id: 31_337, channels: Address::repeat_byte(0xC4) };

    fn key() -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(0x11)).unwrap()
    }

    prop_compose! {
        fn receipt()(words: [[u8; 32]; 6], wide: [u128; 2], long: [u64; 2], short: [u32; 3]) -> Receipt {
            Receipt {
                channelId: words[0].into(), sequence: long[0], request: long[1], modelId: words[1].into(),
                inputHash: words[2].into(), outputHash: words[3].into(), nIn: short[0], nOut: short[1], maxNew: short[2],
                sampling: U256::from_be_bytes(words[4]), seed: words[5].into(), layersRoot: words[0].into(),
                price: wide[0], cumulative: wide[1],
            }
        }
    }

    /// Every receipt that differs in one field.
    fn changed(r: &Receipt) -> Vec<Receipt> {
        let flip = |w: B256| B256::from(U256::from_be_bytes(w.0).wrapping_add(U256::ONE));
        vec![
            Receipt { channelId: flip(r.channelId), ..r.clone() },
            Receipt { sequence: r.sequence ^ 1, ..r.clone() },
            Receipt { request: r.request ^ 1, ..r.clone() },
            Receipt { modelId: flip(r.modelId), ..r.clone() },
            Receipt { inputHash: flip(r.inputHash), ..r.clone() },
            Receipt { outputHash: flip(r.outputHash), ..r.clone() },
            Receipt { nIn: r.nIn ^ 1, ..r.clone() },
            Receipt { nOut: r.nOut ^ 1, ..r.clone() },
            Receipt { maxNew: r.maxNew ^ 1, ..r.clone() },
            Receipt { sampling: r.sampling ^ U256::ONE, ..r.clone() },
            Receipt { seed: flip(r.seed), ..r.clone() },
            Receipt { layersRoot: flip(r.layersRoot), ..r.clone() },
            Receipt { price: r.price ^ 1, ..r.clone() },
            Receipt { cumulative: r.cumulative ^ 1, ..r.clone() },
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_signature_is_of_every_field(r in receipt(), bit in 0usize..520) {
            let signature = sign_sync(&key(), &DOMAIN, &r).unwrap();
            prop_assert_eq!(recover(&DOMAIN, &r, &signature).unwrap(), key().address());
            for other in changed(&r) {
                prop_assert_ne!(recover(&DOMAIN, &other, &signature).ok(), Some(key().address()));
            }
            for domain in [Domain { chain_id: 1, ..DOMAIN }, Domain { channels: Address::ZERO, ..DOMAIN }] {
                prop_assert_ne!(recover(&domain, &r, &signature).ok(), Some(key().address()));
            }
            let mut broken = signature.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(recover(&DOMAIN, &r, &broken).ok(), Some(key().address()));
        }

        #[test]
        fn receipts_survive_json(r in receipt()) {
            let text = serde_json::to_string(&r).unwrap();
            prop_assert_eq!(serde_json::from_str::<Receipt>(&text).unwrap(), r);
        }
    }

    /// The same signature written otherwise would be a second one.
    #[test]
    fn one_spelling_of_a_signature() {
        let r = Receipt::default();
        let good = sign_sync(&key(), &DOMAIN, &r).unwrap();
        let n = U256::from_str_radix("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16).unwrap();
        let mut high = good.clone();
        let s = n - U256::from_be_slice(&good[32..64]);
        high[32..64].copy_from_slice(&s.to_be_bytes::<32>());
        high[64] = 55 - high[64];
        let mut parity = good.clone();
        parity[64] -= 27;
        for bad in [&high[..], &parity, &good[..64], &[good.clone(), vec![0]].concat(), &[0; 65], &[]] {
            assert!(recover(&DOMAIN, &r, bad).is_err());
        }
    }

    /// As the contract's constants: whoever changes a name or a type changes what is signed.
    #[test]
    fn the_types_are_the_contracts() {
        let types = [Voucher::default().eip712_type_hash(), Receipt::default().eip712_type_hash()];
        let text = [
            "Voucher(bytes32 channelId,uint64 request,bytes32 modelId,uint128 cumulative,bytes32 requestHash)",
            "Receipt(bytes32 channelId,uint64 sequence,uint64 request,bytes32 modelId,bytes32 inputHash,bytes32 outputHash,\
             uint32 nIn,uint32 nOut,uint32 maxNew,uint256 sampling,bytes32 seed,bytes32 layersRoot,uint128 price,\
             uint128 cumulative)",
        ];
        assert_eq!(types, text.map(alloy::primitives::keccak256));
        assert_ne!(DOMAIN.digest(&Offer::default()), DOMAIN.digest(&Voucher::default()));
    }
}
