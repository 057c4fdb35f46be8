//! What every verb may need, taken from the global flags when it is needed: a verb that signs nothing asks for no key.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use sworn_bindings::Deployment;
use sworn_chain::key::PASSWORD_VARIABLE;
use zeroize::Zeroizing;

use crate::account_key::{AccountKey, KeyPlace};
use crate::args::Global;
use crate::config;
use crate::fault::{Fault, Result};
use crate::keystore;
use crate::output::Output;

/// The global flags, with the home directory settled.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where results go.
    pub(crate) out: Output,
    /// Models, keys, state.
    pub(crate) home: PathBuf,
    /// The chain's endpoint.
    pub(crate) rpc: String,
    key: Option<KeyPlace>,
    password_file: Option<PathBuf>,
    deployment: Option<PathBuf>,
    log: String,
}

impl Settings {
    pub(crate) fn new(global: Global) -> Result<Self> {
        let home = match global.home {
            Some(home) => home,
            None => config::default_home()?,
        };
        Ok(Self {
            out: Output::new(global.json),
            home,
            rpc: global.rpc,
            key: global.key,
            password_file: global.password_file,
            deployment: global.deployment,
            log: global.log,
        })
    }

    /// Sends the log to stderr, filtered.
    pub(crate) fn start_log(&self) -> Result<()> {
        let filter = tracing_subscriber::EnvFilter::try_new(&self.log).map_err(|e| {
            Fault::usage(format!("--log {:?} is no filter ({e}): use for instance info or sworn_node=debug", self.log))
        })?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(true)
            // Of a log that cannot be written, on a full disk, it would tell by a macro that panics when that cannot be written either.
            .log_internal_errors(false)
            .init();
        Ok(())
    }

    /// The deployment file's contents.
    pub(crate) fn deployment(&self) -> Result<Deployment> {
        let path = self.deployment.as_ref().ok_or_else(|| {
            Fault::usage("no deployment: give --deployment FILE (or SWORN_DEPLOYMENT); `sworn devnet` makes one and prints its path")
        })?;
        Ok(Deployment::load(path)?)
    }

    /// Whether a deployment was named.
    pub(crate) fn has_deployment(&self) -> bool {
        self.deployment.is_some()
    }

    /// Where the account's key is.
    pub(crate) fn key_place(&self) -> Result<&KeyPlace> {
        self.key.as_ref().ok_or_else(|| {
            Fault::usage("no key: give --key FILE (or SWORN_KEY), a keystore v3 file; `sworn key new` makes one")
        })
    }

    /// The account of the key, without its password.
    pub(crate) async fn account(&self) -> Result<Address> {
        self.key_place()?.address().await
    }

    /// The account's key, decrypted or reached.
    pub(crate) async fn open_key(&self) -> Result<AccountKey> {
        match self.key_place()? {
            KeyPlace::Keystore(path) => {
                keystore::check(path)?;
                let password = self.password(path, &format!("Password of {}: ", path.display()))?;
                Ok(AccountKey::Local(keystore::open(path, &password)?))
            }
            remote => remote.reach().await,
        }
    }

    /// The key that signs receipts: in a keystore of its own, whose password is in a file or the account's.
    pub(crate) fn session_signer(&self, path: &Path, password: Option<&Path>) -> Result<PrivateKeySigner> {
        keystore::check(path)?;
        let file = password.or(self.password_file.as_deref());
        let password = Self::password_of(path, file, &format!("Password of {}: ", path.display()))?;
        keystore::open(path, &password)
    }

    /// A password for a new key: typed twice when it comes from a terminal.
    pub(crate) fn new_password(&self, keystore: &Path) -> Result<Zeroizing<String>> {
        let password = self.password(keystore, "New password: ")?;
        let typed = self.password_file.is_none() && std::env::var_os(PASSWORD_VARIABLE).is_none();
        if typed && self.password(keystore, "The same again: ")? != password {
            return Err(Fault::failed("the two passwords differ; nothing was written"));
        }
        Ok(password)
    }

    fn password(&self, keystore: &Path, prompt: &str) -> Result<Zeroizing<String>> {
        Self::password_of(keystore, self.password_file.as_deref(), prompt)
    }

    fn password_of(keystore: &Path, file: Option<&Path>, prompt: &str) -> Result<Zeroizing<String>> {
        Ok(sworn_chain::key::password(keystore, file, || {
            if std::io::stdin().is_terminal() {
                rpassword::prompt_password(prompt)
            } else {
                Err(std::io::Error::other("there is no terminal to ask on"))
            }
        })?)
    }
}
