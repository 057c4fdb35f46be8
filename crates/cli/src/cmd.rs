//! The verbs.

mod audit;
mod eval;
mod key;
mod model;
mod run;

use std::process::ExitCode;

use crate::args::Noun;
use crate::fault::{Fault, Result};
use crate::settings::Settings;

pub(crate) async fn run(settings: Settings, noun: Noun) -> Result<ExitCode> {
    match noun {
        Noun::Key(verb) => key::run(&settings, verb),
        Noun::Model(verb) => model::run(&settings, verb).await,
        Noun::Run(command) => run::run(&settings, command).await,
        Noun::Audit(command) => audit::run(&settings, command).await,
        Noun::Eval(command) => eval::run(&settings, command).await,
        _ => Err(Fault::failed("later")),
    }
}
