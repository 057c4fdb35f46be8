//! Keystore v3 files.

use std::fs;
use std::path::Path;

use alloy::primitives::Address;
use alloy::signers::k256::elliptic_curve::rand_core::OsRng;
use alloy::signers::local::PrivateKeySigner;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::fault::{Doing, Fault, Result};

/// Writes a new key, readable by its owner only. An existing file is never overwritten.
pub(crate) fn create(path: &Path, key: &PrivateKeySigner, password: &str) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::usage(format!("{} is no file name", path.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    fs::create_dir_all(parent).doing(|| format!("cannot create {}", parent.display()))?;
    if path.exists() {
        return Err(Fault::failed(format!(
            "{} exists: a key is never overwritten; choose another file",
            path.display()
        )));
    }
    // Written beside and renamed, so that a full disk leaves no half key under the final name.
    let temporary = format!(".{}.new", name.to_string_lossy());
    let doing = || format!("cannot write the key to {}", path.display());
    let secret = Zeroizing::new(key.to_bytes().0);
    PrivateKeySigner::encrypt_keystore(parent, &mut OsRng, *secret, password, Some(&temporary)).doing(doing)?;
    let temporary = parent.join(temporary);
    let mut json = read(&temporary)?;
    // Not encrypted in any keystore: lets the account be shown without the password.
    json["address"] = Value::from(hex::encode(key.address()));
    fs::write(&temporary, json.to_string()).doing(doing)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).doing(doing)?;
    }
    fs::rename(&temporary, path).doing(doing)
}

/// The account, which the file states in the clear.
pub(crate) fn address(path: &Path) -> Result<Address> {
    let json = read(path)?;
    json["address"].as_str().and_then(|a| a.trim_start_matches("0x").parse().ok()).ok_or_else(|| {
        Fault::failed(format!(
            "{} does not state its address: make the key with `sworn key new`, or give the address",
            path.display()
        ))
    })
}

/// That the file is a keystore which can be decrypted, given its password.
pub(crate) fn check(path: &Path) -> Result<()> {
    let json = read(path)?;
    let crypto = &json["crypto"];
    let bytes = |v: &Value| v.as_str().and_then(|s| hex::decode(s).ok()).map(|b| b.len());
    let cost = crypto["kdfparams"]["n"].as_u64().unwrap_or(2);
    let sound = json["version"] == 3
        && crypto["kdfparams"]["dklen"] == 32
        && bytes(&crypto["cipherparams"]["iv"]) == Some(16)
        && bytes(&crypto["ciphertext"]) == Some(32)
        && bytes(&crypto["mac"]) == Some(32)
        && cost.is_power_of_two()
        && (2..=1 << 22).contains(&cost);
    if sound {
        Ok(())
    } else {
        Err(Fault::failed(format!(
            "{} is no keystore v3 file: give the file that `sworn key new`, geth or foundry wrote",
            path.display()
        )))
    }
}

/// Decrypts.
pub(crate) fn open(path: &Path, password: &str) -> Result<PrivateKeySigner> {
    // What is wrong with a damaged file is found here: the decryption would not survive it.
    check(path)?;
    Ok(sworn_chain::key::open(path, password)?)
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path)
        .doing(|| format!("cannot read the key {}: check --key; `sworn key new` makes one", path.display()))?;
    serde_json::from_str(&text).doing(|| {
        format!("{} is no keystore v3 file: give the file that `sworn key new`, geth or foundry wrote", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_with_its_password_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k/a.json");
        let key = PrivateKeySigner::random();
        create(&path, &key, "open sesame").unwrap();
        assert_eq!(address(&path).unwrap(), key.address());
        check(&path).unwrap();
        assert_eq!(open(&path, "open sesame").unwrap().to_bytes(), key.to_bytes());
        assert!(open(&path, "open").unwrap_err().to_string().contains("password"));
        assert!(create(&path, &key, "x").unwrap_err().to_string().contains("never overwritten"));
        assert_eq!(fs::read_dir(dir.path().join("k")).unwrap().count(), 1);
    }

    #[test]
    fn damaged_keystores_are_refused_before_the_decryption() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        create(&path, &PrivateKeySigner::random(), "p").unwrap();
        let whole: Value = read(&path).unwrap();
        for pointer in [
            "/version",
            "/crypto/kdfparams/dklen",
            "/crypto/kdfparams/n",
            "/crypto/cipherparams/iv",
            "/crypto/ciphertext",
            "/crypto/mac",
        ] {
            let mut broken = whole.clone();
            *broken.pointer_mut(pointer).unwrap() = Value::from(7);
            fs::write(&path, broken.to_string()).unwrap();
            assert!(check(&path).is_err(), "{pointer}");
        }
        fs::write(&path, "no json").unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("keystore v3"));
    }
}
