//! `sworn doctor`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use sworn_engine::{Backend, Cpu};

use crate::amount::ether;
use crate::args::{BackendChoice, Doctor};
use crate::fault::Result;
use crate::link::Link;
use crate::models::{self, id_text};
use crate::settings::Settings;
use crate::tools;

/// A model with its journals and downloads fits in this.
const DISK_NEEDED: u64 = 1 << 30;
/// Seconds by which this machine's clock may be behind the chain's.
const SKEW: u64 = 30;
/// Seconds without a block after which a chain is suspected to have stopped.
const STALE: u64 = 600;

#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    what: &'static str,
    state: State,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Works, but not all does.
    Note,
    Fault,
}

struct Findings(Vec<Check>);

impl Findings {
    fn ok(&mut self, what: &'static str, detail: impl Into<String>) {
        self.0.push(Check { what, state: State::Ok, detail: detail.into(), cure: None });
    }

    fn note(&mut self, what: &'static str, detail: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Check { what, state: State::Note, detail: detail.into(), cure: Some(cure.into()) });
    }

    fn fault(&mut self, what: &'static str, detail: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Check { what, state: State::Fault, detail: detail.into(), cure: Some(cure.into()) });
    }
}

pub(super) async fn run(settings: &Settings, command: Doctor) -> Result<ExitCode> {
    let mut found = Findings(Vec::new());
    disk(&mut found, &settings.home);
    model(&mut found, settings, &command);
    adapters(&mut found, command.engine.backend);
    programs(&mut found);
    if !command.offline {
        key(&mut found, settings).await;
        chain(&mut found, settings).await;
    }
    let report = Report { ok: found.0.iter().all(|c| c.state != State::Fault), checks: found.0 };
    settings.out.result(&report, |r| {
        let lines = r.checks.iter().map(|c| {
            let mark = match c.state {
                State::Ok => "ok   ",
                State::Note => "note ",
                State::Fault => "FAULT",
            };
            let cure = c.cure.as_ref().map(|cure| format!("\n                   cure: {cure}")).unwrap_or_default();
            format!("{mark}  {:<10}  {}{cure}", c.what, c.detail)
        });
        lines.collect::<Vec<_>>().join("\n")
    })?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn disk(found: &mut Findings, home: &Path) {
    // The directory itself may not exist before the first model.
    let Some(existing) = home.ancestors().find(|p| p.exists()) else { return };
    match free_space(existing) {
        Some(free) if free < DISK_NEEDED => found.fault(
            "disk",
            format!("{} MiB free at {}", free >> 20, home.display()),
            "free a gigabyte, or set SWORN_HOME to a larger disk",
        ),
        Some(free) => found.ok("disk", format!("{} GiB free at {}", free >> 30, home.display())),
        None => found.note(
            "disk",
            format!("the free space at {} is unknown", home.display()),
            "see that a gigabyte is free",
        ),
    }
    if home.exists() && tempfile::tempfile_in(home).is_err() {
        found.fault(
            "home",
            format!("{} cannot be written", home.display()),
            "fix its permissions, or set SWORN_HOME to another directory",
        );
    }
}

/// As POSIX `df` reports it.
fn free_space(path: &Path) -> Option<u64> {
    let out = std::process::Command::new("df").arg("-Pk").arg(path).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let kibibytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kibibytes << 10)
}

fn model(found: &mut Findings, settings: &Settings, command: &Doctor) {
    let loaded = match models::load(settings, &command.engine.model) {
        Ok(model) => model,
        Err(e) => return found.fault("model", e.to_string(), format!("sworn model pull {}", command.engine.model)),
    };
    found.ok(
        "model",
        format!(
            "{} {} ({} positions at most)",
            command.engine.model,
            id_text(&loaded.id()),
            loaded.manifest().max_positions
        ),
    );
    match Cpu::new(loaded) {
        Ok(cpu) => found.ok("cpu", cpu.adapter()),
        Err(e) => found.fault("cpu", e.to_string(), "raise the limit of threads (ulimit -u)"),
    }
}

