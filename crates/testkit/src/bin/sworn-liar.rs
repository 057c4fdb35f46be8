//! A node that lies: the flags of `sworn node run`, and which lie to tell. For tests and `sworn demo` only.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use serde::Serialize;
use sworn_bindings::Deployment;
use sworn_chain::{Chain, Sender, SenderOptions, Store, key};
use sworn_engine::Cpu;
use sworn_model::ModelStore;
use sworn_node::{ChannelTerms, EventSink, Node, NodeConfig, Offer, Registration};
use sworn_testkit::liar::{Liar, Lie};
use sworn_testkit::tamper::Wanted;

/// A dishonest node, for demonstrations and tests.
///
/// Its flags are those of `sworn node run`, and which lie to tell where. With --json every event is one line on stdout; the event
/// "lied" names the first wrong element.
#[derive(Debug, Parser)]
#[command(name = "sworn-liar", version)]
struct Args {
    /// What to lie about: an opcode's name, token, model, padding, none; or withhold, malformed, second-story, interactive, mute;
    /// or both, as MIX+withhold:pages
    #[arg(long, default_value = "LINEAR")]
    lie: Lie,
    /// Varies where the lie is
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Layer of the wrong element [default: chosen by the seed]
    #[arg(long)]
    layer: Option<u16>,
    /// Its position in the sequence [default: chosen by the seed]
    #[arg(long)]
    position: Option<u32>,
    /// The element [default: chosen by the seed]
    #[arg(long)]
    element: Option<u64>,

    /// Events as JSON lines on stdout
    #[arg(long)]
    json: bool,
    /// Where models are kept [default: ~/.sworn]
    #[arg(long)]
    home: Option<PathBuf>,
    /// The chain's JSON-RPC endpoint
    #[arg(long, env = "SWORN_RPC", default_value = "http://127.0.0.1:8545")]
    rpc: String,
    /// The deployment's file
    #[arg(long, env = "SWORN_DEPLOYMENT")]
    deployment: PathBuf,
    /// Keystore of the account that signs
    #[arg(long, env = "SWORN_KEY")]
    key: PathBuf,
    /// File that holds the keystore's password
    #[arg(long, env = "SWORN_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// What to log on stderr
    #[arg(long, default_value = "warn")]
    log: String,
    /// Model by name, id or directory
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// Where to execute; lies are told on the cpu
    #[arg(long, default_value = "cpu", value_parser = ["auto", "cpu"])]
    backend: String,
    /// Where to serve traces
    #[arg(long, default_value = "127.0.0.1:9546")]
    listen: SocketAddr,
    /// Journal and state
    #[arg(long)]
    state: PathBuf,
    /// Also take open jobs
    #[arg(long)]
    open_jobs: bool,

    /// Also answer in channels, and redeem receipts when they have earned this much, in the token's smallest unit
    #[arg(long)]
    redeem_at: Option<u128>,

    /// Post this endpoint before serving
    #[arg(long)]
    endpoint: Option<String>,
    /// Post this capacity before serving
    #[arg(long)]
    capacity: Option<u32>,
    /// Stake at least this much before serving, in the token's smallest unit
    #[arg(long, default_value_t = 0)]
    stake: u128,
    /// Post this price of a prompt token before serving
    #[arg(long, requires = "output_price")]
    input_price: Option<u128>,
    /// Post this price of an output token before serving
    #[arg(long, requires = "input_price")]
    output_price: Option<u128>,
    /// Longest prompt and answer together
    #[arg(long, default_value_t = 2048)]
    longest: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false).init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&format!("cannot start threads: {e}")),
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {message}");
    ExitCode::FAILURE
}

/// One event a line; a reader that is gone is none of a node's business.
fn line(json: bool, event: &impl Serialize) {
    if json && let Ok(text) = serde_json::to_string(event) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

async fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let chain = Chain::connect(&args.rpc, Deployment::load(&args.deployment)?).await?;
    let prompt = || Err(std::io::Error::other("this program does not ask"));
    let password = key::password(&args.key, args.password_file.as_deref(), prompt)?;
    let signer = key::open(&args.key, &password)?;
    let store = match args.home {
        Some(home) => ModelStore::new(home),
        None => ModelStore::from_env()?,
    };
    let model = Arc::new(store.load(&args.model)?);
    let id = model.id().into();
    let wanted = Wanted { layer: args.layer, position: args.position, element: args.element };
    let json = args.json;
    std::fs::create_dir_all(&args.state)?;
    let liar = Liar::new(Cpu::new(model)?, args.lie, wanted, args.seed, &args.state, move |told| line(json, told))?;

    let journal = Store::open(args.state.join("node.redb"), &chain)?;
    let terms = args.redeem_at.map(|redeem_at| ChannelTerms { redeem_at, ..ChannelTerms::new(signer.clone()) });
    let sender = Sender::new(chain, signer, journal.clone(), SenderOptions::default());
    let mut config = NodeConfig::new(&args.state);
    config.listen = Some(args.listen);
    config.accept_open = args.open_jobs;
    config.channels = terms;
    let offer = args.input_price.zip(args.output_price).map(|(i, o)| Offer {
        model: id,
        per_input_token: i,
        per_output_token: o,
        max_tokens: args.longest,
    });
    config.registration = Registration {
        endpoint: args.endpoint,
        capacity: args.capacity,
        stake: args.stake,
        offers: offer.into_iter().collect(),
    };
    let sink = EventSink::new(move |e| line(json, e));
    let node = Node::start(config, sender, journal, Arc::new(liar.clone()), Arc::new(liar), sink).await?;
    node.run(interrupted()).await?;
    Ok(())
}

/// Ctrl-C, or a supervisor's SIGTERM.
async fn interrupted() {
    #[cfg(unix)]
    if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        return;
    }
    let _ = tokio::signal::ctrl_c().await;
}
