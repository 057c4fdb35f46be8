//! `sworn key`.

use std::path::PathBuf;
use std::process::ExitCode;

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use serde::Serialize;

use crate::args::Key;
use crate::fault::Result;
use crate::keystore;
use crate::settings::Settings;

#[derive(Serialize)]
struct Shown {
    address: Address,
    file: PathBuf,
}

pub(super) fn run(settings: &Settings, verb: Key) -> Result<ExitCode> {
    let shown = match verb {
        Key::New { file } => {
            let key = PrivateKeySigner::random();
            let file = file.unwrap_or_else(|| settings.home.join("keys").join(format!("{}.json", key.address())));
            let password = settings.new_password(&file)?;
            keystore::create(&file, &key, &password)?;
            Shown { address: key.address(), file }
        }
        Key::Show { file } => {
            let file = match file {
                Some(file) => file,
                None => settings.key_file()?.to_owned(),
            };
            Shown { address: keystore::address(&file)?, file }
        }
    };
    settings.out.result(&shown, |s| format!("{}  {}", s.address, s.file.display()))?;
    Ok(ExitCode::SUCCESS)
}