fn adapters(found: &mut Findings, wanted: BackendChoice) {
    let adapters = sworn_engine_wgpu::probe();
    for adapter in adapters {
        found.ok("adapter", adapter.to_string());
    }
    let cure = "install the GPU's Vulkan driver; for a software adapter run script/mesa and source the file it prints";
    match wanted {
        BackendChoice::Wgpu if adapters.is_empty() => found.fault("adapter", "no adapter for the wgpu backend", cure),
        _ if !adapters.iter().any(|a| a.is_gpu()) => found.note("adapter", "no GPU: the cpu backend executes", cure),
        _ => {}
    }
}

fn programs(found: &mut Findings) {
    // Only devnet and demo start other programs.
    let Ok(root) = tools::root(None) else { return };
    for (what, name) in [("anvil", "anvil"), ("forge", "forge")] {
        match tools::foundry(name, &root) {
            Ok(path) => found.ok(what, path.display().to_string()),
            Err(e) => found.note(what, e.to_string(), "make setup (only devnet and demo need it)"),
        }
    }
}

async fn key(found: &mut Findings, settings: &Settings) {
    match settings.key_place() {
        Err(_) => found.note("key", "none given: nothing can be signed", "sworn key new, then --key FILE or SWORN_KEY"),
        Ok(place) => match place.check() {
            Err(e) => found.fault("key", e.to_string(), "sworn key new makes a keystore"),
            Ok(()) => match settings.account().await {
                Ok(account) => found.ok("key", format!("{account} in {place}")),
                Err(e) => found.fault("key", e.to_string(), "check --key (SWORN_KEY)"),
            },
        },
    }
}

async fn chain(found: &mut Findings, settings: &Settings) {
    if !settings.has_deployment() {
        found.note(
            "chain",
            "no deployment given: no chain is used",
            "give --deployment FILE (SWORN_DEPLOYMENT); sworn devnet makes one",
        );
        return;
    }
    let deployment = match settings.deployment() {
        Ok(deployment) => deployment,
        Err(e) => return found.fault("deployment", e.to_string(), "give the file that the deployment wrote"),
    };
    let market = deployment.market;
    let link = match Link::to(&settings.rpc, deployment).await {
        Ok(link) => link,
        Err(e) => return found.fault("chain", e.to_string(), "check --rpc (SWORN_RPC) and --deployment"),
    };
    found.ok(
        "chain",
        format!(
            "id {} at {}, market {market}, paid in {}",
            link.chain.deployment().chain_id,
            link.chain.url(),
            link.currency.symbol
        ),
    );
    match link.chain.head().await {
        Err(e) => found.fault("clock", e.to_string(), "check the RPC"),
        Ok(head) => {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            if head.timestamp > wall + SKEW {
                found.fault(
                    "clock",
                    format!("this machine is {} s behind the chain", head.timestamp - wall),
                    "set the clock (NTP): deadlines would be missed",
                );
            } else if wall > head.timestamp + STALE {
                found.note(
                    "clock",
                    format!("block {} is {} s old", head.number, wall - head.timestamp),
                    "see whether the chain or the RPC has stopped",
                );
            } else {
                found.ok("clock", format!("block {} is {} s old", head.number, wall.saturating_sub(head.timestamp)));
            }
        }
    }
    if let Ok(account) = settings.account().await {
        match link.chain.balances(account).await {
            Ok(b) if b.native.is_zero() => found.fault(
                "gas",
                format!("{account} has no currency for gas"),
                "send it some of the chain's own currency",
            ),
            Ok(b) => found.ok("gas", format!("{} and {} in the wallet", ether(b.native), link.currency.show(b.token))),
            Err(e) => found.fault("gas", e.to_string(), "check the RPC"),
        }
    }
}
