//! The `sworn` command.
//!
//! **Owns** the command tree, the layering of settings, what people and scripts read, and the processes of a devnet and a
//! demo. **May depend on** every other crate of the product. **Must never** hold protocol or arithmetic of its own, write to
//! stdout outside `output`, take a secret from a flag, or link the dishonest test nodes.
#![forbid(unsafe_code)]

mod account_key;
mod amount;
mod answer;
mod args;
mod backend;
mod cmd;
mod config;
mod events;
mod fault;
mod history;
mod keystore;
mod link;
mod localnet;
mod logprobs;
mod models;
mod monitoring;
mod output;
mod process;
mod progress;
mod prompt;
mod sampling;
mod settings;
mod times;
mod tools;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(fault) => {
            if fault.code() != 0 {
                output::note(format!("error: {fault}"));
            }
            ExitCode::from(fault.code())
        }
    }
}

fn run() -> fault::Result<ExitCode> {
    let cli = match config::parse(std::env::args_os().collect())? {
        Ok(cli) => cli,
        Err(message) => {
            let code = message.exit_code();
            // Help asked for goes to stdout, help for a slip to stderr; a closed pipe is no failure of ours.
            let _ = message.print();
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(2)));
        }
    };
    let settings = settings::Settings::new(cli.global)?;
    settings.start_log()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(cmd::run(settings, cli.noun));
    // A blocking read of a terminal or a running kernel must not keep the process.
    runtime.shutdown_background();
    result
}
