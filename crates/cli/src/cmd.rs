//! The verbs.

mod key;

use std::process::ExitCode;

use crate::args::Noun;
use crate::fault::{Fault, Result};
use crate::settings::Settings;

pub(crate) async fn run(settings: Settings, noun: Noun) -> Result<ExitCode> {
    match noun {
        Noun::Key(verb) => key::run(&settings, verb),
        _ => Err(Fault::failed("later")),
    }
}
