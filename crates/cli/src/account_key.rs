//! Where the account's key is: in a keystore, or where it never leaves (a key management service, a hardware wallet).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use alloy::network::{Ethereum, EthereumWallet, NetworkWallet};
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;

use crate::fault::{Fault, Result};
use crate::keystore;

const AWS_KMS: &str = "aws-kms:";
const LEDGER: &str = "ledger:";

/// What `--key` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyPlace {
    /// A keystore v3 file.
    Keystore(PathBuf),
    /// A key's id, ARN or alias in AWS's key management service.
    AwsKms(String),
    /// An account of a Ledger, as Ledger Live counts.
    Ledger(u32),
}

impl FromStr for KeyPlace {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(id) = text.strip_prefix(AWS_KMS) {
            return match id.trim() {
                "" => Err(format!("{AWS_KMS} is followed by the key's id, ARN or alias")),
                id => Ok(KeyPlace::AwsKms(id.to_owned())),
            };
        }
        match text.strip_prefix(LEDGER) {
            Some(n) => n
                .parse()
                .map(KeyPlace::Ledger)
                .map_err(|_| format!("{LEDGER} is followed by the account's number, from 0")),
            None if text.is_empty() => Err("no name of a file".into()),
            None => Ok(KeyPlace::Keystore(text.into())),
        }
    }
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPlace::Keystore(path) => write!(f, "{}", path.display()),
            KeyPlace::AwsKms(id) => write!(f, "{AWS_KMS}{id}"),
            KeyPlace::Ledger(account) => write!(f, "{LEDGER}{account}"),
        }
    }
}

impl KeyPlace {
    /// What can be said without a password or a connection.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            KeyPlace::Keystore(path) => keystore::check(path),
            KeyPlace::AwsKms(_) if cfg!(not(feature = "aws-kms")) => Err(not_built("aws-kms")),
            KeyPlace::Ledger(_) if cfg!(not(feature = "ledger")) => Err(not_built("ledger")),
            _ => Ok(()),
        }
    }

    /// The account, without a password.
    pub(crate) async fn address(&self) -> Result<Address> {
        match self {
            KeyPlace::Keystore(path) => keystore::address(path),
            remote => Ok(remote.reach().await?.address()),
        }
    }

    /// Connects to a key that stays where it is.
    pub(crate) async fn reach(&self) -> Result<AccountKey> {
        self.check()?;
        match self {
            KeyPlace::Keystore(path) => Err(Fault::usage(format!("{} wants its password", path.display()))),
            #[cfg(feature = "aws-kms")]
            KeyPlace::AwsKms(id) => {
                let config = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
                let signer = alloy::signers::aws::AwsSigner::new(aws_sdk_kms::Client::new(&config), id.clone(), None);
                let signer = signer.await.map_err(|e| {
                    // The service's own words are in the sources.
                    let words = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source());
                    let words: Vec<String> = words.map(ToString::to_string).collect();
                    Fault::failed(format!(
                        "{self}: {}; check the id, the region and the credentials (AWS_REGION, AWS_PROFILE), and that the key \
                         is ECC_SECG_P256K1 for SIGN_VERIFY",
                        words.join(": ")
                    ))
                })?;
                Ok(AccountKey::Remote { wallet: signer.into(), place: self.to_string() })
            }
            #[cfg(feature = "ledger")]
            KeyPlace::Ledger(account) => {
                let path = alloy::signers::ledger::HDPath::LedgerLive(*account as usize);
                let signer = alloy::signers::ledger::LedgerSigner::new(path, None).await;
                let signer = signer.map_err(|e| {
                    Fault::failed(format!("{self}: {e}; plug the Ledger in, unlock it and open its Ethereum app"))
                })?;
                Ok(AccountKey::Remote { wallet: signer.into(), place: self.to_string() })
            }
            #[cfg(not(all(feature = "aws-kms", feature = "ledger")))]
            _ => Err(Fault::usage(format!("{self} is not in this build"))),
        }
    }
}

fn not_built(feature: &str) -> Fault {
    Fault::usage(format!(
        "this build of sworn has no {feature} keys: build it with `cargo build --release -p sworn-cli --features {feature}`"
    ))
}

/// A key that signs.
#[derive(Clone, Debug)]
pub(crate) enum AccountKey {
    /// In this process.
    Local(PrivateKeySigner),
    #[cfg_attr(
        not(any(feature = "aws-kms", feature = "ledger")),
        expect(dead_code, reason = "no such key in this build")
    )]
    /// Elsewhere: a signature takes a while, so it is for transactions.
    Remote {
        /// Asks for signatures.
        wallet: EthereumWallet,
        /// What `--key` said.
        place: String,
    },
}

impl AccountKey {
    pub(crate) fn address(&self) -> Address {
        match self {
            AccountKey::Local(key) => key.address(),
            AccountKey::Remote { wallet, .. } => NetworkWallet::<Ethereum>::default_signer_address(wallet),
        }
    }

    /// The key itself, for what is signed at every request; `what` is signed, and how else.
    pub(crate) fn local(self, what: &str) -> Result<PrivateKeySigner> {
        match self {
            AccountKey::Local(key) => Ok(key),
            AccountKey::Remote { place, .. } => {
                Err(Fault::usage(format!("{place} signs transactions, but this signs {what} of a keystore's key")))
            }
        }
    }
}

impl From<AccountKey> for EthereumWallet {
    fn from(key: AccountKey) -> Self {
        match key {
            AccountKey::Local(key) => key.into(),
            AccountKey::Remote { wallet, .. } => wallet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_in_one_word() {
        let parsed = |text: &str| text.parse::<KeyPlace>();
        assert_eq!(parsed("keys/a.json").unwrap(), KeyPlace::Keystore("keys/a.json".into()));
        assert_eq!(parsed("aws-kms:alias/stake").unwrap(), KeyPlace::AwsKms("alias/stake".into()));
        assert_eq!(parsed("ledger:2").unwrap(), KeyPlace::Ledger(2));
        for wrong in ["", "aws-kms:", "aws-kms: ", "ledger:", "ledger:-1", "ledger:x"] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        for text in ["keys/a.json", "aws-kms:alias/stake", "ledger:2"] {
            assert_eq!(parsed(text).unwrap().to_string(), text);
        }
    }

    #[test]
    #[cfg(not(feature = "ledger"))]
    fn what_the_build_lacks_is_said() {
        let told = KeyPlace::Ledger(0).check().unwrap_err().to_string();
        assert!(told.contains("--features ledger"), "{told}");
    }
}
