//! Keys from keystore v3 files. A secret never comes from a flag, and its memory is overwritten when it is dropped: the password's here, the
//! key's by `k256`. What the environment holds stays there.

use std::fs;
use std::path::Path;

use alloy::signers::local::PrivateKeySigner;
use zeroize::Zeroizing;

use crate::{Error, Result};

/// Variable that may hold a keystore's password.
pub const PASSWORD_VARIABLE: &str = "SWORN_KEYSTORE_PASSWORD";

/// The password, from `file`, else from the environment, else from `prompt`.
///
/// # Errors
/// The file cannot be read, or `prompt` has nothing.
pub fn password(
    keystore: &Path,
    file: Option<&Path>,
    prompt: impl FnOnce() -> std::io::Result<String>,
) -> Result<Zeroizing<String>> {
    let fail = |reason: String| Error::Key { path: keystore.to_owned(), reason };
    if let Some(file) = file {
        let text = fs::read_to_string(file).map_err(|e| fail(format!("password file {}: {e}", file.display())))?;
        let text = Zeroizing::new(text);
        let line = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
        return Ok(Zeroizing::new(line.to_owned()));
    }
    let password = match std::env::var(PASSWORD_VARIABLE) {
        Ok(password) => password,
        Err(_) => {
            prompt().map_err(|e| fail(format!("no password ({e}): set {PASSWORD_VARIABLE} or give a password file")))?
        }
    };
    Ok(Zeroizing::new(password))
}

/// Opens a keystore.
///
/// # Errors
/// It is missing, no keystore, or the password is wrong.
pub fn open(keystore: &Path, password: &str) -> Result<PrivateKeySigner> {
    let fail = |reason: String| Error::Key { path: keystore.to_owned(), reason };
    fs::metadata(keystore).map_err(|e| fail(format!("{e}; give the path of a keystore v3 file")))?;
    PrivateKeySigner::decrypt_keystore(keystore, password).map_err(|e| match e.to_string() {
        text if text.contains("Mac Mismatch") => fail("the password is wrong".into()),
        text => fail(format!("{text}; give a keystore v3 file, as geth, foundry and `sworn` write them")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::signers::k256::elliptic_curve::rand_core::OsRng;

    #[test]
    fn a_keystore_opens_with_its_password_only() {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKeySigner::random();
        PrivateKeySigner::encrypt_keystore(dir.path(), &mut OsRng, key.to_bytes(), "open sesame", Some("k")).unwrap();
        let path = dir.path().join("k");
        let file = dir.path().join("p");
        fs::write(&file, "open sesame\n").unwrap();
        let given = password(&path, Some(&file), || unreachable!("the file has it")).unwrap();
        assert_eq!(open(&path, &given).unwrap().address(), key.address());
        assert!(open(&path, "x").unwrap_err().to_string().contains("wrong"));
        assert!(open(&file, "x").unwrap_err().to_string().contains("keystore v3"));
        assert!(open(&dir.path().join("none"), "x").unwrap_err().to_string().contains("keystore v3"));
    }
}
