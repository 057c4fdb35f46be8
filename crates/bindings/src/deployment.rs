//! Where the contracts of one deployment are.

use std::fs;
use std::path::{Path, PathBuf};

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What `script/Deploy.s.sol` writes: one JSON object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// Chain the contracts are on.
    pub chain_id: u64,
    /// Payment token.
    pub token: Address,
    /// `IModels`.
    pub models: Address,
    /// `INodes`.
    pub nodes: Address,
    /// `IMarket`.
    pub market: Address,
    /// `IChannels`.
    pub channels: Address,
    /// `ITrials`.
    pub trials: Address,
    /// `IChallenges`.
    pub challenges: Address,
    /// `IStepVerifier`.
    pub step_verifier: Address,
    /// No event of these contracts is older than this block.
    pub block: u64,
}

/// A deployment file that cannot be used.
#[derive(Debug, Error)]
pub enum DeploymentError {
    /// not readable or not writable
    #[error("deployment file {path}: {source}; give the file that script/Deploy.s.sol wrote")]
    Io {
        /// the file
        path: PathBuf,
        /// as the system says
        source: std::io::Error,
    },
    /// not a deployment
    #[error("{path} is no deployment file ({source}): deploy again or take the file from whoever deployed")]
    Json {
        /// the file
        path: PathBuf,
        /// what is wrong in it
        source: serde_json::Error,
    },
}

impl Deployment {
    /// Reads a file.
    ///
    /// # Errors
    /// The file is missing, unreadable or not a deployment.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, DeploymentError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|source| DeploymentError::Io { path: path.to_owned(), source })?;
        serde_json::from_str(&text).map_err(|source| DeploymentError::Json { path: path.to_owned(), source })
    }

    /// Writes a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), DeploymentError> {
        let path = path.as_ref();
        let text = serde_json::to_string_pretty(self)
            .map_err(|source| DeploymentError::Json { path: path.to_owned(), source })?;
        fs::write(path, text + "\n").map_err(|source| DeploymentError::Io { path: path.to_owned(), source })
    }

    /// Every contract with its name.
    pub fn contracts(&self) -> [(&'static str, Address); 8] {
        [
            ("token", self.token),
            ("models", self.models),
            ("nodes", self.nodes),
            ("market", self.market),
            ("channels", self.channels),
            ("trials", self.trials),
            ("challenges", self.challenges),
            ("stepVerifier", self.step_verifier),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_the_script_writes() {
        let text = r#"{"chainId":31337,"token":"0x0000000000000000000000000000000000000001",
            "models":"0x0000000000000000000000000000000000000002","nodes":"0x0000000000000000000000000000000000000003",
            "market":"0x0000000000000000000000000000000000000004","challenges":"0x0000000000000000000000000000000000000005",
            "stepVerifier":"0x0000000000000000000000000000000000000006","channels":"0x0000000000000000000000000000000000000007",
            "trials":"0x0000000000000000000000000000000000000008","block":7}"#;
        let d: Deployment = serde_json::from_str(text).unwrap();
        assert_eq!((d.chain_id, d.block), (31337, 7));
        assert_eq!(d.step_verifier, Address::with_last_byte(6));
        assert_eq!((d.channels, d.trials), (Address::with_last_byte(7), Address::with_last_byte(8)));
        assert_eq!(serde_json::from_str::<Deployment>(&serde_json::to_string(&d).unwrap()).unwrap(), d);
        assert!(Deployment::load("no such file").unwrap_err().to_string().contains("Deploy.s.sol"));
    }
}
