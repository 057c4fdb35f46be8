//! Who may sign a channel's vouchers: a key, or a contract that says whether it has signed (ERC-1271).

use alloy::primitives::Address;
use sworn_chain::Error;
use sworn_receipts::{Code, Refusal, Voucher, recover};

use super::{Channels, unavailable};

mod sol {
    alloy::sol! {
        interface IERC1271 {
            function isValidSignature(bytes32 hash, bytes signature) external view returns (bytes4);
        }
    }
}

/// What such a contract returns for a signature of its own: the function's selector.
const VALID: [u8; 4] = [0x16, 0x26, 0xba, 0x7e];
/// Bytes of a contract's signature; more are not asked about.
const LONGEST: usize = 4_096;

impl Channels {
    /// Checks that a voucher is signed by the channel's signer.
    pub(super) async fn check_signer(
        &self,
        signer: Address,
        voucher: &Voucher,
        signature: &[u8],
    ) -> Result<(), Refusal> {
        if recover(&self.domain, voucher, signature).is_ok_and(|by| by == signer) {
            return Ok(());
        }
        let told = |why: &str| {
            Refusal::new(Code::WrongSigner, format!("the voucher is not signed by the channel's signer {signer}{why}"))
        };
        if !self.terms.contract_signers {
            return Err(told(", and this node asks no contracts"));
        }
        if signature.len() > LONGEST {
            return Err(told(": no signature is as long"));
        }
        let call = sol::IERC1271::isValidSignatureCall {
            hash: self.domain.digest(voucher),
            signature: signature.to_vec().into(),
        };
        match self.chain.simulate("isValidSignature", self.node, signer, &call).await {
            Ok(word) if word == VALID => Ok(()),
            // It says no, it refuses, or nobody is there to say anything.
            Ok(_) | Err(Error::Answer(_)) => Err(told("")),
            Err(e) if e.revert().is_some() => Err(told("")),
            Err(e) => Err(unavailable(e)),
        }
    }
}
