//! `sworn devnet`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use alloy::primitives::Address;
use serde::Serialize;
use sworn_model::{Model, SyntheticSpec, pull};

use super::model;
use crate::args::Devnet;
use crate::backend::blocking;
use crate::events::stop_signal;
use crate::fault::{Doing, Result};
use crate::localnet::{Localnet, whole};
use crate::models::{self, id_text};
use crate::output::note;
use crate::progress::ModelProgress;
use crate::settings::Settings;
use crate::tools;

/// Tokens of every account.
const TOKENS: u64 = 10_000;
const ACCOUNTS: [&str; 3] = ["operator", "user", "watcher"];

#[derive(Serialize)]
struct Ready {
    rpc: String,
    chain_id: u64,
    deployment: std::path::PathBuf,
    config: std::path::PathBuf,
    password_file: std::path::PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
    accounts: Vec<Funded>,
}

#[derive(Serialize)]
struct Funded {
    name: &'static str,
    address: Address,
    key: std::path::PathBuf,
}

pub(super) async fn run(settings: &Settings, command: Devnet) -> Result<ExitCode> {
    let root = tools::root(command.root.as_deref())?;
    std::fs::create_dir_all(&command.dir).doing(|| format!("cannot create {}", command.dir.display()))?;
    let dir = std::path::absolute(&command.dir)?;
    let wanted = (command.model != "none").then(|| command.model.clone());
    let loaded = match &wanted {
        Some(name) => Some(obtain(settings, name, &dir).await?),
        None => None,
    };
    note("starting the chain and deploying the contracts…");
    let mut net = Localnet::start(&root, &dir, command.port).await?;
    let mut accounts = Vec::new();
    let mut operator = None;
    for name in ACCOUNTS {
        let purse = net.purse(name, whole(TOKENS)).await?;
        accounts.push(Funded { name, address: purse.account.address(), key: purse.key_file.clone() });
        operator.get_or_insert(purse);
    }
    let model_name = wanted.map(|name| named(&name, loaded.as_deref()));
    if let (Some(model), Some(operator)) = (&loaded, &operator) {
        model::register(&operator.account, model, String::new()).await?;
    }
    let config = dir.join("sworn.toml");
    let mut lines = vec![
        format!("rpc = {:?}", net.rpc),
        format!("deployment = {:?}", net.deployment_file.display().to_string()),
        format!("password-file = {:?}", net.password_file().display().to_string()),
    ];
    lines.extend(model_name.iter().map(|name| format!("model = {name:?}")));
    std::fs::write(&config, lines.join("\n") + "\n").doing(|| format!("cannot write {}", config.display()))?;

    let ready = Ready {
        rpc: net.rpc.clone(),
        chain_id: net.link.chain.deployment().chain_id,
        deployment: net.deployment_file.clone(),
        config: config.clone(),
        password_file: net.password_file(),
        model: model_name,
        model_id: loaded.as_ref().map(|m| id_text(&m.id())),
        accounts,
    };
    settings.out.line(&ready, text)?;
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
    let mut stop = std::pin::pin!(stop_signal());
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = ticks.tick() => net.anvil.check()?,
        }
    }
    note("the chain is gone; its files are in the directory still");
    Ok(ExitCode::SUCCESS)
}

fn text(r: &Ready) -> String {
    let mut text = format!(
        "\nA chain runs at {} (id {}). In another terminal:\n\n  export SWORN_CONFIG={}\n\n",
        r.rpc,
        r.chain_id,
        r.config.display()
    );
    for a in &r.accounts {
        text.push_str(&format!("  {:<9} {}  --key {}\n", a.name, a.address, a.key.display()));
    }
    let key = |name: &str| {
        r.accounts.iter().find(|a| a.name == name).map(|a| a.key.display().to_string()).unwrap_or_default()
    };
    text.push_str(&format!(
        "\nTry:\n  sworn node stake 100 --key {0}\n  sworn node register --endpoint http://127.0.0.1:9545 --key {0}\n  sworn node price --input 0.001 --output 0.01 --key {0}\n  sworn node run --key {0}\n  sworn watch --key {1}\n  sworn ask \"What is the capital of France?\" --key {2}\n\nCtrl-C ends the chain.",
        key("operator"),
        key("watcher"),
        key("user")
    ));
    text
}

/// A stored model, pulled or made first if that is how it comes.
pub(super) async fn obtain(settings: &Settings, name: &str, dir: &Path) -> Result<Arc<Model>> {
    if name == "synthetic" {
        let out = dir.join("models/synthetic");
        return blocking(move || Ok(Arc::new(sworn_model::synthetic(&SyntheticSpec::default(), out)?))).await;
    }
    let (settings, name) = (settings.clone(), name.to_owned());
    blocking(move || {
        if pull::KNOWN_MODELS.iter().any(|m| m.name == name) {
            let mut progress = ModelProgress::new();
            return Ok(Arc::new(sworn_model::pull(&name, &settings.home, &mut |p| progress.show(p))?));
        }
        models::load(&settings, &name)
    })
    .await
}

/// What other commands call the model: a made one has no name in the store, but a path.
pub(super) fn named(name: &str, model: Option<&Model>) -> String {
    match model {
        Some(model) if name == "synthetic" => model.path().display().to_string(),
        _ => name.to_owned(),
    }
}
