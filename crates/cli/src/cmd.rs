//! The verbs.

mod ask;
mod audit;
mod bench;
mod channel;
mod demo;
mod devnet;
mod dispute;
mod doctor;
mod eval;
mod gateway;
mod job;
mod key;
mod manual;
mod model;
mod money;
mod network;
mod node;
mod run;
mod watch;

use std::process::ExitCode;

use crate::args::Noun;
use crate::fault::Result;
use crate::settings::Settings;

pub(crate) async fn run(settings: Settings, noun: Noun) -> Result<ExitCode> {
    match noun {
        Noun::Model(verb) => model::run(&settings, verb).await,
        Noun::Node(verb) => node::run(&settings, verb).await,
        Noun::Gateway(command) => gateway::run(&settings, command).await,
        Noun::Channel(verb) => channel::run(&settings, verb).await,
        Noun::Ask(command) => ask::run(&settings, command).await,
        Noun::Job(verb) => job::run(&settings, verb).await,
        Noun::Watch(command) => watch::run(&settings, command).await,
        Noun::Dispute(verb) => dispute::run(&settings, verb).await,
        Noun::Network(command) => network::run(&settings, command).await,
        Noun::Money(command) => money::run(&settings, command).await,
        Noun::Doctor(command) => doctor::run(&settings, command).await,
        Noun::Run(command) => run::run(&settings, command).await,
        Noun::Audit(command) => audit::run(&settings, command).await,
        Noun::Eval(command) => eval::run(&settings, command).await,
        Noun::Bench(command) => bench::run(&settings, command).await,
        Noun::Completions { shell } => manual::completions(&settings, shell),
        Noun::Man { dir } => manual::pages(&dir),
        Noun::Key(verb) => key::run(&settings, verb).await,
        Noun::Devnet(command) => devnet::run(&settings, command).await,
        Noun::Demo(command) => demo::run(&settings, command).await,
    }
}
