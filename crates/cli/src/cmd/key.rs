//! `sworn key`.

use std::process::ExitCode;

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use serde::Serialize;

use crate::account_key::KeyPlace;
use crate::args::Key;
use crate::fault::Result;
use crate::keystore;
use crate::settings::Settings;

#[derive(Serialize)]
struct Shown {
    address: Address,
    key: String,
}

pub(super) async fn run(settings: &Settings, verb: Key) -> Result<ExitCode> {
    let shown = match verb {
        Key::New { file } => {
            let key = PrivateKeySigner::random();
            let file = file.unwrap_or_else(|| settings.home.join("keys").join(format!("{}.json", key.address())));
            let password = settings.new_password(&file)?;
            keystore::create(&file, &key, &password)?;
            Shown { address: key.address(), key: KeyPlace::Keystore(file).to_string() }
        }
        Key::Show { file } => {
            let key = match file {
                Some(file) => KeyPlace::Keystore(file),
                None => settings.key_place()?.clone(),
            };
            Shown { address: key.address().await?, key: key.to_string() }
        }
    };
    settings.out.result(&shown, |s| format!("{}  {}", s.address, s.key))?;
    Ok(ExitCode::SUCCESS)
}
